//! How a shard comes to be part of a cluster: see [`crate::formation`].

use super::Shard;
use crate::error::Error;
use crate::formation::{Formed, Hello, Member};
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
