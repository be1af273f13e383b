//! The reading half of the log: from the tail cache, or from the disk by lookup.
//!
//! A read of an old segment takes up to three steps, each one operation: the piece of the segment's summary that has the
//! partition's spans, unless it is in memory; all of the segment, should the summary be bad; the entries. Between steps
//! the lookup is asked again.

use crate::blocks::Block;
use crate::cache::Gather;
use crate::error::ReadError;
use crate::files::Piece;
use crate::format::{SummarySpan, visit_summary};
use crate::places::{LookupSpan, Place};
use crate::reads::{Purpose, READS_MAX, ReadId, ReadJob, Run, Stage, TRIES_MAX};
use crate::reports::WalEvent;
use crate::rescan::Rescan;
use crate::wal::{Pending, Wal};
use bytes::Bytes;
use std::sync::Arc;
use tidelog_io::{Io, IoError, Op, OpenMode, Output};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Index, Lsn, PartitionId, Position, RecordHeader, RecordKind};

const PAGE: u64 = PAGE_BYTES as u64;

impl Wal {
    /// Records `first ..= last` from memory as far as `bytes_max` goes, at least one; none if the first is not in
    /// the tail cache or not in a submitted batch.
    pub fn cached(&self, partition: PartitionId, first: Index, last: Index, bytes_max: usize) -> Option<Run> {
        let log = self.partitions.get(partition)?;
        let last = last.min(log.sequenced);
        if first > last || first == Index::ZERO {
            return None;
        }
        let Place::Span(mut at) = log.find(first)? else { return None };
        let mut gather = Gather::default();
        let mut reached: Option<Index> = None;
        while let Some(span) = log.span(at)
            && span.first <= last
            // It names the batch that tells of its loss, and that may be in memory: there is nothing of it there.
            && !span.is_lost()
            && reached.is_none_or(|reached| span.first == reached.next())
        {
            match self.cache.gather(partition, span, first, last, bytes_max, &mut gather) {
                Some(Some(index)) => reached = Some(index),
                _ => break,
            }
            if reached < Some(span.last().min(last)) {
                break;
            }
            at += 1;
        }
        let prev_generation = RecordHeader::decode(gather.pieces.first()?).ok()?.prev_generation;
        Some(Run { first, last: reached?, prev_generation, pieces: gather.pieces, bytes: gather.bytes })
    }

    /// Reads records `first ..= last` as far as `bytes_max` goes, at least one, from memory or from the disk. The
    /// result comes as an event of a later `complete` or `tick`; it may end before `last`. It is the log's state
    /// when the result was made: a cut between that and the event does not take it back.
    pub fn read(
        &mut self,
        io: &mut dyn Io,
        read: ReadId,
        partition: PartitionId,
        first: Index,
        last: Index,
        bytes_max: usize,
    ) {
        self.clock = io.clock();
        let log_last = self.last(partition);
        if self.fenced {
            return self.tell(read, Err(ReadError::Closed));
        }
        let last = last.min(self.sequenced(partition));
        if first == Index::ZERO || first > last {
            return self.tell(read, Err(ReadError::NotHere { first, last: log_last }));
        }
        if let Some(run) = self.cached(partition, first, last, bytes_max) {
            return self.tell(read, Ok(run));
        }
        if self.reads >= READS_MAX {
            return self.tell(read, Err(ReadError::Busy));
        }
        self.start_read(io, ReadJob::new(read, partition, first, last, bytes_max));
    }

    fn tell(&mut self, read: ReadId, result: Result<Run, ReadError>) {
        self.events.push(WalEvent::Read { read, result });
    }

    fn answer(&mut self, job: &ReadJob, result: Result<Run, ReadError>) {
        match job.purpose {
            Purpose::Caller => self.tell(job.read, result),
            Purpose::Scrub => match result {
                Ok(run) => self.scrub_rescued(job, run),
                Err(error) => self.scrub_failed(job, error),
            },
            // Its answer is what the rescan found.
            Purpose::Resum => _ = self.background.bad_summaries.remove(&job.base),
            purpose => self.read_for_move(purpose, job.partition, job.last, result),
        }
    }

    pub(crate) fn start_read(&mut self, io: &mut dyn Io, mut job: ReadJob) {
        job.tries += 1;
        self.plan_read(io, job);
    }

    /// Takes the next step of a read, from the lookup as it is now.
    pub(crate) fn plan_read(&mut self, io: &mut dyn Io, mut job: ReadJob) {
        let Some(log) = self.partitions.get(job.partition) else {
            return self.answer(&job, Err(ReadError::NotHere { first: job.first, last: Position::ZERO }));
        };
        job.last = job.last.min(log.sequenced);
        let not_here = Err(ReadError::NotHere { first: job.first, last: log.last });
        match log.find(job.first) {
            None => self.answer(&job, not_here),
            Some(Place::Span(at)) if log.span(at).is_some_and(LookupSpan::is_lost) => {
                let (lsn, last) = log.span(at).map_or((Lsn(0), job.first), |span| (span.lsn, span.last()));
                self.lost(&job, lsn, last);
            }
            Some(Place::Span(at)) => {
                // What is not durable is not on the disk, but in the cache once its batch is submitted. Those behind the first one may be such;
                // so may the first one itself, if it was moved since the read began.
                let durable = self.durable;
                if log.span(at).is_some_and(|span| span.end() > durable) {
                    let run = self.cached(job.partition, job.first, job.last, job.bytes_max);
                    return self.answer(&job, run.ok_or(ReadError::Busy));
                }
                let spans = log.spans.range(at..).enumerate();
                let spans =
                    spans.take_while(|(n, span)| *n == 0 || span.end() <= durable).map(|(_, span)| span);
                let planned = log
                    .span(at)
                    .and_then(|span| self.files.holding(span.lsn))
                    .is_some_and(|segment| job.plan(spans, segment));
                if planned { self.begin_read(io, job) } else { self.answer(&job, not_here) }
            }
            Some(Place::Segment { segment, last }) => self.plan_old(io, job, segment, last),
        }
    }

    /// The entry lies in the old segment at `base`, as do those up to `last`.
    fn plan_old(&mut self, io: &mut dyn Io, mut job: ReadJob, base: Lsn, last: Index) {
        let Some(file) = self.files.peek(base) else {
            return self.answer(&job, Err(ReadError::Closed));
        };
        let end = file.end;
        let candidates = pieces_of(file.summary.as_deref().unwrap_or_default(), job.partition);
        let mut spans = Vec::new();
        if let Some(Block::Rescanned(all)) = self.blocks.get(base) {
            spans = all.get(&job.partition).cloned().unwrap_or_default();
        } else {
            for piece in candidates {
                match self.blocks.get(piece.lsn) {
                    Some(Block::Piece(bytes)) => {
                        let mut take = |partition: PartitionId, span: SummarySpan| {
                            if partition == job.partition {
                                spans.push(resident(&span, base));
                            }
                        };
                        // It was verified when it was read.
                        let _ = visit_summary(&bytes, &mut take);
                    }
                    _ => return self.read_piece(io, job, piece),
                }
                if spans.iter().any(|s: &LookupSpan| s.first <= job.first && job.first <= s.last()) {
                    break;
                }
            }
        }
        let wanted = spans.partition_point(|s| s.last() < job.first);
        let clipped: Vec<_> = spans
            .iter()
            .skip(wanted)
            .take_while(|s| s.first <= last)
            .map(|s| s.clipped(s.first, last))
            .collect();
        if let Some(span) = clipped.first().filter(|s| s.first <= job.first && s.is_lost()) {
            return self.lost(&job, span.lsn, span.last());
        }
        let there = clipped.first().is_some_and(|s| s.first <= job.first);
        if there && job.plan(clipped.iter(), (base, end)) {
            return self.begin_read(io, job);
        }
        if matches!(self.blocks.get(base), Some(Block::Rescanned(_))) {
            let (partition, index) = (job.partition, job.first);
            let (file, why) = (self.path_of(base), "the entry is not in its segment".into());
            let through = index;
            return self
                .answer(&job, Err(ReadError::Damaged { file, offset: 0, partition, index, through, why }));
        }
        self.rescan(io, job, base);
    }

    /// The first entry asked for was lost when the log was opened, as were those behind it up to `last`; the batch at `lsn` held them.
    fn lost(&mut self, job: &ReadJob, lsn: Lsn, last: Index) {
        let base = self.files.holding(lsn).map_or(lsn, |(base, _)| base);
        let error = ReadError::Damaged {
            file: self.path_of(base),
            offset: lsn.0 - base.0,
            partition: job.partition,
            index: job.first,
            through: last.min(job.last).max(job.first),
            why: "its bytes were lost when the log was opened".into(),
        };
        self.answer(job, Err(error));
    }

    fn path_of(&self, base: Lsn) -> std::path::PathBuf {
        self.files.peek(base).map(|f| f.path.clone()).unwrap_or_default()
    }

    pub(crate) fn read_piece(&mut self, io: &mut dyn Io, mut job: ReadJob, piece: Piece) {
        let Some((base, _)) = self.files.holding(piece.lsn) else {
            let Some(Place::Segment { segment, .. }) =
                self.partitions.get(job.partition).and_then(|log| log.find(job.first))
            else {
                return self.answer(&job, Err(ReadError::Closed));
            };
            return self.rescan(io, job, segment);
        };
        job.base = base;
        job.extent = Lsn(piece.lsn.0 / PAGE * PAGE);
        let bytes = piece.lsn.0 + HEADER_BYTES as u64 + u64::from(piece.len) - job.extent.0;
        job.extent_bytes = bytes.next_multiple_of(PAGE) as usize; // a piece
        job.stage = Stage::Summary(piece);
        self.begin_read(io, job);
    }

    /// Reads all of the segment at `base`, because its summary is not to be had.
    pub(crate) fn rescan(&mut self, io: &mut dyn Io, mut job: ReadJob, base: Lsn) {
        let Some(file) = self.files.peek(base) else {
            return self.answer(&job, Err(ReadError::Closed));
        };
        if self.rescanning {
            return self.answer(&job, Err(ReadError::Busy));
        }
        tracing::warn!(file = %file.path.display(), "a segment's summary is bad; the segment is read instead");
        let cluster = self.options.cluster_tag;
        let rescan = Rescan::new(self.options.store, file.seq, file.epoch, cluster, (base, file.end));
        self.rescanning = true;
        job.base = base;
        (job.extent, job.extent_bytes) = rescan.extent();
        job.stage = Stage::Segment(Box::new(rescan));
        self.begin_read(io, job);
    }

    pub(crate) fn begin_read(&mut self, io: &mut dyn Io, mut job: ReadJob) {
        let scrubbed = job.purpose == Purpose::Scrub && matches!(job.stage, Stage::Entries);
        if scrubbed && !self.scrub_concerns(&mut job) {
            return;
        }
        let Some(entry) = self.files.get(job.base) else {
            return self.answer(&job, Err(ReadError::Closed));
        };
        entry.users += 1;
        self.reads += 1;
        match entry.file {
            Some(_) => self.submit_read(io, job),
            None => {
                let path = entry.path.clone();
                let token = self.op(Pending::OpenForRead(job));
                io.submit(token, Op::Open { path, mode: OpenMode::Read });
            }
        }
    }

    fn submit_read(&mut self, io: &mut dyn Io, job: ReadJob) {
        let Some(file) = self.files.get(job.base).and_then(|f| f.file) else {
            return self.end_read(job, Err(ReadError::Closed));
        };
        let op =
            Op::Read { file, offset: job.extent.0 - job.base.0, buffer: io.buffers().take(job.extent_bytes) };
        let token = self.op(Pending::Read(job));
        io.submit(token, op);
    }

    pub(crate) fn opened_for_read(&mut self, io: &mut dyn Io, job: ReadJob, result: Result<Output, IoError>) {
        match result {
            Ok(Output::Opened { file, .. }) => {
                let already = self.files.get(job.base).is_some_and(|f| f.file.is_some());
                let surplus = if already {
                    Some(file)
                } else {
                    self.files.opened(job.base, file);
                    self.files.surplus(self.active.base())
                };
                if let Some(file) = surplus {
                    let token = self.op(Pending::Closing);
                    io.submit(token, Op::CloseFile { file });
                }
                self.submit_read(io, job);
            }
            Ok(_) => self.end_read(job, Err(ReadError::Closed)),
            Err(e) => self.end_read(job, Err(ReadError::Io(e))),
        }
    }

    fn end_read(&mut self, job: ReadJob, result: Result<Run, ReadError>) {
        self.release(&job);
        self.answer(&job, result);
    }

    pub(crate) fn release(&mut self, job: &ReadJob) {
        self.reads -= 1;
        if matches!(job.stage, Stage::Segment(_)) {
            self.rescanning = false;
        }
        if let Some(file) = self.files.get(job.base) {
            file.users -= 1;
        }
    }

    pub(crate) fn read_done(
        &mut self,
        io: &mut dyn Io,
        mut job: ReadJob,
        mut result: Result<Output, IoError>,
    ) {
        if job.purpose == Purpose::Scrub {
            match self.scrub_done(io, job, result) {
                Some((going_on, same)) => (job, result) = (going_on, same),
                None => return,
            }
        }
        let looked_up = !matches!(job.stage, Stage::Entries);
        let (buffer, bytes) = match result {
            Ok(Output::Read { buffer, bytes }) => (buffer, bytes),
            Ok(_) => return self.end_read(job, Err(ReadError::Closed)),
            // A summary that cannot be read is no worse than one that is bad.
            Err(e) if looked_up && e.kind == tidelog_io::IoErrorKind::Device => {
                return self.looked_up(io, job, &Bytes::new());
            }
            // What lies between the spans need not be theirs, nor all of them be in the page that is not to be had.
            Err(e) if e.kind == tidelog_io::IoErrorKind::Device && !self.fenced && job.is_of_many() => {
                self.release(&job);
                job.bytes_max = 1;
                return self.plan_read(io, job);
            }
            Err(e) if e.kind == tidelog_io::IoErrorKind::Device && !self.fenced => {
                // The device does not give the bytes: that is damage like any other.
                let error = ReadError::Damaged {
                    file: self.path_of(job.base),
                    offset: job.extent.0 - job.base.0,
                    partition: job.partition,
                    index: job.first,
                    through: job.reaches().max(job.first),
                    why: e.to_string(),
                };
                return self.end_read(job, Err(error));
            }
            Err(e) => return self.end_read(job, Err(ReadError::Io(e))),
        };
        if self.fenced {
            return self.end_read(job, Err(ReadError::Closed));
        }
        let data = buffer.freeze().slice(..bytes);
        if looked_up {
            return self.looked_up(io, job, &data);
        }
        let there = self.partitions.get(job.partition).is_some_and(|log| job.still_there(log));
        if !there {
            self.release(&job);
            if job.tries >= TRIES_MAX {
                return self.answer(&job, Err(ReadError::Cut));
            }
            let first = job.first;
            if first > self.sequenced(job.partition) {
                let last = self.last(job.partition);
                return self.answer(&job, Err(ReadError::NotHere { first, last }));
            }
            if let Some(run) = self.cached(job.partition, first, job.last, job.bytes_max) {
                return self.answer(&job, Ok(run));
            }
            return self.start_read(io, job);
        }
        let result = job.extract(&data).map_err(|flaw| ReadError::Damaged {
            file: self.path_of(job.base),
            offset: flaw.lsn.0 - job.base.0,
            partition: job.partition,
            index: flaw.index,
            through: flaw.through.min(job.last).max(flaw.index),
            why: flaw.why,
        });
        self.end_read(job, result);
    }

    /// What was read says where the entries are: goes on with that.
    fn looked_up(&mut self, io: &mut dyn Io, mut job: ReadJob, data: &Bytes) {
        match std::mem::take(&mut job.stage) {
            Stage::Entries | Stage::Raw => {}
            Stage::Summary(piece) => {
                self.release(&job);
                let measuring = job.purpose == Purpose::Measure;
                let from = (piece.lsn.0 - job.extent.0) as usize; // below a page
                match verified_piece(data.get(from..).unwrap_or_default(), data, self.options.store) {
                    payload if measuring => self.measured_piece(piece, payload),
                    Some(payload) => {
                        self.blocks.insert(piece.lsn, Block::Piece(payload));
                        self.plan_read(io, job);
                    }
                    None => {
                        let place = self.partitions.get(job.partition).and_then(|log| log.find(job.first));
                        match place {
                            Some(Place::Segment { segment, .. }) => {
                                self.summary_is_bad(segment);
                                self.rescan(io, job, segment);
                            }
                            _ => self.plan_read(io, job),
                        }
                    }
                }
            }
            Stage::Segment(mut rescan) => {
                let more = rescan.take(data);
                if more {
                    (job.extent, job.extent_bytes) = rescan.extent();
                    job.stage = Stage::Segment(rescan);
                    return self.submit_read(io, job);
                }
                job.stage = Stage::Segment(Box::new(Rescan::empty()));
                self.release(&job);
                let found = Arc::new(rescan.spans());
                self.rescanned(job.base, &found);
                self.blocks.insert(job.base, Block::Rescanned(found));
                if job.purpose != Purpose::Resum {
                    self.plan_read(io, job);
                }
            }
        }
    }
}

/// The pieces that may have spans of a partition.
pub(crate) fn pieces_of(summary: &[Piece], partition: PartitionId) -> Vec<Piece> {
    let from = summary.partition_point(|p| p.first < partition).saturating_sub(1);
    summary.iter().skip(from).take_while(|p| p.first <= partition).copied().collect()
}

/// A summary's span as it was in memory.
pub(crate) fn resident(span: &SummarySpan, base: Lsn) -> LookupSpan {
    LookupSpan {
        first: span.first,
        generation: span.generation,
        lsn: base.plus(span.offset),
        count: span.count,
        bytes: span.bytes,
        held: span.held,
        pure: span.pure,
    }
}

/// The payload of a summary's record, if all of it is whole.
fn verified_piece(record: &[u8], all: &Bytes, store: tidelog_types::Incarnation) -> Option<Bytes> {
    let (header, payload) = RecordHeader::decode_record(record).ok()?;
    let head = visit_summary(payload, &mut |_, _| {}).ok()?;
    if header.kind != RecordKind::Summary || head.store != store || header.index.0 != head.base.0 {
        return None;
    }
    Some(all.slice_ref(payload))
}
