//! `hunt MAX_SEEDS [SECONDS [FIRST]]`: runs seeds from FIRST (1) on until a checker notices something, and says how many it took. What only
//! an assertion of the product noticed is counted and passed over. Exit 0 if a checker did.

use std::process::ExitCode;
use tidelog_simulator::{NoticedBy, SimOptions, run_campaign};

fn main() -> ExitCode {
    let words: Vec<u64> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let at = |n: usize, default: u64| words.get(n).copied().unwrap_or(default);
    let options = SimOptions { seconds: at(1, 20), ..SimOptions::default() };
    let (mut seeds, mut assertions) = (0, 0);
    let mut first_assertion = String::new();
    let first = at(2, 1);
    run_campaign(&options, first..=first.saturating_add(at(0, 200)).saturating_sub(1), 2, |report| {
        seeds += 1;
        let Some(failure) = &report.failure else { return true };
        match failure.noticed_by {
            NoticedBy::Checker => {
                let line = serde_json::json!({
                    "caught": true, "seed": report.seed, "seeds": seeds, "invariant": failure.invariant,
                    "message": failure.message, "assertions": assertions, "first_assertion": first_assertion,
                });
                println!("{line}");
                // At once: what another seed makes of a seeded bug may take for ever.
                std::process::exit(0);
            }
            NoticedBy::Panic => {
                assertions += 1;
                if first_assertion.is_empty() {
                    first_assertion.clone_from(&failure.message);
                }
                true
            }
        }
    });
    let line = serde_json::json!({
        "caught": false, "seeds": seeds, "assertions": assertions, "first_assertion": first_assertion,
    });
    println!("{line}");
    ExitCode::FAILURE
}
