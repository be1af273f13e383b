//! The bytes of the log's files: segment header, batch header, footer. Records are in [`tidelog_types::record`].
//!
//! `docs/formats` describes each field; a test there compares these encoders with the worked examples. Decoders
//! take any bytes and answer with a typed error. Nothing here does I/O or knows where bytes came from: identity
//! (store, segment, epoch, position) is compared by the caller.

mod batch;
mod checkpoint;
mod footer;
mod segment;
mod summary;
pub(crate) mod varint;

pub use batch::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BATCH_VERSION, BatchHeader, FLAG_DONE, FLAG_OPEN, FLAG_SEAL,
    FOOTER_OFFSET_MIN,
};
pub use checkpoint::{CHECKPOINT_END_VERSION, CheckpointEnd, ChunkPlace};
pub use footer::{FOOTER_BYTES, FOOTER_MAGIC, Footer, SPAN_BYTES, Span, footer_bytes};
pub use segment::{BATCHES_START, SEGMENT_MAGIC, SEGMENT_VERSION, SegmentHeader};
pub use summary::{
    SUMMARY_HEAD_BYTES, SUMMARY_VERSION, SummaryHead, SummarySpan, encode_summary, visit_summary,
};

/// Why bytes are not the structure asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than it has.
    #[error("cut short")]
    Short,
    /// It does not begin with the structure's magic.
    #[error("no magic")]
    Magic,
    /// The checksum does not match.
    #[error("checksum is {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// As stored.
        found: u32,
        /// Over the bytes at hand.
        computed: u32,
    },
    /// The checksum is right and the version is not known: written by a newer program.
    #[error("format version {0} is not known to this version")]
    Version(u32),
    /// The checksum is right and a field is out of its range.
    #[error("field `{0}` is out of range")]
    Field(&'static str),
}

impl FormatError {
    /// Whether the bytes are whole and this program is too old for them: then they are neither torn nor damaged.
    pub const fn is_newer(&self) -> bool {
        matches!(self, FormatError::Version(_))
    }
}

/// Takes fields off the front of a slice.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields(bytes)
    }
    /// Bytes that are left.
    pub(crate) const fn left(&self) -> usize {
        self.0.len()
    }
    /// Takes `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(FormatError::Short)?;
        self.0 = rest;
        Ok(head)
    }
    pub(crate) fn take<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(FormatError::Short)?;
        self.0 = rest;
        Ok(*head)
    }
    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.take().map(u16::from_le_bytes)
    }
    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.take().map(u32::from_le_bytes)
    }
    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.take().map(u64::from_le_bytes)
    }
    /// Takes `N` bytes that must be zero.
    pub(crate) fn zero<const N: usize>(&mut self) -> Result<(), FormatError> {
        if self.take::<N>()? == [0; N] { Ok(()) } else { Err(FormatError::Field("reserved")) }
    }
}

/// Checks magic and CRC of a structure whose first eight bytes are `magic4 crc4` and whose CRC covers `covered`.
pub(crate) fn check(bytes: &[u8], magic: [u8; 4], covered: &[u8]) -> Result<u32, FormatError> {
    let mut fields = Fields::new(bytes);
    if fields.take::<4>()? != magic {
        return Err(FormatError::Magic);
    }
    let (found, computed) = (fields.u32()?, crc32c::crc32c(covered));
    if found == computed { Ok(found) } else { Err(FormatError::Checksum { found, computed }) }
}
