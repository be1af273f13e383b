//! Opening a back-end, or saying why it cannot be opened and what to change.

use crate::blocking::BlockingIo;
use crate::uring::UringIo;
use crate::{BackEnd, Io, IoOptions};

/// Why a back-end cannot be opened. The text says what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BackEndError {
    /// The kernel has io_uring and this process may not use it.
    #[error(
        "io_uring is forbidden here: {reason}. Allow it, or set `backend = \"blocking\"` under [io] in the configuration"
    )]
    Forbidden {
        /// By what.
        reason: &'static str,
    },
    /// The kernel has no io_uring, or a filter says so.
    #[error(
        "io_uring is not there (kernel {kernel}; a container's filter may hide it). Use Linux 5.11 or later, \
         or set `backend = \"blocking\"` under [io] in the configuration"
    )]
    Absent {
        /// Its release.
        kernel: String,
    },
    /// Not enough memory may be locked.
    #[error(
        "the kernel has no memory for an io_uring: raise the limit on locked memory (`ulimit -l`), or set \
         `backend = \"blocking\"` under [io] in the configuration"
    )]
    Memory,
    /// The kernel's io_uring is too old.
    #[error(
        "the io_uring of kernel {kernel} lacks: {missing}. Use Linux 5.11 or later, or set `backend = \"blocking\"` \
         under [io] in the configuration"
    )]
    Missing {
        /// Its release.
        kernel: String,
        /// What it lacks.
        missing: String,
    },
    /// The options cannot be met.
    #[error("{what}")]
    Options {
        /// Which, and why.
        what: String,
    },
    /// Something else failed.
    #[error("{what}: {message}")]
    System {
        /// The call.
        what: &'static str,
        /// The system's words.
        message: String,
    },
}

/// Opens a back-end for the calling thread, where it stays: it is used and dropped there.
///
/// # Errors
/// See [`BackEndError`].
///
/// # Examples
/// ```
/// use tidelog_io::{BackEnd, Foreground, IoOptions, Op, Output, open_back_end};
/// let mut io = open_back_end(BackEnd::Blocking, &IoOptions::small())?;
/// let mut foreground = Foreground::new(io.as_mut());
/// let names = foreground.run(Op::List { path: "/".into() });
/// assert!(matches!(names, Ok(Output::Names(_))));
/// # Ok::<(), tidelog_io::BackEndError>(())
/// ```
pub fn open_back_end(kind: BackEnd, options: &IoOptions) -> Result<Box<dyn Io>, BackEndError> {
    Ok(match kind {
        BackEnd::Uring => Box::new(UringIo::open(options)?),
        BackEnd::Blocking => Box::new(BlockingIo::open(options)?),
    })
}
