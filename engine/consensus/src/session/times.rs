//! When something was at which time: the entries at which a stamp rose, in the order of the log.
//!
//! The log as a whole has one, and so has each session for the entries that used it. A cut undoes what its entries said, so
//! only what is settled is thinned out: of the entries far enough below the high-water mark, the newest stays.

use std::collections::VecDeque;
use tidelog_types::{Index, ReplicatedMs};

/// Entries below the high-water mark whose stamps are told apart: a table of the past can be told as far back, and a snapshot
/// is of what was applied, which may be a little behind what is committed.
const TOLD_APART: u64 = 1024;

/// Entries and their stamps, where those rose. Ascending in both.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Times(VecDeque<(Index, ReplicatedMs)>);

impl Times {
    /// The newest.
    pub(super) fn last(&self) -> Option<ReplicatedMs> {
        self.0.back().map(|(_, stamp)| *stamp)
    }

    /// The oldest that is known.
    pub(super) fn first(&self) -> Option<(Index, ReplicatedMs)> {
        self.0.front().copied()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (Index, ReplicatedMs)> {
        self.0.iter().copied()
    }

    /// The newest at or before an entry.
    pub(super) fn at(&self, index: Index) -> Option<(Index, ReplicatedMs)> {
        let after = self.0.partition_point(|(at, _)| *at <= index);
        after.checked_sub(1).and_then(|at| self.0.get(at)).copied()
    }

    /// The entry `index`, mostly the newest one, has this stamp.
    pub(super) fn note(&mut self, index: Index, stamp: ReplicatedMs) {
        let at = match self.0.back() {
            Some((last, _)) if *last >= index => self.0.partition_point(|(at, _)| *at < index),
            _ => self.0.len(),
        };
        let known = at.checked_sub(1).and_then(|before| self.0.get(before)).is_some_and(|(_, s)| *s >= stamp);
        match self.0.get_mut(at) {
            _ if known => {}
            Some(behind) if behind.1 <= stamp => behind.0 = index,
            _ => self.0.insert(at, (index, stamp)),
        }
    }

    /// Everything above `keep` is gone.
    pub(super) fn cut(&mut self, keep: Index) {
        while self.0.back().is_some_and(|(at, _)| *at > keep) {
            self.0.pop_back();
        }
    }

    /// Everything up to `high_water` stays.
    pub(super) fn settle(&mut self, high_water: Index) {
        let settled = Index(high_water.0.saturating_sub(TOLD_APART));
        while self.0.get(1).is_some_and(|(at, _)| *at <= settled) {
            self.0.pop_front();
        }
    }
}

impl FromIterator<(Index, ReplicatedMs)> for Times {
    fn from_iter<I: IntoIterator<Item = (Index, ReplicatedMs)>>(all: I) -> Times {
        Times(all.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// In whatever order entries become known, the times are those of the log, and a cut leaves those of what it keeps.
        #[test]
        fn times_are_a_function_of_the_entries(
            steps in proptest::collection::vec((0u64..3, any::<u64>()), 1..40),
            keep in 0u64..50,
        ) {
            let mut stamp = 0;
            let mut log: Vec<(Index, ReplicatedMs, u64)> = Vec::new();
            for (i, (more, order)) in steps.into_iter().enumerate() {
                stamp += more;
                log.push((Index(i as u64 + 1), ReplicatedMs(stamp), order));
            }
            let of = |log: &[(Index, ReplicatedMs, u64)]| {
                let mut times = Times::default();
                log.iter().for_each(|(index, stamp, _)| times.note(*index, *stamp));
                times
            };
            let mut shuffled = log.clone();
            shuffled.sort_by_key(|(.., order)| *order);
            let mut times = of(&log);
            prop_assert_eq!(&of(&shuffled), &times);
            prop_assert_eq!(times.last(), log.last().map(|(_, stamp, _)| *stamp));
            log.retain(|(index, ..)| index.0 <= keep);
            times.cut(Index(keep));
            prop_assert_eq!(&times, &of(&log));
            prop_assert_eq!(times.at(Index(keep)).map(|(_, s)| s), log.last().map(|(_, stamp, _)| *stamp));
        }
    }

    #[test]
    fn what_is_settled_is_thinned_out() {
        let mut times: Times = (1..=3000).map(|i| (Index(i), ReplicatedMs(i))).collect();
        times.settle(Index(2024));
        assert_eq!(times.first(), Some((Index(1000), ReplicatedMs(1000))));
        times.settle(Index(90_000));
        assert_eq!((times.iter().len(), times.last()), (1, Some(ReplicatedMs(3000))));
    }
}
