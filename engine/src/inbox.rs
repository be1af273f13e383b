//! How handles on any thread reach the shard: a bounded queue and a wake-up (R14).

use crate::answer::{self, Answer, Asker};
use crate::request::{Request, RequestError};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::time::Duration;
use tidelog_io::Waker;

/// One request of this process.
#[derive(Debug)]
pub(crate) enum Command {
    /// To be answered.
    Request { request: Request, asker: Asker },
    /// Refuse new work, drain, seal, end.
    Stop,
}

/// The shard's side of the queue.
#[derive(Debug)]
pub struct Commands {
    queue: Receiver<Command>,
}

impl Commands {
    /// For a shard that only its transport gives work to.
    pub fn none() -> Commands {
        Commands { queue: crossbeam_channel::never() }
    }

    pub(crate) fn next(&self) -> Option<Command> {
        self.queue.try_recv().ok()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// The sending side.
#[derive(Clone, Debug)]
pub(crate) struct Inbox {
    queue: Sender<Command>,
    waker: Waker,
}

/// What a handle's caller is told to wait before it tries again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(10);

pub(crate) fn inbox(capacity: usize, waker: Waker) -> (Inbox, Commands) {
    let (queue, receiver) = crossbeam_channel::bounded(capacity);
    (Inbox { queue, waker }, Commands { queue: receiver })
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
        let (asker, error) = match self.queue.try_send(Command::Request { request, asker }) {
            Ok(()) => return true,
            Err(TrySendError::Full(Command::Request { asker, .. })) => {
                (asker, RequestError::busy(RETRY_AFTER))
            }
            Err(TrySendError::Disconnected(Command::Request { asker, .. })) => {
                (asker, RequestError::Unavailable("the engine is closed".into()))
            }
            Err(_) => return false,
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

    /// Asks the shard to stop; waits for room in the queue if it is full.
    pub(crate) fn stop(&self) {
        // A shard that is gone already has stopped.
        drop(self.queue.send(Command::Stop));
        self.waker.wake();
    }
}
