//! The demo on a file: its lines, through a session, so that the kill doubles nothing.

use super::check;
use super::ledger::Findings;
use super::report::{Copy, Kill, Outcome};
use super::{Args, Talk};
use crate::commands::Framing;
use crate::commands::append::open_session;
use crate::failure::Failure;
use crate::framing::Records;
use crate::local_cluster::LocalCluster;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidelog::request::Reply;
use tidelog_bench::clock;
use tidelog_bench::latency::Latencies;
use tidelog_net::{Client, ClientOptions, ClientRequest};
use tidelog_types::{PartitionId, Sequence, SessionRef};

const IN_FLIGHT: usize = 1024;
/// Time for one line, retries included: a fail-over fits in easily.
const TIMEOUT: Duration = Duration::from_secs(60);
const PARTITION: PartitionId = PartitionId(0);

/// A file put together again from records: by its bytes, and by its records' own hashes.
struct Assembly {
    records: u64,
    ends_with_newline: bool,
    expected: u64,
    bytes: Sha256,
    record_hashes: Sha256,
}

type Hash = [u8; 32];

impl Assembly {
    /// For a file of `expected` lines.
    fn new(expected: u64, ends_with_newline: bool) -> Assembly {
        Assembly {
            records: 0,
            ends_with_newline,
            expected,
            bytes: Sha256::new(),
            record_hashes: Sha256::new(),
        }
    }

    fn add(&mut self, line: &[u8]) {
        self.records += 1;
        self.bytes.update(line);
        if self.records < self.expected || self.ends_with_newline {
            self.bytes.update(b"\n");
        }
        self.record_hashes.update(hash(line));
    }

    fn finish(self) -> (String, String) {
        (hex(&self.bytes.finalize()), hex(&self.record_hashes.finalize()))
    }
}

fn hash(line: &[u8]) -> Hash {
    Sha256::digest(line).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The file as it was before anything was started.
pub(super) struct Source {
    path: PathBuf,
    lines: u64,
    newline: bool,
    file_hash: String,
    records_hash: String,
}

impl Source {
    pub(super) fn read(path: &Path) -> Result<Source, Failure> {
        let unreadable = |e: &dyn std::fmt::Display| Failure::usage(format!("{}: {e}", path.display()));
        let (lines, newline) = count(path).map_err(|e| unreadable(&e))?;
        if lines == 0 {
            return Err(Failure::usage(format!("{} has no lines to replicate", path.display())));
        }
        let mut source = Assembly::new(lines, newline);
        let mut input = open(path).map_err(|e| unreadable(&e))?;
        while let Some(line) = input.next().map_err(|e| unreadable(&e))? {
            source.add(&line);
        }
        let (file_hash, records_hash) = source.finish();
        Ok(Source { path: path.to_owned(), lines, newline, file_hash, records_hash })
    }
}

fn open(path: &Path) -> std::io::Result<Records<BufReader<File>>> {
    File::open(path).map(|f| Records::new(BufReader::with_capacity(1 << 20, f), Framing::Lines))
}

pub(super) fn run(
    args: &Args,
    source: &Source,
    cluster: &mut LocalCluster,
    talk: &Talk,
) -> Result<Outcome, Failure> {
    let Source { path, lines, newline, file_hash, records_hash } = source;
    let (path, lines, newline) = (path.as_path(), *lines, *newline);
    let unreadable = |e: &dyn std::fmt::Display| Failure::usage(format!("{}: {e}", path.display()));
    talk.say(format!("{}: {lines} lines, sha256 {file_hash}", path.display()));

    let options = ClientOptions {
        timeout: TIMEOUT,
        in_flight_max: IN_FLIGHT,
        ..ClientOptions::new(cluster.addresses().to_vec())
    };
    let client = Client::connect(options).map_err(Failure::failed)?;
    check::leaders(&client, cluster, 1)?;
    let session = open_session(&client, PARTITION, "demo")?;

    let begun = clock::now();
    let mut latencies = Latencies::new(Duration::from_secs(60));
    latencies.begin(begun, clock::wall());
    let mut input = open(path).map_err(|e| unreadable(&e))?;
    let mut bulk = client.bulk();
    let mut sent_at = BTreeMap::new();
    let (mut next, mut acked, mut unknown, mut refused) = (1u64, 0u64, 0u64, 0u64);
    let (mut ended, mut kill, mut told) = (false, None::<Kill>, 0);
    while !ended || bulk.in_flight() > 0 {
        while !ended && bulk.in_flight() < IN_FLIGHT {
            let Some(line) = input.next().map_err(|e| unreadable(&e))? else {
                ended = true;
                break;
            };
            let at = SessionRef { session, sequence: Sequence(next) };
            if bulk.submit(next, ClientRequest::append_once(PARTITION, at, line.into())).is_err() {
                return Err(Failure::failed("the client takes fewer requests than it was told to"));
            }
            sent_at.insert(next, clock::now());
            next += 1;
        }
        for done in bulk.results(true) {
            let now = clock::now();
            let took = sent_at.remove(&done.tag).map_or(Duration::ZERO, |at| now.since(at));
            match done.result {
                Ok(Reply::Appended { .. }) => {
                    acked += 1;
                    latencies.record(now, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), 1);
                    // Over when a line that was sent after the kill is acknowledged.
                    if let Some(kill) = &mut kill {
                        let at = now.since(begun).saturating_sub(Duration::from_millis(kill.at_ms));
                        if at >= took {
                            kill.fail_over_ms
                                .get_or_insert(u64::try_from(at.as_millis()).unwrap_or(u64::MAX));
                        }
                    }
                }
                Err(tidelog_net::ClientError::Unknown { .. }) | Ok(_) => unknown += 1,
                Err(_) => refused += 1,
            }
        }
        if kill.is_none() && !args.no_kill && args.nodes >= 3 && acked >= lines / 2 {
            let node = check::leaders(&client, cluster, 1)?.get(&0).copied();
            let node = node.ok_or_else(|| Failure::failed("partition 0 has no leader"))?;
            let at_ms = u64::try_from(clock::now().since(begun).as_millis()).unwrap_or(u64::MAX);
            cluster.kill(node).map_err(Failure::failed)?;
            talk.say(format!("        node {node}, the leader, killed at line {acked}"));
            kill = Some(Kill { node, partitions: vec![0], at_ms, fail_over_ms: None, restart_ms: None });
        }
        let second = clock::now().since(begun).as_secs();
        if second > told {
            told = second;
            talk.say(format!(
                "{second:>4} s  {acked} of {lines} lines acknowledged, {unknown} unknown, {refused} refused"
            ));
        }
    }
    drop(bulk);
    let seconds = clock::now().since(begun).as_secs_f64();
    if let Some(kill) = &mut kill {
        let restarted = clock::now();
        cluster.restart(kill.node).map_err(Failure::failed)?;
        kill.restart_ms = Some(u64::try_from(clock::now().since(restarted).as_millis()).unwrap_or(u64::MAX));
        // If every line was acknowledged before the kill, there was nothing to be late for.
        if acked == lines {
            kill.fail_over_ms.get_or_insert(0);
        }
    }

    talk.say("\nreading every node back");
    let marks =
        check::status(&client, cluster, 1).ok_or_else(|| Failure::failed("node 1 does not answer"))?;
    let all = marks.partitions.iter().map(|p| p.high_water).max().unwrap_or(0);
    check::wait_for(&client, cluster, "has everything that was acknowledged", |s| {
        s.partitions.iter().all(|p| p.high_water >= all.max(acked))
    })?;
    let mut copies = Vec::new();
    for node in cluster.nodes() {
        let mut copy = Assembly::new(lines, newline);
        check::from_node(&client, node, 0, |record| {
            copy.add(&record.payload);
            Ok(())
        })?;
        let records = copy.records;
        let (sha256, _) = copy.finish();
        copies.push(Copy { node, source: "node", findings: found(records, lines), sha256: Some(sha256) });
    }
    drop(client);
    cluster.stop().map_err(Failure::failed)?;
    for node in cluster.nodes() {
        let logs = check::from_files(cluster, node, talk, hash)?;
        let log = logs.get(&0).cloned().unwrap_or_default();
        let mut hashes = Sha256::new();
        log.values().for_each(|h| hashes.update(h));
        // The files are compared record by record; that every record is the file's makes the file's hash theirs.
        let same = hex(&hashes.finalize()) == *records_hash;
        let sha256 = if same { file_hash.clone() } else { "of other records".into() };
        copies.push(Copy {
            node,
            source: "files",
            findings: found(log.len() as u64, lines),
            sha256: Some(sha256),
        });
    }
    Ok(Outcome {
        nodes: args.nodes,
        partitions: 1,
        seconds,
        payload_bytes: None,
        offered: next - 1,
        acked,
        unknown,
        refused,
        records_per_s: acked as f64 / seconds.max(1e-9),
        acked_outside_fail_over_percent: 100.0 * acked as f64 / lines.max(1) as f64,
        latency_us: latencies.summary(),
        kill,
        copies,
        input_sha256: Some(file_hash.clone()),
        latencies,
    })
}

/// What the number of records tells; what is in them is told by the hash.
fn found(records: u64, lines: u64) -> Findings {
    Findings {
        records,
        missing: lines.saturating_sub(records),
        doubled: records.saturating_sub(lines),
        ..Findings::default()
    }
}

/// Lines of a file, and whether the last one has its end.
fn count(path: &Path) -> std::io::Result<(u64, bool)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let (mut ends, mut last) = (0u64, b'\n');
    loop {
        let n = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..n).filter(|p| !p.is_empty()) else { break };
        ends += piece.iter().filter(|b| **b == b'\n').count() as u64;
        last = piece.last().copied().unwrap_or(last);
    }
    file.seek(SeekFrom::Start(0))?;
    Ok((ends + u64::from(last != b'\n'), last == b'\n'))
}
