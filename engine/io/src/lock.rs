//! One process per data directory.

use crate::IoError;
use crate::sys::{self, c_path, check, file_error};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Holds a directory until it is dropped, or the process ends, however it ends. A child that was forked, and runs no other program, shares the
/// lock, and does not keep it beyond that.
#[derive(Debug)]
pub struct DirectoryLock {
    file: std::fs::File,
    path: PathBuf,
    /// The process that took it.
    process: u32,
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Closing would not be enough where a child has the file as well; and a child gives up nothing that its parent holds.
        if self.process == std::process::id() {
            // SAFETY: no memory is passed.
            let _ = check(unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) });
        }
    }
}

/// Why a directory cannot be held.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("{} is in use by another process{}: stop it, or use another directory", directory.display(),
        holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    Held {
        /// The directory.
        directory: PathBuf,
        /// The process, if it said so.
        holder: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error(transparent)]
    Io(#[from] IoError),
}

/// Takes hold of the directory at `path`, by an advisory lock on the file `LOCK` in it. The file stays when the lock goes:
/// removing it could let two processes hold locks on two files of the same name.
///
/// # Errors
/// If another process holds it, or the file cannot be made.
pub fn lock_directory(path: &Path) -> Result<DirectoryLock, LockError> {
    let lock = path.join("LOCK");
    let refuse = |errno| LockError::Io(file_error(errno, "lock", &lock));
    let raw = c_path("lock", &lock)?;
    let fd = sys::open(&raw, libc::O_RDWR | libc::O_CREAT).map_err(refuse)?;
    let mut file = std::fs::File::from(fd);
    // SAFETY: no memory is passed.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => {}
        Err(libc::EWOULDBLOCK) => {
            let mut holder = String::new();
            let read = (&file).take(32).read_to_string(&mut holder);
            let holder = read.ok().and_then(|_| holder.trim().parse().ok());
            return Err(LockError::Held { directory: path.to_path_buf(), holder });
        }
        Err(errno) => return Err(refuse(errno)),
    }
    // For people and for the message above. Nothing depends on it, so it is not synced.
    let told = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()));
    told.map_err(|error| refuse(error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(DirectoryLock { file, path: lock, process: std::process::id() })
}

impl DirectoryLock {
    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
