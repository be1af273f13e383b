//! What a host offers: kernel, io_uring, direct I/O, locked memory, and how long its disk takes to keep a promise.
//!
//! For people who look at a host before they trust it with a log. Nothing here is needed to run.

use crate::sys::{self, c_path, check, file_error};
use crate::{
    BackEndError, BlockingIo, Capabilities, Foreground, Io, IoError, IoOptions, Op, OpenMode, Output,
};
use crate::{SyncMode, UringIo};
use core::time::Duration;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use tidelog_types::limits::PAGE_BYTES;

/// What [`probe`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Preflight {
    /// The kernel's release.
    pub kernel: String,
    /// What an io_uring would be like here, or why there is none and what to change.
    pub io_uring: Result<Capabilities, BackEndError>,
    /// Bytes that this process may lock, now and at most; `u64::MAX`: no limit. A privileged process is not held to it.
    pub locked_bytes: Limit,
    /// Descriptors that this process may have, now and at most.
    pub descriptors: Limit,
    /// The directory's file system.
    pub file_system: FileSystem,
}

/// A soft and a hard limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    /// In force.
    pub now: u64,
    /// What it may be raised to.
    pub most: u64,
}

/// What a directory's file system can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// `ext4`, `xfs`, …, or its magic number.
    pub name: String,
    /// Whether files can be written past the page cache. If not, writes are buffered and then synced.
    pub direct: bool,
    /// What direct I/O must be aligned to, if the file system tells: memory, then offsets and lengths.
    pub alignment: Option<(u32, u32)>,
}

impl FileSystem {
    /// Whether direct I/O in units of 4096 bytes works here.
    pub fn suits(&self) -> bool {
        let page = PAGE_BYTES as u32;
        self.direct && self.alignment.is_none_or(|(memory, offset)| memory <= page && offset <= page)
    }
}

/// Descriptors that this process may have. A back-end raises the limit in force as far as it may when it is opened.
pub fn descriptor_limit() -> Limit {
    match sys::limits(libc::RLIMIT_NOFILE) {
        Ok((now, most)) => Limit { now, most },
        // Not known: then it is found out when there are no more.
        Err(_) => Limit { now: u64::MAX, most: u64::MAX },
    }
}

/// Looks at the host, and at the file system of `dir`, where it makes a file and removes it again.
///
/// # Errors
/// If `dir` cannot be used.
pub fn probe(dir: &Path, options: &IoOptions) -> Result<Preflight, IoError> {
    let limit = |resource| match sys::limits(resource) {
        Ok((now, most)) => Limit { now, most },
        Err(_) => Limit { now: 0, most: 0 },
    };
    Ok(Preflight {
        kernel: sys::kernel_release(),
        io_uring: UringIo::open(options).map(|io| io.capabilities().clone()),
        locked_bytes: limit(libc::RLIMIT_MEMLOCK),
        descriptors: limit(libc::RLIMIT_NOFILE),
        file_system: file_system(dir)?,
    })
}

fn file_system(dir: &Path) -> Result<FileSystem, IoError> {
    let path = probe_path(dir, "probe");
    let refuse = |errno| file_error(errno, "probe", &path);
    let raw = c_path("probe", &path)?;
    let fd = sys::open(&raw, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).map_err(refuse)?;
    let removed = std::fs::remove_file(&path);
    removed.map_err(|error| refuse(error.raw_os_error().unwrap_or(libc::EIO)))?;
    let direct = sys::set_direct(fd.as_raw_fd()).map_err(refuse)?;
    // SAFETY: all-zero values of both are valid.
    let (mut status, mut system): (libc::statx, libc::statfs) = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, `status` is valid for writing during the call.
    let told = check(unsafe {
        libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut status)
    });
    // SAFETY: `system` is valid for writing during the call.
    check(unsafe { libc::fstatfs(fd.as_raw_fd(), &mut system) }).map_err(refuse)?;
    let aligned =
        told.is_ok() && status.stx_mask & libc::STATX_DIOALIGN != 0 && status.stx_dio_offset_align > 0;
    Ok(FileSystem {
        name: file_system_name(system.f_type as u64 & 0xFFFF_FFFF),
        direct,
        alignment: aligned.then_some((status.stx_dio_mem_align, status.stx_dio_offset_align)),
    })
}

fn file_system_name(magic: u64) -> String {
    let known = match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0xF2F5_2010 => "f2fs",
        0x2FC1_2FC1 => "zfs",
        0x0102_1994 => "tmpfs",
        0x794C_7630 => "overlayfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        _ => return format!("{magic:#x}"),
    };
    known.to_owned()
}

fn probe_path(dir: &Path, what: &str) -> PathBuf {
    dir.join(format!(".tidelog-{what}-{}-{:016x}", std::process::id(), sys::Entropy::new().next()))
}

/// How long durable writes take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SyncLatency {
    /// One write with `RWF_DSYNC`.
    pub dsync: Latency,
    /// A write, then `fdatasync`.
    pub fdatasync: Latency,
}

/// Percentiles of one measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Latency {
    /// The median.
    pub p50: Duration,
    /// The 99th percentile.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

impl SyncLatency {
    /// The faster way. One has to be clearly faster to be chosen over `Dsync`, which takes less CPU.
    #[must_use]
    pub fn faster(&self) -> SyncMode {
        if self.fdatasync.p50 < self.dsync.p50.mul_f64(0.9) { SyncMode::Fdatasync } else { SyncMode::Dsync }
    }
}

/// Measures durable writes of `bytes` bytes (rounded up to pages), `count` of either way and taking turns, into a
/// file in `dir` that has been written and synced before, as a log's segments are. The file is removed.
///
/// # Errors
/// If `dir` cannot be written to.
pub fn measure_sync(dir: &Path, bytes: usize, count: usize) -> Result<SyncLatency, IoError> {
    const FILE_BYTES: usize = 4 << 20;
    let bytes = bytes.clamp(1, FILE_BYTES).next_multiple_of(PAGE_BYTES);
    let path = probe_path(dir, "sync");
    let open = |sync| {
        let options = IoOptions { sync, ..IoOptions::small() };
        BlockingIo::open(&options).map_err(|error| sys::misuse("measure", dir.display(), error.to_string()))
    };
    let mut dsync = open(SyncMode::Dsync)?;
    let mut fdatasync = open(SyncMode::Fdatasync)?;
    let measured = (|| {
        let file = open_file(&mut dsync, &path, OpenMode::Create)?;
        let zeros = dsync.buffers().take_zeroed(FILE_BYTES).freeze();
        write(&mut dsync, file, 0, &zeros)?;
        let data = zeros.slice(..bytes);
        let other = open_file(&mut fdatasync, &path, OpenMode::ReadWrite)?;
        let mut times = (Vec::new(), Vec::new());
        let steps = FILE_BYTES / bytes;
        for turn in 0..count.max(1) {
            let offset = ((2 * turn) % steps * bytes) as u64;
            times.0.push(write(&mut dsync, file, offset, &data)?);
            let offset = ((2 * turn + 1) % steps * bytes) as u64;
            times.1.push(write(&mut fdatasync, other, offset, &data)?);
        }
        Ok(SyncLatency { dsync: percentiles(times.0), fdatasync: percentiles(times.1) })
    })();
    if measured.is_ok() || path.exists() {
        Foreground::new(&mut dsync).run(Op::Remove { path })?;
    }
    measured
}

fn open_file(io: &mut BlockingIo, path: &Path, mode: OpenMode) -> Result<crate::FileId, IoError> {
    match Foreground::new(io).run(Op::Open { path: path.to_path_buf(), mode })? {
        Output::Opened { file, .. } => Ok(file),
        _ => Err(sys::misuse("open", path.display(), "no file")),
    }
}

fn write(
    io: &mut BlockingIo,
    file: crate::FileId,
    offset: u64,
    data: &bytes::Bytes,
) -> Result<Duration, IoError> {
    let began = sys::monotonic();
    Foreground::new(io).run(Op::WriteDurable { file, offset, data: vec![data.clone()] })?;
    Ok(io.clock().now.since(began))
}

fn percentiles(mut times: Vec<Duration>) -> Latency {
    times.sort_unstable();
    let at = |percent: usize| {
        let rank = (times.len() * percent).div_ceil(100).max(1);
        times.get(rank - 1).copied().unwrap_or_default()
    };
    Latency { p50: at(50), p99: at(99), max: at(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(micros: u64) -> Latency {
        let time = Duration::from_micros(micros);
        Latency { p50: time, p99: time, max: time }
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_micros).collect();
        let found = percentiles(times);
        assert_eq!((found.p50.as_micros(), found.p99.as_micros(), found.max.as_micros()), (100, 198, 200));
        assert_eq!(percentiles(vec![Duration::from_micros(7)]), latency(7));
    }

    #[test]
    fn fdatasync_has_to_be_clearly_faster() {
        let faster =
            |dsync, fdatasync| SyncLatency { dsync: latency(dsync), fdatasync: latency(fdatasync) }.faster();
        assert_eq!(faster(100, 95), SyncMode::Dsync);
        assert_eq!(faster(100, 80), SyncMode::Fdatasync);
        assert_eq!(faster(80, 100), SyncMode::Dsync);
    }
}
