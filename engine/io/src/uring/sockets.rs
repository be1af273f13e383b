//! Sockets over the ring.

use super::UringIo;
use super::files::piece_of;
use super::ring::Target;
use super::slots::Work;
use crate::sys::{self, RawAddress, cancelled, misuse, socket_error};
use crate::{ConnId, IoError, IoOptions, ListenerId, Op, Output, PIECES_MAX, Token};
use io_uring::opcode;
use io_uring::types::Fd;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A connection.
pub(super) struct Conn {
    fd: OwnedFd,
    target: Target,
    peer: SocketAddr,
    sends: bool,
    receives: bool,
    closing: Option<Token>,
}

/// A listening socket.
pub(super) struct Listener {
    fd: OwnedFd,
    address: SocketAddr,
    accepts: u32,
    closing: Option<Token>,
}

impl UringIo {
    pub(super) fn begin_socket(&mut self, token: Token, op: Op) -> Result<(), IoError> {
        let work = match op {
            Op::Listen { address } => {
                let (fd, address) = sys::listening_socket(address, 0)
                    .map_err(|errno| socket_error(errno, "listen", address))?;
                let listener = Listener { fd, address, accepts: 0, closing: None };
                let id = self
                    .listeners
                    .insert(listener)
                    .map_err(|_| misuse("listen", address, "too many listeners"))?;
                self.finish(token, Ok(Output::Listening { listener: ListenerId(id), address }));
                return Ok(());
            }
            Op::Accept { listener: ListenerId(id) } => {
                self.check_dials("accept", format_args!("listener {id}"))?;
                self.open_listener("accept", id)?.accepts += 1;
                self.dials += 1;
                Work::Accept { listener: id }
            }
            Op::Connect { address } => {
                self.check_dials("connect", address)?;
                if self.conns.is_full() {
                    return Err(misuse("connect", address, "too many connections"));
                }
                let socket = sys::dialling_socket(address, 0)
                    .map_err(|errno| socket_error(errno, "connect", address))?;
                self.dials += 1;
                Work::Connect { socket, address, raw: Box::new(RawAddress::new(address)) }
            }
            Op::Send { conn: ConnId(id), data } => {
                let conn = self.open_conn("send", id)?;
                if conn.sends {
                    return Err(misuse("send", conn.peer, "a send is in flight"));
                }
                let bytes = data.iter().map(|piece| piece.len()).sum();
                if bytes == 0 {
                    self.finish(token, Ok(Output::Done));
                    return Ok(());
                }
                conn.sends = true;
                Work::Send { conn: id, data, sent: 0, bytes }
            }
            Op::Recv { conn: ConnId(id), buffer, filled } => {
                let conn = self.open_conn("receive", id)?;
                if conn.receives {
                    return Err(misuse("receive", conn.peer, "a receive is in flight"));
                }
                if filled >= buffer.len() {
                    return Err(misuse("receive", conn.peer, "there is no room in the buffer"));
                }
                conn.receives = true;
                Work::Recv { conn: id, buffer, filled }
            }
            Op::Close { conn: ConnId(id) } => {
                let conn = self.open_conn("close", id)?;
                conn.closing = Some(token);
                // Ends what is in flight. The descriptor is closed behind it, so that its number names nothing else.
                sys::shut_down(conn.fd.as_raw_fd());
                self.close_conn_if_idle(id);
                return Ok(());
            }
            Op::CloseListener { listener: ListenerId(id) } => {
                let listener = self.open_listener("close", id)?;
                listener.closing = Some(token);
                sys::shut_down(listener.fd.as_raw_fd());
                self.close_listener_if_idle(id);
                return Ok(());
            }
            _ => unreachable!("`begin` sorts the operations"),
        };
        self.start(token, work);
        Ok(())
    }

    fn check_dials(&self, operation: &'static str, subject: impl ToString) -> Result<(), IoError> {
        if self.dials < usize::from(IoOptions::DIALS_MAX) {
            return Ok(());
        }
        Err(misuse(operation, subject, "too many connections are being made"))
    }

    fn open_conn(&mut self, operation: &'static str, id: u64) -> Result<&mut Conn, IoError> {
        match self.conns.get_mut(id) {
            Some(conn) if conn.closing.is_none() => Ok(conn),
            _ => Err(misuse(operation, format_args!("connection {id}"), "not open")),
        }
    }

    fn open_listener(&mut self, operation: &'static str, id: u64) -> Result<&mut Listener, IoError> {
        match self.listeners.get_mut(id) {
            Some(listener) if listener.closing.is_none() => Ok(listener),
            _ => Err(misuse(operation, format_args!("listener {id}"), "not open")),
        }
    }

    fn close_conn_if_idle(&mut self, id: u64) {
        let idle = self.conns.get(id).is_some_and(|c| c.closing.is_some() && !c.sends && !c.receives);
        if idle && let Some(conn) = self.conns.remove(id) {
            drop(conn.fd);
            if let Some(token) = conn.closing {
                self.finish(token, Ok(Output::Done));
            }
        }
    }

    fn close_listener_if_idle(&mut self, id: u64) {
        let idle = self.listeners.get(id).is_some_and(|l| l.closing.is_some() && l.accepts == 0);
        if idle && let Some(listener) = self.listeners.remove(id) {
            drop(listener.fd);
            if let Some(token) = listener.closing {
                self.finish(token, Ok(Output::Done));
            }
        }
    }

    /// Before the ring goes: everything pending on a socket completes.
    pub(super) fn shut_down_sockets(&self) {
        for conn in self.conns.values() {
            sys::shut_down(conn.fd.as_raw_fd());
        }
        for listener in self.listeners.values() {
            sys::shut_down(listener.fd.as_raw_fd());
        }
    }

    /// Queues a slot's entry.
    pub(super) fn issue_socket(&mut self, at: u32) {
        const SEND_FLAGS: i32 = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let slot = self.slots.get(at);
        let target = match &slot.work {
            Work::Send { conn, .. } | Work::Recv { conn, .. } => {
                self.conns.get(*conn).expect("a connection is not closed while an operation uses it").target
            }
            Work::Accept { listener } => Target::plain(
                self.listeners
                    .get(*listener)
                    .expect("a listener is not closed while an operation uses it")
                    .fd
                    .as_raw_fd(),
            ),
            _ => Target::plain(-1),
        };
        let entry = match &mut slot.work {
            Work::Accept { .. } => {
                opcode::Accept::new(target.fd(), std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Work::Connect { socket, raw, .. } => {
                opcode::Connect::new(Fd(socket.as_raw_fd()), raw.as_ptr(), raw.bytes).build()
            }
            Work::Send { data, sent, .. } => {
                slot.pieces.clear();
                let mut skip = *sent;
                for piece in data.iter() {
                    if skip >= piece.len() {
                        skip -= piece.len();
                        continue;
                    }
                    let mut piece = piece_of(piece);
                    piece.iov_base = piece.iov_base.wrapping_byte_add(skip);
                    piece.iov_len -= skip;
                    skip = 0;
                    slot.pieces.push(piece);
                    if slot.pieces.len() == PIECES_MAX {
                        break;
                    }
                }
                if let [piece] = slot.pieces.as_slice() {
                    let bytes = piece.iov_len.min(1 << 30) as u32;
                    opcode::Send::new(target.fd(), piece.iov_base.cast(), bytes)
                        .flags(SEND_FLAGS)
                        .build()
                        .flags(target.flags())
                } else {
                    slot.header.msg_iov = slot.pieces.as_mut_ptr();
                    slot.header.msg_iovlen = slot.pieces.len() as _;
                    opcode::SendMsg::new(target.fd(), &raw const slot.header)
                        .flags(SEND_FLAGS as u32)
                        .build()
                        .flags(target.flags())
                }
            }
            Work::Recv { buffer, filled, .. } => {
                let rest = &mut buffer[*filled..];
                opcode::Recv::new(target.fd(), rest.as_mut_ptr(), rest.len().min(1 << 30) as u32)
                    .build()
                    .flags(target.flags())
            }
            _ => unreachable!("a file's work in a socket's slot"),
        };
        slot.awaited = 1;
        // SAFETY: what the entry points to is owned by the slot, or by a buffer in it whose memory does not move; the
        // slot is emptied only when its completion has been reaped.
        unsafe { self.ring.push(&[entry.user_data(u64::from(at) << 1)]) };
    }

    /// One completion of a socket operation.
    pub(super) fn settle_socket(&mut self, at: u32, result: i32) {
        let interrupted = matches!(-result, libc::EINTR | libc::EAGAIN);
        match &mut self.slots.get(at).work {
            Work::Send { conn, sent, bytes, .. } => {
                if result > 0 {
                    *sent += result as usize;
                }
                let open = self.conns.get(*conn).is_some_and(|conn| conn.closing.is_none());
                let goes_on = *sent < *bytes && (result > 0 || interrupted);
                if goes_on && open && !self.leaving {
                    return self.issue_socket(at);
                }
            }
            Work::Recv { conn, .. } if interrupted => {
                let open = self.conns.get(*conn).is_some_and(|conn| conn.closing.is_none());
                if open && !self.leaving {
                    return self.issue_socket(at);
                }
            }
            Work::Accept { listener } if interrupted || result == -libc::ECONNABORTED => {
                let open = self.listeners.get(*listener).is_some_and(|listener| listener.closing.is_none());
                if open && !self.leaving {
                    return self.issue_socket(at);
                }
            }
            _ => {}
        }
        self.complete_socket(at, result);
    }

    fn complete_socket(&mut self, at: u32, result: i32) {
        let (token, work) = self.vacate(at);
        match work {
            Work::Accept { listener } => {
                let Some(outcome) = self.accepted(listener, result) else {
                    return self.start(token, Work::Accept { listener }); // it was gone again: the next one
                };
                self.dials -= 1;
                self.finish(token, outcome);
                if let Some(entry) = self.listeners.get_mut(listener) {
                    entry.accepts -= 1;
                }
                self.close_listener_if_idle(listener);
            }
            Work::Connect { socket, address, .. } => {
                self.dials -= 1;
                let outcome = if result < 0 {
                    Err(socket_error(-result, "connect", address))
                } else {
                    sys::refuse_itself(socket.as_raw_fd(), address)
                        .and_then(|()| self.add_conn("connect", socket, address))
                };
                self.finish(token, outcome);
            }
            Work::Send { conn, sent, bytes, .. } => {
                let Some(entry) = self.conns.get_mut(conn) else { return };
                entry.sends = false;
                let outcome = if sent == bytes {
                    Ok(Output::Done)
                } else if entry.closing.is_some() {
                    Err(cancelled("send", entry.peer))
                } else {
                    let errno = if result < 0 { -result } else { libc::EPIPE };
                    Err(socket_error(errno, "send", entry.peer))
                };
                self.finish(token, outcome);
                self.close_conn_if_idle(conn);
            }
            Work::Recv { conn, buffer, .. } => {
                let Some(entry) = self.conns.get_mut(conn) else { return };
                entry.receives = false;
                let outcome = if result <= 0 && entry.closing.is_some() {
                    Err(cancelled("receive", entry.peer))
                } else if result < 0 {
                    Err(socket_error(-result, "receive", entry.peer))
                } else {
                    Ok(Output::Received { buffer, bytes: result as usize })
                };
                self.finish(token, outcome);
                self.close_conn_if_idle(conn);
            }
            _ => unreachable!("a file's work in a socket's slot"),
        }
    }

    /// What an accept gave; nothing if the connection is gone again.
    fn accepted(&mut self, listener: u64, result: i32) -> Option<Result<Output, IoError>> {
        let listener = self.listeners.get(listener)?;
        let (address, closing) = (listener.address, listener.closing.is_some());
        if result < 0 {
            return Some(Err(if closing {
                cancelled("accept", address)
            } else {
                socket_error(-result, "accept", address)
            }));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        if closing || self.leaving {
            return Some(Err(cancelled("accept", address)));
        }
        sys::set_nodelay(fd.as_raw_fd()).ok()?;
        let peer = sys::peer_address(fd.as_raw_fd()).ok()?;
        Some(self.add_conn("accept", fd, peer))
    }

    fn add_conn(
        &mut self,
        operation: &'static str,
        fd: OwnedFd,
        peer: SocketAddr,
    ) -> Result<Output, IoError> {
        // Not registered: a ring's table is emptied some time after its process died, by a kernel worker, and until then
        // peers and clients would wait for answers on connections that look alive.
        let target = Target::plain(fd.as_raw_fd());
        let conn = Conn { fd, target, peer, sends: false, receives: false, closing: None };
        let Ok(id) = self.conns.insert(conn) else {
            return Err(misuse(operation, peer, "too many connections"));
        };
        Ok(Output::Connected { conn: ConnId(id), peer })
    }
}
