//! What a client is told while a node hangs: a stopped process accepts connections and answers nothing.

use crate::cluster::{Cluster, Shape};
use crate::command::{tidelog, tidelog_with};
use crate::history::{Load, judge_all};
use nix::sys::signal::Signal;
use serde_json::json;

/// Addresses in this order, as `--cluster` takes them.
fn contact(cluster: &Cluster, order: &[u64]) -> String {
    order.iter().map(|node| cluster.address(*node).to_string()).collect::<Vec<_>>().join(",")
}

/// Misunderstood: the first address had three seconds to greet, so a shorter time-out never reached the second.
#[test]
fn a_stopped_first_address_leaves_time_for_the_others() {
    let mut cluster = Cluster::start(&Shape::default());
    let leader = cluster.wait_leader(0);
    let stopped = cluster.nodes().find(|node| *node != leader).expect("a follower");
    let other = cluster.nodes().find(|node| *node != leader && *node != stopped).expect("another");
    cluster.node(stopped).signal(Signal::SIGSTOP);
    for order in [[stopped, leader, other], [stopped, other, leader]] {
        for timeout in ["500ms", "1s", "2s"] {
            let contact = contact(&cluster, &order);
            let args = ["append", "--cluster", &contact, "--timeout", timeout, "--output", "json"];
            // A machine that is busy may take a time-out of 500 ms for itself: one of a few tries has to do.
            let acked = (0..5).any(|_| {
                let said = tidelog_with(&args, b"x\n".to_vec());
                said.code == 0 && said.json()[0]["outcome"] == json!("acked")
            });
            assert!(acked, "{order:?} within {timeout}");
        }
    }
    cluster.node(stopped).signal(Signal::SIGCONT);
}

/// Misunderstood: a client held on to a leader that had stopped for as long as its connection was given. Counted in attempts: each takes
/// half a second at most, and an election less than two.
#[test]
fn a_stopped_leader_costs_a_few_attempts() {
    let mut cluster = Cluster::start(&Shape::default());
    let leader = cluster.wait_leader(0);
    let contact = cluster.contact();
    let lines: String = (0..40).map(|n| format!("record {n}\n")).collect();
    cluster.node(leader).signal(Signal::SIGSTOP);
    let args =
        ["append", "--cluster", &contact, "--in-flight", "1", "--timeout", "500ms", "--output", "json"];
    let said = tidelog_with(&args, lines.into_bytes());
    cluster.node(leader).signal(Signal::SIGCONT);
    let outcomes = said.json();
    assert_eq!(outcomes.len(), 40);
    let lost = outcomes.iter().filter(|o| o["outcome"] != "acked").count();
    assert!(lost <= 8, "{lost} of 40 were not acknowledged: {}", said.stdout);
    for outcome in outcomes.iter().filter(|o| o["outcome"] != "acked") {
        let error = outcome["error"].as_str().expect("why");
        assert!(
            error.contains(&cluster.address(leader).to_string()) && error.contains("500 ms"),
            "it says who was asked, and for how long: {error}"
        );
        assert!(!error.contains("None"), "{error}");
    }
}

/// Misunderstood: with as many plain records under way as may be, nothing asked for the next leader. Those under way are unknown, all
/// behind them go on, and none is in the log twice.
#[test]
fn plain_records_under_way_to_a_stopped_leader_hold_nothing_up() {
    let mut cluster = Cluster::start(&Shape::default());
    let leader = cluster.wait_leader(0);
    let load = Load::start(&cluster, "plain", &["--in-flight", "64", "--timeout", "60s"]);
    load.wait_acked(500);
    cluster.node(leader).signal(Signal::SIGSTOP);
    load.wait_acked(500);
    cluster.node(leader).signal(Signal::SIGCONT);
    load.wait_acked(500);
    let told = load.finish();
    let unknown = told.iter().filter(|one| one.outcome == "unknown").count();
    assert!((1..=128).contains(&unknown), "those under way when it stopped, and when it went on: {unknown}");
    assert!(
        told.iter().all(|one| one.outcome != "refused"),
        "{:?}",
        told.iter().find(|o| o.outcome == "refused")
    );
    assert!(judge_all(&cluster, &told) >= 1500);
}

/// Misunderstood: records of a session may be sent again, and waited for the stopped leader all the same.
#[test]
fn a_session_goes_on_at_the_next_leader() {
    let mut cluster = Cluster::start(&Shape::default());
    let leader = cluster.wait_leader(0);
    let first = cluster.append("1\n2\n", &["--session", "s", "--first-sequence", "1"]);
    assert_eq!(first.code, 0, "{first:?}");
    cluster.node(leader).signal(Signal::SIGSTOP);
    let said = cluster.append("3\n4\n5\n", &["--session", "s", "--first-sequence", "3", "--timeout", "30s"]);
    cluster.node(leader).signal(Signal::SIGCONT);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(tidelog(&["read", "--cluster", &cluster.contact()]).stdout, "1\n2\n3\n4\n5\n");
}

/// Misunderstood: the addresses given were taken for the cluster, and a node that hangs held up what the others had said.
#[test]
fn the_status_of_one_address_shows_every_node_with_one_that_hangs() {
    let mut cluster = Cluster::start(&Shape::default());
    let leader = cluster.wait_leader(0);
    cluster.append_all("a\nb\n", &[]);
    let stopped = cluster.nodes().find(|node| *node != leader).expect("a follower");
    cluster.node(stopped).signal(Signal::SIGSTOP);
    let said = tidelog(&["status", "--cluster", &cluster.address(leader).to_string(), "--output", "json"]);
    cluster.node(stopped).signal(Signal::SIGCONT);
    let lines = said.json();
    assert_eq!((said.code, lines.len()), (1, 3), "{said:?}");
    assert_eq!(lines[0]["node"], json!(leader), "the one given comes first");
    for line in &lines {
        let hangs = line["node"] == json!(stopped);
        assert_eq!(line["reachable"], json!(!hangs), "{line}");
        if hangs {
            assert_eq!(line["address"], json!(cluster.address(stopped).to_string()));
            assert!(line["error"].as_str().expect("why").contains("1000 ms"), "{line}");
        } else {
            let (skew, error) = (&line["clock_skew_ms"], &line["clock_skew_error_ms"]);
            let (skew, error) = (skew.as_i64().expect("a skew"), error.as_u64().expect("an error"));
            assert!(skew.unsigned_abs() <= error, "one machine has one clock: {line}");
            let partition = &line["partitions"][0];
            assert!(partition["lag"].is_u64() && partition["applied"].is_null(), "{partition}");
        }
    }
}

/// Misunderstood: a status was one answer, and too large a one made the node *not reachable*.
#[test]
fn a_status_of_many_partitions_comes_in_pieces() {
    let cluster = Cluster::start(&Shape { nodes: 1, partitions: 600, ..Shape::default() });
    let status = cluster.status(1).expect("it answers");
    let partitions = status["partitions"].as_array().expect("partitions");
    let numbers: Vec<u64> = partitions.iter().filter_map(|p| p["partition"].as_u64()).collect();
    assert!(numbers.into_iter().eq(0..600), "each once, in order");
    assert!(status.get("next_partition").is_none(), "{}", status["next_partition"]);
}
