//! Where a batch lies on a disk, and what is in it: what damage is aimed by.

use crate::platter::{Batch, kind};

/// Where a batch lies, and what it must be judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub(crate) epoch: u64,
    pub(crate) lsn: u64,
    pub(crate) end: u64,
    /// Offset of its footer, and of what nobody looks at in front of it.
    pub(crate) footer: u64,
    pub(crate) records_end: u64,
    /// The position that the checkpoint is of of which it holds a part.
    pub(crate) checkpoint: Option<u64>,
    /// It holds the checkpoint's end.
    pub(crate) checkpoint_end: bool,
    /// It holds entries that lay nowhere before.
    pub(crate) entries: bool,
    /// It holds moved entries.
    pub(crate) moved: bool,
    /// It holds entries that lay nowhere before, and nothing else that a log could miss.
    pub(crate) plain: bool,
    /// The segment of whose summary it holds a piece, by its base.
    pub(crate) summary: Option<u64>,
}

impl Place {
    pub(crate) fn of(batch: &Batch) -> Place {
        let of = |kinds: &[u8]| batch.records.iter().find(|r| kinds.contains(&r.kind));
        let entries = batch.records.iter().filter(|r| r.kind < kind::ENTRIES).count() as u64;
        let copies = of(&[kind::MOVED]).map_or(0, |r| r.index);
        let plain = |kind: u8| kind < kind::ENTRIES || matches!(kind, kind::HIGH_WATER | kind::PADDING);
        Place {
            epoch: batch.epoch,
            lsn: batch.lsn,
            end: batch.end,
            footer: batch.footer,
            records_end: batch.records_end,
            checkpoint: of(&[kind::CHECKPOINT_CHUNK, kind::CHECKPOINT_END]).map(|r| r.generation),
            checkpoint_end: of(&[kind::CHECKPOINT_END]).is_some(),
            entries: entries > copies,
            moved: copies > 0,
            plain: !batch.done && copies == 0 && entries > 0 && batch.records.iter().all(|r| plain(r.kind)),
            summary: of(&[kind::SUMMARY]).map(|r| r.index),
        }
    }
}
