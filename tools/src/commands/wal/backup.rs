//! Copies of what a repair is about to change, durable before it begins.
//!
//! A backup is a directory of its own, `repair-0001` and so on, with one directory a shard and the files under their own names:
//! putting them back undoes the repair. It is never written to again, and never removed by the program.

use std::path::{Path, PathBuf};
use tidelog_io::{BufferPool, FileId, Foreground, Io, IoError, IoErrorKind, Op, OpenMode, Output};
use tidelog_types::limits::PAGE_BYTES;

/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// A backup that is being made.
pub(super) struct Backup {
    /// Its directory.
    pub(super) dir: PathBuf,
}

impl Backup {
    /// A new directory in `parent`.
    pub(super) fn begin(io: &mut dyn Io, parent: &Path) -> Result<Backup, IoError> {
        let mut fg = Foreground::new(io);
        fg.run(Op::CreateDir { path: parent.to_owned() })?;
        let names = list(&mut fg, parent)?;
        let number = |name: &String| name.strip_prefix("repair-")?.parse::<u32>().ok();
        let number = names.iter().filter_map(number).max().unwrap_or(0).saturating_add(1);
        let dir = parent.join(format!("repair-{number:04}"));
        fg.run(Op::CreateDir { path: dir.clone() })?;
        fg.run(Op::SyncDir { path: parent.to_owned() })?;
        Ok(Backup { dir })
    }

    /// Copies a file of a shard, durably, its name included.
    pub(super) fn keep(&self, io: &mut dyn Io, shard_dir: &Path, file: &Path) -> Result<(), IoError> {
        let (Some(shard), Some(name)) = (shard_dir.file_name(), file.file_name()) else {
            return Err(wrong("back up", file, "it has no name"));
        };
        let pool = io.buffers();
        let mut fg = Foreground::new(io);
        let dir = self.dir.join(shard);
        fg.run(Op::CreateDir { path: dir.clone() })?;
        fg.run(Op::SyncDir { path: self.dir.clone() })?;
        let (from, bytes) = open(&mut fg, file, OpenMode::Read)?;
        let copy = dir.join(name);
        let (to, _) = open(&mut fg, &copy, OpenMode::Create)?;
        let copied = copy_bytes(&mut fg, &pool, (from, file), to, bytes);
        fg.run(Op::CloseFile { file: from })?;
        fg.run(Op::CloseFile { file: to })?;
        copied?;
        fg.run(Op::SyncDir { path: dir }).map(|_| ())
    }
}

/// The whole file; its last piece is filled up with zeros to a page.
fn copy_bytes(
    fg: &mut Foreground<'_>,
    pool: &BufferPool,
    (from, file): (FileId, &Path),
    to: FileId,
    bytes: u64,
) -> Result<(), IoError> {
    let mut offset = 0;
    while offset < bytes {
        let Output::Read { mut buffer, bytes: got } =
            fg.run(Op::Read { file: from, offset, buffer: pool.take_zeroed(PIECE_BYTES) })?
        else {
            return Err(wrong("read", file, "the back-end answered with something else"));
        };
        if got == 0 {
            return Err(wrong("read", file, "it became shorter while it was copied"));
        }
        let whole = got.next_multiple_of(PAGE_BYTES);
        if let Some(rest) = buffer.get_mut(got..whole) {
            rest.fill(0);
        }
        let data = vec![buffer.freeze().slice(..whole)];
        fg.run(Op::Write { file: to, offset, data })?;
        offset += got as u64;
    }
    fg.run(Op::Sync { file: to }).map(|_| ())
}

/// Names in a directory.
pub(super) fn list(fg: &mut Foreground<'_>, dir: &Path) -> Result<Vec<String>, IoError> {
    match fg.run(Op::List { path: dir.to_owned() })? {
        Output::Names(names) => Ok(names),
        _ => Err(wrong("list", dir, "the back-end answered with something else")),
    }
}

fn open(fg: &mut Foreground<'_>, path: &Path, mode: OpenMode) -> Result<(FileId, u64), IoError> {
    match fg.run(Op::Open { path: path.to_owned(), mode })? {
        Output::Opened { file, bytes } => Ok((file, bytes)),
        _ => Err(wrong("open", path, "the back-end answered with something else")),
    }
}

fn wrong(operation: &'static str, path: &Path, message: &str) -> IoError {
    IoError {
        kind: IoErrorKind::Other,
        operation,
        subject: path.display().to_string(),
        message: message.to_owned(),
    }
}
