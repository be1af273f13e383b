//! The one program of Tidelog: runs a node, talks to a cluster, reads data directories, measures, simulates.
//!
//! What it promises: results on stdout and nothing else there, logs and errors on stderr, exit code 0 for done, 1 for failed, 2 for
//! wrong usage or configuration. What it does not know: how anything is done; each command is a thin caller of the crate
//! that does.

mod cli;
mod commands;
mod disk_space;
mod failure;
mod flag;
mod framing;
mod local_cluster;
mod logging;
mod output;
mod preflight;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let _logging = logging::Logging::begin(cli.command.log_level());
    match cli.command.run() {
        Ok(exit) => exit.code(),
        Err(failure) => {
            failure.report();
            failure.exit.code()
        }
    }
}
