//! Waiting, always with an end.

use std::io::Write as _;
use std::sync::mpsc::{RecvTimeoutError, Sender};
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

/// After this a test with a cluster has lost itself: the longest takes a minute and a half of a busy machine.
const WHOLE_TEST: Duration = Duration::from_secs(15 * 60);

/// Ends this process, and the nodes that it started, if a test does not end. A deadline for each wait does not see a loop without waits.
pub(crate) struct Watch {
    _ended_with_the_test: Sender<()>,
}

impl Watch {
    pub(crate) fn over_this_test() -> Watch {
        let (test_lives, ended) = std::sync::mpsc::channel();
        let name = std::thread::current().name().unwrap_or("a test").to_owned();
        std::thread::spawn(move || {
            if ended.recv_timeout(WHOLE_TEST) == Err(RecvTimeoutError::Timeout) {
                // Not by a macro: the harness shows what a test prints by those when the test ends.
                let words =
                    format!("error: {name} has not ended after {WHOLE_TEST:?}: this test program ends\n");
                let _ = std::io::stderr().write_all(words.as_bytes());
                kill_children();
                std::process::abort();
            }
        });
        Watch { _ended_with_the_test: test_lives }
    }
}

fn kill_children() {
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::Signal::SIGKILL);
        }
    }
}
