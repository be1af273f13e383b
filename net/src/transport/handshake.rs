//! Who is at the other end: hellos, refusals, and which connection of a pair stays.

use super::{Hold, NetTransport, Role};
use crate::lanes::Lanes;
use crate::peers::Channel;
use crate::session::Session;
use crate::slab::Key;
use crate::wire::{PeerHello, Refusal, RefusalCode, ServerHello};
use bytes::Bytes;
use tidelog::formation::{Hello, Verdict, judge};
use tidelog::transport::Event;
use tidelog_io::Io;
use tidelog_types::{Monotonic, NodeId};

impl NetTransport {
    pub(super) fn channel(&self, attempt: u64) -> Box<Channel> {
        let limits = &self.options.limits;
        Box::new(Channel {
            expected: None,
            attempt,
            hello: None,
            hello_at: Monotonic(0),
            established: false,
            lanes: Lanes::new(limits.peer_bytes_max, limits.peer_messages_max),
        })
    }

    /// Queues this node's hello on a channel.
    pub(super) fn say_hello(own: &Hello, channel: &mut Channel, now: Monotonic) {
        channel.hello_at = now;
        let to_shard = channel.hello.as_ref().map_or(own.shard, |h| h.shard);
        let hello = PeerHello { hello: own.clone(), attempt: channel.attempt, to_shard };
        hello.put(channel.lanes.control());
    }

    pub(super) fn heard_client(&mut self, io: &mut dyn Io, key: Key, expects: &str, events: &mut Vec<Event>) {
        let Some(own) = &self.hello else { return };
        if !expects.is_empty() && expects != own.cluster_name {
            let reason = format!("this is cluster {:?}, not {expects:?}", own.cluster_name);
            return self.part(io, key, RefusalCode::ClusterName, &reason, events);
        }
        if self.clients >= self.options.limits.client_connections_max && !self.make_place(io, events) {
            let Some(own) = &self.hello else { return };
            let reason = format!(
                "node {} has {} client connections, its limit, and none of them is idle",
                own.node, self.clients
            );
            return self.part(io, key, RefusalCode::TooMany, &reason, events);
        }
        let Some(own) = &self.hello else { return };
        let in_flight_max = self.options.limits.requests_in_flight_max;
        let hello = ServerHello {
            node: own.node,
            cluster: own.formed.as_ref().map(|f| f.cluster),
            partitions: own.partitions,
            shard: own.shard,
            shard_count: own.shard_count,
            in_flight_max: u32::try_from(in_flight_max).unwrap_or(u32::MAX),
            cluster_name: own.cluster_name.clone(),
            nodes: self.options.nodes.iter().map(|(n, a)| (*n, a.to_string())).collect(),
        };
        let mut answer = Vec::new();
        hello.put(&mut answer);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.role = Role::Client(Box::new(Session::new(io.clock().now)));
            // Nothing was sent on it before.
            conn.pipe.send(io, vec![Bytes::from(answer)]);
            self.fresh_count -= 1;
            self.clients += 1;
        }
    }

    /// Of all clients, the one that has asked nothing for longest gives up its place to a newcomer. False if none is idle.
    fn make_place(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) -> bool {
        let (now, idle_min) = (io.clock().now, self.options.limits.idle_min);
        let idle = self.conns.iter().filter_map(|(key, conn)| match &conn.role {
            Role::Client(session) if conn.pipe.partial_since().is_none() && conn.hold == Hold::No => {
                Some((session.idle_since()?, key))
            }
            _ => None,
        });
        let Some((since, key)) = idle.min().filter(|(since, _)| now.since(*since) >= idle_min) else {
            return false;
        };
        let seconds = now.since(since).as_secs();
        let reason = format!("idle for {seconds} s, longer than all others, and its place is needed");
        self.part(io, key, RefusalCode::TooMany, &reason, events);
        true
    }

    pub(super) fn heard_refusal(
        &mut self,
        io: &mut dyn Io,
        key: Key,
        refusal: &Refusal,
        events: &mut Vec<Event>,
    ) {
        let Some(conn) = self.conns.get(key) else { return };
        let Role::Peer(channel) = &conn.role else { return };
        let (node, remote) = (channel.node().or(channel.expected), conn.remote);
        self.close(io, key, events);
        if refusal.code == Some(RefusalCode::Duplicate) {
            return;
        }
        let (now, random) = (io.clock().now, io.random());
        if let Some(peer) = node.and_then(|n| self.peers.get_mut(&n)) {
            match refusal.code {
                // It has no place at the moment.
                Some(RefusalCode::TooMany) => peer.failed(now, random),
                _ => peer.refused(now, random),
            }
        }
        let about = node.map_or(remote.to_string(), |n| format!("node {n}"));
        if self.told.first(about.clone(), &refusal.reason) {
            tracing::warn!(%remote, reason = refusal.reason, "{about} refuses this node");
        }
    }

    /// Refuses a peer.
    pub(super) fn refuse(
        &mut self,
        io: &mut dyn Io,
        key: Key,
        about: NodeId,
        code: RefusalCode,
        reason: &str,
        events: &mut Vec<Event>,
    ) {
        let Some(conn) = self.conns.get(key) else { return };
        let (remote, expected) = match &conn.role {
            Role::Peer(channel) => (conn.remote, channel.expected),
            _ => (conn.remote, None),
        };
        if self.told.first(format!("node {about}"), reason) {
            tracing::warn!(%remote, reason, "peer refused");
        }
        self.part(io, key, code, reason, events);
        let (now, random) = (io.clock().now, io.random());
        if let Some(peer) = expected.and_then(|n| self.peers.get_mut(&n)) {
            peer.refused(now, random);
        }
    }

    pub(super) fn heard_hello(
        &mut self,
        io: &mut dyn Io,
        key: Key,
        heard: PeerHello,
        events: &mut Vec<Event>,
    ) {
        let Some(own) = &self.hello else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Role::Peer(channel) = &mut conn.role else { return };
        let node = heard.hello.node;
        let other = channel.node().or(channel.expected).filter(|other| *other != node);
        if let Some(other) = other {
            let reason = format!(
                "{} is configured as node {other}, but node {node} answers there: correct [cluster] nodes",
                conn.remote
            );
            return self.refuse(io, key, other, RefusalCode::Identity, &reason, events);
        }
        if heard.to_shard != own.shard {
            let reason = format!("this is shard {} of node {}, not {}", own.shard, own.node, heard.to_shard);
            return self.refuse(io, key, node, RefusalCode::WrongShard, &reason, events);
        }
        let verdict = match judge(own, &self.configured, &heard.hello) {
            Ok(verdict) => verdict,
            Err(refused) => {
                return self.refuse(io, key, node, RefusalCode::Identity, &refused.to_string(), events);
            }
        };
        let now = io.clock().now;
        let first = channel.hello.replace(heard.hello.clone()).is_none();
        // A peer that says hello again over a channel that is up has missed this node's.
        let missed = channel.established && now.since(channel.hello_at) >= self.options.channel_timeout;
        if missed {
            NetTransport::say_hello(own, channel, now);
            self.mark(key);
        }
        if first && !self.register(io, key, node, events) {
            return;
        }
        events.push(Event::Hello { hello: heard.hello });
        self.judged(key, node, &verdict, events);
    }

    /// The first hello of a connection: makes it the peer's only one, or ends it.
    fn register(&mut self, io: &mut dyn Io, key: Key, node: NodeId, events: &mut Vec<Event>) -> bool {
        let Some(old_key) = self.peers.get(&node).map(|p| p.channel) else { return false };
        let role = |key: Key| match self.conns.get(key).map(|c| &c.role) {
            Some(Role::Peer(channel)) => Some(channel),
            _ => None,
        };
        if let (Some(old_key), Some(new)) = (old_key, role(key)) {
            let stays = role(old_key).is_some_and(|old| !new.replaces(old, self.options.node));
            let loser = if stays { key } else { old_key };
            self.part(io, loser, RefusalCode::Duplicate, "another connection of this pair stays", events);
            if stays {
                return false;
            }
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.channel = Some(key);
            if peer.greeting == Some(key) {
                peer.greeting = None;
            }
        }
        if let Some(conn) = self.conns.get_mut(key)
            && let Role::Peer(channel) = &mut conn.role
            && channel.expected.is_none()
            && let Some(own) = &self.hello
        {
            NetTransport::say_hello(own, channel, io.clock().now);
            self.mark(key);
        }
        true
    }

    pub(super) fn judged(&mut self, key: Key, node: NodeId, verdict: &Verdict, events: &mut Vec<Event>) {
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Role::Peer(channel) = &mut conn.role else { return };
        if *verdict == Verdict::Established && !std::mem::replace(&mut channel.established, true) {
            tracing::info!(%node, remote = %conn.remote, "channel up");
            events.push(Event::Up(node));
        }
    }
}
