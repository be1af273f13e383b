//! The simulated world behind Tidelog's seam: disk, network, clock, faults.
//!
//! The production log, shard, replication and channel code runs on [`SimIo`] as it runs on a ring, in one
//! thread, and a [`World`]'s seed decides everything that a real world would leave open. The same seed and
//! the same code give the same [`World::trace_hash`]. No product crate depends on this one.
//!
//! # What the disk may do
//! - **Power loss** ([`World::crash`]): a write that was completed but not synced, and a write under way,
//!   durable or not, leave any subset of their 512-byte sectors; each sector is old or new, whole. Of several
//!   unsynced writes of a sector, any or none is left. How finely it tears is drawn, from all-or-nothing for
//!   a write to each sector alone. The size of a file that grew is the last synced one or one of those since.
//! - **A completed `Sync`** saves the writes that were completed when it was *submitted*, and the size.
//!   Nothing else does: a later write is at risk. A **completed `WriteDurable`** is safe, and saves no other
//!   write.
//! - **Names**: a created, renamed or removed name is safe after a `SyncDir` of its directory that was
//!   submitted later. Until then each change by itself may be lost. A rename is done or not. A file whose
//!   name is lost is lost; a synced file has no name by that.
//! - **Death of a process** ([`World::kill`]): completed writes stay readable; they are as much at risk as
//!   before. Of operations under way, any part happens.
//! - **A failed write** leaves any subset of its sectors; they may be unsavable. **A short write** leaves a
//!   prefix of pages.
//! - **A failed sync**, alone or as the second half of a durable write, draws one of three: the data is still
//!   only at risk; or it is *doomed*: still read back, saved by no later sync, gone at the next power loss;
//!   or doomed and in part gone at once.
//! - **A failed name operation** was done or not. **No space** changes nothing.
//! - A read beside a write under way sees any mixture of sectors. Operations in flight complete in any order.
//! - Damage ([`World::flip`], [`World::write_raw`], [`World::make_unreadable`], [`DiskFault::Misdirected`])
//!   comes only when ordered.
//!
//! # What the disk may not do
//! Lose or change what is safe, unless ordered. Tear within a sector. Keep a write that was never submitted.
//! Reorder a completed change before a sync behind that sync.
//!
//! # What the network may do
//! Connections are ordered byte streams, cut anywhere, with [`WorldConfig::window_bytes`] on the way in each
//! direction: a receiver that does not read stalls its sender. They break: at a crash (and then perhaps
//! without a word to the other side, which learns by its next packet after the machine is back), by draw with
//! what is under way lost, and after a partition. A partition, one-way or both, stalls streams,
//! acknowledgements included, and lets attempts to connect time out. Between nodes named to
//! [`World::frames`], whole frames vanish or come twice. It may not change bytes, or reorder within a
//! connection.
//!
//! # What clocks may do
//! A node's monotonic clock starts anywhere, drifts, never goes back in a boot, goes on across processes, and
//! starts anew after a power loss. Wall clocks jump. A pause stops a process, not its disk, kernel or clocks.

mod clock;
mod config;
mod disk;
mod disk_ops;
mod fault;
mod file;
mod nemesis;
mod network;
mod node;
mod random;
mod sim_io;
mod state;
mod trace;
mod world;

pub use config::WorldConfig;
pub use fault::{DiskFault, DiskFaults, FAULT_NAMES, FaultPlan, Nemesis, NetFaults, Rate};
pub use file::{SECTOR_BYTES, UNCERTAIN};
pub use node::{Moment, WriteShape};
pub use random::Random;
pub use sim_io::SimIo;
pub use state::FrameLength;
pub use world::{DiskImage, DurableRange, Step, World};
