//! What is in flight: one slot per operation, at an address that never changes.
//!
//! The kernel holds pointers into a slot (the pieces of a vectored write, a message header) and to the buffers
//! that it owns, from the submission to the last completion. So slots are allocated once and never move, and
//! a slot is emptied only when every completion that it awaits has been seen.

use crate::{AlignedBuf, IoError, OpenMode, Token};
use bytes::Bytes;
use std::ffi::CString;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::sys::RawAddress;

/// Room for pieces that a free slot keeps.
const PIECES_KEPT: usize = 256;

/// One operation of the submitter, with all that the kernel may still touch.
pub(super) enum Work {
    /// The slot is free.
    None,
    Open {
        path: PathBuf,
        c_path: CString,
        mode: OpenMode,
    },
    Write {
        file: u64,
        offset: u64,
        data: Vec<Bytes>,
        bytes: usize,
        durable: bool,
        /// The first thing that went wrong.
        failed: Option<IoError>,
    },
    Sync {
        file: u64,
    },
    Read {
        file: u64,
        offset: u64,
        buffer: AlignedBuf,
        filled: usize,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
        c_from: CString,
        c_to: CString,
    },
    Remove {
        path: PathBuf,
        c_path: CString,
    },
    SyncDir {
        path: PathBuf,
        dir: OwnedFd,
    },
    Accept {
        listener: u64,
    },
    Connect {
        socket: OwnedFd,
        address: SocketAddr,
        raw: Box<RawAddress>,
    },
    Send {
        conn: u64,
        data: Vec<Bytes>,
        sent: usize,
        bytes: usize,
    },
    Recv {
        conn: u64,
        buffer: AlignedBuf,
        filled: usize,
    },
}

impl Work {
    /// Whether it counts against the bound on file operations.
    pub(super) fn is_of_files(&self) -> bool {
        !matches!(self, Work::Accept { .. } | Work::Connect { .. } | Work::Send { .. } | Work::Recv { .. })
    }
}

/// See the module.
pub(super) struct Slot {
    pub(super) token: Token,
    pub(super) work: Work,
    /// Completions that the kernel still owes.
    pub(super) awaited: u8,
    pub(super) pieces: Vec<libc::iovec>,
    pub(super) header: libc::msghdr,
}

/// All slots of a ring.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Slots {
        let slot = || Slot {
            token: Token { class: crate::TokenClass::Other, value: 0 },
            work: Work::None,
            awaited: 0,
            pieces: Vec::new(),
            // SAFETY: an all-zero msghdr is a valid value.
            header: unsafe { mem::zeroed() },
        };
        Slots { slots: (0..count).map(|_| slot()).collect(), free: (0..count as u32).rev().collect() }
    }

    /// Occupies a slot. The callers' bounds add up to the number of slots, so there is one.
    pub(super) fn occupy(&mut self, token: Token, work: Work) -> u32 {
        let at = self.free.pop().expect("the bounds of files and sockets add up to the number of slots");
        let slot = &mut self.slots[at as usize];
        assert_eq!(slot.awaited, 0, "a free slot awaits nothing");
        slot.token = token;
        slot.work = work;
        at
    }

    /// Frees a slot; what it held goes back to the caller.
    pub(super) fn release(&mut self, at: u32) -> (Token, Work) {
        let slot = &mut self.slots[at as usize];
        assert_eq!(slot.awaited, 0, "the kernel is done with a slot before it is freed");
        slot.pieces.clear();
        slot.pieces.shrink_to(PIECES_KEPT);
        self.free.push(at);
        (slot.token, mem::replace(&mut slot.work, Work::None))
    }

    pub(super) fn get(&mut self, at: u32) -> &mut Slot {
        &mut self.slots[at as usize]
    }

    /// Slots in use.
    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Those in use, with their places.
    pub(super) fn occupied(&self) -> impl Iterator<Item = (u32, &Slot)> {
        self.slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| !matches!(slot.work, Work::None))
            .map(|(at, slot)| (at as u32, slot))
    }
}
