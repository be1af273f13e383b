//! Where a partition's entries lie: spans in memory, sorted by index.
//!
//! A span covers entries of one generation and consecutive indexes within one batch, over at most
//! [`SPAN_RANGE_MAX`] bytes, so that finding an entry inside means walking a bounded range. Records of other
//! partitions may lie between; a `pure` span has none, and is taken whole without a walk.

use std::collections::VecDeque;
use tidelog_types::{Generation, Index, Lsn, NodeId, Position, Ticket};

/// Most bytes that a span grows to by taking in one more record.
pub(crate) const SPAN_RANGE_MAX: u64 = 64 << 10;

/// A run of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LookupSpan {
    pub(crate) first: Index,
    pub(crate) generation: Generation,
    /// Where the first record starts.
    pub(crate) lsn: Lsn,
    pub(crate) count: u32,
    /// From the first record's start to the last one's end.
    pub(crate) bytes: u32,
    /// Whether the range holds these records and nothing else.
    pub(crate) pure: bool,
}

impl LookupSpan {
    /// Whether its bytes are lost.
    pub(crate) const fn is_lost(&self) -> bool {
        self.bytes == 0
    }
    pub(crate) fn last(&self) -> Index {
        Index(self.first.0 + u64::from(self.count) - 1)
    }
    pub(crate) fn end(&self) -> Lsn {
        self.lsn.plus(u64::from(self.bytes))
    }
}

/// One partition's log as this shard knows it.
#[derive(Debug, Default)]
pub(crate) struct PartitionLog {
    /// The last entry, sequenced or not.
    pub(crate) last: Position,
    /// Last index that is in a submitted batch.
    pub(crate) sequenced: Index,
    /// Highest mark told; and the one last written.
    pub(crate) high_water: Index,
    pub(crate) high_water_written: Index,
    /// Whether the partition is in the list of marks to be written.
    pub(crate) high_water_dirty: bool,
    pub(crate) generation: Generation,
    pub(crate) vote: Option<NodeId>,
    /// First index still kept; 0 and 1 both mean: everything.
    pub(crate) low_water: Index,
    /// The last entry that a durable snapshot covers.
    pub(crate) snapshot: Position,
    pub(crate) ticket: Ticket,
    /// (batch, position in its list) of the footer span that a next entry may extend.
    pub(crate) footer_span: (u64, u32),
    /// (batch, position in its list) of the ticket to raise.
    pub(crate) ticket_slot: (u64, u32),
    spans: VecDeque<LookupSpan>,
    /// A cut came: the last span's range may hold dead records behind it, and must not grow over them.
    closed: bool,
}

impl PartitionLog {
    /// Notes an entry of `bytes` bytes at `lsn`, in the batch at `batch`; indexes come in order.
    pub(crate) fn note(&mut self, position: Position, lsn: Lsn, bytes: u32, batch: Lsn) {
        self.last = position;
        if let Some(span) = self.spans.back_mut()
            && span.generation == position.generation
            && span.lsn > batch
            && span.last().next() == position.index
            && !self.closed
        {
            let range = lsn.0 + u64::from(bytes) - span.lsn.0;
            if range <= SPAN_RANGE_MAX {
                span.pure &= lsn == span.end();
                span.bytes = range as u32; // at most SPAN_RANGE_MAX
                span.count += 1;
                return;
            }
        }
        self.closed = false;
        let (first, generation) = (position.index, position.generation);
        self.spans.push_back(LookupSpan { first, generation, lsn, count: 1, bytes, pure: true });
    }

    /// Notes entries behind the last one whose bytes are lost; the batch at `lsn` held them.
    pub(crate) fn note_lost(&mut self, first: Index, last: Position, lsn: Lsn) {
        let count = u32::try_from(last.index.0.saturating_sub(first.0) + 1).unwrap_or(u32::MAX);
        self.spans.push_back(LookupSpan {
            first,
            generation: last.generation,
            lsn,
            count,
            bytes: 0,
            pure: false,
        });
        self.closed = true;
        self.last = last;
    }

    /// The newest copy of an entry of this log is lost.
    pub(crate) fn lose(&mut self, position: Position, lsn: Lsn) {
        self.replace(
            position,
            LookupSpan {
                first: position.index,
                generation: position.generation,
                lsn,
                count: 1,
                bytes: 0,
                pure: false,
            },
        );
    }

    /// The last span's range must not grow: what lies behind it cannot be walked over.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// An entry of this log lies at `lsn` now, in the batch at `batch`: the same bytes at a newer place. Never changes which entries
    /// there are.
    pub(crate) fn relocate(&mut self, position: Position, lsn: Lsn, bytes: u32, batch: Lsn) {
        let (first, generation) = (position.index, position.generation);
        self.replace(position, LookupSpan { first, generation, lsn, count: 1, bytes, pure: true });
        // A run of copies is one span again.
        let Some(at) = self.find(first).and_then(|at| at.checked_sub(1)) else { return };
        if let (Some(before), Some(_)) = (self.spans.get(at).copied(), self.spans.get(at + 1))
            && before.generation == generation
            && before.lsn > batch
            && before.last().next() == first
            && before.bytes > 0
            && lsn.0 + u64::from(bytes) - before.lsn.0 <= SPAN_RANGE_MAX
        {
            self.spans.remove(at + 1);
            if let Some(span) = self.spans.get_mut(at) {
                span.pure &= lsn == span.end();
                span.bytes = (lsn.0 + u64::from(bytes) - span.lsn.0) as u32; // at most SPAN_RANGE_MAX
                span.count += 1;
            }
        }
    }

    fn replace(&mut self, position: Position, new: LookupSpan) {
        let index = position.index;
        let found = self.find(index).and_then(|at| Some((at, self.spans.remove(at)?)));
        let Some((at, old)) = found else {
            // It is being written again, and where it lay is forgotten already.
            let at = self.spans.partition_point(|s| s.first < index);
            return self.spans.insert(at, new);
        };
        // What lies before and behind it in the span stays where it is.
        if index < old.last() {
            let count = (old.last().0 - index.0) as u32; // less than it was
            self.spans.insert(at, LookupSpan { first: index.next(), count, pure: false, ..old });
        }
        self.spans.insert(at, new);
        if old.first < index {
            let count = (index.0 - old.first.0) as u32; // less than it was
            self.spans.insert(at, LookupSpan { count, pure: false, ..old });
        }
        self.closed |= index == self.last.index;
    }

    /// Forgets every entry above `keep`.
    pub(crate) fn cut(&mut self, keep: Position) {
        while self.spans.back().is_some_and(|s| s.first > keep.index) {
            self.spans.pop_back();
        }
        if let Some(span) = self.spans.back_mut()
            && span.last() > keep.index
        {
            span.count = (keep.index.0 - span.first.0 + 1) as u32; // less than it was
            span.pure = false;
        }
        self.closed = true;
        self.last = keep;
        self.sequenced = self.sequenced.min(keep.index);
        self.footer_span = (0, 0);
    }

    /// Forgets where entries at or behind `lsn` lie, because they are about to be written elsewhere.
    pub(crate) fn forget_from(&mut self, lsn: Lsn) {
        while self.spans.back().is_some_and(|s| s.lsn >= lsn) {
            self.spans.pop_back();
        }
    }

    /// The last index that has a place: below [`Self::last`] while the log's end is being written again.
    pub(crate) fn noted(&self) -> Index {
        self.spans.back().map_or(Index::ZERO, LookupSpan::last)
    }

    /// Position of the span that holds `index`.
    pub(crate) fn find(&self, index: Index) -> Option<usize> {
        let at = self.spans.partition_point(|s| s.first <= index).checked_sub(1)?;
        (self.spans.get(at)?.last() >= index).then_some(at)
    }

    pub(crate) fn span(&self, at: usize) -> Option<&LookupSpan> {
        self.spans.get(at)
    }

    /// The generation of the entry at `index`; zero before the first.
    pub(crate) fn generation_at(&self, index: Index) -> Option<Generation> {
        if index == Index::ZERO {
            return Some(Generation::ZERO);
        }
        Some(self.spans.get(self.find(index)?)?.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(index: u64, generation: u64) -> Position {
        Position::new(Index(index), Generation(generation))
    }

    #[test]
    fn contiguous_records_share_a_span() {
        let mut log = PartitionLog::default();
        for i in 0..10u64 {
            log.note(position(i + 1, 1), Lsn(8320 + i * 64), 64, Lsn(8192));
        }
        assert_eq!(log.spans.len(), 1);
        assert!(log.spans[0].pure);
        log.note(position(11, 1), Lsn(8320 + 20 * 64), 64, Lsn(8192));
        assert_eq!((log.spans.len(), log.spans[0].pure, log.spans[0].count), (1, false, 11));
        log.note(position(12, 2), Lsn(8320 + 21 * 64), 64, Lsn(8192));
        log.note(position(13, 2), Lsn(16512), 64, Lsn(16384));
        assert_eq!(log.spans.len(), 3, "neither generations nor batches share one");
        assert_eq!(log.generation_at(Index(11)), Some(Generation(1)));
        assert_eq!(log.generation_at(Index(13)), Some(Generation(2)));
        assert_eq!(log.generation_at(Index(14)), None);
        assert_eq!(log.generation_at(Index(0)), Some(Generation(0)));
    }

    proptest! {
        /// Against a plain map from index to (generation, lsn).
        #[test]
        fn finds_what_a_map_finds(script in proptest::collection::vec((0u8..4, 1u64..2000, 0u64..30), 1..120)) {
            let mut log = PartitionLog::default();
            let mut model: Vec<(u64, u64)> = Vec::new();
            let (mut lsn, mut batch, mut generation) = (8192 + 128, 8192, 1);
            for (what, amount, keep) in script {
                match what {
                    0 => {
                        let keep = keep.min(model.len() as u64);
                        model.truncate(keep as usize);
                        log.cut(position(keep, model.last().map_or(0, |m| m.0)));
                    }
                    1 => generation += 1,
                    2 => { batch = lsn + amount * 64; lsn = batch + 128; }
                    _ => {
                        model.push((generation, lsn));
                        log.note(position(model.len() as u64, generation), Lsn(lsn), amount as u32 * 64, Lsn(batch));
                        lsn += amount * 64;
                    }
                }
                prop_assert_eq!(log.last.index, Index(model.len() as u64));
                for (i, (generation, lsn)) in model.iter().enumerate() {
                    let index = Index(i as u64 + 1);
                    prop_assert_eq!(log.generation_at(index), Some(Generation(*generation)));
                    let span = log.span(log.find(index).unwrap()).unwrap();
                    prop_assert!(span.lsn.0 <= *lsn && *lsn < span.end().0);
                    if span.first == index { prop_assert_eq!(span.lsn.0, *lsn); }
                }
                prop_assert_eq!(log.find(Index(model.len() as u64 + 1)), None);
            }
        }
    }
}
