//! The host as a log sees it: kernel, io_uring, direct I/O, limits, and how long the disk takes to keep a promise.

use crate::disk_space::DiskSpace;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use tidelog::config::Config;
use tidelog::config::unit::size_text;
use tidelog_io::{
    BackEndError, Capabilities, IoError, IoOptions, Latency, Limit, SyncMode, TaskWork, measure_sync, probe,
};

/// Bytes of a measured write: what the smallest batch takes.
const WRITE_BYTES: usize = 4096;
/// Measured writes of each way.
const WRITES: usize = 200;

/// The findings, as they are shown and reported.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Preflight {
    kernel: String,
    io_uring: Ring,
    file_system: FileSystem,
    locked_memory: Bound,
    descriptors: Bound,
    space: Option<DiskSpace>,
    sync: Sync,
}

#[derive(Clone, Debug, Serialize)]
struct Ring {
    usable: bool,
    features: Vec<&'static str>,
    registered_bytes: usize,
    /// What is not there, and why; for an unusable ring, what to change.
    without: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct FileSystem {
    name: String,
    direct: bool,
    suits: bool,
    alignment_bytes: Option<u32>,
}

/// A limit; null: none.
#[derive(Clone, Copy, Debug, Serialize)]
struct Bound {
    now: Option<u64>,
    most: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
struct Sync {
    bytes: usize,
    dsync: Percentiles,
    fdatasync: Percentiles,
    faster: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Percentiles {
    p50_us: u128,
    p99_us: u128,
    max_us: u128,
}

impl Preflight {
    /// Looks at the host, at the space that `config` needs in `dir`, and measures the disk that it lies on: 400 small durable writes, in a file that is
    /// removed again.
    ///
    /// # Errors
    /// If `dir` is not there or cannot be written to.
    pub(crate) fn measure(dir: &Path, config: &Config) -> Result<Preflight, IoError> {
        let found = probe(dir, &IoOptions::default())?;
        let sync = measure_sync(dir, WRITE_BYTES, WRITES)?;
        Ok(Preflight {
            kernel: found.kernel,
            io_uring: Ring::from(&found.io_uring),
            file_system: FileSystem {
                suits: found.file_system.suits(),
                name: found.file_system.name,
                direct: found.file_system.direct,
                alignment_bytes: found.file_system.alignment.map(|(memory, offset)| memory.max(offset)),
            },
            locked_memory: found.locked_bytes.into(),
            descriptors: found.descriptors.into(),
            space: DiskSpace::of(config).ok(),
            sync: Sync {
                bytes: WRITE_BYTES,
                dsync: sync.dsync.into(),
                fdatasync: sync.fdatasync.into(),
                faster: if sync.faster() == SyncMode::Fdatasync { "fdatasync" } else { "dsync" },
            },
        })
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let row = |name: &str, text: String| format!("{name:<15} {text}");
        let mut lines = vec![row("kernel", self.kernel.clone())];
        let ring = if !self.io_uring.usable {
            "no".into()
        } else if self.io_uring.registered_bytes == 0 {
            format!("yes ({})", self.io_uring.features.join(", "))
        } else {
            let registered = size_text(self.io_uring.registered_bytes as u64);
            format!("yes ({}, {registered} registered)", self.io_uring.features.join(", "))
        };
        lines.push(row("io_uring", ring));
        lines.extend(self.io_uring.without.iter().map(|text| row("", text.clone())));
        let system = &self.file_system;
        let direct = match (system.direct, system.alignment_bytes) {
            (false, _) => "no: writes go through the page cache and are synced".into(),
            (true, Some(bytes)) if system.suits => format!("yes, in units of {bytes} bytes"),
            (true, Some(bytes)) => format!("no: it wants units of {bytes} bytes, larger than 4096"),
            (true, None) => "yes".into(),
        };
        lines.push(row("file system", format!("{}; direct I/O: {direct}", system.name)));
        if let Some(space) = &self.space {
            lines.push(row("disk space", space.line()));
            lines.extend(space.trouble.iter().map(|text| row("", format!("the disk is {text}"))));
        }
        lines.push(row("locked memory", self.locked_memory.text(size_text)));
        lines.push(row("descriptors", self.descriptors.text(|n| n.to_string())));
        let took = |p: &Percentiles| format!("p50 {} us, p99 {} us, max {} us", p.p50_us, p.p99_us, p.max_us);
        let bytes = size_text(self.sync.bytes as u64);
        lines.push(row("durable write", format!("{bytes}, RWF_DSYNC: {}", took(&self.sync.dsync))));
        lines.push(row("", format!("{bytes}, write + fdatasync: {}", took(&self.sync.fdatasync))));
        if self.sync.faster == "fdatasync" {
            lines.push(row(
                "",
                "fdatasync is clearly faster here: consider `sync = \"fdatasync\"` under [wal]".into(),
            ));
        }
        lines
    }
}

impl From<&Result<Capabilities, BackEndError>> for Ring {
    fn from(found: &Result<Capabilities, BackEndError>) -> Ring {
        match found {
            Err(error) => Ring {
                usable: false,
                features: Vec::new(),
                registered_bytes: 0,
                without: vec![error.to_string()],
            },
            Ok(found) => {
                let task_work = found.ring.map(|ring| match ring.task_work {
                    TaskWork::Deferred => "deferred completions",
                    TaskWork::Cooperative => "cooperative completions",
                    TaskWork::Interrupting => "interrupting completions",
                });
                let registered_files = found.ring.is_some_and(|ring| ring.registered_files);
                Ring {
                    usable: true,
                    features: task_work
                        .into_iter()
                        .chain(registered_files.then_some("registered files"))
                        .collect(),
                    registered_bytes: found.ring.map_or(0, |ring| ring.registered_bytes),
                    without: found
                        .switched_off
                        .iter()
                        .map(|off| format!("without {}: {}", off.what, off.why))
                        .collect(),
                }
            }
        }
    }
}

impl From<Limit> for Bound {
    fn from(limit: Limit) -> Bound {
        let finite = |n: u64| (n != u64::MAX).then_some(n);
        Bound { now: finite(limit.now), most: finite(limit.most) }
    }
}

impl Bound {
    fn text(self, number: impl Fn(u64) -> String) -> String {
        let text = |n: Option<u64>| n.map_or("no limit".into(), &number);
        if self.now == self.most {
            text(self.now)
        } else {
            format!("{} (may be raised to {})", text(self.now), text(self.most))
        }
    }
}

impl From<Latency> for Percentiles {
    fn from(latency: Latency) -> Percentiles {
        let micros = |d: Duration| d.as_micros();
        Percentiles { p50_us: micros(latency.p50), p99_us: micros(latency.p99), max_us: micros(latency.max) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latency(micros: u64) -> Percentiles {
        let time = Duration::from_micros(micros);
        Latency { p50: time, p99: time, max: time }.into()
    }

    #[test]
    fn what_is_missing_is_said() {
        let preflight = Preflight {
            kernel: "6.18.0".into(),
            io_uring: Ring::from(&Err(BackEndError::Forbidden { reason: "seccomp" })),
            file_system: FileSystem {
                name: "tmpfs".into(),
                direct: false,
                suits: false,
                alignment_bytes: None,
            },
            locked_memory: Limit { now: 8 << 20, most: u64::MAX }.into(),
            descriptors: Limit { now: 1024, most: 1024 }.into(),
            space: None,
            sync: Sync { bytes: 4096, dsync: latency(200), fdatasync: latency(100), faster: "fdatasync" },
        };
        let text = preflight.lines().join("\n");
        for part in [
            "io_uring        no\n",
            "seccomp",
            "backend = \"blocking\"",
            "tmpfs; direct I/O: no",
            "8MiB (may be raised to no limit)",
            "descriptors     1024\n",
            "4KiB, RWF_DSYNC: p50 200 us",
            "sync = \"fdatasync\"",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let json = serde_json::to_value(&preflight).expect("JSON");
        assert_eq!(
            (&json["locked_memory"]["now"], &json["locked_memory"]["most"]),
            (&8388608.into(), &().into())
        );
        assert_eq!(json["sync"]["dsync"]["p50_us"], 200);
    }
}
