//! `tidelog node`: what is said to one node's directory while the node is stopped.

use crate::failure::{Exit, Failure};
use crate::output::{Output, OutputArgs, Printer};
use serde::Serialize;
use std::path::PathBuf;
use tidelog::adoption::{Adoption, adopt};
use tidelog::directory::describe_place;
use tidelog_io::{BackEnd, IoOptions, LockError, open_back_end};

pub(crate) const EXAMPLES: &str = "Example:
  tidelog node adopt data/n1";
const ADOPT_EXAMPLES: &str = "Examples:
  tidelog node adopt data/n1 --dry-run
  tidelog node adopt data/n1
  tidelog node adopt data/n1 --output json

The node must be stopped. Say this only of a directory that was moved or restored whole, as it was when the node stopped, and
whose original is gone for good. A copy that is older than the original lacks what the node has confirmed since, and acknowledged
records may be lost with it; of two directories that run at once, the peers refuse the second.
Exit code 1 if it is no node's directory, or in use.";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// A data directory was moved here, and its original is gone: let the node start on it
    #[command(after_help = ADOPT_EXAMPLES)]
    Adopt(AdoptArgs),
}

#[derive(clap::Args, Debug)]
pub(crate) struct AdoptArgs {
    /// The data directory, as [node] data_dir names it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Also let a barred directory take part again: only where it is known to lack nothing that the node ever confirmed
    #[arg(long)]
    lift_bar: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct Line {
    directory: String,
    node: u64,
    cluster_name: String,
    /// Whether it is where it was written, so that there is nothing to adopt.
    in_place: bool,
    adopted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    written_at: Option<String>,
    found_at: String,
    /// What the node lost, if it takes no part any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    barred: Option<String>,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    let Command::Adopt(args) = command;
    let dir = args.dir.as_path();
    // Looking alone must not make the directory, and taking its lock would.
    if !dir.join("identity").exists() {
        return Err(Failure::failed(format!(
            "{} has no file `identity`: name a node's data directory, as [node] data_dir does",
            dir.display()
        )));
    }
    let _lock = tidelog_io::lock_directory(dir).map_err(|error| {
        Failure::failed(match error {
            LockError::Io(error) => error.to_string(),
            LockError::Held { holder, .. } => {
                let holder = holder.map_or(String::new(), |pid| format!(" (pid {pid})"));
                format!("{} is in use by another process{holder}: stop the node first", dir.display())
            }
        })
    })?;
    let mut io = open_back_end(BackEnd::Blocking, &IoOptions::small()).map_err(Failure::failed)?;
    let adoption = adopt(&mut *io, dir, !args.dry_run, args.lift_bar).map_err(Failure::failed)?;
    let line = line_of(dir.display().to_string(), &adoption);
    let mut out = Printer::new();
    match args.output.output {
        Output::Json => out.object(&line)?,
        Output::Text => out.line(describe(&line))?,
    }
    out.flush()?;
    Ok(Exit::Done)
}

fn line_of(directory: String, adoption: &Adoption) -> Line {
    let Adoption { identity, written, found, in_place, adopted } = adoption;
    Line {
        directory,
        node: identity.node.get(),
        cluster_name: identity.cluster_name.clone(),
        in_place: *in_place,
        adopted: *adopted,
        written_at: written.map(describe_place),
        found_at: describe_place(*found),
        barred: identity.barred.map(|barred| barred.to_string()),
    }
}

fn describe(line: &Line) -> String {
    let Line { directory, node, cluster_name, found_at, .. } = line;
    let whose = format!("{directory} of node {node}, cluster {cluster_name:?}");
    let written = line.written_at.as_deref().unwrap_or("a place that it does not name");
    let what = match (line.in_place, line.adopted) {
        (true, _) => format!("{whose}: it lies where it was written ({found_at}); there is nothing to adopt"),
        (false, true) => {
            format!("{whose}: adopted. Its identity was written at {written}, and stands here from now on")
        }
        (false, false) => {
            format!(
                "{whose}: would be adopted. Its identity was written at {written}, and is at {found_at} now"
            )
        }
    };
    match &line.barred {
        Some(barred) => format!("{what}. It still takes no part: {barred}"),
        None => what,
    }
}
