//! `bench append`: one load, one target, one report.

use crate::baseline::Baseline;
use crate::clock;
use crate::device::Device;
use crate::error::BenchError;
use crate::host::Host;
use crate::load::{Done, Driver, Measured, Outcome, Pace, Target};
use crate::payload::{Payloads, Stamp};
use crate::report::{Report, Shape};
use crate::target::{ClusterOptions, ClusterTarget, HandleTarget, InlineTarget, QueueTarget, ThreadsTarget};
use crate::usage::Meter;
use core::time::Duration;
use std::fs;
use std::io::BufWriter;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tidelog::config::{self, Config};
use tidelog_io::{BackEnd, SyncMode};

/// Between two tries of that first record.
const READY_PAUSE: Duration = Duration::from_millis(20);
/// Most rounds of a run.
pub const ROUNDS_MAX: u32 = 1000;

/// What is measured.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A single node in this process, through its public handle.
    Engine,
    /// The same, by its append queue.
    Queue,
    /// The same, each writer of a closed loop a thread of its own that waits for its record.
    Threads,
    /// A single node on the load generator's own thread.
    Inline,
    /// A running cluster.
    Cluster {
        /// Nodes of it.
        addresses: Vec<SocketAddr>,
        /// Connections to a node; none: one for each writer of a closed loop, 4 for an open one.
        connections: Option<u32>,
        /// Its processes on this host, whose processor time is to be counted.
        servers: Vec<u32>,
    },
    /// Another way to write the same batches.
    Baseline {
        /// Which.
        which: Baseline,
        /// Batches in flight, for the raw one.
        depth: usize,
    },
}

/// Everything about a run.
#[derive(Clone, Debug)]
pub struct AppendOptions {
    /// What is measured.
    pub subject: Subject,
    /// Where its data goes, and where the raw device is measured: a directory of its own is made in it and removed
    /// afterwards. For a cluster: a directory on the device of its nodes, if they are on this host.
    pub dir: Option<PathBuf>,
    /// The load.
    pub pace: Pace,
    /// Length of each payload.
    pub payload_bytes: usize,
    /// Measured time, all rounds together.
    pub seconds: f64,
    /// Load before each round that is not measured.
    pub warm_seconds: f64,
    /// Rounds: load and raw device take turns so many times.
    pub rounds: u32,
    /// How long each of the device's cells is measured in a round; none: it is not measured.
    pub device_cell: Option<Duration>,
    /// Profiles of the engine's configuration, applied in this order.
    pub profiles: Vec<String>,
    /// Partitions written to, one after the other.
    pub partitions: u64,
    /// Size of a segment instead of the profile's. A segment that the whole run fits in stands for a log whose segments are
    /// recycled: otherwise zero-filling new ones is in the figures.
    pub segment_bytes: Option<u64>,
    /// The back-end instead of the profile's.
    pub back_end: Option<BackEnd>,
    /// How writes are made durable instead of the profile's way.
    pub sync: Option<SyncMode>,
    /// A cluster's time for one record.
    pub timeout: Duration,
    /// The first record must be acknowledged within this time: recovery and elections come before it.
    pub ready: Duration,
    /// What to call it in the report; none: by its subject.
    pub label: Option<String>,
    /// Where to write the latencies as an HdrHistogram log.
    pub latency_log: Option<PathBuf>,
}

impl AppendOptions {
    /// 5 s of open-loop load, 1000 records of 1 KiB a second.
    pub fn new(subject: Subject, dir: Option<PathBuf>) -> AppendOptions {
        AppendOptions {
            subject,
            dir,
            pace: Pace::Open {
                per_second: 1000.0,
                spacing: crate::arrival::Spacing::Poisson,
                in_flight_max: 1 << 14,
            },
            payload_bytes: 1024,
            seconds: 5.0,
            warm_seconds: 0.5,
            rounds: 1,
            device_cell: Some(Duration::from_millis(100)),
            profiles: Vec::new(),
            partitions: 1,
            segment_bytes: None,
            back_end: None,
            sync: None,
            timeout: Duration::from_secs(5),
            ready: Duration::from_secs(60),
            label: None,
            latency_log: None,
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        let wrong = |what: &str| Err(BenchError::Options(what.to_owned()));
        if !(self.seconds > 0.0 && self.seconds <= 86_400.0) {
            return wrong("the measured time: more than 0 and at most 86400 s");
        }
        if !(self.warm_seconds >= 0.0 && self.warm_seconds <= 3600.0) {
            return wrong("the warm-up: 0 to 3600 s");
        }
        if !(1..=ROUNDS_MAX).contains(&self.rounds) {
            return wrong("rounds: 1 to 1000");
        }
        if !(1..=tidelog_types::limits::PARTITIONS_MAX).contains(&self.partitions) {
            return wrong("partitions: 1 to 65536");
        }
        let cluster = matches!(self.subject, Subject::Cluster { .. });
        if self.dir.is_none() && !cluster {
            return wrong("a directory is needed: the data goes there");
        }
        if matches!((&self.subject, self.pace), (Subject::Threads, Pace::Open { .. })) {
            return wrong("a thread for each writer: only in a closed loop");
        }
        if cluster && (self.segment_bytes.is_some() || self.sync.is_some() || !self.profiles.is_empty()) {
            return wrong(
                "profiles, segment size and way of syncing are a cluster's own: configure its nodes",
            );
        }
        Ok(())
    }

    fn connections(&self) -> u32 {
        match (&self.subject, self.pace) {
            (Subject::Cluster { connections: Some(connections), .. }, _) => *connections,
            (_, Pace::Closed { writers }) => writers,
            (_, Pace::Open { .. }) => 4,
        }
    }

    fn name(&self) -> String {
        let name = match &self.subject {
            Subject::Engine => "tidelog",
            Subject::Queue => "tidelog-queue",
            Subject::Threads => "tidelog-threads",
            Subject::Inline => "tidelog-inline",
            Subject::Cluster { addresses, .. } => return format!("tidelog{}", addresses.len()),
            Subject::Baseline { which, .. } => which.name(),
        };
        name.to_owned()
    }

    fn shape(&self) -> Shape {
        let (mode, writers, offered_per_s) = match self.pace {
            Pace::Closed { writers } => ("closed", Some(writers), None),
            Pace::Open { per_second, .. } => ("open", None, Some(per_second)),
        };
        let cluster = matches!(self.subject, Subject::Cluster { .. });
        Shape {
            mode,
            writers,
            offered_per_s,
            connections: cluster.then(|| self.connections()),
            payload_bytes: self.payload_bytes,
            partitions: self.partitions,
        }
    }
}

/// A directory that is removed with everything in it.
struct Workplace {
    path: PathBuf,
}

impl Workplace {
    fn new(dir: &Path) -> Result<Workplace, BenchError> {
        let path = dir.join(format!("bench-{}.data", std::process::id()));
        let failed = |what| {
            let path = path.clone();
            move |source| BenchError::File { what, path, source }
        };
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed("remove")(e)),
            _ => {}
        }
        fs::create_dir_all(&path).map_err(failed("create"))?;
        Ok(Workplace { path })
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        // Nothing depends on it: at worst a directory with a telling name stays.
        drop(fs::remove_dir_all(&self.path));
    }
}

/// The engine's configuration in `data_dir`.
fn configuration(options: &AppendOptions, data_dir: PathBuf) -> Result<Config, BenchError> {
    let mut config = Config::single(data_dir);
    config.cluster.partitions = options.partitions;
    for profile in &options.profiles {
        config.apply_profile(profile)?;
    }
    if let Some(bytes) = options.segment_bytes {
        config.wal.segment_size = bytes;
        config.wal.spare_segments = 1;
    }
    match options.back_end {
        Some(BackEnd::Uring) => config.io.backend = config::BackEnd::Uring,
        Some(BackEnd::Blocking) => config.io.backend = config::BackEnd::Blocking,
        None => {}
    }
    match options.sync {
        Some(SyncMode::Auto) => config.wal.sync = config::SyncMethod::Auto,
        Some(SyncMode::Fdatasync) => config.wal.sync = config::SyncMethod::Fdatasync,
        Some(SyncMode::Dsync) => config.wal.sync = config::SyncMethod::Dsync,
        None => {}
    }
    Ok(config.checked()?)
}

fn open(options: &AppendOptions, workplace: Option<&Workplace>) -> Result<Box<dyn Target>, BenchError> {
    let back_end = options.back_end.unwrap_or(BackEnd::Uring);
    let place = || {
        workplace.map(|w| w.path.clone()).ok_or_else(|| BenchError::Options("a directory is needed".into()))
    };
    match &options.subject {
        Subject::Queue => {
            let config = configuration(options, place()?)?;
            Ok(Box::new(QueueTarget::open(config, options.pace.in_flight_max())?))
        }
        Subject::Threads => Err(BenchError::Options("threads drive themselves".into())),
        Subject::Engine => Ok(Box::new(HandleTarget::open(configuration(options, place()?)?)?)),
        Subject::Inline => Ok(Box::new(InlineTarget::open(&configuration(options, place()?)?)?)),
        Subject::Baseline { which, depth } => {
            which.open(&place()?, back_end, options.sync.unwrap_or(SyncMode::Auto), *depth)
        }
        Subject::Cluster { addresses, .. } => Ok(Box::new(ClusterTarget::open(&ClusterOptions {
            addresses: addresses.clone(),
            connections: options.connections(),
            partitions: options.partitions,
            in_flight_max: options.pace.in_flight_max(),
            payload_bytes: options.payload_bytes,
            timeout: options.timeout,
            back_end,
        })?)),
    }
}

/// What is measured, and by whom it is driven.
enum Running {
    Driven(Box<dyn Target>),
    Threads(ThreadsTarget),
}

/// Waits until the target takes a record: the node has recovered, a leader is elected, a connection is there.
fn wait_ready(target: &mut dyn Target, payload_bytes: usize, ready: Duration) -> Result<(), BenchError> {
    let mut payloads = Payloads::new(payload_bytes).expect("the driver has checked the length");
    let limit = clock::now().after(ready);
    let mut done: Vec<Done> = Vec::new();
    for sequence in 1.. {
        // A writer that no load has: its tag is told from every load's by its high half.
        let stamp = Stamp { writer: u32::MAX, sequence };
        target.submit(u64::from(u32::MAX), payloads.make(stamp));
        while done.is_empty() && clock::now() < limit {
            target.poll(limit, &mut done)?;
        }
        if done.drain(..).any(|d| d.outcome == Outcome::Acked) {
            return Ok(());
        }
        if clock::now() >= limit {
            break;
        }
        std::thread::park_timeout(READY_PAUSE);
    }
    Err(BenchError::Target(format!("no record was acknowledged within {} s", ready.as_secs_f64())))
}

/// What a chosen segment size means for the figures.
fn segment_note(options: &AppendOptions, records: u64, segment_bytes: u64) -> String {
    let warm = options.warm_seconds * f64::from(options.rounds) / options.seconds;
    let record_bytes = tidelog_types::record::record_bytes(options.payload_bytes, false);
    // A tenth more for batches' headers and footers, and for what was in flight at the spans' ends.
    let written = 1.1 * records as f64 * (1.0 + warm) * record_bytes as f64;
    let size = segment_bytes >> 20;
    if written < segment_bytes as f64 {
        format!(
            "the run fits its first segment of {size} MiB, as if segments were recycled: no zero-filling is in the figures"
        )
    } else {
        format!(
            "the run outgrew its first segment of {size} MiB: zero-filling of further ones is in the figures"
        )
    }
}

/// Runs it.
///
/// # Errors
/// If the options do not fit together, or what is measured cannot be opened, or goes away.
///
/// # Examples
/// ```no_run
/// use tidelog_bench::{AppendOptions, Pace, Subject, append};
/// let mut options = AppendOptions::new(Subject::Engine, Some("data".into()));
/// options.pace = Pace::Closed { writers: 16 };
/// println!("{}", append(&options)?.to_json());
/// # Ok::<(), tidelog_bench::BenchError>(())
/// ```
pub fn append(options: &AppendOptions) -> Result<Report, BenchError> {
    options.check()?;
    let mut driver = Driver::new(options.pace, options.payload_bytes)?;
    let workplace = match (&options.subject, &options.dir) {
        (Subject::Cluster { .. }, _) | (_, None) => None,
        (_, Some(dir)) => Some(Workplace::new(dir)?),
    };
    let servers = match &options.subject {
        Subject::Cluster { servers, .. } => servers.clone(),
        _ => Vec::new(),
    };
    let mut device = match (&options.dir, options.device_cell) {
        (Some(dir), Some(_)) => Some(Device::open(dir)?),
        _ => None,
    };
    let mut subject = match (&options.subject, options.pace, &workplace) {
        (Subject::Threads, Pace::Closed { writers }, Some(workplace)) => {
            let config = configuration(options, workplace.path.clone())?;
            Running::Threads(ThreadsTarget::open(config, writers, options.payload_bytes)?)
        }
        _ => {
            let mut target = open(options, workplace.as_ref())?;
            wait_ready(&mut *target, options.payload_bytes, options.ready)?;
            Running::Driven(target)
        }
    };

    let meter = Meter::new(options.dir.as_deref(), servers);
    let run = Duration::from_secs_f64(options.seconds);
    let mut measured = Measured::new(run);
    for _ in 0..options.rounds {
        if let (Some(device), Some(each)) = (&mut device, options.device_cell) {
            device.round(each)?;
        }
        let warm = Duration::from_secs_f64(options.warm_seconds);
        let span = run / options.rounds;
        match &mut subject {
            Running::Driven(target) => driver.span(&mut **target, &meter, warm, span, &mut measured)?,
            Running::Threads(threads) => threads.span(&meter, warm, span, &mut measured)?,
        }
    }
    match subject {
        Running::Driven(target) => target.close()?,
        Running::Threads(threads) => threads.close()?,
    }
    let host = Host::of(options.dir.as_deref());
    let label = options.label.clone().unwrap_or_else(|| options.name());
    let mut report = Report::new(label, options.shape(), measured, device.map(|d| d.report()), host);
    report.profile = options.profiles.join(", ");
    if let Some(bytes) = options.segment_bytes {
        report.notes.push(segment_note(options, report.records, bytes));
    }
    if report.other_cores > 0.45 {
        report.notes.push(format!(
            "others kept {:.2} cores busy: measure again on a quiet machine",
            report.other_cores
        ));
    }
    if let Some(path) = &options.latency_log {
        let failed = |source| BenchError::File { what: "create", path: path.clone(), source };
        let mut out = BufWriter::new(fs::File::create(path).map_err(failed)?);
        report.latencies.write_log(&mut out, &report.to_string())?;
        std::io::Write::flush(&mut out).map_err(|e| BenchError::LatencyLog(e.to_string()))?;
    }
    Ok(report)
}
