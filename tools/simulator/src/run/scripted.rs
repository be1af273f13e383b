//! What must be seen once for certain: runs whose every blow is written down here, of the same production code under the same checkers.

use super::*;
use tidelog_consensus::{Message, Repair};
use tidelog_types::{Generation, Index, PartitionId};

const MILLI: u64 = 1_000_000;
const PARTITION: PartitionId = PartitionId(0);

/// What was said about damage: who, to whom, what, and the speaker's turn.
#[derive(Clone, Debug)]
struct Said {
    turn: u64,
    from: u64,
    to: u64,
    repair: Repair,
}

struct Stage {
    run: Run,
    turns: u64,
    said: Vec<Said>,
}

impl Stage {
    /// A cluster of three with its clients, once it has worked for a while.
    fn new(seed: u64) -> Stage {
        Stage::with(seed, |_| {})
    }

    /// The same, of a changed shape.
    fn with(seed: u64, change: impl FnOnce(&mut Profile)) -> Stage {
        let mut random = Random::new(seed);
        let mut profile = Profile::plain(&mut random);
        change(&mut profile);
        let mut run = Run::new(World::new(seed), profile, Schedule::none(), random);
        for id in [1, 2, 3] {
            run.boot(id).unwrap();
        }
        run.workload.start();
        let mut stage = Stage { run, turns: 0, said: Vec::new() };
        stage.run_for(4000);
        stage
    }

    /// The first of some clusters whose clients happen to do what a script needs.
    fn such_that<T>(
        seeds: std::ops::Range<u64>,
        mut fits: impl FnMut(&mut Stage) -> Option<T>,
    ) -> (Stage, T) {
        let mut stages = seeds.map(Stage::new);
        let fit = stages.find_map(|mut stage| fits(&mut stage).map(|found| (stage, found)));
        fit.expect("one of these clusters does what the script needs")
    }

    fn leader(&self) -> u64 {
        let leads =
            |id: &u64| self.run.cluster.replica(*id, PARTITION).is_some_and(|replica| replica.is_leader());
        [1, 2, 3].into_iter().find(leads).expect("somebody leads")
    }

    fn replica(&self, id: u64) -> &tidelog_consensus::Replica {
        self.run.cluster.replica(id, PARTITION).expect("it is up")
    }

    /// As long as it may take, or until `done`: whether that was the reason.
    fn until(&mut self, ms: u64, mut done: impl FnMut(&Stage) -> bool) -> bool {
        let limit = self.run.world.now() + ms * MILLI;
        while let Some(step) = self.run.world.step_until(limit) {
            if let Step::Node(id) = step
                && !self.run.workload.is_client(id)
            {
                self.turns += 1;
                assert_eq!(self.run.cluster.turn(id), None, "nobody stops by itself");
                for (to, message) in self.run.cluster.nodes[&id].sent() {
                    if let Message::Repair(repair) = message.message {
                        self.said.push(Said { turn: self.turns, from: id, to: to.0, repair });
                    }
                }
                self.run.check(id).unwrap();
            } else {
                self.run.step(step).unwrap();
            }
            if done(self) {
                return true;
            }
        }
        false
    }

    fn run_for(&mut self, ms: u64) {
        self.until(ms, |_| false);
    }

    /// Power loss. It stays down for longer than a script takes, or until it is started.
    fn crash(&mut self, id: u64) {
        self.run.schedule.down_ns = (10_000 * SECOND, 10_000 * SECOND);
        self.run.end(id, true);
        self.run.checkers.read_disk(id).unwrap();
    }

    fn cut(&self, pairs: &[(u64, u64)]) {
        pairs.iter().for_each(|(one, other)| self.run.world.partition(*one, *other));
    }

    fn heal(&self, pairs: &[(u64, u64)]) {
        pairs.iter().for_each(|(one, other)| self.run.world.heal(*one, *other));
    }

    /// Crashes a node whose last batch holds entries, and lets that go bad. Its last entry; none if its clients do not append.
    fn lose_tail(&mut self, id: u64) -> Option<tidelog_types::Position> {
        if !self.until(100, |stage| stage.run.has_plain_tail(id)) {
            return None;
        }
        self.crash(id);
        let Run { atlas, world, checkers, random, .. } = &mut self.run;
        assert!(atlas.strike_tail(world, checkers, random, id), "it may go bad");
        let log = self.run.checkers.disk(id).unwrap().log(0);
        let last = log.last();
        Some(tidelog_types::Position::new(Index(last), Generation(log.generation_at(last).unwrap())))
    }

    /// Whether the batch of a node's entry may be struck by a script: it is proven, and holds nothing but entries.
    fn is_plain(&self, id: u64, index: u64) -> bool {
        let disk = self.run.checkers.disk(id).unwrap();
        let batch = disk.log(0).entry(index).map(|entry| entry.batch);
        disk.places().iter().any(|place| Some(place.lsn) == batch && place.plain && disk.is_proven(place))
    }

    /// One byte of the batch goes bad that a node's entry lies in.
    fn strike(&mut self, id: u64, index: u64) {
        let disk = self.run.checkers.disk(id).unwrap();
        let batch = disk.log(0).entry(index).expect("it is there").batch;
        let place = *disk.places().iter().find(|place| place.lsn == batch).unwrap();
        assert!(place.plain && disk.is_proven(&place), "a tail would be another matter");
        let (path, base) = rot::file(&self.run.world, id, batch).unwrap();
        assert!(self.run.world.flip(id, path, batch - base + 128 + 64));
        self.run.atlas.note(id, batch);
    }

    /// Everything is well in the end, as after any other run.
    fn end(mut self) {
        self.run.settle_down().unwrap();
        assert!(!self.run.undecided);
        self.run.progress().unwrap();
        self.run.heal().unwrap();
        self.run.converge().unwrap();
        self.run.stop_all().unwrap();
        self.run.checkers.finish(&self.run.lost).unwrap();
    }
}

/// Two followers of `leader`.
fn followers(leader: u64) -> (u64, u64) {
    let mut others = [1, 2, 3].into_iter().filter(|id| *id != leader);
    (others.next().unwrap(), others.next().unwrap())
}

#[test]
fn a_tail_that_nobody_else_has_is_cut_when_all_others_deny_it() {
    let (mut stage, (timeout, before, old, one, other, lost)) = Stage::such_that(11..31, |stage| {
        let timeout = u64::try_from(stage.run.profile.election_timeout.as_millis()).unwrap();
        let old = stage.leader();
        let (one, other) = followers(old);
        let before = stage.replica(old).generation();
        stage.cut(&[(old, one), (old, other), (one, other)]);
        stage.run_for(timeout / 2);
        let lost = stage.lose_tail(old)?;
        assert_eq!(lost.generation, before);
        stage.crash(other);
        // The other one gives up the channel: what the dead process had sent would arrive when the cut heals.
        stage.run_for(20 * timeout);
        stage.run.boot(old).unwrap();
        // A write that was under way may have left another one that cannot be told from damage; and nobody else has what was lost.
        let alone = [one, other]
            .iter()
            .all(|id| Index(stage.run.checkers.disk(*id).unwrap().log(0).last()) < lost.index);
        (alone && stage.replica(old).last() == lost).then_some((timeout, before, old, one, other, lost))
    });

    // It meets one of the others, which elects it and denies what it lost. That is not enough.
    stage.heal(&[(old, one)]);
    assert!(stage.until(8 * timeout, |stage| stage.replica(old).is_deciding()), "it is elected");
    stage.run_for(8 * timeout);
    let alone = |said: &&Said| {
        said.from == one
            && matches!(said.repair, Repair::Missing { damaged: false, promised, .. } if promised > before)
    };
    assert!(stage.said.iter().any(|said| alone(&said)), "{:?}", stage.said);
    assert!(stage.replica(old).damaged_entries() > 0 && !stage.replica(old).is_leader());
    assert_eq!(stage.replica(old).last(), lost);
    assert_eq!(stage.run.checkers.decided(), (0, 0));

    // The second one comes back, and reaches only it: only it can be elected.
    stage.run.boot(other).unwrap();
    stage.heal(&[(old, other)]);
    stage.said.clear();
    assert!(stage.until(20 * timeout, |stage| stage.run.checkers.decided().0 > 0), "{:?}", stage.said);
    let generation = stage.replica(old).generation();
    assert!(stage.replica(old).is_leader(), "its log is whole with that");
    assert_eq!(stage.replica(old).damaged_entries(), 0);
    assert_ne!(stage.replica(old).generation_at(lost.index), Some(lost.generation));
    // Both were asked in one turn, and both have denied in the generation that it was elected for.
    let asked: Vec<(u64, u64)> = stage
        .said
        .iter()
        .filter(|said| said.from == old && matches!(said.repair, Repair::Fetch { .. }))
        .map(|said| (said.turn, said.to))
        .collect();
    let last = asked.last().expect("it has asked").0;
    let mut together: Vec<u64> = asked.iter().filter(|(turn, _)| *turn == last).map(|(_, to)| *to).collect();
    together.sort_unstable();
    assert_eq!(together, [one, other], "{asked:?}");
    let denies = |by: u64| {
        stage.said.iter().any(|said| {
            said.from == by && matches!(said.repair, Repair::Missing { damaged: false, promised, .. } if promised == generation)
        })
    };
    assert!(denies(one) && denies(other), "{:?}", stage.said);
    stage.heal(&[(one, other)]);
    stage.end();
}

#[test]
fn a_committed_tail_waits_for_whoever_has_it() {
    let (mut stage, (timeout, old, with, without, lost)) = Stage::such_that(12..32, |stage| {
        let timeout = u64::try_from(stage.run.profile.election_timeout.as_millis()).unwrap();
        let old = stage.leader();
        let (without, with) = followers(old);
        stage.cut(&[(old, without), (with, without)]);
        stage.run_for(timeout / 2);
        let lost = stage.lose_tail(old)?;
        stage.run_for(20);
        stage.crash(with);
        let has = lost.index <= Index(stage.run.checkers.disk(with).unwrap().log(0).last());
        stage.run.boot(old).unwrap();
        // The other one has what the leader lost, and a write that was under way left nothing behind.
        (has && stage.replica(old).last() == lost).then_some((timeout, old, with, without, lost))
    });

    // Elected, it asks; the one that it meets denies, again and again.
    stage.heal(&[(old, without)]);
    assert!(stage.until(8 * timeout, |stage| stage.replica(old).is_deciding()), "it is elected");
    stage.run_for(20 * timeout);
    assert!(stage.said.iter().any(|said| said.from == without && matches!(said.repair, Repair::Missing { damaged: false, .. })));
    assert_eq!((stage.replica(old).last(), stage.replica(old).is_leader()), (lost, false));

    stage.run.boot(with).unwrap();
    stage.heal(&[(old, with)]);
    let whole = |stage: &Stage| stage.replica(old).damaged_entries() == 0;
    assert!(stage.until(20 * timeout, whole), "{:?}", stage.said);
    assert_eq!(stage.replica(old).generation_at(lost.index), Some(lost.generation));
    assert_eq!(stage.run.checkers.decided().0, 0, "nothing was cut");
    stage.heal(&[(with, without)]);
    stage.end();
}

#[test]
fn what_nobody_keeps_holds_up_no_other_range() {
    // An entry that goes bad everywhere, and two later ones on one node only. The first record of a batch is struck: it must be that one
    // on every node.
    let begins = |stage: &Stage, id: u64, index: u64| {
        let log = stage.run.checkers.disk(id).unwrap().log(0);
        log.entry(index).map(|e| e.batch) != log.entry(index - 1).map(|e| e.batch)
    };
    let (mut stage, (committed, gone)) = Stage::such_that(13..33, |stage| {
        let committed = stage.run.checkers.commits();
        let mut indexes = (committed / 4..committed / 2).filter(|_| committed > 300);
        let gone = indexes.find(|index| {
            [1, 2, 3].iter().all(|id| begins(stage, *id, *index) && stage.is_plain(*id, *index))
        });
        let gone =
            gone.filter(|_| [committed / 2, committed * 3 / 4].iter().all(|at| stage.is_plain(1, *at)));
        gone.map(|gone| (committed, gone))
    });
    for id in [1, 2, 3] {
        stage.strike(id, gone);
    }
    stage.strike(1, committed / 2);
    stage.strike(1, committed * 3 / 4);
    let lost = |stage: &Stage, index| {
        [1, 2, 3].iter().all(|id| stage.replica(*id).damaged_from(Index(index)) == Some(Index(index)))
    };
    let found = |stage: &Stage| lost(stage, gone);
    assert!(stage.until(60_000, found), "scrubbing finds it on every node");
    stage.run_for(60_000);
    let left = stage.run.cluster.every_damaged(1);
    assert!(
        left.iter().all(|(_, _, index)| lost(&stage, *index)),
        "{gone} is lost, and of {left:?} others have some"
    );
    assert!(stage.said.iter().any(|said| said.to == 1 && matches!(said.repair, Repair::Fetched { .. })));
    stage.end();
}

/// No entry of the traffic is as late as the expiry that is told: the leader has to make one, or the next leader, whose clock may be behind,
/// takes what was refused.
#[test]
fn a_session_that_expires_while_nothing_is_appended_is_proven_expired() {
    let mut stage = Stage::with(14, |profile| {
        profile.session_expiry = std::time::Duration::from_millis(400);
        profile.rivals = false;
    });
    let counts = |stage: &Stage| (stage.run.workload.used_after_lulls(), stage.run.workload.refusals()[0]);
    let seen = stage.until(60_000, |stage| counts(stage).0 >= 5 && counts(stage).1 >= 5);
    assert!(seen, "sessions used first after a lull, told that they expired: {:?}", counts(&stage));
    stage.end();
}
