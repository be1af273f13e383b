//! What a log tells its shard: events, what closing leaves, counters.

use crate::error::{ReadError, WalError};
use crate::reads::{ReadId, Run};
use tidelog_io::Completion;
use tidelog_types::{Generation, Index, PartitionId, Ticket};

/// What the log reports.
#[derive(Clone, Debug)]
pub enum WalEvent {
    /// Everything of this partition up to this ticket is on stable storage.
    Durable {
        /// The partition.
        partition: PartitionId,
        /// Its highest ticket that is durable.
        ticket: Ticket,
    },
    /// A read's result.
    Read {
        /// The caller's number.
        read: ReadId,
        /// Records, at least the first one asked for; or why not.
        result: Result<Run, ReadError>,
    },
    /// The log is dead: nothing that was not reported durable will be. Drop it (after [`Wal::close`], which waits
    /// for what is still in flight) and open it again.
    Fenced {
        /// The file, and why.
        error: WalError,
    },
    /// The disk is full: entries are refused from now on, promises and cuts are not.
    Full,
    /// There is space again.
    SpaceBack,
    /// Scrubbing found entries whose bytes are bad: they are in the log, and cannot be read.
    Damaged {
        /// The partition.
        partition: PartitionId,
        /// First index.
        first: Index,
        /// Last index.
        last: Index,
        /// Their generation.
        generation: Generation,
        /// File, place, and in which way.
        error: ReadError,
    },
    /// The log is over its budget, and a snapshot of this partition (or a higher low-water mark) would let go of its
    /// oldest segment. After the third time its live entries are moved instead.
    SnapshotWanted {
        /// The partition.
        partition: PartitionId,
    },
}

/// What [`Wal::close`] leaves.
#[derive(Debug)]
pub struct Closed {
    /// Reported while closing.
    pub events: Vec<WalEvent>,
    /// Completions of others that arrived meanwhile.
    pub others: Vec<Completion>,
}

/// Counters since opening, and levels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Batches submitted, seals among them.
    pub batches: u64,
    /// Durable writes completed.
    pub syncs: u64,
    /// Seals submitted.
    pub seals: u64,
    /// Records in submitted batches, padding included.
    pub records: u64,
    /// Bytes of submitted batches.
    pub bytes: u64,
    /// Payload bytes in submitted batches.
    pub payload_bytes: u64,
    /// Payload bytes copied into batches. Divided by `payload_bytes`: copies per payload byte.
    pub copied_bytes: u64,
    /// Segments in use.
    pub segments: usize,
    /// Segments and spares ready to be written.
    pub spares: usize,
    /// Batches in flight.
    pub in_flight: usize,
    /// Reads in flight.
    pub reads: usize,
    /// Memory held by the tail cache.
    pub cache_bytes: usize,
    /// Checkpoints that were written, read back and named.
    pub checkpoints: u64,
    /// Bytes of the newest one.
    pub checkpoint_bytes: u64,
    /// Segment summaries written.
    pub summaries: u64,
    /// Segments given back to the pool or removed.
    pub reclaimed: u64,
    /// Live records moved out of old segments, and their bytes.
    pub moved_records: u64,
    /// See there.
    pub moved_bytes: u64,
}
