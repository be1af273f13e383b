//! The shard's way to its peers and clients: implements the engine's transport trait on the shard's own ring.
//!
//! One listening socket for both; the first frame tells them apart. What it promises: messages flow only over a
//! channel whose identities agreed; there is one channel a peer; every queue is bounded, a full one refuses; a
//! peer or a client that sends anything but what the format allows loses its connection and nothing else. It
//! repeats nothing: what to send again is the replicas' progress. It does not know what messages and
//! requests mean.

mod handshake;
mod time;
mod traffic;

use crate::budget::{Budget, Held};
use crate::inbound::Inbound;
use crate::options::NetOptions;
use crate::peers::{Channel, Peer, Told};
use crate::pipe::{NetOp, Pipe, of_token};
use crate::session::Session;
use crate::slab::{Key, Slab};
use crate::wire::{self, FrameKind, RefusalCode, WireError};
use bytes::Bytes;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use tidelog::Error;
use tidelog::formation::{Formed, Hello, HelloRefused, judge};
use tidelog::request::Response;
use tidelog::transport::{ClientRef, Event, PeerMessage, REFUSED_CONNECTIONS_MAX, Transport};
use tidelog_io::{Completion, ConnId, Foreground, Io, IoError, IoErrorKind, ListenerId, Op, Output};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Monotonic, NodeId};

/// Receive buffers of clients: from, to.
const CLIENT_BUFFER: (usize, usize) = (PAGE_BYTES, 64 << 10);
/// Receive buffers of peers: from, to.
const PEER_BUFFER: (usize, usize) = (16 << 10, 1 << 20);
/// How long a refused connection is kept so that the refusal arrives.
const LINGER: Duration = Duration::from_millis(500);
/// How often an address in use is tried, and the time between.
const LISTEN_ATTEMPTS_MAX: u32 = 60;
const LISTEN_STEP: Duration = Duration::from_millis(50);
/// Ticks come at least so often, and at most so often.
const TICK: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

#[derive(Debug)]
enum Role {
    /// Accepted, nothing said yet.
    Fresh,
    Peer(Box<Channel>),
    Client(Box<Session>),
    /// Refused, or replaced: what is left is that the other end learns why.
    Parting {
        until: Monotonic,
        farewell: Option<Vec<u8>>,
    },
    /// Waits for its last completions.
    Closed,
}

#[derive(Debug)]
struct Conn {
    pipe: Pipe,
    role: Role,
    remote: SocketAddr,
    since: Monotonic,
    dirty: bool,
    hold: Hold,
    /// It stands among those whose reads wait for others' memory.
    reads_wait: bool,
    /// Bytes counted in the clients' total.
    charged: Held,
    /// Its number among those whose large request is arriving.
    upload: Option<u64>,
}

/// Why a client is not read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hold {
    No,
    /// It has as much in flight as one connection may.
    Own,
    /// All clients together hold so much that its next request, of so many bytes, does not fit. Reads are put aside instead.
    Waits(usize),
    /// The same for the buffer of a large request that is arriving.
    Upload,
}

/// A node's network over its shard's ring.
pub struct NetTransport {
    options: NetOptions,
    hello: Option<Hello>,
    configured: Vec<NodeId>,
    listener: Option<ListenerId>,
    accepting: bool,
    conns: Slab<Conn>,
    peers: BTreeMap<NodeId, Peer>,
    dials: BTreeMap<u64, NodeId>,
    attempts: u64,
    /// Connections in the order accepted; those that have spoken since are skipped.
    fresh: VecDeque<Key>,
    fresh_count: usize,
    clients: usize,
    budget: Budget,
    /// Clients with reads that wait because of the total; in turn, a read each.
    waiting_reads: VecDeque<Key>,
    /// Clients held because of the total, in the order in which they came to be.
    waiting_others: VecDeque<Key>,
    /// Clients whose large request is arriving, in the order in which it began to. The first one always goes on.
    uploads: BTreeMap<u64, Key>,
    uploads_begun: u64,
    /// Connections refused and not closed yet, in order; those that are closed are skipped.
    parting: VecDeque<Key>,
    dirty: Vec<Key>,
    pending: Vec<Event>,
    told: Told,
    keepalive: Bytes,
    interval: Duration,
    last_tick: Monotonic,
    last_excuse: Monotonic,
}

impl NetTransport {
    /// A transport that is not listening yet.
    pub fn new(options: NetOptions) -> NetTransport {
        let configured: Vec<NodeId> = options.nodes.iter().map(|(node, _)| *node).collect();
        let mut keepalive = Vec::new();
        wire::put_frame(&mut keepalive, FrameKind::Keepalive, [0; 5], &[]);
        let budget = Budget::new(options.limits.client_bytes_max);
        let interval = (options.heartbeat / 2).clamp(TICK.0, TICK.1);
        NetTransport {
            options,
            hello: None,
            configured,
            listener: None,
            accepting: false,
            conns: Slab::new(),
            peers: BTreeMap::new(),
            dials: BTreeMap::new(),
            attempts: 0,
            fresh: VecDeque::new(),
            fresh_count: 0,
            clients: 0,
            budget,
            waiting_reads: VecDeque::new(),
            waiting_others: VecDeque::new(),
            uploads: BTreeMap::new(),
            uploads_begun: 0,
            parting: VecDeque::new(),
            dirty: Vec::new(),
            pending: Vec::new(),
            told: Told::default(),
            keepalive: Bytes::from(keepalive),
            interval,
            last_tick: Monotonic(0),
            last_excuse: Monotonic(0),
        }
    }

    /// Connections of any kind, those that are being closed included.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// Bytes of requests, arriving or in flight, and of answers of all clients.
    pub fn client_bytes(&self) -> usize {
        self.budget.bytes()
    }

    // --- connections -------------------------------------------------------------------------------------

    fn insert(&mut self, io: &mut dyn Io, conn: ConnId, remote: SocketAddr, role: Role) -> Key {
        let now = io.clock().now;
        let (min, max) = if matches!(role, Role::Peer(_)) { PEER_BUFFER } else { CLIENT_BUFFER };
        let pipe = Pipe::new(conn, Key(0), Inbound::new(min, max), now);
        let key = self.conns.insert(Conn {
            pipe,
            role,
            remote,
            since: now,
            dirty: false,
            hold: Hold::No,
            reads_wait: false,
            charged: Held::default(),
            upload: None,
        });
        if let Some(conn) = self.conns.get_mut(key) {
            conn.pipe.name(key);
            conn.pipe.receive(io);
        }
        key
    }

    fn mark(&mut self, key: Key) {
        if let Some(conn) = self.conns.get_mut(key)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push(key);
        }
    }

    /// Ends the connection's role; its peer or client is gone for the shard.
    fn detach(&mut self, io: &mut dyn Io, key: Key, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let (now, random) = (io.clock().now, io.random());
        self.budget.change(std::mem::take(&mut conn.charged), Held::default());
        (conn.hold, conn.reads_wait) = (Hold::No, false);
        if let Some(upload) = conn.upload.take() {
            self.uploads.remove(&upload);
        }
        match std::mem::replace(&mut conn.role, Role::Closed) {
            Role::Fresh => self.fresh_count -= 1,
            Role::Client(_) => {
                self.clients -= 1;
                events.push(Event::ClientGone { connection: key.0 });
            }
            Role::Peer(channel) => {
                let Some(node) = channel.node().or(channel.expected) else { return };
                let Some(peer) = self.peers.get_mut(&node) else { return };
                if peer.greeting == Some(key) {
                    peer.greeting = None;
                    peer.failed(now, random);
                }
                if peer.channel == Some(key) {
                    peer.channel = None;
                    if channel.established {
                        peer.broke(now, random);
                    } else {
                        peer.failed(now, random);
                    }
                    if channel.present {
                        events.push(Event::Down(node));
                    }
                }
            }
            role @ (Role::Parting { .. } | Role::Closed) => conn.role = role,
        }
    }

    /// Ends the connection at once.
    fn close(&mut self, io: &mut dyn Io, key: Key, events: &mut Vec<Event>) {
        self.detach(io, key, events);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.role = Role::Closed;
            conn.pipe.close(io);
        }
    }

    /// Ends the connection and says why.
    fn part(&mut self, io: &mut dyn Io, key: Key, code: RefusalCode, reason: &str, events: &mut Vec<Event>) {
        self.detach(io, key, events);
        let shard = self.hello.as_ref().map_or(0, |h| u64::from(h.shard));
        if let Some(conn) = self.conns.get_mut(key) {
            let mut farewell = Vec::new();
            wire::put_refusal(&mut farewell, code, shard, reason);
            conn.pipe.inbound.discard();
            let until = io.clock().now.after(LINGER);
            if conn.pipe.is_sending() {
                conn.role = Role::Parting { until, farewell: Some(farewell) };
            } else {
                conn.role = Role::Parting { until, farewell: None };
                conn.pipe.send(io, vec![Bytes::from(farewell)]);
            }
            conn.pipe.receive(io);
        }
        self.parting.push_back(key);
        // Many that are refused at once do not take the descriptors of others.
        while self.parting.len() > REFUSED_CONNECTIONS_MAX {
            let Some(oldest) = self.parting.pop_front() else { break };
            if self.conns.get(oldest).is_some_and(|c| matches!(c.role, Role::Parting { .. })) {
                self.close(io, oldest, events);
            }
        }
    }

    fn protocol_error(&mut self, io: &mut dyn Io, key: Key, error: &WireError, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get(key) else { return };
        let who = match &conn.role {
            Role::Peer(channel) => channel.node().map_or("peer".into(), |n| format!("node {n}")),
            Role::Client(_) => "client".to_owned(),
            _ => "connection".to_owned(),
        };
        let remote = conn.remote;
        if self.told.first(remote.ip().to_string(), &error.to_string()) {
            tracing::warn!(%remote, %error, "{who} closed: it does not speak this protocol");
        }
        let reason = format!("{error}; this node speaks version {}", wire::VERSION);
        self.part(io, key, RefusalCode::Protocol, &reason, events);
    }
}

/// Listens. An address in use is tried for a while: the kernel may not have let go of a node's sockets yet when it is started
/// again right after it was killed.
fn listen_patiently(io: &mut dyn Io, address: SocketAddr) -> Result<Output, IoError> {
    let mut attempts = 0;
    loop {
        let mut foreground = Foreground::new(io);
        let listening = foreground.run(Op::Listen { address });
        attempts += 1;
        let again = attempts < LISTEN_ATTEMPTS_MAX
            && matches!(&listening, Err(e) if e.kind == IoErrorKind::AddressInUse);
        if again {
            let until = foreground.io().clock().now.after(LISTEN_STEP);
            foreground.wait(until);
        }
        let others = foreground.finish();
        assert!(others.is_empty(), "the transport is started before anything else is in flight on its ring");
        if !again {
            return listening;
        }
    }
}

impl Transport for NetTransport {
    fn start(&mut self, io: &mut dyn Io, hello: Hello) -> Result<Option<SocketAddr>, Error> {
        let listen = self.options.listen;
        let listening = listen_patiently(io, listen);
        let (listener, address) = match listening {
            Ok(Output::Listening { listener, address }) => (listener, address),
            Ok(_) => unreachable!("listening gives a listener or an error"),
            Err(error) => {
                let why = match error.kind {
                    IoErrorKind::AddressInUse => {
                        "the address is in use: is another process, or this node, running there already?"
                            .into()
                    }
                    _ => error.message,
                };
                return Err(Error::Listen { address: listen.to_string(), why });
            }
        };
        let now = io.clock().now;
        for (node, at) in &mut self.options.nodes {
            if *node == self.options.node {
                if at.port() == 0 {
                    at.set_port(address.port());
                }
            } else {
                let process = io.random();
                let peer = Peer::new(self.options.node, *node, *at, self.options.heartbeat, now, process);
                self.peers.insert(*node, peer);
            }
        }
        self.hello = Some(hello);
        self.listener = Some(listener);
        self.last_tick = now;
        self.accept(io);
        self.dial(io, now);
        Ok(Some(address))
    }

    fn formed(&mut self, io: &mut dyn Io, formed: &Formed) {
        let Some(own) = &mut self.hello else { return };
        own.formed = Some(formed.clone());
        let now = io.clock().now;
        let mut events = Vec::new();
        for key in self.conns.keys() {
            let Some(own) = &self.hello else { return };
            let Some(conn) = self.conns.get_mut(key) else { continue };
            let Role::Peer(channel) = &mut conn.role else { continue };
            NetTransport::say_hello(own, channel, now);
            if let Some(theirs) = &channel.hello {
                let node = theirs.node;
                match judge(own, &self.configured, theirs) {
                    Ok(_) if !channel.present => {}
                    Ok(verdict) => self.judged(key, node, &verdict, &mut events),
                    Err(refused) => {
                        let reason = refused.to_string();
                        self.refuse(io, key, node, RefusalCode::Identity, &reason, &mut events);
                    }
                }
            }
            self.mark(key);
        }
        self.pending.append(&mut events);
    }

    fn barred(&mut self, io: &mut dyn Io) {
        let Some(own) = &mut self.hello else { return };
        own.barred = true;
        let reason = HelloRefused::Barred { node: own.node }.to_string();
        let mut events = Vec::new();
        for key in self.conns.keys() {
            if matches!(self.conns.get(key).map(|conn| &conn.role), Some(Role::Peer(_))) {
                self.part(io, key, RefusalCode::Identity, &reason, &mut events);
            }
        }
        self.pending.append(&mut events);
    }

    fn accuse(&mut self, io: &mut dyn Io, node: NodeId, why: &str) {
        let Some(key) = self.peers.get(&node).and_then(|peer| peer.channel) else { return };
        let mut events = Vec::new();
        self.part(
            io,
            key,
            RefusalCode::Impossible,
            &format!("a message that no correct node sends: {why}"),
            &mut events,
        );
        let (now, random) = (io.clock().now, io.random());
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.refused(now, random);
        }
        self.pending.append(&mut events);
    }

    fn complete(&mut self, io: &mut dyn Io, completion: Completion, events: &mut Vec<Event>) {
        events.append(&mut self.pending);
        let Some((op, key)) = of_token(completion.token) else { return };
        match op {
            NetOp::Recv => self.received(io, key, completion, events),
            NetOp::Send => self.sent(io, key, completion, events),
            NetOp::Close => {
                if let Some(conn) = self.conns.get_mut(key) {
                    conn.pipe.closed();
                }
            }
            NetOp::Accept => self.accepted(io, completion.result, events),
            NetOp::Connect => self.connected(io, key.0, completion.result),
            NetOp::Forget => {}
        }
        if self.conns.get(key).is_some_and(|c| c.pipe.is_gone()) {
            self.conns.remove(key);
        }
    }

    fn tick(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) {
        events.append(&mut self.pending);
        let now = io.clock().now;
        if now >= self.last_tick.after(self.interval) {
            self.look_around(io, now, events);
        }
    }

    fn deadline(&self) -> Option<Monotonic> {
        self.hello.as_ref()?;
        Some(if self.pending.is_empty() { self.last_tick.after(self.interval) } else { self.last_tick })
    }

    fn send(&mut self, to: NodeId, message: PeerMessage) -> bool {
        let Some(key) = self.peers.get(&to).and_then(|p| p.channel) else { return false };
        let Some(Role::Peer(channel)) = self.conns.get_mut(key).map(|c| &mut c.role) else { return false };
        let taken = channel.established && channel.lanes.push(message);
        if taken {
            self.mark(key);
        }
        taken
    }

    fn room(&self, to: NodeId) -> usize {
        let Some(key) = self.peers.get(&to).and_then(|p| p.channel) else { return 0 };
        match self.conns.get(key).map(|c| &c.role) {
            Some(Role::Peer(channel)) if channel.established => channel.lanes.room(),
            _ => 0,
        }
    }

    fn respond(&mut self, client: ClientRef, response: Response) {
        let key = Key(client.connection);
        if let Some(Role::Client(session)) = self.conns.get_mut(key).map(|c| &mut c.role) {
            session.answer(client.request, response);
            self.mark(key);
            self.charge(key);
        }
    }

    fn flush(&mut self, io: &mut dyn Io) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(conn) = self.conns.get_mut(key) else { continue };
            conn.dirty = false;
            if conn.pipe.is_sending() || conn.pipe.is_closing() {
                continue; // a send's completion marks it again
            }
            let data = match &mut conn.role {
                Role::Peer(channel) => channel.lanes.take(channel.established),
                Role::Client(session) => session.take(),
                Role::Fresh | Role::Parting { .. } | Role::Closed => continue,
            };
            conn.pipe.send(io, data);
        }
    }
}
