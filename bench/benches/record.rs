//! What a record costs the processor: checksum, encoding, decoding.
//!
//! `cargo bench -p tidelog-bench --bench record`

#![allow(missing_docs)] // criterion's macros make a public function without one

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tidelog_bench::payload::{Payloads, Stamp};
use tidelog_types::{PartitionId, RecordHeader, RecordKind};

fn record(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for bytes in [128usize, 1024, 16 << 10] {
        let payload = Payloads::new(bytes).expect("within the bounds").make(Stamp { writer: 1, sequence: 1 });
        let header = RecordHeader {
            payload_len: bytes as u32,
            payload_crc: crc32c::crc32c(&payload),
            ..RecordHeader::new(RecordKind::Data, PartitionId(3))
        };
        let mut encoded = vec![0u8; header.record_bytes()];
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_with_input(BenchmarkId::new("checksum", bytes), &payload, |b, payload| {
            b.iter(|| crc32c::crc32c(black_box(payload)));
        });
        group.bench_with_input(BenchmarkId::new("encode", bytes), &payload, |b, payload| {
            b.iter(|| {
                let out = black_box(&mut encoded[..]);
                header.encode(out);
                out[header.head_bytes()..][..payload.len()].copy_from_slice(payload);
            });
        });
        group.bench_with_input(BenchmarkId::new("decode and verify", bytes), &encoded, |b, encoded| {
            b.iter(|| {
                RecordHeader::decode_record(black_box(encoded))
                    .map(|(header, payload)| (header.index, payload.len()))
            });
        });
    }
    group.finish();
}

fn payloads(c: &mut Criterion) {
    let mut payloads = Payloads::new(1024).expect("within the bounds");
    let mut sequence = 0;
    c.bench_function("payload of 1 KiB", |b| {
        b.iter(|| {
            sequence += 1;
            payloads.make(Stamp { writer: 1, sequence })
        });
    });
}

criterion_group!(benches, record, payloads);
criterion_main!(benches);
