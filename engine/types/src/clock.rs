//! Three clocks, three types: what one of them says means nothing to the others.

use crate::ids::id;
use core::time::Duration;

/// Nanoseconds on this machine's boot clock (it goes on during suspend). Orders events within one boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// This moment and `d` more; saturates.
    #[must_use]
    pub fn after(self, d: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }
    /// Time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

id!(
    /// Milliseconds since 1970 on this machine's wall clock, which may be wrong and may jump.
    WallMs(u64)
);
id!(
    /// Milliseconds since 1970 as a partition's log tells them: stamped by leaders, the same on every
    /// replica, never backwards.
    ReplicatedMs(u64)
);

/// What the seam's clocks said at the start of a turn. Passed into code that cannot read a clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Clock {
    /// The monotonic clock.
    pub now: Monotonic,
    /// The wall clock.
    pub wall: WallMs,
}
