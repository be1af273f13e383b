//! A reader that begins from nothing: what the files of a disk hold at the end of a run, against what the checkers
//! followed as it was written. Written from `docs/formats`, and simpler than recovery: it takes every whole batch that
//! lies where it says, wherever damage is around it.

use super::disk::Disk;
use super::violation::{Verdict, ensure};
use super::{platter, segment};
use crate::platter::{Batch, Item, kind};
use std::collections::{BTreeMap, BTreeSet};
use tidelog_sim::World;

/// Compares a disk's files with its model: every entry that is still wanted has a whole copy, and no promise is newer
/// than the last one followed.
pub(crate) fn compare(
    world: &World,
    id: u64,
    disk: &Disk,
    partitions: u64,
    lost: &[(u64, u64, u64)],
) -> Verdict {
    let mut entries: BTreeMap<(u64, u64), (u64, u64)> = BTreeMap::new();
    let mut promises = BTreeMap::new();
    for batch in batches(world, id) {
        let mut copies = 0;
        for record in batch.records {
            let moved = copies > 0 && record.kind < kind::ENTRIES;
            copies -= u64::from(moved);
            let key = (record.partition, record.index);
            match record.kind {
                kind::MOVED => copies = record.index,
                kind::PROMISE => {
                    promises.insert(record.partition, (record.generation, record.index));
                }
                kind::CUT => {
                    let mut cut = entries.split_off(&(record.partition, record.index + 1));
                    let mut others = cut.split_off(&(record.partition + 1, 0));
                    entries.append(&mut others);
                }
                // A copy of what this reader did not find before stands for it.
                k if k < kind::ENTRIES => drop(entries.insert(key, (record.generation, record.hash))),
                _ => {}
            }
        }
    }
    for partition in 0..partitions {
        let log = disk.log(partition);
        for (index, followed) in log.live().filter(|(index, _)| !lost.contains(&(id, partition, *index))) {
            let found = entries.get(&(partition, index)).copied();
            ensure(8, found == Some((followed.generation, followed.hash)), || {
                format!(
                    "node {id} partition {partition}: entry {index} of generation {} became durable; its files hold {found:?}, the log is {} ..= {}",
                    followed.generation,
                    log.low_water,
                    log.last()
                )
            })?;
        }
        let newest = promises.get(&partition).copied().unwrap_or(log.promise);
        ensure(2, newest == log.promise, || {
            format!(
                "node {id} partition {partition}: the last promise of its files is {newest:?}, {:?} became durable",
                log.promise
            )
        })?;
    }
    Ok(())
}

/// The batches that make up the log, in order.
fn batches(world: &World, id: u64) -> Vec<Batch> {
    let mut all: Vec<Batch> = Vec::new();
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    for (path, _) in world.files(id) {
        let header = platter::segment_base(&path).and_then(|_| segment(world, id, &path));
        let (Some(header), Some(bytes)) = (header, world.durable_contents(id, &path)) else { continue };
        ends.insert(header.epoch, header.prev_epoch_end);
        for (offset, item) in platter::items_at(&bytes) {
            if let Item::Batch(batch) = item
                && batch.epoch == header.epoch
                && batch.lsn == header.base + offset as u64
            {
                all.push(batch);
            }
        }
    }
    // An epoch's first segment, with the end of its opening, may have been given back.
    let used: BTreeSet<u64> = all.iter().filter(|b| b.in_use).map(|b| b.epoch).collect();
    // Of an older epoch counts what every later one kept.
    all.retain(|batch| {
        let mut later = ends.range(batch.epoch + 1..).filter(|(epoch, _)| used.contains(epoch));
        used.contains(&batch.epoch) && later.all(|(_, end)| batch.lsn < *end)
    });
    all.sort_by_key(|batch| (batch.epoch, batch.lsn));
    all
}
