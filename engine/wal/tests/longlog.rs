//! Logs that go on and on: checkpoints, summaries, segments given back and used again, live records moved; and crashes at
//! every step of it.

mod common;

use common::scripts::{busy, busy_options, stream};
use common::{DIR, NODE, Naming, Rig, batches, judge, seeds, tiny, whole};
use std::path::Path;
use std::time::Duration;
use tidelog_io::{Io, Wait};
use tidelog_sim::{Moment, Random, Rate};
use tidelog_types::RecordKind;
use tidelog_wal::{OpenError, Options, inspect};

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Inside, Moment::After];

fn segments(rig: &Rig) -> usize {
    let ours = |f: &str| f.starts_with(DIR) && f.ends_with(".wal") && !f.contains("free-");
    rig.world.files(NODE).iter().filter(|f| ours(&f.0)).count()
}

#[test]
fn a_log_that_is_let_go_stays_short() {
    let mut rig = Rig::new(1, tiny());
    rig.open().unwrap();
    stream(&mut rig, 2, 400, 8);
    rig.rest(Duration::from_millis(200));
    let stats = rig.wal().stats();
    assert!(stats.checkpoints > 2, "{stats:?}");
    assert!(stats.reclaimed > 5, "{stats:?}");
    // Two checkpoints are kept, and one comes only when sixteen times its size was written.
    assert!(segments(&rig) <= 14, "{} segments of a log that keeps 24 entries", segments(&rig));
    assert!(rig.check_all());
    rig.close();
    let used = rig.world.disk_used(NODE);
    let report = rig.open().unwrap();
    assert!(report.checkpoint.is_some());
    assert_eq!(report.bad_checkpoints, []);
    assert!(report.bytes < used, "{} bytes read of {used}", report.bytes);
    assert!(rig.check_all());
    rig.close();
    rig.io = None;
    let report =
        inspect::verify(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default()).unwrap();
    assert!(!report.is_damaged(), "{report:?}");
}

/// Old entries are read by the summaries of their segments, also behind a restart.
#[test]
fn old_segments_are_read_by_their_summaries() {
    // The whole log stays: no segment is given back to make it shorter.
    let mut rig = Rig::new(2, Options { log_bytes_target: 1 << 40, steady: false, ..tiny() });
    rig.open().unwrap();
    stream(&mut rig, 3, 150, 1 << 40);
    rig.rest(Duration::from_millis(100));
    let stats = rig.wal().stats();
    assert!(stats.summaries > 3 && stats.reclaimed == 0, "{stats:?}");
    assert!(rig.check_all());
    rig.close();
    let report = rig.open().unwrap();
    assert!(report.checkpoint.is_some());
    assert!(rig.check_all());
    // Cuts reach into old segments, and what comes after them is found where it is.
    rig.promise(0, 2, 1).unwrap();
    rig.cut(0, 5).unwrap();
    stream(&mut rig, 1, 3, 1 << 40);
    assert!(rig.check_all());
    rig.world.crash(NODE);
    rig.open().unwrap();
    assert!(rig.check_all());
}

/// A summary is no authority: without it the segment itself is read.
#[test]
fn a_bad_summary_is_done_without() {
    let mut rig = Rig::new(3, tiny());
    rig.open().unwrap();
    stream(&mut rig, 2, 120, 1 << 40);
    rig.rest(Duration::from_millis(100));
    rig.close();
    let mut places = Vec::new();
    rig.io = None;
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let inspect::Item::Record { file, offset, header, .. } = item
            && header.kind == tidelog_types::RecordKind::Summary
        {
            places.push((file.display().to_string(), offset));
        }
    })
    .unwrap();
    assert!(places.len() > 2);
    rig.open().unwrap();
    for (file, offset) in places {
        assert!(rig.world.flip(NODE, &file, offset + 80));
    }
    assert!(rig.check_all());
}

/// The newest checkpoint may be bad, and the one before it; both at once are damage, and named.
#[test]
fn a_bad_checkpoint_is_replaced_by_the_one_before_it() {
    let damaged = |which: usize| {
        let mut rig = Rig::new(4, tiny());
        rig.open().unwrap();
        stream(&mut rig, 2, 300, 8);
        rig.close();
        let mut ends = Vec::new();
        let mut named = (0, 0);
        rig.io = None;
        inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
            match item {
                inspect::Item::Record { file, offset, header, .. }
                    if header.kind == tidelog_types::RecordKind::CheckpointChunk =>
                {
                    ends.push((header.generation.0, file.display().to_string(), offset));
                }
                inspect::Item::Batch { header, .. } => {
                    named = (header.checkpoint.0, header.older_checkpoint.0)
                }
                _ => {}
            }
        })
        .unwrap();
        assert!(named.0 > named.1 && named.1 > 0);
        // The chunks of the newest ones, by the position that each is of.
        let mut at: Vec<u64> = ends.iter().map(|e| e.0).collect();
        at.dedup();
        for victim in at.iter().rev().take(which) {
            for (_, file, offset) in ends.iter().filter(|e| e.0 == *victim) {
                assert!(rig.world.flip(NODE, file, offset + 70));
            }
        }
        rig
    };
    let mut rig = damaged(1);
    let report = rig.open().unwrap();
    assert!(report.checkpoint.is_some());
    assert!(rig.check_all());
    rig.close();
    rig.open().unwrap();
    let mut rig = damaged(usize::MAX);
    let error = rig.open().unwrap_err();
    assert!(matches!(error, OpenError::Checkpoint { .. }), "{error}");
}

/// Chunks of all checkpoints, by the position that each is of: (position, file, offset); and the newest one that a batch names.
fn checkpoints(rig: &mut Rig) -> (Vec<(u64, String, u64)>, Option<u64>) {
    let (mut chunks, mut ends, mut named) = (Vec::new(), Vec::new(), 0);
    rig.io = None;
    let mut at = 0;
    inspect::walk(
        &mut rig.world.node(NODE),
        Path::new(DIR),
        inspect::Eyes::default(),
        &mut |item| match item {
            inspect::Item::Record { file, offset, header, .. } => match header.kind {
                RecordKind::CheckpointChunk => {
                    chunks.push((header.generation.0, file.display().to_string(), offset));
                }
                RecordKind::CheckpointEnd => ends.push((at, header.generation.0)),
                _ => {}
            },
            inspect::Item::Batch { header, .. } => {
                (at, named) = (header.lsn.0, header.checkpoint.0);
            }
            _ => {}
        },
    )
    .unwrap();
    (chunks, ends.iter().find(|end| end.0 == named).map(|end| end.1))
}

/// What the newest checkpoint that batches name needs may go only when durable batches name a newer one as well: the newest
/// that is named may be bad.
#[test]
fn a_segment_is_given_back_when_batches_name_both_that_are_kept() {
    let mut crashes = 0;
    for reclaimed in 1..40 {
        let mut rig = Rig::new(4, tiny());
        rig.open().unwrap();
        // Step by step, up to the moment at which that many segments went.
        let mut last = 0;
        while rig.wal().stats().reclaimed < reclaimed {
            if rig.acked == rig.acts.len() {
                last += 1;
                rig.entry(0, &[last as u8; 3000]).unwrap();
                if last % 4 == 3 && last > 8 {
                    rig.mark(0, last - 1);
                    rig.low_water(0, last - 8).unwrap();
                }
            }
            rig.flush();
            if rig.wal().stats().reclaimed < reclaimed {
                rig.poll(Wait::Forever);
            }
        }
        // Until its name is gone, and no more.
        let names = segments(&rig);
        let end = rig.io.as_ref().unwrap().clock().now.after(Duration::from_millis(3));
        while segments(&rig) == names && rig.io.as_ref().unwrap().clock().now < end {
            rig.poll(Wait::Until(end));
        }
        rig.world.crash(NODE);
        let (chunks, named) = checkpoints(&mut rig);
        let Some(victim) = named else { continue };
        crashes += 1;
        for (_, file, offset) in chunks.iter().filter(|chunk| chunk.0 == victim) {
            assert!(rig.world.flip(NODE, file, offset + 70));
        }
        rig.open().unwrap_or_else(|e| panic!("{reclaimed} given back: {e}"));
        assert!(rig.check_all());
    }
    assert!(crashes > 3, "{crashes}");
}

/// Quiet partitions hold nothing back: what is live in the oldest segment is moved, within the bound.
#[test]
fn quiet_partitions_pin_no_segments() {
    let options = Options { log_bytes_target: 1 << 20, ..tiny() };
    let mut rig = Rig::new(5, options);
    rig.open().unwrap();
    for partition in 10..40 {
        rig.entry(partition, &[partition as u8; 200]).unwrap();
        rig.mark(partition, 1);
    }
    rig.drain();
    stream(&mut rig, 1, 900, 4);
    rig.rest(Duration::from_millis(500));
    stream(&mut rig, 1, 300, 4);
    let stats = rig.wal().stats();
    assert!(stats.moved_records >= 30, "{stats:?}");
    assert!(stats.reclaimed > 5, "{stats:?}");
    assert!(segments(&rig) <= 12, "{} segments", segments(&rig));
    assert!(stats.moved_bytes * 3 <= stats.payload_bytes, "{stats:?}");
    assert!(rig.check_all());
    rig.world.crash(NODE);
    rig.open().unwrap();
    assert!(rig.check_all());
    rig.close();
    rig.open().unwrap();
    assert!(rig.check_all());
    rig.io = None;
    rig.wal = None;
    let report =
        inspect::verify(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default()).unwrap();
    assert!(!report.is_damaged(), "{report:?}");
}

/// A log far below its budget gives space back as low-water marks rise, though quiet partitions have entries in its oldest segment, and uses
/// again what comes back. It once waited for the budget, gave everything back at once, and filled every new segment with zeros.
#[test]
fn space_comes_back_long_before_the_budget_and_is_used_again() {
    let options =
        Options { segment_bytes: 2 << 20, batch_bytes_max: 256 << 10, checkpoint_every: 64 << 20, ..tiny() };
    let mut rig = Rig::new(22, options);
    rig.open().unwrap();
    for partition in 10..30 {
        rig.entry(partition, &[partition as u8; 200]).unwrap();
        rig.mark(partition, 1);
    }
    rig.drain();
    let write = |rig: &mut Rig, entries: u64| {
        let mut most = 0;
        for i in 0..entries / 8 {
            for n in 0..8 {
                while rig.entry(0, &[(i + n) as u8; 20_000]).is_err() {
                    rig.drain();
                    rig.rest(Duration::from_millis(1));
                }
            }
            rig.drain();
            let last = rig.part(0).entries.len() as u64;
            rig.mark(0, last);
            rig.low_water(0, last).unwrap();
            rig.rest(Duration::from_millis(1));
            most = most.max(segments(rig));
        }
        most
    };
    write(&mut rig, 800);
    let (before, stats) = (rig.world.disk_written(NODE), rig.wal().stats());
    let most = write(&mut rig, 1200);
    let (after, now) = (rig.world.disk_written(NODE), rig.wal().stats());
    assert!(now.reclaimed >= 6 && now.moved_records >= 20, "{now:?}");
    // The model's checkpoints hold its payloads, so they come seldom: two lie some segments apart, and what comes back does so in bursts.
    assert!(most <= 16, "{most} segments of a log that keeps an entry");
    let payload = now.payload_bytes - stats.payload_bytes;
    assert!((after - before) * 100 <= payload * 160, "{} bytes written for {payload}", after - before);
    assert!(rig.check_all());
    rig.world.crash(NODE);
    rig.open().unwrap();
    assert!(rig.check_all());
}

/// Segments that nobody reads are closed, and opened again for who does.
#[test]
fn cold_segments_are_closed_and_opened_when_they_are_read() {
    let mut rig = Rig::new(23, whole());
    rig.open().unwrap();
    for i in 0..900u64 {
        rig.entry(0, &[i as u8; 8000]).unwrap();
        rig.drain();
        assert!(rig.world.open_files(NODE) <= rig.options.files_open_max(), "{}", rig.world.open_files(NODE));
    }
    assert!(segments(&rig) > 30);
    assert!(rig.check_all(), "all of it is read");
    rig.flush();
    rig.rest(Duration::from_millis(20));
    assert!(rig.world.open_files(NODE) <= rig.options.files_open_max(), "{}", rig.world.open_files(NODE));
}

/// A segment that is mostly live is not moved before snapshots were asked for.
#[test]
fn snapshots_are_asked_for_before_much_is_moved() {
    let options = Options { log_bytes_target: 400 << 10, ..tiny() };
    let mut rig = Rig::new(6, options);
    rig.open().unwrap();
    for i in 0..40 {
        rig.entry(0, &[i; 2500]).unwrap();
        if i % 8 == 7 {
            rig.drain();
        }
    }
    // Segments behind the live one hold nothing: after three requests it is moved.
    let mut asked = 0;
    for _ in 0..40 {
        for _ in 0..40 {
            let _ = rig.entry(1, &[1; 3000]);
            rig.drain();
        }
        let last = rig.part(1).entries.len() as u64;
        rig.mark(1, last);
        let _ = rig.low_water(1, last);
        rig.drain();
        rig.rest(Duration::from_secs(6));
        if rig.wal().stats().moved_records == 0 {
            asked = rig.wanted.iter().filter(|p| **p == 0).count();
        }
    }
    assert!(asked >= 3, "{:?}", rig.wanted);
    let stats = rig.wal().stats();
    assert!(stats.moved_records > 0 && stats.reclaimed > 0, "{stats:?}");
    assert!(rig.check_all());
}

/// A crash at every operation of a script in which all of it happens, and another one in the opening after it.
#[test]
fn every_crash_point_of_a_long_log() {
    let options = busy_options();
    let boundaries = {
        let mut rig = Rig::new(1, options.clone());
        rig.open().unwrap();
        busy(&mut rig);
        let stats = rig.wal().stats();
        assert!(
            stats.summaries > 0 && stats.checkpoints > 1 && stats.reclaimed > 1 && stats.moved_records > 0,
            "{stats:?}"
        );
        rig.world.disk_ops(NODE)
    };
    let mut random = Random::new(9);
    for boundary in 0..boundaries {
        let moment = MOMENTS[boundary as usize % 3];
        let mut rig = Rig::new(boundary, options.clone());
        rig.world.crash_at(NODE, boundary, moment);
        if rig.open().is_ok() {
            busy(&mut rig);
        }
        if rig.alive() {
            rig.world.crash(NODE);
        }
        if random.chance(Rate::percent(30)) {
            rig.world.crash_at(NODE, random.below(40), *random.pick(&MOMENTS).unwrap());
            let _ = rig.open();
            if rig.alive() {
                rig.world.crash(NODE);
            }
        }
        judge(rig, &format!("{boundary} {moment:?}"));
    }
}

/// Lives with everything at once, in a log that is always over its budget.
#[test]
fn random_long_lives() {
    for seed in seeds(40) {
        let _naming = Naming(seed);
        let mut random = Random::new(seed);
        let options = Options {
            log_bytes_target: 500 << 10,
            checkpoint_every: 100 << 10,
            in_flight_max: 1 + (seed as usize % 3),
            ..tiny()
        };
        let mut rig = Rig::new(seed, options);
        for _ in 0..6 {
            if random.chance(Rate::percent(30)) {
                rig.world.crash_at(NODE, random.below(400), *random.pick(&MOMENTS).unwrap());
            }
            while let Err(e) = rig.open() {
                assert!(!rig.alive(), "seed {seed}: {e}");
            }
            if !rig.check_all() {
                continue;
            }
            for _ in 0..random.below(600) {
                if !rig.alive() || rig.fenced.is_some() {
                    break;
                }
                rig.random_step(&mut random, 5, 4000);
            }
            if rig.alive() && random.coin() {
                stream(&mut rig, 2, 30, 3);
            }
            match random.below(3) {
                0 if rig.alive() && rig.fenced.is_none() => rig.close(),
                1 => rig.world.kill(NODE),
                _ => rig.world.crash(NODE),
            }
        }
        rig.world.calm();
        rig.open().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert!(rig.check_all());
    }
}

/// Traffic that fills every batch does not keep the log from its own work: it once did, because what found no room always
/// had the next batch left to it.
#[test]
fn full_batches_starve_nothing() {
    let options = Options { log_bytes_target: 1 << 20, ..tiny() };
    let mut rig = Rig::new(7, options);
    rig.open().unwrap();
    for partition in 10..60 {
        rig.entry(partition, &[partition as u8; 100]).unwrap();
        rig.mark(partition, 1);
    }
    rig.drain();
    for _ in 0..400 {
        while rig.entry(0, &[3; 4000]).is_ok() {}
        let last = rig.part(0).entries.len() as u64;
        rig.mark(0, last);
        rig.flush();
        if rig.wal().stats().in_flight > 0 {
            rig.poll(tidelog_io::Wait::Forever);
        }
        let _ = rig.low_water(0, last.saturating_sub(8).max(1));
        rig.tick();
    }
    let stats = rig.wal().stats();
    assert!(stats.checkpoints > 1 && stats.summaries > 1 && stats.reclaimed > 3, "{stats:?}");
    assert!(stats.moved_records >= 50, "{stats:?}");
    rig.drain();
    assert!(rig.check_all());
}

/// What was found lost by one opening may be there again for the next, if only the device was in trouble: nothing that is written
/// meanwhile says that it is lost for good. A segment's summary once did.
#[test]
fn what_comes_back_is_not_lost_any_more() {
    let mut rig = Rig::new(21, whole());
    rig.open().unwrap();
    for i in 0..12u8 {
        rig.entry(0, &[i; 9000]).unwrap();
        rig.drain();
    }
    rig.close();
    let (file, offset, _) = batches(&mut rig)[6].clone();
    rig.world.flip(NODE, &file, offset + 5000);
    rig.open().unwrap();
    assert_eq!(rig.lost.len(), 1);
    // The segment is not among the newest any more.
    for i in 0..80u8 {
        rig.entry(1, &[i; 9000]).unwrap();
        rig.drain();
    }
    assert!(rig.wal().stats().segments > 4 && rig.wal().stats().summaries > 0, "{:?}", rig.wal().stats());
    rig.check_all();
    rig.close();
    rig.world.flip(NODE, &file, offset + 5000);
    rig.open().unwrap();
    assert!(rig.lost.is_empty());
    rig.check_all();
    // Once its entries are there again, it has a summary like any other.
    rig.close();
    rig.world.flip(NODE, &file, offset + 5000);
    rig.open().unwrap();
    assert!(!summed_up(&mut rig, &file));
    rig.open().unwrap();
    rig.heal();
    for i in 0..80u8 {
        rig.entry(1, &[i; 9000]).unwrap();
        rig.drain();
    }
    rig.check_all();
    rig.close();
    assert!(summed_up(&mut rig, &file));
    rig.open().unwrap();
    rig.check_all();
}

/// Whether there is a summary of a segment.
fn summed_up(rig: &mut Rig, segment: &str) -> bool {
    rig.io = None;
    let mut found = false;
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let inspect::Item::Record { header, .. } = item {
            let of =
                header.kind == RecordKind::Summary && segment.contains(&format!("{:016x}", header.index.0));
            found |= of;
        }
    })
    .unwrap();
    found
}
