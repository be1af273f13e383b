//! Operations and their completions.

use crate::{AlignedBuf, Space};
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::PathBuf;
use tidelog_types::Monotonic;

/// The submitter's name for an operation: who it belongs to, and a number of theirs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Token {
    /// Whose operation it is; completions are handed out by it.
    pub class: TokenClass,
    /// The owner's own number, below 2^56.
    pub value: u64,
}

/// Who submits operations on a ring.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum TokenClass {
    /// The shard's log.
    Wal = 1,
    /// Channels, server, client.
    Net = 2,
    /// The engine itself.
    Engine = 3,
    /// Run-to-completion work of [`crate::Foreground`].
    Foreground = 4,
    /// Tests, benchmarks, tools.
    Other = 5,
}

impl Token {
    /// `value` of the log.
    pub const fn wal(value: u64) -> Token {
        Token { class: TokenClass::Wal, value }
    }
    /// `value` of the network.
    pub const fn net(value: u64) -> Token {
        Token { class: TokenClass::Net, value }
    }
    /// `value` of the engine.
    pub const fn engine(value: u64) -> Token {
        Token { class: TokenClass::Engine, value }
    }
}

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $name(pub u64);
    };
}
handle!(
    /// An open file of this back-end. Never used twice within a process life.
    FileId
);
handle!(
    /// A connection of this back-end. Never used twice within a process life.
    ConnId
);
handle!(
    /// A listening socket of this back-end. Never used twice within a process life.
    ListenerId
);

/// How to open a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// Existing file, reading only, direct I/O.
    Read,
    /// Existing file, reading and writing, direct I/O.
    ReadWrite,
    /// New file (an existing one is an error), reading and writing, direct I/O. Its name is durable only
    /// after `SyncDir` of its directory.
    Create,
}

/// Most pieces of one `Write` or `WriteDurable`. A `Send` may have any number.
pub const PIECES_MAX: usize = 1024;

/// An operation. Paths are absolute or relative to the working directory; offsets, lengths and buffers of
/// files are multiples of [`tidelog_types::limits::PAGE_BYTES`], and never empty.
#[derive(Debug)]
pub enum Op {
    /// Opens a file. Output: `Opened`.
    Open {
        /// Where.
        path: PathBuf,
        /// How.
        mode: OpenMode,
    },
    /// Closes a file. Output: `Done`.
    CloseFile {
        /// Which.
        file: FileId,
    },
    /// Writes, not durable before a `Sync` of the file. Output: `Done`.
    Write {
        /// Where to.
        file: FileId,
        /// At which byte.
        offset: u64,
        /// What: aligned pieces written one behind the other.
        data: Vec<Bytes>,
    },
    /// Writes and completes when the bytes are on stable storage. Output: `Done`.
    WriteDurable {
        /// Where to.
        file: FileId,
        /// At which byte.
        offset: u64,
        /// What: aligned pieces written one behind the other.
        data: Vec<Bytes>,
    },
    /// Makes completed writes of the file durable (data and size). Output: `Done`.
    Sync {
        /// Which.
        file: FileId,
    },
    /// Fills `buffer` from the file. Output: `Read`, with fewer bytes only at the end of the file.
    Read {
        /// Where from.
        file: FileId,
        /// At which byte.
        offset: u64,
        /// Its whole length is read.
        buffer: AlignedBuf,
    },
    /// Where the file lies, by what its file system never gives to another file. Output: `Located`.
    Locate {
        /// Which.
        file: FileId,
    },
    /// Renames within one directory, replacing what `to` names. Durable after `SyncDir`. Output: `Done`.
    Rename {
        /// Old name.
        from: PathBuf,
        /// New name.
        to: PathBuf,
    },
    /// Removes a file. Durable after `SyncDir`. Output: `Done`.
    Remove {
        /// Which.
        path: PathBuf,
    },
    /// Creates a directory; an existing one is fine. Output: `Done`.
    CreateDir {
        /// Which.
        path: PathBuf,
    },
    /// Makes the names in a directory durable. Output: `Done`.
    SyncDir {
        /// Which.
        path: PathBuf,
    },
    /// Lists a directory. Output: `Names`, sorted.
    List {
        /// Which.
        path: PathBuf,
    },
    /// Asks for the space of the file system that a path lies on; one such question at a time. Output: `Space`.
    Space {
        /// A path that is there.
        path: PathBuf,
    },
    /// Listens. Output: `Listening`.
    Listen {
        /// Port 0: any free one.
        address: SocketAddr,
    },
    /// Waits for one connection. Output: `Connected`.
    Accept {
        /// Where.
        listener: ListenerId,
    },
    /// Connects. Output: `Connected`.
    Connect {
        /// Where to.
        address: SocketAddr,
    },
    /// Sends all pieces, in order. Output: `Done` when all of it is with the kernel; an error if any was not.
    Send {
        /// Over which connection; one send in flight on each.
        conn: ConnId,
        /// What.
        data: Vec<Bytes>,
    },
    /// Receives at least one byte into `buffer` from `filled` on. Output: `Received`; 0 bytes: closed by the peer.
    Recv {
        /// Over which connection; one receive in flight on each.
        conn: ConnId,
        /// Where to.
        buffer: AlignedBuf,
        /// Bytes of the buffer that are in use already.
        filled: usize,
    },
    /// Closes a connection: its pending operations complete with an error. Output: `Done`.
    Close {
        /// Which.
        conn: ConnId,
    },
    /// Stops listening; a pending accept completes with an error. Output: `Done`.
    CloseListener {
        /// Which.
        listener: ListenerId,
    },
}

/// What an operation gave.
#[derive(Debug)]
pub enum Output {
    /// Nothing but success.
    Done,
    /// A file and its size in bytes.
    Opened {
        /// The file.
        file: FileId,
        /// Its size.
        bytes: u64,
    },
    /// The buffer, and how much of it was read.
    Read {
        /// The buffer handed over.
        buffer: AlignedBuf,
        /// Bytes read into it.
        bytes: usize,
    },
    /// The place of a file.
    Located(Place),
    /// Names in a directory, sorted.
    Names(Vec<String>),
    /// Space of a file system.
    Space(Space),
    /// A listening socket and its address.
    Listening {
        /// The socket.
        listener: ListenerId,
        /// Its address, with the port that was found.
        address: SocketAddr,
    },
    /// A connection and its other end.
    Connected {
        /// The connection.
        conn: ConnId,
        /// The other end.
        peer: SocketAddr,
    },
    /// The buffer, and how many bytes came in behind `filled`.
    Received {
        /// The buffer handed over.
        buffer: AlignedBuf,
        /// Bytes received.
        bytes: usize,
    },
}

/// What tells a file from every copy of it: renaming keeps both, copying and restoring change at least one.
///
/// The file system's own id is left out: some derive it from the device's number, which a reboot may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// Its inode. A file system may give the number to another file when this one is gone.
    pub inode: u64,
    /// When the inode was made, in nanoseconds since 1970; none where the file system does not keep it.
    pub born_ns: Option<u64>,
}

/// One operation's end.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// How it went.
    pub result: Result<Output, IoError>,
}

/// What a caller tells errors apart by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoErrorKind {
    /// No such file or directory.
    NotFound,
    /// There is one already.
    Exists,
    /// No space, or a quota or a size limit.
    NoSpace,
    /// The device failed (EIO and the like): for a write or a sync, final for the file.
    Device,
    /// Fewer bytes written than asked.
    ShortWrite,
    /// Not allowed, or read-only.
    Denied,
    /// The address is in use.
    AddressInUse,
    /// The connection was refused, reset, closed or timed out.
    Disconnected,
    /// Interrupted by closing, or by the end of a simulated node.
    Cancelled,
    /// A misuse of the interface, or anything else.
    Other,
}

/// Why an operation failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{operation} {subject}: {message}")]
pub struct IoError {
    /// For code.
    pub kind: IoErrorKind,
    /// Which operation: `write`, `sync`, `connect`, …
    pub operation: &'static str,
    /// On what: a path or an address.
    pub subject: String,
    /// The system's words.
    pub message: String,
}

/// How long a poll may wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something completes or wakes, or this moment.
    Until(Monotonic),
    /// The same for a moment so near that sleeping until then may take longer: a back-end may look on instead, and need
    /// not look long if the moment is not that near.
    Briefly(Monotonic),
    /// Until something completes or wakes.
    Forever,
}
