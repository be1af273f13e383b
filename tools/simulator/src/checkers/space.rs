//! What logs take on their disks, beside what their replicas keep (invariant 25).
//!
//! Counted from the names and lengths of files, and from the entries that the model of the disk has above the low-water marks; of these no more
//! than retention lets a replica keep, or than it holds back for others, which may be everything. A node's own counts are not asked.

use super::disk::Disk;
use crate::profile::Profile;
use tidelog_sim::World;

/// Where a simulated node's log lies.
const LOG: &str = "/data/node/shard-0000/";
/// Segments beyond what is kept: the one that is written, those that are prepared, those whose spans are in memory, and those behind two checkpoints.
const SEGMENTS: u64 = 13;
/// Retention is known to an eighth of a log that was opened again, and looked after once a second.
const KEPT_PART: u64 = 4;
const KEPT_MORE: u64 = 1 << 20;
/// What an entry takes beside its record at most: pages of a batch of its own, and of the seal that proves it.
const FRAME_BYTES: u64 = 16 << 10;

/// What a log may take.
#[derive(Debug)]
pub(crate) struct Sizes {
    segment_bytes: u64,
    /// What a replica keeps at most.
    kept_max: Option<u64>,
    partitions: u64,
}

impl Sizes {
    pub(crate) fn new(profile: &Profile) -> Sizes {
        Sizes {
            segment_bytes: profile.segment_bytes(),
            kept_max: profile.kept_bytes_max(),
            partitions: profile.partitions,
        }
    }

    /// Whether the log of a node is small enough, give or take some segments; if not, why.
    pub(crate) fn check(&self, world: &World, node: u64, disk: &Disk, more: u64) -> Result<(), String> {
        let files = world.files(node);
        let used: u64 = files.iter().filter(|(path, _)| path.starts_with(LOG)).map(|(_, bytes)| bytes).sum();
        let mut kept = 0;
        for partition in 0..self.partitions {
            let most = self.kept_max.map_or(u64::MAX, |most| most + most / KEPT_PART + KEPT_MORE);
            let live: Vec<u64> = disk.log(partition).live().map(|(_, entry)| entry.bytes).collect();
            let mut records = 0;
            for bytes in live.iter().rev().take_while(|bytes| {
                records += **bytes;
                records <= most
            }) {
                kept += bytes + FRAME_BYTES;
            }
        }
        let most = kept + kept / 4 + (SEGMENTS + more) * self.segment_bytes;
        if used <= most {
            return Ok(());
        }
        Err(format!(
            "node {node} has a log of {used} bytes in {} files on its disk; what it keeps is {kept} bytes, so that {most} would do",
            files.iter().filter(|(path, _)| path.starts_with(LOG)).count()
        ))
    }
}
