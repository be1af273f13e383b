//! A segment's summary: where the entries in it lie, partition by partition. `docs/formats/summary.md`.

use super::{Fields, FormatError, varint};
use tidelog_types::limits::RECORD_ALIGN;
use tidelog_types::{Generation, Incarnation, Index, Lsn, PartitionId};

/// The summary format written now.
pub const SUMMARY_VERSION: u32 = 1;
/// Length of a piece's head, in front of its groups.
pub const SUMMARY_HEAD_BYTES: usize = 40;
/// Most bytes that a span takes.
const SPAN_BYTES_MAX: usize = 6 * 10;
const UNIT: u64 = RECORD_ALIGN as u64;

/// A run of entries in a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummarySpan {
    /// First index.
    pub first: Index,
    /// Number of entries.
    pub count: u32,
    /// Their generation.
    pub generation: Generation,
    /// Offset in the segment at or before the first record.
    pub offset: u64,
    /// Bytes from there to the last record's end.
    pub bytes: u32,
    /// Bytes of the records themselves, about.
    pub held: u32,
    /// Whether nothing else lies between.
    pub pure: bool,
}

/// The head of a summary's piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryHead {
    /// The data directory's life.
    pub store: Incarnation,
    /// The segment that is summed up.
    pub segment_seq: u64,
    /// Its base.
    pub base: Lsn,
    /// This piece's number, from 0.
    pub piece: u32,
    /// Number of pieces.
    pub pieces: u32,
}

impl SummaryHead {
    fn encode(&self) -> [u8; SUMMARY_HEAD_BYTES] {
        let mut out = Vec::with_capacity(SUMMARY_HEAD_BYTES);
        for field in [SUMMARY_VERSION, self.piece, self.pieces, 0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.store.0, self.segment_seq, self.base.0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        let mut head = [0; SUMMARY_HEAD_BYTES];
        head.copy_from_slice(&out);
        head
    }

    /// Reads the head of a piece.
    ///
    /// # Errors
    /// Says in which way the bytes are not a summary's piece.
    pub fn decode(payload: &[u8]) -> Result<SummaryHead, FormatError> {
        let mut fields = Fields::new(payload);
        let version = fields.u32()?;
        if version != SUMMARY_VERSION {
            return Err(FormatError::Version(version));
        }
        let (piece, pieces) = (fields.u32()?, fields.u32()?);
        fields.zero::<4>()?;
        if piece >= pieces {
            return Err(FormatError::Field("piece"));
        }
        Ok(SummaryHead {
            store: Incarnation(fields.u64()?),
            segment_seq: fields.u64()?,
            base: Lsn(fields.u64()?),
            piece,
            pieces,
        })
    }
}

/// Encodes a segment's spans, `groups` in the order of partitions and each in the order of indexes, as pieces of at
/// most `piece_bytes_max`. Each comes with the partition that it begins with. There is at least one.
pub fn encode_summary<'a>(
    head: &SummaryHead,
    groups: impl Iterator<Item = (PartitionId, &'a [SummarySpan])>,
    piece_bytes_max: usize,
) -> Vec<(PartitionId, Vec<u8>)> {
    let mut pieces: Vec<(PartitionId, Vec<u8>)> = Vec::new();
    let mut body = Vec::new();
    let mut partition_before = 0;
    let room = piece_bytes_max.saturating_sub(SUMMARY_HEAD_BYTES + 2 * SPAN_BYTES_MAX);
    let mut first_of_piece = None;
    for (partition, spans) in groups {
        let mut rest = spans;
        while !rest.is_empty() {
            // As many spans of this group as fit; at least one, or the piece ends here.
            let mut group = Vec::new();
            let (mut index, mut generation, mut offset) = (0, 0, 0);
            let mut taken = 0;
            for span in rest {
                if body.len() + group.len() + SPAN_BYTES_MAX > room && (taken > 0 || !body.is_empty()) {
                    break;
                }
                varint::put(&mut group, span.first.0 - index);
                varint::put(&mut group, u64::from(span.count));
                varint::put_delta(&mut group, span.generation.0, generation);
                varint::put_delta(&mut group, span.offset / UNIT, offset);
                varint::put(&mut group, u64::from(span.bytes) / UNIT * 2 + u64::from(span.pure));
                if !span.pure {
                    varint::put(&mut group, u64::from(span.held) / UNIT);
                }
                index = span.first.0 + u64::from(span.count);
                (generation, offset) = (span.generation.0, span.offset / UNIT);
                taken += 1;
            }
            if taken > 0 {
                first_of_piece.get_or_insert(partition);
                varint::put(&mut body, partition.0 - partition_before);
                varint::put(&mut body, taken as u64);
                body.append(&mut group);
                partition_before = partition.0;
                rest = rest.get(taken..).unwrap_or_default();
            }
            if !rest.is_empty() {
                pieces.push((first_of_piece.take().unwrap_or(partition), std::mem::take(&mut body)));
                partition_before = 0;
            }
        }
    }
    if !body.is_empty() || pieces.is_empty() {
        pieces.push((first_of_piece.unwrap_or(PartitionId(0)), body));
    }
    let count = pieces.len() as u32; // a segment has at most 2^26 records
    for (at, (_, body)) in pieces.iter_mut().enumerate() {
        let head = SummaryHead { piece: at as u32, pieces: count, ..*head };
        body.splice(..0, head.encode());
    }
    pieces
}

/// Visits the spans of a piece, in order.
///
/// # Errors
/// Says in which way the bytes are not a summary's piece; some spans may have been visited then.
pub fn visit_summary(
    payload: &[u8],
    visit: &mut dyn FnMut(PartitionId, SummarySpan),
) -> Result<SummaryHead, FormatError> {
    let head = SummaryHead::decode(payload)?;
    let mut fields = Fields::new(payload.get(SUMMARY_HEAD_BYTES..).ok_or(FormatError::Short)?);
    let mut partition = 0u64;
    while fields.left() > 0 {
        partition = partition.checked_add(fields.varint()?).ok_or(FormatError::Field("partition"))?;
        let spans = fields.count()?;
        let (mut index, mut generation, mut offset) = (0u64, 0, 0);
        for _ in 0..spans {
            let first = index.checked_add(fields.varint()?).ok_or(FormatError::Field("first"))?;
            let count = u32::try_from(fields.varint()?).map_err(|_| FormatError::Field("count"))?;
            generation = fields.delta(generation)?;
            offset = fields.delta(offset)?;
            let units = fields.varint()?;
            let pure = units & 1 == 1;
            let small = |units: u64| {
                units.checked_mul(UNIT).and_then(|b| u32::try_from(b).ok()).ok_or(FormatError::Field("bytes"))
            };
            let bytes = small(units / 2)?;
            let held = if pure { bytes } else { small(fields.varint()?)? };
            index = first.checked_add(u64::from(count)).ok_or(FormatError::Field("count"))?;
            if count == 0 || first == 0 {
                return Err(FormatError::Field("count"));
            }
            let start = offset.checked_mul(UNIT).ok_or(FormatError::Field("offset"))?;
            start.checked_add(u64::from(bytes)).ok_or(FormatError::Field("offset"))?;
            let span = SummarySpan {
                first: Index(first),
                count,
                generation: Generation(generation),
                offset: start,
                bytes,
                held,
                pure,
            };
            visit(PartitionId(partition), span);
        }
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> SummaryHead {
        SummaryHead { store: Incarnation(7), segment_seq: 3, base: Lsn(8 << 20), piece: 0, pieces: 1 }
    }

    fn spans() -> impl Strategy<Value = Vec<SummarySpan>> {
        proptest::collection::vec(
            (1u64..500, 1u32..300, 0u64..9, 0u64..1 << 20, 1u32..1024, any::<bool>()),
            1..40,
        )
        .prop_map(|list| {
            let mut next = 0;
            list.into_iter()
                .map(|(gap, count, generation, offset, units, pure)| {
                    let first = next + gap;
                    next = first + u64::from(count);
                    let bytes = units * 64;
                    let held = if pure { bytes } else { bytes / 128 * 64 };
                    SummarySpan {
                        first: Index(first),
                        count,
                        generation: Generation(generation),
                        offset: offset * 64,
                        bytes,
                        held,
                        pure,
                    }
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn pieces_hold_what_was_put(
            groups in proptest::collection::btree_map(0u64..20_000, spans(), 0..30),
            limit in 400usize..6000,
        ) {
            let given = groups.iter().map(|(p, spans)| (PartitionId(*p), spans.as_slice()));
            let pieces = encode_summary(&head(), given, limit);
            let mut got: Vec<(u64, SummarySpan)> = Vec::new();
            for (at, (first, payload)) in pieces.iter().enumerate() {
                prop_assert!(payload.len() <= limit);
                let mut seen = None;
                let found = visit_summary(payload, &mut |partition, span| {
                    seen.get_or_insert(partition);
                    got.push((partition.0, span));
                }).unwrap();
                prop_assert_eq!(found, SummaryHead { piece: at as u32, pieces: pieces.len() as u32, ..head() });
                prop_assert_eq!(seen.unwrap_or(PartitionId(0)), *first);
            }
            let all: Vec<_> = groups.iter().flat_map(|(p, spans)| spans.iter().map(|s| (*p, *s))).collect();
            prop_assert_eq!(got, all);
        }

        #[test]
        fn any_bytes_give_a_verdict(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), valid: bool) {
            if valid && bytes.len() >= SUMMARY_HEAD_BYTES {
                bytes[..SUMMARY_HEAD_BYTES].copy_from_slice(&head().encode());
            }
            let _ = visit_summary(&bytes, &mut |_, _| {});
        }
    }
}
