//! Damage is told from torn tails, named, and never served; what is harmless is survived.

mod common;

use common::{DIR, NODE, Rig, whole};
use std::path::Path;
use std::time::Duration;
use tidelog_io::{Foreground, Op};
use tidelog_sim::Random;
use tidelog_types::{Incarnation, Index, Lsn, NodeId, PartitionId, RecordKind, ShardId};
use tidelog_wal::format::SegmentHeader;
use tidelog_wal::inspect::{self, Item};
use tidelog_wal::{OpenError, Options, ReadError, Verdict};

/// A log with several batches of two partitions, a cut, a second life, closed.
fn closed_log(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, whole());
    rig.open().unwrap();
    for i in 0..6u8 {
        rig.entry(0, &vec![i; 100 + 300 * i as usize]).unwrap();
        rig.entry(1, &[i; 10]).unwrap();
        rig.drain();
    }
    rig.promise(1, 5, 3).unwrap();
    rig.cut(1, 4).unwrap();
    rig.drain();
    rig.mark(0, 3);
    rig.rest(Duration::from_millis(130));
    rig.close();
    rig.open().unwrap();
    for i in 0..3u8 {
        rig.records(1, &[(2 + u64::from(i), vec![i; 3000]), (3 + u64::from(i), vec![i; 70])]).unwrap();
        rig.drain();
    }
    rig.close();
    rig
}

fn wal_files(rig: &Rig) -> Vec<(String, u64)> {
    let mut files = rig.world.files(NODE);
    files.retain(|f| f.0.starts_with(DIR) && f.0.ends_with(".wal") && !f.0.contains("free-"));
    files
}

/// (file, offset, length, spans that matter) of every batch.
fn batches(rig: &mut Rig) -> Vec<(String, u64, u64, usize)> {
    let mut found = Vec::new();
    let mut io = boot(rig);
    inspect::walk(&mut io, Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let Item::Batch { file, offset, header, footer } = item {
            let own = footer.map_or(0, |f| f.own.iter().filter(|s| s.kind != RecordKind::HighWater).count());
            found.push((file.display().to_string(), offset, u64::from(header.total_len), own));
        }
    })
    .unwrap();
    found
}

fn boot(rig: &mut Rig) -> tidelog_sim::SimIo {
    rig.io = None;
    rig.world.node(NODE)
}

/// What damage came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    /// Everything is there.
    Whole,
    /// It opened, everything is there or known to be lost, and once it was given back everything was whole.
    Healed,
    /// It did not open, named a file, and changed nothing.
    Refused,
}

/// Damage done, what comes of it? And does `verify` say the same?
fn outcome(rig: &mut Rig, what: &str) -> Outcome {
    let before = rig.world.files(NODE);
    let verify = |rig: &mut Rig| inspect::verify(&mut boot(rig), Path::new(DIR), inspect::Eyes::default());
    let report = verify(rig);
    let result = rig.open(); // compares with the model if it opens
    match &result {
        Ok(_) => {
            let report = report.unwrap_or_else(|e| panic!("{what}: opens, but verify says {e}"));
            assert_eq!(report.lost, rig.lost.len() as u64, "{what}: {:?} {:?}", report.findings, rig.lost);
            assert!(report.stopped.is_none(), "{what}: {:?}", report.stopped);
            rig.check_all();
            // Opened again before anything is healed, it is the same.
            // (What the last life could only know from an echo is a suspect now: both count the same.)
            let keys = |rig: &Rig| rig.lost.keys().copied().collect::<Vec<_>>();
            let lost = keys(rig);
            rig.close();
            rig.open().unwrap_or_else(|e| panic!("{what}, again: {e}"));
            assert_eq!(keys(rig), lost, "{what}, again");
            if lost.is_empty() {
                return Outcome::Whole;
            }
            rig.heal();
            rig.check_all();
            rig.close();
            let report = verify(rig).unwrap();
            assert!(!report.is_damaged(), "{what}, healed: {} {:?}", report.lost, report.findings);
            rig.open().unwrap_or_else(|e| panic!("{what}, healed: {e}"));
            assert!(rig.lost.is_empty(), "{what}, healed: {:?}", rig.lost);
            rig.check_all();
            Outcome::Healed
        }
        Err(e) => {
            if let Ok(report) = report {
                assert!(report.is_damaged(), "{what}: {e}, but verify is content");
            }
            assert!(
                matches!(e, OpenError::Damaged(_) | OpenError::Lost { .. } | OpenError::SegmentHeader { .. }),
                "{what}: {e}"
            );
            assert!(e.to_string().contains(".wal"), "{e} names a file");
            assert_eq!(before, rig.world.files(NODE), "{what}: nothing was changed");
            Outcome::Refused
        }
    }
}

#[test]
fn flipped_bits_are_named_and_healed() {
    let mut rig = closed_log(3);
    let list = batches(&mut rig);
    assert!(list.len() > 12);
    let mut random = Random::new(1);
    let (mut healed, mut whole) = (0, 0);
    for (at, (file, offset, len, records)) in list.iter().enumerate() {
        for place in [0, 9, 70, 100, 130, 150, 194, 300, 512, 520, 580, 700, len - 1, random.below(*len)] {
            let place = place.min(len - 1);
            let mut rig = closed_log(3);
            rig.world.flip(NODE, file, offset + place);
            let what = format!("{file} batch {at} at {offset} byte {place} of {len} ({records} records)");
            match outcome(&mut rig, &what) {
                Outcome::Healed => {
                    healed += 1;
                    assert!(*records > 0, "{what}: nothing was in it");
                }
                Outcome::Whole => whole += 1,
                Outcome::Refused => panic!("{what}: one flipped bit is never too much"),
            }
        }
    }
    assert!(healed > 30 && whole > 50, "{healed} healed, {whole} whole");
}

/// Every single byte of a small log with a cut, promises, two lives and several batches of several partitions.
#[test]
fn every_flipped_byte_is_survived() {
    let mut rig = closed_log(20);
    let list = batches(&mut rig);
    drop(rig);
    let mut seen = [0u64; 2];
    for (at, (file, offset, len, _)) in list.iter().enumerate() {
        // Zeros behind the footer take most of a page, and mean nothing.
        for place in (0..*len).filter(|p| p % 24 == at as u64 % 24) {
            let mut rig = closed_log(20);
            rig.world.flip(NODE, file, offset + place);
            match outcome(&mut rig, &format!("batch {at} byte {place}")) {
                Outcome::Whole => seen[0] += 1,
                Outcome::Healed => seen[1] += 1,
                Outcome::Refused => panic!("batch {at} byte {place}: one flipped byte is never too much"),
            }
        }
    }
    assert!(seen.iter().all(|n| *n > 150), "{seen:?}");
}

#[test]
fn a_damaged_entry_is_named() {
    let mut rig = closed_log(4);
    let list = batches(&mut rig);
    let (file, offset, ..) = &list[3];
    rig.world.flip(NODE, file, offset + 230);
    let report = rig.open().unwrap();
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.verdict, Verdict::Damaged);
    assert_eq!((finding.file.display().to_string(), finding.offset), (file.clone(), *offset));
    assert_eq!((finding.spans[0].partition, finding.spans[0].a), (PartitionId(0), Index(3)));
    let text = finding.to_string();
    for word in
        ["damaged", file, &format!("byte {offset}"), "partition 0 index 3..=3", "partition 1 index 3..=3"]
    {
        assert!(text.contains(word), "`{text}` lacks `{word}`");
    }
    assert_eq!(rig.lost, [((0, 3), false)].into(), "what is good of it is kept");
}

/// Two batches that both lost something, and a third whose records, header and footer are gone: its echo names it.
#[test]
fn damage_beside_damage_is_told_apart() {
    let mut rig = closed_log(15);
    let list = batches(&mut rig);
    let (file, first, ..) = &list[2];
    let (_, second, len, _) = &list[3];
    rig.world.flip(NODE, file, first + 230);
    rig.world.write_raw(NODE, file, *second, &vec![0; *len as usize]);
    assert_eq!(outcome(&mut rig, "two in a row"), Outcome::Healed);
}

#[test]
fn lost_and_misdirected_batches_are_noticed() {
    let mut rig = closed_log(5);
    let list = batches(&mut rig);
    let (mut damaged, mut unknown) = (0, 0);
    for at in 1..list.len() - 1 {
        let (file, offset, len, records) = &list[at];
        for other in [None, Some(at - 1), Some(at + 1)] {
            let mut image = vec![0; *len as usize];
            if let Some(other) = other {
                let (file, offset, len, _) = &list[other];
                let bytes = rig.world.read_raw(NODE, file).unwrap();
                let from = &bytes[*offset as usize..][..(*len as usize).min(image.len())];
                image[..from.len()].copy_from_slice(from);
            }
            rig.world.write_raw(NODE, file, *offset, &image);
            let result = {
                let mut io = boot(&mut rig);
                inspect::verify(&mut io, Path::new(DIR), inspect::Eyes::default()).unwrap()
            };
            let verdicts: Vec<_> = result.findings.iter().map(|f| f.verdict).collect();
            if *records > 0 {
                assert!(result.is_damaged() || verdicts == [Verdict::Superseded], "batch {at}: {verdicts:?}");
                match outcome(&mut rig, &format!("batch {at}")) {
                    Outcome::Refused => unknown += 1,
                    Outcome::Healed | Outcome::Whole => damaged += 1,
                }
            }
            rig = closed_log(5);
        }
    }
    // The echo names what a lost batch held, except for the last one of the first epoch's proven part.
    assert!(damaged > 20, "{damaged} damaged, {unknown} unknown");
    rig.open().unwrap();
    rig.check_all();
}

#[test]
fn unreadable_pages_are_damage_and_never_an_end() {
    let mut rig = closed_log(6);
    let list = batches(&mut rig);
    for (at, (file, offset, _, records)) in list.iter().enumerate() {
        if *records == 0 {
            continue;
        }
        let mut rig = closed_log(6);
        rig.world.make_unreadable(NODE, file, *offset, 4096);
        match rig.open() {
            Ok(report) => {
                assert!(report.findings.iter().any(|f| f.verdict == Verdict::Damaged), "batch {at}")
            }
            Err(OpenError::Damaged(f)) => assert_eq!(f.verdict, Verdict::Unknown, "batch {at}"),
            other => panic!("batch {at}: {other:?}"),
        }
    }
    // The tail: two unreadable pages right behind the last batch may have held another one.
    let (file, offset, len, _) = list.last().unwrap();
    rig.world.make_unreadable(NODE, file, offset + len, 8192);
    match rig.open() {
        Err(OpenError::Damaged(f)) => assert_eq!(f.verdict, Verdict::Unknown),
        other => panic!("{other:?}"),
    }
}

/// A page right behind the last batch that the device does not give was left by the file's earlier use: of a batch that was whole, its
/// footer would lie behind it. It was taken for what is left of one, and the log was not opened.
#[test]
fn one_unreadable_page_at_the_logs_end_is_not_all_that_is_left_of_a_batch() {
    let mut rig = closed_log(6);
    let (file, offset, len, _) = batches(&mut rig).last().unwrap().clone();
    rig.world.make_unreadable(NODE, &file, offset + len, 4096);
    assert_eq!(outcome(&mut rig, "behind the last batch"), Outcome::Whole);
    // The smallest batch there is, acknowledged, and nothing behind it says so.
    for page in 0..2 {
        let mut rig = closed_log(6);
        rig.open().unwrap();
        rig.rest(std::time::Duration::from_millis(30));
        rig.promise(1, 9, 2).unwrap();
        rig.drain();
        let told = rig.part(1).promise;
        rig.world.kill(NODE);
        rig.wal = None;
        let (file, offset, len, _) = batches(&mut rig).last().unwrap().clone();
        assert_eq!(len, 8192, "the footer has a page of its own");
        rig.world.make_unreadable(NODE, &file, offset + page * 4096, 4096);
        if page == 0 {
            rig.open().unwrap();
            assert_eq!(rig.part(1).promise, told, "its footer tells of it");
        } else {
            let opened = rig.open();
            assert!(opened.is_ok(), "the records are whole: {opened:?}");
            assert_eq!(rig.part(1).promise, told);
        }
    }
}

/// A segment of the version before may have batches of a single page.
#[test]
fn one_unreadable_page_may_be_all_that_is_left_in_a_segment_of_an_earlier_version() {
    let mut rig = closed_log(6);
    let (file, offset, len, _) = batches(&mut rig).last().unwrap().clone();
    let raw = rig.world.read_raw(NODE, &file).unwrap();
    let header = SegmentHeader::decode(&raw).unwrap();
    let mut page = [0; 4096];
    SegmentHeader { footers_apart: false, durable: Lsn(0), ..header }.encode(&mut page);
    rig.world.write_raw(NODE, &file, 0, &page);
    rig.world.write_raw(NODE, &file, 4096, &page);
    rig.world.make_unreadable(NODE, &file, offset + len, 4096);
    match rig.open() {
        Err(OpenError::Damaged(f)) => assert_eq!(f.verdict, Verdict::Unknown),
        other => panic!("{other:?}"),
    }
}

/// A file that was a segment before may have such pages where the log has not come to yet.
#[test]
fn a_page_that_no_batch_begins_in_is_no_reason_not_to_open() {
    let (file, offset, len, _) = batches(&mut closed_log(6)).last().unwrap().clone();
    let next = |rig: &Rig| wal_files(rig).into_iter().find(|(name, _)| *name > file);
    for page in 1..4 {
        let mut rig = closed_log(6);
        assert!(rig.world.make_unreadable(NODE, &file, offset + len + page * 4096, 4096));
        let (behind, _) = next(&rig).expect("a segment that is ready");
        assert!(rig.world.make_unreadable(NODE, &behind, 8192 + page * 4096, 4096));
        assert_eq!(outcome(&mut rig, &format!("page {page}")), Outcome::Whole);
    }
    // The first batch of the next segment may have lain there, and be all that there was behind this; but not in one page.
    for (pages, expected) in [(1, Outcome::Whole), (2, Outcome::Refused)] {
        let mut rig = closed_log(6);
        let (behind, _) = next(&rig).expect("a segment that is ready");
        assert!(rig.world.make_unreadable(NODE, &behind, 8192, pages * 4096));
        assert_eq!(outcome(&mut rig, "the first pages"), expected, "{pages}");
    }
}

/// Only the batch behind it says that the log had gone on to another segment.
#[test]
fn the_first_batch_of_a_segment_that_is_not_there_at_all() {
    let make = || {
        let mut rig = Rig::new(5, whole());
        rig.open().unwrap();
        for i in 0..60u8 {
            rig.entry(u64::from(i) % 2, &vec![i; 9000]).unwrap();
            rig.drain();
        }
        rig.close();
        rig
    };
    let list = batches(&mut make());
    let firsts: Vec<_> = list.iter().filter(|b| b.1 == 8192).skip(1).cloned().collect();
    assert!(firsts.len() > 2, "{list:?}");
    for (file, offset, len, _) in firsts {
        let mut rig = make();
        rig.world.write_raw(NODE, &file, offset, &vec![0; len as usize]);
        assert_eq!(outcome(&mut rig, &format!("{file}, zeros")), Outcome::Healed);
        let mut rig = make();
        rig.world.make_unreadable(NODE, &file, offset, 4096);
        assert_eq!(outcome(&mut rig, &format!("{file}, unreadable")), Outcome::Healed);
    }
}

#[test]
fn one_copy_of_a_segment_header_is_enough() {
    let mut rig = closed_log(7);
    let (file, _) = wal_files(&rig)[0].clone();
    rig.world.flip(NODE, &file, 20);
    assert_eq!(outcome(&mut rig, "first copy"), Outcome::Whole);
    rig.close();
    let (file, _) = wal_files(&rig)[0].clone();
    rig.world.flip(NODE, &file, 20);
    rig.world.flip(NODE, &file, 4096 + 20);
    rig.world.flip(NODE, &file, 8);
    assert!(matches!(rig.open(), Err(OpenError::SegmentHeader { .. })));
}

#[test]
fn a_missing_segment_is_no_end() {
    let mut rig = Rig::new(8, whole());
    rig.open().unwrap();
    for i in 0..40u8 {
        rig.entry(0, &[i; 20_000]).unwrap();
        rig.drain();
    }
    rig.close();
    let files = wal_files(&rig);
    assert!(files.len() >= 4);
    // All but the last two: the newest one, and the one prepared behind it.
    for (file, _) in &files[..files.len() - 2] {
        let mut rig = Rig::new(8, whole());
        rig.open().unwrap();
        for i in 0..40u8 {
            rig.entry(0, &[i; 20_000]).unwrap();
            rig.drain();
        }
        rig.close();
        let mut io = boot(&mut rig);
        Foreground::new(&mut io).run(Op::Remove { path: file.into() }).unwrap();
        drop(io);
        let error = rig.open().unwrap_err();
        assert!(
            matches!(error, OpenError::Missing { .. } | OpenError::Lost { .. } | OpenError::Damaged(_)),
            "{file}: {error}"
        );
    }
}

#[test]
fn files_of_others_are_refused() {
    let others = [
        Options { node: NodeId(2), ..whole() },
        Options { shard: ShardId(1), ..whole() },
        Options { store: Incarnation(99), ..whole() },
    ];
    for (options, word) in others.into_iter().zip(["node", "shard", "data directory"]) {
        let mut rig = closed_log(9);
        let mine = std::mem::replace(&mut rig.options, options);
        let before = rig.world.files(NODE);
        let error = rig.open().unwrap_err();
        assert!(matches!(&error, OpenError::Foreign { .. }) && error.to_string().contains(word), "{error}");
        assert_eq!(before, rig.world.files(NODE));
        rig.options = mine;
        rig.open().unwrap();
    }
}

#[test]
fn a_newer_version_is_neither_damage_nor_an_end() {
    let mut rig = closed_log(10);
    let list = batches(&mut rig);
    let (file, offset, ..) = list.last().unwrap();
    let mut header = rig.world.read_raw(NODE, file).unwrap()[*offset as usize..][..128].to_vec();
    header[8] = 2;
    let crc = crc32c::crc32c(&header[8..]);
    header[4..8].copy_from_slice(&crc.to_le_bytes());
    rig.world.write_raw(NODE, file, *offset, &header);
    let error = rig.open().unwrap_err();
    assert!(matches!(&error, OpenError::Newer { .. }), "{error}");
}

#[test]
fn a_suspect_tail_of_a_quorum_member_is_kept_as_lost() {
    let mut rig = suspect_tail(Rig::new(11, whole()));
    let report = rig.open().unwrap();
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!(finding.verdict, Verdict::Suspect);
    assert!(finding.quarantined.is_some());
    assert_eq!(rig.now[&1].promise, (9, 2), "its promise is kept");
    assert_eq!(rig.now[&0].entries.len(), 2, "its entry is known");
    assert_eq!(rig.lost, [((0, 2), true)].into());
    rig.entry(0, &[3; 10]).unwrap(); // what a leader sends behind it
    rig.drain();
    rig.close();
    let report = rig.open().unwrap();
    assert_eq!((report.findings, rig.lost.len()), (vec![], 1), "the next epoch knows it by a record");
    rig.heal();
    rig.close();
    rig.open().unwrap();
    assert!(rig.lost.is_empty());
    rig.check_all();
    // And a lost one that is cut is gone.
    let mut rig = suspect_tail(Rig::new(11, whole()));
    rig.open().unwrap();
    rig.cut(0, 1).unwrap();
    rig.entry(0, &[4; 10]).unwrap();
    rig.drain();
    rig.close();
    assert!(
        !inspect::verify(&mut boot(&mut rig), Path::new(DIR), inspect::Eyes::default()).unwrap().is_damaged()
    );
    rig.open().unwrap();
    assert!(rig.lost.is_empty());
    rig.check_all();
}

/// A tail that may be torn or damaged: the last write has lost a sector in the middle, and was never acknowledged.
fn suspect_tail(mut rig: Rig) -> Rig {
    rig.open().unwrap();
    rig.entry(0, &[1; 500]).unwrap();
    rig.drain();
    rig.rest(Duration::from_millis(20)); // sealed
    rig.entry(0, &[2; 5000]).unwrap();
    rig.promise(1, 9, 2).unwrap();
    rig.flush();
    rig.poll(tidelog_io::Wait::Forever);
    rig.acked = 2;
    rig.world.kill(NODE);
    let (file, offset, _, _) = batches(&mut rig).last().unwrap().clone();
    rig.world.write_raw(NODE, &file, offset + 1024, &[0; 512]);
    rig
}

#[test]
fn a_suspect_tail_of_a_single_voter_is_set_aside_cut_and_reported() {
    let mut rig = Rig::new(11, Options { single_voter: true, ..whole() });
    rig.open().unwrap();
    rig.entry(0, &[1; 500]).unwrap();
    rig.drain();
    rig.rest(Duration::from_millis(20)); // sealed
    rig.entry(0, &[2; 5000]).unwrap();
    rig.promise(1, 9, 2).unwrap();
    rig.flush();
    // The last write loses a sector in the middle, and is never acknowledged.
    rig.poll(tidelog_io::Wait::Forever);
    rig.acked = 2;
    let (file, offset, _, _) = {
        rig.world.kill(NODE);
        batches(&mut rig).last().unwrap().clone()
    };
    rig.world.write_raw(NODE, &file, offset + 1024, &[0; 512]);
    let torn = rig.world.read_raw(NODE, &file).unwrap()[offset as usize..][..8192].to_vec();
    let report = rig.open().unwrap();
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    assert_eq!((finding.verdict, finding.offset), (Verdict::Suspect, offset));
    let copy = finding.quarantined.as_ref().expect("set aside");
    assert_eq!(rig.world.read_raw(NODE, copy).unwrap()[..8192], torn);
    assert_eq!(report.adopted, 1);
    assert_eq!(rig.now[&1].promise, (9, 2), "its promise is kept");
    assert_eq!(rig.now[&0].entries.len(), 1, "its entry is cut");
    rig.entry(0, &[3; 10]).unwrap();
    rig.drain();
    rig.close();
    assert_eq!(rig.open().unwrap().findings, [], "judged once");
}

#[test]
fn the_quarantine_is_bounded() {
    let mut rig = Rig::new(12, Options { single_voter: true, ..whole() });
    for round in 0..20u64 {
        rig.open().unwrap();
        rig.entry(0, &[1; 500]).unwrap();
        rig.drain();
        rig.rest(Duration::from_millis(20));
        rig.entry(0, &[2; 5000]).unwrap();
        rig.flush();
        rig.poll(tidelog_io::Wait::Forever);
        rig.acked = rig.acts.len() - 1;
        rig.world.kill(NODE);
        let (file, offset, _, _) = batches(&mut rig).last().unwrap().clone();
        rig.world.write_raw(NODE, &file, offset + 1024, &[0; 512]);
        let _ = round;
    }
    rig.open().unwrap();
    let kept = rig.world.files(NODE).iter().filter(|f| f.0.contains("quarantine")).count();
    assert_eq!(kept, 16);
}

#[test]
fn a_read_never_serves_damage() {
    let mut rig = closed_log(13);
    rig.options.cache_bytes_max = 0;
    rig.open().unwrap();
    let list = batches(&mut closed_log(13));
    let (file, offset, ..) = &list[4];
    rig.world.flip(NODE, file, offset + 230);
    let error = rig.read(0, 4, 4, 1 << 20).unwrap_err();
    match &error {
        ReadError::Damaged { file: named, partition, index, offset: at, .. } => {
            assert_eq!(&named.display().to_string(), file);
            assert_eq!((*partition, *index), (PartitionId(0), Index(4)));
            assert!((*offset..offset + 8192).contains(at));
        }
        e => panic!("{e}"),
    }
    // Its neighbours are fine.
    for index in [3, 5] {
        let run = rig.read(0, index, index, 1 << 20).unwrap();
        rig.check_run(0, &run);
    }
}

#[test]
fn a_walk_shows_what_is_there() {
    let mut rig = closed_log(14);
    let (mut segments, mut records, mut ends) = (0, Vec::new(), Vec::new());
    let mut io = boot(&mut rig);
    let report = inspect::walk(&mut io, Path::new(DIR), inspect::Eyes::default(), &mut |item| match item {
        Item::Segment { .. } => segments += 1,
        Item::Batch { header, footer, .. } => {
            ends.push(header.end());
            assert_eq!(footer.map(|f| f.batch_seq), Some(header.batch_seq));
        }
        Item::Record { header, payload, lsn, .. } => {
            assert_eq!(header.payload_len as usize, payload.len());
            records.push((lsn, header.partition, header.index));
        }
        Item::Bad(f) => panic!("{f}"),
    })
    .unwrap();
    drop(io);
    assert_eq!(report.segments, segments);
    assert_eq!(report.epoch, 2);
    assert!(ends.windows(2).all(|w| w[0] < w[1]) && records.windows(2).all(|w| w[0].0 < w[1].0));
    assert!(!report.is_damaged());
    for (&partition, part) in &rig.now {
        let end = report.partitions[&PartitionId(partition)];
        assert_eq!(end.last, part.last());
        assert_eq!((end.generation.0, end.vote.map_or(0, |v| v.0)), part.promise);
        assert_eq!(end.first, Index(1));
    }
    assert!(ends[0] > Lsn(0));
}
