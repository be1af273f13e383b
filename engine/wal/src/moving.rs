//! Moving live records out of the oldest segment, so that it can be given back.
//!
//! Once for each segment that is begun, and a while after something was let go, the log looks at its oldest segment: which entries
//! of it are live, and how many bytes they are. If they are a quarter or less of what goes with them (the segment, and those right
//! behind it in which nothing is live), they are moved: read, verified, and put at the log's end as the same bytes behind a `Moved`
//! marker. Of more, nothing is moved unless the log is over its budget of bytes, or the disk has little space: then snapshots are asked for
//! first, and after three requests it is moved all the same, if other segments hold nothing and only wait for it: moving what is
//! live everywhere would go on for ever and gain nothing. So space comes back as the low-water marks rise, not all at once when a budget
//! is used up; freeing a segment costs at most a third of what it frees, and moves take at most a third of what the traffic writes;
//! what is cheap is also moved when the log is idle.
//!
//! A move only relocates. Between reading and putting an entry may have been cut or trimmed: it is put only if the lookup
//! still has it, of that generation, in that segment. A crash in between leaves two equal copies, and the later one counts.

use crate::background::{Background, RESIDENT_SEGMENTS};
use crate::blocks::Block;
use crate::error::{Busy, ReadError};
use crate::files::{Files, Piece};
use crate::format::visit_summary;
use crate::places::Place;
use crate::reads::{Purpose, READS_MAX, ReadId, ReadJob, Run};
use crate::reports::WalEvent;
use crate::shape::{Class, Shape};
use crate::spans::EntrySpan;
use crate::wal::Wal;
use bytes::Bytes;
use core::time::Duration;
use std::collections::VecDeque;
use tidelog_io::Io;
use tidelog_types::{
    EntryMeta, Index, Lsn, Monotonic, PartitionId, RecordHeader, RecordKind, Ticket, record,
};

/// Most bytes of one unit of moving.
const MOVE_BYTES_MAX: usize = 128 << 10;
/// Most reads of one unit.
const MOVE_RUNS_MAX: usize = 512;
/// Reads for moving in flight.
const MOVES_READING_MAX: usize = 16;
/// Most ranges of entries that are remembered at once; what is left is found by looking again.
const RANGES_MAX: usize = 1 << 16;
/// Of a segment, the part that may be live to be moved without asking for snapshots.
const MOVED_PART: u64 = 4;
/// Of the traffic's bytes, the part that moves may add.
const TRAFFIC_PART: u64 = 3;
const ALLOWANCE_MAX: u64 = 4 << 20;
/// Requests for snapshots before a fuller segment is moved.
const REQUESTS: u8 = 3;
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The same when nothing came of them.
const ASK_SELDOM: Duration = Duration::from_secs(60);
/// Partitions asked at once.
const ASKED_MAX: usize = 64;
/// Without traffic for so long, the log is idle.
const IDLE_AFTER: Duration = Duration::from_millis(10);

/// Emptying the oldest segment.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    /// The segment.
    base: Option<Lsn>,
    /// How many pieces of its summary were looked at; none more: what to do is decided.
    measured: Option<usize>,
    live_bytes: u64,
    /// Partitions with live entries in it, the first of them.
    holders: Vec<PartitionId>,
    /// Ranges of entries still to be read.
    todo: VecDeque<(PartitionId, Index, Index)>,
    /// Reads for this in flight.
    reading: usize,
    /// Read, and to be put; and their bytes.
    ready: VecDeque<(PartitionId, Run)>,
    ready_bytes: usize,
    /// The log is over its budget, or space is short: what is live in the segment goes also if there is more of it.
    over: bool,
    /// The last look without that: at which segment, the one that was written then, how often anything had been let go, and when the
    /// next one may come for that alone.
    looked: (Lsn, Lsn, u64),
    look_again: Monotonic,
    asked: (Lsn, u8),
    ask_again: Monotonic,
    allowance: u64,
    /// What is moved is worth an idle disk's time.
    cheap: bool,
    traffic_at: Monotonic,
    failed: bool,
    /// What is left in it is not in its summary.
    unsummed: bool,
}

impl Moving {
    /// A batch of the traffic's left.
    pub(crate) fn traffic(&mut self, bytes: u64, now: Monotonic) {
        self.allowance = (self.allowance + bytes / TRAFFIC_PART).min(ALLOWANCE_MAX);
        self.traffic_at = now;
    }

    fn stop(&mut self) {
        self.base = None;
        self.measured = None;
        self.unsummed = false;
        self.live_bytes = 0;
        self.holders.clear();
        self.todo.clear();
        self.ready.clear();
        self.ready_bytes = 0;
    }
}

/// Fewer segments are not worth a look.
const LOOKED_AT_MIN: usize = RESIDENT_SEGMENTS + 2;

/// The segment that should be looked at, and whether it should be emptied although that is not cheap.
fn wanted(
    files: &Files,
    background: &Background,
    active: Lsn,
    over: bool,
    now: Monotonic,
) -> Option<(Lsn, bool)> {
    let (base, oldest) = files.oldest()?;
    if base == active || oldest.holds == 0 || oldest.summary.is_none() {
        return None;
    }
    let moving = &background.moving;
    let waits = moving.asked.0 == base && now < moving.ask_again;
    if over && !waits {
        return Some((base, true));
    }
    // It could not be read a moment ago.
    if waits && moving.asked.1 == 0 {
        return None;
    }
    let news = (moving.looked.0, moving.looked.1) != (base, active)
        || (moving.looked.2 != files.times_let_go() && now >= moving.look_again);
    (news && files.len() >= LOOKED_AT_MIN).then_some((base, false))
}

impl Wal {
    /// Whether something is ready to be put.
    pub(crate) fn has_move(&self) -> bool {
        !self.background.moving.ready.is_empty() && self.may_move()
    }

    fn may_move(&self) -> bool {
        let moving = &self.background.moving;
        let idle = moving.cheap && self.clock.now >= moving.traffic_at.after(IDLE_AFTER);
        moving.allowance > 0 || self.full || idle
    }

    /// When an idle log has something to move. None while the moves find no place: a new segment gives the log its next turn then.
    pub(crate) fn move_at(&self) -> Option<Monotonic> {
        let moving = &self.background.moving;
        let able = moving.cheap && !moving.ready.is_empty() && self.has_place_for_moves();
        able.then(|| moving.traffic_at.after(IDLE_AFTER))
    }

    /// Takes the next steps that need a read, as far as it may.
    pub(crate) fn advance_moves(&mut self, io: &mut dyn Io) {
        while self.advance_move(io) {}
    }

    /// Takes one. False: there is none for now.
    fn advance_move(&mut self, io: &mut dyn Io) -> bool {
        let moving = &self.background.moving;
        if moving.reading >= MOVES_READING_MAX
            || moving.ready_bytes >= MOVE_BYTES_MAX
            || moving.ready.len() >= MOVE_RUNS_MAX
            || self.reads >= READS_MAX / 2
        {
            return false;
        }
        let Some(base) = moving.base else {
            let (active, now) = (self.active.base(), self.clock.now);
            let over = self.is_tight() || self.files.bytes() > self.options.log_bytes_target;
            let steadily = self.options.steady;
            if let Some((base, over)) =
                wanted(&self.files, &self.background, active, over, now).filter(|(_, over)| *over || steadily)
            {
                let let_go = self.files.times_let_go();
                let moving = &mut self.background.moving;
                moving.stop();
                (moving.base, moving.measured, moving.over) = (Some(base), Some(0), over);
                (moving.looked, moving.look_again) = ((base, active, let_go), now.after(ASK_AGAIN));
                self.measure(io, base);
            }
            return false;
        };
        if moving.measured.is_some() {
            if moving.reading == 0 {
                self.measure(io, base);
            }
            return false;
        }
        while let Some((partition, first, last)) = self.background.moving.todo.pop_front() {
            let live = self.partitions.get(partition).and_then(|log| log.find(first));
            if !matches!(live, Some(Place::Segment { segment, .. }) if segment == base) {
                // Cut, trimmed, or moved already: only this one is known to be.
                if first < last {
                    self.background.moving.todo.push_front((partition, first.next(), last));
                }
                continue;
            }
            let bytes_max = MOVE_BYTES_MAX.min(self.message_bytes_max() / 2);
            let mut job = ReadJob::new(ReadId(0), partition, first, last, bytes_max);
            job.purpose = Purpose::Move;
            self.background.moving.reading += 1;
            self.start_read(io, job);
            return self.background.moving.base == Some(base);
        }
        let moving = &mut self.background.moving;
        if moving.reading == 0 && moving.ready.is_empty() {
            moving.stop();
        }
        false
    }

    /// Looks at the pieces of the segment's summary, and decides.
    fn measure(&mut self, io: &mut dyn Io, base: Lsn) {
        while let Some(at) = self.background.moving.measured {
            let Some(file) = self.files.peek(base) else { return self.background.moving.stop() };
            let size = file.end.0 - base.0;
            let pieces = file.summary.as_deref().unwrap_or_default();
            let Some(piece) = pieces.get(at).copied() else {
                return self.decide(base, size);
            };
            let Some(Block::Piece(bytes)) = self.blocks.get(piece.lsn) else {
                let mut job = ReadJob::new(ReadId(0), piece.first, Index(1), Index(1), 1);
                job.purpose = Purpose::Measure;
                self.background.moving.reading += 1;
                return self.read_piece(io, job, piece);
            };
            self.measure_piece(base, &bytes);
            self.background.moving.measured = Some(at + 1);
        }
    }

    fn measure_piece(&mut self, base: Lsn, bytes: &Bytes) {
        let (partitions, moving) = (&self.partitions, &mut self.background.moving);
        let mut take = |id: PartitionId, span: crate::format::SummarySpan| {
            let Some(log) = partitions.get(id) else { return };
            let end = Index(span.first.0 + u64::from(span.count) - 1);
            let (mut index, mut live) = (span.first.max(log.low_water), 0);
            while index <= end {
                index = match log.find(index) {
                    Some(Place::Segment { segment, last }) if segment == base => {
                        let last = last.min(end);
                        live += last.0 + 1 - index.0;
                        let ranges = moving.todo.len();
                        match moving.todo.back_mut() {
                            Some(back) if back.0 == id && back.2.next() == index => back.2 = last,
                            _ if ranges < RANGES_MAX => moving.todo.push_back((id, index, last)),
                            _ => {}
                        }
                        last.next()
                    }
                    Some(Place::Segment { last, .. }) => last.next(),
                    Some(Place::Span(at)) => log.span(at).map_or(index, |s| s.last()).next(),
                    None => break,
                };
            }
            if live > 0 {
                moving.live_bytes += u64::from(span.held) * live / u64::from(span.count);
                if moving.holders.len() < ASKED_MAX && moving.holders.last() != Some(&id) {
                    moving.holders.push(id);
                }
            }
        };
        // It was verified when it was read.
        let _ = visit_summary(bytes, &mut take);
    }

    fn decide(&mut self, base: Lsn, size: u64) {
        let now = self.clock.now;
        let active = self.active.base();
        let waiting = self.files.iter().any(|(b, file)| b != base && b != active && file.holds == 0);
        let tight = self.is_tight();
        let frees = size + self.files.idle_behind(base, active);
        let moving = &mut self.background.moving;
        moving.measured = None;
        if moving.asked.0 != base {
            (moving.asked, moving.ask_again) = ((base, 0), now);
        }
        moving.cheap = moving.live_bytes * MOVED_PART <= frees;
        if moving.todo.is_empty() {
            // What is live there was not to be read when the summary was written: the refs say which entries that is.
            moving.unsummed = true;
            return self.measure_by_refs();
        }
        if moving.cheap || (moving.over && waiting && (moving.asked.1 >= REQUESTS || tight)) {
            tracing::debug!(base = base.0, live = moving.live_bytes, "a segment is emptied");
            return;
        }
        if !moving.over {
            return moving.stop();
        }
        moving.asked.1 = moving.asked.1.saturating_add(1);
        moving.ask_again = now.after(if moving.asked.1 > REQUESTS { ASK_SELDOM } else { ASK_AGAIN });
        let holders = std::mem::take(&mut moving.holders);
        moving.stop();
        self.events.extend(holders.into_iter().map(|partition| WalEvent::SnapshotWanted { partition }));
    }

    /// A read for moving has ended.
    pub(crate) fn read_for_move(
        &mut self,
        purpose: Purpose,
        partition: PartitionId,
        last: Index,
        result: Result<Run, ReadError>,
    ) {
        let moving = &mut self.background.moving;
        moving.reading -= 1;
        if purpose == Purpose::Measure {
            if let Err(error) = result {
                // It cannot be measured: it is moved by what the refs say.
                tracing::warn!(%error, "a segment's summary is bad; what is live in it is found by reading it");
                self.measure_by_refs();
            }
            return;
        }
        match result {
            Ok(run) => {
                if moving.base.is_none() {
                    return; // given up meanwhile
                }
                if run.last < last {
                    moving.todo.push_front((partition, run.last.next(), last));
                }
                moving.ready_bytes += run.bytes;
                moving.ready.push_back((partition, run));
            }
            Err(error) => {
                // Entries that were let go or cut meanwhile are no failure of the disk: the segment is measured again.
                let gone = matches!(error, ReadError::NotHere { .. } | ReadError::Cut);
                if !moving.failed && !gone {
                    tracing::warn!(%partition, %error, "an entry cannot be moved; its segment stays for now");
                }
                // Its replica fetches it; when it is written again, nothing holds the segment any more.
                if let ReadError::Damaged { index: first, through: last, .. } = error
                    && let Some(generation) =
                        self.partitions.get(partition).and_then(|log| log.generation_at(first))
                {
                    self.events.push(WalEvent::Damaged { partition, first, last, generation, error });
                }
                let moving = &mut self.background.moving;
                // Each attempt may read all of the segment.
                let again = if moving.unsummed { ASK_SELDOM } else { ASK_AGAIN };
                moving.failed |= !gone;
                let base = moving.base.unwrap_or_default();
                moving.stop();
                moving.asked = (base, 0);
                moving.ask_again = self.clock.now.after(again);
            }
        }
    }

    /// All ranges that refs have in the segment, without their bytes.
    fn measure_by_refs(&mut self) {
        let moving = &mut self.background.moving;
        let Some(base) = moving.base else { return };
        moving.todo.clear();
        moving.measured = None;
        let ids: Vec<_> = self.partitions.ids().collect();
        for id in ids {
            let Some(log) = self.partitions.get(id) else { continue };
            for r in log.refs.iter().filter(|r| r.segment == base) {
                if let Some(Place::Segment { segment, last }) = log.find(r.first.max(log.low_water))
                    && segment == base
                    && moving.todo.len() < RANGES_MAX
                {
                    moving.todo.push_back((id, r.first.max(log.low_water), last));
                }
            }
        }
    }

    /// Puts what was read at the log's end, into the growing batch, which is empty. False: nothing was put.
    pub(crate) fn put_move(&mut self) -> bool {
        if !self.has_move() {
            return false;
        }
        let base = self.background.moving.base;
        let bytes_max = MOVE_BYTES_MAX.min(self.message_bytes_max() / 2);
        let (mut taken, mut bytes) = (0, 0);
        let mut live = Vec::new();
        for (partition, run) in &self.background.moving.ready {
            if taken > 0 && bytes + run.bytes > bytes_max {
                break;
            }
            taken += 1;
            bytes += run.bytes;
            let Some(log) = self.partitions.get(*partition) else { continue };
            let records = run.pieces.iter().flat_map(|piece| records_in(piece));
            live.extend(
                records
                    .filter(|(header, _)| {
                        log.generation_at(header.index) == Some(header.generation)
                            && matches!(log.find(header.index),
                        Some(Place::Segment { segment, .. }) if Some(segment) == base)
                    })
                    .map(|(header, whole)| (header, Bytes::copy_from_slice(whole))),
            );
        }
        let roll = if self.full { Class::Room } else { Class::Bulk };
        if !live.is_empty() && !self.put_moves(&live, roll) {
            return false;
        }
        let moving = &mut self.background.moving;
        for (_, run) in moving.ready.drain(..taken) {
            moving.ready_bytes -= run.bytes;
        }
        let moved: usize = live.iter().map(|(_, whole)| whole.len()).sum();
        moving.allowance = moving.allowance.saturating_sub(moved as u64);
        moved > 0
    }

    pub(crate) fn put_moves(&mut self, records: &[(RecordHeader, Bytes)], roll: Class) -> bool {
        let marker = self.moved_marker(records.len());
        let shapes = std::iter::once(Shape::of(&marker)).chain(records.iter().map(|(h, _)| Shape::of(h)));
        let Ok(plan) = self.place_rolling(shapes, 1 + records.len(), Class::Bulk, roll) else { return false };
        self.growing.begin(plan);
        self.growing.put_control(&marker);
        for (header, whole) in records {
            self.put_moved(header, whole);
        }
        true
    }

    /// The marker of that many records.
    pub(crate) fn moved_marker(&self, count: usize) -> RecordHeader {
        RecordHeader {
            index: Index(count as u64),
            cluster: self.options.cluster_tag,
            ..RecordHeader::new(RecordKind::Moved, PartitionId(0))
        }
    }

    /// Puts one record behind its marker.
    pub(crate) fn put_moved(&mut self, header: &RecordHeader, whole: &[u8]) {
        let offset = self.growing.put_encoded(whole, Shape::of(header));
        self.growing.not_the_clients(header.payload_len as usize);
        let lsn = self.growing.lsn;
        let log = self.partitions.of(header.partition);
        let len = whole.len() as u32; // a record
        log.relocate(header.position(), lsn.plus(offset as u64), len, lsn, &mut self.files);
        // Copies are no part of a run of entries, nor entries of a run of copies: a bad batch is replayed by its spans.
        log.footer_span = (0, 0);
        let (partition, generation, index) = (header.partition, header.generation, header.index);
        self.growing.span_entry(log, &EntrySpan { partition, generation, index, offset });
        log.footer_span = (0, 0);
        self.stats.moved_records += 1;
        self.stats.moved_bytes += whole.len() as u64;
    }

    /// Writes entries that this log has, by index and generation, at its end again, as they are: what a peer gave back
    /// for a damaged copy. `records` is back to back, each verified by [`RecordHeader::decode_record`]; `metas` are
    /// theirs. Entries that are not in the log any more are left out. Returns how many were taken; the lookup names the
    /// new place at once, and it is durable with the batch ([`Self::growing_batch`], [`Self::durable_batch`]).
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the records are not those of `metas`.
    pub fn append_moved(
        &mut self,
        partition: PartitionId,
        records: &[u8],
        metas: &[EntryMeta],
    ) -> Result<usize, Busy> {
        self.admit(Class::Bulk)?;
        let mut live = Vec::new();
        let mut given = metas.iter();
        for (header, whole) in records_in(records) {
            let meta = given.next().expect("there are as many metas as records");
            assert!(
                header.partition == partition && header.position() == meta.position,
                "the metas are the records'"
            );
            let there = self.partitions.get(partition).is_some_and(|log| {
                log.find(header.index).is_some() && log.generation_at(header.index) == Some(header.generation)
            });
            if there {
                live.push((header, whole));
            }
        }
        assert!(given.next().is_none(), "there are as many records as metas");
        if live.is_empty() {
            return Ok(0);
        }
        let marker = self.moved_marker(live.len());
        let shapes = std::iter::once(Shape::of(&marker)).chain(live.iter().map(|(h, _)| Shape::of(h)));
        let plan = self.place(shapes, 1 + live.len(), Class::Bulk)?;
        self.growing.begin(plan);
        self.growing.put_control(&marker);
        for (header, whole) in &live {
            self.put_moved(header, whole);
        }
        Ok(live.len())
    }

    /// Writes good bytes of entries that the log has, and whose own are damaged, at its end; all of them or none. When the ticket is
    /// durable they are read from there. `records` and `metas` as for [`Self::append_moved`].
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the records are not those of `metas`, an entry is not one of the log's, or the ticket does not rise.
    pub fn append_repair(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        records: &[u8],
        metas: &[EntryMeta],
    ) -> Result<(), Busy> {
        let taken = self.append_moved(partition, records, metas)?;
        assert!(taken == metas.len() && taken > 0, "a repair gives bytes to entries that the log has");
        let log = self.partitions.of(partition);
        self.growing.ticket(partition, log, ticket);
        Ok(())
    }

    /// Number of the batch that what is put now goes into.
    pub fn growing_batch(&self) -> u64 {
        self.growing.seq
    }

    /// Number of the last batch that is durable with all before it.
    pub fn durable_batch(&self) -> u64 {
        self.durable_seq
    }

    /// A piece of a summary was read for measuring, or could not be.
    pub(crate) fn measured_piece(&mut self, piece: Piece, payload: Option<Bytes>) {
        match payload {
            Some(payload) => {
                self.blocks.insert(piece.lsn, Block::Piece(payload));
                self.background.moving.reading -= 1;
            }
            None => {
                self.background.moving.reading -= 1;
                self.summary_is_bad(self.background.moving.base.unwrap_or_default());
                self.measure_by_refs();
            }
        }
    }
}

/// Records that were verified, with their bytes.
fn records_in(bytes: &[u8]) -> impl Iterator<Item = (RecordHeader, &[u8])> {
    record::records(bytes).map_while(|item| {
        let (at, header, _) = item.ok()?;
        Some((header, bytes.get(at..at + header.record_bytes())?))
    })
}
