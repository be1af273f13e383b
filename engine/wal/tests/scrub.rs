//! Damage in what was written long ago is found while the log runs: what is live is told or written again, what is not is counted.

mod common;

use common::scripts::stream;
use common::{DIR, NODE, Rig, tiny};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tidelog_io::{Io, Wait};
use tidelog_sim::{DiskFault, Moment};
use tidelog_types::RecordKind;
use tidelog_wal::inspect::{self, Item};
use tidelog_wal::{Options, ScrubStats};

/// The first pass is over an empty log; the next one begins after this.
const EVERY: Duration = Duration::from_secs(10);

fn scrubbed() -> Options {
    Options { scrub_rate: 64 << 20, scrub_every: EVERY, steady: false, ..tiny() }
}

/// A log of several segments: entries of three partitions, promises, a cut, low-water marks, checkpoints, summaries.
fn long_log(options: &Options) -> Rig {
    let mut rig = Rig::new(11, options.clone());
    rig.open().unwrap();
    for i in 0..150u64 {
        rig.entry(i % 3, &vec![i as u8; 300 + (i as usize * 97) % 6000]).unwrap();
        if i % 2 == 0 {
            rig.entry(2, &[7; 20]).unwrap();
        }
        rig.drain();
        match i {
            30 => rig.promise(0, 3, 2).unwrap(),
            60 => rig.cut(1, 15).unwrap(),
            80 => rig.promise(1, 5, 0).unwrap(),
            90 => {
                rig.mark(2, 60);
                rig.low_water(2, 40).unwrap();
            }
            _ => {}
        }
        rig.drain();
    }
    rig.rest(Duration::from_millis(50));
    rig
}

#[derive(Clone, Debug)]
struct Batch {
    file: String,
    offset: u64,
    len: u64,
    footer: u64,
    kinds: Vec<RecordKind>,
}

/// What lies where in that log.
fn layout(options: &Options) -> Vec<Batch> {
    let mut rig = long_log(options);
    rig.close();
    batches(&mut rig)
}

fn batches(rig: &mut Rig) -> Vec<Batch> {
    rig.io = None;
    let mut io = rig.world.node(NODE);
    let mut batches = Vec::new();
    inspect::walk(&mut io, Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let Item::Batch { file, offset, header, footer } = item {
            batches.push(Batch {
                file: file.display().to_string(),
                offset,
                len: u64::from(header.total_len),
                footer: u64::from(header.footer_offset),
                kinds: footer.map_or(vec![], |f| f.own.iter().map(|s| s.kind).collect()),
            });
        }
    })
    .unwrap();
    batches
}

fn stats(rig: &mut Rig) -> ScrubStats {
    rig.wal().scrubbed().clone()
}

/// Lets the scrubber come round once more.
fn pass(rig: &mut Rig) {
    let before = stats(rig).passes;
    for _ in 0..100 {
        rig.rest(EVERY / 10);
        if stats(rig).passes > before {
            return;
        }
    }
    panic!("no pass: {:?}", stats(rig));
}

/// What is lost comes back as from a peer, and the log is whole: in memory, to a tool, and to the next life.
fn whole_again(rig: &mut Rig, what: &str) {
    rig.heal();
    rig.check_all();
    let before = stats(rig);
    pass(rig);
    let after = stats(rig);
    assert_eq!((after.lost, after.moved), (before.lost, before.moved), "{what}: found twice");
    rig.close();
    rig.io = None;
    let report =
        inspect::verify(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default()).unwrap();
    assert!(!report.is_damaged(), "{what}: {} {:?}", report.lost, report.findings);
    rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(rig.lost.is_empty(), "{what}: {:?}", rig.lost);
    rig.check_all();
}

#[test]
fn a_log_without_damage_has_no_findings() {
    let mut rig = long_log(&scrubbed());
    assert!(rig.wal().stats().segments > 4 && rig.wal().stats().summaries > 1, "{:?}", rig.wal().stats());
    pass(&mut rig);
    let found = stats(&mut rig);
    assert_eq!((found.lost, found.moved, found.superseded, found.last.as_str()), (0, 0, 0, ""));
    let bytes: u64 = rig.wal().stats().segments as u64 * (192 << 10);
    assert!(found.bytes > bytes / 2, "it read {} bytes of segments of {bytes}", found.bytes);
    // Through other lives, whose ends are no damage.
    for life in 0..4u8 {
        for i in 0..20 {
            rig.entry(0, &vec![i; 5000]).unwrap();
            rig.drain();
        }
        if life % 2 == 0 {
            rig.close()
        } else {
            rig.world.crash(NODE)
        }
        rig.open().unwrap();
        pass(&mut rig);
        pass(&mut rig);
        assert_eq!(stats(&mut rig).last, "", "life {life}");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_found_and_nothing_stays_lost() {
    let options = scrubbed();
    let all = layout(&options);
    let sealed: Vec<&Batch> = all.iter().take(all.len() - 3).collect();
    let (mut lost, mut moved, mut superseded) = (0, 0, 0);
    for (at, batch) in sealed.iter().enumerate().step_by(5) {
        for place in [9, 70, 128 + 9, 128 + 64 + 5, batch.footer + 10] {
            let short = batch.kinds.is_empty() || (place == 197 && !batch.kinds.contains(&RecordKind::Data));
            if short && place > 128 && place != batch.footer + 10 {
                continue; // zeros, which nobody looks at
            }
            let mut rig = long_log(&options);
            let what = format!("{batch:?}, byte {place}, batch {at}");
            assert!(rig.world.flip(NODE, &batch.file, batch.offset + place.min(batch.len - 1)), "{what}");
            pass(&mut rig);
            let found = stats(&mut rig);
            assert_ne!(found.last, "", "{what}");
            assert!(found.last.contains(&batch.file), "{what}: {}", found.last);
            if place < 128 {
                assert_eq!(found.lost, 0, "{what}: a header costs no entry");
            }
            if place == batch.footer + 10 {
                assert_eq!((found.lost, found.moved, found.superseded), (0, 0, 1), "{what}");
            }
            assert!(found.lost + found.moved + found.superseded > 0, "{what}");
            assert_eq!(rig.lost.len() as u64, found.lost, "{what}");
            (lost, moved, superseded) =
                (lost + found.lost, moved + found.moved, superseded + found.superseded);
            whole_again(&mut rig, &what);
        }
    }
    assert!(
        lost > 20 && moved > 20 && superseded > 20,
        "lost {lost}, moved {moved}, superseded {superseded}"
    );
}

#[test]
fn pages_that_cannot_be_read_and_writes_that_never_came() {
    let options = scrubbed();
    let all = layout(&options);
    for batch in all.iter().take(all.len() - 3).skip(2).step_by(9) {
        for zeros in [false, true] {
            let mut rig = long_log(&options);
            let what = format!("{batch:?}, zeros {zeros}");
            if zeros {
                assert!(rig.world.write_raw(NODE, &batch.file, batch.offset, &vec![0; batch.len as usize]));
            } else {
                assert!(rig.world.make_unreadable(NODE, &batch.file, batch.offset, 4096));
            }
            pass(&mut rig);
            assert_ne!(stats(&mut rig).last, "", "{what}");
            whole_again(&mut rig, &what);
        }
    }
}

#[test]
fn a_bad_copy_of_a_header_is_written_again() {
    let options = scrubbed();
    let files: std::collections::BTreeSet<String> = layout(&options).into_iter().map(|b| b.file).collect();
    for (file, copy) in files.iter().flat_map(|file| [(file, 0), (file, 1)]) {
        for unreadable in [false, true] {
            let mut rig = long_log(&options);
            let before = rig.world.durable_range(NODE, file, 0, 8192).unwrap();
            if unreadable {
                rig.world.make_unreadable(NODE, file, copy * 4096, 4096);
            } else {
                rig.world.flip(NODE, file, copy * 4096 + 33);
            }
            pass(&mut rig);
            let found = stats(&mut rig);
            assert!(found.superseded == 1 && found.last.contains("segment's header"), "{found:?}");
            rig.rest(Duration::from_millis(20));
            assert_eq!(stats(&mut rig).rewritten, 1, "{:?}", stats(&mut rig));
            assert!(
                rig.world.durable_range(NODE, file, 0, 8192).unwrap() == before,
                "as it was written first"
            );
            pass(&mut rig);
            assert_eq!(stats(&mut rig).superseded, 1, "it is not found again");
            // And the other one may go now.
            rig.world.flip(NODE, file, (1 - copy) * 4096 + 33);
            rig.close();
            rig.open().unwrap();
            rig.check_all();
        }
    }
}

#[test]
fn a_header_of_which_both_copies_are_bad_is_not_written() {
    let options = scrubbed();
    let file = layout(&options)[0].file.clone();
    let mut rig = long_log(&options);
    rig.world.flip(NODE, &file, 33);
    rig.world.flip(NODE, &file, 4096 + 33);
    pass(&mut rig);
    rig.rest(Duration::from_millis(20));
    assert_eq!((stats(&mut rig).superseded, stats(&mut rig).rewritten), (2, 0));
}

/// The power goes, or the write fails, at each step of it: the log is never worse than it was.
#[test]
fn a_copy_of_a_header_that_could_not_be_written() {
    let options = scrubbed();
    let file = layout(&options)[2].file.clone();
    let mut crashed = 0;
    for (step, moment) in
        (0..6).flat_map(|step| [Moment::Before, Moment::Inside, Moment::After].map(|m| (step, m)))
    {
        let mut rig = long_log(&options);
        rig.world.flip(NODE, &file, 4096 + 33);
        rig.world.crash_at(NODE, rig.world.disk_ops(NODE) + step, moment);
        while rig.alive() && stats(&mut rig).rewritten == 0 {
            rig.rest(EVERY / 10);
        }
        for _ in 0..6 {
            if rig.alive() {
                rig.entry(0, &[8; 100]).unwrap();
                rig.drain();
            }
        }
        crashed += u64::from(!rig.alive());
        if rig.alive() {
            rig.world.crash(NODE);
        }
        rig.open().unwrap();
        rig.check_all();
        pass(&mut rig);
        pass(&mut rig);
        rig.rest(Duration::from_millis(20));
        let page = rig.world.durable_range(NODE, &file, 0, 8192).unwrap();
        assert!(page[..4096] == page[4096..], "step {step}, {moment:?}");
    }
    assert!(crashed > 6, "{crashed}");
    let mut failed = 0;
    for n in 0..6 {
        let mut rig = long_log(&options);
        rig.world.flip(NODE, &file, 33);
        rig.world.fail_at(NODE, rig.world.disk_ops(NODE) + n, DiskFault::WriteError);
        while rig.fenced.is_none() && stats(&mut rig).superseded == 0 {
            rig.rest(EVERY / 10);
        }
        if rig.fenced.is_some() || stats(&mut rig).rewritten == 1 {
            continue; // it was another one's
        }
        failed += 1;
        // Nothing rests on it: the log goes on, and the next pass finds it again.
        rig.entry(0, b"on").unwrap();
        rig.drain();
        pass(&mut rig);
        rig.rest(Duration::from_millis(20));
        assert_eq!(stats(&mut rig).rewritten, 1);
    }
    assert!(failed > 0);
}

/// The places of all pieces of summaries: by segment, (file, offset of the record, of its batch).
fn summaries(rig: &mut Rig) -> BTreeMap<u64, Vec<(String, u64)>> {
    let mut found: BTreeMap<u64, Vec<(String, u64)>> = BTreeMap::new();
    rig.io = None;
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let Item::Record { file, offset, header, .. } = item
            && header.kind == RecordKind::Summary
        {
            found.entry(header.index.0).or_default().push((file.display().to_string(), offset));
        }
    })
    .unwrap();
    found
}

#[test]
fn a_bad_summary_is_written_again() {
    let options = scrubbed();
    let mut rig = long_log(&options);
    rig.close();
    let all = summaries(&mut rig);
    assert!(all.len() > 2, "{all:?}");
    for (of, places) in &all {
        for reader in [false, true] {
            let mut rig = long_log(&options);
            if reader {
                // Before the scrubber comes by: whoever wants an entry finds it.
                rig.close();
                rig.options.scrub_rate = 0;
                rig.open().unwrap();
            }
            let (file, offset) = &places[0];
            assert!(rig.world.flip(NODE, file, offset + 80));
            if reader {
                rig.check_all();
            } else {
                pass(&mut rig);
            }
            rig.rest(Duration::from_millis(50));
            let found = stats(&mut rig);
            // What holds nothing that is live any more needs none.
            let known = rig.wal().stats().segments > 0;
            assert!(known && (found.rewritten == 1), "{of}, {places:?}: {found:?}");
            rig.check_all();
            if !reader {
                pass(&mut rig);
                assert_eq!(stats(&mut rig).rewritten, 1, "{of}: once");
            }
            rig.close();
            let now = summaries(&mut rig);
            assert!(!now[of].is_empty() && now[of][0] != places[0], "{of}: {now:?}");
            // The old one is no loss any more, for the next life as well.
            rig.open().unwrap();
            rig.check_all();
            assert_eq!(stats(&mut rig).rewritten, 0, "{of}");
        }
    }
}

/// The name of the segment at a base.
fn segment(base: u64) -> String {
    format!("{DIR}/{base:016x}.wal")
}

/// The summary goes bad, and a page of the segment: what the device does give of it is summed up, so that no later life has to read it
/// all again; the rest is told.
#[test]
fn a_bad_summary_of_a_segment_with_a_bad_page() {
    let options = scrubbed();
    let all = layout(&options);
    let mut rig = long_log(&options);
    rig.close();
    let summed = summaries(&mut rig);
    let (mut lost, mut tried) = (0, 0);
    for (base, places) in &summed {
        let inside: Vec<&Batch> = all.iter().filter(|batch| batch.file == segment(*base)).collect();
        let last = inside.len() - 1;
        // Of the first batch, of one in the middle, and of the last one, its first page or its last one.
        for (batch, end) in
            [0, last / 2, last].into_iter().flat_map(|at| [(inside[at], false), (inside[at], true)])
        {
            let mut rig = long_log(&options);
            let what = format!("{batch:?}, end {end}");
            let page = batch.offset + if end { batch.len - 4096 } else { 0 };
            assert!(rig.world.make_unreadable(NODE, &batch.file, page, 4096));
            let (file, offset) = &places[0];
            assert!(rig.world.flip(NODE, file, offset + 80));
            pass(&mut rig);
            rig.rest(Duration::from_millis(200));
            pass(&mut rig);
            tried += 1;
            // The batch may hold the summary of another segment.
            let rewritten = 1 + u64::from(batch.kinds.contains(&RecordKind::Summary));
            assert_eq!(stats(&mut rig).rewritten, rewritten, "{what}: {:?}", stats(&mut rig));
            lost += rig.lost.len();
            rig.check_all();
            rig.heal();
            rig.check_all();
            rig.close();
            let now = summaries(&mut rig);
            assert!(now[base].iter().any(|place| place.0 != *file || place.1 > *offset), "{what}: {now:?}");
            rig.open().unwrap_or_else(|e| panic!("{what}: {e}"));
            rig.check_all();
            pass(&mut rig);
            assert_eq!(stats(&mut rig).rewritten, 0, "{what}: the new one is good");
        }
    }
    assert!(tried > 10 && lost > 5, "{tried} tried, {lost} lost");
}

/// The oldest segment, which is to be emptied, has lost its summary and a page: what can be read is moved, the rest is given back by
/// peers, and it goes.
#[test]
fn a_segment_without_a_summary_and_with_a_bad_page_is_emptied() {
    let live = |rig: &mut Rig| rig.wal().stats().reclaimed;
    let mut rig = Rig::new(12, Options { scrub_rate: 0, steady: false, ..tiny() });
    rig.open().unwrap();
    for partition in 10..30 {
        while rig.entry(partition, &[partition as u8; 500]).is_err() {
            rig.drain();
            rig.rest(Duration::from_millis(5));
        }
        rig.mark(partition, 1);
        rig.drain();
    }
    stream(&mut rig, 1, 300, 4);
    rig.close();
    let (file, offset) = summaries(&mut rig)[&0][0].clone();
    rig.options.log_bytes_target = 400 << 10;
    rig.open().unwrap();
    assert!(live(&mut rig) == 0 && rig.world.flip(NODE, &file, offset + 80));
    assert!(rig.world.make_unreadable(NODE, segment(0), 8192 + 5 * 8192, 8192));
    for _ in 0..6 {
        stream(&mut rig, 1, 20, 4);
        rig.rest(Duration::from_secs(6));
    }
    assert_eq!(live(&mut rig), 0, "what is lost is still wanted");
    assert!(rig.wal().stats().moved_records > 15, "{:?}", rig.wal().stats());
    assert_eq!(stats(&mut rig).rewritten, 1, "the summary");
    for partition in 10..30 {
        if rig.read(partition, 1, 1, 1 << 20).is_err() {
            rig.lost.insert((partition, 1), false);
        }
    }
    assert!((1..4).contains(&rig.lost.len()), "{:?}", rig.lost);
    rig.heal();
    for _ in 0..6 {
        stream(&mut rig, 1, 20, 4);
        rig.rest(Duration::from_secs(6));
    }
    assert!(live(&mut rig) > 0, "{:?}", rig.wal().stats());
    rig.check_all();
    rig.world.crash(NODE);
    rig.open().unwrap();
    rig.check_all();
}

/// A summary is made from a segment in which a cut cannot be read: what comes again behind it has taken the place of what was cut.
#[test]
fn a_summary_of_a_segment_with_an_unreadable_cut() {
    let options = scrubbed();
    let all = layout(&options);
    let mut rig = long_log(&options);
    rig.close();
    let summed = summaries(&mut rig);
    let cut = all.iter().find(|batch| batch.kinds.contains(&RecordKind::Cut)).unwrap();
    let (_, places) = summed.iter().find(|(base, _)| segment(**base) == cut.file).expect("it is summed up");
    for place in [9, 128 + 9, cut.footer + 10] {
        let mut rig = long_log(&options);
        rig.world.flip(NODE, &cut.file, cut.offset + 9);
        rig.world.flip(NODE, &cut.file, cut.offset + place + 1);
        let (file, offset) = &places[0];
        rig.world.flip(NODE, file, offset + 80);
        pass(&mut rig);
        rig.rest(Duration::from_millis(200));
        assert_eq!(stats(&mut rig).rewritten, 1, "{:?}", stats(&mut rig));
        whole_again(&mut rig, &format!("byte {place}"));
    }
}

#[test]
fn a_bad_checkpoint_is_replaced_before_the_other_one_goes_bad() {
    let options = scrubbed();
    let all = layout(&options);
    let newest = all.iter().rfind(|b| b.kinds.contains(&RecordKind::CheckpointEnd)).unwrap().clone();
    let mut rig = long_log(&options);
    let before = rig.wal().stats().checkpoints;
    rig.world.flip(NODE, &newest.file, newest.offset + 128 + 80);
    pass(&mut rig);
    for _ in 0..30 {
        // The log has to be between two batches, with somebody there to save.
        rig.rest(Duration::from_millis(200));
        rig.flush();
    }
    assert!(rig.wal().stats().checkpoints >= before + 2, "both that are kept are new");
    whole_again(&mut rig, "a checkpoint");
}

#[test]
fn a_promise_in_a_bad_batch_is_written_again() {
    let options = scrubbed();
    let all = layout(&options);
    // The newest of partition 1: only damage to record, span and echo would lose it.
    let holder = all.iter().rfind(|b| b.kinds.contains(&RecordKind::Promise)).unwrap().clone();
    let mut rig = long_log(&options);
    rig.world.flip(NODE, &holder.file, holder.offset + 128 + 9);
    pass(&mut rig);
    assert!(stats(&mut rig).last.contains(&holder.file));
    rig.close();
    rig.io = None;
    let mut promises = Vec::new();
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let Item::Record { header, .. } = item
            && header.kind == RecordKind::Promise
            && header.partition.0 == 1
        {
            promises.push(header.generation.0);
        }
    })
    .unwrap();
    assert_eq!(promises.last(), Some(&5));
    rig.open().unwrap();
}

#[test]
fn the_rate_is_kept() {
    let rate = 1u64 << 20;
    let options = Options { scrub_rate: rate, scrub_every: Duration::from_secs(1), ..tiny() };
    let mut rig = long_log(&options);
    let now = |rig: &Rig| rig.io.as_ref().unwrap().clock().now;
    let passes = rig.wal().scrubbed().passes;
    while rig.wal().scrubbed().passes == passes {
        rig.rest(Duration::from_millis(1));
    }
    let (start, mut bytes) = (now(&rig), 0);
    while rig.wal().scrubbed().passes == passes + 1 {
        bytes = bytes.max(rig.wal().scrubbed().bytes);
        rig.rest(Duration::from_millis(1));
    }
    let took = now(&rig).since(start);
    let least = Duration::from_nanos(bytes * 1_000_000_000 / rate);
    assert!(took >= least, "{bytes} bytes in {took:?}");
    assert!(took < 4 * least, "{bytes} bytes in {took:?}: it does come on");
}

#[test]
fn it_goes_on_beside_a_log_that_is_never_idle() {
    let mut rig = long_log(&Options { scrub_every: Duration::from_secs(1), ..scrubbed() });
    for partition in 1..3 {
        let last = rig.part(partition).entries.len() as u64;
        rig.mark(partition, last);
        rig.low_water(partition, last + 1).unwrap();
    }
    rig.drain();
    let before = rig.wal().scrubbed().passes;
    let end = rig.io.as_ref().unwrap().clock().now.after(Duration::from_secs(60));
    let mut appended = 0;
    while rig.wal().scrubbed().passes < before + 2 {
        assert!(rig.io.as_ref().unwrap().clock().now < end, "{:?}", rig.wal().scrubbed());
        // The next batch leaves with the completion of the one before.
        if rig.entry(0, &[1; 900]).is_ok() {
            appended += 1;
            let last = rig.part(0).entries.len() as u64;
            if appended % 50 == 0 {
                rig.mark(0, last);
                let _ = rig.low_water(0, last - 20);
            }
        }
        rig.flush();
        rig.poll(Wait::Forever);
        rig.tick();
    }
    assert!(rig.wal().stats().reclaimed > 2, "segments were given back under it: {:?}", rig.wal().stats());
    assert_eq!(rig.wal().scrubbed().last, "", "none of them was taken for damage");
}
