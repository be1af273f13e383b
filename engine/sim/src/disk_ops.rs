//! Operations on a node's disk: how long they take, which fail, and what they leave.

use crate::disk::Refusal;
use crate::fault::{self, DiskFault};
use crate::file::{SECTOR_BYTES, SyncLoss, total};
use crate::node::{DiskOp, DiskWork, InFlight, Node, OpenFile, failed};
use crate::random::Random;
use crate::state::State;
use bytes::Bytes;
use tidelog_io::{Completion, FileId, IoErrorKind, OpenMode, Output};
use tidelog_types::limits::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

const DEVICE: Refusal = Refusal::new(IoErrorKind::Device, "input/output error");

fn fits(fault: DiskFault, work: &DiskWork) -> bool {
    match fault {
        DiskFault::WriteError | DiskFault::ShortWrite | DiskFault::Misdirected => {
            matches!(work, DiskWork::Write { .. })
        }
        DiskFault::NoSpace => {
            matches!(work, DiskWork::Write { .. } | DiskWork::Open { mode: OpenMode::Create, .. })
        }
        DiskFault::SyncError => matches!(work, DiskWork::Sync { .. } | DiskWork::Write { durable: true, .. }),
        DiskFault::ReadError => matches!(work, DiskWork::Read { .. }),
        DiskFault::NameError => {
            work.changes_disk() && !matches!(work, DiskWork::Write { .. } | DiskWork::Sync { .. })
        }
        DiskFault::Stall(_) => true,
    }
}

/// The way in which an operation can fail at all.
const fn native(work: &DiskWork) -> DiskFault {
    match work {
        DiskWork::Write { .. } => DiskFault::WriteError,
        DiskWork::Sync { .. } => DiskFault::SyncError,
        DiskWork::Read { .. } => DiskFault::ReadError,
        _ => DiskFault::NameError,
    }
}

/// The fault that an operation meets, if any.
fn draw_fault(node: &mut Node, op: &DiskOp, random: &mut Random) -> Option<DiskFault> {
    if let Some(fault) = op.number.and_then(|n| node.faults_at.remove(&n)) {
        return Some(if fits(fault, &op.work) { fault } else { native(&op.work) });
    }
    let ordered = |f: &DiskFault| !matches!(f, DiskFault::Stall(_)) && fits(*f, &op.work);
    if let Some(at) = node.next_faults.iter().position(ordered) {
        return Some(node.next_faults.remove(at));
    }
    let rates = [
        (DiskFault::WriteError, node.faults.write_error),
        (DiskFault::ShortWrite, node.faults.short_write),
        (DiskFault::SyncError, node.faults.sync_error),
        (DiskFault::ReadError, node.faults.read_error),
        (DiskFault::NoSpace, node.faults.no_space),
        (DiskFault::NameError, node.faults.name_error),
    ];
    rates
        .into_iter()
        .find(|(fault, rate)| fits(*fault, &op.work) && random.chance(*rate))
        .map(|(fault, _)| fault)
}

/// The first `bytes` bytes of `data`.
fn prefix(data: &[Bytes], mut bytes: usize) -> Vec<Bytes> {
    let mut out = Vec::new();
    for piece in data {
        let take = piece.len().min(bytes);
        if take > 0 {
            out.push(piece.slice(..take));
        }
        bytes -= take;
    }
    out
}

impl State {
    /// How long an operation takes.
    pub(crate) fn disk_time(&mut self, id: u64, work: &DiskWork) -> u64 {
        let State { config, nodes, random, counts, .. } = self;
        let Some(node) = nodes.get_mut(&id) else { return 0 };
        let base = match work {
            DiskWork::Read { .. } => random.between(config.read_ns),
            DiskWork::Write { durable: false, .. } => random.between(config.write_ns),
            DiskWork::Write { durable: true, .. } => {
                random.between(config.write_ns) + random.between(config.sync_ns)
            }
            DiskWork::Sync { .. } | DiskWork::SyncDir { .. } => random.between(config.sync_ns),
            _ => random.between(config.name_ns),
        };
        let mut took =
            (base + work.bytes() / config.disk_bytes_per_us * 1_000) * node.faults.slow_factor.max(1);
        if node.faults.slow_factor > 1 {
            counts.add(fault::SLOW_DISK, 1);
        }
        if random.chance(node.faults.stall) {
            took += random.between(node.faults.stall_ns);
            counts.add(fault::STALL, 1);
        }
        if let Some(at) = node.next_faults.iter().position(|f| matches!(f, DiskFault::Stall(_)))
            && let DiskFault::Stall(ns) = node.next_faults.remove(at)
        {
            took += ns;
            counts.add(fault::STALL, 1);
        }
        took
    }

    /// An operation comes to its end: it has its effect, and its completion is ready.
    pub(crate) fn finish_disk(&mut self, at: u64, id: u64, op: DiskOp) {
        let State { nodes, random, .. } = self;
        let Some(node) = nodes.get_mut(&id) else { return };
        let fault = draw_fault(node, &op, random);
        let DiskOp { token, number, subject, work } = op;
        let operation = work.name();
        if let Some(fault) = fault {
            let code = crc32c::crc32c(format!("{fault:?}").as_bytes());
            self.trace.note(at, id, "disk fault", &[number.unwrap_or(u64::MAX), u64::from(code)]);
        }
        let result = self.effect(id, fault, &subject, work);
        let completion = match result {
            Ok(output) => Completion { token, result: Ok(output) },
            Err(refusal) => failed(token, refusal.kind, operation, &subject, refusal.message),
        };
        if let Some(life) = self.nodes.get_mut(&id).and_then(|node| node.life.as_mut()) {
            life.ready.push_back(completion);
        }
    }

    fn effect(
        &mut self,
        id: u64,
        fault: Option<DiskFault>,
        subject: &str,
        work: DiskWork,
    ) -> Result<Output, Refusal> {
        if fault == Some(DiskFault::NameError) {
            self.counts.add(fault::NAME_ERROR, 1);
            // Done or not: the caller cannot know.
            if self.random.coin() && !matches!(work, DiskWork::SyncDir { .. }) {
                let _ = self.effect(id, None, subject, work);
            }
            return Err(DEVICE);
        }
        match work {
            DiskWork::Write { inode, offset, data, durable } => {
                self.write_effect(id, fault, inode, offset, &data, durable)
            }
            DiskWork::Sync { inode, upto } => {
                let State { nodes, random, counts, .. } = self;
                let Some(node) = nodes.get_mut(&id) else { return Err(DEVICE) };
                if fault == Some(DiskFault::SyncError) {
                    fail_sync(node, inode, upto, random, counts);
                    return Err(DEVICE);
                }
                let runs = node.disk.file_mut(inode).map(|file| file.sync(upto)).unwrap_or_default();
                node.note_durable(inode, runs);
                Ok(Output::Done)
            }
            DiskWork::Read { inode, offset, mut buffer } => {
                let State { nodes, random, counts, .. } = self;
                let Some(node) = nodes.get_mut(&id) else { return Err(DEVICE) };
                let bytes = node.disk.file(inode).and_then(|file| file.read(offset, &mut buffer));
                let Some(bytes) = bytes.filter(|_| fault != Some(DiskFault::ReadError)) else {
                    counts.add(fault::READ_ERROR, 1);
                    return Err(DEVICE);
                };
                race_with_writes(node, inode, offset, &mut buffer[..bytes], random);
                Ok(Output::Read { buffer, bytes })
            }
            DiskWork::Locate { inode } => {
                let node = self.nodes.get(&id).ok_or(DEVICE)?;
                Ok(Output::Located(node.disk.place(inode)))
            }
            DiskWork::Open { path, mode } => {
                self.next_handle += 1;
                let file = FileId(self.next_handle);
                let Some(node) = self.nodes.get_mut(&id) else { return Err(DEVICE) };
                let (inode, bytes) = if mode == OpenMode::Create {
                    if fault == Some(DiskFault::NoSpace) {
                        self.counts.add(fault::NO_SPACE, 1);
                        return Err(Refusal::NO_SPACE);
                    }
                    (node.disk.create(&path)?, 0)
                } else {
                    node.disk.open(&path)?
                };
                let writable = mode != OpenMode::Read;
                let path = subject.to_owned();
                if let Some(life) = &mut node.life {
                    life.files.insert(file, OpenFile { inode, path, writable });
                }
                Ok(Output::Opened { file, bytes })
            }
            name_work => {
                let Some(node) = self.nodes.get_mut(&id) else { return Err(DEVICE) };
                match name_work {
                    DiskWork::Rename { from, to } => {
                        node.disk.rename(&from, &to)?;
                        let (from, to) = (from.display().to_string(), to.display().to_string());
                        let open = node.life.iter_mut().flat_map(|life| life.files.values_mut());
                        open.filter(|file| file.path == from).for_each(|file| file.path.clone_from(&to));
                    }
                    DiskWork::Remove { path } => node.disk.remove(&path)?,
                    DiskWork::CreateDir { path } => node.disk.create_directory(&path)?,
                    DiskWork::SyncDir { path, upto } => {
                        node.disk.sync_directory(&path, upto)?;
                        node.durable_version += 1;
                    }
                    DiskWork::Space { path } => {
                        node.disk.lookup(&path)?;
                        return Ok(Output::Space(node.disk.space()));
                    }
                    DiskWork::List { path } => return Ok(Output::Names(node.disk.list(&path)?)),
                    _ => {}
                }
                if let Some(life) = &node.life {
                    node.disk.collect(&life.open_inodes());
                }
                Ok(Output::Done)
            }
        }
    }

    fn write_effect(
        &mut self,
        id: u64,
        fault: Option<DiskFault>,
        inode: u64,
        offset: u64,
        data: &[Bytes],
        durable: bool,
    ) -> Result<Output, Refusal> {
        let State { nodes, random, counts, .. } = self;
        let Some(node) = nodes.get_mut(&id) else { return Err(DEVICE) };
        let bytes = total(data);
        match fault {
            Some(DiskFault::WriteError) => {
                counts.add(fault::WRITE_ERROR, 1);
                let doomed = random.coin();
                node.disk.write(inode, offset, data, doomed, |_| random.bits() as u8);
                return Err(DEVICE);
            }
            Some(DiskFault::ShortWrite) => {
                counts.add(fault::SHORT_WRITE, 1);
                let pages = random.below(bytes / PAGE);
                let some = prefix(data, usize::try_from(pages * PAGE).unwrap_or(0));
                node.disk.write(inode, offset, &some, false, |_| 0xFF);
                return Err(Refusal::new(IoErrorKind::ShortWrite, "fewer bytes written than asked"));
            }
            Some(DiskFault::SyncError) => {
                node.disk.write(inode, offset, data, false, |_| 0xFF);
                let upto = node.disk.seq();
                fail_sync(node, inode, upto, random, counts);
                return Err(DEVICE);
            }
            _ => {}
        }
        if fault == Some(DiskFault::NoSpace) && random.coin() {
            // A part of it found its place before there was none left.
            node.disk.write(inode, offset, data, false, |_| random.bits() as u8);
        }
        if fault == Some(DiskFault::NoSpace) || !node.disk.has_room(inode, offset + bytes) {
            counts.add(fault::NO_SPACE, 1);
            return Err(Refusal::NO_SPACE);
        }
        let mut offset = offset;
        if fault == Some(DiskFault::Misdirected) {
            counts.add(fault::MISDIRECTED, 1);
            let pages = node.disk.file(inode).map_or(0, |file| file.size() / PAGE);
            offset = random.below(pages.saturating_sub(bytes / PAGE) + 1) * PAGE;
        }
        if durable {
            let runs = node.disk.write_durable(inode, offset, data);
            node.note_durable(inode, runs);
        } else {
            node.disk.write(inode, offset, data, false, |_| 0xFF);
        }
        Ok(Output::Done)
    }
}

fn fail_sync(node: &mut Node, inode: u64, upto: u64, random: &mut Random, counts: &mut fault::FaultCounts) {
    let choices = [
        (SyncLoss::Kept, fault::SYNC_KEPT),
        (SyncLoss::Doomed, fault::SYNC_DOOMED),
        (SyncLoss::Dropped, fault::SYNC_DROPPED),
    ];
    let (loss, name) = *random.pick(&choices).unwrap_or(&choices[0]);
    counts.add(name, 1);
    if let Some(file) = node.disk.file_mut(inode) {
        file.sync_failed(upto, loss, random);
    }
    node.durable_version += 1;
}

/// A read beside writes that are under way sees, sector by sector, what was there or what is coming.
fn race_with_writes(node: &Node, inode: u64, offset: u64, out: &mut [u8], random: &mut Random) {
    let Some(life) = &node.life else { return };
    for slot in life.slots.values() {
        let InFlight::Disk(DiskOp { work: DiskWork::Write { inode: i, offset: start, data, .. }, .. }) = slot
        else {
            continue;
        };
        if *i != inode {
            continue;
        }
        let mut at = *start;
        for sector in data.iter().flat_map(|piece| piece.chunks(SECTOR_BYTES)) {
            let target = at
                .checked_sub(offset)
                .and_then(|from| usize::try_from(from).ok())
                .and_then(|from| out.get_mut(from..from + SECTOR_BYTES));
            if let Some(target) = target
                && random.coin()
            {
                target.copy_from_slice(sector);
            }
            at += SECTOR_BYTES as u64;
        }
    }
}
