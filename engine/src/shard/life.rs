//! One life of a shard's log, from opening to the next: the log, and the replicas on it.

use super::Shard;
use crate::error::Error;
use crate::inbox::RETRY_AFTER;
use crate::partition::{Context, Origin, Partition};
use crate::reads::Reads;
use crate::request::Request;
use crate::returning::Returning;
use crate::snapshot::Snapshots;
use crate::transport::{PeerMessage, Transport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use tidelog_cluster::Placement;
use tidelog_io::Io;
use tidelog_types::{Clock, Monotonic, NodeId, PartitionId};
use tidelog_wal::Wal;

/// The open log and what lives on it: dropped and opened again as one.
pub(super) struct Life {
    pub(super) cluster: u32,
    pub(super) placement: Placement,
    pub(super) wal: Wal,
    pub(super) reads: Reads,
    pub(super) returning: Returning,
    pub(super) replicas: Replicas,
    pub(super) snapshots: Snapshots,
}

/// The replicas of a shard and what is to be done for them.
pub(super) struct Replicas {
    pub(super) partitions: BTreeMap<PartitionId, Partition>,
    /// When each replica wants its tick.
    pub(super) ticks: BTreeSet<(Monotonic, PartitionId)>,
    pub(super) tick_of: BTreeMap<PartitionId, Monotonic>,
    /// Touched in this turn: marks to publish, ticks to reschedule, peers to feed.
    pub(super) touched: BTreeSet<PartitionId>,
    /// Those with damage.
    pub(super) damaged: BTreeSet<PartitionId>,
    /// Entries wait for the log's next batch before they can be sent.
    pub(super) unsent: BTreeSet<PartitionId>,
    /// Peer messages and requests that wait for room in the growing batch, in order.
    pub(super) messages: VecDeque<(NodeId, PeerMessage)>,
    pub(super) requests: VecDeque<(Origin, PartitionId, Request)>,
    /// Snapshots that are due.
    pub(super) due: BTreeSet<PartitionId>,
    /// The disk has no space for another segment.
    pub(super) full: bool,
}

/// A growing batch of so many bytes takes no more from the inbox: with two halves, one is encoded while the other is being written,
/// and a batch that took all there is would leave its writers nothing to do meanwhile.
const BATCH_BYTES_ENOUGH: usize = 2 << 20;

impl Life {
    /// Whether the growing batch has no room for more requests of this process, or should have none.
    pub(super) fn has_enough(&self) -> bool {
        !self.replicas.requests.is_empty() || self.wal.growing_bytes() >= BATCH_BYTES_ENOUGH
    }
}

impl Replicas {
    pub(super) fn touch_all(&mut self) {
        self.touched.extend(self.partitions.keys().copied());
    }

    /// A request in its turn: behind those that wait for room already.
    pub(super) fn give(
        &mut self,
        cx: &mut Context<'_>,
        origin: Origin,
        partition: PartitionId,
        request: Request,
    ) {
        if self.requests.is_empty() {
            self.give_front(cx, origin, partition, request);
        } else {
            self.requests.push_back((origin, partition, request));
        }
    }

    /// The first request in line. False, and it stays first, if there is no room for it.
    pub(super) fn give_front(
        &mut self,
        cx: &mut Context<'_>,
        origin: Origin,
        partition: PartitionId,
        request: Request,
    ) -> bool {
        self.touched.insert(partition);
        let Some(p) = self.partitions.get_mut(&partition) else { return true };
        match p.request(cx, origin, request) {
            Ok(()) => true,
            Err((origin, request)) => {
                self.requests.push_front((origin, partition, request));
                false
            }
        }
    }
}

/// The replicas of a life, and what a call into one of them needs beside it.
pub(super) fn split<'a>(
    life: &'a mut Option<Life>,
    io: &'a mut dyn Io,
    transport: &'a mut dyn Transport,
    clock: Clock,
    addresses: &'a BTreeMap<NodeId, SocketAddr>,
) -> Option<(&'a mut Replicas, Context<'a>)> {
    let Life { cluster, wal, reads, returning, replicas, .. } = life.as_mut()?;
    let cluster = *cluster;
    Some((
        replicas,
        Context { io, wal, transport, reads, returning, clock, cluster, addresses, retry_after: RETRY_AFTER },
    ))
}

impl Shard {
    /// Gives peer messages, and then requests, that waited for room another chance, in order.
    pub(super) fn take_waiting(&mut self, io: &mut dyn Io) {
        let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        else {
            return;
        };
        // Entries that find no room wait in their order; what carries none (heartbeats, votes) does not wait behind them.
        let mut blocked = VecDeque::new();
        for (from, message) in std::mem::take(&mut replicas.messages) {
            if replicas.full && !message.records.is_empty() {
                continue; // the leader sends them again when there is room
            }
            let Some(partition) = replicas.partitions.get_mut(&message.partition) else { continue };
            replicas.touched.insert(message.partition);
            if !blocked.is_empty() && !message.records.is_empty() {
                blocked.push_back((from, message));
            } else if let Some(rest) = partition.message(&mut cx, from, message) {
                blocked.push_back((from, rest));
            }
        }
        replicas.messages = blocked;
        while let Some((origin, partition, request)) = replicas.requests.pop_front() {
            if !replicas.give_front(&mut cx, origin, partition, request) {
                break;
            }
        }
    }

    pub(super) fn tick_replicas(&mut self, io: &mut dyn Io) {
        let now = self.clock.now;
        let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        else {
            return;
        };
        while let Some(&(at, partition)) = replicas.ticks.first() {
            if at > now {
                break;
            }
            replicas.ticks.pop_first();
            replicas.tick_of.remove(&partition);
            replicas.touched.insert(partition);
            if let Some(p) = replicas.partitions.get_mut(&partition) {
                p.tick(&mut cx);
            }
        }
    }

    /// Takes the snapshots' next steps.
    pub(super) fn tick_snapshots(&mut self, io: &mut dyn Io) {
        let Some(mut life) = self.life.take() else { return };
        let Life { cluster, wal, reads, returning, replicas, snapshots, .. } = &mut life;
        for id in std::mem::take(&mut replicas.due) {
            if !snapshots.has(id) {
                snapshots.want(id);
            }
        }
        let mut cx = Context {
            io,
            wal,
            transport: &mut *self.transport,
            reads,
            returning,
            clock: self.clock,
            cluster: *cluster,
            addresses: &self.addresses,
            retry_after: RETRY_AFTER,
        };
        let Replicas { partitions, touched, .. } = replicas;
        snapshots.run(&mut cx, partitions, &mut |id| {
            touched.insert(id);
        });
        self.life = Some(life);
    }

    /// Submits the batch, feeds the peers, flushes the sockets, publishes the marks.
    pub(super) fn finish(&mut self, io: &mut dyn Io) -> Result<(), Error> {
        let now = self.clock.now;
        self.sealing = None;
        if let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        {
            // Touched replicas are the only ones that can have steps without room, and they stay touched meanwhile.
            let mut waiting = BTreeSet::new();
            for id in &replicas.touched {
                if replicas.partitions.get_mut(id).is_some_and(|p| p.write_waiting(&mut cx)) {
                    waiting.insert(*id);
                }
            }
            for id in &replicas.touched {
                match replicas.partitions.get(id).is_some_and(|p| p.replica().damaged_entries() > 0) {
                    true => replicas.damaged.insert(*id),
                    false => replicas.damaged.remove(id),
                };
            }
            // Writers that were just answered may be let into the batch that is about to leave.
            if cx.wal.is_ready() && self.stopping.is_none() {
                self.sealing = cx.returning.wait(self.clock.now, cx.wal.growing_bytes());
            }
            if self.sealing.is_some() {
                // It leaves in a later turn.
            } else if waiting.is_empty() && replicas.damaged.is_empty() {
                // What is damaged is found again by reading the log, which a checkpoint would spare: none is begun meanwhile.
                // Every replica's steps are in the log: it may be saved.
                let partitions = &replicas.partitions;
                cx.wal.flush_saving(cx.io, &mut |id, out| {
                    if let Some(p) = partitions.get(&id) {
                        p.replica().save(out);
                    }
                });
            } else {
                cx.wal.flush(cx.io);
            }
            let mut feed = std::mem::take(&mut replicas.unsent);
            feed.extend(replicas.touched.iter().copied());
            for id in feed {
                if let Some(p) = replicas.partitions.get_mut(&id) {
                    p.seek_repair(&mut cx);
                    if p.pump(&mut cx) {
                        replicas.unsent.insert(id);
                    }
                }
            }
            while let Some(id) = replicas.touched.pop_first() {
                if let Some(p) = replicas.partitions.get(&id) {
                    p.publish();
                    if !replicas.full && p.wants_snapshot(now) {
                        replicas.due.insert(id);
                    }
                    let at = p.deadline();
                    if let Some(old) = replicas.tick_of.insert(id, at) {
                        replicas.ticks.remove(&(old, id));
                    }
                    replicas.ticks.insert((at, id));
                }
            }
            replicas.touched = waiting;
        }
        self.transport.flush(io);
        Ok(())
    }
}
