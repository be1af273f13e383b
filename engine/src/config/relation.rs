//! What must hold between keys.

use super::Config;
use super::unit::duration_text;

/// A relation between keys.
pub(super) struct Relation {
    /// The rule, for people.
    pub(super) rule: &'static str,
    /// The keys that it is about; the first is the one to complain about.
    pub(super) keys: &'static [&'static str],
    /// Whether it only deserves a second look.
    pub(super) warning: bool,
    /// What is wrong, if something is.
    pub(super) check: fn(&Config) -> Option<String>,
}

/// Heartbeats that an election time-out must leave room for: one lost message must not depose a leader.
const ELECTION_HEARTBEATS_MIN: u32 = 3;
/// Heartbeats that a channel time-out must leave room for.
const CHANNEL_HEARTBEATS_MIN: u32 = 3;
/// Heartbeats that a channel time-out is expected to leave room for (R7).
const CHANNEL_HEARTBEATS: u32 = 10;

pub(super) static RELATIONS: &[Relation] = &[
    Relation {
        rule: "node.id is the id of one of cluster.nodes",
        keys: &["node.id", "cluster.nodes"],
        warning: false,
        check: |c| {
            let ids: Vec<String> = c.cluster.nodes.iter().map(|n| n.id.to_string()).collect();
            c.own().is_none().then(|| format!("is not among cluster.nodes (ids {})", ids.join(", ")))
        },
    },
    Relation {
        rule: "a node that lists addresses has one for each of its shards",
        keys: &["cluster.nodes", "node.shards", "node.id"],
        warning: false,
        check: |c| {
            let listed = c.own()?.addresses.len() as u64;
            (listed > 1 && listed != u64::from(c.node.shards)).then(|| {
                format!(
                    "lists {listed} addresses for node {}, which has node.shards = {}",
                    c.node.id, c.node.shards
                )
            })
        },
    },
    Relation {
        rule: "cluster.replication is at most the number of cluster.nodes",
        keys: &["cluster.replication", "cluster.nodes"],
        warning: false,
        check: |c| {
            let nodes = c.cluster.nodes.len();
            (c.cluster.replication > nodes).then(|| format!("needs as many cluster.nodes, there are {nodes}"))
        },
    },
    Relation {
        rule: "cluster.replication is odd (a warning)",
        keys: &["cluster.replication"],
        warning: true,
        check: |c| {
            let replication = c.cluster.replication;
            (replication.is_multiple_of(2)).then(|| {
                format!(
                    "is even: {replication} replicas bear the loss of no more nodes than {} do",
                    replication.saturating_sub(1)
                )
            })
        },
    },
    Relation {
        rule: "replication.election_timeout is at least 3 x replication.heartbeat",
        keys: &["replication.election_timeout", "replication.heartbeat"],
        warning: false,
        check: |c| {
            let least = c.replication.heartbeat.saturating_mul(ELECTION_HEARTBEATS_MIN);
            (c.replication.election_timeout < least).then(|| {
                format!(
                    "must be at least {ELECTION_HEARTBEATS_MIN} x replication.heartbeat = {}",
                    duration_text(least)
                )
            })
        },
    },
    Relation {
        rule: "replication.channel_timeout is at least 3 x replication.heartbeat, and 10 x is expected (less is a warning)",
        keys: &["replication.channel_timeout", "replication.heartbeat"],
        warning: false,
        check: |c| {
            let least = c.replication.heartbeat.saturating_mul(CHANNEL_HEARTBEATS_MIN);
            (c.replication.channel_timeout < least).then(|| {
                format!(
                    "must be at least {CHANNEL_HEARTBEATS_MIN} x replication.heartbeat = {}",
                    duration_text(least)
                )
            })
        },
    },
    Relation {
        rule: "",
        keys: &["replication.channel_timeout", "replication.heartbeat"],
        warning: true,
        check: |c| {
            let (timeout, heartbeat) = (c.replication.channel_timeout, c.replication.heartbeat);
            let short = timeout < heartbeat.saturating_mul(CHANNEL_HEARTBEATS)
                && timeout >= heartbeat.saturating_mul(CHANNEL_HEARTBEATS_MIN);
            short.then(|| {
                format!(
                    "is below {CHANNEL_HEARTBEATS} x replication.heartbeat = {}: a busy node may be taken for a dead one",
                    duration_text(heartbeat.saturating_mul(CHANNEL_HEARTBEATS))
                )
            })
        },
    },
    Relation {
        rule: "replication.stall_timeout is at least replication.election_timeout",
        keys: &["replication.stall_timeout", "replication.election_timeout"],
        warning: false,
        check: |c| {
            let (stall, least) = (c.replication.stall_timeout, c.replication.election_timeout);
            (stall < least)
                .then(|| format!("must be at least replication.election_timeout = {}", duration_text(least)))
        },
    },
];
