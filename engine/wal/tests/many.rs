//! Ten thousand partitions on one log, nearly all of them quiet: it goes on, it is opened, segments are given back, and a quiet
//! partition costs little memory.

mod common;

use common::{NODE, Rig, tiny};
use std::time::Duration;
use tidelog_io::conformance::{Counting, allocated};
use tidelog_wal::Options;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PARTITIONS: u64 = 10_000;
/// The busy one.
const BUSY: u64 = PARTITIONS;
/// Most bytes of memory that a quiet partition may take, its place in every table included.
const QUIET_BYTES_MAX: usize = 500;

/// What the log holds in memory, by what is given back when it goes.
fn held(rig: &mut Rig) -> usize {
    let before = allocated();
    rig.wal = None;
    before - allocated()
}

/// So many large entries of the busy partition, of which it keeps few.
fn stream(rig: &mut Rig, entries: u64) {
    for i in 0..entries {
        while rig.entry(BUSY, &vec![i as u8; 60_000]).is_err() {
            rig.drain();
            rig.rest(Duration::from_millis(1));
        }
        let last = rig.part(BUSY).entries.len() as u64;
        if i % 4 == 3 {
            rig.drain();
            rig.mark(BUSY, last);
            rig.low_water(BUSY, last - 1).unwrap();
        }
    }
    rig.drain();
}

#[test]
fn ten_thousand_partitions() {
    let options = Options {
        segment_bytes: 4 << 20,
        batch_bytes_max: 512 << 10,
        checkpoint_every: 1 << 20,
        log_bytes_target: 32 << 20,
        ..tiny()
    };
    let mut rig = Rig::new(1, options);
    rig.open().unwrap();
    for partition in 0..PARTITIONS {
        while rig.entry(partition, &partition.to_le_bytes()).is_err() {
            rig.drain();
        }
        rig.mark(partition, 1);
    }
    rig.drain();
    rig.close();
    let report = rig.open().unwrap();
    assert!(report.records >= 2 * PARTITIONS, "a promise and an entry each: {report:?}");

    // Traffic of one makes the segments of all others old; they are asked for snapshots, have none, and are moved.
    for _ in 0..6 {
        stream(&mut rig, 300);
        rig.rest(Duration::from_secs(6));
    }
    let stats = rig.wal().stats();
    assert!(stats.checkpoints >= 2, "{stats:?}");
    assert!(stats.reclaimed >= 5, "{stats:?}");
    assert!(stats.moved_records >= PARTITIONS, "{stats:?}");
    assert!(stats.moved_bytes * 3 <= stats.payload_bytes, "{stats:?}");
    assert!(stats.segments <= 24, "{stats:?}");
    assert!(rig.check_all());

    rig.world.crash(NODE);
    let report = rig.open().unwrap();
    assert!(report.checkpoint.is_some(), "{report:?}");
    assert!(report.bytes < 64 << 20, "{report:?}");
    assert_eq!(rig.now.len() as u64, PARTITIONS + 1);
    assert!(rig.check_all());
    rig.entry(7, b"awake").unwrap();
    rig.drain();
    rig.rest(Duration::from_millis(200));

    let with_all = held(&mut rig);
    let mut few = Rig::new(1, rig.options.clone());
    few.open().unwrap();
    stream(&mut few, 20);
    few.close();
    few.open().unwrap();
    let with_one = held(&mut few);
    let each = with_all.saturating_sub(with_one) / PARTITIONS as usize;
    println!(
        "{stats:?}\n{with_all} bytes of memory with {PARTITIONS} quiet partitions, {with_one} without: {each} each"
    );
    assert!(each <= QUIET_BYTES_MAX, "{each} bytes of memory a quiet partition");
}
