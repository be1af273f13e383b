//! What a hostile member says: every kind of message with fields near the truth, at their limits or anywhere, and frames that are none.

use bytes::Bytes;
use tidelog_consensus::{Append, Asserting, Disk, Free, Health, Message, Repair, Replica};
use tidelog_net::wire::{
    FrameHeader, FrameKind, PeerHello, SLOT_BYTES, decode_append, decode_messages, encode_message,
};
use tidelog_sim::Random;
use tidelog_types::record::Extension;
use tidelog_types::{
    ClusterId, Generation, Incarnation, Index, PartitionId, Position, RecordHeader, RecordKind, ReplicatedMs,
    WallMs,
};

/// Messages of one frame at most, mostly.
const MESSAGES_MAX: u64 = 8;
/// And when it floods.
const FLOOD: u64 = 1000;
/// Kinds of messages.
const KINDS: u64 = 15;
const LOST: u64 = 14;

/// What one hostile member does at all: a subset, for what is absent lets the rest go further.
#[derive(Clone, Debug)]
pub(crate) struct Habits {
    /// Kinds of messages that it says by itself.
    kinds: Vec<u64>,
    /// It grants whatever it is asked for.
    votes: bool,
    /// It confirms whatever it is sent.
    confirms: bool,
    /// It pretends to be elected.
    pub(super) leads: bool,
    /// It says hellos that lie.
    pub(super) hellos: bool,
    /// It calls itself by other members' names.
    pub(super) other_names: bool,
    /// It says again what it said on earlier connections.
    pub(super) recorded: bool,
    /// It says bytes that are no frames.
    pub(super) garbage: bool,
    /// It says far too much.
    floods: bool,
    /// It does not receive what it is sent, but for the first words.
    pub(super) deaf: bool,
    /// Most of its numbers are near the truth.
    shrewd: bool,
    pub(super) frames_max: u64,
    pub(super) pause_us: u64,
}

impl Habits {
    pub(super) fn draw(random: &mut Random) -> Habits {
        let mut kinds: Vec<u64> = (0..KINDS).filter(|kind| *kind != LOST && random.below(3) != 0).collect();
        // It ends a node's part, until people say otherwise: seldom, or nothing else would be seen.
        if random.below(4) == 0 {
            kinds.push(LOST);
        }
        if kinds.is_empty() {
            kinds.push(4);
        }
        Habits {
            kinds,
            votes: random.coin(),
            confirms: random.coin(),
            leads: random.coin(),
            hellos: random.coin(),
            other_names: random.coin(),
            recorded: random.coin(),
            garbage: random.coin(),
            floods: random.below(4) == 0,
            deaf: random.below(8) == 0,
            shrewd: random.below(4) != 0,
            frames_max: random.between((1, 4)),
            pause_us: random.between((1_000, 20_000)),
        }
    }
}

/// A frame of `kind`, its checksums right.
fn frame(kind: FrameKind, meta: &[u8], payload: &[u8]) -> Bytes {
    let padded = |bytes: &[u8]| {
        let mut out = bytes.to_vec();
        out.resize(bytes.len().next_multiple_of(64), 0);
        out
    };
    let (meta_padded, payload_padded) = (padded(meta), padded(payload));
    let mut header = FrameHeader::new(kind, [0; 5]).encode();
    let mut put = |at: usize, word: u32| {
        if let Some(place) = header.get_mut(at..at + 4) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    };
    put(12, u32::try_from(meta.len()).unwrap_or(0));
    put(16, if meta.is_empty() { 0 } else { crc32c::crc32c(&meta_padded) });
    put(20, u32::try_from(payload.len()).unwrap_or(0));
    seal(&mut header);
    Bytes::from([&header[..], &meta_padded, &payload_padded].concat())
}

/// Makes a header's checksum right.
fn seal(header: &mut [u8]) {
    let crc = crc32c::crc32c(header.get(4..64).unwrap_or_default());
    if let Some(place) = header.get_mut(..4) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// The messages of a frame, as far as they are any.
pub(super) fn said(kind: FrameKind, meta: &[u8]) -> Vec<(PartitionId, Message)> {
    match kind {
        FrameKind::Append => decode_append(meta).ok().into_iter().collect(),
        _ => decode_messages(meta).filter_map(Result::ok).collect(),
    }
}

/// Bytes that are no frame, or not all of one, or one that belongs elsewhere.
pub(super) fn garbage(random: &mut Random) -> Bytes {
    let kinds = [1, 2, 3, 4, 5, 6, 16, 17, 32, 33, 34, 35, 36, 48, 49, 50];
    let kind =
        random.pick(&kinds).and_then(|code| FrameKind::from_code(*code)).unwrap_or(FrameKind::Keepalive);
    let mut header = FrameHeader::new(kind, [0; 5]).encode();
    match random.below(4) {
        0 => {
            let any: Vec<u8> = (0..random.between((1, 300))).map(|_| random.below(256) as u8).collect();
            return Bytes::from(any);
        }
        1 => {
            // Lengths that lie.
            for at in [12, 20] {
                let length = if random.coin() { u32::MAX } else { random.below(1 << 23) as u32 };
                if let Some(place) = header.get_mut(at..at + 4) {
                    place.copy_from_slice(&length.to_le_bytes());
                }
            }
        }
        2 => {
            let (at, byte) = (random.between((8, 63)), random.below(256) as u8);
            if let Some(place) = usize::try_from(at).ok().and_then(|at| header.get_mut(at)) {
                *place = byte;
            }
        }
        _ => {}
    }
    seal(&mut header);
    Bytes::copy_from_slice(&header)
}

/// Makes a hello lie in one point.
pub(super) fn spoil_hello(random: &mut Random, said: &mut PeerHello, to: Option<u64>, other_names: bool) {
    let hello = &mut said.hello;
    match random.below(12) {
        0 => hello.incarnation = Incarnation(random.bits()),
        1 => hello.formed = None,
        2 => hello.barred = true,
        3 => hello.partitions = random.below(6),
        4 => hello.shard = random.below(3) as u32,
        5 => said.to_shard = random.below(3) as u32,
        6 => said.to_process = random.bits(),
        7 => said.attempt = random.bits(),
        8 => {
            if let Some(formed) = &mut hello.formed {
                formed.cluster = ClusterId(random.bits());
            }
        }
        9 => {
            if let Some(formed) = &mut hello.formed {
                formed.members.pop();
            }
        }
        10 => hello.cluster_name = "another".into(),
        _ => {
            let members = hello.formed.as_ref().map_or_else(Vec::new, |formed| formed.members.clone());
            let others: Vec<_> =
                members.iter().filter(|m| Some(m.node.0) != to || random.below(8) == 0).collect();
            if let Some(member) = random.pick(&others).filter(|_| other_names) {
                (hello.node, hello.incarnation) = (member.node, member.incarnation);
            }
        }
    }
}

/// The answer to what an honest peer said: everything granted, everything confirmed.
pub(super) fn reply(
    random: &mut Random,
    habits: &Habits,
    replica: Option<&Replica>,
    partition: PartitionId,
    message: &Message,
) -> Option<Bytes> {
    let wall = WallMs(if random.below(8) == 0 { random.bits() } else { 0 });
    let disk = Disk { oldest_ms: random.below(4), health: Health::Steady };
    let far = |random: &mut Random, index: u64| match random.below(16) {
        0 => u64::MAX,
        1 => index + random.below(100),
        _ => index,
    };
    let answer = match message {
        Message::Free(Free::PreVote { generation, .. }) if habits.votes => {
            Message::Free(Free::PreVoteReply { generation: *generation, granted: true })
        }
        Message::Asserting(Asserting::Vote { generation, .. }) if habits.votes => {
            Message::Asserting(Asserting::VoteReply { generation: *generation, granted: true, wall })
        }
        Message::Free(Free::Append(append)) if habits.confirms => {
            let matched = Index(far(random, append.prev.index.0.saturating_add(append.count)));
            let Append { generation, round, .. } = *append;
            Message::Asserting(Asserting::AppendReply { generation, matched, round })
        }
        Message::Free(Free::Heartbeat { generation, round, .. }) if habits.confirms => {
            let last = replica.map_or(0, |replica| replica.last().index.0);
            let (generation, round, matched) = (*generation, *round, Index(far(random, last)));
            Message::Asserting(Asserting::HeartbeatReply { generation, round, matched, wall, disk })
        }
        _ => return None,
    };
    Some(frame(FrameKind::Messages, &encode_message(partition, &answer), &[]))
}

/// One frame's worth of words to one replica.
pub(super) struct Words<'a> {
    pub(super) random: &'a mut Random,
    pub(super) habits: &'a Habits,
    /// Whom it speaks to.
    pub(super) replica: Option<&'a Replica>,
    pub(super) partition: PartitionId,
    /// The generation that it pretends to lead.
    pub(super) throne: Option<u64>,
    /// The cluster's tag in records.
    pub(super) tag: u32,
}

impl Words<'_> {
    pub(super) fn frame(&mut self) -> Bytes {
        let kind = self.random.pick(&self.habits.kinds).copied().unwrap_or(4);
        if kind == 3 {
            return self.append();
        }
        if kind == 11 {
            return self.fetched();
        }
        let most = if self.habits.floods && self.random.below(20) == 0 { FLOOD } else { MESSAGES_MAX };
        let mut meta = Vec::new();
        for n in 0..self.random.between((1, most)) {
            let kind =
                if n == 0 { kind } else { self.random.pick(&self.habits.kinds).copied().unwrap_or(kind) };
            let message = self.message(kind);
            let partition =
                if self.random.below(64) == 0 { PartitionId(self.random.bits()) } else { self.partition };
            let mut slot = encode_message(partition, &message);
            if self.random.below(128) == 0 {
                let (at, byte) = (self.random.below(SLOT_BYTES as u64), self.random.below(256) as u8);
                if let Some(place) = usize::try_from(at).ok().and_then(|at| slot.get_mut(at)) {
                    *place = byte;
                }
            }
            meta.extend_from_slice(&slot);
        }
        frame(FrameKind::Messages, &meta, &[])
    }

    /// A number about as large as the true one.
    fn near(&mut self, truth: u64) -> u64 {
        let wild = if self.habits.shrewd { 12 } else { 2 };
        match self.random.below(wild + 8) {
            0 => self.random.below(4),
            1 => truth.wrapping_add(1 << 20),
            2 => 1 << 62,
            3 => u64::MAX,
            4 => self.random.bits(),
            5 => truth.saturating_sub(self.random.below(20)),
            6 => truth.saturating_add(self.random.below(20)),
            7 => truth.saturating_add(1),
            _ => truth,
        }
    }

    fn generation(&mut self) -> Generation {
        let own = self.replica.map_or(1, |replica| replica.generation().0);
        Generation(match self.throne {
            Some(throne) if self.random.coin() => throne,
            _ => self.near(own),
        })
    }

    fn last(&self) -> Position {
        self.replica.map_or(Position::ZERO, Replica::last)
    }

    fn mark(&self) -> u64 {
        self.replica.map_or(0, |replica| replica.marks().high_water.0)
    }

    fn index(&mut self) -> Index {
        let truth = match self.random.below(3) {
            0 => self.mark(),
            1 => self.random.below(self.last().index.0 + 1),
            _ => self.last().index.0,
        };
        Index(self.near(truth))
    }

    /// Mostly an entry of the log.
    fn position(&mut self) -> Position {
        let index = self.index();
        let truth =
            self.replica.and_then(|replica| replica.generation_at(index)).unwrap_or(self.last().generation);
        let generation = if self.random.below(4) == 0 { self.near(truth.0) } else { truth.0 };
        Position::new(index, Generation(generation))
    }

    fn round(&mut self) -> u64 {
        let any = self.random.below(1000);
        self.near(any)
    }

    fn wall(&mut self) -> WallMs {
        WallMs(if self.random.coin() { self.random.bits() } else { self.near(1_000_000) })
    }

    fn disk(&mut self) -> Disk {
        let health =
            *self.random.pick(&[Health::Steady, Health::Behind, Health::Stalled]).unwrap_or(&Health::Steady);
        Disk { oldest_ms: self.near(100), health }
    }

    fn message(&mut self, kind: u64) -> Message {
        let generation = self.generation();
        match kind {
            0 => Message::Free(Free::PreVote { generation, last: self.claimed() }),
            1 => Message::Free(Free::PreVoteReply { generation, granted: self.random.coin() }),
            2 | 3 => {
                let (prev, high_water, round) = (self.position(), self.index(), self.round());
                let count = if self.random.below(8) == 0 { self.near(1) } else { 0 };
                Message::Free(Free::Append(Append { generation, prev, count, high_water, round }))
            }
            4 => Message::Free(Free::Heartbeat { generation, high_water: self.index(), round: self.round() }),
            5 => {
                let (last, handed_over) = (self.claimed(), self.random.coin());
                Message::Asserting(Asserting::Vote { generation, last, handed_over })
            }
            6 => {
                let (granted, wall) = (self.random.coin(), self.wall());
                Message::Asserting(Asserting::VoteReply { generation, granted, wall })
            }
            7 => {
                let (matched, round) = (self.index(), self.round());
                Message::Asserting(Asserting::AppendReply { generation, matched, round })
            }
            8 => {
                let (prev, hint, round) = (self.index(), self.position(), self.round());
                let damaged = self.random.coin();
                Message::Asserting(Asserting::AppendRefused { generation, prev, hint, round, damaged })
            }
            9 => {
                let (round, matched) = (self.round(), self.index());
                let (wall, disk) = (self.wall(), self.disk());
                Message::Asserting(Asserting::HeartbeatReply { generation, round, matched, wall, disk })
            }
            10 => {
                let (at, last) = (self.position(), self.index());
                Message::Repair(Repair::Fetch { generation: at.generation, first: at.index, last })
            }
            11 | 12 => {
                let (at, damaged) = (self.position(), self.random.coin());
                let promised = self.generation();
                Message::Repair(Repair::Missing {
                    generation: at.generation,
                    first: at.index,
                    damaged,
                    promised,
                })
            }
            13 => Message::Free(Free::HandOver { generation }),
            _ => {
                let confirmed = if self.random.coin() {
                    Position::new(self.last().index.next(), self.last().generation)
                } else {
                    self.position()
                };
                Message::Free(Free::Lost { generation, confirmed })
            }
        }
    }

    /// The end of a log that is better than any.
    fn claimed(&mut self) -> Position {
        match self.random.below(3) {
            0 => self.position(),
            _ => {
                let last = self.last();
                Position::new(Index(self.near(last.index.0 + 1)), Generation(self.near(last.generation.0)))
            }
        }
    }

    /// An append with entries: behind the log's end, or in the place of entries that are there, committed ones too.
    fn append(&mut self) -> Bytes {
        let generation = self.generation();
        let prev = if self.random.coin() { self.last() } else { self.position() };
        let (payload, count) = self.records(prev, generation);
        let count = if self.random.below(16) == 0 { self.near(count) } else { count };
        let (high_water, round) = (self.index(), self.round());
        let append = Message::Free(Free::Append(Append { generation, prev, count, high_water, round }));
        frame(FrameKind::Append, &encode_message(self.partition, &append), &payload)
    }

    fn fetched(&mut self) -> Bytes {
        let at = self.position();
        let prev = Position::new(Index(at.index.0.saturating_sub(1)), at.generation);
        let (payload, count) = self.records(prev, at.generation);
        let count = if self.random.below(8) == 0 { self.near(count) } else { count };
        let message = Message::Repair(Repair::Fetched { generation: at.generation, first: at.index, count });
        frame(FrameKind::Fetched, &encode_message(self.partition, &message), &payload)
    }

    /// Records that follow `prev`, mostly such as a leader of `generation` would send.
    fn records(&mut self, prev: Position, generation: Generation) -> (Vec<u8>, u64) {
        let (mut out, mut before, mut stamp) = (Vec::new(), prev, 0);
        let count = self.random.between((1, 4));
        if self.habits.shrewd || self.random.coin() {
            // About the time that it is.
            stamp = 1_000 * self.random.below(1 << 12);
        }
        for _ in 0..count {
            let odd = self.random.below(32) == 0;
            let kind = self.kind(odd);
            let index = Index(if odd { self.near(before.index.0) } else { before.index.0.wrapping_add(1) });
            stamp = if self.random.below(32) == 0 { self.near(stamp) } else { stamp };
            let bytes = if kind == RecordKind::Data { self.random.below(300) } else { 0 };
            let payload: Vec<u8> = (0..bytes).map(|_| self.random.below(256) as u8).collect();
            let mut header = RecordHeader {
                index,
                generation: if odd { self.generation() } else { generation },
                prev_generation: before.generation,
                timestamp: ReplicatedMs(stamp),
                cluster: if self.random.below(64) == 0 { self.random.bits() as u32 } else { self.tag },
                payload_len: u32::try_from(payload.len()).unwrap_or(0),
                payload_crc: crc32c::crc32c(&payload),
                extension: self.extension(kind, index),
                ..RecordHeader::new(kind, self.partition)
            };
            if self.random.below(64) == 0 {
                header.payload_crc ^= 1;
            }
            let at = out.len();
            out.resize(at + header.record_bytes(), 0);
            if let Some(place) = out.get_mut(at..) {
                header.encode(place);
            }
            let from = at + header.head_bytes();
            if let Some(place) = out.get_mut(from..from + payload.len()) {
                place.copy_from_slice(&payload);
            }
            before = Position::new(index, header.generation);
        }
        (out, count)
    }

    fn kind(&mut self, odd: bool) -> RecordKind {
        if odd {
            let kinds = [
                RecordKind::Cut,
                RecordKind::Promise,
                RecordKind::LowWater,
                RecordKind::Moved,
                RecordKind::Lost,
            ];
            return *self.random.pick(&kinds).unwrap_or(&RecordKind::Cut);
        }
        match self.random.below(8) {
            0 => RecordKind::Noop,
            1 => RecordKind::SessionOpen,
            2 if self.random.coin() => RecordKind::LogStart,
            _ => RecordKind::Data,
        }
    }

    fn extension(&mut self, kind: RecordKind, index: Index) -> Option<Extension> {
        let any = |random: &mut Random| if random.below(4) == 0 { random.bits() } else { random.below(300) };
        let of = match kind {
            RecordKind::SessionOpen => {
                let (a, b) = (any(self.random), any(self.random));
                Extension { a, b, fence_resource: any(self.random), fence_token: 0 }
            }
            RecordKind::LogStart => {
                let first = self.random.below(index.0.saturating_add(2).max(1));
                Extension { a: first, ..Extension::default() }
            }
            RecordKind::Data if self.random.below(4) == 0 => {
                let (a, b) = (any(self.random), any(self.random));
                Extension { a, b, ..Extension::default() }
            }
            _ => return None,
        };
        Some(of)
    }
}
