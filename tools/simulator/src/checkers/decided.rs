//! How candidates with damage came to lead: what the others' denials cut, and what came back. A cut must follow from denials that were
//! sent (invariant 8): by so many voters that no quorum can hold the entry, each under a promise of the generation that it was cut for.

use super::violation::{Verdict, ensure};
use std::collections::{BTreeMap, BTreeSet};
use tidelog::transport::PeerMessage;
use tidelog_consensus::{Message, Repair, Replica, quorum};
use tidelog_types::{Generation, Index, Position};

/// What an elected candidate lost first when it was seen last, in one life of its log.
#[derive(Clone, Copy, Debug)]
struct Seen {
    life: (u64, u64),
    generation: Generation,
    lost: Position,
}

/// A denial as the candidate counts it: who asked, partition, the generation promised, the entry.
type Denied = (u64, u64, Generation, Position);

/// Of all replicas.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    deciding: BTreeMap<(u64, u64), Seen>,
    /// Who sent each denial.
    denials: BTreeMap<Denied, BTreeSet<u64>>,
    /// Candidates whose log became shorter in the generation that they were elected for: nobody else leads it.
    pub(crate) cut: u64,
    /// Candidates that lead with what they had lost.
    pub(crate) healed: u64,
}

impl Decided {
    /// A message left `node` for `to`.
    pub(crate) fn sent(&mut self, node: u64, to: u64, message: &PeerMessage) {
        let Message::Repair(Repair::Missing { generation, first, damaged: false, promised }) =
            message.message
        else {
            return;
        };
        let denied = (to, message.partition.0, promised, Position::new(first, generation));
        self.denials.entry(denied).or_default().insert(node);
    }

    /// What a replica says of itself after a turn.
    pub(crate) fn observe(
        &mut self,
        node: u64,
        life: (u64, u64),
        partition: u64,
        replica: &Replica,
    ) -> Verdict {
        let key = (node, partition);
        let generation = replica.generation();
        if let Some(seen) = self.deciding.remove(&key)
            && (seen.life, seen.generation) == (life, generation)
        {
            let there = replica.generation_at(seen.lost.index) == Some(seen.lost.generation);
            self.cut += u64::from(!there);
            self.healed += u64::from(there && replica.is_leader());
            // What is cut first may have been found damaged in this turn only, and lie before it.
            let denied = |first: Index| {
                let from = (node, partition, generation, Position::new(first, Generation(0)));
                let to = (node, partition, generation, Position::new(first, Generation(u64::MAX)));
                let most = self.denials.range(from..=to).map(|(_, by)| by.len()).max();
                quorum::blocked(most.unwrap_or(0), replica.voters().len())
            };
            let low = replica.marks().high_water.0 + 1;
            ensure(
                8,
                there || (low.min(seen.lost.index.0)..=seen.lost.index.0).any(|i| denied(Index(i))),
                || {
                    format!(
                        "node {node} partition {partition}: the candidate of generation {generation} cut {:?}, which no blocking set of voters has denied under a promise of that generation",
                        seen.lost
                    )
                },
            )?;
        }
        let lost = replica.is_deciding().then(|| replica.damaged_from(Index(1))).flatten();
        if let Some((index, of)) = lost.and_then(|index| Some((index, replica.generation_at(index)?))) {
            self.deciding.insert(key, Seen { life, generation, lost: Position::new(index, of) });
        }
        Ok(())
    }
}
