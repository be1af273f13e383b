//! Disks that are full, of nodes of a real cluster, on the real kernel's file systems.
//!
//! Where a file system of one's own is not to be had, a test says that it was skipped.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::{tidelog, tidelog_with};
use crate::disk::Disk;
use crate::history::{Told, judge, judge_all, last_acked, read_local_from};
use crate::kernel::{sound, with_data_on};
use crate::rig::{FileSystem, Rig, skipped};
use std::path::Path;

/// Appends records that nobody else appends, for a second at most; what became of each.
fn append(cluster: &Cluster, name: &str, records: usize, bytes: usize) -> Vec<(Told, String)> {
    let lines: Vec<String> = (0..records).map(|n| format!("{name}:{n}:{}", "z".repeat(bytes))).collect();
    let said = cluster.append(&lines.join("\n"), &["--in-flight", "4", "--timeout", "1s"]);
    let told = |(line, payload): (&serde_json::Value, String)| {
        let told = Told {
            payload,
            outcome: line["outcome"].as_str().expect("an outcome").to_owned(),
            index: line["index"].as_u64(),
            generation: line["generation"].as_u64(),
        };
        (told, line["error"].as_str().unwrap_or_default().to_owned())
    };
    said.json().iter().zip(lines).map(told).collect()
}

/// One record more, for which a cluster without a leader or without space has time.
fn one_more(cluster: &Cluster, payload: &str) -> Told {
    one_more_by(&cluster.contact(), payload)
}

fn one_more_by(contact: &str, payload: &str) -> Told {
    let args = ["append", "--cluster", contact, "--output", "json", "--timeout", "40s"];
    let said = tidelog_with(&args, payload.as_bytes().to_vec());
    assert_eq!(said.code, 0, "writing goes on by itself: {said:?}");
    let line = &said.json()[0];
    let (index, generation) = (line["index"].as_u64(), line["generation"].as_u64());
    Told { payload: payload.to_owned(), outcome: "acked".into(), index, generation }
}

/// Takes all the space there is.
fn fill(path: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).expect("a file");
    for piece in [1 << 20, 64 << 10, 4 << 10] {
        let bytes = vec![1; piece];
        while file.write_all(&bytes).is_ok() {}
    }
    drop(file.sync_all());
}

/// Bytes of the segments and spares of a node.
fn log_bytes(cluster: &Cluster, node: u64) -> u64 {
    let files = std::fs::read_dir(cluster.place(node).data.join("shard-0000")).expect("a directory");
    // A file may be renamed meanwhile.
    files
        .filter_map(|file| file.ok()?.metadata().ok())
        .filter(|file| file.is_file())
        .map(|file| file.len())
        .sum()
}

/// Appends until it is turned away with the reason; what is left of the prepared segments is filled first.
fn until_refused(cluster: &Cluster, name: &str, told: &mut Vec<Told>) {
    let refused = (0..200).find_map(|piece| {
        let outcomes = append(cluster, &format!("{name}:{piece}"), 4, 500_000);
        told.extend(outcomes.iter().map(|(told, _)| told.clone()));
        outcomes.into_iter().find(|(told, _)| told.outcome == "refused")
    });
    let (_, why) = refused.expect("the disk gets full");
    assert!(why.contains("busy: the disk is full"), "{why}");
}

/// A disk of 256 MiB filled and freed under load, ten times: each time appends are turned away with the reason, a vote is still possible,
/// and writing goes on by itself.
///
/// Each round fills the segments that are prepared when the filler comes, and they stay: 80 MiB after the first round, 16 more after each,
/// 240 with the tenth and another life between, which is all of such a disk. So half-way the node gets a `[retention]` for a while, as an
/// operator would do, until its log is small again. What it lets go has been read back before.
#[test]
fn a_disk_filled_and_freed_ten_times() {
    const BIG: &str = "[retention]\nbytes = \"0B\"\n";
    const LITTLE: &str = "[retention]\nbytes = \"16MiB\"\n";
    let rig = match Rig::new(FileSystem::Ext4, 256 << 20) {
        Ok(rig) => rig,
        Err(why) => return skipped("a_disk_filled_and_freed_ten_times", &why),
    };
    let wal = "[wal]\nsegment_size = \"16MiB\"\nspare_segments = 1\ncheckpoint_every = \"4MiB\"\n";
    let extra = format!("{wal}{BIG}");
    let mut cluster = with_data_on(&rig, &Shape { nodes: 1, extra: &extra, ..Shape::default() });
    cluster.start_all();
    cluster.wait_leader(0);
    let filler = rig.at.join("filler");
    let mut told: Vec<Told> = Vec::new();
    let mut sizes = Vec::new();
    let mut start = 1;
    for round in 0..10 {
        fill(&filler);
        until_refused(&cluster, &format!("{round}"), &mut told);
        if round == 4 {
            // Another life on the full disk: it is elected, which takes a promise and an entry.
            cluster.take(1).kill();
            cluster.start_node(1);
            cluster.wait_leader(0);
        }
        std::fs::remove_file(&filler).expect("it is removed");
        told.push(one_more(&cluster, &format!("round {round} is over")));
        sizes.push(log_bytes(&cluster, 1) >> 20);
        if round == 4 {
            judge_all(&cluster, &told);
            cluster.stop();
            cluster.place(1).edit(BIG, LITTLE);
            cluster.start_all();
            cluster.wait_leader(0);
            let mut piece = 0;
            wait_for("the log to be small", || {
                piece += 1;
                told.extend(
                    append(&cluster, &format!("small {piece}"), 4, 250_000).into_iter().map(|(told, _)| told),
                );
                (log_bytes(&cluster, 1) <= 96 << 20).then_some(())
            });
            sizes.push(log_bytes(&cluster, 1) >> 20);
            cluster.stop();
            cluster.place(1).edit(LITTLE, BIG);
            cluster.start_all();
            cluster.wait_leader(0);
            start = log_start(&cluster);
            assert!(start > 1 && start <= last_acked(&told), "its beginning was let go, and not all of it");
        }
    }
    eprintln!("the log, in MiB, round by round: {sizes:?}");
    judge_from(&cluster, start, &told);
    cluster.stop();
    sound(&cluster, 1);
    cluster.start_all();
    cluster.wait_leader(0);
    judge_from(&cluster, start, &told);
    cluster.stop();
}

/// Where the log of node 1 begins.
fn log_start(cluster: &Cluster) -> u64 {
    cluster.partition(1, 0).expect("it answers")["log_start"].as_u64().expect("an index")
}

/// Judges node 1's log from where it begins; what lies before was let go on purpose.
fn judge_from(cluster: &Cluster, start: u64, told: &[Told]) {
    assert_eq!(log_start(cluster), start, "nothing was let go since");
    let log = read_local_from(cluster, 1, Some(start));
    let told: Vec<Told> =
        told.iter().filter(|one| one.index.is_none_or(|index| index >= start)).cloned().collect();
    judge(&log, &told);
}

/// Nodes with full disks vote: with one, and then two of three disks full the leader is killed, and another one emerges. Appends go on
/// as soon as a quorum has space, by themselves.
#[test]
fn nodes_with_full_disks_vote() {
    let mut disks = Vec::new();
    for _ in 0..3 {
        match Disk::new(170 << 20) {
            Ok(disk) => disks.push(disk),
            Err(why) => return skipped("nodes_with_full_disks_vote", &why),
        }
    }
    let mut cluster = Cluster::prepare(&Shape::default());
    let filler = |node: u64| disks[usize::try_from(node).expect("small") - 1].at.join("filler");
    for (node, disk) in (1..).zip(&disks) {
        cluster.move_data(node, disk.at.join("data"));
    }
    cluster.start_all();
    let leader = cluster.wait_leader(0);
    let mut others: Vec<u64> = cluster.nodes().filter(|node| *node != leader).collect();
    let (full, free) = (others.remove(0), others.remove(0));
    let mut told = vec![one_more(&cluster, "first")];

    // A follower's disk gets full; the other two go on.
    fill(&filler(full));
    fill_log(&mut cluster, full, "one is full", &mut told);
    told.push(one_more(&cluster, "one of three is full"));
    // A client that knows only the full one is shown the way.
    told.push(one_more_by(&cluster.address(full).to_string(), "asked of the full one"));

    // The leader is gone: the full one votes for the one that has everything.
    let before = generation(&cluster, free);
    cluster.take(leader).kill();
    assert_eq!(cluster.wait_leader_among(0, &[full, free]), free, "the full one lacks entries");
    assert!(generation(&cluster, full) > before, "it has promised a new generation");
    cluster.start_node(leader);
    told.push(one_more(&cluster, "a quorum has space again"));

    // Two full ones, of which the second has everything.
    let second = leader;
    fill(&filler(second));
    cluster.wait_high_water(second, 0, last_acked(&told));
    fill_log(&mut cluster, second, "two are full", &mut told);
    let acked = last_acked(&told);
    let before = generation(&cluster, second);
    cluster.take(free).kill();
    let last = |cluster: &Cluster, node| cluster.partition(node, 0)?["last"].as_u64();
    assert!(last(&cluster, second) >= Some(acked), "what was acknowledged with its help it has");
    wait_for("one of two full nodes to lead", || {
        let leads = cluster.partition(second, 0)?;
        let follows = cluster.partition(full, 0)?;
        let same =
            leads["generation"] == follows["generation"] && leads["generation"].as_u64() > Some(before);
        (leads["role"] == "leader" && same && follows["leader"] == second).then_some(())
    });
    let outcomes = append(&cluster, "nowhere", 1, 10);
    assert_ne!(outcomes[0].0.outcome, "acked", "no quorum has space: {outcomes:?}");
    told.extend(outcomes.into_iter().map(|(told, _)| told));

    // Space for both: they go on without being told, and the third finds its place.
    for node in [full, second] {
        std::fs::remove_file(filler(node)).expect("it is removed");
    }
    told.push(one_more(&cluster, "both have space"));
    cluster.start_node(free);
    judge_all(&cluster, &told);
    cluster.stop();
    for node in cluster.nodes() {
        let verdict = tidelog(&["wal", "verify", cluster.place(node).data_name()]);
        assert_eq!(verdict.code, 0, "node {node}: {verdict:?}");
    }
}

fn generation(cluster: &Cluster, node: u64) -> u64 {
    let generation = || cluster.partition(node, 0)?["generation"].as_u64();
    wait_for("a node's generation", generation)
}

/// Appends until a node has used up what it had prepared, and says so.
fn fill_log(cluster: &mut Cluster, node: u64, name: &str, told: &mut Vec<Told>) {
    const SAYS: &str = "no space for another segment";
    let times = |cluster: &mut Cluster| cluster.node(node).log().matches(SAYS).count();
    let before = times(cluster);
    let mut piece = 0;
    wait_for("a node to be full", || {
        piece += 1;
        told.extend(
            append(cluster, &format!("{name} {piece}"), 4, 500_000).into_iter().map(|(told, _)| told),
        );
        (times(cluster) > before).then_some(())
    });
}
