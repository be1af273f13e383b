//! The reading half of the log: from the tail cache, or from the disk by lookup.

use crate::cache::Gather;
use crate::error::ReadError;
use crate::reads::{READS_MAX, ReadId, ReadJob, Run, TRIES_MAX};
use crate::wal::{Pending, Wal, WalEvent};
use tidelog_io::{Io, IoError, IoErrorKind, Op, OpenMode, Output};
use tidelog_types::{Index, PartitionId, Position, RecordHeader};

impl Wal {
    /// Records `first ..= last` from memory as far as `bytes_max` goes, at least one; none if the first is not in
    /// the tail cache or not in a submitted batch.
    pub fn cached(&self, partition: PartitionId, first: Index, last: Index, bytes_max: usize) -> Option<Run> {
        let log = self.partitions.get(&partition)?;
        let last = last.min(log.sequenced);
        if first > last || first == Index::ZERO {
            return None;
        }
        let mut at = log.find(first)?;
        let mut gather = Gather::default();
        let mut reached = None;
        while let Some(span) = log.span(at)
            && span.first <= last
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
            return self.answer(read, Err(ReadError::Closed));
        }
        let last = last.min(self.sequenced(partition));
        if first == Index::ZERO || first > last {
            return self.answer(read, Err(ReadError::NotHere { first, last: log_last }));
        }
        if let Some(run) = self.cached(partition, first, last, bytes_max) {
            return self.answer(read, Ok(run));
        }
        if self.reads >= READS_MAX {
            return self.answer(read, Err(ReadError::Busy));
        }
        self.start_read(io, ReadJob::new(read, partition, first, last, bytes_max));
    }

    fn answer(&mut self, read: ReadId, result: Result<Run, ReadError>) {
        self.events.push(WalEvent::Read { read, result });
    }

    fn start_read(&mut self, io: &mut dyn Io, mut job: ReadJob) {
        job.tries += 1;
        let Some(log) = self.partitions.get(&job.partition) else {
            return self.answer(job.read, Err(ReadError::NotHere { first: job.first, last: Position::ZERO }));
        };
        job.last = job.last.min(log.sequenced);
        if let Some(span) = log.find(job.first).and_then(|at| log.span(at)).filter(|span| span.is_lost()) {
            let lsn = span.lsn;
            let base = self.files.holding(lsn).map_or(lsn, |(base, _)| base);
            let error = ReadError::Damaged {
                file: self.files.get(base).map(|f| f.path.clone()).unwrap_or_default(),
                offset: lsn.0 - base.0,
                partition: job.partition,
                index: job.first,
                why: "its bytes were lost when the log was opened".into(),
            };
            return self.answer(job.read, Err(error));
        }
        if let Err(e) = job.plan(log, |lsn| self.files.holding(lsn)) {
            return self.answer(job.read, Err(e));
        }
        let Some(entry) = self.files.get(job.base) else {
            return self.answer(job.read, Err(ReadError::Closed));
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
                    self.files.surplus(self.active.base)
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
        self.answer(job.read, result);
    }

    fn release(&mut self, job: &ReadJob) {
        self.reads -= 1;
        if let Some(file) = self.files.get(job.base) {
            file.users -= 1;
        }
    }

    pub(crate) fn read_done(&mut self, io: &mut dyn Io, mut job: ReadJob, result: Result<Output, IoError>) {
        let (buffer, bytes) = match result {
            Ok(Output::Read { buffer, bytes }) => (buffer, bytes),
            Ok(_) => return self.end_read(job, Err(ReadError::Closed)),
            Err(e) if e.kind == IoErrorKind::Device && !self.fenced => {
                // The device does not give the bytes: that is damage like any other.
                let error = ReadError::Damaged {
                    file: self.files.get(job.base).map(|f| f.path.clone()).unwrap_or_default(),
                    offset: job.extent.0 - job.base.0,
                    partition: job.partition,
                    index: job.first,
                    why: e.to_string(),
                };
                return self.end_read(job, Err(error));
            }
            Err(e) => return self.end_read(job, Err(ReadError::Io(e))),
        };
        if self.fenced {
            return self.end_read(job, Err(ReadError::Closed));
        }
        let there = self.partitions.get(&job.partition).is_some_and(|log| job.still_there(log));
        if !there {
            self.release(&job);
            if job.tries >= TRIES_MAX {
                return self.answer(job.read, Err(ReadError::Cut));
            }
            let first = job.first;
            if first > self.sequenced(job.partition) {
                let last = self.last(job.partition);
                return self.answer(job.read, Err(ReadError::NotHere { first, last }));
            }
            if let Some(run) = self.cached(job.partition, first, job.last, job.bytes_max) {
                return self.answer(job.read, Ok(run));
            }
            return self.start_read(io, job);
        }
        let data = buffer.freeze().slice(..bytes);
        let result = job.extract(&data).map_err(|flaw| ReadError::Damaged {
            file: self.files.get(job.base).map(|f| f.path.clone()).unwrap_or_default(),
            offset: flaw.lsn.0 - job.base.0,
            partition: job.partition,
            index: flaw.index,
            why: flaw.why,
        });
        self.end_read(job, result);
    }
}
