//! Three nodes doing their work: appends, reads, sessions, status, and a clean stop.

use crate::clock::{Deadline, wait_for};
use crate::cluster::{Cluster, Shape};
use crate::command::{tidelog, tidelog_with};
use crate::history::{Load, judge_all, read_local};
use serde_json::{Value, json};

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().expect("an object").keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

/// What is appended comes back from every node, in the fields that scripts rely on.
#[test]
fn a_round_trip_through_three_nodes() {
    let mut cluster = Cluster::prepare(&Shape { partitions: 2, ..Shape::default() });
    cluster.nodes().for_each(|node| cluster.begin(node));
    for node in cluster.nodes() {
        let ready = cluster.node(node).wait_ready();
        for key in ["event", "node", "addresses", "recovered_ms"] {
            assert!(ready.get(key).is_some(), "{key}: {ready}");
        }
        assert_eq!((&ready["event"], &ready["node"]), (&json!("ready"), &json!(node)));
        assert_eq!(ready["addresses"], json!([cluster.address(node).to_string()]));
    }
    cluster.wait_leader(0);
    cluster.wait_leader(1);

    let said = cluster.append("one\n\nthree \u{fc}\n", &["--partition", "1"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
    let acks = said.json();
    for (sequence, ack) in (1..).zip(&acks) {
        assert_eq!(keys(ack), ["generation", "index", "outcome", "partition", "sequence"], "{ack}");
        assert_eq!(
            (&ack["sequence"], &ack["outcome"], &ack["partition"]),
            (&json!(sequence), &json!("acked"), &json!(1))
        );
    }
    let last = acks[2]["index"].as_u64().expect("an index");

    for node in cluster.nodes() {
        cluster.wait_high_water(node, 1, last);
        let said = cluster.tidelog("read", &["--partition", "1", "--node", &node.to_string()]);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""));
        let lines = said.json();
        for (payload, (ack, line)) in ["b25l", "", "dGhyZWUgw7w="].into_iter().zip(acks.iter().zip(&lines)) {
            assert_eq!(keys(line), ["generation", "index", "payload", "timestamp_ms"]);
            assert_eq!((&line["payload"], &line["index"]), (&json!(payload), &ack["index"]), "node {node}");
            assert_eq!(line["generation"], ack["generation"]);
        }
        assert_eq!(keys(&lines[3]), ["event", "high_water", "staleness_ms"]);
        assert_eq!((&lines[3]["event"], lines.len()), (&json!("end"), 4));
    }

    // The bytes themselves, as lines and with their lengths; from any node the leader answers.
    for node in cluster.nodes() {
        let contact = cluster.address(node).to_string();
        let read = ["read", "--cluster", &contact, "--partition", "1"];
        assert_eq!(tidelog(&read).stdout, "one\n\nthree \u{fc}\n");
        let from = last.to_string();
        let framed = tidelog(&[&read[..], &["--framing", "length", "--from", &from, "--to", &from]].concat());
        assert_eq!(framed.stdout, "\u{8}\0\0\0three \u{fc}");
        let said = tidelog_with(&["append", "--cluster", &contact, "--timeout", "40s"], b"plain\n".to_vec());
        assert_eq!((said.code, said.stderr.as_str()), (0, ""));
        assert_eq!(said.stdout, "1 records to partition 0: 1 acknowledged, 0 unknown, 0 refused\n");
    }

    for node in cluster.nodes() {
        let status = cluster.status(node).expect("it answers");
        for key in ["node", "address", "reachable", "shards", "uptime_ms", "version", "partitions"] {
            assert!(status.get(key).is_some(), "{key}: {status}");
        }
        for partition in status["partitions"].as_array().expect("partitions") {
            for key in [
                "partition",
                "role",
                "leader",
                "generation",
                "high_water",
                "low_water",
                "durable",
                "applied",
                "voters",
                "learners",
                "damaged",
            ] {
                assert!(partition.get(key).is_some(), "{key}: {partition}");
            }
            assert_eq!(partition["voters"], json!([1, 2, 3]));
        }
    }
}

/// What a client asks wrongly is refused at once, in words, with exit code 1.
#[test]
fn wrong_requests_are_refused_in_words() {
    let cluster = Cluster::start(&Shape { nodes: 1, partitions: 2, ..Shape::default() });
    let index = cluster.append_all("here\n", &[])[0];
    let beyond = (index + 1000).to_string();
    cluster
        .tidelog("read", &["--from", &beyond])
        .refused(1, &[&format!("index {beyond} is above the high-water mark")]);
    cluster.tidelog("read", &["--partition", "2"]).refused(1, &["no partition 2 here"]);
    cluster.tidelog("read", &["--node", "9"]).refused(1, &["node 9"]);
    let said = cluster.append("x\n", &["--partition", "2"]);
    assert_eq!((said.code, &said.json()[0]["outcome"]), (1, &json!("refused")), "{said:?}");
    assert!(said.stdout.contains("no partition 2 here"), "{said:?}");
    // `--to` above the mark is no wish for records that are not there.
    assert_eq!(cluster.tidelog("read", &["--to", &beyond]).code, 0);

    let nobody = crate::node::free_address().to_string();
    let said = tidelog_with(
        &["append", "--cluster", &nobody, "--timeout", "300ms", "--output", "json"],
        b"x\n".to_vec(),
    );
    assert_eq!((said.code, &said.json()[0]["outcome"]), (1, &json!("refused")), "{said:?}");
    assert!(said.stdout.contains(&nobody) && said.stdout.contains("refused"), "{said:?}");
    let contact = format!("{nobody},{}", cluster.address(1));
    let said = tidelog(&["status", "--cluster", &contact, "--output", "json"]);
    let lines = said.json();
    assert_eq!((said.code, &lines[0]["reachable"], &lines[1]["reachable"]), (1, &json!(false), &json!(true)));
    assert_eq!(lines[0]["address"], json!(nobody));
}

/// A retry under the same session and sequences gets the same indexes; each record is in the log once.
#[test]
fn a_session_makes_retries_harmless() {
    let mut cluster = Cluster::start(&Shape::default());
    let session = |first: &'static str| ["--session", "import", "--first-sequence", first];
    let first = cluster.append_all("a\nb\nc\n", &session("1"));
    assert_eq!(cluster.append_all("a\nb\nc\n", &session("1")), first);
    assert_eq!(cluster.append_all("c\nd\n", &session("3"))[0], first[2]);
    let gap = cluster.append("x\n", &session("9"));
    assert_eq!((gap.code, &gap.json()[0]["outcome"]), (1, &json!("refused")), "{gap:?}");
    assert!(gap.stdout.contains("next sequence is 5"), "{gap:?}");
    // Without a session, the same payload is another record.
    assert!(cluster.append_all("a\n", &[])[0] > first[2]);

    // Across the loss of a leader.
    let leader = cluster.wait_leader(0);
    cluster.take(leader).kill();
    assert_eq!(cluster.append_all("a\nb\nc\n", &session("1")), first);
    let after = cluster.append_all("d\ne\n", &session("4"));
    cluster.start_node(leader);
    cluster.wait_leader(0);
    for node in cluster.nodes() {
        cluster.wait_high_water(node, 0, after[1]);
        let log: Vec<String> = read_local(&cluster, node).into_iter().map(|record| record.payload).collect();
        assert_eq!(log, ["a", "b", "c", "d", "a", "e"], "node {node}");
    }
}

/// SIGTERM under load: exit code 0, nothing acknowledged is lost, the logs are sound, and the cluster starts again.
#[test]
fn a_clean_stop_under_load_loses_nothing() {
    let mut cluster = Cluster::start(&Shape::default());
    let load = Load::start(&cluster, "first", &["--in-flight", "1024", "--timeout", "2s"]);
    load.wait_acked(500);
    cluster.stop();
    let mut told = load.finish();
    assert!(told.iter().any(|one| one.outcome != "acked"), "the load met the stop");
    let places: Vec<_> = cluster.nodes().map(|node| cluster.place(node).data_name().to_owned()).collect();
    let verify: Vec<&str> =
        ["wal", "verify", "--output", "json"].into_iter().chain(places.iter().map(String::as_str)).collect();
    let said = tidelog(&verify);
    assert_eq!(said.code, 0, "{said:?}");
    for line in said.json() {
        assert_eq!((&line["outcome"], &line["findings"]), (&json!("ok"), &json!([])), "{line}");
    }
    cluster.start_all();
    cluster.wait_leader(0);
    let load = Load::start(&cluster, "second", &["--in-flight", "32", "--timeout", "40s"]);
    load.wait_acked(200);
    told.extend(load.finish());
    assert!(judge_all(&cluster, &told) >= 700);
    cluster.stop();
}

/// The newcomer's command on a real file: every replica has its lines once and in order, though the leader is killed.
#[test]
fn the_demo_with_a_file() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let name = |file: &str| dir.path().join(file).to_str().expect("UTF-8").to_owned();
    let (input, report) = (name("lines"), name("report"));
    let lines: String = (0..3000).map(|n| format!("line {n}\n\n")).collect();
    std::fs::write(&input, lines + "the last one has no end").expect("a file");
    let said = tidelog(&[
        "demo",
        "--input",
        &input,
        "--dir",
        &name("data"),
        "--report",
        &report,
        "--output",
        "json",
    ]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
    let verdict = &said.json()[0];
    assert_eq!((&verdict["verdict"], &verdict["acked"]), (&json!("ok"), &json!(6001)), "{verdict}");
    let copies = verdict["copies"].as_array().expect("copies");
    assert_eq!(copies.len(), 6, "three from the nodes, three from their files");
    assert!(copies.iter().all(|copy| copy["sha256"] == verdict["input_sha256"]), "{verdict}");
    assert!(verdict["kill"]["node"].is_u64(), "{verdict}");
    for file in ["report.json", "latency.hlog", "config.toml"] {
        assert!(std::path::Path::new(&report).join(file).exists(), "{file}");
    }
    let empty = name("empty");
    std::fs::write(&empty, "").expect("a file");
    tidelog(&["demo", "--input", &empty, "--dir", &name("more")]).refused(2, &[&empty, "no lines"]);
}

/// A node that no configuration names: said at once, with those that there are, and not after the time for an answer.
#[test]
fn reading_from_a_node_that_is_not_there() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let soon = Deadline::after(std::time::Duration::from_secs(8));
    let said = cluster.tidelog("read", &["--node", "9"]);
    said.refused(1, &["there is no node 9 in this cluster, its nodes are 1"]);
    assert!(!soon.is_over(), "it did not wait for the ten seconds that an answer may take");
    cluster.stop();
}

/// A read that no majority confirms ends when its own time is up, and says how long it had.
#[test]
fn a_read_has_the_time_that_it_is_given() {
    let mut cluster = Cluster::start(&Shape::default());
    let index = cluster.append_all("here\n", &[])[0];
    cluster.wait_high_water(3, 0, index);
    for node in [1, 2] {
        cluster.take(node).kill();
    }
    let soon = Deadline::after(std::time::Duration::from_secs(8));
    let said = cluster.tidelog("read", &["--timeout", "1s"]);
    said.refused(1, &["it had 1000 ms"]);
    assert!(!soon.is_over(), "it did not wait for the ten seconds of the default");
    let local = cluster.tidelog("read", &["--timeout", "5s", "--node", "3"]);
    // One node's own copy needs no majority, and is found though the addresses before it are dead.
    assert_eq!((local.code, &local.json()[0]["index"]), (0, &index.into()), "{local:?}");
}

/// What retention lets go of goes on the followers as well, while their leader is well and nothing happens to them.
#[test]
fn followers_let_go_of_what_retention_does_not_want() {
    let extra = "[retention]\nbytes = \"64KiB\"\nfollower_bytes = \"64KiB\"\n";
    let mut cluster = Cluster::prepare(&Shape { extra, ..Shape::default() });
    cluster.start_all();
    let leader = cluster.wait_leader(0);
    let lines: Vec<String> = (0..2000).map(|n| format!("{n}:{}", "r".repeat(500))).collect();
    assert_eq!(cluster.append(&lines.join("\n"), &[]).code, 0);
    for node in cluster.nodes() {
        // As far as its log is long enough: a follower keeps its own 64 KiB, and a sample's distance.
        wait_for(&format!("node {node} to let go"), || {
            let low_water = cluster.status(node)?["partitions"][0]["low_water"].as_u64()?;
            (low_water > 1000).then_some(())
        });
    }
    assert_eq!(cluster.wait_leader(0), leader, "and nobody had to be elected for it");
    cluster.stop();
}
