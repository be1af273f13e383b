//! How the disk under a shard is doing: when it stalls without an error, and for how long it ranks behind others afterwards.
//!
//! A hung disk reports nothing, so the age of the oldest write that is not durable is watched. From the stall time-out on the disk is *stalled*, until that
//! write is done. Afterwards it is *behind* for a time that doubles with each relapse, up to a cap: what stalled once mostly stalls again, and leadership
//! that comes back too soon would flap. What the replicas do with it is the protocol's affair ([`tidelog_consensus::Disk`]). Nothing here is read from the
//! disk or waits for it.

use std::time::Duration;
use tidelog_consensus::{Disk, Health};
use tidelog_types::Monotonic;

/// For so many election time-outs a disk ranks behind after its first stall.
const BEHIND_TIMEOUTS: u32 = 10;
/// Most doublings of that.
const DOUBLINGS_MAX: u32 = 6;

/// What is to be told of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum News {
    /// It has stalled.
    Stalled {
        /// Its oldest write has been under way for so long.
        oldest: Duration,
    },
    /// It takes writes again.
    Back {
        /// It had stalled for so long.
        stalled: Duration,
        /// It ranks behind others for so long.
        behind: Duration,
    },
}

/// What is known of a shard's disk.
#[derive(Debug)]
pub(super) struct DiskWatch {
    timeout: Duration,
    behind_least: Duration,
    /// Relapses since it was last given the benefit of the doubt.
    relapses: u32,
    stalled_since: Option<Monotonic>,
    behind_until: Monotonic,
    /// Another stall before this is a relapse.
    forgiven_at: Monotonic,
    /// A pause of the process is not held against the disk: the write that was then the oldest counts from here.
    excused: Option<(Monotonic, Monotonic)>,
    now: Monotonic,
    oldest: Option<Monotonic>,
    stalls: u64,
}

impl DiskWatch {
    pub(super) fn new(stall_timeout: Duration, election_timeout: Duration, now: Monotonic) -> DiskWatch {
        DiskWatch {
            timeout: stall_timeout,
            behind_least: election_timeout * BEHIND_TIMEOUTS,
            relapses: 0,
            stalled_since: None,
            behind_until: now,
            forgiven_at: now,
            excused: None,
            now,
            oldest: None,
            stalls: 0,
        }
    }

    /// The process did not run for a while, up to `now`: its log may not have been told yet what the disk has done meanwhile. Once for each write.
    pub(super) fn paused(&mut self, now: Monotonic) {
        if let Some(oldest) = self.oldest
            && self.excused.is_none_or(|(write, _)| write != oldest)
        {
            self.excused = Some((oldest, now));
        }
    }

    /// `oldest`: since when the oldest write waits that is not durable.
    pub(super) fn observe(&mut self, now: Monotonic, oldest: Option<Monotonic>) -> Option<News> {
        (self.now, self.oldest) = (now, oldest);
        let age = self.age();
        match (self.stalled_since, age >= self.timeout) {
            (None, true) => {
                self.relapses =
                    if now < self.forgiven_at { (self.relapses + 1).min(DOUBLINGS_MAX) } else { 0 };
                self.stalled_since = Some(now);
                self.stalls += 1;
                Some(News::Stalled { oldest: age })
            }
            (Some(since), false) => {
                let behind = self.behind_least * (1 << self.relapses);
                self.stalled_since = None;
                self.behind_until = now.after(behind);
                self.forgiven_at = self.behind_until.after(behind);
                Some(News::Back { stalled: now.since(since) + self.timeout, behind })
            }
            _ => None,
        }
    }

    fn age(&self) -> Duration {
        let from = self.oldest.map(|oldest| match self.excused {
            Some((write, from)) if write == oldest => from,
            _ => oldest,
        });
        from.map_or(Duration::ZERO, |from| self.now.since(from))
    }

    /// What the replicas are told.
    pub(super) fn disk(&self) -> Disk {
        let health = match self.stalled_since {
            Some(_) => Health::Stalled,
            None if self.now < self.behind_until => Health::Behind,
            None => Health::Steady,
        };
        Disk { oldest_ms: millis(self.age()), health }
    }

    /// When it would stall if nothing became durable.
    pub(super) fn deadline(&self) -> Option<Monotonic> {
        let left = self.timeout.saturating_sub(self.age());
        (self.oldest.is_some() && self.stalled_since.is_none()).then(|| self.now.after(left))
    }

    /// How long the oldest write has been under way, if that is a stall; 0 otherwise.
    pub(super) fn stalled_ms(&self) -> u64 {
        self.stalled_since.map_or(0, |_| millis(self.age()).max(1))
    }

    /// How long it still ranks behind others.
    pub(super) fn behind_ms(&self) -> u64 {
        if self.stalled_since.is_some() { 0 } else { millis(self.behind_until.since(self.now)) }
    }

    /// How often it has stalled.
    pub(super) fn stalls(&self) -> u64 {
        self.stalls
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Monotonic {
        Monotonic(ms * MS)
    }

    fn watch() -> DiskWatch {
        DiskWatch::new(Duration::from_millis(200), Duration::from_millis(100), at(0))
    }

    /// The disk stalls at `from` for `ms`: for how long it ranks behind.
    fn stall(watch: &mut DiskWatch, from: u64, ms: u64) -> u64 {
        assert_eq!(watch.observe(at(from), Some(at(from))), None);
        assert!(matches!(watch.observe(at(from + ms), Some(at(from))), Some(News::Stalled { .. })));
        match watch.observe(at(from + ms), None) {
            Some(News::Back { behind, .. }) => millis(behind),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_write_that_is_too_old_is_a_stall_until_it_is_done() {
        let mut watch = watch();
        assert_eq!(watch.observe(at(10), Some(at(5))), None);
        assert_eq!((watch.disk().oldest_ms, watch.deadline()), (5, Some(at(205))));
        assert_eq!(watch.observe(at(204), Some(at(5))), None);
        assert_eq!(
            watch.observe(at(205), Some(at(5))),
            Some(News::Stalled { oldest: Duration::from_millis(200) })
        );
        assert_eq!(
            (watch.disk(), watch.deadline()),
            (Disk { oldest_ms: 200, health: Health::Stalled }, None)
        );
        assert_eq!(watch.observe(at(300), Some(at(5))), None);
        assert_eq!(watch.stalled_ms(), 295);
        // That one is done; the next one is younger.
        let back = News::Back { stalled: Duration::from_millis(395), behind: Duration::from_millis(1000) };
        assert_eq!(watch.observe(at(400), Some(at(390))), Some(back));
        assert_eq!((watch.disk(), watch.behind_ms()), (Disk { oldest_ms: 10, health: Health::Behind }, 1000));
        watch.observe(at(1399), None);
        assert_eq!(watch.disk().health, Health::Behind);
        watch.observe(at(1400), None);
        assert_eq!((watch.disk(), watch.stalled_ms(), watch.stalls()), (Disk::default(), 0, 1));
    }

    #[test]
    fn relapses_double_the_time_behind_up_to_a_cap_and_are_forgiven() {
        let mut watch = watch();
        let mut now = 1000;
        let mut behind = 1000;
        for _ in 0..10 {
            assert_eq!(stall(&mut watch, now, 300), behind);
            now += 300 + behind + behind / 2; // within the same time again
            behind = (2 * behind).min(64_000);
        }
        now += 2 * 64_000;
        assert_eq!(stall(&mut watch, now, 300), 1000);
    }

    #[test]
    fn a_pause_excuses_a_write_once() {
        let mut watch = watch();
        watch.observe(at(10), Some(at(10)));
        watch.paused(at(500));
        assert_eq!(watch.observe(at(500), Some(at(10))), None, "its end may not have been told yet");
        watch.paused(at(800));
        assert!(
            matches!(watch.observe(at(800), Some(at(10))), Some(News::Stalled { .. })),
            "300 ms later it has been"
        );
    }
}
