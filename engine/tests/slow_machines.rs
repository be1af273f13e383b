//! A state machine that takes its time holds up its own partition, and neither the others nor the node's end.

use std::io::{Cursor, Read, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tidelog::config::Config;
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog::{Engine, Index, PartitionId};

/// Takes so long for each entry, and counts.
struct Slow(Duration, Arc<AtomicU64>);

impl StateMachine for Slow {
    fn apply(&mut self, _: Applied<'_>) {
        std::thread::park_timeout(self.0);
        self.1.fetch_add(1, Ordering::SeqCst);
    }
    fn snapshot(&mut self) -> Result<SnapshotView> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }
    fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<()> {
        Ok(())
    }
}

/// Two partitions, the first with a slow state machine, and how many entries that one has been given.
fn open(dir: &TempDir, each: Duration) -> (Engine, Arc<AtomicU64>) {
    let mut config = Config::single(dir.path());
    config.cluster.partitions = 2;
    config.wal.segment_size = 16 << 20;
    config.wal.spare_segments = 1;
    let applied = Arc::<AtomicU64>::default();
    let counts = Arc::clone(&applied);
    let slow = move |id| {
        (id == PartitionId(0)).then(|| Box::new(Slow(each, Arc::clone(&counts))) as Box<dyn StateMachine>)
    };
    (Engine::open_with(config, Box::new(slow)).unwrap(), applied)
}

const ENTRIES: u64 = 2_000;

fn append_all(engine: &Engine) {
    let slow = engine.partition_by_id(PartitionId(0)).unwrap();
    let mut queue = engine.append_queue(ENTRIES as usize);
    for n in 0..ENTRIES {
        queue.append(&slow, n, format!("entry {n}")).unwrap();
    }
    let mut done = Vec::new();
    while queue.in_flight() > 0 {
        queue.wait(None, &mut done);
    }
    assert!(done.len() as u64 == ENTRIES && done.iter().all(|d| d.result.is_ok()));
}

#[test]
fn another_partition_does_not_wait_for_it() {
    let dir = TempDir::new().unwrap();
    let (engine, applied) = open(&dir, Duration::from_millis(1));
    append_all(&engine);
    let quick = engine.partition_by_id(PartitionId(1)).unwrap();
    for _ in 0..3 {
        quick.append("beside it").wait().unwrap();
        assert!(applied.load(Ordering::SeqCst) < ENTRIES, "the state machine had to be done first");
    }
    while applied.load(Ordering::SeqCst) < ENTRIES {
        quick.append("and it goes on by itself").wait().unwrap();
    }
    engine.close().unwrap();
}

/// Ten milliseconds for each entry is twenty seconds for all.
#[test]
fn the_end_of_the_node_does_not_wait_for_it() {
    let dir = TempDir::new().unwrap();
    let (engine, applied) = open(&dir, Duration::from_millis(10));
    append_all(&engine);
    engine.close().unwrap();
    let given = applied.load(Ordering::SeqCst);
    assert!(given < ENTRIES, "the state machine had to be done first");
    // The log has everything: the next life gives it to the state machine from the beginning.
    let (engine, applied) = open(&dir, Duration::ZERO);
    let slow = engine.partition_by_id(PartitionId(0)).unwrap();
    let marks = slow.marks();
    assert!(marks.high_water.get() >= ENTRIES, "{marks:?}");
    while applied.load(Ordering::SeqCst) < ENTRIES {
        slow.append("one more").wait().unwrap();
    }
    engine.close().unwrap();
}
