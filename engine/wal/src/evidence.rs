//! The evidence about a batch that is not good, and what follows from it.
//!
//! Whether it was durable once, what it held, where the walk goes on: from its own footer, from the batches behind it, from
//! the next epoch. `docs/formats/batch.md` has the table. It decides nothing about what becomes of the log.

use crate::disk::Disk;
use crate::error::{BadWhy, OpenError, Verdict};
use crate::format::{BatchHeader, Footer, Span};
use crate::frozen::Link;
use crate::scan::{Bad, Scanner, footer_of};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::{Lsn, RecordKind};

const PAGE: u64 = PAGE_BYTES as u64;

/// What can be known about a bad batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    /// It was durable once.
    pub(crate) proven: bool,
    /// What it holds.
    pub(crate) spans: Option<Vec<Span>>,
    /// The next valid batch header: where the walk may go on.
    pub(crate) next: Option<(usize, BatchHeader)>,
    /// Where it ends, and who it was for the chain: known wherever its spans are.
    pub(crate) end: Option<(Lsn, Link)>,
    /// Where what says its spans ends: itself, or the batch that echoes it.
    pub(crate) known_by: Lsn,
    /// A page could not be read, there or at the start of a later segment, that may be what is left of a whole batch; or one of its
    /// footer.
    pub(crate) unreadable: bool,
    /// Bytes that are not zero from there on: (segment of the part, first offset, end offset).
    pub(crate) leavings: Vec<(usize, u64, u64)>,
}

/// Whether nothing is lost with a record of this kind: a hint, or what an opening finds by itself to be good or bad, and
/// can do without.
const fn is_harmless(kind: RecordKind) -> bool {
    matches!(
        kind,
        RecordKind::HighWater | RecordKind::CheckpointChunk | RecordKind::CheckpointEnd | RecordKind::Summary
    )
}

/// What follows from the evidence about a bad batch. `docs/formats/batch.md` has the table.
pub(crate) fn verdict(evidence: &Evidence) -> Verdict {
    let harmless = evidence.spans.as_ref().is_some_and(|spans| spans.iter().all(|s| is_harmless(s.kind)));
    match (evidence.proven, &evidence.spans) {
        (true, Some(_)) if harmless => Verdict::Superseded,
        (true, Some(_)) => Verdict::Damaged,
        (true, None) => Verdict::Unknown,
        (false, Some(_)) if harmless => Verdict::Torn,
        (false, Some(_)) => Verdict::Suspect,
        (false, None) if evidence.unreadable => Verdict::Unknown,
        (false, None) => Verdict::Torn,
    }
}

impl Scanner<'_> {
    /// Gathers what can be known about a bad batch: all the rest of the epoch is looked at, until it is proven.
    pub(crate) fn evidence(&mut self, disk: &mut Disk<'_>, bad: &Bad) -> Result<Evidence, OpenError> {
        let proven = self.part.end.is_some() || self.part.durable > bad.lsn;
        let mut evidence = Evidence { proven, ..Evidence::default() };
        evidence.unreadable = bad.why == BadWhy::Unreadable && self.may_hide_a_batch(disk, self.at, bad)?;
        self.search(disk, bad, &mut evidence)?;
        if let Some((footer, end, link)) = self.own_footer(disk, bad, &mut evidence)? {
            evidence.spans = Some(footer.own);
            (evidence.end, evidence.known_by) = (Some((end, link)), end);
        }
        if evidence.spans.is_none()
            && let Some((at, next)) = evidence.next
            && next.prev == bad.lsn
        {
            let footer = self.footer(disk, at, &next)?;
            evidence.spans = footer.filter(|f| f.echo_batch_seq + 1 == next.batch_seq).map(|f| f.echo);
            let link = Link { lsn: bad.lsn, crc: next.prev_crc, seq: next.batch_seq.saturating_sub(1) };
            evidence.end = evidence.spans.as_ref().map(|_| (next.lsn, link));
            evidence.known_by = next.end();
        }
        Ok(evidence)
    }

    /// Looks for valid headers behind the bad batch, page by page.
    fn search(&mut self, disk: &mut Disk<'_>, bad: &Bad, evidence: &mut Evidence) -> Result<(), OpenError> {
        for at in self.at..self.part.segments.len() {
            let Some(source) = self.source(at) else { break };
            let mut lsn = if at == self.at { bad.lsn } else { source.header.start() };
            let recycled = source.header.recycled;
            let mut leavings: Option<(u64, u64)> = None;
            if recycled
                && at == self.at
                && let Some(header) = &bad.header
            {
                leavings =
                    Some((source.offset(bad.lsn), source.offset(header.end().min(source.header.end()))));
            }
            while lsn.0 + PAGE <= source.header.end().0
                && self.part.end.is_none_or(|end| lsn < end)
                && (evidence.next.is_none() || !evidence.proven)
            {
                let offset = source.offset(lsn);
                // What was there before the file became this segment is not left by a batch.
                if !recycled && !self.is_blank(disk, at, lsn)? {
                    let from = leavings.map_or(offset, |l| l.0);
                    leavings = Some((from, offset + PAGE));
                }
                if lsn > bad.lsn {
                    match self.header(disk, at, lsn)? {
                        Ok(header) => {
                            if recycled {
                                let end = source.offset(header.end().min(source.header.end()));
                                let from = leavings.map_or(offset, |l| l.0);
                                leavings = Some((from, leavings.map_or(end, |l| l.1.max(end))));
                            }
                            evidence.proven |= header.durable > bad.lsn;
                            evidence.next.get_or_insert((at, header));
                        }
                        // Any other page was left unreadable by the file's earlier use, or lies in a batch whose first page
                        // could be read and that has its footer still.
                        Err(why @ BadWhy::Unreadable) if lsn == source.header.start() => {
                            let there = Bad { lsn, why, header: None };
                            evidence.unreadable |= self.may_hide_a_batch(disk, at, &there)?;
                        }
                        Err(_) => {}
                    }
                }
                lsn = lsn.plus(PAGE);
            }
            evidence.leavings.extend(leavings.map(|(from, to)| (at, from, to)));
        }
        Ok(())
    }

    /// Whether an unreadable page may be all that is left of a batch that was whole once. A batch keeps its footer until it has an echo:
    /// where no footer lies, and none can be hidden, the write never came to its end.
    fn may_hide_a_batch(&mut self, disk: &mut Disk<'_>, at: usize, bad: &Bad) -> Result<bool, OpenError> {
        let Some(source) = self.source(at) else { return Ok(true) };
        let offset = source.offset(bad.lsn);
        if let Some(header) = &bad.header {
            let from = offset + u64::from(header.footer_offset);
            let len = header.total_len - header.footer_offset;
            let window = self.window(disk, at)?;
            window.view(disk, from, len as usize)?;
            return Ok(window.unreadable(from, u64::from(len)));
        }
        if !source.header.footers_apart || self.footer_at(disk, at, bad.lsn, u64::MAX)?.is_some() {
            return Ok(true);
        }
        let behind = offset + PAGE;
        let len = source.header.bytes.saturating_sub(behind).min(BATCH_BYTES_MAX as u64 - PAGE);
        Ok(self.window(disk, at)?.unreadable(behind, len))
    }

    /// Spans from the bad batch's own footer.
    fn own_footer(
        &mut self,
        disk: &mut Disk<'_>,
        bad: &Bad,
        evidence: &mut Evidence,
    ) -> Result<Option<(Footer, Lsn, Link)>, OpenError> {
        if let Some(header) = &bad.header {
            let link = Link { lsn: header.lsn, crc: header.crc, seq: header.batch_seq };
            return Ok(self.footer(disk, self.at, header)?.map(|f| (f, header.end(), link)));
        }
        let Some(source) = self.here() else { return Ok(None) };
        let len = match evidence.next {
            Some((at, next)) if at == self.at => next.lsn.0 - bad.lsn.0,
            _ => u64::MAX,
        };
        let Some((footer, end)) = self.footer_at(disk, self.at, bad.lsn, len)? else { return Ok(None) };
        if source.header.recycled {
            let (from, to) = (source.offset(bad.lsn), source.offset(Lsn(end)).next_multiple_of(PAGE));
            match evidence.leavings.iter_mut().find(|l| l.0 == self.at) {
                Some(leaving) => (leaving.1, leaving.2) = (leaving.1.min(from), leaving.2.max(to)),
                None => evidence.leavings.insert(0, (self.at, from, to)),
            }
        }
        let link = Link { lsn: bad.lsn, crc: footer.header_crc, seq: footer.batch_seq };
        let end = bad.lsn.plus((end - bad.lsn.0).next_multiple_of(PAGE));
        Ok(Some((footer, end, link)))
    }

    /// The footer of a batch whose header is valid, if it is valid, too, and that header's.
    fn footer(
        &mut self,
        disk: &mut Disk<'_>,
        at: usize,
        header: &BatchHeader,
    ) -> Result<Option<Footer>, OpenError> {
        let Some(source) = self.source(at) else { return Ok(None) };
        let offset = source.offset(header.lsn) + u64::from(header.footer_offset);
        let len = header.total_len - header.footer_offset;
        let bytes = self.window(disk, at)?.view(disk, offset, len as usize)?;
        Ok(footer_of(bytes, header))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::{Generation, Index, PartitionId};

    /// The table of `docs/formats/batch.md`.
    #[test]
    fn verdicts() {
        let span = |kind| Span {
            partition: PartitionId(1),
            generation: Generation(1),
            a: Index(1),
            count: 1,
            offset: 128,
            kind,
        };
        let entry = Some(vec![span(RecordKind::HighWater), span(RecordKind::Data)]);
        let hints = Some(vec![span(RecordKind::HighWater)]);
        let table = [
            (true, entry.clone(), false, Verdict::Damaged),
            (true, hints.clone(), false, Verdict::Superseded),
            (true, Some(vec![]), true, Verdict::Superseded),
            (true, None, false, Verdict::Unknown),
            (false, entry.clone(), false, Verdict::Suspect),
            (false, entry, true, Verdict::Suspect),
            (false, hints, false, Verdict::Torn),
            (false, None, false, Verdict::Torn),
            (false, None, true, Verdict::Unknown),
        ];
        for (proven, spans, unreadable, expected) in table {
            let evidence = Evidence { proven, spans, unreadable, ..Evidence::default() };
            assert_eq!(verdict(&evidence), expected, "{evidence:?}");
        }
    }
}
