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

use crate::chain::Chain;
use crate::disk::Disk;
use crate::error::{Finding, OpenError, Verdict};
use crate::format::{BatchHeader, FLAG_DONE, FLAG_OPEN, SegmentHeader, Span};
use crate::growing::{Class, Growing, Link, Shape};
use crate::lookup::PartitionLog;
use crate::names;
use crate::options::Options;
use crate::quarantine;
use crate::salvage::{self, Lost, Piece, What};
use crate::scan::{Found, Scanner, Source};
use crate::segments::{Segments, Spare, Step};
use crate::survey::{Directory, chain_of, finding, foreign, newest_in_use, survey};
use crate::wal::Wal;
use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use tidelog_io::{Completion, Io, IoError, IoErrorKind, Op, OpenMode, Output};
use tidelog_types::{
    EntryMeta, FixedMap, Generation, Index, Lsn, NodeId, PartitionId, Position, RecordHeader, RecordKind,
};

/// How long an opening waits for space for the one segment that it cannot do without.
const SPACE_PATIENCE: Duration = Duration::from_secs(3);

/// Learns what the log holds, in LSN order, while it is opened.
pub trait Replay {
    /// An entry; it follows the partition's last one.
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]);
    /// Every entry above `keep` is gone.
    fn cut(&mut self, partition: PartitionId, keep: Position);
    /// Generation and vote.
    fn promise(&mut self, partition: PartitionId, generation: Generation, vote: Option<NodeId>);
    /// The bytes of entries are lost. Either they follow the partition's last one, or they are in the log already and only
    /// their newest copies are lost.
    fn damaged(&mut self, partition: PartitionId, lost: Lost);
    /// A good copy of an entry that is in the log already: if it was lost, it is not any more.
    fn moved(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]);
    /// The high-water mark was at least here.
    fn high_water(&mut self, partition: PartitionId, mark: Index);
    /// Entries below `first` are not kept any more.
    fn low_water(&mut self, partition: PartitionId, first: Index) {
        let _ = (partition, first);
    }
    /// A durable snapshot covers everything up to `covered`.
    fn snapshot_mark(&mut self, partition: PartitionId, covered: Position) {
        let _ = (partition, covered);
    }
}

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
    /// Batches that were not good, and what was made of them.
    pub findings: Vec<Finding>,
    /// Records of the last life's unproven end that were written again.
    pub rewritten: u64,
    /// Promises and marks that were known from the spans of bad batches only, and were written again.
    pub adopted: u64,
    /// Entries whose bytes were lost when their batches were read, and were not found again further on.
    pub lost: u64,
    /// Files removed: leftovers of earlier lives.
    pub removed: usize,
    /// The disk was too full for all spares.
    pub no_space: bool,
}

/// What reading the log gives.
struct Judged {
    partitions: FixedMap<PartitionId, PartitionLog>,
    /// Where the log of the earlier epochs ends from now on.
    end: Lsn,
    /// The batch before that.
    link: Link,
    /// Batches behind the proven end.
    window: Vec<Held>,
    /// Promises of a suspect batch that was cut.
    promises: Vec<Span>,
    /// Partitions whose promise or marks are known from the spans of a bad batch only.
    adopted: BTreeSet<PartitionId>,
    /// Segments at the end in which nothing was ever written.
    blank: Vec<PathBuf>,
}

/// A batch of the newest epoch that is not proven yet.
struct Held {
    /// It may be left where it lies once everything before this is proven: itself, and, where only an echo says what it
    /// held, the batch with the echo. An echo behind the epoch's end is gone for the next opening.
    until: Lsn,
    link: Link,
    /// Whether there is anything in it.
    holds: bool,
    what: Tail,
}

enum Tail {
    /// Good: read again when it is written again.
    Good(Source, BatchHeader),
    /// Not good: its bytes as they were found, and what it is known to have held.
    Bad { lsn: Lsn, suspect: bool, bytes: Vec<u8>, pieces: Vec<Piece> },
}

impl Tail {
    fn lsn(&self) -> Lsn {
        match self {
            Tail::Good(_, header) => header.lsn,
            Tail::Bad { lsn, .. } => *lsn,
        }
    }
}

/// A batch being replayed.
struct Replayed<'b> {
    file: &'b Path,
    /// Its offset in the file, and its position.
    offset: u64,
    lsn: Lsn,
    bytes: &'b [u8],
    suspect: bool,
    /// What it holds is known from its spans.
    from_spans: bool,
}

struct Opening<'o, 'r> {
    options: &'o Options,
    replay: &'r mut dyn Replay,
    report: RecoveryReport,
}

/// Opens the log of `options.dir`; see [`Wal::open`].
pub(crate) fn open(
    io: &mut dyn Io,
    options: Options,
    replay: &mut dyn Replay,
) -> Result<(Wal, RecoveryReport, Vec<Completion>), OpenError> {
    options.check()?;
    let mut disk = Disk::new(io);
    let mut opening = Opening { options: &options, replay, report: RecoveryReport::default() };
    let began = disk.clock().now;
    let result = opening.run(&mut disk);
    opening.report.duration = disk.clock().now.since(began);
    let report = opening.report;
    if let Ok(wal) = &result {
        for file in wal.segments.files().chain([wal.active.file]) {
            disk.keep(file);
        }
    }
    let others = disk.finish();
    let wal = result?;
    tracing::info!(
        epoch = report.epoch,
        segments = report.segments,
        batches = report.batches,
        rewritten = report.rewritten,
        findings = report.findings.len(),
        "log opened"
    );
    Ok((wal, report, others))
}

impl Opening<'_, '_> {
    fn run(&mut self, disk: &mut Disk<'_>) -> Result<Wal, OpenError> {
        let dir = self.options.dir.clone();
        let gone = || OpenError::Gone { dir: dir.clone() };
        if !self.options.must_exist {
            disk.run(Op::CreateDir { path: dir.clone() })?;
            if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
                disk.run(Op::SyncDir { path: parent.to_path_buf() })?;
            }
        }
        let directory = survey(disk, &dir).map_err(|e| match e {
            OpenError::Io(error) if error.kind == IoErrorKind::NotFound && self.options.must_exist => gone(),
            other => other,
        })?;
        for source in &directory.sources {
            self.own(source)?;
        }
        let newest = newest_in_use(disk, &directory.sources)?;
        let chain = chain_of(&dir, &directory.sources, newest)?;
        self.report.fresh = newest == 0;
        // Before anything is made: the next attempt is to find what this one found.
        if self.report.fresh && self.options.must_exist {
            return Err(gone());
        }
        self.report.segments = chain.parts.iter().map(|p| p.segments.len()).sum();

        let mut judged = self.judge(disk, &directory.sources, &chain)?;
        // From here on files change. Leftovers go first: they may be what fills the disk.
        for path in &directory.unfinished {
            self.remove(disk, path)?;
        }
        for &at in &chain.left_over {
            if let Some(source) = directory.sources.get(at) {
                self.remove(disk, &source.path)?;
            }
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
        let live: Vec<_> = chain
            .parts
            .iter()
            .flat_map(|p| &p.segments)
            .filter_map(|&at| directory.sources.get(at))
            .collect();
        let mut wal = self.begin_epoch(disk, &directory, &judged, &live)?;
        for source in &live {
            if source.header.base < judged.end {
                wal.files.insert(source.header.base, source.header.end(), source.path.clone(), None);
            }
        }
        wal.partitions = std::mem::take(&mut judged.partitions);
        self.rewrite(disk, &mut wal, &mut judged)?;
        for log in wal.partitions.values_mut() {
            log.sequenced = log.last.index;
        }
        for source in &live {
            if source.header.base >= judged.end && !judged.blank.contains(&source.path) {
                self.remove(disk, &source.path)?;
            }
        }
        if let Some(error) = self.make_all(disk, &mut wal.segments, false)? {
            tracing::warn!(%error, "no space for all spares");
            self.report.no_space = true;
            wal.note_no_space();
        }
        Ok(wal)
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

    fn remove(&mut self, disk: &mut Disk<'_>, path: &Path) -> Result<(), OpenError> {
        match disk.run(Op::Remove { path: path.to_path_buf() }) {
            Ok(_) => self.report.removed += 1,
            Err(e) if e.kind == IoErrorKind::NotFound => {}
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// Reads the log and judges its tail.
    fn judge(&mut self, disk: &mut Disk<'_>, sources: &[Source], chain: &Chain) -> Result<Judged, OpenError> {
        let mut judged = Judged {
            partitions: FixedMap::default(),
            end: Lsn(0),
            link: Link::default(),
            window: Vec::new(),
            promises: Vec::new(),
            adopted: BTreeSet::new(),
            blank: Vec::new(),
        };
        // The batch before is known unless a bad one lies there.
        let mut link = Some(Link::default());
        for part in &chain.parts {
            let before = link.unwrap_or(judged.link);
            let mut scanner = Scanner::new(sources, part, link);
            let mut proven = part.start;
            let mut batches: VecDeque<Held> = VecDeque::new();
            let mut last_proven = None;
            let mut proven_records = 0;
            loop {
                match scanner.next(disk)? {
                    Found::Good(header) => {
                        let Some(source) = scanner.here().cloned() else { break };
                        let bytes = scanner.bytes(disk, &header)?;
                        self.report.batches += 1;
                        self.report.records += u64::from(header.record_count);
                        let batch = Replayed {
                            file: &source.path,
                            offset: source.offset(header.lsn),
                            lsn: header.lsn,
                            bytes,
                            suspect: false,
                            from_spans: false,
                        };
                        self.apply(&mut judged, &batch, &salvage::whole(bytes, &header))?;
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
                        let Some(mut finding) = finding(&scanner, &bad, &evidence, part.epoch) else { break };
                        // With other voters, what cannot be told from a torn write counts as damage: present, and absent.
                        let goes_on = match finding.verdict {
                            Verdict::Damaged => true,
                            Verdict::Suspect => !self.options.single_voter,
                            _ => false,
                        };
                        if let (true, Some((end, link))) = (goes_on, evidence.end) {
                            let suspect = finding.verdict == Verdict::Suspect;
                            if suspect {
                                let kept = quarantine::keep(disk, self.options, &scanner, &bad, &evidence)?;
                                finding.quarantined = kept;
                            }
                            tracing::error!(%finding, "the log goes on behind it");
                            let bytes = scanner.bad_bytes(disk, &bad, end)?.to_vec();
                            let pieces =
                                salvage::salvaged(&bytes, &finding.spans, Some(self.options.cluster_tag));
                            let (file, offset) = (&finding.file, finding.offset);
                            let batch = Replayed {
                                file,
                                offset,
                                lsn: bad.lsn,
                                bytes: &bytes,
                                suspect,
                                from_spans: true,
                            };
                            self.apply(&mut judged, &batch, &pieces)?;
                            let what = Tail::Bad { lsn: bad.lsn, suspect, bytes, pieces };
                            let until = evidence.known_by;
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
                                let kept = quarantine::keep(disk, self.options, &scanner, &bad, &evidence)?;
                                finding.quarantined = kept;
                                tracing::warn!(%finding, "cut, and there is no other voter to ask");
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
            while part.end.is_some()
                && let Some(last) = batches.pop_back()
            {
                // A bad one at the end of an epoch that the next one names.
                last_proven = Some(last.link);
                batches.clear();
            }
            if part.end.is_none() {
                // An epoch that proved nothing worth keeping is dropped whole; then the one before it ends where it
                // has ended since.
                if proven_records > 0 {
                    let rest = batches.front().map_or(proven, |held| held.what.lsn());
                    judged.end = proven.min(rest);
                    judged.link = last_proven.unwrap_or(before);
                } else {
                    judged.end = part.prev_epoch_end;
                    judged.link = before;
                }
                judged.window = batches.into();
            } else {
                judged.link = link.unwrap_or(last_proven.unwrap_or(before));
            }
        }
        Ok(judged)
    }

    /// Replays what a batch holds.
    fn apply(
        &mut self,
        judged: &mut Judged,
        batch: &Replayed<'_>,
        pieces: &[Piece],
    ) -> Result<(), OpenError> {
        for piece in pieces {
            let (partition, at) = (piece.partition, batch.lsn);
            let log = judged.partitions.entry(partition).or_default();
            let wrong = |offset: usize, index: Index, what| OpenError::Inconsistent {
                file: batch.file.to_path_buf(),
                offset: batch.offset + offset as u64,
                partition,
                index,
                what,
            };
            match &piece.what {
                What::Entry { offset, record, moved } => {
                    let lsn = at.plus(*offset as u64);
                    let bytes = record.record_bytes() as u32; // within a batch
                    let payload = batch.bytes.get(offset + record.head_bytes()..).unwrap_or_default();
                    let payload = payload.get(..record.payload_len as usize).unwrap_or_default();
                    if *moved {
                        if log.generation_at(record.index) != Some(record.generation) {
                            return Err(wrong(
                                *offset,
                                record.index,
                                "a copy of an entry that is not in the log",
                            ));
                        }
                        // Between the records of a bad batch may lie what cannot be walked over.
                        let batch_at = if batch.from_spans { Lsn(u64::MAX) } else { at };
                        log.relocate(record.position(), lsn, bytes, batch_at);
                        self.replay.moved(partition, &record.meta(), payload);
                    } else {
                        let follows = record.index == log.last.index.next()
                            && record.prev_generation == log.last.generation;
                        if !follows {
                            let what = "an entry does not follow the one before it: entries are lost";
                            return Err(wrong(*offset, record.index, what));
                        }
                        log.note(record.position(), lsn, bytes, at);
                        if batch.from_spans {
                            log.close();
                        }
                        self.replay.entry(partition, &record.meta(), payload);
                    }
                }
                What::Lost { first, last, generation, moved: false } => {
                    let follows = *first == log.last.index.next()
                        && *generation >= log.last.generation
                        && first <= last;
                    if !follows {
                        let what =
                            "a lost entry does not follow the one before it: other entries are lost as well";
                        return Err(wrong(0, *first, what));
                    }
                    log.note_lost(*first, Position::new(*last, *generation), at);
                    let (first, last, generation) = (*first, *last, *generation);
                    self.replay.damaged(partition, Lost { first, last, generation, suspect: batch.suspect });
                }
                // Unproven, the older copy still counts: nothing that it lies in is given back before a move is durable.
                What::Lost { moved: true, .. } if batch.suspect => {}
                What::Lost { first, last, generation, moved: true } => {
                    for index in first.0..=last.0 {
                        let index = Index(index);
                        if log.generation_at(index) != Some(*generation) {
                            return Err(wrong(0, index, "a lost copy of an entry that is not in the log"));
                        }
                        log.lose(Position::new(index, *generation), at);
                    }
                    let (first, last, generation) = (*first, *last, *generation);
                    self.replay.damaged(partition, Lost { first, last, generation, suspect: batch.suspect });
                }
                What::Control(record) => {
                    if batch.from_spans && record.kind != RecordKind::HighWater {
                        judged.adopted.insert(partition);
                    }
                    self.control(log, partition, record, at).map_err(|what| match what {
                        Some(what) => wrong(0, record.index, what),
                        None => OpenError::Newer {
                            file: batch.file.to_path_buf(),
                            offset: batch.offset,
                            what: format!("a record of kind {:?}", record.kind),
                        },
                    })?;
                    if !batch.from_spans && record.kind == RecordKind::Promise {
                        judged.adopted.remove(&partition);
                    }
                }
            }
        }
        Ok(())
    }

    /// Replays a control record. The error: what is wrong with it; none if it is not known.
    fn control(
        &mut self,
        log: &mut PartitionLog,
        partition: PartitionId,
        record: &RecordHeader,
        at: Lsn,
    ) -> Result<(), Option<&'static str>> {
        match record.kind {
            RecordKind::Cut => {
                if record.index > log.last.index || log.generation_at(record.index) != Some(record.generation)
                {
                    return Err(Some("a cut does not keep an entry of the log: entries are lost"));
                }
                if record.index < log.high_water {
                    return Err(Some("a cut goes below the high-water mark"));
                }
                log.cut(record.position());
                self.replay.cut(partition, record.position());
            }
            RecordKind::Promise => {
                log.generation = record.generation;
                log.vote = (record.index.0 != 0).then_some(NodeId(record.index.0));
                self.replay.promise(partition, log.generation, log.vote);
            }
            RecordKind::HighWater => {
                log.high_water = log.high_water.max(record.index);
                log.high_water_written = log.high_water;
                self.replay.high_water(partition, log.high_water);
            }
            RecordKind::LowWater => {
                if record.index < log.low_water || record.index > log.last.index.next() {
                    return Err(Some("a low-water mark goes back or beyond the log's end"));
                }
                log.low_water = record.index;
                self.replay.low_water(partition, log.low_water);
            }
            RecordKind::SnapshotMark => {
                if record.index > log.last.index {
                    return Err(Some("a snapshot mark names no entry of the log: entries are lost"));
                }
                log.snapshot = record.position();
                self.replay.snapshot_mark(partition, log.snapshot);
            }
            RecordKind::Lost => {
                let (mut first, last, generation) = (log.last.index.next(), record.index, record.generation);
                if last < first && log.generation_at(last) == Some(generation) {
                    first = last;
                    log.lose(record.position(), at);
                    self.replay.damaged(partition, Lost { first, last, generation, suspect: false });
                    return Ok(());
                }
                if last < first || generation < log.last.generation {
                    return Err(Some("lost entries that are in the log already"));
                }
                log.note_lost(first, record.position(), at);
                self.replay.damaged(partition, Lost { first, last, generation, suspect: true });
            }
            RecordKind::Moved => {}
            _ => return Err(None),
        }
        Ok(())
    }

    /// Makes the new epoch's first segment, and the log on it.
    fn begin_epoch(
        &mut self,
        disk: &mut Disk<'_>,
        directory: &Directory,
        judged: &Judged,
        live: &[&Source],
    ) -> Result<Wal, OpenError> {
        let headers = || directory.sources.iter().map(|s| s.header);
        let epoch = 1 + headers().map(|h| h.epoch).max().unwrap_or(0);
        self.report.epoch = epoch;
        let upcoming = SegmentHeader {
            shard: self.options.shard,
            store: self.options.store,
            node: self.options.node,
            segment_seq: 1 + headers().map(|h| h.segment_seq).max().unwrap_or(0),
            base: live.iter().map(|s| s.header.end()).max().unwrap_or(Lsn(0)),
            bytes: self.options.segment_bytes,
            epoch,
            prev_epoch_end: judged.end,
        };
        let mut free = VecDeque::new();
        let mut spare_number = 1;
        for &number in &directory.spares {
            spare_number = spare_number.max(number + 1);
            let path = self.options.dir.join(names::spare(number));
            let (file, bytes) = disk.open(&path, OpenMode::ReadWrite)?;
            if bytes == self.options.segment_bytes && free.len() <= self.options.spares {
                free.push_back(Spare { file, path });
            } else {
                disk.close(file)?;
                self.remove(disk, &path)?;
            }
        }
        let (pool, clock) = (disk.buffers(), disk.clock());
        let dir = self.options.dir.clone();
        let mut segments =
            Segments::new(dir.clone(), pool.clone(), upcoming, self.options.spares, free, spare_number);
        if let Some(error) = self.make_all(disk, &mut segments, true)? {
            return Err(OpenError::NoSpace { dir, segment_bytes: self.options.segment_bytes, error });
        }
        let Some(active) = segments.roll() else {
            return Err(OpenError::Missing { dir, lsn: upcoming.base });
        };
        let growing = Growing::new(pool, upcoming.start(), judged.link.seq + 1);
        Ok(Wal::new(self.options.clone(), epoch, growing, active, segments, judged.link, clock))
    }

    /// Runs the making of segments to completion: of the next one only, or of all. Returns the error if there is
    /// no space for all.
    fn make_all(
        &mut self,
        disk: &mut Disk<'_>,
        segments: &mut Segments,
        next_only: bool,
    ) -> Result<Option<IoError>, OpenError> {
        let mut full = None;
        // What has just been removed may take a moment to be free again: a process killed a moment ago can still have it open.
        let patience = disk.clock().now.after(SPACE_PATIENCE);
        while !(next_only && segments.next.is_some()) {
            let now = disk.clock().now;
            let Some(op) = segments.operation(now) else {
                match segments.retry_at().filter(|at| next_only && *at <= patience) {
                    Some(at) => disk.wait(at),
                    None => break,
                }
                continue;
            };
            let result = disk.run(op);
            if let Ok(Output::Opened { file, .. }) = &result {
                disk.adopt(*file);
            }
            match segments.done(result, now) {
                Step::On => {}
                Step::NoSpace(error) => full = Some(error),
                Step::Failed(error) => return Err(OpenError::Io(error.error)),
            }
        }
        Ok(full.filter(|_| !(next_only && segments.next.is_some())))
    }

    /// Writes the accepted window and what is known from spans only to the new epoch, and DONE.
    fn rewrite(&mut self, disk: &mut Disk<'_>, wal: &mut Wal, judged: &mut Judged) -> Result<(), OpenError> {
        let mut batches = Vec::new();
        let from = judged.window.first().map_or(Lsn(u64::MAX), |held| held.what.lsn());
        for held in std::mem::take(&mut judged.window) {
            let (source, header) = match held.what {
                Tail::Bad { suspect, bytes, mut pieces, .. } => {
                    // Without a copy that nobody was told of the older one counts.
                    pieces.retain(|p| !suspect || !matches!(p.what, What::Lost { moved: true, .. }));
                    batches.push((bytes, pieces));
                    continue;
                }
                Tail::Good(source, header) => (source, header),
            };
            let (file, bytes) = disk.open(&source.path, OpenMode::Read)?;
            let mut window = crate::window::Window::new(file, bytes);
            let view = window.view(disk, source.offset(header.lsn), header.total_len as usize)?;
            let bytes = view.to_vec();
            disk.close(file)?;
            if let Err(why) = crate::scan::check_records(&bytes, &header) {
                return Err(OpenError::Damaged(Box::new(Finding {
                    verdict: Verdict::Suspect,
                    file: source.path.clone(),
                    offset: source.offset(header.lsn),
                    lsn: header.lsn,
                    epoch: header.epoch,
                    bytes: u64::from(header.total_len),
                    why,
                    spans: Vec::new(),
                    quarantined: None,
                })));
            }
            let pieces = salvage::whole(&bytes, &header);
            batches.push((bytes, pieces));
        }
        let mut before = Vec::new();
        for piece in batches.iter().flat_map(|b| &b.1) {
            if let Some(log) = wal.partitions.get_mut(&piece.partition) {
                before.push((piece.partition, log.last));
                log.forget_from(from);
            }
        }
        for (bytes, pieces) in &batches {
            for piece in pieces {
                self.put_piece(disk, wal, bytes, piece)?;
                self.report.rewritten += 1;
            }
        }
        for (partition, last) in before.into_iter().rev() {
            let log = wal.partitions.entry(partition).or_default();
            assert_eq!(
                log.last, last,
                "writing the window again changes where entries lie, not which there are"
            );
        }
        for span in &judged.promises {
            let log = wal.partitions.entry(span.partition).or_default();
            let vote = (span.a.0 != 0).then_some(NodeId(span.a.0));
            let raises = span.generation > log.generation
                || (span.generation == log.generation && log.vote.is_none() && vote.is_some());
            if raises {
                log.generation = span.generation;
                log.vote = vote;
                self.replay.promise(span.partition, span.generation, vote);
                judged.adopted.insert(span.partition);
            }
        }
        // What rests on a bad batch's spans does so no longer.
        for partition in std::mem::take(&mut judged.adopted) {
            let log = wal.partitions.entry(partition).or_default();
            let (low_water, snapshot) = (log.low_water, log.snapshot);
            let records = [
                (log.generation > Generation::ZERO)
                    .then(|| RecordHeader::promise(partition, log.generation, log.vote)),
                (snapshot > Position::ZERO).then(|| RecordHeader {
                    index: snapshot.index,
                    generation: snapshot.generation,
                    ..RecordHeader::new(RecordKind::SnapshotMark, partition)
                }),
                (low_water > Index::ZERO).then(|| RecordHeader {
                    index: low_water,
                    ..RecordHeader::new(RecordKind::LowWater, partition)
                }),
            ];
            for record in records.into_iter().flatten() {
                self.put_control(disk, wal, &RecordHeader { cluster: self.options.cluster_tag, ..record })?;
                self.report.adopted += 1;
            }
        }
        self.write(disk, wal, FLAG_OPEN | FLAG_DONE)?;
        wal.sealed = self.report.rewritten + self.report.adopted == 0;
        Ok(())
    }

    fn put_piece(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        bytes: &[u8],
        piece: &Piece,
    ) -> Result<(), OpenError> {
        let (partition, cluster) = (piece.partition, self.options.cluster_tag);
        match &piece.what {
            // Copies are written with markers of their own.
            What::Control(record) if record.kind == RecordKind::Moved => Ok(()),
            What::Control(record) => self.put_control(disk, wal, record),
            What::Entry { offset, record, moved } => {
                if *moved {
                    let marker = RecordHeader {
                        index: Index(1),
                        cluster,
                        ..RecordHeader::new(RecordKind::Moved, partition)
                    };
                    self.put_control(disk, wal, &marker)?;
                }
                let whole = bytes.get(*offset..offset + record.record_bytes()).unwrap_or_default();
                self.put_again(disk, wal, record, whole, *moved)
            }
            What::Lost { last, generation, moved: false, .. } => {
                let record = salvage::lost_record(partition, Position::new(*last, *generation), cluster);
                self.put_control(disk, wal, &record)
            }
            What::Lost { first, last, generation, moved: true } => {
                for index in first.0..=last.0 {
                    let at = Position::new(Index(index), *generation);
                    self.put_control(disk, wal, &salvage::lost_record(partition, at, cluster))?;
                }
                Ok(())
            }
        }
    }

    fn put_control(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        header: &RecordHeader,
    ) -> Result<(), OpenError> {
        let mut record = [0; tidelog_types::record::HEADER_BYTES];
        header.encode(&mut record);
        self.put_again(disk, wal, header, &record, false)
    }

    fn put_again(
        &mut self,
        disk: &mut Disk<'_>,
        wal: &mut Wal,
        record: &RecordHeader,
        whole: &[u8],
        moved: bool,
    ) -> Result<(), OpenError> {
        let shape = Shape::of(record);
        let plan = loop {
            if let Some(plan) = wal.growing.plan(std::iter::once(shape), 1, Class::Control) {
                break plan;
            }
            self.write(disk, wal, FLAG_OPEN)?;
            if wal.growing.plan(std::iter::once(shape), 1, Class::Control).is_none() {
                // The segment is full: the next one.
                if let Some(error) = self.make_all(disk, &mut wal.segments, true)? {
                    let (dir, segment_bytes) = (self.options.dir.clone(), self.options.segment_bytes);
                    return Err(OpenError::NoSpace { dir, segment_bytes, error });
                }
                if !wal.roll() {
                    return Err(OpenError::Missing { dir: self.options.dir.clone(), lsn: wal.active.end });
                }
            }
        };
        wal.growing.begin(plan);
        let lsn = wal.growing.lsn;
        let log = wal.partitions.entry(record.partition).or_default();
        if record.kind.is_entry() {
            let offset = wal.growing.put_encoded(whole, shape);
            let (at, bytes) = (lsn.plus(offset as u64), whole.len() as u32); // within a batch
            if moved {
                log.relocate(record.position(), at, bytes, lsn);
                log.footer_span = (0, 0);
            } else {
                log.note(record.position(), at, bytes, lsn);
            }
            crate::moved::span(&mut wal.growing, log, record, offset);
            if moved {
                log.footer_span = (0, 0);
            }
        } else {
            match record.kind {
                RecordKind::Cut => log.cut(record.position()),
                RecordKind::Lost if record.index <= log.noted() => log.lose(record.position(), lsn),
                RecordKind::Lost => log.note_lost(log.noted().next(), record.position(), lsn),
                _ => {}
            }
            wal.growing.put_control(record);
        }
        Ok(())
    }

    fn write(&mut self, disk: &mut Disk<'_>, wal: &mut Wal, flags: u32) -> Result<(), OpenError> {
        let (frozen, op) = wal.freeze(flags);
        disk.run(op)?;
        wal.durable = frozen.end();
        Ok(())
    }
}

impl Wal {
    /// Opens the log in `options.dir`, or makes one: reads all of it, tells it to `replay`, and begins a new epoch
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
        open(io, options, replay)
    }
}
