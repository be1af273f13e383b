//! The record: what is framed on disk and sent to followers, with exactly one encoding.
//!
//! Little-endian, at a multiple of 64 within a batch: a 64-byte header, a 64-byte extension if
//! [`FLAG_EXTENDED`] is set, the payload, zeros up to the next multiple of 64. `docs/formats/record.md` has
//! the table with a worked example.
//!
//! Nothing in a record depends on where it lies, so the bytes that the leader encodes are the bytes that its
//! followers write. A header is valid if and only if its CRC32C covers what it says, version and flags are
//! known, and everything said to be zero is zero; the payload is valid if and only if its own CRC32C is,
//! which is the checksum that the client computed.

use crate::limits::{PAYLOAD_BYTES_MAX, RECORD_ALIGN};
use crate::{
    Generation, Index, NodeId, PartitionId, Position, ReplicatedMs, Sequence, SessionId, SessionKey,
};

/// Length of the header, and of the extension.
pub const HEADER_BYTES: usize = 64;
/// The record format written now.
pub const RECORD_VERSION: u8 = 1;
/// Flag: a 64-byte extension follows the header.
pub const FLAG_EXTENDED: u16 = 1;
const FLAGS_KNOWN: u16 = FLAG_EXTENDED;

/// What a record is. Kinds below 64 are log entries: they have an index and are replicated. The others are
/// local to one shard's WAL. An unknown kind stops the reader; it is never skipped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RecordKind {
    /// Entry that opens a generation; no payload.
    Noop = 1,
    /// Entry with a client's payload. Extended with (session, sequence) if it belongs to a session.
    Data = 2,
    /// Entry that opens a session: its index becomes the session's id. Extended with the session's key.
    SessionOpen = 3,
    /// Entry that lets the log begin later: what lies below is not shown to readers any more, on any replica.
    /// Extended with the first index kept.
    LogStart = 4,
    /// Generation and vote, durable before anything asserts them. `index` holds the voted node (0: none).
    Promise = 64,
    /// Removes all larger indexes at smaller LSNs. `index`, `generation`: the last entry kept.
    Cut = 65,
    /// High-water hint. `index`: the mark.
    HighWater = 66,
    /// First index still kept. `index`: that index.
    LowWater = 67,
    /// A snapshot's commit point. `index`, `generation`: the last entry that it covers.
    SnapshotMark = 68,
    /// Part of a base checkpoint.
    CheckpointChunk = 69,
    /// End of a base checkpoint.
    CheckpointEnd = 70,
    /// The next `index` records are live records moved here from older segments.
    Moved = 71,
    /// A segment's summary.
    Summary = 72,
    /// Filler in front of a record whose payload starts on a page of its own.
    Pad = 73,
    /// The log goes on with entries whose bytes are lost, up to `index`, all of `generation`.
    Lost = 74,
    /// The newest copies of entries that the log has are lost, and so are the older ones.
    LostCopies = 75,
}

impl RecordKind {
    /// The kind of a code; none if this version does not know it.
    pub const fn from_code(code: u8) -> Option<RecordKind> {
        use RecordKind as K;
        Some(match code {
            1 => K::Noop,
            2 => K::Data,
            3 => K::SessionOpen,
            4 => K::LogStart,
            64 => K::Promise,
            65 => K::Cut,
            66 => K::HighWater,
            67 => K::LowWater,
            68 => K::SnapshotMark,
            69 => K::CheckpointChunk,
            70 => K::CheckpointEnd,
            71 => K::Moved,
            72 => K::Summary,
            73 => K::Pad,
            74 => K::Lost,
            75 => K::LostCopies,
            _ => return None,
        })
    }
    /// The kind's code on disk.
    pub const fn code(self) -> u8 {
        self as u8
    }
    /// Whether it is an entry that a log takes also when its disk is full: without these there is no leader that may answer a read, and
    /// nothing by which the log becomes shorter. They have no payload.
    pub const fn has_reserved_space(self) -> bool {
        matches!(self, RecordKind::Noop | RecordKind::LogStart)
    }
    /// Whether it is a log entry: has an index of the partition's log and is replicated.
    pub const fn is_entry(self) -> bool {
        self.code() < 64
    }
}

/// (session, sequence): at most one entry of a log carries it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionRef {
    /// The session.
    pub session: SessionId,
    /// The request's position in it, from 1.
    pub sequence: Sequence,
}

/// The decoded header of a record, extension included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// What it is.
    pub kind: RecordKind,
    /// Whose log it belongs to.
    pub partition: PartitionId,
    /// Entry: its index. Control record: see [`RecordKind`].
    pub index: Index,
    /// Leadership it was written under.
    pub generation: Generation,
    /// Entry: the generation of the entry before it.
    pub prev_generation: Generation,
    /// Entry: replicated time at the leader.
    pub timestamp: ReplicatedMs,
    /// [`crate::ClusterId::tag`] of the cluster.
    pub cluster: u32,
    /// Length of the payload in bytes.
    pub payload_len: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
    /// The extension, if there is one.
    pub extension: Option<Extension>,
}

/// The 64 bytes behind an extended record's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extension {
    /// `Data`: session id (0: none). `SessionOpen`: low half of the session's key. `LogStart`: the first index kept.
    pub a: u64,
    /// `Data`: sequence. `SessionOpen`: high half of the session's key.
    pub b: u64,
    /// `Data`: hash of the fenced resource's name (0: no fence). `SessionOpen`: ms of replicated time without use after
    /// which the session expires (0: never).
    pub fence_resource: u64,
    /// Fence: the token.
    pub fence_token: u64,
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Fewer bytes than the record has.
    #[error("record is cut short: {have} bytes of {need}")]
    Short {
        /// Bytes at hand.
        have: usize,
        /// Bytes that it takes.
        need: usize,
    },
    /// The header's checksum does not match.
    #[error("record header checksum is {found:#010x}, computed {computed:#010x}")]
    HeaderChecksum {
        /// As stored.
        found: u32,
        /// Over the bytes at hand.
        computed: u32,
    },
    /// The payload's checksum does not match.
    #[error("record payload checksum is {found:#010x}, computed {computed:#010x}")]
    PayloadChecksum {
        /// As stored.
        found: u32,
        /// Over the bytes at hand.
        computed: u32,
    },
    /// Written by a version that this one does not know.
    #[error("record version {0} is not known to this version")]
    Version(u8),
    /// A kind that this version does not know: the reader stops.
    #[error("record kind {0} is not known to this version")]
    Kind(u8),
    /// Unknown flags, or bytes that must be zero and are not.
    #[error("record has unknown flags or non-zero reserved bytes")]
    Reserved,
    /// The payload is larger than the limit.
    #[error("record payload of {0} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLarge(u32),
}

/// What the protocol needs to know of an entry, without its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryMeta {
    /// Index and generation.
    pub position: Position,
    /// Generation of the entry before it.
    pub prev_generation: Generation,
    /// What it is; always an entry kind.
    pub kind: RecordKind,
    /// (session, sequence) of a `Data` entry that belongs to a session.
    pub session: Option<SessionRef>,
    /// Key of a `SessionOpen` entry.
    pub session_key: Option<SessionKey>,
    /// Of a `SessionOpen` entry: the session expires when it was not used for so many ms of replicated time. 0: never.
    pub session_expiry_ms: u64,
    /// First index kept, of a `LogStart` entry.
    pub log_start: Option<Index>,
    /// Replicated time.
    pub timestamp: ReplicatedMs,
    /// Bytes of the whole record, padding included.
    pub record_bytes: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

/// Bytes that a record takes in a batch or a message: header, extension, payload, zeros.
pub const fn record_bytes(payload_len: usize, extended: bool) -> usize {
    let head = if extended { 2 * HEADER_BYTES } else { HEADER_BYTES };
    (head + payload_len).next_multiple_of(RECORD_ALIGN)
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn u16_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u16 {
    let mut b = [0; 2];
    b.copy_from_slice(&bytes[at..at + 2]);
    u16::from_le_bytes(b)
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut b = [0; 4];
    b.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(b)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut b = [0; 8];
    b.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(b)
}

impl RecordHeader {
    /// A header for `kind` in `partition` with everything else zero.
    pub const fn new(kind: RecordKind, partition: PartitionId) -> RecordHeader {
        RecordHeader {
            kind,
            partition,
            index: Index::ZERO,
            generation: Generation::ZERO,
            prev_generation: Generation::ZERO,
            timestamp: ReplicatedMs(0),
            cluster: 0,
            payload_len: 0,
            payload_crc: 0,
            extension: None,
        }
    }

    /// A promise record: `generation` is adopted and `vote` (if any) given in it.
    pub fn promise(partition: PartitionId, generation: Generation, vote: Option<NodeId>) -> RecordHeader {
        RecordHeader {
            generation,
            index: Index(vote.map_or(0, NodeId::get)),
            ..RecordHeader::new(RecordKind::Promise, partition)
        }
    }

    /// Length of header and extension.
    pub const fn head_bytes(&self) -> usize {
        if self.extension.is_some() { 2 * HEADER_BYTES } else { HEADER_BYTES }
    }

    /// Bytes of the whole record, padding included.
    pub const fn record_bytes(&self) -> usize {
        record_bytes(self.payload_len as usize, self.extension.is_some())
    }

    /// Writes header and extension to the start of `out`.
    ///
    /// # Panics
    /// If `out` is shorter than [`Self::head_bytes`].
    pub fn encode(&self, out: &mut [u8]) {
        let head = self.head_bytes();
        let out = &mut out[..head];
        out.fill(0);
        put(out, 4, &self.payload_crc.to_le_bytes());
        put(out, 8, &self.payload_len.to_le_bytes());
        out[12] = self.kind.code();
        out[13] = RECORD_VERSION;
        let flags = if self.extension.is_some() { FLAG_EXTENDED } else { 0 };
        put(out, 14, &flags.to_le_bytes());
        put(out, 16, &self.partition.0.to_le_bytes());
        put(out, 24, &self.index.0.to_le_bytes());
        put(out, 32, &self.generation.0.to_le_bytes());
        put(out, 40, &self.prev_generation.0.to_le_bytes());
        put(out, 48, &self.timestamp.0.to_le_bytes());
        put(out, 56, &self.cluster.to_le_bytes());
        if let Some(x) = &self.extension {
            put(out, 64, &x.a.to_le_bytes());
            put(out, 72, &x.b.to_le_bytes());
            put(out, 80, &x.fence_resource.to_le_bytes());
            put(out, 88, &x.fence_token.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[4..head]);
        put(out, 0, &crc.to_le_bytes());
    }

    /// Reads and verifies header and extension from the start of `bytes`, whatever they are. The payload is
    /// not looked at.
    ///
    /// # Errors
    /// Says in which way the bytes are not a header.
    pub fn decode(bytes: &[u8]) -> Result<RecordHeader, RecordError> {
        let short = |need| RecordError::Short { have: bytes.len(), need };
        let h: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(short(HEADER_BYTES))?;
        let flags = u16_at(h, 14);
        let extended = flags & FLAG_EXTENDED != 0;
        let head = if extended { 2 * HEADER_BYTES } else { HEADER_BYTES };
        let covered = bytes.get(4..head).ok_or(short(head))?;
        let (found, computed) = (u32_at(h, 0), crc32c::crc32c(covered));
        if found != computed {
            return Err(RecordError::HeaderChecksum { found, computed });
        }
        if h[13] != RECORD_VERSION {
            return Err(RecordError::Version(h[13]));
        }
        let kind = RecordKind::from_code(h[12]).ok_or(RecordError::Kind(h[12]))?;
        let payload_len = u32_at(h, 8);
        if payload_len as usize > PAYLOAD_BYTES_MAX {
            return Err(RecordError::TooLarge(payload_len));
        }
        if flags & !FLAGS_KNOWN != 0 || u32_at(h, 60) != 0 {
            return Err(RecordError::Reserved);
        }
        let extension = if extended {
            let x: &[u8; HEADER_BYTES] =
                bytes.get(HEADER_BYTES..).and_then(<[u8]>::first_chunk).ok_or(short(head))?;
            if x[32..].iter().any(|b| *b != 0) {
                return Err(RecordError::Reserved);
            }
            Some(Extension {
                a: u64_at(x, 0),
                b: u64_at(x, 8),
                fence_resource: u64_at(x, 16),
                fence_token: u64_at(x, 24),
            })
        } else {
            None
        };
        Ok(RecordHeader {
            kind,
            partition: PartitionId(u64_at(h, 16)),
            index: Index(u64_at(h, 24)),
            generation: Generation(u64_at(h, 32)),
            prev_generation: Generation(u64_at(h, 40)),
            timestamp: ReplicatedMs(u64_at(h, 48)),
            cluster: u32_at(h, 56),
            payload_len,
            payload_crc: u32_at(h, 4),
            extension,
        })
    }

    /// Reads and verifies a whole record, payload included, from the start of `bytes`.
    ///
    /// # Errors
    /// Says in which way the bytes are not a record.
    pub fn decode_record(bytes: &[u8]) -> Result<(RecordHeader, &[u8]), RecordError> {
        let header = RecordHeader::decode(bytes)?;
        let need = header.record_bytes();
        let record = bytes.get(..need).ok_or(RecordError::Short { have: bytes.len(), need })?;
        let (payload, padding) = record[header.head_bytes()..].split_at(header.payload_len as usize);
        let computed = crate::checksum(payload);
        if computed != header.payload_crc {
            return Err(RecordError::PayloadChecksum { found: header.payload_crc, computed });
        }
        if padding.iter().any(|b| *b != 0) {
            return Err(RecordError::Reserved);
        }
        Ok((header, payload))
    }

    /// Position of an entry.
    pub const fn position(&self) -> Position {
        Position::new(self.index, self.generation)
    }

    /// (session, sequence), if it is an entry of a session.
    pub fn session(&self) -> Option<SessionRef> {
        match (self.kind, self.extension) {
            (RecordKind::Data, Some(x)) if x.a != 0 => {
                Some(SessionRef { session: SessionId(x.a), sequence: Sequence(x.b) })
            }
            _ => None,
        }
    }

    /// The key of the session that this entry opens.
    pub fn session_key(&self) -> Option<SessionKey> {
        match (self.kind, self.extension) {
            (RecordKind::SessionOpen, Some(x)) => Some(SessionKey(u128::from(x.b) << 64 | u128::from(x.a))),
            _ => None,
        }
    }

    /// After how many ms without use the session that this entry opens expires; 0: never.
    pub fn session_expiry_ms(&self) -> u64 {
        match (self.kind, self.extension) {
            (RecordKind::SessionOpen, Some(x)) => x.fence_resource,
            _ => 0,
        }
    }

    /// The first index kept, if this entry says so.
    pub fn log_start(&self) -> Option<Index> {
        match (self.kind, self.extension) {
            (RecordKind::LogStart, Some(x)) => Some(Index(x.a)),
            _ => None,
        }
    }

    /// What the protocol needs of it.
    pub fn meta(&self) -> EntryMeta {
        EntryMeta {
            position: self.position(),
            prev_generation: self.prev_generation,
            kind: self.kind,
            session: self.session(),
            session_key: self.session_key(),
            session_expiry_ms: self.session_expiry_ms(),
            log_start: self.log_start(),
            timestamp: self.timestamp,
            record_bytes: u32::try_from(self.record_bytes()).unwrap_or(u32::MAX),
            payload_crc: self.payload_crc,
        }
    }

    /// The header of the entry that `meta` describes; the payload's length is still to be set.
    pub fn of_meta(meta: &EntryMeta, partition: PartitionId, cluster: u32) -> RecordHeader {
        let extension = match (meta.session, meta.session_key, meta.log_start) {
            (Some(s), _, _) => Some(Extension { a: s.session.0, b: s.sequence.0, ..Extension::default() }),
            (None, Some(key), _) => Some(Extension {
                a: key.0 as u64,
                b: (key.0 >> 64) as u64,
                fence_resource: meta.session_expiry_ms,
                ..Extension::default()
            }),
            (None, None, Some(first)) => Some(Extension { a: first.0, ..Extension::default() }),
            (None, None, None) => None,
        };
        RecordHeader {
            index: meta.position.index,
            generation: meta.position.generation,
            prev_generation: meta.prev_generation,
            timestamp: meta.timestamp,
            cluster,
            payload_crc: meta.payload_crc,
            extension,
            ..RecordHeader::new(meta.kind, partition)
        }
    }
}

/// Walks the records that lie back to back in `bytes`, verifying each whole.
pub fn records(bytes: &[u8]) -> Records<'_> {
    Records { rest: bytes, at: 0 }
}

/// Iterator of [`records`]: (offset, header, payload); ends after the first error.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(usize, RecordHeader, &'a [u8]), RecordError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match RecordHeader::decode_record(self.rest) {
            Ok((header, payload)) => {
                let at = self.at;
                self.at += header.record_bytes();
                self.rest = &self.rest[header.record_bytes()..];
                Some(Ok((at, header, payload)))
            }
            Err(e) => {
                self.rest = &[];
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> RecordHeader {
        RecordHeader {
            index: Index(17),
            generation: Generation(2),
            prev_generation: Generation(1),
            timestamp: ReplicatedMs(1_700_000_000_000),
            cluster: 0xdead_beef,
            payload_len: 5,
            payload_crc: crc32c::crc32c(b"hello"),
            extension: Some(Extension { a: 9, b: 4, ..Extension::default() }),
            ..RecordHeader::new(RecordKind::Data, PartitionId(3))
        }
    }

    fn encoded() -> Vec<u8> {
        let header = sample();
        let mut bytes = vec![0; header.record_bytes()];
        header.encode(&mut bytes);
        bytes[128..133].copy_from_slice(b"hello");
        bytes
    }

    #[test]
    fn round_trip() {
        let bytes = encoded();
        assert_eq!(bytes.len(), 192);
        let (header, payload) = RecordHeader::decode_record(&bytes).unwrap();
        assert_eq!((header, payload), (sample(), &b"hello"[..]));
        let again = RecordHeader {
            payload_len: 5,
            ..RecordHeader::of_meta(&header.meta(), PartitionId(3), 0xdead_beef)
        };
        assert_eq!(again, header);
    }

    #[test]
    fn a_log_start_carries_its_first_index() {
        let header = RecordHeader {
            index: Index(90),
            generation: Generation(2),
            prev_generation: Generation(2),
            extension: Some(Extension { a: 71, ..Extension::default() }),
            ..RecordHeader::new(RecordKind::LogStart, PartitionId(3))
        };
        let meta = header.meta();
        assert_eq!((meta.log_start, meta.session, meta.session_key), (Some(Index(71)), None, None));
        assert_eq!(RecordHeader::of_meta(&meta, PartitionId(3), 0), header);
    }

    #[test]
    fn a_session_opening_carries_its_key_and_its_expiry() {
        let extension = Extension { a: 7, b: 1 << 60, fence_resource: 3_600_000, ..Extension::default() };
        let header = RecordHeader {
            index: Index(90),
            extension: Some(extension),
            ..RecordHeader::new(RecordKind::SessionOpen, PartitionId(3))
        };
        let meta = header.meta();
        assert_eq!(meta.session_key, Some(SessionKey(1 << 124 | 7)));
        assert_eq!(meta.session_expiry_ms, 3_600_000);
        assert_eq!(RecordHeader::of_meta(&meta, PartitionId(3), 0), header);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = encoded();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode_record(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_walk_ends_at_the_first_error() {
        let mut bytes = encoded();
        bytes.extend(encoded());
        bytes.extend(encoded());
        bytes[192 + 130] ^= 1;
        let walked: Vec<_> = records(&bytes).collect();
        assert_eq!(walked.len(), 2);
        assert!(walked[0].is_ok());
        assert!(matches!(walked[1], Err(RecordError::PayloadChecksum { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = RecordHeader::decode_record(&bytes);
        }

        #[test]
        fn any_header_comes_back(partition: u64, index: u64, generation: u64, prev: u64, ts: u64, cluster: u32, len in 0u32..(2 << 20), crc: u32, ext: bool, a: u64, b: u64) {
            let header = RecordHeader {
                index: Index(index), generation: Generation(generation), prev_generation: Generation(prev),
                timestamp: ReplicatedMs(ts), cluster, payload_len: len, payload_crc: crc,
                extension: ext.then_some(Extension { a, b, ..Extension::default() }),
                ..RecordHeader::new(RecordKind::Data, PartitionId(partition))
            };
            let mut bytes = [0u8; 128];
            header.encode(&mut bytes);
            prop_assert_eq!(RecordHeader::decode(&bytes[..header.head_bytes()]), Ok(header));
        }
    }
}
