//! What befalls a run: the world's own plan (drawn per seed, swarm testing), and blows to the whole cluster that
//! the world does not know of, so that every seed has a few recoveries.

use crate::{SimOptions, rot};
use std::time::Duration;
use tidelog_sim::{FaultPlan, Moment, Random, Rate, World};

const SECOND: u64 = 1_000_000_000;

/// How long the driver lets a disk stand still: from, to.
pub(crate) const STALL_NS: (u64, u64) = (2 * SECOND, 6 * SECOND);

/// A blow that the driver deals.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Blow {
    /// Power loss of one node.
    Crash,
    /// Death of one process.
    Kill,
    /// Power loss of all nodes at one moment.
    CrashAll,
    /// Death of all processes at one moment.
    KillAll,
    /// Power loss of a leader.
    CrashLeader,
    /// A leader's machine stands still for a few election time-outs, and wakes up.
    PauseLeader,
    /// A leader is cut off.
    IsolateLeader,
    /// A follower's disk stands still under entries that only it got, and the leader that sent them is deposed.
    StallAndDepose,
    /// A disk hangs for long, without an error.
    HangDisk,
    /// A leader's disk does.
    HangLeaderDisk,
    /// A disk becomes so slow that each write takes about a stall time-out, for long.
    CrawlingDisk,
    /// One process is asked to stop.
    Stop,
    /// Power loss of one node before, inside or after one of its next operations on the disk.
    CrashAtOperation,
    /// Bytes of disks go bad, as far as the atlas lets them: see [`crate::rot`].
    Damage,
    /// The end of a log that few nodes have, on a disk that loses it: see [`crate::tail`].
    LoneTail,
    /// A disk is full, its process dies, and comes back while it is still full; later there is a little space, then enough.
    RestartWhileFull,
    /// Power loss of a node while it opens its log again; dealt at boots, not by the schedule.
    CrashInOpening,
    /// A node is started on a copy of its directory: see [`crate::run`]'s `identity`.
    CopyDirectory,
    /// A copy of a running node's directory is started beside it.
    DoubleDirectory,
    /// A node comes back with an empty disk, for a while.
    WipeDirectory,
    /// Power loss of a founder on its way to formation; dealt at the first boots.
    CrashInFormation,
    /// A founder's disk is emptied before formation; dealt after the first boots.
    WipeFounder,
    /// A disk is as it was earlier; dealt in the calm.
    RollBackDisk,
}

/// Not dealt by the schedule.
const ELSEWHERE: [Blow; 4] =
    [Blow::CrashInOpening, Blow::CrashInFormation, Blow::WipeFounder, Blow::RollBackDisk];

const BLOWS: [(Blow, &str); 23] = [
    (Blow::Crash, "driver: crash of one"),
    (Blow::Kill, "driver: kill of one"),
    (Blow::CrashAll, "driver: crash of all"),
    (Blow::KillAll, "driver: kill of all"),
    (Blow::CrashLeader, "driver: crash of a leader"),
    (Blow::PauseLeader, "driver: pause of a leader"),
    (Blow::IsolateLeader, "driver: leader cut off"),
    (Blow::StallAndDepose, "driver: stalled follower of a deposed leader"),
    (Blow::HangDisk, "driver: disk hangs"),
    (Blow::HangLeaderDisk, "driver: disk of a leader hangs"),
    (Blow::CrawlingDisk, "driver: disk crawls"),
    (Blow::Stop, "driver: clean stop"),
    (Blow::CrashAtOperation, "driver: crash at an operation"),
    (Blow::Damage, "driver: damage"),
    (Blow::LoneTail, "driver: a tail that few have"),
    (Blow::RestartWhileFull, "driver: restart on a full disk"),
    (Blow::CrashInOpening, "driver: crash in opening"),
    (Blow::CopyDirectory, "driver: directory copied"),
    (Blow::DoubleDirectory, "driver: directory run twice"),
    (Blow::WipeDirectory, "driver: directory wiped"),
    (Blow::CrashInFormation, "driver: crash in formation"),
    (Blow::WipeFounder, "driver: founder wiped"),
    (Blow::RollBackDisk, "driver: disk rolled back"),
];

impl Blow {
    /// Name in reports.
    pub(crate) fn name(self) -> &'static str {
        BLOWS.iter().find(|(blow, _)| *blow == self).map_or("", |(_, name)| name)
    }

    /// All that may be dealt.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        BLOWS.iter().map(|(_, name)| *name).chain(rot::names())
    }
}

/// A run's schedule.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) plan: FaultPlan,
    /// When the plan begins.
    pub(crate) plan_from_ns: u64,
    /// When, and what.
    pub(crate) blows: Vec<(u64, Blow)>,
    /// How long a node stays down: from, to.
    pub(crate) down_ns: (u64, u64),
    /// Whether some boots end in a crash.
    crashes_in_opening: bool,
}

impl Schedule {
    /// Draws one.
    pub(crate) fn draw(options: &SimOptions, nodes: &[u64], random: &mut Random) -> Schedule {
        let SimOptions { seed, seconds, damage, .. } = *options;
        let mut blows = Vec::new();
        let count = random.between((3, 3 + seconds / 10));
        // A subset of the kinds: what is absent lets others go further.
        let mut kinds: Vec<Blow> = BLOWS.iter().map(|(blow, _)| *blow).filter(|_| random.coin()).collect();
        let crashes_in_opening = kinds.contains(&Blow::CrashInOpening);
        kinds.retain(|blow| !ELSEWHERE.contains(blow));
        if damage && !kinds.contains(&Blow::Damage) {
            kinds.push(Blow::Damage);
        }
        for n in 0..count {
            let at = random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND)));
            let drawn = random.pick(&kinds).copied();
            // The first three end processes, whatever the kinds.
            let blow = match drawn {
                Some(blow)
                    if n >= 3
                        || !matches!(
                            blow,
                            Blow::PauseLeader
                                | Blow::IsolateLeader
                                | Blow::StallAndDepose
                                | Blow::HangDisk
                                | Blow::HangLeaderDisk
                                | Blow::CrawlingDisk
                                | Blow::Damage
                                | Blow::LoneTail
                                | Blow::CopyDirectory
                                | Blow::DoubleDirectory
                                | Blow::WipeDirectory
                        ) =>
                {
                    blow
                }
                _ => *random.pick(&[Blow::Crash, Blow::Kill]).unwrap_or(&Blow::Crash),
            };
            blows.push((at, blow));
        }
        if kinds.contains(&Blow::Damage) {
            for _ in 0..random.between((1, 4)) {
                blows.push((random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND))), Blow::Damage));
            }
        }
        if kinds.contains(&Blow::LoneTail) {
            // A few more: each needs a moment at which all is well.
            for _ in 0..random.between((1, 3)) {
                blows
                    .push((random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND))), Blow::LoneTail));
            }
        }
        // Everywhere, or what rests on a leader's leases and rounds would hardly be tried.
        blows.push((random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND))), Blow::PauseLeader));
        for blow in [Blow::CopyDirectory, Blow::DoubleDirectory, Blow::WipeDirectory] {
            if kinds.contains(&blow) {
                blows.push((random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND))), blow));
            }
        }
        if kinds.contains(&Blow::RestartWhileFull) {
            for _ in 0..random.between((1, 3)) {
                let at = random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND)));
                blows.push((at, Blow::RestartWhileFull));
            }
        }
        if nodes.len() >= 5 {
            // Only there can a leader and one follower be on their own while the rest is a quorum.
            blows.push((
                random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND))),
                Blow::StallAndDepose,
            ));
        }
        blows.sort_unstable();
        Schedule {
            plan: FaultPlan::draw(seed, nodes),
            plan_from_ns: if random.coin() { 0 } else { 2 * SECOND },
            blows,
            down_ns: (10_000_000, random.between((100_000_000, 3 * SECOND))),
            crashes_in_opening,
        }
    }

    /// Nothing befalls a run by itself.
    #[cfg(test)]
    pub(crate) fn none() -> Schedule {
        Schedule {
            plan: FaultPlan::none(),
            plan_from_ns: 0,
            blows: Vec::new(),
            down_ns: (SECOND, SECOND),
            crashes_in_opening: false,
        }
    }

    /// Puts the alarms for it into the world. `tag` of blow `n`: `n`.
    pub(crate) fn arm(&self, world: &World) {
        for (n, (at, _)) in (0u64..).zip(&self.blows) {
            world.alarm(*at, n);
        }
    }

    /// One of the next `within` operations, and a moment of it.
    pub(crate) fn crash_point(random: &mut Random, within: u64) -> (u64, Moment) {
        let moment =
            *random.pick(&[Moment::Before, Moment::Inside, Moment::After]).unwrap_or(&Moment::Inside);
        (random.below(within), moment)
    }

    /// Where a boot ends in a crash, if it does.
    pub(crate) fn crash_in_opening(&self, random: &mut Random) -> Option<(u64, Moment)> {
        (self.crashes_in_opening && random.below(3) == 0).then(|| Schedule::crash_point(random, 24))
    }

    /// Longest that an operation may still stand still when the faults end.
    pub(crate) fn stall_max_ns(&self) -> u64 {
        let drawn = if self.plan.disk.stall == Rate::NEVER { 0 } else { self.plan.disk.stall_ns.1 };
        let dealt = self.blows.iter().any(|(_, blow)| *blow == Blow::StallAndDepose);
        drawn.max(if dealt { STALL_NS.1 } else { 0 })
    }

    /// How long a disk hangs or crawls: seconds mostly, and now and then minutes.
    pub(crate) fn hang(random: &mut Random) -> Duration {
        let most = if random.below(8) == 0 { 120 * SECOND } else { 20 * SECOND };
        Duration::from_nanos(random.between((5 * SECOND, most)))
    }

    /// How many times slower than a good disk one is whose writes take about a stall time-out.
    pub(crate) fn crawl(random: &mut Random) -> u64 {
        random.between((200, 1_500))
    }

    /// How long a leader is out of touch: for some, long enough that clients gave it up and another one has committed for them.
    pub(crate) fn pause(random: &mut Random, election_timeout: Duration) -> Duration {
        let timeout = u64::try_from(election_timeout.as_nanos()).unwrap_or(SECOND);
        let most = if random.coin() { 6 } else { 24 };
        Duration::from_nanos(random.between((timeout, most * timeout)))
    }
}
