//! `tidelog status`: every node and every partition.
//!
//! All nodes are asked at once, those that the cluster names as well as those given, and each has a second for its answer. Of many partitions the
//! answer comes in pieces; a node that has sent one has longer for the next.

use super::ClusterArgs;
use crate::failure::{Exit, Failure};
use crate::output::{Output, OutputArgs, Printer};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tidelog::request::{NodeStatus, PartitionStatus, Reply};
use tidelog::space::about;
use tidelog_bench::clock;
use tidelog_net::{Bulk, Client, ClientError, ClientOptions, ClientRequest, Target};
use tidelog_types::PartitionId;

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog status --cluster 127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103
  tidelog status --cluster 127.0.0.1:7101 --output json

One address is enough: the nodes that the cluster names are shown too, behind those given. Exit code 1 if a node could not be reached.";

/// How long a node has to answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node that has answered has for each further piece: it is there, and busy if that takes long.
const PIECE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often nodes that were named meanwhile are looked for.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A node, and what it said so far.
struct Asked {
    address: SocketAddr,
    sent: clock::Moment,
    sent_wall: Duration,
    line: Line,
    done: bool,
}

#[derive(Serialize)]
struct Line {
    reachable: bool,
    #[serde(flatten)]
    status: NodeStatus,
    /// How far the node's wall clock is ahead of this machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_skew_ms: Option<i64>,
    /// By how much that may be wrong: half the time that the answer took.
    #[serde(skip_serializing_if = "Option::is_none")]
    clock_skew_error_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Asked {
    fn new(address: SocketAddr) -> Asked {
        let status = NodeStatus { address: address.to_string(), ..NodeStatus::default() };
        let line =
            Line { reachable: false, status, clock_skew_ms: None, clock_skew_error_ms: None, error: None };
        Asked { address, sent: clock::now(), sent_wall: clock::wall(), line, done: false }
    }

    /// Asks for the partitions from `first` on.
    fn ask(&mut self, bulk: &mut Bulk, tag: u64, first: u64) -> Result<(), Failure> {
        (self.sent, self.sent_wall) = (clock::now(), clock::wall());
        let request = ClientRequest::status_from(Target::Address(self.address), PartitionId(first));
        let timeout = if self.line.reachable { PIECE_TIMEOUT } else { TIMEOUT };
        bulk.submit(tag, request.within(timeout))
            .map_err(|_| Failure::failed("there are more nodes than requests that may be in flight"))
    }

    /// Takes a piece of its answer; which partition is to be asked for next.
    fn answered(&mut self, result: Result<Reply, ClientError>) -> Option<u64> {
        self.done = true;
        let status = match result {
            Ok(Reply::Status(status)) => *status,
            Ok(_) => {
                self.line.error = Some("the node's answer is not a status: is it of this version?".into());
                return None;
            }
            Err(error) => {
                self.line.error = Some(error.to_string());
                return None;
            }
        };
        let next = status.next_partition;
        if self.line.reachable {
            self.line.status.partitions.extend(status.partitions);
        } else {
            let half = clock::now().since(self.sent) / 2;
            let here = i64::try_from((self.sent_wall + half).as_millis()).unwrap_or(i64::MAX);
            if status.wall_ms > 0 {
                self.line.clock_skew_ms =
                    Some(i64::try_from(status.wall_ms).unwrap_or(i64::MAX).saturating_sub(here));
                self.line.clock_skew_error_ms = Some(u64::try_from(half.as_millis()).unwrap_or(u64::MAX) + 1);
            }
            self.line.reachable = true;
            self.line.status = status;
        }
        // A partition is never named twice, so this ends.
        let last = self.line.status.partitions.last().map(|p| p.partition);
        let next = next.filter(|next| last.is_some_and(|last| last < *next));
        self.line.status.next_partition = None;
        self.done = next.is_none();
        next
    }
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let client =
        Client::connect(ClientOptions::new(args.cluster.cluster.clone())).map_err(Failure::failed)?;
    let mut lines = ask_all(&client, &args.cluster.cluster)?;
    add_lag(&mut lines);
    let mut out = Printer::new();
    for line in &lines {
        match args.output.output {
            Output::Json => out.object(line)?,
            Output::Text => print(&mut out, line)?,
        }
    }
    if args.output.output == Output::Text
        && let Some(warning) = clocks_apart(&lines)
    {
        out.line(warning)?;
    }
    out.flush()?;
    Ok(if lines.iter().all(|line| line.error.is_none()) { Exit::Done } else { Exit::Failed })
}

/// The lines of the nodes given, in that order, and behind them of those that the cluster names.
fn ask_all(client: &Client, given: &[SocketAddr]) -> Result<Vec<Line>, Failure> {
    let mut bulk = client.bulk();
    let mut asked: Vec<Asked> = Vec::new();
    let mut wanted = given.to_vec();
    loop {
        for address in wanted.drain(..) {
            if !asked.iter().any(|a| a.address == address) {
                let mut node = Asked::new(address);
                node.ask(&mut bulk, asked.len() as u64, 0)?;
                asked.push(node);
            }
        }
        for done in bulk.results_within(LOOK) {
            let Some(node) = usize::try_from(done.tag).ok().and_then(|i| asked.get_mut(i)) else { continue };
            if let Some(next) = node.answered(done.result) {
                node.ask(&mut bulk, done.tag, next)?;
            }
        }
        wanted.extend(client.nodes().into_values());
        let news = wanted.iter().any(|address| !asked.iter().any(|a| a.address == *address));
        if !news && asked.iter().all(|node| node.done) {
            break;
        }
    }
    // A node may have been given under another address than the one that the cluster names.
    let mut lines: Vec<Line> = Vec::new();
    let met: Vec<u64> = asked.iter().filter(|a| a.line.reachable).map(|a| a.line.status.node).collect();
    for node in asked {
        let id = node.line.status.node;
        let twice = node.line.reachable && lines.iter().any(|l| l.reachable && l.status.node == id);
        let named = client.nodes().into_iter().find(|(_, at)| *at == node.address).map(|(n, _)| n.get());
        let other_name =
            !node.line.reachable && !given.contains(&node.address) && named.is_some_and(|n| met.contains(&n));
        if !twice && !other_name {
            let mut line = node.line;
            if !line.reachable {
                line.status.node = named.unwrap_or(0);
            }
            lines.push(line);
        }
    }
    Ok(lines)
}

/// How far each replica's high-water mark is behind the highest one seen.
fn add_lag(lines: &mut [Line]) {
    let mut highest: BTreeMap<u64, u64> = BTreeMap::new();
    for p in lines.iter().flat_map(|line| &line.status.partitions) {
        let mark = highest.entry(p.partition).or_default();
        *mark = p.high_water.max(*mark);
    }
    for p in lines.iter_mut().flat_map(|line| &mut line.status.partitions) {
        p.lag = highest.get(&p.partition).map(|mark| mark - p.high_water);
    }
}

/// A warning if two nodes' clocks are surely further apart than replicated time forgives without a word.
fn clocks_apart(lines: &[Line]) -> Option<String> {
    const APART: i64 = 1000;
    let clocks = lines.iter().filter_map(|line| {
        let error = i64::try_from(line.clock_skew_error_ms?).unwrap_or(i64::MAX);
        Some((line.clock_skew_ms?, error, line.status.node))
    });
    let clocks: Vec<_> = clocks.collect();
    let ahead = clocks.iter().max_by_key(|(skew, error, _)| skew - error)?;
    let behind = clocks.iter().min_by_key(|(skew, error, _)| skew + error)?;
    let apart = (ahead.0 - ahead.1) - (behind.0 + behind.1);
    (apart > APART).then(|| {
        format!(
            "the clocks of nodes {} and {} are at least {apart} ms apart: check the time synchronisation of both",
            ahead.2, behind.2
        )
    })
}

fn print(out: &mut Printer, line: &Line) -> std::io::Result<()> {
    let s = &line.status;
    if !line.reachable {
        let node = if s.node == 0 { String::new() } else { format!("node {} at ", s.node) };
        return out.line(format!(
            "{node}{}: not reachable: {}",
            s.address,
            line.error.as_deref().unwrap_or("no answer")
        ));
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
    if !s.waiting.is_empty() {
        out.line(format!("  waiting: {}", s.waiting))?;
    }
    if let (Some(skew), Some(error)) = (line.clock_skew_ms, line.clock_skew_error_ms) {
        out.line(format!("  clock: {skew:+} ms against this machine's, give or take {error} ms"))?;
    }
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
            "  partition  role       leader  generation  readable   low-water  held by                       snapshot   applied    durable    high-water  lag        last",
        )?;
    }
    for p in &s.partitions {
        let leader = p.leader.map_or("-".to_owned(), |n| n.to_string());
        out.line(format!(
            "  {:<9}  {:<9}  {:<6}  {:<10}  {:<9}  {:<9}  {:<28}  {:<9}  {:<9}  {:<9}  {:<10}  {:<9}  {}",
            p.partition,
            p.role,
            leader,
            p.generation,
            p.first_readable,
            p.low_water,
            p.low_water_held_by,
            p.snapshot,
            p.applied.map_or("none".to_owned(), |applied| applied.to_string()),
            p.durable,
            p.high_water,
            p.lag.unwrap_or(0),
            p.last
        ))?;
        for note in notes(p) {
            out.line(format!("    {note}"))?;
        }
    }
    if let Some(error) = &line.error {
        out.line(format!("  the partitions behind these are not shown: {error}"))?;
    }
    Ok(())
}

/// What an operator has to know of a partition, beside its numbers.
fn notes(p: &PartitionStatus) -> Vec<String> {
    let mut notes = Vec::new();
    if p.damaged > 0 {
        notes.push(format!("{} entries are damaged here", p.damaged));
    }
    if !p.needs_snapshot.is_empty() {
        notes.push(format!(
            "nodes {:?} need a snapshot: the entries that they lack are not kept any more",
            p.needs_snapshot
        ));
    }
    if !p.lost.is_empty() {
        notes.push(format!(
            "nodes {:?} lack entries that they had confirmed, and are counted no more: see docs/operations.md",
            p.lost
        ));
    }
    if p.contradicted {
        notes.push(
            "the leader wants other entries where this node's own are committed: keep this node's directory, see docs/operations.md"
                .into(),
        );
    }
    if p.refused_messages > 0 {
        notes.push(format!("{} messages that no correct peer sends were refused", p.refused_messages));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(node: u64, skew: i64, error: u64, high_water: u64) -> Line {
        let partition = PartitionStatus { partition: 3, high_water, ..PartitionStatus::default() };
        let status = NodeStatus { node, partitions: vec![partition], ..NodeStatus::default() };
        let (clock_skew_ms, clock_skew_error_ms) = (Some(skew), Some(error));
        Line { reachable: true, status, clock_skew_ms, clock_skew_error_ms, error: None }
    }

    #[test]
    fn lag_is_against_the_highest_mark_seen() {
        let mut lines = [line(1, 0, 1, 40), line(2, 0, 1, 100), line(3, 0, 1, 0)];
        add_lag(&mut lines);
        assert_eq!(lines.map(|l| l.status.partitions[0].lag), [Some(60), Some(0), Some(100)]);
    }

    #[test]
    fn trouble_is_shown_in_the_text_too() {
        assert!(notes(&PartitionStatus::default()).is_empty());
        let trouble = PartitionStatus {
            damaged: 3,
            needs_snapshot: vec![2],
            lost: vec![3],
            contradicted: true,
            refused_messages: 7,
            ..PartitionStatus::default()
        };
        let said = notes(&trouble).join("\n");
        for part in
            ["3 entries are damaged", "[2] need a snapshot", "[3] lack", "own are committed", "7 messages"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn clocks_are_called_apart_only_if_they_surely_are() {
        assert_eq!(clocks_apart(&[line(1, -900, 10, 0), line(2, 50, 10, 0)]), None);
        assert_eq!(clocks_apart(&[line(1, -900, 800, 0), line(2, 900, 10, 0)]), None);
        let said = clocks_apart(&[line(1, -900, 10, 0), line(2, 200, 10, 0), line(3, 0, 1, 0)]).unwrap();
        assert!(said.contains("nodes 2 and 1") && said.contains("at least 1080 ms"), "{said}");
        assert_eq!(clocks_apart(&[]), None);
    }
}
