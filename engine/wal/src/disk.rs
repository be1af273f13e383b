//! Run-to-completion disk work of opening and inspecting: what is opened is closed, on every way out.

use std::collections::BTreeSet;
use std::path::Path;
use tidelog_io::{
    Begun, BufferPool, Completion, FileId, Foreground, Io, IoError, IoErrorKind, Op, OpenMode, Output,
};
use tidelog_types::Clock;

/// Blocking disk operations over the seam.
pub(crate) struct Disk<'a> {
    foreground: Foreground<'a>,
    open: BTreeSet<FileId>,
}

impl<'a> Disk<'a> {
    pub(crate) fn new(io: &'a mut dyn Io) -> Disk<'a> {
        Disk { foreground: Foreground::new(io), open: BTreeSet::new() }
    }

    pub(crate) fn run(&mut self, op: Op) -> Result<Output, IoError> {
        self.foreground.run(op)
    }

    /// Begins an operation; [`Self::result_of`] waits for it.
    pub(crate) fn begin(&mut self, op: Op) -> Begun {
        self.foreground.begin(op)
    }

    /// Lets the device have what was begun, and takes in what has completed.
    pub(crate) fn hand_over(&mut self) {
        self.foreground.hand_over();
    }

    pub(crate) fn result_of(&mut self, begun: Begun) -> Result<Output, IoError> {
        self.foreground.result_of(begun)
    }

    /// Whether it has ended well, as far as is known.
    pub(crate) fn has_succeeded(&self, begun: &Begun) -> bool {
        self.foreground.has_succeeded(begun)
    }

    /// Opens a file; returns it with its length. It is closed at the end unless [`Self::keep`] says otherwise.
    pub(crate) fn open(&mut self, path: &Path, mode: OpenMode) -> Result<(FileId, u64), IoError> {
        match self.run(Op::Open { path: path.to_path_buf(), mode })? {
            Output::Opened { file, bytes } => {
                self.open.insert(file);
                Ok((file, bytes))
            }
            _ => Err(odd("open", path)),
        }
    }

    pub(crate) fn close(&mut self, file: FileId) -> Result<(), IoError> {
        self.open.remove(&file);
        self.run(Op::CloseFile { file }).map(|_| ())
    }

    /// A file opened by [`Self::run`] is closed at the end, too.
    pub(crate) fn adopt(&mut self, file: FileId) {
        self.open.insert(file);
    }

    /// Leaves a file open.
    pub(crate) fn keep(&mut self, file: FileId) {
        self.open.remove(&file);
    }

    /// Names in a directory.
    pub(crate) fn list(&mut self, path: &Path) -> Result<Vec<String>, IoError> {
        match self.run(Op::List { path: path.to_path_buf() })? {
            Output::Names(names) => Ok(names),
            _ => Err(odd("list", path)),
        }
    }

    pub(crate) fn buffers(&mut self) -> BufferPool {
        self.foreground.io().buffers()
    }

    pub(crate) fn clock(&mut self) -> Clock {
        self.foreground.io().clock()
    }

    /// Closes what is open; returns the completions of others.
    pub(crate) fn finish(mut self) -> Vec<Completion> {
        // Reads ahead that an error left behind.
        self.foreground.settle();
        for file in std::mem::take(&mut self.open) {
            // A file that was only read, or belongs to an opening that failed: nothing to lose.
            let _ = self.run(Op::CloseFile { file });
        }
        self.foreground.finish()
    }
}

fn odd(operation: &'static str, path: &Path) -> IoError {
    IoError {
        kind: IoErrorKind::Other,
        operation,
        subject: path.display().to_string(),
        message: "the back-end answered with something else".into(),
    }
}
