//! Reading the log, and comparing with the model.

use super::{DIR, NODE, Rig};
use std::path::Path;
use tidelog_io::Wait;
use tidelog_types::{Index, PartitionId, record};
use tidelog_wal::format::BatchHeader;
use tidelog_wal::{ReadError, ReadId, Run, inspect};

/// The batches of a log that is closed: file, offset, header.
pub fn batches(rig: &mut Rig) -> Vec<(String, u64, BatchHeader)> {
    rig.io = None;
    let mut found = Vec::new();
    inspect::walk(&mut rig.world.node(NODE), Path::new(DIR), inspect::Eyes::default(), &mut |item| {
        if let inspect::Item::Batch { file, offset, header, .. } = item {
            found.push((file.display().to_string(), offset, *header));
        }
    })
    .unwrap();
    found
}

/// The names of a log's segments, in order.
pub fn segments(rig: &Rig) -> Vec<String> {
    let ours = |f: &str| f.starts_with(DIR) && f.ends_with(".wal") && !f.contains("free-");
    let mut files: Vec<_> = rig.world.files(NODE).into_iter().map(|f| f.0).filter(|f| ours(f)).collect();
    files.sort_unstable();
    files
}

impl Rig {
    /// Starts a read; the result is in `reads` under the number returned.
    pub fn start_read(&mut self, partition: u64, first: u64, last: u64, bytes_max: usize) -> u64 {
        self.next_read += 1;
        let (wal, io) = (self.wal.as_mut().unwrap(), self.io.as_mut().unwrap());
        wal.read(io, ReadId(self.next_read), PartitionId(partition), Index(first), Index(last), bytes_max);
        self.next_read
    }

    /// Reads and waits.
    pub fn read(
        &mut self,
        partition: u64,
        first: u64,
        last: u64,
        bytes_max: usize,
    ) -> Result<Run, tidelog_wal::ReadError> {
        let read = self.start_read(partition, first, last, bytes_max);
        loop {
            self.tick();
            if let Some(result) = self.reads.remove(&read) {
                return result;
            }
            self.poll(Wait::Forever);
        }
    }

    /// Compares a run with the model.
    pub fn check_run(&mut self, partition: u64, run: &Run) {
        let part = self.now[&partition].clone();
        assert_eq!(run.prev_generation, part.position(run.first.0 - 1).generation);
        let mut index = run.first.0;
        for piece in &run.pieces {
            for item in record::records(piece) {
                let (_, header, payload) = item.expect("pieces hold whole records");
                let (generation, expected) = &part.entries[index as usize - 1];
                assert_eq!(
                    (header.partition.0, header.index.0, header.generation.0),
                    (partition, index, *generation)
                );
                assert!(payload == expected, "partition {partition} index {index}: payload");
                index += 1;
            }
        }
        assert_eq!(index, run.last.0 + 1);
        assert_eq!(run.bytes, run.pieces.iter().map(bytes::Bytes::len).sum::<usize>());
    }

    /// Reads every entry back. False: the node went down meanwhile.
    pub fn check_all(&mut self) -> bool {
        for (partition, part) in self.now.clone() {
            let sequenced = self.wal().sequenced(PartitionId(partition)).0;
            assert!(sequenced <= part.entries.len() as u64);
            let mut next = part.low.max(1);
            while next <= sequenced {
                if self.lost.contains_key(&(partition, next)) {
                    match self.read(partition, next, sequenced, 20 << 10) {
                        Err(ReadError::Damaged { index, .. }) => assert_eq!(index, Index(next)),
                        Err(_) if !self.alive() => return false,
                        other => panic!("partition {partition} index {next} is lost, and read: {other:?}"),
                    }
                    next += 1;
                    continue;
                }
                let run = match self.read(partition, next, sequenced, 20 << 10) {
                    Ok(run) => run,
                    Err(_) if !self.alive() => return false,
                    Err(e) => panic!("partition {partition} index {next}: {e}"),
                };
                assert_eq!(run.first.0, next);
                assert!(run.last.0 <= sequenced);
                self.check_run(partition, &run);
                next = run.last.0 + 1;
            }
        }
        true
    }
}
