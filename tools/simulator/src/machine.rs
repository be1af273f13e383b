//! The state machine of every simulated replica: it keeps nothing but word of what was applied, for the checkers.

use std::sync::{Arc, Mutex, PoisonError};
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog_types::{Index, PartitionId};

/// One applied entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) partition: u64,
    pub(crate) index: u64,
    pub(crate) generation: u64,
    pub(crate) payload_crc: u32,
}

/// What a process applied since it was last asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Step>>>);

impl Journal {
    /// Everything new.
    pub(crate) fn take(&self) -> Vec<Step> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A state machine that reports here.
    pub(crate) fn machine(&self, partition: PartitionId) -> Box<dyn StateMachine> {
        Box::new(Reporter { partition: partition.0, last: Index::ZERO, journal: self.clone() })
    }
}

struct Reporter {
    partition: u64,
    last: Index,
    journal: Journal,
}

impl StateMachine for Reporter {
    fn apply(&mut self, entry: Applied<'_>) {
        self.last = entry.index;
        let step = Step {
            partition: self.partition,
            index: entry.index.0,
            generation: entry.generation.0,
            payload_crc: crc32c::crc32c(entry.payload),
        };
        self.journal.0.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    fn snapshot(&mut self) -> std::io::Result<SnapshotView> {
        Ok(Box::new(std::io::Cursor::new(self.last.0.to_le_bytes())))
    }

    fn restore(&mut self, covered: Index, snapshot: &mut dyn std::io::Read) -> std::io::Result<()> {
        let mut bytes = [0; 8];
        snapshot.read_exact(&mut bytes)?;
        self.last = Index(u64::from_le_bytes(bytes));
        if self.last > covered {
            return Err(std::io::Error::other("the snapshot holds more than it covers"));
        }
        Ok(())
    }
}
