//! Spans of old segments: a small cache of summary pieces, and of what was found by reading segments again.

use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use tidelog_types::{FixedMap, Lsn, PartitionId};

use crate::places::LookupSpan;

/// Most bytes kept.
const CACHE_BYTES_MAX: usize = 4 << 20;

/// Spans of a whole segment, as reading it gave them.
pub(crate) type Rescanned = FixedMap<PartitionId, Vec<LookupSpan>>;

/// A part of an old segment's spans.
#[derive(Clone, Debug)]
pub(crate) enum Block {
    /// A piece of its summary, verified.
    Piece(Bytes),
    /// All of it, because its summary is not to be had.
    Rescanned(Arc<Rescanned>),
}

impl Block {
    fn bytes(&self) -> usize {
        match self {
            Block::Piece(bytes) => bytes.len(),
            Block::Rescanned(all) => all.values().map(|v| 64 + v.len() * size_of::<LookupSpan>()).sum(),
        }
    }
}

/// The cache, by position of the piece, or base of the segment.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// The one used last at the end.
    kept: VecDeque<(Lsn, Block)>,
    bytes: usize,
}

impl Blocks {
    pub(crate) fn get(&mut self, at: Lsn) -> Option<Block> {
        let position = self.kept.iter().position(|(lsn, _)| *lsn == at)?;
        let found = self.kept.remove(position)?;
        let block = found.1.clone();
        self.kept.push_back(found);
        Some(block)
    }

    /// Takes in a block; the newest one stays whatever its size.
    pub(crate) fn insert(&mut self, at: Lsn, block: Block) {
        self.remove_if(|lsn| lsn == at);
        self.bytes += block.bytes();
        self.kept.push_back((at, block));
        while self.bytes > CACHE_BYTES_MAX && self.kept.len() > 1 {
            if let Some((_, old)) = self.kept.pop_front() {
                self.bytes -= old.bytes();
            }
        }
    }

    /// A segment is gone, and the pieces in it.
    pub(crate) fn forget(&mut self, base: Lsn, end: Lsn) {
        self.remove_if(|lsn| base <= lsn && lsn < end);
    }

    fn remove_if(&mut self, gone: impl Fn(Lsn) -> bool) {
        let mut freed = 0;
        self.kept.retain(|(lsn, block)| {
            let gone = gone(*lsn);
            freed += if gone { block.bytes() } else { 0 };
            !gone
        });
        self.bytes -= freed;
    }
}
