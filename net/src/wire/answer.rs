//! Answers to clients.

use super::header::{STATUS_BYTES_MAX, TEXT_BYTES_MAX};
use super::reader::{Reader, cut, text};
use super::{FrameHeader, WireError};
use bytes::Bytes;
use core::time::Duration;
use tidelog::request::{BusyReason, NodeStatus, Records, Reply, RequestError, Response, SessionScope};
use tidelog_types::{Generation, Index, NodeId, PartitionId, Position, Sequence, SessionId};

const HEAD_BYTES: usize = 32;

/// An answer and the client's number of the request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The request answered.
    pub number: u64,
    /// How it went.
    pub response: Response,
}

fn busy_code(reason: BusyReason) -> u64 {
    match reason {
        BusyReason::Load => 0,
        BusyReason::DiskFull => 1,
    }
}

fn busy_reason(code: u64) -> Result<BusyReason, WireError> {
    match code {
        0 => Ok(BusyReason::Load),
        1 => Ok(BusyReason::DiskFull),
        _ => Err(WireError::Field("reason of a busy answer")),
    }
}

/// Appends a small answer. Answers with records or a status have frames of their own.
///
/// # Panics
/// If it is one of those.
pub fn encode_answer(out: &mut Vec<u8>, number: u64, response: &Response) {
    use RequestError as E;
    let session;
    let size;
    let micros = |d: &Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
    let (code, a, b, extra): (u8, u64, u64, &[u8]) = match response {
        Ok(Reply::Appended { position: p }) => (1, p.index.0, p.generation.0, &[]),
        Ok(Reply::SessionOpened { session: id, position: p }) => {
            session = id.0.to_le_bytes();
            (2, p.index.0, p.generation.0, &session)
        }
        Ok(Reply::Snapshot { covered: p, bytes }) => {
            size = bytes.to_le_bytes();
            (3, p.index.0, p.generation.0, &size)
        }
        Ok(Reply::Records(_) | Reply::Status(_)) => panic!("records and status have frames of their own"),
        Err(E::NotLeader { hint, address }) => {
            (16, hint.map_or(0, |n| n.0), 0, address.as_deref().unwrap_or_default().as_bytes())
        }
        Err(E::Busy { retry_after, reason }) => (17, micros(retry_after), busy_code(*reason), &[]),
        Err(E::Fenced) => (18, 0, 0, &[]),
        Err(E::Truncated { first }) => (19, first.0, 0, &[]),
        Err(E::Unknown) => (20, 0, 0, &[]),
        Err(E::SessionExpired) => (21, 0, 0, &[]),
        Err(E::SequenceGap { expected }) => (22, expected.0, 0, &[]),
        Err(E::SequenceTooOld) => (23, 0, 0, &[]),
        Err(E::TooLarge { bytes, limit }) => (24, *bytes, *limit, &[]),
        Err(E::Checksum) => (25, 0, 0, &[]),
        Err(E::NoSuchPartition(partition)) => (26, partition.0, 0, &[]),
        Err(E::Ahead { asked, high_water }) => (27, asked.0, high_water.0, &[]),
        Err(E::Unavailable(why)) => (28, 0, 0, cut(why, TEXT_BYTES_MAX as usize).as_bytes()),
        Err(E::SessionsFull { scope, limit, retry_after }) => {
            let code = match scope {
                SessionScope::Partition => 30,
                SessionScope::Connection => 31,
            };
            (code, *limit, micros(retry_after), &[])
        }
        Err(E::SequenceReused { index }) => (32, index.0, 0, &[]),
        Err(E::Invalid(why)) => (29, 0, 0, cut(why, TEXT_BYTES_MAX as usize).as_bytes()),
    };
    let extra = extra.get(..TEXT_BYTES_MAX as usize).unwrap_or(extra);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&[code, 0, 0, 0]);
    out.extend_from_slice(&u32::try_from(extra.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&a.to_le_bytes());
    out.extend_from_slice(&b.to_le_bytes());
    out.extend_from_slice(extra);
    out.resize(out.len() + extra.len().next_multiple_of(8) - extra.len(), 0);
}

/// Most bytes that [`encode_answer`] appends.
pub(crate) const ANSWER_BYTES_MAX: usize = HEAD_BYTES + TEXT_BYTES_MAX as usize;

fn answer(r: &mut Reader<'_>) -> Result<Answer, WireError> {
    use RequestError as E;
    let number = r.u64()?;
    let code = r.u8()?;
    r.zeros(3, "reserved bytes of an answer")?;
    let extra_len = r.len()?;
    let (a, b) = (r.u64()?, r.u64()?);
    let extra = r.bytes(extra_len)?;
    r.zeros(extra_len.next_multiple_of(8) - extra_len, "padding of an answer")?;
    let (words, extra_max) = match code {
        1 | 17 | 24 | 27 | 30 | 31 => (2, 0),
        2 | 3 => (2, 8),
        16 => (1, TEXT_BYTES_MAX as usize),
        19 | 22 | 26 | 32 => (1, 0),
        28 | 29 => (0, TEXT_BYTES_MAX as usize),
        _ => (0, 0),
    };
    if (words < 1 && a != 0) || (words < 2 && b != 0) || extra_len > extra_max {
        return Err(WireError::Field("unused parts of an answer"));
    }
    let position = Position::new(Index(a), Generation(b));
    let response = match code {
        1 => Ok(Reply::Appended { position }),
        2 => Ok(Reply::SessionOpened { session: SessionId(Reader::new(extra).u64()?), position }),
        3 => Ok(Reply::Snapshot { covered: position, bytes: Reader::new(extra).u64()? }),
        16 => Err(E::NotLeader {
            hint: (a != 0).then_some(NodeId(a)),
            address: if extra.is_empty() { None } else { Some(text(extra, "leader's address")?) },
        }),
        17 => Err(E::Busy { retry_after: Duration::from_micros(a), reason: busy_reason(b)? }),
        18 => Err(E::Fenced),
        19 => Err(E::Truncated { first: Index(a) }),
        20 => Err(E::Unknown),
        21 => Err(E::SessionExpired),
        22 => Err(E::SequenceGap { expected: Sequence(a) }),
        23 => Err(E::SequenceTooOld),
        24 => Err(E::TooLarge { bytes: a, limit: b }),
        25 => Err(E::Checksum),
        26 => Err(E::NoSuchPartition(PartitionId(a))),
        27 => Err(E::Ahead { asked: Index(a), high_water: Index(b) }),
        28 => Err(E::Unavailable(text(extra, "reason")?)),
        29 => Err(E::Invalid(text(extra, "reason")?)),
        30 | 31 => Err(E::SessionsFull {
            scope: if code == 30 { SessionScope::Partition } else { SessionScope::Connection },
            limit: a,
            retry_after: Duration::from_micros(b),
        }),
        32 => Err(E::SequenceReused { index: Index(a) }),
        _ => return Err(WireError::Field("code of an answer")),
    };
    Ok(Answer { number, response })
}

/// The answers of an *Answers* frame; ends at the first one that is not valid.
pub fn answers(meta: &[u8]) -> impl Iterator<Item = Result<Answer, WireError>> + use<'_> {
    let mut reader = Reader::new(meta);
    let mut failed = false;
    core::iter::from_fn(move || {
        if failed || reader.is_empty() {
            return None;
        }
        let next = answer(&mut reader);
        failed = next.is_err();
        Some(next)
    })
}

/// The answer in a *Records* frame. The records themselves are not looked at.
///
/// # Errors
/// If it is not valid.
pub fn decode_records(header: &FrameHeader, payload: Bytes) -> Result<Answer, WireError> {
    let [number, next, high_water, first_readable, 0] = header.fields else {
        return Err(WireError::Field("unused fields of records"));
    };
    let records = if payload.is_empty() { Vec::new() } else { vec![payload] };
    let (next, high_water, first_readable) = (Index(next), Index(high_water), Index(first_readable));
    Ok(Answer { number, response: Ok(Reply::Records(Records { next, high_water, first_readable, records })) })
}

/// A status as the metadata of a *StatusAnswer*; none if it is over the frame's limit.
pub(crate) fn status_json(status: &NodeStatus) -> Option<Vec<u8>> {
    serde_json::to_vec(status).ok().filter(|json| json.len() <= STATUS_BYTES_MAX as usize)
}

/// The answer in a *StatusAnswer* frame.
///
/// # Errors
/// If it is not valid.
pub fn decode_status(header: &FrameHeader, meta: &[u8]) -> Result<Answer, WireError> {
    let [number, 0, 0, 0, 0] = header.fields else {
        return Err(WireError::Field("unused fields of a status"));
    };
    let status: NodeStatus = serde_json::from_slice(meta).map_err(|_| WireError::Field("status"))?;
    Ok(Answer { number, response: Ok(Reply::Status(Box::new(status))) })
}
