//! Which segments make up the log: the newest epoch in use, and of each epoch before it what the next one says
//! is its proven part. Everything else is left over: epochs whose opening did not end, tails behind a proven end.
//!
//! Pure: headers in, lists out.

use crate::format::SegmentHeader;
use tidelog_types::Lsn;

/// An epoch's part of the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct EpochPart {
    pub(crate) epoch: u64,
    /// Its segments, as positions in the list of headers, ascending and contiguous.
    pub(crate) segments: Vec<usize>,
    /// Where its first batch lies.
    pub(crate) start: Lsn,
    /// Where its proven part ends; none for the newest epoch.
    pub(crate) end: Option<Lsn>,
    /// What its segments say of the epoch before it.
    pub(crate) prev_epoch_end: Lsn,
    /// Its segments say that it was durable up to there; 0: none says so.
    pub(crate) durable: Lsn,
}

/// The log and what is left over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Chain {
    /// Oldest first.
    pub(crate) parts: Vec<EpochPart>,
    /// Positions in the list of headers.
    pub(crate) left_over: Vec<usize>,
}

/// Why headers are not a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ChainError {
    /// No segment holds this position, and one should.
    Missing(Lsn),
    /// The segment at this place in the list contradicts another one of its epoch.
    Contradiction(usize),
}

/// Where the log is to be read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum From {
    /// From its first batch ever: nothing was given back.
    Beginning,
    /// From a checkpoint's position, which the first of the headers holds.
    Checkpoint(Lsn),
    /// From whatever is kept: older segments may have been given back.
    Kept,
}

/// The log that ends with epoch `newest` (0: with none at all). `headers` ascend by base.
pub(crate) fn chain(headers: &[SegmentHeader], newest: u64, from: From) -> Result<Chain, ChainError> {
    let mut parts = Vec::new();
    let mut used = vec![false; headers.len()];
    let (mut epoch, mut end) = (newest, None);
    while epoch > 0 {
        let part = part(headers, epoch, end)?;
        for &at in &part.segments {
            if let Some(used) = used.get_mut(at) {
                *used = true;
            }
        }
        witnesses(headers, &part, from)?;
        let prev = part.prev_epoch_end;
        let oldest = part.segments.first().copied().unwrap_or_default();
        epoch = 0;
        if let (From::Checkpoint(at), 0) = (from, oldest) {
            // It lies in this epoch: what is before it is not read.
            if part.end.is_some_and(|end| end < at) {
                return Err(ChainError::Missing(at));
            }
            parts.push(EpochPart { start: at, ..part });
            break;
        }
        parts.push(part);
        if prev > Lsn(0) {
            let last = Lsn(prev.0 - 1);
            // Leftovers of failed openings never overlap with what was there before them.
            let holder = headers.iter().find(|h| h.base <= last && last < h.end());
            match (holder, from) {
                (Some(holder), _) => epoch = holder.epoch,
                // Given back, and all that lay before it.
                (None, From::Kept) if headers.first().is_none_or(|h| h.base > last) => {}
                (None, _) => return Err(ChainError::Missing(last)),
            }
            end = Some(prev);
        }
    }
    parts.reverse();
    let left_over = used.iter().enumerate().filter(|(_, used)| !**used).map(|(at, _)| at).collect();
    Ok(Chain { parts, left_over })
}

/// What a segment's header says was durable lay in a segment of its epoch, which is there: nothing that was in use goes before what
/// lies behind it, but for what a checkpoint stands for.
fn witnesses(headers: &[SegmentHeader], part: &EpochPart, from: From) -> Result<(), ChainError> {
    let begins = match from {
        From::Beginning => Lsn(0),
        From::Checkpoint(at) => at,
        From::Kept => headers.first().map_or(Lsn(0), |h| h.base),
    };
    let own = || part.segments.iter().filter_map(|&at| headers.get(at));
    for header in own().filter(|h| h.durable > Lsn(0)) {
        let last = Lsn(header.durable.0 - 1);
        if last >= begins && !own().any(|h| h.base <= last && last < h.end()) {
            return Err(ChainError::Missing(last));
        }
    }
    Ok(())
}

fn part(headers: &[SegmentHeader], epoch: u64, end: Option<Lsn>) -> Result<EpochPart, ChainError> {
    let mut segments = Vec::new();
    let mut found: Option<EpochPart> = None;
    let (mut reached, mut durable) = (Lsn(0), Lsn(0));
    for (at, header) in headers.iter().enumerate() {
        if header.epoch != epoch || end.is_some_and(|end| header.base >= end) {
            continue;
        }
        match &found {
            None => {
                found = Some(EpochPart {
                    epoch,
                    segments: Vec::new(),
                    start: header.start(),
                    end,
                    prev_epoch_end: header.prev_epoch_end,
                    durable: Lsn(0),
                });
            }
            Some(first) if first.prev_epoch_end != header.prev_epoch_end => {
                return Err(ChainError::Contradiction(at));
            }
            Some(_) if header.base > reached => return Err(ChainError::Missing(reached)),
            Some(_) if header.base < reached => return Err(ChainError::Contradiction(at)),
            Some(_) => {}
        }
        reached = header.end();
        segments.push(at);
        durable = durable.max(header.durable);
    }
    let part = found.ok_or(ChainError::Missing(end.unwrap_or_default()))?;
    if let Some(end) = end
        && (reached < end || end < part.start)
    {
        return Err(ChainError::Missing(Lsn(end.0.saturating_sub(1))));
    }
    Ok(EpochPart { segments, durable, ..part })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::{Incarnation, NodeId, ShardId};

    fn chain(headers: &[SegmentHeader], newest: u64) -> Result<Chain, ChainError> {
        super::chain(headers, newest, From::Beginning)
    }

    const MIB: u64 = 1 << 20;

    /// A header of 1 MiB at `base` MiB.
    fn header(base: u64, epoch: u64, prev_epoch_end: u64) -> SegmentHeader {
        SegmentHeader {
            shard: ShardId(0),
            store: Incarnation(1),
            node: NodeId(1),
            segment_seq: base + 1,
            base: Lsn(base * MIB),
            bytes: MIB,
            epoch,
            prev_epoch_end: Lsn(prev_epoch_end),
            recycled: false,
            durable: Lsn(0),
            footers_apart: true,
        }
    }

    fn parts(chain: &Chain) -> Vec<(u64, Vec<usize>)> {
        chain.parts.iter().map(|p| (p.epoch, p.segments.clone())).collect()
    }

    #[test]
    fn tails_and_failed_openings_are_left_over() {
        let end1 = MIB + 12288;
        let headers = [
            header(0, 1, 0),
            header(1, 1, 0),
            header(2, 1, 0),    // behind epoch 1's proven end
            header(3, 2, end1), // an opening that did not end
            header(4, 3, end1),
            header(5, 3, end1),
        ];
        let got = chain(&headers, 3).unwrap();
        assert_eq!(parts(&got), [(1, vec![0, 1]), (3, vec![4, 5])]);
        assert_eq!(got.left_over, [2, 3]);
        assert_eq!(got.parts[0].end, Some(Lsn(end1)));
        assert_eq!(got.parts[1].end, None);
        let failed = chain(&headers, 1).unwrap();
        assert_eq!(parts(&failed), [(1, vec![0, 1, 2])]);
        assert_eq!(failed.left_over, [3, 4, 5]);
    }

    #[test]
    fn a_missing_segment_is_noticed() {
        assert_eq!(chain(&[header(0, 1, 0), header(2, 1, 0)], 1), Err(ChainError::Missing(Lsn(MIB))));
        assert_eq!(chain(&[header(4, 2, MIB)], 2), Err(ChainError::Missing(Lsn(MIB - 1))));
        let short = [header(0, 1, 0), header(4, 2, MIB + 8192)];
        assert_eq!(chain(&short, 2), Err(ChainError::Missing(Lsn(MIB + 8191))));
        assert_eq!(chain(&[header(0, 1, 0), header(1, 1, 4096)], 1), Err(ChainError::Contradiction(1)));
    }

    #[test]
    fn a_log_may_begin_behind_what_was_given_back() {
        let end1 = 2 * MIB + 12288;
        let headers = [header(2, 1, 0), header(4, 2, end1), header(5, 2, end1)];
        let kept = super::chain(&headers, 2, From::Kept).unwrap();
        assert_eq!(parts(&kept), [(1, vec![0]), (2, vec![1, 2])]);
        let without = super::chain(&headers[1..], 2, From::Kept).unwrap();
        assert_eq!(parts(&without), [(2, vec![0, 1])]);
        assert_eq!(super::chain(&headers[1..], 2, From::Beginning), Err(ChainError::Missing(Lsn(end1 - 1))));
        let hole = [header(0, 1, 0), header(4, 2, end1)];
        assert_eq!(super::chain(&hole, 2, From::Kept), Err(ChainError::Missing(Lsn(end1 - 1))));
        let at = Lsn(2 * MIB + 8192);
        let behind = super::chain(&headers, 2, From::Checkpoint(at)).unwrap();
        assert_eq!(
            (behind.parts.len(), behind.parts[0].start, behind.parts[0].end),
            (2, at, Some(Lsn(end1)))
        );
        let within = super::chain(&headers[1..], 2, From::Checkpoint(Lsn(4 * MIB + 8192))).unwrap();
        assert_eq!((within.parts.len(), within.parts[0].start), (1, Lsn(4 * MIB + 8192)));
        let cut_off = super::chain(&headers, 2, From::Checkpoint(Lsn(end1 + 4096)));
        assert_eq!(cut_off, Err(ChainError::Missing(Lsn(end1 + 4096))));
    }

    /// The second segment of an epoch is prepared when the first is in use. With the first one gone it looked like what an
    /// opening that did not end leaves behind.
    #[test]
    fn a_prepared_segment_tells_of_the_written_one_before_it() {
        let end1 = MIB + 12288;
        let prepared = |durable| SegmentHeader { durable: Lsn(durable), ..header(5, 2, end1) };
        let written = 4 * MIB + 16384;
        let all = [header(0, 1, 0), header(1, 1, 0), header(4, 2, end1), prepared(written)];
        assert_eq!(chain(&all, 2).unwrap().parts[1].durable, Lsn(written));
        let without = [header(0, 1, 0), header(1, 1, 0), prepared(written)];
        assert_eq!(chain(&without, 2), Err(ChainError::Missing(Lsn(written - 1))));
        let before = super::chain(&without, 2, From::Checkpoint(Lsn(8192)));
        assert_eq!(
            before,
            Err(ChainError::Missing(Lsn(written - 1))),
            "a checkpoint stands for what lies before it"
        );
        let behind = super::chain(&without[2..], 2, From::Checkpoint(Lsn(5 * MIB + 8192)));
        assert_eq!(behind.unwrap().parts.len(), 1);
        let begun = [header(0, 1, 0), header(1, 1, 0), prepared(0)];
        assert_eq!(
            chain(&begun, 2).unwrap().parts[1].segments,
            [2],
            "an opening that did not end says nothing"
        );
    }

    #[test]
    fn nothing_in_use_is_no_log() {
        let got = chain(&[header(0, 1, 0)], 0).unwrap();
        assert!(got.parts.is_empty());
        assert_eq!(got.left_over, [0]);
    }
}
