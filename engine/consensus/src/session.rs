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
//! changes nothing.

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
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Session {
    key: SessionKey,
    /// The sequence that is admitted next.
    next: u64,
    /// Ascending, without a hole up to `next`; the oldest may be forgotten.
    runs: VecDeque<Run>,
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
        let sequence = request.sequence.0;
        if sequence == session.next {
            return Standing::Next;
        }
        if sequence > session.next {
            return Standing::Gap { expected: Sequence(session.next) };
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
            self.sessions.insert(SessionId(index), Session { key, next: 1, runs: VecDeque::new() });
        }
        let Some(SessionRef { session: id, sequence }) = entry.session else { return Ok(()) };
        let session = self.sessions.get_mut(&id).ok_or(Fault::Unknown { session: id })?;
        if sequence.0 != session.next {
            return Err(Fault::Sequence { session: id, expected: Sequence(session.next), found: sequence });
        }
        session.next += 1;
        match session.runs.back_mut() {
            Some(run) if run.last_index() + 1 == index => run.count += 1,
            _ => session.runs.push_back(Run { sequence: sequence.0, index, count: 1 }),
        }
        while session.runs.len() > RUNS_MAX
            && session.runs.front().is_some_and(|run| run.last_index() <= high_water.0)
        {
            session.runs.pop_front();
        }
        Ok(())
    }

    /// Entries above `keep` are gone, and with them all that they did. `keep` is at or above every mark given
    /// to [`Sessions::apply`], so the runs that it undoes are all known.
    pub(crate) fn cut(&mut self, keep: Index) {
        self.sessions.retain(|id, _| id.0 <= keep.0);
        self.keys.retain(|_, id| id.0 <= keep.0);
        for session in self.sessions.values_mut() {
            while let Some(run) = session.runs.back_mut().filter(|run| run.last_index() > keep.0) {
                if run.index > keep.0 {
                    session.next = run.sequence;
                    session.runs.pop_back();
                } else {
                    run.count = keep.0 - run.index + 1;
                    session.next = run.sequence + run.count;
                }
            }
        }
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

    fn entry(index: u64, kind: RecordKind) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(1)),
            prev_generation: Generation(1),
            kind,
            session: None,
            session_key: None,
            timestamp: ReplicatedMs(0),
            record_bytes: 64,
        }
    }

    fn open(index: u64, key: u128) -> EntryMeta {
        EntryMeta { session_key: Some(SessionKey(key)), ..entry(index, RecordKind::SessionOpen) }
    }

    fn data(index: u64, session: u64, sequence: u64) -> EntryMeta {
        EntryMeta { session: Some(request(session, sequence)), ..entry(index, RecordKind::Data) }
    }

    fn request(session: u64, sequence: u64) -> SessionRef {
        SessionRef { session: SessionId(session), sequence: Sequence(sequence) }
    }

    fn applied(entries: &[EntryMeta]) -> Sessions {
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
