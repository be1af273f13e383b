//! The words of Tidelog as types: ids, positions, clocks, records, limits. Nothing here does I/O.
//!
//! Every other crate depends on this one and it depends on none of them. What it promises: two different
//! things never share a bare `u64`, a record has exactly one encoding, and a decoder given arbitrary bytes
//! returns a typed error.

mod checksum;
mod clock;
mod hash;
mod ids;
pub mod limits;
mod position;
pub mod record;

pub use checksum::{checksum, copy_and_check};
pub use clock::{Clock, Monotonic, ReplicatedMs, WallMs};
pub use hash::{FixedMap, FixedSet, FixedState};
pub use ids::{
    ClusterId, Incarnation, NodeId, PartitionId, Sequence, SessionId, SessionKey, ShardId, Ticket,
};
pub use position::{Generation, Index, Lsn, Position};
pub use record::{EntryMeta, RecordError, RecordHeader, RecordKind, SessionRef};
