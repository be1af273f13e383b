//! What a run came to, for people and for scripts (`docs/` names the fields' meaning where it is not plain).

use serde::Serialize;
use std::collections::BTreeMap;

/// Fewer commits than this, and a seed does not count.
pub const COMMITS_MIN: u64 = 1_000;
/// Fewer recoveries than this, and a seed does not count.
pub const RECOVERIES_MIN: u64 = 3;

/// How a seed ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing was wrong, and enough happened for that to mean something.
    Ok,
    /// Nothing was wrong, but too little happened: it does not count.
    Thin,
    /// Nothing was wrong, but in the end a partition rightly waits: nobody can tell whether an entry was committed, and progress
    /// could not be asked for.
    Undecided,
    /// An invariant was broken.
    Failed,
}

/// Who noticed a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoticedBy {
    /// One of the simulator's checkers.
    Checker,
    /// An assertion of the product, or another panic in it.
    Panic,
}

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Failure {
    /// Number in `docs/INVARIANTS.md`; a panic counts as 17.
    pub invariant: u8,
    /// Who noticed.
    pub noticed_by: NoticedBy,
    /// Number of the world's event at which it was noticed.
    pub event: u64,
    /// Simulated time.
    pub at_ms: u64,
    /// What, in words.
    pub message: String,
    /// The command that replays it.
    pub replay: String,
    /// Every node and replica at that moment.
    pub state: Vec<String>,
    /// The last lines of the trace, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<String>,
}

/// One seed's run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SeedReport {
    /// The seed.
    pub seed: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Of every operation, completion, time and payload: equal for equal seeds of one build.
    pub trace_hash: String,
    /// Events of the world.
    pub events: u64,
    /// Simulated time.
    pub simulated_ms: u64,
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Partitions of the cluster.
    pub partitions: u64,
    /// Entries committed.
    pub commits: u64,
    /// Elections won.
    pub elections: u64,
    /// Power losses and deaths of processes.
    pub crashes: u64,
    /// Logs opened again.
    pub recoveries: u64,
    /// Appends acknowledged.
    pub acked: u64,
    /// Appends whose outcome the client never learned.
    pub unknown: u64,
    /// Appends refused.
    pub refused: u64,
    /// Reads answered.
    pub reads: u64,
    /// How often each fault fired.
    pub faults: BTreeMap<String, u64>,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

/// Many seeds' runs.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Nothing wrong, and enough happened.
    pub ok: u64,
    /// Too little happened.
    pub thin: Vec<u64>,
    /// A partition rightly waited in the end.
    pub undecided: Vec<u64>,
    /// Seeds that failed.
    pub failed: Vec<u64>,
    /// Sums over all seeds.
    pub commits: u64,
    /// See [`SeedReport::elections`].
    pub elections: u64,
    /// See [`SeedReport::crashes`].
    pub crashes: u64,
    /// See [`SeedReport::recoveries`].
    pub recoveries: u64,
    /// See [`SeedReport::events`].
    pub events: u64,
    /// See [`SeedReport::simulated_ms`].
    pub simulated_ms: u64,
    /// How often each fault fired.
    pub faults: BTreeMap<String, u64>,
    /// Faults that a campaign of at least [`Summary::FAULTS_EXPECTED_FROM`] seeds never saw: a failure.
    pub faults_never_fired: Vec<String>,
}

impl Summary {
    /// From so many seeds on, each fault must have fired.
    pub const FAULTS_EXPECTED_FROM: u64 = 200;
    /// Of so many seeds one may end undecided; with more, a campaign proves too little.
    pub const UNDECIDED_ONE_IN: u64 = 50;
    /// Faults that this simulator does not draw: the driver deals its own misdirected writes, where the atlas lets it.
    pub const FAULTS_NOT_DRAWN: &'static [&'static str] = &["misdirected write"];

    /// Takes in one seed.
    pub fn add(&mut self, report: &SeedReport) {
        self.seeds += 1;
        match report.outcome {
            Outcome::Ok => self.ok += 1,
            Outcome::Thin => self.thin.push(report.seed),
            Outcome::Undecided => self.undecided.push(report.seed),
            Outcome::Failed => self.failed.push(report.seed),
        }
        self.commits += report.commits;
        self.elections += report.elections;
        self.crashes += report.crashes;
        self.recoveries += report.recoveries;
        self.events += report.events;
        self.simulated_ms += report.simulated_ms;
        for (fault, count) in &report.faults {
            *self.faults.entry(fault.clone()).or_insert(0) += count;
        }
    }

    /// After the last seed.
    pub fn close(&mut self) {
        self.thin.sort_unstable();
        self.undecided.sort_unstable();
        self.failed.sort_unstable();
        if self.seeds >= Summary::FAULTS_EXPECTED_FROM {
            let never = self
                .faults
                .iter()
                .filter(|(name, count)| **count == 0 && !Summary::FAULTS_NOT_DRAWN.contains(&name.as_str()));
            self.faults_never_fired = never.map(|(name, _)| name.clone()).collect();
        }
    }

    /// Whether more seeds end undecided than a few.
    pub fn too_undecided(&self) -> bool {
        let undecided = u64::try_from(self.undecided.len()).unwrap_or(u64::MAX);
        undecided > 1 + self.seeds / Summary::UNDECIDED_ONE_IN
    }

    /// Whether the campaign passed.
    pub fn passed(&self) -> bool {
        self.failed.is_empty() && self.faults_never_fired.is_empty() && !self.too_undecided()
    }
}
