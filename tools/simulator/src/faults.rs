//! What befalls a run: the world's own plan (drawn per seed, swarm testing), and blows to the whole cluster that
//! the world does not know of, so that every seed has a few recoveries.

use std::time::Duration;
use tidelog_sim::{FaultPlan, Random, World};

const SECOND: u64 = 1_000_000_000;

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
    /// One process is asked to stop.
    Stop,
}

const BLOWS: [(Blow, &str); 8] = [
    (Blow::Crash, "driver: crash of one"),
    (Blow::Kill, "driver: kill of one"),
    (Blow::CrashAll, "driver: crash of all"),
    (Blow::KillAll, "driver: kill of all"),
    (Blow::CrashLeader, "driver: crash of a leader"),
    (Blow::PauseLeader, "driver: pause of a leader"),
    (Blow::IsolateLeader, "driver: leader cut off"),
    (Blow::Stop, "driver: clean stop"),
];

impl Blow {
    /// Name in reports.
    pub(crate) fn name(self) -> &'static str {
        BLOWS.iter().find(|(blow, _)| *blow == self).map_or("", |(_, name)| name)
    }

    /// All of them.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        BLOWS.iter().map(|(_, name)| *name)
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
}

impl Schedule {
    /// Draws one for a run of `seconds`.
    pub(crate) fn draw(seed: u64, seconds: u64, nodes: &[u64], random: &mut Random) -> Schedule {
        let mut blows = Vec::new();
        let count = random.between((3, 3 + seconds / 10));
        // A subset of the kinds: what is absent lets others go further.
        let kinds: Vec<Blow> = BLOWS.iter().map(|(blow, _)| *blow).filter(|_| random.coin()).collect();
        for n in 0..count {
            let at = random.between((2 * SECOND, (seconds * SECOND).max(3 * SECOND)));
            let drawn = random.pick(&kinds).copied();
            // The first three end processes, whatever the kinds.
            let blow = match drawn {
                Some(blow) if n >= 3 || !matches!(blow, Blow::PauseLeader | Blow::IsolateLeader) => blow,
                _ => *random.pick(&[Blow::Crash, Blow::Kill]).unwrap_or(&Blow::Crash),
            };
            blows.push((at, blow));
        }
        blows.sort_unstable();
        Schedule {
            plan: FaultPlan::draw(seed, nodes),
            plan_from_ns: if random.coin() { 0 } else { 2 * SECOND },
            blows,
            down_ns: (10_000_000, random.between((100_000_000, 3 * SECOND))),
        }
    }

    /// Puts the alarms for it into the world. `tag` of blow `n`: `n`.
    pub(crate) fn arm(&self, world: &World) {
        for (n, (at, _)) in (0u64..).zip(&self.blows) {
            world.alarm(*at, n);
        }
    }

    /// How long a leader is paused.
    pub(crate) fn pause(random: &mut Random, election_timeout: Duration) -> Duration {
        let timeout = u64::try_from(election_timeout.as_nanos()).unwrap_or(SECOND);
        Duration::from_nanos(random.between((timeout, 6 * timeout)))
    }
}
