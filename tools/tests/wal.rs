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
    fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
}

/// A data directory with one shard's log being written.
struct Writing {
    io: Box<dyn Io>,
    wal: Wal,
    ticket: u64,
    last: [u64; 2],
    generation: [u64; 2],
    /// Of each partition's last entry.
    last_generation: [u64; 2],
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
        Writing { io, wal, ticket: 0, last: [0; 2], generation: [1; 2], last_generation: [0; 2] }
    }

    fn ticket(&mut self) -> Ticket {
        self.ticket += 1;
        Ticket(self.ticket)
    }

    fn promise(&mut self, partition: u64) {
        let ticket = self.ticket();
        let generation = Generation(self.generation[usize::try_from(partition).expect("0 or 1")]);
        self.wal.append_promise(ticket, PartitionId(partition), generation, Some(NodeId(1))).expect("room");
    }

    fn entry(&mut self, partition: u64, payload: &[u8]) {
        let ticket = self.ticket();
        let at = usize::try_from(partition).expect("0 or 1");
        let generation = self.generation[at];
        let header = RecordHeader {
            index: Index(self.last[at] + 1),
            generation: Generation(generation),
            prev_generation: Generation(std::mem::replace(&mut self.last_generation[at], generation)),
            payload_len: u32::try_from(payload.len()).expect("small"),
            payload_crc: crc32c::crc32c(payload),
            ..RecordHeader::new(RecordKind::Data, PartitionId(partition))
        };
        self.last[at] += 1;
        self.wal.append_entry(ticket, header, payload).expect("room");
    }

    /// Ends it as a clean stop does: hints are written, and a seal proves the last batch.
    fn close(&mut self) {
        self.wal.close(self.io.as_mut());
    }

    fn high_water(&mut self, partition: u64, mark: u64) {
        self.wal.note_high_water(PartitionId(partition), Index(mark));
    }

    fn cut(&mut self, partition: u64, keep: u64) {
        let ticket = self.ticket();
        let keep_position = Position { index: Index(keep), generation: Generation(1) };
        self.wal.append_cut(ticket, PartitionId(partition), keep_position).expect("room");
        let at = usize::try_from(partition).expect("0 or 1");
        (self.last[at], self.last_generation[at]) = (keep, 1);
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
    let (code, stdout, _) = tidelog(&["wal", "verify", name(&dir.join("shard-0000")), "--output", "json"]);
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
    log.close();

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

#[test]
fn a_dump_shows_what_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut log = three_batches(dir.path());
    log.high_water(0, 2);
    log.cut(0, 2);
    log.batch();
    log.close();
    let shown = |args: &[&str]| -> Vec<(String, u64, u64)> {
        let lines = dump(dir.path(), args);
        let records = lines.iter().filter(|line| line["event"] == "record");
        let number = |line: &Value, field: &str| line[field].as_u64().expect("a number");
        let place = |line: &Value| (number(line, "partition"), number(line, "index"));
        records.map(|l| (l["kind"].as_str().expect("a kind").to_owned(), place(l).0, place(l).1)).collect()
    };
    let data = |partition, index| ("data".to_owned(), partition, index);
    assert_eq!(shown(&["--kind", "data", "--from", "2"]), [data(0, 2), data(0, 3)]);
    assert_eq!(shown(&["--kind", "entry", "--to", "1"]), [data(0, 1), data(1, 1)]);
    assert_eq!(shown(&["--partition", "1", "--partition", "0", "--kind", "data"]).len(), 4);
    let cut = ("cut".to_owned(), 0, 2);
    assert_eq!(shown(&["--kind", "cut"]), std::slice::from_ref(&cut));
    assert_eq!(shown(&["--from", "3", "--to", "3"]), [data(0, 3), cut], "what it keeps ends below the range");
    assert_eq!(shown(&["--from", "1", "--to", "2", "--kind", "cut"]), [], "it keeps all of the range");

    let control = dump(dir.path(), &["--kind", "promise", "--kind", "cut", "--kind", "high_water"]);
    let of = |kind: &str| control.iter().find(|l| l["kind"] == kind).expect("it is there").clone();
    assert_eq!((&of("promise")["promised_generation"], &of("promise")["vote_for"]), (&1.into(), &1.into()));
    assert_eq!((&of("cut")["keeps_index"], &of("cut")["keeps_generation"]), (&2.into(), &1.into()));
    assert_eq!(of("high_water")["high_water"], 2);

    let payload = |encoding| dump(dir.path(), &["--to", "1", "--partition", "0", "--payload", encoding]);
    for (encoding, payload_is) in [("hex", "6f6e65".into()), ("base64", "b25l".into()), ("none", Value::Null)]
    {
        let lines = payload(encoding);
        assert_eq!(lines.last().expect("the record")["payload"], payload_is, "{encoding}");
    }
    let text =
        tidelog(&["wal", "dump", name(dir.path()), "--partition", "0", "--to", "1", "--payload", "hex"]).1;
    assert!(text.contains("3 bytes 6f6e65") && !text.contains("one"), "{text}");
    let (code, _, stderr) = tidelog(&["wal", "dump", name(dir.path()), "--kind", "nothing"]);
    assert_eq!(code, 2, "{stderr}");
}

/// A segment's header is there twice: one bad copy is named and loses nothing.
#[test]
fn a_damaged_copy_of_a_header_and_a_damaged_footer_are_notes() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    let (file, offset, bytes) = batches(&dump(dir.path(), &[]))[0].clone();
    overwrite(&file, 4096 + 20, b"?");
    // The footer's spans lie in the batch's last page, before the zeros.
    let whole = std::fs::read(&file).expect("the segment");
    let end = usize::try_from(offset + bytes).expect("a size");
    let footer = (0..end).rev().find(|at| whole[*at..].starts_with(b"TLfo")).expect("a footer");
    overwrite(&file, footer as u64 + 10, &[whole[footer + 10] ^ 1]);
    let (code, verdict) = verify(dir.path());
    assert_eq!((code, &verdict["outcome"]), (0, &"ok".into()), "{verdict}");
    let copy = &verdict["headers_bad"][0];
    assert_eq!((&copy["file"], &copy["offset"]), (&name(&file).into(), &4096.into()), "{verdict}");
    assert_eq!(verdict["footers_bad"], 1, "{verdict}");
    assert_eq!(verdict["notes"].as_array().map(Vec::len), Some(1), "{verdict}");
}

fn diff(a: &Path, b: &Path) -> (i32, Value) {
    let (code, stdout, stderr) = tidelog(&["wal", "diff", name(a), name(b), "--output", "json"]);
    (code, serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout} {stderr}")))
}

/// Two logs of the same first two entries.
fn two_logs() -> [(tempfile::TempDir, Writing); 2] {
    [(), ()].map(|()| {
        let dir = tempfile::tempdir().expect("a directory");
        let mut log = Writing::new(dir.path());
        log.promise(0);
        log.entry(0, b"one");
        log.entry(0, b"two");
        log.batch();
        (dir, log)
    })
}

#[test]
fn logs_that_are_the_same_or_one_the_beginning_of_the_other() {
    let [(a, mut a_log), (b, b_log)] = two_logs();
    a_log.entry(0, b"three");
    a_log.high_water(0, 3);
    a_log.promise(1);
    a_log.entry(1, b"of another partition");
    a_log.batch();
    a_log.close();
    let (code, answer) = diff(a.path(), b.path());
    assert_eq!((code, &answer["outcome"]), (0, &"same".into()), "{answer}");
    let partition = &answer["partitions"][0];
    assert_eq!((&partition["same_entries"], &partition["first_differing"]), (&2.into(), &Value::Null));
    assert_eq!((&partition["a"]["beyond"], &partition["b"]["beyond"]), (&1.into(), &0.into()));
    assert_eq!(
        (&partition["a"]["last"], &partition["a"]["high_water"], &partition["b"]["last"]),
        (&3.into(), &3.into(), &2.into())
    );
    assert_eq!(answer["partitions"][1]["outcome"], "one_sided");
    let (code, text, _) = tidelog(&["wal", "diff", name(a.path()), name(b.path()), "--partition", "0"]);
    assert_eq!(code, 0);
    assert!(text.contains("1 beyond the other's end") && !text.contains("partition 1"), "{text}");
    drop((a_log, b_log));
}

#[test]
fn logs_that_part_where_they_may_and_where_they_must_not() {
    let [(a, mut a_log), (b, mut b_log)] = two_logs();
    // `a` was a leader of generation 1 that nobody heard; the others went on in generation 2.
    a_log.entry(0, b"never committed");
    a_log.batch();
    b_log.generation = [2; 2];
    b_log.promise(0);
    b_log.entry(0, b"committed");
    b_log.entry(0, b"and more");
    b_log.high_water(0, 4);
    b_log.batch();
    b_log.close();
    let (code, answer) = diff(a.path(), b.path());
    assert_eq!((code, &answer["outcome"]), (0, &"parted".into()), "{answer}");
    let differing = &answer["partitions"][0]["first_differing"];
    assert_eq!((&differing["index"], &differing["committed_in"]), (&3.into(), &"b".into()), "{answer}");
    assert_eq!((&differing["a_generation"], &differing["b_generation"]), (&1.into(), &2.into()));

    // Once `a` is sure of its own entry as well, one of the two has lost an acknowledged one.
    a_log.high_water(0, 3);
    a_log.close();
    let (code, answer) = diff(a.path(), b.path());
    assert_eq!((code, &answer["outcome"]), (1, &"contradiction".into()), "{answer}");
    assert_eq!(answer["partitions"][0]["first_differing"]["committed_in"], "both", "{answer}");

    // A cut takes the difference away: `b` has what `a` has not, and nothing else.
    let [(a, mut a_log), _] = two_logs();
    a_log.entry(0, b"never committed");
    a_log.batch();
    a_log.cut(0, 2);
    a_log.batch();
    let (code, answer) = diff(a.path(), b.path());
    assert_eq!((code, &answer["outcome"]), (0, &"same".into()), "{answer}");
}

#[test]
fn one_index_and_generation_with_two_contents_is_a_contradiction_and_damage_is_said() {
    let [(a, mut a_log), (b, mut b_log)] = two_logs();
    a_log.entry(0, b"this");
    a_log.batch();
    b_log.entry(0, b"that");
    b_log.batch();
    let (code, answer) = diff(a.path(), b.path());
    assert_eq!((code, &answer["outcome"]), (1, &"contradiction".into()), "{answer}");
    let why = answer["partitions"][0]["why"].as_str().expect("it says why");
    assert!(why.contains("two contents"), "{why}");

    let [(a, a_log), (b, mut b_log)] = two_logs();
    b_log.entry(0, b"more");
    b_log.batch();
    b_log.entry(0, b"and more");
    b_log.batch();
    let (file, offset, _) = batches(&dump(b.path(), &[]))[1].clone();
    overwrite(&file, offset + 200, b"?");
    let (code, answer) = diff(a.path(), b.path());
    assert_eq!((code, &answer["outcome"]), (1, &"damaged".into()), "{answer}");
    assert!(answer["b_damaged"].as_str().is_some_and(|why| why.contains(name(&file))), "{answer}");
    drop(a_log);
}

/// A whole data directory of a formed cluster of so many nodes, each partition on all of them.
fn with_identity(data_dir: &Path, replication: u64) {
    use tidelog::formation::{Formed, Member};
    let members =
        (1..=replication).map(|node| Member { node: NodeId(node), incarnation: Incarnation(6 + node) });
    let identity = tidelog::identity::Identity {
        cluster_name: "test".into(),
        node: NodeId(1),
        incarnation: Incarnation(7),
        shard_count: 1,
        partitions: 2,
        replication: u32::try_from(replication).expect("few"),
        key_hash: tidelog::MAP_VERSION,
        formed: Some(Formed { cluster: tidelog_types::ClusterId(5), members: members.collect() }),
        has_log: true,
        place: None,
        barred: None,
    };
    std::fs::write(data_dir.join("identity"), identity.encode_file()).expect("a file");
}

/// Every file below a directory, with its bytes.
fn files(dir: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let mut files = std::collections::BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let bytes = std::fs::read(&path).expect("a file");
                files.insert(path, bytes);
            }
        }
    }
    files
}

fn repair(dir: &Path, more: &[&str]) -> (i32, Value) {
    let args = [&["wal", "repair", name(dir), "--output", "json"], more].concat();
    let (code, stdout, stderr) = tidelog(&args);
    (code, serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout} {stderr}")))
}

fn steps(plan: &Value) -> Vec<&str> {
    plan["steps"].as_array().expect("steps").iter().filter_map(|step| step["step"].as_str()).collect()
}

/// The torn end of the third batch, as a cut of the power leaves it.
fn tear(dir: &Path) -> PathBuf {
    let (file, offset, bytes) = batches(&dump(dir, &[])).pop().expect("a batch");
    overwrite(&file, offset + 4096, &vec![0; usize::try_from(bytes - 4096).expect("a size")]);
    file
}

#[test]
fn a_repair_plans_backs_up_and_cuts_the_tail_of_an_only_copy() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    with_identity(dir.path(), 1);
    let file = tear(dir.path());
    overwrite(&file, 4096 + 20, b"?");
    let unfinished = file.with_file_name("free-9.tmp");
    std::fs::write(&unfinished, vec![0; 8192]).expect("a file");
    let before = files(dir.path());

    let (code, plan) = repair(dir.path(), &[]);
    assert_eq!((code, &plan["outcome"]), (0, &"planned".into()), "{plan}");
    assert_eq!(steps(&plan), ["rewrite_header", "remove_file", "cut_tail"], "{plan}");
    assert!(files(dir.path()) == before, "a plan changes nothing");

    let elsewhere = tempfile::tempdir().expect("a directory");
    let (code, done) = repair(dir.path(), &["--apply", "--backup", name(elsewhere.path())]);
    assert_eq!((code, &done["outcome"]), (0, &"applied".into()), "{done}");
    let backup = PathBuf::from(done["backup"].as_str().expect("a path"));
    assert_eq!(backup, elsewhere.path().join("repair-0001"));
    for path in [&file, &unfinished] {
        let kept = backup.join("shard-0000").join(path.file_name().expect("a name"));
        assert!(std::fs::read(kept).expect("a copy") == before[path], "{}", path.display());
    }
    assert!(!unfinished.exists());
    let (code, verdict) = verify(dir.path());
    assert_eq!(
        (code, &verdict["findings"], &verdict["headers_bad"]),
        (0, &Value::Array(vec![]), &Value::Array(vec![]))
    );
    assert_eq!(
        (&verdict["partitions"][0]["last"], &verdict["partitions"][1]["last"]),
        (&2.into(), &1.into())
    );
    let (code, again) = repair(dir.path(), &["--apply"]);
    assert_eq!((code, &again["outcome"], &again["backup"]), (0, &"sound".into(), &Value::Null), "{again}");
}

/// A voter among several may have promised or acknowledged what a tail held: its own start judges it, with its peers.
#[test]
fn a_repair_leaves_the_tail_of_a_voter_among_several() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    with_identity(dir.path(), 3);
    tear(dir.path());
    let (code, plan) = repair(dir.path(), &["--apply"]);
    assert_eq!((code, &plan["outcome"]), (0, &"sound".into()), "{plan}");
}

#[test]
fn a_repair_never_drops_what_may_be_committed() {
    for (voters, part) in [(1, "the only copy"), (3, "the other voters of these partitions have it")] {
        let dir = tempfile::tempdir().expect("a directory");
        drop(three_batches(dir.path()));
        with_identity(dir.path(), voters);
        let (file, offset, _) = batches(&dump(dir.path(), &[]))[0].clone();
        overwrite(&file, offset + 1000, b"?");
        tear(dir.path());
        std::fs::write(file.with_file_name("free-9.tmp"), vec![0; 8192]).expect("a file");
        let before = files(dir.path());
        let (code, plan) = repair(dir.path(), &["--apply"]);
        assert_eq!((code, &plan["outcome"], steps(&plan).len()), (1, &"damaged".into(), 0), "{plan}");
        let left = &plan["left"][0];
        assert!(left["what"].as_str().is_some_and(|what| what.contains(name(&file))), "{plan}");
        assert!(left["what"].as_str().is_some_and(|what| what.contains("partition 0 index 1..=2")), "{plan}");
        assert!(left["next"].as_str().is_some_and(|next| next.contains(part)), "{plan}");
        let after: std::collections::BTreeMap<_, _> =
            files(dir.path()).into_iter().filter(|(path, _)| !path.ends_with("LOCK")).collect();
        assert!(after == before, "nothing is changed");
    }
}

#[test]
fn a_repair_wants_an_identity_and_a_stopped_node() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(three_batches(dir.path()));
    let (code, plan) = repair(dir.path(), &[]);
    assert_eq!((code, &plan["left"][0]["verdict"]), (1, &"identity".into()), "{plan}");
    with_identity(dir.path(), 1);
    let lock = tidelog_io::lock_directory(dir.path()).expect("nobody has it");
    let (code, stdout, stderr) = tidelog(&["wal", "repair", name(dir.path()), "--apply"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("is in use") && stderr.contains("stop the node first"), "{stderr}");
    assert_eq!(repair(dir.path(), &[]).0, 0, "a plan may be asked for");
    drop(lock);
    assert_eq!(repair(dir.path(), &["--apply"]).0, 0);
}
