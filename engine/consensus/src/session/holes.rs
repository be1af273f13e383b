//! Holes: entries whose bytes are lost, and which may have opened sessions or carried sequences.
//!
//! While there are holes the table is lenient exactly by them: a session may be unknown if its opening entry is a hole,
//! sequences may be skipped as far as there are holes to have held them. [`Sessions::patch`] fills a hole from its entry,
//! [`Sessions::recall`] all holes of a prefix from a table of that prefix; when the last one is filled, the table is the one of a log
//! without holes, and strict again. Nobody is admitted against a table with holes.

use super::state::Session;
use super::{Fault, RUNS_MAX, Run, Sessions};
use crate::ranges::Ranges;
use tidelog_types::{EntryMeta, Index, RecordKind, Sequence, SessionId, SessionKey, SessionRef};

/// Most checksums of a session that are put together again: as many as may be uncommitted, and more.
const SUMS_MAX: u64 = 1 << 17;

impl Sessions {
    /// A hole splits a run at most once, so the newest [`RUNS_MAX`] runs of the table without it are among these.
    pub(super) fn runs_max(&self) -> usize {
        RUNS_MAX.saturating_add(usize::try_from(self.holes.count()).unwrap_or(usize::MAX))
    }

    /// The entries `first ..= last` become the log's last ones, and what they are is not known.
    pub(crate) fn hole(&mut self, first: Index, last: Index) {
        self.holes.insert(first, last);
    }

    /// Whether it is not known what an entry of the log did.
    pub(crate) fn is_hole(&self, index: Index) -> bool {
        self.holes.contains(index)
    }

    /// Whether there is any such entry, kept or not.
    pub(crate) fn has_holes(&self) -> bool {
        !self.holes.is_empty()
    }

    /// What the entry, which is in the log, is: if it was a hole, it is none any more. `high_water`: what can no
    /// longer be cut.
    ///
    /// # Errors
    /// If it contradicts what is known; then nothing changed.
    pub(crate) fn patch(&mut self, entry: &EntryMeta, high_water: Index) -> Result<(), Fault> {
        let (at, stamp) = (entry.position.index, entry.timestamp);
        if !self.holes.contains(at) {
            return Ok(());
        }
        let (id, before) = match (entry.kind, entry.session_key, entry.session) {
            (RecordKind::SessionOpen, Some(key), _) => {
                let id = SessionId(at.0);
                if let Some(session) = self.contradicted_key(key, id, entry) {
                    return Err(Fault::KeyInUse { session });
                }
                let before = self.sessions.get(&id).cloned();
                let session = self.sessions.entry(id).or_default();
                (session.key, session.expiry_ms) = (Some(key), entry.session_expiry_ms);
                session.used.note(at, stamp);
                (Some(id), before)
            }
            // Somebody wrote into a session that this entry must have opened.
            _ if self.sessions.contains_key(&SessionId(at.0)) => {
                return Err(Fault::Unknown { session: SessionId(at.0) });
            }
            (_, _, Some(SessionRef { session: id, sequence })) => {
                if !self.sessions.contains_key(&id) && !self.holes.contains(Index(id.0)) {
                    return Err(Fault::Unknown { session: id });
                }
                let before = self.sessions.get(&id).cloned();
                let session = self.sessions.entry(id).or_default();
                let end = session.next();
                if let Err(expected) = session.patch(sequence.0, at.0, id.0) {
                    self.put_back(id, before);
                    return Err(Fault::Sequence {
                        session: id,
                        expected: Sequence(expected),
                        found: sequence,
                    });
                }
                session.skip_sums(session.next() - end);
                session.set_sum(sequence.0, entry.payload_crc);
                session.used.note(at, stamp);
                (Some(id), before)
            }
            _ => (None, None),
        };
        self.holes.remove(at, at);
        if self.holes.is_empty() {
            // The whole log is known: what was put up with until now must have been right.
            let wrong =
                self.sessions.iter().find(|(_, session)| !session.is_dense()).map(|(id, s)| (*id, s.next()));
            if let Some((wrong, next)) = wrong {
                self.holes.insert(at, at);
                if let Some(id) = id {
                    self.put_back(id, before);
                }
                return Err(Fault::Sequence {
                    session: wrong,
                    expected: Sequence(next),
                    found: Sequence(next),
                });
            }
            self.trim(high_water);
        }
        self.time.note(at, stamp);
        if entry.session_key.is_some() {
            self.find_keys();
        }
        Ok(())
    }

    fn put_back(&mut self, id: SessionId, before: Option<Session>) {
        match before {
            Some(before) => drop(self.sessions.insert(id, before)),
            None => drop(self.sessions.remove(&id)),
        }
    }

    /// The session that keeps `entry` from having opened session `id` under `key`: one that was open under it then, or one that
    /// was opened under it while this one was open.
    fn contradicted_key(&self, key: SessionKey, id: SessionId, entry: &EntryMeta) -> Option<SessionId> {
        let of_key = self.sessions.iter().filter(|(_, session)| session.key == Some(key));
        let contradicts = |(other, session): &(&SessionId, &Session)| {
            if **other < id {
                return !session.is_expired(entry.timestamp);
            }
            let until = entry.timestamp.0.saturating_add(entry.session_expiry_ms);
            let opened = session.used.first().map(|(_, stamp)| stamp.0);
            entry.session_expiry_ms == 0 || opened.is_some_and(|opened| opened < until)
        };
        of_key.filter(contradicts).map(|(other, _)| *other).next()
    }

    /// The table of the log's first entries up to `end` is `before`: what was not known of them is known now. `high_water`:
    /// what can no longer be cut. False, and nothing changed, if the two contradict each other.
    pub(crate) fn recall(&mut self, before: &Sessions, end: Index, high_water: Index) -> bool {
        if self.holes.first_from(Index(1)).is_none_or(|(first, _)| first > end) {
            return true;
        }
        let mut table = before.clone();
        table.holes = self.holes.clone();
        table.holes.remove(Index(1), end);
        table.forgotten = table.forgotten.max(self.forgotten);
        let then = table.time.last();
        self.time.iter().filter(|(at, _)| *at > end).for_each(|(at, stamp)| table.time.note(at, stamp));
        for (id, session) in &self.sessions {
            if id.0 > end.0 {
                table.sessions.insert(*id, session.clone());
                continue;
            }
            let goes_on = match table.sessions.get_mut(id) {
                Some(known) => known.go_on(session, end),
                // It had expired by then.
                None => {
                    session.runs.back().is_none_or(|run| run.last_index() <= end.0)
                        && (session.key.is_none() || then.is_some_and(|then| session.is_expired(then)))
                }
            };
            if !goes_on {
                return false;
            }
        }
        table.find_keys();
        let whole = table.holes.is_empty();
        if table.keys_contradict() || whole && !table.sessions.values().all(Session::is_dense) {
            return false;
        }
        if whole {
            table.trim(high_water);
        }
        *self = table;
        true
    }

    /// The last hole is filled: the table is bounded as any other.
    fn trim(&mut self, high_water: Index) {
        for session in self.sessions.values_mut() {
            self.forgotten = self.forgotten.max(session.trim(RUNS_MAX, high_water));
        }
    }

    /// The entries that are not known.
    pub(crate) fn holes(&self) -> &Ranges {
        &self.holes
    }
}

impl Session {
    /// What `other`, the same session with holes up to `end`, has behind that. False if it does not go on from this one.
    fn go_on(&mut self, other: &Session, end: Index) -> bool {
        if other.key.is_some_and(|key| Some(key) != self.key) {
            return false;
        }
        other.used.iter().filter(|(at, _)| *at > end).for_each(|(at, stamp)| self.used.note(at, stamp));
        if other.forgotten >= self.next() {
            // So much came behind that this one's part is forgotten.
            (self.forgotten, self.runs) = (other.forgotten, other.runs.clone());
            self.sums.clone_from(&other.sums);
            return true;
        }
        let mut known = self.clone();
        for run in other.runs.iter().filter(|run| run.last_index() > end.0) {
            let skip = end.next().0.saturating_sub(run.index);
            let (sequence, index, count) = (run.sequence + skip, run.index + skip, run.count - skip);
            if sequence < known.next() {
                return false;
            }
            match known.runs.back_mut() {
                Some(last) if last.end() == sequence && last.last_index() + 1 == index => last.count += count,
                _ => known.runs.push_back(Run { sequence, index, count }),
            }
        }
        let oldest = if self.sums.is_empty() { other.first_sum() } else { self.first_sum() };
        let first = oldest.max(known.next().saturating_sub(SUMS_MAX)).max(known.forgotten + 1);
        known.sums =
            (first..known.next()).map(|sequence| other.sum(sequence).or(self.sum(sequence))).collect();
        *self = known;
        true
    }

    /// Puts a sequence in between, at `index`. `opened`: the session's own index.
    ///
    /// # Errors
    /// The sequence that would fit there, if it cannot have been this one.
    fn patch(&mut self, sequence: u64, index: u64, opened: u64) -> Result<(), u64> {
        let after = self.runs.partition_point(|run| run.index < index);
        let before = after.checked_sub(1).and_then(|at| self.runs.get(at)).copied();
        let behind = self.runs.get(after).copied();
        let least = before.map_or(self.forgotten + 1, |run| run.end());
        if sequence <= self.forgotten && before.is_none() {
            return Ok(()); // so long ago that where it is need not be known
        }
        let fits = index > opened
            && before.is_none_or(|run| run.last_index() < index)
            && sequence >= least
            && behind.is_none_or(|run| sequence < run.sequence);
        if !fits {
            return Err(least);
        }
        let joins_before = before.is_some_and(|run| run.end() == sequence && run.last_index() + 1 == index);
        let joins_behind = behind.is_some_and(|run| run.sequence == sequence + 1 && run.index == index + 1);
        match (joins_before, joins_behind, after.checked_sub(1)) {
            (true, true, Some(at)) => {
                let more = self.runs.remove(after).map_or(0, |run| run.count);
                if let Some(run) = self.runs.get_mut(at) {
                    run.count += 1 + more;
                }
            }
            (true, false, Some(at)) => {
                if let Some(run) = self.runs.get_mut(at) {
                    run.count += 1;
                }
            }
            (_, true, _) => {
                if let Some(run) = self.runs.get_mut(after) {
                    (run.sequence, run.index, run.count) = (sequence, index, run.count + 1);
                }
            }
            _ => self.runs.insert(after, Run { sequence, index, count: 1 }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{applied, data, entry, open};
    use super::*;
    use proptest::prelude::*;
    use tidelog_types::ReplicatedMs;

    /// The log with these indexes lost.
    fn with_holes(log: &[EntryMeta], lost: &[u64]) -> Sessions {
        let mut sessions = Sessions::default();
        for entry in log {
            let at = entry.position.index;
            if lost.contains(&at.0) {
                sessions.hole(at, at);
            } else {
                sessions.apply(entry, Index::ZERO).unwrap();
            }
        }
        sessions
    }

    #[test]
    fn a_table_with_holes_is_lenient_by_the_holes_and_no_more() {
        let log = [open(1, 7), data(2, 1, 1), data(3, 1, 2), data(4, 1, 3)];
        let sessions = with_holes(&log[..3], &[1, 2]);
        let fails = |entry: EntryMeta| sessions.clone().apply(&entry, Index::ZERO).unwrap_err();
        assert!(matches!(fails(data(4, 1, 4)), Fault::Sequence { .. }), "no hole can have held 3");
        assert!(matches!(fails(data(4, 1, 2)), Fault::Sequence { .. }));
        assert!(matches!(fails(data(4, 3, 1)), Fault::Unknown { .. }), "3 is known, and opened nothing");
        assert!(matches!(fails(data(4, 2, 2)), Fault::Sequence { .. }), "2 may be a session, but a new one");
        assert!(sessions.clone().apply(&data(4, 2, 1), Index::ZERO).is_ok());
        let refuses = |entry: EntryMeta| sessions.clone().patch(&entry, Index::ZERO).unwrap_err();
        assert!(matches!(refuses(data(2, 1, 2)), Fault::Sequence { .. }), "2 is at index 3");
        assert!(matches!(refuses(entry(1, RecordKind::Noop)), Fault::Unknown { .. }), "1 opened a session");
        let mut sessions = sessions;
        sessions.patch(&log[0], Index::ZERO).unwrap();
        let before = sessions.clone();
        let gap = sessions.patch(&entry(2, RecordKind::Noop), Index::ZERO);
        assert!(matches!(gap, Err(Fault::Sequence { .. })), "then sequence 1 would be missing: {gap:?}");
        assert_eq!(sessions, before);
        sessions.patch(&log[1], Index::ZERO).unwrap();
        sessions.apply(&log[3], Index::ZERO).unwrap();
        assert_eq!(sessions, applied(&log));
    }

    #[test]
    fn a_prefix_that_another_log_had_is_not_recalled() {
        let log = [open(1, 7), data(2, 1, 1), data(3, 1, 2), data(4, 1, 3)];
        for other in
            [&[open(1, 8), data(2, 1, 1)][..], &[open(1, 7)], &[open(1, 7), entry(2, RecordKind::Noop)]]
        {
            let mut sessions = with_holes(&log, &[2]);
            let before = sessions.clone();
            assert!(!sessions.recall(&applied(other), Index(2), Index::ZERO), "{other:?}");
            assert_eq!(sessions, before);
        }
    }

    /// Any log of a few sessions.
    fn log() -> impl Strategy<Value = Vec<EntryMeta>> {
        proptest::collection::vec((0u8..8, 0u64..8), 1..60).prop_map(|steps| {
            let mut log: Vec<EntryMeta> = Vec::new();
            let mut sessions = Sessions::default();
            for (what, number) in steps {
                let index = log.len() as u64 + 1;
                let ids: Vec<u64> =
                    log.iter().filter(|e| e.session_key.is_some()).map(|e| e.position.index.0).collect();
                let next = match what {
                    0 | 1 => open(index, u128::from(number)),
                    2 => entry(index, RecordKind::Noop),
                    _ if ids.is_empty() => entry(index, RecordKind::Data),
                    _ => {
                        let id = ids[number as usize % ids.len()];
                        let of_it = |e: &&EntryMeta| e.session.is_some_and(|s| s.session.0 == id);
                        data(index, id, log.iter().filter(of_it).count() as u64 + 1)
                    }
                };
                let next = EntryMeta {
                    timestamp: ReplicatedMs(index / 4 * number.max(1))
                        .max(log.last().map_or(ReplicatedMs(0), |e| e.timestamp)),
                    session_expiry_ms: if next.session_key.is_some() && number % 2 == 0 { 20 } else { 0 },
                    payload_crc: index as u32,
                    ..next
                };
                if sessions.apply(&next, Index::ZERO).is_ok() {
                    log.push(next);
                }
            }
            log
        })
    }

    proptest! {
        /// Whatever is lost, in whatever order it is found again, before or after a cut: once nothing is missing the table
        /// is that of the log.
        #[test]
        fn a_patched_table_is_that_of_the_log(
            log in log(),
            lost in proptest::collection::vec(1u64..60, 1..12),
            early in 0usize..12,
            cut in proptest::option::of(0u64..60),
        ) {
            let mut log = log;
            let mut lost: Vec<u64> = lost.into_iter().filter(|i| *i <= log.len() as u64).collect();
            let mut sessions = with_holes(&log, &lost);
            for index in lost.drain(..early.min(lost.len())) {
                sessions.patch(&log[index as usize - 1], Index::ZERO).unwrap();
            }
            if let Some(keep) = cut.filter(|keep| *keep <= log.len() as u64) {
                log.truncate(keep as usize);
                sessions.cut(Index(keep));
                lost.retain(|i| *i <= keep);
            }
            for index in lost {
                sessions.patch(&log[index as usize - 1], Index::ZERO).unwrap();
            }
            prop_assert_eq!(sessions, applied(&log));
        }

        /// A table of a prefix fills all its holes at once; those behind it stay.
        #[test]
        fn a_recalled_table_is_that_of_the_log(
            log in log(),
            lost in proptest::collection::vec(1u64..60, 1..12),
            end in 0usize..60,
        ) {
            let end = end.min(log.len());
            let mut sessions = with_holes(&log, &lost);
            prop_assert!(sessions.recall(&applied(&log[..end]), Index(end as u64), Index::ZERO));
            let first = sessions.holes().first_from(Index(1));
            prop_assert!(first.is_none_or(|(first, _)| first > Index(end as u64)));
            for index in lost.into_iter().filter(|i| *i > end as u64 && *i <= log.len() as u64) {
                sessions.patch(&log[index as usize - 1], Index::ZERO).unwrap();
            }
            prop_assert_eq!(sessions, applied(&log));
        }
    }
}
