//! What each (partition, generation, index) is, from the first disk that it was durable on (invariant 3), and on
//! which disks it was ever durable (for invariant 6).

use super::violation::{Verdict, ensure};
use crate::payload::Ident;
use crate::platter::Record;
use tidelog_types::FixedMap;

/// An entry's facts.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) kind: u8,
    pub(crate) hash: u64,
    pub(crate) prev_generation: u64,
    pub(crate) stamp: u64,
    pub(crate) session: Option<(u64, u64)>,
    /// 0: it is no log start.
    pub(crate) log_start: u64,
    pub(crate) ident: Option<Ident>,
    /// Bit n: it was durable on node n.
    durable_on: u64,
}

impl Content {
    /// On how many disks it was durable.
    pub(crate) fn copies(&self) -> usize {
        self.durable_on.count_ones() as usize
    }
}

/// All entries that were ever durable anywhere.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    entries: FixedMap<(u64, u64, u64), Content>,
}

impl Contents {
    /// `record` is durable on `node`.
    pub(crate) fn durable(&mut self, node: u64, record: &Record) -> Verdict {
        let key = (record.partition, record.generation, record.index);
        let known = self.entries.entry(key).or_insert_with(|| Content {
            kind: record.kind,
            hash: record.hash,
            prev_generation: record.prev_generation,
            stamp: record.stamp,
            session: record.session,
            log_start: record.log_start,
            ident: record.ident,
            durable_on: 0,
        });
        known.durable_on |= 1 << node;
        ensure(3, known.hash == record.hash, || {
            format!(
                "node {node} holds other bytes at partition {} index {} generation {} than another disk",
                record.partition, record.index, record.generation
            )
        })
    }

    /// The entry, if it was ever durable.
    pub(crate) fn get(&self, partition: u64, generation: u64, index: u64) -> Option<&Content> {
        self.entries.get(&(partition, generation, index))
    }
}
