//! The batch that is being filled.
//!
//! Records are copied once, into aligned chunks that go to the disk and to the peers as they are. A record never
//! lies across two chunks: where one does not fit, the chunk ends at its page and a padding record fills it up.
//! The first chunk is as large as recent batches were, later ones double. What the footer says of them is kept
//! beside it (`spans`).

use crate::format::{
    BATCH_HEADER_BYTES, BatchHeader, FLAG_DONE, FLAG_OPEN, FLAG_SEAL, Footer, SPAN_BYTES, footer_bytes,
};
use crate::frozen::{Frozen, Identity, Link};
use crate::lookup::PartitionLog;
use crate::shape::{Class, Shape, measure};
use crate::spans::{BatchSpans, ENTRY_SPANS_MAX, EntrySpan, SPANS_MAX};
use tidelog_io::{AlignedBuf, BufferPool};
use tidelog_types::limits::{APPEND_BYTES_MAX, BATCH_BYTES_MAX, PAGE_BYTES};
use tidelog_types::record::HEADER_BYTES;
use tidelog_types::{Lsn, PartitionId, RecordHeader, RecordKind, Ticket, copy_and_check};

/// Most bytes of a batch that are kept for control records.
const CONTROL_BYTES_MAX: usize = 256 << 10;
const CHUNK_DOUBLING_MAX: usize = 1 << 20;
const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// A place for records, promised by [`Growing::plan`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// A new chunk of at least this many bytes comes first.
    chunk: Option<usize>,
}

#[derive(Debug)]
struct Chunk {
    start: usize,
    buffer: AlignedBuf,
}

impl Chunk {
    fn end(&self) -> usize {
        self.start + self.buffer.len()
    }
}

/// The batch that is being filled.
#[derive(Debug)]
pub(crate) struct Growing {
    pub(crate) lsn: Lsn,
    pub(crate) seq: u64,
    pool: BufferPool,
    /// Most bytes of this batch, footer included.
    limit: usize,
    /// Bytes at the end that entries may not use.
    reserve: usize,
    chunks: Vec<Chunk>,
    /// Where the next record goes; 0: nothing begun.
    at: usize,
    records: u32,
    records_crc: u32,
    payload_bytes: u64,
    spans: BatchSpans,
    tickets: Vec<(PartitionId, Ticket)>,
    /// Emptied lists of earlier batches.
    ticket_lists: Vec<Vec<(PartitionId, Ticket)>>,
    footer: Vec<u8>,
    predicted: usize,
    held: usize,
}

impl Growing {
    pub(crate) fn new(pool: BufferPool, lsn: Lsn, seq: u64) -> Growing {
        Growing {
            lsn,
            seq,
            pool,
            limit: 0,
            reserve: 0,
            chunks: Vec::new(),
            at: 0,
            records: 0,
            records_crc: 0,
            payload_bytes: 0,
            spans: BatchSpans::default(),
            tickets: Vec::new(),
            ticket_lists: Vec::new(),
            footer: Vec::new(),
            predicted: 2 * PAGE_BYTES,
            held: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Its bytes so far, without a footer.
    pub(crate) fn bytes(&self) -> usize {
        self.at
    }

    /// Moves the batch, while it is empty, to `lsn`, where it may take `limit` bytes.
    pub(crate) fn place_at(&mut self, lsn: Lsn, limit: usize) {
        assert!(self.is_empty(), "the positions of a batch's records are handed out while it grows");
        self.lsn = lsn;
        self.limit = limit;
        self.reserve = reserve(limit);
    }

    /// Whether a footer with `more` further spans still fits when the records end at `end`.
    fn fits(&self, end: usize, more: usize, class: Class) -> bool {
        let (spans_max, reserve) = match class {
            Class::Bulk | Class::Room => (ENTRY_SPANS_MAX, self.reserve),
            Class::Control => (SPANS_MAX, 0),
        };
        let footer = self.spans.footer_bytes(more).next_multiple_of(PAGE_BYTES);
        self.spans.own().len() + more <= spans_max
            && end.next_multiple_of(PAGE_BYTES) + footer + reserve <= self.limit
    }

    /// Finds a place for records of these shapes that make at most `spans` new spans; all of them or none.
    pub(crate) fn plan(
        &self,
        shapes: impl Iterator<Item = Shape> + Clone,
        spans: usize,
        class: Class,
    ) -> Option<Plan> {
        let at = self.at.max(BATCH_HEADER_BYTES);
        let end = measure(at, shapes.clone());
        match self.chunks.last() {
            None => self.fits(end, spans, class).then_some(Plan { chunk: Some(end) }),
            Some(chunk) if end <= chunk.end() => self.fits(end, spans, class).then_some(Plan { chunk: None }),
            Some(_) => {
                let start = at.next_multiple_of(PAGE_BYTES);
                let end = measure(start, shapes);
                self.fits(end, spans, class).then_some(Plan { chunk: Some(end - start) })
            }
        }
    }

    /// Payload bytes of one record that certainly fits.
    pub(crate) fn room(&self) -> usize {
        let used = self.at.next_multiple_of(PAGE_BYTES)
            + self.spans.footer_bytes(1).next_multiple_of(PAGE_BYTES)
            + self.reserve
            + 3 * PAGE_BYTES;
        if self.spans.own().len() < ENTRY_SPANS_MAX { self.limit.saturating_sub(used) } else { 0 }
    }

    /// Record bytes that an empty batch of `limit` bytes takes for certain: the batch before it may have had as
    /// many spans as there can be.
    pub(crate) const fn room_of_empty(limit: usize) -> usize {
        let most = limit / (HEADER_BYTES + SPAN_BYTES);
        let spans = if most < SPANS_MAX { most } else { SPANS_MAX };
        limit.saturating_sub(
            reserve(limit) + footer_bytes(1 + spans).next_multiple_of(PAGE_BYTES) + 4 * PAGE_BYTES,
        )
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether the batch, which is empty, has room for its footer.
    pub(crate) fn takes_seal(&self) -> bool {
        self.fits(PAGE_BYTES, 0, Class::Control)
    }

    /// Makes the plan's chunk. Every record of the plan is to be put next.
    pub(crate) fn begin(&mut self, plan: Plan) {
        let Some(need) = plan.chunk else { return };
        if self.at == 0 {
            self.add_chunk(0, need.max(self.predicted));
            self.at = BATCH_HEADER_BYTES;
        } else {
            let start = self.at.next_multiple_of(PAGE_BYTES);
            self.pad(start - self.at);
            self.close_chunk();
            self.add_chunk(start, need.max(start.min(CHUNK_DOUBLING_MAX)));
        }
    }

    fn add_chunk(&mut self, start: usize, bytes: usize) {
        // Whole classes of the pool: what it would keep for us anyway.
        let buffer = self.pool.take(bytes.next_power_of_two());
        self.held += buffer.len();
        self.chunks.push(Chunk { start, buffer });
    }

    /// Ends the last chunk at the page that `at` has reached.
    fn close_chunk(&mut self) {
        let at = self.at;
        if let Some(chunk) = self.chunks.last_mut() {
            assert!(at.is_multiple_of(PAGE_BYTES) && at <= chunk.end(), "chunks end at pages");
            chunk.buffer.truncate(at - chunk.start);
        }
    }

    /// The next `bytes` bytes of the last chunk.
    fn next(&mut self, bytes: usize) -> &mut [u8] {
        let at = self.at;
        self.at += bytes;
        let chunk = self.chunks.last_mut().expect("a plan made a chunk");
        &mut chunk.buffer[at - chunk.start..at - chunk.start + bytes]
    }

    fn count(&mut self, header: [u8; HEADER_BYTES]) {
        self.records += 1;
        self.records_crc = crc32c::crc32c_append(self.records_crc, &header);
    }

    fn pad(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let zeros = &ZEROS[..bytes - HEADER_BYTES];
        let header = RecordHeader {
            payload_len: zeros.len() as u32, // below a page
            payload_crc: crc32c::crc32c(zeros),
            ..RecordHeader::new(RecordKind::Pad, PartitionId(0))
        };
        let mut head = [0; HEADER_BYTES];
        header.encode(&mut head);
        let out = self.next(bytes);
        let (out_head, out_payload) = out.split_at_mut(HEADER_BYTES);
        out_head.copy_from_slice(&head);
        out_payload.fill(0);
        self.count(head);
    }

    /// Puts a record that is to be encoded; returns its offset. The payload's checksum is verified in the copy.
    pub(crate) fn put(&mut self, header: &RecordHeader, payload: &[u8]) -> usize {
        let shape = Shape::of(header);
        self.pad(shape.gap(self.at));
        let offset = self.at;
        let mut head = [0; 2 * HEADER_BYTES];
        header.encode(&mut head[..shape.head]);
        let out = self.next(shape.bytes());
        out[..shape.head].copy_from_slice(&head[..shape.head]);
        let (copy, zeros) = out[shape.head..].split_at_mut(shape.payload);
        zeros.fill(0);
        assert_eq!(
            copy_and_check(copy, payload),
            header.payload_crc,
            "a payload changed between its check and the log: nothing wrong may become durable as right"
        );
        let (first, _) = head.split_first_chunk().expect("it is two headers long");
        self.count(*first);
        self.payload_bytes += shape.payload as u64;
        offset
    }

    /// Puts a record as it came; returns its offset.
    pub(crate) fn put_encoded(&mut self, record: &[u8], shape: Shape) -> usize {
        self.pad(shape.gap(self.at));
        let offset = self.at;
        self.next(record.len()).copy_from_slice(record);
        let (first, _) = record.split_first_chunk().expect("a record has a header");
        self.count(*first);
        self.payload_bytes += shape.payload as u64;
        offset
    }

    /// Adds an entry to the footer.
    pub(crate) fn span_entry(&mut self, log: &mut PartitionLog, entry: &EntrySpan) {
        self.spans.entry(self.seq, log, entry);
    }

    /// Puts a control record, with its span.
    pub(crate) fn put_control(&mut self, header: &RecordHeader) {
        self.put_local(header, &[]);
    }

    /// Puts a record of this log's own, with its span; returns its offset.
    pub(crate) fn put_local(&mut self, header: &RecordHeader, payload: &[u8]) -> usize {
        let offset = self.put(header, payload);
        self.not_the_clients(payload.len());
        self.spans.control(header, offset);
        offset
    }

    /// What was put last is no payload on its first way to the disk.
    pub(crate) fn not_the_clients(&mut self, bytes: usize) {
        self.payload_bytes -= bytes as u64;
    }

    /// Remembers which ticket becomes durable with this batch.
    pub(crate) fn ticket(&mut self, partition: PartitionId, log: &mut PartitionLog, ticket: Ticket) {
        assert!(ticket > log.ticket, "tickets of a replica increase: durability is told by them");
        log.ticket = ticket;
        let (seq, at) = log.ticket_slot;
        if seq == self.seq
            && let Some(slot) = self.tickets.get_mut(at as usize)
        {
            slot.1 = ticket;
            return;
        }
        log.ticket_slot = (self.seq, self.tickets.len() as u32); // at most one a record
        self.tickets.push((partition, ticket));
    }

    /// Partitions with tickets in this batch.
    pub(crate) fn touched(&self) -> impl Iterator<Item = PartitionId> {
        self.tickets.iter().map(|t| t.0)
    }

    /// Finishes the batch and begins the next one behind it (without a place yet: see [`Self::place_at`]).
    pub(crate) fn freeze(&mut self, identity: &Identity, prev: Link, flags: u32) -> Frozen {
        if self.at == 0 {
            let need = PAGE_BYTES + self.spans.footer_bytes(0);
            self.begin(Plan { chunk: Some(need) });
        }
        let records_end = self.at;
        let footer_len = self.spans.footer_bytes(0);
        // Never in the first page: a page that the device does not give must not be all that says that there was a batch.
        let mut footer_offset = records_end.max(PAGE_BYTES);
        let chunk_end = self.chunks.last().map_or(0, Chunk::end);
        if footer_offset + footer_len > chunk_end {
            footer_offset = records_end.next_multiple_of(PAGE_BYTES);
        }
        self.next(footer_offset - records_end).fill(0);
        if footer_offset + footer_len > chunk_end {
            self.close_chunk();
            self.add_chunk(footer_offset, footer_len);
        }
        let total = (footer_offset + footer_len).next_multiple_of(PAGE_BYTES);
        assert!(total <= self.limit, "a batch never runs past its segment");

        let header = BatchHeader {
            crc: 0,
            flags,
            store: identity.store,
            segment_seq: identity.segment_seq,
            epoch: identity.epoch,
            lsn: self.lsn,
            batch_seq: self.seq,
            prev: prev.lsn,
            durable: identity.durable,
            checkpoint: identity.checkpoints.0,
            older_checkpoint: identity.checkpoints.1,
            total_len: total as u32,             // at most BATCH_BYTES_MAX
            footer_offset: footer_offset as u32, // below it
            record_count: self.records,
            records_crc: self.records_crc,
            prev_crc: prev.crc,
            wall: identity.wall,
        };
        assert!(
            flags & (FLAG_SEAL | FLAG_OPEN | FLAG_DONE) != 0 || self.records > 0,
            "a batch without records says why it is there"
        );
        let mut head = [0; BATCH_HEADER_BYTES];
        let crc = header.encode(&mut head);
        let footer = Footer {
            store: identity.store,
            segment_seq: identity.segment_seq,
            lsn: self.lsn,
            batch_seq: self.seq,
            echo_batch_seq: self.spans.echo_seq(),
            header_crc: crc,
            own: Vec::new(),
            echo: Vec::new(),
        };
        let mut encoded = std::mem::take(&mut self.footer);
        encoded.clear();
        footer.encode(self.spans.own(), self.spans.echo(), &mut encoded);
        self.next(footer_len).copy_from_slice(&encoded);
        self.footer = encoded;
        self.next(total - footer_offset - footer_len).fill(0);
        self.close_chunk();
        let first = self.chunks.first_mut().expect("begun above");
        first.buffer[..BATCH_HEADER_BYTES].copy_from_slice(&head);

        let frozen = Frozen {
            link: Link { lsn: self.lsn, crc, seq: self.seq },
            bytes: total as u64,
            held: self.held,
            payload_bytes: self.payload_bytes,
            records: self.records,
            pieces: self.chunks.drain(..).map(|c| (c.start, c.buffer.freeze())).collect(),
            tickets: std::mem::replace(&mut self.tickets, self.ticket_lists.pop().unwrap_or_default()),
        };
        self.predicted = total.max(self.predicted - self.predicted / 8);
        self.spans.next_batch(self.seq);
        self.lsn = frozen.end();
        self.seq += 1;
        self.limit = 0;
        self.at = 0;
        self.records = 0;
        self.records_crc = 0;
        self.payload_bytes = 0;
        self.held = 0;
        frozen
    }

    /// Takes an emptied ticket list back for reuse.
    pub(crate) fn recycle(&mut self, mut tickets: Vec<(PartitionId, Ticket)>) {
        tickets.clear();
        self.ticket_lists.push(tickets);
    }
}

/// Bytes of a batch of `limit` bytes that only control records may use.
const fn reserve(limit: usize) -> usize {
    let part = limit / 16;
    let part = if part < CONTROL_BYTES_MAX { part } else { CONTROL_BYTES_MAX };
    part.next_multiple_of(PAGE_BYTES)
}

const _: () = assert!(
    Growing::room_of_empty(BATCH_BYTES_MAX) >= APPEND_BYTES_MAX,
    "any append message fits an empty batch, whatever the batch before it held"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tidelog_types::limits::PAGED_PAYLOAD_BYTES;
    use tidelog_types::record::Extension;
    use tidelog_types::{Generation, Incarnation, Index, NodeId, ReplicatedMs, WallMs};

    const STORE: Incarnation = Incarnation(0x1122_3344_5566_7788);

    fn growing(lsn: u64, seq: u64, limit: usize) -> Growing {
        let mut growing = Growing::new(BufferPool::new(1 << 20), Lsn(lsn), seq);
        growing.place_at(Lsn(lsn), limit);
        growing
    }

    fn identity(durable: u64) -> Identity {
        let (store, wall) = (STORE, WallMs(1_790_000_000_123));
        Identity {
            store,
            segment_seq: 2,
            epoch: 2,
            durable: Lsn(durable),
            checkpoints: Default::default(),
            wall,
        }
    }

    fn entry(index: u64, generation: u64, prev: u64, payload: &[u8], extended: bool) -> RecordHeader {
        RecordHeader {
            index: Index(index),
            generation: Generation(generation),
            prev_generation: Generation(prev),
            timestamp: ReplicatedMs(1_790_000_000_000),
            cluster: 0xc1a5_7e12,
            payload_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            extension: extended.then_some(Extension { a: 4, b: 9, ..Extension::default() }),
            ..RecordHeader::new(RecordKind::Data, PartitionId(3))
        }
    }

    fn put(growing: &mut Growing, log: &mut PartitionLog, header: &RecordHeader, payload: &[u8]) -> bool {
        let Some(plan) = growing.plan(std::iter::once(Shape::of(header)), 1, Class::Bulk) else {
            return false;
        };
        growing.begin(plan);
        let offset = growing.put(header, payload);
        let span = EntrySpan {
            partition: header.partition,
            generation: header.generation,
            index: header.index,
            offset,
        };
        growing.span_entry(log, &span);
        true
    }

    fn bytes(frozen: &Frozen) -> Vec<u8> {
        let mut all = Vec::new();
        for (start, piece) in &frozen.pieces {
            assert_eq!(*start, all.len());
            assert!(start.is_multiple_of(PAGE_BYTES));
            all.extend_from_slice(piece);
        }
        assert_eq!(all.len() as u64, frozen.bytes);
        all
    }

    /// What `docs/formats/batch.md` shows is what is written.
    #[test]
    fn the_documents_example() {
        let document = include_str!("../../../docs/formats/batch.md");
        let mut expected = Vec::new();
        for line in document.split("```hex\n").nth(1).unwrap().split("```").next().unwrap().lines() {
            let mut words = line.split_whitespace();
            expected.resize(usize::from_str_radix(words.next().unwrap(), 16).unwrap(), 0);
            expected.extend(words.map(|w| u8::from_str_radix(w, 16).unwrap()));
        }
        let mut growing = growing(0x40_2000, 5, 1 << 20);
        let mut log = PartitionLog::default();
        assert!(put(&mut growing, &mut log, &entry(6, 1, 1, b"", false), b""));
        let before = growing.freeze(&identity(0x40_2000), Link::default(), FLAG_OPEN | FLAG_DONE);
        growing.place_at(before.end(), 1 << 20);
        let promise = RecordHeader {
            cluster: 0xc1a5_7e12,
            ..RecordHeader::promise(PartitionId(3), Generation(2), Some(NodeId(1)))
        };
        let plan = growing.plan(std::iter::once(Shape::of(&promise)), 1, Class::Control).unwrap();
        growing.begin(plan);
        growing.put_control(&promise);
        assert!(put(&mut growing, &mut log, &entry(7, 2, 1, b"hello", true), b"hello"));
        let link = Link { crc: 0xb0a7_0001, ..before.link };
        let got = bytes(&growing.freeze(&identity(0x40_3000), link, 0));
        let dump: String = got
            .chunks(16)
            .enumerate()
            .filter(|(_, chunk)| chunk.iter().any(|b| *b != 0))
            .map(|(line, chunk)| {
                let hex: Vec<_> = chunk.iter().map(|b| format!("{b:02x}")).collect();
                format!("{:04x}  {}\n", line * 16, hex.join(" "))
            })
            .collect();
        assert!(got == expected, "the encoder now gives:\n{dump}{:04x}", got.len());
    }

    #[test]
    fn overhead_of_small_records_is_under_a_tenth() {
        let mut growing = growing(8192, 1, 4 << 20);
        let mut log = PartitionLog::default();
        let payload = [7; 1024];
        for _ in 0..2 {
            for i in 0..256 {
                assert!(put(&mut growing, &mut log, &entry(i + 1, 1, 1, &payload, false), &payload));
                if i == 0 {
                    log.footer_span = (growing.seq, 0)
                }
            }
            let frozen = growing.freeze(&identity(8192), Link::default(), 0);
            assert!(frozen.bytes as f64 <= 1.1 * 256.0 * 1024.0, "{} bytes", frozen.bytes);
            growing.place_at(frozen.end(), 4 << 20);
        }
    }

    proptest! {
        /// Whatever is put comes out in order, whole, large payloads on pages, and never more than the limit.
        #[test]
        fn batches_are_what_was_put(
            lens in proptest::collection::vec((0usize..3000, 0u8..20, any::<bool>()), 1..60),
            limit in 16usize..256,
        ) {
            let limit = limit * PAGE_BYTES;
            let mut growing = growing(8192, 1, limit);
            let mut log = PartitionLog::default();
            let mut put_in = Vec::new();
            for (i, (len, large, extended)) in lens.iter().enumerate() {
                let len = if *large == 0 { len + PAGED_PAYLOAD_BYTES } else { *len };
                let payload = vec![i as u8; len];
                let header = entry(i as u64 + 1, 1, 1, &payload, *extended);
                let room = growing.room();
                if put(&mut growing, &mut log, &header, &payload) {
                    put_in.push((header, payload));
                } else {
                    prop_assert!(room < len, "room {} for {}", room, len);
                    break;
                }
            }
            let frozen = growing.freeze(&identity(8192), Link::default(), FLAG_OPEN);
            let all = bytes(&frozen);
            prop_assert!(all.len() <= limit);
            let header = BatchHeader::decode(&all).unwrap();
            prop_assert_eq!(crate::scan::check_records(&all, &header), Ok(()));
            let mut out = Vec::new();
            for (offset, record, payload, _) in crate::scan::records_of(&all, &header) {
                if record.kind == RecordKind::Pad { continue }
                if payload.len() >= PAGED_PAYLOAD_BYTES {
                    prop_assert!((offset + record.head_bytes()).is_multiple_of(PAGE_BYTES));
                }
                out.push((record, payload.to_vec()));
            }
            prop_assert_eq!(&out, &put_in);
            let footer = Footer::decode(&all[header.footer_offset as usize..]).unwrap();
            let held: u32 = footer.own.iter().map(|s| s.count).sum();
            prop_assert_eq!((footer.own.len(), held as usize), (usize::from(!put_in.is_empty()), put_in.len()));
        }
    }
}
