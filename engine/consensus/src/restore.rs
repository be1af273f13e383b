//! What a replica remembers: its state rebuilt from its log, record by record, in the log's order.
//!
//! Everything that must survive is a record of the log, so this is all there is. The records have passed their
//! checksums, but they are still bytes from a disk: one that contradicts those before it is kept as a
//! [`RestoreFault`] and ends the rebuilding; a replica is not made from it. It does not know where the records
//! came from.

use crate::damage::{Damage, DamagedRange, Harm};
use crate::log::Log;
use crate::session::{Fault, Sessions};
use tidelog_types::{EntryMeta, Generation, Index, NodeId, Position, ReplicatedMs};

/// A record that contradicts the log before it. The replica must not run: its log is not what it wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RestoreFault {
    /// The entry is not the next one of a log.
    #[error("{found:?} does not follow {last:?}")]
    Entry {
        /// The log's end.
        last: Position,
        /// The entry.
        found: Position,
    },
    /// The entry's generation was not promised before it.
    #[error("{found:?} was written under a generation above the promised {promised}")]
    Unpromised {
        /// The promise in force.
        promised: Generation,
        /// The entry.
        found: Position,
    },
    /// The entry does not fit its session.
    #[error("entry {index}: {fault}")]
    Session {
        /// The entry.
        index: Index,
        /// In which way.
        fault: Fault,
    },
    /// A promise of a lower generation, or another vote in the same one.
    #[error("promise ({found}, {vote:?}) after generation {promised}")]
    Promise {
        /// The promise in force.
        promised: Generation,
        /// The one found.
        found: Generation,
        /// Its vote.
        vote: Option<NodeId>,
    },
    /// A cut of what is not there or is committed.
    #[error("cut to {keep:?} of a log that ends at {last:?} with high-water mark {high_water}")]
    Cut {
        /// The last entry to keep.
        keep: Position,
        /// The log's end.
        last: Position,
        /// The mark.
        high_water: Index,
    },
    /// A high-water mark beyond the log's end: entries are missing that were committed.
    #[error("high-water mark {found} behind {last:?}")]
    HighWater {
        /// The log's end.
        last: Position,
        /// The mark.
        found: Index,
    },
}

/// State found in a log. Starts empty.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    pub(crate) log: Log,
    pub(crate) sessions: Sessions,
    pub(crate) damage: Damage,
    pub(crate) stamp: ReplicatedMs,
    pub(crate) generation: Generation,
    pub(crate) vote: Option<NodeId>,
    pub(crate) high_water: Index,
    /// The highest mark found. It may lie in front of its entries within one batch, so it is only believed as
    /// far as the log reaches.
    hint: Index,
    fault: Option<RestoreFault>,
}

impl Restored {
    /// Of an empty log.
    pub fn new() -> Restored {
        Restored::default()
    }

    /// The next entry.
    pub fn entry(&mut self, entry: &EntryMeta) {
        let (last, found) = (self.log.last(), entry.position);
        let follows = last.index.0.checked_add(1) == Some(found.index.0)
            && found.generation >= last.generation
            && found.generation > Generation::ZERO
            && entry.prev_generation == last.generation;
        let verdict = if self.fault.is_some() {
            return;
        } else if !follows {
            Err(RestoreFault::Entry { last, found })
        } else if found.generation > self.generation {
            Err(RestoreFault::Unpromised { promised: self.generation, found })
        } else {
            let applied = self.sessions.apply(entry, self.high_water);
            applied.map_err(|fault| RestoreFault::Session { index: found.index, fault })
        };
        match verdict {
            Ok(()) => {
                self.log.push(found);
                self.stamp = self.stamp.max(entry.timestamp);
                self.high_water = self.hint.min(found.index).max(self.high_water);
            }
            Err(fault) => self.fault = Some(fault),
        }
    }

    /// Entries whose bytes are lost. Either they are the next ones, and only their positions are known, or they are in the log
    /// already, and their newest copies are lost.
    pub fn damaged(&mut self, range: DamagedRange, harm: Harm) {
        if self.fault.is_some() {
            return;
        }
        let DamagedRange { first, last: end, generation } = range;
        let (last, found) = (self.log.last(), Position::new(first, generation));
        let known = |index| self.log.generation_at(index) == Some(generation);
        if Index::ZERO < first && first <= end && known(first) && known(end) {
            return self.damage.insert(first, end, harm);
        }
        let follows = last.index.0.checked_add(1) == Some(first.0)
            && first <= end
            && generation >= last.generation
            && generation > Generation::ZERO;
        if !follows {
            self.fault = Some(RestoreFault::Entry { last, found });
        } else if generation > self.generation {
            self.fault = Some(RestoreFault::Unpromised { promised: self.generation, found });
        } else {
            self.log.push_run(found, end);
            self.sessions.hole(first, end);
            self.damage.insert(first, end, harm);
            self.high_water = self.hint.min(end).max(self.high_water);
        }
    }

    /// A good copy of an entry that came before was written again, further on. If it was damaged, it is whole now.
    pub fn moved(&mut self, entry: &EntryMeta) {
        let index = entry.position.index;
        if self.fault.is_some() || !self.damage.contains(index) {
            return;
        }
        let there = self.log.generation_at(index) == Some(entry.position.generation)
            && self.log.generation_at(index.prev()) == Some(entry.prev_generation);
        if !there {
            let (last, found) = (self.log.last(), entry.position);
            self.fault = Some(RestoreFault::Entry { last, found });
            return;
        }
        match self.sessions.patch(entry, self.high_water) {
            Ok(()) => {
                self.damage.remove(index, index);
                self.stamp = self.stamp.max(entry.timestamp);
            }
            Err(fault) => self.fault = Some(RestoreFault::Session { index, fault }),
        }
    }

    /// Everything above `keep` was removed.
    pub fn cut(&mut self, keep: Position) {
        if self.fault.is_some() {
            return;
        }
        let there = self.log.generation_at(keep.index) == Some(keep.generation);
        if !there || keep.index < self.high_water {
            let (last, high_water) = (self.log.last(), self.high_water);
            self.fault = Some(RestoreFault::Cut { keep, last, high_water });
            return;
        }
        self.log.cut(keep.index);
        self.sessions.cut(keep.index);
        self.damage.cut(keep.index);
    }

    /// A generation was promised, and a vote given in it or not.
    pub fn promise(&mut self, generation: Generation, vote: Option<NodeId>) {
        if self.fault.is_some() {
            return;
        }
        let kept = generation > self.generation
            || (generation == self.generation && (self.vote.is_none() || self.vote == vote));
        if kept {
            (self.generation, self.vote) = (generation, vote);
        } else {
            self.fault = Some(RestoreFault::Promise { promised: self.generation, found: generation, vote });
        }
    }

    /// A hint: everything up to `mark` was committed.
    pub fn high_water(&mut self, mark: Index) {
        if self.fault.is_some() {
            return;
        }
        self.hint = self.hint.max(mark);
        self.high_water = self.hint.min(self.log.last().index).max(self.high_water);
    }

    /// Whether the records were those of one log.
    ///
    /// # Errors
    /// The first record that contradicts those before it.
    pub fn check(&self) -> Result<(), RestoreFault> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.hint > self.high_water => {
                Err(RestoreFault::HighWater { last: self.log.last(), found: self.hint })
            }
            None => Ok(()),
        }
    }

    /// The log's end.
    pub fn last(&self) -> Position {
        self.log.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::{RecordKind, Sequence, SessionId, SessionRef};

    fn entry(index: u64, generation: u64, prev: u64) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(generation)),
            prev_generation: Generation(prev),
            kind: RecordKind::Data,
            session: None,
            session_key: None,
            timestamp: ReplicatedMs(10 * index),
            record_bytes: 128,
        }
    }

    fn two_entries() -> Restored {
        let mut r = Restored::new();
        r.promise(Generation(1), Some(NodeId(3)));
        r.entry(&entry(1, 1, 0));
        r.entry(&entry(2, 1, 1));
        assert_eq!(r.check(), Ok(()));
        r
    }

    #[test]
    fn the_log_is_replayed() {
        let mut r = two_entries();
        r.high_water(Index(1));
        r.promise(Generation(4), None);
        r.cut(Position::new(Index(1), Generation(1)));
        r.entry(&entry(2, 4, 1));
        assert_eq!(r.check(), Ok(()));
        assert_eq!(r.last(), Position::new(Index(2), Generation(4)));
        assert_eq!((r.generation, r.vote, r.high_water), (Generation(4), None, Index(1)));
        assert_eq!(r.stamp, ReplicatedMs(20));
    }

    #[test]
    fn a_mark_may_come_before_its_entries_but_not_without_them() {
        let mut r = two_entries();
        r.high_water(Index(3));
        let last = r.last();
        assert_eq!(r.check(), Err(RestoreFault::HighWater { last, found: Index(3) }));
        r.entry(&entry(3, 1, 1));
        assert_eq!((r.check(), r.high_water), (Ok(()), Index(3)));
    }

    fn range(first: u64, last: u64, generation: u64) -> DamagedRange {
        DamagedRange { first: Index(first), last: Index(last), generation: Generation(generation) }
    }

    #[test]
    fn lost_entries_keep_their_places_until_they_are_cut_or_found() {
        let mut r = two_entries();
        r.high_water(Index(4));
        r.damaged(range(3, 4, 1), Harm::Damaged);
        assert_eq!((r.check(), r.high_water), (Ok(()), Index(4)), "a mark covers what is damaged, too");
        r.entry(&entry(5, 1, 1));
        r.promise(Generation(2), None);
        r.damaged(range(6, 6, 2), Harm::Suspect);
        r.cut(Position::new(Index(5), Generation(1)));
        assert!(r.damage.contains(Index(4)) && !r.damage.contains(Index(6)));
        r.moved(&entry(4, 1, 1));
        r.moved(&entry(5, 1, 1)); // whole already
        assert_eq!(r.damage.first_from(Index(1)), Some(Index(3)));
        r.moved(&entry(3, 1, 1));
        assert!(r.check().is_ok() && r.damage.is_empty());
        let mut clean = two_entries();
        (3..=5).for_each(|i| clean.entry(&entry(i, 1, 1)));
        assert_eq!((r.sessions, r.stamp), (clean.sessions, clean.stamp));
    }

    #[test]
    fn lost_entries_that_do_not_follow_are_a_contradiction() {
        for wrong in [range(4, 5, 1), range(3, 2, 1), range(3, 3, 0), range(3, 3, 2)] {
            let mut r = two_entries();
            r.damaged(wrong, Harm::Damaged);
            assert!(r.check().is_err(), "{wrong:?}");
        }
        let mut r = two_entries();
        r.damaged(range(3, 3, 1), Harm::Damaged);
        r.moved(&entry(3, 1, 0));
        assert!(matches!(r.check(), Err(RestoreFault::Entry { .. })));
    }

    #[test]
    fn each_contradiction_is_named() {
        let faulty = |f: &dyn Fn(&mut Restored)| {
            let mut r = two_entries();
            f(&mut r);
            let fault = r.check().unwrap_err();
            r.entry(&entry(3, 1, 1)); // nothing after it counts
            assert_eq!(r.last().index, Index(2));
            fault
        };
        assert!(matches!(faulty(&|r| r.entry(&entry(4, 1, 1))), RestoreFault::Entry { .. }));
        assert!(matches!(faulty(&|r| r.entry(&entry(3, 1, 0))), RestoreFault::Entry { .. }));
        assert!(matches!(faulty(&|r| r.entry(&entry(3, 2, 1))), RestoreFault::Unpromised { .. }));
        let session = SessionRef { session: SessionId(1), sequence: Sequence(1) };
        let lost = EntryMeta { session: Some(session), ..entry(3, 1, 1) };
        assert!(matches!(faulty(&|r| r.entry(&lost)), RestoreFault::Session { .. }));
        assert!(matches!(faulty(&|r| r.promise(Generation(0), None)), RestoreFault::Promise { .. }));
        assert!(matches!(faulty(&|r| r.promise(Generation(1), None)), RestoreFault::Promise { .. }));
        assert!(matches!(
            faulty(&|r| r.promise(Generation(1), Some(NodeId(2)))),
            RestoreFault::Promise { .. }
        ));
        let keep = |i, g| Position::new(Index(i), Generation(g));
        assert!(matches!(faulty(&|r| r.cut(keep(3, 1))), RestoreFault::Cut { .. }));
        assert!(matches!(faulty(&|r| r.cut(keep(1, 2))), RestoreFault::Cut { .. }));
        let below_mark = |r: &mut Restored| {
            r.high_water(Index(2));
            r.cut(keep(1, 1));
        };
        assert!(matches!(faulty(&below_mark), RestoreFault::Cut { .. }));
    }
}
