//! The engine's errors: each says what happened, where, and what to do.

use std::path::PathBuf;
use tidelog_io::IoError;

/// Why the engine could not open, or stopped.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// A panic on the node's thread: in a state machine, in a waker of the program, or a fault of the engine.
    #[error(
        "the node's thread panicked: {what}. What was acknowledged is in the log; requests under way are unknown. Open the engine again"
    )]
    Panicked {
        /// The panic's words.
        what: String,
    },
    /// A state machine or a waker, which run on the node's own thread, asked to wait for the node's end.
    #[error(
        "the node's own thread cannot wait for the node's end: call close() or join() on another thread, or stop(), which does not wait"
    )]
    OwnThread,
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
}
