//! The log on the machine's own kernel and disk, over both back-ends. What it can lose is the simulator's business.

use std::path::Path;
use tidelog_io::{BackEnd, Io, IoOptions, Wait, open_back_end};
use tidelog_types::{
    EntryMeta, Generation, Incarnation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind,
    ShardId, Ticket,
};
use tidelog_wal::{Lost, Options, ReadId, Replay, Wal, WalEvent, inspect};

const PARTITION: PartitionId = PartitionId(3);

#[derive(Default)]
struct Entries(Vec<(u64, Vec<u8>)>);

impl Replay for Entries {
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]) {
        assert_eq!(partition, PARTITION);
        self.0.push((meta.position.index.0, payload.to_vec()));
    }
    fn cut(&mut self, _: PartitionId, keep: Position) {
        self.0.truncate(keep.index.0 as usize);
    }
    fn promise(&mut self, _: PartitionId, generation: Generation, _: Option<NodeId>) {
        assert_eq!(generation, Generation(1));
    }
    fn high_water(&mut self, _: PartitionId, _: Index) {}
    fn damaged(&mut self, _: PartitionId, lost: Lost) {
        panic!("nothing was damaged: {lost:?}");
    }
    fn moved(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
}

fn wait(wal: &mut Wal, io: &mut dyn Io) -> Vec<WalEvent> {
    let (mut got, mut events) = (Vec::new(), Vec::new());
    io.poll(Wait::Forever, &mut got);
    for completion in got {
        wal.complete(io, completion, &mut events);
    }
    events
}

fn payload(i: u64) -> Vec<u8> {
    vec![i as u8; (i as usize * 37) % 5000 + if i.is_multiple_of(20) { 70_000 } else { 0 }]
}

fn options(dir: &Path) -> Options {
    Options {
        segment_bytes: 2 << 20,
        batch_bytes_max: 256 << 10,
        cache_bytes_max: 128 << 10,
        ..Options::new(dir.join("wal"), NodeId(1), ShardId(0), Incarnation(5))
    }
}

fn write_and_read_back(kind: BackEnd) {
    let dir = tempfile::tempdir().unwrap();
    let mut io = match open_back_end(kind, &IoOptions::small()) {
        Ok(io) => io,
        Err(e) if kind == BackEnd::Uring => {
            eprintln!("not run: {e}"); // containers often forbid it
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let io = io.as_mut();
    let (mut wal, report, _) = Wal::open(io, options(dir.path()), &mut Entries::default()).unwrap();
    assert!(report.fresh);
    wal.append_promise(Ticket(1), PARTITION, Generation(1), None).unwrap();
    let count = 600;
    let (mut told, mut durable) = (0, 0);
    while durable < count {
        while told < count && told < durable + 24 {
            let payload = payload(told + 1);
            let header = RecordHeader {
                index: Index(told + 1),
                generation: Generation(1),
                prev_generation: Generation(u64::from(told > 0)),
                payload_len: payload.len() as u32,
                payload_crc: crc32c::crc32c(&payload),
                ..RecordHeader::new(RecordKind::Data, PARTITION)
            };
            if wal.append_entry(Ticket(told + 2), header, &payload).is_err() {
                break;
            }
            told += 1;
        }
        wal.flush(io);
        for event in wait(&mut wal, io) {
            match event {
                WalEvent::Durable { ticket, .. } => durable = ticket.0 - 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(wal.stats().segments >= 2);
    wal.read(io, ReadId(1), PARTITION, Index(1), Index(600), 200 << 10);
    let run = loop {
        if let Some(WalEvent::Read { result, .. }) = wait(&mut wal, io).pop() {
            break result.unwrap();
        }
    };
    assert_eq!(run.first, Index(1));
    assert!(run.last > Index(10));
    wal.close(io);

    let report = inspect::verify(io, &options(dir.path()).dir, inspect::Eyes::default()).unwrap();
    assert!(!report.is_damaged() && report.findings.is_empty(), "{report:?}");
    let mut entries = Entries::default();
    let (mut wal, report, _) = Wal::open(io, options(dir.path()), &mut entries).unwrap();
    assert_eq!((report.findings.len(), report.rewritten), (0, 0));
    assert_eq!(entries.0, (1..=count).map(|i| (i, payload(i))).collect::<Vec<_>>());
    wal.close(io);
}

#[test]
fn over_io_uring() {
    write_and_read_back(BackEnd::Uring);
}

#[test]
fn over_blocking_calls() {
    write_and_read_back(BackEnd::Blocking);
}
