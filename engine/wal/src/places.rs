//! The pieces of the lookup: a span of entries in memory, a ref to an old segment, a run of one generation.
//!
//! Plain values; what they mean together, and that they hold their segments, is the lookup's business (`lookup`).

use tidelog_types::{Generation, Index, Lsn};

/// A run of entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LookupSpan {
    pub(crate) first: Index,
    pub(crate) generation: Generation,
    /// Where the first record starts (or one before it, of a run that was split).
    pub(crate) lsn: Lsn,
    pub(crate) count: u32,
    /// From `lsn` to the last record's end.
    pub(crate) bytes: u32,
    /// Bytes of these records themselves; after a cut or a split an estimate.
    pub(crate) held: u32,
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
    /// The part of it from `first` to `last`, which overlap it.
    pub(crate) fn clipped(&self, first: Index, last: Index) -> LookupSpan {
        let (from, to) = (self.first.max(first), self.last().min(last));
        if (from, to) == (self.first, self.last()) {
            return *self;
        }
        let count = (to.0 + 1 - from.0) as u32; // at most what it was
        let held = (u64::from(self.held) * u64::from(count) / u64::from(self.count.max(1))) as u32;
        LookupSpan { first: from, count, held, pure: false, ..*self }
    }
}

/// From `first` on, as far as nothing newer says otherwise, entries lie in the segment at `segment`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ref {
    pub(crate) first: Index,
    pub(crate) segment: Lsn,
}

/// From `first` on entries are of this generation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct GenerationRun {
    pub(crate) first: Index,
    pub(crate) generation: Generation,
}

/// Where an entry lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// In the span at this position of the list.
    Span(usize),
    /// Somewhere in the segment at `segment`; the entries up to `last` as well.
    Segment { segment: Lsn, last: Index },
}
