//! What the baselines write: records of many writers, framed with a checksum, in one aligned buffer.
//!
//! The least that makes a batch of records: `length4 crc4 sequence8 payload`, back to back, zeros up to the page. No identity, no
//! chain, no footer, no index: what Tidelog adds to it is what the comparison shows.

use bytes::Bytes;
use tidelog_io::{AlignedBuf, BufferPool};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};

const HEADER_BYTES: usize = 16;

/// A batch that grows.
#[derive(Debug)]
pub(crate) struct Batch {
    buffer: AlignedBuf,
    used: usize,
    tags: Vec<u64>,
}

/// A batch that is written as it is.
#[derive(Debug)]
pub(crate) struct Sealed {
    /// Whole pages.
    pub(crate) bytes: Bytes,
    /// Whose records they are.
    pub(crate) tags: Vec<u64>,
}

impl Batch {
    pub(crate) fn new(pool: &BufferPool) -> Batch {
        Batch { buffer: pool.take(BATCH_BYTES_MAX), used: 0, tags: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Adds a record. False: it does not fit.
    pub(crate) fn push(&mut self, tag: u64, sequence: u64, payload: &[u8]) -> bool {
        let end = self.used + HEADER_BYTES + payload.len();
        let Some(space) = self.buffer.get_mut(self.used..end) else { return false };
        let (header, body) = space.split_at_mut(HEADER_BYTES);
        body.copy_from_slice(payload);
        header[..4].copy_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        header[4..8].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        header[8..].copy_from_slice(&sequence.to_le_bytes());
        self.used = end;
        self.tags.push(tag);
        true
    }

    /// Ends it.
    pub(crate) fn seal(mut self) -> Sealed {
        let bytes = self.used.next_multiple_of(PAGE_BYTES);
        self.buffer[self.used..bytes].fill(0);
        self.buffer.truncate(bytes);
        Sealed { bytes: self.buffer.freeze(), tags: self.tags }
    }
}

/// Gathers records into batches: one grows while others wait to be written.
#[derive(Debug)]
pub(crate) struct Batcher {
    pool: BufferPool,
    growing: Batch,
    full: std::collections::VecDeque<Batch>,
    sequence: u64,
}

impl Batcher {
    pub(crate) fn new(pool: BufferPool) -> Batcher {
        Batcher { growing: Batch::new(&pool), pool, full: std::collections::VecDeque::new(), sequence: 0 }
    }

    pub(crate) fn push(&mut self, tag: u64, payload: &[u8]) {
        self.sequence += 1;
        if !self.growing.push(tag, self.sequence, payload) {
            let full = core::mem::replace(&mut self.growing, Batch::new(&self.pool));
            self.full.push_back(full);
            assert!(self.growing.push(tag, self.sequence, payload), "any payload fits an empty batch");
        }
    }

    /// The next batch to write, if there is any record.
    pub(crate) fn take(&mut self) -> Option<Sealed> {
        if let Some(full) = self.full.pop_front() {
            return Some(full.seal());
        }
        (!self.growing.is_empty())
            .then(|| core::mem::replace(&mut self.growing, Batch::new(&self.pool)).seal())
    }
}

const _: () = assert!(HEADER_BYTES + tidelog_types::limits::PAYLOAD_BYTES_MAX <= BATCH_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_the_records_in_order_with_checksums_and_zeros_behind() {
        let pool = BufferPool::new(8 << 20);
        let mut dirty = pool.take(BATCH_BYTES_MAX);
        dirty.fill(0xEE);
        drop(dirty);
        let mut batcher = Batcher::new(pool);
        assert!(batcher.take().is_none());
        let payloads: Vec<Vec<u8>> = (0..5u8).map(|i| vec![i; 1000 + usize::from(i)]).collect();
        for (tag, payload) in (10..).zip(&payloads) {
            batcher.push(tag, payload);
        }
        let sealed = batcher.take().unwrap();
        assert_eq!((sealed.tags, sealed.bytes.len()), (vec![10, 11, 12, 13, 14], 8192));
        let mut rest = &sealed.bytes[..];
        for (sequence, payload) in (1u64..).zip(&payloads) {
            assert_eq!(rest[..4], (payload.len() as u32).to_le_bytes());
            assert_eq!(rest[4..8], crc32c::crc32c(payload).to_le_bytes());
            assert_eq!(rest[8..16], sequence.to_le_bytes());
            assert_eq!(rest[16..16 + payload.len()], payload[..]);
            rest = &rest[16 + payload.len()..];
        }
        assert!(
            rest.iter().all(|b| *b == 0),
            "what an earlier use left in the buffer does not reach the disk"
        );
    }

    #[test]
    fn what_does_not_fit_goes_into_the_next_batch() {
        let mut batcher = Batcher::new(BufferPool::new(8 << 20));
        for tag in 0..5 {
            batcher.push(tag, &vec![1; 1 << 20]);
        }
        let tags: Vec<Vec<u64>> = core::iter::from_fn(|| batcher.take()).map(|s| s.tags).collect();
        assert_eq!(tags, [vec![0, 1, 2], vec![3, 4]]);
    }
}
