//! Disk reads in flight on a shard: what each is for. Bounded; a read that is refused is tried again by its
//! asker's next turn, or answered with *busy*.

use crate::partition::Wanted;
use std::collections::BTreeMap;
use tidelog_types::{Index, NodeId, PartitionId};
use tidelog_wal::ReadId;

/// Most disk reads in flight.
const READS_MAX: usize = 64;
/// Of these, most for clients: peers and state machines always find room.
const CLIENT_READS_MAX: usize = 32;

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
    repairs: usize,
    fetches: usize,
    in_flight: BTreeMap<ReadId, ReadFor>,
    refused: Option<Wanted>,
}

impl Reads {
    /// Registers a read; none if there are too many.
    pub(crate) fn start(&mut self, what: ReadFor) -> Option<ReadId> {
        let for_client = matches!(what, ReadFor::Client { .. });
        let for_repair = matches!(what, ReadFor::Repair { .. });
        if self.in_flight.len() >= READS_MAX
            || (for_client && self.clients >= CLIENT_READS_MAX)
            || (for_repair && self.repairs >= REPAIR_READS_MAX)
        {
            if let ReadFor::Client { wanted, .. } = what {
                self.refused = Some(wanted);
            }
            return None;
        }
        self.clients += usize::from(for_client);
        self.repairs += usize::from(for_repair);
        self.next += 1;
        self.in_flight.insert(ReadId(self.next), what);
        Some(ReadId(self.next))
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
        self.repairs -= usize::from(matches!(what, ReadFor::Repair { .. }));
        Some(what)
    }

    /// Forgets everything in flight (the log is being reopened) and hands out the clients' reads.
    pub(crate) fn abandon(&mut self) -> Vec<Wanted> {
        (self.clients, self.repairs) = (0, 0);
        std::mem::take(&mut self.in_flight)
            .into_values()
            .filter_map(|what| match what {
                ReadFor::Client { wanted, .. } => Some(wanted),
                _ => None,
            })
            .collect()
    }
}
