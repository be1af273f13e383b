//! A set of indexes kept as runs: what is damaged, what is unknown. Small where little is wrong, whatever the
//! log's length; its size is bounded by the log that it is about.

use crate::base::{BaseError, Input, put};
use tidelog_types::Index;

/// A set of indexes: ascending runs (first, last), disjoint and never adjacent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ranges {
    runs: Vec<(Index, Index)>,
}

impl Ranges {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many indexes.
    pub(crate) fn count(&self) -> u64 {
        self.runs.iter().map(|(first, last)| last.0 - first.0 + 1).sum()
    }

    /// Appends its bytes: the count of runs, then first and last index of each.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.runs.len() as u64);
        for (first, last) in &self.runs {
            put(out, first.0);
            put(out, last.0);
        }
    }

    /// A set of indexes up to `last`.
    ///
    /// # Errors
    /// In which way the bytes are not such a set.
    pub(crate) fn decode(input: &mut Input<'_>, end: Index) -> Result<Ranges, BaseError> {
        let mut ranges = Ranges::default();
        let mut free = Index(1);
        for _ in 0..input.count(16)? {
            let (first, last) = (Index(input.number()?), Index(input.number()?));
            if first < free || last < first || last > end {
                return Err(BaseError::Contradiction("ranges"));
            }
            ranges.runs.push((first, last));
            free = last.next().next();
        }
        Ok(ranges)
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Index, Index)> {
        self.runs.iter().copied()
    }

    pub(crate) fn contains(&self, index: Index) -> bool {
        self.first_from(index).is_some_and(|(first, _)| first == index)
    }

    /// The first run at or behind `from`, without what lies before `from`.
    pub(crate) fn first_from(&self, from: Index) -> Option<(Index, Index)> {
        let at = self.runs.partition_point(|(_, last)| *last < from);
        self.runs.get(at).map(|(first, last)| (from.max(*first), *last))
    }

    /// How many indexes of `first ..= last` are in it.
    pub(crate) fn count_within(&self, first: Index, last: Index) -> u64 {
        let from = self.runs.partition_point(|(_, end)| *end < first);
        let runs = self.runs.get(from..).unwrap_or_default();
        let within = runs.iter().take_while(|(start, _)| *start <= last);
        within.map(|(start, end)| (*end).min(last).0 - (*start).max(first).0 + 1).sum()
    }

    pub(crate) fn insert(&mut self, first: Index, last: Index) {
        assert!(Index::ZERO < first && first <= last, "a run has a first and a last index");
        let from = self.runs.partition_point(|(_, end)| end.next() < first);
        let to = self.runs.partition_point(|(start, _)| *start <= last.next());
        let joined = self.runs.get(from..to).unwrap_or_default();
        let first = joined.first().map_or(first, |run| run.0.min(first));
        let last = joined.last().map_or(last, |run| run.1.max(last));
        self.runs.splice(from..to, [(first, last)]);
    }

    pub(crate) fn remove(&mut self, first: Index, last: Index) {
        let from = self.runs.partition_point(|(_, end)| *end < first);
        let to = self.runs.partition_point(|(start, _)| *start <= last);
        let touched = self.runs.get(from..to).unwrap_or_default();
        let before = touched.first().filter(|run| run.0 < first).map(|run| (run.0, first.prev()));
        let behind = touched.last().filter(|run| last < run.1).map(|run| (last.next(), run.1));
        self.runs.splice(from..to.max(from), before.into_iter().chain(behind));
    }

    /// Removes everything above `keep`.
    pub(crate) fn cut(&mut self, keep: Index) {
        self.remove(keep.next(), Index(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn runs_are_the_set_that_they_stand_for(steps in proptest::collection::vec((0u8..5, 1u64..40, 0u64..8), 1..60)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (what, first, more) in steps {
                let (first, last) = (Index(first), Index(first + more));
                match what {
                    0 => {
                        ranges.cut(first);
                        model.retain(|i| *i <= first.0);
                    }
                    1 => {
                        ranges.remove(first, last);
                        model.retain(|i| *i < first.0 || *i > last.0);
                    }
                    _ => {
                        ranges.insert(first, last);
                        model.extend(first.0..=last.0);
                    }
                }
                prop_assert_eq!(ranges.count(), model.len() as u64);
                prop_assert_eq!(ranges.is_empty(), model.is_empty());
                prop_assert_eq!(ranges.count_within(first, last), model.range(first.0..=last.0).count() as u64);
                for i in 1..50 {
                    prop_assert_eq!(ranges.contains(Index(i)), model.contains(&i));
                    prop_assert_eq!(ranges.first_from(Index(i)).map(|r| r.0.0), model.range(i..).next().copied());
                }
                let runs: Vec<_> = ranges.iter().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].1.next() < pair[1].0));
            }
        }
    }
}
