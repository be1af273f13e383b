//! How handles on any thread reach the shard: a bounded queue and a wake-up (R14).

use crate::answer::{self, Answer, Asker};
use crate::life_cycle::LifeCycle;
use crate::request::{Request, RequestError};
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::Arc;
use std::time::Duration;
use tidelog_io::Waker;

/// One request of this process, to be answered.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) request: Request,
    pub(crate) asker: Asker,
}

/// The shard's side of the queue.
#[derive(Debug)]
pub struct Commands {
    queue: Receiver<Command>,
    pub(crate) life_cycle: Arc<LifeCycle>,
}

impl Commands {
    /// For a shard that only its transport gives work to.
    pub fn none() -> Commands {
        Commands { queue: crossbeam_channel::never(), life_cycle: Arc::default() }
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
    life_cycle: Arc<LifeCycle>,
}

/// What a handle's caller is told to wait before it tries again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(10);

pub(crate) fn inbox(capacity: usize, waker: Waker, life_cycle: Arc<LifeCycle>) -> (Inbox, Commands) {
    let (queue, receiver) = crossbeam_channel::bounded(capacity);
    let commands = Commands { queue: receiver, life_cycle: Arc::clone(&life_cycle) };
    (Inbox { queue, waker, life_cycle }, commands)
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
            Ok(()) => return true,
            Err(TrySendError::Full(Command { asker, .. })) => (asker, RequestError::busy(RETRY_AFTER)),
            Err(TrySendError::Disconnected(Command { asker, .. })) => (asker, self.ended()),
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
        RequestError::Unavailable(match self.life_cycle.outcome() {
            Some(Err(error)) => format!("the engine has stopped: {error}"),
            _ => "the engine is closed".into(),
        })
    }
}
