//! What an embedder puts on top of a partition's log.
//!
//! A state machine is fed the committed entries in order. Now and then it is asked for a snapshot, so that the log
//! behind it may go; after a restart it gets the newest snapshot back and then the entries behind that. What it must
//! keep to: it is a function of the entries (no clocks, no randomness, no iteration order of its own), and each of its
//! calls is short, because appends of all partitions of the shard wait meanwhile.

use std::io::Read;
use tidelog_types::{Generation, Index, ReplicatedMs};

/// One committed entry, as a state machine sees it. No-ops, session openings and log starts are not shown to it.
#[derive(Clone, Copy, Debug)]
pub struct Applied<'a> {
    /// Its index. Indexes rise by one or more from call to call (what is not a data record leaves a gap).
    pub index: Index,
    /// Leadership it was written under.
    pub generation: Generation,
    /// Replicated time: the same on every replica, never backwards. The only clock that `apply` may use.
    pub timestamp: ReplicatedMs,
    /// The record.
    pub payload: &'a [u8],
}

/// A stable view of a state machine, read piece by piece between other work. It must not change by what is applied
/// meanwhile, and end after a finite number of bytes.
pub type SnapshotView = Box<dyn Read + Send>;

/// Deterministic state built from a partition's committed entries, in order. Runs on the shard's thread: each
/// call should be short.
pub trait StateMachine: Send {
    /// Takes in one entry. Called once for each data entry in index order, first with the entry behind
    /// [`Self::applied`], or behind the snapshot restored.
    fn apply(&mut self, entry: Applied<'_>);

    /// A stable view of the state as it is now, in the state machine's own format. This call must be short, whatever the
    /// size of the state: a persistent data structure is cloned, a copy-on-write page table is marked. The shard then
    /// reads the view in pieces of at most 64 KiB, between which it goes on serving appends and calling
    /// [`Self::apply`]; each read should be short as well.
    ///
    /// # Errors
    /// If there can be none now: it is asked again later.
    fn snapshot(&mut self) -> std::io::Result<SnapshotView>;

    /// Replaces the state by a snapshot's, which holds everything up to entry `covered`. The bytes are those that a view
    /// gave, on this node or another, and have passed their checksums.
    ///
    /// # Errors
    /// If they are not a snapshot of this state machine: the node does not open.
    fn restore(&mut self, covered: Index, snapshot: &mut dyn Read) -> std::io::Result<()>;

    /// What it has durably applied by itself, so that a restart does not apply twice. A state machine that
    /// lives in memory keeps the default; it gets the newest snapshot and the entries behind it.
    fn applied(&self) -> Index {
        Index::ZERO
    }
}
