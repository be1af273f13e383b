//! What a measurement ran on: processor, kernel, and the block device under a directory.
//!
//! Everything is read from `/proc` and `/sys`. What is not there, in a container for instance, is left out of the
//! report instead of being guessed; nothing here fails.

use serde::Serialize;
use std::fs;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The machine.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Host {
    /// The processor's name.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Name of the device that holds the directory.
    pub device: Option<String>,
    /// What the device calls itself.
    pub device_model: Option<String>,
    /// `write back`: acknowledged writes may be lost until a flush. `write through`: none are.
    pub write_cache: Option<String>,
    /// The filesystem that holds the directory.
    pub filesystem: Option<String>,
    /// Its mount options.
    pub mount_options: Option<String>,
}

impl Host {
    /// This machine, with the device that holds `dir` (which exists), if one is named.
    pub fn of(dir: Option<&Path>) -> Host {
        let mount = dir.and_then(Mount::of);
        let disk = dir.and_then(Disk::of);
        let queue = |name: &str| disk.as_ref().and_then(|d| read(&d.sys.join("queue").join(name)));
        Host {
            cpu: fs::read_to_string("/proc/cpuinfo").ok().and_then(|t| cpu_model(&t)).unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: fs::read_to_string("/proc/meminfo")
                .ok()
                .and_then(|t| memory_bytes(&t))
                .unwrap_or(0),
            kernel: read(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default(),
            device: disk.as_ref().map(|d| d.name.clone()),
            device_model: disk.as_ref().and_then(|d| read(&d.sys.join("device/model"))),
            write_cache: queue("write_cache"),
            filesystem: mount.as_ref().map(|m| m.filesystem.clone()),
            mount_options: mount.map(|m| m.options),
        }
    }
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    let line = cpuinfo.lines().find(|l| l.starts_with("model name") || l.starts_with("Model"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A device's numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Numbers {
    major: u64,
    minor: u64,
}

impl Numbers {
    /// The encoding of `st_dev` and `st_rdev` in Linux's C libraries.
    const fn of(device: u64) -> Numbers {
        Numbers {
            major: ((device >> 8) & 0xFFF) | ((device >> 32) & 0xFFFF_F000),
            minor: (device & 0xFF) | ((device >> 12) & 0xFFFF_FF00),
        }
    }

    fn parse(text: &str) -> Option<Numbers> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Numbers { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

/// A mounted filesystem.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Mount {
    numbers: Numbers,
    filesystem: String,
    source: String,
    options: String,
}

impl Mount {
    fn of(dir: &Path) -> Option<Mount> {
        let numbers = Numbers::of(fs::metadata(dir).ok()?.st_dev());
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        // The last one with these numbers: a later mount hides an earlier one.
        table.lines().filter_map(Mount::parse).rfind(|m| m.numbers == numbers)
    }

    /// A line of `mountinfo`: `36 35 98:0 /root /mount options [optional…] - filesystem source super-options`.
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        let numbers = Numbers::parse(left.next()?)?;
        let options = left.nth(2)?.to_owned();
        let mut right = right.split(' ');
        Some(Mount {
            numbers,
            options,
            filesystem: right.next()?.to_owned(),
            source: right.next()?.to_owned(),
        })
    }
}

/// The whole block device under a directory: where the kernel counts writes and flushes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// Its name, such as `vda`.
    pub name: String,
    numbers: Numbers,
    /// Its directory in `/sys`.
    sys: PathBuf,
}

/// What a device has done since it is there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct DiskCounters {
    /// Writes completed.
    pub writes: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Flushes of its cache completed.
    pub flushes: u64,
}

impl Disk {
    /// The device that holds `dir`; none if it is not on one (tmpfs, a network) or the host does not say.
    pub fn of(dir: &Path) -> Option<Disk> {
        let numbers = Numbers::of(fs::metadata(dir).ok()?.st_dev());
        Disk::of_numbers(numbers).or_else(|| {
            // Filesystems of several devices (btrfs) have numbers of their own; their mount names one of the devices.
            let source = Mount::of(dir)?.source;
            Disk::of_numbers(Numbers::of(fs::metadata(source).ok()?.st_rdev()))
        })
    }

    fn of_numbers(numbers: Numbers) -> Option<Disk> {
        let link = format!("/sys/dev/block/{}:{}", numbers.major, numbers.minor);
        let mut sys = fs::canonicalize(link).ok()?;
        // Flushes are counted for whole devices only.
        if sys.join("partition").exists() {
            sys = sys.parent()?.to_owned();
        }
        let numbers = Numbers::parse(&read(&sys.join("dev"))?)?;
        Some(Disk { name: sys.file_name()?.to_string_lossy().into_owned(), numbers, sys })
    }

    /// Its counters now.
    pub fn counters(&self) -> Option<DiskCounters> {
        diskstats(&fs::read_to_string("/proc/diskstats").ok()?, self.numbers)
    }
}

fn diskstats(table: &str, numbers: Numbers) -> Option<DiskCounters> {
    const SECTOR_BYTES: u64 = 512; // of this table, whatever the device's are
    for line in table.lines() {
        let fields: Vec<u64> = line
            .split_whitespace()
            .enumerate()
            .map(|(at, text)| if at == 2 { Some(0) } else { text.parse().ok() })
            .collect::<Option<_>>()?;
        if fields.first() == Some(&numbers.major) && fields.get(1) == Some(&numbers.minor) {
            return Some(DiskCounters {
                writes: *fields.get(7)?,
                bytes_written: fields.get(9)?.checked_mul(SECTOR_BYTES)?,
                flushes: *fields.get(18)?, // from Linux 5.5 on
            });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_line_with_and_without_optional_fields() {
        let line = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.numbers, Numbers { major: 98, minor: 0 });
        assert_eq!(
            (mount.filesystem.as_str(), mount.source.as_str(), mount.options.as_str()),
            ("ext3", "/dev/root", "rw,noatime")
        );
        assert_eq!(Mount::parse("1 0 0:2 / / rw - tmpfs none rw").unwrap().filesystem, "tmpfs");
        assert_eq!(Mount::parse("nonsense"), None);
    }

    #[test]
    fn counters_are_those_of_the_numbers_asked_for() {
        let table = "   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n \
                     254       0 vda 1 2 3 4 2901 14774 1228160 2732 0 7120 39316 4002 59 96920 356 146 7\n";
        let vda = DiskCounters { writes: 2901, bytes_written: 1_228_160 * 512, flushes: 146 };
        assert_eq!(diskstats(table, Numbers { major: 254, minor: 0 }), Some(vda));
        assert_eq!(diskstats(table, Numbers { major: 254, minor: 1 }), None);
        assert_eq!(diskstats("254 0 vda 1 2", Numbers { major: 254, minor: 0 }), None);
    }

    #[test]
    fn device_numbers_as_the_c_library_packs_them() {
        assert_eq!(Numbers::of(0xFE00), Numbers { major: 254, minor: 0 });
        assert_eq!(Numbers::of(0x10_3302), Numbers { major: 0x33, minor: 0x102 });
    }

    #[test]
    fn the_pages_of_this_machine_parse() {
        let host = Host::of(Some(Path::new("/")));
        assert!(host.cores > 0 && host.memory_bytes > 1 << 20 && !host.kernel.is_empty(), "{host:?}");
        assert_eq!(
            cpu_model("processor : 0\nmodel name\t: Some CPU @ 2GHz\n").as_deref(),
            Some("Some CPU @ 2GHz")
        );
        assert_eq!(memory_bytes("MemTotal:        8123456 kB\n"), Some(8_123_456 * 1024));
        if let Some(disk) = Disk::of(Path::new("/")) {
            assert!(disk.counters().is_some(), "{disk:?}");
        }
    }
}
