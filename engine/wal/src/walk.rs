//! Verifying one segment's batches from a stream of its bytes, piece by piece.
//!
//! It is given what lies in a segment in order, in pieces of whole pages, and says which ranges of it are not as they were written: a
//! batch whose header, chain, records or footer are bad, or a stretch in which no batch is found at all. It holds no more
//! than the record that it is at, so a large batch costs no large buffer, and its work is bounded by the piece.
//!
//! Pure: no I/O, and nothing of what is live. That a range is bad says nothing about loss: the lookup knows what was there.
//! Where a segment's batches end it is told ([`Ends`]); if nobody knows, what lies behind the last one that it finds is a
//! range like any other, and the lookup finds nothing in it.

use crate::error::BadWhy;
use crate::format::{BATCH_HEADER_BYTES, BatchHeader, SegmentHeader, Span};
use crate::frozen::Link;
use crate::scan::{belongs, footer_of};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Lsn, RecordHeader};

const PAGE: u64 = PAGE_BYTES as u64;

/// Where a segment's batches end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ends {
    /// Behind the batch at this position: the next segment's first batch says so.
    Behind(Lsn),
    /// At this position.
    At(Lsn),
    /// Nobody knows.
    Unknown,
}

/// A range that is not as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Flawed {
    pub(crate) from: Lsn,
    pub(crate) to: Lsn,
    pub(crate) why: String,
    /// What the batch there held, if its footer, or the echo in the next one, says so.
    pub(crate) spans: Option<Vec<Span>>,
    /// Only the footer is bad: the records are whole.
    pub(crate) footer_only: bool,
    /// It may be what lies behind the segment's last batch: nobody knows where that ends.
    pub(crate) maybe: bool,
}

/// The batch that the walk is in.
#[derive(Debug)]
struct Inside {
    header: BatchHeader,
    /// Offset of the next record.
    at: usize,
    left: u32,
    crc: u32,
    why: Option<String>,
}

/// A segment being walked over.
#[derive(Debug)]
pub(crate) struct Walk {
    segment: SegmentHeader,
    ends: Ends,
    /// How far its bytes may be read.
    reach: Lsn,
    /// The batch before; none if it is not known.
    link: Option<Link>,
    inside: Option<Inside>,
    /// A range without a batch, until the next one says what was in it.
    gap: Option<Flawed>,
    /// Bytes that are not judged yet, from a whole page on, and how far into them the walk has come.
    held: Vec<u8>,
    held_from: Lsn,
    pos: usize,
    /// Pages that the device did not give; zeros stand for them.
    unreadable: Vec<Lsn>,
    found: Vec<Flawed>,
}

impl Walk {
    /// Over `segment`, whose first batch follows `link`, if that is known.
    pub(crate) fn new(segment: SegmentHeader, ends: Ends, link: Option<Link>) -> Walk {
        let start = segment.start();
        Walk {
            segment,
            ends,
            reach: segment.end(),
            link,
            inside: None,
            gap: None,
            held: Vec::new(),
            held_from: start,
            pos: 0,
            unreadable: Vec::new(),
            found: Vec::new(),
        }
    }

    pub(crate) const fn base(&self) -> Lsn {
        self.segment.base
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.segment.epoch
    }

    pub(crate) const fn end(&self) -> Lsn {
        self.segment.end()
    }

    /// The bytes before `reach` may be read.
    pub(crate) fn reach(&mut self, reach: Lsn) {
        self.reach = reach.min(self.segment.end());
    }

    /// The segment's batches end there.
    pub(crate) fn ends(&mut self, ends: Ends) {
        self.ends = ends;
    }

    /// The last batch that it came by.
    pub(crate) const fn link(&self) -> Option<Link> {
        self.link
    }

    fn lsn(&self) -> Lsn {
        self.held_from.plus(self.pos as u64)
    }

    /// What to read next, of at most `most` bytes; none if there is nothing to be read, now or at all.
    pub(crate) fn extent(&self, most: usize) -> Option<(Lsn, usize)> {
        if self.is_over() {
            return None;
        }
        let from = if self.pos >= self.held.len() {
            Lsn(self.lsn().0 / PAGE * PAGE) // what lies before it is not looked at
        } else {
            self.held_from.plus(self.held.len() as u64)
        };
        let bytes = self.reach.0.saturating_sub(from.0).min(most as u64) / PAGE * PAGE;
        (bytes > 0).then_some((from, bytes as usize)) // at most `most`
    }

    /// Whether it has come to the end of the segment's batches.
    pub(crate) fn is_over(&self) -> bool {
        let at = self.lsn();
        if self.inside.is_some() {
            return false;
        }
        if at.0 + PAGE > self.segment.end().0 {
            return true;
        }
        match self.ends {
            Ends::At(end) => at >= end,
            Ends::Behind(last) => match self.link {
                Some(link) if self.gap.is_none() => link.lsn == last,
                // The log went on without a batch here.
                _ => last < self.segment.start() && at == self.segment.start(),
            },
            Ends::Unknown => false,
        }
    }

    /// Takes the bytes of [`Self::extent`], or of its first part; `unreadable`: zeros that stand for them.
    pub(crate) fn take(&mut self, bytes: &[u8], unreadable: bool) {
        let Some((from, _)) = self.extent(bytes.len()) else { return };
        let done = (self.pos / PAGE_BYTES * PAGE_BYTES).min(self.held.len());
        if self.pos >= self.held.len() {
            self.held.clear();
            self.pos = (self.lsn().0 - from.0) as usize; // below a page
            self.held_from = from;
        } else {
            self.held.drain(..done);
            self.pos -= done;
            self.held_from = self.held_from.plus(done as u64);
        }
        let kept = self.inside.as_ref().map_or(self.lsn(), |inside| inside.header.lsn);
        self.unreadable.retain(|page| page.plus(PAGE) > kept);
        if unreadable {
            self.unreadable.push(from);
        }
        self.held.extend_from_slice(bytes);
        while self.step() {}
    }

    /// What was found since this was asked last; all of it when the walk is over.
    pub(crate) fn found(&mut self) -> Vec<Flawed> {
        if self.is_over()
            && let Some(gap) = self.gap.take()
        {
            self.found.push(Flawed { maybe: self.ends == Ends::Unknown, ..gap });
        }
        std::mem::take(&mut self.found)
    }

    /// One batch header, or the rest of a batch. False: more bytes are needed, or it is over.
    fn step(&mut self) -> bool {
        if self.is_over() {
            return false;
        }
        match self.inside.take() {
            Some(inside) => self.body(inside),
            None => self.head(),
        }
    }

    fn head(&mut self) -> bool {
        let lsn = self.lsn();
        let Some(page) = self.held.get(self.pos..self.pos + PAGE_BYTES) else { return false };
        let end = match self.ends {
            Ends::At(end) => end,
            _ => self.segment.end(),
        };
        let found = BatchHeader::decode(page).map_err(BadWhy::Header);
        let found = found.and_then(|header| belongs(&header, &self.segment, lsn).map(|()| header));
        let found =
            found.and_then(|header| if header.end() > end { Err(BadWhy::Length) } else { Ok(header) });
        let found = if self.unreadable.contains(&lsn) { Err(BadWhy::Unreadable) } else { found };
        match found {
            Ok(header) => {
                let follows = self.link.is_none_or(|link| {
                    header.prev == link.lsn
                        && header.prev_crc == link.crc
                        && header.batch_seq == link.seq.wrapping_add(1)
                });
                let why = (!follows).then(|| "it does not follow the batch before it".to_owned());
                let left = header.record_count;
                self.inside = Some(Inside { header, at: BATCH_HEADER_BYTES, left, crc: 0, why });
                self.pos += BATCH_HEADER_BYTES;
            }
            Err(why) => {
                let to = lsn.plus(PAGE);
                match &mut self.gap {
                    Some(gap) => gap.to = to,
                    None => {
                        let why = why.to_string();
                        self.gap = Some(Flawed {
                            from: lsn,
                            to,
                            why,
                            spans: None,
                            footer_only: false,
                            maybe: false,
                        });
                    }
                }
                // Whatever comes next, it need not follow.
                self.link = None;
                self.pos += PAGE_BYTES;
            }
        }
        true
    }

    /// Goes on in a batch. False: more bytes are needed.
    fn body(&mut self, mut inside: Inside) -> bool {
        let header = inside.header;
        let (footer, total) = (header.footer_offset as usize, header.total_len as usize);
        while inside.left > 0 {
            let room = footer.saturating_sub(inside.at);
            let rest = self.held.get(self.pos..).unwrap_or_default();
            let rest = rest.get(..room.min(rest.len())).unwrap_or_default();
            if rest.len() < room.min(2 * HEADER_BYTES) {
                self.inside = Some(inside);
                return false;
            }
            let record = match RecordHeader::decode(rest) {
                Ok(record) if record.record_bytes() > room => {
                    Err("its records overrun its footer".to_owned())
                }
                Ok(record) if record.record_bytes() > rest.len() => {
                    self.inside = Some(inside);
                    return false;
                }
                Ok(_) => {
                    RecordHeader::decode_record(rest).map(|(record, _)| record).map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match record {
                Ok(record) => {
                    let head = rest.get(..HEADER_BYTES).unwrap_or_default();
                    inside.crc = crc32c::crc32c_append(inside.crc, head);
                    inside.at += record.record_bytes();
                    inside.left -= 1;
                    self.pos += record.record_bytes();
                }
                Err(error) => {
                    inside.why.get_or_insert(format!("record at byte {} of the batch: {error}", inside.at));
                    inside.left = 0;
                    inside.crc = header.records_crc;
                }
            }
        }
        // To the footer; what lies between is not looked at.
        self.pos += footer.saturating_sub(inside.at);
        inside.at = footer;
        let Some(bytes) = self.held.get(self.pos..self.pos + (total - footer)) else {
            self.inside = Some(inside);
            return false;
        };
        let footer = footer_of(bytes, &header);
        if inside.crc != header.records_crc {
            inside.why.get_or_insert("the records are not those of the header".to_owned());
        }
        let end = header.end();
        if self.unreadable.iter().any(|page| *page >= header.lsn && *page < end) {
            inside.why.get_or_insert(BadWhy::Unreadable.to_string());
        }
        if let Some(mut gap) = self.gap.take() {
            let echo = footer
                .as_ref()
                .filter(|f| header.prev == gap.from && f.echo_batch_seq.wrapping_add(1) == header.batch_seq);
            gap.spans = echo.map(|f| f.echo.clone());
            self.found.push(gap);
        }
        let footer_only = inside.why.is_none();
        let why = inside.why.or_else(|| footer.is_none().then(|| "its footer is bad".to_owned()));
        if let Some(why) = why {
            let spans = footer.map(|f| f.own);
            self.found.push(Flawed { from: header.lsn, to: end, why, spans, footer_only, maybe: false });
        }
        self.link = Some(Link { lsn: header.lsn, crc: header.crc, seq: header.batch_seq });
        self.pos += total - header.footer_offset as usize;
        true
    }
}
