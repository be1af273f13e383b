//! Writing live entries again, at the log's end: a marker that says how many follow, and the records as they are.
//!
//! A move only relocates. It changes neither which entries a partition has nor its last one; when it is replayed, the
//! newest copy is where an entry lies. Nothing is written in place: tearing would hurt what lies beside it.

use crate::error::Busy;
use crate::growing::{Class, EntrySpan, Shape};
use crate::lookup::PartitionLog;
use crate::wal::Wal;
use tidelog_types::{EntryMeta, Index, PartitionId, RecordHeader, RecordKind, Ticket};

impl Wal {
    /// Puts good bytes of entries that the log has, and whose own are damaged, into the growing batch; all of them or
    /// none. `records` is back to back, each verified by [`RecordHeader::decode_record`]; `metas` are theirs. When
    /// the ticket is durable they are read from there.
    ///
    /// # Errors
    /// [`Busy`]: nothing happened.
    ///
    /// # Panics
    /// If an entry is not one of the log's with this generation, the records are not those of `metas`, or the ticket does
    /// not rise.
    pub fn append_moved(
        &mut self,
        ticket: Ticket,
        partition: PartitionId,
        records: &[u8],
        metas: &[EntryMeta],
    ) -> Result<(), Busy> {
        assert!(!metas.is_empty(), "a move has entries");
        self.admit(Class::Bulk)?;
        let marker = RecordHeader {
            index: Index(metas.len() as u64),
            cluster: self.options.cluster_tag,
            ..RecordHeader::new(RecordKind::Moved, partition)
        };
        let shapes = std::iter::once(Shape::of(&marker)).chain(crate::append::shapes(records));
        let plan = self.place(shapes, metas.len() + 1, Class::Bulk)?;
        let log = self.partitions.entry(partition).or_default();
        self.growing.begin(plan);
        self.growing.put_control(&marker);
        let lsn = self.growing.lsn;
        let mut rest = records;
        // Copies are no part of a run of entries, and entries none of a run of copies.
        log.footer_span = (0, 0);
        for meta in metas {
            let record = RecordHeader::decode(rest).expect("the records were verified");
            let whole = rest.get(..record.record_bytes()).expect("the records were verified");
            rest = rest.get(record.record_bytes()..).unwrap_or_default();
            assert!(
                record.partition == partition && record.position() == meta.position,
                "the metas are the records'"
            );
            assert_eq!(
                log.generation_at(record.index),
                Some(record.generation),
                "a move gives bytes to an entry that the log has"
            );
            let offset = self.growing.put_encoded(whole, Shape::of(&record));
            log.relocate(record.position(), lsn.plus(offset as u64), whole.len() as u32, lsn);
            span(&mut self.growing, log, &record, offset);
            self.stats.copied_bytes += u64::from(record.payload_len);
        }
        assert!(rest.is_empty(), "there are as many metas as records");
        log.footer_span = (0, 0);
        self.growing.ticket(partition, log, ticket);
        Ok(())
    }
}

/// Adds an entry to the footer.
pub(crate) fn span(
    growing: &mut crate::growing::Growing,
    log: &mut PartitionLog,
    record: &RecordHeader,
    offset: usize,
) {
    let (partition, generation, index) = (record.partition, record.generation, record.index);
    growing.span_entry(log, &EntrySpan { partition, generation, index, offset });
}
