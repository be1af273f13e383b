//! Directories and configurations that are not this node's, or not whole: each is refused in words, and stays as it is.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::{Said, tidelog};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What lies in a directory: each file's bytes. The lock names its last holder, and is left out.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.file_name().is_none_or(|name| name != "LOCK") {
                files.insert(path.clone(), std::fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

fn serve(cluster: &Cluster, node: u64) -> Said {
    tidelog(&["serve", "--config", cluster.place(node).config_name()])
}

/// The node is refused, twice in a row, and nothing in its directory changes by that.
fn refused_unchanged(cluster: &Cluster, node: u64, parts: &[&str]) {
    let before = content(&cluster.place(node).data);
    for _ in 0..2 {
        let said = serve(cluster, node);
        said.refused(1, parts);
        assert_eq!(said.stdout, "", "it was never ready");
        assert!(content(&cluster.place(node).data) == before, "the directory is left as it is");
    }
}

#[test]
fn a_wrong_configuration() {
    let cluster = Cluster::prepare(&Shape {
        extra: "[replication]\nheartbeat = \"50\"\nheartbaet = \"50ms\"\n",
        ..Shape::default()
    });
    let said = serve(&cluster, 1);
    said.refused(2, &["n1.toml:", "replication.heartbeat", "no unit", "heartbaet", "next: "]);
    assert!(!cluster.place(1).data.exists(), "nothing is made for it");
    tidelog(&["serve", "--config", "/nonexistent/node.toml"])
        .refused(2, &["/nonexistent/node.toml", "next: "]);
    cluster.place(2).edit("[node]\n", "[node]\nshards = 2\n");
    tidelog(&["serve", "--config", cluster.place(2).config_name()]).refused(2, &["node.shards", "n2.toml:"]);
}

#[test]
fn an_address_in_use_and_a_directory_in_use() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let index = cluster.append_all("here\n", &[])[0];
    let said = serve(&cluster, 1);
    said.refused(1, &["in use by another process", cluster.place(1).data_name(), "stop it"]);

    let other = Cluster::prepare(&Shape { nodes: 1, ..Shape::default() });
    other.place(1).edit(&other.address(1).to_string(), &cluster.address(1).to_string());
    serve(&other, 1).refused(1, &["cannot listen", &cluster.address(1).to_string(), "is in use"]);
    // The one that was there first is not touched by either.
    assert_eq!(cluster.append_all("there\n", &[]), [index + 1]);
    cluster.stop();
}

#[test]
fn directories_of_others() {
    let mut cluster = Cluster::start(&Shape::default());
    let index = cluster.append_all("here\n", &[])[0];
    cluster.stop();
    // Another node's.
    let (one, two) = (cluster.place(1).data_name().to_owned(), cluster.place(2).data_name().to_owned());
    cluster.place(1).edit(&format!("{one:?}"), &format!("{two:?}"));
    let before = content(&cluster.place(2).data);
    serve(&cluster, 1).refused(1, &[&two, "belongs to node 2", "node 1"]);
    assert!(content(&cluster.place(2).data) == before);
    cluster.place(1).edit(&format!("{two:?}"), &format!("{one:?}"));
    // Another cluster's, by name, by its number of partitions, by its members.
    for (from, to, parts) in [
        ("\"acceptance\"", "\"elsewhere\"", ["\"acceptance\"", "\"elsewhere\""]),
        ("partitions = 1", "partitions = 2", ["[cluster] partitions = 1", "fixed at creation"]),
        ("{ id = 3,", "{ id = 4,", ["[1, 2, 3]", "[1, 2, 4]"]),
    ] {
        cluster.place(1).edit(from, to);
        refused_unchanged(&cluster, 1, &parts);
        cluster.place(1).edit(to, from);
    }
    // After all that it starts, and has what it had.
    cluster.start_all();
    cluster.wait_leader(0);
    assert!(cluster.append_all("there\n", &[])[0] > index);
    for node in cluster.nodes() {
        cluster.wait_high_water(node, 0, index);
    }
}

/// Same name, formed on its own: told apart by the cluster's random id. The others work on, and say why one is missing.
#[test]
fn a_directory_of_another_cluster_with_the_same_name() {
    let mut other = Cluster::prepare(&Shape::default());
    let mut cluster = Cluster::start(&Shape::default());
    let index = cluster.append_all("here\n", &[])[0];
    other.start_all();
    other.wait_leader(0);
    other.stop();
    cluster.take(3).kill();
    let (own, foreign) = (cluster.place(3).data_name().to_owned(), other.place(3).data_name().to_owned());
    cluster.place(3).edit(&own, &foreign);
    cluster.begin(3);
    let because = ["its data directory belongs to another cluster"];
    cluster.node(3).wait_logged(&because);
    cluster.node(3).wait_waiting(&because);
    for node in [1, 2] {
        cluster.node(node).wait_logged(&because);
    }
    let more = cluster.append_all("there\n", &[]);
    let strange = cluster.partition(3, 0).expect("it answers for itself");
    assert_ne!(strange["role"], "leader");
    cluster.take(3).kill();
    cluster.place(3).edit(&foreign, &own);
    cluster.start_node(3);
    cluster.wait_high_water(3, 0, more[0].max(index));
}

/// An emptied node of a formed cluster is not the voter that it was: it joins nothing, and everyone says why.
#[test]
fn a_wiped_directory() {
    let mut cluster = Cluster::start(&Shape::default());
    let index = cluster.append_all("here\n", &[])[0];
    cluster.take(3).kill();
    let kept = cluster.place(3).data.with_extension("kept");
    std::fs::rename(&cluster.place(3).data, &kept).expect("a rename");
    cluster.begin(3);
    let because = ["that is not the one that is a member", "must not vote"];
    cluster.node(3).wait_waiting(&because);
    for node in [1, 2, 3] {
        cluster.node(node).wait_logged(&because);
    }
    let status = cluster.status(3).expect("it answers");
    assert_eq!((&status["cluster"], &status["partitions"]), (&"".into(), &serde_json::json!([])), "{status}");

    // It is no vote for anything: with one member gone, the remaining one has no quorum.
    let more = cluster.append_all("there\n", &[])[0];
    assert!(more > index);
    cluster.take(2).kill();
    wait_for("node 1 to have no leader", || cluster.partition(1, 0)?["leader"].is_null().then_some(()));
    let said = cluster.append("nowhere\n", &["--timeout", "1s"]);
    assert_eq!(said.code, 1, "{said:?}");
    // The old directory is all it takes.
    cluster.take(3).kill();
    std::fs::remove_dir_all(&cluster.place(3).data).expect("it is removed");
    std::fs::rename(&kept, &cluster.place(3).data).expect("a rename");
    cluster.start_node(3);
    cluster.wait_high_water(3, 0, more);
}

/// An identity without its log must not vote, however often it is tried.
/// One judge: what an opening refuses is not sound for the tools either.
fn tools_say_that_it_is_gone(cluster: &Cluster) {
    for command in ["verify", "repair"] {
        let said = tidelog(&["wal", command, cluster.place(1).data_name()]);
        let told = format!("{}{}", said.stdout, said.stderr);
        assert_eq!((said.code, told.contains("the log is gone")), (1, true), "{said:?}");
    }
}

#[test]
fn a_directory_that_has_lost_its_log() {
    let mut cluster = Cluster::start(&Shape::default());
    cluster.append_all("here\n", &[]);
    cluster.stop();
    let log = cluster.place(1).data.join("shard-0000");
    let kept = cluster.place(1).data.with_extension("kept");
    std::fs::rename(&log, &kept).expect("a rename");
    refused_unchanged(&cluster, 1, &["the log is gone", "must not vote", "Restore"]);
    tools_say_that_it_is_gone(&cluster);
    // The same if only the spares are left.
    std::fs::create_dir_all(&log).expect("a directory");
    for entry in std::fs::read_dir(&kept).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if name.to_string_lossy().starts_with("free-") {
            std::fs::copy(&path, log.join(name)).expect("a copy");
        }
    }
    refused_unchanged(&cluster, 1, &["the log is gone", "must not vote", "Restore"]);
    tools_say_that_it_is_gone(&cluster);
    std::fs::remove_dir_all(&log).expect("it is removed");
    std::fs::rename(&kept, &log).expect("a rename");
    cluster.start_all();
    cluster.wait_leader(0);
}

#[test]
fn a_damaged_a_lost_and_a_foreign_identity() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    cluster.append_all("here\n", &[]);
    cluster.stop();
    let path = cluster.place(1).data.join("identity");
    let sound = std::fs::read(&path).expect("the identity");
    // A byte of each copy, and one copy whole that is another directory's.
    let mut damaged = sound.clone();
    damaged[40] ^= 1;
    damaged[4096 + 50] ^= 1;
    let mut other = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    other.stop();
    let foreign = std::fs::read(other.place(1).data.join("identity")).expect("the identity");
    let mixed = [&sound[..4096], &foreign[4096..]].concat();
    let longer = [sound.as_slice(), &[0; 4096]].concat();
    for (bytes, part) in [
        (damaged.as_slice(), "checksum"),
        (mixed.as_slice(), "say different things"),
        (longer.as_slice(), "12288 bytes"),
        (&sound[..100], "100 bytes"),
        (&[], "0 bytes"),
        (&[7; 4096], "magic"),
    ] {
        std::fs::write(&path, bytes).expect("a file");
        refused_unchanged(&cluster, 1, &["identity", part, "Restore it"]);
    }
    std::fs::remove_file(&path).expect("it is removed");
    refused_unchanged(&cluster, 1, &["no identity file", "not empty", "shard-0000"]);
    // The tools say the same of it.
    let verdict = tidelog(&["wal", "verify", "--output", "json", cluster.place(1).data_name()]);
    assert_eq!((verdict.code, &verdict.json()[0]["outcome"]), (1, &"damaged".into()), "{verdict:?}");
    let why = verdict.json()[0]["identity"].as_str().map(str::to_owned);
    assert!(why.is_some_and(|why| why.contains("no identity file")), "{verdict:?}");
    assert_eq!(tidelog(&["wal", "repair", cluster.place(1).data_name()]).code, 1);
    // Its bytes in another file are a copy of it.
    std::fs::write(&path, &sound).expect("a file");
    refused_unchanged(&cluster, 1, &["copied or restored", "tidelog node adopt"]);
    let said = tidelog(&["node", "adopt", cluster.place(1).data_name()]);
    assert_eq!(said.code, 0, "{said:?}");
    cluster.start_node(1);
    cluster.stop();
}

/// One damaged copy costs nothing but a line in the log: the node starts, and both are whole again before it serves. So does a
/// file from before there were two.
#[test]
fn an_identity_with_one_good_copy() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let mut last = cluster.append_all("here\n", &[])[0];
    cluster.stop();
    let path = cluster.place(1).data.join("identity");
    // All but the place, which is the file's own, and the checksums over it.
    let content = |file: &[u8]| {
        let pages = file.chunks(4096).map(|page| [&page[12..76], &page[96..]].concat());
        pages.collect::<Vec<_>>()
    };
    let struck = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 0x10;
        bytes
    };
    type Spoil<'a> = &'a dyn Fn(Vec<u8>) -> Vec<u8>;
    let spoils: [(Spoil<'_>, &str); 4] = [
        (&|sound| struck(sound, 40), "the first of its two copies is not whole"),
        (&|sound| struck(sound, 4096 + 40), "the second of its two copies is not whole"),
        (&|sound| sound[..5000].to_vec(), "the second of its two copies is not whole"),
        (&|sound| sound[..4096].to_vec(), "it has one copy only"),
    ];
    for (spoil, said) in spoils {
        let sound = std::fs::read(&path).expect("the identity");
        assert_eq!(sound.len(), 8192);
        assert!(sound[..4096] == sound[4096..], "the same page twice");
        let bytes = spoil(sound.clone());
        std::fs::write(&path, &bytes).expect("a file");
        let verdict = tidelog(&["wal", "verify", cluster.place(1).data_name()]);
        let damaged = bytes.len() != 4096;
        assert_eq!(verdict.code, i32::from(damaged), "{said}: {verdict:?}");
        assert_eq!(verdict.stdout.contains(said), damaged, "{verdict:?}");
        cluster.start_node(1);
        cluster.node(1).wait_logged(&[said, "identity"]);
        let mended = std::fs::read(&path).expect("the identity");
        assert!(content(&mended) == content(&sound), "{said}: it is as it was before");
        let next = cluster.append_all("there\n", &[])[0];
        assert!(next > last);
        last = next;
        cluster.stop();
        let verdict = tidelog(&["wal", "verify", cluster.place(1).data_name()]);
        assert_eq!(verdict.code, 0, "{verdict:?}");
    }
}
