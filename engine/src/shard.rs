//! The shard: one thread's partitions, log and transport, driven turn by turn.
//!
//! A turn gathers completions, peer messages, requests and ticks, steps the replicas they concern, submits all
//! appends as one batch, sends what may be sent, and says when it wants to run again. It runs to completion: no
//! callbacks upward, nothing in it waits.
//!
//! Formation comes first: an unformed node has no log and no replicas. After a failed write or sync the shard is
//! *fenced*: waiters get `Unknown`, the log and all replicas are dropped and opened again from disk in the same
//! process, as followers (R12); the third failure in ten minutes stops the node.

use crate::error::Error;
use crate::formation::{Formed, Hello, Member};
use crate::identity::Identity;
use crate::inbox::{Command, Commands, RETRY_AFTER};
use crate::marks::SharedMarks;
use crate::options::Options;
use crate::partition::{Context, Machine, Origin, Partition};
use crate::reads::{ReadFor, Reads};
use crate::recovery::Recovering;
use crate::request::{Level, NodeStatus, PartitionStatus, Reply, Request, RequestError};
use crate::state_machine::StateMachine;
use crate::transport::{Event, PeerMessage, Transport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tidelog_cluster::Placement;
use tidelog_consensus::Replica;
use tidelog_io::{Completion, Foreground, Io, TokenClass, Wait};
use tidelog_types::{Clock, ClusterId, Monotonic, NodeId, PartitionId};
use tidelog_wal::{RecoveryReport, Wal, WalEvent};

/// Most commands taken from the inbox in one turn.
const COMMANDS_PER_TURN: usize = 4096;
/// Failures of the log within [`FAILURE_WINDOW`] after which the node stops.
const FAILURES_MAX: usize = 3;
/// What a writer is told to wait when the disk is full.
const FULL_RETRY_AFTER: Duration = Duration::from_millis(500);
const FAILURE_WINDOW: Duration = Duration::from_secs(600);
/// How long a stopping shard waits for what is in flight.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Makes the state machine of a partition, if it has one.
pub type MachineFactory = Box<dyn FnMut(PartitionId) -> Option<Box<dyn StateMachine>> + Send>;

/// What a turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Run again when something completes, or at this time.
    Until(Monotonic),
    /// Stopped cleanly.
    Stopped,
}

/// One shard with its log, its replicas and its way to the outside.
pub struct Shard {
    options: Options,
    transport: Box<dyn Transport>,
    inbox: Commands,
    machines: MachineFactory,
    identity: Identity,
    process: u64,
    address: Option<SocketAddr>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    started: Monotonic,
    life: Option<Life>,
    /// Hellos heard before formation.
    hellos: BTreeMap<NodeId, Hello>,
    connected: BTreeSet<NodeId>,
    marks: Arc<BTreeMap<PartitionId, Arc<SharedMarks>>>,
    failures: VecDeque<Monotonic>,
    stopping: Option<Monotonic>,
    wanted: Monotonic,
    clock: Clock,
    report: Option<RecoveryReport>,
    completions: Vec<Completion>,
    wal_events: Vec<WalEvent>,
    events: Vec<Event>,
}

/// The open log and what lives on it: dropped and opened again as one.
struct Life {
    cluster: u32,
    placement: Placement,
    wal: Wal,
    reads: Reads,
    replicas: Replicas,
}

/// The replicas of a shard and what is to be done for them.
struct Replicas {
    partitions: BTreeMap<PartitionId, Partition>,
    /// When each replica wants its tick.
    ticks: BTreeSet<(Monotonic, PartitionId)>,
    tick_of: BTreeMap<PartitionId, Monotonic>,
    /// Touched in this turn: marks to publish, ticks to reschedule, peers to feed.
    touched: BTreeSet<PartitionId>,
    /// Entries wait for the log's next batch before they can be sent.
    unsent: BTreeSet<PartitionId>,
    /// Peer messages and requests that wait for room in the growing batch, in order.
    messages: VecDeque<(NodeId, PeerMessage)>,
    requests: VecDeque<(Origin, PartitionId, Request)>,
    /// The disk has no space for another segment.
    full: bool,
}

impl Shard {
    /// Opens the data directory, recovers the log if the cluster is formed, and begins to listen.
    ///
    /// # Errors
    /// If the directory belongs to something else, its log is damaged, or the address is not free.
    pub fn open(
        io: &mut dyn Io,
        options: Options,
        transport: Box<dyn Transport>,
        inbox: Commands,
        machines: MachineFactory,
    ) -> Result<Shard, Error> {
        let identity = crate::directory::open(io, &options)?;
        let clock = io.clock();
        let process = io.random();
        let marks = (0..options.partitions).map(|p| (PartitionId(p), Arc::default())).collect();
        let mut shard = Shard {
            addresses: options.nodes.iter().copied().collect(),
            options,
            transport,
            inbox,
            machines,
            identity,
            process,
            address: None,
            started: clock.now,
            life: None,
            hellos: BTreeMap::new(),
            connected: BTreeSet::new(),
            marks: Arc::new(marks),
            failures: VecDeque::new(),
            stopping: None,
            wanted: clock.now,
            clock,
            report: None,
            completions: Vec::new(),
            wal_events: Vec::new(),
            events: Vec::new(),
        };
        if shard.options.nodes.len() == 1 && shard.identity.formed.is_none() {
            shard.form(io)?;
        } else if shard.identity.formed.is_some() {
            shard.open_log(io, &mut BTreeMap::new())?;
        }
        let hello = shard.hello();
        shard.address = shard.transport.start(io, hello)?;
        // Opening is not a pause: what it took is not held against the peers.
        shard.clock = io.clock();
        shard.wanted = shard.clock.now;
        Ok(shard)
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What recovery found at the last opening; none before formation.
    pub fn recovery(&self) -> Option<&RecoveryReport> {
        self.report.as_ref()
    }

    /// Whether the cluster is formed and the log open.
    pub fn is_formed(&self) -> bool {
        self.life.is_some()
    }

    /// Whether every replica here leads, with its whole log committed and applied: what a single node waits for
    /// before it is given to its embedder.
    pub fn is_settled(&self) -> bool {
        self.life.as_ref().is_some_and(|life| {
            life.replicas.partitions.values().all(|p| {
                let (replica, marks) = (p.replica(), p.marks());
                replica.is_leader()
                    && marks.high_water == replica.marks().last
                    && marks.applied == marks.high_water
            })
        })
    }

    /// The directory's identity.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The replica of a partition, for checkers and status.
    pub fn replica(&self, partition: PartitionId) -> Option<&Replica> {
        self.life.as_ref()?.replicas.partitions.get(&partition).map(Partition::replica)
    }

    /// A node that has a replica of a partition which has none here.
    fn elsewhere(&self, placement: &Placement, partition: PartitionId) -> RequestError {
        match placement.replicas(partition).and_then(<[NodeId]>::first) {
            Some(node) => {
                let address = self.addresses.get(node).map(ToString::to_string);
                RequestError::NotLeader { hint: Some(*node), address }
            }
            None => RequestError::NoSuchPartition(partition),
        }
    }

    /// The log, for checkers and measurements.
    pub fn wal(&self) -> Option<&Wal> {
        self.life.as_ref().map(|l| &l.wal)
    }

    pub(crate) fn shared_marks(&self) -> Arc<BTreeMap<PartitionId, Arc<SharedMarks>>> {
        Arc::clone(&self.marks)
    }

    /// Begins a clean stop: new work is refused, what is in flight drains, the log is sealed.
    pub fn stop(&mut self) {
        self.stopping.get_or_insert(self.clock.now.after(DRAIN_MAX));
    }

    /// One turn. `wait` says how long it may wait for something to do.
    ///
    /// # Errors
    /// If the shard cannot go on: the node is to stop with this error.
    pub fn turn(&mut self, io: &mut dyn Io, wait: Wait) -> Result<Turn, Error> {
        let mut completions = std::mem::take(&mut self.completions);
        io.poll(wait, &mut completions);
        self.clock = io.clock();
        self.notice_pause();
        for completion in completions.drain(..) {
            self.complete(io, completion)?;
        }
        self.completions = completions;
        self.transport.tick(io, &mut self.events);
        self.log_tick(io)?;
        self.handle_events(io)?;
        self.take_commands(io);
        self.tick_replicas(io);
        self.finish(io)?;
        if self.stopping.is_some_and(|deadline| self.drained() || self.clock.now >= deadline) {
            self.close(io)?;
            return Ok(Turn::Stopped);
        }
        self.wanted = self.deadline();
        Ok(Turn::Until(self.wanted))
    }

    // --- the turn's parts --------------------------------------------------------------------------------

    /// A process that did not run for a while must not blame its peers for the silence (R7).
    fn notice_pause(&mut self) {
        let late = self.clock.now.since(self.wanted);
        if late > self.options.election_timeout / 2 {
            tracing::warn!(
                late_ms = late.as_millis() as u64,
                "this process was paused; one round of failure detection is skipped"
            );
            if let Some(life) = &mut self.life {
                for partition in life.replicas.partitions.values_mut() {
                    partition.paused(self.clock);
                }
                life.replicas.touch_all();
            }
        }
    }

    fn complete(&mut self, io: &mut dyn Io, completion: Completion) -> Result<(), Error> {
        match completion.token.class {
            TokenClass::Wal => {
                if let Some(life) = &mut self.life {
                    life.wal.complete(io, completion, &mut self.wal_events);
                }
                self.handle_wal_events(io)
            }
            TokenClass::Net => {
                self.transport.complete(io, completion, &mut self.events);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn log_tick(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        if let Some(life) = &mut self.life {
            life.wal.tick(io, &mut self.wal_events);
        }
        self.handle_wal_events(io)
    }

    fn handle_wal_events(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mut events = std::mem::take(&mut self.wal_events);
        let mut failed = None;
        for event in events.drain(..) {
            let Some((replicas, mut cx)) =
                split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
            else {
                continue;
            };
            match event {
                WalEvent::Durable { partition, ticket } => {
                    replicas.touched.insert(partition);
                    if let Some(p) = replicas.partitions.get_mut(&partition) {
                        p.durable(&mut cx, ticket);
                    }
                }
                WalEvent::Read { read, result } => {
                    let run = result.map_err(|error| {
                        tracing::warn!(%error, "a read from the log failed");
                        RequestError::Unavailable(format!("the log could not be read: {error}"))
                    });
                    match cx.reads.finish(read) {
                        Some(ReadFor::Client { partition, wanted }) => {
                            match (run, replicas.partitions.get(&partition)) {
                                (Ok(run), Some(p)) => p.answer_read(&mut cx, wanted, run),
                                (Err(error), _) => cx.respond(wanted.origin, Err(error)),
                                (Ok(_), None) => {}
                            }
                        }
                        Some(ReadFor::Peer { partition, peer }) => {
                            replicas.touched.insert(partition);
                            if let Some(p) = replicas.partitions.get_mut(&partition) {
                                p.fetched(peer, run.ok());
                            }
                        }
                        Some(ReadFor::Apply { partition }) => {
                            replicas.touched.insert(partition);
                            if let Some(p) = replicas.partitions.get_mut(&partition) {
                                p.apply_read(&mut cx, run.ok());
                            }
                        }
                        None => {}
                    }
                }
                WalEvent::Fenced { error } => {
                    failed = Some(error);
                    break;
                }
                WalEvent::Full => {
                    tracing::warn!("no space for another segment: appends are refused until there is");
                    replicas.full = true;
                    for (origin, _, _) in replicas.requests.drain(..) {
                        cx.respond(origin, Err(RequestError::Busy { retry_after: FULL_RETRY_AFTER }));
                    }
                }
                WalEvent::SpaceBack => {
                    tracing::info!("space for segments is back");
                    replicas.full = false;
                }
            }
        }
        events.clear();
        self.wal_events = events;
        match failed {
            Some(error) => self.reopen(io, &error.to_string()),
            None => Ok(()),
        }
    }

    fn handle_events(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                Event::Hello { hello } => self.heard(io, hello)?,
                Event::Up(node) => {
                    tracing::info!(%node, "channel up");
                    self.connected.insert(node);
                    if let Some(life) = &mut self.life {
                        life.replicas.partitions.values_mut().for_each(|p| p.peer_up(self.clock, node));
                        life.replicas.touch_all();
                    }
                }
                Event::Down(node) => {
                    tracing::info!(%node, "channel down");
                    self.connected.remove(&node);
                    if let Some(life) = &mut self.life {
                        life.replicas.partitions.values_mut().for_each(|p| p.peer_down(self.clock, node));
                        life.replicas.touch_all();
                    }
                }
                Event::Peer { from, message } => {
                    if let Some(life) = &mut self.life {
                        life.replicas.messages.push_back((from, message));
                    }
                }
                Event::Request { client, request } => self.take_request(io, Origin::Client(client), request),
                Event::ClientGone { .. } => {}
            }
        }
        self.events = events;
        self.take_waiting(io);
        Ok(())
    }

    fn take_commands(&mut self, io: &mut dyn Io) {
        for _ in 0..COMMANDS_PER_TURN {
            // What does not fit the growing batch stays in the inbox, whose bound is the back-pressure.
            if self.life.as_ref().is_some_and(|life| !life.replicas.requests.is_empty()) {
                break;
            }
            match self.inbox.next() {
                Some(Command::Request { request, reply }) => {
                    self.take_request(io, Origin::Local(reply), request)
                }
                Some(Command::Stop) => self.stop(),
                None => break,
            }
        }
    }

    fn take_request(&mut self, io: &mut dyn Io, origin: Origin, request: Request) {
        if matches!(request, Request::Status) {
            let status = Box::new(self.status());
            return answer(&mut *self.transport, origin, Ok(Reply::Status(status)));
        }
        let partition = match &request {
            Request::Append { partition, .. }
            | Request::OpenSession { partition, .. }
            | Request::Read { partition, .. } => *partition,
            Request::Status => return,
        };
        let refusal = if self.stopping.is_some() {
            Some(RequestError::Unavailable("the node is stopping".into()))
        } else {
            match &self.life {
                None => Some(RequestError::Unavailable(
                    "the cluster is not formed yet: all founding nodes must be up once".into(),
                )),
                Some(life) if !life.replicas.partitions.contains_key(&partition) => Some(match request {
                    Request::Read { level: Level::Local, .. } => RequestError::NoSuchPartition(partition),
                    _ => self.elsewhere(&life.placement, partition),
                }),
                Some(life) if life.replicas.full && !matches!(request, Request::Read { .. }) => {
                    Some(RequestError::Busy { retry_after: FULL_RETRY_AFTER })
                }
                Some(_) => None,
            }
        };
        if let Some(error) = refusal {
            return answer(&mut *self.transport, origin, Err(error));
        }
        if let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        {
            replicas.give(&mut cx, origin, partition, request);
        }
    }

    /// Gives peer messages, and then requests, that waited for room another chance, in order.
    fn take_waiting(&mut self, io: &mut dyn Io) {
        let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        else {
            return;
        };
        // Entries that find no room wait in their order; what carries none (heartbeats, votes) does not wait behind them.
        let mut blocked = VecDeque::new();
        for (from, message) in std::mem::take(&mut replicas.messages) {
            if replicas.full && !message.records.is_empty() {
                continue; // the leader sends them again when there is room
            }
            let Some(partition) = replicas.partitions.get_mut(&message.partition) else { continue };
            replicas.touched.insert(message.partition);
            if !blocked.is_empty() && !message.records.is_empty() {
                blocked.push_back((from, message));
            } else if let Some(rest) = partition.message(&mut cx, from, message) {
                blocked.push_back((from, rest));
            }
        }
        replicas.messages = blocked;
        while let Some((origin, partition, request)) = replicas.requests.pop_front() {
            if !replicas.give_front(&mut cx, origin, partition, request) {
                break;
            }
        }
    }

    fn tick_replicas(&mut self, io: &mut dyn Io) {
        let now = self.clock.now;
        let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        else {
            return;
        };
        while let Some(&(at, partition)) = replicas.ticks.first() {
            if at > now {
                break;
            }
            replicas.ticks.pop_first();
            replicas.tick_of.remove(&partition);
            replicas.touched.insert(partition);
            if let Some(p) = replicas.partitions.get_mut(&partition) {
                p.tick(&mut cx);
            }
        }
    }

    /// Submits the batch, feeds the peers, flushes the sockets, publishes the marks.
    fn finish(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        if let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        {
            // Touched replicas are the only ones that can have steps without room, and they stay touched meanwhile.
            let mut waiting = BTreeSet::new();
            for id in &replicas.touched {
                if replicas.partitions.get_mut(id).is_some_and(|p| p.write_waiting(&mut cx)) {
                    waiting.insert(*id);
                }
            }
            cx.wal.flush(cx.io);
            let mut feed = std::mem::take(&mut replicas.unsent);
            feed.extend(replicas.touched.iter().copied());
            for id in feed {
                if let Some(p) = replicas.partitions.get_mut(&id)
                    && p.pump(&mut cx)
                {
                    replicas.unsent.insert(id);
                }
            }
            while let Some(id) = replicas.touched.pop_first() {
                if let Some(p) = replicas.partitions.get(&id) {
                    p.publish();
                    let at = p.replica().deadline();
                    if let Some(old) = replicas.tick_of.insert(id, at) {
                        replicas.ticks.remove(&(old, id));
                    }
                    replicas.ticks.insert((at, id));
                }
            }
            replicas.touched = waiting;
        }
        self.transport.flush(io);
        Ok(())
    }

    fn deadline(&self) -> Monotonic {
        let far = self.clock.now.after(Duration::from_secs(1));
        let life = self.life.as_ref();
        [
            self.transport.deadline(),
            life.and_then(|l| l.wal.deadline()),
            life.and_then(|l| l.replicas.ticks.first().map(|(at, _)| *at)),
            self.stopping,
            // Commands that were left in the inbox by the bound on a turn.
            (!self.inbox.is_empty() && life.is_none_or(|l| l.replicas.requests.is_empty()))
                .then_some(self.clock.now),
        ]
        .into_iter()
        .flatten()
        .fold(far, Monotonic::min)
    }

    // --- formation ---------------------------------------------------------------------------------------

    fn hello(&self) -> Hello {
        Hello {
            cluster_name: self.options.cluster_name.clone(),
            node: self.options.node,
            incarnation: self.identity.incarnation,
            process: self.process,
            shard: 0,
            shard_count: self.identity.shard_count,
            partitions: self.identity.partitions,
            replication: self.identity.replication,
            key_hash: self.identity.key_hash,
            payload_bytes_max: tidelog_types::limits::PAYLOAD_BYTES_MAX as u32,
            feature_level: 1,
            heartbeat_ms: u32::try_from(self.options.heartbeat.as_millis()).unwrap_or(u32::MAX),
            formed: self.identity.formed.clone(),
        }
    }

    /// A peer's hello before or after formation; the transport has judged it already.
    fn heard(&mut self, io: &mut dyn Io, hello: Hello) -> Result<(), Error> {
        if self.identity.formed.is_some() {
            return Ok(());
        }
        if let Some(formed) = &hello.formed {
            let own = Member { node: self.options.node, incarnation: self.identity.incarnation };
            if formed.members.contains(&own) {
                let formed = formed.clone();
                return self.become_formed(io, formed);
            }
            return Ok(());
        }
        self.hellos.insert(hello.node, hello);
        let founders = self.options.nodes.iter().map(|(n, _)| *n);
        let first = self.options.nodes.first().map(|(n, _)| *n) == Some(self.options.node);
        if first && founders.filter(|n| *n != self.options.node).all(|n| self.hellos.contains_key(&n)) {
            return self.form(io);
        }
        Ok(())
    }

    /// This node is the first founder and has heard every other one, unformed: it forms the cluster.
    fn form(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mut members: Vec<Member> =
            self.hellos.values().map(|h| Member { node: h.node, incarnation: h.incarnation }).collect();
        members.push(Member { node: self.options.node, incarnation: self.identity.incarnation });
        members.sort();
        let cluster = ClusterId(io.random().max(1));
        self.become_formed(io, Formed { cluster, members })
    }

    fn become_formed(&mut self, io: &mut dyn Io, formed: Formed) -> Result<(), Error> {
        tracing::info!(cluster = format!("{:016x}", formed.cluster.get()), members = ?formed.members, "cluster formed");
        self.identity.formed = Some(formed.clone());
        let mut fg = Foreground::new(io);
        let stored = self.identity.store(&mut fg, &self.options.data_dir);
        let others = fg.finish();
        stored?;
        self.hellos.clear();
        self.hand_out(io, others)?;
        self.open_log(io, &mut BTreeMap::new())?;
        self.transport.formed(io, &formed);
        Ok(())
    }

    // --- the log's lives ---------------------------------------------------------------------------------

    /// Opens the log and starts a replica, as a follower, for each partition placed here. `machines`: state machines
    /// that have lived before.
    fn open_log(
        &mut self,
        io: &mut dyn Io,
        machines: &mut BTreeMap<PartitionId, Option<Machine>>,
    ) -> Result<(), Error> {
        let formed = self.identity.formed.clone().expect("the log is opened once the cluster is formed");
        let placement = crate::recovery::placement(&self.options, &formed)
            .map_err(|e| Error::Config(format!("[cluster] replication: {e}")))?;
        let held = crate::recovery::held(&placement, self.options.node);
        let mut recovering = Recovering::new(held.keys().copied());
        let (wal, report, mut others) = Wal::open(
            io,
            crate::recovery::wal_options(&self.options, &self.identity, &formed),
            &mut recovering,
        )
        .map_err(|e| Error::Recovery(e.to_string()))?;
        if report.fresh && self.identity.has_log {
            return Err(Error::Directory {
                path: self.options.data_dir.clone(),
                why: "its log is gone, while its identity says that there was one: a node without its log must not vote. Restore the directory".into(),
            });
        }
        if !self.identity.has_log {
            self.identity.has_log = true;
            let mut fg = Foreground::new(io);
            self.identity.store(&mut fg, &self.options.data_dir)?;
            others.extend(fg.finish());
        }
        tracing::info!(found = crate::recovery::describe(&report), "log opened");
        self.report = Some(report);
        let clock = io.clock();
        let mut partitions = BTreeMap::new();
        for (id, voters) in held {
            let config = crate::recovery::replica_config(&self.options, id, voters, io.random());
            let restored = recovering.take(id);
            restored.check().map_err(|e| {
                Error::Recovery(format!(
                    "the log of partition {id} contradicts itself: {e}. The data is left as it is"
                ))
            })?;
            let replica = Replica::new(config, restored, clock);
            let machine = machines.remove(&id).unwrap_or_else(|| (self.machines)(id).map(Machine::new));
            let marks = self.marks.get(&id).cloned().unwrap_or_default();
            partitions.insert(id, Partition::new(id, replica, machine, marks));
        }
        let touched = partitions.keys().copied().collect();
        for node in &self.connected {
            partitions.values_mut().for_each(|p: &mut Partition| p.peer_up(clock, *node));
        }
        let replicas = Replicas {
            partitions,
            ticks: BTreeSet::new(),
            tick_of: BTreeMap::new(),
            touched,
            unsent: BTreeSet::new(),
            messages: VecDeque::new(),
            requests: VecDeque::new(),
            full: false,
        };
        let cluster = formed.cluster.tag();
        self.life = Some(Life { cluster, placement, wal, reads: Reads::default(), replicas });
        self.hand_out(io, others)
    }

    /// Completions that arrived while something ran to completion.
    fn hand_out(&mut self, io: &mut dyn Io, others: Vec<Completion>) -> Result<(), Error> {
        self.clock = io.clock();
        self.wanted = self.wanted.max(self.clock.now);
        for completion in others {
            if completion.token.class == TokenClass::Net {
                self.transport.complete(io, completion, &mut self.events);
            }
        }
        Ok(())
    }

    /// The log failed: nothing more is acknowledged. Everyone who waits learns so, and the log is opened again.
    fn reopen(&mut self, io: &mut dyn Io, why: &str) -> Result<(), Error> {
        tracing::error!(%why, "the shard is fenced: nothing is acknowledged until its log is open again");
        self.failures.push_back(self.clock.now);
        while self.failures.front().is_some_and(|at| self.clock.now.since(*at) > FAILURE_WINDOW) {
            self.failures.pop_front();
        }
        let mut machines = self.abandon_life(io, "the shard is being recovered");
        if self.failures.len() >= FAILURES_MAX {
            self.transport.flush(io);
            return Err(Error::Fenced(why.to_owned()));
        }
        self.open_log(io, &mut machines)
    }

    /// Drops the log and the replicas; answers everyone who waits. Gives back the state machines.
    fn abandon_life(&mut self, io: &mut dyn Io, why: &str) -> BTreeMap<PartitionId, Option<Machine>> {
        if let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        {
            for wanted in cx.reads.abandon() {
                cx.respond(wanted.origin, Err(RequestError::Unavailable(why.to_owned())));
            }
            for (origin, _, _) in replicas.requests.drain(..) {
                cx.respond(origin, Err(RequestError::Unavailable(why.to_owned())));
            }
            replicas.partitions.values_mut().for_each(|p| p.abandon(&mut cx, why));
        }
        let Some(life) = self.life.take() else { return BTreeMap::new() };
        life.replicas.partitions.into_iter().map(|(id, p)| (id, p.into_machine())).collect()
    }

    fn drained(&self) -> bool {
        self.life.as_ref().is_none_or(|l| {
            let r = &l.replicas;
            r.requests.is_empty() && r.messages.is_empty() && r.partitions.values().all(|p| p.waiting() == 0)
        })
    }

    fn close(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        if let Some(life) = &mut self.life {
            let closed = life.wal.close(io);
            // A log that failed on its last step is not opened again just to be closed.
            let reported = closed.events.into_iter().filter(|e| !matches!(e, WalEvent::Fenced { .. }));
            self.wal_events.extend(reported);
            self.handle_wal_events(io)?;
            self.hand_out(io, closed.others)?;
        }
        self.abandon_life(io, "the node has stopped");
        self.transport.flush(io);
        // What was just queued for clients leaves with one more submission.
        self.completions.clear();
        io.poll(Wait::No, &mut self.completions);
        Ok(())
    }

    // --- status ------------------------------------------------------------------------------------------

    /// State of this node and its replicas.
    pub fn status(&self) -> NodeStatus {
        let partitions = self.life.as_ref().map_or_else(Vec::new, |life| {
            life.replicas
                .partitions
                .iter()
                .map(|(id, p)| {
                    let (replica, marks) = (p.replica(), p.marks());
                    PartitionStatus {
                        partition: id.get(),
                        role: replica.role().to_string(),
                        leader: replica.leader().map(NodeId::get),
                        generation: replica.generation().get(),
                        high_water: marks.high_water.get(),
                        low_water: marks.low_water.get(),
                        durable: marks.durable.get(),
                        applied: marks.applied.get(),
                        last: replica.marks().last.get(),
                        voters: replica.voters().iter().map(|n| n.get()).collect(),
                        learners: vec![],
                        damaged: 0,
                    }
                })
                .collect()
        });
        NodeStatus {
            node: self.options.node.get(),
            address: self.address.map(|a| a.to_string()).unwrap_or_default(),
            shards: self.identity.shard_count,
            uptime_ms: u64::try_from(self.clock.now.since(self.started).as_millis()).unwrap_or(u64::MAX),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster: self
                .identity
                .formed
                .as_ref()
                .map(|f| format!("{:016x}", f.cluster.get()))
                .unwrap_or_default(),
            incarnation: format!("{:016x}", self.identity.incarnation.get()),
            connected: self.connected.iter().map(|n| n.get()).collect(),
            partitions,
        }
    }
}

impl Replicas {
    fn touch_all(&mut self) {
        self.touched.extend(self.partitions.keys().copied());
    }

    /// A request in its turn: behind those that wait for room already.
    fn give(&mut self, cx: &mut Context<'_>, origin: Origin, partition: PartitionId, request: Request) {
        if self.requests.is_empty() {
            self.give_front(cx, origin, partition, request);
        } else {
            self.requests.push_back((origin, partition, request));
        }
    }

    /// The first request in line. False, and it stays first, if there is no room for it.
    fn give_front(
        &mut self,
        cx: &mut Context<'_>,
        origin: Origin,
        partition: PartitionId,
        request: Request,
    ) -> bool {
        self.touched.insert(partition);
        let Some(p) = self.partitions.get_mut(&partition) else { return true };
        match p.request(cx, origin, request) {
            Ok(()) => true,
            Err((origin, request)) => {
                self.requests.push_front((origin, partition, request));
                false
            }
        }
    }
}

fn answer(transport: &mut dyn Transport, origin: Origin, response: crate::request::Response) {
    match origin {
        Origin::Client(client) => transport.respond(client, response),
        Origin::Local(reply) => drop(reply.send(response)),
    }
}

/// The replicas of a life, and what a call into one of them needs beside it.
fn split<'a>(
    life: &'a mut Option<Life>,
    io: &'a mut dyn Io,
    transport: &'a mut dyn Transport,
    clock: Clock,
    addresses: &'a BTreeMap<NodeId, SocketAddr>,
) -> Option<(&'a mut Replicas, Context<'a>)> {
    let Life { cluster, wal, reads, replicas, .. } = life.as_mut()?;
    let cluster = *cluster;
    Some((
        replicas,
        Context { io, wal, transport, reads, clock, cluster, addresses, retry_after: RETRY_AFTER },
    ))
}
