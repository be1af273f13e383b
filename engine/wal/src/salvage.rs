//! What a bad batch holds, piece by piece.
//!
//! Its spans (from its footer, or from the echo in the next batch) say what it held: control records are in the spans in full; entries are taken where a valid record of that partition, index and
//! generation lies, and are lost otherwise. Records are walked from known starts only, the batch's first record and
//! those that spans point at, never found by searching: a payload may hold the image of a record.
//! Everything comes in the order of the spans, in which a partition's log can be replayed: a run of entries is not
//! extended over a cut. It does not know what the log is made of otherwise.

use crate::format::{BATCH_HEADER_BYTES, Span};
use std::collections::BTreeMap;
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Generation, Index, PartitionId, Position, RecordHeader, RecordKind, ReplicatedMs};

/// Entries whose bytes are lost: they are in the log, and cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lost {
    /// First index.
    pub first: Index,
    /// Last index.
    pub last: Index,
    /// Their generation.
    pub generation: Generation,
    /// Their write was never proven durable; it may not have been complete.
    pub suspect: bool,
}

/// A part of what a batch holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Piece {
    pub(crate) partition: PartitionId,
    pub(crate) what: What,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// A control record, as far as spans tell it.
    Control(RecordHeader),
    /// An entry at `offset` in the batch. Moved: it is in the log already, and this is its newest copy.
    Entry { offset: usize, record: RecordHeader, moved: bool },
    /// The bytes of entries are lost; or of newer copies of them.
    Lost { first: Index, last: Index, generation: Generation, moved: bool },
}

/// The pieces of a bad batch of this cluster that is known to have held `spans`.
/// Without a cluster, entries of any are taken: for tools, which are not told.
pub(crate) fn salvaged(bytes: &[u8], spans: &[Span], cluster: Option<u32>) -> Vec<Piece> {
    let found = good_entries(bytes, spans, cluster);
    let mut pieces: Vec<Piece> = Vec::new();
    let mut moving = 0;
    for (at, span) in spans.iter().enumerate() {
        let partition = span.partition;
        if span.kind != RecordKind::Data {
            if span.kind == RecordKind::Moved {
                moving = span.a.0;
            }
            let control = RecordHeader {
                index: span.a,
                generation: span.generation,
                timestamp: ReplicatedMs(if matches!(span.kind, RecordKind::Lost | RecordKind::LostCopies) {
                    u64::from(span.count)
                } else {
                    0
                }),
                cluster: cluster.unwrap_or_default(),
                ..RecordHeader::new(span.kind, partition)
            };
            pieces.push(Piece { partition, what: What::Control(control) });
            continue;
        }
        for index in span.a.0..=span.last().0 {
            let (index, generation) = (Index(index), span.generation);
            let moved = moving > 0;
            moving -= u64::from(moved);
            if let Some(&(offset, record)) = found.get(&(at, index)) {
                pieces.push(Piece { partition, what: What::Entry { offset, record, moved } });
                continue;
            }
            if let Some(Piece { partition: of, what: What::Lost { last, generation: g, moved: m, .. } }) =
                pieces.last_mut()
                && (*of, *g, *m) == (partition, generation, moved)
                && last.next() == index
            {
                *last = index;
            } else {
                let what = What::Lost { first: index, last: index, generation, moved };
                pieces.push(Piece { partition, what });
            }
        }
    }
    pieces
}

/// Valid entries that the spans name, with their offsets; by the span's position in the list, and index.
fn good_entries(
    bytes: &[u8],
    spans: &[Span],
    cluster: Option<u32>,
) -> BTreeMap<(usize, Index), (usize, RecordHeader)> {
    let mut starts: Vec<usize> = spans.iter().map(|span| span.offset as usize).collect();
    starts.push(BATCH_HEADER_BYTES);
    starts.sort_unstable();
    starts.dedup();
    let mut found = BTreeMap::new();
    let mut walked = 0;
    for start in starts {
        // A walk that came through here found the same records.
        let mut at = start.max(BATCH_HEADER_BYTES);
        if at < walked {
            continue;
        }
        while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_BYTES)
            && let Ok(record) = RecordHeader::decode(rest)
        {
            let len = record.record_bytes();
            let Position { index, generation } = record.position();
            // The run that it is in began last among its partition's before it: behind a cut an index comes again.
            let of = |span: &&Span| {
                span.kind == RecordKind::Data
                    && span.partition == record.partition
                    && span.offset as usize <= at
            };
            let own =
                spans.iter().enumerate().filter(|(_, span)| of(span)).max_by_key(|(_, span)| span.offset);
            if let Some((own, span)) = own
                && record.kind.is_entry()
                && cluster.is_none_or(|cluster| record.cluster == cluster)
                && span.generation == generation
                && span.a <= index
                && index <= span.last()
                && RecordHeader::decode_record(rest).is_ok()
            {
                found.entry((own, index)).or_insert((at, record));
            }
            at += len;
            walked = at;
        }
    }
    found
}

/// Entries of which no copy is left, for the log of a next epoch.
pub(crate) fn lost_copies_record(
    partition: PartitionId,
    first: Index,
    last: Index,
    generation: Generation,
    cluster: u32,
) -> RecordHeader {
    let record = lost_record(partition, first, last, generation, cluster);
    RecordHeader { kind: RecordKind::LostCopies, ..record }
}

/// The record of a lost run, for the log of a next epoch: as many entries from `index` on as its time says.
pub(crate) fn lost_record(
    partition: PartitionId,
    first: Index,
    last: Index,
    generation: Generation,
    cluster: u32,
) -> RecordHeader {
    RecordHeader {
        index: first,
        generation,
        timestamp: ReplicatedMs(last.0.saturating_sub(first.0) + 1),
        cluster,
        ..RecordHeader::new(RecordKind::Lost, partition)
    }
}

/// The entries that such a record tells of; none if there can be no such.
pub(crate) fn lost_of(record: &RecordHeader) -> Option<(Index, Index)> {
    let last = record.index.0.checked_add(record.timestamp.0.checked_sub(1)?)?;
    Some((record.index, Index(last)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: u32 = 9;

    fn record(partition: u64, index: u64, payload: &[u8]) -> Vec<u8> {
        let header = RecordHeader {
            index: Index(index),
            generation: Generation(2),
            payload_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            cluster: TAG,
            ..RecordHeader::new(RecordKind::Data, PartitionId(partition))
        };
        let mut bytes = vec![0; header.record_bytes()];
        header.encode(&mut bytes);
        bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
        bytes
    }

    fn span(partition: u64, a: u64, count: u32, offset: usize) -> Span {
        Span {
            partition: PartitionId(partition),
            generation: Generation(2),
            a: Index(a),
            count,
            offset: offset as u32,
            kind: RecordKind::Data,
        }
    }

    /// Entries 5..=7 of partition 1 with one of partition 2 between, 128 bytes each, from offset 128.
    fn batch() -> (Vec<u8>, Vec<Span>) {
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        for (partition, index) in [(1, 5), (2, 1), (1, 6), (1, 7)] {
            bytes.extend(record(partition, index, &[index as u8; 60]));
        }
        bytes.resize(4096, 0);
        (bytes, vec![span(1, 5, 3, 128), span(2, 1, 1, 256)])
    }

    fn lost(bytes: &[u8], spans: &[Span]) -> Vec<(u64, u64, u64)> {
        let lost = |piece: &Piece| match piece.what {
            What::Lost { first, last, .. } => Some((piece.partition.0, first.0, last.0)),
            _ => None,
        };
        salvaged(bytes, spans, Some(TAG)).iter().filter_map(lost).collect()
    }

    #[test]
    fn what_is_good_is_kept_in_the_order_of_the_spans() {
        let (bytes, spans) = batch();
        let order: Vec<_> = salvaged(&bytes, &spans, Some(TAG))
            .iter()
            .map(|p| match &p.what {
                What::Entry { offset, record, moved: false } => (*offset, record.partition.0, record.index.0),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(order, [(128, 1, 5), (384, 1, 6), (512, 1, 7), (256, 2, 1)]);
        assert_eq!(lost(&bytes, &spans), []);
    }

    #[test]
    fn a_bad_payload_costs_its_entry_a_bad_header_what_lies_behind_up_to_the_next_known_start() {
        let (mut bytes, spans) = batch();
        bytes[384 + 70] ^= 1;
        assert_eq!(lost(&bytes, &spans), [(1, 6, 6)]);
        bytes[128 + 9] ^= 1;
        assert_eq!(lost(&bytes, &spans), [(1, 5, 6)], "the span of partition 2 is a start");
        bytes[256 + 9] ^= 1;
        assert_eq!(lost(&bytes, &spans), [(1, 5, 7), (2, 1, 1)]);
    }

    #[test]
    fn an_image_in_a_payload_is_not_a_record() {
        let image = record(1, 6, b"forged");
        let mut bytes = vec![0; BATCH_HEADER_BYTES];
        bytes.extend(record(1, 5, &image));
        bytes.extend(record(1, 6, b"true"));
        bytes.resize(4096, 0);
        bytes[128 + 5] ^= 1; // whose length is not known then
        assert_eq!(lost(&bytes, &[span(1, 5, 2, 128)]), [(1, 5, 6)]);
    }

    #[test]
    fn only_what_the_spans_name_of_this_cluster_counts() {
        let (bytes, mut spans) = batch();
        spans[0].count = 2;
        assert!(salvaged(&bytes, &spans, Some(TAG)).len() == 3);
        spans[0].generation = Generation(3);
        assert_eq!(lost(&bytes, &spans), [(1, 5, 6)]);
        assert_eq!(salvaged(&bytes, &spans, Some(TAG + 1)).len(), 2, "two lost runs");
    }

    #[test]
    fn copies_are_told_from_entries_by_their_marker() {
        let (bytes, mut spans) = batch();
        let marker = Span { a: Index(2), kind: RecordKind::Moved, count: 1, ..spans[0] };
        spans.insert(0, marker);
        let moved: Vec<_> = salvaged(&bytes, &spans, Some(TAG))
            .iter()
            .filter_map(|p| match p.what {
                What::Entry { moved, .. } => Some(moved),
                _ => None,
            })
            .collect();
        assert_eq!(moved, [true, true, false, false]);
    }
}
