//! Which records a dump shows.

use tidelog_types::{PartitionId, RecordHeader, RecordKind};

/// The filters of `wal dump`. All that are given must hold; a filter that may be given again holds if one of its values does.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Selection {
    /// Only this partition's records; may be given again
    #[arg(long = "partition", value_name = "P")]
    partitions: Vec<u64>,
    /// Only records that concern this index or a later one
    #[arg(long, value_name = "I")]
    from: Option<u64>,
    /// Only records that concern this index or an earlier one
    #[arg(long, value_name = "I")]
    to: Option<u64>,
    /// Only records of this kind; may be given again
    #[arg(long = "kind", value_name = "K")]
    kinds: Vec<Kind>,
}

/// A record's kind, as the command line and the output name it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Kind {
    /// Every kind that has an index of the log: noop, data, session_open
    Entry,
    Noop,
    Data,
    SessionOpen,
    Promise,
    Cut,
    HighWater,
    LowWater,
    SnapshotMark,
    CheckpointChunk,
    CheckpointEnd,
    Moved,
    Summary,
}

impl Kind {
    fn covers(self, kind: RecordKind) -> bool {
        match self {
            Kind::Entry => kind.is_entry(),
            Kind::Noop => kind == RecordKind::Noop,
            Kind::Data => kind == RecordKind::Data,
            Kind::SessionOpen => kind == RecordKind::SessionOpen,
            Kind::Promise => kind == RecordKind::Promise,
            Kind::Cut => kind == RecordKind::Cut,
            Kind::HighWater => kind == RecordKind::HighWater,
            Kind::LowWater => kind == RecordKind::LowWater,
            Kind::SnapshotMark => kind == RecordKind::SnapshotMark,
            Kind::CheckpointChunk => kind == RecordKind::CheckpointChunk,
            Kind::CheckpointEnd => kind == RecordKind::CheckpointEnd,
            Kind::Moved => kind == RecordKind::Moved,
            Kind::Summary => kind == RecordKind::Summary,
        }
    }
}

impl Selection {
    /// Whether everything is shown.
    pub(super) fn is_all(&self) -> bool {
        self.partitions.is_empty() && self.kinds.is_empty() && self.from.is_none() && self.to.is_none()
    }

    /// Whether a record is shown. Filler never is.
    pub(super) fn has(&self, record: &RecordHeader) -> bool {
        record.kind != RecordKind::Pad
            && (self.partitions.is_empty()
                || self.partitions.iter().any(|p| PartitionId(*p) == record.partition))
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind.covers(record.kind)))
            && self.concerns(record)
    }

    /// Whether a record says something of the range of indexes: an entry or a mark in it, a cut that ends below its
    /// end. A promise and what is the shard's own concern no index.
    fn concerns(&self, record: &RecordHeader) -> bool {
        let (from, to) = (self.from.unwrap_or(0), self.to.unwrap_or(u64::MAX));
        if self.from.is_none() && self.to.is_none() {
            return true;
        }
        let index = record.index.get();
        match record.kind {
            RecordKind::Cut => index < to,
            RecordKind::HighWater | RecordKind::LowWater | RecordKind::SnapshotMark => {
                (from..=to).contains(&index)
            }
            kind if kind.is_entry() => (from..=to).contains(&index),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::Index;

    fn record(kind: RecordKind, partition: u64, index: u64) -> RecordHeader {
        RecordHeader { index: Index(index), ..RecordHeader::new(kind, PartitionId(partition)) }
    }

    #[test]
    fn all_filters_must_hold_and_one_value_of_each_is_enough() {
        let all = Selection::default();
        assert!(all.is_all() && all.has(&record(RecordKind::Promise, 1, 9)));
        assert!(!all.has(&record(RecordKind::Pad, 1, 0)));
        let some = Selection {
            partitions: vec![1, 2],
            kinds: vec![Kind::Entry, Kind::Cut],
            from: Some(5),
            to: Some(7),
        };
        for (kind, partition, index, shown) in [
            (RecordKind::Data, 1, 5, true),
            (RecordKind::Noop, 2, 7, true),
            (RecordKind::Data, 3, 5, false),
            (RecordKind::Data, 1, 4, false),
            (RecordKind::Data, 1, 8, false),
            (RecordKind::Promise, 1, 5, false),
        ] {
            assert_eq!(some.has(&record(kind, partition, index)), shown, "{kind:?} {partition} {index}");
        }
    }

    /// A cut removes what lies above the index that it keeps: it concerns a range that reaches above that.
    #[test]
    fn a_cut_concerns_what_it_may_have_removed() {
        let some = Selection { from: Some(5), to: Some(7), ..Selection::default() };
        for (keep, shown) in [(1, true), (4, true), (6, true), (7, false), (9, false)] {
            assert_eq!(some.has(&record(RecordKind::Cut, 1, keep)), shown, "keeps {keep}");
        }
        assert!(!some.has(&record(RecordKind::Promise, 1, 6)), "its index is a node");
    }
}
