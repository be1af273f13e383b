//! Sequential reading of one file, ahead and in large pieces; and what could not be read.
//!
//! A device error does not end it: the pages are read again one by one, and those that fail again are remembered
//! as unreadable (and are zeros). Any other error does.

use crate::disk::Disk;
use std::collections::BTreeSet;
use tidelog_io::{FileId, IoError, IoErrorKind, Op, Output};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};

/// Bytes of one read, and reads at once.
const READ_BYTES: u64 = 1 << 20;
const READS_AT_ONCE: u64 = 4;
/// Bytes of the first read.
const AHEAD_MIN: u64 = 64 << 10;
const PAGE: u64 = PAGE_BYTES as u64;

/// Sequential reading of one file.
#[derive(Debug)]
pub(crate) struct Window {
    file: FileId,
    file_bytes: u64,
    start: u64,
    bytes: Vec<u8>,
    /// Bytes to read next: doubles while the reading goes on.
    ahead: u64,
    unreadable: BTreeSet<u64>,
    /// Bytes read so far.
    pub(crate) read: u64,
}

impl Window {
    pub(crate) fn new(file: FileId, file_bytes: u64) -> Window {
        let file_bytes = file_bytes / PAGE * PAGE;
        Window {
            file,
            file_bytes,
            start: 0,
            bytes: Vec::new(),
            ahead: AHEAD_MIN,
            unreadable: BTreeSet::new(),
            read: 0,
        }
    }

    /// The bytes from `offset` on: `len` of them, fewer only at the end of the file.
    pub(crate) fn view(&mut self, disk: &mut Disk<'_>, offset: u64, len: usize) -> Result<&[u8], IoError> {
        let end = offset.saturating_add(len as u64).min(self.file_bytes);
        let offset = offset.min(end);
        if offset < self.start || offset > self.start + self.bytes.len() as u64 {
            self.start = offset / PAGE * PAGE;
            self.bytes.clear();
            self.ahead = AHEAD_MIN;
        }
        while self.start + (self.bytes.len() as u64) < end {
            self.fill(disk, offset)?;
        }
        let from = (offset - self.start) as usize;
        Ok(self.bytes.get(from..from + (end - offset) as usize).unwrap_or_default())
    }

    /// Whether a page of `offset .. offset + len` could not be read. Only for what was viewed.
    pub(crate) fn unreadable(&self, offset: u64, len: u64) -> bool {
        self.unreadable.range(offset / PAGE * PAGE..offset.saturating_add(len)).next().is_some()
    }

    /// Reads on, and forgets what lies before `needed` once that is much.
    fn fill(&mut self, disk: &mut Disk<'_>, needed: u64) -> Result<(), IoError> {
        let drop = (needed - self.start) / PAGE * PAGE;
        if drop as usize >= BATCH_BYTES_MAX.min(self.bytes.len()) {
            self.bytes.drain(..(drop as usize).min(self.bytes.len()));
            self.start += drop;
        }
        let from = self.start + self.bytes.len() as u64;
        // Short looks (is there a batch at all?) do not pay for long reads.
        let to = (from + self.ahead).min(self.file_bytes);
        self.ahead = (self.ahead * 2).min(READ_BYTES * READS_AT_ONCE);
        let mut ops = Vec::new();
        let mut at = from;
        while at < to {
            let len = READ_BYTES.min(to - at);
            let buffer = disk.buffers().take(len as usize);
            ops.push(Op::Read { file: self.file, offset: at, buffer });
            at += len;
        }
        let mut at = from;
        for result in disk.run_all(ops) {
            let len = READ_BYTES.min(to - at);
            match result {
                Ok(Output::Read { buffer, bytes }) => {
                    self.bytes.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
                    // A file that is shorter than it was at its opening: nothing is there.
                    let missing = (len as usize).saturating_sub(bytes);
                    self.bytes.resize(self.bytes.len() + missing, 0);
                }
                Err(error) if error.kind == IoErrorKind::Device => self.page_by_page(disk, at, len)?,
                Err(error) => return Err(error),
                Ok(_) => self.bytes.resize(self.bytes.len() + len as usize, 0),
            }
            at += len;
        }
        self.read += to - from;
        Ok(())
    }

    fn page_by_page(&mut self, disk: &mut Disk<'_>, from: u64, len: u64) -> Result<(), IoError> {
        for at in (from..from + len).step_by(PAGE_BYTES) {
            let buffer = disk.buffers().take(PAGE_BYTES);
            match disk.run(Op::Read { file: self.file, offset: at, buffer }) {
                Ok(Output::Read { buffer, bytes }) if bytes == PAGE_BYTES => {
                    self.bytes.extend_from_slice(&buffer);
                }
                Err(error) if error.kind != IoErrorKind::Device => return Err(error),
                _ => {
                    self.unreadable.insert(at);
                    self.bytes.resize(self.bytes.len() + PAGE_BYTES, 0);
                }
            }
        }
        Ok(())
    }
}
