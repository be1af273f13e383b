//! A few short seeds: nothing is broken, and a seed is a run, within a process and across processes.

use tidelog_simulator::{Outcome, SimOptions, Summary, run_campaign, run_seed};

const SECONDS: u64 = 8;

fn options(seed: u64) -> SimOptions {
    SimOptions { seed, seconds: SECONDS, ..SimOptions::default() }
}

#[test]
fn seeds_hold_every_invariant() {
    let mut broken = Vec::new();
    let summary = run_campaign(&options(0), 1..=12, 2, |report| {
        broken.extend(
            report.failure.clone().map(|f| format!("seed {}: {}: {}", report.seed, f.message, f.replay)),
        );
        true
    });
    assert!(broken.is_empty(), "{broken:#?}");
    assert_eq!(summary.seeds, 12);
    assert!(summary.commits > 5_000 && summary.recoveries > 20 && summary.elections > 12, "{summary:?}");
    assert!(summary.faults.values().filter(|count| **count > 0).count() > 15, "{:?}", summary.faults);
}

#[test]
fn a_seed_is_a_run() {
    let (first, again, other) = (run_seed(&options(21)), run_seed(&options(21)), run_seed(&options(22)));
    assert_eq!(first, again);
    assert_ne!(first.trace_hash, other.trace_hash);
}

#[test]
fn a_seed_is_the_same_run_in_another_process() {
    let here = run_seed(&options(23));
    let this = std::env::current_exe().expect("a test is a program");
    let output = std::process::Command::new(this)
        .args(["--exact", "prints_a_trace_hash", "--ignored", "--nocapture"])
        .output()
        .expect("it runs once more");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let there = printed.split("trace hash ").nth(1).and_then(|rest| rest.split_whitespace().next());
    assert_eq!(there, Some(here.trace_hash.as_str()), "{printed}");
}

#[test]
#[ignore = "the other process of the test above"]
fn prints_a_trace_hash() {
    println!("trace hash {}", run_seed(&options(23)).trace_hash);
}

#[test]
fn a_campaign_that_never_sees_a_fault_fails() {
    let report = run_seed(&SimOptions { seed: 1, seconds: 1, ..SimOptions::default() });
    assert_ne!(report.outcome, Outcome::Failed, "{:?}", report.failure);
    let never = "a fault that nothing draws";
    let mut summary = Summary::default();
    for _ in 0..Summary::FAULTS_EXPECTED_FROM {
        let mut report = report.clone();
        report.faults.values_mut().for_each(|count| *count += 1);
        report.faults.insert(never.into(), 0);
        report.faults.insert("misdirected write".into(), 0);
        summary.add(&report);
    }
    summary.close();
    assert_eq!(summary.faults_never_fired, [never]);
    assert!(!summary.passed());
}
