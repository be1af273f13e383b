//! The replication protocol of one partition: Raft with tickets, without I/O.
//!
//! Nothing here can reach a file, a socket or a clock: input goes in by [`Replica`]'s methods, effects come out as
//! data ([`Effects`]), entries are known by their [`tidelog_types::EntryMeta`] only. The local disk is one more
//! voter whose durable position is reported by ticket. `docs/protocol.md` tells the protocol message by message.
//!
//! A single voter, from its election to its first commit; the loop that reports tickets is what a shard's log does:
//! ```
//! use core::time::Duration;
//! use tidelog_consensus::{Admitted, Config, Effects, Proposal, Replica, Restored};
//! use tidelog_types::{Clock, Index, NodeId, PartitionId, RecordKind};
//!
//! let config = Config {
//!     node: NodeId(1),
//!     partition: PartitionId(0),
//!     voters: vec![NodeId(1)],
//!     election_timeout: Duration::from_millis(500),
//!     stall_timeout: Duration::from_secs(1),
//!     heartbeat: Duration::from_millis(50),
//!     in_flight_messages_max: 64,
//!     in_flight_bytes_max: 4 << 20,
//!     uncommitted_entries_max: 10_000,
//!     uncommitted_bytes_max: 64 << 20,
//!     session_expiry: Duration::from_secs(3600),
//!     seed: 1,
//! };
//! let clock = Clock::default();
//! let mut effects = Effects::default();
//! let mut replica = Replica::new(config, Restored::new(), clock);
//!
//! replica.tick(clock, &mut effects); // a promise
//! while let Some(op) = effects.append.pop() {
//!     replica.durable(clock, op.ticket, &mut effects); // then the no-op that opens the generation
//! }
//! assert!(replica.is_leader());
//!
//! let (session, session_key) = (None, None);
//! let data = Proposal { kind: RecordKind::Data, session, session_key, record_bytes: 128, payload_crc: 0 };
//! let Ok(Admitted::New(entry)) = replica.propose(clock, data, &mut effects) else { panic!("it leads") };
//! assert_eq!(entry.position.index, Index(2));
//! assert_eq!(replica.marks().high_water, Index(1), "not durable yet");
//! let op = effects.append.pop().expect("the entry's step");
//! replica.durable(clock, op.ticket, &mut effects);
//! assert_eq!(effects.committed, Some(Index(2)));
//! ```
mod admit;
mod amnesia;
mod base;
pub mod config;
mod damage;
mod decide;
pub mod effects;
mod election;
mod follower;
mod history;
mod leader;
mod log;
pub mod message;
mod progress;
pub mod quorum;
mod ranges;
mod read;
mod replica;
mod restore;
mod retain;
mod save;
mod session;
mod stall;
mod stamp;
mod ticket;

pub use admit::{Admitted, Proposal, Refused};
pub use base::{Base, BaseError};
pub use config::Config;
pub use damage::{DamagedRange, Harm};
pub use effects::{Effects, LogOp, LogOpKind, Outgoing, ReadOutcome, Trouble};
pub use message::{Append, Asserting, Free, Message, Repair};
pub use read::READS_MAX;
pub use replica::{Marks, Replica, Role};
pub use restore::{RestoreFault, Restored};
pub use retain::{Peer, Retention};
pub use save::LoadError;
pub use session::{Fault, RETRIES_KEPT, RUNS_MAX, SESSIONS_MAX};
pub use stall::{Disk, Health};
