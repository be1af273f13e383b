//! Sessions: which (session, sequence) is at which index.
//!
//! A function of the log, its uncommitted end included, and undone by cuts: the leader admits against the end
//! of its own log, so a retry finds its first attempt wherever that is. A session is its opening entry; its id
//! is that entry's index. Within a session, sequences are dense from 1, kept as runs of consecutive sequences
//! at consecutive indexes; only the newest [`RUNS_MAX`] runs are kept, and only committed ones are forgotten,
//! because what a cut may still remove must be known to the cut.
//!
//! Promises that [`Sessions::apply`] lets each (session, sequence) into a log at most once, in order. Does not
//! know the clients, time, or what is durable. An entry that does not fit is refused with its [`Fault`] and
//! changes nothing. A table is also kept in snapshots ([`crate::base`]), as of the entry that they cover.
//!
//! What it knows of entries whose bytes are lost is in [`holes`].

mod holes;

use crate::base::{BaseError, Input, put};
use crate::ranges::Ranges;
use std::collections::{BTreeMap, VecDeque};
use tidelog_types::{EntryMeta, FixedMap, Index, RecordKind, Sequence, SessionId, SessionKey, SessionRef};

/// Most runs kept of one session. A session that writes alone has one; interleaved with others, this is how
/// many of its newest requests can be answered with their index when they are asked again.
pub const RUNS_MAX: usize = 1024;
/// Most sessions of one partition; opening more is refused as busy. (Entries of a log are always accepted.)
pub const SESSIONS_MAX: usize = 4096;

/// Consecutive sequences at consecutive indexes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    sequence: u64,
    index: u64,
    count: u64,
}

impl Run {
    fn last_index(&self) -> u64 {
        self.index + (self.count - 1)
    }

    /// The sequence behind the last one.
    fn end(&self) -> u64 {
        self.sequence + self.count
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    /// None: the entry that opened it is a hole.
    key: Option<SessionKey>,
    /// The highest sequence whose run was forgotten.
    forgotten: u64,
    /// Ascending in both fields, and dense behind `forgotten` but for holes.
    runs: VecDeque<Run>,
}

impl Session {
    fn new(key: Option<SessionKey>) -> Session {
        Session { key, forgotten: 0, runs: VecDeque::new() }
    }

    /// The sequence that is admitted next, as far as known.
    fn next(&self) -> u64 {
        self.runs.back().map_or(self.forgotten + 1, Run::end)
    }

    /// Whether all of it is known.
    fn is_dense(&self) -> bool {
        let mut next = self.forgotten + 1;
        self.key.is_some()
            && self.runs.iter().all(|run| core::mem::replace(&mut next, run.end()) == run.sequence)
    }

    /// Forgets the oldest runs above the bound, as far as they can no longer be cut. Returns the last entry of those.
    fn trim(&mut self, runs_max: usize, high_water: Index) -> Index {
        let mut last = Index::ZERO;
        while self.runs.len() > runs_max
            && let Some(run) = self.runs.front().filter(|run| run.last_index() <= high_water.0)
        {
            self.forgotten = run.end() - 1;
            last = Index(run.last_index());
            self.runs.pop_front();
        }
        last
    }
}

/// Why an entry does not fit behind the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// No entry of the log opened the session.
    #[error("session {session} was never opened in this log")]
    Unknown {
        /// The session named.
        session: SessionId,
    },
    /// The sequence is in the log already, or one before it is not.
    #[error("session {session} is at sequence {expected}, the entry has {found}")]
    Sequence {
        /// The session.
        session: SessionId,
        /// What comes next in it.
        expected: Sequence,
        /// What the entry has.
        found: Sequence,
    },
    /// A session is open under this key.
    #[error("session {session} has this key already")]
    KeyInUse {
        /// The session that has it.
        session: SessionId,
    },
}

/// Where a request of a session stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing {
    /// The next one: may be appended.
    Next,
    /// In the log, at this index.
    At(Index),
    /// In the log, too long ago to know where.
    TooOld,
    /// One before it is missing.
    Gap {
        /// The sequence that is.
        expected: Sequence,
    },
    /// No such session.
    Unknown,
}

/// All sessions of a log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sessions {
    /// The keys are indexes of the log, never what a client chose, so the fixed hasher cannot be attacked.
    sessions: FixedMap<SessionId, Session>,
    keys: BTreeMap<SessionKey, SessionId>,
    /// The last entry of any run forgotten.
    forgotten: Index,
    /// Entries that are in the log and not known.
    holes: Ranges,
}

impl Sessions {
    /// The session open under `key`.
    pub(crate) fn by_key(&self, key: SessionKey) -> Option<SessionId> {
        self.keys.get(&key).copied()
    }

    /// Whether another session may be opened by a client.
    pub(crate) fn is_full(&self) -> bool {
        self.sessions.len() >= SESSIONS_MAX
    }

    /// Where a request stands.
    pub(crate) fn standing(&self, request: SessionRef) -> Standing {
        let Some(session) = self.sessions.get(&request.session) else { return Standing::Unknown };
        let (sequence, next) = (request.sequence.0, session.next());
        if sequence == next {
            return Standing::Next;
        }
        if sequence > next {
            return Standing::Gap { expected: Sequence(next) };
        }
        let after = session.runs.partition_point(|run| run.sequence <= sequence);
        match after.checked_sub(1).and_then(|at| session.runs.get(at)) {
            Some(run) => Standing::At(Index(run.index + (sequence - run.sequence))),
            None => Standing::TooOld,
        }
    }

    /// The entry becomes the log's last one. `high_water`: what can no longer be cut.
    ///
    /// # Errors
    /// If it does not fit; then nothing changed.
    pub(crate) fn apply(&mut self, entry: &EntryMeta, high_water: Index) -> Result<(), Fault> {
        let index = entry.position.index.0;
        if let (RecordKind::SessionOpen, Some(key)) = (entry.kind, entry.session_key) {
            if let Some(session) = self.by_key(key) {
                return Err(Fault::KeyInUse { session });
            }
            self.keys.insert(key, SessionId(index));
            self.sessions.insert(SessionId(index), Session::new(Some(key)));
        }
        let Some(SessionRef { session: id, sequence }) = entry.session else { return Ok(()) };
        // A hole may have opened it.
        let unknown = !self.sessions.contains_key(&id);
        if unknown && (self.holes.is_empty() || !self.holes.contains(Index(id.0))) {
            return Err(Fault::Unknown { session: id });
        }
        let fresh = Session::new(None);
        let session = self.sessions.get(&id).unwrap_or(&fresh);
        // Holes behind the last one known may have held the sequences between.
        let (next, after) = (session.next(), session.runs.back().map_or(id.0, Run::last_index));
        let skipped = sequence.0.checked_sub(next);
        let fits = skipped == Some(0)
            || skipped.is_some_and(|n| n <= self.holes.count_within(Index(after).next(), Index(index)));
        if !fits {
            return Err(Fault::Sequence { session: id, expected: Sequence(next), found: sequence });
        }
        let runs_max = self.runs_max();
        let session = self.sessions.entry(id).or_insert(fresh);
        match session.runs.back_mut() {
            Some(run) if run.last_index() + 1 == index && run.end() == sequence.0 => run.count += 1,
            _ => session.runs.push_back(Run { sequence: sequence.0, index, count: 1 }),
        }
        let trimmed = session.trim(runs_max, high_water);
        self.forgotten = self.forgotten.max(trimmed);
        Ok(())
    }

    /// Entries above `keep` are gone, and with them all that they did. `keep` is at or above every mark given
    /// to [`Sessions::apply`], so the runs that it undoes are all known.
    pub(crate) fn cut(&mut self, keep: Index) {
        self.sessions.retain(|id, _| id.0 <= keep.0);
        self.keys.retain(|_, id| id.0 <= keep.0);
        self.holes.cut(keep);
        for session in self.sessions.values_mut() {
            while let Some(run) = session.runs.back_mut().filter(|run| run.last_index() > keep.0) {
                if run.index > keep.0 {
                    session.runs.pop_back();
                } else {
                    run.count = keep.0 - run.index + 1;
                }
            }
        }
        // Known only by entries that are gone now: what the hole did is open again.
        self.sessions
            .retain(|_, session| session.key.is_some() || !session.runs.is_empty() || session.forgotten > 0);
    }

    /// The table as of entry `index`; none if it cannot be told, because runs above it were forgotten or an entry up to it
    /// is a hole.
    pub(crate) fn as_of(&self, index: Index) -> Option<Sessions> {
        let known = self.holes.first_from(Index(1)).is_none_or(|(first, _)| first > index);
        (known && self.forgotten <= index).then(|| {
            let mut table = self.clone();
            table.cut(index);
            table
        })
    }

    /// Appends the table's bytes: the last entry forgotten, the count, then each session in the order of ids. Holes are not
    /// among them.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        put(out, self.forgotten.0);
        put(out, ids.len() as u64);
        for id in ids {
            let Some(session) = self.sessions.get(&id) else { continue };
            put(out, id.0);
            put(out, u64::from(session.key.is_some()));
            out.extend_from_slice(&session.key.map_or(0, |key| key.0).to_le_bytes());
            put(out, session.forgotten);
            put(out, session.runs.len() as u64);
            for run in &session.runs {
                [run.sequence, run.index, run.count].iter().for_each(|number| put(out, *number));
            }
        }
    }

    /// The table of a log that ends at `last`, in which the entries `holes` are not known.
    ///
    /// # Errors
    /// In which way the bytes are not such a table.
    pub(crate) fn decode(input: &mut Input<'_>, last: Index, holes: Ranges) -> Result<Sessions, BaseError> {
        const WRONG: BaseError = BaseError::Contradiction("sessions");
        let mut table = Sessions { forgotten: Index(input.number()?), holes, ..Sessions::default() };
        let strict = table.holes.is_empty();
        let mut before = 0;
        for _ in 0..input.count(48)? {
            let id = input.number()?;
            let keyed = input.number()?;
            let key = u128::from(input.number()?) | u128::from(input.number()?) << 64;
            let key = (keyed == 1).then_some(SessionKey(key));
            let forgotten = input.number()?;
            let mut runs = VecDeque::new();
            // The sequence and the index behind what comes before.
            let mut end = (forgotten.checked_add(1).ok_or(WRONG)?, id.checked_add(1).ok_or(WRONG)?);
            for _ in 0..input.count(24)? {
                let run = Run { sequence: input.number()?, index: input.number()?, count: input.number()? };
                let behind = (run.sequence.checked_add(run.count), run.index.checked_add(run.count));
                let (Some(sequence), Some(index)) = behind else { return Err(WRONG) };
                let follows = if strict { run.sequence == end.0 } else { run.sequence >= end.0 };
                if run.count == 0 || !follows || run.index < end.1 || index - 1 > last.0 {
                    return Err(WRONG);
                }
                end = (sequence, index);
                runs.push_back(run);
            }
            let opened = key.is_some() || table.holes.contains(Index(id));
            if id <= before || id > last.0 || keyed > 1 || !opened {
                return Err(WRONG);
            }
            before = id;
            if key.is_some_and(|key| table.keys.insert(key, SessionId(id)).is_some()) {
                return Err(WRONG);
            }
            table.sessions.insert(SessionId(id), Session { key, forgotten, runs });
        }
        Ok(table)
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidelog_types::{Generation, Position, ReplicatedMs};

    pub(super) fn entry(index: u64, kind: RecordKind) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(1)),
            prev_generation: Generation(1),
            kind,
            session: None,
            session_key: None,
            log_start: None,
            timestamp: ReplicatedMs(0),
            record_bytes: 64,
        }
    }

    pub(super) fn open(index: u64, key: u128) -> EntryMeta {
        EntryMeta { session_key: Some(SessionKey(key)), ..entry(index, RecordKind::SessionOpen) }
    }

    pub(super) fn data(index: u64, session: u64, sequence: u64) -> EntryMeta {
        EntryMeta { session: Some(request(session, sequence)), ..entry(index, RecordKind::Data) }
    }

    pub(super) fn request(session: u64, sequence: u64) -> SessionRef {
        SessionRef { session: SessionId(session), sequence: Sequence(sequence) }
    }

    pub(super) fn applied(entries: &[EntryMeta]) -> Sessions {
        let mut sessions = Sessions::default();
        for entry in entries {
            sessions.apply(entry, Index::ZERO).unwrap();
        }
        sessions
    }

    #[test]
    fn a_request_stands_where_it_was_first_appended() {
        let sessions =
            applied(&[open(1, 7), data(2, 1, 1), data(3, 1, 2), entry(4, RecordKind::Noop), data(5, 1, 3)]);
        assert_eq!(sessions.by_key(SessionKey(7)), Some(SessionId(1)));
        for (sequence, index) in [(1, 2), (2, 3), (3, 5)] {
            assert_eq!(sessions.standing(request(1, sequence)), Standing::At(Index(index)));
        }
        assert_eq!(sessions.standing(request(1, 4)), Standing::Next);
        assert_eq!(sessions.standing(request(1, 6)), Standing::Gap { expected: Sequence(4) });
        assert_eq!(sessions.standing(request(2, 1)), Standing::Unknown);
        assert_eq!(sessions.standing(request(1, 0)), Standing::TooOld, "sequences begin at 1");
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut sessions = applied(&[open(1, 7), data(2, 1, 1)]);
        let before = sessions.clone();
        let again = sessions.apply(&data(3, 1, 1), Index::ZERO);
        assert_eq!(
            again,
            Err(Fault::Sequence { session: SessionId(1), expected: Sequence(2), found: Sequence(1) })
        );
        assert!(sessions.apply(&data(3, 1, 3), Index::ZERO).is_err());
        assert_eq!(
            sessions.apply(&data(3, 9, 1), Index::ZERO),
            Err(Fault::Unknown { session: SessionId(9) })
        );
        assert_eq!(sessions.apply(&open(3, 7), Index::ZERO), Err(Fault::KeyInUse { session: SessionId(1) }));
        assert_eq!(sessions, before);
    }

    #[test]
    fn the_oldest_committed_runs_are_forgotten_and_only_those() {
        let mut sessions = applied(&[open(1, 1), open(2, 2)]);
        let interleaved = |sessions: &mut Sessions, from: u64, to: u64, high_water| {
            for i in from..=to {
                sessions.apply(&data(1 + 2 * i, 1, i), high_water).unwrap();
                sessions.apply(&data(2 + 2 * i, 2, i), high_water).unwrap();
            }
        };
        interleaved(&mut sessions, 1, 3000, Index::ZERO);
        assert_eq!(sessions.standing(request(1, 1)), Standing::At(Index(3)), "nothing is committed");
        interleaved(&mut sessions, 3001, 3001, Index(6002));
        assert_eq!(sessions.standing(request(1, 1)), Standing::TooOld);
        assert_eq!(sessions.standing(request(1, 3001)), Standing::At(Index(6003)));
        sessions.cut(Index(6002));
        assert_eq!(sessions.standing(request(1, 3001)), Standing::Next);
        assert_eq!(sessions.standing(request(1, 3000)), Standing::At(Index(6001)));
    }

    #[test]
    fn a_table_of_the_past_is_told_or_refused() {
        let log = [open(1, 7), data(2, 1, 1), entry(3, RecordKind::Noop), data(4, 1, 2), open(5, 9)];
        let sessions = applied(&log);
        for end in 0..=log.len() {
            assert_eq!(sessions.as_of(Index(end as u64)), Some(applied(&log[..end])));
        }
        let mut sessions = applied(&[open(1, 1), open(2, 2)]);
        for i in 1..=2000 {
            sessions.apply(&data(1 + 2 * i, 1, i), Index(1 + 2 * i)).unwrap();
            sessions.apply(&data(2 + 2 * i, 2, i), Index(2 + 2 * i)).unwrap();
        }
        assert_eq!(sessions.as_of(Index(1900)), None, "runs behind it were forgotten");
        let table = sessions.as_of(Index(3000)).unwrap();
        assert_eq!(table.standing(request(1, 1499)), Standing::At(Index(2999)));
        assert_eq!(table.standing(request(1, 1500)), Standing::Next);
    }

    proptest! {
        /// After any appends and cuts the table is what applying the remaining log gives.
        #[test]
        fn the_table_is_a_function_of_the_log(steps in proptest::collection::vec((0u8..8, 0u64..8), 1..80)) {
            let mut log: Vec<EntryMeta> = Vec::new();
            let mut sessions = Sessions::default();
            for (what, number) in steps {
                let index = log.len() as u64 + 1;
                let next = match what {
                    0 => {
                        let keep = (log.len() as u64).saturating_sub(number);
                        log.truncate(keep as usize);
                        sessions.cut(Index(keep));
                        None
                    }
                    1 => Some(open(index, u128::from(number))),
                    2 => Some(entry(index, RecordKind::Noop)),
                    _ => {
                        let ids: Vec<u64> = log.iter().filter(|e| e.session_key.is_some()).map(|e| e.position.index.0).collect();
                        ids.get(number as usize % ids.len().max(1)).map(|id| {
                            let used = log.iter().filter(|e| e.session.is_some_and(|s| s.session.0 == *id)).count() as u64;
                            data(index, *id, used + 1 + u64::from(what == 3))
                        })
                    }
                };
                if let Some(next) = next && sessions.apply(&next, Index::ZERO).is_ok() {
                    log.push(next);
                }
                prop_assert_eq!(&sessions, &applied(&log));
                for e in &log {
                    if let Some(request) = e.session {
                        prop_assert_eq!(sessions.standing(request), Standing::At(e.position.index));
                    }
                }
            }
        }
    }
}
