//! How candidates with damage came to lead: what the others' denials cut, and what came back. It judges nothing.

use std::collections::BTreeMap;
use tidelog_consensus::Replica;
use tidelog_types::{Generation, Position};

/// What an elected candidate lost first when it was seen last, in one life of its log.
#[derive(Clone, Copy, Debug)]
struct Seen {
    life: (u64, u64),
    generation: Generation,
    lost: Position,
}

/// Of all replicas.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    deciding: BTreeMap<(u64, u64), Seen>,
    /// Candidates whose log became shorter in the generation that they were elected for: nobody else leads it.
    pub(crate) cut: u64,
    /// Candidates that lead with what they had lost.
    pub(crate) healed: u64,
}

impl Decided {
    /// What a replica says of itself after a turn.
    pub(crate) fn observe(&mut self, node: u64, life: (u64, u64), partition: u64, replica: &Replica) {
        let key = (node, partition);
        let generation = replica.generation();
        if let Some(seen) = self.deciding.remove(&key)
            && (seen.life, seen.generation) == (life, generation)
        {
            let there = replica.generation_at(seen.lost.index) == Some(seen.lost.generation);
            self.cut += u64::from(!there);
            self.healed += u64::from(there && replica.is_leader());
        }
        let lost = replica.is_deciding().then(|| replica.damaged_from(tidelog_types::Index(1))).flatten();
        if let Some((index, of)) = lost.and_then(|index| Some((index, replica.generation_at(index)?))) {
            self.deciding.insert(key, Seen { life, generation, lost: Position::new(index, of) });
        }
    }
}
