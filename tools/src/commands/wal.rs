//! `tidelog wal`: what lies in a data directory, of a stopped or a running node. Nothing is changed.

mod dump;
mod verify;

use crate::failure::{Exit, Failure};
use crate::output::OutputArgs;
use std::path::{Path, PathBuf};
use tidelog_io::{BackEnd, Foreground, Io, IoOptions, Op, Output, open_back_end};
use tidelog_types::RecordKind;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog wal verify data/n1
  tidelog wal dump data/n1 --partition 0 --output json";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Every batch and record, in the order of the log
    #[command(after_help = "Examples:
  tidelog wal dump data/n1
  tidelog wal dump data/n1 --partition 3 --output json

Entries are shown as they were written: a later cut removes those behind the index that it keeps.")]
    Dump(DumpArgs),
    /// Checks everything; names file, offset, partition and index of what is wrong, and whether it is a torn tail or damage
    #[command(after_help = "Examples:
  tidelog wal verify data/n1
  tidelog wal verify data/n1 data/n2 data/n3 --output json

Exit code 1 on damage. A torn tail is not damage: nothing in it was ever acknowledged; neither is damage to what a
later record has made worthless (superseded). On a running node, what is being written just now looks like a torn tail.")]
    Verify(VerifyArgs),
    /// (not there yet) Plans a repair, and with --apply does it
    #[command(after_help = "Example:\n  tidelog wal repair data/n1")]
    Repair(super::later::Args),
    /// (not there yet) Where two nodes' logs part
    #[command(after_help = "Example:\n  tidelog wal diff data/n1 data/n2")]
    Diff(super::later::Args),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// Data directories
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Only this partition's records
    #[arg(long, value_name = "P")]
    partition: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Data directories
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Dump(args) => dump::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Repair(_) => Err(Failure::later("wal repair")),
        Command::Diff(_) => Err(Failure::later("wal diff")),
    }
}

fn open_io() -> Result<Box<dyn Io>, Failure> {
    open_back_end(BackEnd::Blocking, &IoOptions::small()).map_err(Failure::failed)
}

/// The logs in the directories named: those of a data directory's shards, or of one shard if its own directory is named.
fn logs(io: &mut dyn Io, dirs: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut logs = Vec::new();
    for dir in dirs {
        let names = list(io, dir)?;
        if names.iter().any(|name| name.ends_with(".wal")) {
            logs.push(dir.clone());
            continue;
        }
        let shards = names.iter().filter(|name| name.starts_with("shard-"));
        let before = logs.len();
        logs.extend(shards.map(|name| dir.join(name)));
        if logs.len() == before {
            return Err(Failure::usage(format!("{} holds no log", dir.display()))
                .advise("name a node's data directory, [node] data_dir in its configuration"));
        }
    }
    Ok(logs)
}

fn list(io: &mut dyn Io, dir: &Path) -> Result<Vec<String>, Failure> {
    match Foreground::new(io).run(Op::List { path: dir.to_owned() }) {
        Ok(Output::Names(names)) => Ok(names),
        Ok(other) => Err(Failure::failed(format!("list {}: answered with {other:?}", dir.display()))),
        Err(error) => Err(Failure::usage(error).advise("name a node's data directory that can be read")),
    }
}

/// A record's kind in one word.
fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Noop => "noop",
        RecordKind::Data => "data",
        RecordKind::SessionOpen => "session_open",
        RecordKind::LogStart => "log_start",
        RecordKind::Promise => "promise",
        RecordKind::Cut => "cut",
        RecordKind::HighWater => "high_water",
        RecordKind::LowWater => "low_water",
        RecordKind::SnapshotMark => "snapshot_mark",
        RecordKind::CheckpointChunk => "checkpoint_chunk",
        RecordKind::CheckpointEnd => "checkpoint_end",
        RecordKind::Moved => "moved",
        RecordKind::Summary => "summary",
        RecordKind::Pad => "pad",
    }
}
