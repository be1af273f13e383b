//! Entries of this replica's log whose bytes are lost, and the way back.
//!
//! A damaged entry is known by its index and generation, which fix its bytes (invariant 3), so any peer that has
//! it can give it back. Until then it is **present** where logs are compared (votes, log matching): it may have
//! counted for a commitment. It is **absent** where this replica answers for the bytes: nothing at or behind it
//! is applied, and above the high-water mark it holds back what this replica confirms, itself as a leader
//! included. A replica that has damage does not begin to lead: it could neither feed its followers nor, if the
//! damage was found at the opening, admit requests, since it does not know the sessions of what is lost. How it may
//! come to lead is told in [`crate::decide`].
//!
//! It does not know where the bytes come from. A repair is a step of the log with a ticket like any other, and
//! what it writes back counts when that is durable; what was cut meanwhile stays cut.

use crate::base::{BaseError, Input};
use crate::effects::{Effects, LogOpKind};
use crate::ranges::Ranges;
use crate::replica::{Replica, State};
use std::collections::VecDeque;
use tidelog_types::{Clock, EntryMeta, Generation, Index, Monotonic, Position, Ticket};

/// How it is known that entries are damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harm {
    /// They were durable here, and may have been acknowledged.
    Damaged,
    /// Their write was under way when the last life ended, and it cannot be told whether it had completed.
    Suspect,
}

/// Entries of one generation without their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DamagedRange {
    /// First index.
    pub first: Index,
    /// Last index.
    pub last: Index,
    /// Their generation.
    pub generation: Generation,
}

#[derive(Clone, Copy, Debug)]
struct Repair {
    ticket: Ticket,
    first: Index,
    last: Index,
}

/// What is damaged in one log.
#[derive(Clone, Debug, Default)]
pub(crate) struct Damage {
    all: Ranges,
    /// Those among them that are only suspected.
    suspect: Ranges,
    /// Those whose bytes are on the way into the log, by ticket.
    repairs: VecDeque<Repair>,
    /// Since when a leader has damage above its mark: it can feed nobody behind it.
    since: Option<Monotonic>,
}

impl Damage {
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn contains(&self, index: Index) -> bool {
        self.all.contains(index)
    }

    pub(crate) fn insert(&mut self, first: Index, last: Index, harm: Harm) {
        self.all.insert(first, last);
        if harm == Harm::Suspect {
            self.suspect.insert(first, last);
        }
    }

    pub(crate) fn remove(&mut self, first: Index, last: Index) {
        self.all.remove(first, last);
        self.suspect.remove(first, last);
    }

    /// Appends its bytes as they are when every repair that is under way has ended: all, then those only suspected.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut done = self.clone();
        for repair in &self.repairs {
            done.remove(repair.first, repair.last);
        }
        done.all.encode(out);
        done.suspect.encode(out);
    }

    /// Of a log that ends at `last`.
    ///
    /// # Errors
    /// In which way the bytes are not such.
    pub(crate) fn decode(input: &mut Input<'_>, last: Index) -> Result<Damage, BaseError> {
        let all = Ranges::decode(input, last)?;
        let suspect = Ranges::decode(input, last)?;
        Ok(Damage { all, suspect, ..Damage::default() })
    }

    /// Entries above `keep` are gone, damaged or not, and repairs of them are for nothing.
    pub(crate) fn cut(&mut self, keep: Index) {
        self.all.cut(keep);
        self.suspect.cut(keep);
        self.repairs.retain(|repair| repair.first <= keep);
        for repair in &mut self.repairs {
            repair.last = repair.last.min(keep);
        }
    }

    /// Entries below `first` are not kept any more, damaged or not.
    pub(crate) fn let_go(&mut self, first: Index) {
        if first > Index(1) {
            self.remove(Index(1), first.prev());
        }
    }

    /// The first damaged index at or behind `from`.
    pub(crate) fn first_from(&self, from: Index) -> Option<Index> {
        self.all.first_from(from).map(|(first, _)| first)
    }

    fn repairing(&self, index: Index) -> Option<&Repair> {
        self.repairs.iter().find(|repair| repair.first <= index && index <= repair.last)
    }

    /// Whether the entry is damaged and nothing is on the way that heals it.
    pub(crate) fn is_wanted(&self, index: Index) -> bool {
        self.contains(index) && self.repairing(index).is_none()
    }

    /// The first damage at or behind `from` that nothing is on the way for.
    fn wanted_from(&self, from: Index) -> Option<(Index, Index)> {
        let mut from = from;
        while let Some((first, last)) = self.all.first_from(from) {
            match self.repairing(first) {
                Some(repair) => from = repair.last.next(),
                None => {
                    let until = self.repairs.iter().filter(|repair| repair.first > first);
                    let until = until.map(|repair| repair.first.prev()).min().unwrap_or(last);
                    return Some((first, last.min(until)));
                }
            }
        }
        None
    }

    /// The ticket after which everything of `from ..= to` is whole, given that all of its damage is being repaired.
    fn covering(&self, from: Index, to: Index) -> Ticket {
        let within = self.repairs.iter().filter(|r| r.last >= from && r.first <= to);
        within.map(|r| r.ticket).max().unwrap_or(Ticket(0))
    }

    /// `ticket` and all before it are durable: what they wrote back is whole.
    fn report(&mut self, ticket: Ticket) {
        while let Some(repair) = self.repairs.front().filter(|r| r.ticket <= ticket).copied() {
            self.remove(repair.first, repair.last);
            self.repairs.pop_front();
        }
    }
}

impl Replica {
    /// Bytes of entries turned out to be damaged. Those that are not in the log (any more) are ignored.
    pub fn damaged(&mut self, clock: Clock, range: DamagedRange, effects: &mut Effects) {
        let DamagedRange { first, last, generation } = range;
        // What is not kept is nobody's loss.
        let first = first.max(self.log.base().index.next());
        let Some(last) = self.log.last_within(Position::new(last, generation)) else { return };
        let last = last.index;
        let there = self.log.generation_at(first) == Some(generation);
        if !there || first > last {
            return;
        }
        self.damage.insert(first, last, Harm::Damaged);
        // A leader goes on: it does not count itself for what it lost, and fetches it from those that have it. A single
        // voter has nobody to fetch from.
        if self.is_alone() || !matches!(self.state, State::Leader(_)) {
            self.step_down(clock, effects);
        }
    }

    /// A peer gave bytes of entries, verified: those among them that are damaged here become a step of the log,
    /// [`LogOpKind::Repair`], for which the caller has the bytes at hand. How many of the entries are taken.
    pub fn repair(&mut self, entries: &[EntryMeta], effects: &mut Effects) -> usize {
        let mut taken = 0;
        let mut rest = entries;
        while let Some((first, _)) = rest.split_first() {
            // A step is a run of consecutive damaged entries.
            let run = rest
                .iter()
                .zip(first.position.index.0..)
                .take_while(|(entry, at)| entry.position.index.0 == *at && self.is_wanted_as(entry));
            let run = run.count();
            let (these, behind) = rest.split_at(run.max(1));
            rest = behind;
            if run == 0 {
                continue;
            }
            let fits = these.iter().take_while(|entry| self.heal_meta(entry)).count();
            let Some(last) = fits.checked_sub(1).and_then(|at| these.get(at)) else {
                self.note_malformed("an entry that contradicts the log around it");
                continue;
            };
            if fits < these.len() {
                self.note_malformed("an entry that contradicts the log around it");
            }
            let (first, last) = (first.position.index, last.position.index);
            let ticket = self.order(LogOpKind::Repair { first, last }, effects);
            self.damage.repairs.push_back(Repair { ticket, first, last });
            taken += fits;
        }
        taken
    }

    fn is_wanted_as(&self, entry: &EntryMeta) -> bool {
        let Position { index, generation } = entry.position;
        index >= self.kept_from()
            && self.damage.is_wanted(index)
            && self.log.generation_at(index) == Some(generation)
            && self.log.generation_at(index.prev()) == Some(entry.prev_generation)
    }

    /// Learns what a lost entry did. False if it contradicts the log around it.
    fn heal_meta(&mut self, entry: &EntryMeta) -> bool {
        let unknown = self.sessions.is_hole(entry.position.index);
        let fits = self.sessions.patch(entry, self.high_water).is_ok();
        if fits && unknown {
            self.stamp = self.stamp.max(entry.timestamp);
            self.starts.push(entry);
            self.starts.commit(self.high_water);
        }
        fits
    }

    /// The first entry that the log will hold when all that was ordered is in it: what a low-water mark on its way lets go is gone when a
    /// repair that is ordered behind it gets there.
    fn kept_from(&self) -> Index {
        self.ordered.marks().1.unwrap_or(Index(1))
    }

    /// The first damage that nothing is on the way for: what is to be fetched.
    pub fn repair_wanted(&self) -> Option<DamagedRange> {
        self.repair_wanted_from(Index(1))
    }

    /// The first such damage at or behind `from`: what is to be fetched while nobody has what lies before.
    pub fn repair_wanted_from(&self, from: Index) -> Option<DamagedRange> {
        let (first, last) = self.damage.wanted_from(from.max(self.kept_from()))?;
        let generation = self.log.generation_at(first)?;
        // One generation at a time: a request names one.
        let last = self.log.last_within(Position::new(last, generation))?.index;
        Some(DamagedRange { first, last, generation })
    }

    /// How many entries are damaged.
    pub fn damaged_entries(&self) -> u64 {
        self.damage.all.count()
    }

    /// How many of these are only suspected.
    pub fn suspect_entries(&self) -> u64 {
        self.damage.suspect.count()
    }

    /// Whether it is known what the entry did, with or without its bytes: it was read when it was whole, or has come back.
    pub fn knows(&self, index: Index) -> bool {
        !self.sessions.is_hole(index)
    }

    /// The first entry at or behind `from` of which it is not known what it did.
    pub fn unknown_from(&self, from: Index) -> Option<Index> {
        self.sessions.holes().first_from(from).map(|(first, _)| first)
    }

    /// The last entry that may be applied to a state machine that has all up to `applied`: committed, durable here, and
    /// nothing between damaged. What was applied before its bytes were lost is of no concern.
    pub fn applicable_behind(&self, applied: Index) -> Index {
        let end = self.high_water.min(self.counted());
        self.damage.first_from(applied.next()).map_or(end, |lost| end.min(lost.prev()))
    }

    /// The first damaged entry at or behind `from`.
    pub fn damaged_from(&self, from: Index) -> Option<Index> {
        self.damage.first_from(from)
    }

    /// Which of the entries asked for this replica can give to a peer: the last of those from `first` on that are
    /// durable and whole here and are of `generation`. None: it has not even the first.
    pub fn can_give(&self, first: Index, last: Index, generation: Generation) -> Option<Index> {
        if self.log.generation_at(first) != Some(generation) || first <= self.log.base().index {
            return None;
        }
        let whole = self.damage.first_from(first).map_or(Index(u64::MAX), Index::prev);
        let last = self.log.last_within(Position::new(last, generation))?.index;
        let last = last.min(whole).min(self.tickets.index());
        (first <= last).then_some(last)
    }

    /// The first run of the entries asked for that this replica can give to a peer ([`Self::can_give`]), where it may have to pass over
    /// the first ones, which it has let go or lost itself: what lies behind them is no less wanted.
    pub fn can_give_of(&self, first: Index, last: Index, generation: Generation) -> Option<(Index, Index)> {
        let mut from = first.max(self.log.base().index.next());
        if let Some((_, end)) = self.damage.all.first_from(from).filter(|(lost, _)| *lost == from) {
            from = end.next();
        }
        self.can_give(from, last, generation).map(|last| (from, last))
    }

    /// What this replica may count as durable here: all that is, up to damage above the high-water mark.
    pub(crate) fn counted(&self) -> Index {
        let held = self.damage.first_from(self.high_water.next());
        held.map_or(self.tickets.index(), |first| self.tickets.index().min(first.prev()))
    }

    /// What may be confirmed of the entries up to `end`, and the ticket to wait for.
    pub(crate) fn confirmable(&self, end: Index) -> (Index, Ticket) {
        let above = self.high_water.next();
        let end = self.damage.wanted_from(above).map_or(end, |(first, _)| end.min(first.prev()));
        (end, self.tickets.covering(end).max(self.damage.covering(above, end)))
    }

    /// Repairs become durable with their tickets.
    pub(crate) fn repairs_durable(&mut self, ticket: Ticket) {
        self.damage.report(ticket);
    }

    /// Whether a leader has had damage above its mark for an election time-out: nothing behind it can be sent or
    /// committed, and nobody gave it back. Others may lead instead, with or without these entries.
    pub(crate) fn is_crippled(&mut self, clock: Clock) -> bool {
        if self.damage.first_from(self.high_water.next()).is_none() {
            self.damage.since = None;
            return false;
        }
        let since = *self.damage.since.get_or_insert(clock.now);
        clock.now.since(since) >= self.config.election_timeout
    }
}
