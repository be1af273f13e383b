//! A base checkpoint's content: the state of the whole shard's log at one position, as bytes. `docs/formats/checkpoint.md`.
//!
//! Pure: state in, bytes out, and back. What it promises: a log that starts from the bytes and reads what lies behind the
//! position is the log that read everything. It does not know what the replicas put into their part, nor where the
//! bytes lie: [`crate::format::CheckpointEnd`] and the module `restart` do.

use crate::files::{Files, Piece};
use crate::format::{Fields, FormatError, varint};
use crate::frozen::Link;
use crate::lookup::PartitionLog;
use crate::places::{GenerationRun, LookupSpan, Ref};
use crate::saving::Kept;
use tidelog_types::limits::RECORD_ALIGN;
use tidelog_types::{Generation, Index, Lsn, NodeId, PartitionId, Position};

/// Most bytes of a checkpoint: what an opening is ready to hold in memory.
pub(crate) const CHECKPOINT_BYTES_MAX: u64 = 1 << 30;
const CONTENT_VERSION: u64 = 1;
const UNIT: u64 = RECORD_ALIGN as u64;

/// A segment as a checkpoint knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KnownSegment {
    pub(crate) base: Lsn,
    pub(crate) bytes: u64,
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    pub(crate) summary: Option<Vec<Piece>>,
}

/// A checkpoint's content.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// The last batch before the position.
    pub(crate) link: Link,
    /// The newest checkpoint that was kept when this one was begun.
    pub(crate) older: Option<Kept>,
    /// Ascending by base.
    pub(crate) segments: Vec<KnownSegment>,
    /// With the state that the shard supplied.
    pub(crate) partitions: Vec<(PartitionId, PartitionLog, Vec<u8>)>,
}

/// Begins a checkpoint's content: what precedes the partitions.
pub(crate) fn begin(
    out: &mut Vec<u8>,
    link: Link,
    older: Option<Kept>,
    files: &Files,
    at: Lsn,
    partitions: usize,
) {
    varint::put(out, CONTENT_VERSION);
    varint::put(out, link.lsn.0);
    varint::put(out, u64::from(link.crc));
    varint::put(out, link.seq);
    for field in older.map_or([0; 3], |k| [k.at.0, k.batch.0, k.bytes]) {
        varint::put(out, field);
    }
    let known = || files.iter().filter(|(base, _)| *base < at);
    varint::put(out, known().count() as u64);
    let mut before = 0;
    for (base, file) in known() {
        varint::put(out, base.0 - before);
        before = base.0;
        varint::put(out, file.end.0 - base.0);
        varint::put(out, file.seq);
        varint::put(out, file.epoch);
        match &file.summary {
            None => varint::put(out, 0),
            Some(pieces) => {
                varint::put(out, 1 + pieces.len() as u64);
                for piece in pieces {
                    varint::put(out, piece.first.0);
                    varint::put(out, piece.lsn.0);
                    varint::put(out, u64::from(piece.len));
                }
            }
        }
    }
    varint::put(out, partitions as u64);
}

/// Adds a partition, in the order of their numbers.
pub(crate) fn partition(out: &mut Vec<u8>, id: PartitionId, log: &PartitionLog, state: &[u8]) {
    varint::put(out, id.0);
    varint::put(out, log.generation.0);
    varint::put(out, log.vote.map_or(0, NodeId::get));
    varint::put(out, log.last.index.0);
    varint::put(out, log.last.generation.0);
    varint::put(out, log.high_water.min(log.last.index).0);
    varint::put(out, log.low_water.0);
    varint::put(out, log.snapshot.index.0);
    varint::put(out, log.snapshot.generation.0);
    varint::put(out, log.runs.len() as u64);
    let mut index = 0;
    for run in &log.runs {
        varint::put(out, run.first.0 - index);
        varint::put(out, run.generation.0);
        index = run.first.0;
    }
    varint::put(out, log.refs.len() as u64);
    index = 0;
    for r in &log.refs {
        varint::put(out, r.first.0 - index);
        varint::put(out, r.segment.0);
        index = r.first.0;
    }
    varint::put(out, log.spans.len() as u64);
    let mut at = 0;
    index = 0;
    for span in &log.spans {
        varint::put(out, span.first.0 - index);
        varint::put(out, u64::from(span.count));
        varint::put(out, span.generation.0);
        varint::put_delta(out, span.lsn.0 / UNIT, at);
        varint::put(out, u64::from(span.bytes) / UNIT * 2 + u64::from(span.pure));
        varint::put(out, u64::from(span.held));
        index = span.last().0 + 1;
        at = span.lsn.0 / UNIT;
    }
    varint::put(out, state.len() as u64);
    out.extend_from_slice(state);
}

/// Reads a checkpoint's content back.
///
/// # Errors
/// Says in which way the bytes are not one.
pub(crate) fn decode(bytes: &[u8]) -> Result<Content, FormatError> {
    let mut fields = Fields::new(bytes);
    let version = fields.varint()?;
    if version != CONTENT_VERSION {
        return Err(FormatError::Version(u32::try_from(version).unwrap_or(u32::MAX)));
    }
    let mut content = Content {
        link: Link { lsn: Lsn(fields.varint()?), crc: fields.small()?, seq: fields.varint()? },
        ..Content::default()
    };
    let (at, batch, bytes) = (Lsn(fields.varint()?), Lsn(fields.varint()?), fields.varint()?);
    content.older = (batch != Lsn(0)).then_some(Kept { at, batch, bytes });
    let mut reached = 0u64;
    let mut before = 0u64;
    for _ in 0..fields.count()? {
        let base = before.checked_add(fields.varint()?).ok_or(FormatError::Field("base"))?;
        before = base;
        let bytes = fields.varint()?;
        let end = base.checked_add(bytes).ok_or(FormatError::Field("size"))?;
        if base < reached {
            return Err(FormatError::Field("base"));
        }
        reached = end;
        let (seq, epoch) = (fields.varint()?, fields.varint()?);
        let summary = match fields.count()?.checked_sub(1) {
            None => None,
            Some(count) => Some(
                (0..count)
                    .map(|_| {
                        let first = PartitionId(fields.varint()?);
                        Ok(Piece { first, lsn: Lsn(fields.varint()?), len: fields.small()? })
                    })
                    .collect::<Result<Vec<_>, FormatError>>()?,
            ),
        };
        content.segments.push(KnownSegment { base: Lsn(base), bytes, seq, epoch, summary });
    }
    let mut last = None;
    for _ in 0..fields.count()? {
        let id = PartitionId(fields.varint()?);
        if last.replace(id).is_some_and(|last| last >= id) {
            return Err(FormatError::Field("partition"));
        }
        let log = decode_log(&mut fields)?;
        let len = fields.count()?;
        content.partitions.push((id, log, fields.bytes(len)?.to_vec()));
    }
    if fields.left() > 0 { Err(FormatError::Field("trailing")) } else { Ok(content) }
}

fn decode_log(fields: &mut Fields<'_>) -> Result<PartitionLog, FormatError> {
    let mut log = PartitionLog { generation: Generation(fields.varint()?), ..PartitionLog::default() };
    let vote = fields.varint()?;
    log.vote = (vote != 0).then_some(NodeId(vote));
    log.last = position(fields)?;
    log.sequenced = log.last.index;
    log.high_water = Index(fields.varint()?);
    log.high_water_written = log.high_water;
    log.low_water = Index(fields.varint()?);
    log.snapshot = position(fields)?;
    if log.high_water > log.last.index || log.low_water.prev() > log.last.index || log.last.index.0 >= 1 << 62
    {
        return Err(FormatError::Field("marks"));
    }
    let mut index = 0u64;
    let runs = fields.count()?;
    log.runs.reserve_exact(runs);
    for _ in 0..runs {
        index = index.checked_add(fields.varint()?).ok_or(FormatError::Field("run"))?;
        let run = GenerationRun { first: Index(index), generation: Generation(fields.varint()?) };
        let rises = log.runs.last().is_none_or(|r| r.first < run.first && r.generation < run.generation);
        if !rises || run.first > log.last.index {
            return Err(FormatError::Field("run"));
        }
        log.runs.push(run);
    }
    index = 0;
    let refs = fields.count()?;
    log.refs.reserve_exact(refs);
    for _ in 0..refs {
        index = index.checked_add(fields.varint()?).ok_or(FormatError::Field("ref"))?;
        let r = Ref { first: Index(index), segment: Lsn(fields.varint()?) };
        if log.refs.last().is_some_and(|before| before.first >= r.first) {
            return Err(FormatError::Field("ref"));
        }
        log.refs.push(r);
    }
    index = 0;
    let mut at = 0;
    for _ in 0..fields.count()? {
        index = index.checked_add(fields.varint()?).ok_or(FormatError::Field("span"))?;
        let count = fields.small()?;
        let generation = Generation(fields.varint()?);
        at = fields.delta(at)?;
        let units = fields.varint()?;
        let bytes = (units / 2).checked_mul(UNIT).and_then(|b| u32::try_from(b).ok());
        let bytes = bytes.ok_or(FormatError::Field("bytes"))?;
        let lsn = at.checked_mul(UNIT).ok_or(FormatError::Field("lsn"))?;
        lsn.checked_add(u64::from(bytes)).ok_or(FormatError::Field("lsn"))?;
        let (first, lsn, pure) = (Index(index), Lsn(lsn), units & 1 == 1);
        index = index.checked_add(u64::from(count)).ok_or(FormatError::Field("count"))?;
        if count == 0 || first == Index::ZERO || index > log.last.index.0 + 1 {
            return Err(FormatError::Field("count"));
        }
        let held = fields.small()?;
        log.spans.push_back(LookupSpan { first, generation, lsn, count, bytes, held, pure });
    }
    Ok(log)
}

fn position(fields: &mut Fields<'_>) -> Result<Position, FormatError> {
    Ok(Position::new(Index(fields.varint()?), Generation(fields.varint()?)))
}

impl Fields<'_> {
    fn small(&mut self) -> Result<u32, FormatError> {
        u32::try_from(self.varint()?).map_err(|_| FormatError::Field("number"))
    }
}

#[cfg(test)]
#[path = "../tests/worked/mod.rs"]
mod worked;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SegmentHeader;
    use tidelog_types::{Incarnation, ShardId};

    const DOCUMENT: &str = include_str!("../../../docs/formats/checkpoint.md");

    /// A log of two segments, the older one with a summary, and two partitions: one busy, one that was only promised.
    fn content() -> Vec<u8> {
        let mut files = Files::default();
        for seq in [1, 2, 3] {
            let header = SegmentHeader {
                shard: ShardId(0),
                store: Incarnation(0x1122_3344_5566_7788),
                node: NodeId(1),
                segment_seq: seq,
                base: Lsn((seq - 1) * 0x40_0000),
                bytes: 0x40_0000,
                epoch: 2,
                prev_epoch_end: Lsn(0),
                recycled: false,
                durable: Lsn(0),
                footers_apart: true,
            };
            files.insert(&header, "a.wal".into(), None);
        }
        let piece = Piece { first: PartitionId(3), lsn: Lsn(0x3f_f080), len: 89 };
        files.get(Lsn(0)).unwrap().summary = Some(vec![piece]);
        let link = Link { lsn: Lsn(0x40_3000), crc: 0xdead_beef, seq: 6 };
        let older = Kept { at: Lsn(0x2000), batch: Lsn(0x4000), bytes: 300 };
        let busy = PartitionLog {
            last: Position::new(Index(9), Generation(2)),
            high_water: Index(7),
            low_water: Index(3),
            generation: Generation(4),
            vote: Some(NodeId(1)),
            snapshot: Position::new(Index(5), Generation(1)),
            runs: vec![
                GenerationRun { first: Index(2), generation: Generation(1) },
                GenerationRun { first: Index(6), generation: Generation(2) },
            ],
            spans: [
                (Index(7), Lsn(0x40_2080), 2, 192, 192, true),
                (Index(9), Lsn(0x40_2200), 1, 128, 64, false),
            ]
            .map(|(first, lsn, count, bytes, held, pure)| LookupSpan {
                first,
                generation: Generation(2),
                lsn,
                count,
                bytes,
                held,
                pure,
            })
            .into(),
            refs: vec![Ref { first: Index(3), segment: Lsn(0) }],
            ..PartitionLog::default()
        };
        let promised = PartitionLog { generation: Generation(1), ..PartitionLog::default() };
        let mut out = Vec::new();
        begin(&mut out, link, Some(older), &files, Lsn(0x40_4000), 2);
        partition(&mut out, PartitionId(3), &busy, b"busy");
        partition(&mut out, PartitionId(200), &promised, b"");
        out
    }

    /// Numbers as the document has them, by a decoder of its own.
    fn numbers(bytes: &[u8], at: &mut usize, count: usize) -> Vec<u64> {
        let number = |at: &mut usize| {
            let (mut value, mut shift) = (0, 0);
            loop {
                let byte = bytes[*at];
                *at += 1;
                value |= u64::from(byte & 127) << shift;
                shift += 7;
                if byte < 128 {
                    return value;
                }
            }
        };
        (0..count).map(|_| number(at)).collect()
    }

    #[test]
    fn the_worked_example() {
        worked::pinned(DOCUMENT, 1, &content());

        let bytes = worked::example(DOCUMENT, 1);
        let mut at = 0;
        let mut take = |count| numbers(&bytes, &mut at, count);
        assert_eq!(take(4), [1, 0x40_3000, 0xdead_beef, 6], "version, last batch");
        assert_eq!(take(3), [0x2000, 0x4000, 300], "older checkpoint");
        assert_eq!(take(1), [2], "segments: the third begins behind the position");
        assert_eq!(take(5), [0, 0x40_0000, 1, 2, 2], "one piece of a summary");
        assert_eq!(take(3), [3, 0x3f_f080, 89], "its place");
        assert_eq!(take(5), [0x40_0000, 0x40_0000, 2, 2, 0], "no summary yet");
        assert_eq!(take(1), [2], "partitions");
        assert_eq!(take(9), [3, 4, 1, 9, 2, 7, 3, 5, 1], "promise, last, marks, snapshot");
        assert_eq!(take(5), [2, 2, 1, 4, 2], "generations: from 2 on, and from 6");
        assert_eq!(take(3), [1, 3, 0], "refs: from 3 on, in the first segment");
        assert_eq!(take(1), [2], "spans");
        let folded = |delta: u64| delta * 2;
        assert_eq!(take(6), [7, 2, 2, folded(0x40_2080 / 64), 3 * 2 + 1, 192]);
        assert_eq!(take(6), [0, 1, 2, folded((0x2200 - 0x2080) / 64), 2 * 2, 64]);
        assert_eq!(take(1), [4]);
        assert_eq!(&bytes[at..at + 4], b"busy");
        at += 4;
        assert_eq!(
            numbers(&bytes, &mut at, 12),
            [200, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            "promised, and no more"
        );
        assert_eq!(numbers(&bytes, &mut at, 1), [0], "no state");
        assert_eq!(at, bytes.len());

        // The crate reads the same, and refuses it at every other length.
        let read = decode(&bytes).expect("it is a content");
        assert_eq!((read.link.seq, read.segments.len(), read.partitions.len()), (6, 2, 2));
        let (id, log, state) = &read.partitions[0];
        assert_eq!(
            (*id, log.spans.len(), log.refs.len(), state.as_slice()),
            (PartitionId(3), 2, 1, &b"busy"[..])
        );
        assert_eq!(log.spans[1].lsn, Lsn(0x40_2200));
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len}");
        }
    }
}
