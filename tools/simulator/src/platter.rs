//! A small reader of the log's format, written from `docs/formats` and not from the log's own code: what the
//! checkers know of disks, they know through it.
//!
//! It is given bytes that became durable and says which batches and segment headers lie in them. Bytes that are
//! neither are passed over; a batch that is not whole is reported as such, because nothing but a whole batch
//! should ever become durable.

use crate::payload::Ident;

const PAGE: usize = 4096;
const HEAD: usize = 64;
const BATCH_HEAD: usize = 128;
const EXTENDED: u16 = 1;

/// Kinds of records that the checkers tell apart (`docs/formats/record.md`).
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 2;
    pub(crate) const SESSION_OPEN: u8 = 3;
    pub(crate) const LOG_START: u8 = 4;
    pub(crate) const PROMISE: u8 = 64;
    pub(crate) const CUT: u8 = 65;
    pub(crate) const HIGH_WATER: u8 = 66;
    pub(crate) const LOW_WATER: u8 = 67;
    pub(crate) const CHECKPOINT_CHUNK: u8 = 69;
    pub(crate) const CHECKPOINT_END: u8 = 70;
    /// The next `index` records are copies of entries.
    pub(crate) const MOVED: u8 = 71;
    pub(crate) const SUMMARY: u8 = 72;
    pub(crate) const PADDING: u8 = 73;
    /// `count` entries from `index` on are in the log, and their bytes are lost.
    pub(crate) const LOST: u8 = 74;
    /// Of `count` entries from `index` on no copy is left.
    pub(crate) const LOST_COPIES: u8 = 75;
    /// Entries are below.
    pub(crate) const ENTRIES: u8 = 64;

    /// Whether it repeats what other records say, or changes nothing of them: a move's marker, a checkpoint, a summary, copies that are lost.
    pub(crate) const fn is_derived(kind: u8) -> bool {
        matches!(kind, CHECKPOINT_CHUNK | CHECKPOINT_END | MOVED | SUMMARY | LOST_COPIES)
    }
}

/// A record's facts.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) kind: u8,
    pub(crate) partition: u64,
    pub(crate) index: u64,
    pub(crate) generation: u64,
    pub(crate) prev_generation: u64,
    /// Replicated time.
    pub(crate) stamp: u64,
    /// (session, sequence) of a data entry.
    pub(crate) session: Option<(u64, u64)>,
    /// The first index kept, of a log start; 0: it is none.
    pub(crate) log_start: u64,
    /// How many entries it tells of, if it tells of lost ones.
    pub(crate) count: u64,
    /// Stands for all bytes of the record.
    pub(crate) hash: u64,
    /// Its length.
    pub(crate) bytes: u64,
    /// Who wrote the payload, if it is one of the simulated clients'.
    pub(crate) ident: Option<Ident>,
}

/// A whole batch.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) epoch: u64,
    pub(crate) lsn: u64,
    pub(crate) prev: u64,
    pub(crate) end: u64,
    /// What was durable of its epoch when it was submitted.
    pub(crate) durable: u64,
    /// The two newest checkpoints as it names them, by the batches that end them; 0: none.
    pub(crate) named: (u64, u64),
    /// Offset of the footer in it, and of the zeros between the records and it.
    pub(crate) footer: u64,
    pub(crate) records_end: u64,
    /// The last one of an opening.
    pub(crate) done: bool,
    /// Its epoch is in use: it is that last one, or was written later.
    pub(crate) in_use: bool,
    pub(crate) records: Vec<Record>,
}

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    pub(crate) epoch: u64,
    pub(crate) prev_epoch_end: u64,
}

/// What lies at some page.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Batch(Batch),
    Segment(Segment),
    /// It begins like a batch and is not a whole one.
    Broken(String),
}

/// The base that a segment's name says; none of any other file.
pub(crate) fn segment_base(path: &str) -> Option<u64> {
    let stem = path.rsplit('/').next()?.strip_suffix(".wal")?;
    if stem.len() == 16 { u64::from_str_radix(stem, 16).ok() } else { None }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

/// Everything in a range of pages.
pub(crate) fn items(bytes: &[u8]) -> Vec<Item> {
    items_at(bytes).into_iter().map(|(_, item)| item).collect()
}

/// The same, each with its offset.
pub(crate) fn items_at(bytes: &[u8]) -> Vec<(usize, Item)> {
    let mut out = Vec::new();
    let mut at = 0;
    // Of a whole segment.
    let mut base = None;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= PAGE) {
        match &rest[..4] {
            b"TLba" => match batch(rest) {
                // A misdirected write: what its header says of its length is not of what lies here.
                Ok(batch) if base.is_some_and(|base| batch.lsn != base + at as u64) => {
                    out.push((at, Item::Broken(format!("batch at LSN {} lies elsewhere", batch.lsn))));
                }
                Ok(batch) => {
                    let start = at;
                    at += usize::try_from(batch.end - batch.lsn).unwrap_or(PAGE);
                    out.push((start, Item::Batch(batch)));
                    continue;
                }
                Err(why) => out.push((at, Item::Broken(why))),
            },
            b"TLsg" if u32_at(rest, 4) == crc32c::crc32c(&rest[8..PAGE]) => {
                let segment = Segment {
                    base: u64_at(rest, 40),
                    bytes: u64_at(rest, 48),
                    epoch: u64_at(rest, 56),
                    prev_epoch_end: u64_at(rest, 64),
                };
                base = Some(segment.base);
                out.push((at, Item::Segment(segment)));
            }
            _ => {}
        }
        at += PAGE;
    }
    out
}

fn batch(bytes: &[u8]) -> Result<Batch, String> {
    if u32_at(bytes, 4) != crc32c::crc32c(&bytes[8..BATCH_HEAD]) {
        return Err("batch header checksum".into());
    }
    let (flags, lsn) = (u32_at(bytes, 12), u64_at(bytes, 40));
    let (total, footer, count) = (u32_at(bytes, 80) as usize, u32_at(bytes, 84) as usize, u32_at(bytes, 88));
    let body = bytes.get(..total).ok_or_else(|| format!("batch at LSN {lsn} is cut short"))?;
    let mut records = Vec::new();
    let mut at = BATCH_HEAD;
    for _ in 0..count {
        let rest = body.get(at..footer).ok_or_else(|| format!("batch at LSN {lsn} overruns its footer"))?;
        let (record, len) = record(rest).map_err(|why| format!("batch at LSN {lsn}, byte {at}: {why}"))?;
        records.push(record);
        at += len;
    }
    Ok(Batch {
        epoch: u64_at(bytes, 32),
        lsn,
        prev: u64_at(bytes, 56),
        end: lsn + total as u64,
        durable: u64_at(bytes, 64),
        named: (u64_at(bytes, 72), u64_at(bytes, 112)),
        footer: footer as u64,
        records_end: at as u64,
        done: flags & 2 != 0,
        in_use: flags & 2 != 0 || flags & 1 == 0,
        records,
    })
}

/// The record at the start of `bytes`, and its length.
pub(crate) fn record(bytes: &[u8]) -> Result<(Record, usize), String> {
    let extended = u16_at(bytes, 14) & EXTENDED != 0;
    let head_len = if extended { 2 * HEAD } else { HEAD };
    let head = bytes.get(..head_len).ok_or("record header is cut short")?;
    if u32_at(head, 0) != crc32c::crc32c(&head[4..]) {
        return Err("record header checksum".into());
    }
    let payload_len = u32_at(head, 8) as usize;
    let payload = bytes.get(head_len..head_len + payload_len).ok_or("payload is cut short")?;
    let payload_crc = crc32c::crc32c(payload);
    let kind = head[12];
    // The payload of filler is whatever lies there.
    if payload_crc != u32_at(head, 4) && kind < kind::ENTRIES {
        return Err("payload checksum".into());
    }
    let session = (kind == kind::DATA && extended && u64_at(head, 64) != 0)
        .then(|| (u64_at(head, 64), u64_at(head, 72)));
    let log_start = if kind == kind::LOG_START && extended { u64_at(head, 64) } else { 0 };
    let len = (head_len + payload_len).next_multiple_of(HEAD);
    let record = Record {
        kind,
        bytes: len as u64,
        partition: u64_at(head, 16),
        index: u64_at(head, 24),
        generation: u64_at(head, 32),
        prev_generation: u64_at(head, 40),
        stamp: u64_at(head, 48),
        session,
        log_start,
        count: u64_at(head, 48),
        hash: u64::from(crc32c::crc32c(head)) << 32 | u64::from(payload_crc),
        ident: if kind == kind::DATA { Ident::of(payload) } else { None },
    };
    Ok((record, len))
}

/// All records that lie back to back in `bytes`.
pub(crate) fn records(bytes: &[u8]) -> Result<Vec<Record>, String> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (record, len) = record(&bytes[at..])?;
        out.push(record);
        at += len;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of a document's worked example.
    fn example(document: &str) -> Vec<u8> {
        let block = document.split("```hex\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
        let mut bytes = Vec::new();
        for line in block.lines() {
            let mut words = line.split_whitespace();
            bytes.resize(usize::from_str_radix(words.next().unwrap(), 16).unwrap(), 0);
            bytes.extend(words.map(|word| u8::from_str_radix(word, 16).unwrap()));
        }
        bytes
    }

    #[test]
    fn the_documents_examples_say_what_the_documents_say() {
        let batch = example(include_str!("../../../docs/formats/batch.md"));
        let mut segment = example(include_str!("../../../docs/formats/segment.md"));
        let alone = items(&segment);
        let is_there = |s: &Segment| (s.base, s.epoch, s.prev_epoch_end) == (0x80_0000, 2, 0x3000);
        assert!(matches!(&alone[..], [Item::Segment(s)] if is_there(s)), "{alone:?}");
        // The batch lies in the segment before that one.
        segment[40..48].copy_from_slice(&0x40_0000u64.to_le_bytes());
        let crc = crc32c::crc32c(&segment[8..PAGE]);
        segment[4..8].copy_from_slice(&crc.to_le_bytes());
        let place = |at: usize| [&segment[..], &vec![0; at - segment.len()], &batch].concat();
        let elsewhere = items(&place(0x3000));
        assert!(matches!(elsewhere.last(), Some(Item::Broken(_))), "{elsewhere:?}");
        let items = items(&place(0x4000));
        assert!(matches!(items[0], Item::Segment(s) if s.base == 0x40_0000 && s.epoch == 2), "{items:?}");
        let Some(Item::Batch(batch)) = items.last() else { panic!("{items:?}") };
        assert_eq!((batch.epoch, batch.lsn, batch.prev, batch.end), (2, 0x40_4000, 0x40_2000, 0x40_6000));
        let kinds: Vec<_> =
            batch.records.iter().map(|r| (r.kind, r.partition, r.index, r.generation)).collect();
        assert_eq!(kinds, [(kind::PROMISE, 3, 1, 2), (kind::DATA, 3, 7, 2)]);
        assert_eq!(batch.records[1].session, Some((4, 9)));
        assert_eq!(batch.records[1].prev_generation, 1);
    }

    #[test]
    fn a_batch_with_any_changed_byte_of_its_records_is_not_whole() {
        let good = example(include_str!("../../../docs/formats/batch.md"));
        for at in (0..BATCH_HEAD + 192).filter(|at| !(4..8).contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let whole = items(&bad).iter().any(|item| matches!(item, Item::Batch(_)));
            // The footer, and zeros behind a payload, are not the checkers' business.
            assert!(!whole || at >= BATCH_HEAD + 192 - 59, "byte {at}");
        }
    }

    #[test]
    fn what_is_neither_is_passed_over() {
        assert!(items(&[0; 3 * PAGE]).is_empty());
        assert!(items(b"TLba").is_empty());
        let mut page = vec![0; PAGE];
        page[..4].copy_from_slice(b"TLba");
        assert!(matches!(items(&page)[..], [Item::Broken(_)]));
    }
}
