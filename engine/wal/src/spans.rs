//! What a batch's spans are: what its footer says of its records, and, a second time, what the one before said of its own.
//!
//! They are kept while records come, one for each run of a partition and generation, whatever lies between the run's
//! records, and one for each control record. It does not know how long the batch may be: whoever puts records asks for
//! the footer's length first.

use crate::format::{Span, footer_bytes};
use crate::lookup::PartitionLog;
use tidelog_types::{PartitionId, RecordHeader, RecordKind};

/// Most spans of a batch that entries may use; control records get the rest up to [`SPANS_MAX`].
pub(crate) const ENTRY_SPANS_MAX: usize = 6144;
/// Most spans of a batch.
pub(crate) const SPANS_MAX: usize = 8192;

/// What the footer needs of an entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntrySpan {
    pub(crate) partition: PartitionId,
    pub(crate) generation: tidelog_types::Generation,
    pub(crate) index: tidelog_types::Index,
    pub(crate) offset: usize,
}

/// Entries that a control record's span counts: one that tells of lost ones has their number for its time.
fn lost_count(header: &RecordHeader) -> u32 {
    match header.kind {
        RecordKind::Lost | RecordKind::LostCopies => {
            u32::try_from(header.timestamp.0).unwrap_or(u32::MAX).max(1)
        }
        _ => 1,
    }
}

/// The spans of the batch that is being filled, and of the one before it.
#[derive(Debug, Default)]
pub(crate) struct BatchSpans {
    own: Vec<Span>,
    echo: Vec<Span>,
    echo_seq: u64,
}

impl BatchSpans {
    /// This batch's.
    pub(crate) fn own(&self) -> &[Span] {
        &self.own
    }

    /// Those of the batch before.
    pub(crate) fn echo(&self) -> &[Span] {
        &self.echo
    }

    /// The number of the batch before; 0: none.
    pub(crate) const fn echo_seq(&self) -> u64 {
        self.echo_seq
    }

    /// Length of the footer with `more` further spans.
    pub(crate) fn footer_bytes(&self, more: usize) -> usize {
        footer_bytes(self.own.len() + more + self.echo.len())
    }

    /// Adds an entry of the batch with number `seq`.
    pub(crate) fn entry(&mut self, seq: u64, log: &mut PartitionLog, entry: &EntrySpan) {
        let (of, at) = log.footer_span;
        if of == seq
            && let Some(span) = self.own.get_mut(at as usize)
            && span.generation == entry.generation
            && span.a.0 + u64::from(span.count) == entry.index.0
        {
            span.count += 1;
            return;
        }
        log.footer_span = (seq, self.own.len() as u32); // at most SPANS_MAX
        self.own.push(Span {
            partition: entry.partition,
            generation: entry.generation,
            a: entry.index,
            count: 1,
            offset: entry.offset as u32, // below the batch's length
            kind: RecordKind::Data,
        });
    }

    /// Adds a control record at `offset`.
    pub(crate) fn control(&mut self, header: &RecordHeader, offset: usize) {
        self.own.push(Span {
            partition: header.partition,
            generation: header.generation,
            a: header.index,
            count: lost_count(header),
            offset: offset as u32, // below the batch's length
            kind: header.kind,
        });
    }

    /// The batch, with number `seq`, is finished: the next one echoes it.
    pub(crate) fn next_batch(&mut self, seq: u64) {
        std::mem::swap(&mut self.own, &mut self.echo);
        self.own.clear();
        self.echo_seq = seq;
    }
}
