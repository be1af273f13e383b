//! Files over the ring.

use super::ring::Target;
use super::slots::Work;
use super::{Ring, UringIo};
use crate::alignment::{ReadOn, check_read, check_write, read_on};
use crate::sys::{self, c_path, file_error, misuse};
use crate::table::place;
use crate::{FileId, IoError, IoErrorKind, IoOptions, Op, OpenMode, Output, SyncMode, Token};
use bytes::Bytes;
use io_uring::squeue::Flags;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The registered memory is one buffer.
const REGISTERED_BUFFER: u16 = 0;

/// An open file.
pub(super) struct File {
    fd: OwnedFd,
    target: Target,
    pub(super) path: PathBuf,
    /// Operations in flight or in line; closing waits for them.
    pending: u32,
    closing: Option<Token>,
}

impl UringIo {
    pub(super) fn begin_file(&mut self, token: Token, op: Op) -> Result<(), IoError> {
        let work = match op {
            Op::Open { path, mode } => {
                let c_path = c_path("open", &path)?;
                Work::Open { path, c_path, mode }
            }
            Op::CloseFile { file: FileId(id) } => {
                let file = self.open_file("close", id)?;
                file.closing = Some(token);
                if file.pending == 0 {
                    self.close_file(id);
                }
                return Ok(());
            }
            Op::Write { file, offset, data } => self.write_work(file, offset, data, false)?,
            Op::WriteDurable { file, offset, data } => self.write_work(file, offset, data, true)?,
            Op::Sync { file: FileId(id) } => {
                self.use_file("sync", id)?;
                Work::Sync { file: id }
            }
            Op::Read { file: FileId(id), offset, buffer } => {
                check_read(offset, &buffer)?;
                self.use_file("read", id)?;
                Work::Read { file: id, offset, buffer, filled: 0 }
            }
            Op::Rename { from, to } => {
                let (c_from, c_to) = (c_path("rename", &from)?, c_path("rename", &to)?);
                Work::Rename { from, to, c_from, c_to }
            }
            Op::Remove { path } => {
                let c_path = c_path("remove", &path)?;
                Work::Remove { path, c_path }
            }
            Op::SyncDir { path } => {
                let raw = c_path("sync directory", &path)?;
                let dir = sys::open(&raw, libc::O_RDONLY | libc::O_DIRECTORY)
                    .map_err(|errno| file_error(errno, "sync directory", &path))?;
                Work::SyncDir { path, dir }
            }
            Op::Locate { file: FileId(id) } => {
                let file = self.open_file("locate", id)?;
                let place = sys::place(file.fd.as_raw_fd())
                    .map_err(|errno| file_error(errno, "locate", &file.path))?;
                self.finish(token, Ok(Output::Located(place)));
                return Ok(());
            }
            Op::CreateDir { path } => {
                crate::directory::create(&path)?;
                self.finish(token, Ok(Output::Done));
                return Ok(());
            }
            Op::List { path } => {
                let names = crate::directory::list(&path)?;
                self.finish(token, Ok(Output::Names(names)));
                return Ok(());
            }
            _ => unreachable!("`begin` sorts the operations"),
        };
        if self.file_operations < usize::from(self.options.file_operations_max.max(1)) {
            self.start(token, work);
        } else if self.backlog.len() < IoOptions::BACKLOG_MAX {
            self.backlog.push_back((token, work));
        } else {
            self.release_file(&work);
            return Err(misuse("submit", "files", "too many operations are waiting in line"));
        }
        Ok(())
    }

    fn write_work(
        &mut self,
        FileId(file): FileId,
        offset: u64,
        data: Vec<Bytes>,
        durable: bool,
    ) -> Result<Work, IoError> {
        let bytes = check_write("write", offset, &data)?;
        self.use_file("write", file)?;
        Ok(Work::Write { file, offset, data, bytes, durable, failed: None })
    }

    /// An open file that is not being closed.
    fn open_file(&mut self, operation: &'static str, id: u64) -> Result<&mut File, IoError> {
        match self.files.get_mut(id) {
            Some(file) if file.closing.is_none() => Ok(file),
            _ => Err(misuse(operation, format_args!("file {id}"), "not open")),
        }
    }

    fn use_file(&mut self, operation: &'static str, id: u64) -> Result<(), IoError> {
        self.open_file(operation, id)?.pending += 1;
        Ok(())
    }

    /// The opposite of [`Self::use_file`].
    fn release_file(&mut self, work: &Work) {
        let (Work::Write { file, .. } | Work::Sync { file } | Work::Read { file, .. }) = work else { return };
        let Some(entry) = self.files.get_mut(*file) else { return };
        entry.pending -= 1;
        if entry.pending == 0 && entry.closing.is_some() {
            self.close_file(*file);
        }
    }

    fn close_file(&mut self, id: u64) {
        let Some(file) = self.files.remove(id) else { return };
        assert_eq!(file.pending, 0, "a descriptor is closed only when nothing in flight uses it");
        self.ring.unregister(file.target);
        drop(file.fd);
        if let Some(token) = file.closing {
            self.finish(token, Ok(Output::Done));
        }
    }

    /// Queues a slot's entries.
    pub(super) fn issue_file(&mut self, at: u32) {
        let user_data = u64::from(at) << 1;
        let slot = self.slots.get(at);
        let target = match &slot.work {
            Work::Write { file, .. } | Work::Sync { file } | Work::Read { file, .. } => {
                self.files.get(*file).expect("a file is not closed while an operation uses it").target
            }
            _ => Target::plain(libc::AT_FDCWD),
        };
        let cwd = Fd(libc::AT_FDCWD);
        let mut sync_behind = false;
        let entry = match &mut slot.work {
            Work::Open { c_path, mode, .. } => {
                let flags = match mode {
                    OpenMode::Read => libc::O_RDONLY,
                    OpenMode::ReadWrite => libc::O_RDWR,
                    OpenMode::Create => libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
                };
                opcode::OpenAt::new(cwd, c_path.as_ptr())
                    .flags(flags | libc::O_CLOEXEC)
                    .mode(sys::FILE_MODE)
                    .build()
            }
            Work::Write { offset, data, durable, .. } => {
                let dsync = *durable && self.sync == SyncMode::Dsync;
                sync_behind = *durable && !dsync;
                let rw_flags = if dsync { libc::RWF_DSYNC } else { 0 };
                let fd = target.fd();
                let entry = if let [piece] = data.as_slice() {
                    let (start, bytes) = (piece.as_ptr(), piece.len() as u32);
                    if self.registered.contains(&(start as usize)) {
                        opcode::WriteFixed::new(fd, start, bytes, REGISTERED_BUFFER)
                            .offset(*offset)
                            .rw_flags(rw_flags)
                            .build()
                    } else {
                        opcode::Write::new(fd, start, bytes).offset(*offset).rw_flags(rw_flags).build()
                    }
                } else {
                    slot.pieces.clear();
                    slot.pieces.extend(data.iter().map(piece_of));
                    opcode::Writev::new(fd, slot.pieces.as_ptr(), slot.pieces.len() as u32)
                        .offset(*offset)
                        .rw_flags(rw_flags)
                        .build()
                };
                entry.flags(target.flags())
            }
            Work::Sync { .. } => fdatasync(target),
            Work::Read { offset, buffer, filled, .. } => {
                let from = *offset + *filled as u64;
                let rest = &mut buffer[*filled..];
                let (start, bytes) = (rest.as_mut_ptr(), rest.len() as u32);
                let fd = target.fd();
                let entry = if self.registered.contains(&(start as usize)) {
                    opcode::ReadFixed::new(fd, start, bytes, REGISTERED_BUFFER).offset(from).build()
                } else {
                    opcode::Read::new(fd, start, bytes).offset(from).build()
                };
                entry.flags(target.flags())
            }
            Work::Rename { c_from, c_to, .. } => {
                opcode::RenameAt::new(cwd, c_from.as_ptr(), cwd, c_to.as_ptr()).build()
            }
            Work::Remove { c_path, .. } => opcode::UnlinkAt::new(cwd, c_path.as_ptr()).build(),
            Work::SyncDir { dir, .. } => opcode::Fsync::new(Fd(dir.as_raw_fd())).build(),
            _ => unreachable!("a socket's work in a file's slot"),
        };
        // SAFETY (both pushes): what the entries point to is owned by the slot, or by a buffer in it whose memory
        // does not move; the slot is emptied only when all its completions have been reaped.
        if sync_behind {
            slot.awaited = 2;
            let write = entry.user_data(user_data).flags(Flags::IO_LINK);
            let sync = fdatasync(target).user_data(user_data | 1);
            // SAFETY: see above.
            unsafe { self.ring.push(&[write, sync]) };
        } else {
            slot.awaited = 1;
            // SAFETY: see above.
            unsafe { self.ring.push(&[entry.user_data(user_data)]) };
        }
    }

    /// One completion of a file operation. `part` 1: the sync behind a write.
    pub(super) fn settle_file(&mut self, at: u32, part: u64, result: i32) {
        let slot = self.slots.get(at);
        match &mut slot.work {
            Work::Write { file, bytes, failed, .. } => {
                if result < 0 || (part == 0 && result as usize != *bytes) {
                    let path = self.files.get(*file).map_or(PathBuf::new(), |file| file.path.clone());
                    // A write that failed or fell short breaks the chain: its sync then says only "cancelled".
                    if part == 0 {
                        *failed = Some(write_error(&path, result, *bytes));
                    } else if failed.is_none() {
                        *failed = Some(file_error(-result, "sync", &path));
                    }
                }
                if slot.awaited > 0 {
                    return;
                }
            }
            Work::Read { file, offset, buffer, filled } if result > 0 && !self.leaving => {
                let began = *filled;
                *filled += result as usize;
                if *filled < buffer.len() {
                    let file =
                        self.files.get(*file).expect("a file is not closed while an operation uses it");
                    match sys::file_bytes(file.fd.as_raw_fd()) {
                        Ok(bytes) => match read_on(*offset, began, *filled, bytes) {
                            ReadOn::Ended => {}
                            ReadOn::From(from) => {
                                *filled = from;
                                return self.issue_file(at);
                            }
                            ReadOn::Stuck => {
                                return self.complete_file(at, -libc::EIO);
                            }
                        },
                        Err(errno) => return self.complete_file(at, -errno),
                    }
                }
            }
            _ => {}
        }
        self.complete_file(at, result);
    }

    fn complete_file(&mut self, at: u32, result: i32) {
        let (token, work) = self.vacate(at);
        let done = |operation, path: &PathBuf| {
            if result < 0 { Err(file_error(-result, operation, path)) } else { Ok(Output::Done) }
        };
        let path_of = |io: &UringIo, id| io.files.get(id).map_or(PathBuf::new(), |file| file.path.clone());
        let outcome = match &work {
            Work::Open { path, .. } => {
                if result < 0 {
                    Err(file_error(-result, "open", path))
                } else {
                    // SAFETY: the descriptor is new and nobody else's.
                    self.opened(path, unsafe { OwnedFd::from_raw_fd(result) })
                }
            }
            Work::Rename { from, to, .. } => {
                let renamed = done("rename", from);
                if renamed.is_ok() {
                    // What is said of an open file is said by the name that it has now.
                    for file in self.files.values_mut().filter(|file| file.path == *from) {
                        file.path.clone_from(to);
                    }
                }
                renamed
            }
            Work::Remove { path, .. } => done("remove", path),
            Work::SyncDir { path, .. } => done("sync directory", path),
            Work::Write { failed, .. } => failed.clone().map_or(Ok(Output::Done), Err),
            Work::Sync { file } => {
                if result < 0 {
                    Err(file_error(-result, "sync", &path_of(self, *file)))
                } else {
                    Ok(Output::Done)
                }
            }
            Work::Read { file, .. } if result < 0 => Err(file_error(-result, "read", &path_of(self, *file))),
            Work::Read { .. } => Ok(Output::Done), // replaced below, where the buffer can be moved
            _ => unreachable!("a socket's work in a file's slot"),
        };
        self.release_file(&work);
        let outcome = match (outcome, work) {
            (Ok(_), Work::Read { buffer, filled, .. }) => Ok(Output::Read { buffer, bytes: filled }),
            (outcome, _) => outcome,
        };
        self.finish(token, outcome);
    }

    fn opened(&mut self, path: &Path, fd: OwnedFd) -> Result<Output, IoError> {
        let refuse = |errno| file_error(errno, "open", path);
        let direct = sys::set_direct(fd.as_raw_fd()).map_err(refuse)?;
        if !direct && !self.told_of_buffering {
            self.told_of_buffering = true;
            tracing::warn!(path = %path.display(), "this file system has no direct I/O: writes are buffered, then synced");
        }
        let bytes = sys::file_bytes(fd.as_raw_fd()).map_err(refuse)?;
        let target = Target::plain(fd.as_raw_fd());
        let file = File { fd, target, path: path.to_path_buf(), pending: 0, closing: None };
        let Ok(id) = self.files.insert(file) else {
            return Err(misuse("open", path.display(), "too many open files"));
        };
        let ring: &Ring = &self.ring;
        if let Some(file) = self.files.get_mut(id) {
            file.target = ring.register(place(id), file.fd.as_raw_fd());
        }
        Ok(Output::Opened { file: FileId(id), bytes })
    }
}

fn fdatasync(target: Target) -> squeue::Entry {
    opcode::Fsync::new(target.fd()).flags(FsyncFlags::DATASYNC).build().flags(target.flags())
}

pub(super) fn piece_of(piece: &Bytes) -> libc::iovec {
    libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() }
}

fn write_error(path: &Path, result: i32, bytes: usize) -> IoError {
    if result < 0 {
        return file_error(-result, "write", path);
    }
    IoError {
        kind: IoErrorKind::ShortWrite,
        operation: "write",
        subject: path.display().to_string(),
        message: format!("{result} of {bytes} bytes"),
    }
}
