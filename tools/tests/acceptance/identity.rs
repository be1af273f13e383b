//! Nodes whose past is not what it was: copied, put back from an older copy, run twice, emptied.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::tidelog;
use crate::node::{Process, free_address};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        let into = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &into);
        } else {
            std::fs::copy(&path, &into).expect("a copy");
        }
    }
}

fn adopt(dir: &Path, args: &[&str]) -> Value {
    let name = dir.to_str().expect("UTF-8");
    let said = tidelog(&[&["node", "adopt", name, "--output", "json"], args].concat());
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
    said.json().remove(0)
}

/// A follower, stopped and started again around a copy of its directory; then records that only it and the leader have. Where the
/// leader, the follower and the third one are, where the copy lies, and the last index.
struct RolledBack {
    leader: u64,
    victim: u64,
    other: u64,
    copy: PathBuf,
    last: u64,
}

fn roll_back(cluster: &mut Cluster) -> RolledBack {
    let leader = cluster.wait_leader(0);
    let (victim, other) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    let data = cluster.place(victim).data.clone();
    let older = data.with_extension("older");
    cluster.take(victim).kill();
    copy(&data, &older);
    cluster.start_node(victim);
    let caught_up = cluster.append_all("before\n", &[])[0];
    cluster.wait_high_water(victim, 0, caught_up);
    cluster.take(other).kill();
    let last = cluster.append_all(&"acknowledged by two\n".repeat(10), &[]).pop().expect("ten");
    cluster.take(victim).kill();
    std::fs::rename(&data, data.with_extension("newest")).expect("a rename");
    std::fs::rename(&older, &data).expect("a rename");
    RolledBack { leader, victim, other, copy: data, last }
}

/// It used to form a quorum with the one that was away, and ten acknowledged records were gone.
#[test]
fn a_directory_put_back_from_an_older_copy() {
    let mut cluster = Cluster::start(&Shape::default());
    let RolledBack { leader, victim, other, copy, last } = roll_back(&mut cluster);
    let config = cluster.place(victim).config_name().to_owned();
    let adopt_it = format!("tidelog node adopt {}", copy.display());
    for _ in 0..2 {
        tidelog(&["serve", "--config", &config]).refused(1, &["copied or restored", &adopt_it]);
    }
    // The third one alone is no quorum with it.
    cluster.start_node(other);
    cluster.wait_leader_among(0, &[leader, other]);
    cluster.wait_high_water(other, 0, last);
    // The directory that it had is all it takes.
    std::fs::remove_dir_all(&copy).expect("it is removed");
    std::fs::rename(copy.with_extension("newest"), &copy).expect("a rename");
    cluster.start_node(victim);
    cluster.wait_high_water(victim, 0, last);
    cluster.stop();
}

/// Whoever adopts an older copy says something that is not so. The leader that knows better counts the node no more, both say so, and the
/// node remembers it.
#[test]
fn an_older_copy_that_was_adopted_is_found_out_by_its_leader() {
    let mut cluster = Cluster::start(&Shape::default());
    let RolledBack { leader, victim, other, copy, last } = roll_back(&mut cluster);
    let seen = adopt(&copy, &["--dry-run"]);
    assert_eq!((&seen["adopted"], &seen["in_place"]), (&false.into(), &false.into()), "{seen}");
    let adopted = adopt(&copy, &[]);
    assert_eq!((&adopted["adopted"], &adopted["node"]), (&true.into(), &victim.into()), "{adopted}");
    assert_eq!(adopt(&copy, &[])["in_place"], true);
    cluster.begin(victim);
    cluster.node(leader).wait_logged(&["this node lacks what it had confirmed", "counted no more"]);
    cluster.node(victim).wait_logged(&["takes no part any more", "neither votes nor confirms"]);
    wait_for("the leader to say so", || {
        let lost = cluster.partition(leader, 0)?["lost"].clone();
        (lost == serde_json::json!([victim])).then_some(())
    });
    let waiting = cluster.status(victim).expect("it answers")["waiting"].clone();
    assert!(waiting.as_str().is_some_and(|why| why.contains("must be replaced")), "{waiting}");
    // With the third one everything is there, and goes on.
    cluster.start_node(other);
    cluster.wait_leader_among(0, &[leader, other]);
    cluster.wait_high_water(other, 0, last);
    assert!(cluster.append_all("after\n", &[])[0] > last);
    // A restart forgets nothing, and it is no voter for the one that is left.
    cluster.take(victim).kill();
    cluster.begin(victim);
    cluster.node(victim).wait_waiting(&["takes no part any more", "must be replaced"]);
    cluster.take(leader).kill();
    assert_eq!(cluster.append("nowhere\n", &["--timeout", "2s"]).code, 1, "one is no quorum");
    cluster.start_node(leader);
    cluster.wait_leader_among(0, &[leader, other]);
    cluster.append_all("again\n", &[]);
}

/// Two processes on two copies of one directory used to be let in both, and both counted.
#[test]
fn a_directory_that_runs_twice() {
    let mut cluster = Cluster::start(&Shape::default());
    cluster.append_all("here\n", &[]);
    let leader = cluster.wait_leader(0);
    let victim = leader % 3 + 1;
    let place = cluster.place(victim).clone();
    let double = place.data.with_extension("double");
    let config = place.config.with_extension("double.toml");
    cluster.take(victim).kill();
    copy(&place.data, &double);
    cluster.start_node(victim);
    let text = std::fs::read_to_string(&place.config).expect("the configuration");
    let own = cluster.address(victim).to_string();
    let text = text.replace(&own, &free_address().to_string());
    let text = text.replace(&format!("{:?}", place.data), &format!("{double:?}"));
    std::fs::write(&config, text).expect("a configuration");
    // It is refused where it lies.
    let name = config.to_str().expect("UTF-8").to_owned();
    tidelog(&["serve", "--config", &name]).refused(1, &["copied or restored"]);
    // And by every peer, should somebody insist.
    adopt(&double, &[]);
    let second = Process::start(&config, std::process::Stdio::piped());
    second.wait_waiting(&["another process of node", "Stop one of them"]);
    for node in [leader, 6 - leader - victim] {
        cluster.node(node).wait_logged(&["another process of node", "live channel"]);
    }
    let more = cluster.append_all(&"on\n".repeat(20), &[]).pop().expect("twenty");
    cluster.wait_high_water(victim, 0, more);
    let status = cluster.status(leader).expect("it answers");
    assert_eq!(status["connected"].as_array().map(Vec::len), Some(2), "{status}");
    second.kill();
    cluster.stop();
}

/// A founder that was emptied before the cluster was formed used to be written into the list of members as it had been, and was refused
/// for ever.
#[test]
fn a_directory_that_was_wiped_before_formation() {
    let mut cluster = Cluster::prepare(&Shape::default());
    cluster.begin(1);
    cluster.begin(2);
    cluster.node(1).wait_waiting(&["not formed yet", "nothing was heard: 3"]);
    cluster.node(2).wait_waiting(&["not formed yet"]);
    cluster.take(2).kill();
    std::fs::remove_dir_all(&cluster.place(2).data).expect("it is removed");
    cluster.node(1).wait_waiting(&["nothing was heard: 2, 3"]);
    cluster.begin(3);
    cluster.begin(2);
    for node in 1..=3 {
        cluster.node(node).wait_ready();
    }
    cluster.wait_leader(0);
    let index = cluster.append_all("here\n", &[])[0];
    cluster.wait_high_water(2, 0, index);
    cluster.stop();
}
