//! Where each kind of structure lies in a node's files: what a test of damage aims at.
//!
//! It reads the log by `wal dump` and, for what a dump does not show (headers, footers), by the formats under `docs/formats`. It knows
//! nothing of what is still live: what was written is there to be hit.

use crate::command::tidelog;
use std::collections::BTreeMap;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A kind of structure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Kind {
    IdentityFirst,
    IdentitySecond,
    SegmentHeader,
    SegmentHeaderCopy,
    BatchHeader,
    RecordHeader,
    Payload,
    FooterOwn,
    FooterEcho,
    Promise,
    NoOp,
    HighWater,
    Summary,
    CheckpointChunk,
    CheckpointEnd,
    /// A batch that an opening wrote.
    Opening,
    /// The last batch of an earlier life.
    LastOfALife,
    /// The last one that there is.
    Last,
}

/// The bytes of one structure; all but zeros that nobody looks at.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) file: PathBuf,
    pub(crate) bytes: Range<u64>,
    /// Where a report would say that it lies: the batch's offset, or the structure's own.
    pub(crate) at: u64,
}

pub(crate) type Targets = BTreeMap<Kind, Vec<Target>>;

/// What there is to aim at in a data directory.
pub(crate) fn targets(data: &Path) -> Targets {
    let said =
        tidelog(&["wal", "dump", "--output", "json", "--payload", "none", data.to_str().expect("UTF-8")]);
    let mut targets = Targets::new();
    let identity = data.join("identity");
    for (kind, at) in [(Kind::IdentityFirst, 0), (Kind::IdentitySecond, 4096)] {
        let target = Target { file: identity.clone(), bytes: at..at + 64, at };
        targets.entry(kind).or_default().push(target);
    }
    let lines = said.json();
    let mut batch = None;
    let mut epoch_before = None;
    let mut last_batch = None;
    for line in &lines {
        let file = || PathBuf::from(line["file"].as_str().expect("a path"));
        let number = |field: &str| line[field].as_u64().expect("a number");
        let mut add = |kind, file: PathBuf, bytes: Range<u64>, at| {
            targets.entry(kind).or_default().push(Target { file, bytes, at });
        };
        match line["event"].as_str().expect("an event") {
            "segment" => {
                add(Kind::SegmentHeader, file(), 0..76, 0);
                add(Kind::SegmentHeaderCopy, file(), 4096..4096 + 76, 4096);
            }
            "batch" => {
                let at = number("offset");
                if epoch_before.is_some_and(|before| before != number("epoch"))
                    && let Some((file, at)) = last_batch.take()
                {
                    add(Kind::LastOfALife, file, at..at + 120, at);
                }
                epoch_before = Some(number("epoch"));
                add(Kind::BatchHeader, file(), at..at + 120, at);
                if line["flags"].as_array().is_some_and(|flags| flags.contains(&"open".into())) {
                    add(Kind::Opening, file(), at..at + 120, at);
                }
                if line["footer"] == true {
                    let (own, echo) = footer(&file(), at);
                    add(Kind::FooterOwn, file(), own, at);
                    if !echo.is_empty() {
                        add(Kind::FooterEcho, file(), echo, at);
                    }
                }
                last_batch = Some((file(), at));
                batch = Some(at);
            }
            "record" => {
                let batch = batch.expect("a record lies in a batch");
                let at = number("offset");
                // A header without its zero at the end; an extension is hit as part of the payload would be, never here.
                let header = at..at + 60;
                let behind = at + 64 + if extended(&file(), at) { 64 } else { 0 };
                let payload = behind..behind + number("payload_bytes");
                match line["kind"].as_str().expect("a kind") {
                    "data" => {
                        add(Kind::RecordHeader, file(), header, batch);
                        add(Kind::Payload, file(), payload, batch);
                    }
                    "promise" => add(Kind::Promise, file(), header, batch),
                    "noop" => add(Kind::NoOp, file(), header, batch),
                    "high_water" => add(Kind::HighWater, file(), header, batch),
                    "summary" => add(Kind::Summary, file(), payload, batch),
                    "checkpoint_chunk" => add(Kind::CheckpointChunk, file(), payload, batch),
                    "checkpoint_end" => add(Kind::CheckpointEnd, file(), payload, batch),
                    _ => {}
                }
            }
            _ => {}
        }
    }
    if let Some((file, at)) = last_batch {
        targets.entry(Kind::Last).or_default().push(Target { file, bytes: at..at + 120, at });
    }
    targets.retain(|_, of_kind| {
        of_kind.retain(|target| !target.bytes.is_empty());
        !of_kind.is_empty()
    });
    targets
}

fn little(file: &Path, at: u64) -> u64 {
    let mut bytes = [0; 4];
    let handle = std::fs::File::open(file).expect("the segment");
    handle.read_exact_at(&mut bytes, at).expect("a read");
    u64::from(u32::from_le_bytes(bytes))
}

/// A batch's footer: its head with what it says of its own batch, and what it says of the one before.
fn footer(file: &Path, batch: u64) -> (Range<u64>, Range<u64>) {
    let at = batch + little(file, batch + 84);
    let own_end = at + 64 + 40 * little(file, at + 40);
    (at..own_end, own_end..own_end + 40 * little(file, at + 44))
}

fn extended(file: &Path, record: u64) -> bool {
    // Flags are the upper half of the four bytes from offset 12 on.
    (little(file, record + 12) >> 16) & 1 != 0
}

/// Turns one bit over.
pub(crate) fn flip(file: &Path, at: u64, bit: u32) {
    let handle = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("the file");
    let mut byte = [0];
    handle.read_exact_at(&mut byte, at).expect("a read");
    byte[0] ^= 1 << bit;
    handle.write_all_at(&byte, at).expect("a write");
}
