//! `tidelog wal`: what lies in a data directory, of a stopped or a running node. Nothing is changed but by `repair --apply`.

mod backup;
mod diff;
mod dump;
mod entries;
mod headers;
mod look;
mod repair;
mod selection;
mod verify;

use crate::failure::{Exit, Failure};
use crate::output::OutputArgs;
use std::path::{Path, PathBuf};
use tidelog::identity::{Flaw, Found, Identity};
use tidelog_io::{BackEnd, Foreground, Io, IoOptions, Op, Output, open_back_end};
use tidelog_types::RecordKind;
use tidelog_wal::OpenError;
use tidelog_wal::inspect::Eyes;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog wal verify data/n1
  tidelog wal dump data/n1 --partition 0 --output json";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Every batch and record, in the order of the log
    #[command(after_help = "Examples:
  tidelog wal dump data/n1
  tidelog wal dump data/n1 --partition 3 --from 100 --to 120 --payload hex
  tidelog wal dump data/n1 --kind promise --kind cut --output json

Records are shown as they were written: a later cut removes entries behind the index that it keeps. With a filter,
segments and batches are shown only where a record is. --from and --to leave out what concerns no index of the range: an
entry or a mark outside it, a cut that keeps all of it, every promise.")]
    Dump(DumpArgs),
    /// Checks everything; names file, offset, partition and index of what is wrong, and whether it is a torn tail or damage
    #[command(after_help = "Examples:
  tidelog wal verify data/n1
  tidelog wal verify data/n1 data/n2 data/n3 --output json

Exit code 1 on damage: something that may have been acknowledged is not whole. A torn or suspect tail is what a crash
leaves and is cut at the next start; damage to what a later record has made worthless is superseded; both are named and
are no failure. On a running node, what is being written just now looks like a torn tail, and what looks damaged is looked
at again before it is called so.")]
    Verify(VerifyArgs),
    /// Says what can be put right in a log, and with --apply does it, after a backup
    #[command(after_help = "Examples:
  tidelog wal repair data/n1
  tidelog wal repair data/n1 --apply
  tidelog wal repair data/n1 --apply --backup /mnt/elsewhere

Without --apply nothing is changed. With it the node must be stopped, and every file that changes is copied first. It writes
damaged copies of segment headers again from the good ones, removes files that are not part of the log, and cuts the torn
or suspect tail of a log that has no other voter, as the next start would. What may have been committed is never dropped:
damaged entries come back from the other voters when the node runs. Exit code 1 if something is left that is damaged.")]
    Repair(RepairArgs),
    /// Where two nodes' logs part, partition by partition, and whether they may
    #[command(after_help = "Examples:
  tidelog wal diff data/n1 data/n2
  tidelog wal diff data/n1 data/n2 --partition 3 --output json

Exit code 0 if one log is the beginning of the other, or if they part where they may: an end that is not committed stays on a
node until a leader cuts it. Exit code 1 if they differ where both know that their own entry is committed, if one (index,
generation) has two contents, if they part and meet again, or if a log is damaged. It keeps 16 bytes an entry in memory.")]
    Diff(DiffArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct DumpArgs {
    /// Data directories
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    selection: selection::Selection,
    /// Payloads: the beginning of each for people and base64 for programs, unless this says otherwise
    #[arg(long, value_enum, value_name = "ENCODING")]
    payload: Option<dump::Encoding>,
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

#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    /// A data directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Do it; the node must be stopped
    #[arg(long)]
    apply: bool,
    /// Where the backup is put; the data directory itself if not given
    #[arg(long, value_name = "DIR", requires = "apply")]
    backup: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// A data directory
    #[arg(value_name = "DIR")]
    a: PathBuf,
    /// Another node's
    #[arg(value_name = "DIR")]
    b: PathBuf,
    /// Only this partition; may be given again
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Dump(args) => dump::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Diff(args) => diff::run(&args),
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
        if logs.len() > before {
            continue;
        }
        let found = identity(io, dir);
        let dir = dir.display();
        return Err(match found {
            None => Failure::usage(format!("{dir} holds no log"))
                .advise("name a node's data directory, [node] data_dir in its configuration"),
            Some(Err(why)) => Failure::failed(format!("{dir} holds no log, and its identity file is damaged: {why}")),
            Some(Ok(found)) if found.identity.has_log => Failure::failed(format!(
                "the log is gone from {dir}: its identity says that there was one, and a node without its log must not vote"
            ))
            .advise("restore the directory"),
            Some(Ok(_)) => {
                Failure::failed(format!("{dir} holds no log yet: it is made when the cluster is formed"))
            }
        });
    }
    Ok(logs)
}

/// As whom a log is looked at whose directory has this identity.
fn eyes(found: Option<&Found>) -> Eyes {
    let identity = found.map(|found| &found.identity);
    Eyes {
        single_voter: identity.is_some_and(|identity| identity.replication == 1),
        cluster_tag: identity
            .and_then(|identity| identity.formed.as_ref())
            .map(|formed| formed.cluster.tag()),
        must_exist: identity.is_some_and(|identity| identity.has_log),
    }
}

/// Nothing can be said about a log whose files cannot be read.
fn cannot_read(error: &OpenError) -> Failure {
    Failure::failed(format!("the log cannot be read, and nothing is known about it: {error}"))
        .advise("run this as the user whose node it is, or as root")
}

fn list(io: &mut dyn Io, dir: &Path) -> Result<Vec<String>, Failure> {
    if dir.as_os_str().is_empty() {
        return Err(Failure::usage("the name of the data directory is empty")
            .advise("name a node's data directory, [node] data_dir in its configuration"));
    }
    match Foreground::new(io).run(Op::List { path: dir.to_owned() }) {
        Ok(Output::Names(names)) => Ok(names),
        Ok(other) => Err(Failure::failed(format!("list {}: answered with {other:?}", dir.display()))),
        Err(error) => Err(Failure::usage(error).advise("name a node's data directory that can be read")),
    }
}

/// What the identity file of a data directory says; none if it has none. An error says why nothing is to be had from it.
fn identity(io: &mut dyn Io, data_dir: &Path) -> Option<Result<Found, String>> {
    let data_dir = if data_dir.as_os_str().is_empty() { Path::new(".") } else { data_dir };
    let loaded = Identity::load(&mut Foreground::new(io), data_dir).transpose()?;
    Some(loaded.map(|loaded| loaded.found).map_err(|error| error.to_string()))
}

/// What is wrong with a data directory that has none: a node refuses to start with it.
const NO_IDENTITY: &str = "there is no identity file in the data directory: a node refuses to start, since nobody can know whose log this is. Restore the file";

/// Whether a log was found below a data directory, which has an identity, or was named itself.
fn is_below(dirs: &[PathBuf], log: &Path) -> bool {
    !dirs.iter().any(|dir| dir == log)
}

/// Which copy of an identity is damaged; none if none is.
fn damaged_copy(found: &Found) -> Option<String> {
    match &found.flaw {
        Some(flaw @ Flaw::Damaged { .. }) => Some(flaw.to_string()),
        Some(Flaw::OneCopy) | None => None,
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
        RecordKind::Lost => "lost",
        RecordKind::LostCopies => "lost_copies",
    }
}
