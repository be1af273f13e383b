//! One partition's log on a disk, as its records make it: what must be there again after any crash.
//!
//! It takes records in their order and refuses those that do not follow. Which of them are durable, and which count, is the disk's
//! business (`disk`).

use super::violation::{Verdict, ensure};
use crate::platter::{Record, kind};
use std::collections::BTreeSet;

/// Hash of an entry whose bytes are lost and were never known to be durable here.
const LOST: u64 = 0;

/// A promise: generation, vote (0: none).
pub(crate) type Promise = (u64, u64);

/// An entry on a disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) generation: u64,
    /// Stands for its bytes.
    pub(crate) hash: u64,
    /// The batch that its newest copy lies in.
    pub(crate) batch: u64,
    /// Length of its record, if that was ever durable here.
    pub(crate) bytes: u64,
    /// It is there without its bytes, whatever is known of them.
    pub(crate) lost: bool,
}

/// One partition's durable state on a disk. Entries that were given up (low-water mark) stay known here.
#[derive(Clone, Debug, Default)]
pub(crate) struct DurableLog {
    /// Entry `i + 1`.
    entries: Vec<Stored>,
    pub(crate) promise: Promise,
    /// First entry that is still wanted; 0 and 1: all.
    pub(crate) low_water: u64,
}

impl DurableLog {
    pub(crate) const fn empty() -> DurableLog {
        DurableLog { entries: Vec::new(), promise: (0, 0), low_water: 0 }
    }

    pub(crate) fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// The last entry before any behind `from` that is there without its bytes.
    pub(crate) fn whole(&self, from: u64) -> u64 {
        let skip = usize::try_from(from).unwrap_or(usize::MAX);
        let lost = (from + 1..).zip(self.entries.iter().skip(skip)).find(|(_, entry)| entry.hash == LOST);
        lost.map_or(self.last(), |(index, _)| index - 1)
    }

    /// The generation of an entry; 0 for index 0.
    pub(crate) fn generation_at(&self, index: u64) -> Option<u64> {
        if index == 0 {
            return Some(0);
        }
        self.entry(index).map(|entry| entry.generation)
    }

    /// Entry `index`, from 1.
    pub(crate) fn entry(&self, index: u64) -> Option<&Stored> {
        self.entries.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }

    /// The entries that are still wanted, with their indexes.
    pub(crate) fn live(&self) -> impl Iterator<Item = (u64, &Stored)> {
        let first = self.low_water.max(1);
        let skip = usize::try_from(first - 1).unwrap_or(usize::MAX);
        (first..).zip(self.entries.iter().skip(skip))
    }

    /// Entries that are there without their bytes.
    pub(crate) fn lost(&self) -> impl Iterator<Item = u64> {
        (1..).zip(&self.entries).filter(|(_, entry)| entry.hash == LOST).map(|(index, _)| index)
    }

    /// Hash of the first `count` entries; of those in `lost` only the generation counts.
    pub(crate) fn hash(&self, count: u64, lost: &BTreeSet<u64>) -> u64 {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        (1..).zip(self.entries.iter().take(count)).fold(0, |hash, (index, entry)| {
            let bytes = if lost.contains(&index) { LOST } else { entry.hash };
            (hash.rotate_left(7) ^ bytes).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ entry.generation
        })
    }

    /// A copy of an entry that is there: it only says where the entry lies from now on.
    pub(crate) fn relocate(&mut self, node: u64, record: &Record, batch: u64) -> Verdict {
        let at = record.index.checked_sub(1).and_then(|at| usize::try_from(at).ok());
        let entry = at.and_then(|at| self.entries.get_mut(at));
        let same = entry.as_ref().map(|e| (e.generation, e.hash));
        let lost = entry.as_ref().is_some_and(|e| e.hash == LOST && e.generation == record.generation);
        ensure(3, lost || same == Some((record.generation, record.hash)), || {
            format!(
                "node {node} partition {}: entry {} of generation {} was moved; the log holds {same:?} there",
                record.partition, record.index, record.generation
            )
        })?;
        if let Some(entry) = entry {
            (entry.hash, entry.batch, entry.lost) = (record.hash, batch, false);
        }
        Ok(())
    }

    /// Entries without their bytes: those of a write that cannot be told from a durable one. `before`: what was durable
    /// before the opening that says so; that is still what they are.
    pub(crate) fn lose(&mut self, record: &Record, batch: u64, before: Option<&DurableLog>) {
        for index in record.index..record.index.saturating_add(record.count) {
            if index == self.last() + 1 {
                let known = before.and_then(|log| log.entry(index));
                let known = known.filter(|entry| entry.generation == record.generation);
                let hash = known.map_or(LOST, |entry| entry.hash);
                let bytes = known.map_or(0, |entry| entry.bytes);
                self.entries.push(Stored { generation: record.generation, hash, batch, bytes, lost: true });
            }
        }
    }

    pub(crate) fn apply(&mut self, node: u64, record: &Record, batch: u64) -> Verdict {
        match record.kind {
            kind::LOST => {
                self.lose(record, batch, None);
                Ok(())
            }
            kind::LOW_WATER => {
                ensure(2, record.index >= self.low_water, || {
                    format!(
                        "node {node} partition {}: low-water mark {} behind {}",
                        record.partition, record.index, self.low_water
                    )
                })?;
                ensure(10, record.index <= self.last() + 1, || {
                    format!(
                        "node {node} partition {}: low-water mark {} of a log that ends at {}",
                        record.partition,
                        record.index,
                        self.last()
                    )
                })?;
                self.low_water = record.index;
                Ok(())
            }
            kind::PROMISE => {
                ensure(2, record.generation >= self.promise.0, || {
                    format!(
                        "node {node} partition {}: promise of generation {} behind one of {}",
                        record.partition, record.generation, self.promise.0
                    )
                })?;
                self.promise = (record.generation, record.index);
                Ok(())
            }
            kind::CUT => {
                let keep = usize::try_from(record.index).unwrap_or(usize::MAX);
                self.entries.truncate(keep);
                Ok(())
            }
            k if k < kind::ENTRIES => {
                let last = self.last();
                let fits =
                    record.index == last + 1 && Some(record.prev_generation) == self.generation_at(last);
                ensure(3, fits, || {
                    format!(
                        "node {node} partition {}: entry {} (generation {}, behind one of {}) follows entry {last} of generation {:?}",
                        record.partition,
                        record.index,
                        record.generation,
                        record.prev_generation,
                        self.generation_at(last)
                    )
                })?;
                ensure(2, record.generation <= self.promise.0, || {
                    format!(
                        "node {node} partition {}: entry {} of generation {} before its promise (R10); promised is {}",
                        record.partition, record.index, record.generation, self.promise.0
                    )
                })?;
                let Record { generation, hash, bytes, .. } = *record;
                self.entries.push(Stored { generation, hash, batch, bytes, lost: false });
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
