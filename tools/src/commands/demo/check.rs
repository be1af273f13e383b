//! Reading replicas back: each node from its own log, and the files after the stop.

use super::{Talk, pause};
use crate::commands::read::{Reading, read_all};
use crate::failure::Failure;
use crate::local_cluster::LocalCluster;
use std::collections::BTreeMap;
use std::time::Duration;
use tidelog::request::{Level, NodeStatus, Record};
use tidelog_bench::clock;
use tidelog_io::{BackEnd, IoOptions, open_back_end};
use tidelog_net::{Client, Target};
use tidelog_types::{Index, NodeId, PartitionId, RecordKind, ShardId};
use tidelog_wal::inspect::{self, Item};

/// How long replicas may take to catch up, or partitions to find a leader.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// The state of a node, or nothing if it does not answer.
pub(super) fn status(client: &Client, cluster: &LocalCluster, node: u64) -> Option<NodeStatus> {
    let address = *cluster.addresses().get(node as usize - 1)?;
    client.status(Target::Address(address)).wait().ok()
}

/// Waits until `enough` holds for the status of every node.
pub(super) fn wait_for(
    client: &Client,
    cluster: &LocalCluster,
    what: &str,
    enough: impl Fn(&NodeStatus) -> bool,
) -> Result<(), Failure> {
    let begun = clock::now();
    loop {
        if cluster.nodes().all(|node| status(client, cluster, node).is_some_and(|s| enough(&s))) {
            return Ok(());
        }
        if clock::now().since(begun) > SETTLE_MAX {
            return Err(Failure::failed(format!("after {SETTLE_MAX:?}, not every node {what}")));
        }
        pause(Duration::from_millis(50));
    }
}

/// Waits until every partition has a leader that every node knows, and returns the leaders.
pub(super) fn leaders(
    client: &Client,
    cluster: &LocalCluster,
    partitions: u64,
) -> Result<BTreeMap<u64, u64>, Failure> {
    wait_for(client, cluster, "knows a leader for each partition", |s| {
        s.partitions.len() as u64 == partitions
            && s.partitions.iter().all(|p| p.leader.is_some() && p.high_water > 0)
    })?;
    let status = status(client, cluster, 1).ok_or_else(|| Failure::failed("node 1 does not answer"))?;
    Ok(status.partitions.iter().filter_map(|p| Some((p.partition, p.leader?))).collect())
}

/// Every data record of a partition that a node has in its own log, in order.
pub(super) fn from_node(
    client: &Client,
    node: u64,
    partition: u64,
    each: impl FnMut(Record) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let reading = Reading {
        partition: PartitionId(partition),
        from: Some(Index(1)),
        to: None,
        level: Level::Local,
        target: Target::Node(NodeId(node)),
        timeout: Duration::from_secs(30),
    };
    read_all(client, &reading, each).map(drop)
}

/// What a stopped node's files hold: for each partition its data records by index, each as `keep` made it of the payload.
pub(super) fn from_files<T>(
    cluster: &LocalCluster,
    node: u64,
    talk: &Talk,
    mut keep: impl FnMut(&[u8]) -> T,
) -> Result<BTreeMap<u64, BTreeMap<u64, T>>, Failure> {
    let mut io = open_back_end(BackEnd::Blocking, &IoOptions::small()).map_err(Failure::failed)?;
    let dir = tidelog::wal_dir(&cluster.data_dir(node), ShardId(0));
    let mut logs: BTreeMap<u64, BTreeMap<u64, T>> = BTreeMap::new();
    let report = inspect::walk(&mut *io, &dir, inspect::Eyes::default(), &mut |item| {
        let Item::Record { header, payload, .. } = item else { return };
        let log = logs.entry(header.partition.get()).or_default();
        match header.kind {
            RecordKind::Data => drop(log.insert(header.index.get(), keep(payload))),
            RecordKind::Cut => drop(log.split_off(&header.index.next().get())),
            _ => {}
        }
    })
    .map_err(Failure::failed)?;
    for finding in &report.findings {
        talk.say(format!("  node {node}: {finding}"));
    }
    if report.is_damaged() {
        return Err(Failure::failed(format!(
            "the files of node {node} are damaged: see `tidelog wal verify {}`",
            dir.display()
        )));
    }
    Ok(logs)
}
