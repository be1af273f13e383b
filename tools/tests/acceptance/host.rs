//! What the host allows: io_uring forbidden, and a user who may not write.

use crate::cluster::{Cluster, Shape};
use crate::command::{PROGRAM, run};
use crate::node::Process;
use nix::sys::signal::Signal;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use tidelog_io::conformance::{IO_URING_SETUP, forbid};

const EPERM: i32 = 1;
/// The user whom every Linux knows, and who owns nothing.
const NOBODY: u32 = 65534;

/// Where io_uring is forbidden, as container runtimes do it, the node says so and what to change; with that it works.
#[test]
fn io_uring_forbidden() {
    let mut cluster = Cluster::prepare(&Shape { nodes: 1, ..Shape::default() });
    let config = cluster.place(1).config_name().to_owned();
    let said = std::thread::spawn(move || {
        // On this thread and on what it starts; the thread ends with it.
        forbid(IO_URING_SETUP, EPERM);
        run(Command::new(PROGRAM).args(["serve", "--config", &config]), Vec::new())
    });
    let said = said.join().expect("no panic");
    said.refused(1, &["io_uring is forbidden here", "seccomp", "backend = \"blocking\"", "[io]"]);
    assert!(!cluster.place(1).data.join("shard-0000").exists());

    cluster.place(1).edit("[cluster]", "[io]\nbackend = \"blocking\"\n[cluster]");
    std::thread::scope(|scope| {
        let start = || {
            forbid(IO_URING_SETUP, EPERM);
            cluster.start_node(1)
        };
        scope.spawn(start).join().expect("no panic");
    });
    let index = cluster.append_all("by blocking calls\n", &[])[0];
    cluster.take(1).kill();
    cluster.start_node(1);
    assert!(cluster.append_all("and again\n", &[])[0] > index);
    assert_eq!(crate::history::read_local(&cluster, 1).len(), 2);
    cluster.stop();
}

/// Files may be 4 MiB large, segments are 16: a new log waits and says why, one with segments serves what it has and takes no more than fits.
/// The kernel would end the process by a signal for it.
#[test]
fn a_limit_on_the_size_of_files() {
    let mut cluster = Cluster::prepare(&Shape { nodes: 1, ..Shape::default() });
    let limited = |cluster: &Cluster| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f 8192; exec \"$0\" serve --config \"$1\"", PROGRAM]);
        command.arg(cluster.place(1).config_name());
        Process::of(command, Stdio::piped())
    };
    let busy = |cluster: &Cluster, line: &str| {
        let said = cluster.append(line, &["--timeout", "1s"]);
        assert_eq!((said.code, &said.json()[0]["outcome"]), (1, &"refused".into()), "{said:?}");
        assert!(said.json()[0]["error"].as_str().is_some_and(|e| e.contains("the disk is full")), "{said:?}");
    };
    let mut node = limited(&cluster);
    node.wait_waiting(&["it waits for space", "ulimit -f"]);
    busy(&cluster, "too early\n");
    node.signal(Signal::SIGTERM);
    let ended = node.ready_or_ended().expect_err("it never was ready");
    assert_eq!(ended.0, Some(0), "{}", ended.1);

    cluster.start_all();
    let index = cluster.append_all("here\n", &[])[0];
    cluster.stop();
    let mut node = limited(&cluster);
    node.wait_ready();
    busy(&cluster, &format!("{}\n", "x".repeat(5 << 20 >> 2)).repeat(4));
    assert_eq!(crate::history::read_local(&cluster, 1).len(), 1, "what is there is read");
    node.signal(Signal::SIGTERM);
    assert_eq!(node.wait_end().0, Some(0));
    cluster.start_all();
    assert!(cluster.append_all("and on\n", &[])[0] > index);
    assert_eq!(crate::history::read_local(&cluster, 1).len(), 2);
    cluster.stop();
}

/// A directory that this user may not write to, and one in a place where nobody can make any.
#[test]
fn a_directory_that_cannot_be_written() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let index = cluster.append_all("here\n", &[])[0];
    cluster.stop();
    let place = cluster.place(1).clone();
    let top = place.config.parent().expect("the cluster's directory").to_owned();
    let may = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
    };
    // Root may write anywhere: the node runs as nobody, from a copy of the program that nobody may run.
    let (root, program) = (std::fs::metadata(&top).expect("it is there").uid() == 0, top.join("tidelog"));
    std::fs::copy(PROGRAM, &program).expect("a copy of the program");
    may(&top, 0o755);
    let serve = || {
        let mut command = Command::new(&program);
        if root {
            command.uid(NOBODY).gid(NOBODY);
        }
        run(command.args(["serve", "--config"]).arg(&place.config), Vec::new())
    };
    for file in [place.data.join("LOCK"), place.data.join("identity")] {
        may(&file, 0o444);
    }
    may(&place.data, 0o555);
    serve().refused(1, &[place.data_name(), "Permission denied", "may write to"]);
    may(&place.data, 0o755);
    may(&place.data.join("LOCK"), 0o644);
    cluster.start_node(1);
    cluster.wait_high_water(1, 0, index);
    cluster.stop();

    for dir in ["/proc/tidelog", "/dev/null/tidelog"] {
        place.edit(place.data_name(), dir);
        serve().refused(1, &[dir, "may write to"]);
        place.edit(dir, place.data_name());
    }
}
