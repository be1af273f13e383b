//! `tidelog wal verify`: whether what a log holds is whole, and where it is not.
//!
//! What it promises: exit code 1 if and only if something that may have been acknowledged is not whole, or nothing can be said
//! about it; what a crash leaves (a torn or suspect tail, left-over files), what a later record made worthless, and what another
//! copy still covers (a footer, one copy of a header) is named and is not damage. On a running node nothing is called damage
//! before two looks have found it.

use super::headers::{BadCopy, bad_copies};
use super::look::{Looked, look};
use super::{
    NO_IDENTITY, VerifyArgs, cannot_read, damaged_copy, eyes, identity, is_below, kind_name, logs, open_io,
};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Printer};
use serde::Serialize;
use std::path::Path;
use tidelog::config::unit::size_text;
use tidelog_types::RecordKind;
use tidelog_wal::{Finding, Verdict as WalVerdict};

pub(super) fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let mut io = open_io()?;
    let mut printer = Printer::new();
    let mut damaged = false;
    for dir in logs(io.as_mut(), &args.dirs)? {
        let identity = dir.parent().and_then(|data| identity(io.as_mut(), data));
        let looked = look(io.as_mut(), &dir, eyes(identity.as_ref().and_then(|found| found.as_ref().ok())));
        if let Some(error) = looked.unread() {
            return Err(cannot_read(error));
        }
        let headers_bad = bad_copies(io.as_mut(), &dir);
        let identity = match identity {
            Some(Ok(found)) => damaged_copy(&found)
                .map(|why| format!("{why}. The node starts by the other, and writes both")),
            Some(Err(why)) => Some(why),
            None => is_below(&args.dirs, &dir).then(|| NO_IDENTITY.to_owned()),
        };
        let verdict = Verdict::of(&dir, looked, headers_bad, identity);
        damaged |= verdict.outcome == "damaged";
        match args.output.output {
            Output::Json => printer.object(&verdict)?,
            Output::Text => {
                for line in verdict.lines() {
                    printer.line(line)?;
                }
            }
        }
        printer.flush()?;
    }
    Ok(if damaged { Exit::Failed } else { Exit::Done })
}

/// What became of one log.
#[derive(Serialize)]
struct Verdict {
    dir: String,
    /// `ok` or `damaged`.
    outcome: &'static str,
    epoch: u64,
    segments: usize,
    batches: u64,
    records: u64,
    bytes: u64,
    spares: usize,
    left_over: Vec<String>,
    partitions: Vec<Partition>,
    findings: Vec<Found>,
    /// Good batches whose footer is damaged.
    footers_bad: u64,
    /// Damaged copies of segment headers whose other copy is good.
    headers_bad: Vec<BadCopy>,
    /// Why the next start would refuse the log, other than for a finding; null: it would not.
    stopped: Option<String>,
    /// What is wrong with the data directory's identity file; null: nothing, or none was looked for.
    identity: Option<String>,
    /// What to make of it, in words.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Partition {
    partition: u64,
    /// 0: no entry.
    first: u64,
    last: u64,
    generation: u64,
    promised: u64,
    vote: Option<u64>,
    high_water: u64,
}

/// A batch that is not good.
#[derive(Serialize)]
pub(super) struct Found {
    verdict: String,
    file: String,
    offset: u64,
    lsn: u64,
    epoch: u64,
    bytes: u64,
    why: String,
    /// What it held; empty: not known.
    spans: Vec<Span>,
    #[serde(skip)]
    text: String,
}

#[derive(Serialize)]
struct Span {
    partition: u64,
    kind: &'static str,
    generation: u64,
    first: u64,
    last: u64,
}

impl From<&Finding> for Found {
    fn from(finding: &Finding) -> Found {
        let spans = finding.spans.iter().map(|span| Span {
            partition: span.partition.get(),
            kind: if span.kind == RecordKind::Data { "entries" } else { kind_name(span.kind) },
            generation: span.generation.get(),
            first: span.a.get(),
            last: span.last().get(),
        });
        Found {
            verdict: finding.verdict.to_string(),
            file: finding.file.display().to_string(),
            offset: finding.offset,
            lsn: finding.lsn.get(),
            epoch: finding.epoch,
            bytes: finding.bytes,
            why: finding.why.to_string(),
            spans: spans.collect(),
            text: finding.to_string(),
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Verdict {
    fn of(dir: &Path, looked: Looked, headers_bad: Vec<BadCopy>, identity: Option<String>) -> Verdict {
        let damaged = looked.is_damaged() || identity.is_some();
        let stopped = looked.refusals().next().map(ToString::to_string);
        let Looked { report, error: _, footers_bad } = looked;
        let notes = notes(&report.findings, damaged, footers_bad > 0 || !headers_bad.is_empty());
        Verdict {
            dir: dir.display().to_string(),
            outcome: if damaged { "damaged" } else { "ok" },
            epoch: report.epoch,
            segments: report.segments,
            batches: report.batches,
            records: report.records,
            bytes: report.bytes,
            spares: report.spares,
            left_over: report.left_over.iter().map(|path| path.display().to_string()).collect(),
            partitions: report
                .partitions
                .iter()
                .map(|(partition, end)| Partition {
                    partition: partition.get(),
                    first: end.first.get(),
                    last: end.last.index.get(),
                    generation: end.last.generation.get(),
                    promised: end.generation.get(),
                    vote: end.vote.map(|node| node.get()),
                    high_water: end.high_water.get(),
                })
                .collect(),
            findings: report.findings.iter().map(Found::from).collect(),
            footers_bad,
            headers_bad,
            stopped,
            identity,
            notes,
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{}: {}: epoch {}, {} segments, {} spares, {} batches, {} records, {} read",
            self.dir,
            self.outcome,
            self.epoch,
            self.segments,
            self.spares,
            self.batches,
            self.records,
            size_text(self.bytes),
        )];
        for p in &self.partitions {
            let entries = if p.last == 0 {
                "no entries".into()
            } else {
                format!("entries {}..={} (last of generation {})", p.first, p.last, p.generation)
            };
            let vote = p.vote.map_or(String::new(), |node| format!(", vote for node {node}"));
            lines.push(format!(
                "  partition {}: {entries}, promised generation {}{vote}, high-water hint {}",
                p.partition, p.promised, p.high_water
            ));
        }
        for path in &self.left_over {
            lines.push(format!("  left over: {path}: not part of the log"));
        }
        lines.extend(self.findings.iter().map(|found| format!("  {found}")));
        lines.extend(self.headers_bad.iter().map(|copy| format!("  {copy}")));
        if self.footers_bad > 0 {
            lines.push(format!("  {} good batches have a damaged footer", self.footers_bad));
        }
        if let Some(why) = &self.stopped {
            lines.push(format!("  not to be opened: {why}"));
        }
        if let Some(why) = &self.identity {
            lines.push(format!("  identity: {why}"));
        }
        lines.extend(self.notes.iter().map(|note| format!("  note: {note}")));
        lines
    }
}

/// What to make of the findings: one sentence a kind of verdict.
fn notes(findings: &[Finding], damaged: bool, covered: bool) -> Vec<String> {
    let has = |verdict| findings.iter().any(|finding| finding.verdict == verdict);
    let mut notes = Vec::new();
    let mut say = |when: bool, what: &str| {
        if when {
            notes.push(what.to_owned());
        }
    };
    say(
        has(WalVerdict::Torn),
        "torn: this write was not complete when its process or the power ended, or is being done just now; nothing in it was acknowledged, and the next start cuts it",
    );
    say(
        has(WalVerdict::Suspect),
        "suspect: this write may have been incomplete or is damaged, which cannot be told here; it was not acknowledged by this node unless it was complete. The next start sets it aside and cuts it",
    );
    say(has(WalVerdict::Superseded), "superseded: damaged, and a later record made it worthless");
    say(covered, "a damaged footer or copy of a header loses nothing: the other copy says the same");
    say(damaged, "damaged: keep this directory as it is; `tidelog wal repair DIR` says what can be done");
    notes
}
