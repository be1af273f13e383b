//! The program that a node is part of: it appends and reads through the engine's own handles, without a client and its connection.
//!
//! It has its turn behind the shard's, on the same thread, so nothing here waits: futures are polled, and many of them dropped. It promises to
//! judge what it is told as a client's answers are, and that what a pin holds is still there (invariant 10).

use crate::checkers::{Appending, Checkers, Verdict, broken, ensure};
use crate::payload::Ident;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin as Pinned;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tidelog::engine::Handles;
use tidelog::{AppendQueue, Appended, Level, Partition, Pending, Pin, PinFor, Position, RequestError, Shard};
use tidelog_sim::Random;
use tidelog_types::{Index, Monotonic, PartitionId};

/// The first of them in payloads; a node's process each.
const EMBEDDERS_FROM: u64 = 1_000;
/// Of its requests that a future each waits for, at most.
const PENDING_MAX: usize = 16;
/// In a queue.
const QUEUED_MAX: usize = 32;
const PINS_MAX: usize = 3;
/// Mean time between two of its operations.
const INTERVAL_NS: u64 = 20_000_000;
const PAYLOAD_MAX: u64 = 4096;

/// What came of all of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Embedded {
    pub(crate) answers: u64,
    pub(crate) queued: u64,
    pub(crate) dropped: u64,
    pub(crate) reads: u64,
    pub(crate) pins: u64,
}

/// One of a node's process.
pub(crate) struct Embedder {
    id: u64,
    handles: Handles,
    partitions: u64,
    random: Random,
    next_at: Monotonic,
    number: u64,
    pending: VecDeque<(Appending, Pending<Position>)>,
    reads: VecDeque<(u64, Pending<tidelog::Read>)>,
    queue: AppendQueue,
    queued: BTreeMap<u64, Appending>,
    answers: Vec<Appended>,
    pins: Vec<(u64, Pin)>,
    done: Embedded,
}

impl std::ops::AddAssign for Embedded {
    fn add_assign(&mut self, more: Embedded) {
        let Embedded { answers, queued, dropped, reads, pins } = more;
        self.answers += answers;
        self.queued += queued;
        self.dropped += dropped;
        self.reads += reads;
        self.pins += pins;
    }
}

impl Embedder {
    pub(crate) fn new(node: u64, boot: u64, partitions: u64, handles: Handles, random: Random) -> Embedder {
        Embedder {
            id: EMBEDDERS_FROM * node + boot,
            queue: handles.append_queue(QUEUED_MAX),
            handles,
            partitions,
            random,
            next_at: Monotonic(0),
            number: 0,
            pending: VecDeque::new(),
            reads: VecDeque::new(),
            queued: BTreeMap::new(),
            answers: Vec::new(),
            pins: Vec::new(),
            done: Embedded::default(),
        }
    }

    /// What came of it so far.
    pub(crate) fn done(&self) -> Embedded {
        self.done
    }

    /// Whether it waits for nothing.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.reads.is_empty() && self.queued.is_empty()
    }

    /// Behind a turn of `shard`. Whether it asks for anything new, and whether it pins logs.
    pub(crate) fn turn(
        &mut self,
        now: Monotonic,
        asks: bool,
        pins: bool,
        shard: &Shard,
        checkers: &mut Checkers,
    ) -> Verdict {
        self.take_answers(checkers)?;
        self.judge_pins(shard)?;
        if !pins {
            self.pins.clear();
        }
        while asks && now >= self.next_at {
            let interval = Duration::from_nanos(self.random.between((0, 2 * INTERVAL_NS)));
            self.next_at = self.next_at.max(now).after(interval);
            let partition = self.random.below(self.partitions);
            if let Some(handle) = self.handles.partition_by_id(PartitionId(partition)) {
                self.act(partition, &handle, pins, checkers)?;
            }
        }
        self.queue.submit();
        Ok(())
    }

    fn act(&mut self, partition: u64, handle: &Partition, pins: bool, checkers: &mut Checkers) -> Verdict {
        match self.random.below(100) {
            0..=29 if self.pending.len() < PENDING_MAX => {
                let (append, payload) = self.append(partition, checkers);
                self.pending.push_back((append, handle.append(payload)));
            }
            30..=49 => {
                // Nobody learns what became of it.
                let (_, payload) = self.append(partition, checkers);
                drop(handle.append(payload));
                self.done.dropped += 1;
            }
            50..=74 => {
                for _ in 0..self.random.between((1, 8)) {
                    let (append, payload) = self.append(partition, checkers);
                    match self.queue.append(handle, append.ident.number, payload) {
                        Ok(()) => _ = self.queued.insert(append.ident.number, append),
                        Err(error) => checkers.denied(&append, &error.to_string())?,
                    }
                }
            }
            75..=76 => {
                let left = std::mem::replace(&mut self.queue, self.handles.append_queue(QUEUED_MAX));
                self.done.dropped += left.in_flight() as u64;
                self.queued.clear();
            }
            77..=79 => self.done.dropped += u64::from(self.pending.pop_front().is_some()),
            80..=89 if self.reads.len() < PENDING_MAX => {
                let marks = handle.marks();
                let from = self.random.between((marks.first_readable.0, marks.high_water.0 + 1));
                let read = handle.read(Index(from).., Level::Local);
                // A read that nobody waits for any more.
                if self.random.below(4) == 0 { drop(read) } else { self.reads.push_back((partition, read)) }
            }
            90..=92 if pins && self.pins.len() < PINS_MAX => {
                let marks = handle.marks();
                let first = self.random.between((marks.low_water.0, marks.high_water.0 + 1));
                let purpose = if self.random.coin() { PinFor::Reader } else { PinFor::Backup };
                if let Ok(pin) = handle.pin(Index(first), purpose) {
                    self.pins.push((partition, pin));
                    self.done.pins += 1;
                }
            }
            93..=96 => {
                if let Some((partition, pin)) = self.random.pick(&self.pins)
                    && let Some(handle) = self.handles.partition_by_id(PartitionId(*partition))
                {
                    pin.advance(handle.marks().applied);
                }
            }
            97..=99 if !self.pins.is_empty() => drop(self.pins.remove(0)),
            _ => {}
        }
        Ok(())
    }

    fn append(&mut self, partition: u64, checkers: &Checkers) -> (Appending, bytes::Bytes) {
        self.number += 1;
        let ident = Ident { client: self.id, number: self.number, random: self.random.bits() };
        let len = usize::try_from(self.random.between((0, PAYLOAD_MAX))).unwrap_or(0);
        let floor = checkers.history.floor(partition);
        (Appending { partition, ident, session: None, floor }, ident.payload(len))
    }

    fn take_answers(&mut self, checkers: &mut Checkers) -> Verdict {
        let mut cx = Context::from_waker(Waker::noop());
        for (append, mut pending) in std::mem::take(&mut self.pending) {
            match Pinned::new(&mut pending).poll(&mut cx) {
                Poll::Ready(result) => self.answered(&append, result, checkers)?,
                Poll::Pending => self.pending.push_back((append, pending)),
            }
        }
        for (partition, mut read) in std::mem::take(&mut self.reads) {
            match Pinned::new(&mut read).poll(&mut cx) {
                Poll::Ready(Ok(read)) => {
                    self.done.reads += 1;
                    for record in read.records {
                        let committed = checkers.commits_mut().get(partition, record.index.0);
                        let found = Ident::of(&record.payload);
                        ensure(5, committed.is_some_and(|entry| entry.ident == found), || {
                            format!(
                                "embedder {}: partition {partition} index {} was read as {found:?}, committed is {committed:?}",
                                self.id, record.index
                            )
                        })?;
                    }
                }
                Poll::Ready(Err(_)) => {}
                Poll::Pending => self.reads.push_back((partition, read)),
            }
        }
        let mut answers = std::mem::take(&mut self.answers);
        _ = self.queue.poll(&mut cx, &mut answers);
        for answer in answers.drain(..) {
            let Some(append) = self.queued.remove(&answer.tag) else {
                return broken(
                    17,
                    format!("embedder {}: an answer to what was not queued: {answer:?}", self.id),
                );
            };
            self.done.queued += 1;
            self.answered(&append, answer.result, checkers)?;
        }
        self.answers = answers;
        Ok(())
    }

    fn answered(
        &mut self,
        append: &Appending,
        result: Result<Position, RequestError>,
        checkers: &mut Checkers,
    ) -> Verdict {
        self.done.answers += 1;
        match result {
            Ok(position) => {
                let (history, commits) = checkers.clients();
                history.acked(append, position.index.0, position.generation.0, commits)
            }
            Err(RequestError::Unknown) => Ok(()),
            Err(error) => checkers.denied(append, &error.to_string()),
        }
    }

    /// The shard keeps what is pinned.
    fn judge_pins(&self, shard: &Shard) -> Verdict {
        self.pins.iter().try_for_each(|(partition, pin)| {
            let Some(replica) = shard.replica(PartitionId(*partition)) else { return Ok(()) };
            let (low, first) = (replica.marks().low_water, pin.first());
            ensure(10, first.is_none_or(|first| low <= first), || {
                format!("embedder {}: partition {partition} is pinned from {first:?} on, it is kept from {low} on", self.id)
            })
        })
    }
}
