//! Completions and frames.

use super::{CLIENT_BUFFER, NetTransport, PEER_BUFFER, Role};
use crate::pipe::{NetOp, close_stray, token};
use crate::slab::Key;
use crate::wire::{self, FrameHeader, FrameKind, PeerHello, Refusal, WireError};
use bytes::Bytes;
use tidelog::transport::{ClientRef, Event, PeerMessage};
use tidelog_io::{Completion, Io, IoError, IoErrorKind, Op, Output};

impl NetTransport {
    pub(super) fn accept(&mut self, io: &mut dyn Io) {
        if let Some(listener) = self.listener
            && !std::mem::replace(&mut self.accepting, true)
        {
            io.submit(token(NetOp::Accept, Key(0)), Op::Accept { listener });
        }
    }

    pub(super) fn accepted(
        &mut self,
        io: &mut dyn Io,
        result: Result<Output, IoError>,
        events: &mut Vec<Event>,
    ) {
        self.accepting = false;
        match result {
            Ok(Output::Connected { conn, peer }) => {
                if self.fresh_count >= self.options.limits.fresh_connections_max {
                    self.close_oldest_fresh(io, events);
                }
                let key = self.insert(io, conn, peer, Role::Fresh);
                self.fresh_count += 1;
                self.fresh.push_back(key);
                self.accept(io);
            }
            // Tried again with the next tick.
            Err(error)
                if error.kind != IoErrorKind::Cancelled
                    && self.told.first("accept".into(), &error.to_string()) =>
            {
                tracing::warn!(%error, "cannot accept connections now");
            }
            _ => {}
        }
    }

    fn close_oldest_fresh(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) {
        while let Some(key) = self.fresh.pop_front() {
            if self.conns.get(key).is_some_and(|c| matches!(c.role, Role::Fresh)) {
                return self.close(io, key, events);
            }
        }
    }

    pub(super) fn connected(&mut self, io: &mut dyn Io, attempt: u64, result: Result<Output, IoError>) {
        let Some(node) = self.dials.remove(&attempt) else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.dials -= 1;
        match result {
            Ok(Output::Connected { conn, .. }) if peer.channel.is_some() || peer.greeting.is_some() => {
                close_stray(io, conn);
            }
            Ok(Output::Connected { conn, peer: remote }) => {
                let mut channel = self.channel(attempt);
                channel.expected = Some(node);
                if let Some(own) = &self.hello {
                    NetTransport::say_hello(own, &mut channel, io.clock().now);
                }
                let key = self.insert(io, conn, remote, Role::Peer(channel));
                if let Some(peer) = self.peers.get_mut(&node) {
                    peer.greeting = Some(key);
                }
                self.mark(key);
            }
            Err(error) => {
                tracing::debug!(%node, %error, "peer is not reached");
                peer.failed(io.clock().now, io.random());
            }
            Ok(_) => {}
        }
    }

    pub(super) fn received(
        &mut self,
        io: &mut dyn Io,
        key: Key,
        completion: Completion,
        events: &mut Vec<Event>,
    ) {
        let now = io.clock().now;
        let Some(conn) = self.conns.get_mut(key) else { return };
        match conn.pipe.received(completion, now) {
            Ok(1..) => self.read(io, key, events),
            Ok(0) => self.gone(io, key, None, events),
            Err(error) => self.gone(io, key, Some(&error), events),
        }
    }

    /// The other end closed, or the connection broke.
    fn gone(&mut self, io: &mut dyn Io, key: Key, error: Option<&IoError>, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get(key) else { return };
        if let Role::Peer(channel) = &conn.role
            && let (Some(node), true) = (channel.node(), channel.established)
        {
            let why = error.map_or("closed by the peer".to_owned(), ToString::to_string);
            tracing::info!(%node, why, "channel down");
        }
        self.close(io, key, events);
    }

    pub(super) fn sent(
        &mut self,
        io: &mut dyn Io,
        key: Key,
        completion: Completion,
        events: &mut Vec<Event>,
    ) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Err(error) = conn.pipe.sent(completion) {
            return self.gone(io, key, Some(&error), events);
        }
        let more = match &mut conn.role {
            Role::Peer(channel) => {
                channel.lanes.sent();
                !channel.lanes.is_empty()
            }
            Role::Client(session) => {
                session.sent();
                session.has_answers()
            }
            Role::Parting { farewell, .. } => {
                if let Some(farewell) = farewell.take() {
                    conn.pipe.send(io, vec![Bytes::from(farewell)]);
                }
                false
            }
            Role::Fresh | Role::Closed => false,
        };
        if more {
            self.mark(key);
        }
        self.charge(key);
        if self.conns.get_mut(key).is_some_and(|c| std::mem::replace(&mut c.held, false)) {
            self.read(io, key, events);
        }
        self.feed_starved(io, events);
    }

    /// Takes the complete frames of a connection, then receives on.
    fn read(&mut self, io: &mut dyn Io, key: Key, events: &mut Vec<Event>) {
        loop {
            let Some(conn) = self.conns.get_mut(key) else { return };
            match &conn.role {
                Role::Parting { .. } => conn.pipe.inbound.discard(),
                Role::Closed => return,
                Role::Client(session) => {
                    let limits = &self.options.limits;
                    let lends = conn.pipe.inbound.lends();
                    let large = if lends > CLIENT_BUFFER.1 { lends } else { 0 };
                    let starved = self.client_bytes - conn.charged + session.in_flight_bytes() + large
                        > limits.client_bytes_max
                        && self.client_bytes > conn.charged;
                    if starved
                        || session.in_flight() >= limits.requests_in_flight_max
                        || session.in_flight_bytes() >= limits.request_bytes_in_flight_max
                    {
                        conn.held = true;
                        if starved {
                            self.starved.push_back(key);
                        }
                        return self.charge(key);
                    }
                }
                Role::Fresh | Role::Peer(_) => {}
            }
            match conn.pipe.inbound.frame() {
                Ok(Some(header)) => {
                    if let Err(error) = self.frame(io, key, &header, events) {
                        return self.protocol_error(io, key, &error, events);
                    }
                    if let Some(conn) = self.conns.get_mut(key) {
                        conn.pipe.inbound.advance();
                    }
                }
                Ok(None) => break,
                Err(error) => return self.protocol_error(io, key, &error, events),
            }
        }
        let now = io.clock().now;
        if let Some(conn) = self.conns.get_mut(key) {
            conn.pipe.note_partial(now);
            conn.pipe.receive(io);
        }
        self.charge(key);
    }

    /// Counts what a client holds in the total.
    pub(super) fn charge(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Role::Client(session) = &conn.role {
            let lends = conn.pipe.inbound.lends();
            let large = if lends > CLIENT_BUFFER.1 { lends } else { 0 };
            let now = session.in_flight_bytes() + large;
            self.client_bytes = self.client_bytes - conn.charged + now;
            conn.charged = now;
        }
    }

    pub(super) fn feed_starved(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) {
        for _ in 0..self.starved.len() {
            if self.client_bytes >= self.options.limits.client_bytes_max {
                break;
            }
            let Some(key) = self.starved.pop_front() else { break };
            if self.conns.get_mut(key).is_some_and(|c| std::mem::replace(&mut c.held, false)) {
                self.read(io, key, events);
            }
        }
    }

    /// One complete frame; the caller goes on behind it.
    fn frame(
        &mut self,
        io: &mut dyn Io,
        key: Key,
        header: &FrameHeader,
        events: &mut Vec<Event>,
    ) -> Result<(), WireError> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        let inbound = &mut conn.pipe.inbound;
        match (&mut conn.role, header.kind) {
            (Role::Peer(channel), FrameKind::Messages | FrameKind::Append | FrameKind::Fetched)
                if !channel.established =>
            {
                // The peer takes the channel for up and this node does not: a hello went astray.
                tracing::debug!(
                    node = channel.node().map(tidelog_types::NodeId::get),
                    "message before the channel is up; connection closed"
                );
                self.close(io, key, events);
            }
            (Role::Peer(channel), FrameKind::Messages) => {
                if let Some(from) = channel.node() {
                    for message in wire::decode_messages(inbound.meta()) {
                        let (partition, message) = message?;
                        let message = PeerMessage { partition, message, records: Vec::new() };
                        events.push(Event::Peer { from, message });
                    }
                }
            }
            (Role::Peer(channel), kind @ (FrameKind::Append | FrameKind::Fetched)) => {
                let (partition, message) = match kind {
                    FrameKind::Append => wire::decode_append(inbound.meta())?,
                    _ => wire::decode_fetched(inbound.meta())?,
                };
                if let Some(from) = channel.node() {
                    let message = PeerMessage { partition, message, records: vec![inbound.payload()] };
                    events.push(Event::Peer { from, message });
                }
            }
            (
                Role::Client(session),
                FrameKind::AppendRequest
                | FrameKind::OpenSession
                | FrameKind::Read
                | FrameKind::Status
                | FrameKind::Snapshot,
            ) => {
                let call = wire::decode_request(header, inbound.payload())?;
                let client = ClientRef { connection: key.0, request: session.ask(&call) };
                events.push(Event::Request { client, request: call.request });
            }
            (Role::Peer(_) | Role::Client(_), FrameKind::Keepalive) => {}
            (Role::Peer(_) | Role::Fresh, FrameKind::Hello) => {
                let hello = PeerHello::decode(header, inbound.meta())?;
                if matches!(conn.role, Role::Fresh) {
                    self.fresh_count -= 1;
                    let channel = self.channel(hello.attempt);
                    if let Some(conn) = self.conns.get_mut(key) {
                        conn.role = Role::Peer(channel);
                        conn.pipe.inbound.resize(PEER_BUFFER.0, PEER_BUFFER.1);
                    }
                }
                self.heard_hello(io, key, hello, events);
            }
            (Role::Peer(_), FrameKind::Refused) => {
                let refusal = Refusal::decode(header, inbound.meta())?;
                self.heard_refusal(io, key, &refusal, events);
            }
            (Role::Fresh, FrameKind::ClientHello) => {
                let expects = wire::decode_client_hello(header, inbound.meta())?;
                self.heard_client(io, key, &expects, events);
            }
            (Role::Parting { .. } | Role::Closed, _) => {}
            (_, kind) => return Err(WireError::Unexpected(kind)),
        }
        Ok(())
    }
}
