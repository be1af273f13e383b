//! The last act of some runs: one node's place is taken by a member that lies, and the others must outlive it.
//!
//! Everything that takes honest members is judged before. From then on each of the other nodes is judged by itself (`checkers/alone.rs`): what it holds at or below its own
//! high-water mark does not change, its process does not end, its memory stays in its bounds, also over restarts while the liar acts. When it stops, its place is taken by a node with an empty disk or by nobody, and the
//! others must acknowledge new appends again (invariant 18): within ten election time-outs and as long as it has acted, since generations that it drove apart meet at the pace at which they went.
//!
//! What a lying member can do that no other node can undo is not held against them: it can make nodes commit different entries, or let go what another one lacks, and then those wait for
//! people; and a leader's word that a node lost what it had confirmed bars that node until people lift it, which this does as they would. Both are counted.

use super::{BOOT, Run, SECOND, identity};
use crate::checkers::{Verdict, ensure};
use crate::hostile::{Hostile, Told};
use std::path::Path;
use tidelog_sim::Random;
use tidelog_types::PartitionId;

/// For how long it acts.
const ACTS_NS: (u64, u64) = (2 * SECOND, 10 * SECOND);
/// How long a node is down that is restarted meanwhile.
const DOWN_NS: (u64, u64) = (SECOND / 50, SECOND);
/// Honest nodes are restarted so often meanwhile, at most.
const RESTARTS_MAX: u64 = 3;

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outlived {
    told: Told,
    /// Runs that had one.
    pub(super) runs: u64,
    /// Partitions that acknowledged appends again.
    again: u64,
    /// Partitions whose nodes it made contradict each other, or lack what another one has let go.
    split: u64,
    /// Nodes that it made believe that they lost what they confirmed.
    barred: u64,
    /// Nodes restarted meanwhile.
    restarts: u64,
    /// It was followed by an empty disk.
    empty: u64,
    compared: u64,
}

impl Outlived {
    pub(super) fn counts(&self) -> [(&'static str, u64); 8] {
        [
            ("liar: a member lies", self.runs),
            ("liar: channels", self.told.channels),
            ("liar: partitions that went on", self.again),
            ("liar: partitions that it divided", self.split),
            ("liar: nodes that it barred", self.barred),
            ("liar: nodes restarted", self.restarts),
            ("liar: replaced by an empty disk", self.empty),
            ("liar: committed entries compared", self.compared),
        ]
    }
}

impl Run {
    pub(super) fn outlive_a_liar(&mut self) -> Verdict {
        if !self.profile.liar || !self.lost.is_empty() {
            return Ok(());
        }
        let partition = self.random.below(self.profile.partitions);
        let leader = self.checkers.leader(partition).filter(|_| self.random.coin());
        let Some(liar) = leader.or_else(|| self.random.pick(&self.profile.nodes).copied()) else {
            return Ok(());
        };
        let hello = self.cluster.hello(liar, &self.world);
        let Some(hello) = hello.filter(|hello| hello.formed.is_some()) else { return Ok(()) };
        self.world.kill(liar);
        self.cluster.bury(liar);
        self.checkers.history_is_there()?;
        self.checkers.alone(liar);
        let others = self.profile.addresses(&self.world).into_iter();
        let others = others.filter(|(node, _)| node.0 != liar).map(|(node, at)| (node.0, at)).collect();
        let random = Random::new(self.random.bits());
        self.outlived.runs = 1;
        self.hostile = Some(Hostile::new(&self.world, liar, hello, others, random));
        let began = self.world.now();
        self.let_it_act(liar)?;
        let acted = self.world.now() - began;
        self.end_it(liar)?;
        self.go_on(acted)
    }

    /// It acts for a while, and some of the others are restarted meanwhile.
    fn let_it_act(&mut self, liar: u64) -> Verdict {
        let until = self.world.now() + self.random.between(ACTS_NS);
        let restarts = self.random.below(RESTARTS_MAX + 1);
        for _ in 0..restarts {
            let now = self.world.now();
            let at = now + self.random.between((0, (until.saturating_sub(now)) / 2));
            self.until(at, |_| false)?;
            let up: Vec<u64> = self.cluster.up().into_iter().filter(|id| *id != liar).collect();
            let Some(id) = self.random.pick(&up).copied() else { continue };
            let power_lost = self.random.coin();
            self.end(id, power_lost);
            self.outlived.restarts += 1;
            let down = self.random.between(DOWN_NS);
            self.world.alarm(self.world.now() + down, BOOT + id);
        }
        self.until(until, |_| false)?;
        Ok(())
    }

    /// It is gone: nobody comes in its place, or an empty disk.
    fn end_it(&mut self, liar: u64) -> Verdict {
        if let Some(hostile) = self.hostile.take() {
            self.outlived.told = hostile.told;
        }
        self.world.kill(liar);
        // Whoever is down comes back, or is back already.
        self.until(self.world.now() + DOWN_NS.1 + 1, |_| false)?;
        for id in self.profile.nodes.clone() {
            let is_barred = identity::identity(self, id).is_some_and(|identity| identity.barred.is_some());
            if id == liar || !is_barred {
                continue;
            }
            self.outlived.barred += 1;
            self.world.kill(id);
            self.cluster.bury(id);
            self.checkers.read_disk(id)?;
            let mut io = self.world.node(id);
            let lifted = tidelog::adoption::adopt(&mut io, Path::new("/data/node"), true, true);
            drop(io);
            self.world.kill(id);
            ensure(20, lifted.is_ok(), || format!("node {id} was barred by a member that lies: {lifted:?}"))?;
            self.boot(id)?;
        }
        if self.random.coin() {
            self.outlived.empty = 1;
            let own = self.world.disk_image(liar);
            self.world.wipe(liar);
            self.impostors.insert(liar, identity::Impostor::Wiped(own));
            self.boot(liar)?;
        }
        Ok(())
    }

    /// The others acknowledge new appends in every partition, if the replicas of each can agree. If those of one cannot, its clients' appends are
    /// never answered and hold memory that others wait for: then a leader comes back for each of the others.
    fn go_on(&mut self, acted: u64) -> Verdict {
        // What is under way comes to its end first.
        self.until(self.world.now() + SECOND, |_| false)?;
        let goal: Vec<Option<u64>> = (0..)
            .zip(self.workload.acked())
            .map(|(partition, acked)| self.can_agree(partition).then_some(acked + 3))
            .collect();
        self.outlived.again = goal.iter().flatten().count() as u64;
        self.outlived.split = goal.len() as u64 - self.outlived.again;
        let patience = u64::try_from(self.cluster.patience().as_nanos()).unwrap_or(SECOND);
        let limit = self.world.now() + patience + 10 * SECOND + acted;
        let wanted = goal.clone();
        let split = self.outlived.split > 0;
        let reached = move |run: &mut Run| {
            (0..).zip(run.workload.acked().iter().zip(&wanted)).all(|(partition, (now, goal))| match goal {
                Some(_) if split => run.is_led(partition),
                Some(goal) => now >= goal,
                None => true,
            })
        };
        let done = self.until(limit, reached)?;
        ensure(18, done, || {
            format!(
                "a member that lied is gone, and the others do not go on: acknowledged by partition {:?}, asked for {goal:?}",
                self.workload.acked()
            )
        })?;
        self.outlived.compared = self.checkers.compared();
        self.lost = self.atlas.unhealed(&self.checkers);
        self.lost.extend(self.cluster.every_damaged(self.profile.partitions));
        Ok(())
    }

    fn is_led(&self, partition: u64) -> bool {
        let leads = |id: u64| self.cluster.replica(id, PartitionId(partition)).is_some_and(|r| r.is_leader());
        self.cluster.up().into_iter().any(leads)
    }

    /// Whether whoever may be elected of a partition's replicas holds what each of the others has committed, and can bring it on.
    fn can_agree(&self, partition: u64) -> bool {
        let id = PartitionId(partition);
        let here: Vec<_> = self
            .cluster
            .up()
            .into_iter()
            .filter_map(|node| {
                Some((self.cluster.replica(node, id)?, self.checkers.disk(node)?.log(partition)))
            })
            .collect();
        let end = |log: &crate::checkers::DurableLog| (log.generation_at(log.last()), log.last());
        here.iter().all(|(_, best)| {
            here.iter().filter(|(_, log)| end(log) <= end(best)).all(|(replica, log)| {
                let fed = best.low_water <= log.last() + 1;
                fed && crate::checkers::holds(best, log, replica.marks().high_water.0)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Schedule;
    use crate::profile::Profile;
    use tidelog_sim::World;

    fn quiet(seed: u64, change: impl FnOnce(&mut Profile)) -> Run {
        let mut random = Random::new(seed);
        let mut profile = Profile::plain(&mut random);
        change(&mut profile);
        let mut run = Run::new(World::new(seed), profile, Schedule::none(), random);
        for id in run.profile.nodes.clone() {
            run.boot(id).unwrap();
        }
        run.workload.start();
        run.until(2 * SECOND, |_| false).unwrap();
        run.settle_down().unwrap();
        run
    }

    #[test]
    fn the_others_outlive_a_member_that_lies() {
        let (mut channels, mut frames, mut again) = (0, 0, 0);
        for seed in 41..44 {
            let mut run = quiet(seed, |profile| profile.liar = true);
            run.outlive_a_liar().unwrap();
            run.stop_all().unwrap();
            run.checkers.finish(&run.lost).unwrap();
            assert!(run.outlived.compared > 0);
            channels += run.outlived.told.channels;
            frames += run.outlived.told.frames;
            again += run.outlived.again;
        }
        assert!(channels > 5 && frames > 500 && again > 0, "{channels} {frames} {again}");
    }

    /// A node without a replica of the partition used to name the first one of its replicas for ever, and clients that knew it went back and
    /// forth between the two.
    #[test]
    fn a_node_that_is_down_is_named_to_no_client() {
        let mut run = quiet(45, |profile| {
            profile.nodes = vec![1, 2, 3, 4, 5];
            profile.partitions = 4;
        });
        // Each node in turn is down for as long as it takes, and holds the first replica of some partition.
        for down in 1..=5 {
            run.world.kill(down);
            run.cluster.bury(down);
            run.until(run.world.now() + SECOND, |_| false).unwrap();
            run.progress().unwrap();
            run.boot(down).unwrap();
            run.until(run.world.now() + 2 * SECOND, |_| false).unwrap();
        }
    }
}
