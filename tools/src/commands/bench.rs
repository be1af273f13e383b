//! `tidelog bench`: measurements.

use crate::failure::{Exit, Failure};
use crate::flag;
use crate::output::{Output, OutputArgs, Printer};
use std::net::SocketAddr;
use std::path::PathBuf;
use tidelog_bench::{AppendOptions, Baseline, BenchError, Pace, Spacing, Subject};
use tidelog_io::{BackEnd, SyncMode};

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog bench append --dir /mnt/disk/bench --payload 1KiB --rate 20000";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Appends: throughput and latency, beside the raw device's figures of the same run
    #[command(after_help = "Examples:
  tidelog bench append --dir /mnt/disk/bench --payload 1KiB --rate 20000
  tidelog bench append --dir /mnt/disk/bench --closed 256 --inline
  tidelog bench append --dir /mnt/disk/bench --closed 256 --baseline raw
  tidelog bench append --cluster 127.0.0.1:7101,127.0.0.1:7102 --pipelined 1024 --output json

Load is open-loop: records are due at fixed times whether or not earlier ones are done, and latency counts from when a record was
due. --closed and --pipelined wait for answers instead.
Exit code 1 if the rate was not reached: if more than one record in a hundred was late or not acknowledged.")]
    Append(AppendArgs),
}

/// What else writes the same batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum BaselineName {
    /// One ring, no log: the least that any engine does
    Raw,
    /// Blocking calls
    Blocking,
    /// The glommio executor (needs a build with --features baselines)
    Glommio,
    /// The tokio-uring executor (needs a build with --features baselines)
    TokioUring,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Sync {
    /// One write with RWF_DSYNC
    Dsync,
    /// Write, then fdatasync
    Fdatasync,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AppendArgs {
    /// A running cluster, by TCP
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', required_unless_present = "dir", value_parser = flag::address)]
    pub(crate) cluster: Vec<SocketAddr>,
    /// One node in this process, with its data in a new directory below this one. With --cluster: a directory on the device of
    /// its nodes, if they are on this host, for the device's own figures
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// The shard runs on the load generator's own thread: what the engine itself costs
    #[arg(long, conflicts_with_all = ["cluster", "baseline"])]
    pub(crate) inline: bool,
    /// Closed loop: each writer is a thread that waits for its record, instead of a future of the load generator's one thread
    #[arg(long, requires_all = ["dir", "closed"], conflicts_with_all = ["cluster", "baseline", "inline"])]
    pub(crate) threads: bool,
    /// The load generator's thread takes its answers in bulk, by an append queue, instead of by a future for each record
    #[arg(long, requires = "dir", conflicts_with_all = ["cluster", "baseline", "inline", "threads"])]
    pub(crate) queue: bool,
    /// Instead of Tidelog: another way to write the same batches
    #[arg(long, value_name = "NAME", value_enum, conflicts_with = "cluster")]
    pub(crate) baseline: Option<BaselineName>,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = flag::bytes)]
    pub(crate) payload: u64,
    /// Open loop: records due per second
    #[arg(long, value_name = "R", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
    /// Closed loop: so many writers, each with one record in flight; over TCP each on a connection of its own
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "pipelined"], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) closed: Option<u32>,
    /// Pipelined: so many records in flight over few connections
    #[arg(long, value_name = "N", conflicts_with = "rate", requires = "cluster", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) pipelined: Option<u32>,
    /// Connections to each node, instead of one for each writer, or 4
    #[arg(long, value_name = "N", requires = "cluster", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) connections: Option<u32>,
    /// Time measured, after the warm-up, all rounds together
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Time before measuring, each round
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub(crate) warmup: f64,
    /// Load and raw device take turns so many times
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) rounds: u32,
    /// Without the raw device's figures
    #[arg(long)]
    pub(crate) no_device: bool,
    /// Partitions that the records are spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) partitions: u64,
    /// Profiles of the node in this process, in order
    #[arg(long, value_name = "A,B", value_delimiter = ',', conflicts_with = "cluster")]
    pub(crate) profile: Vec<String>,
    /// Size of a segment; one that the run fits in keeps the zero-filling of new ones out of the figures
    #[arg(long, value_name = "BYTES", value_parser = flag::bytes, conflicts_with = "cluster")]
    pub(crate) segment_size: Option<u64>,
    /// Over blocking calls instead of io_uring
    #[arg(long, conflicts_with = "cluster")]
    pub(crate) blocking: bool,
    /// How a write is made durable, instead of the profile's way
    #[arg(long, value_enum, conflicts_with = "cluster")]
    pub(crate) sync: Option<Sync>,
    /// Batches in flight, for --baseline raw
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) depth: usize,
    /// Process ids of the cluster's nodes on this host, whose processor time is to be counted
    #[arg(long, value_name = "PID,PID", value_delimiter = ',', requires = "cluster")]
    pub(crate) servers: Vec<u32>,
    /// What to call it in the report
    #[arg(long, value_name = "NAME")]
    pub(crate) label: Option<String>,
    /// Write the latencies as an HdrHistogram log
    #[arg(long, value_name = "FILE")]
    pub(crate) latency_log: Option<PathBuf>,
    /// One line in the form that comparisons of several engines use
    #[arg(long)]
    pub(crate) peers: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    let Command::Append(args) = command;
    let (output, peers) = (args.output.output, args.peers);
    let report = tidelog_bench::append(&options(args)?).map_err(|error| match error {
        BenchError::Options(_) => Failure::usage(error),
        error => Failure::failed(error),
    })?;
    let mut out = Printer::new();
    match output {
        _ if peers => out.line(report.to_peers_json())?,
        Output::Json => out.line(report.to_json())?,
        Output::Text => out.line(&report)?,
    }
    out.flush()?;
    match report.shortfall() {
        Some(why) => {
            Err(Failure::failed(why).advise("offer less with --rate, or see what is possible with --closed"))
        }
        None => Ok(Exit::Done),
    }
}

fn options(args: AppendArgs) -> Result<AppendOptions, Failure> {
    let connections = args.connections.or(args.pipelined.map(|_| 4));
    let subject = if !args.cluster.is_empty() {
        Subject::Cluster { addresses: args.cluster, connections, servers: args.servers }
    } else if let Some(name) = args.baseline {
        let which = match name {
            BaselineName::Raw => Baseline::Raw,
            BaselineName::Blocking => Baseline::Blocking,
            BaselineName::Glommio => Baseline::Glommio,
            BaselineName::TokioUring => Baseline::TokioUring,
        };
        Subject::Baseline { which, depth: args.depth }
    } else if args.inline {
        Subject::Inline
    } else if args.queue {
        Subject::Queue
    } else if args.threads {
        Subject::Threads
    } else {
        Subject::Engine
    };
    let pace = match args.closed.or(args.pipelined) {
        Some(writers) => Pace::Closed { writers },
        None => {
            Pace::Open { per_second: args.rate as f64, spacing: Spacing::Poisson, in_flight_max: 1 << 16 }
        }
    };
    let defaults = AppendOptions::new(subject, args.dir);
    Ok(AppendOptions {
        pace,
        payload_bytes: usize::try_from(args.payload).map_err(Failure::usage)?,
        seconds: args.seconds,
        warm_seconds: args.warmup,
        rounds: args.rounds,
        device_cell: if args.no_device { None } else { defaults.device_cell },
        profiles: args.profile,
        partitions: args.partitions,
        segment_bytes: args.segment_size,
        back_end: args.blocking.then_some(BackEnd::Blocking),
        sync: args.sync.map(|sync| match sync {
            Sync::Dsync => SyncMode::Dsync,
            Sync::Fdatasync => SyncMode::Fdatasync,
        }),
        label: args.label,
        latency_log: args.latency_log,
        ..defaults
    })
}
