//! A partition's log as the protocol sees it: which generation each index has, and nothing of the bytes.
//!
//! Kept as runs of one generation, so a log of any length costs sixteen bytes for each leadership that wrote
//! into it. Includes the end that is not durable yet. It promises dense indexes and generations that never
//! fall; a caller that breaks this has a bug and is stopped. It does not know what is committed.

use tidelog_types::{Generation, Index, Position};

#[derive(Clone, Copy, Debug)]
struct Run {
    first: Index,
    generation: Generation,
}

/// Index to generation, for the whole log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Ascending in both fields, strictly. The first run begins at index 1.
    runs: Vec<Run>,
    last: Index,
}

impl Log {
    /// The last entry, or [`Position::ZERO`].
    pub(crate) fn last(&self) -> Position {
        Position::new(self.last, self.runs.last().map_or(Generation::ZERO, |run| run.generation))
    }

    /// The generation of the entry at `index`; that of index 0 is 0; none past the end.
    pub(crate) fn generation_at(&self, index: Index) -> Option<Generation> {
        if index > self.last {
            return None;
        }
        if index == Index::ZERO {
            return Some(Generation::ZERO);
        }
        let run = match self.runs.last() {
            Some(run) if run.first <= index => Some(run),
            _ => self.run_at_or_before(index),
        };
        run.map(|run| run.generation)
    }

    fn run_at_or_before(&self, index: Index) -> Option<&Run> {
        let after = self.runs.partition_point(|run| run.first <= index);
        after.checked_sub(1).and_then(|at| self.runs.get(at))
    }

    /// The last entry whose index and generation are both at or below those of `bound`: where two logs that
    /// part below `bound` can next agree. Skips a whole generation at a time.
    pub(crate) fn last_within(&self, bound: Position) -> Position {
        let after =
            self.runs.partition_point(|run| run.first <= bound.index && run.generation <= bound.generation);
        let Some(run) = after.checked_sub(1).and_then(|at| self.runs.get(at)) else {
            return Position::ZERO;
        };
        let end = self.runs.get(after).map_or(self.last, |next| next.first.prev());
        Position::new(end.min(bound.index), run.generation)
    }

    /// One more entry at the end.
    pub(crate) fn push(&mut self, entry: Position) {
        let last = self.last();
        assert!(entry.index == last.index.next(), "a log is dense: {:?} after {:?}", entry, last);
        assert!(entry.generation >= last.generation, "generations never fall: {:?} after {:?}", entry, last);
        assert!(entry.generation > Generation::ZERO, "every entry has a leader");
        if entry.generation > last.generation {
            self.runs.push(Run { first: entry.index, generation: entry.generation });
        }
        self.last = entry.index;
    }

    /// Entries of one generation at the end, from `first` up to `last`.
    pub(crate) fn push_run(&mut self, first: Position, last: Index) {
        self.push(first);
        assert!(first.index <= last, "a run has a first and a last entry");
        self.last = last;
    }

    /// Removes everything above `keep`.
    pub(crate) fn cut(&mut self, keep: Index) {
        assert!(keep <= self.last, "a cut keeps what is there: {keep} of {}", self.last);
        let runs = self.runs.partition_point(|run| run.first <= keep);
        self.runs.truncate(runs);
        self.last = keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn position(index: u64, generation: u64) -> Position {
        Position::new(Index(index), Generation(generation))
    }

    fn log(generations: &[u64]) -> Log {
        let mut log = Log::default();
        for (i, g) in generations.iter().enumerate() {
            log.push(position(i as u64 + 1, *g));
        }
        log
    }

    #[test]
    fn the_empty_log_has_the_entry_before_the_first() {
        let log = Log::default();
        assert_eq!(log.last(), Position::ZERO);
        assert_eq!(log.generation_at(Index::ZERO), Some(Generation::ZERO));
        assert_eq!(log.generation_at(Index(1)), None);
        assert_eq!(log.last_within(position(9, 9)), Position::ZERO);
    }

    #[test]
    fn back_tracking_skips_whole_generations() {
        let log = log(&[1, 1, 4, 4, 4, 6]);
        assert_eq!(log.last_within(position(6, 5)), position(5, 4));
        assert_eq!(log.last_within(position(5, 3)), position(2, 1));
        assert_eq!(log.last_within(position(4, 4)), position(4, 4));
        assert_eq!(log.last_within(position(100, 100)), position(6, 6));
        assert_eq!(log.last_within(position(3, 0)), Position::ZERO);
    }

    #[test]
    #[should_panic(expected = "dense")]
    fn a_gap_is_a_bug() {
        log(&[1, 1]).push(position(4, 1));
    }

    #[test]
    #[should_panic(expected = "never fall")]
    fn an_older_generation_behind_a_newer_is_a_bug() {
        log(&[1, 2]).push(position(3, 1));
    }

    proptest! {
        #[test]
        fn runs_are_the_list_that_they_stand_for(steps in proptest::collection::vec((0u8..8, 0u64..30), 1..80)) {
            let (mut log, mut model, mut generation) = (Log::default(), Vec::<u64>::new(), 1);
            for (what, number) in steps {
                match what {
                    0 => {
                        let keep = number.min(model.len() as u64);
                        model.truncate(keep as usize);
                        log.cut(Index(keep));
                    }
                    1 | 2 => generation += number % 3 + 1,
                    _ => {
                        model.push(generation);
                        log.push(position(model.len() as u64, generation));
                    }
                }
                for at in 0..=model.len() as u64 + 1 {
                    let expected = if at == 0 { Some(0) } else { model.get(at as usize - 1).copied() };
                    prop_assert_eq!(log.generation_at(Index(at)), expected.map(Generation));
                }
                let bound = position(number, generation.saturating_sub(number % 5));
                let expected = (1..=model.len() as u64)
                    .filter(|i| *i <= bound.index.0 && model[*i as usize - 1] <= bound.generation.0)
                    .max()
                    .map_or(Position::ZERO, |i| position(i, model[i as usize - 1]));
                prop_assert_eq!(log.last_within(bound), expected);
            }
        }
    }
}
