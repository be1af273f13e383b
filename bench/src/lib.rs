//! Tidelog's load generator, baselines and reports.
//!
//! [`append()`] runs one load against one subject (an engine in this process, a cluster, a baseline) and gives a [`Report`] that
//! can be judged: open-loop latencies from the intended start, the raw device's own figures from the same run, processor time and the
//! device's counters beside them, and every record that was not acknowledged (B7). `docs/benchmarks.md` says what each figure means
//! and how to get it.
//!
//! Nothing here is asserted in a test: a figure is measured on a quiet machine and read by a person. What it deliberately does
//! not know is whether an engine keeps what it acknowledges; but its payloads say who wrote them and as
//! their how-manieth ([`payload::Checker`]), so that whoever reads them back can tell.

pub mod append;
pub mod arrival;
pub mod baseline;
mod batch;
pub mod clock;
pub mod device;
pub mod error;
pub mod host;
pub mod latency;
pub mod load;
pub mod payload;
mod random;
pub mod report;
mod scratch;
pub mod target;
pub mod usage;

pub use append::{AppendOptions, Subject, append};
pub use arrival::Spacing;
pub use baseline::Baseline;
pub use error::BenchError;
pub use load::{Pace, Target};
pub use report::Report;
