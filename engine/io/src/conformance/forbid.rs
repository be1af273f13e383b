//! A host that refuses system calls, for tests of what is said then.

use crate::sys::check;

/// The system call that makes a ring.
pub const IO_URING_SETUP: libc::c_long = libc::SYS_io_uring_setup;

/// From now on a system call fails with `errno` on this thread and in the processes that it starts, as under the filter of a
/// container runtime. It cannot be undone: for a thread that ends soon.
///
/// # Panics
/// If the kernel takes no filter.
pub fn forbid(call: libc::c_long, errno: i32) {
    let statement = |code: u32, jump: (u8, u8), k: u32| libc::sock_filter {
        code: code as u16,
        jt: jump.0,
        jf: jump.1,
        k,
    };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 1), call as u32),
        statement(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, (0, 0), libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no memory is passed.
    let promised = check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) });
    // SAFETY: the program and its statements are this frame's, which outlives the call; the kernel copies them.
    let filtered = check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program) });
    assert!(
        promised.is_ok() && filtered.is_ok(),
        "the kernel takes no seccomp filter: {promised:?}, {filtered:?}"
    );
}
