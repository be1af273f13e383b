//! The executor glommio: one direct write and one `fdatasync` a batch, awaited on its local executor.
//!
//! Its direct files write from buffers of its own, so a batch is copied into one of them: that is what using it costs.

use super::{Cursor, FILE_BYTES, file_maker, write_one};
use crate::batch::Batcher;
use crate::clock::Moment;
use crate::error::BenchError;
use crate::load::{Done, Target};
use crate::scratch::ScratchFile;
use bytes::Bytes;
use glommio::io::{DmaFile, OpenOptions};
use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement};
use std::path::Path;
use tidelog_io::BufferPool;

/// See the module.
pub struct GlommioTarget {
    file: DmaFile,
    batcher: Batcher,
    cursor: Cursor,
    executor: LocalExecutor,
    /// Removed last.
    _scratch: ScratchFile,
}

fn failed(what: &'static str) -> impl FnOnce(GlommioError<()>) -> BenchError {
    move |error| BenchError::Target(format!("glommio: {what}: {error}"))
}

impl GlommioTarget {
    /// In `dir`.
    ///
    /// # Errors
    /// If io_uring is not there, not enough memory may be locked, or the file cannot be made.
    pub fn open(dir: &Path) -> Result<GlommioTarget, BenchError> {
        let scratch = ScratchFile::create(&mut *file_maker()?, dir, FILE_BYTES)?;
        let executor = LocalExecutorBuilder::new(Placement::Unbound).make().map_err(failed("executor"))?;
        let path = scratch.path().to_owned();
        let file =
            executor.run(async move { OpenOptions::new().write(true).read(true).dma_open(path).await });
        Ok(GlommioTarget {
            file: file.map_err(failed("open"))?,
            batcher: Batcher::new(BufferPool::new(32 << 20)),
            cursor: Cursor::new(scratch.bytes()),
            executor,
            _scratch: scratch,
        })
    }
}

impl Target for GlommioTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        self.batcher.push(tag, &payload);
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        let (file, executor) = (&self.file, &self.executor);
        write_one(&mut self.batcher, &mut self.cursor, until, done, |bytes, offset| {
            executor.run(async {
                let mut buffer = file.alloc_dma_buffer(bytes.len());
                buffer.as_bytes_mut().copy_from_slice(&bytes);
                let written = file.write_at(buffer, offset).await.map_err(failed("write"))?;
                if written != bytes.len() {
                    return Err(BenchError::Target("a write to a file of zeros was short".into()));
                }
                file.fdatasync().await.map_err(failed("sync"))
            })
        })
    }

    fn batches(&mut self) -> Option<u64> {
        Some(self.cursor.batches)
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        let GlommioTarget { file, executor, .. } = *self;
        executor.run(file.close()).map_err(failed("close"))
    }
}
