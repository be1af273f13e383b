//! What clients ask, in process and over the network, and what they are answered.

use bytes::Bytes;
use std::time::Duration;
use tidelog_types::{
    Generation, Index, NodeId, PartitionId, Position, ReplicatedMs, Sequence, SessionId, SessionKey,
    SessionRef,
};

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Level {
    /// Reflects everything acknowledged before the read began; served by the leader after a quorum round.
    #[default]
    Linearizable,
    /// This node's own log up to its own high-water mark, without asking anyone.
    Local,
}

/// A request of a client.
#[derive(Clone, Debug)]
pub enum Request {
    /// Append one record.
    Append {
        /// To which partition.
        partition: PartitionId,
        /// At most once under this (session, sequence).
        session: Option<SessionRef>,
        /// The record's payload.
        payload: Bytes,
        /// Its CRC32C, as the client computed it.
        payload_crc: u32,
    },
    /// Open a session, or find the one that is open under the same key.
    OpenSession {
        /// In which partition.
        partition: PartitionId,
        /// The client's name for it.
        key: SessionKey,
    },
    /// Read committed records.
    Read {
        /// Of which partition.
        partition: PartitionId,
        /// First index wanted.
        from: Index,
        /// Last index wanted; none: the high-water mark.
        to: Option<Index>,
        /// Most record bytes in the answer; at least one record is returned whatever it says.
        bytes_max: u32,
        /// How fresh.
        level: Level,
    },
    /// Take a snapshot of a partition's state machine on this node.
    Snapshot {
        /// Of which partition.
        partition: PartitionId,
    },
    /// State of this node and of some of its partitions.
    Status {
        /// The first partition wanted.
        first: PartitionId,
        /// Most of them in the answer.
        partitions_max: u32,
    },
}

impl Request {
    /// The partition that it is about, if it is about one.
    pub(crate) fn partition(&self) -> Option<PartitionId> {
        match self {
            Request::Append { partition, .. }
            | Request::OpenSession { partition, .. }
            | Request::Snapshot { partition }
            | Request::Read { partition, .. } => Some(*partition),
            Request::Status { .. } => None,
        }
    }
}

/// An answer.
pub type Response = Result<Reply, RequestError>;

/// A good answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// The record is durable on a quorum.
    Appended {
        /// Where.
        position: Position,
    },
    /// The session is open.
    SessionOpened {
        /// Its id.
        session: SessionId,
        /// The entry that opened it.
        position: Position,
    },
    /// Committed records.
    Records(Records),
    /// A snapshot is durable, verified, and marked in the log.
    Snapshot {
        /// The last entry that it covers.
        covered: Position,
        /// Bytes in it; 0 if it was there already, because nothing was applied since.
        bytes: u64,
    },
    /// State.
    Status(Box<NodeStatus>),
}

/// Records of a read: those of one piece of the log, no-ops and session openings included, back to back in
/// their one encoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Records {
    /// Index behind the last record of this answer: where to go on.
    pub next: Index,
    /// The answering node's high-water mark (at a linearizable read: the mark that the read is valid for, or higher).
    pub high_water: Index,
    /// First index that can be read from that node.
    pub first_readable: Index,
    /// The records' bytes, whole records only.
    pub records: Vec<Bytes>,
}

/// State of a node.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct NodeStatus {
    /// Configured id.
    pub node: u64,
    /// Where clients and peers reach it.
    pub address: String,
    /// Shards.
    pub shards: u32,
    /// Since the process started.
    pub uptime_ms: u64,
    /// Of the program.
    pub version: String,
    /// A tag of the cluster in hex, by which nodes of one cluster are known; empty before formation. Its id is told to no client.
    pub cluster: String,
    /// Why the node does not serve its log, or takes no part in the cluster; empty if neither.
    #[serde(default)]
    pub waiting: String,
    /// Peers whose channel is established.
    pub connected: Vec<u64>,
    /// Its replicas, or those asked for.
    pub partitions: Vec<PartitionStatus>,
    /// The partition behind them, if there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_partition: Option<u64>,
    /// The node's wall clock when it answered, in milliseconds since 1970.
    #[serde(default)]
    pub wall_ms: u64,
    /// For so long the oldest record has waited for the disk, if that is a stall; 0: the disk takes what it is given.
    #[serde(default)]
    pub stalled_ms: u64,
    /// For so long the node still ranks behind others when a leader is elected, because its disk stalled not long ago.
    #[serde(default)]
    pub ranks_behind_ms: u64,
    /// How often its disk has stalled since the process started.
    #[serde(default)]
    pub stalls: u64,
    /// Bytes of records of peers that wait for room in the log.
    #[serde(default)]
    pub waiting_bytes: u64,
    /// Bytes that the data directory's file system has free, as it said within the last seconds; none: it was not asked yet.
    #[serde(default)]
    pub disk_free_bytes: Option<u64>,
    /// Bytes that the configuration needs there, what the log has taken included: below that it takes no records, or keeps less than
    /// `retention.bytes` says.
    #[serde(default)]
    pub disk_needed_bytes: u64,
    /// Bytes that the log has taken: its segments, and those that are prepared.
    #[serde(default)]
    pub disk_log_bytes: u64,
    /// What is wrong with the space, in words; empty: nothing.
    #[serde(default)]
    pub disk_trouble: String,
    /// What looking for damage came to, by shard, since its log was opened.
    #[serde(default)]
    pub scrub: Vec<ScrubStatus>,
}

/// What a shard's scrubbing came to.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct ScrubStatus {
    /// Which shard.
    pub shard: u32,
    /// Passes that came to the log's end.
    pub passes: u64,
    /// Bytes read in the pass under way, or in the last one.
    pub bytes: u64,
    /// Entries found damaged and given to repair, or found in a bad place and written again.
    pub repaired: u64,
    /// Bad places in which nothing lay that counts.
    pub superseded: u64,
    /// Summaries of segments, and copies of their headers, that were bad and were written again.
    #[serde(default)]
    pub rewritten: u64,
    /// The last bad place, in words; empty if there was none.
    pub last: String,
}

/// State of one replica.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct PartitionStatus {
    /// Which partition.
    pub partition: u64,
    /// leader, follower, candidate, learner.
    pub role: String,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// Its generation.
    pub generation: u64,
    /// Highest index known committed, inclusive.
    pub high_water: u64,
    /// First index that this node keeps, for itself and its peers.
    pub low_water: u64,
    /// First index that can be read from this node: what is kept, from the log start on.
    #[serde(default)]
    pub first_readable: u64,
    /// First index that readers may see, by what all replicas agreed on.
    #[serde(default)]
    pub log_start: u64,
    /// Highest index that this node's newest snapshot covers; 0: none.
    #[serde(default)]
    pub snapshot: u64,
    /// Why the log does not begin later: `snapshot`, `log_start` (a newer one would let more go), `apply`, `reader`, `backup` (a pin), `repair`,
    /// `follower N` (it is behind), `followers` (this node does not lead, and must be able to), `no snapshot and no log start`.
    #[serde(default)]
    pub low_water_held_by: String,
    /// At a leader: replicas that need a snapshot, because what they lack is not kept any more.
    #[serde(default)]
    pub needs_snapshot: Vec<u64>,
    /// Highest index durable here.
    pub durable: u64,
    /// Highest index applied here; none: the partition has no state machine.
    pub applied: Option<u64>,
    /// How many entries the high-water mark here is behind the highest one that was seen; filled in by those who ask several nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<u64>,
    /// Highest index appended here.
    pub last: u64,
    /// Voters.
    pub voters: Vec<u64>,
    /// Learners.
    pub learners: Vec<u64>,
    /// Damaged entries.
    pub damaged: u64,
    /// At a leader: replicas that lack what they had confirmed to it, and are counted no more.
    #[serde(default)]
    pub lost: Vec<u64>,
    /// The leader wants other entries where this replica knows its own to be committed, and is not followed.
    #[serde(default)]
    pub contradicted: bool,
    /// Messages that no correct peer sends, and messages of generations that no election explains.
    #[serde(default)]
    pub refused_messages: u64,
}

/// Why a request was not done. [`RequestError::Unknown`] is not a failure: the record may be in the log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// Ask the leader.
    #[error("this node does not lead the partition{}", match .hint { Some(n) => format!(": ask node {n}"), None => ", and knows of no leader: try again when one is elected".into() })]
    NotLeader {
        /// Who leads, as far as this node knows.
        hint: Option<NodeId>,
        /// Where it is reached.
        address: Option<String>,
    },
    /// Too much is in flight, or there is no space: try again later. Nothing was appended.
    #[error("busy: {reason}, try again in {} ms", .retry_after.as_millis())]
    Busy {
        /// When.
        retry_after: Duration,
        /// What has to end first.
        reason: BusyReason,
    },
    /// A newer holder of the lease has appended: this token is void.
    #[error(
        "fenced: the partition has seen a higher token, so another holder has the lease; stop, and acquire it again"
    )]
    Fenced,
    /// The records before `first` are gone.
    #[error("truncated: records before index {first} are not kept any more; read from there on")]
    Truncated {
        /// First index still kept.
        first: Index,
    },
    /// It was not learned whether the record entered the log: a retry under the same (session, sequence) tells.
    #[error(
        "outcome unknown: the record may or may not be in the log; read the log to tell, or send it again under the same session and sequence"
    )]
    Unknown,
    /// There is no such session (any more).
    #[error("no such session: it never existed in this partition, or has expired; open one")]
    SessionExpired,
    /// As many sessions are open as may be. Nothing was opened.
    #[error("no session was opened: {scope} has {limit}, as many as it may have; one that is not used expires in {} s at the earliest", .retry_after.as_secs())]
    SessionsFull {
        /// Where there is no room.
        scope: SessionScope,
        /// The bound.
        limit: u64,
        /// When there may be room again.
        retry_after: Duration,
    },
    /// This sequence is in the log with another payload: nothing was appended, and what was sent now never will be under it.
    #[error(
        "the sequence is in the log already, at index {index}, with another payload: a sequence names one record; go on with the next one"
    )]
    SequenceReused {
        /// The entry that has the sequence.
        index: Index,
    },
    /// Sequences of a session are dense.
    #[error("sequence gap: the session's next sequence is {expected}; send that one first")]
    SequenceGap {
        /// What comes next.
        expected: Sequence,
    },
    /// Already in the log, too long ago to say where: the newest 4096 of a session can be asked for.
    #[error("the sequence is in the log, too long ago to say at which index; it need not be sent again")]
    SequenceTooOld,
    /// The payload is over the limit.
    #[error("payload of {bytes} bytes is over the limit of {limit}: send it in pieces")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The payload does not match its checksum.
    #[error("payload does not match its checksum: it was changed on the way; send it again")]
    Checksum,
    /// No such partition, or no replica of it here.
    #[error("there is no partition {0} here: `tidelog status` shows which there are")]
    NoSuchPartition(PartitionId),
    /// The index asked for is above the high-water mark.
    #[error(
        "index {asked} is above the high-water mark {high_water}: nothing is committed there yet; read up to the mark, or later"
    )]
    Ahead {
        /// Wanted.
        asked: Index,
        /// What there is.
        high_water: Index,
    },
    /// The node is not part of a formed cluster yet, or is shutting down, or its shard is being recovered.
    #[error("the node cannot serve this now: {0}")]
    Unavailable(String),
    /// The request itself is wrong.
    #[error("invalid request: {0}")]
    Invalid(String),
}

impl RequestError {
    /// Too much is in flight; the time to wait before the next try.
    pub const fn busy(retry_after: Duration) -> RequestError {
        RequestError::Busy { retry_after, reason: BusyReason::Load }
    }
}

/// Whose table of sessions is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionScope {
    /// The partition's.
    Partition,
    /// That of the client's connection.
    Connection,
}

impl core::fmt::Display for SessionScope {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            SessionScope::Partition => "the partition",
            SessionScope::Connection => "this connection",
        })
    }
}

/// Why a node is busy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusyReason {
    /// As much is in flight as may be.
    Load,
    /// There is no space for another segment: until space is back, only votes and promises are written.
    DiskFull,
}

impl core::fmt::Display for BusyReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            BusyReason::Load => "too much is in flight",
            BusyReason::DiskFull => "the disk is full",
        })
    }
}

/// One committed record, decoded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Its index.
    pub index: Index,
    /// Its generation.
    pub generation: Generation,
    /// Replicated time.
    pub timestamp: ReplicatedMs,
    /// Payload.
    pub payload: Bytes,
}
