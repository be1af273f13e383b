//! `tidelog status`: every node and every partition.

use super::ClusterArgs;
use crate::failure::{Exit, Failure};
use crate::output::{Output, OutputArgs, Printer};
use serde::Serialize;
use std::time::Duration;
use tidelog::request::NodeStatus;
use tidelog::space::about;
use tidelog_net::{Client, ClientOptions, ClientRequest, Target};

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog status --cluster 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
  tidelog status --cluster 127.0.0.1:7101 --output json

Exit code 1 if a node could not be reached.";

/// How long a node has to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Serialize)]
struct Line {
    reachable: bool,
    #[serde(flatten)]
    status: NodeStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let client =
        Client::connect(ClientOptions::new(args.cluster.cluster.clone())).map_err(Failure::failed)?;
    let asked: Vec<_> = args
        .cluster
        .cluster
        .iter()
        .map(|address| {
            let request = ClientRequest::status(Target::Address(*address)).within(TIMEOUT);
            (*address, client.request(request))
        })
        .collect();
    let mut out = Printer::new();
    let mut all = true;
    for (address, answer) in asked {
        let line = match answer.wait() {
            Ok(tidelog::request::Reply::Status(status)) => {
                Line { reachable: true, status: *status, error: None }
            }
            Ok(_) => return Err(Failure::failed(format!("{address} answered something else than a status"))),
            Err(error) => {
                let status = NodeStatus { address: address.to_string(), ..NodeStatus::default() };
                Line { reachable: false, status, error: Some(error.to_string()) }
            }
        };
        all &= line.reachable;
        match args.output.output {
            Output::Json => out.object(&line)?,
            Output::Text => print(&mut out, &line)?,
        }
    }
    out.flush()?;
    Ok(if all { Exit::Done } else { Exit::Failed })
}

fn print(out: &mut Printer, line: &Line) -> std::io::Result<()> {
    let s = &line.status;
    if let Some(error) = &line.error {
        return out.line(format!("{}: not reachable: {error}", s.address));
    }
    let cluster = if s.cluster.is_empty() { "not formed yet" } else { &s.cluster };
    out.line(format!(
        "node {} at {}: version {}, up {:.1} s, cluster {cluster}, connected to {:?}",
        s.node,
        s.address,
        s.version,
        s.uptime_ms as f64 / 1000.0,
        s.connected
    ))?;
    if s.stalled_ms > 0 {
        out.line(format!(
            "  disk: STALLED: the oldest record has waited for {:.1} s, and no error is reported",
            s.stalled_ms as f64 / 1000.0
        ))?;
    } else if s.ranks_behind_ms > 0 {
        out.line(format!(
            "  disk: takes writes again; {} stalls so far; ranks behind other nodes in elections for {:.1} s more",
            s.stalls,
            s.ranks_behind_ms as f64 / 1000.0
        ))?;
    }
    if s.waiting_bytes > 0 {
        out.line(format!("  {} bytes received from other nodes wait for the disk", s.waiting_bytes))?;
    }
    if let Some(free) = s.disk_free_bytes {
        let trouble = if s.disk_trouble.is_empty() { String::new() } else { format!("; {}", s.disk_trouble) };
        out.line(format!(
            "  disk: {} free, the log has {}, the configuration needs {}{trouble}",
            about(free),
            about(s.disk_log_bytes),
            about(s.disk_needed_bytes)
        ))?;
    } else if !s.disk_trouble.is_empty() {
        out.line(format!("  disk: {}", s.disk_trouble))?;
    }
    for scrub in &s.scrub {
        out.line(format!(
            "  scrubbing: passes {}, {} bytes in this one, {} entries repaired, {} bad places without consequence, {} written again{}{}",
            scrub.passes,
            scrub.bytes,
            scrub.repaired,
            scrub.superseded,
            scrub.rewritten,
            if scrub.last.is_empty() { "" } else { "; last " },
            scrub.last
        ))?;
    }
    if !s.partitions.is_empty() {
        out.line(
            "  partition  role       leader  generation  readable   low-water  held by                       snapshot   applied    durable    high-water  last",
        )?;
    }
    for p in &s.partitions {
        let leader = p.leader.map_or("-".to_owned(), |n| n.to_string());
        out.line(format!(
            "  {:<9}  {:<9}  {:<6}  {:<10}  {:<9}  {:<9}  {:<28}  {:<9}  {:<9}  {:<9}  {:<10}  {}",
            p.partition,
            p.role,
            leader,
            p.generation,
            p.first_readable,
            p.low_water,
            p.low_water_held_by,
            p.snapshot,
            p.applied,
            p.durable,
            p.high_water,
            p.last
        ))?;
        if !p.needs_snapshot.is_empty() {
            out.line(format!(
                "    nodes {:?} need a snapshot: what they lack is not kept any more",
                p.needs_snapshot
            ))?;
        }
    }
    Ok(())
}
