//! What a replica remembers: its state rebuilt from its log, record by record, in the log's order.
//!
//! Everything that must survive is a record of the log, so this is all there is. The records have passed their
//! checksums, but they are still bytes from a disk: one that contradicts those before it is kept as a
//! [`RestoreFault`] and ends the rebuilding; a replica is not made from it. It does not know where the records
//! came from.

use crate::base::Base;
use crate::damage::{Damage, DamagedRange, Harm};
use crate::history::History;
use crate::log::Log;
use crate::retain::Starts;
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
    /// A log start that lets go more than what was committed with it.
    #[error("entry {index} lets the log begin at {first}, behind itself")]
    LogStart {
        /// The entry.
        index: Index,
        /// What it says.
        first: Index,
    },
    /// A snapshot's mark that names no entry of the log, or goes back.
    #[error("a snapshot covers {found:?}, after one that covers {before:?}, of a log that ends at {last:?}")]
    Snapshot {
        /// The mark before.
        before: Position,
        /// The one found.
        found: Position,
        /// The log's end.
        last: Position,
    },
    /// A low-water mark that goes back, beyond the log's end, or over what nothing covers.
    #[error("low-water mark {found} after {before}: a snapshot covers {covered}, the log ends at {last:?}")]
    LowWater {
        /// The mark before.
        before: Index,
        /// The one found.
        found: Index,
        /// What a snapshot or a log start lets go: everything below this.
        covered: Index,
        /// The log's end.
        last: Position,
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
    pub(crate) starts: Starts,
    pub(crate) history: History,
    pub(crate) snapshot: Position,
    /// The highest mark found. It may lie in front of its entries within one batch, so it is only believed as
    /// far as the log reaches.
    pub(crate) hint: Index,
    pub(crate) fault: Option<RestoreFault>,
}

impl Restored {
    /// Of an empty log.
    pub fn new() -> Restored {
        Restored::default()
    }

    /// Of a log that begins behind a snapshot's base: everything up to there is committed and applied.
    pub fn behind(base: Base) -> Restored {
        let Base { position, stamp, log_start, runs, sessions, .. } = base;
        let mut log = Log::at(position, runs);
        log.begin_behind(position.index);
        Restored {
            log,
            sessions,
            damage: Damage::default(),
            stamp,
            generation: position.generation,
            vote: None,
            high_water: position.index,
            starts: Starts::at(log_start),
            history: History::begin(position.index, stamp),
            snapshot: position,
            hint: position.index,
            fault: None,
        }
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
        } else if let Some(first) = entry.log_start.filter(|first| *first > found.index) {
            Err(RestoreFault::LogStart { index: found.index, first })
        } else {
            let applied = self.sessions.apply(entry, self.high_water);
            applied.map_err(|fault| RestoreFault::Session { index: found.index, fault })
        };
        match verdict {
            Ok(()) => {
                self.log.push(found);
                self.starts.push(entry);
                self.history.push(entry);
                self.stamp = self.stamp.max(entry.timestamp);
                self.raise();
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
                self.starts.push(entry);
                self.starts.commit(self.high_water);
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
        self.starts.cut(keep.index);
        self.history.cut(keep.index);
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
        self.raise();
    }

    /// The mark is believed as far as the log reaches.
    fn raise(&mut self) {
        self.high_water = self.hint.min(self.log.last().index).max(self.high_water);
        self.starts.commit(self.high_water);
    }

    /// A durable snapshot covers everything up to `covered`: that was committed.
    pub fn snapshot_mark(&mut self, covered: Position) {
        if self.fault.is_some() {
            return;
        }
        let there = self.log.generation_at(covered.index) == Some(covered.generation);
        if !there || covered < self.snapshot {
            let (before, last) = (self.snapshot, self.log.last());
            self.fault = Some(RestoreFault::Snapshot { before, found: covered, last });
            return;
        }
        self.snapshot = covered;
        self.high_water(covered.index);
    }

    /// Entries below `first` are not kept any more: what lies below was committed and is covered.
    pub fn low_water(&mut self, first: Index) {
        if self.fault.is_some() {
            return;
        }
        // What let it rise was committed then, also if no hint of that was written.
        self.high_water(first.prev().min(self.log.last().index));
        let before = self.log.base().index.next();
        let covered = self.snapshot.index.next().max(self.starts.furthest());
        // What let it rise may be lost.
        let covers = first <= covered || self.sessions.has_holes();
        if first < before || !covers || first.prev() > self.log.last().index {
            let last = self.log.last();
            self.fault = Some(RestoreFault::LowWater { before, found: first, covered, last });
            return;
        }
        self.log.begin_behind(first.prev());
        self.history.begin_at(first);
        self.damage.let_go(first);
    }

    /// The last entry that a durable snapshot covers.
    pub fn snapshot(&self) -> Position {
        self.snapshot
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
    use tidelog_types::{RecordKind, Sequence, SessionId, SessionKey, SessionRef};

    fn entry(index: u64, generation: u64, prev: u64) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(generation)),
            prev_generation: Generation(prev),
            kind: RecordKind::Data,
            session: None,
            session_key: None,
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(10 * index),
            record_bytes: 128,
            payload_crc: 0,
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

    #[test]
    fn a_log_begins_behind_what_is_not_kept() {
        let mut r = two_entries();
        r.snapshot_mark(Position::new(Index(2), Generation(1)));
        assert_eq!((r.high_water, r.snapshot()), (Index(2), Position::new(Index(2), Generation(1))));
        r.low_water(Index(3));
        r.entry(&entry(3, 1, 1));
        r.low_water(Index(3));
        assert_eq!((r.check(), r.log.base().index, r.last().index), (Ok(()), Index(2), Index(3)));
    }

    #[test]
    fn a_low_water_mark_needs_a_snapshot_or_a_log_start() {
        let faulty = |f: &dyn Fn(&mut Restored)| {
            let mut r = two_entries();
            f(&mut r);
            r.check().unwrap_err()
        };
        let at = |i, g| Position::new(Index(i), Generation(g));
        assert!(matches!(faulty(&|r| r.low_water(Index(2))), RestoreFault::LowWater { .. }));
        assert!(matches!(faulty(&|r| r.snapshot_mark(at(3, 1))), RestoreFault::Snapshot { .. }));
        assert!(matches!(faulty(&|r| r.snapshot_mark(at(2, 2))), RestoreFault::Snapshot { .. }));
        let back = |r: &mut Restored| {
            r.snapshot_mark(at(2, 1));
            r.low_water(Index(3));
            r.low_water(Index(2));
        };
        assert!(matches!(faulty(&back), RestoreFault::LowWater { .. }));
        let start = |first: u64| EntryMeta {
            kind: RecordKind::LogStart,
            log_start: Some(Index(first)),
            ..entry(3, 1, 1)
        };
        assert!(matches!(faulty(&|r| r.entry(&start(4))), RestoreFault::LogStart { .. }));
        let mut r = two_entries();
        r.entry(&start(2));
        r.low_water(Index(2));
        assert_eq!((r.check(), r.log.base().index), (Ok(()), Index(1)));
        r.low_water(Index(3));
        assert!(matches!(r.check(), Err(RestoreFault::LowWater { .. })));
    }

    fn config(node: u64) -> crate::config::Config {
        crate::config::Config {
            node: NodeId(node),
            partition: tidelog_types::PartitionId(0),
            voters: vec![NodeId(3)],
            election_timeout: core::time::Duration::from_millis(100),
            stall_timeout: core::time::Duration::from_millis(200),
            heartbeat: core::time::Duration::from_millis(10),
            in_flight_messages_max: 1,
            in_flight_bytes_max: 1,
            uncommitted_entries_max: 3,
            uncommitted_bytes_max: 1000,
            session_expiry: core::time::Duration::from_secs(3600),
            seed: 0,
        }
    }

    /// Entry 2 opens a session, entry 3 is its first request, a snapshot covers both.
    fn opened(lost: bool) -> Restored {
        let mut r = Restored::new();
        r.promise(Generation(1), Some(NodeId(3)));
        r.entry(&entry(1, 1, 0));
        let open =
            EntryMeta { kind: RecordKind::SessionOpen, session_key: Some(SessionKey(7)), ..entry(2, 1, 1) };
        if lost {
            r.damaged(range(2, 2, 1), Harm::Damaged)
        } else {
            r.entry(&open)
        }
        for index in 3..=5 {
            let session = SessionRef { session: SessionId(2), sequence: Sequence(index - 2) };
            r.entry(&EntryMeta { session: Some(session), ..entry(index, 1, 1) });
        }
        r.snapshot_mark(Position::new(Index(3), Generation(1)));
        r
    }

    #[test]
    fn a_snapshot_tells_what_a_lost_entry_below_the_low_water_mark_did() {
        let new = |r: Restored| crate::Replica::new(config(3), r, tidelog_types::Clock::default());
        let base = new(opened(false)).base_at(Index(3)).unwrap();
        let other = {
            let mut r = two_entries();
            r.entry(&entry(3, 1, 1));
            r.high_water(Index(3));
            new(r).base_at(Index(3)).unwrap()
        };
        let mut r = opened(true);
        r.low_water(Index(4));
        assert!(r.check().is_ok());
        let mut replica = new(r);
        assert_eq!((replica.damaged_entries(), replica.unknown_from(Index(1))), (0, Some(Index(2))));
        assert!(!replica.may_stand(), "it does not know its sessions");
        assert!(!replica.recall(&other), "of another log");
        assert!(replica.recall(&base) && replica.may_stand());
        assert_eq!(replica.unknown_from(Index(1)), None);
        assert_eq!(replica.sessions, opened(false).sessions);
    }

    #[test]
    fn a_base_is_a_log_of_its_own() {
        let mut r = two_entries();
        r.high_water(Index(2));
        let replica = crate::Replica::new(config(3), r, tidelog_types::Clock::default());
        let base = replica.base_at(Index(2)).unwrap();
        let mut again = Restored::behind(Base::decode(&base.encode()).unwrap());
        assert_eq!(
            (again.last(), again.high_water, again.stamp),
            (base.position(), Index(2), ReplicatedMs(20))
        );
        again.entry(&entry(3, 1, 1));
        again.cut(base.position());
        assert_eq!(again.check(), Ok(()));
        again.cut(Position::new(Index(1), Generation(1)));
        assert!(matches!(again.check(), Err(RestoreFault::Cut { .. })));
    }
}
