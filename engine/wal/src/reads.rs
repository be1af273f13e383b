//! Reads of older entries from the disk: which bytes, and what is taken from them.
//!
//! A read is one disk operation over one extent of one segment; it may give fewer entries than asked for, but
//! at least one. What comes back is verified record by record (both checksums, partition, index, generation) and
//! against the lookup as it is then: entries cut meanwhile are not given.

use crate::files::Piece;
use crate::lookup::PartitionLog;
use crate::places::{LookupSpan, Place};
use crate::rescan::Rescan;
use bytes::Bytes;
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::{Generation, Index, Lsn, PartitionId, RecordHeader};

/// Most reads in flight.
pub(crate) const READS_MAX: usize = 64;
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

/// What the bytes that are being read are.
#[derive(Debug, Default)]
pub(crate) enum Stage {
    /// The entries.
    #[default]
    Entries,
    /// A piece of a summary, which says where they are.
    Summary(Piece),
    /// All of a segment whose summary does not.
    Segment(Box<Rescan>),
    /// Whatever lies there.
    Raw,
}

/// Who wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Purpose {
    /// Whoever called `read`.
    #[default]
    Caller,
    /// The log: the entries are to be moved.
    Move,
    /// The log: what is live in a segment.
    Measure,
    /// The log: whether it is as it was written.
    Scrub,
    /// The log: what a segment's summary has to say.
    Resum,
}

/// A read under way.
#[derive(Debug)]
pub(crate) struct ReadJob {
    pub(crate) stage: Stage,
    pub(crate) purpose: Purpose,
    pub(crate) read: ReadId,
    pub(crate) partition: PartitionId,
    pub(crate) first: Index,
    pub(crate) last: Index,
    /// The last one that was asked for.
    pub(crate) wanted: Index,
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
            stage: Stage::Entries,
            purpose: Purpose::Caller,
            read,
            partition,
            first,
            last,
            wanted: last,
            bytes_max: bytes_max.min(BATCH_BYTES_MAX),
            tries: 0,
            base: Lsn(0),
            extent: Lsn(0),
            extent_bytes: 0,
            spans: Vec::new(),
        }
    }

    /// Of bytes of the segment at `base`, whatever they are.
    pub(crate) fn raw(base: Lsn, extent: Lsn, bytes: usize) -> ReadJob {
        ReadJob {
            stage: Stage::Raw,
            purpose: Purpose::Scrub,
            base,
            extent,
            extent_bytes: bytes,
            ..ReadJob::new(ReadId(0), PartitionId(0), Index::ZERO, Index::ZERO, 0)
        }
    }

    pub(crate) const fn is_raw(&self) -> bool {
        matches!(self.stage, Stage::Raw)
    }

    /// The first of its spans, and those behind it of which `overlaps` says the same: only they are read. What it says, and the
    /// last of them.
    pub(crate) fn keep_alike(&mut self, overlaps: impl Fn(Lsn, Lsn) -> bool) -> (bool, Index) {
        let says = |span: &LookupSpan| overlaps(span.lsn, span.end());
        let first = self.spans.first().is_some_and(says);
        let alike = self.spans.iter().take_while(|span| says(span) == first).count();
        self.spans.truncate(alike);
        let (_, stop) = self.range();
        let bytes = stop.0.saturating_sub(self.extent.0).next_multiple_of(PAGE_BYTES as u64);
        self.extent_bytes = self.extent_bytes.min(bytes as usize); // not more than it was
        (first, self.reaches())
    }

    /// From the first of its spans to the last one's end.
    pub(crate) fn range(&self) -> (Lsn, Lsn) {
        let from = self.spans.first().map_or(Lsn(0), |span| span.lsn);
        (from, self.spans.iter().map(LookupSpan::end).max().unwrap_or(from))
    }

    /// The last entry of its spans.
    pub(crate) fn reaches(&self) -> Index {
        self.spans.last().map_or(self.first, LookupSpan::last)
    }

    /// Whether what it reads only says where entries are.
    pub(crate) const fn is_looking_up(&self) -> bool {
        matches!(self.stage, Stage::Summary(_) | Stage::Segment(_))
    }

    /// Whether it is of more than one span.
    pub(crate) fn is_of_many(&self) -> bool {
        self.spans.len() > 1
    }

    /// Chooses what to read of `spans`, which begin with the one that has the first entry, in the segment at
    /// `base .. end`. False: there is none.
    pub(crate) fn plan<'a>(
        &mut self,
        spans: impl Iterator<Item = &'a LookupSpan>,
        (base, end): (Lsn, Lsn),
    ) -> bool {
        self.spans.clear();
        let page = PAGE_BYTES as u64;
        let (mut start, mut stop) = (0, Lsn(0));
        for span in spans {
            let begins = match self.spans.last() {
                None => {
                    start = span.lsn.0 / page * page;
                    true
                }
                Some(before) => {
                    before.last().next() == span.first
                        && span.lsn.0 >= start
                        && span.end().0.saturating_sub(start) <= self.bytes_max as u64
                }
            };
            if !begins || span.is_lost() || span.first > self.last || span.lsn < base || span.end() > end {
                break;
            }
            stop = stop.max(span.end());
            self.spans.push(*span);
        }
        self.stage = Stage::Entries;
        self.base = base;
        self.extent = Lsn(start);
        self.extent_bytes = stop.0.saturating_sub(start).next_multiple_of(page) as usize; // bounded by bytes_max or one span
        !self.spans.is_empty()
    }

    /// Drops what the lookup does not name any more. False: nothing is left.
    pub(crate) fn still_there(&mut self, log: &PartitionLog) -> bool {
        let mut kept = 0;
        for span in &mut self.spans {
            // Those before the first one asked for may have been moved.
            let first = span.first.max(log.low_water).max(self.first);
            if first > span.last() || log.generation_at(first) != Some(span.generation) {
                break;
            }
            let reaches = match log.find(first) {
                Some(Place::Span(at)) => log.span(at).filter(|now| now.lsn == span.lsn).map(LookupSpan::last),
                // Its spans may have left memory since.
                Some(Place::Segment { segment, last }) => (segment == self.base).then_some(last),
                None => None,
            };
            let Some(reaches) = reaches.filter(|r| *r >= first) else { break };
            kept += 1;
            if reaches < span.last() {
                *span = span.clipped(span.first, reaches);
                break;
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
                let lsn = Lsn(self.extent.0 + at as u64);
                // What lies behind a header that is bad cannot be come by. What lies before the first entry asked for may be whole by
                // now, elsewhere: nothing is said of it.
                let index = expected.max(next);
                let flaw = |why: String| Flaw { lsn, index, through: span.last(), why };
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
                        RecordHeader::decode_record(rest)
                            .map_err(|e| Flaw { through: expected, ..flaw(e.to_string()) })?;
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
    /// The first entry asked for that is not to be had.
    pub(crate) index: Index,
    /// The last entry that is not to be had because of it.
    pub(crate) through: Index,
    pub(crate) why: String,
}
