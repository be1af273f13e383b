//! Writing a segment's summary, and letting its spans go.
//!
//! When a segment is not among the newest any more, its spans are written into the log as summary records, wherever the
//! log is by then; when those are durable, the spans leave memory, and reads of the segment look them up there. What the
//! summary says is not authority: entries may have been cut or moved since, and the refs know.
//!
//! A segment in which entries were found lost when the log was opened gets none until they are back, or not wanted any more: the
//! summary would say for good what may be a device's passing trouble, and the next opening reads them once more.

use crate::background::{Collecting, Demoting, RESIDENT_SEGMENTS, Summing};
use crate::files::Piece;
use crate::format::{SummaryHead, SummarySpan, encode_summary};
use crate::places::LookupSpan;
use crate::shape::{Class, Shape};
use crate::wal::Wal;
use std::collections::BTreeSet;
use tidelog_types::limits::PAGED_PAYLOAD_BYTES;
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Index, Lsn, PartitionId, RecordHeader, RecordKind};

/// Most bytes of a summary's piece: what a read of an old entry may have to load.
const PIECE_BYTES_MAX: usize = PAGED_PAYLOAD_BYTES - HEADER_BYTES;

/// So many partitions are visited in one turn.
const VISITS_MAX: usize = 512;

impl Wal {
    /// Puts a piece of a summary into the growing batch, which is empty. False: there is none, or no room for it.
    pub(crate) fn put_summary(&mut self) -> bool {
        if self.background.summing.is_none() {
            self.collect_summary();
        }
        let Some(summing) = &mut self.background.summing else { return false };
        let Some((first, payload)) = summing.left.pop() else { return false };
        let header = RecordHeader {
            index: Index(summing.base.0),
            cluster: self.options.cluster_tag,
            payload_len: payload.len() as u32, // at most PIECE_BYTES_MAX
            payload_crc: crc32c::crc32c(&payload),
            ..RecordHeader::new(RecordKind::Summary, PartitionId(0))
        };
        // A disk that is filling up has no room for what only saves memory.
        let placed = if self.full {
            None
        } else {
            self.place(std::iter::once(Shape::of(&header)), 1, Class::Bulk).ok()
        };
        let Some(plan) = placed else {
            if let Some(summing) = &mut self.background.summing {
                summing.left.push((first, payload));
            }
            return false;
        };
        self.growing.begin(plan);
        let offset = self.growing.put_local(&header, &payload);
        let piece = Piece { first, lsn: self.growing.lsn.plus(offset as u64), len: header.payload_len };
        if let Some(summing) = &mut self.background.summing {
            summing.put.push(piece);
            summing.seq = self.growing.seq;
        }
        true
    }

    /// Collects the spans of a segment, those of some partitions a call: with thousands of them all at once is a long wait for who
    /// appends. What is cut or moved meanwhile makes a span shorter than what was collected, and never longer, since
    /// nothing is appended to the segment any more.
    fn collect_summary(&mut self) {
        if self.background.collecting.is_none() {
            self.background.collecting = self.next_to_collect();
        }
        let Some(Collecting { base, next, mut groups }) = self.background.collecting.take() else { return };
        let Some(file) = self.files.peek(base) else { return };
        let (end, seq) = (file.end, file.seq);
        for (visited, (id, log)) in self.partitions.iter_from(next).enumerate() {
            if visited == VISITS_MAX {
                self.background.collecting = Some(Collecting { base, next: id, groups });
                return;
            }
            let inside = |s: &&LookupSpan| base <= s.lsn && s.lsn < end;
            if log.spans.iter().filter(inside).any(LookupSpan::is_lost) {
                self.background.lost_in.1.insert(base);
                return;
            }
            let spans: Vec<_> = log.spans.iter().filter(inside).map(|s| summed(s, base)).collect();
            if !spans.is_empty() {
                groups.push((id, spans));
            }
        }
        let left = self.summary_pieces(base, seq, &groups);
        self.background.summing = Some(Summing { base, left, put: Vec::new(), seq: 0, again: false });
    }

    /// The oldest segment that need not be in memory any more. One in which lost entries were met is looked at again once the
    /// next segment is begun.
    fn next_to_collect(&mut self) -> Option<Collecting> {
        let active = self.active.base();
        if self.background.lost_in.0 != active {
            self.background.lost_in = (active, BTreeSet::new());
        }
        let mut at = 0;
        while self.background.resident.len() > RESIDENT_SEGMENTS + at
            && let Some(&base) = self.background.resident.get(at)
        {
            // Nothing live is in it, and nothing in it can become live again.
            if self.files.peek(base).is_none_or(|file| file.holds == 0) {
                self.background.resident.remove(at);
            } else if self.background.lost_in.1.contains(&base) {
                at += 1;
            } else {
                return Some(Collecting { base, next: PartitionId(0), groups: Vec::new() });
            }
        }
        None
    }

    /// The pieces of a summary of the segment at `base`, the last one first.
    pub(crate) fn summary_pieces(
        &self,
        base: Lsn,
        segment_seq: u64,
        groups: &[(PartitionId, Vec<SummarySpan>)],
    ) -> Vec<(PartitionId, Vec<u8>)> {
        let head = SummaryHead { store: self.options.store, segment_seq, base, piece: 0, pieces: 1 };
        let limit = PIECE_BYTES_MAX.min(self.message_bytes_max().saturating_sub(HEADER_BYTES));
        let given = groups.iter().map(|(id, spans)| (*id, spans.as_slice()));
        let mut left = encode_summary(&head, given, limit);
        left.reverse();
        left
    }

    /// If the summary is durable, lets the spans go.
    pub(crate) fn settle_summary(&mut self) {
        let done =
            self.background.summing.as_ref().is_some_and(|s| s.left.is_empty() && self.durable_seq >= s.seq);
        if !done {
            return;
        }
        let Some(summing) = self.background.summing.take() else { return };
        self.background.resident.retain(|base| *base != summing.base);
        self.stats.summaries += 1;
        self.scrub.stats.rewritten += u64::from(summing.again);
        let Some(file) = self.files.get(summing.base) else { return };
        file.summary = Some(summing.put);
        let end = file.end;
        while self.background.demoting.is_some() {
            self.advance_demotion();
        }
        self.background.demoting = Some(Demoting { base: summing.base, end, next: PartitionId(0) });
    }

    /// Turns spans of a segment with a durable summary into refs, those of some partitions a call.
    pub(crate) fn advance_demotion(&mut self) {
        let Some(Demoting { base, end, next }) = self.background.demoting.take() else { return };
        for (visited, (id, log)) in self.partitions.iter_mut_from(next).enumerate() {
            if visited == VISITS_MAX {
                self.background.demoting = Some(Demoting { base, end, next: id });
                return;
            }
            log.demote(base, end, &mut self.files);
        }
    }
}

pub(crate) fn summed(span: &LookupSpan, base: Lsn) -> SummarySpan {
    SummarySpan {
        first: span.first,
        count: span.count,
        generation: span.generation,
        offset: span.lsn.0 - base.0,
        bytes: span.bytes,
        held: if span.pure { span.bytes } else { span.held / 64 * 64 },
        pure: span.pure,
    }
}
