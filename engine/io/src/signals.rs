//! Signals of the process: being asked to stop, and asking others.

use crate::IoError;
use crate::sys::{self, Errno, check, misuse, uninterrupted};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Where the handler notes signals; -1: nowhere.
static NOTES: AtomicI32 = AtomicI32::new(-1);

extern "C" fn note(_signal: libc::c_int) {
    let fd = NOTES.load(Ordering::Relaxed);
    let one = 1u64.to_ne_bytes();
    // SAFETY: write(2) may be called in a signal handler; `one` is valid for reading its 8 bytes. errno is put back.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        libc::write(fd, one.as_ptr().cast(), one.len());
        *errno = before;
    }
}

fn refuse(errno: Errno, what: &'static str) -> IoError {
    misuse("signal", what, std::io::Error::from_raw_os_error(errno).to_string())
}

/// Calls `asked` whenever the process is asked to end (SIGTERM, SIGINT), on a thread of its own, with how often it has
/// been asked by now. From then on these signals do nothing else. Once per process.
///
/// # Errors
/// If it was called before, or the system has no descriptor left.
pub fn on_termination(asked: impl Fn(u64) + Send + 'static) -> Result<(), IoError> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) }).map_err(|e| refuse(e, "eventfd"))?;
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    NOTES
        .compare_exchange(-1, fd.as_raw_fd(), Ordering::AcqRel, Ordering::Acquire)
        .map_err(|_| misuse("signal", "termination", "somebody listens already"))?;
    // The handler uses it from now on, for the rest of the process's life.
    let fd = std::mem::ManuallyDrop::new(fd).as_raw_fd();
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut times = 0;
            loop {
                times += wait(fd);
                asked(times);
            }
        })
        .map_err(|error| refuse(error.raw_os_error().unwrap_or(libc::EAGAIN), "thread"))?;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: an all-zero sigaction is a valid value.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the handler does only what a handler may; `action` is valid for reading during the call.
        check(unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) })
            .map_err(|errno| refuse(errno, "handler"))?;
    }
    Ok(())
}

/// Waits for signals; how many.
fn wait(fd: RawFd) -> u64 {
    let mut count = [0u8; 8];
    let read = uninterrupted(|| {
        // SAFETY: `count` is valid for writing its 8 bytes during the call.
        let read = unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) };
        usize::try_from(read).map_err(|_| sys::errno())
    });
    assert_eq!(read, Ok(8), "the descriptor is an eventfd and is never closed");
    u64::from_ne_bytes(count)
}

/// What can be asked of another process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// To stop cleanly (SIGTERM).
    Terminate,
    /// To be gone at once (SIGKILL).
    Kill,
    /// To stand still (SIGSTOP) …
    Pause,
    /// … and go on (SIGCONT).
    Resume,
}

/// Sends a signal to the process `pid`.
///
/// # Errors
/// If there is no such process, or it is not ours.
pub fn send(pid: u32, signal: Signal) -> Result<(), IoError> {
    let number = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Pause => libc::SIGSTOP,
        Signal::Resume => libc::SIGCONT,
    };
    // 0 and negative numbers would name whole groups.
    let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0);
    let pid = pid.ok_or_else(|| misuse("signal", "process", "not a process id"))?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::kill(pid, number) }).map(drop).map_err(|errno| refuse(errno, "process"))
}
