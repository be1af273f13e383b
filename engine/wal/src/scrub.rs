//! Reading what was written long ago, so that damage is found while others still have what was lost.
//!
//! One pass after the other goes over the log, oldest segment first, up to what is durable, and verifies what is there: both
//! copies of each segment's header, and of each batch its header, its place in the chain, its records and its footer
//! (`walk`). One read at a time, of at most [`CHUNK_BYTES`], no faster than the set rate; a read waits for a moment
//! without a batch in flight, but not for ever: on a log that is never idle it goes beside the batches after
//! [`PATIENCE`], which slows the scrubber down and not the log.
//!
//! A bad range says nothing about loss. What is live in it the lookup says, and each such entry is then read as any reader would
//! read it. What cannot be read is told ([`crate::WalEvent::Damaged`]), for the replica to fetch it from its peers. What
//! can be read still is written again at the log's end, as a move: the batch around it is not what it was, and the next
//! fault there must not find the only copy. The same holds for promises and marks in such a batch, and a new
//! checkpoint is begun where an opening would have to read the range. Nothing is written in place, because a torn write there
//! would take a neighbour along, but for a copy of a header (`heads`). A bad summary is written again (`resum`). What is bad and held
//! nothing that counts is only counted.
//!
//! Promises: an entry is told damaged only if the lookup named the bytes that were bad, after they were read. It pins
//! nothing between two reads; a segment that is given back meanwhile is passed over. What it does not know: who has the
//! bytes. A pass is not remembered over a restart; the next life begins with one of its own.

use crate::format::{BATCHES_START, BatchHeader, SegmentHeader, Span};
use crate::frozen::Link;
use crate::heads::Heads;
use crate::reads::{READS_MAX, ReadJob, Run};
use crate::saving::Kept;
use crate::scan::belongs;
use crate::wal::Wal;
use crate::walk::{Ends, Flawed, Walk};
use bytes::Bytes;
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use tidelog_io::{Io, IoError, IoErrorKind};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Index, Lsn, Monotonic, PartitionId, RecordKind};

/// Most bytes of one read, but for a single larger record.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// How long a read that is due waits for a moment without a batch in flight.
const PATIENCE: Duration = Duration::from_millis(20);
/// Until something that was not possible is tried again.
pub(crate) const AGAIN: Duration = Duration::from_millis(10);
/// Least time between two passes, whatever is set.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Steps without a read in one turn.
const STEPS_MAX: usize = 64;
/// Least time between two checkpoints that only this asks for: one may fail to be read back.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
const PAGE: u64 = PAGE_BYTES as u64;

/// What scrubbing came to since the log was opened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrubStats {
    /// Passes that came to the log's end.
    pub passes: u64,
    /// Bytes read in the pass under way, or in the last one.
    pub bytes: u64,
    /// Entries that could not be read, and were given to repair.
    pub lost: u64,
    /// Entries that could be read and lay in a bad batch: they were written again.
    pub moved: u64,
    /// Bad places in which nothing lay that counts.
    pub superseded: u64,
    /// Summaries of segments, and copies of their headers, that were bad and were written again.
    pub rewritten: u64,
    /// The last bad place, in words.
    pub last: String,
}

/// What is done next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Phase {
    /// The next pass is not due.
    #[default]
    Resting,
    /// The segment's own header is to be read.
    Head,
    /// The next segment's beginning is, which says where this one ends.
    Next,
    /// Its batches are.
    Batches,
    /// What is live in its bad ranges is.
    Entries,
}

/// A range that was found bad, and whether anything in it counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadRange {
    from: Lsn,
    to: Lsn,
    counted: bool,
}

/// The scrubber of one log.
#[derive(Debug, Default)]
pub(crate) struct Scrub {
    pub(crate) phase: Phase,
    /// Nothing before then.
    pub(crate) next_at: Monotonic,
    /// When the pass under way was begun.
    began: Monotonic,
    /// The segment that it is at, or the first one behind this position.
    pub(crate) at: Lsn,
    /// The log's end when the pass was begun: it goes no further.
    until: Lsn,
    /// The last batch of the segment that ends at this position, of this epoch.
    link: Option<(Lsn, u64, Link)>,
    pub(crate) walk: Option<Walk>,
    pub(crate) reading: bool,
    /// The piece is read page by page, because the device did not give all of it.
    by_page: usize,
    /// The header's pages as they came one by one, because the device did not give both at once.
    head_pages: Option<Vec<Result<Bytes, String>>>,
    /// Copies of headers that are to be written again.
    pub(crate) heads: Heads,
    /// Of this segment.
    pub(crate) bad: Vec<BadRange>,
    /// Live entries in them that are still to be read.
    pub(crate) todo: VecDeque<(PartitionId, Index, Index)>,
    /// Entries on their way to the log's end.
    pub(crate) rescued: VecDeque<(PartitionId, Run)>,
    /// Partitions whose promise and marks are to be written again.
    pub(crate) restate: BTreeSet<PartitionId>,
    /// An opening should not have to read what lies before this.
    behind: Lsn,
    /// When a checkpoint was begun last.
    pub(crate) saved: Monotonic,
    pub(crate) stats: ScrubStats,
}

impl Scrub {
    pub(crate) fn overlaps(&self, from: Lsn, to: Lsn) -> bool {
        self.bad.iter().any(|bad| from < bad.to && bad.from < to)
    }

    /// Something in a bad range counted.
    pub(crate) fn counted(&mut self, from: Lsn, to: Lsn) {
        for bad in self.bad.iter_mut().filter(|bad| from < bad.to && bad.from < to) {
            bad.counted = true;
        }
    }

    fn waits_for_room(&self) -> bool {
        !self.rescued.is_empty()
    }
}

impl Wal {
    /// What scrubbing has found.
    pub fn scrubbed(&self) -> &ScrubStats {
        &self.scrub.stats
    }

    /// When the scrubber wants a turn.
    pub(crate) fn scrub_at(&self) -> Option<Monotonic> {
        let scrub = &self.scrub;
        // With so many reads under way, one of them ends first.
        let crowded = self.reads >= READS_MAX / 2;
        if self.options.scrub_rate == 0 || self.fenced || scrub.reading || scrub.waits_for_room() || crowded {
            return None;
        }
        Some(if self.is_idle() { scrub.next_at } else { scrub.next_at.after(PATIENCE) })
    }

    /// Begins the next read, if one is due.
    pub(crate) fn advance_scrub(&mut self, io: &mut dyn Io) {
        for _ in 0..STEPS_MAX {
            if self.scrub_at().is_none_or(|at| self.clock.now < at) {
                return;
            }
            self.scrub_step(io);
        }
    }

    fn scrub_step(&mut self, io: &mut dyn Io) {
        match self.scrub.phase {
            Phase::Resting => {
                let scrub = &mut self.scrub;
                (scrub.began, scrub.at, scrub.link) = (self.clock.now, Lsn(0), None);
                scrub.until = self.durable;
                scrub.stats.bytes = 0;
                self.scrub_segment();
            }
            Phase::Head | Phase::Next => match self.header_extent() {
                // The next segment was begun, and its first batch is not durable yet.
                Some((base, _))
                    if self.durable <= base.plus(BATCHES_START) && self.scrub.phase == Phase::Next =>
                {
                    self.scrub.next_at = self.clock.now.after(AGAIN);
                }
                Some((base, bytes)) => {
                    let page = self.scrub.head_pages.as_ref().map_or(0, Vec::len);
                    self.scrub_read(io, base, base.plus(page as u64 * PAGE), bytes);
                }
                None => self.scrub_segment(),
            },
            Phase::Batches => self.scrub_batches(io),
            Phase::Entries => self.scrub_entries(io),
        }
    }

    /// Goes on to the segment at or behind the position, if there is one; otherwise the pass is over.
    pub(crate) fn scrub_segment(&mut self) {
        self.close_segment();
        let base = self.files.iter().map(|(base, _)| base).find(|base| *base >= self.scrub.at);
        let base = base.filter(|base| *base < self.scrub.until);
        let every = self.options.scrub_every;
        let scrub = &mut self.scrub;
        scrub.head_pages = None;
        match base {
            Some(base) => (scrub.at, scrub.phase) = (base, Phase::Head),
            None => {
                scrub.phase = Phase::Resting;
                scrub.stats.passes += 1;
                scrub.next_at = scrub.began.after(every).max(self.clock.now.after(PAUSE_MIN));
            }
        }
    }

    /// What was bad in the segment and did not count is counted.
    fn close_segment(&mut self) {
        let scrub = &mut self.scrub;
        scrub.stats.superseded += scrub.bad.iter().filter(|bad| !bad.counted).count() as u64;
        scrub.bad.clear();
        scrub.todo.clear();
        if let Some(walk) = scrub.walk.take() {
            // Not if it was given back before the walk came to its end.
            let link = if walk.is_over() { walk.link() } else { None };
            scrub.link = link.map(|link| (walk.end(), walk.epoch(), link));
            scrub.at = walk.base().plus(1);
        }
    }

    /// The segment that the pass is at and the one behind it; none if it was given back.
    fn scrubbed_segments(&self) -> Option<(Lsn, Option<Lsn>)> {
        let at = self.scrub.at;
        self.files.peek(at)?;
        let next = self.files.iter().map(|(base, _)| base).find(|base| *base > at);
        Some((at, next))
    }

    /// Headers to be read: the segment's, or the next one's and that of its first batch.
    fn header_extent(&self) -> Option<(Lsn, usize)> {
        let (base, next) = self.scrubbed_segments()?;
        match self.scrub.phase {
            Phase::Head if self.scrub.head_pages.is_some() => Some((base, PAGE_BYTES)),
            Phase::Head => Some((base, 2 * PAGE_BYTES)),
            _ => next.map(|next| (next, 3 * PAGE_BYTES)),
        }
    }

    fn scrub_read(&mut self, io: &mut dyn Io, base: Lsn, extent: Lsn, bytes: usize) {
        self.charge(bytes);
        self.scrub.reading = true;
        self.begin_read(io, ReadJob::raw(base, extent, bytes));
    }

    /// A read of so many bytes is under way: the next one has to wait.
    pub(crate) fn charge(&mut self, bytes: usize) {
        let nanos = bytes as u64 * 1_000_000_000 / self.options.scrub_rate.max(1);
        self.scrub.next_at = self.clock.now.after(Duration::from_nanos(nanos));
        self.scrub.stats.bytes += bytes as u64;
    }

    /// The `asked` bytes of a segment came back, or did not; fewer of them where the file ends before the segment does.
    pub(crate) fn scrub_came(&mut self, base: Lsn, asked: usize, result: Result<&[u8], &IoError>) {
        self.scrub.reading = false;
        if self.fenced {
            return;
        }
        match (self.scrub.phase, result) {
            (Phase::Head, result) => self.scrubbed_head(base, result),
            (Phase::Next, result) => self.scrubbed_next(base, result),
            (Phase::Batches, Ok(bytes)) => {
                self.scrub.by_page = self.scrub.by_page.saturating_sub(1);
                let there = bytes.len() / PAGE_BYTES * PAGE_BYTES;
                if let Some(walk) = self.scrub.walk.as_mut().filter(|walk| walk.base() == base) {
                    if there > 0 {
                        walk.take(bytes.get(..there).unwrap_or_default(), false);
                    }
                    // The file was cut short: what is missing is as bad as what cannot be read, and the pass goes on.
                    for _ in (there..asked).step_by(PAGE_BYTES) {
                        walk.take(&[0; PAGE_BYTES], true);
                    }
                }
                if there < asked
                    && let Some(file) = self.files.get(base)
                {
                    file.unfit = true;
                }
            }
            (Phase::Batches, Err(error)) if error.kind == IoErrorKind::Device => {
                if let Some(file) = self.files.get(base) {
                    file.unfit = true;
                }
                let scrub = &mut self.scrub;
                if scrub.by_page > 0 {
                    scrub.by_page -= 1;
                    if let Some(walk) = &mut scrub.walk {
                        walk.take(&[0; PAGE_BYTES], true);
                    }
                } else {
                    scrub.by_page = CHUNK_BYTES / PAGE_BYTES;
                }
            }
            (Phase::Batches, Err(error)) => self.scrub_passes_over(base, error),
            (Phase::Resting | Phase::Entries, _) => {}
        }
    }

    /// A segment cannot be read for a reason that says nothing about its bytes.
    pub(crate) fn scrub_passes_over(&mut self, base: Lsn, error: &dyn core::fmt::Display) {
        tracing::warn!(segment = base.0, %error, "scrubbing passes over a segment that it cannot read");
        (self.scrub.walk, self.scrub.link, self.scrub.at) = (None, None, base.plus(1));
        self.scrub_segment();
    }

    /// The segment's header as this log knows it.
    fn known_segment(&self, base: Lsn) -> Option<SegmentHeader> {
        let file = self.files.peek(base)?;
        Some(SegmentHeader {
            base,
            bytes: file.end.0 - base.0,
            segment_seq: file.seq,
            epoch: file.epoch,
            ..self.active.header
        })
    }

    fn scrubbed_head(&mut self, base: Lsn, result: Result<&[u8], &IoError>) {
        let Some(known) = self.known_segment(base) else { return self.scrub_segment() };
        let pages = match (self.scrub.head_pages.take(), result) {
            (None, Ok(bytes)) => {
                let page = |at: usize| bytes.get(at * PAGE_BYTES..(at + 1) * PAGE_BYTES).unwrap_or_default();
                [0, 1].map(|at| Ok(Bytes::copy_from_slice(page(at)))).into()
            }
            // One of them may be to be had.
            (None, Err(_)) => return self.scrub.head_pages = Some(Vec::new()),
            (Some(mut pages), result) => {
                let page = result.map(Bytes::copy_from_slice).map_err(IoError::to_string);
                pages.push(page);
                if pages.len() < 2 {
                    return self.scrub.head_pages = Some(pages);
                }
                pages
            }
        };
        let mut good = None;
        let mut bad = Vec::new();
        for (copy, page) in pages.into_iter().enumerate() {
            let header = page.and_then(|page| match SegmentHeader::decode(&page) {
                Ok(header) if is_same(&header, &known) => Ok((header, page)),
                Ok(_) => Err("another segment's".to_owned()),
                Err(error) => Err(error.to_string()),
            });
            match header {
                Ok(header) => good = Some(header),
                Err(why) => bad.push((copy, why)),
            }
        }
        for (copy, why) in bad {
            self.scrub.stats.superseded += 1;
            // An opening that begins behind this segment does not need its header.
            let what = format!("copy {} of the segment's header: {why}", copy + 1);
            self.note_bad(base, base.plus(copy as u64 * PAGE), known.end(), &what);
            if let Some((header, page)) = &good {
                self.head_is_bad(base, copy, *header, page.clone());
            }
        }
        let scrub = &mut self.scrub;
        // An epoch's first batch follows what was proven of the one before, wherever that was.
        let link = scrub.link.take().filter(|(end, epoch, _)| (*end, *epoch) == (base, known.epoch));
        let link = link.map(|(_, _, link)| link);
        // A segment that is still written is verified up to where it was when the pass was begun.
        let open = base == self.active.base() && scrub.until < known.end();
        let ends = if open { Ends::At(scrub.until) } else { Ends::Unknown };
        scrub.walk = Some(Walk::new(known, ends, link));
        scrub.by_page = 0;
        scrub.phase = if open { Phase::Batches } else { Phase::Next };
    }

    /// What the beginning of the next segment says about the end of this one.
    fn scrubbed_next(&mut self, next: Lsn, result: Result<&[u8], &IoError>) {
        let epoch = self.files.peek(self.scrub.at).map(|file| file.epoch);
        let known = self.known_segment(next);
        let (Some(epoch), Some(known)) = (epoch, known) else { return self.scrub_segment() };
        let bytes = result.unwrap_or_default();
        let head = SegmentHeader::decode_either(bytes).ok().filter(|header| is_same(header, &known));
        let first = bytes.get(2 * PAGE_BYTES..).and_then(|page| BatchHeader::decode(page).ok());
        let first = first.filter(|batch| belongs(batch, &known, known.start()).is_ok());
        let ends = match (head, first) {
            (Some(head), _) if head.epoch > epoch => Ends::At(head.prev_epoch_end),
            (_, Some(batch)) if known.epoch == epoch => Ends::Behind(batch.prev),
            _ => Ends::Unknown,
        };
        if let Some(walk) = &mut self.scrub.walk {
            walk.ends(ends);
        }
        self.scrub.phase = Phase::Batches;
    }

    fn scrub_batches(&mut self, io: &mut dyn Io) {
        let (base, durable) = (self.scrub.at, self.durable);
        if self.files.peek(base).is_none() {
            // It was given back.
            return self.scrub_segment();
        }
        let most = if self.scrub.by_page > 0 { PAGE_BYTES } else { CHUNK_BYTES };
        let Some(walk) = &mut self.scrub.walk else { return self.scrub_segment() };
        walk.reach(durable);
        let flawed = walk.found();
        let (extent, over) = (walk.extent(most), walk.is_over());
        self.take_flawed(base, flawed);
        match extent {
            Some((from, bytes)) => self.scrub_read(io, base, from, bytes),
            None if over => self.begin_entries(base),
            // Its last batch is not durable yet.
            None => self.scrub.next_at = self.clock.now.after(AGAIN),
        }
    }

    /// Names a bad place. What lies before `to` is better not read by an opening.
    fn note_bad(&mut self, base: Lsn, lsn: Lsn, to: Lsn, what: &str) {
        let file = self.files.peek(base).map(|file| file.path.display().to_string()).unwrap_or_default();
        self.scrub.stats.last = format!("{file}: byte {}: {what}", lsn.0 - base.0);
        tracing::warn!(place = self.scrub.stats.last, "scrubbing found a bad place");
        self.scrub.behind = self.scrub.behind.max(to);
    }

    fn take_flawed(&mut self, base: Lsn, flawed: Vec<Flawed>) {
        for Flawed { from, to, why, spans, footer_only, maybe } in flawed {
            if maybe {
                // If nothing is live there it is no finding.
                self.scrub.bad.push(BadRange { from, to, counted: true });
                continue;
            }
            self.note_bad(base, from, to, &why);
            if footer_only {
                self.scrub.stats.superseded += 1;
                continue;
            }
            self.scrub.bad.push(BadRange { from, to, counted: false });
            self.doubt_checkpoints(from, to, spans.as_deref());
            match spans {
                Some(spans) => {
                    let state = spans.iter().filter(|span| {
                        matches!(
                            span.kind,
                            RecordKind::Promise | RecordKind::LowWater | RecordKind::SnapshotMark
                        )
                    });
                    self.scrub.restate.extend(state.map(|span| span.partition));
                }
                None => self.scrub.restate.extend(self.partitions.ids()),
            }
            let summed = self.files.iter().find(|(_, file)| {
                file.summary.as_ref().is_some_and(|pieces| pieces.iter().any(|p| from <= p.lsn && p.lsn < to))
            });
            if let Some((of, _)) = summed {
                tracing::warn!(segment = of.0, "the summary of this segment is bad");
                self.summary_is_bad(of);
            }
        }
    }

    /// A checkpoint that had a part of itself in a bad range is no longer one that anything is given back for.
    fn doubt_checkpoints(&mut self, from: Lsn, to: Lsn, spans: Option<&[Span]>) {
        let b = &mut self.background;
        let touched = |kept: &Kept| match spans {
            Some(spans) => spans.iter().any(|span| {
                matches!(span.kind, RecordKind::CheckpointChunk | RecordKind::CheckpointEnd)
                    && span.generation.0 == kept.at.0
            }),
            None => kept.at < to && from <= kept.batch,
        };
        if b.older.as_ref().is_some_and(touched) {
            tracing::warn!(at = b.older.map_or(0, |k| k.at.0), "the older checkpoint is bad");
            b.older = None;
        }
        if b.newest.as_ref().is_some_and(touched) {
            tracing::warn!(at = b.newest.map_or(0, |k| k.at.0), "the newest checkpoint is bad");
            b.newest = b.older.take();
        }
    }

    /// Whether an opening would read a place that is bad, or rest on one checkpoint only.
    pub(crate) fn scrub_wants_checkpoint(&self) -> bool {
        let behind = self.scrub.behind;
        let paced = self.clock.now >= self.scrub.saved.after(CHECKPOINT_EVERY);
        paced && behind > Lsn(0) && self.replay_start() < behind && behind <= self.growing.lsn
    }
}

/// Whether a header is the segment's that this log knows.
fn is_same(header: &SegmentHeader, known: &SegmentHeader) -> bool {
    header.store == known.store
        && header.shard == known.shard
        && header.node == known.node
        && header.base == known.base
        && header.bytes == known.bytes
        && header.segment_seq == known.segment_seq
        && header.epoch == known.epoch
}
