//! Bytes set aside before they are cut: what cannot be decided here may still help a person.

use crate::disk::Disk;
use crate::error::OpenError;
use crate::evidence::Evidence;
use crate::names::QUARANTINE;
use crate::options::Options;
use crate::scan::{Bad, Scanner};
use crate::window::Window;
use std::path::PathBuf;
use tidelog_io::{IoError, IoErrorKind, Op, OpenMode};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};

/// Most files kept: the oldest goes for a new one.
const FILES_MAX: usize = 16;

/// Copies a suspect batch, and what lies behind it, to a file of the quarantine directory, durably. None if there is
/// no space for it: the cut is safe without the copy.
pub(crate) fn keep(
    disk: &mut Disk<'_>,
    options: &Options,
    scanner: &Scanner<'_>,
    bad: &Bad,
    evidence: &Evidence,
) -> Result<Option<PathBuf>, OpenError> {
    match copy(disk, options, scanner, bad, evidence) {
        Ok(path) => Ok(Some(path)),
        Err(e) if e.kind == IoErrorKind::NoSpace => {
            tracing::warn!(lsn = bad.lsn.0, error = %e, "a suspect batch is cut without a copy");
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

fn copy(
    disk: &mut Disk<'_>,
    options: &Options,
    scanner: &Scanner<'_>,
    bad: &Bad,
    evidence: &Evidence,
) -> Result<PathBuf, IoError> {
    let dir = options.dir.join(QUARANTINE);
    disk.run(Op::CreateDir { path: dir.clone() })?;
    disk.run(Op::SyncDir { path: options.dir.clone() })?;
    let epoch = scanner.here().map_or(0, |s| s.header.epoch);
    let path = dir.join(format!("{epoch:016x}-{:016x}.bytes", bad.lsn.0));
    let names = disk.list(&dir)?;
    for name in names.iter().take((names.len() + 1).saturating_sub(FILES_MAX)) {
        disk.run(Op::Remove { path: dir.join(name) })?;
    }
    match disk.run(Op::Remove { path: path.clone() }) {
        Err(e) if e.kind != IoErrorKind::NotFound => return Err(e),
        _ => {} // an earlier opening that did not end had copied it
    }
    let (target, _) = disk.open(&path, OpenMode::Create)?;
    let result = fill(disk, scanner, evidence, target);
    disk.close(target)?;
    if result.is_err() {
        disk.run(Op::Remove { path: path.clone() })?;
    }
    result?;
    disk.run(Op::SyncDir { path: dir })?;
    Ok(path)
}

fn fill(
    disk: &mut Disk<'_>,
    scanner: &Scanner<'_>,
    evidence: &Evidence,
    target: tidelog_io::FileId,
) -> Result<(), IoError> {
    let mut written = 0;
    for &(at, from, to) in &evidence.leavings {
        let Some(source) = scanner.source(at) else { continue };
        let to = to.min(from + 4 * BATCH_BYTES_MAX as u64);
        let (file, bytes) = disk.open(&source.path, OpenMode::Read)?;
        let mut window = Window::new(file, bytes);
        let mut offset = from;
        while offset < to {
            let len = (to - offset).min(1 << 20) as usize;
            let data = window.view(disk, offset, len)?.to_vec();
            if data.is_empty() {
                break;
            }
            let mut buffer = disk.buffers().take_zeroed(data.len().next_multiple_of(PAGE_BYTES));
            if let Some(start) = buffer.get_mut(..data.len()) {
                start.copy_from_slice(&data);
            }
            let bytes = buffer.len() as u64;
            disk.run(Op::Write { file: target, offset: written, data: vec![buffer.freeze()] })?;
            written += bytes;
            offset += data.len() as u64;
        }
        disk.close(file)?;
    }
    disk.run(Op::Sync { file: target }).map(|_| ())
}
