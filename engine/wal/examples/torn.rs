//! How often a batch that a power loss tore is *suspect*: its footer arrived, and not all of what it names.
//!
//! `cargo run --release -p tidelog-wal --example torn -- [TRIALS [ROW]]`: the log writes a batch on the simulated disk; then, TRIALS times,
//! some of its sectors are put back to what was there before, and the reader says what it takes the tail for. The table is in
//! `docs/decisions/0033`. Only sectors that differ from what was there count; a trial in which all or none of them arrive tears nothing
//! and is drawn again. Of batches of a thousand sectors a tenth of the trials is made. ROW: the first row, from 0.

#[path = "../tests/common/mod.rs"]
mod common;

use common::{DIR, NODE, Rig, whole};
use std::path::Path;
use tidelog_sim::{Random, SECTOR_BYTES, SimIo, World};
use tidelog_wal::{Options, Verdict, inspect};

/// How sectors arrive.
#[derive(Clone, Copy)]
enum Arrival {
    /// From the first on, up to any one.
    InOrder,
    /// Each by itself, with so many chances in eight.
    Each(u64),
}

const ARRIVALS: [Arrival; 4] = [Arrival::InOrder, Arrival::Each(1), Arrival::Each(4), Arrival::Each(7)];

/// A batch on the disk, the last of its log.
struct Batch {
    world: World,
    io: SimIo,
    file: String,
    offset: u64,
    bytes: Vec<u8>,
    /// Its sectors that are not zero: before it, its place was.
    sectors: Vec<usize>,
}

impl Batch {
    fn of(records: u64, payload_bytes: usize, partitions: u64) -> Batch {
        // The reader looks at every page behind a bad batch: no larger segment than the batch needs.
        let batch_bytes_max =
            (records as usize * (payload_bytes + 256) * 9 / 8 + 131_072).next_multiple_of(4096);
        let segment_bytes = 2 * batch_bytes_max as u64 + 65_536;
        let options = Options { segment_bytes, batch_bytes_max, ..whole() };
        let mut rig = Rig::new(1, options);
        rig.open().expect("it opens");
        for partition in 0..partitions {
            rig.entry(partition, b"before").expect("there is room");
        }
        rig.drain();
        let batches = rig.wal().stats().batches;
        let mut random = Random::new(records);
        for n in 0..records {
            // No sector of it is all zeros.
            let payload: Vec<u8> = (0..payload_bytes).map(|_| random.bits() as u8 | 1).collect();
            rig.entry(n % partitions, &payload).expect("there is room");
        }
        rig.drain();
        assert_eq!(rig.wal().stats().batches, batches + 1, "it is one batch");
        rig.world.crash(NODE);
        let world = rig.world;
        let mut io = world.node(NODE);
        let mut last = None;
        inspect::walk(&mut io, Path::new(DIR), inspect::Eyes::default(), &mut |item| {
            if let inspect::Item::Batch { file, offset, header, .. } = item {
                last = Some((file.display().to_string(), offset, header.total_len as usize));
            }
        })
        .expect("the log is sound");
        let (file, offset, len) = last.expect("there is a batch");
        let all = world.read_raw(NODE, &file).expect("the file");
        let bytes = all[offset as usize..offset as usize + len].to_vec();
        let sectors =
            bytes.chunks(SECTOR_BYTES).enumerate().filter(|(_, sector)| sector.iter().any(|b| *b != 0));
        let sectors = sectors.map(|(at, _)| at).collect();
        Batch { world, io, file, offset, bytes, sectors }
    }

    /// Which of its sectors arrive: not all of them, and not none.
    fn draw(&self, arrival: Arrival, random: &mut Random) -> Vec<bool> {
        let count = self.sectors.len();
        loop {
            let arrived: Vec<bool> = match arrival {
                Arrival::InOrder => {
                    let reached = random.below(count as u64 + 1) as usize;
                    (0..count).map(|at| at < reached).collect()
                }
                Arrival::Each(odds) => (0..count).map(|_| random.below(8) < odds).collect(),
            };
            if arrived.contains(&true) && arrived.contains(&false) {
                return arrived;
            }
        }
    }

    /// What the tail is taken for with those sectors; none: the batch is accepted, because only its footer is torn.
    fn verdict(&mut self, arrived: &[bool]) -> Option<Verdict> {
        let mut torn = vec![0; self.bytes.len()];
        for (at, _) in self.sectors.iter().zip(arrived).filter(|(_, arrived)| **arrived) {
            let range = at * SECTOR_BYTES..(at + 1) * SECTOR_BYTES;
            torn[range.clone()].copy_from_slice(&self.bytes[range]);
        }
        assert!(self.world.write_raw(NODE, &self.file, self.offset, &torn));
        let report =
            inspect::verify(&mut self.io, Path::new(DIR), inspect::Eyes::default()).expect("it can be read");
        assert!(report.findings.len() <= 1 && !report.is_damaged(), "{report:?}");
        report.findings.first().map(|finding| {
            assert_eq!(finding.offset, self.offset);
            finding.verdict
        })
    }
}

fn main() {
    let first = std::env::args().nth(2).map_or(0, |n| n.parse().expect("the number of a row"));
    let trials: u64 = std::env::args().nth(1).map_or(2000, |n| n.parse().expect("a number of trials"));
    println!(
        "| Records | Bytes each | Partitions | Sectors | In order | 1/8 arrive | 1/2 arrive | 7/8 arrive |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut rows: Vec<(u64, usize, u64)> = Vec::new();
    for payload_bytes in [128, 1 << 10, 16 << 10] {
        rows.extend([1, 4, 16, 64].map(|records| (records, payload_bytes, 1)));
    }
    rows.extend([(16, 1 << 10, 16), (64, 1 << 10, 64)]);
    for (records, payload_bytes, partitions) in rows.into_iter().skip(first) {
        let mut batch = Batch::of(records, payload_bytes, partitions);
        let mut random = Random::new(payload_bytes as u64 + records);
        let trials = if batch.sectors.len() > 1000 { trials / 10 } else { trials };
        let cells = ARRIVALS.map(|arrival| {
            let mut suspect = 0;
            for _ in 0..trials {
                let arrived = batch.draw(arrival, &mut random);
                match batch.verdict(&arrived) {
                    Some(Verdict::Suspect) => suspect += 1,
                    None | Some(Verdict::Torn) => {}
                    Some(other) => panic!("a torn tail is {other}"),
                }
            }
            format!("{:.1} %", suspect as f64 * 100.0 / trials as f64)
        });
        let sectors = batch.sectors.len();
        println!("| {records} | {payload_bytes} | {partitions} | {sectors} | {} |", cells.join(" | "));
    }
}
