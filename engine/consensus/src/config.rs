//! What a replica is told at its start.

use core::time::Duration;
use tidelog_types::{NodeId, PartitionId};

/// Settings of one replica. Times may differ per node; the voters must agree.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// The partition.
    pub partition: PartitionId,
    /// All voters, this node among them (or not: then it never campaigns). Sorted, distinct, 1..=9.
    pub voters: Vec<NodeId>,
    /// Shortest time without a leader before a campaign; the actual time is drawn from [1, 2) of it.
    pub election_timeout: Duration,
    /// Age of the oldest write from which on a disk counts as stalled. A peer's disk whose oldest write has half of this age is not
    /// steady.
    pub stall_timeout: Duration,
    /// Time between heartbeats of a leader.
    pub heartbeat: Duration,
    /// Most append messages in flight to one peer.
    pub in_flight_messages_max: usize,
    /// Most bytes of entries in flight to one peer.
    pub in_flight_bytes_max: u64,
    /// Most entries proposed and not yet committed; above it proposals are refused as busy.
    pub uncommitted_entries_max: u64,
    /// Most bytes of the same.
    pub uncommitted_bytes_max: u64,
    /// A session that this replica opens as a leader expires when it was not used for this long, by replicated time. Zero:
    /// never.
    pub session_expiry: Duration,
    /// Seed of the replica's own randomness (election jitter only).
    pub seed: u64,
}
