//! The back-end over plain calls: files are read, written and synced while they are submitted, sockets are watched
//! with epoll.
//!
//! For hosts where io_uring is forbidden, and for the threads of clients. It keeps every promise of the seam, but the
//! thread stands still while the disk works, and with it everything else on that thread.

mod files;
mod sockets;

use crate::capabilities::Capabilities;
use crate::space::outlive_the_file_size_limit;
use crate::sys::{self, Entropy};
use crate::table::Table;
use crate::waking::Bell;
use crate::{BackEnd, BackEndError, BufferPool, Completion, Io, IoError, IoOptions, Op, Output, SyncMode};
use crate::{Token, Wait, Waker};
use core::time::Duration;
use files::File;
use sockets::{Conn, Listener, Poller};
use std::collections::VecDeque;
use tidelog_types::{Clock, Monotonic};

/// See the module.
pub struct BlockingIo {
    sync: SyncMode,
    files: Table<File>,
    conns: Table<Conn>,
    listeners: Table<Listener>,
    poller: Poller,
    /// Sockets with something to try: pending work on a socket that may be ready.
    hopeful: VecDeque<u64>,
    /// Connects and accepts in flight.
    dials: usize,
    bell: Bell,
    ready: Vec<Completion>,
    clock: Clock,
    entropy: Entropy,
    pool: BufferPool,
    capabilities: Capabilities,
    told_of_buffering: bool,
}

impl BlockingIo {
    /// Opens it.
    ///
    /// # Errors
    /// If the system has no descriptors left.
    pub fn open(options: &IoOptions) -> Result<BlockingIo, BackEndError> {
        let system = |what| {
            move |errno| BackEndError::System {
                what,
                message: std::io::Error::from_raw_os_error(errno).to_string(),
            }
        };
        if let Err(errno) = sys::raise_descriptor_limit() {
            tracing::debug!(errno, "the limit on descriptors stays as it is");
        }
        outlive_the_file_size_limit();
        let bell = Bell::new(libc::EFD_NONBLOCK).map_err(system("eventfd"))?;
        let poller = Poller::new(&bell).map_err(system("epoll"))?;
        let sync = options.sync.resolved();
        let (back_end, switched_off) = (BackEnd::Blocking, Vec::new());
        Ok(BlockingIo {
            sync,
            files: Table::new(options.files_max),
            conns: Table::new(options.connections_max),
            listeners: Table::new(IoOptions::LISTENERS_MAX),
            poller,
            hopeful: VecDeque::new(),
            dials: 0,
            bell,
            ready: Vec::new(),
            clock: sys::clock(),
            entropy: Entropy::new(),
            pool: BufferPool::new(options.pool_idle_bytes),
            capabilities: Capabilities { back_end, ring: None, sync, switched_off },
            told_of_buffering: false,
        })
    }

    /// What this back-end found and what it does without.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn finish(&mut self, token: Token, result: Result<Output, IoError>) {
        self.ready.push(Completion { token, result });
    }

    fn begin(&mut self, token: Token, op: Op) -> Result<(), IoError> {
        match op {
            Op::Listen { .. }
            | Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Send { .. }
            | Op::Recv { .. }
            | Op::Close { .. }
            | Op::CloseListener { .. } => self.begin_socket(token, op),
            file => {
                let output = self.run_file(file)?;
                self.finish(token, Ok(output));
                Ok(())
            }
        }
    }
}

impl Io for BlockingIo {
    fn submit(&mut self, token: Token, op: Op) {
        if let Err(error) = self.begin(token, op) {
            self.finish(token, Err(error));
        }
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) -> usize {
        let mut woken = self.bell.rang();
        loop {
            self.try_hopeful();
            let left = match wait {
                Wait::No => Some(Duration::ZERO),
                Wait::Until(deadline) | Wait::Briefly(deadline) => Some(deadline.since(sys::monotonic())),
                Wait::Forever => None,
            };
            let idle = self.ready.is_empty() && !woken;
            if idle && left != Some(Duration::ZERO) {
                if self.bell.lie_down() {
                    self.watch(left);
                    woken = self.bell.get_up();
                } else {
                    woken = true;
                }
            } else if !self.conns.is_empty() || !self.listeners.is_empty() {
                // Files that always have something to report must not keep sockets from being looked at.
                self.watch(Some(Duration::ZERO));
            }
            self.try_hopeful();
            if !self.ready.is_empty() || woken || left == Some(Duration::ZERO) {
                break;
            }
        }
        self.clock = sys::clock();
        let count = self.ready.len();
        out.append(&mut self.ready);
        count
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn moment(&self) -> Monotonic {
        sys::monotonic()
    }

    fn random(&mut self) -> u64 {
        self.entropy.next()
    }

    fn buffers(&self) -> BufferPool {
        self.pool.clone()
    }

    fn waker(&self) -> Waker {
        self.bell.waker()
    }
}
