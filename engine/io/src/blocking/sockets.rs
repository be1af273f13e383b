//! Sockets over epoll.
//!
//! Each socket is registered once, edge-triggered, for both directions. What is pending is tried whenever the socket
//! may be ready: after its submission, and after an edge.

use super::BlockingIo;
use crate::sys::{
    self, Errno, RawAddress, cancelled, check, misuse, pending_error, socket_error, uninterrupted,
};
use crate::waking::Bell;
use crate::{AlignedBuf, ConnId, IoError, IoOptions, ListenerId, Op, Output, PIECES_MAX, Token};
use bytes::Bytes;
use core::time::Duration;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Event data of the bell. Connections and listeners have their ids, told apart by the top bit.
const BELL: u64 = 0;
const LISTENER: u64 = 1 << 63;

/// The epoll instance.
pub(super) struct Poller {
    fd: OwnedFd,
    events: Vec<libc::epoll_event>,
    /// Whether epoll_pwait2 is there (Linux 5.11): waits in nanoseconds.
    precise: bool,
}

impl Poller {
    pub(super) fn new(bell: &Bell) -> Result<Poller, Errno> {
        // SAFETY: no memory is passed.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let poller = Poller { fd, events: vec![libc::epoll_event { events: 0, u64: 0 }; 256], precise: true };
        poller.add(bell.fd(), BELL, libc::EPOLLIN as u32)?;
        Ok(poller)
    }

    fn add(&self, fd: RawFd, data: u64, events: u32) -> Result<(), Errno> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: the event is valid for reading during the call.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) }).map(drop)
    }

    /// Waits; the number of events. A signal ends a wait early.
    fn wait(&mut self, left: Option<Duration>) -> usize {
        if self.precise {
            match self.wait_precisely(left) {
                Err(libc::ENOSYS) => self.precise = false,
                other => return other.unwrap_or(0),
            }
        }
        // Rounded up: waking too early would only be to wait again.
        let millis = left.map_or(-1, |left| left.as_nanos().div_ceil(1_000_000).min(1 << 30) as i32);
        let (events, room) = (self.events.as_mut_ptr(), self.events.len() as i32);
        // SAFETY: `events` has room for as many events as it says.
        let count = check(unsafe { libc::epoll_wait(self.fd.as_raw_fd(), events, room, millis) });
        count.map_or(0, |count| count as usize)
    }

    fn wait_precisely(&mut self, left: Option<Duration>) -> Result<usize, Errno> {
        let time = left.map(|left| libc::timespec {
            tv_sec: left.as_secs().min(1 << 40) as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` has room for as many events as it says, and the time outlives the call.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.events.as_mut_ptr(),
                self.events.len() as i32,
                time,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        usize::try_from(count).map_err(|_| sys::errno())
    }
}

/// A connection, also one that is being made.
pub(super) struct Conn {
    fd: OwnedFd,
    peer: SocketAddr,
    connect: Option<Token>,
    send: Option<(Token, Vec<Bytes>, usize)>,
    receive: Option<(Token, AlignedBuf, usize)>,
    /// As far as is known; optimistic.
    writable: bool,
    readable: bool,
    /// It is in the line of those to try.
    hopeful: bool,
}

/// A listening socket.
pub(super) struct Listener {
    fd: OwnedFd,
    address: SocketAddr,
    accepts: VecDeque<Token>,
    hopeful: bool,
}

impl BlockingIo {
    pub(super) fn begin_socket(&mut self, token: Token, op: Op) -> Result<(), IoError> {
        match op {
            Op::Listen { address } => {
                let refuse = |errno| socket_error(errno, "listen", address);
                let (fd, address) = sys::listening_socket(address, libc::SOCK_NONBLOCK).map_err(refuse)?;
                let raw = fd.as_raw_fd();
                let listener = Listener { fd, address, accepts: VecDeque::new(), hopeful: false };
                let id = self
                    .listeners
                    .insert(listener)
                    .map_err(|_| misuse("listen", address, "too many listeners"))?;
                // Level-triggered would wake us for connections that nobody accepts.
                if let Err(errno) =
                    self.poller.add(raw, LISTENER | id, (libc::EPOLLIN | libc::EPOLLET) as u32)
                {
                    self.listeners.remove(id);
                    return Err(refuse(errno));
                }
                self.finish(token, Ok(Output::Listening { listener: ListenerId(id), address }));
            }
            Op::Accept { listener: ListenerId(id) } => {
                self.check_dials("accept", format_args!("listener {id}"))?;
                let listener = self
                    .listeners
                    .get_mut(id)
                    .ok_or_else(|| misuse("accept", format_args!("listener {id}"), "not open"))?;
                listener.accepts.push_back(token);
                self.dials += 1;
                self.hope_for_listener(id);
            }
            Op::Connect { address } => self.connect(token, address)?,
            Op::Send { conn: ConnId(id), data } => {
                let conn = self.open_conn("send", id)?;
                if conn.send.is_some() {
                    return Err(misuse("send", conn.peer, "a send is in flight"));
                }
                if data.iter().all(|piece| piece.is_empty()) {
                    self.finish(token, Ok(Output::Done));
                    return Ok(());
                }
                conn.send = Some((token, data, 0));
                self.hope_for_conn(id);
            }
            Op::Recv { conn: ConnId(id), buffer, filled } => {
                let conn = self.open_conn("receive", id)?;
                if conn.receive.is_some() {
                    return Err(misuse("receive", conn.peer, "a receive is in flight"));
                }
                if filled >= buffer.len() {
                    return Err(misuse("receive", conn.peer, "there is no room in the buffer"));
                }
                conn.receive = Some((token, buffer, filled));
                self.hope_for_conn(id);
            }
            Op::Close { conn: ConnId(id) } => {
                self.open_conn("close", id)?;
                if let Some(conn) = self.conns.remove(id) {
                    sys::shut_down(conn.fd.as_raw_fd());
                    let peer = conn.peer;
                    if let Some((token, ..)) = conn.send {
                        self.finish(token, Err(cancelled("send", peer)));
                    }
                    if let Some((token, ..)) = conn.receive {
                        self.finish(token, Err(cancelled("receive", peer)));
                    }
                }
                self.finish(token, Ok(Output::Done));
            }
            Op::CloseListener { listener: ListenerId(id) } => {
                let listener = self
                    .listeners
                    .remove(id)
                    .ok_or_else(|| misuse("close", format_args!("listener {id}"), "not open"))?;
                self.dials -= listener.accepts.len();
                for token in listener.accepts {
                    self.finish(token, Err(cancelled("accept", listener.address)));
                }
                self.finish(token, Ok(Output::Done));
            }
            _ => unreachable!("`begin` sorts the operations"),
        }
        Ok(())
    }

    fn check_dials(&self, operation: &'static str, subject: impl ToString) -> Result<(), IoError> {
        if self.dials < usize::from(IoOptions::DIALS_MAX) {
            return Ok(());
        }
        Err(misuse(operation, subject, "too many connections are being made"))
    }

    /// A connection that the submitter may know of: one that is being made is not.
    fn open_conn(&mut self, operation: &'static str, id: u64) -> Result<&mut Conn, IoError> {
        match self.conns.get_mut(id) {
            Some(conn) if conn.connect.is_none() => Ok(conn),
            _ => Err(misuse(operation, format_args!("connection {id}"), "not open")),
        }
    }

    fn connect(&mut self, token: Token, address: SocketAddr) -> Result<(), IoError> {
        self.check_dials("connect", address)?;
        let refuse = |errno| socket_error(errno, "connect", address);
        let fd = sys::dialling_socket(address, libc::SOCK_NONBLOCK).map_err(refuse)?;
        let raw = RawAddress::new(address);
        // SAFETY: the address is valid for reading during the call.
        match check(unsafe { libc::connect(fd.as_raw_fd(), raw.as_ptr(), raw.bytes) }) {
            Ok(_) | Err(libc::EINPROGRESS | libc::EINTR) => {}
            Err(errno) => return Err(refuse(errno)),
        }
        // An edge says when it is made or refused, even if it is already.
        self.add_conn("connect", fd, address, Some(token))?;
        self.dials += 1;
        Ok(())
    }

    fn add_conn(
        &mut self,
        operation: &'static str,
        fd: OwnedFd,
        peer: SocketAddr,
        connect: Option<Token>,
    ) -> Result<ConnId, IoError> {
        let raw = fd.as_raw_fd();
        let made = connect.is_none();
        let conn = Conn {
            fd,
            peer,
            connect,
            send: None,
            receive: None,
            writable: made,
            readable: made,
            hopeful: false,
        };
        let id = self.conns.insert(conn).map_err(|_| misuse(operation, peer, "too many connections"))?;
        let events = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
        if let Err(errno) = self.poller.add(raw, id, events as u32) {
            self.conns.remove(id);
            return Err(socket_error(errno, operation, peer));
        }
        Ok(ConnId(id))
    }

    fn hope_for_conn(&mut self, id: u64) {
        if let Some(conn) = self.conns.get_mut(id)
            && !conn.hopeful
        {
            conn.hopeful = true;
            self.hopeful.push_back(id);
        }
    }

    fn hope_for_listener(&mut self, id: u64) {
        if let Some(listener) = self.listeners.get_mut(id)
            && !listener.hopeful
        {
            listener.hopeful = true;
            self.hopeful.push_back(LISTENER | id);
        }
    }

    /// Waits for edges and notes them.
    pub(super) fn watch(&mut self, left: Option<Duration>) {
        let count = self.poller.wait(left);
        for at in 0..count {
            let libc::epoll_event { events, u64: data } = self.poller.events[at];
            if data == BELL {
                self.silence_bell();
            } else if data & LISTENER != 0 {
                self.hope_for_listener(data & !LISTENER);
            } else if let Some(conn) = self.conns.get_mut(data) {
                let failed = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
                conn.writable |= events & (libc::EPOLLOUT as u32 | failed) != 0;
                conn.readable |= events & ((libc::EPOLLIN | libc::EPOLLRDHUP) as u32 | failed) != 0;
                self.hope_for_conn(data);
            }
        }
    }

    fn silence_bell(&self) {
        let mut word = [0u8; 8];
        // SAFETY: `word` is valid for writing its 8 bytes during the call. An empty counter is fine.
        unsafe { libc::read(self.bell.fd(), word.as_mut_ptr().cast(), word.len()) };
    }

    /// Tries what may be ready.
    pub(super) fn try_hopeful(&mut self) {
        for _ in 0..self.hopeful.len() {
            let Some(id) = self.hopeful.pop_front() else { break };
            if id & LISTENER != 0 {
                self.try_accept(id & !LISTENER);
            } else {
                self.try_conn(id);
            }
        }
    }

    fn try_accept(&mut self, id: u64) {
        while let Some(listener) = self.listeners.get_mut(id) {
            listener.hopeful = false;
            let (address, raw) = (listener.address, listener.fd.as_raw_fd());
            let Some(token) = listener.accepts.front().copied() else { return };
            let accepted = uninterrupted(|| {
                let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                // SAFETY: the peer's address is not asked for; no memory is passed.
                check(unsafe { libc::accept4(raw, std::ptr::null_mut(), std::ptr::null_mut(), flags) })
            });
            let outcome = match accepted {
                Err(libc::EAGAIN) => return,
                Err(libc::ECONNABORTED) => continue,
                Err(errno) => Err(socket_error(errno, "accept", address)),
                Ok(fd) => {
                    // SAFETY: the descriptor is new and nobody else's.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    let introduced =
                        sys::set_nodelay(fd.as_raw_fd()).and_then(|()| sys::peer_address(fd.as_raw_fd()));
                    let Ok(peer) = introduced else { continue }; // it was gone again: the next one
                    self.add_conn("accept", fd, peer, None).map(|conn| Output::Connected { conn, peer })
                }
            };
            if let Some(listener) = self.listeners.get_mut(id) {
                listener.accepts.pop_front();
            }
            self.dials -= 1;
            self.finish(token, outcome);
        }
    }

    fn try_conn(&mut self, id: u64) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.hopeful = false;
        let peer = conn.peer;
        if let Some(token) = conn.connect {
            if !conn.writable {
                return;
            }
            conn.connect = None;
            self.dials -= 1;
            let outcome = match pending_error(conn.fd.as_raw_fd()) {
                Ok(0) => sys::refuse_itself(conn.fd.as_raw_fd(), peer)
                    .map(|()| Output::Connected { conn: ConnId(id), peer }),
                Ok(errno) | Err(errno) => Err(socket_error(errno, "connect", peer)),
            };
            if outcome.is_err() {
                self.conns.remove(id);
            }
            return self.finish(token, outcome);
        }
        if let Some(result) = conn.try_send()
            && let Some((token, ..)) = conn.send.take()
        {
            let result = result.map(|()| Output::Done).map_err(|errno| socket_error(errno, "send", peer));
            self.finish(token, result);
        }
        let Some(conn) = self.conns.get_mut(id) else { return };
        if let Some(result) = conn.try_receive()
            && let Some((token, buffer, _)) = conn.receive.take()
        {
            let result = result
                .map(|bytes| Output::Received { buffer, bytes })
                .map_err(|errno| socket_error(errno, "receive", peer));
            self.finish(token, result);
        }
    }
}

impl Conn {
    /// Sends on; something when the send has ended.
    fn try_send(&mut self) -> Option<Result<(), Errno>> {
        let fd = self.fd.as_raw_fd();
        let (_, data, sent) = self.send.as_mut()?;
        let bytes: usize = data.iter().map(|piece| piece.len()).sum();
        while self.writable && *sent < bytes {
            let mut skip = *sent;
            let mut pieces: Vec<libc::iovec> = Vec::with_capacity(data.len().min(PIECES_MAX));
            for piece in data.iter() {
                if skip >= piece.len() {
                    skip -= piece.len();
                    continue;
                }
                let rest = piece.get(skip..).unwrap_or_default();
                skip = 0;
                pieces.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
                if pieces.len() == PIECES_MAX {
                    break;
                }
            }
            // SAFETY: an all-zero msghdr is a valid value.
            let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
            header.msg_iov = pieces.as_mut_ptr();
            header.msg_iovlen = pieces.len() as _;
            let result = uninterrupted(|| {
                // SAFETY: the header and the pieces that it names outlive the call.
                let sent = unsafe { libc::sendmsg(fd, &header, libc::MSG_NOSIGNAL) };
                usize::try_from(sent).map_err(|_| sys::errno())
            });
            match result {
                Ok(count) => *sent += count,
                Err(libc::EAGAIN) => self.writable = false,
                Err(errno) => return Some(Err(errno)),
            }
        }
        (*sent == bytes).then_some(Ok(()))
    }

    /// Receives; something when the receive has ended.
    fn try_receive(&mut self) -> Option<Result<usize, Errno>> {
        let fd = self.fd.as_raw_fd();
        let (_, buffer, filled) = self.receive.as_mut()?;
        if !self.readable {
            return None;
        }
        let rest = &mut buffer[*filled..];
        let result = uninterrupted(|| {
            // SAFETY: `rest` is ours alone and valid for writing during the call.
            let got = unsafe { libc::recv(fd, rest.as_mut_ptr().cast(), rest.len(), 0) };
            usize::try_from(got).map_err(|_| sys::errno())
        });
        if result == Err(libc::EAGAIN) {
            self.readable = false;
            return None;
        }
        Some(result)
    }
}
