//! How a shard reaches its peers and its clients. The network crate implements it; a single embedded node uses
//! [`NoTransport`].

use crate::config::Config;
use crate::formation::{Formed, Hello};
use bytes::Bytes;
use std::net::SocketAddr;
use tidelog_consensus::Message;
use tidelog_io::{Completion, Io};
use tidelog_types::{Monotonic, NodeId, PartitionId};

use crate::request::{Request, Response};

/// Most connections that a transport keeps open only so that a refusal arrives.
pub const REFUSED_CONNECTIONS_MAX: usize = 256;
/// Connections that a peer may take: its channel, what replaces it, and those that are being dialled.
const PEER_CONNECTIONS_MAX: usize = 6;

/// Most connections of a node: clients, those that have not said who they are, those being refused, and the peers', which
/// have places of their own.
pub fn connections_max(config: &Config) -> usize {
    let limits = &config.limits;
    let peers = config.cluster.nodes.len().saturating_sub(1) * PEER_CONNECTIONS_MAX;
    limits.client_connections + limits.unspoken_connections + REFUSED_CONNECTIONS_MAX + peers
}

/// A message between replicas of one partition, with the bytes of the entries that an append carries.
#[derive(Clone, Debug)]
pub struct PeerMessage {
    /// The partition.
    pub partition: PartitionId,
    /// What is said.
    pub message: Message,
    /// For an append: its records back to back, in one or more pieces (received: exactly one). Otherwise empty.
    pub records: Vec<Bytes>,
}

/// A request of a client, by the transport's own number. Answered exactly once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ClientRef {
    /// The client's connection.
    pub connection: u64,
    /// The request on that connection.
    pub request: u64,
}

/// What a transport reports to its shard.
#[derive(Debug)]
pub enum Event {
    /// A peer whose present life this is said hello, or said it again with something new. `Shard` decides about formation.
    Hello {
        /// What it said.
        hello: Hello,
    },
    /// The channel to a peer is established: identities agreed.
    Up(NodeId),
    /// The channel to a peer is gone, or silent for its time-out; or the connection over which an unformed one said hello.
    Down(NodeId),
    /// A peer does not hear this node, or this node does not hear it: why, for people.
    Refused {
        /// The peer.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// A message of a peer.
    Peer {
        /// From whom.
        from: NodeId,
        /// What.
        message: PeerMessage,
    },
    /// A client asks.
    Request {
        /// To be answered to.
        client: ClientRef,
        /// What it asks.
        request: Request,
    },
    /// A client's connection is gone: what it asked need not be answered.
    ClientGone {
        /// The connection.
        connection: u64,
    },
}

/// The shard's way to the outside, on the shard's own ring. All calls come from the shard's turn.
pub trait Transport {
    /// Listens and begins to dial; `hello` is what this node says of itself. Returns where it listens, if anywhere.
    ///
    /// # Errors
    /// If it cannot listen.
    fn start(&mut self, io: &mut dyn Io, hello: Hello) -> Result<Option<SocketAddr>, crate::Error>;
    /// The cluster is formed, or this node joined it: say the new hello on every connection.
    fn formed(&mut self, io: &mut dyn Io, formed: &Formed);
    /// This node takes no part any more: every channel to a peer ends, and none comes up.
    fn barred(&mut self, io: &mut dyn Io);
    /// A peer sent a message that no correct one sends: its channel ends, and it is told why.
    fn accuse(&mut self, io: &mut dyn Io, node: NodeId, why: &str);
    /// A completion of this transport's.
    fn complete(&mut self, io: &mut dyn Io, completion: Completion, events: &mut Vec<Event>);
    /// Time passed.
    fn tick(&mut self, io: &mut dyn Io, events: &mut Vec<Event>);
    /// When `tick` is wanted next.
    fn deadline(&self) -> Option<Monotonic>;
    /// Queues a message. False: the channel is down or its budget is used up, and the message is dropped; the
    /// replica's progress sends again what matters.
    fn send(&mut self, to: NodeId, message: PeerMessage) -> bool;
    /// Bytes that may still be queued to a peer before `send` refuses bulk data.
    fn room(&self, to: NodeId) -> usize;
    /// Queues an answer.
    fn respond(&mut self, client: ClientRef, response: Response);
    /// End of the turn: everything queued leaves, gathered into one send a connection.
    fn flush(&mut self, io: &mut dyn Io);
}

/// The transport of a single node without a network.
#[derive(Clone, Copy, Debug)]
pub struct NoTransport;

impl Transport for NoTransport {
    fn start(&mut self, _: &mut dyn Io, _: Hello) -> Result<Option<SocketAddr>, crate::Error> {
        Ok(None)
    }
    fn formed(&mut self, _: &mut dyn Io, _: &Formed) {}
    fn barred(&mut self, _: &mut dyn Io) {}
    fn accuse(&mut self, _: &mut dyn Io, _: NodeId, _: &str) {}
    fn complete(&mut self, _: &mut dyn Io, _: Completion, _: &mut Vec<Event>) {}
    fn tick(&mut self, _: &mut dyn Io, _: &mut Vec<Event>) {}
    fn deadline(&self) -> Option<Monotonic> {
        None
    }
    fn send(&mut self, _: NodeId, _: PeerMessage) -> bool {
        false
    }
    fn room(&self, _: NodeId) -> usize {
        0
    }
    fn respond(&mut self, _: ClientRef, _: Response) {}
    fn flush(&mut self, _: &mut dyn Io) {}
}
