//! The checksum of payloads: CRC-32C, as everywhere in the formats, by the fastest way that this processor has.
//!
//! Headers are too short to gain by it and use the `crc32c` crate directly. Both compute the same function, which a test holds
//! them to: for any bytes, the two implementations check each other.

use crc_fast::{CrcAlgorithm, Digest};

/// Pieces shorter than this are left to the processor's CRC instruction: setting up more takes longer.
const WIDE_BYTES: usize = 256;

/// The checksum of a payload.
#[must_use]
pub fn checksum(payload: &[u8]) -> u32 {
    if payload.len() < WIDE_BYTES {
        return crc32c::crc32c(payload);
    }
    // A CRC of 32 bits in a word for CRCs of any width.
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, payload) as u32
}

/// Copies a payload, of the same length as its place, and returns the checksum of the copy, computed while that is still in the
/// processor's nearest cache.
///
/// # Panics
/// If the lengths differ.
pub fn copy_and_check(to: &mut [u8], from: &[u8]) -> u32 {
    assert_eq!(to.len(), from.len(), "a payload is copied whole");
    if from.len() <= COPY_BYTES {
        to.copy_from_slice(from);
        return checksum(to);
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for (to, from) in to.chunks_mut(COPY_BYTES).zip(from.chunks(COPY_BYTES)) {
        to.copy_from_slice(from);
        digest.update(to);
    }
    digest.finalize() as u32 // as above
}

/// Source and copy of so much fit a first-level cache.
const COPY_BYTES: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(bytes: usize) -> Vec<u8> {
        (0..bytes as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
    }

    #[test]
    fn it_is_the_formats_checksum_at_every_length() {
        assert_eq!(checksum(b"123456789"), 0xE306_9283, "the check value of CRC-32C");
        let bytes = noise(3 * COPY_BYTES + 77);
        let lengths = (0..2200).chain((2200..bytes.len()).step_by(13)).chain([bytes.len()]);
        let mut copy = vec![0; bytes.len()];
        for length in lengths {
            let payload = &bytes[..length];
            let expected = crc32c::crc32c(payload);
            assert_eq!(checksum(payload), expected, "{length} bytes");
            copy.fill(0);
            assert_eq!(copy_and_check(&mut copy[..length], payload), expected, "{length} bytes copied");
            assert_eq!(&copy[..length], payload);
        }
    }

    proptest! {
        #[test]
        fn it_is_the_formats_checksum_at_every_alignment(
            bytes in proptest::collection::vec(any::<u8>(), 0..6000),
            start in 0usize..96,
        ) {
            let payload = bytes.get(start..).unwrap_or_default();
            prop_assert_eq!(checksum(payload), crc32c::crc32c(payload));
        }
    }
}
