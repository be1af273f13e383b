//! Deciding: how a replica that lost entries of its log comes to lead.
//!
//! What is damaged at or below the high-water mark is committed, so it waits for its bytes. What is damaged above it may be
//! entries that nobody else has: then nobody can give them back, and whoever has a shorter log is not elected past them. So
//! such a replica stands for election as well, an election time-out later than the others. Elected, it leads only when its
//! log is whole: either the bytes come back, or so many other voters have denied the entry that no quorum can ever have held it,
//! which is cut then ([`Replica::denied`]). Neither: it waits, and stands again.
//!
//! Promises that nothing is cut that was or can become committed. A denial counts only from a voter that has promised the
//! candidate's generation durably: it takes nothing of an earlier generation any more. It does not know who asks the voters.
//! (The rule is protocol-aware recovery's: Alagappan et al., "Protocol-Aware Recovery for Consensus-Based Storage", FAST 2018.)

use crate::effects::Effects;
use crate::quorum;
use crate::replica::{Replica, State};
use tidelog_types::{Clock, Generation, Index, NodeId, Position};

/// What an elected candidate with damage has learned.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Deciding {
    /// The damaged entry that was denied.
    at: Index,
    /// By whom.
    by: Vec<NodeId>,
}

impl Replica {
    /// Whether an election could make it lead: all that it lost is above its high-water mark.
    pub(crate) fn may_stand(&self) -> bool {
        let lost = [self.damage.first_from(Index(1)), self.unknown_from(Index(1))];
        match lost.into_iter().flatten().min() {
            Some(first) => !self.is_alone() && first > self.high_water,
            None => true,
        }
    }

    /// A quorum voted for it.
    pub(crate) fn elected(&mut self, clock: Clock, effects: &mut Effects) {
        let State::Candidate { votes, deciding, .. } = &mut self.state else { return };
        if self.damage.is_empty() && !self.sessions.has_holes() {
            let votes = core::mem::take(votes);
            self.lead(clock, &votes, effects);
        } else if deciding.is_none() {
            *deciding = Some(Deciding::default());
        }
    }

    /// Whether it has been elected and cannot lead before it is known what becomes of its damaged entries: every other
    /// voter is to be asked for them at once ([`Replica::repair_wanted`]).
    pub fn is_deciding(&self) -> bool {
        matches!(&self.state, State::Candidate { deciding: Some(_), .. })
    }

    /// Whether this replica can say that `entry` is not in its log: neither whole, nor damaged, nor let go.
    pub fn denies(&self, entry: Position) -> bool {
        match self.log.remembered_generation(entry.index) {
            Some(generation) => generation != entry.generation,
            None => entry.index > self.log.base().index,
        }
    }

    /// `from` says that it does not have `entry` ([`Replica::denies`]), and that `promised` is durable there.
    pub fn denied(
        &mut self,
        clock: Clock,
        from: NodeId,
        entry: Position,
        promised: Generation,
        effects: &mut Effects,
    ) {
        let wanted = entry.index > self.high_water
            && self.damage.is_wanted(entry.index)
            && self.log.generation_at(entry.index) == Some(entry.generation);
        if !wanted || promised != self.generation || !self.peers.contains(&from) {
            return;
        }
        let State::Candidate { deciding: Some(deciding), .. } = &mut self.state else { return };
        if deciding.at != entry.index {
            *deciding = Deciding { at: entry.index, by: Vec::new() };
        }
        if !deciding.by.contains(&from) {
            deciding.by.push(from);
        }
        if quorum::blocked(deciding.by.len(), self.config.voters.len()) {
            self.cut(entry.index.prev(), effects);
            self.elected(clock, effects);
        }
    }
}
