//! `tidelog wal verify`.

use super::{VerifyArgs, kind_name, logs, open_io};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Printer};
use serde::Serialize;
use std::path::Path;
use tidelog::config::unit::size_text;
use tidelog_types::RecordKind;
use tidelog_wal::Finding;
use tidelog_wal::inspect::{Report, verify};

pub(super) fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    let mut io = open_io()?;
    let mut printer = Printer::new();
    let mut damaged = false;
    for dir in logs(io.as_mut(), &args.dirs)? {
        let verdict = Verdict::of(&dir, verify(io.as_mut(), &dir));
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
    /// Why the rest was not looked at; null: all of it was.
    stopped: Option<String>,
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
    fn of(dir: &Path, result: Result<Report, tidelog_wal::OpenError>) -> Verdict {
        let (report, error) = match result {
            Ok(report) => (report, None),
            Err(error) => (Report::default(), Some(error.to_string())),
        };
        Verdict {
            dir: dir.display().to_string(),
            outcome: if error.is_some() || report.is_damaged() { "damaged" } else { "ok" },
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
            stopped: error.or(report.stopped.map(|error| error.to_string())),
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
        if let Some(why) = &self.stopped {
            lines.push(format!("  stopped: {why}"));
        }
        lines
    }
}
