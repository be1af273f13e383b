//! One seed: a cluster and its clients under faults, then calm, then the proof that everything is there again.

mod calm;
mod hostile;
mod identity;
#[cfg(test)]
mod scripted;
mod stalls;

use crate::SimOptions;
use crate::checkers::{Checkers, Verdict, Violation, ensure};
use crate::cluster::{Cluster, End};
use crate::faults::{Blow, STALL_NS, Schedule};
use crate::hostile::Hostile;
use crate::panics;
use crate::profile::Profile;
use crate::report::{COMMITS_MIN, Failure, NoticedBy, Outcome, RECOVERIES_MIN, SeedReport};
use crate::rot::{self, Atlas};
use crate::tail::{self, Tail};
use crate::wire;
use crate::workload::Workload;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidelog_sim::{DiskFault, Moment, Random, Step, World};

const SECOND: u64 = 1_000_000_000;
/// Alarms: a number below this is a blow's.
const BOOT: u64 = 1 << 20;
const HEAL: u64 = 2 << 20;
const LOSE: u64 = 3 << 20;
const PLAN: u64 = 4 << 20;
const TAIL: u64 = 5 << 20;
/// A full disk gets a little space, and then what it had.
const SOME_SPACE: u64 = 6 << 20;
const SPACE_BACK: u64 = 7 << 20;
const SPEED_UP: u64 = 8 << 20;
const WIPE: u64 = 9 << 20;
/// How often a blow that needs a moment at which all is well may be put off.
const TAIL_TRIES: u64 = 40;
/// Faults that explain that a process gives up.
const DISK_TROUBLE: [&str; 8] = [
    "write error",
    "short write",
    "no space",
    "sync error, data kept",
    "sync error, data doomed",
    "sync error, data dropped",
    "read error",
    "name error",
];

/// A run under way.
struct Run {
    world: World,
    profile: Profile,
    schedule: Schedule,
    random: Random,
    cluster: Cluster,
    workload: Workload,
    checkers: Checkers,
    atlas: Atlas,
    /// Entries that went bad, and that no other replica keeps any more: by node, partition and index.
    lost: Vec<(u64, u64, u64)>,
    /// The end of a log that few have: a blow under way.
    tail: Option<Tail>,
    /// How often such a blow was put off.
    tail_tries: u64,
    /// Blows dealt, by name.
    dealt: BTreeMap<&'static str, u64>,
    /// Ends of processes that nobody asked for.
    crashes: u64,
    /// Nodes that had a turn since this was emptied.
    turned: BTreeSet<u64>,
    /// Faults are over: nothing explains a failure any more.
    calm: bool,
    /// Nodes that stop stay down.
    closing: bool,
    /// Processes, by node and boot, whose disk was seen to know of the formed cluster.
    formed: BTreeSet<(u64, u64)>,
    /// Machines whose disk is not their node's own.
    impostors: BTreeMap<u64, identity::Impostor>,
    /// A member that lies, while it does.
    hostile: Option<Hostile>,
    outlived: hostile::Outlived,
    /// A partition can have no leader: see [`crate::undecided`].
    undecided: bool,
    /// Stalls in the calm.
    stalls_outlived: u64,
}

/// Runs one seed from its beginning to its end.
pub fn run_seed(options: &SimOptions) -> SeedReport {
    let world = World::new(options.seed);
    world.keep_log(options.trace_lines);
    let mut random = Random::new(options.seed ^ 0x5EED_0F7E_5713_0001);
    let profile = Profile::draw(&mut random);
    let schedule = Schedule::draw(options, &profile.nodes, &mut random);
    let mut run = Run::new(world, profile, schedule, random);
    let failure = match panics::catch(|| run.all(options.seconds)) {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some((violation.invariant, NoticedBy::Checker, violation.message)),
        Err(panic) => Some((17, NoticedBy::Panic, panic)),
    };
    let failure = failure.map(|(invariant, noticed_by, message)| Failure {
        invariant,
        noticed_by,
        event: run.world.events(),
        at_ms: run.world.now() / 1_000_000,
        message,
        replay: options.replay(),
        state: panics::catch(|| run.cluster.describe()).unwrap_or_default(),
        trace: run.world.log(),
    });
    let report = run.report(options, failure);
    // A product that panicked may panic again as it is taken down.
    drop(panics::catch(move || drop(run)));
    report
}

impl Run {
    fn new(world: World, profile: Profile, schedule: Schedule, mut random: Random) -> Run {
        world.frames(&profile.nodes, wire::frame_length);
        Run {
            cluster: Cluster::new(&world, &profile),
            checkers: Checkers::new(&world, &profile),
            workload: Workload::new(&world, &profile, &mut random),
            world,
            profile,
            schedule,
            random,
            atlas: Atlas::default(),
            lost: Vec::new(),
            tail: None,
            tail_tries: 0,
            dealt: Blow::names().map(|name| (name, 0)).collect(),
            crashes: 0,
            turned: BTreeSet::new(),
            calm: false,
            closing: false,
            formed: BTreeSet::new(),
            impostors: BTreeMap::new(),
            hostile: None,
            outlived: hostile::Outlived::default(),
            undecided: false,
            stalls_outlived: 0,
        }
    }

    fn report(&self, options: &SimOptions, failure: Option<Failure>) -> SeedReport {
        let (commits, recoveries) = (self.checkers.commits(), self.checkers.recoveries());
        let outcome = match &failure {
            Some(_) => Outcome::Failed,
            None if self.undecided => Outcome::Undecided,
            None if commits < COMMITS_MIN || recoveries < RECOVERIES_MIN => Outcome::Thin,
            None => Outcome::Ok,
        };
        let mut faults: BTreeMap<String, u64> =
            self.world.fault_counts().into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        faults.extend(self.dealt.iter().map(|(name, count)| ((*name).to_owned(), *count)));
        let embedded = self.cluster.embedded();
        for (name, count) in [
            ("embedder: answers", embedded.answers),
            ("embedder: answers of a queue", embedded.queued),
            ("embedder: askers dropped", embedded.dropped),
            ("embedder: reads", embedded.reads),
            ("embedder: pins", embedded.pins),
        ] {
            faults.insert(name.to_owned(), count);
        }
        faults.insert("retention: a later log start".to_owned(), self.checkers.later_starts());
        faults.insert("late answers to a leader".to_owned(), self.cluster.late_answers());
        faults.insert("calm: a disk stalls".to_owned(), self.stalls_outlived);
        let refusals = ["session: expired", "session: sequence of another payload", "session: gap"];
        for (name, count) in refusals.into_iter().zip(self.workload.refusals()) {
            faults.insert(name.to_owned(), count);
        }
        faults.insert("session: used first after a lull".to_owned(), self.workload.used_after_lulls());
        faults.extend(self.outlived.counts().map(|(name, count)| (name.to_owned(), count)));
        let (cut, healed) = self.checkers.decided();
        faults.insert("deciding: a log cut by denials".to_owned(), cut);
        faults.insert("deciding: entries came back".to_owned(), healed);
        let clients = self.checkers.history.outcomes;
        SeedReport {
            seed: options.seed,
            outcome,
            trace_hash: format!("{:016x}", self.world.trace_hash()),
            events: self.world.events(),
            simulated_ms: self.world.now() / 1_000_000,
            nodes: self.profile.nodes.len() as u64,
            partitions: self.profile.partitions,
            commits,
            elections: self.checkers.elections(),
            crashes: self.crashes,
            recoveries,
            acked: clients.acked,
            unknown: clients.unknown,
            refused: clients.refused,
            reads: clients.reads,
            faults,
            failure,
        }
    }

    fn all(&mut self, seconds: u64) -> Verdict {
        self.world.alarm(self.schedule.plan_from_ns, PLAN);
        self.schedule.arm(&self.world);
        self.first_boots()?;
        self.workload.start();
        self.until(seconds * SECOND, |_| false)?;
        self.settle_down()?;
        if self.undecided {
            self.lost = self.atlas.unhealed(&self.checkers);
            self.lost.extend(self.cluster.every_damaged(self.profile.partitions));
        } else {
            self.progress()?;
            self.heal()?;
            self.outlive_stalls()?;
            self.stay_small()?;
            self.roll_back_a_disk()?;
            self.outlive_a_liar()?;
            if self.outlived.runs == 0 {
                self.converge()?;
            }
        }
        self.stop_all()?;
        self.checkers.finish(&self.lost)
    }

    /// Runs the world to `limit`, or until `done`. Whether `done` was the reason.
    fn until(&mut self, limit: u64, mut done: impl FnMut(&mut Run) -> bool) -> Result<bool, Violation> {
        while let Some(step) = self.world.step_until(limit) {
            self.step(step)?;
            if done(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn step(&mut self, step: Step) -> Verdict {
        match step {
            Step::Node(id) if self.workload.is_client(id) => {
                let verdict = self.workload.turn(id, &mut self.checkers);
                if self.outlived.runs == 0 {
                    return verdict;
                }
                // Nothing that clients are told can be held to anything when a member lies.
                if verdict.is_err() {
                    self.world.wake(id);
                }
                Ok(())
            }
            Step::Node(id) if self.hostile.as_ref().is_some_and(|hostile| hostile.node().0 == id) => {
                if let Some(hostile) = &mut self.hostile {
                    hostile.turn(&self.cluster);
                }
                Ok(())
            }
            Step::Node(id) => {
                self.turned.insert(id);
                let end = self.cluster.turn(id);
                self.check(id)?;
                let asks = !self.workload.is_stopping();
                let told = self.cluster.embed(id, asks, !self.calm, &mut self.checkers);
                if self.checkers.believes_clients() {
                    told?;
                }
                end.map_or(Ok(()), |end| self.ended(id, end))
            }
            Step::Down(id) => {
                if !self.world.is_up(id) {
                    self.lost(id);
                }
                Ok(())
            }
            Step::Alarm(PLAN) if !self.calm => {
                self.world.set_plan(self.schedule.plan.clone());
                Ok(())
            }
            Step::Alarm(tag) if (HEAL..LOSE).contains(&tag) => {
                let id = tag - HEAL;
                for other in self.profile.nodes.iter().filter(|other| **other != id) {
                    self.world.heal(id, *other);
                }
                Ok(())
            }
            Step::Alarm(tag) if (LOSE..PLAN).contains(&tag) => {
                if !self.calm && self.world.is_up(tag - LOSE) {
                    self.end(tag - LOSE, true);
                }
                Ok(())
            }
            Step::Alarm(tag) if tag >= WIPE => self.wipe_alarm(tag - WIPE),
            Step::Alarm(tag) if tag >= SPEED_UP => {
                self.world.slow_disk(tag - SPEED_UP, 1);
                Ok(())
            }
            Step::Alarm(tag) if tag >= SPACE_BACK => {
                if !self.calm {
                    self.world.set_capacity(tag - SPACE_BACK, self.profile.disk_bytes);
                }
                Ok(())
            }
            Step::Alarm(tag) if tag >= SOME_SPACE => {
                let (id, segment) = (tag - SOME_SPACE, self.profile.segment_bytes());
                if !self.calm {
                    // Not always as much as the next segment takes.
                    let some = self.world.disk_used(id) + self.random.between((0, 2 * segment));
                    self.world.set_capacity(id, Some(some));
                }
                Ok(())
            }
            Step::Alarm(tag) if tag >= TAIL && !self.calm => {
                let step = usize::try_from(tag - TAIL).ok().and_then(|n| tail::Step::ALL.get(n)).copied();
                step.map_or(Ok(()), |step| self.go_on_with_tail(step))
            }
            Step::Alarm(tag) if (BOOT..HEAL).contains(&tag) => self.boot(tag - BOOT),
            Step::Alarm(n) if !self.calm => self.strike(n),
            Step::Alarm(_) => Ok(()),
        }
    }

    fn check(&mut self, id: u64) -> Verdict {
        if self.impostors.contains_key(&id) {
            return self.check_impostor(id);
        }
        self.check_formation(id)?;
        self.cluster.nodes.get_mut(&id).map_or(Ok(()), |node| self.checkers.after_turn(node))?;
        let Some((partition, first)) = self.cluster.proven_damage(id, self.profile.partitions) else {
            return Ok(());
        };
        ensure(8, !self.atlas.is_untouched() || self.read_errors() > 0, || {
            format!(
                "node {id} partition {partition}: entry {first} is taken for damaged, though no disk was touched, and none refused a read"
            )
        })
    }

    fn read_errors(&self) -> u64 {
        self.world.fault_counts().get("read error").copied().unwrap_or(0)
    }

    // Lives.

    fn boot(&mut self, id: u64) -> Verdict {
        if self.world.is_up(id) {
            return Ok(());
        }
        // What a crash made durable on its way down belongs to the life before.
        self.checkers.read_disk(id)?;
        let crash = if self.calm { None } else { self.schedule.crash_in_opening(&mut self.random) };
        let end = self.cluster.boot(id, crash);
        self.check(id)?;
        self.atlas.forget(&self.checkers);
        end.map_or(Ok(()), |end| self.ended(id, end))
    }

    /// The process is gone without a word.
    fn lost(&mut self, id: u64) {
        self.crashes += 1;
        self.cluster.bury(id);
        if self.calm {
            return;
        }
        let after = self.random.between(self.schedule.down_ns);
        let planned =
            self.tail.as_ref().and_then(|tail| tail.back_at(id)).filter(|at| *at > self.world.now());
        self.world.alarm(planned.unwrap_or(self.world.now() + after), BOOT + id);
    }

    /// The process ended by itself.
    fn ended(&mut self, id: u64, end: End) -> Verdict {
        let trouble: u64 = {
            let counts = self.world.fault_counts();
            DISK_TROUBLE.iter().filter_map(|name| counts.get(name)).sum()
        };
        self.cluster.bury(id);
        if end == End::Crashed {
            // The world tells it once more; that changes nothing.
            *self.dealt.entry(Blow::CrashInOpening.name()).or_insert(0) += 1;
            self.lost(id);
            return Ok(());
        }
        if let End::Failed(why) = end {
            ensure(17, trouble > 0 && !self.calm, || {
                format!("node {id} gave up, though nothing explains it: {why}")
            })?;
        }
        if !self.closing {
            // Also one that was asked to stop before the calm, and came to it late.
            let after = if self.calm { 0 } else { self.random.between(self.schedule.down_ns) };
            self.world.alarm(self.world.now() + after, BOOT + id);
        }
        Ok(())
    }

    fn end(&mut self, id: u64, power_lost: bool) {
        if power_lost {
            self.world.crash(id)
        } else {
            self.world.kill(id)
        }
        self.lost(id);
    }

    // Blows.

    fn strike(&mut self, n: u64) -> Verdict {
        let Some((_, blow)) = usize::try_from(n).ok().and_then(|n| self.schedule.blows.get(n)).copied()
        else {
            return Ok(());
        };
        let up = self.cluster.up();
        let Some(any) = self.random.pick(&up).copied() else { return Ok(()) };
        let partition = self.random.below(self.profile.partitions);
        let leader = self.checkers.leader(partition).filter(|id| up.contains(id)).unwrap_or(any);
        if blow == Blow::LoneTail {
            if !self.begin_tail(partition) && self.tail_tries < TAIL_TRIES {
                self.tail_tries += 1;
                self.world.alarm(self.world.now() + SECOND / 4, n);
            }
            return Ok(());
        }
        if let Blow::CopyDirectory | Blow::DoubleDirectory | Blow::WipeDirectory = blow {
            return self.spoil_directory(blow, any);
        }
        *self.dealt.entry(blow.name()).or_insert(0) += 1;
        match blow {
            Blow::Crash => self.end(any, true),
            Blow::Kill => self.end(any, false),
            Blow::CrashLeader => self.end(leader, true),
            Blow::CrashAll => up.iter().for_each(|id| self.end(*id, true)),
            Blow::KillAll => up.iter().for_each(|id| self.end(*id, false)),
            Blow::PauseLeader => {
                let pause = Schedule::pause(&mut self.random, self.profile.election_timeout);
                self.world.pause(leader, pause);
                self.leader_lost(leader, pause);
            }
            Blow::IsolateLeader => {
                for other in self.profile.nodes.iter().filter(|other| **other != leader) {
                    self.world.partition(leader, *other);
                }
                let pause = Schedule::pause(&mut self.random, self.profile.election_timeout);
                let until = self.world.now() + u64::try_from(pause.as_nanos()).unwrap_or(SECOND);
                self.world.alarm(until, HEAL + leader);
                self.leader_lost(leader, pause);
            }
            Blow::StallAndDepose => self.stall_and_depose(leader, &up),
            Blow::HangDisk => self.world.hang_disk(any, Schedule::hang(&mut self.random)),
            Blow::HangLeaderDisk => self.world.hang_disk(leader, Schedule::hang(&mut self.random)),
            Blow::CrawlingDisk => {
                self.world.slow_disk(any, Schedule::crawl(&mut self.random));
                let long = u64::try_from(Schedule::hang(&mut self.random).as_nanos()).unwrap_or(SECOND);
                self.world.alarm(self.world.now() + long, SPEED_UP + any);
            }
            Blow::Stop => self.cluster.stop(any),
            Blow::RestartWhileFull => {
                let all = self.random.below(4) == 0;
                for id in if all { up } else { vec![any] } {
                    self.world.set_capacity(id, Some(self.world.disk_used(id)));
                    let power_lost = self.random.coin();
                    self.end(id, power_lost);
                    let some = self.world.now() + self.random.between((SECOND, 5 * SECOND));
                    self.world.alarm(some, SOME_SPACE + id);
                    self.world.alarm(some + self.random.between((SECOND / 4, 4 * SECOND)), SPACE_BACK + id);
                }
            }
            Blow::CrashAtOperation => {
                let (ahead, moment) = Schedule::crash_point(&mut self.random, 12);
                self.world.crash_at(any, self.world.disk_ops(any) + ahead, moment);
            }
            Blow::Damage => self.damage(),
            _ => {}
        }
        Ok(())
    }

    /// Clients go on to ask a leader that fell out of touch, and for a moment after that.
    fn leader_lost(&mut self, leader: u64, pause: Duration) {
        let time = pause + self.profile.election_timeout;
        self.workload
            .leader_lost(leader, self.world.now() + u64::try_from(time.as_nanos()).unwrap_or(SECOND));
    }

    /// A few places on all disks go bad at once.
    fn damage(&mut self) {
        for _ in 0..self.random.between((1, 2 * self.profile.nodes.len() as u64)) {
            let Some(node) = self.random.pick(&self.profile.nodes).copied() else { return };
            let Run { atlas, world, checkers, random, .. } = self;
            for name in atlas.strike(world, checkers, random, node) {
                *self.dealt.entry(name).or_insert(0) += 1;
            }
        }
    }

    /// Only `leader` and one stalled follower stay together, until the rest has another leader.
    fn stall_and_depose(&mut self, leader: u64, up: &[u64]) {
        let followers: Vec<u64> = up.iter().copied().filter(|id| *id != leader).collect();
        let Some(follower) = self.random.pick(&followers).copied() else { return };
        let stall = self.random.between(STALL_NS);
        self.world.fail_next(follower, DiskFault::Stall(stall));
        if self.profile.nodes.len() < 5 {
            // Of three, the rest is no quorum: the leader comes back without what only the follower got.
            let after = self.random.between((1_000_000, 30_000_000));
            self.world.alarm(self.world.now() + after, LOSE + leader);
            return;
        }
        for one in [leader, follower] {
            for other in self.profile.nodes.iter().filter(|other| **other != leader && **other != follower) {
                self.world.partition(one, *other);
            }
            let apart = Schedule::pause(&mut self.random, self.profile.election_timeout);
            let until = self.world.now() + u64::try_from(apart.as_nanos()).unwrap_or(SECOND);
            self.world.alarm(until, HEAL + one);
        }
    }

    /// Begins a tail that few have, if all voters of the partition are up and follow, and none is under way. Whether it did.
    fn begin_tail(&mut self, partition: u64) -> bool {
        let Some(leader) = self.checkers.leader(partition).filter(|_| self.tail.is_none()) else {
            return false;
        };
        let voters = self.cluster.voters(leader, partition);
        let follows = |id: &u64| self.cluster.leader_of(*id, partition) == Some(leader);
        if voters.len() < 3 || !voters.iter().all(follows) {
            return false;
        }
        *self.dealt.entry(Blow::LoneTail.name()).or_insert(0) += 1;
        let tail =
            Tail::draw(&mut self.random, self.world.now(), &voters, leader, self.profile.election_timeout);
        for (one, other) in tail.cuts() {
            // What is under way would arrive when the link carries again, and others would have it.
            self.world.break_connections(one, other);
            self.world.partition(one, other);
        }
        for (n, (_, at)) in (0..).zip(tail.steps()) {
            self.world.alarm(at, TAIL + n);
        }
        self.tail = Some(tail);
        true
    }

    /// Whether a log ends with a batch that holds entries, and nothing that it could not miss.
    fn has_plain_tail(&self, id: u64) -> bool {
        let disk = self.checkers.disk(id);
        disk.and_then(|disk| disk.places().get(disk.tail()?)).is_some_and(|place| place.plain)
    }

    fn go_on_with_tail(&mut self, step: tail::Step) -> Verdict {
        let Some(tail) = self.tail.clone() else { return Ok(()) };
        let leader = tail.leader;
        match step {
            tail::Step::Lead => match tail.torn_within {
                _ if !self.world.is_up(leader) => {}
                // A moment later it may.
                None if !self.has_plain_tail(leader) && self.world.now() < tail.lead_until() => {
                    self.world.alarm(self.world.now() + tail::LOOK_NS, TAIL);
                }
                Some(ahead) => {
                    self.world.crash_at(leader, self.world.disk_ops(leader) + ahead, Moment::Inside)
                }
                None => {
                    self.end(leader, true);
                    self.checkers.read_disk(leader)?;
                    let Run { atlas, world, checkers, random, .. } = self;
                    if atlas.strike_tail(world, checkers, random, leader) {
                        *self.dealt.entry(rot::TAIL_STRUCK).or_insert(0) += 1;
                    }
                }
            },
            tail::Step::Follow => {
                for id in tail.with_it.iter().chain([&leader]) {
                    if self.world.is_up(*id) {
                        self.end(*id, true);
                    }
                }
            }
            tail::Step::Meet => {
                for other in &tail.others {
                    self.world.heal(leader, *other);
                }
            }
            tail::Step::End => {
                for (one, other) in tail.cuts() {
                    self.world.heal(one, other);
                }
                self.tail = None;
            }
        }
        Ok(())
    }
}
