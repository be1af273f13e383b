//! Placement: which partition a key belongs to, and which nodes hold a partition.
//!
//! A key is hashed to one of a fixed number of partitions ([`partition_of`]), a partition to its replicas through
//! virtual nodes on a [`Ring`]. The result is a [`Placement`], a value of its own: it is made once from the
//! founding members and from then on changed by the few moves that a new or a leaving node needs.
//!
//! What it promises: every node computes the same from the same input, for ever ([`KEY_HASH_VERSION`],
//! [`PLACEMENT_VERSION`]); nodes' loads differ by at most one replica; a change moves about what it must.
//! What it does not know: files, sockets, clocks, who is alive, where a client's connection goes. It fails only on input that
//! cannot be placed, with a [`PlacementError`].

mod key;
mod placement;
mod ring;

pub use key::{KEY_HASH_VERSION, key_hash, partition_of};
pub use placement::{Move, PLACEMENT_VERSION, Placement, PlacementError};
pub use ring::Ring;
