//! How a shard comes to be part of a cluster: see [`crate::formation`].

use super::Shard;
use crate::error::Error;
use crate::formation::{Formed, Hello, Member};
use crate::partition::Partition;
use std::collections::BTreeMap;
use tidelog_io::{Foreground, Io};
use tidelog_types::ClusterId;

impl Shard {
    pub(super) fn hello(&self) -> Hello {
        Hello {
            cluster_name: self.options.cluster_name.clone(),
            node: self.options.node,
            incarnation: self.identity.incarnation,
            process: self.process,
            shard: 0,
            shard_count: self.identity.shard_count,
            partitions: self.identity.partitions,
            replication: self.identity.replication,
            key_hash: self.identity.key_hash,
            payload_bytes_max: tidelog_types::limits::PAYLOAD_BYTES_MAX as u32,
            feature_level: 1,
            heartbeat_ms: u32::try_from(self.options.heartbeat.as_millis()).unwrap_or(u32::MAX),
            barred: self.identity.barred.is_some(),
            formed: self.identity.formed.clone(),
        }
    }

    /// A peer's hello before or after formation; the transport has judged it already.
    pub(super) fn heard(&mut self, io: &mut dyn Io, hello: Hello) -> Result<(), Error> {
        if self.identity.formed.is_some() {
            return Ok(());
        }
        if let Some(formed) = &hello.formed {
            let own = Member { node: self.options.node, incarnation: self.identity.incarnation };
            if formed.members.contains(&own) {
                let formed = formed.clone();
                return self.become_formed(io, formed);
            }
            return Ok(());
        }
        self.hellos.insert(hello.node, hello);
        let founders = self.options.nodes.iter().map(|(n, _)| *n);
        let first = self.options.nodes.first().map(|(n, _)| *n) == Some(self.options.node);
        if first && founders.filter(|n| *n != self.options.node).all(|n| self.hellos.contains_key(&n)) {
            return self.form(io);
        }
        Ok(())
    }

    /// This node is the first founder and has heard every other one, unformed: it forms the cluster.
    pub(super) fn form(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mut members: Vec<Member> =
            self.hellos.values().map(|h| Member { node: h.node, incarnation: h.incarnation }).collect();
        members.push(Member { node: self.options.node, incarnation: self.identity.incarnation });
        members.sort();
        let cluster = ClusterId(io.random().max(1));
        self.become_formed(io, Formed { cluster, members })
    }

    /// Why the node does not serve its log, or takes no part in its cluster.
    pub fn waiting(&self) -> Option<String> {
        if let Some(barred) = &self.identity.barred {
            return Some(format!("{barred}. It takes no part any more, and must be replaced"));
        }
        let refused = || {
            let reasons = self.refusals.iter().map(|(node, why)| format!("node {node}: {why}"));
            reasons.collect::<Vec<_>>().join("; ")
        };
        if self.life.is_some() {
            // One that hears it is enough: the others' reasons are theirs. And they may be away: it serves its log all the same.
            let heard = !self.connected.is_empty() || self.options.nodes.len() == 1;
            let early = self.clock.now.since(self.opened) < self.options.election_timeout;
            return match (heard, self.refusals.is_empty()) {
                (true, _) => None,
                (false, false) => Some(refused()),
                (false, true) => early.then(|| "no peer has been heard yet".to_owned()),
            };
        }
        if self.identity.formed.is_some() {
            let why = self.space_trouble();
            return Some(why.unwrap_or_else(|| "the log is being opened again after a failure".to_owned()));
        }
        if !self.refusals.is_empty() {
            return Some(format!("the cluster is not formed yet; {}", refused()));
        }
        let missing: Vec<String> = (self.options.nodes.iter())
            .filter(|(node, _)| *node != self.options.node && !self.hellos.contains_key(node))
            .map(|(node, _)| node.to_string())
            .collect();
        Some(match missing.is_empty() {
            true => "the cluster is not formed yet: the founder with the lowest id forms it".to_owned(),
            false => format!(
                "the cluster is not formed yet: all founding nodes must be connected at once, and of these nothing was heard: {}",
                missing.join(", ")
            ),
        })
    }

    /// Tells those who wait for the node to serve its log, if what they saw is not so any more.
    pub(super) fn say_serving(&mut self) {
        let now = self.waiting().map_or(Ok(()), Err);
        if self.serving.as_ref() != Some(&now) {
            self.serving = Some(now.clone());
            self.inbox.life_cycle.say_serving(now);
        }
    }

    /// What this turn's messages have shown about peers, and about this node.
    pub(super) fn heed_trouble(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let Some(life) = &mut self.life else { return Ok(()) };
        let accused = std::mem::take(&mut life.shared.accused);
        let barred = life.shared.barred.take().filter(|_| self.identity.barred.is_none());
        for (node, why) in accused {
            self.transport.accuse(io, node, why);
        }
        let Some(barred) = barred else { return Ok(()) };
        tracing::error!(
            "{barred}. It takes no part any more: it neither votes nor confirms, now and after a restart, and must be replaced"
        );
        // Before anything else leaves: what was queued in this turn goes with the channels.
        self.transport.barred(io);
        if let Some(life) = &mut self.life {
            life.replicas.partitions.iter_mut().for_each(Partition::bar);
            life.replicas.touch_all();
        }
        self.identity.barred = Some(barred);
        let mut fg = Foreground::new(io);
        let stored = self.identity.store(&mut fg, &self.options.data_dir);
        let others = fg.finish();
        self.clock = io.clock();
        self.wanted = self.wanted.max(self.clock.now);
        for completion in others {
            self.complete(io, completion);
        }
        stored
    }

    pub(super) fn become_formed(&mut self, io: &mut dyn Io, formed: Formed) -> Result<(), Error> {
        tracing::info!(cluster = format!("{:016x}", formed.cluster.get()), members = ?formed.members.iter().map(|m| m.node.get()).collect::<Vec<_>>(), "cluster formed");
        self.identity.formed = Some(formed.clone());
        let mut fg = Foreground::new(io);
        let stored = self.identity.store(&mut fg, &self.options.data_dir);
        let others = fg.finish();
        stored?;
        self.hellos.clear();
        self.hand_out(io, others);
        self.open_log(io, BTreeMap::new())?;
        self.transport.formed(io, &formed);
        Ok(())
    }
}
