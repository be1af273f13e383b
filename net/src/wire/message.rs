//! Messages between replicas: 64 bytes each, in *Messages* frames and as metadata of *Append* frames.

use super::WireError;
use super::reader::Reader;
use tidelog_consensus::{Append, Asserting, Disk, Free, Health, Message, Repair};
use tidelog_types::{Generation, Index, PartitionId, Position, WallMs};

/// Length of a message.
pub const SLOT_BYTES: usize = 64;

const PRE_VOTE: u8 = 1;
const PRE_VOTE_REPLY: u8 = 2;
const APPEND: u8 = 3;
const HEARTBEAT: u8 = 4;
const VOTE: u8 = 5;
const VOTE_REPLY: u8 = 6;
const APPEND_REPLY: u8 = 7;
const APPEND_REFUSED: u8 = 8;
const HEARTBEAT_REPLY: u8 = 9;
const FETCH: u8 = 10;
const FETCHED: u8 = 11;
const MISSING: u8 = 12;
const HAND_OVER: u8 = 13;
const LOST: u8 = 14;

/// The 64 bytes of a message; an append's records travel beside it.
pub fn encode_message(partition: PartitionId, message: &Message) -> [u8; SLOT_BYTES] {
    let (code, granted, generation, words): (u8, bool, Generation, [u64; 5]) = match message {
        Message::Free(Free::PreVote { generation, last }) => {
            (PRE_VOTE, false, *generation, [last.index.0, last.generation.0, 0, 0, 0])
        }
        Message::Free(Free::PreVoteReply { generation, granted }) => {
            (PRE_VOTE_REPLY, *granted, *generation, [0; 5])
        }
        Message::Free(Free::Append(a)) => (
            APPEND,
            false,
            a.generation,
            [a.prev.index.0, a.prev.generation.0, a.count, a.high_water.0, a.round],
        ),
        Message::Free(Free::Lost { generation, confirmed }) => {
            (LOST, false, *generation, [confirmed.index.0, confirmed.generation.0, 0, 0, 0])
        }
        Message::Free(Free::Heartbeat { generation, high_water, round }) => {
            (HEARTBEAT, false, *generation, [high_water.0, *round, 0, 0, 0])
        }
        Message::Free(Free::HandOver { generation }) => (HAND_OVER, false, *generation, [0; 5]),
        Message::Asserting(Asserting::Vote { generation, last, handed_over }) => {
            (VOTE, false, *generation, [last.index.0, last.generation.0, u64::from(*handed_over), 0, 0])
        }
        Message::Asserting(Asserting::VoteReply { generation, granted, wall }) => {
            (VOTE_REPLY, *granted, *generation, [wall.0, 0, 0, 0, 0])
        }
        Message::Asserting(Asserting::AppendReply { generation, matched, round }) => {
            (APPEND_REPLY, false, *generation, [matched.0, *round, 0, 0, 0])
        }
        Message::Asserting(Asserting::AppendRefused { generation, prev, hint, round, damaged }) => {
            (APPEND_REFUSED, *damaged, *generation, [prev.0, hint.index.0, hint.generation.0, *round, 0])
        }
        Message::Asserting(Asserting::HeartbeatReply { generation, round, matched, wall, disk }) => {
            let words = [*round, matched.0, wall.0, disk.oldest_ms, health_code(disk.health)];
            (HEARTBEAT_REPLY, false, *generation, words)
        }
        Message::Repair(Repair::Fetch { generation, first, last }) => {
            (FETCH, false, *generation, [first.0, last.0, 0, 0, 0])
        }
        Message::Repair(Repair::Fetched { generation, first, count }) => {
            (FETCHED, false, *generation, [first.0, *count, 0, 0, 0])
        }
        Message::Repair(Repair::Missing { generation, first, damaged, promised }) => {
            (MISSING, *damaged, *generation, [first.0, promised.0, 0, 0, 0])
        }
    };
    let mut slot = [0u8; SLOT_BYTES];
    let mut put = |at: usize, bytes: &[u8]| slot[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[code, u8::from(granted)]);
    put(8, &partition.0.to_le_bytes());
    put(16, &generation.0.to_le_bytes());
    for (i, word) in words.iter().enumerate() {
        put(24 + 8 * i, &word.to_le_bytes());
    }
    slot
}

const fn health_code(health: Health) -> u64 {
    match health {
        Health::Steady => 0,
        Health::Behind => 1,
        Health::Stalled => 2,
    }
}

fn health_of(code: u64) -> Result<Health, WireError> {
    match code {
        0 => Ok(Health::Steady),
        1 => Ok(Health::Behind),
        2 => Ok(Health::Stalled),
        _ => Err(WireError::Field("health of a disk")),
    }
}

fn decode_message(slot: &[u8]) -> Result<(PartitionId, Message), WireError> {
    let mut r = Reader::new(slot);
    let code = r.u8()?;
    let granted = match r.u8()? {
        0 => false,
        1 if matches!(code, PRE_VOTE_REPLY | VOTE_REPLY | APPEND_REFUSED | MISSING) => true,
        _ => return Err(WireError::Field("granted")),
    };
    r.zeros(6, "reserved bytes of a message")?;
    let partition = PartitionId(r.u64()?);
    let generation = Generation(r.u64()?);
    let [a, b, c, d, e] = [r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?];
    let (message, unused) = match code {
        PRE_VOTE => {
            let last = Position::new(Index(a), Generation(b));
            (Message::Free(Free::PreVote { generation, last }), c | d | e)
        }
        PRE_VOTE_REPLY => (Message::Free(Free::PreVoteReply { generation, granted }), a | b | c | d | e),
        APPEND => {
            let prev = Position::new(Index(a), Generation(b));
            let append = Append { generation, prev, count: c, high_water: Index(d), round: e };
            (Message::Free(Free::Append(append)), 0)
        }
        HEARTBEAT => {
            (Message::Free(Free::Heartbeat { generation, high_water: Index(a), round: b }), c | d | e)
        }
        VOTE => {
            let last = Position::new(Index(a), Generation(b));
            let handed_over = match c {
                0 => false,
                1 => true,
                _ => return Err(WireError::Field("hand-over of a vote request")),
            };
            (Message::Asserting(Asserting::Vote { generation, last, handed_over }), d | e)
        }
        VOTE_REPLY => {
            (Message::Asserting(Asserting::VoteReply { generation, granted, wall: WallMs(a) }), b | c | d | e)
        }
        APPEND_REPLY => {
            let reply = Asserting::AppendReply { generation, matched: Index(a), round: b };
            (Message::Asserting(reply), c | d | e)
        }
        APPEND_REFUSED => {
            let hint = Position::new(Index(b), Generation(c));
            let refused =
                Asserting::AppendRefused { generation, prev: Index(a), hint, round: d, damaged: granted };
            (Message::Asserting(refused), e)
        }
        HEARTBEAT_REPLY => {
            let disk = Disk { oldest_ms: d, health: health_of(e)? };
            let (matched, wall) = (Index(b), WallMs(c));
            (Message::Asserting(Asserting::HeartbeatReply { generation, round: a, matched, wall, disk }), 0)
        }
        LOST => {
            let confirmed = Position::new(Index(a), Generation(b));
            (Message::Free(Free::Lost { generation, confirmed }), c | d | e)
        }
        FETCH => (Message::Repair(Repair::Fetch { generation, first: Index(a), last: Index(b) }), c | d | e),
        FETCHED => (Message::Repair(Repair::Fetched { generation, first: Index(a), count: b }), c | d | e),
        MISSING => {
            let promised = Generation(b);
            let missing = Repair::Missing { generation, first: Index(a), damaged: granted, promised };
            (Message::Repair(missing), c | d | e)
        }
        HAND_OVER => (Message::Free(Free::HandOver { generation }), a | b | c | d | e),
        _ => return Err(WireError::Field("type of a message")),
    };
    if unused != 0 {
        return Err(WireError::Field("unused words of a message"));
    }
    Ok((partition, message))
}

/// The messages of a *Messages* frame.
///
/// # Errors
/// At the first one that is not valid.
pub fn decode_messages(
    meta: &[u8],
) -> impl Iterator<Item = Result<(PartitionId, Message), WireError>> + use<'_> {
    meta.chunks(SLOT_BYTES).map(|slot| match slot.len() {
        SLOT_BYTES => decode_message(slot),
        _ => Err(WireError::Short),
    })
}

/// The message of a *Fetched* frame.
///
/// # Errors
/// If it is not one such message.
pub fn decode_fetched(meta: &[u8]) -> Result<(PartitionId, Message), WireError> {
    if meta.len() != SLOT_BYTES {
        return Err(WireError::Short);
    }
    match decode_message(meta)? {
        found @ (_, Message::Repair(Repair::Fetched { .. })) => Ok(found),
        _ => Err(WireError::Field("type of a fetched message")),
    }
}

/// The message of an *Append* frame.
///
/// # Errors
/// If it is not one append message.
pub fn decode_append(meta: &[u8]) -> Result<(PartitionId, Message), WireError> {
    if meta.len() != SLOT_BYTES {
        return Err(WireError::Short);
    }
    match decode_message(meta)? {
        found @ (_, Message::Free(Free::Append(_))) => Ok(found),
        _ => Err(WireError::Field("type of an append's message")),
    }
}
