//! Where snapshots lie, and what an opening does with what it finds there.
//!
//! `snap/<partition>/<index>-<generation>.snap`; while it is written, `.tmp` behind that. (`.recv` is kept for one that
//! comes from a peer.) Only the marked one counts. Opening deletes what is not marked, verifies the marked file from its
//! first to its last byte, and gives it to the state machine if that needs it.

use super::format::{CHUNK_BYTES, FormatError, Header, Part, Piece, Walk};
use crate::state_machine::StateMachine;
use std::io::Read;
use std::path::{Path, PathBuf};
use tidelog_consensus::Base;
use tidelog_io::{FileId, Foreground, IoError, IoErrorKind, Op, OpenMode, Output};
use tidelog_types::{Generation, Index, PartitionId, Position};

/// Most bytes of the protocol's part that are believed.
const BASE_BYTES_MAX: usize = 256 << 20;

/// Why the snapshot that the log names cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotFault {
    #[error("it is missing")]
    Missing,
    #[error("{0}")]
    Io(#[from] IoError),
    #[error("{0}")]
    Format(#[from] FormatError),
    #[error("{0}")]
    Base(#[from] tidelog_consensus::BaseError),
    #[error("it covers {found:?}, the log's mark says {marked:?}")]
    Covered { found: Position, marked: Position },
    #[error("the state machine does not take it: {0}")]
    Restore(std::io::Error),
    #[error("the system answered {0} with something else")]
    Answer(&'static str),
}

/// All partitions' snapshots.
pub(crate) fn root(data_dir: &Path) -> PathBuf {
    data_dir.join("snap")
}

/// One partition's.
pub(crate) fn dir(data_dir: &Path, partition: PartitionId) -> PathBuf {
    root(data_dir).join(partition.get().to_string())
}

/// The file's name.
pub(crate) fn name(covered: Position) -> String {
    format!("{}-{}.snap", covered.index, covered.generation)
}

/// What a name says; none if it is no snapshot's, finished or not.
pub(crate) fn position_of(name: &str) -> Option<Position> {
    let stem = name.split_once(".snap").filter(|(_, rest)| matches!(*rest, "" | ".tmp" | ".recv"))?.0;
    let (index, generation) = stem.split_once('-')?;
    Some(Position::new(Index(index.parse().ok()?), Generation(generation.parse().ok()?)))
}

/// Looks at a partition's directory: deletes what is not marked, verifies what is. What the protocol knows of the log
/// up to there; none without a mark.
pub(crate) fn open(
    fg: &mut Foreground<'_>,
    dir: &Path,
    expected: Header,
) -> Result<Option<Base>, SnapshotFault> {
    let marked = (expected.covered.index > Index::ZERO).then(|| name(expected.covered));
    let names = match fg.run(Op::List { path: dir.to_owned() }) {
        Ok(Output::Names(names)) => names,
        Ok(_) => return Err(SnapshotFault::Answer("list")),
        Err(error) if error.kind == IoErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    for found in names.iter().filter(|found| Some(*found) != marked.as_ref()) {
        if position_of(found).is_none() {
            tracing::warn!(file = %dir.join(found).display(), "not a snapshot's name: left as it is");
        } else if let Err(error) = fg.run(Op::Remove { path: dir.join(found) }) {
            tracing::warn!(%error, "a snapshot that does not count could not be removed");
        }
    }
    let Some(marked) = marked else { return Ok(None) };
    if !names.contains(&marked) {
        return Err(SnapshotFault::Missing);
    }
    let mut reader = Reader::open(fg, &dir.join(&marked))?;
    let verified = reader.verify(expected);
    reader.close();
    let base = Base::decode(&verified?)?;
    if base.position() != expected.covered {
        return Err(SnapshotFault::Covered { found: base.position(), marked: expected.covered });
    }
    Ok(Some(base))
}

/// Gives a verified snapshot to a state machine.
pub(crate) fn restore(
    fg: &mut Foreground<'_>,
    dir: &Path,
    covered: Position,
    machine: &mut dyn StateMachine,
) -> Result<(), SnapshotFault> {
    let mut reader = Reader::open(fg, &dir.join(name(covered)))?;
    let restored = machine.restore(covered.index, &mut reader);
    let failed = reader.failed.take();
    reader.close();
    match (failed, restored) {
        (Some(fault), _) => Err(fault),
        (None, Err(error)) => Err(SnapshotFault::Restore(error)),
        (None, Ok(())) => Ok(()),
    }
}

/// A file, read in pieces; as [`Read`], the state machine's bytes of it.
struct Reader<'f, 'io> {
    fg: &'f mut Foreground<'io>,
    file: FileId,
    bytes: u64,
    walk: Walk,
    piece: Vec<u8>,
    taken: usize,
    ended: bool,
    failed: Option<SnapshotFault>,
}

impl<'f, 'io> Reader<'f, 'io> {
    fn open(fg: &'f mut Foreground<'io>, path: &Path) -> Result<Self, SnapshotFault> {
        match fg.run(Op::Open { path: path.to_owned(), mode: OpenMode::Read })? {
            Output::Opened { file, bytes } => Ok(Reader {
                fg,
                file,
                bytes,
                walk: Walk::default(),
                piece: Vec::new(),
                taken: 0,
                ended: false,
                failed: None,
            }),
            _ => Err(SnapshotFault::Answer("open")),
        }
    }

    fn close(self) {
        if let Err(error) = self.fg.run(Op::CloseFile { file: self.file }) {
            tracing::warn!(%error, "a snapshot could not be closed");
        }
    }

    /// The next piece, given to `f`.
    fn next<T>(&mut self, f: impl FnOnce(Piece<'_>) -> T) -> Result<T, SnapshotFault> {
        let at = self.walk.at();
        let (buffer, bytes) = if at < self.bytes {
            let buffer = self.fg.io().buffers().take(CHUNK_BYTES);
            match self.fg.run(Op::Read { file: self.file, offset: at, buffer })? {
                Output::Read { buffer, bytes } => (buffer, bytes),
                _ => return Err(SnapshotFault::Answer("read")),
            }
        } else {
            return Err(FormatError::Short { at }.into());
        };
        let piece = self.walk.take(buffer.get(..bytes).unwrap_or_default())?;
        if matches!(piece, Piece::End(_)) && self.walk.at() != self.bytes {
            return Err(FormatError::Length { bytes: self.bytes, said: self.walk.at() }.into());
        }
        Ok(f(piece))
    }

    /// Walks the whole file. The base's bytes.
    fn verify(&mut self, expected: Header) -> Result<Vec<u8>, SnapshotFault> {
        let mut base = Vec::new();
        loop {
            let at = self.walk.at();
            let ended = self.next(|piece| match piece {
                Piece::Header(found) if found != expected => Err(FormatError::Other { found, expected }),
                Piece::Chunk(Part::Base, bytes) if base.len() + bytes.len() > BASE_BYTES_MAX => {
                    Err(FormatError::Contradiction { at, what: "base" })
                }
                Piece::Chunk(Part::Base, bytes) => {
                    base.extend_from_slice(bytes);
                    Ok(false)
                }
                Piece::Header(_) | Piece::Chunk(Part::State, _) => Ok(false),
                Piece::End(_) => Ok(true),
            })??;
            if ended {
                return Ok(base);
            }
        }
    }

    fn fill(&mut self) -> Result<(), SnapshotFault> {
        while self.taken >= self.piece.len() && !self.ended {
            let mut state = std::mem::take(&mut self.piece);
            state.clear();
            self.taken = 0;
            self.ended = self.next(|piece| {
                if let Piece::Chunk(Part::State, bytes) = piece {
                    state.extend_from_slice(bytes);
                }
                matches!(piece, Piece::End(_))
            })?;
            self.piece = state;
        }
        Ok(())
    }
}

impl Read for Reader<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.failed.is_some() {
            return Err(std::io::Error::other("the snapshot could not be read"));
        }
        if let Err(fault) = self.fill() {
            let error = std::io::Error::other(fault.to_string());
            self.failed = Some(fault);
            return Err(error);
        }
        let rest = self.piece.get(self.taken..).unwrap_or_default();
        let bytes = rest.len().min(out.len());
        out[..bytes].copy_from_slice(&rest[..bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_cover() {
        let at = Position::new(Index(17), Generation(3));
        assert_eq!(name(at), "17-3.snap");
        for unfinished in ["", ".tmp", ".recv"] {
            assert_eq!(position_of(&format!("17-3.snap{unfinished}")), Some(at));
        }
        for other in ["17.snap", "17-3", "17-3.snapshot", "17-3.snap.old", "a-b.snap", "notes.txt"] {
            assert_eq!(position_of(other), None, "{other}");
        }
    }
}
