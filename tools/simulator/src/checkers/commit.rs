//! What is committed, told from marks only where the simulator's model of the disks agrees (invariants 4, 5, 6, 12, 21).

use super::content::Contents;
use super::violation::{Verdict, broken, ensure};
use crate::payload::Ident;
use crate::platter::kind;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_consensus::Replica;
use tidelog_types::Index;

/// A committed entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Committed {
    pub(crate) generation: u64,
    pub(crate) kind: u8,
    pub(crate) hash: u64,
    pub(crate) ident: Option<Ident>,
    pub(crate) session: Option<(u64, u64)>,
    pub(crate) stamp: u64,
}

#[derive(Debug, Default)]
struct Log {
    /// The last entry that opened or used each session.
    used: BTreeMap<u64, u64>,
    /// Sessions that a client was told have expired.
    expired: BTreeSet<u64>,
    entries: Vec<Committed>,
    /// (last index committed, under a leader of this generation or an older one), both rising.
    under: Vec<(u64, u64)>,
    sessions: BTreeMap<(u64, u64), u64>,
    idents: BTreeMap<Ident, u64>,
    /// (index of a log start, the first index kept once it is committed), both rising.
    starts: Vec<(u64, u64)>,
    /// Appends that clients were told are not in the log.
    denied: BTreeSet<Ident>,
}

/// The committed log of every partition.
#[derive(Debug)]
pub(crate) struct Commits {
    quorum: usize,
    contents: Contents,
    logs: BTreeMap<u64, Log>,
}

impl Commits {
    /// `replication`: voters of each partition.
    pub(crate) fn new(replication: usize) -> Commits {
        Commits { quorum: replication / 2 + 1, contents: Contents::default(), logs: BTreeMap::new() }
    }

    pub(crate) fn contents(&mut self) -> &mut Contents {
        &mut self.contents
    }

    /// How many entries are committed in a partition.
    pub(crate) fn len(&self, partition: u64) -> u64 {
        self.logs.get(&partition).map_or(0, |log| log.entries.len() as u64)
    }

    /// In all partitions.
    pub(crate) fn total(&self) -> u64 {
        self.logs.values().map(|log| log.entries.len() as u64).sum()
    }

    /// A committed entry.
    pub(crate) fn get(&self, partition: u64, index: u64) -> Option<&Committed> {
        self.logs.get(&partition)?.entries.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }

    /// Where an append of a client is committed.
    pub(crate) fn find(&self, partition: u64, ident: &Ident) -> Option<u64> {
        self.logs.get(&partition)?.idents.get(ident).copied()
    }

    /// Where the log begins for who knows that everything up to `mark` is committed, by the log starts among it; 1: it is whole.
    pub(crate) fn log_start(&self, partition: u64, mark: u64) -> u64 {
        let Some(log) = self.logs.get(&partition) else { return 1 };
        let behind = log.starts.partition_point(|(index, _)| *index <= mark);
        behind.checked_sub(1).and_then(|at| log.starts.get(at)).map_or(1, |(_, first)| *first)
    }

    /// A client was told that an append is not in the log.
    pub(crate) fn denied(&mut self, partition: u64, ident: Ident, why: &str) -> Verdict {
        let log = self.logs.entry(partition).or_default();
        log.denied.insert(ident);
        ensure(7, !log.idents.contains_key(&ident), || {
            format!(
                "partition {partition}: {ident:?} is committed and was reported as not appended: {why} (R4)"
            )
        })
    }

    /// How long a session was not used before `until`, by the stamps of what is committed; none if it was never opened.
    pub(crate) fn unused(&self, partition: u64, session: u64, until: u64) -> Option<u64> {
        let used = *self.logs.get(&partition)?.used.get(&session)?;
        let stamp = |index| self.get(partition, index).map(|entry| entry.stamp);
        Some(stamp(until)?.saturating_sub(stamp(used)?))
    }

    /// A client was told that its session has expired, which it does when it is unused for `expiry_ms`: what is committed must
    /// prove it, and nothing of the session may come any more.
    pub(crate) fn expired(&mut self, partition: u64, session: u64, expiry_ms: u64) -> Verdict {
        let unused = self.unused(partition, session, self.len(partition));
        ensure(21, unused.is_some_and(|ms| ms >= expiry_ms), || {
            format!(
                "partition {partition}: session {session} was reported as expired; by what is committed it was unused for {unused:?} ms of {expiry_ms}"
            )
        })?;
        self.logs.entry(partition).or_default().expired.insert(session);
        Ok(())
    }

    /// A client was told that a session's next sequence is `expected`: all before it are committed.
    pub(crate) fn gap(&self, partition: u64, session: u64, expected: u64) -> Verdict {
        let log = self.logs.get(&partition);
        let before =
            expected == 1 || log.is_some_and(|log| log.sessions.contains_key(&(session, expected - 1)));
        ensure(21, before, || {
            format!(
                "partition {partition}: session {session} was reported to be at sequence {expected}; the one before is not committed"
            )
        })
    }

    /// A client was told that its sequence is at `index` with another payload than its own.
    pub(crate) fn reused(&self, partition: u64, of: (u64, u64), own: Ident, index: u64) -> Verdict {
        let found = self.get(partition, index);
        let so = found.is_some_and(|entry| entry.session == Some(of) && entry.ident != Some(own));
        ensure(21, so, || {
            format!("partition {partition}: {of:?} of {own:?} was reported to be used at {index}: {found:?}")
        })
    }

    /// `node`'s high-water mark rose from `from`. `leading`: it was and is the leader of its generation.
    pub(crate) fn raised(
        &mut self,
        node: u64,
        partition: u64,
        from: u64,
        replica: &Replica,
        leading: bool,
    ) -> Verdict {
        let (mark, under) = (replica.marks().high_water.0, replica.generation().0);
        let here = || format!("node {node} partition {partition}: high-water mark {mark}");
        for index in from + 1..=mark {
            let Some(generation) = replica.generation_at(Index(index)).map(|g| g.0) else {
                return broken(5, format!("{} beyond its log", here()));
            };
            self.claim(partition, index, generation, &here)?;
        }
        let log = self.logs.entry(partition).or_default();
        if log.under.last().is_none_or(|(last, _)| *last < mark) {
            let under = log.under.last().map_or(under, |(_, older)| under.max(*older));
            log.under.push((mark, under));
        }
        let newest =
            log.entries.get(usize::try_from(mark - 1).unwrap_or(usize::MAX)).map_or(0, |e| e.generation);
        ensure(4, !leading || newest == under, || {
            format!(
                "{}: the leader of generation {under} committed an entry of generation {newest} by counting (R15)",
                here()
            )
        })
    }

    /// A node let it be seen, by what it did for a client or a state machine, that an entry is committed. Its mark said so
    /// within a turn, and may be gone since: it is judged by the disks.
    pub(crate) fn shown(
        &mut self,
        partition: u64,
        index: u64,
        generation: u64,
        here: &dyn Fn() -> String,
    ) -> Verdict {
        let mut chain = vec![(index, generation)];
        while let Some((index, generation)) = chain.last().copied()
            && index > self.len(partition) + 1
        {
            let Some(content) = self.contents.get(partition, generation, index) else {
                return broken(
                    6,
                    format!("{}: entry {index} of generation {generation} is on no disk", here()),
                );
            };
            chain.push((index - 1, content.prev_generation));
        }
        chain
            .into_iter()
            .rev()
            .try_for_each(|(index, generation)| self.claim(partition, index, generation, here))
    }

    /// Entry `index` is said to be committed, and to be of `generation`.
    fn claim(&mut self, partition: u64, index: u64, generation: u64, here: &dyn Fn() -> String) -> Verdict {
        let Commits { quorum, contents, logs } = self;
        let log = logs.entry(partition).or_default();
        if let Some(known) = usize::try_from(index - 1).ok().and_then(|at| log.entries.get(at)) {
            return ensure(5, known.generation == generation, || {
                format!(
                    "{}: committed entry {index} is of generation {generation}, elsewhere of {}",
                    here(),
                    known.generation
                )
            });
        }
        let Some(content) = contents.get(partition, generation, index).filter(|c| c.copies() >= *quorum)
        else {
            let copies = contents.get(partition, generation, index).map_or(0, |c| c.copies());
            return broken(
                6,
                format!(
                    "{}: entry {index} of generation {generation} was durable on {copies} disks, a quorum is {quorum}",
                    here()
                ),
            );
        };
        let before = log.entries.last().map_or(0, |e| e.generation);
        ensure(3, content.prev_generation == before, || {
            format!(
                "{}: entry {index} follows generation {}, committed is {before}",
                here(),
                content.prev_generation
            )
        })?;
        if let Some((session, sequence)) = content.session {
            ensure(21, !log.expired.contains(&session), || {
                format!(
                    "partition {partition}: session {session} was reported as expired, and its sequence {sequence} is committed at {index}"
                )
            })?;
            log.used.insert(session, index);
        } else if content.kind == kind::SESSION_OPEN {
            log.used.insert(index, index);
        }
        if let Some(session) = content.session
            && let Some(first) = log.sessions.insert(session, index)
        {
            return broken(
                12,
                format!("partition {partition}: {session:?} is committed at {first} and at {index}"),
            );
        }
        if let Some(ident) = content.ident {
            if let Some(first) = log.idents.insert(ident, index) {
                return broken(
                    12,
                    format!(
                        "partition {partition}: {ident:?} was appended once and is committed at {first} and at {index}"
                    ),
                );
            }
            ensure(7, !log.denied.contains(&ident), || {
                format!(
                    "partition {partition}: {ident:?} was reported as not appended and is committed at {index} (R4)"
                )
            })?;
        }
        if content.log_start > log.starts.last().map_or(1, |(_, first)| *first) {
            log.starts.push((index, content.log_start));
        }
        log.entries.push(Committed {
            generation,
            kind: content.kind,
            hash: content.hash,
            ident: content.ident,
            session: content.session,
            stamp: content.stamp,
        });
        Ok(())
    }

    /// A leader of `generation` was elected with a log up to `last`.
    pub(crate) fn held_by(
        &self,
        partition: u64,
        generation: u64,
        last: u64,
        generation_at: impl Fn(u64) -> u64,
    ) -> Verdict {
        let Some(log) = self.logs.get(&partition) else { return Ok(()) };
        let earlier = log.under.partition_point(|(_, under)| *under < generation);
        let Some((must, _)) = earlier.checked_sub(1).and_then(|at| log.under.get(at)) else { return Ok(()) };
        ensure(4, last >= *must, || {
            format!("partition {partition}: its log ends at {last}, {must} entries were committed before")
        })?;
        let committed = log.entries.iter().take(usize::try_from(*must).unwrap_or(usize::MAX));
        for (index, entry) in (1..).zip(committed) {
            ensure(4, generation_at(index) == entry.generation, || {
                format!(
                    "partition {partition}: its entry {index} is of generation {}, the committed one of {}",
                    generation_at(index),
                    entry.generation
                )
            })?;
        }
        Ok(())
    }

    /// A cut removed `index` of `generation` and what follows from a disk.
    pub(crate) fn removed(&self, node: u64, partition: u64, index: u64, generation: u64) -> Verdict {
        let committed = self.get(partition, index).is_some_and(|e| e.generation == generation);
        ensure(8, !committed, || {
            format!(
                "node {node} partition {partition}: cut committed entry {index} of generation {generation}"
            )
        })
    }

    /// A state machine was given everything up to `index` from a snapshot; it had applied `previous`.
    pub(crate) fn restored(
        &self,
        node: u64,
        partition: u64,
        previous: u64,
        index: u64,
        hash: u32,
    ) -> Verdict {
        let here = || format!("node {node} partition {partition}: restored entries up to {index}");
        ensure(11, previous <= index, || format!("{}, behind {previous}", here()))?;
        ensure(6, index <= self.len(partition), || {
            format!("{}, {} are committed", here(), self.len(partition))
        })?;
        let data = (1..=index).filter_map(|i| self.get(partition, i)).filter(|e| e.kind == kind::DATA);
        let committed = data.fold(0, |hash, entry| crate::machine::hashed(hash, entry.hash as u32));
        ensure(11, committed == hash, || format!("{}: they are not the committed ones", here()))
    }

    /// A state machine applied `index`; the entry before it was `previous`. `hash` is of its payload.
    pub(crate) fn applied(
        &mut self,
        node: u64,
        partition: u64,
        previous: u64,
        index: u64,
        generation: u64,
        payload_crc: u32,
    ) -> Verdict {
        let here =
            || format!("node {node} partition {partition}: applied entry {index} of generation {generation}");
        self.shown(partition, index, generation, &here)?;
        let same = self.get(partition, index).is_some_and(|entry| entry.hash as u32 == payload_crc);
        ensure(5, same, || format!("{}, committed is another one", here()))?;
        let skipped =
            (previous + 1..index).find(|i| self.get(partition, *i).is_none_or(|e| e.kind == kind::DATA));
        ensure(5, previous < index && skipped.is_none(), || {
            format!("{} behind {previous}: a gap or a step back", here())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platter::Record;

    fn record(
        index: u64,
        generation: u64,
        prev_generation: u64,
        session: Option<(u64, u64)>,
        client: u64,
    ) -> Record {
        Record {
            kind: kind::DATA,
            bytes: 64,
            partition: 0,
            index,
            generation,
            prev_generation,
            stamp: 0,
            session,
            log_start: 0,
            count: 0,
            hash: generation << 32 | index,
            ident: Some(Ident { client, number: index, random: 0 }),
        }
    }

    fn stored(records: &[(Record, &[u64])]) -> Commits {
        let mut commits = Commits::new(3);
        for (record, nodes) in records {
            nodes.iter().for_each(|node| commits.contents().durable(*node, record).unwrap());
        }
        commits
    }

    fn number(verdict: Verdict) -> u8 {
        verdict.unwrap_err().invariant
    }

    fn here() -> String {
        "a test".into()
    }

    #[test]
    fn committed_is_what_a_quorum_of_disks_had() {
        let mut commits = stored(&[(record(1, 1, 0, None, 1), &[1, 2]), (record(2, 1, 1, None, 1), &[3])]);
        commits.shown(0, 1, 1, &here).unwrap();
        assert_eq!(number(commits.shown(0, 2, 1, &here)), 6, "on one disk");
        assert_eq!(number(commits.shown(0, 3, 1, &here)), 6, "on none");
        assert_eq!(number(commits.shown(0, 1, 2, &here)), 5, "another entry");
        assert_eq!((commits.len(0), commits.total()), (1, 1));
    }

    #[test]
    fn other_bytes_under_the_same_name_are_noticed() {
        let mut commits = stored(&[(record(1, 1, 0, None, 1), &[1])]);
        let other = Record { hash: 9, ..record(1, 1, 0, None, 1) };
        assert_eq!(number(commits.contents().durable(2, &other)), 3);
    }

    #[test]
    fn a_session_s_sequence_and_a_client_s_append_are_committed_once() {
        let twice = |second: Record| {
            let mut commits = stored(&[(record(1, 1, 0, Some((9, 1)), 1), &[1, 2]), (second, &[1, 2])]);
            commits.shown(0, 2, 1, &here)
        };
        twice(record(2, 1, 1, Some((9, 2)), 2)).unwrap();
        assert_eq!(number(twice(record(2, 1, 1, Some((9, 1)), 2))), 12);
        let same =
            Record { ident: Some(Ident { client: 1, number: 1, random: 0 }), ..record(2, 1, 1, None, 1) };
        assert_eq!(number(twice(same)), 12);
    }

    #[test]
    fn what_a_client_was_told_is_not_in_the_log_must_not_be() {
        let ident = Ident { client: 1, number: 1, random: 0 };
        let mut commits = stored(&[(record(1, 1, 0, None, 1), &[1, 2])]);
        commits.denied(0, ident, "busy").unwrap();
        assert_eq!(number(commits.shown(0, 1, 1, &here)), 7);
        let mut commits = stored(&[(record(1, 1, 0, None, 1), &[1, 2])]);
        commits.shown(0, 1, 1, &here).unwrap();
        assert_eq!(number(commits.denied(0, ident, "busy")), 7);
        assert_eq!(number(commits.removed(1, 0, 1, 1)), 8);
        commits.removed(1, 0, 1, 2).unwrap();
    }

    #[test]
    fn state_machines_are_given_the_committed_log_in_order() {
        let mut commits = stored(&[(record(1, 1, 0, None, 1), &[1, 2]), (record(2, 1, 1, None, 1), &[1, 2])]);
        commits.applied(1, 0, 0, 1, 1, 1).unwrap();
        commits.applied(1, 0, 1, 2, 1, 2).unwrap();
        assert_eq!(number(commits.applied(1, 0, 0, 2, 1, 2)), 5, "a gap");
        assert_eq!(number(commits.applied(1, 0, 2, 1, 1, 1)), 5, "again");
        assert_eq!(number(commits.applied(1, 0, 1, 2, 1, 7)), 5, "other bytes");
    }
}
