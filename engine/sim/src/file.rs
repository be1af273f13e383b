//! One simulated file: what is on the platter, and what only seems to be.
//!
//! A page has a `base`, which surely survives a power loss, and the writes since, oldest first. What a reader
//! sees is the newest write of each 512-byte sector. A sync moves writes into the base. A power loss draws
//! for every sector which of base and writes is left. A write may be *doomed* by a failed sync: readers see
//! it, no later sync saves it, a power loss takes it.

use crate::random::Random;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use tidelog_types::limits::PAGE_BYTES;

/// The unit that a device writes whole.
pub const SECTOR_BYTES: usize = 512;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
const _: () = assert!(SECTORS == 8, "a page's sectors fit the bits of a mask");
/// What [`crate::World::durable_contents`] shows of a sector that may come out of a power loss either way.
pub const UNCERTAIN: u8 = 0xDB;
/// Unsynced writes of one page that are told apart; of more, the oldest can no longer be what survives.
const VERSIONS_MAX: usize = 8;
/// Unsynced sizes that are told apart.
const GROWTH_MAX: usize = 64;
const PAGE: u64 = PAGE_BYTES as u64;

static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

#[derive(Clone, Debug)]
enum Content {
    Zero,
    Data(Rc<[u8; PAGE_BYTES]>),
}

impl Content {
    fn of(bytes: &[u8; PAGE_BYTES]) -> Content {
        if *bytes == ZEROS { Content::Zero } else { Content::Data(Rc::new(*bytes)) }
    }
    fn bytes(&self) -> &[u8; PAGE_BYTES] {
        match self {
            Content::Zero => &ZEROS,
            Content::Data(bytes) => bytes,
        }
    }
    fn sector(&self, sector: usize) -> &[u8] {
        &self.bytes()[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES]
    }
    /// The sectors of `mask` become those of `newer`.
    fn overlay(&mut self, newer: &Content, mask: u8) {
        if mask == 0xFF {
            *self = newer.clone();
        } else if mask != 0 {
            let mut bytes = *self.bytes();
            for sector in (0..SECTORS).filter(|s| mask & (1 << s) != 0) {
                bytes[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES]
                    .copy_from_slice(newer.sector(sector));
            }
            *self = Content::of(&bytes);
        }
    }
}

#[derive(Clone, Debug)]
struct Version {
    seq: u64,
    content: Content,
    /// The sectors that it wrote.
    mask: u8,
    doomed: bool,
}

#[derive(Clone, Debug)]
struct Page {
    base: Content,
    versions: Vec<Version>,
}

impl Page {
    const fn new() -> Page {
        Page { base: Content::Zero, versions: Vec::new() }
    }

    fn current(&self) -> Content {
        let mut content = self.base.clone();
        for version in &self.versions {
            content.overlay(&version.content, version.mask);
        }
        content
    }

    /// Moves writes up to `upto` that are not doomed into the base. True if there were any.
    fn promote(&mut self, upto: u64) -> bool {
        let mut any = false;
        let mut at = 0;
        while at < self.versions.len() {
            if self.versions[at].doomed || self.versions[at].seq > upto {
                at += 1;
                continue;
            }
            let version = self.versions.remove(at);
            any = true;
            self.base.overlay(&version.content, version.mask);
            // What it wrote over is gone, a doomed older write too.
            for older in &mut self.versions[..at] {
                older.mask &= !version.mask;
            }
            self.versions.retain(|v| v.mask != 0);
            at = 0;
        }
        any
    }

    fn is_nothing(&self) -> bool {
        self.versions.is_empty() && matches!(self.base, Content::Zero)
    }
}

/// How finely a power loss tears.
#[derive(Clone, Copy)]
enum Grain {
    Sector,
    Page,
    Write,
}

/// What a failed sync did to the writes that it was to save.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SyncLoss {
    /// Nothing: a later sync may still save them.
    Kept,
    /// They are still read back, and nothing will ever save them.
    Doomed,
    /// Some sectors read as before already.
    Dropped,
}

/// Pages [first, first + count) became durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRun {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

fn runs(pages: impl Iterator<Item = u64>) -> Vec<PageRun> {
    let mut out: Vec<PageRun> = Vec::new();
    for page in pages {
        match out.last_mut() {
            Some(run) if run.first + run.count == page => run.count += 1,
            _ => out.push(PageRun { first: page, count: 1 }),
        }
    }
    out
}

/// A file's bytes and what of them is safe.
#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    /// Pages that are not all zero and synced.
    pages: BTreeMap<u64, Page>,
    /// Pages with versions.
    dirty: BTreeSet<u64>,
    size: u64,
    durable_size: u64,
    /// Sizes since the last sync, by write.
    growth: Vec<(u64, u64)>,
    /// Pages that cannot be read.
    unreadable: BTreeSet<u64>,
}

/// Calls `f` with every page of `data`: its number, its bytes.
fn each_page(offset: u64, data: &[Bytes], mut f: impl FnMut(u64, &[u8; PAGE_BYTES])) {
    let mut page = offset / PAGE;
    for piece in data {
        for chunk in piece.chunks_exact(PAGE_BYTES) {
            if let Some(bytes) = chunk.first_chunk() {
                f(page, bytes);
            }
            page += 1;
        }
    }
}

/// What a write's mask says of its `page`-th page.
fn sectors_of(mask: u64, page: u64) -> u8 {
    let at = u32::try_from(page * SECTORS as u64).ok();
    at.and_then(|at| mask.checked_shr(at)).map_or(0, |mask| (mask & 0xFF) as u8)
}

pub(crate) fn total(data: &[Bytes]) -> u64 {
    data.iter().map(|piece| piece.len() as u64).sum()
}

impl File {
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// A completed write that is not durable. `mask` says which sectors of each page arrived.
    pub(crate) fn write(
        &mut self,
        seq: u64,
        offset: u64,
        data: &[Bytes],
        doomed: bool,
        mut mask: impl FnMut(u64) -> u8,
    ) {
        let mut end = 0;
        each_page(offset, data, |number, bytes| {
            let mask = mask(number);
            if mask == 0 {
                return;
            }
            end = (number + 1) * PAGE;
            let page = self.pages.entry(number).or_insert_with(Page::new);
            page.versions.push(Version { seq, content: Content::of(bytes), mask, doomed });
            if page.versions.len() > VERSIONS_MAX {
                let oldest = page.versions.remove(0);
                // What it alone had written would otherwise show through as old bytes to a reader.
                if !oldest.doomed {
                    let covered = page.versions.iter().fold(0, |m, v| m | v.mask);
                    page.base.overlay(&oldest.content, oldest.mask & !covered);
                }
            }
            self.dirty.insert(number);
            self.unreadable.remove(&number);
        });
        if end > self.size {
            self.size = end;
            self.growth.push((seq, end));
            if self.growth.len() > GROWTH_MAX {
                self.growth.remove(0);
            }
        }
    }

    /// A completed write that is durable.
    pub(crate) fn write_durable(&mut self, offset: u64, data: &[Bytes]) -> Vec<PageRun> {
        let end = offset + total(data);
        each_page(offset, data, |number, bytes| {
            let page = self.pages.entry(number).or_insert_with(Page::new);
            page.base = Content::of(bytes);
            page.versions.clear();
            self.dirty.remove(&number);
            self.unreadable.remove(&number);
            if page.is_nothing() {
                self.pages.remove(&number);
            }
        });
        self.size = self.size.max(end);
        self.durable_size = self.durable_size.max(end);
        self.growth.retain(|(_, bytes)| *bytes > end);
        vec![PageRun { first: offset / PAGE, count: total(data) / PAGE }]
    }

    /// A write of which exactly these sectors are safe, and nothing else happened: bit n stands for its n-th.
    pub(crate) fn write_sectors(&mut self, offset: u64, data: &[Bytes], mask: u64) {
        let (first, mut end) = (offset / PAGE, 0);
        each_page(offset, data, |number, bytes| {
            let mask = sectors_of(mask, number - first);
            if mask == 0 {
                return;
            }
            end = (number + 1) * PAGE;
            let page = self.pages.entry(number).or_insert_with(Page::new);
            for older in &mut page.versions {
                older.mask &= !mask;
            }
            page.versions.retain(|version| version.mask != 0);
            page.base.overlay(&Content::of(bytes), mask);
            self.unreadable.remove(&number);
        });
        self.size = self.size.max(end);
        self.durable_size = self.durable_size.max(end);
    }

    /// The sectors of a write that are not surely on the disk already, as in [`File::write_sectors`].
    pub(crate) fn changed(&self, offset: u64, data: &[Bytes]) -> u64 {
        let (first, mut changed) = (offset / PAGE, 0u64);
        each_page(offset, data, |number, bytes| {
            let new = Content::of(bytes);
            let differs = |sector: usize| match self.pages.get(&number) {
                None => new.sector(sector).iter().any(|b| *b != 0),
                Some(page) => {
                    let open = page.versions.iter().any(|version| version.mask & (1 << sector) != 0);
                    open || page.base.sector(sector) != new.sector(sector)
                }
            };
            let bits = (0..SECTORS).fold(0u64, |bits, sector| bits | (u64::from(differs(sector)) << sector));
            changed |= u32::try_from((number - first) * SECTORS as u64)
                .ok()
                .and_then(|at| bits.checked_shl(at))
                .unwrap_or(0);
        });
        changed
    }

    /// A sync that saves the writes up to `upto`.
    pub(crate) fn sync(&mut self, upto: u64) -> Vec<PageRun> {
        let mut promoted = Vec::new();
        let numbers: Vec<u64> = self.dirty.iter().copied().collect();
        for number in numbers {
            let Some(page) = self.pages.get_mut(&number) else { continue };
            if page.promote(upto) {
                promoted.push(number);
            }
            self.settle(number);
        }
        for (_, end) in self.growth.iter().filter(|(seq, _)| *seq <= upto) {
            self.durable_size = self.durable_size.max(*end);
        }
        self.growth.retain(|(seq, _)| *seq > upto);
        runs(promoted.into_iter())
    }

    /// Drops what is known of a page if that is only zeros, and its dirt if it has none.
    fn settle(&mut self, number: u64) {
        if let Some(page) = self.pages.get(&number) {
            if page.versions.is_empty() {
                self.dirty.remove(&number);
            }
            if page.is_nothing() {
                self.pages.remove(&number);
            }
        }
    }

    /// A sync that failed.
    pub(crate) fn sync_failed(&mut self, upto: u64, loss: SyncLoss, random: &mut Random) {
        if loss == SyncLoss::Kept {
            return;
        }
        let numbers: Vec<u64> = self.dirty.iter().copied().collect();
        for number in numbers {
            let Some(page) = self.pages.get_mut(&number) else { continue };
            for version in page.versions.iter_mut().filter(|v| v.seq <= upto) {
                version.doomed = true;
                if loss == SyncLoss::Dropped {
                    version.mask &= random.bits() as u8;
                }
            }
            page.versions.retain(|v| v.mask != 0);
            self.settle(number);
        }
    }

    /// The power fails: what was not safe is drawn. Returns how many sectors lost a write.
    pub(crate) fn power_loss(&mut self, random: &mut Random) -> u64 {
        // Even odds for every sector would make "all but one" and "none" next to impossible for larger
        // writes.
        let odds = *random.pick(&[0, 1, 4, 7, 8]).unwrap_or(&4);
        let grain = *random.pick(&[Grain::Sector, Grain::Page, Grain::Write]).unwrap_or(&Grain::Sector);
        let mut writes: BTreeMap<u64, bool> = BTreeMap::new();
        let mut lost = 0;
        for number in std::mem::take(&mut self.dirty) {
            let Some(page) = self.pages.get_mut(&number) else { continue };
            for version in std::mem::take(&mut page.versions) {
                let mut draw = || random.below(8) < odds;
                let kept = match grain {
                    _ if version.doomed => 0,
                    Grain::Sector => (0..SECTORS).fold(0, |mask, s| mask | (u8::from(draw()) << s)),
                    Grain::Page => u8::from(draw()) * 0xFF,
                    Grain::Write => u8::from(*writes.entry(version.seq).or_insert_with(draw)) * 0xFF,
                };
                lost += u64::from((version.mask & !kept).count_ones());
                page.base.overlay(&version.content, version.mask & kept);
            }
            self.settle(number);
        }
        let grown: Vec<u64> = self.growth.drain(..).map(|(_, end)| end).collect();
        let size = if random.coin() { self.durable_size } else { random.pick(&grown).copied().unwrap_or(0) };
        self.size = size.max(self.durable_size);
        self.durable_size = self.size;
        let beyond: Vec<u64> = self.pages.range(self.size / PAGE..).map(|(number, _)| *number).collect();
        for number in beyond {
            self.pages.remove(&number);
        }
        lost
    }

    /// What a reader sees. Returns the bytes before the end of the file; `None` if some cannot be read.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Option<usize> {
        let bytes = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let mut at = 0;
        while at < bytes {
            let position = offset + at as u64;
            let number = position / PAGE;
            let within = (position % PAGE) as usize;
            let count = (PAGE_BYTES - within).min(bytes - at);
            if self.unreadable.contains(&number) {
                return None;
            }
            let target = &mut out[at..at + count];
            match self.pages.get(&number) {
                None => target.fill(0),
                Some(page) => target.copy_from_slice(&page.current().bytes()[within..within + count]),
            }
            at += count;
        }
        Some(bytes)
    }

    /// What surely survives a power loss within a range, [`UNCERTAIN`] where it is open.
    pub(crate) fn durable(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = offset.saturating_add(len as u64).min(self.durable_size);
        let mut out = Vec::new();
        let mut at = offset;
        while at < end {
            let within = (at % PAGE) as usize;
            let count = (PAGE_BYTES - within).min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let mut bytes = ZEROS;
            if let Some(page) = self.pages.get(&(at / PAGE)) {
                bytes = *page.base.bytes();
                for version in page.versions.iter().filter(|v| !v.doomed) {
                    for sector in (0..SECTORS).filter(|s| version.mask & (1 << s) != 0) {
                        if version.content.sector(sector) != page.base.sector(sector) {
                            bytes[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES].fill(UNCERTAIN);
                        }
                    }
                }
            }
            out.extend_from_slice(&bytes[within..within + count]);
            at += count as u64;
        }
        out
    }

    pub(crate) const fn durable_size(&self) -> u64 {
        self.durable_size
    }

    /// Puts bytes on the platter and into every reader's sight, at any offset within the file or at its end.
    pub(crate) fn write_raw(&mut self, offset: u64, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            self.change(offset + i as u64, |b| *b = *byte);
        }
        let end = (offset + data.len() as u64).next_multiple_of(PAGE);
        self.size = self.size.max(end);
        self.durable_size = self.durable_size.max(end);
    }

    /// Flips the lowest bit of a byte, on the platter and in every reader's sight.
    pub(crate) fn flip(&mut self, offset: u64) {
        self.change(offset, |b| *b ^= 1);
    }

    fn change(&mut self, offset: u64, f: impl Fn(&mut u8)) {
        let page = self.pages.entry(offset / PAGE).or_insert_with(Page::new);
        let within = (offset % PAGE) as usize;
        for content in std::iter::once(&mut page.base).chain(page.versions.iter_mut().map(|v| &mut v.content))
        {
            let mut bytes = *content.bytes();
            f(&mut bytes[within]);
            *content = Content::of(&bytes);
        }
        self.settle(offset / PAGE);
    }

    /// Reads of these bytes fail until they are written again.
    /// Whole pages.
    pub(crate) fn truncate(&mut self, bytes: u64) {
        let bytes = bytes / PAGE * PAGE;
        self.size = self.size.min(bytes);
        self.durable_size = self.durable_size.min(bytes);
        self.pages.retain(|page, _| *page < bytes / PAGE);
    }

    pub(crate) fn make_unreadable(&mut self, offset: u64, len: u64) {
        self.unreadable.extend(offset / PAGE..(offset + len).div_ceil(PAGE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(fill: u8) -> Vec<Bytes> {
        vec![Bytes::from(vec![fill; PAGE_BYTES])]
    }

    fn read(file: &File, offset: u64) -> Vec<u8> {
        let mut out = vec![0xEE; PAGE_BYTES];
        let n = file.read(offset, &mut out).unwrap();
        out.truncate(n);
        out
    }

    #[test]
    fn synced_bytes_survive_every_power_loss() {
        for seed in 0..200 {
            let mut file = File::default();
            file.write(1, 0, &page(1), false, |_| 0xFF);
            file.sync(1);
            file.write_durable(PAGE, &page(2));
            file.write(2, 2 * PAGE, &page(3), false, |_| 0xFF);
            file.power_loss(&mut Random::new(seed));
            assert_eq!(read(&file, 0), vec![1; PAGE_BYTES]);
            assert_eq!(read(&file, PAGE), vec![2; PAGE_BYTES]);
        }
    }

    #[test]
    fn unsynced_bytes_are_lost_kept_and_torn_by_sector() {
        let (mut all, mut none, mut torn) = (0, 0, 0);
        for seed in 0..300 {
            let mut file = File::default();
            file.write_durable(0, &page(1));
            file.write(1, 0, &page(2), false, |_| 0xFF);
            file.power_loss(&mut Random::new(seed));
            let bytes = read(&file, 0);
            for sector in bytes.chunks(SECTOR_BYTES) {
                assert!(sector.iter().all(|b| *b == sector[0]), "a sector is written whole");
            }
            match bytes.iter().filter(|b| **b == 2).count() {
                0 => none += 1,
                PAGE_BYTES => all += 1,
                _ => torn += 1,
            }
        }
        assert!(all > 20 && none > 20 && torn > 20, "{all} {none} {torn}");
    }

    #[test]
    fn a_sync_saves_only_what_was_written_before_it_began() {
        let mut lost = false;
        for seed in 0..50 {
            let mut file = File::default();
            file.write_durable(0, &page(0));
            file.write(1, 0, &page(1), false, |_| 0xFF);
            file.write(2, 0, &page(2), false, |_| 0xFF);
            file.sync(1);
            assert_eq!(read(&file, 0), vec![2; PAGE_BYTES]);
            file.power_loss(&mut Random::new(seed));
            assert!(read(&file, 0).iter().all(|b| *b == 1 || *b == 2));
            lost |= read(&file, 0).contains(&1);
        }
        assert!(lost);
    }

    #[test]
    fn what_a_failed_sync_doomed_is_read_back_and_never_saved() {
        let mut file = File::default();
        file.write_durable(0, &page(1));
        file.write(1, 0, &page(2), false, |_| 0xFF);
        file.sync_failed(1, SyncLoss::Doomed, &mut Random::new(1));
        file.sync(9);
        assert_eq!(read(&file, 0), vec![2; PAGE_BYTES]);
        assert_eq!(file.durable(0, PAGE_BYTES), vec![1; PAGE_BYTES]);
        file.power_loss(&mut Random::new(1));
        assert_eq!(read(&file, 0), vec![1; PAGE_BYTES]);
    }

    #[test]
    fn a_doomed_write_is_healed_by_writing_again() {
        let mut file = File::default();
        file.write(1, 0, &page(2), false, |_| 0xFF);
        file.sync_failed(1, SyncLoss::Doomed, &mut Random::new(1));
        file.write(2, 0, &page(3), false, |_| 0xFF);
        file.sync(2);
        assert_eq!(read(&file, 0), vec![3; PAGE_BYTES]);
        assert_eq!(file.durable(0, PAGE_BYTES), vec![3; PAGE_BYTES]);
    }

    #[test]
    fn the_durable_view_marks_what_is_open() {
        let mut file = File::default();
        file.write_durable(0, &page(1));
        file.write(1, 0, &page(2), false, |_| 0b10);
        let durable = file.durable(0, PAGE_BYTES);
        assert_eq!(&durable[..512], &[1; 512]);
        assert_eq!(&durable[512..1024], &[UNCERTAIN; 512]);
        assert_eq!(&durable[1024..], &[1; 3072]);
        file.sync(1);
        assert_eq!(&file.durable(512, 512), &[2; 512]);
    }

    #[test]
    fn growth_without_a_sync_may_be_lost() {
        let mut sizes = BTreeSet::new();
        for seed in 0..100 {
            let mut file = File::default();
            file.write_durable(0, &page(1));
            file.write(1, PAGE, &page(2), false, |_| 0xFF);
            file.write(2, 2 * PAGE, &page(2), false, |_| 0xFF);
            file.power_loss(&mut Random::new(seed));
            sizes.insert(file.size());
        }
        assert_eq!(sizes, BTreeSet::from([PAGE, 2 * PAGE, 3 * PAGE]));
    }

    #[test]
    fn damage_and_raw_writes_show() {
        let mut file = File::default();
        file.write_durable(0, &page(4));
        file.flip(5);
        assert_eq!(read(&file, 0)[5], 5);
        file.write_raw(PAGE, b"abc");
        assert_eq!(&read(&file, PAGE)[..4], b"abc\0");
        file.make_unreadable(0, 1);
        assert_eq!(file.read(0, &mut [0; 10]), None);
        file.write_durable(0, &page(4));
        assert_eq!(read(&file, 0), vec![4; PAGE_BYTES]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write { page: u64, fill: u8 },
        Durable { page: u64, fill: u8 },
        Sync,
    }

    proptest! {
        /// Whatever the script, a power loss leaves every sector at its base or at a write since, and what
        /// the durable view is sure of is what is left.
        #[test]
        fn power_loss_keeps_what_was_promised(
            script in proptest::collection::vec(prop_oneof![
                (0u64..4, 1u8..250).prop_map(|(page, fill)| Step::Write { page, fill }),
                (0u64..4, 1u8..250).prop_map(|(page, fill)| Step::Durable { page, fill }),
                Just(Step::Sync),
            ], 0..30),
            seed: u64,
        ) {
            let mut file = File::default();
            let mut seq = 0;
            let mut newest = [0u8; 4];
            for step in script {
                seq += 1;
                match step {
                    Step::Write { page: at, fill } => {
                        file.write(seq, at * PAGE, &page(fill), false, |_| 0xFF);
                        newest[at as usize] = fill;
                    }
                    Step::Durable { page: at, fill } => {
                        file.write_durable(at * PAGE, &page(fill));
                        newest[at as usize] = fill;
                    }
                    Step::Sync => {
                        file.sync(seq);
                    }
                }
                for at in 0..file.size() / PAGE {
                    prop_assert_eq!(read(&file, at * PAGE), vec![newest[at as usize]; PAGE_BYTES]);
                }
            }
            let sure = file.durable(0, 4 * PAGE_BYTES);
            let before = file.durable_size();
            file.power_loss(&mut Random::new(seed));
            prop_assert!(file.size() >= before);
            let mut after = vec![0; sure.len()];
            prop_assert_eq!(file.read(0, &mut after), Some(sure.len()));
            for (sure, after) in sure.iter().zip(&after) {
                prop_assert!(*sure == UNCERTAIN || sure == after);
            }
        }
    }
}
