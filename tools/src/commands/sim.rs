//! `tidelog sim`: whole clusters of production code in a simulated world.

use crate::failure::{Exit, Failure};
use crate::flag;
use crate::output::{Output, OutputArgs, Printer};
use serde::Serialize;
use std::ops::Range;
use std::time::Duration;
use tidelog_bench::clock;
use tidelog_simulator::{NoticedBy, Outcome, SeedReport, SimOptions, Summary, run_campaign};

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog sim --seed 7
  tidelog sim --seeds 0..200 --output json
  tidelog sim --minutes 30

The same seed and version give the same run; a failure says which invariant, at which event, and how to replay it. Exit code
1 on any failure, in a campaign of 200 seeds or more if a fault never fired, and if more than one seed and one of fifty ends
undecided: torn writes on several nodes, of which nobody can tell whether they were complete, so a partition rightly waits.";

/// Lines of the trace that come with a failure of a single seed.
const TRACE_LINES: usize = 40;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One seed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// A range of seeds: A..B, A..=B, or how many
    #[arg(long, value_name = "A..B", conflicts_with = "seed", value_parser = flag::seeds)]
    pub(crate) seeds: Option<Range<u64>>,
    /// One seed after the other for so long
    #[arg(long, value_name = "M", conflicts_with_all = ["seed", "seeds"], value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) minutes: Option<u64>,
    /// Simulated seconds under faults, for each seed
    #[arg(long, value_name = "S", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) seconds: u64,
    /// Bytes of disks go bad in each seed, not only in some, as far as a good copy of each entry is left on some node
    #[arg(long)]
    pub(crate) damage: bool,
    /// Seeds at a time; as many as there are cores without it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) threads: Option<u16>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Serialize)]
struct End<'a> {
    event: &'static str,
    took_s: f64,
    #[serde(flatten)]
    summary: &'a Summary,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let begun = clock::now();
    let limit = args.minutes.map(|m| Duration::from_secs(60 * m));
    let seeds = match (args.seed, args.seeds) {
        (Some(seed), _) => seed..=seed,
        (None, Some(range)) => range.start..=range.end - 1,
        (None, None) if limit.is_some() => 0..=u64::MAX - 1,
        (None, None) => 0..=0,
    };
    let trace_lines = if args.seed.is_some() { TRACE_LINES } else { 0 };
    let options =
        SimOptions { seconds: args.seconds, damage: args.damage, trace_lines, ..SimOptions::default() };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.map_or(cores, usize::from);
    let mut out = Printer::new();
    let mut broken = None;
    let json = args.output.output == Output::Json;
    let summary = run_campaign(&options, seeds, threads, |report| {
        let told = if json { out.object(report) } else { tell(&mut out, report) }.and_then(|()| out.flush());
        broken = told.err();
        broken.is_none() && limit.is_none_or(|limit| clock::now().since(begun) < limit)
    });
    if let Some(error) = broken {
        return Err(error.into());
    }
    let took = clock::now().since(begun);
    if json {
        out.object(&End { event: "end", took_s: took.as_secs_f64(), summary: &summary })?;
    } else {
        end(&mut out, &summary, took)?;
    }
    out.flush()?;
    Ok(if summary.passed() { Exit::Done } else { Exit::Failed })
}

fn tell(out: &mut Printer, report: &SeedReport) -> std::io::Result<()> {
    let outcome = match report.outcome {
        Outcome::Ok => "ok",
        Outcome::Thin => "ok, but too little happened to count",
        Outcome::Undecided => "ok, but a partition waits: nobody can tell whether an entry was committed",
        Outcome::Failed => "FAILED",
    };
    out.line(format!(
        "seed {}: {outcome}  {} nodes, {} partitions, {} commits, {} elections, {} crashes, {} recoveries, {} events, trace {}",
        report.seed,
        report.nodes,
        report.partitions,
        report.commits,
        report.elections,
        report.crashes,
        report.recoveries,
        report.events,
        report.trace_hash
    ))?;
    let Some(failure) = &report.failure else { return Ok(()) };
    let by = match failure.noticed_by {
        NoticedBy::Checker => "a checker",
        NoticedBy::Panic => "an assertion of the product",
    };
    out.line(format!(
        "  invariant {} broken at event {}, {} ms, noticed by {by}: {}",
        failure.invariant, failure.event, failure.at_ms, failure.message
    ))?;
    failure.state.iter().chain(&failure.trace).try_for_each(|line| out.line(format!("  {line}")))?;
    out.line(format!("  replay: {}", failure.replay))
}

fn end(out: &mut Printer, summary: &Summary, took: Duration) -> std::io::Result<()> {
    let hours = summary.simulated_ms as f64 / 3_600_000.0;
    out.line(format!(
        "{} seeds in {:.0} s: {} ok, {} too thin to count {:?}, {} that wait undecided {:?}, {} failed {:?}; {hours:.2} simulated hours, {} events, {} commits, {} elections, {} crashes, {} recoveries",
        summary.seeds,
        took.as_secs_f64(),
        summary.ok,
        summary.thin.len(),
        summary.thin,
        summary.undecided.len(),
        summary.undecided,
        summary.failed.len(),
        summary.failed,
        summary.events,
        summary.commits,
        summary.elections,
        summary.crashes,
        summary.recoveries
    ))?;
    let faults: Vec<String> = summary.faults.iter().map(|(name, count)| format!("{name} {count}")).collect();
    out.line(format!("faults fired: {}", faults.join(", ")))?;
    if summary.too_undecided() {
        out.line("FAILED: so many seeds end undecided that they prove too little".to_owned())?;
    }
    if !summary.faults_never_fired.is_empty() {
        out.line(format!("FAILED: these faults never fired: {}", summary.faults_never_fired.join(", ")))?;
    }
    Ok(())
}
