//! The segments that are written: the active one, the next one, spares; and how they are made.
//!
//! Making is one job at a time, one operation at a time, beside the batches, so that a roll finds the next
//! segment ready. A spare is a file of zeros, written and synced in bounded pieces under a temporary name. A
//! spare becomes a segment by being renamed to a temporary name (so that a late write of an earlier life can
//! never reach a file that is in use), given its header, synced, renamed to its base, and its directory synced:
//! a file with a segment's name always has a valid header. Temporary names are removed when the log is opened.
//!
//! A segment that nothing needs any more is renamed to a spare, and the directory synced, before it is anything
//! else; its bytes stay (its next header says so), and what lies in it belongs to another segment by its number.
//! While segments come back, none is filled with zeros as long as one is left to go on with: the next one that comes
//! back saves that much writing. Those that come back at once are kept, within a bound, for the same reason.
//!
//! The jobs are plain state machines: the log runs them over its ring, opening runs them to completion.

use crate::error::WalError;
use crate::format::SegmentHeader;
use crate::names;
use bytes::Bytes;
use core::time::Duration;
use std::collections::VecDeque;
use std::path::PathBuf;
use tidelog_io::{BufferPool, FileId, IoError, IoErrorKind, Op, OpenMode, Output};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Lsn, Monotonic};

/// Bytes of one write of zeros.
const FILL_BYTES: u64 = 1 << 20;
/// Prepared segments that entries may not use on a full disk: one for control records or the next life, and one for the
/// life after that, which then gives the segment of the one before it back.
pub(crate) const RESERVED_SEGMENTS: usize = 2;
/// Segments begun since one came back last, up to which another one is waited for rather than made.
const ROLLS_PATIENT: usize = 8;
/// With so many left, the next one is made even if another one is about to come back: the next but one is not to wait for it.
const READY_MIN: usize = 2;
/// Spares are kept above those that were asked for, as many as are begun until others come back: so many, or this part of the log's
/// segments at most.
const SURPLUS_MIN: usize = 4;
const SURPLUS_PART: usize = 8;
/// Never more than so many.
pub(crate) const SURPLUS_MAX: usize = 16;
/// Longest rest between two writes of zeros.
const REST_MAX: Duration = Duration::from_millis(200);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A file that batches are written to.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) file: FileId,
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
}

impl Segment {
    pub(crate) const fn base(&self) -> Lsn {
        self.header.base
    }
}

/// A file of full length, ready to become a segment.
#[derive(Clone, Debug)]
pub(crate) struct Spare {
    pub(crate) file: FileId,
    pub(crate) path: PathBuf,
    /// It was a segment; otherwise it is zeros.
    pub(crate) recycled: bool,
}

/// A segment that nothing needs any more.
#[derive(Debug)]
pub(crate) struct Returned {
    pub(crate) path: PathBuf,
    pub(crate) file: Option<FileId>,
    /// Its length is that of new segments.
    pub(crate) fits: bool,
}

#[derive(Debug)]
enum Job {
    Create {
        number: u64,
    },
    Fill {
        number: u64,
        file: FileId,
        written: u64,
    },
    /// Zeros were written in part: the last page of them, to learn why.
    Probe {
        number: u64,
        file: FileId,
        at: u64,
        short: IoError,
    },
    SyncFilled {
        number: u64,
        file: FileId,
    },
    NameFilled {
        number: u64,
        file: FileId,
    },
    SyncSpareName {
        number: u64,
        file: FileId,
    },
    Claim {
        spare: Spare,
        header: SegmentHeader,
    },
    Head {
        file: FileId,
        header: SegmentHeader,
    },
    NameHeaded {
        file: FileId,
        header: SegmentHeader,
    },
    SyncSegmentName {
        file: FileId,
        header: SegmentHeader,
    },
    CloseReturned {
        path: PathBuf,
        file: FileId,
        fits: bool,
    },
    NameReturned {
        number: u64,
        path: PathBuf,
    },
    SyncReturned {
        number: u64,
    },
    DropReturned {
        path: PathBuf,
    },
    SyncDropped {
        path: PathBuf,
    },
    OpenReturned {
        number: u64,
    },
    CloseDiscarded {
        file: FileId,
        path: PathBuf,
    },
    RemoveDiscarded {
        path: PathBuf,
    },
}

/// What became of a step.
#[derive(Debug)]
pub(crate) enum Step {
    /// Go on: there is a further operation, or the job is done.
    On,
    /// The disk is full; what was begun is being removed.
    NoSpace(IoError),
    /// Final for this life.
    Failed(WalError),
}

/// The segments that are written.
#[derive(Debug)]
pub(crate) struct Segments {
    dir: PathBuf,
    pool: BufferPool,
    /// Header of the next segment to be made.
    upcoming: SegmentHeader,
    /// Everything of the epoch before this position is durable; 0: it is not in use yet.
    durable: Lsn,
    spares: usize,
    pub(crate) next: Option<Segment>,
    pub(crate) free: VecDeque<Spare>,
    spare_number: u64,
    /// Bytes that were taken from the file system since this was asked for last.
    taken: u64,
    returned: VecDeque<Returned>,
    /// Segments begun since one came back that can be used again.
    rolls: usize,
    /// So many were begun between two times that some came back, of late.
    burst: usize,
    /// Segments of the log.
    live: usize,
    /// There is little space: nothing is kept above what was asked for, nor waited for.
    tight: bool,
    job: Option<Job>,
    /// Whether the job's operation is under way, and since when.
    running: bool,
    began: Monotonic,
    /// Zeros are written at a part of the disk's time.
    paced: bool,
    /// The next zeros are written then.
    fill_at: Monotonic,
    retry: Option<Monotonic>,
    backoff: Duration,
    zeros: Option<Bytes>,
}

impl Segments {
    pub(crate) fn new(
        dir: PathBuf,
        pool: BufferPool,
        upcoming: SegmentHeader,
        spares: usize,
        free: VecDeque<Spare>,
        spare_number: u64,
    ) -> Segments {
        Segments {
            dir,
            pool,
            upcoming,
            durable: Lsn(0),
            spares: spares.max(RESERVED_SEGMENTS),
            next: None,
            free,
            spare_number,
            taken: 0,
            returned: VecDeque::new(),
            rolls: ROLLS_PATIENT,
            burst: 0,
            live: 0,
            tight: false,
            job: None,
            running: false,
            began: Monotonic::default(),
            paced: false,
            fill_at: Monotonic::default(),
            retry: None,
            backoff: BACKOFF_MIN,
            zeros: None,
        }
    }

    /// The epoch is in use, and durable up to there: the next header says so.
    pub(crate) fn note_durable(&mut self, durable: Lsn) {
        self.durable = durable;
    }

    /// Segments that are there without any more space: the next one and the spares.
    pub(crate) fn ready(&self) -> usize {
        usize::from(self.next.is_some()) + self.free.len()
    }

    /// Bytes that new spares took from the file system since the last call.
    pub(crate) fn taken(&mut self) -> u64 {
        std::mem::take(&mut self.taken)
    }

    /// When there is something to do that waits for its time.
    pub(crate) fn retry_at(&self) -> Option<Monotonic> {
        match self.job {
            None => self.retry,
            Some(Job::Fill { .. }) if !self.running => Some(self.fill_at),
            Some(_) => None,
        }
    }

    /// From now on zeros are written beside traffic, which is not to wait for them.
    pub(crate) fn pace(&mut self) {
        self.paced = true;
    }

    /// So many times as long as the zeros before took, none are written: the disk is for the traffic meanwhile.
    fn rests(&self) -> u32 {
        match self.ready() {
            _ if !self.paced => 0,
            0 => 0,
            1 => 1,
            _ => 3,
        }
    }

    /// The files that are open.
    pub(crate) fn files(&self) -> impl Iterator<Item = FileId> {
        let job = self.job.as_ref().and_then(|job| self.remains(job).1);
        let returned = self.returned.iter().filter_map(|r| r.file);
        self.free.iter().map(|s| s.file).chain(self.next.iter().map(|s| s.file)).chain(returned).chain(job)
    }

    /// Takes back a segment that nothing needs any more: it becomes a spare, or is removed if there are enough.
    pub(crate) fn give_back(&mut self, returned: Returned) {
        if returned.fits && self.rolls > 0 {
            self.burst = self.rolls.max(self.burst - self.burst.div_ceil(8));
            self.rolls = 0;
        }
        self.returned.push_back(returned);
    }

    /// How many segments the log has, and whether space is short.
    pub(crate) fn weigh(&mut self, live: usize, tight: bool) {
        (self.live, self.tight) = (live, tight);
    }

    /// With so many ready, no further one is made.
    fn wanted(&self) -> usize {
        let waits = self.rolls < ROLLS_PATIENT && !self.tight && self.retry.is_none();
        if waits { READY_MIN } else { self.spares + 1 }
    }

    /// With so many ready, what comes back is removed.
    fn kept(&self) -> usize {
        let most = (self.live / SURPLUS_PART).clamp(SURPLUS_MIN, SURPLUS_MAX);
        let surplus = if self.tight { 0 } else { self.burst.min(most) };
        self.spares + 1 + surplus
    }

    /// Takes the next segment; one more has to be made.
    pub(crate) fn roll(&mut self) -> Option<Segment> {
        self.rolls = self.rolls.saturating_add(1);
        self.next.take()
    }

    /// The next operation to run, if there is work and none is under way. `now`: retries wait for their time.
    pub(crate) fn operation(&mut self, now: Monotonic) -> Option<Op> {
        if self.running {
            return None;
        }
        if self.job.is_none() {
            self.job = self.begin(now);
        }
        if matches!(self.job, Some(Job::Fill { .. })) && now < self.fill_at {
            return None;
        }
        let op = self.job.as_ref().map(|job| self.op(job))?;
        (self.running, self.began) = (true, now);
        Some(op)
    }

    fn begin(&mut self, now: Monotonic) -> Option<Job> {
        if self.next.is_none()
            && let Some(spare) = self.free.pop_front()
        {
            let header = SegmentHeader { recycled: spare.recycled, durable: self.durable, ..self.upcoming };
            self.upcoming.base = header.end();
            self.upcoming.segment_seq += 1;
            return Some(Job::Claim { spare, header });
        }
        if let Some(returned) = self.returned.pop_front() {
            return Some(self.take_back(returned));
        }
        let missing = self.ready() < self.wanted();
        if missing && self.retry.is_none_or(|at| now >= at) {
            self.retry = None;
            let number = self.spare_number;
            self.spare_number += 1;
            return Some(Job::Create { number });
        }
        if !missing {
            self.zeros = None;
        }
        None
    }

    fn take_back(&mut self, Returned { path, file, fits }: Returned) -> Job {
        match file {
            Some(file) => Job::CloseReturned { path, file, fits },
            None if fits && self.ready() < self.kept() => {
                let number = self.spare_number;
                self.spare_number += 1;
                Job::NameReturned { number, path }
            }
            None => Job::DropReturned { path },
        }
    }

    fn zeros(&self) -> Bytes {
        self.zeros
            .clone()
            .unwrap_or_else(|| self.pool.take_zeroed(FILL_BYTES.min(self.upcoming.bytes) as usize).freeze())
    }

    fn op(&self, job: &Job) -> Op {
        let at = |name: String| self.dir.join(name);
        match job {
            Job::Create { number } => Op::Open { path: at(names::filling(*number)), mode: OpenMode::Create },
            Job::Fill { file, written, .. } => {
                let bytes = FILL_BYTES.min(self.upcoming.bytes - written) as usize;
                Op::Write { file: *file, offset: *written, data: vec![self.zeros().slice(..bytes)] }
            }
            Job::Probe { file, at, .. } => {
                Op::Write { file: *file, offset: *at, data: vec![self.zeros().slice(..PAGE_BYTES)] }
            }
            Job::SyncFilled { file, .. } => Op::Sync { file: *file },
            Job::NameFilled { number, .. } => {
                Op::Rename { from: at(names::filling(*number)), to: at(names::spare(*number)) }
            }
            Job::Claim { spare, header } => {
                Op::Rename { from: spare.path.clone(), to: at(names::heading(header.base)) }
            }
            Job::Head { file, header } => {
                let mut pages = self.pool.take(2 * PAGE_BYTES);
                let mut page = [0; PAGE_BYTES];
                header.encode(&mut page);
                let (first, copy) = pages.split_at_mut(PAGE_BYTES);
                first.copy_from_slice(&page);
                copy.copy_from_slice(&page);
                Op::WriteDurable { file: *file, offset: 0, data: vec![pages.freeze()] }
            }
            Job::NameHeaded { header, .. } => {
                Op::Rename { from: at(names::heading(header.base)), to: at(names::segment(header.base)) }
            }
            Job::NameReturned { number, path } => {
                Op::Rename { from: path.clone(), to: at(names::spare(*number)) }
            }
            Job::OpenReturned { number } => {
                Op::Open { path: at(names::spare(*number)), mode: OpenMode::ReadWrite }
            }
            // Before the next older one goes: the segments that are left are to be contiguous after any crash.
            Job::SyncSpareName { .. }
            | Job::SyncSegmentName { .. }
            | Job::SyncReturned { .. }
            | Job::SyncDropped { .. } => Op::SyncDir { path: self.dir.clone() },
            Job::CloseReturned { file, .. } | Job::CloseDiscarded { file, .. } => {
                Op::CloseFile { file: *file }
            }
            Job::RemoveDiscarded { path } | Job::DropReturned { path } => Op::Remove { path: path.clone() },
        }
    }

    /// Where the job's file is now, and the file itself if it is open: what a failure leaves behind.
    fn remains(&self, job: &Job) -> (PathBuf, Option<FileId>) {
        match job {
            Job::Create { number } => (self.dir.join(names::filling(*number)), None),
            Job::Fill { number, file, .. }
            | Job::Probe { number, file, .. }
            | Job::SyncFilled { number, file }
            | Job::NameFilled { number, file } => (self.dir.join(names::filling(*number)), Some(*file)),
            Job::SyncSpareName { number, file } => (self.dir.join(names::spare(*number)), Some(*file)),
            Job::Claim { spare, .. } => (spare.path.clone(), Some(spare.file)),
            Job::Head { file, header } | Job::NameHeaded { file, header } => {
                (self.dir.join(names::heading(header.base)), Some(*file))
            }
            Job::SyncSegmentName { file, header } => {
                (self.dir.join(names::segment(header.base)), Some(*file))
            }
            Job::NameReturned { path, .. } => (path.clone(), None),
            Job::SyncReturned { number } | Job::OpenReturned { number } => {
                (self.dir.join(names::spare(*number)), None)
            }
            Job::CloseReturned { file, path, .. } | Job::CloseDiscarded { file, path } => {
                (path.clone(), Some(*file))
            }
            Job::RemoveDiscarded { path } | Job::DropReturned { path } | Job::SyncDropped { path } => {
                (path.clone(), None)
            }
        }
    }

    /// The operation is done.
    pub(crate) fn done(&mut self, result: Result<Output, IoError>, now: Monotonic) -> Step {
        self.running = false;
        let Some(job) = self.job.take() else { return Step::On };
        let output = match result {
            Ok(output) => output,
            Err(short) if short.kind == IoErrorKind::ShortWrite => match job {
                // The disk, a quota, or the limit on the size of files: whoever writes behind it is told which.
                Job::Fill { number, file, written } => {
                    let end = written + FILL_BYTES.min(self.upcoming.bytes - written);
                    self.job = Some(Job::Probe { number, file, at: end - PAGE_BYTES as u64, short });
                    return Step::On;
                }
                job => return self.failed(&job, short, now),
            },
            Err(error) => return self.failed(&job, error, now),
        };
        self.job = match job {
            Job::Create { number } => match output {
                Output::Opened { file, .. } => {
                    self.zeros = Some(self.zeros());
                    Some(Job::Fill { number, file, written: 0 })
                }
                _ => None,
            },
            Job::Fill { number, file, written } => {
                self.fill_at = now.after((now.since(self.began) * self.rests()).min(REST_MAX));
                let written = written + FILL_BYTES.min(self.upcoming.bytes - written);
                if written < self.upcoming.bytes {
                    Some(Job::Fill { number, file, written })
                } else {
                    Some(Job::SyncFilled { number, file })
                }
            }
            Job::Probe { number, file, at, short } => {
                let job = Job::Probe { number, file, at, short: short.clone() };
                return self.failed(&job, short, now);
            }
            Job::SyncFilled { number, file } => Some(Job::NameFilled { number, file }),
            Job::NameFilled { number, file } => Some(Job::SyncSpareName { number, file }),
            Job::SyncSpareName { number, file } => {
                self.backoff = BACKOFF_MIN;
                self.taken += self.upcoming.bytes;
                self.free.push_back(Spare {
                    file,
                    path: self.dir.join(names::spare(number)),
                    recycled: false,
                });
                None
            }
            Job::CloseReturned { path, fits, .. } => {
                Some(self.take_back(Returned { path, file: None, fits }))
            }
            Job::NameReturned { number, .. } => Some(Job::SyncReturned { number }),
            Job::DropReturned { path } => Some(Job::SyncDropped { path }),
            Job::SyncDropped { .. } => None,
            Job::SyncReturned { number } => Some(Job::OpenReturned { number }),
            Job::OpenReturned { number } => {
                if let Output::Opened { file, .. } = output {
                    self.backoff = BACKOFF_MIN;
                    self.retry = None;
                    let path = self.dir.join(names::spare(number));
                    self.free.push_back(Spare { file, path, recycled: true });
                }
                None
            }
            Job::Claim { spare, header } => Some(Job::Head { file: spare.file, header }),
            Job::Head { file, header } => Some(Job::NameHeaded { file, header }),
            Job::NameHeaded { file, header } => Some(Job::SyncSegmentName { file, header }),
            Job::SyncSegmentName { file, header } => {
                self.next = Some(Segment { file, path: self.dir.join(names::segment(header.base)), header });
                None
            }
            Job::CloseDiscarded { path, .. } => Some(Job::RemoveDiscarded { path }),
            Job::RemoveDiscarded { .. } => None,
        };
        Step::On
    }

    fn failed(&mut self, job: &Job, error: IoError, now: Monotonic) -> Step {
        let (path, file) = self.remains(job);
        let discarding = matches!(job, Job::CloseDiscarded { .. } | Job::RemoveDiscarded { .. });
        if discarding {
            // Nothing depends on it: opening removes what is left.
            return Step::On;
        }
        // Zeros that were written in part, to a file that is nothing yet, and nothing says why: most likely the disk is full.
        let short = error.kind == IoErrorKind::ShortWrite && matches!(job, Job::Probe { .. });
        if (short || error.kind == IoErrorKind::NoSpace) && !matches!(job, Job::SyncSegmentName { .. }) {
            self.retry = Some(now.after(self.backoff));
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
            self.zeros = None;
            if let Job::Claim { header, .. } | Job::Head { header, .. } | Job::NameHeaded { header, .. } = job
            {
                // The position is still to be filled: an epoch's segments are contiguous.
                self.upcoming = SegmentHeader { recycled: false, ..*header };
            }
            self.job = file.map(|file| Job::CloseDiscarded { file, path });
            return Step::NoSpace(error);
        }
        let what = match job {
            Job::Fill { .. } | Job::Probe { .. } | Job::SyncFilled { .. } => "filling a spare segment",
            Job::Head { .. } => "writing a segment header",
            Job::SyncSpareName { .. } | Job::SyncSegmentName { .. } => "syncing the directory",
            Job::CloseReturned { .. } | Job::NameReturned { .. } | Job::OpenReturned { .. } => {
                "recycling a segment"
            }
            Job::DropReturned { .. } => "removing a segment",
            Job::SyncReturned { .. } | Job::SyncDropped { .. } => "syncing the directory",
            _ => "making a segment",
        };
        Step::Failed(WalError { file: path, offset: 0, what, error })
    }
}
