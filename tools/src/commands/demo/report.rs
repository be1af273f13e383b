//! What a demo came to, for people and for programs, and on disk.

use super::Talk;
use super::ledger::Findings;
use crate::failure::Failure;
use crate::output::{Output, Printer};
use crate::preflight::Preflight;
use serde::Serialize;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use tidelog_bench::latency::{Latencies, LatencySummary};

/// The SIGKILL of a leader and what followed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Kill {
    /// The node killed.
    pub(super) node: u64,
    /// The partitions that it led.
    pub(super) partitions: Vec<u64>,
    /// Since the load began.
    pub(super) at_ms: u64,
    /// Until the last of these partitions acknowledged a record sent after the kill; null if it never did.
    pub(super) fail_over_ms: Option<u64>,
    /// Until the restarted process was ready, from its start.
    pub(super) restart_ms: Option<u64>,
}

/// One replica's copy.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Copy {
    /// The node.
    pub(super) node: u64,
    /// `node`: read from the running node, without forwarding. `files`: from its log's files after the stop.
    pub(super) source: &'static str,
    /// What was wrong with it.
    pub(super) findings: Findings,
    /// With `--input`: SHA-256 of the file put together again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
}

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) nodes: u64,
    pub(super) partitions: u64,
    pub(super) seconds: f64,
    pub(super) payload_bytes: Option<u64>,
    pub(super) offered: u64,
    pub(super) acked: u64,
    pub(super) unknown: u64,
    pub(super) refused: u64,
    pub(super) records_per_s: f64,
    /// Of the load outside the fail-over, in percent.
    pub(super) acked_outside_fail_over_percent: f64,
    /// From the intended start.
    pub(super) latency_us: LatencySummary,
    pub(super) kill: Option<Kill>,
    pub(super) copies: Vec<Copy>,
    /// With `--input`: SHA-256 of the file.
    pub(super) input_sha256: Option<String>,
    #[serde(skip)]
    pub(super) latencies: Latencies,
}

/// Least acknowledged part of the load outside the fail-over.
const ACKED_PERCENT_MIN: f64 = 90.0;

impl Outcome {
    pub(super) fn is_good(&self) -> bool {
        self.copies.iter().all(|c| c.findings.is_good() && c.sha256 == self.input_sha256)
            && self.acked > 0
            && self.acked_outside_fail_over_percent >= ACKED_PERCENT_MIN
            && self.kill.as_ref().is_none_or(|k| k.fail_over_ms.is_some() && k.restart_ms.is_some())
    }
}

#[derive(Serialize)]
struct Document<'a> {
    event: &'static str,
    verdict: &'static str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    preflight: &'a Preflight,
    report: String,
}

/// Where the report lies, and the object itself.
pub(super) struct Written {
    dir: PathBuf,
    json: String,
}

/// Writes `report.json`, `latency.hlog` and `config.toml`.
pub(super) fn write(
    dir: &Path,
    outcome: &Outcome,
    preflight: &Preflight,
    config: &str,
) -> Result<Written, Failure> {
    let failed = |e: &dyn std::fmt::Display| {
        Failure::failed(format!("cannot write the report to {}: {e}", dir.display()))
    };
    let document = Document {
        event: "demo",
        verdict: if outcome.is_good() { "ok" } else { "failed" },
        outcome,
        preflight,
        report: dir.display().to_string(),
    };
    let json = serde_json::to_string(&document).map_err(|e| failed(&e))?;
    let pretty = serde_json::to_string_pretty(&document).map_err(|e| failed(&e))?;
    std::fs::write(dir.join("report.json"), pretty).map_err(|e| failed(&e))?;
    let effective = tidelog::config::Config::parse(config, "the demo's configuration")?.to_toml();
    std::fs::write(dir.join("config.toml"), effective).map_err(|e| failed(&e))?;
    let mut log = BufWriter::new(File::create(dir.join("latency.hlog")).map_err(|e| failed(&e))?);
    outcome
        .latencies
        .write_log(&mut log, "tidelog demo: acknowledged appends, from the intended start")
        .map_err(|e| failed(&e))?;
    log.flush().map_err(|e| failed(&e))?;
    Ok(Written { dir: dir.to_owned(), json })
}

/// The end of what the run prints.
pub(super) fn show(outcome: &Outcome, written: &Written, output: Output, talk: &Talk) -> Result<(), Failure> {
    if output == Output::Json {
        let mut out = Printer::new();
        out.line(&written.json)?;
        out.flush()?;
        return Ok(());
    }
    talk.say("");
    if let Some(kill) = &outcome.kill {
        let ms = |t: Option<u64>| t.map_or("never".into(), |t| format!("{t} ms"));
        talk.say(format!(
            "fail-over  node {} killed at {:.1} s while leading partitions {:?}: acknowledging again after {}; restarted and ready in {}",
            kill.node, kill.at_ms as f64 / 1000.0, kill.partitions, ms(kill.fail_over_ms), ms(kill.restart_ms)
        ));
    }
    talk.say(format!(
        "clients    {} offered: {} acknowledged, {} unknown, {} refused; {:.1} % acknowledged outside the fail-over; {:.0} records/s",
        outcome.offered, outcome.acked, outcome.unknown, outcome.refused, outcome.acked_outside_fail_over_percent, outcome.records_per_s
    ));
    let l = &outcome.latency_us;
    talk.say("latency    from the intended start, of acknowledged records (ms)");
    talk.say("             p50       p90       p99       p99.9     max");
    let ms = |us: f64| format!("{:<9.2}", us / 1000.0);
    talk.say(format!("             {} {} {} {} {}", ms(l.p50), ms(l.p90), ms(l.p99), ms(l.p999), ms(l.max)));
    talk.say("copies     compared with the clients' own log of acknowledgements");
    talk.say("             node  read from  records   missing  changed  doubled  out of order  refused but there  unknown and there");
    for copy in &outcome.copies {
        let f = &copy.findings;
        talk.say(format!(
            "             {:<4}  {:<9}  {:<8}  {:<7}  {:<7}  {:<7}  {:<12}  {:<17}  {}",
            copy.node,
            copy.source,
            f.records,
            f.missing,
            f.changed,
            f.doubled,
            f.out_of_order,
            f.refused_but_present,
            f.unknown_and_present
        ));
        if let Some(sha256) = &copy.sha256 {
            let same =
                if Some(sha256) == outcome.input_sha256.as_ref() { "the file's" } else { "NOT the file's" };
            talk.say(format!("                   sha256 {sha256}, {same}"));
        }
    }
    let verdict = if outcome.is_good() {
        "OK: everything acknowledged is on every node, once, unchanged and in order".to_owned()
    } else if outcome.copies.iter().all(|c| c.findings.is_good() && c.sha256 == outcome.input_sha256) {
        format!(
            "FAILED: nothing acknowledged is lost, but {ACKED_PERCENT_MIN} % of the load outside the fail-over must be acknowledged, and every partition and node must come back"
        )
    } else {
        "FAILED: a copy differs from what was acknowledged; the data directories are kept".to_owned()
    };
    talk.say(format!("verdict    {verdict}"));
    talk.say(format!(
        "report     {}: report.json, latency.hlog (HdrHistogram), config.toml (effective)",
        written.dir.display()
    ));
    Ok(())
}
