//! Tidelog's network: frames, channels, server, client.
//!
//! A node has one long-lived ordered connection to each peer shard, over which all partitions are multiplexed (R6), and
//! takes clients on the same port. [`NetTransport`] implements the engine's transport trait for both on
//! the shard's own ring. [`wire`] is the format, documented in `docs/formats/wire.md`.
//!
//! What it promises: bytes from the network are never trusted and never make it panic; memory per connection and
//! in total is bounded; urgent messages do not queue behind bulk data. It does not retransmit, elect, order
//! or acknowledge: that is the replicas' business.

mod budget;
pub mod client;
mod descriptors;
mod gather;
mod inbound;
mod lanes;
mod open;
mod options;
mod peers;
mod pipe;
mod session;
mod slab;
mod transport;
pub mod wire;

pub use client::{
    Bulk, BulkDone, Client, ClientCore, ClientError, ClientOptions, ClientRequest, Either, Target,
};
pub use open::{open, open_with};
pub use options::{CHANNEL_TIMEOUT_HEARTBEATS, Limits, NetOptions};
pub use transport::NetTransport;
