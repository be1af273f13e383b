//! A disk whose power can be cut, on the real kernel: a file system on a loop device, whose file lies on another file system on
//! another loop device.
//!
//! The outer file system, an ext4 with a journal, can be told to shut down without writing anything back. From then on the inner
//! one's device answers every read, write and flush with EIO: a disk that died. When both are unmounted and mounted again, the
//! inner device holds what was flushed to it, and what was written and never flushed is gone: a power cut.
//!
//! It takes root, loop devices, mkfs and perl, for one ioctl. Where they are not to be had, a test says that it was skipped. What is mounted is
//! unmounted when the test ends, also by a panic; loop devices go with their mounts.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const SHUTDOWN: &str = r#"sysopen(my $at, $ARGV[0], 0) or die "open: $!"; my $how = pack("I", 2); ioctl($at, 0x8004587d, $how) or die "ioctl: $!""#;

/// Says that a test was skipped, past the test harness.
pub(crate) fn skipped(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// What the data lie on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FileSystem {
    Ext4,
    Xfs,
}

impl FileSystem {
    fn mkfs(self) -> &'static [&'static str] {
        match self {
            FileSystem::Ext4 => &["mkfs.ext4", "-q", "-O", "has_journal"],
            FileSystem::Xfs => &["mkfs.xfs", "-q"],
        }
    }
}

/// A disk and the disk that it lies on.
pub(crate) struct Rig {
    /// Where the file system is mounted that nodes write to.
    pub(crate) at: PathBuf,
    outer: PathBuf,
    outer_image: PathBuf,
    inner_image: PathBuf,
    _dir: TempDir,
}

impl Rig {
    /// Of so many bytes; the files are sparse.
    pub(crate) fn new(inner: FileSystem, bytes: u64) -> Result<Rig, String> {
        let dir = TempDir::new().map_err(|e| e.to_string())?;
        let rig = Rig {
            at: dir.path().join("disk"),
            outer: dir.path().join("outer"),
            outer_image: dir.path().join("image"),
            inner_image: dir.path().join("outer/image"),
            _dir: dir,
        };
        for path in [&rig.at, &rig.outer] {
            std::fs::create_dir(path).map_err(|e| e.to_string())?;
        }
        done(Command::new("perl").args(["-e", "1"]))?;
        sparse(&rig.outer_image, bytes + bytes / 2)?;
        make(FileSystem::Ext4, &rig.outer_image)?;
        mount(&rig.outer_image, &rig.outer)?;
        sparse(&rig.inner_image, bytes)?;
        make(inner, &rig.inner_image)?;
        mount(&rig.inner_image, &rig.at)?;
        // The image and its name must outlive a cut.
        done(Command::new("sync").arg("-f").arg(&rig.outer))?;
        Ok(rig)
    }

    /// From now on the disk answers everything with EIO.
    pub(crate) fn kill(&self) -> Result<(), String> {
        done(Command::new("perl").args(["-e", SHUTDOWN]).arg(&self.outer))
    }

    /// Brings a dead disk back with what had been flushed to it. Nobody has a file of it open.
    pub(crate) fn revive(&self) -> Result<(), String> {
        done(Command::new("umount").arg(&self.at))?;
        done(Command::new("umount").arg(&self.outer))?;
        mount(&self.outer_image, &self.outer)?;
        mount(&self.inner_image, &self.at)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for at in [&self.at, &self.outer] {
            if done(Command::new("umount").arg(at)).is_err() {
                let _ = done(Command::new("umount").arg("--lazy").arg(at));
            }
        }
    }
}

fn sparse(path: &Path, bytes: u64) -> Result<(), String> {
    File::create(path).and_then(|file| file.set_len(bytes)).map_err(|e| e.to_string())
}

fn make(system: FileSystem, image: &Path) -> Result<(), String> {
    let [program, args @ ..] = system.mkfs() else { return Err("no program".into()) };
    done(Command::new(program).args(args).arg(image))
}

fn mount(image: &Path, at: &Path) -> Result<(), String> {
    done(Command::new("mount").args(["-o", "loop"]).args([image, at]))
}

/// Runs a command; an error is what it said.
pub(crate) fn done(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}")) }
}
