//! What a node's log holds of each partition when all its records are taken together: cuts done, moved records counted once.
//!
//! An entry is known here by its generation and the checksums of its header and payload, 16 bytes in all; (index, generation)
//! fixes the bytes, so that is enough to compare two logs. What this does not know: payloads, and what lies in batches that
//! are damaged, which shows as a gap.

use std::collections::BTreeMap;
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Generation, Index, PartitionId, RecordHeader, RecordKind};

/// Entries of one chunk.
const CHUNK: usize = 1024;

/// What is known of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub(super) generation: Generation,
    /// Checksum of the header with all its fields, and the payload's.
    crcs: (u32, u32),
}

/// One partition of one node.
#[derive(Default)]
pub(super) struct Entries {
    chunks: BTreeMap<u64, Box<[Option<Known>; CHUNK]>>,
    pub(super) last: Index,
    /// First index that is kept, as the log says; 0: all.
    pub(super) low_water: Index,
    /// Committed at least up to here, as the log says.
    pub(super) high_water: Index,
    /// Two records of one (index, generation) with different bytes.
    pub(super) contradictions: Vec<Index>,
}

/// All partitions of one node.
pub(super) type Logs = BTreeMap<PartitionId, Entries>;

/// Takes the next record of a log.
pub(super) fn take(logs: &mut Logs, header: &RecordHeader) {
    let of = |logs| BTreeMap::entry(logs, header.partition).or_insert_with(Entries::default);
    match header.kind {
        kind if kind.is_entry() => Entries::put(of(logs), header),
        RecordKind::Cut => Entries::cut(of(logs), header.index),
        RecordKind::HighWater => {
            let entries: &mut Entries = of(logs);
            entries.high_water = entries.high_water.max(header.index);
        }
        RecordKind::LowWater => {
            let entries: &mut Entries = of(logs);
            entries.low_water = entries.low_water.max(header.index);
        }
        _ => {}
    }
}

fn place(index: Index) -> (u64, usize) {
    let chunk = CHUNK as u64;
    (index.get() / chunk, usize::try_from(index.get() % chunk).unwrap_or(0))
}

impl Entries {
    fn put(&mut self, header: &RecordHeader) {
        let mut bytes = [0; 2 * HEADER_BYTES];
        header.encode(&mut bytes);
        let crc = bytes.first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc));
        let known = Known { generation: header.generation, crcs: (crc, header.payload_crc) };
        let (chunk, at) = place(header.index);
        let slots = self.chunks.entry(chunk).or_insert_with(|| Box::new([None; CHUNK]));
        let Some(slot) = slots.get_mut(at) else { return };
        if slot.is_some_and(|there| there.generation == known.generation && there != known) {
            self.contradictions.push(header.index);
        }
        *slot = Some(known);
        self.last = self.last.max(header.index);
    }

    fn cut(&mut self, keep: Index) {
        let (chunk, at) = place(keep.next());
        drop(self.chunks.split_off(&(chunk + u64::from(at > 0))));
        if at > 0
            && let Some(slots) = self.chunks.get_mut(&chunk)
        {
            slots.iter_mut().skip(at).for_each(|slot| *slot = None);
        }
        self.last = self.last.min(keep);
    }

    pub(super) fn get(&self, index: Index) -> Option<Known> {
        let (chunk, at) = place(index);
        *self.chunks.get(&chunk)?.get(at)?
    }

    /// All entries that are kept, by index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Index, Known)> {
        let first = self.low_water;
        let all = self.chunks.iter().flat_map(|(chunk, slots)| {
            let base = chunk * CHUNK as u64;
            (base..).zip(slots.iter()).filter_map(|(index, slot)| Some((Index(index), (*slot)?)))
        });
        all.filter(move |(index, _)| *index >= first)
    }

    /// The first index that is there; 0: none is.
    pub(super) fn first(&self) -> Index {
        self.iter().next().map_or(Index::ZERO, |(index, _)| index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, generation: u64, payload_crc: u32) -> RecordHeader {
        RecordHeader {
            index: Index(index),
            generation: Generation(generation),
            payload_crc,
            ..RecordHeader::new(RecordKind::Data, PartitionId(0))
        }
    }

    fn control(kind: RecordKind, index: u64) -> RecordHeader {
        RecordHeader { index: Index(index), ..RecordHeader::new(kind, PartitionId(0)) }
    }

    fn indexes(entries: &Entries) -> Vec<u64> {
        entries.iter().map(|(index, _)| index.get()).collect()
    }

    #[test]
    fn cuts_moves_and_marks_are_followed() {
        let mut logs = Logs::new();
        for index in 1..=3000 {
            take(&mut logs, &entry(index, 1, 0));
        }
        for (keep, left) in [(2500, 2500), (2048, 2048), (2047, 2047), (1000, 1000)] {
            take(&mut logs, &control(RecordKind::Cut, keep));
            assert_eq!(
                (indexes(&logs[&PartitionId(0)]).len(), logs[&PartitionId(0)].last),
                (left, Index(keep))
            );
        }
        take(&mut logs, &entry(1001, 2, 0));
        take(&mut logs, &entry(5, 1, 0)); // moved: the same again
        take(&mut logs, &control(RecordKind::HighWater, 900));
        take(&mut logs, &control(RecordKind::LowWater, 999));
        let entries = &logs[&PartitionId(0)];
        assert_eq!(
            (indexes(entries), entries.first(), entries.last),
            (vec![999, 1000, 1001], Index(999), Index(1001))
        );
        assert_eq!((entries.high_water, entries.contradictions.len()), (Index(900), 0));
        assert_eq!(entries.get(Index(1001)).map(|known| known.generation), Some(Generation(2)));
        take(&mut logs, &entry(1001, 2, 7));
        assert_eq!(logs[&PartitionId(0)].contradictions, [Index(1001)]);
    }
}
