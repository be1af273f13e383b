//! The tail cache: recent batches, whole, as they went to the disk.
//!
//! Batches in flight are always here: nothing else could serve them before they are durable. Others stay until
//! the budget is used up, oldest out first.

use crate::frozen::Frozen;
use crate::places::LookupSpan;
use bytes::Bytes;
use std::collections::VecDeque;
use tidelog_types::{Index, Lsn, PartitionId, RecordHeader};

#[derive(Debug)]
struct Cached {
    lsn: Lsn,
    end: Lsn,
    held: usize,
    pieces: Vec<(usize, Bytes)>,
}

/// Recent batches by position.
#[derive(Debug)]
pub(crate) struct TailCache {
    batches: VecDeque<Cached>,
    held: usize,
    held_max: usize,
}

/// Pieces of one partition's records being gathered; adjacent ones are joined.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    pub(crate) pieces: Vec<Bytes>,
    pub(crate) bytes: usize,
}

impl TailCache {
    pub(crate) fn new(held_max: usize) -> TailCache {
        TailCache { batches: VecDeque::new(), held: 0, held_max }
    }

    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Takes in a batch; those that end at or before `durable` may go for it.
    pub(crate) fn insert(&mut self, frozen: &Frozen, durable: Lsn) {
        self.held += frozen.held;
        self.batches.push_back(Cached {
            lsn: frozen.link.lsn,
            end: frozen.end(),
            held: frozen.held,
            pieces: frozen.pieces.clone(),
        });
        while self.held > self.held_max
            && let Some(oldest) = self.batches.front()
            && oldest.end <= durable
        {
            self.held -= oldest.held;
            self.batches.pop_front();
        }
    }

    fn batch(&self, lsn: Lsn) -> Option<&Cached> {
        let at = self.batches.partition_point(|b| b.lsn <= lsn).checked_sub(1)?;
        self.batches.get(at).filter(|b| lsn < b.end)
    }

    /// Adds the records `first ..= last` of `span`, which lies in the cache, as far as `bytes_max` goes (but at
    /// least one if nothing is gathered yet). Returns the last index added; none if the span is not cached.
    pub(crate) fn gather(
        &self,
        partition: PartitionId,
        span: &LookupSpan,
        first: Index,
        last: Index,
        bytes_max: usize,
        into: &mut Gather,
    ) -> Option<Option<Index>> {
        let batch = self.batch(span.lsn)?;
        let from = (span.lsn.0 - batch.lsn.0) as usize; // inside a batch
        let bytes = span.bytes as usize;
        if span.pure && first <= span.first && span.last() <= last && into.bytes + bytes <= bytes_max {
            batch.slice(from, from + bytes, into);
            return Some(Some(span.last()));
        }
        let (mut at, mut expected, mut done) = (from, span.first, None);
        // Adjacent records leave as one piece.
        let mut pending: Option<(usize, usize)> = None;
        while at < from + bytes && expected <= last.min(span.last()) {
            let header = batch.header(at)?;
            let len = header.record_bytes();
            if header.partition == partition
                && header.kind.is_entry()
                && header.index == expected
                && header.generation == span.generation
            {
                if expected >= first {
                    let gathered = into.bytes + pending.map_or(0, |p| p.1 - p.0);
                    if gathered + len > bytes_max && gathered > 0 {
                        break;
                    }
                    pending = match pending {
                        Some((start, end)) if end == at => Some((start, at + len)),
                        Some((start, end)) => {
                            batch.slice(start, end, into);
                            Some((at, at + len))
                        }
                        None => Some((at, at + len)),
                    };
                    done = Some(expected);
                }
                expected = expected.next();
            }
            at += len;
        }
        if let Some((start, end)) = pending {
            batch.slice(start, end, into);
        }
        Some(done)
    }
}

impl Cached {
    /// The piece that offset `at` lies in.
    fn piece(&self, at: usize) -> Option<&(usize, Bytes)> {
        self.pieces.get(self.pieces.partition_point(|p| p.0 <= at).checked_sub(1)?)
    }

    fn header(&self, at: usize) -> Option<RecordHeader> {
        let (start, bytes) = self.piece(at)?;
        RecordHeader::decode(bytes.get(at - start..)?).ok()
    }

    /// Adds `from .. to`, piece by piece.
    fn slice(&self, mut from: usize, to: usize, into: &mut Gather) {
        into.bytes += to - from;
        while from < to
            && let Some((start, bytes)) = self.piece(from)
        {
            let end = to.min(start + bytes.len());
            if end <= from {
                return;
            }
            into.pieces.push(bytes.slice(from - start..end - start));
            from = end;
        }
    }
}
