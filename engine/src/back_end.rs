//! The real back-end that a configuration asks for.

use crate::config::{self, Config};
use crate::error::Error;
use tidelog_io::{BackEnd, Io, IoOptions, SyncMode, open_back_end};

/// Opens it.
///
/// # Errors
/// If the host does not allow it, with what to change.
pub(crate) fn open(config: &Config) -> Result<Box<dyn Io>, Error> {
    let kind = match config.io.backend {
        config::BackEnd::Uring => BackEnd::Uring,
        config::BackEnd::Blocking => BackEnd::Blocking,
    };
    let sync = match config.wal.sync {
        config::SyncMethod::Auto => SyncMode::Auto,
        config::SyncMethod::Fdatasync => SyncMode::Fdatasync,
        config::SyncMethod::Dsync => SyncMode::Dsync,
    };
    let connections = crate::transport::connections_max(config);
    let options = IoOptions {
        sync,
        file_operations_max: u16::try_from(config.io.ring_entries).unwrap_or(u16::MAX),
        connections_max: u16::try_from(connections).unwrap_or(u16::MAX),
        registered_bytes: config.io.registered_memory,
        ..IoOptions::default()
    };
    open_back_end(kind, &options).map_err(|e| Error::Config(e.to_string()))
}
