//! Space on a file system: how much there is, and how much of it is free.
//!
//! Asking takes a file system's word, which may keep the asker waiting as long as a disk that hangs does: a ring's thread asks on a
//! thread of its own.

use crate::sys::{self, c_path, check, file_error, misuse, uninterrupted};
use crate::{Completion, IoError, Output, Token, Waker};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Space of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Bytes that an ordinary process may still take.
    pub free_bytes: u64,
    /// Bytes of all.
    pub total_bytes: u64,
}

/// The space of the file system that `path` lies on.
///
/// # Errors
/// If `path` is not there, or its file system does not tell.
pub fn space(path: &Path) -> Result<Space, IoError> {
    let raw = c_path("ask for space of", path)?;
    // SAFETY: an all-zero statvfs is a valid value.
    let mut told: libc::statvfs = unsafe { std::mem::zeroed() };
    uninterrupted(|| {
        // SAFETY: the path is a C string that outlives the call, `told` is valid for writing during it.
        check(unsafe { libc::statvfs(raw.as_ptr(), &mut told) })
    })
    .map_err(|errno| file_error(errno, "ask for space of", path))?;
    let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
    Ok(Space { free_bytes: bytes(told.f_bavail), total_bytes: bytes(told.f_blocks) })
}

/// A thread that asks, one question at a time, and what it was told.
#[derive(Default)]
pub(crate) struct Asking {
    answers: Arc<Mutex<Vec<Completion>>>,
    under_way: bool,
}

impl Asking {
    /// Begins to ask; the answer is among [`Self::answers`] when `waker` has been used.
    pub(crate) fn begin(&mut self, token: Token, path: PathBuf, waker: Waker) -> Result<(), IoError> {
        if self.under_way {
            return Err(misuse("ask for space of", path.display(), "another question is under way"));
        }
        let answers = Arc::clone(&self.answers);
        let named = path.display().to_string();
        std::thread::Builder::new()
            .name("tidelog-space".into())
            .spawn(move || {
                let result = space(&path).map(Output::Space);
                answers.lock().unwrap_or_else(PoisonError::into_inner).push(Completion { token, result });
                waker.wake();
            })
            .map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                misuse("ask for space of", named, std::io::Error::from_raw_os_error(errno).to_string())
            })?;
        self.under_way = true;
        Ok(())
    }

    /// Takes the answer, if it is there.
    pub(crate) fn answers(&mut self, out: &mut Vec<Completion>) {
        if self.under_way {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            self.under_way = answers.is_empty();
            out.append(&mut answers);
        }
    }
}

/// Lets a file that grows beyond the limit on its size (`ulimit -f`) be an error of the write, EFBIG, instead of the process's end
/// by SIGXFSZ. A program that handles the signal itself goes on doing so.
pub(crate) fn outlive_the_file_size_limit() {
    // SAFETY: an all-zero sigaction is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `action` is valid for writing during the call; nothing is set.
    let asked = unsafe { libc::sigaction(libc::SIGXFSZ, std::ptr::null(), &mut action) };
    if asked == 0 && action.sa_sigaction == libc::SIG_DFL {
        action.sa_sigaction = libc::SIG_IGN;
        // SAFETY: `action` is valid for reading during the call; ignoring a signal runs no code of ours.
        let set = unsafe { libc::sigaction(libc::SIGXFSZ, &action, std::ptr::null_mut()) };
        if set != 0 {
            tracing::warn!(
                errno = sys::errno(),
                "SIGXFSZ stays as it is: a file above `ulimit -f` ends this process"
            );
        }
    }
}
