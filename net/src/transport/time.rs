//! What is overdue: dead channels, silent or half-dead clients, peers to dial again.

use super::{Hold, NetTransport, Role};
use crate::options::CHANNEL_TIMEOUT_HEARTBEATS;
use crate::pipe::{NetOp, token};
use crate::slab::Key;
use core::time::Duration;
use tidelog::transport::Event;
use tidelog_io::{Io, Op};
use tidelog_types::Monotonic;

/// Ticks that are this many intervals late mean that the process itself slept.
const PAUSE_TICKS: u32 = 6;
/// Shortest time after which another connect is tried beside one that does not end.
const CONNECT_PATIENCE_MIN: Duration = Duration::from_secs(1);
/// Longest heartbeat interval that a peer is believed.
const HEARTBEAT_MAX: Duration = Duration::from_secs(60);

impl NetTransport {
    /// The regular look at all connections.
    pub(super) fn look_around(&mut self, io: &mut dyn Io, now: Monotonic, events: &mut Vec<Event>) {
        // After a pause of its own, a node skips one round of blaming others (R7); a node that pauses all the
        // time does not skip them all.
        let slept = now.since(self.last_tick) > self.interval * PAUSE_TICKS
            && now.since(self.last_excuse) >= self.options.channel_timeout;
        self.last_tick = now;
        if slept {
            self.last_excuse = now;
        }
        let mut overdue = Vec::new();
        for key in self.conns.keys() {
            if slept && let Some(conn) = self.conns.get_mut(key) {
                conn.pipe.excuse(now);
                conn.since = now;
            }
            if let Some(why) = self.overdue(io, key, now) {
                overdue.push((key, why));
            }
        }
        for (key, why) in overdue {
            if let Some(conn) = self.conns.get(key) {
                match &conn.role {
                    Role::Peer(channel) => {
                        let node = channel.node().or(channel.expected).unwrap_or_default();
                        tracing::info!(%node, remote = %conn.remote, why, "channel down");
                    }
                    _ => tracing::debug!(remote = %conn.remote, why, "connection closed"),
                }
            }
            self.close(io, key, events);
        }
        self.feed_waiting(io, events);
        while self
            .parting
            .front()
            .is_some_and(|k| !self.conns.get(*k).is_some_and(|c| matches!(c.role, Role::Parting { .. })))
        {
            self.parting.pop_front();
        }
        while self
            .fresh
            .front()
            .is_some_and(|k| !self.conns.get(*k).is_some_and(|c| matches!(c.role, Role::Fresh)))
        {
            self.fresh.pop_front();
        }
        self.accept(io);
        self.dial(io, now);
    }

    /// What is overdue on a connection: why it ends, if it does.
    fn overdue(&mut self, io: &mut dyn Io, key: Key, now: Monotonic) -> Option<&'static str> {
        let pressed = self.is_pressed();
        let limits = &self.options.limits;
        let conn = self.conns.get_mut(key)?;
        let silent = now.since(conn.pipe.last_received);
        let unsent = now.since(conn.pipe.last_sent);
        match &mut conn.role {
            Role::Fresh if now.since(conn.since) >= limits.first_frame_timeout => {
                Some("it did not say who it is")
            }
            Role::Parting { until, .. } if now >= *until => Some("refused"),
            Role::Peer(channel) => {
                let theirs = channel.hello.as_ref().map_or(0, |h| h.heartbeat_ms);
                let stated =
                    CHANNEL_TIMEOUT_HEARTBEATS * Duration::from_millis(u64::from(theirs)).min(HEARTBEAT_MAX);
                if silent >= self.options.channel_timeout.max(stated) {
                    return Some("silent for its time-out");
                }
                if !channel.established
                    && channel.hello.is_some()
                    && now.since(channel.hello_at) >= self.options.channel_timeout
                    && let Some(own) = &self.hello
                {
                    NetTransport::say_hello(own, channel, now);
                    self.mark(key);
                    return None;
                }
                if unsent >= self.options.heartbeat
                    && channel.hello.is_some()
                    && channel.lanes.is_empty()
                    && !conn.pipe.is_sending()
                {
                    conn.pipe.send(io, vec![self.keepalive.clone()]);
                }
                None
            }
            Role::Client(session) => {
                let half = conn.pipe.partial_since().is_some_and(|s| now.since(s) >= limits.frame_timeout);
                // Also of one that is held: what it waits for may be the memory of others that do not go on either.
                if half && (conn.pipe.is_receiving() || conn.hold == Hold::Upload) {
                    return Some("half a frame");
                }
                if silent >= limits.idle_timeout && session.in_flight() == 0 && conn.hold == Hold::No {
                    return Some("idle");
                }
                if unsent >= limits.send_timeout && conn.pipe.is_sending() {
                    return Some("it does not read");
                }
                if pressed && unsent >= limits.pressed_send_timeout && conn.pipe.is_sending() {
                    return Some("it does not read, and others wait for the memory");
                }
                // One that is held waits as well; and writing to it tells whether it is still there.
                if unsent >= limits.client_keepalive
                    && (session.unanswered() > 0 || conn.hold != Hold::No)
                    && !session.has_answers()
                    && !conn.pipe.is_sending()
                {
                    conn.pipe.send(io, vec![self.keepalive.clone()]);
                }
                None
            }
            Role::Fresh | Role::Parting { .. } | Role::Closed => None,
        }
    }

    pub(super) fn dial(&mut self, io: &mut dyn Io, now: Monotonic) {
        if self.hello.as_ref().is_some_and(|own| own.barred) {
            return;
        }
        let patience = self.options.channel_timeout.max(CONNECT_PATIENCE_MIN);
        for (node, peer) in &mut self.peers {
            if peer.wants_dial(now) {
                self.attempts += 1;
                self.dials.insert(self.attempts, *node);
                peer.dialled(now, patience);
                let op = Op::Connect { address: peer.address };
                io.submit(token(NetOp::Connect, Key(self.attempts)), op);
            }
        }
    }
}
