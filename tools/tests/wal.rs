//! `tidelog wal dump` and `verify`, from outside, on logs written by the log itself and then damaged.

use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tidelog_io::{BackEnd, Io, IoOptions, Wait, open_back_end};
use tidelog_types::{
    EntryMeta, Generation, Incarnation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind,
    ShardId, Ticket,
};
use tidelog_wal::{Lost, Options, Replay, Wal, WalEvent};

struct Nothing;
impl Replay for Nothing {
    fn entry(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn cut(&mut self, _: PartitionId, _: Position) {}
    fn promise(&mut self, _: PartitionId, _: Generation, _: Option<NodeId>) {}
    fn high_water(&mut self, _: PartitionId, _: Index) {}
    fn damaged(&mut self, _: PartitionId, lost: Lost) {
        panic!("nothing was damaged: {lost:?}");
    }
    fn moved(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
}

/// A data directory with one shard's log being written.
struct Writing {
    io: Box<dyn Io>,
    wal: Wal,
    ticket: u64,
    last: [u64; 2],
}

impl Writing {
    fn new(data_dir: &Path) -> Writing {
        let mut io = open_back_end(BackEnd::Blocking, &IoOptions::small()).expect("a back-end");
        let dir = tidelog::wal_dir(data_dir, ShardId(0));
        let options = Options {
            segment_bytes: 16 << 20,
            spares: 1,
            // Long after the test: a seal would prove the last batch.
            seal_after: std::time::Duration::from_secs(3600),
            ..Options::new(dir, NodeId(1), ShardId(0), Incarnation(7))
        };
        let (wal, _, _) = Wal::open(io.as_mut(), options, &mut Nothing).expect("a new log");
        Writing { io, wal, ticket: 0, last: [0; 2] }
    }

    fn ticket(&mut self) -> Ticket {
        self.ticket += 1;
        Ticket(self.ticket)
    }

    fn promise(&mut self, partition: u64) {
        let ticket = self.ticket();
        self.wal
            .append_promise(ticket, PartitionId(partition), Generation(1), Some(NodeId(1)))
            .expect("room");
    }

    fn entry(&mut self, partition: u64, payload: &[u8]) {
        let ticket = self.ticket();
        let last = &mut self.last[usize::try_from(partition).expect("0 or 1")];
        let header = RecordHeader {
            index: Index(*last + 1),
            generation: Generation(1),
            prev_generation: Generation(u64::from(*last > 0)),
            payload_len: u32::try_from(payload.len()).expect("small"),
            payload_crc: crc32c::crc32c(payload),
            ..RecordHeader::new(RecordKind::Data, PartitionId(partition))
        };
        *last += 1;
        self.wal.append_entry(ticket, header, payload).expect("room");
    }

    fn cut(&mut self, partition: u64, keep: u64) {
        let ticket = self.ticket();
        let keep_position = Position { index: Index(keep), generation: Generation(1) };
        self.wal.append_cut(ticket, PartitionId(partition), keep_position).expect("room");
        self.last[usize::try_from(partition).expect("0 or 1")] = keep;
    }

    /// Ends the batch and waits until it is durable.
    fn batch(&mut self) {
        self.wal.flush(self.io.as_mut());
        let (mut completions, mut events) = (Vec::new(), Vec::new());
        while !events
            .iter()
            .any(|e| matches!(e, WalEvent::Durable { ticket, .. } if ticket.get() == self.ticket))
        {
            self.io.poll(Wait::Forever, &mut completions);
            for completion in completions.drain(..) {
                self.wal.complete(self.io.as_mut(), completion, &mut events);
            }
        }
    }
}

/// Three batches: a promise and entries 1 and 2 of partition 0, the same with entry 1 of partition 1, entry 3 of partition 0.
fn three_batches(data_dir: &Path) -> Writing {
    let mut log = Writing::new(data_dir);
    log.promise(0);
    log.entry(0, b"one");
    log.entry(0, &[0xFF; 5000]);
    log.batch();
    log.promise(1);
    log.entry(1, b"other");
    log.batch();
    log.entry(0, &[b'x'; 9000]);
    log.batch();
    log
}

fn tidelog(args: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tidelog")).args(args).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

fn dump(dir: &Path, more: &[&str]) -> Vec<Value> {
    let args = [&["wal", "dump", name(dir), "--output", "json"], more].concat();
    let (code, stdout, stderr) = tidelog(&args);
    assert_eq!((code, stderr.as_str()), (0, ""));
    stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn verify(dir: &Path) -> (i32, Value) {
    let (code, stdout, _) = tidelog(&["wal", "verify", name(dir), "--output", "json"]);
    (code, serde_json::from_str(&stdout).expect("one JSON object"))
}

fn name(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// File, offset and length of the batches that hold something.
fn batches(lines: &[Value]) -> Vec<(PathBuf, u64, u64)> {
    let full = lines.iter().filter(|l| l["event"] == "batch" && l["records"].as_u64() > Some(0));
    full.map(|l| {
        let number = |field: &str| l[field].as_u64().expect("a number");
        (PathBuf::from(l["file"].as_str().expect("a path")), number("offset"), number("bytes"))
    })
    .collect()
}

fn overwrite(file: &Path, offset: u64, bytes: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("the segment");
    file.write_all_at(bytes, offset).expect("a write");
}

#[test]
fn a_whole_log_is_shown_and_sound() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = three_batches(dir.path());
    log.cut(0, 2);
    log.batch();
    log.wal.close(log.io.as_mut());

    let lines = dump(dir.path(), &[]);
    assert_eq!(lines[0]["event"], "segment");
    assert_eq!((&lines[0]["node"], &lines[0]["store"]), (&1.into(), &"0000000000000007".into()));
    let records: Vec<&Value> = lines.iter().filter(|l| l["event"] == "record").collect();
    let kinds: Vec<&str> = records.iter().filter_map(|l| l["kind"].as_str()).collect();
    assert_eq!(kinds[..7], ["promise", "data", "data", "promise", "data", "data", "cut"]);
    assert_eq!(records[1]["payload"], "b25l");
    assert_eq!((&records[2]["index"], &records[2]["payload_bytes"]), (&2.into(), &5000.into()));

    let of_one = dump(dir.path(), &["--partition", "1"]);
    let shown: Vec<&str> = of_one.iter().filter_map(|l| l["event"].as_str()).collect();
    assert_eq!(shown, ["segment", "batch", "record", "record"]);

    let (code, text, _) = tidelog(&["wal", "dump", name(dir.path())]);
    assert_eq!(code, 0);
    for part in
        ["promise at ", "generation 1, vote for node 1", "3 bytes \"one\"", "\\xff", "keeps up to index 2"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }

    let (code, verdict) = verify(dir.path());
    assert_eq!((code, &verdict["outcome"]), (0, &"ok".into()), "{verdict}");
    assert_eq!(verdict["findings"], serde_json::json!([]));
    let partition = &verdict["partitions"][0];
    assert_eq!(
        (&partition["first"], &partition["last"], &partition["promised"]),
        (&1.into(), &2.into(), &1.into())
    );

    // The shard's own directory will do, and several are looked at one after the other.
    let shard = tidelog::wal_dir(dir.path(), ShardId(0));
    let (code, stdout, _) = tidelog(&["wal", "verify", name(&shard), name(dir.path()), "--output", "json"]);
    assert_eq!((code, stdout.lines().count()), (0, 2));
}

#[test]
fn damage_in_the_middle_is_exit_code_1_with_file_offset_partition_and_index() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    let (file, offset, _) = batches(&dump(dir.path(), &[]))[0].clone();
    overwrite(&file, offset + 1000, b"?");

    let (code, verdict) = verify(dir.path());
    assert_eq!((code, &verdict["outcome"]), (1, &"damaged".into()), "{verdict}");
    let finding = &verdict["findings"][0];
    assert_eq!((&finding["verdict"], &finding["offset"]), (&"damaged".into(), &offset.into()), "{verdict}");
    assert_eq!(finding["file"], name(&file));
    let entries = finding["spans"].as_array().expect("spans").iter().find(|s| s["kind"] == "entries");
    let entries = entries.expect("the entries lost are named");
    assert_eq!(
        (&entries["partition"], &entries["first"], &entries["last"]),
        (&0.into(), &1.into(), &2.into())
    );

    let (code, text, stderr) = tidelog(&["wal", "verify", name(dir.path())]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    for part in
        ["damaged: epoch", name(&file), &format!("damaged batch at byte {offset}"), "partition 0 index 1..=2"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    // What is good is still shown.
    let shown = dump(dir.path(), &["--partition", "1"]);
    assert!(shown.iter().any(|l| l["event"] == "record"), "{shown:?}");
    assert!(shown.iter().any(|l| l["event"] == "bad"), "{shown:?}");
}

#[test]
fn a_torn_tail_is_not_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    let (file, offset, bytes) = batches(&dump(dir.path(), &[])).pop().expect("a batch");
    let rest = usize::try_from(bytes - 4096).expect("a size");
    overwrite(&file, offset + 4096, &vec![0; rest]);

    let (code, verdict) = verify(dir.path());
    assert_eq!((code, &verdict["outcome"]), (0, &"ok".into()), "{verdict}");
    assert_eq!(verdict["partitions"][0]["last"], 2, "the torn batch does not count: {verdict}");
    let damaged = verdict["findings"].as_array().expect("findings").iter().any(|f| f["verdict"] == "damaged");
    assert!(!damaged, "{verdict}");
}

#[test]
fn a_damaged_segment_header_is_exit_code_1() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    let (file, _, _) = batches(&dump(dir.path(), &[])).pop().expect("a batch");
    overwrite(&file, 0, &[0x55; 8192]);
    let (code, verdict) = verify(dir.path());
    assert_eq!((code, &verdict["outcome"]), (1, &"damaged".into()), "{verdict}");
    assert!(verdict["stopped"].as_str().is_some_and(|why| why.contains(name(&file))), "{verdict}");
}

#[test]
fn directories_without_a_log() {
    let dir = tempfile::tempdir().expect("a directory");
    for (path, part) in [(name(dir.path()), "holds no log"), ("/nonexistent", "/nonexistent")] {
        for command in ["dump", "verify"] {
            let (code, stdout, stderr) = tidelog(&["wal", command, path]);
            assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
            assert!(stderr.contains(part) && stderr.contains("next: "), "{stderr}");
        }
    }
}
