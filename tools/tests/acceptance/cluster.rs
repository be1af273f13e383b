//! Several nodes that make a cluster, and what clients do with them.

use crate::clock::{Watch, wait_for};
use crate::command::{Said, tidelog, tidelog_with};
use crate::node::{Place, Process, free_address};
use serde_json::Value;
use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tempfile::TempDir;

/// What a cluster is to be.
#[derive(Clone)]
pub(crate) struct Shape<'a> {
    pub(crate) name: &'a str,
    pub(crate) nodes: u64,
    pub(crate) partitions: u64,
    /// More lines of configuration.
    pub(crate) extra: &'a str,
}

impl Default for Shape<'_> {
    fn default() -> Self {
        Shape { name: "acceptance", nodes: 3, partitions: 1, extra: "" }
    }
}

/// Small files: a node of a test writes little.
const SMALL: &str = "[wal]\nsegment_size = \"16MiB\"\nspare_segments = 1\n";

/// Node processes, numbered from 1, each with its configuration and data in one temporary directory.
pub(crate) struct Cluster {
    addresses: Vec<SocketAddr>,
    places: Vec<Place>,
    running: Vec<Option<Process>>,
    _dir: Option<TempDir>,
    _watch: Watch,
}

impl Cluster {
    /// Writes the configurations, without starting anything.
    pub(crate) fn prepare(shape: &Shape<'_>) -> Cluster {
        let dir = TempDir::new().expect("a temporary directory");
        let mut cluster = Cluster::prepare_in(dir.path(), shape);
        cluster._dir = Some(dir);
        cluster
    }

    /// The same in a directory that is there already, and stays.
    pub(crate) fn prepare_in(dir: &Path, shape: &Shape<'_>) -> Cluster {
        let addresses: Vec<_> = (0..shape.nodes).map(|_| free_address()).collect();
        let mut founders = String::new();
        for (id, address) in (1..).zip(&addresses) {
            writeln!(founders, "  {{ id = {id}, address = \"{address}\" }},").expect("a string grows");
        }
        let place = |id: u64| {
            let place = Place { config: dir.join(format!("n{id}.toml")), data: dir.join(format!("n{id}")) };
            let text = format!(
                "profile = [\"laptop\", \"balanced\"]\n[node]\nid = {id}\ndata_dir = {:?}\n\
                 [cluster]\nname = {:?}\nnodes = [\n{founders}]\npartitions = {}\n{}{}",
                place.data,
                shape.name,
                shape.partitions,
                if shape.extra.contains("[wal]") { "" } else { SMALL },
                shape.extra
            );
            std::fs::write(&place.config, text).expect("a configuration");
            place
        };
        let places: Vec<_> = (1..=shape.nodes).map(place).collect();
        let running = places.iter().map(|_| None).collect();
        Cluster { addresses, places, running, _dir: None, _watch: Watch::over_this_test() }
    }

    /// Puts a node's data somewhere else, before its first start.
    pub(crate) fn move_data(&mut self, node: u64, data: PathBuf) {
        let place = &mut self.places[slot(node)];
        place.edit(&format!("{:?}", place.data), &format!("{data:?}"));
        place.data = data;
    }

    /// Starts every node, and waits until each partition has a leader that all know.
    pub(crate) fn start(shape: &Shape<'_>) -> Cluster {
        let mut cluster = Cluster::prepare(shape);
        cluster.start_all();
        cluster.wait_leader(0);
        cluster
    }

    pub(crate) fn nodes(&self) -> std::ops::RangeInclusive<u64> {
        1..=self.places.len() as u64
    }

    pub(crate) fn place(&self, node: u64) -> &Place {
        &self.places[slot(node)]
    }

    pub(crate) fn address(&self, node: u64) -> SocketAddr {
        self.addresses[slot(node)]
    }

    pub(crate) fn node(&mut self, node: u64) -> &mut Process {
        self.running[slot(node)].as_mut().expect("the node runs")
    }

    /// All addresses, as `--cluster` takes them.
    pub(crate) fn contact(&self) -> String {
        self.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// Starts a node without waiting for it.
    pub(crate) fn begin(&mut self, node: u64) {
        self.begin_logging_to(node, Stdio::piped());
    }

    /// The same with another stderr.
    pub(crate) fn begin_logging_to(&mut self, node: u64, stderr: Stdio) {
        let process = Process::start(&self.places[slot(node)].config, stderr);
        assert!(self.running[slot(node)].replace(process).is_none(), "node {node} runs already");
    }

    pub(crate) fn start_node(&mut self, node: u64) -> Value {
        self.begin(node);
        self.node(node).wait_ready()
    }

    pub(crate) fn start_all(&mut self) {
        self.nodes().for_each(|node| self.begin(node));
        self.nodes().for_each(|node| drop(self.node(node).wait_ready()));
    }

    /// Takes a node's process out of the cluster's hands.
    pub(crate) fn take(&mut self, node: u64) -> Process {
        self.running[slot(node)].take().expect("the node runs")
    }

    /// SIGKILL to all, none of them having time to notice the others' end.
    pub(crate) fn kill_all(&mut self) {
        for process in self.running.iter().flatten() {
            process.signal(nix::sys::signal::Signal::SIGKILL);
        }
        self.running.iter_mut().for_each(|process| drop(process.take()));
    }

    /// SIGTERM to all; each must end with exit code 0.
    pub(crate) fn stop(&mut self) {
        for process in self.running.iter().flatten() {
            process.signal(nix::sys::signal::Signal::SIGTERM);
        }
        for process in self.running.iter_mut().filter_map(Option::take) {
            let (code, log) = process.wait_end();
            assert_eq!(code, Some(0), "a node that was asked to stop: {log}");
        }
    }

    /// A client command against all nodes.
    pub(crate) fn tidelog(&self, command: &str, args: &[&str]) -> Said {
        tidelog(&[&[command, "--cluster", &self.contact(), "--output", "json"], args].concat())
    }

    /// Appends lines; a cluster that has just lost a leader has time to find another.
    pub(crate) fn append(&self, lines: &str, args: &[&str]) -> Said {
        let contact = self.contact();
        let timeout: &[&str] = if args.contains(&"--timeout") { &[] } else { &["--timeout", "40s"] };
        let fixed = ["append", "--cluster", &contact, "--output", "json"];
        tidelog_with(&[&fixed, timeout, args].concat(), lines.as_bytes().to_vec())
    }

    /// Appends lines, each of which must be acknowledged, and returns their indexes.
    pub(crate) fn append_all(&self, lines: &str, args: &[&str]) -> Vec<u64> {
        let said = self.append(lines, args);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
        let index = |line: &Value| {
            assert_eq!(line["outcome"], "acked", "{said:?}");
            line["index"].as_u64().expect("an index")
        };
        said.json().iter().map(index).collect()
    }

    /// What a node says of itself; nothing while it does not answer.
    pub(crate) fn status(&self, node: u64) -> Option<Value> {
        let said = tidelog(&["status", "--cluster", &self.address(node).to_string(), "--output", "json"]);
        let line = said.json().into_iter().next().expect("a line for the node asked");
        (line["reachable"] == true).then_some(line)
    }

    /// What a node says of a partition.
    pub(crate) fn partition(&self, node: u64, partition: u64) -> Option<Value> {
        let status = self.status(node)?;
        status["partitions"].as_array()?.iter().find(|p| p["partition"] == partition).cloned()
    }

    /// Waits until the nodes that run agree on a leader of a partition that runs and has committed in its generation.
    pub(crate) fn wait_leader(&self, partition: u64) -> u64 {
        self.wait_leader_among(partition, &self.running())
    }

    pub(crate) fn running(&self) -> Vec<u64> {
        self.nodes().filter(|node| self.running[slot(*node)].is_some()).collect()
    }

    /// The same, of some nodes only.
    pub(crate) fn wait_leader_among(&self, partition: u64, nodes: &[u64]) -> u64 {
        wait_for("one leader that all know", || {
            let views: Option<Vec<Value>> =
                nodes.iter().map(|node| self.partition(*node, partition)).collect();
            let views = views?;
            let leader = views.first()?["leader"].as_u64().filter(|leader| nodes.contains(leader))?;
            let generation = views.first()?["generation"].as_u64()?;
            let agree = |v: &Value| v["leader"] == leader && v["generation"] == generation;
            let leads = views.iter().filter(|v| v["role"] == "leader").count() == 1;
            (leads && views.iter().all(|v| agree(v) && v["high_water"].as_u64() > Some(0))).then_some(leader)
        })
    }

    /// Waits until a node's own high-water mark of a partition is at least this.
    pub(crate) fn wait_high_water(&self, node: u64, partition: u64, index: u64) {
        wait_for(&format!("index {index} to be committed on node {node}"), || {
            let mark = self.partition(node, partition)?["high_water"].as_u64()?;
            (mark >= index).then_some(())
        });
    }
}

fn slot(node: u64) -> usize {
    usize::try_from(node).expect("a small number") - 1
}
