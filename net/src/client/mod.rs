//! The client: finds leaders, keeps many requests in flight, and never says *failed* of what it does not know.
//!
//! [`ClientCore`] is the machine without a thread, over any back-end, the simulated one included; [`Client`] runs one on a
//! thread of its own.
//!
//! What it promises (R4):
//! - A plain append is sent again only when the node said that nothing was appended. When its connection breaks or its time
//!   is up after it was sent, its outcome is [`ClientError::Unknown`].
//! - An append of a session is sent again under the same (session, sequence) until its time is up, so it is in the log
//!   at most once.
//! - Requests of one partition on one lane are sent in the order submitted, and sent again in that order. Only a
//!   session keeps them in that order in the log when some are refused for a time and others are not.
//! - Retries are bounded by the request's time, backed off and jittered.
//! - A node that is silent for longer than its share of a request's time is in doubt: others are asked beside it, for all that it may
//!   not have appended already. When another one turns out to lead, the plain appends that the silent one took are unknown.

mod core;
mod handle;
mod link;
mod route;

pub use self::core::{ClientCore, Done};
pub use handle::{Bulk, BulkDone, Client, Either, Pending};

use ::core::time::Duration;
use bytes::Bytes;
use std::net::SocketAddr;
use tidelog::request::{BusyReason, Level, Request, RequestError};
use tidelog_types::{Index, NodeId, PartitionId, SessionKey, SessionRef};

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Where nodes of the cluster are reached: any of them, the others are learned.
    pub addresses: Vec<SocketAddr>,
    /// The cluster's name; a node of another one is refused. Empty: any.
    pub cluster: String,
    /// Connections to each node that is used: lanes are spread over them.
    pub connections_per_node: u32,
    /// Time for a request that names none.
    pub timeout: Duration,
    /// Most requests in flight.
    pub in_flight_max: usize,
    /// Most bytes of payload in flight.
    pub in_flight_bytes_max: usize,
    /// First and longest time before a retry; half of it is random.
    pub back_off: (Duration, Duration),
    /// A connection with requests in flight that receives nothing for this time is given up. Nodes say every half second
    /// that they are there.
    pub link_timeout: Duration,
    /// A connection that sent nothing for this time says that it is there.
    pub keepalive: Duration,
}

impl ClientOptions {
    /// The defaults, for the nodes at `addresses`.
    pub fn new(addresses: Vec<SocketAddr>) -> ClientOptions {
        ClientOptions {
            addresses,
            cluster: String::new(),
            connections_per_node: 1,
            timeout: Duration::from_secs(5),
            in_flight_max: 16 << 10,
            in_flight_bytes_max: 64 << 20,
            back_off: (Duration::from_millis(5), Duration::from_millis(200)),
            link_timeout: Duration::from_secs(3),
            keepalive: Duration::from_secs(5),
        }
    }
}

/// Whom to ask.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Target {
    /// The partition's leader, wherever it is.
    #[default]
    Leader,
    /// This node.
    Node(NodeId),
    /// Who listens there.
    Address(SocketAddr),
}

/// A request and how to place it.
#[derive(Clone, Debug)]
pub struct ClientRequest {
    /// What is asked.
    pub request: Request,
    /// Of whom. A status has no leader: it is asked of a node or an address.
    pub target: Target,
    /// Which of the node's connections; none: one that depends on the partition only, which keeps its requests in order.
    pub lane: Option<u32>,
    /// Time for it, retries included; none: the client's.
    pub timeout: Option<Duration>,
}

impl ClientRequest {
    /// `request`, of the leader.
    pub fn new(request: Request) -> ClientRequest {
        ClientRequest { request, target: Target::Leader, lane: None, timeout: None }
    }

    /// A plain append.
    pub fn append(partition: PartitionId, payload: Bytes) -> ClientRequest {
        let payload_crc = tidelog_types::checksum(&payload);
        ClientRequest::new(Request::Append { partition, session: None, payload, payload_crc })
    }

    /// An append that is in the log at most once.
    pub fn append_once(partition: PartitionId, session: SessionRef, payload: Bytes) -> ClientRequest {
        let payload_crc = tidelog_types::checksum(&payload);
        ClientRequest::new(Request::Append { partition, session: Some(session), payload, payload_crc })
    }

    /// Opens a session, or finds the one open under `key`.
    pub fn open_session(partition: PartitionId, key: SessionKey) -> ClientRequest {
        ClientRequest::new(Request::OpenSession { partition, key })
    }

    /// Reads from `from` to `to`, or the high-water mark.
    pub fn read(partition: PartitionId, from: Index, to: Option<Index>, level: Level) -> ClientRequest {
        let bytes_max = 1 << 20;
        ClientRequest::new(Request::Read { partition, from, to, bytes_max, level })
    }

    /// The state of a node and of its first partitions; the answer's `next_partition` says whether there are more.
    pub fn status(target: Target) -> ClientRequest {
        ClientRequest::status_from(target, PartitionId(0))
    }

    /// The same, from a partition on.
    pub fn status_from(target: Target, first: PartitionId) -> ClientRequest {
        let partitions_max = crate::wire::STATUS_PARTITIONS_MAX;
        ClientRequest::new(Request::Status { first, partitions_max }).at(target)
    }

    /// A snapshot of a partition's state machine on one node.
    pub fn snapshot(partition: PartitionId, target: Target) -> ClientRequest {
        ClientRequest::new(Request::Snapshot { partition }).at(target)
    }

    /// The same, of another.
    #[must_use]
    pub fn at(self, target: Target) -> ClientRequest {
        ClientRequest { target, ..self }
    }

    /// The same, on this lane.
    #[must_use]
    pub fn on_lane(self, lane: u32) -> ClientRequest {
        ClientRequest { lane: Some(lane), ..self }
    }

    /// The same, with this much time.
    #[must_use]
    pub fn within(self, timeout: Duration) -> ClientRequest {
        ClientRequest { timeout: Some(timeout), ..self }
    }

    fn partition(&self) -> PartitionId {
        match &self.request {
            Request::Append { partition, .. }
            | Request::OpenSession { partition, .. }
            | Request::Snapshot { partition }
            | Request::Read { partition, .. } => *partition,
            Request::Status { first, .. } => *first,
        }
    }

    fn bytes(&self) -> usize {
        match &self.request {
            Request::Append { payload, .. } => payload.len(),
            _ => 0,
        }
    }
}

/// Why a request has no good answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// The node's answer, which a retry does not change. Nothing was appended.
    #[error(transparent)]
    Refused(RequestError),
    /// It was sent, and it was not learned what became of it: the record may or may not be in the log.
    #[error("outcome unknown: {why}")]
    Unknown {
        /// What happened, and what to do next.
        why: String,
    },
    /// It was not done in its time. Nothing was appended.
    #[error("not done in time: {why}")]
    Unavailable {
        /// What stood in its way last, and what to do next.
        why: String,
    },
    /// It was not done in its time, and the node that was asked last was busy. Nothing was appended.
    #[error("not done in time, for the node is busy: {why}")]
    Busy {
        /// What the node waits for.
        reason: BusyReason,
        /// Which node, in words, and what to do next.
        why: String,
    },
    /// The client has as much in flight as it may. Nothing was sent.
    #[error(
        "nothing was sent: this client has as many requests in flight as it may; wait for some of them first"
    )]
    Full,
}
