//! `tidelog serve`: one node in the foreground.

use crate::failure::{Exit, Failure};
use crate::flag;
use crate::output::Printer;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use tidelog::config::Config;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog serve --config node.toml
  tidelog serve --dev --dir data --listen 127.0.0.1:7101

Prints one JSON line on stdout when it is ready; logs go to stderr.";

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
}

#[derive(Serialize)]
struct Ready {
    event: &'static str,
    node: u64,
    addresses: Vec<SocketAddr>,
    recovered_ms: u64,
    recovery: String,
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
    let begun = tidelog_bench::clock::now();
    let engine = tidelog_net::open(config).map_err(Failure::failed)?;
    let recovered_ms =
        u64::try_from(tidelog_bench::clock::now().since(begun).as_millis()).unwrap_or(u64::MAX);
    let stop = engine.clone();
    tidelog_io::signals::on_termination(move |times| {
        if times == 1 {
            stop.stop();
        } else {
            // Asked twice: what is acknowledged is durable, so ending now loses nothing.
            std::process::exit(1);
        }
    })
    .map_err(Failure::failed)?;
    let ready = engine.ready().clone();
    let mut out = Printer::new();
    let addresses = ready.address.into_iter().collect();
    out.object(&Ready { event: "ready", node, addresses, recovered_ms, recovery: ready.recovery })?;
    out.flush()?;
    engine.join().map_err(Failure::failed)?;
    Ok(Exit::Done)
}
