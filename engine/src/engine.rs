//! The handle that embedders hold: a shard on a thread of its own, and partitions to append to and read from.

use crate::append_queue::AppendQueue;
use crate::config::Config;
use crate::error::Error;
use crate::inbox::{Inbox, inbox};
use crate::marks::{Marks, SharedMarks};
use crate::options::Options;
use crate::pending::Pending;
use crate::pins::{Pin, PinFor};
use crate::request::{Level, NodeStatus, Record, Records, Reply, Request, RequestError, Response};
use crate::shard::{MachineFactory, Shard, Turn};
use crate::state_machine::StateMachine;
use crate::transport::{NoTransport, Transport};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tidelog_io::Wait;
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::record::records;
use tidelog_types::{Index, PartitionId, Position, RecordKind, SessionId, SessionKey, SessionRef};

/// Makes the transport on the shard's thread.
pub type MakeTransport = Box<dyn FnOnce(&Options) -> Result<Box<dyn Transport>, Error> + Send>;

/// An open node. Clones share it; the last one's drop stops it as [`Engine::close`] does.
#[derive(Clone, Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    marks: Arc<BTreeMap<PartitionId, Arc<SharedMarks>>>,
    partitions: u64,
    ready: Ready,
    thread: Mutex<Option<JoinHandle<Result<(), Error>>>>,
}

/// What opening came to.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where the node listens; none without a network.
    pub address: Option<SocketAddr>,
    /// What recovery found, in words; empty before the cluster's formation.
    pub recovery: String,
}

impl Engine {
    /// Opens a single node without a network: the configuration names one node.
    ///
    /// # Errors
    /// If the configuration names more nodes, the directory cannot be used, or the log cannot be recovered.
    pub fn open(config: Config) -> Result<Engine, Error> {
        Engine::open_with(config, Box::new(|_| None))
    }

    /// Like [`Self::open`], with state machines on the partitions for which `machines` makes one.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(config: Config, machines: MachineFactory) -> Result<Engine, Error> {
        if config.cluster.nodes.len() > 1 {
            return Err(Error::Config(
                "[cluster] nodes: more than one node needs the network: open it with tidelog_net::open"
                    .into(),
            ));
        }
        Engine::start(config, Box::new(|_| Ok(Box::new(NoTransport))), machines)
    }

    /// Opens a node over a transport: what the network crate calls.
    ///
    /// # Errors
    /// As [`Self::open`], and the transport's own.
    pub fn start(
        config: Config,
        transport: MakeTransport,
        machines: MachineFactory,
    ) -> Result<Engine, Error> {
        let options = Options::from(&config);
        let partitions = options.partitions;
        let (opened, opening) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("tidelog-shard-0".into())
            .spawn(move || run(&config, options, transport, machines, opened))
            .map_err(|e| Error::Config(format!("cannot start the shard's thread: {e}")))?;
        match opening.recv() {
            Ok(Ok((inbox, marks, ready))) => {
                let thread = Mutex::new(Some(thread));
                Ok(Engine { shared: Arc::new(Shared { inbox, marks, partitions, ready, thread }) })
            }
            Ok(Err(error)) => {
                drop(thread.join());
                Err(error)
            }
            Err(_) => Err(Error::Config("the shard's thread ended while opening".into())),
        }
    }

    /// What opening came to.
    pub fn ready(&self) -> &Ready {
        &self.shared.ready
    }

    /// The partition that a key belongs to.
    pub fn partition(&self, key: &[u8]) -> Partition {
        self.partition_by_id(tidelog_cluster::partition_of(key, self.shared.partitions))
            .expect("a key's partition is one of the cluster's")
    }

    /// A partition by number; none if the cluster has fewer.
    pub fn partition_by_id(&self, id: PartitionId) -> Option<Partition> {
        let marks = Arc::clone(self.shared.marks.get(&id)?);
        Some(Partition { id, shared: Arc::clone(&self.shared), marks })
    }

    /// A queue for many appends of one thread or task, at most `in_flight_max` (and
    /// [`IN_FLIGHT_LIMIT`](crate::append_queue::IN_FLIGHT_LIMIT)) at a time, answered in bulk.
    pub fn append_queue(&self, in_flight_max: usize) -> AppendQueue {
        AppendQueue::new(self.clone(), in_flight_max)
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.shared.inbox
    }

    /// State of this node.
    pub fn status(&self) -> Pending<NodeStatus> {
        Pending::new(self.shared.inbox.request(Request::Status), |response| match response? {
            Reply::Status(status) => Ok(*status),
            _ => Err(mismatched()),
        })
    }

    /// Stops: new work is refused, what is in flight drains, the log is sealed. Waits for it.
    ///
    /// # Errors
    /// Why the shard had stopped before, if it had.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.inbox.stop();
        self.shared.join()
    }

    /// Waits until the node stops by itself, which it only does on failure, or is closed by another handle.
    ///
    /// # Errors
    /// Why it stopped.
    pub fn join(&self) -> Result<(), Error> {
        self.shared.join()
    }

    /// Asks the node to stop, without waiting.
    pub fn stop(&self) {
        self.shared.inbox.stop();
    }
}

impl Shared {
    fn join(&self) -> Result<(), Error> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.stop();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Ok(Err(error))) = thread.map(JoinHandle::join) {
            tracing::error!(%error, "the shard had stopped");
        }
    }
}

type Opened = Result<(Inbox, Arc<BTreeMap<PartitionId, Arc<SharedMarks>>>, Ready), Error>;

/// The shard's thread.
fn run(
    config: &Config,
    options: Options,
    transport: MakeTransport,
    machines: MachineFactory,
    opened: oneshot::Sender<Opened>,
) -> Result<(), Error> {
    let open = || {
        let mut io = crate::back_end::open(config)?;
        let dir = &config.node.data_dir;
        crate::directory::make(&mut *io, dir).map_err(|e| crate::directory::unusable(dir, &e))?;
        let lock = tidelog_io::lock_directory(dir).map_err(|e| crate::directory::not_held(dir, e))?;
        let (inbox, commands) = inbox(options.inbox_max, io.waker());
        let transport = transport(&options)?;
        let alone = options.nodes.len() == 1;
        let mut shard = Shard::open(&mut *io, options, transport, commands, machines)?;
        let mut wait = Wait::No;
        while alone && !shard.is_settled() {
            match shard.turn(&mut *io, wait)? {
                Turn::Until(deadline) => wait = Wait::Until(deadline),
                Turn::Stopped => break,
            }
        }
        Ok((io, lock, shard, inbox))
    };
    // Dropped in the opposite order: the lock outlives what it protects.
    let (mut io, _lock, mut shard, inbox) = match open() {
        Ok(open) => open,
        Err(error) => {
            drop(opened.send(Err(error)));
            return Ok(());
        }
    };
    let ready = Ready {
        address: shard.address(),
        recovery: shard.recovery().map(crate::recovery::describe).unwrap_or_default(),
    };
    if opened.send(Ok((inbox, shard.shared_marks(), ready))).is_err() {
        return Ok(());
    }
    let mut wait = Wait::No;
    loop {
        match shard.turn(&mut *io, wait)? {
            Turn::Until(deadline) => wait = Wait::Until(deadline),
            Turn::Stopped => return Ok(()),
        }
    }
}

/// One log of the cluster: a handle, cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Partition {
    id: PartitionId,
    shared: Arc<Shared>,
    marks: Arc<SharedMarks>,
}

/// Records of a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Read {
    /// The data records, in index order.
    pub records: Vec<Record>,
    /// Where the next read goes on.
    pub next: Index,
    /// The answering node's high-water mark.
    pub high_water: Index,
}

impl IntoIterator for Read {
    type Item = Record;
    type IntoIter = std::vec::IntoIter<Record>;
    fn into_iter(self) -> Self::IntoIter {
        self.records.into_iter()
    }
}

impl Partition {
    /// Its number.
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// Appends one record. The answer comes when it is durable on a quorum.
    ///
    /// Errors tell what to do: [`RequestError::NotLeader`] ask elsewhere, [`RequestError::Busy`] later,
    /// [`RequestError::Unknown`] it may or may not be in the log.
    pub fn append(&self, payload: impl Into<Bytes>) -> Pending<Position> {
        self.append_request(payload.into(), None)
    }

    /// Appends one record at most once under (session, sequence): a retry gets the index of the first.
    pub fn append_in(&self, session: SessionRef, payload: impl Into<Bytes>) -> Pending<Position> {
        self.append_request(payload.into(), Some(session))
    }

    fn append_request(&self, payload: Bytes, session: Option<SessionRef>) -> Pending<Position> {
        let payload_crc = tidelog_types::checksum(&payload);
        let request = Request::Append { partition: self.id, session, payload, payload_crc };
        Pending::new(self.shared.inbox.request(request), appended)
    }

    /// Opens a session, or finds the one that is open under this key.
    pub fn open_session(&self, key: SessionKey) -> Pending<SessionId> {
        let request = Request::OpenSession { partition: self.id, key };
        Pending::new(self.shared.inbox.request(request), |response: Response| match response? {
            Reply::SessionOpened { session, .. } => Ok(session),
            _ => Err(mismatched()),
        })
    }

    /// Reads committed records of a range of indexes, at most about 3 MiB at a time: go on at [`Read::next`] while
    /// it is at or below [`Read::high_water`].
    pub fn read(&self, range: impl RangeBounds<Index>, level: Level) -> Pending<Read> {
        let from = match range.start_bound() {
            Bound::Included(i) => *i,
            Bound::Excluded(i) => i.next(),
            Bound::Unbounded => self.marks().low_water,
        };
        let to = match range.end_bound() {
            Bound::Included(i) => Some(*i),
            Bound::Excluded(i) => Some(i.prev()),
            Bound::Unbounded => None,
        };
        let request =
            Request::Read { partition: self.id, from, to, bytes_max: APPEND_BYTES_MAX as u32, level };
        Pending::new(self.shared.inbox.request(request), |response: Response| match response? {
            Reply::Records(records) => decode(&records),
            _ => Err(mismatched()),
        })
    }

    /// Takes a snapshot of the state machine on this node; the answer comes when it is durable, read back and marked in
    /// the log. It covers at least what was applied before the call: the last entry covered.
    ///
    /// [`RequestError::Invalid`] if the partition has no state machine, [`RequestError::Unavailable`] if none could be
    /// taken.
    pub fn snapshot(&self) -> Pending<Position> {
        let request = Request::Snapshot { partition: self.id };
        Pending::new(self.shared.inbox.request(request), |response: Response| match response? {
            Reply::Snapshot { covered, .. } => Ok(covered),
            _ => Err(mismatched()),
        })
    }

    /// Holds this node's log from `first` on, for a reader or a backup that takes more than one call: the low-water mark does not rise
    /// above it. Move it on with [`Pin::advance`]; drop it to let go. It is bounded by `retention.pin_bytes` and
    /// `retention.pin_age`, and does not keep readers above the log's start that the replicas agreed on.
    ///
    /// # Errors
    /// [`RequestError::Truncated`] if entries from `first` on are gone or about to go, [`RequestError::Ahead`] if it is more
    /// than one beyond the high-water mark of [`Self::marks`], [`RequestError::Busy`] if there
    /// are 64 already.
    ///
    /// `examples/backup.rs` reads a log under a pin.
    pub fn pin(&self, first: Index, purpose: PinFor) -> Result<Pin, RequestError> {
        let (first, marks) = (first.max(Index(1)), self.marks());
        if first > marks.high_water.next() {
            return Err(RequestError::Ahead { asked: first, high_water: marks.high_water });
        }
        let pin = self.marks.pins.take(first, purpose)?;
        // What an earlier process had given up.
        match self.marks().low_water {
            low if first < low => Err(RequestError::Truncated { first: low }),
            _ => Ok(pin),
        }
    }

    /// The partition's marks on this node, as of a recent turn of its shard. The high-water mark is at or above every entry of which this
    /// node has said that it is committed; the others may be a turn behind.
    pub fn marks(&self) -> Marks {
        self.marks.load()
    }
}

/// An append's answer.
pub(crate) fn appended(response: Response) -> Result<Position, RequestError> {
    match response? {
        Reply::Appended { position } => Ok(position),
        _ => Err(mismatched()),
    }
}

fn mismatched() -> RequestError {
    RequestError::Invalid("the answer does not fit the request".into())
}

/// The data records of an answer, verified again.
///
/// # Errors
/// If a record does not decode: the bytes were changed between the log and here.
pub fn decode(answer: &Records) -> Result<Read, RequestError> {
    let mut out = Vec::new();
    for piece in &answer.records {
        for record in records(piece) {
            let (at, header, payload) = record
                .map_err(|e| RequestError::Unavailable(format!("a record of the answer is damaged: {e}")))?;
            if header.kind == RecordKind::Data {
                let start = at + header.head_bytes();
                out.push(Record {
                    index: header.index,
                    generation: header.generation,
                    timestamp: header.timestamp,
                    payload: piece.slice(start..start + payload.len()),
                });
            }
        }
    }
    Ok(Read { records: out, next: answer.next, high_water: answer.high_water })
}

/// Makes no state machine for any partition.
pub fn no_machines() -> MachineFactory {
    Box::new(|_| Option::<Box<dyn StateMachine>>::None)
}
