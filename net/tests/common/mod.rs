//! Nodes with the real transport and a shard that only answers, clients with the real core, in a simulated world.
#![allow(dead_code)] // each test file uses its own part of it

use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tidelog::formation::{Formed, Hello, Member};
use tidelog::request::{BusyReason, Level, NodeStatus, Records, Reply, Request, RequestError, Response};
use tidelog::transport::{ClientRef, Event, PeerMessage, Transport};
use tidelog_consensus::{Append, Free, Message};
use tidelog_io::{ConnId, Io, Op, Output, Token, TokenClass, Wait};
use tidelog_net::client::{ClientCore, ClientOptions, ClientRequest, Done};
use tidelog_net::{Limits, NetOptions, NetTransport};
use tidelog_sim::{SimIo, Step, World};
use tidelog_types::{
    ClusterId, Generation, Incarnation, Index, NodeId, PartitionId, Position, SessionId, SessionRef,
};

pub(crate) const SECOND: u64 = 1_000_000_000;
pub(crate) const MS: u64 = 1_000_000;
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(50);
pub(crate) const PORT: u16 = 7101;

/// How a node's stand-in for a shard answers appends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Mood {
    /// As the leader.
    Leads,
    /// By naming another node, or nobody.
    Follows(Option<u64>),
    /// Never.
    Silent,
    /// Every n-th request is turned away for a time.
    BusyEvery(u64),
    /// By saying that it does not know.
    Unknown,
    /// With this.
    Refuses(RequestError),
}

pub(crate) struct Node {
    pub(crate) io: SimIo,
    pub(crate) net: NetTransport,
    pub(crate) mood: Mood,
    pub(crate) up: Vec<u64>,
    pub(crate) ups: usize,
    pub(crate) downs: usize,
    pub(crate) hellos: Vec<Hello>,
    pub(crate) heard: Vec<(u64, PeerMessage)>,
    /// What was appended, in order, with its session.
    pub(crate) log: Vec<(Option<SessionRef>, Bytes)>,
    pub(crate) asked: u64,
    pub(crate) unanswered: Vec<ClientRef>,
    /// Reads wait for a disk that hangs.
    pub(crate) reads_hang: bool,
    pub(crate) gone: usize,
    address: SocketAddr,
}

pub(crate) struct Asker {
    pub(crate) io: SimIo,
    pub(crate) core: ClientCore,
    pub(crate) done: Vec<Done>,
}

/// Someone who speaks bytes, over any number of connections.
pub(crate) struct Stranger {
    pub(crate) io: SimIo,
    /// Connections by the order in which they were dialled: what they received, and whether they have ended.
    pub(crate) conns: BTreeMap<u64, (ConnId, Vec<u8>, bool)>,
    /// Whether it reads.
    pub(crate) reads: bool,
    dialled: u64,
}

impl Stranger {
    fn turn(&mut self) {
        let mut completions = Vec::new();
        self.io.poll(Wait::No, &mut completions);
        for completion in completions {
            let (what, n) = (completion.token.value >> 32, completion.token.value & 0xffff_ffff);
            match (what, completion.result) {
                (1, Ok(Output::Connected { conn, .. })) => {
                    self.conns.insert(n, (conn, Vec::new(), false));
                    self.receive(n);
                }
                (2, Ok(Output::Received { buffer, bytes })) if bytes > 0 => {
                    self.conns.get_mut(&n).unwrap().1.extend_from_slice(&buffer[..bytes]);
                    self.receive(n);
                }
                (2, _) => self.conns.get_mut(&n).unwrap().2 = true,
                (1, Err(error)) => panic!("{error}"),
                _ => {}
            }
        }
    }

    pub(crate) fn dial(&mut self, address: SocketAddr) -> u64 {
        self.dialled += 1;
        self.io.submit(Token::net(1 << 32 | self.dialled), Op::Connect { address });
        self.dialled
    }

    fn receive(&mut self, n: u64) {
        if self.reads {
            let (conn, buffer) = (self.conns[&n].0, self.io.buffers().take(4096));
            self.io.submit(Token::net(2 << 32 | n), Op::Recv { conn, buffer, filled: 0 });
        }
    }

    /// Says something. What is said before is taken care of: one send at a time is the caller's business.
    pub(crate) fn say(&mut self, n: u64, bytes: &[u8]) {
        let conn = self.conns[&n].0;
        self.io.submit(Token::net(3 << 32 | n), Op::Send { conn, data: vec![Bytes::copy_from_slice(bytes)] });
    }
}

pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) nodes: BTreeMap<u64, Node>,
    pub(crate) clients: BTreeMap<u64, Asker>,
    pub(crate) strangers: BTreeMap<u64, Stranger>,
    pub(crate) limits: Limits,
    pub(crate) channel_timeout: Duration,
    processes: u64,
}

pub(crate) fn formed(nodes: &[u64]) -> Formed {
    let members =
        nodes.iter().map(|n| Member { node: NodeId(*n), incarnation: Incarnation(100 + n) }).collect();
    Formed { cluster: ClusterId(77), members }
}

pub(crate) fn hello(node: u64) -> Hello {
    Hello {
        cluster_name: "test".into(),
        node: NodeId(node),
        incarnation: Incarnation(100 + node),
        process: 0,
        shard: 0,
        shard_count: 1,
        partitions: 8,
        replication: 3,
        key_hash: 1,
        payload_bytes_max: 2 << 20,
        feature_level: 1,
        heartbeat_ms: 50,
        barred: false,
        formed: Some(formed(&[1, 2, 3])),
    }
}

pub(crate) fn heartbeat(round: u64) -> PeerMessage {
    let message = Free::Heartbeat { generation: Generation(1), high_water: Index(0), round };
    PeerMessage { partition: PartitionId(1), message: Message::Free(message), records: vec![] }
}

pub(crate) fn append(round: u64, bytes: usize) -> PeerMessage {
    let append =
        Append { generation: Generation(1), prev: Position::ZERO, count: 1, high_water: Index(0), round };
    PeerMessage {
        partition: PartitionId(1),
        message: Message::Free(Free::Append(append)),
        records: vec![Bytes::from(vec![round as u8; bytes])],
    }
}

impl Cluster {
    pub(crate) fn new(seed: u64) -> Cluster {
        Cluster {
            world: World::new(seed),
            nodes: BTreeMap::new(),
            clients: BTreeMap::new(),
            strangers: BTreeMap::new(),
            limits: Limits::default(),
            channel_timeout: 10 * HEARTBEAT,
            processes: 1000,
        }
    }

    /// Three formed nodes.
    pub(crate) fn of_three(seed: u64) -> Cluster {
        let mut cluster = Cluster::new(seed);
        for node in 1..=3 {
            cluster.start(hello(node));
        }
        cluster
    }

    pub(crate) fn address(&self, node: u64) -> SocketAddr {
        self.world.address(node, PORT)
    }

    pub(crate) fn start(&mut self, hello: Hello) {
        let id = hello.node.0;
        let nodes: Vec<_> = (1..=3).map(|n| (NodeId(n), self.address(n))).collect();
        let mut options = NetOptions::new(NodeId(id), nodes, HEARTBEAT);
        options.limits = self.limits.clone();
        options.channel_timeout = self.channel_timeout;
        self.start_with(hello, options);
    }

    pub(crate) fn start_with(&mut self, mut hello: Hello, options: NetOptions) {
        let id = hello.node.0;
        self.processes += 1;
        hello.process = self.processes;
        let mut io = self.world.node(id);
        let mut net = NetTransport::new(options);
        let address = net.start(&mut io, hello).expect("the address is free").expect("it listens");
        net.flush(&mut io);
        self.world.sleep_until(id, net.deadline());
        let node = Node {
            io,
            net,
            mood: Mood::Follows(None),
            up: vec![],
            ups: 0,
            downs: 0,
            hellos: vec![],
            heard: vec![],
            log: vec![],
            asked: 0,
            unanswered: vec![],
            reads_hang: false,
            gone: 0,
            address,
        };
        self.nodes.insert(id, node);
    }

    /// The process dies.
    pub(crate) fn kill(&mut self, id: u64) {
        self.world.kill(id);
        self.nodes.remove(&id);
    }

    pub(crate) fn client(&mut self, id: u64, options: ClientOptions) {
        let io = self.world.node(id);
        self.clients.insert(id, Asker { io, core: ClientCore::new(options), done: vec![] });
    }

    /// A client that knows the first node only.
    pub(crate) fn plain_client(&mut self, id: u64) {
        let options = ClientOptions::new(vec![self.address(1)]);
        self.client(id, options);
    }

    /// A stranger with so many connections to the first node, already made.
    pub(crate) fn stranger(&mut self, id: u64, connections: u64) {
        let io = self.world.node(id);
        self.strangers.insert(id, Stranger { io, conns: BTreeMap::new(), reads: true, dialled: 0 });
        let address = self.address(1);
        for _ in 0..connections {
            self.stranger_mut(id).dial(address);
        }
        assert!(self.run_until(SECOND, |c| c.strangers[&id].conns.len() as u64 == connections));
    }

    pub(crate) fn stranger_mut(&mut self, id: u64) -> &mut Stranger {
        self.strangers.get_mut(&id).expect("a stranger")
    }

    /// Whether the stranger's connection has been ended by the node.
    pub(crate) fn ended(&self, id: u64, n: u64) -> bool {
        self.strangers[&id].conns[&n].2
    }

    pub(crate) fn ask(&mut self, client: u64, tag: u64, request: ClientRequest) {
        let asker = self.clients.get_mut(&client).expect("a client");
        asker.core.submit(&mut asker.io, request, tag).expect("room");
        asker.core.flush(&mut asker.io);
        asker.core.drain(&mut asker.done);
        self.world.sleep_until(client, asker.core.deadline());
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node")
    }

    pub(crate) fn done(&self, client: u64) -> &[Done] {
        &self.clients[&client].done
    }

    /// Queues a message and flushes.
    pub(crate) fn send(&mut self, from: u64, to: u64, message: PeerMessage) -> bool {
        let node = self.node(from);
        let taken = node.net.send(NodeId(to), message);
        node.net.flush(&mut node.io);
        taken
    }

    /// Says a node's new identity.
    pub(crate) fn form(&mut self, id: u64, formed: &Formed) {
        let node = self.node(id);
        node.net.formed(&mut node.io, formed);
        node.net.flush(&mut node.io);
        let deadline = node.net.deadline();
        self.world.sleep_until(id, deadline);
    }

    pub(crate) fn turn(&mut self, id: u64) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.turn();
            self.world.sleep_until(id, node.net.deadline());
        }
        if let Some(stranger) = self.strangers.get_mut(&id) {
            stranger.turn();
        }
        if let Some(asker) = self.clients.get_mut(&id) {
            let mut completions = Vec::new();
            asker.io.poll(Wait::No, &mut completions);
            for completion in completions {
                asker.core.complete(&mut asker.io, completion);
            }
            asker.core.tick(&mut asker.io);
            asker.core.flush(&mut asker.io);
            asker.core.drain(&mut asker.done);
            self.world.sleep_until(id, asker.core.deadline());
        }
    }

    /// Runs until `met`; false if that takes longer than `limit_ns`.
    pub(crate) fn run_until(&mut self, limit_ns: u64, mut met: impl FnMut(&Cluster) -> bool) -> bool {
        let end = self.world.now() + limit_ns;
        while !met(self) {
            match self.world.step_until(end) {
                Some(Step::Node(id)) => self.turn(id),
                Some(_) => {}
                None => return false,
            }
        }
        true
    }

    pub(crate) fn run(&mut self, ns: u64) {
        self.run_until(ns, |_| false);
    }

    pub(crate) fn all_up(&self) -> bool {
        self.nodes.values().all(|n| n.up.len() == 2)
    }
}

/// A read as large as reads are by default.
pub(crate) const READ: Request = Request::Read {
    partition: PartitionId(0),
    from: Index(1),
    to: None,
    bytes_max: 1 << 20,
    level: Level::Local,
};

impl Node {
    fn turn(&mut self) {
        let (mut completions, mut events) = (Vec::new(), Vec::new());
        self.io.poll(Wait::No, &mut completions);
        for completion in completions {
            assert_eq!(completion.token.class, TokenClass::Net);
            self.net.complete(&mut self.io, completion, &mut events);
        }
        self.net.tick(&mut self.io, &mut events);
        for event in events {
            match event {
                Event::Hello { hello } => self.hellos.push(hello),
                Event::Up(node) => {
                    assert!(!self.up.contains(&node.0), "up is said once");
                    self.up.push(node.0);
                    self.ups += 1;
                }
                Event::Down(node) => {
                    assert!(self.up.contains(&node.0), "down follows up");
                    self.up.retain(|n| *n != node.0);
                    self.downs += 1;
                }
                Event::Peer { from, message } => {
                    assert!(self.up.contains(&from.0), "messages only over a channel that is up");
                    self.heard.push((from.0, message));
                }
                Event::Request { client, request } => self.answer(client, &request),
                Event::Refused { .. } => {}
                Event::ClientGone { connection } => {
                    self.unanswered.retain(|c| c.connection != connection);
                    self.gone += 1;
                }
            }
        }
        self.net.flush(&mut self.io);
    }

    /// The disk under the reads goes on.
    pub(crate) fn answer_reads(&mut self) {
        self.reads_hang = false;
        for client in std::mem::take(&mut self.unanswered) {
            self.answer(client, &READ);
        }
        self.net.flush(&mut self.io);
    }

    fn answer(&mut self, client: ClientRef, request: &Request) {
        self.asked += 1;
        if self.reads_hang && matches!(request, Request::Read { .. }) {
            return self.unanswered.push(client);
        }
        let response = match request {
            Request::Snapshot { .. } => Err(RequestError::Invalid("a plain log".into())),
            Request::Status { .. } => Ok(Reply::Status(Box::new(NodeStatus {
                node: self.net_node(),
                address: self.address.to_string(),
                ..NodeStatus::default()
            }))),
            Request::Read { level: Level::Linearizable, .. } if matches!(self.mood, Mood::Follows(_)) => {
                Err(self.not_leader())
            }
            Request::Read { from: from @ Index(u64::MAX), .. } => {
                Err(RequestError::Ahead { asked: *from, high_water: Index(self.log.len() as u64) })
            }
            Request::Read { from, bytes_max, .. } => Ok(Reply::Records(Records {
                next: from.next(),
                high_water: Index(self.log.len() as u64),
                first_readable: Index(1),
                records: vec![Bytes::from(vec![1u8; *bytes_max as usize])],
            })),
            _ => match &self.mood {
                Mood::Silent => return self.unanswered.push(client),
                Mood::Refuses(error) => Err(error.clone()),
                Mood::Unknown => {
                    self.append(request).ok();
                    Err(RequestError::Unknown)
                }
                Mood::Follows(_) => Err(self.not_leader()),
                Mood::BusyEvery(n) if self.asked.is_multiple_of(*n) => Err(RequestError::Busy {
                    retry_after: Duration::from_millis(3),
                    reason: BusyReason::DiskFull,
                }),
                Mood::Leads | Mood::BusyEvery(_) => self.append(request),
            },
        };
        self.net.respond(client, response);
    }

    fn not_leader(&self) -> RequestError {
        let Mood::Follows(hint) = self.mood else { panic!("{:?} is no follower", self.mood) };
        let address = hint.map(|n| self.io.world().address(n, PORT).to_string());
        RequestError::NotLeader { hint: hint.map(NodeId), address }
    }

    fn net_node(&self) -> u64 {
        self.io.node()
    }

    /// As a leader's log would: dense sequences, at most once.
    fn append(&mut self, request: &Request) -> Response {
        let at = |i: usize| Position::new(Index(i as u64 + 1), Generation(1));
        match request {
            Request::Append { session, payload, payload_crc, .. } => {
                assert_eq!(tidelog_crc(payload), *payload_crc);
                if let Some(s) = session {
                    if let Some(i) = self.log.iter().position(|(known, _)| *known == Some(*s)) {
                        return Ok(Reply::Appended { position: at(i) });
                    }
                    let known = self.log.iter().filter_map(|(k, _)| *k).filter(|k| k.session == s.session);
                    let next = known.map(|k| k.sequence.0).max().unwrap_or(0) + 1;
                    if s.sequence.0 != next {
                        let expected = tidelog_types::Sequence(next);
                        return Err(RequestError::SequenceGap { expected });
                    }
                }
                self.log.push((*session, payload.clone()));
                Ok(Reply::Appended { position: at(self.log.len() - 1) })
            }
            _ => Ok(Reply::SessionOpened { session: SessionId(9), position: at(0) }),
        }
    }

    /// Answers what was left.
    pub(crate) fn answer_all(&mut self) {
        for client in std::mem::take(&mut self.unanswered) {
            let position = Position::new(Index(1), Generation(1));
            self.net.respond(client, Ok(Reply::Appended { position }));
        }
        self.net.flush(&mut self.io);
    }

    pub(crate) fn rounds(&self) -> Vec<u64> {
        self.heard
            .iter()
            .filter_map(|(_, m)| match &m.message {
                Message::Free(Free::Heartbeat { round, .. }) => Some(*round),
                Message::Free(Free::Append(a)) => Some(a.round),
                _ => None,
            })
            .collect()
    }
}

fn tidelog_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}
