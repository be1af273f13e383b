//! Messages on their way, and clients' requests: those that wait, and how they ended.

use super::disk::Stored;
use tidelog_consensus::{Message, Refused};
use tidelog_types::{Generation, Index, SessionRef};

/// A message on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    pub from: u64,
    pub to: u64,
    pub message: Message,
    pub entries: Vec<Stored>,
}

/// How a client's request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    Waiting,
    Acked(Index),
    Unknown,
    Refused(Refused),
}

/// A refusal of a request, on its way to the client.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub name: String,
    pub payload: String,
    pub session: Option<SessionRef>,
    pub refused: Refused,
    /// The leader's last entry when it came.
    pub end: Index,
}

/// A request that waits at a leader for its entry.
#[derive(Clone, Debug)]
pub(super) struct Waiter {
    pub(super) at: Index,
    pub(super) generation: Generation,
    pub(super) request: String,
}
