//! One life of a shard's log, from opening to the next: the log, and the replicas on it.

use super::Shard;
use super::arrivals::Arrivals;
use super::replicas::{AHEAD, Partitions, Ticks, Touched};
use crate::error::Error;
use crate::inbox::RETRY_AFTER;
use crate::marks::Leadership;
use crate::partition::{Context, Origin, Shared};
use crate::reads::{Reads, TURN_BYTES_MAX, TURN_READS_MAX};
use crate::request::Request;
use crate::returning::Returning;
use crate::snapshot::Snapshots;
use crate::transport::{PeerMessage, Transport};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use tidelog_cluster::Placement;
use tidelog_consensus::Disk;
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
    pub(super) shared: Shared,
    pub(super) replicas: Replicas,
    pub(super) snapshots: Snapshots,
    /// How the disk is doing, as of this turn.
    pub(super) disk: Disk,
    /// Since when steps wait, and the log has nothing under way that would make room for them.
    pub(super) blocked_since: Option<Monotonic>,
}

/// The replicas of a shard and what is to be done for them.
#[derive(Default)]
pub(super) struct Replicas {
    pub(super) partitions: Partitions,
    /// When each replica wants its tick.
    pub(super) ticks: Ticks,
    /// Touched in this turn: marks to publish, ticks to reschedule, peers to feed.
    pub(super) touched: Touched,
    /// An emptied list of those.
    pub(super) visited: Vec<PartitionId>,
    /// Entries wait for the log's next batch before they can be sent.
    pub(super) unsent: Vec<PartitionId>,
    /// Peer messages of this turn.
    pub(super) messages: VecDeque<(NodeId, PeerMessage)>,
    /// Peer messages, and requests, that wait for room in the growing batch, in order.
    pub(super) arrivals: Arrivals,
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
        self.partitions.iter().for_each(|(id, _)| self.touched.insert(id));
    }

    /// A peer's message. What there is no room for comes back.
    fn give_message(
        &mut self,
        cx: &mut Context<'_>,
        from: NodeId,
        message: PeerMessage,
    ) -> Option<PeerMessage> {
        let partition = self.partitions.get_mut(message.partition)?;
        self.touched.insert(message.partition);
        partition.message(cx, from, message)
    }

    /// Whether steps of replicas wait for room in the log.
    pub(super) fn waits_for_room(&self) -> bool {
        !self.full && (!self.arrivals.is_empty() || !self.requests.is_empty())
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
        let Some(p) = self.partitions.get_mut(partition) else { return true };
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
    let Life { cluster, wal, reads, returning, shared, replicas, disk, .. } = life.as_mut()?;
    let (cluster, disk) = (*cluster, *disk);
    Some((
        replicas,
        Context {
            io,
            wal,
            transport,
            reads,
            returning,
            shared,
            clock,
            disk,
            cluster,
            addresses,
            retry_after: RETRY_AFTER,
        },
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
        while let Some((from, message, held)) = replicas.arrivals.pop() {
            match replicas.give_message(&mut cx, from, message) {
                Some(rest) => {
                    replicas.arrivals.put_back(from, rest, held);
                    break;
                }
                None => {
                    let dropped = replicas.arrivals.over();
                    if dropped > 0 {
                        tracing::info!(
                            dropped,
                            "the log takes records again; messages were dropped meanwhile"
                        );
                    }
                }
            }
        }
        // Entries that find no room wait in their order; what carries none (heartbeats, votes) does not wait behind them.
        let pool = cx.io.buffers();
        let mut messages = std::mem::take(&mut replicas.messages);
        for (from, message) in messages.drain(..) {
            let waits = !message.records.is_empty() && !replicas.arrivals.is_empty();
            let left = if waits { Some(message) } else { replicas.give_message(&mut cx, from, message) };
            if let Some(left) = left {
                replicas.arrivals.push(&pool, from, left);
            }
        }
        replicas.messages = messages;
        while let Some((origin, partition, request)) = replicas.requests.pop_front() {
            if !replicas.give_front(&mut cx, origin, partition, request) {
                break;
            }
        }
    }

    /// Serves clients' reads: so many bytes in a turn, in the order in which they came.
    pub(super) fn serve_reads(&mut self, io: &mut dyn Io) {
        self.reading_on = false;
        let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        else {
            return;
        };
        let mut served = 0;
        for _ in 0..TURN_READS_MAX {
            let Some((id, wanted)) = cx.reads.next_waiting() else { return };
            let Some(p) = replicas.partitions.get_mut(id) else { continue };
            match p.serve_now(&mut cx, wanted) {
                Ok(bytes) => served += bytes,
                // Goes on when one of those under way comes back from the disk.
                Err(wanted) => return cx.reads.wait_first(id, wanted),
            }
            if served >= TURN_BYTES_MAX {
                break;
            }
        }
        self.reading_on = cx.reads.waiting() > 0;
    }

    /// A turn begins: state machines that had no share left in the last one are given their next entries.
    pub(super) fn go_on_applying(&mut self, io: &mut dyn Io) {
        let now = self.clock.now;
        let Some((replicas, mut cx)) =
            split(&mut self.life, io, &mut *self.transport, self.clock, &self.addresses)
        else {
            return;
        };
        for id in cx.shared.applying.begin(now) {
            if let Some(p) = replicas.partitions.get_mut(id) {
                p.apply(&mut cx);
                replicas.touched.insert(id);
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
        while let Some(id) = replicas.ticks.pop(now) {
            let Some(p) = replicas.partitions.get_mut(id) else { continue };
            let at = p.deadline();
            if at > now {
                replicas.ticks.want(id, at);
                continue;
            }
            replicas.touched.insert(id);
            p.tick(&mut cx);
        }
    }

    /// Takes the snapshots' next steps.
    pub(super) fn tick_snapshots(&mut self, io: &mut dyn Io) {
        let Some(mut life) = self.life.take() else { return };
        let Life { cluster, wal, reads, returning, shared, replicas, snapshots, disk, .. } = &mut life;
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
            shared,
            clock: self.clock,
            disk: *disk,
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
            for id in std::mem::take(&mut cx.shared.unwritten) {
                let Some(p) = replicas.partitions.get_mut(id) else { continue };
                match p.write_waiting(&mut cx) {
                    true => cx.shared.unwritten.push(id),
                    false => replicas.touched.insert(id),
                }
            }
            // Writers that were just answered may be let into the batch that is about to leave.
            if cx.wal.is_ready() && self.stopping.is_none() {
                self.sealing = cx.returning.wait(self.clock.now, cx.wal.growing_bytes());
            }
            if self.sealing.is_some() {
                // It leaves in a later turn.
            } else if cx.shared.unwritten.is_empty() && cx.shared.damaged.is_empty() {
                // What is damaged is found again by reading the log, which a checkpoint would spare: none is begun meanwhile.
                // Every replica's steps are in the log: it may be saved.
                let partitions = &replicas.partitions;
                cx.wal.flush_saving(cx.io, &mut |id, out| {
                    if (id.0 as usize).is_multiple_of(AHEAD) {
                        partitions.warm((id.0..).take(AHEAD).map(PartitionId), |_| 0);
                    }
                    if let Some(p) = partitions.get(id) {
                        p.replica().save(out);
                    }
                });
            } else {
                cx.wal.flush(cx.io);
            }
            replicas.unsent.drain(..).for_each(|id| replicas.touched.insert(id));
            let touched = replicas.touched.take(std::mem::take(&mut replicas.visited));
            self.visits.begin(&replicas.partitions, touched.iter().copied());
            let mut led_otherwise = false;
            for &id in &touched {
                self.visits.next(&replicas.partitions, |_| 0);
                let Some(p) = replicas.partitions.get_mut(id) else { continue };
                p.seek_repair(&mut cx);
                if p.pump(&mut cx) {
                    replicas.unsent.push(id);
                }
                if p.publish() {
                    let Leadership { generation, leader, role } = p.leadership();
                    let events = &self.inbox.life_cycle.events;
                    events.publish(crate::Event::Leadership { partition: id, generation, leader, role });
                    led_otherwise = true;
                }
                if !p.is_damaged() {
                    cx.shared.damaged.remove(&id);
                }
                if !replicas.full && p.wants_snapshot(now) {
                    replicas.due.insert(id);
                }
                replicas.ticks.want(id, p.deadline());
            }
            replicas.visited = touched;
            if led_otherwise {
                self.inbox.life_cycle.leadership_changed();
            }
            assert!(
                cx.shared.is_settled(),
                "what a step of one replica asks for is done before the next one's"
            );
        }
        self.transport.flush(io);
        Ok(())
    }
}
