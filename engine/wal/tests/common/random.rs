//! Random acts: what a log may be told, whatever that is.

use super::Rig;
use std::time::Duration;
use tidelog_io::Wait;
use tidelog_sim::Random;
use tidelog_types::PartitionId;

impl Rig {
    /// One random act or wait.
    pub fn random_step(&mut self, random: &mut Random, partitions: u64, payload_max: u64) {
        let partition = random.below(partitions);
        let (last, promise) = {
            let part = self.part(partition);
            (part.last(), part.promise)
        };
        let mark = self.marks.get(&partition).copied().unwrap_or(0);
        let payload = |random: &mut Random| {
            let len = random.below(payload_max + 1);
            let fill = random.bits() as u8;
            (0..len).map(|i| fill.wrapping_add(i as u8)).collect::<Vec<u8>>()
        };
        let low = self.part(partition).low;
        let kept = self.marked.get(&partition).copied().unwrap_or(0);
        let result = match random.below(21) {
            0..=7 => self.entry(partition, &payload(random)),
            8..=9 if promise.0 > 0 => {
                let mut generation = last.generation.0.max(1);
                let mut entries = Vec::new();
                for _ in 0..=random.below(5) {
                    generation += random.below(promise.0 - generation + 1);
                    entries.push((generation, payload(random)));
                }
                self.records(partition, &entries)
            }
            10 => self.promise(partition, promise.0 + 1 + random.below(2), random.below(4)),
            11 if promise.0 > 0 && promise.1 == 0 => self.promise(partition, promise.0, 1 + random.below(3)),
            12 => self.cut(partition, random.between((kept.min(last.index.0), last.index.0))),
            13 => {
                self.mark(partition, random.between((mark, last.index.0)));
                Ok(())
            }
            14..=16 => {
                self.flush();
                Ok(())
            }
            19 if mark > low => self.low_water(partition, random.between((low, mark))),
            17 => {
                self.rest(Duration::from_millis(random.below(12)));
                Ok(())
            }
            18 if last.index.0 > 0 => {
                let sequenced = self.wal().sequenced(PartitionId(partition)).0;
                if sequenced > 0 {
                    let first = random.between((low.max(1).min(sequenced), sequenced));
                    self.start_read(
                        partition,
                        first,
                        first + random.below(20),
                        random.below(30_000) as usize,
                    );
                }
                Ok(())
            }
            _ => {
                self.poll(Wait::No);
                Ok(())
            }
        };
        if result.is_err() && self.fenced.is_none() && self.alive() {
            self.flush();
            if self.wal().stats().in_flight > 0 {
                self.poll(Wait::Forever);
            }
        }
    }
}
