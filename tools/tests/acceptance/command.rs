//! One run of the program, bounded in time.

use crate::clock::{PATIENCE, wait_for};
use serde_json::Value;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_tidelog");

/// What a run of the program came to.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    /// Its stdout as one JSON object a line.
    pub(crate) fn json(&self) -> Vec<Value> {
        json_lines(&self.stdout)
    }

    /// Fails unless it ended with this code, and its complaint has all these parts.
    pub(crate) fn refused(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        let complaint = self.stderr.lines().find(|line| line.starts_with("error: "));
        assert!(complaint.is_some(), "no line begins with \"error: \": {self:?}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    let object = |line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?} is not JSON: {e}"));
    text.lines().map(object).collect()
}

/// Runs the program to its end.
pub(crate) fn tidelog(args: &[&str]) -> Said {
    tidelog_with(args, Vec::new())
}

/// Runs the program to its end with something on its stdin.
pub(crate) fn tidelog_with(args: &[&str], input: Vec<u8>) -> Said {
    run(Command::new(PROGRAM).args(args), input)
}

/// Runs a command to its end; kills it when it takes too long.
pub(crate) fn run(command: &mut Command, input: Vec<u8>) -> Said {
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that ends without reading all of it is no error of the test.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
    let (stdout, stderr) = (gather(stdout), gather(stderr));
    let ended = ended_in_time(&mut child);
    writer.join().expect("no panic");
    let said = Said {
        code: ended.and_then(|status| status.code()).unwrap_or(-1),
        stdout: stdout.join().expect("no panic"),
        stderr: stderr.join().expect("no panic"),
    };
    assert!(ended.is_some(), "{command:?} did not end within {PATIENCE:?}: {said:?}");
    said
}

/// Its status, or nothing after it had to be killed.
fn ended_in_time(child: &mut Child) -> Option<ExitStatus> {
    let deadline = crate::clock::Deadline::after(PATIENCE);
    wait_for("a command", || match child.try_wait().expect("a child") {
        Some(status) => Some(Some(status)),
        None if deadline.is_over() => {
            let _ = child.kill();
            let _ = child.wait();
            Some(None)
        }
        None => None,
    })
}

fn gather(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("the pipe is read");
        String::from_utf8(bytes).expect("the program prints UTF-8")
    })
}
