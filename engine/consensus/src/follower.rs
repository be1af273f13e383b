//! Following: taking entries from a leader, and telling it what is durable here.
//!
//! An append fits if this log has the entry before it; then everything up to its end is known to be the
//! leader's (`verified`), conflicting entries are cut and missing ones are written. Only what is verified may
//! be committed here, whatever mark the leader sends. Confirmations wait for the ticket that makes what they
//! say durable. Promises that nothing at or below the high-water mark is cut. It does not know the entries'
//! bytes; they came verified.

use crate::effects::{Effects, LogOpKind, Trouble};
use crate::message::{Append, Asserting};
use crate::replica::{NUMBER_MAX, Replica, State};
use tidelog_types::{Clock, EntryMeta, Generation, Index, NodeId, Position, RecordKind, Ticket};

impl Replica {
    pub(crate) fn on_append(
        &mut self,
        clock: Clock,
        from: NodeId,
        append: &Append,
        entries: &[EntryMeta],
        effects: &mut Effects,
    ) {
        let Append { generation, prev, round, .. } = *append;
        if !is_well_formed(append, entries) {
            self.note_malformed("an append whose entries do not fit together");
            return;
        }
        if self.barred {
            return;
        }
        if generation < self.generation {
            // The refusal carries the generation that deposes the sender.
            let message = Asserting::AppendRefused {
                generation: self.generation,
                prev: prev.index,
                hint: Position::ZERO,
                round: 0,
                damaged: false,
            };
            return self.assert_to(from, Ticket(0), message, effects);
        }
        let base = self.log.base();
        let fits = behind_base(prev, entries, base);
        let at = match &fits {
            Some((prev, entries)) => self.contradiction(*prev, entries),
            // What it says of the base is something else than what was committed here and is gone already.
            None => Some(base.index),
        };
        if let Some(index) = at {
            return self.contradict(from, generation, index, effects);
        }
        let Some((prev, entries)) = fits else { return };
        if !self.heed(clock, from, generation, effects) {
            return;
        }
        if self.log.generation_at(prev.index) != Some(prev.generation) {
            let hint = self.log.last_within(prev).unwrap_or(base);
            let message =
                Asserting::AppendRefused { generation, prev: prev.index, hint, round, damaged: false };
            return self.assert_to(from, Ticket(0), message, effects);
        }
        if !self.take(entries, effects) {
            self.note_malformed("an append that this leader's own earlier ones or its sessions contradict");
            return;
        }
        let end = append.prev.index.plus(append.count).max(base.index);
        self.verified = self.verified.max(end);
        self.commit(append.high_water.min(self.verified), effects);
        // The confirmation is for this append's end only, so that it waits for no more than that.
        let (matched, ticket) = self.confirmable(end);
        let message = if matched < prev.index {
            // Damage lies before this append, and what is not committed cannot be confirmed across it: the leader is
            // to begin again there. Its bytes heal what is damaged.
            let hint = self.log.last_within(Position::new(matched, generation)).unwrap_or(base);
            Asserting::AppendRefused { generation, prev: prev.index, hint, round, damaged: true }
        } else {
            Asserting::AppendReply { generation, matched, round }
        };
        self.assert_to(from, ticket, message, effects);
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        clock: Clock,
        from: NodeId,
        generation: Generation,
        high_water: Index,
        round: u64,
        effects: &mut Effects,
    ) {
        if self.barred {
            return;
        }
        let message = if generation < self.generation {
            let (generation, wall) = (self.generation, clock.wall);
            Asserting::HeartbeatReply { generation, round: 0, matched: Index::ZERO, wall, disk: self.disk }
        } else {
            if !self.heed(clock, from, generation, effects) {
                return;
            }
            self.commit(high_water.min(self.verified), effects);
            let matched = self.verified.min(self.counted());
            Asserting::HeartbeatReply { generation, round, matched, wall: clock.wall, disk: self.disk }
        };
        self.assert_to(from, Ticket(0), message, effects);
    }

    /// Takes `from` as the leader of `generation`, which is not below the own one. False if that generation
    /// has another leader: no correct peer claims that.
    fn heed(&mut self, clock: Clock, from: NodeId, generation: Generation, effects: &mut Effects) -> bool {
        if generation > self.generation {
            self.promise(clock, generation, None, effects);
        }
        if self.leader.is_some_and(|leader| leader != from) {
            self.note_malformed("a second leader of one generation");
            return false;
        }
        if !matches!(self.state, State::Follower) {
            self.step_down(clock, effects);
        }
        if self.leader.is_none() {
            self.leader = Some(from);
            effects.role_changed = true;
            self.await_leader(clock);
        }
        self.heard = Some(clock.now);
        self.election_deadline = clock.now.after(self.election_wait);
        true
    }

    /// Brings the log in line with entries that fit behind it: skips those it has, cuts where it has others,
    /// appends the rest. False, and none of the rest is taken, if no correct leader sends it.
    fn take(&mut self, entries: &[EntryMeta], effects: &mut Effects) -> bool {
        let known = |entry: &&EntryMeta| {
            self.log.generation_at(entry.position.index) == Some(entry.position.generation)
        };
        let (old, new) = entries.split_at(entries.iter().take_while(known).count());
        if !self.damage.is_empty() {
            self.repair(old, effects);
        }
        let Some(first) = new.first().map(|entry| entry.position.index) else { return true };
        if first <= self.verified {
            return false; // within one generation a leader only appends (invariant 3)
        }
        if first <= self.log.last().index {
            self.cut(first.prev(), effects);
        }
        for entry in new {
            if self.sessions.apply(entry, self.high_water).is_err() {
                self.sessions.cut(first.prev());
                return false;
            }
        }
        for entry in new {
            self.log.push(entry.position);
            self.starts.push(entry);
            self.history.push(entry);
            self.stamp = self.stamp.max(entry.timestamp);
        }
        self.order(LogOpKind::Append { first, last: self.log.last().index }, effects);
        true
    }

    /// The first entry of an append that differs from what is committed here, if one does: the entry before the append, or
    /// one of its own.
    fn contradiction(&self, prev: Position, entries: &[EntryMeta]) -> Option<Index> {
        let all = core::iter::once(prev).chain(entries.iter().map(|entry| entry.position));
        let committed = all.take_while(|at| at.index <= self.high_water);
        let differs = |at: &Position| {
            self.log.generation_at(at.index).is_some_and(|generation| generation != at.generation)
        };
        committed.into_iter().find(differs).map(|at| at.index)
    }

    /// A leader lacks what was committed: some replica has broken a promise (invariant 8). It is not followed in this; what is here stays.
    fn contradict(&mut self, leader: NodeId, generation: Generation, index: Index, effects: &mut Effects) {
        if self.contradicted != Some(generation) {
            self.contradicted = Some(generation);
            let high_water = self.high_water;
            effects.trouble.push(Trouble::Contradicted { leader, generation, index, high_water });
        }
    }

    /// Whether the leader of this generation contradicts what is committed here.
    pub fn is_contradicted(&self) -> bool {
        self.contradicted.is_some_and(|generation| generation >= self.generation)
    }

    pub(crate) fn cut(&mut self, keep: Index, effects: &mut Effects) {
        // Invariant 8. What a leader sends was compared with what is committed before.
        assert!(
            keep >= self.high_water,
            "partition {}: in generation {} the log is to be cut at {}, at or below the high-water mark {}",
            self.config.partition,
            self.generation,
            keep.next(),
            self.high_water,
        );
        let generation = self.log.generation_at(keep).expect("a cut keeps an entry of the log");
        self.log.cut(keep);
        self.sessions.cut(keep);
        self.damage.cut(keep);
        self.tickets.cut(keep);
        self.starts.cut(keep);
        self.history.cut(keep);
        self.order(LogOpKind::Cut { keep: Position::new(keep, generation) }, effects);
    }
}

/// The part of an append that lies behind `base`, and the entry before it. All up to the base is committed, and so the
/// same at every leader (invariant 4). None if what the append says of the base itself is something else.
fn behind_base(prev: Position, entries: &[EntryMeta], base: Position) -> Option<(Position, &[EntryMeta])> {
    if prev.index > base.index {
        return Some((prev, entries));
    }
    let below = entries.partition_point(|entry| entry.position.index <= base.index);
    let (below, behind) = entries.split_at_checked(below)?;
    let end = below.last().map_or(prev, |entry| entry.position);
    (end == base || end.index < base.index).then_some((base, behind))
}

/// Whether the append and its entries are such as a correct leader sends: dense behind `prev`, generations
/// rising up to the leader's, each naming the one before it, time not going back.
fn is_well_formed(append: &Append, entries: &[EntryMeta]) -> bool {
    let count = u64::try_from(entries.len()).unwrap_or(u64::MAX);
    let numbers = append.count == count
        && append.prev.index.0 <= NUMBER_MAX
        && append.prev.generation <= append.generation
        && (append.prev.index == Index::ZERO) == (append.prev.generation == Generation::ZERO)
        && append.generation > Generation::ZERO;
    let mut before = append.prev;
    let mut stamp = None;
    numbers
        && entries.iter().all(|entry| {
            let at = entry.position;
            let fits = at.index == before.index.next()
                && entry.prev_generation == before.generation
                && at.generation >= before.generation
                && at.generation > Generation::ZERO
                && at.generation <= append.generation
                && Some(entry.timestamp) >= stamp;
            before = at;
            stamp = Some(entry.timestamp);
            let kind = match entry.kind {
                RecordKind::Data => entry.session_key.is_none(),
                RecordKind::SessionOpen => entry.session.is_none() && entry.session_key.is_some(),
                RecordKind::Noop | RecordKind::LogStart => {
                    entry.session.is_none() && entry.session_key.is_none()
                }
                _ => false,
            };
            // Once it is committed, so is everything that it lets go.
            let start = match entry.log_start {
                Some(first) => entry.kind == RecordKind::LogStart && first > Index::ZERO && first <= at.index,
                None => entry.kind != RecordKind::LogStart,
            };
            fits && kind && start
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::{ReplicatedMs, Sequence, SessionId, SessionKey, SessionRef};

    fn position(index: u64, generation: u64) -> Position {
        Position::new(Index(index), Generation(generation))
    }

    fn entry(index: u64, generation: u64, prev: u64) -> EntryMeta {
        EntryMeta {
            position: position(index, generation),
            prev_generation: Generation(prev),
            kind: RecordKind::Data,
            session: None,
            session_key: None,
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(index),
            record_bytes: 64,
            payload_crc: 0,
        }
    }

    fn append(prev: Position, count: u64) -> Append {
        Append { generation: Generation(3), prev, count, high_water: Index(u64::MAX), round: 1 }
    }

    #[test]
    fn what_lies_below_the_base_is_skipped_unless_it_contradicts_it() {
        let entries = [entry(5, 2, 1), entry(6, 2, 2), entry(7, 3, 2)];
        let cut = |prev, base| behind_base(prev, &entries, base).map(|(prev, e)| (prev, e.len()));
        assert_eq!(cut(position(4, 1), position(3, 1)), Some((position(4, 1), 3)));
        assert_eq!(cut(position(4, 1), position(4, 1)), Some((position(4, 1), 3)));
        assert_eq!(cut(position(4, 1), position(6, 2)), Some((position(6, 2), 1)));
        assert_eq!(cut(position(4, 1), position(7, 3)), Some((position(7, 3), 0)));
        assert_eq!(cut(position(4, 1), position(50, 3)), Some((position(50, 3), 0)));
        assert_eq!(cut(position(4, 1), position(6, 1)), None);
        assert_eq!(cut(position(4, 1), position(4, 2)), None);
    }

    #[test]
    fn only_what_a_correct_leader_sends_is_well_formed() {
        let good = [entry(5, 2, 1), entry(6, 2, 2), entry(7, 3, 2)];
        assert!(is_well_formed(&append(position(4, 1), 3), &good));
        assert!(is_well_formed(&append(Position::ZERO, 0), &[]));
        for prev in [position(4, 2), position(5, 1), position(u64::MAX, 1), position(4, 9), position(4, 0)] {
            assert!(!is_well_formed(&append(prev, 3), &good), "{prev:?}");
        }
        assert!(!is_well_formed(&append(position(4, 1), 2), &good), "another count");
        assert!(!is_well_formed(&append(position(4, 1), u64::MAX), &good));
        let spoiled = |f: &dyn Fn(&mut EntryMeta)| {
            let mut entries = good;
            f(&mut entries[1]);
            is_well_formed(&append(position(4, 1), 3), &entries)
        };
        assert!(spoiled(&|_| {}));
        assert!(!spoiled(&|e| e.position.index = Index(8)));
        assert!(!spoiled(&|e| e.position.generation = Generation(1)));
        assert!(!spoiled(&|e| e.position.generation = Generation(4)));
        assert!(!spoiled(&|e| e.prev_generation = Generation(1)));
        assert!(!spoiled(&|e| e.timestamp = ReplicatedMs(3)));
        assert!(!spoiled(&|e| e.kind = RecordKind::Cut));
        assert!(!spoiled(&|e| e.kind = RecordKind::SessionOpen));
        assert!(!spoiled(&|e| e.session_key = Some(SessionKey(1))));
        let start =
            |first: u64| spoiled(&|e| (e.kind, e.log_start) = (RecordKind::LogStart, Some(Index(first))));
        assert!(start(1) && start(6));
        assert!(!start(0) && !start(7), "it lets go what is committed with it at most");
        assert!(!spoiled(&|e| e.kind = RecordKind::LogStart));
        assert!(!spoiled(&|e| e.log_start = Some(Index(1))));
        let session = Some(SessionRef { session: SessionId(1), sequence: Sequence(1) });
        assert!(!spoiled(&|e| (e.kind, e.session) = (RecordKind::Noop, session)));
    }
}
