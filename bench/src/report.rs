//! What a run came to: one JSON object, one line for comparisons, or a page for people.
//!
//! Every figure carries what it takes to judge it: the host, the device's own figures from the same run, what it cost, and how
//! busy others were meanwhile (B7).

use crate::device::DeviceReport;
use crate::host::Host;
use crate::latency::{Latencies, LatencySummary};
use crate::load::Measured;
use crate::usage::ratio;
use core::fmt::{self, Display, Formatter};
use serde::Serialize;

/// How the load was driven.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Shape {
    /// `closed`: each writer has one record in flight. `open`: records are due by a schedule.
    pub mode: &'static str,
    /// Closed: the logical writers.
    pub writers: Option<u32>,
    /// Open: records due per second.
    pub offered_per_s: Option<f64>,
    /// Over the network: the connections.
    pub connections: Option<u32>,
    /// Length of each payload.
    pub payload_bytes: usize,
    /// Partitions written to.
    pub partitions: u64,
}

/// Records that were not acknowledged, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Errors {
    /// Turned away: nothing was appended.
    pub busy: u64,
    /// Refused for another reason: nothing was appended.
    pub refused: u64,
    /// The outcome was not learned: the record may be in the log.
    pub unknown: u64,
    /// No answer when the run was over. Their wait so far is among the latencies.
    pub unanswered: u64,
    /// Open loop: due but never sent, because too much was in flight. Their wait so far is among the latencies.
    pub unsent: u64,
}

impl Errors {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.busy + self.refused + self.unknown + self.unanswered + self.unsent
    }
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What was measured: `tidelog`, or a baseline's name, or what the caller called it.
    pub name: String,
    /// The load.
    pub shape: Shape,
    /// Measured time.
    pub seconds: f64,
    /// Records acknowledged in it.
    pub records: u64,
    /// Open loop: records that were due in it. Each is among those acknowledged in it, or late, or an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<u64>,
    /// Of these, acknowledged only after it: the load was more than could be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<u64>,
    /// Acknowledged records per second.
    pub records_per_s: f64,
    /// Their payload bytes, per second.
    pub bytes_per_s: f64,
    /// Open loop: from the intended start. Closed: from the submission.
    pub latency_us: LatencySummary,
    /// Records not acknowledged.
    pub errors: u64,
    /// By kind.
    pub error_kinds: Errors,
    /// Processor time of everything named, the load generator included, per record.
    pub cpu_us_per_record: f64,
    /// The part of it that the load generator's own thread used.
    pub cpu_load_us_per_record: f64,
    /// The part of it that server processes used.
    pub cpu_servers_us_per_record: f64,
    /// Bytes written to the device per payload byte.
    pub disk_bytes_per_payload_byte: Option<f64>,
    /// Writes of the device per record.
    pub disk_writes_per_record: Option<f64>,
    /// Flushes of the device's cache.
    pub flushes: Option<u64>,
    /// Durable batches, where what was measured counts them.
    pub batches: Option<u64>,
    /// Records in each of them.
    pub records_per_batch: Option<f64>,
    /// Cores that others kept busy meanwhile: above about half a core, measure again.
    pub other_cores: f64,
    /// The raw device in the same directory, in turns with the load.
    pub device: Option<DeviceReport>,
    /// Profiles that configured it.
    pub profile: String,
    /// The machine.
    pub host: Host,
    /// What to know when reading the figures.
    pub notes: Vec<String>,
    /// The latencies themselves.
    #[serde(skip)]
    pub latencies: Latencies,
    /// What was used.
    #[serde(skip)]
    pub usage: crate::usage::Usage,
}

/// The line that the scripts compare engines by.
#[derive(Serialize)]
struct PeersLine<'a> {
    peer: &'a str,
    payload: usize,
    writers: u32,
    secs: f64,
    recs: u64,
    rps: f64,
    mbps: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
    cpu_s_per_m: f64,
    cpu_client_s: f64,
    cpu_server_s: f64,
    cpu_busy: f64,
    disk_amp: f64,
    disk_writes_per_rec: f64,
    flushes: u64,
    other_cpu: f64,
    recs_per_batch: Option<f64>,
    errors: u64,
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

impl Report {
    /// Of what was measured.
    pub fn new(
        name: String,
        shape: Shape,
        measured: Measured,
        device: Option<DeviceReport>,
        host: Host,
    ) -> Report {
        let Measured { acked, due, late, errors, latencies, usage, batches } = measured;
        let open = shape.offered_per_s.is_some();
        let seconds = usage.elapsed.as_secs_f64();
        let records = acked as f64;
        let payload_bytes = records * shape.payload_bytes as f64;
        let per_record = |time: core::time::Duration| round(ratio(time.as_secs_f64() * 1e6, records), 3);
        Report {
            name,
            seconds: round(seconds, 3),
            records: acked,
            due: open.then_some(due),
            late: open.then_some(late),
            records_per_s: round(ratio(records, seconds), 1),
            bytes_per_s: round(ratio(payload_bytes, seconds), 0),
            latency_us: latencies.summary(),
            errors: errors.total(),
            error_kinds: errors,
            cpu_us_per_record: per_record(usage.process_cpu + usage.servers_cpu),
            cpu_load_us_per_record: per_record(usage.thread_cpu),
            cpu_servers_us_per_record: per_record(usage.servers_cpu),
            disk_bytes_per_payload_byte: usage
                .disk
                .map(|d| round(ratio(d.bytes_written as f64, payload_bytes), 3)),
            disk_writes_per_record: usage.disk.map(|d| round(ratio(d.writes as f64, records), 4)),
            flushes: usage.disk.map(|d| d.flushes),
            batches,
            records_per_batch: batches.map(|b| round(ratio(records, b as f64), 1)),
            other_cores: round(usage.other_cores(), 2),
            device,
            profile: String::new(),
            host,
            notes: Vec::new(),
            latencies,
            usage,
            shape,
        }
    }

    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a report has string keys and finite numbers")
    }

    /// The line that the comparison scripts read.
    pub fn to_peers_json(&self) -> String {
        let usage = &self.usage;
        let line = PeersLine {
            peer: &self.name,
            payload: self.shape.payload_bytes,
            writers: self.shape.writers.unwrap_or(0),
            secs: self.seconds,
            recs: self.records,
            rps: self.records_per_s,
            mbps: round(self.bytes_per_s / 1e6, 2),
            p50_us: self.latency_us.p50,
            p99_us: self.latency_us.p99,
            p999_us: self.latency_us.p999,
            max_us: self.latency_us.max,
            cpu_s_per_m: self.cpu_us_per_record,
            cpu_client_s: round(usage.process_cpu.as_secs_f64(), 3),
            cpu_server_s: round(usage.servers_cpu.as_secs_f64(), 3),
            cpu_busy: round(
                ratio((usage.process_cpu + usage.servers_cpu).as_secs_f64(), usage.elapsed.as_secs_f64()),
                2,
            ),
            disk_amp: self.disk_bytes_per_payload_byte.unwrap_or(0.0),
            disk_writes_per_rec: self.disk_writes_per_record.unwrap_or(0.0),
            flushes: self.flushes.unwrap_or(0),
            other_cpu: self.other_cores,
            recs_per_batch: self.records_per_batch,
            errors: self.errors,
        };
        serde_json::to_string(&line).expect("a line has string keys and finite numbers")
    }
}

impl Report {
    /// Open loop: why the rate asked for was not reached, if it was not: more than one record in a hundred of those that were due was late or not acknowledged (and
    /// more than those that a fast system may have in flight when the time is over).
    pub fn shortfall(&self) -> Option<String> {
        const IN_FLIGHT_AT_THE_END: u64 = 64;
        let (due, missed) = (self.due?, self.late? + self.errors);
        (missed > (due / 100).max(IN_FLIGHT_AT_THE_END)).then(|| {
            format!(
                "the rate was not reached: of {due} records that were due, {} were late and {} not acknowledged",
                missed - self.errors,
                self.errors
            )
        })
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let shape = &self.shape;
        let load = match (shape.writers, shape.offered_per_s) {
            (Some(writers), _) => format!("{writers} writers, one record in flight each"),
            (None, offered) => {
                format!("{} records/s offered, latencies from the intended start", offered.unwrap_or(0.0))
            }
        };
        writeln!(f, "{}: {load}, {} bytes, {} s", self.name, shape.payload_bytes, self.seconds)?;
        writeln!(f, "  host       {} × {}, Linux {}", self.host.cores, self.host.cpu, self.host.kernel)?;
        writeln!(
            f,
            "  disk       {} ({}), {}",
            self.host.device.as_deref().unwrap_or("unknown"),
            self.host.write_cache.as_deref().unwrap_or("cache unknown"),
            self.host.filesystem.as_deref().unwrap_or("filesystem unknown"),
        )?;
        if !self.profile.is_empty() {
            writeln!(f, "  profile    {}", self.profile)?;
        }
        writeln!(f, "  throughput {:.0} records/s, {:.1} MB/s", self.records_per_s, self.bytes_per_s / 1e6)?;
        let l = &self.latency_us;
        writeln!(
            f,
            "  latency µs p50 {:.0}  p90 {:.0}  p99 {:.0}  p99.9 {:.0}  max {:.0}",
            l.p50, l.p90, l.p99, l.p999, l.max
        )?;
        writeln!(
            f,
            "  cpu µs/rec {:.2} (load generator {:.2}, servers {:.2}); others kept {:.2} cores busy",
            self.cpu_us_per_record,
            self.cpu_load_us_per_record,
            self.cpu_servers_us_per_record,
            self.other_cores
        )?;
        if let (Some(amplification), Some(flushes)) = (self.disk_bytes_per_payload_byte, self.flushes) {
            write!(f, "  device     {amplification:.2} bytes written per payload byte, {flushes} flushes")?;
            match self.records_per_batch {
                Some(records) => writeln!(f, ", {records:.1} records a batch")?,
                None => writeln!(f)?,
            }
        }
        if let (Some(due), Some(late)) = (self.due, self.late) {
            writeln!(
                f,
                "  due        {due}, of which {late} were acknowledged only after the measured time"
            )?;
        }
        if self.errors > 0 {
            let e = &self.error_kinds;
            writeln!(
                f,
                "  not acked  {} (busy {}, refused {}, unknown {}, unanswered {}, unsent {})",
                self.errors, e.busy, e.refused, e.unknown, e.unanswered, e.unsent
            )?;
        }
        if let Some(device) = &self.device {
            write!(f, "{device}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  note       {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;
    use crate::host::DiskCounters;
    use crate::usage::Usage;
    use core::time::Duration;

    fn report(acked: u64) -> Report {
        let mut latencies = Latencies::new(Duration::from_secs(2));
        latencies.begin(Moment::default(), Duration::ZERO);
        latencies.record(Moment::default(), 200_000, acked);
        let usage = Usage {
            elapsed: Duration::from_secs(2),
            process_cpu: Duration::from_millis(300),
            thread_cpu: Duration::from_millis(100),
            disk: Some(DiskCounters { writes: 50, bytes_written: 110_000, flushes: 50 }),
            ..Usage::default()
        };
        let errors = Errors { busy: 1, unsent: 2, ..Errors::default() };
        let shape =
            Shape { mode: "closed", writers: Some(4), payload_bytes: 100, partitions: 1, ..Shape::default() };
        let measured = Measured { acked, due: 0, late: 0, errors, latencies, usage, batches: Some(50) };
        Report::new("x".into(), shape, measured, None, Host::default())
    }

    #[test]
    fn the_fixed_field_names_are_there() {
        let json: serde_json::Value = serde_json::from_str(&report(1000).to_json()).unwrap();
        assert_eq!(json["records_per_s"], 500.0);
        assert_eq!(json["bytes_per_s"], 50_000.0);
        for field in ["p50", "p90", "p99", "p999", "max"] {
            assert!(json["latency_us"][field].as_f64().unwrap() > 199.0, "{field}");
        }
        assert_eq!((&json["errors"], &json["flushes"]), (&3.into(), &50.into()));
        assert_eq!(json["cpu_us_per_record"], 300.0);
        assert_eq!(json["disk_bytes_per_payload_byte"], 1.1);
        assert_eq!(json["records_per_batch"], 20.0);
        for field in ["device", "profile", "host"] {
            assert!(json.get(field).is_some(), "{field}");
        }
    }

    #[test]
    fn the_comparison_line_has_the_scripts_fields() {
        let json: serde_json::Value = serde_json::from_str(&report(1000).to_peers_json()).unwrap();
        let fields = "peer payload writers secs recs rps mbps p50_us p99_us p999_us max_us cpu_s_per_m cpu_client_s \
                      cpu_server_s cpu_busy disk_amp disk_writes_per_rec flushes other_cpu";
        for field in fields.split_whitespace() {
            assert!(json.get(field).is_some_and(|v| !v.is_null()), "{field}");
        }
    }

    #[test]
    fn nothing_acknowledged_is_still_a_report() {
        let report = report(0);
        assert_eq!((report.records_per_s, report.cpu_us_per_record), (0.0, 0.0));
        assert!(
            report.to_string().contains("not acked  3") && !report.to_json().contains("null,\"records_per_s")
        );
    }
}
