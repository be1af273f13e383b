//! Space for a node's data, before the node is there: what its configuration needs, and what the file system has.

use serde::Serialize;
use std::path::{Path, PathBuf};
use tidelog::config::Config;
use tidelog::options::Options;
use tidelog::space::Need;
use tidelog_io::{IoError, Space};

/// The findings, as they are shown and reported.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct DiskSpace {
    /// The directory that was asked about: that of the data, or the nearest one above it that is there.
    directory: PathBuf,
    disk_free_bytes: u64,
    disk_total_bytes: u64,
    /// What the data directory has taken already.
    disk_taken_bytes: u64,
    disk_needed_bytes: u64,
    disk_least_bytes: u64,
    /// What is wrong, in words; null: nothing.
    pub(crate) trouble: Option<String>,
    #[serde(skip)]
    text: String,
}

impl DiskSpace {
    /// What `config` needs, beside what its data directory's file system has.
    ///
    /// # Errors
    /// If the file system does not tell.
    pub(crate) fn of(config: &Config) -> Result<DiskSpace, IoError> {
        let dir = &config.node.data_dir;
        let directory = nearest(dir);
        let space: Space = tidelog_io::space(directory)?;
        let need = Need::of(&Options::from(config));
        let taken = taken(dir);
        Ok(DiskSpace {
            directory: directory.to_owned(),
            disk_free_bytes: space.free_bytes,
            disk_total_bytes: space.total_bytes,
            disk_taken_bytes: taken,
            disk_needed_bytes: need.bytes(),
            disk_least_bytes: need.least_bytes,
            trouble: need.lacks(space, taken),
            text: need.beside(space),
        })
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        format!("{} on the file system of {}", self.text, self.directory.display())
    }
}

/// The directory, or the nearest one above it that is there.
pub(crate) fn nearest(dir: &Path) -> &Path {
    let here = Path::new(".");
    let mut named = dir.ancestors().map(|path| if path.as_os_str().is_empty() { here } else { path });
    named.find(|path| path.exists()).unwrap_or(here)
}

/// Bytes of the files of a data directory's logs.
fn taken(dir: &Path) -> u64 {
    let names = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let logs = names(dir).filter(|entry| entry.file_name().to_string_lossy().starts_with("shard-"));
    let files = logs.flat_map(|log| names(&log.path()).collect::<Vec<_>>());
    files.filter_map(|file| file.metadata().ok()).filter(|file| file.is_file()).map(|file| file.len()).sum()
}
