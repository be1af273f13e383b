//! Who this node is, and how a cluster comes to be.
//!
//! A data directory gets a random incarnation when it is created. The first formation of a cluster needs all
//! its founders: when the founder with the lowest id is connected to every other one, each with a hello of its present life, and none
//! of them is formed yet, it draws the cluster's id, makes (id, every founder's node and incarnation) durable in its own directory and
//! only then says so; a founder that is unformed and finds its own incarnation in that list makes it durable too, and
//! only a formed node runs replicas. Hence no vote exists before identities are durable, a wiped node
//! (another incarnation) can never pass as the founder it was, and an unformed node never campaigns against
//! formed ones.

use tidelog_types::{ClusterId, Incarnation, NodeId};

/// One voter of the cluster, as fixed at its formation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Member {
    /// Configured id.
    pub node: NodeId,
    /// Random name of its data directory.
    pub incarnation: Incarnation,
}

/// What formation fixes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Formed {
    /// Random name of the cluster.
    pub cluster: ClusterId,
    /// All founders, by node id.
    pub members: Vec<Member>,
}

/// What a node says of itself at the start of every peer connection, and again when it becomes formed.
///
/// The handshake compares only what must agree for ever; `heartbeat_ms` and the like are exchanged and
/// checked by predicates where they matter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Name of the cluster in the configuration.
    pub cluster_name: String,
    /// The node.
    pub node: NodeId,
    /// Its data directory.
    pub incarnation: Incarnation,
    /// Random per process start, and another for each peer: a restarted process is another one, and a peer cannot pass for this
    /// process elsewhere.
    pub process: u64,
    /// Shard that speaks.
    pub shard: u32,
    /// Shards of the node.
    pub shard_count: u32,
    /// Partitions of the cluster: fixed at creation.
    pub partitions: u64,
    /// Replicas of each partition: fixed at creation for now.
    pub replication: u32,
    /// Version of key hash and placement ([`crate::MAP_VERSION`]).
    pub key_hash: u32,
    /// Largest payload: format limit.
    pub payload_bytes_max: u32,
    /// Highest feature level that this build speaks.
    pub feature_level: u32,
    /// Heartbeat interval in milliseconds.
    pub heartbeat_ms: u32,
    /// Its directory lacks what it once confirmed: it takes no part.
    pub barred: bool,
    /// Set once formed.
    pub formed: Option<Formed>,
}

/// Why a peer's hello is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HelloRefused {
    /// Another cluster by name.
    #[error(
        "node {node} belongs to the cluster named {theirs:?}, this one to {ours:?}: one of the two has the wrong address or [cluster] name"
    )]
    ClusterName {
        /// Who.
        node: NodeId,
        /// What it says.
        theirs: String,
        /// What we are.
        ours: String,
    },
    /// Another cluster by id.
    #[error(
        "node {node} was formed into another cluster of this name than this node: its data directory belongs to another cluster"
    )]
    ClusterId {
        /// Who.
        node: NodeId,
    },
    /// Not one of the members, or a member's name with another directory.
    #[error(
        "node {node} comes with a data directory that is not the one that is a member: a wiped or foreign directory must not vote; bring the member's own directory back"
    )]
    Incarnation {
        /// Who.
        node: NodeId,
    },
    /// A directory that lacks what it once confirmed.
    #[error(
        "node {node} takes no part: its data directory lacks an entry that it had confirmed, as an older copy of it does. Its own log and status say which"
    )]
    Barred {
        /// Who.
        node: NodeId,
    },
    /// It was formed with other nodes than the configuration lists.
    #[error(
        "node {node} belongs to a cluster of other members than this node's [cluster] nodes: correct the list"
    )]
    Members {
        /// Who.
        node: NodeId,
    },
    /// A node under our own id.
    #[error(
        "a peer calls itself node {node}, which is this node's id: two configurations share one [node] id"
    )]
    OwnId {
        /// The id.
        node: NodeId,
    },
    /// Not in the configuration.
    #[error("node {node} is not in this node's [cluster] nodes")]
    UnknownNode {
        /// Who.
        node: NodeId,
    },
    /// Something that must agree for ever does not.
    #[error(
        "node {node} has {what} = {theirs}, this node has {ours}: it is fixed when a cluster is created and must agree"
    )]
    Mismatch {
        /// Who.
        node: NodeId,
        /// Which setting.
        what: &'static str,
        /// Theirs.
        theirs: u64,
        /// Ours.
        ours: u64,
    },
}

/// What a hello means for a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Both are formed and know each other: the channel may carry messages.
    Established,
    /// One of the two is not formed yet: keep the connection, carry nothing else.
    Forming,
}

impl Formed {
    /// The member that is `node`.
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.iter().find(|m| m.node == node)
    }
}

/// Judges a peer's hello against this node's own and the configured nodes.
///
/// # Errors
/// Says what does not agree. The connection is to be closed, with the reason sent to the peer.
pub fn judge(own: &Hello, configured: &[NodeId], peer: &Hello) -> Result<Verdict, HelloRefused> {
    let node = peer.node;
    if peer.cluster_name != own.cluster_name {
        return Err(HelloRefused::ClusterName {
            node,
            theirs: peer.cluster_name.clone(),
            ours: own.cluster_name.clone(),
        });
    }
    if node == own.node {
        return Err(HelloRefused::OwnId { node });
    }
    if !configured.contains(&node) {
        return Err(HelloRefused::UnknownNode { node });
    }
    for (what, theirs, ours) in [
        ("partitions", peer.partitions, own.partitions),
        ("replication", u64::from(peer.replication), u64::from(own.replication)),
        ("version of key hash and placement", u64::from(peer.key_hash), u64::from(own.key_hash)),
        ("payload limit", u64::from(peer.payload_bytes_max), u64::from(own.payload_bytes_max)),
    ] {
        if theirs != ours {
            return Err(HelloRefused::Mismatch { node, what, theirs, ours });
        }
    }
    let known = |formed: &Formed, node: NodeId, incarnation: Incarnation| match formed.member(node) {
        Some(m) if m.incarnation == incarnation => Ok(()),
        _ => Err(HelloRefused::Incarnation { node }),
    };
    if let (Some(ours), Some(theirs)) = (&own.formed, &peer.formed)
        && ours.cluster != theirs.cluster
    {
        return Err(HelloRefused::ClusterId { node });
    }
    if let Some(formed) = &own.formed {
        known(formed, node, peer.incarnation)?;
    }
    if let Some(formed) = &peer.formed {
        known(formed, own.node, own.incarnation)?;
        // Whoever adopts this list makes it durable: it must be of these founders, and of this very peer.
        known(formed, node, peer.incarnation)?;
        if !formed.members.iter().map(|m| m.node).eq(configured.iter().copied()) {
            return Err(HelloRefused::Members { node });
        }
    }
    for (node, barred) in [(own.node, own.barred), (node, peer.barred)] {
        if barred {
            return Err(HelloRefused::Barred { node });
        }
    }
    Ok(if own.formed.is_some() && peer.formed.is_some() { Verdict::Established } else { Verdict::Forming })
}
