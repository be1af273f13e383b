//! Positions in a log and in a WAL.

use crate::ids::id;

id!(
    /// Position in a partition's log: dense, agreed by all replicas, from 1. 0 is "before the first entry".
    Index(u64)
);
id!(
    /// Monotonic leadership number of a partition (Raft: term). 0 is "before any leader".
    Generation(u64)
);
id!(
    /// Byte position in one shard's WAL. Never leaves the node.
    Lsn(u64)
);

impl Index {
    /// Before the first entry.
    pub const ZERO: Index = Index(0);
    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Index {
        Index(self.0 + 1)
    }
    /// The index before this one; 0 stays 0.
    #[must_use]
    pub const fn prev(self) -> Index {
        Index(self.0.saturating_sub(1))
    }
    /// This index and `count` more.
    #[must_use]
    pub const fn plus(self, count: u64) -> Index {
        Index(self.0 + count)
    }
}

impl Generation {
    /// Before any leader.
    pub const ZERO: Generation = Generation(0);
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Generation {
        Generation(self.0 + 1)
    }
}

impl Lsn {
    /// The position `bytes` further on.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Lsn {
        Lsn(self.0 + bytes)
    }
}

/// An entry's full name: invariant 3 says that it fixes the entry's bytes and everything before it.
///
/// Ordered as votes compare logs: by generation, then by index.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position {
    /// Where.
    pub index: Index,
    /// Written under which leadership.
    pub generation: Generation,
}

impl Position {
    /// Before the first entry.
    pub const ZERO: Position = Position { index: Index::ZERO, generation: Generation::ZERO };
    /// Names the entry at `index` of `generation`.
    pub const fn new(index: Index, generation: Generation) -> Position {
        Position { index, generation }
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        (self.generation, self.index).cmp(&(other.generation, other.index))
    }
}
