//! Leading: sending entries on, and telling what a quorum has made durable. Proposals are admitted in [`crate::admit`].
//!
//! A leader opens its generation with a no-op, sends entries while its own disk writes them, counts itself
//! only by its tickets, and moves the high-water mark only to entries of its own generation. It answers reads
//! after a round that a quorum confirmed, and gives up when no quorum has confirmed one for an election
//! time-out. Promises that an index it gave out names one entry for ever. It does not know the bytes, nor
//! which of them the shard can serve to a peer at the moment: the shard says so when it asks for messages.

use crate::admit::Refused;
use crate::effects::{Effects, LogOpKind};
use crate::election::Votes;
use crate::message::{Append, Asserting, Free};
use crate::progress::{Bounds, Progress, Turn};
use crate::quorum::agreed_of;
use crate::read::Reads;
use crate::replica::{Replica, State};
use crate::stall::HandOver;
use crate::stamp::{Stamps, Witness};
use std::collections::VecDeque;
use tidelog_types::{
    Clock, EntryMeta, Index, Monotonic, NodeId, Position, RecordKind, ReplicatedMs, SessionKey, SessionRef,
};

/// Sending times kept of past rounds, evenly over an election time-out.
const SAMPLES_MAX: usize = 32;

/// What an entry that a leader makes says, beside its place and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: RecordKind,
    pub(crate) session: Option<SessionRef>,
    pub(crate) session_key: Option<SessionKey>,
    pub(crate) log_start: Option<Index>,
    pub(crate) record_bytes: u32,
    pub(crate) payload_crc: u32,
}

impl Entry {
    /// One without a payload.
    pub(crate) fn of(kind: RecordKind) -> Entry {
        let bytes = tidelog_types::record::record_bytes(0, kind == RecordKind::LogStart);
        Entry {
            kind,
            session: None,
            session_key: None,
            log_start: None,
            record_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            payload_crc: 0,
        }
    }
}

/// What only a leader has.
#[derive(Debug)]
pub(crate) struct Leader {
    pub(crate) since: Monotonic,
    /// Its no-op: entries from here on are of its own generation.
    pub(crate) first: Index,
    /// Beside [`Replica::peers`], in the same order.
    progress: Vec<Progress>,
    /// Sizes of its own entries that are not committed, in order.
    pub(crate) uncommitted: VecDeque<u32>,
    pub(crate) uncommitted_bytes: u64,
    stamps: Stamps,
    pub(crate) reads: Reads,
    /// Refusals that wait until what they rest on can no longer change.
    pub(crate) refusals: Reads,
    /// As many sessions are open as may be, and none expires before this time.
    pub(crate) sessions_full_until: ReplicatedMs,

    /// The newest round begun.
    round: u64,
    /// When it began, if nothing happened since: then its messages have not left yet.
    round_begun: Option<Monotonic>,
    /// Rounds and their sending times, thinned out: a round's own time is at or after that of its sample.
    samples: VecDeque<(u64, Monotonic)>,
    pub(crate) heartbeat_deadline: Monotonic,
    /// Lack of evidence counts from here at the earliest.
    pub(crate) grace: Monotonic,
    /// The process did not run for a while up to here, and that is not weighed yet.
    pub(crate) paused: Option<Monotonic>,
    /// The last pause that was not held against the peers ended here.
    excused: Option<Monotonic>,
    /// What it does about a disk of its own that stalls.
    pub(crate) hand_over: HandOver,
}

impl Replica {
    /// Elected.
    pub(crate) fn lead(&mut self, clock: Clock, votes: &Votes, effects: &mut Effects) {
        assert!(self.damage.is_empty() && !self.sessions.has_holes(), "a damaged replica does not lead");
        let last = self.log.last().index;
        let progress = self.peers.iter().zip(&self.confirmed).map(|(peer, confirmed)| {
            let mut progress = Progress::new(last, clock.now, votes.witness(*peer));
            progress.floor = *confirmed;
            progress
        });
        let progress = progress.collect();
        self.state = State::Leader(Box::new(Leader {
            since: clock.now,
            first: last.next(),
            progress,
            uncommitted: VecDeque::new(),
            uncommitted_bytes: 0,
            stamps: Stamps::default(),
            reads: Reads::default(),
            refusals: Reads::default(),
            sessions_full_until: ReplicatedMs(0),
            round: 0,
            round_begun: None,
            samples: VecDeque::new(),
            heartbeat_deadline: clock.now.after(self.config.heartbeat),
            grace: clock.now,
            paused: None,
            excused: None,
            hand_over: HandOver::default(),
        }));
        self.leader = Some(self.config.node);
        self.heard = None;
        effects.role_changed = true;
        let noop = self.extend(clock, Entry::of(RecordKind::Noop));
        self.order(LogOpKind::Make(noop), effects);
        self.begin_round(clock, effects);
    }

    /// The log's next entry, stamped.
    pub(crate) fn extend(&mut self, clock: Clock, entry: Entry) -> EntryMeta {
        let State::Leader(leader) = &mut self.state else { panic!("only a leader makes entries") };
        let Entry { kind, session, session_key, log_start, record_bytes, payload_crc } = entry;
        let expiry = u64::try_from(self.config.session_expiry.as_millis()).unwrap_or(u64::MAX);
        let last = self.log.last();
        let entry = EntryMeta {
            position: Position::new(last.index.next(), self.generation),
            prev_generation: last.generation,
            kind,
            session,
            session_key,
            session_expiry_ms: if session_key.is_some() { expiry } else { 0 },
            log_start,
            timestamp: leader.stamp(clock, self.stamp),
            record_bytes,
            payload_crc,
        };
        let applied = self.sessions.apply(&entry, self.high_water);
        assert!(applied.is_ok(), "admitted against the end of the log (invariant 12): {applied:?}");
        self.log.push(entry.position);
        self.starts.push(&entry);
        self.history.push(&entry);
        self.stamp = entry.timestamp;
        leader.uncommitted.push_back(record_bytes);
        leader.uncommitted_bytes += u64::from(record_bytes);
        entry
    }

    /// The next append for `peer`, if one may leave now. `fit(first, last, bytes)` tells how much of
    /// `first ..= last` the shard can serve at once: the last index and the bytes, at least one entry and, but
    /// for that one, at most `bytes`; none if it has nothing at hand. Ask again until there is none.
    pub fn take_append(
        &mut self,
        clock: Clock,
        peer: NodeId,
        fit: &mut dyn FnMut(Index, Index, u64) -> Option<(Index, u64)>,
    ) -> Option<Append> {
        let State::Leader(leader) = &mut self.state else { return None };
        let at = self.peers.iter().position(|node| *node == peer)?;
        let progress = leader.progress.get_mut(at)?;
        progress.stay_above(self.log.base().index, clock.now);
        let bounds = Bounds {
            messages_max: self.config.in_flight_messages_max,
            bytes_max: self.config.in_flight_bytes_max,
        };
        let (first, last) = (progress.next(), self.log.last().index);
        let count = match progress.turn(last, bounds) {
            Turn::Wait => return None,
            Turn::Probe => {
                progress.probed(clock.now);
                0
            }
            Turn::Entries { budget } => {
                let (fits, bytes) = fit(first, last, budget)?;
                assert!(first <= fits && fits <= last, "the shard serves what was asked for");
                progress.sent(fits, bytes, clock.now);
                fits.0 - first.0 + 1
            }
        };
        let prev = first.prev();
        let generation = self.log.generation_at(prev).expect("a peer's next entry follows one of the log");
        Some(Append {
            generation: self.generation,
            prev: Position::new(prev, generation),
            count,
            high_water: self.high_water,
            round: leader.round,
        })
    }

    /// The first index that a leader would send to `peer` next.
    pub fn next_for(&self, peer: NodeId) -> Option<Index> {
        let at = self.peers.iter().position(|node| *node == peer)?;
        match &self.state {
            State::Leader(leader) => leader.progress.get(at).map(Progress::next),
            _ => None,
        }
    }

    /// The channel to `node` broke: what was in flight is lost.
    pub fn peer_down(&mut self, _clock: Clock, node: NodeId) {
        if let Some(progress) = self.progress_mut(node) {
            progress.channel_down();
        }
    }

    /// The channel to `node` is there, possibly a new one.
    pub fn peer_up(&mut self, _clock: Clock, node: NodeId) {
        if let Some(progress) = self.progress_mut(node) {
            progress.channel_up();
        }
    }

    /// Something came in from outside: a round begun before it may be on its way already.
    pub(crate) fn end_turn_of_round(&mut self) {
        if let State::Leader(leader) = &mut self.state {
            leader.round_begun = None;
        }
    }

    fn progress_mut(&mut self, node: NodeId) -> Option<&mut Progress> {
        let at = self.peers.iter().position(|peer| *peer == node)?;
        match &mut self.state {
            State::Leader(leader) => leader.progress.get_mut(at),
            _ => None,
        }
    }

    /// A linearizable read: the answer comes among [`Effects::reads`] under the caller's number.
    ///
    /// # Errors
    /// If this is not the leader, or too many wait.
    pub fn read_index(&mut self, clock: Clock, request: u64, effects: &mut Effects) -> Result<(), Refused> {
        let State::Leader(leader) = &mut self.state else {
            return Err(Refused::NotLeader { hint: self.leader });
        };
        if leader.reads.is_full() {
            return Err(Refused::Busy);
        }
        let index = self.high_water.max(leader.first);
        let round = leader.next_round(clock);
        leader.reads.push(request, round, index);
        self.serve_reads(clock, effects);
        Ok(())
    }

    /// Answers the reads that may be answered, and begins a round if others wait for one.
    pub(crate) fn serve_reads(&mut self, clock: Clock, effects: &mut Effects) {
        let State::Leader(leader) = &mut self.state else { return };
        let wanted = leader.reads.round_wanted().max(leader.refusals.round_wanted());
        let Some(wanted) = wanted else { return };
        let confirmed = leader.confirmed_round();
        // One round at a time: those that come meanwhile share the next one.
        if wanted > leader.round && confirmed == leader.round {
            self.begin_round(clock, effects);
        }
        let State::Leader(leader) = &mut self.state else { return };
        leader.answer(self.high_water, effects);
    }

    /// Tells all peers that this leader is there, under a new number.
    fn begin_round(&mut self, clock: Clock, effects: &mut Effects) {
        let State::Leader(leader) = &mut self.state else { return };
        leader.round += 1;
        leader.round_begun = Some(clock.now);
        if self.peers.is_empty() {
            return; // its own word is a quorum's
        }
        let spacing = self.config.election_timeout / u32::try_from(SAMPLES_MAX).unwrap_or(u32::MAX);
        if leader.samples.back().is_none_or(|(_, at)| clock.now.since(*at) >= spacing) {
            if leader.samples.len() >= SAMPLES_MAX {
                leader.samples.pop_front();
            }
            leader.samples.push_back((leader.round, clock.now));
        }
        let generation = self.generation;
        let beat = Free::Heartbeat { generation, high_water: self.high_water, round: leader.round };
        Replica::beat_or_tell(generation, leader, &self.peers, &beat, effects);
    }

    /// Time passed for a leader.
    pub(crate) fn lead_on(&mut self, clock: Clock, effects: &mut Effects) {
        let State::Leader(leader) = &mut self.state else { return };
        if clock.now < leader.heartbeat_deadline {
            return;
        }
        let timeout = self.config.election_timeout;
        leader.weigh_pause(clock.now);
        let evidence = leader.evidence(clock.now).max(leader.grace);
        if clock.now.since(evidence) >= timeout {
            // Check-quorum: whoever can reach a quorum may lead instead.
            return self.step_down(clock, effects);
        }
        if self.is_crippled(clock) {
            return self.step_down(clock, effects);
        }
        let State::Leader(leader) = &mut self.state else { return };
        leader.heartbeat_deadline = clock.now.after(self.config.heartbeat);
        for progress in &mut leader.progress {
            progress.retry(clock.now, self.config.heartbeat, timeout);
        }
        self.begin_round(clock, effects);
        self.serve_reads(clock, effects);
        self.weigh_disk(clock, effects);
    }

    /// An answer to an append or a heartbeat.
    pub(crate) fn on_reply(&mut self, clock: Clock, from: NodeId, reply: Asserting, effects: &mut Effects) {
        if !self.is_leader() || reply.generation() < self.generation {
            return; // of an earlier leadership
        }
        if reply.generation() > self.generation {
            return self.promise(clock, reply.generation(), None, effects);
        }
        let last = self.log.last().index;
        let (round, matched) = match reply {
            Asserting::AppendReply { round, matched, .. }
            | Asserting::HeartbeatReply { round, matched, .. } => (round, matched),
            Asserting::AppendRefused { round, prev, .. } => (round, prev),
            Asserting::Vote { .. } | Asserting::VoteReply { .. } => return,
        };
        let State::Leader(leader) = &mut self.state else { return };
        let at = self.peers.iter().position(|peer| *peer == from);
        let Some(progress) = at.and_then(|at| leader.progress.get_mut(at)) else { return };
        if round == 0 {
            return; // a refusal to an earlier leadership of this node: no evidence for this one
        }
        if round > leader.round || matched > last {
            return self
                .note_malformed("an answer to a round that was not begun, or of entries that were not sent");
        }
        if let Some(lost) = progress.lost {
            let has_it = !matches!(reply, Asserting::AppendRefused { .. }) && matched >= lost.index;
            if !has_it {
                return;
            }
            // Its own directory was brought back.
            progress.lost = None;
        }
        if round > progress.round {
            progress.round = round;
            let sample = leader.samples.partition_point(|(sampled, _)| *sampled <= round).checked_sub(1);
            if let Some((_, sent)) = sample.and_then(|at| leader.samples.get(at)) {
                progress.evidence = progress.evidence.max(*sent);
            }
        }
        let news = match reply {
            Asserting::AppendRefused { prev, hint, damaged, .. } => {
                let agree = self.log.last_within(hint).map(|at| at.index);
                let most = agree.unwrap_or(hint.index);
                if !damaged && self.is_amnesia(from, round, most) {
                    return self.lose_peer(from, most, effects);
                }
                let State::Leader(leader) = &mut self.state else { return };
                let Some(progress) = at.and_then(|at| leader.progress.get_mut(at)) else { return };
                progress.refuse(prev, agree, self.log.base().index, clock.now);
                false
            }
            Asserting::HeartbeatReply { wall, disk, .. } => {
                progress.disk = Some(disk);
                progress.witness = Some(Witness::new(wall, clock.now));
                progress.confirm(matched, clock.now)
            }
            _ => progress.confirm(matched, clock.now),
        };
        if news {
            let State::Leader(leader) = &mut self.state else { return };
            let newest = leader.round;
            if let Some(progress) = at.and_then(|at| leader.progress.get_mut(at)) {
                progress.confirmed_in = newest;
            }
            self.advance(effects);
        }
        self.serve_reads(clock, effects);
    }

    /// Moves the high-water mark to what a quorum has made durable.
    pub(crate) fn advance(&mut self, effects: &mut Effects) {
        let own = self.counted();
        let State::Leader(leader) = &mut self.state else { return };
        let agreed = agreed_of(leader.progress.iter().map(Progress::counted).chain([own]));
        // An entry of an earlier generation may be on a quorum and still be replaced by a later leader; one of
        // the own generation cannot, and commits all before it (Raft 5.4.2, figure 8).
        if agreed < leader.first || agreed <= self.high_water {
            return;
        }
        let committed = agreed.0 - self.high_water.0.max(leader.first.prev().0);
        for _ in 0..committed {
            let bytes = leader.uncommitted.pop_front().expect("each own entry was counted when appended");
            leader.uncommitted_bytes -= u64::from(bytes);
        }
        self.commit(agreed, effects);
        let State::Leader(leader) = &mut self.state else { return };
        leader.answer(self.high_water, effects);
    }
}

impl Leader {
    /// The stamp of an entry made now behind one stamped `last`.
    pub(crate) fn stamp(&mut self, clock: Clock, last: ReplicatedMs) -> ReplicatedMs {
        let Leader { stamps, progress, .. } = self;
        stamps.stamp(clock, last, progress.iter().map(|peer| peer.witness))
    }

    /// The first round that begins after what came in now. Messages leave at the end of a turn, so one begun in this very
    /// turn does.
    pub(crate) fn next_round(&self, clock: Clock) -> u64 {
        if self.round_begun == Some(clock.now) { self.round } else { self.round + 1 }
    }

    /// Answers the reads and the refusals that may be.
    fn answer(&mut self, high_water: Index, effects: &mut Effects) {
        let confirmed = self.confirmed_round();
        self.reads.answer(confirmed, high_water, effects);
        self.refusals.answer(confirmed, high_water, effects);
    }

    /// See [`Replica::warm`].
    pub(crate) fn warm(&self) -> u64 {
        let uncommitted = self.uncommitted.back().map_or(0, |bytes| u64::from(*bytes));
        self.since.0 ^ uncommitted ^ self.grace.0 ^ self.round ^ self.uncommitted_bytes
    }

    /// What is known of the peers, in their order.
    pub(crate) fn progress(&self) -> &[Progress] {
        &self.progress
    }

    /// The process did not run for a while: what was not heard meanwhile is not held against the peers. Weighed after whatever had come in
    /// meanwhile. If no quorum has answered anything that was sent since the last such pause, this one is no excuse: a process that is paused
    /// again and again would otherwise lead for ever, cut off.
    fn weigh_pause(&mut self, now: Monotonic) {
        if let Some(at) = self.paused.take()
            && self.excused.is_none_or(|before| self.evidence(now) >= before)
        {
            (self.grace, self.excused) = (at, Some(at));
        }
    }

    pub(crate) fn progress_mut(&mut self, at: usize) -> Option<&mut Progress> {
        self.progress.get_mut(at)
    }

    /// The newest round that a quorum, itself included, has answered.
    fn confirmed_round(&self) -> u64 {
        agreed_of(self.progress.iter().map(Progress::counted_round).chain([self.round]))
    }

    /// When a quorum, itself included, last followed for certain: by the sending time of what it answered.
    fn evidence(&self, now: Monotonic) -> Monotonic {
        agreed_of(self.progress.iter().map(Progress::counted_evidence).chain([now]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admit::{Admitted, Proposal};
    use crate::config::Config;
    use crate::effects::ReadOutcome;
    use crate::read::READS_MAX;
    use crate::restore::Restored;
    use crate::session::SESSIONS_MAX;
    use core::time::Duration;
    use tidelog_types::{PartitionId, Sequence, SessionId, Ticket, WallMs};

    const DATA: Proposal = Proposal {
        kind: RecordKind::Data,
        session: None,
        session_key: None,
        record_bytes: 128,
        payload_crc: 0,
    };

    /// A single voter that leads; its no-op is not durable yet.
    fn leader() -> (Replica, Ticket, Effects) {
        let config = Config {
            node: NodeId(1),
            partition: PartitionId(0),
            voters: vec![NodeId(1)],
            election_timeout: Duration::from_millis(100),
            stall_timeout: Duration::from_millis(200),
            heartbeat: Duration::from_millis(10),
            in_flight_messages_max: 1,
            in_flight_bytes_max: 1,
            uncommitted_entries_max: 3,
            uncommitted_bytes_max: 1000,
            session_expiry: Duration::from_secs(3600),
            seed: 0,
        };
        let (clock, mut effects) = (Clock::default(), Effects::default());
        let mut replica = Replica::new(config, Restored::new(), clock);
        replica.tick(clock, &mut effects);
        replica.durable(clock, Ticket(1), &mut effects);
        assert!(replica.is_leader());
        effects = Effects::default();
        (replica, Ticket(2), effects)
    }

    fn propose(replica: &mut Replica, record_bytes: u32) -> Result<Admitted, Refused> {
        replica.propose(Clock::default(), Proposal { record_bytes, ..DATA }, &mut Effects::default())
    }

    #[test]
    fn what_is_uncommitted_is_bounded_by_count_and_bytes() {
        let (mut replica, noop, mut effects) = leader();
        assert!(propose(&mut replica, 900).is_ok());
        assert_eq!(propose(&mut replica, 900), Err(Refused::Busy), "bytes");
        assert!(propose(&mut replica, 1).is_ok());
        assert_eq!(propose(&mut replica, 1), Err(Refused::Busy), "count");
        replica.durable(Clock::default(), Ticket(noop.0 + 2), &mut effects);
        assert_eq!(effects.committed, Some(Index(3)));
        assert!(propose(&mut replica, 5000).is_ok(), "a record over the bound gets through alone");
        assert_eq!(propose(&mut replica, 1), Err(Refused::Busy));
    }

    #[test]
    fn waiting_reads_are_bounded() {
        let (mut replica, noop, mut effects) = leader();
        for request in 0..READS_MAX as u64 {
            assert_eq!(replica.read_index(Clock::default(), request, &mut effects), Ok(()));
        }
        assert_eq!(replica.read_index(Clock::default(), 0, &mut effects), Err(Refused::Busy));
        assert!(effects.reads.is_empty());
        replica.durable(Clock::default(), noop, &mut effects);
        assert_eq!(effects.reads.len(), READS_MAX);
        assert!(effects.reads.iter().all(|(_, answer)| *answer == ReadOutcome::At(Index(1))));
    }

    #[test]
    fn sessions_are_bounded_and_open_ones_are_found() {
        let (mut replica, noop, mut effects) = leader();
        let open = |replica: &mut Replica, key: u128| {
            let session_key = Some(SessionKey(key));
            let proposal = Proposal { kind: RecordKind::SessionOpen, session_key, ..DATA };
            replica.propose(Clock::default(), proposal, &mut Effects::default())
        };
        for key in 0..SESSIONS_MAX as u64 {
            assert!(open(&mut replica, u128::from(key)).is_ok());
            replica.durable(Clock::default(), Ticket(noop.0 + 1 + key), &mut effects);
        }
        assert_eq!(open(&mut replica, u128::MAX), Err(Refused::SessionsFull { until_ms: 3_600_000 }));
        let first = Position::new(Index(2), replica.generation());
        assert_eq!(open(&mut replica, 0), Ok(Admitted::Known(first)));
        assert_eq!(replica.sessions(), SESSIONS_MAX);
    }

    #[test]
    fn a_full_table_has_room_again_when_sessions_expire_and_goes_on_forgetting_them() {
        let (mut replica, noop, mut effects) = leader();
        let mut ticket = noop.0;
        let mut open = |replica: &mut Replica, ms: u64, key: u64| {
            let clock = Clock { now: Monotonic(ms * 1_000_000), wall: WallMs(ms) };
            let session_key = Some(SessionKey(u128::from(key)));
            let proposal = Proposal { kind: RecordKind::SessionOpen, session_key, ..DATA };
            let answer = replica.propose(clock, proposal, &mut Effects::default());
            if matches!(answer, Ok(Admitted::New(_))) {
                ticket += 1;
                replica.durable(clock, Ticket(ticket), &mut effects);
            }
            answer
        };
        let max = SESSIONS_MAX as u64;
        for key in 0..max {
            assert!(matches!(open(&mut replica, key, key), Ok(Admitted::New(_))));
        }
        let full = |until_ms| Err(Refused::SessionsFull { until_ms });
        assert_eq!(open(&mut replica, max, max), full(3_600_000 - max));
        assert_eq!(open(&mut replica, 3_599_999, max), full(1));
        let at = |key: u64| 3_600_000 * (1 + key / max) + key % max;
        for key in 0..4 * max {
            let opened = open(&mut replica, at(key), max + key);
            assert!(matches!(opened, Ok(Admitted::New(_))), "one expires every millisecond: {opened:?}");
            assert!(replica.sessions() <= SESSIONS_MAX + 64, "what expired is let go of");
        }
    }

    #[test]
    fn an_expiry_is_told_from_the_log_and_not_from_the_clock() {
        let (mut replica, noop, mut effects) = leader();
        let clock = |ms: u64| Clock { now: Monotonic(ms * 1_000_000), wall: WallMs(ms) };
        let open = Proposal { kind: RecordKind::SessionOpen, session_key: Some(SessionKey(7)), ..DATA };
        assert!(replica.propose(clock(10), open, &mut effects).is_ok());
        replica.durable(clock(10), Ticket(noop.0 + 1), &mut effects);
        effects = Effects::default();
        let request = SessionRef { session: SessionId(2), sequence: Sequence(1) };
        let data = Proposal { session: Some(request), ..DATA };
        let late = clock(10 + 3_600_000);
        assert_eq!(replica.propose(late, data, &mut effects), Err(Refused::SessionExpired));
        let steps: Vec<_> = effects.append.drain(..).map(|step| step.kind).collect();
        let proof = matches!(&steps[..], [LogOpKind::Make(EntryMeta { timestamp, .. })] if timestamp.0 == late.wall.0);
        assert!(proof, "an entry that is late enough to prove it: {steps:?}");
        assert_eq!(replica.propose(late, data, &mut effects), Err(Refused::SessionExpired));
        assert!(effects.append.is_empty(), "it is proven once");
        assert_eq!(replica.confirm(late, 5, &mut effects), Ok(()));
        assert!(effects.reads.is_empty(), "the proof may still be cut");
        replica.durable(late, Ticket(noop.0 + 2), &mut effects);
        assert_eq!(effects.reads, [(5, ReadOutcome::At(Index(3)))]);
        let again = replica.propose(late, open, &mut effects);
        assert!(matches!(again, Ok(Admitted::New(_))), "its key names another session now: {again:?}");
    }
}
