//! Runs seeds: `seeds FIRST LAST [SECONDS] [THREADS] [TRACE_LINES] [1: DAMAGE IN EACH]`. One JSON object per seed, then the summary.

use std::process::ExitCode;
use tidelog_simulator::{Outcome, SimOptions, run_campaign};

fn main() -> ExitCode {
    let words: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let at = |n: usize, default: u64| words.get(n).copied().unwrap_or(default);
    let first = at(0, 1);
    let (seconds, trace_lines, damage) = (at(2, 60), at(4, 0) as usize, at(5, 0) != 0);
    let options = SimOptions { seconds, trace_lines, damage, ..SimOptions::default() };
    let summary = run_campaign(&options, first..=at(1, first), at(3, 2) as usize, |report| {
        match serde_json::to_string(report) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("error: {error}"),
        }
        if let (Outcome::Failed, Some(failure)) = (report.outcome, &report.failure) {
            eprintln!(
                "seed {}: invariant {} ({:?}): {}",
                report.seed, failure.invariant, failure.noticed_by, failure.message
            );
        }
        true
    });
    match serde_json::to_string_pretty(&summary) {
        Ok(text) => eprintln!("{text}"),
        Err(error) => eprintln!("error: {error}"),
    }
    if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
