//! An engine in this process through its append queue: one thread with many records in flight takes its answers in bulk, as a server does
//! that writes for clients of its own.

use super::{Rotation, outcome_of};
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::load::{Done, Outcome, Target};
use bytes::Bytes;
use tidelog::config::Config;
use tidelog::{AppendQueue, Appended, Engine, Partition};
use tidelog_types::PartitionId;

/// See the module.
pub struct QueueTarget {
    queue: AppendQueue,
    engine: Engine,
    partitions: Vec<Partition>,
    rotation: Rotation,
    appended: Vec<Appended>,
    refused: Vec<Done>,
}

impl QueueTarget {
    /// Opens a single node.
    ///
    /// # Errors
    /// If the engine does not open.
    pub fn open(config: Config, in_flight_max: u32) -> Result<QueueTarget, BenchError> {
        let count = config.cluster.partitions;
        let engine = Engine::open(config)?;
        let partitions: Vec<Partition> =
            (0..count).filter_map(|id| engine.partition_by_id(PartitionId(id))).collect();
        assert_eq!(partitions.len() as u64, count, "a single node has every partition");
        Ok(QueueTarget {
            queue: engine.append_queue(in_flight_max as usize),
            engine,
            partitions,
            rotation: Rotation::new(count),
            appended: Vec::new(),
            refused: Vec::new(),
        })
    }
}

impl Target for QueueTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        let partition = self.rotation.next();
        // Dense from 0, as `open` asserts.
        let partition = &self.partitions[partition.0 as usize];
        if let Err(error) = self.queue.append(partition, tag, payload) {
            self.refused.push(Done { tag, outcome: outcome_of(&error) });
        }
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        done.append(&mut self.refused);
        loop {
            let left = until.since(clock::now());
            self.queue.wait(Some(left), &mut self.appended);
            done.extend(self.appended.drain(..).map(|Appended { tag, result }| Done {
                tag,
                outcome: result.as_ref().map_or_else(outcome_of, |_| Outcome::Acked),
            }));
            if !done.is_empty() || left.is_zero() {
                return Ok(());
            }
            if self.queue.in_flight() == 0 {
                std::thread::park_timeout(left);
            }
        }
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        Ok(self.engine.close()?)
    }
}
