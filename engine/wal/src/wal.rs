//! One shard's log while it runs: sequencing, group commit, durability, seals, fencing.
//!
//! Everything that goes into the log is put into the growing batch; [`Wal::flush`] submits it when fewer batches
//! are in flight than allowed, as one durable write. A batch is reported durable after all batches before it.
//! Any error of a batch's write, or of the device while segments are made, fences the log: nothing is reported
//! any more, and only opening it again goes on.

use crate::background::Background;
use crate::blocks::Blocks;
use crate::cache::TailCache;
use crate::error::WalError;
use crate::files::Files;
use crate::format::FLAG_SEAL;
use crate::frozen::{Frozen, Identity, Link};
use crate::growing::Growing;
use crate::logs::Logs;
use crate::options::Options;
use crate::reads::ReadJob;
use crate::reports::{Closed, Stats, WalEvent};
use crate::scrub::Scrub;
use crate::segments::{Segment, Segments, Step};
use crate::shape::Class;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use tidelog_io::{Completion, Io, IoErrorKind, Op, Output, Space, Token, Wait};
use tidelog_types::{Clock, Generation, Index, Lsn, Monotonic, PartitionId, Position, Ticket};

/// Time between two writings of high-water hints.
pub(crate) const HINTS_EVERY: Duration = Duration::from_millis(100);
/// When a seal found no place: time to the next attempt.
const SEAL_RETRY: Duration = Duration::from_millis(100);
/// How long a log that is closed waits for reads that nobody wants any more.
const READS_WAIT_MAX: Duration = Duration::from_secs(1);
/// Wake-ups without a completion that [`Wal::close`] puts up with.
const SPURIOUS_MAX: u32 = 10_000;

/// Appends what the shard saves of a partition.
type Save<'s> = dyn FnMut(PartitionId, &mut Vec<u8>) + 's;

/// What an operation of ours was.
#[derive(Debug)]
pub(crate) enum Pending {
    Batch(u64),
    Making,
    Read(ReadJob),
    OpenForRead(ReadJob),
    /// A part of a checkpoint is read back.
    Verify,
    /// The file of a segment whose header has a bad copy is opened; the copy is written.
    OpenHead,
    WriteHead,
    Closing,
}

impl Pending {
    /// Whether it changes nothing on the disk.
    const fn is_read(&self) -> bool {
        matches!(self, Pending::Read(_) | Pending::OpenForRead(_) | Pending::Verify)
    }
}

#[derive(Debug)]
struct InFlight {
    seq: u64,
    end: Lsn,
    /// Where it lies: for errors.
    lsn: Lsn,
    submitted: Monotonic,
    /// Since when its first record waits.
    begun: Monotonic,
    tickets: Vec<(PartitionId, Ticket)>,
    done: bool,
}

/// One shard's log.
#[derive(Debug)]
pub struct Wal {
    pub(crate) options: Options,
    pub(crate) epoch: u64,
    pub(crate) partitions: Logs,
    pub(crate) growing: Growing,
    pub(crate) active: Segment,
    pub(crate) segments: Segments,
    pub(crate) files: Files,
    pub(crate) link: Link,
    pub(crate) durable: Lsn,
    /// Number of the last batch before that.
    pub(crate) durable_seq: u64,
    pub(crate) cache: TailCache,
    /// Span blocks of old segments.
    pub(crate) blocks: Blocks,
    pub(crate) background: Background,
    pub(crate) scrub: Scrub,
    in_flight: VecDeque<InFlight>,
    /// Since when the growing batch holds anything, to a turn.
    growing_since: Option<Monotonic>,
    /// What the last batch's write took.
    last_write: Duration,
    ops: BTreeMap<u64, Pending>,
    next_op: u64,
    pub(crate) reads: usize,
    /// Whether a read is going through a whole segment.
    pub(crate) rescanning: bool,
    /// Partitions whose mark is to be written.
    pub(crate) dirty: VecDeque<PartitionId>,
    pub(crate) hints_at: Monotonic,
    /// Whether nothing unproven lies before the end.
    pub(crate) sealed: bool,
    pub(crate) seal_at: Monotonic,
    pub(crate) clock: Clock,
    pub(crate) full: bool,
    pub(crate) no_space: bool,
    /// What the file system says of its space.
    pub(crate) space: Option<Space>,
    /// Entries are refused until then: a batch found no space a moment ago.
    pub(crate) doubted_until: Monotonic,
    pub(crate) fenced: bool,
    pub(crate) events: Vec<WalEvent>,
    pub(crate) stats: Stats,
}

impl Wal {
    /// A log about to be written at the start of `active`.
    pub(crate) fn new(
        options: Options,
        epoch: u64,
        growing: Growing,
        active: Segment,
        segments: Segments,
        link: Link,
        clock: Clock,
    ) -> Wal {
        let cache = TailCache::new(options.cache_bytes_max);
        let mut wal = Wal {
            options,
            epoch,
            partitions: Logs::default(),
            durable: growing.lsn,
            durable_seq: growing.seq.saturating_sub(1),
            growing,
            active,
            segments,
            files: Files::default(),
            link,
            cache,
            blocks: Blocks::default(),
            background: Background::default(),
            scrub: Scrub::default(),
            in_flight: VecDeque::new(),
            growing_since: None,
            last_write: Duration::ZERO,
            ops: BTreeMap::new(),
            // Tokens of an earlier life on the same ring must not be taken for ours.
            next_op: (epoch & 0xffff) << 40,
            reads: 0,
            rescanning: false,
            dirty: VecDeque::new(),
            hints_at: clock.now.after(HINTS_EVERY),
            sealed: false,
            seal_at: clock.now,
            clock,
            full: false,
            no_space: false,
            space: None,
            doubted_until: Monotonic::default(),
            fenced: false,
            events: Vec::new(),
            stats: Stats::default(),
        };
        // The first pass is due at once, not since the machine was started.
        wal.scrub.next_at = clock.now;
        let first = wal.active.clone();
        wal.activate(first);
        wal
    }

    /// Submits the growing batch if fewer than `in_flight_max` are in flight. Called at the end of every turn.
    pub fn flush(&mut self, io: &mut dyn Io) {
        self.flush_or_save(io, None);
    }

    /// Like [`Self::flush`], and begins a checkpoint if one is due. `save` appends a partition's state, as
    /// [`crate::Replay::checkpoint`] is to be given it; it must be the state behind everything that this log has been
    /// handed, so no partition may have steps that it has not handed over.
    pub fn flush_saving(&mut self, io: &mut dyn Io, save: &mut dyn FnMut(PartitionId, &mut Vec<u8>)) {
        self.flush_or_save(io, Some(save));
    }

    fn flush_or_save(&mut self, io: &mut dyn Io, save: Option<&mut Save<'_>>) {
        self.clock = io.clock();
        if self.fenced {
            return;
        }
        if self.is_ready() {
            if self.clock.now >= self.hints_at {
                self.add_hints();
            }
            self.submit(io, 0);
        }
        if self.growing.is_empty() {
            if let Some(save) = save
                && self.checkpoint_due()
            {
                self.begin_checkpoint(save);
            }
            // At the front of the next batch: behind bulk data there might never be room.
            self.put_background();
            if self.may_submit() && !self.growing.is_empty() {
                self.submit(io, 0);
            }
        }
        if !self.growing.is_empty() {
            self.growing_since.get_or_insert(self.clock.now);
        }
        self.weigh_space();
        self.advance_demotion();
        self.verify_checkpoint(io);
        self.advance_moves(io);
        self.reclaim();
        self.close_cold(io);
        self.make_segments(io);
        self.advance_scrub(io);
        self.advance_heads(io);
        self.advance_resum(io);
    }

    fn may_submit(&self) -> bool {
        self.in_flight.len() < self.options.in_flight_max
    }

    /// Last index of the partition that is in a submitted batch: it may be sent to peers.
    pub fn sequenced(&self, partition: PartitionId) -> Index {
        self.partitions.get(partition).map_or(Index::ZERO, |log| log.sequenced)
    }

    /// The partition's last entry, sequenced or not.
    pub fn last(&self, partition: PartitionId) -> Position {
        self.partitions.get(partition).map_or(Position::ZERO, |log| log.last)
    }

    /// The generation of an entry; zero before the first; none above the last.
    pub fn generation_at(&self, partition: PartitionId, index: Index) -> Option<Generation> {
        match self.partitions.get(partition) {
            Some(log) => log.generation_at(index),
            None => (index == Index::ZERO).then_some(Generation::ZERO),
        }
    }

    /// The number of this opening.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether a write or a sync failed.
    pub const fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether no operation of this log is in flight any more.
    pub fn is_drained(&self) -> bool {
        self.ops.is_empty()
    }

    /// Since when the oldest record waits that is not durable: a disk that stalls without an error shows here, and one that is so slow that
    /// a batch grows for long while the one before it is written.
    pub fn writing_since(&self) -> Option<Monotonic> {
        self.in_flight.front().map(|b| b.begun).or(self.growing_since)
    }

    /// Whether [`Self::flush`] would submit a batch.
    pub fn is_ready(&self) -> bool {
        !self.fenced && !self.growing.is_empty() && self.in_flight.len() < self.options.in_flight_max
    }

    /// Bytes of records that the next batch holds so far.
    pub fn growing_bytes(&self) -> usize {
        self.growing.bytes()
    }

    /// From submission to completion of the batch that completed last.
    pub const fn last_write(&self) -> Duration {
        self.last_write
    }

    /// Counters and levels.
    pub fn stats(&self) -> Stats {
        Stats {
            segments: self.files.len(),
            spares: self.segments.ready(),
            in_flight: self.in_flight.len(),
            reads: self.reads,
            cache_bytes: self.cache.held(),
            ..self.stats
        }
    }

    /// Takes a completion of this log's; those of an earlier life are ignored.
    pub fn complete(&mut self, io: &mut dyn Io, completion: Completion, events: &mut Vec<WalEvent>) {
        self.clock = io.clock();
        if let Some(pending) = self.ops.remove(&completion.token.value) {
            match pending {
                Pending::Batch(seq) => self.written(seq, completion.result.map(|_| ()), events),
                Pending::Making => self.made(io, completion.result),
                Pending::Read(job) => self.read_done(io, job, completion.result),
                Pending::OpenForRead(job) => self.opened_for_read(io, job, completion.result),
                Pending::Verify => self.verified(io, completion.result),
                Pending::OpenHead => self.head_opened(io, completion.result),
                Pending::WriteHead => self.head_written(io, completion.result),
                Pending::Closing => {}
            }
        }
        events.append(&mut self.events);
    }

    /// Lets time pass: seals, hints, retries.
    pub fn tick(&mut self, io: &mut dyn Io, events: &mut Vec<WalEvent>) {
        self.clock = io.clock();
        if !self.fenced {
            let hints = !self.dirty.is_empty() && self.clock.now >= self.hints_at;
            let seal = !self.sealed && self.clock.now >= self.seal_at;
            if self.is_idle() && (hints || seal) {
                self.seal(io);
            }
            self.weigh_space();
            self.reclaim();
            self.make_segments(io);
        }
        events.append(&mut self.events);
    }

    /// When [`Self::tick`] is wanted next.
    pub fn deadline(&self) -> Option<Monotonic> {
        if !self.events.is_empty() {
            return Some(self.clock.now);
        }
        if self.fenced {
            return None;
        }
        let idle = self.is_idle();
        if idle && self.has_background() {
            return Some(self.clock.now);
        }
        let moves = if idle { self.move_at() } else { None };
        let seal = (idle && !self.sealed).then_some(self.seal_at);
        let hints = (idle && !self.dirty.is_empty()).then_some(self.hints_at.max(self.seal_at));
        [seal, hints, moves, self.segments.retry_at(), self.scrub_at(), self.doubt_ends()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Writes what is left, seals, and waits for everything in flight; a fenced log only waits.
    pub fn close(&mut self, io: &mut dyn Io) -> Closed {
        let mut closed = Closed { events: Vec::new(), others: Vec::new() };
        loop {
            self.clock = io.clock();
            if !self.fenced {
                if self.in_flight.is_empty() && !self.growing.is_empty() {
                    self.add_hints();
                    self.submit(io, 0);
                } else if self.is_idle() && (!self.sealed || !self.dirty.is_empty()) && !self.seal(io) {
                    break; // no place for it: the last batch stays unproven, which is only less comfortable
                }
            }
            let busy = !self.fenced && (!self.in_flight.is_empty() || !self.growing.is_empty());
            if !busy || !self.wait(io, &mut closed) {
                break;
            }
        }
        self.fenced = true; // whatever comes now is too late
        // A read may take as long as a disk pleases, and nobody wants it any more. Its buffer belongs to the ring until it ends, and its token
        // to no later life; a write is waited for.
        let until = io.clock().now.after(READS_WAIT_MAX);
        while !self.ops.is_empty() {
            let reads_only = self.ops.values().all(Pending::is_read);
            let more = match reads_only {
                true => self.wait_until(io, &mut closed, until),
                false => self.wait(io, &mut closed),
            };
            if !more {
                break;
            }
        }
        if self.ops.values().any(Pending::is_read) {
            tracing::warn!(reads = self.ops.len(), "reads that do not end are left to the disk");
            self.ops.retain(|_, pending| !pending.is_read());
        }
        let files: Vec<_> = self.files.close_all().into_iter().chain(self.segments.files()).collect();
        for file in files {
            let token = self.op(Pending::Closing);
            io.submit(token, Op::CloseFile { file });
        }
        // A file that is still read is closed when that ends.
        let until = io.clock().now.after(READS_WAIT_MAX);
        while !self.ops.is_empty() && self.wait_until(io, &mut closed, until) {}
        self.ops.clear();
        closed
    }

    /// Waits for a completion; false: none came until then.
    fn wait_until(&mut self, io: &mut dyn Io, closed: &mut Closed, until: Monotonic) -> bool {
        let mut got = Vec::new();
        while io.poll(Wait::Until(until), &mut got) == 0 {
            if io.clock().now >= until {
                return false;
            }
        }
        self.take_in(io, closed, got);
        true
    }

    fn wait(&mut self, io: &mut dyn Io, closed: &mut Closed) -> bool {
        let mut got = Vec::new();
        let mut spurious = 0;
        while io.poll(Wait::Forever, &mut got) == 0 {
            spurious += 1;
            if spurious > SPURIOUS_MAX {
                return false;
            }
        }
        self.take_in(io, closed, got);
        true
    }

    fn take_in(&mut self, io: &mut dyn Io, closed: &mut Closed, got: Vec<Completion>) {
        for completion in got {
            if self.ops.contains_key(&completion.token.value)
                && completion.token.class == tidelog_io::TokenClass::Wal
            {
                self.complete(io, completion, &mut closed.events);
            } else {
                closed.others.push(completion);
            }
        }
    }

    /// Nothing waits for the disk.
    pub(crate) fn is_idle(&self) -> bool {
        self.growing.is_empty() && self.in_flight.is_empty()
    }

    /// Moves on to the next segment, if it is ready.
    pub(crate) fn roll(&mut self) -> bool {
        let Some(next) = self.segments.roll() else { return false };
        self.growing.place_at(next.header.start(), 0);
        self.activate(next);
        true
    }

    /// Makes `segment` the one that is written.
    pub(crate) fn activate(&mut self, segment: Segment) {
        self.files.insert(&segment.header, segment.path.clone(), Some(segment.file));
        self.background.activated(segment.base());
        self.active = segment;
        self.retarget();
    }

    /// Tells the growing batch, which is empty, how long it may be.
    pub(crate) fn retarget(&mut self) {
        let lsn = self.growing.lsn;
        let left = self.active.header.end().0 - lsn.0;
        self.growing.place_at(lsn, (left as usize).min(self.options.batch_bytes_max));
    }

    /// Freezes the growing batch; returns it with its write.
    pub(crate) fn freeze(&mut self, flags: u32) -> (Frozen, Op) {
        let identity = Identity {
            store: self.options.store,
            segment_seq: self.active.header.segment_seq,
            epoch: self.epoch,
            durable: self.durable,
            checkpoints: self.background.named(),
            wall: self.clock.wall,
        };
        for partition in self.growing.touched() {
            if let Some(log) = self.partitions.get_mut(partition) {
                log.sequenced = log.last.index;
            }
        }
        let frozen = self.growing.freeze(&identity, self.link, flags);
        self.background.in_batch = false;
        if frozen.link.lsn == self.active.header.start() {
            self.background.segment_names = identity.checkpoints.0;
        }
        if self.background.named_by.0 != identity.checkpoints {
            self.background.named_by = (identity.checkpoints, frozen.link.seq);
        }
        self.link = frozen.link;
        self.cache.insert(&frozen, self.durable);
        self.stats.batches += 1;
        self.stats.records += u64::from(frozen.records);
        self.stats.bytes += frozen.bytes;
        self.stats.payload_bytes += frozen.payload_bytes;
        self.stats.seals += u64::from(flags & FLAG_SEAL != 0);
        let op = Op::WriteDurable {
            file: self.active.file,
            offset: frozen.link.lsn.0 - self.active.base().0,
            data: frozen.pieces.iter().map(|p| p.1.clone()).collect(),
        };
        self.retarget();
        (frozen, op)
    }

    fn submit(&mut self, io: &mut dyn Io, flags: u32) {
        let (frozen, op) = self.freeze(flags);
        self.in_flight.push_back(InFlight {
            seq: frozen.link.seq,
            end: frozen.end(),
            lsn: frozen.link.lsn,
            submitted: self.clock.now,
            begun: self.growing_since.take().unwrap_or(self.clock.now),
            tickets: frozen.tickets,
            done: false,
        });
        if self.in_flight.back().is_some_and(|b| !b.tickets.is_empty()) {
            self.background.moving.traffic(frozen.bytes, self.clock.now);
        }
        self.sealed = flags & FLAG_SEAL != 0;
        let token = self.op(Pending::Batch(frozen.link.seq));
        io.submit(token, op);
    }

    /// Writes an empty batch, or one of hints, that proves what lies before it. False: there is no place for it.
    fn seal(&mut self, io: &mut dyn Io) -> bool {
        self.add_hints();
        // What is kept for later lives is not for a seal, unless a segment is given back when it names a checkpoint.
        let makes_room = self.full && self.waits_for_names();
        let class = if self.is_tight() && !makes_room { Class::Bulk } else { Class::Control };
        let rolls = self.may_roll(class);
        if self.growing.is_empty() && !self.growing.takes_seal() && !(rolls && self.roll()) {
            self.seal_at = self.clock.now.after(SEAL_RETRY);
            return false;
        }
        self.submit(io, FLAG_SEAL);
        true
    }

    pub(crate) fn op(&mut self, pending: Pending) -> Token {
        let value = self.next_op;
        self.next_op += 1;
        self.ops.insert(value, pending);
        Token::wal(value)
    }

    fn make_segments(&mut self, io: &mut dyn Io) {
        if let Some(op) = self.segments.operation(self.clock.now) {
            let token = self.op(Pending::Making);
            io.submit(token, op);
        }
    }

    fn made(&mut self, io: &mut dyn Io, result: Result<Output, tidelog_io::IoError>) {
        if self.fenced {
            if let Ok(Output::Opened { file, .. }) = result {
                let token = self.op(Pending::Closing);
                io.submit(token, Op::CloseFile { file });
            }
            return;
        }
        match self.segments.done(result, self.clock.now) {
            Step::On => {}
            Step::NoSpace(error) => {
                if !self.no_space {
                    tracing::warn!(dir = %self.options.dir.display(), %error, "no space for a spare segment");
                }
                self.no_space = true;
            }
            Step::Failed(error) => return self.fence(error),
        }
        let taken = self.segments.taken();
        if let Some(space) = &mut self.space {
            // Until the file system says otherwise.
            space.free_bytes = space.free_bytes.saturating_sub(taken);
        }
        self.weigh_space();
        self.make_segments(io);
    }

    fn written(&mut self, seq: u64, result: Result<(), tidelog_io::IoError>, events: &mut Vec<WalEvent>) {
        if self.fenced {
            return;
        }
        let Some(batch) = self.in_flight.iter_mut().find(|b| b.seq == seq) else { return };
        if let Err(mut error) = result {
            // The end of the space, if the file system says that there is next to none.
            let scarce = self.space.is_some_and(|space| space.free_bytes < self.options.segment_bytes);
            if error.kind == IoErrorKind::ShortWrite && scarce {
                error.kind = IoErrorKind::NoSpace;
            }
            let lsn = batch.lsn;
            let base = self.files.holding(lsn).map_or(lsn, |(base, _)| base);
            let file = self.files.get(base).map(|f| f.path.clone()).unwrap_or_default();
            return self.fence(WalError { file, offset: lsn.0 - base.0, what: "writing a batch", error });
        }
        batch.done = true;
        self.last_write = self.clock.now.since(batch.submitted);
        self.stats.syncs += 1;
        while self.in_flight.front().is_some_and(|b| b.done)
            && let Some(batch) = self.in_flight.pop_front()
        {
            assert!(batch.end > self.durable, "batches become durable in order");
            self.durable = batch.end;
            self.durable_seq = batch.seq;
            events.extend(
                batch.tickets.iter().map(|&(partition, ticket)| WalEvent::Durable { partition, ticket }),
            );
            self.growing.recycle(batch.tickets);
        }
        self.segments.note_durable(self.durable);
        self.settle_background();
        if self.is_idle() {
            self.seal_at = self.clock.now.after(self.options.seal_after);
        }
    }

    fn fence(&mut self, error: WalError) {
        if error.error.kind == IoErrorKind::NoSpace {
            tracing::warn!(%error, "no space for a batch: what of it is on the disk is not known, so the log is opened again");
        } else {
            tracing::error!(%error, "the log is fenced");
        }
        self.fenced = true;
        self.in_flight.clear();
        self.events.push(WalEvent::Fenced { error });
    }
}
