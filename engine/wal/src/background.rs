//! What the log does for itself beside the traffic: summaries of segments that are full, base checkpoints, moves.
//!
//! One unit of work at the front of a batch, when the batch before it has left: a bound on what a writer waits for, and
//! a start for the work however much traffic there is. Everything here can be given up at any moment and begun again:
//! a summary or a checkpoint counts only when all of it is durable.

use crate::files::Piece;
use crate::format::SummarySpan;
use crate::moving::Moving;
use crate::replay::State;
use crate::saving::{Kept, Saving};
use crate::shape::Class;
use crate::wal::Wal;
use std::collections::{BTreeSet, VecDeque};
use tidelog_types::{Lsn, PartitionId};

/// Newest segments whose spans stay in memory, the active one among them.
pub(crate) const RESIDENT_SEGMENTS: usize = 2;

/// A segment whose summary is being made.
#[derive(Debug)]
pub(crate) struct Collecting {
    pub(crate) base: Lsn,
    /// The partition to visit next.
    pub(crate) next: PartitionId,
    /// The spans of those before it.
    pub(crate) groups: Vec<(PartitionId, Vec<SummarySpan>)>,
}

/// A segment with a durable summary whose spans leave memory.
#[derive(Debug)]
pub(crate) struct Demoting {
    pub(crate) base: Lsn,
    pub(crate) end: Lsn,
    /// The partition to visit next.
    pub(crate) next: PartitionId,
}

/// A segment's summary on its way into the log.
#[derive(Debug)]
pub(crate) struct Summing {
    pub(crate) base: Lsn,
    /// Still to be put: from the last one on, the next at the end.
    pub(crate) left: Vec<(PartitionId, Vec<u8>)>,
    pub(crate) put: Vec<Piece>,
    /// The batch that the last one went into.
    pub(crate) seq: u64,
    /// It had one, which is bad.
    pub(crate) again: bool,
}

/// What is under way, and what it led to.
#[derive(Debug, Default)]
pub(crate) struct Background {
    /// Segments whose spans are in memory, oldest first, the active one last.
    pub(crate) resident: VecDeque<Lsn>,
    pub(crate) collecting: Option<Collecting>,
    pub(crate) summing: Option<Summing>,
    pub(crate) demoting: Option<Demoting>,
    /// Segments in which lost entries were met, while the first is the one that is written.
    pub(crate) lost_in: (Lsn, BTreeSet<Lsn>),
    /// Segments whose summary is bad.
    pub(crate) bad_summaries: BTreeSet<Lsn>,
    pub(crate) saving: Option<Saving>,
    pub(crate) moving: Moving,
    /// The two newest checkpoints that were read back.
    pub(crate) newest: Option<Kept>,
    pub(crate) older: Option<Kept>,
    /// Where the log was when the last checkpoint was begun.
    pub(crate) saved_at: Lsn,
    /// The same, but as far back from where this life began as the last one had written since: openings leave gaps between positions.
    pub(crate) unsaved_from: Lsn,
    /// The checkpoint that the active segment's first batch names: where an opening looks first.
    pub(crate) segment_names: Lsn,
    /// The checkpoints that the last batch named, and the first batch that named these two.
    pub(crate) named_by: ((Lsn, Lsn), u64),
    /// The growing batch begins with such work.
    pub(crate) in_batch: bool,
    /// Something found no room beside it: the next batch is left to the traffic.
    pub(crate) crowded: bool,
    /// The oldest segment, and the batch that has to be durable before it may go: nothing in it is live since then.
    pub(crate) idle_since: Option<(Lsn, u64)>,
}

impl Background {
    /// A segment is written from now on.
    pub(crate) fn activated(&mut self, base: Lsn) {
        self.resident.push_back(base);
    }

    /// The checkpoints that batches name.
    pub(crate) fn named(&self) -> (Lsn, Lsn) {
        let end = |kept: &Option<Kept>| kept.as_ref().map_or(Lsn(0), |k| k.batch);
        (end(&self.newest), end(&self.older))
    }
}

impl Wal {
    /// Takes over what was replayed, `read` bytes of batches, and the checkpoints that are kept. Returns the segments behind the old log's end,
    /// which go when what they hold has been written again.
    pub(crate) fn adopt(
        &mut self,
        state: State,
        (newest, older): (Option<Kept>, Option<Kept>),
        end: Lsn,
        read: u64,
    ) -> Vec<Lsn> {
        let behind = state.files.iter().map(|(base, _)| base).filter(|base| *base >= end).collect();
        let resident = state.files.iter().filter(|(base, file)| *base < end && file.summary.is_none());
        let mut resident: VecDeque<_> = resident.map(|(base, _)| base).collect();
        resident.append(&mut self.background.resident);
        self.background.resident = resident;
        self.background.saved_at = newest.map_or(Lsn(0), |k| k.at);
        self.background.unsaved_from =
            newest.map_or(Lsn(0), |_| Lsn(self.growing.lsn.0.saturating_sub(read)));
        (self.background.newest, self.background.older) = (newest, older);
        self.partitions = state.partitions;
        self.files.absorb(state.files);
        behind
    }

    /// Puts one unit of work into the growing batch, which is empty.
    pub(crate) fn put_background(&mut self) {
        if std::mem::take(&mut self.background.crowded) {
            return;
        }
        self.background.in_batch =
            self.put_checkpoint() || self.put_summary() || self.put_rescue() || self.put_move();
    }

    /// Notes what the batches that became durable complete.
    pub(crate) fn settle_background(&mut self) {
        self.settle_summary();
    }

    /// Whether a batch of background work finds a place: in this segment, or in another one.
    fn has_place(&self, roll: Class) -> bool {
        self.growing.limit() >= self.options.batch_bytes_max || self.may_roll(roll)
    }

    /// Whether moves find a place. Moves make room: on a full disk they may use some of what is kept for control records, as checkpoints may.
    pub(crate) fn has_place_for_moves(&self) -> bool {
        self.has_place(if self.full { Class::Room } else { Class::Bulk })
    }

    /// Whether there is work that only waits for a turn, and a place for it.
    pub(crate) fn has_background(&self) -> bool {
        let b = &self.background;
        let place = |roll| self.has_place(roll);
        (b.saving.as_ref().is_some_and(Saving::has_more) && place(self.checkpoint_rolls()))
            || b.demoting.is_some()
            || (!self.full && b.collecting.is_some() && place(Class::Bulk))
            || (!self.full && b.summing.as_ref().is_some_and(|s| !s.left.is_empty()) && place(Class::Bulk))
            || (self.has_move() && self.has_place_for_moves())
            || (self.has_rescue() && !self.full && place(Class::Bulk))
    }
}
