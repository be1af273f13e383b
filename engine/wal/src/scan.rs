//! Walking over one epoch's batches.
//!
//! A batch is good if its header belongs where it lies, its records are whole, and they are the ones that the header was
//! written over. `docs/formats/batch.md` has the algorithm; what follows from a bad batch says `evidence`.
//! Opening and inspecting both walk with this; neither writes through it.

use crate::chain::EpochPart;
use crate::disk::Disk;
use crate::error::{BadWhy, OpenError};
use crate::format::{BATCH_HEADER_BYTES, BatchHeader, FOOTER_MAGIC, Footer, FormatError, SegmentHeader};
use crate::frozen::Link;
use crate::window::Window;
use std::path::PathBuf;
use tidelog_io::{FileId, OpenMode};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES, RECORD_ALIGN};
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Lsn, RecordError, RecordHeader};

const PAGE: u64 = PAGE_BYTES as u64;
static BLANK: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
const NO_SEGMENT: OpenError = OpenError::Options { what: "segment" };

/// A segment's file.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
}

impl Source {
    /// Offset of a position in the file.
    pub(crate) fn offset(&self, lsn: Lsn) -> u64 {
        lsn.0 - self.header.base.0
    }
}

/// What lies at the walk's position.
#[derive(Debug)]
pub(crate) enum Found {
    /// A good batch: [`Scanner::bytes`] has it.
    Good(BatchHeader),
    /// Something else.
    Bad(Bad),
    /// The epoch's end: where it is said to be, or nothing more follows.
    End,
}

/// A batch that is not good.
#[derive(Clone, Debug)]
pub(crate) struct Bad {
    pub(crate) lsn: Lsn,
    pub(crate) why: BadWhy,
    /// Its header, if that is whole and belongs there.
    pub(crate) header: Option<BatchHeader>,
}

/// Walks over one epoch's batches.
pub(crate) struct Scanner<'a> {
    pub(crate) sources: &'a [Source],
    pub(crate) part: &'a EpochPart,
    /// Position in the part's list of segments.
    pub(crate) at: usize,
    pub(crate) lsn: Lsn,
    /// The batch before; none if it is not known, after a bad one.
    pub(crate) link: Option<Link>,
    window: Option<Opened>,
    /// Another segment, mostly the next one, which is read ahead.
    prepared: Option<Opened>,
    read: u64,
}

/// A segment that is read.
#[derive(Debug)]
struct Opened {
    /// Its position in the part's list.
    at: usize,
    file: FileId,
    window: Window,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(sources: &'a [Source], part: &'a EpochPart, link: Option<Link>) -> Scanner<'a> {
        Scanner { sources, part, at: 0, lsn: part.start, link, window: None, prepared: None, read: 0 }
    }

    /// The segment at a position of the part's list.
    pub(crate) fn source(&self, at: usize) -> Option<&'a Source> {
        self.sources.get(*self.part.segments.get(at)?)
    }

    /// The segment of the current position.
    pub(crate) fn here(&self) -> Option<&'a Source> {
        self.source(self.at)
    }

    /// The part's segments behind the current one, with their positions in its list.
    pub(crate) fn behind(&self) -> impl Iterator<Item = (usize, &'a Source)> {
        (self.at + 1..self.part.segments.len()).filter_map(|at| Some((at, self.source(at)?)))
    }

    /// Bytes read so far.
    pub(crate) fn bytes_read(&self) -> u64 {
        let opened = self.window.iter().chain(&self.prepared);
        self.read + opened.map(|opened| opened.window.read).sum::<u64>()
    }

    /// Closes what is open.
    pub(crate) fn finish(&mut self, disk: &mut Disk<'_>) -> Result<(), OpenError> {
        for opened in [self.window.take(), self.prepared.take()].into_iter().flatten() {
            self.close(disk, opened)?;
        }
        Ok(())
    }

    fn close(&mut self, disk: &mut Disk<'_>, mut opened: Opened) -> Result<(), OpenError> {
        opened.window.end(disk);
        self.read += opened.window.read;
        Ok(disk.close(opened.file)?)
    }

    fn open(&self, disk: &mut Disk<'_>, at: usize) -> Result<Opened, OpenError> {
        let source = self.source(at).ok_or(NO_SEGMENT)?;
        let (file, bytes) = disk.open(&source.path, OpenMode::Read)?;
        // A look at what lies behind, before the walk comes there, is a short one.
        let before = self.window.as_ref().filter(|before| before.at + 1 == at && before.window.is_through());
        let before = before.map(|before| &before.window);
        let window = Window::ahead(file, bytes.min(source.header.bytes), before);
        Ok(Opened { at, file, window })
    }

    /// Opens a segment beside the one that the walk is at.
    fn open_beside(&mut self, disk: &mut Disk<'_>, at: usize) -> Result<(), OpenError> {
        if self.prepared.as_ref().is_some_and(|prepared| prepared.at == at) {
            return Ok(());
        }
        if let Some(other) = self.prepared.take() {
            self.close(disk, other)?;
        }
        self.prepared = Some(self.open(disk, at)?);
        Ok(())
    }

    pub(crate) fn window(&mut self, disk: &mut Disk<'_>, at: usize) -> Result<&mut Window, OpenError> {
        let here = self.window.as_ref().is_some_and(|w| w.at == at);
        if !here && at != self.at {
            self.open_beside(disk, at)?;
            return self.prepared.as_mut().map(|opened| &mut opened.window).ok_or(NO_SEGMENT);
        }
        if !here {
            self.open_beside(disk, at)?;
            let opened = self.prepared.take();
            if let Some(before) = std::mem::replace(&mut self.window, opened) {
                self.close(disk, before)?;
            }
        }
        // The device goes on with the next segment while the rest of this one is walked over.
        if self.window.as_ref().is_some_and(|w| w.window.is_through())
            && let Some(next) = self.source(at + 1)
        {
            self.open_beside(disk, at + 1)?;
            if let (Some(prepared), Some(before)) = (&mut self.prepared, &self.window) {
                prepared.window.prepare(disk, next.offset(next.header.start()), &before.window);
            }
        }
        self.window.as_mut().map(|opened| &mut opened.window).ok_or(NO_SEGMENT)
    }

    /// The bytes of a good batch.
    pub(crate) fn bytes(&mut self, disk: &mut Disk<'_>, header: &BatchHeader) -> Result<&[u8], OpenError> {
        let at = self.part.segments.iter().position(|s| {
            self.sources.get(*s).is_some_and(|s| s.header.base <= header.lsn && header.lsn < s.header.end())
        });
        let at = at.unwrap_or(self.at);
        let offset = self.source(at).map_or(0, |s| s.offset(header.lsn));
        Ok(self.window(disk, at)?.view(disk, offset, header.total_len as usize)?)
    }

    /// The header at `lsn` of segment `at`, if it belongs there.
    pub(crate) fn header(
        &mut self,
        disk: &mut Disk<'_>,
        at: usize,
        lsn: Lsn,
    ) -> Result<Result<BatchHeader, BadWhy>, OpenError> {
        let Some(source) = self.source(at) else { return Ok(Err(BadWhy::Length)) };
        let offset = source.offset(lsn);
        let window = self.window(disk, at)?;
        let page = window.view(disk, offset, PAGE_BYTES)?;
        let decoded = BatchHeader::decode(page);
        if window.unreadable(offset, PAGE) {
            return Ok(Err(BadWhy::Unreadable));
        }
        Ok(match decoded {
            Ok(header) => belongs(&header, &source.header, lsn).map(|()| header),
            Err(FormatError::Version(version)) => {
                return Err(OpenError::Newer {
                    file: source.path.clone(),
                    offset,
                    what: format!("batch version {version}"),
                });
            }
            Err(e) => Err(BadWhy::Header(e)),
        })
    }

    /// Whether the batch of `header` follows the one before; true if that one is not known.
    fn follows(&self, header: &BatchHeader) -> bool {
        self.link.is_none_or(|link| {
            header.prev == link.lsn && header.prev_crc == link.crc && header.batch_seq == link.seq + 1
        })
    }

    /// Looks at the current position. A good batch is stepped over.
    pub(crate) fn next(&mut self, disk: &mut Disk<'_>) -> Result<Found, OpenError> {
        loop {
            if let Some(end) = self.part.end
                && self.lsn >= end
            {
                return Ok(Found::End);
            }
            let Some(source) = self.here() else { return Ok(Found::End) };
            let full = self.lsn.0 + PAGE > source.header.end().0;
            let found = if full { Err(BadWhy::Length) } else { self.header(disk, self.at, self.lsn)? };
            let why = match found {
                Ok(header) => {
                    if !self.follows(&header) {
                        let (file, offset) = (source.path.clone(), source.offset(self.lsn));
                        return Err(OpenError::Lost { file, offset });
                    }
                    return self.body(disk, header);
                }
                Err(why) => why,
            };
            // Either the log goes on in the next segment, or something is wrong here, or in the next segment.
            let Some(next) = self.source(self.at + 1) else {
                return if full { Ok(Found::End) } else { Ok(self.bad(why, None)) };
            };
            let start = next.header.start();
            let follower = self.header(disk, self.at + 1, start)?;
            let rolled = follower.as_ref().is_ok_and(|header| self.link.is_some() && self.follows(header));
            // A whole batch there that does not follow says that one is missing here. Anything else there, or a batch behind
            // it that names it, and nothing here: the log had gone on there, unless it is a later one than the next.
            let there = rolled
                || full
                || (follower.is_err()
                    && why != BadWhy::Unreadable
                    && self.is_vacant(disk, self.at, self.lsn)?
                    && self.went_on(disk, self.at + 1, start)?);
            if !there {
                return Ok(self.bad(why, None));
            }
            self.at += 1;
            self.lsn = start;
        }
    }

    fn bad(&self, why: BadWhy, header: Option<BatchHeader>) -> Found {
        Found::Bad(Bad { lsn: self.lsn, why, header })
    }

    pub(crate) fn is_blank(&mut self, disk: &mut Disk<'_>, at: usize, lsn: Lsn) -> Result<bool, OpenError> {
        let offset = self.source(at).map_or(0, |s| s.offset(lsn));
        Ok(self.window(disk, at)?.view(disk, offset, PAGE_BYTES)? == BLANK)
    }

    /// Whether nothing was ever begun at `lsn`, where no valid header lies: there are zeros, or, in a file that was a
    /// segment before, neither a footer of a batch there nor a batch soon behind it.
    fn is_vacant(&mut self, disk: &mut Disk<'_>, at: usize, lsn: Lsn) -> Result<bool, OpenError> {
        let Some(source) = self.source(at) else { return Ok(true) };
        if !source.header.recycled {
            return self.is_blank(disk, at, lsn);
        }
        if self.footer_at(disk, at, lsn, u64::MAX)?.is_some() {
            return Ok(false);
        }
        let end = source.header.end().0.min(lsn.0 + BATCH_BYTES_MAX as u64);
        let mut behind = lsn.plus(PAGE);
        while behind.0 + PAGE <= end {
            if self.header(disk, at, behind)?.is_ok() {
                return Ok(false);
            }
            behind = behind.plus(PAGE);
        }
        Ok(true)
    }

    /// Which batch lay at `lsn` of segment `at`, if the next one there names it.
    fn named(&mut self, disk: &mut Disk<'_>, at: usize, lsn: Lsn) -> Result<Option<u64>, OpenError> {
        let Some(source) = self.source(at) else { return Ok(None) };
        let end = source.header.end().0.min(lsn.0 + BATCH_BYTES_MAX as u64 + PAGE);
        let mut behind = lsn.plus(PAGE);
        while behind.0 + PAGE <= end {
            if let Ok(header) = self.header(disk, at, behind)? {
                return Ok((header.prev == lsn).then(|| header.batch_seq.saturating_sub(1)));
            }
            behind = behind.plus(PAGE);
        }
        Ok(None)
    }

    /// Whether the log had gone on at `lsn` of segment `at`, where no valid header lies: something does, or the batch behind it
    /// names it; and neither says that it was a later one than the next. That one never arrived then, of several in flight.
    fn went_on(&mut self, disk: &mut Disk<'_>, at: usize, lsn: Lsn) -> Result<bool, OpenError> {
        let named = self.named(disk, at, lsn)?;
        if named.is_none() && self.is_vacant(disk, at, lsn)? {
            return Ok(false);
        }
        let footer = self.footer_at(disk, at, lsn, u64::MAX)?;
        let seq = footer.map(|(footer, _)| footer.batch_seq).or(named);
        Ok(self.link.is_none_or(|link| seq.is_none_or(|seq| seq == link.seq + 1)))
    }

    /// The footer of the batch at `lsn` of segment `at`, whose header is not known, within `len` bytes; and its end.
    pub(crate) fn footer_at(
        &mut self,
        disk: &mut Disk<'_>,
        at: usize,
        lsn: Lsn,
        len: u64,
    ) -> Result<Option<(Footer, u64)>, OpenError> {
        let Some(source) = self.source(at) else { return Ok(None) };
        let offset = source.offset(lsn);
        let len = len.min(BATCH_BYTES_MAX as u64).min(source.header.bytes.saturating_sub(offset));
        let identity = source.header;
        let bytes = self.window(disk, at)?.view(disk, offset, len as usize)?;
        for from in (0..bytes.len()).step_by(RECORD_ALIGN) {
            let rest = bytes.get(from..).unwrap_or_default();
            if rest.starts_with(&FOOTER_MAGIC)
                && let Ok(footer) = Footer::decode(rest)
                && footer.store == identity.store
                && footer.segment_seq == identity.segment_seq
                && footer.lsn == lsn
            {
                let end = from + crate::format::footer_bytes(footer.own.len() + footer.echo.len());
                return Ok(Some((footer, lsn.0 + end as u64)));
            }
        }
        Ok(None)
    }

    fn body(&mut self, disk: &mut Disk<'_>, header: BatchHeader) -> Result<Found, OpenError> {
        let Some(source) = self.here() else { return Ok(Found::End) };
        if header.end() > source.header.end() {
            return Ok(self.bad(BadWhy::Length, Some(header)));
        }
        let (offset, len) = (source.offset(header.lsn), u64::from(header.total_len));
        let at = self.at;
        let window = self.window(disk, at)?;
        let checked = check_records(window.view(disk, offset, header.total_len as usize)?, &header);
        if window.unreadable(offset, len) && checked.is_err() {
            return Ok(self.bad(BadWhy::Unreadable, Some(header)));
        }
        match checked {
            Ok(()) => {
                self.lsn = header.end();
                self.link = Some(Link { lsn: header.lsn, crc: header.crc, seq: header.batch_seq });
                Ok(Found::Good(header))
            }
            Err(BadWhy::Record { offset: within, error: RecordError::Version(_) | RecordError::Kind(_) }) => {
                Err(OpenError::Newer {
                    file: source.path.clone(),
                    offset: offset + u64::from(within),
                    what: "record of an unknown kind or version".into(),
                })
            }
            Err(why) => Ok(self.bad(why, Some(header))),
        }
    }

    /// The bytes of a bad batch that ends at `end`, as far as its segment has them; pages that cannot be read are zeros.
    pub(crate) fn bad_bytes(&mut self, disk: &mut Disk<'_>, bad: &Bad, end: Lsn) -> Result<&[u8], OpenError> {
        let at = self.at;
        let Some(source) = self.source(at) else { return Ok(&[]) };
        let len = end.min(source.header.end()).0.saturating_sub(bad.lsn.0).min(BATCH_BYTES_MAX as u64);
        Ok(self.window(disk, at)?.view(disk, source.offset(bad.lsn), len as usize)?)
    }

    /// Goes on behind a bad batch whose end is known: `next` is the valid header behind it, if there is one.
    pub(crate) fn step_over(&mut self, end: Lsn, link: Link, next: Option<(usize, BatchHeader)>) {
        self.link = Some(link);
        self.lsn = end;
        if let Some((at, header)) = next
            && header.lsn == end
        {
            self.at = at;
        }
    }

    /// Goes on behind a bad batch: at the next valid header, or at the end. The batch before is not known then.
    pub(crate) fn skip(&mut self, next: Option<(usize, BatchHeader)>) {
        self.link = None;
        match next {
            Some((at, header)) => (self.at, self.lsn) = (at, header.lsn),
            None => self.at = self.part.segments.len(),
        }
    }
}

/// The footer that `bytes` begin with, if it is that of `header`.
pub(crate) fn footer_of(bytes: &[u8], header: &BatchHeader) -> Option<Footer> {
    Footer::decode(bytes).ok().filter(|f| {
        f.store == header.store
            && f.segment_seq == header.segment_seq
            && f.lsn == header.lsn
            && f.batch_seq == header.batch_seq
            && f.header_crc == header.crc
    })
}

/// Whether a valid header is that of a batch of this segment at `lsn`.
pub(crate) fn belongs(header: &BatchHeader, segment: &SegmentHeader, lsn: Lsn) -> Result<(), BadWhy> {
    let pairs = [
        ("store", header.store.0, segment.store.0),
        ("segment", header.segment_seq, segment.segment_seq),
        ("epoch", header.epoch, segment.epoch),
        ("lsn", header.lsn.0, lsn.0),
    ];
    for (field, found, expected) in pairs {
        if found != expected {
            return Err(BadWhy::Misplaced { field, found, expected });
        }
    }
    Ok(())
}

/// Verifies the records of a batch against its header.
pub(crate) fn check_records(bytes: &[u8], header: &BatchHeader) -> Result<(), BadWhy> {
    let records = bytes.get(..header.footer_offset as usize).ok_or(BadWhy::Length)?;
    let (mut at, mut crc) = (BATCH_HEADER_BYTES, 0);
    for _ in 0..header.record_count {
        let rest = records.get(at..).unwrap_or_default();
        let bad = |error| BadWhy::Record { offset: at as u32, error }; // below a batch's length
        let (record, _) = RecordHeader::decode_record(rest).map_err(bad)?;
        crc = crc32c::crc32c_append(crc, rest.get(..HEADER_BYTES).unwrap_or_default());
        at += record.record_bytes();
    }
    if crc == header.records_crc { Ok(()) } else { Err(BadWhy::Records) }
}

/// Walks over the records of a good batch: (offset in the batch, header, payload, whole record).
pub(crate) fn records_of<'b>(
    bytes: &'b [u8],
    header: &BatchHeader,
) -> impl Iterator<Item = (usize, RecordHeader, &'b [u8], &'b [u8])> {
    let mut at = BATCH_HEADER_BYTES;
    let end = header.footer_offset as usize;
    (0..header.record_count).map_while(move |_| {
        let rest = bytes.get(at..end)?;
        let record = RecordHeader::decode(rest).ok()?;
        let whole = rest.get(..record.record_bytes())?;
        let payload = whole.get(record.head_bytes()..)?.get(..record.payload_len as usize)?;
        let offset = at;
        at += whole.len();
        Some((offset, record, payload, whole))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Footer;
    use tidelog_types::{Generation, Incarnation, Index, PartitionId, RecordKind, WallMs};

    fn entry(index: u64, fill: u8) -> Vec<u8> {
        let payload = [fill; 40];
        let header = RecordHeader {
            index: Index(index),
            generation: Generation(1),
            payload_len: 40,
            payload_crc: crc32c::crc32c(&payload),
            ..RecordHeader::new(RecordKind::Data, PartitionId(1))
        };
        let mut bytes = vec![0; header.record_bytes()];
        header.encode(&mut bytes);
        bytes[HEADER_BYTES..HEADER_BYTES + 40].copy_from_slice(&payload);
        bytes
    }

    fn batch(records: &[Vec<u8>]) -> (BatchHeader, Vec<u8>) {
        let (mut bytes, mut crc) = (vec![0; BATCH_HEADER_BYTES], 0);
        for record in records {
            bytes.extend_from_slice(record);
            crc = crc32c::crc32c_append(crc, &record[..HEADER_BYTES]);
        }
        let header = BatchHeader {
            crc: 0,
            flags: 0,
            store: Incarnation(1),
            segment_seq: 1,
            epoch: 1,
            lsn: Lsn(8192),
            batch_seq: 1,
            prev: Lsn(0),
            durable: Lsn(8192),
            checkpoint: Lsn(0),
            older_checkpoint: Lsn(0),
            total_len: 4096,
            footer_offset: 1024,
            record_count: records.len() as u32,
            records_crc: crc,
            prev_crc: 0,
            wall: WallMs(0),
        };
        bytes.resize(4096, 0);
        (header, bytes)
    }

    #[test]
    fn a_valid_record_of_another_life_does_not_pass() {
        let (header, good) = batch(&[entry(1, 7), entry(2, 8)]);
        assert_eq!(check_records(&good, &header), Ok(()));
        let mut ghost = good.clone();
        ghost[256..384].copy_from_slice(&entry(2, 9));
        assert_eq!(check_records(&ghost, &header), Err(BadWhy::Records));
        let mut lost = good;
        lost[256..384].fill(0);
        assert!(matches!(check_records(&lost, &header), Err(BadWhy::Record { offset: 256, .. })));
    }

    #[test]
    fn a_batch_belongs_to_one_place_and_life() {
        let (header, _) = batch(&[]);
        let segment = SegmentHeader {
            shard: tidelog_types::ShardId(0),
            store: Incarnation(1),
            node: tidelog_types::NodeId(1),
            segment_seq: 1,
            base: Lsn(0),
            bytes: 1 << 20,
            epoch: 1,
            prev_epoch_end: Lsn(0),
            recycled: false,
            durable: Lsn(0),
            footers_apart: true,
        };
        assert_eq!(belongs(&header, &segment, Lsn(8192)), Ok(()));
        let others = [
            (BatchHeader { store: Incarnation(2), ..header }, "store"),
            (BatchHeader { segment_seq: 2, ..header }, "segment"),
            (BatchHeader { epoch: 2, ..header }, "epoch"),
            (BatchHeader { lsn: Lsn(12288), ..header }, "lsn"),
        ];
        for (other, field) in others {
            match belongs(&other, &segment, Lsn(8192)) {
                Err(BadWhy::Misplaced { field: named, .. }) => assert_eq!(named, field),
                result => panic!("{field}: {result:?}"),
            }
        }
    }

    #[test]
    fn a_footer_belongs_to_its_header() {
        let (header, _) = batch(&[]);
        let footer = Footer {
            store: header.store,
            segment_seq: 1,
            lsn: header.lsn,
            batch_seq: 1,
            echo_batch_seq: 0,
            header_crc: 0,
            own: vec![],
            echo: vec![],
        };
        let mut bytes = Vec::new();
        footer.encode(&[], &[], &mut bytes);
        assert!(footer_of(&bytes, &header).is_some());
        assert!(footer_of(&bytes, &BatchHeader { crc: 9, ..header }).is_none());
        assert!(footer_of(&bytes, &BatchHeader { batch_seq: 9, ..header }).is_none());
    }
}
