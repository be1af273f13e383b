//! The shard: one thread's partitions, log and transport, driven turn by turn.
//!
//! A turn gathers completions, peer messages, requests and ticks, steps the replicas they concern, submits all
//! appends as one batch, sends what may be sent, and says when it wants to run again. It runs to completion: no
//! callbacks upward, nothing in it waits.
//!
//! Formation comes first: an unformed node has no log and no replicas. After a failed write or sync the shard is
//! *fenced*: waiters get `Unknown`, the log and all replicas are dropped and opened again from disk in the same
//! process, as followers (R12); the third failure in ten minutes stops the node. A batch that found no space is no such failure:
//! see [`space`].

mod arrivals;
mod disk_watch;
mod events;
mod forming;
mod life;
mod lives;
mod replicas;
mod space;
mod status;

use disk_watch::{DiskWatch, News};
use life::{Life, split};
pub(crate) use replicas::Partitions;
use replicas::{AHEAD, Visits};

use crate::error::Error;
use crate::formation::Hello;
use crate::identity::Identity;
use crate::inbox::{Command, Commands, RETRY_AFTER};
use crate::life_cycle::Serving;
use crate::marks::SharedMarks;
use crate::options::Options;
use crate::partition::{Context, Origin, Partition};
use crate::request::{BusyReason, Level, Reply, Request, RequestError};
use crate::state_machine::StateMachine;
use crate::transport::{Event, Transport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tidelog_cluster::Placement;
use tidelog_consensus::Replica;
use tidelog_io::{Completion, Io, TokenClass, Wait};
use tidelog_types::{Clock, Monotonic, NodeId, PartitionId};
use tidelog_wal::{RecoveryReport, Wal, WalError, WalEvent};

/// Most commands taken from the inbox in one turn.
const COMMANDS_PER_TURN: usize = 4096;
/// Failures of the log within [`FAILURE_WINDOW`] after which the node stops.
const FAILURES_MAX: usize = 3;
/// What a writer is told to wait when the disk is full.
const DISK_FULL: RequestError =
    RequestError::Busy { retry_after: Duration::from_millis(500), reason: BusyReason::DiskFull };
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
    /// When it began to listen.
    opened: Monotonic,
    life: Option<Life>,
    /// Hellos heard before formation.
    hellos: BTreeMap<NodeId, Hello>,
    /// Why peers do not hear this node, or this node does not hear them, since they were connected last.
    refusals: BTreeMap<NodeId, String>,
    /// Whether it serves its log, as it was said last.
    serving: Option<Serving>,
    connected: BTreeSet<NodeId>,
    marks: Arc<BTreeMap<PartitionId, Arc<SharedMarks>>>,
    /// Why the log failed, until the end of the turn that noticed.
    fenced: Option<WalError>,
    room: space::Room,
    failures: VecDeque<Monotonic>,
    /// Across openings of the log.
    disk: DiskWatch,
    pauses: u64,
    stopping: Option<Monotonic>,
    /// The growing batch waits until then for writers that are about to come back.
    sealing: Option<Monotonic>,
    /// Clients' reads are in line that this turn had no time for.
    reading_on: bool,
    wanted: Monotonic,
    clock: Clock,
    report: Option<RecoveryReport>,
    completions: Vec<Completion>,
    wal_events: Vec<WalEvent>,
    /// Of the events at hand.
    visits: Visits,
    /// Commands taken from the inbox that are next.
    commands: VecDeque<Command>,
    events: Vec<Event>,
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
        let disk = DiskWatch::new(options.stall_timeout, options.election_timeout, clock.now);
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
            opened: clock.now,
            life: None,
            hellos: BTreeMap::new(),
            refusals: BTreeMap::new(),
            serving: None,
            connected: BTreeSet::new(),
            marks: Arc::new(marks),
            fenced: None,
            room: space::Room::default(),
            failures: VecDeque::new(),
            disk,
            pauses: 0,
            stopping: None,
            sealing: None,
            reading_on: false,
            wanted: clock.now,
            clock,
            report: None,
            completions: Vec::new(),
            wal_events: Vec::new(),
            visits: Visits::default(),
            commands: VecDeque::new(),
            events: Vec::new(),
        };
        if shard.options.nodes.len() == 1 && shard.identity.formed.is_none() {
            shard.form(io)?;
        } else if shard.identity.formed.is_some() {
            shard.open_log(io, BTreeMap::new())?;
        }
        let hello = shard.hello();
        shard.address = shard.transport.start(io, hello)?;
        // Opening is not a pause: what it took is not held against the peers.
        shard.clock = io.clock();
        shard.wanted = shard.clock.now;
        shard.opened = shard.clock.now;
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

    /// How often this process was found to have been paused.
    pub fn pauses(&self) -> u64 {
        self.pauses
    }

    /// How often its log has failed within the time in which failures are counted.
    pub fn failures(&self) -> usize {
        self.failures.len()
    }

    /// Whether every replica here leads, with its whole log committed and applied: what a single node waits for
    /// before it is given to its embedder. On a full disk nothing can be committed, and there is no point in waiting.
    pub fn is_settled(&self) -> bool {
        self.room.lacking().is_some()
            || self.life.as_ref().is_some_and(|life| {
                life.replicas.full
                    || life.replicas.partitions.iter().all(|(_, p)| {
                        let (replica, marks) = (p.replica(), p.marks());
                        // Damage keeps the only voter from leading, and waiting heals nothing.
                        replica.damaged_entries() > 0
                            || replica.is_leader()
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
        self.life.as_ref()?.replicas.partitions.get(partition).map(Partition::replica)
    }

    /// A node that has a replica of a partition which has none here. One that is not connected is not named: it may be down for good, and
    /// no election here would ever correct that.
    fn elsewhere(&self, placement: &Placement, partition: PartitionId) -> RequestError {
        let Some(replicas) = placement.replicas(partition) else {
            return RequestError::NoSuchPartition(partition);
        };
        let hint = replicas.iter().find(|node| self.connected.contains(node)).copied();
        let address = hint.and_then(|node| self.addresses.get(&node)).map(ToString::to_string);
        RequestError::NotLeader { hint, address }
    }

    /// What is said to who would write to a full disk. Who asks for another node's log is shown the way as ever: that one may have
    /// space, and a client that is told to wait asks here again.
    fn refused_for_space(&self, request: &Request, leader: Option<NodeId>) -> RequestError {
        match leader {
            Some(leader) if leader != self.identity.node && !matches!(request, Request::Snapshot { .. }) => {
                let address = self.addresses.get(&leader).map(ToString::to_string);
                RequestError::NotLeader { hint: Some(leader), address }
            }
            _ => DISK_FULL,
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
        let wait = match (self.sealing, wait) {
            (Some(sealing), Wait::Until(deadline)) => Wait::Briefly(sealing.min(deadline)),
            _ => wait,
        };
        let mut completions = std::mem::take(&mut self.completions);
        io.poll(wait, &mut completions);
        self.clock = io.clock();
        self.notice_pause();
        self.go_on_applying(io);
        for completion in completions.drain(..) {
            self.complete(io, completion);
        }
        self.completions = completions;
        self.transport.tick(io, &mut self.events);
        self.log_tick(io);
        self.watch_disk();
        if let Some(why) = self.fenced.take() {
            self.reopen(io, &why)?;
        }
        self.look_after_space(io)?;
        self.handle_events(io)?;
        self.wake_answered();
        self.take_commands(io);
        self.tick_replicas(io);
        self.tick_snapshots(io);
        self.serve_reads(io);
        self.heed_trouble(io)?;
        self.finish(io)?;
        self.wake_answered();
        self.say_serving();
        if self.stopping.is_some_and(|deadline| self.drained() || self.clock.now >= deadline) {
            self.close(io);
            return Ok(Turn::Stopped);
        }
        // What is due already is due now: a turn is not late for something that was wanted before the last one ended.
        self.wanted = self.deadline().max(self.clock.now);
        Ok(Turn::Until(self.wanted))
    }

    // --- the turn's parts --------------------------------------------------------------------------------

    /// A process that did not run for a while must not blame its peers for the silence (R7).
    fn notice_pause(&mut self) {
        let late = self.clock.now.since(self.wanted);
        if late > self.options.election_timeout / 2 {
            self.pauses += 1;
            tracing::warn!(
                late_ms = late.as_millis() as u64,
                "this process was paused; one round of failure detection is skipped"
            );
            self.disk.paused(self.clock.now);
            if let Some(life) = &mut self.life {
                for partition in life.replicas.partitions.iter_mut() {
                    partition.paused(self.clock);
                }
                life.replicas.touch_all();
            }
        }
    }

    /// Looks whether the disk has stalled, or takes writes again.
    fn watch_disk(&mut self) {
        let now = self.clock.now;
        let Some(life) = &mut self.life else { return };
        let writing = life.wal.writing_since();
        let waits = life.replicas.waits_for_room() || !life.shared.unwritten.is_empty();
        life.blocked_since = (waits && writing.is_none()).then(|| life.blocked_since.unwrap_or(now));
        let oldest = writing.or(life.blocked_since);
        match self.disk.observe(now, oldest) {
            Some(News::Stalled { oldest }) => tracing::warn!(
                oldest_ms = oldest.as_millis() as u64,
                "the disk has stalled: it reports no error, and the oldest write is not durable. Leadership is handed over where the other replicas' disks are steady"
            ),
            Some(News::Back { stalled, behind }) => tracing::warn!(
                stalled_ms = stalled.as_millis() as u64,
                ranks_behind_ms = behind.as_millis() as u64,
                "the disk takes writes again"
            ),
            None => {}
        }
        life.disk = self.disk.disk();
    }

    fn complete(&mut self, io: &mut dyn Io, completion: Completion) {
        match completion.token.class {
            TokenClass::Wal => {
                if let Some(life) = &mut self.life {
                    life.wal.complete(io, completion, &mut self.wal_events);
                }
                self.handle_wal_events(io);
            }
            TokenClass::Net => self.transport.complete(io, completion, &mut self.events),
            TokenClass::Engine if self.told_of_space(&completion) => {}
            TokenClass::Engine => {
                if let Some(life) = &mut self.life {
                    life.snapshots.complete(completion, self.clock.now);
                }
            }
            _ => {}
        }
    }

    /// Those who were answered, now that all of them are.
    pub(super) fn wake_answered(&mut self) {
        if let Some(life) = &mut self.life {
            life.returning.wake();
        }
    }

    fn handle_events(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let mut events = std::mem::take(&mut self.events);
        loop {
            if let Some(life) = &self.life {
                let asked = events.iter().filter_map(|event| match event {
                    Event::Request { request, .. } => request.partition(),
                    _ => None,
                });
                self.visits.begin(&life.replicas.partitions, asked);
            }
            for event in events.drain(..) {
                match event {
                    Event::Hello { hello } => self.heard(io, hello)?,
                    Event::Up(node) => {
                        self.connected.insert(node);
                        self.refusals.remove(&node);
                        if let Some(life) = &mut self.life {
                            life.replicas.partitions.iter_mut().for_each(|p| p.peer_up(self.clock, node));
                            life.replicas.touch_all();
                        }
                    }
                    Event::Down(node) => {
                        self.connected.remove(&node);
                        self.hellos.remove(&node);
                        if let Some(life) = &mut self.life {
                            life.replicas.partitions.iter_mut().for_each(|p| p.peer_down(self.clock, node));
                            life.replicas.touch_all();
                        }
                    }
                    Event::Refused { node, reason } => {
                        if self.addresses.contains_key(&node) {
                            self.refusals.insert(node, reason);
                        }
                    }
                    Event::Peer { from, message } => {
                        if let Some(life) = &mut self.life {
                            life.replicas.messages.push_back((from, message));
                        }
                    }
                    Event::Request { client, request } => {
                        if let Some(life) = &self.life {
                            self.visits.next(&life.replicas.partitions, |id| life.wal.warm(id));
                        }
                        self.take_request(io, Origin::Client(client), request)
                    }
                    Event::ClientGone { connection } => {
                        if let Some(life) = &mut self.life {
                            life.reads.forget(
                                |origin| matches!(origin, Origin::Client(of) if of.connection == connection),
                            );
                        }
                    }
                }
            }
            // Forming the cluster runs to completion, and what arrived meanwhile was put behind.
            if self.events.is_empty() {
                break;
            }
            std::mem::swap(&mut events, &mut self.events);
        }
        self.events = events;
        self.take_waiting(io);
        Ok(())
    }

    fn take_commands(&mut self, io: &mut dyn Io) {
        if self.inbox.life_cycle.is_stopping() {
            self.stop();
        }
        for _ in 0..COMMANDS_PER_TURN {
            // What does not fit the growing batch stays in the inbox, whose bound is the back-pressure.
            if self.life.as_ref().is_some_and(Life::has_enough) {
                break;
            }
            match self.next_command() {
                Some(Command { request, asker }) => self.take_request(io, Origin::Local(asker), request),
                None => break,
            }
        }
    }

    /// The next command; where there are many partitions, from among a few that are looked at before.
    fn next_command(&mut self) -> Option<Command> {
        let Some(life) = self.life.as_ref().filter(|life| life.replicas.partitions.are_many()) else {
            return self.commands.pop_front().or_else(|| self.inbox.next());
        };
        if self.commands.is_empty() {
            self.commands.extend(std::iter::from_fn(|| self.inbox.next()).take(AHEAD));
            let ahead = self.commands.iter().filter_map(|command| command.request.partition());
            life.replicas.partitions.warm(ahead, |id| life.wal.warm(id));
        }
        self.commands.pop_front()
    }

    fn take_request(&mut self, io: &mut dyn Io, origin: Origin, request: Request) {
        if let Request::Status { first, partitions_max } = request {
            let status = Box::new(self.status_of(first, partitions_max));
            return answer(&mut *self.transport, origin, Ok(Reply::Status(status)));
        }
        let Some(partition) = request.partition() else { return };
        let refusal = if self.stopping.is_some() {
            Some(RequestError::Unavailable("the node is stopping".into()))
        } else {
            match &self.life {
                None if self.room.lacking().is_some() => match request {
                    Request::Read { .. } => Some(RequestError::Unavailable(
                        "the log is not open: there is no space for its next segment".into(),
                    )),
                    _ => Some(DISK_FULL),
                },
                None => Some(RequestError::Unavailable(
                    "the cluster is not formed yet: all founding nodes must be up once".into(),
                )),
                Some(life) => match life.replicas.partitions.get(partition) {
                    None => Some(match request {
                        Request::Read { level: Level::Local, .. } | Request::Snapshot { .. } => {
                            RequestError::NoSuchPartition(partition)
                        }
                        _ => self.elsewhere(&life.placement, partition),
                    }),
                    Some(p) if life.replicas.full && !matches!(request, Request::Read { .. }) => {
                        Some(self.refused_for_space(&request, p.replica().leader()))
                    }
                    Some(_) => None,
                },
            }
        };
        if let Some(error) = refusal {
            return answer(&mut *self.transport, origin, Err(error));
        }
        if matches!(request, Request::Snapshot { .. }) {
            return self.ask_snapshot(io, origin, partition);
        }
        if let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        {
            replicas.give(&mut cx, origin, partition, request);
        }
    }

    fn ask_snapshot(&mut self, io: &mut dyn Io, origin: Origin, partition: PartitionId) {
        let Some(life) = &mut self.life else { return };
        let mut cx = Context {
            io,
            wal: &mut life.wal,
            transport: &mut *self.transport,
            reads: &mut life.reads,
            returning: &mut life.returning,
            shared: &mut life.shared,
            clock: self.clock,
            disk: life.disk,
            cluster: life.cluster,
            addresses: &self.addresses,
            retry_after: RETRY_AFTER,
        };
        life.snapshots.ask(&mut cx, partition, origin);
    }

    fn deadline(&self) -> Monotonic {
        let far = self.clock.now.after(Duration::from_secs(1));
        let life = self.life.as_ref();
        [
            self.transport.deadline(),
            life.and_then(|l| l.wal.deadline()),
            life.and_then(|l| l.snapshots.deadline()),
            // A snapshot that is wanted already waits for its own time; touching its replica does not make it due earlier.
            life.and_then(|l| {
                l.replicas.due.iter().any(|id| !l.snapshots.has(*id)).then_some(self.clock.now)
            }),
            life.and_then(|l| l.replicas.ticks.next()),
            life.and(self.disk.deadline()),
            self.stopping,
            self.sealing,
            self.reading_on.then_some(self.clock.now),
            life.and_then(|l| l.shared.applying.is_waited_for().then_some(self.clock.now)),
            Some(self.room.deadline()),
            // Commands that were left in the inbox by the bound on a turn.
            ((!self.commands.is_empty() || !self.inbox.is_empty()) && !life.is_some_and(Life::has_enough))
                .then_some(self.clock.now),
        ]
        .into_iter()
        .flatten()
        .fold(far, Monotonic::min)
    }
}

fn answer(transport: &mut dyn Transport, origin: Origin, response: crate::request::Response) {
    match origin {
        Origin::Client(client) => transport.respond(client, response),
        Origin::Local(asker) => {
            if let Some(waker) = asker.answer(response) {
                waker.wake();
            }
        }
    }
}
