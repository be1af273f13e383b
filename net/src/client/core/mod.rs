//! The client without a thread: see the module above for what it promises.

mod doubts;
mod links;
mod outcomes;

use super::link::{Link, State};
use super::route::{Route, RouteKey, Site};
use super::{ClientError, ClientOptions, ClientRequest, Target};
use crate::gather::Gather;
use crate::pipe::{NetOp, SEND_BYTES_MAX, SEND_PIECES_MAX, token};
use crate::slab::{Key, Slab};
use crate::wire;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use tidelog::request::{BusyReason, Level, Reply, Request, RequestError};
use tidelog_io::{Io, Op};
use tidelog_types::limits::PAYLOAD_BYTES_MAX;
use tidelog_types::{Monotonic, NodeId, PartitionId, Sequence, SessionId};

/// Most connects in flight.
const DIALS_MAX: usize = 64;
/// Requests' time is looked at this often.
const SWEEP: Duration = Duration::from_millis(10);
/// Connections are looked at this often.
const CHECK: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In its route.
    Waiting,
    /// In a connection's queue.
    Queued(Key),
    /// Sent, not answered.
    Sent(Key),
}

#[derive(Debug)]
struct Asked {
    tag: u64,
    request: Request,
    route: RouteKey,
    lane: u32,
    order: u64,
    deadline: Monotonic,
    place: Place,
    /// Time that it was given.
    timeout: Duration,
    /// When it was last sent.
    sent_at: Monotonic,
    /// Asked of these before, which were slow, and may answer yet.
    earlier: Vec<Key>,
    /// The client's own question who leads, see [`doubts`].
    question: bool,
    /// Sent once, and it was not learned what became of it.
    ambiguous: bool,
    redirects: u32,
    /// The last answer was that the node is busy.
    busy: Option<BusyReason>,
}

impl Asked {
    fn is_write(&self) -> bool {
        matches!(self.request, Request::Append { .. } | Request::OpenSession { .. })
    }

    /// Sending it twice may put it into the log twice.
    fn is_plain_append(&self) -> bool {
        matches!(self.request, Request::Append { session: None, .. })
    }

    /// `what` happened, and whether it is done is not known: for people, with what to do next.
    fn unknown(&self, what: &str) -> String {
        match &self.request {
            Request::OpenSession { .. } => {
                format!(
                    "the session may or may not be open: {what}. Open it again under the same key: it is opened once"
                )
            }
            Request::Append { session: Some(_), .. } => format!(
                "the record may or may not be in the log: {what}. Send it again under the same session and sequence: it is in the log once"
            ),
            _ => format!(
                "the record may or may not be in the log: {what}. Read the log to tell, or append within a session: its records can be sent again"
            ),
        }
    }

    /// `what` happened, and it is not done: for people, with what to do next.
    fn not_done(&self, what: &str) -> String {
        let nothing = if self.is_write() { "nothing was appended; " } else { "" };
        let advice = match (self.busy, self.route) {
            (Some(_), _) => "Try again later, or allow more time",
            (None, RouteKey::Leader(_)) => {
                "See with `tidelog status` whether a majority of the nodes runs and is connected; try again, or allow more time"
            }
            (None, _) => "See whether the node runs and can be reached; try again, or allow more time",
        };
        format!("{nothing}{what}. {advice}")
    }

    /// When it was sent, if only a leader gives this answer.
    fn answered_by_leader(&self, answer: &Result<Reply, RequestError>) -> Option<Monotonic> {
        let linearizable = matches!(self.request, Request::Read { level: Level::Linearizable, .. });
        let leads = match answer {
            Ok(_) => self.is_write() || linearizable,
            Err(RequestError::Ahead { .. } | RequestError::Truncated { .. }) => linearizable,
            Err(_) => false,
        };
        leads.then_some(self.sent_at)
    }

    fn session(&self) -> Option<((PartitionId, SessionId), Sequence)> {
        match &self.request {
            Request::Append { partition, session: Some(s), .. } => {
                Some(((*partition, s.session), s.sequence))
            }
            _ => None,
        }
    }
}

/// A request's end.
#[derive(Clone, PartialEq, Debug)]
pub struct Done {
    /// As submitted.
    pub tag: u64,
    /// How it went.
    pub result: Result<Reply, ClientError>,
}

/// A client over a back-end that its caller drives: `submit`, `flush`; completions of the network into
/// `complete`; `tick` at `deadline`; results out of `drain`.
#[derive(Debug)]
pub struct ClientCore {
    options: ClientOptions,
    cluster: Option<u32>,
    addresses: Vec<SocketAddr>,
    sites: BTreeMap<SocketAddr, Site>,
    nodes: BTreeMap<NodeId, SocketAddr>,
    routes: BTreeMap<RouteKey, Route>,
    /// Routes with requests waiting.
    waiting: BTreeSet<RouteKey>,
    links: Slab<Link>,
    by_place: BTreeMap<(SocketAddr, u32), Key>,
    to_dial: VecDeque<Key>,
    dials: BTreeMap<u64, Key>,
    /// Connects that were given up and have not ended.
    abandoned: BTreeMap<u64, SocketAddr>,
    attempts: u64,
    dirty: Vec<Key>,
    requests: Slab<Asked>,
    /// The client's own among them.
    questions: BTreeMap<RouteKey, Key>,
    request_bytes: usize,
    /// Sequences in flight of each session.
    sessions: BTreeMap<(PartitionId, SessionId), BTreeSet<Sequence>>,
    orders: u64,
    done: Vec<Done>,
    sweep_at: Option<Monotonic>,
    last_check: Monotonic,
    /// When connections are looked at for their silence.
    doubt_at: Option<Monotonic>,
}

impl ClientCore {
    /// A client that has not dialled anyone yet.
    pub fn new(options: ClientOptions) -> ClientCore {
        ClientCore {
            cluster: None,
            addresses: options.addresses.clone(),
            sites: BTreeMap::new(),
            nodes: BTreeMap::new(),
            routes: BTreeMap::new(),
            waiting: BTreeSet::new(),
            links: Slab::new(),
            by_place: BTreeMap::new(),
            to_dial: VecDeque::new(),
            dials: BTreeMap::new(),
            abandoned: BTreeMap::new(),
            attempts: 0,
            dirty: Vec::new(),
            requests: Slab::new(),
            questions: BTreeMap::new(),
            request_bytes: 0,
            sessions: BTreeMap::new(),
            orders: 0,
            done: Vec::new(),
            sweep_at: None,
            last_check: Monotonic(0),
            doubt_at: None,
            options,
        }
    }

    /// Requests submitted and not done.
    pub fn in_flight(&self) -> usize {
        self.requests.len() - self.questions.len()
    }

    /// Whether a request with this payload would be taken now.
    pub fn has_room(&self, payload_bytes: usize) -> bool {
        self.in_flight() < self.options.in_flight_max
            && (self.request_bytes == 0
                || self.request_bytes + payload_bytes <= self.options.in_flight_bytes_max)
    }

    /// Nodes met so far and where.
    pub fn nodes(&self) -> &BTreeMap<NodeId, SocketAddr> {
        &self.nodes
    }

    /// Takes a request. Its end comes out of [`Self::drain`] under `tag`, exactly once.
    ///
    /// # Errors
    /// Gives it back if as much is in flight as the options allow.
    #[allow(clippy::result_large_err)] // the request itself, given back
    pub fn submit(&mut self, io: &mut dyn Io, asked: ClientRequest, tag: u64) -> Result<(), ClientRequest> {
        let bytes = asked.bytes();
        if !self.has_room(bytes) {
            return Err(asked);
        }
        let now = io.clock().now;
        let partition = asked.partition();
        let route = match (asked.target, &asked.request) {
            (Target::Leader, Request::Status { .. }) => {
                let error = RequestError::Invalid("a status is of a node or an address".into());
                self.done.push(Done { tag, result: Err(ClientError::Refused(error)) });
                return Ok(());
            }
            (Target::Leader, _) => RouteKey::Leader(partition),
            (Target::Node(node), _) => {
                if let Some(error) = self.unknown(node) {
                    self.done.push(Done { tag, result: Err(error) });
                    return Ok(());
                }
                RouteKey::Node(node)
            }
            (Target::Address(address), _) => RouteKey::Address(address),
        };
        if bytes > PAYLOAD_BYTES_MAX {
            let error = RequestError::TooLarge { bytes: bytes as u64, limit: PAYLOAD_BYTES_MAX as u64 };
            self.done.push(Done { tag, result: Err(ClientError::Refused(error)) });
            return Ok(());
        }
        let lanes = u64::from(self.options.connections_per_node.max(1));
        let lane = asked.lane.map_or(partition.0, u64::from) % lanes;
        let timeout = asked.timeout.unwrap_or(self.options.timeout);
        let deadline = now.after(timeout);
        self.orders += 1;
        let asked = Asked {
            tag,
            request: asked.request,
            route,
            lane: u32::try_from(lane).unwrap_or(0),
            order: self.orders,
            deadline,
            place: Place::Waiting,
            timeout,
            sent_at: now,
            earlier: Vec::new(),
            question: false,
            ambiguous: false,
            redirects: 0,
            busy: None,
        };
        if let Some((session, sequence)) = asked.session() {
            self.sessions.entry(session).or_default().insert(sequence);
        }
        self.request_bytes += bytes;
        self.sweep_at = Some(self.sweep_at.map_or(deadline, |at| at.min(deadline)));
        let key = self.requests.insert(asked);
        let open = self.routes.entry(route).or_default().is_open(now);
        if !open || !self.place(io, key, now) {
            self.wait(key);
        }
        Ok(())
    }

    /// The refusal of a request to a node that the cluster does not have; none as long as no node was met that could say so.
    pub(super) fn unknown(&self, node: NodeId) -> Option<ClientError> {
        if self.nodes.is_empty() || self.nodes.contains_key(&node) {
            return None;
        }
        let known: Vec<String> = self.nodes.keys().map(ToString::to_string).collect();
        let why = format!("there is no node {node} in this cluster, its nodes are {}", known.join(", "));
        Some(ClientError::Refused(RequestError::Invalid(why)))
    }

    /// Moves the results at hand to `out`.
    pub fn drain(&mut self, out: &mut Vec<Done>) {
        out.append(&mut self.done);
    }

    /// Ends everything in flight: what was sent is unknown, the rest was not done.
    pub fn abandon(&mut self, why: &str) {
        for key in self.requests.keys() {
            self.give_up(key, why);
        }
    }

    // --- placing -----------------------------------------------------------------------------------------

    /// Puts a request into its route, in the order submitted.
    fn wait(&mut self, key: Key) {
        if let Some(asked) = self.requests.get_mut(key) {
            asked.place = Place::Waiting;
            self.routes.entry(asked.route).or_default().waiting.insert(asked.order, key);
            self.waiting.insert(asked.route);
        }
    }

    /// Gives a request to a connection; false: its route has to wait.
    fn place(&mut self, io: &mut dyn Io, key: Key, now: Monotonic) -> bool {
        let Some((route, lane)) = self.requests.get(key).map(|a| (a.route, a.lane)) else { return true };
        let Some(address) = self.choose(io, route, now) else { return false };
        let link = self.link(io, address, lane, now);
        if let (Some(found), Some(asked)) = (self.links.get_mut(link), self.requests.get_mut(key)) {
            found.queue.push_back(key);
            asked.place = Place::Queued(link);
            if found.state != State::Up && matches!(route, RouteKey::Leader(_)) {
                let deadline = asked.deadline;
                self.watch(link, deadline, now);
            }
        }
        self.mark(link);
        true
    }

    /// The address to try for a route now; none: it is held.
    fn choose(&mut self, io: &mut dyn Io, key: RouteKey, now: Monotonic) -> Option<SocketAddr> {
        let back_off = self.options.back_off;
        let route = self.routes.entry(key).or_default();
        let (sites, known) = (&self.sites, self.addresses.len());
        let dial_at = |a: &SocketAddr| sites.get(a).map_or(Monotonic(0), |s| s.dial_at(now, back_off, known));
        let trusted = |a: &SocketAddr| sites.get(a).is_none_or(|s| !s.doubted);
        if let Some(leader) = route.leader
            && trusted(&leader)
            && dial_at(&leader) <= now
        {
            return Some(leader);
        }
        let named = match key {
            RouteKey::Leader(_) => None,
            RouteKey::Address(address) => Some(address),
            RouteKey::Node(node) => self.nodes.get(&node).copied(),
        };
        let mut candidates: Vec<SocketAddr> = match named {
            Some(address) => vec![address],
            None => route.candidates(&self.addresses).collect(),
        };
        if let (RouteKey::Node(_), None) = (key, named) {
            // Any node that is there names all of them in its hello, and then this one is known or refused. They are
            // dialled side by side: the first one may hang.
            route.hold(now, back_off, Duration::ZERO, io.random());
            let next =
                candidates.into_iter().find(|a| dial_at(a) <= now && !self.by_place.contains_key(&(*a, 0)));
            if let Some(address) = next {
                route.next_behind(address, &self.addresses);
                self.link(io, address, 0, now);
            }
            return None;
        }
        // One in doubt is asked only if all are: the others are at most a back-off away.
        if candidates.iter().any(trusted) {
            candidates.retain(trusted);
        }
        let found = candidates.iter().copied().find(|a| dial_at(a) <= now);
        if found.is_none() {
            let soonest = candidates.iter().map(dial_at).min().unwrap_or(now);
            route.hold_until = route.hold_until.max(soonest).max(now.after(Duration::from_millis(1)));
        }
        found
    }

    /// The connection of a lane to an address; dialled if there is none.
    fn link(&mut self, io: &mut dyn Io, address: SocketAddr, lane: u32, now: Monotonic) -> Key {
        if let Some(key) = self.by_place.get(&(address, lane)) {
            return *key;
        }
        let key = self.links.insert(Link::new(address, lane, now));
        self.by_place.insert((address, lane), key);
        self.to_dial.push_back(key);
        self.dial(io);
        key
    }

    fn dial(&mut self, io: &mut dyn Io) {
        while self.dials.len() < DIALS_MAX {
            let Some(key) = self.to_dial.pop_front() else { return };
            let Some(link) = self.links.get_mut(key).filter(|l| l.state == State::Idle) else { continue };
            self.attempts += 1;
            link.state = State::Dialling;
            link.since = io.clock().now;
            self.dials.insert(self.attempts, key);
            io.submit(token(NetOp::Connect, Key(self.attempts)), Op::Connect { address: link.address });
        }
    }

    fn mark(&mut self, key: Key) {
        if let Some(link) = self.links.get_mut(key)
            && !std::mem::replace(&mut link.dirty, true)
        {
            self.dirty.push(key);
        }
    }

    /// Places what waits on routes that need not wait any more.
    fn pump(&mut self, io: &mut dyn Io) {
        if self.waiting.is_empty() {
            return;
        }
        let now = io.clock().now;
        for key in self.waiting.clone() {
            while let Some(route) = self.routes.get_mut(&key) {
                if route.hold_until > now {
                    break;
                }
                let Some((order, request)) = route.waiting.pop_first() else {
                    self.waiting.remove(&key);
                    break;
                };
                if !self.place(io, request, now) {
                    if let Some(route) = self.routes.get_mut(&key) {
                        route.waiting.insert(order, request);
                    }
                    break;
                }
            }
        }
    }

    /// Sends what is queued, gathered into one send a connection.
    pub fn flush(&mut self, io: &mut dyn Io) {
        self.pump(io);
        let now = io.clock().now;
        for key in std::mem::take(&mut self.dirty) {
            let Some(link) = self.links.get_mut(key) else { continue };
            link.dirty = false;
            if !link.is_ready() {
                continue; // what makes it ready marks it again
            }
            let mut gather = Gather::new();
            let mut soonest = Monotonic(u64::MAX);
            if link.in_flight == 0 {
                link.asked_since = now;
                link.watched = None;
            }
            while gather.bytes() < SEND_BYTES_MAX
                && gather.pieces() < SEND_PIECES_MAX
                && link.in_flight < link.in_flight_max
            {
                let Some(request) = link.queue.pop_front() else { break };
                let Some(asked) = self.requests.get_mut(request).filter(|a| a.place == Place::Queued(key))
                else {
                    continue; // its time was up
                };
                asked.place = Place::Sent(key);
                asked.sent_at = now;
                link.in_flight += 1;
                if matches!(asked.route, RouteKey::Leader(_)) {
                    soonest = soonest.min(asked.deadline);
                }
                let (kind, fields) = wire::request_head(request.0, &asked.request);
                match &asked.request {
                    Request::Append { payload, .. } => gather.frame_copying(kind, fields, payload),
                    _ => gather.frame(kind, fields, &[]),
                }
            }
            if let Some(pipe) = &mut link.pipe {
                pipe.send(io, gather.finish());
            }
            if soonest < Monotonic(u64::MAX) {
                self.watch(key, soonest, now);
            }
        }
    }
}
