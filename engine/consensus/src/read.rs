//! Linearizable reads at the leader: read-index requests and the rounds that confirm them.
//!
//! A leader may answer from its own state only if it was still the leader at some moment after the request
//! came. It is, if a quorum answers a round that began after the request; one round serves all that wait when
//! it begins. And it may not answer before an entry of its own generation is committed: until then it does not
//! know what its predecessors committed. Bounded; promises to answer each request exactly once. It does not
//! know who asks, nor how rounds travel.

use crate::effects::{Effects, ReadOutcome};
use std::collections::VecDeque;
use tidelog_types::Index;

/// Most requests that wait at once.
pub const READS_MAX: usize = 16 << 10;

#[derive(Clone, Copy, Debug)]
struct Read {
    request: u64,
    /// The first round begun after the request.
    round: u64,
    /// What its answer must include.
    index: Index,
}

/// Requests that wait, in order of arrival: their rounds and indexes ascend.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reads {
    waiting: VecDeque<Read>,
}

impl Reads {
    pub(crate) fn is_full(&self) -> bool {
        self.waiting.len() >= READS_MAX
    }

    /// `request` waits for `round` to be confirmed and `index` to be committed.
    pub(crate) fn push(&mut self, request: u64, round: u64, index: Index) {
        self.waiting.push_back(Read { request, round, index });
    }

    /// The highest round that anyone waits for.
    pub(crate) fn round_wanted(&self) -> Option<u64> {
        self.waiting.back().map(|read| read.round)
    }

    /// A quorum answered `round`, the mark is at `high_water`: answers whom that serves.
    pub(crate) fn answer(&mut self, round: u64, high_water: Index, effects: &mut Effects) {
        while let Some(read) =
            self.waiting.front().filter(|read| read.round <= round && read.index <= high_water)
        {
            effects.reads.push((read.request, ReadOutcome::At(read.index)));
            self.waiting.pop_front();
        }
    }

    /// Leadership is lost.
    pub(crate) fn refuse_all(&mut self, effects: &mut Effects) {
        let refused = self.waiting.drain(..).map(|read| (read.request, ReadOutcome::NotLeader));
        effects.reads.extend(refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_needs_its_round_and_its_index() {
        let (mut reads, mut effects) = (Reads::default(), Effects::default());
        reads.push(1, 5, Index(3));
        reads.push(2, 5, Index(3));
        reads.push(3, 6, Index(4));
        assert_eq!(reads.round_wanted(), Some(6));
        reads.answer(5, Index(2), &mut effects);
        reads.answer(4, Index(3), &mut effects);
        assert!(effects.reads.is_empty());
        reads.answer(5, Index(9), &mut effects);
        assert_eq!(effects.reads, [(1, ReadOutcome::At(Index(3))), (2, ReadOutcome::At(Index(3)))]);
        effects.reads.clear();
        reads.refuse_all(&mut effects);
        assert_eq!(effects.reads, [(3, ReadOutcome::NotLeader)]);
        assert_eq!(reads.round_wanted(), None);
    }
}
