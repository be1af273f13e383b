//! Space: what the log has ready, what it keeps back for control records, and when it takes no entries.
//!
//! A disk is full for the log when no further segment could be made and only two prepared segments are left, which are kept back: one for
//! control records or the next life, and one for the life after that. Until then entries go on into what is left of the segment that is
//! written. Space that is *short* makes the log give back segments sooner, and an entry begins another segment only if
//! two prepared ones are left behind it: nobody knows yet whether a further one can be made.
//!
//! It does not look at the file system itself: whoever drives the log asks, and tells it.

use crate::files::FILES_OPEN_MAX;
use crate::options::Options;
use crate::reports::WalEvent;
use crate::segments::RESERVED_SEGMENTS;
use crate::wal::{Pending, Wal};
use tidelog_io::{Io, Op, Space};
use tidelog_types::Monotonic;

/// On a disk that is full, this part of the last segment that entries may use is left to what makes room.
const OWN_PART: u64 = 4;

impl Options {
    /// Bytes of disk without which the log takes no entry: the segment that is written, the next one, and what is kept back.
    pub const fn least_bytes(segment_bytes: u64) -> u64 {
        segment_bytes.saturating_mul(2 + RESERVED_SEGMENTS as u64)
    }

    /// Most files that the log has open at once, those of reads under way beyond that aside.
    pub const fn files_open_max(&self) -> usize {
        let spares = if self.spares > RESERVED_SEGMENTS { self.spares } else { RESERVED_SEGMENTS };
        // The next segment, spares with those that came back at once, the one that is made, a header that is written again.
        FILES_OPEN_MAX + 1 + spares + crate::segments::SURPLUS_MAX + 2
    }
}

impl Wal {
    /// What the file system says of its space. It is asked every few seconds, and told here.
    pub fn note_space(&mut self, space: Space) {
        self.space = Some(space);
    }

    /// A batch of the life before found no space: no entry is taken before `until`, or everything would begin anew at once.
    pub fn doubt_space(&mut self, until: Monotonic) {
        self.doubted_until = until;
        self.weigh_space();
    }

    /// When entries are taken again that are refused for that.
    pub(crate) fn doubt_ends(&self) -> Option<Monotonic> {
        (self.full && self.doubted_until > self.clock.now).then_some(self.doubted_until)
    }

    /// Bytes of its segments, and of those that are prepared.
    pub fn disk_bytes(&self) -> u64 {
        let ready = self.segments.ready() as u64; // a few
        self.files.bytes() + ready * self.options.segment_bytes
    }

    /// Whether entries are refused because there is no space.
    pub const fn is_full(&self) -> bool {
        self.full
    }

    /// Whether there is less space than all prepared segments would take, should they have to be made.
    pub(crate) fn is_tight(&self) -> bool {
        let wanted = (1 + self.options.spares.max(RESERVED_SEGMENTS)) as u64 * self.options.segment_bytes;
        self.full || self.no_space || self.space.is_some_and(|space| space.free_bytes < wanted)
    }

    /// Compares what is ready with what control records need.
    pub(crate) fn weigh_space(&mut self) {
        self.segments.weigh(self.files.len(), self.is_tight());
        let ready = self.segments.ready();
        if ready > RESERVED_SEGMENTS {
            self.no_space = false;
        }
        // What is left of the segment that is written takes a batch of any size, and behind it what makes room: two checkpoints, moves.
        let left = self.active.header.end().0 - self.growing.lsn.0;
        let checkpoints = 2 * self.background.newest.map_or(0, |kept| kept.bytes);
        let batch = self.options.batch_bytes_max as u64;
        let own = checkpoints.max(self.options.segment_bytes / OWN_PART).max(2 * batch);
        let goes_on = left >= batch + own && ready >= RESERVED_SEGMENTS;
        let doubted = self.clock.now < self.doubted_until;
        if doubted || (self.no_space && !goes_on) {
            if !self.full {
                self.full = true;
                self.events.push(WalEvent::Full);
                tracing::warn!(dir = %self.options.dir.display(), "disk full: entries are refused");
            }
        } else if self.full {
            self.full = false;
            self.events.push(WalEvent::SpaceBack);
            tracing::info!(dir = %self.options.dir.display(), "there is space again");
        }
    }

    /// Notes that a spare could not be made.
    pub(crate) fn note_no_space(&mut self) {
        self.no_space = true;
        self.weigh_space();
    }

    /// Closes segments that were not used for long.
    pub(crate) fn close_cold(&mut self, io: &mut dyn Io) {
        while let Some(file) = self.files.surplus(self.active.base()) {
            let token = self.op(Pending::Closing);
            io.submit(token, Op::CloseFile { file });
        }
    }
}
