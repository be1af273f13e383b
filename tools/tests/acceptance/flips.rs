//! One byte changed in one structure of one node of three: healed without an operator or refused by name, and never served.
//!
//! Each kind of structure ([`Kind`]) is hit in a node that is down, and in one that runs. One byte is always healed: everything that an opening
//! needs exists twice. What is refused is more than one, at the end of the test; the node gets its bytes back, as from a backup, and must
//! then be whole. Both copies of one segment's header may be hit one after the other: a bad one is written again.
//!
//! `TIDELOG_TEST_ROUNDS` asks for more rounds.

use crate::aim::{Kind, Target, flip, targets};
use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::tidelog;
use crate::history::{Told, judge_all};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The node that is hit.
const HIT: u64 = 2;

/// Bytes that the cluster writes between two checkpoints, at least; so a few megabytes are several of them.
const EXTRA: &str = "[wal]\nsegment_size = \"16MiB\"\nspare_segments = 1\ncheckpoint_every = \"1MiB\"\n\
                     [scrub]\nrate = \"256MiB\"\nevery = \"300ms\"\n";

/// What a flip came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Outcome {
    /// The node started or ran on, and is whole.
    Healed,
    /// It did not start, by name.
    Refused,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

struct Aimed {
    cluster: Cluster,
    told: Vec<Told>,
    random: Random,
    table: BTreeMap<(Kind, &'static str), BTreeMap<String, usize>>,
}

impl Aimed {
    fn new() -> Aimed {
        let cluster = Cluster::start(&Shape { extra: EXTRA, ..Shape::default() });
        Aimed { cluster, told: Vec::new(), random: Random(11), table: BTreeMap::new() }
    }

    /// Appends so many records of a size; all are acknowledged.
    fn append(&mut self, name: &str, records: usize, bytes: usize) {
        let line = |n| format!("{name}:{n}:{}", "x".repeat(bytes));
        let lines: Vec<String> = (0..records).map(line).collect();
        let said = self.cluster.append(&format!("{}\n", lines.join("\n")), &["--in-flight", "4"]);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
        self.told.extend(said.json().iter().zip(lines).map(|(line, payload)| Told {
            payload,
            outcome: line["outcome"].as_str().expect("an outcome").to_owned(),
            index: line["index"].as_u64(),
            generation: line["generation"].as_u64(),
        }));
    }

    fn high_water_everywhere(&self) {
        let last = crate::history::last_acked(&self.told);
        for node in self.cluster.running() {
            self.cluster.wait_high_water(node, 0, last);
        }
    }

    /// Makes summaries, checkpoints and promises in the log of the node: more than a segment, and several lives.
    fn history(&mut self) {
        for life in 0..4 {
            self.append(&format!("life {life}"), 12, 150_000);
            self.append(&format!("small {life}"), 30, 60);
            self.high_water_everywhere();
            let process = self.cluster.take(HIT);
            if life % 2 == 0 {
                process.kill();
            } else {
                process.signal(nix::sys::signal::Signal::SIGTERM);
                assert_eq!(process.wait_end().0, Some(0));
            }
            self.cluster.start_node(HIT);
            self.cluster.wait_leader(0);
        }
        self.high_water_everywhere();
    }

    /// Until the node's log has a structure of this kind: an opening writes a short log again, and its older records are gone then.
    fn ensure(&mut self, kind: Kind) {
        for round in 0..8 {
            if targets(&self.cluster.place(HIT).data).contains_key(&kind) {
                return;
            }
            // Another generation leaves a promise and a no-op; some megabytes leave summaries and checkpoints.
            let leader = self.cluster.wait_leader(0);
            self.cluster.take(leader).kill();
            self.cluster.wait_leader_among(0, &self.cluster.running());
            self.cluster.start_node(leader);
            self.cluster.wait_leader(0);
            self.append(&format!("for a {kind:?} {round} of {}", self.told.len()), 12, 150_000);
            self.high_water_everywhere();
        }
        panic!("the log of node {HIT} gets no {kind:?}");
    }

    /// A structure of this kind, and in it a byte and a bit.
    fn choose(&mut self, kind: Kind) -> (Target, u64, u32) {
        let mut targets = targets(&self.cluster.place(HIT).data);
        let of_kind = targets.remove(&kind).expect("it was ensured");
        // Every other time one of the newest, which an opening reads and the node lives by.
        let from = if self.random.below(2) == 0 { of_kind.len().saturating_sub(3) } else { 0 };
        let at = from + usize::try_from(self.random.below((of_kind.len() - from) as u64)).expect("small");
        let target = of_kind[at].clone();
        let byte = target.bytes.start + self.random.below(target.bytes.end - target.bytes.start);
        let bit = u32::try_from(self.random.below(8)).expect("small");
        (target, byte, bit)
    }

    /// What the node gives to a reader is what was acknowledged, or an error; whether it can give all of it or not.
    fn nothing_changed_is_served(&self) {
        let said = self.cluster.tidelog("read", &["--node", &HIT.to_string()]);
        let places: BTreeMap<u64, &str> =
            self.told.iter().filter_map(|one| Some((one.index?, one.payload.as_str()))).collect();
        use base64::Engine as _;
        for line in said.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let (Some(index), Some(payload)) = (line["index"].as_u64(), line["payload"].as_str()) else {
                continue;
            };
            let payload = base64::engine::general_purpose::STANDARD.decode(payload).expect("base64");
            if let Some(right) = places.get(&index) {
                assert!(payload == right.as_bytes(), "index {index} was served changed");
            }
        }
    }

    fn scrub(&self, field: &str) -> Option<Value> {
        Some(self.cluster.status(HIT)?["scrub"][0][field].clone())
    }

    /// Two passes of the scrubber from now on: what is there now has been read. Then nothing is damaged.
    fn wait_whole(&self) {
        let passes = || self.scrub("passes")?.as_u64();
        let before = wait_for("the scrubber's passes", passes);
        wait_for("two more passes", || (passes()? >= before + 2).then_some(()));
        wait_for("the node to be whole", || (self.cluster.partition(HIT, 0)?["damaged"] == 0).then_some(()));
    }

    fn note(&mut self, kind: Kind, how: &'static str, outcome: String) {
        *self.table.entry((kind, how)).or_default().entry(outcome).or_default() += 1;
    }

    /// Starts the node; it is ready, or has refused with the place in words, and then gets its byte back and starts.
    fn start(&mut self, what: &str, target: &Target, back: &dyn Fn()) -> Outcome {
        self.cluster.begin(HIT);
        match self.cluster.node(HIT).ready_or_ended() {
            Ok(_) => Outcome::Healed,
            Err((code, log)) => {
                drop(self.cluster.take(HIT));
                assert_eq!(code, Some(1), "{what}: {log}");
                assert!(!log.contains("panicked"), "{what}: {log}");
                let why = log.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default();
                let name = target.file.to_str().expect("UTF-8");
                eprintln!("{what}: refused: {why}");
                assert!(why.contains(name), "{what}: the file is not named: {log}");
                assert!(why.contains(&target.at.to_string()), "{what}: the place is not named: {log}");
                back();
                self.cluster.start_node(HIT);
                Outcome::Refused
            }
        }
    }

    /// Hits a node that is down.
    fn stopped(&mut self, kind: Kind, kill: bool) {
        self.ensure(kind);
        let process = self.cluster.take(HIT);
        if kill {
            process.kill();
        } else {
            process.signal(nix::sys::signal::Signal::SIGTERM);
            let (code, log) = process.wait_end();
            assert_eq!(code, Some(0), "{log}");
        }
        let (target, byte, bit) = self.choose(kind);
        flip(&target.file, byte, bit);
        let what = format!("{kind:?} stopped {}@{byte} bit {bit} (at {})", target.file.display(), target.at);
        eprintln!("{what}");
        let verdict = tidelog(&["wal", "verify", self.cluster.place(HIT).data_name()]);
        let named = match kind {
            Kind::IdentityFirst | Kind::IdentitySecond => "identity: ",
            // They are counted: the batch itself is good.
            Kind::FooterOwn | Kind::FooterEcho => "a damaged footer",
            _ => target.file.to_str().expect("UTF-8"),
        };
        assert!(verdict.stdout.contains(named), "{what}: it is named, damage or not: {verdict:?}");
        if matches!(kind, Kind::Payload | Kind::RecordHeader | Kind::NoOp) && verdict.code == 1 {
            for part in [&format!("byte {}", target.at), "partition 0", "index"] {
                assert!(verdict.stdout.contains(part), "{what}: {part}: {verdict:?}");
            }
        }
        let outcome = self.start(&what, &target, &|| flip(&target.file, byte, bit));
        self.nothing_changed_is_served();
        self.settle(&what);
        assert_eq!(outcome, Outcome::Healed, "{what}: something else says what one byte said");
        self.note(kind, "stopped", format!("{outcome:?}, verify said {}", verdict.code));
    }

    /// Hits a node that runs: its scrubber finds and names it. (The identity it does not read.) Then the node is started again.
    fn running(&mut self, kind: Kind) {
        self.ensure(kind);
        let (target, byte, bit) = self.choose(kind);
        let what = format!("{kind:?} running {}@{byte} bit {bit} (at {})", target.file.display(), target.at);
        eprintln!("{what}");
        let repaired = self.scrub("repaired").and_then(|n| n.as_u64());
        let rewritten = self.scrub("rewritten").and_then(|n| n.as_u64());
        flip(&target.file, byte, bit);
        self.nothing_changed_is_served();
        if !matches!(kind, Kind::IdentityFirst | Kind::IdentitySecond) {
            // A file that was given back meanwhile holds nothing that anybody would miss.
            let place = format!("{}: byte {}: ", target.file.display(), target.at);
            wait_for(&format!("the scrubber to name {place}"), || {
                let found = self.cluster.node(HIT).log().contains(&place);
                (found || !target.file.exists()).then_some(())
            });
        }
        self.wait_whole();
        let repaired = self.scrub("repaired").and_then(|n| n.as_u64()) > repaired;
        let rewritten = self.scrub("rewritten").and_then(|n| n.as_u64()) > rewritten;
        if matches!(kind, Kind::SegmentHeader | Kind::SegmentHeaderCopy) && target.file.exists() {
            let file = std::fs::read(&target.file).expect("it is there");
            assert!(rewritten && file[..4096] == file[4096..8192], "{what}: the copies are the same again");
        }
        self.cluster.take(HIT).kill();
        let outcome = self.start(&what, &target, &|| flip(&target.file, byte, bit));
        self.nothing_changed_is_served();
        self.settle(&what);
        let by = match (repaired, rewritten) {
            (true, _) => "repaired, ",
            (false, true) => "written again, ",
            (false, false) => "",
        };
        assert_eq!(outcome, Outcome::Healed, "{what}: something else says what one byte said");
        self.note(kind, "running", format!("{by}{outcome:?}"));
    }

    /// More than one byte at once, of a node that is down: what no single byte does.
    fn stopped_at(&mut self, what: &str, flips: &[(Target, u64)], target: &Target) -> Outcome {
        let turn = || flips.iter().for_each(|(hit, byte)| flip(&hit.file, *byte, 3));
        turn();
        let verdict = tidelog(&["wal", "verify", self.cluster.place(HIT).data_name()]);
        let outcome = self.start(what, target, &turn);
        eprintln!("{what}: verify {}, {outcome:?}", verdict.code);
        self.nothing_changed_is_served();
        self.settle(what);
        if outcome == Outcome::Refused {
            assert_eq!(verdict.code, 1, "{what}: what a node refuses is damage: {verdict:?}");
        }
        outcome
    }

    /// A batch, and both footers that say what it held: it was durable, and nobody can tell what it was.
    fn batch_and_all_that_tells_of_it(&mut self) -> Outcome {
        for n in 0..6 {
            self.append(&format!("alone {n} of {}", self.told.len()), 1, 50);
        }
        let index = self.told[self.told.len() - 4].index.expect("an index");
        self.cluster.wait_high_water(HIT, 0, index + 3);
        self.cluster.take(HIT).kill();
        let data = self.cluster.place(HIT).data.clone();
        let all = targets(&data);
        let batch = crate::damage::batch_of(&data, index);
        let lies = |of: &&Target| of.file == batch.file && of.at >= batch.offset;
        let headers: Vec<&Target> = all[&Kind::BatchHeader].iter().filter(lies).collect();
        let footers: Vec<&Target> = all[&Kind::FooterOwn].iter().filter(lies).collect();
        let hits = [headers[0], footers[0], footers[1]].map(|hit| (hit.clone(), hit.bytes.start + 9));
        let target = headers[0].clone();
        self.stopped_at("a batch and all that tells of it", &hits, &target)
    }

    /// Both checkpoints that headers may name.
    fn both_checkpoints(&mut self) -> Outcome {
        self.cluster.take(HIT).kill();
        let all = targets(&self.cluster.place(HIT).data);
        let ends = &all[&Kind::CheckpointEnd];
        let hits: Vec<(Target, u64)> =
            ends.iter().rev().take(3).map(|end| (end.clone(), end.bytes.start + 50)).collect();
        let target = hits[0].0.clone();
        self.stopped_at("all new checkpoints", &hits, &target)
    }

    /// The node is whole, has everything, and its log is sound; the cluster goes on.
    fn settle(&mut self, what: &str) {
        self.wait_whole();
        self.append(&format!("after {what}"), 1, 40);
        judge_all(&self.cluster, &self.told);
        let verdict = tidelog(&["wal", "verify", self.cluster.place(HIT).data_name()]);
        assert_eq!(verdict.code, 0, "{what}: {verdict:?}");
    }

    fn print(&self) {
        let mut text = String::new();
        for ((kind, how), outcomes) in &self.table {
            writeln!(text, "{:<20} {how:<8} {outcomes:?}", format!("{kind:?}")).expect("a string grows");
        }
        eprintln!("{text}");
    }
}

const KINDS: [Kind; 18] = [
    Kind::IdentityFirst,
    Kind::IdentitySecond,
    Kind::SegmentHeader,
    Kind::SegmentHeaderCopy,
    Kind::BatchHeader,
    Kind::RecordHeader,
    Kind::Payload,
    Kind::FooterOwn,
    Kind::FooterEcho,
    Kind::Promise,
    Kind::NoOp,
    Kind::HighWater,
    Kind::Summary,
    Kind::CheckpointChunk,
    Kind::CheckpointEnd,
    Kind::Opening,
    Kind::LastOfALife,
    Kind::Last,
];

#[test]
fn a_flip_in_every_structure() {
    let rounds = std::env::var("TIDELOG_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let mut aimed = Aimed::new();
    aimed.history();
    for round in 0..rounds {
        for (n, kind) in KINDS.into_iter().enumerate() {
            aimed.stopped(kind, (round + n) % 2 == 0);
            aimed.running(kind);
            aimed.print();
        }
    }
    let outcome = aimed.batch_and_all_that_tells_of_it();
    assert_eq!(outcome, Outcome::Refused, "it was durable, and nobody knows what it held");
    aimed.both_checkpoints();
    aimed.cluster.stop();
    for node in aimed.cluster.nodes() {
        let verdict = tidelog(&["wal", "verify", aimed.cluster.place(node).data_name()]);
        assert_eq!(verdict.code, 0, "node {node}: {verdict:?}");
    }
}
