//! Which faults a run has, how often, and how often each one fired.

use crate::random::Random;
use std::collections::BTreeMap;

/// A probability in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Rate(pub u32);

impl Rate {
    /// Off.
    pub const NEVER: Rate = Rate(0);
    /// Each time.
    pub const ALWAYS: Rate = Rate(1_000_000);
    /// So many in a hundred.
    pub const fn percent(n: u32) -> Rate {
        Rate(n * 10_000)
    }
    /// So many in a million.
    pub const fn per_million(n: u32) -> Rate {
        Rate(n)
    }
}

/// One fault of a disk, to be ordered by name: [`crate::World::fail_next`], [`crate::World::fail_at`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum DiskFault {
    /// A write fails with EIO and leaves any subset of its sectors.
    WriteError,
    /// A write stops early.
    ShortWrite,
    /// A write finds no space, at its beginning or in its middle.
    NoSpace,
    /// A write lands, whole and without an error, at another page of its file.
    Misdirected,
    /// A sync fails with EIO; the data that it was to save may be lost without any other sign.
    SyncError,
    /// A read fails with EIO; the next may succeed.
    ReadError,
    /// Creating, renaming, removing a name or syncing a directory fails, done or not.
    NameError,
    /// An operation takes so many nanoseconds more.
    Stall(u64),
}

/// How often the disk of one node fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskFaults {
    /// See [`DiskFault::WriteError`].
    pub write_error: Rate,
    /// See [`DiskFault::ShortWrite`].
    pub short_write: Rate,
    /// See [`DiskFault::SyncError`]; the sync of a durable write counts, too.
    pub sync_error: Rate,
    /// See [`DiskFault::ReadError`].
    pub read_error: Rate,
    /// See [`DiskFault::NoSpace`].
    pub no_space: Rate,
    /// See [`DiskFault::NameError`].
    pub name_error: Rate,
    /// An operation takes `stall_ns` longer.
    pub stall: Rate,
    /// By how much: from, to.
    pub stall_ns: (u64, u64),
    /// Every operation takes so many times as long.
    pub slow_factor: u64,
}

impl DiskFaults {
    /// A disk that works.
    pub const NONE: DiskFaults = DiskFaults {
        write_error: Rate::NEVER,
        short_write: Rate::NEVER,
        sync_error: Rate::NEVER,
        read_error: Rate::NEVER,
        no_space: Rate::NEVER,
        name_error: Rate::NEVER,
        stall: Rate::NEVER,
        stall_ns: (10_000_000, 1_000_000_000),
        slow_factor: 1,
    };
}

/// How often the network between nodes fails. Loopback works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetFaults {
    /// A whole frame vanishes from a connection (only with [`crate::World::frames`]).
    pub drop: Rate,
    /// A whole frame comes twice (only with [`crate::World::frames`]).
    pub duplicate: Rate,
    /// A frame, or a piece of an unframed stream, and all behind it come `delay_ns` later.
    pub delay: Rate,
    /// By how much: from, to.
    pub delay_ns: (u64, u64),
    /// A connection breaks in front of a frame or piece; what is under way may be lost with it.
    pub break_connection: Rate,
}

impl NetFaults {
    /// A network that works.
    pub const NONE: NetFaults = NetFaults {
        drop: Rate::NEVER,
        duplicate: Rate::NEVER,
        delay: Rate::NEVER,
        delay_ns: (1_000_000, 200_000_000),
        break_connection: Rate::NEVER,
    };
}

/// What befalls whole nodes, and about how often: mean times between two of a kind over all nodes, in
/// nanoseconds, 0 for never. The world does it by itself; after a crash the driver is told by
/// [`crate::Step::Down`] and boots the node again when it likes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nemesis {
    /// Power loss.
    pub crash_every_ns: u64,
    /// Death of the process.
    pub kill_every_ns: u64,
    /// Most nodes that are down at once by these two.
    pub down_max: usize,
    /// A partition begins: uniform, of one node, a bridge, or one-way.
    pub partition_every_ns: u64,
    /// It heals after: from, to.
    pub partition_for_ns: (u64, u64),
    /// A process stops running for a while.
    pub pause_every_ns: u64,
    /// For how long: from, to.
    pub pause_for_ns: (u64, u64),
    /// A wall clock jumps.
    pub jump_every_ns: u64,
    /// By at most so many milliseconds, forth or back.
    pub jump_ms_max: u64,
    /// A disk becomes slow, and is so until another one is.
    pub slow_every_ns: u64,
    /// By which factor: from, to.
    pub slow_factor: (u64, u64),
    /// A disk is full for a while.
    pub full_every_ns: u64,
    /// For how long: from, to.
    pub full_for_ns: (u64, u64),
}

impl Nemesis {
    /// Nothing.
    pub const NONE: Nemesis = Nemesis {
        crash_every_ns: 0,
        kill_every_ns: 0,
        down_max: 1,
        partition_every_ns: 0,
        partition_for_ns: (100_000_000, 3_000_000_000),
        pause_every_ns: 0,
        pause_for_ns: (50_000_000, 2_000_000_000),
        jump_every_ns: 0,
        jump_ms_max: 3_600_000,
        slow_every_ns: 0,
        slow_factor: (10, 100),
        full_every_ns: 0,
        full_for_ns: (500_000_000, 3_000_000_000),
    };
}

/// All faults of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultPlan {
    /// On every node of `nodes`.
    pub disk: DiskFaults,
    /// Between all nodes.
    pub net: NetFaults,
    /// Each node's clock runs wrong by at most so many parts in a million.
    pub drift_ppm_max: u64,
    /// What befalls nodes of `nodes`.
    pub nemesis: Nemesis,
    /// The nodes that disk faults and the nemesis are for; clients stay out.
    pub nodes: Vec<u64>,
}

impl FaultPlan {
    /// No faults at all.
    pub const fn none() -> FaultPlan {
        FaultPlan {
            disk: DiskFaults::NONE,
            net: NetFaults::NONE,
            drift_ppm_max: 0,
            nemesis: Nemesis::NONE,
            nodes: Vec::new(),
        }
    }

    /// A random subset of all faults at random rates, for a cluster of `nodes` (swarm testing: a fault that
    /// is absent lets others go further).
    pub fn draw(seed: u64, nodes: &[u64]) -> FaultPlan {
        const SECOND: u64 = 1_000_000_000;
        let r = &mut Random::new(seed ^ 0xFA17_91A4_5EED_0001);
        fn rate(r: &mut Random, per_million_max: u64) -> Rate {
            if r.coin() {
                Rate(u32::try_from(r.between((1, per_million_max))).unwrap_or(1))
            } else {
                Rate::NEVER
            }
        }
        fn every(r: &mut Random, seconds: (u64, u64)) -> u64 {
            if r.coin() { r.between((seconds.0 * SECOND, seconds.1 * SECOND)) } else { 0 }
        }
        // Errors that take a node out for a moment are rare among many thousand operations; the rest may be
        // dense.
        let mut disk = DiskFaults {
            no_space: Rate::NEVER,
            write_error: rate(r, 100),
            short_write: rate(r, 100),
            sync_error: rate(r, 100),
            read_error: rate(r, 1_000),
            name_error: rate(r, 20_000),
            stall: rate(r, 500),
            stall_ns: (10_000_000, r.between((20_000_000, 10 * SECOND))),
            slow_factor: 1,
        };
        let net = NetFaults {
            drop: rate(r, 20_000),
            duplicate: rate(r, 20_000),
            delay: rate(r, 20_000),
            delay_ns: (1_000_000, r.between((2_000_000, SECOND / 2))),
            break_connection: rate(r, 500),
        };
        let nemesis = Nemesis {
            crash_every_ns: every(r, (3, 12)),
            kill_every_ns: every(r, (3, 12)),
            down_max: if r.below(4) == 0 { nodes.len() } else { nodes.len().saturating_sub(1) / 2 },
            partition_every_ns: every(r, (4, 15)),
            partition_for_ns: (100_000_000, r.between((SECOND, 6 * SECOND))),
            pause_every_ns: every(r, (4, 15)),
            pause_for_ns: (10_000_000, r.between((SECOND, 4 * SECOND))),
            jump_every_ns: every(r, (4, 15)),
            jump_ms_max: r.between((10, 3_600_000)),
            slow_every_ns: every(r, (8, 25)),
            slow_factor: (2, r.between((5, 100))),
            full_every_ns: every(r, (10, 30)),
            full_for_ns: (200_000_000, r.between((SECOND, 4 * SECOND))),
        };
        let drift_ppm_max = if r.coin() { r.between((1, 500)) } else { 0 };
        disk.no_space = rate(r, 200);
        FaultPlan { disk, net, drift_ppm_max, nemesis, nodes: nodes.to_vec() }
    }
}

macro_rules! faults {
    ($($name:ident = $text:literal),* $(,)?) => {
        $(pub(crate) const $name: &str = $text;)*
        /// Every fault that [`crate::World::fault_counts`] counts, fired or not.
        pub const FAULT_NAMES: &[&str] = &[$($text),*];
    };
}

faults!(
    CRASH = "crash",
    KILL = "kill",
    LOST_SECTORS = "unsynced sectors lost",
    LOST_NAME = "unsynced name lost",
    WRITE_ERROR = "write error",
    SHORT_WRITE = "short write",
    NO_SPACE = "no space",
    MISDIRECTED = "misdirected write",
    SYNC_KEPT = "sync error, data kept",
    SYNC_DOOMED = "sync error, data doomed",
    SYNC_DROPPED = "sync error, data dropped",
    READ_ERROR = "read error",
    NAME_ERROR = "name error",
    STALL = "disk stall",
    SLOW_DISK = "slow disk",
    HANG = "disk hang",
    FULL_DISK = "full disk",
    DAMAGE = "damage",
    FRAME_DROP = "frame dropped",
    FRAME_DUPLICATE = "frame duplicated",
    DELAY = "network delay",
    BREAK = "connection broken",
    HALF_OPEN = "half-open connection",
    PARTITION = "partition",
    ONE_WAY = "one-way partition",
    HEAL_RESET = "connection lost to a partition",
    CONNECT_TIMEOUT = "connect timed out",
    PAUSE = "pause",
    JUMP = "wall clock jump",
    DRIFT = "clock drift",
);

/// How often each fault fired.
#[derive(Clone, Debug)]
pub(crate) struct FaultCounts(BTreeMap<&'static str, u64>);

impl FaultCounts {
    pub(crate) fn new() -> FaultCounts {
        FaultCounts(FAULT_NAMES.iter().map(|name| (*name, 0)).collect())
    }
    pub(crate) fn add(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_insert(0) += count;
    }
    pub(crate) fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_differ_by_seed_and_each_fault_is_on_in_some_and_off_in_others() {
        let plans: Vec<FaultPlan> = (0..64).map(|seed| FaultPlan::draw(seed, &[1, 2, 3])).collect();
        assert_eq!(plans[5], FaultPlan::draw(5, &[1, 2, 3]));
        assert_ne!(plans[5], plans[6]);
        type Knob = fn(&FaultPlan) -> bool;
        let knobs: [Knob; 10] = [
            |p| p.disk.write_error != Rate::NEVER,
            |p| p.disk.short_write != Rate::NEVER,
            |p| p.disk.sync_error != Rate::NEVER,
            |p| p.net.drop != Rate::NEVER,
            |p| p.net.duplicate != Rate::NEVER,
            |p| p.nemesis.crash_every_ns != 0,
            |p| p.nemesis.partition_every_ns != 0,
            |p| p.nemesis.pause_every_ns != 0,
            |p| p.nemesis.jump_every_ns != 0,
            |p| p.drift_ppm_max != 0,
        ];
        for (i, knob) in knobs.iter().enumerate() {
            let on = plans.iter().filter(|p| knob(p)).count();
            assert!((10..54).contains(&on), "knob {i} is on in {on} of 64");
        }
    }
}
