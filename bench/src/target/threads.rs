//! An engine in this process through its public handle, each writer a thread that waits for its record: how most embedders without an
//! executor use it, and how rival engines' writers are driven.
//!
//! It drives itself: a load generator of one thread in front would put two more hand-offs between threads into every record.

use super::outcome_of;
use crate::clock;
use crate::error::BenchError;
use crate::latency::Latencies;
use crate::load::{Measured, Outcome};
use crate::payload::{Payloads, Stamp};
use crate::report::Errors;
use crate::usage::Meter;
use core::sync::atomic::{AtomicU8, Ordering};
use core::time::Duration;
use tidelog::config::Config;
use tidelog::{Engine, Partition};
use tidelog_types::PartitionId;

/// Most threads.
pub const THREADS_MAX: u32 = 1024;
/// After being turned away, a writer waits so long.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

const WARM: u8 = 0;
const MEASURE: u8 = 1;
const OVER: u8 = 2;

/// See the module.
pub struct ThreadsTarget {
    engine: Engine,
    partitions: Vec<Partition>,
    writers: u32,
    payload_bytes: usize,
}

/// What one writer saw.
struct Seen {
    latencies: Latencies,
    errors: Errors,
}

impl ThreadsTarget {
    /// Opens a single node for so many writers.
    ///
    /// # Errors
    /// If there are too many writers, or the engine does not open.
    pub fn open(config: Config, writers: u32, payload_bytes: usize) -> Result<ThreadsTarget, BenchError> {
        if !(1..=THREADS_MAX).contains(&writers) {
            return Err(BenchError::Options(format!("{writers} threads: 1 to {THREADS_MAX} are possible")));
        }
        let count = config.cluster.partitions;
        let engine = Engine::open(config)?;
        let partitions = (0..count).filter_map(|id| engine.partition_by_id(PartitionId(id))).collect();
        Ok(ThreadsTarget { engine, partitions, writers, payload_bytes })
    }

    /// One span: load for `warm` unmeasured, then for `measure`. Adds to `measured`. A writer appends to one partition.
    ///
    /// # Errors
    /// If the payload's length is out of bounds or a thread does not start.
    pub fn span(
        &self,
        meter: &Meter,
        warm: Duration,
        measure: Duration,
        measured: &mut Measured,
    ) -> Result<(), BenchError> {
        let phase = AtomicU8::new(WARM);
        let seen = std::thread::scope(|scope| {
            let start = |writer: u32| {
                let partition = &self.partitions[writer as usize % self.partitions.len()];
                let payloads = Payloads::new(self.payload_bytes)
                    .ok_or_else(|| BenchError::Options("the payload's length".into()))?;
                let phase = &phase;
                std::thread::Builder::new()
                    .spawn_scoped(scope, move || write(partition, writer, payloads, phase, measure))
                    .map_err(|e| BenchError::Target(format!("cannot start a writer's thread: {e}")))
            };
            let threads: Result<Vec<_>, BenchError> = (0..self.writers).map(start).collect();
            if threads.is_ok() {
                std::thread::park_timeout(warm);
                let before = meter.read();
                let started = clock::now();
                measured.latencies.begin(started, clock::wall());
                phase.store(MEASURE, Ordering::Relaxed);
                let end = started.after(measure);
                while clock::now() < end {
                    std::thread::park_timeout(end.since(clock::now()));
                }
                phase.store(OVER, Ordering::Relaxed);
                measured.latencies.end(clock::now());
                measured.usage.add(&meter.read().since(&before));
            }
            phase.store(OVER, Ordering::Relaxed);
            let end = |thread: std::thread::ScopedJoinHandle<'_, Seen>| match thread.join() {
                Ok(seen) => seen,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.map(|threads| threads.into_iter().map(end).collect::<Vec<_>>())
        })?;
        for Seen { latencies, errors } in seen {
            measured.acked += latencies.count();
            measured.latencies.absorb(&latencies);
            measured.errors.busy += errors.busy;
            measured.errors.refused += errors.refused;
            measured.errors.unknown += errors.unknown;
        }
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it did not end well.
    pub fn close(self) -> Result<(), BenchError> {
        Ok(self.engine.close()?)
    }
}

/// One writer: the next record when the last one is answered.
fn write(
    partition: &Partition,
    writer: u32,
    mut payloads: Payloads,
    phase: &AtomicU8,
    run: Duration,
) -> Seen {
    let mut seen = Seen { latencies: Latencies::new(run), errors: Errors::default() };
    for sequence in 1.. {
        let before = phase.load(Ordering::Relaxed);
        if before == OVER {
            break;
        }
        let sent = clock::now();
        let result = partition.append(payloads.make(Stamp { writer, sequence })).wait();
        let now = clock::now();
        let counts = phase.load(Ordering::Relaxed) == MEASURE;
        match result.as_ref().map_or_else(outcome_of, |_| Outcome::Acked) {
            Outcome::Acked if counts => seen.latencies.record(now, now.nanos_since(sent), 1),
            Outcome::Acked => {}
            outcome => {
                match outcome {
                    Outcome::Busy => seen.errors.busy += u64::from(counts),
                    Outcome::Refused => seen.errors.refused += u64::from(counts),
                    _ => seen.errors.unknown += u64::from(counts),
                }
                std::thread::park_timeout(BUSY_PAUSE);
            }
        }
    }
    seen
}
