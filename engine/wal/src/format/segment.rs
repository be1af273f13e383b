//! The segment header: page 0 of a WAL file, with a copy in page 1. `docs/formats/segment.md`.

use super::{Fields, FormatError, check};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Incarnation, Lsn, NodeId, ShardId};

/// First four bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 4] = *b"TLsg";
/// The segment format written now.
pub const SEGMENT_VERSION: u32 = 2;
/// The one before it: nothing is said of the epoch, and a batch may end in its first page.
const PLAIN_VERSION: u32 = 1;
/// Offset of a segment's first batch.
pub const BATCHES_START: u64 = 2 * PAGE_BYTES as u64;

/// What a segment says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    /// The shard whose log it is.
    pub shard: ShardId,
    /// The data directory's life.
    pub store: Incarnation,
    /// The node.
    pub node: NodeId,
    /// Number of this use of the file, never used twice in one directory.
    pub segment_seq: u64,
    /// LSN of the file's first byte.
    pub base: Lsn,
    /// Length of the file.
    pub bytes: u64,
    /// Number of the opening that wrote it.
    pub epoch: u64,
    /// Where the log of all earlier epochs ends: everything before it is proven, nothing behind it counts.
    /// 0: there is none.
    pub prev_epoch_end: Lsn,
    /// The file was a segment before: what lies behind the last batch is of an earlier use, not zeros.
    pub recycled: bool,
    /// The epoch was in use when this was written, and everything of it before this position was durable. 0: it may not have been in
    /// use yet.
    pub durable: Lsn,
    /// No footer lies in the first page of its batch: no single page is all that says of a batch that it was there.
    pub footers_apart: bool,
}

impl SegmentHeader {
    /// The header's page.
    pub fn encode(&self, page: &mut [u8; PAGE_BYTES]) {
        page.fill(0);
        let mut out = Vec::with_capacity(72);
        let version = if self.footers_apart { SEGMENT_VERSION } else { PLAIN_VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&self.shard.0.to_le_bytes());
        for field in [
            self.store.0,
            self.node.0,
            self.segment_seq,
            self.base.0,
            self.bytes,
            self.epoch,
            self.prev_epoch_end.0,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&u32::from(self.recycled).to_le_bytes());
        if self.footers_apart {
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&self.durable.0.to_le_bytes());
        }
        page[8..8 + out.len()].copy_from_slice(&out);
        let crc = crc32c::crc32c(&page[8..]);
        page[..4].copy_from_slice(&SEGMENT_MAGIC);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads and verifies one copy from the start of `bytes`.
    ///
    /// # Errors
    /// Says in which way the bytes are not a segment header.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
        let page: &[u8; PAGE_BYTES] = bytes.first_chunk().ok_or(FormatError::Short)?;
        let (_, covered) = page.split_at(8);
        check(page, SEGMENT_MAGIC, covered)?;
        let mut fields = Fields::new(covered);
        let version = fields.u32()?;
        if !(PLAIN_VERSION..=SEGMENT_VERSION).contains(&version) {
            return Err(FormatError::Version(version));
        }
        let mut header = SegmentHeader {
            shard: ShardId(fields.u32()?),
            store: Incarnation(fields.u64()?),
            node: NodeId(fields.u64()?),
            segment_seq: fields.u64()?,
            base: Lsn(fields.u64()?),
            bytes: fields.u64()?,
            epoch: fields.u64()?,
            prev_epoch_end: Lsn(fields.u64()?),
            recycled: false,
            durable: Lsn(0),
            footers_apart: version > PLAIN_VERSION,
        };
        header.recycled = match fields.u32()? {
            0 => false,
            1 => true,
            _ => return Err(FormatError::Field("flags")),
        };
        if header.footers_apart {
            fields.zero::<4>()?;
            header.durable = Lsn(fields.u64()?);
        }
        fields.zero::<60>()?;
        let page = PAGE_BYTES as u64;
        if !header.bytes.is_multiple_of(page) || header.bytes <= BATCHES_START {
            return Err(FormatError::Field("size"));
        }
        if !header.base.0.is_multiple_of(page) || header.base.0.checked_add(header.bytes).is_none() {
            return Err(FormatError::Field("base_lsn"));
        }
        if header.epoch == 0 || header.segment_seq == 0 {
            return Err(FormatError::Field("epoch"));
        }
        if header.prev_epoch_end > header.base || !header.prev_epoch_end.0.is_multiple_of(page) {
            return Err(FormatError::Field("prev_epoch_end_lsn"));
        }
        if header.durable > header.base || !header.durable.0.is_multiple_of(page) {
            return Err(FormatError::Field("epoch_durable_lsn"));
        }
        Ok(header)
    }

    /// Reads the header of a file from its first two pages: the first valid copy.
    ///
    /// # Errors
    /// The first copy's, if neither is valid (the second's if that one says that the version is newer).
    pub fn decode_either(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
        match SegmentHeader::decode(bytes) {
            Ok(header) => Ok(header),
            Err(first) => match SegmentHeader::decode(bytes.get(PAGE_BYTES..).ok_or(FormatError::Short)?) {
                Ok(header) => Ok(header),
                Err(second) if second.is_newer() => Err(second),
                Err(_) => Err(first),
            },
        }
    }

    /// LSN of the first batch.
    pub const fn start(&self) -> Lsn {
        self.base.plus(BATCHES_START)
    }

    /// LSN behind the last byte.
    pub const fn end(&self) -> Lsn {
        self.base.plus(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> SegmentHeader {
        SegmentHeader {
            shard: ShardId(0),
            store: Incarnation(7),
            node: NodeId(2),
            segment_seq: 5,
            base: Lsn(4 << 20),
            bytes: 1 << 20,
            epoch: 3,
            prev_epoch_end: Lsn(12288),
            recycled: true,
            durable: Lsn(3 << 20),
            footers_apart: true,
        }
    }

    #[test]
    fn one_bad_copy_is_survived_and_two_are_not() {
        let mut bytes = vec![0; 2 * PAGE_BYTES];
        let mut page = [0; PAGE_BYTES];
        sample().encode(&mut page);
        bytes[..PAGE_BYTES].copy_from_slice(&page);
        bytes[PAGE_BYTES..].copy_from_slice(&page);
        for flipped in [9, 100, 4095] {
            let mut bad = bytes.clone();
            bad[flipped] ^= 1;
            assert_eq!(SegmentHeader::decode_either(&bad), Ok(sample()));
            bad[PAGE_BYTES + flipped] ^= 1;
            assert!(matches!(SegmentHeader::decode_either(&bad), Err(FormatError::Checksum { .. })));
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut page = [0; PAGE_BYTES];
        sample().encode(&mut page);
        page[8] = 3;
        let crc = crc32c::crc32c(&page[8..]);
        page[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&page), Err(FormatError::Version(3)));
    }

    #[test]
    fn a_header_of_the_version_before_says_nothing_of_its_epoch() {
        let plain = SegmentHeader { durable: Lsn(0), footers_apart: false, ..sample() };
        let mut page = [0; PAGE_BYTES];
        plain.encode(&mut page);
        assert_eq!(page[8], 1, "it is written again as it was");
        assert_eq!(SegmentHeader::decode(&page), Ok(plain));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(start in proptest::collection::vec(any::<u8>(), 0..128), valid: bool) {
            let mut page = [0u8; PAGE_BYTES];
            page[..start.len()].copy_from_slice(&start);
            if valid {
                page[..4].copy_from_slice(&SEGMENT_MAGIC);
                let crc = crc32c::crc32c(&page[8..]);
                page[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = SegmentHeader::decode(&page);
            let _ = SegmentHeader::decode(&start);
        }
    }
}
