//! A replica's durable steps on their way into the shard's log.
//!
//! Steps enter the log in the order of their tickets. What the growing batch has no room for waits here with all that
//! comes behind it; while anything waits, no bulk data is taken in.

use super::{Context, Partition};
use bytes::Bytes;
use tidelog_consensus::LogOpKind;
use tidelog_types::limits::{PAGE_BYTES, PAGED_PAYLOAD_BYTES, RECORD_ALIGN};
use tidelog_types::{EntryMeta, Generation, Index, NodeId, PartitionId, Position, RecordHeader, Ticket};
use tidelog_wal::Wal;

/// Where the bytes of a step's `Append` lie.
pub(super) enum Source<'a> {
    None,
    Proposal { meta: EntryMeta, payload: &'a Bytes, payload_crc: u32 },
    Message { records: &'a Bytes, metas: &'a [EntryMeta] },
}

/// One durable step with what it takes to write it, should it have to wait.
#[derive(Debug)]
pub(super) enum Write {
    Promise {
        generation: Generation,
        vote: Option<NodeId>,
    },
    Cut {
        keep: Position,
    },
    SnapshotMark {
        covered: Position,
    },
    LowWater {
        first: Index,
    },
    Entry {
        header: RecordHeader,
        payload: Bytes,
    },
    Records {
        records: Bytes,
        metas: Vec<EntryMeta>,
    },
    /// Entries of the log that were damaged, at a new place.
    Moved {
        records: Bytes,
        metas: Vec<EntryMeta>,
    },
}

impl Partition {
    pub(super) fn write(
        &mut self,
        cx: &mut Context<'_>,
        ticket: Ticket,
        kind: &LogOpKind,
        source: &Source<'_>,
    ) {
        let write = match (kind, source) {
            (LogOpKind::Promise { generation, vote }, _) => {
                Write::Promise { generation: *generation, vote: *vote }
            }
            (LogOpKind::Cut { keep }, _) => {
                self.fetches.clear();
                Write::Cut { keep: *keep }
            }
            (LogOpKind::SnapshotMark { covered }, _) => Write::SnapshotMark { covered: *covered },
            (LogOpKind::LowWater { first }, _) => Write::LowWater { first: *first },
            (LogOpKind::Make(meta), _) => Write::Entry {
                header: RecordHeader::of_meta(meta, self.id, cx.cluster),
                payload: Bytes::new(),
            },
            (LogOpKind::Append { first, last }, Source::Proposal { meta, payload, payload_crc }) => {
                assert!(*first == meta.position.index && first == last, "a proposal is one entry");
                let header = RecordHeader {
                    payload_len: u32::try_from(payload.len()).expect("checked against the limit"),
                    payload_crc: *payload_crc,
                    ..RecordHeader::of_meta(meta, self.id, cx.cluster)
                };
                Write::Entry { header, payload: Bytes::clone(payload) }
            }
            (LogOpKind::Append { first, last }, Source::Message { records, metas }) => {
                return self.write_records(cx, ticket, *first, *last, records, metas);
            }
            (LogOpKind::Repair { first, last }, Source::Message { records, metas }) => {
                let (records, metas) = part_of(records, metas, *first, *last);
                Write::Moved { records, metas: metas.to_vec() }
            }
            (LogOpKind::Append { .. } | LogOpKind::Repair { .. }, _) => panic!("entries without their bytes"),
        };
        self.write_or_wait(cx, ticket, write);
    }

    fn write_records(
        &mut self,
        cx: &mut Context<'_>,
        ticket: Ticket,
        first: Index,
        last: Index,
        records: &Bytes,
        metas: &[EntryMeta],
    ) {
        let (records, metas) = part_of(records, metas, first, last);
        if !self.unwritten.is_empty() || cx.wal.append_records(ticket, self.id, &records, metas).is_err() {
            self.wait_for_room(cx, ticket, Write::Records { records, metas: metas.to_vec() });
        }
    }

    fn wait_for_room(&mut self, cx: &mut Context<'_>, ticket: Ticket, write: Write) {
        if self.unwritten.is_empty() {
            cx.shared.unwritten.push(self.id);
        }
        self.unwritten.push_back((ticket, write));
    }

    fn write_or_wait(&mut self, cx: &mut Context<'_>, ticket: Ticket, write: Write) {
        if !self.unwritten.is_empty() || !write.try_into_log(cx.wal, ticket, self.id) {
            self.wait_for_room(cx, ticket, write);
        }
    }

    /// Writes what had to wait for room. True if something still waits.
    pub(crate) fn write_waiting(&mut self, cx: &mut Context<'_>) -> bool {
        while let Some((ticket, write)) = self.unwritten.front() {
            if !write.try_into_log(cx.wal, *ticket, self.id) {
                return true;
            }
            self.unwritten.pop_front();
        }
        false
    }
}

impl Write {
    /// False if the log has no room for it now.
    fn try_into_log(&self, wal: &mut Wal, ticket: Ticket, partition: PartitionId) -> bool {
        let written = match self {
            Write::Promise { generation, vote } => wal.append_promise(ticket, partition, *generation, *vote),
            Write::Cut { keep } => wal.append_cut(ticket, partition, *keep),
            Write::SnapshotMark { covered } => wal.append_snapshot_mark(ticket, partition, *covered),
            Write::LowWater { first } => wal.append_low_water(ticket, partition, *first),
            Write::Entry { header, payload } => wal.append_entry(ticket, *header, payload),
            Write::Records { records, metas } => wal.append_records(ticket, partition, records, metas),
            Write::Moved { records, metas } => wal.append_repair(ticket, partition, records, metas),
        };
        written.is_ok()
    }
}

/// The bytes and headers of the entries `first ..= last` among those that a message carried.
fn part_of<'m>(
    records: &Bytes,
    metas: &'m [EntryMeta],
    first: Index,
    last: Index,
) -> (Bytes, &'m [EntryMeta]) {
    let from = metas.iter().position(|m| m.position.index == first);
    let to = metas.iter().position(|m| m.position.index == last);
    let (Some(from), Some(to)) = (from, to) else {
        panic!("the replica writes entries {first}..={last} that its message did not carry");
    };
    let start: usize = metas[..from].iter().map(|m| m.record_bytes as usize).sum();
    let bytes: usize = metas[from..=to].iter().map(|m| m.record_bytes as usize).sum();
    (records.slice(start..start + bytes), &metas[from..=to])
}

/// How many of the entries, and how many record bytes, surely fit a batch with room for a payload of `room` bytes.
pub(super) fn fitting(metas: &[EntryMeta], room: usize) -> (usize, usize) {
    let (mut bytes, mut cost) = (0, 0);
    for (count, meta) in metas.iter().enumerate() {
        let record = meta.record_bytes as usize;
        // A large payload is moved to a page of its own, a change of generation takes a span in the footer.
        cost += record + if record >= PAGED_PAYLOAD_BYTES { PAGE_BYTES + RECORD_ALIGN } else { 0 };
        cost += if meta.prev_generation == meta.position.generation { 0 } else { 2 * RECORD_ALIGN };
        if cost > room {
            return (count, bytes);
        }
        bytes += record;
    }
    (metas.len(), bytes)
}
