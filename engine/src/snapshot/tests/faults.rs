//! Disks that fail and are full while a snapshot is made, a log that fails meanwhile, and snapshots by time.

use super::*;
use crate::request::BusyReason;
use tidelog_io::TokenClass;
use tidelog_sim::DiskFault;

const FAULTS: [DiskFault; 5] = [
    DiskFault::WriteError,
    DiskFault::ShortWrite,
    DiskFault::SyncError,
    DiskFault::NoSpace,
    DiskFault::NameError,
];

/// Numbers of the operations from `from` on that change the disk, by whose they are: from the trace, which has them in the
/// order of their numbers.
fn owners(world: &World, from: u64) -> Vec<(u64, TokenClass)> {
    let changing =
        ["write", "write durable", "sync", "rename", "remove", "create directory", "sync directory"];
    let class = |words: &str| {
        let words: Vec<u64> = words.split(", ").filter_map(|word| word.parse().ok()).collect();
        let class = match words.first()? {
            1 => TokenClass::Wal,
            3 => TokenClass::Engine,
            _ => return None,
        };
        Some((class, *words.get(3)?))
    };
    let lines = world.log();
    let own = lines.iter().filter_map(|line| {
        let (what, words) = line.split_once("node 1  ")?.1.split_once(" [")?;
        let (class, mode) = class(words.trim_end_matches(']'))?;
        let creates = what == "open" && mode == tidelog_io::OpenMode::Create as u64;
        (creates || changing.contains(&what)).then_some(class)
    });
    let owners: Vec<(u64, TokenClass)> = (from..).zip(own).collect();
    assert_eq!(
        owners.last().map(|(number, _)| number + 1),
        Some(world.disk_ops(1)),
        "the trace has them all"
    );
    owners
}

/// A node with a snapshot, and entries behind it.
fn with_a_snapshot(world: &World, acked: &mut Vec<u64>) -> Life {
    let mut life = opened(world, keep());
    append_all(&mut life, acked, 40).unwrap();
    assert!(life.ask(Request::Snapshot { partition: P }).unwrap().is_ok());
    append_all(&mut life, acked, 20).unwrap();
    life.run_for(Duration::from_millis(50)).unwrap();
    life
}

/// Every operation of a snapshot, and of the log meanwhile, fails in every way. The snapshot before it stays, and counts; what is
/// not covered is not let go; the log goes on unless it was its own write; whoever asked is told; and the next attempt succeeds.
#[test]
fn a_fault_at_every_operation_of_a_snapshot() {
    let world = World::new(8);
    let mut life = with_a_snapshot(&world, &mut Vec::new());
    let from = world.disk_ops(1);
    world.keep_log(1 << 16);
    assert!(life.ask(Request::Snapshot { partition: P }).unwrap().is_ok());
    life.run_for(Duration::from_millis(50)).unwrap();
    let owners = owners(&world, from);
    let job = owners.iter().filter(|(_, class)| *class == TokenClass::Engine).count();
    assert!(job > 15 && owners.len() > job, "{job} of {} are the snapshot's", owners.len());

    let (mut refused, mut harmless, mut fenced) = (0, 0, 0);
    for (number, class) in owners {
        for fault in FAULTS {
            let what = format!("{fault:?} at {number}, {class:?}");
            let world = World::new(8);
            let mut acked = Vec::new();
            let mut life = with_a_snapshot(&world, &mut acked);
            let (covered, low) = (life.covered(), life.low_water());
            let before = snapshots(&world);
            assert_eq!((before.len(), low), (1, covered + 1));
            world.fail_at(1, number, fault);
            let answer = life.ask(Request::Snapshot { partition: P }).unwrap();
            let logs_own = class == TokenClass::Wal;
            match answer {
                Ok(_) => harmless += usize::from(!logs_own),
                Err(RequestError::Unavailable(why)) if logs_own => {
                    assert!(why.contains("is being recovered"), "{what}: {why}");
                }
                Err(RequestError::Unavailable(why)) => {
                    refused += 1;
                    let dir = files::dir(Path::new(DIR), P).display().to_string();
                    let named = why.contains(&dir) || why.contains(DIR);
                    assert!(why.contains("no snapshot of partition 0 was taken") && named, "{what}: {why}");
                    assert_eq!((life.covered(), life.low_water()), (covered, low), "{what}");
                    assert!(snapshots(&world).contains(&before[0]), "{what}: the old one stays");
                    if number % 3 == 0 {
                        // It is what the next process begins from.
                        world.crash(1);
                        drop(life);
                        life = opened(&world, keep());
                        whole(&life, &acked);
                        assert_eq!((life.covered(), life.low_water()), (covered, low), "{what}");
                        assert_eq!(snapshots(&world), before, "{what}");
                        assert!(life.ask(Request::Snapshot { partition: P }).unwrap().is_ok());
                    }
                }
                Err(other) => panic!("{what}: {other}"),
            }
            life.run_for(Duration::from_millis(200)).unwrap();
            fenced += life.shard.failures();
            assert!(logs_own || life.shard.failures() == 0, "{what}: the log has not failed");
            append_all(&mut life, &mut acked, 5).unwrap();
            // What failed is tried again by itself; after a fence, at the next request.
            if logs_own {
                assert!(life.ask(Request::Snapshot { partition: P }).unwrap().is_ok());
            }
            life.run_for(Duration::from_secs(6)).unwrap();
            assert!(life.covered() > covered, "{what}: the next attempt succeeds");
            assert_eq!(life.low_water(), life.covered() + 1, "{what}");
            world.crash(1);
            drop(life);
            let life = opened(&world, keep());
            whole(&life, &acked);
            let marked = files::name(life.shard.replica(P).unwrap().snapshot());
            assert_eq!(snapshots(&world), [marked], "{what}");
        }
    }
    assert!(
        refused > 50 && harmless >= FAULTS.len() && fenced > 5,
        "{refused} refused, {harmless} harmless, {fenced} fenced"
    );
}

/// A disk without room for the file: nothing is let go, the log works on, and a snapshot is taken once there is room.
#[test]
fn a_disk_without_room_for_a_snapshot() {
    let world = World::new(9);
    let mut acked = Vec::new();
    let mut life = with_a_snapshot(&world, &mut acked);
    let (covered, low, before) = (life.covered(), life.low_water(), snapshots(&world));
    world.set_capacity(1, Some(world.disk_used(1) + (64 << 10)));
    let answer = life.ask(Request::Snapshot { partition: P }).unwrap();
    match answer {
        Err(RequestError::Unavailable(why)) => {
            assert!(why.contains("no space") || why.contains("No space"), "{why}");
            assert!(why.contains(&files::dir(Path::new(DIR), P).display().to_string()), "{why}");
        }
        other => panic!("{other:?}"),
    }
    for _ in 0..3 {
        append_all(&mut life, &mut acked, 3).unwrap();
        life.run_for(Duration::from_secs(6)).unwrap();
        assert_eq!((life.covered(), life.low_water()), (covered, low));
        // An attempt may be under way at this very moment: it ends within a second.
        for _ in 0..100 {
            if snapshots(&world) != before {
                life.run_for(Duration::from_millis(10)).unwrap();
            }
        }
        assert_eq!(snapshots(&world), before, "what did not fit is removed");
    }
    assert_eq!(life.shard.failures(), 0);
    world.set_capacity(1, None);
    life.run_for(Duration::from_secs(6)).unwrap();
    assert!(life.covered() > covered && life.low_water() == life.covered() + 1);
    world.crash(1);
    drop(life);
    whole(&opened(&world, keep()), &acked);
}

/// Appends until the snapshot that was asked for is answered, or the log fails. Whether it was taken. `counted`: so many failures of the
/// disk there are then; a batch that finds no space is none.
fn snapshot_beside_appends(life: &mut Life, acked: &mut Vec<u64>, counted: usize) -> bool {
    let mut answer = life.inbox.request(Request::Snapshot { partition: P });
    loop {
        match answer.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(_)) => return true,
            Poll::Ready(Err(RequestError::Unavailable(why))) => {
                assert!(why.contains("is being recovered"), "{why}");
                return false;
            }
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending => {}
        }
        let payload = Bytes::from(payload(acked.len()));
        let payload_crc = crc32c::crc32c(&payload);
        match life.ask(Request::Append { partition: P, session: None, payload, payload_crc }).unwrap() {
            Ok(Reply::Appended { position }) => acked.push(position.index.0),
            // In the log or not: with one of these at most, `whole` still knows what to expect. Not the leader: a single voter whose
            // log was opened again, in the turn that took this one in, has not elected itself yet.
            Err(
                RequestError::Unknown
                | RequestError::Unavailable(_)
                | RequestError::NotLeader { hint: None, .. },
            ) => {
                assert_eq!(life.shard.failures(), counted, "only a log that fails refuses");
            }
            Err(RequestError::Busy { reason: BusyReason::DiskFull, .. }) => {
                assert_eq!(
                    (life.shard.failures(), counted),
                    (0, 0),
                    "only a log that found no space refuses for that"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The log fails while a snapshot is written, at each of its own writes: the job ends with it, its file does not count, the snapshot
/// before it does, and the next one is taken.
#[test]
fn the_log_fails_while_a_snapshot_is_under_way() {
    let world = World::new(10);
    let mut acked = Vec::new();
    let mut life = with_a_snapshot(&world, &mut acked);
    let from = world.disk_ops(1);
    world.keep_log(1 << 16);
    assert!(snapshot_beside_appends(&mut life, &mut acked, 0));
    let owners = owners(&world, from);
    let of_job = |(_, class): &&(u64, TokenClass)| *class == TokenClass::Engine;
    let (first, last) = (owners.iter().find(of_job).unwrap().0, owners.iter().rev().find(of_job).unwrap().0);
    let beside: Vec<u64> = owners
        .iter()
        .filter(|(number, class)| *class == TokenClass::Wal && (first..last).contains(number))
        .map(|(number, _)| *number)
        .collect();
    assert!(beside.len() > 10, "{} writes of the log beside the snapshot", beside.len());
    let mut given_up = 0;
    for number in beside {
        for fault in [DiskFault::WriteError, DiskFault::SyncError, DiskFault::NoSpace] {
            let what = format!("{fault:?} at {number}");
            let world = World::new(10);
            let mut acked = Vec::new();
            let mut life = with_a_snapshot(&world, &mut acked);
            let (covered, low) = (life.covered(), life.low_water());
            world.fail_at(1, number, fault);
            let counted = usize::from(fault != DiskFault::NoSpace);
            let taken = snapshot_beside_appends(&mut life, &mut acked, counted);
            while !life.shard.is_settled() {
                life.turn().unwrap();
            }
            assert!(life.shard.failures() <= 1, "{what}");
            assert!(taken || life.shard.failures() == counted, "{what}");
            let name = files::name(life.shard.replica(P).unwrap().snapshot());
            assert!(snapshots(&world).contains(&name), "{what}: what is marked is there");
            if !taken {
                given_up += 1;
                assert!(life.low_water() >= low, "{what}");
                if life.covered() == covered {
                    assert_eq!(life.low_water(), low, "{what}");
                    assert_eq!(
                        snapshots(&world),
                        [name],
                        "{what}: the file of the one that was given up is gone"
                    );
                }
            }
            if counted == 0 {
                // The log takes no entries for a moment.
                life.run_for(Duration::from_secs(2)).unwrap();
            }
            assert!(life.ask(Request::Snapshot { partition: P }).unwrap().is_ok(), "{what}");
            life.run_for(Duration::from_millis(100)).unwrap();
            assert!(life.covered() > covered && life.low_water() == life.covered() + 1, "{what}");
            world.crash(1);
            drop(life);
            let life = opened(&world, keep());
            let kept = life.machine.0.lock().unwrap();
            let mut entries = kept.entries.iter();
            for at in &acked {
                assert!(entries.any(|(index, _)| index == at), "{what}: {at} was acknowledged");
            }
        }
    }
    assert!(given_up > 10, "{given_up} snapshots were given up");
}

/// By time: as soon as the last one is so old and there is anything new; never for an idle partition; again after a failure.
#[test]
fn a_snapshot_is_due_by_time() {
    let world = World::new(11);
    let keep = Keep { snapshot_interval: Some(Duration::from_secs(60)), ..keep() };
    let mut life = opened(&world, keep);
    let mut acked = Vec::new();
    append_all(&mut life, &mut acked, 10).unwrap();
    life.run_for(Duration::from_secs(50)).unwrap();
    assert_eq!((life.covered(), snapshots(&world).len()), (0, 0), "not yet");
    life.run_for(Duration::from_secs(15)).unwrap();
    let first = life.covered();
    assert_eq!((first, life.low_water()), (acked[9], acked[9] + 1), "all that was applied");
    assert_eq!(snapshots(&world).len(), 1);

    // Nothing new: nothing is written, however long.
    let operations = world.disk_ops(1);
    life.run_for(Duration::from_secs(600)).unwrap();
    assert_eq!((life.covered(), world.disk_ops(1)), (first, operations));

    // The last one is long ago: the next entry is reason enough.
    append_all(&mut life, &mut acked, 1).unwrap();
    life.run_for(Duration::from_secs(1)).unwrap();
    assert_eq!(life.covered(), acked[10]);

    // One that fails is tried again soon, not after another interval.
    append_all(&mut life, &mut acked, 1).unwrap();
    life.run_for(Duration::from_secs(50)).unwrap();
    assert_eq!(life.covered(), acked[10], "not due");
    world.set_capacity(1, Some(world.disk_used(1)));
    life.run_for(Duration::from_secs(15)).unwrap();
    assert_eq!(life.covered(), acked[10], "it does not fit");
    world.set_capacity(1, None);
    life.run_for(Duration::from_secs(6)).unwrap();
    assert_eq!(life.covered(), acked[11]);
    assert_eq!(life.shard.failures(), 0);
    world.crash(1);
    drop(life);
    let life = opened(&world, keep);
    whole(&life, &acked);
    assert_eq!(life.covered(), acked[11]);
}
