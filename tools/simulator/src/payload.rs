//! Payloads that say who wrote them, so that any copy anywhere can be traced to one append of one client.

use bytes::Bytes;
use tidelog_sim::Random;

/// Bytes at the start of every payload.
pub(crate) const IDENT_BYTES: usize = 32;
const MAGIC: u64 = 0x7469_6465_7369_6d31;

/// The append that a payload belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Ident {
    pub(crate) client: u64,
    pub(crate) number: u64,
    pub(crate) random: u64,
}

impl Ident {
    /// Reads it back.
    pub(crate) fn of(payload: &[u8]) -> Option<Ident> {
        let word = |at: usize| payload.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b));
        (word(0)? == MAGIC).then_some(())?;
        Some(Ident { client: word(8)?, number: word(16)?, random: word(24)? })
    }

    /// A payload of `len` bytes or a little more.
    pub(crate) fn payload(&self, len: usize) -> Bytes {
        let mut out = Vec::with_capacity(len.max(IDENT_BYTES));
        for word in [MAGIC, self.client, self.number, self.random] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        let mut filler = Random::new(self.random);
        while out.len() < len {
            let word = filler.bits().to_le_bytes();
            let take = word.len().min(len - out.len());
            out.extend_from_slice(&word[..take]);
        }
        Bytes::from(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_its_append() {
        let ident = Ident { client: 101, number: 7, random: 99 };
        for len in [0, 32, 33, 1000] {
            let payload = ident.payload(len);
            assert_eq!(payload.len(), len.max(IDENT_BYTES));
            assert_eq!(Ident::of(&payload), Some(ident));
        }
        assert_eq!(Ident::of(b"something else that is long enough for it"), None);
        assert_eq!(Ident::of(b""), None);
    }
}
