//! First frames: who speaks, and why not.

use super::header::{META_BYTES_MAX, TEXT_BYTES_MAX, put_frame};
use super::reader::{Reader, cut, text};
use super::{FrameHeader, FrameKind, WireError};
use tidelog::formation::{Formed, Hello, Member};
use tidelog_types::{ClusterId, Incarnation, NodeId};

/// Most members or nodes in a hello.
const MEMBERS_MAX: usize = 1024;

/// A peer's hello, with what belongs to the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerHello {
    /// What the node says of itself.
    pub hello: Hello,
    /// The dialler's number for the connection.
    pub attempt: u64,
    /// The shard spoken to.
    pub to_shard: u32,
    /// The process spoken to, by the number that it gave itself for this peer; 0: it has not said it yet.
    pub to_process: u64,
}

impl PeerHello {
    /// Appends the frame.
    ///
    /// # Panics
    /// If name and members are over the frame's limit: the configuration bounds both.
    pub fn put(&self, out: &mut Vec<u8>) {
        let h = &self.hello;
        let members = h.formed.as_ref().map_or(&[][..], |f| &f.members);
        assert!(members.len() <= MEMBERS_MAX, "the configuration bounds the number of nodes");
        let mut meta = Vec::with_capacity(80 + 16 * members.len() + h.cluster_name.len());
        for word in [h.node.0, h.incarnation.0, h.process, h.partitions] {
            meta.extend_from_slice(&word.to_le_bytes());
        }
        let name_len = u32::try_from(h.cluster_name.len()).unwrap_or(u32::MAX);
        for word in [
            h.shard,
            h.shard_count,
            h.replication,
            h.key_hash,
            h.payload_bytes_max,
            h.feature_level,
            h.heartbeat_ms,
            name_len,
        ] {
            meta.extend_from_slice(&word.to_le_bytes());
        }
        meta.extend_from_slice(&h.formed.as_ref().map_or(0, |f| f.cluster.0).to_le_bytes());
        meta.extend_from_slice(&u32::try_from(members.len()).unwrap_or(u32::MAX).to_le_bytes());
        meta.extend_from_slice(&[0; 4]);
        for member in members {
            meta.extend_from_slice(&member.node.0.to_le_bytes());
            meta.extend_from_slice(&member.incarnation.0.to_le_bytes());
        }
        meta.extend_from_slice(h.cluster_name.as_bytes());
        put_frame(
            out,
            FrameKind::Hello,
            [self.attempt, u64::from(self.to_shard), self.to_process, u64::from(h.barred), 0],
            &meta,
        );
    }

    /// Reads the frame.
    ///
    /// # Errors
    /// If it is not a valid hello.
    pub fn decode(header: &FrameHeader, meta: &[u8]) -> Result<PeerHello, WireError> {
        let [attempt, to_shard, to_process, barred @ (0 | 1), 0] = header.fields else {
            return Err(WireError::Field("unused fields of a hello"));
        };
        let to_shard = u32::try_from(to_shard).map_err(|_| WireError::Field("shard spoken to"))?;
        let mut r = Reader::new(meta);
        let (node, incarnation, process, partitions) =
            (NodeId(r.u64()?), Incarnation(r.u64()?), r.u64()?, r.u64()?);
        let (shard, shard_count, replication, key_hash) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
        let (payload_bytes_max, feature_level, heartbeat_ms) = (r.u32()?, r.u32()?, r.u32()?);
        let name_len = r.len()?;
        let cluster = ClusterId(r.u64()?);
        let member_count = r.len()?;
        // Openings that are named behind the cluster's name: none in this version, which does not look at them.
        let _openings = r.u32()?;
        if member_count > MEMBERS_MAX {
            return Err(WireError::Field("number of members"));
        }
        if node.0 == 0 || incarnation.0 == 0 || process == 0 {
            return Err(WireError::Field("node id, incarnation or process"));
        }
        let mut members = Vec::with_capacity(member_count);
        for _ in 0..member_count {
            members.push(Member { node: NodeId(r.u64()?), incarnation: Incarnation(r.u64()?) });
        }
        let formed = match (cluster.0, members.is_empty()) {
            (0, true) => None,
            (1.., false) => Some(Formed { cluster, members }),
            _ => return Err(WireError::Field("cluster id")),
        };
        let cluster_name = r.text(name_len, "cluster name")?;
        let hello = Hello {
            cluster_name,
            node,
            incarnation,
            process,
            shard,
            shard_count,
            partitions,
            replication,
            key_hash,
            payload_bytes_max,
            feature_level,
            heartbeat_ms,
            barred: barred == 1,
            formed,
        };
        Ok(PeerHello { hello, attempt, to_shard, to_process })
    }
}

/// For code: why a connection is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum RefusalCode {
    /// Identities do not agree.
    Identity = 1,
    /// Too many connections.
    TooMany = 2,
    /// Not this protocol, or not this version of it.
    Protocol = 3,
    /// Another connection of this pair stays.
    Duplicate = 4,
    /// This is another shard.
    WrongShard = 5,
    /// A client's cluster name is not this cluster's.
    ClusterName = 6,
    /// Another process of the same node has a live channel.
    Doubled = 7,
    /// A message that no correct peer sends.
    Impossible = 8,
}

/// A refusal as received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// For code; none: of a later version.
    pub code: Option<RefusalCode>,
    /// Wrong shard: the one that was reached.
    pub shard: u64,
    /// For people.
    pub reason: String,
}

impl Refusal {
    /// Reads the frame.
    ///
    /// # Errors
    /// If it is not valid.
    pub fn decode(header: &FrameHeader, meta: &[u8]) -> Result<Refusal, WireError> {
        let [code, shard, 0, 0, 0] = header.fields else {
            return Err(WireError::Field("unused fields of a refusal"));
        };
        let code = match code {
            1 => Some(RefusalCode::Identity),
            2 => Some(RefusalCode::TooMany),
            3 => Some(RefusalCode::Protocol),
            4 => Some(RefusalCode::Duplicate),
            5 => Some(RefusalCode::WrongShard),
            6 => Some(RefusalCode::ClusterName),
            7 => Some(RefusalCode::Doubled),
            8 => Some(RefusalCode::Impossible),
            _ => None,
        };
        Ok(Refusal { code, shard, reason: text(meta, "reason")? })
    }
}

/// Appends a *Refused* frame.
pub(crate) fn put_refusal(out: &mut Vec<u8>, code: RefusalCode, shard: u64, reason: &str) {
    let reason = cut(reason, TEXT_BYTES_MAX as usize);
    put_frame(out, FrameKind::Refused, [code as u64, shard, 0, 0, 0], reason.as_bytes());
}

/// Appends a *ClientHello* frame for the cluster named so, or any.
pub(crate) fn put_client_hello(out: &mut Vec<u8>, cluster_name: &str) {
    put_frame(out, FrameKind::ClientHello, [0; 5], cut(cluster_name, TEXT_BYTES_MAX as usize).as_bytes());
}

/// The cluster name that a client expects; empty: any.
///
/// # Errors
/// If the frame is not valid.
pub fn decode_client_hello(header: &FrameHeader, meta: &[u8]) -> Result<String, WireError> {
    if header.fields != [0; 5] {
        return Err(WireError::Field("unused fields of a client's hello"));
    }
    text(meta, "cluster name")
}

/// What a node says to a client first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerHello {
    /// The node.
    pub node: NodeId,
    /// The tag of its cluster, which every record carries as well; none: not formed yet. The cluster's id is told to no client.
    pub cluster: Option<u32>,
    /// Partitions of the cluster.
    pub partitions: u64,
    /// The shard that was reached.
    pub shard: u32,
    /// Shards of the node.
    pub shard_count: u32,
    /// Most requests in flight on the connection.
    pub in_flight_max: u32,
    /// The cluster's name.
    pub cluster_name: String,
    /// Its nodes and their addresses.
    pub nodes: Vec<(NodeId, String)>,
}

impl ServerHello {
    /// Appends the frame.
    ///
    /// # Panics
    /// If name and nodes are over the frame's limit: the configuration bounds both.
    pub fn put(&self, out: &mut Vec<u8>) {
        let mut meta = Vec::new();
        let put_len = |meta: &mut Vec<u8>, len: usize| {
            meta.extend_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
        };
        put_len(&mut meta, self.cluster_name.len());
        put_len(&mut meta, self.nodes.len());
        meta.extend_from_slice(self.cluster_name.as_bytes());
        for (node, address) in &self.nodes {
            meta.extend_from_slice(&node.0.to_le_bytes());
            put_len(&mut meta, address.len());
            meta.extend_from_slice(address.as_bytes());
        }
        assert!(meta.len() <= META_BYTES_MAX as usize, "the configuration bounds name and nodes");
        let shards = u64::from(self.shard) | u64::from(self.shard_count) << 32;
        let fields = [
            self.node.0,
            self.cluster.map_or(0, |tag| 1 << 32 | u64::from(tag)),
            self.partitions,
            shards,
            u64::from(self.in_flight_max),
        ];
        put_frame(out, FrameKind::ServerHello, fields, &meta);
    }

    /// Reads the frame.
    ///
    /// # Errors
    /// If it is not valid.
    pub fn decode(header: &FrameHeader, meta: &[u8]) -> Result<ServerHello, WireError> {
        let [node, cluster, partitions, shards, in_flight] = header.fields;
        let half =
            |word: u64| u32::try_from(word & u64::from(u32::MAX)).map_err(|_| WireError::Field("half"));
        let mut r = Reader::new(meta);
        let (name_len, node_count) = (r.len()?, r.len()?);
        if node_count > MEMBERS_MAX {
            return Err(WireError::Field("number of nodes"));
        }
        let cluster_name = r.text(name_len, "cluster name")?;
        let mut nodes = Vec::new();
        for _ in 0..node_count {
            let node = NodeId(r.u64()?);
            let address_len = r.len()?;
            nodes.push((node, r.text(address_len, "address")?));
        }
        Ok(ServerHello {
            node: NodeId(node),
            cluster: if cluster == 0 { None } else { Some(half(cluster & u64::from(u32::MAX))?) },
            partitions,
            shard: half(shards)?,
            shard_count: half(shards >> 32)?,
            in_flight_max: half(in_flight)?,
            cluster_name,
            nodes,
        })
    }
}
