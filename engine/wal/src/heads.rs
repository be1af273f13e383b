//! Writing a bad copy of a segment's header again, from the good one.
//!
//! The two copies lie in pages of their own, with nothing else in them, so this is the one thing that is written in place: a
//! torn write hurts only the page that is bad already. The page is the other copy's, as it was read and verified just before. One
//! at a time; the segment is held from before the write until after it, so that the file is not another segment's meanwhile. A
//! write of a life that has died may come late: it says what is there, and no later life uses that life's files again.
//!
//! If it fails, the copy is bad as before, and the next pass of the scrubber finds it again: nothing rests on it, so the log is
//! not fenced. It does not know whether both copies are bad, or which one a reader would take.

use crate::format::SegmentHeader;
use crate::wal::{Pending, Wal};
use bytes::Bytes;
use std::collections::VecDeque;
use tidelog_io::{FileId, Io, IoError, Op, OpenMode, Output};
use tidelog_types::Lsn;
use tidelog_types::limits::PAGE_BYTES;

/// Most copies that wait; the next pass finds the others.
const WAITING_MAX: usize = 64;

/// A copy to be written.
#[derive(Debug)]
pub(crate) struct BadHead {
    base: Lsn,
    /// 0 or 1.
    copy: usize,
    header: SegmentHeader,
    /// The other copy.
    page: Bytes,
}

/// Copies of headers that are to be written again.
#[derive(Debug, Default)]
pub(crate) struct Heads {
    waiting: VecDeque<BadHead>,
    /// Under way: of the segment at this base, and of that file once it is open.
    writing: Option<(Lsn, Option<FileId>)>,
}

impl Wal {
    /// Copy `copy` of the header of the segment at `base` is bad, and `page` is the other one.
    pub(crate) fn head_is_bad(&mut self, base: Lsn, copy: usize, header: SegmentHeader, page: Bytes) {
        let heads = &mut self.scrub.heads;
        if heads.waiting.len() < WAITING_MAX {
            heads.waiting.push_back(BadHead { base, copy, header, page });
        }
    }

    /// Begins to write the next one.
    pub(crate) fn advance_heads(&mut self, io: &mut dyn Io) {
        while !self.fenced && self.scrub.heads.writing.is_none() {
            let Some(bad) = self.scrub.heads.waiting.front() else { return };
            let (base, seq) = (bad.base, bad.header.segment_seq);
            let Some(file) = self.files.get(base).filter(|file| file.seq == seq) else {
                // It was given back.
                self.scrub.heads.waiting.pop_front();
                continue;
            };
            file.users += 1;
            let path = file.path.clone();
            self.scrub.heads.writing = Some((base, None));
            let token = self.op(Pending::OpenHead);
            io.submit(token, Op::Open { path, mode: OpenMode::ReadWrite });
        }
    }

    pub(crate) fn head_opened(&mut self, io: &mut dyn Io, result: Result<Output, IoError>) {
        let bad = self.scrub.heads.waiting.pop_front();
        let file = match result {
            Ok(Output::Opened { file, .. }) => file,
            Ok(_) => return self.head_done(io, None),
            Err(error) => return self.head_done(io, Some(&error)),
        };
        if let Some((_, open)) = &mut self.scrub.heads.writing {
            *open = Some(file);
        }
        let Some(bad) = bad.filter(|_| !self.fenced) else { return self.head_done(io, None) };
        let mut page = io.buffers().take(PAGE_BYTES);
        page.copy_from_slice(&bad.page);
        let token = self.op(Pending::WriteHead);
        let offset = (bad.copy * PAGE_BYTES) as u64; // one of two pages
        io.submit(token, Op::WriteDurable { file, offset, data: vec![page.freeze()] });
    }

    pub(crate) fn head_written(&mut self, io: &mut dyn Io, result: Result<Output, IoError>) {
        self.scrub.stats.rewritten += u64::from(result.is_ok());
        self.head_done(io, result.err().as_ref());
    }

    fn head_done(&mut self, io: &mut dyn Io, error: Option<&IoError>) {
        let Some((base, file)) = self.scrub.heads.writing.take() else { return };
        if let Some(error) = error {
            tracing::warn!(segment = base.0, %error, "a copy of a segment's header could not be written again");
        }
        if let Some(held) = self.files.get(base) {
            held.users -= 1;
        }
        if let Some(file) = file {
            let token = self.op(Pending::Closing);
            io.submit(token, Op::CloseFile { file });
        }
    }
}
