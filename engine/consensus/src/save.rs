//! A replica's state as bytes, for a checkpoint of its log: what [`Restored`] would be after all its records.
//! `docs/formats/checkpoint.md` has the table.
//!
//! Promises that loading and then replaying what lies behind gives what replaying everything gives. It does not know where
//! the bytes are kept; they were checked there, but they are still bytes from a disk, and reading them gives a typed error.

use crate::base::{BaseError, Input, put};
use crate::damage::Damage;
use crate::history::History;
use crate::log::{Log, Run};
use crate::ranges::Ranges;
use crate::replica::Replica;
use crate::restore::Restored;
use crate::retain::Starts;
use crate::session::Sessions;
use tidelog_types::{Generation, Index, NodeId, Position, ReplicatedMs};

/// The version written now.
const VERSION: u64 = 2;
/// The oldest that is read: its sessions have neither expiry nor checksums.
const VERSION_MIN: u64 = 1;

/// Why bytes are not a replica's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LoadError {
    /// Written by a newer program.
    #[error("a saved replica of version {0} is not known to this version")]
    Version(u64),
    /// A field contradicts another, or is out of its range.
    #[error("the {0} of a saved replica contradict it")]
    Contradiction(&'static str),
    /// A part that snapshots have, too.
    #[error(transparent)]
    Part(#[from] BaseError),
}

impl Replica {
    /// Appends what must survive of this replica: generation, vote, the log's base, end and generations, sessions, log
    /// starts, marks, replicated time. It is the state when every step that the replica has asked for is durable, so
    /// all of them must be in the log in front of the checkpoint.
    pub fn save(&self, out: &mut Vec<u8>) {
        let (snapshot, low_water) = self.ordered.marks();
        let marks = Marks {
            generation: self.generation,
            vote: self.vote,
            high_water: self.high_water,
            stamp: self.stamp,
            snapshot: snapshot.unwrap_or(self.snapshot),
            base: low_water.map_or(self.log.base().index, Index::prev),
        };
        write(&marks, &self.log, &self.starts, &self.history, (&self.damage, &self.sessions), out);
    }
}

struct Marks {
    generation: Generation,
    vote: Option<NodeId>,
    high_water: Index,
    stamp: ReplicatedMs,
    snapshot: Position,
    base: Index,
}

fn write(
    marks: &Marks,
    log: &Log,
    starts: &Starts,
    history: &History,
    (damage, sessions): (&Damage, &Sessions),
    out: &mut Vec<u8>,
) {
    let runs = log.runs_to(log.last().index);
    for number in [
        VERSION,
        marks.generation.0,
        marks.vote.map_or(0, NodeId::get),
        marks.high_water.0,
        marks.stamp.0,
        marks.snapshot.index.0,
        marks.snapshot.generation.0,
        marks.base.0,
        log.last().index.0,
        runs.len() as u64,
    ] {
        put(out, number);
    }
    for run in &runs {
        put(out, run.first.0);
        put(out, run.generation.0);
    }
    starts.encode(out);
    history.encode(out);
    damage.encode(out);
    sessions.holes().encode(out);
    sessions.encode(out);
}

impl Restored {
    /// Reads what [`Replica::save`] wrote.
    ///
    /// # Errors
    /// Says in which way the bytes are not a replica's state.
    pub fn load(bytes: &[u8]) -> Result<Restored, LoadError> {
        let mut input = Input::new(bytes);
        let version = input.number()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(LoadError::Version(version));
        }
        let generation = Generation(input.number()?);
        let vote = input.number()?;
        let (high_water, stamp) = (Index(input.number()?), ReplicatedMs(input.number()?));
        let snapshot = Position::new(Index(input.number()?), Generation(input.number()?));
        let (base, last) = (Index(input.number()?), Index(input.number()?));
        let mut runs = Vec::new();
        for _ in 0..input.count(16)? {
            runs.push(Run { first: Index(input.number()?), generation: Generation(input.number()?) });
        }
        let log = Log::of_saved(runs, base, last).ok_or(LoadError::Contradiction("generations"))?;
        let starts = Starts::decode(&mut input)?;
        let history = History::decode(&mut input)?;
        let damage = Damage::decode(&mut input, last)?;
        let holes = Ranges::decode(&mut input, last)?;
        let sessions = Sessions::decode(&mut input, version, last, holes)?;
        if !input.is_empty() {
            return Err(LoadError::Part(BaseError::Length));
        }
        if high_water > last || base > high_water || log.last().generation > generation {
            return Err(LoadError::Contradiction("marks"));
        }
        let vote = (vote != 0).then_some(NodeId(vote));
        Ok(Restored {
            log,
            sessions,
            damage,
            stamp,
            generation,
            vote,
            high_water,
            starts,
            history,
            snapshot,
            hint: high_water,
            fault: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::damage::{DamagedRange, Harm};
    use proptest::prelude::*;
    use tidelog_types::{EntryMeta, RecordKind, Sequence, SessionId, SessionKey, SessionRef};

    fn save(restored: &Restored) -> Vec<u8> {
        let mut out = Vec::new();
        let marks = Marks {
            generation: restored.generation,
            vote: restored.vote,
            high_water: restored.high_water,
            stamp: restored.stamp,
            snapshot: restored.snapshot,
            base: restored.log.base().index,
        };
        let (starts, history) = (&restored.starts, &restored.history);
        write(&marks, &restored.log, starts, history, (&restored.damage, &restored.sessions), &mut out);
        out
    }

    /// What may happen to a log, by numbers.
    fn act(restored: &mut Restored, (what, number): (u8, u64), sessions: &mut Vec<u64>) {
        let last = restored.last();
        let mut entry = EntryMeta {
            position: Position::new(last.index.next(), restored.generation),
            prev_generation: last.generation,
            kind: RecordKind::Data,
            session: None,
            session_key: None,
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(number),
            record_bytes: 128,
            payload_crc: 0,
        };
        match what {
            0 => restored.promise(restored.generation.next(), Some(NodeId(number % 3 + 1))),
            1 => restored.high_water(Index(number).min(last.index)),
            6 if restored.high_water > restored.log.base().index => {
                let covered = restored.high_water;
                restored.snapshot_mark(Position::new(covered, restored.log.generation_at(covered).unwrap()));
                restored.low_water(covered);
            }
            8 if restored.generation > Generation::ZERO && number % 4 == 0 => {
                let Position { index, generation } = entry.position;
                let harm = if number % 8 == 0 { Harm::Damaged } else { Harm::Suspect };
                restored.damaged(
                    DamagedRange { first: index, last: index, generation: generation.max(last.generation) },
                    harm,
                );
            }
            9 if restored.damage.first_from(Index(1)).is_some() && number % 2 == 0 => {
                // What was lost was nothing that any session needs.
                let lost = restored.damage.first_from(Index(1)).unwrap();
                let generation = restored.log.generation_at(lost).unwrap();
                let prev_generation = restored.log.generation_at(lost.prev()).unwrap();
                let position = Position::new(lost, generation);
                restored.moved(&EntryMeta { position, prev_generation, ..entry });
            }
            7 if restored.generation > Generation::ZERO => {
                entry.kind = RecordKind::LogStart;
                entry.log_start = Some(entry.position.index.prev().max(Index(1)));
                restored.entry(&entry);
            }
            2 => {
                let keep = Index(number).min(last.index).max(restored.high_water);
                let generation = restored.log.generation_at(keep).unwrap();
                restored.cut(Position::new(keep, generation));
                sessions.retain(|s| *s <= keep.0);
            }
            _ if restored.generation == Generation::ZERO => {}
            3 => {
                entry.kind = RecordKind::SessionOpen;
                entry.session_key = Some(SessionKey(u128::from(entry.position.index.0) << 70));
                restored.entry(&entry);
                sessions.push(entry.position.index.0);
            }
            _ => {
                if let Some(id) = sessions.get(number as usize % sessions.len().max(1)) {
                    let session = SessionId(*id);
                    let next = (1..).find(|n| {
                        let request = SessionRef { session, sequence: Sequence(*n) };
                        restored.sessions.standing(request, ReplicatedMs(0), 0)
                            == crate::session::Standing::Next
                    });
                    entry.session = next.map(|n| SessionRef { session, sequence: Sequence(n) });
                }
                restored.entry(&entry);
            }
        }
    }

    proptest! {
        /// Saved in the middle, loaded, and gone on with: the same as never saved.
        #[test]
        fn a_loaded_replica_is_the_one_that_was_saved(
            acts in proptest::collection::vec((0u8..10, 0u64..60), 0..80),
            at in 0usize..80,
        ) {
            let mut restored = Restored::new();
            let mut sessions = Vec::new();
            let mut loaded = None;
            let mut loaded_sessions = Vec::new();
            for (i, step) in acts.iter().enumerate() {
                if i == at {
                    loaded = Some(Restored::load(&save(&restored)).unwrap());
                    loaded_sessions.clone_from(&sessions);
                }
                act(&mut restored, *step, &mut sessions);
                prop_assert_eq!(restored.check(), Ok(()));
                if let Some(loaded) = &mut loaded {
                    act(loaded, *step, &mut loaded_sessions);
                    prop_assert_eq!(save(loaded), save(&restored));
                }
            }
        }

        #[test]
        fn any_bytes_give_a_verdict(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), valid: bool) {
            if valid && bytes.len() > 20 {
                bytes[..17].fill(0);
                bytes[0] = 1;
            }
            let _ = Restored::load(&bytes);
        }
    }

    #[test]
    fn what_is_cut_short_is_refused() {
        let mut restored = Restored::new();
        let mut sessions = Vec::new();
        for step in [(0, 1), (3, 0), (4, 0), (5, 1), (1, 2)] {
            act(&mut restored, step, &mut sessions);
        }
        let bytes = save(&restored);
        for len in 0..bytes.len() {
            assert!(Restored::load(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
        assert_eq!(Restored::load(&[9, 0, 0, 0, 0, 0, 0, 0]).err(), Some(LoadError::Version(9)));
    }
}
