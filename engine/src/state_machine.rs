//! What an embedder puts on top of a partition's log.

use tidelog_types::{Generation, Index, ReplicatedMs};

/// One committed entry, as a state machine sees it. No-ops and session openings are not shown to it.
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

/// Deterministic state built from a partition's committed entries, in order. Runs on the shard's thread: each
/// call should be short.
pub trait StateMachine: Send {
    /// Takes in one entry. Called once for each data entry in index order, first with the entry behind
    /// [`Self::applied`].
    fn apply(&mut self, entry: Applied<'_>);

    /// A stable view of the state and the index that it stands for, written to `out` in the state machine's own format.
    ///
    /// # Errors
    /// If `out` fails.
    fn snapshot(&mut self, out: &mut dyn std::io::Write) -> std::io::Result<Index>;

    /// Replaces the state by a snapshot's.
    ///
    /// # Errors
    /// If the bytes cannot be read or are not a snapshot of this state machine; the state is then unchanged.
    fn restore(&mut self, snapshot: &mut dyn std::io::Read) -> std::io::Result<Index>;

    /// What it has durably applied by itself, so that a restart does not apply twice. A state machine that
    /// lives in memory keeps the default and sees the log from its start.
    fn applied(&self) -> Index {
        Index::ZERO
    }
}
