//! The request waiting list of a partition (R20): who waits for which entry to be committed.

use std::collections::{BTreeMap, VecDeque};
use tidelog_types::{Generation, Index, Position};

/// Requests waiting for entries that this node proposed, or found again, as the leader of one generation.
///
/// Each waiter leaves exactly once: by [`Self::committed`] or, when leadership is lost for whatever reason, by
/// [`Self::abandon`].
#[derive(Debug)]
pub(crate) struct WaitingList<W> {
    generation: Generation,
    /// For entries proposed by this leader, in index order.
    proposed: VecDeque<(Position, W)>,
    /// For entries that were in the log already when a retry asked for them.
    found: BTreeMap<Index, Vec<(Position, W)>>,
}

impl<W> WaitingList<W> {
    pub(crate) fn new() -> Self {
        WaitingList { generation: Generation::ZERO, proposed: VecDeque::new(), found: BTreeMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.proposed.len() + self.found.values().map(Vec::len).sum::<usize>()
    }

    /// The first entry waited for among those proposed by this leader.
    pub(crate) fn first(&self) -> Option<Position> {
        self.proposed.front().map(|(position, _)| *position)
    }

    /// `waiter` waits for the entry just proposed.
    pub(crate) fn push(&mut self, position: Position, waiter: W) {
        self.enter(position.generation);
        assert!(
            self.proposed.back().is_none_or(|(last, _)| last.index < position.index),
            "a leader's indexes only grow"
        );
        self.proposed.push_back((position, waiter));
    }

    /// Waiters come in under the leader of `generation`.
    fn enter(&mut self, generation: Generation) {
        assert!(
            generation >= self.generation && (self.generation == generation || self.len() == 0),
            "waiters of an older generation were abandoned before the next one takes any"
        );
        self.generation = generation;
    }

    /// `waiter` waits for an entry, perhaps of an older generation, that is in the log of `generation`'s leader already.
    pub(crate) fn attach(&mut self, generation: Generation, position: Position, waiter: W) {
        self.enter(generation);
        self.found.entry(position.index).or_default().push((position, waiter));
    }

    /// Everything up to `high_water` is committed: hands out who waited for it.
    pub(crate) fn committed(&mut self, high_water: Index, mut done: impl FnMut(Position, W)) {
        while self.proposed.front().is_some_and(|(p, _)| p.index <= high_water) {
            if let Some((position, waiter)) = self.proposed.pop_front() {
                done(position, waiter);
            }
        }
        while let Some(entry) = self.found.first_entry() {
            if *entry.key() > high_water {
                break;
            }
            for (position, waiter) in entry.remove() {
                done(position, waiter);
            }
        }
    }

    /// Leadership is gone: hands out everyone.
    pub(crate) fn abandon(&mut self, mut unknown: impl FnMut(W)) {
        self.proposed.drain(..).for_each(|(_, waiter)| unknown(waiter));
        while let Some((_, waiters)) = self.found.pop_first() {
            waiters.into_iter().for_each(|(_, waiter)| unknown(waiter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64, generation: u64) -> Position {
        Position::new(Index(index), Generation(generation))
    }

    #[test]
    fn each_waiter_leaves_exactly_once() {
        let mut list = WaitingList::new();
        for i in 5..9 {
            list.push(at(i, 2), i);
        }
        list.attach(Generation(2), at(3, 1), 103);
        list.attach(Generation(2), at(6, 2), 106);
        let mut done = Vec::new();
        list.committed(Index(6), |p, w| done.push((p.index.0, w)));
        assert_eq!(done, [(5, 5), (6, 6), (3, 103), (6, 106)]);
        let mut lost = Vec::new();
        list.abandon(|w| lost.push(w));
        assert_eq!((lost, list.len()), (vec![7, 8], 0));
        // A retry finds an older generation's entry before the new leader proposes anything.
        list.attach(Generation(3), at(5, 2), 105);
        list.push(at(7, 3), 7);
        list.committed(Index(100), |_, w| done.push((0, w)));
        assert_eq!(done.len(), 6);
    }
}
