//! The command line: names, flags and examples. What is here is relied on by scripts.

use crate::commands::{append, bench, config, demo, doctor, node, read, serve, sim, snapshot, status, wal};
use crate::failure::{Exit, Failure};
use clap::{Parser, Subcommand};

/// A replicated write-ahead log: run it, use it, look into it, measure it.
#[derive(Parser, Debug)]
#[command(
    name = "tidelog",
    version,
    about,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. Results go to stdout, errors and logs to stderr \
                  (TIDELOG_LOG=info for more of them).\n\nExample:\n  tidelog demo"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Command {
    /// Three nodes on this machine under load, the leader killed half-way, everything read back and compared
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::Args),
    /// One node, in the foreground, until SIGTERM or SIGINT
    #[command(after_help = serve::EXAMPLES)]
    Serve(serve::Args),
    /// Append records from a file or stdin and say what became of each
    #[command(after_help = append::EXAMPLES)]
    Append(append::Args),
    /// Committed records, from an index to the high-water mark
    #[command(after_help = read::READ_EXAMPLES)]
    Read(read::Args),
    /// Every node and every partition: roles, marks, who is reachable
    #[command(after_help = status::EXAMPLES)]
    Status(status::Args),
    /// Snapshots of state machines: take
    #[command(subcommand, after_help = snapshot::EXAMPLES)]
    Snapshot(snapshot::Command),
    /// Look into a data directory, of a stopped or a running node
    #[command(subcommand, after_help = wal::EXAMPLES)]
    Wal(wal::Command),
    /// One node's data directory, while the node is stopped: adopt
    #[command(subcommand, after_help = node::EXAMPLES)]
    Node(node::Command),
    /// Check, show and explain a node's configuration
    #[command(subcommand, after_help = config::EXAMPLES)]
    Config(config::Command),
    /// Measure
    #[command(subcommand, after_help = bench::EXAMPLES)]
    Bench(bench::Command),
    /// The host: kernel, io_uring, direct I/O, limits, and how long the disk takes to keep a promise
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::Args),
    /// Whole clusters in a simulated world, with faults; a failure is a seed that replays
    #[command(after_help = sim::EXAMPLES)]
    Sim(sim::Args),
}

impl Command {
    /// What is logged unless `TIDELOG_LOG` says otherwise: a node tells of its life, a command only of trouble.
    pub(crate) fn log_level(&self) -> &'static str {
        match self {
            Command::Serve(_) => "info",
            // Simulated nodes fail by the hundred; what matters of it is in the report.
            Command::Sim(_) => "off",
            _ => "warn",
        }
    }

    pub(crate) fn run(self) -> Result<Exit, Failure> {
        match self {
            Command::Demo(args) => demo::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Append(args) => append::run(args),
            Command::Read(args) => read::run(args),
            Command::Status(args) => status::run(args),
            Command::Node(command) => node::run(command),
            Command::Wal(command) => wal::run(command),
            Command::Config(command) => config::run(command),
            Command::Bench(command) => bench::run(command),
            Command::Doctor(args) => doctor::run(args),
            Command::Sim(args) => sim::run(args),
            Command::Snapshot(command) => snapshot::run(command),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Every command and subcommand has an example in its help.
    #[test]
    fn every_command_has_an_example() {
        fn look(command: &clap::Command, path: &str) {
            for sub in command.get_subcommands() {
                let path = format!("{path} {}", sub.get_name());
                let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example") && help.contains(&path), "{path}: {help:?}");
                look(sub, &path);
            }
        }
        look(&Cli::command(), "tidelog");
    }
}
