//! A write that is cut short is an error, and so is the sync behind it. In a process of its own: the limit on the size of
//! files is the process's.

#![allow(unsafe_code)] // sets that limit

mod scratch;

use scratch::Scratch;
use tidelog_io::{
    BackEnd, Foreground, IoErrorKind, IoOptions, Op, OpenMode, Output, SyncMode, open_back_end,
};

const LIMIT: u64 = 16 * 4096;

#[test]
fn a_short_write_is_reported_and_not_continued() {
    let limit = libc::rlimit { rlim_cur: LIMIT, rlim_max: LIMIT };
    // SAFETY: the limit is valid for reading during the call; ignoring a signal touches no memory.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
        assert_ne!(libc::signal(libc::SIGXFSZ, libc::SIG_IGN), libc::SIG_ERR);
    }
    let scratch = Scratch::new();
    for kind in [BackEnd::Uring, BackEnd::Blocking] {
        for sync in [SyncMode::Dsync, SyncMode::Fdatasync] {
            for pieces in [1usize, 4] {
                let options = IoOptions { sync, ..IoOptions::small() };
                let mut io = open_back_end(kind, &options).expect("it opens");
                let path = scratch.path().join(format!("{kind:?}-{sync:?}-{pieces}"));
                let data = io.buffers().take_zeroed(8 * 4096).freeze();
                let data: Vec<_> = (0..pieces)
                    .map(|i| data.slice(i * data.len() / pieces..(i + 1) * data.len() / pieces))
                    .collect();
                let mut foreground = Foreground::new(io.as_mut());
                let Ok(Output::Opened { file, .. }) =
                    foreground.run(Op::Open { path: path.clone(), mode: OpenMode::Create })
                else {
                    panic!("it opens")
                };
                let over = foreground
                    .run(Op::WriteDurable { file, offset: LIMIT - 4 * 4096, data: data.clone() })
                    .expect_err("half of it fits");
                assert_eq!(over.kind, IoErrorKind::ShortWrite, "{kind:?} {sync:?}: {over}");
                assert!(over.message.contains("16384 of 32768"), "{over}");
                let size = std::fs::metadata(&path).expect("the file").len();
                assert_eq!(size, LIMIT, "what fitted was written, and no more was tried");
                let beyond = foreground
                    .run(Op::WriteDurable { file, offset: LIMIT, data: data.clone() })
                    .expect_err("nothing fits");
                assert_eq!(beyond.kind, IoErrorKind::NoSpace, "{kind:?} {sync:?}: {beyond}");
                let fine = foreground.run(Op::WriteDurable { file, offset: 0, data });
                assert!(fine.is_ok(), "{fine:?}");
                assert!(foreground.finish().is_empty(), "no completion came twice");
            }
        }
    }
}
