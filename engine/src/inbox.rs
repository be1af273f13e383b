//! How handles on any thread reach the shard: a bounded queue and a wake-up (R14).
//!
//! Requests that are still queued when the shard ends are refused. Queueing races with that end: the shard says that it takes nothing any more, then
//! answers what it finds; a handle queues its request, then looks whether that has been said, and if so answers what it finds itself.
//! One of the two finds each request (both orders are sequentially consistent).

use crate::answer::{self, Answer, Asker};
use crate::life_cycle::LifeCycle;
use crate::request::{Request, RequestError};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;
use tidelog_io::Waker;

/// One request of this process, to be answered.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request: Request,
    pub(crate) asker: Asker,
}

/// The shard's side of the queue. Dropping it answers what is queued.
#[derive(Debug)]
pub struct Commands {
    queue: Receiver<Command>,
    closed: Arc<AtomicBool>,
    pub(crate) life_cycle: Arc<LifeCycle>,
}

impl Commands {
    /// For a shard that only its transport gives work to.
    pub fn none() -> Commands {
        Commands { queue: crossbeam_channel::never(), closed: Arc::default(), life_cycle: Arc::default() }
    }

    pub(crate) fn next(&self) -> Option<Command> {
        self.queue.try_recv().ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        refuse_all(&self.queue, &self.life_cycle);
    }
}

/// Refuses the requests that the shard did not take before it ended: none of them was carried out.
fn refuse_all(queue: &Receiver<Command>, life_cycle: &LifeCycle) {
    while let Ok(Command { asker, .. }) = queue.try_recv() {
        if let Some(waker) = asker.answer(Err(ended(life_cycle))) {
            waker.wake();
        }
    }
}

/// What is said to whoever asks a node that has ended.
fn ended(life_cycle: &LifeCycle) -> RequestError {
    RequestError::Unavailable(match life_cycle.outcome() {
        Some(Err(error)) => format!("the engine has stopped: {error}"),
        _ => "the engine is closed".into(),
    })
}

/// The sending side.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    queue: Sender<Command>,
    /// The other end, for what the shard does not take any more.
    left: Receiver<Command>,
    closed: Arc<AtomicBool>,
    waker: Waker,
    life_cycle: Arc<LifeCycle>,
}

/// What a handle's caller is told to wait before it tries again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(10);

pub(crate) fn inbox(capacity: usize, waker: Waker, life_cycle: Arc<LifeCycle>) -> (Inbox, Commands) {
    let (queue, receiver) = crossbeam_channel::bounded(capacity);
    let (closed, left) = (Arc::<AtomicBool>::default(), receiver.clone());
    let commands =
        Commands { queue: receiver, closed: Arc::clone(&closed), life_cycle: Arc::clone(&life_cycle) };
    (Inbox { queue, left, closed, waker, life_cycle }, commands)
}

impl Inbox {
    /// Queues a request; its answer arrives where the result waits for it. A full queue answers *busy*, a stopped shard
    /// *unavailable*.
    pub(crate) fn request(&self, request: Request) -> Answer {
        let (asker, answer) = answer::channel();
        if self.hand_over(request, asker) {
            self.ring();
        }
        answer
    }

    /// Queues a request without waking the shard; false if it is answered already.
    pub(crate) fn hand_over(&self, request: Request, asker: Asker) -> bool {
        let (asker, error) = match self.queue.try_send(Command { request, asker }) {
            Ok(()) => {
                fence(Ordering::SeqCst);
                let closed = self.closed.load(Ordering::SeqCst);
                if closed {
                    refuse_all(&self.left, &self.life_cycle);
                }
                return !closed;
            }
            Err(TrySendError::Full(Command { asker, .. })) if !self.closed.load(Ordering::SeqCst) => {
                (asker, RequestError::busy(RETRY_AFTER))
            }
            Err(error) => (error.into_inner().asker, self.ended()),
        };
        // This is the asker's own thread: if it waits elsewhere as well, it is to look.
        if let Some(waker) = asker.answer(Err(error)) {
            waker.wake();
        }
        false
    }

    /// Wakes the shard for what was handed over.
    pub(crate) fn ring(&self) {
        self.waker.wake();
    }

    /// Asks the shard to stop, without waiting.
    pub(crate) fn stop(&self) {
        self.life_cycle.stop();
        self.waker.wake();
    }

    pub(crate) fn life_cycle(&self) -> &Arc<LifeCycle> {
        &self.life_cycle
    }

    /// What is said to whoever asks a node that has ended.
    pub(crate) fn ended(&self) -> RequestError {
        ended(&self.life_cycle)
    }
}
