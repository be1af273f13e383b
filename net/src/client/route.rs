//! Where requests go: a partition's leader as last heard of, and the requests that wait for it to be known.

use crate::peers::jittered;
use crate::slab::Key;
use core::time::Duration;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use tidelog_types::{Monotonic, NodeId, PartitionId};

/// What requests are waiting for together.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum RouteKey {
    Leader(PartitionId),
    Node(NodeId),
    Address(SocketAddr),
}

/// A route.
#[derive(Debug, Default)]
pub(super) struct Route {
    /// Leader of the partition, as far as known.
    pub(super) leader: Option<SocketAddr>,
    /// Which of the known addresses is asked while no leader is known.
    rotor: usize,
    /// Requests not given to a connection, in the order submitted.
    pub(super) waiting: BTreeMap<u64, Key>,
    /// They wait at least until then.
    pub(super) hold_until: Monotonic,
    attempts: u32,
}

impl Route {
    /// Whether a request may go straight to a connection.
    pub(super) fn is_open(&self, now: Monotonic) -> bool {
        self.waiting.is_empty() && self.hold_until <= now
    }

    /// Something did not work: waits, longer each time in a row. Several failures of one attempt count once.
    pub(super) fn hold(
        &mut self,
        now: Monotonic,
        back_off: (Duration, Duration),
        at_least: Duration,
        random: u64,
    ) {
        if self.hold_until > now {
            return;
        }
        let whole = (back_off.0 * (1 << self.attempts.min(16))).min(back_off.1);
        self.attempts += 1;
        self.hold_until = now.after(jittered(whole, random).max(at_least));
    }

    /// The route works.
    pub(super) fn worked(&mut self) {
        self.attempts = 0;
    }

    /// The known addresses, beginning with the one to ask now.
    pub(super) fn candidates<'a>(
        &self,
        known: &'a [SocketAddr],
    ) -> impl Iterator<Item = SocketAddr> + use<'a> {
        let (behind, from) = known.split_at(self.rotor % known.len().max(1));
        from.iter().chain(behind).copied()
    }

    /// `address` is being tried: the one behind it is next, though this one may be ready for another try before.
    pub(super) fn next_behind(&mut self, address: SocketAddr, known: &[SocketAddr]) {
        if let Some(at) = known.iter().position(|a| *a == address) {
            self.rotor = at + 1;
        }
    }

    /// `address` does not lead (any more), or does not answer. Several of its answers count once. Whoever named it is not the next one asked:
    /// it would name it again.
    pub(super) fn not_there(&mut self, address: SocketAddr, known: &[SocketAddr]) {
        let named = self.leader == Some(address);
        if named {
            self.leader = None;
        }
        if named || self.leader.is_none() && self.candidates(known).next() == Some(address) {
            self.rotor = self.rotor.wrapping_add(1);
        }
        if named && self.candidates(known).next() == Some(address) {
            self.rotor = self.rotor.wrapping_add(1);
        }
    }

    /// `address` says that `leader` leads.
    pub(super) fn redirected(&mut self, address: SocketAddr, leader: SocketAddr) {
        if self.leader.is_none_or(|known| known == address) {
            self.leader = Some(leader);
        }
    }
}

/// An address that is known, and whether it is worth a try.
#[derive(Debug, Default)]
pub(super) struct Site {
    /// Not dialled before.
    pub(super) retry_at: Monotonic,
    failures: u32,
    /// It was silent for longer than its share of a request's time: others are asked first.
    pub(super) doubted: bool,
    /// Connects to it that were given up and have not ended.
    pub(super) abandoned: usize,
    /// What it said or did last, in words.
    pub(super) said: String,
}

/// Most connects to one address that were given up and have not ended. They are a connection time-out apart, so that
/// one of them finds soon that the address can be reached again.
const ABANDONED_MAX: usize = 16;
/// The same for all addresses together, where there are not more than this: each gets its share.
pub(super) const ABANDONED_ALL_MAX: usize = 128;

impl Site {
    pub(super) fn failed(&mut self, now: Monotonic, back_off: (Duration, Duration), random: u64) {
        let whole = (back_off.0 * (1 << self.failures.min(16))).min(back_off.1);
        self.failures += 1;
        self.retry_at = now.after(jittered(whole, random));
    }

    pub(super) fn worked(&mut self) {
        (self.retry_at, self.failures) = (Monotonic(0), 0);
    }

    /// When it may be dialled; it is one of so many addresses.
    pub(super) fn dial_at(
        &self,
        now: Monotonic,
        back_off: (Duration, Duration),
        addresses: usize,
    ) -> Monotonic {
        let most = (ABANDONED_ALL_MAX / addresses.max(1)).clamp(1, ABANDONED_MAX);
        if self.abandoned >= most { self.retry_at.max(now.after(back_off.1)) } else { self.retry_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holding_is_bounded_and_counts_an_attempt_once() {
        let back_off = (Duration::from_millis(5), Duration::from_millis(200));
        let (mut route, mut now) = (Route::default(), Monotonic(0));
        let mut last = Duration::ZERO;
        for _ in 0..40 {
            assert!(route.is_open(now));
            route.hold(now, back_off, Duration::ZERO, u64::MAX / 3);
            let until = route.hold_until;
            route.hold(now, back_off, Duration::from_secs(9), 0);
            assert_eq!(route.hold_until, until);
            let wait = until.since(now);
            assert!(wait >= last / 4 && wait <= back_off.1 && wait >= back_off.0 / 2);
            (now, last) = (until, wait);
        }
        route.worked();
        route.hold(now, back_off, Duration::ZERO, 0);
        assert!(route.hold_until.since(now) <= back_off.0);
    }

    #[test]
    fn late_redirects_do_not_undo_what_is_known() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut route = Route::default();
        route.redirected(at(1), at(2));
        assert_eq!(route.leader, Some(at(2)));
        route.redirected(at(3), at(1));
        let known = [at(1), at(2), at(3)];
        route.not_there(at(1), &known);
        assert_eq!(route.leader, Some(at(2)), "only the one that was asked as leader counts");
        route.not_there(at(2), &known);
        let next = route.candidates(&known).next();
        assert_eq!((route.leader, next), (None, Some(at(3))), "neither who named it nor itself");
        for _ in 0..5 {
            route.not_there(at(3), &known);
        }
        assert_eq!(route.candidates(&known).collect::<Vec<_>>(), [at(1), at(2), at(3)], "counts once");
        assert_eq!(route.candidates(&[]).count(), 0);
    }
}
