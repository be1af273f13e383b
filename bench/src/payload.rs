//! Payloads that do not compress and that a reader can check.
//!
//! A payload is a stamp and noise, little-endian: 0 magic (4 bytes), 4 writer (4), 8 sequence (8), 16 noise. The noise is
//! a stretch of one fixed stream, found from writer, sequence and length alone, so that whoever reads a record back
//! can tell which one it should be and whether any byte of it is another one's. The stream repeats from record to record: a
//! device that deduplicates would notice, none that compresses one block or record at a time does.

use crate::random::{Random, mix};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use tidelog_types::limits::PAYLOAD_BYTES_MAX;

/// Shortest payload: the stamp.
pub const STAMP_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"TLbp";
const NOISE_SEED: u64 = 0x0074_6964_656C_6F67;
/// The stretch of the stream that short payloads are taken from stays in a processor's cache.
const NOISE_BYTES_MIN: usize = 256 << 10;
/// Payloads share allocations of about this size.
const CHUNK_BYTES: usize = 1 << 20;
/// Most allocations kept for reuse.
const USED_MAX: usize = 64;

/// Who wrote a payload, as its how-manieth.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stamp {
    /// The logical writer.
    pub writer: u32,
    /// Its own count, from 1.
    pub sequence: u64,
}

/// Why bytes are not a payload of this generator.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayloadError {
    /// No stamp in front.
    #[error("{bytes} bytes without the generator's stamp")]
    Foreign {
        /// Their number.
        bytes: usize,
    },
    /// A byte behind the stamp is not what the stamp says.
    #[error("payload of writer {}, sequence {} differs at byte {at}", .stamp.writer, .stamp.sequence)]
    Changed {
        /// What it claims to be.
        stamp: Stamp,
        /// The first byte that differs.
        at: usize,
    },
}

/// The stream of noise.
#[derive(Debug)]
struct Noise(Vec<u8>);

impl Noise {
    /// Enough of it for payloads of up to `payload_bytes`.
    fn new(payload_bytes: usize) -> Noise {
        let bytes = Noise::span(payload_bytes);
        let mut random = Random::new(NOISE_SEED);
        let mut noise = Vec::with_capacity(bytes);
        while noise.len() < bytes {
            noise.extend_from_slice(&random.next().to_le_bytes());
        }
        Noise(noise)
    }

    /// How much of the stream payloads of a length are taken from.
    fn span(payload_bytes: usize) -> usize {
        (2 * payload_bytes).next_power_of_two().max(NOISE_BYTES_MIN)
    }

    /// The noise of one payload; none if this stream was made for shorter ones.
    fn of(&self, stamp: Stamp, payload_bytes: usize) -> Option<&[u8]> {
        let bytes = payload_bytes.checked_sub(STAMP_BYTES)?;
        let places = (Noise::span(payload_bytes) - bytes) as u64;
        let start = mix(stamp.sequence ^ mix(u64::from(stamp.writer))) % places;
        let start = usize::try_from(start).ok()?;
        self.0.get(start..start.checked_add(bytes)?)
    }
}

/// Makes payloads of one length.
#[derive(Debug)]
pub struct Payloads {
    noise: Noise,
    bytes: usize,
    chunk: BytesMut,
    /// Used up; each can be used again when all its payloads are gone. The oldest first.
    used: VecDeque<BytesMut>,
}

impl Payloads {
    /// Of `bytes` each; none unless that is between [`STAMP_BYTES`] and the largest payload of a record.
    pub fn new(bytes: usize) -> Option<Payloads> {
        (STAMP_BYTES..=PAYLOAD_BYTES_MAX).contains(&bytes).then(|| Payloads {
            noise: Noise::new(bytes),
            bytes,
            chunk: BytesMut::with_capacity(bytes.max(CHUNK_BYTES)),
            used: VecDeque::new(),
        })
    }

    /// Length of each.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The payload of a stamp. One copy, no allocation of its own.
    pub fn make(&mut self, stamp: Stamp) -> Bytes {
        if self.chunk.capacity() < self.bytes {
            self.next_chunk();
        }
        self.chunk.extend_from_slice(&MAGIC);
        self.chunk.extend_from_slice(&stamp.writer.to_le_bytes());
        self.chunk.extend_from_slice(&stamp.sequence.to_le_bytes());
        let noise = self.noise.of(stamp, self.bytes).expect("the stream was made for this length");
        self.chunk.extend_from_slice(noise);
        self.chunk.split().freeze()
    }

    /// Memory that was used before where there is some: fresh memory costs more to touch than the payload to make, and would be
    /// in the figures of whatever is measured.
    fn next_chunk(&mut self) {
        let bytes = self.bytes.max(CHUNK_BYTES);
        let used = std::mem::take(&mut self.chunk);
        if self.used.len() < USED_MAX {
            self.used.push_back(used);
        }
        // Only the oldest: payloads are gone about in the order in which they were made.
        let reclaimed = self.used.front_mut().is_some_and(|oldest| oldest.try_reclaim(bytes));
        self.chunk = match self.used.pop_front_if(|_| reclaimed) {
            Some(oldest) => oldest,
            None => BytesMut::with_capacity(bytes),
        };
    }
}

/// Checks payloads of any length, from any writer.
#[derive(Debug)]
pub struct Checker(Noise);

impl Default for Checker {
    fn default() -> Checker {
        Checker(Noise::new(PAYLOAD_BYTES_MAX))
    }
}

impl Checker {
    /// Whose payload this is, if every byte of it is as it was made.
    ///
    /// # Errors
    /// Says in which way it is not.
    pub fn check(&self, payload: &[u8]) -> Result<Stamp, PayloadError> {
        let foreign = PayloadError::Foreign { bytes: payload.len() };
        let rest = payload.strip_prefix(&MAGIC).ok_or(foreign)?;
        let (writer, rest) = rest.split_first_chunk().ok_or(foreign)?;
        let (sequence, rest) = rest.split_first_chunk().ok_or(foreign)?;
        let stamp = Stamp { writer: u32::from_le_bytes(*writer), sequence: u64::from_le_bytes(*sequence) };
        let noise = self.0.of(stamp, payload.len()).ok_or(foreign)?;
        match rest.iter().zip(noise).position(|(found, made)| found != made) {
            None => Ok(stamp),
            Some(at) => Err(PayloadError::Changed { stamp, at: STAMP_BYTES + at }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static CHECKER: LazyLock<Checker> = LazyLock::new(Checker::default);

    #[test]
    fn memory_is_used_again_when_its_payloads_are_gone() {
        let mut payloads = Payloads::new(CHUNK_BYTES / 2).unwrap();
        let stamp = |sequence| Stamp { writer: 1, sequence };
        let first = payloads.make(stamp(1));
        let at = first.as_ptr();
        let held: Vec<Bytes> = (2..=4).map(|n| payloads.make(stamp(n))).collect();
        assert!(held.iter().all(|payload| payload.as_ptr() != at), "it is still held");
        drop(first);
        drop(held);
        let again: Vec<Bytes> = (5..=8).map(|n| payloads.make(stamp(n))).collect();
        assert!(again.iter().any(|payload| payload.as_ptr() == at));
        let checker = &*CHECKER;
        for (payload, n) in again.iter().zip(5..) {
            assert_eq!(checker.check(payload), Ok(stamp(n)));
        }
    }

    #[test]
    fn made_payloads_check_at_every_length_and_differ() {
        let checker = Checker::default();
        for bytes in [STAMP_BYTES, STAMP_BYTES + 1, 128, 1024, 16 << 10, 300_000, PAYLOAD_BYTES_MAX] {
            let mut payloads = Payloads::new(bytes).unwrap();
            let stamps = (0..40).map(|i| Stamp { writer: i % 3, sequence: u64::from(i) });
            let made: Vec<(Stamp, Bytes)> = stamps.map(|s| (s, payloads.make(s))).collect();
            for (stamp, payload) in &made {
                assert_eq!((payload.len(), checker.check(payload)), (bytes, Ok(*stamp)));
            }
            assert_eq!(
                made.iter().map(|(_, p)| p).collect::<std::collections::BTreeSet<_>>().len(),
                made.len()
            );
        }
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        assert!(Payloads::new(STAMP_BYTES - 1).is_none() && Payloads::new(PAYLOAD_BYTES_MAX + 1).is_none());
    }

    proptest! {
        #[test]
        fn any_changed_byte_is_seen(at in 0usize..200, flip in 1u8.., sequence: u64) {
            let stamp = Stamp { writer: 5, sequence };
            let mut payload = Payloads::new(200).unwrap().make(stamp).to_vec();
            payload[at] ^= flip;
            prop_assert_ne!(CHECKER.check(&payload), Ok(stamp));
        }

        #[test]
        fn other_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100), stamped: bool) {
            let mut bytes = bytes;
            if stamped && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            // With eight bytes of noise and more, no stamp fits by chance.
            prop_assert!(CHECKER.check(&bytes).is_err() || bytes.len() < STAMP_BYTES + 8);
        }
    }
}
