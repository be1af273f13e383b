//! What a program is told of its node without asking: leadership, failures of the disk, space, the end.
//!
//! What it promises: events come in the order in which they happened, on one bounded queue for each subscriber; a subscriber that falls behind
//! loses the newest ones and is told how many. Publishing never waits, and costs a load when nobody subscribes. What it does not know: why
//! anything happened beyond the words given.

use crate::answer::on_this_thread;
use crate::error::Error;
use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use tidelog_consensus::Role;
use tidelog_types::{Generation, NodeId, PartitionId};

/// Most events that wait for one subscriber.
pub const EVENTS_MAX: usize = 1 << 16;

/// Something that happened at this node.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A partition's leader, as this node knows it, or this node's own role changed.
    Leadership {
        /// Which partition.
        partition: PartitionId,
        /// The newest generation known here.
        generation: Generation,
        /// Its leader, if it is known.
        leader: Option<NodeId>,
        /// What this node's replica is.
        role: Role,
    },
    /// A write or sync failed: nothing is acknowledged until the log is open again.
    Fenced {
        /// What failed.
        why: String,
    },
    /// The log is open again after [`Event::Fenced`], or after it waited for space; its replicas are followers.
    Reopened,
    /// The disk has no space for another segment: appends are refused as busy.
    DiskFull,
    /// There is space again.
    DiskHasSpace,
    /// So many events were lost here, because the subscriber's queue was full.
    Lost {
        /// How many.
        count: u64,
    },
    /// The node has ended; the last event.
    Stopped {
        /// Why, if it was not asked to.
        why: Option<Error>,
    },
}

/// Where events are published.
#[derive(Debug, Default)]
pub(crate) struct EventHub {
    /// How many subscribe.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    subscribers: Vec<Subscriber>,
    /// The last event: nothing comes behind it.
    end: Option<Event>,
}

#[derive(Debug)]
struct Subscriber {
    events: Sender<Event>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    lost: AtomicU64,
    waiting: AtomicWaker,
    /// The subscriber went away.
    gone: std::sync::atomic::AtomicBool,
}

impl EventHub {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody subscribes.
    pub(crate) fn is_heard(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    pub(crate) fn publish(&self, event: Event) {
        if !self.is_heard() {
            return;
        }
        let mut inner = self.lock();
        inner.tell(&event);
        self.count.store(inner.subscribers.len(), Ordering::Release);
    }

    /// The last event: also what later subscribers are told.
    pub(crate) fn end(&self, event: Event) {
        let mut inner = self.lock();
        inner.tell(&event);
        inner.end = Some(event);
        for subscriber in inner.subscribers.drain(..) {
            let waiting = Arc::clone(&subscriber.shared);
            // Without its sender the queue ends.
            drop(subscriber);
            waiting.waiting.wake();
        }
        self.count.store(0, Ordering::Release);
    }

    pub(crate) fn subscribe(&self, capacity: usize) -> Events {
        // One place more than asked for: it is kept for the end.
        let (sender, receiver) = bounded(capacity.clamp(1, EVENTS_MAX) + 1);
        let shared = Arc::<Shared>::default();
        let mut inner = self.lock();
        match &inner.end {
            Some(end) => drop(sender.try_send(end.clone())),
            None => inner.subscribers.push(Subscriber { events: sender, shared: Arc::clone(&shared) }),
        }
        self.count.store(inner.subscribers.len(), Ordering::Release);
        Events { events: receiver, shared, told: 0 }
    }
}

impl Inner {
    fn tell(&mut self, event: &Event) {
        self.subscribers.retain(|subscriber| !subscriber.shared.gone.load(Ordering::Acquire));
        for Subscriber { events, shared } in &self.subscribers {
            let last = matches!(event, Event::Stopped { .. });
            let room = events.capacity().is_none_or(|capacity| events.len() + 1 < capacity);
            if !(last || room) || events.try_send(event.clone()).is_err() {
                shared.lost.fetch_add(1, Ordering::AcqRel);
            }
            shared.waiting.wake();
        }
    }
}

/// A subscription, from [`crate::Engine::events`]: a blocking iterator, or [`Events::poll_next`] for an executor. It ends behind
/// [`Event::Stopped`]. Dropping it ends the subscription; it does not keep the engine open.
///
/// # Examples
/// ```
/// use tidelog::{Engine, Event, config::Config};
/// # let dir = std::env::temp_dir().join(format!("tidelog-events-{}", std::process::id()));
/// let engine = Engine::open(Config::single(&dir))?;
/// let events = engine.events(64);
/// engine.close()?;
/// assert!(matches!(events.last(), Some(Event::Stopped { why: None })));
/// # std::fs::remove_dir_all(dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Events {
    events: Receiver<Event>,
    shared: Arc<Shared>,
    /// Lost events that were reported.
    told: u64,
}

impl Events {
    /// The next event if there is one; none behind the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Poll::Ready(next) = self.take() {
            return Poll::Ready(next);
        }
        self.shared.waiting.register(cx.waker());
        // It may have come between the two.
        self.take()
    }

    /// The next event that is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        match self.take() {
            Poll::Ready(next) => next,
            Poll::Pending => None,
        }
    }

    /// Lost ones are told when those that were queued before them have been taken.
    fn take(&mut self) -> Poll<Option<Event>> {
        let lost = self.shared.lost.load(Ordering::Acquire) - self.told;
        match self.events.try_recv() {
            Ok(event @ Event::Stopped { .. }) if lost > 0 => {
                // Behind the report of what was lost; there is nothing more to come that could be in its way.
                self.told += lost;
                let (sender, receiver) = bounded(1);
                drop(sender.try_send(event));
                self.events = receiver;
                Poll::Ready(Some(Event::Lost { count: lost }))
            }
            Ok(event) => Poll::Ready(Some(event)),
            Err(_) if lost > 0 => {
                self.told += lost;
                Poll::Ready(Some(Event::Lost { count: lost }))
            }
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    /// Waits for the next event; none behind the last.
    ///
    /// # Panics
    /// On a shard's own thread, where it would wait for itself.
    fn next(&mut self) -> Option<Event> {
        crate::life_cycle::assert_may_wait("Events::next");
        on_this_thread(|cx| {
            loop {
                match self.poll_next(cx) {
                    Poll::Ready(next) => return next,
                    Poll::Pending => std::thread::park(),
                }
            }
        })
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_subscriber_loses_the_newest_and_is_told_how_many() {
        let hub = EventHub::default();
        let mut events = hub.subscribe(2);
        (0..5).for_each(|_| hub.publish(Event::DiskFull));
        assert!(matches!(events.try_next(), Some(Event::DiskFull)));
        assert!(matches!(events.try_next(), Some(Event::DiskFull)));
        assert!(matches!(events.try_next(), Some(Event::Lost { count: 3 })));
        assert!(events.try_next().is_none());
        hub.publish(Event::DiskHasSpace);
        assert!(matches!(events.next(), Some(Event::DiskHasSpace)));
    }

    #[test]
    fn the_end_is_told_to_a_full_queue_and_to_who_comes_late() {
        let hub = EventHub::default();
        let events = hub.subscribe(1);
        (0..3).for_each(|_| hub.publish(Event::DiskFull));
        hub.end(Event::Stopped { why: None });
        let told: Vec<_> = events.collect();
        assert!(
            matches!(told[..], [Event::DiskFull, Event::Lost { count: 2 }, Event::Stopped { why: None }]),
            "{told:?}"
        );
        let late: Vec<_> = hub.subscribe(1).collect();
        assert!(matches!(late[..], [Event::Stopped { .. }]), "{late:?}");
    }

    #[test]
    fn who_went_away_is_not_told() {
        let hub = EventHub::default();
        drop(hub.subscribe(1));
        hub.publish(Event::DiskFull);
        assert!(!hub.is_heard());
    }
}
