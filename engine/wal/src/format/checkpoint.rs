//! The end of a base checkpoint: what it is of, and where its chunks lie. `docs/formats/checkpoint.md`.

use super::{Fields, FormatError};
use tidelog_types::{Incarnation, Lsn};

/// The checkpoint format written now.
pub const CHECKPOINT_END_VERSION: u32 = 1;
/// Most chunks of a checkpoint.
const CHUNKS_MAX: usize = 1 << 16;

/// Where a chunk's record lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkPlace {
    /// Position of the record.
    pub lsn: Lsn,
    /// Length of its payload.
    pub len: u32,
}

/// The end of a checkpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointEnd {
    /// The data directory's life.
    pub store: Incarnation,
    /// The opening that wrote it.
    pub epoch: u64,
    /// It holds everything that lies before this position, and nothing of what lies behind it.
    pub at: Lsn,
    /// Position of the batch that this record lies in.
    pub batch: Lsn,
    /// Total length of the chunks' payloads.
    pub bytes: u64,
    /// CRC32C over the chunks' payloads, one behind the other.
    pub crc: u32,
    /// Its chunks, in order.
    pub chunks: Vec<ChunkPlace>,
}

impl CheckpointEnd {
    /// Encodes it.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(56 + self.chunks.len() * 12);
        out.extend_from_slice(&CHECKPOINT_END_VERSION.to_le_bytes());
        out.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes()); // at most CHUNKS_MAX
        for field in [self.store.0, self.epoch, self.at.0, self.batch.0, self.bytes] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for chunk in &self.chunks {
            out.extend_from_slice(&chunk.lsn.0.to_le_bytes());
            out.extend_from_slice(&chunk.len.to_le_bytes());
        }
        out
    }

    /// Reads it from a record's payload. Whether it belongs there is the caller's question.
    ///
    /// # Errors
    /// Says in which way the bytes are not the end of a checkpoint.
    pub fn decode(payload: &[u8]) -> Result<CheckpointEnd, FormatError> {
        let mut fields = Fields::new(payload);
        let version = fields.u32()?;
        if version != CHECKPOINT_END_VERSION {
            return Err(FormatError::Version(version));
        }
        let count = fields.u32()? as usize;
        let mut end = CheckpointEnd {
            store: Incarnation(fields.u64()?),
            epoch: fields.u64()?,
            at: Lsn(fields.u64()?),
            batch: Lsn(fields.u64()?),
            bytes: fields.u64()?,
            crc: fields.u32()?,
            chunks: Vec::new(),
        };
        fields.zero::<4>()?;
        if count == 0 || count > CHUNKS_MAX || fields.left() != count * 12 {
            return Err(FormatError::Field("chunks"));
        }
        let mut bytes = 0u64;
        for _ in 0..count {
            let place = ChunkPlace { lsn: Lsn(fields.u64()?), len: fields.u32()? };
            if place.lsn < end.at {
                return Err(FormatError::Field("chunk"));
            }
            bytes += u64::from(place.len);
            end.chunks.push(place);
        }
        if bytes != end.bytes || end.at > end.batch {
            return Err(FormatError::Field("bytes"));
        }
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> CheckpointEnd {
        let chunk = |lsn, len| ChunkPlace { lsn: Lsn(lsn), len };
        CheckpointEnd {
            store: Incarnation(7),
            epoch: 2,
            at: Lsn(8192),
            batch: Lsn(40960),
            bytes: 300,
            crc: 9,
            chunks: vec![chunk(8320, 200), chunk(20480, 100)],
        }
    }

    #[test]
    fn it_comes_back_and_what_is_cut_short_does_not() {
        let bytes = sample().encode();
        assert_eq!(CheckpointEnd::decode(&bytes), Ok(sample()));
        for len in 0..bytes.len() {
            assert!(CheckpointEnd::decode(&bytes[..len]).is_err());
        }
        let wrong = CheckpointEnd { bytes: 301, ..sample() };
        assert!(CheckpointEnd::decode(&wrong.encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = CheckpointEnd::decode(&bytes);
        }
    }
}
