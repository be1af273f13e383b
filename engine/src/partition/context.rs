//! What a partition needs of its shard during a call, and who asked.

use crate::answer::Asker;
use crate::reads::Reads;
use crate::request::{RequestError, Response};
use crate::returning::Returning;
use crate::transport::{ClientRef, Transport};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tidelog_io::Io;
use tidelog_types::{Clock, NodeId};
use tidelog_wal::Wal;

/// Who asked.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A client of the network.
    Client(ClientRef),
    /// A handle of this process.
    Local(Asker),
}

/// What the partition needs of its shard during a call.
pub(crate) struct Context<'a> {
    pub(crate) io: &'a mut dyn Io,
    pub(crate) wal: &'a mut Wal,
    pub(crate) transport: &'a mut dyn Transport,
    pub(crate) reads: &'a mut Reads,
    pub(crate) returning: &'a mut Returning,
    pub(crate) clock: Clock,
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
