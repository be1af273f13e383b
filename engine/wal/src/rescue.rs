//! What is live in a bad range: it is read as any reader would, and told, or written again.
//!
//! The second half of scrubbing (`scrub` finds the ranges). What lies in a range the lookup says, span by span; of an old segment
//! the summary, or the segment itself, says where in it. Each is read alone or with its like, so that what is told lost is no
//! more than what the bad bytes hide. Between a read and what follows from it the lookup is asked again: entries may
//! have been cut, let go or moved. What is written again goes into a batch of its own, one unit at a time, like other
//! background work.

use crate::error::ReadError;
use crate::places::Place;
use crate::reads::{Flaw, Purpose, ReadId, ReadJob, Run};
use crate::reports::WalEvent;
use crate::scrub::{AGAIN, CHUNK_BYTES, Phase};
use crate::shape::{Class, Shape};
use crate::wal::Wal;
use crate::walk::Walk;
use bytes::Bytes;
use std::collections::VecDeque;
use tidelog_io::{Io, IoError, IoErrorKind, Output};
use tidelog_types::{Generation, Index, Lsn, Position, RecordHeader, RecordKind, record};

/// Most ranges of entries to be read at once; what is left is found by the next pass.
const RANGES_MAX: usize = 1 << 16;
/// Partitions whose control records are written again in one batch.
const RESTATED_MAX: usize = 64;

impl Wal {
    /// Lists what the lookup has there.
    pub(crate) fn begin_entries(&mut self, base: Lsn) {
        self.scrub.phase = Phase::Entries;
        if self.scrub.bad.is_empty() {
            return;
        }
        let ids: Vec<_> = self.partitions.ids().collect();
        let mut todo = VecDeque::new();
        for id in ids {
            let Some(log) = self.partitions.get(id) else { continue };
            for span in &log.spans {
                let first = span.first.max(log.low_water);
                if !span.is_lost() && first <= span.last() && self.scrub.overlaps(span.lsn, span.end()) {
                    todo.push_back((id, first, span.last()));
                }
            }
            // Of an old segment it is not known where in it they lie.
            for (at, r) in log.refs.iter().enumerate().filter(|(_, r)| r.segment == base) {
                let next = log.refs.get(at + 1).map_or(Index(u64::MAX), |next| next.first);
                let last = next.prev().min(log.last.index);
                let first = r.first.max(log.low_water);
                if first <= last {
                    todo.push_back((id, first, last));
                }
            }
            if todo.len() > RANGES_MAX {
                tracing::warn!(base = base.0, "more to read than is remembered: the next pass goes on");
                break;
            }
        }
        self.scrub.todo = todo;
    }

    pub(crate) fn scrub_entries(&mut self, io: &mut dyn Io) {
        let Some((partition, first, last)) = self.scrub.todo.pop_front() else { return self.scrub_segment() };
        let base = self.scrub.walk.as_ref().map_or(self.scrub.at, Walk::base);
        let Some(log) = self.partitions.get(partition) else { return };
        // Up to where the lookup says something else than that it lies here.
        let elsewhere = match log.find(first) {
            Some(Place::Span(at)) => match log.span(at) {
                Some(s) if !s.is_lost() && self.scrub.overlaps(s.lsn, s.end()) => None,
                span => span.map(|span| span.last()),
            },
            Some(Place::Segment { segment, .. }) if segment == base => None,
            Some(Place::Segment { last, .. }) => Some(last),
            None => Some(first.max(log.low_water.prev())),
        };
        match elsewhere {
            Some(at) if at < last => self.scrub.todo.push_front((partition, at.next(), last)),
            Some(_) => {}
            None => {
                let bytes_max = CHUNK_BYTES.min(self.message_bytes_max() / 2);
                let mut job = ReadJob::new(ReadId(0), partition, first, last, bytes_max);
                job.purpose = Purpose::Scrub;
                self.scrub.reading = true;
                self.start_read(io, job);
            }
        }
    }

    /// A read of the scrubber's has ended. Gives it back if it only looked up where entries lie.
    pub(crate) fn scrub_done(
        &mut self,
        io: &mut dyn Io,
        mut job: ReadJob,
        result: Result<Output, IoError>,
    ) -> Option<(ReadJob, Result<Output, IoError>)> {
        if job.is_looking_up() {
            return Some((job, result));
        }
        self.release(&job);
        let (buffer, bytes) = match result {
            Ok(Output::Read { buffer, bytes }) => (buffer, bytes),
            Ok(_) => {
                self.scrub_failed(&job, ReadError::Closed);
                return None;
            }
            Err(error) if error.kind != IoErrorKind::Device || self.fenced => {
                self.scrub_failed(&job, ReadError::Io(error));
                return None;
            }
            Err(error) if job.is_raw() => {
                self.scrub_came(job.base, job.extent_bytes, Err(&error));
                return None;
            }
            Err(_) if job.is_of_many() => {
                // Not all of them need be in the page that is not to be had.
                job.bytes_max = 1;
                self.plan_read(io, job);
                return None;
            }
            Err(error) => {
                let (lsn, index, through) = (job.extent, job.first, job.reaches());
                self.scrub_flawed(&job, Flaw { lsn, index, through, why: error.to_string() });
                return None;
            }
        };
        let data = buffer.freeze().slice(..bytes);
        if job.is_raw() {
            self.scrub_came(job.base, job.extent_bytes, Ok(&data));
            return None;
        }
        if !self.partitions.get(job.partition).is_some_and(|log| job.still_there(log)) {
            // Cut or moved meanwhile: from what the lookup says now.
            self.scrub.reading = false;
            self.scrub.todo.push_front((job.partition, job.first, job.wanted));
            return None;
        }
        match job.extract(&data) {
            Ok(run) => self.scrub_rescued(&job, run),
            Err(flaw) => self.scrub_flawed(&job, flaw),
        }
        None
    }

    /// Whether what a read is about to read lies in a bad range; it is shortened to what does, or goes on behind what
    /// does not.
    pub(crate) fn scrub_concerns(&mut self, job: &mut ReadJob) -> bool {
        let scrub = &self.scrub;
        let (concerned, last) = job.keep_alike(|from, to| scrub.overlaps(from, to));
        if concerned {
            self.charge(job.extent_bytes);
            return true;
        }
        self.scrub.reading = false;
        self.scrub_on(job, last);
        false
    }

    /// Goes on with what a read was to read, behind `done`.
    fn scrub_on(&mut self, job: &ReadJob, done: Index) {
        if done < job.wanted {
            self.scrub.todo.push_front((job.partition, done.next(), job.wanted));
        }
    }

    /// Entries of a bad range were read: they are to be written again.
    pub(crate) fn scrub_rescued(&mut self, job: &ReadJob, run: Run) {
        self.scrub.reading = false;
        let (from, to) = job.range();
        self.scrub.counted(from, to);
        self.scrub_on(job, run.last);
        if run.last >= run.first && !self.full {
            self.scrub.rescued.push_back((job.partition, run));
        }
    }

    /// Entries of a bad range could not be read.
    pub(crate) fn scrub_flawed(&mut self, job: &ReadJob, flaw: Flaw) {
        self.scrub.reading = false;
        // A flaw before the first entry asked for hides that one as well.
        let first = flaw.index.max(job.first);
        let last = flaw.through.max(first).min(job.wanted);
        self.scrub_on(job, last);
        if first > job.first {
            self.scrub.todo.push_front((job.partition, job.first, first.prev()));
        }
        let (from, to) = job.range();
        self.scrub.counted(from, to);
        self.scrub_lost(job, first, last, flaw.lsn, flaw.why);
    }

    fn scrub_lost(&mut self, job: &ReadJob, first: Index, last: Index, lsn: Lsn, why: String) {
        let partition = job.partition;
        let log = self.partitions.get(partition);
        let Some(generation) = log.and_then(|log| log.generation_at(first)) else { return };
        let base = self.files.holding(lsn).map_or(lsn, |(base, _)| base);
        let file = self.files.peek(base).map(|file| file.path.clone()).unwrap_or_default();
        let offset = lsn.0 - base.0;
        let error = ReadError::Damaged { file, offset, partition, index: first, through: last, why };
        self.scrub.stats.lost += last.0.saturating_sub(first.0) + 1;
        self.scrub.stats.last = error.to_string();
        self.events.push(WalEvent::Damaged { partition, first, last, generation, error });
    }

    /// A read ended without bytes.
    pub(crate) fn scrub_failed(&mut self, job: &ReadJob, error: ReadError) {
        self.scrub.reading = false;
        if job.is_raw() {
            return match self.fenced {
                true => {}
                false => self.scrub_passes_over(job.base, &error),
            };
        }
        match error {
            ReadError::Damaged { index, through, why, offset, .. } => {
                let lsn = job.base.plus(offset);
                self.scrub_flawed(job, Flaw { lsn, index, through, why });
            }
            // Later.
            ReadError::Busy => {
                self.scrub.todo.push_front((job.partition, job.first, job.wanted));
                self.scrub.next_at = self.clock.now.after(AGAIN);
            }
            ReadError::Io(error) => {
                tracing::warn!(%error, "scrubbing cannot read an entry; the next pass tries again");
                self.scrub_on(job, job.first);
            }
            ReadError::NotHere { .. } | ReadError::Cut | ReadError::Closed => self.scrub_on(job, job.first),
        }
    }

    // What is written again.

    /// Whether something waits for a batch.
    pub(crate) fn has_rescue(&self) -> bool {
        !self.scrub.rescued.is_empty() || !self.scrub.restate.is_empty()
    }

    /// Puts what was read out of bad batches into the growing batch, which is empty. False: nothing was put.
    pub(crate) fn put_rescue(&mut self) -> bool {
        if self.full {
            // The next pass finds it again.
            self.scrub.rescued.clear();
            return false;
        }
        if !self.scrub.restate.is_empty() {
            return self.put_restated();
        }
        let Some((partition, run)) = self.scrub.rescued.front() else { return false };
        let base = self.scrub.walk.as_ref().map_or(self.scrub.at, Walk::base);
        let Some(log) = self.partitions.get(*partition) else {
            self.scrub.rescued.pop_front();
            return false;
        };
        // Cut, trimmed or moved since: only what is still there is a copy of anything.
        let there = |header: &RecordHeader| {
            log.generation_at(header.index) == Some(header.generation)
                && match log.find(header.index) {
                    Some(Place::Span(at)) => {
                        log.span(at).is_some_and(|s| !s.is_lost() && self.scrub.overlaps(s.lsn, s.end()))
                    }
                    Some(Place::Segment { segment, .. }) => segment == base,
                    None => false,
                }
        };
        let mut live = Vec::new();
        for piece in &run.pieces {
            for (at, header, _) in record::records(piece).map_while(Result::ok) {
                if there(&header) {
                    live.push((header, piece.slice(at..at + header.record_bytes())));
                }
            }
        }
        let live: Vec<(RecordHeader, Bytes)> = live;
        if !live.is_empty() && !self.put_moves(&live, Class::Bulk) {
            return false;
        }
        self.scrub.rescued.pop_front();
        self.scrub.stats.moved += live.len() as u64;
        !live.is_empty()
    }

    /// Writes promises and marks again whose record, or what stands for it, was bad.
    fn put_restated(&mut self) -> bool {
        let ids: Vec<_> = self.scrub.restate.iter().copied().take(RESTATED_MAX).collect();
        let mut records = Vec::new();
        for id in &ids {
            let Some(log) = self.partitions.get(*id) else { continue };
            let (low_water, snapshot) = (log.low_water, log.snapshot);
            if log.generation > Generation::ZERO {
                records.push(RecordHeader::promise(*id, log.generation, log.vote));
            }
            if snapshot > Position::ZERO {
                let mark = RecordHeader::new(RecordKind::SnapshotMark, *id);
                records.push(RecordHeader { index: snapshot.index, generation: snapshot.generation, ..mark });
            }
            if low_water > Index::ZERO {
                records
                    .push(RecordHeader { index: low_water, ..RecordHeader::new(RecordKind::LowWater, *id) });
            }
        }
        if !records.is_empty() {
            let shapes = records.iter().map(Shape::of);
            let Ok(plan) = self.place(shapes, records.len(), Class::Bulk) else { return false };
            self.growing.begin(plan);
            for record in &records {
                let cluster = self.options.cluster_tag;
                self.growing.put_control(&RecordHeader { cluster, ..*record });
            }
        }
        for id in ids {
            self.scrub.restate.remove(&id);
        }
        !records.is_empty()
    }
}
