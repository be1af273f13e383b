//! `tidelog serve`: one node in the foreground.

use crate::failure::{Exit, Failure};
use crate::flag;
use crate::logging;
use crate::output::Printer;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tidelog::Engine;
use tidelog::config::Config;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog serve --config node.toml
  tidelog serve --dev --dir data --listen 127.0.0.1:7101

Prints one JSON line on stdout when it is ready, which is when it serves its log: before that, one for each reason why it waits
({\"event\":\"waiting\",\"why\":...}), while the cluster is not formed or the node is refused. Logs go to stderr.";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's configuration
    #[arg(long, value_name = "FILE", required_unless_present = "dev", conflicts_with_all = ["dev", "dir", "listen"])]
    pub(crate) config: Option<PathBuf>,
    /// One node with one partition, for development
    #[arg(long, requires = "dir")]
    pub(crate) dev: bool,
    /// With --dev: the data directory
    #[arg(long, value_name = "DIR", requires = "dev")]
    pub(crate) dir: Option<PathBuf>,
    /// With --dev: where to listen; a free port of 127.0.0.1 without it
    #[arg(long, value_name = "ADDR", requires = "dev", value_parser = flag::address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Stop cleanly when standard input is closed, too: for a process that must not outlive its parent
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Serialize)]
struct Ready {
    event: &'static str,
    node: u64,
    addresses: Vec<SocketAddr>,
    recovered_ms: u64,
    recovery: String,
}

#[derive(Serialize)]
struct Waiting<'a> {
    event: &'static str,
    node: u64,
    why: &'a str,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let config = match (args.config, args.dir) {
        (Some(path), _) => Config::load(path)?,
        (None, Some(dir)) => {
            let mut config = Config::single(dir);
            let listen = args.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
            for founder in &mut config.cluster.nodes {
                founder.addresses = vec![listen];
            }
            config
        }
        (None, None) => return Err(Failure::usage("--dev needs --dir")),
    };
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let node = config.node.id.get();
    let stop = Stop::default();
    let asked = stop.clone();
    tidelog_io::signals::on_termination(move |times| asked.asked(times)).map_err(Failure::failed)?;
    if args.until_stdin_closes {
        let asked = stop.clone();
        std::thread::spawn(move || {
            // An error is an end as well: nobody is there any more.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            asked.asked(1);
        });
    }
    tracing::info!(directory = %config.node.data_dir.display(), "opening");
    let begun = tidelog_bench::clock::now();
    let engine = tidelog_net::open(config).map_err(Failure::failed)?;
    let recovered_ms =
        u64::try_from(tidelog_bench::clock::now().since(begun).as_millis()).unwrap_or(u64::MAX);
    stop.opened(&engine);
    let ready = engine.ready().clone();
    let mut out = Printer::new();
    let mut printed = Ok(());
    let serves = engine.wait_serving(|why| {
        let line = out.object(&Waiting { event: "waiting", node, why }).and_then(|()| out.flush());
        printed = std::mem::replace(&mut printed, Ok(())).and(line);
    });
    printed?;
    let addresses = ready.address.into_iter().collect();
    let line = Ready { event: "ready", node, addresses, recovered_ms, recovery: ready.recovery };
    // A node that was stopped while it waited was never ready.
    if serves && let Err(error) = out.object(&line).and_then(|()| out.flush()) {
        tracing::warn!("the ready line cannot be written to stdout: {error}; the node goes on without it");
    }
    engine.join().map_err(Failure::failed)?;
    Ok(Exit::Done)
}

/// What happens when the process is asked to stop: it ends at once while the node is being opened, and cleanly afterwards.
#[derive(Clone, Default)]
struct Stop(Arc<Mutex<Option<Engine>>>);

impl Stop {
    /// The node is there: from now on it is stopped rather than left.
    fn opened(&self, engine: &Engine) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(engine.clone());
    }

    fn asked(&self, times: u64) {
        // Held to the end: either the node is not there and never will be, or it is told.
        let engine = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*engine {
            Some(engine) if times == 1 => engine.stop(),
            None if times == 1 => {
                // An opening can be broken off at any point, as a crash does; nothing was acknowledged in this life.
                tracing::info!(
                    "asked to stop while the log was being opened: ended, the next start recovers it again"
                );
                logging::flush();
                std::process::exit(0);
            }
            // Asked twice: what is acknowledged is durable, so ending now loses nothing.
            _ => {
                logging::flush();
                std::process::exit(1)
            }
        }
    }
}
