//! Processes that are killed or stopped in the middle of their work.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::tidelog;
use crate::history::{Load, judge_all};
use nix::sys::signal::Signal;

/// What is in flight when nobody is left to answer ends soon, and all at once.
const LOAD: [&str; 4] = ["--in-flight", "1024", "--timeout", "2s"];

/// How often all nodes are killed; `TIDELOG_TEST_ROUNDS` asks for more.
fn rounds() -> usize {
    std::env::var("TIDELOG_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// All three at once, again and again: nothing acknowledged is missing, doubled or changed.
#[test]
fn all_nodes_killed_at_once_under_load() {
    let mut cluster = Cluster::start(&Shape::default());
    let mut told = Vec::new();
    for round in 0..rounds() {
        let load = Load::start(&cluster, &format!("round{round}"), &LOAD);
        load.wait_acked(1000);
        cluster.kill_all();
        told.extend(load.finish());
        // What the files hold is judged before a new life touches them.
        for node in cluster.nodes() {
            let said = tidelog(&["wal", "verify", cluster.place(node).data_name()]);
            assert_eq!(said.code, 0, "a killed process is not damage: {said:?}");
        }
        cluster.start_all();
        let acked = judge_all(&cluster, &told);
        assert!(acked >= 1000 * (round + 1), "{acked}");
    }
    cluster.stop();
}

/// The leader alone: what is acknowledged before and after is in every log, the unknown at most once, the refused never.
#[test]
fn the_leader_killed_under_load() {
    let mut cluster = Cluster::start(&Shape::default());
    let load = Load::start(&cluster, "load", &["--in-flight", "64", "--timeout", "10s"]);
    load.wait_acked(500);
    let leader = cluster.wait_leader(0);
    cluster.take(leader).kill();
    load.wait_acked(500);
    let next = cluster.wait_leader(0);
    assert_ne!(next, leader);
    cluster.start_node(leader);
    load.wait_acked(500);
    let told = load.finish();
    assert!(judge_all(&cluster, &told) >= 1500);
    cluster.stop();
}

/// A leader that sleeps longer than the election time-out and wakes up acknowledges nothing that is not in the log.
#[test]
fn a_leader_that_sleeps_acknowledges_nothing_stale() {
    let mut cluster = Cluster::start(&Shape::default());
    let leader = cluster.wait_leader(0);
    let others: Vec<u64> = cluster.nodes().filter(|node| *node != leader).collect();
    let load = Load::start(&cluster, "load", &["--in-flight", "64", "--timeout", "10s"]);
    let generation = |cluster: &Cluster, node| {
        cluster.partition(node, 0).and_then(|p| p["generation"].as_u64()).unwrap_or(0)
    };
    let before = generation(&cluster, leader);
    load.wait_acked(500);
    cluster.node(leader).signal(Signal::SIGSTOP);
    let next = cluster.wait_leader_among(0, &others);
    assert!(generation(&cluster, next) > before);
    load.wait_acked(500);
    cluster.node(leader).signal(Signal::SIGCONT);
    wait_for("the sleeper to follow", || {
        let view = cluster.partition(leader, 0)?;
        (view["role"] == "follower" && view["generation"].as_u64() > Some(before)).then_some(())
    });
    load.wait_acked(500);
    let told = load.finish();
    assert!(judge_all(&cluster, &told) >= 1500);
    cluster.stop();
}

/// Asked to stop while it opens its log, a node ends at once, with exit code 0, and has lost nothing.
#[test]
fn stopped_while_it_starts() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let load = Load::start(&cluster, "load", &LOAD);
    load.wait_acked(2000);
    cluster.kill_all();
    let told = load.finish();
    for _ in 0..4 {
        cluster.begin(1);
        cluster.node(1).wait_logged(&["opening"]);
        cluster.node(1).signal(Signal::SIGTERM);
        let (code, log) = cluster.take(1).wait_end();
        assert_eq!(code, Some(0), "{log}");
    }
    cluster.start_node(1);
    assert!(judge_all(&cluster, &told) >= 2000);
    let log = cluster.node(1).log();
    assert!(log.contains("leader=1") && !log.contains("NodeId("), "nodes are plain numbers: {log}");
    cluster.stop();
}
