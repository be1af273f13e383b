//! Records of peers that wait for room in the log.
//!
//! A follower over a slow disk, or one that hangs, receives faster than it writes. What it has no room for waits here, in its order, up to a
//! bound; past it, records are dropped: the leader sends them again later ([`tidelog_consensus`] repeats what is not confirmed, ever more
//! seldom). Messages without records never wait: heartbeats, votes and their answers go on.
//!
//! What waits is moved out of the buffer that it was received in, which is shared with other messages and may be far larger: so what is counted is what is held.

use crate::transport::PeerMessage;
use bytes::Bytes;
use std::collections::VecDeque;
use tidelog_io::BufferPool;
use tidelog_types::NodeId;
use tidelog_types::limits::PAGE_BYTES;

/// What a message takes beside its records, about.
const MESSAGE_BYTES: usize = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    queue: VecDeque<(NodeId, PeerMessage, usize)>,
    bytes: usize,
    bytes_max: usize,
    /// Messages dropped since nothing waited.
    dropped: u64,
}

impl Arrivals {
    pub(super) fn new(bytes_max: usize) -> Arrivals {
        Arrivals { bytes_max, ..Arrivals::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A message that there is no room for now. One alone always waits, however large.
    pub(super) fn push(&mut self, pool: &BufferPool, from: NodeId, mut message: PeerMessage) {
        let records: usize = message.records.iter().map(Bytes::len).sum();
        // Small ones on the heap, others in buffers of the pool, which come in powers of two.
        let pooled = records > PAGE_BYTES / 2;
        let held = if pooled { records.next_multiple_of(PAGE_BYTES).next_power_of_two() } else { records };
        let held = held + MESSAGE_BYTES;
        if !self.queue.is_empty() && self.bytes + held > self.bytes_max {
            if self.dropped == 0 {
                tracing::warn!(
                    %from, waiting_bytes = self.bytes,
                    "the log takes records more slowly than they come: further ones are dropped, and sent again later"
                );
            }
            self.dropped += 1;
            return;
        }
        message.records = vec![if pooled {
            in_pool(pool, &message.records, records)
        } else {
            on_heap(&message.records, records)
        }];
        self.bytes += held;
        self.queue.push_back((from, message, held));
    }

    /// The first in line, with what it counts for.
    pub(super) fn pop(&mut self) -> Option<(NodeId, PeerMessage, usize)> {
        let (from, message, held) = self.queue.pop_front()?;
        self.bytes -= held;
        Some((from, message, held))
    }

    /// What is left of the one that was just taken; there was no room for it. Its buffer is held as before.
    pub(super) fn put_back(&mut self, from: NodeId, rest: PeerMessage, held: usize) {
        self.bytes += held;
        self.queue.push_front((from, rest, held));
    }

    /// If nothing waits any more: how many messages were dropped while something did.
    pub(super) fn over(&mut self) -> u64 {
        if self.queue.is_empty() { std::mem::take(&mut self.dropped) } else { 0 }
    }
}

fn in_pool(pool: &BufferPool, pieces: &[Bytes], bytes: usize) -> Bytes {
    let mut buffer = pool.take(bytes);
    let mut at = 0;
    for piece in pieces {
        buffer[at..at + piece.len()].copy_from_slice(piece);
        at += piece.len();
    }
    buffer.truncate(bytes);
    buffer.freeze()
}

fn on_heap(pieces: &[Bytes], bytes: usize) -> Bytes {
    let mut out = Vec::with_capacity(bytes);
    pieces.iter().for_each(|piece| out.extend_from_slice(piece));
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_consensus::{Append, Free, Message};
    use tidelog_types::{Generation, Index, PartitionId, Position};

    fn message(records: &[&'static [u8]]) -> PeerMessage {
        let append = Append {
            generation: Generation(1),
            prev: Position::ZERO,
            count: 1,
            high_water: Index(0),
            round: 1,
        };
        PeerMessage {
            partition: PartitionId(0),
            message: Message::Free(Free::Append(append)),
            records: records.iter().map(|piece| Bytes::from_static(piece)).collect(),
        }
    }

    static LARGE: [u8; 5000] = [7; 5000];

    #[test]
    fn what_waits_is_bounded_in_order_and_the_same() {
        let pool = BufferPool::new(1 << 20);
        let mut arrivals = Arrivals::new(10_000);
        for n in 1..=4u64 {
            arrivals.push(&pool, NodeId(n), message(&[&LARGE[..2500], &LARGE[2500..]]));
        }
        assert_eq!(
            arrivals.bytes(),
            8192 + MESSAGE_BYTES,
            "one fits, whose buffer is counted, not only its records"
        );
        arrivals.push(&pool, NodeId(5), message(&[b"small"]));
        assert_eq!(arrivals.bytes(), 8192 + 2 * MESSAGE_BYTES + 5);
        let (from, first, held) = arrivals.pop().unwrap();
        assert_eq!((from, &first.records[0][..]), (NodeId(1), &LARGE[..]));
        arrivals.put_back(from, first, held);
        assert_eq!(arrivals.bytes(), 8192 + 2 * MESSAGE_BYTES + 5);
        assert_eq!(arrivals.over(), 0, "two wait");
        let order: Vec<u64> = std::iter::from_fn(|| arrivals.pop()).map(|(from, _, _)| from.0).collect();
        assert_eq!((order, arrivals.bytes()), (vec![1, 5], 0));
        assert_eq!((arrivals.over(), arrivals.over()), (3, 0));
    }

    #[test]
    fn a_message_over_the_bound_waits_alone() {
        let pool = BufferPool::new(1 << 20);
        let mut arrivals = Arrivals::new(100);
        arrivals.push(&pool, NodeId(1), message(&[&LARGE]));
        arrivals.push(&pool, NodeId(2), message(&[b"x"]));
        assert_eq!((arrivals.pop().map(|(from, _, _)| from), arrivals.is_empty()), (Some(NodeId(1)), true));
    }
}
