//! Settings of a node's network.

use core::time::Duration;
use std::net::SocketAddr;
use tidelog_types::NodeId;

/// What bounds the network of one shard.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most client connections.
    pub client_connections_max: usize,
    /// Most requests in flight on one client connection, answers that have not left included.
    pub requests_in_flight_max: usize,
    /// Most bytes of the same.
    pub request_bytes_in_flight_max: usize,
    /// Most bytes in flight of all clients together.
    pub client_bytes_max: usize,
    /// Most bytes queued to one peer before bulk data is refused.
    pub peer_bytes_max: usize,
    /// Most messages of each lane queued to one peer.
    pub peer_messages_max: usize,
    /// Most connections that have not said who they are.
    pub fresh_connections_max: usize,
    /// Most sessions that a connection opens within [`Limits::session_expiry`].
    pub sessions_per_connection_max: usize,
    /// How long sessions live without use.
    pub session_expiry: Duration,
    /// A client with no request in flight may be closed for a newcomer once it asked nothing for this time.
    pub idle_min: Duration,
    /// While clients wait for memory, one that takes nothing of what was sent to it for this time is gone.
    pub pressed_send_timeout: Duration,
    /// A connection must have said who it is within this time.
    pub first_frame_timeout: Duration,
    /// A frame of a client must have arrived whole within this time of its first byte.
    pub frame_timeout: Duration,
    /// A client that says nothing at all, keepalives included, for this time is gone.
    pub idle_timeout: Duration,
    /// A client that takes nothing of what was sent to it for this time is gone.
    pub send_timeout: Duration,
    /// How often a client that waits for an answer is told that the node is there.
    pub client_keepalive: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            client_connections_max: 768,
            requests_in_flight_max: 4096,
            request_bytes_in_flight_max: 8 << 20,
            client_bytes_max: 256 << 20,
            peer_bytes_max: 16 << 20,
            peer_messages_max: 16 << 10,
            fresh_connections_max: 512,
            sessions_per_connection_max: 256,
            session_expiry: Duration::from_secs(3600),
            idle_min: Duration::from_secs(1),
            pressed_send_timeout: Duration::from_secs(2),
            first_frame_timeout: Duration::from_secs(5),
            frame_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
            client_keepalive: Duration::from_millis(500),
        }
    }
}

/// What [`crate::NetTransport`] is told at its start.
#[derive(Clone, Debug)]
pub struct NetOptions {
    /// This node.
    pub node: NodeId,
    /// All nodes of the cluster and where they listen, this one included.
    pub nodes: Vec<(NodeId, SocketAddr)>,
    /// Where this one listens. Port 0: any free one.
    pub listen: SocketAddr,
    /// A channel that sent nothing for this time says so.
    pub heartbeat: Duration,
    /// A channel that received nothing for this time is down. Ten heartbeats by default; the interval that the peer
    /// names in its hello counts if it is longer.
    pub channel_timeout: Duration,
    /// A second process of a node is heard when the first one's channel was silent for this time.
    pub election_timeout: Duration,
    /// Bounds.
    pub limits: Limits,
}

impl NetOptions {
    /// `node` of `nodes`, listening at its own address there, with the default limits.
    ///
    /// # Panics
    /// If `node` is not one of `nodes`: the configuration's check comes first.
    pub fn new(node: NodeId, nodes: Vec<(NodeId, SocketAddr)>, heartbeat: Duration) -> NetOptions {
        let listen = nodes.iter().find(|(n, _)| *n == node).map(|(_, address)| *address);
        NetOptions {
            node,
            listen: listen.expect("the configuration lists the node itself"),
            nodes,
            heartbeat,
            channel_timeout: heartbeat * CHANNEL_TIMEOUT_HEARTBEATS,
            election_timeout: heartbeat * CHANNEL_TIMEOUT_HEARTBEATS,
            limits: Limits::default(),
        }
    }
}

/// Heartbeat intervals of silence after which a channel is down (R7).
pub const CHANNEL_TIMEOUT_HEARTBEATS: u32 = 10;
