//! What a log was told, and the state that this makes.

use std::collections::BTreeMap;
use tidelog_types::{Generation, Index, Position};

/// One partition as the model has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Part {
    pub entries: Vec<(u64, Vec<u8>)>,
    pub promise: (u64, u64),
    /// First index kept; 0: all.
    pub low: u64,
}

impl Part {
    /// What a shard would save of it.
    pub fn save(&self, mark: u64, out: &mut Vec<u8>) {
        for number in [self.promise.0, self.promise.1, self.low, mark, self.entries.len() as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for (at, (generation, payload)) in self.entries.iter().enumerate() {
            let payload = if (at as u64) + 1 < self.low { &[] } else { payload.as_slice() };
            out.extend_from_slice(&generation.to_le_bytes());
            out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
            out.extend_from_slice(payload);
        }
    }
    /// Without the payloads of what is not kept any more.
    pub fn kept(&self) -> Part {
        let mut kept = self.clone();
        for entry in kept.entries.iter_mut().take(self.low.saturating_sub(1) as usize) {
            entry.1.clear();
        }
        kept
    }
    pub fn load(mut bytes: &[u8]) -> (Part, u64) {
        let number = |bytes: &mut &[u8]| {
            let (head, rest) = bytes.split_first_chunk().expect("saved whole");
            *bytes = rest;
            u64::from_le_bytes(*head)
        };
        let promise = (number(&mut bytes), number(&mut bytes));
        let (low, mark, count) = (number(&mut bytes), number(&mut bytes), number(&mut bytes));
        let mut part = Part { promise, low, entries: Vec::new() };
        for _ in 0..count {
            let (generation, len) = (number(&mut bytes), number(&mut bytes));
            let (payload, rest) = bytes.split_at(len as usize);
            part.entries.push((generation, payload.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        (part, mark)
    }
    pub fn last(&self) -> Position {
        let index = self.entries.len() as u64;
        Position::new(Index(index), Generation(self.entries.last().map_or(0, |e| e.0)))
    }
    pub fn position(&self, index: u64) -> Position {
        let at = (index as usize).checked_sub(1);
        Position::new(Index(index), Generation(at.map_or(0, |at| self.entries[at].0)))
    }
}

pub type State = BTreeMap<u64, Part>;

/// What the log was told.
#[derive(Clone, Debug)]
pub enum Act {
    Entry {
        partition: u64,
        generation: u64,
        payload: Vec<u8>,
    },
    Promise {
        partition: u64,
        generation: u64,
        vote: u64,
    },
    Cut {
        partition: u64,
        keep: u64,
    },
    LowWater {
        partition: u64,
        first: u64,
    },
    /// Lost entries were written again.
    Moved,
}

pub fn apply(state: &mut State, act: &Act) {
    match act {
        Act::Entry { partition, generation, payload } => {
            state.entry(*partition).or_default().entries.push((*generation, payload.clone()));
        }
        Act::Promise { partition, generation, vote } => {
            state.entry(*partition).or_default().promise = (*generation, *vote);
        }
        Act::Cut { partition, keep } => {
            state.entry(*partition).or_default().entries.truncate(*keep as usize);
        }
        Act::Moved => {}
        Act::LowWater { partition, first } => state.entry(*partition).or_default().low = *first,
    }
}

/// A state without the payloads of what is not kept any more.
pub fn kept(state: &State) -> State {
    state.iter().map(|(id, part)| (*id, part.kept())).collect()
}

/// A state in few words.
pub fn brief(state: &State) -> BTreeMap<u64, String> {
    state
        .iter()
        .map(|(p, part)| {
            let runs: Vec<_> = part.entries.iter().map(|e| format!("{}:{}", e.0, e.1.len())).collect();
            (*p, format!("promise {:?} entries {}", part.promise, runs.join(" ")))
        })
        .collect()
}
