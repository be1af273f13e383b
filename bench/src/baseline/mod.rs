//! Other ways to push the same batches to the same disk.
//!
//! Each takes the same records from the same load, frames them with the same checksums into the same batches, and makes each batch durable
//! into a file of zeros before it acknowledges: what differs is how the batch gets to the disk. The raw one and
//! the blocking one are always there; the two executors come with the feature `baselines`.

mod blocking;
#[cfg(feature = "baselines")]
mod glommio;
mod raw;
#[cfg(feature = "baselines")]
mod tokio_uring;

pub use blocking::BlockingTarget;
#[cfg(feature = "baselines")]
pub use glommio::GlommioTarget;
pub use raw::{DEPTH_MAX, RawTarget};
#[cfg(feature = "baselines")]
pub use tokio_uring::TokioUringTarget;

use crate::batch::Batcher;
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::load::{Done, Outcome, Target};
use std::path::Path;
use tidelog_io::{BackEnd, SyncMode};

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Baseline {
    /// The seam's back-end itself, without an engine: the floor.
    Raw,
    /// `pwrite` and `fdatasync` of the standard library, on the load generator's thread.
    Blocking,
    /// The executor glommio.
    Glommio,
    /// The executor tokio-uring.
    TokioUring,
}

impl Baseline {
    /// All of them.
    pub const ALL: [Baseline; 4] =
        [Baseline::Raw, Baseline::Blocking, Baseline::Glommio, Baseline::TokioUring];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Baseline::Raw => "raw",
            Baseline::Blocking => "blocking",
            Baseline::Glommio => "glommio",
            Baseline::TokioUring => "tokio-uring",
        }
    }

    /// The one of a name.
    pub fn named(name: &str) -> Option<Baseline> {
        Baseline::ALL.into_iter().find(|b| b.name() == name)
    }

    /// Opens it in `dir`. `back_end`, `sync` and `depth` (batches in flight) are for the raw one; the others
    /// write one batch at a time and sync with `fdatasync`, all that they offer.
    ///
    /// # Errors
    /// If it is not in this build, or cannot be opened here.
    pub fn open(
        self,
        dir: &Path,
        back_end: BackEnd,
        sync: SyncMode,
        depth: usize,
    ) -> Result<Box<dyn Target>, BenchError> {
        match self {
            Baseline::Raw => Ok(Box::new(RawTarget::open(dir, back_end, sync, depth)?)),
            Baseline::Blocking => Ok(Box::new(BlockingTarget::open(dir)?)),
            #[cfg(feature = "baselines")]
            Baseline::Glommio => Ok(Box::new(GlommioTarget::open(dir)?)),
            #[cfg(feature = "baselines")]
            Baseline::TokioUring => Ok(Box::new(TokioUringTarget::open(dir)?)),
            #[cfg(not(feature = "baselines"))]
            Baseline::Glommio | Baseline::TokioUring => Err(BenchError::NotBuilt { name: self.name() }),
        }
    }
}

/// Where the next batch goes in a file that is written round and round.
#[derive(Debug)]
struct Cursor {
    offset: u64,
    file_bytes: u64,
    batches: u64,
}

/// Bytes of the file, after which it starts again from the beginning.
const FILE_BYTES: u64 = 256 << 20;

impl Cursor {
    fn new(file_bytes: u64) -> Cursor {
        Cursor { offset: 0, file_bytes, batches: 0 }
    }

    /// The place of a batch of so many bytes.
    fn place(&mut self, bytes: usize) -> u64 {
        let bytes = bytes as u64;
        if self.offset + bytes > self.file_bytes {
            self.offset = 0;
        }
        let offset = self.offset;
        self.offset += bytes;
        self.batches += 1;
        offset
    }
}

/// One batch at a time: takes what has gathered, writes it with `write`, and reports its records.
fn write_one(
    batcher: &mut Batcher,
    cursor: &mut Cursor,
    until: Moment,
    done: &mut Vec<Done>,
    write: impl FnOnce(bytes::Bytes, u64) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    match batcher.take() {
        Some(batch) => {
            let offset = cursor.place(batch.bytes.len());
            write(batch.bytes, offset)?;
            done.extend(batch.tags.into_iter().map(|tag| Done { tag, outcome: Outcome::Acked }));
        }
        None => std::thread::park_timeout(until.since(clock::now())),
    }
    Ok(())
}

/// A back-end just to make files with.
fn file_maker() -> Result<Box<dyn tidelog_io::Io>, BenchError> {
    Ok(tidelog_io::open_back_end(BackEnd::Blocking, &tidelog_io::IoOptions::small())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{Driver, Measured, Pace};
    use crate::usage::Meter;
    use core::time::Duration;

    #[test]
    fn names_are_told_apart() {
        for baseline in Baseline::ALL {
            assert_eq!(Baseline::named(baseline.name()), Some(baseline));
        }
        assert_eq!(Baseline::named("floor"), None);
    }

    #[test]
    fn each_one_in_this_build_takes_a_load() {
        for (baseline, back_end, depth) in [
            (Baseline::Raw, BackEnd::Uring, 2),
            (Baseline::Raw, BackEnd::Blocking, 1),
            (Baseline::Blocking, BackEnd::Blocking, 1),
            (Baseline::Glommio, BackEnd::Uring, 1),
            (Baseline::TokioUring, BackEnd::Uring, 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut target = match baseline.open(dir.path(), back_end, SyncMode::Fdatasync, depth) {
                Ok(target) => target,
                // Not in this build, or io_uring is forbidden here, which other tests report.
                Err(BenchError::NotBuilt { .. } | BenchError::BackEnd(_)) => continue,
                Err(error) => panic!("{baseline:?}: {error}"),
            };
            let meter = Meter::new(Some(dir.path()), Vec::new());
            let mut measured = Measured::new(Duration::from_secs(1));
            let mut driver = Driver::new(Pace::Closed { writers: 20 }, 5000).unwrap();
            let (warm, measure) = (Duration::from_millis(1), Duration::from_millis(20));
            while measured.acked < 40 {
                driver.span(&mut *target, &meter, warm, measure, &mut measured).unwrap();
            }
            let batches = target.batches().unwrap();
            assert!(batches >= measured.batches.unwrap() && batches > 0, "{baseline:?}: {batches} batches");
            target.close().unwrap();
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "{baseline:?}");
        }
    }

    #[test]
    fn places_wrap_before_the_end() {
        let mut cursor = Cursor::new(10_000);
        assert_eq!([cursor.place(4096), cursor.place(4096), cursor.place(4096)], [0, 4096, 0]);
        assert_eq!(cursor.batches, 3);
    }
}
