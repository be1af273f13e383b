//! Bytes of a log changed behind its node's back: a torn tail is cut and reported, damage stops the node and is named.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::tidelog;
use crate::history::{Load, judge_all, read_local};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Within a batch, a byte of the first record's payload: behind the batch's header and the record's.
const HIT: u64 = 128 + 64 + 5;

/// A batch in a file.
pub(crate) struct Batch {
    pub(crate) file: PathBuf,
    pub(crate) offset: u64,
    bytes: u64,
}

fn dump(dir: &Path) -> Vec<Value> {
    let said = tidelog(&["wal", "dump", "--output", "json", dir.to_str().expect("UTF-8")]);
    assert_eq!(said.code, 0, "{said:?}");
    // Of a bad checkpoint, which it does without, it warns.
    let warned = |line: &str| line.contains("a checkpoint is bad");
    assert!(said.stderr.lines().all(warned), "{}", said.stderr);
    said.json()
}

/// The batch in which an entry of partition 0 lies.
pub(crate) fn batch_of(dir: &Path, index: u64) -> Batch {
    let mut batch = None;
    for line in dump(dir) {
        let number = |field: &str| line[field].as_u64().expect("a number");
        if line["event"] == "batch" {
            let file = PathBuf::from(line["file"].as_str().expect("a path"));
            batch = Some(Batch { file, offset: number("offset"), bytes: number("bytes") });
        } else if line["kind"] == "data" && line["index"] == index {
            return batch.expect("a record lies in a batch");
        }
    }
    panic!("index {index} is not in {}", dir.display());
}

/// The end of what has been written.
fn end_of(dir: &Path) -> (PathBuf, u64) {
    let lines = dump(dir);
    let last = lines.iter().rfind(|line| line["event"] == "batch").expect("a batch");
    let number = |field: &str| last[field].as_u64().expect("a number");
    (PathBuf::from(last["file"].as_str().expect("a path")), number("offset") + number("bytes"))
}

fn overwrite(file: &Path, offset: u64, change: impl Fn(&mut [u8]), bytes: u64) {
    let handle = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("the segment");
    let mut piece = vec![0; usize::try_from(bytes).expect("a size")];
    handle.read_exact_at(&mut piece, offset).expect("a read");
    change(&mut piece);
    handle.write_all_at(&piece, offset).expect("a write");
}

/// Damaged entries of partition 0 on a node, as its status says.
fn damaged(cluster: &Cluster, node: u64) -> Option<u64> {
    cluster.partition(node, 0)?["damaged"].as_u64()
}

fn wait_whole(cluster: &Cluster, node: u64) {
    wait_for(&format!("node {node} to be whole"), || (damaged(cluster, node)? == 0).then_some(()));
}

fn payloads(cluster: &Cluster, node: u64) -> Vec<String> {
    read_local(cluster, node).into_iter().map(|record| record.payload).collect()
}

/// One flipped bit in the middle: the node starts, names the place, gets the entry from the others, and is whole.
#[test]
fn a_flipped_bit_in_the_middle_of_the_log() {
    let mut cluster = Cluster::start(&Shape::default());
    cluster.append_all("before\n", &[]);
    let hit = cluster.append_all("the one that is hit\n", &[])[0];
    let last = cluster.append_all("after\n", &[])[0];
    cluster.wait_high_water(2, 0, last);
    cluster.stop();

    let data = cluster.place(2).data.clone();
    let batch = batch_of(&data, hit);
    overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    let file = batch.file.to_str().expect("UTF-8");
    let place = [file, &batch.offset.to_string(), "partition 0", &format!("index {hit}"), "damaged"];
    let verdict = tidelog(&["wal", "verify", cluster.place(2).data_name()]);
    assert_eq!(verdict.code, 1);
    for part in place {
        assert!(verdict.stdout.contains(part), "{part}: {verdict:?}");
    }
    assert_eq!(tidelog(&["wal", "verify", cluster.place(1).data_name()]).code, 0);

    // Alone it cannot be whole, and does not pretend to be.
    let ready = cluster.start_node(2);
    let recovery = ready["recovery"].as_str().expect("what was found");
    for part in place {
        assert!(recovery.contains(part), "{part}: {recovery}");
    }
    wait_for("the damage in the status", || (damaged(&cluster, 2)? == 1).then_some(()));
    cluster.start_node(1);
    cluster.start_node(3);
    wait_whole(&cluster, 2);
    cluster.wait_leader(0);
    cluster.wait_high_water(2, 0, last);
    assert_eq!(payloads(&cluster, 2), ["before", "the one that is hit", "after"]);
    cluster.stop();
    let verdict = tidelog(&["wal", "verify", cluster.place(2).data_name()]);
    assert_eq!(verdict.code, 0, "what was written again is not damage any more: {verdict:?}");
}

/// Bytes of old batches go bad under a running node that nobody reads: it finds them, names one, and is whole again.
#[test]
fn damage_that_nobody_reads() {
    let extra = "[scrub]\nrate = \"4MiB\"\nevery = \"500ms\"\n";
    let mut cluster = Cluster::start(&Shape { extra, ..Shape::default() });
    let lines: Vec<String> = (0..40).map(|i| format!("entry {i} {}", "x".repeat(i * 40))).collect();
    let mut indexes = Vec::new();
    for line in &lines {
        indexes.push(cluster.append_all(&format!("{line}\n"), &[])[0]);
    }
    let last = *indexes.last().expect("entries");
    for node in cluster.nodes() {
        cluster.wait_high_water(node, 0, last);
    }
    let data = cluster.place(2).data.clone();
    // Every third one: neighbours keep each other's lists of what they hold.
    let hits: Vec<u64> = indexes.iter().copied().skip(2).step_by(3).take(8).collect();
    for index in &hits {
        let batch = batch_of(&data, *index);
        overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    }
    let scrub = |field: &str| {
        let status = cluster.status(2)?;
        Some(status["scrub"][0][field].clone())
    };
    wait_for("the damage to be found", || (scrub("repaired")?.as_u64()? >= hits.len() as u64).then_some(()));
    wait_whole(&cluster, 2);
    let place = scrub("last").expect("a status");
    assert!(place.as_str().expect("words").contains(".wal"), "{place}");
    let passes = scrub("passes").and_then(|passes| passes.as_u64()).expect("a number");
    wait_for("two more passes", || (scrub("passes")?.as_u64()? >= passes + 2).then_some(()));
    assert_eq!(scrub("repaired").and_then(|n| n.as_u64()), Some(hits.len() as u64), "each once");
    assert_eq!(payloads(&cluster, 2), lines);
    cluster.stop();
    for node in cluster.nodes() {
        let verdict = tidelog(&["wal", "verify", cluster.place(node).data_name()]);
        assert_eq!(verdict.code, 0, "node {node}: {verdict:?}");
    }
}

/// The same on a cluster of one, which has nobody to ask: what lies before it is read, nothing is appended.
#[test]
fn a_flipped_bit_in_the_only_copy() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    cluster.append_all("before\n", &[]);
    let hit = cluster.append_all("the one that is hit\n", &[])[0];
    cluster.append_all("after\n", &[]);
    cluster.stop();
    let batch = batch_of(&cluster.place(1).data, hit);
    overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    let file = batch.file.to_str().expect("UTF-8");
    cluster.start_node(1);
    let place = [file, &batch.offset.to_string(), "partition 0", &format!("index {hit}")];
    let refused = cluster.append("more\n", &["--timeout", "2s"]);
    let read = cluster.tidelog("read", &["--node", "1", "--from", &hit.to_string()]);
    for said in [&refused, &read] {
        assert_ne!(said.code, 0, "{said:?}");
    }
    let words = format!("{}{}", read.stdout, read.stderr);
    for part in place {
        assert!(words.contains(part), "{part}: {words}");
    }
    let before = cluster.tidelog("read", &["--node", "1", "--to", &(hit - 1).to_string()]);
    assert_eq!(before.code, 0, "{before:?}");
    assert_eq!(before.json()[0]["payload"], "YmVmb3Jl", "the text `before`");
    // Put back, it is sound again.
    cluster.stop();
    overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    cluster.start_node(1);
    cluster.append_all("more\n", &[]);
    assert_eq!(payloads(&cluster, 1), ["before", "the one that is hit", "after", "more"]);
    cluster.stop();
}

/// Other entries are damaged on every node: nobody can lead, and all are whole without anybody's help.
#[test]
fn different_damage_on_every_node() {
    let mut cluster = Cluster::start(&Shape::default());
    let lines: Vec<String> = (0..6).map(|i| format!("entry {i}")).collect();
    let indexes: Vec<u64> =
        lines.iter().map(|line| cluster.append_all(&format!("{line}\n"), &[])[0]).collect();
    let last = *indexes.last().expect("entries");
    for node in cluster.nodes() {
        cluster.wait_high_water(node, 0, last);
    }
    cluster.stop();
    for node in cluster.nodes() {
        for at in [node - 1, node + 2] {
            let index = indexes[usize::try_from(at).expect("small")];
            let batch = batch_of(&cluster.place(node).data, index);
            overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 1, 1);
        }
        assert_eq!(tidelog(&["wal", "verify", cluster.place(node).data_name()]).code, 1);
    }
    cluster.start_all();
    cluster.wait_leader(0);
    for node in cluster.nodes() {
        wait_whole(&cluster, node);
        cluster.wait_high_water(node, 0, last);
        assert_eq!(payloads(&cluster, node), lines, "node {node}");
    }
    cluster.append_all("and on\n", &[]);
    cluster.stop();
    for node in cluster.nodes() {
        assert_eq!(tidelog(&["wal", "verify", cluster.place(node).data_name()]).code, 0, "node {node}");
    }
}

/// Two hundred flipped bytes, at most twenty in a round, anywhere in the batches of one node: headers, records, footers, checkpoints, the ends
/// of lives, and the neighbours of those of earlier rounds, which the scrubber has moved what counts away from.
///
/// Within a round, that is between two passes of the scrubber, two restrictions remain, for both are two faults at once. Never
/// neighbouring batches: each tells what the other held, and a batch of which nobody tells that is *unknown*, and the node refuses. And
/// of the checkpoints only one: the log names two, so that one may go.
#[test]
fn two_hundred_flipped_bytes() {
    let extra = "[wal]\nsegment_size = \"16MiB\"\nspare_segments = 1\ncheckpoint_every = \"1MiB\"\n\
                 [scrub]\nrate = \"64MiB\"\nevery = \"300ms\"\n";
    let mut cluster = Cluster::start(&Shape { extra, ..Shape::default() });
    let lines: Vec<String> = (0..70).map(|i| format!("entry {i} {}", "x".repeat(i * 7))).collect();
    let mut last = 0;
    for line in &lines {
        last = cluster.append_all(&format!("{line}\n"), &[])[0];
    }
    cluster.wait_high_water(2, 0, last);
    let mut random = 7u64;
    let mut below = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound.max(1)
    };
    let mut flips = 0;
    let mut touched: BTreeMap<(PathBuf, u64), u64> = BTreeMap::new();
    let mut round = 0;
    while flips < 200 {
        round += 1;
        assert!(round <= 40, "{flips} flips found room in 40 rounds");
        cluster.take(2).kill();
        let data = cluster.place(2).data.clone();
        let mut batches: Vec<(Batch, BTreeSet<u64>)> = Vec::new();
        for line in dump(&data) {
            let number = |field: &str| line[field].as_u64().expect("a number");
            if line["event"] == "batch" {
                let file = PathBuf::from(line["file"].as_str().expect("a path"));
                let batch = Batch { file, offset: number("offset"), bytes: number("bytes") };
                batches.push((batch, BTreeSet::new()));
            } else if line["kind"].as_str().is_some_and(|kind| kind.starts_with("checkpoint")) {
                let (_, checkpoints) = batches.last_mut().expect("a record lies in a batch");
                checkpoints.insert(number("generation"));
            }
        }
        let mut hit: BTreeSet<usize> = BTreeSet::new();
        let mut checkpoints: BTreeSet<u64> = BTreeSet::new();
        // Each batch has one turn, in a random order: a log of few batches, which is what a reclaimed one is, has not room for twenty.
        let mut order: Vec<usize> = (0..batches.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, usize::try_from(below(i as u64 + 1)).expect("small"));
        }
        for at in order {
            let (batch, of) = &batches[at];
            let with: BTreeSet<u64> = checkpoints.union(of).copied().collect();
            let near = at.saturating_sub(1)..=at + 1;
            if hit.len() == 20 || flips == 200 || with.len() > 1 || hit.range(near).next().is_some() {
                continue;
            }
            hit.insert(at);
            checkpoints = with;
            let at = batch.offset + below(batch.bytes.min(1100));
            let bit = 1 << below(8);
            overwrite(&batch.file, at, |bytes| bytes[0] ^= bit, 1);
            touched.insert((batch.file.clone(), batch.offset), batch.offset + batch.bytes);
            flips += 1;
        }
        cluster.start_node(2);
        wait_whole(&cluster, 2);
        cluster.wait_high_water(2, 0, last);
        assert_eq!(payloads(&cluster, 2), lines, "round {round}");
        let passes = || cluster.status(2)?["scrub"][0]["passes"].as_u64();
        let before = wait_for("the scrubber's passes", passes);
        wait_for("two more passes", || (passes()? >= before + 2).then_some(()));
        wait_whole(&cluster, 2);
    }
    assert_eq!(flips, 200);
    assert_eq!(payloads(&cluster, 2), lines);
    cluster.stop();
    // The node begins behind them and has moved what counted. Who looks from outside at a batch that was hit, and whose teller was hit, cannot
    // know that, and says so; but of no other.
    let verdict = tidelog(&["wal", "verify", "--output", "json", cluster.place(2).data_name()]);
    let told = &verdict.json()[0];
    assert!(told["stopped"].is_null() && told["headers_bad"].as_array().is_some_and(Vec::is_empty), "{told}");
    let mut unknown = 0;
    for found in told["findings"].as_array().expect("findings") {
        let (file, offset) =
            (PathBuf::from(found["file"].as_str().expect("a path")), found["offset"].as_u64());
        match found["verdict"].as_str().expect("a verdict") {
            "superseded" => {}
            "unknown" => {
                let end = touched.get(&(file.clone(), offset.expect("a number"))).expect("it was hit");
                assert!(touched.contains_key(&(file, *end)), "and the one behind it: {found}");
                unknown += 1;
            }
            _ => panic!("{found}"),
        }
    }
    assert_eq!(verdict.code, i32::from(unknown > 0), "{told}");
}

/// What a power cut leaves: the last batch half there. The node starts, says so, and gets the record from the others.
#[test]
fn a_torn_tail() {
    let mut cluster = Cluster::start(&Shape::default());
    let first = cluster.append_all("whole\n", &[])[0];
    let last = cluster.append_all(&format!("torn{}\n", "n".repeat(9000)), &[])[0];
    for node in cluster.nodes() {
        cluster.wait_high_water(node, 0, last);
    }
    let node = cluster.nodes().find(|node| *node != cluster.wait_leader(0)).expect("a follower");
    cluster.kill_all();

    let batch = batch_of(&cluster.place(node).data, last);
    assert!(batch.bytes > 8192, "its end can be torn off");
    // What came after it would prove that it was whole once: a cut of the power takes that, too.
    let (end_file, end) = end_of(&cluster.place(node).data);
    assert_eq!(end_file, batch.file);
    let torn = batch.offset + 4096;
    overwrite(&batch.file, torn, |bytes| bytes.fill(0), end - torn);
    let verdict = tidelog(&["wal", "verify", cluster.place(node).data_name()]);
    assert_eq!(verdict.code, 0, "a torn tail is not damage: {verdict:?}");
    let file = batch.file.to_str().expect("UTF-8").to_owned();
    assert!(verdict.stdout.contains(&file), "{verdict:?}");

    let mut recovery = String::new();
    for started in cluster.nodes() {
        cluster.begin(started);
    }
    for started in cluster.nodes() {
        let ready = cluster.node(started).wait_ready();
        if started == node {
            recovery = ready["recovery"].as_str().expect("what was found").to_owned();
        }
    }
    for part in [file.as_str(), &batch.offset.to_string()] {
        assert!(recovery.contains(part), "{part}: {recovery}");
    }
    cluster.wait_leader(0);
    cluster.wait_high_water(node, 0, last);
    let log = read_local(&cluster, node);
    assert_eq!((log[0].index, log[1].index, log.len()), (first, last, 2));
    assert!(log[1].payload.ends_with("nnn"), "it came from the others");
    cluster.stop();
}

/// Garbage behind the end, as a recycled or half-written page may hold it: the node starts with all it had.
#[test]
fn garbage_behind_the_end() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let index = cluster.append_all("here\n", &[])[0];
    cluster.take(1).kill();
    let (file, end) = end_of(&cluster.place(1).data);
    overwrite(&file, end, |bytes| bytes.iter_mut().zip(1u8..).for_each(|(byte, n)| *byte = n | 1), 200);
    cluster.start_node(1);
    let more = cluster.append_all("there\n", &[])[0];
    assert!(more > index);
    let log: Vec<String> = read_local(&cluster, 1).into_iter().map(|record| record.payload).collect();
    assert_eq!(log, ["here", "there"]);
    cluster.stop();
    let verdict = tidelog(&["wal", "verify", cluster.place(1).data_name()]);
    assert_eq!(verdict.code, 0, "{verdict:?}");
}

/// `wal verify` and `wal diff` on the directories of nodes that write meanwhile: a moving tail is not damage, and
/// replicas that are some records apart do not contradict each other.
#[test]
fn looking_at_logs_under_load() {
    const LOOKS: usize = 8;
    let mut cluster = Cluster::start(&Shape::default());
    let load = Load::start(&cluster, "load", &["--in-flight", "4", "--timeout", "10s"]);
    load.wait_acked(200);
    let dirs: Vec<String> = cluster.nodes().map(|node| cluster.place(node).data_name().to_owned()).collect();
    for look in 0..LOOKS {
        let (one, other) = (&dirs[look % dirs.len()], &dirs[(look + 1) % dirs.len()]);
        let verdict = tidelog(&["wal", "verify", one, "--output", "json"]);
        assert_eq!((verdict.code, verdict.stderr.as_str()), (0, ""), "look {look}: {verdict:?}");
        assert!(verdict.json()[0]["records"].as_u64() > Some(200), "{verdict:?}");
        let diff = tidelog(&["wal", "diff", one, other, "--output", "json"]);
        assert_eq!(diff.code, 0, "look {look}: {diff:?}");
        assert!(diff.json()[0]["partitions"][0]["same_entries"].as_u64() > Some(0), "{diff:?}");
        load.wait_acked(1);
    }
    let told = load.finish();
    assert!(judge_all(&cluster, &told) >= 200 + LOOKS);
    cluster.stop();
    for (at, dir) in dirs.iter().enumerate() {
        let diff = tidelog(&["wal", "diff", dir, &dirs[(at + 1) % dirs.len()]]);
        assert!(diff.code == 0 && diff.stdout.starts_with("same"), "{diff:?}");
        assert_eq!(tidelog(&["wal", "verify", dir]).code, 0);
    }
}
