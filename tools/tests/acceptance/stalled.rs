//! A disk that hangs and reports no error: the file system of a node is frozen under it.
//!
//! It takes root, loop devices and fsfreeze. Where they are not to be had, the test says that it was skipped.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::disk::Disk;
use crate::history::{Load, judge_all};
use crate::rig::{done, skipped};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A frozen file system; thawed when this is dropped, also by a panic, or it could not be unmounted.
struct Frozen(PathBuf);

impl Frozen {
    fn new(at: &Path) -> Result<Frozen, String> {
        done(Command::new("fsfreeze").arg("--freeze").arg(at))?;
        Ok(Frozen(at.to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = done(Command::new("fsfreeze").arg("--unfreeze").arg(&self.0));
    }
}

fn number(status: Option<Value>, key: &str) -> u64 {
    status.and_then(|status| status[key].as_u64()).unwrap_or(0)
}

/// The leader's disk hangs under load: it says so, hands over, and the others acknowledge; with its disk back it catches up and follows.
#[test]
fn a_leader_whose_disk_hangs() {
    let test = "a_leader_whose_disk_hangs";
    let disks: Result<Vec<Disk>, String> = (0..3).map(|_| Disk::new(200 << 20)).collect();
    let disks = match disks {
        Ok(disks) => disks,
        Err(why) => return skipped(test, &why),
    };
    let mut cluster = Cluster::prepare(&Shape::default());
    for (node, disk) in (1..).zip(&disks) {
        cluster.move_data(node, disk.at.join("data"));
    }
    cluster.start_all();
    let leader = cluster.wait_leader(0);
    let load = Load::start(&cluster, "load", &["--in-flight", "64", "--timeout", "10s"]);
    load.wait_acked(300);
    let at = &disks[usize::try_from(leader - 1).expect("a small number")].at;
    let frozen = match Frozen::new(at) {
        Ok(frozen) => frozen,
        Err(why) => return skipped(test, &why),
    };
    cluster.node(leader).wait_logged(&["the disk has stalled", "that node is asked to lead instead"]);
    let others: Vec<u64> = cluster.nodes().filter(|node| *node != leader).collect();
    let next = cluster.wait_leader_among(0, &others);
    load.wait_acked(1000);
    assert!(number(cluster.status(leader), "stalled_ms") > 0, "it says so in its status, and serves that");
    assert_eq!(number(cluster.status(next), "stalled_ms"), 0);

    drop(frozen);
    cluster.node(leader).wait_logged(&["the disk takes writes again"]);
    load.wait_acked(1000);
    let behind = |key| number(cluster.status(leader), key);
    wait_for("its disk to be well again", || {
        (behind("stalled_ms") == 0 && behind("stalls") == 1).then_some(())
    });
    assert!(behind("ranks_behind_ms") > 0, "it ranks behind the others for a while");
    let told = load.finish();
    assert!(judge_all(&cluster, &told) >= 2300);
    assert_eq!(cluster.wait_leader(0), next, "leadership does not come back by itself");
    cluster.stop();
}
