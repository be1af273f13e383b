//! Completions and frames.

use super::{CLIENT_BUFFER, Hold, NetTransport, PEER_BUFFER, Role};
use crate::budget::{Held, Share, cost};
use crate::pipe::{NetOp, close_stray, token};
use crate::slab::Key;
use crate::wire::{self, FrameHeader, FrameKind, PeerHello, Refusal, RefusalCode, WireError};
use bytes::Bytes;
use tidelog::request::{Request, RequestError, SessionScope};
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
                    self.refuse_oldest_fresh(io, events);
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

    /// The connection that has said nothing for longest gives up its place.
    fn refuse_oldest_fresh(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) {
        while let Some(key) = self.fresh.pop_front() {
            if self.conns.get(key).is_some_and(|c| matches!(c.role, Role::Fresh)) {
                let max = self.options.limits.fresh_connections_max;
                let reason = format!(
                    "{max} connections have not said who they are, as many as may (limits.unspoken_connections)"
                );
                return self.part(io, key, RefusalCode::TooMany, &reason, events);
            }
        }
    }

    pub(super) fn connected(&mut self, io: &mut dyn Io, attempt: u64, result: Result<Output, IoError>) {
        let Some(node) = self.dials.remove(&attempt) else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.dials -= 1;
        let process = peer.process;
        match result {
            Ok(Output::Connected { conn, .. }) if peer.channel.is_some() || peer.greeting.is_some() => {
                close_stray(io, conn);
            }
            Ok(Output::Connected { conn, peer: remote }) => {
                let mut channel = self.channel(attempt);
                channel.expected = Some(node);
                channel.process = process;
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
        self.reads_wait(key);
        if let Some(conn) = self.conns.get_mut(key)
            && conn.hold == Hold::Own
        {
            conn.hold = Hold::No;
            self.read(io, key, events);
        }
        self.feed_waiting(io, events);
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
                    if session.in_flight() >= limits.requests_in_flight_max
                        || session.in_flight_bytes() >= limits.request_bytes_in_flight_max
                    {
                        conn.hold = Hold::Own;
                        return self.charge(key);
                    }
                }
                Role::Fresh | Role::Peer(_) => {}
            }
            match conn.pipe.inbound.frame() {
                Ok(Some(header)) => {
                    if matches!(conn.role, Role::Client(_)) {
                        self.charge(key);
                        let (share, bytes) = cost(&header);
                        match share {
                            Share::Reads if self.read_waits(key, bytes) => {
                                if let Err(error) = self.put_aside(io, key, &header) {
                                    return self.protocol_error(io, key, &error, events);
                                }
                                continue;
                            }
                            Share::Others if !self.budget.takes(share, bytes) => {
                                return self.wait_for_room(key, bytes);
                            }
                            Share::Reads | Share::Others => {}
                        }
                    }
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
        self.go_on_receiving(io, key);
    }

    fn wait_for_room(&mut self, key: Key, bytes: usize) {
        if let Some(conn) = self.conns.get_mut(key) {
            conn.hold = Hold::Waits(bytes);
            self.waiting_others.push_back(key);
        }
    }

    /// Whether a read has to wait: behind earlier ones, for its own connection's, or for the memory of others.
    fn read_waits(&self, key: Key, bytes: usize) -> bool {
        let Some(conn) = self.conns.get(key) else { return false };
        let Role::Client(session) = &conn.role else { return false };
        session.first_aside().is_some()
            || !self.budget.one_takes(conn.charged.reads, bytes)
            || !self.budget.takes(Share::Reads, bytes)
    }

    /// A read waits beside its connection, which is read on: an append behind it has nothing to do with it.
    fn put_aside(&mut self, io: &mut dyn Io, key: Key, header: &FrameHeader) -> Result<(), WireError> {
        let Some(conn) = self.conns.get_mut(key) else { return Ok(()) };
        let Role::Client(session) = &mut conn.role else { return Ok(()) };
        let call = wire::decode_request(header, conn.pipe.inbound.payload())?;
        session.put_aside(call, io.clock().now);
        conn.pipe.inbound.advance();
        self.reads_wait(key);
        Ok(())
    }

    /// The connection's first read that waits has its turn when there is memory, unless it is its own connection's that it lacks: then the
    /// next answer that has left looks again.
    fn reads_wait(&mut self, key: Key) {
        self.charge(key);
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Role::Client(session) = &conn.role else { return };
        let able =
            session.first_aside().is_some_and(|bytes| self.budget.one_takes(conn.charged.reads, bytes));
        if able && !std::mem::replace(&mut conn.reads_wait, true) {
            self.waiting_reads.push_back(key);
        }
    }

    /// Receives on, unless that takes a larger buffer and there is no room for it.
    fn go_on_receiving(&mut self, io: &mut dyn Io, key: Key) {
        let now = io.clock().now;
        let Some(conn) = self.conns.get_mut(key) else { return };
        conn.pipe.note_partial(now);
        conn.hold = Hold::No;
        if matches!(conn.role, Role::Client(_)) {
            let wants = conn.pipe.inbound.lends();
            if wants <= CLIENT_BUFFER.1 {
                if let Some(upload) = conn.upload.take() {
                    self.uploads.remove(&upload);
                }
            } else {
                let number = *conn.upload.get_or_insert_with(|| {
                    self.uploads_begun += 1;
                    self.uploads.insert(self.uploads_begun, key);
                    self.uploads_begun
                });
                let first = self.uploads.first_key_value().is_some_and(|(first, _)| *first == number);
                if !first && !self.budget.takes_upload(conn.charged.upload, wants) {
                    conn.hold = Hold::Upload;
                    return;
                }
            }
        }
        conn.pipe.receive(io);
        self.charge(key);
    }

    /// Counts what a client holds in the total.
    pub(super) fn charge(&mut self, key: Key) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        if let Role::Client(session) = &conn.role {
            let buffer = conn.pipe.inbound.holds();
            let upload = if buffer > CLIENT_BUFFER.1 { buffer } else { 0 };
            let now = Held { upload, ..session.held() };
            self.budget.change(std::mem::replace(&mut conn.charged, now), now);
        }
    }

    /// Goes on with clients that waited for room, those that wait longest first.
    pub(super) fn feed_waiting(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) {
        while let Some(key) = self.waiting_others.front().copied() {
            if let Some(conn) = self.conns.get_mut(key)
                && let Hold::Waits(bytes) = conn.hold
            {
                if !self.budget.takes(Share::Others, bytes) {
                    break;
                }
                conn.hold = Hold::No;
                self.waiting_others.pop_front();
                self.read(io, key, events);
            } else {
                self.waiting_others.pop_front();
            }
        }
        while let Some(key) = self.waiting_reads.front().copied() {
            if let Some(conn) = self.conns.get_mut(key)
                && let Role::Client(session) = &mut conn.role
                && let Some(bytes) = session.first_aside()
            {
                if !self.budget.takes(Share::Reads, bytes) {
                    break;
                }
                if let Some((request, read)) = session.take_aside() {
                    events.push(Event::Request {
                        client: ClientRef { connection: key.0, request },
                        request: read,
                    });
                }
            }
            self.waiting_reads.pop_front();
            if let Some(conn) = self.conns.get_mut(key) {
                conn.reads_wait = false;
            }
            self.reads_wait(key);
        }
        if self.uploads.is_empty() {
            return;
        }
        let waits = |key: &Key| self.conns.get(*key).is_some_and(|c| c.hold == Hold::Upload);
        for key in self.uploads.values().copied().filter(waits).collect::<Vec<_>>() {
            self.go_on_receiving(io, key);
            if self.conns.get(key).is_some_and(|c| c.hold == Hold::Upload) {
                break;
            }
        }
    }

    /// Whether clients wait for others to make room.
    pub(super) fn is_pressed(&self) -> bool {
        let reads = |key: &Key| self.conns.get(*key).is_some_and(|c| c.reads_wait);
        let held = |key: &Key| self.conns.get(*key).is_some_and(|c| c.hold != Hold::No);
        self.waiting_reads.front().is_some_and(reads) || self.waiting_others.front().is_some_and(held)
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
                let now = io.clock().now;
                let client = ClientRef { connection: key.0, request: session.ask(&call, now) };
                if let Request::OpenSession { partition, key: name } = call.request {
                    let limits = &self.options.limits;
                    let (max, within) = (limits.sessions_per_connection_max, limits.session_expiry);
                    if let Err(retry_after) = session.may_open(partition, name, now, max, within) {
                        let (scope, limit) = (SessionScope::Connection, max as u64);
                        let full = RequestError::SessionsFull { scope, limit, retry_after };
                        session.answer(client.request, Err(full));
                        self.mark(key);
                        return Ok(());
                    }
                }
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
