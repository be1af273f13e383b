//! How much room records take in a batch, and who may take the last of it.
//!
//! Pure arithmetic: it knows nothing of a batch that is there.

use tidelog_types::RecordHeader;
use tidelog_types::limits::{PAGE_BYTES, PAGED_PAYLOAD_BYTES, RECORD_ALIGN};

/// A record's sizes: what its place follows from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Header and extension.
    pub(crate) head: usize,
    pub(crate) payload: usize,
}

impl Shape {
    pub(crate) const fn of(header: &RecordHeader) -> Shape {
        Shape { head: header.head_bytes(), payload: header.payload_len as usize }
    }
    pub(crate) const fn bytes(self) -> usize {
        (self.head + self.payload).next_multiple_of(RECORD_ALIGN)
    }
    /// Bytes of padding in front of it at `at`, so that a large payload starts on a page.
    pub(crate) const fn gap(self, at: usize) -> usize {
        if self.payload < PAGED_PAYLOAD_BYTES {
            return 0;
        }
        let payload_at = at + self.head;
        payload_at.next_multiple_of(PAGE_BYTES) - payload_at
    }
}

/// Who may use the batch's last bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Entries leave room for control records.
    Bulk,
    /// What makes room on a full disk: like entries in a batch, and it may go on to a segment that is kept for control records.
    Room,
    /// Promises, cuts, hints: may use all of it.
    Control,
}

/// Where `shapes` end when they begin at `at`.
pub(crate) fn measure(at: usize, shapes: impl Iterator<Item = Shape>) -> usize {
    shapes.fold(at, |at, shape| at + shape.gap(at) + shape.bytes())
}
