//! What a leader knows of one peer, and what it may send it next.
//!
//! A peer is *probed* with an empty append until it confirms where its log agrees with the leader's, then
//! *pipelined*: many appends in flight, bounded by count and bytes. A channel does not retransmit, so
//! whatever shows that something was lost (a refusal, a broken channel, silence) leads back to probing, and
//! what is sent again follows from what the peer has confirmed. Promises that `matched` only grows, and that
//! a message which arrives late or twice at worst sends something again. It does not know what is in the log.

use crate::stall::Disk;
use crate::stamp::Witness;
use core::time::Duration;
use std::collections::VecDeque;
use tidelog_types::{Index, Monotonic, Position};

/// An append on its way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    last: Index,
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    /// Looking for where the logs agree; a probe sent at `sent` is not answered yet.
    Probe { sent: Option<Monotonic> },
    /// The peer's log is known to agree below `next`, as far as it got what was sent.
    Pipeline,
    /// What the peer lacks is not in the leader's log any more. It is probed again from time to time, right behind the
    /// base: something else may have brought it on.
    Short { since: Monotonic },
}

/// What may be sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// Nothing.
    Wait,
    /// An empty append behind the entry before [`Progress::next`].
    Probe,
    /// Entries from [`Progress::next`] on, up to so many bytes.
    Entries {
        /// Bytes that may still be put in flight.
        budget: u64,
    },
}

/// Bounds of what is in flight to one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: u64,
}

/// One peer, as the leader sees it.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// Last index that the peer has confirmed as durable and the leader's own.
    matched: Index,
    /// What to send next; `matched < next`.
    next: Index,
    mode: Mode,
    flights: VecDeque<Flight>,
    flight_bytes: u64,
    /// When the peer last confirmed something, or sending to it began.
    moved: Monotonic,
    /// How often something was sent again since the peer last moved: what is repeated next waits twice as long each time.
    repeats: u32,
    /// It lacks what the leader's log does not have any more, as far as is known.
    short: bool,
    /// The channel is down: sending would be for nothing.
    down: bool,
    /// The leader's newest round when `matched` rose last.
    pub(crate) confirmed_in: u64,
    /// It had confirmed entries up to here, all of them committed, to an earlier leadership of this process.
    pub(crate) floor: Index,
    /// It lacks what it had confirmed, up to here: it is counted for nothing, and gets nothing but probes.
    pub(crate) lost: Option<Position>,
    /// Highest round that the peer has answered, and when that round was sent.
    pub(crate) round: u64,
    /// Sending time of the newest answered round known: the peer followed this leader then.
    pub(crate) evidence: Monotonic,
    /// Its wall clock.
    pub(crate) witness: Option<Witness>,
    /// Its disk, as it said last.
    pub(crate) disk: Option<Disk>,
}

/// Most doublings of the time after which something is sent again.
const DOUBLINGS_MAX: u32 = 5;

impl Progress {
    /// Of a peer about which a new leader, whose log ends at `last`, knows nothing.
    pub(crate) fn new(last: Index, now: Monotonic, witness: Option<Witness>) -> Progress {
        Progress {
            matched: Index::ZERO,
            next: last.next(),
            mode: Mode::Probe { sent: None },
            flights: VecDeque::new(),
            flight_bytes: 0,
            moved: now,
            repeats: 0,
            short: false,
            down: false,
            confirmed_in: 0,
            floor: Index::ZERO,
            lost: None,
            round: 0,
            evidence: now,
            witness,
            disk: None,
        }
    }

    /// Last index confirmed.
    pub(crate) fn matched(&self) -> Index {
        self.matched
    }

    /// What it counts for: nothing, if it lost what it confirmed.
    pub(crate) fn counted(&self) -> Index {
        if self.lost.is_some() { Index::ZERO } else { self.matched }
    }

    /// The newest round that it counts for.
    pub(crate) fn counted_round(&self) -> u64 {
        if self.lost.is_some() { 0 } else { self.round }
    }

    /// When it is known to have followed; never, if it lost what it confirmed.
    pub(crate) fn counted_evidence(&self) -> Monotonic {
        if self.lost.is_some() { Monotonic(0) } else { self.evidence }
    }

    /// Whether only a snapshot can bring the peer on.
    pub(crate) fn is_short(&self) -> bool {
        self.short
    }

    /// When the peer last confirmed something new, or sending to it began.
    pub(crate) fn moved(&self) -> Monotonic {
        self.moved
    }

    /// First index to send next.
    pub(crate) fn next(&self) -> Index {
        self.next
    }

    /// What may be sent, with the log ending at `last`.
    pub(crate) fn turn(&self, last: Index, bounds: Bounds) -> Turn {
        match self.mode {
            _ if self.down => Turn::Wait,
            Mode::Probe { sent: None } => Turn::Probe,
            _ if self.lost.is_some() => Turn::Wait,
            Mode::Probe { sent: Some(_) } | Mode::Short { .. } => Turn::Wait,
            Mode::Pipeline => {
                let budget = bounds.bytes_max.saturating_sub(self.flight_bytes);
                // One message at a time to a peer that nothing has moved so far.
                let messages_max = if self.repeats > 0 { 1 } else { bounds.messages_max };
                if self.next > last || self.flights.len() >= messages_max || budget == 0 {
                    Turn::Wait
                } else {
                    Turn::Entries { budget }
                }
            }
        }
    }

    /// The probe left.
    pub(crate) fn probed(&mut self, now: Monotonic) {
        self.mode = Mode::Probe { sent: Some(now) };
    }

    /// Entries from `next` up to `last`, of `bytes`, left.
    pub(crate) fn sent(&mut self, last: Index, bytes: u64, now: Monotonic) {
        if self.flights.is_empty() {
            self.moved = now;
        }
        self.flights.push_back(Flight { last, bytes });
        self.flight_bytes = self.flight_bytes.saturating_add(bytes);
        self.next = last.next();
    }

    /// The peer confirmed everything up to `matched`. Whether that is news.
    pub(crate) fn confirm(&mut self, matched: Index, now: Monotonic) -> bool {
        self.down = false;
        let news = matched > self.matched;
        if news {
            self.matched = matched;
            self.moved = now;
            self.repeats = 0;
        }
        while let Some(flight) = self.flights.front().filter(|flight| flight.last <= self.matched) {
            self.flight_bytes = self.flight_bytes.saturating_sub(flight.bytes);
            self.flights.pop_front();
        }
        match self.mode {
            // An older confirmation than the probe's own says nothing about the probed place.
            Mode::Probe { .. } | Mode::Short { .. } if matched >= self.next.prev() => {
                self.mode = Mode::Pipeline;
                self.short = false;
                self.next = self.matched.next();
                self.moved = now;
            }
            _ => self.next = self.next.max(self.matched.next()),
        }
        news
    }

    /// The peer refused an append behind `prev`; `agree` is the highest place where the logs may agree, none if that
    /// lies below `base`, the leader's own.
    pub(crate) fn refuse(&mut self, prev: Index, agree: Option<Index>, base: Index, now: Monotonic) {
        self.down = false;
        let stale = match self.mode {
            // What was confirmed cannot be missing: the refusal is older than the confirmation.
            _ if prev <= self.matched => true,
            // Only the answer to the probe that is under way counts.
            Mode::Probe { .. } => prev != self.next.prev(),
            Mode::Pipeline => prev >= self.next,
            Mode::Short { .. } => true,
        };
        if !stale {
            if !matches!(self.mode, Mode::Pipeline) {
                self.repeats = 0; // the search goes on
            }
            let agree = agree.unwrap_or(Index::ZERO).min(prev.prev()).max(self.matched);
            self.probe_from(agree.next());
            self.stay_above(base, now);
        }
    }

    /// What is sent next begins above the leader's `base`. A peer that needs what lies below gets nothing for now.
    pub(crate) fn stay_above(&mut self, base: Index, now: Monotonic) {
        if self.next > base {
            return;
        }
        self.probe_from(base.next());
        self.mode = Mode::Short { since: now };
        self.short = true;
    }

    fn probe_from(&mut self, next: Index) {
        self.mode = Mode::Probe { sent: None };
        self.next = next;
        self.flights.clear();
        self.flight_bytes = 0;
    }

    /// Begins again from what is confirmed.
    fn restart(&mut self) {
        // A peer that has confirmed nothing yet is probed where it was: its log may be long and unknown.
        let next = if self.mode == Mode::Pipeline { self.matched.next() } else { self.next };
        self.probe_from(next);
    }

    /// The channel is gone, and with it whatever was in flight.
    pub(crate) fn channel_down(&mut self) {
        self.restart();
        self.repeats = 0;
        self.down = true;
    }

    /// The channel is there (again).
    pub(crate) fn channel_up(&mut self) {
        self.restart();
        self.repeats = 0;
        self.down = false;
    }

    /// Time passed: what has not been answered for too long counts as lost. Each repetition waits twice as long as the one before,
    /// until the peer moves: one whose disk hangs, or that has no room, is not to be flooded with what it has already.
    pub(crate) fn retry(&mut self, now: Monotonic, probe_after: Duration, resend_after: Duration) {
        let over = |since: Monotonic, wait: Duration| {
            now.since(since) >= wait.saturating_mul(1 << self.repeats.min(DOUBLINGS_MAX))
        };
        match self.mode {
            Mode::Probe { sent: Some(sent) } if over(sent, probe_after) => {
                self.mode = Mode::Probe { sent: None };
            }
            Mode::Short { since } if over(since, resend_after) => self.mode = Mode::Probe { sent: None },
            Mode::Pipeline if !self.flights.is_empty() && over(self.moved, resend_after) => self.restart(),
            _ => return,
        }
        self.repeats = self.repeats.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { messages_max: 2, bytes_max: 100 };
    const T0: Monotonic = Monotonic(0);
    const LAST: Index = Index(20);

    fn pipelined(matched: u64) -> Progress {
        let mut p = Progress::new(Index(matched), T0, None);
        p.probed(T0);
        p.confirm(Index(matched), T0);
        p
    }

    #[test]
    fn a_new_peer_is_probed_once_at_a_time() {
        let mut p = Progress::new(LAST, T0, None);
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(21)));
        p.probed(T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait);
        p.retry(Monotonic(5), Duration::from_nanos(10), Duration::MAX);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait);
        p.retry(Monotonic(10), Duration::from_nanos(10), Duration::MAX);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Probe, "a lost probe is sent again");
        p.refuse(Index(20), Some(Index(9)), Index::ZERO, T0);
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(10)));
        p.probed(T0);
        assert!(p.confirm(Index(9), T0));
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Entries { budget: 100 }, Index(10)));
    }

    #[test]
    fn flights_are_bounded_by_count_and_bytes() {
        let mut p = pipelined(4);
        p.sent(Index(5), 60, T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Entries { budget: 40 });
        p.sent(Index(6), 10, T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait, "two messages");
        p.confirm(Index(5), T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Entries { budget: 90 });
        p.sent(Index(7), 200, T0);
        p.confirm(Index(6), T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait, "one message of more than the bytes");
        p.confirm(Index(7), T0);
        assert_eq!(p.turn(Index(7), BOUNDS), Turn::Wait, "nothing to send");
    }

    #[test]
    fn late_and_doubled_answers_are_harmless() {
        let mut p = pipelined(4);
        p.sent(Index(8), 10, T0);
        assert!(p.confirm(Index(8), T0));
        assert!(!p.confirm(Index(8), T0));
        assert!(!p.confirm(Index(6), T0));
        p.refuse(Index(4), Some(Index(2)), Index::ZERO, T0);
        p.refuse(Index(8), Some(Index(2)), Index::ZERO, T0);
        assert_eq!((p.matched(), p.next()), (Index(8), Index(9)));
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Entries { budget: 100 });
    }

    #[test]
    fn a_refusal_in_the_pipeline_leads_back_to_probing() {
        let mut p = pipelined(4);
        p.sent(Index(8), 10, T0);
        p.sent(Index(12), 10, T0);
        p.refuse(Index(8), Some(Index(4)), Index::ZERO, T0); // the first one was lost
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(5)));
        p.probed(T0);
        p.refuse(Index(12), Some(Index(4)), Index::ZERO, T0); // and so the ones behind it: not this probe's answer
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait);
        p.confirm(Index(4), T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Entries { budget: 100 });
    }

    #[test]
    fn a_hint_never_leads_below_what_is_confirmed_nor_upwards() {
        let mut p = pipelined(4);
        p.sent(Index(8), 10, T0);
        p.refuse(Index(6), Some(Index(1)), Index::ZERO, T0);
        assert_eq!(p.next(), Index(5));
        let mut p = Progress::new(LAST, T0, None);
        p.probed(T0);
        p.refuse(Index(20), Some(Index(77)), Index::ZERO, T0);
        assert_eq!(p.next(), Index(20));
    }

    #[test]
    fn an_old_confirmation_does_not_answer_a_probe_further_on() {
        let mut p = Progress::new(LAST, T0, None);
        p.probed(T0);
        p.confirm(Index(0), T0); // a heartbeat's: nothing verified yet
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Wait, Index(21)));
    }

    #[test]
    fn silence_and_a_broken_channel_begin_again_from_what_is_confirmed() {
        let mut p = pipelined(4);
        p.sent(Index(8), 10, T0);
        p.retry(Monotonic(9), Duration::MAX, Duration::from_nanos(10));
        assert_eq!(p.next(), Index(9));
        p.retry(Monotonic(10), Duration::MAX, Duration::from_nanos(10));
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(5)));
        p.channel_down();
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait);
        p.channel_up();
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(5)));
        p.channel_down();
        p.confirm(Index(4), T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Entries { budget: 100 }, "who answers is not down");
    }

    #[test]
    fn who_lacks_what_is_gone_is_probed_at_the_base_now_and_then() {
        let (base, ms) = (Index(10), Duration::from_nanos(10));
        let mut p = Progress::new(LAST, T0, None);
        p.probed(T0);
        p.refuse(Index(20), None, base, T0);
        assert_eq!((p.turn(LAST, BOUNDS), p.next(), p.is_short()), (Turn::Wait, Index(11), true));
        p.retry(Monotonic(9), ms, ms);
        p.refuse(Index(20), Some(Index(3)), base, T0);
        assert_eq!(p.turn(LAST, BOUNDS), Turn::Wait, "an answer that came twice");
        p.retry(Monotonic(10), ms, ms);
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(11)));
        p.probed(Monotonic(10));
        p.refuse(Index(10), Some(Index(3)), base, Monotonic(10));
        assert_eq!((p.turn(LAST, BOUNDS), p.is_short()), (Turn::Wait, true));
        p.retry(Monotonic(20), ms, ms);
        p.probed(Monotonic(20));
        p.confirm(Index(12), Monotonic(20));
        assert_eq!((p.next(), p.is_short()), (Index(13), false), "a snapshot has brought it on");
    }

    #[test]
    fn a_base_that_rises_over_a_peer_stops_it() {
        let mut p = pipelined(4);
        p.stay_above(Index(4), T0);
        assert_eq!((p.next(), p.is_short()), (Index(5), false), "the base itself can be compared with");
        p.stay_above(Index(5), T0);
        assert_eq!((p.turn(LAST, BOUNDS), p.is_short()), (Turn::Wait, true));
        p.channel_down();
        p.channel_up();
        assert_eq!((p.turn(LAST, BOUNDS), p.next()), (Turn::Probe, Index(6)));
        assert!(p.is_short());
    }
}
