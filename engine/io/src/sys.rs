//! System calls as functions: errors by number, clocks, entropy, sockets and their addresses.
//!
//! Shared by both back-ends. Every failure is an errno, which [`file_error`] and [`socket_error`] turn into
//! what callers tell apart.

use crate::{IoError, IoErrorKind};
use std::ffi::CString;
use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use tidelog_types::{Clock, Monotonic, WallMs};

/// An errno.
pub(crate) type Errno = i32;

/// The last call's errno.
pub(crate) fn errno() -> Errno {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// The result of a call that returns -1 on failure.
pub(crate) fn check(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn check_size(result: libc::ssize_t) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

/// Repeats a call that a signal interrupted.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(libc::EINTR) => {}
            other => return other,
        }
    }
}

/// An error with the system's words for `errno`.
fn error(kind: IoErrorKind, errno: Errno, operation: &'static str, subject: String) -> IoError {
    IoError { kind, operation, subject, message: io::Error::from_raw_os_error(errno).to_string() }
}

/// What `errno` means for an operation on files.
pub(crate) fn file_error(errno: Errno, operation: &'static str, subject: &Path) -> IoError {
    use IoErrorKind as K;
    let kind = match errno {
        libc::ENOENT | libc::ENOTDIR => K::NotFound,
        libc::EEXIST => K::Exists,
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => K::NoSpace,
        libc::EIO
        | libc::EREMOTEIO
        | libc::ENXIO
        | libc::ENODEV
        | libc::EBADMSG
        | libc::EUCLEAN
        | libc::EILSEQ
        | libc::ENODATA
        | libc::ENOLINK
        | libc::ETIMEDOUT => K::Device,
        libc::EACCES | libc::EPERM | libc::EROFS | libc::EBADF | libc::ETXTBSY => K::Denied,
        libc::ECANCELED => K::Cancelled,
        _ => K::Other,
    };
    let mut error = error(kind, errno, operation, subject.display().to_string());
    if errno == libc::EFBIG {
        error.message.push_str(
            ": files of this process may not be that large, raise the limit (`ulimit -f`, LimitFSIZE=)",
        );
    }
    error
}

/// What `errno` means for an operation on a socket.
pub(crate) fn socket_error(errno: Errno, operation: &'static str, subject: SocketAddr) -> IoError {
    use IoErrorKind as K;
    let kind = match errno {
        libc::ECONNREFUSED
        | libc::ECONNRESET
        | libc::ECONNABORTED
        | libc::EPIPE
        | libc::ETIMEDOUT
        | libc::ENOTCONN
        | libc::EHOSTUNREACH
        | libc::EHOSTDOWN
        | libc::ENETUNREACH
        | libc::ENETDOWN
        | libc::ENETRESET => K::Disconnected,
        libc::EADDRINUSE => K::AddressInUse,
        libc::EACCES | libc::EPERM => K::Denied,
        libc::ECANCELED => K::Cancelled,
        _ => K::Other,
    };
    error(kind, errno, operation, subject.to_string())
}

/// A misuse of the interface, or a bound that was reached.
pub(crate) fn misuse(operation: &'static str, subject: impl ToString, message: impl Into<String>) -> IoError {
    IoError { kind: IoErrorKind::Other, operation, subject: subject.to_string(), message: message.into() }
}

/// Ended by closing.
pub(crate) fn cancelled(operation: &'static str, subject: impl ToString) -> IoError {
    IoError {
        kind: IoErrorKind::Cancelled,
        operation,
        subject: subject.to_string(),
        message: "closed meanwhile".into(),
    }
}

/// A path for the kernel.
pub(crate) fn c_path(operation: &'static str, path: &Path) -> Result<CString, IoError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| misuse(operation, path.display(), "the path has a zero byte in it"))
}

fn read_clock(which: libc::clockid_t) -> libc::timespec {
    // SAFETY: an all-zero timespec is a valid value.
    let mut at: libc::timespec = unsafe { mem::zeroed() };
    // SAFETY: `at` is valid for writing during the call.
    let result = unsafe { libc::clock_gettime(which, &mut at) };
    assert_eq!(result, 0, "the boot and wall clocks exist on every supported kernel");
    at
}

/// Nanoseconds since boot, suspend included.
pub(crate) fn monotonic() -> Monotonic {
    let at = read_clock(libc::CLOCK_BOOTTIME);
    Monotonic((at.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(at.tv_nsec as u64))
}

/// Sleeps, where there is nothing to wait for that could be polled.
pub(crate) fn pause(time: core::time::Duration) {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(time.subsec_nanos()),
    };
    // SAFETY: no descriptors and no signal mask are passed; the time is only read.
    unsafe { libc::ppoll(ptr::null_mut(), 0, &time, ptr::null()) };
}

/// Both clocks.
pub(crate) fn clock() -> Clock {
    let wall = read_clock(libc::CLOCK_REALTIME);
    let wall = u64::try_from(wall.tv_sec).unwrap_or(0).saturating_mul(1000) + wall.tv_nsec as u64 / 1_000_000;
    Clock { now: monotonic(), wall: WallMs(wall) }
}

/// Random bits from the kernel, fetched by the page.
pub(crate) struct Entropy {
    words: [u64; 64],
    left: usize,
}

impl Entropy {
    pub(crate) fn new() -> Entropy {
        Entropy { words: [0; 64], left: 0 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        if self.left == 0 {
            let bytes = mem::size_of_val(&self.words);
            let got = uninterrupted(|| {
                // SAFETY: `words` is valid for writing `bytes` bytes, and any bits are valid words.
                check_size(unsafe { libc::getrandom(self.words.as_mut_ptr().cast(), bytes, 0) })
            });
            assert_eq!(got, Ok(bytes), "a request of 512 bytes or less is always met in full");
            self.left = self.words.len();
        }
        self.left -= 1;
        self.words[self.left]
    }
}

/// A socket address in the kernel's form.
pub(crate) struct RawAddress {
    pub(crate) storage: libc::sockaddr_storage,
    pub(crate) bytes: libc::socklen_t,
}

impl RawAddress {
    fn empty() -> RawAddress {
        // SAFETY: an all-zero sockaddr_storage is a valid value.
        let storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
        RawAddress { storage, bytes: mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t }
    }

    pub(crate) fn new(address: SocketAddr) -> RawAddress {
        let mut raw = RawAddress::empty();
        let to = (&raw mut raw.storage).cast::<u8>();
        match address {
            SocketAddr::V4(v4) => {
                // SAFETY: an all-zero sockaddr_in is a valid value.
                let mut sin: libc::sockaddr_in = unsafe { mem::zeroed() };
                sin.sin_family = libc::AF_INET as libc::sa_family_t;
                sin.sin_port = v4.port().to_be();
                sin.sin_addr.s_addr = u32::from_ne_bytes(v4.ip().octets());
                raw.bytes = mem::size_of_val(&sin) as libc::socklen_t;
                // SAFETY: the storage is larger than a sockaddr_in and aligned for it.
                unsafe { to.cast::<libc::sockaddr_in>().write(sin) };
            }
            SocketAddr::V6(v6) => {
                // SAFETY: an all-zero sockaddr_in6 is a valid value.
                let mut sin: libc::sockaddr_in6 = unsafe { mem::zeroed() };
                sin.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                sin.sin6_port = v6.port().to_be();
                sin.sin6_addr.s6_addr = v6.ip().octets();
                sin.sin6_flowinfo = v6.flowinfo();
                sin.sin6_scope_id = v6.scope_id();
                raw.bytes = mem::size_of_val(&sin) as libc::socklen_t;
                // SAFETY: the storage is larger than a sockaddr_in6 and aligned for it.
                unsafe { to.cast::<libc::sockaddr_in6>().write(sin) };
            }
        }
        raw
    }

    pub(crate) fn as_ptr(&self) -> *const libc::sockaddr {
        (&raw const self.storage).cast()
    }

    fn get(&self) -> Result<SocketAddr, Errno> {
        match libc::c_int::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the kernel says that a sockaddr_in is stored; the storage is large and aligned enough.
                let sin = unsafe { self.as_ptr().cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
                Ok(SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(sin.sin_port))))
            }
            libc::AF_INET6 => {
                // SAFETY: the kernel says that a sockaddr_in6 is stored; the storage is large and aligned enough.
                let sin = unsafe { self.as_ptr().cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(sin.sin6_addr.s6_addr);
                let port = u16::from_be(sin.sin6_port);
                Ok(SocketAddr::V6(SocketAddrV6::new(ip, port, sin.sin6_flowinfo, sin.sin6_scope_id)))
            }
            _ => Err(libc::EAFNOSUPPORT),
        }
    }
}

/// The address of the socket's own end.
pub(crate) fn local_address(fd: RawFd) -> Result<SocketAddr, Errno> {
    let mut raw = RawAddress::empty();
    // SAFETY: storage and length are valid for writing during the call.
    check(unsafe { libc::getsockname(fd, (&raw mut raw.storage).cast(), &mut raw.bytes) })?;
    raw.get()
}

/// The address of the socket's other end.
pub(crate) fn peer_address(fd: RawFd) -> Result<SocketAddr, Errno> {
    let mut raw = RawAddress::empty();
    // SAFETY: storage and length are valid for writing during the call.
    check(unsafe { libc::getpeername(fd, (&raw mut raw.storage).cast(), &mut raw.bytes) })?;
    raw.get()
}

fn set_option(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
    let bytes = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is valid for reading `bytes` bytes during the call.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), bytes) }).map(drop)
}

/// The error that a connection attempt ended with; 0 for none.
pub(crate) fn pending_error(fd: RawFd) -> Result<Errno, Errno> {
    let mut value: libc::c_int = 0;
    let mut bytes = mem::size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` and `bytes` are valid for writing during the call.
    check(unsafe {
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_ERROR, (&raw mut value).cast(), &mut bytes)
    })?;
    Ok(value)
}

/// Small frames leave at once.
pub(crate) fn set_nodelay(fd: RawFd) -> Result<(), Errno> {
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// A TCP socket of the address's family, closed on exec. `flags`: 0, or `SOCK_NONBLOCK`.
fn tcp_socket(address: SocketAddr, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | flags, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A socket to connect with. The attempt gives up after a few seconds, not after the system's two minutes: an
/// attempt cannot be called back, and a peer that came back must not wait for an old one.
pub(crate) fn dialling_socket(address: SocketAddr, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    const REPEATED_SYNS: libc::c_int = 2;
    let fd = tcp_socket(address, flags)?;
    set_nodelay(fd.as_raw_fd())?;
    set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_SYNCNT, REPEATED_SYNS)?;
    Ok(fd)
}

/// Refuses a connection that is connected to itself: TCP lets a socket that dials a port of the ephemeral range on its own host take that very port as its
/// own and meet itself. Nobody listens there, and nobody could while it lasted; it is ended without leaving the port in use.
pub(crate) fn refuse_itself(fd: RawFd, peer: SocketAddr) -> Result<(), IoError> {
    let failed = |errno| socket_error(errno, "connect", peer);
    if local_address(fd).map_err(failed)? != peer {
        return Ok(());
    }
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    let bytes = mem::size_of_val(&at_once) as libc::socklen_t;
    // SAFETY: `at_once` is valid for reading during the call.
    check(unsafe {
        libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const at_once).cast(), bytes)
    })
    .map_err(failed)?;
    let message = "nobody listens there: the socket had connected to itself".to_owned();
    Err(IoError { message, ..failed(libc::ECONNREFUSED) })
}

/// A listening socket and its address.
pub(crate) fn listening_socket(
    address: SocketAddr,
    flags: libc::c_int,
) -> Result<(OwnedFd, SocketAddr), Errno> {
    const BACKLOG: libc::c_int = 1024;
    let fd = tcp_socket(address, flags)?;
    set_option(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    let raw = RawAddress::new(address);
    // SAFETY: the address is valid for reading during the call.
    check(unsafe { libc::bind(fd.as_raw_fd(), raw.as_ptr(), raw.bytes) })?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) })?;
    let address = local_address(fd.as_raw_fd())?;
    Ok((fd, address))
}

/// Ends both directions: everything pending on the socket completes. A socket that is not connected any more
/// has nothing pending.
pub(crate) fn shut_down(fd: RawFd) {
    // SAFETY: no memory is passed.
    unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
}

/// The file's size.
pub(crate) fn file_bytes(fd: RawFd) -> Result<u64, Errno> {
    // SAFETY: an all-zero stat is a valid value.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: `stat` is valid for writing during the call.
    check(unsafe { libc::fstat(fd, &mut stat) })?;
    u64::try_from(stat.st_size).map_err(|_| libc::EOVERFLOW)
}

/// The file's inode, and when that was made.
pub(crate) fn place(fd: RawFd) -> Result<crate::Place, Errno> {
    // SAFETY: an all-zero statx is a valid value.
    let mut stat: libc::statx = unsafe { mem::zeroed() };
    let mask = libc::STATX_INO | libc::STATX_BTIME;
    // SAFETY: the path is an empty C string, and `stat` is valid for writing during the call.
    check(unsafe { libc::statx(fd, c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &mut stat) })?;
    let born = (stat.stx_mask & libc::STATX_BTIME != 0).then_some(stat.stx_btime);
    let born_ns = born.and_then(|at| {
        u64::try_from(at.tv_sec).ok()?.checked_mul(1_000_000_000)?.checked_add(u64::from(at.tv_nsec))
    });
    Ok(crate::Place { inode: stat.stx_ino, born_ns })
}

/// Turns direct I/O on. False: the file system does not have it.
///
/// Done after opening rather than by a flag of it: some file systems create the file and then refuse the flag.
pub(crate) fn set_direct(fd: RawFd) -> Result<bool, Errno> {
    // SAFETY: no memory is passed.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: no memory is passed.
    match check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_DIRECT) }) {
        Ok(_) => Ok(true),
        Err(libc::EINVAL) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Opens; direct I/O comes later.
pub(crate) fn open(path: &CString, flags: libc::c_int) -> Result<OwnedFd, Errno> {
    let fd = uninterrupted(|| {
        // SAFETY: the path is a C string that outlives the call.
        check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, FILE_MODE) })
    })?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Permissions of new files, less the umask.
pub(crate) const FILE_MODE: libc::mode_t = 0o640;

/// A page-aligned, zeroed mapping of `bytes` bytes.
pub(crate) fn map_anonymous(bytes: usize) -> Result<*mut u8, Errno> {
    // SAFETY: a new private mapping, at no particular address, touches no existing memory.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED { Err(errno()) } else { Ok(start.cast()) }
}

/// The processor's large page.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The same, beginning at a large page and made of large pages where the kernel has some.
pub(crate) fn map_huge(bytes: usize) -> Result<*mut u8, Errno> {
    let wider = bytes.checked_add(HUGE_PAGE_BYTES).ok_or(libc::ENOMEM)?;
    let mapping = map_anonymous(wider)?;
    let before = mapping.align_offset(HUGE_PAGE_BYTES);
    if before > HUGE_PAGE_BYTES {
        // SAFETY: the mapping made above, which nobody has seen.
        unsafe { unmap(mapping, wider) };
        return Err(libc::ENOMEM);
    }
    let start = mapping.wrapping_add(before);
    let (behind, tail) = (start.wrapping_add(bytes), HUGE_PAGE_BYTES - before);
    for (part, len) in [(mapping, before), (behind, tail)] {
        if len > 0 {
            // SAFETY: a part of the mapping made above, in front of what is handed out or behind it. Whole pages, as are `bytes`.
            unsafe { unmap(part, len) };
        }
    }
    // SAFETY: advice on a mapping of ours; it changes no content. Without large pages it stays as it is.
    unsafe { libc::madvise(start.cast(), bytes, libc::MADV_HUGEPAGE) };
    Ok(start)
}

/// Gives a mapping of [`map_anonymous`] or [`map_huge`] back, or whole pages of it.
///
/// # Safety
/// `start` and `bytes` are those of memory that is not used any more.
pub(crate) unsafe fn unmap(start: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(start.cast(), bytes) };
}

/// The soft and hard limit of a resource.
pub(crate) fn limits(resource: libc::__rlimit_resource_t) -> Result<(u64, u64), Errno> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writing during the call.
    check(unsafe { libc::getrlimit(resource, &mut limit) })?;
    Ok((limit.rlim_cur, limit.rlim_max))
}

/// Raises the number of descriptors that this process may have, as far as it is allowed to and makes sense.
pub(crate) fn raise_descriptor_limit() -> Result<u64, Errno> {
    const ENOUGH: u64 = 1 << 20;
    let (soft, hard) = limits(libc::RLIMIT_NOFILE)?;
    let wanted = hard.min(ENOUGH);
    if soft < wanted {
        let limit = libc::rlimit { rlim_cur: wanted, rlim_max: hard };
        // SAFETY: `limit` is valid for reading during the call.
        check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })?;
    }
    Ok(soft.max(wanted))
}

/// The kernel's release, as `uname -r` says it.
pub(crate) fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".into(), |release| release.trim().to_owned())
}
