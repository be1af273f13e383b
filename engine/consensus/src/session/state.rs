//! One session: its key, when it was used last, and where its sequences are.

use super::times::Times;
use super::{RETRIES_KEPT, Run};
use std::collections::VecDeque;
use tidelog_types::{Index, ReplicatedMs, SessionKey};

/// A session of the table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Session {
    /// None: the entry that opened it is a hole.
    pub(super) key: Option<SessionKey>,
    /// It expires when it was not used for so many ms; 0: never, or not known.
    pub(super) expiry_ms: u64,
    /// The entries that opened and used it.
    pub(super) used: Times,
    /// The highest sequence whose place was forgotten.
    pub(super) forgotten: u64,
    /// Ascending in both fields, and dense behind `forgotten` but for holes.
    pub(super) runs: VecDeque<Run>,
    /// Checksums of the payloads of its last sequences, as far as they are known. The last one is of the last sequence.
    pub(super) sums: VecDeque<Option<u32>>,
}

impl Session {
    /// The sequence that is admitted next, as far as known.
    pub(super) fn next(&self) -> u64 {
        self.runs.back().map_or(self.forgotten + 1, Run::end)
    }

    /// When it expires, if it is not used again.
    pub(super) fn expires_at(&self) -> Option<ReplicatedMs> {
        let used = self.used.last().filter(|_| self.expiry_ms > 0)?;
        Some(ReplicatedMs(used.0.saturating_add(self.expiry_ms)))
    }

    /// Whether it has expired at that time, for a log that does not use it again before.
    pub(super) fn is_expired(&self, at: ReplicatedMs) -> bool {
        self.expires_at().is_some_and(|end| end <= at)
    }

    /// Whether all of it is known.
    pub(super) fn is_dense(&self) -> bool {
        let mut next = self.forgotten + 1;
        self.key.is_some()
            && self.runs.iter().all(|run| core::mem::replace(&mut next, run.end()) == run.sequence)
    }

    /// Where a sequence is.
    pub(super) fn place(&self, sequence: u64) -> Option<Index> {
        let after = self.runs.partition_point(|run| run.sequence <= sequence);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at))?;
        (sequence < run.end()).then(|| Index(run.index + (sequence - run.sequence)))
    }

    /// Where in `sums` a sequence's checksum is.
    fn sum_at(&self, sequence: u64) -> Option<usize> {
        let behind = self.next().checked_sub(sequence)?;
        self.sums.len().checked_sub(usize::try_from(behind).ok()?)
    }

    /// The first sequence in `sums`.
    pub(super) fn first_sum(&self) -> u64 {
        self.next() - self.sums.len() as u64
    }

    /// The checksum of a sequence's payload, if it is known.
    pub(super) fn sum(&self, sequence: u64) -> Option<u32> {
        self.sums.get(self.sum_at(sequence)?).copied().flatten()
    }

    /// A sequence that is in the log has this checksum.
    pub(super) fn set_sum(&mut self, sequence: u64, sum: u32) {
        if let Some(at) = self.sum_at(sequence)
            && let Some(known) = self.sums.get_mut(at)
        {
            *known = Some(sum);
        }
    }

    /// So many sequences follow whose checksums are not known.
    pub(super) fn skip_sums(&mut self, count: u64) {
        match usize::try_from(count) {
            Ok(count) if count < RETRIES_KEPT => self.sums.extend(core::iter::repeat_n(None, count)),
            _ => self.sums.clear(),
        }
    }

    /// The next sequence, or a later one of a log with holes, is at `index`.
    pub(super) fn push(&mut self, sequence: u64, index: u64, sum: u32) {
        self.skip_sums(sequence - self.next());
        self.sums.push_back(Some(sum));
        match self.runs.back_mut() {
            Some(run) if run.last_index() + 1 == index && run.end() == sequence => run.count += 1,
            _ => self.runs.push_back(Run { sequence, index, count: 1 }),
        }
    }

    /// Everything above `keep` is gone.
    pub(super) fn cut(&mut self, keep: Index) {
        let before = self.next();
        while let Some(run) = self.runs.back_mut().filter(|run| run.last_index() > keep.0) {
            if run.index > keep.0 {
                self.runs.pop_back();
            } else {
                run.count = keep.0 - run.index + 1;
            }
        }
        let gone = usize::try_from(before - self.next()).unwrap_or(usize::MAX);
        self.sums.truncate(self.sums.len().saturating_sub(gone));
        self.used.cut(keep);
    }

    /// Forgets the oldest places above the bounds, as far as they can no longer be cut. Returns the last entry of those.
    pub(super) fn trim(&mut self, runs_max: usize, high_water: Index) -> Index {
        let mut last = Index::ZERO;
        loop {
            let kept = self.next() - 1 - self.forgotten;
            let runs = self.runs.len();
            let Some(run) = self.runs.front_mut().filter(|run| run.index <= high_water.0) else { break };
            let settled = run.count.min(high_water.0 - run.index + 1);
            let unknown = run.sequence - 1 - self.forgotten;
            let over = kept.saturating_sub(RETRIES_KEPT as u64).saturating_sub(unknown);
            let drop = if runs > runs_max && settled == run.count { settled } else { over.min(settled) };
            if drop == 0 {
                break;
            }
            (run.sequence, run.index, run.count) = (run.sequence + drop, run.index + drop, run.count - drop);
            self.forgotten = run.sequence - 1;
            last = Index(run.index - 1);
            if run.count == 0 {
                self.runs.pop_front();
            }
        }
        let kept = usize::try_from(self.next() - 1 - self.forgotten).unwrap_or(usize::MAX);
        self.sums.drain(..self.sums.len().saturating_sub(kept));
        last
    }
}
