//! An engine whose shard runs on the load generator's own thread.
//!
//! The load comes in as a transport's requests would and its answers leave the same way, in the shard's own turns, so there is no
//! queue between threads and no wake-up in the figures: what remains is what the engine itself costs. This compares with the raw
//! baseline, whose writers live in its thread as well.

use super::{Rotation, outcome_of};
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::load::{Done, Outcome, Target};
use bytes::Bytes;
use core::cell::RefCell;
use core::time::Duration;
use std::net::SocketAddr;
use std::rc::Rc;
use tidelog::config::{self, Config};
use tidelog::engine::no_machines;
use tidelog::formation::{Formed, Hello};
use tidelog::request::{Request, Response};
use tidelog::transport::{ClientRef, Event, PeerMessage, Transport};
use tidelog::{Commands, Options, Shard, Turn};
use tidelog_io::{
    BackEnd, Completion, DirectoryLock, Io, IoOptions, SyncMode, Wait, lock_directory, open_back_end,
};
use tidelog_types::{Monotonic, NodeId};

/// A stop that takes longer is given up.
const STOP_MAX: Duration = Duration::from_secs(30);

/// What lies between the load and the shard.
#[derive(Debug, Default)]
struct Mailbox {
    requests: Vec<(u64, Request)>,
    done: Vec<Done>,
}

/// The shard's end of the mailbox.
struct Desk(Rc<RefCell<Mailbox>>);

impl Transport for Desk {
    fn start(&mut self, _: &mut dyn Io, _: Hello) -> Result<Option<SocketAddr>, tidelog::Error> {
        Ok(None)
    }
    fn formed(&mut self, _: &mut dyn Io, _: &Formed) {}
    fn barred(&mut self, _: &mut dyn tidelog_io::Io) {}
    fn accuse(&mut self, _: &mut dyn tidelog_io::Io, _: NodeId, _: &str) {}
    fn complete(&mut self, _: &mut dyn Io, _: Completion, _: &mut Vec<Event>) {}
    fn tick(&mut self, _: &mut dyn Io, events: &mut Vec<Event>) {
        let requests = &mut self.0.borrow_mut().requests;
        events.extend(requests.drain(..).map(|(tag, request)| Event::Request {
            client: ClientRef { connection: 0, request: tag },
            request,
        }));
    }
    fn deadline(&self) -> Option<Monotonic> {
        None
    }
    fn send(&mut self, _: NodeId, _: PeerMessage) -> bool {
        false
    }
    fn room(&self, _: NodeId) -> usize {
        0
    }
    fn respond(&mut self, client: ClientRef, response: Response) {
        let outcome = match &response {
            Ok(_) => Outcome::Acked,
            Err(error) => outcome_of(error),
        };
        self.0.borrow_mut().done.push(Done { tag: client.request, outcome });
    }
    fn flush(&mut self, _: &mut dyn Io) {}
}

/// See the module.
pub struct InlineTarget {
    shard: Shard,
    io: Box<dyn Io>,
    mailbox: Rc<RefCell<Mailbox>>,
    rotation: Rotation,
    wanted: Monotonic,
    /// Released last.
    _lock: DirectoryLock,
}

impl InlineTarget {
    /// Opens a single node on this thread.
    ///
    /// # Errors
    /// If it does not open.
    pub fn open(config: &Config) -> Result<InlineTarget, BenchError> {
        let lock = lock_directory(&config.node.data_dir).map_err(|e| BenchError::Target(e.to_string()))?;
        let (back_end, io_options) = io_options(config);
        let mut io = open_back_end(back_end, &io_options)?;
        let mailbox = Rc::new(RefCell::new(Mailbox::default()));
        let desk = Box::new(Desk(Rc::clone(&mailbox)));
        let shard = Shard::open(&mut *io, Options::from(config), desk, Commands::none(), no_machines())?;
        let wanted = io.clock().now;
        let rotation = Rotation::new(config.cluster.partitions);
        Ok(InlineTarget { shard, io, mailbox, rotation, wanted, _lock: lock })
    }
}

/// What the configuration says about the back-end.
fn io_options(config: &Config) -> (BackEnd, IoOptions) {
    let sync = match config.wal.sync {
        config::SyncMethod::Auto => SyncMode::Auto,
        config::SyncMethod::Fdatasync => SyncMode::Fdatasync,
        config::SyncMethod::Dsync => SyncMode::Dsync,
    };
    let back_end = match config.io.backend {
        config::BackEnd::Uring => BackEnd::Uring,
        config::BackEnd::Blocking => BackEnd::Blocking,
    };
    (back_end, IoOptions { sync, registered_bytes: config.io.registered_memory, ..IoOptions::default() })
}

impl Target for InlineTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        let payload_crc = tidelog_types::checksum(&payload);
        let partition = self.rotation.next();
        let request = Request::Append { partition, session: None, payload, payload_crc };
        self.mailbox.borrow_mut().requests.push((tag, request));
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        loop {
            let wait = if self.mailbox.borrow().requests.is_empty() {
                let until = self.io.clock().now.after(until.since(clock::now()));
                Wait::Until(self.wanted.min(until))
            } else {
                Wait::No
            };
            match self.shard.turn(&mut *self.io, wait)? {
                Turn::Until(deadline) => self.wanted = deadline,
                Turn::Stopped => return Err(BenchError::Target("the shard stopped by itself".into())),
            }
            done.append(&mut self.mailbox.borrow_mut().done);
            if !done.is_empty() || clock::now() >= until {
                return Ok(());
            }
        }
    }

    fn batches(&mut self) -> Option<u64> {
        self.shard.wal().map(|wal| wal.stats()).map(|stats| stats.batches.saturating_sub(stats.seals))
    }

    fn close(mut self: Box<Self>) -> Result<(), BenchError> {
        self.shard.stop();
        let limit = clock::now().after(STOP_MAX);
        let mut wait = Wait::No;
        while clock::now() < limit {
            match self.shard.turn(&mut *self.io, wait)? {
                Turn::Until(deadline) => wait = Wait::Until(deadline),
                Turn::Stopped => return Ok(()),
            }
        }
        Err(BenchError::Target("the shard did not stop".into()))
    }
}
