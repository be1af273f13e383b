//! Reading a whole segment for what its summary should have said.
//!
//! Piece by piece, batch by batch; where the device does not give all of a piece, page by page. Of a batch that is not good what its
//! footer names is taken where it lies, as an opening would take it; what is no batch of the segment at all is stepped over, and
//! entries in it are then not found, which is what damage means. It does not know which entries are still wanted.

use crate::blocks::Rescanned;
use crate::format::{BATCHES_START, BatchHeader};
use crate::lookup::{Holds, PartitionLog};
use crate::salvage::{What, salvaged};
use crate::scan::{check_records, footer_of, records_of};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::{FixedMap, Incarnation, Lsn, PartitionId, Position, RecordHeader, RecordKind};

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
    cluster: u32,
    at: Lsn,
    end: Lsn,
    /// The extent at `at` is read page by page, because the device did not give all of it: what came so far.
    pages: Option<Vec<u8>>,
    found: FixedMap<PartitionId, PartitionLog>,
}

impl Rescan {
    pub(crate) fn new(
        store: Incarnation,
        seq: u64,
        epoch: u64,
        cluster: u32,
        (base, end): (Lsn, Lsn),
    ) -> Rescan {
        let (at, found) = (base.plus(BATCHES_START), FixedMap::default());
        Rescan { store, seq, epoch, cluster, at, end, pages: None, found }
    }

    /// Of nothing.
    pub(crate) fn empty() -> Rescan {
        Rescan::new(Incarnation(0), 0, 0, 0, (Lsn(0), Lsn(0)))
    }

    /// Bytes from `at` on that are looked at together: a batch, at most.
    fn whole(&self) -> usize {
        (self.end.0 - self.at.0).min(BATCH_BYTES_MAX as u64) as usize
    }

    /// What to read next.
    pub(crate) fn extent(&self) -> (Lsn, usize) {
        match &self.pages {
            Some(pages) => (self.at.plus(pages.len() as u64), PAGE_BYTES),
            None => (self.at, self.whole()),
        }
    }

    /// Takes the bytes of [`Self::extent`]; none: the device did not give them. True: there is more to read.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> bool {
        let whole = self.whole();
        match &mut self.pages {
            None if bytes.is_empty() => self.pages = Some(Vec::with_capacity(whole)),
            None => self.walk(bytes),
            Some(pages) => {
                let behind = pages.len() + PAGE_BYTES;
                pages.extend_from_slice(bytes.get(..PAGE_BYTES).unwrap_or(bytes));
                pages.resize(behind, 0);
                if behind >= whole {
                    let pages = std::mem::take(&mut self.pages).unwrap_or_default();
                    self.walk(&pages);
                }
            }
        }
        self.at.0 + PAGE <= self.end.0
    }

    fn walk(&mut self, bytes: &[u8]) {
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
                    } else {
                        self.bad_batch(&header, rest);
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
    }

    fn batch(&mut self, batch: &BatchHeader, bytes: &[u8]) {
        let mut moved = 0;
        for (offset, record, _, whole) in records_of(bytes, batch) {
            let lsn = batch.lsn.plus(offset as u64);
            let len = whole.len() as u32; // a record
            match record.kind {
                RecordKind::Moved => moved = record.index.0,
                kind if kind.is_entry() => {
                    self.entry(&record, lsn, len, batch.lsn, moved > 0);
                    moved = moved.saturating_sub(1);
                }
                RecordKind::Cut => self.cut(&record),
                _ => {}
            }
        }
    }

    /// What is left of a batch that is not whole, as an opening would take it; nothing, if its footer does not say what it held.
    fn bad_batch(&mut self, batch: &BatchHeader, bytes: &[u8]) {
        let footer = bytes.get(batch.footer_offset as usize..).and_then(|bytes| footer_of(bytes, batch));
        let Some(footer) = footer else { return };
        let bytes = bytes.get(..batch.footer_offset as usize).unwrap_or_default();
        for piece in salvaged(bytes, &footer.own, Some(self.cluster)) {
            match piece.what {
                What::Entry { offset, record, moved } => {
                    let lsn = batch.lsn.plus(offset as u64);
                    let len = record.record_bytes() as u32; // within a batch
                    // What lies between two of them need not be records: none shares a span.
                    self.entry(&record, lsn, len, Lsn(u64::MAX), moved);
                    self.found.entry(record.partition).or_default().close();
                }
                What::Control(record) if record.kind == RecordKind::Cut => self.cut(&record),
                What::Control(_) | What::Lost { .. } => {}
            }
        }
    }

    fn entry(&mut self, record: &RecordHeader, lsn: Lsn, len: u32, batch: Lsn, moved: bool) {
        let log = self.found.entry(record.partition).or_default();
        if moved {
            if record.index > log.last.index {
                log.last = record.position();
            }
            log.relocate(record.position(), lsn, len, batch, &mut Uncounted);
            return;
        }
        if record.index <= log.last.index {
            // There was a cut in between, in what cannot be read.
            let before = Position::new(record.index.prev(), record.prev_generation);
            log.cut(before, &mut Uncounted);
        }
        log.note(record.position(), lsn, len, batch, &mut Uncounted);
    }

    fn cut(&mut self, record: &RecordHeader) {
        self.found.entry(record.partition).or_default().cut(record.position(), &mut Uncounted);
    }

    /// What was found.
    pub(crate) fn spans(self) -> Rescanned {
        self.found.into_iter().map(|(id, log)| (id, log.spans.into())).collect()
    }
}
