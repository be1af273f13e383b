//! What a shard says of itself.

use super::Shard;
use crate::request::{NodeStatus, PartitionStatus, ScrubStatus};
use crate::space::Need;
use tidelog_types::{NodeId, PartitionId};
use tidelog_wal::ScrubStats;

impl Shard {
    /// State of this node and its replicas.
    pub fn status(&self) -> NodeStatus {
        self.status_of(PartitionId(0), u32::MAX)
    }

    /// The same, with at most `partitions_max` of its replicas, from `first` on.
    pub(crate) fn status_of(&self, first: PartitionId, partitions_max: u32) -> NodeStatus {
        let most = usize::try_from(partitions_max).unwrap_or(usize::MAX);
        let next_partition = self.life.as_ref().and_then(|life| {
            let mut from = life.replicas.partitions.iter().map(|(id, _)| id).filter(|id| *id >= first);
            from.nth(most).map(PartitionId::get)
        });
        let partitions = self.life.as_ref().map_or_else(Vec::new, |life| {
            life.replicas
                .partitions
                .iter()
                .filter(|(id, _)| *id >= first)
                .take(most)
                .map(|(id, p)| {
                    let (replica, marks) = (p.replica(), p.marks());
                    let reader = life.reads.first_for_clients(id);
                    let (_, held_by) = p.needed(self.clock, reader);
                    let needs = replica.followers().filter(|peer| peer.needs_snapshot);
                    PartitionStatus {
                        partition: id.get(),
                        role: replica.role().to_string(),
                        leader: replica.leader().map(NodeId::get),
                        generation: replica.generation().get(),
                        high_water: marks.high_water.get(),
                        low_water: replica.marks().low_water.get(),
                        first_readable: marks.first_readable.get(),
                        log_start: replica.log_start().get(),
                        snapshot: replica.snapshot().index.get(),
                        low_water_held_by: held_by.to_string(),
                        needs_snapshot: needs.map(|peer| peer.node.get()).collect(),
                        durable: marks.durable.get(),
                        applied: p.applied().map(|index| index.get()),
                        lag: None,
                        last: replica.marks().last.get(),
                        voters: replica.voters().iter().map(|n| n.get()).collect(),
                        learners: vec![],
                        damaged: replica.damaged_entries(),
                        lost: replica.lost_peers().map(|(node, _)| node.get()).collect(),
                        contradicted: replica.is_contradicted(),
                        refused_messages: replica.malformed() + replica.jumps(),
                    }
                })
                .collect()
        });
        NodeStatus {
            node: self.options.node.get(),
            address: self.address.map(|a| a.to_string()).unwrap_or_default(),
            shards: self.identity.shard_count,
            uptime_ms: u64::try_from(self.clock.now.since(self.started).as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self
                .identity
                .formed
                .as_ref()
                .map(|f| format!("{:08x}", f.cluster.tag()))
                .unwrap_or_default(),
            waiting: self.waiting().unwrap_or_default(),
            connected: self.connected.iter().map(|n| n.get()).collect(),
            partitions,
            next_partition,
            wall_ms: self.clock.wall.get(),
            stalled_ms: self.disk.stalled_ms(),
            ranks_behind_ms: self.disk.behind_ms(),
            stalls: self.disk.stalls(),
            waiting_bytes: self.life.as_ref().map_or(0, |life| life.replicas.arrivals.bytes() as u64),
            disk_free_bytes: self.room.told().map(|space| space.free_bytes),
            disk_needed_bytes: Need::of(&self.options).bytes(),
            disk_log_bytes: self.log_bytes(),
            disk_trouble: self.space_trouble().unwrap_or_default(),
            scrub: self.life.iter().map(|life| scrub(life.wal.scrubbed())).collect(),
        }
    }
}

/// Shard 0's: there is no other yet.
fn scrub(stats: &ScrubStats) -> ScrubStatus {
    ScrubStatus {
        shard: 0,
        passes: stats.passes,
        bytes: stats.bytes,
        repaired: stats.lost + stats.moved,
        superseded: stats.superseded,
        rewritten: stats.rewritten,
        last: stats.last.clone(),
    }
}
