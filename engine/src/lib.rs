//! Tidelog: an embeddable replicated write-ahead log engine.
//!
//! [`Engine`] opens a node and hands out [`Partition`]s to append to and read from; a record that was acknowledged
//! is durable on a quorum. [`shard::Shard`] is the machine behind it, driven turn by turn over any
//! [`tidelog_io::Io`]: a real ring, blocking calls, or a simulated world. The network comes from the crate above
//! through [`transport::Transport`]; a single node needs none.
//!
//! What it deliberately does not know: frames and sockets' addresses beyond the transport, what a payload means,
//! how a record is laid out on disk (the log's matter) and who may lead (the consensus core's).

pub mod adoption;
mod answer;
pub mod append_queue;
mod back_end;
pub mod config;
pub mod directory;
pub mod engine;
pub mod error;
pub mod events;
pub mod formation;
pub mod identity;
mod inbox;
pub mod keep;
mod life_cycle;
pub mod marks;
pub mod options;
mod partition;
pub mod pending;
pub mod pins;
mod reads;
mod recovery;
pub mod request;
mod returning;
pub mod shard;
pub mod snapshot;
pub mod space;
pub mod state_machine;
pub mod transport;
mod waiting;

#[doc(hidden)]
pub use answer::on_this_thread;
pub use append_queue::{AppendQueue, Appended};
pub use directory::{MAP_VERSION, wal_dir};
pub use engine::{Engine, Partition, Read};
pub use error::Error;
pub use events::{Event, Events};
pub use inbox::Commands;
pub use marks::{Leadership, Marks};
pub use options::Options;
pub use pending::Pending;
pub use pins::{Pin, PinFor};
pub use request::{BusyReason, Level, Record, RequestError};
pub use shard::{Shard, Turn};
pub use state_machine::StateMachine;
pub use tidelog_consensus::Role;
pub use tidelog_types::{
    Generation, Index, NodeId, PartitionId, Position, Sequence, SessionId, SessionKey, SessionRef,
};
