//! Sequential reading of one file, ahead and in large pieces; and what could not be read.
//!
//! Pieces lie where the device put them; only a view across the border of two is copied. The further the reading goes on, the more
//! of the file is asked for in front of it: a short look (is there a batch at all?) does not pay for long reads. A window
//! made by [`Window::ahead`] returns while they are under way, so that the device works while its owner does;
//! [`Window::end`] waits for what is left of them.
//!
//! Of what is asked for only a part is under way: a device may tell of reads that it does one after the other only when it has
//! done all that it was given, and would then idle until the first of them has been looked at. What has come makes room for the
//! next reads before anybody looks at it.
//!
//! A device error does not end it: the pages are read again one by one, and those that fail again are remembered
//! as unreadable (and are zeros). Any other error does, once what it is of is needed.

use crate::disk::Disk;
use std::collections::{BTreeSet, VecDeque};
use tidelog_io::{AlignedBuf, Begun, FileId, IoError, IoErrorKind, Op, Output};
use tidelog_types::limits::{BATCH_BYTES_MAX, PAGE_BYTES};

/// Bytes of one read, at most; those that are under way at once; and those that are asked for in front of what is needed.
const READ_BYTES: u64 = 2 << 20;
const FLYING_MAX: u64 = 8 << 20;
const AHEAD_MAX: u64 = 16 << 20;
/// The same at the beginning.
const AHEAD_MIN: u64 = 64 << 10;
/// Bytes that are kept behind what is needed.
const KEPT_BYTES: u64 = BATCH_BYTES_MAX as u64;
const PAGE: u64 = PAGE_BYTES as u64;

/// Bytes of the file.
#[derive(Debug)]
struct Piece {
    start: u64,
    bytes: AlignedBuf,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Its part of `from .. to`.
    fn part(&self, from: u64, to: u64) -> &[u8] {
        let at = |offset: u64| offset.clamp(self.start, self.end()) - self.start;
        self.bytes.get(at(from) as usize..at(to) as usize).unwrap_or_default()
    }
}

/// A read under way.
#[derive(Debug)]
struct Flight {
    start: u64,
    bytes: u64,
    begun: Begun,
}

/// Sequential reading of one file.
#[derive(Debug)]
pub(crate) struct Window {
    file: FileId,
    file_bytes: u64,
    /// What has been read, in order and without a gap.
    pieces: VecDeque<Piece>,
    /// What comes behind them.
    flights: VecDeque<Flight>,
    /// Where the first of them begins, and where the next read does.
    start: u64,
    next: u64,
    /// Where the last view began.
    needed: u64,
    /// How far that was when completions were looked for last, in reads.
    looked_at: u64,
    /// The last view across pieces, and where it begins.
    joined: Vec<u8>,
    joined_at: u64,
    /// Bytes to have in front of what is needed: doubles while the reading goes on.
    ahead: u64,
    /// A view waits for nothing but itself.
    returns_early: bool,
    unreadable: BTreeSet<u64>,
    /// Bytes read so far.
    pub(crate) read: u64,
}

impl Window {
    pub(crate) fn new(file: FileId, file_bytes: u64) -> Window {
        Window {
            file,
            file_bytes: file_bytes / PAGE * PAGE,
            pieces: VecDeque::new(),
            flights: VecDeque::new(),
            start: 0,
            next: 0,
            needed: 0,
            looked_at: 0,
            joined: Vec::new(),
            joined_at: 0,
            ahead: AHEAD_MIN,
            returns_early: false,
            unreadable: BTreeSet::new(),
            read: 0,
        }
    }

    /// One that goes on reading beside its owner, as far ahead as `before`, which it follows, had come.
    pub(crate) fn ahead(file: FileId, file_bytes: u64, before: Option<&Window>) -> Window {
        let ahead = before.map_or(AHEAD_MIN, |window| window.ahead);
        Window { ahead, returns_early: true, ..Window::new(file, file_bytes) }
    }

    /// Asks for bytes from `offset` on, as far as `before`, all of which has been asked for and which is still looked at, leaves
    /// room for them.
    pub(crate) fn prepare(&mut self, disk: &mut Disk<'_>, offset: u64, before: &Window) {
        if self.next < offset {
            self.restart(disk, offset);
        }
        self.look(disk, before.needed);
        let left = before.next.saturating_sub(before.needed);
        let ahead = self.ahead.min(AHEAD_MAX.saturating_sub(left));
        self.ask(disk, (offset, offset), ahead, before.flying());
    }

    /// Forgets everything; reading begins at `offset`.
    fn restart(&mut self, disk: &mut Disk<'_>, offset: u64) {
        self.end(disk);
        self.pieces.clear();
        self.joined.clear();
        (self.start, self.next) = (offset / PAGE * PAGE, offset / PAGE * PAGE);
        self.needed = self.start;
    }

    /// Bytes under way.
    fn flying(&self) -> u64 {
        self.next - self.read_to()
    }

    /// Takes in what has come, once a read's length of what is looked at, which is at `at` now. One that failed stays until it
    /// is needed.
    fn look(&mut self, disk: &mut Disk<'_>, at: u64) {
        if self.flights.is_empty() || self.looked_at == at / READ_BYTES {
            return;
        }
        self.looked_at = at / READ_BYTES;
        disk.hand_over();
        self.take_in(disk);
    }

    fn take_in(&mut self, disk: &mut Disk<'_>) {
        while self.flights.front().is_some_and(|flight| disk.has_succeeded(&flight.begun)) {
            // It has succeeded.
            let _ = self.land(disk);
        }
    }

    /// Up to where it has been read.
    fn read_to(&self) -> u64 {
        self.pieces.back().map_or(self.start, Piece::end)
    }

    /// Whether all of the file has been asked for.
    pub(crate) fn is_through(&self) -> bool {
        self.next >= self.file_bytes
    }

    /// Waits for the reads that are under way. The file may be closed then.
    pub(crate) fn end(&mut self, disk: &mut Disk<'_>) {
        for flight in self.flights.drain(..) {
            // Nobody needs it.
            let _ = disk.result_of(flight.begun);
        }
    }

    /// The bytes from `offset` on: `len` of them, fewer only at the end of the file.
    pub(crate) fn view(&mut self, disk: &mut Disk<'_>, offset: u64, len: usize) -> Result<&[u8], IoError> {
        let end = offset.saturating_add(len as u64).min(self.file_bytes);
        let offset = offset.min(end);
        if offset < self.start || offset > self.next {
            self.restart(disk, offset);
            self.ahead = AHEAD_MIN;
        }
        // A batch behind is looked at again where it is not good: as it was, should a late write of an earlier life reach it meanwhile.
        while self.pieces.front().is_some_and(|piece| piece.end() + KEPT_BYTES <= offset)
            && let Some(piece) = self.pieces.pop_front()
        {
            self.start = piece.end();
        }
        self.needed = offset;
        if !self.returns_early {
            if self.read_to() < end {
                self.ask(disk, (offset, end), self.ahead, 0);
            }
            while !self.flights.is_empty() {
                self.land(disk)?;
            }
            return self.at(offset, end);
        }
        self.look(disk, offset);
        self.ask(disk, (offset, end), self.ahead, 0);
        while self.read_to() < end && !self.flights.is_empty() {
            self.land(disk)?;
            self.take_in(disk);
            self.ask(disk, (offset, end), self.ahead, 0);
        }
        self.at(offset, end)
    }

    /// What lies at `offset .. end`, which has been read.
    fn at(&mut self, offset: u64, end: u64) -> Result<&[u8], IoError> {
        if let Some(piece) = self.pieces.iter().find(|piece| piece.start <= offset && end <= piece.end()) {
            return Ok(piece.part(offset, end));
        }
        let joined_end = self.joined_at + self.joined.len() as u64;
        if !(self.joined_at <= offset && end <= joined_end) {
            self.joined.clear();
            self.joined_at = offset;
            for piece in &self.pieces {
                self.joined.extend_from_slice(piece.part(offset, end));
            }
        }
        let from = (offset - self.joined_at) as usize;
        Ok(self.joined.get(from..from + (end - offset) as usize).unwrap_or_default())
    }

    /// Whether a page of `offset .. offset + len` could not be read. Only for what was viewed.
    pub(crate) fn unreadable(&self, offset: u64, len: u64) -> bool {
        self.unreadable.range(offset / PAGE * PAGE..offset.saturating_add(len)).next().is_some()
    }

    /// Asks for what is needed and not under way yet, and for what may be needed next, up to `ahead` bytes of it; of another
    /// window's `flying` bytes are under way.
    fn ask(&mut self, disk: &mut Disk<'_>, (needed, end): (u64, u64), ahead: u64, flying: u64) {
        let from = self.next;
        let to = end.max(needed.saturating_add(ahead)).min(self.file_bytes);
        // Few large reads instead of many small ones; not more than a part of what lies ahead, so that some are on their way always.
        let most = READ_BYTES.min(self.ahead / 2).max(PAGE);
        while self.next < to {
            let bytes = most.min(self.file_bytes - self.next);
            let far = self.next + bytes > to && self.next > needed;
            let many = self.returns_early && self.flying() + flying + bytes > FLYING_MAX;
            if self.next >= end && (far || many) {
                break;
            }
            let buffer = disk.buffers().take(bytes as usize);
            let begun = disk.begin(Op::Read { file: self.file, offset: self.next, buffer });
            self.flights.push_back(Flight { start: self.next, bytes, begun });
            self.next += bytes;
        }
        if self.next > from {
            self.read += self.next - from;
            self.ahead = (self.ahead * 2).min(AHEAD_MAX);
            disk.hand_over();
        }
    }

    /// Waits for the oldest read under way.
    fn land(&mut self, disk: &mut Disk<'_>) -> Result<(), IoError> {
        let Some(Flight { start, bytes, begun }) = self.flights.pop_front() else { return Ok(()) };
        let bytes = match disk.result_of(begun) {
            Ok(Output::Read { mut buffer, bytes }) => {
                // A file that is shorter than it was at its opening: nothing is there.
                if let Some(missing) = buffer.get_mut(bytes..) {
                    missing.fill(0);
                }
                buffer
            }
            Err(error) if error.kind == IoErrorKind::Device => self.page_by_page(disk, start, bytes)?,
            Err(error) => {
                self.restart(disk, start);
                return Err(error);
            }
            Ok(_) => disk.buffers().take_zeroed(bytes as usize),
        };
        self.pieces.push_back(Piece { start, bytes });
        Ok(())
    }

    fn page_by_page(&mut self, disk: &mut Disk<'_>, from: u64, len: u64) -> Result<AlignedBuf, IoError> {
        let mut all = disk.buffers().take_zeroed(len as usize);
        for (page, at) in all.chunks_mut(PAGE_BYTES).zip((from..from + len).step_by(PAGE_BYTES)) {
            let buffer = disk.buffers().take(PAGE_BYTES);
            match disk.run(Op::Read { file: self.file, offset: at, buffer }) {
                Ok(Output::Read { buffer, bytes }) if bytes == PAGE_BYTES => page.copy_from_slice(&buffer),
                Err(error) if error.kind != IoErrorKind::Device => return Err(error),
                _ => {
                    self.unreadable.insert(at);
                }
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tidelog_io::{Foreground, Io, OpenMode};
    use tidelog_sim::{DiskFaults, Random, Rate, World};

    const FILE_BYTES: u64 = 9 << 20;

    fn byte(at: u64) -> u8 {
        (at / PAGE * 31 + at / 7) as u8
    }

    /// A world with one file in it.
    fn file(seed: u64, path: &str) -> (World, tidelog_sim::SimIo) {
        let world = World::new(seed);
        let mut io = world.node(1);
        let mut buffer = io.buffers().take(FILE_BYTES as usize);
        buffer.iter_mut().zip(0..).for_each(|(out, at)| *out = byte(at));
        let data = vec![buffer.freeze()];
        let mut foreground = Foreground::new(&mut io);
        foreground.run(Op::CreateDir { path: "/data".into() }).unwrap();
        let opened = foreground.run(Op::Open { path: path.into(), mode: OpenMode::Create }).unwrap();
        let Output::Opened { file, .. } = opened else { panic!("not opened") };
        foreground.run(Op::Write { file, offset: 0, data }).unwrap();
        foreground.run(Op::CloseFile { file }).unwrap();
        (world, io)
    }

    #[test]
    fn views_are_the_files_bytes_wherever_they_lie() {
        let path = "/data/f";
        for seed in 1..=6 {
            let (world, mut io) = file(seed, path);
            if seed % 3 == 0 {
                let read_error = Rate::percent(20);
                world.set_disk_faults(1, DiskFaults { read_error, ..DiskFaults::NONE });
            }
            let mut random = Random::new(seed);
            let mut disk = Disk::new(&mut io);
            let (file, bytes) = disk.open(Path::new(path), OpenMode::Read).unwrap();
            let mut window = match seed % 2 {
                0 => Window::new(file, bytes),
                _ => Window::ahead(file, bytes, None),
            };
            let (mut at, mut good) = (0, 0);
            for _ in 0..150 {
                // Mostly on, sometimes back a little, now and then anywhere.
                at = match random.below(20) {
                    0 => random.below(FILE_BYTES),
                    1 | 2 => at.saturating_sub(random.below(BATCH_BYTES_MAX as u64)),
                    _ => at + random.below(200_000),
                };
                let len = match random.below(4) {
                    0 => random.below(BATCH_BYTES_MAX as u64),
                    _ => random.below(100_000),
                };
                let view = window.view(&mut disk, at, len as usize).unwrap().to_vec();
                assert_eq!(view.len() as u64, len.min(FILE_BYTES.saturating_sub(at)), "seed {seed}");
                for (offset, found) in (at..).zip(view) {
                    // A page that was unreadable once may have been read since.
                    let unreadable = window.unreadable(offset, 1) && found == 0;
                    assert!(unreadable || found == byte(offset), "seed {seed}: at {offset}");
                    good += u64::from(!unreadable);
                }
            }
            assert!(good > 1 << 20, "seed {seed}: {good} bytes compared");
            window.end(&mut disk);
            disk.close(file).unwrap();
            assert_eq!(disk.finish().len(), 0, "nothing of a window is left to others");
        }
    }

    /// An owner that gives up leaves reads under way; they end before its files are closed, and nobody else is told of them.
    #[test]
    fn reads_that_are_left_behind_are_waited_for() {
        let path = "/data/f";
        let (_world, mut io) = file(1, path);
        let mut disk = Disk::new(&mut io);
        let (file, bytes) = disk.open(Path::new(path), OpenMode::Read).unwrap();
        let mut window = Window::ahead(file, bytes, None);
        for at in 0..100 {
            window.view(&mut disk, at * PAGE, PAGE_BYTES).unwrap();
        }
        assert!(!window.flights.is_empty(), "it reads ahead");
        drop(window);
        assert_eq!(disk.finish().len(), 0);
        let mut got = Vec::new();
        assert_eq!(io.poll(tidelog_io::Wait::No, &mut got), 0);
    }
}
