//! The frame header: `docs/formats/wire.md`.

use super::WireError;
use tidelog_types::limits::{APPEND_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// Length of the header, and what frames and their parts are padded to a multiple of.
pub const HEADER_BYTES: usize = 64;
/// The version spoken.
pub const VERSION: u8 = 1;
const MAGIC: [u8; 4] = *b"TIDW";
const FIELDS_AT: usize = 24;

/// Most metadata of most kinds.
pub(crate) const META_BYTES_MAX: u32 = 64 << 10;
/// Most bytes of a status.
pub(crate) const STATUS_BYTES_MAX: u32 = 4 << 20;
/// Most partitions of one status.
pub const STATUS_PARTITIONS_MAX: u32 = 256;
/// Most bytes of texts.
pub(crate) const TEXT_BYTES_MAX: u32 = 1 << 10;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// A peer's identity.
    Hello = 1,
    /// The last frame before its sender closes.
    Refused = 2,
    /// Nothing to say.
    Keepalive = 3,
    /// Small messages between replicas.
    Messages = 4,
    /// One append message with its records.
    Append = 5,
    /// Records that heal a peer's damaged log.
    Fetched = 6,
    /// A client's first frame.
    ClientHello = 16,
    /// Its answer.
    ServerHello = 17,
    /// Append one record.
    AppendRequest = 32,
    /// Open a session.
    OpenSession = 33,
    /// Read records.
    Read = 34,
    /// State of the node.
    Status = 35,
    /// Take a snapshot.
    Snapshot = 36,
    /// Small answers.
    Answers = 48,
    /// Records that were read.
    Records = 49,
    /// State of the node.
    StatusAnswer = 50,
}

impl FrameKind {
    /// The kind of a code; none if this version does not know it.
    pub const fn from_code(code: u8) -> Option<FrameKind> {
        use FrameKind as K;
        Some(match code {
            1 => K::Hello,
            2 => K::Refused,
            3 => K::Keepalive,
            4 => K::Messages,
            5 => K::Append,
            6 => K::Fetched,
            16 => K::ClientHello,
            17 => K::ServerHello,
            32 => K::AppendRequest,
            33 => K::OpenSession,
            34 => K::Read,
            35 => K::Status,
            36 => K::Snapshot,
            48 => K::Answers,
            49 => K::Records,
            50 => K::StatusAnswer,
            _ => return None,
        })
    }

    /// Most bytes of metadata and of payload.
    pub const fn limits(self) -> (u32, u32) {
        use FrameKind as K;
        match self {
            K::Hello | K::Messages | K::ServerHello | K::Answers => (META_BYTES_MAX, 0),
            K::Refused | K::ClientHello => (TEXT_BYTES_MAX, 0),
            K::Keepalive | K::OpenSession | K::Read | K::Status | K::Snapshot => (0, 0),
            K::Append | K::Fetched => (HEADER_BYTES as u32, APPEND_BYTES_MAX as u32),
            K::AppendRequest => (0, PAYLOAD_BYTES_MAX as u32),
            K::Records => (0, APPEND_BYTES_MAX as u32),
            K::StatusAnswer => (STATUS_BYTES_MAX, 0),
        }
    }
}

/// A decoded header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Bytes of metadata, without padding.
    pub meta_len: u32,
    /// CRC32C of the padded metadata.
    pub meta_crc: u32,
    /// Bytes of payload, without padding.
    pub payload_len: u32,
    /// Fields of the kind.
    pub fields: [u64; 5],
}

/// `bytes` rounded up to the next multiple of 64.
pub(crate) const fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(HEADER_BYTES)
}

impl FrameHeader {
    /// A frame of `kind` with nothing behind its header.
    pub const fn new(kind: FrameKind, fields: [u64; 5]) -> FrameHeader {
        FrameHeader { kind, meta_len: 0, meta_crc: 0, payload_len: 0, fields }
    }

    /// Bytes of metadata and its padding.
    pub const fn meta_padded(&self) -> usize {
        padded(self.meta_len as usize)
    }

    /// Bytes of the whole frame.
    pub const fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.meta_padded() + padded(self.payload_len as usize)
    }

    /// The 64 bytes.
    ///
    /// # Panics
    /// If a length is over the kind's limit: what is sent is checked before it is framed.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (meta_max, payload_max) = self.kind.limits();
        assert!(self.meta_len <= meta_max, "{:?} frame with {} bytes of metadata", self.kind, self.meta_len);
        assert!(
            self.payload_len <= payload_max,
            "{:?} frame with {} bytes of payload",
            self.kind,
            self.payload_len
        );
        let mut out = [0u8; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(4, &MAGIC);
        put(8, &[VERSION, self.kind as u8]);
        put(12, &self.meta_len.to_le_bytes());
        put(16, &self.meta_crc.to_le_bytes());
        put(20, &self.payload_len.to_le_bytes());
        for (i, field) in self.fields.iter().enumerate() {
            put(FIELDS_AT + 8 * i, &field.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads the header at the start of `bytes`, whatever they are; none if there are fewer than 64 that
    /// may become one.
    ///
    /// # Errors
    /// Says in which way the bytes are not a header.
    pub fn decode(bytes: &[u8]) -> Result<Option<FrameHeader>, WireError> {
        if bytes.get(4..8).is_some_and(|magic| magic != MAGIC) {
            return Err(WireError::Magic);
        }
        let Some(h) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let u32_at =
            |at: usize| h.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b));
        let u64_at =
            |at: usize| h.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b));
        let [_, _, _, _, _, _, _, _, version, code, flags @ ..] = h;
        if *version != VERSION {
            return Err(WireError::Version(*version));
        }
        let (found, computed) = (u32_at(0), crc32c::crc32c(h.get(4..).unwrap_or_default()));
        if found != computed {
            return Err(WireError::Checksum { what: "header", found, computed });
        }
        let kind = FrameKind::from_code(*code).ok_or(WireError::Kind(*code))?;
        if !flags.starts_with(&[0, 0]) {
            return Err(WireError::Field("flags"));
        }
        let mut fields = [0; 5];
        for (i, field) in fields.iter_mut().enumerate() {
            *field = u64_at(FIELDS_AT + 8 * i);
        }
        let header =
            FrameHeader { kind, meta_len: u32_at(12), meta_crc: u32_at(16), payload_len: u32_at(20), fields };
        let (meta_max, payload_max) = kind.limits();
        for (what, len, max) in
            [("metadata", header.meta_len, meta_max), ("payload", header.payload_len, payload_max)]
        {
            if len > max {
                return Err(WireError::TooLong { kind, what, len, max });
            }
        }
        if header.meta_len == 0 && header.meta_crc != 0 {
            return Err(WireError::Field("checksum of no metadata"));
        }
        Ok(Some(header))
    }

    /// Checks the padded metadata that follows the header.
    ///
    /// # Errors
    /// If its checksum does not match.
    pub fn check_meta(&self, meta_padded: &[u8]) -> Result<(), WireError> {
        let computed = if self.meta_len == 0 { 0 } else { crc32c::crc32c(meta_padded) };
        if computed != self.meta_crc {
            return Err(WireError::Checksum { what: "metadata", found: self.meta_crc, computed });
        }
        Ok(())
    }
}

/// Appends a frame without payload to `out`.
///
/// # Panics
/// If the metadata is over the kind's limit.
pub(crate) fn put_frame(out: &mut Vec<u8>, kind: FrameKind, fields: [u64; 5], meta: &[u8]) {
    put_frame_head(out, kind, fields, meta, 0);
}

/// Appends a frame up to its payload to `out`: the payload is sent behind it, with its padding.
pub(crate) fn put_frame_head(
    out: &mut Vec<u8>,
    kind: FrameKind,
    fields: [u64; 5],
    meta: &[u8],
    payload_len: usize,
) {
    let at = out.len();
    out.resize(at + HEADER_BYTES, 0);
    out.extend_from_slice(meta);
    out.resize(at + HEADER_BYTES + padded(meta.len()), 0);
    let (head, meta_padded) = out[at..].split_at_mut(HEADER_BYTES);
    let header = FrameHeader {
        kind,
        meta_len: u32::try_from(meta.len()).unwrap_or(u32::MAX),
        meta_crc: if meta.is_empty() { 0 } else { crc32c::crc32c(meta_padded) },
        payload_len: u32::try_from(payload_len).unwrap_or(u32::MAX),
        fields,
    };
    head.copy_from_slice(&header.encode());
}

/// Length of the frame at the start of `bytes`; none if its header is not complete or not valid.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    FrameHeader::decode(bytes).ok().flatten().map(|h| h.frame_bytes())
}

const _: () = assert!(
    (PAYLOAD_BYTES_MAX + 2 * HEADER_BYTES) <= APPEND_BYTES_MAX,
    "a record with the largest payload fits a Records frame"
);
