//! Snapshots: files that stand for a prefix of a partition's log, and what it takes until one counts.
//!
//! `format` says what the bytes are (`docs/formats/snapshot.md`), `files` where they lie and what an opening does with
//! them, `job` takes the steps of one, `driver` runs the shard's jobs one at a time. A snapshot counts when its mark is
//! durable in the shard's log, and not before; the mark is ordered only when the file was made durable, read back from
//! the device and verified, and renamed, and its directory synced. So at any crash the newest marked snapshot is whole, and
//! what is not marked is deleted at the next opening (invariants 10, 11).
//!
//! A file that cannot be written or read back is given up and the attempt repeated later: nothing depends on it yet. A
//! marked file that is missing or does not verify when the log is opened is damage: the partition is named, and never
//! served.

mod driver;
pub(crate) mod files;
pub mod format;
mod job;
#[cfg(test)]
mod tests;

pub(crate) use driver::{Beginning, Snapshots};
pub(crate) use job::Begun;
