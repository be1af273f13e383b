//! What a measurement cost: processor time, and the device's own counters.
//!
//! The counters are the kernel's and the device's, not those of what is measured: a sync that was not done shows in the flushes
//! (R12, B7). They count everything on the machine, so the report also says how busy others were meanwhile.

use crate::clock::{self, Moment};
use crate::host::{Disk, DiskCounters};
use core::time::Duration;
use std::fs;
use std::path::Path;

/// Reads the counters.
#[derive(Debug)]
pub struct Meter {
    disk: Option<Disk>,
    servers: Vec<u32>,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    at: Moment,
    process_cpu: Duration,
    thread_cpu: Duration,
    servers_cpu: Duration,
    machine_cpu: Duration,
    disk: Option<DiskCounters>,
}

/// What was used between two readings, or during several such spans.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Usage {
    /// Wall time.
    pub elapsed: Duration,
    /// Processor time of this process.
    pub process_cpu: Duration,
    /// The load generator's thread's part of it.
    pub thread_cpu: Duration,
    /// Processor time of the server processes that were named.
    pub servers_cpu: Duration,
    /// Processor time of the whole machine outside of these.
    pub other_cpu: Duration,
    /// The device; none if it is not known.
    pub disk: Option<DiskCounters>,
}

impl Meter {
    /// For data in `dir` (none: elsewhere), served by the processes `servers` (none: by this one).
    pub fn new(dir: Option<&Path>, servers: Vec<u32>) -> Meter {
        Meter { disk: dir.and_then(Disk::of), servers }
    }

    /// The counters now, on the load generator's thread.
    pub fn read(&self) -> Reading {
        Reading {
            at: clock::now(),
            process_cpu: clock::process_cpu(),
            thread_cpu: clock::thread_cpu(),
            servers_cpu: self.servers.iter().map(|pid| process_cpu_of(*pid)).sum(),
            machine_cpu: fs::read_to_string("/proc/stat").map_or(Duration::ZERO, |t| machine_cpu(&t)),
            disk: self.disk.as_ref().and_then(Disk::counters),
        }
    }
}

impl Reading {
    /// What was used since `before`.
    pub fn since(&self, before: &Reading) -> Usage {
        let process_cpu = self.process_cpu.saturating_sub(before.process_cpu);
        let servers_cpu = self.servers_cpu.saturating_sub(before.servers_cpu);
        let machine_cpu = self.machine_cpu.saturating_sub(before.machine_cpu);
        Usage {
            elapsed: self.at.since(before.at),
            process_cpu,
            thread_cpu: self.thread_cpu.saturating_sub(before.thread_cpu),
            servers_cpu,
            other_cpu: machine_cpu.saturating_sub(process_cpu + servers_cpu),
            disk: self.disk.zip(before.disk).map(|(now, then)| DiskCounters {
                writes: now.writes.saturating_sub(then.writes),
                bytes_written: now.bytes_written.saturating_sub(then.bytes_written),
                flushes: now.flushes.saturating_sub(then.flushes),
            }),
        }
    }
}

impl Usage {
    /// Adds another span.
    pub fn add(&mut self, other: &Usage) {
        let first = self.elapsed.is_zero();
        self.elapsed += other.elapsed;
        self.process_cpu += other.process_cpu;
        self.thread_cpu += other.thread_cpu;
        self.servers_cpu += other.servers_cpu;
        self.other_cpu += other.other_cpu;
        self.disk = match (self.disk, other.disk) {
            (None, disk) if first => disk,
            (Some(a), Some(b)) => Some(DiskCounters {
                writes: a.writes + b.writes,
                bytes_written: a.bytes_written + b.bytes_written,
                flushes: a.flushes + b.flushes,
            }),
            _ => None,
        };
    }

    /// Cores' worth of processor time that others used.
    pub fn other_cores(&self) -> f64 {
        ratio(self.other_cpu.as_secs_f64(), self.elapsed.as_secs_f64())
    }
}

/// `a / b`, and 0 where there is nothing to divide by.
pub(crate) fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

/// Processor time of another process's live threads, from the scheduler's nanosecond counters.
fn process_cpu_of(pid: u32) -> Duration {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Duration::ZERO };
    let of = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    Duration::from_nanos(threads.flatten().filter_map(of).sum())
}

/// Busy time of all cores, from the first line of `/proc/stat`: user, nice, system, interrupts, steal.
fn machine_cpu(stat: &str) -> Duration {
    const TICK: Duration = Duration::from_millis(10); // USER_HZ is 100 on every Linux that this runs on
    let Some(line) = stat.lines().next().and_then(|l| l.strip_prefix("cpu ")) else { return Duration::ZERO };
    let fields: Vec<u64> = line.split_whitespace().map_while(|f| f.parse().ok()).collect();
    let busy: u64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|at| fields.get(*at)).sum();
    Duration::from_nanos(busy.saturating_mul(TICK.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_are_not_busy() {
        assert_eq!(machine_cpu("cpu  1 2 3 1000 2000 4 5 6 7 8\ncpu0 1 1"), Duration::from_millis(210));
        assert_eq!(machine_cpu("intr 5"), Duration::ZERO);
    }

    #[test]
    fn spans_add_up_and_an_unknown_device_stays_unknown() {
        let disk = |n| Some(DiskCounters { writes: n, bytes_written: 10 * n, flushes: n });
        let span = |n, disk| Usage {
            elapsed: Duration::from_secs(1),
            process_cpu: Duration::from_secs(n),
            disk,
            ..Usage::default()
        };
        let mut sum = Usage::default();
        sum.add(&span(1, disk(2)));
        sum.add(&span(2, disk(3)));
        assert_eq!((sum.elapsed, sum.process_cpu), (Duration::from_secs(2), Duration::from_secs(3)));
        assert_eq!(sum.disk, disk(5));
        sum.add(&span(2, None));
        assert_eq!(sum.disk, None);
        sum.add(&span(2, disk(1)));
        assert_eq!(sum.disk, None);
    }

    #[test]
    fn work_shows_in_the_meter() {
        let meter = Meter::new(Some(Path::new("/")), vec![std::process::id()]);
        let before = meter.read();
        let mut x = 1u64;
        while clock::now().since(before.at) < Duration::from_millis(20)
            || clock::thread_cpu() == before.thread_cpu
        {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        let used = meter.read().since(&before);
        assert!(used.thread_cpu > Duration::ZERO && used.process_cpu > Duration::ZERO, "{used:?}");
    }
}
