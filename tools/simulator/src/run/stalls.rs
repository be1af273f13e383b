//! Stalls: one disk hangs or crawls while everything else is well, and acknowledgements go on.
//!
//! While faults are under way nobody can say from outside whether the other voters were steady, so this comes in the calm: all nodes are up, whole and connected.
//! Then the disk of one of them hangs for long, mostly of one that leads, and every partition must acknowledge new appends within a bound that is told in election time-outs, again and again
//! (invariant 18).

use super::{Run, SECOND};
use crate::checkers::{Verdict, ensure};
use crate::faults::Schedule;
use std::time::Duration;

/// Longest time without a new acknowledgement in a partition: the stall time-out, and so many election time-outs.
const ELECTION_TIMEOUTS: u32 = 10;
/// So many voters bear the loss of one.
const VOTERS_MIN: usize = 3;

impl Run {
    pub(super) fn outlive_stalls(&mut self) -> Verdict {
        // Entries that nobody has any more keep replicas from leading: another matter.
        if self.profile.replication < VOTERS_MIN || !self.lost.is_empty() {
            return Ok(());
        }
        let partition = self.random.below(self.profile.partitions);
        let leads = self.checkers.leader(partition).filter(|_| self.random.below(4) != 0);
        let Some(node) = leads.or_else(|| self.random.pick(&self.profile.nodes).copied()) else {
            return Ok(());
        };
        let long = Schedule::hang(&mut self.random);
        let crawls = self.random.below(4) == 0;
        if crawls {
            self.world.slow_disk(node, Schedule::crawl(&mut self.random));
        } else {
            self.world.hang_disk(node, long);
        }
        let until = self.world.now() + nanos(long);
        let gap = self.profile.stall_timeout() + self.profile.election_timeout_max() * ELECTION_TIMEOUTS;
        while self.world.now() < until {
            let before = self.workload.acked().to_vec();
            let began = self.world.now();
            let all = |run: &mut Run| run.workload.acked().iter().zip(&before).all(|(now, then)| now > then);
            let on = self.until(began + nanos(gap), all)?;
            ensure(18, on, || {
                format!(
                    "the disk of node {node} {}, all else is well, and in {} ms not every partition has acknowledged anything: {before:?}, then {:?}",
                    if crawls { "crawls" } else { "hangs" },
                    gap.as_millis(),
                    self.workload.acked()
                )
            })?;
        }
        self.stalls_outlived += 1;
        self.world.thaw_disk(node);
        self.world.slow_disk(node, 1);
        // What it lacks it is sent before anything else is judged.
        self.until(self.world.now() + 2 * nanos(gap) + SECOND, |_| false)?;
        Ok(())
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(SECOND)
}
