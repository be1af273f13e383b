//! Real node processes of this binary on loopback, with real data directories: what `demo` and the process tests run on.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a node may take to say that it is ready, recovery included.
const READY_MAX: Duration = Duration::from_secs(120);

/// What the cluster is to be.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) nodes: u64,
    pub(crate) partitions: u64,
    pub(crate) profiles: Vec<String>,
    /// More lines of configuration, put behind the generated ones.
    pub(crate) extra: String,
}

/// Node processes, numbered from 1. Dropping it kills what still runs.
#[derive(Debug)]
pub(crate) struct LocalCluster {
    dir: PathBuf,
    program: PathBuf,
    addresses: Vec<SocketAddr>,
    running: Vec<Option<Child>>,
    nodes: Nodes,
}

/// The processes that run, for whoever has to end them without asking the cluster's owner.
#[derive(Clone, Debug, Default)]
pub(crate) struct Nodes(Arc<Mutex<Registered>>);

#[derive(Debug, Default)]
struct Registered {
    /// Not waited for yet, so that their numbers are nobody else's.
    processes: BTreeSet<u32>,
    /// None is started any more.
    closed: bool,
}

impl Nodes {
    fn lock(&self) -> MutexGuard<'_, Registered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process, unless all were ended.
    fn start(&self, command: &mut Command) -> std::io::Result<Child> {
        let mut registered = self.lock();
        if registered.closed {
            return Err(std::io::Error::other("interrupted"));
        }
        let child = command.spawn()?;
        registered.processes.insert(child.id());
        Ok(child)
    }

    /// It is about to be waited for.
    fn forget(&self, child: &Child) {
        self.lock().processes.remove(&child.id());
    }

    /// SIGKILL to all, and to none that could be started later.
    pub(crate) fn kill_all(&self) {
        let mut registered = self.lock();
        registered.closed = true;
        for process in &registered.processes {
            // One that has just ended by itself is not waited for yet: the signal reaches nobody else.
            let _ = kill(Pid::from_raw(*process as i32), Signal::SIGKILL);
        }
    }
}

/// The lines that a starting node prints.
pub(crate) type Readiness = mpsc::Receiver<String>;

/// Why a node did not start or stop as it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    #[error("{0}: {1}")]
    Io(String, std::io::Error),
    #[error("node {node} did not become ready: {why}; its log is {}", .log.display())]
    NotReady { node: u64, why: String, log: PathBuf },
    #[error("node {node} ended with {status}; its log is {}", .log.display())]
    Ended { node: u64, status: String, log: PathBuf },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> ClusterError {
    let what = what.into();
    move |e| ClusterError::Io(what, e)
}

impl LocalCluster {
    /// Writes the configurations into `dir` and starts every node.
    pub(crate) fn start(
        program: &Path,
        dir: &Path,
        shape: &Shape,
        nodes: Nodes,
    ) -> Result<LocalCluster, ClusterError> {
        std::fs::create_dir_all(dir).map_err(io_error(dir.display().to_string()))?;
        let addresses = free_addresses(shape.nodes).map_err(io_error("cannot find free loopback ports"))?;
        let cluster = LocalCluster {
            dir: dir.to_owned(),
            program: program.to_owned(),
            running: addresses.iter().map(|_| None).collect(),
            addresses,
            nodes,
        };
        for node in cluster.nodes() {
            let path = cluster.config_path(node);
            std::fs::write(&path, cluster.config(node, shape))
                .map_err(io_error(path.display().to_string()))?;
        }
        let mut cluster = cluster;
        // All founders must be up before the first one can be ready, so all are spawned before any is waited for.
        let waiting: Vec<_> = cluster
            .nodes()
            .map(|node| cluster.spawn(node).map(|ready| (node, ready)))
            .collect::<Result<_, _>>()?;
        for (node, ready) in waiting {
            cluster.wait_ready(node, &ready)?;
        }
        Ok(cluster)
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = u64> + use<> {
        1..=self.addresses.len() as u64
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(crate) fn data_dir(&self, node: u64) -> PathBuf {
        self.dir.join(format!("n{node}"))
    }

    pub(crate) fn config_path(&self, node: u64) -> PathBuf {
        self.dir.join(format!("n{node}.toml"))
    }

    /// Starts a node that does not run, without waiting: [`Self::is_ready`] tells.
    pub(crate) fn begin_restart(&mut self, node: u64) -> Result<Readiness, ClusterError> {
        self.spawn(node)
    }

    /// Whether a node that was started has said that it is ready.
    pub(crate) fn is_ready(&self, node: u64, ready: &Readiness) -> Result<bool, ClusterError> {
        match next_but_waiting(ready, Duration::ZERO) {
            Ok(line) if says(&line, "ready") => Ok(true),
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(false),
            Ok(line) => Err(self.not_ready(node, format!("it printed {line:?}"))),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(self.not_ready(node, self.last_words(node))),
        }
    }

    /// Starts a node that does not run, and waits until it is ready.
    pub(crate) fn restart(&mut self, node: u64) -> Result<(), ClusterError> {
        let ready = self.spawn(node)?;
        self.wait_ready(node, &ready)
    }

    /// SIGKILL, and the process is gone when this returns.
    pub(crate) fn kill(&mut self, node: u64) -> Result<(), ClusterError> {
        if let Some(mut child) = self.slot(node).take() {
            self.nodes.forget(&child);
            child.kill().map_err(io_error(format!("cannot kill node {node}")))?;
            child.wait().map_err(io_error(format!("cannot wait for node {node}")))?;
        }
        Ok(())
    }

    /// SIGTERM to every running node, and waits: each must end with exit code 0.
    pub(crate) fn stop(&mut self) -> Result<(), ClusterError> {
        for child in self.running.iter().flatten() {
            // A process that has just ended by itself is noticed below, by its exit code.
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        }
        for node in self.nodes() {
            if let Some(mut child) = self.slot(node).take() {
                self.nodes.forget(&child);
                let status = child.wait().map_err(io_error(format!("cannot wait for node {node}")))?;
                if !status.success() {
                    return Err(ClusterError::Ended {
                        node,
                        status: status.to_string(),
                        log: self.log_path(node),
                    });
                }
            }
        }
        Ok(())
    }

    fn slot(&mut self, node: u64) -> &mut Option<Child> {
        &mut self.running[node as usize - 1]
    }

    fn log_path(&self, node: u64) -> PathBuf {
        self.dir.join(format!("n{node}.log"))
    }

    fn config(&self, node: u64, shape: &Shape) -> String {
        let nodes: String = self
            .nodes()
            .zip(&self.addresses)
            .map(|(id, address)| format!("  {{ id = {id}, address = \"{address}\" }},\n"))
            .collect();
        format!(
            "profile = {:?}\n\n[node]\nid = {node}\ndata_dir = {:?}\n\n[cluster]\nname = {:?}\nnodes = [\n{nodes}]\npartitions = {}\nreplication = {}\n{}",
            shape.profiles,
            self.data_dir(node),
            shape.name,
            shape.partitions,
            shape.nodes,
            shape.extra
        )
    }

    fn spawn(&mut self, node: u64) -> Result<Readiness, ClusterError> {
        let log_path = self.log_path(node);
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(io_error(log_path.display().to_string()))?;
        let mut command = Command::new(&self.program);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.config_path(node))
            // Held as long as the child is: whatever ends this process, its nodes stop.
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = self
            .nodes
            .start(&mut command)
            .map_err(io_error(format!("cannot start {}", self.program.display())))?;
        let (line, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                for text in BufReader::new(stdout).lines().map_while(Result::ok) {
                    if line.send(text).is_err() {
                        break;
                    }
                }
            });
        }
        *self.slot(node) = Some(child);
        Ok(lines)
    }

    fn wait_ready(&mut self, node: u64, lines: &Readiness) -> Result<(), ClusterError> {
        let why = match next_but_waiting(lines, READY_MAX) {
            Ok(line) if says(&line, "ready") => return Ok(()),
            Ok(line) => format!("it printed {line:?}"),
            Err(mpsc::RecvTimeoutError::Timeout) => format!("nothing was heard of it for {READY_MAX:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => self.last_words(node),
        };
        Err(self.not_ready(node, why))
    }

    fn not_ready(&self, node: u64, why: String) -> ClusterError {
        ClusterError::NotReady { node, why, log: self.log_path(node) }
    }

    fn last_words(&self, node: u64) -> String {
        let log = std::fs::read_to_string(self.log_path(node)).unwrap_or_default();
        let last = log.lines().rev().find(|l| l.contains("error:")).or_else(|| log.lines().last());
        format!("it ended; its last words: {}", last.unwrap_or("none"))
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            // Best effort on the way out: the parent reports its own error.
            self.nodes.forget(child);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Loopback addresses that were free a moment ago.
fn free_addresses(count: u64) -> std::io::Result<Vec<SocketAddr>> {
    let listeners: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

/// Whether a line that a node printed is about this event.
fn says(line: &str, event: &str) -> bool {
    line.contains(&format!("\"event\":\"{event}\""))
}

/// The next line but for those that say why the node waits.
fn next_but_waiting(lines: &Readiness, patience: Duration) -> Result<String, mpsc::RecvTimeoutError> {
    loop {
        match lines.recv_timeout(patience)? {
            line if says(&line, "waiting") => {}
            line => return Ok(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The demo once ended because a node that was started again said why it waits before it was ready.
    #[test]
    fn a_node_that_says_why_it_waits_is_not_ready_yet_and_has_not_failed() {
        let (node, lines) = mpsc::channel();
        let next = || next_but_waiting(&lines, Duration::ZERO);
        assert_eq!(next(), Err(mpsc::RecvTimeoutError::Timeout));
        let waiting = r#"{"event":"waiting","node":3,"why":"no peer has been heard yet"}"#;
        for _ in 0..2 {
            node.send(waiting.to_owned()).unwrap();
        }
        assert_eq!(next(), Err(mpsc::RecvTimeoutError::Timeout));
        node.send(waiting.to_owned()).unwrap();
        node.send(r#"{"event":"ready","node":3}"#.to_owned()).unwrap();
        assert!(next().is_ok_and(|line| says(&line, "ready")));
        node.send("something else".to_owned()).unwrap();
        assert_eq!(next().as_deref(), Ok("something else"));
        drop(node);
        assert_eq!(next(), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
