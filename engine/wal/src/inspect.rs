//! Looking at a WAL directory without changing it: for tools, over the files of a stopped or a running node.
//!
//! [`walk`] visits segments, batches and records in LSN order, as opening would read them, and judges what is not
//! good as opening would; but it goes on behind damage. On a running node the end moves: a batch that is being
//! written looks torn or suspect, and one that looked bad is looked at again before it is called damaged.

use crate::disk::Disk;
use crate::error::{Finding, OpenError, Verdict};
use crate::format::{BatchHeader, Footer, SegmentHeader, Span};
use crate::frozen::Link;

use crate::chain::From;
use crate::restart::{self, Loaded};
use crate::salvage::{self, Piece, What, lost_of};
use crate::scan::{Found, Scanner, footer_of, records_of};
use crate::survey::{chain_of, finding, newest_in_use, sources, survey};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tidelog_io::{Io, IoErrorKind};
use tidelog_types::{
    Generation, Incarnation, Index, Lsn, NodeId, PartitionId, Position, RecordHeader, RecordKind,
};

/// What a walk comes by.
#[derive(Debug)]
pub enum Item<'a> {
    /// A segment of the log; its batches follow.
    Segment {
        /// The file.
        file: &'a Path,
        /// Its header.
        header: &'a SegmentHeader,
    },
    /// A good batch; its records follow.
    Batch {
        /// The file.
        file: &'a Path,
        /// Where in it.
        offset: u64,
        /// Its header.
        header: &'a BatchHeader,
        /// Its footer, if that is good, too.
        footer: Option<&'a Footer>,
    },
    /// A record of a good batch, padding included.
    Record {
        /// The file.
        file: &'a Path,
        /// Where in it.
        offset: u64,
        /// Its position.
        lsn: Lsn,
        /// Its header.
        header: &'a RecordHeader,
        /// Its payload.
        payload: &'a [u8],
    },
    /// A batch that is not good. Whether damage is superseded is only known at the end: see [`Report::findings`].
    Bad(&'a Finding),
}

/// What a partition's log is at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PartitionEnd {
    /// First entry's index; 0: no entry.
    pub first: Index,
    /// Last entry.
    pub last: Position,
    /// Generation promised.
    pub generation: Generation,
    /// Vote given in it.
    pub vote: Option<NodeId>,
    /// High-water hint.
    pub high_water: Index,
    /// First index still kept; 0: everything.
    pub low_water: Index,
    /// The last entry that a snapshot covers.
    pub snapshot: Position,
}

/// What a walk found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The newest epoch in use; 0: none.
    pub epoch: u64,
    /// Segments of the log.
    pub segments: usize,
    /// Good batches.
    pub batches: u64,
    /// Their records, padding included.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// The partitions.
    pub partitions: BTreeMap<PartitionId, PartitionEnd>,
    /// Batches that are not good, with their final verdicts.
    pub findings: Vec<Finding>,
    /// Entries of the log whose bytes are lost and were not written again.
    pub lost: u64,
    /// Why the walk ended early, if it did.
    pub stopped: Option<OpenError>,
    /// The newest good checkpoint: an opening would begin there.
    pub checkpoint: Option<Lsn>,
    /// Checkpoints that should be good and are not: where each ends, and what is wrong with it.
    pub bad_checkpoints: Vec<(Lsn, String)>,
    /// Segments that are not part of the log: leftovers of openings and of tails that were written again.
    pub left_over: Vec<PathBuf>,
    /// Spares.
    pub spares: usize,
}

impl Report {
    /// Whether anything that may have been acknowledged is not whole.
    pub fn is_damaged(&self) -> bool {
        self.stopped.is_some()
            || self.lost > 0
            || self.findings.iter().any(|f| matches!(f.verdict, Verdict::Damaged | Verdict::Unknown))
    }
}

/// Walks over the log without a visitor.
///
/// # Errors
/// If the files cannot be read, or a segment's header is not valid.
pub fn verify(io: &mut dyn Io, dir: &Path) -> Result<Report, OpenError> {
    for _ in 1..VERIFY_TRIES {
        match walk(io, dir, &mut |_| {}) {
            // A running node gave a segment back meanwhile.
            Err(OpenError::Io(error)) if error.kind == IoErrorKind::NotFound => {}
            result => return result,
        }
    }
    walk(io, dir, &mut |_| {})
}

/// Walks over the files of a running node before one of them that is gone is called an error.
const VERIFY_TRIES: usize = 3;

/// Visits everything in the log of a directory.
///
/// # Errors
/// If the files cannot be read, or a segment's header is not valid.
pub fn walk(io: &mut dyn Io, dir: &Path, visit: &mut dyn FnMut(Item<'_>)) -> Result<Report, OpenError> {
    let mut disk = Disk::new(io);
    let mut walk = Walk {
        visit,
        report: Report::default(),
        cuts: Vec::new(),
        promises: Vec::new(),
        copies: Vec::new(),
        lost: Vec::new(),
        cluster: None,
        partial: false,
        known: BTreeMap::new(),
        moved: 0,
    };
    let result = walk.run(&mut disk, dir);
    let mut report = walk.finish(dir);
    // A tool has its own ring: nobody else's completions are on it.
    drop(disk.finish());
    match result {
        Ok(()) => Ok(report),
        Err(e @ (OpenError::Lost { .. } | OpenError::Inconsistent { .. } | OpenError::Newer { .. })) => {
            report.stopped = Some(e);
            Ok(report)
        }
        Err(e) => Err(e),
    }
}

struct Walk<'v> {
    visit: &'v mut dyn FnMut(Item<'_>),
    report: Report,
    /// (position, partition, kept) of every cut behind damage.
    cuts: Vec<(Lsn, PartitionId, Index)>,
    /// (position, partition) of every promise behind damage.
    promises: Vec<(Lsn, PartitionId)>,
    /// (position, partition, index) of every copy behind damage.
    copies: Vec<(Lsn, PartitionId, Index)>,
    lost: Vec<LostRun>,
    /// The log's beginning may have been given back.
    partial: bool,
    /// What a checkpoint says of partitions, and of which position.
    known: BTreeMap<PartitionId, (Lsn, PartitionEnd)>,
    /// Records that are left of a move.
    moved: u64,
    /// The tag of the cluster, as the first record says it.
    cluster: Option<u32>,
}

/// Entries whose bytes are lost: in the batch of a finding, or said to be so by a record.
struct LostRun {
    at: Lsn,
    partition: PartitionId,
    first: Index,
    last: Index,
    finding: Option<usize>,
}

impl Walk<'_> {
    fn run(&mut self, disk: &mut Disk<'_>, dir: &Path) -> Result<(), OpenError> {
        let directory = survey(disk, dir)?;
        let sources = sources(disk, &directory.names)?;
        let sources = &sources;
        let newest = newest_in_use(disk, sources)?;
        let store = sources.last().map_or(Incarnation(0), |s| s.header.store);
        let search = restart::search(disk, &directory.names, store)?;
        // Whatever is kept is looked at, also what lies before a checkpoint.
        let from = if search.loaded.is_some() { From::Kept } else { From::Beginning };
        let chain = chain_of(dir, sources, newest, from).map_err(|e| search.blame(dir, e))?;
        self.report.checkpoint = search.loaded.as_ref().map(|l| l.kept.at);
        self.report.bad_checkpoints = search.bad;
        self.partial = search.loaded.is_some();
        if let Some(Loaded { kept, content }) = search.loaded {
            for (id, log, _) in content.partitions {
                let end = PartitionEnd {
                    last: log.last,
                    generation: log.generation,
                    vote: log.vote,
                    high_water: log.high_water,
                    low_water: log.low_water,
                    snapshot: log.snapshot,
                    ..PartitionEnd::default()
                };
                self.known.insert(id, (kept.at, end));
            }
        }
        self.report.epoch = newest;
        self.report.spares = directory.spares.len();
        self.report.left_over =
            chain.left_over.iter().filter_map(|&at| sources.get(at)).map(|s| s.path.clone()).collect();
        // What lies before the first segment that is kept is not known.
        let mut link = (!self.partial).then(Link::default);
        for part in &chain.parts {
            let mut scanner = Scanner::new(sources, part, link);
            let mut segment = None;
            loop {
                let found = scanner.next(disk)?;
                let here = scanner.here();
                if let Some(source) = here
                    && segment != Some(source.header.base)
                    && !matches!(found, Found::End)
                {
                    segment = Some(source.header.base);
                    self.report.segments += 1;
                    (self.visit)(Item::Segment { file: &source.path, header: &source.header });
                }
                match found {
                    Found::End => break,
                    Found::Good(header) => self.good(disk, &mut scanner, &header)?,
                    Found::Bad(bad) => {
                        let evidence = scanner.evidence(disk, &bad)?;
                        let Some(finding) = finding(&scanner, &bad, &evidence, part.epoch) else { break };
                        if finding.verdict == Verdict::Torn && evidence.leavings.is_empty() {
                            break;
                        }
                        if matches!(finding.verdict, Verdict::Damaged | Verdict::Unknown) {
                            // It was durable before this look at it: what is bad now was not just being written.
                            scanner.finish(disk)?;
                            if let Found::Good(header) = scanner.next(disk)? {
                                self.good(disk, &mut scanner, &header)?;
                                continue;
                            }
                        }
                        (self.visit)(Item::Bad(&finding));
                        let ends = matches!(finding.verdict, Verdict::Torn | Verdict::Suspect);
                        if let (Verdict::Damaged, Some((end, link))) = (finding.verdict, evidence.end) {
                            let bytes = scanner.bad_bytes(disk, &bad, end)?;
                            let pieces = salvage::salvaged(bytes, &finding.spans, self.cluster);
                            self.pieces(&finding, &pieces)?;
                            self.report.findings.push(finding);
                            scanner.step_over(end, link, evidence.next);
                            continue;
                        }
                        let harmless = finding.verdict == Verdict::Superseded;
                        self.report.findings.push(finding);
                        if ends {
                            break;
                        }
                        match evidence.end.filter(|_| harmless) {
                            Some((end, link)) => scanner.step_over(end, link, evidence.next),
                            None => scanner.skip(evidence.next),
                        }
                    }
                }
            }
            scanner.finish(disk)?;
            self.report.bytes += scanner.bytes_read();
            link = scanner.link;
        }
        Ok(())
    }

    fn good(
        &mut self,
        disk: &mut Disk<'_>,
        scanner: &mut Scanner<'_>,
        header: &BatchHeader,
    ) -> Result<(), OpenError> {
        let Some(source) = scanner.here() else { return Ok(()) };
        let bytes = scanner.bytes(disk, header)?;
        let (file, offset) = (source.path.as_path(), source.offset(header.lsn));
        let footer = footer_of(bytes.get(header.footer_offset as usize..).unwrap_or_default(), header);
        self.report.batches += 1;
        (self.visit)(Item::Batch { file, offset, header, footer: footer.as_ref() });
        self.moved = 0;
        for (at, record, payload, _) in records_of(bytes, header) {
            self.report.records += 1;
            self.cluster.get_or_insert(record.cluster);
            let (lsn, offset) = (header.lsn.plus(at as u64), offset + at as u64);
            (self.visit)(Item::Record { file, offset, lsn, header: &record, payload });
            self.record(file, offset, lsn, &record)?;
        }
        Ok(())
    }

    /// What a damaged batch is known to hold.
    fn pieces(&mut self, finding: &Finding, pieces: &[Piece]) -> Result<(), OpenError> {
        for piece in pieces {
            match &piece.what {
                What::Entry { moved: true, offset, record } => {
                    self.copies.push((finding.lsn.plus(*offset as u64), piece.partition, record.index));
                }
                What::Entry { record, .. } => {
                    self.record(&finding.file, finding.offset, finding.lsn, record)?;
                }
                // The promise is in the finding's spans; whether it was written again is seen at the end.
                What::Control(record) if matches!(record.kind, RecordKind::Promise | RecordKind::Moved) => {}
                What::Control(record) => self.record(&finding.file, finding.offset, finding.lsn, record)?,
                What::Lost { first, last, generation, moved } => {
                    let (first, last, partition) = (*first, *last, piece.partition);
                    let finding_at = Some(self.report.findings.len());
                    self.lost.push(LostRun { at: finding.lsn, partition, first, last, finding: finding_at });
                    if !moved {
                        let end = self.report.partitions.entry(partition).or_default();
                        if end.first == Index::ZERO {
                            end.first = first;
                        }
                        end.last = Position::new(last, *generation);
                    }
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, file: &Path, offset: u64, lsn: Lsn, record: &RecordHeader) -> Result<(), OpenError> {
        if record.kind == RecordKind::Pad {
            return Ok(());
        }
        let behind_damage = !self.report.findings.is_empty() || !self.lost.is_empty();
        match record.kind {
            RecordKind::CheckpointChunk | RecordKind::CheckpointEnd | RecordKind::Summary => return Ok(()),
            RecordKind::Moved => {
                self.moved = record.index.0;
                return Ok(());
            }
            _ => {}
        }
        let seen = self.report.partitions.contains_key(&record.partition);
        let end = self.report.partitions.entry(record.partition).or_default();
        match record.kind {
            kind if kind.is_entry() && self.moved > 0 => {
                self.moved -= 1;
                if behind_damage {
                    self.copies.push((lsn, record.partition, record.index));
                }
                if end.first == Index::ZERO || record.index < end.first {
                    end.first = record.index;
                }
                if end.last == Position::ZERO {
                    end.last = record.position();
                }
            }
            kind if kind.is_entry() => {
                // The first of a partition may follow what was given back.
                let begins = self.partial && (!seen || end.last == Position::ZERO);
                let follows = begins
                    || record.index == end.last.index.next() && record.prev_generation == end.last.generation;
                if !follows && !behind_damage {
                    return Err(OpenError::Inconsistent {
                        file: file.to_path_buf(),
                        offset,
                        partition: record.partition,
                        index: record.index,
                        what: "an entry does not follow the one before it: entries are lost",
                    });
                }
                if end.first == Index::ZERO {
                    end.first = record.index;
                }
                end.last = record.position();
            }
            RecordKind::Cut => {
                end.last = record.position();
                if end.first > end.last.index {
                    end.first = Index::ZERO;
                }
                if behind_damage {
                    self.cuts.push((lsn, record.partition, record.index));
                }
            }
            RecordKind::Promise => {
                end.generation = record.generation;
                end.vote = (record.index.0 != 0).then_some(NodeId(record.index.0));
                if behind_damage {
                    self.promises.push((lsn, record.partition));
                }
            }
            RecordKind::Lost => {
                let (first, last) = lost_of(record).unwrap_or((record.index, record.index));
                end.last = Position::new(last, record.generation);
                if end.first == Index::ZERO {
                    end.first = first;
                }
                let partition = record.partition;
                self.lost.push(LostRun { at: lsn, partition, first, last, finding: None });
            }
            RecordKind::HighWater => end.high_water = end.high_water.max(record.index),
            RecordKind::LowWater => end.low_water = end.low_water.max(record.index),
            RecordKind::SnapshotMark => end.snapshot = end.snapshot.max(record.position()),
            _ => {}
        }
        Ok(())
    }

    /// Damage to what a later record made worthless is not damage any more: lost entries that were cut, written again,
    /// or are not wanted; a promise that another one followed. Cuts and marks are known from the spans, and that is enough.
    fn finish(mut self, dir: &Path) -> Report {
        // What only records say that were given back.
        for (id, (_, known)) in std::mem::take(&mut self.known) {
            let end = self.report.partitions.entry(id).or_default();
            if end.generation < known.generation {
                (end.generation, end.vote) = (known.generation, known.vote);
            }
            if end.last == Position::ZERO {
                end.last = known.last;
            }
            end.high_water = end.high_water.max(known.high_water);
            end.low_water = end.low_water.max(known.low_water);
            end.snapshot = end.snapshot.max(known.snapshot);
        }
        if self.partial && self.report.findings.is_empty() {
            for (&partition, end) in &self.report.partitions {
                let index = end.low_water.max(Index(1));
                if index <= end.last.index && (end.first == Index::ZERO || end.first > index) {
                    let what = "the entry is in no segment: a segment is lost";
                    let (file, offset) = (dir.to_path_buf(), 0);
                    self.report.stopped =
                        Some(OpenError::Inconsistent { file, offset, partition, index, what });
                    break;
                }
            }
        }
        let mut open = vec![0; self.report.findings.len()];
        for run in &self.lost {
            let low_water =
                self.report.partitions.get(&run.partition).map_or(Index::ZERO, |end| end.low_water);
            let cut = self.cuts.iter().filter(|c| c.0 > run.at && c.1 == run.partition).map(|c| c.2.0).min();
            let last = cut.map_or(run.last.0, |keep| keep.min(run.last.0));
            let copies = self.copies.iter().filter(|c| c.0 > run.at && c.1 == run.partition);
            let copies: BTreeSet<u64> = copies.map(|c| c.2.0).collect();
            let first = run.first.max(low_water).0;
            let lost = (first..=last).filter(|index| !copies.contains(index)).count() as u64;
            self.report.lost += lost;
            if let Some(open) = run.finding.and_then(|at| open.get_mut(at)) {
                *open += lost;
            }
        }
        for (finding, open) in self.report.findings.iter_mut().zip(open) {
            let promised = |span: &Span| {
                span.kind != RecordKind::Promise
                    || self.promises.iter().any(|p| p.0 > finding.lsn && p.1 == span.partition)
            };
            if finding.verdict == Verdict::Damaged && open == 0 && finding.spans.iter().all(promised) {
                finding.verdict = Verdict::Superseded;
            }
        }
        self.report
    }
}
