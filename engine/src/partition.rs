//! One replica on its shard: the consensus core's effects turned into log writes, messages and answers.
//!
//! Owned and driven by the shard's turn, no locks (R14). What it promises: nothing in `send_when_durable` leaves
//! before its ticket is durable (R10), every waiter is answered exactly once (R20), nothing above the
//! high-water mark is read or applied (R18), entries are applied in order without a gap.

use crate::marks::{Marks, SharedMarks};
use crate::reads::{ReadFor, Reads};
use crate::request::{Level, Records, Reply, Request, RequestError, Response};
use crate::state_machine::{Applied, StateMachine};
use crate::transport::{ClientRef, PeerMessage, Transport};
use crate::waiting::WaitingList;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tidelog_consensus::LogOpKind;
use tidelog_consensus::{
    Admitted, Append, Asserting, Effects, Free, Message, Outgoing, Proposal, ReadOutcome, Refused, Replica,
};
use tidelog_io::Io;
use tidelog_types::limits::{
    APPEND_BYTES_MAX, PAGE_BYTES, PAGED_PAYLOAD_BYTES, PAYLOAD_BYTES_MAX, RECORD_ALIGN,
};
use tidelog_types::record::{self, record_bytes};
use tidelog_types::{
    Clock, EntryMeta, Generation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind, SessionId,
    SessionKey, SessionRef, Ticket,
};
use tidelog_wal::{Run, Wal};

/// Most record bytes applied in one go, so that a turn stays short.
const APPLY_BYTES_MAX: usize = 1 << 20;
/// Most linearizable reads waiting for their round in one partition.
const READS_WAITING_MAX: usize = 4096;

/// Who asked.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A client of the network.
    Client(ClientRef),
    /// A handle of this process.
    Local(oneshot::Sender<Response>),
}

/// What the partition needs of its shard during a call.
pub(crate) struct Context<'a> {
    pub(crate) io: &'a mut dyn Io,
    pub(crate) wal: &'a mut Wal,
    pub(crate) transport: &'a mut dyn Transport,
    pub(crate) reads: &'a mut Reads,
    pub(crate) clock: Clock,
    pub(crate) cluster: u32,
    pub(crate) addresses: &'a BTreeMap<NodeId, SocketAddr>,
    pub(crate) retry_after: Duration,
}

impl Context<'_> {
    pub(crate) fn respond(&mut self, origin: Origin, response: Response) {
        match origin {
            Origin::Client(client) => self.transport.respond(client, response),
            // The asker may have stopped waiting; nothing is lost by that.
            Origin::Local(reply) => drop(reply.send(response)),
        }
    }

    fn not_leader(&self, hint: Option<NodeId>) -> RequestError {
        RequestError::NotLeader {
            hint,
            address: hint.and_then(|n| self.addresses.get(&n)).map(ToString::to_string),
        }
    }
}

#[derive(Debug)]
struct Waiter {
    origin: Origin,
    opens_session: bool,
}

/// A read that is to be served from this replica's log.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) origin: Origin,
    pub(crate) from: Index,
    pub(crate) to: Option<Index>,
    pub(crate) bytes_max: usize,
}

/// Records on their way from disk to a peer that the tail cache no longer serves.
#[derive(Debug)]
enum Fetch {
    Reading,
    Ready(Run),
}

/// Where the bytes of a step's `Append` lie.
enum Source<'a> {
    None,
    Proposal { meta: EntryMeta, payload: &'a Bytes, payload_crc: u32 },
    Message { records: &'a Bytes, metas: &'a [EntryMeta] },
}

/// One durable step with what it takes to write it, should it have to wait.
#[derive(Debug)]
enum Write {
    Promise { generation: Generation, vote: Option<NodeId> },
    Cut { keep: Position },
    Entry { header: RecordHeader, payload: Bytes },
    Records { records: Bytes, metas: Vec<EntryMeta> },
}

/// A state machine and how far it is: it may be further than a mark that restarted at its last durable hint.
pub(crate) struct Machine {
    machine: Box<dyn StateMachine>,
    applied: Index,
}

impl Machine {
    /// A state machine that this process has given nothing yet.
    pub(crate) fn new(machine: Box<dyn StateMachine>) -> Machine {
        Machine { applied: machine.applied(), machine }
    }
}

pub(crate) struct Partition {
    id: PartitionId,
    replica: Replica,
    effects: Effects,
    durable: Ticket,
    held: VecDeque<(Ticket, Outgoing<Asserting>)>,
    /// Steps that the growing batch had no room for, in order. While there are any, no bulk data is taken in.
    unwritten: VecDeque<(Ticket, Write)>,
    waiting: WaitingList<Waiter>,
    read_rounds: BTreeMap<u64, Wanted>,
    read_round_next: u64,
    machine: Option<Machine>,
    /// Without a state machine: everything that could have been applied.
    applied: Index,
    apply_reading: bool,
    fetches: BTreeMap<NodeId, Fetch>,
    marks: Arc<SharedMarks>,
    metas: Vec<EntryMeta>,
}

impl Partition {
    pub(crate) fn new(
        id: PartitionId,
        replica: Replica,
        machine: Option<Machine>,
        marks: Arc<SharedMarks>,
    ) -> Partition {
        Partition {
            id,
            replica,
            effects: Effects::default(),
            durable: Ticket(0),
            held: VecDeque::new(),
            unwritten: VecDeque::new(),
            waiting: WaitingList::new(),
            read_rounds: BTreeMap::new(),
            read_round_next: 0,
            machine,
            applied: Index::ZERO,
            apply_reading: false,
            fetches: BTreeMap::new(),
            marks,
            metas: Vec::new(),
        }
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.read_rounds.len()
    }

    /// Gives the state machine back, for the shard's next life.
    pub(crate) fn into_machine(self) -> Option<Machine> {
        self.machine
    }

    pub(crate) fn marks(&self) -> Marks {
        let m = self.replica.marks();
        let applied =
            self.machine.as_ref().map_or(self.applied, |machine| machine.applied.min(m.applicable()));
        Marks { low_water: m.low_water, applied, durable: m.durable, high_water: m.high_water }
    }

    /// Shows the marks to the handles, and checks their relation (invariants 5, 10).
    pub(crate) fn publish(&self) {
        let m = self.marks();
        assert!(
            m.low_water.prev() <= m.applied && m.applied <= m.high_water.min(m.durable),
            "partition {}: low-water {}, applied {}, high-water {}, durable {} do not fit each other",
            self.id,
            m.low_water,
            m.applied,
            m.high_water,
            m.durable
        );
        self.marks.publish(m);
    }

    // --- input -------------------------------------------------------------------------------------------

    /// A peer's message. What the growing batch has no room for comes back, to be given again later.
    pub(crate) fn message(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        mut message: PeerMessage,
    ) -> Option<PeerMessage> {
        let mut metas = std::mem::take(&mut self.metas);
        metas.clear();
        let records = message.records.pop().unwrap_or_default();
        let left = match self.metas_of(cx, from, &records, &mut metas) {
            true => self.step_by_room(cx, from, message, records, &metas),
            false => None,
        };
        self.metas = metas;
        left
    }

    /// The headers of an append's records, each record verified whole. False if they are not such as a replica of
    /// this partition sends.
    fn metas_of(&self, cx: &Context<'_>, from: NodeId, records: &[u8], metas: &mut Vec<EntryMeta>) -> bool {
        for record in record::records(records) {
            match record {
                Ok((_, header, _)) if header.partition == self.id && header.cluster == cx.cluster => {
                    metas.push(header.meta());
                }
                Ok((_, header, _)) => {
                    tracing::warn!(partition = %self.id, %from, found = %header.partition, "append carries a record of another partition or cluster; dropped");
                    return false;
                }
                Err(error) => {
                    tracing::warn!(partition = %self.id, %from, %error, "append carries a bad record; dropped");
                    return false;
                }
            }
        }
        true
    }

    /// Steps the replica with as many of the entries as the growing batch takes; the rest comes back as an append of its own.
    fn step_by_room(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        mut message: PeerMessage,
        mut records: Bytes,
        metas: &[EntryMeta],
    ) -> Option<PeerMessage> {
        let (fits, bytes) = if self.unwritten.is_empty() { fitting(metas, cx.wal.room()) } else { (0, 0) };
        if fits == metas.len() {
            self.replica.step(cx.clock, from, message.message, metas, &mut self.effects);
            self.settle(cx, Source::Message { records: &records, metas });
            return None;
        }
        let Message::Free(Free::Append(append)) = &mut message.message else { return None };
        if let Some((last, first_part)) = metas.get(..fits).and_then(|part| Some((part.last()?, part))) {
            let part = Append { count: fits as u64, ..append.clone() };
            append.prev = last.position;
            append.count = append.count.saturating_sub(fits as u64);
            let now = records.split_to(bytes);
            self.replica.step(
                cx.clock,
                from,
                Message::Free(Free::Append(part)),
                first_part,
                &mut self.effects,
            );
            self.settle(cx, Source::Message { records: &now, metas: first_part });
        }
        message.records = vec![records];
        Some(message)
    }

    /// The log says that everything up to `ticket` is durable here.
    pub(crate) fn durable(&mut self, cx: &mut Context<'_>, ticket: Ticket) {
        assert!(ticket > self.durable, "tickets become durable in order");
        self.durable = ticket;
        self.replica.durable(cx.clock, ticket, &mut self.effects);
        self.settle(cx, Source::None);
        while self.held.front().is_some_and(|(t, _)| *t <= ticket) {
            if let Some((_, out)) = self.held.pop_front()
                && self.replica.release(&out.message)
            {
                self.send_asserting(cx, out);
            }
        }
        self.apply(cx);
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        self.replica.tick(cx.clock, &mut self.effects);
        self.settle(cx, Source::None);
        // What was committed and durable already when the log was opened, and reads that found no room.
        self.apply(cx);
    }

    pub(crate) fn paused(&mut self, clock: Clock) {
        self.replica.paused(clock);
    }

    pub(crate) fn peer_up(&mut self, clock: Clock, node: NodeId) {
        self.fetches.remove(&node);
        self.replica.peer_up(clock, node);
    }

    pub(crate) fn peer_down(&mut self, clock: Clock, node: NodeId) {
        self.fetches.remove(&node);
        self.replica.peer_down(clock, node);
    }

    /// A client's request. Gives it back if the growing batch has no room for it now.
    pub(crate) fn request(
        &mut self,
        cx: &mut Context<'_>,
        origin: Origin,
        request: Request,
    ) -> Result<(), (Origin, Request)> {
        match request {
            Request::Append { session, ref payload, payload_crc, .. } => {
                if payload.len() > PAYLOAD_BYTES_MAX {
                    let error = RequestError::TooLarge {
                        bytes: payload.len() as u64,
                        limit: PAYLOAD_BYTES_MAX as u64,
                    };
                    cx.respond(origin, Err(error));
                } else if !self.unwritten.is_empty() || payload.len() > cx.wal.room() {
                    return Err((origin, request));
                } else if crc32c::crc32c(payload) != payload_crc {
                    cx.respond(origin, Err(RequestError::Checksum));
                } else {
                    self.propose(cx, origin, session, None, payload, payload_crc);
                }
            }
            Request::OpenSession { key, .. } => {
                if !self.unwritten.is_empty() || cx.wal.room() == 0 {
                    return Err((origin, request));
                }
                self.propose(cx, origin, None, Some(key), &Bytes::new(), 0);
            }
            Request::Read { from, to, bytes_max, level, .. } => {
                let wanted = Wanted { origin, from, to, bytes_max: bytes_max as usize };
                match level {
                    Level::Local => self.serve(cx, wanted),
                    Level::Linearizable => self.read_round(cx, wanted),
                }
            }
            Request::Status => cx.respond(origin, Err(RequestError::Invalid("status is of a node".into()))),
        }
        Ok(())
    }

    fn propose(
        &mut self,
        cx: &mut Context<'_>,
        origin: Origin,
        session: Option<SessionRef>,
        session_key: Option<SessionKey>,
        payload: &Bytes,
        payload_crc: u32,
    ) {
        let extended = session.is_some() || session_key.is_some();
        let proposal = Proposal {
            kind: if session_key.is_some() { RecordKind::SessionOpen } else { RecordKind::Data },
            session,
            session_key,
            record_bytes: u32::try_from(record_bytes(payload.len(), extended)).unwrap_or(u32::MAX),
        };
        let waiter = Waiter { origin, opens_session: session_key.is_some() };
        match self.replica.propose(cx.clock, proposal, &mut self.effects) {
            Ok(Admitted::New(meta)) => {
                self.waiting.push(meta.position, waiter);
                self.settle(cx, Source::Proposal { meta, payload, payload_crc });
            }
            Ok(Admitted::Known(position)) if position.index <= self.replica.marks().high_water => {
                done(cx, position, waiter);
            }
            Ok(Admitted::Known(position)) => self.waiting.attach(self.replica.generation(), position, waiter),
            Err(refused) => {
                let error = match refused {
                    Refused::NotLeader { hint } => cx.not_leader(hint),
                    Refused::Busy => RequestError::Busy { retry_after: cx.retry_after },
                    Refused::SessionExpired => RequestError::SessionExpired,
                    Refused::SequenceGap { expected } => RequestError::SequenceGap { expected },
                    Refused::SequenceTooOld => RequestError::SequenceTooOld,
                };
                cx.respond(waiter.origin, Err(error));
            }
        }
    }

    // --- effects -----------------------------------------------------------------------------------------

    fn settle(&mut self, cx: &mut Context<'_>, source: Source<'_>) {
        let mut effects = std::mem::take(&mut self.effects);
        for op in effects.append.drain(..) {
            self.write(cx, op.ticket, &op.kind, &source);
        }
        for out in effects.send_now.drain(..) {
            let message =
                PeerMessage { partition: self.id, message: Message::Free(out.message), records: vec![] };
            cx.transport.send(out.to, message);
        }
        for (ticket, out) in effects.send_when_durable.drain(..) {
            if ticket <= self.durable {
                self.send_asserting(cx, out);
            } else {
                self.held.push_back((ticket, out));
            }
        }
        if let Some(generation) = effects.deposed.take() {
            tracing::info!(partition = %self.id, %generation, waiting = self.waiting.len(), "leadership lost");
            self.waiting.abandon(|waiter| cx.respond(waiter.origin, Err(RequestError::Unknown)));
            self.fetches.clear();
        }
        if std::mem::take(&mut effects.role_changed) {
            tracing::info!(
                partition = %self.id,
                role = ?self.replica.role(),
                generation = %self.replica.generation(),
                leader = ?self.replica.leader(),
                "role"
            );
        }
        if let Some(high_water) = effects.committed.take() {
            cx.wal.note_high_water(self.id, high_water.min(cx.wal.last(self.id).index));
            self.waiting.committed(high_water, |position, waiter| done(cx, position, waiter));
            self.apply(cx);
        }
        for (round, outcome) in effects.reads.drain(..) {
            if let Some(wanted) = self.read_rounds.remove(&round) {
                match outcome {
                    ReadOutcome::At(index) => {
                        assert!(
                            index <= self.replica.marks().high_water,
                            "a read round ends at the mark or below"
                        );
                        self.serve(cx, wanted);
                    }
                    ReadOutcome::NotLeader => {
                        let error = cx.not_leader(self.replica.leader());
                        cx.respond(wanted.origin, Err(error));
                    }
                }
            }
        }
        self.effects = effects;
    }

    fn write(&mut self, cx: &mut Context<'_>, ticket: Ticket, kind: &LogOpKind, source: &Source<'_>) {
        let write = match (kind, source) {
            (LogOpKind::Promise { generation, vote }, _) => {
                Write::Promise { generation: *generation, vote: *vote }
            }
            (LogOpKind::Cut { keep }, _) => {
                self.fetches.clear();
                Write::Cut { keep: *keep }
            }
            (LogOpKind::Make(meta), _) => Write::Entry {
                header: RecordHeader::of_meta(meta, self.id, cx.cluster),
                payload: Bytes::new(),
            },
            (LogOpKind::Append { first, last }, Source::Proposal { meta, payload, payload_crc }) => {
                assert!(*first == meta.position.index && first == last, "a proposal is one entry");
                let header = RecordHeader {
                    payload_len: u32::try_from(payload.len()).expect("checked against the limit"),
                    payload_crc: *payload_crc,
                    ..RecordHeader::of_meta(meta, self.id, cx.cluster)
                };
                Write::Entry { header, payload: Bytes::clone(payload) }
            }
            (LogOpKind::Append { first, last }, Source::Message { records, metas }) => {
                return self.write_records(cx, ticket, *first, *last, records, metas);
            }
            (LogOpKind::Append { .. }, Source::None) => panic!("an append without its bytes"),
        };
        self.write_or_wait(cx, ticket, write);
    }

    fn write_records(
        &mut self,
        cx: &mut Context<'_>,
        ticket: Ticket,
        first: Index,
        last: Index,
        records: &Bytes,
        metas: &[EntryMeta],
    ) {
        let from = metas.iter().position(|m| m.position.index == first);
        let to = metas.iter().position(|m| m.position.index == last);
        let (Some(from), Some(to)) = (from, to) else {
            panic!("the replica appends entries {first}..={last} that its message did not carry");
        };
        let start: usize = metas[..from].iter().map(|m| m.record_bytes as usize).sum();
        let bytes: usize = metas[from..=to].iter().map(|m| m.record_bytes as usize).sum();
        let (records, metas) = (records.slice(start..start + bytes), &metas[from..=to]);
        if !self.unwritten.is_empty() || cx.wal.append_records(ticket, self.id, &records, metas).is_err() {
            self.unwritten.push_back((ticket, Write::Records { records, metas: metas.to_vec() }));
        }
    }

    fn write_or_wait(&mut self, cx: &mut Context<'_>, ticket: Ticket, write: Write) {
        if !self.unwritten.is_empty() || !write.try_into_log(cx.wal, ticket, self.id) {
            self.unwritten.push_back((ticket, write));
        }
    }

    /// Writes what had to wait for room. True if something still waits.
    pub(crate) fn write_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some((ticket, write)) = self.unwritten.front() {
            if !write.try_into_log(cx.wal, *ticket, self.id) {
                return true;
            }
            self.unwritten.pop_front();
        }
        false
    }

    fn send_asserting(&self, cx: &mut Context<'_>, out: Outgoing<Asserting>) {
        let message =
            PeerMessage { partition: self.id, message: Message::Asserting(out.message), records: vec![] };
        cx.transport.send(out.to, message);
    }

    /// Sends what each peer lacks and the log has frozen. True if something is left that only waits for the
    /// log's next batch.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.replica.is_leader() {
            return false;
        }
        let id = self.id;
        let frozen = cx.wal.sequenced(id);
        for at in 0..self.replica.peers().len() {
            let Some(&peer) = self.replica.peers().get(at) else { break };
            loop {
                let mut carried: Option<Run> = None;
                let fetches = &mut self.fetches;
                let Context { io, wal, transport, reads, clock, .. } = cx;
                let append = self.replica.take_append(*clock, peer, &mut |first, last, budget| {
                    let last = last.min(frozen);
                    let bytes_max = APPEND_BYTES_MAX
                        .min(transport.room(peer))
                        .min(usize::try_from(budget).unwrap_or(usize::MAX));
                    if first > last || bytes_max == 0 {
                        return None;
                    }
                    let run =
                        wal.cached(id, first, last, bytes_max).or_else(|| match fetches.remove(&peer) {
                            Some(Fetch::Ready(run)) if run.first == first && run.last <= last => Some(run),
                            Some(Fetch::Reading) => {
                                fetches.insert(peer, Fetch::Reading);
                                None
                            }
                            _ => {
                                if let Some(read) = reads.start(ReadFor::Peer { partition: id, peer }) {
                                    wal.read(*io, read, id, first, last, bytes_max);
                                    fetches.insert(peer, Fetch::Reading);
                                }
                                None
                            }
                        })?;
                    let fits = (run.last, run.bytes as u64);
                    carried = Some(run);
                    Some(fits)
                });
                let Some(append) = append else { break };
                let records = match carried {
                    Some(run) if append.count > 0 => {
                        assert!(
                            run.first == append.prev.index.next()
                                && run.last == append.prev.index.plus(append.count),
                            "an append names the entries that it carries"
                        );
                        run.pieces
                    }
                    _ => {
                        assert!(append.count == 0, "entries without bytes");
                        vec![]
                    }
                };
                let message = PeerMessage {
                    partition: id,
                    message: Message::Free(tidelog_consensus::Free::Append(append)),
                    records,
                };
                if !cx.transport.send(peer, message) {
                    // Dropped: the replica must not wait for its answer, it begins with a probe again.
                    self.replica.peer_down(cx.clock, peer);
                    self.replica.peer_up(cx.clock, peer);
                    break;
                }
            }
        }
        self.replica.marks().last > frozen
    }

    /// Records read for a peer have arrived.
    pub(crate) fn fetched(&mut self, peer: NodeId, run: Option<Run>) {
        if let Some(fetch) = self.fetches.get_mut(&peer)
            && matches!(fetch, Fetch::Reading)
        {
            match run {
                Some(run) => *fetch = Fetch::Ready(run),
                None => {
                    self.fetches.remove(&peer);
                }
            }
        }
    }

    // --- reads and applying ------------------------------------------------------------------------------

    fn read_round(&mut self, cx: &mut Context<'_>, wanted: Wanted) {
        if self.read_rounds.len() >= READS_WAITING_MAX {
            return cx.respond(wanted.origin, Err(RequestError::Busy { retry_after: cx.retry_after }));
        }
        self.read_round_next += 1;
        let round = self.read_round_next;
        match self.replica.read_index(cx.clock, round, &mut self.effects) {
            Ok(()) => {
                self.read_rounds.insert(round, wanted);
                self.settle(cx, Source::None);
            }
            Err(Refused::NotLeader { hint }) => {
                let error = cx.not_leader(hint);
                cx.respond(wanted.origin, Err(error));
            }
            Err(_) => cx.respond(wanted.origin, Err(RequestError::Busy { retry_after: cx.retry_after })),
        }
    }

    fn serve(&mut self, cx: &mut Context<'_>, wanted: Wanted) {
        let marks = self.marks();
        let (from, high_water) = (wanted.from.max(Index(1)), marks.high_water);
        let last = wanted.to.map_or(high_water, |to| to.min(high_water));
        if from < marks.low_water {
            return cx.respond(wanted.origin, Err(RequestError::Truncated { first: marks.low_water }));
        }
        if from > high_water.next() {
            return cx.respond(wanted.origin, Err(RequestError::Ahead { asked: from, high_water }));
        }
        if from > last {
            let records = Records { next: from, high_water, low_water: marks.low_water, records: vec![] };
            return cx.respond(wanted.origin, Ok(Reply::Records(records)));
        }
        let bytes_max = wanted.bytes_max.clamp(1, APPEND_BYTES_MAX);
        match cx.wal.cached(self.id, from, last, bytes_max) {
            Some(run) => self.answer_read(cx, wanted, run),
            None => match cx.reads.start(ReadFor::Client { partition: self.id, wanted }) {
                Some(read) => cx.wal.read(cx.io, read, self.id, from, last, bytes_max),
                None => {
                    if let Some(wanted) = cx.reads.refused() {
                        cx.respond(wanted.origin, Err(RequestError::Busy { retry_after: cx.retry_after }));
                    }
                }
            },
        }
    }

    pub(crate) fn answer_read(&self, cx: &mut Context<'_>, wanted: Wanted, run: Run) {
        let marks = self.marks();
        assert!(run.last <= marks.high_water, "nothing above the high-water mark reaches a reader");
        let records = Records {
            next: run.last.next(),
            high_water: marks.high_water,
            low_water: marks.low_water,
            records: run.pieces,
        };
        cx.respond(wanted.origin, Ok(Reply::Records(records)));
    }

    fn apply(&mut self, cx: &mut Context<'_>) {
        let marks = self.replica.marks();
        let limit = marks.applicable();
        if self.machine.is_none() {
            self.applied = self.applied.max(limit);
            return;
        }
        while let Some(first) = self.machine.as_ref().map(|m| m.applied.next())
            && first <= limit
            && !self.apply_reading
        {
            match cx.wal.cached(self.id, first, limit, APPLY_BYTES_MAX) {
                Some(run) => self.apply_run(&run),
                None => match cx.reads.start(ReadFor::Apply { partition: self.id }) {
                    Some(read) => {
                        self.apply_reading = true;
                        cx.wal.read(cx.io, read, self.id, first, limit, APPLY_BYTES_MAX);
                    }
                    None => break,
                },
            }
        }
    }

    /// Records read for the state machine have arrived (or could not be read; then a later turn asks again).
    pub(crate) fn apply_read(&mut self, cx: &mut Context<'_>, run: Option<Run>) {
        self.apply_reading = false;
        if let Some(run) = run {
            if self.machine.as_ref().is_some_and(|m| run.first == m.applied.next()) {
                self.apply_run(&run);
            }
            self.apply(cx);
        }
    }

    fn apply_run(&mut self, run: &Run) {
        let Machine { machine, applied } = self.machine.as_mut().expect("only called with a state machine");
        for piece in &run.pieces {
            for record in record::records(piece) {
                let (_, header, payload) = record.expect("runs hold verified records");
                assert!(header.index == applied.next(), "applied without a gap (invariant 5)");
                if header.kind == RecordKind::Data {
                    machine.apply(Applied {
                        index: header.index,
                        generation: header.generation,
                        timestamp: header.timestamp,
                        payload,
                    });
                }
                *applied = header.index;
            }
        }
    }

    /// The shard is fenced or closes: everyone who waits is told that the outcome is unknown, readers that the
    /// node is not available.
    pub(crate) fn abandon(&mut self, cx: &mut Context<'_>, why: &str) {
        self.waiting.abandon(|waiter| cx.respond(waiter.origin, Err(RequestError::Unknown)));
        for (_, wanted) in std::mem::take(&mut self.read_rounds) {
            cx.respond(wanted.origin, Err(RequestError::Unavailable(why.to_owned())));
        }
    }
}

impl Write {
    /// False if the log has no room for it now.
    fn try_into_log(&self, wal: &mut Wal, ticket: Ticket, partition: PartitionId) -> bool {
        let written = match self {
            Write::Promise { generation, vote } => wal.append_promise(ticket, partition, *generation, *vote),
            Write::Cut { keep } => wal.append_cut(ticket, partition, *keep),
            Write::Entry { header, payload } => wal.append_entry(ticket, *header, payload),
            Write::Records { records, metas } => wal.append_records(ticket, partition, records, metas),
        };
        written.is_ok()
    }
}

/// How many of the entries, and how many record bytes, surely fit a batch with room for a payload of `room` bytes.
fn fitting(metas: &[EntryMeta], room: usize) -> (usize, usize) {
    let (mut bytes, mut cost) = (0, 0);
    for (count, meta) in metas.iter().enumerate() {
        let record = meta.record_bytes as usize;
        // A large payload is moved to a page of its own, a change of generation takes a span in the footer.
        cost += record + if record >= PAGED_PAYLOAD_BYTES { PAGE_BYTES + RECORD_ALIGN } else { 0 };
        cost += if meta.prev_generation == meta.position.generation { 0 } else { 2 * RECORD_ALIGN };
        if cost > room {
            return (count, bytes);
        }
        bytes += record;
    }
    (metas.len(), bytes)
}

fn done(cx: &mut Context<'_>, position: Position, waiter: Waiter) {
    let reply = if waiter.opens_session {
        Reply::SessionOpened { session: SessionId(position.index.0), position }
    } else {
        Reply::Appended { position }
    };
    cx.respond(waiter.origin, Ok(reply));
}
