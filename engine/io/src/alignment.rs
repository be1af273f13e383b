//! What file operations must look like, checked before the kernel sees them.

use crate::sys::misuse;
use crate::{AlignedBuf, IoError, PIECES_MAX};
use bytes::Bytes;
use tidelog_types::limits::PAGE_BYTES;

/// Most bytes of one file operation: the kernel cuts off what is above 2 GiB.
const BYTES_MAX: usize = 1 << 30;

/// Bytes of all pieces of a write, if they are aligned.
pub(crate) fn check_write(operation: &'static str, offset: u64, data: &[Bytes]) -> Result<usize, IoError> {
    let refuse = |message: &str| Err(misuse(operation, format_args!("offset {offset}"), message));
    if !offset.is_multiple_of(PAGE_BYTES as u64) {
        return refuse("the offset is not a multiple of 4096");
    }
    if data.is_empty() || data.len() > PIECES_MAX {
        return refuse("between 1 and 1024 pieces can be written at once");
    }
    let mut bytes = 0;
    for piece in data {
        if piece.is_empty() || !piece.len().is_multiple_of(PAGE_BYTES) || !is_aligned(piece.as_ptr()) {
            return refuse("a piece is empty, not aligned to 4096 or not a multiple of it long");
        }
        bytes += piece.len();
    }
    if bytes > BYTES_MAX || offset.checked_add(bytes as u64).is_none_or(|end| end > i64::MAX as u64) {
        return refuse("too large, or beyond any file's end");
    }
    Ok(bytes)
}

/// Whether a read is aligned.
pub(crate) fn check_read(offset: u64, buffer: &AlignedBuf) -> Result<(), IoError> {
    let refuse = |message: &str| Err(misuse("read", format_args!("offset {offset}"), message));
    if !offset.is_multiple_of(PAGE_BYTES as u64) {
        return refuse("the offset is not a multiple of 4096");
    }
    if buffer.is_empty() || buffer.len() > BYTES_MAX || !buffer.len().is_multiple_of(PAGE_BYTES) {
        return refuse("the buffer's length is 0, above 1 GiB or not a multiple of 4096");
    }
    if offset.checked_add(buffer.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
        return refuse("beyond any file's end");
    }
    Ok(())
}

fn is_aligned(at: *const u8) -> bool {
    (at as usize).is_multiple_of(PAGE_BYTES)
}

/// How a read that ended early goes on.
pub(crate) enum ReadOn {
    /// It does not: the file ended.
    Ended,
    /// From this many bytes of the buffer on, which is a multiple of the page.
    From(usize),
    /// Nothing came although the file goes on.
    Stuck,
}

/// What to do after `filled` bytes of a read at `offset` from a file of `file_bytes`, having begun this time
/// at `began`.
pub(crate) fn read_on(offset: u64, began: usize, filled: usize, file_bytes: u64) -> ReadOn {
    if offset.saturating_add(filled as u64) >= file_bytes {
        return ReadOn::Ended;
    }
    // Direct reads begin at pages: a part of one is read again.
    let from = filled / PAGE_BYTES * PAGE_BYTES;
    if from > began { ReadOn::From(from) } else { ReadOn::Stuck }
}
