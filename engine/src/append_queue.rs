//! Many appends of one thread or task, answered in bulk.
//!
//! A future for each record costs an allocation and a wake-up for each. Where one thread or task has many records in flight, as a
//! server that writes for its own clients does, it can take answers as they have come instead: it is woken once for all that the
//! shard has answered, and wakes the shard once for all that it appends until it waits again.

use crate::answer::{self, Answers};
use crate::engine::{Partition, appended};
use crate::inbox::Inbox;
use crate::request::{Request, RequestError, Response};
use bytes::Bytes;
use std::task::{Context, Poll};
use std::time::Duration;
use tidelog_types::{PartitionId, Position, SessionRef};

/// Most records that one queue may have in flight.
pub const IN_FLIGHT_LIMIT: usize = 1 << 16;

/// After so many records the shard is woken without being told to: it can encode them while more are appended.
const SUBMIT_AT: usize = 32;

/// What became of a record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Appended {
    /// As appended.
    pub tag: u64,
    /// Where it is, durable on a quorum; or why not.
    pub result: Result<Position, RequestError>,
}

/// See the module. Made by [`crate::Engine::append_queue`]. Dropping it takes no record back; it does not keep the engine open.
///
/// # Examples
/// ```
/// # let dir = std::env::temp_dir().join(format!("tidelog-append-queue-{}", std::process::id()));
/// # let mut config = tidelog::config::Config::single(&dir);
/// # config.wal.segment_size = 16 << 20;
/// let engine = tidelog::Engine::open(config)?;
/// let orders = engine.partition(b"orders");
/// let mut queue = engine.append_queue(100);
/// for tag in 0..100 {
///     queue.append(&orders, tag, format!("order {tag}"))?;
/// }
/// let mut done = Vec::new();
/// while queue.in_flight() > 0 {
///     queue.wait(None, &mut done);
/// }
/// assert!(done.len() == 100 && done.iter().all(|order| order.result.is_ok()));
/// engine.close()?;
/// # std::fs::remove_dir_all(dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AppendQueue {
    inbox: Inbox,
    answers: Answers,
    in_flight: usize,
    in_flight_max: usize,
    /// Records handed over since the shard was last woken.
    unrung: usize,
}

impl AppendQueue {
    pub(crate) fn new(inbox: Inbox, in_flight_max: usize) -> AppendQueue {
        let in_flight_max = in_flight_max.clamp(1, IN_FLIGHT_LIMIT);
        AppendQueue { inbox, answers: answer::queue(in_flight_max), in_flight: 0, in_flight_max, unrung: 0 }
    }

    /// Appends a record; `tag` names it in its answer. The shard may hear of it only at the next [`Self::submit`],
    /// [`Self::poll`] or [`Self::wait`].
    ///
    /// # Errors
    /// [`RequestError::Busy`] if as many records as the queue allows are in flight: take answers first. Other errors come
    /// as answers.
    pub fn append(
        &mut self,
        partition: &Partition,
        tag: u64,
        payload: impl Into<Bytes>,
    ) -> Result<(), RequestError> {
        self.hand_over(partition.id(), None, tag, payload.into())
    }

    /// The same at most once under (session, sequence): a retry gets the index of the first.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn append_in(
        &mut self,
        partition: &Partition,
        session: SessionRef,
        tag: u64,
        payload: impl Into<Bytes>,
    ) -> Result<(), RequestError> {
        self.hand_over(partition.id(), Some(session), tag, payload.into())
    }

    fn hand_over(
        &mut self,
        partition: PartitionId,
        session: Option<SessionRef>,
        tag: u64,
        payload: Bytes,
    ) -> Result<(), RequestError> {
        if self.in_flight == self.in_flight_max {
            return Err(RequestError::busy(Duration::ZERO));
        }
        self.in_flight += 1;
        let payload_crc = tidelog_types::checksum(&payload);
        let request = Request::Append { partition, session, payload, payload_crc };
        self.unrung += usize::from(self.inbox.hand_over(request, self.answers.asker(tag)));
        if self.unrung >= SUBMIT_AT {
            self.submit();
        }
        Ok(())
    }

    /// Records without an answer so far.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Wakes the shard for what was appended.
    pub fn submit(&mut self) {
        if std::mem::take(&mut self.unrung) > 0 {
            self.inbox.ring();
        }
    }

    /// Submits, and adds the answers that are there to `done`. With none, and records in flight, `cx` is woken when there
    /// are some.
    pub fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Appended>) -> Poll<()> {
        self.submit();
        let before = done.len();
        self.take(self.answers.next(), done);
        if done.len() == before && self.in_flight > 0 {
            self.take(self.answers.next_or_wake(cx), done);
        }
        if done.len() > before || self.in_flight == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Submits, waits until there are answers, for about `time_max` at most, and adds them to `done`. It may return without
    /// any.
    ///
    /// # Panics
    /// On a shard's own thread (in a state machine, in a waker), where it would wait for itself.
    pub fn wait(&mut self, time_max: Option<Duration>, done: &mut Vec<Appended>) {
        crate::life_cycle::assert_may_wait("AppendQueue::wait");
        answer::on_this_thread(|cx| {
            if self.poll(cx, done).is_pending() {
                match time_max {
                    Some(time) => std::thread::park_timeout(time),
                    None => std::thread::park(),
                }
                self.take(self.answers.next(), done);
            }
        });
    }

    /// This answer, and all others that are there.
    fn take(&mut self, mut next: Option<(u64, Response)>, done: &mut Vec<Appended>) {
        while let Some((tag, response)) = next {
            self.in_flight -= 1;
            done.push(Appended { tag, result: appended(response) });
            next = self.answers.next();
        }
    }
}

impl Drop for AppendQueue {
    fn drop(&mut self) {
        self.submit();
    }
}
