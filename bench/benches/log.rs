//! What an entry costs the log: its way into the growing batch, and a whole batch to the disk.
//!
//! `cargo bench -p tidelog-bench --bench log`; the log goes to `TMPDIR`, which should be on a real disk.

#![allow(missing_docs)] // criterion's macros make a public function without one

use bytes::Bytes;
use core::time::Duration;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tidelog_bench::clock;
use tidelog_bench::payload::{Payloads, Stamp};
use tidelog_io::{BackEnd, Io, IoOptions, Wait, open_back_end};
use tidelog_types::{
    EntryMeta, Generation, Incarnation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind,
    ShardId, Ticket,
};
use tidelog_wal::{Lost, Options, Replay, Wal, WalEvent};

const PARTITION: PartitionId = PartitionId(0);
const GENERATION: Generation = Generation(1);

/// A fresh log has nothing to replay.
struct Nothing;

impl Replay for Nothing {
    fn entry(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn cut(&mut self, _: PartitionId, _: Position) {}
    fn promise(&mut self, _: PartitionId, _: Generation, _: Option<NodeId>) {}
    fn high_water(&mut self, _: PartitionId, _: Index) {}
    fn damaged(&mut self, _: PartitionId, lost: Lost) {
        panic!("nothing was damaged: {lost:?}");
    }
    fn moved(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
}

struct Log {
    io: Box<dyn Io>,
    wal: Wal,
    index: u64,
    ticket: u64,
    completions: Vec<tidelog_io::Completion>,
    events: Vec<WalEvent>,
    _dir: tempfile::TempDir,
}

impl Log {
    fn open() -> Log {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = IoOptions::default();
        let mut io = open_back_end(BackEnd::Uring, &options)
            .or_else(|_| open_back_end(BackEnd::Blocking, &options))
            .expect("a back-end");
        let options = Options::new(dir.path().join("wal"), NodeId(1), ShardId(0), Incarnation(1));
        let (mut wal, _, _) = Wal::open(&mut *io, options, &mut Nothing).expect("a fresh log opens");
        wal.append_promise(Ticket(1), PARTITION, GENERATION, Some(NodeId(1)))
            .expect("an empty batch has room");
        let mut log =
            Log { io, wal, index: 0, ticket: 1, completions: Vec::new(), events: Vec::new(), _dir: dir };
        log.settle();
        log
    }

    fn append(&mut self, payload: &Bytes, payload_crc: u32) {
        self.index += 1;
        self.ticket += 1;
        let header = RecordHeader {
            index: Index(self.index),
            generation: GENERATION,
            prev_generation: if self.index == 1 { Generation::ZERO } else { GENERATION },
            payload_len: payload.len() as u32,
            payload_crc,
            ..RecordHeader::new(RecordKind::Data, PARTITION)
        };
        self.wal
            .append_entry(Ticket(self.ticket), header, payload)
            .expect("a settled log has room for a batch");
    }

    /// Writes what has grown and waits until it is durable.
    fn settle(&mut self) {
        self.wal.flush(&mut *self.io);
        loop {
            let durable = |event: &WalEvent| matches!(event, WalEvent::Durable { ticket, .. } if ticket.0 == self.ticket);
            if self.events.drain(..).any(|e| durable(&e)) {
                return;
            }
            self.io.poll(Wait::Forever, &mut self.completions);
            for completion in self.completions.drain(..) {
                self.wal.complete(&mut *self.io, completion, &mut self.events);
            }
            self.wal.tick(&mut *self.io, &mut self.events);
        }
    }
}

fn log(c: &mut Criterion) {
    let mut group = c.benchmark_group("log");
    for (bytes, batch) in [(128usize, 256u64), (1024, 256), (16 << 10, 64)] {
        let payload = Payloads::new(bytes).expect("within the bounds").make(Stamp { writer: 1, sequence: 1 });
        let crc = crc32c::crc32c(&payload);
        let mut log = Log::open();
        group.throughput(Throughput::Elements(1));
        // Only the appends are timed: what an entry costs the shard's thread before the disk has a part in it.
        group.bench_function(BenchmarkId::new("append_entry", bytes), |b| {
            b.iter_custom(|records| {
                let mut spent = Duration::ZERO;
                let mut left = records;
                while left > 0 {
                    let now = left.min(batch);
                    let start = clock::now();
                    (0..now).for_each(|_| log.append(&payload, crc));
                    spent += clock::now().since(start);
                    log.settle();
                    left -= now;
                }
                spent
            });
        });
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::new("durable batch", format!("{batch} x {bytes}")), |b| {
            b.iter(|| {
                (0..batch).for_each(|_| log.append(&payload, crc));
                log.settle();
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(Duration::from_millis(500));
    targets = log
}
criterion_main!(benches);
