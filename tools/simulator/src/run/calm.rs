//! The calm: everything comes back, is whole, and the same everywhere.
//!
//! What a run proves in the end (invariant 18): a leader soon, new appends, damage found and repaired, replicas that are equal,
//! clean stops. Each within a bound of simulated time.

use super::{Run, SECOND};
use crate::checkers::{Verdict, broken, ensure};
use std::time::Duration;

/// Longest a clean stop may take: what is in flight drains for a bounded time.
const STOP_MAX: Duration = Duration::from_secs(8);
/// Longest that a node may still be opening its log when faults end.
const OPENING_MAX_NS: u64 = 600 * SECOND;
/// Longest that damage may go unrepaired once everything works, known or not: time to look for it, and to fetch it.
const HEAL_MAX_NS: u64 = 120 * SECOND;
/// Longest that a log may take to come to its size: its segments are let go as traffic goes on.
const SHRINK_MAX_NS: u64 = 60 * SECOND;
/// For how long it is looked on then, and by how many segments it may be longer for a moment.
const STAYS_NS: u64 = 5 * SECOND;
const STAYS_MORE: u64 = 3;
/// How often it is looked whether everything is whole.
const HEAL_LOOK_NS: u64 = SECOND / 4;

impl Run {
    /// Heals everything; every node comes back, and soon every partition has a leader (invariant 18).
    pub(super) fn settle_down(&mut self) -> Verdict {
        self.calm = true;
        self.workload.end_lulls();
        self.world.calm();
        for id in self.profile.nodes.clone() {
            self.put_own_disk_back(id);
        }
        for id in self.profile.nodes.clone() {
            self.boot(id)?;
        }
        // A node that was opening its log on a slow disk comes when it is done.
        self.turned.clear();
        let limit = self.world.now() + OPENING_MAX_NS;
        let nodes = self.profile.nodes.len();
        let back = self.until(limit, move |run| run.turned.len() == nodes)?;
        ensure(18, back, || format!("only nodes {:?} came back", self.turned))?;
        // Operations that stood still when the faults ended are a disk that is not healed yet.
        self.until(self.world.now() + self.schedule.stall_max_ns(), |_| false)?;
        let patience = u64::try_from(self.cluster.patience().as_nanos()).unwrap_or(SECOND);
        let limit = self.world.now() + patience;
        let led = self.until(limit, |run| run.checkers.led(run.cluster.nodes.values()).is_ok())?;
        match self.checkers.led(self.cluster.nodes.values()) {
            Err(_) if !led && self.cluster.waits_rightly(self.profile.partitions) => {
                self.undecided = true;
                Ok(())
            }
            Err(why) if !led => {
                broken(18, format!("ten election time-outs after everything was healed: {why}"))
            }
            _ => Ok(()),
        }
    }

    /// New appends are acknowledged in every partition.
    pub(super) fn progress(&mut self) -> Verdict {
        let goal: Vec<u64> = self.workload.acked().iter().map(|acked| acked + 3).collect();
        let patience = u64::try_from(self.cluster.patience().as_nanos()).unwrap_or(SECOND);
        let limit = self.world.now() + patience + 10 * SECOND;
        let reached =
            move |run: &mut Run| run.workload.acked().iter().zip(&goal).all(|(now, goal)| now >= goal);
        let done = self.until(limit, reached)?;
        ensure(18, done, || {
            format!("no progress after healing: acknowledged by partition {:?}", self.workload.acked())
        })
    }

    /// Everything that is damaged is found and whole again, whether anybody reads it or not. And nothing is taken for
    /// damaged that is not.
    pub(super) fn heal(&mut self) -> Verdict {
        let limit = self.world.now() + HEAL_MAX_NS;
        loop {
            let known = self.cluster.damaged(self.profile.partitions);
            let unhealed = self.atlas.unhealed(&self.checkers);
            let can_be_whole = |at: &(u64, u64, u64)| self.cluster.can_be_whole(at.0, at.1, at.2);
            let (hidden, lost): (Vec<_>, Vec<_>) = unhealed.into_iter().partition(can_be_whole);
            let checkpoints = self.atlas.bad_checkpoints(&self.checkers);
            let as_they_were = self.atlas.not_rewritten(&self.world, &self.checkers);
            if known.is_empty() && hidden.is_empty() && checkpoints.is_empty() && as_they_were.is_empty() {
                self.lost = lost;
                let known = self.cluster.every_damaged(self.profile.partitions);
                self.lost.extend(known.into_iter().filter(|at| !can_be_whole(at)));
                break;
            }
            if self.world.now() >= limit {
                let lacking: Vec<_> = hidden.iter().take(8).map(|lack| self.describe_lack(*lack)).collect();
                return broken(
                    18,
                    format!(
                        "(node, partition, damaged entries) {known:?} are known and not repaired; {} entries lie in bad places: {lacking:?}; \
                         bad checkpoints (node, position) {checkpoints:?} are still named; {as_they_were:?} are not written again",
                        hidden.len()
                    ),
                );
            }
            self.until(self.world.now() + HEAL_LOOK_NS, |_| false)?;
        }
        if self.atlas.is_untouched() && self.read_errors() == 0 {
            let found = self.cluster.scrub_findings();
            ensure(8, found.is_empty(), || format!("damage was found where none was done: {found:?}"))?;
        }
        Ok(())
    }

    /// Under load, each node's log comes to take little more space than what its replicas keep, and stays so (invariant 25).
    pub(super) fn stay_small(&mut self) -> Verdict {
        let limit = self.world.now() + SHRINK_MAX_NS;
        loop {
            match self.checkers.small(0) {
                Ok(()) => break,
                Err(why) if self.world.now() >= limit => return broken(25, why),
                Err(_) => _ = self.until(self.world.now() + HEAL_LOOK_NS, |_| false)?,
            }
        }
        let limit = self.world.now() + STAYS_NS;
        while self.world.now() < limit {
            self.until(self.world.now() + HEAL_LOOK_NS, |_| false)?;
            self.checkers
                .small(STAYS_MORE)
                .or_else(|why| broken(25, format!("it was less a moment ago: {why}")))?;
        }
        Ok(())
    }

    /// An entry in a bad place, and who else has it.
    fn describe_lack(&self, (node, partition, index): (u64, u64, u64)) -> String {
        let wanted = self.checkers.disk(node).and_then(|disk| disk.log(partition).entry(index).copied());
        let others: Vec<_> = self
            .checkers
            .disks()
            .filter(|(other, _)| *other != node)
            .map(|(other, disk)| {
                let log = disk.log(partition);
                let same = log.entry(index).map(|e| e.generation) == wanted.map(|e| e.generation);
                let bad = log.entry(index).is_some_and(|e| self.atlas.is_bad(other, e.batch));
                format!("node {other}: low-water {}, same {same}, bad {bad}", log.low_water)
            })
            .collect();
        let own = self.cluster.describe_scrub(node, partition);
        format!("node {node} ({own}) partition {partition} index {index} at {wanted:?}, {others:?}")
    }

    /// Without new requests, all replicas become the same.
    pub(super) fn converge(&mut self) -> Verdict {
        self.workload.stop();
        let patience = u64::try_from(self.cluster.patience().as_nanos()).unwrap_or(SECOND);
        let limit = self.world.now() + patience + 30 * SECOND;
        let quiet = self.until(limit, |run| run.workload.is_idle() && run.cluster.embedders_idle())?;
        ensure(18, quiet, || "requests without an answer, though everything works".into())?;
        let limit = self.world.now() + patience;
        let same = self.until(limit, |run| run.checkers.converged(run.cluster.nodes.values()).is_ok())?;
        match self.checkers.converged(self.cluster.nodes.values()) {
            Err(why) if !same => broken(18, why),
            _ => Ok(()),
        }
    }

    /// Every node stops cleanly within its bound.
    pub(super) fn stop_all(&mut self) -> Verdict {
        self.closing = true;
        for id in self.cluster.up() {
            self.cluster.stop(id);
        }
        let limit = self.world.now() + u64::try_from(STOP_MAX.as_nanos()).unwrap_or(SECOND);
        let stopped = self.until(limit, |run| run.cluster.up().is_empty())?;
        ensure(18, stopped, || format!("nodes {:?} do not stop", self.cluster.up()))
    }
}
