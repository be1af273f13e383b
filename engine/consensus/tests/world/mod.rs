//! A small world for replicas: what a shard, a disk, a network and clients do around the protocol.
//!
//! Each node's disk makes log steps durable when told to and loses the rest at a crash. The network holds
//! packets until they are delivered or dropped. Every event ends with the [`checker::Checker`], which believes
//! only the disks and the packets.
#![allow(dead_code)] // each test binary uses its own half of this
#![allow(unreachable_pub)]

pub mod checker;
pub mod disk;
mod request;
mod show;

use request::Waiter;
pub use request::{Outcome, Packet, Refusal};
#[allow(unused_imports)] // each test binary uses its own half of this
pub use show::show;

use checker::Checker;
use core::time::Duration;
use disk::{Disk, DiskOp, Stored};
use std::collections::BTreeMap;
use tidelog_consensus::{
    Admitted, Asserting, Config, DamagedRange, Effects, Free, LogOpKind, Message, Outgoing, Proposal,
    ReadOutcome, Refused, Repair, Replica, Retention,
};
use tidelog_types::{
    Clock, EntryMeta, Generation, Index, Monotonic, NodeId, PartitionId, Position, RecordKind, SessionKey,
    SessionRef, Ticket, WallMs,
};

pub const ELECTION: Duration = Duration::from_millis(100);
pub const HEARTBEAT: Duration = Duration::from_millis(10);
pub const STALL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Node {
    pub replica: Option<Replica>,
    pub disk: Disk,
    /// What waits for its ticket. It alone is asked about again when it leaves: what leaves in the step that made it must be right
    /// by itself, as a shard does it.
    held: Vec<(Ticket, Outgoing<Asserting>)>,
    /// A disk put aside, as it was at some moment.
    saved: Option<Disk>,
    waiters: Vec<Waiter>,
    lives: u64,
    /// The last generation in which it asked everyone for what it lost.
    inquired: Generation,
    /// How far its wall clock is from the truth.
    pub skew_ms: i64,
    /// What its shard sees of its disk.
    pub health: tidelog_consensus::Disk,
}

impl Node {
    pub fn replica(&self) -> &Replica {
        self.replica.as_ref().expect("the node is up")
    }
}

/// All of it.
#[derive(Debug)]
pub struct World {
    pub nodes: BTreeMap<u64, Node>,
    pub wire: Vec<Packet>,
    pub now: Monotonic,
    pub checker: Checker,
    /// Outcomes of proposals, by payload.
    pub outcomes: BTreeMap<String, Outcome>,
    /// Read requests: number to (least index to be reflected, answer).
    pub reads: BTreeMap<u64, (Index, Option<ReadOutcome>)>,
    /// Refusals that wait until they are definite, by node and number.
    refused: BTreeMap<(u64, u64), Refusal>,
    refusals: u64,
    /// How long sessions live that nodes started from now on open.
    pub session_expiry: Duration,
    /// Most entries put into one append.
    pub fit_max: u64,
    /// Whether an elected candidate asks everyone for what it lost by itself.
    pub inquires: bool,
    /// Cuts of candidates that had been denied an entry.
    pub decided: u64,
    /// Vote requests after a hand-over.
    pub handed_over: u64,
    seed: u64,
    /// The event under way, for messages of failures.
    pub event: String,
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap()
}

impl World {
    pub fn new(voters: u64, seed: u64) -> World {
        World::with_expiry(voters, seed, Duration::from_secs(3600))
    }

    /// One in which sessions expire when unused for so long.
    pub fn with_expiry(voters: u64, seed: u64, session_expiry: Duration) -> World {
        let mut world = World {
            nodes: BTreeMap::new(),
            wire: Vec::new(),
            now: Monotonic(1_000_000_000),
            checker: Checker::new(voters),
            outcomes: BTreeMap::new(),
            reads: BTreeMap::new(),
            refused: BTreeMap::new(),
            refusals: 1 << 32,
            session_expiry,
            fit_max: u64::MAX,
            inquires: false,
            decided: 0,
            handed_over: 0,
            seed,
            event: String::new(),
        };
        for id in 1..=voters {
            let node = Node {
                replica: None,
                disk: Disk::default(),
                held: Vec::new(),
                saved: None,
                waiters: Vec::new(),
                lives: 0,
                inquired: Generation::ZERO,
                skew_ms: 0,
                health: tidelog_consensus::Disk::default(),
            };
            world.nodes.insert(id, node);
        }
        for id in 1..=voters {
            world.start(id);
        }
        world
    }

    pub fn node(&self, id: u64) -> &Node {
        self.nodes.get(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    pub fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    pub fn is_up(&self, id: u64) -> bool {
        self.node(id).replica.is_some()
    }

    pub fn replica(&self, id: u64) -> &Replica {
        self.node(id).replica()
    }

    fn clock(&self, id: u64) -> Clock {
        let truth = 1_700_000_000_000 + self.now.0 / 1_000_000;
        Clock { now: self.now, wall: WallMs(truth.saturating_add_signed(self.node(id).skew_ms)) }
    }

    pub fn wait(&mut self, d: Duration) {
        self.now = self.now.after(d);
    }

    /// The leader of the highest generation, if any.
    pub fn leader(&self) -> Option<u64> {
        let leaders = self.nodes.iter().filter(|(_, n)| n.replica.as_ref().is_some_and(Replica::is_leader));
        leaders.max_by_key(|(_, n)| n.replica().generation()).map(|(id, _)| *id)
    }

    /// Stops a node. `survives`: how many of the unreported steps reached its disk all the same.
    pub fn crash(&mut self, id: u64, survives: usize) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.replica = None;
        node.held.clear();
        let lost = node.waiters.drain(..).map(|w| w.request).collect::<Vec<_>>();
        node.disk.crash(survives, &mut |disk| self.checker.disk_moved(id, disk));
        for request in lost {
            self.outcomes.insert(request, Outcome::Unknown);
        }
        for (_, refusal) in self.refused.extract_if((id, 0)..=(id, u64::MAX), |_, _| true) {
            self.outcomes.insert(refusal.name, Outcome::Unknown);
        }
        self.checker.life_ended(id);
    }

    /// Puts a copy of a node's disk aside.
    pub fn save(&mut self, id: u64) {
        let node = self.node_mut(id);
        node.saved = Some(node.disk.clone());
    }

    /// Stops a node, and gives it the disk that was put aside.
    pub fn roll_back(&mut self, id: u64) -> bool {
        self.crash(id, 0);
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(saved) = node.saved.clone() else { return false };
        node.disk = saved;
        node.disk.crash(0, &mut |_| {});
        self.checker.rolled_back(id, &node.disk);
        true
    }

    /// Starts a node from its disk.
    pub fn start(&mut self, id: u64) {
        let clock = self.clock(id);
        let voters = self.nodes.keys().map(|n| NodeId(*n)).collect();
        let node = self.nodes.get_mut(&id).unwrap();
        let restored = node.disk.restored(node.lives % 2 == 1);
        restored.check().expect("what was written is one log");
        node.lives += 1;
        let config = Config {
            node: NodeId(id),
            partition: PartitionId(7),
            voters,
            election_timeout: ELECTION,
            stall_timeout: STALL,
            heartbeat: HEARTBEAT,
            in_flight_messages_max: 4,
            in_flight_bytes_max: 4096,
            uncommitted_entries_max: 64,
            uncommitted_bytes_max: 1 << 20,
            session_expiry: self.session_expiry,
            seed: self.seed.wrapping_mul(31).wrapping_add(node.lives),
        };
        node.replica = Some(Replica::new(config, restored, clock));
        self.checker.look(id, self.nodes[&id].replica(), &self.nodes[&id].disk, &self.event);
    }

    /// Gives a node an input and carries out what it asks for.
    fn input<T>(
        &mut self,
        id: u64,
        entries: &[Stored],
        f: impl FnOnce(&mut Replica, Clock, &mut Effects) -> T,
    ) -> Option<T> {
        let clock = self.clock(id);
        let mut effects = Effects::default();
        let result = {
            let node = self.nodes.get_mut(&id)?;
            let replica = node.replica.as_mut()?;
            replica.note_disk(node.health);
            f(replica, clock, &mut effects)
        };
        self.carry_out(id, entries, effects);
        Some(result)
    }

    fn carry_out(&mut self, id: u64, entries: &[Stored], effects: Effects) {
        let node = self.nodes.get_mut(&id).unwrap();
        for op in effects.append {
            let op_kind = match op.kind {
                LogOpKind::Append { first, last } | LogOpKind::Repair { first, last } => {
                    let these = entries.iter().filter(|e| (first..=last).contains(&e.meta.position.index));
                    let these: Vec<Stored> = these.cloned().collect();
                    assert_eq!(these.len() as u64, last.0 - first.0 + 1, "the bytes are at hand");
                    match op.kind {
                        LogOpKind::Append { .. } => DiskOp::Append(these),
                        _ => DiskOp::Repair(these),
                    }
                }
                LogOpKind::Make(meta) => {
                    let payload = meta.log_start.map_or("noop".into(), |first| format!("start{first}"));
                    DiskOp::Append(vec![Stored { meta, payload }])
                }
                LogOpKind::SnapshotMark { covered } => {
                    let base = node.replica().base_at(covered.index).expect("told when it was taken");
                    DiskOp::SnapshotMark(covered, base.encode())
                }
                LogOpKind::LowWater { first } => DiskOp::LowWater(first),
                LogOpKind::Promise { generation, vote } => DiskOp::Promise(generation, vote),
                LogOpKind::Cut { keep } => {
                    self.checker.cut(id, keep, &node.disk, &self.event);
                    DiskOp::Cut(keep)
                }
            };
            node.disk.order(op.ticket, op_kind);
            self.checker.appended(id, &node.disk, &self.event);
        }
        self.checker.look(id, node.replica(), &node.disk, &self.event);
        for Outgoing { to, message } in effects.send_now {
            let packet = Packet { from: id, to: to.0, message: Message::Free(message), entries: Vec::new() };
            self.checker.sent(&packet, &node.disk, &self.event);
            self.wire.push(packet);
        }
        for (ticket, Outgoing { to, message }) in effects.send_when_durable {
            if ticket > node.disk.reported {
                node.held.push((ticket, Outgoing { to, message }));
                continue;
            }
            let message = Message::Asserting(message);
            let packet = Packet { from: id, to: to.0, message, entries: Vec::new() };
            self.checker.sent(&packet, &node.disk, &self.event);
            self.wire.push(packet);
        }
        if let Some(mark) = effects.committed {
            node.disk.high_water = node.disk.high_water.max(mark);
            let done: Vec<Waiter> = node.waiters.extract_if(.., |w| w.at <= mark).collect();
            for waiter in done {
                let entry = node.disk.entry(waiter.at).expect("committed entries are in the log");
                let same = entry.meta.position.generation == waiter.generation;
                assert!(same, "{}: a waiter's entry was replaced under it", self.event);
                self.checker.acked(waiter.at, entry);
                self.outcomes.insert(waiter.request, Outcome::Acked(waiter.at));
            }
        }
        for (request, answer) in effects.reads {
            if let Some(refusal) = self.refused.remove(&(id, request)) {
                let outcome = match answer {
                    ReadOutcome::At(_) => {
                        self.checker.refused(&refusal, &self.event);
                        Outcome::Refused(refusal.refused)
                    }
                    ReadOutcome::NotLeader => Outcome::Refused(Refused::NotLeader { hint: None }),
                };
                self.outcomes.insert(refusal.name, outcome);
                continue;
            }
            let (floor, answered) = self.reads.get_mut(&request).expect("answers have requests");
            assert!(answered.is_none(), "{}: read {request} answered twice", self.event);
            if let ReadOutcome::At(index) = answer {
                let mark = node.replica().marks().high_water;
                assert!(index <= mark, "{}: read {request} at {index}, mark {mark}", self.event);
                assert!(index >= *floor, "{}: read {request} at {index}, below {floor}", self.event);
            }
            *answered = Some(answer);
        }
        if effects.deposed.is_some() {
            for waiter in node.waiters.drain(..) {
                self.outcomes.insert(waiter.request, Outcome::Unknown);
            }
        }
        self.pump(id);
    }

    /// Sends what may be sent.
    fn pump(&mut self, id: u64) {
        let clock = self.clock(id);
        let fit_max = self.fit_max;
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(replica) = &mut node.replica else { return };
        for peer in replica.peers().to_vec() {
            let mut fit = |first: Index, last: Index, budget: u64| {
                let end = Index(last.0.min(first.0.saturating_add(fit_max - 1)));
                let mut bytes = 0;
                let mut fits = first;
                for i in first.0..=end.0 {
                    if node.disk.is_damaged(Index(i)) {
                        if i == first.0 {
                            return None;
                        }
                        break;
                    }
                    let size = u64::from(node.disk.entry(Index(i)).unwrap().meta.record_bytes);
                    if i > first.0 && bytes + size > budget {
                        break;
                    }
                    bytes += size;
                    fits = Index(i);
                }
                Some((fits, bytes))
            };
            while let Some(append) = replica.take_append(clock, peer, &mut fit) {
                let first = append.prev.index.next().0;
                let entries = (first..first + append.count)
                    .map(|i| node.disk.entry(Index(i)).unwrap().clone())
                    .collect();
                let message = Message::Free(Free::Append(append));
                let packet = Packet { from: id, to: peer.0, message, entries };
                self.checker.sent(&packet, &node.disk, &self.event);
                self.wire.push(packet);
            }
        }
        if self.inquires && replica.is_deciding() && node.inquired < replica.generation() {
            node.inquired = replica.generation();
            if let Some(DamagedRange { first, last, generation }) = replica.repair_wanted() {
                for peer in replica.peers() {
                    let message = Message::Repair(Repair::Fetch { generation, first, last });
                    self.wire.push(Packet { from: id, to: peer.0, message, entries: Vec::new() });
                }
            }
        }
        let reported = node.disk.reported;
        let mut left = Vec::new();
        for (ticket, outgoing) in node.held.drain(..) {
            if ticket > reported {
                left.push((ticket, outgoing));
            } else if replica.release(&outgoing.message) {
                self.handed_over +=
                    u64::from(matches!(outgoing.message, Asserting::Vote { handed_over: true, .. }));
                let message = Message::Asserting(outgoing.message);
                let packet = Packet { from: id, to: outgoing.to.0, message, entries: Vec::new() };
                self.checker.sent(&packet, &node.disk, &self.event);
                self.wire.push(packet);
            }
        }
        node.held = left;
    }

    pub fn deliver(&mut self, packet: Packet) {
        let metas: Vec<EntryMeta> = packet.entries.iter().map(|e| e.meta).collect();
        let Packet { from, to, message, entries } = packet;
        match message {
            Message::Repair(Repair::Fetch { generation, first, last }) => {
                let Some(replica) = &self.node(to).replica else { return };
                let mut start = first;
                let message = match replica.can_give_of(first, last, generation) {
                    Some((first, last)) => {
                        start = first;
                        Repair::Fetched { generation, first, count: last.0 - first.0 + 1 }
                    }
                    None => {
                        let damaged = !replica.denies(Position::new(first, generation));
                        Repair::Missing { generation, first, damaged, promised: self.node(to).disk.promise.0 }
                    }
                };
                let count = if let Repair::Fetched { count, .. } = message { count } else { 0 };
                let disk = &self.node(to).disk;
                let entries =
                    (start.0..start.0 + count).map(|i| disk.entry(Index(i)).unwrap().clone()).collect();
                let packet = Packet { from: to, to: from, message: Message::Repair(message), entries };
                self.checker.sent(&packet, &self.nodes[&to].disk, &self.event);
                self.wire.push(packet);
                return;
            }
            Message::Repair(Repair::Fetched { .. }) => {
                self.input(to, &entries, |replica, _, effects| replica.repair(&metas, effects));
                return;
            }
            Message::Repair(Repair::Missing { generation, first, damaged, promised }) => {
                let cut = self.input(to, &[], |replica, clock, effects| {
                    if !damaged {
                        let entry = Position::new(first, generation);
                        replica.denied(clock, NodeId(from), entry, promised, effects);
                    }
                    effects.append.iter().any(|op| matches!(op.kind, LogOpKind::Cut { .. }))
                });
                self.decided += u64::from(cut == Some(true));
                return;
            }
            _ => {}
        }
        self.input(to, &entries, |replica, clock, effects| {
            replica.step(clock, NodeId(from), message, &metas, effects);
        });
    }

    /// The bytes of a durable entry are lost, and the node notices if it is up.
    pub fn rot(&mut self, id: u64, index: u64) -> bool {
        let index = Index(index);
        let disk = &mut self.node_mut(id).disk;
        let Some(entry) = disk.entry(index).cloned() else { return false };
        let same = disk.durable.get(usize::try_from(index.0).unwrap() - 1) == Some(&entry);
        let rotted = same && disk.rot(index);
        if rotted && self.is_up(id) {
            let range =
                DamagedRange { first: index, last: index, generation: entry.meta.position.generation };
            self.input(id, &[], |replica, clock, effects| replica.damaged(clock, range, effects));
        }
        rotted
    }

    /// Asks a peer for what is damaged first. False if nothing is.
    pub fn fetch(&mut self, id: u64, peer: u64) -> bool {
        self.fetch_from(id, peer, Index(1))
    }

    /// The same for what is damaged at or behind `from`.
    pub fn fetch_from(&mut self, id: u64, peer: u64, from: Index) -> bool {
        let wanted = self.node(id).replica.as_ref().and_then(|replica| replica.repair_wanted_from(from));
        let Some(DamagedRange { first, last, generation }) = wanted else { return false };
        let message = Message::Repair(Repair::Fetch { generation, first, last });
        self.wire.push(Packet { from: id, to: peer, message, entries: Vec::new() });
        true
    }

    /// Stops a node in the middle of a write: see [`Disk::crash_suspect`].
    pub fn crash_suspect(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.disk.crash_suspect(&mut |disk| self.checker.disk_moved(id, disk));
        self.crash(id, 0);
    }

    pub fn tick(&mut self, id: u64) {
        self.input(id, &[], Replica::tick);
    }

    pub fn paused(&mut self, id: u64) {
        self.input(id, &[], |replica, clock, _| replica.paused(clock));
    }

    pub fn channel(&mut self, id: u64, peer: u64, up: bool) {
        self.input(id, &[], |replica, clock, _| {
            if up { replica.peer_up(clock, NodeId(peer)) } else { replica.peer_down(clock, NodeId(peer)) }
        });
    }

    /// The disk of `id` makes the next `steps` log steps durable and reports the last.
    pub fn durable(&mut self, id: u64, steps: usize) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        let mut done = false;
        for _ in 0..steps {
            if !node.disk.make_durable() {
                break;
            }
            done = true;
            self.checker.disk_moved(id, &node.disk);
            node.disk.healed.clear();
        }
        let reported = node.disk.reported;
        if done {
            self.input(id, &[], |replica, clock, effects| replica.durable(clock, reported, effects));
        }
        done
    }

    pub fn propose(
        &mut self,
        id: u64,
        payload: &str,
        session: Option<SessionRef>,
        key: Option<SessionKey>,
    ) -> Option<Result<Admitted, Refused>> {
        self.propose_as(id, payload, payload, session, key)
    }

    /// A request under a name of its own, for a payload that others may ask for as well.
    pub fn propose_as(
        &mut self,
        id: u64,
        name: &str,
        payload: &str,
        session: Option<SessionRef>,
        key: Option<SessionKey>,
    ) -> Option<Result<Admitted, Refused>> {
        let kind = if key.is_some() { RecordKind::SessionOpen } else { RecordKind::Data };
        let payload_crc = payload.bytes().fold(7, |sum: u32, byte| sum.wrapping_mul(31) ^ u32::from(byte));
        let proposal = Proposal { kind, session, session_key: key, record_bytes: 128, payload_crc };
        let clock = self.clock(id);
        let mut effects = Effects::default();
        let replica = self.nodes.get_mut(&id)?.replica.as_mut()?;
        let result = replica.propose(clock, proposal, &mut effects);
        let mut made = Vec::new();
        match result {
            Ok(admitted) => {
                let position = match admitted {
                    Admitted::New(meta) => {
                        made.push(Stored { meta, payload: payload.into() });
                        meta.position
                    }
                    Admitted::Known(position) => position,
                };
                let committed = replica.marks().high_water >= position.index;
                let (at, generation) = (position.index, position.generation);
                let node = self.nodes.get_mut(&id).unwrap();
                if committed {
                    let entry = node.disk.entry(at).unwrap().clone();
                    self.checker.acked(at, &entry);
                    self.outcomes.insert(name.into(), Outcome::Acked(at));
                } else {
                    self.outcomes.insert(name.into(), Outcome::Waiting);
                    node.waiters.push(Waiter { at, generation, request: name.into() });
                }
            }
            Err(
                refused @ (Refused::SessionExpired
                | Refused::SequenceGap { .. }
                | Refused::SequenceReused { .. }),
            ) => {
                // What is said of the log is said once it can no longer change.
                self.refusals += 1;
                let (number, end) = (self.refusals, replica.marks().last);
                let outcome = match replica.confirm(clock, number, &mut effects) {
                    Ok(()) => Outcome::Waiting,
                    Err(refused) => Outcome::Refused(refused),
                };
                if outcome == Outcome::Waiting {
                    let (name, payload) = (name.into(), payload.into());
                    let refusal = Refusal { name, payload, session, refused, end };
                    self.refused.insert((id, number), refusal);
                }
                self.outcomes.insert(name.into(), outcome);
            }
            Err(refused) => {
                self.outcomes.insert(name.into(), Outcome::Refused(refused));
            }
        }
        self.carry_out(id, &made, effects);
        Some(result)
    }

    /// Node `id` has taken a snapshot up to `covered`. False if the sessions as of then are not known any more.
    pub fn snapshot(&mut self, id: u64, covered: Index) -> bool {
        let replica = self.replica(id);
        let Some(base) = replica.base_at(covered) else { return false };
        self.input(id, &[], |replica, _, effects| replica.snapshot_taken(base.position(), effects));
        true
    }

    /// Node `id` raises its low-water mark.
    pub fn raise_low_water(&mut self, id: u64, first: Index) {
        self.input(id, &[], |replica, _, effects| replica.raise_low_water(first, effects));
    }

    /// Node `id` looks whether its log is too long or too old.
    pub fn retain(&mut self, id: u64, retention: Retention) -> bool {
        self.input(id, &[], |replica, clock, effects| replica.retain(clock, retention, effects).is_some())
            .unwrap_or(false)
    }

    /// What every node holds durably, the same everywhere and committed.
    pub fn on_all(&self) -> Index {
        let logs = || self.nodes.values().map(|node| &node.disk.durable);
        let shortest = logs().map(Vec::len).min().unwrap_or(0);
        let Some(first) = logs().next() else { return Index::ZERO };
        let same = (0..shortest).take_while(|at| logs().all(|log| log[*at] == first[*at])).count();
        Index(same as u64).min(self.checker.committed_index())
    }

    pub fn read(&mut self, id: u64, request: u64) -> Option<Result<(), Refused>> {
        let floor = self.checker.acked_index();
        self.reads.insert(request, (floor, None));
        let result = self
            .input(id, &[], |replica, clock, effects| replica.read_index(clock, request, effects))
            .unwrap_or(Err(Refused::Busy));
        if result.is_err() {
            self.reads.remove(&request);
        }
        Some(result)
    }

    /// Takes packets of `from -> to` off the wire; all, or only the `nth`.
    pub fn take(&mut self, from: u64, to: u64, nth: Option<usize>) -> Vec<Packet> {
        let mut at = 0;
        self.wire
            .extract_if(.., |packet| {
                let on_link = packet.from == from && packet.to == to;
                at += usize::from(on_link);
                on_link && nth.is_none_or(|n| n + 1 == at)
            })
            .collect()
    }

    /// Delivers everything between `nodes` and makes all their steps durable, until nothing is left to do.
    pub fn settle(&mut self, nodes: &[u64]) {
        for _ in 0..10_000 {
            let mut busy = false;
            for id in nodes {
                busy |= self.is_up(*id) && self.durable(*id, usize::MAX);
            }
            let among = |p: &Packet| nodes.contains(&p.from) && nodes.contains(&p.to);
            let packets: Vec<Packet> = self.wire.extract_if(.., |p| among(p)).collect();
            busy |= !packets.is_empty();
            for packet in packets {
                self.deliver(packet);
            }
            if !busy {
                return;
            }
        }
        panic!("{}: the world does not settle", self.event);
    }

    /// Ticks of every node that wants one.
    pub fn tick_due(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            if self.is_up(id) && self.replica(id).deadline() <= self.now {
                self.tick(id);
            }
        }
    }

    /// Time passes in small steps with a perfect network and perfect disks among `nodes`.
    pub fn run(&mut self, nodes: &[u64], d: Duration) {
        for round in 0..millis(d).max(1) {
            self.wait(Duration::from_millis(1));
            for id in nodes {
                let others: Vec<u64> = nodes.iter().copied().filter(|n| n != id).collect();
                if self.is_up(*id) && !others.is_empty() && round % 5 == 0 {
                    let at = usize::try_from(round / 5).unwrap() % others.len();
                    self.fetch(*id, others[at]);
                }
            }
            for id in nodes {
                if self.is_up(*id) && self.replica(*id).deadline() <= self.now {
                    self.tick(*id);
                }
            }
            self.settle(nodes);
            self.wire.retain(|p| nodes.contains(&p.from) && nodes.contains(&p.to));
        }
    }
}
