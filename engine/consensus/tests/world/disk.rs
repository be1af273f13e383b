//! One replica's log on a disk that says when a step is durable and forgets the rest at a crash.

use std::collections::{BTreeSet, VecDeque};
use tidelog_consensus::{Base, DamagedRange, Harm, Restored};
use tidelog_types::{EntryMeta, Generation, Index, NodeId, Position, Ticket};

/// An entry with its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stored {
    pub meta: EntryMeta,
    pub payload: String,
}

impl Stored {
    pub fn show(&self) -> String {
        format!("{}@{}", self.payload, self.meta.position.generation)
    }
}

#[derive(Clone, Debug)]
pub enum DiskOp {
    Append(Vec<Stored>),
    Promise(Generation, Option<NodeId>),
    Cut(Position),
    /// Bytes of damaged entries, written back.
    Repair(Vec<Stored>),
    HighWater(Index),
    /// With the bytes of the log's base, as a snapshot holds them.
    SnapshotMark(Position, Vec<u8>),
    LowWater(Index),
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Everything ever durable, in order: what a restart reads.
    history: Vec<DiskOp>,
    /// Places in it (step, entry of the step) whose bytes are lost; and whether that is only suspected.
    rotten: BTreeSet<(usize, usize)>,
    suspect: BTreeSet<(usize, usize)>,
    /// Indexes of the durable log whose newest copy is rotten.
    damaged: BTreeSet<u64>,
    /// Repaired since the checker last looked.
    pub healed: Vec<Position>,
    /// Not durable yet.
    pending: VecDeque<(Ticket, DiskOp)>,
    /// The log as appended, and as durable.
    appended: Vec<Stored>,
    pub durable: Vec<Stored>,
    pub promise: (Generation, Option<NodeId>),
    /// Highest ticket durable in this life.
    pub reported: Ticket,
    /// The mark that the shard knows; a hint of it becomes durable with the next step.
    pub high_water: Index,
    /// What the durable snapshot covers, and the durable low-water mark.
    pub snapshot: Position,
    pub low_water: Index,
}

fn apply(log: &mut Vec<Stored>, op: &DiskOp) {
    match op {
        DiskOp::Append(entries) => {
            for entry in entries {
                assert_eq!(entry.meta.position.index.0, log.len() as u64 + 1, "a disk's log is dense");
                log.push(entry.clone());
            }
        }
        DiskOp::Cut(keep) => {
            log.truncate(usize::try_from(keep.index.0).unwrap());
            assert_eq!(log.last().map_or(Position::ZERO, |e| e.meta.position), *keep, "a cut names its end");
        }
        DiskOp::Promise(..)
        | DiskOp::HighWater(_)
        | DiskOp::Repair(_)
        | DiskOp::SnapshotMark(..)
        | DiskOp::LowWater(_) => {}
    }
}

impl Disk {
    pub fn order(&mut self, ticket: Ticket, op: DiskOp) {
        assert!(self.pending.back().is_none_or(|(last, _)| *last < ticket) && ticket > self.reported);
        apply(&mut self.appended, &op);
        self.pending.push_back((ticket, op));
    }

    /// The entry at `index` of the log as appended.
    pub fn entry(&self, index: Index) -> Option<&Stored> {
        let at = usize::try_from(index.0).unwrap().checked_sub(1)?;
        self.appended.get(at)
    }

    pub fn log(&self) -> &[Stored] {
        &self.appended
    }

    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The entries of the next step, if it has any.
    pub fn next(&self) -> Option<&[Stored]> {
        match self.pending.front() {
            Some((_, DiskOp::Append(entries))) => Some(entries),
            _ => None,
        }
    }

    /// The next step becomes durable; false if there is none.
    pub fn make_durable(&mut self) -> bool {
        let Some((ticket, op)) = self.pending.pop_front() else { return false };
        apply(&mut self.durable, &op);
        match &op {
            DiskOp::Promise(generation, vote) => self.promise = (*generation, *vote),
            DiskOp::SnapshotMark(covered, _) => self.snapshot = *covered,
            DiskOp::LowWater(first) => {
                assert!(*first >= self.low_water, "invariant 2: low-water {first} after {}", self.low_water);
                self.low_water = *first;
            }
            DiskOp::Cut(keep) => self.damaged.retain(|i| *i <= keep.index.0),
            DiskOp::Repair(entries) => {
                for entry in entries {
                    let at = entry.meta.position;
                    let there = usize::try_from(at.index.0).unwrap() - 1;
                    if self.durable.get(there) == Some(entry) && self.damaged.remove(&at.index.0) {
                        self.healed.push(at);
                    }
                }
            }
            _ => {}
        }
        self.history.push(op);
        // A hint speaks of the log as it is in front of it: entries that are about to be cut are not what the mark is about.
        let same = self.appended.iter().zip(&self.durable).take_while(|(a, b)| a == b).count();
        let hint = self.high_water.min(Index(same as u64));
        self.history.push(DiskOp::HighWater(hint));
        self.reported = ticket;
        true
    }

    /// Whether the newest copy of a durable entry is rotten.
    pub fn is_damaged(&self, index: Index) -> bool {
        self.damaged.contains(&index.0)
    }

    /// The damaged entries of the log as appended: one that is about to be cut does not count.
    pub fn damaged(&self) -> impl Iterator<Item = Index> {
        let at = |i: u64| usize::try_from(i).unwrap() - 1;
        let there = move |i: &u64| self.appended.get(at(*i)) == self.durable.get(at(*i));
        self.damaged.iter().copied().filter(there).map(Index)
    }

    /// The bytes of a durable entry are lost. False if there is none, or they are lost already.
    pub fn rot(&mut self, index: Index) -> bool {
        let Some(entry) =
            index.0.checked_sub(1).and_then(|at| self.durable.get(usize::try_from(at).unwrap()))
        else {
            return false;
        };
        if self.is_damaged(index) {
            return false;
        }
        let place = self.history.iter().enumerate().rev().find_map(|(step, op)| match op {
            DiskOp::Append(entries) | DiskOp::Repair(entries) => {
                entries.iter().position(|e| e == entry).map(|at| (step, at))
            }
            _ => None,
        });
        self.rotten.insert(place.expect("a durable entry was written"));
        self.damaged.insert(index.0);
        true
    }

    /// The node stops in the middle of writing its next step: what that holds is known, its entries' bytes are not.
    pub fn crash_suspect(&mut self, each: &mut dyn FnMut(&Disk)) {
        if let Some((_, op)) = self.pending.front().cloned() {
            let step = self.history.len();
            if let DiskOp::Append(entries) = &op {
                for (at, entry) in entries.iter().enumerate() {
                    self.rotten.insert((step, at));
                    self.suspect.insert((step, at));
                    self.damaged.insert(entry.meta.position.index.0);
                }
            }
            if !matches!(op, DiskOp::Repair(_)) {
                self.make_durable();
                each(self);
            }
        }
        self.crash(0, each);
    }

    /// The node stops; the first `survives` steps that were under way are on the disk, nobody was told.
    pub fn crash(&mut self, survives: usize, each: &mut dyn FnMut(&Disk)) {
        for _ in 0..survives {
            self.make_durable();
            each(self);
        }
        self.pending.clear();
        self.appended = self.durable.clone();
        self.reported = Ticket(0);
        self.high_water = Index::ZERO;
    }

    fn replay(&self, restored: &mut Restored, step: usize, op: &DiskOp) {
        match op {
            DiskOp::Append(entries) => {
                for (at, entry) in entries.iter().enumerate() {
                    let Position { index, generation } = entry.meta.position;
                    let range = DamagedRange { first: index, last: index, generation };
                    match (self.rotten.contains(&(step, at)), self.suspect.contains(&(step, at))) {
                        (false, _) => restored.entry(&entry.meta),
                        (true, false) => restored.damaged(range, Harm::Damaged),
                        (true, true) => restored.damaged(range, Harm::Suspect),
                    }
                }
            }
            DiskOp::Repair(entries) => {
                let good = entries.iter().enumerate().filter(|(at, _)| !self.rotten.contains(&(step, *at)));
                good.for_each(|(_, entry)| restored.moved(&entry.meta));
            }
            DiskOp::Promise(generation, vote) => restored.promise(*generation, *vote),
            DiskOp::Cut(keep) => restored.cut(*keep),
            DiskOp::HighWater(mark) => restored.high_water(*mark),
            DiskOp::SnapshotMark(covered, _) => restored.snapshot_mark(*covered),
            DiskOp::LowWater(first) => restored.low_water(*first),
        }
    }

    /// What a start finds: from the whole log, or from the newest snapshot's base and what came behind it (where nothing
    /// ever rotted).
    pub fn restored(&self, from_base: bool) -> Restored {
        let marks = self.history.iter().rposition(|op| matches!(op, DiskOp::SnapshotMark(..)));
        let Some(at) = marks.filter(|_| from_base && self.rotten.is_empty()) else {
            let mut restored = Restored::new();
            self.history.iter().enumerate().for_each(|(step, op)| self.replay(&mut restored, step, op));
            return restored;
        };
        let (before, behind) = self.history.split_at(at);
        let DiskOp::SnapshotMark(covered, base) = &behind[0] else { panic!("that is what was looked for") };
        let base = Base::decode(base).expect("what was encoded");
        assert_eq!(base.position(), *covered);
        let (mut log, mut promise, mut low_water) = (Vec::new(), None, Index::ZERO);
        for op in before {
            apply(&mut log, op);
            match op {
                DiskOp::Promise(generation, vote) => promise = Some((*generation, *vote)),
                DiskOp::LowWater(first) => low_water = *first,
                _ => {}
            }
        }
        assert!(low_water.prev() <= covered.index, "a snapshot is of what is kept");
        let mut restored = Restored::behind(base);
        if let Some((generation, vote)) = promise {
            restored.promise(generation, vote);
        }
        for entry in &log[usize::try_from(covered.index.0).unwrap()..] {
            restored.entry(&entry.meta);
        }
        // A mark that follows says less than the base does.
        let more = (at..)
            .zip(behind)
            .filter(|(_, op)| !matches!(op, DiskOp::LowWater(first) if first.prev() <= covered.index));
        more.for_each(|(step, op)| self.replay(&mut restored, step, op));
        restored
    }
}
