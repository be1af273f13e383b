//! Directories, plainly.

use crate::IoError;
use crate::sys::file_error;
use std::io;
use std::path::Path;

fn refused(error: &io::Error, operation: &'static str, path: &Path) -> IoError {
    file_error(error.raw_os_error().unwrap_or(libc::EIO), operation, path)
}

/// Creates it; an existing directory is fine.
pub(crate) fn create(path: &Path) -> Result<(), IoError> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        other => other.map_err(|error| refused(&error, "create directory", path)),
    }
}

/// The names in it, sorted.
pub(crate) fn list(path: &Path) -> Result<Vec<String>, IoError> {
    let refuse = |error: io::Error| refused(&error, "list", path);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(refuse)? {
        names.push(entry.map_err(refuse)?.file_name().to_string_lossy().into_owned());
    }
    names.sort_unstable();
    Ok(names)
}
