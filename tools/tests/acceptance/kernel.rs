//! The real kernel's file systems under a node that is killed, whose power is cut, whose disk is full or dies.
//!
//! `TIDELOG_TEST_ROUNDS` asks for more rounds than the few that every run makes.

use crate::cluster::{Cluster, Shape};
use crate::command::tidelog;
use crate::history::{Load, Told, judge, judge_all, read_local};
use crate::rig::{FileSystem, Rig, skipped};

/// What is in flight when nobody is left to answer ends soon, and all at once.
const LOAD: [&str; 4] = ["--in-flight", "1024", "--timeout", "2s"];

fn rounds(default: usize) -> usize {
    std::env::var("TIDELOG_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A cluster whose node 1 has its data on the rig's disk; configurations are not synced and lie elsewhere.
fn with_data_on(rig: &Rig, shape: &Shape<'_>) -> Cluster {
    let mut cluster = Cluster::prepare(shape);
    cluster.move_data(1, rig.at.join("n1"));
    cluster
}

fn sound(cluster: &Cluster, node: u64) {
    let said = tidelog(&["wal", "verify", cluster.place(node).data_name()]);
    assert_eq!(said.code, 0, "neither a kill nor a power cut is damage: {said:?}");
}

/// A node of one, killed under load again and again, and every other time with the power of its disk.
fn killed_on(system: FileSystem, test: &str) {
    let rig = match Rig::new(system, 400 << 20) {
        Ok(rig) => rig,
        Err(why) => return skipped(test, &why),
    };
    let mut cluster = with_data_on(&rig, &Shape { nodes: 1, ..Shape::default() });
    cluster.start_all();
    cluster.wait_leader(0);
    let mut told: Vec<Told> = Vec::new();
    for round in 0..rounds(4) {
        let load = Load::start(&cluster, &format!("round{round}"), &LOAD);
        load.wait_acked(300);
        let cut = round % 2 == 1;
        if cut {
            rig.kill().expect("the disk can be told to die");
        }
        cluster.kill_all();
        told.extend(load.finish());
        if cut {
            rig.revive().expect("the disk comes back");
        }
        sound(&cluster, 1);
        cluster.start_all();
        let acked = judge_all(&cluster, &told);
        assert!(acked >= 300 * (round + 1), "{acked} in round {round}");
    }
    cluster.stop();
    sound(&cluster, 1);
}

#[test]
fn killed_and_cut_off_on_ext4_with_a_journal() {
    killed_on(FileSystem::Ext4, "killed_and_cut_off_on_ext4_with_a_journal");
}

#[test]
fn killed_and_cut_off_on_xfs() {
    killed_on(FileSystem::Xfs, "killed_and_cut_off_on_xfs");
}

/// The leader's disk dies under load: the leader says which file and why and acknowledges nothing more, the others take over, and with its
/// disk back it has everything again.
#[test]
fn a_leader_whose_disk_dies() {
    let rig = match Rig::new(FileSystem::Ext4, 256 << 20) {
        Ok(rig) => rig,
        Err(why) => return skipped("a_leader_whose_disk_dies", &why),
    };
    let mut cluster = with_data_on(&rig, &Shape::default());
    cluster.start_all();
    let mut leader = cluster.wait_leader(0);
    for _ in 0..20 {
        if leader == 1 {
            break;
        }
        cluster.take(leader).kill();
        let others: Vec<u64> = cluster.running();
        cluster.wait_leader_among(0, &others);
        cluster.start_node(leader);
        leader = cluster.wait_leader(0);
    }
    if leader != 1 {
        return skipped("a_leader_whose_disk_dies", "node 1 was never elected");
    }
    let load = Load::start(&cluster, "load", &["--in-flight", "64", "--timeout", "10s"]);
    load.wait_acked(300);
    rig.kill().expect("the disk can be told to die");
    // Which file, and why.
    cluster.node(1).wait_logged(&["/n1/shard-0000/", "Input/output error"]);
    let next = cluster.wait_leader_among(0, &[2, 3]);
    assert_ne!(next, 1);
    load.wait_acked(300);
    let (code, log) = cluster.take(1).wait_end();
    assert_eq!(code, Some(1), "without its disk it ends, by name: {log}");
    let last = log.lines().rfind(|line| line.starts_with("error: ")).expect("it says why");
    assert!(last.contains("/n1/") && last.contains("Input/output error"), "{last}");

    rig.revive().expect("the disk comes back");
    let verdict = tidelog(&["wal", "verify", cluster.place(1).data_name()]);
    assert_eq!(verdict.code, 0, "{verdict:?}");
    cluster.start_node(1);
    load.wait_acked(300);
    let told = load.finish();
    assert!(judge_all(&cluster, &told) >= 900);
    cluster.stop();
    for node in [1, 2] {
        let diff = tidelog(&["wal", "diff", cluster.place(node).data_name(), cluster.place(3).data_name()]);
        assert_eq!(diff.code, 0, "node {node}: {diff:?}");
    }
}

/// A disk filled and freed under load, ten times, with room for what the log grows by meanwhile: each time appends are turned away with the reason, a vote is still
/// possible, and writing goes on by itself.
#[test]
fn a_disk_filled_and_freed_ten_times() {
    let rig = match Rig::new(FileSystem::Ext4, 320 << 20) {
        Ok(rig) => rig,
        Err(why) => return skipped("a_disk_filled_and_freed_ten_times", &why),
    };
    let mut cluster = with_data_on(&rig, &Shape { nodes: 1, ..Shape::default() });
    cluster.start_all();
    cluster.wait_leader(0);
    let filler = rig.at.join("filler");
    let mut told: Vec<Told> = Vec::new();
    for round in 0..10 {
        fill(&filler);
        // Until it is turned away; what is left of the prepared segments is filled first.
        let refused = (0..200).find_map(|piece| {
            let lines: Vec<String> =
                (0..4).map(|n| format!("{round}:{piece}:{n}:{}", "z".repeat(500_000))).collect();
            let said = cluster.append(&lines.join("\n"), &["--in-flight", "4", "--timeout", "1s"]);
            let outcomes = said.json();
            told.extend(outcomes.iter().zip(lines).map(|(line, payload)| Told {
                payload,
                outcome: line["outcome"].as_str().expect("an outcome").to_owned(),
                index: line["index"].as_u64(),
                generation: line["generation"].as_u64(),
            }));
            outcomes.into_iter().find(|line| line["outcome"] == "refused")
        });
        let refused = refused.expect("the disk gets full");
        assert!(
            refused["error"].as_str().is_some_and(|why| why.contains("busy: the disk is full")),
            "{refused}"
        );
        if round == 4 {
            // Another life on the full disk: it is elected, which takes a promise and an entry.
            cluster.take(1).kill();
            cluster.start_node(1);
            cluster.wait_leader(0);
        }
        std::fs::remove_file(&filler).expect("it is removed");
        let payload = format!("round {round} is over");
        let said = cluster.append(&payload, &[]);
        assert_eq!(said.code, 0, "writing goes on by itself: {said:?}");
        let line = &said.json()[0];
        let (index, generation) = (line["index"].as_u64(), line["generation"].as_u64());
        told.push(Told { payload, outcome: "acked".into(), index, generation });
    }
    judge_all(&cluster, &told);
    cluster.stop();
    sound(&cluster, 1);
    cluster.start_all();
    cluster.wait_leader(0);
    judge(&read_local(&cluster, 1), &told);
    cluster.stop();
}

/// Takes all the space there is.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    for piece in [1 << 20, 64 << 10, 4 << 10] {
        let bytes = vec![1; piece];
        while file.write_all(&bytes).is_ok() {}
    }
    drop(file.sync_all());
}
