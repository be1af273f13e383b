//! What clients were told, against what the log holds.

use crate::clock::wait_for;
use crate::cluster::Cluster;
use crate::command::{PROGRAM, json_lines};
use base64::Engine as _;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// A record that a client was told about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Told {
    pub(crate) payload: String,
    pub(crate) outcome: String,
    pub(crate) index: Option<u64>,
    pub(crate) generation: Option<u64>,
}

/// `tidelog append` under way: an endless stream of records, as fast as they are acknowledged.
pub(crate) struct Load {
    child: Child,
    stop: Arc<AtomicBool>,
    feeder: JoinHandle<ChildStdin>,
    printed: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    name: String,
}

impl Load {
    /// The record with a sequence, of the load with a name: never twice the same.
    fn payload(name: &str, sequence: u64) -> String {
        format!("{name}:{sequence}:{:0>80}", sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Starts appending records of `name`'s own to partition 0, from sequence 1.
    pub(crate) fn start(cluster: &Cluster, name: &str, args: &[&str]) -> Load {
        let mut child = Command::new(PROGRAM)
            .args(["append", "--cluster", &cluster.contact(), "--output", "json"])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the program starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let mut stdout = child.stdout.take().expect("a pipe");
        let (stop, printed) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, into, of) = (Arc::clone(&stop), Arc::clone(&printed), name.to_owned());
        let feeder = std::thread::spawn(move || {
            // The pipe's bound and the client's are the only brakes.
            for sequence in 1.. {
                let line = format!("{}\n", Load::payload(&of, sequence));
                if stopped.load(Ordering::Relaxed) || stdin.write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
            stdin
        });
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 1 << 16];
            while let Ok(n @ 1..) = stdout.read(&mut piece) {
                into.lock().expect("no panic").extend_from_slice(&piece[..n]);
            }
        });
        Load { child, stop, feeder, printed, reader, name: name.to_owned() }
    }

    /// How many outcomes have been printed, and how many of them are `acked`.
    fn counts(&self) -> (usize, usize) {
        let printed = self.printed.lock().expect("no panic");
        let text = String::from_utf8_lossy(&printed);
        (text.matches('\n').count(), text.matches("\"acked\"").count())
    }

    /// Waits until this many more records have been acknowledged than now.
    pub(crate) fn wait_acked(&self, more: usize) {
        let (_, before) = self.counts();
        wait_for(&format!("{more} more acknowledgements"), || {
            (self.counts().1 >= before + more).then_some(())
        });
    }

    /// Ends the input, waits for the outcome of everything, and returns it.
    pub(crate) fn finish(mut self) -> Vec<Told> {
        self.stop.store(true, Ordering::Relaxed);
        // The feeder may wait for room in the pipe, the client for an answer: both have an end.
        wait_for("the load's feeder", || self.feeder.is_finished().then_some(()));
        drop(self.feeder.join().expect("no panic"));
        wait_for("the load's end", || self.child.try_wait().expect("a child"));
        wait_for("the load's last line", || self.reader.is_finished().then_some(()));
        let printed = String::from_utf8(std::mem::take(&mut *self.printed.lock().expect("no panic")));
        let lines = json_lines(&printed.expect("UTF-8"));
        let told = |(sequence, line): (u64, &Value)| {
            assert_eq!(line["sequence"], sequence, "a line a record, in order");
            Told {
                payload: Load::payload(&self.name, sequence),
                outcome: line["outcome"].as_str().expect("an outcome").to_owned(),
                index: line["index"].as_u64(),
                generation: line["generation"].as_u64(),
            }
        };
        (1..).zip(&lines).map(told).collect()
    }
}

/// A record as a node gives it back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) index: u64,
    pub(crate) generation: u64,
    pub(crate) payload: String,
}

/// Everything that a node has of partition 0 in its own log.
pub(crate) fn read_local(cluster: &Cluster, node: u64) -> Vec<Record> {
    read_local_from(cluster, node, None)
}

/// The same of a log whose beginning was let go: from the index that it is said to begin at.
pub(crate) fn read_local_from(cluster: &Cluster, node: u64, from: Option<u64>) -> Vec<Record> {
    let (node_name, from) = (node.to_string(), from.map(|from| from.to_string()));
    let mut args = vec!["--node", &node_name];
    args.extend(from.iter().flat_map(|from| ["--from", from.as_str()]));
    let said = cluster.tidelog("read", &args);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "node {node}");
    let mut lines = said.json();
    let end = lines.pop().expect("a closing line");
    assert_eq!(end["event"], "end", "{end}");
    let records: Vec<Record> = lines.iter().map(record).collect();
    for pair in records.windows(2) {
        assert!(pair[0].index < pair[1].index, "indexes rise: {pair:?}");
    }
    assert!(
        records.last().is_none_or(|r| Some(r.index) <= end["high_water"].as_u64()),
        "nothing above the mark"
    );
    records
}

fn record(line: &Value) -> Record {
    let payload = base64::engine::general_purpose::STANDARD.decode(line["payload"].as_str().expect("base64"));
    Record {
        index: line["index"].as_u64().expect("an index"),
        generation: line["generation"].as_u64().expect("a generation"),
        payload: String::from_utf8(payload.expect("base64")).expect("UTF-8"),
    }
}

/// Judges a log against all that clients were told of it: what was acknowledged is there once, at its index, in its
/// generation, unchanged; what was refused is not there; what is unknown is there at most once; and nothing else is.
/// Returns how many were acknowledged.
pub(crate) fn judge(log: &[Record], told: &[Told]) -> usize {
    let mut places: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in log {
        places.entry(&record.payload).or_default().push(record);
    }
    let mut acked = 0;
    for one in told {
        let found = places.remove(one.payload.as_str()).unwrap_or_default();
        match (one.outcome.as_str(), found.as_slice()) {
            ("acked", [there]) => {
                acked += 1;
                assert_eq!(
                    (Some(there.index), Some(there.generation)),
                    (one.index, one.generation),
                    "{one:?}"
                );
            }
            ("unknown", [] | [_]) | ("refused", []) => {}
            (_, found) => panic!("{one:?} is in the log {} times: {found:?}", found.len()),
        }
    }
    assert!(
        places.is_empty(),
        "records that nobody appended: {:?}",
        places.keys().take(3).collect::<Vec<_>>()
    );
    acked
}

/// The highest index that was acknowledged.
pub(crate) fn last_acked(told: &[Told]) -> u64 {
    told.iter().filter(|one| one.outcome == "acked").filter_map(|one| one.index).max().unwrap_or(0)
}

/// Waits until every running node has all that was acknowledged, and judges each one's own log. All must be equal up to there.
pub(crate) fn judge_all(cluster: &Cluster, told: &[Told]) -> usize {
    let last = last_acked(told);
    // The mark of a restarted cluster needs a leader of its own generation.
    cluster.wait_leader(0);
    let mut first: Option<Vec<Record>> = None;
    let mut acked = 0;
    for node in cluster.running() {
        cluster.wait_high_water(node, 0, last);
        let log = read_local(cluster, node);
        acked = judge(&log, told);
        let common: Vec<Record> = log.into_iter().filter(|record| record.index <= last).collect();
        match &first {
            Some(first) => assert!(*first == common, "node {node} has another log than the first"),
            None => first = Some(common),
        }
    }
    acked
}
