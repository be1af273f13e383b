//! The log's segments as they lie on the disk: where each is, whether it is open, who reads it, what is live in it,
//! and where its summary is.
//!
//! Pure bookkeeping, in the order of positions. It promises that a segment's count of holds is that of the spans and
//! refs into it; it does not know which they are.

use crate::format::SegmentHeader;
use crate::lookup::Holds;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::PathBuf;
use tidelog_io::FileId;
use tidelog_types::{Lsn, PartitionId};

/// Most segments kept open, the one that is written among them; those that are being read do not count. Cold ones are closed, and
/// opened again by whoever reads them.
pub(crate) const FILES_OPEN_MAX: usize = 16;

/// A record of a segment's summary: which partitions it begins with, and where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) first: PartitionId,
    pub(crate) lsn: Lsn,
    /// Length of its payload.
    pub(crate) len: u32,
}

/// What is known of a segment beside its file.
#[derive(Clone, Debug)]
pub(crate) struct SegmentFile {
    pub(crate) path: PathBuf,
    pub(crate) end: Lsn,
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    pub(crate) file: Option<FileId>,
    /// Reads in flight.
    pub(crate) users: u32,
    /// Spans and refs into it.
    pub(crate) holds: u64,
    /// The device did not give all of it: it is not used again. Behind a log's end such a page would look like one that may
    /// have been acknowledged.
    pub(crate) unfit: bool,
    /// Its durable summary, in order; none: its spans are in memory.
    pub(crate) summary: Option<Vec<Piece>>,
    used: u64,
}

/// All segments of the log, a bounded number of them open.
#[derive(Debug, Default)]
pub(crate) struct Files {
    by_base: BTreeMap<Lsn, SegmentFile>,
    clock: u64,
    open: usize,
    /// How often anything was let go.
    let_go: u64,
    /// Bytes of all segments.
    bytes: u64,
}

impl Files {
    pub(crate) fn insert(&mut self, header: &SegmentHeader, path: PathBuf, file: Option<FileId>) {
        self.open += usize::from(file.is_some());
        let segment = SegmentFile {
            path,
            end: header.end(),
            seq: header.segment_seq,
            epoch: header.epoch,
            file,
            users: 0,
            holds: 0,
            unfit: false,
            summary: None,
            used: self.clock,
        };
        self.bytes += header.bytes;
        self.by_base.insert(header.base, segment);
    }

    /// Takes over the segments of another list, none of which is in this one.
    pub(crate) fn absorb(&mut self, other: Files) {
        self.open += other.open;
        self.bytes += other.bytes;
        self.by_base.extend(other.by_base);
    }

    /// Forgets a segment.
    pub(crate) fn remove(&mut self, base: Lsn) -> Option<SegmentFile> {
        let removed = self.by_base.remove(&base)?;
        self.open -= usize::from(removed.file.is_some());
        self.bytes -= removed.end.0 - base.0;
        Some(removed)
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.by_base.len()
    }

    /// All segments, ascending.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (Lsn, &SegmentFile)> {
        self.by_base.iter().map(|(base, file)| (*base, file))
    }

    /// The oldest segment.
    pub(crate) fn oldest(&self) -> Option<(Lsn, &SegmentFile)> {
        self.by_base.first_key_value().map(|(base, file)| (*base, file))
    }

    /// The segment that holds `lsn`, as (base, end).
    pub(crate) fn holding(&self, lsn: Lsn) -> Option<(Lsn, Lsn)> {
        let (base, file) = self.by_base.range(..=lsn).next_back()?;
        (lsn < file.end).then_some((*base, file.end))
    }

    pub(crate) fn peek(&self, base: Lsn) -> Option<&SegmentFile> {
        self.by_base.get(&base)
    }

    /// The file at `base`, for use.
    pub(crate) fn get(&mut self, base: Lsn) -> Option<&mut SegmentFile> {
        self.clock += 1;
        let clock = self.clock;
        let entry = self.by_base.get_mut(&base)?;
        entry.used = clock;
        Some(entry)
    }

    /// Notes that `base` is open now.
    pub(crate) fn opened(&mut self, base: Lsn, file: FileId) {
        if let Some(entry) = self.by_base.get_mut(&base) {
            entry.file = Some(file);
            self.open += 1;
        }
    }

    /// How often anything was let go so far: what this tells of a segment is no longer true when it has risen.
    pub(crate) fn times_let_go(&self) -> u64 {
        self.let_go
    }

    /// Bytes of the segments right behind the one at `base` in which nothing is live, up to the first one in which something is.
    pub(crate) fn idle_behind(&self, base: Lsn, active: Lsn) -> u64 {
        let behind = self.by_base.range((Bound::Excluded(base), Bound::Excluded(active)));
        behind.take_while(|(_, file)| file.holds == 0).map(|(base, file)| file.end.0 - base.0).sum()
    }

    /// A file to be closed because too many are open: the one longest unused, never one at or behind `keep`.
    pub(crate) fn surplus(&mut self, keep: Lsn) -> Option<FileId> {
        if self.open <= FILES_OPEN_MAX {
            return None;
        }
        let oldest = self
            .by_base
            .range_mut(..keep)
            .map(|(_, f)| f)
            .filter(|f| f.file.is_some() && f.users == 0)
            .min_by_key(|f| f.used)?;
        self.open -= 1;
        oldest.file.take()
    }

    /// Every open file, to be closed.
    pub(crate) fn close_all(&mut self) -> Vec<FileId> {
        self.open = 0;
        self.by_base.values_mut().filter_map(|f| f.file.take()).collect()
    }
}

impl Holds for Files {
    fn hold(&mut self, lsn: Lsn) {
        if let Some((_, file)) = self.by_base.range_mut(..=lsn).next_back() {
            file.holds += 1;
        }
    }

    fn let_go(&mut self, lsn: Lsn) {
        if let Some((_, file)) = self.by_base.range_mut(..=lsn).next_back() {
            assert!(file.holds > 0, "a segment is let go as often as it was held");
            file.holds -= 1;
            self.let_go += 1;
        }
    }
}
