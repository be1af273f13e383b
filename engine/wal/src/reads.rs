//! Reads of older entries from the disk: which bytes, and what is taken from them.
//!
//! A read is one disk operation over one extent of one segment; it may give fewer entries than asked for, but
//! at least one. What comes back is verified record by record (both checksums, partition, index, generation) and
//! against the lookup as it is then: entries cut meanwhile are not given.

use crate::error::ReadError;
use crate::lookup::{LookupSpan, PartitionLog};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tidelog_io::FileId;
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::{Generation, Index, Lsn, PartitionId, RecordHeader};

/// Most reads in flight.
pub(crate) const READS_MAX: usize = 64;
/// Most files of older segments kept open.
pub(crate) const FILES_OPEN_MAX: usize = 64;
/// Times that a read begins again because its entries were cut.
pub(crate) const TRIES_MAX: u8 = 3;

/// The caller's number of a read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReadId(pub u64);

/// Consecutive records of one partition, as they lie on the disk and travel to peers.
#[derive(Clone, Debug)]
pub struct Run {
    /// First index.
    pub first: Index,
    /// Last index.
    pub last: Index,
    /// Generation of the entry before the first.
    pub prev_generation: Generation,
    /// The records back to back. Each piece holds whole records.
    pub pieces: Vec<Bytes>,
    /// Total length of the pieces.
    pub bytes: usize,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub(crate) read: ReadId,
    pub(crate) partition: PartitionId,
    pub(crate) first: Index,
    pub(crate) last: Index,
    pub(crate) bytes_max: usize,
    pub(crate) tries: u8,
    /// Base of the segment read from.
    pub(crate) base: Lsn,
    /// What is read: whole pages.
    pub(crate) extent: Lsn,
    pub(crate) extent_bytes: usize,
    spans: Vec<LookupSpan>,
}

impl ReadJob {
    pub(crate) fn new(
        read: ReadId,
        partition: PartitionId,
        first: Index,
        last: Index,
        bytes_max: usize,
    ) -> ReadJob {
        ReadJob {
            read,
            partition,
            first,
            last,
            bytes_max: bytes_max.min(BATCH_BYTES_MAX),
            tries: 0,
            base: Lsn(0),
            extent: Lsn(0),
            extent_bytes: 0,
            spans: Vec::new(),
        }
    }

    /// Chooses what to read, from the lookup as it is now. `segment` tells a position's segment as (base, end).
    pub(crate) fn plan(
        &mut self,
        log: &PartitionLog,
        segment: impl Fn(Lsn) -> Option<(Lsn, Lsn)>,
    ) -> Result<(), ReadError> {
        let not_here = ReadError::NotHere { first: self.first, last: log.last };
        self.spans.clear();
        let mut at = log.find(self.first).ok_or(not_here.clone())?;
        let head = *log.span(at).ok_or(not_here.clone())?;
        let (base, end) = segment(head.lsn).ok_or(not_here)?;
        let page = PAGE_BYTES as u64;
        let start = head.lsn.0 / page * page;
        let mut stop = head.end();
        while let Some(span) = log.span(at)
            && span.first <= self.last
            && !span.is_lost()
            && span.lsn >= head.lsn
            && span.end() <= end
            && (self.spans.is_empty() || span.end().0 - start <= self.bytes_max as u64)
        {
            stop = stop.max(span.end());
            self.spans.push(*span);
            at += 1;
        }
        self.base = base;
        self.extent = Lsn(start);
        self.extent_bytes = (stop.0 - start).next_multiple_of(page) as usize; // bounded by bytes_max or one span
        Ok(())
    }

    /// Drops what the lookup does not name any more. False: nothing is left.
    pub(crate) fn still_there(&mut self, log: &PartitionLog) -> bool {
        let mut kept = 0;
        for span in &mut self.spans {
            let now = log.find(span.first).and_then(|at| log.span(at));
            match now {
                Some(now) if now.lsn == span.lsn && now.generation == span.generation => {
                    kept += 1;
                    if now.count < span.count {
                        span.count = now.count;
                        break;
                    }
                }
                _ => break,
            }
        }
        self.spans.truncate(kept);
        self.spans.first().is_some_and(|s| s.last() >= self.first)
    }

    /// Takes the records out of the extent's bytes.
    pub(crate) fn extract(&self, bytes: &Bytes) -> Result<Run, Flaw> {
        let mut run = Run {
            first: self.first,
            last: Index::ZERO,
            prev_generation: Generation::ZERO,
            pieces: Vec::new(),
            bytes: 0,
        };
        let mut pending: Option<(usize, usize)> = None;
        let mut next = self.first;
        'spans: for span in &self.spans {
            let mut at = (span.lsn.0 - self.extent.0) as usize; // within the extent
            let end = at + span.bytes as usize;
            let mut expected = span.first;
            while expected <= span.last() && expected <= self.last {
                let flaw = |why: String| Flaw { lsn: Lsn(self.extent.0 + at as u64), index: expected, why };
                if at >= end {
                    return Err(flaw("the record is not there".into()));
                }
                let rest = bytes.get(at..end.min(bytes.len())).unwrap_or_default();
                let header = RecordHeader::decode(rest).map_err(|e| flaw(e.to_string()))?;
                let len = header.record_bytes();
                if header.partition == self.partition
                    && header.kind.is_entry()
                    && header.index == expected
                    && header.generation == span.generation
                {
                    if expected == next {
                        RecordHeader::decode_record(rest).map_err(|e| flaw(e.to_string()))?;
                        if run.bytes + len > self.bytes_max && run.bytes > 0 {
                            break 'spans;
                        }
                        if run.bytes == 0 {
                            run.prev_generation = header.prev_generation;
                        }
                        run.bytes += len;
                        run.last = next;
                        next = next.next();
                        pending = match pending {
                            Some((start, stop)) if stop == at => Some((start, at + len)),
                            other => {
                                if let Some((start, stop)) = other {
                                    run.pieces.push(bytes.slice(start..stop));
                                }
                                Some((at, at + len))
                            }
                        };
                    }
                    expected = expected.next();
                }
                at += len;
            }
        }
        if let Some((start, stop)) = pending {
            run.pieces.push(bytes.slice(start..stop));
        }
        Ok(run)
    }
}

/// What is wrong with bytes read.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub(crate) lsn: Lsn,
    pub(crate) index: Index,
    pub(crate) why: String,
}

/// A segment's file as readers know it.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) path: PathBuf,
    pub(crate) end: Lsn,
    pub(crate) file: Option<FileId>,
    /// Reads in flight.
    pub(crate) users: u32,
    used: u64,
}

/// All live segments' files, a bounded number of them open.
#[derive(Debug, Default)]
pub(crate) struct Files {
    by_base: BTreeMap<Lsn, SegmentFile>,
    clock: u64,
    open: usize,
}

impl Files {
    pub(crate) fn insert(&mut self, base: Lsn, end: Lsn, path: PathBuf, file: Option<FileId>) {
        self.open += usize::from(file.is_some());
        self.by_base.insert(base, SegmentFile { path, end, file, users: 0, used: self.clock });
    }

    pub(crate) fn len(&self) -> usize {
        self.by_base.len()
    }

    /// The segment that holds `lsn`, as (base, end).
    pub(crate) fn holding(&self, lsn: Lsn) -> Option<(Lsn, Lsn)> {
        let (base, file) = self.by_base.range(..=lsn).next_back()?;
        (lsn < file.end).then_some((*base, file.end))
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
