//! One replica's log on a disk that says when a step is durable and forgets the rest at a crash.

use std::collections::VecDeque;
use tidelog_consensus::Restored;
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
        DiskOp::Promise(..) | DiskOp::HighWater(_) => {}
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
        if let DiskOp::Promise(generation, vote) = op {
            self.promise = (generation, vote);
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

    pub fn replay(&self, restored: &mut Restored) {
        for op in &self.history {
            match op {
                DiskOp::Append(entries) => entries.iter().for_each(|e| restored.entry(&e.meta)),
                DiskOp::Promise(generation, vote) => restored.promise(*generation, *vote),
                DiskOp::Cut(keep) => restored.cut(*keep),
                DiskOp::HighWater(mark) => restored.high_water(*mark),
            }
        }
    }
}
