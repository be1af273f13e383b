//! A node's configuration: TOML, profiles first, keys over them.
//!
//! Every key stands in one table ([`keys`]) with its name, kind, bounds, default and effect. Reading, checking, showing and
//! explaining follow that table, and so does the page `docs/configuration.md`. What it promises: an unknown key, a
//! value out of bounds or a relation between keys that does not hold is refused, and all complaints come at once, each with key, value, bound and place;
//! no profile and no key weakens what an acknowledgement means (R12). What it does not know: whether the addresses can be reached or the
//! directory exists.

mod builder;
mod document;
mod error;
mod key;
mod page;
mod profile;
mod relation;
mod table;
#[cfg(test)]
mod tests;
pub mod unit;

pub use builder::ConfigBuilder;
pub use error::{At, Complaint, ConfigError};
pub use key::{Key, Scope};
pub use page::{Explanation, reference};
pub use profile::{PROFILES, Profile, ProfileKind};
pub use table::keys;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidelog_types::{NodeId, ShardId};

/// Largest configuration that is read.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// Everything that a node is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Profiles that were named, in the order of their application.
    pub profile: Vec<&'static str>,
    /// `[node]`.
    pub node: NodeSection,
    /// `[cluster]`.
    pub cluster: ClusterSection,
    /// `[io]`.
    pub io: IoSection,
    /// `[wal]`.
    pub wal: WalSection,
    /// `[replication]`.
    pub replication: ReplicationSection,
    /// `[limits]`.
    pub limits: LimitsSection,
    /// `[snapshot]`.
    pub snapshot: SnapshotSection,
    /// `[retention]`.
    pub retention: RetentionSection,
    /// `[scrub]`.
    pub scrub: ScrubSection,
    /// Where each key's value comes from.
    pub origins: BTreeMap<&'static str, Origin>,
    /// What is allowed and still deserves a second look.
    pub warnings: Vec<Complaint>,
}

/// Who this node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeSection {
    /// Its id.
    pub id: NodeId,
    /// Where its data lies; relative to the working directory if it is relative.
    pub data_dir: PathBuf,
    /// Its shards.
    pub shards: u32,
    /// Whether the directory must lie where it was written.
    pub place: PlaceCheck,
}

/// What is made of a data directory whose identity file is not where it was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlaceCheck {
    /// It is refused: it was copied or restored.
    Checked,
    /// Nothing: the file system gives files other inodes at each mount.
    Unchecked,
}

/// The cluster that it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterSection {
    /// Its name.
    pub name: String,
    /// The founders, sorted by id.
    pub nodes: Vec<Founder>,
    /// Number of partitions.
    pub partitions: u64,
    /// Replicas of each partition.
    pub replication: usize,
}

/// One founding node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Founder {
    /// Its id.
    pub id: NodeId,
    /// Where it listens: one address, its shard s being at port + s, or one address for each shard.
    pub addresses: Vec<SocketAddr>,
}

impl Founder {
    /// Where a shard of it listens; none if there is no such port or address.
    pub fn address(&self, shard: ShardId) -> Option<SocketAddr> {
        match self.addresses.as_slice() {
            [base] => {
                let port = u16::try_from(shard.get()).ok().and_then(|s| base.port().checked_add(s))?;
                Some(SocketAddr::new(base.ip(), port))
            }
            many => many.get(usize::try_from(shard.get()).ok()?).copied(),
        }
    }
}

/// Disk and sockets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoSection {
    /// What is behind the seam.
    pub backend: BackEnd,
    /// Bytes of buffers registered with the ring.
    pub registered_memory: usize,
    /// Entries of the submission queue.
    pub ring_entries: u32,
}

/// What is behind the seam.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackEnd {
    /// io_uring.
    Uring,
    /// Plain blocking calls, for hosts where io_uring is forbidden.
    Blocking,
}

/// How a write is made durable. All ways are equally durable; which is fastest depends on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMethod {
    /// The back-end chooses.
    Auto,
    /// Write, then fdatasync.
    Fdatasync,
    /// One write with RWF_DSYNC.
    Dsync,
}

/// The shard's log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalSection {
    /// Bytes of a segment.
    pub segment_size: u64,
    /// How a write is made durable.
    pub sync: SyncMethod,
    /// Most bytes of one batch.
    pub batch_max: usize,
    /// Most batches in flight.
    pub in_flight: usize,
    /// Segments prepared ahead.
    pub spare_segments: usize,
    /// Bytes of log between two checkpoints, at least.
    pub checkpoint_every: u64,
    /// Bytes of segments that a log is kept at.
    pub budget: u64,
    /// Idle time after which the log is sealed.
    pub seal_after: Duration,
    /// Bytes of recent entries kept in memory.
    pub cache: usize,
}

/// Between replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplicationSection {
    /// Time between a leader's heartbeats.
    pub heartbeat: Duration,
    /// Shortest time without a leader before an election.
    pub election_timeout: Duration,
    /// Silence after which a channel is given up.
    pub channel_timeout: Duration,
    /// Age of the oldest write from which on a disk counts as stalled.
    pub stall_timeout: Duration,
    /// Most append messages in flight to a peer.
    pub in_flight_messages: usize,
    /// Most bytes of entries in flight to a peer.
    pub in_flight_bytes: u64,
    /// Most entries of a partition that are proposed and not committed.
    pub uncommitted_entries: u64,
    /// Most bytes of the same.
    pub uncommitted_bytes: u64,
}

/// Bounds towards clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LimitsSection {
    /// Most client connections of a shard.
    pub client_connections: usize,
    /// Most unanswered requests of one connection.
    pub requests_in_flight: usize,
    /// Most bytes of unanswered requests of one connection.
    pub request_bytes_in_flight: usize,
    /// Most bytes of unanswered requests and of answers on their way of all client connections together.
    pub client_bytes: usize,
    /// Most bytes of records of peers that wait for room in the log.
    pub peer_bytes: usize,
    /// Most connections that have not said yet who they are.
    pub unspoken_connections: usize,
    /// Most sessions that one connection opens within the time after which they expire.
    pub sessions_per_connection: usize,
    /// Time without use after which a session expires.
    pub session_expiry: Duration,
    /// Most requests waiting for a shard's turn.
    pub inbox: usize,
}

/// Snapshots of state machines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotSection {
    /// Log bytes between two snapshots of a partition.
    pub every: u64,
    /// Time between two snapshots of a partition; zero: no bound.
    pub interval: Duration,
}

/// What is kept of logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetentionSection {
    /// Entries older than this may go; zero: never for their age.
    pub age: Duration,
    /// Bytes of a log above which the oldest entries may go; zero: never for the size.
    pub bytes: u64,
    /// Most bytes held back for a replica that is behind.
    pub follower_bytes: u64,
    /// Longest time that they are held back.
    pub follower_age: Duration,
    /// Most bytes that a pin holds.
    pub pin_bytes: u64,
    /// Longest time that a pin holds without moving.
    pub pin_age: Duration,
}

/// Looking for damage.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScrubSection {
    /// Bytes read in a second; 0: nothing is scrubbed.
    pub rate: u64,
    /// Least time from the beginning of one pass to that of the next.
    pub every: Duration,
}

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Built in.
    Default,
    /// Follows from other keys, by the rule said.
    Derived(&'static str),
    /// Set by a profile.
    Profile(&'static str),
    /// Written in the configuration.
    Text {
        /// The name of the text.
        origin: String,
        /// Where in it.
        at: At,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Derived(rule) => write!(f, "default, {rule}"),
            Origin::Profile(name) => write!(f, "profile {name}"),
            Origin::Text { origin, at } => write!(f, "{origin}:{}:{}", at.line, at.column),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// If it cannot be read, or all that is wrong with it.
    pub fn load(path: impl AsRef<Path>) -> Result<Config, ConfigError> {
        let path = path.as_ref();
        let unreadable = |why: String| ConfigError::Read { path: path.to_owned(), why };
        let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
        let mut bytes = Vec::new();
        file.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
        if bytes.len() as u64 > TEXT_BYTES_MAX {
            return Err(unreadable(format!("it is larger than {}", unit::size_text(TEXT_BYTES_MAX))));
        }
        let text = String::from_utf8(bytes)
            .map_err(|e| unreadable(format!("it is not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
        Config::parse(&text, &path.display().to_string())
    }

    /// Checks a configuration's text; `origin` is what complaints and origins call it.
    ///
    /// ```
    /// use tidelog::config::Config;
    /// let config = Config::parse(
    ///     r#"
    ///     profile = ["laptop", "balanced"]
    ///     [node]
    ///     id = 1
    ///     data_dir = "data/n1"
    ///     [cluster]
    ///     name = "demo"
    ///     nodes = [{ id = 1, address = "127.0.0.1:7101" }]
    ///     partitions = 8
    ///     "#,
    ///     "node.toml",
    /// )?;
    /// assert_eq!(config.cluster.replication, 1);
    /// # Ok::<(), tidelog::config::ConfigError>(())
    /// ```
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn parse(text: &str, origin: &str) -> Result<Config, ConfigError> {
        document::read(text, origin)
    }

    /// One node with one partition, for development: listens on a free port of the loopback interface.
    ///
    /// ```
    /// let config = tidelog::config::Config::single("data");
    /// assert_eq!((config.cluster.partitions, config.cluster.replication), (1, 1));
    /// ```
    pub fn single(dir: impl Into<PathBuf>) -> Config {
        let mut config = Config::defaults();
        config.node.id = NodeId(1);
        config.node.data_dir = dir.into();
        config.cluster.name = "dev".into();
        let listen = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
        config.cluster.nodes = vec![Founder { id: NodeId(1), addresses: vec![listen] }];
        config.cluster.partitions = 1;
        config.derive_rest();
        config
    }

    /// Sets what a profile sets; keys that were set by hand before are set again.
    ///
    /// # Errors
    /// If there is no such profile.
    pub fn apply_profile(&mut self, name: &str) -> Result<(), ConfigError> {
        let Some(profile) = profile::named(name) else {
            let problem = profile::unknown(name);
            let complaint =
                Complaint { at: None, key: "profile".into(), value: format!("{name:?}"), problem };
            return Err(ConfigError::Invalid { origin: "profile".into(), complaints: vec![complaint] });
        };
        self.set_profile(profile);
        self.derive_rest();
        Ok(())
    }

    /// The same, checked: for a configuration that a program has put together.
    ///
    /// # Errors
    /// All that is wrong with it; places are those of [`Config::to_toml`].
    pub fn checked(&self) -> Result<Config, ConfigError> {
        Config::parse(&self.to_toml(), "configuration")
    }

    /// The effective configuration, every key of it, as text that parses to the same.
    pub fn to_toml(&self) -> String {
        page::effective(self)
    }

    /// This node's own entry among the founders.
    pub fn own(&self) -> Option<&Founder> {
        self.cluster.nodes.iter().find(|n| n.id == self.node.id)
    }

    /// Where a key's value comes from.
    pub fn origin(&self, key: &str) -> &Origin {
        self.origins.get(key).unwrap_or(&Origin::Default)
    }

    /// Everything about a key, with its value here; none if there is no such key.
    pub fn explain(&self, key: &str) -> Option<Explanation<'_>> {
        table::find(key).map(|key| Explanation { key, config: self })
    }

    /// All defaults, with an identity that is still missing.
    fn defaults() -> Config {
        let mut config = Config {
            profile: Vec::new(),
            node: NodeSection {
                id: NodeId(0),
                data_dir: PathBuf::new(),
                shards: 0,
                place: PlaceCheck::Checked,
            },
            cluster: ClusterSection { name: String::new(), nodes: Vec::new(), partitions: 0, replication: 0 },
            io: IoSection { backend: BackEnd::Uring, registered_memory: 0, ring_entries: 0 },
            wal: WalSection {
                segment_size: 0,
                sync: SyncMethod::Auto,
                batch_max: 0,
                in_flight: 0,
                spare_segments: 0,
                checkpoint_every: 0,
                budget: 0,
                seal_after: Duration::ZERO,
                cache: 0,
            },
            replication: ReplicationSection {
                heartbeat: Duration::ZERO,
                election_timeout: Duration::ZERO,
                channel_timeout: Duration::ZERO,
                stall_timeout: Duration::ZERO,
                in_flight_messages: 0,
                in_flight_bytes: 0,
                uncommitted_entries: 0,
                uncommitted_bytes: 0,
            },
            limits: LimitsSection {
                client_connections: 0,
                requests_in_flight: 0,
                request_bytes_in_flight: 0,
                client_bytes: 0,
                peer_bytes: 0,
                unspoken_connections: 0,
                sessions_per_connection: 0,
                session_expiry: Duration::ZERO,
                inbox: 0,
            },
            snapshot: SnapshotSection { every: 0, interval: Duration::ZERO },
            retention: RetentionSection {
                age: Duration::ZERO,
                bytes: 0,
                follower_bytes: 0,
                follower_age: Duration::ZERO,
                pin_bytes: 0,
                pin_age: Duration::ZERO,
            },
            scrub: ScrubSection { rate: 0, every: Duration::ZERO },
            origins: BTreeMap::new(),
            warnings: Vec::new(),
        };
        for key in keys() {
            if let Some(text) = key.default.given() {
                key.set_text(&mut config, text).expect("the table's defaults are within its bounds");
            }
        }
        config
    }

    fn set_profile(&mut self, profile: &'static Profile) {
        for (name, text) in profile.sets {
            let key = table::find(name).expect("profiles set keys of the table");
            key.set_text(self, text).expect("profiles keep to the bounds");
            self.origins.insert(key.name, Origin::Profile(profile.name));
        }
        self.profile.retain(|name| profile::named(name).is_none_or(|p| p.kind != profile.kind));
        self.profile.push(profile.name);
    }

    /// Gives the keys that follow from others their value, unless they have one of their own.
    fn derive_rest(&mut self) {
        for key in keys() {
            if let key::Default::Derived { rule, derive } = key.default
                && matches!(self.origin(key.name), Origin::Default | Origin::Derived(_))
            {
                derive(self);
                self.origins.insert(key.name, Origin::Derived(rule));
            }
        }
    }
}
