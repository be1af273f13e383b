//! How handles on any thread reach the shard: a bounded queue and a wake-up (R14).

use crate::request::{Request, RequestError, Response};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::time::Duration;
use tidelog_io::Waker;

/// One request of this process.
#[derive(Debug)]
pub(crate) enum Command {
    /// To be answered.
    Request { request: Request, reply: oneshot::Sender<Response> },
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
    /// Queues a request; its answer arrives at the receiver. A full queue answers *busy*, a stopped shard
    /// *unavailable*.
    pub(crate) fn request(&self, request: Request) -> oneshot::Receiver<Response> {
        let (reply, answer) = oneshot::channel();
        match self.queue.try_send(Command::Request { request, reply }) {
            Ok(()) => self.waker.wake(),
            Err(TrySendError::Full(Command::Request { reply, .. })) => {
                drop(reply.send(Err(RequestError::busy(RETRY_AFTER))));
            }
            Err(TrySendError::Disconnected(Command::Request { reply, .. })) => {
                drop(reply.send(Err(RequestError::Unavailable("the engine is closed".into()))));
            }
            Err(_) => {}
        }
        answer
    }

    /// Asks the shard to stop; waits for room in the queue if it is full.
    pub(crate) fn stop(&self) {
        // A shard that is gone already has stopped.
        drop(self.queue.send(Command::Stop));
        self.waker.wake();
    }
}
