//! The bytes of a snapshot file: `docs/formats/snapshot.md`.
//!
//! A header page, chunks that each begin on a page, a trailer page. Everything is covered by checksums, chunks name
//! their number and their file's header, the trailer names how many there are. [`Walk`] verifies a file from its start
//! to its end, whatever the bytes are; it knows nothing of files.

use bytes::Bytes;
use tidelog_io::{AlignedBuf, BufferPool};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Generation, Index, PartitionId, Position};

/// The version written now.
pub const VERSION: u32 = 1;
/// A full chunk, header included. No chunk is larger.
pub const CHUNK_BYTES: usize = 64 << 10;
/// A chunk's header.
pub const CHUNK_HEAD_BYTES: usize = 40;
/// What a full chunk holds.
pub const CHUNK_PAYLOAD_MAX: usize = CHUNK_BYTES - CHUNK_HEAD_BYTES;

const HEADER_MAGIC: [u8; 4] = *b"TDSH";
const CHUNK_MAGIC: [u8; 4] = *b"TDSC";
const TRAILER_MAGIC: [u8; 4] = *b"TDSE";

/// What a snapshot is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whose log.
    pub partition: PartitionId,
    /// The last entry covered.
    pub covered: Position,
    /// [`tidelog_types::ClusterId::tag`] of the cluster.
    pub cluster: u32,
}

/// What a chunk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// What the protocol knows of the log up to there ([`tidelog_consensus::Base`]).
    Base,
    /// The state machine's own bytes.
    State,
}

/// Totals, at the end of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Chunks.
    pub chunks: u64,
    /// Bytes in chunks of the base.
    pub base_bytes: u64,
    /// Bytes in chunks of the state machine.
    pub state_bytes: u64,
    /// CRC32C over the chunks' checksums, in their order.
    pub chunks_crc: u32,
}

/// Why bytes are not a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than there must be.
    #[error("the file ends at byte {at} within a part of it")]
    Short {
        /// Where.
        at: u64,
    },
    /// Neither a chunk nor a trailer, or not at the start.
    #[error("there is no {what} at byte {at}")]
    Magic {
        /// Where.
        at: u64,
        /// What should be there.
        what: &'static str,
    },
    /// A checksum does not match.
    #[error("the checksum of the {what} at byte {at} does not match")]
    Checksum {
        /// Where.
        at: u64,
        /// Of what.
        what: &'static str,
    },
    /// A newer program wrote it.
    #[error("version {0} of a snapshot is not known to this version")]
    Version(u32),
    /// It is of something else.
    #[error("it is a snapshot of {found:?}, not of {expected:?}")]
    Other {
        /// By its header.
        found: Header,
        /// Wanted.
        expected: Header,
    },
    /// The checksum is right, but the parts do not fit each other.
    #[error("the {what} at byte {at} contradicts what is before it")]
    Contradiction {
        /// Where.
        at: u64,
        /// What.
        what: &'static str,
    },
    /// Bytes follow the trailer.
    #[error("the file has {bytes} bytes, its trailer says {said}")]
    Length {
        /// It has.
        bytes: u64,
        /// It should have.
        said: u64,
    },
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

/// Sets the checksum of bytes 8 to the end at byte 4, and returns it.
fn seal(out: &mut [u8]) -> u32 {
    let crc = crc32c::crc32c(&out[8..]);
    put(out, 4, &crc.to_le_bytes());
    crc
}

/// Makes a file's bytes piece by piece.
#[derive(Clone, Debug)]
pub struct Writer {
    header: Header,
    header_crc: u32,
    totals: Totals,
    at: u64,
}

impl Writer {
    /// Of a snapshot of this.
    pub fn new(header: Header) -> Writer {
        Writer { header, header_crc: 0, totals: Totals::default(), at: 0 }
    }

    /// The header page.
    pub fn header(&mut self, buffers: &BufferPool) -> Bytes {
        let mut page = buffers.take_zeroed(PAGE_BYTES);
        put(&mut page, 0, &HEADER_MAGIC);
        put(&mut page, 8, &VERSION.to_le_bytes());
        put(&mut page, 12, &self.header.cluster.to_le_bytes());
        put(&mut page, 16, &self.header.partition.0.to_le_bytes());
        put(&mut page, 24, &self.header.covered.index.0.to_le_bytes());
        put(&mut page, 32, &self.header.covered.generation.0.to_le_bytes());
        self.header_crc = seal(&mut page);
        self.at = PAGE_BYTES as u64;
        page.freeze()
    }

    /// A buffer for a chunk: fill [`payload_of`], then give it to [`Self::chunk`].
    pub fn buffer(buffers: &BufferPool) -> AlignedBuf {
        buffers.take(CHUNK_BYTES)
    }

    /// The chunk of the first `len` bytes of its payload.
    ///
    /// # Panics
    /// If there are none, or more than fit.
    pub fn chunk(&mut self, mut buffer: AlignedBuf, part: Part, len: usize) -> Bytes {
        assert!((1..=CHUNK_PAYLOAD_MAX).contains(&len), "a chunk holds 1..={CHUNK_PAYLOAD_MAX} bytes: {len}");
        let end = CHUNK_HEAD_BYTES + len;
        let padded = end.next_multiple_of(PAGE_BYTES);
        buffer.truncate(padded);
        buffer[end..].fill(0);
        buffer[..CHUNK_HEAD_BYTES].fill(0);
        put(&mut buffer, 0, &CHUNK_MAGIC);
        put(&mut buffer, 8, &self.totals.chunks.to_le_bytes());
        let part_code: u32 = if part == Part::Base { 1 } else { 2 };
        put(&mut buffer, 16, &part_code.to_le_bytes());
        put(&mut buffer, 20, &u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut buffer, 24, &self.header_crc.to_le_bytes());
        put(&mut buffer, 32, &self.at.to_le_bytes());
        let crc = seal(&mut buffer[..end]);
        self.totals.add(part, len, crc);
        self.at += padded as u64;
        buffer.freeze()
    }

    /// The trailer page.
    pub fn trailer(&mut self, buffers: &BufferPool) -> Bytes {
        let mut page = buffers.take_zeroed(PAGE_BYTES);
        put(&mut page, 0, &TRAILER_MAGIC);
        put(&mut page, 8, &self.totals.chunks.to_le_bytes());
        put(&mut page, 16, &self.totals.base_bytes.to_le_bytes());
        put(&mut page, 24, &self.totals.state_bytes.to_le_bytes());
        put(&mut page, 32, &self.totals.chunks_crc.to_le_bytes());
        put(&mut page, 36, &self.header_crc.to_le_bytes());
        self.at += PAGE_BYTES as u64;
        put(&mut page, 40, &self.at.to_le_bytes());
        seal(&mut page);
        page.freeze()
    }

    /// Where the next piece goes.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// What was written.
    pub fn totals(&self) -> Totals {
        self.totals
    }
}

impl Totals {
    fn add(&mut self, part: Part, len: usize, crc: u32) {
        self.chunks += 1;
        match part {
            Part::Base => self.base_bytes += len as u64,
            Part::State => self.state_bytes += len as u64,
        }
        self.chunks_crc = crc32c::crc32c_append(self.chunks_crc, &crc.to_le_bytes());
    }
}

/// Where a chunk's payload goes.
pub fn payload_of(buffer: &mut AlignedBuf) -> &mut [u8] {
    &mut buffer[CHUNK_HEAD_BYTES..]
}

/// What [`Walk::take`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece<'a> {
    /// The header page.
    Header(Header),
    /// A chunk's payload.
    Chunk(Part, &'a [u8]),
    /// The trailer: all is well.
    End(Totals),
}

/// Verifies a file from its start to its end.
#[derive(Clone, Debug, Default)]
pub struct Walk {
    at: u64,
    header_crc: Option<u32>,
    totals: Totals,
}

impl Walk {
    /// Where the next piece begins.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next piece: `bytes` are those from [`Self::at`] on, at most a chunk's, fewer only at the file's end.
    ///
    /// # Errors
    /// In which way they are not the next piece of a snapshot.
    pub fn take<'a>(&mut self, bytes: &'a [u8]) -> Result<Piece<'a>, FormatError> {
        let at = self.at;
        let Some(header_crc) = self.header_crc else {
            let page = verified_page(bytes, at, HEADER_MAGIC, "header")?;
            let version = u32_at(page, 8);
            if version != VERSION {
                return Err(FormatError::Version(version));
            }
            if page[40..].iter().any(|b| *b != 0) {
                return Err(FormatError::Contradiction { at, what: "header" });
            }
            self.header_crc = Some(u32_at(page, 4));
            self.at += PAGE_BYTES as u64;
            let covered = Position::new(Index(u64_at(page, 24)), Generation(u64_at(page, 32)));
            let (cluster, partition) = (u32_at(page, 12), PartitionId(u64_at(page, 16)));
            return Ok(Piece::Header(Header { partition, covered, cluster }));
        };
        if bytes.get(..4) == Some(&TRAILER_MAGIC) {
            let page = verified_page(bytes, at, TRAILER_MAGIC, "trailer")?;
            let totals = Totals {
                chunks: u64_at(page, 8),
                base_bytes: u64_at(page, 16),
                state_bytes: u64_at(page, 24),
                chunks_crc: u32_at(page, 32),
            };
            let end = at + PAGE_BYTES as u64;
            let same = totals == self.totals && u32_at(page, 36) == header_crc && u64_at(page, 40) == end;
            if !same || page[48..].iter().any(|b| *b != 0) {
                return Err(FormatError::Contradiction { at, what: "trailer" });
            }
            self.at = end;
            return Ok(Piece::End(totals));
        }
        let head = bytes.get(..CHUNK_HEAD_BYTES).ok_or(FormatError::Short { at })?;
        if head.get(..4) != Some(&CHUNK_MAGIC) {
            return Err(FormatError::Magic { at, what: "chunk" });
        }
        let what = "chunk";
        let len = usize::try_from(u32_at(head, 20)).unwrap_or(usize::MAX);
        if !(1..=CHUNK_PAYLOAD_MAX).contains(&len) {
            return Err(FormatError::Checksum { at, what });
        }
        let end = CHUNK_HEAD_BYTES + len;
        let padded = end.next_multiple_of(PAGE_BYTES);
        let whole = bytes.get(..padded).ok_or(FormatError::Short { at })?;
        let crc = u32_at(head, 4);
        if whole.get(8..end).map(crc32c::crc32c) != Some(crc) {
            return Err(FormatError::Checksum { at, what });
        }
        let part = match u32_at(head, 16) {
            1 => Part::Base,
            2 => Part::State,
            _ => return Err(FormatError::Contradiction { at, what }),
        };
        let placed = u64_at(head, 8) == self.totals.chunks
            && u32_at(head, 24) == header_crc
            && u32_at(head, 28) == 0
            && u64_at(head, 32) == at;
        let ordered = part == Part::State || self.totals.state_bytes == 0;
        let zeros = whole.get(end..).is_some_and(|rest| rest.iter().all(|b| *b == 0));
        if !placed || !ordered || !zeros {
            return Err(FormatError::Contradiction { at, what });
        }
        self.totals.add(part, len, crc);
        self.at += padded as u64;
        Ok(Piece::Chunk(part, whole.get(CHUNK_HEAD_BYTES..end).unwrap_or_default()))
    }
}

fn verified_page<'a>(
    bytes: &'a [u8],
    at: u64,
    magic: [u8; 4],
    what: &'static str,
) -> Result<&'a [u8; PAGE_BYTES], FormatError> {
    let page: &[u8; PAGE_BYTES] = bytes.first_chunk().ok_or(FormatError::Short { at })?;
    if page[..4] != magic {
        return Err(FormatError::Magic { at, what });
    }
    if crc32c::crc32c(&page[8..]) != u32_at(page, 4) {
        return Err(FormatError::Checksum { at, what });
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header {
        partition: PartitionId(3),
        covered: Position { index: Index(700), generation: Generation(4) },
        cluster: 0xc1a5_7e12,
    };

    fn file(base: &[u8], state: &[u8]) -> Vec<u8> {
        let buffers = BufferPool::new(1 << 20);
        let mut writer = Writer::new(HEADER);
        let mut file = writer.header(&buffers).to_vec();
        for (part, bytes) in [(Part::Base, base), (Part::State, state)] {
            for piece in bytes.chunks(CHUNK_PAYLOAD_MAX) {
                let mut buffer = Writer::buffer(&buffers);
                payload_of(&mut buffer)[..piece.len()].copy_from_slice(piece);
                file.extend_from_slice(&writer.chunk(buffer, part, piece.len()));
                assert_eq!(writer.at(), file.len() as u64);
            }
        }
        file.extend_from_slice(&writer.trailer(&buffers));
        file
    }

    fn walk(file: &[u8]) -> Result<(Vec<u8>, Vec<u8>), FormatError> {
        let (mut walk, mut base, mut state) = (Walk::default(), Vec::new(), Vec::new());
        loop {
            let from = usize::try_from(walk.at()).unwrap().min(file.len());
            let to = (from + CHUNK_BYTES).min(file.len());
            match walk.take(&file[from..to])? {
                Piece::Header(header) => assert_eq!(header, HEADER),
                Piece::Chunk(Part::Base, bytes) => base.extend_from_slice(bytes),
                Piece::Chunk(Part::State, bytes) => state.extend_from_slice(bytes),
                Piece::End(totals) => {
                    assert_eq!(
                        (totals.base_bytes, totals.state_bytes),
                        (base.len() as u64, state.len() as u64)
                    );
                    return Ok((base, state));
                }
            }
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let state: Vec<u8> = (0..150_000u32).map(|i| i as u8).collect();
        for (base, state) in [(&b"base"[..], &state[..]), (b"", b""), (&state, b"x")] {
            let file = file(base, state);
            assert_eq!(file.len() % PAGE_BYTES, 0);
            assert_eq!(walk(&file), Ok((base.to_vec(), state.to_vec())));
        }
    }

    #[test]
    fn every_flipped_bit_of_what_is_said_is_noticed() {
        let good = file(b"what the protocol knows", b"what the state machine knows");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(walk(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_file_cut_short_or_with_a_part_of_another_is_noticed() {
        let good = file(b"base", &[7; 200_000]);
        for pages in 0..good.len() / PAGE_BYTES {
            assert!(walk(&good[..pages * PAGE_BYTES]).is_err(), "{pages} pages");
        }
        let chunk = |n: usize| PAGE_BYTES * 2 + n * CHUNK_BYTES;
        let mut swapped = good.clone();
        swapped.copy_within(chunk(0)..chunk(1), chunk(1));
        assert!(matches!(walk(&swapped), Err(FormatError::Contradiction { .. })), "a chunk twice");
        let mut without = good.clone();
        without.drain(chunk(0)..chunk(1));
        assert!(matches!(walk(&without), Err(FormatError::Contradiction { .. })), "a chunk missing");
    }

    #[test]
    fn the_format_is_pinned() {
        let file = file(b"base", b"state");
        assert_eq!(file.len(), 4 * PAGE_BYTES);
        let mut dump = String::new();
        for (line, bytes) in file.chunks(16).enumerate().filter(|(_, bytes)| bytes.iter().any(|b| *b != 0)) {
            let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
            dump.push_str(&format!("{:04x}  {}\n", line * 16, hex.join(" ")));
        }
        dump.push_str(&format!("{:04x}\n", file.len()));
        let page = include_str!("../../../docs/formats/snapshot.md");
        assert!(page.contains(&dump), "docs/formats/snapshot.md does not hold:\n{dump}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0usize..20_000) {
            let mut file = file(b"base", b"state");
            for (i, byte) in bytes.iter().enumerate() {
                let at = (at + i) % file.len();
                file[at] = *byte;
            }
            let _ = walk(&file);
        }
    }
}
