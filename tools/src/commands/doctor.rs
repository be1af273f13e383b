//! `tidelog doctor`: the host, before it is trusted with a log.

use crate::disk_space::nearest;
use crate::failure::{Exit, Failure};
use crate::output::{Output, OutputArgs, Printer};
use crate::preflight::Preflight;
use std::path::PathBuf;
use tidelog::config::Config;

pub(crate) const EXAMPLES: &str = "Example:
  tidelog doctor --dir /mnt/disk
  tidelog doctor --config node.toml";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory on the disk that will hold the log; a small file is written there and removed again
    #[arg(long, value_name = "DIR", default_value = ".", conflicts_with = "config")]
    dir: PathBuf,
    /// A node's configuration: its data directory is looked at, and what it needs; without it, what a node with default settings needs
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let (dir, config) = match &args.config {
        Some(file) => {
            let config = Config::load(file)?;
            (nearest(&config.node.data_dir).to_owned(), config)
        }
        None => (args.dir.clone(), Config::single(args.dir)),
    };
    let preflight = Preflight::measure(&dir, &config).map_err(|error| {
        Failure::failed(error).advise("name a directory that is there and can be written to, with --dir")
    })?;
    let mut printer = Printer::new();
    match args.output.output {
        Output::Json => printer.object(&preflight)?,
        Output::Text => {
            for line in preflight.lines() {
                printer.line(line)?;
            }
        }
    }
    printer.flush()?;
    Ok(Exit::Done)
}
