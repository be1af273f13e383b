//! What must hold of one node whatever the others say: the rules while a member lies.
//!
//! A member that lies can vote twice, confirm what it does not have and lead by votes that nobody gave. So nothing that takes two nodes can be asked:
//! not one leader in a generation, not one history, not that what a client was told stays. What a node does not owe to anybody's honesty stays true:
//! what it holds at or below its own high-water mark does not change (invariant 8), its marks are in order and do not go back (2), and it applies in order (5). What its disk must
//! have before it speaks, what it keeps, and its bounds are judged beside this, as in any run.
//!
//! A log that is opened again begins with its durable hint of the mark: what was above that may be replaced then.

use super::disk::Disk;
use super::durable_log::DurableLog;
use super::kept::whole;
use super::violation::{Verdict, broken, ensure};
use std::collections::BTreeMap;
use tidelog_consensus::Replica;
use tidelog_sim::World;
use tidelog_types::{Index, Position};

/// Stands for bytes that are lost here and were never known to be durable.
const LOST: u64 = 0;

/// A replica, as its node had it.
#[derive(Debug, Default)]
struct Own {
    life: (u64, u64),
    high_water: u64,
    low_water: u64,
    snapshot: Position,
    log_start: Index,
    /// Mark, last batch and epoch at the last look.
    looked: (u64, u64, u64),
    /// The generation and the hash of each entry at or below the mark, as far as the disk has it, from the first one on.
    fixed: Vec<(u64, u64)>,
}

/// All honest nodes, each by itself.
#[derive(Debug, Default)]
pub(crate) struct Alone {
    own: BTreeMap<(u64, u64), Own>,
    /// Entries at or below a node's own mark that were compared with what they had been.
    pub(crate) compared: u64,
}

fn entry(log: &DurableLog, index: u64) -> Option<(u64, u64)> {
    log.entry(index).map(|entry| (entry.generation, entry.hash))
}

impl Alone {
    /// What a replica says of itself after a turn, and what its disk has.
    pub(crate) fn observe(
        &mut self,
        world: &World,
        (node, life): (u64, (u64, u64)),
        partition: u64,
        replica: &Replica,
        disk: &Disk,
    ) -> Verdict {
        let here = || format!("node {node} partition {partition}, beside a member that lies");
        let (marks, log) = (replica.marks(), disk.log(partition));
        let own = self.own.entry((node, partition)).or_default();
        let in_order = marks.low_water.0 <= marks.high_water.0 + 1
            && marks.high_water <= marks.last
            && marks.durable <= marks.last;
        ensure(2, in_order, || format!("{}: marks {marks:?}", here()))?;
        ensure(2, marks.low_water.0 >= own.low_water, || {
            format!("{}: low-water mark went from {} to {}", here(), own.low_water, marks.low_water)
        })?;
        let snapshot = replica.snapshot();
        ensure(10, snapshot >= own.snapshot, || {
            format!("{}: its snapshot went from {:?} to {snapshot:?}", here(), own.snapshot)
        })?;
        if snapshot > own.snapshot {
            whole(world, node, partition, snapshot)
                .or_else(|why| broken(10, format!("{}: its snapshot of {snapshot:?}: {why}", here())))?;
        }
        own.log_start = own.log_start.max(replica.log_start());
        let covered = snapshot.index.next().max(own.log_start);
        ensure(10, marks.low_water <= covered, || {
            format!("{}: it keeps entries from {} on, {covered} is covered", here(), marks.low_water)
        })?;
        (own.low_water, own.snapshot) = (marks.low_water.0, snapshot);
        let mark = marks.high_water.0;
        if own.life != life {
            // Its mark begins anew, with what its disk had of it.
            own.life = life;
            own.fixed.truncate(usize::try_from(mark).unwrap_or(usize::MAX));
            own.high_water = 0;
        }
        ensure(2, mark >= own.high_water, || {
            format!("{}: high-water mark went from {} to {mark}", here(), own.high_water)
        })?;
        own.high_water = mark;
        // Nothing changes where nothing was written.
        let looked = (mark, disk.last_batch(), disk.epoch());
        if std::mem::replace(&mut own.looked, looked) == looked {
            return Ok(());
        }
        let mut changed = None;
        for (index, was) in (1..).zip(&mut own.fixed) {
            let now = entry(log, index);
            let same =
                now.is_some_and(|now| now.0 == was.0 && (now.1 == was.1 || now.1 == LOST || was.1 == LOST));
            if !same {
                changed = Some((index, *was, now));
                break;
            }
            if let Some((_, hash)) = now.filter(|_| was.1 == LOST) {
                was.1 = hash;
            }
        }
        self.compared += own.fixed.len() as u64;
        if let Some((index, was, now)) = changed {
            return broken(
                8,
                format!(
                    "{}: entry {index} lies at or below its own high-water mark, and changed: (generation, hash) {was:?} became {now:?}",
                    here()
                ),
            );
        }
        let mut next = own.fixed.len() as u64 + 1;
        // What it takes for durable its disk has; what it still writes may stand in another entry's place there.
        let known = mark.min(marks.durable.0);
        while next <= known
            && let Some(found) = entry(log, next)
        {
            let believed = replica.generation_at(Index(next)).map_or(found.0, |generation| generation.0);
            ensure(5, believed == found.0, || {
                format!(
                    "{}: it takes entry {next} of generation {believed} for committed, its disk has one of {}",
                    here(),
                    found.0
                )
            })?;
            own.fixed.push(found);
            next += 1;
        }
        Ok(())
    }
}

/// Whether a log holds what another replica has committed, by names.
pub(crate) fn holds(log: &DurableLog, of: &DurableLog, mark: u64) -> bool {
    mark <= log.last() && (1..=mark).all(|index| log.generation_at(index) == of.generation_at(index))
}
