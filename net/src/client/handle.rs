//! A client on a thread of its own.
//!
//! Handles are cheap to clone and go to any thread. Requests travel to the thread through a channel, one wake-up a
//! batch; results come back through one-shot channels that are futures too, or in batches for those who have
//! many in flight.

use super::route::ABANDONED_ALL_MAX;
use super::{ClientCore, ClientError, ClientOptions, ClientRequest, Done, Target};
use crate::slab::{Key, Slab};
use bytes::Bytes;
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use tidelog::on_this_thread;
use tidelog::request::{Level, NodeStatus, Records, Reply};
use tidelog_io::{BackEnd, BackEndError, Io, IoOptions, TokenClass, Wait, Waker, open_back_end};
use tidelog_types::{Index, Monotonic, NodeId, PartitionId, Position, SessionId, SessionKey, SessionRef};

type Outcome = Result<Reply, ClientError>;

/// The end of a request of a [`Bulk`].
#[derive(Clone, PartialEq, Debug)]
pub struct BulkDone {
    /// As submitted.
    pub tag: u64,
    /// How it went.
    pub result: Result<Reply, ClientError>,
    /// When its answer was seen, on this machine's boot clock.
    pub at: Monotonic,
}

enum Command {
    One(ClientRequest, oneshot::Sender<Outcome>),
    Many(u64, Vec<(u64, ClientRequest)>),
    Open(u64, Sender<Vec<BulkDone>>),
    Shut(u64),
    Nodes(oneshot::Sender<BTreeMap<NodeId, SocketAddr>>),
}

enum Sink {
    One(oneshot::Sender<Outcome>),
    Bulk { bulk: u64, tag: u64 },
}

/// What handles share. Dropping the last one ends the thread once everything in flight is done.
struct Shared {
    commands: Option<Sender<Command>>,
    waker: Waker,
    bulks: AtomicU64,
    thread: Option<JoinHandle<()>>,
}

impl Shared {
    fn send(&self, command: Command) {
        // The thread outlives every handle; its end is seen as results that do not come.
        if let Some(commands) = &self.commands {
            drop(commands.send(command));
        }
        self.waker.wake();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.commands = None;
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A handle to a client. Clone and Send.
///
/// # Examples
/// ```no_run
/// use tidelog_net::{Client, ClientOptions};
/// use tidelog_types::PartitionId;
/// let client = Client::connect(ClientOptions::new(vec!["127.0.0.1:7101".parse()?]))?;
/// let position = client.append(PartitionId(0), b"hello".as_slice().into()).wait()?;
/// println!("durable on a quorum at index {}", position.index);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    in_flight_max: usize,
}

impl core::fmt::Debug for Client {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Client")
    }
}

impl Client {
    /// A client over blocking calls, which suit a client's thread. Nobody is dialled before the first request.
    ///
    /// # Errors
    /// If the back-end cannot be opened.
    pub fn connect(options: ClientOptions) -> Result<Client, BackEndError> {
        Client::connect_over(BackEnd::Blocking, options)
    }

    /// A client over a back-end of choice.
    ///
    /// # Errors
    /// If the back-end cannot be opened.
    pub fn connect_over(back_end: BackEnd, options: ClientOptions) -> Result<Client, BackEndError> {
        let abandoned = u32::try_from(ABANDONED_ALL_MAX).unwrap_or(u32::MAX);
        let connections = options.connections_per_node.saturating_mul(8).saturating_add(64 + abandoned);
        let io_options = IoOptions {
            connections_max: u16::try_from(connections).unwrap_or(u16::MAX),
            ..IoOptions::small()
        };
        let in_flight_max = options.in_flight_max;
        let (commands, inbox) = unbounded();
        let (opened, ready) = oneshot::channel();
        let system = |what, message: String| BackEndError::System { what, message };
        let thread = std::thread::Builder::new()
            .name("tidelog-client".into())
            .spawn(move || match open_back_end(back_end, &io_options) {
                Ok(io) => {
                    drop(opened.send(Ok(io.waker())));
                    Worker::new(io, options, inbox).run();
                }
                Err(error) => drop(opened.send(Err(error))),
            })
            .map_err(|e| system("starting the client's thread", e.to_string()))?;
        let waker =
            ready.recv().unwrap_or_else(|e| Err(system("starting the client's thread", e.to_string())))?;
        let (commands, thread) = (Some(commands), Some(thread));
        let shared = Arc::new(Shared { commands, waker, bulks: AtomicU64::new(0), thread });
        Ok(Client { shared, in_flight_max })
    }

    /// Sends a request.
    pub fn request(&self, request: ClientRequest) -> Pending<Reply> {
        self.pending(request, Some)
    }

    /// Appends a record: where it is once it is durable on a quorum.
    pub fn append(&self, partition: PartitionId, payload: Bytes) -> Pending<Position> {
        self.pending(ClientRequest::append(partition, payload), position)
    }

    /// Appends a record at most once, whatever breaks meanwhile.
    pub fn append_once(
        &self,
        partition: PartitionId,
        session: SessionRef,
        payload: Bytes,
    ) -> Pending<Position> {
        self.pending(ClientRequest::append_once(partition, session, payload), position)
    }

    /// Opens a session, or finds the one open under `key`.
    pub fn open_session(&self, partition: PartitionId, key: SessionKey) -> Pending<SessionId> {
        self.pending(ClientRequest::open_session(partition, key), |reply| match reply {
            Reply::SessionOpened { session, .. } => Some(session),
            _ => None,
        })
    }

    /// Reads a piece of the log; [`Records::next`] says where to go on.
    pub fn read(
        &self,
        partition: PartitionId,
        from: Index,
        to: Option<Index>,
        level: Level,
        target: Target,
    ) -> Pending<Records> {
        self.pending(ClientRequest::read(partition, from, to, level).at(target), |reply| match reply {
            Reply::Records(records) => Some(records),
            _ => None,
        })
    }

    /// The state of a node and of its first partitions, see [`ClientRequest::status`].
    pub fn status(&self, target: Target) -> Pending<NodeStatus> {
        self.pending(ClientRequest::status(target), |reply| match reply {
            Reply::Status(status) => Some(*status),
            _ => None,
        })
    }

    fn pending<T>(&self, request: ClientRequest, take: fn(Reply) -> Option<T>) -> Pending<T> {
        let (reply, result) = oneshot::async_channel();
        self.shared.send(Command::One(request, reply));
        Pending { result, take }
    }

    /// The nodes that the cluster named so far, and where they are reached.
    pub fn nodes(&self) -> BTreeMap<NodeId, SocketAddr> {
        let (reply, nodes) = oneshot::channel();
        self.shared.send(Command::Nodes(reply));
        nodes.recv().unwrap_or_default()
    }

    /// An interface for many requests at a time.
    pub fn bulk(&self) -> Bulk {
        let id = self.shared.bulks.fetch_add(1, Ordering::Relaxed);
        let (sink, results) = unbounded();
        self.shared.send(Command::Open(id, sink));
        Bulk {
            shared: self.shared.clone(),
            id,
            results,
            batch: Vec::new(),
            in_flight: 0,
            in_flight_max: self.in_flight_max,
        }
    }
}

fn position(reply: Reply) -> Option<Position> {
    match reply {
        Reply::Appended { position } => Some(position),
        _ => None,
    }
}

/// A result that is on its way: a future that any executor can run or spawn, or [`Pending::wait`] without one.
#[must_use = "a request's outcome is known only by waiting for it"]
pub struct Pending<T> {
    result: oneshot::AsyncReceiver<Outcome>,
    take: fn(Reply) -> Option<T>,
}

impl<T> Pending<T> {
    /// Blocks this thread until it is there.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn wait(mut self) -> Result<T, ClientError> {
        on_this_thread(|cx| {
            loop {
                match Pin::new(&mut self).poll(cx) {
                    Poll::Ready(result) => return result,
                    Poll::Pending => std::thread::park(),
                }
            }
        })
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, ClientError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let take = self.take;
        Pin::new(&mut self.result)
            .poll(cx)
            .map(|outcome| taken(outcome.unwrap_or_else(|_| Err(stopped())), take))
    }
}

fn stopped() -> ClientError {
    ClientError::Unknown { why: "the client's thread has ended".into() }
}

fn taken<T>(outcome: Outcome, take: fn(Reply) -> Option<T>) -> Result<T, ClientError> {
    let wrong =
        || ClientError::Unknown { why: "the node's answer is of another kind than the request".into() };
    take(outcome?).ok_or_else(wrong)
}

/// Many requests at a time: they leave in batches and their results come back in batches, each request's exactly
/// once. For one thread; several may be open on one client.
pub struct Bulk {
    shared: Arc<Shared>,
    id: u64,
    results: Receiver<Vec<BulkDone>>,
    batch: Vec<(u64, ClientRequest)>,
    in_flight: usize,
    in_flight_max: usize,
}

impl Bulk {
    /// Adds a request to the batch, which leaves with [`Self::flush`].
    ///
    /// # Errors
    /// Gives it back if as much is in flight as the client's options allow: take results first.
    #[allow(clippy::result_large_err)] // the request itself, given back
    pub fn submit(&mut self, tag: u64, request: ClientRequest) -> Result<(), ClientRequest> {
        if self.in_flight >= self.in_flight_max {
            return Err(request);
        }
        self.in_flight += 1;
        self.batch.push((tag, request));
        Ok(())
    }

    /// Hands the batch over.
    pub fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.shared.send(Command::Many(self.id, std::mem::take(&mut self.batch)));
        }
    }

    /// Requests submitted whose results have not been taken.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Takes the results at hand; waits for the first one if `wait` says so and anything is in flight. Flushes first.
    pub fn results(&mut self, wait: bool) -> Vec<BulkDone> {
        self.flush();
        let mut out = Vec::new();
        while self.in_flight > out.len() {
            let batch =
                if wait && out.is_empty() { self.results.recv().ok() } else { self.results.try_recv().ok() };
            match batch {
                Some(mut batch) => out.append(&mut batch),
                None => break,
            }
        }
        self.in_flight -= out.len();
        out
    }
}

impl Bulk {
    /// Takes the results at hand; waits for the first one up to `time`, also if nothing is in flight: for a sender with a
    /// schedule. Flushes first.
    pub fn results_within(&mut self, time: core::time::Duration) -> Vec<BulkDone> {
        self.flush();
        let mut out = self.results.recv_timeout(time).unwrap_or_default();
        while let Ok(mut batch) = self.results.try_recv() {
            out.append(&mut batch);
        }
        self.in_flight -= out.len();
        out
    }
}

/// What [`Bulk::results_or`] found first.
#[derive(Debug)]
pub enum Either<T> {
    /// Results, at least one.
    Results(Vec<BulkDone>),
    /// Something from the other channel.
    Other(T),
    /// The other channel has ended.
    Ended,
}

impl Bulk {
    /// Waits for results or for something from another channel, whichever is there first: for a sender whose input comes slowly, and who
    /// tells outcomes as they come. Flushes first.
    pub fn results_or<T>(&mut self, other: &Receiver<T>) -> Either<T> {
        self.flush();
        crossbeam_channel::select_biased! {
            recv(self.results) -> batch => {
                let mut out = batch.unwrap_or_default();
                while let Ok(mut batch) = self.results.try_recv() {
                    out.append(&mut batch);
                }
                self.in_flight -= out.len();
                Either::Results(out)
            }
            recv(other) -> next => next.map_or(Either::Ended, Either::Other),
        }
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.flush();
        self.shared.send(Command::Shut(self.id));
    }
}

/// The thread.
struct Worker {
    io: Box<dyn Io>,
    core: ClientCore,
    inbox: Receiver<Command>,
    sinks: Slab<Sink>,
    bulks: BTreeMap<u64, Sender<Vec<BulkDone>>>,
    batches: BTreeMap<u64, Vec<BulkDone>>,
    done: Vec<Done>,
    /// Nobody is left to ask.
    closed: bool,
}

impl Worker {
    fn new(io: Box<dyn Io>, options: ClientOptions, inbox: Receiver<Command>) -> Worker {
        Worker {
            io,
            core: ClientCore::new(options),
            inbox,
            sinks: Slab::new(),
            bulks: BTreeMap::new(),
            batches: BTreeMap::new(),
            done: Vec::new(),
            closed: false,
        }
    }

    fn run(mut self) {
        let mut completions = Vec::new();
        loop {
            self.take_commands();
            self.core.flush(self.io.as_mut());
            self.deliver();
            if self.closed && self.core.in_flight() == 0 {
                return;
            }
            let wait = self.core.deadline().map_or(Wait::Forever, Wait::Until);
            self.io.poll(wait, &mut completions);
            for completion in completions.drain(..) {
                if completion.token.class == TokenClass::Net {
                    self.core.complete(self.io.as_mut(), completion);
                }
            }
            self.core.tick(self.io.as_mut());
        }
    }

    fn take_commands(&mut self) {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::One(request, reply)) => self.submit(request, Sink::One(reply)),
                Ok(Command::Many(bulk, requests)) => {
                    for (tag, request) in requests {
                        self.submit(request, Sink::Bulk { bulk, tag });
                    }
                }
                Ok(Command::Open(bulk, sink)) => drop(self.bulks.insert(bulk, sink)),
                Ok(Command::Shut(bulk)) => drop(self.bulks.remove(&bulk)),
                Ok(Command::Nodes(reply)) => drop(reply.send(self.core.nodes().clone())),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn submit(&mut self, request: ClientRequest, sink: Sink) {
        let key = self.sinks.insert(sink);
        if self.core.submit(self.io.as_mut(), request, key.0).is_err() {
            self.done.push(Done { tag: key.0, result: Err(ClientError::Full) });
        }
    }

    fn deliver(&mut self) {
        self.core.drain(&mut self.done);
        let at = self.io.clock().now;
        for done in self.done.drain(..) {
            match self.sinks.remove(Key(done.tag)) {
                // Who does not wait any more misses nothing.
                Some(Sink::One(reply)) => drop(reply.send(done.result)),
                Some(Sink::Bulk { bulk, tag }) => {
                    self.batches.entry(bulk).or_default().push(BulkDone { tag, result: done.result, at });
                }
                None => {}
            }
        }
        for (bulk, batch) in std::mem::take(&mut self.batches) {
            if let Some(sink) = self.bulks.get(&bulk) {
                drop(sink.send(batch));
            }
        }
    }
}
