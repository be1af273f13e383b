//! What a partition needs of its shard during a call, and who asked.

use super::applying::Applying;
use crate::answer::Asker;
use crate::identity::Barred;
use crate::reads::Reads;
use crate::request::{RequestError, Response};
use crate::returning::Returning;
use crate::transport::{ClientRef, Transport};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;
use tidelog_consensus::{Disk, Effects};
use tidelog_io::Io;
use tidelog_types::{Clock, EntryMeta, NodeId, PartitionId};
use tidelog_wal::Wal;

/// Who asked.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A client of the network.
    Client(ClientRef),
    /// A handle of this process.
    Local(Asker),
}

/// What the partitions of a shard share: what each needs only during a call, and what is to be done for some of them.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Of the step under way.
    pub(super) effects: Effects,
    /// Headers of the records that came with the message under way.
    pub(super) metas: Vec<EntryMeta>,
    /// Those with steps that the growing batch had no room for.
    pub(crate) unwritten: Vec<PartitionId>,
    /// Those with damage.
    pub(crate) damaged: BTreeSet<PartitionId>,
    /// Peers that sent what no correct one sends, and why it is none.
    pub(crate) accused: Vec<(NodeId, &'static str)>,
    /// What this node had confirmed and lacks: it takes no part any more.
    pub(crate) barred: Option<Barred>,
    /// What state machines may take of this turn.
    pub(crate) applying: Applying,
}

impl Shared {
    /// Whether nothing is left of any step.
    pub(crate) fn is_settled(&self) -> bool {
        self.effects.is_empty()
    }
}

/// What the partition needs of its shard during a call.
pub(crate) struct Context<'a> {
    pub(crate) io: &'a mut dyn Io,
    pub(crate) wal: &'a mut Wal,
    pub(crate) transport: &'a mut dyn Transport,
    pub(crate) reads: &'a mut Reads,
    pub(crate) returning: &'a mut Returning,
    pub(crate) shared: &'a mut Shared,
    pub(crate) clock: Clock,
    /// How the disk under the log is doing.
    pub(crate) disk: Disk,
    pub(crate) cluster: u32,
    pub(crate) addresses: &'a BTreeMap<NodeId, SocketAddr>,
    pub(crate) retry_after: Duration,
}

impl Context<'_> {
    pub(crate) fn respond(&mut self, origin: Origin, response: Response) {
        match origin {
            Origin::Client(client) => self.transport.respond(client, response),
            Origin::Local(asker) => self.returning.wake_later(asker.answer(response)),
        }
    }

    pub(super) fn not_leader(&self, hint: Option<NodeId>) -> RequestError {
        RequestError::NotLeader {
            hint,
            address: hint.and_then(|n| self.addresses.get(&n)).map(ToString::to_string),
        }
    }
}
