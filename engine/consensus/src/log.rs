//! A partition's log as the protocol sees it: which generation each index has, and nothing of the bytes.
//!
//! Kept as runs of one generation, so a log of any length costs sixteen bytes for each leadership that wrote
//! into it. Includes the end that is not durable yet. It begins behind its *base*, the entry before the first one kept
//! (index 0 for a log that was never shortened): the base can still be compared with, what lies below it cannot. Some
//! generations from below the base are remembered for answering retries ([`RUNS_BELOW_MAX`]).
//!
//! It promises dense indexes and generations that never fall; a caller that breaks this has a bug and is stopped. It
//! does not know what is committed: that nothing above the high-water mark becomes the base is its caller's word.

use tidelog_types::{Generation, Index, Position};

/// Most runs remembered that lie wholly below the base.
pub(crate) const RUNS_BELOW_MAX: usize = 1024;

/// Entries of one generation: they begin here and end before the next run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Run {
    pub(crate) first: Index,
    pub(crate) generation: Generation,
}

/// Index to generation, from the base on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    /// Ascending in both fields, strictly. One of them holds the base, unless that is index 0.
    runs: Vec<Run>,
    /// The entry before the first one kept.
    base: Position,
    last: Index,
}

impl Log {
    /// A log that holds nothing behind `base`. `runs` are those known up to it, the base's own among them.
    pub(crate) fn at(base: Position, runs: Vec<Run>) -> Log {
        let log = Log { runs, base, last: base.index };
        assert!(log.last() == base, "the base is the last entry that the runs tell of");
        log
    }

    /// A log as it was saved. None if the parts are not one log's.
    pub(crate) fn of_saved(runs: Vec<Run>, base: Index, last: Index) -> Option<Log> {
        let rising = runs.is_sorted_by(|a, b| a.first < b.first && a.generation < b.generation);
        let begins = runs.first().is_none_or(|run| {
            run.first >= Index(1) && run.first <= base.max(Index(1)) && run.generation > Generation::ZERO
        });
        let ends = runs.last().is_none_or(|run| run.first <= last);
        if !rising || !begins || !ends || runs.is_empty() != (last == Index::ZERO) || base > last {
            return None;
        }
        let mut log = Log { runs, base: Position::ZERO, last };
        log.base = Position::new(base, log.remembered_generation(base)?);
        Some(log)
    }

    /// The entry before the first one kept.
    pub(crate) fn base(&self) -> Position {
        self.base
    }

    /// The runs up to `index`, which is in the log or its base.
    pub(crate) fn runs_to(&self, index: Index) -> Vec<Run> {
        self.runs.iter().take_while(|run| run.first <= index).copied().collect()
    }

    /// The last entry, or the base if there is none behind it.
    pub(crate) fn last(&self) -> Position {
        Position::new(self.last, self.runs.last().map_or(Generation::ZERO, |run| run.generation))
    }

    /// The generation of the entry at `index`, the base included; none below the base and past the end.
    pub(crate) fn generation_at(&self, index: Index) -> Option<Generation> {
        if index < self.base.index { None } else { self.remembered_generation(index) }
    }

    /// The same also below the base, as far back as it is remembered.
    pub(crate) fn remembered_generation(&self, index: Index) -> Option<Generation> {
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

    /// The last entry, the base included, whose index and generation are both at or below those of `bound`: where two
    /// logs that part below `bound` can next agree. Skips a whole generation at a time. None if that lies below the base.
    pub(crate) fn last_within(&self, bound: Position) -> Option<Position> {
        let after =
            self.runs.partition_point(|run| run.first <= bound.index && run.generation <= bound.generation);
        let within = match after.checked_sub(1).and_then(|at| self.runs.get(at)) {
            None => Position::ZERO,
            Some(run) => {
                let end = self.runs.get(after).map_or(self.last, |next| next.first.prev());
                Position::new(end.min(bound.index), run.generation)
            }
        };
        (within.index >= self.base.index).then_some(within)
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
        assert!(keep >= self.base.index, "a cut to {keep}, below the base {:?}", self.base);
        let runs = self.runs.partition_point(|run| run.first <= keep);
        self.runs.truncate(runs);
        self.last = keep;
    }

    /// The log begins behind `base` from now on. The base only rises.
    pub(crate) fn begin_behind(&mut self, base: Index) {
        let generation = self.generation_at(base).expect("the base is an entry of the log");
        self.base = Position::new(base, generation);
        let below = self.runs.partition_point(|run| run.first <= base).saturating_sub(1);
        self.runs.drain(..below.saturating_sub(RUNS_BELOW_MAX));
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
        assert_eq!(log.last_within(position(9, 9)), Some(Position::ZERO));
    }

    #[test]
    fn back_tracking_skips_whole_generations() {
        let log = log(&[1, 1, 4, 4, 4, 6]);
        assert_eq!(log.last_within(position(6, 5)), Some(position(5, 4)));
        assert_eq!(log.last_within(position(5, 3)), Some(position(2, 1)));
        assert_eq!(log.last_within(position(4, 4)), Some(position(4, 4)));
        assert_eq!(log.last_within(position(100, 100)), Some(position(6, 6)));
        assert_eq!(log.last_within(position(3, 0)), Some(Position::ZERO));
    }

    #[test]
    fn what_lies_below_the_base_cannot_be_compared_with() {
        let mut log = log(&[1, 1, 4, 4, 4, 6]);
        log.begin_behind(Index(4));
        assert_eq!(log.base(), position(4, 4));
        assert_eq!((log.generation_at(Index(3)), log.generation_at(Index(4))), (None, Some(Generation(4))));
        assert_eq!(log.remembered_generation(Index(1)), Some(Generation(1)), "for retries");
        assert_eq!(log.last_within(position(6, 5)), Some(position(5, 4)));
        assert_eq!(log.last_within(position(4, 9)), Some(position(4, 4)));
        assert_eq!(log.last_within(position(3, 9)), None);
        assert_eq!(log.last_within(position(6, 3)), None, "that would be entry 2");
        log.cut(Index(4));
        assert_eq!((log.last(), log.generation_at(Index(4))), (position(4, 4), Some(Generation(4))));
        log.push(position(5, 7));
        assert_eq!(log.last_within(position(9, 6)), Some(position(4, 4)));
    }

    #[test]
    fn few_generations_below_the_base_are_remembered() {
        let generations: Vec<u64> = (1..=RUNS_BELOW_MAX as u64 + 3).collect();
        let mut log = log(&generations);
        log.begin_behind(Index(generations.len() as u64));
        assert_eq!(log.runs.len(), RUNS_BELOW_MAX + 1);
        assert_eq!(log.remembered_generation(Index(2)), None);
        assert_eq!(log.remembered_generation(Index(3)), Some(Generation(3)));
    }

    #[test]
    #[should_panic(expected = "below the base")]
    fn a_cut_below_the_base_is_a_bug() {
        let mut log = log(&[1, 1, 1]);
        log.begin_behind(Index(2));
        log.cut(Index(1));
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
            let (mut log, mut model, mut generation, mut base) = (Log::default(), Vec::<u64>::new(), 1, 0u64);
            for (what, number) in steps {
                match what {
                    0 => {
                        let keep = number.min(model.len() as u64).max(base);
                        model.truncate(keep as usize);
                        log.cut(Index(keep));
                    }
                    7 if number % 4 == 0 => {
                        base = (base + number).min(model.len() as u64);
                        log.begin_behind(Index(base));
                    }
                    1 | 2 => generation += number % 3 + 1,
                    _ => {
                        model.push(generation);
                        log.push(position(model.len() as u64, generation));
                    }
                }
                for at in 0..=model.len() as u64 + 1 {
                    let expected = if at == 0 { Some(0) } else { model.get(at as usize - 1).copied() };
                    prop_assert_eq!(log.remembered_generation(Index(at)), expected.map(Generation));
                    let expected = expected.filter(|_| at >= base);
                    prop_assert_eq!(log.generation_at(Index(at)), expected.map(Generation));
                }
                let bound = position(number, generation.saturating_sub(number % 5));
                let expected = (1..=model.len() as u64)
                    .filter(|i| *i <= bound.index.0 && model[*i as usize - 1] <= bound.generation.0)
                    .max()
                    .map_or(Position::ZERO, |i| position(i, model[i as usize - 1]));
                prop_assert_eq!(log.last_within(bound), Some(expected).filter(|at| at.index.0 >= base));
            }
        }
    }
}
