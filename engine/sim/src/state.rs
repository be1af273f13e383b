//! The world's state and its clockwork: events in order of time, turns, lives and deaths.

use crate::config::WorldConfig;
use crate::fault::{self, FaultCounts, FaultPlan};
use crate::file::{SECTOR_BYTES, total};
use crate::nemesis::WorldEvent;
use crate::network::Body;
use crate::node::{
    DiskOp, DiskWork, Event, InFlight, Life, Moment, Node, OpenFile, WriteShape, cancelled, failed,
};
use crate::random::Random;
use crate::trace::Trace;
use crate::world::Step;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tidelog_io::{Completion, FileId, IoErrorKind, Op, OpenMode, Output, Token, Wait};
use tidelog_types::Clock;

/// Tells the length of the frame at the start of a stream, if that much can be seen.
pub type FrameLength = fn(&[u8]) -> Option<usize>;

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) seed: u64,
    pub(crate) config: WorldConfig,
    pub(crate) plan: FaultPlan,
    /// Makes a nemesis of an earlier plan fall silent.
    pub(crate) plan_number: u64,
    /// True time, in nanoseconds.
    pub(crate) now: u64,
    /// Orders events of one moment, and names slots.
    pub(crate) seq: u64,
    /// Names files, connections, listeners.
    pub(crate) next_handle: u64,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) world_queue: BTreeMap<(u64, u64), WorldEvent>,
    /// Links (from, to) that carry nothing.
    pub(crate) blocked: BTreeSet<(u64, u64)>,
    pub(crate) frame_length: Option<FrameLength>,
    pub(crate) framed_nodes: BTreeSet<u64>,
    pub(crate) random: Random,
    pub(crate) trace: Trace,
    pub(crate) counts: FaultCounts,
    /// What the driver is to be told before anything else.
    pub(crate) reports: VecDeque<Step>,
}

impl State {
    pub(crate) fn new(seed: u64, config: WorldConfig) -> State {
        State {
            seed,
            config,
            plan: FaultPlan::none(),
            plan_number: 0,
            now: 0,
            seq: 0,
            next_handle: 0,
            nodes: BTreeMap::new(),
            world_queue: BTreeMap::new(),
            blocked: BTreeSet::new(),
            frame_length: None,
            framed_nodes: BTreeSet::new(),
            random: Random::new(seed),
            trace: Trace::new(seed),
            counts: FaultCounts::new(),
            reports: VecDeque::new(),
        }
    }

    pub(crate) fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    pub(crate) fn schedule(&mut self, id: u64, at: u64, event: Event) {
        let key = (at, self.next_seq());
        if let Some(node) = self.nodes.get_mut(&id) {
            node.queue.insert(key, event);
        }
    }

    /// A disk that hangs takes up its operations again.
    pub(crate) fn thaw(&mut self, id: u64) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let hung_until = std::mem::take(&mut node.hung_until);
        if hung_until <= now {
            return;
        }
        let waiting: Vec<(u64, u64)> =
            node.queue.range((hung_until, 0)..=(hung_until, u64::MAX)).map(|(key, _)| *key).collect();
        for key in waiting {
            if let Some(event) = self.nodes.get_mut(&id).and_then(|node| node.queue.remove(&key)) {
                self.schedule(id, now, event);
            }
        }
        self.trace.note(now, id, "thaw", &[]);
    }

    /// The node's own present: the world's, or later if it has run ahead.
    pub(crate) fn local(&self, id: u64) -> u64 {
        self.nodes.get(&id).map_or(self.now, |node| node.busy_until.max(self.now))
    }

    pub(crate) fn clock(&self, id: u64) -> Clock {
        self.nodes.get(&id).map_or_else(Clock::default, |node| node.clock.at(self.local(id)))
    }

    /// An operation that is as good as done.
    pub(crate) fn complete_soon(&mut self, at: u64, id: u64, completion: Completion) {
        let at = at + self.random.between((200, 2_000));
        self.put_slot(id, at, InFlight::Done(completion));
    }

    fn put_slot(&mut self, id: u64, at: u64, what: InFlight) {
        let slot = self.next_seq();
        let in_flight_max = self.config.in_flight_max;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(life) = &mut node.life else { return };
        life.slots.insert(slot, what);
        assert!(
            life.in_flight() <= in_flight_max,
            "node {id} has more than {in_flight_max} operations in flight: it submits without a bound"
        );
        let event = Event::Slot { life: life.number, slot };
        self.schedule(id, at, event);
    }

    // Nodes come and go.

    pub(crate) fn node_mut(&mut self, id: u64) -> &mut Node {
        assert!((1..1 << 24).contains(&id), "a node's id is its address, from 1 to 2^24 - 1");
        if !self.nodes.contains_key(&id) {
            let boot = self.random.between((1_000_000_000, 1_000_000_000_000));
            let random = Random::new(self.random.bits());
            let mut node = Node::new(id, self.now, random, boot);
            node.faults = if self.plan.nodes.contains(&id) { self.plan.disk } else { node.faults };
            self.nodes.insert(id, node);
            self.draw_drift(id);
        }
        self.nodes.get_mut(&id).expect("inserted if it was absent")
    }

    /// Starts a process. Returns its life's number.
    pub(crate) fn boot(&mut self, id: u64) -> u64 {
        self.node_mut(id);
        let boot_clock = self.random.between((1_000_000_000, 60_000_000_000));
        let now = self.local(id);
        let node = self.node_mut(id);
        assert!(node.life.is_none(), "node {id} still runs: crash it, kill it, or drop its SimIo first");
        if !node.powered && node.lives > 0 {
            node.clock.reboot(now, boot_clock);
        }
        node.powered = true;
        node.lives += 1;
        node.offered = false;
        node.deadline = Some(now);
        node.paused_until = 0;
        node.life = Some(Life::new(node.lives));
        let lives = node.lives;
        self.trace.note(now, id, "boot", &[lives]);
        lives
    }

    /// Ends a process, by power loss or by its death alone.
    pub(crate) fn end_life(&mut self, id: u64, power_lost: bool) {
        let at = self.local(id);
        self.drop_connections(at, id, power_lost);
        let State { nodes, random, counts, trace, .. } = self;
        let Some(node) = nodes.get_mut(&id) else { return };
        let life = node.life.take();
        if let Some(life) = life {
            // What was under way may have happened in part.
            for slot in life.slots.values() {
                if let InFlight::Disk(op) = slot {
                    interrupt(node, op, random);
                }
            }
            node.bury(&life);
        }
        if power_lost {
            let lost = node.disk.power_loss(random);
            node.durable_version += 1;
            node.powered = false;
            counts.add(fault::CRASH, 1);
            counts.add(fault::LOST_SECTORS, lost.sectors);
            counts.add(fault::LOST_NAME, lost.names);
            trace.note(at, id, "crash", &[lost.sectors, lost.names]);
        } else {
            node.disk.collect(&BTreeSet::new());
            counts.add(fault::KILL, 1);
            trace.note(at, id, "kill", &[]);
        }
    }

    /// A process returned from its main function, as seen from the disk: it is gone.
    pub(crate) fn exit(&mut self, id: u64, life: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.graves.remove(&life);
        if node.is_life(life) {
            self.end_life(id, false);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.graves.remove(&life);
            }
        }
    }

    // Operations.

    pub(crate) fn submit(&mut self, id: u64, life: u64, token: Token, op: Op) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if !node.is_life(life) {
            node.graves.entry(life).or_default().push_back(cancelled(token, "the process is gone"));
            return;
        }
        let at = self.local(id);
        self.note_submission(at, id, token, &op);
        match op {
            Op::Listen { address } => self.listen(at, id, token, address),
            Op::Accept { listener } => self.accept(at, id, token, listener),
            Op::CloseListener { listener } => self.close_listener(at, id, token, listener),
            Op::Connect { address } => self.connect(at, id, token, address),
            Op::Send { conn, data } => self.send(at, id, token, conn, data),
            Op::Recv { conn, buffer, filled } => self.recv(at, id, token, conn, buffer, filled),
            Op::Close { conn } => self.close(at, id, token, conn),
            Op::CloseFile { file } => {
                let node = self.node_mut(id);
                let closed = node.life.as_mut().and_then(|life| life.files.remove(&file));
                if let Some(life) = &node.life {
                    node.disk.collect(&life.open_inodes());
                }
                let done = match closed {
                    Some(_) => Completion { token, result: Ok(Output::Done) },
                    None => failed(token, IoErrorKind::Other, "close", "", "no such file"),
                };
                self.complete_soon(at, id, done);
            }
            disk => match self.disk_work(id, token, disk) {
                Ok((subject, work)) => self.start_disk(at, id, token, subject, work),
                Err(completion) => self.complete_soon(at, id, completion),
            },
        }
    }

    fn note_submission(&mut self, at: u64, id: u64, token: Token, op: &Op) {
        let crc = |data: &[Bytes]| data.iter().fold(0, |crc, piece| crc32c::crc32c_append(crc, piece));
        let path = |p: &std::path::Path| u64::from(crc32c::crc32c(p.as_os_str().as_encoded_bytes()));
        let (what, a, b, c): (&str, u64, u64, u64) = match op {
            Op::Open { path: p, mode } => ("open", path(p), *mode as u64, 0),
            Op::CloseFile { file } => ("close file", file.0, 0, 0),
            Op::Write { file, offset, data } => ("write", file.0, *offset, u64::from(crc(data))),
            Op::WriteDurable { file, offset, data } => {
                ("write durable", file.0, *offset, u64::from(crc(data)))
            }
            Op::Sync { file } => ("sync", file.0, 0, 0),
            Op::Read { file, offset, buffer } => ("read", file.0, *offset, buffer.len() as u64),
            Op::Locate { file } => ("locate", file.0, 0, 0),
            Op::Rename { from, to } => ("rename", path(from), path(to), 0),
            Op::Remove { path: p } => ("remove", path(p), 0, 0),
            Op::CreateDir { path: p } => ("create directory", path(p), 0, 0),
            Op::SyncDir { path: p } => ("sync directory", path(p), 0, 0),
            Op::List { path: p } => ("list", path(p), 0, 0),
            Op::Space { path: p } => ("ask for space", path(p), 0, 0),
            Op::Listen { address } => ("listen", u64::from(address.port()), 0, 0),
            Op::Accept { listener } => ("accept", listener.0, 0, 0),
            Op::Connect { address } => ("connect", u64::from(address.port()), 0, 0),
            Op::Send { conn, data } => ("send", conn.0, crate::file::total(data), u64::from(crc(data))),
            Op::Recv { conn, filled, .. } => ("receive", conn.0, *filled as u64, 0),
            Op::Close { conn } => ("close", conn.0, 0, 0),
            Op::CloseListener { listener } => ("close listener", listener.0, 0, 0),
        };
        self.trace.note(at, id, what, &[token.class as u64, token.value, a, b, c]);
    }

    /// Turns an operation on the disk into work, or says at once why not.
    fn disk_work(&mut self, id: u64, token: Token, op: Op) -> Result<(String, DiskWork), Completion> {
        let Some(node) = self.nodes.get_mut(&id) else { return Err(cancelled(token, "no such node")) };
        let upto = node.disk.seq();
        let files = node.life.as_ref().map(|life| &life.files);
        let open = |file: FileId, operation: &'static str| -> Result<OpenFile, Completion> {
            let found = files.and_then(|files| files.get(&file)).cloned();
            found.ok_or_else(|| failed(token, IoErrorKind::Other, operation, "", "no such file"))
        };
        let misuse = |operation, subject: &str, message| {
            Err(failed(token, IoErrorKind::Other, operation, subject, message))
        };
        let text = |path: &std::path::Path| path.display().to_string();
        let unaligned = "offset, length or memory is not a multiple of a page, or too many pieces";
        Ok(match op {
            Op::Write { file, offset, data } | Op::WriteDurable { file, offset, data }
                if !crate::disk::is_aligned(offset, &data) =>
            {
                let subject = open(file, "write")?.path;
                return misuse("write", &subject, unaligned);
            }
            Op::Write { file, offset, data } => {
                let OpenFile { inode, path, writable } = open(file, "write")?;
                if !writable {
                    return Err(failed(token, IoErrorKind::Denied, "write", &path, "opened for reading"));
                }
                (path, DiskWork::Write { inode, offset, data, durable: false })
            }
            Op::WriteDurable { file, offset, data } => {
                let OpenFile { inode, path, writable } = open(file, "write")?;
                if !writable {
                    return Err(failed(token, IoErrorKind::Denied, "write", &path, "opened for reading"));
                }
                (path, DiskWork::Write { inode, offset, data, durable: true })
            }
            Op::Sync { file } => {
                let OpenFile { inode, path, .. } = open(file, "sync")?;
                (path, DiskWork::Sync { inode, upto })
            }
            Op::Read { file, offset, buffer } => {
                let OpenFile { inode, path, .. } = open(file, "read")?;
                let page = tidelog_types::limits::PAGE_BYTES;
                if !offset.is_multiple_of(page as u64)
                    || buffer.is_empty()
                    || !buffer.len().is_multiple_of(page)
                {
                    return misuse("read", &path, unaligned);
                }
                (path, DiskWork::Read { inode, offset, buffer })
            }
            Op::Open { path, mode } => (text(&path), DiskWork::Open { path, mode }),
            Op::Locate { file } => {
                let OpenFile { inode, path, .. } = open(file, "locate")?;
                (path, DiskWork::Locate { inode })
            }
            Op::Rename { from, to } => (text(&from), DiskWork::Rename { from, to }),
            Op::Remove { path } => (text(&path), DiskWork::Remove { path }),
            Op::CreateDir { path } => (text(&path), DiskWork::CreateDir { path }),
            Op::SyncDir { path } => (text(&path), DiskWork::SyncDir { path, upto }),
            Op::List { path } => (text(&path), DiskWork::List { path }),
            Op::Space { path } => (text(&path), DiskWork::Space { path }),
            _ => return misuse("submit", "", "not an operation on the disk"),
        })
    }

    // Time.

    fn run_event(&mut self, id: u64, key: (u64, u64)) {
        let Some(event) = self.nodes.get_mut(&id).and_then(|node| node.queue.remove(&key)) else { return };
        // An event that a node which ran ahead comes to late happens at the node's present.
        let at = key.0.max(self.now);
        match event {
            Event::Slot { life, slot } => self.finish_slot(at, id, life, slot),
            Event::Packet(packet) => {
                let (what, size) = match &packet.body {
                    Body::Syn { port, .. } => ("syn", u64::from(*port)),
                    Body::SynAck => ("syn-ack", 0),
                    Body::Refused => ("refused", 0),
                    Body::Data(bytes) => ("data", bytes.len() as u64),
                    Body::Credit(bytes) => ("credit", *bytes as u64),
                    Body::Fin => ("fin", 0),
                    Body::Reset => ("reset", 0),
                };
                self.trace.note(at, id, what, &[packet.from, packet.from_conn.0, packet.to_conn.0, size]);
                self.deliver(at, id, packet);
            }
            Event::ConnectTimeout { conn } => self.connect_timeout(id, conn),
        }
    }

    fn finish_slot(&mut self, at: u64, id: u64, life: u64, slot: u64) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let (crash_at, hung_until) = (node.crash_at, node.hung_until);
        let Some(current) = node.life.as_mut().filter(|l| l.number == life) else { return };
        let Some(what) = current.slots.remove(&slot) else { return };
        if at < hung_until && matches!(what, InFlight::Disk(_)) {
            current.slots.insert(slot, what);
            return self.schedule(id, hung_until, Event::Slot { life, slot });
        }
        match what {
            InFlight::Done(completion) => current.ready.push_back(completion),
            InFlight::Disk(op) => {
                if let (Some(log), Some(number), DiskWork::Write { inode, offset, data, .. }) =
                    (&mut node.write_log, op.number, &op.work)
                {
                    let changed = node.disk.file(*inode).map_or(u64::MAX, |file| file.changed(*offset, data));
                    let sectors = total(data) / SECTOR_BYTES as u64;
                    log.push(WriteShape { number, sectors, changed });
                }
                let moment = crash_at.filter(|(n, _)| op.number == Some(*n)).map(|(_, moment)| moment);
                match moment {
                    None => self.finish_disk(at, id, op),
                    Some(Moment::After) => self.finish_disk(at, id, op),
                    Some(Moment::Sectors(mask))
                        if let DiskWork::Write { inode, offset, data, .. } = &op.work =>
                    {
                        node.disk.write_sectors(*inode, *offset, data, mask);
                        let token = op.token;
                        current.slots.insert(slot, InFlight::Done(cancelled(token, "the process is gone")));
                    }
                    Some(Moment::Inside | Moment::Sectors(_)) => {
                        current.slots.insert(slot, InFlight::Disk(op));
                    }
                    Some(Moment::Before) => {
                        // Its token still has to be answered.
                        let token = op.token;
                        current.slots.insert(slot, InFlight::Done(cancelled(token, "the process is gone")));
                    }
                }
                if moment.is_some() {
                    self.end_life(id, true);
                    self.reports.push_back(Step::Down(id));
                }
            }
        }
    }

    /// What a node's poll does.
    pub(crate) fn poll(&mut self, id: u64, life: u64, wait: Wait, out: &mut Vec<Completion>) -> usize {
        let cost = self.random.between(self.config.poll_ns);
        let mut present = self.local(id) + cost;
        let deadline = match wait {
            Wait::No => Some(0),
            Wait::Until(local) | Wait::Briefly(local) => {
                self.nodes.get(&id).map(|node| node.clock.true_time(local))
            }
            Wait::Forever => None,
        };
        loop {
            let Some(node) = self.nodes.get_mut(&id) else { return 0 };
            let ready = match &mut node.life {
                Some(current) if current.number == life => &mut current.ready,
                _ => {
                    // A dead process must not hang: whatever it waits for is over.
                    let grave = node.graves.remove(&life).unwrap_or_default();
                    let count = grave.len();
                    out.extend(grave);
                    return count;
                }
            };
            node.offered = false;
            node.busy_until = node.busy_until.max(present);
            let count = ready.len();
            let next = node.queue.first_key_value().map(|(key, _)| *key);
            let due = next.filter(|key| key.0 <= present);
            if let Some(key) = due {
                self.run_event(id, key);
                continue;
            }
            if count > 0 || deadline.is_some_and(|deadline| deadline <= present) {
                let at = node.busy_until;
                let done: Vec<Completion> = ready.drain(..).collect();
                for completion in &done {
                    self.note_completion(at, id, completion);
                }
                out.extend(done);
                return count;
            }
            present = match (next, deadline) {
                (Some(key), Some(deadline)) => key.0.min(deadline),
                (Some(key), None) => key.0,
                (None, Some(deadline)) => deadline,
                (None, None) => panic!(
                    "node {id} waits for ever, and nothing of its own is under way: in the simulated world, \
                     what another node does is waited for by returning from the turn"
                ),
            };
        }
    }

    fn note_completion(&mut self, at: u64, id: u64, completion: &Completion) {
        let (kind, size) = match &completion.result {
            Ok(Output::Done) => (1, 0),
            Ok(Output::Opened { file, bytes }) => (2, file.0 ^ bytes.rotate_left(32)),
            Ok(Output::Read { buffer, bytes }) => {
                (3, u64::from(crc32c::crc32c(buffer.get(..*bytes).unwrap_or_default())))
            }
            Ok(Output::Located(place)) => (8, place.inode ^ place.born_ns.unwrap_or(0).rotate_left(32)),
            Ok(Output::Names(names)) => (4, names.len() as u64),
            Ok(Output::Space(space)) => (8, space.free_bytes),
            Ok(Output::Listening { listener, .. }) => (5, listener.0),
            Ok(Output::Connected { conn, .. }) => (6, conn.0),
            Ok(Output::Received { bytes, .. }) => (7, *bytes as u64),
            Err(error) => (100 + error.kind as u64, 0),
        };
        let token = completion.token;
        self.trace.note(at, id, "completed", &[token.class as u64, token.value, kind, size]);
    }

    /// Runs the world until a node has a turn, something is to be reported, or `limit`.
    pub(crate) fn step(&mut self, limit: u64) -> Option<Step> {
        loop {
            if let Some(report) = self.reports.pop_front() {
                return Some(report);
            }
            let now = self.now;
            let runnable: Vec<u64> = self
                .nodes
                .values()
                .filter(|n| n.wants_turn_at().is_some_and(|at| at <= now))
                .map(|n| n.id)
                .collect();
            if !runnable.is_empty() {
                let id = *self.random.pick(&runnable)?;
                let node = self.nodes.get_mut(&id)?;
                node.offered = true;
                node.deadline = None;
                self.trace.note(now, id, "turn", &[]);
                return Some(Step::Node(id));
            }
            let world = self.world_queue.first_key_value().map(|(key, _)| *key);
            let own = self
                .nodes
                .values()
                .filter_map(|n| n.queue.first_key_value().map(|(key, _)| (*key, n.id)))
                .min();
            let turn = self.nodes.values().filter_map(Node::wants_turn_at).min();
            let next = [world.map(|key| key.0), own.map(|(key, _)| key.0), turn].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= limit) else {
                if limit != u64::MAX {
                    self.now = self.now.max(limit);
                }
                return None;
            };
            self.now = self.now.max(next);
            if let Some(key) = world.filter(|key| key.0 <= next) {
                if let Some(event) = self.world_queue.remove(&key) {
                    self.world_event(event);
                }
            } else if let Some((key, id)) = own.filter(|(key, _)| key.0 <= next) {
                self.run_event(id, key);
            }
        }
    }

    fn start_disk(&mut self, at: u64, id: u64, token: Token, subject: String, work: DiskWork) {
        let took = self.disk_time(id, &work);
        let Some(life) = self.nodes.get_mut(&id).and_then(|node| node.life.as_mut()) else { return };
        let number = work.changes_disk().then(|| {
            life.disk_ops += 1;
            life.disk_ops - 1
        });
        self.put_slot(id, at + took, InFlight::Disk(DiskOp { token, number, subject, work }));
    }
}

/// An operation that was under way when its process ended: any part of it may have happened.
fn interrupt(node: &mut Node, op: &DiskOp, random: &mut Random) {
    let disk = &mut node.disk;
    match &op.work {
        DiskWork::Write { inode, offset, data, .. } => {
            let all = random.coin();
            disk.write(*inode, *offset, data, false, |_| if all { 0xFF } else { random.bits() as u8 });
        }
        _ if random.coin() => {}
        DiskWork::Locate { .. } => {}
        // Done or not; a refusal does not matter to a process that is gone.
        DiskWork::Open { path, mode: OpenMode::Create } => drop(disk.create(path)),
        DiskWork::Rename { from, to } => drop(disk.rename(from, to)),
        DiskWork::Remove { path } => drop(disk.remove(path)),
        DiskWork::CreateDir { path } => drop(disk.create_directory(path)),
        DiskWork::SyncDir { path, upto } => drop(disk.sync_directory(path, *upto)),
        DiskWork::Sync { inode, upto } => {
            if let Some(file) = disk.file_mut(*inode) {
                let runs = file.sync(*upto);
                node.note_durable(*inode, runs);
            }
        }
        DiskWork::Open { .. } | DiskWork::Read { .. } => {}
        DiskWork::List { .. } | DiskWork::Space { .. } => {}
    }
}
