//! A node's clocks: the world's true time, seen through drift, an unknown start and a wall offset that jumps.

use tidelog_types::{Clock, Monotonic, WallMs};

/// 2025-10-09, in milliseconds: where wall clocks are at true time 0.
const WALL_START_MS: i128 = 1_760_000_000_000;

/// Turns true time into what one node believes.
#[derive(Clone, Debug)]
pub(crate) struct NodeClock {
    /// At true time `true_base`, the monotonic clock said `local_base`.
    true_base: u64,
    local_base: u64,
    drift_ppm: i64,
    wall_offset_ms: i64,
}

impl NodeClock {
    pub(crate) const fn new(now: u64, local: u64) -> NodeClock {
        NodeClock { true_base: now, local_base: local, drift_ppm: 0, wall_offset_ms: 0 }
    }

    fn local(&self, now: u64) -> u64 {
        let elapsed = i128::from(now.saturating_sub(self.true_base));
        let drifted = elapsed + (elapsed * i128::from(self.drift_ppm)).div_euclid(1_000_000);
        self.local_base.saturating_add(u64::try_from(drifted).unwrap_or(0))
    }

    /// The first true time at which the monotonic clock says `local` or more.
    pub(crate) fn true_time(&self, local: Monotonic) -> u64 {
        let ahead = i128::from(local.0.saturating_sub(self.local_base));
        let rate = i128::from(1_000_000 + self.drift_ppm);
        let guess = u64::try_from(ahead * 1_000_000 / rate).unwrap_or(u64::MAX);
        let mut at = self.true_base.saturating_add(guess);
        // Rounding of the two directions differs by a few at most.
        while at < u64::MAX && self.local(at) < local.0 {
            at += 1;
        }
        at
    }

    pub(crate) fn at(&self, now: u64) -> Clock {
        let elapsed_ms = i128::from(now) * i128::from(1_000_000 + self.drift_ppm) / 1_000_000_000_000;
        let wall = WALL_START_MS + elapsed_ms + i128::from(self.wall_offset_ms);
        Clock { now: Monotonic(self.local(now)), wall: WallMs(u64::try_from(wall).unwrap_or(0)) }
    }

    /// Runs at another rate from `now` on. The monotonic clock does not jump.
    pub(crate) fn set_drift(&mut self, now: u64, ppm: i64) {
        self.local_base = self.local(now);
        self.true_base = now;
        self.drift_ppm = ppm.clamp(-500_000, 500_000);
    }

    pub(crate) fn jump_wall(&mut self, ms: i64) {
        self.wall_offset_ms = self.wall_offset_ms.saturating_add(ms);
    }

    /// The machine starts anew: the boot clock begins at `local`.
    pub(crate) fn reboot(&mut self, now: u64, local: u64) {
        self.true_base = now;
        self.local_base = local;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn deadlines_are_met_and_not_early(start in 0u64..1 << 40, ppm in -1000i64..1000, ahead in 0u64..1 << 45) {
            let mut clock = NodeClock::new(start, 77);
            clock.set_drift(start, ppm);
            let deadline = Monotonic(77 + ahead);
            let at = clock.true_time(deadline);
            prop_assert!(clock.at(at).now >= deadline);
            prop_assert!(at == start || clock.at(at - 1).now < deadline);
        }

        #[test]
        fn the_monotonic_clock_never_goes_back(steps in proptest::collection::vec((0u64..1 << 30, -1000i64..1000), 1..20)) {
            let mut clock = NodeClock::new(0, 5);
            let (mut now, mut last) = (0, Monotonic(0));
            for (step, ppm) in steps {
                now += step;
                clock.jump_wall(-ppm);
                prop_assert!(clock.at(now).now >= last);
                last = clock.at(now).now;
                clock.set_drift(now, ppm);
                prop_assert!(clock.at(now).now >= last);
            }
        }
    }
}
