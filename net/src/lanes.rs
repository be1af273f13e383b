//! What is queued for one peer: urgent messages in front of bulk data (R7), both bounded (R8).
//!
//! Everything but what carries records is urgent: 64 bytes each, merged into one frame a send. Bulk frames go
//! behind, as many as fit one bounded send, and their records are sent from where they lie.

use crate::gather::Gather;
use crate::pipe::{SEND_BYTES_MAX, SEND_PIECES_MAX};
use crate::wire::{FrameKind, HEADER_BYTES, META_BYTES_MAX, SLOT_BYTES, encode_message};
use bytes::Bytes;
use std::collections::VecDeque;
use tidelog::transport::PeerMessage;
use tidelog_consensus::Message;
use tidelog_types::limits::APPEND_BYTES_MAX;

/// Most urgent messages in one frame.
const FRAME_MESSAGES_MAX: usize = META_BYTES_MAX as usize / SLOT_BYTES;

#[derive(Debug)]
struct BulkFrame {
    kind: FrameKind,
    slot: [u8; SLOT_BYTES],
    records: Vec<Bytes>,
    bytes: usize,
}

/// The queue of one channel.
#[derive(Debug)]
pub(crate) struct Lanes {
    control: Vec<u8>,
    urgent: VecDeque<[u8; SLOT_BYTES]>,
    bulk: VecDeque<BulkFrame>,
    /// Bytes of bulk frames queued or being sent.
    bulk_bytes: usize,
    /// Of these, being sent.
    sending: usize,
    bytes_max: usize,
    messages_max: usize,
}

impl Lanes {
    pub(crate) fn new(bytes_max: usize, messages_max: usize) -> Lanes {
        Lanes {
            control: Vec::new(),
            urgent: VecDeque::new(),
            bulk: VecDeque::new(),
            bulk_bytes: 0,
            sending: 0,
            bytes_max,
            messages_max,
        }
    }

    /// Where frames of the channel itself are written to; they leave before everything else.
    pub(crate) fn control(&mut self) -> &mut Vec<u8> {
        &mut self.control
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.control.is_empty() && self.urgent.is_empty() && self.bulk.is_empty()
    }

    /// Queues a message; false if its lane is full.
    pub(crate) fn push(&mut self, message: PeerMessage) -> bool {
        let slot = encode_message(message.partition, &message.message);
        let records: usize = message.records.iter().map(Bytes::len).sum();
        assert!(records <= APPEND_BYTES_MAX, "an append message of {records} bytes is over the limit");
        if records == 0 {
            let room = self.urgent.len() < self.messages_max;
            if room {
                self.urgent.push_back(slot);
            }
            return room;
        }
        let bytes = HEADER_BYTES + SLOT_BYTES + records;
        // A single message larger than the budget may still go when nothing else is queued.
        let room = self.bulk.len() < self.messages_max
            && (self.bulk_bytes == 0 || self.bulk_bytes + bytes <= self.bytes_max);
        if room {
            self.bulk_bytes += bytes;
            let kind = match message.message {
                Message::Repair(_) => FrameKind::Fetched,
                _ => FrameKind::Append,
            };
            self.bulk.push_back(BulkFrame { kind, slot, records: message.records, bytes });
        }
        room
    }

    /// Bytes of bulk data that may still be queued.
    pub(crate) fn room(&self) -> usize {
        if self.bulk.len() >= self.messages_max { 0 } else { self.bytes_max.saturating_sub(self.bulk_bytes) }
    }

    /// The next send; [`Self::sent`] follows.
    pub(crate) fn take(&mut self, established: bool) -> Vec<Bytes> {
        let mut gather = Gather::new();
        gather.small().append(&mut self.control);
        if !established {
            return gather.finish();
        }
        while !self.urgent.is_empty() && gather.bytes() < SEND_BYTES_MAX {
            let count = self.urgent.len().min(FRAME_MESSAGES_MAX);
            let meta: Vec<u8> = self.urgent.drain(..count).flatten().collect();
            gather.frame(FrameKind::Messages, [0; 5], &meta);
        }
        let urgent = gather.bytes();
        while let Some(frame) = self.bulk.front() {
            let first = gather.bytes() == urgent;
            let fits = gather.bytes() + frame.bytes <= SEND_BYTES_MAX
                && gather.pieces() + 2 * frame.records.len() <= SEND_PIECES_MAX;
            if !first && !fits {
                break;
            }
            gather.frame_with(frame.kind, [0; 5], &frame.slot, &frame.records);
            self.sending += frame.bytes;
            self.bulk.pop_front();
        }
        gather.finish()
    }

    /// What was taken is with the kernel.
    pub(crate) fn sent(&mut self) {
        self.bulk_bytes -= std::mem::take(&mut self.sending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FrameHeader;
    use tidelog_consensus::{Append, Free};
    use tidelog_types::{Generation, Index, PartitionId, Position};

    fn append(partition: u64, bytes: usize) -> PeerMessage {
        let append = Append {
            generation: Generation(1),
            prev: Position::ZERO,
            count: 1,
            high_water: Index(0),
            round: 0,
        };
        PeerMessage {
            partition: PartitionId(partition),
            message: Message::Free(Free::Append(append)),
            records: vec![Bytes::from(vec![0u8; bytes])],
        }
    }

    fn heartbeat(partition: u64) -> PeerMessage {
        PeerMessage {
            partition: PartitionId(partition),
            message: Message::Free(Free::Heartbeat {
                generation: Generation(1),
                high_water: Index(0),
                round: 0,
            }),
            records: vec![],
        }
    }

    fn kinds(send: &[Bytes]) -> Vec<FrameKind> {
        let all = send.concat();
        let (mut at, mut out) = (0, Vec::new());
        while let Some(header) = FrameHeader::decode(&all[at..]).unwrap() {
            out.push(header.kind);
            at += header.frame_bytes();
        }
        out
    }

    #[test]
    fn heartbeats_overtake_bulk_and_wait_for_one_bounded_send_at_most() {
        let mut lanes = Lanes::new(64 << 20, 1000);
        for _ in 0..10 {
            assert!(lanes.push(append(1, 300 << 10)));
        }
        let first = lanes.take(true);
        assert!(first.iter().map(Bytes::len).sum::<usize>() <= SEND_BYTES_MAX);
        assert!(lanes.push(heartbeat(1)) && lanes.push(heartbeat(2)));
        lanes.sent();
        let second = lanes.take(true);
        assert_eq!(kinds(&second), [FrameKind::Messages, FrameKind::Append], "merged, and in front");
    }

    #[test]
    fn a_full_lane_refuses_and_the_other_does_not() {
        let mut lanes = Lanes::new(1 << 20, 100);
        let taken = (0..1000).filter(|_| lanes.push(append(1, 100 << 10))).count();
        assert_eq!(taken, 10);
        assert!(lanes.room() < 100 << 10);
        assert!(lanes.push(heartbeat(1)));
        assert_eq!((0..1000).filter(|_| lanes.push(heartbeat(1))).count(), 99);
        let before = lanes.room();
        lanes.take(true);
        assert_eq!(lanes.room(), before, "what is being sent still counts");
        lanes.sent();
        assert!(lanes.room() > before);
    }

    #[test]
    fn nothing_but_control_frames_before_the_channel_is_up() {
        let mut lanes = Lanes::new(1 << 20, 100);
        lanes.push(heartbeat(1));
        crate::wire::put_frame(lanes.control(), FrameKind::Keepalive, [0; 5], &[]);
        assert_eq!(kinds(&lanes.take(false)), [FrameKind::Keepalive]);
        assert_eq!(kinds(&lanes.take(true)), [FrameKind::Messages]);
    }
}
