//! The ring itself: set up as well as the kernel allows, entered once per poll.
//!
//! The submission queue has room for everything that can be in flight, and the completion queue twice that: neither
//! ever overflows, by construction.

use crate::arena::Arena;
use crate::capabilities::{RingFeatures, SwitchedOff};
use crate::sys::{self, Errno};
use crate::{BackEndError, IoOptions, TaskWork};
use core::time::Duration;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, Probe, opcode};
use std::os::fd::RawFd;
use tidelog_types::Monotonic;

/// Operations without which this back-end cannot work.
const NEEDED: &[(&str, u8)] = &[
    ("read", opcode::Read::CODE),
    ("write", opcode::Write::CODE),
    ("writev", opcode::Writev::CODE),
    ("fsync", opcode::Fsync::CODE),
    ("openat", opcode::OpenAt::CODE),
    ("renameat", opcode::RenameAt::CODE),
    ("unlinkat", opcode::UnlinkAt::CODE),
    ("accept", opcode::Accept::CODE),
    ("connect", opcode::Connect::CODE),
    ("send", opcode::Send::CODE),
    ("sendmsg", opcode::SendMsg::CODE),
    ("recv", opcode::Recv::CODE),
    ("async_cancel", opcode::AsyncCancel::CODE),
];

/// How long a submission waits before it is tried again when the kernel has no memory for it: at first, and at most.
const BACK_OFF_MIN: Duration = Duration::from_millis(1);
const BACK_OFF_MAX: Duration = Duration::from_millis(50);
/// Most entries that a ring may have.
const ENTRIES_MAX: usize = 1 << 15;

/// A descriptor as operations name it: by its number, or by its place in the registered table.
#[derive(Clone, Copy)]
pub(super) struct Target {
    number: i32,
    flags: Flags,
}

impl Target {
    pub(super) fn plain(fd: RawFd) -> Target {
        Target { number: fd, flags: Flags::empty() }
    }

    /// The number for an operation, whose entry then gets [`Target::flags`].
    pub(super) fn fd(self) -> Fd {
        Fd(self.number)
    }

    pub(super) fn flags(self) -> Flags {
        self.flags
    }
}

/// How long to wait in the kernel.
#[derive(Clone, Copy)]
pub(super) enum Stay {
    No,
    AtMost(Duration),
    Forever,
}

/// See the module.
pub(super) struct Ring {
    ring: IoUring,
    registered_files: usize,
    reaped: Vec<(u64, i32)>,
    /// Since when, and how often, the kernel has had no memory for what is queued.
    refused: Option<(Monotonic, u32)>,
}

impl Ring {
    /// A ring with room for `entries` entries at once, and twice as many completions.
    pub(super) fn open(
        entries: usize,
        options: &IoOptions,
    ) -> Result<(Ring, RingFeatures, Vec<SwitchedOff>), BackEndError> {
        let entries = entries.next_power_of_two();
        if entries > ENTRIES_MAX {
            return Err(BackEndError::Options {
                what: format!(
                    "a ring of {entries} entries is needed, {ENTRIES_MAX} are possible: fewer connections"
                ),
            });
        }
        let mut off = Vec::new();
        let (ring, task_work) = build(entries as u32, options.task_work, &mut off)?;
        check_operations(&ring)?;

        let wanted = usize::from(options.files_max);
        let registered_files = match ring.submitter().register_files_sparse(wanted as u32) {
            Ok(()) => wanted,
            Err(error) => {
                off.push(SwitchedOff { what: "registered files", why: error.to_string() });
                0
            }
        };
        let features =
            RingFeatures { task_work, registered_files: registered_files > 0, registered_bytes: 0 };
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut [options.workers_max; 2]) {
            off.push(SwitchedOff { what: "a bound on kernel workers", why: error.to_string() });
        }
        Ok((Ring { ring, registered_files, reaped: Vec::new(), refused: None }, features, off))
    }

    /// Registers the first of as many bytes as the limit on locked memory leaves, at most `bytes`.
    pub(super) fn register_arena(&self, bytes: usize, off: &mut Vec<SwitchedOff>) -> Option<Arena> {
        const LEAST: usize = 256 << 10;
        if bytes == 0 {
            return None;
        }
        let mut size = bytes;
        let mut why = format!("less than {LEAST} bytes are not worth it");
        while size >= LEAST {
            let arena = match Arena::new(size) {
                Ok(arena) => arena,
                Err(errno) => {
                    why = std::io::Error::from_raw_os_error(errno).to_string();
                    break;
                }
            };
            let (start, len) = arena.span();
            let span = libc::iovec { iov_base: start.as_ptr().cast(), iov_len: len };
            // SAFETY: the pool that owns the arena outlives the ring: `UringIo` holds both, and drops the ring first.
            match unsafe { self.ring.submitter().register_buffers(&[span]) } {
                Ok(()) => {
                    if size < bytes {
                        let why = format!("{len} of {bytes} bytes: the limit on locked memory (ulimit -l)");
                        off.push(SwitchedOff { what: "a part of the registered memory", why });
                    }
                    return Some(arena);
                }
                Err(error) => why = error.to_string(),
            }
            size /= 2;
        }
        off.push(SwitchedOff { what: "registered memory", why });
        None
    }

    /// Puts `fd` into the registered table at `place`, if there is one.
    pub(super) fn register(&self, place: usize, fd: RawFd) -> Target {
        if place < self.registered_files
            && self.ring.submitter().register_files_update(place as u32, &[fd]).is_ok()
        {
            return Target { number: place as i32, flags: Flags::FIXED_FILE };
        }
        Target::plain(fd)
    }

    /// Takes a descriptor out of the registered table. Nothing in flight uses it.
    pub(super) fn unregister(&self, target: Target) {
        if target.flags.contains(Flags::FIXED_FILE) {
            let done = self.ring.submitter().register_files_update(target.number as u32, &[-1]);
            assert!(done.is_ok(), "a place that was filled can be emptied: {done:?}");
        }
    }

    /// Queues entries for the next enter.
    ///
    /// # Safety
    /// What the entries point to stays valid and in place until their completions have been reaped.
    pub(super) unsafe fn push(&mut self, entries: &[Entry]) {
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.offer(entries) };
        assert!(pushed, "the submission queue has room for everything that may be in flight");
    }

    /// The same, if there is room.
    ///
    /// # Safety
    /// See [`Ring::push`].
    pub(super) unsafe fn offer(&mut self, entries: &[Entry]) -> bool {
        // SAFETY: the caller's promise.
        unsafe { self.ring.submission().push_multiple(entries) }.is_ok()
    }

    /// Whether completions are at hand without entering the kernel.
    pub(super) fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether an enter would find completions, without entering the kernel.
    pub(super) fn has_news(&mut self) -> bool {
        self.has_completions() || self.ring.submission().taskrun()
    }

    /// Hands over what is queued, lets deferred work run, and waits as told for a completion. A signal may cut
    /// the wait short.
    pub(super) fn enter(&mut self, stay: Stay) {
        let result = match stay {
            Stay::No => {
                let queue = self.ring.submission();
                if queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                    return;
                }
                drop(queue);
                self.ring.submitter().submit()
            }
            Stay::Forever => self.ring.submitter().submit_and_wait(1),
            Stay::AtMost(time) => {
                let time = Timespec::from(time);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match result.map_err(|error| error.raw_os_error().unwrap_or(libc::EIO)) {
            // Timed out, interrupted, or with completions to be reaped first: whoever wants to wait on does.
            Ok(_) | Err(libc::ETIME | libc::EINTR) => self.refused = None,
            Err(libc::EBUSY) => {}
            Err(libc::ENOMEM | libc::EAGAIN) => self.back_off(),
            Err(errno) => panic!(
                "io_uring_enter cannot fail like this unless it is used wrongly: {}",
                std::io::Error::from_raw_os_error(errno)
            ),
        }
    }

    /// The kernel has no memory for what is queued: it stays queued, and asking again at once would only take the processor from whoever frees
    /// some.
    fn back_off(&mut self) {
        let (since, times) = self.refused.unwrap_or((sys::monotonic(), 0));
        if times == 0 {
            tracing::warn!(
                "io_uring_enter: the kernel is out of memory; operations wait and are submitted again"
            );
        }
        self.refused = Some((since, times.saturating_add(1)));
        sys::pause(BACK_OFF_MIN.saturating_mul(1 << times.min(6)).min(BACK_OFF_MAX));
    }

    /// For how long the kernel has had no memory for what is queued.
    pub(super) fn refused_for(&self) -> Duration {
        self.refused.map_or(Duration::ZERO, |(since, _)| sys::monotonic().since(since))
    }

    /// All completions at hand, as (user data, result). Give the vector back when done.
    pub(super) fn reap(&mut self) -> Vec<(u64, i32)> {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        reaped
    }

    /// For the next [`Ring::reap`].
    pub(super) fn give_back(&mut self, mut reaped: Vec<(u64, i32)>) {
        reaped.clear();
        self.reaped = reaped;
    }
}

/// The best of what the kernel knows, from the way asked for on down.
fn build(
    entries: u32,
    best: TaskWork,
    off: &mut Vec<SwitchedOff>,
) -> Result<(IoUring, TaskWork), BackEndError> {
    type Configure = fn(&mut Builder) -> &mut Builder;
    let ways: [(TaskWork, &'static str, Configure); 3] = [
        (TaskWork::Deferred, "deferred work of a single issuer (Linux 6.1)", |builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all()
        }),
        (TaskWork::Cooperative, "cooperative work (Linux 5.19)", |builder| {
            builder.setup_coop_taskrun().setup_taskrun_flag().setup_submit_all()
        }),
        (TaskWork::Interrupting, "a plain ring", |builder| builder),
    ];
    let mut last = libc::EINVAL;
    for (way, what, configure) in ways.into_iter().filter(|(way, ..)| *way <= best) {
        match configure(&mut IoUring::builder()).build(entries) {
            Ok(ring) => return Ok((ring, way)),
            Err(error) => {
                last = error.raw_os_error().unwrap_or(libc::EIO);
                if last != libc::EINVAL {
                    break;
                }
                off.push(SwitchedOff { what, why: "this kernel does not know it".into() });
            }
        }
    }
    Err(refusal(last))
}

/// What a refused io_uring_setup means.
fn refusal(errno: Errno) -> BackEndError {
    match errno {
        libc::EPERM | libc::EACCES => {
            let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let reason = match switch.as_deref().map(str::trim) {
                Ok("2") => "the sysctl kernel.io_uring_disabled is 2",
                Ok("1") => "the sysctl kernel.io_uring_disabled is 1 and this process is not in its group",
                _ => "a seccomp filter forbids it, as container runtimes often do",
            };
            BackEndError::Forbidden { reason }
        }
        libc::ENOSYS => BackEndError::Absent { kernel: sys::kernel_release() },
        libc::ENOMEM => BackEndError::Memory,
        errno => BackEndError::System {
            what: "io_uring_setup",
            message: std::io::Error::from_raw_os_error(errno).to_string(),
        },
    }
}

fn check_operations(ring: &IoUring) -> Result<(), BackEndError> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| BackEndError::System {
        what: "asking io_uring for its operations",
        message: error.to_string(),
    })?;
    let mut missing: Vec<&'static str> =
        NEEDED.iter().filter(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name).collect();
    let parameters = ring.params();
    for (name, there) in [
        ("waits with a time-out", parameters.is_feature_ext_arg()),
        ("completions that are never dropped", parameters.is_feature_nodrop()),
        ("arguments read at submission", parameters.is_feature_submit_stable()),
        ("polling of sockets", parameters.is_feature_fast_poll()),
    ] {
        if !there {
            missing.push(name);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(BackEndError::Missing { kernel: sys::kernel_release(), missing: missing.join(", ") })
}
