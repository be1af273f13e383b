//! The engine's errors: each says what happened, where, and what to do.

use std::path::PathBuf;
use tidelog_io::IoError;

/// Why the engine could not open, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Input or output failed.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The data directory is not usable by this node.
    #[error("data directory {}: {why}", .path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {why}")]
    Listen {
        /// Which.
        address: String,
        /// Why, and what to do.
        why: String,
    },
    /// The log could not be recovered: the data is left as it is.
    #[error("{0}")]
    Recovery(String),
    /// The log failed again and again.
    #[error(
        "the log failed three times within ten minutes, the node stops: {0}. Check the disk and the kernel's log; the data is left as it is"
    )]
    Fenced(String),
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
}
