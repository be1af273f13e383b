//! Sessions: which (session, sequence) is at which index.
//!
//! A function of the log, its uncommitted end included, and undone by cuts: the leader admits against the end
//! of its own log, so a retry finds its first attempt wherever that is. A session is its opening entry; its id
//! is that entry's index. Within a session, sequences are dense from 1, kept as runs of consecutive sequences
//! at consecutive indexes; only the newest [`RUNS_MAX`] runs and [`RETRIES_KEPT`] sequences are kept, and only committed
//! ones are forgotten, because what a cut may still remove must be known to the cut. For each sequence kept, the
//! checksum of its payload is known: whoever asks for the same sequence with another payload is told so.
//!
//! **Expiry.** A session's opening entry says for how long it lives without use. It has expired for every entry whose stamp is
//! so much later than the last entry that opened or used it: a property of the log and of nothing else, so every replica
//! sees the same, and a cut undoes it. The table keeps an expired session until a committed entry proves the expiry.
//!
//! Promises that [`Sessions::apply`] lets each (session, sequence) into a log at most once, in order, and never after
//! the session expired. Does not know the clients, clocks, or what is durable. An entry that does not fit is refused with
//! its [`Fault`] and changes nothing. A table is also kept in snapshots ([`crate::base`]), as of the entry that they cover.
//!
//! What it knows of entries whose bytes are lost is in [`holes`], one session in [`state`], its bytes in [`bytes`].

mod bytes;
mod holes;
mod state;
mod times;

use crate::ranges::Ranges;
use state::Session;
use std::collections::BTreeMap;
use tidelog_types::{
    EntryMeta, FixedMap, Index, RecordKind, ReplicatedMs, Sequence, SessionId, SessionKey, SessionRef,
};
use times::Times;

/// Most runs kept of one session. A session that writes alone has one; interleaved with others, this is how
/// many of its newest requests can be answered with their index when they are asked again.
pub const RUNS_MAX: usize = 1024;
/// Sequences of one session that can be answered with their index when they are asked again: its newest.
pub const RETRIES_KEPT: usize = 4096;
/// Most sessions of one partition that have not expired; opening more is refused. (Entries of a log are always accepted.)
pub const SESSIONS_MAX: usize = 4096;
/// Most sessions in the table, those included whose expiry is not committed yet.
const TABLE_MAX: usize = 2 * SESSIONS_MAX;
/// Every so many openings, sessions that expired are let go of.
const SWEEP_EVERY: usize = 64;

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

/// Why an entry does not fit behind the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// No entry of the log opened the session, or it has expired.
    #[error("session {session} was never opened in this log, or has expired")]
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
    /// In the log, at this index, with another payload.
    Reused(Index),
    /// In the log, too long ago to know where.
    TooOld,
    /// One before it is missing.
    Gap {
        /// The sequence that is.
        expected: Sequence,
    },
    /// No such session, or it has expired.
    Expired,
}

/// Why no session can be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Full {
    /// As many as may be are open: none expires before this time.
    Until(ReplicatedMs),
    /// Enough have expired, and their expiry is about to be committed.
    ForNow,
}

/// All sessions of a log.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Sessions {
    /// The keys are indexes of the log, never what a client chose, so the fixed hasher cannot be attacked.
    sessions: FixedMap<SessionId, Session>,
    /// The newest session of each key.
    keys: BTreeMap<SessionKey, SessionId>,
    /// The table as of an earlier entry than this cannot be told: a place, or a session, was forgotten.
    forgotten: Index,
    /// The log's stamps.
    time: Times,
    /// Entries that are in the log and not known.
    holes: Ranges,
}

impl Sessions {
    /// The session open under `key` at that time.
    pub(crate) fn by_key(&self, key: SessionKey, at: ReplicatedMs) -> Option<SessionId> {
        self.keys.get(&key).copied().filter(|id| self.sessions.get(id).is_some_and(|s| !s.is_expired(at)))
    }

    /// Whether another session may be opened by a client at that time; if not, when the first one of those that are open
    /// can expire.
    pub(crate) fn room(&self, at: ReplicatedMs) -> Result<(), Full> {
        if self.sessions.len() < SESSIONS_MAX {
            return Ok(());
        }
        let open = || self.sessions.values().filter(|session| !session.is_expired(at));
        if open().count() < SESSIONS_MAX {
            return if self.sessions.len() < TABLE_MAX { Ok(()) } else { Err(Full::ForNow) };
        }
        let first = open().filter_map(Session::expires_at).min();
        Err(Full::Until(first.unwrap_or(ReplicatedMs(u64::MAX))))
    }

    /// Whether the session is in the table and has expired at that time, though no entry of the log proves it yet.
    pub(crate) fn expires_unproven(&self, session: SessionId, at: ReplicatedMs) -> bool {
        let end = self.time.last().unwrap_or(ReplicatedMs(0));
        self.sessions.get(&session).is_some_and(|session| session.is_expired(at) && !session.is_expired(end))
    }

    /// Where a request for an entry stamped `at` stands, whose payload has the checksum `sum`.
    pub(crate) fn standing(&self, request: SessionRef, at: ReplicatedMs, sum: u32) -> Standing {
        let session = self.sessions.get(&request.session).filter(|session| !session.is_expired(at));
        let Some(session) = session else { return Standing::Expired };
        let (sequence, next) = (request.sequence.0, session.next());
        if sequence == next {
            return Standing::Next;
        }
        if sequence > next {
            return Standing::Gap { expected: Sequence(next) };
        }
        match (session.place(sequence), session.sum(sequence)) {
            (Some(index), Some(known)) if known != sum => Standing::Reused(index),
            (Some(index), _) => Standing::At(index),
            (None, _) => Standing::TooOld,
        }
    }

    /// The entry becomes the log's last one. `high_water`: what can no longer be cut.
    ///
    /// # Errors
    /// If it does not fit; then nothing changed.
    pub(crate) fn apply(&mut self, entry: &EntryMeta, high_water: Index) -> Result<(), Fault> {
        let (index, stamp) = (entry.position.index, entry.timestamp);
        match (entry.kind, entry.session_key, entry.session) {
            (RecordKind::SessionOpen, Some(key), _) => self.open(key, entry, high_water)?,
            (_, _, Some(request)) => self.place(request, entry, high_water)?,
            _ => {}
        }
        self.time.note(index, stamp);
        self.time.settle(high_water);
        Ok(())
    }

    fn open(&mut self, key: SessionKey, entry: &EntryMeta, high_water: Index) -> Result<(), Fault> {
        if let Some(session) = self.by_key(key, entry.timestamp) {
            return Err(Fault::KeyInUse { session });
        }
        if self.sessions.len().is_multiple_of(SWEEP_EVERY) {
            self.sweep(high_water);
        }
        let index = entry.position.index;
        let mut session =
            Session { key: Some(key), expiry_ms: entry.session_expiry_ms, ..Session::default() };
        session.used.note(index, entry.timestamp);
        self.keys.insert(key, SessionId(index.0));
        self.sessions.insert(SessionId(index.0), session);
        Ok(())
    }

    fn place(&mut self, request: SessionRef, entry: &EntryMeta, high_water: Index) -> Result<(), Fault> {
        let (index, SessionRef { session: id, sequence }) = (entry.position.index, request);
        // A hole may have opened it.
        let unknown = !self.sessions.contains_key(&id);
        if unknown && (self.holes.is_empty() || !self.holes.contains(Index(id.0))) {
            return Err(Fault::Unknown { session: id });
        }
        let fresh = Session::default();
        let session = self.sessions.get(&id).unwrap_or(&fresh);
        // Holes behind the last one known may have held the sequences between.
        let (next, after) = (session.next(), session.runs.back().map_or(id.0, Run::last_index));
        let skipped = sequence.0.checked_sub(next);
        let fits = skipped == Some(0)
            || skipped.is_some_and(|n| n <= self.holes.count_within(Index(after).next(), index));
        if !fits {
            return Err(Fault::Sequence { session: id, expected: Sequence(next), found: sequence });
        }
        // Only a hole that held a sequence of it can have kept it alive.
        if skipped == Some(0) && session.is_expired(entry.timestamp) {
            return Err(Fault::Unknown { session: id });
        }
        let runs_max = self.runs_max();
        let session = self.sessions.entry(id).or_insert(fresh);
        session.push(sequence.0, index.0, entry.payload_crc);
        session.used.note(index, entry.timestamp);
        session.used.settle(high_water);
        let trimmed = session.trim(runs_max, high_water);
        self.forgotten = self.forgotten.max(trimmed);
        Ok(())
    }

    /// Lets go of the sessions whose expiry is proven by an entry that can no longer be cut.
    fn sweep(&mut self, high_water: Index) {
        let Some((proof, now)) = self.time.at(high_water) else { return };
        let (before, holes) = (self.sessions.len(), &self.holes);
        self.sessions.retain(|id, session| {
            session.used.settle(high_water);
            // A hole may have used it.
            !session.is_expired(now)
                || !holes.is_empty() && holes.count_within(Index(id.0), Index(u64::MAX)) > 0
        });
        if self.sessions.len() < before {
            self.forgotten = self.forgotten.max(proof);
            self.find_keys();
        }
    }

    /// Entries above `keep` are gone, and with them all that they did. `keep` is at or above every mark given
    /// to [`Sessions::apply`], so what it undoes is all known.
    pub(crate) fn cut(&mut self, keep: Index) {
        let before = self.sessions.len();
        self.sessions.retain(|id, _| id.0 <= keep.0);
        self.holes.cut(keep);
        self.time.cut(keep);
        self.sessions.values_mut().for_each(|session| session.cut(keep));
        // Known only by entries that are gone now: what the hole did is open again.
        self.sessions
            .retain(|_, session| session.key.is_some() || !session.runs.is_empty() || session.forgotten > 0);
        if self.sessions.len() < before {
            self.find_keys();
        }
    }

    /// The newest session of each key, from the sessions.
    fn find_keys(&mut self) {
        self.keys.clear();
        for (id, session) in &self.sessions {
            if let Some(key) = session.key {
                let newest = self.keys.entry(key).or_insert(*id);
                *newest = (*newest).max(*id);
            }
        }
    }

    /// Whether a session has a key that another one had when it was opened.
    fn keys_contradict(&self) -> bool {
        if self.keys.len() == self.sessions.len() {
            return false;
        }
        let keyed = self.sessions.iter().filter_map(|(id, session)| Some((session.key?, *id, session)));
        let mut keyed: Vec<_> = keyed.collect();
        keyed.sort_unstable_by_key(|(key, id, _)| (*key, *id));
        keyed.windows(2).any(|pair| {
            let [(key, _, older), (other, _, newer)] = pair else { return false };
            // Its own opening may be thinned out; then it was used later still.
            key == other && newer.used.first().is_none_or(|(_, stamp)| !older.is_expired(stamp))
        })
    }

    /// The table as of entry `index`; none if it cannot be told, because what was told apart up to it was forgotten, or an entry
    /// up to it is a hole.
    pub(crate) fn as_of(&self, index: Index) -> Option<Sessions> {
        let known = self.holes.first_from(Index(1)).is_none_or(|(first, _)| first > index);
        let told = |(id, session): (&SessionId, &Session)| {
            id.0 > index.0 || session.expiry_ms == 0 || session.used.at(index).is_some()
        };
        (known && self.forgotten <= index && self.sessions.iter().all(told)).then(|| {
            let mut table = self.clone();
            table.cut(index);
            table
        })
    }

    /// How many are open.
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Input;
    use proptest::prelude::*;
    use tidelog_types::{Generation, Position, ReplicatedMs};

    pub(super) fn entry(index: u64, kind: RecordKind) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(1)),
            prev_generation: Generation(1),
            kind,
            session: None,
            session_key: None,
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(0),
            record_bytes: 64,
            payload_crc: 0,
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

    fn at(sessions: &Sessions, session: u64, sequence: u64) -> Standing {
        sessions.standing(request(session, sequence), ReplicatedMs(0), 0)
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
        assert_eq!(sessions.by_key(SessionKey(7), ReplicatedMs(0)), Some(SessionId(1)));
        for (sequence, index) in [(1, 2), (2, 3), (3, 5)] {
            assert_eq!(at(&sessions, 1, sequence), Standing::At(Index(index)));
        }
        assert_eq!(at(&sessions, 1, 4), Standing::Next);
        assert_eq!(at(&sessions, 1, 6), Standing::Gap { expected: Sequence(4) });
        assert_eq!(at(&sessions, 2, 1), Standing::Expired);
        assert_eq!(at(&sessions, 1, 0), Standing::TooOld, "sequences begin at 1");
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
        assert_eq!(at(&sessions, 1, 1), Standing::At(Index(3)), "nothing is committed");
        interleaved(&mut sessions, 3001, 3001, Index(6002));
        assert_eq!(at(&sessions, 1, 1), Standing::TooOld);
        assert_eq!(at(&sessions, 1, 3001), Standing::At(Index(6003)));
        sessions.cut(Index(6002));
        assert_eq!(at(&sessions, 1, 3001), Standing::Next);
        assert_eq!(at(&sessions, 1, 3000), Standing::At(Index(6001)));
    }

    #[test]
    fn only_so_many_retries_are_told_their_place() {
        let mut sessions = applied(&[open(1, 1)]);
        let last = RETRIES_KEPT as u64 + 100;
        for i in 1..=last {
            sessions.apply(&EntryMeta { payload_crc: 5, ..data(1 + i, 1, i) }, Index(1 + i)).unwrap();
        }
        let standing = |sequence, sum| sessions.standing(request(1, sequence), ReplicatedMs(0), sum);
        assert_eq!(standing(99, 5), Standing::TooOld);
        assert_eq!(standing(101, 5), Standing::At(Index(102)));
        assert_eq!(standing(101, 6), Standing::Reused(Index(102)));
        let mut cut = sessions.clone();
        cut.cut(Index(last - 50));
        assert_eq!(at(&cut, 1, last - 50), Standing::Next);
        assert_eq!(
            cut.standing(request(1, last - 51), ReplicatedMs(0), 6),
            Standing::Reused(Index(last - 50))
        );
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
        assert_eq!(at(&table, 1, 1499), Standing::At(Index(2999)));
        assert_eq!(at(&table, 1, 1500), Standing::Next);
    }

    proptest! {
        /// After any appends and cuts the table is what applying the remaining log gives; whether a session has expired follows
        /// from the stamps of the remaining log alone, and the checksum of each entry is known.
        #[test]
        fn the_table_is_a_function_of_the_log(steps in proptest::collection::vec((0u8..9, 0u64..8), 1..80)) {
            let mut log: Vec<EntryMeta> = Vec::new();
            let mut sessions = Sessions::default();
            let mut now = 0;
            for (what, number) in steps {
                let index = log.len() as u64 + 1;
                let next = match what {
                    0 => {
                        let keep = (log.len() as u64).saturating_sub(number);
                        log.truncate(keep as usize);
                        sessions.cut(Index(keep));
                        now = log.last().map_or(0, |e| e.timestamp.0);
                        None
                    }
                    1 => Some(open(index, u128::from(number))),
                    2 => Some(entry(index, RecordKind::Noop)),
                    8 => {
                        now += number;
                        None
                    }
                    _ => {
                        let ids: Vec<u64> = log.iter().filter(|e| e.session_key.is_some()).map(|e| e.position.index.0).collect();
                        ids.get(number as usize % ids.len().max(1)).map(|id| {
                            let used = log.iter().filter(|e| e.session.is_some_and(|s| s.session.0 == *id)).count() as u64;
                            data(index, *id, used + 1 + u64::from(what == 3))
                        })
                    }
                };
                if let Some(next) = next {
                    let expiry = if next.session_key.is_some() { 10 + number } else { 0 };
                    let next = EntryMeta {
                        timestamp: ReplicatedMs(now), session_expiry_ms: expiry, payload_crc: index as u32, ..next
                    };
                    let of = |e: &EntryMeta| next.session.is_some_and(|s| {
                        s.session.0 == e.position.index.0 || e.session.is_some_and(|o| o.session == s.session)
                    });
                    let lives = log.iter().rfind(|e| of(e)).map(|used| {
                        let id = next.session.map_or(0, |s| s.session.0);
                        let opening = log[id as usize - 1];
                        now < used.timestamp.0 + opening.session_expiry_ms
                    });
                    let applied = sessions.apply(&next, Index::ZERO).is_ok();
                    prop_assert!(!applied || lives != Some(false), "{next:?} came too late");
                    if applied {
                        log.push(next);
                    }
                }
                prop_assert_eq!(&sessions, &applied(&log));
                for e in &log {
                    if let Some(request) = e.session {
                        let index = e.position.index;
                        let alive = sessions.sessions[&request.session].used.last().unwrap();
                        prop_assert_eq!(sessions.standing(request, alive, e.payload_crc), Standing::At(index));
                        prop_assert_eq!(sessions.standing(request, alive, 77), Standing::Reused(index));
                    }
                }
                let mut bytes = Vec::new();
                sessions.encode(&mut bytes);
                let end = Index(log.len() as u64);
                let read = Sessions::decode(&mut Input::new(&bytes), 2, end, Ranges::default());
                prop_assert_eq!(read.as_ref(), Ok(&sessions));
            }
        }
    }
}
