//! Writers of this process that were just answered, and are to be woken, and about to come back with their next record.
//!
//! Seen from the shard's thread, the records of writers that go round in a closed loop trickle in: each is woken, runs and
//! submits. A batch sealed at the first of them leaves without the others, who then wait for that write and for their own; and two
//! halves that missed each other once stay apart. So with nothing in flight a batch may wait for those who were just
//! answered, for no longer than a write takes, and only while they have been coming back within that time.
//!
//! What it promises: no batch waits longer than the bound, and none waits at all where writers do not come back at once, as in an
//! open loop. What it does not know: who they are. It counts.

use std::task::Waker;
use std::time::Duration;
use tidelog_types::Monotonic;

/// A batch waits no longer than the last write took, since what is won by it is up to a whole one; and at most so long,
/// whatever the device.
const LONGEST: Duration = Duration::from_micros(100);
/// A batch with so many bytes waits for nobody: a larger write takes longer, and with more to encode than that it is better to encode
/// one half of the records while the other half is being written.
const ENOUGH_BYTES: usize = 64 << 10;
/// Confidence at which batches wait; each time that all came back in time adds one, each time that they did not takes
/// two, so that waiting in vain stays the exception.
const CONFIDENT: u8 = 4;
const CONFIDENCE_MAX: u8 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Returning {
    /// Answered, and not back yet.
    away: usize,
    /// When the last of them was answered.
    since: Monotonic,
    bound: Duration,
    confidence: u8,
    /// Whoever waits for answers of this turn that are stored already.
    wakers: Vec<Waker>,
}

impl Returning {
    /// A writer has its answer; the write that made its record durable took `write`.
    pub(crate) fn answered(&mut self, now: Monotonic, write: Duration) {
        if now > self.since {
            if self.away > 0 {
                self.gave_up();
            }
            self.since = now;
            self.bound = write.min(LONGEST);
        }
        self.away += 1;
    }

    /// A writer's record has come in.
    pub(crate) fn came(&mut self, now: Monotonic) {
        if self.away == 0 {
            return;
        }
        self.away -= 1;
        if self.away == 0 {
            if now <= self.since.after(self.bound) {
                self.confidence = (self.confidence + 1).min(CONFIDENCE_MAX);
            } else {
                self.gave_up();
            }
        }
    }

    /// Whether a batch of so many bytes that could leave now should wait, and until when.
    pub(crate) fn wait(&self, now: Monotonic, bytes: usize) -> Option<Monotonic> {
        let until = self.since.after(self.bound);
        (bytes < ENOUGH_BYTES && self.away > 0 && self.confidence >= CONFIDENT && now < until)
            .then_some(until)
    }

    /// Whoever waits for a stored answer is woken when all answers at hand are stored.
    pub(crate) fn wake_later(&mut self, waker: Option<Waker>) {
        self.wakers.extend(waker);
    }

    /// Wakes them.
    pub(crate) fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn gave_up(&mut self) {
        self.away = 0;
        self.confidence = self.confidence.saturating_sub(2);
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Duration = Duration::from_micros(60);

    fn at(micros: u64) -> Monotonic {
        Monotonic(1_000_000 + micros * 1000)
    }

    /// Rounds of three writers answered at once, the last of whom is back after `last`.
    fn rounds(returning: &mut Returning, from: u64, count: u64, last: u64) -> u64 {
        for round in 0..count {
            let start = from + round * 1000;
            (0..3).for_each(|_| returning.answered(at(start), WRITE));
            [1, 2, last].into_iter().for_each(|after| returning.came(at(start + after)));
        }
        from + count * 1000
    }

    #[test]
    fn a_batch_waits_for_writers_that_come_back_at_once() {
        let mut returning = Returning::default();
        let next = rounds(&mut returning, 0, u64::from(CONFIDENT) - 1, 20);
        returning.answered(at(next), WRITE);
        assert_eq!(returning.wait(at(next), 1000), None, "not before they have shown it");
        returning.came(at(next + 1));
        let next = next + 1000;
        (0..2).for_each(|_| returning.answered(at(next), WRITE));
        assert_eq!(returning.wait(at(next + 1), 1000), Some(at(next + 60)));
        returning.came(at(next + 2));
        assert_eq!(returning.wait(at(next + 59), 1000), Some(at(next + 60)), "one is still away");
        assert_eq!(returning.wait(at(next + 59), ENOUGH_BYTES), None, "a large batch waits for nobody");
        assert_eq!(returning.wait(at(next + 60), 1000), None, "but not for ever");
        returning.came(at(next + 59));
        assert_eq!(returning.wait(at(next + 59), 1000), None, "all are back");
    }

    #[test]
    fn a_batch_does_not_wait_for_writers_that_stay_away() {
        let mut returning = Returning::default();
        let next = rounds(&mut returning, 0, 100, 5);
        // Each comes back, but late.
        let next = rounds(&mut returning, next, 3, 61);
        returning.answered(at(next), WRITE);
        assert_eq!(returning.wait(at(next), 1000), None);
        // Or not at all.
        let next = rounds(&mut returning, next + 1000, 100, 5);
        (0..4).for_each(|round| returning.answered(at(next + round * 1000), WRITE));
        assert_eq!(returning.wait(at(next + 3000), 1000), None);
    }

    #[test]
    fn the_bound_is_a_part_of_a_write_and_never_long() {
        let mut returning = Returning::default();
        let next = rounds(&mut returning, 0, 10, 5);
        returning.answered(at(next), Duration::from_millis(20));
        assert_eq!(returning.wait(at(next), 1000), Some(at(next).after(LONGEST)));
        returning.came(at(next + 1));
        returning.answered(at(next + 1000), Duration::from_micros(8));
        assert_eq!(returning.wait(at(next + 1000), 1000), Some(at(next + 1008)));
    }
}
