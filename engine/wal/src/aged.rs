//! What is bad before the position from which an opening reads, and what of it counts.
//!
//! An opening does not look there. What is live in a segment its state says, spans in memory and refs; a segment in which something is
//! bad is read as a whole, as a reader without a summary would read it, and what is live in it and not found is lost. So nothing
//! here has a notion of its own of what an entry is, and a bad place in which nothing counts is no damage.

use crate::blocks::Rescanned;
use crate::disk::Disk;
use crate::error::{BadWhy, Finding, OpenError, Verdict};
use crate::format::Span;
use crate::lookup::PartitionLog;
use crate::options::Options;
use crate::places::Place;
use crate::replay::State;
use crate::rescan::Rescan;
use crate::survey::Named;
use crate::window::Window;
use std::collections::BTreeMap;
use tidelog_io::OpenMode;
use tidelog_types::{Generation, Index, Lsn, PartitionId, RecordKind};

/// All that is bad in a log that opens.
pub(crate) struct Aged {
    /// In the order of the log.
    pub(crate) findings: Vec<Finding>,
    /// Entries lost before the position from which an opening reads.
    pub(crate) lost: u64,
}

/// A run of entries of which no good copy is where the lookup says.
#[derive(Clone, Copy, Debug)]
struct Missing {
    partition: PartitionId,
    generation: Generation,
    first: Index,
    last: Index,
}

impl Missing {
    fn count(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    fn is_in(&self, span: &Span) -> bool {
        span.kind == RecordKind::Data
            && span.partition == self.partition
            && span.generation == self.generation
            && span.a <= self.last
            && self.first <= span.last()
    }

    fn span(&self) -> Span {
        let count = u32::try_from(self.count()).unwrap_or(u32::MAX);
        let Missing { partition, generation, first, .. } = *self;
        Span { partition, generation, a: first, count, offset: 0, kind: RecordKind::Data }
    }
}

/// `old`: what is bad before the position from which an opening reads; `new`: what the opening found.
pub(crate) fn judge(
    disk: &mut Disk<'_>,
    options: &Options,
    names: &[Named],
    state: &State,
    old: Vec<Finding>,
    new: Vec<Finding>,
) -> Result<Aged, OpenError> {
    let mut by_segment: BTreeMap<Lsn, Vec<Finding>> = BTreeMap::new();
    let mut findings = Vec::new();
    let (short, new): (Vec<_>, Vec<_>) = new.into_iter().partition(|f| matches!(f.why, BadWhy::Short { .. }));
    for mut finding in old.into_iter().chain(short) {
        match state.files.holding(finding.lsn) {
            Some((base, _)) => by_segment.entry(base).or_default().push(finding),
            None => {
                // No part of the log any more.
                finding.verdict = Verdict::Superseded;
                findings.push(finding);
            }
        }
    }
    let mut lost = 0;
    for (base, mut bad) in by_segment {
        let missing = missing(disk, options, names, state, base)?;
        lost += missing.iter().map(Missing::count).sum::<u64>();
        let mut unnamed: Vec<_> = missing.clone();
        for finding in &mut bad {
            let hit = finding.spans.iter().any(|span| missing.iter().any(|run| run.is_in(span)));
            unnamed.retain(|run| !finding.spans.iter().any(|span| run.is_in(span)));
            finding.verdict = if hit { Verdict::Damaged } else { Verdict::Superseded };
        }
        // What nothing in the log names, the lookup does.
        let blind = bad.iter().position(|f| f.spans.is_empty()).unwrap_or(0);
        if let Some(finding) = bad.get_mut(blind).filter(|_| !unnamed.is_empty()) {
            finding.verdict = Verdict::Damaged;
            finding.spans.extend(unnamed.iter().map(Missing::span));
        }
        findings.extend(bad);
    }
    findings.sort_by_key(|finding| finding.lsn);
    findings.extend(new);
    Ok(Aged { findings, lost })
}

/// What is live in the segment at `base` and not to be found there.
fn missing(
    disk: &mut Disk<'_>,
    options: &Options,
    names: &[Named],
    state: &State,
    base: Lsn,
) -> Result<Vec<Missing>, OpenError> {
    let (Some(name), Some(known)) = (names.iter().find(|n| n.base == base), state.files.peek(base)) else {
        return Ok(Vec::new());
    };
    let (file, bytes) = disk.open(&name.path, OpenMode::Read)?;
    let mut window = Window::new(file, bytes.min(known.end.0 - base.0));
    let mut rescan =
        Rescan::new(options.store, known.seq, known.epoch, options.cluster_tag, (base, known.end));
    loop {
        let (at, len) = rescan.extent();
        let mut bytes = window.view(disk, at.0 - base.0, len)?.to_vec();
        bytes.resize(len, 0); // where the file is cut short, nothing is
        if len == 0 || !rescan.take(&bytes) {
            break;
        }
    }
    disk.close(file)?;
    let found = rescan.spans();
    let mut missing = Vec::new();
    for (partition, log) in state.partitions.iter_from(PartitionId(0)) {
        for (first, last) in live(log, base, known.end) {
            for index in (first.0..=last.0).map(Index) {
                let Some(generation) = log.generation_at(index) else { continue };
                if is_there(&found, partition, index, generation) {
                    continue;
                }
                match missing.last_mut() {
                    Some(Missing { partition: p, generation: g, last, .. })
                        if (*p, *g, last.next()) == (partition, generation, index) =>
                    {
                        *last = index;
                    }
                    _ => missing.push(Missing { partition, generation, first: index, last: index }),
                }
            }
        }
    }
    Ok(missing)
}

fn is_there(found: &Rescanned, partition: PartitionId, index: Index, generation: Generation) -> bool {
    found.get(&partition).is_some_and(|spans| {
        let at = spans.partition_point(|span| span.last() < index);
        spans
            .get(at)
            .is_some_and(|span| span.first <= index && span.generation == generation && !span.is_lost())
    })
}

/// The runs of entries that the lookup has in the segment at `base .. end`.
fn live(log: &PartitionLog, base: Lsn, end: Lsn) -> Vec<(Index, Index)> {
    let mut runs = Vec::new();
    let mut index = log.low_water.max(Index(1));
    while index <= log.last.index {
        let (here, last) = match log.find(index) {
            Some(Place::Span(at)) => {
                let Some(span) = log.span(at) else { break };
                (base <= span.lsn && span.lsn < end && !span.is_lost(), span.last())
            }
            Some(Place::Segment { segment, last }) => (segment == base, last),
            None => (false, index),
        };
        if here {
            runs.push((index, last));
        }
        index = last.next();
    }
    runs
}
