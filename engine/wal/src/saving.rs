//! Writing a base checkpoint, and reading it back.
//!
//! The state is copied in one turn, at a position between two batches; its chunks then go into the log one at a time,
//! beside the traffic, and the end behind them. When the end is durable, all of it is read back from the disk and
//! compared; only then do batch headers name it, and only what both named checkpoints do not need may be given back, once such a
//! header is durable.
//! One at a time. A checkpoint that cannot be read back is forgotten, and another one written later.

use crate::checkpoint;
use crate::format::{CheckpointEnd, ChunkPlace};
use crate::options::CHECKPOINT_SHARE;
use crate::shape::{Class, Shape};
use crate::wal::{Pending, Wal};
use tidelog_io::{Io, IoError, Op, Output};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Generation, Index, Lsn, PartitionId, RecordHeader, RecordKind};

/// Most bytes of a chunk.
const CHUNK_BYTES_MAX: usize = 256 << 10;
const PAGE: u64 = PAGE_BYTES as u64;
/// At most one part in so many of what is written is checkpoints that only release a segment.
const RELEASE_SHARE: u64 = 64;
/// When space is short such a checkpoint comes when the log has gone on by this part of a segment.
const TIGHT_PART: u64 = 4;

/// A checkpoint that was read back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// What it is of: everything before this position.
    pub(crate) at: Lsn,
    /// The batch that ends it.
    pub(crate) batch: Lsn,
    /// Its length.
    pub(crate) bytes: u64,
}

/// A checkpoint under way.
#[derive(Debug)]
pub(crate) struct Saving {
    at: Lsn,
    content: Vec<u8>,
    /// How much of it is in batches.
    put: usize,
    chunks: Vec<ChunkPlace>,
    /// The end: its record's position, its payload, its batch's position and number.
    end: Option<(Lsn, Vec<u8>, Lsn, u64)>,
    /// How many records were read back; while one is being read: whether.
    checked: usize,
    reading: bool,
    /// Segments kept open for that.
    pinned: Vec<Lsn>,
}

impl Saving {
    pub(crate) fn has_more(&self) -> bool {
        self.end.is_none()
    }

    /// Bytes of content that are to be put yet.
    fn left(&self) -> u64 {
        (self.content.len() - self.put) as u64
    }
}

/// So many partitions are read ahead of the one that is saved: their misses in the processor's caches overlap.
const AHEAD: usize = 16;

impl Wal {
    /// Whether it is time for a checkpoint, and the log is between two batches.
    pub(crate) fn checkpoint_due(&self) -> bool {
        let b = &self.background;
        // Whoever opens from it makes no refs of the spans of a segment that has its summary.
        if b.saving.is_some() || b.demoting.is_some() || self.fenced || !self.growing.is_empty() {
            return false;
        }
        if self.checkpoint_releases() {
            return true;
        }
        if !self.full && self.scrub_wants_checkpoint() {
            return true;
        }
        let size = b.newest.map_or(0, |k| k.bytes);
        let every = self.options.checkpoint_every.max(size * CHECKPOINT_SHARE);
        // An opening looks at the first batch of the newest segment first: it is to name one of the two that are kept.
        let findable = b.newest.is_none_or(|k| k.batch == b.segment_names);
        !self.full && findable && self.growing.lsn.0 - b.unsaved_from.0 >= every
    }

    /// Whether a checkpoint is all that keeps a segment from being given back, and worth its place for that: always on a disk that is full;
    /// otherwise when the log has gone on by a segment since the last one, or by less if space is short.
    fn checkpoint_releases(&self) -> bool {
        let b = &self.background;
        if !self.waits_for_checkpoint() || b.saved_at >= self.growing.lsn {
            return false;
        }
        if self.full {
            return true;
        }
        let findable = b.newest.is_none_or(|k| k.batch == b.segment_names) && self.options.steady;
        let size = b.newest.map_or(0, |k| k.bytes);
        let segment = self.options.segment_bytes;
        let (step, share) = match self.is_tight() {
            true => (segment / TIGHT_PART, CHECKPOINT_SHARE),
            false => (segment, RELEASE_SHARE),
        };
        findable
            && self.growing.lsn.0 - b.saved_at.0 >= step
            && self.growing.lsn.0 - b.unsaved_from.0 >= size * share
    }

    /// Whether the oldest segment would be given back if there were a checkpoint behind it.
    fn waits_for_checkpoint(&self) -> bool {
        let oldest = self.files.oldest().filter(|(base, _)| *base != self.active.base());
        oldest.is_some_and(|(_, oldest)| oldest.holds == 0 && oldest.end >= self.replay_start())
    }

    /// Whose right to the next segment a checkpoint has: that of control records only if it makes room on a full disk, and ends in that segment.
    /// One that is as large as some segments would take all that are kept for votes, and stand still.
    pub(crate) fn checkpoint_rolls(&self) -> Class {
        let left = self.background.saving.as_ref().map_or(0, Saving::left);
        let ends = left <= self.options.segment_bytes / 2;
        if self.full && ends && self.waits_for_checkpoint() { Class::Control } else { Class::Bulk }
    }

    /// Where an opening begins to read if the newest checkpoint turns out to be bad.
    pub(crate) fn replay_start(&self) -> Lsn {
        match (self.background.newest, self.background.older) {
            (Some(newest), Some(older)) => newest.at.min(older.at),
            _ => Lsn(0),
        }
    }

    /// Copies the state.
    pub(crate) fn begin_checkpoint(&mut self, save: &mut dyn FnMut(PartitionId, &mut Vec<u8>)) {
        assert!(self.growing.is_empty(), "a checkpoint is of a position between two batches");
        let at = self.growing.lsn;
        let ids: Vec<_> = self.partitions.ids().collect();
        let size = self.background.newest.map_or(4096, |k| k.bytes as usize);
        let mut content = Vec::with_capacity(size + size / 8);
        let newest = self.background.newest;
        checkpoint::begin(&mut content, self.link, newest, &self.files, at, ids.len());
        let mut state = Vec::new();
        for (at, &id) in ids.iter().enumerate() {
            if at.is_multiple_of(AHEAD) {
                let ahead = ids.iter().skip(at).take(AHEAD);
                std::hint::black_box(ahead.map(|id| self.warm(*id)).fold(0, u64::wrapping_add));
            }
            if let Some(log) = self.partitions.get(id) {
                state.clear();
                save(id, &mut state);
                checkpoint::partition(&mut content, id, log, &state);
            }
        }
        self.background.saved_at = at;
        self.background.unsaved_from = at;
        self.scrub.saved = self.clock.now;
        if content.len() as u64 > checkpoint::CHECKPOINT_BYTES_MAX {
            tracing::warn!(
                bytes = content.len(),
                "a checkpoint would be too large: the log is not shortened"
            );
            return;
        }
        self.background.saving = Some(Saving {
            at,
            content,
            put: 0,
            chunks: Vec::new(),
            end: None,
            checked: 0,
            reading: false,
            pinned: Vec::new(),
        });
    }

    /// Puts a chunk, or the end, into the growing batch, which is empty. False: there is none, or no room for it.
    pub(crate) fn put_checkpoint(&mut self) -> bool {
        let Some(saving) = &self.background.saving else { return false };
        if saving.end.is_some() {
            return false;
        }
        let chunk_max = CHUNK_BYTES_MAX.min(self.message_bytes_max().saturating_sub(HEADER_BYTES));
        let left = saving.content.get(saving.put..).unwrap_or_default();
        let (kind, number, payload) = if left.is_empty() {
            let end = CheckpointEnd {
                store: self.options.store,
                epoch: self.epoch,
                at: saving.at,
                // Rolling is for the chunk before it: see below.
                batch: self.growing.lsn,
                bytes: saving.content.len() as u64,
                crc: crc32c::crc32c(&saving.content),
                chunks: saving.chunks.clone(),
            };
            (RecordKind::CheckpointEnd, saving.chunks.len(), end.encode())
        } else {
            let chunk = left.get(..chunk_max.min(left.len())).unwrap_or_default();
            (RecordKind::CheckpointChunk, saving.chunks.len() + 1, chunk.to_vec())
        };
        let mut payload = payload;
        let mut header = RecordHeader {
            index: Index(number as u64),
            generation: Generation(saving.at.0),
            cluster: self.options.cluster_tag,
            payload_len: payload.len() as u32, // bounded above; an end has 12 bytes a chunk
            payload_crc: crc32c::crc32c(&payload),
            ..RecordHeader::new(kind, PartitionId(0))
        };
        let before = self.growing.lsn;
        let roll = self.checkpoint_rolls();
        let placed = self.place_rolling(std::iter::once(Shape::of(&header)), 1, Class::Bulk, roll);
        let Ok(plan) = placed else { return false };
        let lsn = self.growing.lsn;
        if kind == RecordKind::CheckpointEnd && lsn != before {
            // The batch has moved on to the next segment, and the end says where it lies.
            if let Ok(end) = CheckpointEnd::decode(&payload) {
                payload = CheckpointEnd { batch: lsn, ..end }.encode();
                header.payload_crc = crc32c::crc32c(&payload);
            }
        }
        self.growing.begin(plan);
        let offset = self.growing.put_local(&header, &payload);
        let place = lsn.plus(offset as u64);
        let (base, seq) = (self.active.base(), self.growing.seq);
        if let Some(saving) = &mut self.background.saving {
            if kind == RecordKind::CheckpointEnd {
                saving.end = Some((place, payload, lsn, seq));
            } else {
                saving.put += payload.len();
                saving.chunks.push(ChunkPlace { lsn: place, len: header.payload_len });
            }
            if !saving.pinned.contains(&base)
                && let Some(file) = self.files.get(base)
            {
                file.users += 1;
                saving.pinned.push(base);
            }
        }
        true
    }

    /// Reads the next record of the checkpoint back, once its end is durable.
    pub(crate) fn verify_checkpoint(&mut self, io: &mut dyn Io) {
        let Some(saving) = &mut self.background.saving else { return };
        let Some((end, payload, _, seq)) = &saving.end else { return };
        if saving.reading || self.durable_seq < *seq {
            return;
        }
        let (lsn, len) = match saving.chunks.get(saving.checked) {
            Some(chunk) => (chunk.lsn, chunk.len as usize),
            None => (*end, payload.len()),
        };
        let Some((base, _)) = self.files.holding(lsn) else { return self.give_up("its segment is gone") };
        let Some(file) = self.files.get(base).and_then(|f| f.file) else {
            return self.give_up("its segment is closed");
        };
        let start = lsn.0 / PAGE * PAGE;
        let bytes = (lsn.0 + (HEADER_BYTES + len) as u64 - start).next_multiple_of(PAGE) as usize; // a chunk
        if let Some(saving) = &mut self.background.saving {
            saving.reading = true;
        }
        let buffer = io.buffers().take(bytes);
        let token = self.op(Pending::Verify);
        io.submit(token, Op::Read { file, offset: start - base.0, buffer });
    }

    /// A record of the checkpoint was read back.
    pub(crate) fn verified(&mut self, io: &mut dyn Io, result: Result<Output, IoError>) {
        let Some(saving) = &mut self.background.saving else { return };
        saving.reading = false;
        let (buffer, bytes) = match result {
            Ok(Output::Read { buffer, bytes }) => (buffer, bytes),
            Ok(_) => return self.give_up("the back-end answered with something else"),
            Err(error) => {
                tracing::warn!(%error, "reading a checkpoint back failed");
                return self.give_up("it could not be read back");
            }
        };
        let Some((end, payload, batch, _)) = &saving.end else { return };
        let before: usize = saving.chunks.iter().take(saving.checked).map(|c| c.len as usize).sum();
        let (lsn, expected) = match saving.chunks.get(saving.checked) {
            Some(chunk) => (chunk.lsn, saving.content.get(before..before + chunk.len as usize)),
            None => (*end, Some(payload.as_slice())),
        };
        let read = buffer.get((lsn.0 % PAGE) as usize..bytes).unwrap_or_default();
        let same = RecordHeader::decode_record(read).is_ok_and(|(_, found)| Some(found) == expected);
        if !same {
            return self.give_up("what was read back is not what was written");
        }
        saving.checked += 1;
        if saving.checked <= saving.chunks.len() {
            return self.verify_checkpoint(io);
        }
        let kept = Kept { at: saving.at, batch: *batch, bytes: saving.content.len() as u64 };
        self.end_checkpoint();
        self.background.older = self.background.newest.replace(kept);
        // A batch has to name it, also if there is no traffic.
        (self.sealed, self.seal_at) = (false, self.clock.now.after(self.options.seal_after));
        self.stats.checkpoints += 1;
        self.stats.checkpoint_bytes = kept.bytes;
        tracing::debug!(at = kept.at.0, bytes = kept.bytes, "checkpoint");
    }

    fn give_up(&mut self, why: &'static str) {
        tracing::warn!(why, "a checkpoint is given up");
        self.end_checkpoint();
    }

    fn end_checkpoint(&mut self) {
        if let Some(saving) = self.background.saving.take() {
            for base in saving.pinned {
                if let Some(file) = self.files.get(base) {
                    file.users -= 1;
                }
            }
        }
    }
}
