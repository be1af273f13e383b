//! Disk reads in flight on a shard: what each is for. Bounded; a read that is refused is tried again by its
//! asker's next turn.
//!
//! Clients' reads wait in line for their share of a turn: each turn serves so many bytes and no more, from memory or from disk, and
//! so many are on their way from the disk at once. However much is asked for, a turn stays short, and beats leave in time.

use crate::partition::{Origin, Wanted};
use std::collections::{BTreeMap, VecDeque};
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::{Index, NodeId, PartitionId};
use tidelog_wal::ReadId;

/// Most disk reads in flight.
const READS_MAX: usize = 64;
/// Of these, most for clients: peers and state machines always find room.
const CLIENT_READS_MAX: usize = 32;
/// Most bytes that clients' disk reads in flight may bring, a single one aside.
const CLIENT_READ_BYTES_MAX: usize = 8 << 20;
/// Most bytes that clients' reads are served in one turn, or begin to read, the last one aside.
pub(crate) const TURN_BYTES_MAX: usize = 1 << 20;
/// Most clients' reads that are looked at in one turn.
pub(crate) const TURN_READS_MAX: usize = 1024;
/// Most clients' reads in line.
const WAITING_MAX: usize = 16 << 10;

/// Of these, most for peers whose log is damaged.
const REPAIR_READS_MAX: usize = 2;
/// Most requests of this shard's that ask peers for what is damaged here.
const FETCHES_MAX: usize = 4;

/// What a read is for.
#[derive(Debug)]
pub(crate) enum ReadFor {
    /// A client's read.
    Client { partition: PartitionId, wanted: Wanted },
    /// Entries for a peer that is behind.
    Peer { partition: PartitionId, peer: NodeId },
    /// Entries for a peer whose log is damaged.
    Repair { partition: PartitionId, peer: NodeId },
    /// Entries for the state machine.
    Apply { partition: PartitionId },
}

impl ReadFor {
    /// What it may bring, if a client asked for it.
    fn client_bytes(&self) -> usize {
        match self {
            ReadFor::Client { wanted, .. } => wanted.bytes_max.clamp(1, APPEND_BYTES_MAX),
            _ => 0,
        }
    }

    pub(crate) fn partition(&self) -> PartitionId {
        match self {
            ReadFor::Client { partition, .. }
            | ReadFor::Peer { partition, .. }
            | ReadFor::Repair { partition, .. }
            | ReadFor::Apply { partition } => *partition,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Reads {
    next: u64,
    clients: usize,
    /// Bytes that those may bring.
    client_bytes: usize,
    /// Clients' reads in line.
    waiting: VecDeque<(PartitionId, Wanted)>,
    repairs: usize,
    fetches: usize,
    in_flight: BTreeMap<ReadId, ReadFor>,
    refused: Option<Wanted>,
}

impl Reads {
    /// Registers a read; none if there are too many.
    pub(crate) fn start(&mut self, what: ReadFor) -> Option<ReadId> {
        let for_client = matches!(what, ReadFor::Client { .. });
        let bytes = what.client_bytes();
        let much = self.client_bytes > 0 && self.client_bytes + bytes > CLIENT_READ_BYTES_MAX;
        let for_repair = matches!(what, ReadFor::Repair { .. });
        if self.in_flight.len() >= READS_MAX
            || (for_client && (much || self.clients >= CLIENT_READS_MAX))
            || (for_repair && self.repairs >= REPAIR_READS_MAX)
        {
            if let ReadFor::Client { wanted, .. } = what {
                self.refused = Some(wanted);
            }
            return None;
        }
        self.clients += usize::from(for_client);
        self.client_bytes += bytes;
        self.repairs += usize::from(for_repair);
        self.next += 1;
        self.in_flight.insert(ReadId(self.next), what);
        Some(ReadId(self.next))
    }

    /// A client's read gets in line; it comes back if the line is full.
    pub(crate) fn wait(&mut self, partition: PartitionId, wanted: Wanted) -> Result<(), Wanted> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(wanted);
        }
        self.waiting.push_back((partition, wanted));
        Ok(())
    }

    /// The first in line.
    pub(crate) fn next_waiting(&mut self) -> Option<(PartitionId, Wanted)> {
        self.waiting.pop_front()
    }

    /// It stays the first in line.
    pub(crate) fn wait_first(&mut self, partition: PartitionId, wanted: Wanted) {
        self.waiting.push_front((partition, wanted));
    }

    /// Clients' reads in line.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Those in line that nobody waits for any more leave it.
    pub(crate) fn forget(&mut self, gone: impl Fn(&Origin) -> bool) {
        self.waiting.retain(|(_, wanted)| !gone(&wanted.origin));
    }

    /// One more request for damaged entries goes out; false if there are too many.
    pub(crate) fn begin_fetch(&mut self) -> bool {
        let room = self.fetches < FETCHES_MAX;
        self.fetches += usize::from(room);
        room
    }

    /// It was answered, or given up.
    pub(crate) fn end_fetch(&mut self) {
        self.fetches -= 1;
    }

    /// The client's read that [`Self::start`] just refused.
    pub(crate) fn refused(&mut self) -> Option<Wanted> {
        self.refused.take()
    }

    /// The first index that a client's read under way in this partition wants.
    pub(crate) fn first_for_clients(&self, of: PartitionId) -> Option<Index> {
        let reads = self.in_flight.values().filter_map(|what| match what {
            ReadFor::Client { partition, wanted } if *partition == of => Some(wanted.from.max(Index(1))),
            _ => None,
        });
        reads.min()
    }

    /// The read is over.
    pub(crate) fn finish(&mut self, read: ReadId) -> Option<ReadFor> {
        let what = self.in_flight.remove(&read)?;
        self.clients -= usize::from(matches!(what, ReadFor::Client { .. }));
        self.client_bytes -= what.client_bytes();
        self.repairs -= usize::from(matches!(what, ReadFor::Repair { .. }));
        Some(what)
    }

    /// Forgets everything in flight (the log is being reopened) and hands out the clients' reads.
    pub(crate) fn abandon(&mut self) -> Vec<Wanted> {
        (self.clients, self.client_bytes, self.repairs) = (0, 0, 0);
        let in_flight = std::mem::take(&mut self.in_flight).into_values().filter_map(|what| match what {
            ReadFor::Client { wanted, .. } => Some(wanted),
            _ => None,
        });
        in_flight.chain(self.waiting.drain(..).map(|(_, wanted)| wanted)).collect()
    }
}
