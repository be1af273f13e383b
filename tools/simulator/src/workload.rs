//! Simulated clients: the network crate's client over seams of their own, appending, retrying and reading, and keeping
//! account of every answer.

use crate::checkers::{Appending, Checkers, Reading, Verdict, broken, ensure};
use crate::lull::Lulls;
use crate::payload::Ident;
use crate::profile::{CLIENTS_FROM, Profile};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tidelog::request::{Level, Reply, RequestError};
use tidelog_io::{Completion, Io, Wait};
use tidelog_net::client::Done;
use tidelog_net::{ClientCore, ClientError, ClientOptions, ClientRequest, Target};
use tidelog_sim::{Random, SimIo, World};
use tidelog_types::{Index, Monotonic, NodeId, PartitionId, Sequence, SessionId, SessionKey, SessionRef};

/// Sequences of a session that are not acknowledged yet.
const SESSION_WINDOW: usize = 8;
/// Acknowledged sequences of a session that may be asked for again.
const REPEATS_KEPT: usize = 64;
/// Time before what had no clear answer is asked again.
const PARKED_FOR: Duration = Duration::from_millis(50);

/// What an answer is waited for.
#[derive(Clone, Debug)]
enum Asked {
    /// An append, and whether no earlier try of it ended without an answer.
    Append(Appending, bool),
    Open {
        partition: u64,
        key: u128,
    },
    Read(Reading),
}

/// An append of a session: what it says is fixed for all its tries.
#[derive(Clone, Debug)]
struct Entry {
    append: Appending,
    payload: Bytes,
    /// What became of an earlier try is not known.
    unknown: bool,
}

/// One partition's session of a client.
#[derive(Clone, Debug)]
struct Session {
    id: Option<u64>,
    /// The open request is under way.
    opening: bool,
    next: u64,
    /// Not acknowledged, by sequence.
    open: BTreeMap<u64, Entry>,
    /// Of those, not under way.
    parked: BTreeSet<u64>,
    /// Acknowledged.
    done: BTreeMap<u64, Entry>,
}

struct Client {
    id: u64,
    io: SimIo,
    core: ClientCore,
    random: Random,
    /// Mean time between two operations.
    interval_ns: u64,
    in_flight_max: usize,
    timeout: Duration,
    next_at: Monotonic,
    parked_until: Monotonic,
    number: u64,
    tag: u64,
    asked: BTreeMap<u64, Asked>,
    sessions: BTreeMap<u64, Session>,
    completions: Vec<Completion>,
    results: Vec<Done>,
}

/// All clients of a run.
pub(crate) struct Workload {
    world: World,
    partitions: u64,
    nodes: Vec<u64>,
    payload_max: usize,
    clients: BTreeMap<u64, Client>,
    acked: Vec<u64>,
    stopping: bool,
    /// After how long without use a session expires.
    session_expiry: Duration,
    /// Whether clients write into each other's sessions.
    rivals: bool,
    /// Definite refusals of session appends: expired, reused, gaps.
    refusals: [u64; 3],
    /// A node that led when it fell out of touch, and until when clients read from it in particular: whoever leads meanwhile
    /// commits what it does not know of.
    stale: Option<(u64, u64)>,
    lulls: Lulls,
}

impl Workload {
    pub(crate) fn new(world: &World, profile: &Profile, random: &mut Random) -> Workload {
        let addresses: Vec<_> = profile.addresses(world).into_iter().map(|(_, address)| address).collect();
        let mut clients = BTreeMap::new();
        for id in CLIENTS_FROM..CLIENTS_FROM + profile.clients {
            let mut random = Random::new(random.bits());
            // A client may know one node only, and learns of the others.
            let known = if random.coin() {
                addresses.clone()
            } else {
                random.pick(&addresses).copied().into_iter().collect()
            };
            let options = ClientOptions { cluster: "simulated".into(), ..ClientOptions::new(known) };
            let in_flight_max = usize::try_from(random.between((1, 32))).unwrap_or(1);
            let client = Client {
                id,
                io: world.node(id),
                core: ClientCore::new(options),
                interval_ns: random.between((4_000_000, 20_000_000)),
                in_flight_max,
                timeout: Duration::from_millis(random.between((500, 5_000))),
                next_at: Monotonic(0),
                parked_until: Monotonic(0),
                number: 0,
                tag: 0,
                asked: BTreeMap::new(),
                sessions: BTreeMap::new(),
                completions: Vec::new(),
                results: Vec::new(),
                random,
            };
            clients.insert(id, client);
        }
        Workload {
            world: world.clone(),
            partitions: profile.partitions,
            nodes: profile.nodes.clone(),
            payload_max: profile.payload_max,
            clients,
            acked: vec![0; usize::try_from(profile.partitions).unwrap_or(0)],
            stopping: false,
            session_expiry: profile.session_expiry,
            rivals: profile.rivals,
            refusals: [0; 3],
            stale: None,
            lulls: Lulls::new(u64::try_from(profile.session_expiry.as_nanos()).unwrap_or(u64::MAX)),
        }
    }

    /// A leader falls out of touch for so long: clients go on to ask it.
    pub(crate) fn leader_lost(&mut self, node: u64, until_ns: u64) {
        self.stale = Some((node, until_ns));
    }

    /// Gives every client its first turn.
    pub(crate) fn start(&self) {
        for id in self.clients.keys() {
            self.world.wake(*id);
        }
    }

    pub(crate) fn is_client(&self, id: u64) -> bool {
        self.clients.contains_key(&id)
    }

    /// Appends acknowledged so far, by partition.
    pub(crate) fn acked(&self) -> &[u64] {
        &self.acked
    }

    /// Whether nothing new is asked any more.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Nothing new is asked from now on; what a session has begun is brought to its end.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether nothing is waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.clients.values().all(|c| c.asked.is_empty() && c.sessions.values().all(|s| s.open.is_empty()))
    }

    /// Clients leave no partition alone from now on.
    pub(crate) fn end_lulls(&mut self) {
        self.lulls.end();
    }

    /// Sessions that were used first after a lull.
    pub(crate) fn used_after_lulls(&self) -> u64 {
        self.lulls.used()
    }

    /// Definite refusals of session appends so far: for an expired session, a sequence used by another, a gap.
    pub(crate) fn refusals(&self) -> [u64; 3] {
        self.refusals
    }

    /// A session of another client: partition, id, next sequence.
    fn rival_of(&self, id: u64) -> Option<(u64, u64, u64)> {
        let others = self.clients.values().filter(|client| client.id != id);
        let mut sessions = others.flat_map(|client| client.sessions.iter());
        sessions.find_map(|(partition, session)| Some((*partition, session.id?, session.next)))
    }

    /// A client's turn.
    pub(crate) fn turn(&mut self, id: u64, checkers: &mut Checkers) -> Verdict {
        let rival = if self.rivals { self.rival_of(id) } else { None };
        let expiry_ms = u64::try_from(self.session_expiry.as_millis()).unwrap_or(u64::MAX);
        let Workload {
            world,
            partitions,
            nodes,
            payload_max,
            clients,
            acked,
            stopping,
            stale,
            refusals,
            lulls,
            ..
        } = self;
        let Some(client) = clients.get_mut(&id) else { return Ok(()) };
        client.io.poll(Wait::No, &mut client.completions);
        for completion in std::mem::take(&mut client.completions) {
            client.core.complete(&mut client.io, completion);
        }
        client.core.tick(&mut client.io);
        client.core.flush(&mut client.io);
        client.core.drain(&mut client.results);
        for done in std::mem::take(&mut client.results) {
            if let Some(partition) = client.done(done, checkers, expiry_ms, refusals)?
                && let Some(count) = usize::try_from(partition).ok().and_then(|p| acked.get_mut(p))
            {
                *count += 1;
            }
        }
        let now = client.io.clock().now;
        if now >= client.parked_until {
            client.resume(now);
        }
        while !*stopping && now >= client.next_at {
            client.next_at = client
                .next_at
                .max(now)
                .after(Duration::from_nanos(client.random.between((0, 2 * client.interval_ns))));
            if client.core.in_flight() < client.in_flight_max {
                let quiet = lulls.quiet(world.now());
                if let Some(partition) = lulls.awaits(world.now())
                    && client.uses_at_once(partition)
                {
                    client.ask_session(partition, checkers.history.floor(partition), *payload_max);
                    lulls.use_first(world.now());
                    continue;
                }
                let own: Vec<u64> =
                    client.sessions.keys().copied().filter(|p| client.uses_at_once(*p)).collect();
                lulls.draw(world.now(), &own, &mut client.random);
                match stale.filter(|(_, until)| world.now() < *until && client.random.coin()) {
                    Some((node, _)) if client.random.coin() => client.read_at(*partitions, node, checkers),
                    Some((node, _)) if quiet.is_none() => {
                        client.append_beside(*partitions, nodes, node, checkers)
                    }
                    None if rival.is_some_and(|(p, ..)| Some(p) != quiet) && client.random.below(20) == 0 => {
                        client.append_as_rival(rival, checkers);
                    }
                    _ => client.ask(*partitions, nodes, *payload_max, quiet, checkers),
                }
            }
        }
        client.core.flush(&mut client.io);
        let own = (!*stopping).then_some(client.next_at);
        let parked = client.sessions.values().any(|s| !s.parked.is_empty()).then_some(client.parked_until);
        let deadline = [own, parked, client.core.deadline()].into_iter().flatten().min();
        world.sleep_until(id, deadline);
        Ok(())
    }
}

impl Client {
    fn submit(&mut self, request: ClientRequest, asked: Asked) -> bool {
        self.tag += 1;
        let taken = self.core.submit(&mut self.io, request.within(self.timeout), self.tag).is_ok();
        if taken {
            self.asked.insert(self.tag, asked);
        }
        taken
    }

    fn ident(&mut self) -> Ident {
        self.number += 1;
        Ident { client: self.id, number: self.number, random: self.random.bits() }
    }

    fn payload_len(&mut self, payload_max: usize) -> usize {
        let most = match self.random.below(200) {
            0 => payload_max as u64,
            1..=3 => 72 << 10,
            4..=15 => 16 << 10,
            _ => 800,
        };
        usize::try_from(self.random.between((0, most))).unwrap_or(0).min(payload_max)
    }

    /// Something new.
    fn ask(
        &mut self,
        partitions: u64,
        nodes: &[u64],
        payload_max: usize,
        quiet: Option<u64>,
        checkers: &mut Checkers,
    ) {
        let partition = self.random.below(partitions);
        let floor = checkers.history.floor(partition);
        // Nothing but reads, where nothing is to be appended.
        let kinds = if quiet == Some(partition) { (85, 99) } else { (0, 99) };
        match self.random.between(kinds) {
            0..=49 => {
                let ident = self.ident();
                let len = self.payload_len(payload_max);
                let append = Appending { partition, ident, session: None, floor };
                self.submit(
                    ClientRequest::append(PartitionId(partition), ident.payload(len)),
                    Asked::Append(append, true),
                );
            }
            50..=79 => self.ask_session(partition, floor, payload_max),
            80..=84 => self.repeat(partition),
            kind => {
                let linearizable = kind < 92;
                let level = if linearizable { Level::Linearizable } else { Level::Local };
                let newest = floor.max(1);
                let from = if self.random.coin() {
                    self.random.between((1, newest))
                } else {
                    newest.saturating_sub(10).max(1)
                };
                let mut request = ClientRequest::read(PartitionId(partition), Index(from), None, level);
                if !linearizable && let Some(node) = self.random.pick(nodes).copied() {
                    request = request.at(Target::Node(NodeId(node)));
                }
                self.submit(request, Asked::Read(Reading { partition, from, linearizable, floor }));
            }
        }
    }

    /// A linearizable read of the newest records, asked of one node whatever it says of itself.
    fn read_at(&mut self, partitions: u64, node: u64, checkers: &Checkers) {
        let partition = self.random.below(partitions);
        let floor = checkers.history.floor(partition);
        let from = floor.saturating_sub(10).max(1);
        let request = ClientRequest::read(PartitionId(partition), Index(from), None, Level::Linearizable);
        let read = Reading { partition, from, linearizable: true, floor };
        self.submit(request.at(Target::Node(NodeId(node))), Asked::Read(read));
    }

    /// An append, asked of any node but one: whoever leads now, or will soon.
    fn append_beside(&mut self, partitions: u64, nodes: &[u64], not: u64, checkers: &Checkers) {
        let others: Vec<u64> = nodes.iter().copied().filter(|node| *node != not).collect();
        let Some(node) = self.random.pick(&others).copied() else { return };
        let partition = self.random.below(partitions);
        let (ident, len) = (self.ident(), self.payload_len(4096));
        let append = Appending { partition, ident, session: None, floor: checkers.history.floor(partition) };
        let request = ClientRequest::append(PartitionId(partition), ident.payload(len));
        self.submit(request.at(Target::Node(NodeId(node))), Asked::Append(append, true));
    }

    /// Whether it has a session of the partition and can append in it now.
    fn uses_at_once(&self, partition: u64) -> bool {
        self.sessions.get(&partition).is_some_and(|session| {
            session.id.is_some() && session.parked.is_empty() && session.open.len() < SESSION_WINDOW
        })
    }

    /// The next append of a session, or the session itself.
    fn ask_session(&mut self, partition: u64, floor: u64, payload_max: usize) {
        let key = u128::from(self.id) << 64 | u128::from(partition);
        let session = self.sessions.entry(partition).or_insert_with(|| Session {
            id: None,
            opening: false,
            next: 1,
            open: BTreeMap::new(),
            parked: BTreeSet::new(),
            done: BTreeMap::new(),
        });
        let Some(id) = session.id else {
            if !session.opening {
                session.opening = true;
                self.open(partition, key);
            }
            return;
        };
        if session.open.len() >= SESSION_WINDOW || !session.parked.is_empty() {
            return;
        }
        // Now and then the session is opened again, under its key.
        if self.random.below(50) == 0 {
            return self.open(partition, key);
        }
        let sequence = session.next;
        session.next += 1;
        let ident = self.ident();
        let len = self.payload_len(payload_max);
        let append = Appending { partition, ident, session: Some((id, sequence)), floor };
        let entry = Entry { append, payload: ident.payload(len), unknown: false };
        let sent = self.send(&entry);
        if let Some(session) = self.sessions.get_mut(&partition) {
            session.open.insert(sequence, entry);
            if !sent {
                session.parked.insert(sequence);
            }
        }
    }

    /// An append into another client's session, about where that one is. It is tried once.
    fn append_as_rival(&mut self, rival: Option<(u64, u64, u64)>, checkers: &Checkers) {
        let Some((partition, id, next)) = rival else { return };
        let sequence = (next + 1).saturating_sub(self.random.below(4)).max(1);
        let (ident, floor) = (self.ident(), checkers.history.floor(partition));
        let append = Appending { partition, ident, session: Some((id, sequence)), floor };
        self.send(&Entry { append, payload: ident.payload(100), unknown: false });
    }

    fn open(&mut self, partition: u64, key: u128) {
        let request = ClientRequest::open_session(PartitionId(partition), SessionKey(key));
        if !self.submit(request, Asked::Open { partition, key })
            && let Some(session) = self.sessions.get_mut(&partition)
        {
            session.opening = false;
        }
    }

    fn send(&mut self, entry: &Entry) -> bool {
        let Some((session, sequence)) = entry.append.session else { return false };
        let of = SessionRef { session: SessionId(session), sequence: Sequence(sequence) };
        let request =
            ClientRequest::append_once(PartitionId(entry.append.partition), of, entry.payload.clone());
        self.submit(request, Asked::Append(entry.append, !entry.unknown))
    }

    /// Asks again for something that was acknowledged long ago.
    fn repeat(&mut self, partition: u64) {
        let Some(session) = self.sessions.get(&partition) else { return };
        let known: Vec<u64> = session.done.keys().copied().collect();
        if let Some(entry) = self.random.pick(&known).and_then(|s| session.done.get(s)).cloned() {
            // What real time says about it was said at its first acknowledgement.
            let append = Appending { floor: 0, ..entry.append };
            self.send(&Entry { append, unknown: true, ..entry });
        }
    }

    /// What had no clear answer is asked again, in its order.
    fn resume(&mut self, now: Monotonic) {
        self.parked_until = now.after(PARKED_FOR);
        let mut again = Vec::new();
        for session in self.sessions.values_mut() {
            // Nothing of it may be under way, or an earlier sequence could overtake.
            if session.parked.len() == session.open.len() {
                session.parked.clear();
                again.extend(session.open.values().cloned());
            }
        }
        for entry in again {
            if !self.send(&entry)
                && let Some((_, sequence)) = entry.append.session
                && let Some(session) = self.sessions.get_mut(&entry.append.partition)
            {
                session.parked.insert(sequence);
            }
        }
    }

    /// An answer. The partition, if it acknowledged an append.
    fn done(
        &mut self,
        done: Done,
        checkers: &mut Checkers,
        expiry_ms: u64,
        refusals: &mut [u64; 3],
    ) -> Result<Option<u64>, crate::checkers::Violation> {
        let Some(asked) = self.asked.remove(&done.tag) else {
            return broken(
                17,
                format!("client {}: an answer to what was not asked, or was answered before", self.id),
            );
        };
        let believed = checkers.believes_clients();
        let (history, commits) = checkers.clients();
        match (asked, done.result) {
            (Asked::Append(append, _), Ok(Reply::Appended { position })) => {
                if believed {
                    history.acked(&append, position.index.0, position.generation.0, commits)?;
                }
                self.acknowledged(&append);
                Ok(Some(append.partition))
            }
            (Asked::Append(append, first), Err(error)) => {
                match &error {
                    ClientError::Unknown { .. } => history.outcomes.unknown += 1,
                    _ => history.outcomes.refused += 1,
                }
                self.failed(&append, first, &error, checkers, expiry_ms, refusals)?;
                Ok(None)
            }
            (Asked::Open { partition, key }, Ok(Reply::SessionOpened { session, position })) => {
                history.opened(partition, key, session.0, position.generation.0, commits, expiry_ms)?;
                if let Some(own) = self.sessions.get_mut(&partition) {
                    own.opening = false;
                    match own.id {
                        // It had expired, and was opened anew by being asked for.
                        Some(id) if id < session.0 => own.restart(Some(session.0)),
                        Some(_) => {}
                        None => own.id = Some(session.0),
                    }
                }
                Ok(None)
            }
            (Asked::Open { partition, .. }, Err(_)) => {
                if let Some(own) = self.sessions.get_mut(&partition) {
                    own.opening = false;
                }
                Ok(None)
            }
            (Asked::Read(read), Ok(Reply::Records(records))) => {
                let bytes = records.records.concat();
                history.read(&read, records.next.0, records.high_water.0, &bytes, commits)?;
                Ok(None)
            }
            (Asked::Read(_), Err(_)) => Ok(None),
            (asked, Ok(reply)) => {
                broken(17, format!("client {}: {asked:?} was answered with {reply:?}", self.id))
            }
        }
    }

    fn acknowledged(&mut self, append: &Appending) {
        let Some((id, sequence)) = append.session else { return };
        let Some(session) = self.sessions.get_mut(&append.partition) else { return };
        let own = session.open.get(&sequence).is_some_and(|entry| entry.append.ident == append.ident);
        if session.id != Some(id) || !own {
            return; // into another client's session, or one that has expired since
        }
        session.parked.remove(&sequence);
        if let Some(entry) = session.open.remove(&sequence) {
            session.done.insert(sequence, entry);
            if session.done.len() > REPEATS_KEPT {
                session.done.pop_first();
            }
        }
    }

    fn failed(
        &mut self,
        append: &Appending,
        first: bool,
        error: &ClientError,
        checkers: &mut Checkers,
        expiry_ms: u64,
        refusals: &mut [u64; 3],
    ) -> Verdict {
        let Some((id, sequence)) = append.session else {
            // Anything but "unknown" says that nothing was appended.
            return match error {
                ClientError::Unknown { .. } => Ok(()),
                _ => checkers.denied(append, &error.to_string()),
            };
        };
        let partition = append.partition;
        let own = self.sessions.get_mut(&partition).filter(|session| session.id == Some(id));
        let kept = own.as_ref().and_then(|session| session.open.get(&sequence));
        let kept = kept.filter(|entry| entry.append.ident == append.ident);
        let is_open = kept.is_some();
        let mut refused = |which: usize| refusals[which] += 1;
        match error {
            ClientError::Refused(RequestError::SessionExpired) => {
                refused(0);
                checkers.commits_mut().expired(partition, id, expiry_ms)?;
                if first {
                    checkers.denied(append, &error.to_string())?;
                }
                if let Some(session) = own {
                    session.restart(None);
                }
            }
            ClientError::Refused(RequestError::SequenceReused { index }) => {
                refused(1);
                checkers.commits_mut().reused(partition, (id, sequence), append.ident, index.0)?;
                checkers.denied(append, &error.to_string())?;
                if let Some(session) = own.filter(|_| is_open) {
                    session.open.remove(&sequence);
                    session.parked.remove(&sequence);
                }
            }
            _ => {
                if let ClientError::Refused(RequestError::SequenceGap { expected }) = error {
                    refused(2);
                    checkers.commits_mut().gap(partition, id, expected.0)?;
                }
                if let Some(session) = own.filter(|_| is_open) {
                    let forgotten = matches!(error, ClientError::Refused(RequestError::SequenceTooOld));
                    ensure(12, !forgotten, || {
                        format!(
                            "partition {partition}: session {id}: unacknowledged sequence {sequence} is too old"
                        )
                    })?;
                    if let Some(entry) = session.open.get_mut(&sequence) {
                        entry.unknown |= matches!(error, ClientError::Unknown { .. });
                    }
                    session.parked.insert(sequence);
                }
            }
        }
        Ok(())
    }
}

impl Session {
    /// It has expired: what it was about to append is given up, and the next session begins anew.
    fn restart(&mut self, id: Option<u64>) {
        (self.id, self.next) = (id, 1);
        self.open.clear();
        self.parked.clear();
        self.done.clear();
    }
}
