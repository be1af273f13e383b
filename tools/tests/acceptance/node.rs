//! One node process: started, watched, killed.

use crate::clock::wait_for;
use crate::command::PROGRAM;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

/// What a process has printed so far.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<String>>);

impl Printed {
    fn follow(pipe: impl Read + Send + 'static) -> Printed {
        let printed = Printed::default();
        let into = printed.clone();
        std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = String::new();
            while pipe.read_line(&mut line).is_ok_and(|n| n > 0) {
                into.0.lock().expect("no panic").push_str(&line);
                line.clear();
            }
        });
        printed
    }

    fn text(&self) -> String {
        self.0.lock().expect("no panic").clone()
    }
}

/// A running `tidelog serve`; dropping it kills it.
pub(crate) struct Process {
    child: Child,
    stdout: Printed,
    stderr: Printed,
}

impl Process {
    /// Starts it with this stderr; [`Process::log`] follows it if it is a pipe made here.
    pub(crate) fn start(config: &Path, stderr: Stdio) -> Process {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--config"]).arg(config);
        Process::of(command, stderr)
    }

    /// A command that becomes a node.
    pub(crate) fn of(mut command: Command, stderr: Stdio) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().expect("the program starts");
        let stdout = Printed::follow(child.stdout.take().expect("a pipe"));
        let stderr = child.stderr.take().map(Printed::follow).unwrap_or_default();
        Process { child, stdout, stderr }
    }

    /// Its line on stdout that it is ready. Before it stands only why it waits.
    pub(crate) fn wait_ready(&mut self) -> Value {
        let line = wait_for("the ready line", || {
            let text = self.stdout.text();
            let mut whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            if let Some(line) = whole.find(|line| !line.contains("\"event\":\"waiting\"")) {
                return Some(line.to_owned());
            }
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "it ended with {ended:?} before it was ready: {}", self.log());
            None
        });
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?} is not JSON: {e}"))
    }

    /// Its ready line; or, if it ends before it is ready, its exit code and its log.
    pub(crate) fn ready_or_ended(&mut self) -> Result<Value, (Option<i32>, String)> {
        let ended = wait_for("the ready line or the end", || {
            if self.stdout.text().contains("\"event\":\"ready\"") {
                return Some(None);
            }
            self.child.try_wait().expect("a child").map(Some)
        });
        match ended {
            None => Ok(self.wait_ready()),
            Some(status) => {
                // The last words of one that failed may still be on their way.
                wait_for("its last words", || {
                    let said =
                        status.code() == Some(0) || self.log().lines().any(|l| l.starts_with("error: "));
                    said.then_some(())
                });
                Err((status.code(), self.log()))
            }
        }
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it says that it waits, for a reason with all these parts. It has not been ready by then.
    pub(crate) fn wait_waiting(&self, parts: &[&str]) {
        wait_for(&format!("{parts:?} as a reason to wait"), || {
            let text = self.stdout.text();
            assert!(!text.contains("\"event\":\"ready\""), "it is ready: {text}");
            let waits = |line: &str| {
                line.contains("\"event\":\"waiting\"") && parts.iter().all(|part| line.contains(part))
            };
            text.lines().any(waits).then_some(())
        });
    }

    /// Waits until its log has all these parts.
    pub(crate) fn wait_logged(&self, parts: &[&str]) {
        wait_for(&format!("{parts:?} in a log"), || {
            let log = self.log();
            parts.iter().all(|part| log.contains(part)).then_some(())
        });
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(pid, signal).expect("the process is there");
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// Waits for its end, and returns its exit code and its log.
    pub(crate) fn wait_end(mut self) -> (Option<i32>, String) {
        let status = wait_for("a node's end", || self.child.try_wait().expect("a child"));
        (status.code(), self.log())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
        if std::thread::panicking() {
            eprintln!("--- log of process {}\n{}", self.child.id(), self.log());
        }
    }
}

/// An address that no other test and no outgoing connection uses: each test process has a loopback address of its own.
pub(crate) fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(7101);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    SocketAddr::from(([127, 64 + high % 64, middle, low], port))
}

/// Where a node's configuration and data lie.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) config: PathBuf,
    pub(crate) data: PathBuf,
}

impl Place {
    pub(crate) fn config_name(&self) -> &str {
        self.config.to_str().expect("UTF-8")
    }

    pub(crate) fn data_name(&self) -> &str {
        self.data.to_str().expect("UTF-8")
    }

    /// Changes the configuration.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.config).expect("the configuration");
        assert!(text.contains(from), "{from:?} is not in {text}");
        std::fs::write(&self.config, text.replace(from, to)).expect("the configuration");
    }
}
