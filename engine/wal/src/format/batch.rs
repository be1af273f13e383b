//! The batch header. `docs/formats/batch.md`.

use super::{Fields, FormatError, check};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES, RECORD_ALIGN};
use tidelog_types::{Incarnation, Lsn, WallMs};

/// First four bytes of a batch.
pub const BATCH_MAGIC: [u8; 4] = *b"TLba";
/// The batch format written now.
pub const BATCH_VERSION: u16 = 1;
/// Length of the header: the first record follows it.
pub const BATCH_HEADER_BYTES: usize = 128;
/// Smallest offset of a footer: not in the header's sector, so that one torn sector cannot take both.
pub const FOOTER_OFFSET_MIN: usize = 512;
/// Written while opening: the epoch is not in use yet.
pub const FLAG_OPEN: u32 = 1;
/// The last batch written while opening: from here on the epoch counts.
pub const FLAG_DONE: u32 = 2;
/// Written in an idle moment to prove what lies before it; holds no entry, promise or cut.
pub const FLAG_SEAL: u32 = 4;
const FLAGS_KNOWN: u32 = FLAG_OPEN | FLAG_DONE | FLAG_SEAL;

const _: () = assert!(BATCH_HEADER_BYTES.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(FOOTER_OFFSET_MIN >= BATCH_HEADER_BYTES && FOOTER_OFFSET_MIN < PAGE_BYTES);

/// What a batch says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchHeader {
    /// CRC32C of the header as stored: the next batch names it.
    pub crc: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// The data directory's life.
    pub store: Incarnation,
    /// The segment that it lies in.
    pub segment_seq: u64,
    /// The opening that wrote it.
    pub epoch: u64,
    /// Its position.
    pub lsn: Lsn,
    /// Its number, dense over segments and epochs.
    pub batch_seq: u64,
    /// Position of the batch before it; 0: none.
    pub prev: Lsn,
    /// Everything of this epoch before this position was durable when this batch was submitted.
    pub durable: Lsn,
    /// Position of the batch that ends the newest base checkpoint; 0: none.
    pub checkpoint: Lsn,
    /// Position of the batch that ends the one before it, which is kept as well; 0: none.
    pub older_checkpoint: Lsn,
    /// Length, a multiple of the page.
    pub total_len: u32,
    /// Offset of the footer.
    pub footer_offset: u32,
    /// Number of records, padding records included.
    pub record_count: u32,
    /// CRC32C of the 64-byte headers of all records, in order.
    pub records_crc: u32,
    /// `crc` of the batch before it; 0: none.
    pub prev_crc: u32,
    /// The node's wall clock, for people.
    pub wall: WallMs,
}

impl BatchHeader {
    /// Encodes it; the stored checksum is computed, whatever `crc` says, and returned.
    pub fn encode(&self, out: &mut [u8; BATCH_HEADER_BYTES]) -> u32 {
        let mut b = Vec::with_capacity(BATCH_HEADER_BYTES);
        b.extend_from_slice(&BATCH_MAGIC);
        b.extend_from_slice(&[0; 4]);
        b.extend_from_slice(&BATCH_VERSION.to_le_bytes());
        b.extend_from_slice(&(BATCH_HEADER_BYTES as u16).to_le_bytes());
        b.extend_from_slice(&self.flags.to_le_bytes());
        for field in [
            self.store.0,
            self.segment_seq,
            self.epoch,
            self.lsn.0,
            self.batch_seq,
            self.prev.0,
            self.durable.0,
            self.checkpoint.0,
        ] {
            b.extend_from_slice(&field.to_le_bytes());
        }
        for field in
            [self.total_len, self.footer_offset, self.record_count, self.records_crc, self.prev_crc, 0]
        {
            b.extend_from_slice(&field.to_le_bytes());
        }
        b.extend_from_slice(&self.wall.0.to_le_bytes());
        b.extend_from_slice(&self.older_checkpoint.0.to_le_bytes());
        b.extend_from_slice(&[0; 8]);
        out.copy_from_slice(&b);
        let crc = crc32c::crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// Reads and verifies a header from the start of `bytes`. Whether it belongs there is the caller's question.
    ///
    /// # Errors
    /// Says in which way the bytes are not a batch header.
    pub fn decode(bytes: &[u8]) -> Result<BatchHeader, FormatError> {
        let mut prefix = Fields::new(bytes);
        prefix.take::<8>()?;
        let version = prefix.u16()?;
        let header_len = usize::from(prefix.u16()?);
        if !(BATCH_HEADER_BYTES..=PAGE_BYTES).contains(&header_len) {
            // Still say "no magic" first: most of what is looked at is not a header at all.
            return Err(if bytes.starts_with(&BATCH_MAGIC) {
                FormatError::Field("header_len")
            } else {
                FormatError::Magic
            });
        }
        let crc = check(bytes, BATCH_MAGIC, bytes.get(8..header_len).ok_or(FormatError::Short)?)?;
        if version != BATCH_VERSION {
            return Err(FormatError::Version(u32::from(version)));
        }
        if header_len != BATCH_HEADER_BYTES {
            return Err(FormatError::Field("header_len"));
        }
        let flags = prefix.u32()?;
        if flags & !FLAGS_KNOWN != 0 {
            return Err(FormatError::Field("flags"));
        }
        let mut header = BatchHeader {
            crc,
            flags,
            store: Incarnation(prefix.u64()?),
            segment_seq: prefix.u64()?,
            epoch: prefix.u64()?,
            lsn: Lsn(prefix.u64()?),
            batch_seq: prefix.u64()?,
            prev: Lsn(prefix.u64()?),
            durable: Lsn(prefix.u64()?),
            checkpoint: Lsn(prefix.u64()?),
            older_checkpoint: Lsn(0),
            total_len: prefix.u32()?,
            footer_offset: prefix.u32()?,
            record_count: prefix.u32()?,
            records_crc: prefix.u32()?,
            prev_crc: prefix.u32()?,
            wall: WallMs(0),
        };
        prefix.zero::<4>()?;
        header.wall = WallMs(prefix.u64()?);
        header.older_checkpoint = Lsn(prefix.u64()?);
        prefix.zero::<8>()?;
        let (total, footer) = (header.total_len as usize, header.footer_offset as usize);
        if !total.is_multiple_of(PAGE_BYTES) || total == 0 || total > BATCH_BYTES_MAX {
            return Err(FormatError::Field("total_len"));
        }
        if !footer.is_multiple_of(RECORD_ALIGN) || footer < FOOTER_OFFSET_MIN || footer >= total {
            return Err(FormatError::Field("footer_offset"));
        }
        if header.lsn.0.checked_add(u64::from(header.total_len)).is_none()
            || header.durable > header.lsn
            || header.checkpoint > header.lsn
            || header.older_checkpoint > header.checkpoint
        {
            return Err(FormatError::Field("lsn"));
        }
        Ok(header)
    }

    /// LSN behind it.
    pub const fn end(&self) -> Lsn {
        Lsn(self.lsn.0 + self.total_len as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> BatchHeader {
        BatchHeader {
            crc: 0,
            flags: FLAG_SEAL,
            store: Incarnation(1),
            segment_seq: 2,
            epoch: 3,
            lsn: Lsn(12288),
            batch_seq: 4,
            prev: Lsn(8192),
            durable: Lsn(12288),
            checkpoint: Lsn(4096),
            older_checkpoint: Lsn(0),
            total_len: 8192,
            footer_offset: 4160,
            record_count: 5,
            records_crc: 6,
            prev_crc: 7,
            wall: WallMs(8),
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let mut good = [0; BATCH_HEADER_BYTES];
        let crc = sample().encode(&mut good);
        assert_eq!(BatchHeader::decode(&good), Ok(BatchHeader { crc, ..sample() }));
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut bytes = [0; BATCH_HEADER_BYTES];
        sample().encode(&mut bytes);
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(BatchHeader::decode(&bytes), Err(FormatError::Version(2)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), valid: bool) {
            if valid && bytes.len() >= BATCH_HEADER_BYTES {
                bytes[..4].copy_from_slice(&BATCH_MAGIC);
                bytes[8..12].copy_from_slice(&[1, 0, 128, 0]);
                let crc = crc32c::crc32c(&bytes[8..128]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = BatchHeader::decode(&bytes);
        }
    }
}
