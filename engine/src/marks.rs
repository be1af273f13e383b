//! A partition's marks, readable from any thread.

use crate::pins::Pins;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tidelog_consensus::Role;
use tidelog_types::{Generation, Index, NodeId};

/// `low_water - 1 <= applied <= min(high_water, durable)`, always.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Marks {
    /// First index that this node keeps, for itself and its peers. Readers may begin later: see `first_readable`.
    pub low_water: Index,
    /// First index that can be read: what is kept, from the log start on that all replicas agreed on.
    pub first_readable: Index,
    /// Highest index applied here.
    pub applied: Index,
    /// Highest index durable here.
    pub durable: Index,
    /// Highest index known committed, inclusive.
    pub high_water: Index,
}

/// Who leads a partition, as this node knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leadership {
    /// The newest generation known here.
    pub generation: Generation,
    /// Its leader, if it is known.
    pub leader: Option<NodeId>,
    /// What this node's replica is.
    pub role: Role,
}

/// Written by the owning shard at the end of a turn, read by handles. Each mark is exact as of some recent
/// turn; the four are not read at one instant. The high-water mark is never behind an answer: it is raised before whoever
/// waits for an entry is told that it is committed.
#[derive(Debug, Default)]
pub(crate) struct SharedMarks {
    low_water: AtomicU64,
    first_readable: AtomicU64,
    applied: AtomicU64,
    durable: AtomicU64,
    high_water: AtomicU64,
    /// What handles hold.
    pub(crate) pins: Pins,
    /// Locked by the shard only when it changes.
    leadership: Mutex<Option<Leadership>>,
}

impl SharedMarks {
    /// Entries up to there are committed. They stay so, also while a log that was opened again has yet to learn it.
    pub(crate) fn raise_high_water(&self, to: Index) {
        // Nobody else writes it.
        if self.high_water.load(Ordering::Relaxed) < to.0 {
            self.high_water.store(to.0, Ordering::Release);
        }
    }

    pub(crate) fn show_leadership(&self, leadership: Option<Leadership>) {
        *self.leadership.lock().unwrap_or_else(PoisonError::into_inner) = leadership;
    }

    pub(crate) fn leadership(&self) -> Option<Leadership> {
        *self.leadership.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(&self, marks: Marks) {
        self.raise_high_water(marks.high_water);
        self.durable.store(marks.durable.0, Ordering::Release);
        self.applied.store(marks.applied.0, Ordering::Release);
        self.low_water.store(marks.low_water.0, Ordering::Release);
        self.first_readable.store(marks.first_readable.0, Ordering::Release);
    }

    pub(crate) fn load(&self) -> Marks {
        Marks {
            low_water: Index(self.low_water.load(Ordering::Acquire)),
            first_readable: Index(self.first_readable.load(Ordering::Acquire)),
            applied: Index(self.applied.load(Ordering::Acquire)),
            durable: Index(self.durable.load(Ordering::Acquire)),
            high_water: Index(self.high_water.load(Ordering::Acquire)),
        }
    }
}
