//! Space on the disk of the data directory: the file system is asked for it, and a log that has none is waited for.
//!
//! A log that cannot be opened because there is no space for its next segment is no failure of the node: it stays up without replicas, refuses
//! writers as on a full disk, and tries again when there is space. A batch that found none (file systems that write elsewhere,
//! quotas) leaves bytes in doubt, so the log is opened again in place; it then takes no entries for a while, which doubles each time.

use super::Shard;
use crate::partition::Machine;
use crate::space::Need;
use std::collections::BTreeMap;
use std::time::Duration;
use tidelog_io::{Completion, Io, IoErrorKind, Op, Output, Space, Token};
use tidelog_types::{Monotonic, PartitionId};
use tidelog_wal::OpenError;

/// Time between two questions.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The same while space is what is waited for.
const ASK_SOON: Duration = Duration::from_millis(500);
/// A question that was not answered for so long is given up.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// An opening is tried again after so long, though the file system tells of no space.
const TRY_ANYWAY: Duration = Duration::from_secs(30);
/// For how long no entry is taken after a batch found no space: at first, and at most.
const DOUBT_MIN: Duration = Duration::from_secs(1);
const DOUBT_MAX: Duration = Duration::from_secs(30);
/// The number of the question among the engine's own operations.
const QUESTION: u64 = 1 << 55;

/// What the shard knows of its space.
#[derive(Default)]
pub(super) struct Room {
    /// A question is under way since then.
    asked: Option<Monotonic>,
    ask_at: Monotonic,
    told: Option<Space>,
    pub(super) waiting: Option<Waiting>,
    /// The last doubt: until when, and how long it was.
    doubt: Option<(Monotonic, Duration)>,
}

/// A log that is not open for want of space.
pub(super) struct Waiting {
    why: String,
    since: Monotonic,
    /// When it is tried again whatever the file system says.
    anyway: Monotonic,
    /// The file system told of enough since the last try.
    enough: bool,
    machines: BTreeMap<PartitionId, Option<Machine>>,
}

impl Room {
    /// What the file system told last.
    pub(super) fn told(&self) -> Option<Space> {
        self.told
    }

    /// Why the log is not open, if space is the reason.
    pub(super) fn lacking(&self) -> Option<&str> {
        self.waiting.as_ref().map(|waiting| waiting.why.as_str())
    }

    /// When there is something to do.
    pub(super) fn deadline(&self) -> Monotonic {
        let tried = self.waiting.as_ref().map(|waiting| waiting.anyway);
        let ask = if self.asked.is_some() { None } else { Some(self.ask_at) };
        [tried, ask].into_iter().flatten().fold(Monotonic(u64::MAX), Monotonic::min)
    }

    /// A batch found no space: until when no entries are taken. Longer if it was so just before.
    pub(super) fn doubt(&mut self, now: Monotonic) -> Monotonic {
        let long = match self.doubt {
            Some((until, long)) if now.since(until) < DOUBT_MAX => (long * 2).min(DOUBT_MAX),
            _ => DOUBT_MIN,
        };
        let until = now.after(long);
        self.doubt = Some((until, long));
        until
    }

    /// The doubt that still holds.
    pub(super) fn doubted(&self, now: Monotonic) -> Option<Monotonic> {
        self.doubt.map(|(until, _)| until).filter(|until| *until > now)
    }
}

/// Whether an opening failed for want of space.
pub(super) fn is_of_space(error: &OpenError) -> bool {
    match error {
        OpenError::NoSpace { .. } => true,
        OpenError::Io(error) => error.kind == IoErrorKind::NoSpace,
        _ => false,
    }
}

impl Shard {
    /// The log is not open, and is tried again when there is space.
    pub(super) fn wait_for_space(&mut self, why: String, machines: BTreeMap<PartitionId, Option<Machine>>) {
        let (now, before) = (self.clock.now, self.room.waiting.take());
        if before.is_none() {
            tracing::warn!(%why, "the log waits for space: it is opened as soon as there is some");
        }
        self.room.ask_at = now.after(ASK_SOON);
        self.room.waiting = Some(Waiting {
            why,
            since: before.map_or(now, |waiting| waiting.since),
            anyway: now.after(TRY_ANYWAY),
            enough: false,
            machines,
        });
    }

    /// Asks for space, and opens a log that has waited for it.
    pub(super) fn look_after_space(&mut self, io: &mut dyn Io) -> Result<(), crate::Error> {
        let now = self.clock.now;
        if self.room.asked.is_some_and(|asked| now.since(asked) >= ANSWER_MAX) {
            self.room.asked = None;
        }
        if self.room.asked.is_none() && now >= self.room.ask_at {
            let soon =
                self.room.waiting.is_some() || self.life.as_ref().is_some_and(|life| life.wal.is_full());
            self.room.asked = Some(now);
            self.room.ask_at = now.after(if soon { ASK_SOON } else { ASK_EVERY });
            io.submit(Token::engine(QUESTION), Op::Space { path: self.options.data_dir.clone() });
        }
        if self.room.waiting.as_ref().is_none_or(|waiting| !waiting.enough && now < waiting.anyway) {
            return Ok(());
        }
        let Some(waiting) = &mut self.room.waiting else { return Ok(()) };
        let (since, machines) = (waiting.since, std::mem::take(&mut waiting.machines));
        self.open_log(io, machines)?;
        if self.life.is_some() {
            self.room.waiting = None;
            tracing::info!(
                waited_ms = now.since(since).as_millis() as u64,
                "there was space: the log is open"
            );
        }
        Ok(())
    }

    /// The answer, if this is one.
    pub(super) fn told_of_space(&mut self, completion: &Completion) -> bool {
        if completion.token != Token::engine(QUESTION) {
            return false;
        }
        self.room.asked = None;
        let Ok(Output::Space(space)) = &completion.result else { return true };
        let first = self.room.told.replace(*space).is_none();
        if let Some(waiting) = &mut self.room.waiting {
            // One segment is what an opening needs.
            waiting.enough |= space.free_bytes > self.options.segment_bytes;
        }
        if let Some(life) = &mut self.life {
            life.wal.note_space(*space);
        }
        if first {
            let need = Need::of(&self.options);
            match need.lacks(*space, self.log_bytes()) {
                None => tracing::info!("disk space: {}", need.beside(*space)),
                Some(lacks) => tracing::warn!("disk space: {}. It is {lacks}", need.beside(*space)),
            }
        }
        true
    }

    /// Bytes of the log's segments, and of those that are prepared.
    pub(super) fn log_bytes(&self) -> u64 {
        self.life.as_ref().map_or(0, |life| life.wal.disk_bytes())
    }

    /// What is wrong with the space, in words.
    pub(super) fn space_trouble(&self) -> Option<String> {
        if let Some(why) = self.room.lacking() {
            return Some(format!("the log is not open, it waits for space: {why}"));
        }
        let lacks = self.room.told().and_then(|space| Need::of(&self.options).lacks(space, self.log_bytes()));
        let full = self.life.as_ref().is_some_and(|life| life.wal.is_full());
        match (full, lacks) {
            (true, Some(lacks)) => Some(format!("full: appends are refused; {lacks}")),
            (true, None) => Some("full: appends are refused until there is space".to_owned()),
            (false, lacks) => lacks,
        }
    }
}
