//! One snapshot from its beginning to its mark: one operation at a time, each step only when the one before is done.
//!
//! - directories, each name durable;
//! - `.tmp`: header, chunks, trailer, synced;
//! - read back from its first to its last byte, and verified;
//! - renamed, directory synced;
//! - the mark in the shard's log;
//! - older files removed.
//!
//! Whatever fails before the mark is ordered ends the job: its files are removed, nothing depends on them. A job does not
//! know the state machine, the log, or when it is held back for others' sake.

use super::files;
use super::format::{CHUNK_BYTES, CHUNK_PAYLOAD_MAX, Header, Part, Piece, Totals, Walk, Writer, payload_of};
use crate::partition::Origin;
use crate::state_machine::SnapshotView;
use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use tidelog_io::{BufferPool, FileId, IoError, IoErrorKind, Op, OpenMode, Output};
use tidelog_types::{Monotonic, PartitionId, Position};

/// What a snapshot is made from.
pub(crate) struct Begun {
    /// The last entry covered.
    pub(crate) covered: Position,
    /// What the protocol knows of the log up to there.
    pub(crate) base: Vec<u8>,
    /// The state machine's view.
    pub(crate) view: SnapshotView,
}

#[derive(Debug)]
enum Step {
    MakeRoot,
    SyncData,
    MakeDir,
    SyncRoot,
    Clear,
    Create,
    Header,
    Base { written: usize },
    State,
    Trailer,
    Sync,
    Close,
    Reopen,
    ReadBack,
    CloseAgain,
    Rename,
    SyncDir,
    Mark,
    List,
    Remove(VecDeque<PathBuf>),
    Done,
    GiveUp(VecDeque<Op>, String),
}

/// What a job wants.
pub(super) enum Wants {
    /// This operation; its result goes to [`Job::done`].
    Op(Op),
    /// Its mark ordered, and a word when that is durable: [`Job::marked`].
    Mark,
    /// Nothing: it is over.
    Nothing(Result<Totals, String>),
}

/// A snapshot under way.
pub(super) struct Job {
    pub(super) partition: PartitionId,
    pub(super) covered: Position,
    /// Who waits for it.
    pub(super) askers: Vec<Origin>,
    pub(super) began: Monotonic,
    /// Its mark is in the log's hands.
    pub(super) ordered: bool,
    data_dir: PathBuf,
    dir: PathBuf,
    path: PathBuf,
    tmp: PathBuf,
    base: Vec<u8>,
    view: SnapshotView,
    writer: Writer,
    written: u64,
    walk: Walk,
    expected: Header,
    file: Option<FileId>,
    step: Step,
}

impl Job {
    pub(super) fn new(
        data_dir: &Path,
        header: Header,
        begun: Begun,
        askers: Vec<Origin>,
        now: Monotonic,
    ) -> Job {
        let dir = files::dir(data_dir, header.partition);
        let path = dir.join(files::name(header.covered));
        Job {
            partition: header.partition,
            covered: header.covered,
            askers,
            began: now,
            ordered: false,
            data_dir: data_dir.to_owned(),
            tmp: path.with_extension("snap.tmp"),
            path,
            dir,
            base: begun.base,
            view: begun.view,
            writer: Writer::new(header),
            written: 0,
            walk: Walk::default(),
            expected: header,
            file: None,
            step: Step::MakeRoot,
        }
    }

    /// Whether its next operation moves bulk data and may be held back for others' sake.
    pub(super) fn is_bulk(&self) -> bool {
        matches!(self.step, Step::Base { .. } | Step::State | Step::ReadBack)
    }

    /// What is to be done next.
    pub(super) fn wants(&mut self, buffers: &BufferPool) -> Wants {
        loop {
            match self.next(buffers) {
                Ok(Some(wants)) => return wants,
                Ok(None) => {}
                Err(why) => self.give_up(why),
            }
        }
    }

    fn next(&mut self, buffers: &BufferPool) -> Result<Option<Wants>, String> {
        let file = || self.file.ok_or_else(|| "its file is not open".to_owned());
        let op = match &mut self.step {
            Step::MakeRoot => Op::CreateDir { path: files::root(&self.data_dir) },
            Step::SyncData => Op::SyncDir { path: self.data_dir.clone() },
            Step::MakeDir => Op::CreateDir { path: self.dir.clone() },
            Step::SyncRoot => Op::SyncDir { path: files::root(&self.data_dir) },
            Step::Clear => Op::Remove { path: self.tmp.clone() },
            Step::Create => Op::Open { path: self.tmp.clone(), mode: OpenMode::Create },
            Step::Header => {
                let file = file()?;
                return Ok(Some(self.write(file, |writer| writer.header(buffers))));
            }
            Step::Base { written } => {
                let (from, file) = (*written, file()?);
                let piece = self.base.get(from..).unwrap_or_default();
                let piece = piece.get(..CHUNK_PAYLOAD_MAX).unwrap_or(piece);
                if piece.is_empty() {
                    self.base = Vec::new();
                    self.step = Step::State;
                    return Ok(None);
                }
                let (len, mut buffer) = (piece.len(), Writer::buffer(buffers));
                payload_of(&mut buffer)[..len].copy_from_slice(piece);
                return Ok(Some(self.write(file, |writer| writer.chunk(buffer, Part::Base, len))));
            }
            Step::State => {
                let file = file()?;
                let mut buffer = Writer::buffer(buffers);
                let len = fill(&mut *self.view, payload_of(&mut buffer))
                    .map_err(|error| format!("the state machine's view: {error}"))?;
                if len == 0 {
                    self.view = Box::new(std::io::empty());
                    self.step = Step::Trailer;
                    return Ok(None);
                }
                return Ok(Some(self.write(file, |writer| writer.chunk(buffer, Part::State, len))));
            }
            Step::Trailer => {
                let file = file()?;
                return Ok(Some(self.write(file, |writer| writer.trailer(buffers))));
            }
            Step::Sync => Op::Sync { file: file()? },
            Step::Close | Step::CloseAgain => Op::CloseFile { file: file()? },
            Step::Reopen => Op::Open { path: self.tmp.clone(), mode: OpenMode::Read },
            Step::ReadBack => {
                Op::Read { file: file()?, offset: self.walk.at(), buffer: buffers.take(CHUNK_BYTES) }
            }
            Step::Rename => Op::Rename { from: self.tmp.clone(), to: self.path.clone() },
            Step::SyncDir => Op::SyncDir { path: self.dir.clone() },
            Step::Mark => return Ok(Some(Wants::Mark)),
            Step::List => Op::List { path: self.dir.clone() },
            Step::Remove(paths) => match paths.front() {
                Some(path) => Op::Remove { path: path.clone() },
                None => {
                    self.step = Step::Done;
                    return Ok(None);
                }
            },
            Step::Done => return Ok(Some(Wants::Nothing(Ok(self.writer.totals())))),
            Step::GiveUp(ops, why) => match ops.pop_front() {
                Some(op) => op,
                None => return Ok(Some(Wants::Nothing(Err(why.clone())))),
            },
        };
        Ok(Some(Wants::Op(op)))
    }

    fn write(&mut self, file: FileId, make: impl FnOnce(&mut Writer) -> bytes::Bytes) -> Wants {
        let offset = self.written;
        let piece = make(&mut self.writer);
        self.written = self.writer.at();
        Wants::Op(Op::Write { file, offset, data: vec![piece] })
    }

    /// The operation's result.
    pub(super) fn done(&mut self, result: Result<Output, IoError>) {
        if let Err(why) = self.advance(result) {
            self.give_up(why);
        }
    }

    fn advance(&mut self, result: Result<Output, IoError>) -> Result<(), String> {
        let result = match (&self.step, result) {
            (Step::GiveUp(..), _) => return Ok(()),
            (Step::Clear, Err(error)) if error.kind == IoErrorKind::NotFound => Output::Done,
            (Step::Remove(_), Err(error)) => {
                tracing::warn!(%error, "an older snapshot could not be removed; the next opening tries again");
                Output::Done
            }
            (Step::List, Err(error)) => {
                tracing::warn!(%error, "older snapshots are not removed now; the next opening does it");
                Output::Names(Vec::new())
            }
            (_, result) => result.map_err(|error| error.to_string())?,
        };
        self.step = match std::mem::replace(&mut self.step, Step::Done) {
            Step::MakeRoot => Step::SyncData,
            Step::SyncData => Step::MakeDir,
            Step::MakeDir => Step::SyncRoot,
            Step::SyncRoot => Step::Clear,
            Step::Clear => Step::Create,
            Step::Create => {
                self.file = Some(opened(result)?.0);
                Step::Header
            }
            Step::Header => Step::Base { written: 0 },
            Step::Base { written } => Step::Base { written: written + CHUNK_PAYLOAD_MAX },
            Step::State => Step::State,
            Step::Trailer => Step::Sync,
            Step::Sync => Step::Close,
            Step::Close => {
                self.file = None;
                Step::Reopen
            }
            Step::Reopen => {
                let (file, bytes) = opened(result)?;
                self.file = Some(file);
                if bytes != self.written {
                    return Err(format!("{bytes} bytes are there, {} were written", self.written));
                }
                Step::ReadBack
            }
            Step::ReadBack => self.verify(result)?,
            Step::CloseAgain => {
                self.file = None;
                Step::Rename
            }
            Step::Rename => Step::SyncDir,
            Step::SyncDir => Step::Mark,
            Step::List => {
                let Output::Names(names) = result else { return Err("listing gave no names".into()) };
                let own = files::name(self.covered);
                let older = names.iter().filter(|n| **n != own && files::position_of(n).is_some());
                Step::Remove(older.map(|n| self.dir.join(n)).collect())
            }
            Step::Remove(mut paths) => {
                paths.pop_front();
                Step::Remove(paths)
            }
            step @ (Step::Mark | Step::Done | Step::GiveUp(..)) => step,
        };
        Ok(())
    }

    /// What was read back must be what was written, byte for byte by its checksums.
    fn verify(&mut self, result: Output) -> Result<Step, String> {
        let Output::Read { buffer, bytes } = result else { return Err("reading gave no bytes".into()) };
        let piece = self.walk.take(buffer.get(..bytes).unwrap_or_default());
        match piece.map_err(|error| format!("read back, it is not what was written: {error}"))? {
            Piece::Header(header) if header == self.expected => Ok(Step::ReadBack),
            Piece::Chunk(..) => Ok(Step::ReadBack),
            Piece::End(totals) if totals == self.writer.totals() && self.walk.at() == self.written => {
                Ok(Step::CloseAgain)
            }
            Piece::Header(_) | Piece::End(_) => Err("read back, it is another file".into()),
        }
    }

    /// The mark is durable: older snapshots are not needed any more.
    pub(super) fn marked(&mut self) {
        self.step = Step::List;
    }

    /// Ends without a snapshot.
    pub(super) fn give_up(&mut self, why: String) {
        assert!(!self.ordered, "a snapshot whose mark is ordered is not given up");
        let mut ops = VecDeque::new();
        ops.extend(self.file.take().map(|file| Op::CloseFile { file }));
        ops.push_back(Op::Remove { path: self.tmp.clone() });
        ops.push_back(Op::Remove { path: self.path.clone() });
        self.view = Box::new(std::io::empty());
        self.step = Step::GiveUp(ops, why);
    }
}

fn opened(output: Output) -> Result<(FileId, u64), String> {
    match output {
        Output::Opened { file, bytes } => Ok((file, bytes)),
        _ => Err("opening gave no file".into()),
    }
}

/// As much as fits; less only at the end.
fn fill(view: &mut (dyn Read + Send), out: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < out.len() {
        match view.read(&mut out[len..]) {
            Ok(0) => break,
            Ok(more) => len += more.min(out.len() - len),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
