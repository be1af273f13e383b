//! A node's log is written to stderr, and no failure of stderr reaches the node.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use crate::command::PROGRAM;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::process::{Command, Stdio};

/// What a pipe takes before a writer has to wait (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    writer.write_all(&[b'\n'; PIPE_BYTES]).expect("as much as fits");
    (reader, writer)
}

/// Starts a cluster whose nodes all log there, and lets them work: an append, a restart, an append; then stops them cleanly.
fn works_with(stderr: impl Fn() -> Stdio) {
    let mut cluster = Cluster::prepare(&Shape::default());
    cluster.nodes().for_each(|node| cluster.begin_logging_to(node, stderr()));
    cluster.nodes().for_each(|node| drop(cluster.node(node).wait_ready()));
    let leader = cluster.wait_leader(0);
    cluster.append_all("before\n", &[]);
    let process = cluster.take(leader);
    process.signal(nix::sys::signal::Signal::SIGTERM);
    let (code, _) = process.wait_end();
    assert_eq!(code, Some(0), "a node whose stderr takes nothing stops cleanly");
    cluster.append_all("without it\n", &[]);
    cluster.begin_logging_to(leader, stderr());
    cluster.node(leader).wait_ready();
    cluster.wait_leader(0);
    cluster.append_all("after\n", &[]);
    for node in cluster.nodes() {
        assert!(cluster.node(node).is_running(), "node {node} is gone");
    }
    cluster.stop();
}

/// A reader that dies made the next log line end every node that logged into its pipe.
#[test]
fn a_log_whose_reader_died() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    works_with(|| writer.try_clone().expect("a descriptor").into());
}

/// A pipe that nobody reads made shards wait in a write, and SIGTERM did nothing.
#[test]
fn a_log_that_nobody_reads() {
    let (_reader, writer) = full_pipe();
    works_with(|| writer.try_clone().expect("a descriptor").into());
}

/// A log file on a full disk: every write fails.
#[test]
fn a_log_on_a_full_disk() {
    works_with(|| OpenOptions::new().write(true).open("/dev/full").expect("the device").into());
}

/// Lines that could wait are there when someone reads again.
#[test]
fn a_log_that_is_read_late() {
    let (reader, writer) = full_pipe();
    let mut cluster = Cluster::prepare(&Shape { nodes: 1, ..Shape::default() });
    cluster.begin_logging_to(1, writer.into());
    cluster.node(1).wait_ready();
    cluster.append_all("one\n", &[]);
    let mut lines = BufReader::new(reader).lines().map(|line| line.expect("text"));
    assert!(lines.any(|line| line.contains("opening")), "the first line of a node's log");
}

/// An error is said at the end of a command; a pipe that nobody reads does not keep the command.
#[test]
fn an_error_that_nobody_reads() {
    let (_reader, writer) = full_pipe();
    let mut command = Command::new(PROGRAM);
    command.args(["serve", "--config", "/nowhere/node.toml"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(writer).spawn().expect("the program starts");
    let status = wait_for("the end of a command", || child.try_wait().expect("a child"));
    assert_eq!(status.code(), Some(2));
}
