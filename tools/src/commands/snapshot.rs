//! `tidelog snapshot`: snapshots of state machines.

use super::ClusterArgs;
use crate::failure::{Exit, Failure};
use crate::flag;
use crate::output::{Output, OutputArgs, Printer};
use serde::Serialize;
use std::time::Duration;
use tidelog::request::Reply;
use tidelog_net::{Client, ClientOptions, ClientRequest, Target};
use tidelog_types::PartitionId;

pub(crate) const EXAMPLES: &str = "Example:
  tidelog snapshot take --partition 0 --cluster 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103";
const TAKE_EXAMPLES: &str = "Examples:
  tidelog snapshot take --partition 0 --cluster 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
  tidelog snapshot take --cluster 127.0.0.1:7101 --output json

Each node named takes one of its own. It says which entries it covers, or why there is none: the partitions of
`tidelog serve` are plain logs without a state machine, and programs that embed the engine have them.
Exit code 1 if a node has taken none.";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Take a snapshot of a partition's state machine, on each node named
    #[command(after_help = TAKE_EXAMPLES)]
    Take(Args),
}

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The partition
    #[arg(long, value_name = "P", default_value_t = 0)]
    partition: u64,
    /// How long to wait for it
    #[arg(long, value_name = "D", default_value = "10min", value_parser = flag::duration)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Line {
    address: String,
    partition: u64,
    taken: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    let Command::Take(args) = command;
    let client =
        Client::connect(ClientOptions::new(args.cluster.cluster.clone())).map_err(Failure::failed)?;
    let asked: Vec<_> = args
        .cluster
        .cluster
        .iter()
        .map(|address| {
            let request = ClientRequest::snapshot(PartitionId(args.partition), Target::Address(*address))
                .within(args.timeout);
            (*address, client.request(request))
        })
        .collect();
    let mut out = Printer::new();
    let mut all = true;
    for (address, answer) in asked {
        let mut line = Line {
            address: address.to_string(),
            partition: args.partition,
            taken: false,
            index: None,
            generation: None,
            bytes: None,
            error: None,
        };
        match answer.wait() {
            Ok(Reply::Snapshot { covered, bytes }) => {
                line.taken = true;
                line.index = Some(covered.index.get());
                line.generation = Some(covered.generation.get());
                line.bytes = Some(bytes);
            }
            Ok(_) => {
                let why = format!("{address} answered something else than a snapshot");
                return Err(Failure::failed(why));
            }
            Err(error) => line.error = Some(error.to_string()),
        }
        all &= line.taken;
        match (args.output.output, &line) {
            (Output::Json, line) => out.object(line)?,
            (Output::Text, Line { index: Some(index), bytes: Some(0), .. }) => {
                out.line(format!(
                    "{address}: nothing new since the snapshot that covers entries up to {index}"
                ))?;
            }
            (Output::Text, Line { index: Some(index), bytes: Some(bytes), .. }) => {
                out.line(format!("{address}: taken, {bytes} bytes, covers entries up to {index}"))?;
            }
            (Output::Text, line) => {
                let why = line.error.as_deref().unwrap_or("no reason was given");
                out.line(format!("{address}: none was taken: {why}"))?;
            }
        }
    }
    out.flush()?;
    Ok(if all { Exit::Done } else { Exit::Failed })
}
