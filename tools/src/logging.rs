//! The program's log: lines on stderr that no thread of a node ever waits for.
//!
//! Whoever has something to say puts a line into a bounded queue; one thread of its own writes the queue to stderr. A full pipe, a full disk or
//! a reader that died stops that thread and nobody else: lines that find no room, and lines that stderr refuses, are counted, and
//! their number is the next line that gets through. The queue holds at most [`LINES_MAX`] lines of at most [`LINE_BYTES_MAX`] bytes.
//!
//! [`Logging`] is made once, at the top of `main`; dropping it, and [`flush`], wait at most [`FLUSH_MAX`] for what is queued.

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Most lines that wait for stderr.
const LINES_MAX: usize = 4096;
/// Longest line; a longer one is cut there.
const LINE_BYTES_MAX: usize = 4096;
/// How long the end of the program waits for stderr.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// How often lost lines are reported again while stderr refuses even that.
const RETRY: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Queue> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Everything before it was tried; whoever asked is told by dropping this.
    Flush(Sender<()>),
}

/// The log is open while this lives.
pub(crate) struct Logging(());

impl Logging {
    /// Begins to log at this level, or as `TIDELOG_LOG` says (`warn`, `info`, `debug`, or per crate: `tidelog_net=debug`).
    pub(crate) fn begin(default: &str) -> Logging {
        let filter = tracing_subscriber::EnvFilter::try_from_env("TIDELOG_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
        let stderr = std::io::stderr();
        let terminal = std::io::IsTerminal::is_terminal(&stderr);
        // A descriptor of its own: the lock of std's stderr must stay free for a panic while a write is stuck.
        let stderr = stderr.as_fd().try_clone_to_owned().map(File::from).ok();
        let (queue, drain) = Queue::new(LINES_MAX);
        let thread = std::thread::Builder::new().name("log".to_owned());
        if let Some(stderr) = stderr
            && thread.spawn(move || drain.run(stderr)).is_ok()
        {
            let _ = QUEUE.set(queue);
        }
        // A line that cannot be written is counted here, not complained about on the stderr that just failed.
        tracing_subscriber::fmt()
            .with_writer(|| Line)
            .with_ansi(terminal)
            .with_env_filter(filter)
            .log_internal_errors(false)
            .init();
        std::panic::set_hook(Box::new(|panic| {
            let thread = std::thread::current();
            say(&format!("thread '{}' {panic}", thread.name().unwrap_or("without a name")));
        }));
        Logging(())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        flush();
    }
}

/// Queues a line as it stands, without level and time.
pub(crate) fn say(line: &str) {
    if let Some(queue) = QUEUE.get() {
        queue.put(format!("{line}\n").into_bytes());
    }
}

/// Waits until everything queued so far was tried, at most [`FLUSH_MAX`]. For a process that is about to exit.
pub(crate) fn flush() {
    if let Some(queue) = QUEUE.get() {
        queue.flush();
    }
}

/// What `tracing` writes one event to.
struct Line;

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if let Some(queue) = QUEUE.get() {
            queue.put(line.to_vec());
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Where lines wait; nobody waits for them.
struct Queue {
    sender: Sender<Message>,
    /// Lines that found no room and were not reported yet.
    lost: Arc<AtomicU64>,
}

impl Queue {
    fn new(lines_max: usize) -> (Queue, Drain) {
        let (sender, receiver) = bounded(lines_max);
        let lost = Arc::<AtomicU64>::default();
        (Queue { sender, lost: lost.clone() }, Drain { receiver, lost })
    }

    fn put(&self, mut line: Vec<u8>) {
        if line.len() > LINE_BYTES_MAX {
            line.truncate(LINE_BYTES_MAX - 1);
            line.push(b'\n');
        }
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let (done, waiting) = bounded(0);
        if self.sender.send_timeout(Message::Flush(done), FLUSH_MAX).is_ok() {
            // It ends when the writer drops its half.
            let _ = waiting.recv_timeout(FLUSH_MAX);
        }
    }
}

/// The writer's side of the queue; it may be stuck in a write for as long as stderr is.
struct Drain {
    receiver: Receiver<Message>,
    lost: Arc<AtomicU64>,
}

impl Drain {
    /// Writes until the queue's other side is gone.
    fn run(self, mut stderr: impl Write) {
        // Lines that stderr refused and that were not reported yet.
        let mut refused = 0;
        loop {
            let message = match self.receiver.recv_timeout(RETRY) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match message {
                Some(Message::Line(line)) => refused += u64::from(stderr.write_all(&line).is_err()),
                Some(Message::Flush(done)) => drop(done),
                None => {}
            }
            let lost = refused + self.lost.swap(0, Ordering::Relaxed);
            let notice = format!("log: {lost} lines are missing here, stderr did not take them\n");
            let reported = lost == 0 || stderr.write_all(notice.as_bytes()).is_ok();
            refused = if reported { 0 } else { lost };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};
    use std::sync::Mutex;

    /// Stderr that refuses its first writes, and keeps the others.
    struct Refusing(usize, Arc<Mutex<String>>);

    impl Write for Refusing {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 > 0 {
                self.0 -= 1;
                return Err(Error::from(ErrorKind::StorageFull));
            }
            self.1.lock().unwrap().push_str(std::str::from_utf8(bytes).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What stderr has after these lines were put into a queue of `room` lines, and then drained.
    fn drained(lines: &[&str], room: usize, refusals: usize) -> String {
        let (queue, drain) = Queue::new(room);
        lines.iter().for_each(|line| queue.put(line.as_bytes().to_vec()));
        drop(queue);
        let seen = Arc::<Mutex<String>>::default();
        drain.run(Refusing(refusals, seen.clone()));
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn lines_that_find_no_room_are_counted_and_said() {
        assert_eq!(
            drained(&["a\n", "b\n", "c\n", "d\n"], 2, 0),
            "a\nlog: 2 lines are missing here, stderr did not take them\nb\n"
        );
    }

    #[test]
    fn lines_that_stderr_refuses_are_counted_and_said_when_it_takes_lines_again() {
        // The first line, its notice, the second line; the second notice gets through.
        assert_eq!(
            drained(&["a\n", "b\n", "c\n"], 9, 3),
            "log: 2 lines are missing here, stderr did not take them\nc\n"
        );
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let long = "x".repeat(LINE_BYTES_MAX + 1);
        let seen = drained(&[&long], 9, 0);
        assert_eq!((seen.len(), seen.ends_with("x\n")), (LINE_BYTES_MAX, true));
    }

    #[test]
    fn a_flush_ends_though_nobody_drains() {
        let (queue, _drain) = Queue::new(1);
        queue.put(b"stuck\n".to_vec());
        queue.flush();
        assert_eq!(queue.sender.len(), 1);
    }
}
