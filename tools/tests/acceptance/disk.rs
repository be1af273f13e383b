//! Real disks: one that is full, and one whose flushes are counted.
//!
//! Both want a file system of their own, which takes root and a loop device. Where that is not to be had, a test says that it was
//! skipped, on stderr, past the test harness.

use crate::cluster::{Cluster, Shape};
use crate::history::{judge, judge_all, read_local};
use crate::rig::{done, skipped};
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A small file system of its own: an ext4 in a file, or a tmpfs.
pub(crate) struct Disk {
    pub(crate) at: PathBuf,
    _dir: TempDir,
}

impl Disk {
    pub(crate) fn new(bytes: u64) -> Result<Disk, String> {
        let dir = TempDir::new().map_err(|e| e.to_string())?;
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        std::fs::create_dir(&at).map_err(|e| e.to_string())?;
        let file = std::fs::File::create(&image).map_err(|e| e.to_string())?;
        file.set_len(bytes).map_err(|e| e.to_string())?;
        done(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        done(Command::new("mount").args(["-o", "loop"]).args([&image, &at]))?;
        Ok(Disk { at, _dir: dir })
    }

    /// In memory. A write there can find no space though the file has its length.
    pub(crate) fn tmpfs(bytes: u64) -> Result<Disk, String> {
        let dir = TempDir::new().map_err(|e| e.to_string())?;
        let at = dir.path().join("disk");
        std::fs::create_dir(&at).map_err(|e| e.to_string())?;
        let size = format!("size={bytes}");
        done(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at))?;
        Ok(Disk { at, _dir: dir })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = done(Command::new("umount").arg("--lazy").arg(&self.at));
    }
}

/// How many flushes the device under a path has done; none if it does not count them.
fn flushes(path: &Path) -> Option<u64> {
    let device = std::fs::metadata(path).ok()?.dev();
    // As the kernel's own macros split it.
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xf_ff00));
    let stats = std::fs::read_to_string("/proc/diskstats").ok()?;
    let words = stats.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut words =
        words.filter(|w| w.first() == Some(&&*major.to_string()) && w.get(1) == Some(&&*minor.to_string()));
    words.next()?.get(18)?.parse().ok()
}

/// A full disk turns appends away in words, and takes them again when there is space; what was acknowledged stays.
#[test]
fn a_full_disk() {
    match Disk::new(150 << 20) {
        Ok(disk) => filled_and_freed(&disk),
        Err(why) => skipped("a_full_disk", &why),
    }
}

/// The same where no device lies below.
#[test]
fn a_full_tmpfs() {
    match Disk::tmpfs(150 << 20) {
        Ok(disk) => filled_and_freed(&disk),
        Err(why) => skipped("a_full_tmpfs", &why),
    }
}

fn filled_and_freed(disk: &Disk) {
    let filler = disk.at.join("filler");
    std::fs::write(&filler, vec![1; 40 << 20]).expect("room for it");
    let mut cluster = Cluster::prepare_in(&disk.at, &Shape { nodes: 1, ..Shape::default() });
    cluster.start_all();
    cluster.wait_leader(0);

    // More than there is room for.
    let mut told = Vec::new();
    let mut append = |cluster: &Cluster, round: usize, records: usize| {
        let line = |n| format!("{round}:{n}:{}", "z".repeat(500_000));
        let lines: Vec<String> = (0..records).map(line).collect();
        let said = cluster.append(&lines.join("\n"), &["--in-flight", "16", "--timeout", "1s"]);
        let outcomes = said.json();
        assert_eq!(outcomes.len(), records);
        told.extend(outcomes.iter().zip(lines).map(|(line, payload)| crate::history::Told {
            payload,
            outcome: line["outcome"].as_str().expect("an outcome").to_owned(),
            index: line["index"].as_u64(),
            generation: line["generation"].as_u64(),
        }));
        outcomes
    };
    let outcomes = append(&cluster, 0, 250);
    let count =
        |outcomes: &[Value], outcome: &str| outcomes.iter().filter(|line| line["outcome"] == outcome).count();
    assert!(count(&outcomes, "acked") > 50, "most of it fits");
    let refused = outcomes.iter().find(|line| line["outcome"] == "refused").expect("the disk is full");
    assert!(refused["error"].as_str().is_some_and(|why| why.contains("busy: the disk is full")), "{refused}");
    cluster.node(1).wait_logged(&["appends are refused until there is"]);
    assert!(cluster.node(1).is_running() && cluster.status(1).is_some(), "it stays up");
    assert!(!read_local(&cluster, 1).is_empty(), "and is read from");

    // A new process on the full disk is refused appends just as well, and loses nothing.
    cluster.take(1).kill();
    cluster.start_node(1);
    assert_eq!(count(&append(&cluster, 1, 1), "acked"), 0);

    // Space comes back: so do appends, by themselves.
    std::fs::remove_file(&filler).expect("it is removed");
    let said = cluster.append("small\n", &[]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(count(&append(&cluster, 2, 10), "acked") > 5);
    let small = crate::history::Told {
        payload: "small".into(),
        outcome: "acked".into(),
        index: said.json()[0]["index"].as_u64(),
        generation: said.json()[0]["generation"].as_u64(),
    };
    told.push(small);
    judge_all(&cluster, &told);
    cluster.take(1).kill();
    cluster.start_node(1);
    judge(&read_local(&cluster, 1), &told);
    cluster.stop();
}

/// An acknowledgement waits for the disk: a writer that has one record on its way at a time costs a flush a record.
#[test]
fn each_acknowledgement_costs_a_flush() {
    const RECORDS: u64 = 60;
    // A device that nobody else writes to, if it can be had.
    let disk = Disk::new(100 << 20);
    let dir = TempDir::new().expect("a temporary directory");
    let at = match &disk {
        Ok(disk) => disk.at.as_path(),
        Err(why) => {
            skipped("the device of its own in each_acknowledgement_costs_a_flush", why);
            dir.path()
        }
    };
    let Some(0..) = flushes(at) else {
        return skipped(
            "each_acknowledgement_costs_a_flush",
            "the device's flushes are not counted in /proc/diskstats",
        );
    };
    let mut cluster = Cluster::prepare_in(at, &Shape { nodes: 1, ..Shape::default() });
    cluster.start_all();
    cluster.wait_leader(0);
    let lines: String = (0..RECORDS).map(|n| format!("{n}\n")).collect();
    let before = flushes(at).expect("it counted before");
    cluster.append_all(&lines, &["--in-flight", "1"]);
    let done = flushes(at).expect("it counted before") - before;
    if done == 0 {
        return skipped(
            "each_acknowledgement_costs_a_flush",
            "the device has no volatile cache, or writes through it",
        );
    }
    assert!(done >= RECORDS, "{done} flushes for {RECORDS} records, one at a time");
    cluster.stop();
}
