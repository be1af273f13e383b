//! Reading a whole segment for what its summary should have said.
//!
//! Piece by piece, batch by batch; what is not a good batch of the segment is stepped over, and entries in it are then
//! not found, which is what damage means. It does not know which entries are still wanted.

use crate::blocks::Rescanned;
use crate::format::{BATCHES_START, BatchHeader};
use crate::lookup::{Holds, PartitionLog};
use crate::scan::{check_records, records_of};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::{FixedMap, Incarnation, Lsn, PartitionId, RecordKind};

const PAGE: u64 = PAGE_BYTES as u64;

/// Nothing is counted.
struct Uncounted;

impl Holds for Uncounted {
    fn hold(&mut self, _: Lsn) {}
    fn let_go(&mut self, _: Lsn) {}
}

/// A segment being read.
#[derive(Debug)]
pub(crate) struct Rescan {
    store: Incarnation,
    seq: u64,
    epoch: u64,
    at: Lsn,
    end: Lsn,
    /// The device did not give all of it.
    gaps: bool,
    found: FixedMap<PartitionId, PartitionLog>,
}

impl Rescan {
    pub(crate) fn new(store: Incarnation, seq: u64, epoch: u64, base: Lsn, end: Lsn) -> Rescan {
        Rescan {
            store,
            seq,
            epoch,
            at: base.plus(BATCHES_START),
            end,
            gaps: false,
            found: FixedMap::default(),
        }
    }

    /// Of nothing.
    pub(crate) fn empty() -> Rescan {
        Rescan::new(Incarnation(0), 0, 0, Lsn(0), Lsn(0))
    }

    /// What to read next.
    pub(crate) fn extent(&self) -> (Lsn, usize) {
        (self.at, (self.end.0 - self.at.0).min(BATCH_BYTES_MAX as u64) as usize) // a batch, at most
    }

    /// Takes the bytes of [`Self::extent`]. True: there is more to read.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> bool {
        let start = self.at;
        loop {
            let from = (self.at.0 - start.0) as usize; // within the extent
            let rest = bytes.get(from..).unwrap_or_default();
            let whole = BatchHeader::decode(rest).ok().filter(|h| {
                (h.store, h.segment_seq, h.epoch, h.lsn) == (self.store, self.seq, self.epoch, self.at)
            });
            match whole {
                Some(header) if header.total_len as usize <= rest.len() => {
                    if check_records(rest, &header).is_ok() {
                        self.batch(&header, rest);
                    }
                    self.at = header.end();
                }
                // It goes on behind what was read: from its start, next time.
                Some(_) if self.at > start => break,
                _ => self.at = self.at.plus(PAGE),
            }
            if self.at.0 >= start.0 + bytes.len() as u64 {
                break;
            }
        }
        // Nothing came back: it can only be stepped over.
        if self.at == start {
            self.at = self.at.plus(PAGE);
        }
        self.gaps |= bytes.is_empty();
        self.at.0 + PAGE <= self.end.0
    }

    fn batch(&mut self, batch: &BatchHeader, bytes: &[u8]) {
        let mut moved = 0;
        for (offset, record, _, whole) in records_of(bytes, batch) {
            let log = self.found.entry(record.partition).or_default();
            let lsn = batch.lsn.plus(offset as u64);
            let len = whole.len() as u32; // a record
            match record.kind {
                RecordKind::Moved => moved = record.index.0,
                kind if kind.is_entry() && moved > 0 => {
                    moved -= 1;
                    if record.index > log.last.index {
                        log.last = record.position();
                    }
                    log.relocate(record.position(), lsn, len, batch.lsn, &mut Uncounted);
                }
                kind if kind.is_entry() => {
                    log.note(record.position(), lsn, len, batch.lsn, &mut Uncounted);
                }
                RecordKind::Cut => log.cut(record.position(), &mut Uncounted),
                _ => {}
            }
        }
    }

    /// Whether it could not read all of the segment.
    pub(crate) const fn has_gaps(&self) -> bool {
        self.gaps
    }

    /// What was found.
    pub(crate) fn spans(self) -> Rescanned {
        self.found.into_iter().map(|(id, log)| (id, log.spans.into())).collect()
    }
}
