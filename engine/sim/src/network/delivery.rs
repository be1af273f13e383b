//! What comes to a node from the network, and what the world does to connections.

use super::{Body, Packet};
use crate::fault;
use crate::node::failed;
use crate::state::State;
use std::net::SocketAddr;
use tidelog_io::{Completion, ConnId, IoErrorKind, Output};

impl State {
    /// A packet comes to a node.
    pub(crate) fn deliver(&mut self, at: u64, to: u64, packet: Packet) {
        let from = packet.from;
        if from != to && self.blocked.contains(&(from, to)) {
            if matches!(packet.body, Body::Data(_) | Body::Fin | Body::Credit(_))
                && let Some(node) = self.nodes.get_mut(&to)
            {
                node.stalled.entry(from).or_default().push_back(packet);
            }
            return;
        }
        let Some(node) = self.nodes.get_mut(&to) else { return };
        if !node.powered {
            return;
        }
        let Packet { from_conn, to_conn, body, .. } = packet;
        let answer = |body| Packet { from: to, from_conn: to_conn, to_conn: from_conn, body };
        match body {
            Body::Syn { port, from: address } => self.deliver_syn(at, to, from, from_conn, port, address),
            Body::SynAck => {
                let end = node.life.as_mut().and_then(|life| life.connecting.remove(&to_conn));
                match end {
                    Some((token, address)) => {
                        let end = self.new_endpoint(to, from, from_conn, address, at);
                        if let Some(life) = self.life(to) {
                            life.conns.insert(to_conn, end);
                            let output = Output::Connected { conn: to_conn, peer: address };
                            life.ready.push_back(Completion { token, result: Ok(output) });
                        }
                    }
                    None => self.send_packet(at, from, answer(Body::Reset)),
                }
            }
            Body::Refused => {
                if let Some(life) = &mut node.life
                    && let Some((token, address)) = life.connecting.remove(&to_conn)
                {
                    let kind = IoErrorKind::Disconnected;
                    life.ready.push_back(failed(
                        token,
                        kind,
                        "connect",
                        &address.to_string(),
                        "connection refused",
                    ));
                }
            }
            Body::Reset => self.break_endpoint(to, to_conn, "connection reset by peer"),
            Body::Data(_) | Body::Fin | Body::Credit(_) => {
                let known =
                    self.endpoint(to, to_conn).filter(|end| !end.broken && end.peer_conn == from_conn);
                match (known, body) {
                    (Some(end), Body::Data(bytes)) => {
                        end.inbox.push_back(bytes);
                        self.try_receive(at, to, to_conn);
                    }
                    (Some(end), Body::Fin) => {
                        end.fin = true;
                        self.try_receive(at, to, to_conn);
                    }
                    (Some(end), Body::Credit(bytes)) => {
                        end.unacked = end.unacked.saturating_sub(bytes);
                        self.pump(at, to, to_conn);
                    }
                    (None, Body::Data(_)) => self.send_packet(at, from, answer(Body::Reset)),
                    _ => {}
                }
            }
        }
    }

    fn deliver_syn(
        &mut self,
        at: u64,
        to: u64,
        from: u64,
        from_conn: ConnId,
        port: u16,
        address: SocketAddr,
    ) {
        let backlog_max = self.config.backlog;
        let listener = self.life(to).and_then(|life| {
            let mut open =
                life.listeners.iter().filter(|(_, l)| l.port == port && l.backlog.len() < backlog_max);
            open.next().map(|(id, _)| *id)
        });
        let Some(listener) = listener else {
            let body = Body::Refused;
            let answer = Packet { from: to, from_conn: ConnId(0), to_conn: from_conn, body };
            return self.send_packet(at, from, answer);
        };
        self.next_handle += 1;
        let conn = ConnId(self.next_handle);
        let end = self.new_endpoint(to, from, from_conn, address, at);
        if let Some(life) = self.life(to) {
            life.conns.insert(conn, end);
            if let Some(l) = life.listeners.get_mut(&listener) {
                l.backlog.push_back(conn);
            }
        }
        self.send_in_order(at, to, conn, Body::SynAck);
        self.try_accept(to, listener);
    }

    pub(super) fn break_endpoint(&mut self, id: u64, conn: ConnId, message: &str) {
        let Some(life) = self.life(id) else { return };
        if let Some(end) = life.conns.get_mut(&conn).filter(|end| !end.broken) {
            let gone = end.break_up(IoErrorKind::Disconnected, message);
            life.ready.extend(gone);
        }
    }

    /// Tells the peer that the connection is gone, behind what is under way or ahead of it.
    pub(super) fn reset_peer(&mut self, at: u64, id: u64, conn: ConnId, in_order: bool) {
        if in_order {
            return self.send_in_order(at, id, conn, Body::Reset);
        }
        if let Some(end) = self.endpoint(id, conn).filter(|end| !end.broken) {
            let (to, to_conn) = (end.peer_node, end.peer_conn);
            self.send_packet(at, to, Packet { from: id, from_conn: conn, to_conn, body: Body::Reset });
        }
    }

    // What the world does.

    /// The connections of a process that ends. A machine that loses power may tell nobody.
    pub(crate) fn drop_connections(&mut self, at: u64, id: u64, power_lost: bool) {
        let conns: Vec<ConnId> = self.life(id).map_or_else(Vec::new, |l| l.conns.keys().copied().collect());
        for conn in conns {
            let silent = power_lost && self.random.coin();
            if silent {
                self.counts.add(fault::HALF_OPEN, 1);
            } else {
                let in_order = !power_lost;
                self.reset_peer(at, id, conn, in_order);
            }
        }
    }

    /// Breaks every connection between two nodes.
    pub(crate) fn break_between(&mut self, a: u64, b: u64) {
        for (id, peer) in [(a, b), (b, a)] {
            let ends = self.life(id).map_or_else(Vec::new, |life| {
                let of_peer = life.conns.iter().filter(|(_, end)| end.peer_node == peer && !end.broken);
                of_peer.map(|(conn, _)| *conn).collect()
            });
            for conn in ends {
                self.counts.add(fault::BREAK, 1);
                self.break_endpoint(id, conn, "connection reset");
            }
        }
    }

    /// A link carries again: of each connection, what stalled arrives now, or the connection is lost.
    pub(crate) fn unblock(&mut self, from: u64, to: u64) {
        if !self.blocked.remove(&(from, to)) {
            return;
        }
        let now = self.now;
        let stalled = self.nodes.get_mut(&to).and_then(|node| node.stalled.remove(&from)).unwrap_or_default();
        let mut lost = std::collections::BTreeMap::new();
        for packet in stalled {
            let is_lost = *lost.entry(packet.to_conn).or_insert_with(|| self.random.below(4) == 0);
            if is_lost {
                if self.endpoint(to, packet.to_conn).is_some_and(|end| !end.broken) {
                    self.counts.add(fault::HEAL_RESET, 1);
                    self.reset_peer(now, to, packet.to_conn, false);
                    self.break_endpoint(to, packet.to_conn, "connection timed out");
                }
            } else {
                self.deliver(now, to, packet);
            }
        }
    }
}
