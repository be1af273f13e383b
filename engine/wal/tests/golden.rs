//! The worked examples of `docs/formats`: encoders give exactly these bytes, and a small decoder, written from the
//! documents and sharing no code with the crate, reads from them what the documents say.

mod worked;

use tidelog_types::{
    Generation, Incarnation, Index, Lsn, NodeId, PartitionId, RecordHeader, RecordKind, ReplicatedMs,
    Sequence, SessionId, SessionRef, ShardId, record::Extension,
};
use tidelog_wal::format::{
    BatchHeader, CheckpointEnd, ChunkPlace, Footer, SegmentHeader, SummaryHead, SummarySpan, encode_summary,
    visit_summary,
};

use worked::{crc, example, number, pinned};

const RECORD: &str = include_str!("../../../docs/formats/record.md");
const BATCH: &str = include_str!("../../../docs/formats/batch.md");
const SEGMENT: &str = include_str!("../../../docs/formats/segment.md");
const CHECKPOINT: &str = include_str!("../../../docs/formats/checkpoint.md");
const SUMMARY: &str = include_str!("../../../docs/formats/summary.md");

fn session_entry() -> (RecordHeader, Vec<u8>) {
    let payload = b"hello".to_vec();
    let header = RecordHeader {
        index: Index(7),
        generation: Generation(2),
        prev_generation: Generation(1),
        timestamp: ReplicatedMs(1_790_000_000_000),
        cluster: 0xc1a5_7e12,
        payload_len: 5,
        payload_crc: crc32c::crc32c(&payload),
        extension: Some(Extension { a: 4, b: 9, fence_resource: 0, fence_token: 0 }),
        ..RecordHeader::new(RecordKind::Data, PartitionId(3))
    };
    (header, payload)
}

fn promise() -> RecordHeader {
    RecordHeader {
        cluster: 0xc1a5_7e12,
        ..RecordHeader::promise(PartitionId(3), Generation(2), Some(NodeId(1)))
    }
}

fn encode(header: &RecordHeader, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; header.record_bytes()];
    header.encode(&mut bytes);
    bytes[header.head_bytes()..header.head_bytes() + payload.len()].copy_from_slice(payload);
    bytes
}

/// The record at the start of `b`, from record.md alone: its fields by name, and its length.
fn decode_record(b: &[u8]) -> (Vec<(&'static str, u64)>, Vec<u8>, usize) {
    let extended = number(b, 14, 2) & 1 == 1;
    let head = if extended { 128 } else { 64 };
    let len = number(b, 8, 4) as usize;
    assert_eq!(number(b, 0, 4), u64::from(crc(&b[4..head])), "header_crc");
    assert_eq!(number(b, 4, 4), u64::from(crc(&b[head..head + len])), "payload_crc");
    let mut fields = vec![
        ("kind", number(b, 12, 1)),
        ("version", number(b, 13, 1)),
        ("flags", number(b, 14, 2)),
        ("partition", number(b, 16, 8)),
        ("index", number(b, 24, 8)),
        ("generation", number(b, 32, 8)),
        ("prev_generation", number(b, 40, 8)),
        ("timestamp", number(b, 48, 8)),
        ("cluster", number(b, 56, 4)),
        ("zero", number(b, 60, 4)),
    ];
    if extended {
        fields.push(("a", number(b, 64, 8)));
        fields.push(("b", number(b, 72, 8)));
    }
    (fields, b[head..head + len].to_vec(), (head + len).div_ceil(64) * 64)
}

#[test]
fn record() {
    let (header, payload) = session_entry();
    pinned(RECORD, 0, &encode(&header, &payload));

    let (fields, payload, len) = decode_record(&example(RECORD, 0));
    assert_eq!(len, 192);
    assert_eq!(payload, b"hello");
    assert_eq!(
        fields,
        [
            ("kind", 2),
            ("version", 1),
            ("flags", 1),
            ("partition", 3),
            ("index", 7),
            ("generation", 2),
            ("prev_generation", 1),
            ("timestamp", 1_790_000_000_000),
            ("cluster", 0xc1a5_7e12),
            ("zero", 0),
            ("a", 4),
            ("b", 9),
        ]
    );
    let (header, _) = RecordHeader::decode_record(&example(RECORD, 0)).unwrap();
    assert_eq!(header.session(), Some(SessionRef { session: SessionId(4), sequence: Sequence(9) }));
}

/// The record that stands for entries whose bytes are lost: kind 74.
#[test]
fn lost() {
    let header = RecordHeader {
        index: Index(7),
        generation: Generation(2),
        timestamp: ReplicatedMs(3),
        cluster: 0xc1a5_7e12,
        ..RecordHeader::new(RecordKind::Lost, PartitionId(3))
    };
    pinned(RECORD, 1, &encode(&header, &[]));

    let (fields, payload, len) = decode_record(&example(RECORD, 1));
    assert_eq!((payload.len(), len), (0, 64));
    assert_eq!(
        fields,
        [
            ("kind", 74),
            ("version", 1),
            ("flags", 0),
            ("partition", 3),
            ("index", 7),
            ("generation", 2),
            ("prev_generation", 0),
            ("timestamp", 3),
            ("cluster", 0xc1a5_7e12),
            ("zero", 0),
        ]
    );
    let bytes = example(RECORD, 1);
    let (read, payload) = RecordHeader::decode_record(&bytes).unwrap();
    assert_eq!((read, payload.len()), (header, 0));
}

#[test]
fn segment() {
    let header = SegmentHeader {
        shard: ShardId(0),
        store: Incarnation(0x1122_3344_5566_7788),
        node: NodeId(1),
        segment_seq: 3,
        base: Lsn(0x80_0000),
        bytes: 0x40_0000,
        epoch: 2,
        prev_epoch_end: Lsn(0x3000),
        recycled: false,
        durable: Lsn(0x40_4000),
        footers_apart: true,
    };
    let mut page = [0; 4096];
    header.encode(&mut page);
    pinned(SEGMENT, 0, &page);

    let b = example(SEGMENT, 0);
    assert_eq!(&b[0..4], b"TLsg");
    assert_eq!(number(&b, 4, 4), u64::from(crc(&b[8..4096])));
    let fields: Vec<_> = [16, 24, 32, 40, 48, 56, 64, 80].iter().map(|at| number(&b, *at, 8)).collect();
    assert_eq!((number(&b, 8, 4), number(&b, 12, 4)), (2, 0), "version, shard");
    assert_eq!(fields, [0x1122_3344_5566_7788, 1, 3, 0x80_0000, 0x40_0000, 2, 0x3000, 0x40_4000]);
    assert!(b[72..80].iter().chain(&b[88..]).all(|b| *b == 0));
}

#[test]
fn checkpoint_end() {
    let end = CheckpointEnd {
        store: Incarnation(0x1122_3344_5566_7788),
        epoch: 2,
        at: Lsn(0x2000),
        batch: Lsn(0x4000),
        bytes: 300,
        crc: 0xdead_beef,
        chunks: vec![ChunkPlace { lsn: Lsn(0x2080), len: 300 }],
    };
    pinned(CHECKPOINT, 0, &end.encode());
    assert_eq!(CheckpointEnd::decode(&example(CHECKPOINT, 0)), Ok(end));
    let b = example(CHECKPOINT, 0);
    let long: Vec<_> = [8, 16, 24, 32, 40, 56].iter().map(|at| number(&b, *at, 8)).collect();
    assert_eq!(long, [0x1122_3344_5566_7788, 2, 0x2000, 0x4000, 300, 0x2080]);
    assert_eq!((number(&b, 0, 4), number(&b, 4, 4), number(&b, 64, 4)), (1, 1, 300));
}

#[test]
fn summary() {
    let head = SummaryHead {
        store: Incarnation(0x1122_3344_5566_7788),
        segment_seq: 2,
        base: Lsn(0x40_0000),
        piece: 0,
        pieces: 1,
    };
    let span = SummarySpan {
        first: Index(7),
        count: 3,
        generation: Generation(2),
        offset: 0x2080,
        bytes: 192,
        held: 192,
        pure: true,
    };
    let spans = [span];
    let groups = [(PartitionId(3), spans.as_slice())];
    let pieces = encode_summary(&head, groups.into_iter(), 1000);
    assert_eq!(pieces.len(), 1);
    pinned(SUMMARY, 0, &pieces[0].1);
    let mut got = Vec::new();
    let found = visit_summary(&example(SUMMARY, 0), &mut |partition, span| got.push((partition, span)));
    assert_eq!((found, got), (Ok(head), vec![(PartitionId(3), span)]));
}

#[test]
fn batch() {
    let b = example(BATCH, 0);
    assert_eq!(b.len(), 8192);
    assert_eq!(&b[0..4], b"TLba");
    assert_eq!(number(&b, 4, 4), u64::from(crc(&b[8..128])));
    assert_eq!((number(&b, 8, 2), number(&b, 10, 2), number(&b, 12, 4)), (1, 128, 0));
    let long: Vec<_> = (16..80).step_by(8).map(|at| number(&b, at, 8)).collect();
    assert_eq!(long, [0x1122_3344_5566_7788, 2, 2, 0x40_4000, 6, 0x40_2000, 0x40_3000, 0]);
    let short: Vec<_> = (80..104).step_by(4).map(|at| number(&b, at, 4)).collect();
    let (total, footer, count, records_crc) = (short[0], short[1] as usize, short[2], short[3]);
    assert_eq!((total, footer, count, short[5]), (8192, 4096, 2, 0));
    assert_eq!(number(&b, 104, 8), 1_790_000_000_123);

    let (mut at, mut headers, mut records) = (128, Vec::new(), Vec::new());
    for _ in 0..count {
        let (fields, payload, len) = decode_record(&b[at..]);
        headers.extend_from_slice(&b[at..at + 64]);
        records.push((at, fields[0].1, fields[4].1, payload));
        at += len;
    }
    assert_eq!(records_crc, u64::from(crc(&headers)));
    assert_eq!(records, [(128, 64, 1, vec![]), (192, 2, 7, b"hello".to_vec())]);

    assert_eq!(&b[footer..footer + 4], b"TLfo");
    let (own, echo) = (number(&b, footer + 40, 4) as usize, number(&b, footer + 44, 4) as usize);
    let end = footer + 64 + 40 * (own + echo);
    assert_eq!(number(&b, footer + 4, 4), u64::from(crc(&b[footer + 8..end])));
    assert_eq!(number(&b, footer + 8, 8), 0x1122_3344_5566_7788);
    assert_eq!(
        (number(&b, footer + 16, 8), number(&b, footer + 24, 8), number(&b, footer + 32, 8)),
        (2, 0x40_4000, 6)
    );
    assert_eq!(number(&b, footer + 48, 8), 5, "echo_batch_seq");
    assert_eq!(number(&b, footer + 56, 4), number(&b, 4, 4), "header_crc");
    let span = |n: usize| {
        let at = footer + 64 + 40 * n;
        let long: Vec<_> = [0, 8, 16].iter().map(|o| number(&b, at + o, 8)).collect();
        (long, number(&b, at + 24, 4), number(&b, at + 28, 4), number(&b, at + 32, 1))
    };
    assert_eq!((own, echo), (2, 1));
    assert_eq!(span(0), (vec![3, 2, 1], 1, 128, 64), "own: the promise");
    assert_eq!(span(1), (vec![3, 2, 7], 1, 192, 2), "own: the entry");
    assert_eq!(span(2), (vec![3, 1, 6], 1, 128, 2), "echo: the entry of the batch before");
    assert!(b[end..].iter().all(|b| *b == 0));

    // The crate reads the same.
    let header = BatchHeader::decode(&b).unwrap();
    let footer = Footer::decode(&b[header.footer_offset as usize..]).unwrap();
    assert_eq!((header.lsn, footer.lsn, footer.own.len()), (Lsn(0x40_4000), header.lsn, 2));
    assert_eq!(encode(&promise(), &[]), b[128..192]);
}
