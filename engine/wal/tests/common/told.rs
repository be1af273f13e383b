//! What a replay tells, checked against itself on the way.

use super::model::{Part, State};
use std::collections::BTreeMap;
use tidelog_types::{EntryMeta, Generation, Index, NodeId, PartitionId, Position};
use tidelog_wal::{Lost, Replay};

/// What a replay told.
#[derive(Default)]
pub struct Told {
    pub state: State,
    /// Entries whose bytes are lost: (partition, index), and whether that is only suspected.
    pub lost: BTreeMap<(u64, u64), bool>,
    pub marks: BTreeMap<u64, u64>,
    pub entries: u64,
    pub checkpoints: u64,
}

impl Replay for Told {
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]) {
        self.entries += 1;
        let part = self.state.entry(partition.0).or_default();
        assert_eq!(meta.position.index, part.last().index.next(), "replay is dense");
        assert_eq!(meta.prev_generation, part.last().generation);
        part.entries.push((meta.position.generation.0, payload.to_vec()));
    }
    fn cut(&mut self, partition: PartitionId, keep: Position) {
        let part = self.state.entry(partition.0).or_default();
        assert_eq!(part.position(keep.index.0), keep, "a cut keeps an entry");
        part.entries.truncate(keep.index.0 as usize);
        self.lost.retain(|at, _| at.0 != partition.0 || at.1 <= keep.index.0);
    }
    fn damaged(&mut self, partition: PartitionId, lost: Lost) {
        let part = self.state.entry(partition.0).or_default();
        for index in lost.first.0..=lost.last.0 {
            if index > part.last().index.0 {
                assert_eq!(index, part.last().index.0 + 1, "replay is dense");
                part.entries.push((lost.generation.0, Vec::new()));
            }
            assert_eq!(part.position(index).generation, lost.generation);
            self.lost.insert((partition.0, index), lost.suspect);
        }
    }
    fn moved(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]) {
        let part = self.state.entry(partition.0).or_default();
        assert_eq!(part.position(meta.position.index.0), meta.position, "a copy is of an entry of the log");
        let at = (partition.0, meta.position.index.0);
        let entry = &mut part.entries[meta.position.index.0 as usize - 1];
        if self.lost.remove(&at).is_some() {
            entry.1 = payload.to_vec();
        }
        assert_eq!(entry.1, payload, "a copy has the same bytes");
    }
    fn promise(&mut self, partition: PartitionId, generation: Generation, vote: Option<NodeId>) {
        self.state.entry(partition.0).or_default().promise = (generation.0, vote.map_or(0, |v| v.0));
    }
    fn low_water(&mut self, partition: PartitionId, first: Index) {
        let part = self.state.entry(partition.0).or_default();
        assert!(first.0 >= part.low, "a low-water mark never goes back");
        part.low = first.0;
    }
    fn checkpoint(&mut self, partition: PartitionId, state: &[u8]) {
        self.checkpoints += 1;
        let (part, mark) = Part::load(state);
        assert!(self.state.insert(partition.0, part).is_none(), "a checkpoint comes first");
        if mark > 0 {
            self.marks.insert(partition.0, mark);
        }
    }
    fn high_water(&mut self, partition: PartitionId, mark: Index) {
        self.marks.insert(partition.0, mark.0);
        assert!(mark <= self.state[&partition.0].last().index, "a mark follows its entries");
    }
}
