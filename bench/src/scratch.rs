//! A file to write into: made of zeros that are on the disk, gone when it is dropped.
//!
//! Written before it is used, not merely allocated, as the log's segments are: otherwise each write would first turn
//! unwritten extents into written ones, and a measurement of the device would be one of the filesystem.

use crate::error::BenchError;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use tidelog_io::{FileId, Foreground, Io, Op, OpenMode, Output};

/// Bytes of zeros in one write.
const FILL_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct ScratchFile {
    path: PathBuf,
    bytes: u64,
}

impl ScratchFile {
    /// Makes one in `dir`, of `bytes` rounded up to whole mebibytes.
    pub(crate) fn create(io: &mut dyn Io, dir: &Path, bytes: u64) -> Result<ScratchFile, BenchError> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("bench-{}-{number}.scratch", std::process::id()));
        let zeros = io.buffers().take_zeroed(FILL_BYTES).freeze();
        let mut io = Foreground::new(io);
        io.run(Op::CreateDir { path: dir.to_owned() })?;
        // Of a process that had this number and was killed.
        drop(std::fs::remove_file(&path));
        let file = opened(io.run(Op::Open { path: path.clone(), mode: OpenMode::Create })?)?;
        let scratch = ScratchFile { path, bytes: bytes.next_multiple_of(FILL_BYTES as u64) };
        for offset in (0..scratch.bytes).step_by(FILL_BYTES) {
            io.run(Op::Write { file, offset, data: vec![zeros.clone()] })?;
        }
        io.run(Op::Sync { file })?;
        io.run(Op::SyncDir { path: dir.to_owned() })?;
        io.run(Op::CloseFile { file })?;
        Ok(scratch)
    }

    /// Opens it on a back-end.
    pub(crate) fn open(&self, io: &mut dyn Io) -> Result<FileId, BenchError> {
        let op = Op::Open { path: self.path.clone(), mode: OpenMode::ReadWrite };
        opened(Foreground::new(io).run(op)?)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn opened(output: Output) -> Result<FileId, BenchError> {
    match output {
        Output::Opened { file, .. } => Ok(file),
        other => Err(BenchError::Target(format!("opening a file gave {other:?}"))),
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        // Nothing depends on it: at worst a file with a telling name stays.
        drop(std::fs::remove_file(&self.path));
    }
}
