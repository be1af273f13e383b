//! What a step asks its shard to do.

use crate::message::{Asserting, Free};
use tidelog_types::{EntryMeta, Generation, Index, NodeId, Position, Ticket};

/// A message and whom it is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outgoing<M> {
    /// The peer.
    pub to: NodeId,
    /// What to say.
    pub message: M,
}

/// One durable step, to be put into the shard's log in the order given. The log reports `ticket` when it is
/// durable, after all tickets before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogOp {
    /// Strictly increasing within the replica's life.
    pub ticket: Ticket,
    /// What to write.
    pub kind: LogOpKind,
}

/// What to write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LogOpKind {
    /// The entries `first ..= last`: their bytes are the proposal's or the append message's.
    Append {
        /// First index.
        first: Index,
        /// Last index.
        last: Index,
    },
    /// Write the bytes of the entries `first ..= last` back: they are damaged, and those of the message that was
    /// stepped, or of the call of `repair`, are good. This changes where entries lie, never which there are.
    Repair {
        /// First index.
        first: Index,
        /// Last index.
        last: Index,
    },
    /// One entry that the replica itself makes: the no-op that opens a generation, or a log start.
    Make(EntryMeta),
    /// Generation and vote.
    Promise {
        /// The generation adopted.
        generation: Generation,
        /// Voted for, in it.
        vote: Option<NodeId>,
    },
    /// Remove every entry above `keep`.
    Cut {
        /// The last entry kept.
        keep: Position,
    },
    /// A snapshot's commit point: it is durable and covers everything up to here.
    SnapshotMark {
        /// The last entry covered.
        covered: Position,
    },
    /// Entries below this one are not kept any more.
    LowWater {
        /// First index kept.
        first: Index,
    },
}

/// The answer to a read-index request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadOutcome {
    /// Linearizable at this index: read once applied up to it.
    At(Index),
    /// Not the leader any more (or yet).
    NotLeader,
}

/// What people are to be told, and the shard may have to act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    /// A leader wants other entries where this replica knows its own to be committed. It is not followed: some replica has
    /// broken a promise, and going along would lose what was acknowledged.
    Contradicted {
        /// Who leads.
        leader: NodeId,
        /// The leader's generation.
        generation: Generation,
        /// The first entry found to differ.
        index: Index,
        /// This replica's mark.
        high_water: Index,
    },
    /// A follower lacks what it had confirmed to this leader, and is not counted any more.
    PeerLost {
        /// Who.
        node: NodeId,
        /// The last entry that it had confirmed.
        confirmed: Position,
        /// Where its log agrees with the leader's at most.
        end: Index,
    },
    /// This replica lacks what it had confirmed: the node is to take no part any more, and to remember that.
    Barred {
        /// The entry.
        confirmed: Position,
    },
    /// A peer speaks of a generation that no election explains.
    Jump {
        /// Who.
        from: NodeId,
        /// The generation that it speaks of.
        generation: Generation,
    },
}

/// Effects of steps, gathered over a turn. The shard drains it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// Leave at once.
    pub send_now: Vec<Outgoing<Free>>,
    /// Into the log, in this order.
    pub append: Vec<LogOp>,
    /// Leave once the ticket is durable here, in this order; dropped by the shard if the replica's generation
    /// has moved on by then. Ticket 0 is always durable.
    pub send_when_durable: Vec<(Ticket, Outgoing<Asserting>)>,
    /// The high-water mark is now here: apply and answer up to it.
    pub committed: Option<Index>,
    /// Answers to read-index requests, by the caller's number.
    pub reads: Vec<(u64, ReadOutcome)>,
    /// The role, leader or generation changed; look at the replica. When leadership was lost, every waiter of it resolves now.
    pub role_changed: bool,
    /// Leadership was lost in this turn: the generation that it was held in.
    pub deposed: Option<Generation>,
    /// What went wrong in a way that people should know of.
    pub trouble: Vec<Trouble>,
}

impl Effects {
    /// Whether everything asked for has been taken out.
    pub fn is_empty(&self) -> bool {
        let Effects { send_now, append, send_when_durable, committed, reads, role_changed, deposed, trouble } =
            self;
        trouble.is_empty()
            && send_now.is_empty()
            && append.is_empty()
            && send_when_durable.is_empty()
            && committed.is_none()
            && reads.is_empty()
            && !role_changed
            && deposed.is_none()
    }
}
