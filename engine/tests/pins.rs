//! Pins through the public interface: what a backup relies on, on a real disk.
#![allow(clippy::disallowed_methods)] // real time, on a real disk: nothing here is replayed

use std::io::{Cursor, Read, Result};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tidelog::config::Config;
use tidelog::request::{Level, PartitionStatus, RequestError};
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog::{Engine, Index, Partition, PinFor};

/// Longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts entries.
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _: Applied<'_>) {
        self.0 += 1;
    }
    fn snapshot(&mut self) -> Result<SnapshotView> {
        Ok(Box::new(Cursor::new(self.0.to_le_bytes())))
    }
    fn restore(&mut self, _: Index, snapshot: &mut dyn Read) -> Result<()> {
        let mut bytes = [0; 8];
        snapshot.read_exact(&mut bytes)?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

struct Node {
    engine: Engine,
    log: Partition,
    dir: PathBuf,
}

impl Node {
    fn start(name: &str, set: impl FnOnce(&mut Config)) -> Node {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("pins-{name}"));
        let _ = std::fs::remove_dir_all(&dir);
        let mut config = Config::single(&dir);
        config.wal.segment_size = 16 << 20;
        config.wal.spare_segments = 1;
        set(&mut config);
        let engine = Engine::open_with(config, Box::new(|_| Some(Box::new(Counter(0))))).unwrap();
        let log = engine.partition(b"key");
        Node { engine, log, dir }
    }

    /// Appends so many records of 1 KiB; the last one's index.
    fn append(&self, count: u64) -> Index {
        let pending: Vec<_> = (0..count).map(|n| self.log.append(payload(n))).collect();
        let last = pending.into_iter().map(|append| append.wait().unwrap().index).max().unwrap();
        assert!(self.log.marks().high_water >= last, "{:?} behind {last}", self.log.marks());
        last
    }

    fn status(&self) -> PartitionStatus {
        self.engine.status().wait().unwrap().partitions.remove(0)
    }

    /// Until the log begins there.
    fn wait_low_water(&self, low: Index) -> PartitionStatus {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            assert!(status.low_water <= low.0.max(1), "{low} is to be kept: {status:?}");
            if status.low_water == low.0 && self.log.marks().low_water == low {
                return status; // the marks may be a turn behind an answer
            }
            assert!(Instant::now() < end, "the low-water mark does not come to {low}: {status:?}");
        }
    }

    /// Everything from `first` on can be read here, call by call.
    fn read_from(&self, first: Index) -> std::result::Result<u64, RequestError> {
        let (mut next, mut count) = (first, 0);
        loop {
            let read = self.log.read(next.., Level::Local).wait()?;
            for record in &read.records {
                assert!(record.index >= next && record.payload.len() == 1024, "{:?}", record.index);
                count += 1;
            }
            next = read.next;
            if next > read.high_water {
                return Ok(count);
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let closed = self.engine.close();
        let _ = std::fs::remove_dir_all(&self.dir);
        if !std::thread::panicking() {
            closed.unwrap();
        }
    }
}

fn payload(n: u64) -> Vec<u8> {
    vec![n as u8; 1024]
}

#[test]
fn a_pin_holds_what_a_snapshot_would_let_go() {
    let node = Node::start("holds", |_| {});
    let last = node.append(100);
    let first = Index(last.0 - 80);
    let pin = node.log.pin(first, PinFor::Backup).unwrap();
    let covered = node.log.snapshot().wait().unwrap();
    assert!(covered.index >= last, "{covered:?}");
    let status = node.wait_low_water(first);
    assert_eq!((status.snapshot, status.low_water_held_by.as_str()), (covered.index.0, "backup"));
    assert_eq!(node.read_from(first).unwrap(), 81);
    let gone = node.log.pin(first.prev(), PinFor::Backup).unwrap_err();
    assert_eq!(gone, RequestError::Truncated { first });
    assert!(matches!(node.read_from(first.prev()), Err(RequestError::Truncated { .. })));
    let ahead = node.log.pin(Index(last.0 + 100), PinFor::Reader).unwrap_err();
    assert!(matches!(ahead, RequestError::Ahead { .. }), "{ahead}");

    // What is copied may go; of two, the lower one counts.
    let reader = node.log.pin(Index(first.0 + 40), PinFor::Reader).unwrap();
    assert!(pin.advance(Index(first.0 + 60)));
    let status = node.wait_low_water(Index(first.0 + 40));
    assert_eq!(status.low_water_held_by, "reader");
    drop(reader);
    assert_eq!(node.wait_low_water(Index(first.0 + 60)).low_water_held_by, "backup");
    assert_eq!(pin.first(), Some(Index(first.0 + 60)));
    assert_eq!(node.read_from(Index(first.0 + 60)).unwrap(), 21);
    drop(pin);
    assert_eq!(node.wait_low_water(covered.index.next()).low_water_held_by, "snapshot");
}

#[test]
fn a_pin_that_holds_too_many_bytes_ends() {
    let node = Node::start("bytes", |config| config.retention.pin_bytes = 64 << 10);
    let last = node.append(100);
    let first = Index(last.0 - 50);
    let pin = node.log.pin(first, PinFor::Backup).unwrap();
    node.log.snapshot().wait().unwrap();
    node.wait_low_water(first);
    // 51 KiB are less than it may hold; 111 KiB are not.
    assert_eq!(pin.first(), Some(first));
    node.append(60);
    let covered = node.log.snapshot().wait().unwrap();
    assert_eq!(node.wait_low_water(covered.index.next()).low_water_held_by, "snapshot");
    assert_eq!((pin.first(), pin.advance(Index(last.0 + 50))), (None, false));
    assert!(matches!(node.read_from(first), Err(RequestError::Truncated { .. })));
}

#[test]
fn a_pin_that_stands_still_for_too_long_ends() {
    let age = Duration::from_millis(700);
    let node = Node::start("age", |config| config.retention.pin_age = age);
    let last = node.append(50);
    let first = Index(last.0 - 20);
    let began = Instant::now();
    let pin = node.log.pin(first, PinFor::Reader).unwrap();
    let covered = node.log.snapshot().wait().unwrap();
    node.wait_low_water(first);
    let status = node.wait_low_water(covered.index.next());
    assert!(began.elapsed() >= age, "it held for {:?}", began.elapsed());
    assert_eq!((status.low_water_held_by.as_str(), pin.first()), ("snapshot", None));
}
