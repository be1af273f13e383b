//! Replaying the log: from records, in order, to what the shard knows of each partition.
//!
//! It begins empty or with a checkpoint's content; both come to the same. Whatever does not follow from what lies before it
//! is an error, never repaired. It does not judge batches: it is given good ones.

use crate::checkpoint::Content;
use crate::error::OpenError;
use crate::files::{Files, Piece};
use crate::format::{BatchHeader, CheckpointEnd, SummaryHead, visit_summary};
use crate::lookup::{Holds, PartitionLog};
use crate::recovery::RecoveryReport;
use crate::saving::Kept;
use crate::scan::{Source, records_of};
use std::collections::BTreeMap;
use tidelog_types::{
    EntryMeta, FixedMap, Generation, Index, Lsn, NodeId, PartitionId, Position, RecordHeader, RecordKind,
};

/// Learns what the log holds, in LSN order, while it is opened.
pub trait Replay {
    /// An entry; it follows the partition's last one.
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]);
    /// Every entry above `keep` is gone.
    fn cut(&mut self, partition: PartitionId, keep: Position);
    /// Generation and vote.
    fn promise(&mut self, partition: PartitionId, generation: Generation, vote: Option<NodeId>);
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

/// What has been replayed.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) partitions: FixedMap<PartitionId, PartitionLog>,
    pub(crate) files: Files,
    /// The checkpoints that were named last.
    pub(crate) named: (Lsn, Lsn),
    /// Ends of checkpoints that were come by, by the batch that they lie in.
    ends: BTreeMap<Lsn, Kept>,
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
        for (id, log, state) in content.partitions {
            log.spans.iter().for_each(|s| self.files.hold(s.lsn));
            log.refs.iter().for_each(|r| self.files.hold(r.segment));
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

    /// Lets the spans of segments go whose summaries lie before `end`, in full.
    pub(crate) fn demote(&mut self, end: Lsn) {
        for (base, pieces) in std::mem::take(&mut self.pieces) {
            let complete =
                pieces.values().all(|(piece, head)| piece.lsn < end && head.pieces as usize == pieces.len());
            let Some(file) = self.files.get(base).filter(|f| complete && f.summary.is_none()) else {
                continue;
            };
            if pieces.values().any(|(_, head)| head.segment_seq != file.seq) {
                continue;
            }
            file.summary = Some(pieces.into_values().map(|(piece, _)| piece).collect());
            let end = file.end;
            for log in self.partitions.values_mut() {
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
            let log = self.partitions.entry(record.partition).or_default();
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
                RecordKind::Cut => {
                    if record.index > log.last.index
                        || log.generation_at(record.index) != Some(record.generation)
                    {
                        return Err(wrong("a cut does not keep an entry of the log: entries are lost"));
                    }
                    if record.index < log.high_water {
                        return Err(wrong("a cut goes below the high-water mark"));
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
                        return Err(wrong("a low-water mark goes back or beyond the log's end"));
                    }
                    log.trim(record.index, &mut self.files);
                    replay.low_water(record.partition, log.low_water);
                }
                RecordKind::SnapshotMark => {
                    if record.index > log.last.index {
                        return Err(wrong("a snapshot mark names no entry of the log: entries are lost"));
                    }
                    log.snapshot = record.position();
                    replay.snapshot_mark(record.partition, log.snapshot);
                }
                kind => {
                    return Err(OpenError::Newer {
                        file: source.path.clone(),
                        offset: source.offset(batch.lsn) + offset as u64,
                        what: format!("a record of kind {kind:?}"),
                    });
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
