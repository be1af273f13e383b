//! The shape of a run's cluster and clients, drawn from the seed: small limits, so that rare paths are common.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tidelog::keep::Keep;
use tidelog::options::Options;
use tidelog_consensus::Retention;
use tidelog_net::Limits;
use tidelog_sim::{Random, World};
use tidelog_types::NodeId;

/// Where nodes listen.
pub(crate) const PORT: u16 = 7101;
/// The first client's id in the world.
pub(crate) const CLIENTS_FROM: u64 = 101;

/// Checkpoints, and going over the budget, happen many times in a short run.
const CHECKPOINT_EVERY: u64 = 256 << 10;
const LOG_BYTES_TARGET: u64 = 4 << 20;

/// A receive buffer of a connection at most.
const CONNECTION_BYTES: usize = 1 << 20;
/// Requests and answers of all clients under way.
const CLIENT_BYTES: usize = 16 << 20;
/// Reads of the log under way, scrubbing and checkpoints among them.
const READ_BYTES: usize = 8 << 20;

/// What a seed's cluster is like.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    pub(crate) nodes: Vec<u64>,
    pub(crate) partitions: u64,
    pub(crate) replication: usize,
    pub(crate) election_timeout: Duration,
    pub(crate) heartbeat: Duration,
    /// By how many hundredths each node's election time-out is longer than that.
    patience: Vec<u32>,
    /// Whether replicas have state machines.
    pub(crate) machines: bool,
    pub(crate) payload_max: usize,
    batches_in_flight: usize,
    large: bool,
    cache_bytes: usize,
    spares: usize,
    in_flight_bytes: u64,
    uncommitted_entries: u64,
    pub(crate) clients: u64,
    scrub_rate: u64,
    scrub_every: Duration,
    retention: Retention,
    pub(crate) session_expiry: Duration,
    /// Whether clients write into each other's sessions.
    pub(crate) rivals: bool,
    /// Sessions that a connection may open.
    sessions_per_connection: usize,
    log_bytes_target: u64,
    /// Whether one of three or more nodes becomes a member that lies, in the end.
    pub(crate) liar: bool,
    /// Whether each node is part of a program that appends and reads through the engine's handles.
    pub(crate) embedded: bool,
    /// Bytes of each node's disk, if they are few: what its configuration says that it needs, and a little.
    pub(crate) disk_bytes: Option<u64>,
}

impl Profile {
    /// Draws one.
    pub(crate) fn draw(random: &mut Random) -> Profile {
        let count = Profile::draw_nodes(random);
        let nodes: Vec<u64> = (1..=count).collect();
        // Now and then partitions with fewer replicas than there are nodes.
        let replication = if count > 3 && random.coin() { 3 } else { nodes.len() };
        let large = random.below(8) == 0;
        let election_ms = random.between((150, 500));
        let mut profile = Profile {
            partitions: random.between((1, 4)),
            replication,
            election_timeout: Duration::from_millis(election_ms),
            heartbeat: Duration::from_millis(election_ms / random.between((5, 10))),
            patience: Profile::draw_patience(random, nodes.len()),
            machines: random.below(4) != 0,
            payload_max: if large { 1 << 20 } else { 80 << 10 },
            batches_in_flight: if random.below(4) == 0 { 2 } else { 1 },
            large,
            cache_bytes: usize::try_from(random.between((64 << 10, 2 << 20))).unwrap_or(1 << 20),
            spares: usize::try_from(random.between((1, 2))).unwrap_or(1),
            in_flight_bytes: random.between((32 << 10, 256 << 10)),
            uncommitted_entries: random.between((64, 1024)),
            clients: random.between((2, 4)),
            scrub_rate: random.between((16 << 20, 128 << 20)),
            scrub_every: Duration::from_millis(random.between((1_000, 8_000))),
            retention: Profile::draw_retention(random),
            // Short enough that idle sessions expire within a run, in every third one; in half of these within a fail-over, between two tries
            // of an append.
            session_expiry: Duration::from_millis(match random.below(6) {
                0 => random.between((300, 1_000)),
                1 => random.between((300, 6_000)),
                _ => 3_600_000,
            }),
            rivals: random.below(4) == 0,
            sessions_per_connection: match random.below(4) {
                0 => usize::try_from(random.between((1, 3))).unwrap_or(1),
                _ => 256,
            },
            // Always over it, or never: then space comes back all the same.
            log_bytes_target: if random.coin() { LOG_BYTES_TARGET } else { u64::MAX },
            embedded: random.below(3) == 0,
            disk_bytes: None,
            liar: replication >= 3 && random.below(5) == 0,
            nodes,
        };
        if profile.retention.bytes.is_some() && random.coin() {
            profile.disk_bytes =
                Some(profile.needed_bytes() + random.between((0, 8)) * profile.segment_bytes());
        }
        profile
    }

    /// What a replica keeps at most: what retention asks for, or what it holds back for others if that is more; none: everything.
    pub(crate) fn kept_bytes_max(&self) -> Option<u64> {
        let held_back = Some(self.keep().follower_bytes).filter(|bytes| *bytes < u64::MAX)?;
        self.retention.bytes.map(|bytes| bytes.max(held_back))
    }

    /// What a node says that it needs, with room for snapshots and for what is held back for others.
    const fn needed_bytes(&self) -> u64 {
        let kept = match self.retention.bytes {
            Some(bytes) => bytes * self.partitions,
            None => 0,
        };
        8 * self.segment_bytes() + 2 * kept
    }

    /// Three plain logs of one partition that keep everything, under few clients.
    #[cfg(test)]
    pub(crate) fn plain(random: &mut Random) -> Profile {
        Profile {
            nodes: vec![1, 2, 3],
            replication: 3,
            partitions: 1,
            machines: false,
            large: false,
            payload_max: 80 << 10,
            // Disks are read, or a strike would not be noticed.
            cache_bytes: 64 << 10,
            batches_in_flight: 1,
            retention: Retention { age: None, bytes: None },
            disk_bytes: None,
            liar: false,
            embedded: false,
            ..Profile::draw(random)
        }
    }

    /// Mostly three or five; one, which is its own quorum, and two and four, where one more than half is more than it seems.
    fn draw_nodes(random: &mut Random) -> u64 {
        match random.below(20) {
            0 => 1,
            1 | 2 => 2,
            3 | 4 => 4,
            5..=8 => 5,
            _ => 3,
        }
    }

    fn draw_patience(random: &mut Random, nodes: usize) -> Vec<u32> {
        let differ = random.below(3) == 0;
        let draw = |random: &mut Random| if differ { random.below(100) as u32 } else { 0 };
        (0..nodes).map(|_| draw(random)).collect()
    }

    /// Every third seed lets go of what is too old or too much, whatever snapshots cover.
    fn draw_retention(random: &mut Random) -> Retention {
        let (bytes, age) = (random.between((64 << 10, 2 << 20)), random.between((2_000, 30_000)));
        match random.below(6) {
            0 => Retention { age: None, bytes: Some(bytes) },
            1 => Retention { age: Some(Duration::from_millis(age)), bytes: None },
            _ => Retention { age: None, bytes: None },
        }
    }

    /// Where each node of the cluster listens.
    pub(crate) fn addresses(&self, world: &World) -> Vec<(NodeId, SocketAddr)> {
        self.nodes.iter().map(|node| (NodeId(*node), world.address(*node, PORT))).collect()
    }

    /// Largest batch of a node's log.
    const fn batch_bytes_max(&self) -> usize {
        if self.large { 4 << 20 } else { 512 << 10 }
    }

    /// Length of a segment of a node's log.
    pub(crate) const fn segment_bytes(&self) -> u64 {
        8192 + if self.large { 12 << 20 } else { 5 * (self.batch_bytes_max() as u64) / 2 }
    }

    /// Most bytes of peers' records that wait for room.
    pub(crate) const fn peer_bytes(&self) -> usize {
        if self.large { 4 << 20 } else { 512 << 10 }
    }

    /// Bytes of buffers that a node's bounds come to: see docs/limits.md.
    pub(crate) fn memory_max(&self) -> usize {
        let peers = self.nodes.len() - 1;
        let batch = self.batch_bytes_max().next_power_of_two();
        let clients = usize::try_from(self.clients).unwrap_or(4);
        self.cache_bytes
            + self.peer_bytes()
            + (self.batches_in_flight + 2) * batch
            + peers * (self.lane_bytes() + 2 * CONNECTION_BYTES)
            + clients * 2 * CONNECTION_BYTES
            + CLIENT_BYTES
            + READ_BYTES
    }

    /// Most bytes queued to a peer.
    const fn lane_bytes(&self) -> usize {
        if self.large { 4 << 20 } else { 1 << 20 }
    }

    /// Bounds of a node's network.
    pub(crate) fn net_limits(&self) -> Limits {
        Limits {
            peer_bytes_max: self.lane_bytes(),
            client_bytes_max: CLIENT_BYTES,
            sessions_per_connection_max: self.sessions_per_connection,
            session_expiry: self.session_expiry,
            ..Limits::default()
        }
    }

    /// Most entries proposed and not committed.
    pub(crate) const fn uncommitted_entries_max(&self) -> u64 {
        self.uncommitted_entries
    }

    /// What its nodes keep. A replica that is behind is never left behind: nothing could bring it on yet.
    const fn keep(&self) -> Keep {
        Keep {
            snapshot_every: if self.machines { 96 << 10 } else { u64::MAX },
            snapshot_interval: if self.machines { Some(Duration::from_secs(3)) } else { None },
            retention: self.retention,
            follower_bytes: u64::MAX,
            follower_age: Duration::MAX,
            pin_bytes: u64::MAX,
            pin_age: Duration::MAX,
        }
    }

    /// The election time-out of a node: a third of all clusters have nodes with different ones.
    fn election_timeout_of(&self, node: u64) -> Duration {
        let at = self.nodes.iter().position(|other| *other == node).unwrap_or(0);
        self.election_timeout + self.election_timeout * self.patience.get(at).copied().unwrap_or(0) / 100
    }

    /// The longest of them.
    pub(crate) fn election_timeout_max(&self) -> Duration {
        self.nodes.iter().map(|node| self.election_timeout_of(*node)).max().unwrap_or(self.election_timeout)
    }

    /// The longest time after which a node takes its disk for stalled.
    pub(crate) fn stall_timeout(&self) -> Duration {
        2 * self.election_timeout_max()
    }

    /// A node's settings.
    pub(crate) fn options(&self, node: u64, world: &World) -> Options {
        Options {
            node: NodeId(node),
            data_dir: PathBuf::from("/data/node"),
            place_checked: true,
            cluster_name: "simulated".into(),
            nodes: self.addresses(world),
            partitions: self.partitions,
            replication: self.replication,
            segment_bytes: self.segment_bytes(),
            batch_bytes_max: self.batch_bytes_max(),
            batches_in_flight_max: self.batches_in_flight,
            checkpoint_every: CHECKPOINT_EVERY,
            log_bytes_target: self.log_bytes_target,
            scrub_rate: self.scrub_rate,
            scrub_every: self.scrub_every,
            spares: self.spares,
            seal_after: Duration::from_millis(5),
            cache_bytes_max: self.cache_bytes,
            heartbeat: self.heartbeat,
            election_timeout: self.election_timeout_of(node),
            stall_timeout: self.election_timeout_of(node) * 2,
            in_flight_messages_max: 16,
            in_flight_bytes_max: self.in_flight_bytes,
            uncommitted_entries_max: self.uncommitted_entries,
            uncommitted_bytes_max: 8 << 20,
            peer_bytes_max: self.peer_bytes(),
            session_expiry: self.session_expiry,
            inbox_max: 16,
            keep: self.keep(),
        }
    }
}
