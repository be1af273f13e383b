//! Looking at a WAL directory without changing it: for tools, over the files of a stopped or a running node.
//!
//! [`walk`] visits segments, batches and records in LSN order, those before the newest checkpoint as well, and goes on behind whatever
//! is bad. What it says of the log is what an opening comes to: the same code reads it from the checkpoint on
//! ([`Opening::read`]), and of what lies before that the lookup says what counts (`aged`). On a running node the end moves: a batch
//! that is being written looks torn or suspect, and one that looked bad is looked at again before it is called damaged.

use crate::aged::{self, Aged};
use crate::chain::{From, chain};
use crate::disk::Disk;
use crate::error::{BadWhy, Finding, OpenError, Verdict};
use crate::evidence::verdict;
use crate::format::{BatchHeader, Footer, SegmentHeader, Span};
use crate::frozen::Link;
use crate::options::Options;
use crate::recovery::{Judged, Opening, RecoveryReport};
use crate::replay::{Replay, State};
use crate::salvage::Lost;
use crate::scan::{Found, Scanner, Source, footer_of, records_of};
use crate::survey::{finding, newest_in_use, sources_as_they_are, survey};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tidelog_io::{Io, IoErrorKind};
use tidelog_types::{
    EntryMeta, Generation, Incarnation, Index, Lsn, NodeId, PartitionId, Position, RecordHeader, RecordKind,
    ShardId,
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
    /// First entry that is kept; 0: there is none.
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
    /// The same of the end that nothing proves: they may never have been whole.
    pub suspect: u64,
    /// Why the log would not be opened, if it would not. What `partitions` says is then as far as an opening would have come.
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
    /// Whether the log ends with a write that may have been incomplete or is damaged.
    pub fn suspect_tail(&self) -> bool {
        self.findings.iter().any(|f| f.verdict == Verdict::Suspect)
    }

    /// Whether anything that may have been acknowledged is not whole.
    pub fn is_damaged(&self) -> bool {
        self.stopped.is_some()
            || self.lost > 0
            || self.findings.iter().any(|f| matches!(f.verdict, Verdict::Damaged | Verdict::Unknown))
    }
}

/// As whom a log is looked at: what an opening does depends on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Eyes {
    /// Its partitions have no other voter ([`Options::single_voter`]).
    pub single_voter: bool,
    /// The cluster's tag; none: that of the first record.
    pub cluster_tag: Option<u32>,
    /// Its directory's identity says that there is a log ([`Options::must_exist`]).
    pub must_exist: bool,
}

/// Walks over the log without a visitor.
///
/// # Errors
/// If the files cannot be read, or a segment's header is not valid.
pub fn verify(io: &mut dyn Io, dir: &Path, eyes: Eyes) -> Result<Report, OpenError> {
    for _ in 1..VERIFY_TRIES {
        match walk(io, dir, eyes, &mut |_| {}) {
            // A running node gave a segment back meanwhile.
            Err(OpenError::Io(error)) if error.kind == IoErrorKind::NotFound => {}
            result => return result,
        }
    }
    walk(io, dir, eyes, &mut |_| {})
}

/// Walks over the files of a running node before one of them that is gone is called an error.
const VERIFY_TRIES: usize = 3;

/// Visits everything in the log of a directory, and says what an opening would make of it.
///
/// # Errors
/// If the files cannot be read, or a segment's header is not valid.
pub fn walk(
    io: &mut dyn Io,
    dir: &Path,
    eyes: Eyes,
    visit: &mut dyn FnMut(Item<'_>),
) -> Result<Report, OpenError> {
    let mut disk = Disk::new(io);
    let mut walk = Walk { visit, report: Report::default(), cluster: eyes.cluster_tag };
    let result = walk.run(&mut disk, dir, eyes);
    // A tool has its own ring: nobody else's completions are on it.
    drop(disk.finish());
    result.map(|()| walk.report)
}

/// Entries without their bytes, as a replica is told of them while its log is opened.
#[derive(Default)]
struct Losses {
    /// First, last, and whether it is only suspected.
    runs: BTreeMap<PartitionId, Vec<(Index, Index, bool)>>,
}

impl Losses {
    /// They are whole, or not wanted.
    fn without(&mut self, partition: PartitionId, first: Index, last: Index) {
        let Some(runs) = self.runs.get_mut(&partition) else { return };
        for (from, to, suspect) in std::mem::take(runs) {
            if from < first {
                runs.push((from, to.min(first.prev()), suspect));
            }
            if to > last {
                runs.push((from.max(last.next()), to, suspect));
            }
        }
    }

    fn count(&self, wanted: bool) -> u64 {
        let all = self.runs.values().flatten().filter(|run| run.2 == wanted);
        all.map(|(first, last, _)| last.0 - first.0 + 1).sum()
    }

    fn is_in(&self, span: &Span) -> bool {
        span.kind == RecordKind::Data
            && self.runs.get(&span.partition).is_some_and(|runs| {
                runs.iter().any(|(first, last, _)| span.a <= *last && *first <= span.last())
            })
    }
}

impl Replay for Losses {
    fn entry(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn cut(&mut self, partition: PartitionId, keep: Position) {
        self.without(partition, keep.index.next(), Index(u64::MAX));
    }
    fn promise(&mut self, _: PartitionId, _: Generation, _: Option<NodeId>) {}
    fn damaged(&mut self, partition: PartitionId, lost: Lost) {
        self.without(partition, lost.first, lost.last);
        self.runs.entry(partition).or_default().push((lost.first, lost.last, lost.suspect));
    }
    fn moved(&mut self, partition: PartitionId, meta: &EntryMeta, _: &[u8]) {
        self.without(partition, meta.position.index, meta.position.index);
    }
    fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
    fn high_water(&mut self, _: PartitionId, _: Index) {}
    fn low_water(&mut self, partition: PartitionId, first: Index) {
        self.without(partition, Index::ZERO, first.prev());
    }
}

struct Walk<'v> {
    visit: &'v mut dyn FnMut(Item<'_>),
    report: Report,
    /// The tag of the cluster, as the first record says it if nobody else does.
    cluster: Option<u32>,
}

impl Walk<'_> {
    fn run(&mut self, disk: &mut Disk<'_>, dir: &Path, eyes: Eyes) -> Result<(), OpenError> {
        let directory = survey(disk, dir)?;
        let (sources, headers_bad) = sources_as_they_are(disk, &directory.names)?;
        self.report.spares = directory.spares.len();
        let mut seen = headers_bad;
        seen.extend(self.visit_all(disk, &sources)?);
        let options = options(dir, &sources, self.cluster.unwrap_or_default(), eyes);
        let report = RecoveryReport::default();
        let mut losses = Losses::default();
        let mut opening = Opening { options: &options, replay: &mut losses, report, looks_only: true };
        let mut judged = Judged::default();
        let read = opening.read(disk, &mut judged);
        let RecoveryReport { checkpoint, bad_checkpoints, findings, .. } = opening.report;
        (self.report.checkpoint, self.report.bad_checkpoints) = (checkpoint, bad_checkpoints);
        let state = &judged.state;
        let began = checkpoint.unwrap_or(Lsn(0));
        let old: Vec<_> = seen.into_iter().filter(|finding| finding.lsn < began).collect();
        match read {
            Ok(read) => {
                self.report.epoch = read.newest;
                let left_over = read.chain.left_over.iter().filter_map(|&at| read.sources.get(at));
                self.report.left_over = left_over.map(|source| source.path.clone()).collect();
                let aged = aged::judge(disk, &options, &directory.names, state, old, findings)?;
                self.conclude(state, aged, &losses);
            }
            Err(error @ (OpenError::Io(_) | OpenError::SegmentHeader { .. } | OpenError::Foreign { .. })) => {
                return Err(error);
            }
            Err(error) => {
                self.report.findings = old;
                self.report.findings.extend(findings);
                if let OpenError::Damaged(finding) = &error {
                    self.report.findings.push((**finding).clone());
                }
                self.report.stopped = Some(error);
            }
        }
        self.report.partitions = ends(state);
        Ok(())
    }

    /// Visits what is there, whatever an opening would make of it. Returns what is bad.
    fn visit_all(&mut self, disk: &mut Disk<'_>, sources: &[Source]) -> Result<Vec<Finding>, OpenError> {
        let newest = newest_in_use(disk, sources)?;
        self.report.epoch = newest;
        let headers: Vec<_> = sources.iter().map(|s| s.header).collect();
        // Whatever is kept is looked at, also what lies before a checkpoint.
        let Ok(chain) = chain(&headers, newest, From::Kept) else { return Ok(Vec::new()) };
        let mut seen = Vec::new();
        // What lies before the first segment that is kept is not known.
        let mut link: Option<Link> = None;
        for part in &chain.parts {
            let mut scanner = Scanner::new(sources, part, link);
            let (mut segment, mut again) = (None, None);
            loop {
                let found = match scanner.next(disk) {
                    Ok(found) => found,
                    Err(OpenError::Lost { file, offset }) => {
                        // Behind batches that are lost the next one is a first one.
                        scanner.link = None;
                        let lsn = scanner.lsn;
                        seen.push(Finding {
                            verdict: Verdict::Unknown,
                            file,
                            offset,
                            lsn,
                            epoch: part.epoch,
                            bytes: 0,
                            why: BadWhy::Length,
                            spans: Vec::new(),
                            quarantined: None,
                        });
                        continue;
                    }
                    // An opening says so, if it comes there.
                    Err(OpenError::Newer { .. }) => break,
                    Err(error) => return Err(error),
                };
                if let Some(source) = scanner.here()
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
                        let damaged = matches!(verdict(&evidence), Verdict::Damaged | Verdict::Unknown);
                        if damaged && again.replace(bad.lsn).is_none_or(|at| at != bad.lsn) {
                            scanner.finish(disk)?;
                            continue;
                        }
                        let Some(finding) = finding(&scanner, &bad, &evidence, part.epoch) else { break };
                        if finding.verdict == Verdict::Torn && evidence.leavings.is_empty() {
                            break;
                        }
                        (self.visit)(Item::Bad(&finding));
                        let ends = matches!(finding.verdict, Verdict::Torn | Verdict::Suspect);
                        seen.push(finding);
                        match evidence.end {
                            _ if ends => break,
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
        Ok(seen)
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
        for (at, record, payload, _) in records_of(bytes, header) {
            self.report.records += 1;
            if record.kind != RecordKind::Pad {
                self.cluster.get_or_insert(record.cluster);
            }
            let (lsn, offset) = (header.lsn.plus(at as u64), offset + at as u64);
            (self.visit)(Item::Record { file, offset, lsn, header: &record, payload });
        }
        Ok(())
    }

    /// What an opening that succeeds comes to.
    fn conclude(&mut self, state: &State, aged: Aged, losses: &Losses) {
        let Aged { mut findings, lost } = aged;
        // What records tell of as lost was suspect when they were written: it is no more than a fact now.
        let tail: u64 = match findings.iter().any(|finding| finding.verdict == Verdict::Suspect) {
            true => losses.count(true),
            false => 0,
        };
        self.report.suspect = tail;
        self.report.lost = lost + losses.count(false) + losses.count(true) - tail;
        // Damage to what a later record made worthless is not damage any more: lost entries that were cut, written again, or are not
        // wanted; a promise that another one followed. Cuts and marks are known from the spans, and that is enough.
        for finding in &mut findings {
            let promised =
                |span: &Span| span.kind == RecordKind::Promise && state.adopted.contains(&span.partition);
            let open = finding.spans.iter().any(|span| promised(span) || losses.is_in(span));
            let aged =
                matches!(finding.why, BadWhy::Short { .. }) || self.report.checkpoint > Some(finding.lsn);
            if finding.verdict == Verdict::Damaged && !aged && !open {
                finding.verdict = Verdict::Superseded;
            }
        }
        self.report.findings = findings;
    }
}

/// The options of an opening, as far as the files say them.
fn options(dir: &Path, sources: &[Source], cluster_tag: u32, eyes: Eyes) -> Options {
    let header = sources.last().map(|source| source.header);
    let (node, shard, store) =
        header.map_or((NodeId(1), ShardId(0), Incarnation(0)), |h| (h.node, h.shard, h.store));
    let Eyes { single_voter, must_exist, .. } = eyes;
    Options { cluster_tag, single_voter, must_exist, ..Options::new(dir, node, shard, store) }
}

/// What the partitions' logs are.
fn ends(state: &State) -> BTreeMap<PartitionId, PartitionEnd> {
    let end = |log: &crate::lookup::PartitionLog| {
        let first = log.low_water.max(Index(1));
        PartitionEnd {
            first: if first <= log.last.index { first } else { Index::ZERO },
            last: log.last,
            generation: log.generation,
            vote: log.vote,
            high_water: log.high_water,
            low_water: log.low_water,
            snapshot: log.snapshot,
        }
    };
    state.partitions.iter_from(PartitionId(0)).map(|(id, log)| (id, end(log))).collect()
}
