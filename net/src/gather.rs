//! One send put together from small pieces that are written for it and large ones that lie elsewhere.

use crate::wire::{FrameKind, padded, put_frame, put_frame_head};
use bytes::Bytes;

/// Payloads up to this size are copied beside their header where that is allowed: cheaper than a piece of their own.
pub(crate) const COPY_BYTES_MAX: usize = 4096;

/// Frames for one send. Heads and small frames share one allocation; payloads are not copied.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    small: Vec<u8>,
    /// Pieces and where in `small` each is inserted.
    pieces: Vec<(usize, Bytes)>,
    bytes: usize,
}

impl Gather {
    pub(crate) fn new() -> Gather {
        Gather::default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// Bytes so far.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.small.len()
    }

    /// Pieces so far.
    pub(crate) fn pieces(&self) -> usize {
        2 * self.pieces.len() + 1
    }

    /// Where small frames are written to.
    pub(crate) fn small(&mut self) -> &mut Vec<u8> {
        &mut self.small
    }

    /// A frame without payload.
    pub(crate) fn frame(&mut self, kind: FrameKind, fields: [u64; 5], meta: &[u8]) {
        put_frame(&mut self.small, kind, fields, meta);
    }

    /// A frame whose payload lies in pieces.
    pub(crate) fn frame_with(&mut self, kind: FrameKind, fields: [u64; 5], meta: &[u8], payload: &[Bytes]) {
        let len = payload.iter().map(Bytes::len).sum();
        put_frame_head(&mut self.small, kind, fields, meta, len);
        for piece in payload.iter().filter(|p| !p.is_empty()) {
            self.pieces.push((self.small.len(), piece.clone()));
        }
        self.bytes += len;
        self.pad(len);
    }

    /// A frame whose payload is copied if it is small.
    pub(crate) fn frame_copying(&mut self, kind: FrameKind, fields: [u64; 5], payload: &Bytes) {
        if payload.len() > COPY_BYTES_MAX {
            return self.frame_with(kind, fields, &[], core::slice::from_ref(payload));
        }
        put_frame_head(&mut self.small, kind, fields, &[], payload.len());
        self.small.extend_from_slice(payload);
        self.pad(payload.len());
    }

    fn pad(&mut self, len: usize) {
        let zeros = padded(len) - len;
        self.small.resize(self.small.len() + zeros, 0);
    }

    /// What to send.
    pub(crate) fn finish(self) -> Vec<Bytes> {
        let small = Bytes::from(self.small);
        let mut out = Vec::with_capacity(2 * self.pieces.len() + 1);
        let mut at = 0;
        for (end, piece) in self.pieces {
            if end > at {
                out.push(small.slice(at..end));
                at = end;
            }
            out.push(piece);
        }
        if small.len() > at {
            out.push(small.slice(at..));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{FrameHeader, HEADER_BYTES};

    #[test]
    fn pieces_lie_where_their_frames_want_them() {
        let mut gather = Gather::new();
        let (a, b) = (Bytes::from(vec![1u8; 100]), Bytes::from(vec![2u8; 28]));
        gather.frame(FrameKind::Keepalive, [0; 5], &[]);
        gather.frame_with(FrameKind::Append, [0; 5], &[7; 64], &[a, b]);
        gather.frame_copying(FrameKind::AppendRequest, [0; 5], &Bytes::from_static(b"xyz"));
        assert_eq!(gather.bytes(), 64 + 128 + 128 + 128);
        let pieces = gather.finish();
        assert_eq!(pieces.len(), 4, "the two payload pieces are not copied");
        let all = pieces.concat();
        assert_eq!(all.len(), 448);
        let header = FrameHeader::decode(&all[64..]).unwrap().unwrap();
        assert_eq!((header.meta_len, header.payload_len), (64, 128));
        assert_eq!(all[192..320], [vec![1u8; 100], vec![2u8; 28]].concat());
        assert_eq!(&all[320 + HEADER_BYTES..][..4], b"xyz\0");
    }
}
