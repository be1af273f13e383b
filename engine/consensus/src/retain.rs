//! What a replica keeps of its log: the log start that all replicas agree on, this node's snapshot and low-water marks.
//!
//! *Log start* is agreed like everything else, as an entry, and takes effect when that is committed: readers see
//! nothing below it, on any replica. The *low-water mark* is one node's own: the first index whose bytes it keeps. It
//! rises only over what a durable snapshot or the committed log start covers (invariant 10), never goes back (invariant
//! 2), and each rise is a log step of its own: it holds when its ticket is durable, not before. The shard decides when to
//! raise it, because only the shard knows readers, backups and the state machine; what it may not do is checked here.
//!
//! Time is replicated time: how old an entry is follows from its stamp and the quorum's clocks (`stamp`), so that one
//! wrong clock expires nothing and holds up nothing. A log without clients' entries is never shortened for its age,
//! or each log start would sooner or later call for the next one.

use crate::base::{Base, BaseError, Input, put};
use crate::effects::{Effects, LogOpKind};
use crate::leader::Entry;
use crate::replica::{Replica, State};
use core::time::Duration;
use std::collections::VecDeque;
use tidelog_types::{Clock, EntryMeta, Index, Monotonic, NodeId, Position, RecordKind, ReplicatedMs, Ticket};

/// What is to be kept of a log that needs no snapshot. Neither bound: everything.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Retention {
    /// Entries older than this may go.
    pub age: Option<Duration>,
    /// The oldest entries may go when the log is longer than this.
    pub bytes: Option<u64>,
}

impl Retention {
    /// Whether anything ever goes.
    pub const fn is_bounded(&self) -> bool {
        self.age.is_some() || self.bytes.is_some()
    }
}

/// What a leader knows of one peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Which.
    pub node: NodeId,
    /// Last index that it has confirmed.
    pub matched: Index,
    /// When it last confirmed something new, or sending to it began.
    pub moved: Monotonic,
    /// What it lacks is not in this log any more: only a snapshot brings it back.
    pub needs_snapshot: bool,
}

/// Log starts: the committed one, and those whose entries are not.
#[derive(Clone, Debug, Default)]
pub(crate) struct Starts {
    committed: Index,
    /// (index of the entry, first index kept), ascending in the first. At most as many as entries are uncommitted.
    pending: VecDeque<(Index, Index)>,
}

impl Starts {
    /// With `committed` in force.
    pub(crate) fn at(committed: Index) -> Starts {
        Starts { committed, pending: VecDeque::new() }
    }

    /// Appends their bytes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put(out, self.committed.0);
        put(out, self.pending.len() as u64);
        for (at, first) in &self.pending {
            put(out, at.0);
            put(out, first.0);
        }
    }

    /// Reads them back.
    pub(crate) fn decode(input: &mut Input<'_>) -> Result<Starts, BaseError> {
        let mut starts = Starts::at(Index(input.number()?));
        for _ in 0..input.count(16)? {
            let (at, first) = (Index(input.number()?), Index(input.number()?));
            if first > at || starts.pending.back().is_some_and(|(before, _)| *before >= at) {
                return Err(BaseError::Contradiction("log starts"));
            }
            starts.pending.push_back((at, first));
        }
        Ok(starts)
    }

    /// One more entry: at the log's end, or one that was lost and is known again.
    pub(crate) fn push(&mut self, entry: &EntryMeta) {
        if let Some(first) = entry.log_start {
            let index = entry.position.index;
            let at = self.pending.partition_point(|(before, _)| *before < index);
            self.pending.insert(at, (index, first));
        }
    }

    /// Everything above `keep` is gone.
    pub(crate) fn cut(&mut self, keep: Index) {
        while self.pending.back().is_some_and(|(at, _)| *at > keep) {
            self.pending.pop_back();
        }
    }

    /// Everything up to `mark` is committed.
    pub(crate) fn commit(&mut self, mark: Index) {
        while let Some((at, first)) = self.pending.front().copied().filter(|(at, _)| *at <= mark) {
            assert!(first <= at, "a log start lies at or below its own entry");
            self.committed = self.committed.max(first);
            self.pending.pop_front();
        }
    }

    /// The highest that any entry says, committed or not.
    pub(crate) fn furthest(&self) -> Index {
        self.pending.iter().fold(self.committed, |most, (_, first)| most.max(*first))
    }

    /// The highest that is committed.
    pub(crate) fn committed(&self) -> Index {
        self.committed
    }
}

/// This node's marks that are on their way to its disk.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ordered {
    snapshot: Option<(Ticket, Position)>,
    low_water: Option<(Ticket, Index)>,
}

impl Ordered {
    /// The snapshot's mark and the low-water mark that will hold when all that was ordered is durable.
    pub(crate) fn marks(&self) -> (Option<Position>, Option<Index>) {
        (self.snapshot.map(|(_, covered)| covered), self.low_water.map(|(_, first)| first))
    }
}

impl Replica {
    /// First index that readers may see: what a committed log start says, 1 if there is none. The low-water mark may be
    /// higher (a snapshot covers the rest) or lower (something holds the bytes).
    pub fn log_start(&self) -> Index {
        self.starts.committed().max(Index(1))
    }

    /// The last entry that this node's durable snapshot covers; [`Position::ZERO`] if there is none.
    pub fn snapshot(&self) -> Position {
        self.snapshot
    }

    /// Whether a snapshot's mark is on its way to the disk.
    pub fn is_marking(&self) -> bool {
        self.ordered.snapshot.is_some()
    }

    /// Whether a low-water mark is on its way to the disk.
    pub fn is_raising(&self) -> bool {
        self.ordered.low_water.is_some()
    }

    /// What the protocol knows of the log up to `covered`, for a snapshot of it. None if the sessions as of that entry
    /// cannot be told any more: ask again with a later entry.
    ///
    /// # Panics
    /// If `covered` is not an entry that may be applied here.
    pub fn base_at(&self, covered: Index) -> Option<Base> {
        let applicable = self.high_water.min(self.counted());
        assert!(covered <= applicable, "a snapshot covers what may be applied: {covered}");
        let generation = self.log.generation_at(covered).expect("what may be applied is in the log");
        Some(Base {
            position: Position::new(covered, generation),
            stamp: self.stamp,
            log_start: self.starts.committed().min(covered),
            voters: self.config.voters.clone(),
            runs: self.log.runs_to(covered),
            sessions: self.sessions.as_of(covered)?,
        })
    }

    /// What the durable snapshot tells of the log up to the entry that it covers. Entries of it whose bytes were lost before
    /// it was known what they did are known again. False, and nothing changed, if it is of another log.
    pub fn recall(&mut self, base: &Base) -> bool {
        let end = base.position();
        if end != self.snapshot || !self.sessions.recall(&base.sessions, end.index, self.high_water) {
            return false;
        }
        self.stamp = self.stamp.max(base.stamp);
        self.starts.committed = self.starts.committed.max(base.log_start);
        true
    }

    /// The shard has made a snapshot that covers everything up to `covered`, durable and read back. Orders its mark;
    /// the snapshot counts once that is durable.
    ///
    /// # Panics
    /// If it covers less than the last one or more than is committed, or another mark is under way.
    pub fn snapshot_taken(&mut self, covered: Position, effects: &mut Effects) {
        assert!(self.ordered.snapshot.is_none(), "one snapshot mark at a time");
        assert!(covered.index > self.snapshot.index, "a snapshot covers more than the one before");
        // It was taken of what had been applied; entries of it whose bytes were lost since are of no concern.
        assert!(covered.index <= self.high_water, "a snapshot covers what is committed");
        let generation = self.log.generation_at(covered.index);
        assert!(generation == Some(covered.generation), "a snapshot is of this log: {covered:?}");
        let ticket = self.order(LogOpKind::SnapshotMark { covered }, effects);
        self.ordered.snapshot = Some((ticket, covered));
    }

    /// Orders a rise of the low-water mark: entries below `first` are not needed here any more. It holds when it is
    /// durable.
    ///
    /// # Panics
    /// If it does not rise, another one is under way, or neither the durable snapshot nor the committed log start covers
    /// what would go (invariants 2, 10).
    pub fn raise_low_water(&mut self, first: Index, effects: &mut Effects) {
        assert!(self.ordered.low_water.is_none(), "one low-water mark at a time");
        let marks = self.marks();
        assert!(first > marks.low_water, "a low-water mark never goes back (invariant 2)");
        let covered = self.snapshot.index.next().max(self.starts.committed());
        assert!(first <= covered, "entries below {first} are not covered: {covered} (invariant 10)");
        assert!(first.prev() <= marks.high_water, "what is not committed is kept");
        let ticket = self.order(LogOpKind::LowWater { first }, effects);
        self.ordered.low_water = Some((ticket, first));
    }

    /// Tickets were reported: marks that are durable now hold.
    pub(crate) fn settle_marks(&mut self) {
        if let Some((ticket, covered)) = self.ordered.snapshot
            && self.tickets.is_durable(ticket)
        {
            self.ordered.snapshot = None;
            self.snapshot = covered;
        }
        if let Some((ticket, first)) = self.ordered.low_water
            && self.tickets.is_durable(ticket)
        {
            self.ordered.low_water = None;
            self.log.begin_behind(first.prev());
            self.history.begin_at(first);
            self.damage.let_go(first);
        }
    }

    /// Proposes a later log start if `retention` asks for one. Its log step is among the effects. Only a leader does, one
    /// at a time, and only over committed entries, clients' among them.
    pub fn retain(&mut self, clock: Clock, retention: Retention, effects: &mut Effects) -> Option<EntryMeta> {
        let now = self.agreed_time(clock)?;
        if !self.starts.pending.is_empty() || self.is_full(0) {
            return None;
        }
        let by_bytes = retention.bytes.map(|bytes| self.history.first_within_bytes(bytes));
        let by_age = retention.age.map(|age| {
            let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            now.0.checked_sub(age).map_or(Index::ZERO, |time| self.history.first_after(ReplicatedMs(time)))
        });
        let wanted = by_bytes.unwrap_or(Index::ZERO).max(by_age.unwrap_or(Index::ZERO));
        let first = wanted.min(self.high_water.next());
        let begin = self.log_start().max(self.marks().low_water);
        if first <= begin || !self.history.has_clients_from(begin) {
            return None;
        }
        let entry = self.extend(clock, Entry { log_start: Some(first), ..Entry::of(RecordKind::LogStart) });
        self.order(LogOpKind::Make(entry), effects);
        Some(entry)
    }

    /// Whether there is anything that a later log start could let go of: clients' entries.
    pub fn may_expire(&self) -> bool {
        self.history.has_clients_from(self.log_start().max(self.log.base().index.next()))
    }

    /// Replicated time as a quorum's clocks have it now; only a leader knows.
    fn agreed_time(&mut self, clock: Clock) -> Option<ReplicatedMs> {
        let State::Leader(leader) = &mut self.state else { return None };
        Some(leader.stamp(clock, self.stamp))
    }

    /// What this leader knows of its peers; nothing if it does not lead.
    pub fn followers(&self) -> impl Iterator<Item = Peer> {
        let progress = match &self.state {
            State::Leader(leader) => leader.progress(),
            _ => &[],
        };
        self.peers.iter().zip(progress).map(|(node, progress)| Peer {
            node: *node,
            matched: progress.matched(),
            moved: progress.moved(),
            needs_snapshot: progress.is_short(),
        })
    }

    /// Bytes of the log from `first` to its end, or a little more.
    pub fn bytes_from(&self, first: Index) -> u64 {
        self.history.bytes_from(first)
    }

    /// The first index from which on the log is at most `bytes` long, as far as it is known.
    pub fn first_within_bytes(&self, bytes: u64) -> Index {
        self.history.first_within_bytes(bytes)
    }

    /// The first index of what is younger than `age` by the stamp of the last entry, as far as it is known.
    pub fn first_younger_than(&self, age: Duration) -> Index {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.stamp.0.checked_sub(age).map_or(Index::ZERO, |time| self.history.first_after(ReplicatedMs(time)))
    }
}
