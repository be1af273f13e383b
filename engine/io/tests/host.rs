//! What the back-ends do with the host: direct I/O, registered memory, refusals, full disks, locks.

#![allow(unsafe_code)] // system calls that make the host refuse things

mod scratch;

use bytes::Bytes;
use scratch::Scratch;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidelog_io::conformance::{IO_URING_SETUP, forbid};
use tidelog_io::{
    BackEnd, BackEndError, BlockingIo, FileId, Foreground, Io, IoErrorKind, IoOptions, LockError, Op,
    OpenMode, Output, SyncMode, TaskWork, Token, TokenClass, UringIo, Wait, lock_directory, measure_sync,
    open_back_end, probe,
};

fn back_ends(sync: SyncMode) -> [Box<dyn Io>; 2] {
    let options = IoOptions { sync, ..IoOptions::small() };
    [BackEnd::Uring, BackEnd::Blocking].map(|kind| open_back_end(kind, &options).expect("it opens"))
}

fn open(io: &mut dyn Io, path: &Path, mode: OpenMode) -> FileId {
    match Foreground::new(io).run(Op::Open { path: path.to_path_buf(), mode }) {
        Ok(Output::Opened { file, .. }) => file,
        other => panic!("open gave {other:?}"),
    }
}

fn page(io: &dyn Io) -> Bytes {
    io.buffers().take_zeroed(4096).freeze()
}

/// The flags of this process's descriptor of `path`.
fn descriptor_flags(path: &Path) -> i32 {
    for entry in std::fs::read_dir("/proc/self/fd").expect("descriptors") {
        let entry = entry.expect("a descriptor");
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info = PathBuf::from("/proc/self/fdinfo").join(entry.file_name());
            let info = std::fs::read_to_string(info).expect("its flags");
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("a line of flags");
            return i32::from_str_radix(flags.trim(), 8).expect("an octal number");
        }
    }
    panic!("{} is not open", path.display());
}

#[test]
fn files_are_open_for_direct_io_and_closed_on_exec() {
    let scratch = Scratch::new();
    let dir = scratch.path().canonicalize().expect("a path");
    for (number, mut io) in back_ends(SyncMode::Auto).into_iter().enumerate() {
        let path = dir.join(format!("file{number}"));
        let file = open(io.as_mut(), &path, OpenMode::Create);
        let flags = descriptor_flags(&path);
        assert_ne!(flags & libc::O_DIRECT, 0, "back-end {number}");
        assert_ne!(flags & libc::O_CLOEXEC, 0, "back-end {number}");
        let done = Foreground::new(io.as_mut()).run(Op::CloseFile { file });
        assert!(matches!(done, Ok(Output::Done)));
    }
}

#[test]
fn what_is_not_there_is_said() {
    let io = UringIo::open(&IoOptions::default()).expect("a ring");
    let found = io.capabilities();
    let ring = found.ring.expect("a ring's features");
    let off = |what: &str| found.switched_off.iter().any(|off| off.what.contains(what));
    assert_eq!(ring.registered_bytes == IoOptions::default().registered_bytes, !off("registered memory"));
    assert_eq!(ring.registered_files, !off("registered files"));
    assert_eq!(ring.task_work == TaskWork::Deferred, !off("deferred work"));
    assert_eq!(found.sync, SyncMode::Dsync);
    let asked_for_nothing = UringIo::open(&IoOptions::small()).expect("a ring");
    assert_eq!(asked_for_nothing.capabilities().ring.map(|ring| ring.registered_bytes), Some(0));
}

#[test]
fn too_large_a_ring_is_refused() {
    let options = IoOptions { connections_max: u16::MAX, ..IoOptions::default() };
    let refused = UringIo::open(&options).err();
    assert!(matches!(refused, Some(BackEndError::Options { .. })), "{refused:?}");
}

#[test]
fn a_forbidden_ring_says_so_and_what_to_do() {
    for (errno, words) in
        [(libc::EPERM, "seccomp"), (libc::ENOSYS, "is not there"), (libc::ENOMEM, "ulimit -l")]
    {
        let message = std::thread::spawn(move || {
            forbid(IO_URING_SETUP, errno);
            let refused = open_back_end(BackEnd::Uring, &IoOptions::small()).err();
            let blocking = open_back_end(BackEnd::Blocking, &IoOptions::small());
            assert!(blocking.is_ok(), "the blocking one opens all the same");
            refused.expect("io_uring is forbidden").to_string()
        })
        .join()
        .expect("no panic");
        assert!(message.contains(words), "{message}");
        assert!(message.contains("backend = \"blocking\""), "{message}");
    }
}

/// The kernel may be short of memory for a while: that panicked. Then for longer: the write fails, as on a device that failed, and its shard is fenced.
#[test]
fn a_kernel_without_memory_fails_writes_after_a_while() {
    for errno in [libc::ENOMEM, libc::EAGAIN] {
        std::thread::spawn(move || {
            let scratch = Scratch::new();
            let starved_max = core::time::Duration::from_millis(300);
            let mut io = UringIo::open(&IoOptions { starved_max, ..IoOptions::small() }).expect("it opens");
            let file = open(&mut io, &scratch.path().join("file"), OpenMode::Create);
            forbid(libc::SYS_io_uring_enter, errno);
            let (token, data) = (Token { class: TokenClass::Wal, value: 7 }, vec![page(&io)]);
            io.submit(token, Op::WriteDurable { file, offset: 0, data });
            let (began, mut got) = (io.clock().now, Vec::new());
            let mut polls = 0;
            while got.is_empty() {
                io.poll(Wait::Forever, &mut got);
                polls += 1;
            }
            assert!(io.clock().now.since(began) >= starved_max, "after {polls} polls");
            assert_eq!((got.len(), got[0].token), (1, token));
            let error = got[0].result.as_ref().expect_err("it was never handed over");
            assert_eq!(error.kind, IoErrorKind::Device, "{error}");
            assert!(error.to_string().contains("memory"), "{error}");
            // It is told once.
            let soon = io.clock().now.after(core::time::Duration::from_millis(100));
            io.poll(Wait::Until(soon), &mut got);
            assert_eq!(got.len(), 1, "{got:?}");
        })
        .join()
        .expect("no panic");
    }
}

#[test]
fn waits_are_kept_without_epoll_pwait2() {
    std::thread::spawn(|| {
        forbid(libc::SYS_epoll_pwait2, libc::ENOSYS);
        let mut io = BlockingIo::open(&IoOptions::small()).expect("it opens");
        let deadline = io.clock().now.after(core::time::Duration::from_micros(1500));
        let mut got = Vec::new();
        io.poll(Wait::Until(deadline), &mut got);
        assert!(io.clock().now >= deadline && got.is_empty());
    })
    .join()
    .expect("no panic");
}

#[test]
fn a_full_device_is_told_from_others_and_once() {
    // It has no direct I/O either: it is opened all the same. (And no flags on its writes, hence fdatasync.)
    for mut io in back_ends(SyncMode::Fdatasync) {
        let file = open(io.as_mut(), Path::new("/dev/full"), OpenMode::ReadWrite);
        let data = page(io.as_ref());
        let ops = vec![
            Op::WriteDurable { file, offset: 0, data: vec![data.clone()] },
            Op::WriteDurable { file, offset: 0, data: vec![data.clone(), data.clone()] },
            Op::Write { file, offset: 0, data: vec![data] },
        ];
        let mut foreground = Foreground::new(io.as_mut());
        for result in foreground.run_all(ops) {
            let error = result.expect_err("the device is full");
            assert_eq!(error.kind, IoErrorKind::NoSpace, "{error}");
            assert_eq!(error.subject, "/dev/full");
        }
        assert!(foreground.finish().is_empty(), "no completion came twice");
    }
}

#[test]
fn bounds_on_files_and_connections_are_errors() {
    let scratch = Scratch::new();
    let options = IoOptions { files_max: 1, connections_max: 2, ..IoOptions::small() };
    for kind in [BackEnd::Uring, BackEnd::Blocking] {
        let mut io = open_back_end(kind, &options).expect("it opens");
        let first = open(io.as_mut(), &scratch.path().join(format!("{kind:?}")), OpenMode::Create);
        let mut foreground = Foreground::new(io.as_mut());
        let second = Op::Open { path: scratch.path().join(format!("{kind:?}")), mode: OpenMode::Read };
        assert_eq!(foreground.run(second).expect_err("one file").kind, IoErrorKind::Other);
        assert!(foreground.run(Op::CloseFile { file: first }).is_ok());
        let address = "127.0.0.1:0".parse().expect("an address");
        let Ok(Output::Listening { listener, address }) = foreground.run(Op::Listen { address }) else {
            panic!("it listens")
        };
        // both ends are ours: one connection is two
        let ends = foreground.run_all(vec![Op::Accept { listener }, Op::Connect { address }]);
        let Ok(Output::Connected { conn, .. }) = &ends[0] else { panic!("accepted") };
        assert!(matches!(ends[1], Ok(Output::Connected { .. })));
        let refused = foreground.run(Op::Connect { address }).expect_err("two connections");
        assert_eq!(refused.kind, IoErrorKind::Other);
        // room again after a close
        assert!(foreground.run(Op::Close { conn: *conn }).is_ok());
        assert!(matches!(foreground.run(Op::Connect { address }), Ok(Output::Connected { .. })));
    }
}

#[test]
fn one_holder_per_directory() {
    let scratch = Scratch::new();
    let lock = lock_directory(scratch.path()).expect("nobody holds it");
    let refused = lock_directory(scratch.path()).expect_err("held");
    let holder = Some(std::process::id());
    assert_eq!(refused, LockError::Held { directory: scratch.path().to_path_buf(), holder });
    assert!(refused.to_string().contains("in use by another process (pid "), "{refused}");
    drop(lock);
    let again = lock_directory(scratch.path()).expect("given up");
    assert!(again.path().ends_with("LOCK"));
    let nowhere = lock_directory(&scratch.path().join("nothing")).expect_err("no directory");
    assert!(matches!(nowhere, LockError::Io(error) if error.kind == IoErrorKind::NotFound));
}

/// A forked child has the file as well, as if it were another descriptor of this process.
#[test]
fn a_lock_ends_though_somebody_else_has_its_file_open() {
    let scratch = Scratch::new();
    let lock = lock_directory(scratch.path()).expect("nobody holds it");
    let fds = std::fs::read_dir("/proc/self/fd").expect("proc").flatten();
    let is_lock = |path: &std::path::Path| std::fs::read_link(path).is_ok_and(|to| to == lock.path());
    let fd = fds.map(|entry| entry.path()).find(|path| is_lock(path)).expect("the lock's descriptor");
    let fd: i32 = fd.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse().ok()).expect("a number");
    // SAFETY: no memory is passed.
    let other = unsafe { libc::dup(fd) };
    assert!(other >= 0);
    lock_directory(scratch.path()).expect_err("held");
    drop(lock);
    let again = lock_directory(scratch.path()).expect("given up");
    // SAFETY: it is this test's own.
    assert_eq!(unsafe { libc::close(other) }, 0);
    lock_directory(scratch.path()).expect_err("the end of a descriptor of before takes nothing away");
    drop(again);
}

#[test]
fn a_host_can_be_looked_at_and_measured() {
    let scratch = Scratch::new();
    let found = probe(scratch.path(), &IoOptions::small()).expect("a usable directory");
    assert!(found.io_uring.is_ok(), "{found:?}");
    assert!(!found.kernel.is_empty() && !found.file_system.name.is_empty());
    assert!(found.descriptors.now <= found.descriptors.most);
    let latency = measure_sync(scratch.path(), 4096, 8).expect("a usable directory");
    for way in [latency.dsync, latency.fdatasync] {
        assert!(!way.p50.is_zero() && way.p50 <= way.p99 && way.p99 <= way.max, "{latency:?}");
    }
    let left = std::fs::read_dir(scratch.path()).expect("a directory").count();
    assert_eq!(left, 0, "nothing is left behind");
    let nowhere = scratch.path().join("nothing");
    assert_eq!(probe(&nowhere, &IoOptions::small()).expect_err("no directory").kind, IoErrorKind::NotFound);
    assert_eq!(measure_sync(&nowhere, 4096, 8).expect_err("no directory").kind, IoErrorKind::NotFound);
}

#[test]
fn no_wake_up_is_lost() {
    const ROUNDS: u64 = 5_000;
    for mut io in back_ends(SyncMode::Auto) {
        let waker = io.waker();
        let asked = Arc::new(AtomicU64::new(0));
        let answered = Arc::new(AtomicU64::new(0));
        let other = {
            let (asked, answered) = (Arc::clone(&asked), Arc::clone(&answered));
            std::thread::spawn(move || {
                for round in 1..=ROUNDS {
                    asked.store(round, Ordering::Release);
                    waker.wake();
                    while answered.load(Ordering::Acquire) < round {
                        std::thread::yield_now();
                    }
                }
            })
        };
        let mut seen = 0;
        while seen < ROUNDS {
            // A lost wake-up would leave us here for ever: the other side waits for the answer.
            assert_eq!(io.poll(Wait::Forever, &mut Vec::new()), 0);
            seen = asked.load(Ordering::Acquire);
            answered.store(seen, Ordering::Release);
        }
        other.join().expect("no panic");
    }
}
