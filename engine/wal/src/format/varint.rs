//! Numbers of one to ten bytes: seven bits each, the lowest first, the high bit says that more follow. Signed ones are
//! folded (0, −1, 1, −2 …). Of a number's encodings only the shortest is valid.

use super::{Fields, FormatError};

/// Appends a number.
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80); // the low byte
        value >>= 7;
    }
    out.push(value as u8); // below 0x80
}

/// Appends the difference of two numbers, in either direction.
pub(crate) fn put_delta(out: &mut Vec<u8>, value: u64, from: u64) {
    let delta = value.wrapping_sub(from).cast_signed();
    put(out, (delta.wrapping_shl(1) ^ (delta >> 63)).cast_unsigned());
}

impl Fields<'_> {
    /// Takes a number.
    pub(crate) fn varint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for at in 0..10 {
            let [byte] = self.take::<1>()?;
            let bits = u64::from(byte & 0x7f);
            if at == 9 && bits > 1 {
                return Err(FormatError::Field("varint"));
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                return if byte == 0 && at > 0 { Err(FormatError::Field("varint")) } else { Ok(value) };
            }
        }
        Err(FormatError::Field("varint"))
    }

    /// Takes a difference and adds it to `from`.
    pub(crate) fn delta(&mut self, from: u64) -> Result<u64, FormatError> {
        let folded = self.varint()?;
        let delta = (folded >> 1).cast_signed() ^ -(folded & 1).cast_signed();
        from.checked_add_signed(delta).ok_or(FormatError::Field("delta"))
    }

    /// Takes a number of things that each take at least one byte of what is left.
    pub(crate) fn count(&mut self) -> Result<usize, FormatError> {
        let count = self.varint()?;
        let count = usize::try_from(count).map_err(|_| FormatError::Field("count"))?;
        if count > self.left() { Err(FormatError::Field("count")) } else { Ok(count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(value: u64, from: u64, bits in 0u32..64) {
            for value in [value, value >> bits] {
                let mut out = Vec::new();
                put(&mut out, value);
                prop_assert_eq!(Fields::new(&out).varint(), Ok(value));
                let (value, from) = (value >> 1, from >> 1);
                let mut out = Vec::new();
                put_delta(&mut out, value, from);
                prop_assert_eq!(Fields::new(&out).delta(from), Ok(value));
            }
        }

        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = Fields::new(&bytes).varint();
            let _ = Fields::new(&bytes).delta(77);
        }
    }

    #[test]
    fn only_the_shortest_encoding_is_valid() {
        assert!(Fields::new(&[0x80, 0]).varint().is_err());
        assert_eq!(Fields::new(&[0]).varint(), Ok(0));
        assert!(Fields::new(&[0xff; 10]).varint().is_err());
    }
}
