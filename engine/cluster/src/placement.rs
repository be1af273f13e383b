//! The map from partitions to replicas.
//!
//! The ring alone would leave loads as uneven as chance makes them, above all with few partitions; so a placement
//! starts from the ring's preferences and is then *levelled*: replicas move one by one from the fullest node to the emptiest until no two
//! nodes differ by more than one. Levelling a placement that was level before a node came moves only what the new node must
//! get; when a node leaves, only what it held moves, plus rarely a few to make the rest even. That is why a change starts from
//! the placement in force and not from the ring: the placement is state, versioned, and belongs to the consistent core.

use crate::ring::Ring;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_types::limits::{PARTITIONS_MAX, VOTERS_MAX};
use tidelog_types::{NodeId, PartitionId};

/// Version of the map from founding members to the first placement. All founders must compute the same one.
pub const PLACEMENT_VERSION: u32 = 1;

/// Why there is no such placement.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    /// More replicas than nodes.
    #[error("replication {replication} needs at least as many nodes, there are {nodes}")]
    TooFewNodes {
        /// Replicas of each partition.
        replication: usize,
        /// Nodes there are.
        nodes: usize,
    },
    /// Out of 1..=limit.
    #[error("{what} = {value} is not within 1..={limit}")]
    OutOfBounds {
        /// Which count.
        what: &'static str,
        /// What was asked.
        value: u64,
        /// The most.
        limit: u64,
    },
}

/// One replica that goes from a node to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Move {
    /// Of which partition.
    pub partition: PartitionId,
    /// Who holds it before.
    pub from: NodeId,
    /// Who holds it after.
    pub to: NodeId,
}

/// Which nodes hold each partition, in order of preference for leading it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Counts changes; the first placement is 1.
    version: u64,
    /// By partition; all of the same length, without repetition.
    replicas: Vec<Vec<NodeId>>,
}

impl Placement {
    /// The first placement: the ring's preferences, levelled. A pure function of its arguments.
    ///
    /// ```
    /// use tidelog_cluster::{Placement, Ring};
    /// use tidelog_types::{NodeId, PartitionId};
    /// let ring = Ring::new([1, 2, 3, 4, 5].map(NodeId));
    /// let placement = Placement::initial(&ring, 8, 3)?;
    /// assert_eq!(placement.replicas(PartitionId(7)).map(<[_]>::len), Some(3));
    /// # Ok::<(), tidelog_cluster::PlacementError>(())
    /// ```
    ///
    /// # Errors
    /// If the counts are out of bounds or there are fewer nodes than replicas.
    pub fn initial(ring: &Ring, partitions: u64, replication: usize) -> Result<Placement, PlacementError> {
        bounded("partitions", partitions, PARTITIONS_MAX)?;
        bounded("replication", replication as u64, VOTERS_MAX as u64)?;
        if ring.nodes().len() < replication {
            return Err(PlacementError::TooFewNodes { replication, nodes: ring.nodes().len() });
        }
        let replicas =
            (0..partitions).map(|p| ring.preference(PartitionId(p)).take(replication).collect()).collect();
        let mut levelling = Levelling::new(ring, replicas);
        levelling.level();
        levelling.spread_preferred_leaders();
        Ok(Placement { version: 1, replicas: levelling.replicas })
    }

    /// The placement after a change of nodes, and what moves: as little as leaves the loads level.
    ///
    /// # Errors
    /// If fewer nodes are left than there are replicas.
    pub fn changed(&self, ring: &Ring) -> Result<(Placement, Vec<Move>), PlacementError> {
        let replication = self.replication();
        if ring.nodes().len() < replication {
            return Err(PlacementError::TooFewNodes { replication, nodes: ring.nodes().len() });
        }
        let mut levelling = Levelling::new(ring, self.replicas.clone());
        levelling.replace_leavers(ring);
        levelling.level();
        levelling.spread_preferred_leaders();
        let moves = self.moves_to(&levelling.replicas);
        Ok((Placement { version: self.version + 1, replicas: levelling.replicas }, moves))
    }

    /// Counts changes; the first placement is 1.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u64 {
        self.replicas.len() as u64
    }

    /// Replicas of each partition.
    pub fn replication(&self) -> usize {
        self.replicas.first().map_or(0, Vec::len)
    }

    /// The nodes that hold a partition, the preferred leader first; none if there is no such partition.
    pub fn replicas(&self, partition: PartitionId) -> Option<&[NodeId]> {
        self.replicas.get(usize::try_from(partition.get()).ok()?).map(Vec::as_slice)
    }

    /// The partitions that a node holds, in order.
    pub fn held_by(&self, node: NodeId) -> impl Iterator<Item = PartitionId> {
        (0..).zip(&self.replicas).filter(move |(_, nodes)| nodes.contains(&node)).map(|(p, _)| PartitionId(p))
    }

    /// Pairs, partition by partition, who left with who came.
    fn moves_to(&self, after: &[Vec<NodeId>]) -> Vec<Move> {
        let mut moves = Vec::new();
        for (partition, (before, after)) in (0..).zip(self.replicas.iter().zip(after)) {
            let left = before.iter().filter(|n| !after.contains(n));
            let came = after.iter().filter(|n| !before.contains(n));
            moves.extend(left.zip(came).map(|(from, to)| Move {
                partition: PartitionId(partition),
                from: *from,
                to: *to,
            }));
        }
        moves
    }
}

fn bounded(what: &'static str, value: u64, limit: u64) -> Result<(), PlacementError> {
    if (1..=limit).contains(&value) {
        Ok(())
    } else {
        Err(PlacementError::OutOfBounds { what, value, limit })
    }
}

/// A placement in the making: every step is deterministic, ties go to the lower node and the lower partition.
struct Levelling {
    replicas: Vec<Vec<NodeId>>,
    /// Partitions (as positions in `replicas`) that each node of the new ring holds.
    held: BTreeMap<NodeId, BTreeSet<usize>>,
}

impl Levelling {
    fn new(ring: &Ring, replicas: Vec<Vec<NodeId>>) -> Levelling {
        let mut held: BTreeMap<NodeId, BTreeSet<usize>> =
            ring.nodes().iter().map(|n| (*n, BTreeSet::new())).collect();
        for (partition, nodes) in replicas.iter().enumerate() {
            for node in nodes {
                if let Some(held) = held.get_mut(node) {
                    held.insert(partition);
                }
            }
        }
        Levelling { replicas, held }
    }

    /// Gives the replicas of nodes that are not in the ring to the emptiest ones that may have them, the ring's
    /// preference deciding between equals.
    fn replace_leavers(&mut self, ring: &Ring) {
        for (partition, nodes) in self.replicas.iter_mut().enumerate() {
            for position in 0..nodes.len() {
                if nodes.get(position).is_none_or(|n| self.held.contains_key(n)) {
                    continue;
                }
                let to = ring
                    .preference(PartitionId(partition as u64))
                    .filter(|n| !nodes.contains(n))
                    .min_by_key(|n| self.held.get(n).map_or(usize::MAX, BTreeSet::len));
                let to = to.expect("there are at least as many nodes as replicas");
                if let (Some(slot), Some(held)) = (nodes.get_mut(position), self.held.get_mut(&to)) {
                    *slot = to;
                    held.insert(partition);
                }
            }
        }
    }

    /// Moves replicas from the fullest node to the emptiest until they differ by at most one. Each move lowers the sum of
    /// the squared loads, so it ends; there is always something to move, because the fullest holds more
    /// partitions than the emptiest and therefore one that the emptiest lacks.
    fn level(&mut self) {
        loop {
            let fullest = self.held.iter().rev().max_by_key(|(_, held)| held.len());
            let emptiest = self.held.iter().min_by_key(|(_, held)| held.len());
            let (Some((&from, full)), Some((&to, empty))) = (fullest, emptiest) else { return };
            if full.len() <= empty.len() + 1 {
                return;
            }
            let partition =
                full.difference(empty).next().copied().expect("the fullest holds what the emptiest lacks");
            for slot in self.replicas.get_mut(partition).into_iter().flatten().filter(|n| **n == from) {
                *slot = to;
            }
            if let Some(held) = self.held.get_mut(&from) {
                held.remove(&partition);
            }
            if let Some(held) = self.held.get_mut(&to) {
                held.insert(partition);
            }
        }
    }

    /// Evens out who comes first, by exchanging places within partitions: nothing moves for it.
    fn spread_preferred_leaders(&mut self) {
        let mut leads: BTreeMap<NodeId, usize> = self.held.keys().map(|n| (*n, 0)).collect();
        for first in self.replicas.iter().filter_map(|nodes| nodes.first()) {
            *leads.entry(*first).or_default() += 1;
        }
        // A pass may open the way for the next; it is a preference, so a few passes are enough.
        for _ in 0..4 {
            let mut changed = false;
            for nodes in &mut self.replicas {
                let load = |node: &NodeId| leads.get(node).copied().unwrap_or(0);
                let Some(first) = nodes.first().copied() else { continue };
                let Some((position, least)) =
                    nodes.iter().copied().enumerate().min_by_key(|(position, node)| (load(node), *position))
                else {
                    continue;
                };
                if load(&first) > load(&least) + 1 {
                    nodes.swap(0, position);
                    *leads.entry(first).or_default() -= 1;
                    *leads.entry(least).or_default() += 1;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(nodes: impl IntoIterator<Item = u64>) -> Ring {
        Ring::new(nodes.into_iter().map(NodeId))
    }

    fn loads(placement: &Placement, ring: &Ring) -> Vec<usize> {
        ring.nodes().iter().map(|n| placement.held_by(*n).count()).collect()
    }

    fn spread(loads: &[usize]) -> usize {
        loads.iter().max().unwrap() - loads.iter().min().unwrap()
    }

    fn assert_sound(placement: &Placement, ring: &Ring, partitions: u64, replication: usize) {
        assert_eq!(placement.partitions(), partitions);
        for partition in 0..partitions {
            let nodes = placement.replicas(PartitionId(partition)).unwrap();
            let distinct: BTreeSet<_> = nodes.iter().collect();
            assert_eq!((nodes.len(), distinct.len()), (replication, replication));
            assert!(nodes.iter().all(|n| ring.nodes().contains(n)));
        }
        assert_eq!(placement.replicas(PartitionId(partitions)), None);
        assert!(spread(&loads(placement, ring)) <= 1, "{:?}", loads(placement, ring));
    }

    /// The share of replicas that moved, and the most that R1 allows: 1/N + 5 %.
    fn moved(moves: &[Move], placement: &Placement, nodes: usize) -> (f64, f64) {
        let replicas = placement.partitions() as f64 * placement.replication() as f64;
        (moves.len() as f64 / replicas, 1.0 / nodes as f64 + 0.05)
    }

    /// R1: load spread, and moves at joining and leaving, for every size of cluster and several numbers of partitions.
    #[test]
    fn joining_and_leaving_move_at_most_one_nth_and_five_percent() {
        for partitions in [1u64, 8, 30, 64, 257, 1024] {
            for nodes in 2..=12u64 {
                for replication in (1..=5).filter(|r| *r < nodes) {
                    let replication = usize::try_from(replication).unwrap();
                    let small = ring(1..nodes);
                    let large = ring(1..=nodes);
                    let before = Placement::initial(&small, partitions, replication).unwrap();
                    assert_sound(&before, &small, partitions, replication);

                    let (joined, moves) = before.changed(&large).unwrap();
                    assert_sound(&joined, &large, partitions, replication);
                    assert!(moves.iter().all(|m| m.to == NodeId(nodes)), "only to the new node");
                    let (share, most) = moved(&moves, &joined, usize::try_from(nodes).unwrap());
                    assert!(
                        share <= most,
                        "{partitions} x {replication}, {nodes} nodes joined: {share} > {most}"
                    );

                    for leaver in [1, nodes / 2 + 1, nodes] {
                        let rest = ring((1..=nodes).filter(|n| *n != leaver));
                        let held = joined.held_by(NodeId(leaver)).count();
                        let (left, moves) = joined.changed(&rest).unwrap();
                        assert_sound(&left, &rest, partitions, replication);
                        assert!(moves.len() >= held);
                        // Few replicas cannot be divided finely: what the leaver held always has to move.
                        let (share, most) = moved(&moves, &joined, usize::try_from(nodes).unwrap());
                        assert!(
                            share <= most || moves.len() == held,
                            "{partitions} x {replication}, {leaver} of {nodes} left: {share} > {most}"
                        );
                    }
                }
            }
        }
    }

    /// The largest cluster map is level too, and preferred leaders are spread.
    #[test]
    fn the_largest_map() {
        let ring = ring(1..=16);
        let placement = Placement::initial(&ring, PARTITIONS_MAX, 3).unwrap();
        assert_sound(&placement, &ring, PARTITIONS_MAX, 3);
        let mut leads = BTreeMap::new();
        for partition in (0..PARTITIONS_MAX).map(PartitionId) {
            *leads.entry(placement.replicas(partition).unwrap()[0]).or_insert(0usize) += 1;
        }
        assert_eq!(leads.len(), 16);
        assert!(spread(&leads.into_values().collect::<Vec<_>>()) <= 2);
    }

    /// Three founders, three replicas: each leads its share, whatever the number of partitions.
    #[test]
    fn preferred_leaders_of_three() {
        for partitions in 1..=64u64 {
            let placement = Placement::initial(&ring([1, 2, 3]), partitions, 3).unwrap();
            let leads = [1, 2, 3]
                .map(|n| placement.replicas.iter().filter(|nodes| nodes.first() == Some(&NodeId(n))).count());
            assert!(spread(&leads) <= 1, "{partitions}: {leads:?}");
        }
    }

    /// Written down when version 1 was made: every founder must compute these, in every later release.
    #[test]
    fn pinned_placement() {
        let placement = Placement::initial(&ring(1..=5), 8, 3).unwrap();
        let found: Vec<Vec<u64>> =
            placement.replicas.iter().map(|nodes| nodes.iter().map(|n| n.get()).collect()).collect();
        assert_eq!(
            found,
            [[2, 1, 4], [2, 3, 4], [5, 4, 3], [1, 2, 3], [3, 1, 5], [4, 1, 2], [4, 5, 2], [3, 5, 1]]
        );
    }

    #[test]
    fn replacing_one_node_by_another_moves_only_its_replicas() {
        let before = Placement::initial(&ring(1..=5), 64, 3).unwrap();
        let (after, moves) = before.changed(&ring([1, 2, 3, 4, 9])).unwrap();
        assert_eq!(after.version(), 2);
        assert_eq!(moves.len(), before.held_by(NodeId(5)).count());
        assert!(moves.iter().all(|m| m.from == NodeId(5) && m.to == NodeId(9)), "{moves:?}");
    }

    #[test]
    fn refusals() {
        let ring = ring([1, 2]);
        assert_eq!(
            Placement::initial(&ring, 8, 3),
            Err(PlacementError::TooFewNodes { replication: 3, nodes: 2 })
        );
        for (partitions, replication, what) in [
            (0, 1, "partitions"),
            (PARTITIONS_MAX + 1, 1, "partitions"),
            (8, 0, "replication"),
            (8, 10, "replication"),
        ] {
            let error = Placement::initial(&ring, partitions, replication).unwrap_err();
            assert!(matches!(error, PlacementError::OutOfBounds { what: w, .. } if w == what), "{error}");
        }
        let two = Placement::initial(&ring, 8, 2).unwrap();
        assert!(two.changed(&Ring::new([NodeId(1)])).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_nodes_any_change(
            nodes in proptest::collection::btree_set(1u64..1000, 1..12),
            other in proptest::collection::btree_set(1u64..1000, 1..12),
            partitions in 1u64..80, replication in 1usize..5,
        ) {
            let (before, after) = (ring(nodes), ring(other));
            if let Ok(placement) = Placement::initial(&before, partitions, replication) {
                assert_sound(&placement, &before, partitions, replication);
                if let Ok((changed, _)) = placement.changed(&after) {
                    assert_sound(&changed, &after, partitions, replication);
                }
            }
        }
    }
}
