//! The sequencing half of the log: what goes into the growing batch, and whether it may.
//!
//! The assertions here stand between a mistake above and a lie on the disk: they stay on in release.

use crate::error::{Busy, BusyWhy};
use crate::files::Files;
use crate::growing::{Growing, Plan};
use crate::lookup::PartitionLog;
use crate::segments::RESERVED_SEGMENTS;
use crate::shape::{Class, Shape};
use crate::spans::EntrySpan;
use crate::wal::{HINTS_EVERY, Wal};
use tidelog_types::record::{FLAG_EXTENDED, HEADER_BYTES};
use tidelog_types::{
    EntryMeta, Generation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind, Ticket,
};

/// Most hints in one batch.
const HINTS_MAX: usize = 1024;

impl Wal {
    /// Puts one entry that this node leads into the growing batch: encodes it, copies the payload, and verifies
    /// `header.payload_crc` in the copy.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the entry does not follow the partition's last one, its generation was not promised in this log, the
    /// ticket does not rise, or the payload is not what `header` says: each would make a lie durable. The caller
    /// has verified the payload's checksum before it assigned the index.
    pub fn append_entry(&mut self, ticket: Ticket, header: RecordHeader, payload: &[u8]) -> Result<(), Busy> {
        assert!(header.kind.is_entry(), "only entries are appended");
        assert_eq!(header.payload_len as usize, payload.len(), "the header is the payload's");
        let class = class_of(header.kind, payload.len());
        self.admit(class)?;
        let shape = Shape::of(&header);
        let plan = self.place(std::iter::once(shape), 1, class)?;
        let log = self.partitions.of(header.partition);
        follows(log, header.position(), header.prev_generation);
        self.growing.begin(plan);
        let offset = self.growing.put(&header, payload);
        let lsn = self.growing.lsn;
        let place = lsn.plus(offset as u64);
        log.note(header.position(), place, shape.bytes() as u32, lsn, &mut self.files);
        let span = EntrySpan {
            partition: header.partition,
            generation: header.generation,
            index: header.index,
            offset,
        };
        self.growing.span_entry(log, &span);
        self.growing.ticket(header.partition, log, ticket);
        self.stats.copied_bytes += payload.len() as u64;
        Ok(())
    }

    /// Puts entries received from a leader into the growing batch, bytes as they came; all of them or none.
    /// `records` is back to back, each verified by [`RecordHeader::decode_record`]; `metas` are theirs.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the entries do not follow the partition's last one, are not those of `metas`, their generation was not
    /// promised in this log, or the ticket does not rise.
    pub fn append_records(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        records: &[u8],
        metas: &[EntryMeta],
    ) -> Result<(), Busy> {
        assert!(!metas.is_empty(), "an append has entries");
        let bare = metas
            .iter()
            .zip(Raw(records))
            .all(|(meta, raw)| class_of(meta.kind, raw.shape.payload) == Class::Control);
        // What entries without payload may use of a batch's end is bounded like all control records are.
        let class = if bare { Class::Control } else { Class::Bulk };
        self.admit(class)?;
        let mut runs = 1;
        for pair in metas.windows(2) {
            runs += usize::from(pair[0].position.generation != pair[1].position.generation);
        }
        let plan = self.place(Raw(records).map(|r| r.shape), runs, class)?;
        let log = self.partitions.of(partition);
        self.growing.begin(plan);
        let lsn = self.growing.lsn;
        let mut raw = Raw(records);
        for meta in metas {
            let record = raw.next().expect("there are as many records as metas");
            assert!(
                record.partition == partition.0
                    && record.index == meta.position.index.0
                    && record.generation == meta.position.generation.0,
                "the metas are the records'"
            );
            follows(log, meta.position, meta.prev_generation);
            let offset = self.growing.put_encoded(record.bytes, record.shape);
            let place = lsn.plus(offset as u64);
            log.note(meta.position, place, record.bytes.len() as u32, lsn, &mut self.files);
            let (generation, index) = (meta.position.generation, meta.position.index);
            self.growing.span_entry(log, &EntrySpan { partition, generation, index, offset });
            self.stats.copied_bytes += record.shape.payload as u64;
        }
        assert!(raw.0.is_empty(), "there are as many metas as records");
        self.growing.ticket(partition, log, ticket);
        Ok(())
    }

    /// Puts a promise into the growing batch. There is room for it beside any amount of bulk data.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the generation goes back, or it is a second vote in one generation, or the ticket does not rise.
    pub fn append_promise(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        generation: Generation,
        vote: Option<NodeId>,
    ) -> Result<(), Busy> {
        let header = RecordHeader {
            cluster: self.options.cluster_tag,
            ..RecordHeader::promise(partition, generation, vote)
        };
        self.append_control(ticket, &header, |log, _| {
            assert!(
                generation > log.generation
                    || (generation == log.generation && (log.vote.is_none() || log.vote == vote)),
                "a promise never goes back, and a generation has one vote"
            );
            log.generation = generation;
            log.vote = vote;
        })
    }

    /// Puts a cut into the growing batch: entries above `keep` are gone from here on.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If `keep` is not an entry of the log, or below the partition's high-water mark, or the ticket does not rise.
    pub fn append_cut(&mut self, ticket: Ticket, partition: PartitionId, keep: Position) -> Result<(), Busy> {
        let header = RecordHeader {
            index: keep.index,
            generation: keep.generation,
            cluster: self.options.cluster_tag,
            ..RecordHeader::new(RecordKind::Cut, partition)
        };
        self.append_control(ticket, &header, |log, files| {
            assert!(keep.index <= log.last.index, "a cut keeps an entry of the log");
            assert_eq!(
                log.generation_at(keep.index),
                Some(keep.generation),
                "a cut keeps an entry of the log"
            );
            assert!(keep.index.next() >= log.low_water, "what is not kept any more was never to be cut");
            assert!(keep.index >= log.high_water, "nothing at or below the high-water mark is ever cut");
            log.cut(keep, files);
        })
    }

    /// Puts a low-water mark into the growing batch: entries below `first` are not wanted any more. Their bytes are
    /// given back when the mark is durable.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the mark goes back or beyond the log's end, or the ticket does not rise.
    pub fn append_low_water(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        first: Index,
    ) -> Result<(), Busy> {
        let header = RecordHeader {
            index: first,
            cluster: self.options.cluster_tag,
            ..RecordHeader::new(RecordKind::LowWater, partition)
        };
        self.append_control(ticket, &header, |log, files| {
            assert!(first >= log.low_water, "a low-water mark never goes back (invariant 2)");
            assert!(first <= log.last.index.next(), "a low-water mark is at most behind the last entry");
            log.trim(first, files);
        })
    }

    /// Puts a snapshot's mark into the growing batch: when it is durable, the snapshot counts. The caller has made
    /// the snapshot itself durable and read it back before.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If the mark goes back or names no entry of the log, or the ticket does not rise.
    pub fn append_snapshot_mark(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        covered: Position,
    ) -> Result<(), Busy> {
        let header = RecordHeader {
            index: covered.index,
            generation: covered.generation,
            cluster: self.options.cluster_tag,
            ..RecordHeader::new(RecordKind::SnapshotMark, partition)
        };
        self.append_control(ticket, &header, |log, _| {
            assert!(covered >= log.snapshot, "a snapshot mark never goes back");
            assert!(covered.index <= log.last.index, "a snapshot of this node covers entries of its log");
            log.snapshot = covered;
        })
    }

    fn append_control(
        &mut self,
        ticket: Ticket,
        header: &RecordHeader,
        change: impl FnOnce(&mut PartitionLog, &mut Files),
    ) -> Result<(), Busy> {
        self.admit(Class::Control)?;
        let plan = self.place(std::iter::once(Shape::of(header)), 1, Class::Control)?;
        let log = self.partitions.of(header.partition);
        change(log, &mut self.files);
        self.growing.begin(plan);
        self.growing.put_control(header);
        self.growing.ticket(header.partition, log, ticket);
        Ok(())
    }

    /// Payload bytes of one entry that the growing batch takes for certain.
    pub fn room(&self) -> usize {
        if self.fenced || self.full {
            return 0;
        }
        if self.growing.is_empty() && self.may_roll(Class::Bulk) {
            return self.message_bytes_max().max(self.growing.room());
        }
        self.growing.room()
    }

    /// Record bytes that an empty batch takes for certain, whatever lies before it.
    pub fn message_bytes_max(&self) -> usize {
        Growing::room_of_empty(self.options.batch_bytes_max)
    }

    /// Reads what an append to `partition` touches, so that it is in the processor's caches soon. The sum means nothing.
    pub fn warm(&self, partition: PartitionId) -> u64 {
        self.partitions.get(partition).map_or(0, PartitionLog::warm)
    }

    /// Notes a high-water mark, as far as it lies within the log; it is written as a hint now and then.
    pub fn note_high_water(&mut self, partition: PartitionId, mark: Index) {
        let log = self.partitions.of(partition);
        log.high_water = log.high_water.max(mark.min(log.last.index));
        if log.high_water > log.high_water_written && !log.high_water_dirty {
            log.high_water_dirty = true;
            self.dirty.push_back(partition);
        }
    }

    pub(crate) fn admit(&self, class: Class) -> Result<(), Busy> {
        match class {
            _ if self.fenced => Err(Busy { why: BusyWhy::Fenced, room: 0 }),
            Class::Bulk if self.full => Err(Busy { why: BusyWhy::Space, room: 0 }),
            _ => Ok(()),
        }
    }

    /// Whether what is left of segments is for this class: bulk data leaves one for control records, and for the next life, which
    /// begins with a segment of its own on a disk that may be full.
    pub(crate) fn may_roll(&self, class: Class) -> bool {
        let least = match class {
            // On a disk that is full, or nearly, a spare may not be made any more: the next two lives' first segments are kept as well.
            Class::Bulk if self.is_tight() => 1 + RESERVED_SEGMENTS,
            Class::Bulk => 2,
            // A move may turn out to make no room: one segment is left for votes and the next life.
            Class::Room => RESERVED_SEGMENTS,
            Class::Control => 1,
        };
        self.segments.next.is_some() && self.segments.ready() >= least
    }

    /// A place in the growing batch, which moves on to the next segment if it is empty and this one is full.
    pub(crate) fn place(
        &mut self,
        shapes: impl Iterator<Item = Shape> + Clone,
        spans: usize,
        class: Class,
    ) -> Result<Plan, Busy> {
        self.place_rolling(shapes, spans, class, class)
    }

    /// The same, where the right to the next segment may be another one than that to the batch's last bytes.
    pub(crate) fn place_rolling(
        &mut self,
        shapes: impl Iterator<Item = Shape> + Clone,
        spans: usize,
        class: Class,
        roll: Class,
    ) -> Result<Plan, Busy> {
        if let Some(plan) = self.growing.plan(shapes.clone(), spans, class) {
            return Ok(plan);
        }
        let mut why = BusyWhy::Batch;
        if self.growing.is_empty() && self.growing.limit() < self.options.batch_bytes_max {
            if self.may_roll(roll) && self.roll() {
                if let Some(plan) = self.growing.plan(shapes, spans, class) {
                    return Ok(plan);
                }
            } else {
                why = BusyWhy::Segment;
            }
        }
        self.background.crowded = self.background.in_batch;
        Err(Busy { why, room: self.room() })
    }

    pub(crate) fn add_hints(&mut self) {
        self.hints_at = self.clock.now.after(HINTS_EVERY);
        for _ in 0..HINTS_MAX.min(self.dirty.len()) {
            let Some(&partition) = self.dirty.front() else { break };
            let Some(log) = self.partitions.get(partition) else { break };
            // Never a mark above what the log holds before it.
            let mark = log.high_water.min(log.last.index);
            let header = RecordHeader {
                index: mark,
                cluster: self.options.cluster_tag,
                ..RecordHeader::new(RecordKind::HighWater, partition)
            };
            let Ok(plan) = self.place(std::iter::once(Shape::of(&header)), 1, Class::Bulk) else { break };
            self.growing.begin(plan);
            self.growing.put_control(&header);
            self.dirty.pop_front();
            if let Some(log) = self.partitions.get_mut(partition) {
                log.high_water_written = mark;
                log.high_water_dirty = false;
            }
        }
    }
}

/// Entries without which a full node could not lead or become less full are written like promises.
fn class_of(kind: RecordKind, payload_bytes: usize) -> Class {
    if kind.has_reserved_space() && payload_bytes == 0 { Class::Control } else { Class::Bulk }
}

/// An entry comes behind the last one, in a generation that this log has promised.
fn follows(log: &PartitionLog, position: Position, prev_generation: Generation) {
    assert_eq!(
        position.index,
        log.last.index.next(),
        "a gap in the log is taken for a lost batch when it is opened"
    );
    assert_eq!(prev_generation, log.last.generation, "an entry names the one before it");
    assert!(position.generation >= log.last.generation, "generations do not fall within a log");
    assert!(
        position.generation <= log.generation,
        "a generation is promised in the log before its first entry"
    );
}

/// Walks over records that were verified already.
#[derive(Clone)]
struct Raw<'a>(&'a [u8]);

struct RawRecord<'a> {
    bytes: &'a [u8],
    shape: Shape,
    partition: u64,
    index: u64,
    generation: u64,
}

impl<'a> Raw<'a> {
    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }
}

impl<'a> Iterator for Raw<'a> {
    type Item = RawRecord<'a>;
    fn next(&mut self) -> Option<RawRecord<'a>> {
        let payload = u32::from_le_bytes(*self.0.get(8..)?.first_chunk()?) as usize;
        let flags = u16::from_le_bytes(*self.0.get(14..)?.first_chunk()?);
        let extended = flags & FLAG_EXTENDED != 0;
        let head = HEADER_BYTES * if extended { 2 } else { 1 };
        let shape = Shape { head, payload };
        let (partition, index, generation) = (self.u64(16)?, self.u64(24)?, self.u64(32)?);
        let (bytes, rest) = self.0.split_at_checked(shape.bytes())?;
        self.0 = rest;
        Some(RawRecord { bytes, shape, partition, index, generation })
    }
}
