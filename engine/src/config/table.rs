//! The table of all keys.

use super::key::{Default, FOUNDERS_MAX, Field, Key, Kind, Number, Scope};
use std::time::Duration;
use tidelog_types::limits::{
    APPEND_BYTES_MAX, BATCH_BYTES_MAX, PAGE_BYTES, PARTITIONS_MAX, PAYLOAD_BYTES_MAX, SEGMENT_BYTES_MAX,
    SEGMENT_BYTES_MIN, VOTERS_MAX,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Longest times that anything is kept for: ten years.
const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Room that any budget of bytes in flight must have: whatever fits one message fits it.
const FLIGHT_BYTES_MIN: u64 = 4 * MIB;
/// A follower's batch takes any append message, a leader's any record.
const BATCH_BYTES_MIN: u64 = APPEND_BYTES_MAX as u64 + 256 * KIB;

const _: () =
    assert!(FLIGHT_BYTES_MIN >= APPEND_BYTES_MAX as u64 && FLIGHT_BYTES_MIN > PAYLOAD_BYTES_MAX as u64);
const _: () = assert!(BATCH_BYTES_MIN <= BATCH_BYTES_MAX as u64);
const _: () = assert!(SEGMENT_BYTES_MIN.is_multiple_of(MIB) && SEGMENT_BYTES_MAX.is_multiple_of(MIB));
const _: () = assert!(FOUNDERS_MAX >= VOTERS_MAX);

/// A field that holds a whole number: the bounds beside it fit its type.
macro_rules! number {
    ($($field:tt)+) => {
        Number {
            get: |config| u64::try_from(config.$($field)+).expect("a count fits 64 bits"),
            set: |config, value| config.$($field)+ = value.try_into().expect("the bounds fit the field"),
        }
    };
}

macro_rules! field {
    ($($field:tt)+) => {
        Field { get: |config| &config.$($field)+, set: |config| &mut config.$($field)+ }
    };
}

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// All keys, in the order in which they are shown.
pub fn keys() -> &'static [Key] {
    KEYS
}

/// The key of this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

static KEYS: &[Key] = &[
    Key {
        name: "node.id",
        scope: Scope::Identity,
        kind: Kind::NodeId(field!(node.id)),
        default: Default::Required,
        effect: "Which of the cluster's nodes this is. Written into the data directory when it is created: another node's directory is refused.",
        later: None,
    },
    Key {
        name: "node.data_dir",
        scope: Scope::Identity,
        kind: Kind::Path(field!(node.data_dir)),
        default: Default::Required,
        effect: "Where this node's log and identity lie; created if it is missing, used by one process at a time. A relative path is relative to the working directory.",
        later: None,
    },
    Key {
        name: "node.shards",
        scope: Scope::Node,
        kind: Kind::Shards(field!(node.shards)),
        default: Default::Given("1"),
        effect: "Cores that this node uses: each shard is a thread with a ring, a log and a port of its own. Fixed when the data directory is created.",
        later: Some("more than one shard: a larger number is refused, and \"auto\" means 1"),
    },
    Key {
        name: "node.place",
        scope: Scope::Node,
        kind: Kind::Place(field!(node.place)),
        default: Default::Given("checked"),
        effect: "Whether a data directory that was copied or restored is refused at the start. Its identity file records its own inode and time of birth; a copy has others. \"unchecked\" is for file systems that give files other inodes at each mount: there a copy is not noticed, and an old one loses what the node confirmed since.",
        later: None,
    },
    Key {
        name: "cluster.name",
        scope: Scope::Cluster,
        kind: Kind::Name(field!(cluster.name)),
        default: Default::Required,
        effect: "The cluster's name, for people: nodes of a cluster with another name are refused. Its identity proper is a random number drawn when it is formed.",
        later: None,
    },
    Key {
        name: "cluster.nodes",
        scope: Scope::Cluster,
        kind: Kind::Founders(field!(cluster.nodes)),
        default: Default::Required,
        effect: "The founding nodes and where peers and clients reach them. A cluster is formed once, when all of them are there. Shard s of a node listens on the address's port + s, or on its own entry of addresses.",
        later: None,
    },
    Key {
        name: "cluster.partitions",
        scope: Scope::Cluster,
        kind: Kind::Count { field: number!(cluster.partitions), min: 1, max: PARTITIONS_MAX },
        default: Default::Required,
        effect: "Number of partitions: independent logs, each with a leader of its own. A key's partition follows from it, hence it never changes.",
        later: None,
    },
    Key {
        name: "cluster.replication",
        scope: Scope::Cluster,
        kind: Kind::Count { field: number!(cluster.replication), min: 1, max: VOTERS_MAX as u64 },
        default: Default::Derived {
            rule: "3, or the number of nodes if there are fewer",
            derive: |config| config.cluster.replication = config.cluster.nodes.len().clamp(1, 3),
        },
        effect: "Replicas of each partition. A record is acknowledged when it is on stable storage on a majority of them, so 3 bears the loss of one and 5 of two; an even number bears no more than the odd one below it.",
        later: None,
    },
    Key {
        name: "io.backend",
        scope: Scope::Node,
        kind: Kind::BackEnd(field!(io.backend)),
        default: Default::Given("uring"),
        effect: "How disk and sockets are reached: io_uring, or plain blocking calls for hosts where io_uring is forbidden (containers often forbid it). The same durability either way.",
        later: None,
    },
    Key {
        name: "io.registered_memory",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(io.registered_memory),
            min: 0,
            max: 16 * GIB,
            step: PAGE_BYTES as u64,
        },
        default: Default::Derived {
            rule: "32MiB for a cluster of one node, otherwise 4MiB",
            derive: |config| {
                config.io.registered_memory =
                    if config.cluster.nodes.len() == 1 { 32 << 20 } else { 4 << 20 };
            },
        },
        effect: "Buffer memory registered with the ring, which saves the kernel work per write. It counts as locked memory (ulimit -l, often 8 MiB for all nodes of a user together); what cannot be registered is used unregistered, and the node says so. 0B registers none.",
        later: None,
    },
    Key {
        name: "io.ring_entries",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(io.ring_entries), min: 64, max: 4_096 },
        default: Default::Given("256"),
        effect: "Disk operations that may be in flight at once; more wait their turn. Sockets have entries of their own, by limits.client_connections; both bounds together fit the largest ring that the kernel makes.",
        later: None,
    },
    Key {
        name: "wal.segment_size",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(wal.segment_size),
            min: SEGMENT_BYTES_MIN,
            max: SEGMENT_BYTES_MAX,
            step: MIB,
        },
        default: Default::Given("64MiB"),
        effect: "Size of a log file. New files are filled with zeros before they are used; those that come back are used again as they are. Space is given back in whole segments, and a disk that does not have four of them is too small.",
        later: None,
    },
    Key {
        name: "wal.sync",
        scope: Scope::Node,
        kind: Kind::Sync(field!(wal.sync)),
        default: Default::Given("auto"),
        effect: "How a batch reaches stable storage: a write and then fdatasync, or one write with RWF_DSYNC. All are equally durable, which is faster depends on the device; auto lets the back-end choose.",
        later: None,
    },
    Key {
        name: "wal.batch_max",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(wal.batch_max),
            min: BATCH_BYTES_MIN,
            max: BATCH_BYTES_MAX as u64,
            step: PAGE_BYTES as u64,
        },
        default: Default::Given("4MiB"),
        effect: "Most bytes that one sync makes durable. Votes never wait behind more than this.",
        later: None,
    },
    Key {
        name: "wal.in_flight",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(wal.in_flight), min: 1, max: 4 },
        default: Default::Given("1"),
        effect: "Batches on their way to the disk at once; the next one grows meanwhile. With 1, any valid batch proves all before it, which makes the end of a log after a crash easiest to judge.",
        later: None,
    },
    Key {
        name: "wal.spare_segments",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(wal.spare_segments), min: 1, max: 16 },
        default: Default::Given("2"),
        effect: "Empty segments kept ready, so that going on to the next one never waits for a file to be filled.",
        later: None,
    },
    Key {
        name: "wal.checkpoint_every",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(wal.checkpoint_every),
            min: MIB,
            max: 64 * GIB,
            step: PAGE_BYTES as u64,
        },
        default: Default::Given("64MiB"),
        effect: "Log written between two checkpoints, at least: about twice as much is read when the log is opened. A large checkpoint comes more seldom, so that checkpoints are at most a sixteenth of what is written.",
        later: None,
    },
    Key {
        name: "wal.budget",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(wal.budget),
            min: 64 * MIB,
            max: 1024 * GIB,
            step: PAGE_BYTES as u64,
        },
        default: Default::Given("4GiB"),
        effect: "Bytes of segments that a log is kept at. Above it, or if the disk has little space left, snapshots are asked for, and what is still live in the oldest segment is moved to the end however much it is; below it only what is cheap is moved. Nothing is refused because of it; what must be kept may take more.",
        later: None,
    },
    Key {
        name: "wal.seal_after",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(wal.seal_after), min: ms(1), max: ms(10_000) },
        default: Default::Given("5ms"),
        effect: "Idle time after which one empty batch is written, so that the last records are proven durable to a later recovery.",
        later: None,
    },
    Key {
        name: "wal.cache",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(wal.cache),
            min: 2 * BATCH_BYTES_MAX as u64,
            max: 64 * GIB,
            step: PAGE_BYTES as u64,
        },
        default: Default::Derived {
            rule: "8MiB for a cluster of one node, which has no followers to serve, otherwise 64MiB",
            derive: |config| {
                config.wal.cache = if config.cluster.nodes.len() == 1 { 8 << 20 } else { 64 << 20 }
            },
        },
        effect: "Most recent log bytes kept in memory: followers and readers near the end are served from it, everything older from disk.",
        later: None,
    },
    Key {
        name: "replication.heartbeat",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(replication.heartbeat), min: ms(5), max: ms(10_000) },
        default: Default::Given("50ms"),
        effect: "Time between the signs of life of a leader and of a channel. Should be the same on all nodes.",
        later: None,
    },
    Key {
        name: "replication.election_timeout",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(replication.election_timeout), min: ms(20), max: ms(100_000) },
        default: Default::Given("500ms"),
        effect: "Shortest time without a leader after which a replica stands for election; the actual time is drawn between it and twice it. A fail-over takes about this long. Should be the same on all nodes.",
        later: None,
    },
    Key {
        name: "replication.channel_timeout",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(replication.channel_timeout), min: ms(20), max: ms(100_000) },
        default: Default::Derived {
            rule: "10 x replication.heartbeat",
            derive: |config| {
                config.replication.channel_timeout = config.replication.heartbeat.saturating_mul(10);
            },
        },
        effect: "Silence after which a connection to a peer is given up and dialled again.",
        later: None,
    },
    Key {
        name: "replication.stall_timeout",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(replication.stall_timeout), min: ms(20), max: ms(1_000_000) },
        default: Default::Derived {
            rule: "2 x replication.election_timeout",
            derive: |config| {
                config.replication.stall_timeout = config.replication.election_timeout.saturating_mul(2);
            },
        },
        effect: "Age of the oldest record that waits for the disk from which on the disk counts as stalled, though it reports no error. A node with a stalled disk helps to elect nobody and does not stand; what it leads it hands over where a majority of the other replicas' disks are steady. Should be longer than any write of a healthy disk takes.",
        later: None,
    },
    Key {
        name: "replication.in_flight_messages",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(replication.in_flight_messages), min: 1, max: 4096 },
        default: Default::Given("64"),
        effect: "Append messages of a partition that may be unanswered by one peer.",
        later: None,
    },
    Key {
        name: "replication.in_flight_bytes",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(replication.in_flight_bytes),
            min: FLIGHT_BYTES_MIN,
            max: 4 * GIB,
            step: 1,
        },
        default: Default::Given("16MiB"),
        effect: "Record bytes of a partition that may be unanswered by one peer. A peer that is slower than that is served from disk later.",
        later: None,
    },
    Key {
        name: "replication.uncommitted_entries",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(replication.uncommitted_entries), min: 16, max: 1 << 24 },
        default: Default::Given("65536"),
        effect: "Records of a partition that a leader has taken and a majority has not yet; above it, appends are answered with busy.",
        later: None,
    },
    Key {
        name: "replication.uncommitted_bytes",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(replication.uncommitted_bytes),
            min: FLIGHT_BYTES_MIN,
            max: 16 * GIB,
            step: 1,
        },
        default: Default::Given("64MiB"),
        effect: "The same bound in bytes.",
        later: None,
    },
    Key {
        name: "limits.client_connections",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(limits.client_connections), min: 1, max: 5_000 },
        default: Default::Given("1024"),
        effect: "Client connections of a shard. When another one comes, the client that has been idle longest (for a second at least) is closed with a reason; if none is idle, the newcomer is refused. Each takes a descriptor: the start checks that all of them, the log and the peers fit the process's limit. Peers have places of their own.",
        later: None,
    },
    Key {
        name: "limits.requests_in_flight",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(limits.requests_in_flight), min: 1, max: 1 << 20 },
        default: Default::Given("4096"),
        effect: "Unanswered requests of one connection; above it the connection is not read until answers have gone out.",
        later: None,
    },
    Key {
        name: "limits.request_bytes_in_flight",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(limits.request_bytes_in_flight),
            min: FLIGHT_BYTES_MIN,
            max: 4 * GIB,
            step: 1,
        },
        default: Default::Given("16MiB"),
        effect: "The same bound in bytes of payload.",
        later: None,
    },
    Key {
        name: "limits.client_bytes",
        scope: Scope::Node,
        kind: Kind::Size {
            field: number!(limits.client_bytes),
            min: FLIGHT_BYTES_MIN,
            max: 64 * GIB,
            step: 1,
        },
        default: Default::Given("256MiB"),
        effect: "Bytes of unanswered requests, of answers on their way, and of what has arrived of large requests, of all client connections of a shard together. Above it clients are not read until answers have gone out; the one that has waited longest always goes on. At most half of it is for requests that have not arrived whole.",
        later: None,
    },
    Key {
        name: "limits.unspoken_connections",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(limits.unspoken_connections), min: 16, max: 5_000 },
        default: Default::Given("512"),
        effect: "Connections of a shard that have not said yet whether they are a client or a peer. When another one comes, the oldest of them is refused. Each takes a descriptor.",
        later: None,
    },
    Key {
        name: "limits.sessions_per_connection",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(limits.sessions_per_connection), min: 1, max: 1 << 20 },
        default: Default::Given("256"),
        effect: "Sessions that one client connection opens within limits.session_expiry; above it, opening another is refused. A partition has at most 4096 sessions: this keeps one client from taking all of them.",
        later: None,
    },
    Key {
        name: "limits.session_expiry",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(limits.session_expiry), min: ms(1_000), max: YEARS },
        default: Default::Given("1h"),
        effect: "Time after which a session that appended nothing expires: its requests are refused from then on, retries included, and its place is free. Counted in replicated time, so all replicas see the same. The value is written into the log with each session when it is opened, and counts for that session's whole life. Should be the same on all nodes: the leader's counts.",
        later: None,
    },
    Key {
        name: "limits.peer_bytes",
        scope: Scope::Node,
        kind: Kind::Size { field: number!(limits.peer_bytes), min: FLIGHT_BYTES_MIN, max: 64 * GIB, step: 1 },
        default: Default::Given("64MiB"),
        effect: "Bytes of records that a shard has received from its peers and that its log has no room for yet, because its disk is slow or hangs; above it further ones are dropped, and the leader sends them again later. Heartbeats and votes need none of it.",
        later: None,
    },
    Key {
        name: "limits.inbox",
        scope: Scope::Node,
        kind: Kind::Count { field: number!(limits.inbox), min: 16, max: 1 << 20 },
        default: Default::Given("16384"),
        effect: "Requests of the embedding program that may wait for a shard's turn; above it they are refused as busy.",
        later: None,
    },
    Key {
        name: "snapshot.every",
        scope: Scope::Node,
        kind: Kind::Size { field: number!(snapshot.every), min: MIB, max: 1 << 40, step: 1 },
        default: Default::Given("64MiB"),
        effect: "Log bytes of a partition after which its state machine is asked for a snapshot. A partition without a state machine has none.",
        later: None,
    },
    Key {
        name: "snapshot.interval",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(snapshot.interval), min: ms(0), max: YEARS },
        default: Default::Given("0s"),
        effect: "Time after which a state machine is asked for a snapshot, if anything was applied since the last. 0s: only by bytes.",
        later: None,
    },
    Key {
        name: "retention.age",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(retention.age), min: ms(0), max: YEARS },
        default: Default::Given("0s"),
        effect: "Records older than this are let go, by replicated time: the leader proposes a later start of the log, the same for all replicas. 0s: never for their age. Should be the same on all nodes: the leader's counts.",
        later: None,
    },
    Key {
        name: "retention.bytes",
        scope: Scope::Node,
        kind: Kind::Size { field: number!(retention.bytes), min: 0, max: 1 << 50, step: 1 },
        default: Default::Given("0B"),
        effect: "Bytes of a partition's log above which its oldest records are let go, in the same way. 0B: never for the size. Where a record lies is known to a 64th of the log, and to an eighth for what is older than a restart: so much more may go. Should be the same on all nodes: the leader's counts.",
        later: None,
    },
    Key {
        name: "retention.follower_bytes",
        scope: Scope::Node,
        kind: Kind::Size { field: number!(retention.follower_bytes), min: 0, max: 1 << 50, step: 1 },
        default: Default::Given("64MiB"),
        effect: "Log bytes of a partition that are held back, although a snapshot or the log's start lets them go, for a replica that is behind. A replica that does not lead keeps as much in case it is elected. Beyond it, a replica needs a snapshot.",
        later: None,
    },
    Key {
        name: "retention.follower_age",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(retention.follower_age), min: ms(0), max: YEARS },
        default: Default::Given("1h"),
        effect: "Time for which they are held back: for a replica that has confirmed nothing new for so long, nothing is.",
        later: None,
    },
    Key {
        name: "retention.pin_bytes",
        scope: Scope::Node,
        kind: Kind::Size { field: number!(retention.pin_bytes), min: 0, max: 1 << 50, step: 1 },
        default: Default::Given("1GiB"),
        effect: "Log bytes of a partition that a reader's or a backup's pin holds back on this node. One that would hold more ends.",
        later: None,
    },
    Key {
        name: "retention.pin_age",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(retention.pin_age), min: ms(0), max: YEARS },
        default: Default::Given("10min"),
        effect: "Time for which a pin holds without being moved on. One that stands still for longer ends.",
        later: None,
    },
    Key {
        name: "scrub.rate",
        scope: Scope::Node,
        kind: Kind::Size { field: number!(scrub.rate), min: 0, max: 64 * GIB, step: 1 },
        default: Default::Given("16MiB"),
        effect: "Bytes of its log that a shard reads in a second to look for damage, which is then repaired from the other replicas while they still have what was lost. Reads wait for moments without a write; on a log that has none they are fewer. 0B: damage to what nobody reads is not found.",
        later: None,
    },
    Key {
        name: "scrub.every",
        scope: Scope::Node,
        kind: Kind::Time { field: field!(scrub.every), min: ms(100), max: YEARS },
        default: Default::Given("24h"),
        effect: "Least time from the beginning of one pass over the log to that of the next. The first one begins when the log is opened.",
        later: None,
    },
];
