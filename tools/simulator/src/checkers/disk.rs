//! The simulator's own model of one node's disk: the logs and promises that a power loss could not take, read from
//! bytes that became durable, whatever the node believes.
//!
//! Batches count in their order: one behind a gap may be cut by recovery. When a node opens its log again, what lies
//! before `prev_epoch_end` stays and the batches of the opening follow; at the opening's last batch, everything that was
//! durable before must still be there.

use super::content::Contents;
use super::durable_log::DurableLog;
use super::place::Place;
use super::violation::{Verdict, broken, ensure};
use crate::platter::{self, Batch, Record, kind};
use std::collections::{BTreeMap, BTreeSet};

/// No batch: `prev` of none.
const NONE: u64 = u64::MAX;

/// Who gave a segment's name up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum GivenUp {
    /// A running log: nothing that is wanted may be in it at that moment.
    Running,
    /// An opening of the log, or a turn in which one took place. What an opening before it left undone goes, and its position is
    /// used again.
    Opening,
}

#[derive(Clone, Debug)]
struct Written {
    epoch: u64,
    lsn: u64,
    /// A copy behind a move marker.
    moved: bool,
    record: Record,
}

/// What a cut removed, for whoever judges it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Removed {
    pub(crate) partition: u64,
    /// The first entry removed.
    pub(crate) index: u64,
    pub(crate) generation: u64,
}

/// One node's disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    node: u64,
    epoch: u64,
    /// The last batch of the epoch, and where the next one begins if it is in the same segment.
    last: u64,
    expected: u64,
    /// Durable, but behind one that is not: by LSN.
    early: BTreeMap<u64, Batch>,
    written: Vec<Written>,
    /// The batches that make up the log, in order.
    places: Vec<Place>,
    /// What the newest epoch's own headers prove durable.
    proven: u64,
    /// The checkpoints that the newest batch names.
    named: (u64, u64),
    logs: BTreeMap<u64, DurableLog>,
    /// What was durable before the opening that is under way.
    before: Option<BTreeMap<u64, DurableLog>>,
    /// Of older epochs, what lies before this counts.
    retain_before: u64,
    /// Cuts that this opening found and that were not known to be durable: by partition, the lowest index kept.
    cuts: BTreeMap<u64, u64>,
    /// Cuts behind `retain_before` that were known to be durable.
    known_cuts: BTreeSet<u64>,
    /// Votes that were ever durable: (partition, generation).
    votes: BTreeMap<(u64, u64), u64>,
    pub(crate) removed: Vec<Removed>,
    /// Segments whose names were given up and that were not judged yet, by their bases.
    given_up: Vec<(u64, GivenUp)>,
    /// Openings that came to their end.
    pub(crate) openings: u64,
}

static EMPTY: DurableLog = DurableLog::empty();

impl Disk {
    pub(crate) fn new(node: u64) -> Disk {
        Disk { node, ..Disk::default() }
    }

    pub(crate) fn log(&self, partition: u64) -> &DurableLog {
        self.logs.get(&partition).unwrap_or(&EMPTY)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where its last batch lies.
    pub(crate) fn last_batch(&self) -> u64 {
        self.last
    }

    /// The batches that make up the log, in order.
    pub(crate) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Whether a batch of the log is proven durable by what lies behind it.
    pub(crate) fn is_proven(&self, place: &Place) -> bool {
        place.lsn < if place.epoch == self.epoch { self.proven } else { self.retain_before }
    }

    /// The positions of the two checkpoints that the newest batch names, as far as there are two: the newer one first.
    pub(crate) fn named(&self) -> (Option<u64>, Option<u64>) {
        let at = |batch: u64| {
            let place = self.places.iter().rfind(|p| p.lsn == batch && p.checkpoint_end)?;
            place.checkpoint
        };
        (at(self.named.0), at(self.named.1))
    }

    /// The last batch of a log that is not being opened, by its number among the places.
    pub(crate) fn tail(&self) -> Option<usize> {
        let last = self.places.len().checked_sub(1)?;
        let place = self.places.get(last).filter(|place| place.lsn == self.last && place.epoch == self.epoch);
        place.filter(|_| self.before.is_none()).map(|_| last)
    }

    /// The logs of all partitions.
    pub(crate) fn logs(&self) -> impl Iterator<Item = (u64, &DurableLog)> {
        self.logs.iter().map(|(partition, log)| (*partition, log))
    }

    /// Segments' names were given up since the last look.
    pub(crate) fn given_up(&mut self, segments: Vec<(u64, GivenUp)>) {
        self.given_up.extend(segments);
    }

    /// Judges the segments given up (invariant 10). `epoch`: the node's log is in it, or was last; `files`: what is there.
    ///
    /// What a running log gives up is judged at once. What an opening removes may be the rest of an opening that did not come to
    /// its end: that is known when this one did, and it may have begun at the same position again.
    pub(crate) fn judge_given_up(&mut self, epoch: u64, files: &[(String, u64)], bytes: u64) -> Verdict {
        let opened = self.before.is_none() && self.epoch == epoch;
        for (base, by) in std::mem::take(&mut self.given_up) {
            let again = || files.iter().any(|(path, _)| platter::segment_base(path) == Some(base));
            match by {
                GivenUp::Running => self.released(base, bytes)?,
                GivenUp::Opening if !opened => self.given_up.push((base, by)),
                GivenUp::Opening if again() => {}
                GivenUp::Opening => self.released(base, bytes)?,
            }
        }
        Ok(())
    }

    /// A segment's file is given up: nothing that is still wanted may lie in it.
    fn released(&mut self, base: u64, bytes: u64) -> Verdict {
        let held = base..base + bytes;
        for (partition, log) in &self.logs {
            let lost = log.live().find(|(_, entry)| held.contains(&entry.batch));
            ensure(10, lost.is_none(), || {
                format!(
                    "node {}: the segment at {base:#x} is given up with entry {} of partition {partition}, which is above the low-water mark {}",
                    self.node,
                    lost.map_or(0, |l| l.0),
                    log.low_water
                )
            })?;
        }
        self.places.retain(|place| !held.contains(&place.lsn));
        Ok(())
    }

    /// The vote that was ever durable in a generation; 0: a promise without a vote.
    pub(crate) fn vote(&self, partition: u64, generation: u64) -> Option<u64> {
        self.votes.get(&(partition, generation)).copied()
    }

    /// A batch became durable. `prev_epoch_end`: what its segment's header says.
    pub(crate) fn durable(&mut self, batch: Batch, prev_epoch_end: u64, contents: &mut Contents) -> Verdict {
        if batch.epoch < self.epoch {
            return broken(
                3,
                format!("node {} writes batches of epoch {} in epoch {}", self.node, batch.epoch, self.epoch),
            );
        }
        if batch.epoch > self.epoch {
            self.begin(batch.epoch, batch.lsn, prev_epoch_end)?;
        }
        if batch.lsn < self.expected && self.last != NONE {
            // Told before: a range may be looked at when more of it is durable than it was told for.
            return Ok(());
        }
        self.early.insert(batch.lsn, batch);
        while let Some(entry) = self.early.first_entry() {
            let batch = entry.get();
            if batch.lsn != self.expected && batch.prev != self.last {
                break;
            }
            let batch = entry.remove();
            (self.last, self.expected) = (batch.lsn, batch.end);
            self.proven = self.proven.max(batch.durable);
            self.named = batch.named;
            self.places.push(Place::of(&batch));
            let mut copies = 0;
            for record in batch.records {
                let moved = copies > 0 && record.kind < kind::ENTRIES;
                copies -= u64::from(moved);
                if record.kind == kind::MOVED {
                    copies = record.index;
                }
                if record.kind < kind::ENTRIES {
                    contents.durable(self.node, &record)?;
                }
                if record.kind == kind::PROMISE {
                    self.voted(&record)?;
                }
                self.apply(&record, moved, batch.lsn)?;
                self.written.push(Written { epoch: batch.epoch, lsn: batch.lsn, moved, record });
            }
            if batch.done {
                self.opened()?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, record: &Record, moved: bool, batch: u64) -> Verdict {
        let Record { partition, index, .. } = *record;
        if kind::is_derived(record.kind) {
            return Ok(());
        }
        let log = self.logs.entry(partition).or_default();
        if moved {
            return log.relocate(self.node, record, batch);
        }
        if record.kind == kind::LOST {
            log.lose(record, batch, self.before.as_ref().and_then(|before| before.get(&partition)));
            return Ok(());
        }
        if record.kind == kind::CUT {
            // A cut that was under way at a crash shows only when the log is opened again.
            let found = self.before.as_ref().filter(|_| !self.known_cuts.contains(&record.hash));
            if let Some(before) = found {
                let kept = self.cuts.entry(partition).or_insert(index);
                *kept = index.min(*kept);
                if let Some(generation) = before.get(&partition).and_then(|old| old.generation_at(index + 1))
                {
                    self.removed.push(Removed { partition, index: index + 1, generation });
                }
            }
            if let Some(generation) = log.generation_at(index + 1) {
                self.removed.push(Removed { partition, index: index + 1, generation });
            }
        }
        log.apply(self.node, record, batch)
    }

    fn voted(&mut self, record: &Record) -> Verdict {
        let vote = self.votes.entry((record.partition, record.generation)).or_insert(record.index);
        if *vote == 0 {
            *vote = record.index;
        }
        ensure(1, record.index == 0 || *vote == record.index, || {
            format!(
                "node {} voted for {} and for {} in partition {} generation {}",
                self.node, vote, record.index, record.partition, record.generation
            )
        })
    }

    /// A new epoch's first batch.
    fn begin(&mut self, epoch: u64, lsn: u64, prev_epoch_end: u64) -> Verdict {
        let logs = std::mem::take(&mut self.logs);
        if self.before.is_none() {
            self.before = Some(logs);
        } else {
            // The opening before this one did not come to its end: it does not count.
            let discarded = self.epoch;
            self.written.retain(|w| w.epoch != discarded);
            self.places.retain(|place| place.epoch != discarded);
        }
        self.epoch = epoch;
        self.early.clear();
        (self.last, self.expected) = (NONE, lsn);
        self.proven = 0;
        let kept = |w: &&Written| w.lsn < prev_epoch_end && !kind::is_derived(w.record.kind);
        for w in self.written.iter().filter(kept) {
            let log = self.logs.entry(w.record.partition).or_default();
            let before = self.before.as_ref().and_then(|before| before.get(&w.record.partition));
            match w.moved {
                true => log.relocate(self.node, &w.record, w.lsn)?,
                // What an earlier opening lost is still what it was.
                false if w.record.kind == kind::LOST => log.lose(&w.record, w.lsn, before),
                false => log.apply(self.node, &w.record, w.lsn)?,
            }
        }
        self.retain_before = prev_epoch_end;
        self.cuts.clear();
        let behind = self.written.iter().filter(|w| w.lsn >= prev_epoch_end && w.record.kind == kind::CUT);
        self.known_cuts = behind.map(|w| w.record.hash).collect();
        Ok(())
    }

    /// An opening's last batch: what was durable before must still be there.
    fn opened(&mut self) -> Verdict {
        let (epoch, end) = (self.epoch, self.retain_before);
        self.written.retain(|w| w.epoch == epoch || w.lsn < end);
        self.places.retain(|place| place.epoch == epoch || place.lsn < end);
        self.openings += 1;
        let Some(before) = self.before.take() else { return Ok(()) };
        for (partition, old) in &before {
            let new = self.log(*partition);
            ensure(2, new.promise.0 >= old.promise.0, || {
                format!(
                    "node {} partition {partition}: recovery forgot generation {}",
                    self.node, old.promise.0
                )
            })?;
            let voted = new.promise.0 > old.promise.0 || old.promise.1 == 0 || new.promise.1 == old.promise.1;
            ensure(1, voted, || {
                format!(
                    "node {} partition {partition}: recovery forgot the vote in generation {}",
                    self.node, old.promise.0
                )
            })?;
            let must = self.cuts.get(partition).map_or(old.last(), |kept| old.last().min(*kept));
            let none = BTreeSet::new();
            let kept = new.last() >= must && new.hash(must, &none) == old.hash(must, &none);
            ensure(8, kept, || {
                format!(
                    "node {} partition {partition}: recovery lost durable entries: {must} were there, now {}",
                    self.node,
                    new.last()
                )
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, index: u64, generation: u64, prev_generation: u64) -> Record {
        let hash = u64::from(kind) << 48 | generation << 32 | index;
        Record {
            kind,
            partition: 0,
            index,
            generation,
            prev_generation,
            stamp: 0,
            session: None,
            log_start: 0,
            count: 0,
            bytes: 64,
            hash,
            ident: None,
        }
    }

    fn entry(index: u64, generation: u64, prev: u64) -> Record {
        record(kind::DATA, index, generation, prev)
    }

    struct Log {
        disk: Disk,
        contents: Contents,
        epoch: u64,
        at: u64,
        last: u64,
        end: u64,
    }

    impl Log {
        fn new() -> Log {
            let mut log =
                Log { disk: Disk::new(1), contents: Contents::default(), epoch: 0, at: 0, last: 0, end: 0 };
            log.open(0, vec![]).unwrap();
            log
        }

        fn batch(&mut self, done: bool, records: Vec<Record>) -> Batch {
            let batch = Batch {
                epoch: self.epoch,
                lsn: self.at,
                prev: self.last,
                end: self.at + 4096,
                durable: self.at,
                named: (0, 0),
                footer: 512,
                records_end: 512,
                done,
                in_use: true,
                records,
            };
            (self.last, self.at) = (batch.lsn, batch.end);
            batch
        }

        fn write(&mut self, records: Vec<Record>) -> Verdict {
            let batch = self.batch(false, records);
            self.disk.durable(batch, self.end, &mut self.contents)
        }

        /// Another opening, which keeps what lies before `end` and writes `records` again.
        fn open(&mut self, end: u64, records: Vec<Record>) -> Verdict {
            (self.epoch, self.end) = (self.epoch + 1, end);
            self.at += 1 << 20;
            let batch = self.batch(true, records);
            self.disk.durable(batch, end, &mut self.contents)
        }
    }

    fn number(verdict: Verdict) -> u8 {
        verdict.unwrap_err().invariant
    }

    #[test]
    fn entries_follow_each_other_and_their_promise() {
        let mut log = Log::new();
        assert_eq!(number(log.write(vec![entry(1, 1, 0)])), 2, "no promise");
        let mut log = Log::new();
        log.write(vec![record(kind::PROMISE, 2, 1, 0), entry(1, 1, 0), entry(2, 1, 1)]).unwrap();
        assert_eq!((log.disk.log(0).last(), log.disk.log(0).promise), (2, (1, 2)));
        assert_eq!(number(log.write(vec![entry(4, 1, 1)])), 3, "a gap");
        assert_eq!(number(log.write(vec![entry(3, 1, 9)])), 3, "another one before it");
        assert_eq!(number(log.write(vec![record(kind::PROMISE, 0, 0, 0)])), 2, "a promise going back");
        assert_eq!(number(log.write(vec![record(kind::PROMISE, 3, 1, 0)])), 1, "a second vote");
    }

    #[test]
    fn a_batch_counts_once_all_before_it_do() {
        let mut log = Log::new();
        let first = log.batch(false, vec![record(kind::PROMISE, 0, 1, 0), entry(1, 1, 0)]);
        let second = log.batch(false, vec![entry(2, 1, 1)]);
        log.disk.durable(second.clone(), 0, &mut log.contents).unwrap();
        assert_eq!(log.disk.log(0).last(), 0);
        log.disk.durable(first, 0, &mut log.contents).unwrap();
        log.disk.durable(second, 0, &mut log.contents).unwrap();
        assert_eq!(log.disk.log(0).last(), 2, "and not twice");
    }

    #[test]
    fn recovery_must_bring_back_what_was_durable() {
        let start = || {
            let mut log = Log::new();
            log.write(vec![record(kind::PROMISE, 2, 1, 0), entry(1, 1, 0)]).unwrap();
            let proven = log.at;
            log.write(vec![entry(2, 1, 1), entry(3, 1, 1)]).unwrap();
            (log, proven)
        };
        let (mut log, proven) = start();
        log.open(proven, vec![entry(2, 1, 1), entry(3, 1, 1)]).unwrap();
        assert_eq!((log.disk.log(0).last(), log.disk.openings), (3, 2));
        let (mut log, proven) = start();
        assert_eq!(number(log.open(proven, vec![entry(2, 1, 1)])), 8, "an entry is lost");
        let (mut log, _) = start();
        let promise = record(kind::PROMISE, 0, 1, 0);
        let all = vec![promise, entry(1, 1, 0), entry(2, 1, 1), entry(3, 1, 1)];
        assert_eq!(number(log.open(0, all)), 1, "the vote is lost");
    }

    #[test]
    fn what_an_opening_lost_is_the_same_at_the_next_one() {
        let mut log = Log::new();
        log.write(vec![record(kind::PROMISE, 2, 1, 0), entry(1, 1, 0)]).unwrap();
        let proven = log.at;
        log.write(vec![entry(2, 1, 1)]).unwrap();
        let lost = Record { count: 1, ..record(kind::LOST, 2, 1, 0) };
        log.open(proven, vec![lost]).unwrap();
        let kept = log.at;
        log.open(kept, vec![]).unwrap();
        let of = |log: &Log| *log.disk.log(0).entry(2).unwrap();
        assert!(of(&log).lost && of(&log).hash == entry(2, 1, 1).hash);
    }

    #[test]
    fn an_opening_that_was_not_finished_does_not_count() {
        let mut log = Log::new();
        log.write(vec![record(kind::PROMISE, 0, 1, 0), entry(1, 1, 0)]).unwrap();
        let proven = log.at;
        log.write(vec![entry(2, 1, 1)]).unwrap();
        (log.epoch, log.end, log.at) = (2, proven, log.at + (1 << 20));
        log.write(vec![]).unwrap();
        assert_eq!(log.disk.log(0).last(), 1, "not yet written again");
        log.open(proven, vec![entry(2, 1, 1)]).unwrap();
        assert_eq!(log.disk.log(0).last(), 2);
    }

    #[test]
    fn a_cut_that_was_under_way_at_a_crash_explains_what_is_missing() {
        let mut log = Log::new();
        log.write(vec![record(kind::PROMISE, 0, 1, 0), entry(1, 1, 0), entry(2, 1, 1), entry(3, 1, 1)])
            .unwrap();
        let proven = log.at;
        log.open(proven, vec![record(kind::PROMISE, 0, 2, 0), record(kind::CUT, 1, 1, 0), entry(2, 2, 1)])
            .unwrap();
        assert_eq!(log.disk.log(0).last(), 2);
        let removed: Vec<_> = log.disk.removed.iter().map(|r| (r.index, r.generation)).collect();
        assert!(removed.contains(&(2, 1)), "{removed:?}");
    }
}
