//! The state machine of every simulated replica: it keeps word of what was applied, for the checkers, and a hash over all
//! of it, which is what its snapshots hold.

use std::sync::{Arc, Mutex, PoisonError};
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog_types::{Index, PartitionId};

/// One applied entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) partition: u64,
    pub(crate) index: u64,
    pub(crate) generation: u64,
    /// CRC32C of the payload; of what was restored: the hash over all payloads so far.
    pub(crate) payload_crc: u32,
    /// Not an entry, but everything up to it, from a snapshot.
    pub(crate) restored: bool,
}

/// The hash over all payloads, with one more.
pub(crate) fn hashed(hash: u32, payload_crc: u32) -> u32 {
    crc32c::crc32c_append(hash, &payload_crc.to_le_bytes())
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
        Box::new(Reporter { partition: partition.0, last: Index::ZERO, hash: 0, journal: self.clone() })
    }
}

struct Reporter {
    partition: u64,
    last: Index,
    hash: u32,
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
            restored: false,
        };
        self.hash = hashed(self.hash, step.payload_crc);
        self.journal.0.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    fn snapshot(&mut self) -> std::io::Result<SnapshotView> {
        // Some bytes besides, so that it takes more than one piece.
        let mut bytes = self.last.0.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.hash.to_le_bytes());
        bytes.resize(200_000, self.hash as u8);
        Ok(Box::new(std::io::Cursor::new(bytes)))
    }

    fn restore(&mut self, covered: Index, snapshot: &mut dyn std::io::Read) -> std::io::Result<()> {
        let (mut last, mut hash) = ([0; 8], [0; 4]);
        snapshot.read_exact(&mut last)?;
        snapshot.read_exact(&mut hash)?;
        self.last = Index(u64::from_le_bytes(last));
        self.hash = u32::from_le_bytes(hash);
        if self.last > covered {
            return Err(std::io::Error::other("the snapshot holds more than it covers"));
        }
        let (partition, index) = (self.partition, covered.0);
        let step = Step { partition, index, generation: 0, payload_crc: self.hash, restored: true };
        self.journal.0.lock().unwrap_or_else(PoisonError::into_inner).push(step);
        Ok(())
    }
}
