//! Whether to look out for a wake-up for a moment before going to sleep.
//!
//! A thread that sleeps is woken by a system call of the waker, and runs again several microseconds later; one that is still
//! looking sees the wake-up at once, and costs the waker nothing. That pays where the answer to what this thread just did
//! is already on its way, as from a writer that goes on as soon as it is answered, and it steals the core from others where
//! nothing comes. So it is done only after a run of waits that ended at once, stops soon after they no longer do, and is never long.

use core::time::Duration;
use tidelog_types::Monotonic;

/// Longest look before a sleep: what it takes to wake another thread, on a virtual machine too, and for that one to act.
const LOOK: Duration = Duration::from_micros(50);
/// A sleep that a wake-up ended within this time would have been a good look: the sleeper's own wake-up took a part of it.
const SHORT_SLEEP: Duration = Duration::from_micros(70);
/// Waits shorter than the kernel can time are spent looking: a timer comes late by its slack, 50 us by default.
pub(super) const UNTIMED: Duration = Duration::from_micros(110);
/// A look is worth it from this score on. A wait that ended in time adds one, one that did not takes two: at most a third of
/// the looks are in vain in the long run.
const WORTH_IT: u8 = 4;
const SCORE_MAX: u8 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lookout {
    score: u8,
}

impl Lookout {
    /// Until when to look in a wait that begins now; none: sleep at once.
    pub(super) fn until(&self, now: Monotonic) -> Option<Monotonic> {
        (self.score >= WORTH_IT).then(|| now.after(LOOK))
    }

    /// A sleep without a look ended after `time`, by a wake-up or by something else.
    pub(super) fn slept(&mut self, time: Duration, woken: bool) {
        self.looked(woken && time <= SHORT_SLEEP);
    }

    /// A look ended, early or in vain.
    pub(super) fn looked(&mut self, good: bool) {
        self.score = if good { (self.score + 1).min(SCORE_MAX) } else { self.score.saturating_sub(2) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic(1 << 40);

    #[test]
    fn short_sleeps_lead_to_looks_and_looks_in_vain_end_them() {
        let mut lookout = Lookout::default();
        for _ in 0..WORTH_IT {
            assert_eq!(lookout.until(NOW), None);
            lookout.slept(SHORT_SLEEP, true);
        }
        assert_eq!(lookout.until(NOW), Some(NOW.after(LOOK)));
        for _ in 0..100 {
            lookout.looked(true);
        }
        let looks = (0..100).take_while(|_| {
            let looks = lookout.until(NOW).is_some();
            lookout.looked(false);
            looks
        });
        assert_eq!(looks.count(), 3);
    }

    #[test]
    fn long_sleeps_and_sleeps_that_something_else_ended_do_not() {
        let mut lookout = Lookout::default();
        for round in 0..100 {
            lookout.slept(SHORT_SLEEP * 2, true);
            lookout.slept(Duration::ZERO, round % 2 == 0);
        }
        assert_eq!(lookout.until(NOW), None);
    }
}
