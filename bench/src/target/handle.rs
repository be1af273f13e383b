//! An engine in this process through its public handle, as an embedder uses it: its shard on a thread of its own.
//!
//! All records in flight are futures of one thread; a completed one names itself in a list, and the first of a list
//! wakes the thread. So the handle's own costs are in the figures: a queue, a wake-up of the shard, a wake-up of the caller.

use super::{Rotation, outcome_of};
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::load::{Done, Outcome, Target};
use bytes::Bytes;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;
use std::thread::Thread;
use tidelog::Pending;
use tidelog::config::Config;
use tidelog::{Engine, Partition, Position};
use tidelog_types::PartitionId;

/// See the module.
pub struct HandleTarget {
    engine: Engine,
    partitions: Vec<Partition>,
    rotation: Rotation,
    woken: Arc<Woken>,
    batch: Vec<usize>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    done: Vec<Done>,
}

/// Room for one record in flight.
struct Slot {
    tag: u64,
    answer: Option<Pending<Position>>,
    waker: Waker,
}

/// Records whose answer is there.
#[derive(Debug)]
struct Woken {
    slots: Mutex<Vec<usize>>,
    thread: Thread,
}

struct SlotWaker {
    slot: usize,
    woken: Arc<Woken>,
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        let mut slots = self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push(self.slot);
        let first = slots.len() == 1;
        drop(slots);
        if first {
            self.woken.thread.unpark();
        }
    }
}

impl HandleTarget {
    /// Opens a single node. The thread that calls this is the one that drives the load.
    ///
    /// # Errors
    /// If the engine does not open.
    pub fn open(config: Config) -> Result<HandleTarget, BenchError> {
        let count = config.cluster.partitions;
        let engine = Engine::open(config)?;
        let partitions: Vec<Partition> =
            (0..count).filter_map(|id| engine.partition_by_id(PartitionId(id))).collect();
        assert_eq!(partitions.len() as u64, count, "a single node has every partition");
        Ok(HandleTarget {
            engine,
            partitions,
            rotation: Rotation::new(count),
            woken: Arc::new(Woken { slots: Mutex::new(Vec::new()), thread: std::thread::current() }),
            batch: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            done: Vec::new(),
        })
    }

    fn slot(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let waker = Waker::from(Arc::new(SlotWaker { slot, woken: Arc::clone(&self.woken) }));
            self.slots.push(Slot { tag: 0, answer: None, waker });
            slot
        })
    }

    /// Asks for a record's answer; the first time, so that it names itself when it is there.
    fn look(&mut self, slot: usize) {
        let Slot { tag, answer, waker } = &mut self.slots[slot];
        let Some(future) = answer else { return };
        let outcome = match Pin::new(future).poll(&mut Context::from_waker(waker)) {
            Poll::Pending => return,
            Poll::Ready(Ok(_)) => Outcome::Acked,
            Poll::Ready(Err(error)) => outcome_of(&error),
        };
        self.done.push(Done { tag: *tag, outcome });
        *answer = None;
        self.free.push(slot);
    }
}

impl Target for HandleTarget {
    fn submit(&mut self, tag: u64, payload: Bytes) {
        let slot = self.slot();
        let partition = self.rotation.next();
        // Dense from 0, as `open` asserts.
        let partition = &self.partitions[partition.0 as usize];
        let answer = partition.append(payload);
        self.slots[slot].tag = tag;
        self.slots[slot].answer = Some(answer);
        self.look(slot);
    }

    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
        loop {
            let mut batch = core::mem::take(&mut self.batch);
            core::mem::swap(
                &mut batch,
                &mut *self.woken.slots.lock().unwrap_or_else(PoisonError::into_inner),
            );
            for slot in batch.drain(..) {
                self.look(slot);
            }
            self.batch = batch;
            done.append(&mut self.done);
            let left = until.since(clock::now());
            if !done.is_empty() || left.is_zero() {
                return Ok(());
            }
            std::thread::park_timeout(left);
        }
    }

    fn close(self: Box<Self>) -> Result<(), BenchError> {
        Ok(self.engine.close()?)
    }
}
