//! Every back-end of this crate passes the one suite, in each of its ways of syncing.

mod scratch;

use scratch::Scratch;
use tidelog_io::conformance::{Setup, run_all};
use tidelog_io::{BackEnd, IoOptions, SyncMode, TaskWork, open_back_end};

fn check(kind: BackEnd, options: &IoOptions) {
    run_all(&mut || {
        let keep = Scratch::new();
        Setup {
            io: open_back_end(kind, options).unwrap_or_else(|error| panic!("{error}")),
            dir: keep.path().join("data"),
            listen: Some("127.0.0.1:0".parse().expect("an address")),
            wakes: true,
            keep: Box::new(keep),
        }
    });
}

#[test]
fn uring_with_dsync() {
    check(BackEnd::Uring, &IoOptions { sync: SyncMode::Dsync, ..IoOptions::default() });
}

#[test]
fn uring_with_fdatasync() {
    check(BackEnd::Uring, &IoOptions { sync: SyncMode::Fdatasync, ..IoOptions::default() });
}

#[test]
fn uring_without_registered_memory_and_with_a_short_queue() {
    let options = IoOptions { file_operations_max: 3, ..IoOptions::small() };
    check(BackEnd::Uring, &options);
}

#[test]
fn uring_as_on_older_kernels() {
    for task_work in [TaskWork::Cooperative, TaskWork::Interrupting] {
        check(BackEnd::Uring, &IoOptions { task_work, ..IoOptions::small() });
    }
}

#[test]
fn blocking_with_dsync() {
    check(BackEnd::Blocking, &IoOptions { sync: SyncMode::Dsync, ..IoOptions::default() });
}

#[test]
fn blocking_with_fdatasync() {
    check(BackEnd::Blocking, &IoOptions { sync: SyncMode::Fdatasync, ..IoOptions::small() });
}
