//! What a node keeps of its partitions' logs: when it takes snapshots, how old and long a log may be, and how much is
//! held back for replicas that are behind and for pins. From the configuration's `[snapshot]` and `[retention]`.

use std::fmt;
use std::time::Duration;
use tidelog_consensus::Retention;
use tidelog_types::NodeId;

/// The settings, the same for all partitions of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keep {
    /// Bytes applied after which a state machine is asked for a snapshot.
    pub snapshot_every: u64,
    /// Time after which it is asked, if anything was applied; none: never for that reason.
    pub snapshot_interval: Option<Duration>,
    /// What a log may be shortened for without a snapshot.
    pub retention: Retention,
    /// Most bytes held back for a replica that is behind, or might be.
    pub follower_bytes: u64,
    /// Longest time that they are held back.
    pub follower_age: Duration,
    /// Most bytes that a pin holds.
    pub pin_bytes: u64,
    /// Longest time that a pin holds without moving.
    pub pin_age: Duration,
}

/// Why a log does not begin later than it does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HeldBy {
    /// Neither a snapshot nor a log start lets anything go.
    Nothing,
    /// Only a newer snapshot lets more go.
    Snapshot,
    /// Only a later log start lets more go.
    LogStart,
    /// What is not applied here yet.
    Apply,
    /// A read that is under way, or a reader's pin.
    Reader,
    /// A backup's pin.
    Backup,
    /// An entry of which it is not known what it did: while it is kept, a peer can bring it back.
    Repair,
    /// A replica that is behind.
    Follower(NodeId),
    /// This node does not lead, and so does not know how far the others are: if it is elected, it must be able to bring
    /// them on.
    Followers,
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HeldBy::Nothing => f.write_str("no snapshot and no log start"),
            HeldBy::Snapshot => f.write_str("snapshot"),
            HeldBy::LogStart => f.write_str("log_start"),
            HeldBy::Apply => f.write_str("apply"),
            HeldBy::Reader => f.write_str("reader"),
            HeldBy::Backup => f.write_str("backup"),
            HeldBy::Repair => f.write_str("repair"),
            HeldBy::Follower(node) => write!(f, "follower {node}"),
            HeldBy::Followers => f.write_str("followers"),
        }
    }
}
