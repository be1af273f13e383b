//! Checkers: what must be true of a run, judged from the simulated disks, from what nodes send to each other, from what
//! clients are told, and only where nothing else can tell from what a replica says of itself. The numbers are
//! those of `docs/INVARIANTS.md`.
//!
//! They run after every turn of a node and are incremental: a turn that changed nothing costs next to nothing.

mod alone;
mod commit;
mod content;
mod decided;
mod disk;
mod durable_log;
mod election;
mod history;
mod kept;
mod place;
mod reread;
mod space;
mod violation;

use alone::Alone;
pub(crate) use alone::holds;
use history::History;
pub(crate) use history::{Appending, Reading};
use kept::Kept;
use space::Sizes;
pub(crate) use violation::{Verdict, Violation, broken, ensure};

use crate::cluster::Node;
use crate::machine::Step;
use crate::platter::{self, Item, Segment};
use crate::profile::Profile;
use commit::Commits;
use content::Contents;
use decided::Decided;
pub(crate) use disk::{Disk, GivenUp};
pub(crate) use durable_log::{DurableLog, Stored};
use election::Elections;
pub(crate) use place::Place;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_io::Io;
use tidelog_sim::World;
use tidelog_types::{Index, PartitionId};

/// Operations of one node that may be under way at once.
/// Turns in a row that want the next one at once: work that a turn leaves over is done in a few.
const HURRIED_MAX: u32 = 1_000;
const OPS_IN_FLIGHT_MAX: usize = 2_000;
/// Bytes of the same.
const BYTES_IN_FLIGHT_MAX: u64 = 256 << 20;

/// All checkers of a run.
pub(crate) struct Checkers {
    world: World,
    partitions: u64,
    segment_bytes: u64,
    uncommitted_max: u64,
    /// Bytes of buffers that a node may hold.
    memory_max: usize,
    sizes: Sizes,
    disks: BTreeMap<u64, Disk>,
    elections: Elections,
    commits: Commits,
    pub(crate) history: History,
    kept: Kept,
    decided: Decided,
    /// A member lies: the rules that hold of each honest node by itself.
    alone: Option<Alone>,
    /// Last entry applied, by node and partition, in one process.
    applied: BTreeMap<(u64, u64), (u64, u64)>,
    /// The life of each node's log when it was seen last.
    lives: BTreeMap<u64, (u64, u64)>,
}

impl Checkers {
    pub(crate) fn new(world: &World, profile: &Profile) -> Checkers {
        Checkers {
            world: world.clone(),
            partitions: profile.partitions,
            segment_bytes: profile.segment_bytes(),
            sizes: Sizes::new(profile),
            uncommitted_max: profile.uncommitted_entries_max(),
            memory_max: profile.memory_max(),
            disks: profile.nodes.iter().map(|node| (*node, Disk::new(*node))).collect(),
            elections: Elections::default(),
            commits: Commits::new(profile.replication),
            history: History::default(),
            kept: Kept::default(),
            decided: Decided::default(),
            alone: None,
            applied: BTreeMap::new(),
            lives: BTreeMap::new(),
        }
    }

    /// Whether what a client is told can be held to anything: not once a member lies.
    pub(crate) fn believes_clients(&self) -> bool {
        self.alone.is_none()
    }

    /// Everything that was acknowledged is committed where it was said to be.
    pub(crate) fn history_is_there(&self) -> Verdict {
        self.history.all_there(&self.commits)
    }

    /// From now on this member lies: each of the other nodes is judged by itself.
    pub(crate) fn alone(&mut self, liar: u64) {
        self.disks.remove(&liar);
        self.alone = Some(Alone::default());
        self.elections = Elections::alone();
    }

    /// Entries at or below nodes' own marks that were compared with what they had been.
    pub(crate) fn compared(&self) -> u64 {
        self.alone.as_ref().map_or(0, |alone| alone.compared)
    }

    /// Entries committed in all partitions.
    pub(crate) fn commits(&self) -> u64 {
        self.commits.total()
    }

    /// The committed log, for clients' histories.
    pub(crate) fn clients(&mut self) -> (&mut History, &mut Commits) {
        (&mut self.history, &mut self.commits)
    }

    /// The committed log.
    pub(crate) fn commits_mut(&mut self) -> &mut Commits {
        &mut self.commits
    }

    /// A client was told that nothing was appended: it must stay so (R4).
    pub(crate) fn denied(&mut self, append: &Appending, why: &str) -> Verdict {
        self.commits.denied(append.partition, append.ident, why)
    }

    /// The node that led a partition last.
    pub(crate) fn leader(&self, partition: u64) -> Option<u64> {
        self.elections.newest(partition).map(|(_, node)| node)
    }

    /// How often retention let a replica's log begin later.
    pub(crate) fn later_starts(&self) -> u64 {
        self.kept.later_starts
    }

    /// How often a candidate with damage cut what others denied, and how often it led with what came back.
    pub(crate) fn decided(&self) -> (u64, u64) {
        (self.decided.cut, self.decided.healed)
    }

    /// Elections won.
    pub(crate) fn elections(&self) -> u64 {
        self.elections.elected
    }

    /// Logs opened again after the first time.
    pub(crate) fn recoveries(&self) -> u64 {
        self.disks.values().map(|disk| disk.openings.saturating_sub(1)).sum()
    }

    /// After a node's turn, whatever became of it.
    pub(crate) fn after_turn(&mut self, node: &mut Node) -> Verdict {
        let id = node.id;
        self.read_disk(id)?;
        let segment_bytes = self.segment_bytes;
        let Checkers { disks, commits, elections, kept, decided, alone, world, .. } = self;
        let Some(disk) = disks.get_mut(&id) else { return Ok(()) };
        for cut in std::mem::take(&mut disk.removed) {
            if alone.is_some() {
                continue; // `Alone` sees for itself what became of committed entries
            }
            commits.removed(id, cut.partition, cut.index, cut.generation)?;
        }
        let life = node.life();
        disk.given_up(node.take_released());
        disk.judge_given_up(life.1, &world.files(id), segment_bytes)?;
        if let Some(process) = &node.process {
            for partition in 0..self.partitions {
                if let Some(replica) = process.shard.replica(PartitionId(partition)) {
                    elections.observe(id, life, partition, replica, disk, commits)?;
                    if let Some(alone) = alone {
                        alone.observe(world, (id, life), partition, replica, disk)?;
                    } else {
                        kept.observe(world, id, partition, replica, commits)?;
                        decided.observe(id, life, partition, replica)?;
                    }
                    let marks = replica.marks();
                    let open = marks.last.0.saturating_sub(marks.high_water.0);
                    ensure(17, !replica.is_leader() || open <= 2 * self.uncommitted_max + 1, || {
                        format!("node {id} partition {partition}: {open} entries proposed and not committed")
                    })?;
                }
            }
        }
        for (to, message) in node.take_sent() {
            let committed = commits.len(message.partition.0);
            elections.sent(id, to.0, &message, disk, committed)?;
            if alone.is_none() {
                decided.sent(id, to.0, &message);
            }
        }
        self.failures(node, life)?;
        self.applied(node, life)?;
        self.bounds(node)
    }

    /// A process is about to start, or was just started: what its opening made durable.
    pub(crate) fn read_disk(&mut self, id: u64) -> Verdict {
        for range in self.world.take_durable(id) {
            if platter::segment_base(&range.path).is_none() {
                continue;
            }
            // A name that may be lost takes the bytes with it: not durable.
            let Some(bytes) = self.world.durable_range(id, &range.path, range.offset, range.len) else {
                continue;
            };
            for item in platter::items(&bytes) {
                match item {
                    Item::Segment(_) => {}
                    Item::Broken(why) => {
                        return broken(
                            3,
                            format!("node {id}: what became durable in {} is not a batch: {why}", range.path),
                        );
                    }
                    Item::Batch(batch) => {
                        let Some(disk) = self.disks.get_mut(&id) else { continue };
                        let mut prev_epoch_end = 0;
                        if batch.epoch != disk.epoch() {
                            match segment(&self.world, id, &range.path) {
                                Some(header) if header.epoch == batch.epoch && header.base <= batch.lsn => {
                                    prev_epoch_end = header.prev_epoch_end;
                                }
                                other => {
                                    return broken(
                                        8,
                                        format!(
                                            "node {id}: a batch of epoch {} under the segment header {other:?}",
                                            batch.epoch
                                        ),
                                    );
                                }
                            }
                        }
                        // A member that lies may give two nodes two entries of one name.
                        let mut own = Contents::default();
                        let contents = if self.alone.is_some() { &mut own } else { self.commits.contents() };
                        disk.durable(batch, prev_epoch_end, contents)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Invariant 16: a failed write or sync of a batch is followed by another opening of the log, or by the end.
    fn failures(&mut self, node: &mut Node, life: (u64, u64)) -> Verdict {
        let before = self.lives.insert(node.id, life);
        let Some(process) = &mut node.process else { return Ok(()) };
        let Some(failure) = process.io.take_failure() else { return Ok(()) };
        ensure(16, before != Some(life) || process.shard.wal().is_none(), || {
            format!("node {} goes on with its log after: {failure}", node.id)
        })
    }

    /// Invariant 5, from what state machines are given.
    fn applied(&mut self, node: &Node, life: (u64, u64)) -> Verdict {
        for step in node.take_applied() {
            let Step { partition, index, generation, payload_crc, restored } = step;
            let key = (node.id, partition);
            let previous =
                self.applied.get(&key).filter(|(boot, _)| *boot == life.0).map_or(0, |(_, last)| *last);
            if self.alone.is_some() {
                ensure(5, if restored { previous <= index } else { previous < index }, || {
                    format!("node {} partition {partition}: applied entry {index} behind {previous}", node.id)
                })?;
                self.applied.insert(key, (life.0, index));
                continue;
            }
            if restored {
                self.commits.restored(node.id, partition, previous, index, payload_crc)?;
                self.applied.insert(key, (life.0, index));
                continue;
            }
            self.commits.applied(node.id, partition, previous, index, generation, payload_crc)?;
            self.applied.insert(key, (life.0, index));
        }
        Ok(())
    }

    /// Invariants 17, 22 and 26, as far as they show at the seam: what is in flight, and the buffers that the node has taken and not given back.
    fn bounds(&self, node: &Node) -> Verdict {
        let Some(process) = &node.process else { return Ok(()) };
        let (ops, bytes) = process.io.load();
        ensure(17, ops <= OPS_IN_FLIGHT_MAX && bytes <= BYTES_IN_FLIGHT_MAX, || {
            format!("node {} has {ops} operations of {bytes} bytes in flight", node.id)
        })?;
        ensure(26, process.hurried <= HURRIED_MAX, || {
            format!("node {} wanted its next turn at once {HURRIED_MAX} times in a row", node.id)
        })?;
        let held = process.io.buffers().live_bytes();
        ensure(22, held <= self.memory_max, || {
            format!("node {} holds {held} bytes of buffers, its budget is {}", node.id, self.memory_max)
        })
    }

    /// Whether every partition has a leader that all its replicas follow.
    pub(crate) fn led<'a>(&self, nodes: impl Iterator<Item = &'a Node> + Clone) -> Result<(), String> {
        for partition in 0..self.partitions {
            let id = PartitionId(partition);
            let replicas =
                nodes.clone().filter_map(|n| n.process.as_ref()?.shard.replica(id).map(|r| (n.id, r)));
            let leader = replicas.clone().filter(|(_, r)| r.is_leader()).max_by_key(|(_, r)| r.generation());
            let Some((leader, of)) = leader else {
                return Err(format!("partition {partition} has no leader"));
            };
            for (node, replica) in replicas {
                if replica.generation() != of.generation() || replica.leader().map(|n| n.0) != Some(leader) {
                    return Err(format!(
                        "partition {partition}: node {node} (generation {}) does not follow leader {leader} (generation {})",
                        replica.generation(),
                        of.generation()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whether all replicas are the same, on disk and in what they believe committed.
    pub(crate) fn converged<'a>(&self, nodes: impl Iterator<Item = &'a Node> + Clone) -> Result<(), String> {
        for partition in 0..self.partitions {
            let committed = self.commits.len(partition);
            // Bytes that a disk never had can be missing still, if nobody keeps them; then the replica says so itself.
            let lost: BTreeSet<u64> =
                self.disks.values().flat_map(|disk| disk.log(partition).lost()).collect();
            let mut hashes = BTreeMap::new();
            for node in nodes.clone() {
                let Some(replica) =
                    node.process.as_ref().and_then(|p| p.shard.replica(PartitionId(partition)))
                else {
                    continue;
                };
                let Some(disk) = self.disks.get(&node.id) else { continue };
                let (marks, log) = (replica.marks(), disk.log(partition));
                if marks.high_water.0 != committed || marks.last.0 != committed || log.last() != committed {
                    return Err(format!(
                        "partition {partition}: {committed} entries are committed; node {} has {} on disk, its last is {}, its mark {}",
                        node.id,
                        log.last(),
                        marks.last,
                        marks.high_water
                    ));
                }
                let mut own = log.lost().filter(|index| *index >= marks.low_water.0);
                if let Some(index) =
                    own.find(|index| replica.damaged_from(Index(*index)) != Some(Index(*index)))
                {
                    return Err(format!(
                        "partition {partition}: node {} never had the bytes of entry {index}, and takes it for whole",
                        node.id
                    ));
                }
                hashes.entry(log.hash(committed, &lost)).or_insert(node.id);
            }
            if hashes.len() > 1 {
                return Err(format!("partition {partition}: nodes {:?} differ by hash", hashes.values()));
            }
        }
        Ok(())
    }

    /// The end of a run: everything acknowledged is there, and a reader that begins from nothing finds on each disk what
    /// the checkers followed as it was written.
    /// `lost`: what went bad and no other replica keeps: by node, partition and index.
    pub(crate) fn finish(&self, lost: &[(u64, u64, u64)]) -> Verdict {
        if self.alone.is_none() {
            self.history_is_there()?;
        }
        self.disks
            .iter()
            .try_for_each(|(id, disk)| reread::compare(&self.world, *id, disk, self.partitions, lost))
    }

    /// Whether every node's log takes little more than what its replicas keep; if not, why. `more`: segments that it may take beyond.
    pub(crate) fn small(&self, more: u64) -> Result<(), String> {
        self.disks.iter().try_for_each(|(id, disk)| self.sizes.check(&self.world, *id, disk, more))
    }

    /// The model of a node's disk.
    pub(crate) fn disk(&self, id: u64) -> Option<&Disk> {
        self.disks.get(&id)
    }

    /// The models of all disks.
    pub(crate) fn disks(&self) -> impl Iterator<Item = (u64, &Disk)> {
        self.disks.iter().map(|(id, disk)| (*id, disk))
    }
}

/// The header of the segment in a file.
fn segment(world: &World, node: u64, path: &str) -> Option<Segment> {
    let bytes = world.durable_range(node, path, 0, 8192)?;
    platter::items(&bytes)
        .into_iter()
        .find_map(|item| if let Item::Segment(s) = item { Some(s) } else { None })
}
