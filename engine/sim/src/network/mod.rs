//! Connections: ordered byte streams between processes, cut into pieces anywhere, with bounded room on the
//! way.
//!
//! Each end belongs to its node and learns of the other only by packets, so a node that runs ahead of the
//! world for a while (see [`crate::World`]) changes nothing at its peers' present.

mod delivery;

use crate::fault;
use crate::node::{Event, Life, cancelled, failed};
use crate::state::State;
use bytes::Bytes;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use tidelog_io::{AlignedBuf, Completion, ConnId, IoErrorKind, ListenerId, Output, Token};

/// Most bytes of an unfinished frame before a stream is taken as having none.
const FRAME_BYTES_MAX: usize = 16 << 20;
/// Largest piece that travels alone.
const PIECE_BYTES_MAX: u64 = 64 << 10;

/// What travels from node to node.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) from: u64,
    pub(crate) from_conn: ConnId,
    pub(crate) to_conn: ConnId,
    pub(crate) body: Body,
}

#[derive(Debug)]
pub(crate) enum Body {
    Syn { port: u16, from: SocketAddr },
    SynAck,
    Refused,
    Data(Bytes),
    Credit(usize),
    Fin,
    Reset,
}

/// What a stream's sending end has yet to do.
#[derive(Debug)]
enum Out {
    Bytes(Bytes),
    Delay(u64),
    Break,
}

#[derive(Debug)]
struct Receiving {
    token: Token,
    buffer: AlignedBuf,
    filled: usize,
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    /// Connected, not yet accepted.
    backlog: VecDeque<ConnId>,
    pub(crate) accepting: VecDeque<Token>,
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Endpoint {
    peer_node: u64,
    peer_conn: ConnId,
    peer_address: SocketAddr,
    sending: Option<Token>,
    outbox: VecDeque<Out>,
    /// An unfinished frame.
    assembly: Vec<u8>,
    framed: bool,
    /// Sent and not yet taken by the peer's process.
    unacked: usize,
    /// When the last packet arrives at the peer: the next one does not overtake it.
    arrival: u64,
    inbox: VecDeque<Bytes>,
    receiving: Option<Receiving>,
    fin: bool,
    broken: bool,
}

impl Endpoint {
    pub(crate) fn tokens(&self) -> Vec<Token> {
        self.sending.iter().copied().chain(self.receiving.iter().map(|r| r.token)).collect()
    }

    /// The connection is gone: everything pending fails.
    fn break_up(&mut self, kind: IoErrorKind, message: &str) -> Vec<Completion> {
        self.broken = true;
        self.inbox.clear();
        self.outbox.clear();
        self.assembly = Vec::new();
        let subject = self.peer_address.to_string();
        let send = self.sending.take().map(|t| failed(t, kind, "send", &subject, message));
        let recv = self.receiving.take().map(|r| failed(r.token, kind, "receive", &subject, message));
        send.into_iter().chain(recv).collect()
    }
}

/// The address of a node.
pub(crate) fn ip(node: u64) -> IpAddr {
    let [a, b, c] = [(node >> 16) as u8, (node >> 8) as u8, node as u8];
    IpAddr::V4(Ipv4Addr::new(10, a, b, c))
}

/// The node of an address, as seen from `own`.
fn node_of(address: SocketAddr, own: u64) -> Option<u64> {
    match address.ip() {
        ip if ip.is_loopback() || ip.is_unspecified() => Some(own),
        IpAddr::V4(v4) => match v4.octets() {
            [10, a, b, c] => Some(u64::from(a) << 16 | u64::from(b) << 8 | u64::from(c)),
            _ => None,
        },
        IpAddr::V6(_) => None,
    }
}

impl State {
    fn life(&mut self, id: u64) -> Option<&mut Life> {
        self.nodes.get_mut(&id)?.life.as_mut()
    }

    fn endpoint(&mut self, id: u64, conn: ConnId) -> Option<&mut Endpoint> {
        self.life(id)?.conns.get_mut(&conn)
    }

    fn latency(&mut self, from: u64, to: u64) -> u64 {
        if from == to {
            return self.random.between(self.config.loopback_ns);
        }
        let base = self.random.between(self.config.network_ns);
        if self.random.below(64) == 0 { base * 10 } else { base }
    }

    /// Sends without regard to what went before on the connection.
    fn send_packet(&mut self, at: u64, to: u64, packet: Packet) {
        let arrival = at + self.latency(packet.from, to);
        self.schedule(to, arrival, Event::Packet(packet));
    }

    /// Sends behind everything that went before on the connection.
    fn send_in_order(&mut self, at: u64, id: u64, conn: ConnId, body: Body) {
        let Some(end) = self.endpoint(id, conn) else { return };
        let (to, to_conn, last) = (end.peer_node, end.peer_conn, end.arrival);
        let bytes = if let Body::Data(data) = &body { data.len() as u64 } else { 0 };
        let arrival = last.max(at + self.latency(id, to)) + bytes / self.config.network_bytes_per_us;
        if let Some(end) = self.endpoint(id, conn) {
            end.arrival = arrival;
        }
        self.schedule(to, arrival, Event::Packet(Packet { from: id, from_conn: conn, to_conn, body }));
    }

    fn new_endpoint(
        &self,
        id: u64,
        peer_node: u64,
        peer_conn: ConnId,
        peer_address: SocketAddr,
        arrival: u64,
    ) -> Endpoint {
        Endpoint {
            peer_node,
            peer_conn,
            peer_address,
            sending: None,
            outbox: VecDeque::new(),
            assembly: Vec::new(),
            framed: self.framed_nodes.contains(&id)
                && self.framed_nodes.contains(&peer_node)
                && id != peer_node,
            unacked: 0,
            arrival,
            inbox: VecDeque::new(),
            receiving: None,
            fin: false,
            broken: false,
        }
    }

    // What a process asks for.

    pub(crate) fn listen(&mut self, at: u64, id: u64, token: Token, address: SocketAddr) {
        let subject = address.to_string();
        let own = node_of(address, id) == Some(id);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(life) = &mut node.life else { return };
        let taken = |port: u16| life.listeners.values().any(|l| l.port == port);
        let mut port = address.port();
        while port == 0 || (address.port() == 0 && taken(port)) {
            port = node.next_port;
            node.next_port = node.next_port.checked_add(1).unwrap_or(40_000);
        }
        let done = if !own {
            failed(token, IoErrorKind::Other, "listen", &subject, "not an address of this node")
        } else if taken(port) {
            failed(token, IoErrorKind::AddressInUse, "listen", &subject, "address in use")
        } else {
            self.next_handle += 1;
            let listener = ListenerId(self.next_handle);
            let socket = Listener { port, backlog: VecDeque::new(), accepting: VecDeque::new() };
            life.listeners.insert(listener, socket);
            let address = SocketAddr::new(address.ip(), port);
            Completion { token, result: Ok(Output::Listening { listener, address }) }
        };
        self.complete_soon(at, id, done);
    }

    pub(crate) fn accept(&mut self, at: u64, id: u64, token: Token, listener: ListenerId) {
        let Some(life) = self.life(id) else { return };
        match life.listeners.get_mut(&listener) {
            Some(l) => {
                l.accepting.push_back(token);
                self.try_accept(id, listener);
            }
            None => {
                let done = failed(token, IoErrorKind::Other, "accept", "", "no such listener");
                self.complete_soon(at, id, done);
            }
        }
    }

    fn try_accept(&mut self, id: u64, listener: ListenerId) {
        let Some(life) = self.life(id) else { return };
        let Life { listeners, conns, ready, .. } = life;
        let Some(l) = listeners.get_mut(&listener) else { return };
        while let (Some(conn), Some(token)) = (l.backlog.front().copied(), l.accepting.front().copied()) {
            l.backlog.pop_front();
            // A connection that broke before anyone accepted it is accepted all the same, and fails at its
            // first use.
            if let Some(end) = conns.get(&conn) {
                l.accepting.pop_front();
                let peer = end.peer_address;
                ready.push_back(Completion { token, result: Ok(Output::Connected { conn, peer }) });
            }
        }
    }

    pub(crate) fn close_listener(&mut self, at: u64, id: u64, token: Token, listener: ListenerId) {
        let Some(life) = self.life(id) else { return };
        let Some(l) = life.listeners.remove(&listener) else {
            let done = failed(token, IoErrorKind::Other, "close", "", "no such listener");
            return self.complete_soon(at, id, done);
        };
        life.ready.extend(l.accepting.into_iter().map(|t| cancelled(t, "the listener was closed")));
        for conn in l.backlog {
            self.reset_peer(at, id, conn, true);
            if let Some(life) = self.life(id) {
                life.conns.remove(&conn);
            }
        }
        self.complete_soon(at, id, Completion { token, result: Ok(Output::Done) });
    }

    pub(crate) fn connect(&mut self, at: u64, id: u64, token: Token, address: SocketAddr) {
        self.next_handle += 1;
        let conn = ConnId(self.next_handle);
        let timeout = at + self.config.connect_timeout_ns;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let port = node.next_port;
        node.next_port = node.next_port.checked_add(1).unwrap_or(40_000);
        let Some(life) = &mut node.life else { return };
        life.connecting.insert(conn, (token, address));
        self.schedule(id, timeout, Event::ConnectTimeout { conn });
        if let Some(to) = node_of(address, id).filter(|to| self.nodes.contains_key(to)) {
            let own = if to == id { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { ip(id) };
            let body = Body::Syn { port: address.port(), from: SocketAddr::new(own, port) };
            self.send_packet(at, to, Packet { from: id, from_conn: conn, to_conn: ConnId(0), body });
        }
    }

    pub(crate) fn connect_timeout(&mut self, id: u64, conn: ConnId) {
        let Some(life) = self.life(id) else { return };
        if let Some((token, address)) = life.connecting.remove(&conn) {
            life.ready.push_back(failed(
                token,
                IoErrorKind::Disconnected,
                "connect",
                &address.to_string(),
                "connection timed out",
            ));
            self.counts.add(fault::CONNECT_TIMEOUT, 1);
        }
    }

    pub(crate) fn send(&mut self, at: u64, id: u64, token: Token, conn: ConnId, data: Vec<Bytes>) {
        let refused = match self.endpoint(id, conn) {
            None => Some((IoErrorKind::Other, "no such connection")),
            Some(end) if end.broken => Some((IoErrorKind::Disconnected, "connection reset")),
            Some(end) if end.sending.is_some() => Some((IoErrorKind::Other, "a send is in flight already")),
            Some(end) => {
                end.sending = Some(token);
                None
            }
        };
        if let Some((kind, message)) = refused {
            return self.complete_soon(at, id, failed(token, kind, "send", "", message));
        }
        self.fill_outbox(id, conn, data);
        self.pump(at, id, conn);
    }

    /// Cuts what is to be sent into frames, where there are any, and draws what befalls each.
    fn fill_outbox(&mut self, id: u64, conn: ConnId, data: Vec<Bytes>) {
        let faults = self.plan.net;
        let frame_length = self.frame_length;
        let State { nodes, random, counts, .. } = self;
        let Some(end) = nodes.get_mut(&id).and_then(|n| n.life.as_mut()).and_then(|l| l.conns.get_mut(&conn))
        else {
            return;
        };
        let mut units: Vec<Bytes> = Vec::new();
        match frame_length {
            Some(frame_length) if end.framed => {
                for piece in &data {
                    end.assembly.extend_from_slice(piece);
                }
                let whole = Bytes::from(std::mem::take(&mut end.assembly));
                let mut rest = whole;
                while let Some(length) = frame_length(&rest).filter(|n| (1..=rest.len()).contains(n)) {
                    units.push(rest.split_to(length));
                }
                if rest.len() > FRAME_BYTES_MAX {
                    end.framed = false;
                    units.push(rest);
                } else {
                    end.assembly = rest.to_vec();
                }
            }
            _ => units = data.into_iter().filter(|piece| !piece.is_empty()).collect(),
        }
        let between_nodes = end.peer_node != id;
        for unit in units {
            if between_nodes && random.chance(faults.break_connection) {
                counts.add(fault::BREAK, 1);
                end.outbox.push_back(Out::Break);
            }
            if between_nodes && random.chance(faults.delay) {
                counts.add(fault::DELAY, 1);
                end.outbox.push_back(Out::Delay(random.between(faults.delay_ns)));
            }
            if end.framed && random.chance(faults.drop) {
                counts.add(fault::FRAME_DROP, 1);
                continue;
            }
            if end.framed && random.chance(faults.duplicate) {
                counts.add(fault::FRAME_DUPLICATE, 1);
                end.outbox.push_back(Out::Bytes(unit.clone()));
            }
            end.outbox.push_back(Out::Bytes(unit));
        }
    }

    /// Sends what the window allows.
    fn pump(&mut self, at: u64, id: u64, conn: ConnId) {
        let window = self.config.window_bytes;
        loop {
            let Some(end) = self.endpoint(id, conn) else { return };
            match end.outbox.front_mut() {
                None => {
                    if let Some(token) = end.sending.take() {
                        self.complete_soon(at, id, Completion { token, result: Ok(Output::Done) });
                    }
                    return;
                }
                Some(Out::Delay(ns)) => {
                    end.arrival = end.arrival.max(at + *ns);
                    end.outbox.pop_front();
                }
                Some(Out::Break) => {
                    let in_order = self.random.coin();
                    self.reset_peer(at, id, conn, in_order);
                    self.break_endpoint(id, conn, "connection reset");
                    return;
                }
                Some(Out::Bytes(bytes)) => {
                    let room = window - end.unacked;
                    if room == 0 {
                        return;
                    }
                    let len = bytes.len();
                    // One in four pieces is tiny, so that boundaries fall inside headers, too.
                    let most = if self.random.below(4) == 0 { 64 } else { PIECE_BYTES_MAX };
                    let drawn = usize::try_from(self.random.between((1, most))).unwrap_or(1);
                    let count =
                        if most > 64 { len.min(PIECE_BYTES_MAX as usize) } else { drawn }.min(room).min(len);
                    let Some(end) = self.endpoint(id, conn) else { return };
                    let Some(Out::Bytes(bytes)) = end.outbox.front_mut() else { return };
                    let piece = bytes.split_to(count);
                    if bytes.is_empty() {
                        end.outbox.pop_front();
                    }
                    end.unacked += count;
                    self.send_in_order(at, id, conn, Body::Data(piece));
                }
            }
        }
    }

    pub(crate) fn recv(
        &mut self,
        at: u64,
        id: u64,
        token: Token,
        conn: ConnId,
        buffer: AlignedBuf,
        filled: usize,
    ) {
        let refused = match self.endpoint(id, conn) {
            None => Some((IoErrorKind::Other, "no such connection")),
            Some(_) if filled >= buffer.len() => Some((IoErrorKind::Other, "no room in the buffer")),
            Some(end) if end.broken => Some((IoErrorKind::Disconnected, "connection reset")),
            Some(end) if end.receiving.is_some() => {
                Some((IoErrorKind::Other, "a receive is in flight already"))
            }
            Some(end) => {
                end.receiving = Some(Receiving { token, buffer, filled });
                None
            }
        };
        match refused {
            Some((kind, message)) => self.complete_soon(at, id, failed(token, kind, "receive", "", message)),
            None => self.try_receive(at, id, conn),
        }
    }

    fn try_receive(&mut self, at: u64, id: u64, conn: ConnId) {
        let short = self.random.below(8) == 0;
        let cut = self.random.bits();
        let Some(end) = self.endpoint(id, conn) else { return };
        let available: usize = end.inbox.iter().map(Bytes::len).sum();
        if available == 0 && !end.fin {
            return;
        }
        let Some(Receiving { token, mut buffer, filled }) = end.receiving.take() else { return };
        let mut want = available.min(buffer.len() - filled);
        if short && want > 1 {
            want = 1 + usize::try_from(cut % want as u64).unwrap_or(0);
        }
        let mut to = filled;
        while to < filled + want {
            let Some(front) = end.inbox.front_mut() else { break };
            let piece = front.split_to(front.len().min(filled + want - to));
            if front.is_empty() {
                end.inbox.pop_front();
            }
            buffer[to..to + piece.len()].copy_from_slice(&piece);
            to += piece.len();
        }
        let crc = crc32c::crc32c(&buffer[filled..to]);
        let (peer, peer_conn) = (end.peer_node, end.peer_conn);
        let done = Completion { token, result: Ok(Output::Received { buffer, bytes: want }) };
        if let Some(life) = self.life(id) {
            life.ready.push_back(done);
        }
        self.trace.note(at, id, "received", &[conn.0, want as u64, u64::from(crc)]);
        if want > 0 {
            let packet = Packet { from: id, from_conn: conn, to_conn: peer_conn, body: Body::Credit(want) };
            self.send_packet(at, peer, packet);
        }
    }

    pub(crate) fn close(&mut self, at: u64, id: u64, token: Token, conn: ConnId) {
        let Some(end) = self.endpoint(id, conn) else {
            let done = failed(token, IoErrorKind::Other, "close", "", "no such connection");
            return self.complete_soon(at, id, done);
        };
        if !end.broken {
            // What an earlier send handed over leaves before the end does.
            let rest = Bytes::from(std::mem::take(&mut end.assembly));
            if !rest.is_empty() && end.outbox.is_empty() {
                self.send_in_order(at, id, conn, Body::Data(rest));
            }
            self.send_in_order(at, id, conn, Body::Fin);
        }
        if let Some(life) = self.life(id)
            && let Some(mut end) = life.conns.remove(&conn)
        {
            let gone = end.break_up(IoErrorKind::Cancelled, "the connection was closed");
            life.ready.extend(gone);
        }
        self.complete_soon(at, id, Completion { token, result: Ok(Output::Done) });
    }
}
