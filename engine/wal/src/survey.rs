//! What lies in a WAL directory: its segments' headers, which epoch is the newest in use, which segments are the log.
//!
//! Opening and inspecting both begin with it; it changes nothing.

use crate::chain::{Chain, ChainError, From, chain};
use crate::disk::Disk;
use crate::error::{BadWhy, Finding, OpenError, Verdict};
use crate::evidence::{Evidence, verdict};
use crate::format::{FLAG_DONE, FLAG_OPEN, SegmentHeader};
use crate::names::{self, Name};
use crate::scan::{Bad, Found, Scanner, Source};
use crate::window::Window;
use std::path::{Path, PathBuf};
use tidelog_io::{IoError, IoErrorKind, OpenMode};
use tidelog_types::Lsn;
use tidelog_types::limits::PAGE_BYTES;

/// A file with a segment's name.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) base: Lsn,
    pub(crate) path: PathBuf,
}

/// What lies in a WAL directory.
pub(crate) struct Directory {
    /// Ascending by base.
    pub(crate) names: Vec<Named>,
    pub(crate) spares: Vec<u64>,
    pub(crate) unfinished: Vec<PathBuf>,
}

/// Lists a directory. No file is opened: an old segment's name says all that opening needs of it.
pub(crate) fn survey(disk: &mut Disk<'_>, dir: &Path) -> Result<Directory, OpenError> {
    let mut directory = Directory { names: Vec::new(), spares: Vec::new(), unfinished: Vec::new() };
    for name in disk.list(dir)? {
        let path = dir.join(&name);
        match names::parse(&name) {
            Name::Segment(base) => directory.names.push(Named { base, path }),
            Name::Spare(number) => directory.spares.push(number),
            Name::Unfinished => directory.unfinished.push(path),
            Name::Other => {}
        }
    }
    directory.names.sort_by_key(|n| n.base);
    Ok(directory)
}

/// Reads the headers of segments.
pub(crate) fn sources(disk: &mut Disk<'_>, names: &[Named]) -> Result<Vec<Source>, OpenError> {
    names
        .iter()
        .map(|name| Ok(Source { path: name.path.clone(), header: read_header(disk, name)? }))
        .collect()
}

/// The same for a look at whatever is there: a file that was cut short is one of them, and those behind the last header that is bad. An
/// opening may need neither, and says so if it does.
pub(crate) fn sources_as_they_are(
    disk: &mut Disk<'_>,
    names: &[Named],
) -> Result<(Vec<Source>, Vec<Finding>), OpenError> {
    let (mut sources, mut bad) = (Vec::new(), Vec::new());
    for name in names {
        match read_header_of(disk, name) {
            Ok((header, _)) => sources.push(Source { path: name.path.clone(), header }),
            Err(OpenError::SegmentHeader { file, error }) => {
                sources.clear();
                bad.push(Finding {
                    verdict: Verdict::Superseded,
                    file,
                    offset: 0,
                    lsn: name.base,
                    epoch: 0,
                    bytes: 2 * PAGE_BYTES as u64,
                    why: BadWhy::Header(error),
                    spans: Vec::new(),
                    quarantined: None,
                });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((sources, bad))
}

/// Reads a segment's header.
pub(crate) fn read_header(disk: &mut Disk<'_>, name: &Named) -> Result<SegmentHeader, OpenError> {
    match read_header_of(disk, name)? {
        (header, bytes) if header.bytes > bytes => {
            Err(OpenError::Missing { dir: name.path.clone(), lsn: header.base.plus(bytes) })
        }
        (header, _) => Ok(header),
    }
}

/// The header and the length of the file.
fn read_header_of(disk: &mut Disk<'_>, name: &Named) -> Result<(SegmentHeader, u64), OpenError> {
    let path = name.path.as_path();
    let (file, bytes) = disk.open(path, OpenMode::Read)?;
    let mut window = Window::new(file, bytes.min(2 * PAGE_BYTES as u64));
    let decoded = SegmentHeader::decode_either(window.view(disk, 0, 2 * PAGE_BYTES)?);
    let unreadable = window.unreadable(0, 2 * PAGE_BYTES as u64);
    disk.close(file)?;
    let file = path.to_path_buf();
    match decoded {
        Ok(header) if header.base != name.base => Err(foreign(path, "base LSN", header.base.0, name.base.0)),
        Ok(header) => Ok((header, bytes)),
        Err(error) if error.is_newer() => {
            Err(OpenError::Newer { file, offset: 0, what: format!("segment header: {error}") })
        }
        // Nothing is known about bytes that the device does not give: they are not damaged, and may come back.
        Err(_) if unreadable => Err(OpenError::Io(IoError {
            kind: IoErrorKind::Device,
            operation: "read the segment header of",
            subject: file.display().to_string(),
            message: "Input/output error".into(),
        })),
        Err(error) => Err(OpenError::SegmentHeader { file, error }),
    }
}

pub(crate) fn foreign(file: &Path, field: &'static str, found: u64, expected: u64) -> OpenError {
    OpenError::Foreign { file: file.to_path_buf(), field, found, expected }
}

/// The newest epoch whose opening was completed; 0: none.
pub(crate) fn newest_in_use(disk: &mut Disk<'_>, sources: &[Source]) -> Result<u64, OpenError> {
    let headers: Vec<_> = sources.iter().map(|s| s.header).collect();
    let mut epochs: Vec<u64> = headers.iter().map(|h| h.epoch).collect();
    epochs.sort_unstable();
    epochs.dedup();
    for epoch in epochs.into_iter().rev() {
        let only: Vec<_> = headers.iter().filter(|h| h.epoch == epoch).copied().collect();
        // Prepared when the epoch was in use: whatever has become of what lies before it.
        if only.iter().any(|h| h.durable > Lsn(0)) {
            return Ok(epoch);
        }
        // Only this epoch's own segments matter here, whatever lies before them.
        let alone: Vec<_> = only.iter().map(|h| SegmentHeader { prev_epoch_end: Lsn(0), ..*h }).collect();
        let own: Vec<_> = sources.iter().filter(|s| s.header.epoch == epoch).cloned().collect();
        let Ok(Chain { parts, .. }) = chain(&alone, epoch, From::Beginning) else { return Ok(epoch) };
        let Some(part) = parts.first() else { continue };
        let mut scanner = Scanner::new(&own, part, None);
        let in_use = loop {
            match scanner.next(disk)? {
                Found::Good(header) if header.flags & FLAG_DONE != 0 || header.flags & FLAG_OPEN == 0 => {
                    break true;
                }
                Found::Good(_) => {}
                Found::Bad(bad) => {
                    let next = scanner.evidence(disk, &bad)?.next;
                    match next {
                        Some((_, header)) if header.flags & FLAG_OPEN == 0 => break true,
                        Some(_) => scanner.skip(next),
                        None => break false,
                    }
                }
                Found::End => break false,
            }
        };
        scanner.finish(disk)?;
        if in_use {
            return Ok(epoch);
        }
    }
    Ok(0)
}

/// Turns a fault of the chain into an error that names a file.
pub(crate) fn chain_of(dir: &Path, sources: &[Source], newest: u64, from: From) -> Result<Chain, OpenError> {
    let headers: Vec<_> = sources.iter().map(|s| s.header).collect();
    chain(&headers, newest, from).map_err(|e| match e {
        ChainError::Missing(lsn) => OpenError::Missing { dir: dir.to_path_buf(), lsn },
        ChainError::Contradiction(at) => {
            OpenError::Lost { file: sources.get(at).map(|s| s.path.clone()).unwrap_or_default(), offset: 0 }
        }
    })
}

/// A finding about a bad batch.
pub(crate) fn finding(scanner: &Scanner<'_>, bad: &Bad, evidence: &Evidence, epoch: u64) -> Option<Finding> {
    let source = scanner.here()?;
    let offset = source.offset(bad.lsn);
    let to_next = evidence.next.map(|(_, next)| next.lsn.0 - bad.lsn.0);
    let long = bad.header.map(|h| u64::from(h.total_len));
    let left = evidence.leavings.first().map(|l| l.2.saturating_sub(offset));
    Some(Finding {
        verdict: verdict(evidence),
        file: source.path.clone(),
        offset,
        lsn: bad.lsn,
        epoch,
        bytes: long.or(to_next).or(left).unwrap_or(0),
        why: bad.why.clone(),
        spans: evidence.spans.clone().unwrap_or_default(),
        quarantined: None,
    })
}
