//! From a data directory's log to replicas: what each crate of the house needs of the others at opening.

use crate::formation::Formed;
use crate::identity::Identity;
use crate::options::Options;
use std::collections::BTreeMap;
use tidelog_cluster::{Placement, PlacementError, Ring};
use tidelog_consensus::{DamagedRange, Harm, LoadError, Restored};
use tidelog_types::{EntryMeta, Generation, Index, NodeId, PartitionId, Position, ShardId};
use tidelog_wal::{Lost, RecoveryReport, Replay};

/// Gathers what recovery replays, per partition, for the replicas.
pub(crate) struct Recovering {
    partitions: BTreeMap<PartitionId, Restored>,
    /// Replicas whose saved state is no replica's.
    faults: BTreeMap<PartitionId, LoadError>,
}

impl Recovering {
    pub(crate) fn new(partitions: impl Iterator<Item = PartitionId>) -> Recovering {
        Recovering {
            partitions: partitions.map(|p| (p, Restored::default())).collect(),
            faults: BTreeMap::new(),
        }
    }

    /// A partition's state.
    ///
    /// # Errors
    /// If a checkpoint has it and it cannot be read.
    pub(crate) fn take(&mut self, partition: PartitionId) -> Result<Restored, LoadError> {
        match self.faults.remove(&partition) {
            Some(fault) => Err(fault),
            None => Ok(self.partitions.remove(&partition).unwrap_or_default()),
        }
    }

    fn of(&mut self, partition: PartitionId) -> &mut Restored {
        self.partitions.entry(partition).or_default()
    }
}

impl Replay for Recovering {
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, _payload: &[u8]) {
        self.of(partition).entry(meta);
    }
    fn cut(&mut self, partition: PartitionId, keep: Position) {
        self.of(partition).cut(keep);
    }
    fn promise(&mut self, partition: PartitionId, generation: Generation, vote: Option<NodeId>) {
        self.of(partition).promise(generation, vote);
    }
    fn damaged(&mut self, partition: PartitionId, lost: Lost) {
        let Lost { first, last, generation, suspect } = lost;
        let harm = if suspect { Harm::Suspect } else { Harm::Damaged };
        self.of(partition).damaged(DamagedRange { first, last, generation }, harm);
    }
    fn moved(&mut self, partition: PartitionId, meta: &EntryMeta, _payload: &[u8]) {
        self.of(partition).moved(meta);
    }
    fn high_water(&mut self, partition: PartitionId, mark: Index) {
        self.of(partition).high_water(mark);
    }
    fn checkpoint(&mut self, partition: PartitionId, state: &[u8]) {
        match Restored::load(state) {
            Ok(restored) => _ = self.partitions.insert(partition, restored),
            Err(fault) => _ = self.faults.insert(partition, fault),
        }
    }
    fn low_water(&mut self, partition: PartitionId, first: Index) {
        self.of(partition).low_water(first);
    }
    fn snapshot_mark(&mut self, partition: PartitionId, covered: Position) {
        self.of(partition).snapshot_mark(covered);
    }
}

/// Where every partition's replicas are. Every founder computes the same from the members.
///
/// # Errors
/// If the members cannot hold so many replicas.
pub(crate) fn placement(options: &Options, formed: &Formed) -> Result<Placement, PlacementError> {
    let ring = Ring::new(formed.members.iter().map(|m| m.node));
    Placement::initial(&ring, options.partitions, options.replication)
}

/// The partitions that live on a node, and the voters of each.
pub(crate) fn held(placement: &Placement, node: NodeId) -> BTreeMap<PartitionId, Vec<NodeId>> {
    let held = placement.held_by(node).filter_map(|partition| {
        let mut voters = placement.replicas(partition)?.to_vec();
        voters.sort_unstable();
        Some((partition, voters))
    });
    held.collect()
}

pub(crate) fn wal_options(options: &Options, identity: &Identity, formed: &Formed) -> tidelog_wal::Options {
    tidelog_wal::Options {
        dir: crate::directory::wal_dir(&options.data_dir, ShardId(0)),
        node: options.node,
        shard: ShardId(0),
        store: identity.incarnation,
        cluster_tag: formed.cluster.tag(),
        segment_bytes: options.segment_bytes,
        batch_bytes_max: options.batch_bytes_max,
        in_flight_max: options.batches_in_flight_max,
        spares: options.spares,
        seal_after: options.seal_after,
        cache_bytes_max: options.cache_bytes_max,
        checkpoint_every: options.checkpoint_every,
        log_bytes_target: options.log_bytes_target,
        steady: true,
        scrub_rate: options.scrub_rate,
        scrub_every: options.scrub_every,
        single_voter: options.replication == 1,
        must_exist: identity.has_log,
    }
}

pub(crate) fn replica_config(
    options: &Options,
    partition: PartitionId,
    voters: Vec<NodeId>,
    seed: u64,
) -> tidelog_consensus::Config {
    tidelog_consensus::Config {
        node: options.node,
        partition,
        voters,
        election_timeout: options.election_timeout,
        stall_timeout: options.stall_timeout,
        heartbeat: options.heartbeat,
        in_flight_messages_max: options.in_flight_messages_max,
        in_flight_bytes_max: options.in_flight_bytes_max,
        uncommitted_entries_max: options.uncommitted_entries_max,
        uncommitted_bytes_max: options.uncommitted_bytes_max,
        session_expiry: options.session_expiry,
        seed,
    }
}

/// Where an opening found damage to a partition, in words.
pub(crate) fn place(report: &RecoveryReport, partition: PartitionId) -> String {
    let of = |finding: &&tidelog_wal::Finding| finding.spans.iter().any(|s| s.partition == partition);
    let found: Vec<String> = report.findings.iter().filter(of).take(3).map(ToString::to_string).collect();
    found.join("; ")
}

/// What an opening found, in one line.
pub(crate) fn describe(report: &RecoveryReport) -> String {
    let mut out = format!(
        "epoch {}: {} batches, {} records, {} bytes in {} segments read in {} ms, {} rewritten",
        report.epoch,
        report.batches,
        report.records,
        report.bytes,
        report.segments,
        report.duration.as_millis(),
        report.rewritten
    );
    if let Some(at) = report.checkpoint {
        out.push_str(&format!("; from the checkpoint at LSN {at}"));
    }
    for (lsn, why) in &report.bad_checkpoints {
        out.push_str(&format!("; the checkpoint that ends at LSN {lsn} is bad: {why}"));
    }
    for finding in &report.findings {
        out.push_str(&format!("; {finding}"));
    }
    out
}
