//! What a replica keeps: when a snapshot is due, from what it is made, and how far the low-water mark may rise.
//!
//! The mark rises to what the durable snapshot covers, or a committed log start says, less what is still needed: by the
//! state machine, by reads under way, by pins, by replicas that are behind. The last two are bounded in bytes and in time, so that a
//! replica which never comes back holds nothing for ever; it needs a snapshot then. Readers see the log start at once,
//! whatever is still held.

use super::writes::Source;
use super::{Context, Partition};
use crate::keep::HeldBy;
use crate::pins::PinFor;
use crate::snapshot::{Beginning, Begun};
use std::time::Duration;
use tidelog_types::{Clock, Index, Monotonic, Position};

/// Time between two looks at the age and size of a log; and if so many bytes have come since the last one, lest segments be given back in bursts.
const RETAIN_EVERY: Duration = Duration::from_secs(1);
const RETAIN_SOON: Duration = Duration::from_millis(250);
const RETAIN_BYTES: u64 = 4 << 20;
/// Time between two rises of the low-water mark that do not reach what may go.
const RAISE_EVERY: Duration = Duration::from_secs(1);

/// Time between two looks at what may go, while there is something.
const UPKEEP_EVERY: Duration = Duration::from_millis(100);

/// When what was done last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// A look at what may be applied, and at what may go.
    pub(super) upkeep: Monotonic,
    snapshot: Monotonic,
    retain: Monotonic,
    /// The last entry that was there then.
    retained: Index,
    raise: Monotonic,
}

impl Done {
    /// Nothing yet, as of now.
    pub(super) fn since(now: Monotonic) -> Done {
        Done { snapshot: now, ..Done::default() }
    }
}

impl Partition {
    /// When this replica is to be looked at for what it keeps, and for what its state machine waits for, though nothing
    /// happens. Most have nothing to wait for.
    pub(super) fn upkeep_deadline(&self) -> Option<Monotonic> {
        let soon = self.done.upkeep.after(UPKEEP_EVERY);
        let low_water = self.replica.marks().low_water;
        if self.may_go() > low_water {
            return Some(soon);
        }
        let Some(machine) = &self.machine else {
            let expires =
                self.keep.retention.is_bounded() && self.replica.is_leader() && self.replica.may_expire();
            return expires.then(|| self.done.retain.after(self.retain_every()).max(soon));
        };
        if machine.applied < self.replica.applicable_behind(machine.applied) {
            return Some(soon);
        }
        // What it has made durable itself it says when it is asked; a snapshot by time is due when the time has come.
        let lets_go = self.keep.retention.is_bounded() || self.replica.log_start() > low_water;
        let interval =
            self.keep.snapshot_interval.filter(|_| machine.applied > self.replica.snapshot().index);
        [
            lets_go.then(|| self.done.upkeep.after(RAISE_EVERY)),
            interval.map(|max| self.done.snapshot.after(max)),
        ]
        .into_iter()
        .flatten()
        .min()
        .map(|at| at.max(soon))
    }

    /// First index that readers may see.
    pub(super) fn first_readable(&self) -> Index {
        self.replica.log_start().max(self.replica.marks().low_water)
    }

    /// Whether a snapshot is due, by bytes or by time.
    pub(crate) fn wants_snapshot(&self, now: Monotonic) -> bool {
        let Some(machine) = &self.machine else { return false };
        let news = machine.applied > self.replica.snapshot().index;
        let old = self.keep.snapshot_interval.is_some_and(|max| now.since(self.done.snapshot) >= max);
        news && (machine.bytes >= self.keep.snapshot_every || old)
    }

    /// Begins a snapshot of what is applied now.
    pub(crate) fn begin_snapshot(&mut self, now: Monotonic) -> Beginning {
        let Some(machine) = &mut self.machine else { return Beginning::Never };
        let (covered, last) = (machine.applied, self.replica.snapshot());
        let applicable = self.replica.applicable_behind(covered);
        if covered <= last.index {
            return Beginning::Same(last);
        }
        // A state machine that lived before the log was opened again may be ahead of the mark for a moment.
        if covered > applicable || self.replica.is_marking() {
            return Beginning::Later;
        }
        let Some(base) = self.replica.base_at(covered) else { return Beginning::Later };
        match machine.view() {
            Ok(view) => {
                machine.bytes = 0;
                self.done.snapshot = now;
                Beginning::From(Begun { covered: base.position(), base: base.encode(), view })
            }
            Err(error) => Beginning::Failed(format!("the state machine gives none: {error}")),
        }
    }

    /// The snapshot's file is durable and verified: orders its mark. False if it is of no use any more.
    pub(crate) fn snapshot_taken(&mut self, cx: &mut Context<'_>, covered: Position) -> bool {
        if self.replica.generation_at(covered.index) != Some(covered.generation) {
            return false;
        }
        self.replica.snapshot_taken(covered, &mut cx.shared.effects);
        self.settle(cx, Source::None);
        true
    }

    /// Proposes a later log start if the log is too old or too long, and lets go what is not needed any more.
    pub(crate) fn shorten(&mut self, cx: &mut Context<'_>) {
        let (now, retention) = (cx.clock.now, self.keep.retention);
        if retention.is_bounded()
            && self.replica.is_leader()
            && now.since(self.done.retain) >= self.retain_every()
            && self.unwritten.is_empty()
            // A full disk is no reason to wait: this is what makes room.
            && (cx.wal.room() > 0 || cx.wal.is_full())
        {
            (self.done.retain, self.done.retained) = (now, self.replica.marks().last);
            if let Some(entry) = self.replica.retain(cx.clock, retention, &mut cx.shared.effects) {
                tracing::info!(partition = %self.id, first = ?entry.log_start, "a later log start is proposed");
                self.settle(cx, Source::None);
            }
        }
        if self.replica.is_raising() {
            return;
        }
        let low = self.replica.marks().low_water;
        let may = self.may_go();
        if may <= low {
            return;
        }
        let expired = self
            .marks
            .pins
            .expire(now, self.keep.pin_age, |at| self.replica.bytes_from(at) > self.keep.pin_bytes);
        if expired > 0 {
            tracing::warn!(partition = %self.id, expired, "pins held more of the log, or longer, than they may: let go");
        }
        let reader = cx.reads.first_for_clients(self.id);
        let (needed, _) = self.needed(cx.clock, reader);
        let first = needed.max(self.given_up(may, reader));
        let whole = first == may;
        if first > low && (whole || now.since(self.done.raise) >= RAISE_EVERY) {
            self.done.raise = now;
            let first = self.marks.pins.give_up(first);
            if first <= low {
                return; // pinned in this very moment
            }
            self.replica.raise_low_water(first, &mut cx.shared.effects);
            self.settle(cx, Source::None);
        }
    }

    fn retain_every(&self) -> Duration {
        let come = self.replica.bytes_from(self.done.retained.next());
        if come >= RETAIN_BYTES { RETAIN_SOON } else { RETAIN_EVERY }
    }

    /// What is damaged here, and may go, and no replica has any more, is let go, with what lies before it and what is damaged
    /// right behind it: nobody can be brought on over it from this log anyway.
    fn given_up(&self, may: Index, reader: Option<Index>) -> Index {
        let Some(lost) = self.hopeless().filter(|lost| lost.first < may && self.replica.knows(lost.first))
        else {
            return Index::ZERO;
        };
        let unknown = self.replica.unknown_from(lost.first).unwrap_or(may);
        // A plain log applies nothing: what is let go is passed over. A state machine needs each entry that it has not applied.
        let applied = if self.machine.is_some() { self.marks().applied.next() } else { may };
        lost.last.next().min(may).min(unknown).min(applied).min(reader.unwrap_or(applied))
    }

    /// What the durable snapshot covers or the committed log start says: everything below this may go.
    fn may_go(&self) -> Index {
        let snapshot = self.replica.snapshot().index.next();
        match &self.machine {
            // After a restart it needs what is behind the snapshot, or behind what it has made durable itself.
            Some(machine) => {
                let has = machine.durable().next().max(snapshot);
                snapshot.max(self.replica.log_start().min(has))
            }
            None => snapshot.max(self.replica.log_start()),
        }
    }

    /// First index that is needed here, and what for. `reader`: first index of a read under way.
    pub(crate) fn needed(&self, clock: Clock, reader: Option<Index>) -> (Index, HeldBy) {
        let may = self.may_go();
        let mut first = match self.replica.snapshot().index.next() {
            _ if may <= Index(1) => (may, HeldBy::Nothing),
            covered if covered >= may => (may, HeldBy::Snapshot),
            _ => (may, HeldBy::LogStart),
        };
        let mut hold = |at: Index, by: HeldBy| {
            if at < first.0 {
                first = (at, by);
            }
        };
        hold(self.marks().applied.next(), HeldBy::Apply);
        if let Some(at) = reader {
            hold(at, HeldBy::Reader);
        }
        if let Some((at, purpose)) = self.marks.pins.first() {
            hold(at, if purpose == PinFor::Backup { HeldBy::Backup } else { HeldBy::Reader });
        }
        if self.replica.peers().is_empty() {
            return first;
        }
        // Let go of, it would never be known, and this replica could not lead any more in this life or the next.
        let kept = self.replica.marks().low_water.max(Index(1));
        // What nobody has will not be known; what lies behind it may be.
        let hopeless = self.hopeless().filter(|lost| self.replica.unknown_from(kept) == Some(lost.first));
        let kept = hopeless.map_or(kept, |lost| lost.last.next());
        if let Some(at) = self.replica.unknown_from(kept) {
            hold(at, HeldBy::Repair);
        }
        let keep = &self.keep;
        for (peer, at) in self.lacking(clock.now) {
            if self.replica.bytes_from(at) <= keep.follower_bytes {
                hold(at, HeldBy::Follower(peer));
            }
        }
        let unknown = || {
            let young = self.replica.first_younger_than(keep.follower_age);
            self.replica.first_within_bytes(keep.follower_bytes).max(young)
        };
        if !self.replica.is_leader() {
            hold(unknown(), HeldBy::Followers);
            return first;
        }
        for peer in self.replica.followers().filter(|peer| !peer.needs_snapshot) {
            let next = peer.matched.next();
            if peer.matched == Index::ZERO {
                hold(unknown(), HeldBy::Follower(peer.node)); // it has not said anything yet
            } else if clock.now.since(peer.moved) <= keep.follower_age
                && self.replica.bytes_from(next) <= keep.follower_bytes
            {
                hold(next, HeldBy::Follower(peer.node));
            }
        }
        first
    }
}
