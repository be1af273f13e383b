//! Sound logs that were called damaged, and openings that refused after a power cut that changed nothing that was acknowledged.

mod common;

use common::scripts::{busy_options, stream};
use common::{DIR, NODE, Rig};
use std::path::Path;
use std::time::Duration;
use tidelog_sim::Moment;
use tidelog_types::{Index, PartitionId, RecordKind, record};
use tidelog_wal::inspect::{self, Eyes};
use tidelog_wal::{Options, ReadError};

/// Quiet partitions whose entries are moved, and that go on behind the moves.
fn busy(rig: &mut Rig, seed: u64) {
    for round in 0..4 {
        for partition in 10..(12 + seed % 7) {
            let _ = rig.entry(partition, &vec![7; 200 + 150 * (seed % 3) as usize]);
        }
        rig.drain();
        stream(rig, 1, 90 + 10 * (seed % 4), 2);
        if !rig.alive() || rig.fenced.is_some() {
            return;
        }
        rig.rest(Duration::from_millis(20 + round));
    }
}

fn prepared(seed: u64) -> Rig {
    let options = Options {
        log_bytes_target: (400 + 60 * (seed % 5)) << 10,
        checkpoint_every: (60 + 30 * (seed % 4)) << 10,
        spares: 1 + (seed % 2) as usize,
        ..busy_options()
    };
    let mut rig = Rig::new(seed, options);
    rig.open().unwrap();
    rig
}

/// A moved copy was the first that `verify` came by of its partition: it set the end, and the next ordinary entry did not follow.
#[test]
fn a_moved_copy_does_not_say_where_a_log_ends() {
    for seed in 1..=14u64 {
        let mut rig = prepared(seed);
        busy(&mut rig, seed);
        rig.drain();
        rig.close();
        rig.io = None;
        let report = inspect::verify(&mut rig.world.node(NODE), Path::new(DIR), Eyes::default()).unwrap();
        assert!(
            report.stopped.is_none() && !report.is_damaged(),
            "seed {seed}: {:?} {:?}",
            report.stopped,
            report.findings
        );
        rig.open().unwrap();
        assert!(rig.check_all() && rig.lost.is_empty(), "the log itself is sound");
    }
}

/// (file, offset, length, entries copied, epoch) of every batch.
fn batches(rig: &mut Rig) -> Vec<(String, u64, u64, u64, u64)> {
    rig.io = None;
    let mut found: Vec<(String, u64, u64, u64, u64)> = Vec::new();
    let _ =
        inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), Eyes::default(), &mut |item| match item {
            inspect::Item::Batch { file, offset, header, .. } => {
                found.push((
                    file.display().to_string(),
                    offset,
                    u64::from(header.total_len),
                    0,
                    header.epoch,
                ));
            }
            inspect::Item::Record { header, .. } if header.kind == RecordKind::Moved => {
                found.last_mut().unwrap().3 += header.index.0;
            }
            _ => {}
        });
    found
}

/// Power cuts while copies are at the log's end, of which the last batch or the one before it goes bad: the log opens, and so does it in
/// the next life, whether the older copies are still there or not.
fn copies_at_the_end(stride: usize) -> (usize, usize) {
    let (mut struck, mut gone) = (0, 0);
    for seed in 1..=14u64 {
        let (from, to) = {
            let mut rig = prepared(seed);
            let from = rig.world.disk_ops(NODE);
            busy(&mut rig, seed);
            (from, rig.world.disk_ops(NODE))
        };
        for at in (from + seed % stride as u64..to).step_by(stride) {
            for which in [2usize, 1] {
                let mut rig = prepared(seed);
                rig.world.crash_at(NODE, at, Moment::After);
                busy(&mut rig, seed);
                if rig.alive() {
                    continue;
                }
                rig.wal = None;
                let list = batches(&mut rig);
                if list.len() < 3 {
                    continue;
                }
                let (file, offset, len, copies, epoch) = list[list.len() - which].clone();
                if copies == 0 || list.last().unwrap().4 != epoch {
                    continue;
                }
                let what = format!("seed {seed}, operation {at}, last but {}", which - 1);
                rig.world.make_unreadable(NODE, &file, offset, len);
                // The last batch is not proven, and all that is left of it is unreadable: whether it was whole nothing tells.
                let Ok(_) = rig.open() else {
                    assert_eq!(which, 1, "{what}: refused");
                    continue;
                };
                struck += 1;
                gone += usize::from(!rig.lost.is_empty());
                let lost: Vec<_> = rig.lost.keys().copied().collect();
                if at % 2 == 0 {
                    rig.close();
                } else {
                    rig.world.crash(NODE);
                }
                rig.open().unwrap_or_else(|e| panic!("{what}: the next life refuses: {e}"));
                assert_eq!(rig.lost.keys().copied().collect::<Vec<_>>(), lost, "{what}: the same is lost");
                assert!(rig.check_all(), "{what}");
            }
        }
    }
    (struck, gone)
}

#[test]
fn copies_at_the_logs_end_that_only_an_unproven_echo_names() {
    let (struck, gone) = copies_at_the_end(23);
    println!("{struck} logs, of {gone} the older copies were gone");
    assert!(struck > 5, "{struck}");
}

#[test]
#[ignore = "minutes: every operation"]
fn all_copies_at_the_logs_end_that_only_an_unproven_echo_names() {
    let (struck, gone) = copies_at_the_end(1);
    println!("{struck} logs, of {gone} the older copies were gone");
    assert!(struck > 100, "{struck}");
}

/// A bad header hides all that lies behind it in its span. A read named one entry, which was fetched and written again, and the next read
/// failed at the next one, as often as there were entries.
#[test]
fn a_failed_read_names_all_that_a_bad_header_hides() {
    let mut rig = Rig::new(3, Options { cache_bytes_max: 0, ..common::whole() });
    rig.open().unwrap();
    rig.promise(0, 1, 1).unwrap();
    let entries: Vec<_> = (0..40u8).map(|i| (1, vec![0xA0 + i % 16; 300])).collect();
    rig.records(0, &entries).unwrap();
    rig.drain();
    rig.entry(1, &[1; 10]).unwrap();
    rig.drain();
    let run = rig.read(0, 1, 1, 1).unwrap();
    let (bytes, meta) =
        (run.pieces.concat(), record::records(&run.pieces[0]).next().unwrap().unwrap().1.meta());
    let file = format!("{DIR}/0000000000000000.wal");
    let raw = rig.world.read_raw(NODE, &file).unwrap();
    let at = raw.windows(300).position(|w| w == [0xA0; 300]).unwrap() - 64 + 16;
    assert!(rig.world.flip(NODE, &file, at as u64));
    rig.close();
    rig.world.flip(NODE, &file, at as u64);
    rig.open().unwrap();
    assert!(rig.world.flip(NODE, &file, at as u64));
    let named = |result: Result<_, ReadError>| match result {
        Err(ReadError::Damaged { index, through, .. }) => (index.0, through.0),
        other => panic!("{other:?}"),
    };
    assert_eq!(named(rig.read(0, 1, 40, 1 << 20).map(|_| ())), (1, 40));
    assert_eq!(named(rig.read(0, 7, 9, 1 << 20).map(|_| ())), (7, 9), "of what was asked for");
    assert_eq!(rig.wal().append_moved(PartitionId(0), &bytes, &[meta]).unwrap(), 1);
    rig.flush();
    rig.rest(Duration::from_millis(30));
    assert_eq!(rig.read(0, 1, 1, 1 << 20).unwrap().last, Index(1), "this one is whole again");
    assert_eq!(named(rig.read(0, 2, 40, 1 << 20).map(|_| ())), (2, 40), "and not named any more");
}

/// A file that was cut short: what is missing is damage, found and told, by the opening and by one pass of the scrubber, which used to ask
/// for it for ever.
#[test]
fn a_segment_that_was_cut_short() {
    let (scrub_rate, scrub_every) = (1 << 30, Duration::from_secs(60));
    // The live entries of the first segment are not moved.
    let base = prepared(3).options;
    let options = Options { scrub_rate, scrub_every, log_bytes_target: 1 << 40, steady: false, ..base };
    let mut rig = Rig::new(3, options);
    rig.open().unwrap();
    for partition in 10..16 {
        rig.entry(partition, &[7; 3000]).unwrap();
        rig.drain();
    }
    stream(&mut rig, 1, 150, 2);
    rig.rest(Duration::from_millis(100));
    let file = common::segments(&rig)[0].clone();
    rig.close();
    let report = rig.open().unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert!(report.checkpoint.is_some(), "it is old");
    rig.close();
    assert!(rig.world.truncate(NODE, &file, 16384));
    let report = rig.open().unwrap();
    assert_eq!(report.findings.len(), 1, "{report:?}");
    assert_eq!(
        (report.findings[0].offset, report.findings[0].file.display().to_string()),
        (16384, file.clone())
    );
    let before = rig.wal().scrubbed().bytes;
    rig.rest(Duration::from_secs(2));
    let scrubbed = rig.wal().scrubbed().clone();
    assert_eq!(scrubbed.passes, 1, "{before}: {scrubbed:?}");
    assert!(scrubbed.lost > 0 && !rig.lost.is_empty(), "{scrubbed:?}");
    assert!(scrubbed.bytes < 4 << 20, "{scrubbed:?}");
    assert!(rig.check_all());
    rig.heal();
    assert!(rig.check_all());
}
