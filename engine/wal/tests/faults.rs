//! Disks that fail and disks that are full: nothing is acknowledged that is not there, and control records get through.

mod common;

use common::{DIR, NODE, Rig, tiny, whole};
use std::time::Duration;
use tidelog_io::{Io, Wait};
use tidelog_sim::{DiskFault, Random};
use tidelog_wal::{BusyWhy, OpenError, Options};

fn script(rig: &mut Rig) {
    for i in 0..18u8 {
        if !rig.alive() || rig.fenced.is_some() {
            return;
        }
        let _ = rig.entry(u64::from(i % 2), &vec![i; 16_000]);
        if i % 3 == 2 {
            rig.drain();
        }
        if i == 5 {
            rig.rest(Duration::from_millis(8));
        }
    }
    rig.drain();
}

/// Every operation fails once, in each way. The log fences or does not open; opened again, in the same process or after
/// a power loss, it has all that was acknowledged.
#[test]
fn a_fault_at_every_operation() {
    let operations = {
        let mut rig = Rig::new(1, tiny());
        rig.open().unwrap();
        script(&mut rig);
        assert!(rig.wal().stats().segments >= 2, "a segment is among the operations");
        rig.world.disk_ops(NODE)
    };
    let (mut fenced, mut refused) = (0, 0);
    for number in 0..operations {
        for fault in [
            DiskFault::WriteError,
            DiskFault::ShortWrite,
            DiskFault::SyncError,
            DiskFault::NoSpace,
            DiskFault::NameError,
        ] {
            let mut rig = Rig::new(number, tiny());
            rig.world.fail_at(NODE, number, fault);
            match rig.open() {
                Ok(_) => script(&mut rig),
                Err(OpenError::Io(_) | OpenError::NoSpace { .. }) => refused += 1,
                Err(e) => panic!("{fault:?} at {number}: {e}"),
            }
            if let Some(error) = &rig.fenced {
                fenced += 1;
                let text = error.to_string();
                assert!(text.contains(DIR), "`{text}` names a file");
                assert!(rig.entry(0, b"late").is_err());
                assert_eq!(rig.wal().deadline(), None, "a fenced log asks for nothing");
            }
            if rig.wal.is_some() {
                rig.close();
            }
            if number % 2 == 0 {
                rig.world.crash(NODE);
            }
            rig.open().unwrap_or_else(|e| panic!("{fault:?} at {number}: {e}"));
            assert!(rig.check_all());
            script(&mut rig);
            assert!(rig.fenced.is_none());
            assert!(rig.check_all());
        }
    }
    assert!(fenced > 20 && refused > 20, "{fenced} fenced, {refused} refused");
}

#[test]
fn nothing_is_durable_after_a_failed_sync_and_the_tail_is_written_again() {
    let mut rig = Rig::new(2, tiny());
    rig.open().unwrap();
    rig.entry(0, &[1; 100]).unwrap();
    rig.drain();
    rig.world.fail_next(NODE, DiskFault::SyncError);
    rig.entry(0, &[2; 100]).unwrap();
    rig.flush();
    let told = rig.durable_events;
    while rig.fenced.is_none() {
        rig.poll(tidelog_io::Wait::Forever);
        rig.tick();
    }
    rig.rest(Duration::from_millis(50));
    assert_eq!(rig.durable_events, told);
    rig.close();
    // The same process opens it again: what it reads may be in memory only, so it is written again.
    let report = rig.open().unwrap();
    if rig.now[&0].entries.len() == 2 {
        assert!(report.rewritten >= 1);
    }
    let kept = rig.now.clone();
    rig.world.crash(NODE);
    rig.open().unwrap();
    assert_eq!(rig.now, kept, "what an opening accepted stays");
}

#[test]
fn a_full_disk_refuses_entries_and_takes_promises() {
    let mut rig = Rig::new(3, tiny());
    rig.open().unwrap();
    rig.entry(0, &[1; 100]).unwrap();
    rig.promise(1, 1, 0).unwrap();
    rig.drain();
    let used = rig.world.disk_used(NODE);
    rig.world.set_capacity(NODE, Some(used + 64 * 1024));
    // Entries go on until the log must roll into its reserve.
    let mut tries = 0;
    while !rig.full {
        if let Err(e) = rig.entry(0, &[2; 30_000]) {
            assert_ne!(e.why, BusyWhy::Fenced);
        }
        tries += 1;
        rig.drain();
        rig.rest(Duration::from_millis(1));
        assert!(tries < 200, "it never filled up");
    }
    assert!(rig.fenced.is_none());
    assert_eq!(rig.entry(0, &[3; 10]).unwrap_err().why, BusyWhy::Space);
    assert_eq!(rig.wal().room(), 0);
    for generation in 2..8 {
        rig.promise(1, generation, 1).unwrap();
        rig.drain();
    }
    let left = rig.world.files(NODE).into_iter().filter(|f| f.0.ends_with(".tmp")).count();
    assert!(left <= 1, "what does not fit is removed");

    // A restart on the full disk still votes.
    rig.world.crash(NODE);
    let report = rig.open().unwrap();
    assert!(report.no_space);
    rig.tick();
    assert!(rig.full);
    assert_eq!(rig.now[&1].promise, (7, 1));
    rig.promise(1, 50, 2).unwrap();
    rig.drain();
    assert!(rig.check_all());

    // Space comes back, and nobody has to do anything.
    rig.world.set_capacity(NODE, None);
    let mut waited = 0;
    while rig.full {
        rig.rest(Duration::from_millis(500));
        waited += 1;
        assert!(waited < 40, "writing never resumed");
    }
    rig.entry(0, &[4; 30_000]).unwrap();
    rig.drain();
    rig.close();
    rig.open().unwrap();
    assert!(rig.check_all());
}

/// Any number of lives on a disk that stays full: each votes, and none needs more than the one before.
#[test]
fn a_full_disk_is_opened_again_and_again() {
    let mut rig = Rig::new(13, tiny());
    rig.open().unwrap();
    for partition in 0..3 {
        rig.entry(partition, &[1; 100]).unwrap();
    }
    // More than is written again as a whole.
    for _ in 0..60 {
        rig.entry(2, &[1; 20_000]).unwrap();
        rig.drain();
        rig.rest(Duration::from_millis(1));
    }
    let used = rig.world.disk_used(NODE);
    rig.world.set_capacity(NODE, Some(used + 64 * 1024));
    let mut tries = 0;
    while !rig.full {
        let _ = rig.entry(0, &[2; 20_000]);
        tries += 1;
        rig.drain();
        rig.rest(Duration::from_millis(1));
        assert!(tries < 200, "it never filled up");
    }
    let entries = rig.now[&0].entries.len();
    for life in 1..=12 {
        match life % 3 {
            0 => rig.close(),
            1 => rig.world.kill(NODE),
            _ => rig.world.crash(NODE),
        }
        let report = rig.open().unwrap_or_else(|e| panic!("life {life}: {e}"));
        assert!(report.no_space, "life {life}: {report:?}");
        assert!(rig.check_all());
        let generation = rig.part(1).promise.0 + 1;
        rig.promise(1, generation, 1).unwrap();
        rig.drain();
        rig.tick();
        assert!(rig.full, "life {life}");
    }
    assert_eq!(rig.now[&0].entries.len(), entries);
    rig.world.set_capacity(NODE, None);
    let mut waited = 0;
    while rig.full {
        rig.rest(Duration::from_millis(500));
        waited += 1;
        assert!(waited < 40, "writing never resumed");
    }
    rig.entry(0, &[4; 30_000]).unwrap();
    rig.drain();
    rig.close();
    rig.open().unwrap();
    assert!(rig.check_all());
}

/// A node that was restarted on a full disk once refused for ever when one segment's space had come back, though the segment that it wrote was
/// empty: what was there was kept for votes, all of it.
#[test]
fn the_segment_that_is_written_counts_when_a_little_space_comes_back() {
    let mut rig = Rig::new(14, Options { segment_bytes: 1 << 20, ..whole() });
    rig.open().unwrap();
    rig.promise(1, 1, 0).unwrap();
    // More than is written again as a whole.
    for _ in 0..120 {
        rig.entry(0, &[1; 20_000]).unwrap();
        rig.drain();
        rig.rest(Duration::from_millis(1));
    }
    let fill = |rig: &mut Rig| {
        let mut tries = 0;
        while !rig.full {
            let _ = rig.entry(0, &[2; 20_000]);
            tries += 1;
            rig.drain();
            rig.rest(Duration::from_millis(1));
            assert!(tries < 1000, "it never filled up");
        }
    };
    let used = rig.world.disk_used(NODE);
    rig.world.set_capacity(NODE, Some(used + (64 << 10)));
    fill(&mut rig);
    for life in 0..4 {
        rig.world.crash(NODE);
        let report = rig.open().unwrap_or_else(|e| panic!("life {life}: {e}"));
        rig.tick();
        // The first life is too long to be written again. Of a later one that was, the segment has come back.
        assert!(rig.full || life > 0 && report.rewritten > 10, "life {life}: {report:?}");
        fill(&mut rig);
        let before = rig.part(0).entries.len();
        let used = rig.world.disk_used(NODE);
        rig.world.set_capacity(NODE, Some(used + (1 << 20) + (64 << 10)));
        rig.rest(Duration::from_secs(3));
        assert!(!rig.full, "life {life}: {:?}", rig.wal().stats());
        fill(&mut rig);
        assert!(rig.part(0).entries.len() > before + 10, "life {life}");
        // Whatever was taken, there is a segment for this life's votes, and one for the next life.
        assert_eq!(rig.wal().stats().spares, 2, "life {life}");
        for _ in 0..3 {
            let generation = rig.part(1).promise.0 + 1;
            rig.promise(1, generation, 1).unwrap();
            rig.drain();
        }
        assert!(rig.check_all());
    }
}

/// No space in the middle of a batch: nothing of it is acknowledged, the log is opened again, and takes no entries for as long as its driver
/// doubts that there is space; promises it takes.
#[test]
fn a_batch_that_finds_no_space_is_opened_again_and_doubted() {
    let mut batches = 0;
    for at in 0..40 {
        let mut rig = Rig::new(at, tiny());
        rig.open().unwrap();
        let number = rig.world.disk_ops(NODE) + at;
        rig.world.fail_at(NODE, number, DiskFault::NoSpace);
        for i in 0..30u8 {
            if rig.fenced.is_some() || rig.entry(0, &vec![i; 16_000]).is_err() {
                break;
            }
            rig.drain();
        }
        // What is not a write fails in its own way.
        let no_space = |error: &tidelog_wal::WalError| error.error.kind == tidelog_io::IoErrorKind::NoSpace;
        if !rig.fenced.as_ref().is_some_and(no_space) {
            continue;
        }
        batches += 1;
        rig.close();
        rig.open().unwrap();
        assert!(rig.check_all());
        let until = rig.io.as_ref().unwrap().clock().now.after(Duration::from_secs(2));
        rig.wal().doubt_space(until);
        rig.tick();
        assert!(rig.full);
        assert_eq!(rig.entry(0, b"later").unwrap_err().why, BusyWhy::Space);
        let generation = rig.part(1).promise.0 + 1;
        rig.promise(1, generation, 1).unwrap();
        rig.drain();
        rig.rest(Duration::from_secs(3));
        assert!(!rig.full, "the doubt is over");
        rig.entry(0, b"now").unwrap();
        rig.drain();
        assert!(rig.check_all());
    }
    assert!(batches > 5, "{batches}");
}

/// Zeros that are written in part are taken for a full disk, not for a device that fails.
#[test]
fn a_short_write_of_zeros_is_no_failure() {
    let mut shorts = 0;
    for at in 0..120 {
        let mut rig = Rig::new(at, tiny());
        rig.open().unwrap();
        rig.world.fail_at(NODE, rig.world.disk_ops(NODE) + at, DiskFault::ShortWrite);
        for i in 0..60u8 {
            if rig.fenced.is_some() {
                break;
            }
            let _ = rig.entry(0, &vec![i; 16_000]);
            rig.drain();
            rig.rest(Duration::from_millis(2));
        }
        match &rig.fenced {
            Some(error) if error.error.kind == tidelog_io::IoErrorKind::ShortWrite => {
                assert_ne!(error.what, "filling a spare segment", "{error}");
            }
            Some(_) => {}
            None => shorts += u64::from(rig.world.fault_counts()["short write"] > 0),
        }
        if rig.fenced.is_none() {
            rig.rest(Duration::from_secs(2));
            assert!(!rig.full, "it is made again");
        }
    }
    assert!(shorts > 2, "{shorts}");
}

#[test]
fn a_disk_too_small_for_a_log_says_so() {
    let mut rig = Rig::new(4, tiny());
    rig.world.set_capacity(NODE, Some(100 << 10));
    let error = rig.open().unwrap_err();
    assert!(matches!(&error, OpenError::NoSpace { .. }), "{error}");
    rig.world.set_capacity(NODE, None);
    rig.open().unwrap();
}

#[test]
fn control_records_fit_beside_any_bulk() {
    let mut rig = Rig::new(5, tiny());
    rig.open().unwrap();
    rig.promise(0, 1, 0).unwrap();
    rig.promise(1, 1, 0).unwrap();
    let mut random = Random::new(5);
    let mut batches = 0;
    while batches < 40 {
        let len = random.below(9000) as usize;
        match rig.entry(0, &vec![7; len]) {
            Ok(()) => {}
            Err(busy) => {
                assert!(busy.room < len + 1 || busy.why != BusyWhy::Batch);
                let generation = rig.part(1).promise.0 + 1;
                rig.promise(1, generation, 0).expect("there is room for a promise");
                rig.flush();
                rig.drain();
                batches += 1;
            }
        }
    }
    assert!(rig.wal().stats().segments > 5);
    let stats = rig.wal().stats();
    assert_eq!(stats.copied_bytes, stats.payload_bytes, "each payload byte is copied once");
}

#[test]
fn rolls_never_wait_in_the_steady_state() {
    let mut rig = Rig::new(6, Options { spares: 2, ..tiny() });
    rig.open().unwrap();
    for i in 0..200u32 {
        rig.entry(0, &vec![i as u8; 9000]).expect("the next segment is ready");
        rig.drain();
    }
    assert!(rig.wal().stats().segments > 10);
    let spares = rig.wal().stats().spares;
    assert!(spares >= 1, "{spares}");
}

#[test]
fn an_idle_log_is_sealed_and_then_quiet() {
    let mut rig = Rig::new(7, tiny());
    rig.open().unwrap();
    rig.entry(0, &[1; 10]).unwrap();
    rig.drain();
    rig.rest(Duration::from_millis(20));
    assert_eq!(rig.wal().stats().seals, 1);
    assert_eq!(rig.wal().deadline(), None);
    rig.mark(0, 1);
    rig.rest(Duration::from_millis(300));
    let stats = rig.wal().stats();
    assert_eq!(stats.seals, 2, "a hint is written in an idle log, too");
    rig.rest(Duration::from_secs(5));
    assert_eq!(rig.wal().stats(), stats, "and then nothing more");
    rig.world.crash(NODE);
    let report = rig.open().unwrap();
    assert_eq!(rig.marks.get(&0), Some(&1));
    assert_eq!(report.rewritten, 1, "only the hint was not proven");
}

/// A read of a disk that does not answer, and a failed write: the log is opened again without waiting for the read, however late it ends.
#[test]
fn a_fenced_log_does_not_wait_for_a_read_that_hangs() {
    let mut rig = Rig::new(7, Options { cache_bytes_max: 0, ..tiny() });
    rig.open().unwrap();
    for i in 0..30u8 {
        rig.entry(0, &[i; 3000]).unwrap();
        rig.drain();
    }
    rig.rest(Duration::from_millis(20));
    rig.world.slow_disk(NODE, 10_000_000);
    rig.start_read(0, 1, 1, 1 << 20);
    rig.world.slow_disk(NODE, 1);
    rig.world.fail_next(NODE, DiskFault::WriteError);
    rig.entry(0, &[9; 100]).unwrap();
    rig.flush();
    let before = rig.io.as_ref().unwrap().clock().now;
    while rig.fenced.is_none() {
        rig.poll(Wait::Forever);
    }
    rig.close();
    let took = rig.io.as_ref().unwrap().clock().now.since(before);
    assert!(took < Duration::from_secs(5), "{took:?}");
    rig.open().unwrap();
    assert!(rig.check_all());
    // The read ends when a later life has the ring.
    rig.rest(Duration::from_secs(3_000));
    rig.entry(0, &[10; 100]).unwrap();
    rig.drain();
    assert!(rig.check_all());
    rig.close();
    rig.open().unwrap();
}
