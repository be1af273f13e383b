//! What a shard is told at its start, in the units that it works with.

use crate::config::{Config, PlaceCheck};
use crate::keep::Keep;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tidelog_consensus::Retention;
use tidelog_types::{NodeId, ShardId};

/// Settings of one node's shard. [`crate::config::Config`] is where they come from.
#[derive(Clone, Debug)]
pub struct Options {
    /// This node.
    pub node: NodeId,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Whether a data directory that lies elsewhere than it was written is refused.
    pub place_checked: bool,
    /// Name of the cluster.
    pub cluster_name: String,
    /// The founding nodes and where their shard 0 listens. Sorted by id, this node among them.
    pub nodes: Vec<(NodeId, SocketAddr)>,
    /// Partitions of the cluster.
    pub partitions: u64,
    /// Replicas of each.
    pub replication: usize,
    /// Size of a WAL segment.
    pub segment_bytes: u64,
    /// Largest batch.
    pub batch_bytes_max: usize,
    /// Batches in flight per log.
    pub batches_in_flight_max: usize,
    /// Prepared segments kept ready.
    pub spares: usize,
    /// Bytes of log between two checkpoints, at least.
    pub checkpoint_every: u64,
    /// Bytes that a log is kept at, as far as what is live in it lets it.
    pub log_bytes_target: u64,
    /// Bytes that scrubbing reads in a second; 0: nothing is scrubbed.
    pub scrub_rate: u64,
    /// Least time from the beginning of one pass over the log to that of the next.
    pub scrub_every: Duration,
    /// Idle time after which the log is sealed.
    pub seal_after: Duration,
    /// Bytes of recent entries kept in memory.
    pub cache_bytes_max: usize,
    /// Heartbeat interval.
    pub heartbeat: Duration,
    /// Shortest election time-out.
    pub election_timeout: Duration,
    /// Age of the oldest write from which on a disk counts as stalled.
    pub stall_timeout: Duration,
    /// Append messages in flight to a peer.
    pub in_flight_messages_max: usize,
    /// Bytes of entries in flight to a peer.
    pub in_flight_bytes_max: u64,
    /// Entries of a partition proposed and not committed.
    pub uncommitted_entries_max: u64,
    /// Bytes of the same.
    pub uncommitted_bytes_max: u64,
    /// Bytes of records of peers that wait for room in the log.
    pub peer_bytes_max: usize,
    /// A session expires when it was not used for this long, by replicated time.
    pub session_expiry: Duration,
    /// Commands of this process waiting for the shard.
    pub inbox_max: usize,
    /// What is kept of the logs.
    pub keep: Keep,
}

impl From<&Config> for Options {
    fn from(config: &Config) -> Options {
        let (wal, replication, retention) = (&config.wal, &config.replication, &config.retention);
        let some = |time: Duration| (!time.is_zero()).then_some(time);
        Options {
            node: config.node.id,
            data_dir: config.node.data_dir.clone(),
            place_checked: config.node.place == PlaceCheck::Checked,
            cluster_name: config.cluster.name.clone(),
            nodes: config
                .cluster
                .nodes
                .iter()
                .filter_map(|founder| Some((founder.id, founder.address(ShardId(0))?)))
                .collect(),
            partitions: config.cluster.partitions,
            replication: config.cluster.replication,
            segment_bytes: wal.segment_size,
            batch_bytes_max: wal.batch_max,
            batches_in_flight_max: wal.in_flight,
            spares: wal.spare_segments,
            checkpoint_every: wal.checkpoint_every,
            log_bytes_target: wal.budget,
            scrub_rate: config.scrub.rate,
            scrub_every: config.scrub.every,
            seal_after: wal.seal_after,
            cache_bytes_max: wal.cache,
            heartbeat: replication.heartbeat,
            election_timeout: replication.election_timeout,
            stall_timeout: replication.stall_timeout,
            in_flight_messages_max: replication.in_flight_messages,
            in_flight_bytes_max: replication.in_flight_bytes,
            uncommitted_entries_max: replication.uncommitted_entries,
            uncommitted_bytes_max: replication.uncommitted_bytes,
            peer_bytes_max: config.limits.peer_bytes,
            session_expiry: config.limits.session_expiry,
            inbox_max: config.limits.inbox,
            keep: Keep {
                snapshot_every: config.snapshot.every,
                snapshot_interval: some(config.snapshot.interval),
                retention: Retention {
                    age: some(retention.age),
                    bytes: (retention.bytes > 0).then_some(retention.bytes),
                },
                follower_bytes: retention.follower_bytes,
                follower_age: retention.follower_age,
                pin_bytes: retention.pin_bytes,
                pin_age: retention.pin_age,
            },
        }
    }
}
