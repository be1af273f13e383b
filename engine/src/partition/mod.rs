//! One replica on its shard: the consensus core's effects turned into log writes, messages and answers.
//!
//! Owned and driven by the shard's turn, no locks (R14). What it promises: nothing in `send_when_durable` leaves
//! before its ticket is durable (R10), every waiter is answered exactly once (R20), nothing above the
//! high-water mark is read or applied (R18), entries are applied in order without a gap.

mod applying;
mod context;
mod feed;
mod keep;
mod repair;
mod serve;
mod writes;

pub(crate) use context::{Context, Origin, Shared};
use feed::Fetch;
use keep::Done;
use repair::Repairs;
pub(crate) use serve::Machine;
use writes::{Source, Write, fitting};

use crate::identity::Barred;
use crate::keep::Keep;
use crate::marks::{Leadership, Marks, SharedMarks};
use crate::request::{Level, Reply, Request, RequestError, SessionScope};
use crate::transport::PeerMessage;
use crate::waiting::WaitingList;
use bytes::Bytes;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tidelog_consensus::{
    Admitted, Append, Asserting, Free, Message, Outgoing, Proposal, ReadOutcome, Refused, Replica,
    SESSIONS_MAX, Trouble,
};
use tidelog_types::limits::PAYLOAD_BYTES_MAX;
use tidelog_types::record::{self, record_bytes};
use tidelog_types::{
    Clock, EntryMeta, Index, Monotonic, NodeId, PartitionId, Position, RecordKind, SessionId, SessionKey,
    SessionRef, Ticket,
};

/// Most entries of one message that are taken on a full disk.
const RESERVED_ENTRIES_MAX: usize = 64;

#[derive(Debug)]
struct Waiter {
    origin: Origin,
    opens_session: bool,
}

/// What a round of the leader's is waited for with.
#[derive(Debug)]
enum Round {
    /// To be served at the mark of then.
    Read(Wanted),
    /// To be told: it rests on this replica's log, and holds once that part of it is committed under this leadership.
    Refusal(Origin, RequestError),
}

/// A read that is to be served from this replica's log.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) origin: Origin,
    pub(crate) from: Index,
    pub(crate) to: Option<Index>,
    pub(crate) bytes_max: usize,
}

pub(crate) struct Partition {
    id: PartitionId,
    replica: Replica,
    durable: Ticket,
    held: VecDeque<(Ticket, Outgoing<Asserting>)>,
    /// Steps that the growing batch had no room for, in order. While there are any, no bulk data is taken in.
    unwritten: VecDeque<(Ticket, Write)>,
    waiting: WaitingList<Waiter>,
    rounds: BTreeMap<u64, Round>,
    round_next: u64,
    machine: Option<Machine>,
    /// Without a state machine: everything that could have been applied.
    applied: Index,
    apply_reading: bool,
    fetches: BTreeMap<NodeId, Fetch>,
    repairs: Repairs,
    marks: Arc<SharedMarks>,
    /// As the handles were shown it last.
    shown: Option<Leadership>,
    keep: Keep,
    done: Done,
}

impl Partition {
    pub(crate) fn new(
        id: PartitionId,
        replica: Replica,
        machine: Option<Machine>,
        marks: Arc<SharedMarks>,
        keep: Keep,
        clock: Clock,
    ) -> Partition {
        // What is not kept any more was applied before.
        let applied = replica.marks().low_water.prev();
        Partition {
            id,
            replica,
            durable: Ticket(0),
            held: VecDeque::new(),
            unwritten: VecDeque::new(),
            waiting: WaitingList::new(),
            rounds: BTreeMap::new(),
            round_next: 0,
            machine,
            applied,
            apply_reading: false,
            fetches: BTreeMap::new(),
            repairs: Repairs::default(),
            marks,
            shown: None,
            keep,
            done: Done::since(clock.now),
        }
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.replica
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.len() + self.rounds.len()
    }

    /// Gives the state machine back, for the shard's next life.
    pub(crate) fn into_machine(self) -> Option<Machine> {
        self.machine
    }

    /// What its state machine has applied, if it has one.
    pub(crate) fn applied(&self) -> Option<Index> {
        self.machine.as_ref().map(|_| self.marks().applied)
    }

    pub(crate) fn marks(&self) -> Marks {
        let m = self.replica.marks();
        let applied = self
            .machine
            .as_ref()
            .map_or(self.applied, |machine| machine.applied.min(m.high_water.min(m.durable)));
        // A committed log start counts for readers also where entries below it are still held.
        let first_readable = self.first_readable().max(Index(1));
        let low_water = m.low_water;
        Marks { low_water, first_readable, applied, durable: m.durable, high_water: m.high_water }
    }

    /// Shows the marks to the handles, and checks their relation (invariants 5, 10).
    /// True if the leadership is another one than they were shown last.
    pub(crate) fn publish(&mut self) -> bool {
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
        let leadership = Some(self.leadership());
        let changed = self.shown != leadership;
        if changed {
            self.shown = leadership;
            self.marks.show_leadership(leadership);
        }
        changed
    }

    pub(crate) fn leadership(&self) -> Leadership {
        let replica = &self.replica;
        Leadership { generation: replica.generation(), leader: replica.leader(), role: replica.role() }
    }

    /// Reads a word of each part that an append and its durability touch: see [`Replica::warm`].
    pub(crate) fn warm(&self) -> u64 {
        let waiting = self.waiting.first().map_or(0, |at| at.index.0);
        let lists = self.held.len() + self.unwritten.len() + self.rounds.len() + self.fetches.len();
        let marks = self.marks.load().high_water.0;
        [
            self.durable.0,
            waiting,
            lists as u64,
            marks,
            self.applied.0,
            self.done.upkeep.0,
            self.replica.warm(),
        ]
        .into_iter()
        .fold(self.id.0, u64::wrapping_add)
    }

    // --- input -------------------------------------------------------------------------------------------

    /// A peer's message. What the growing batch has no room for comes back, to be given again later.
    pub(crate) fn message(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        mut message: PeerMessage,
    ) -> Option<PeerMessage> {
        self.replica.note_disk(cx.disk);
        let mut metas = std::mem::take(&mut cx.shared.metas);
        metas.clear();
        let records = message.records.pop().unwrap_or_default();
        let sound = self.metas_of(cx, from, &records, &mut metas);
        let left = match (sound, &message.message) {
            (true, _) if cx.wal.is_full() && !metas.is_empty() => {
                self.step_on_a_full_disk(cx, from, message, records, &metas);
                None
            }
            (true, Message::Repair(_)) => self.on_repair(cx, from, message, records, &metas),
            (true, _) => self.step_by_room(cx, from, message, records, &metas),
            (false, _) => None,
        };
        cx.shared.metas = metas;
        if let Some(why) = self.replica.take_accusation() {
            tracing::warn!(partition = %self.id, %from, why, "a message that no correct peer sends; dropped");
            cx.shared.accused.push((from, why));
        }
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

    /// Steps the replica with the first of the entries, as far as there is space for them on a disk that is full. The leader sends the others
    /// again when there is room.
    fn step_on_a_full_disk(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        mut message: PeerMessage,
        mut records: Bytes,
        metas: &[EntryMeta],
    ) {
        let taken = metas.iter().take(RESERVED_ENTRIES_MAX).take_while(|meta| meta.kind.has_reserved_space());
        let (count, bytes) =
            taken.fold((0, 0), |(count, bytes), meta| (count + 1, bytes + meta.record_bytes as usize));
        let Message::Free(Free::Append(append)) = &mut message.message else { return };
        // One that says another count than it carries is not for a correct replica to take a part of.
        if count == 0 || !self.unwritten.is_empty() || append.count != metas.len() as u64 {
            return;
        }
        append.count = count as u64;
        let (metas, records) = (metas.get(..count).unwrap_or_default(), records.split_to(bytes));
        self.replica.step(cx.clock, from, message.message, metas, &mut cx.shared.effects);
        self.settle(cx, Source::Message { records: &records, metas });
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
            self.replica.step(cx.clock, from, message.message, metas, &mut cx.shared.effects);
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
                &mut cx.shared.effects,
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
        self.replica.durable(cx.clock, ticket, &mut cx.shared.effects);
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
        self.done.upkeep = cx.clock.now;
        self.replica.note_disk(cx.disk);
        let before = self.replica.handing_over_to();
        self.replica.tick(cx.clock, &mut cx.shared.effects);
        if let Some(to) = self.replica.handing_over_to()
            && before != Some(to)
        {
            tracing::warn!(partition = %self.id, %to, "the disk has stalled: that node is asked to lead instead");
        }
        self.settle(cx, Source::None);
        self.seek_repair(cx);
        // What was committed and durable already when the log was opened, and reads that found no room.
        self.apply(cx);
        self.shorten(cx);
    }

    /// When the partition wants its tick: for the protocol, for repair, or for what it keeps.
    pub(crate) fn deadline(&self) -> Monotonic {
        let others = [self.repair_deadline(), self.upkeep_deadline()];
        others.into_iter().flatten().fold(self.replica.deadline(), Monotonic::min)
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
    ///
    /// A network client's checksum is verified before its record gets an index. That of a handle was computed in this process a
    /// moment ago and is verified once, by the log in its copy: a difference there is broken memory, and stops the node.
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
                } else if matches!(origin, Origin::Client(_))
                    && tidelog_types::checksum(payload) != payload_crc
                {
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
            Request::Status { .. } | Request::Snapshot { .. } => {
                cx.respond(origin, Err(RequestError::Invalid("not a request to a log".into())));
            }
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
            payload_crc,
        };
        let waiter = Waiter { origin, opens_session: session_key.is_some() };
        match self.replica.propose(cx.clock, proposal, &mut cx.shared.effects) {
            Ok(Admitted::New(meta)) => {
                if matches!(waiter.origin, Origin::Local(_)) {
                    cx.returning.came(cx.clock.now);
                }
                self.waiting.push(meta.position, waiter);
                self.settle(cx, Source::Proposal { meta, payload, payload_crc });
            }
            Ok(Admitted::Known(position)) if position.index <= self.replica.marks().high_water => {
                self.marks.raise_high_water(position.index);
                done(cx, position, waiter);
            }
            Ok(Admitted::Known(position)) => self.waiting.attach(self.replica.generation(), position, waiter),
            Err(refused) => self.refuse(cx, waiter.origin, refused),
        }
    }

    /// Answers a proposal that was not admitted: at once, or when what the refusal rests on can no longer change.
    fn refuse(&mut self, cx: &mut Context<'_>, origin: Origin, refused: Refused) {
        let ms = Duration::from_millis;
        let error = match refused {
            Refused::NotLeader { hint } => self.refused_for_damage().unwrap_or_else(|| cx.not_leader(hint)),
            Refused::Busy => RequestError::busy(cx.retry_after),
            Refused::SessionsFull { until_ms } => RequestError::SessionsFull {
                scope: SessionScope::Partition,
                limit: SESSIONS_MAX as u64,
                retry_after: ms(until_ms),
            },
            Refused::SessionExpired => return self.confirm(cx, origin, RequestError::SessionExpired),
            Refused::SequenceGap { expected } => {
                return self.confirm(cx, origin, RequestError::SequenceGap { expected });
            }
            Refused::SequenceReused { index } => {
                return self.confirm(cx, origin, RequestError::SequenceReused { index });
            }
            Refused::SequenceTooOld => return self.confirm(cx, origin, RequestError::SequenceTooOld),
        };
        cx.respond(origin, Err(error));
    }

    fn confirm(&mut self, cx: &mut Context<'_>, origin: Origin, error: RequestError) {
        self.round_next += 1;
        let round = self.round_next;
        match self.replica.confirm(cx.clock, round, &mut cx.shared.effects) {
            Ok(()) => {
                self.rounds.insert(round, Round::Refusal(origin, error));
            }
            Err(Refused::NotLeader { hint }) => {
                let error = cx.not_leader(hint);
                cx.respond(origin, Err(error));
            }
            Err(_) => cx.respond(origin, Err(RequestError::busy(cx.retry_after))),
        }
        // What proves an expiry may be among them.
        self.settle(cx, Source::None);
    }

    // --- effects -----------------------------------------------------------------------------------------

    fn settle(&mut self, cx: &mut Context<'_>, source: Source<'_>) {
        let mut effects = std::mem::take(&mut cx.shared.effects);
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
                self.hold(ticket, out);
            }
        }
        for trouble in effects.trouble.drain(..) {
            self.tell(cx.shared, &trouble);
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
                leader = self.replica.leader().map(NodeId::get),
                "role"
            );
        }
        if let Some(high_water) = effects.committed.take() {
            cx.wal.note_high_water(self.id, high_water);
            self.marks.raise_high_water(high_water);
            self.waiting.committed(high_water, |position, waiter| done(cx, position, waiter));
            self.apply(cx);
        }
        for (round, outcome) in effects.reads.drain(..) {
            match (self.rounds.remove(&round), outcome) {
                (Some(Round::Read(wanted)), ReadOutcome::At(index)) => {
                    assert!(
                        index <= self.replica.marks().high_water,
                        "a read round ends at the mark or below"
                    );
                    self.serve(cx, wanted);
                }
                (Some(Round::Refusal(origin, error)), ReadOutcome::At(_)) => cx.respond(origin, Err(error)),
                (
                    Some(Round::Read(Wanted { origin, .. }) | Round::Refusal(origin, _)),
                    ReadOutcome::NotLeader,
                ) => {
                    let error = cx.not_leader(self.replica.leader());
                    cx.respond(origin, Err(error));
                }
                (None, _) => {}
            }
        }
        cx.shared.effects = effects;
    }

    /// Keeps a message until its ticket is durable. Of answers that wait for the same ticket the newest to a peer says all that the earlier ones
    /// did: on a disk that hangs a leader's every heartbeat would add one.
    fn hold(&mut self, ticket: Ticket, out: Outgoing<Asserting>) {
        let said = |(waits, older): &&mut (Ticket, Outgoing<Asserting>)| {
            *waits == ticket && older.to == out.to && older.message.is_superseded_by(&out.message)
        };
        match self.held.iter_mut().rev().find(said) {
            Some((_, older)) => older.message = out.message,
            None => self.held.push_back((ticket, out)),
        }
    }

    /// Says what went wrong, and notes what the shard has to do about it.
    fn tell(&self, shared: &mut Shared, trouble: &Trouble) {
        let partition = self.id;
        match *trouble {
            Trouble::Contradicted { leader, generation, index, high_water } => tracing::error!(
                %partition, %leader, %generation, %index, %high_water,
                "the leader wants another entry where this node's own is committed: it is not followed. A node that voted for it has lost what it confirmed; the records of this node stay as they are"
            ),
            Trouble::PeerLost { node, confirmed, end } => tracing::error!(
                %partition, %node, confirmed = %confirmed.index, generation = %confirmed.generation, %end,
                "this node lacks what it had confirmed: its directory is an older state of itself, or its disk lost writes. It is counted no more"
            ),
            Trouble::Barred { confirmed } => {
                shared.barred.get_or_insert(Barred { partition, confirmed });
            }
            Trouble::Jump { from, generation } => tracing::debug!(
                %partition, %from, %generation, "a generation that no election explains; refused"
            ),
        }
    }

    /// Its node takes no part any more.
    pub(crate) fn bar(&mut self) {
        self.replica.bar();
    }

    fn send_asserting(&self, cx: &mut Context<'_>, out: Outgoing<Asserting>) {
        let message =
            PeerMessage { partition: self.id, message: Message::Asserting(out.message), records: vec![] };
        cx.transport.send(out.to, message);
    }

    /// The shard is fenced or closes: everyone who waits is told that the outcome is unknown, readers that the
    /// node is not available.
    pub(crate) fn abandon(&mut self, cx: &mut Context<'_>, why: &str) {
        self.waiting.abandon(|waiter| cx.respond(waiter.origin, Err(RequestError::Unknown)));
        for (_, Round::Read(Wanted { origin, .. }) | Round::Refusal(origin, _)) in
            std::mem::take(&mut self.rounds)
        {
            cx.respond(origin, Err(RequestError::Unavailable(why.to_owned())));
        }
    }
}

fn done(cx: &mut Context<'_>, position: Position, waiter: Waiter) {
    if matches!(waiter.origin, Origin::Local(_)) {
        cx.returning.answered(cx.clock.now, cx.wal.last_write());
    }
    let reply = if waiter.opens_session {
        Reply::SessionOpened { session: SessionId(position.index.0), position }
    } else {
        Reply::Appended { position }
    };
    cx.respond(waiter.origin, Ok(reply));
}
