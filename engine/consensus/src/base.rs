//! A log's base: what the protocol must know of a prefix so that a log can begin behind it.
//!
//! Goes into every snapshot beside the state machine's own bytes: where it ends, who votes, replicated time, the
//! generations of older entries and the sessions, so that a retry of a request below the base still gets its index. The
//! encoding is told in `docs/formats/snapshot.md`. Decoding believes nothing: bytes that no correct replica wrote are
//! refused with a [`BaseError`]. It does not know files or checksums.

use crate::log::Run;
use crate::ranges::Ranges;
use crate::session::Sessions;
use tidelog_types::limits::VOTERS_MAX;
use tidelog_types::{Generation, Index, NodeId, Position, ReplicatedMs};

/// The version written now.
const VERSION: u64 = 2;
/// The oldest that is read: its sessions have neither expiry nor checksums.
const VERSION_MIN: u64 = 1;

/// What is known of the log up to and including `position`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Base {
    pub(crate) position: Position,
    pub(crate) stamp: ReplicatedMs,
    pub(crate) log_start: Index,
    pub(crate) voters: Vec<NodeId>,
    pub(crate) runs: Vec<Run>,
    pub(crate) sessions: Sessions,
}

/// Why bytes are not a base.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BaseError {
    /// Too few bytes, or too many.
    #[error("the log's base has another length than it says")]
    Length,
    /// A newer program wrote it.
    #[error("version {0} of a log's base is not known to this version")]
    Version(u64),
    /// A part contradicts the others.
    #[error("the {0} of a log's base contradict it")]
    Contradiction(&'static str),
}

/// Reads numbers one behind the other.
pub(crate) struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { rest: bytes }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn number(&mut self) -> Result<u64, BaseError> {
        let (number, rest) = self.rest.split_first_chunk::<8>().ok_or(BaseError::Length)?;
        self.rest = rest;
        Ok(u64::from_le_bytes(*number))
    }

    /// A count of things that take at least `bytes` each: never more than there can be.
    pub(crate) fn count(&mut self, bytes: usize) -> Result<usize, BaseError> {
        let count = usize::try_from(self.number()?).map_err(|_| BaseError::Length)?;
        let fits = count.checked_mul(bytes).is_some_and(|bytes| bytes <= self.rest.len());
        if fits { Ok(count) } else { Err(BaseError::Length) }
    }
}

pub(crate) fn put(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

impl Base {
    /// The last entry that it covers.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The voters as of that entry.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// Sessions open as of that entry.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [
            VERSION,
            self.position.index.0,
            self.position.generation.0,
            self.stamp.0,
            self.log_start.0,
            self.voters.len() as u64,
        ] {
            put(&mut out, number);
        }
        self.voters.iter().for_each(|node| put(&mut out, node.0));
        put(&mut out, self.runs.len() as u64);
        for run in &self.runs {
            put(&mut out, run.first.0);
            put(&mut out, run.generation.0);
        }
        self.sessions.encode(&mut out);
        out
    }

    /// From its bytes.
    ///
    /// # Errors
    /// In which way they are not such.
    pub fn decode(bytes: &[u8]) -> Result<Base, BaseError> {
        let mut input = Input::new(bytes);
        let version = input.number()?;
        if !(VERSION_MIN..=VERSION).contains(&version) {
            return Err(BaseError::Version(version));
        }
        let position = Position::new(Index(input.number()?), Generation(input.number()?));
        let (stamp, log_start) = (ReplicatedMs(input.number()?), Index(input.number()?));
        let voters = input.count(8)?;
        let voters: Vec<NodeId> =
            (0..voters).map(|_| input.number().map(NodeId)).collect::<Result<_, _>>()?;
        let runs = input.count(16)?;
        let run = |input: &mut Input<'_>| {
            Ok(Run { first: Index(input.number()?), generation: Generation(input.number()?) })
        };
        let runs: Vec<Run> = (0..runs).map(|_| run(&mut input)).collect::<Result<_, BaseError>>()?;
        let sessions = Sessions::decode(&mut input, version, position.index, Ranges::default())?;
        if !input.is_empty() {
            return Err(BaseError::Length);
        }
        let sorted = voters.is_sorted_by(|a, b| a < b);
        if !sorted || !(1..=VOTERS_MAX).contains(&voters.len()) {
            return Err(BaseError::Contradiction("voters"));
        }
        let rising = runs.is_sorted_by(|a, b| a.first < b.first && a.generation < b.generation);
        let ends = runs.last().map_or(Generation::ZERO, |run| run.generation) == position.generation
            && runs.last().is_none_or(|run| run.first <= position.index);
        let begins =
            runs.first().is_none_or(|run| run.first >= Index(1) && run.generation > Generation::ZERO);
        let empty = position.index == Index::ZERO;
        if !rising || !ends || !begins || empty != runs.is_empty() {
            return Err(BaseError::Contradiction("generations"));
        }
        if log_start > position.index {
            return Err(BaseError::Contradiction("log start and end"));
        }
        Ok(Base { position, stamp, log_start, voters, runs, sessions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Standing;
    use proptest::prelude::*;
    use tidelog_types::{EntryMeta, RecordKind, Sequence, SessionId, SessionKey, SessionRef};

    fn entry(index: u64) -> EntryMeta {
        EntryMeta {
            position: Position::new(Index(index), Generation(4)),
            prev_generation: Generation(4),
            kind: RecordKind::Data,
            session: None,
            session_key: None,
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(1000 + index),
            record_bytes: 64,
            payload_crc: u32::try_from(index).unwrap(),
        }
    }

    fn sample() -> Base {
        let mut sessions = Sessions::default();
        let session_key = Some(SessionKey(7 << 70));
        let open = EntryMeta {
            kind: RecordKind::SessionOpen,
            session_key,
            session_expiry_ms: 3_600_000,
            ..entry(2)
        };
        sessions.apply(&open, Index::ZERO).unwrap();
        for (index, sequence) in [(3, 1), (4, 2), (8, 3)] {
            let session = Some(SessionRef { session: SessionId(2), sequence: Sequence(sequence) });
            sessions.apply(&EntryMeta { session, ..entry(index) }, Index::ZERO).unwrap();
        }
        let run = |first, generation| Run { first: Index(first), generation: Generation(generation) };
        Base {
            position: Position::new(Index(9), Generation(4)),
            stamp: ReplicatedMs(1_790_000_000_000),
            log_start: Index(3),
            voters: vec![NodeId(1), NodeId(2), NodeId(5)],
            runs: vec![run(1, 1), run(6, 4)],
            sessions,
        }
    }

    #[test]
    fn what_is_encoded_comes_back() {
        let base = sample();
        assert_eq!(Base::decode(&base.encode()), Ok(base));
    }

    #[test]
    fn the_encoding_is_pinned() {
        assert_eq!(sample().encode().len(), 8 * 51);
        assert_eq!(crc32c(&sample().encode()), 0x8a64b527);
    }

    /// What the build before wrote: its sessions never expire, and their requests are not compared.
    #[test]
    fn a_base_of_version_1_is_read() {
        let key = 7u128 << 70;
        let numbers: [u64; 28] = [
            1,
            9,
            4,
            1_790_000_000_000,
            3,
            3,
            1,
            2,
            5,
            2,
            1,
            1,
            6,
            4, // up to the generations
            0,
            1,
            2,
            1,
            key as u64,
            (key >> 64) as u64,
            0,
            2,
            1,
            3,
            2,
            3,
            8,
            1, // the sessions
        ];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert_eq!(crc32c(&bytes), 0xd266_caab, "as it was pinned then");
        let base = Base::decode(&bytes).unwrap();
        let far = ReplicatedMs(u64::MAX);
        let session = |sequence| SessionRef { session: SessionId(2), sequence: Sequence(sequence) };
        for (sequence, standing) in
            [(1, Standing::At(Index(3))), (3, Standing::At(Index(8))), (4, Standing::Next)]
        {
            assert_eq!(base.sessions.standing(session(sequence), far, 77), standing);
        }
        assert_eq!(Base::decode(&base.encode()), Ok(base), "and written in the new version");
    }

    /// CRC32C, bit by bit: enough to pin a few hundred bytes.
    fn crc32c(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
        })
    }

    #[test]
    fn each_contradiction_is_refused() {
        let spoiled = |f: &dyn Fn(&mut Base)| {
            let mut base = sample();
            f(&mut base);
            Base::decode(&base.encode()).err()
        };
        assert_eq!(spoiled(&|_| {}), None);
        type Spoil = (&'static str, &'static dyn Fn(&mut Base));
        let cases: [Spoil; 8] = [
            ("voters", &|b| b.voters.clear()),
            ("voters", &|b| b.voters[1] = NodeId(1)),
            ("generations", &|b| b.runs.clear()),
            ("generations", &|b| b.runs[0].generation = Generation(4)),
            ("generations", &|b| b.runs[1].first = Index(10)),
            ("generations", &|b| b.position.generation = Generation(5)),
            ("log start and end", &|b| b.log_start = Index(10)),
            ("sessions", &|b| b.position.index = Index(7)),
        ];
        for (part, spoil) in cases {
            assert_eq!(spoiled(spoil), Some(BaseError::Contradiction(part)));
        }
        let mut bytes = sample().encode();
        bytes.push(0);
        assert_eq!(Base::decode(&bytes), Err(BaseError::Length));
        bytes[0] = 3;
        assert_eq!(Base::decode(&bytes), Err(BaseError::Version(3)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(at in 0usize..400, byte: u8, len in 0usize..440) {
            let mut bytes = sample().encode();
            let at = at % bytes.len();
            bytes[at] = byte;
            bytes.truncate(len);
            let _ = Base::decode(&bytes);
        }
    }
}
