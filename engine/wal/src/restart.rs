//! Finding the checkpoint that an opening begins with.
//!
//! Every batch names the two newest checkpoints that had been read back when it was written. The batches of the newest segment
//! that has one are asked first, as far as they lie close to each other: the first one may name a checkpoint that begins before
//! what cannot be read any more, and the last ones two that were begun behind it. If that does not lead to a good checkpoint,
//! every batch of the newest segments is asked. A checkpoint is good if its end and all its chunks are whole and are each
//! other's; anything else about it does not count. What is found was named by a batch, so it was durable and read back once: if none is good, that is
//! damage, and whether the log can do without is the caller's question.

use crate::checkpoint::{self, CHECKPOINT_BYTES_MAX, Content};
use crate::disk::Disk;
use crate::error::OpenError;
use crate::format::{BatchHeader, CheckpointEnd, SegmentHeader};
use crate::saving::Kept;
use crate::scan::{belongs, check_records, records_of};
use crate::survey::{Named, read_header};
use crate::window::Window;
use std::collections::BTreeSet;
use std::path::Path;
use tidelog_io::OpenMode;
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Incarnation, Lsn, RecordHeader, RecordKind};

const PAGE: u64 = PAGE_BYTES as u64;
/// Newest written segments whose batches are all looked at if the newest one's do not help.
const SEARCHED_SEGMENTS: usize = 3;
/// Bytes without a batch behind which the newest segment is taken to be over at first: more than two bad batches in a row.
const GAP_MAX: u64 = 2 * BATCH_BYTES_MAX as u64 + PAGE;

/// A checkpoint and where it lies.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) kept: Kept,
    pub(crate) content: Content,
}

/// What batches name.
#[derive(Debug, Default)]
pub(crate) struct Search {
    /// The newest good checkpoint.
    pub(crate) loaded: Option<Loaded>,
    /// Checkpoints that are named and not good, newest first, and why.
    pub(crate) bad: Vec<(Lsn, String)>,
}

/// Looks for the newest good checkpoint. `names` ascend.
pub(crate) fn search(disk: &mut Disk<'_>, names: &[Named], store: Incarnation) -> Result<Search, OpenError> {
    let mut search = Search::default();
    let mut tried = BTreeSet::new();
    let mut named = BTreeSet::new();
    if let Some(newest) = newest_written(disk, names)? {
        gather(disk, newest, GAP_MAX, &mut named)?;
        search.attempt_all(disk, names, store, &named, &mut tried)?;
        if search.loaded.is_some() {
            return Ok(search);
        }
    }
    let mut written = 0;
    for name in names.iter().rev() {
        if gather(disk, name, u64::MAX, &mut named)? {
            written += 1;
        }
        if written >= SEARCHED_SEGMENTS {
            break;
        }
    }
    search.attempt_all(disk, names, store, &named, &mut tried)?;
    Ok(search)
}

impl Search {
    /// Tries those that are named, the newest first, until one is good.
    fn attempt_all(
        &mut self,
        disk: &mut Disk<'_>,
        names: &[Named],
        store: Incarnation,
        named: &BTreeSet<Lsn>,
        tried: &mut BTreeSet<Lsn>,
    ) -> Result<(), OpenError> {
        for &batch in named.iter().rev() {
            self.attempt(disk, names, store, batch, tried)?;
            if self.loaded.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn attempt(
        &mut self,
        disk: &mut Disk<'_>,
        names: &[Named],
        store: Incarnation,
        batch: Lsn,
        tried: &mut BTreeSet<Lsn>,
    ) -> Result<(), OpenError> {
        if batch == Lsn(0) || is_gone(names, batch) || !tried.insert(batch) {
            return Ok(());
        }
        match load(disk, names, store, batch)? {
            Ok(None) => {}
            Ok(Some(loaded)) => self.loaded = Some(loaded),
            Err(why) => {
                tracing::warn!(lsn = batch.0, %why, "a checkpoint is bad");
                self.bad.push((batch, why));
            }
        }
        Ok(())
    }
}

impl Search {
    /// An error of reading the log without the checkpoints that it should have.
    pub(crate) fn blame(&self, dir: &Path, error: OpenError) -> OpenError {
        match (error, self.bad.first()) {
            (OpenError::Missing { .. } | OpenError::Lost { .. }, Some((lsn, why))) => {
                OpenError::Checkpoint { dir: dir.to_path_buf(), lsn: *lsn, why: why.clone() }
            }
            (error, _) => error,
        }
    }
}

/// The newest segment that begins with a batch.
fn newest_written<'n>(disk: &mut Disk<'_>, names: &'n [Named]) -> Result<Option<&'n Named>, OpenError> {
    for name in names.iter().rev() {
        let header = read_header(disk, name)?;
        let (file, bytes) = disk.open(&name.path, OpenMode::Read)?;
        let mut window = Window::new(file, bytes);
        let start = header.start();
        let found = BatchHeader::decode(window.view(disk, start.0 - header.base.0, PAGE_BYTES)?);
        disk.close(file)?;
        if found.is_ok_and(|batch| belongs(&batch, &header, start).is_ok()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Adds what the batches of a segment name, until there is none in `gap` bytes. Whether there is a batch in it.
fn gather(disk: &mut Disk<'_>, name: &Named, gap: u64, named: &mut BTreeSet<Lsn>) -> Result<bool, OpenError> {
    let header = read_header(disk, name)?;
    let (file, bytes) = disk.open(&name.path, OpenMode::Read)?;
    let mut window = Window::ahead(file, bytes.min(header.bytes), None);
    let (mut at, mut last, mut any) = (header.start(), header.start(), false);
    while at.0 + PAGE <= header.end().0 && at.0 - last.0 <= gap {
        match BatchHeader::decode(window.view(disk, at.0 - header.base.0, PAGE_BYTES)?) {
            Ok(batch) if belongs(&batch, &header, at).is_ok() => {
                named.extend([batch.checkpoint, batch.older_checkpoint]);
                any = true;
                at = batch.end();
                last = at;
            }
            _ => at = at.plus(PAGE),
        }
    }
    window.end(disk);
    disk.close(file)?;
    named.remove(&Lsn(0));
    Ok(any)
}

/// The file that holds `lsn`.
fn holder(names: &[Named], lsn: Lsn) -> Option<&Named> {
    names.get(names.partition_point(|n| n.base <= lsn).checked_sub(1)?)
}

/// Bytes of the log; fewer if they are not there.
fn bytes_at(disk: &mut Disk<'_>, names: &[Named], lsn: Lsn, len: usize) -> Result<Vec<u8>, OpenError> {
    let Some(name) = holder(names, lsn) else { return Ok(Vec::new()) };
    let (file, bytes) = disk.open(&name.path, OpenMode::Read)?;
    let mut window = Window::new(file, bytes);
    let from = lsn.0 / PAGE * PAGE;
    let skip = (lsn.0 - from) as usize; // below a page
    let got = window.view(disk, from - name.base.0, skip + len)?.get(skip..).unwrap_or_default().to_vec();
    disk.close(file)?;
    Ok(got)
}

/// Whether a position lies in what was given back. A checkpoint that ends or begins there has two newer ones behind it.
fn is_gone(names: &[Named], lsn: Lsn) -> bool {
    names.first().is_none_or(|oldest| lsn < oldest.base)
}

/// Reads the checkpoint that ends in the batch at `batch`; none if it begins in what was given back.
fn load(
    disk: &mut Disk<'_>,
    names: &[Named],
    store: Incarnation,
    batch: Lsn,
) -> Result<Result<Option<Loaded>, String>, OpenError> {
    let no = |why: &str| Ok(Err(why.to_owned()));
    let head = bytes_at(disk, names, batch, PAGE_BYTES)?;
    let header = match BatchHeader::decode(&head) {
        Ok(header) if header.lsn == batch && header.store == store => header,
        Ok(_) => return no("another batch lies where its last one should"),
        Err(error) => return Ok(Err(format!("its last batch: {error}"))),
    };
    let bytes = bytes_at(disk, names, batch, (header.total_len as usize).min(BATCH_BYTES_MAX))?;
    if let Err(error) = check_records(&bytes, &header) {
        return Ok(Err(format!("its last batch: {error}")));
    }
    let end = records_of(&bytes, &header)
        .filter(|(_, record, _, _)| record.kind == RecordKind::CheckpointEnd)
        .map(|(_, _, payload, _)| CheckpointEnd::decode(payload))
        .next();
    let end = match end {
        Some(Ok(end)) if end.batch == batch && end.store == store && end.epoch == header.epoch => end,
        Some(Err(error)) if error.is_newer() => {
            let file = holder(names, batch).map(|n| n.path.clone()).unwrap_or_default();
            return Err(OpenError::Newer { file, offset: 0, what: format!("checkpoint: {error}") });
        }
        Some(Err(error)) => return Ok(Err(format!("its end: {error}"))),
        Some(Ok(_)) => return no("its end is another one's"),
        None => return no("its last batch has no end of a checkpoint"),
    };
    // Its chunks may have gone, too: that is no damage.
    if is_gone(names, end.at) {
        return Ok(Ok(None));
    }
    if end.bytes > CHECKPOINT_BYTES_MAX {
        return no("it is too large");
    }
    let mut content = Vec::with_capacity(end.bytes as usize);
    for (at, chunk) in end.chunks.iter().enumerate() {
        let record =
            bytes_at(disk, names, chunk.lsn, (HEADER_BYTES + chunk.len as usize).next_multiple_of(64))?;
        match RecordHeader::decode_record(&record) {
            Ok((found, payload))
                if found.kind == RecordKind::CheckpointChunk
                    && found.index.0 == at as u64 + 1
                    && found.generation.0 == end.at.0 =>
            {
                content.extend_from_slice(payload);
            }
            Ok(_) => return Ok(Err(format!("another record lies where its chunk {} should", at + 1))),
            Err(error) => return Ok(Err(format!("its chunk {}: {error}", at + 1))),
        }
    }
    if content.len() as u64 != end.bytes || crc32c::crc32c(&content) != end.crc {
        return no("its chunks are not those of its end");
    }
    let content = match checkpoint::decode(&content) {
        Ok(content) => content,
        Err(error) if error.is_newer() => {
            let file = holder(names, batch).map(|n| n.path.clone()).unwrap_or_default();
            return Err(OpenError::Newer { file, offset: 0, what: format!("checkpoint: {error}") });
        }
        Err(error) => return Ok(Err(format!("its content: {error}"))),
    };
    let kept = Kept { at: end.at, batch, bytes: end.bytes };
    Ok(Ok(Some(Loaded { kept, content })))
}

/// Which files an opening from a checkpoint looks into: those from the one that holds the position on. The others are
/// known from the checkpoint, or are left over.
pub(crate) fn floor(names: &[Named], at: Lsn) -> usize {
    names.partition_point(|n| n.base < at).saturating_sub(1)
}

/// A header for a segment that is only known from a checkpoint.
pub(crate) fn known_header(known: &checkpoint::KnownSegment, like: &SegmentHeader) -> SegmentHeader {
    SegmentHeader {
        base: known.base,
        bytes: known.bytes,
        segment_seq: known.seq,
        epoch: known.epoch,
        prev_epoch_end: Lsn(0),
        recycled: false,
        durable: Lsn(0),
        ..*like
    }
}
