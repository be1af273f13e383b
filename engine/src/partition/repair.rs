//! Healing this replica's log from its peers, and theirs from this one.
//!
//! What is damaged is fetched range by range from whoever has it, one request of a partition at a time and a few of
//! a shard, each peer in its turn; an answer that does not come, or denies, passes the turn on. A range that every peer was asked for in
//! vain steps back behind the others, so that what nobody keeps holds up nothing that somebody does. A replica that has been elected
//! and must know what becomes of its damage before it leads asks all of them at once, for the first range. What comes is verified record by
//! record and written back at the log's end as a move; when that is durable the range is whole. Requests of peers are served like followers that are behind: from the tail cache or by a read, in what room is left.
//!
//! Promises that no damaged entry is given to anyone, and that a peer's answer is believed only for what its records
//! prove. Does not know who leads: repair needs nobody to.

use super::writes::{Source, fitting};
use super::{Context, Partition};
use crate::reads::ReadFor;
use crate::request::RequestError;
use crate::transport::PeerMessage;
use bytes::Bytes;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_consensus::{DamagedRange, Message, Repair};
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::{Clock, EntryMeta, Generation, Index, Monotonic, NodeId, Position};
use tidelog_wal::{ReadError, Run};

/// How long an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1000);
/// Between a denial, or a request that could not leave, and the next one.
const PAUSE: Duration = Duration::from_millis(100);

/// For so long what a peer lost is kept for it after it has asked.
const LACKING_FOR: Duration = Duration::from_secs(10);

/// What a partition does about its damage.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// What was asked for, and until when the answer is waited for.
    asked: Option<(DamagedRange, Monotonic)>,
    /// The range whose turn it is begins here or behind.
    at: Index,
    /// How many peers were asked for it since its turn began.
    in_vain: usize,
    /// Which peer's turn it is.
    turn: usize,
    not_before: Monotonic,
    /// The last generation in which everyone was asked.
    decided_in: Generation,
    /// What was told about the first damage found, for people.
    place: String,
    /// Entries damaged when last looked at.
    known: u64,
    /// Who said that they cannot give the entry at this index, the first that is wanted.
    denied: (Index, BTreeSet<NodeId>),
    /// What peers asked for that lost it: from which entry on, and when.
    lacking: BTreeMap<NodeId, (Index, Monotonic)>,
}

impl Partition {
    /// Where damage was found, in words, before the replica began.
    pub(crate) fn note_damage(&mut self, place: &str) {
        if self.repairs.place.is_empty() {
            place.clone_into(&mut self.repairs.place);
        }
    }

    /// A read met damage in this log.
    pub(crate) fn read_failed(&mut self, cx: &mut Context<'_>, error: &ReadError) {
        let ReadError::Damaged { index, through, .. } = error else { return };
        self.note_damage(&error.to_string());
        if let Some(generation) = self.replica.generation_at(*index) {
            self.found_damaged(cx, DamagedRange { first: *index, last: *through, generation });
        }
    }

    /// Entries turned out to be damaged.
    pub(crate) fn found_damaged(&mut self, cx: &mut Context<'_>, range: DamagedRange) {
        let before = self.replica.damaged_entries();
        self.replica.damaged(cx.clock, range, &mut cx.shared.effects);
        let damaged = self.replica.damaged_entries();
        if damaged > 0 {
            cx.shared.damaged.insert(self.id);
        }
        if damaged > before {
            // What was said before may have been about less.
            self.repairs.denied = Default::default();
            tracing::error!(
                partition = %self.id, first = %range.first, last = %range.last, generation = %range.generation, damaged,
                "damage found; it is not served{}",
                if self.is_alone() { ", and there is no other replica to fetch it from" } else { ", and fetched from the other replicas" }
            );
        }
        self.settle(cx, Source::None);
    }

    /// What an asker is told that wants the entry at `index`, which is damaged.
    pub(super) fn damage_error(&self, index: Index) -> RequestError {
        let more = match self.replica.damaged_entries() {
            0 | 1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let place = &self.repairs.place;
        let what = if self.is_alone() {
            "there is no other replica to fetch it from; restore the directory"
        } else {
            "it is being fetched from the other replicas"
        };
        RequestError::Unavailable(format!(
            "partition {} index {index}{more} is damaged on this node: {what}. {place}",
            self.id
        ))
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.replica.damaged_entries() > 0
    }

    pub(super) fn is_alone(&self) -> bool {
        self.replica.peers().is_empty()
    }

    /// A single voter with damage takes no appends: what it is told that asks for one.
    pub(super) fn refused_for_damage(&self) -> Option<RequestError> {
        let first = self.replica.damaged_from(Index(1)).filter(|_| self.is_alone())?;
        Some(self.damage_error(first))
    }

    /// When repair wants a turn.
    pub(super) fn repair_deadline(&self) -> Option<Monotonic> {
        let wanted = !self.is_alone() && self.replica.damaged_entries() > 0;
        wanted.then(|| self.repairs.asked.map_or(self.repairs.not_before, |(_, until)| until))
    }

    /// The range whose turn it is. It has it until every peer was asked for it; then come those behind it, and then the first again. One
    /// that comes back ends its turn with that. While this replica decides, nothing helps it but the first.
    fn next_wanted(&mut self, deciding: bool) -> Option<DamagedRange> {
        let first = self.replica.repair_wanted()?;
        if deciding {
            return Some(first);
        }
        let from = |at| self.replica.repair_wanted_from(at).unwrap_or(first);
        let mut range = from(self.repairs.at);
        let over = range.first == self.repairs.at && self.repairs.in_vain >= self.replica.peers().len();
        if over {
            range = from(range.last.next());
        }
        if over || range.first != self.repairs.at {
            (self.repairs.at, self.repairs.in_vain) = (range.first, 0);
        }
        Some(range)
    }

    /// Asks a peer for the damage whose turn it is, if nobody is being asked.
    pub(crate) fn seek_repair(&mut self, cx: &mut Context<'_>) {
        let (now, damaged) = (cx.clock.now, self.replica.damaged_entries());
        if damaged != self.repairs.known {
            if damaged == 0 {
                tracing::info!(partition = %self.id, "the log is whole again");
                self.repairs.place.clear();
                self.stop_asking(cx, now);
            }
            self.repairs.known = damaged;
        }
        if damaged == 0 || self.is_alone() {
            return;
        }
        let deciding = self.replica.is_deciding();
        if deciding && self.repairs.decided_in < self.replica.generation() {
            // An answer to what was asked before the election decides nothing.
            self.repairs.decided_in = self.replica.generation();
            self.stop_asking(cx, now);
        }
        match self.repairs.asked {
            Some((_, until)) if now < until => return,
            Some(_) => self.stop_asking(cx, now),
            None => {}
        }
        if now < self.repairs.not_before {
            return;
        }
        let Some(range) = self.next_wanted(deciding) else {
            self.repairs.not_before = now.after(PAUSE); // on its way into the log
            return;
        };
        if !cx.reads.begin_fetch() {
            self.repairs.not_before = now.after(PAUSE);
            return;
        }
        let DamagedRange { first, last, generation } = range;
        self.repairs.asked = Some((range, now.after(ANSWER_TIMEOUT)));
        let peers = self.replica.peers();
        let turn = self.repairs.turn % peers.len().max(1);
        let in_turn = peers.iter().cycle().skip(turn).take(if deciding { peers.len() } else { 1 });
        let mut asked = false;
        for peer in in_turn {
            asked |= self.say(cx, *peer, Repair::Fetch { generation, first, last }, Vec::new());
        }
        self.repairs.turn = self.repairs.turn.wrapping_add(1);
        self.repairs.in_vain += 1; // until it is answered
        if !asked {
            self.stop_asking(cx, now.after(PAUSE));
        }
    }

    /// What is damaged first, if every peer has said that it cannot give even the first of it. Whoever keeps more of it gives that, so
    /// it is what nobody keeps, but for what comes back at this moment.
    pub(super) fn hopeless(&self) -> Option<DamagedRange> {
        let (first, by) = &self.repairs.denied;
        let lost = self.replica.repair_wanted()?;
        (lost.first == *first && self.replica.peers().iter().all(|peer| by.contains(peer))).then_some(lost)
    }

    /// A peer cannot give the entry at this index. What lies behind the first damage is asked for again when it is the first.
    fn note_lacked(&mut self, by: NodeId, first: Index) {
        if self.replica.repair_wanted().is_none_or(|lost| lost.first != first) {
            return;
        }
        if self.repairs.denied.0 != first {
            self.repairs.denied = (first, BTreeSet::new());
        }
        self.repairs.denied.1.insert(by);
    }

    /// Peers that lost something a moment ago, and from which entry on.
    pub(super) fn lacking(&self, now: Monotonic) -> impl Iterator<Item = (NodeId, Index)> {
        let fresh = self.repairs.lacking.iter().filter(move |(_, (_, at))| now.since(*at) <= LACKING_FOR);
        fresh.map(|(peer, (first, _))| (*peer, *first))
    }

    fn stop_asking(&mut self, cx: &mut Context<'_>, not_before: Monotonic) {
        if self.repairs.asked.take().is_some() {
            cx.reads.end_fetch();
        }
        self.repairs.not_before = not_before;
    }

    fn say(&self, cx: &mut Context<'_>, to: NodeId, repair: Repair, records: Vec<Bytes>) -> bool {
        let message = Message::Repair(repair);
        cx.transport.send(to, PeerMessage { partition: self.id, message, records })
    }

    /// A peer asks for entries, or answers; `metas` are those of the records that came along, verified. What the growing
    /// batch has no room for comes back, to be given again later.
    pub(super) fn on_repair(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        mut message: PeerMessage,
        records: Bytes,
        metas: &[EntryMeta],
    ) -> Option<PeerMessage> {
        let Message::Repair(repair) = &message.message else { return None };
        match *repair {
            Repair::Fetch { generation, first, last } => self.give(cx, from, first, last, generation),
            Repair::Missing { generation, first, damaged, promised } => {
                tracing::debug!(partition = %self.id, %from, %first, damaged, "a peer cannot give a damaged entry back");
                self.note_lacked(from, first);
                let before = self.replica.damaged_entries();
                if !damaged && self.replica.is_deciding() && promised < self.replica.generation() {
                    // Its promise is on the way to its disk: its denial will count in a moment.
                    let soon = cx.clock.now.after(PAUSE);
                    self.repairs.asked = self.repairs.asked.map(|(asked, until)| (asked, until.min(soon)));
                }
                if !damaged {
                    let entry = Position::new(first, generation);
                    self.replica.denied(cx.clock, from, entry, promised, &mut cx.shared.effects);
                    self.settle(cx, Source::None);
                }
                if self.replica.damaged_entries() < before {
                    tracing::warn!(
                        partition = %self.id, %first, %generation,
                        "no quorum can have this damaged entry: it was never committed, and the log is cut before it"
                    );
                    self.stop_asking(cx, cx.clock.now);
                } else if self.repairs.asked.is_some_and(|(asked, _)| asked.first == first)
                    && !self.replica.is_deciding()
                {
                    self.stop_asking(cx, cx.clock.now.after(PAUSE));
                }
            }
            Repair::Fetched { generation, first, count } => {
                let known = metas.first().is_some_and(|meta| meta.position.index == first)
                    && metas.len() as u64 == count
                    && metas.iter().all(|meta| meta.position.generation == generation);
                let asked = self.repairs.asked.map(|(asked, _)| asked);
                let asked = asked.filter(|asked| {
                    asked.generation == generation && asked.first <= first && first <= asked.last
                });
                // One that is late is as good as ever: only what is wanted is taken.
                if !known || (asked.is_none() && self.replica.damaged_entries() == 0) {
                    return None;
                }
                let (fits, bytes) =
                    if self.unwritten.is_empty() { fitting(metas, cx.wal.room()) } else { (0, 0) };
                let Some(part) = metas.get(..fits).filter(|part| !part.is_empty()) else {
                    message.records = vec![records];
                    return Some(message);
                };
                // What does not fit is asked for again.
                if let Some(asked) = asked.filter(|asked| asked.first < first) {
                    self.note_lacked(from, asked.first);
                }
                let now = records.slice(..bytes);
                let taken = self.replica.repair(part, &mut cx.shared.effects);
                self.settle(cx, Source::Message { records: &now, metas: part });
                if taken > 0 {
                    tracing::info!(partition = %self.id, %from, %first, taken, "damaged entries came back");
                }
                if asked.is_some() {
                    self.stop_asking(cx, if taken > 0 { cx.clock.now } else { cx.clock.now.after(PAUSE) });
                }
            }
        }
        None
    }

    /// Gives a peer what it lost, as far as it is whole here.
    fn give(&mut self, cx: &mut Context<'_>, to: NodeId, first: Index, last: Index, generation: Generation) {
        let Some((from, last)) = self.replica.can_give_of(first, last, generation) else {
            self.repairs.lacking.remove(&to);
            let damaged = !self.replica.denies(Position::new(first, generation));
            let promised = self.replica.generation_promised();
            self.say(cx, to, Repair::Missing { generation, first, damaged, promised }, Vec::new());
            return;
        };
        // It may not have taken all of it in yet, nor may this be all of it.
        self.repairs.lacking.insert(to, (from, cx.clock.now));
        // What finds no room now is asked for again, here or elsewhere.
        let bytes_max = APPEND_BYTES_MAX.min(cx.transport.room(to));
        if bytes_max == 0 {
            return;
        }
        match cx.wal.cached(self.id, from, last, bytes_max) {
            Some(run) => self.give_run(cx, to, run),
            None => {
                if let Some(read) = cx.reads.start(ReadFor::Repair { partition: self.id, peer: to }) {
                    cx.wal.read(cx.io, read, self.id, from, last, bytes_max);
                }
            }
        }
    }

    /// Entries for a peer that lost them are here.
    pub(crate) fn give_run(&self, cx: &mut Context<'_>, to: NodeId, run: Run) {
        if let Some(generation) = self.replica.generation_at(run.first) {
            // Whether these are the ones is the receiver's to see: it compares each.
            let count = run.last.0 - run.first.0 + 1;
            self.say(cx, to, Repair::Fetched { generation, first: run.first, count }, run.pieces);
        }
    }

    /// The last index up to which entries from `from` on can be read here; none if `from` itself is damaged.
    pub(super) fn readable(&self, from: Index, last: Index) -> Option<Index> {
        match self.replica.damaged_from(from) {
            Some(lost) if lost == from => None,
            Some(lost) => Some(last.min(lost.prev())),
            None => Some(last),
        }
    }

    /// A new life of the log has begun: what was asked of whom does not count any more.
    pub(crate) fn damage_at_opening(&mut self, clock: Clock, place: &str) {
        if self.replica.damaged_entries() > 0 {
            self.note_damage(place);
            self.repairs.not_before = clock.now;
            tracing::error!(
                partition = %self.id,
                damaged = self.replica.damaged_entries(),
                suspect = self.replica.suspect_entries(),
                first = ?self.replica.damaged_from(Index(1)),
                place,
                "the log has damage"
            );
        }
    }
}
