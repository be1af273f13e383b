//! The raw device's own figures, in the directory that the load writes to and in the same run.
//!
//! Through the same seam as the engine, so that what differs is what the engine does: sync append by size (the bare durable-write
//! loop), over each back-end and in each way of making a write durable, and direct sequential reads. Measured in rounds that take turns
//! with the load, because the same device moves by a third from minute to minute; the report has the medians.

use crate::clock;
use crate::error::BenchError;
use crate::payload::{Payloads, Stamp};
use crate::scratch::ScratchFile;
use bytes::Bytes;
use core::fmt::{self, Display, Formatter};
use core::time::Duration;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::path::Path;
use tidelog_io::{
    AlignedBuf, BackEnd, BackEndError, Completion, FileId, Io, IoOptions, Op, Output, SyncMode, Token,
    TokenClass, Wait, open_back_end,
};

/// Sizes of the sync appends.
pub const APPEND_BYTES: [usize; 4] = [4 << 10, 16 << 10, 64 << 10, 1 << 20];
const READ_BYTES: usize = 1 << 20;
const READ_DEPTHS: [usize; 2] = [1, 4];
const FILE_BYTES: u64 = 64 << 20;
/// At least so many operations in a cell, however slow they are.
const OPERATIONS_MIN: u64 = 5;

/// A way to write.
struct Way {
    back_end: BackEnd,
    sync: SyncMode,
    io: Box<dyn Io>,
    file: FileId,
}

/// One size in one way, over all rounds.
#[derive(Debug)]
struct Cell {
    per_s: Vec<f64>,
    nanos: Histogram<u64>,
}

impl Cell {
    fn new() -> Cell {
        let nanos = Histogram::new_with_bounds(1, 60_000_000_000, 3);
        Cell { per_s: Vec::new(), nanos: nanos.expect("the bounds are constant and valid") }
    }

    fn micros(&self, quantile: f64) -> f64 {
        (self.nanos.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0
    }

    fn median(&self) -> f64 {
        let mut sorted = self.per_s.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2],
            n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
        }
    }
}

/// The device under a directory, being measured.
pub struct Device {
    ways: Vec<Way>,
    appends: Vec<Cell>,
    reads: Vec<Cell>,
    data: Bytes,
    rounds: u32,
    offset: u64,
    scratch: ScratchFile,
    notes: Vec<String>,
}

/// Sync append of one size in one way.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct AppendFigures {
    /// Of each write.
    pub bytes: usize,
    /// Through which back-end.
    pub back_end: &'static str,
    /// How it is made durable.
    pub sync: &'static str,
    /// Durable writes per second, one at a time: the median of the rounds.
    pub per_s: f64,
    /// The same in bytes.
    pub bytes_per_s: f64,
    /// Median latency.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
}

/// Direct sequential reads.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ReadFigures {
    /// Of each read.
    pub bytes: usize,
    /// So many at once.
    pub depth: usize,
    /// The median of the rounds.
    pub bytes_per_s: f64,
}

/// A lone writer's durable writes of one page, in the way whose median is best: what one writer's latency compares with.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct LoneWrite {
    /// Through which back-end.
    pub back_end: &'static str,
    /// How it is made durable.
    pub sync: &'static str,
    /// Median latency.
    pub p50_us: f64,
    /// 99 of 100 took at most this.
    pub p99_us: f64,
}

/// The device's figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct DeviceReport {
    /// Rounds that the medians are of.
    pub rounds: u32,
    /// Sync appends.
    pub sync_append: Vec<AppendFigures>,
    /// See [`LoneWrite`].
    pub lone_write: Option<LoneWrite>,
    /// Reads.
    pub read: Vec<ReadFigures>,
    /// What could not be measured, and why.
    pub notes: Vec<String>,
}

/// A back-end's name.
pub const fn back_end_name(back_end: BackEnd) -> &'static str {
    match back_end {
        BackEnd::Uring => "uring",
        BackEnd::Blocking => "blocking",
    }
}

/// A sync mode's name.
pub const fn sync_name(sync: SyncMode) -> &'static str {
    match sync.resolved() {
        SyncMode::Fdatasync => "fdatasync",
        _ => "dsync",
    }
}

const TOKEN: Token = Token { class: TokenClass::Other, value: 1 };

impl Device {
    /// Prepares to measure in `dir`, which is created if need be: takes 64 MiB there until it is dropped.
    ///
    /// # Errors
    /// If the file cannot be made. A back-end that is not there is left out, with a note.
    pub fn open(dir: &Path) -> Result<Device, BenchError> {
        let mut first = open_back_end(BackEnd::Blocking, &IoOptions::small())?;
        let scratch = ScratchFile::create(&mut *first, dir, FILE_BYTES)?;
        drop(first);
        let (mut ways, mut notes) = (Vec::new(), Vec::new());
        for back_end in [BackEnd::Uring, BackEnd::Blocking] {
            for sync in [SyncMode::Dsync, SyncMode::Fdatasync] {
                match Way::open(back_end, sync, &scratch)? {
                    Ok(way) => ways.push(way),
                    Err(error) => notes.push(format!("{}: {error}", back_end_name(back_end))),
                }
            }
        }
        notes.dedup();
        Ok(Device {
            appends: (0..ways.len() * APPEND_BYTES.len()).map(|_| Cell::new()).collect(),
            reads: READ_DEPTHS.iter().map(|_| Cell::new()).collect(),
            data: noise(
                &*ways.first().ok_or_else(|| BenchError::Target("no back-end can be opened".into()))?.io,
            ),
            ways,
            rounds: 0,
            offset: 0,
            scratch,
            notes,
        })
    }

    /// Measures every cell once, for about `each`.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn round(&mut self, each: Duration) -> Result<(), BenchError> {
        let mut cells = self.appends.iter_mut();
        for bytes in APPEND_BYTES {
            let data = self.data.slice(..bytes);
            for (way, cell) in self.ways.iter_mut().zip(&mut cells) {
                let mut clock = Stopwatch::start();
                while clock.goes_on(each) {
                    if self.offset + bytes as u64 > self.scratch.bytes() {
                        self.offset = 0;
                    }
                    let data = vec![data.clone()];
                    way.run(Op::WriteDurable { file: way.file, offset: self.offset, data })?;
                    self.offset += bytes as u64;
                    cell.nanos.saturating_record(clock.lap());
                }
                cell.per_s.push(clock.per_s());
            }
        }
        if let Some(way) = self.ways.first_mut() {
            for (depth, cell) in READ_DEPTHS.into_iter().zip(&mut self.reads) {
                cell.per_s.push(way.read(self.scratch.bytes(), depth, each)?);
            }
        }
        self.rounds += 1;
        Ok(())
    }

    /// The figures so far.
    pub fn report(&self) -> DeviceReport {
        let sizes = APPEND_BYTES.into_iter().flat_map(|bytes| self.ways.iter().map(move |way| (bytes, way)));
        let sync_append: Vec<AppendFigures> = sizes
            .zip(&self.appends)
            .map(|((bytes, way), cell)| AppendFigures {
                bytes,
                back_end: back_end_name(way.back_end),
                sync: sync_name(way.sync),
                per_s: cell.median().round(),
                bytes_per_s: (cell.median() * bytes as f64).round(),
                p50_us: cell.micros(0.5),
                p99_us: cell.micros(0.99),
            })
            .collect();
        let read = READ_DEPTHS.into_iter().zip(&self.reads).map(|(depth, cell)| ReadFigures {
            bytes: READ_BYTES,
            depth,
            bytes_per_s: (cell.median() * READ_BYTES as f64).round(),
        });
        let lone = sync_append.iter().filter(|f| f.bytes == APPEND_BYTES[0]);
        let lone = lone.min_by(|a, b| a.p50_us.total_cmp(&b.p50_us));
        DeviceReport {
            rounds: self.rounds,
            lone_write: lone.map(|f| LoneWrite {
                back_end: f.back_end,
                sync: f.sync,
                p50_us: f.p50_us,
                p99_us: f.p99_us,
            }),
            read: read.collect(),
            sync_append,
            notes: self.notes.clone(),
        }
    }
}

/// Incompressible pages.
fn noise(io: &dyn Io) -> Bytes {
    let longest = APPEND_BYTES[APPEND_BYTES.len() - 1];
    let mut buffer = io.buffers().take(longest);
    let mut payloads = Payloads::new(longest).expect("it is a payload's length");
    buffer.copy_from_slice(&payloads.make(Stamp { writer: 0, sequence: 0 }));
    buffer.freeze()
}

impl Way {
    fn open(
        back_end: BackEnd,
        sync: SyncMode,
        scratch: &ScratchFile,
    ) -> Result<Result<Way, BackEndError>, BenchError> {
        let mut io = match open_back_end(back_end, &IoOptions { sync, ..IoOptions::small() }) {
            Ok(io) => io,
            Err(error) => return Ok(Err(error)),
        };
        let file = scratch.open(&mut *io)?;
        Ok(Ok(Way { back_end, sync, io, file }))
    }

    fn run(&mut self, op: Op) -> Result<Output, BenchError> {
        self.io.submit(TOKEN, op);
        let mut done: Vec<Completion> = Vec::with_capacity(1);
        while done.is_empty() {
            self.io.poll(Wait::Forever, &mut done);
        }
        Ok(done.remove(0).result?)
    }

    /// Reads per second, `depth` at once, from the start of the file on.
    fn read(&mut self, file_bytes: u64, depth: usize, each: Duration) -> Result<f64, BenchError> {
        let mut idle: Vec<AlignedBuf> = (0..depth).map(|_| self.io.buffers().take(READ_BYTES)).collect();
        let (mut offset, mut flying) = (0, 0);
        let mut clock = Stopwatch::start();
        let mut done = Vec::new();
        loop {
            let goes_on = clock.goes_on(each);
            while goes_on && let Some(buffer) = idle.pop() {
                self.io.submit(TOKEN, Op::Read { file: self.file, offset, buffer });
                offset = (offset + READ_BYTES as u64) % file_bytes;
                flying += 1;
            }
            if flying == 0 {
                return Ok(clock.per_s());
            }
            self.io.poll(Wait::Forever, &mut done);
            for completion in done.drain(..) {
                flying -= 1;
                clock.lap();
                match completion.result? {
                    Output::Read { buffer, bytes } if bytes == READ_BYTES => idle.push(buffer),
                    other => return Err(BenchError::Target(format!("reading the device gave {other:?}"))),
                }
            }
        }
    }
}

/// Times one cell.
struct Stopwatch {
    began: clock::Moment,
    lap: clock::Moment,
    laps: u64,
}

impl Stopwatch {
    fn start() -> Stopwatch {
        let now = clock::now();
        Stopwatch { began: now, lap: now, laps: 0 }
    }
    fn goes_on(&self, each: Duration) -> bool {
        self.laps < OPERATIONS_MIN || self.lap.since(self.began) < each
    }
    /// Nanoseconds since the lap before.
    fn lap(&mut self) -> u64 {
        let now = clock::now();
        let nanos = now.nanos_since(self.lap);
        self.lap = now;
        self.laps += 1;
        nanos
    }
    fn per_s(&self) -> f64 {
        crate::usage::ratio(self.laps as f64, self.lap.since(self.began).as_secs_f64())
    }
}

impl DeviceReport {
    /// The fastest sync append of a size, in bytes per second.
    pub fn best_append(&self, bytes: usize) -> Option<&AppendFigures> {
        self.sync_append.iter().filter(|f| f.bytes == bytes).max_by(|a, b| a.per_s.total_cmp(&b.per_s))
    }
}

impl Display for DeviceReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "  the raw device in the same run, medians of {} rounds", self.rounds)?;
        for row in &self.sync_append {
            writeln!(
                f,
                "    sync append {:>5} KiB  {:8} {:9}  {:>7.0}/s {:>7.1} MB/s  p50 {:>6.0} µs  p99 {:>6.0} µs",
                row.bytes >> 10,
                row.back_end,
                row.sync,
                row.per_s,
                row.bytes_per_s / 1e6,
                row.p50_us,
                row.p99_us
            )?;
        }
        for row in &self.read {
            writeln!(
                f,
                "    direct read {:>5} KiB  {} at once  {:.1} MB/s",
                row.bytes >> 10,
                row.depth,
                row.bytes_per_s / 1e6
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "    left out: {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_rounds() {
        let mut cell = Cell::new();
        assert_eq!(cell.median(), 0.0);
        cell.per_s = vec![5.0, 1.0, 3.0];
        assert_eq!(cell.median(), 3.0);
        cell.per_s.push(4.0);
        assert_eq!(cell.median(), 3.5);
    }

    #[test]
    fn every_cell_is_measured_and_the_file_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = Device::open(dir.path()).unwrap();
        device.round(Duration::from_millis(1)).unwrap();
        device.round(Duration::from_millis(1)).unwrap();
        let report = device.report();
        assert_eq!(report.sync_append.len(), device.ways.len() * APPEND_BYTES.len());
        assert!(
            report.sync_append.iter().all(|f| f.per_s > 0.0 && f.p50_us > 0.0 && f.p50_us <= f.p99_us),
            "{report:?}"
        );
        assert!(report.read.iter().all(|r| r.bytes_per_s > 0.0) && report.lone_write.is_some());
        assert!(report.best_append(4096).is_some_and(|f| f.bytes == 4096));
        drop(device);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
