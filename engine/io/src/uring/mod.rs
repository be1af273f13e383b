//! The back-end over io_uring: one ring for the disk and the sockets of a shard's thread.
//!
//! Everything that may block goes through the ring, so the thread never does; listing and creating directories
//! happen at submission, because they happen only when a shard opens. Only the space of a file system is asked for on another thread. A poll enters the kernel at most once
//! where there is nothing to wait for, and hands over everything that was submitted since the last one.
//!
//! Who owns what: from `submit` to its completion, an operation and its buffers live in a slot that does not
//! move. When the back-end is dropped it ends what is pending on its sockets, waits until the kernel is done with
//! every slot and only then frees them; should a device keep it waiting too long, the slots are leaked instead,
//! since the kernel may still write into their buffers.
//!
//! It has to be used, and dropped, on the thread that opened it.

mod files;
mod lookout;
mod ring;
mod slots;
mod sockets;

use crate::capabilities::Capabilities;
use crate::space::{Asking, outlive_the_file_size_limit};
use crate::sys::{self, Entropy};
use crate::table::Table;
use crate::waking::Bell;
use crate::{BackEnd, BackEndError, BufferPool, Completion, Io, IoError, IoErrorKind, IoOptions, Op, Output};
use crate::{SyncMode, Token, TokenClass, Wait, Waker};
use core::time::Duration;
use files::File;
use io_uring::{opcode, types};
use lookout::Lookout;
use ring::{Ring, Stay};
use slots::{Slots, Work};
use sockets::{Conn, Listener};
use std::collections::VecDeque;
use std::mem;
use std::ops::Range;
use std::path::PathBuf;
use tidelog_types::{Clock, Monotonic};

/// User data of the wake-up read, and of cancellations. Slots have smaller numbers.
const BELL: u64 = u64::MAX;
const CANCELLATION: u64 = u64::MAX - 1;

/// Longest that dropping waits for the kernel.
const FAREWELL: Duration = Duration::from_secs(10);

/// Turns of the processor's waiting loop between two looks at what others write.
const SPINS_PER_LOOK: u32 = 16;
/// The thread does not go without a pause for longer than this, or than that if a file operation takes so long; and pauses for this long.
const SLEEPLESS: Duration = Duration::from_millis(100);
const SLEEPLESS_SLOW: Duration = Duration::from_millis(10);
const REST: Duration = Duration::from_micros(100);
/// In place of the token of an operation that was answered before the kernel was done with it.
const ANSWERED: Token = Token { class: TokenClass::Other, value: u64::MAX };

/// What ended a look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Seen {
    WakeUp,
    Completion,
    Nothing,
}

/// See the module.
pub struct UringIo {
    // Dropped first: nothing is freed that a ring may still refer to.
    ring: Ring,
    slots: Slots,
    /// Eight bytes that the wake-up read fills. Never read.
    bell_word: Box<u64>,
    bell_armed: bool,
    bell: Bell,
    /// For waits with nothing of ours on its way to a disk, and for the others.
    idle: Lookout,
    writing: Lookout,
    options: IoOptions,
    sync: SyncMode,
    files: Table<File>,
    conns: Table<Conn>,
    listeners: Table<Listener>,
    /// File operations in flight, and those waiting in line.
    file_operations: usize,
    backlog: VecDeque<(Token, Work)>,
    socket_operations: usize,
    /// Connections being made or accepted.
    dials: usize,
    ready: Vec<Completion>,
    clock: Clock,
    /// When the core was given away last.
    rested: Monotonic,
    /// Since when there has been some file operation.
    busy_since: Monotonic,
    entropy: Entropy,
    pool: BufferPool,
    /// Addresses of the registered memory.
    registered: Range<usize>,
    capabilities: Capabilities,
    asking: Asking,
    told_of_buffering: bool,
    leaving: bool,
}

impl UringIo {
    /// Opens a ring for the calling thread.
    ///
    /// # Errors
    /// If the kernel refuses, with the reason and what to do about it.
    pub fn open(options: &IoOptions) -> Result<UringIo, BackEndError> {
        if let Err(errno) = sys::raise_descriptor_limit() {
            tracing::debug!(errno, "the limit on descriptors stays as it is");
        }
        outlive_the_file_size_limit();
        let file_slots = usize::from(options.file_operations_max.max(1));
        let slots = file_slots + options.socket_operations_max();
        // A durable write may take two entries; the wake-up read takes one.
        let (ring, mut features, mut switched_off) = Ring::open(slots + file_slots + 1, options)?;
        let arena = ring.register_arena(options.registered_bytes, &mut switched_off);
        let mut registered = 0..0;
        let pool = match arena {
            Some(arena) => {
                let (start, bytes) = arena.span();
                let start = start.as_ptr() as usize;
                registered = start..start + bytes;
                features.registered_bytes = bytes;
                BufferPool::with_arena(options.pool_idle_bytes, arena)
            }
            None => BufferPool::new(options.pool_idle_bytes),
        };
        let bell = Bell::new(0).map_err(|errno| BackEndError::System {
            what: "eventfd",
            message: std::io::Error::from_raw_os_error(errno).to_string(),
        })?;
        for off in &switched_off {
            tracing::info!(what = off.what, why = %off.why, "io_uring: done without");
        }
        let sync = options.sync.resolved();
        Ok(UringIo {
            ring,
            slots: Slots::new(slots),
            bell_word: Box::new(0),
            bell_armed: false,
            bell,
            idle: Lookout::default(),
            writing: Lookout::default(),
            sync,
            files: Table::new(options.files_max),
            conns: Table::new(options.connections_max),
            listeners: Table::new(IoOptions::LISTENERS_MAX),
            file_operations: 0,
            backlog: VecDeque::new(),
            socket_operations: 0,
            dials: 0,
            ready: Vec::new(),
            clock: sys::clock(),
            rested: Monotonic::default(),
            busy_since: Monotonic::default(),
            entropy: Entropy::new(),
            pool,
            registered,
            capabilities: Capabilities { back_end: BackEnd::Uring, ring: Some(features), sync, switched_off },
            asking: Asking::default(),
            told_of_buffering: false,
            leaving: false,
            options: options.clone(),
        })
    }

    /// What this back-end found and what it does without.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The kernel has had no memory for submissions for longer than a write may wait.
    fn is_starved(&self) -> bool {
        self.ring.refused_for() >= self.options.starved_max
    }

    /// Answers the writes and syncs in flight with an error: whether they happen is not known, as after any failed write. What the kernel may still touch
    /// stays in place until it is done with it, and its late answers are nobody's.
    fn fail_writes(&mut self) {
        let failed = self.slots.occupied().filter_map(|(at, slot)| match slot.work {
            Work::Write { file, .. } if slot.token != ANSWERED => Some((at, "write", file)),
            Work::Sync { file } if slot.token != ANSWERED => Some((at, "sync", file)),
            _ => None,
        });
        for (at, operation, file) in failed.collect::<Vec<_>>() {
            let token = mem::replace(&mut self.slots.get(at).token, ANSWERED);
            self.ready.push(Completion { token, result: Err(self.starved(operation, file)) });
        }
    }

    fn starved(&self, operation: &'static str, file: u64) -> IoError {
        let path = self.files.get(file).map_or(PathBuf::new(), |file| file.path.clone());
        let message =
            format!("the kernel has had no memory for io_uring_enter for {:?}", self.options.starved_max);
        IoError { kind: IoErrorKind::Device, operation, subject: path.display().to_string(), message }
    }

    fn finish(&mut self, token: Token, result: Result<Output, IoError>) {
        if token == ANSWERED {
            return;
        }
        self.ready.push(Completion { token, result });
    }

    fn begin(&mut self, token: Token, op: Op) -> Result<(), IoError> {
        match op {
            Op::Open { .. }
            | Op::CloseFile { .. }
            | Op::Write { .. }
            | Op::WriteDurable { .. }
            | Op::Sync { .. }
            | Op::Read { .. }
            | Op::Locate { .. }
            | Op::Rename { .. }
            | Op::Remove { .. }
            | Op::CreateDir { .. }
            | Op::SyncDir { .. }
            | Op::List { .. } => self.begin_file(token, op),
            Op::Space { path } => self.asking.begin(token, path, self.bell.waker()),
            Op::Listen { .. }
            | Op::Accept { .. }
            | Op::Connect { .. }
            | Op::Send { .. }
            | Op::Recv { .. }
            | Op::Close { .. }
            | Op::CloseListener { .. } => self.begin_socket(token, op),
        }
    }

    /// Puts work into a slot and starts it; the bounds have been checked.
    fn start(&mut self, token: Token, work: Work) {
        let of_files = work.is_of_files();
        let at = self.slots.occupy(token, work);
        if of_files {
            if self.file_operations == 0 {
                self.busy_since = self.clock.now;
            }
            self.file_operations += 1;
            self.issue_file(at);
        } else {
            self.socket_operations += 1;
            self.issue_socket(at);
        }
    }

    /// Frees a slot whose completions have all come; starts what waited for it.
    fn vacate(&mut self, at: u32) -> (Token, Work) {
        let (token, work) = self.slots.release(at);
        if work.is_of_files() {
            self.file_operations -= 1;
            if !self.leaving
                && let Some((token, work)) = self.backlog.pop_front()
            {
                self.start(token, work);
            }
        } else {
            self.socket_operations -= 1;
        }
        (token, work)
    }

    /// One completion of the ring.
    fn settle(&mut self, user_data: u64, result: i32) {
        match user_data {
            BELL => self.bell_armed = false,
            CANCELLATION => {}
            slot => {
                let (at, part) = ((slot >> 1) as u32, slot & 1);
                let slot = self.slots.get(at);
                assert!(slot.awaited > 0, "a completion belongs to an operation in flight");
                slot.awaited -= 1;
                if slot.work.is_of_files() {
                    self.settle_file(at, part, result);
                } else {
                    self.settle_socket(at, result);
                }
            }
        }
    }

    fn settle_all(&mut self) {
        let reaped = self.ring.reap();
        for (user_data, result) in &reaped {
            self.settle(*user_data, *result);
        }
        self.ring.give_back(reaped);
    }

    /// Sees to it that a wake-up ends a wait.
    fn arm_bell(&mut self) {
        if self.bell_armed {
            return;
        }
        self.bell_armed = true;
        let word: *mut u64 = &mut *self.bell_word;
        let entry = opcode::Read::new(types::Fd(self.bell.fd()), word.cast(), size_of::<u64>() as u32)
            .build()
            .user_data(BELL);
        // SAFETY: the word is on the heap, used by nobody else, and outlives the read: see `drop`.
        unsafe { self.ring.push(&[entry]) };
    }

    /// Waits, at first perhaps without sleeping. True: woken by another thread.
    fn wait(&mut self, wait: Wait) -> bool {
        let began = sys::monotonic();
        let writing = self.file_operations > 0;
        let look_until = match wait {
            Wait::Briefly(until) if until.since(began) <= lookout::UNTIMED => Some(until),
            Wait::Until(deadline) => self.lookout(writing).until(began).map(|until| until.min(deadline)),
            _ => self.lookout(writing).until(began),
        };
        if let Some(until) = look_until {
            let seen = self.look(until);
            if !matches!(wait, Wait::Briefly(_)) {
                self.lookout(writing).looked(seen != Seen::Nothing);
            }
            if seen != Seen::Nothing {
                return seen == Seen::WakeUp;
            }
        }
        let woken = match stay(wait) {
            Stay::No => false,
            stay => self.sleep(stay),
        };
        if look_until.is_none() {
            self.lookout(writing).slept(sys::monotonic().since(began), woken);
        }
        woken
    }

    fn lookout(&mut self, writing: bool) -> &mut Lookout {
        if writing { &mut self.writing } else { &mut self.idle }
    }

    /// Looks out without sleeping.
    fn look(&mut self, until: Monotonic) -> Seen {
        self.ring.enter(Stay::No);
        loop {
            if self.bell.rang() {
                return Seen::WakeUp;
            }
            if self.ring.has_news() {
                return Seen::Completion;
            }
            if sys::monotonic() >= until {
                return Seen::Nothing;
            }
            for _ in 0..SPINS_PER_LOOK {
                core::hint::spin_loop();
            }
        }
    }

    /// Gives the core away for a moment, if this thread has not slept for long. A durable write ends on a worker of the kernel that is bound to
    /// a core. Where this thread and another one wake each other without a pause (reads that are answered from memory in a closed
    /// loop), that worker has been seen to wait for as long as they went on, whoever's write it was (Linux 6.18). A sleep that a
    /// wake-up ends, or that is short, is no pause: the other thread ran meanwhile.
    fn rest(&mut self) {
        let now = self.clock.now;
        let slow = self.file_operations > 0 && now.since(self.busy_since) >= SLEEPLESS_SLOW;
        let sleepless = if slow { SLEEPLESS_SLOW } else { SLEEPLESS };
        if now.since(self.rested) >= sleepless {
            self.ring.enter(Stay::No);
            sys::pause(REST);
            self.rested = sys::monotonic();
        }
    }

    /// Waits in the kernel. True: woken by another thread.
    fn sleep(&mut self, stay: Stay) -> bool {
        self.arm_bell();
        if !self.bell.lie_down() {
            self.ring.enter(Stay::No);
            return true;
        }
        let began = sys::monotonic();
        self.ring.enter(stay);
        let (woken, now) = (self.bell.get_up(), sys::monotonic());
        if !woken && now.since(began) >= REST {
            self.rested = now;
        }
        woken
    }
}

/// How long `wait` may still last.
fn stay(wait: Wait) -> Stay {
    match wait {
        Wait::No => Stay::No,
        Wait::Until(deadline) | Wait::Briefly(deadline) => match deadline.since(sys::monotonic()) {
            Duration::ZERO => Stay::No,
            left => Stay::AtMost(left),
        },
        Wait::Forever => Stay::Forever,
    }
}

impl Io for UringIo {
    fn submit(&mut self, token: Token, op: Op) {
        if let Err(error) = self.begin(token, op) {
            self.finish(token, Err(error));
        }
    }

    fn poll(&mut self, wait: Wait, out: &mut Vec<Completion>) -> usize {
        self.rest();
        let mut woken = self.bell.rang();
        loop {
            let stay = stay(wait);
            let idle = self.ready.is_empty() && !woken && !self.ring.has_completions();
            let waits = idle && !matches!(stay, Stay::No);
            if waits {
                woken = self.wait(wait);
            } else {
                self.ring.enter(Stay::No);
            }
            self.settle_all();
            if self.is_starved() {
                self.fail_writes();
            }
            self.asking.answers(&mut self.ready);
            if !self.ready.is_empty() || woken || matches!(stay, Stay::No) {
                break;
            }
        }
        self.clock = sys::clock();
        let count = self.ready.len();
        out.append(&mut self.ready);
        count
    }

    fn clock(&self) -> Clock {
        self.clock
    }

    fn moment(&self) -> Monotonic {
        sys::monotonic()
    }

    fn random(&mut self) -> u64 {
        self.entropy.next()
    }

    fn buffers(&self) -> BufferPool {
        self.pool.clone()
    }

    fn waker(&self) -> Waker {
        self.bell.waker()
    }
}

impl Drop for UringIo {
    fn drop(&mut self) {
        self.leaving = true;
        self.shut_down_sockets();
        self.ring.enter(Stay::No);
        let mut pending: Vec<u64> = self
            .slots
            .occupied()
            .filter(|(_, slot)| !slot.work.is_of_files())
            .map(|(at, _)| u64::from(at) << 1)
            .collect();
        if self.bell_armed {
            pending.push(BELL);
        }
        for user_data in pending {
            let entry = opcode::AsyncCancel::new(user_data).build().user_data(CANCELLATION);
            // SAFETY: a cancellation points to nothing.
            if !unsafe { self.ring.offer(&[entry]) } {
                break; // the kernel takes nothing more just now: it is waited for below
            }
        }
        let deadline = sys::monotonic().after(FAREWELL);
        while self.slots.in_use() > 0 || self.bell_armed {
            let left = deadline.since(sys::monotonic());
            if left.is_zero() || self.is_starved() {
                tracing::warn!(
                    operations = self.slots.in_use(),
                    "the kernel did not finish in time: buffers are leaked"
                );
                // The kernel may still write into them, and nobody will hear of it when it no longer does.
                std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(0)));
                Box::leak(std::mem::take(&mut self.bell_word));
                std::mem::forget(self.pool.clone());
                return;
            }
            self.ring.enter(Stay::AtMost(left));
            self.settle_all();
        }
    }
}
