//! Writing the summary of a segment again, because the one that it had is bad.
//!
//! A summary lies in batches like everything else, so nothing is written in place: the segment is read once more, and what is found
//! in it goes to the log's end as a new summary, which counts instead of the old one as soon as it is durable, in this life and for
//! whoever opens the log. Until then the segment itself is read instead, as before. One at a time; it is found bad by
//! the scrubber, or by whoever wants an entry.
//!
//! It is no authority: of what the segment holds only what the refs still look for there is put, and what could not be read, by
//! record in a bad batch whose footer is whole, otherwise by batch, is not in it. Whoever looks for that reads the segment again:
//! nothing is written that would make of a device's passing trouble a loss for good.

use crate::background::Summing;
use crate::blocks::Rescanned;
use crate::format::SummarySpan;
use crate::reads::{Purpose, READS_MAX, ReadId, ReadJob};
use crate::summary::summed;
use crate::wal::Wal;
use tidelog_io::Io;
use tidelog_types::{Index, Lsn, PartitionId};

impl Wal {
    /// The summary of the segment at `base` is bad.
    pub(crate) fn summary_is_bad(&mut self, base: Lsn) {
        if self.files.peek(base).is_some_and(|file| file.summary.is_some()) {
            self.background.bad_summaries.insert(base);
        }
    }

    /// Reads the next segment whose summary is to be written again.
    pub(crate) fn advance_resum(&mut self, io: &mut dyn Io) {
        let busy = self.rescanning || self.reads >= READS_MAX / 2 || self.background.summing.is_some();
        if self.fenced || self.full || busy {
            return;
        }
        while let Some(base) = self.background.bad_summaries.first().copied() {
            if self.files.peek(base).is_some_and(|file| file.holds > 0) {
                let mut job = ReadJob::new(ReadId(0), PartitionId(0), Index::ZERO, Index::ZERO, 0);
                job.purpose = Purpose::Resum;
                return self.rescan(io, job, base);
            }
            self.background.bad_summaries.remove(&base);
        }
    }

    /// All of the segment was read: `found` is what it holds, as far as the device gives it.
    pub(crate) fn rescanned(&mut self, base: Lsn, found: &Rescanned) {
        if !self.background.bad_summaries.contains(&base) || self.background.summing.is_some() || self.full {
            return;
        }
        self.background.bad_summaries.remove(&base);
        let Some(file) = self.files.peek(base) else { return };
        let seq = file.seq;
        let mut groups: Vec<(PartitionId, Vec<SummarySpan>)> = Vec::new();
        for (id, spans) in found {
            let Some(log) = self.partitions.get(*id) else { continue };
            if log.refs.iter().any(|r| r.segment == base) {
                let live = spans.iter().filter(|span| span.last() >= log.low_water);
                let live: Vec<_> = live.map(|span| summed(span, base)).collect();
                groups.push((*id, live));
            }
        }
        groups.retain(|group| !group.1.is_empty());
        groups.sort_unstable_by_key(|group| group.0);
        let left = self.summary_pieces(base, seq, &groups);
        self.background.summing = Some(Summing { base, left, put: Vec::new(), seq: 0, again: true });
    }
}
