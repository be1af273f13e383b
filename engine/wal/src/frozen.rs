//! A batch that is finished: what its header says beside its records, and its bytes on their way to the disk.

use bytes::Bytes;
use tidelog_types::{Incarnation, Lsn, PartitionId, Ticket, WallMs};

/// Identity of the batch before.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Link {
    pub(crate) lsn: Lsn,
    pub(crate) crc: u32,
    pub(crate) seq: u64,
}

/// What a batch's header says beyond what the batch itself knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) store: Incarnation,
    pub(crate) segment_seq: u64,
    pub(crate) epoch: u64,
    pub(crate) durable: Lsn,
    /// The newest checkpoint and the one before it.
    pub(crate) checkpoints: (Lsn, Lsn),
    pub(crate) wall: WallMs,
}

/// A finished batch, ready for the disk.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) link: Link,
    pub(crate) bytes: u64,
    /// Bytes of memory that the pieces hold.
    pub(crate) held: usize,
    pub(crate) payload_bytes: u64,
    pub(crate) records: u32,
    /// (offset in the batch, bytes), one behind the other.
    pub(crate) pieces: Vec<(usize, Bytes)>,
    pub(crate) tickets: Vec<(PartitionId, Ticket)>,
}

impl Frozen {
    pub(crate) fn end(&self) -> Lsn {
        self.link.lsn.plus(self.bytes)
    }
}
