//! Ends another thread's wait: an eventfd, written only while the poller sleeps.

use crate::Waker;
use crate::sys::{self, Errno};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const AWAKE: u32 = 0;
/// The poller waits in the kernel, or is about to: a wake-up must write the eventfd.
const ASLEEP: u32 = 1;
/// Woken since the poller last looked.
const WOKEN: u32 = 2;

/// The poller's side.
pub(crate) struct Bell {
    shared: Arc<Shared>,
}

struct Shared {
    state: AtomicU32,
    event: OwnedFd,
}

impl Bell {
    /// `flags`: 0, or `EFD_NONBLOCK`.
    pub(crate) fn new(flags: libc::c_int) -> Result<Bell, Errno> {
        // SAFETY: no memory is passed.
        let fd = sys::check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | flags) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let event = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Bell { shared: Arc::new(Shared { state: AtomicU32::new(AWAKE), event }) })
    }

    /// What becomes readable when a sleeper is woken.
    pub(crate) fn fd(&self) -> RawFd {
        self.shared.event.as_raw_fd()
    }

    /// Whether somebody woke us since the last look. What they did before waking is visible afterwards.
    pub(crate) fn rang(&self) -> bool {
        self.shared.state.load(Ordering::Relaxed) == WOKEN
            && self.shared.state.swap(AWAKE, Ordering::AcqRel) == WOKEN
    }

    /// Announces a wait. False: there was a wake-up, do not wait.
    pub(crate) fn lie_down(&self) -> bool {
        match self.shared.state.compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(_) => !self.rang(),
        }
    }

    /// Ends the announced wait. True: there was a wake-up.
    pub(crate) fn get_up(&self) -> bool {
        self.shared.state.swap(AWAKE, Ordering::AcqRel) == WOKEN
    }

    pub(crate) fn waker(&self) -> Waker {
        let shared = Arc::clone(&self.shared);
        Waker::new(move || {
            if shared.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
                let one = 1u64.to_ne_bytes();
                // It cannot fail: the counter is read long before it is full, and a write of 8 bytes is whole.
                // SAFETY: `one` is valid for reading 8 bytes during the call.
                unsafe { libc::write(shared.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_is_seen_once_and_never_lost() {
        let bell = Bell::new(libc::EFD_NONBLOCK).unwrap();
        let waker = bell.waker();
        assert!(!bell.rang());
        waker.wake();
        waker.wake();
        assert!(bell.rang());
        assert!(!bell.rang());
        waker.wake();
        assert!(!bell.lie_down(), "a wake-up before the wait");
        assert!(bell.lie_down());
        assert!(!bell.get_up());
        assert!(bell.lie_down());
        waker.wake();
        assert!(bell.get_up());
        assert!(!bell.rang());
    }
}
