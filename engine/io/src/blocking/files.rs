//! Files over plain calls.

use super::BlockingIo;
use crate::alignment::{ReadOn, check_read, check_write, read_on};
use crate::sys::{self, Errno, c_path, check, file_error, misuse, uninterrupted};
use crate::{AlignedBuf, FileId, IoError, IoErrorKind, Op, OpenMode, Output, SyncMode};
use bytes::Bytes;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// An open file.
pub(super) struct File {
    fd: OwnedFd,
    path: PathBuf,
}

impl BlockingIo {
    /// Runs an operation on files to its end.
    pub(super) fn run_file(&mut self, op: Op) -> Result<Output, IoError> {
        match op {
            Op::Open { path, mode } => return self.open_file(path, mode),
            Op::CloseFile { file: FileId(id) } => {
                let closed = self.files.remove(id);
                drop(closed.ok_or_else(|| misuse("close", format_args!("file {id}"), "not open"))?);
            }
            Op::Write { file, offset, data } => self.write(file, offset, &data, false)?,
            Op::WriteDurable { file, offset, data } => self.write(file, offset, &data, true)?,
            Op::Sync { file } => {
                let file = self.file("sync", file)?;
                fdatasync(file.fd.as_raw_fd()).map_err(|errno| file_error(errno, "sync", &file.path))?;
            }
            Op::Read { file, offset, buffer } => return self.read(file, offset, buffer),
            Op::Locate { file } => {
                let file = self.file("locate", file)?;
                return sys::place(file.fd.as_raw_fd())
                    .map(Output::Located)
                    .map_err(|errno| file_error(errno, "locate", &file.path));
            }
            Op::Rename { from, to } => {
                let (c_from, c_to) = (c_path("rename", &from)?, c_path("rename", &to)?);
                // SAFETY: both paths are C strings that outlive the call.
                check(unsafe { libc::rename(c_from.as_ptr(), c_to.as_ptr()) })
                    .map_err(|errno| file_error(errno, "rename", &from))?;
                // What is said of an open file is said by the name that it has now.
                for file in self.files.values_mut().filter(|file| file.path == from) {
                    file.path.clone_from(&to);
                }
            }
            Op::Remove { path } => {
                let raw = c_path("remove", &path)?;
                // SAFETY: the path is a C string that outlives the call.
                check(unsafe { libc::unlink(raw.as_ptr()) })
                    .map_err(|errno| file_error(errno, "remove", &path))?;
            }
            Op::CreateDir { path } => crate::directory::create(&path)?,
            Op::SyncDir { path } => sync_directory(&path)?,
            Op::List { path } => return crate::directory::list(&path).map(Output::Names),
            Op::Space { path } => return crate::space(&path).map(Output::Space),
            _ => unreachable!("`begin` sorts the operations"),
        }
        Ok(Output::Done)
    }

    fn file(&self, operation: &'static str, FileId(id): FileId) -> Result<&File, IoError> {
        self.files.get(id).ok_or_else(|| misuse(operation, format_args!("file {id}"), "not open"))
    }

    fn open_file(&mut self, path: PathBuf, mode: OpenMode) -> Result<Output, IoError> {
        if self.files.is_full() {
            return Err(misuse("open", path.display(), "too many open files"));
        }
        let flags = match mode {
            OpenMode::Read => libc::O_RDONLY,
            OpenMode::ReadWrite => libc::O_RDWR,
            OpenMode::Create => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
        };
        let raw = c_path("open", &path)?;
        let refuse = |errno| file_error(errno, "open", &path);
        let fd = sys::open(&raw, flags).map_err(refuse)?;
        let direct = sys::set_direct(fd.as_raw_fd()).map_err(refuse)?;
        if !direct && !self.told_of_buffering {
            self.told_of_buffering = true;
            tracing::warn!(path = %path.display(), "this file system has no direct I/O: writes are buffered, then synced");
        }
        let bytes = sys::file_bytes(fd.as_raw_fd()).map_err(refuse)?;
        let id = self
            .files
            .insert(File { fd, path })
            .map_err(|file| misuse("open", file.path.display(), "too many open files"))?;
        Ok(Output::Opened { file: FileId(id), bytes })
    }

    fn write(&self, file: FileId, offset: u64, data: &[Bytes], durable: bool) -> Result<(), IoError> {
        let bytes = check_write("write", offset, data)?;
        let file = self.file("write", file)?;
        let pieces: Vec<libc::iovec> = data
            .iter()
            .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() })
            .collect();
        let dsync = durable && self.sync == SyncMode::Dsync;
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        let fd = file.fd.as_raw_fd();
        let written = uninterrupted(|| {
            // SAFETY: the pieces point into `data`, which outlives the call.
            let written =
                unsafe { libc::pwritev2(fd, pieces.as_ptr(), pieces.len() as i32, offset as i64, flags) };
            usize::try_from(written).map_err(|_| sys::errno())
        });
        let refuse = |errno, operation| file_error(errno, operation, &file.path);
        match written {
            Err(errno) => return Err(refuse(errno, "write")),
            Ok(written) if written != bytes => {
                return Err(IoError {
                    kind: IoErrorKind::ShortWrite,
                    operation: "write",
                    subject: file.path.display().to_string(),
                    message: format!("{written} of {bytes} bytes"),
                });
            }
            Ok(_) => {}
        }
        if durable && !dsync {
            fdatasync(fd).map_err(|errno| refuse(errno, "sync"))?;
        }
        Ok(())
    }

    fn read(&self, file: FileId, offset: u64, mut buffer: AlignedBuf) -> Result<Output, IoError> {
        check_read(offset, &buffer)?;
        let file = self.file("read", file)?;
        let refuse = |errno| file_error(errno, "read", &file.path);
        let fd = file.fd.as_raw_fd();
        let mut filled = 0;
        while filled < buffer.len() {
            let began = filled;
            let rest = &mut buffer[filled..];
            let got = uninterrupted(|| {
                // SAFETY: `rest` is ours alone and valid for writing during the call.
                let got = unsafe {
                    libc::pread(fd, rest.as_mut_ptr().cast(), rest.len(), (offset + began as u64) as i64)
                };
                usize::try_from(got).map_err(|_| sys::errno())
            })
            .map_err(refuse)?;
            if got == 0 {
                break;
            }
            filled += got;
            if filled < buffer.len() {
                match read_on(offset, began, filled, sys::file_bytes(fd).map_err(refuse)?) {
                    ReadOn::Ended => break,
                    ReadOn::From(from) => filled = from,
                    ReadOn::Stuck => return Err(refuse(libc::EIO)),
                }
            }
        }
        Ok(Output::Read { buffer, bytes: filled })
    }
}

/// Never repeated: after a failure, what a second one says means nothing.
fn fdatasync(fd: RawFd) -> Result<(), Errno> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::fdatasync(fd) }).map(drop)
}

fn sync_directory(path: &Path) -> Result<(), IoError> {
    let refuse = |errno| file_error(errno, "sync directory", path);
    let raw = c_path("sync directory", path)?;
    let dir = sys::open(&raw, libc::O_RDONLY | libc::O_DIRECTORY).map_err(refuse)?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::fsync(dir.as_raw_fd()) }).map(drop).map_err(refuse)
}
