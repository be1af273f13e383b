//! The table as bytes, in snapshots and checkpoints; `docs/formats/snapshot.md` has the fields.
//!
//! Tables of version 1 know neither expiry nor checksums nor times: their sessions never expire, and a retry of one of their requests
//! is not compared.

use super::state::Session;
use super::times::Times;
use super::{RETRIES_KEPT, Run, Sessions};
use crate::base::{BaseError, Input, put};
use crate::ranges::Ranges;
use std::collections::VecDeque;
use tidelog_types::{Index, ReplicatedMs, SessionId, SessionKey};

const WRONG: BaseError = BaseError::Contradiction("sessions");

fn put_times(out: &mut Vec<u8>, times: &Times) {
    put(out, times.iter().len() as u64);
    for (index, stamp) in times.iter() {
        put(out, index.0);
        put(out, stamp.0);
    }
}

/// Times of entries `first ..= last`.
fn times(input: &mut Input<'_>, first: u64, last: Index) -> Result<Times, BaseError> {
    let mut before: Option<(u64, u64)> = None;
    (0..input.count(16)?)
        .map(|_| {
            let (index, stamp) = (input.number()?, input.number()?);
            let rises = before.is_none_or(|(i, s)| i < index && s < stamp);
            before = Some((index, stamp));
            let fits = rises && index >= first && index <= last.0;
            if fits { Ok((Index(index), ReplicatedMs(stamp))) } else { Err(WRONG) }
        })
        .collect()
}

impl Sessions {
    /// Appends the table's bytes. Holes are not among them.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut ids: Vec<SessionId> = self.sessions.keys().copied().collect();
        ids.sort_unstable();
        put(out, self.forgotten.0);
        put_times(out, &self.time);
        put(out, ids.len() as u64);
        for id in ids {
            let Some(session) = self.sessions.get(&id) else { continue };
            put(out, id.0);
            put(out, u64::from(session.key.is_some()));
            out.extend_from_slice(&session.key.map_or(0, |key| key.0).to_le_bytes());
            put(out, session.expiry_ms);
            put_times(out, &session.used);
            put(out, session.forgotten);
            put(out, session.runs.len() as u64);
            for run in &session.runs {
                [run.sequence, run.index, run.count].iter().for_each(|number| put(out, *number));
            }
            put(out, session.sums.len() as u64);
            for sum in &session.sums {
                put(out, sum.map_or(0, |sum| 1 << 32 | u64::from(sum)));
            }
        }
    }

    /// The table, written in `version`, of a log that ends at `last`, in which the entries `holes` are not known.
    ///
    /// # Errors
    /// In which way the bytes are not such a table.
    pub(crate) fn decode(
        input: &mut Input<'_>,
        version: u64,
        last: Index,
        holes: Ranges,
    ) -> Result<Sessions, BaseError> {
        let timed = version > 1;
        let mut table = Sessions { forgotten: Index(input.number()?), holes, ..Sessions::default() };
        if timed {
            table.time = times(input, 1, last)?;
        }
        let mut before = 0;
        for _ in 0..input.count(48)? {
            let id = input.number()?;
            let keyed = input.number()?;
            let key = u128::from(input.number()?) | u128::from(input.number()?) << 64;
            let mut session = Session { key: (keyed == 1).then_some(SessionKey(key)), ..Session::default() };
            if timed {
                session.expiry_ms = input.number()?;
                session.used = times(input, id, last)?;
            }
            session.forgotten = input.number()?;
            session.runs = table.runs(input, id, session.forgotten, last)?;
            if timed {
                session.sums = sums(input, session.next() - 1 - session.forgotten)?;
            }
            let opened = session.key.is_some() || table.holes.contains(Index(id));
            // One that expires is known to have been used: when it was opened.
            let used = session.used.last().is_some() || session.expiry_ms == 0;
            if id <= before || id > last.0 || keyed > 1 || !opened || !used {
                return Err(WRONG);
            }
            before = id;
            table.sessions.insert(SessionId(id), session);
        }
        table.find_keys();
        if table.keys_contradict() { Err(WRONG) } else { Ok(table) }
    }

    fn runs(
        &self,
        input: &mut Input<'_>,
        id: u64,
        forgotten: u64,
        last: Index,
    ) -> Result<VecDeque<Run>, BaseError> {
        let strict = self.holes.is_empty();
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
        Ok(runs)
    }
}

fn sums(input: &mut Input<'_>, kept: u64) -> Result<VecDeque<Option<u32>>, BaseError> {
    let count = input.count(8)?;
    // While nothing is committed, more than are kept in the end may be there.
    if count as u64 > kept {
        return Err(WRONG);
    }
    (0..count)
        .map(|_| {
            let sum = input.number()?;
            match (sum >> 32, u32::try_from(sum & u64::from(u32::MAX))) {
                (0, Ok(0)) => Ok(None),
                (1, Ok(sum)) => Ok(Some(sum)),
                _ => Err(WRONG),
            }
        })
        .collect()
}

const _: () = assert!(RETRIES_KEPT > 0);
