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
            process: 0,
            greeted: false,
            present: false,
            hello_at: Monotonic(0),
            established: false,
            lanes: Lanes::new(limits.peer_bytes_max, limits.peer_messages_max),
        })
    }

    /// Queues this node's hello on a channel.
    pub(super) fn say_hello(own: &Hello, channel: &mut Channel, now: Monotonic) {
        channel.hello_at = now;
        let (to_shard, to_process) = channel.hello.as_ref().map_or((own.shard, 0), |h| (h.shard, h.process));
        channel.greeted = to_process != 0;
        let hello = Hello { process: channel.process, ..own.clone() };
        let hello = PeerHello { hello, attempt: channel.attempt, to_shard, to_process };
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
            cluster: own.formed.as_ref().map(|f| f.cluster.tag()),
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
                // Over when the older one's channel is noticed to be dead.
                Some(RefusalCode::Doubled) => peer.failed(now, random),
                _ => peer.refused(now, random),
            }
        }
        if let (Some(node), Some(RefusalCode::Identity | RefusalCode::Doubled)) = (node, refusal.code) {
            events.push(Event::Refused { node, reason: format!("it refuses this node: {}", refusal.reason) });
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
        if code == RefusalCode::Identity {
            events.push(Event::Refused { node: about, reason: format!("this node refuses it: {reason}") });
        }
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
        let other_life = channel.hello.as_ref().is_some_and(|before| before.process != heard.hello.process)
            || heard.to_process != 0 && heard.to_process != channel.process;
        if other_life {
            let reason = format!(
                "this hello was said to an earlier process of node {}, or by one of node {node}",
                own.node
            );
            return self.refuse(io, key, node, RefusalCode::Identity, &reason, events);
        }
        channel.present |= heard.to_process != 0;
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
        let Some(own) = &self.hello else { return };
        let Some(conn) = self.conns.get_mut(key) else { return };
        let Role::Peer(channel) = &mut conn.role else { return };
        let present = channel.present;
        if !channel.greeted {
            NetTransport::say_hello(own, channel, now);
            self.mark(key);
        }
        // What names no process of this node may be a repetition of what was said to an earlier one: it makes nothing durable.
        if present {
            events.push(Event::Hello { hello: heard.hello });
            self.judged(key, node, &verdict, events);
        }
    }

    /// The first hello of a connection: makes it the peer's only one, or ends it.
    fn register(&mut self, io: &mut dyn Io, key: Key, node: NodeId, events: &mut Vec<Event>) -> bool {
        let Some(old_key) = self.peers.get(&node).map(|p| p.channel) else { return false };
        let now = io.clock().now;
        let role = |key: Key| match self.conns.get(key).map(|c| (&c.role, c.pipe.last_received)) {
            Some((Role::Peer(channel), heard)) => Some((channel, now.since(heard))),
            _ => None,
        };
        if let (Some(old_key), Some((new, _))) = (old_key, role(key)) {
            let patience = self.options.election_timeout;
            let old = role(old_key)
                .filter(|(old, silent)| !new.replaces(old, self.options.node, *silent, patience));
            let process = |channel: &Channel| channel.hello.as_ref().map(|hello| hello.process);
            if let Some((old, _)) = old {
                if process(old) == process(new) {
                    self.part(
                        io,
                        key,
                        RefusalCode::Duplicate,
                        "another connection of this pair stays",
                        events,
                    );
                } else {
                    let reason = format!(
                        "another process of node {node} has a live channel to node {}: two run on one data directory or on copies of it, and the second one is not heard. Stop one of them. After a restart that the network did not notice, this passes in {} ms",
                        self.options.node,
                        patience.as_millis()
                    );
                    self.refuse(io, key, node, RefusalCode::Doubled, &reason, events);
                }
                return false;
            }
            self.part(io, old_key, RefusalCode::Duplicate, "another connection of this pair stays", events);
        }
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.channel = Some(key);
            if peer.greeting == Some(key) {
                peer.greeting = None;
            }
            let process = peer.process;
            if let Some(Role::Peer(channel)) = self.conns.get_mut(key).map(|conn| &mut conn.role) {
                channel.process = process;
            }
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
