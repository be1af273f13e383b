//! One node: a machine with a disk and a clock, and at most one process at a time, its *life*.

use crate::clock::NodeClock;
use crate::disk::{Disk, Inode};
use crate::fault::{DiskFault, DiskFaults};
use crate::file::PageRun;
use crate::network::{Endpoint, Listener, Packet};
use crate::random::Random;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use tidelog_io::{AlignedBuf, Completion, ConnId, FileId, IoError, IoErrorKind, ListenerId, OpenMode, Token};

/// On which side of an operation's effect a crash falls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// It has not reached the disk at all.
    Before,
    /// It was under way: any part of it may have happened.
    Inside,
    /// It is on the disk, and the process never heard.
    After,
    /// A write was under way, and of its sectors exactly these are on the disk: bit n stands for the n-th, and none
    /// behind the 64th. Any other operation: [`Moment::Inside`].
    Sectors(u64),
}

/// A write, as far as it can be torn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteShape {
    /// Its number, as [`crate::World::crash_at`] counts.
    pub number: u64,
    /// How many sectors it has.
    pub sectors: u64,
    /// Those that were not surely on the disk before, as in [`Moment::Sectors`]: the others make no difference.
    pub changed: u64,
}

/// What happens on a node, at its time, by itself.
#[derive(Debug)]
pub(crate) enum Event {
    /// An operation of a life comes to its end.
    Slot { life: u64, slot: u64 },
    /// Something arrives from the network.
    Packet(Packet),
    /// An attempt to connect has waited long enough.
    ConnectTimeout { conn: ConnId },
}

/// An operation that the process waits for.
#[derive(Debug)]
pub(crate) enum InFlight {
    /// Has its effect when its time comes.
    Disk(DiskOp),
    /// Has had its effect.
    Done(Completion),
}

/// An operation on the disk.
#[derive(Debug)]
pub(crate) struct DiskOp {
    pub(crate) token: Token,
    /// Which of the life's operations that change the disk it is.
    pub(crate) number: Option<u64>,
    pub(crate) subject: String,
    pub(crate) work: DiskWork,
}

#[derive(Debug)]
pub(crate) enum DiskWork {
    Open { path: PathBuf, mode: OpenMode },
    Write { inode: Inode, offset: u64, data: Vec<Bytes>, durable: bool },
    Sync { inode: Inode, upto: u64 },
    Read { inode: Inode, offset: u64, buffer: AlignedBuf },
    Locate { inode: Inode },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    CreateDir { path: PathBuf },
    SyncDir { path: PathBuf, upto: u64 },
    List { path: PathBuf },
    Space { path: PathBuf },
}

impl DiskWork {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            DiskWork::Open { .. } => "open",
            DiskWork::Write { durable: false, .. } => "write",
            DiskWork::Write { durable: true, .. } => "write durable",
            DiskWork::Sync { .. } => "sync",
            DiskWork::Read { .. } => "read",
            DiskWork::Locate { .. } => "locate",
            DiskWork::Rename { .. } => "rename",
            DiskWork::Remove { .. } => "remove",
            DiskWork::CreateDir { .. } => "create directory",
            DiskWork::SyncDir { .. } => "sync directory",
            DiskWork::List { .. } => "list",
            DiskWork::Space { .. } => "ask for space of",
        }
    }

    /// Whether it changes what a power loss leaves.
    pub(crate) const fn changes_disk(&self) -> bool {
        match self {
            DiskWork::Open { mode, .. } => matches!(mode, OpenMode::Create),
            DiskWork::Read { .. }
            | DiskWork::Locate { .. }
            | DiskWork::List { .. }
            | DiskWork::Space { .. } => false,
            _ => true,
        }
    }

    /// Bytes that it moves.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            DiskWork::Write { data, .. } => crate::file::total(data),
            DiskWork::Read { buffer, .. } => buffer.len() as u64,
            _ => 0,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct OpenFile {
    pub(crate) inode: Inode,
    pub(crate) path: String,
    pub(crate) writable: bool,
}

/// A process.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) number: u64,
    /// Completions for the next poll.
    pub(crate) ready: VecDeque<Completion>,
    pub(crate) slots: BTreeMap<u64, InFlight>,
    pub(crate) files: BTreeMap<FileId, OpenFile>,
    pub(crate) conns: BTreeMap<ConnId, Endpoint>,
    pub(crate) connecting: BTreeMap<ConnId, (Token, SocketAddr)>,
    pub(crate) listeners: BTreeMap<ListenerId, Listener>,
    /// Operations so far that change the disk.
    pub(crate) disk_ops: u64,
}

impl Life {
    pub(crate) const fn new(number: u64) -> Life {
        Life {
            number,
            ready: VecDeque::new(),
            slots: BTreeMap::new(),
            files: BTreeMap::new(),
            conns: BTreeMap::new(),
            connecting: BTreeMap::new(),
            listeners: BTreeMap::new(),
            disk_ops: 0,
        }
    }

    /// Everything that the process still waits for.
    fn tokens(&self) -> Vec<Token> {
        let mut out: Vec<Token> = self.ready.iter().map(|c| c.token).collect();
        out.extend(self.slots.values().map(|slot| match slot {
            InFlight::Disk(op) => op.token,
            InFlight::Done(completion) => completion.token,
        }));
        for conn in self.conns.values() {
            out.extend(conn.tokens());
        }
        out.extend(self.connecting.values().map(|(token, _)| *token));
        out.extend(self.listeners.values().flat_map(|l| l.accepting.iter().copied()));
        out
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.slots.len() + self.connecting.len() + self.ready.len()
    }

    pub(crate) fn open_inodes(&self) -> BTreeSet<Inode> {
        let writing = self.slots.values().filter_map(|slot| match slot {
            InFlight::Disk(DiskOp { work, .. }) => match work {
                DiskWork::Write { inode, .. }
                | DiskWork::Sync { inode, .. }
                | DiskWork::Read { inode, .. }
                | DiskWork::Locate { inode } => Some(*inode),
                _ => None,
            },
            InFlight::Done(_) => None,
        });
        self.files.values().map(|f| f.inode).chain(writing).collect()
    }
}

/// A machine.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) disk: Disk,
    pub(crate) faults: DiskFaults,
    /// Ordered faults, each for the next operation that it fits.
    pub(crate) next_faults: Vec<DiskFault>,
    /// Ordered faults by number of the operation.
    pub(crate) faults_at: BTreeMap<u64, DiskFault>,
    pub(crate) crash_at: Option<(u64, Moment)>,
    pub(crate) clock: NodeClock,
    pub(crate) lives: u64,
    pub(crate) life: Option<Life>,
    /// Operations that changed the disk in the life before this one, while there is none.
    pub(crate) disk_ops_last: u64,
    /// Whether the machine answers packets: off from a power loss until the next boot.
    pub(crate) powered: bool,
    pub(crate) queue: BTreeMap<(u64, u64), Event>,
    /// The node has used up the time before this.
    pub(crate) busy_until: u64,
    pub(crate) paused_until: u64,
    /// No operation on its disk ends before this, and none fails: the disk hangs.
    pub(crate) hung_until: u64,
    /// When it wants a turn.
    pub(crate) deadline: Option<u64>,
    /// It was given a turn and has not polled yet.
    pub(crate) offered: bool,
    pub(crate) random: Random,
    /// Completions of lives that are over.
    pub(crate) graves: BTreeMap<u64, VecDeque<Completion>>,
    /// Arrived over a blocked link, by sender: waits for the heal.
    pub(crate) stalled: BTreeMap<u64, VecDeque<Packet>>,
    pub(crate) next_port: u16,
    /// Ranges that became durable, for whoever watches.
    pub(crate) durable_log: Option<Vec<(Inode, PageRun)>>,
    /// The writes, for whoever watches.
    pub(crate) write_log: Option<Vec<WriteShape>>,
    /// Counts changes of what is durable.
    pub(crate) durable_version: u64,
}

impl Node {
    pub(crate) fn new(id: u64, now: u64, random: Random, boot_clock: u64) -> Node {
        Node {
            id,
            disk: Disk::new(),
            faults: DiskFaults::NONE,
            next_faults: Vec::new(),
            faults_at: BTreeMap::new(),
            crash_at: None,
            clock: NodeClock::new(now, boot_clock),
            lives: 0,
            life: None,
            disk_ops_last: 0,
            powered: false,
            queue: BTreeMap::new(),
            busy_until: now,
            paused_until: 0,
            hung_until: 0,
            deadline: None,
            offered: false,
            random,
            graves: BTreeMap::new(),
            stalled: BTreeMap::new(),
            next_port: 40_000,
            durable_log: None,
            write_log: None,
            durable_version: 0,
        }
    }

    pub(crate) fn is_life(&self, number: u64) -> bool {
        self.life.as_ref().is_some_and(|life| life.number == number)
    }

    /// True time of this node's next turn, if it wants one.
    pub(crate) fn wants_turn_at(&self) -> Option<u64> {
        let life = self.life.as_ref()?;
        if self.offered {
            return None;
        }
        let wanted = if life.ready.is_empty() { self.deadline? } else { 0 };
        Some(wanted.max(self.busy_until).max(self.paused_until))
    }

    /// What became durable is told.
    pub(crate) fn note_durable(&mut self, inode: Inode, runs: Vec<PageRun>) {
        self.durable_version += 1;
        if let Some(log) = &mut self.durable_log {
            log.extend(runs.into_iter().map(|run| (inode, run)));
        }
    }

    /// Ends a life: everything that it waits for is cancelled.
    pub(crate) fn bury(&mut self, life: &Life) {
        let grave = self.graves.entry(life.number).or_default();
        grave.extend(life.tokens().into_iter().map(|token| cancelled(token, "the process is gone")));
        self.disk_ops_last = life.disk_ops;
        self.deadline = None;
        self.offered = false;
        self.crash_at = None;
        self.faults_at.clear();
        self.next_faults.clear();
    }
}

pub(crate) fn failed(
    token: Token,
    kind: IoErrorKind,
    operation: &'static str,
    subject: &str,
    message: &str,
) -> Completion {
    Completion {
        token,
        result: Err(IoError { kind, operation, subject: subject.to_owned(), message: message.to_owned() }),
    }
}

pub(crate) fn cancelled(token: Token, why: &str) -> Completion {
    failed(token, IoErrorKind::Cancelled, "wait", "", why)
}
