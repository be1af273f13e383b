//! What a connection has received: frames cut out of aligned buffers.
//!
//! Bytes are received into a buffer of the pool and looked at where they lie. A frame's payload is handed up as a
//! slice of that buffer, which is then left to its holders; only the incomplete frame at the buffer's end is
//! copied, once, to the start of the next one. A frame that is larger than a buffer gets larger ones as it arrives: what
//! was announced and did not come costs nothing. At most one buffer is owned at a time, of at most its bound, or one frame, or
//! [`GROWTH`] times what has arrived of one.

use crate::wire::{FrameHeader, HEADER_BYTES, WireError, padded};
use bytes::Bytes;
use tidelog_io::{AlignedBuf, BufferPool};

/// Receives in a row that left most of the buffer empty before it is halved.
const QUIET_MAX: u32 = 16;

/// How many times larger than what has arrived of a frame its next buffer may be.
pub(crate) const GROWTH: usize = 4;

#[derive(Debug)]
enum Buffer {
    /// None, or with the ring.
    None,
    Owned(AlignedBuf),
    Shared(Bytes),
}

/// Receive buffer and framing of one connection.
#[derive(Debug)]
pub(crate) struct Inbound {
    buffer: Buffer,
    /// First byte that is not consumed; a multiple of 64.
    start: usize,
    /// End of what was received.
    filled: usize,
    /// The frame at `start`, once its header is complete and valid.
    header: Option<FrameHeader>,
    /// The rest of that frame is there and valid.
    complete: bool,
    /// Bytes of the buffer lent last.
    lent: usize,
    size: usize,
    size_min: usize,
    size_max: usize,
    quiet: u32,
    /// Frames taken so far.
    frames: u64,
}

impl Inbound {
    /// Buffers begin with `size_min` bytes and grow with the traffic up to `size_max`.
    pub(crate) fn new(size_min: usize, size_max: usize) -> Inbound {
        Inbound {
            buffer: Buffer::None,
            start: 0,
            filled: 0,
            header: None,
            complete: false,
            lent: 0,
            size: size_min,
            size_min,
            size_max,
            quiet: 0,
            frames: 0,
        }
    }

    /// Sets new bounds for its buffers.
    pub(crate) fn resize(&mut self, size_min: usize, size_max: usize) {
        (self.size_min, self.size_max) = (size_min, size_max);
        self.size = self.size.clamp(size_min, size_max);
    }

    /// Frames taken so far.
    pub(crate) fn frames(&self) -> u64 {
        self.frames
    }

    fn bytes(&self) -> &[u8] {
        match &self.buffer {
            Buffer::None => &[],
            Buffer::Owned(buffer) => buffer,
            Buffer::Shared(bytes) => bytes,
        }
    }

    /// Whether part of a frame is there, and not all of it.
    pub(crate) fn is_partial(&self) -> bool {
        self.filled > self.start && !self.complete
    }

    /// The frame at hand; none if it is not complete.
    pub(crate) fn frame(&mut self) -> Result<Option<FrameHeader>, WireError> {
        if self.complete {
            return Ok(self.header);
        }
        let received = self.bytes().get(self.start..self.filled).unwrap_or_default();
        let header = match self.header {
            Some(header) => header,
            None => match FrameHeader::decode(received)? {
                Some(header) => header,
                None => return Ok(None),
            },
        };
        let frame = received.get(..header.frame_bytes());
        let complete = match frame {
            Some(frame) => {
                let (meta, payload) = frame.split_at(HEADER_BYTES + header.meta_padded());
                header.check_meta(meta.get(HEADER_BYTES..).unwrap_or_default())?;
                if payload.iter().skip(header.payload_len as usize).any(|b| *b != 0) {
                    return Err(WireError::Field("padding of the payload"));
                }
                true
            }
            None => false,
        };
        self.header = Some(header);
        self.complete = complete;
        Ok(complete.then_some(header))
    }

    /// The metadata of the frame at hand, without its padding.
    pub(crate) fn meta(&self) -> &[u8] {
        let len = self.header.map_or(0, |h| h.meta_len as usize);
        let at = self.start + HEADER_BYTES;
        self.bytes().get(at..at + len).unwrap_or_default()
    }

    /// The payload of the frame at hand, without its padding: a slice of the receive buffer.
    pub(crate) fn payload(&mut self) -> Bytes {
        let Some(header) = self.header.filter(|h| self.complete && h.payload_len > 0) else {
            return Bytes::new();
        };
        self.buffer = match std::mem::replace(&mut self.buffer, Buffer::None) {
            Buffer::Owned(mut buffer) => {
                buffer.truncate(self.filled);
                Buffer::Shared(buffer.freeze())
            }
            shared => shared,
        };
        let at = self.start + HEADER_BYTES + header.meta_padded();
        match &self.buffer {
            Buffer::Shared(bytes) => bytes.slice(at..at + header.payload_len as usize),
            Buffer::Owned(_) | Buffer::None => Bytes::new(),
        }
    }

    /// Goes on behind the frame at hand.
    pub(crate) fn advance(&mut self) {
        if let Some(header) = self.header.take().filter(|_| self.complete) {
            self.start += header.frame_bytes();
            self.frames += 1;
        }
        self.complete = false;
    }

    /// Forgets what was received.
    pub(crate) fn discard(&mut self) {
        self.start = self.filled;
        self.header = None;
        self.complete = false;
    }

    /// A buffer to receive into, and how much of it is in use. To be called when no complete frame is at hand.
    pub(crate) fn lend(&mut self, pool: &BufferPool) -> (AlignedBuf, usize) {
        let (rest, wants) = (self.filled - self.start, self.wants());
        let buffer = match std::mem::replace(&mut self.buffer, Buffer::None) {
            Buffer::Owned(buffer) if rest == 0 && (wants..=2 * wants).contains(&buffer.len()) => {
                (self.start, self.filled) = (0, 0);
                buffer
            }
            Buffer::Owned(buffer) if self.fits_on(buffer.len()) => buffer,
            Buffer::Owned(mut buffer) if rest > 0 && buffer.len() >= wants => {
                buffer.copy_within(self.start..self.filled, 0);
                (self.start, self.filled) = (0, rest);
                buffer
            }
            old => {
                let mut buffer = pool.take(wants);
                let prefix = match &old {
                    Buffer::None => &[],
                    Buffer::Owned(old) => &old[self.start..self.filled],
                    Buffer::Shared(old) => &old[self.start..self.filled],
                };
                buffer[..rest].copy_from_slice(prefix);
                (self.start, self.filled) = (0, rest);
                buffer
            }
        };
        self.lent = buffer.len();
        (buffer, self.filled)
    }

    /// Whether the incomplete frame can go on arriving in the buffer of so many bytes in which it lies.
    fn fits_on(&self, len: usize) -> bool {
        let rest = self.filled - self.start;
        let frame = self.header.map_or(HEADER_BYTES, |h| h.frame_bytes());
        rest > 0 && (len - self.start >= frame || self.start == 0 && len > rest)
    }

    /// Bytes of a new buffer: the frame's, but not much more than what has arrived of it.
    fn wants(&self) -> usize {
        let rest = self.filled - self.start;
        let frame = self.header.map_or(HEADER_BYTES, |h| h.frame_bytes());
        frame.min(GROWTH * rest.max(self.size)).max(self.size).max(rest + 1)
    }

    /// The buffer is back, with `bytes` more in it.
    pub(crate) fn give_back(&mut self, buffer: AlignedBuf, bytes: usize) {
        self.filled += bytes;
        assert!(self.filled <= buffer.len(), "the seam receives into the buffer that it was given");
        if self.filled == buffer.len() {
            self.size = (self.size * 2).min(self.size_max);
            self.quiet = 0;
        } else if bytes < self.size / 4 && self.size > self.size_min {
            self.quiet += 1;
            if self.quiet >= QUIET_MAX {
                self.size = (self.size / 2).max(self.size_min);
                self.quiet = 0;
            }
        } else {
            self.quiet = 0;
        }
        self.buffer = Buffer::Owned(buffer);
    }

    /// Bytes of the buffer that the next [`Self::lend`] gives.
    pub(crate) fn lends(&self) -> usize {
        match &self.buffer {
            Buffer::Owned(buffer) if self.fits_on(buffer.len()) => buffer.len(),
            _ => padded(self.wants()),
        }
    }

    /// Bytes of the buffer in use.
    pub(crate) fn holds(&self) -> usize {
        match &self.buffer {
            Buffer::None => self.lent,
            Buffer::Owned(buffer) => buffer.len(),
            Buffer::Shared(bytes) => bytes.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FrameKind, put_frame, put_frame_head};
    use proptest::prelude::*;

    fn stream(frames: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (meta, payload) in frames {
            if payload.is_empty() {
                put_frame(&mut out, FrameKind::Hello, [1, 2, 3, 4, 5], meta);
            } else {
                put_frame_head(&mut out, FrameKind::AppendRequest, [0; 5], &[], payload.len());
                out.extend_from_slice(payload);
                out.resize(padded(out.len()), 0);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn frames_come_out_whole_however_the_stream_is_cut(
            frames in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(any::<u8>(), 0..20_000)), 1..20),
            cuts in prop::collection::vec(1usize..9000, 1..50),
        ) {
            let pool = BufferPool::new(1 << 20);
            let mut inbound = Inbound::new(4096, 16384);
            let bytes = stream(&frames);
            let (mut rest, mut cuts, mut got, mut held) = (&bytes[..], cuts.iter().cycle(), Vec::new(), Vec::new());
            while !rest.is_empty() {
                let (mut buffer, filled) = inbound.lend(&pool);
                prop_assert!(filled < buffer.len());
                let n = (*cuts.next().unwrap()).min(rest.len()).min(buffer.len() - filled);
                buffer[filled..filled + n].copy_from_slice(&rest[..n]);
                rest = &rest[n..];
                inbound.give_back(buffer, n);
                while inbound.frame().unwrap().is_some() {
                    let meta = inbound.meta().to_vec();
                    let payload = inbound.payload();
                    prop_assert_eq!(payload.as_ptr() as usize % 64 * payload.len().min(1), 0, "aligned");
                    got.push((meta, payload.to_vec()));
                    held.push(payload);
                    inbound.advance();
                }
            }
            let want: Vec<_> =
                frames.into_iter().map(|(m, p)| (if p.is_empty() { m } else { vec![] }, p)).collect();
            prop_assert_eq!(got.len(), want.len());
            prop_assert!(got == want);
            for (payload, (_, want)) in held.iter().zip(&want) {
                prop_assert!(payload == want, "later receives leave what was handed up alone");
            }
        }

        #[test]
        fn garbage_is_an_error_and_nothing_else(bytes in prop::collection::vec(any::<u8>(), 64..400)) {
            let pool = BufferPool::new(1 << 20);
            let mut inbound = Inbound::new(4096, 4096);
            let (mut buffer, _) = inbound.lend(&pool);
            buffer[..bytes.len()].copy_from_slice(&bytes);
            inbound.give_back(buffer, bytes.len());
            prop_assert!(inbound.frame().is_err());
        }
    }

    #[test]
    fn a_frame_that_was_announced_and_does_not_come_costs_nothing() {
        let pool = BufferPool::new(8 << 20);
        let mut inbound = Inbound::new(4096, 65536);
        let mut frame = Vec::new();
        put_frame_head(&mut frame, FrameKind::AppendRequest, [0; 5], &[], 2 << 20);
        frame.resize(frame.len() + (2 << 20), 1);
        let (mut at, mut most) = (0, 0);
        while at < frame.len() {
            let (mut buffer, filled) = inbound.lend(&pool);
            most = most.max(inbound.holds());
            // The pool rounds up.
            assert!(inbound.holds() <= 2 * GROWTH * at.max(4096), "{} for {at}", inbound.holds());
            let n = 10_000.min(frame.len() - at).min(buffer.len() - filled);
            buffer[filled..filled + n].copy_from_slice(&frame[at..at + n]);
            at += n;
            inbound.give_back(buffer, n);
            let _ = inbound.frame().unwrap();
        }
        assert_eq!(inbound.payload().len(), 2 << 20);
        assert!(most >= 2 << 20);
    }

    #[test]
    fn buffers_follow_the_traffic() {
        let pool = BufferPool::new(1 << 20);
        let mut inbound = Inbound::new(4096, 65536);
        let mut frame = Vec::new();
        put_frame(&mut frame, FrameKind::Keepalive, [0; 5], &[]);
        for _ in 0..8 {
            let (mut buffer, filled) = inbound.lend(&pool);
            let n = buffer.len() - filled;
            for chunk in buffer[filled..].chunks_mut(64) {
                chunk.copy_from_slice(&frame);
            }
            inbound.give_back(buffer, n);
            while inbound.frame().unwrap().is_some() {
                inbound.advance();
            }
        }
        assert_eq!(inbound.lends(), 65536, "grown to the bound");
        for _ in 0..200 {
            let (mut buffer, filled) = inbound.lend(&pool);
            buffer[filled..filled + 64].copy_from_slice(&frame);
            inbound.give_back(buffer, 64);
            while inbound.frame().unwrap().is_some() {
                inbound.advance();
            }
        }
        assert_eq!(inbound.lends(), 4096, "shrunk again");
    }
}
