//! `tidelog bench`: measurements.

use crate::failure::{Exit, Failure};
use crate::flag;
use crate::output::OutputArgs;
use std::net::SocketAddr;
use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog bench append --dir /mnt/disk/bench --payload 1KiB --rate 20000";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Appends: throughput and latency, beside the raw device's figures of the same run
    #[command(after_help = "Examples:
  tidelog bench append --dir /mnt/disk/bench --payload 1KiB --rate 20000
  tidelog bench append --dir /mnt/disk/bench --closed 256
  tidelog bench append --cluster 127.0.0.1:7101,127.0.0.1:7102 --pipelined 1024 --output json

Load is open-loop: records are due at fixed times whether or not earlier ones are done, and latency counts from when a record was
due. --closed and --pipelined wait for answers instead.")]
    Append(AppendArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct AppendArgs {
    /// A running cluster, by TCP
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', required_unless_present = "dir", conflicts_with = "dir",
          value_parser = flag::address)]
    pub(crate) cluster: Vec<SocketAddr>,
    /// One node in this process, with its data in a new directory below this one
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = flag::bytes)]
    pub(crate) payload: u64,
    /// Open loop: records due per second
    #[arg(long, value_name = "R", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) rate: u64,
    /// Closed loop: so many writers, each with one record in flight
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "pipelined"], value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) closed: Option<u32>,
    /// Pipelined: so many records in flight over few connections
    #[arg(long, value_name = "N", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) pipelined: Option<u32>,
    /// Time measured, after the warm-up
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,
    /// Time before measuring
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub(crate) warmup: u64,
    /// Partitions that the records are spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub(crate) partitions: u64,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Append(_) => Err(Failure::later("bench append")),
    }
}
