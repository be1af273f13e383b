//! How old and how large a log is: samples of (index, time, bytes) along it.
//!
//! Retention by age and size, and the bounds on what a follower may hold back, need to know from which index on the log
//! is so many bytes or so young. Exact answers would take memory for each entry; this keeps at most [`SAMPLES_MAX`]
//! samples, evenly by bytes and by time but not closer than [`DISTANCE_MIN`], and is off by at most one of their distances: to
//! the younger where the question is for bytes, to the older where it is for age. A function of the entries that went
//! through it, but not of the log: two replicas may have other samples, so whatever must be the same on all of them is
//! agreed as an entry. Does not know what is committed.

use crate::base::{BaseError, Input, put};
use std::collections::VecDeque;
use tidelog_types::{EntryMeta, Index, RecordKind, ReplicatedMs};

/// Most samples kept; when there are more, every second one goes. With thousands of partitions these are most of the memory of
/// one that was busy once: 6 KiB.
const SAMPLES_MAX: usize = 256;
/// So many entries of a short log have one each.
const EXACT: usize = 16;
/// Most samples saved. A checkpoint has those of every partition, and is written each so many bytes of log.
const SAVED_MAX: usize = EXACT;
/// More are no closer than this in bytes, unless they are this far from each other in time.
const DISTANCE_MIN: u64 = 4 << 10;
const MS_MIN: u64 = 100;

#[derive(Clone, Copy, Debug)]
struct Sample {
    index: Index,
    timestamp: ReplicatedMs,
    /// Bytes of all entries before it.
    before: u64,
}

/// Samples along a log.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    /// Ascending in every field.
    samples: VecDeque<Sample>,
    /// The last entry, its time, and the bytes up to its end.
    last: Index,
    newest: ReplicatedMs,
    end: u64,
    /// The bytes, and the time, at which the next sample is due: kept here, so that an entry between two samples touches none.
    due: (u64, ReplicatedMs),
    /// The last entry that is a client's.
    last_of_client: Index,
}

impl History {
    /// Nothing is known of what lies at or below `base`.
    pub(crate) fn begin(base: Index, stamp: ReplicatedMs) -> History {
        History { last: base, newest: stamp, ..History::default() }
    }

    /// Appends its bytes: of many samples some, evenly.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let every = self.samples.len().div_ceil(SAVED_MAX).max(1);
        let saved = self.samples.iter().step_by(every);
        for number in [self.last.0, self.newest.0, self.end, self.last_of_client.0, saved.len() as u64] {
            put(out, number);
        }
        for sample in saved {
            [sample.index.0, sample.timestamp.0, sample.before].iter().for_each(|number| put(out, *number));
        }
    }

    /// Reads it back.
    pub(crate) fn decode(input: &mut Input<'_>) -> Result<History, BaseError> {
        let mut history = History {
            last: Index(input.number()?),
            newest: ReplicatedMs(input.number()?),
            end: input.number()?,
            due: (0, ReplicatedMs(0)),
            last_of_client: Index(input.number()?),
            samples: VecDeque::new(),
        };
        for _ in 0..input.count(24)? {
            let (index, timestamp) = (Index(input.number()?), ReplicatedMs(input.number()?));
            let sample = Sample { index, timestamp, before: input.number()? };
            let follows = history.samples.back().is_none_or(|b| b.index < index && b.before <= sample.before);
            if !follows || sample.before > history.end || index > history.last {
                return Err(BaseError::Contradiction("samples"));
            }
            history.samples.push_back(sample);
        }
        history.note_due();
        Ok(history)
    }

    /// One more entry at the end.
    pub(crate) fn push(&mut self, entry: &EntryMeta) {
        if self.end >= self.due.0 || entry.timestamp >= self.due.1 {
            let sample = Sample { index: entry.position.index, timestamp: entry.timestamp, before: self.end };
            self.samples.push_back(sample);
            if self.samples.len() > SAMPLES_MAX {
                let mut odd = false;
                self.samples.retain(|_| {
                    odd = !odd;
                    odd
                });
            }
            self.note_due();
        }
        self.last = entry.position.index;
        self.newest = self.newest.max(entry.timestamp);
        self.end += u64::from(entry.record_bytes);
        if matches!(entry.kind, RecordKind::Data | RecordKind::SessionOpen) {
            self.last_of_client = entry.position.index;
        }
    }

    /// Between two samples lies an equal part of the bytes that are held, or of the time.
    fn note_due(&mut self) {
        const PARTS: u64 = SAMPLES_MAX as u64 / 2;
        self.due = match (self.samples.front(), self.samples.back()) {
            (Some(first), Some(last)) if self.samples.len() >= EXACT => {
                let bytes = ((last.before - first.before) / PARTS).max(DISTANCE_MIN);
                let ms = (last.timestamp.0.saturating_sub(first.timestamp.0) / PARTS).max(MS_MIN);
                (last.before + bytes, ReplicatedMs(last.timestamp.0.saturating_add(ms)))
            }
            _ => (0, ReplicatedMs(0)),
        };
    }

    /// Everything above `keep` is gone. Cut bytes between the last sample kept and the next one stay counted.
    pub(crate) fn cut(&mut self, keep: Index) {
        while let Some(sample) = self.samples.back().filter(|sample| sample.index > keep) {
            self.end = sample.before;
            self.samples.pop_back();
        }
        self.note_due();
        self.last = self.last.min(keep);
        self.last_of_client = self.last_of_client.min(keep);
    }

    /// The log begins at `first`: older samples are of no use, but for the one that `first` lies behind.
    pub(crate) fn begin_at(&mut self, first: Index) {
        while self.samples.get(1).is_some_and(|second| second.index <= first) {
            self.samples.pop_front();
        }
        self.note_due();
    }

    /// Whether a client's entry lies at or above `first`.
    pub(crate) fn has_clients_from(&self, first: Index) -> bool {
        self.last_of_client >= first && self.last_of_client > Index::ZERO
    }

    /// Bytes of all entries that went through it.
    pub(crate) fn bytes(&self) -> u64 {
        self.end
    }

    /// Bytes from `first` to the end, or a little more.
    pub(crate) fn bytes_from(&self, first: Index) -> u64 {
        if first > self.last {
            return 0;
        }
        let after = self.samples.partition_point(|sample| sample.index <= first);
        let at = after.checked_sub(1).and_then(|at| self.samples.get(at)).or(self.samples.front());
        self.end - at.map_or(self.end, |sample| sample.before)
    }

    /// The lowest index known from which on the log is at most `bytes` long; behind the end if nothing is.
    pub(crate) fn first_within_bytes(&self, bytes: u64) -> Index {
        let at = self.samples.partition_point(|sample| self.end - sample.before > bytes);
        self.samples.get(at).map_or(self.last.next(), |sample| sample.index)
    }

    /// The highest index known below which everything was written at or before `time`.
    pub(crate) fn first_after(&self, time: ReplicatedMs) -> Index {
        if self.newest <= time {
            return self.last.next();
        }
        let after = self.samples.partition_point(|sample| sample.timestamp <= time);
        after
            .checked_sub(1)
            .and_then(|at| self.samples.get(at))
            .map_or(Index::ZERO, |sample| sample.index.next())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::{Generation, Position};

    fn entry(index: u64, bytes: u32, ms: u64) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(1)),
            prev_generation: Generation(1),
            kind: RecordKind::Data,
            session: None,
            session_key: None,
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(ms),
            record_bytes: bytes,
            payload_crc: 0,
        }
    }

    fn history(entries: u64, bytes: u32) -> History {
        let mut history = History::default();
        (1..=entries).for_each(|i| history.push(&entry(i, bytes, 10 * i)));
        history
    }

    /// Bytes of an entry that gets a sample of its own while there are few.
    const LARGE: u32 = DISTANCE_MIN as u32;

    #[test]
    fn a_short_log_is_known_exactly() {
        let history = history(10, 100);
        assert_eq!(history.bytes_from(Index(1)), 1000);
        assert_eq!(history.bytes_from(Index(8)), 300);
        assert_eq!(history.bytes_from(Index(11)), 0);
        assert_eq!(history.first_within_bytes(300), Index(8));
        assert_eq!(history.first_within_bytes(299), Index(9));
        assert_eq!(history.first_within_bytes(0), Index(11));
        assert_eq!(history.first_after(ReplicatedMs(49)), Index(5));
        assert_eq!(history.first_after(ReplicatedMs(5)), Index::ZERO);
        assert_eq!(history.first_after(ReplicatedMs(100)), Index(11), "all of it is that old");
    }

    #[test]
    fn small_entries_share_a_sample_unless_they_are_hours_apart() {
        let mut history = History::default();
        (1..=1000).for_each(|i| history.push(&entry(i, 100, i / 100)));
        assert!(history.samples.len() <= EXACT + 1000 * 100 / DISTANCE_MIN as usize + 1);
        for first in [1, 2, 500, 999, 1000] {
            let (found, exact) = (history.bytes_from(Index(first)), (1001 - first) * 100);
            assert!((exact..=exact + DISTANCE_MIN + 100).contains(&found), "{first}: {found}, {exact}");
        }
        const HOUR: u64 = 3_600_000;
        let mut history = History::default();
        (1..=100).for_each(|i| history.push(&entry(i, 100, HOUR * i)));
        assert_eq!(history.first_after(ReplicatedMs(HOUR * 76)), Index(77));
        // With more entries than samples by a part of the time.
        (101..=10_000).for_each(|i| history.push(&entry(i, 100, HOUR * i)));
        assert!(history.samples.len() <= SAMPLES_MAX);
        for old in [1000, 5000, 9900] {
            let first = history.first_after(ReplicatedMs(HOUR * old)).0;
            assert!((old - 10_000 * 4 / SAMPLES_MAX as u64..=old + 1).contains(&first), "{old}: {first}");
        }
    }

    #[test]
    fn what_is_saved_is_short_and_knows_the_log_more_roughly() {
        for entries in [0, 1, 16, 17, 100, 1_000_000] {
            let history = history(entries, 100);
            let mut bytes = Vec::new();
            history.encode(&mut bytes);
            assert!(bytes.len() <= 8 * (5 + 3 * SAVED_MAX));
            let mut again = History::decode(&mut Input::new(&bytes)).unwrap();
            assert_eq!(again.samples.front().map(|s| s.index), history.samples.front().map(|s| s.index));
            let distance = entries * 100 / (SAVED_MAX as u64 / 2) + DISTANCE_MIN;
            for first in [1, entries / 3, entries].into_iter().filter(|first| *first > 0) {
                let (found, exact) = (again.bytes_from(Index(first)), (entries + 1 - first) * 100);
                assert!(
                    (exact..=exact + distance).contains(&found),
                    "{first} of {entries}: {found}, {exact}"
                );
            }
            again.push(&entry(entries + 1, 100, 10 * entries + 10));
            assert_eq!(again.bytes_from(Index(1)), 100 * (entries + 1));
        }
    }

    #[test]
    fn a_long_log_is_known_to_a_sample_and_errs_to_the_longer() {
        let history = history(1_000_000, 100);
        assert!(history.samples.len() <= SAMPLES_MAX);
        let distance = 1_000_000 * 100 / (SAMPLES_MAX as u64 / 4);
        for first in [1, 77, 5_000, 400_001, 999_999] {
            let (found, exact) = (history.bytes_from(Index(first)), (1_000_001 - first) * 100);
            assert!((exact..=exact + distance).contains(&found), "{first}: {found}, {exact}");
        }
        let first = history.first_within_bytes(50_000_000);
        assert!((500_001..=500_001 + distance / 100).contains(&first.0), "{first}");
        let first = history.first_after(ReplicatedMs(4_000_000));
        assert!((400_000 - distance / 100..=400_001).contains(&first.0), "{first}");
    }

    #[test]
    fn cuts_and_a_later_start_are_followed() {
        let mut history = history(100, LARGE);
        history.cut(Index(50));
        assert_eq!(
            (history.bytes_from(Index(41)), history.first_after(ReplicatedMs(9999))),
            (10 * DISTANCE_MIN, Index(51))
        );
        history.push(&entry(51, 200, 2000));
        assert_eq!(history.bytes_from(Index(51)), 200);
        history.begin_at(Index(40));
        assert_eq!(history.samples.front().map(|s| s.index), Some(Index(40)));
        assert_eq!(history.bytes_from(Index(1)), 11 * DISTANCE_MIN + 200, "no more is known");
        assert!(history.has_clients_from(Index(51)) && !history.has_clients_from(Index(52)));
    }
}
