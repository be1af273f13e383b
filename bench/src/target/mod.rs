//! What a load of appends is driven into: an engine in this process, or a cluster over the network.

mod cluster;
mod handle;
mod inline;
mod queue;
mod threads;

pub use cluster::{ClusterOptions, ClusterTarget};
pub use handle::HandleTarget;
pub use inline::InlineTarget;
pub use queue::QueueTarget;
pub use threads::{THREADS_MAX, ThreadsTarget};

use crate::load::Outcome;
use tidelog::RequestError;
use tidelog_types::PartitionId;

/// What an engine's refusal means to a load.
fn outcome_of(error: &RequestError) -> Outcome {
    match error {
        RequestError::Busy { .. } | RequestError::NotLeader { .. } | RequestError::Unavailable(_) => {
            Outcome::Busy
        }
        RequestError::Unknown => Outcome::Unknown,
        _ => Outcome::Refused,
    }
}

/// One partition after the other.
#[derive(Debug)]
struct Rotation {
    next: u64,
    partitions: u64,
}

impl Rotation {
    fn new(partitions: u64) -> Rotation {
        Rotation { next: 0, partitions: partitions.max(1) }
    }

    fn next(&mut self) -> PartitionId {
        let partition = PartitionId(self.next);
        self.next = (self.next + 1) % self.partitions;
        partition
    }
}
