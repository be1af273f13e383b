//! The replicas of a shard, and when each is wanted.
//!
//! A turn visits few of what may be thousands. So whatever is asked for each visit is found by the partition's number in
//! lists that are dense, and what is ordered (the ticks) changes only when a replica wants its tick earlier than it is queued
//! for. Promises nothing about the order in which touched replicas are visited but that it follows from the inputs.

use crate::partition::Partition;
use std::collections::BTreeSet;
use tidelog_types::limits::PARTITIONS_MAX;
use tidelog_types::{Monotonic, PartitionId};

/// Replicas by partition. Partitions are numbered densely from 0; those that live elsewhere leave a gap.
#[derive(Default)]
pub(crate) struct Partitions {
    slots: Vec<Option<Box<Partition>>>,
}

impl Partitions {
    pub(crate) fn insert(&mut self, id: PartitionId, partition: Partition) {
        let at = slot(id).expect("the configuration's partitions are checked against the limit");
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.slots.get_mut(at) {
            *slot = Some(Box::new(partition));
        }
    }

    pub(crate) fn get(&self, id: PartitionId) -> Option<&Partition> {
        self.slots.get(slot(id)?)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: PartitionId) -> Option<&mut Partition> {
        self.slots.get_mut(slot(id)?)?.as_deref_mut()
    }

    /// Whether they are more than stay in the processor's nearest caches.
    pub(crate) fn are_many(&self) -> bool {
        self.slots.len() >= MANY
    }

    /// Reads what a visit of these touches, all of them before the first visit: their misses in the processor's caches, which a
    /// visit would take one after the other, then overlap. `also` reads what else a visit touches.
    pub(crate) fn warm(&self, ids: impl Iterator<Item = PartitionId>, also: impl Fn(PartitionId) -> u64) {
        if !self.are_many() {
            return;
        }
        let read = |id| self.get(id).map_or(0, Partition::warm).wrapping_add(also(id));
        core::hint::black_box(ids.map(read).fold(0, u64::wrapping_add));
    }

    /// All of them, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartitionId, &Partition)> {
        let numbered = self.slots.iter().enumerate();
        numbered.filter_map(|(at, slot)| Some((PartitionId(at as u64), slot.as_deref()?)))
    }

    /// The same, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Partition> {
        self.slots.iter_mut().filter_map(Option::as_deref_mut)
    }

    pub(crate) fn into_iter(self) -> impl Iterator<Item = (PartitionId, Partition)> {
        let numbered = self.slots.into_iter().enumerate();
        numbered.filter_map(|(at, slot)| Some((PartitionId(at as u64), *slot?)))
    }
}

/// As many replicas are read ahead of their visits: enough for their misses to overlap, few enough to stay in the nearest caches
/// until then.
pub(crate) const AHEAD: usize = 16;

/// So many replicas stay in a core's own caches (some 3 KiB each).
const MANY: usize = 256;

/// Where a list by number has it. None: no cluster has such a partition, and no number asks for memory.
fn slot(id: PartitionId) -> Option<usize> {
    (id.0 < PARTITIONS_MAX).then_some(id.0 as usize)
}

/// The place of `id` in a list by number, which is made long enough.
fn place<T: Clone>(list: &mut Vec<T>, id: PartitionId, none: &T) -> Option<usize> {
    let at = slot(id)?;
    if list.len() <= at {
        list.resize(at + 1, none.clone());
    }
    Some(at)
}

/// Visits to come, one replica after the other, so that what they touch is read ahead of them.
#[derive(Debug, Default)]
pub(crate) struct Visits {
    /// Nothing where replicas are few.
    ids: Vec<PartitionId>,
    visited: usize,
}

impl Visits {
    /// To these, in this order.
    pub(crate) fn begin(&mut self, partitions: &Partitions, ids: impl Iterator<Item = PartitionId>) {
        self.visited = 0;
        self.ids.clear();
        if partitions.are_many() {
            self.ids.extend(ids);
        }
    }

    /// The next of them follows. `also` reads what else it touches.
    pub(crate) fn next(&mut self, partitions: &Partitions, also: impl Fn(PartitionId) -> u64) {
        if self.visited.is_multiple_of(AHEAD) && self.visited < self.ids.len() {
            partitions.warm(self.ids.iter().skip(self.visited).take(AHEAD).copied(), also);
        }
        self.visited += 1;
    }
}

/// Partitions to be visited, each once, in the order in which they were put in.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    list: Vec<PartitionId>,
    /// By partition: whether it is in the list.
    marked: Vec<bool>,
}

impl Touched {
    pub(crate) fn insert(&mut self, id: PartitionId) {
        if let Some(at) = place(&mut self.marked, id, &false)
            && let Some(marked) = self.marked.get_mut(at)
            && !core::mem::replace(marked, true)
        {
            self.list.push(id);
        }
    }

    /// Hands out the list, in `emptied`'s place; what is put in from here on is visited the next time.
    pub(crate) fn take(&mut self, mut emptied: Vec<PartitionId>) -> Vec<PartitionId> {
        emptied.clear();
        core::mem::swap(&mut self.list, &mut emptied);
        for id in &emptied {
            if let Some(marked) = slot(*id).and_then(|at| self.marked.get_mut(at)) {
                *marked = false;
            }
        }
        emptied
    }
}

/// When each replica wants its tick.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    queue: BTreeSet<(Monotonic, PartitionId)>,
    /// By partition: when it is queued for, at or before it wants it.
    at: Vec<Monotonic>,
}

/// Not queued.
const NEVER: Monotonic = Monotonic(u64::MAX);

impl Ticks {
    /// The replica wants its tick at `at`. That it wants it later than it did before is seen when that time has come.
    pub(crate) fn want(&mut self, id: PartitionId, at: Monotonic) {
        if let Some(index) = place(&mut self.at, id, &NEVER)
            && let Some(queued) = self.at.get_mut(index)
            && at < *queued
        {
            if *queued < NEVER {
                self.queue.remove(&(*queued, id));
            }
            *queued = at;
            self.queue.insert((at, id));
        }
    }

    /// When the first may be wanted.
    pub(crate) fn next(&self) -> Option<Monotonic> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// A replica whose time may have come: its own deadline says whether it has, and when to queue it again.
    pub(crate) fn pop(&mut self, now: Monotonic) -> Option<PartitionId> {
        let (_, id) = self.queue.first().copied().filter(|(at, _)| *at <= now)?;
        self.queue.pop_first();
        if let Some(queued) = slot(id).and_then(|at| self.at.get_mut(at)) {
            *queued = NEVER;
        }
        Some(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: [PartitionId; 3] = [PartitionId(0), PartitionId(7), PartitionId(2)];

    #[test]
    fn each_is_visited_once_in_the_order_of_the_inputs() {
        let mut touched = Touched::default();
        [P[1], P[0], P[1], P[2], P[0]].into_iter().for_each(|id| touched.insert(id));
        let list = touched.take(Vec::new());
        assert_eq!(list, [P[1], P[0], P[2]]);
        touched.insert(P[1]);
        assert_eq!(touched.take(list), [P[1]]);
        assert_eq!(touched.take(Vec::new()), []);
        touched.insert(PartitionId(u64::MAX));
        assert_eq!(touched.take(Vec::new()), [], "there is none of this number");
    }

    #[test]
    fn a_tick_comes_at_the_earliest_time_that_was_wanted() {
        let mut ticks = Ticks::default();
        ticks.want(P[1], Monotonic(50));
        ticks.want(P[1], Monotonic(70)); // seen at 50
        ticks.want(P[2], Monotonic(60));
        ticks.want(P[2], Monotonic(40));
        ticks.want(P[0], NEVER);
        assert_eq!(ticks.next(), Some(Monotonic(40)));
        assert_eq!(ticks.pop(Monotonic(39)), None);
        assert_eq!((ticks.pop(Monotonic(50)), ticks.pop(Monotonic(50))), (Some(P[2]), Some(P[1])));
        assert_eq!((ticks.pop(Monotonic(100)), ticks.next()), (None, None), "each is queued once");
        ticks.want(P[1], Monotonic(70));
        assert_eq!(ticks.pop(Monotonic(70)), Some(P[1]));
    }
}
