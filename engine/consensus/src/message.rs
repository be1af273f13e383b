//! What replicas of one partition say to each other.
//!
//! What is for the replica comes in two halves, which are two types, so that the compiler keeps the rule "what asserts a generation waits for the
//! disk": [`Free`] messages may leave at once, [`Asserting`] ones only when a ticket is durable here.

use crate::stall::Disk;
use tidelog_types::{Generation, Index, Position, WallMs};

/// May leave at once: it asserts nothing that is not durable already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Free {
    /// Would you vote for me in `generation`? Changes nothing at either side.
    PreVote {
        /// The generation that the sender would campaign in (its own plus one).
        generation: Generation,
        /// The sender's last entry.
        last: Position,
    },
    /// Answer to a pre-vote.
    PreVoteReply {
        /// Granted: the generation asked about. Refused: the answerer's own durable generation.
        generation: Generation,
        /// Whether it would.
        granted: bool,
    },
    /// Entries, from a leader; see [`Append`].
    Append(Append),
    /// The receiver has confirmed this entry to the sender, and lacks it now. It is counted no more, and must take no part.
    Lost {
        /// The leader's generation.
        generation: Generation,
        /// The last entry that the receiver had confirmed.
        confirmed: Position,
    },
    /// The leader is there.
    Heartbeat {
        /// The leader's generation (durable since its election).
        generation: Generation,
        /// The leader's high-water mark.
        high_water: Index,
        /// Number of the leader's round, from 1 in each generation: what the reply gives evidence for.
        round: u64,
    },
    /// The leader hands its leadership over to the receiver, which stands for election at once. The leader goes on until it
    /// receives the vote request that names this.
    HandOver {
        /// The leader's generation (durable since its election).
        generation: Generation,
    },
}

/// Leaves only when its ticket is durable here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asserting {
    /// Vote for me: sent once the candidate's own promise is durable.
    Vote {
        /// The generation campaigned in.
        generation: Generation,
        /// The candidate's last entry.
        last: Position,
        /// The leader of the generation before this one has handed over to the candidate: nobody abstains for its sake.
        handed_over: bool,
    },
    /// Answer to a vote request.
    VoteReply {
        /// The answerer's generation.
        generation: Generation,
        /// Whether it voted for the asker in that generation.
        granted: bool,
        /// The answerer's wall clock: a leader's stamps need a quorum's agreement.
        wall: WallMs,
    },
    /// All entries up to `matched` are durable here and are those of the leader of `generation`.
    AppendReply {
        /// The answerer's generation, the leader's.
        generation: Generation,
        /// Last index that is both verified to match the leader and durable.
        matched: Index,
        /// The round of the append answered.
        round: u64,
    },
    /// The append does not fit behind the answerer's log.
    AppendRefused {
        /// The answerer's generation. Higher than the asker's: the asker is deposed.
        generation: Generation,
        /// `prev.index` of the append refused.
        prev: Index,
        /// Where the leader may try next: the answerer's last entry at or below `prev` of a generation not above
        /// `prev.generation` (fast back-tracking by generation).
        hint: Position,
        /// The round of the append answered; 0 if the append was of a lower generation: rounds are numbered
        /// anew in each, and this one says nothing about the rounds of the answerer's.
        round: u64,
        /// It does not fit because bytes before it are damaged at the answerer, whose log has the entries nevertheless.
        damaged: bool,
    },
    /// Answer to a heartbeat: evidence for `round`, and a refusal if the generation is higher.
    HeartbeatReply {
        /// The answerer's generation.
        generation: Generation,
        /// The round answered; 0 if the heartbeat was of a lower generation.
        round: u64,
        /// Last index that is both verified to match the leader and durable.
        matched: Index,
        /// The answerer's wall clock.
        wall: WallMs,
        /// The answerer's disk.
        disk: Disk,
    },
}

/// What is said to heal a damaged log. It asserts nothing about leadership, needs no leader, and may leave at once:
/// index and generation fix an entry's bytes, whoever has them (invariant 3).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Repair {
    /// The bytes of these entries, please: they are damaged here.
    Fetch {
        /// Their generation.
        generation: Generation,
        /// First index.
        first: Index,
        /// Last index.
        last: Index,
    },
    /// Some of them that follow each other. If they are not from the first one on, the answerer cannot give what lies before. Their bytes
    /// travel beside it.
    Fetched {
        /// Their generation.
        generation: Generation,
        /// First index.
        first: Index,
        /// How many.
        count: u64,
    },
    /// The answerer can give none of them.
    Missing {
        /// The generation asked for.
        generation: Generation,
        /// The first index asked for.
        first: Index,
        /// It has the entry or had it, but the bytes are damaged there, too, or not kept. If not, this is a denial: the entry is not in
        /// the answerer's log ([`crate::Replica::denies`]).
        damaged: bool,
        /// Generation promised by the answerer, durable there. A leader of that generation or a lower one does not get the
        /// answerer's help for an entry that it has denied.
        promised: Generation,
    },
}

impl Repair {
    /// The generation of the entries that it is about.
    pub fn generation(&self) -> Generation {
        match self {
            Repair::Fetch { generation, .. }
            | Repair::Fetched { generation, .. }
            | Repair::Missing { generation, .. } => *generation,
        }
    }
}

/// Any of them, as it travels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// See [`Free`].
    Free(Free),
    /// See [`Asserting`].
    Asserting(Asserting),
    /// See [`Repair`]. Not for the replica: whoever has the bytes answers it.
    Repair(Repair),
}

/// Entries behind `prev`, or none (a probe). Their bytes travel beside it and are the same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Append {
    /// The leader's generation.
    pub generation: Generation,
    /// The entry before the first one sent.
    pub prev: Position,
    /// How many entries follow; they have the indexes `prev.index + 1 ..= prev.index + count`.
    pub count: u64,
    /// The leader's high-water mark.
    pub high_water: Index,
    /// Number of the leader's round.
    pub round: u64,
}

impl Message {
    /// The generation that it speaks of.
    pub fn generation(&self) -> Generation {
        match self {
            Message::Free(m) => match m {
                Free::PreVote { generation, .. }
                | Free::PreVoteReply { generation, .. }
                | Free::Lost { generation, .. }
                | Free::Heartbeat { generation, .. }
                | Free::HandOver { generation } => *generation,
                Free::Append(a) => a.generation,
            },
            Message::Asserting(m) => m.generation(),
            Message::Repair(m) => m.generation(),
        }
    }
}

impl Asserting {
    /// Whether `newer`, to the same peer, says all that this one does, if both leave at the same moment.
    pub fn is_superseded_by(&self, newer: &Asserting) -> bool {
        use Asserting::{AppendRefused, AppendReply, HeartbeatReply, VoteReply};
        let older_is_less = match (self, newer) {
            (AppendReply { matched, round, .. }, AppendReply { matched: more, round: later, .. })
            | (HeartbeatReply { matched, round, .. }, HeartbeatReply { matched: more, round: later, .. }) => {
                matched <= more && round <= later
            }
            // A leader waits for the answer to its last probe only.
            (AppendRefused { round, .. }, AppendRefused { round: later, .. }) => round <= later,
            (VoteReply { granted, .. }, VoteReply { granted: again, .. }) => granted == again,
            _ => false,
        };
        older_is_less && self.generation() == newer.generation()
    }

    /// The generation that it asserts.
    pub fn generation(&self) -> Generation {
        match self {
            Asserting::Vote { generation, .. }
            | Asserting::VoteReply { generation, .. }
            | Asserting::AppendReply { generation, .. }
            | Asserting::AppendRefused { generation, .. }
            | Asserting::HeartbeatReply { generation, .. } => *generation,
        }
    }
}
