//! What is given back on a disk that is full, and which checkpoint an opening begins with.

mod common;

use common::scripts::stream;
use common::{DIR, NODE, Rig, batches, tiny};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tidelog_io::Io;
use tidelog_types::RecordKind;
use tidelog_wal::{OpenError, Options, inspect};

/// The bases of the segments, ascending.
fn segments(rig: &Rig) -> Vec<u64> {
    let base = |name: &str| {
        let name = name.strip_prefix(DIR)?.strip_prefix('/')?.strip_suffix(".wal")?;
        (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok()).flatten()
    };
    let mut bases: Vec<_> = rig.world.files(NODE).iter().filter_map(|f| base(&f.0)).collect();
    bases.sort_unstable();
    bases
}

/// What the log's batches say about checkpoints.
#[derive(Default, Debug)]
struct Named {
    /// The one that the first batch of the newest written segment names: the batch that ends it.
    first: u64,
    /// The two that the last batch names.
    last: (u64, u64),
    /// Of each whose end is there: its position, by the batch that ends it.
    at: BTreeMap<u64, u64>,
    /// Files and offsets of their chunks, by their position.
    chunks: Vec<(u64, String, u64)>,
}

fn named(rig: &mut Rig) -> Named {
    rig.io = None;
    rig.wal = None;
    let (mut named, mut batch) = (Named::default(), 0);
    inspect::walk(
        &mut rig.world.node(NODE),
        Path::new(DIR),
        inspect::Eyes::default(),
        &mut |item| match item {
            inspect::Item::Batch { header, offset, .. } => {
                batch = header.lsn.0;
                named.last = (header.checkpoint.0, header.older_checkpoint.0);
                if offset == 8192 {
                    named.first = header.checkpoint.0;
                }
            }
            inspect::Item::Record { header, file, offset, .. } => match header.kind {
                RecordKind::CheckpointEnd => _ = named.at.insert(batch, header.generation.0),
                RecordKind::CheckpointChunk => {
                    named.chunks.push((header.generation.0, file.display().to_string(), offset));
                }
                _ => {}
            },
            _ => {}
        },
    )
    .unwrap();
    named
}

/// A log on a disk that is filled up. A quiet partition's entry lies in its second segment.
fn full_log(options: Options) -> Rig {
    let mut rig = Rig::new(1, options);
    rig.open().unwrap();
    for i in 0..40 {
        rig.entry(0, &[i; 6000]).unwrap();
        if segments(&rig)[1] < rig.wal().stats().bytes && rig.part(9).entries.is_empty() {
            rig.entry(9, b"quiet").unwrap();
        }
        rig.mark(0, u64::from(i) + 1);
        rig.drain();
    }
    let used = rig.world.disk_used(NODE);
    rig.world.set_capacity(NODE, Some(used + 64 * 1024));
    let mut tries = 0;
    while !rig.full {
        let _ = rig.entry(0, &[7; 6000]);
        rig.drain();
        rig.rest(Duration::from_millis(1));
        tries += 1;
        assert!(tries < 2000, "it never filled up");
    }
    rig
}

/// Lets go of everything but the last entry, and of what the quiet partition has, if `quiet`; until the first segments have gone.
fn let_go(rig: &mut Rig, quiet: bool) {
    let parts: &[u64] = if quiet { &[0, 9] } else { &[0] };
    for &partition in parts {
        let last = rig.part(partition).entries.len() as u64;
        rig.mark(partition, last);
        rig.drain();
        rig.low_water(partition, if partition == 0 { last } else { last + 1 }).unwrap();
    }
    let before = segments(rig);
    let mut steps = 0;
    while segments(rig)[0] == before[0] {
        rig.flush();
        rig.rest(Duration::from_millis(1));
        steps += 1;
        assert!(steps < 1000, "nothing goes: {:?}", rig.wal().stats());
    }
}

/// On a full disk checkpoints follow each other in one segment, so its first batch may name one that begins in a segment that has gone,
/// or has been used again under another name. An opening passes over that, which is no damage, and takes one that the later batches
/// name; if they are bad it says so, and does not begin with half a log.
#[test]
fn an_opening_passes_over_a_checkpoint_that_begins_in_what_was_given_back() {
    // The segment's first batch names one that is gone as a whole; one of which the end is there still, and some chunks, or all.
    let mut kinds = [0; 3];
    for every in (60..188).step_by(4) {
        for (quiet, wait) in [(true, 0), (true, 100), (false, 0), (false, 3), (false, 100)] {
            for bad in 0..3 {
                let mut rig = full_log(Options { checkpoint_every: every << 10, ..tiny() });
                let_go(&mut rig, quiet);
                rig.rest(Duration::from_millis(wait));
                rig.world.crash(NODE);
                let named = named(&mut rig);
                let oldest = segments(&rig)[0];
                let what = format!("{every} KiB, quiet {quiet}, {wait} ms, {bad} bad: {named:x?}");
                let at = named.at.get(&named.first).copied();
                assert!(named.first > 0, "{what}");
                // A name that had gone may be there again, and so may all that the first one needs.
                if oldest == 0
                    || named.first == named.last.0
                    || named.first == named.last.1
                    || at.is_some_and(|at| at >= oldest)
                {
                    continue; // it is one of the two
                }
                let whole = at.is_some_and(|at| named.chunks.iter().filter(|c| c.0 == at).count() >= 3);
                kinds[usize::from(at.is_some()) + usize::from(whole)] += 1;
                let kept = [named.last.0, named.last.1].map(|batch| named.at[&batch]);
                for (_, file, offset) in named.chunks.iter().filter(|c| kept[..bad].contains(&c.0)) {
                    assert!(rig.world.flip(NODE, file, offset + 70));
                }
                let before = rig.world.files(NODE);
                let opened = rig.open();
                if bad == 2 {
                    let error = opened.expect_err(&what);
                    assert!(matches!(error, OpenError::Checkpoint { .. }), "{what}: {error}");
                    assert_eq!(rig.world.files(NODE), before, "{what}: nothing was changed");
                    continue;
                }
                let report = opened.unwrap_or_else(|e| panic!("{what}: {e}"));
                assert_eq!(report.checkpoint.map(|at| at.0), Some(kept[bad]), "{what}");
                assert_eq!(report.bad_checkpoints.len(), bad, "{what}: {:?}", report.bad_checkpoints);
                assert!(rig.check_all());
                rig.close();
                rig.open().unwrap_or_else(|e| panic!("{what}, again: {e}"));
                assert!(rig.check_all());
            }
        }
    }
    println!("{kinds:?}");
    assert!(kinds.iter().all(|n| *n > 0), "{kinds:?}");
}

/// As long as everything is there, no checkpoint is needed.
#[test]
fn an_opening_without_a_good_checkpoint_reads_everything() {
    let mut rig = Rig::new(1, tiny());
    rig.open().unwrap();
    for i in 0..200u8 {
        rig.entry(u64::from(i % 2), &vec![i; 6000]).unwrap();
        rig.drain();
    }
    rig.close();
    let named = named(&mut rig);
    assert!(named.last.1 > 0 && segments(&rig)[0] == 0, "{named:x?}");
    for (_, file, offset) in &named.chunks {
        assert!(rig.world.flip(NODE, file, offset + 70));
    }
    let report = rig.open().unwrap();
    assert_eq!((report.checkpoint, report.bad_checkpoints.is_empty()), (None, false));
    assert!(rig.check_all());
}

/// A full log of which the last segment is filled up by promises as well: `promises` of them, or as many as there is room for.
fn filled_up(promises: u64) -> Rig {
    let mut rig = full_log(Options { checkpoint_every: 96 << 10, ..tiny() });
    for generation in 2..2 + promises {
        if rig.promise(5, generation, 1).is_err() {
            break;
        }
        rig.drain();
    }
    // There is one last batch that lets everything go, or none.
    for partition in [0, 9] {
        let last = rig.part(partition).entries.len() as u64;
        rig.mark(partition, last);
        let _ = rig.low_water(partition, last + 1);
    }
    rig.drain();
    rig
}

/// Until the oldest segment's name is gone, or for so long; promises fill the log further meanwhile, if `busy`. Whether it is gone.
fn until_one_goes(rig: &mut Rig, most: Duration, busy: bool) -> bool {
    let oldest = segments(rig)[0];
    let end = rig.io.as_ref().unwrap().clock().now.after(most);
    while rig.io.as_ref().unwrap().clock().now < end {
        if segments(rig)[0] != oldest {
            return true;
        }
        if busy && rig.wal().stats().in_flight == 0 {
            let generation = rig.part(5).promise.0 + 1;
            let _ = rig.promise(5, generation, 1);
        }
        rig.flush();
        rig.rest(Duration::from_micros(200));
    }
    false
}

/// Whether there is a place for one more batch: behind the last one, or in a segment behind that.
fn has_room(rig: &mut Rig) -> bool {
    let (mut end, mut newest) = (0, 0);
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let inspect::Item::Batch { header, offset, .. } = item {
            (end, newest) = (header.end().0, header.lsn.0 - offset);
        }
    })
    .unwrap();
    end + 8192 <= newest + tiny().segment_bytes || segments(rig).iter().any(|base| *base > newest)
}

/// The newest checkpoint may have no batch that names it, because there is no place for one: then something has to go without it.
/// Otherwise nothing does before such a batch is durable, though it be the last one that there is room for: should the newest of
/// those that are named be bad, there is the other one. And whatever is stuck goes on when there is space again.
#[test]
fn what_goes_when_there_is_no_room_for_a_batch() {
    let (mut named_first, mut nowhere, mut stuck) = (0, 0, 0);
    for (promises, busy) in (20..90).flat_map(|promises| [(promises, false), (promises, true)]) {
        let what = format!("{promises} promises, busy {busy}");
        for damaged in [true, false] {
            let mut rig = filled_up(promises);
            if !until_one_goes(&mut rig, Duration::from_secs(2), busy) {
                if damaged {
                    stuck += 1;
                    goes_on(&mut rig, &what);
                }
                continue;
            }
            rig.world.crash(NODE);
            let named = named(&mut rig);
            let room = has_room(&mut rig);
            let newest = named.at[&named.last.0];
            for (_, file, offset) in named.chunks.iter().filter(|c| damaged && c.0 == newest) {
                assert!(rig.world.flip(NODE, file, offset + 70));
            }
            // An opening needs a segment of its own.
            rig.world.set_capacity(NODE, None);
            match rig.open() {
                Ok(_) => named_first += u64::from(damaged),
                Err(error) => {
                    assert!(damaged && !room, "{what}: {error}; {named:x?}");
                    nowhere += 1;
                    continue;
                }
            }
            assert!(rig.check_all());
            goes_on(&mut rig, &what);
        }
    }
    println!("{named_first} named first, {nowhere} without a place for it, {stuck} stuck");
    assert!(named_first > 20 && nowhere > 0 && stuck > 0);
}

/// There is space again: the log takes entries, and gives segments back.
fn goes_on(rig: &mut Rig, what: &str) {
    rig.world.set_capacity(NODE, None);
    let mut waited = 0;
    rig.rest(Duration::from_millis(500));
    while rig.full {
        rig.rest(Duration::from_millis(500));
        waited += 1;
        assert!(waited < 40, "{what}: writing never resumed");
    }
    let before = rig.wal().stats().reclaimed;
    for partition in [0, 9] {
        let last = rig.part(partition).entries.len() as u64;
        rig.mark(partition, last);
        rig.drain();
        rig.low_water(partition, last + 1).unwrap();
    }
    for i in 0..2000u64 {
        if rig.wal().stats().reclaimed > before {
            break;
        }
        // A checkpoint comes when sixteen times the length of the last one was written.
        rig.entry(0, &[i as u8; 6000]).unwrap_or_else(|e| panic!("{what}: {e}"));
        rig.drain();
        let last = rig.part(0).entries.len() as u64;
        rig.mark(0, last);
        rig.low_water(0, last).unwrap();
        rig.drain();
    }
    assert!(rig.wal().stats().reclaimed > before, "{what}: {:?}", rig.wal().stats());
    assert!(rig.check_all());
    rig.world.crash(NODE);
    rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(rig.check_all());
}

/// Two batches in a row that cannot be read, of which the first is told of by nothing that is left: what can be given back is, and two
/// checkpoints are begun behind them. The next opening begins with one of these, although its segment's first batch names an older one.
#[test]
fn an_opening_begins_behind_what_nothing_tells_of() {
    let scrubbed = Options { scrub_rate: 64 << 20, scrub_every: Duration::from_secs(10), ..tiny() };
    let make = |entries: u64| {
        let mut rig = Rig::new(13, scrubbed.clone());
        rig.open().unwrap();
        stream(&mut rig, 1, entries, 4);
        rig.rest(Duration::from_millis(20));
        rig
    };
    let (mut older, mut opened) = (0, 0);
    for entries in (120..200).step_by(7) {
        let mut rig = make(entries);
        rig.close();
        let all = batches(&mut rig);
        for at in (all.len() - 30..all.len() - 6).step_by(5) {
            let mut rig = make(entries);
            for (file, offset, header) in &all[at..at + 2] {
                let len = u64::from(header.total_len);
                assert!(rig.world.make_unreadable(NODE, file, *offset, len));
            }
            let passes = rig.wal().scrubbed().passes;
            while rig.wal().scrubbed().passes == passes {
                rig.rest(Duration::from_secs(1));
            }
            rig.heal();
            for _ in 0..20 {
                rig.rest(Duration::from_millis(200));
                rig.flush();
            }
            rig.close();
            let what = format!("{entries}: {at}");
            let report = rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
            let began = report.checkpoint.unwrap().0;
            let (.., first) = all.iter().rfind(|(_, offset, _)| *offset == 8192).unwrap();
            let same = (first.lsn.0..first.lsn.0 + tiny().segment_bytes - 8192).contains(&began);
            older += u64::from(same && first.checkpoint.0 < began);
            assert!(rig.lost.is_empty(), "{what}: {:?}", rig.lost);
            rig.check_all();
            opened += 1;
        }
    }
    assert!(opened > 30 && older > 10, "{opened} opened, of {older} the first batch names an older one");
}
