//! The deterministic simulator: whole clusters of production code in a simulated world.
//!
//! Each node is the engine's own shard with its log, its replicas and the network crate's transport, over
//! `tidelog-sim`'s disk, network, clock and randomness; clients are the network crate's, too. A seed draws the cluster's
//! shape, the load, and a subset of all faults. After every turn of a node checkers outside the product compare disks,
//! messages and answers with the invariants of `docs/INVARIANTS.md`. In the end everything is healed, and the cluster
//! must make progress and all replicas must become the same.
//!
//! The same seed and the same build give the same trace hash. A failure names the invariant, the event, and the command that
//! replays it. What it does not know: how anything works inside; it has no stand-in for any part of the product.
//!
//! ```no_run
//! use tidelog_simulator::{SimOptions, run_seed};
//! let report = run_seed(&SimOptions { seed: 7, ..SimOptions::default() });
//! assert!(report.failure.is_none(), "{}", report.failure.unwrap().replay);
//! ```

mod campaign;
mod checkers;
mod cluster;
mod embedder;
mod faults;
mod foretold;
mod hostile;
mod lull;
mod machine;
mod panics;
mod payload;
mod platter;
mod profile;
mod report;
mod rot;
mod run;
mod tail;
mod tap;
mod undecided;
mod wire;
mod workload;

pub use campaign::run_campaign;
pub use report::{COMMITS_MIN, Failure, NoticedBy, Outcome, RECOVERIES_MIN, SeedReport, Summary};
pub use run::run_seed;

/// What to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SimOptions {
    /// Decides everything.
    pub seed: u64,
    /// Simulated seconds under faults; healing and checking come after them.
    pub seconds: u64,
    /// Whether bytes of disks go bad in any case; otherwise the seed decides, as for other faults.
    pub damage: bool,
    /// Lines of the trace to report with a failure.
    pub trace_lines: usize,
}

impl Default for SimOptions {
    fn default() -> SimOptions {
        SimOptions { seed: 0, seconds: 60, damage: false, trace_lines: 0 }
    }
}

impl SimOptions {
    /// The command that runs this again.
    fn replay(&self) -> String {
        let damage = if self.damage { " --damage" } else { "" };
        format!("tidelog sim --seed {} --seconds {}{damage}", self.seed, self.seconds)
    }
}
