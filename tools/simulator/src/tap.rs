//! Where the checkers listen: between a node's code and the seam, and between its shard and its transport. Both taps
//! pass everything on unchanged.

use crate::platter;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::Rc;
use tidelog::formation::{Formed, Hello};
use tidelog::request::Response;
use tidelog::transport::{ClientRef, Event, PeerMessage, Transport};
use tidelog_consensus::{Asserting, Free, Message};
use tidelog_io::{BufferPool, Completion, FileId, Io, Op, Token, TokenClass, Wait, Waker};
use tidelog_sim::SimIo;
use tidelog_types::{Clock, Generation, Monotonic, NodeId, PartitionId};

/// Operations in flight, and what became of batches.
#[derive(Debug)]
pub(crate) struct TapIo {
    inner: SimIo,
    in_flight: BTreeMap<Token, InFlight>,
    bytes_in_flight: u64,
    /// Files that batches were written to.
    logs: BTreeSet<FileId>,
    /// A batch's write or sync failed since the last look.
    failed: Option<String>,
    /// Bases of segments whose names were given up since the last look.
    released: Vec<u64>,
    out: Vec<Completion>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    bytes: u64,
    batch: bool,
}

impl TapIo {
    pub(crate) fn new(inner: SimIo) -> TapIo {
        TapIo {
            inner,
            in_flight: BTreeMap::new(),
            bytes_in_flight: 0,
            logs: BTreeSet::new(),
            failed: None,
            released: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.inner.is_alive()
    }

    /// Operations and their bytes that are under way.
    pub(crate) fn load(&self) -> (usize, u64) {
        (self.in_flight.len(), self.bytes_in_flight)
    }

    /// The failure of a batch that the node was told of since the last look.
    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.failed.take()
    }

    /// Segments that were given up since the last look, by their bases.
    pub(crate) fn take_released(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.released)
    }

    fn note(&mut self, token: Token, op: &Op) {
        if let Op::Rename { from: path, .. } | Op::Remove { path } = op {
            self.released.extend(platter::segment_base(&path.to_string_lossy()));
        }
        let of_log = token.class == TokenClass::Wal;
        let (bytes, batch) = match op {
            Op::Write { file, data, .. } | Op::WriteDurable { file, data, .. } => {
                let batch = of_log && data.first().is_some_and(|piece| piece.starts_with(b"TLba"));
                if batch {
                    self.logs.insert(*file);
                }
                (data.iter().map(|piece| piece.len() as u64).sum(), batch)
            }
            Op::Sync { file } => (0, of_log && self.logs.contains(file)),
            Op::Send { data, .. } => (data.iter().map(|piece| piece.len() as u64).sum(), false),
            Op::Read { buffer, .. } | Op::Recv { buffer, .. } => (buffer.len() as u64, false),
            _ => (0, false),
        };
        self.bytes_in_flight += bytes;
        if let Some(old) = self.in_flight.insert(token, InFlight { bytes, batch }) {
            self.bytes_in_flight -= old.bytes;
        }
    }
}

impl Io for TapIo {
    fn submit(&mut self, token: Token, op: Op) {
        self.note(token, &op);
        self.inner.submit(token, op);
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) -> usize {
        let count = self.inner.poll(wait, &mut self.out);
        for completion in &self.out {
            if let Some(op) = self.in_flight.remove(&completion.token) {
                self.bytes_in_flight -= op.bytes;
                if op.batch
                    && let Err(error) = &completion.result
                {
                    self.failed.get_or_insert_with(|| error.to_string());
                }
            }
        }
        out.append(&mut self.out);
        count
    }

    fn clock(&self) -> Clock {
        self.inner.clock()
    }
    fn random(&mut self) -> u64 {
        self.inner.random()
    }
    fn buffers(&self) -> BufferPool {
        self.inner.buffers()
    }
    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}

/// Peer messages that a shard handed to its transport, in order.
pub(crate) type Sent = Rc<RefCell<Vec<(NodeId, PeerMessage)>>>;

/// Answers to leaders that are kept back, at most.
const LATE_MAX: usize = 64;

/// Answers to earlier leaderships of the same node, told once more when it leads again: a network may hold a message for as long as it likes.
#[derive(Debug, Default)]
struct Late {
    answers: Vec<(NodeId, PeerMessage)>,
    /// Answers seen.
    seen: u64,
    /// The generation that the node leads, as it says itself, by partition.
    leads: BTreeMap<PartitionId, Generation>,
    told: Rc<Cell<u64>>,
}

impl Late {
    fn sent(&mut self, message: &PeerMessage) {
        if let Message::Free(Free::Heartbeat { generation, .. }) = message.message {
            self.leads.insert(message.partition, generation);
        }
    }

    /// Keeps a copy of some of the answers among `events`, those behind the first `before`, and adds those that are late by now.
    fn received(&mut self, events: &mut Vec<Event>, before: usize) {
        use Asserting::{AppendRefused, AppendReply, HeartbeatReply};
        for event in events.iter().skip(before) {
            let Event::Peer { from, message } = event else { continue };
            let Message::Asserting(AppendReply { .. } | AppendRefused { .. } | HeartbeatReply { .. }) =
                message.message
            else {
                continue;
            };
            self.seen += 1;
            if self.seen.is_multiple_of(16) {
                if self.answers.len() == LATE_MAX {
                    self.answers.remove(0);
                }
                self.answers.push((*from, message.clone()));
            }
        }
        let leads = &self.leads;
        let late = self.answers.extract_if(.., |(_, message)| {
            leads.get(&message.partition).is_some_and(|now| message.message.generation() < *now)
        });
        for (from, message) in late {
            self.told.set(self.told.get() + 1);
            events.push(Event::Peer { from, message });
        }
    }
}

/// A transport that remembers what was sent by it.
pub(crate) struct TapTransport {
    inner: Box<dyn Transport>,
    sent: Sent,
    late: Late,
}

impl TapTransport {
    /// `late`: counts answers that came late.
    pub(crate) fn new(inner: Box<dyn Transport>, sent: Sent, late: Rc<Cell<u64>>) -> TapTransport {
        TapTransport { inner, sent, late: Late { told: late, ..Late::default() } }
    }
}

impl Transport for TapTransport {
    fn start(&mut self, io: &mut dyn Io, hello: Hello) -> Result<Option<SocketAddr>, tidelog::Error> {
        self.inner.start(io, hello)
    }
    fn formed(&mut self, io: &mut dyn Io, formed: &Formed) {
        self.inner.formed(io, formed);
    }
    fn barred(&mut self, io: &mut dyn Io) {
        self.inner.barred(io);
    }
    fn accuse(&mut self, io: &mut dyn Io, node: NodeId, why: &str) {
        self.inner.accuse(io, node, why);
    }
    fn complete(&mut self, io: &mut dyn Io, completion: Completion, events: &mut Vec<Event>) {
        let before = events.len();
        self.inner.complete(io, completion, events);
        self.late.received(events, before);
    }
    fn tick(&mut self, io: &mut dyn Io, events: &mut Vec<Event>) {
        self.inner.tick(io, events);
    }
    fn deadline(&self) -> Option<Monotonic> {
        self.inner.deadline()
    }
    fn send(&mut self, to: NodeId, message: PeerMessage) -> bool {
        self.late.sent(&message);
        let told = PeerMessage { records: Vec::new(), ..message.clone() };
        let taken = self.inner.send(to, message);
        if taken {
            self.sent.borrow_mut().push((to, told));
        }
        taken
    }
    fn room(&self, to: NodeId) -> usize {
        self.inner.room(to)
    }
    fn respond(&mut self, client: ClientRef, response: Response) {
        self.inner.respond(client, response);
    }
    fn flush(&mut self, io: &mut dyn Io) {
        self.inner.flush(io);
    }
}
