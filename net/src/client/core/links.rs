//! Connections: their completions, their frames, and when they are given up.

use super::{CHECK, ClientCore, SWEEP};
use crate::client::link::State;
use crate::client::route::RouteKey;
use crate::inbound::Inbound;
use crate::pipe::{NetOp, Pipe, close_stray, of_token};
use crate::session::answers_of;
use crate::slab::Key;
use crate::wire::{self, Answer, FrameKind, Refusal, ServerHello, WireError};
use bytes::Bytes;
use core::time::Duration;
use std::net::SocketAddr;
use tidelog_io::{Completion, Io, IoError, Output};
use tidelog_types::Monotonic;
use tidelog_types::limits::PAGE_BYTES;

/// Receive buffers: from, to.
const BUFFER: (usize, usize) = (PAGE_BYTES, 256 << 10);
/// Most addresses known.
const ADDRESSES_MAX: usize = 64;

impl ClientCore {
    /// A completion of class `Net` of this client's back-end.
    pub fn complete(&mut self, io: &mut dyn Io, completion: Completion) {
        let Some((op, key)) = of_token(completion.token) else { return };
        match op {
            NetOp::Recv => self.received(io, key, completion),
            NetOp::Send => self.sent(io, key, completion),
            NetOp::Connect => self.connected(io, key.0, completion.result),
            NetOp::Close => {
                if let Some(pipe) = self.links.get_mut(key).and_then(|l| l.pipe.as_mut()) {
                    pipe.closed();
                }
            }
            NetOp::Accept | NetOp::Forget => {}
        }
        if self.links.get(key).and_then(|l| l.pipe.as_ref()).is_some_and(Pipe::is_gone) {
            self.links.remove(key);
        }
    }

    fn connected(&mut self, io: &mut dyn Io, attempt: u64, result: Result<Output, IoError>) {
        let key = self.dials.remove(&attempt);
        self.abandoned_ended(attempt, result.is_ok());
        let link = key.and_then(|k| self.links.get_mut(k)).filter(|l| l.state == State::Dialling);
        match (result, link, key) {
            (Ok(Output::Connected { conn, .. }), Some(link), Some(key)) => {
                let inbound = Inbound::new(BUFFER.0, BUFFER.1);
                let mut pipe = Pipe::new(conn, key, inbound, io.clock().now);
                let mut hello = Vec::new();
                wire::put_client_hello(&mut hello, &self.options.cluster);
                pipe.send(io, vec![Bytes::from(hello)]);
                pipe.receive(io);
                link.pipe = Some(pipe);
                link.state = State::Greeting;
                link.since = io.clock().now;
            }
            (Ok(Output::Connected { conn, .. }), _, _) => close_stray(io, conn),
            (Err(error), Some(_), Some(key)) => self.lost(io, key, &error.message),
            _ => {}
        }
        self.dial(io);
    }

    fn sent(&mut self, io: &mut dyn Io, key: Key, completion: Completion) {
        let Some(pipe) = self.links.get_mut(key).and_then(|l| l.pipe.as_mut()) else { return };
        match pipe.sent(completion) {
            Ok(()) => self.mark(key),
            Err(error) => self.lost(io, key, &error.message),
        }
    }

    fn received(&mut self, io: &mut dyn Io, key: Key, completion: Completion) {
        let now = io.clock().now;
        let Some(pipe) = self.links.get_mut(key).and_then(|l| l.pipe.as_mut()) else { return };
        match pipe.received(completion, now) {
            Ok(0) => self.lost(io, key, "the node closed the connection"),
            Ok(_) => {
                if let Some((address, State::Up)) = self.links.get(key).map(|l| (l.address, l.state)) {
                    self.heard(address);
                }
                if let Err(error) = self.read(io, key) {
                    self.lost(io, key, &error);
                }
            }
            Err(error) => self.lost(io, key, &error.message),
        }
    }

    /// Takes the complete frames of a connection, then receives on. What was answered before a bad frame counts.
    fn read(&mut self, io: &mut dyn Io, key: Key) -> Result<(), String> {
        let mut answers = Vec::new();
        let outcome = self.frames(key, &mut answers);
        if outcome.is_ok()
            && let Some(pipe) = self.links.get_mut(key).and_then(|l| l.pipe.as_mut())
        {
            pipe.receive(io);
        }
        for answer in answers {
            self.answered(io, key, answer);
        }
        self.mark(key);
        outcome
    }

    fn frames(&mut self, key: Key, answers: &mut Vec<Answer>) -> Result<(), String> {
        let text = |error: WireError| error.to_string();
        while let Some(link) = self.links.get_mut(key) {
            let state = link.state;
            let Some(inbound) = link.pipe.as_mut().map(|p| &mut p.inbound) else { break };
            let Some(header) = inbound.frame().map_err(text)? else { break };
            match (state, header.kind) {
                (_, FrameKind::Keepalive) => {}
                (_, FrameKind::Refused) => {
                    return Err(Refusal::decode(&header, inbound.meta()).map_err(text)?.reason);
                }
                (State::Greeting, FrameKind::ServerHello) => {
                    let hello = ServerHello::decode(&header, inbound.meta()).map_err(text)?;
                    self.greeted(key, &hello)?;
                }
                (State::Up, kind) => answers_of(kind, inbound, &header, answers).map_err(text)?,
                (_, kind) => return Err(text(WireError::Unexpected(kind))),
            }
            if let Some(pipe) = self.links.get_mut(key).and_then(|l| l.pipe.as_mut()) {
                pipe.inbound.advance();
            }
        }
        Ok(())
    }

    fn greeted(&mut self, key: Key, hello: &ServerHello) -> Result<(), String> {
        if let (Some(ours), Some(theirs)) = (self.cluster, hello.cluster)
            && ours != theirs
        {
            return Err(format!("node {} belongs to another cluster than the nodes met before", hello.node));
        }
        self.cluster = self.cluster.or(hello.cluster);
        let Some(link) = self.links.get_mut(key) else { return Ok(()) };
        link.state = State::Up;
        link.in_flight_max = usize::try_from(hello.in_flight_max).unwrap_or(usize::MAX).max(1);
        let address = link.address;
        self.sites.entry(address).or_default().worked();
        self.note(address, format!("answers as node {}", hello.node));
        self.heard(address);
        self.nodes.insert(hello.node, address);
        for (node, at) in &hello.nodes {
            let Ok(at) = at.parse::<SocketAddr>() else { continue };
            self.nodes.entry(*node).or_insert(at);
            let known = self.nodes.get(node).copied().unwrap_or(at);
            if !self.addresses.contains(&known) && self.addresses.len() < ADDRESSES_MAX {
                self.addresses.push(known);
            }
        }
        self.mark(key);
        self.refuse_unknown();
        // Whoever waited to learn where a node is knows it now.
        for (route, waits) in &mut self.routes {
            if matches!(route, RouteKey::Node(node) if self.nodes.contains_key(node)) {
                waits.hold_until = Monotonic(0);
            }
        }
        Ok(())
    }

    /// Requests that wait for a node which, as is known now, is not there.
    fn refuse_unknown(&mut self) {
        let named = |key: &Key| match self.requests.get(*key)?.route {
            RouteKey::Node(node) => self.unknown(node),
            _ => None,
        };
        let refused: Vec<_> =
            self.requests.keys().into_iter().filter_map(|key| Some((key, named(&key)?))).collect();
        for (key, error) in refused {
            self.finish(key, Err(error));
        }
    }

    /// When [`Self::tick`] is wanted next.
    pub fn deadline(&self) -> Option<Monotonic> {
        let held = self.waiting.iter().filter_map(|key| self.routes.get(key)).map(|r| r.hold_until).min();
        let check = (self.links.len() > 0).then(|| self.last_check.after(CHECK));
        [self.sweep_at, held, check, self.doubt_at].into_iter().flatten().min()
    }

    /// Time passed.
    pub fn tick(&mut self, io: &mut dyn Io) {
        let now = io.clock().now;
        if self.sweep_at.is_some_and(|at| at <= now) {
            let late: Vec<Key> =
                self.requests.iter().filter(|(_, a)| a.deadline <= now).map(|(k, _)| k).collect();
            for key in late {
                self.doubt_for(key, io);
                self.time_is_up(key, now);
            }
            let soonest = self.requests.iter().map(|(_, a)| a.deadline).min();
            self.sweep_at = soonest.map(|at| at.max(now.after(SWEEP)));
        }
        if now >= self.last_check.after(CHECK) {
            self.check(io, now);
        }
        self.look_for_doubts(now);
        self.pump(io);
    }

    fn check(&mut self, io: &mut dyn Io, now: Monotonic) {
        let slept = now.since(self.last_check) > CHECK * 4;
        self.last_check = now;
        for key in self.links.keys() {
            let Some(link) = self.links.get_mut(key) else { continue };
            if slept {
                link.since = now;
                link.pipe.iter_mut().for_each(|p| p.excuse(now));
            }
            let (in_flight, since) = (link.in_flight, now.since(link.since));
            let heard = |p: &Pipe| now.since(p.last_received.max(link.asked_since));
            let silent = link.pipe.as_ref().map_or(Duration::ZERO, heard);
            let timeout = self.options.link_timeout;
            match link.state {
                State::Idle | State::Dialling if since >= timeout => {
                    let why = format!("did not accept the connection within {} ms", since.as_millis());
                    self.lost(io, key, &why);
                }
                State::Greeting if since >= timeout => {
                    let after = since.as_millis();
                    let why = format!("accepted the connection, and did not greet within {after} ms");
                    self.lost(io, key, &why);
                }
                State::Up if in_flight > 0 && silent >= timeout => {
                    let why = format!("took requests and has said nothing for {} ms", silent.as_millis());
                    self.lost(io, key, &why);
                }
                State::Up => {
                    if let Some(pipe) = &mut link.pipe
                        && !pipe.is_sending()
                        && now.since(pipe.last_sent) >= self.options.keepalive
                    {
                        let mut keepalive = Vec::new();
                        wire::put_frame(&mut keepalive, FrameKind::Keepalive, [0; 5], &[]);
                        pipe.send(io, vec![Bytes::from(keepalive)]);
                    }
                }
                _ => {}
            }
        }
    }
}
