//! The nodes: production shards over production transports in a simulated world, started, driven and ended.

use crate::checkers::{Checkers, GivenUp, Verdict};
use crate::embedder::{Embedded, Embedder};
use crate::foretold::Foretold;
use crate::machine::{Journal, Step};
use crate::platter;
use crate::profile::Profile;
use crate::tap::{Sent, TapIo, TapTransport};
use crate::undecided::undecided;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;
use tidelog::Commands;
use tidelog::formation::Hello;
use tidelog::shard::{Shard, Turn};
use tidelog::transport::PeerMessage;
use tidelog_consensus::Replica;
use tidelog_io::{Io, Wait};
use tidelog_net::{NetOptions, NetTransport};
use tidelog_sim::{Moment, Random, World};
use tidelog_types::limits::PAYLOAD_BYTES_MAX;
use tidelog_types::{Index, NodeId, PartitionId};

/// How a node's process came to its end by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// A clean stop.
    Stopped,
    /// It gave up: what it would print, with exit code 1.
    Failed(String),
    /// Its machine lost power under it.
    Crashed,
}

/// A process.
pub(crate) struct Process {
    pub(crate) io: TapIo,
    pub(crate) shard: Shard,
    /// The program that it is part of, if that does anything with it.
    embedder: Option<Embedder>,
    /// Turns in a row behind each of which the shard wanted the next one at once.
    pub(crate) hurried: u32,
}

/// One machine of the cluster.
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) process: Option<Process>,
    /// Processes so far.
    pub(crate) boots: u64,
    /// The life of its log at the last look.
    looked_at: (u64, u64),
    sent: Sent,
    /// Answers to earlier leaderships that it was told late.
    late: Rc<Cell<u64>>,
    journal: Journal,
    /// What came of the embedders of processes that are gone.
    embedded: Embedded,
}

impl Node {
    /// The same, which stays for whoever takes it.
    #[cfg(test)]
    pub(crate) fn sent(&self) -> Vec<(NodeId, PeerMessage)> {
        self.sent.borrow().clone()
    }

    /// What its shard sent to peers since the last look.
    pub(crate) fn take_sent(&self) -> Vec<(NodeId, PeerMessage)> {
        std::mem::take(&mut self.sent.borrow_mut())
    }

    /// Segments that it gave up since the last look, by their bases, and whether a log was opened meanwhile.
    pub(crate) fn take_released(&mut self) -> Vec<(u64, GivenUp)> {
        let life = self.life();
        let Some(process) = &mut self.process else { return Vec::new() };
        let running = process.shard.wal().is_some() && self.looked_at == life;
        self.looked_at = life;
        let by = if running { GivenUp::Running } else { GivenUp::Opening };
        process.io.take_released().into_iter().map(|base| (base, by)).collect()
    }

    /// What its state machines applied since the last look.
    pub(crate) fn take_applied(&self) -> Vec<Step> {
        self.journal.take()
    }

    /// The life of its log: process and opening.
    pub(crate) fn life(&self) -> (u64, u64) {
        let opened = self.process.as_ref().and_then(|p| p.shard.recovery()).map_or(0, |report| report.epoch);
        (self.boots, opened)
    }
}

/// The cluster.
pub(crate) struct Cluster {
    world: World,
    profile: Profile,
    pub(crate) nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    pub(crate) fn new(world: &World, profile: &Profile) -> Cluster {
        let nodes = profile.nodes.iter().map(|id| {
            world.watch_durable(*id);
            let node = Node {
                id: *id,
                process: None,
                boots: 0,
                looked_at: (0, 0),
                sent: Sent::default(),
                late: Rc::default(),
                journal: Journal::default(),
                embedded: Embedded::default(),
            };
            (*id, node)
        });
        Cluster { nodes: nodes.collect(), world: world.clone(), profile: profile.clone() }
    }

    /// Starts a node's process; how it ended if it did not get to its feet. `crash`: at that operation of its opening,
    /// the machine loses power.
    pub(crate) fn boot(&mut self, id: u64, crash: Option<(u64, Moment)>) -> Option<End> {
        let node = self.nodes.get_mut(&id)?;
        let options = self.profile.options(id, &self.world);
        let net = NetOptions::new(options.node, options.nodes.clone(), options.heartbeat);
        let net = NetOptions {
            limits: self.profile.net_limits(),
            election_timeout: options.election_timeout,
            ..net
        };
        node.sent.borrow_mut().clear();
        node.journal = Journal::default();
        node.boots += 1;
        let transport =
            TapTransport::new(Box::new(NetTransport::new(net)), node.sent.clone(), node.late.clone());
        let mut io = TapIo::new(self.world.node(id));
        if let Some((operation, moment)) = crash {
            self.world.crash_at(id, operation, moment);
        }
        let (machines, journal) = (self.profile.machines, node.journal.clone());
        let factory = Box::new(move |partition| machines.then(|| journal.machine(partition)));
        // What the tools say of the log, before it is opened. A device that fails now and then may tell two readers different things.
        let errors = |world: &World| world.fault_counts().get("read error").copied().unwrap_or(0);
        let before = errors(&self.world);
        let said = Foretold::of(&mut io, &options);
        let (handing, commands) = if self.profile.embedded {
            let (handing, commands) = tidelog::engine::commands(options.inbox_max, io.waker());
            (Some(handing), commands)
        } else {
            (None, Commands::none())
        };
        let opened = Shard::open(&mut io, options, Box::new(transport), commands, factory);
        let disagreement = if errors(&self.world) == before { said.disagrees(&opened) } else { None };
        if let Some(what) = disagreement.filter(|_| io.is_alive()) {
            return Some(End::Failed(what));
        }
        match opened {
            Ok(shard) => {
                let deadline = io_now(&io);
                let (boots, partitions) = (node.boots, self.profile.partitions);
                let embedder = handing.map(|handing| {
                    let random = Random::new(self.world.trace_hash() ^ id ^ (boots << 32));
                    Embedder::new(id, boots, partitions, handing.handles(&shard, partitions), random)
                });
                node.process = Some(Process { io, shard, embedder, hurried: 0 });
                self.world.sleep_until(id, Some(deadline));
                None
            }
            Err(_) if !io.is_alive() => Some(End::Crashed),
            Err(error) => Some(End::Failed(error.to_string())),
        }
    }

    /// Starts a process of the node on another machine, whose disk is a copy: how it ended, if it did.
    pub(crate) fn boot_double(&mut self, id: u64, machine: u64) -> Option<End> {
        let options = self.profile.options(id, &self.world);
        let mut net = NetOptions::new(options.node, options.nodes.clone(), options.heartbeat);
        net.listen = self.world.address(machine, net.listen.port());
        let mut io = self.world.node(machine);
        let none = tidelog::engine::no_machines();
        let opened = Shard::open(&mut io, options, Box::new(NetTransport::new(net)), Commands::none(), none);
        let end = opened.map(drop).map_err(|error| End::Failed(error.to_string())).err();
        drop(io);
        self.world.kill(machine);
        end
    }

    /// A node's turn.
    pub(crate) fn turn(&mut self, id: u64) -> Option<End> {
        let node = self.nodes.get_mut(&id)?;
        let process = node.process.as_mut()?;
        let end = match process.shard.turn(&mut process.io, Wait::No) {
            Ok(Turn::Until(deadline)) => {
                let at_once = deadline <= process.io.clock().now;
                process.hurried = if at_once { process.hurried + 1 } else { 0 };
                self.world.sleep_until(id, Some(deadline));
                return None;
            }
            Ok(Turn::Stopped) => End::Stopped,
            Err(_) if !process.io.is_alive() => End::Crashed,
            Err(error) => End::Failed(error.to_string()),
        };
        Some(end)
    }

    /// What a node's process says of itself to its peers.
    pub(crate) fn hello(&self, id: u64, world: &World) -> Option<Hello> {
        let identity = self.nodes.get(&id)?.process.as_ref()?.shard.identity().clone();
        let options = self.profile.options(id, world);
        Some(Hello {
            cluster_name: options.cluster_name,
            node: options.node,
            incarnation: identity.incarnation,
            process: 0,
            shard: 0,
            shard_count: identity.shard_count,
            partitions: identity.partitions,
            replication: identity.replication,
            key_hash: identity.key_hash,
            payload_bytes_max: u32::try_from(PAYLOAD_BYTES_MAX).unwrap_or(u32::MAX),
            feature_level: 1,
            heartbeat_ms: u32::try_from(options.heartbeat.as_millis()).unwrap_or(u32::MAX),
            barred: false,
            formed: identity.formed,
        })
    }

    /// The embedder's turn behind its node's.
    pub(crate) fn embed(&mut self, id: u64, asks: bool, pins: bool, checkers: &mut Checkers) -> Verdict {
        let Some(Process { io, shard, embedder: Some(embedder), .. }) =
            self.nodes.get_mut(&id).and_then(|node| node.process.as_mut())
        else {
            return Ok(());
        };
        embedder.turn(io_now(io), asks, pins && self.profile.disk_bytes.is_none(), shard, checkers)
    }

    /// What came of all embedders.
    pub(crate) fn embedded(&self) -> Embedded {
        let mut all = Embedded::default();
        for node in self.nodes.values() {
            all += node.embedded;
            if let Some(embedder) = node.process.as_ref().and_then(|process| process.embedder.as_ref()) {
                all += embedder.done();
            }
        }
        all
    }

    /// Whether no embedder waits for anything.
    pub(crate) fn embedders_idle(&self) -> bool {
        let processes = self.nodes.values().filter_map(|node| node.process.as_ref());
        processes.filter_map(|process| process.embedder.as_ref()).all(Embedder::is_idle)
    }

    /// Takes a process that ended, or whose machine is gone, out of the cluster.
    pub(crate) fn bury(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            let gone = node.process.take();
            if let Some(embedder) = gone.and_then(|process| process.embedder) {
                node.embedded += embedder.done();
            }
        }
    }

    /// Answers to earlier leaderships that nodes were told late.
    pub(crate) fn late_answers(&self) -> u64 {
        self.nodes.values().map(|node| node.late.get()).sum()
    }

    /// Begins a clean stop.
    pub(crate) fn stop(&mut self, id: u64) {
        if let Some(process) = self.nodes.get_mut(&id).and_then(|n| n.process.as_mut()) {
            process.shard.stop();
            self.world.wake(id);
        }
    }

    /// Nodes whose process runs.
    pub(crate) fn up(&self) -> Vec<u64> {
        self.nodes.values().filter(|n| n.process.is_some()).map(|n| n.id).collect()
    }

    /// Replicas that know of damage which can be repaired: node, partition, and how many such entries.
    pub(crate) fn damaged(&self, partitions: u64) -> Vec<(u64, u64, u64)> {
        let mut out = BTreeMap::new();
        for (id, partition, index) in self.every_damaged(partitions) {
            if self.can_be_whole(id, partition, index) {
                *out.entry((id, partition)).or_insert(0) += 1;
            }
        }
        out.into_iter().map(|((id, partition), count)| (id, partition, count)).collect()
    }

    /// A partition of a node that has more damage than suspects, and its first damaged entry.
    pub(crate) fn proven_damage(&self, id: u64, partitions: u64) -> Option<(u64, Index)> {
        (0..partitions).find_map(|partition| {
            let replica = self.replica(id, PartitionId(partition))?;
            let first = replica.damaged_from(Index(1))?;
            (replica.damaged_entries() > replica.suspect_entries()).then_some((partition, first))
        })
    }

    /// Entries whose damage replicas know of: by node, partition and index.
    pub(crate) fn every_damaged(&self, partitions: u64) -> Vec<(u64, u64, u64)> {
        let mut out = Vec::new();
        for (id, process) in self.nodes.values().filter_map(|node| Some((node.id, node.process.as_ref()?))) {
            for partition in 0..partitions {
                let Some(replica) = process.shard.replica(PartitionId(partition)) else { continue };
                let mut from = Index(1);
                while let Some(index) = replica.damaged_from(from) {
                    out.push((id, partition, index.0));
                    from = index.next();
                }
            }
        }
        out
    }

    /// Whether a replica can come to be without the damage at this entry: another one keeps it, or it may be let go here. What
    /// no other replica keeps any more only a snapshot brings back.
    pub(crate) fn can_be_whole(&self, id: u64, partition: u64, index: u64) -> bool {
        let (partition, index) = (PartitionId(partition), Index(index));
        self.is_kept_beside(id, partition, index) || self.may_go(id, partition, index)
    }

    /// The voters of a partition, as the replica on `id` knows them.
    pub(crate) fn voters(&self, id: u64, partition: u64) -> Vec<u64> {
        let replica = self.replica(id, PartitionId(partition));
        replica.map_or_else(Vec::new, |replica| replica.voters().iter().map(|voter| voter.0).collect())
    }

    /// Whom the replica on `id` follows, or itself.
    pub(crate) fn leader_of(&self, id: u64, partition: u64) -> Option<u64> {
        Some(self.replica(id, PartitionId(partition))?.leader()?.0)
    }

    pub(crate) fn replica(&self, id: u64, partition: PartitionId) -> Option<&Replica> {
        self.nodes.get(&id)?.process.as_ref()?.shard.replica(partition)
    }

    /// Whether a replica on another node than `id` has the entry whole.
    fn is_kept_beside(&self, id: u64, partition: PartitionId, index: Index) -> bool {
        let others = self.nodes.keys().filter(|other| **other != id);
        others.filter_map(|other| self.replica(*other, partition)).any(|replica| {
            let marks = replica.marks();
            let there = marks.low_water <= index && index <= marks.last;
            there && replica.damaged_from(index) != Some(index)
        })
    }

    /// Whether the entry may be let go on `id`: it is covered, and so it goes with all damage before it, if what that did is known or will be.
    fn may_go(&self, id: u64, partition: PartitionId, index: Index) -> bool {
        let Some(replica) = self.replica(id, partition) else { return false };
        // A state machine needs what it has not applied, also below a log start: only its snapshot covers that.
        let start = if self.profile.machines { Index(1) } else { replica.log_start() };
        if replica.snapshot().index.next().max(start) <= index || !replica.knows(index) {
            return false;
        }
        let mut from = Index(1);
        while let Some(lost) = replica.damaged_from(from).filter(|lost| *lost < index) {
            if !replica.knows(lost) && !self.is_kept_beside(id, partition, lost) {
                return false;
            }
            from = lost.next();
        }
        true
    }

    /// Whether a partition has no leader, and every one that has none can have none.
    pub(crate) fn waits_rightly(&self, partitions: u64) -> bool {
        let shards: Vec<_> =
            self.nodes.values().filter_map(|node| Some(&node.process.as_ref()?.shard)).collect();
        let mut waits = false;
        for partition in (0..partitions).map(PartitionId) {
            let replicas: Vec<_> = shards.iter().filter_map(|shard| shard.replica(partition)).collect();
            if !replicas.iter().any(|replica| replica.is_leader()) {
                if undecided(&replicas).is_none() {
                    return false;
                }
                waits = true;
            }
        }
        waits
    }

    /// What a node's scrubbing came to, and the marks of a replica there.
    pub(crate) fn describe_scrub(&self, id: u64, partition: u64) -> String {
        let shard = self.nodes.get(&id).and_then(|node| Some(&node.process.as_ref()?.shard));
        let marks =
            shard.and_then(|shard| shard.replica(PartitionId(partition))).map(|r| (r.marks(), r.snapshot()));
        format!("{:?}, {marks:?}", shard.and_then(|shard| shard.wal()).map(|wal| wal.scrubbed()))
    }

    /// The last bad place that scrubbing found, by node.
    pub(crate) fn scrub_findings(&self) -> Vec<(u64, String)> {
        let logs =
            self.nodes.values().filter_map(|node| Some((node.id, node.process.as_ref()?.shard.wal()?)));
        let last = logs.map(|(id, wal)| (id, wal.scrubbed().last.clone()));
        last.filter(|(_, place)| !place.is_empty()).collect()
    }

    /// Every node and replica, a line each.
    pub(crate) fn describe(&self) -> Vec<String> {
        let mut out = Vec::new();
        for node in self.nodes.values() {
            let Some(process) = &node.process else {
                out.push(format!("node {}: down", node.id));
                for (path, bytes) in self.world.files(node.id) {
                    let head = self.world.durable_range(node.id, &path, 0, 4096).unwrap_or_default();
                    out.push(format!("  {path}: {bytes} bytes {:?}", platter::items(&head)));
                }
                continue;
            };
            let status = process.shard.status();
            let (ops, bytes) = process.io.load();
            out.push(format!(
                "node {}: up {} ms, connected to {:?}, {ops} operations of {bytes} bytes in flight, space {:?} of {} needed ({}), {} bytes wait, stalled {} ms, log {:?}",
                node.id,
                status.uptime_ms,
                status.connected,
                status.disk_free_bytes,
                status.disk_needed_bytes,
                status.disk_trouble,
                status.waiting_bytes,
                status.stalled_ms,
                process.shard.wal().map(|wal| wal.stats())
            ));
            for p in status.partitions {
                out.push(format!(
                    "  partition {}: {} of {:?} in generation {}, mark {}, applied {:?}, durable {}, last {}, low-water {}, snapshot {}, damaged {} from {:?}, unknown {:?}, needs_snapshot {:?}, lost {:?}, contradicted {}, barred {:?}, peers {:?}",
                    p.partition,
                    p.role,
                    p.leader,
                    p.generation,
                    p.high_water,
                    p.applied,
                    p.durable,
                    p.last,
                    p.low_water,
                    p.snapshot,
                    p.damaged,
                    process.shard.replica(PartitionId(p.partition)).and_then(|r| r.damaged_from(Index(1))),
                    process.shard.replica(PartitionId(p.partition)).and_then(|r| r.unknown_from(Index(1))),
                    p.needs_snapshot,
                    p.lost,
                    p.contradicted,
                    process.shard.replica(PartitionId(p.partition)).map(|r| r.is_barred()),
                    process.shard.replica(PartitionId(p.partition)).map(|r| r.describe_peers()),
                ));
            }
        }
        out
    }

    /// Longest time without a leader that is not a failure once everything works.
    pub(crate) fn patience(&self) -> Duration {
        self.profile.election_timeout_max() * 10
    }
}

fn io_now(io: &TapIo) -> tidelog_types::Monotonic {
    tidelog_io::Io::clock(io).now
}
