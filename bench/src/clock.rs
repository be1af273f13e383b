//! Time as a measurement needs it: read at the moment of asking.
//!
//! The only place of this crate that reads clocks. Everywhere else in Tidelog time stands still within a turn and comes
//! through the seam, so that a simulated run replays; a benchmark measures the real world, runs on threads that have no
//! seam of their own, and must not be told the time by what it measures.

use core::time::Duration;
use nix::time::{ClockId, clock_gettime};

/// A moment on the monotonic clock, in nanoseconds. Means nothing to another process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Moment(u64);

impl Moment {
    /// This moment and `duration` more; saturates.
    #[must_use]
    pub fn after(self, duration: Duration) -> Moment {
        self.after_nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
    }

    /// This moment and so many nanoseconds more; saturates.
    #[must_use]
    pub const fn after_nanos(self, nanos: u64) -> Moment {
        Moment(self.0.saturating_add(nanos))
    }

    /// Nanoseconds from `earlier` to this moment; zero if `earlier` is later.
    pub const fn nanos_since(self, earlier: Moment) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }
}

/// Now.
pub fn now() -> Moment {
    Moment(read(ClockId::CLOCK_MONOTONIC))
}

/// Time since 1970 on the wall clock.
pub fn wall() -> Duration {
    Duration::from_nanos(read(ClockId::CLOCK_REALTIME))
}

/// Processor time that this process has used, all its threads and the kernel's workers for it included.
pub fn process_cpu() -> Duration {
    Duration::from_nanos(read(ClockId::CLOCK_PROCESS_CPUTIME_ID))
}

/// Processor time that this thread has used.
pub fn thread_cpu() -> Duration {
    Duration::from_nanos(read(ClockId::CLOCK_THREAD_CPUTIME_ID))
}

fn read(clock: ClockId) -> u64 {
    let time = clock_gettime(clock).expect("these clocks are there on every Linux");
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec()).saturating_mul(1_000_000_000).saturating_add(part(time.tv_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_ordered_and_differences_saturate() {
        let first = now();
        let later = first.after(Duration::from_micros(3));
        assert!(later > first && now() >= first);
        assert_eq!(later.nanos_since(first), 3_000);
        assert_eq!(first.since(later), Duration::ZERO);
        assert_eq!(first.after(Duration::MAX), Moment(u64::MAX));
    }

    #[test]
    fn a_thread_uses_no_more_than_its_process() {
        let thread = thread_cpu();
        assert!(thread <= process_cpu() && wall() > Duration::from_secs(1_500_000_000));
    }
}
