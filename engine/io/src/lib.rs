//! The seam: disk, sockets, clock and randomness as one completion interface.
//!
//! A caller submits an [`Op`] together with the buffers that it works on and a [`Token`], and later gets one
//! [`Completion`] with the same token, the result and the buffer. Behind the trait [`Io`] are io_uring
//! ([`uring`]), plain blocking calls ([`blocking`]) and, in a crate of its own, a simulated world; everything
//! above runs unchanged over each of them and [`conformance`] checks that it may.
//!
//! What every back-end promises:
//! - Exactly one completion per submitted operation, never from inside `submit`, only from `poll`. An operation that
//!   cannot even be started completes with an error.
//! - A buffer handed over is not touched by its submitter until its completion; there is no way to cancel by
//!   dropping. Closing a connection completes its pending operations with an error.
//! - `WriteDurable` completes after the bytes are on stable storage, by whatever means the back-end was told
//!   to use. A short write is an error, never continued. A failed sync is reported once and never retried.
//! - No order between operations in flight, other than: sends of one connection go out in their order.
//! - Time only moves on in `poll`: `now` and `wall` keep their values between two polls.
//!
//! What it does not know: records, frames, partitions.

#![allow(unsafe_code)] // the only crate that may; every block says who owns the memory and until when

mod alignment;
mod arena;
mod backend;
pub mod blocking;
mod buffer;
mod capabilities;
pub mod conformance;
mod cores;
mod directory;
mod foreground;
mod lock;
mod op;
mod options;
mod preflight;
pub mod signals;
mod space;
mod sys;
mod table;
pub mod uring;
mod waking;

pub use backend::{BackEndError, open_back_end};
pub use blocking::BlockingIo;
pub use buffer::{AlignedBuf, BufferPool};
pub use capabilities::{Capabilities, RingFeatures, SwitchedOff};
pub use cores::{cores, pin_to_core};
pub use foreground::{Begun, Foreground};
pub use lock::{DirectoryLock, LockError, lock_directory};
pub use op::{
    Completion, ConnId, FileId, IoError, IoErrorKind, ListenerId, Op, OpenMode, Output, PIECES_MAX, Place,
    Token, TokenClass, Wait,
};
pub use options::{BackEnd, IoOptions, SyncMode, TaskWork};
pub use preflight::{
    FileSystem, Latency, Limit, Preflight, SyncLatency, descriptor_limit, measure_sync, probe,
};
pub use space::{Space, space};
pub use uring::UringIo;

use tidelog_types::{Clock, Monotonic};

/// The seam. One per shard thread; not `Send` on purpose of its back-ends.
pub trait Io {
    /// Hands an operation over. Its completion arrives by a later [`Io::poll`], under `token`.
    fn submit(&mut self, token: Token, op: Op);

    /// Starts everything submitted, waits as `wait` says for at least one completion (or the deadline, or a
    /// wake-up), and appends all completions at hand to `out`. Returns how many.
    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) -> usize;

    /// The clocks as of the last poll.
    fn clock(&self) -> Clock;

    /// The time at this moment; [`Self::clock`] stands still between two polls. Work that has a share of a turn measures itself by it. A simulated
    /// turn takes no time.
    fn moment(&self) -> Monotonic {
        self.clock().now
    }

    /// 64 random bits: identities, jitter. Seeded in the simulator.
    fn random(&mut self) -> u64;

    /// Where aligned buffers come from.
    fn buffers(&self) -> BufferPool;

    /// Ends a wait of [`Io::poll`] from another thread.
    fn waker(&self) -> Waker;
}

/// Wakes a shard's thread out of its wait. Cheap when it is not waiting.
#[derive(Clone)]
pub struct Waker(std::sync::Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// A waker that calls `f`.
    pub fn new(f: impl Fn() + Send + Sync + 'static) -> Waker {
        Waker(std::sync::Arc::new(f))
    }
    /// A waker for worlds without other threads.
    pub fn none() -> Waker {
        Waker::new(|| {})
    }
    /// Wakes.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl core::fmt::Debug for Waker {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Waker")
    }
}
