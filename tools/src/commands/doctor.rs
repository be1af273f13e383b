//! `tidelog doctor`: the host, before it is trusted with a log.

use crate::failure::{Exit, Failure};
use crate::output::{Output, OutputArgs, Printer};
use crate::preflight::Preflight;
use std::path::PathBuf;

pub(crate) const EXAMPLES: &str = "Example:
  tidelog doctor --dir /mnt/disk";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory on the disk that will hold the log; a small file is written there and removed again
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let preflight = Preflight::measure(&args.dir).map_err(|error| {
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
