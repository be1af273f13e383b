//! Waiting, always with an end.

use std::time::Duration;
use tidelog_bench::clock::{self, Moment};

/// After this, a test that waits for something has failed. Long: the machine may be busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

/// A time by which something must have happened.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Moment);

impl Deadline {
    pub(crate) fn after(time: Duration) -> Deadline {
        Deadline(clock::now().after(time))
    }

    pub(crate) fn is_over(self) -> bool {
        clock::now() >= self.0
    }
}

/// Looks again and again until there is something to see.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Deadline::after(PATIENCE);
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(!deadline.is_over(), "after {PATIENCE:?} still waiting for: {what}");
        // Nothing wakes this thread: it gives the processor to those it waits for.
        std::thread::park_timeout(STEP);
    }
}
