//! The executor tokio-uring: one write and one `fdatasync` a batch, awaited on its runtime.

use super::{Cursor, FILE_BYTES, file_maker, write_one};
use crate::batch::Batcher;
use crate::clock::Moment;
use crate::error::BenchError;
use crate::load::{Done, Target};
use crate::scratch::ScratchFile;
use bytes::Bytes;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tidelog_io::BufferPool;
use tokio_uring::Runtime;
use tokio_uring::fs::File;

/// See the module.
pub struct TokioUringTarget {
    /// Dropped before the runtime that it was opened on.
    file: File,
    batcher: Batcher,
    cursor: Cursor,
    scratch: ScratchFile,
    runtime: Runtime,
}

impl TokioUringTarget {
    /// In `dir`.
    ///
    /// # Errors
    /// If io_uring is not there, or the file cannot be made.
    pub fn open(dir: &Path) -> Result<TokioUringTarget, BenchError> {
        let scratch = ScratchFile::create(&mut *file_maker()?, dir, FILE_BYTES)?;
        let path = scratch.path();
        let failed = |what| move |source| BenchError::File { what, path: path.to_owned(), source };
        let runtime = Runtime::new(&tokio_uring::builder()).map_err(failed("tokio-uring"))?;
        let file = std::fs::File::options().write(true).custom_flags(libc::O_DIRECT).open(path);
        let file = file.map_err(failed("open"))?;
        let file = runtime.block_on(async { File::from_std(file) });
        Ok(TokioUringTarget {
            file,
            batcher: Batcher::new(BufferPool::new(32 << 20)),
            cursor: Cursor::new(scratch.bytes()),
            scratch,
            runtime,
        })
    }
}

impl Target for TokioUringTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        self.batcher.push(tag, &payload);
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        let (file, path, runtime) = (&self.file, self.scratch.path(), &self.runtime);
        write_one(&mut self.batcher, &mut self.cursor, until, done, |bytes, offset| {
            let failed = |what| move |source| BenchError::File { what, path: path.to_owned(), source };
            let length = bytes.len();
            runtime.block_on(async {
                let (written, _) = file.write_at(bytes, offset).submit().await;
                if written.map_err(failed("write"))? != length {
                    return Err(BenchError::Target("a write to a file of zeros was short".into()));
                }
                file.sync_data().await.map_err(failed("sync"))
            })
        })
    }

    fn batches(&mut self) -> Option<u64> {
        Some(self.cursor.batches)
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        let TokioUringTarget { file, runtime, scratch, .. } = *self;
        let path = scratch.path().to_owned();
        runtime.block_on(file.close()).map_err(|source| BenchError::File { what: "close", path, source })
    }
}
