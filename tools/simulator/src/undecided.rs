//! When a partition rightly has no leader though everything works: nobody can tell whether an entry was committed.
//!
//! Several nodes may stop in the middle of writing the same entries, and each find afterwards that its write looks like
//! one that was complete and went bad since (a *suspect* tail). If so many of them are in doubt that a quorum may have had an entry,
//! and nobody has its bytes, then two histories have left the same bytes, and in one of them the entry was acknowledged.
//! `docs/protocol.md`, "Suspects": such a partition waits. It is told from outside, with all replicas at hand, and only that
//! excuses a partition; a replica that could lead and does not is a failure.

use tidelog_consensus::{Replica, quorum};
use tidelog_types::{Index, Position};

/// An entry that keeps every replica that could be elected from leading; none if something else does, or nothing.
pub(crate) fn undecided(replicas: &[&Replica]) -> Option<Position> {
    let voters = replicas.first()?.voters().len();
    let electable = |candidate: &&&Replica| {
        quorum::won(replicas.iter().filter(|voter| voter.last() <= candidate.last()).count(), voters)
    };
    let mut why = None;
    for candidate in replicas.iter().filter(electable) {
        why = Some(in_doubt(candidate, replicas)?);
    }
    why
}

/// The first entry that `candidate` lost, and that nobody can give it, or deny for certain.
fn in_doubt(candidate: &Replica, replicas: &[&Replica]) -> Option<Position> {
    let mut from = candidate.marks().high_water.next();
    while let Some(index) = candidate.damaged_from(from) {
        let entry = Position::new(index, candidate.generation_at(index)?);
        let has = |replica: &&&Replica| replica.can_give(index, index, entry.generation).is_some();
        let denials = replicas.iter().filter(|replica| replica.denies(entry)).count();
        let committed = |replica: &&&Replica| !replica.denies(entry) && replica.marks().high_water >= index;
        let nobody = !replicas.iter().any(|replica| has(&replica) || committed(&replica));
        if nobody && !quorum::blocked(denials, candidate.voters().len()) {
            return Some(entry);
        }
        from = Index(index.0 + 1);
    }
    None
}
