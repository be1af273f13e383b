//! `tidelog wal repair`: what can be put right in a stopped node's log, and on request does it.
//!
//! What it promises: without `--apply` nothing changes. With it, the directory is locked, every file that changes is copied first,
//! durably, and nothing goes that may have been committed. What it does is therefore little: it writes a damaged copy of a segment's
//! header again from the other copy, removes files that are not part of a sound log, and lets the log's own recovery cut the torn
//! or suspect tail of a log that has no other voter. What is damaged stays as it is: entries come back from the other voters
//! when the node runs, which can prove what belongs there; a tool that looks at one disk cannot.
//!
//! How it fails: an error of the disk ends it; what was done by then was each durable and safe by itself, and the backup has what
//! was there before.

use super::backup::{Backup, list};
use super::headers::{BadCopy, bad_copies, rewrite};
use super::look::{Looked, is_damage, look};
use super::{RepairArgs, cannot_read, damaged_copy, eyes, identity, logs, open_io};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Printer};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tidelog::identity::{Found, Identity};
use tidelog_io::{Foreground, Io, IoError, Op};
use tidelog_types::{EntryMeta, Generation, Index, NodeId, PartitionId, Position};
use tidelog_wal::inspect::Eyes;
use tidelog_wal::{Finding, Lost, Options, RecoveryReport, Replay, Verdict, Wal};

pub(super) fn run(args: &RepairArgs) -> Result<Exit, Failure> {
    let mut io = open_io()?;
    let io = io.as_mut();
    let dirs = logs(io, std::slice::from_ref(&args.dir))?;
    // A shard's own directory may be named: the identity and the lock are beside it.
    let data_dir = match dirs.first() {
        Some(shard) => {
            shard.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
        }
        None => args.dir.clone(),
    };
    let _lock = if args.apply { Some(hold(&data_dir)?) } else { None };
    let identity = identity(io, &data_dir);
    let mut backup = None;
    let (mut printer, mut exit) = (Printer::new(), Exit::Done);
    for dir in dirs {
        let mut plan = Plan::make(io, &dir, identity.as_ref())?;
        if args.apply && !plan.steps.is_empty() {
            let parent = args.backup.as_deref().unwrap_or(&data_dir);
            let kept = match &mut backup {
                Some(kept) => kept,
                none => none.insert(Backup::begin(io, parent).map_err(nothing_changed)?),
            };
            plan.apply(io, &dir, kept)?;
        }
        if !plan.left.is_empty() {
            exit = Exit::Failed;
        }
        match args.output.output {
            Output::Json => printer.object(&plan)?,
            Output::Text => {
                for line in plan.lines() {
                    printer.line(line)?;
                }
            }
        }
        printer.flush()?;
    }
    Ok(exit)
}

fn hold(data_dir: &Path) -> Result<tidelog_io::DirectoryLock, Failure> {
    tidelog_io::lock_directory(data_dir).map_err(|error| {
        Failure::failed(error).advise("stop the node first; without --apply the plan is shown while it runs")
    })
}

fn nothing_changed(error: IoError) -> Failure {
    Failure::failed(format!("no backup could be made: {error}"))
        .advise("nothing was changed; --backup DIR puts the backup on another disk")
}

/// What is to be done with one shard's log.
#[derive(Serialize)]
struct Plan {
    dir: String,
    /// `sound`: nothing to do. `planned`, `applied`: the steps. `damaged`: something is left that this command cannot put right.
    outcome: &'static str,
    steps: Vec<Step>,
    /// What stays as it is.
    left: Vec<Left>,
    /// Where the files lie as they were; null: nothing was changed.
    backup: Option<String>,
    #[serde(skip)]
    recovery: Option<Box<Recovery>>,
}

/// One thing to do; each leaves a sound log.
#[derive(Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
enum Step {
    /// The copy of a header that is damaged is written again from the good one.
    RewriteHeader { copy: BadCopy },
    /// A file that is not part of the log is removed.
    RemoveFile { file: String, why: &'static str },
    /// The log's own recovery cuts the tail, as the next start would.
    CutTail { file: String, offset: u64, verdict: String, bytes: u64, text: String },
}

/// Something that stays as it is.
#[derive(Serialize)]
struct Left {
    verdict: String,
    what: String,
    next: &'static str,
}

/// What the log's own recovery needs to know.
struct Recovery {
    options: Options,
    /// Files that it may remove or that lie behind what it keeps.
    touched: Vec<PathBuf>,
}

const FROM_PEERS: &str = "the other voters of these partitions have it: start this node while they run. It counts as there \
                          for votes and is neither acknowledged nor served until it is whole again; if this version cannot fetch it, the \
                          node says so and stays down, and the others go on";
const ONLY_COPY: &str = "this is the only copy: nothing is cut, because it may have been acknowledged. Copy the directory away, try to read \
                         the disk again (the kernel's log says whether it failed), or restore a backup of it, which loses what came later";
const UNKNOWN: &str = "what it held is not known, a promise perhaps: this replica must not vote again from this directory. Keep it, and \
                       let the other voters go on without it";
const IDENTITY: &str = "restore the identity file from a backup of this directory; without it nothing here may be changed or voted with";
const IDENTITY_COPY: &str = "start the node: it starts by the other copy, and writes both";

impl Plan {
    fn make(io: &mut dyn Io, dir: &Path, identity: Option<&Result<Found, String>>) -> Result<Plan, Failure> {
        let looked = look(io, dir, eyes(identity.and_then(|found| found.as_ref().ok())));
        if let Some(error) = looked.unread() {
            return Err(cannot_read(error));
        }
        let mut plan = Plan {
            dir: dir.display().to_string(),
            outcome: "sound",
            steps: Vec::new(),
            left: Vec::new(),
            backup: None,
            recovery: None,
        };
        let copies = bad_copies(io, dir);
        plan.steps.extend(copies.into_iter().map(|copy| Step::RewriteHeader { copy }));
        let identity = match identity {
            Some(Ok(found)) => {
                if let Some(why) = damaged_copy(found) {
                    plan.leave("identity", why, IDENTITY_COPY);
                }
                Some(&found.identity)
            }
            Some(Err(why)) => {
                plan.leave("identity", why.clone(), IDENTITY);
                None
            }
            None => {
                plan.leave("identity", "there is no identity file beside this log".into(), IDENTITY);
                None
            }
        };
        let alone = identity.is_some_and(|identity| identity.replication == 1);
        for finding in looked.report.findings.iter().filter(|finding| is_damage(finding)) {
            let next = match (finding.verdict, alone) {
                (_, true) => ONLY_COPY,
                (Verdict::Damaged, false) => FROM_PEERS,
                _ => UNKNOWN,
            };
            plan.leave(&finding.verdict.to_string(), finding.to_string(), next);
        }
        for error in looked.refusals() {
            plan.leave("unknown", error.to_string(), if alone { ONLY_COPY } else { UNKNOWN });
        }
        // What the log is made of is only known where all of it is sound.
        if let Some(identity) = identity
            && !looked.is_damaged()
        {
            plan.sound(io, dir, identity, &looked)?;
        }
        plan.outcome = match (plan.left.is_empty(), plan.steps.is_empty()) {
            (false, _) => "damaged",
            (true, false) => "planned",
            (true, true) => "sound",
        };
        Ok(plan)
    }

    /// The steps for a log that is sound but for what a crash leaves.
    fn sound(
        &mut self,
        io: &mut dyn Io,
        dir: &Path,
        identity: &Identity,
        looked: &Looked,
    ) -> Result<(), Failure> {
        for file in &looked.report.left_over {
            let why = "a segment of an opening that did not end, or behind the proven end of an earlier life";
            self.steps.push(Step::RemoveFile { file: file.display().to_string(), why });
        }
        let names = list(&mut Foreground::new(io), dir).map_err(Failure::failed)?;
        for name in names.iter().filter(|name| is_unfinished(name)) {
            let file = dir.join(name).display().to_string();
            self.steps.push(Step::RemoveFile { file, why: "a segment or spare whose making did not end" });
        }
        let tail = |finding: &&Finding| matches!(finding.verdict, Verdict::Torn | Verdict::Suspect);
        let Some(finding) = looked.report.findings.iter().find(tail) else { return Ok(()) };
        if identity.replication != 1 {
            // Others have what was in it, or nobody acknowledged it: judging it is the protocol's business.
            return Ok(());
        }
        let segments = bases(dir, &names);
        let at = segments.iter().position(|file| *file == finding.file).unwrap_or(0);
        let segment_bytes = std::fs::metadata(&finding.file).map_err(Failure::failed)?.len();
        let spares = names.iter().filter(|name| name.starts_with("free-") && name.ends_with(".wal")).count();
        let shard = dir.file_name().and_then(|name| name.to_str()?.strip_prefix("shard-")?.parse().ok());
        let Some((shard, formed)) = shard.zip(identity.formed.as_ref()) else { return Ok(()) };
        self.steps.push(Step::CutTail {
            file: finding.file.display().to_string(),
            offset: finding.offset,
            verdict: finding.verdict.to_string(),
            bytes: finding.bytes,
            text: finding.to_string(),
        });
        self.recovery = Some(Box::new(Recovery {
            options: Options {
                cluster_tag: formed.cluster.tag(),
                segment_bytes,
                spares: spares.clamp(1, tidelog_wal::SPARES_LIMIT),
                single_voter: true,
                must_exist: true,
                ..Options::new(dir, identity.node, tidelog_types::ShardId(shard), identity.incarnation)
            },
            // Batches that are good and not proven are written again: they lie at most one segment before.
            touched: segments.into_iter().skip(at.saturating_sub(1)).collect(),
        }));
        Ok(())
    }

    fn leave(&mut self, verdict: &str, what: String, next: &'static str) {
        self.left.push(Left { verdict: verdict.to_owned(), what, next });
    }

    /// Does it, under the directory's lock.
    fn apply(&mut self, io: &mut dyn Io, dir: &Path, backup: &Backup) -> Result<(), Failure> {
        let mut touched: BTreeSet<PathBuf> = BTreeSet::new();
        for step in &self.steps {
            match step {
                Step::RewriteHeader { copy } => drop(touched.insert(copy.file.clone())),
                Step::RemoveFile { file, .. } => drop(touched.insert(file.into())),
                Step::CutTail { .. } => {}
            }
        }
        touched.extend(self.recovery.iter().flat_map(|recovery| recovery.touched.clone()));
        for file in &touched {
            backup.keep(io, dir, file).map_err(nothing_changed)?;
        }
        self.backup = Some(backup.dir.display().to_string());
        let failed = |error: IoError| {
            Failure::failed(error).advise(format!("the files as they were lie in {}", backup.dir.display()))
        };
        for step in &self.steps {
            match step {
                Step::RewriteHeader { copy } => rewrite(io, copy).map_err(failed)?,
                Step::RemoveFile { file, .. } => {
                    let mut fg = Foreground::new(io);
                    fg.run(Op::Remove { path: file.into() }).map_err(failed)?;
                    fg.run(Op::SyncDir { path: dir.to_owned() }).map_err(failed)?;
                }
                Step::CutTail { .. } => {}
            }
        }
        if let Some(recovery) = &self.recovery {
            let report = recover(io, recovery.options.clone()).map_err(|error| {
                Failure::failed(error)
                    .advise(format!("the files as they were lie in {}", backup.dir.display()))
            })?;
            tracing::debug!(epoch = report.epoch, rewritten = report.rewritten, "recovered");
        }
        let alone = self.recovery.is_some();
        let after = look(io, dir, Eyes { single_voter: alone, ..Eyes::default() });
        for error in after.error.iter().chain(&after.report.stopped) {
            self.leave("unknown", error.to_string(), "keep the directory and the backup");
        }
        if self.outcome == "planned" && self.left.is_empty() {
            self.outcome = "applied";
        } else {
            self.outcome = "damaged";
        }
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![match self.outcome {
            "sound" => format!("{}: sound: nothing to do", self.dir),
            "planned" => format!("{}: planned, nothing is changed: run again with --apply", self.dir),
            outcome => format!("{}: {outcome}", self.dir),
        }];
        lines.extend(self.steps.iter().map(|step| format!("  {step}")));
        if let Some(backup) = &self.backup {
            lines.push(format!("  done; the files as they were lie in {backup}"));
        }
        for left in &self.left {
            lines.push(format!("  left as it is: {}: {}", left.verdict, left.what));
            lines.push(format!("    next: {}", left.next));
        }
        lines
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::RewriteHeader { copy } => {
                write!(
                    f,
                    "write the header at byte {} of {} again: {}",
                    copy.offset,
                    copy.file.display(),
                    copy.why
                )
            }
            Step::RemoveFile { file, why } => write!(f, "remove {file}: {why}"),
            Step::CutTail { text, .. } => write!(f, "cut the tail, as the next start would: {text}"),
        }
    }
}

/// A file whose making did not end: worthless by its name.
fn is_unfinished(name: &str) -> bool {
    let base = |stem: &str| stem.len() == 16 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    let spare = |stem: &str| stem.strip_prefix("free-").is_some_and(|number| number.parse::<u64>().is_ok());
    name.strip_suffix(".tmp").is_some_and(|stem| base(stem) || spare(stem))
}

/// The segments of a directory, by position.
fn bases(dir: &Path, names: &[String]) -> Vec<PathBuf> {
    let is_segment = |name: &&String| name.ends_with(".wal") && !name.starts_with("free-");
    let mut names: Vec<&String> = names.iter().filter(is_segment).collect();
    names.sort_unstable(); // fixed width, hexadecimal: by position
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// Nobody is to be told what the log holds.
struct Quiet;

impl Replay for Quiet {
    fn entry(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn cut(&mut self, _: PartitionId, _: Position) {}
    fn promise(&mut self, _: PartitionId, _: Generation, _: Option<NodeId>) {}
    fn damaged(&mut self, _: PartitionId, _: Lost) {}
    fn moved(&mut self, _: PartitionId, _: &EntryMeta, _: &[u8]) {}
    fn checkpoint(&mut self, _: PartitionId, _: &[u8]) {}
    fn high_water(&mut self, _: PartitionId, _: Index) {}
}

/// Opens the log as a start would, and closes it.
fn recover(io: &mut dyn Io, options: Options) -> Result<RecoveryReport, tidelog_wal::OpenError> {
    let (mut wal, report, _) = Wal::open(io, options, &mut Quiet)?;
    wal.close(io);
    Ok(report)
}
