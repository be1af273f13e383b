//! The partitions' logs of a shard, by number.
//!
//! Partitions are numbered densely from 0, at most [`PARTITIONS_MAX`] of them, so a list finds each at once: with thousands of
//! them a search costs more than what is found is needed for. Numbers beyond that come from a disk that says so; they are kept
//! aside, so that no number can ask for memory.

use crate::lookup::PartitionLog;
use std::collections::BTreeMap;
use tidelog_types::PartitionId;
use tidelog_types::limits::PARTITIONS_MAX;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    dense: Vec<Option<Box<PartitionLog>>>,
    others: BTreeMap<PartitionId, PartitionLog>,
}

/// Its place in the list, if it has one there.
fn slot(id: PartitionId) -> Option<usize> {
    (id.0 < PARTITIONS_MAX).then_some(id.0 as usize)
}

impl Logs {
    pub(crate) fn get(&self, id: PartitionId) -> Option<&PartitionLog> {
        match slot(id) {
            Some(at) => self.dense.get(at)?.as_deref(),
            None => self.others.get(&id),
        }
    }

    pub(crate) fn get_mut(&mut self, id: PartitionId) -> Option<&mut PartitionLog> {
        match slot(id) {
            Some(at) => self.dense.get_mut(at)?.as_deref_mut(),
            None => self.others.get_mut(&id),
        }
    }

    /// The log of `id`, which begins now if there was none.
    pub(crate) fn of(&mut self, id: PartitionId) -> &mut PartitionLog {
        let Some(at) = slot(id) else { return self.others.entry(id).or_default() };
        if self.dense.len() <= at {
            self.dense.resize_with(at + 1, || None);
        }
        self.dense[at].get_or_insert_default()
    }

    pub(crate) fn insert(&mut self, id: PartitionId, log: PartitionLog) {
        *self.of(id) = log;
    }

    /// All of them, in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PartitionId, &PartitionLog)> {
        self.iter_from(PartitionId(0))
    }

    /// Those from number `first` on.
    pub(crate) fn iter_from(&self, first: PartitionId) -> impl Iterator<Item = (PartitionId, &PartitionLog)> {
        let from = slot(first).unwrap_or(self.dense.len());
        let numbered = self.dense.iter().enumerate().skip(from);
        let dense = numbered.filter_map(|(at, log)| Some((PartitionId(at as u64), log.as_deref()?)));
        dense.chain(self.others.range(first..).map(|(id, log)| (*id, log)))
    }

    /// The same, to be changed.
    pub(crate) fn iter_mut_from(
        &mut self,
        first: PartitionId,
    ) -> impl Iterator<Item = (PartitionId, &mut PartitionLog)> {
        let from = slot(first).unwrap_or(self.dense.len());
        let numbered = self.dense.iter_mut().enumerate().skip(from);
        let dense = numbered.filter_map(|(at, log)| Some((PartitionId(at as u64), log.as_deref_mut()?)));
        dense.chain(self.others.range_mut(first..).map(|(id, log)| (*id, log)))
    }

    /// Their numbers, ascending.
    pub(crate) fn ids(&self) -> impl Iterator<Item = PartitionId> {
        self.iter().map(|(id, _)| id)
    }

    /// All of them, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut PartitionLog> {
        self.iter_mut_from(PartitionId(0)).map(|(_, log)| log)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::Index;

    #[test]
    fn numbers_of_any_size_are_found_and_none_asks_for_memory() {
        let mut logs = Logs::default();
        let ids = [3, 0, PARTITIONS_MAX - 1, PARTITIONS_MAX, u64::MAX].map(PartitionId);
        for (at, id) in ids.into_iter().enumerate() {
            assert!(logs.get(id).is_none() && logs.get_mut(id).is_none());
            logs.of(id).low_water = Index(at as u64 + 1);
        }
        for (at, id) in ids.into_iter().enumerate() {
            assert_eq!(logs.get(id).map(|log| log.low_water), Some(Index(at as u64 + 1)));
        }
        assert!(logs.ids().is_sorted() && logs.ids().count() == ids.len());
        assert_eq!(logs.iter_mut().count(), ids.len());
        for first in [0, 1, 3, 4, PARTITIONS_MAX - 1, PARTITIONS_MAX, PARTITIONS_MAX + 1, u64::MAX] {
            let first = PartitionId(first);
            let from: Vec<_> = logs.iter_from(first).map(|(id, _)| id).collect();
            let mut wanted: Vec<_> = ids.into_iter().filter(|id| *id >= first).collect();
            wanted.sort_unstable();
            assert_eq!(from, wanted);
            assert_eq!(logs.iter_mut_from(first).map(|(id, _)| id).collect::<Vec<_>>(), wanted);
        }
        assert!(logs.dense.len() as u64 <= PARTITIONS_MAX);
    }
}
