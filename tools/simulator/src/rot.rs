//! Damage to disks behind everyone's back, under an atlas: of every entry one good copy is left on some node, and of
//! every batch one copy of its spans on its own disk. So both can be demanded: that nothing damaged is ever taken for
//! right or for absent, and that everything heals.
//!
//! A checkpoint is struck only if no other one is bad that an opening may come to, until two newer ones are named, and only if no
//! entry is bad in the log that an opening without it would read; and the other way round. Two such faults in one node would
//! take both copies of what its replicas knew of entries that are let go everywhere. A summary may be struck at any time: the segment
//! says what it said.
//!
//! Only what is proven durable is struck: a damaged tail cannot be told from a torn one on one disk. But for the tail that few have
//! ([`crate::tail`]): there the last batch goes bad, so that its footer still speaks for it, while its node is down. Each entry in it
//! has a good copy elsewhere, as ever, or is on no other disk: then all others can deny it.

use crate::checkers::{Checkers, Disk, Place, Stored};
use crate::platter;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_sim::{Random, World};

const PAGE: u64 = 4096;
const BATCH_HEAD: u64 = 128;
/// Batches at the end of a log that are left alone: they prove what lies before them.
const TAIL: usize = 4;
/// Batches looked at for one strike.
const TRIES: usize = 24;
/// Newest files of segments, that which is ready among them, that may be without a summary.
const NEWEST: usize = 4;

/// A way in which bytes go bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Rot {
    /// One byte of a batch's header.
    Header,
    /// One byte of its records.
    Record,
    /// One byte of its footer.
    Footer,
    /// A page of it cannot be read.
    Unreadable,
    /// Its write never reached the disk, and nobody was told.
    LostWrite,
    /// Another batch's write landed on it.
    Misdirected,
    /// One copy of a segment's header.
    SegmentHeader,
}

const ROTS: [(Rot, &str); 7] = [
    (Rot::Header, "damage: batch header"),
    (Rot::Record, "damage: records"),
    (Rot::Footer, "damage: footer"),
    (Rot::Unreadable, "damage: unreadable page"),
    (Rot::LostWrite, "damage: lost write"),
    (Rot::Misdirected, "damage: misdirected write"),
    (Rot::SegmentHeader, "damage: segment header copy"),
];

/// What a batch holds beside the traffic's records. It is rare, and each kind has its own way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holds {
    Moved,
    Checkpoint,
    Summary,
}

const HOLDS: [(Holds, &str); 3] = [
    (Holds::Moved, "damage to moved entries"),
    (Holds::Checkpoint, "damage to a checkpoint"),
    (Holds::Summary, "damage to a summary"),
];

impl Holds {
    const fn is_in(self, place: &Place) -> bool {
        match self {
            Holds::Moved => place.moved,
            Holds::Checkpoint => place.checkpoint.is_some(),
            Holds::Summary => place.summary.is_some(),
        }
    }
}

/// The last batch of a log.
pub(crate) const TAIL_STRUCK: &str = "damage: unproven tail";

/// Names of all ways, and of what is struck, for reports.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    ROTS.iter().map(|(_, name)| *name).chain(HOLDS.iter().map(|(_, name)| *name)).chain([TAIL_STRUCK])
}

/// What is damaged where.
#[derive(Debug, Default)]
pub(crate) struct Atlas {
    /// Batches that are not whole any more, by node and LSN.
    bad: BTreeMap<u64, BTreeSet<u64>>,
    /// Batches with a bad footer only.
    footers: BTreeMap<u64, BTreeSet<u64>>,
    /// Segments whose header has lost a copy, and is not known to have it again, by node and base.
    headers: BTreeSet<(u64, u64)>,
    /// Batches with a piece of a summary that were struck: by node and LSN, the segment's base.
    summaries: BTreeMap<(u64, u64), u64>,
    /// Batches with a page that cannot be read, by node and LSN.
    unreadable: BTreeSet<(u64, u64)>,
    /// Last batches that were struck in logs that were not opened since: by node, the batch, and how often the log had been opened.
    tails: BTreeMap<u64, (u64, u64)>,
    /// Something was, at some time.
    struck: bool,
}

impl Atlas {
    /// Strikes a disk once, if the atlas finds a place where it may. Says in which way, and what.
    pub(crate) fn strike(
        &mut self,
        world: &World,
        checkers: &Checkers,
        random: &mut Random,
        node: u64,
    ) -> Vec<&'static str> {
        self.forget(checkers);
        self.headers.retain(|(node, base)| header_is_bad(world, *node, *base));
        let Some(disk) = checkers.disk(node) else { return Vec::new() };
        let Some((rot, name)) = random.pick(&ROTS).copied() else { return Vec::new() };
        let places = disk.places();
        // Every other time one of what is rare.
        let rare = if random.coin() { random.pick(&HOLDS).copied() } else { None };
        let mut from: Vec<usize> =
            (0..places.len()).filter(|at| rare.is_some_and(|(holds, _)| holds.is_in(&places[*at]))).collect();
        if from.is_empty() {
            from = (0..places.len()).collect();
        }
        for _ in 0..TRIES {
            let Some(at) = random.pick(&from).copied() else { break };
            if self.may_strike(checkers, disk, node, at)
                && self.hit(world, disk, node, rot, at, random).is_some()
            {
                self.struck = true;
                let batch = !matches!(rot, Rot::SegmentHeader | Rot::Footer);
                let held = HOLDS.iter().filter(|(holds, _)| batch && holds.is_in(&places[at]));
                return std::iter::once(name).chain(held.map(|(_, name)| *name)).collect();
            }
        }
        Vec::new()
    }

    /// Strikes the last batch of a disk whose node is down, if the atlas lets it. Whether it did.
    pub(crate) fn strike_tail(
        &mut self,
        world: &World,
        checkers: &Checkers,
        random: &mut Random,
        node: u64,
    ) -> bool {
        self.forget(checkers);
        let Some((disk, at)) = checkers.disk(node).and_then(|disk| Some((disk, disk.tail()?))) else {
            return false;
        };
        let Some(place) = disk.places().get(at).copied() else { return false };
        let before = at.checked_sub(1).and_then(|at| disk.places().get(at));
        let may = place.plain
            && self.may_lose(disk, node, &place)
            && !self.is_touched(node, &place)
            && !before.is_some_and(|before| self.is_touched(node, before))
            && self.others_can_tell(checkers, disk, node, place.lsn, true);
        let records = place.records_end.saturating_sub(BATCH_HEAD);
        let Some((path, base)) = file(world, node, place.lsn).filter(|_| may && records > 0) else {
            return false;
        };
        let offset = place.lsn - base + BATCH_HEAD + random.below(records);
        if !world.flip(node, &path, offset) {
            return false;
        }
        self.tails.insert(node, (place.lsn, disk.openings));
        self.struck = true;
        true
    }

    /// A script struck a batch itself.
    #[cfg(test)]
    pub(crate) fn note(&mut self, node: u64, batch: u64) {
        self.bad.entry(node).or_default().insert(batch);
        self.struck = true;
    }

    /// Whether nothing was ever struck.
    pub(crate) const fn is_untouched(&self) -> bool {
        !self.struck
    }

    /// Entries that are wanted and whose newest copy on a disk is bad: (node, partition, index).
    pub(crate) fn unhealed(&self, checkers: &Checkers) -> Vec<(u64, u64, u64)> {
        let mut out = Vec::new();
        if self.bad.is_empty() {
            return out;
        }
        for (node, disk) in checkers.disks() {
            for (partition, log) in disk.logs() {
                let bad = log.live().filter(|(_, entry)| self.is_bad(node, entry.batch));
                out.extend(bad.map(|(index, _)| (node, partition, index)));
            }
        }
        out
    }

    /// Checkpoints that a log names and that are bad: (node, position that it is of).
    pub(crate) fn bad_checkpoints(&self, checkers: &Checkers) -> Vec<(u64, u64)> {
        let mut out = BTreeSet::new();
        for (node, disk) in checkers.disks() {
            let (newer, older) = disk.named();
            for place in disk.places().iter().filter(|place| self.is_bad(node, place.lsn)) {
                out.extend(
                    place.checkpoint.filter(|at| [newer, older].contains(&Some(*at))).map(|at| (node, at)),
                );
            }
        }
        out.into_iter().collect()
    }

    /// Segments of which a copy of the header is bad, or the summary: (node, base, which).
    ///
    /// A summary that was struck is bad as long as no later one of the segment is good, where entries are wanted. One of the newest
    /// segments need not have any: an opening may have all of it in memory. Nor one that cannot be read whole.
    pub(crate) fn not_rewritten(&self, world: &World, checkers: &Checkers) -> Vec<(u64, u64, &'static str)> {
        let heads = self.headers.iter().filter(|(node, base)| header_is_bad(world, *node, *base));
        let mut out: Vec<_> = heads.map(|(node, base)| (*node, *base, "header")).collect();
        for ((node, lsn), base) in &self.summaries {
            let Some(disk) = checkers.disk(*node) else { continue };
            let mut bases: Vec<u64> =
                world.files(*node).iter().filter_map(|(path, _)| platter::segment_base(path)).collect();
            bases.sort_unstable();
            let newer = bases.iter().filter(|other| *other > base).count();
            let Some(end) = bases.iter().find(|other| *other > base) else { continue };
            let held = |entry: &Stored| (*base..*end).contains(&entry.batch);
            let wanted = disk.logs().any(|(_, log)| log.live().any(|(_, entry)| held(entry)));
            let again = disk.places().iter().any(|place| {
                place.summary == Some(*base) && place.lsn > *lsn && !self.is_bad(*node, place.lsn)
            });
            let readable = self.unreadable.range((*node, *base)..(*node, *end)).next().is_none();
            if bases.contains(base) && newer >= NEWEST && wanted && readable && !again {
                out.push((*node, *base, "summary"));
            }
        }
        out
    }

    pub(crate) fn is_bad(&self, node: u64, batch: u64) -> bool {
        self.bad.get(&node).is_some_and(|bad| bad.contains(&batch))
            || self.tails.get(&node).is_some_and(|(tail, _)| *tail == batch)
    }

    fn is_touched(&self, node: u64, place: &Place) -> bool {
        self.is_bad(node, place.lsn) || self.footers.get(&node).is_some_and(|f| f.contains(&place.lsn))
    }

    /// What lies in a segment that is given up is no concern any more.
    pub(crate) fn forget(&mut self, checkers: &Checkers) {
        // An opening that found the tail bad wrote down what it lost, and begins again at its position.
        self.tails.retain(|node, (_, openings)| {
            checkers.disk(*node).is_some_and(|disk| disk.openings == *openings)
        });
        for (node, disk) in checkers.disks() {
            let there: BTreeSet<u64> = disk.places().iter().map(|place| place.lsn).collect();
            for of in [&mut self.bad, &mut self.footers] {
                if let Some(lsns) = of.get_mut(&node) {
                    lsns.retain(|lsn| there.contains(lsn));
                }
            }
        }
    }

    /// Where an opening begins to read if the newer of the two named checkpoints is bad.
    fn read_from(disk: &Disk) -> u64 {
        match disk.named() {
            (Some(newer), Some(older)) => newer.min(older),
            _ => 0,
        }
    }

    /// Whether a checkpoint, or entries, may be lost beside what is bad already. A checkpoint and the log behind the one before it
    /// say the same: of what was let go since, nobody else may have a copy.
    fn may_lose(&self, disk: &Disk, node: u64, place: &Place) -> bool {
        let low = Atlas::read_from(disk);
        let mut bad = disk.places().iter().filter(|place| self.is_bad(node, place.lsn));
        let other = |at: Option<u64>| at.is_some_and(|at| at >= low && Some(at) != place.checkpoint);
        let read = place.lsn >= low;
        bad.all(|bad| {
            let checkpoints = place.checkpoint.is_none() || !other(bad.checkpoint);
            let behind_entries = place.checkpoint.is_none() || !bad.entries || bad.lsn < low;
            let behind_checkpoint = !place.entries || !read || !other(bad.checkpoint);
            checkpoints && behind_entries && behind_checkpoint
        })
    }

    /// Whether the batch may be lost: it is proven, its neighbours keep its spans, and others have its entries.
    fn may_strike(&self, checkers: &Checkers, disk: &Disk, node: u64, at: usize) -> bool {
        let places = disk.places();
        let (Some(place), Some(next)) = (places.get(at), places.get(at + 1)) else { return false };
        let before = at.checked_sub(1).and_then(|at| places.get(at));
        let touched = |place: &Place| self.is_touched(node, place);
        at + TAIL < places.len()
            && self.may_lose(disk, node, place)
            && disk.is_proven(place)
            && next.epoch == place.epoch
            && !touched(place)
            && !touched(next)
            && !before.is_some_and(touched)
            && self.others_can_tell(checkers, disk, node, place.lsn, false)
    }

    /// Whether each entry in a batch has a good copy on another disk, or, if it `may` be, is on none.
    fn others_can_tell(
        &self,
        checkers: &Checkers,
        disk: &Disk,
        node: u64,
        batch: u64,
        may_be_alone: bool,
    ) -> bool {
        disk.logs().all(|(partition, log)| {
            log.live().filter(|(_, entry)| entry.batch == batch).all(|(index, entry)| {
                let others = checkers.disks().filter(|(other, _)| *other != node);
                let copies: Vec<_> = others
                    .filter_map(|(other, disk)| Some((other, disk.log(partition).entry(index)?)))
                    .filter(|(_, copy)| copy.generation == entry.generation)
                    .collect();
                let good = |(other, copy): &(u64, &Stored)| {
                    copy.hash == entry.hash && !copy.lost && !self.is_bad(*other, copy.batch)
                };
                copies.iter().any(good) || (may_be_alone && copies.is_empty())
            })
        })
    }

    fn hit(
        &mut self,
        world: &World,
        disk: &Disk,
        node: u64,
        rot: Rot,
        at: usize,
        random: &mut Random,
    ) -> Option<()> {
        let place = *disk.places().get(at)?;
        let (path, base) = file(world, node, place.lsn)?;
        let offset = place.lsn - base;
        let len = place.end - place.lsn;
        let done = match rot {
            Rot::SegmentHeader => {
                // The other copy stays.
                if !self.headers.insert((node, base)) {
                    return None;
                }
                let copy = random.below(2) * PAGE;
                return world.flip(node, &path, copy + random.below(72)).then_some(());
            }
            Rot::Footer => {
                self.footers.entry(node).or_default().insert(place.lsn);
                return world.flip(node, &path, offset + place.footer + random.below(64)).then_some(());
            }
            Rot::Header => world.flip(node, &path, offset + random.below(BATCH_HEAD)),
            Rot::Record => {
                // An empty batch has none to hit.
                let records = place.records_end.checked_sub(BATCH_HEAD).filter(|bytes| *bytes > 0)?;
                world.flip(node, &path, offset + BATCH_HEAD + random.below(records))
            }
            Rot::Unreadable => {
                self.unreadable.insert((node, place.lsn));
                world.make_unreadable(node, &path, offset + random.below(len / PAGE) * PAGE, PAGE)
            }
            Rot::LostWrite => {
                let zeros = vec![0; usize::try_from(len).ok()?];
                world.write_raw(node, &path, offset, &zeros)
            }
            Rot::Misdirected => {
                let other = *random.pick(disk.places())?;
                if other.lsn == place.lsn {
                    return None;
                }
                let (from, from_base) = file(world, node, other.lsn)?;
                let bytes = usize::try_from((other.end - other.lsn).min(len)).ok()?;
                let landed = world.durable_range(node, from, other.lsn - from_base, bytes)?;
                world.write_raw(node, &path, offset, &landed)
            }
        };
        self.bad.entry(node).or_default().insert(place.lsn);
        if let Some(base) = place.summary {
            self.summaries.insert((node, place.lsn), base);
        }
        done.then_some(())
    }
}

/// Whether a copy of the header is not as it should be; false if the segment is gone.
fn header_is_bad(world: &World, node: u64, base: u64) -> bool {
    let Some((path, of)) = file(world, node, base).filter(|(_, of)| *of == base) else { return false };
    let copy = |at: u64| world.durable_range(node, &path, at, 4096);
    let whole = |bytes: &Vec<u8>| matches!(platter::items(bytes).first(), Some(platter::Item::Segment(segment)) if segment.base == of);
    !copy(0).is_some_and(|bytes| whole(&bytes)) || copy(0) != copy(PAGE)
}

/// The segment's file that holds a position, and its base.
pub(crate) fn file(world: &World, node: u64, lsn: u64) -> Option<(String, u64)> {
    world
        .files(node)
        .into_iter()
        .filter_map(|(path, bytes)| {
            let base = platter::segment_base(&path)?;
            (base <= lsn && lsn < base + bytes).then_some((path, base))
        })
        .next_back()
}
