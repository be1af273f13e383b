//! Opening: which files are the log, what is in them, what becomes of the last life's tail, and the new epoch.
//!
//! The log is read in LSN order and told to a [`Replay`]. The newest epoch's proven part is kept where it lies. What is
//! good behind it is accepted, but not trusted where it lies (its sync may never have happened, and a late write
//! of the earlier life may still reach it): it is written again to the new epoch's first segment, in batches flagged
//! OPEN, the last one DONE; only when that is durable does anything count that this life says. A crash before that
//! leaves an epoch without DONE, which is discarded, and the same tail to be judged again.
//!
//! A torn tail is cut. Behind a damaged batch the log goes on: what of it is good is kept, its control records are known
//! from its spans, the entries that are lost are told as such. A suspect one is the same where there are other voters, and
//! what it held, found or lost, is written again; a single voter sets it aside, keeps its promises (they only
//! raise), and cuts it. What is unknown ends the opening with an error: the files stay as they are.

use crate::chain::{Chain, From};
use crate::disk::Disk;
use crate::error::{BadWhy, Finding, OpenError, Verdict};
use crate::evidence::verdict;
use crate::format::{BatchHeader, Span};
use crate::frozen::Link;
use crate::options::Options;
use crate::quarantine;
use crate::replay::{BadBatch, Replay, State};
use crate::restart::{self, Loaded, Search};
use crate::salvage::{self, Piece as Part};
use crate::scan::{Found, Scanner, Source};
use crate::segments::RESERVED_SEGMENTS;
use crate::survey::{Directory, Named, chain_of, finding, foreign, newest_in_use, sources, survey};
use crate::wal::Wal;
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use tidelog_io::{Completion, Io, IoErrorKind, Op, OpenMode};
use tidelog_types::{Lsn, PartitionId, RecordKind};

/// What an opening found and did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// No earlier opening had been completed: there was no log. A directory that should have one has lost it.
    pub fresh: bool,
    /// The number of this opening.
    pub epoch: u64,
    /// Segments that make up the log.
    pub segments: usize,
    /// Batches read.
    pub batches: u64,
    /// Records read, padding included.
    pub records: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Time taken.
    pub duration: Duration,
    /// The part of it in which `bytes` were read and judged; the rest is finding the checkpoint, making segments, and the new epoch.
    pub reading: Duration,
    /// Batches that were not good, and what was made of them.
    pub findings: Vec<Finding>,
    /// Records of the last life's unproven end that were written again.
    pub rewritten: u64,
    /// Promises and marks that were known from the spans of bad batches only, and were written again.
    pub adopted: u64,
    /// Files removed: leftovers of earlier lives.
    pub removed: usize,
    /// The disk was too full for all spares.
    pub no_space: bool,
    /// The checkpoint that it began with: everything before this position was not read.
    pub checkpoint: Option<Lsn>,
    /// Checkpoints that should have been good and are not: where each ends, and what is wrong with it.
    pub bad_checkpoints: Vec<(Lsn, String)>,
}

/// Most bytes of a newest epoch that is written again as a whole, so that its segment is given back: a start that adds little costs no
/// segment.
const FOLD_BYTES_MAX: u64 = 1 << 20;

/// What reading the log gives.
#[derive(Default)]
pub(crate) struct Judged {
    pub(crate) state: State,
    /// Where the log of the earlier epochs ends from now on.
    pub(crate) end: Lsn,
    /// The batch before that.
    pub(crate) link: Link,
    /// Batches behind the proven end.
    pub(crate) window: Vec<Held>,
    /// Promises of a suspect batch that was cut.
    pub(crate) promises: Vec<Span>,
    /// Partitions whose promise or marks are known from the spans of a bad batch only.
    pub(crate) adopted: BTreeSet<PartitionId>,
    /// Segments at the end in which nothing was ever written.
    pub(crate) blank: Vec<PathBuf>,
    /// The first epoch is written again as well, if it holds little.
    pub(crate) fold: bool,
    /// Bytes of the good batches.
    pub(crate) bytes: u64,
}

/// A batch of the newest epoch that is not proven yet.
pub(crate) struct Held {
    /// It may be left where it lies once everything before this is proven: itself, and, where only an echo says what it
    /// held, the batch with the echo. An echo behind the epoch's end is gone for the next opening.
    until: Lsn,
    link: Link,
    /// Whether there is anything in it.
    holds: bool,
    pub(crate) what: Tail,
}

pub(crate) enum Tail {
    /// Good: read again when it is written again.
    Good(Source, BatchHeader),
    /// Not good: its bytes as they were found, and what it is known to have held.
    Bad { lsn: Lsn, bytes: Vec<u8>, parts: Vec<Part> },
}

impl Tail {
    fn lsn(&self) -> Lsn {
        match self {
            Tail::Good(_, header) => header.lsn,
            Tail::Bad { lsn, .. } => *lsn,
        }
    }
}

pub(crate) struct Opening<'o, 'r> {
    pub(crate) options: &'o Options,
    pub(crate) replay: &'r mut dyn Replay,
    pub(crate) report: RecoveryReport,
    /// Only to say what an opening would come to, of files that may be in use: nothing is changed, and what looks damaged is looked at
    /// again.
    pub(crate) looks_only: bool,
}

/// A directory as an opening has read it, before it changes anything.
pub(crate) struct Read {
    pub(crate) directory: Directory,
    pub(crate) sources: Vec<Source>,
    pub(crate) chain: Chain,
    /// The newest epoch in use; 0: none.
    pub(crate) newest: u64,
    /// Checkpoints that are named and not good, by their last batch.
    bad: BTreeSet<Lsn>,
    /// Old files that are no part of the log.
    unknown: Vec<PathBuf>,
}

/// Opens the log of `options.dir`; see [`Wal::open`].
pub(crate) fn open(
    io: &mut dyn Io,
    options: Options,
    replay: &mut dyn Replay,
    others: &mut Vec<Completion>,
) -> Result<(Wal, RecoveryReport), OpenError> {
    options.check()?;
    let mut disk = Disk::new(io);
    let report = RecoveryReport::default();
    let mut opening = Opening { options: &options, replay, report, looks_only: false };
    let began = disk.clock().now;
    let result = opening.run(&mut disk);
    opening.report.duration = disk.clock().now.since(began);
    let report = opening.report;
    if let Ok(wal) = &result {
        // The window may have taken more than one segment.
        let written = wal.files.iter().filter_map(|(_, segment)| segment.file);
        for file in wal.segments.files().chain(written) {
            disk.keep(file);
        }
    }
    others.extend(disk.finish());
    let wal = result?;
    tracing::info!(
        epoch = report.epoch,
        segments = report.segments,
        batches = report.batches,
        rewritten = report.rewritten,
        findings = report.findings.len(),
        "log opened"
    );
    Ok((wal, report))
}

impl Opening<'_, '_> {
    /// Reads the log and judges it, and changes nothing but for copies in quarantine. What it comes to is in `judged`, as far as it came.
    pub(crate) fn read(&mut self, disk: &mut Disk<'_>, judged: &mut Judged) -> Result<Read, OpenError> {
        let dir = self.options.dir.clone();
        let gone = || OpenError::Gone { dir: dir.clone() };
        let directory = survey(disk, &dir).map_err(|e| match e {
            OpenError::Io(error) if error.kind == IoErrorKind::NotFound && self.options.must_exist => gone(),
            other => other,
        })?;
        let search = restart::search(disk, &directory.names, self.options.store)?;
        let (from, floor) = match &search.loaded {
            Some(loaded) => {
                let at = loaded.kept.at;
                self.report.checkpoint = Some(at);
                (From::Checkpoint(at), restart::floor(&directory.names, at))
            }
            None => (From::Beginning, 0),
        };
        self.report.bad_checkpoints = search.bad.clone();
        let (old, read) = directory.names.split_at(floor);
        let sources = sources(disk, read)?;
        for source in &sources {
            self.own(source)?;
        }
        let newest = newest_in_use(disk, &sources)?;
        let chain = chain_of(&dir, &sources, newest, from).map_err(|e| search.blame(&dir, e))?;
        self.report.fresh = newest == 0;
        // Before anything is made: the next attempt is to find what this one found.
        if self.report.fresh && self.options.must_exist {
            return Err(gone());
        }
        let bad: BTreeSet<Lsn> = search.bad.iter().map(|b| b.0).collect();
        let unknown = self.begin(judged, old, &sources, &chain, search.loaded);
        let search = Search { loaded: None, bad: search.bad };
        // A life that could not have all its spares: its disk is full. Otherwise the first epoch stays where it is.
        judged.fold = directory.spares.len() < RESERVED_SEGMENTS;
        let began = disk.clock().now;
        self.judge(disk, &sources, &chain, judged).map_err(|e| search.blame(&dir, e))?;
        self.report.reading = disk.clock().now.since(began);
        judged.state.demote(judged.end);
        let read_from = sources.first().map_or(Lsn(0), |s| s.header.base);
        self.absent(old, read_from, &mut judged.state)?;
        self.cut_short(disk, old, &mut judged.state)?;
        self.report.segments = judged.state.files.len();
        Ok(Read { directory, sources, chain, newest, bad, unknown })
    }

    fn run(&mut self, disk: &mut Disk<'_>) -> Result<Wal, OpenError> {
        let dir = self.options.dir.clone();
        if !self.options.must_exist {
            disk.run(Op::CreateDir { path: dir.clone() })?;
            if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                disk.run(Op::SyncDir { path: parent.to_path_buf() })?;
            }
        }
        let mut judged = Judged::default();
        let Read { directory, sources, chain, newest, bad, unknown } = self.read(disk, &mut judged)?;
        // From here on files change. Leftovers go first: they may be what fills the disk.
        for path in &directory.unfinished {
            self.remove(disk, path)?;
        }
        // But not what the newest epoch has cut from older ones: what it says may be there to be read and not be durable, because its
        // opening failed, or died, before the device had confirmed it. Then that tail is the only copy.
        let left_over = || chain.left_over.iter().filter_map(|&at| sources.get(at));
        let (cut, begun): (Vec<_>, Vec<_>) = left_over().partition(|source| source.header.epoch < newest);
        for path in begun.iter().map(|source| &source.path).chain(&unknown) {
            self.remove(disk, path)?;
        }
        // From the highest down, each durably before the next: a hole among them would look like a lost segment
        // to every later opening.
        for path in judged.blank.iter().rev() {
            self.remove(disk, path)?;
            disk.run(Op::SyncDir { path: dir.clone() })?;
        }
        if self.report.removed > 0 {
            // Their positions are used again.
            disk.run(Op::SyncDir { path: dir.clone() })?;
        }
        let mut state = std::mem::take(&mut judged.state);
        let mut adopted = std::mem::take(&mut state.adopted);
        let mut wal = self.begin_epoch(disk, &directory.spares, &sources, &judged, &state)?;
        let kept = state.kept(|batch| bad.contains(&batch));
        let behind = wal.adopt(state, kept, judged.end, judged.bytes);
        judged.adopted = std::mem::take(&mut adopted);
        self.rewrite(disk, &mut wal, &mut judged)?;
        for log in wal.partitions.iter_mut() {
            log.sequenced = log.last.index;
        }
        let before = self.report.removed;
        for source in cut {
            self.remove(disk, &source.path)?;
        }
        for base in behind {
            if let Some(file) = wal.files.remove(base) {
                assert_eq!(file.holds, 0, "what lies behind the log's end was written again");
                if !judged.blank.contains(&file.path) {
                    self.remove(disk, &file.path)?;
                }
            }
        }
        if self.report.removed > before {
            // Their space may be free only then, and may be all that there is.
            disk.run(Op::SyncDir { path: dir.clone() })?;
        }
        let made = self.make_all(disk, &mut wal.segments, false)?;
        wal.segments.pace();
        if let Some(error) = made {
            tracing::warn!(%error, "no space for all spares");
            self.report.no_space = true;
            wal.note_no_space();
        }
        Ok(wal)
    }

    /// What is known before anything is read: the segments, and the checkpoint. Returns old files that are no part of the log.
    fn begin(
        &mut self,
        judged: &mut Judged,
        old: &[Named],
        sources: &[Source],
        chain: &Chain,
        loaded: Option<Loaded>,
    ) -> Vec<PathBuf> {
        let mut unknown: Vec<_> = old.to_vec();
        if let (Some(loaded), Some(like)) = (loaded, sources.first()) {
            for known in &loaded.content.segments {
                if known.base < like.header.base {
                    if !old.iter().any(|name| name.base == known.base) {
                        judged.state.gone.insert(known.base);
                    }
                    let header = restart::known_header(known, &like.header);
                    let path = self.options.dir.join(crate::names::segment(known.base));
                    judged.state.files.insert(&header, path, None);
                }
                unknown.retain(|name| name.base != known.base);
            }
            for source in live(sources, chain) {
                judged.state.files.insert(&source.header, source.path.clone(), None);
            }
            judged.link = loaded.content.link;
            judged.end = loaded.kept.at;
            judged.state.load(loaded.kept, loaded.content, self.replay);
        } else {
            for source in live(sources, chain) {
                judged.state.files.insert(&source.header, source.path.clone(), None);
            }
        }
        unknown.into_iter().map(|name| name.path).collect()
    }

    /// Old segments that are not there any more had been given back, and nothing live was in them; or they are lost.
    fn absent(&self, old: &[Named], floor: Lsn, state: &mut State) -> Result<(), OpenError> {
        let there: BTreeSet<Lsn> = old.iter().map(|name| name.base).collect();
        let gone: Vec<_> = state
            .files
            .iter()
            .filter(|(base, _)| *base < floor && !there.contains(base))
            .map(|(base, file)| (base, file.holds))
            .collect();
        for (base, holds) in gone {
            if holds > 0 {
                return Err(OpenError::Missing { dir: self.options.dir.clone(), lsn: base });
            }
            state.files.remove(base);
        }
        Ok(())
    }

    /// Old segments whose files end before they do: what lies behind is damaged, like bytes that the device does not give. It is found
    /// by who reads it, but said at once.
    fn cut_short(&mut self, disk: &mut Disk<'_>, old: &[Named], state: &mut State) -> Result<(), OpenError> {
        for name in old {
            let Some(known) = state.files.peek(name.base).filter(|file| file.holds > 0) else { continue };
            let (expected, epoch) = (known.end.0 - name.base.0, known.epoch);
            let (file, bytes) = disk.open(&name.path, OpenMode::Read)?;
            disk.close(file)?;
            if bytes >= expected {
                continue;
            }
            if let Some(known) = state.files.get(name.base) {
                known.unfit = true;
            }
            let finding = Finding {
                verdict: Verdict::Damaged,
                file: name.path.clone(),
                offset: bytes,
                lsn: name.base.plus(bytes),
                epoch,
                bytes: expected - bytes,
                why: BadWhy::Short { expected },
                spans: Vec::new(),
                quarantined: None,
            };
            let alone = self.options.single_voter;
            let rest = if alone {
                "are lost, if they were committed"
            } else {
                "come from the other replicas when they are needed"
            };
            tracing::error!(%finding, "the log is opened without this part of it: the entries that lay there {rest}");
            self.report.findings.push(finding);
        }
        Ok(())
    }

    /// Refuses what is not this shard's.
    fn own(&self, source: &Source) -> Result<(), OpenError> {
        let pairs = [
            ("data directory", source.header.store.0, self.options.store.0),
            ("node", source.header.node.0, self.options.node.0),
            ("shard", u64::from(source.header.shard.0), u64::from(self.options.shard.0)),
        ];
        match pairs.iter().find(|p| p.1 != p.2) {
            Some(&(field, found, expected)) => Err(foreign(&source.path, field, found, expected)),
            None => Ok(()),
        }
    }

    pub(crate) fn remove(&mut self, disk: &mut Disk<'_>, path: &Path) -> Result<(), OpenError> {
        match disk.run(Op::Remove { path: path.to_path_buf() }) {
            Ok(_) => self.report.removed += 1,
            Err(e) if e.kind == IoErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Reads the log and judges its tail.
    fn judge(
        &mut self,
        disk: &mut Disk<'_>,
        sources: &[Source],
        chain: &Chain,
        judged: &mut Judged,
    ) -> Result<(), OpenError> {
        // The batch before is known unless a bad one lies there.
        let mut link = Some(judged.link);
        // What lies before a checkpoint is proven.
        let checkpoint = judged.end;
        for part in &chain.parts {
            let before = link.unwrap_or(judged.link);
            let mut scanner = Scanner::new(sources, part, link);
            let mut proven = part.start;
            let mut batches: VecDeque<Held> = VecDeque::new();
            let mut last_proven = None;
            let mut proven_records = 0;
            let mut folded = Vec::new();
            let worth = part.prev_epoch_end > Lsn(0) || judged.fold;
            let mut foldable = worth && part.end.is_none() && part.start > checkpoint;
            let mut bytes_of_part = 0;
            let mut again = None;
            loop {
                match scanner.next(disk)? {
                    Found::Good(header) => {
                        let Some(source) = scanner.here().cloned() else { break };
                        let bytes = scanner.bytes(disk, &header)?;
                        judged.state.apply(&source, &header, bytes, &mut self.report, self.replay)?;
                        bytes_of_part += u64::from(header.total_len);
                        judged.bytes += u64::from(header.total_len);
                        foldable &= bytes_of_part <= FOLD_BYTES_MAX && header.checkpoint < part.start;
                        if foldable {
                            let link = Link { lsn: header.lsn, crc: header.crc, seq: header.batch_seq };
                            let what = Tail::Good(source.clone(), header);
                            folded.push(Held { until: header.end(), link, holds: true, what });
                        }
                        proven = proven.max(header.durable);
                        let link = Link { lsn: header.lsn, crc: header.crc, seq: header.batch_seq };
                        let (until, holds) = (header.end(), header.record_count > 0);
                        batches.push_back(Held { until, link, holds, what: Tail::Good(source, header) });
                        while batches.front().is_some_and(|b| b.until <= proven || part.end.is_some())
                            && let Some(first) = batches.pop_front()
                        {
                            proven_records += u64::from(first.holds);
                            last_proven = Some(first.link);
                        }
                    }
                    Found::Bad(bad) => {
                        let evidence = scanner.evidence(disk, &bad)?;
                        let damaged = matches!(verdict(&evidence), Verdict::Damaged | Verdict::Unknown);
                        if self.looks_only && damaged && again.replace(bad.lsn).is_none_or(|at| at != bad.lsn)
                        {
                            // It was durable before this look at it: what is bad now was not just being written.
                            scanner.finish(disk)?;
                            continue;
                        }
                        let Some(mut finding) = finding(&scanner, &bad, &evidence, part.epoch) else { break };
                        // With other voters, what cannot be told from a torn write counts as damage: present, and absent.
                        let goes_on = match finding.verdict {
                            Verdict::Damaged => true,
                            Verdict::Suspect => !self.options.single_voter,
                            _ => false,
                        };
                        if let (true, Some((end, link))) = (goes_on, evidence.end) {
                            foldable = false;
                            let suspect = finding.verdict == Verdict::Suspect;
                            if suspect && !self.looks_only {
                                finding.quarantined =
                                    quarantine::keep(disk, self.options, &scanner, &bad, &evidence)?;
                            }
                            if !self.looks_only {
                                tracing::error!(%finding, "the log goes on behind it");
                            }
                            let bytes = scanner.bad_bytes(disk, &bad, end)?.to_vec();
                            let parts =
                                salvage::salvaged(&bytes, &finding.spans, Some(self.options.cluster_tag));
                            let (file, offset) = (&finding.file, finding.offset);
                            let batch = BadBatch { file, offset, lsn: bad.lsn, bytes: &bytes, suspect };
                            judged.state.apply_bad(&batch, &parts, self.replay)?;
                            let (until, what) = (evidence.known_by, Tail::Bad { lsn: bad.lsn, bytes, parts });
                            batches.push_back(Held { until, link, holds: true, what });
                            self.report.findings.push(finding);
                            scanner.step_over(end, link, evidence.next);
                            continue;
                        }
                        match finding.verdict {
                            Verdict::Damaged | Verdict::Unknown => {
                                return Err(OpenError::Damaged(Box::new(finding)));
                            }
                            Verdict::Superseded => {
                                foldable = false;
                                // Not to the next good one: another bad one may lie between.
                                match evidence.end {
                                    Some((end, link)) => scanner.step_over(end, link, evidence.next),
                                    None => scanner.skip(evidence.next),
                                }
                                self.report.findings.push(finding);
                                continue;
                            }
                            Verdict::Torn if evidence.leavings.is_empty() => {}
                            Verdict::Torn => self.report.findings.push(finding),
                            Verdict::Suspect => {
                                if !self.looks_only {
                                    finding.quarantined =
                                        quarantine::keep(disk, self.options, &scanner, &bad, &evidence)?;
                                    tracing::warn!(%finding, "cut, and there is no other voter to ask");
                                }
                                judged
                                    .promises
                                    .extend(finding.spans.iter().filter(|s| s.kind == RecordKind::Promise));
                                self.report.findings.push(finding);
                            }
                        }
                        judged.blank = scanner
                            .behind()
                            .filter(|(at, _)| evidence.leavings.iter().all(|l| l.0 != *at))
                            .map(|(_, s)| s.path.clone())
                            .collect();
                        break;
                    }
                    Found::End => break,
                }
            }
            scanner.finish(disk)?;
            self.report.bytes += scanner.bytes_read();
            link = scanner.link;
            if part.end.is_some()
                && let Some(last) = batches.drain(..).next_back()
            {
                // A bad one at the end of an epoch that the next one names.
                last_proven = Some(last.link);
            }
            if part.end.is_none() {
                // An epoch that proved nothing worth keeping is dropped whole; then the one before it ends where it
                // has ended since.
                if proven_records > 0 || checkpoint > part.prev_epoch_end {
                    judged.end = batches.front().map_or(proven, |held| proven.min(held.what.lsn()));
                    judged.link = last_proven.unwrap_or(before);
                } else {
                    judged.end = part.prev_epoch_end;
                    judged.link = before;
                }
                judged.window = batches.into();
                if foldable && proven_records > 0 {
                    (judged.end, judged.link) = (part.prev_epoch_end, before);
                    judged.window = folded;
                }
            } else {
                judged.link = link.unwrap_or(last_proven.unwrap_or(before));
            }
        }
        Ok(())
    }
}

/// The segments that are read.
fn live<'s>(sources: &'s [Source], chain: &'s Chain) -> impl Iterator<Item = &'s Source> {
    chain.parts.iter().flat_map(|p| &p.segments).filter_map(|&at| sources.get(at))
}

impl Wal {
    /// Opens the log in `options.dir`, or makes one: reads it from its newest checkpoint on, tells it to `replay`, and begins a new epoch
    /// whose first batch is durable when this returns. Runs to completion; completions of others that arrive
    /// meanwhile are handed back.
    ///
    /// # Errors
    /// See [`OpenError`]. After [`OpenError::Io`] and [`OpenError::NoSpace`] it may be tried again; the others
    /// are for people, and nothing was changed.
    pub fn open(
        io: &mut dyn Io,
        options: Options,
        replay: &mut dyn Replay,
    ) -> Result<(Wal, RecoveryReport, Vec<Completion>), OpenError> {
        let mut others = Vec::new();
        let (wal, report) = open(io, options, replay, &mut others)?;
        Ok((wal, report, others))
    }

    /// The same, and completions of others are handed back also if the log cannot be opened: for who goes on without it.
    ///
    /// # Errors
    /// As [`Wal::open`].
    pub fn open_beside(
        io: &mut dyn Io,
        options: Options,
        replay: &mut dyn Replay,
        others: &mut Vec<Completion>,
    ) -> Result<(Wal, RecoveryReport), OpenError> {
        open(io, options, replay, others)
    }
}
