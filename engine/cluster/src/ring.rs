//! The ring of virtual nodes.
//!
//! Each node owns [`VIRTUAL_NODES`] points on a circle of 2^64; a partition has one point, and asks the nodes in
//! the order in which it meets them going round. A node that comes or goes changes that order only where its own points are.

use crate::key::key_hash;
use tidelog_types::{NodeId, PartitionId};

/// Points of one node. Part of the placement's version.
const VIRTUAL_NODES: u64 = 128;

/// Nodes on a circle.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Sorted by point, then node.
    points: Vec<(u64, NodeId)>,
    /// Sorted, distinct.
    nodes: Vec<NodeId>,
}

impl Ring {
    /// A ring of these nodes; order and repetitions do not matter.
    ///
    /// ```
    /// use tidelog_cluster::Ring;
    /// use tidelog_types::{NodeId, PartitionId};
    /// let ring = Ring::new([NodeId(1), NodeId(2), NodeId(3)]);
    /// assert_eq!(ring.preference(PartitionId(0)).count(), 3);
    /// ```
    pub fn new(nodes: impl IntoIterator<Item = NodeId>) -> Ring {
        let mut nodes: Vec<NodeId> = nodes.into_iter().collect();
        nodes.sort_unstable();
        nodes.dedup();
        let mut points: Vec<(u64, NodeId)> = nodes
            .iter()
            .flat_map(|node| (0..VIRTUAL_NODES).map(move |v| (point(node.get(), v), *node)))
            .collect();
        points.sort_unstable();
        Ring { points, nodes }
    }

    /// The nodes, sorted.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// All nodes, each once, in the order in which a partition prefers them.
    pub fn preference(&self, partition: PartitionId) -> impl Iterator<Item = NodeId> {
        let start = point(partition.get(), u64::MAX);
        let first = self.points.partition_point(|(at, _)| *at < start);
        let mut met: Vec<NodeId> = Vec::with_capacity(self.nodes.len());
        self.points
            .iter()
            .cycle()
            .skip(first)
            .take(self.points.len())
            .map(|(_, node)| *node)
            .filter(move |node| {
                let new = !met.contains(node);
                if new {
                    met.push(*node);
                }
                new
            })
            .take(self.nodes.len())
    }
}

/// The point of a node's virtual node, or of a partition (`which` = `u64::MAX`, which no virtual node has).
fn point(id: u64, which: u64) -> u64 {
    let mut name = [0u8; 16];
    let (left, right) = name.split_at_mut(8);
    left.copy_from_slice(&id.to_le_bytes());
    right.copy_from_slice(&which.to_le_bytes());
    key_hash(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(nodes: u64) -> Ring {
        Ring::new((1..=nodes).map(NodeId))
    }

    #[test]
    fn every_partition_meets_every_node_once() {
        for nodes in 0..=9 {
            let ring = ring(nodes);
            for partition in 0..64 {
                let mut met: Vec<NodeId> = ring.preference(PartitionId(partition)).collect();
                met.sort_unstable();
                assert_eq!(met, ring.nodes());
            }
        }
    }

    #[test]
    fn order_and_repetition_of_the_input_do_not_matter() {
        let (a, b) = (ring(3), Ring::new([3, 1, 2, 1].map(NodeId)));
        for partition in (0..64).map(PartitionId) {
            assert!(a.preference(partition).eq(b.preference(partition)));
        }
    }

    /// A new node is put in between: the others keep their order.
    #[test]
    fn a_new_node_does_not_reorder_the_others() {
        let (before, after) = (ring(5), ring(6));
        for partition in (0..256).map(PartitionId) {
            assert!(before.preference(partition).eq(after.preference(partition).filter(|n| *n != NodeId(6))));
        }
    }

    /// The raw ring, before loads are levelled: the share of first choices stays within 25 % of its mean.
    #[test]
    fn first_choices_spread() {
        for nodes in [3u64, 5, 9] {
            let ring = ring(nodes);
            let partitions = 1u32 << 14;
            let mut firsts = vec![0u32; usize::try_from(nodes).unwrap() + 1];
            for partition in 0..u64::from(partitions) {
                let first = ring.preference(PartitionId(partition)).next().unwrap();
                firsts[usize::try_from(first.get()).unwrap()] += 1;
            }
            let mean = f64::from(partitions) / nodes as f64;
            for load in &firsts[1..] {
                assert!((f64::from(*load) - mean).abs() < 0.25 * mean, "{nodes} nodes: {firsts:?}");
            }
        }
    }
}
