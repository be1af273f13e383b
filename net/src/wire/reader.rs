//! Reading numbers and texts from untrusted bytes.

use super::WireError;

/// Takes pieces off the front of bytes.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        self.chunk().map(u8::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, WireError> {
        self.chunk().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        self.chunk().map(u64::from_le_bytes)
    }

    /// A length that is used to take bytes; as large as memory addresses.
    pub(super) fn len(&mut self) -> Result<usize, WireError> {
        self.u32().and_then(|n| usize::try_from(n).map_err(|_| WireError::Field("length")))
    }

    pub(super) fn zeros(&mut self, len: usize, what: &'static str) -> Result<(), WireError> {
        if self.bytes(len)?.iter().any(|b| *b != 0) {
            return Err(WireError::Field(what));
        }
        Ok(())
    }

    pub(super) fn text(&mut self, len: usize, what: &'static str) -> Result<String, WireError> {
        text(self.bytes(len)?, what)
    }
}

pub(super) fn text(bytes: &[u8], what: &'static str) -> Result<String, WireError> {
    core::str::from_utf8(bytes).map(str::to_owned).map_err(|_| WireError::Field(what))
}

/// `text`, cut at a character boundary to at most `max` bytes.
pub(super) fn cut(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!((cut("grün", 3), cut("grün", 2), cut("grün", 9), cut("ü", 1)), ("gr", "gr", "grün", ""));
        assert_eq!(cut("grün", 4), "grü");
    }
}
