//! One TCP connection on the ring: at most one receive and one send in flight, and its end.
//!
//! What it promises: its slot is free ([`Pipe::is_gone`]) only when no operation of it is in flight. It knows nothing
//! of what the frames mean.

use crate::inbound::Inbound;
use crate::slab::{KEY_BITS, Key};
use bytes::Bytes;
use tidelog_io::{Completion, ConnId, Io, IoError, Op, Output, Token};
use tidelog_types::Monotonic;

/// Most bytes of one send, a larger single frame aside: what an urgent message waits for at most.
pub(crate) const SEND_BYTES_MAX: usize = 512 << 10;
/// Most pieces of one send.
pub(crate) const SEND_PIECES_MAX: usize = 512;

/// What an operation of the network is; part of its token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum NetOp {
    Recv = 1,
    Send = 2,
    Close = 3,
    Accept = 4,
    Connect = 5,
    /// Nobody waits for its completion.
    Forget = 6,
}

pub(crate) fn token(op: NetOp, key: Key) -> Token {
    Token::net((op as u64) << KEY_BITS | key.0)
}

pub(crate) fn of_token(token: Token) -> Option<(NetOp, Key)> {
    let op = match token.value >> KEY_BITS {
        1 => NetOp::Recv,
        2 => NetOp::Send,
        3 => NetOp::Close,
        4 => NetOp::Accept,
        5 => NetOp::Connect,
        6 => NetOp::Forget,
        _ => return None,
    };
    Some((op, Key(token.value & ((1 << KEY_BITS) - 1))))
}

/// Closes a connection that nothing else knows of.
pub(crate) fn close_stray(io: &mut dyn Io, conn: ConnId) {
    io.submit(token(NetOp::Forget, Key(0)), Op::Close { conn });
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) inbound: Inbound,
    conn: ConnId,
    key: Key,
    receiving: bool,
    sending: bool,
    closing: bool,
    closed: bool,
    /// When it came to be, or last received something.
    pub(crate) last_received: Monotonic,
    /// When the frame that is incomplete now began to arrive, and which one it is.
    partial: Option<(Monotonic, u64)>,
    /// When the last send was started.
    pub(crate) last_sent: Monotonic,
}

impl Pipe {
    pub(crate) fn new(conn: ConnId, key: Key, inbound: Inbound, now: Monotonic) -> Pipe {
        Pipe {
            inbound,
            conn,
            key,
            receiving: false,
            sending: false,
            closing: false,
            closed: false,
            last_received: now,
            partial: None,
            last_sent: now,
        }
    }

    /// Gives it the name that its completions come back under; before its first operation.
    pub(crate) fn name(&mut self, key: Key) {
        self.key = key;
    }

    pub(crate) fn is_sending(&self) -> bool {
        self.sending
    }

    pub(crate) fn is_receiving(&self) -> bool {
        self.receiving
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Starts a receive, unless one is in flight. All complete frames must have been taken.
    pub(crate) fn receive(&mut self, io: &mut dyn Io) {
        if self.receiving || self.closing {
            return;
        }
        let (buffer, filled) = self.inbound.lend(&io.buffers());
        self.receiving = true;
        io.submit(token(NetOp::Recv, self.key), Op::Recv { conn: self.conn, buffer, filled });
    }

    /// Sends.
    ///
    /// # Panics
    /// If a send is in flight.
    pub(crate) fn send(&mut self, io: &mut dyn Io, data: Vec<Bytes>) {
        assert!(!self.sending, "one send in flight on a connection");
        if self.closing || data.is_empty() {
            return;
        }
        self.sending = true;
        self.last_sent = io.clock().now;
        io.submit(token(NetOp::Send, self.key), Op::Send { conn: self.conn, data });
    }

    /// Closes; operations in flight complete with an error.
    pub(crate) fn close(&mut self, io: &mut dyn Io) {
        if !self.closing {
            self.closing = true;
            self.inbound.discard();
            io.submit(token(NetOp::Close, self.key), Op::Close { conn: self.conn });
        }
    }

    /// A receive ended: how many bytes came in, 0 at the end of the stream.
    pub(crate) fn received(&mut self, completion: Completion, now: Monotonic) -> Result<usize, IoError> {
        self.receiving = false;
        match completion.result? {
            Output::Received { buffer, bytes } => {
                if bytes > 0 {
                    self.last_received = now;
                }
                self.inbound.give_back(buffer, bytes);
                if self.closing {
                    self.inbound.discard();
                }
                Ok(bytes)
            }
            _ => Ok(0),
        }
    }

    /// Keeps track of how long a frame has been incomplete; after the complete ones were taken.
    pub(crate) fn note_partial(&mut self, now: Monotonic) {
        let frame = self.inbound.frames();
        self.partial = match self.partial {
            _ if !self.inbound.is_partial() => None,
            Some((since, same)) if same == frame => Some((since, same)),
            _ => Some((now, frame)),
        };
    }

    /// Since when a frame has been incomplete.
    pub(crate) fn partial_since(&self) -> Option<Monotonic> {
        self.partial.map(|(since, _)| since)
    }

    /// This process slept: nothing that was due meanwhile is the other side's fault.
    pub(crate) fn excuse(&mut self, now: Monotonic) {
        self.last_received = now;
        if let Some((since, _)) = &mut self.partial {
            *since = now;
        }
    }

    /// A send ended.
    pub(crate) fn sent(&mut self, completion: Completion) -> Result<(), IoError> {
        self.sending = false;
        completion.result.map(drop)
    }

    /// The close ended.
    pub(crate) fn closed(&mut self) {
        self.closed = true;
    }

    /// Closed, and nothing in flight.
    pub(crate) fn is_gone(&self) -> bool {
        self.closed && !self.receiving && !self.sending
    }
}
