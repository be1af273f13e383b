//! A member that lies: it has the place, the name and the keys of one node, and says by hand-made frames whatever it likes.
//!
//! It knows everything: identities, the cluster's id, the process numbers that it is told in hellos, and what each replica's log looks like, so that its
//! lies are as near to the truth as lies can be. What it says is drawn from `words`; which habits it has is drawn once for each run. It speaks over
//! simulated connections of its own, as any process; it has no part of the product but the names of frames and messages. It may break agreement
//! between nodes (it can vote twice and confirm what it does not have), so its runs are judged node by node (`checkers/alone.rs`).

mod line;
mod words;

use crate::cluster::Cluster;
use crate::profile::PORT;
use bytes::Bytes;
use line::Line;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tidelog::formation::{Formed, Hello};
use tidelog_io::{Io, ListenerId, Op, Output, Token, Wait};
use tidelog_net::wire::{FrameHeader, FrameKind, PeerHello};
use tidelog_sim::{Random, SimIo, World};
use tidelog_types::{NodeId, PartitionId};
pub(crate) use words::Habits;

/// Connections that it has at most.
const LINES_MAX: usize = 64;
/// Hellos of earlier connections that it keeps, to say them again.
const RECORDED_MAX: usize = 32;
/// A receive buffer.
const RECV_BYTES: usize = 64 << 10;

const LISTEN: u64 = 1;
const ACCEPT: u64 = 2;
const CONNECT: u64 = 3;
const RECEIVE: u64 = 4;
const SEND: u64 = 5;
const CLOSE: u64 = 6;

fn token(what: u64, line: u64) -> Token {
    Token::net(what << 32 | line)
}

/// What a run's hostile member came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Channels that honest nodes took for a member's.
    pub(crate) channels: u64,
    /// Frames sent.
    pub(crate) frames: u64,
}

/// The hostile member.
pub(crate) struct Hostile {
    world: World,
    id: u64,
    io: SimIo,
    random: Random,
    habits: Habits,
    /// What an honest process of its node would say of itself.
    hello: Hello,
    others: Vec<(u64, SocketAddr)>,
    partitions: u64,
    listener: Option<ListenerId>,
    lines: BTreeMap<u64, Line>,
    last_line: u64,
    /// Hellos that were said before, to whom.
    recorded: Vec<(u64, Bytes)>,
    /// The generations that it pretends to lead, by partition.
    thrones: BTreeMap<u64, u64>,
    pub(crate) told: Told,
}

impl Hostile {
    /// Takes the place of a node whose process is gone. `hello`: what that one would say.
    pub(crate) fn new(
        world: &World,
        id: u64,
        hello: Hello,
        others: Vec<(u64, SocketAddr)>,
        random: Random,
    ) -> Hostile {
        let mut random = random;
        let habits = Habits::draw(&mut random);
        let mut io = world.node(id);
        io.submit(token(LISTEN, 0), Op::Listen { address: world.address(id, PORT) });
        world.wake(id);
        Hostile {
            world: world.clone(),
            id,
            io,
            random,
            habits,
            partitions: hello.partitions,
            hello,
            others,
            listener: None,
            lines: BTreeMap::new(),
            last_line: 0,
            recorded: Vec::new(),
            thrones: BTreeMap::new(),
            told: Told::default(),
        }
    }

    /// Its turn: it hears, answers, and says something of its own.
    pub(crate) fn turn(&mut self, cluster: &Cluster) {
        let mut completions = Vec::new();
        self.io.poll(Wait::No, &mut completions);
        for completion in completions {
            let (what, line) = (completion.token.value >> 32, completion.token.value & 0xffff_ffff);
            match (what, completion.result) {
                (LISTEN, Ok(Output::Listening { listener, .. })) => {
                    self.listener = Some(listener);
                    self.io.submit(token(ACCEPT, 0), Op::Accept { listener });
                }
                (ACCEPT, Ok(Output::Connected { conn, .. })) => {
                    let number = self.number();
                    self.lines.insert(number, Line::accepted(conn));
                    self.receive(number);
                    if let Some(listener) = self.listener {
                        self.io.submit(token(ACCEPT, 0), Op::Accept { listener });
                    }
                }
                (CONNECT, Ok(Output::Connected { conn, .. })) => {
                    if let Some(open) = self.lines.get_mut(&line) {
                        open.conn = Some(conn);
                    }
                    self.begin(line);
                    self.receive(line);
                }
                (RECEIVE, Ok(Output::Received { buffer, bytes })) if bytes > 0 => {
                    if let Some(open) = self.lines.get_mut(&line) {
                        open.heard.extend_from_slice(buffer.get(..bytes).unwrap_or_default());
                    }
                    self.hear(line, cluster);
                    if !self.habits.deaf {
                        self.receive(line);
                    }
                }
                (SEND, Ok(_)) => {
                    if let Some(open) = self.lines.get_mut(&line) {
                        open.sending = false;
                    }
                }
                (CONNECT | RECEIVE | SEND, _) => self.close(line),
                _ => {}
            }
        }
        self.act(cluster);
        let numbers: Vec<u64> = self.lines.keys().copied().collect();
        numbers.into_iter().for_each(|line| self.flush(line));
        let pause = Duration::from_micros(self.random.between((500, self.habits.pause_us)));
        self.world.sleep_until(self.id, Some(self.io.clock().now.after(pause)));
    }

    fn number(&mut self) -> u64 {
        self.last_line += 1;
        self.last_line
    }

    /// Something of its own accord.
    fn act(&mut self, cluster: &Cluster) {
        if self.lines.len() < LINES_MAX && self.random.below(8) == 0 {
            self.dial();
        }
        let up: Vec<u64> = self.lines.iter().filter(|(_, line)| line.is_up()).map(|(n, _)| *n).collect();
        for line in up {
            if let Some(open) = self.lines.get_mut(&line) {
                self.told.channels += u64::from(!std::mem::replace(&mut open.counted, true));
            }
            for _ in 0..self.random.between((0, self.habits.frames_max)) {
                if self.lines.get(&line).is_some_and(Line::has_room) {
                    self.say_something(line, cluster);
                }
            }
            if self.random.below(400) == 0 {
                self.close(line);
            }
        }
    }

    /// A new connection to one of the others, mostly if there is none that is up.
    fn dial(&mut self) {
        let Some((to, address)) = self.random.pick(&self.others).copied() else { return };
        let up = self.lines.values().any(|line| line.to == Some(to) && (line.is_up() || line.conn.is_none()));
        if up && !(self.habits.other_names && self.random.below(16) == 0) {
            return;
        }
        let number = self.number();
        self.lines.insert(number, Line::dialled(to));
        self.io.submit(token(CONNECT, number), Op::Connect { address });
    }

    /// The first words on a connection that it dialled.
    fn begin(&mut self, number: u64) {
        let Some(to) = self.lines.get(&number).and_then(|line| line.to) else { return };
        let recorded: Vec<Bytes> =
            self.recorded.iter().filter(|(node, _)| *node == to).map(|(_, bytes)| bytes.clone()).collect();
        if self.habits.recorded && self.random.below(3) == 0 && !recorded.is_empty() {
            // What an earlier connection began with, in its order.
            recorded.into_iter().rev().take(2).for_each(|bytes| self.queue(number, bytes));
            return;
        }
        self.greet(number);
    }

    /// Its hello, as it is due on this connection, or one that lies.
    fn greet(&mut self, number: u64) {
        let mut hello = self.hello.clone();
        let Some(line) = self.lines.get_mut(&number) else { return };
        hello.process = line.process(&mut self.random);
        let mut said = PeerHello { hello, attempt: line.attempt, to_shard: 0, to_process: line.theirs };
        if self.habits.hellos && self.random.below(4) == 0 {
            words::spoil_hello(&mut self.random, &mut said, line.to, self.habits.other_names);
        }
        let to = line.to;
        line.greeted |= said.to_process != 0;
        let mut bytes = Vec::new();
        said.put(&mut bytes);
        let bytes = Bytes::from(bytes);
        if let Some(to) = to {
            if self.recorded.len() == RECORDED_MAX {
                self.recorded.remove(0);
            }
            self.recorded.push((to, bytes.clone()));
        }
        self.queue(number, bytes);
    }

    /// Frames that came in.
    fn hear(&mut self, number: u64, cluster: &Cluster) {
        while let Some(line) = self.lines.get_mut(&number) {
            let Ok(Some(header)) = FrameHeader::decode(&line.heard) else { return };
            if line.heard.len() < header.frame_bytes() {
                return;
            }
            let frame: Vec<u8> = line.heard.drain(..header.frame_bytes()).collect();
            let meta_len = usize::try_from(header.meta_len).unwrap_or(0);
            let meta = frame.get(64..64 + meta_len).unwrap_or_default();
            match header.kind {
                FrameKind::Hello => {
                    let Ok(said) = PeerHello::decode(&header, meta) else { continue };
                    line.to = Some(said.hello.node.0);
                    line.theirs = said.hello.process;
                    if !line.dialled {
                        line.attempt = said.attempt;
                    }
                    line.present |= said.to_process != 0;
                    if !line.greeted {
                        self.greet(number);
                    }
                }
                FrameKind::Messages | FrameKind::Append => self.answer(number, header.kind, meta, cluster),
                FrameKind::Refused => return self.close(number),
                FrameKind::ClientHello => {
                    // A client: it is told nonsense.
                    let bytes = words::garbage(&mut self.random);
                    self.queue(number, bytes);
                    self.flush(number);
                    return self.close(number);
                }
                _ => {}
            }
        }
    }

    /// Says one frame of what it draws.
    fn say_something(&mut self, number: u64, cluster: &Cluster) {
        let Some(to) = self.lines.get(&number).and_then(|line| line.to) else { return };
        if self.habits.garbage && self.random.below(200) == 0 {
            let bytes = words::garbage(&mut self.random);
            return self.queue(number, bytes);
        }
        if self.habits.hellos && self.random.below(100) == 0 {
            return self.greet(number);
        }
        let partition = PartitionId(self.random.below(self.partitions));
        let replica = cluster.replica(to, partition);
        if self.habits.leads && self.random.below(6) == 0 {
            self.reign(partition, cluster);
        }
        let throne = self.thrones.get(&partition.0).copied();
        let tag = self.hello.formed.as_ref().map_or(0, |formed: &Formed| formed.cluster.tag());
        let mut words =
            words::Words { random: &mut self.random, habits: &self.habits, replica, partition, throne, tag };
        let bytes = words.frame();
        self.queue(number, bytes);
    }

    /// Pretends to lead the next generation of a partition from now on.
    fn reign(&mut self, partition: PartitionId, cluster: &Cluster) {
        let nodes = self.others.iter().filter_map(|(node, _)| cluster.replica(*node, partition));
        let newest = nodes.map(|replica| replica.generation().0).max().unwrap_or(0);
        let own = self.thrones.entry(partition.0).or_insert(0);
        if *own < newest || self.random.below(50) == 0 {
            *own = newest + 1;
        }
    }

    /// Answers what a peer said, as nobody should believe it.
    fn answer(&mut self, number: u64, kind: FrameKind, meta: &[u8], cluster: &Cluster) {
        let Some(to) = self.lines.get(&number).and_then(|line| line.to) else { return };
        for said in words::said(kind, meta) {
            let (partition, message) = said;
            let replica = cluster.replica(to, partition);
            if let Some(bytes) = words::reply(&mut self.random, &self.habits, replica, partition, &message)
                && self.lines.get(&number).is_some_and(Line::has_room)
            {
                self.queue(number, bytes);
            }
        }
    }

    fn queue(&mut self, number: u64, bytes: Bytes) {
        if let Some(line) = self.lines.get_mut(&number) {
            line.queue.push(bytes);
            self.told.frames += 1;
        }
    }

    fn flush(&mut self, number: u64) {
        let Some(line) = self.lines.get_mut(&number) else { return };
        if let Some(conn) = line.conn.filter(|_| !line.sending && !line.queue.is_empty()) {
            line.sending = true;
            let data = std::mem::take(&mut line.queue);
            self.io.submit(token(SEND, number), Op::Send { conn, data });
        }
    }

    fn receive(&mut self, number: u64) {
        if let Some(conn) = self.lines.get(&number).and_then(|line| line.conn) {
            let buffer = self.io.buffers().take(RECV_BYTES);
            self.io.submit(token(RECEIVE, number), Op::Recv { conn, buffer, filled: 0 });
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(conn) = self.lines.remove(&number).and_then(|line| line.conn) {
            self.io.submit(token(CLOSE, number), Op::Close { conn });
        }
    }

    /// The node whose place it has.
    pub(crate) fn node(&self) -> NodeId {
        NodeId(self.id)
    }
}
