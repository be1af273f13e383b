//! Leaving recovery: the new epoch's first segment, and in it what the last life could not prove.

use crate::disk::Disk;
use crate::error::{Finding, OpenError, Verdict};
use crate::format::{BatchHeader, FLAG_DONE, FLAG_OPEN, SegmentHeader};
use crate::growing::{Growing, Plan};
use crate::names;
use crate::places::{LookupSpan, Place};
use crate::recovery::{Judged, Opening, Tail};
use crate::replay::State;
use crate::salvage::{Piece as Part, What, lost_copies_record, lost_of, lost_record};
use crate::scan::{Source, records_of};
use crate::segments::{RESERVED_SEGMENTS, Segments, Spare, Step};
use crate::shape::{Class, Shape};
use crate::spans::EntrySpan;
use crate::wal::Wal;
use crate::window::Window;
use std::collections::{BTreeSet, VecDeque};
use tidelog_io::{IoError, OpenMode, Output};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Generation, Index, Lsn, NodeId, PartitionId, Position, RecordHeader, RecordKind};

/// A batch whose content is written again.
enum Again {
    Good(BatchHeader),
    Bad(Vec<Part>),
}

impl Opening<'_, '_> {
    /// Makes the new epoch's first segment, and the log on it.
    pub(crate) fn begin_epoch(
        &mut self,
        disk: &mut Disk<'_>,
        spares: &[u64],
        sources: &[Source],
        judged: &Judged,
        state: &State,
    ) -> Result<Wal, OpenError> {
        // A checkpoint's segments are older than those that were read.
        let headers = || sources.iter().map(|s| s.header);
        let epoch = 1 + headers().map(|h| h.epoch).max().unwrap_or(0);
        self.report.epoch = epoch;
        let ends = state.files.iter().map(|(_, file)| file.end).chain(headers().map(|h| h.end()));
        let upcoming = SegmentHeader {
            shard: self.options.shard,
            store: self.options.store,
            node: self.options.node,
            segment_seq: 1 + headers().map(|h| h.segment_seq).max().unwrap_or(0),
            // Behind what is left over, too: it is still there.
            base: ends.max().unwrap_or(Lsn(0)),
            bytes: self.options.segment_bytes,
            epoch,
            prev_epoch_end: judged.end,
            recycled: false,
            durable: Lsn(0),
            footers_apart: true,
        };
        let mut free = VecDeque::new();
        let mut spare_number = 1;
        for &number in spares {
            spare_number = spare_number.max(number + 1);
            let path = self.options.dir.join(names::spare(number));
            let (file, bytes) = disk.open(&path, OpenMode::ReadWrite)?;
            if bytes == self.options.segment_bytes && free.len() <= self.options.spares.max(RESERVED_SEGMENTS)
            {
                // A segment's header is left in a file that was one.
                let mut window = Window::new(file, bytes);
                let recycled = window.view(disk, 0, PAGE_BYTES)?.iter().any(|b| *b != 0);
                free.push_back(Spare { file, path, recycled });
            } else {
                disk.close(file)?;
                self.remove(disk, &path)?;
            }
        }
        let (pool, clock) = (disk.buffers(), disk.clock());
        let dir = self.options.dir.clone();
        let mut segments =
            Segments::new(dir.clone(), pool.clone(), upcoming, self.options.spares, free, spare_number);
        if let Some(error) = self.make_all(disk, &mut segments, true)? {
            return Err(OpenError::NoSpace { dir, segment_bytes: self.options.segment_bytes, error });
        }
        let Some(active) = segments.roll() else {
            return Err(OpenError::Missing { dir, lsn: upcoming.base });
        };
        let growing = Growing::new(pool, upcoming.start(), judged.link.seq + 1);
        Ok(Wal::new(self.options.clone(), epoch, growing, active, segments, judged.link, clock))
    }

    /// Runs the making of segments to completion: of the next one only, or of all. Returns the error if there is
    /// no space for all.
    pub(crate) fn make_all(
        &mut self,
        disk: &mut Disk<'_>,
        segments: &mut Segments,
        next_only: bool,
    ) -> Result<Option<IoError>, OpenError> {
        let mut full = None;
        while !(next_only && segments.next.is_some()) {
            let now = disk.clock().now;
            let Some(op) = segments.operation(now) else { break };
            let result = disk.run(op);
            if let Ok(Output::Opened { file, .. }) = &result {
                disk.adopt(*file);
            }
            match segments.done(result, now) {
                Step::On => {}
                Step::NoSpace(error) => full = Some(error),
                Step::Failed(error) => return Err(OpenError::Io(error.error)),
            }
        }
        Ok(full.filter(|_| !(next_only && segments.next.is_some())))
    }

    /// Writes the accepted window and the adopted promises to the new epoch, and DONE.
    pub(crate) fn rewrite(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        judged: &mut Judged,
    ) -> Result<(), OpenError> {
        let mut batches = Vec::new();
        for held in std::mem::take(&mut judged.window) {
            let (source, header) = match held.what {
                Tail::Bad { bytes, parts, .. } => {
                    batches.push((bytes, Again::Bad(parts)));
                    continue;
                }
                Tail::Good(source, header) => (source, header),
            };
            let (file, bytes) = disk.open(&source.path, OpenMode::Read)?;
            let mut window = Window::new(file, bytes);
            let view = window.view(disk, source.offset(header.lsn), header.total_len as usize)?;
            let bytes = view.to_vec();
            disk.close(file)?;
            if let Err(why) = crate::scan::check_records(&bytes, &header) {
                return Err(OpenError::Damaged(Box::new(Finding {
                    verdict: Verdict::Suspect,
                    file: source.path.clone(),
                    offset: source.offset(header.lsn),
                    lsn: header.lsn,
                    epoch: header.epoch,
                    bytes: u64::from(header.total_len),
                    why,
                    spans: Vec::new(),
                    quarantined: None,
                })));
            }
            batches.push((bytes, Again::Good(header)));
        }
        // Entries are forgotten from where the window begins to say something about them, and noted again.
        let mut before = Vec::new();
        let mut rewound = BTreeSet::new();
        for (bytes, again) in &batches {
            let mut rewind =
                |partition: PartitionId, index: Index, generation: Option<Generation>, wal: &mut Wal| {
                    let Some(log) = wal.partitions.get_mut(partition) else { return };
                    if rewound.insert(partition) {
                        before.push((partition, log.last));
                        let generation = generation.or_else(|| log.generation_at(index)).unwrap_or_default();
                        log.cut(Position::new(index, generation), &mut wal.files);
                    }
                };
            match again {
                Again::Good(header) => {
                    let mut moved = 0;
                    for (_, record, _, _) in records_of(bytes, header) {
                        match record.kind {
                            RecordKind::Moved => moved = record.index.0,
                            kind if kind.is_entry() && moved > 0 => moved -= 1,
                            RecordKind::Cut => {
                                rewind(record.partition, record.index, Some(record.generation), wal);
                            }
                            RecordKind::Lost => rewind(record.partition, record.index.prev(), None, wal),
                            kind if kind.is_entry() => {
                                let before = Some(record.prev_generation);
                                rewind(record.partition, record.index.prev(), before, wal);
                            }
                            _ => {}
                        }
                    }
                }
                Again::Bad(parts) => {
                    for part in parts {
                        match &part.what {
                            What::Entry { record, moved: false, .. } => {
                                let before = Some(record.prev_generation);
                                rewind(part.partition, record.index.prev(), before, wal);
                            }
                            What::Lost { first, moved: false, .. } => {
                                rewind(part.partition, first.prev(), None, wal);
                            }
                            What::Control(record) if record.kind == RecordKind::Cut => {
                                rewind(part.partition, record.index, Some(record.generation), wal);
                            }
                            What::Control(record) if record.kind == RecordKind::Lost => {
                                rewind(part.partition, record.index.prev(), None, wal);
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
        for (bytes, again) in &batches {
            let header = match again {
                Again::Bad(parts) => {
                    for part in parts {
                        self.put_part(disk, wal, bytes, part)?;
                        self.report.rewritten += 1;
                    }
                    continue;
                }
                Again::Good(header) => header,
            };
            let mut moved = Vec::new();
            let mut left = 0;
            for (_, record, _, whole) in records_of(bytes, header) {
                match record.kind {
                    // Written again when it is time.
                    RecordKind::Pad
                    | RecordKind::Summary
                    | RecordKind::CheckpointChunk
                    | RecordKind::CheckpointEnd => {}
                    RecordKind::Moved => left = record.index.0,
                    kind if kind.is_entry() && left > 0 => {
                        left -= 1;
                        moved.push((record, whole));
                    }
                    _ => {
                        self.put_again(disk, wal, &record, whole)?;
                        self.report.rewritten += 1;
                    }
                }
                if left == 0 && !moved.is_empty() {
                    self.report.rewritten += moved.len() as u64;
                    self.move_again(disk, wal, &std::mem::take(&mut moved))?;
                }
            }
        }
        for (partition, last) in before.into_iter().rev() {
            let log = wal.partitions.of(partition);
            assert_eq!(
                log.last, last,
                "writing the window again changes where entries lie, not which there are"
            );
        }
        for span in &judged.promises {
            let log = wal.partitions.of(span.partition);
            let vote = (span.a.0 != 0).then_some(NodeId(span.a.0));
            let raises = span.generation > log.generation
                || (span.generation == log.generation && log.vote.is_none() && vote.is_some());
            if raises {
                log.generation = span.generation;
                log.vote = vote;
                self.replay.promise(span.partition, span.generation, vote);
                judged.adopted.insert(span.partition);
            }
        }
        // What rests on a bad batch's spans does so no longer.
        for partition in std::mem::take(&mut judged.adopted) {
            let log = wal.partitions.of(partition);
            let (low_water, snapshot) = (log.low_water, log.snapshot);
            let records = [
                (log.generation > Generation::ZERO)
                    .then(|| RecordHeader::promise(partition, log.generation, log.vote)),
                (snapshot > Position::ZERO).then(|| RecordHeader {
                    index: snapshot.index,
                    generation: snapshot.generation,
                    ..RecordHeader::new(RecordKind::SnapshotMark, partition)
                }),
                (low_water > Index::ZERO).then(|| RecordHeader {
                    index: low_water,
                    ..RecordHeader::new(RecordKind::LowWater, partition)
                }),
            ];
            for record in records.into_iter().flatten() {
                self.put_control(disk, wal, &record)?;
                self.report.adopted += 1;
            }
        }
        self.write(disk, wal, FLAG_OPEN | FLAG_DONE)?;
        // From here on the epoch is in use, and each segment that is made says so.
        wal.segments.note_durable(wal.durable);
        wal.sealed = self.report.rewritten + self.report.adopted == 0;
        Ok(())
    }

    /// A part of a bad batch.
    fn put_part(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        bytes: &[u8],
        part: &Part,
    ) -> Result<(), OpenError> {
        match &part.what {
            // Copies get markers of their own; checkpoints and summaries are written again when it is time.
            What::Control(record)
                if matches!(
                    record.kind,
                    RecordKind::Moved
                        | RecordKind::Summary
                        | RecordKind::CheckpointChunk
                        | RecordKind::CheckpointEnd
                ) =>
            {
                Ok(())
            }
            What::Control(record) => self.put_control(disk, wal, record),
            What::Entry { offset, record, moved } => {
                let whole = bytes.get(*offset..offset + record.record_bytes()).unwrap_or_default();
                match moved {
                    true => self.move_again(disk, wal, &[(*record, whole)]),
                    false => self.put_again(disk, wal, record, whole),
                }
            }
            What::Lost { first, last, generation, moved: false } => {
                let cluster = self.options.cluster_tag;
                let record = lost_record(part.partition, *first, *last, *generation, cluster);
                self.put_control(disk, wal, &record)
            }
            // Copies: where an older one is left, it counts; the others are lost for the next life, too.
            What::Lost { first, last, generation, moved: true } => {
                for index in first.0..=last.0 {
                    let index = Index(index);
                    let log = wal.partitions.of(part.partition);
                    let lost = match log.find(index) {
                        Some(Place::Span(at)) => log.span(at).is_some_and(LookupSpan::is_lost),
                        _ => false,
                    };
                    if lost {
                        let cluster = self.options.cluster_tag;
                        let record = lost_copies_record(part.partition, index, index, *generation, cluster);
                        self.put_control(disk, wal, &record)?;
                    }
                }
                Ok(())
            }
        }
    }

    fn put_control(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        header: &RecordHeader,
    ) -> Result<(), OpenError> {
        let header = RecordHeader { cluster: self.options.cluster_tag, ..*header };
        let mut record = [0; tidelog_types::record::HEADER_BYTES];
        header.encode(&mut record);
        self.put_again(disk, wal, &header, &record)
    }

    fn put_again(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        record: &RecordHeader,
        whole: &[u8],
    ) -> Result<(), OpenError> {
        let shape = Shape::of(record);
        let plan = self.place_again(disk, wal, &[shape])?;
        wal.growing.begin(plan);
        let lsn = wal.growing.lsn;
        let log = wal.partitions.of(record.partition);
        if record.kind.is_entry() {
            let offset = wal.growing.put_encoded(whole, shape);
            let place = lsn.plus(offset as u64);
            log.note(record.position(), place, whole.len() as u32, lsn, &mut wal.files);
            let (partition, generation, index) = (record.partition, record.generation, record.index);
            wal.growing.span_entry(log, &EntrySpan { partition, generation, index, offset });
        } else {
            match record.kind {
                RecordKind::Cut => log.cut(record.position(), &mut wal.files),
                RecordKind::LowWater => log.trim(record.index, &mut wal.files),
                RecordKind::Lost => {
                    let (first, last) = lost_of(record).unwrap_or((record.index, record.index));
                    log.note_lost(first, Position::new(last, record.generation), lsn, &mut wal.files);
                }
                RecordKind::LostCopies => {
                    let (first, last) = lost_of(record).unwrap_or((record.index, record.index));
                    for index in first.max(log.low_water).0..=last.min(log.last.index).0 {
                        log.lose(Position::new(Index(index), record.generation), lsn, &mut wal.files);
                    }
                }
                _ => {}
            }
            wal.growing.put_control(record);
        }
        Ok(())
    }

    /// Records that the window had moved are moved again.
    fn move_again(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        records: &[(RecordHeader, &[u8])],
    ) -> Result<(), OpenError> {
        for (record, whole) in records {
            let live = wal.partitions.get(record.partition).is_some_and(|log| {
                log.find(record.index).is_some() && log.generation_at(record.index) == Some(record.generation)
            });
            if !live {
                continue; // the window cuts it
            }
            let marker = wal.moved_marker(1);
            let plan = self.place_again(disk, wal, &[Shape::of(&marker), Shape::of(record)])?;
            wal.growing.begin(plan);
            wal.growing.put_control(&marker);
            wal.put_moved(record, whole);
        }
        Ok(())
    }

    fn place_again(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        shapes: &[Shape],
    ) -> Result<Plan, OpenError> {
        loop {
            if let Some(plan) = wal.growing.plan(shapes.iter().copied(), shapes.len(), Class::Control) {
                return Ok(plan);
            }
            self.write(disk, wal, FLAG_OPEN)?;
            if wal.growing.plan(shapes.iter().copied(), shapes.len(), Class::Control).is_none() {
                // The segment is full: the next one.
                if let Some(error) = self.make_all(disk, &mut wal.segments, true)? {
                    let (dir, segment_bytes) = (self.options.dir.clone(), self.options.segment_bytes);
                    return Err(OpenError::NoSpace { dir, segment_bytes, error });
                }
                if !wal.roll() {
                    return Err(OpenError::Missing {
                        dir: self.options.dir.clone(),
                        lsn: wal.active.header.end(),
                    });
                }
            }
        }
    }

    fn write(&mut self, disk: &mut Disk<'_>, wal: &mut Wal, flags: u32) -> Result<(), OpenError> {
        let (frozen, op) = wal.freeze(flags);
        disk.run(op)?;
        wal.durable = frozen.end();
        wal.durable_seq = frozen.link.seq;
        Ok(())
    }
}
