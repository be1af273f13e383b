//! Crash, recover, crash: whatever was acknowledged is there, and nothing else than what was told.

mod common;

use common::{NODE, Naming, Rig, seeds, tiny, whole};
use std::time::Duration;
use tidelog_sim::{DiskFault, DiskFaults, Moment, Random, Rate};
use tidelog_wal::{OpenError, Options};

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::Inside, Moment::After];

#[test]
fn a_log_is_written_closed_and_read_back() {
    let mut rig = Rig::new(1, tiny());
    let report = rig.open().unwrap();
    assert!(report.fresh);
    for i in 0..40u32 {
        rig.entry(u64::from(i % 3), &vec![i as u8; 700]).unwrap();
        if i % 4 == 0 {
            rig.drain();
        }
    }
    rig.drain();
    rig.check_all();
    rig.close();
    let report = rig.open().unwrap();
    assert!(!report.fresh);
    assert_eq!(report.findings, []);
    assert_eq!(report.rewritten, 0, "a closed log is proven to its end");
    rig.check_all();
}

/// A short script with everything in it: two partitions, promises, entries, a cut with new entries, a mark, rest.
fn script(rig: &mut Rig) {
    let steps: [fn(&mut Rig); 12] = [
        |r| _ = r.entry(0, &[1; 300]),
        |r| _ = r.entry(1, &[2; 900]),
        |r| r.flush(),
        |r| _ = r.entry(0, &[3; 2000]),
        |r| _ = r.promise(1, 3, 2),
        |r| r.drain(),
        |r| _ = r.records(1, &[(2, vec![4; 50]), (3, vec![5; 5000])]),
        |r| r.drain(),
        |r| _ = r.cut(1, 1).and_then(|()| r.records(1, &[(3, vec![6; 70])])),
        |r| r.mark(0, 1),
        |r| r.drain(),
        |r| r.rest(Duration::from_millis(120)),
    ];
    for step in steps {
        if !rig.alive() || rig.fenced.is_some() {
            return;
        }
        step(rig);
    }
}

/// Enough to fill segments: rolls, and the making of segments, are among the crash points.
fn rolling_script(rig: &mut Rig) {
    for i in 0..14u8 {
        if !rig.alive() || rig.fenced.is_some() {
            return;
        }
        let _ = rig.entry(u64::from(i % 2), &vec![i; 20_000]);
        if i % 2 == 1 {
            rig.drain();
        }
    }
}

/// Runs a script with a crash at each of its operations, three ways; recovers; and again with a crash at operations
/// of that recovery.
fn exhaust(options: &Options, script: fn(&mut Rig), seeds: u64, again: bool) {
    let mut first = 0;
    let boundaries = {
        let mut rig = Rig::new(1, options.clone());
        rig.open().unwrap();
        let opened = rig.world.disk_ops(NODE);
        script(&mut rig);
        first = first.max(opened);
        rig.world.disk_ops(NODE)
    };
    let mut crashes = 0;
    for boundary in 0..boundaries {
        for moment in MOMENTS {
            let seeds = if moment == Moment::Inside { seeds } else { 1 };
            for seed in 1..=seeds {
                let mut rig = Rig::new(seed, options.clone());
                rig.world.crash_at(NODE, boundary, moment);
                if rig.open().is_ok() {
                    script(&mut rig);
                }
                if rig.alive() {
                    // Completions in another order can make the script shorter by an operation or two.
                    rig.world.crash(NODE);
                }
                crashes += 1;
                rig.open().unwrap_or_else(|e| panic!("{boundary} {moment:?} seed {seed}: {e}"));
                rig.check_all();
                if again && boundary + 1 >= first {
                    recover_with_crashes(&mut rig, seed);
                }
                rig.close();
                rig.open().unwrap();
            }
        }
    }
    assert!(crashes > 60, "{crashes} crashes");
}

/// Crashes without having written anything, then at each operation of the recovery from that.
fn recover_with_crashes(rig: &mut Rig, seed: u64) {
    let _ = rig.entry(0, &[9; 100]);
    rig.flush();
    let mut random = Random::new(seed);
    for boundary in 0.. {
        rig.world.crash(NODE);
        let moment = *random.pick(&MOMENTS).unwrap();
        rig.world.crash_at(NODE, boundary, moment);
        if rig.open().is_ok() {
            if rig.alive() {
                rig.world.calm();
                return;
            }
            continue;
        }
        rig.open().unwrap_or_else(|e| panic!("recovery crashed at {boundary} {moment:?}: {e}"));
        assert!(boundary < 200, "recovery takes so many operations");
    }
}

#[test]
fn every_crash_point_of_a_script() {
    exhaust(&tiny(), script, 6, false);
}

#[test]
fn every_crash_point_of_a_script_and_of_its_recovery() {
    exhaust(&tiny(), script, 1, true);
}

#[test]
fn every_crash_point_of_rolling() {
    exhaust(&tiny(), rolling_script, 2, false);
}

#[test]
fn every_crash_point_with_four_batches_in_flight() {
    let script = |rig: &mut Rig| {
        for i in 0..12u8 {
            if !rig.alive() || rig.fenced.is_some() {
                return;
            }
            let _ = rig.entry(u64::from(i % 3), &vec![i; 1500]);
            if i == 7 {
                let _ = rig.cut(1, 1);
            }
            rig.flush();
        }
        rig.drain();
    };
    exhaust(&Options { in_flight_max: 4, ..tiny() }, script, 6, false);
}

/// Four large batches, acknowledged and not proven by a later one: writing them again takes several batches.
#[test]
fn every_crash_point_of_writing_a_long_window_again() {
    let options = Options { in_flight_max: 4, segment_bytes: 512 << 10, ..whole() };
    for moment in MOMENTS {
        let mut boundary = 0;
        loop {
            let mut rig = Rig::new(boundary, options.clone());
            rig.open().unwrap();
            for i in 0..4u8 {
                for _ in 0..3 {
                    rig.entry(0, &[i; 15_000]).unwrap();
                }
                rig.flush();
            }
            while rig.acked < rig.acts.len() {
                rig.poll(tidelog_io::Wait::Forever);
            }
            rig.world.crash(NODE);
            rig.world.crash_at(NODE, boundary, moment);
            if rig.open().is_ok() && rig.alive() {
                break;
            }
            assert!(!rig.alive());
            rig.open().unwrap_or_else(|e| panic!("{boundary} {moment:?}: {e}"));
            assert!(rig.check_all());
            assert_eq!(rig.now[&0].entries.len(), 12);
            boundary += 1;
        }
        assert!(boundary > 15, "{boundary}");
    }
}

/// An opening writes the last life's tail again, and the device does not confirm it; the next opening, in the same process, can read it
/// all the same. If the power goes before that one has come to its end, only the last life's own segments have the tail.
#[test]
fn every_crash_point_of_an_opening_behind_one_that_was_not_confirmed() {
    // The last batch is the first one of a segment, and nothing proves it.
    let make = || {
        let mut rig = Rig::new(1, whole());
        rig.open().unwrap();
        let segments = rig.wal().stats().segments;
        while rig.wal().stats().segments < segments + 1 {
            rig.entry(0, &[3; 9_000]).unwrap();
            rig.drain();
        }
        rig.world.kill(NODE);
        rig.io = Some(rig.world.node(NODE));
        rig
    };
    let operations = {
        let mut rig = make();
        rig.open().unwrap();
        rig.world.disk_ops(NODE)
    };
    let mut crashes = 0;
    for number in 0..operations {
        for boundary in 0.. {
            let mut rig = make();
            rig.world.fail_at(NODE, number, DiskFault::SyncError);
            if rig.open().is_ok() {
                break; // it was no sync
            }
            rig.world.crash_at(NODE, rig.world.disk_ops(NODE) + boundary, MOMENTS[boundary as usize % 3]);
            let _ = rig.open();
            if rig.alive() {
                break;
            }
            crashes += 1;
            let what = format!("a failed sync at {number}, a crash {boundary} operations behind it");
            rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(rig.check_all(), "{what}");
        }
    }
    assert!(crashes > 50, "{crashes}");
}

/// Lives of random length with random acts, ended by power loss, death of the process, a clean stop, or a disk error.
fn lives(seed: u64, options: Options, partitions: u64, payload_max: u64, faults: Option<DiskFaults>) {
    let _naming = Naming(seed);
    let mut random = Random::new(seed);
    let mut rig = Rig::new(seed, options);
    for _ in 0..8 {
        if random.chance(Rate::percent(40)) {
            rig.world.crash_at(NODE, random.below(60), *random.pick(&MOMENTS).unwrap());
        }
        // Now and then opening meets the errors, too, and is tried again in the same process.
        let faulty = faults.filter(|_| random.chance(Rate::percent(40)));
        rig.world.set_disk_faults(NODE, faulty.unwrap_or(DiskFaults::NONE));
        rig.foretold = faulty.is_none();
        let mut tries = 0;
        while let Err(e) = rig.open() {
            assert!(!rig.alive() || faulty.is_some(), "seed {seed}: a healthy disk opens: {e}");
            assert!(matches!(e, OpenError::Io(_) | OpenError::Damaged(_)), "seed {seed}: {e}");
            rig.world.set_disk_faults(NODE, DiskFaults::NONE);
            tries += 1;
            assert!(tries < 3);
        }
        rig.world.set_disk_faults(NODE, DiskFaults::NONE);
        if !rig.check_all() {
            continue;
        }
        rig.world.set_disk_faults(NODE, faults.unwrap_or(DiskFaults::NONE));
        for _ in 0..random.below(120) {
            if !rig.alive() || rig.fenced.is_some() {
                break;
            }
            rig.random_step(&mut random, partitions, payload_max);
        }
        if rig.fenced.is_some() && rig.alive() {
            // Reopened in the same process, once nothing is in flight any more.
            assert!(rig.entry(0, b"late").is_err(), "a fenced log takes nothing");
            rig.close();
            if random.coin() && rig.alive() {
                rig.world.calm();
                rig.open().unwrap();
                assert!(rig.check_all());
            }
        }
        match random.below(4) {
            0 if rig.alive() && rig.wal.is_some() => rig.close(),
            1 => rig.world.kill(NODE),
            _ => rig.world.crash(NODE),
        }
    }
}

#[test]
fn random_lives() {
    for seed in seeds(150) {
        lives(seed, tiny(), 4, 3000, None);
    }
}

#[test]
fn random_lives_with_large_records() {
    let options = Options { segment_bytes: 1 << 20, batch_bytes_max: 256 << 10, ..tiny() };
    for seed in seeds(25) {
        lives(seed, options.clone(), 2, 100_000, None);
    }
}

/// The seeds at the end left, of several batches in flight, the last one of a segment missing and something of the first one of the next
/// segment; the log was taken to have gone on there, and did not open.
#[test]
fn random_lives_with_batches_in_flight() {
    for seed in seeds(80).chain([2071, 2146, 3266, 4221, 4979, 5301]) {
        lives(seed, Options { in_flight_max: 1 + (seed as usize % 4), ..tiny() }, 3, 2000, None);
    }
}

#[test]
fn random_lives_with_disk_errors() {
    for seed in seeds(120) {
        let faults = DiskFaults {
            write_error: Rate::per_million(5_000),
            short_write: Rate::per_million(5_000),
            sync_error: Rate::per_million(10_000),
            read_error: Rate::per_million(5_000),
            name_error: Rate::per_million(5_000),
            ..DiskFaults::NONE
        };
        lives(seed, tiny(), 3, 2000, Some(faults));
    }
}

/// Segments at the log's end in which nothing was ever written.
fn blanks(rig: &Rig) -> usize {
    let ours = |f: &str| f.starts_with(common::DIR) && f.ends_with(".wal") && !f.contains("free-");
    let blank = |f: &str| {
        rig.world.durable_contents(NODE, f).is_some_and(|bytes| bytes.iter().skip(8192).all(|b| *b == 0))
    };
    rig.world.files(NODE).iter().filter(|f| ours(&f.0) && blank(&f.0)).count()
}

/// Opening removes segments that were never written from the highest down, each durably before the next. It removed them in
/// any order once, and after a crash in between, the hole was taken for a lost segment by every later opening.
#[test]
fn every_crash_point_of_removing_several_blank_segments() {
    let crashed = |boundary: u64| {
        let mut rig = Rig::new(boundary, whole());
        rig.foretold = boundary == 0; // a look takes time, and few crashes leave two
        rig.world.crash_at(NODE, boundary, Moment::Before);
        if rig.open().is_ok() {
            rolling_script(&mut rig);
        }
        let down = !rig.alive();
        (rig, down)
    };
    let mut several = 0;
    for boundary in 0.. {
        let (rig, down) = crashed(boundary);
        if !down {
            break;
        }
        if blanks(&rig) < 2 {
            continue;
        }
        several += 1;
        for step in 0.. {
            let moment = MOMENTS[step as usize % 3];
            let (mut rig, _) = crashed(boundary);
            rig.io = None;
            rig.io = Some(rig.world.node(NODE));
            rig.world.crash_at(NODE, step, moment);
            if rig.open().is_ok() && rig.alive() {
                break;
            }
            rig.open().unwrap_or_else(|e| panic!("crashed at {boundary}, then at {step} {moment:?}: {e}"));
            assert!(rig.check_all());
            assert!(step < 300, "an opening takes so many operations");
        }
    }
    assert!(several > 0, "no crash left two segments blank");
}
