//! What clients were told (invariants 7, 12, 14): an acknowledged append is committed where it was said to be, once;
//! positions respect real time; a read shows the committed log and nothing else, a linearizable one all of it that
//! was acknowledged before it began.

use super::commit::Commits;
use super::violation::{Verdict, broken, ensure};
use crate::payload::Ident;
use crate::platter::{self, Record, kind};
use std::collections::BTreeMap;

/// An append that a client is waiting for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appending {
    pub(crate) partition: u64,
    pub(crate) ident: Ident,
    pub(crate) session: Option<(u64, u64)>,
    /// Highest index acknowledged to anyone when it was first submitted.
    pub(crate) floor: u64,
}

/// A read that a client is waiting for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) partition: u64,
    pub(crate) from: u64,
    pub(crate) linearizable: bool,
    /// Highest index acknowledged to anyone when it was submitted.
    pub(crate) floor: u64,
}

/// How many operations came to what end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) acked: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) reads: u64,
}

/// All clients' histories.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Highest index acknowledged, by partition.
    highest: BTreeMap<u64, u64>,
    acked: BTreeMap<(u64, Ident), (u64, u64)>,
    /// Keys of sessions, by (partition, key).
    sessions: BTreeMap<(u64, u128), u64>,
    pub(crate) outcomes: Outcomes,
}

impl History {
    /// Highest index acknowledged so far.
    pub(crate) fn floor(&self, partition: u64) -> u64 {
        self.highest.get(&partition).copied().unwrap_or(0)
    }

    /// An append was acknowledged.
    pub(crate) fn acked(
        &mut self,
        append: &Appending,
        index: u64,
        generation: u64,
        commits: &mut Commits,
    ) -> Verdict {
        self.outcomes.acked += 1;
        let Appending { partition, ident, session, floor } = append;
        let here =
            || format!("partition {partition}: {ident:?} (session {session:?}) was acknowledged at {index}");
        commits.shown(*partition, index, generation, &here)?;
        let committed = commits.get(*partition, index).and_then(|entry| entry.ident);
        ensure(7, committed == Some(*ident), || format!("{}; committed there is {committed:?}", here()))?;
        if let Some(before) = self.acked.insert((*partition, *ident), (index, generation)) {
            ensure(12, before == (index, generation), || {
                format!("{} and before that at {before:?}", here())
            })?;
        }
        ensure(7, index > *floor, || {
            format!("{}, though {floor} was acknowledged before it was submitted", here())
        })?;
        let highest = self.highest.entry(*partition).or_insert(0);
        *highest = index.max(*highest);
        Ok(())
    }

    /// A session was opened, or found, under a key. One that is unused for `expiry_ms` expires, and its key names another.
    pub(crate) fn opened(
        &mut self,
        partition: u64,
        key: u128,
        session: u64,
        generation: u64,
        commits: &mut Commits,
        expiry_ms: u64,
    ) -> Verdict {
        let known = *self.sessions.entry((partition, key)).or_insert(session);
        commits.shown(partition, session, generation, &|| {
            format!("partition {partition}: session {session} was opened")
        })?;
        if known != session {
            // An answer about the older one may arrive late.
            let (older, newer) = (known.min(session), known.max(session));
            let unused = commits.unused(partition, older, newer);
            ensure(12, unused.is_some_and(|ms| ms >= expiry_ms), || {
                format!(
                    "partition {partition}: session key {key:x} is session {older}, and then {newer}, after {unused:?} ms"
                )
            })?;
            self.sessions.insert((partition, key), newer);
        }
        let is_open = commits.get(partition, session).is_some_and(|e| e.kind == kind::SESSION_OPEN);
        ensure(7, is_open, || {
            format!(
                "partition {partition}: session {session} was opened, but no committed entry there opens one"
            )
        })
    }

    /// A read was answered with records up to `next` - 1 by a node whose mark is `high_water`.
    pub(crate) fn read(
        &mut self,
        read: &Reading,
        next: u64,
        high_water: u64,
        bytes: &[u8],
        commits: &mut Commits,
    ) -> Verdict {
        self.outcomes.reads += 1;
        let Reading { partition, from, linearizable, floor } = read;
        let here = || format!("partition {partition}: a read from {from}");
        ensure(14, !linearizable || high_water >= *floor, || {
            format!(
                "{} at level linearizable saw a mark of {high_water}; {floor} was acknowledged before it began",
                here()
            )
        })?;
        let records: Vec<Record> = match platter::records(bytes) {
            Ok(records) => records,
            Err(why) => return broken(3, format!("{} gave bytes that are no records: {why}", here())),
        };
        let mut expected = *from;
        if let Some(last) = records.last() {
            commits.shown(*partition, last.index, last.generation, &here)?;
        }
        for record in &records {
            let committed = commits.get(*partition, record.index);
            let same = record.index == expected
                && committed.is_some_and(|e| e.generation == record.generation && e.hash == record.hash);
            ensure(5, same, || {
                format!(
                    "{} gave entry {} of generation {}, expected is {expected}: {committed:?}",
                    here(),
                    record.index,
                    record.generation
                )
            })?;
            expected += 1;
        }
        ensure(5, expected == next, || format!("{} ended at {expected} and says {next}", here()))?;
        ensure(5, next <= high_water + 1, || {
            format!("{} went up to {next} above the mark {high_water}", here())
        })
    }

    /// At the end: everything acknowledged is still where it was said to be.
    pub(crate) fn all_there(&self, commits: &Commits) -> Verdict {
        for ((partition, ident), (index, _)) in &self.acked {
            let found = commits.find(*partition, ident);
            ensure(7, found == Some(*index), || {
                format!(
                    "partition {partition}: {ident:?} was acknowledged at {index} and is found at {found:?}"
                )
            })?;
        }
        Ok(())
    }
}
