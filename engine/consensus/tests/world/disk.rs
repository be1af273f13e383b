//! One replica's log on a disk that says when a step is durable and forgets the rest at a crash.

use std::collections::VecDeque;
use tidelog_consensus::{Base, Restored};
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
    HighWater(Index),
    /// With the bytes of the log's base, as a snapshot holds them.
    SnapshotMark(Position, Vec<u8>),
    LowWater(Index),
}

#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Everything ever durable, in order: what a restart reads.
    history: Vec<DiskOp>,
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
        DiskOp::Promise(..) | DiskOp::HighWater(_) | DiskOp::SnapshotMark(..) | DiskOp::LowWater(_) => {}
    }
}

fn replay(restored: &mut Restored, op: &DiskOp) {
    match op {
        DiskOp::Append(entries) => entries.iter().for_each(|e| restored.entry(&e.meta)),
        DiskOp::Promise(generation, vote) => restored.promise(*generation, *vote),
        DiskOp::Cut(keep) => restored.cut(*keep),
        DiskOp::HighWater(mark) => restored.high_water(*mark),
        DiskOp::SnapshotMark(covered, _) => restored.snapshot_mark(*covered),
        DiskOp::LowWater(first) => restored.low_water(*first),
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
            _ => {}
        }
        self.history.push(op);
        let hint = self.high_water.min(Index(self.durable.len() as u64));
        self.history.push(DiskOp::HighWater(hint));
        self.reported = ticket;
        true
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

    /// What a start finds: from the whole log, or from the newest snapshot's base and what came behind it.
    pub fn restored(&self, from_base: bool) -> Restored {
        let marks = self.history.iter().rposition(|op| matches!(op, DiskOp::SnapshotMark(..)));
        let Some(at) = marks.filter(|_| from_base) else {
            let mut restored = Restored::new();
            self.history.iter().for_each(|op| replay(&mut restored, op));
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
        let more = behind
            .iter()
            .filter(|op| !matches!(op, DiskOp::LowWater(first) if first.prev() <= covered.index));
        more.for_each(|op| replay(&mut restored, op));
        restored
    }
}
