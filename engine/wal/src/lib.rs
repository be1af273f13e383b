//! One shard's write-ahead log, for many partitions.
//!
//! What it is: the files of one shard (segments), the batches in them, and what runs them. Replicas hand over
//! entries, promises and cuts with tickets; the log puts them into a growing batch, makes one batch after the
//! other durable by one aligned write each, and reports tickets. It finds entries by (partition, index), serves
//! recent ones from memory and older ones from the disk, and reads itself back when it is opened.
//!
//! What it promises: a ticket is reported durable only when its batch and all batches before it are on stable
//! storage; a record is copied once and its bytes are those that travel to peers; what is opened again is the state
//! after some batch at or behind everything that was reported; what was proven durable and is not whole is never
//! taken for a torn tail. After a failed write or sync nothing more is reported ([`WalEvent::Fenced`]).
//!
//! What it does not know: elections, quorums, peers, clients, state machines. It does no I/O but through the
//! [`tidelog_io::Io`] that it is handed, on whose ring it shares with others by its token class.
//!
//! The bytes are described in `docs/formats`; `format` has their encoders and decoders, `inspect` reads them
//! without changing anything.
//!
//! ```
//! use tidelog_wal::{Lost, Options, Replay, Wal, WalEvent};
//! use tidelog_io::{Io, Wait};
//! use tidelog_types::{
//!     EntryMeta, Generation, Incarnation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind,
//!     ShardId, Ticket,
//! };
//!
//! struct Nothing;
//! impl Replay for Nothing {
//!     fn entry(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
//!     fn cut(&mut self, _: PartitionId, _: Position) {}
//!     fn promise(&mut self, _: PartitionId, _: Generation, _: Option<NodeId>) {}
//!     fn high_water(&mut self, _: PartitionId, _: Index) {}
//!     fn damaged(&mut self, _: PartitionId, lost: Lost) { panic!("{lost:?}") }
//!     fn moved(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
//!     fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
//! }
//!
//! let world = tidelog_sim::World::new(1); // or a real back-end
//! let mut io = world.node(1);
//! let options = Options::new("/data/wal", NodeId(1), ShardId(0), Incarnation(7));
//! let (mut wal, report, _others) = Wal::open(&mut io, options, &mut Nothing)?;
//! assert!(report.fresh);
//!
//! let partition = PartitionId(0);
//! wal.append_promise(Ticket(1), partition, Generation(1), None)?;
//! let header = RecordHeader {
//!     index: Index(1),
//!     generation: Generation(1),
//!     payload_len: 5,
//!     payload_crc: crc32c::crc32c(b"hello"),
//!     ..RecordHeader::new(RecordKind::Data, partition)
//! };
//! wal.append_entry(Ticket(2), header, b"hello")?;
//! wal.flush(&mut io);
//!
//! let (mut completions, mut events) = (Vec::new(), Vec::new());
//! while events.is_empty() {
//!     io.poll(Wait::Forever, &mut completions);
//!     for completion in completions.drain(..) {
//!         wal.complete(&mut io, completion, &mut events);
//!     }
//! }
//! assert!(matches!(events[0], WalEvent::Durable { ticket: Ticket(2), .. }));
//! wal.close(&mut io);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod aged;
mod append;
mod background;
mod blocks;
mod cache;
mod chain;
mod checkpoint;
mod disk;
mod error;
mod evidence;
mod files;
pub mod format;
mod frozen;
mod growing;
mod heads;
pub mod inspect;
mod logs;
mod lookup;
mod moving;
mod names;
mod options;
mod places;
mod quarantine;
mod reads;
mod reclaim;
mod recovery;
mod replay;
mod reports;
mod rescan;
mod rescue;
mod restart;
mod resum;
mod rewrite;
mod room;
mod salvage;
mod saving;
mod scan;
mod scrub;
mod segments;
mod serve;
mod shape;
mod spans;
mod summary;
mod survey;
mod wal;
mod walk;
mod window;

pub use error::{BadWhy, Busy, BusyWhy, Finding, OpenError, ReadError, Verdict, WalError};
pub use options::{BATCH_BYTES_MIN, CHECKPOINT_SHARE, IN_FLIGHT_LIMIT, Options, SPARES_LIMIT};
pub use reads::{ReadId, Run};
pub use recovery::RecoveryReport;
pub use replay::Replay;
pub use reports::{Closed, Stats, WalEvent};
pub use salvage::Lost;
pub use scrub::ScrubStats;
pub use wal::Wal;
