//! Where a partition's entries lie, in two levels, and which generation each has.
//!
//! Entries of the newest segments are found by *spans* in memory, sorted by index: entries of one generation and
//! consecutive indexes within one batch, over at most [`SPAN_RANGE_MAX`] bytes, so that finding an entry inside means
//! walking a bounded range. Records of other partitions may lie between; a `pure` span has none, and is taken whole
//! without a walk. Of older segments only *refs* stay in memory: from this index on, entries lie in that segment, whose
//! summary has the spans. A span is always newer than a ref that covers the same index.
//!
//! Every span and every ref holds its segment: [`Holds`] counts them, and a segment that nothing holds has nothing
//! live in it. Promises nothing about durability: what changes here was sequenced, not synced.

use crate::places::{GenerationRun, LookupSpan, Place, Ref};
use std::collections::VecDeque;
use tidelog_types::{Generation, Index, Lsn, NodeId, Position, Ticket};

/// Most bytes that a span grows to by taking in one more record.
pub(crate) const SPAN_RANGE_MAX: u64 = 64 << 10;

/// Counts what is live in each segment.
pub(crate) trait Holds {
    /// One more span or ref in the segment that holds `lsn`.
    fn hold(&mut self, lsn: Lsn);
    /// One less.
    fn let_go(&mut self, lsn: Lsn);
}

/// One partition's log as this shard knows it.
#[derive(Clone, Debug, Default)]
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
    /// A cut came: the last span's range may hold dead records behind it, and must not grow over them.
    pub(crate) closed: bool,
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
    /// Ascending in both fields. The first covers the entry before the first one kept, if there is one.
    pub(crate) runs: Vec<GenerationRun>,
    /// Ascending by index, none overlapping another.
    pub(crate) spans: VecDeque<LookupSpan>,
    /// Ascending by index.
    pub(crate) refs: Vec<Ref>,
}

impl PartitionLog {
    /// See [`crate::Wal::warm`].
    pub(crate) fn warm(&self) -> u64 {
        let span = self.spans.back().map_or(0, |span| span.lsn.0 ^ u64::from(span.held));
        [
            self.last.index.0,
            self.sequenced.0,
            self.high_water_written.0,
            self.ticket.0,
            self.ticket_slot.0,
            self.footer_span.0,
            self.runs.len() as u64,
            span,
        ]
        .into_iter()
        .fold(0, u64::wrapping_add)
    }

    /// Notes an entry of `bytes` bytes at `lsn`, in the batch at `batch`; indexes come in order.
    pub(crate) fn note(
        &mut self,
        position: Position,
        lsn: Lsn,
        bytes: u32,
        batch: Lsn,
        holds: &mut impl Holds,
    ) {
        if position.generation != self.last.generation || self.runs.is_empty() {
            if self.runs.capacity() == 0 {
                // Most partitions have one leader for long.
                self.runs.reserve_exact(1);
            }
            self.runs.push(GenerationRun { first: position.index, generation: position.generation });
        }
        self.last = position;
        if !self.closed && self.grow(self.spans.len(), position, lsn, bytes, batch) {
            return;
        }
        self.closed = false;
        let (first, generation) = (position.index, position.generation);
        self.spans.push_back(LookupSpan { first, generation, lsn, count: 1, bytes, held: bytes, pure: true });
        holds.hold(lsn);
    }

    /// Notes entries behind the last one whose bytes are lost; the batch at `lsn` held them.
    pub(crate) fn note_lost(&mut self, first: Index, last: Position, lsn: Lsn, holds: &mut impl Holds) {
        if last.generation != self.last.generation || self.runs.is_empty() {
            self.runs.push(GenerationRun { first, generation: last.generation });
        }
        let count = u32::try_from(last.index.0.saturating_sub(first.0) + 1).unwrap_or(u32::MAX);
        let generation = last.generation;
        self.spans.push_back(LookupSpan { first, generation, lsn, count, bytes: 0, held: 0, pure: false });
        holds.hold(lsn);
        self.closed = true;
        self.last = last;
    }

    /// The newest copy of an entry of this log is lost.
    pub(crate) fn lose(&mut self, position: Position, lsn: Lsn, holds: &mut impl Holds) {
        self.relocate(position, lsn, 0, Lsn(u64::MAX), holds);
    }

    /// The last span's range must not grow: what lies behind it cannot be walked over.
    pub(crate) fn close(&mut self) {
        self.closed = true;
    }

    /// Lets the span in front of position `at` of the list take in the entry, if it may.
    fn grow(&mut self, at: usize, position: Position, lsn: Lsn, bytes: u32, batch: Lsn) -> bool {
        if let Some(span) = at.checked_sub(1).and_then(|at| self.spans.get_mut(at))
            && span.generation == position.generation
            && span.lsn > batch
            && !span.is_lost()
            && span.last().next() == position.index
        {
            let range = lsn.0 + u64::from(bytes) - span.lsn.0;
            if range <= SPAN_RANGE_MAX {
                span.pure &= lsn == span.end();
                span.bytes = range as u32; // at most SPAN_RANGE_MAX
                span.held += bytes;
                span.count += 1;
                return true;
            }
        }
        false
    }

    /// An entry of this log now lies at `lsn`: the same bytes at a newer place. Never changes which entries there are.
    pub(crate) fn relocate(
        &mut self,
        position: Position,
        lsn: Lsn,
        bytes: u32,
        batch: Lsn,
        holds: &mut impl Holds,
    ) {
        let index = position.index;
        if let Some(Place::Span(at)) = self.find(index)
            && let Some(span) = self.spans.remove(at)
        {
            // What lies before and behind it in the span stays where it is, unless it is not wanted any more: the span may have
            // begun below the first entry kept, and what is left there would hold its segment until that moves on.
            let mut parts = 0;
            if index < span.last() {
                self.spans.insert(at, span.clipped(index.next(), span.last()));
                parts += 1;
            }
            if span.first < index && self.low_water < index {
                self.spans.insert(at, span.clipped(span.first, index.prev()));
                parts += 1;
            }
            match parts {
                0 => holds.let_go(span.lsn),
                2 => holds.hold(span.lsn),
                _ => {}
            }
        }
        let at = self.spans.partition_point(|s| s.first < index);
        if !self.grow(at, position, lsn, bytes, batch) {
            let (first, generation) = (index, position.generation);
            let span = LookupSpan { first, generation, lsn, count: 1, bytes, held: bytes, pure: true };
            self.spans.insert(at, span);
            holds.hold(lsn);
        }
        if let Some(at) = self.refs.partition_point(|r| r.first <= index).checked_sub(1) {
            self.tighten(at, holds);
        }
    }

    /// Forgets every entry above `keep`.
    pub(crate) fn cut(&mut self, keep: Position, holds: &mut impl Holds) {
        while let Some(span) = self.spans.back().copied().filter(|s| s.first > keep.index) {
            self.spans.pop_back();
            holds.let_go(span.lsn);
        }
        if let Some(span) = self.spans.back_mut()
            && span.last() > keep.index
        {
            *span = span.clipped(span.first, keep.index);
        }
        while let Some(last) = self.refs.last().copied().filter(|r| r.first > keep.index) {
            self.refs.pop();
            holds.let_go(last.segment);
        }
        while self.runs.last().is_some_and(|r| r.first > keep.index) {
            self.runs.pop();
        }
        self.closed = true;
        self.last = keep;
        self.sequenced = self.sequenced.min(keep.index);
        self.footer_span = (0, 0);
        if let Some(at) = self.refs.len().checked_sub(1) {
            self.tighten(at, holds);
        }
        // What is left of a span may be below the first entry kept.
        self.trim(self.low_water, holds);
    }

    /// Entries below `first` are not wanted any more.
    pub(crate) fn trim(&mut self, first: Index, holds: &mut impl Holds) {
        self.low_water = self.low_water.max(first);
        let first = self.low_water;
        while let Some(span) = self.spans.front().copied().filter(|s| s.last() < first) {
            self.spans.pop_front();
            holds.let_go(span.lsn);
        }
        while let Some(oldest) = self.refs.first().copied() {
            let before = self.refs.len();
            if oldest.first < first {
                self.tighten(0, holds);
            }
            if self.refs.len() == before {
                break;
            }
        }
        let runs = self.runs.partition_point(|r| r.first < first).saturating_sub(1);
        self.runs.drain(..runs);
    }

    /// Moves the start of the ref at `at` to the first entry that it still says something about; drops it if there is
    /// none.
    fn tighten(&mut self, at: usize, holds: &mut impl Holds) {
        let Some(found) = self.refs.get(at).copied() else { return };
        let first = self.uncovered(found.first.max(self.low_water));
        let next = self.refs.get(at + 1).map_or(Index(u64::MAX), |r| r.first);
        if first >= next || first > self.last.index {
            self.refs.remove(at);
            holds.let_go(found.segment);
        } else if let Some(found) = self.refs.get_mut(at) {
            found.first = first;
        }
    }

    /// The first index from `index` on that no span covers.
    fn uncovered(&self, mut index: Index) -> Index {
        let mut at = self.spans.partition_point(|s| s.last() < index);
        while let Some(span) = self.spans.get(at)
            && span.first <= index
        {
            index = span.last().next();
            at += 1;
        }
        index
    }

    /// The segment at `base .. end` has a durable summary: its spans here become refs.
    pub(crate) fn demote(&mut self, base: Lsn, end: Lsn, holds: &mut impl Holds) {
        let inside = |s: &LookupSpan| base <= s.lsn && s.lsn < end;
        if !self.spans.iter().any(inside) {
            return;
        }
        // Runs of indexes, however many spans they have.
        let mut ranges: Vec<(Index, Index)> = Vec::new();
        for span in self.spans.iter().filter(|s| inside(s)) {
            holds.let_go(span.lsn);
            // A ref that began below what is kept would outlive the entries above it, and hold its segment for nothing.
            let first = span.first.max(self.low_water);
            match ranges.last_mut() {
                Some(range) if range.1.next() == first => range.1 = span.last(),
                _ => ranges.push((first, span.last())),
            }
        }
        self.spans.retain(|s| !inside(s));
        if self.spans.is_empty() {
            self.spans = VecDeque::new();
        }
        for (first, last) in ranges {
            self.assign(first, last, base, holds);
        }
        self.refs.shrink_to_fit();
    }

    /// Entries `first ..= last` lie in `segment`; where the ref that covered them went on, it goes on behind them.
    fn assign(&mut self, first: Index, last: Index, segment: Lsn, holds: &mut impl Holds) {
        let from = self.refs.partition_point(|r| r.first < first);
        let to = self.refs.partition_point(|r| r.first <= last);
        let before = to.checked_sub(1).and_then(|at| self.refs.get(at)).copied();
        for old in self.refs.drain(from..to) {
            holds.let_go(old.segment);
        }
        let mut at = from;
        if let Some(previous) = at.checked_sub(1).and_then(|at| self.refs.get(at)).copied() {
            if previous.segment == segment {
                // It goes on here, unless it means indexes in between that something else covers: a read that
                // begins there finds the newer one first.
                at -= 1;
            } else {
                self.refs.insert(at, Ref { first, segment });
                holds.hold(segment);
            }
        } else {
            self.refs.insert(at, Ref { first, segment });
            holds.hold(segment);
        }
        if let Some(old) = before.filter(|old| old.segment != segment) {
            let goes_on = self.uncovered(last.next());
            let next = self.refs.get(at + 1).map_or(Index(u64::MAX), |r| r.first);
            if goes_on < next && goes_on <= self.last.index {
                self.refs.insert(at + 1, Ref { first: goes_on, segment: old.segment });
                holds.hold(old.segment);
            }
        }
        if let Some(at) =
            from.checked_sub(1).filter(|at| self.refs.get(*at).is_some_and(|r| r.segment != segment))
        {
            self.tighten(at, holds);
        }
    }

    /// Where the entry at `index` lies; none if it is not in the log, or not any more.
    pub(crate) fn find(&self, index: Index) -> Option<Place> {
        if index < self.low_water || index > self.last.index || index == Index::ZERO {
            return None;
        }
        let behind = self.spans.partition_point(|s| s.first <= index);
        if let Some(at) = behind.checked_sub(1)
            && self.spans.get(at).is_some_and(|s| s.last() >= index)
        {
            return Some(Place::Span(at));
        }
        let after = self.refs.partition_point(|r| r.first <= index);
        let segment = self.refs.get(after.checked_sub(1)?)?.segment;
        let mut last = self.last.index;
        if let Some(next) = self.refs.get(after) {
            last = last.min(next.first.prev());
        }
        if let Some(next) = self.spans.get(behind) {
            last = last.min(next.first.prev());
        }
        Some(Place::Segment { segment, last })
    }

    pub(crate) fn span(&self, at: usize) -> Option<&LookupSpan> {
        self.spans.get(at)
    }

    /// The generation of the entry at `index`; zero before the first; none above the last, and none of one below the
    /// entry before the first one kept.
    pub(crate) fn generation_at(&self, index: Index) -> Option<Generation> {
        if index == Index::ZERO {
            return Some(Generation::ZERO);
        }
        if index > self.last.index {
            return None;
        }
        let after = self.runs.partition_point(|r| r.first <= index);
        Some(self.runs.get(after.checked_sub(1)?)?.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Segments of this length, so that a position's is easily told.
    const SEGMENT: u64 = 1 << 20;

    #[derive(Default, PartialEq, Eq, Debug)]
    struct Counts(BTreeMap<u64, u32>);

    impl Holds for Counts {
        fn hold(&mut self, lsn: Lsn) {
            *self.0.entry(lsn.0 / SEGMENT).or_default() += 1;
        }
        fn let_go(&mut self, lsn: Lsn) {
            let segment = lsn.0 / SEGMENT;
            let count = self.0.get_mut(&segment).expect("held");
            *count -= 1;
            if *count == 0 {
                self.0.remove(&segment);
            }
        }
    }

    fn position(index: u64, generation: u64) -> Position {
        Position::new(Index(index), Generation(generation))
    }

    #[test]
    fn contiguous_records_share_a_span() {
        let (mut log, mut holds) = (PartitionLog::default(), Counts::default());
        for i in 0..10u64 {
            log.note(position(i + 1, 1), Lsn(8320 + i * 64), 64, Lsn(8192), &mut holds);
        }
        assert_eq!(log.spans.len(), 1);
        assert!(log.spans[0].pure);
        log.note(position(11, 1), Lsn(8320 + 20 * 64), 64, Lsn(8192), &mut holds);
        assert_eq!((log.spans.len(), log.spans[0].pure, log.spans[0].count), (1, false, 11));
        assert_eq!((log.spans[0].bytes, log.spans[0].held), (21 * 64, 11 * 64));
        log.note(position(12, 2), Lsn(8320 + 21 * 64), 64, Lsn(8192), &mut holds);
        log.note(position(13, 2), Lsn(16512), 64, Lsn(16384), &mut holds);
        assert_eq!(log.spans.len(), 3, "neither generations nor batches share one");
        assert_eq!(log.generation_at(Index(11)), Some(Generation(1)));
        assert_eq!(log.generation_at(Index(13)), Some(Generation(2)));
        assert_eq!(log.generation_at(Index(14)), None);
        assert_eq!(log.generation_at(Index(0)), Some(Generation(0)));
    }

    #[test]
    fn a_trimmed_log_keeps_the_generation_before_its_first_entry() {
        let (mut log, mut holds) = (PartitionLog::default(), Counts::default());
        for (index, generation) in [(1, 1), (2, 1), (3, 2), (4, 5)] {
            log.note(position(index, generation), Lsn(index * 8192), 64, Lsn(index * 8192 - 128), &mut holds);
        }
        log.trim(Index(3), &mut holds);
        assert_eq!(log.generation_at(Index(2)), Some(Generation(1)));
        assert_eq!((log.find(Index(2)), log.find(Index(3))), (None, Some(Place::Span(0))));
        log.trim(Index(5), &mut holds);
        assert_eq!(log.generation_at(Index(4)), Some(Generation(5)));
        assert!(holds.0.is_empty(), "nothing is held for a log that is trimmed to its end");
        log.note(position(5, 5), Lsn(90_000), 64, Lsn(89_000), &mut holds);
        assert_eq!(log.find(Index(5)), Some(Place::Span(0)));
    }

    #[test]
    fn a_segment_is_let_go_with_the_last_entry_above_the_low_water_mark() {
        let mut log = PartitionLog::default();
        let mut holds = Counts::default();
        for i in 0..4u64 {
            log.note(position(i + 1, 1), Lsn(8320 + i * 64), 64, Lsn(8192), &mut holds);
        }
        log.trim(Index(3), &mut holds);
        log.demote(Lsn(0), Lsn(1 << 20), &mut holds);
        assert_eq!(log.refs, [Ref { first: Index(3), segment: Lsn(0) }]);
        for i in 3..=4u64 {
            log.relocate(position(i, 1), Lsn((2 << 20) + i * 64), 64, Lsn(2 << 20), &mut holds);
        }
        assert!(log.refs.is_empty(), "{:?}", log.refs);
    }

    /// Simulation, seed 35: what a move left of a span below the low-water mark held its segment; once that had been given back, the log
    /// did not open.
    #[test]
    fn what_a_move_leaves_below_the_low_water_mark_is_let_go() {
        let (mut log, mut holds) = (PartitionLog::default(), Counts::default());
        for i in 0..4u64 {
            log.note(position(i + 1, 1), Lsn(8320 + i * 64), 64, Lsn(8192), &mut holds);
        }
        log.trim(Index(3), &mut holds);
        for i in 3..=4u64 {
            log.relocate(position(i, 1), Lsn((2 << 20) + i * 64), 64, Lsn(2 << 20), &mut holds);
        }
        let first: Vec<_> = log.spans.iter().map(|s| s.first).collect();
        assert_eq!(first, [Index(3)], "one span, of the moved ones");
        assert_eq!(holds.0.len(), 1, "and one segment that they hold");
    }

    #[test]
    fn a_cut_to_the_low_water_mark_leaves_nothing_held() {
        let (mut log, mut holds) = (PartitionLog::default(), Counts::default());
        for index in 1..=3 {
            log.note(position(index, 1), Lsn(8192 + index * 64), 64, Lsn(8192), &mut holds);
        }
        log.trim(Index(2), &mut holds);
        log.cut(position(1, 1), &mut holds);
        assert!(holds.0.is_empty());
    }

    proptest! {
        /// Against a plain map from index to (generation, lsn), whatever is cut, trimmed, moved and demoted.
        #[test]
        fn finds_what_a_map_finds(script in proptest::collection::vec((0u8..10, 1u64..2000, 0u64..40), 1..160)) {
            let (mut log, mut holds) = (PartitionLog::default(), Counts::default());
            let mut model: Vec<(u64, u64)> = Vec::new();
            let mut low_water = 1;
            let mut demoted = std::collections::BTreeSet::new();
            let (mut lsn, mut batch, mut generation) = (8192 + 128, 8192, 1);
            for (what, amount, keep) in script {
                if lsn % SEGMENT > SEGMENT - 300_000 {
                    batch = (lsn / SEGMENT + 1) * SEGMENT + 8192;
                    lsn = batch + 128;
                }
                match what {
                    0 => {
                        let keep = keep.min(model.len() as u64).max(low_water - 1);
                        model.truncate(keep as usize);
                        log.cut(position(keep, model.last().map_or(0, |m| m.0)), &mut holds);
                    }
                    1 => generation += 1,
                    2 => { batch = lsn + amount * 64; lsn = batch + 128; }
                    3 => { batch = (lsn / SEGMENT + 1) * SEGMENT + 8192; lsn = batch + 128; }
                    4 => {
                        low_water = (low_water + keep / 4).min(model.len() as u64 + 1);
                        log.trim(Index(low_water), &mut holds);
                    }
                    5 => {
                        // A segment that is not written any more.
                        let segment = (lsn / SEGMENT).saturating_sub(keep % 3 + 1);
                        log.demote(Lsn(segment * SEGMENT), Lsn((segment + 1) * SEGMENT), &mut holds);
                        demoted.insert(segment);
                    }
                    6 if (low_water..=model.len() as u64).contains(&keep) => {
                        let moved = &mut model[keep as usize - 1];
                        moved.1 = lsn;
                        log.relocate(position(keep, moved.0), Lsn(lsn), 64, Lsn(batch), &mut holds);
                        lsn += 64;
                    }
                    _ => {
                        model.push((generation, lsn));
                        log.note(position(model.len() as u64, generation), Lsn(lsn), amount as u32 * 64, Lsn(batch), &mut holds);
                        lsn += amount * 64;
                    }
                }
                prop_assert_eq!(log.last.index, Index(model.len() as u64));
                let mut segments = std::collections::BTreeSet::new();
                for (i, (generation, lsn)) in model.iter().enumerate() {
                    let index = Index(i as u64 + 1);
                    if index.0 + 1 >= low_water {
                        prop_assert_eq!(log.generation_at(index), Some(Generation(*generation)));
                    }
                    if index.0 < low_water {
                        prop_assert_eq!(log.find(index), None);
                        continue;
                    }
                    segments.insert(lsn / SEGMENT);
                    match log.find(index) {
                        Some(Place::Span(at)) => {
                            let span = log.span(at).unwrap();
                            prop_assert!(span.lsn.0 <= *lsn && *lsn < span.end().0);
                            if span.pure && span.first == index { prop_assert_eq!(span.lsn.0, *lsn); }
                        }
                        Some(Place::Segment { segment, last }) => {
                            prop_assert_eq!(segment.0 / SEGMENT, lsn / SEGMENT);
                            prop_assert!(demoted.contains(&(lsn / SEGMENT)));
                            prop_assert!(last >= index);
                            for inside in index.0..=last.0 {
                                prop_assert_eq!(model[inside as usize - 1].1 / SEGMENT, lsn / SEGMENT);
                            }
                        }
                        None => prop_assert!(false, "index {} is gone", index),
                    }
                }
                let kept = |span: &LookupSpan| span.last().0 >= low_water;
                prop_assert!(log.spans.iter().all(kept), "a span below the low-water mark {}: {:?}", low_water, log.spans);
                let mut counted = Counts::default();
                log.spans.iter().for_each(|s| counted.hold(s.lsn));
                log.refs.iter().for_each(|r| counted.hold(r.segment));
                prop_assert_eq!(&holds, &counted, "every hold is counted");
                for held in holds.0.keys() {
                    prop_assert!(segments.contains(held), "segment {} holds nothing live", held);
                }
                prop_assert_eq!(log.find(Index(model.len() as u64 + 1)), None);
            }
        }
    }
}
