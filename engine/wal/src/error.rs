//! What goes wrong, told apart by what the caller does next.

use crate::format::{FormatError, Span};
use std::path::PathBuf;
use tidelog_io::IoError;
use tidelog_types::{Index, Lsn, PartitionId, Position, RecordError, RecordKind};

/// Nothing was written; try again when `why` is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the log takes no more now: {why:?}, room for {room} bytes")]
pub struct Busy {
    /// What has to end first.
    pub why: BusyWhy,
    /// Payload bytes that the growing batch still takes.
    pub room: usize,
}

/// Why the log takes no more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusyWhy {
    /// The growing batch is full: after the next flush. Records that do not even fit an empty batch (more than
    /// [`crate::Wal::message_bytes_max`], or of thousands of generations) are split by the caller.
    Batch,
    /// The next segment is not prepared yet: after a few completions.
    Segment,
    /// The disk is full: after `SpaceBack`. Control records are still taken.
    Space,
    /// A write or a sync failed: never; open the log again.
    Fenced,
}

/// What fenced the log: the failed operation and its file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {what} failed at byte {offset}: {error}", file.display())]
pub struct WalError {
    /// The file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What was being done.
    pub what: &'static str,
    /// The back-end's words.
    pub error: IoError,
}

/// Why a read gave nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadError {
    /// The first index asked for is not in the log (not yet, or not any more).
    #[error("index {first} is not in the log, which ends at {}", last.index)]
    NotHere {
        /// The first index asked for.
        first: Index,
        /// The partition's last entry.
        last: Position,
    },
    /// Entries were cut while they were read, again and again.
    #[error("the entries were cut while they were read")]
    Cut,
    /// Too many reads in flight, or the entry lies in a batch that is not submitted yet: later.
    #[error("not to be read at this moment")]
    Busy,
    /// What the disk gave is not what was written.
    #[error("{}: damaged at byte {offset}: partition {partition} index {index}: {why}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// The partition.
        partition: PartitionId,
        /// The first entry that was asked for and is not to be had.
        index: Index,
        /// The last one that is not to be had for the same reason: what lies behind a bad header cannot be come by.
        through: Index,
        /// In which way.
        why: String,
    },
    /// The back-end failed.
    #[error("read failed: {0}")]
    Io(#[from] IoError),
    /// The log is fenced or closed.
    #[error("the log is closed")]
    Closed,
}

/// What recovery made of a batch that is not good.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// Never completed: nothing in it was ever acknowledged. Cut.
    Torn,
    /// Not proven durable, but it says what it holds: torn or damaged, undecidable here. Set aside and cut.
    Suspect,
    /// Proven durable and bad, but a later cut or the end of its epoch made it worthless.
    Superseded,
    /// Proven durable and bad; what it held is known.
    Damaged,
    /// Proven durable and bad (or unreadable); what it held is not known.
    Unknown,
}

impl core::fmt::Display for Verdict {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Verdict::Torn => "torn",
            Verdict::Suspect => "suspect",
            Verdict::Superseded => "superseded",
            Verdict::Damaged => "damaged",
            Verdict::Unknown => "unknown",
        })
    }
}

/// In which way a batch is not good.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadWhy {
    /// Its header is not valid.
    #[error("batch header: {0}")]
    Header(FormatError),
    /// A valid header of another place, life, segment or epoch lies there.
    #[error("a batch of another place or life lies there ({field} is {found}, expected {expected})")]
    Misplaced {
        /// The field that does not match.
        field: &'static str,
        /// As found.
        found: u64,
        /// As expected.
        expected: u64,
    },
    /// A record is not valid.
    #[error("record at byte {offset} of the batch: {error}")]
    Record {
        /// The record's offset in the batch.
        offset: u32,
        /// In which way.
        error: RecordError,
    },
    /// The records are valid, but not the ones that the header was written over.
    #[error("the records are not those of the header")]
    Records,
    /// The device did not give the bytes.
    #[error("read error")]
    Unreadable,
    /// It runs past the end of its segment.
    #[error("it runs past the end of its segment")]
    Length,
    /// The file ends there.
    #[error("the file is cut short: its segment has {expected} bytes")]
    Short {
        /// Length of the segment.
        expected: u64,
    },
}

/// A batch that is not good: where, what it held, what was made of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What recovery made of it.
    pub verdict: Verdict,
    /// The file.
    pub file: PathBuf,
    /// The batch's offset in it.
    pub offset: u64,
    /// The batch's position.
    pub lsn: Lsn,
    /// Its epoch.
    pub epoch: u64,
    /// Bytes up to the next good batch, or as long as it says it is.
    pub bytes: u64,
    /// In which way it is not good.
    pub why: BadWhy,
    /// What it held, if that is known.
    pub spans: Vec<Span>,
    /// Where its bytes were copied to.
    pub quarantined: Option<PathBuf>,
}

impl core::fmt::Display for Finding {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {} batch at byte {}: {}", self.file.display(), self.verdict, self.offset, self.why)?;
        for (at, span) in self.spans.iter().enumerate() {
            if at == 8 {
                return write!(f, "; and {} more", self.spans.len() - at);
            }
            match span.kind {
                RecordKind::Data => {
                    write!(f, "; partition {} index {}..={}", span.partition, span.a, span.last())?;
                }
                kind => write!(f, "; partition {} {kind:?}", span.partition)?,
            }
        }
        if self.spans.is_empty() && matches!(self.verdict, Verdict::Damaged | Verdict::Unknown) {
            write!(f, "; what it held is not known: any partition of this shard")?;
        }
        Ok(())
    }
}

/// Why a log cannot be opened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting is out of its range.
    #[error("wrong setting: {what}")]
    Options {
        /// Which, and its range.
        what: &'static str,
    },
    /// The back-end failed. Nothing is known about the log; it may be tried again.
    #[error("{0}")]
    Io(#[from] IoError),
    /// There is no space for a segment, and no spare.
    #[error("no space for a segment of {segment_bytes} bytes in {}: {error}. Make room on that disk; the log is left as it is", dir.display())]
    NoSpace {
        /// The directory.
        dir: PathBuf,
        /// What is needed.
        segment_bytes: u64,
        /// The back-end's words.
        error: IoError,
    },
    /// A file of another node, shard or data directory.
    #[error("{}: belongs to another {field}: it says {found}, expected {expected}", file.display())]
    Foreign {
        /// The file.
        file: PathBuf,
        /// What differs.
        field: &'static str,
        /// As found.
        found: u64,
        /// As expected.
        expected: u64,
    },
    /// There was a log, and there is none.
    #[error("the log is gone from {}: a node without its log must not vote. Restore the directory", dir.display())]
    Gone {
        /// The directory.
        dir: PathBuf,
    },
    /// Neither copy of a segment's header is valid.
    #[error("{}: segment header: {error}; what the file held is not known: any partition of this shard", file.display())]
    SegmentHeader {
        /// The file.
        file: PathBuf,
        /// The first copy's fault.
        error: FormatError,
    },
    /// A segment is missing or too short: other segments say that it was there.
    #[error("a segment that held LSN {lsn} is missing or cut short in {}", dir.display())]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// A position that it held.
        lsn: Lsn,
    },
    /// The log's older part was given back, and no checkpoint that stands for it is whole.
    #[error("the checkpoint that ends at LSN {lsn} in {} is damaged ({why}), and so is the one before it; what they held is not known: any partition of this shard", dir.display())]
    Checkpoint {
        /// The directory.
        dir: PathBuf,
        /// The newest one's last batch.
        lsn: Lsn,
        /// What is wrong with it.
        why: String,
    },
    /// Written by a newer program: it is not touched.
    #[error("{}: byte {offset}: {what}: written by a newer version of this program", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Where.
        offset: u64,
        /// What is new.
        what: String,
    },
    /// Damage, or what cannot be told from it, to what may have been acknowledged: the node stays down.
    #[error("{0}")]
    Damaged(Box<Finding>),
    /// A valid batch that does not follow the one before it: batches are lost between them.
    #[error("{}: batches are lost before byte {offset}; what they held is not known: any partition of this shard", file.display())]
    Lost {
        /// The file.
        file: PathBuf,
        /// Where the batch lies that does not follow.
        offset: u64,
    },
    /// A valid record that does not follow from what lies before it: a record is lost, or a bug.
    #[error("{}: byte {offset}: partition {partition} index {index}: {what}", file.display())]
    Inconsistent {
        /// The file.
        file: PathBuf,
        /// The record's offset in it.
        offset: u64,
        /// The partition.
        partition: PartitionId,
        /// The record's index.
        index: Index,
        /// What does not follow.
        what: &'static str,
    },
}
