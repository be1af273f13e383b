//! `tidelog demo`: a cluster on this machine, killed and compared.
//!
//! Real node processes of this very program on loopback, real directories, open-loop load, SIGKILL to a leader half-way. The
//! verdict comes from the clients' own log ([`ledger`]) against what each node gives back from its own log, and
//! against the files after the stop.

mod check;
mod drive;
mod ledger;
mod lines;
mod report;

use crate::failure::{Exit, Failure};
use crate::flag;
use crate::local_cluster::{LocalCluster, Nodes, Shape};
use crate::logging;
use crate::output::{Output, OutputArgs};
use crate::preflight::Preflight;
use std::path::PathBuf;
use std::time::Duration;
use tidelog::config::Config;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog demo
  tidelog demo --seconds 60 --rate 20000 --payload 1KiB --report report
  tidelog demo --input /var/log/syslog

Exit code 1 if anything acknowledged is missing, changed, doubled or out of order on any node, or if less than 90 % of the
load outside the fail-over was acknowledged.";

/// Records offered per second unless told otherwise.
const RATE: u64 = 2000;
/// After an interruption: how often, and after what time each, it is tried to remove what was made.
const LAST_STEPS: u32 = 50;
const LAST_STEP: Duration = Duration::from_millis(20);
/// Partitions of the cluster under load.
const PARTITIONS: u64 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Node processes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// Time under load
    #[arg(long, value_name = "S", default_value_t = 20, value_parser = clap::value_parser!(u64).range(4..=86_400))]
    pub(crate) seconds: u64,
    /// Records offered per second
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub(crate) rate: Option<u64>,
    /// Bytes of a record
    #[arg(long, value_name = "BYTES", default_value = "1KiB", value_parser = flag::bytes)]
    pub(crate) payload: u64,
    /// Replicate the lines of this file, and prove by hash that every replica has it whole and in order
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "payload", "seconds"])]
    pub(crate) input: Option<PathBuf>,
    /// Where the nodes' data directories go, empty or not there yet; kept afterwards. Without it: a temporary
    /// directory, removed if all is well
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Where the report goes; into a temporary directory without it
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// Do not kill the leader half-way
    #[arg(long)]
    pub(crate) no_kill: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Lines for people while it runs; nothing of them if the answer is for programs.
pub(crate) struct Talk {
    quiet: bool,
}

impl Talk {
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        use std::io::Write;
        if !self.quiet {
            let mut out = std::io::stdout().lock();
            // A reader that went away does not stop the run; the exit code still tells.
            let _ = writeln!(out, "{}", line.as_ref()).and_then(|()| out.flush());
        }
    }
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    if args.payload > tidelog_types::limits::PAYLOAD_BYTES_MAX as u64 {
        return Err(Failure::usage(format!("--payload {} is over the limit of 2 MiB", args.payload)));
    }
    // Read before anything is started: a file that is not there starts nothing.
    let source = args.input.as_deref().map(lines::Source::read).transpose()?;
    let talk = Talk { quiet: args.output.output == Output::Json };
    let base = std::env::temp_dir().join(format!("tidelog-demo-{}", std::process::id()));
    let dir = args.dir.clone().unwrap_or_else(|| base.join("data"));
    let report_dir = args.report.clone().unwrap_or_else(|| base.join("report"));
    let nodes = Nodes::default();
    leave_nothing_when_interrupted(&nodes, base.clone())?;
    for path in [&dir, &report_dir] {
        std::fs::create_dir_all(path)
            .map_err(|e| Failure::failed(format!("cannot create {}: {e}", path.display())))?;
    }
    if std::fs::read_dir(&dir).map_err(Failure::failed)?.next().is_some() {
        return Err(Failure::usage(format!("{} is not empty", dir.display()))
            .advise("name another --dir, or empty it"));
    }
    talk.say("the host");
    let preflight = Preflight::measure(&dir, &Config::single(&dir)).map_err(Failure::failed)?;
    preflight.lines().iter().for_each(|line| talk.say(format!("  {line}")));

    let program =
        std::env::current_exe().map_err(|e| Failure::failed(format!("cannot find this program: {e}")))?;
    let shape = Shape {
        name: "demo".into(),
        nodes: args.nodes,
        partitions: if args.input.is_some() { 1 } else { PARTITIONS },
        profiles: vec!["laptop".into(), "balanced".into()],
        extra: String::new(),
    };
    talk.say(format!(
        "\n{} node processes, {} partitions, replicated to every node",
        shape.nodes, shape.partitions
    ));
    let mut cluster = LocalCluster::start(&program, &dir, &shape, nodes).map_err(Failure::failed)?;
    let config = std::fs::read_to_string(cluster.config_path(1)).map_err(Failure::failed)?;
    let outcome = match &source {
        Some(source) => lines::run(&args, source, &mut cluster, &talk),
        None => drive::run(&args, args.rate.unwrap_or(RATE), PARTITIONS, &mut cluster, &talk),
    }?;
    let written = report::write(&report_dir, &outcome, &preflight, &config)?;
    report::show(&outcome, &written, args.output.output, &talk)?;
    if outcome.is_good() && args.dir.is_none() {
        drop(cluster);
        std::fs::remove_dir_all(&dir)
            .map_err(|e| Failure::failed(format!("cannot remove {}: {e}", dir.display())))?;
    } else {
        talk.say(format!("data     {}", dir.display()));
    }
    Ok(if outcome.is_good() { Exit::Done } else { Exit::Failed })
}

/// What is asked to end half-way ends its nodes and removes what it made itself: the temporary directory. A directory named by --dir or --report
/// stays.
fn leave_nothing_when_interrupted(nodes: &Nodes, base: PathBuf) -> Result<(), Failure> {
    let nodes = nodes.clone();
    tidelog_io::signals::on_termination(move |_| {
        nodes.kill_all();
        let mut removed = std::fs::remove_dir_all(&base);
        for _ in 0..LAST_STEPS {
            // A process that was killed may still finish what it was doing with a file.
            match &removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => pause(LAST_STEP),
                _ => break,
            }
            removed = std::fs::remove_dir_all(&base);
        }
        logging::say("error: interrupted before the end: nothing was proven");
        if let Err(error) = removed
            && error.kind() != std::io::ErrorKind::NotFound
        {
            logging::say(&format!("  next: remove {}: {error}", base.display()));
        }
        logging::flush();
        std::process::exit(1);
    })
    .map_err(Failure::failed)
}

/// Waits. Nothing here has anything else to do meanwhile.
pub(crate) fn pause(time: Duration) {
    std::thread::park_timeout(time);
}
