//! Copies that the caller puts: entries that the log has, written once more at its end as they are.

mod common;

use common::{DIR, NODE, Rig, kept, tiny, whole};
use std::path::Path;
use std::time::Duration;
use tidelog_io::Wait;
use tidelog_sim::{Moment, WriteShape};
use tidelog_types::{EntryMeta, Index, PartitionId, RecordKind, record};
use tidelog_wal::{Options, ReadError, inspect};

/// Entries read from the log, as they would come from anywhere.
#[derive(Clone)]
struct Copies {
    bytes: Vec<u8>,
    metas: Vec<EntryMeta>,
}

fn read(rig: &mut Rig, partition: u64, first: u64, last: u64) -> Copies {
    let (mut bytes, mut next) = (Vec::new(), first);
    while next <= last {
        // Entries that lie apart come in several runs.
        let run = rig.read(partition, next, last, 1 << 20).unwrap();
        assert_eq!(run.first.0, next);
        bytes.extend(run.pieces.concat());
        next = run.last.0 + 1;
    }
    assert_eq!(next, last + 1);
    let metas = record::records(&bytes).map(|item| item.unwrap().1.meta()).collect();
    Copies { bytes, metas }
}

fn put(rig: &mut Rig, partition: u64, copies: &Copies) -> usize {
    rig.wal().append_moved(PartitionId(partition), &copies.bytes, &copies.metas).unwrap()
}

/// Until the batch that is growing now is durable. False: the power went first.
fn put_durably(rig: &mut Rig) -> bool {
    let batch = rig.wal().growing_batch();
    rig.flush();
    while rig.alive() && rig.wal().durable_batch() < batch {
        rig.poll(Wait::Forever);
    }
    rig.alive()
}

/// Where the copies of an entry lie, in the order of the log: file, and offset of the record.
fn places(rig: &mut Rig, partition: u64, index: u64) -> Vec<(String, u64)> {
    rig.io = None;
    let mut found = Vec::new();
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let inspect::Item::Record { file, offset, header, .. } = item
            && (header.kind, header.partition.0, header.index.0) == (RecordKind::Data, partition, index)
        {
            found.push((file.display().to_string(), offset));
        }
    })
    .unwrap();
    found
}

fn ten_entries(rig: &mut Rig) {
    for i in 0..10u8 {
        rig.entry(u64::from(i % 2), &vec![i; 700]).unwrap();
        rig.drain();
    }
}

/// What was read may be cut, let go, or replaced by another generation's before it is put: only what the log still has of these
/// generations is put.
#[test]
fn what_is_gone_when_it_is_put_is_dropped() {
    let mut rig = Rig::new(1, whole());
    rig.open().unwrap();
    ten_entries(&mut rig);
    let copies = read(&mut rig, 0, 1, 5);
    assert_eq!(put(&mut rig, 0, &copies), 5, "all of them are there");
    assert!(put_durably(&mut rig));

    let copies = read(&mut rig, 0, 1, 5);
    rig.promise(0, 2, 1).unwrap();
    rig.cut(0, 3).unwrap();
    assert_eq!(put(&mut rig, 0, &copies), 3, "4 and 5 are cut, if only in the growing batch");
    rig.drain();
    // An entry of another generation takes the place of one that was read.
    rig.entry(0, &[40; 500]).unwrap();
    assert_eq!(put(&mut rig, 0, &copies), 3, "4 is another one now");
    rig.drain();
    assert!(rig.check_all());
    rig.mark(0, 2);
    rig.low_water(0, 2).unwrap();
    assert_eq!(put(&mut rig, 0, &copies), 2, "1 is let go");
    rig.drain();
    assert_eq!(rig.wal().last(PartitionId(0)).index.0, 4, "a copy never changes the end");

    let gone = Copies {
        bytes: copies.bytes[copies.metas[..3].iter().map(|m| m.record_bytes as usize).sum()..].to_vec(),
        metas: copies.metas[3..].to_vec(),
    };
    let before = rig.wal().stats();
    assert_eq!(put(&mut rig, 0, &gone), 0);
    rig.flush();
    assert_eq!(rig.wal().stats().batches, before.batches, "nothing is written for nothing");
    assert_eq!(rig.wal().stats().moved_records, before.moved_records);

    assert!(rig.check_all());
    rig.world.crash(NODE);
    rig.open().unwrap();
    assert!(rig.check_all());
    rig.close();
    rig.open().unwrap();
    assert!(rig.check_all());
}

/// Of two equal copies the later one counts, at once and behind a restart: the earlier one may go bad and nobody notices.
#[test]
fn the_later_copy_counts() {
    let mut rig = Rig::new(2, whole());
    rig.open().unwrap();
    ten_entries(&mut rig);
    let copies = read(&mut rig, 1, 2, 3);
    assert_eq!(put(&mut rig, 1, &copies), 2);
    assert!(put_durably(&mut rig));
    // What proves the copies durable.
    rig.entry(0, &[99; 10]).unwrap();
    rig.drain();
    rig.rest(Duration::from_millis(20));
    rig.close();
    let at = places(&mut rig, 1, 2);
    assert_eq!(at.len(), 2, "two equal copies: {at:?}");
    rig.open().unwrap();
    assert!(rig.world.flip(NODE, &at[0].0, at[0].1 + 100));
    assert!(rig.check_all(), "it is read from its later place");
    rig.close();
    rig.io = None;
    rig.open().unwrap();
    assert!(rig.lost.is_empty(), "{:?}", rig.lost);
    assert!(rig.check_all());
    // And the other way round: it is the later one that is missed.
    rig.close();
    rig.io = None;
    assert!(rig.world.flip(NODE, &at[0].0, at[0].1 + 100), "the first is whole again");
    assert!(rig.world.flip(NODE, &at[1].0, at[1].1 + 100));
    rig.open().unwrap();
    assert!(rig.lost.is_empty(), "the earlier one is still there, and counts: {:?}", rig.lost);
    assert!(rig.check_all());
    rig.close();
    rig.open().unwrap();
    assert!(rig.lost.is_empty() && rig.check_all());
}

/// A crash at every operation of putting copies, with every subset of the sectors of a batch: there are one copy or two, and
/// the log is the same. Behind it, what is put again is put again.
#[test]
fn every_crash_point_of_putting_copies() {
    let prepared = || {
        let mut rig = Rig::new(3, whole());
        rig.open().unwrap();
        ten_entries(&mut rig);
        let copies = read(&mut rig, 0, 2, 4);
        (rig, copies)
    };
    let script = |rig: &mut Rig, copies: &Copies| {
        assert_eq!(put(rig, 0, copies), 3);
        if !put_durably(rig) {
            return;
        }
        assert_eq!(put(rig, 0, copies), 3, "a copy of a copy");
        if rig.cut(0, 3).and_then(|()| rig.entry(0, &[50; 600])).is_ok() && put_durably(rig) {
            rig.rest(Duration::from_millis(20));
        }
    };
    let (from, to, shapes) = {
        let (mut rig, copies) = prepared();
        rig.world.watch_writes(NODE);
        let from = rig.world.disk_ops(NODE);
        script(&mut rig, &copies);
        (from, rig.world.disk_ops(NODE), rig.world.take_writes(NODE))
    };
    let (mut crashes, mut single, mut double) = (0, 0, 0);
    for boundary in from..to {
        let mut moments = vec![Moment::Before, Moment::Inside, Moment::After];
        let shape = shapes.iter().find(|shape: &&WriteShape| shape.number == boundary);
        if let Some(shape) = shape.filter(|shape| shape.sectors <= 64 && shape.changed.count_ones() <= 8) {
            let all = (0..=shape.changed).filter(|mask| mask & !shape.changed == 0);
            moments.extend(all.map(Moment::Sectors));
        }
        for moment in moments {
            let (mut rig, copies) = prepared();
            rig.world.crash_at(NODE, boundary, moment);
            script(&mut rig, &copies);
            assert!(!rig.alive(), "{boundary} {moment:?}");
            crashes += 1;
            rig.open().unwrap_or_else(|e| panic!("{boundary} {moment:?}: {e}"));
            assert!(rig.check_all());
            let before = kept(&rig.now);
            rig.close();
            match places(&mut rig, 0, 2).len() {
                1 => single += 1,
                _ => double += 1,
            }
            rig.open().unwrap();
            assert_eq!(kept(&rig.now), before, "{boundary} {moment:?}");
            let copies = read(&mut rig, 0, 2, 3);
            assert_eq!(put(&mut rig, 0, &copies), 2);
            rig.drain();
            assert!(rig.check_all());
        }
    }
    assert!(
        crashes > 50 && single > 0 && double > 0,
        "{crashes} crashes: {single} with one copy, {double} with more"
    );
}

#[test]
fn what_moves_at_this_moment_is_read_a_moment_later() {
    let mut rig = Rig::new(9, Options { cache_bytes_max: 0, ..tiny() });
    rig.open().unwrap();
    for i in 0..4u8 {
        rig.entry(0, &[i; 300]).unwrap();
        rig.drain();
    }
    let copies = read(&mut rig, 0, 1, 2);
    assert_eq!(put(&mut rig, 0, &copies), 2);
    // Their place is in the growing batch now: neither on the disk nor in the cache.
    let early = rig.start_read(0, 1, 4, 1 << 20);
    rig.tick();
    let early = rig.reads.remove(&early);
    assert!(matches!(early, Some(Err(ReadError::Busy))), "{early:?}");
    rig.flush();
    let soon = rig.start_read(0, 1, 2, 1 << 20);
    rig.tick();
    let run = rig.reads.remove(&soon).expect("from the cache").unwrap();
    assert_eq!((run.first, run.last), (Index(1), Index(2)));
    rig.check_run(0, &run);
    rig.drain();
    assert!(rig.check_all());
}
