//! Pins: holds on a partition's log on this node, for whoever reads it over many calls: a long scan, a backup.
//!
//! What it promises: while a pin holds, the low-water mark does not rise above it, so that what lies from there on can be read here. A
//! pin is taken on any thread without asking the shard; under one lock it is either below what was given up already, and refused, or seen
//! by the shard before it gives up more. It is bounded in bytes and in the time since it moved, and then it holds no more: a
//! forgotten one fills no disk (R21). It says nothing about the log's start that all replicas agreed on: readers are refused below
//! that, pinned or not (R22). It does not survive the process.

use crate::request::RequestError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tidelog_types::{Index, Monotonic};

/// Most pins of a partition at a time.
const PINS_MAX: usize = 64;
/// In place of an index: its owner let go.
const LET_GO: u64 = u64::MAX;
/// In place of an index: it held more, or for longer, than it may.
const EXPIRED: u64 = u64::MAX - 1;

/// What a pin is for: [`crate::request::PartitionStatus::low_water_held_by`] says it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PinFor {
    /// Somebody reads on and on.
    Reader,
    /// A backup.
    Backup,
}

/// A hold on a partition's log on this node, from [`crate::Partition::pin`]; dropping it lets go.
#[derive(Debug)]
#[must_use = "dropping it lets go of the log"]
pub struct Pin {
    at: Arc<AtomicU64>,
}

impl Pin {
    /// The first index that it holds; none if it held more bytes, or stood still for longer, than it may
    /// (`retention.pin_bytes`, `retention.pin_age`): what it was for may be gone.
    pub fn first(&self) -> Option<Index> {
        Some(self.at.load(Ordering::Acquire)).filter(|at| *at < EXPIRED).map(Index)
    }

    /// Entries below `first` are not needed any more. False if it does not hold any more. A pin never goes back.
    pub fn advance(&self, first: Index) -> bool {
        let to = |at: u64| (at < EXPIRED).then(|| at.max(first.0.min(EXPIRED - 1)));
        self.at.fetch_update(Ordering::AcqRel, Ordering::Acquire, to).is_ok()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.at.store(LET_GO, Ordering::Release);
    }
}

/// All pins of one partition: shared by its handles and its shard.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Entries below were given up.
    floor: Index,
    held: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    at: Arc<AtomicU64>,
    purpose: PinFor,
    /// Where the shard saw it last, and since when.
    seen: Option<(u64, Monotonic)>,
}

impl Pins {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one.
    pub(crate) fn take(&self, first: Index, purpose: PinFor) -> Result<Pin, RequestError> {
        let mut inner = self.lock();
        if first < inner.floor {
            return Err(RequestError::Truncated { first: inner.floor });
        }
        inner.held.retain(|held| held.at.load(Ordering::Acquire) < EXPIRED);
        if inner.held.len() >= PINS_MAX {
            return Err(RequestError::busy(Duration::from_secs(1)));
        }
        let at = Arc::new(AtomicU64::new(first.0));
        inner.held.push(Held { at: Arc::clone(&at), purpose, seen: None });
        Ok(Pin { at })
    }

    /// The lowest one, and what it is for.
    pub(crate) fn first(&self) -> Option<(Index, PinFor)> {
        let inner = self.lock();
        let each = inner.held.iter().map(|held| (held.at.load(Ordering::Acquire), held.purpose));
        each.filter(|(at, _)| *at < EXPIRED).map(|(at, purpose)| (Index(at), purpose)).min()
    }

    /// Ends those that stand still for longer than `age`, or hold what `too_much` says.
    pub(crate) fn expire(&self, now: Monotonic, age: Duration, too_much: impl Fn(Index) -> bool) -> usize {
        let mut inner = self.lock();
        let before = inner.held.len();
        if before == 0 {
            return 0;
        }
        let mut expired = 0;
        inner.held.retain_mut(|held| {
            let at = held.at.load(Ordering::Acquire);
            if at >= EXPIRED {
                return false;
            }
            let since = held.seen.filter(|(seen, _)| *seen == at).map_or(now, |(_, since)| since);
            held.seen = Some((at, since));
            if now.since(since) <= age && !too_much(Index(at)) {
                return true;
            }
            // If it moved in this very moment it is looked at again.
            let ended = held.at.compare_exchange(at, EXPIRED, Ordering::AcqRel, Ordering::Acquire).is_ok();
            expired += usize::from(ended);
            !ended
        });
        expired
    }

    /// Gives up everything below `first`, as far as nobody has pinned it meanwhile. Returns how far.
    pub(crate) fn give_up(&self, first: Index) -> Index {
        let mut inner = self.lock();
        let pinned = inner.held.iter().map(|held| held.at.load(Ordering::Acquire)).filter(|at| *at < EXPIRED);
        let first = pinned.min().map_or(first, |at| first.min(Index(at)));
        inner.floor = inner.floor.max(first);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(seconds: u64) -> Monotonic {
        Monotonic::default().after(Duration::from_secs(seconds))
    }

    #[test]
    fn the_lowest_holds_and_a_dropped_one_lets_go() {
        let pins = Pins::default();
        assert_eq!(pins.first(), None);
        let reader = pins.take(Index(5), PinFor::Reader).unwrap();
        let backup = pins.take(Index(3), PinFor::Backup).unwrap();
        assert_eq!(pins.first(), Some((Index(3), PinFor::Backup)));
        assert_eq!(pins.give_up(Index(10)), Index(3));
        assert!(backup.advance(Index(8)));
        assert!(backup.advance(Index(2)), "a pin never goes back");
        assert_eq!((backup.first(), pins.first()), (Some(Index(8)), Some((Index(5), PinFor::Reader))));
        drop(reader);
        assert_eq!(pins.give_up(Index(10)), Index(8));
        drop(backup);
        assert_eq!((pins.first(), pins.give_up(Index(10))), (None, Index(10)));
        let gone = pins.take(Index(9), PinFor::Reader).unwrap_err();
        assert_eq!(gone, RequestError::Truncated { first: Index(10) });
        assert!(pins.take(Index(10), PinFor::Reader).is_ok());
    }

    #[test]
    fn one_that_stands_still_or_holds_too_much_ends() {
        let pins = Pins::default();
        let (still, moving) = (pins.take(Index(1), PinFor::Reader), pins.take(Index(2), PinFor::Backup));
        let (still, moving) = (still.unwrap(), moving.unwrap());
        assert_eq!(pins.expire(at(1), 10 * SECOND, |_| false), 0);
        assert!(moving.advance(Index(3)));
        assert_eq!(pins.expire(at(8), 10 * SECOND, |_| false), 0);
        assert_eq!(pins.expire(at(12), 10 * SECOND, |_| false), 1, "eleven seconds at one place");
        assert_eq!((still.first(), still.advance(Index(9))), (None, false));
        assert_eq!(moving.first(), Some(Index(3)));
        assert_eq!(pins.expire(at(12), 10 * SECOND, |first| first < Index(4)), 1);
        assert_eq!((moving.first(), pins.first()), (None, None));
    }

    #[test]
    fn there_are_only_so_many() {
        let pins = Pins::default();
        let held: Vec<_> = (0..PINS_MAX).map(|_| pins.take(Index(1), PinFor::Reader).unwrap()).collect();
        let refused = pins.take(Index(1), PinFor::Reader).unwrap_err();
        assert!(matches!(refused, RequestError::Busy { .. }));
        drop(held);
        assert!(pins.take(Index(1), PinFor::Reader).is_ok());
    }
}
