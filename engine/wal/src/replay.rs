//! Replaying the log: from records, in order, to what the shard knows of each partition.
//!
//! It begins empty or with a checkpoint's content; both come to the same. Whatever does not follow from what lies before it
//! is an error, never repaired. It does not judge batches: it is given good ones.

use crate::checkpoint::Content;
use crate::error::OpenError;
use crate::files::{Files, Piece};
use crate::format::{BatchHeader, CheckpointEnd, SummaryHead, visit_summary};
use crate::logs::Logs;
use crate::lookup::Holds;
use crate::places::Place;
use crate::recovery::RecoveryReport;
use crate::salvage::{Lost, Piece as Part, What, lost_of};
use crate::saving::Kept;
use crate::scan::{Source, records_of};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tidelog_types::{
    EntryMeta, Generation, Index, Lsn, NodeId, PartitionId, Position, RecordHeader, RecordKind,
};

/// Learns what the log holds, in LSN order, while it is opened.
pub trait Replay {
    /// An entry; it follows the partition's last one.
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]);
    /// Every entry above `keep` is gone.
    fn cut(&mut self, partition: PartitionId, keep: Position);
    /// Generation and vote.
    fn promise(&mut self, partition: PartitionId, generation: Generation, vote: Option<NodeId>);
    /// The bytes of entries are lost. Either they follow the partition's last one, or they are in the log already and only
    /// their newest copies are lost.
    fn damaged(&mut self, partition: PartitionId, lost: Lost);
    /// A good copy of an entry that is in the log already: if it was lost, it is not any more.
    fn moved(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]);
    /// The high-water mark was at least here.
    fn high_water(&mut self, partition: PartitionId, mark: Index);
    /// What the caller of [`crate::Wal::flush_saving`] saved of a partition. All partitions of a checkpoint come first;
    /// then only what lies behind it.
    fn checkpoint(&mut self, partition: PartitionId, state: &[u8]);
    /// Entries below `first` are not kept any more.
    fn low_water(&mut self, partition: PartitionId, first: Index) {
        let _ = (partition, first);
    }
    /// A durable snapshot covers everything up to `covered`.
    fn snapshot_mark(&mut self, partition: PartitionId, covered: Position) {
        let _ = (partition, covered);
    }
}

/// A bad batch, as far as it is there.
#[derive(Debug)]
pub(crate) struct BadBatch<'b> {
    pub(crate) file: &'b Path,
    /// Its offset in the file, and its position.
    pub(crate) offset: u64,
    pub(crate) lsn: Lsn,
    pub(crate) bytes: &'b [u8],
    /// It was never proven durable.
    pub(crate) suspect: bool,
}

fn is_local(kind: RecordKind) -> bool {
    matches!(kind, RecordKind::CheckpointChunk | RecordKind::CheckpointEnd | RecordKind::Summary)
}

/// What has been replayed.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) partitions: Logs,
    pub(crate) files: Files,
    /// The checkpoints that were named last.
    pub(crate) named: (Lsn, Lsn),
    /// Ends of checkpoints that were come by, by the batch that they lie in.
    ends: BTreeMap<Lsn, Kept>,
    /// Partitions whose promise or marks are known from the spans of a bad batch only.
    pub(crate) adopted: BTreeSet<PartitionId>,
    /// Segments that a checkpoint knows and of which there is no file: given back, or lost.
    pub(crate) gone: BTreeSet<Lsn>,
    /// Pieces of summaries that were come by, by the segment that they sum up.
    pieces: BTreeMap<Lsn, BTreeMap<u32, (Piece, SummaryHead)>>,
}

impl State {
    /// Begins with a checkpoint. Its segments are in `files` already.
    pub(crate) fn load(&mut self, kept: Kept, content: Content, replay: &mut dyn Replay) {
        self.named = (kept.batch, content.older.map_or(Lsn(0), |k| k.batch));
        self.ends.insert(kept.batch, kept);
        self.ends.extend(content.older.map(|k| (k.batch, k)));
        for segment in content.segments {
            if let Some(file) = self.files.get(segment.base) {
                file.summary = segment.summary;
            }
        }
        for (id, mut log, state) in content.partitions {
            log.spans.iter().for_each(|s| self.files.hold(s.lsn));
            log.refs.iter().for_each(|r| self.files.hold(r.segment));
            log.trim(log.low_water, &mut self.files);
            replay.checkpoint(id, &state);
            self.partitions.insert(id, log);
        }
    }

    /// The two checkpoints that are to be kept; `bad`: those that turned out to be no good.
    pub(crate) fn kept(&self, bad: impl Fn(Lsn) -> bool) -> (Option<Kept>, Option<Kept>) {
        let good = |batch: Lsn| self.ends.get(&batch).copied().filter(|k| !bad(k.batch));
        match (good(self.named.0), good(self.named.1)) {
            (Some(newest), older) => (Some(newest), older),
            (None, older) => (older, None),
        }
    }

    /// Lets the spans of segments go whose summaries lie before `end`, in full. A second one takes the place of the first, which
    /// was bad.
    pub(crate) fn demote(&mut self, end: Lsn) {
        for (base, pieces) in std::mem::take(&mut self.pieces) {
            let complete =
                pieces.values().all(|(piece, head)| piece.lsn < end && head.pieces as usize == pieces.len());
            let Some(file) = self.files.get(base).filter(|_| complete) else {
                continue;
            };
            if pieces.values().any(|(_, head)| head.segment_seq != file.seq) {
                continue;
            }
            file.summary = Some(pieces.into_values().map(|(piece, _)| piece).collect());
            let end = file.end;
            for log in self.partitions.iter_mut() {
                log.demote(base, end, &mut self.files);
            }
        }
    }

    /// Replays a good batch.
    pub(crate) fn apply(
        &mut self,
        source: &Source,
        batch: &BatchHeader,
        bytes: &[u8],
        report: &mut RecoveryReport,
        replay: &mut dyn Replay,
    ) -> Result<(), OpenError> {
        report.batches += 1;
        if batch.checkpoint > self.named.0 {
            self.named = (batch.checkpoint, batch.older_checkpoint);
        }
        // Entries that are left of a move.
        let mut moved = 0;
        for (offset, record, payload, _) in records_of(bytes, batch) {
            report.records += 1;
            let wrong = |what| OpenError::Inconsistent {
                file: source.path.clone(),
                offset: source.offset(batch.lsn) + offset as u64,
                partition: record.partition,
                index: record.index,
                what,
            };
            if record.kind == RecordKind::Pad {
                continue;
            }
            if self.local(batch, offset, &record, payload).map_err(wrong)? {
                continue;
            }
            if record.kind == RecordKind::Moved {
                moved = record.index.0;
                continue;
            }
            let log = self.partitions.of(record.partition);
            match record.kind {
                kind if kind.is_entry() && moved > 0 => {
                    moved -= 1;
                    if record.index < log.low_water
                        || log.generation_at(record.index) != Some(record.generation)
                    {
                        return Err(wrong("a moved entry is not one of the log: entries are lost"));
                    }
                    let lsn = batch.lsn.plus(offset as u64);
                    let bytes = record.record_bytes() as u32; // a record
                    log.relocate(record.position(), lsn, bytes, batch.lsn, &mut self.files);
                    replay.moved(record.partition, &record.meta(), payload);
                }
                kind if kind.is_entry() => {
                    if record.index != log.last.index.next() || record.prev_generation != log.last.generation
                    {
                        return Err(wrong("an entry does not follow the one before it: entries are lost"));
                    }
                    let lsn = batch.lsn.plus(offset as u64);
                    log.note(
                        record.position(),
                        lsn,
                        record.record_bytes() as u32,
                        batch.lsn,
                        &mut self.files,
                    );
                    replay.entry(record.partition, &record.meta(), payload);
                }
                kind => match self.control(batch.lsn, &record, replay) {
                    Ok(()) if kind == RecordKind::Promise => _ = self.adopted.remove(&record.partition),
                    Ok(()) => {}
                    Err(Some(what)) => return Err(wrong(what)),
                    Err(None) => {
                        return Err(OpenError::Newer {
                            file: source.path.clone(),
                            offset: source.offset(batch.lsn) + offset as u64,
                            what: format!("a record of kind {kind:?}"),
                        });
                    }
                },
            }
        }
        Ok(())
    }

    /// Replays a control record of a partition. The error: what is wrong with it; none if it is not known.
    fn control(
        &mut self,
        batch: Lsn,
        record: &RecordHeader,
        replay: &mut dyn Replay,
    ) -> Result<(), Option<&'static str>> {
        let log = self.partitions.of(record.partition);
        match record.kind {
            RecordKind::Cut => {
                if record.index > log.last.index || log.generation_at(record.index) != Some(record.generation)
                {
                    return Err(Some("a cut does not keep an entry of the log: entries are lost"));
                }
                if record.index < log.high_water {
                    return Err(Some("a cut goes below the high-water mark"));
                }
                log.cut(record.position(), &mut self.files);
                replay.cut(record.partition, record.position());
            }
            RecordKind::Promise => {
                log.generation = record.generation;
                log.vote = (record.index.0 != 0).then_some(NodeId(record.index.0));
                replay.promise(record.partition, log.generation, log.vote);
            }
            RecordKind::HighWater => {
                log.high_water = log.high_water.max(record.index);
                log.high_water_written = log.high_water;
                replay.high_water(record.partition, log.high_water);
            }
            RecordKind::LowWater => {
                if record.index < log.low_water || record.index > log.last.index.next() {
                    return Err(Some("a low-water mark goes back or beyond the log's end"));
                }
                log.trim(record.index, &mut self.files);
                replay.low_water(record.partition, log.low_water);
            }
            RecordKind::SnapshotMark => {
                if record.index > log.last.index {
                    return Err(Some("a snapshot mark names no entry of the log: entries are lost"));
                }
                log.snapshot = record.position();
                replay.snapshot_mark(record.partition, log.snapshot);
            }
            RecordKind::Lost => {
                let (partition, generation) = (record.partition, record.generation);
                let Some((first, last)) =
                    lost_of(record).filter(|(first, _)| *first == log.last.index.next())
                else {
                    return Err(Some(
                        "lost entries do not follow the one before them: other entries are lost",
                    ));
                };
                if generation < log.last.generation {
                    return Err(Some("lost entries of an older generation than the one before them"));
                }
                log.note_lost(first, Position::new(last, generation), batch, &mut self.files);
                replay.damaged(partition, Lost { first, last, generation, suspect: true });
            }
            RecordKind::LostCopies => {
                let (partition, generation) = (record.partition, record.generation);
                let Some((first, last)) = lost_of(record) else {
                    return Err(Some("lost copies of no entries"));
                };
                for index in first.0..=last.0 {
                    let index = Index(index);
                    if log.generation_at(index) != Some(generation) {
                        return Err(Some("a lost copy of an entry that is not in the log: entries are lost"));
                    }
                    if index >= log.low_water {
                        log.lose(Position::new(index, generation), batch, &mut self.files);
                    }
                }
                replay.damaged(partition, Lost { first, last, generation, suspect: false });
            }
            RecordKind::Moved => {}
            _ => return Err(None),
        }
        Ok(())
    }

    /// Replays what is left of a bad batch, in the order of its spans.
    pub(crate) fn apply_bad(
        &mut self,
        batch: &BadBatch<'_>,
        parts: &[Part],
        replay: &mut dyn Replay,
    ) -> Result<(), OpenError> {
        for part in parts {
            let (partition, at, suspect) = (part.partition, batch.lsn, batch.suspect);
            let wrong = |offset: usize, index: Index, what| OpenError::Inconsistent {
                file: batch.file.to_path_buf(),
                offset: batch.offset + offset as u64,
                partition,
                index,
                what,
            };
            let log = self.partitions.of(partition);
            match &part.what {
                What::Entry { offset, record, moved } => {
                    let lsn = at.plus(*offset as u64);
                    let bytes = record.record_bytes() as u32; // within a batch
                    let payload = batch.bytes.get(offset + record.head_bytes()..).unwrap_or_default();
                    let payload = payload.get(..record.payload_len as usize).unwrap_or_default();
                    if *moved {
                        if record.index < log.low_water
                            || log.generation_at(record.index) != Some(record.generation)
                        {
                            return Err(wrong(
                                *offset,
                                record.index,
                                "a moved entry is not one of the log: entries are lost",
                            ));
                        }
                        // Between the records of a bad batch may lie what cannot be walked over: no span grows here.
                        log.relocate(record.position(), lsn, bytes, Lsn(u64::MAX), &mut self.files);
                        replay.moved(partition, &record.meta(), payload);
                    } else {
                        let follows = record.index == log.last.index.next()
                            && record.prev_generation == log.last.generation;
                        if !follows {
                            let what = "an entry does not follow the one before it: entries are lost";
                            return Err(wrong(*offset, record.index, what));
                        }
                        log.note(record.position(), lsn, bytes, at, &mut self.files);
                        log.close();
                        replay.entry(partition, &record.meta(), payload);
                    }
                }
                // The older copy counts, as long as there is one: what it lies in is not given back before the newer one is durable, and not
                // at once then. Where it has gone, the entry is lost.
                What::Lost { first, last, generation, moved: true } => {
                    let (first, last, generation) = (*first, *last, *generation);
                    for index in first.0..=last.0 {
                        let index = Index(index);
                        if index < log.low_water || log.generation_at(index) != Some(generation) {
                            return Err(wrong(0, index, "a lost copy of an entry that is not in the log"));
                        }
                        let older = match log.find(index) {
                            Some(Place::Span(at)) => log.span(at).map(|span| span.lsn),
                            Some(Place::Segment { segment, .. }) => Some(segment),
                            None => None,
                        };
                        let older = older.and_then(|lsn| self.files.holding(lsn)).map(|(base, _)| base);
                        if older.is_none_or(|base| self.gone.contains(&base)) {
                            log.lose(Position::new(index, generation), at, &mut self.files);
                            replay
                                .damaged(partition, Lost { first: index, last: index, generation, suspect });
                        }
                    }
                }
                What::Lost { first, last, generation, moved: false } => {
                    let (first, last, generation) = (*first, *last, *generation);
                    let follows =
                        first == log.last.index.next() && generation >= log.last.generation && first <= last;
                    if !follows {
                        let what =
                            "a lost entry does not follow the one before it: other entries are lost as well";
                        return Err(wrong(0, first, what));
                    }
                    log.note_lost(first, Position::new(last, generation), at, &mut self.files);
                    replay.damaged(partition, Lost { first, last, generation, suspect });
                }
                // Checkpoints and summaries are written again; without them more is read.
                What::Control(record) if is_local(record.kind) => {}
                What::Control(record) => {
                    if record.kind != RecordKind::HighWater && record.kind != RecordKind::Moved {
                        self.adopted.insert(partition);
                    }
                    self.control(at, record, replay).map_err(|what| match what {
                        Some(what) => wrong(0, record.index, what),
                        None => OpenError::Newer {
                            file: batch.file.to_path_buf(),
                            offset: batch.offset,
                            what: format!("a record of kind {:?}", record.kind),
                        },
                    })?;
                }
            }
        }
        Ok(())
    }

    /// Takes in a record that concerns no partition. False: it does.
    fn local(
        &mut self,
        batch: &BatchHeader,
        offset: usize,
        record: &RecordHeader,
        payload: &[u8],
    ) -> Result<bool, &'static str> {
        match record.kind {
            RecordKind::CheckpointChunk => Ok(true),
            RecordKind::CheckpointEnd => {
                let end = CheckpointEnd::decode(payload).map_err(|_| "not the end of a checkpoint")?;
                self.ends.insert(batch.lsn, Kept { at: end.at, batch: batch.lsn, bytes: end.bytes });
                Ok(true)
            }
            RecordKind::Summary => {
                let mut first = None;
                let head = visit_summary(payload, &mut |partition, _| _ = first.get_or_insert(partition));
                let head = head.map_err(|_| "not a segment's summary")?;
                let lsn = batch.lsn.plus(offset as u64);
                let first = first.unwrap_or(PartitionId(0));
                let piece = Piece { first, lsn, len: record.payload_len };
                let pieces = self.pieces.entry(head.base).or_default();
                if head.piece == 0 {
                    // Begun again.
                    pieces.clear();
                }
                pieces.insert(head.piece, (piece, head));
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
