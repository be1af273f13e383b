//! Reads: from memory while a batch is in flight, from the disk afterwards, never what was cut.

mod common;

use common::{Rig, tiny};
use tidelog_io::{Io, Wait};
use tidelog_types::{Index, PartitionId};
use tidelog_wal::{Options, ReadError, Wal};

fn cached(wal: &Wal, partition: u64, first: u64, last: u64, bytes_max: usize) -> Option<tidelog_wal::Run> {
    wal.cached(PartitionId(partition), Index(first), Index(last), bytes_max)
}

#[test]
fn batches_in_flight_are_served_whatever_the_budget() {
    let mut rig = Rig::new(1, Options { in_flight_max: 4, cache_bytes_max: 0, ..tiny() });
    rig.open().unwrap();
    rig.entry(0, &[9; 200]).unwrap();
    assert!(cached(rig.wal(), 0, 1, 1, 1 << 20).is_none(), "not in a submitted batch yet");
    for i in 0..4u8 {
        rig.entry(0, &[i; 3000]).unwrap();
        rig.entry(1, &[i; 30]).unwrap();
        rig.flush();
    }
    assert_eq!(rig.wal().stats().in_flight, 4);
    for (partition, last) in [(0, 5), (1, 4)] {
        let run = cached(rig.wal(), partition, 1, 99, 1 << 20).expect("in flight");
        assert_eq!((run.first, run.last), (Index(1), Index(last)));
        rig.check_run(partition, &run);
    }
    rig.drain();
    rig.entry(2, b"x").unwrap();
    rig.drain();
    assert!(cached(rig.wal(), 0, 1, 99, 1 << 20).is_none(), "nothing is kept beyond the budget");
    assert!(rig.check_all(), "then the disk has it");
}

#[test]
fn runs_respect_bounds_and_give_at_least_one() {
    let mut rig = Rig::new(2, Options { cache_bytes_max: 1 << 20, ..tiny() });
    rig.open().unwrap();
    for i in 0..60u64 {
        rig.entry(i % 3, &vec![i as u8; 10 + (i as usize * 97) % 2000]).unwrap();
        if i % 7 == 0 {
            rig.drain();
        }
    }
    rig.drain();
    for first in 1..=20 {
        for last in first..=20 {
            for bytes_max in [0, 64, 1000, 5000, 1 << 20] {
                let run = cached(rig.wal(), 1, first, last, bytes_max).unwrap();
                assert_eq!(run.first, Index(first));
                assert!(run.last <= Index(last));
                assert!(run.bytes <= bytes_max || run.first == run.last, "{run:?}");
                rig.check_run(1, &run);
                if run.last < Index(last) {
                    let more = cached(rig.wal(), 1, first, run.last.0 + 1, 1 << 20).unwrap();
                    assert!(more.bytes > bytes_max, "it stopped too early");
                }
            }
        }
    }
    assert!(cached(rig.wal(), 1, 0, 5, 100).is_none());
    assert!(cached(rig.wal(), 1, 21, 25, 100).is_none());
    assert!(cached(rig.wal(), 9, 1, 1, 100).is_none());
}

#[test]
fn a_cut_that_races_a_read_wins() {
    let mut rig = Rig::new(
        3,
        Options { cache_bytes_max: 0, batch_bytes_max: 128 << 10, segment_bytes: 1 << 20, ..tiny() },
    );
    rig.open().unwrap();
    for i in 0..20u8 {
        rig.entry(0, &[i; 2000]).unwrap();
    }
    rig.drain();
    rig.entry(1, b"evicts it").unwrap();
    rig.drain();
    assert!(cached(rig.wal(), 0, 1, 1, 100).is_none());
    let (all, gone) = (rig.start_read(0, 1, 20, 1 << 20), rig.start_read(0, 8, 12, 1 << 20));
    assert_eq!(rig.wal().stats().reads, 2);
    rig.promise(0, 2, 0).unwrap();
    rig.cut(0, 5).unwrap();
    for i in 0..3u8 {
        rig.entry(0, &[100 + i; 50]).unwrap();
    }
    while rig.reads.len() < 2 {
        rig.poll(Wait::Forever);
        rig.tick();
    }
    let run = rig.reads.remove(&all).unwrap().unwrap();
    assert_eq!(run.last, Index(5), "what was cut is not given");
    rig.check_run(0, &run);
    match rig.reads.remove(&gone).unwrap() {
        Err(ReadError::NotHere { first, .. }) => assert_eq!(first, Index(8)),
        other => panic!("{other:?}"),
    }
    // Once they are in a submitted batch, the new entries are there under their indexes.
    rig.drain();
    assert!(rig.check_all());
}

#[test]
fn a_read_from_the_disk_ends_in_front_of_what_is_in_flight() {
    let mut rig = Rig::new(5, Options { cache_bytes_max: 0, ..tiny() });
    rig.open().unwrap();
    for i in 0..4u8 {
        rig.entry(0, &[i; 500]).unwrap();
        rig.drain();
    }
    rig.world.fail_next(common::NODE, tidelog_sim::DiskFault::Stall(1_000_000_000));
    rig.entry(0, &[9; 500]).unwrap();
    rig.flush();
    assert!(cached(rig.wal(), 0, 1, 5, 1 << 20).is_none(), "the first ones are on the disk only");
    let all = rig.start_read(0, 1, 5, 1 << 20);
    while rig.reads.is_empty() {
        rig.poll(Wait::Forever);
        rig.tick();
    }
    assert_eq!(rig.wal().stats().in_flight, 1, "the fifth is still on its way");
    let run = rig.reads.remove(&all).unwrap().expect("nothing is damaged");
    assert_eq!((run.first, run.last), (Index(1), Index(4)));
    rig.check_run(0, &run);
    rig.drain();
    assert!(rig.check_all());
}

#[test]
fn reads_in_flight_are_bounded() {
    let mut rig = Rig::new(4, Options { cache_bytes_max: 0, ..tiny() });
    rig.open().unwrap();
    for i in 0..4u8 {
        rig.entry(0, &[i; 500]).unwrap();
        rig.drain();
    }
    for _ in 0..200 {
        rig.start_read(0, 1, 2, 1 << 20);
    }
    assert_eq!(rig.wal().stats().reads, 64);
    while rig.reads.len() < 200 {
        rig.poll(Wait::Until(rig.io.as_ref().unwrap().clock().now));
        rig.tick();
    }
    let busy = rig.reads.values().filter(|r| matches!(r, Err(ReadError::Busy))).count();
    assert_eq!(busy, 200 - 64);
    assert_eq!(rig.wal().stats().reads, 0);
    assert!(matches!(rig.read(0, 9, 9, 1), Err(ReadError::NotHere { .. })));
    assert!(matches!(rig.read(0, 0, 9, 1), Err(ReadError::NotHere { .. })));
}
