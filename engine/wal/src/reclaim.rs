//! Giving segments back: oldest first, and only what nothing needs any more.
//!
//! A segment may go when nothing live is in it (no span and no ref, which low-water marks, cuts and moves have seen to),
//! when everything that this follows from is durable, when an opening begins behind it even if the newest checkpoint is
//! bad, when durable batches name the checkpoints that say so, and when nobody reads it. What it is then renamed to is no part of the log.

use crate::segments::Returned;
use crate::wal::Wal;

impl Wal {
    /// Whether durable batches name the two checkpoints that are kept. Before that an opening would look for the two that were named
    /// before, the older of which may need what these do not.
    fn are_named(&self) -> bool {
        let (named, by) = self.background.named_by;
        // On a full disk there may be no place for a batch until something goes. The last one that had a place may name them.
        let nowhere =
            self.full && self.is_idle() && !self.growing.takes_seal() && self.segments.next.is_none();
        (named == self.background.named() && self.durable_seq >= by) || nowhere
    }

    /// Whether the oldest segment would be given back if a batch named the checkpoints that are kept.
    pub(crate) fn waits_for_names(&self) -> bool {
        let oldest = self.files.oldest().filter(|(base, _)| *base != self.active.base());
        let waits = oldest.is_some_and(|(_, oldest)| oldest.holds == 0 && oldest.end < self.replay_start());
        waits && self.background.named_by.0 != self.background.named()
    }

    /// Gives back the oldest segments as far as they may go.
    pub(crate) fn reclaim(&mut self) {
        while let Some((base, oldest)) = self.files.oldest() {
            if self.fenced || base == self.active.base() || oldest.holds > 0 || oldest.users > 0 {
                return;
            }
            // What let go of it last may still be on its way to the disk.
            let newest = if self.growing.is_empty() { self.growing.seq - 1 } else { self.growing.seq };
            let since = match self.background.idle_since {
                Some((of, seq)) if of == base => seq,
                _ => newest,
            };
            self.background.idle_since = Some((base, since));
            // The segment that a checkpoint's position lies in is where an opening begins to read, even at its very end.
            if self.durable_seq < since || oldest.end >= self.replay_start() || !self.are_named() {
                return;
            }
            // A write of a life that has died may still be on its way to a file of that life: it must not find a name.
            let whole = oldest.end.0 - base.0 == self.options.segment_bytes && !oldest.unfit;
            let fits = whole && oldest.epoch == self.epoch;
            let Some(removed) = self.files.remove(base) else { return };
            self.background.resident.retain(|b| *b != base);
            self.background.idle_since = None;
            if self.background.collecting.as_ref().is_some_and(|c| c.base == base) {
                self.background.collecting = None;
            }
            if self.background.summing.as_ref().is_some_and(|s| s.base == base) {
                self.background.summing = None;
            }
            self.blocks.forget(base, removed.end);
            self.stats.reclaimed += 1;
            tracing::debug!(base = base.0, "a segment is given back");
            self.segments.give_back(Returned { path: removed.path, file: removed.file, fits });
        }
    }
}
