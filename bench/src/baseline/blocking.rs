//! Blocking calls: one thread, `pwrite` and `fdatasync` of the standard library.

use super::{Cursor, FILE_BYTES, file_maker, write_one};
use crate::batch::Batcher;
use crate::clock::Moment;
use crate::error::BenchError;
use crate::load::{Done, Target};
use crate::scratch::ScratchFile;
use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use tidelog_io::BufferPool;

/// See the module.
#[derive(Debug)]
pub struct BlockingTarget {
    file: File,
    batcher: Batcher,
    cursor: Cursor,
    scratch: ScratchFile,
}

impl BlockingTarget {
    /// In `dir`.
    ///
    /// # Errors
    /// If the file cannot be made, or not opened for direct I/O.
    pub fn open(dir: &Path) -> Result<BlockingTarget, BenchError> {
        let scratch = ScratchFile::create(&mut *file_maker()?, dir, FILE_BYTES)?;
        let path = scratch.path();
        let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = file.map_err(|source| BenchError::File { what: "open", path: path.to_owned(), source })?;
        Ok(BlockingTarget {
            file,
            batcher: Batcher::new(BufferPool::new(32 << 20)),
            cursor: Cursor::new(scratch.bytes()),
            scratch,
        })
    }
}

impl Target for BlockingTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        self.batcher.push(tag, &payload);
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        let (file, path) = (&self.file, self.scratch.path());
        write_one(&mut self.batcher, &mut self.cursor, until, done, |bytes, offset| {
            let failed = |what| move |source| BenchError::File { what, path: path.to_owned(), source };
            file.write_all_at(&bytes, offset).map_err(failed("write"))?;
            file.sync_data().map_err(failed("sync"))
        })
    }

    fn batches(&mut self) -> Option<u64> {
        Some(self.cursor.batches)
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        Ok(())
    }
}
