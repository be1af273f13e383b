//! A turn's share for state machines, so that a slow one holds up its own partition and nothing else for long.
//!
//! All partitions of a shard share one share by time and bytes. What is left over waits for the next turn, in line with the other partitions that wait,
//! and that turn comes at once. One call of `apply` is never broken off: a turn may be longer by one run of records, and each partition's runs
//! are as long as its state machine is quick.

use std::collections::VecDeque;
use std::time::Duration;
use tidelog_types::{Monotonic, PartitionId};

/// Time that state machines have in a turn. Heartbeats and other partitions' appends wait no longer for them.
const TURN_TIME_MAX: Duration = Duration::from_millis(10);
/// Record bytes that they are given in a turn.
const TURN_BYTES_MAX: usize = 4 << 20;
/// Record bytes given in one go: fewer where that takes long.
const RUN_BYTES: (usize, usize) = (4 << 10, 1 << 20);

/// What is left of this turn, and who waits for the next.
#[derive(Debug, Default)]
pub(crate) struct Applying {
    until: Monotonic,
    bytes_left: usize,
    waiting: VecDeque<PartitionId>,
}

impl Applying {
    /// A turn begins: those that waited.
    pub(crate) fn begin(&mut self, now: Monotonic) -> VecDeque<PartitionId> {
        self.until = now.after(TURN_TIME_MAX);
        self.bytes_left = TURN_BYTES_MAX;
        std::mem::take(&mut self.waiting)
    }

    /// Whether somebody waits for a turn.
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a partition has its share of this turn; otherwise it waits for the next.
    pub(super) fn may(&mut self, id: PartitionId, now: Monotonic) -> bool {
        let may = self.bytes_left > 0 && now < self.until;
        if !may && !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
        may
    }

    pub(super) fn took(&mut self, bytes: usize) {
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
    }
}

/// How much a state machine is given in one go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace(usize);

impl Default for Pace {
    fn default() -> Self {
        Pace(RUN_BYTES.0)
    }
}

impl Pace {
    pub(super) fn bytes(self) -> usize {
        self.0
    }

    /// A run took so long.
    pub(super) fn note(&mut self, took: Duration) {
        if took > TURN_TIME_MAX / 2 {
            self.0 = (self.0 / 2).max(1);
        } else if took < TURN_TIME_MAX / 8 {
            self.0 = (self.0.max(RUN_BYTES.0 / 2) * 2).min(RUN_BYTES.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PartitionId = PartitionId(1);
    const B: PartitionId = PartitionId(2);

    #[test]
    fn a_turn_has_its_time_and_its_bytes_and_the_rest_waits_in_line() {
        let mut applying = Applying::default();
        let at = |ms: u64| Monotonic(ms * 1_000_000);
        assert!(applying.begin(at(1)).is_empty());
        assert!(applying.may(A, at(1)) && applying.may(A, at(10)) && !applying.is_waited_for());
        assert!(!applying.may(A, at(11)) && !applying.may(B, at(11)) && !applying.may(A, at(11)));
        assert_eq!(applying.begin(at(20)), [A, B]);
        assert!(!applying.is_waited_for());
        applying.took(TURN_BYTES_MAX);
        assert!(!applying.may(B, at(20)));
        assert_eq!(applying.begin(at(20)), [B]);
    }

    #[test]
    fn a_run_is_as_long_as_its_state_machine_is_quick() {
        let mut pace = Pace::default();
        for _ in 0..20 {
            pace.note(Duration::from_micros(100));
        }
        assert_eq!(pace.bytes(), RUN_BYTES.1);
        pace.note(Duration::from_millis(3));
        assert_eq!(pace.bytes(), RUN_BYTES.1);
        for _ in 0..30 {
            pace.note(Duration::from_millis(200));
        }
        assert_eq!(pace.bytes(), 1, "one record");
        pace.note(Duration::ZERO);
        assert_eq!(pace.bytes(), RUN_BYTES.0);
    }
}
