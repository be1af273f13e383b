//! Bytes of a log changed behind its node's back: a torn tail is cut and reported, damage stops the node and is named.

use crate::cluster::{Cluster, Shape};
use crate::command::{Said, tidelog};
use crate::history::{Load, judge_all, read_local};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Within a batch, a byte of the first record's payload: behind the batch's header and the record's.
const HIT: u64 = 128 + 64 + 5;

/// A batch in a file.
struct Batch {
    file: PathBuf,
    offset: u64,
    bytes: u64,
}

fn dump(dir: &Path) -> Vec<Value> {
    let said = tidelog(&["wal", "dump", "--output", "json", dir.to_str().expect("UTF-8")]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    said.json()
}

/// The batch in which an entry of partition 0 lies.
fn batch_of(dir: &Path, index: u64) -> Batch {
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

fn serve(cluster: &Cluster, node: u64) -> Said {
    tidelog(&["serve", "--config", cluster.place(node).config_name()])
}

/// One flipped bit in the middle: the node stays down and names the place, `wal verify` names the same, the others work on.
#[test]
fn a_flipped_bit_in_the_middle_of_the_log() {
    let mut cluster = Cluster::start(&Shape::default());
    let index = cluster.append_all("before\n", &[])[0];
    let damaged = cluster.append_all("the one that is hit\n", &[])[0];
    cluster.append_all("after\n", &[]);
    cluster.wait_high_water(2, 0, damaged);
    cluster.stop();

    let data = cluster.place(2).data.clone();
    let batch = batch_of(&data, damaged);
    overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    let before = std::fs::read(&batch.file).expect("the segment");
    let file = batch.file.to_str().expect("UTF-8");
    let place = [file, &batch.offset.to_string(), "partition 0", &format!("index {damaged}"), "damaged"];
    for _ in 0..2 {
        let said = serve(&cluster, 2);
        said.refused(1, &place);
        assert_eq!(said.stdout, "");
    }
    assert!(std::fs::read(&batch.file).expect("the segment") == before, "the file is left as it is");
    let verdict = tidelog(&["wal", "verify", cluster.place(2).data_name()]);
    assert_eq!(verdict.code, 1);
    for part in place {
        assert!(verdict.stdout.contains(part), "{part}: {verdict:?}");
    }
    assert_eq!(tidelog(&["wal", "verify", cluster.place(1).data_name()]).code, 0);

    cluster.start_node(1);
    cluster.start_node(3);
    cluster.wait_leader_among(0, &[1, 3]);
    let more = cluster.append_all("without it\n", &[])[0];
    for node in [1, 3] {
        cluster.wait_high_water(node, 0, more);
        let log: Vec<String> = read_local(&cluster, node).into_iter().map(|record| record.payload).collect();
        assert_eq!(log, ["before", "the one that is hit", "after", "without it"]);
        assert!(index < damaged);
    }
}

/// The same on a cluster of one, which has nobody to ask.
#[test]
fn a_flipped_bit_in_the_only_copy() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let damaged = cluster.append_all("the one that is hit\n", &[])[0];
    cluster.append_all("after\n", &[]);
    cluster.stop();
    let batch = batch_of(&cluster.place(1).data, damaged);
    overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    let file = batch.file.to_str().expect("UTF-8");
    serve(&cluster, 1)
        .refused(1, &[file, &batch.offset.to_string(), "partition 0", &format!("index {damaged}")]);
    // Put back, it is sound again.
    overwrite(&batch.file, batch.offset + HIT, |bytes| bytes[0] ^= 0x10, 1);
    cluster.start_node(1);
    cluster.stop();
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
