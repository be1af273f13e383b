//! What nodes keep (invariants 2, 10): the low-water mark never goes back, also over crashes, and lies at or below what
//! a durable snapshot or the log start covers; the log start is one that is committed, as the disks have it; a snapshot that a node counts on is whole on its disk.

use super::commit::Commits;
use super::violation::{Verdict, broken, ensure};
use std::collections::BTreeMap;
use std::path::Path;
use tidelog::snapshot::format::{CHUNK_BYTES, Piece, Walk};
use tidelog_consensus::Replica;
use tidelog_sim::World;
use tidelog_types::{Index, Position};

/// Where a simulated node's snapshots lie.
const SNAPSHOTS: &str = "/data/node/snap";

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    low_water: u64,
    snapshot: Position,
    log_start: Index,
}

/// What was seen of every replica.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    seen: BTreeMap<(u64, u64), Seen>,
    /// How often the committed log start of a replica rose.
    pub(crate) later_starts: u64,
}

impl Kept {
    /// What a replica says of itself after a turn.
    pub(crate) fn observe(
        &mut self,
        world: &World,
        node: u64,
        partition: u64,
        replica: &Replica,
        commits: &Commits,
    ) -> Verdict {
        let seen = self.seen.entry((node, partition)).or_default();
        let (marks, snapshot) = (replica.marks(), replica.snapshot());
        let low = marks.low_water;
        let here = || format!("node {node} partition {partition}");
        ensure(2, low.0 >= seen.low_water, || {
            format!("{}: low-water mark went from {} to {low}", here(), seen.low_water)
        })?;
        ensure(10, snapshot >= seen.snapshot, || {
            format!("{}: its snapshot went from {:?} to {snapshot:?}", here(), seen.snapshot)
        })?;
        let log_start = replica.log_start();
        let committed = commits.log_start(partition, marks.high_water.0);
        ensure(10, log_start.0 <= committed, || {
            format!(
                "{}: it takes its log to begin at {log_start}; by what is committed up to {} it begins at {committed}",
                here(),
                marks.high_water
            )
        })?;
        // A life that begins anew has to learn again that its log start was committed.
        let covered = snapshot.index.next().max(Index(commits.log_start(partition, u64::MAX)));
        ensure(10, low <= covered, || {
            format!("{}: it keeps entries from {low} on, {covered} is covered", here())
        })?;
        if snapshot > seen.snapshot {
            whole(world, node, partition, snapshot)
                .or_else(|why| broken(10, format!("{}: its snapshot of {snapshot:?}: {why}", here())))?;
        }
        self.later_starts += u64::from(log_start > seen.log_start);
        *seen = Seen { low_water: low.0, snapshot, log_start: log_start.max(seen.log_start) };
        Ok(())
    }
}

/// Whether the file is durable, name and bytes, and verifies from its first to its last byte.
pub(super) fn whole(world: &World, node: u64, partition: u64, covered: Position) -> Result<(), String> {
    let name = format!("{}-{}.snap", covered.index, covered.generation);
    let path = Path::new(SNAPSHOTS).join(partition.to_string()).join(name);
    let bytes =
        world.durable_contents(node, &path).ok_or_else(|| format!("{} is not durable", path.display()))?;
    let mut walk = Walk::default();
    loop {
        let from = usize::try_from(walk.at()).map_or(bytes.len(), |at| at.min(bytes.len()));
        let to = (from + CHUNK_BYTES).min(bytes.len());
        match walk.take(bytes.get(from..to).unwrap_or_default()).map_err(|error| error.to_string())? {
            Piece::Header(header) if header.covered != covered || header.partition.0 != partition => {
                return Err(format!("it is of {header:?}"));
            }
            Piece::End(_) => return Ok(()),
            Piece::Header(_) | Piece::Chunk(..) => {}
        }
    }
}
