//! What a directory tells of itself when a part of it is gone: that of the newest written segment does not go unnoticed.

mod common;

use common::{DIR, NODE, Rig, segments, tiny, whole};
use std::time::Duration;
use tidelog_io::{Foreground, Op};
use tidelog_wal::{OpenError, Options};

fn remove(rig: &mut Rig, file: &str) {
    rig.io = None;
    rig.wal = None;
    let mut io = rig.world.node(NODE);
    let mut fg = Foreground::new(&mut io);
    fg.run(Op::Remove { path: file.into() }).unwrap();
    fg.run(Op::SyncDir { path: DIR.into() }).unwrap();
    fg.finish();
}

/// A log of `lives` lives with some entries in each, and the names of its segments.
fn lived(options: &Options, lives: u64, entries: u8) -> (Rig, Vec<String>) {
    let mut rig = Rig::new(lives, options.clone());
    for life in 0..lives {
        rig.open().unwrap();
        for i in 0..entries {
            rig.entry(0, &vec![i; 3000]).unwrap();
            rig.drain();
        }
        match life % 3 {
            0 => rig.close(),
            1 => {
                rig.rest(Duration::from_millis(30));
                rig.world.crash(NODE);
            }
            _ => rig.world.kill(NODE),
        }
        rig.wal = None;
    }
    let files = segments(&rig);
    (rig, files)
}

/// The life after a restart has written to one segment, and the one behind it is prepared. Without the first, the second looked like
/// what an opening that did not end leaves behind: the log opened as it had been before that life.
#[test]
fn the_only_written_segment_of_an_epoch_does_not_vanish_in_silence() {
    for options in [tiny(), whole()] {
        for lives in 1..=5 {
            let (mut rig, files) = lived(&options, lives, 8);
            let newest =
                files.iter().rev().nth(1).expect("the newest written one, and a prepared one").clone();
            remove(&mut rig, &newest);
            match rig.open() {
                Err(OpenError::Missing { .. } | OpenError::Checkpoint { .. } | OpenError::Gone { .. }) => {}
                other => panic!("{lives} lives, {newest} is gone: {other:?}"),
            }
        }
    }
}

/// Whichever segment goes that holds something: it is missed.
#[test]
fn no_written_segment_vanishes_in_silence() {
    let mut missed = 0;
    for options in [tiny(), whole()] {
        for (lives, entries) in [(1, 60), (2, 70), (3, 40), (4, 90)] {
            let (_, files) = lived(&options, lives, entries);
            for file in files.iter().rev().skip(1) {
                let (mut rig, _) = lived(&options, lives, entries);
                remove(&mut rig, file);
                match rig.open() {
                    Err(
                        OpenError::Missing { .. } | OpenError::Checkpoint { .. } | OpenError::Lost { .. },
                    ) => missed += 1,
                    // Nothing live was in it.
                    Ok(_) => assert!(rig.check_all(), "{lives} lives, {file} is gone"),
                    other => panic!("{lives} lives, {file} is gone: {other:?}"),
                }
            }
        }
    }
    assert!(missed > 20, "{missed}");
}

/// What was written behind the header of the next segment is what that one says was durable: a file that is put back as it was before
/// is told from one that was never written.
#[test]
fn the_newest_segment_is_not_what_it_was_before() {
    let mut rig = Rig::new(3, whole());
    rig.open().unwrap();
    let mut older = None;
    while rig.wal().stats().segments < 2 {
        rig.entry(0, &[3; 3000]).unwrap();
        rig.drain();
        if older.is_none() {
            let file = segments(&rig).into_iter().rev().nth(1).unwrap();
            older = rig.world.read_raw(NODE, &file).map(|bytes| (file, bytes));
        }
    }
    rig.rest(Duration::from_millis(30));
    rig.close();
    let (file, bytes) = older.unwrap();
    assert!(rig.world.write_raw(NODE, &file, 0, &bytes));
    match rig.open() {
        Err(OpenError::Damaged(_) | OpenError::Lost { .. }) => {}
        other => panic!("{other:?}"),
    }
}
