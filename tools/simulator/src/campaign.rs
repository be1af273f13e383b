//! Many seeds on a few threads: each seed is a world of its own.

use crate::SimOptions;
use crate::report::{SeedReport, Summary};
use crate::run::run_seed;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;

/// Runs `seeds` with the other settings of `options` on `threads` threads. `told` gets each report as it comes, and says
/// whether to go on.
pub fn run_campaign(
    options: &SimOptions,
    seeds: RangeInclusive<u64>,
    threads: usize,
    mut told: impl FnMut(&SeedReport) -> bool,
) -> Summary {
    let next = AtomicU64::new(*seeds.start());
    let last = *seeds.end();
    let (reports, incoming) = mpsc::channel();
    let mut summary = Summary::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (reports, next) = (reports.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last || reports.send(run_seed(&SimOptions { seed, ..options.clone() })).is_err()
                    {
                        break;
                    }
                }
            });
        }
        drop(reports);
        let mut stopped = false;
        for report in incoming {
            summary.add(&report);
            if !stopped && !told(&report) {
                stopped = true;
                next.store(last + 1, Ordering::Relaxed);
            }
        }
    });
    summary.close();
    summary
}
