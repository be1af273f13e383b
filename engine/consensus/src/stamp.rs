//! Replicated time: what a leader stamps its entries with.
//!
//! A stamp is the highest time that a quorum of the voters' wall clocks has reached, each clock as it was last
//! reported plus the monotonic time since. So one wrong clock moves nothing, whether it is the leader's or a
//! follower's, and between reports time runs at the monotonic clock's pace. It never goes back: a stamp is at
//! least the last one in the log. It does not know what the stamps are used for.

use crate::quorum::agreed_of;
use tidelog_types::{Clock, Monotonic, ReplicatedMs, WallMs};

/// What a voter's wall clock said, and when that was heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Witness {
    wall: WallMs,
    heard: Monotonic,
}

impl Witness {
    pub(crate) fn new(wall: WallMs, heard: Monotonic) -> Witness {
        Witness { wall, heard }
    }

    /// What that clock should say now.
    fn estimate(&self, now: Monotonic) -> u64 {
        let elapsed = u64::try_from(now.since(self.heard).as_millis()).unwrap_or(u64::MAX);
        self.wall.0.saturating_add(elapsed)
    }
}

/// A leader's stamps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stamps {
    /// The stamp made last and the turn that it was made in: a turn has one time.
    made: Option<(Monotonic, ReplicatedMs)>,
}

impl Stamps {
    /// The stamp of an entry behind one with stamp `last`. `peers`: the other voters' clocks as far as known.
    pub(crate) fn stamp(
        &mut self,
        clock: Clock,
        last: ReplicatedMs,
        peers: impl Iterator<Item = Option<Witness>>,
    ) -> ReplicatedMs {
        if let Some((at, stamp)) = self.made
            && at == clock.now
        {
            return stamp.max(last);
        }
        let estimates = peers.map(|peer| peer.map_or(0, |witness| witness.estimate(clock.now)));
        let agreed = agreed_of(estimates.chain([clock.wall.0]));
        let stamp = ReplicatedMs(agreed).max(last);
        self.made = Some((clock.now, stamp));
        stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn clock(now_ms: u64, wall: u64) -> Clock {
        Clock { now: Monotonic(now_ms * MS), wall: WallMs(wall) }
    }

    fn stamp(clock: Clock, last: u64, walls: &[u64]) -> u64 {
        let peers = walls.iter().map(|w| (*w > 0).then(|| Witness::new(WallMs(*w), Monotonic(0))));
        Stamps::default().stamp(clock, ReplicatedMs(last), peers).0
    }

    #[test]
    fn one_wrong_clock_moves_nothing() {
        assert_eq!(stamp(clock(0, 1000), 0, &[1001, 999]), 1000);
        assert_eq!(stamp(clock(0, u64::MAX), 0, &[1001, 999]), 1001, "the leader's own, ahead");
        assert_eq!(stamp(clock(0, 5), 0, &[1001, 999]), 999, "the leader's own, behind");
        assert_eq!(stamp(clock(0, 1000), 0, &[u64::MAX, 999]), 1000);
        assert_eq!(stamp(clock(0, 1000), 0, &[3, 999]), 999);
    }

    #[test]
    fn time_goes_on_between_reports_and_never_back() {
        assert_eq!(stamp(clock(250, 7), 0, &[1001, 999]), 1249);
        assert_eq!(stamp(clock(0, 1000), 5000, &[1001, 999]), 5000);
        assert_eq!(stamp(clock(u64::MAX / MS, 1), 0, &[u64::MAX, u64::MAX]), u64::MAX, "saturates");
    }

    #[test]
    fn a_single_voter_has_only_its_own_clock() {
        assert_eq!(stamp(clock(0, 1000), 0, &[]), 1000);
    }

    #[test]
    fn a_clock_never_heard_of_does_not_advance_time() {
        assert_eq!(stamp(clock(0, 1000), 10, &[0, 0]), 10);
    }

    #[test]
    fn a_turn_has_one_time() {
        let mut stamps = Stamps::default();
        let first = stamps.stamp(clock(1, 1000), ReplicatedMs(0), [].into_iter());
        assert_eq!(stamps.stamp(clock(1, 2000), first, [].into_iter()), first);
        assert_eq!(stamps.stamp(clock(2, 2000), first, [].into_iter()), ReplicatedMs(2000));
    }
}
