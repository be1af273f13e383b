//! Settings of the back-ends.

use core::time::Duration;

/// Which back-end to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackEnd {
    /// io_uring: the shard's thread never blocks.
    Uring,
    /// Plain blocking calls for files, epoll for sockets: where io_uring is forbidden, and for client threads.
    Blocking,
}

/// How a durable write is made durable. All of them are; which is fastest depends on the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncMode {
    /// The back-end's default, which is [`SyncMode::Dsync`]. A measurement of the host
    /// ([`crate::SyncLatency::faster`]) may choose otherwise.
    Auto,
    /// A write, then `fdatasync` of the file.
    Fdatasync,
    /// One write with `RWF_DSYNC`.
    Dsync,
}

impl core::fmt::Display for BackEnd {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            BackEnd::Uring => "uring",
            BackEnd::Blocking => "blocking",
        })
    }
}

impl core::fmt::Display for SyncMode {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            SyncMode::Auto => "auto",
            SyncMode::Fdatasync => "fdatasync",
            SyncMode::Dsync => "dsync",
        })
    }
}

impl SyncMode {
    /// The way itself: never `Auto`.
    #[must_use]
    pub const fn resolved(self) -> SyncMode {
        match self {
            SyncMode::Auto | SyncMode::Dsync => SyncMode::Dsync,
            SyncMode::Fdatasync => SyncMode::Fdatasync,
        }
    }
}

/// When a ring's thread works off the kernel's side of completions. The best that the kernel knows is taken,
/// from the one asked for on down.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TaskWork {
    /// Whenever the kernel sees fit: the thread is interrupted.
    Interrupting,
    /// At the thread's next system call, whichever (Linux 5.19).
    Cooperative,
    /// When the thread asks for completions (Linux 6.1): the most throughput.
    Deferred,
}

/// Bounds and ways of one back-end. The defaults are a server shard's; [`IoOptions::small`] is for clients
/// and tools.
#[derive(Clone, Debug)]
pub struct IoOptions {
    /// How durable writes are made durable.
    pub sync: SyncMode,
    /// When completions are worked off.
    pub task_work: TaskWork,
    /// Most file operations in flight; the others wait in line.
    pub file_operations_max: u16,
    /// Most open files.
    pub files_max: u16,
    /// Most connections, those being made included.
    pub connections_max: u16,
    /// Bytes of buffer memory to register with the kernel, hence locked. As much as the limit on locked
    /// memory leaves is used; 0: none.
    pub registered_bytes: usize,
    /// Bytes of idle buffers kept for reuse, in each size class.
    pub pool_idle_bytes: usize,
    /// Most kernel threads that work off what cannot be done without blocking.
    pub workers_max: u32,
    /// How long the kernel may have no memory for submissions before writes that wait for it fail.
    pub starved_max: Duration,
}

impl Default for IoOptions {
    fn default() -> IoOptions {
        IoOptions {
            sync: SyncMode::Auto,
            task_work: TaskWork::Deferred,
            file_operations_max: 256,
            files_max: 4096,
            connections_max: 1024,
            registered_bytes: 16 << 20,
            pool_idle_bytes: 32 << 20,
            workers_max: 4,
            starved_max: Duration::from_secs(10),
        }
    }
}

impl IoOptions {
    /// For a client or a tool: few connections, nothing registered.
    #[must_use]
    pub fn small() -> IoOptions {
        IoOptions {
            file_operations_max: 64,
            files_max: 256,
            connections_max: 64,
            registered_bytes: 0,
            pool_idle_bytes: 8 << 20,
            ..IoOptions::default()
        }
    }

    /// Most listening sockets.
    pub(crate) const LISTENERS_MAX: u16 = 16;
    /// Most operations waiting in line behind those in flight: one more is an error.
    pub(crate) const BACKLOG_MAX: usize = 1 << 16;
    /// Most accepts and connects at once.
    pub(crate) const DIALS_MAX: u16 = 256;

    /// Most socket operations in flight: a send and a receive on each connection, and the dials.
    pub(crate) fn socket_operations_max(&self) -> usize {
        2 * usize::from(self.connections_max) + usize::from(Self::DIALS_MAX)
    }
}
