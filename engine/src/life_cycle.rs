//! How a node lives and ends inside a program.
//!
//! | State | Left by |
//! |---|---|
//! | opening | the log is open (*running*), or the opening fails: the node is gone |
//! | running | [`LifeCycle::stop`], a failure that the node does not survive, or a panic on its thread |
//! | stopping | everything in flight is answered and the log is sealed |
//! | ended | nothing: the outcome stays, and everyone who asks is told the same |
//!
//! The node's thread is the only writer of the outcome, and writes it after it has let go of everything: log, ring, state machines, the lock
//! of the directory. Whoever waits for the end, on any number of threads, waits for the outcome; the directory can be opened again then.
//!
//! The node's own thread calls into the embedder: state machines and wakers run on it. What waits for the node must not be called there,
//! since it would wait for itself: [`LifeCycle::wait`] says so with an error, and other calls that wait panic.

use crate::error::Error;
use crate::events::{Event, EventHub};
use atomic_waker::AtomicWaker;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

thread_local! {
    static ON_SHARD: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is a shard's: state machines and wakers are called on it, and nothing may wait there.
pub(crate) fn on_shard_thread() -> bool {
    ON_SHARD.get()
}

/// Refuses a wait that would never end.
pub(crate) fn assert_may_wait(call: &str) {
    assert!(
        !on_shard_thread(),
        "{call} was called on a shard's own thread, inside a state machine or a waker: it would wait for itself for ever. Wait on another thread"
    );
}

/// Whether a node serves its log; if not, why.
pub(crate) type Serving = Result<(), String>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct LifeCycle {
    stop: AtomicBool,
    outcome: Mutex<Option<Result<(), Error>>>,
    /// None before its first turn.
    serving: Mutex<Option<Serving>>,
    /// The node ended, or somebody leads who did not before.
    changed: Condvar,
    /// Who waits for the same without a thread of their own.
    waiting: Mutex<Vec<Weak<AtomicWaker>>>,
    pub(crate) events: EventHub,
}

impl LifeCycle {
    fn lock(&self) -> MutexGuard<'_, Option<Result<(), Error>>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the node to stop; the shard looks at the beginning of each turn, so it is to be woken.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Runs the node on this thread to its end, and keeps what came of it.
    pub(crate) fn run(&self, node: impl FnOnce() -> Result<(), Error>) {
        ON_SHARD.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(node))
            .unwrap_or_else(|panic| Err(Error::Panicked { what: words(&*panic) }));
        *self.lock() = Some(outcome.clone());
        self.wake_all();
        self.events.end(Event::Stopped { why: outcome.err() });
    }

    /// What came of the node; none while it lives.
    pub(crate) fn outcome(&self) -> Option<Result<(), Error>> {
        self.lock().clone()
    }

    /// Waits for the end; every caller is told the same outcome.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let mut outcome = self.lock();
        loop {
            if let Some(outcome) = &*outcome {
                return outcome.clone();
            }
            if on_shard_thread() {
                return Err(Error::OwnThread);
            }
            outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The node serves its log, or does not for another reason than before.
    pub(crate) fn say_serving(&self, now: Serving) {
        *self.serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        // Whoever has just looked under the lock waits before this wakes.
        drop(self.lock());
        self.changed.notify_all();
    }

    /// Blocks until the node serves its log, or does not for another reason than was seen. None: it has ended.
    pub(crate) fn await_serving(&self, seen: Option<&Serving>) -> Option<Serving> {
        assert_may_wait("a wait for the node to serve its log");
        let mut outcome = self.lock();
        while outcome.is_none() {
            let now = self.serving.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if now.is_some() && now.as_ref() != seen {
                return now;
            }
            outcome = self.changed.wait(outcome).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// Some partition's leadership is another one than before.
    pub(crate) fn leadership_changed(&self) {
        // Whoever has just looked under the lock waits before this wakes.
        drop(self.lock());
        self.wake_all();
    }

    fn wake_all(&self) {
        self.changed.notify_all();
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        waiting.iter().filter_map(Weak::upgrade).for_each(|waker| waker.wake());
    }

    /// Has this waker woken at the next change.
    pub(crate) fn wake_at_change(&self, waker: &Arc<AtomicWaker>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|other| other.strong_count() > 0 && !std::ptr::eq(other.as_ptr(), Arc::as_ptr(waker)));
        waiting.push(Arc::downgrade(waker));
    }

    /// Blocks until `look` sees something, at most for this time; none if it saw nothing, or the node ended.
    pub(crate) fn look_until<T>(&self, time_max: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        assert_may_wait("a wait for a leader");
        let mut seen = None;
        let blind = |outcome: &mut Option<Result<(), Error>>| {
            seen = if outcome.is_none() { look() } else { None };
            seen.is_none() && outcome.is_none()
        };
        drop(self.changed.wait_timeout_while(self.lock(), time_max, blind));
        seen
    }
}

/// The words of a panic.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without words").to_owned()
}
