//! Profiles: named sets of values for kinds of devices and for goals.
//!
//! A configuration names at most one of each kind; the device's is applied first, then the goal's, then the keys
//! themselves. No profile touches durability (R12): there is no key for it, and profiles set only what may
//! differ from node to node.

/// What a profile is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProfileKind {
    /// The disk and the host.
    Device,
    /// What the node is tuned for.
    Goal,
}

/// A named set of values.
#[derive(Debug)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// What it is about.
    pub kind: ProfileKind,
    /// When to choose it, and why it sets what it sets.
    pub summary: &'static str,
    /// Keys and values, as one would write them.
    pub sets: &'static [(&'static str, &'static str)],
}

/// All profiles.
pub static PROFILES: &[Profile] = &[
    Profile {
        name: "laptop",
        kind: ProfileKind::Device,
        summary: "A workstation or a laptop, several nodes on one disk perhaps: small files, little memory, three nodes within the usual 8 MiB of locked memory.",
        sets: &[("io.registered_memory", "2MiB"), ("wal.segment_size", "16MiB"), ("wal.cache", "16MiB")],
    },
    Profile {
        name: "cloud-ssd",
        kind: ProfileKind::Device,
        summary: "A virtual machine with a network or virtio disk, whose write cache is volatile and which now and then stalls: larger files, patient elections.",
        sets: &[
            ("io.registered_memory", "16MiB"),
            ("wal.segment_size", "64MiB"),
            ("wal.cache", "128MiB"),
            ("replication.heartbeat", "100ms"),
            ("replication.election_timeout", "1s"),
        ],
    },
    Profile {
        name: "nvme",
        kind: ProfileKind::Device,
        summary: "A local NVMe disk with a volatile write cache: each sync is a flush, so batches are what counts.",
        sets: &[
            ("io.registered_memory", "64MiB"),
            ("wal.segment_size", "256MiB"),
            ("wal.spare_segments", "3"),
            ("wal.cache", "256MiB"),
        ],
    },
    Profile {
        name: "nvme-plp",
        kind: ProfileKind::Device,
        summary: "A data-centre NVMe disk with power-loss protection: a durable write costs what a write costs, so one RWF_DSYNC write without a flush is best.",
        sets: &[
            ("io.registered_memory", "64MiB"),
            ("wal.segment_size", "256MiB"),
            ("wal.sync", "dsync"),
            ("wal.spare_segments", "4"),
            ("wal.cache", "256MiB"),
        ],
    },
    Profile {
        name: "hdd",
        kind: ProfileKind::Device,
        summary: "A rotating disk: a sync takes ten milliseconds and more, so seals are rarer and elections very patient.",
        sets: &[
            ("wal.segment_size", "128MiB"),
            ("wal.seal_after", "100ms"),
            ("replication.heartbeat", "200ms"),
            ("replication.election_timeout", "3s"),
        ],
    },
    Profile { name: "balanced", kind: ProfileKind::Goal, summary: "The defaults of all keys.", sets: &[] },
    Profile {
        name: "latency",
        kind: ProfileKind::Goal,
        summary: "Short queues and quick fail-over: refuses early rather than lets requests wait, and wants a quiet network.",
        sets: &[
            ("replication.heartbeat", "20ms"),
            ("replication.election_timeout", "200ms"),
            ("replication.uncommitted_entries", "8192"),
            ("replication.uncommitted_bytes", "16MiB"),
            ("limits.requests_in_flight", "1024"),
            ("limits.inbox", "4096"),
        ],
    },
    Profile {
        name: "throughput",
        kind: ProfileKind::Goal,
        summary: "Deep queues and much memory: for many pipelined clients and bulk loads.",
        sets: &[
            ("wal.cache", "512MiB"),
            ("wal.spare_segments", "4"),
            ("replication.in_flight_messages", "256"),
            ("replication.in_flight_bytes", "64MiB"),
            ("replication.uncommitted_entries", "262144"),
            ("replication.uncommitted_bytes", "256MiB"),
            ("limits.requests_in_flight", "16384"),
            ("limits.request_bytes_in_flight", "64MiB"),
            ("limits.inbox", "65536"),
        ],
    },
    Profile {
        name: "tiny",
        kind: ProfileKind::Goal,
        summary: "For tests: every bound as low as it goes with sense, so that what is rare elsewhere (a full queue, the next segment, a read from disk) happens all the time.",
        sets: &[
            ("io.registered_memory", "0B"),
            ("io.ring_entries", "64"),
            ("wal.segment_size", "16MiB"),
            ("wal.spare_segments", "1"),
            ("wal.cache", "8MiB"),
            ("replication.in_flight_messages", "4"),
            ("replication.in_flight_bytes", "4MiB"),
            ("replication.uncommitted_entries", "256"),
            ("replication.uncommitted_bytes", "4MiB"),
            ("limits.peer_bytes", "4MiB"),
            ("limits.client_connections", "32"),
            ("limits.requests_in_flight", "64"),
            ("limits.request_bytes_in_flight", "4MiB"),
            ("limits.inbox", "256"),
            ("snapshot.every", "1MiB"),
        ],
    },
];

/// The profile of this name.
pub(super) fn named(name: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|p| p.name == name)
}

/// What to say when there is none.
pub(super) fn unknown(name: &str) -> String {
    let of = |kind: ProfileKind| {
        PROFILES.iter().filter(|p| p.kind == kind).map(|p| p.name).collect::<Vec<_>>().join(", ")
    };
    let shown: String = name.chars().take(40).collect();
    format!(
        "there is no profile {shown:?}; devices: {}; goals: {}",
        of(ProfileKind::Device),
        of(ProfileKind::Goal)
    )
}
