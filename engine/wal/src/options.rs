//! Settings of one shard's log.

use crate::error::OpenError;
use crate::format::BATCHES_START;
use core::time::Duration;
use std::path::PathBuf;
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES, SEGMENT_BYTES_MAX};
use tidelog_types::{Incarnation, NodeId, ShardId};

/// Most batches that may be in flight at once.
pub const IN_FLIGHT_LIMIT: usize = 4;
/// Smallest largest batch: what the footer and the room for control records need.
pub const BATCH_BYTES_MIN: usize = 64 << 10;
/// At most one part in so many of what is written is checkpoints.
pub const CHECKPOINT_SHARE: u64 = 16;
/// Most spares.
pub const SPARES_LIMIT: usize = 64;

/// Settings of one shard's log.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory of this shard's WAL files; created if it is not there.
    pub dir: PathBuf,
    /// This node: another node's files are refused.
    pub node: NodeId,
    /// This shard: another shard's files are refused.
    pub shard: ShardId,
    /// The data directory's life: files of another life are refused.
    pub store: Incarnation,
    /// [`tidelog_types::ClusterId::tag`]: what control records carry.
    pub cluster_tag: u32,
    /// Length of a new segment. Multiple of the page, at least two of the largest batches.
    pub segment_bytes: u64,
    /// Largest batch: what one sync makes durable at most.
    pub batch_bytes_max: usize,
    /// Most batches in flight at once, 1 to [`IN_FLIGHT_LIMIT`]. More than one makes more of a crash's tail
    /// undecidable.
    pub in_flight_max: usize,
    /// Zero-filled files kept ready behind the next segment, at least 1.
    pub spares: usize,
    /// Idle time after which a seal proves what was written last.
    pub seal_after: Duration,
    /// Most bytes of recent batches kept in memory for readers and peers. Batches in flight are kept above it.
    pub cache_bytes_max: usize,
    /// Bytes of log between two base checkpoints, at least; more if a checkpoint is large ([`CHECKPOINT_SHARE`]).
    pub checkpoint_every: u64,
    /// Bytes of segments that the log is kept at: above it live records of the oldest ones are moved, and snapshots asked
    /// for. A soft bound: nothing is refused because of it.
    pub log_bytes_target: u64,
    /// Whether space is given back as soon as that is cheap. Otherwise live records are moved only above `log_bytes_target`, and no checkpoint
    /// comes early for a segment that waits for it: for tests and measurements to which a log has to stay as it is.
    pub steady: bool,
    /// Bytes that scrubbing reads in a second; 0: nothing is scrubbed.
    pub scrub_rate: u64,
    /// Least time from the beginning of one pass over the log to that of the next.
    pub scrub_every: Duration,
    /// Whether this node's partitions have no other voter: a verdict then has no peers to ask.
    pub single_voter: bool,
    /// Whether this shard has had a log: a directory without one has lost it, and is refused rather than given a new one.
    pub must_exist: bool,
}

impl Options {
    /// The defaults, for a directory.
    pub fn new(dir: impl Into<PathBuf>, node: NodeId, shard: ShardId, store: Incarnation) -> Options {
        Options {
            dir: dir.into(),
            node,
            shard,
            store,
            cluster_tag: 0,
            segment_bytes: 64 << 20,
            batch_bytes_max: BATCH_BYTES_MAX,
            in_flight_max: 1,
            spares: 2,
            seal_after: Duration::from_millis(5),
            cache_bytes_max: 32 << 20,
            checkpoint_every: 64 << 20,
            log_bytes_target: 4 << 30,
            steady: true,
            scrub_rate: 0,
            scrub_every: Duration::from_secs(24 * 3600),
            single_voter: false,
            must_exist: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong = |what: &'static str| Err(OpenError::Options { what });
        let page = PAGE_BYTES as u64;
        if !self.batch_bytes_max.is_multiple_of(PAGE_BYTES)
            || !(BATCH_BYTES_MIN..=BATCH_BYTES_MAX).contains(&self.batch_bytes_max)
        {
            return wrong("batch_bytes_max: whole pages, 64 KiB to 4 MiB");
        }
        if !self.segment_bytes.is_multiple_of(page)
            || self.segment_bytes > SEGMENT_BYTES_MAX
            || self.segment_bytes < BATCHES_START + 2 * self.batch_bytes_max as u64
        {
            return wrong("segment_bytes: whole pages, at least two of the largest batches, at most 4 GiB");
        }
        if !(1..=IN_FLIGHT_LIMIT).contains(&self.in_flight_max) {
            return wrong("in_flight_max: 1 to 4");
        }
        if !(1..=SPARES_LIMIT).contains(&self.spares) {
            return wrong("spares: 1 to 64");
        }
        if self.checkpoint_every == 0 {
            return wrong("checkpoint_every: not 0");
        }
        if self.node.0 == 0 {
            return wrong("node: not 0");
        }
        Ok(())
    }
}
