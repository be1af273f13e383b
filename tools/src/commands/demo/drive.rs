//! The demo under open-loop load.

use super::check;
use super::ledger::{Findings, Ledger, Outcome as Ending, number_of, payload};
use super::report::{Copy, Kill, Outcome};
use super::{Args, Talk};
use crate::failure::Failure;
use crate::local_cluster::LocalCluster;
use std::collections::BTreeMap;
use std::time::Duration;
use tidelog::request::Reply;
use tidelog_bench::clock::{self, Moment};
use tidelog_bench::latency::Latencies;
use tidelog_net::{Bulk, Client, ClientError, ClientOptions, ClientRequest};
use tidelog_types::PartitionId;

/// Most requests in flight: beyond it the load is not offered at all and counts as refused.
const IN_FLIGHT_MAX: usize = 1 << 16;
/// Time for one request, retries included; then its outcome is unknown or refused.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long the killed node stays down.
const DOWN: Duration = Duration::from_secs(2);

/// What is in flight: when it was due.
struct Load {
    begun: Moment,
    interval: Duration,
    partitions: u64,
    payload_bytes: usize,
    next: u64,
    due: BTreeMap<u64, Duration>,
    ledger: Ledger,
    latencies: Latencies,
    second: Second,
}

/// The line of one second.
#[derive(Default)]
struct Second {
    number: u64,
    acked: u64,
    unknown: u64,
    refused: u64,
    micros: Vec<u64>,
    note: Option<String>,
}

pub(super) fn run(
    args: &Args,
    rate: u64,
    partitions: u64,
    cluster: &mut LocalCluster,
    talk: &Talk,
) -> Result<Outcome, Failure> {
    let options = ClientOptions {
        timeout: TIMEOUT,
        in_flight_max: IN_FLIGHT_MAX,
        in_flight_bytes_max: 1 << 30,
        ..ClientOptions::new(cluster.addresses().to_vec())
    };
    let client = Client::connect(options).map_err(Failure::failed)?;
    let leaders = check::leaders(&client, cluster, partitions)?;
    talk.say(format!("leaders by partition: {leaders:?}"));
    talk.say(format!(
        "load: {rate} records/s of {} bytes for {} s, open loop\n",
        args.payload.max(super::ledger::PAYLOAD_BYTES_MIN as u64),
        args.seconds
    ));

    let run = Duration::from_secs(args.seconds);
    let begun = clock::now();
    let mut latencies = Latencies::new(run);
    latencies.begin(begun, clock::wall());
    let mut load = Load {
        begun,
        interval: Duration::from_secs(1) / u32::try_from(rate).unwrap_or(u32::MAX),
        partitions,
        payload_bytes: args.payload as usize,
        next: 0,
        due: BTreeMap::new(),
        ledger: Ledger::default(),
        latencies,
        second: Second::default(),
    };
    let mut bulk = client.bulk();
    let mut kill = None;
    if !args.no_kill && args.nodes >= 3 {
        load.until(run / 2, &mut bulk, talk);
        // Leadership may have moved since the start.
        let leaders = check::leaders(&client, cluster, partitions)?;
        let node = leaders.get(&0).copied().ok_or_else(|| Failure::failed("partition 0 has no leader"))?;
        let at = clock::now().since(begun);
        cluster.kill(node).map_err(Failure::failed)?;
        load.second.note = Some(format!("node {node}, the leader of partition 0, killed"));
        let led = leaders.iter().filter(|(_, n)| **n == node).map(|(p, _)| *p).collect();
        load.until((at + DOWN).min(run), &mut bulk, talk);
        let restarted = clock::now();
        let ready = cluster.begin_restart(node).map_err(Failure::failed)?;
        load.second.note = Some(format!("node {node} started again"));
        let mut restart_ms = None;
        while clock::now().since(begun) < run || restart_ms.is_none() {
            if restart_ms.is_none() && cluster.is_ready(node, &ready).map_err(Failure::failed)? {
                restart_ms = Some(millis(clock::now().since(restarted)));
            }
            let step = clock::now().since(begun) + Duration::from_millis(20);
            if step < run {
                load.until(step, &mut bulk, talk);
            } else {
                load.until(run, &mut bulk, talk);
                super::pause(Duration::from_millis(5));
            }
            if clock::now().since(restarted) > Duration::from_secs(120) {
                break;
            }
        }
        kill = Some(Kill { node, partitions: led, at_ms: millis(at), fail_over_ms: None, restart_ms });
    }
    load.until(run, &mut bulk, talk);
    while bulk.in_flight() > 0 {
        load.take(bulk.results_within(Duration::from_millis(100)));
        load.tell(talk, bulk.in_flight());
    }
    drop(bulk);

    let (mut from, mut to) = (Duration::MAX, Duration::MAX);
    if let Some(kill) = &mut kill {
        let at = Duration::from_millis(kill.at_ms);
        let back: Option<Vec<Duration>> =
            kill.partitions.iter().map(|p| load.ledger.first_ack_after(*p, at)).collect();
        let end = back.and_then(|times| times.into_iter().max());
        kill.fail_over_ms = end.map(|end| millis(end.saturating_sub(at)));
        // What was in flight at the kill belongs to the fail-over, too.
        (from, to) = (at.saturating_sub(Duration::from_millis(100)), end.unwrap_or(Duration::MAX));
    }
    let (sent, acked) = load.ledger.outside(from, to);

    talk.say("\nreading every node back");
    let ledger = &load.ledger;
    check::wait_for(&client, cluster, "has everything that was acknowledged", |s| {
        s.partitions.iter().all(|p| p.high_water >= ledger.acked_to(p.partition))
    })?;
    let mut copies = Vec::new();
    for node in cluster.nodes() {
        let mut findings = Findings::default();
        for partition in 0..partitions {
            let mut log = Vec::new();
            check::from_node(&client, node, partition, |record| {
                log.push((record.index.get(), number_of(&record.payload)));
                Ok(())
            })?;
            findings.add(&ledger.compare(partition, log.into_iter()));
        }
        copies.push(Copy { node, source: "node", findings, sha256: None });
    }
    drop(client);
    cluster.stop().map_err(Failure::failed)?;
    for node in cluster.nodes() {
        let mut findings = Findings::default();
        let logs = check::from_files(cluster, node, talk, number_of)?;
        for partition in 0..partitions {
            let log = logs.get(&partition).into_iter().flatten().map(|(index, number)| (*index, *number));
            findings.add(&ledger.compare(partition, log));
        }
        copies.push(Copy { node, source: "files", findings, sha256: None });
    }
    let acked_all = ledger.acked();
    Ok(Outcome {
        nodes: args.nodes,
        partitions,
        seconds: run.as_secs_f64(),
        payload_bytes: Some(args.payload),
        offered: load.next,
        acked: acked_all,
        unknown: ledger.count(|o| *o == Ending::Unknown),
        refused: ledger.count(|o| *o == Ending::Refused),
        records_per_s: acked_all as f64 / run.as_secs_f64(),
        acked_outside_fail_over_percent: 100.0 * acked as f64 / sent.max(1) as f64,
        latency_us: load.latencies.summary(),
        kill,
        copies,
        input_sha256: None,
        latencies: load.latencies,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Load {
    /// Offers what is due, takes what is done, until `end` of the load's time.
    fn until(&mut self, end: Duration, bulk: &mut Bulk, talk: &Talk) {
        loop {
            let now = clock::now().since(self.begun);
            loop {
                let due = self.interval * u32::try_from(self.next).unwrap_or(u32::MAX);
                if due > now || due >= end {
                    break;
                }
                self.offer(due, bulk);
            }
            if now >= end {
                return;
            }
            let next_due = self.interval * u32::try_from(self.next).unwrap_or(u32::MAX);
            let wait = next_due.min(end).saturating_sub(now).max(Duration::from_micros(200));
            self.take(bulk.results_within(wait));
            self.tell(talk, bulk.in_flight());
        }
    }

    fn offer(&mut self, due: Duration, bulk: &mut Bulk) {
        let number = self.next;
        self.next += 1;
        let partition = number % self.partitions;
        let request =
            ClientRequest::append(PartitionId(partition), payload(number, self.payload_bytes).into());
        if bulk.submit(number, request).is_ok() {
            self.due.insert(number, due);
        } else {
            self.second.refused += 1;
            self.ledger.record(number, partition, due, Ending::Refused);
        }
    }

    fn take(&mut self, results: Vec<tidelog_net::BulkDone>) {
        let now = clock::now();
        let at = now.since(self.begun);
        for done in results {
            let Some(due) = self.due.remove(&done.tag) else { continue };
            let ending = match done.result {
                Ok(Reply::Appended { position }) => {
                    self.second.acked += 1;
                    let took = at.saturating_sub(due);
                    self.second.micros.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                    self.latencies.record(now, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), 1);
                    Ending::Acked { index: position.index.get(), at }
                }
                Err(ClientError::Unknown { .. }) | Ok(_) => {
                    self.second.unknown += 1;
                    Ending::Unknown
                }
                Err(_) => {
                    self.second.refused += 1;
                    Ending::Refused
                }
            };
            self.ledger.record(done.tag, done.tag % self.partitions, due, ending);
        }
    }

    /// A line at the end of each second.
    fn tell(&mut self, talk: &Talk, in_flight: usize) {
        let second = clock::now().since(self.begun).as_secs();
        if second <= self.second.number {
            return;
        }
        let mut done = std::mem::take(&mut self.second);
        self.second.number = second;
        done.micros.sort_unstable();
        let at = |part: usize| {
            done.micros.get(done.micros.len() * part / 100).map_or(0.0, |us| *us as f64 / 1000.0)
        };
        talk.say(format!(
            "{second:>4} s  acknowledged {:>6}  unknown {:>5}  refused {:>5}  in flight {in_flight:>5}  p50 {:>8.2} ms  p99 {:>8.2} ms{}",
            done.acked,
            done.unknown,
            done.refused,
            at(50),
            at(99),
            done.note.map(|n| format!("  <- {n}")).unwrap_or_default()
        ));
    }
}
