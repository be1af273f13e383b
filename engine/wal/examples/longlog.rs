//! What a long log costs: throughput by number of partitions, opening by length, reading all of it, memory of quiet partitions, moving.
//!
//! `cargo run --release -p tidelog-wal --example longlog -- DIR partitions|open|scan|memory|moving [GiB]`: DIR should be on the disk
//! that is meant; what is in it is replaced. `scan` takes the payload's bytes behind the GiB, `partitions` the records to
//! append in a second instead of as many as there can be.

use std::path::{Path, PathBuf};
use std::time::Duration;
use tidelog_io::{
    BackEnd, Completion, Io, IoOptions, Op, OpenMode, Output, Token, TokenClass, Wait, open_back_end,
};
use tidelog_types::{
    EntryMeta, Generation, Incarnation, Index, Monotonic, NodeId, PartitionId, Position, RecordHeader,
    RecordKind, ShardId, Ticket,
};
use tidelog_wal::{Options, Replay, Wal, WalEvent};

const GENERATION: Generation = Generation(1);

/// Nothing above the log remembers anything.
struct Nothing;

impl Replay for Nothing {
    fn damaged(&mut self, _: PartitionId, lost: tidelog_wal::Lost) {
        panic!("nothing was damaged: {lost:?}");
    }
    fn moved(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn entry(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn cut(&mut self, _: PartitionId, _: Position) {}
    fn promise(&mut self, _: PartitionId, _: Generation, _: Option<NodeId>) {}
    fn high_water(&mut self, _: PartitionId, _: Index) {}
    fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
}

struct Log {
    io: Box<dyn Io>,
    wal: Wal,
    ticket: u64,
    last: Vec<u64>,
    events: Vec<WalEvent>,
}

impl Log {
    fn open(dir: &Path, partitions: usize, change: impl FnOnce(&mut Options)) -> Log {
        let options = IoOptions::default();
        let mut io = open_back_end(BackEnd::Uring, &options)
            .or_else(|_| open_back_end(BackEnd::Blocking, &options))
            .expect("a back-end");
        let mut options = Options::new(dir, NodeId(1), ShardId(0), Incarnation(1));
        change(&mut options);
        let (wal, report, _) = Wal::open(&mut *io, options, &mut Nothing).expect("the log opens");
        if !report.fresh {
            println!(
                "  opened in {:?}: {} MiB read in {:?}, {:.2} GB/s, {} segments, from {:?}",
                report.duration,
                report.bytes >> 20,
                report.reading,
                report.bytes as f64 / report.reading.as_secs_f64() / 1e9,
                report.segments,
                report.checkpoint
            );
        }
        let last = (0..partitions).map(|p| wal.last(PartitionId(p as u64)).index.0).collect();
        Log { io, wal, ticket: 0, last, events: Vec::new() }
    }

    fn now(&mut self) -> Monotonic {
        self.io.clock().now
    }

    fn turn(&mut self, wait: Wait) {
        self.wal.flush_saving(&mut *self.io, &mut |_, out| out.extend_from_slice(&[7; 160]));
        let mut got = Vec::new();
        self.io.poll(wait, &mut got);
        for completion in got {
            self.wal.complete(&mut *self.io, completion, &mut self.events);
        }
        self.wal.tick(&mut *self.io, &mut self.events);
        for event in self.events.drain(..) {
            assert!(!matches!(event, WalEvent::Fenced { .. }), "{event:?}");
        }
    }

    fn append(&mut self, partition: usize, payload: &[u8], crc: u32) {
        let id = PartitionId(partition as u64);
        loop {
            self.ticket += 1;
            if self.last[partition] == 0
                && self.wal.last(id) == Position::ZERO
                && self.wal.append_promise(Ticket(self.ticket), id, GENERATION, None).is_err()
            {
                self.turn(Wait::Forever);
                continue;
            }
            self.ticket += 1;
            let header = RecordHeader {
                index: Index(self.last[partition] + 1),
                generation: GENERATION,
                prev_generation: if self.last[partition] == 0 { Generation::ZERO } else { GENERATION },
                payload_len: payload.len() as u32,
                payload_crc: crc,
                ..RecordHeader::new(RecordKind::Data, id)
            };
            match self.wal.append_entry(Ticket(self.ticket), header, payload) {
                Ok(()) => break,
                Err(_) => self.turn(Wait::Forever),
            }
        }
        self.last[partition] += 1;
    }

    fn low_water(&mut self, partition: usize, first: u64) {
        self.ticket += 1;
        let _ = self.wal.append_low_water(Ticket(self.ticket), PartitionId(partition as u64), Index(first));
    }

    fn settle(&mut self) {
        while self.wal.stats().in_flight > 0 {
            self.turn(Wait::Forever);
        }
        for _ in 0..2000 {
            let until = self.io.clock().now.after(Duration::from_millis(1));
            self.turn(Wait::Until(until));
        }
    }
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Nanoseconds that this thread was on a processor.
fn processor_time() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Appends at full speed, or `rate` records a second.
fn partitions(dir: &Path, rate: Option<u64>) {
    for round in 0..3 {
        for count in [1usize, 100, 10_000] {
            let _ = std::fs::remove_dir_all(dir);
            let mut log = Log::open(dir, count, |o| o.log_bytes_target = 1 << 30);
            let payload = vec![5; 1024];
            let crc = crc32c::crc32c(&payload);
            for partition in 0..count {
                log.append(partition, &payload, crc);
            }
            let (start, before, busy) = (log.now(), log.wal.stats(), processor_time());
            let mut records = 0u64;
            while log.now().since(start) < Duration::from_secs(3) {
                if let Some(rate) = rate {
                    let due = start.after(Duration::from_secs_f64(records as f64 / rate as f64));
                    while log.now() < due {
                        log.turn(Wait::Until(due));
                    }
                }
                for i in 0..256u64 {
                    log.append(((records + i) % count as u64) as usize, &payload, crc);
                }
                records += 256;
                // What is old is let go, so that the log stays short.
                if records.is_multiple_of(8192) {
                    for partition in
                        (0..count).filter(|p| count <= 100 || (*p as u64 / 256) == records / 8192 % 40)
                    {
                        let last = log.last[partition];
                        log.low_water(partition, last.saturating_sub(20_000 / count as u64).max(1));
                    }
                }
                log.turn(Wait::No);
            }
            let (stats, spent) = (log.wal.stats(), log.now().since(start).as_secs_f64());
            println!(
                "round {round}, {count} partitions: {:.0} records/s, {:.2} us of the processor each, {} per batch, {:.3} log bytes a payload byte, {} checkpoints of {} KiB, {} summaries, {} reclaimed, {} segments",
                records as f64 / spent,
                (processor_time() - busy) as f64 / 1e3 / records as f64,
                (stats.records - before.records) / (stats.batches - before.batches).max(1),
                (stats.bytes - before.bytes) as f64 / (stats.payload_bytes - before.payload_bytes) as f64,
                stats.checkpoints,
                stats.checkpoint_bytes >> 10,
                stats.summaries,
                stats.reclaimed,
                stats.segments,
            );
        }
    }
}

fn open(dir: &Path, gib: u64) {
    let _ = std::fs::remove_dir_all(dir);
    let mut log = Log::open(dir, 100, |o| o.log_bytes_target = 1 << 50);
    let payload = vec![5; 64 << 10];
    let crc = crc32c::crc32c(&payload);
    let mut at = 0;
    for step in [1, 2, 4, 10, 50].into_iter().filter(|s| *s <= gib) {
        while log.wal.stats().bytes < step << 30 && at < step << 30 {
            for partition in 0..100 {
                log.append(partition, &payload, crc);
            }
            at += 100 * payload.len() as u64;
            log.turn(Wait::No);
        }
        log.settle();
        log.wal.close(&mut *log.io);
        println!("{step} GiB:");
        for _ in 0..3 {
            log = Log::open(dir, 100, |o| o.log_bytes_target = 1 << 50);
            log.wal.close(&mut *log.io);
        }
        log = Log::open(dir, 100, |o| o.log_bytes_target = 1 << 50);
    }
}

/// Plain direct sequential reading of the log's files, `depth` reads of 1 MiB at once, over the same back-end: what an opening that
/// reads all of them is measured by. Returns the bytes read.
fn read_files(io: &mut dyn Io, dir: &Path, depth: usize) -> u64 {
    const READ_BYTES: u64 = 1 << 20;
    let token = |value| Token { class: TokenClass::Foreground, value };
    let mut got: Vec<Completion> = Vec::new();
    let run = |io: &mut dyn Io, op, got: &mut Vec<Completion>| {
        io.submit(token(0), op);
        while io.poll(Wait::Forever, got) == 0 {}
        got.pop().expect("a completion").result.expect("the operation works")
    };
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .expect("the log's directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            stem.len() == 16 && stem.chars().all(|c| c.is_ascii_hexdigit())
        })
        .collect();
    paths.sort();
    let mut total = 0;
    for path in paths {
        let Output::Opened { file, bytes } = run(io, Op::Open { path, mode: OpenMode::Read }, &mut got)
        else {
            panic!("not opened")
        };
        let (mut next, mut flying) = (0, 0);
        while next < bytes || flying > 0 {
            while next < bytes && flying < depth {
                let buffer = io.buffers().take(READ_BYTES as usize);
                io.submit(token(next), Op::Read { file, offset: next, buffer });
                next += READ_BYTES;
                flying += 1;
            }
            io.poll(Wait::Forever, &mut got);
            for completion in got.drain(..) {
                let Ok(Output::Read { bytes, .. }) = completion.result else { panic!("not read") };
                total += bytes as u64;
                flying -= 1;
            }
        }
        run(io, Op::CloseFile { file }, &mut got);
    }
    total
}

/// Opening a log that has no checkpoint, so that all of it is read; plain reading of the same files before and after.
fn scan(dir: &Path, gib: u64, payload: usize) {
    const DEPTH: usize = 4;
    let _ = std::fs::remove_dir_all(dir);
    let change = |o: &mut Options| (o.log_bytes_target, o.checkpoint_every) = (1 << 50, 1 << 50);
    let mut log = Log::open(dir, 1, change);
    let payload = vec![5; payload];
    let crc = crc32c::crc32c(&payload);
    // 256 writers with a record in flight each.
    while log.wal.stats().bytes < gib << 30 {
        for _ in 0..256 {
            log.append(0, &payload, crc);
        }
        log.turn(Wait::No);
    }
    log.settle();
    log.wal.close(&mut *log.io);
    drop(log);
    for _ in 0..4 {
        let mut io = open_back_end(BackEnd::Uring, &IoOptions::default()).expect("a ring");
        let start = io.clock().now;
        let bytes = read_files(&mut *io, dir, DEPTH);
        let plain = bytes as f64 / io.clock().now.since(start).as_secs_f64() / 1e9;
        drop(io);
        let mut log = Log::open(dir, 1, change);
        log.wal.close(&mut *log.io);
        println!("  plain reading: {} MiB, {plain:.2} GB/s", bytes >> 20);
    }
}

fn memory(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    let count = 10_000;
    let mut log = Log::open(dir, count, |o| o.cache_bytes_max = 8 << 20);
    let payload = vec![5; 100];
    let crc = crc32c::crc32c(&payload);
    let before = resident();
    for partition in 0..count {
        log.append(partition, &payload, crc);
    }
    log.settle();
    let fresh = resident();
    // Traffic of one partition makes the others' segment old.
    let large = vec![5; 64 << 10];
    let large_crc = crc32c::crc32c(&large);
    for _ in 0..4000 {
        log.append(0, &large, large_crc);
        log.turn(Wait::No);
    }
    log.settle();
    println!(
        "{count} quiet partitions: {} KiB before, {fresh} KiB with their spans, {} KiB when they are old",
        before,
        resident()
    );
    let stats = log.wal.stats();
    log.wal.close(&mut *log.io);
    drop(log);
    println!("  {stats:?}");
    log = Log::open(dir, count, |o| o.cache_bytes_max = 8 << 20);
    println!("  {} KiB in this process when it is opened again", resident());
    log.wal.close(&mut *log.io);
}

fn moving(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    let count = 10_000;
    let mut log = Log::open(dir, count, |o| o.log_bytes_target = 512 << 20);
    let payload = vec![5; 1024];
    let crc = crc32c::crc32c(&payload);
    for partition in 0..count {
        log.append(partition, &payload, crc);
    }
    let large = vec![5; 16 << 10];
    let large_crc = crc32c::crc32c(&large);
    let start = log.now();
    while log.now().since(start) < Duration::from_secs(30) {
        for _ in 0..32 {
            log.append(0, &large, large_crc);
        }
        let last = log.last[0];
        if last % 1024 == 1 {
            log.low_water(0, last.saturating_sub(256).max(1));
        }
        log.turn(Wait::No);
    }
    let stats = log.wal.stats();
    println!(
        "moving: {} MiB of payload, {} MiB of log: amplification {:.3}; {} records ({} MiB) moved, {} reclaimed, {} segments",
        stats.payload_bytes >> 20,
        stats.bytes >> 20,
        stats.bytes as f64 / stats.payload_bytes as f64,
        stats.moved_records,
        stats.moved_bytes >> 20,
        stats.reclaimed,
        stats.segments
    );
    log.wal.close(&mut *log.io);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dir = PathBuf::from(args.get(1).expect("a directory")).join("longlog");
    match args.get(2).map(String::as_str) {
        Some("partitions") => partitions(&dir, args.get(3).and_then(|n| n.parse().ok())),
        Some("open") => open(&dir, args.get(3).and_then(|n| n.parse().ok()).unwrap_or(4)),
        Some("scan") => {
            let number = |at: usize| args.get(at).and_then(|n| n.parse().ok());
            scan(&dir, number(3).unwrap_or(1), number(4).unwrap_or(1024) as usize);
        }
        Some("memory") => memory(&dir),
        Some("moving") => moving(&dir),
        _ => println!("longlog DIR partitions|open|scan|memory|moving [GiB [payload]]"),
    }
    let _ = std::fs::remove_dir_all(&dir);
}
