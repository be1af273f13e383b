//! Threads and cores.

use crate::IoError;
use crate::sys::{Errno, check, misuse};
use std::mem;

fn refuse(errno: Errno, core: impl ToString) -> IoError {
    misuse("pin", core, std::io::Error::from_raw_os_error(errno).to_string())
}

/// The cores that this thread may run on, in order.
///
/// # Errors
/// If the system does not tell.
pub fn cores() -> Result<Vec<usize>, IoError> {
    // SAFETY: an all-zero set is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is valid for writing during the call.
    check(unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &mut set) })
        .map_err(|errno| refuse(errno, "this thread"))?;
    let count = libc::CPU_SETSIZE as usize;
    // SAFETY: every core asked for is below the size of the set.
    Ok((0..count).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect())
}

/// Keeps the calling thread on `core`.
///
/// # Errors
/// If there is no such core, or it is not allowed.
pub fn pin_to_core(core: usize) -> Result<(), IoError> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(refuse(libc::EINVAL, format_args!("core {core}")));
    }
    // SAFETY: an all-zero set is a valid, empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the core is below the size of the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is valid for reading during the call.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &set) })
        .map(drop)
        .map_err(|errno| refuse(errno, format_args!("core {core}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_has_one_core() {
        std::thread::spawn(|| {
            let all = cores().unwrap();
            let last = *all.last().unwrap();
            pin_to_core(last).unwrap();
            assert_eq!(cores().unwrap(), [last]);
            assert!(pin_to_core(1 << 20).is_err());
            assert!(pin_to_core(1023).is_err() || all.contains(&1023));
        })
        .join()
        .unwrap();
    }
}
