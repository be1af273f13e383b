//! `tidelog config`: what a node is told, and why.

use crate::disk_space::DiskSpace;
use crate::failure::{Exit, Failure};
use crate::output::{Output, OutputArgs, Printer};
use serde::Serialize;
use std::path::PathBuf;
use tidelog::config::{Complaint, Config, ConfigError, Explanation, keys, reference};

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog config check node.toml
  tidelog config explain node.toml wal.segment_size";

#[derive(clap::Subcommand, Debug)]
pub(crate) enum Command {
    /// Says everything that is wrong, and what deserves a second look. Exit code 2 if anything is wrong
    #[command(after_help = "Example:\n  tidelog config check node.toml")]
    Check(FileArgs),
    /// The effective configuration: every key, and where its value comes from
    #[command(after_help = "Example:\n  tidelog config show node.toml > effective.toml")]
    Show(FileArgs),
    /// Keys with value, unit, bounds, origin and effect; all of them if none is named
    #[command(after_help = "Example:\n  tidelog config explain node.toml wal.sync")]
    Explain(ExplainArgs),
    /// The reference of all keys and profiles, in Markdown
    #[command(after_help = "Example:\n  tidelog config reference | less")]
    Reference,
}

#[derive(Debug, clap::Args)]
pub(crate) struct FileArgs {
    /// A node's configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    /// A node's configuration
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Which keys, such as wal.sync, or sections, such as wal
    #[arg(value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Check(args) => check(&args),
        Command::Show(args) => show(&args),
        Command::Explain(args) => explain(&args),
        Command::Reference => {
            let mut printer = Printer::new();
            printer.line(reference().trim_end())?;
            printer.flush()?;
            Ok(Exit::Done)
        }
    }
}

/// A complaint as JSON.
#[derive(Serialize)]
struct Finding<'c> {
    line: Option<usize>,
    column: Option<usize>,
    key: &'c str,
    value: &'c str,
    problem: &'c str,
}

impl<'c> From<&'c Complaint> for Finding<'c> {
    fn from(complaint: &'c Complaint) -> Finding<'c> {
        Finding {
            line: complaint.at.map(|at| at.line),
            column: complaint.at.map(|at| at.column),
            key: &complaint.key,
            value: &complaint.value,
            problem: &complaint.problem,
        }
    }
}

fn findings(complaints: &[Complaint]) -> Vec<Finding<'_>> {
    complaints.iter().map(Finding::from).collect()
}

#[derive(Serialize)]
struct Checked<'c> {
    file: String,
    outcome: &'static str,
    errors: Vec<Finding<'c>>,
    warnings: Vec<Finding<'c>>,
    /// Null if the configuration is not sound, or the file system does not tell.
    space: Option<DiskSpace>,
}

fn check(args: &FileArgs) -> Result<Exit, Failure> {
    let checked = Config::load(&args.file);
    let file = args.file.display().to_string();
    let mut printer = Printer::new();
    if args.output.output == Output::Json {
        let (outcome, errors, warnings): (_, &[Complaint], &[Complaint]) = match &checked {
            Ok(config) => ("ok", &[], &config.warnings),
            Err(error @ ConfigError::Read { .. }) => return Err(error.clone().into()),
            Err(error) => ("invalid", error.complaints(), &[]),
        };
        let space = checked.as_ref().ok().and_then(|config| DiskSpace::of(config).ok());
        let (errors, warnings) = (findings(errors), findings(warnings));
        printer.object(&Checked { file, outcome, errors, warnings, space })?;
        printer.flush()?;
        return Ok(if checked.is_ok() { Exit::Done } else { Exit::Usage });
    }
    let config = checked?;
    for warning in &config.warnings {
        printer.line(format_args!("warning: {file}:{warning}"))?;
    }
    printer.line(format_args!(
        "{file} is sound: node {} of cluster {:?}, {} nodes, {} partitions x {} replicas",
        config.node.id,
        config.cluster.name,
        config.cluster.nodes.len(),
        config.cluster.partitions,
        config.cluster.replication,
    ))?;
    match DiskSpace::of(&config) {
        Ok(space) => {
            printer.line(format_args!("disk space: {}", space.line()))?;
            if let Some(trouble) = &space.trouble {
                printer.line(format_args!("warning: {file}: node.data_dir: the disk is {trouble}"))?;
            }
        }
        Err(error) => printer.line(format_args!("warning: {file}: node.data_dir: {error}"))?,
    }
    printer.flush()?;
    Ok(Exit::Done)
}

/// A key as JSON.
#[derive(Serialize)]
struct Explained {
    key: &'static str,
    /// As TOML; null if it is not set.
    value: Option<String>,
    origin: String,
    unit: &'static str,
    bounds: String,
    default: String,
    scope: &'static str,
    effect: &'static str,
    not_yet: Option<&'static str>,
}

impl From<&Explanation<'_>> for Explained {
    fn from(explanation: &Explanation<'_>) -> Explained {
        let key = explanation.key;
        Explained {
            key: key.name,
            value: explanation.value(),
            origin: explanation.origin().to_string(),
            unit: key.unit(),
            bounds: key.bounds(),
            default: key.default_text(),
            scope: key.scope.words(),
            effect: key.effect,
            not_yet: key.later,
        }
    }
}

#[derive(Serialize)]
struct Shown {
    profile: Vec<&'static str>,
    keys: Vec<ShownKey>,
}

#[derive(Serialize)]
struct ShownKey {
    key: &'static str,
    value: Option<String>,
    origin: String,
}

fn show(args: &FileArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.file)?;
    let mut printer = Printer::new();
    match args.output.output {
        Output::Text => printer.line(config.to_toml().trim_end())?,
        Output::Json => {
            let keys = keys().iter().map(|key| ShownKey {
                key: key.name,
                value: key.value(&config),
                origin: config.origin(key.name).to_string(),
            });
            printer.object(&Shown { profile: config.profile.clone(), keys: keys.collect() })?;
        }
    }
    printer.flush()?;
    Ok(Exit::Done)
}

fn explain(args: &ExplainArgs) -> Result<Exit, Failure> {
    let config = Config::load(&args.file)?;
    let mut wanted: Vec<&str> = Vec::new();
    for name in &args.keys {
        let before = wanted.len();
        wanted.extend(keys().iter().filter(|k| k.name == name || k.section() == name).map(|k| k.name));
        if wanted.len() == before {
            return Err(Failure::usage(format!("there is no key or section {name:?}"))
                .advise("`tidelog config reference` lists every key"));
        }
    }
    if args.keys.is_empty() {
        wanted = keys().iter().map(|k| k.name).collect();
    }
    let mut printer = Printer::new();
    for (position, explanation) in wanted.iter().filter_map(|name| config.explain(name)).enumerate() {
        match args.output.output {
            Output::Json => printer.object(&Explained::from(&explanation))?,
            Output::Text if position == 0 => printer.line(explanation)?,
            Output::Text => printer.line(format_args!("\n{explanation}"))?,
        }
    }
    printer.flush()?;
    Ok(Exit::Done)
}
