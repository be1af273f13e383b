//! The real kernel's file systems under a node that is killed, whose power is cut, whose disk dies.
//!
//! `TIDELOG_TEST_ROUNDS` asks for more rounds than the few that every run makes.

use crate::cluster::{Cluster, Shape};
use crate::command::tidelog;
use crate::history::{Load, Told, judge_all};
use crate::rig::{FileSystem, Rig, skipped};

/// What is in flight when nobody is left to answer ends soon, and all at once.
const LOAD: [&str; 4] = ["--in-flight", "1024", "--timeout", "2s"];

fn rounds(default: usize) -> usize {
    std::env::var("TIDELOG_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// A cluster whose node 1 has its data on the rig's disk; configurations are not synced and lie elsewhere.
pub(crate) fn with_data_on(rig: &Rig, shape: &Shape<'_>) -> Cluster {
    let mut cluster = Cluster::prepare(shape);
    cluster.move_data(1, rig.at.join("n1"));
    cluster
}

pub(crate) fn sound(cluster: &Cluster, node: u64) {
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
