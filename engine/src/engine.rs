//! The handle that embedders hold: a shard on a thread of its own, and partitions to append to and read from.
//!
//! **Life cycle.** A node lives until [`Engine::stop`] or [`Engine::close`] is called on any clone, until the last clone of [`Engine`] is dropped (which
//! closes it), or until it fails. [`Partition`], [`AppendQueue`], [`Pin`] and [`Events`] do not keep it open: they answer *unavailable* once it has ended.
//! Closing answers everything in flight, seals the log and lets go of the directory; when [`Engine::close`] or [`Engine::join`] returns, on any number of
//! threads, the directory can be opened again. Each of them returns the same outcome, as often as it is asked. A panic in a state machine, or in
//! a waker that the shard calls, ends the node with [`Error::Panicked`]; requests under way are then *unknown*.

use crate::append_queue::AppendQueue;
use crate::config::Config;
use crate::error::Error;
use crate::events::Events;
use crate::inbox::{Commands, Inbox, inbox};
use crate::life_cycle::{self, LifeCycle};
use crate::marks::{Leadership, Marks, SharedMarks};
use crate::options::Options;
use crate::pending::Pending;
use crate::pins::{Pin, PinFor};
use crate::request::{Level, NodeStatus, Record, Records, Reply, Request, RequestError, Response};
use crate::shard::{MachineFactory, Shard, Turn};
use crate::state_machine::StateMachine;
use crate::transport::{NoTransport, Transport};
use atomic_waker::AtomicWaker;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tidelog_io::{Wait, Waker};
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::record::records;
use tidelog_types::{Index, NodeId, PartitionId, Position, RecordKind, SessionId, SessionKey, SessionRef};

/// Makes the transport on the shard's thread.
pub type MakeTransport = Box<dyn FnOnce(&Options) -> Result<Box<dyn Transport>, Error> + Send>;

/// An open node. Clones share it; the last one's drop closes it as [`Engine::close`] does, and waits for that (on the node's own thread it only asks for it).
#[derive(Clone, Debug)]
pub struct Engine {
    owner: Arc<Owner>,
}

/// Closes the node when it goes.
#[derive(Debug)]
struct Owner {
    shared: Arc<Shared>,
}

/// What handles use; it keeps nothing open.
#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    marks: Arc<BTreeMap<PartitionId, Arc<SharedMarks>>>,
    partitions: u64,
    ready: Ready,
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
        let life_cycle = Arc::<LifeCycle>::default();
        let own = Arc::clone(&life_cycle);
        std::thread::Builder::new()
            .name("tidelog-shard-0".into())
            .spawn(move || {
                let commands = Arc::clone(&own);
                own.run(move || run(&config, options, commands, transport, machines, opened));
            })
            .map_err(|e| Error::Config(format!("cannot start the shard's thread: {e}")))?;
        match opening.recv() {
            Ok((inbox, marks, ready)) => {
                let shared = Arc::new(Shared { inbox, marks, partitions, ready });
                Ok(Engine { owner: Arc::new(Owner { shared }) })
            }
            // It ended before it was open, and says why.
            Err(_) => Err(match life_cycle.wait() {
                Err(error) => error,
                Ok(()) => Error::Config("the node ended while opening".into()),
            }),
        }
    }

    /// What opening came to.
    pub fn ready(&self) -> &Ready {
        &self.owner.shared.ready
    }

    /// The partition that a key belongs to.
    pub fn partition(&self, key: &[u8]) -> Partition {
        self.partition_by_id(tidelog_cluster::partition_of(key, self.owner.shared.partitions))
            .expect("a key's partition is one of the cluster's")
    }

    /// A partition by number; none if the cluster has fewer.
    pub fn partition_by_id(&self, id: PartitionId) -> Option<Partition> {
        Partition::of(&self.owner.shared, id)
    }

    /// A queue for many appends of one thread or task, at most `in_flight_max` (and
    /// [`IN_FLIGHT_LIMIT`](crate::append_queue::IN_FLIGHT_LIMIT)) at a time, answered in bulk.
    pub fn append_queue(&self, in_flight_max: usize) -> AppendQueue {
        AppendQueue::new(self.owner.shared.inbox.clone(), in_flight_max)
    }

    /// Tells of what happens at this node from now on: leadership, failures of the disk, space, the end. At most `capacity`
    /// events (and [`EVENTS_MAX`](crate::events::EVENTS_MAX)) wait; past that the newest are lost and counted.
    pub fn events(&self, capacity: usize) -> Events {
        self.owner.shared.inbox.life_cycle().events.subscribe(capacity)
    }

    /// State of this node.
    pub fn status(&self) -> Pending<NodeStatus> {
        Pending::new(
            self.owner
                .shared
                .inbox
                .request(Request::Status { first: PartitionId(0), partitions_max: u32::MAX }),
            |response| match response? {
                Reply::Status(status) => Ok(*status),
                _ => Err(mismatched()),
            },
        )
    }

    /// Waits until the node serves its log: the cluster is formed, its log is open, and its peers do not refuse it. `told` hears why it does
    /// not, and each time when that changes. False if the node stops before: [`Self::join`] says why.
    pub fn wait_serving(&self, mut told: impl FnMut(&str)) -> bool {
        let mut seen = None;
        loop {
            match self.owner.shared.inbox.life_cycle().await_serving(seen.as_ref()) {
                Some(Err(why)) => {
                    told(&why);
                    seen = Some(Err(why));
                }
                serves => return serves.is_some(),
            }
        }
    }

    /// Stops: new work is refused, what is in flight drains, the log is sealed. Waits for it; the directory is free then.
    ///
    /// # Errors
    /// Why the node had ended before, if it had. [`Error::OwnThread`] inside a state machine or a waker: the node is asked to stop all the
    /// same.
    pub fn close(&self) -> Result<(), Error> {
        self.stop();
        self.join()
    }

    /// Waits until the node has ended: by itself, which it only does on failure, or because it was stopped or closed by another handle.
    ///
    /// # Errors
    /// Why it ended. [`Error::OwnThread`] inside a state machine or a waker.
    pub fn join(&self) -> Result<(), Error> {
        self.owner.shared.inbox.life_cycle().wait()
    }

    /// Asks the node to stop, without waiting.
    pub fn stop(&self) {
        self.owner.shared.inbox.stop();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.inbox.stop();
        // A failure is in the log already. On the node's own thread the node ends when this turn is over.
        if !life_cycle::on_shard_thread() {
            drop(self.shared.inbox.life_cycle().wait());
        }
    }
}

type Opened = (Inbox, Arc<BTreeMap<PartitionId, Arc<SharedMarks>>>, Ready);

/// The shard's thread.
fn run(
    config: &Config,
    options: Options,
    life_cycle: Arc<LifeCycle>,
    transport: MakeTransport,
    machines: MachineFactory,
    opened: oneshot::Sender<Opened>,
) -> Result<(), Error> {
    let open = || -> Result<_, Error> {
        let mut io = crate::back_end::open(config)?;
        let dir = &config.node.data_dir;
        crate::directory::make(&mut *io, dir).map_err(|e| crate::directory::unusable(dir, &e))?;
        let lock = tidelog_io::lock_directory(dir).map_err(|e| crate::directory::not_held(dir, e))?;
        let (inbox, commands) = inbox(options.inbox_max, io.waker(), life_cycle);
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
    let (mut io, _lock, mut shard, inbox) = open()?;
    let ready = Ready {
        address: shard.address(),
        recovery: shard.recovery().map(crate::recovery::describe).unwrap_or_default(),
    };
    if opened.send((inbox, shard.shared_marks(), ready)).is_err() {
        return Ok(());
    }
    let mut wait = Wait::No;
    loop {
        match shard.turn(&mut *io, wait) {
            Ok(Turn::Until(deadline)) => wait = Wait::Until(deadline),
            Ok(Turn::Stopped) => return Ok(()),
            Err(error) => {
                tracing::error!(%error, "the node ends");
                return Err(error);
            }
        }
    }
}

/// The queue to a shard that its holder turns itself, as the simulator does, instead of a thread of its own; and its end for [`Shard::open`].
#[doc(hidden)]
pub fn commands(capacity: usize, waker: Waker) -> (Handing, Commands) {
    let (inbox, commands) = inbox(capacity, waker, Arc::default());
    (Handing { inbox }, commands)
}

/// See [`commands`].
#[doc(hidden)]
#[derive(Debug)]
pub struct Handing {
    inbox: Inbox,
}

impl Handing {
    /// The handles of the shard that was opened with the other end, of a cluster with so many partitions.
    pub fn handles(self, shard: &Shard, partitions: u64) -> Handles {
        let ready = Ready { address: shard.address(), recovery: String::new() };
        let shared = Shared { inbox: self.inbox, marks: shard.shared_marks(), partitions, ready };
        Handles { shared: Arc::new(shared) }
    }
}

/// What an [`Engine`] hands out, of a shard that its holder turns itself. They keep nothing open, and nothing may wait on them.
#[doc(hidden)]
#[derive(Debug)]
pub struct Handles {
    shared: Arc<Shared>,
}

impl Handles {
    /// As [`Engine::partition_by_id`].
    pub fn partition_by_id(&self, id: PartitionId) -> Option<Partition> {
        Partition::of(&self.shared, id)
    }

    /// As [`Engine::append_queue`].
    pub fn append_queue(&self, in_flight_max: usize) -> AppendQueue {
        AppendQueue::new(self.shared.inbox.clone(), in_flight_max)
    }
}

/// One log of the cluster: a handle, cheap to clone, usable from any thread. It does not keep the [`Engine`] open.
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
    fn of(shared: &Arc<Shared>, id: PartitionId) -> Option<Partition> {
        let marks = Arc::clone(shared.marks.get(&id)?);
        Some(Partition { id, shared: Arc::clone(shared), marks })
    }

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
            // Nothing lies behind the largest index: the answer is that of any index above the mark.
            Bound::Excluded(i) => Index(i.0.saturating_add(1)),
            Bound::Unbounded => self.marks().first_readable,
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
        let marks = self.marks();
        match marks.first_readable.min(marks.applied.next()).max(marks.low_water) {
            low if first < low => Err(RequestError::Truncated { first: low }),
            _ => Ok(pin),
        }
    }

    /// Who leads this partition, as of a recent turn of its shard; none before the cluster's formation, or if this node has no replica of it.
    pub fn leadership(&self) -> Option<Leadership> {
        self.marks.leadership()
    }

    /// Waits until this node knows the partition's leader: `.await` it, or [`LeaderKnown::wait`] for it. Its leader takes appends.
    pub fn wait_for_leader(&self) -> LeaderKnown {
        LeaderKnown { partition: self.clone(), waker: Arc::default() }
    }

    /// The partition's marks on this node, as of a recent turn of its shard. The high-water mark is at or above every entry of which this
    /// node has said that it is committed; the others may be a turn behind.
    pub fn marks(&self) -> Marks {
        self.marks.load()
    }
}

/// The wait for a partition's leader, from [`Partition::wait_for_leader`]: a future without a bound of its own, or a wait with one.
#[derive(Debug)]
#[must_use = "it waits when it is awaited, or by its wait()"]
pub struct LeaderKnown {
    partition: Partition,
    waker: Arc<AtomicWaker>,
}

impl LeaderKnown {
    fn look(&self) -> Option<NodeId> {
        self.partition.leadership()?.leader
    }

    /// Blocks this thread until the leader is known, for `time_max` at most.
    ///
    /// # Errors
    /// [`RequestError::Unavailable`] if no leader is known by then, or the node has ended.
    ///
    /// # Panics
    /// On a shard's own thread (in a state machine, in a waker), where it would wait for itself.
    pub fn wait(self, time_max: Duration) -> Result<NodeId, RequestError> {
        let inbox = &self.partition.shared.inbox;
        inbox.life_cycle().look_until(time_max, || self.look()).ok_or_else(|| {
            match inbox.life_cycle().outcome() {
                Some(_) => inbox.ended(),
                None => RequestError::Unavailable(format!(
                    "partition {} has no leader that this node knows after {time_max:?}: a majority of its nodes must be up and connected",
                    self.partition.id
                )),
            }
        })
    }
}

impl Future for LeaderKnown {
    type Output = Result<NodeId, RequestError>;

    fn poll(self: core::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.waker.register(cx.waker());
        let inbox = &self.partition.shared.inbox;
        // Registered before it looks: a change in between wakes it.
        inbox.life_cycle().wake_at_change(&self.waker);
        match (self.look(), inbox.life_cycle().outcome()) {
            (_, Some(_)) => Poll::Ready(Err(inbox.ended())),
            (Some(leader), None) => Poll::Ready(Ok(leader)),
            (None, None) => Poll::Pending,
        }
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
