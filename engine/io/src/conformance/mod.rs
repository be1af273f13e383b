//! One suite that every back-end passes.
//!
//! [`run_all`] makes a fresh [`Setup`] for each check and panics with the check's name at the first promise of
//! [`Io`] that is broken. It knows nothing of what is behind the seam: no file is touched but by operations, no
//! clock is read but the seam's, and nothing depends on real time passing other than the deadlines of
//! [`Wait::Until`].

use crate::{
    AlignedBuf, Completion, ConnId, FileId, Io, IoError, IoErrorKind, ListenerId, Op, OpenMode, Output,
    Token, TokenClass, Wait,
};
use bytes::Bytes;
use core::time::Duration;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tidelog_types::limits::PAGE_BYTES;

/// What one check runs on. Made anew for each.
pub struct Setup {
    /// The back-end.
    pub io: Box<dyn Io>,
    /// A directory of the back-end's own, empty or not there yet; its parent exists.
    pub dir: PathBuf,
    /// Where to listen (port 0: any), if the back-end has sockets.
    pub listen: Option<SocketAddr>,
    /// Whether [`Io::waker`] works: false in a world without other threads.
    pub wakes: bool,
    /// Kept until the check is over: a temporary directory, a world.
    pub keep: Box<dyn Any>,
}

/// Fails the check unless the condition holds.
macro_rules! demand {
    ($bench:expr, $holds:expr, $what:literal) => {
        if !$holds {
            $bench.fail($what)
        }
    };
}

type Check = (&'static str, fn(&mut Bench));

mod counting;
mod files;
mod forbid;
mod sockets;
mod turns;

pub use counting::{Counting, allocated};
pub use forbid::{IO_URING_SETUP, forbid};

/// Runs every check, each on a [`Setup`] of its own. Checks of sockets and of the waker are left out where the
/// setup says that there are none.
///
/// # Panics
/// If the back-end breaks a promise; the message begins with the check's name.
pub fn run_all(make: &mut dyn FnMut() -> Setup) {
    for (name, check) in files::CHECKS.iter().chain(sockets::CHECKS).chain(turns::CHECKS) {
        let setup = make();
        let skipped = (name.starts_with("sockets") && setup.listen.is_none())
            || (name.starts_with("waker") && !setup.wakes);
        if skipped {
            continue;
        }
        let mut bench = Bench::new(name, setup);
        check(&mut bench);
        bench.finish();
    }
}

/// Longest that any single operation may take, by the seam's clock.
const PATIENCE: Duration = Duration::from_secs(20);

/// Submits and collects, and watches that every operation completes exactly once.
struct Bench {
    name: &'static str,
    setup: Setup,
    next: u64,
    waiting: BTreeSet<Token>,
    done: BTreeMap<Token, Result<Output, IoError>>,
}

impl Bench {
    fn new(name: &'static str, setup: Setup) -> Bench {
        let mut bench = Bench { name, setup, next: 0, waiting: BTreeSet::new(), done: BTreeMap::new() };
        let path = bench.setup.dir.clone();
        bench.ok(Op::CreateDir { path });
        bench
    }

    #[track_caller]
    fn fail(&self, what: impl core::fmt::Display) -> ! {
        panic!("{}: {what}", self.name)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.setup.dir.join(name)
    }

    fn listen_address(&self) -> SocketAddr {
        self.setup.listen.expect("socket checks run only with an address")
    }

    fn submit(&mut self, op: Op) -> Token {
        let token = Token { class: TokenClass::Other, value: self.next };
        self.next += 1;
        self.waiting.insert(token);
        self.setup.io.submit(token, op);
        token
    }

    /// One poll; notes what came.
    fn poll(&mut self, wait: Wait) -> usize {
        let mut got: Vec<Completion> = Vec::new();
        let count = self.setup.io.poll(wait, &mut got);
        demand!(self, count == got.len(), "poll returns how many completions it appended");
        for completion in got {
            if !self.waiting.remove(&completion.token) {
                self.fail(format!("{:?} completed twice, or was never submitted", completion.token));
            }
            self.done.insert(completion.token, completion.result);
        }
        count
    }

    fn wait(&mut self, token: Token) -> Result<Output, IoError> {
        let deadline = self.setup.io.clock().now.after(PATIENCE);
        loop {
            if let Some(result) = self.done.remove(&token) {
                return result;
            }
            if self.setup.io.clock().now >= deadline {
                self.fail(format!("{token:?} did not complete within {PATIENCE:?}"));
            }
            self.poll(Wait::Until(deadline));
        }
    }

    #[track_caller]
    fn wait_ok(&mut self, token: Token) -> Output {
        match self.wait(token) {
            Ok(output) => output,
            Err(error) => self.fail(error),
        }
    }

    #[track_caller]
    fn ok(&mut self, op: Op) -> Output {
        let token = self.submit(op);
        self.wait_ok(token)
    }

    #[track_caller]
    fn error(&mut self, op: Op) -> IoError {
        let said = format!("{op:?}");
        let token = self.submit(op);
        match self.wait(token) {
            Ok(output) => self.fail(format!("should fail: {said:.200}, gave {output:?}")),
            Err(error) => error,
        }
    }

    #[track_caller]
    fn error_of_kind(&mut self, op: Op, kind: IoErrorKind) {
        let error = self.error(op);
        if error.kind != kind {
            self.fail(format!("expected {kind:?}, got {:?}: {error}", error.kind));
        }
    }

    #[track_caller]
    fn open(&mut self, path: &Path, mode: OpenMode) -> (FileId, u64) {
        match self.ok(Op::Open { path: path.to_path_buf(), mode }) {
            Output::Opened { file, bytes } => (file, bytes),
            other => self.fail(format!("open gave {other:?}")),
        }
    }

    #[track_caller]
    fn create(&mut self, name: &str) -> FileId {
        let path = self.path(name);
        self.open(&path, OpenMode::Create).0
    }

    #[track_caller]
    fn write(&mut self, file: FileId, offset: u64, data: Vec<Bytes>) {
        self.ok(Op::WriteDurable { file, offset, data });
    }

    #[track_caller]
    fn read(&mut self, file: FileId, offset: u64, bytes: usize) -> (AlignedBuf, usize) {
        let buffer = self.setup.io.buffers().take(bytes);
        match self.ok(Op::Read { file, offset, buffer }) {
            Output::Read { buffer, bytes } => (buffer, bytes),
            other => self.fail(format!("read gave {other:?}")),
        }
    }

    #[track_caller]
    fn close(&mut self, file: FileId) {
        self.ok(Op::CloseFile { file });
    }

    /// Aligned pages with content that depends on `seed` and the place.
    fn pages(&self, count: usize, seed: u64) -> Bytes {
        let mut buffer = self.setup.io.buffers().take(count * PAGE_BYTES);
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = pattern(seed, at);
        }
        buffer.freeze()
    }

    #[track_caller]
    fn listen(&mut self) -> (ListenerId, SocketAddr) {
        let address = self.listen_address();
        match self.ok(Op::Listen { address }) {
            Output::Listening { listener, address } => (listener, address),
            other => self.fail(format!("listen gave {other:?}")),
        }
    }

    /// A connection to ourselves: (the dialling end, the accepted end).
    #[track_caller]
    fn connect(&mut self, listener: ListenerId, address: SocketAddr) -> (ConnId, ConnId) {
        let accept = self.submit(Op::Accept { listener });
        let connect = self.submit(Op::Connect { address });
        let near = self.connected(connect);
        let far = self.connected(accept);
        demand!(self, near != far, "two ends, two ids");
        (near, far)
    }

    #[track_caller]
    fn connected(&mut self, token: Token) -> ConnId {
        match self.wait_ok(token) {
            Output::Connected { conn, .. } => conn,
            other => self.fail(format!("a connection gave {other:?}")),
        }
    }

    /// One receive; what came in.
    #[track_caller]
    fn receive(&mut self, conn: ConnId, bytes_max: usize) -> Vec<u8> {
        let mut buffer = self.setup.io.buffers().take(bytes_max);
        buffer.truncate(bytes_max);
        let token = self.submit(Op::Recv { conn, buffer, filled: 0 });
        match self.wait_ok(token) {
            Output::Received { buffer, bytes } => {
                demand!(self, bytes <= bytes_max, "no more is received than there is room for");
                buffer[..bytes].to_vec()
            }
            other => self.fail(format!("receive gave {other:?}")),
        }
    }

    #[track_caller]
    fn receive_exactly(&mut self, conn: ConnId, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < bytes {
            let more = self.receive(conn, (bytes - all.len()).min(16 * 1024));
            demand!(self, !more.is_empty(), "the connection ended early");
            all.extend_from_slice(&more);
        }
        all
    }

    /// Nothing is left over, and nothing comes twice.
    fn finish(mut self) {
        let left: Vec<Token> = self.waiting.iter().copied().collect();
        for token in left {
            let _outcome = self.wait(token);
        }
        let deadline = self.setup.io.clock().now.after(Duration::from_millis(2));
        while self.setup.io.clock().now < deadline {
            self.poll(Wait::Until(deadline));
        }
    }
}

fn pattern(seed: u64, at: usize) -> u8 {
    let x = (at as u64 / 8).wrapping_add(seed << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x.to_be_bytes()[at % 8]
}
