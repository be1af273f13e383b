//! The clients' own log of what was acknowledged, and its comparison with what replicas hold.
//!
//! The verdict rests on nothing that a node says about itself: only on what clients sent, what they were answered and
//! when, and on the records that each replica gives back.

use std::collections::BTreeMap;
use std::time::Duration;

/// Magic at the start of every payload that the load makes.
const MAGIC: &[u8; 8] = b"tidedemo";
/// Shortest payload that identifies itself.
pub(crate) const PAYLOAD_BYTES_MIN: usize = 24;

/// The payload of request `number`: its number and length, then bytes that follow from them.
pub(crate) fn payload(number: u64, bytes: usize) -> Vec<u8> {
    let bytes = bytes.max(PAYLOAD_BYTES_MIN);
    let mut out = Vec::with_capacity(bytes + 8);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&(bytes as u64).to_le_bytes());
    let mut x = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while out.len() < bytes {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        out.extend_from_slice(&x.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

/// Which request made this payload; none if it is not whole, or nobody's.
pub(crate) fn number_of(bytes: &[u8]) -> Option<u64> {
    let number = u64::from_le_bytes(*bytes.get(8..16)?.first_chunk()?);
    (bytes.starts_with(MAGIC) && payload(number, bytes.len()) == bytes).then_some(number)
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// Acknowledged at this index of its partition.
    Acked { index: u64, at: Duration },
    /// It may or may not be in the log, once.
    Unknown,
    /// It must not be in the log.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    partition: u64,
    sent: Duration,
    outcome: Outcome,
}

/// What the clients know.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    requests: BTreeMap<u64, Entry>,
}

/// Everything that is wrong with one replica's copy. All zero is good.
#[derive(Clone, PartialEq, Eq, Debug, Default, serde::Serialize)]
pub(crate) struct Findings {
    /// Records read.
    pub(crate) records: u64,
    /// Acknowledged and not there.
    pub(crate) missing: u64,
    /// At an acknowledged index there is something else, or a record is nobody's.
    pub(crate) changed: u64,
    /// One request at more than one index.
    pub(crate) doubled: u64,
    /// Sent after another one's acknowledgement, and yet before it in the log; or indexes that do not rise.
    pub(crate) out_of_order: u64,
    /// Refused, and yet there.
    pub(crate) refused_but_present: u64,
    /// Unknown to its client, and there: allowed.
    pub(crate) unknown_and_present: u64,
}

impl Findings {
    /// Whether nothing is wrong.
    pub(crate) fn is_good(&self) -> bool {
        self.missing + self.changed + self.doubled + self.out_of_order + self.refused_but_present == 0
    }

    pub(crate) fn add(&mut self, other: &Findings) {
        self.records += other.records;
        self.missing += other.missing;
        self.changed += other.changed;
        self.doubled += other.doubled;
        self.out_of_order += other.out_of_order;
        self.refused_but_present += other.refused_but_present;
        self.unknown_and_present += other.unknown_and_present;
    }
}

impl Ledger {
    /// A request ended.
    pub(crate) fn record(&mut self, number: u64, partition: u64, sent: Duration, outcome: Outcome) {
        let before = self.requests.insert(number, Entry { partition, sent, outcome });
        assert!(before.is_none(), "each request ends once");
    }

    pub(crate) fn count(&self, which: impl Fn(&Outcome) -> bool) -> u64 {
        self.requests.values().filter(|e| which(&e.outcome)).count() as u64
    }

    pub(crate) fn acked(&self) -> u64 {
        self.count(|o| matches!(o, Outcome::Acked { .. }))
    }

    /// The highest acknowledged index of a partition.
    pub(crate) fn acked_to(&self, partition: u64) -> u64 {
        let indexes =
            self.requests.values().filter(|e| e.partition == partition).filter_map(|e| match e.outcome {
                Outcome::Acked { index, .. } => Some(index),
                _ => None,
            });
        indexes.max().unwrap_or(0)
    }

    /// Requests sent outside of a stretch of time: how many, and how many of them were acknowledged.
    pub(crate) fn outside(&self, from: Duration, to: Duration) -> (u64, u64) {
        let outside = self.requests.values().filter(|e| e.sent < from || e.sent >= to);
        outside.fold((0, 0), |(all, acked), e| {
            (all + 1, acked + u64::from(matches!(e.outcome, Outcome::Acked { .. })))
        })
    }

    /// When the first request of a partition sent at `from` or later was acknowledged.
    pub(crate) fn first_ack_after(&self, partition: u64, from: Duration) -> Option<Duration> {
        let later = self.requests.values().filter(|e| e.partition == partition && e.sent >= from);
        later.filter_map(|e| if let Outcome::Acked { at, .. } = e.outcome { Some(at) } else { None }).min()
    }

    /// Compares the data records of one partition on one replica with what clients know. `log`: in log order, each
    /// record's index and the request that made it, if it is whole ([`number_of`]).
    pub(crate) fn compare(&self, partition: u64, log: impl Iterator<Item = (u64, Option<u64>)>) -> Findings {
        let mut findings = Findings::default();
        let mut found: BTreeMap<u64, u64> = BTreeMap::new();
        let mut last_index = 0;
        // The latest sending time among the records so far: one acknowledged before it should not come later.
        let mut latest_sent = Duration::ZERO;
        for (index, number) in log {
            findings.records += 1;
            findings.out_of_order += u64::from(index <= last_index);
            last_index = index;
            let known = number.and_then(|n| Some((n, self.requests.get(&n)?)));
            let Some((number, entry)) = known.filter(|(_, e)| e.partition == partition) else {
                findings.changed += 1;
                continue;
            };
            findings.doubled += u64::from(found.insert(number, index).is_some());
            match entry.outcome {
                Outcome::Acked { at, .. } => findings.out_of_order += u64::from(at < latest_sent),
                Outcome::Unknown => findings.unknown_and_present += 1,
                Outcome::Refused => findings.refused_but_present += 1,
            }
            latest_sent = latest_sent.max(entry.sent);
        }
        for (number, entry) in &self.requests {
            if let (Outcome::Acked { index, .. }, true) = (entry.outcome, entry.partition == partition) {
                match found.get(number) {
                    None => findings.missing += 1,
                    Some(at) if *at != index => findings.changed += 1,
                    Some(_) => {}
                }
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Requests 1..=4 of partition 0: acked at 2, acked at 3, unknown, refused.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.record(1, 0, ms(10), Outcome::Acked { index: 2, at: ms(20) });
        ledger.record(2, 0, ms(30), Outcome::Acked { index: 3, at: ms(40) });
        ledger.record(3, 0, ms(35), Outcome::Unknown);
        ledger.record(4, 0, ms(36), Outcome::Refused);
        ledger
    }

    fn log(of: &[(u64, u64)]) -> impl Iterator<Item = (u64, Option<u64>)> {
        of.iter().map(|(index, number)| (*index, number_of(&payload(*number, 100))))
    }

    #[test]
    fn a_good_copy() {
        let without = ledger().compare(0, log(&[(2, 1), (3, 2)]));
        assert!(without.is_good() && without.records == 2, "{without:?}");
        let with = ledger().compare(0, log(&[(2, 1), (3, 2), (4, 3)]));
        assert!(with.is_good() && with.unknown_and_present == 1, "{with:?}");
    }

    #[test]
    fn each_wrong_is_named() {
        let l = ledger();
        assert_eq!(l.compare(0, log(&[(2, 1)])).missing, 1);
        assert_eq!(l.compare(0, log(&[(2, 1), (3, 2), (4, 2)])).doubled, 1);
        assert_eq!(l.compare(0, log(&[(2, 1), (3, 2), (5, 4)])).refused_but_present, 1);
        assert_eq!(l.compare(0, log(&[(2, 1), (3, 2), (5, 9)])).changed, 1, "nobody's");
        assert_eq!(l.compare(0, log(&[(2, 1), (4, 2)])).changed, 1, "another index than acknowledged");
        assert_eq!(
            l.compare(0, log(&[(2, 2), (3, 1)])).out_of_order,
            1,
            "2 was sent after 1 was acknowledged"
        );
        let mut torn = payload(2, 100);
        torn[60] ^= 1;
        let torn = [(2, Some(1)), (3, number_of(&torn))].into_iter();
        assert_eq!(l.compare(0, torn).changed, 1);
    }
}
