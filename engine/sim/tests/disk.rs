//! Crashes and disk faults, seen through the seam.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tidelog_io::{FileId, Foreground, Io, IoError, IoErrorKind, Op, OpenMode, Output, Token, Wait};
use tidelog_sim::{
    DiskFault, DiskFaults, Moment, Rate, SECTOR_BYTES, SimIo, Step, UNCERTAIN, World, WriteShape,
};
use tidelog_types::limits::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

fn page(io: &SimIo, fill: u8) -> Vec<Bytes> {
    pages(io, fill, 1)
}

fn pages(io: &SimIo, fill: u8, count: usize) -> Vec<Bytes> {
    let mut buffer = io.buffers().take(count * PAGE_BYTES);
    buffer.fill(fill);
    vec![buffer.freeze()]
}

fn run(io: &mut SimIo, op: Op) -> Result<Output, IoError> {
    Foreground::new(io).run(op)
}

fn open(io: &mut SimIo, path: &str, mode: OpenMode) -> Result<FileId, IoError> {
    match run(io, Op::Open { path: path.into(), mode })? {
        Output::Opened { file, .. } => Ok(file),
        other => panic!("open gave {other:?}"),
    }
}

/// A file with a durable name and one durable page of `fill`.
fn prepared(io: &mut SimIo, path: &str, fill: u8) -> FileId {
    let file = open(io, path, OpenMode::Create).unwrap();
    let dir: PathBuf = Path::new(path).parent().unwrap().into();
    run(io, Op::SyncDir { path: dir }).unwrap();
    let data = page(io, fill);
    run(io, Op::WriteDurable { file, offset: 0, data }).unwrap();
    file
}

fn kind(result: Result<Output, IoError>) -> IoErrorKind {
    result.expect_err("an error").kind
}

#[test]
fn what_was_synced_survives_and_what_was_not_may_not() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..60 {
        let world = World::new(seed);
        let mut io = world.node(1);
        let file = prepared(&mut io, "/data/f", 1);
        let data = page(&io, 2);
        run(&mut io, Op::Write { file, offset: PAGE, data }).unwrap();
        run(&mut io, Op::Sync { file }).unwrap();
        let data = page(&io, 3);
        run(&mut io, Op::Write { file, offset: 0, data }).unwrap();
        assert_eq!(world.durable_contents(1, "/data/f").unwrap()[..PAGE_BYTES], [UNCERTAIN; PAGE_BYTES]);
        world.crash(1);
        let after = world.read_raw(1, "/data/f").unwrap();
        assert_eq!(after[PAGE_BYTES..], [2; PAGE_BYTES]);
        assert!(after[..PAGE_BYTES].iter().all(|b| *b == 1 || *b == 3));
        kept += usize::from(after[..PAGE_BYTES] == [3; PAGE_BYTES]);
        lost += usize::from(after[..PAGE_BYTES] == [1; PAGE_BYTES]);
    }
    assert!(kept > 0 && lost > 0, "kept {kept}, lost {lost}");
}

#[test]
fn a_killed_process_loses_nothing_until_the_power_fails() {
    let mut lost = false;
    for seed in 0..40 {
        let world = World::new(seed);
        let mut io = world.node(1);
        let file = prepared(&mut io, "/data/f", 1);
        let data = page(&io, 2);
        run(&mut io, Op::Write { file, offset: 0, data }).unwrap();
        world.kill(1);
        assert_eq!(world.read_raw(1, "/data/f").unwrap(), [2; PAGE_BYTES]);
        let io = world.node(1);
        drop(io);
        assert_eq!(world.read_raw(1, "/data/f").unwrap(), [2; PAGE_BYTES]);
        world.crash(1);
        lost |= world.read_raw(1, "/data/f").unwrap() != [2; PAGE_BYTES];
    }
    assert!(lost);
}

#[test]
fn an_old_life_hears_only_that_it_is_over_and_changes_nothing() {
    let world = World::new(3);
    let mut old = world.node(1);
    let file = prepared(&mut old, "/data/f", 1);
    let data = page(&old, 2);
    old.submit(Token::wal(5), Op::WriteDurable { file, offset: PAGE, data });
    world.crash(1);
    assert!(!old.is_alive() && world.is_crashed(1));
    let mut new = world.node(1);
    let before = world.read_raw(1, "/data/f").unwrap();
    let mut out = Vec::new();
    assert_eq!(old.poll(Wait::Forever, &mut out), 1);
    assert_eq!(out[0].token, Token::wal(5));
    assert_eq!(out.remove(0).result.unwrap_err().kind, IoErrorKind::Cancelled);
    assert_eq!(kind(run(&mut old, Op::Remove { path: "/data/f".into() })), IoErrorKind::Cancelled);
    let far = old.clock().now.after(core::time::Duration::from_secs(9));
    old.poll(Wait::Until(far), &mut out);
    assert!(old.clock().now >= far, "a loop that waits for a moment ends");
    assert_eq!(world.read_raw(1, "/data/f").unwrap(), before);
    drop(old);
    assert!(new.is_alive(), "the old one's end is not the new one's");
    open(&mut new, "/data/f", OpenMode::Read).unwrap();
}

/// Two durable pages, one after the other, through a scratch name: safe at every point.
fn script(io: &mut SimIo) -> Result<(), IoError> {
    let file = open(io, "/data/tmp", OpenMode::Create)?;
    let data = page(io, 1);
    run(io, Op::WriteDurable { file, offset: 0, data })?;
    run(io, Op::Rename { from: "/data/tmp".into(), to: "/data/log".into() })?;
    run(io, Op::SyncDir { path: "/data".into() })?;
    let data = page(io, 2);
    run(io, Op::Write { file, offset: PAGE, data })?;
    run(io, Op::Sync { file })?;
    Ok(())
}

#[test]
fn a_crash_at_every_boundary() {
    let total = {
        let world = World::new(0);
        let mut io = world.node(1);
        script(&mut io).unwrap();
        world.disk_ops(1)
    };
    assert_eq!(total, 6);
    let mut outcomes = BTreeSet::new();
    for boundary in 0..total {
        for moment in [Moment::Before, Moment::Inside, Moment::After] {
            for seed in 0..20 {
                let world = World::new(seed);
                let mut io = world.node(1);
                world.crash_at(1, boundary, moment);
                assert_eq!(script(&mut io).unwrap_err().kind, IoErrorKind::Cancelled);
                assert!(world.is_crashed(1));
                assert_eq!(world.step(), Some(Step::Down(1)));
                assert_eq!(world.disk_ops(1), boundary + 1);
                let log = world.read_raw(1, "/data/log");
                if (boundary, moment) >= (3, Moment::After) {
                    let log = log.as_ref().expect("the name was synced");
                    assert_eq!(log[..PAGE_BYTES], [1; PAGE_BYTES]);
                }
                if (boundary, moment) == (5, Moment::After) {
                    assert_eq!(log.as_ref().unwrap()[PAGE_BYTES..], [2; PAGE_BYTES]);
                }
                if (boundary, moment) < (2, Moment::Inside) {
                    assert!(log.is_none(), "it was not renamed yet");
                }
                outcomes.insert((boundary, moment, log.map(|l| l.len())));
                // And the disk can be used again.
                let mut io = world.node(1);
                prepared(&mut io, "/data/next", 7);
            }
        }
    }
    assert!(
        outcomes.contains(&(2, Moment::Inside, Some(PAGE_BYTES))),
        "an unsynced rename survives sometimes"
    );
    assert!(outcomes.contains(&(2, Moment::After, None)), "and sometimes does not");
}

/// Every subset of a page's sectors can be ordered, and is what is there after the power loss; the shape says which matter.
#[test]
fn a_write_is_torn_as_ordered() {
    for mask in 0..=0xFFu64 {
        let world = World::new(mask);
        let mut io = world.node(1);
        let file = prepared(&mut io, "/data/f", 1);
        world.watch_writes(1);
        let number = world.disk_ops(1);
        // The third sector is what it was.
        let mut buffer = io.buffers().take(PAGE_BYTES);
        buffer.fill(2);
        buffer[2 * SECTOR_BYTES..3 * SECTOR_BYTES].fill(1);
        world.crash_at(1, number, Moment::Sectors(mask));
        let data = vec![buffer.freeze()];
        run(&mut io, Op::WriteDurable { file, offset: 0, data }).unwrap_err();
        assert!(world.is_crashed(1));
        assert_eq!(world.take_writes(1), [WriteShape { number, sectors: 8, changed: 0b1111_1011 }]);
        let after = world.read_raw(1, "/data/f").unwrap();
        for (sector, bytes) in after[..PAGE_BYTES].chunks(SECTOR_BYTES).enumerate() {
            let arrived = mask & (1 << sector) != 0 && sector != 2;
            assert!(bytes.iter().all(|b| *b == 1 + u8::from(arrived)), "mask {mask:#b} sector {sector}");
        }
    }
}

#[test]
fn a_skipped_sync_is_caught() {
    let survived = (0..50).all(|seed| {
        let world = World::new(seed);
        let mut io = world.node(1);
        let file = prepared(&mut io, "/data/f", 0);
        let data = pages(&io, 9, 4);
        run(&mut io, Op::Write { file, offset: 0, data }).unwrap();
        world.crash(1);
        world.read_raw(1, "/data/f").unwrap() == [9; 4 * PAGE_BYTES]
    });
    assert!(!survived);
}

#[test]
fn a_name_without_a_sync_of_its_directory_is_lost_in_some_worlds() {
    let survived = (0..50)
        .filter(|seed| {
            let world = World::new(*seed);
            let mut io = world.node(1);
            let file = open(&mut io, "/data/f", OpenMode::Create).unwrap();
            let data = page(&io, 1);
            run(&mut io, Op::WriteDurable { file, offset: 0, data }).unwrap();
            run(&mut io, Op::Sync { file }).unwrap();
            assert_eq!(world.durable_contents(1, "/data/f"), None);
            world.crash(1);
            world.read_raw(1, "/data/f").is_some()
        })
        .count();
    assert!((1..50).contains(&survived), "{survived}");
}

#[test]
fn each_ordered_fault_shows_as_its_error() {
    let world = World::new(1);
    let mut io = world.node(1);
    let file = prepared(&mut io, "/data/f", 1);
    let expect = |io: &mut SimIo, fault, op, expected| {
        world.fail_next(1, fault);
        assert_eq!(kind(run(io, op)), expected, "{fault:?}");
    };
    let data = page(&io, 2);
    let write = || Op::Write { file, offset: 0, data: data.clone() };
    let durable = || Op::WriteDurable { file, offset: 0, data: data.clone() };
    let buffer = io.buffers().take(PAGE_BYTES);
    let read = Op::Read { file, offset: 0, buffer };
    expect(&mut io, DiskFault::WriteError, write(), IoErrorKind::Device);
    expect(&mut io, DiskFault::WriteError, durable(), IoErrorKind::Device);
    expect(&mut io, DiskFault::ShortWrite, durable(), IoErrorKind::ShortWrite);
    expect(&mut io, DiskFault::NoSpace, durable(), IoErrorKind::NoSpace);
    expect(&mut io, DiskFault::SyncError, durable(), IoErrorKind::Device);
    expect(&mut io, DiskFault::SyncError, Op::Sync { file }, IoErrorKind::Device);
    expect(&mut io, DiskFault::ReadError, read, IoErrorKind::Device);
    expect(&mut io, DiskFault::NameError, Op::Remove { path: "/data/f".into() }, IoErrorKind::Device);
    // The ordered faults are used up.
    run(&mut io, durable()).unwrap();
    let before = io.clock().now;
    world.fail_next(1, DiskFault::Stall(5_000_000_000));
    run(&mut io, durable()).unwrap();
    assert!(io.clock().now.since(before).as_secs() >= 5);
}

#[test]
fn every_operation_can_be_made_to_fail() {
    for number in 0..6 {
        let world = World::new(number);
        let mut io = world.node(1);
        world.fail_at(1, number, DiskFault::WriteError);
        let error = script(&mut io).unwrap_err();
        assert_eq!(error.kind, IoErrorKind::Device, "{number}: {error}");
        assert_eq!(world.disk_ops(1), number + 1);
    }
}

#[test]
fn after_a_failed_sync_a_later_sync_does_not_always_save() {
    let (mut readable_then_lost, mut saved) = (false, false);
    for seed in 0..60 {
        let world = World::new(seed);
        let mut io = world.node(1);
        let file = prepared(&mut io, "/data/f", 1);
        let data = page(&io, 2);
        run(&mut io, Op::Write { file, offset: 0, data }).unwrap();
        world.fail_next(1, DiskFault::SyncError);
        run(&mut io, Op::Sync { file }).unwrap_err();
        run(&mut io, Op::Sync { file }).unwrap();
        let seen = world.read_raw(1, "/data/f").unwrap();
        let sure = world.durable_contents(1, "/data/f").unwrap();
        world.crash(1);
        let after = world.read_raw(1, "/data/f").unwrap();
        assert_eq!(sure, after, "nothing was open");
        readable_then_lost |= seen == [2; PAGE_BYTES] && after == [1; PAGE_BYTES];
        saved |= after == [2; PAGE_BYTES];
    }
    assert!(readable_then_lost && saved);
}

#[test]
fn a_full_disk_refuses_and_takes_again() {
    let world = World::new(1);
    let mut io = world.node(1);
    let file = prepared(&mut io, "/data/f", 1);
    world.set_capacity(1, Some(2 * PAGE));
    let data = page(&io, 2);
    let write = |at: u64| Op::WriteDurable { file, offset: at * PAGE, data: data.clone() };
    run(&mut io, write(1)).unwrap();
    assert_eq!(kind(run(&mut io, write(2))), IoErrorKind::NoSpace);
    run(&mut io, write(0)).expect("overwriting takes no space");
    world.set_capacity(1, None);
    run(&mut io, write(2)).unwrap();
    assert_eq!(world.disk_used(1), 3 * PAGE);
}

#[test]
fn damage_shows_when_read() {
    let world = World::new(1);
    let mut io = world.node(1);
    let file = prepared(&mut io, "/data/f", 4);
    assert!(world.flip(1, "/data/f", 100));
    assert_eq!(world.read_raw(1, "/data/f").unwrap()[100], 5);
    assert!(world.write_raw(1, "/data/f", 0, b"xyz"));
    assert!(world.make_unreadable(1, "/data/f", 0, 1));
    assert!(!world.flip(1, "/data/none", 0));
    let buffer = io.buffers().take(PAGE_BYTES);
    assert_eq!(kind(run(&mut io, Op::Read { file, offset: 0, buffer })), IoErrorKind::Device);
    assert_eq!(world.files(1), [("/data/f".to_owned(), PAGE)]);
}

#[test]
fn a_misdirected_write_lands_elsewhere_without_an_error() {
    let missed = (0..20).filter(|seed| {
        let world = World::new(*seed);
        let mut io = world.node(1);
        let file = prepared(&mut io, "/data/f", 0);
        let data = pages(&io, 0, 16);
        run(&mut io, Op::WriteDurable { file, offset: 0, data }).unwrap();
        world.fail_next(1, DiskFault::Misdirected);
        let data = page(&io, 8);
        run(&mut io, Op::WriteDurable { file, offset: 3 * PAGE, data }).unwrap();
        let bytes = world.read_raw(1, "/data/f").unwrap();
        assert_eq!(bytes.iter().filter(|b| **b == 8).count(), PAGE_BYTES);
        bytes[3 * PAGE_BYTES] != 8
    });
    assert!(missed.count() > 10);
}

#[test]
fn what_becomes_durable_is_told_once() {
    let world = World::new(1);
    world.watch_durable(1);
    let mut io = world.node(1);
    let file = prepared(&mut io, "/data/f", 1);
    let data = pages(&io, 2, 3);
    run(&mut io, Op::Write { file, offset: PAGE, data }).unwrap();
    let told = |world: &World| -> Vec<(u64, usize)> {
        world.take_durable(1).into_iter().map(|r| (r.offset / PAGE, r.len / PAGE_BYTES)).collect()
    };
    assert_eq!(told(&world), [(0, 1)]);
    let version = world.durable_version(1);
    run(&mut io, Op::Sync { file }).unwrap();
    assert_ne!(world.durable_version(1), version);
    assert_eq!(told(&world), [(1, 3)]);
    assert_eq!(told(&world), []);
    assert_eq!(world.durable_range(1, "/data/f", PAGE, PAGE_BYTES).unwrap(), [2; PAGE_BYTES]);
}

#[test]
fn rates_fire_and_are_counted() {
    let world = World::new(5);
    let mut io = world.node(1);
    let file = prepared(&mut io, "/data/f", 1);
    let tenth = Rate::percent(10);
    world.set_disk_faults(
        1,
        DiskFaults {
            write_error: tenth,
            sync_error: tenth,
            stall: tenth,
            slow_factor: 3,
            ..DiskFaults::NONE
        },
    );
    let data = page(&io, 2);
    for _ in 0..300 {
        let _ = run(&mut io, Op::WriteDurable { file, offset: 0, data: data.clone() });
    }
    let counts = world.fault_counts();
    for name in ["write error", "disk stall", "slow disk", "sync error, data doomed"] {
        assert!(counts[name] > 0, "{name}: {counts:?}");
    }
    assert_eq!(counts["short write"], 0);
    world.calm();
    for _ in 0..300 {
        run(&mut io, Op::WriteDurable { file, offset: 0, data: data.clone() }).unwrap();
    }
}
