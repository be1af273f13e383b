//! Why a measurement did not come about.

use std::path::PathBuf;
use tidelog_io::{BackEndError, IoError};

/// Each says what to change.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The options do not fit together.
    #[error("{0}")]
    Options(String),
    /// A file operation failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// A file operation outside the seam failed.
    #[error("{what} {}: {source}", .path.display())]
    File {
        /// Which operation.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The back-end cannot be opened.
    #[error(transparent)]
    BackEnd(#[from] BackEndError),
    /// The engine did not open, or stopped.
    #[error("the engine: {0}")]
    Engine(#[from] tidelog::Error),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] tidelog::config::ConfigError),
    /// The target stopped answering.
    #[error("{in_flight} records were not answered within {seconds} s: the target is stuck or gone")]
    Stuck {
        /// How many.
        in_flight: usize,
        /// How long was waited.
        seconds: u64,
    },
    /// What is measured went away.
    #[error("{0}")]
    Target(String),
    /// The baseline is not in this build.
    #[error("the baseline {name} is not in this build: build it with `--features tidelog-bench/baselines`")]
    NotBuilt {
        /// Which.
        name: &'static str,
    },
    /// The latency log could not be written.
    #[error("cannot write the latency log: {0}")]
    LatencyLog(String),
}
