//! The floor: batches of checksummed records, one durable write each, straight through the seam.
//!
//! The least work that any engine must do on this host: no index, no elections, no segments, no recovery. What Tidelog
//! loses against it is what all of these cost.

use super::{Cursor, FILE_BYTES};
use crate::batch::Batcher;
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::load::{Done, Outcome, Target};
use crate::scratch::ScratchFile;
use bytes::Bytes;
use std::path::Path;
use tidelog_io::{
    BackEnd, Completion, FileId, Io, IoOptions, Op, SyncMode, Token, TokenClass, Wait, open_back_end,
};

/// Most batches in flight.
pub const DEPTH_MAX: usize = 8;

/// See the module.
pub struct RawTarget {
    io: Box<dyn Io>,
    file: FileId,
    cursor: Cursor,
    batcher: Batcher,
    /// Whose records are in flight, by the operation's number.
    flying: Vec<Option<Vec<u64>>>,
    completions: Vec<Completion>,
    /// Removed last.
    _scratch: ScratchFile,
}

impl RawTarget {
    /// In `dir`, with `depth` batches in flight at once.
    ///
    /// # Errors
    /// If the back-end cannot be opened or the file not made.
    pub fn open(
        dir: &Path,
        back_end: BackEnd,
        sync: SyncMode,
        depth: usize,
    ) -> Result<RawTarget, BenchError> {
        if !(1..=DEPTH_MAX).contains(&depth) {
            return Err(BenchError::Options(format!("a depth of {depth}: 1 to {DEPTH_MAX} are possible")));
        }
        let mut io = open_back_end(back_end, &IoOptions { sync, ..IoOptions::default() })?;
        let scratch = ScratchFile::create(&mut *io, dir, FILE_BYTES)?;
        let file = scratch.open(&mut *io)?;
        Ok(RawTarget {
            batcher: Batcher::new(io.buffers()),
            io,
            file,
            cursor: Cursor::new(scratch.bytes()),
            flying: vec![None; depth],
            completions: Vec::new(),
            _scratch: scratch,
        })
    }

    fn start_batches(&mut self) {
        for (number, place) in (0u64..).zip(&mut self.flying) {
            if place.is_some() {
                continue;
            }
            let Some(batch) = self.batcher.take() else { return };
            let offset = self.cursor.place(batch.bytes.len());
            let op = Op::WriteDurable { file: self.file, offset, data: vec![batch.bytes] };
            self.io.submit(Token { class: TokenClass::Other, value: number }, op);
            *place = Some(batch.tags);
        }
    }
}

impl Target for RawTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        self.batcher.push(tag, &payload);
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        self.start_batches();
        let deadline = self.io.clock().now.after(until.since(clock::now()));
        self.io.poll(Wait::Until(deadline), &mut self.completions);
        for completion in self.completions.drain(..) {
            completion.result?;
            let place = usize::try_from(completion.token.value).ok().and_then(|n| self.flying.get_mut(n));
            let tags = place.and_then(Option::take).unwrap_or_default();
            done.extend(tags.into_iter().map(|tag| Done { tag, outcome: Outcome::Acked }));
        }
        Ok(())
    }

    fn batches(&mut self) -> Option<u64> {
        Some(self.cursor.batches)
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        Ok(())
    }
}
