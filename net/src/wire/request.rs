//! Requests of clients.

use super::header::STATUS_PARTITIONS_MAX;
use super::{FrameHeader, FrameKind, WireError};
use bytes::Bytes;
use tidelog::request::{Level, Request};
use tidelog_types::{Index, PartitionId, Sequence, SessionId, SessionKey, SessionRef};

/// A request and the client's number for it.
#[derive(Clone, Debug)]
pub struct ClientCall {
    /// Echoed in the answer.
    pub number: u64,
    /// What is asked.
    pub request: Request,
}

/// Kind and fields of the frame that carries `request`; an append's payload follows.
pub(crate) fn request_head(number: u64, request: &Request) -> (FrameKind, [u64; 5]) {
    match request {
        Request::Append { partition, session, payload_crc, .. } => {
            let (session, sequence) = session.map_or((0, 0), |s| (s.session.0, s.sequence.0));
            let fields = [number, partition.0, session, sequence, u64::from(*payload_crc)];
            (FrameKind::AppendRequest, fields)
        }
        Request::OpenSession { partition, key } => {
            // Truncation is meant: the two halves.
            let (low, high) = (key.0 as u64, (key.0 >> 64) as u64);
            (FrameKind::OpenSession, [number, partition.0, low, high, 0])
        }
        Request::Read { partition, from, to, bytes_max, level } => {
            let level = match level {
                Level::Linearizable => 0u64,
                Level::Local => 1,
            };
            let last = to.map_or(0, |to| to.0);
            (FrameKind::Read, [number, partition.0, from.0, last, u64::from(*bytes_max) | level << 32])
        }
        Request::Status { first, partitions_max } => {
            (FrameKind::Status, [number, first.0, u64::from(*partitions_max), 0, 0])
        }
        Request::Snapshot { partition } => (FrameKind::Snapshot, [number, partition.0, 0, 0, 0]),
    }
}

/// Reads a request's frame; `payload` is its payload, not looked at.
///
/// # Errors
/// If it is not a valid request.
pub fn decode_request(header: &FrameHeader, payload: Bytes) -> Result<ClientCall, WireError> {
    let [number, partition, a, b, c] = header.fields;
    let partition = PartitionId(partition);
    let request = match header.kind {
        FrameKind::AppendRequest => {
            let session = match (a, b) {
                (0, 0) => None,
                (1.., 1..) => Some(SessionRef { session: SessionId(a), sequence: Sequence(b) }),
                _ => return Err(WireError::Field("session or sequence")),
            };
            let payload_crc = u32::try_from(c).map_err(|_| WireError::Field("payload checksum"))?;
            Request::Append { partition, session, payload, payload_crc }
        }
        FrameKind::OpenSession if c == 0 => {
            Request::OpenSession { partition, key: SessionKey(u128::from(b) << 64 | u128::from(a)) }
        }
        FrameKind::Read => {
            let level = match c >> 32 {
                0 => Level::Linearizable,
                1 => Level::Local,
                _ => return Err(WireError::Field("level of a read")),
            };
            let bytes_max =
                u32::try_from(c & u64::from(u32::MAX)).map_err(|_| WireError::Field("size of a read"))?;
            Request::Read { partition, from: Index(a), to: (b != 0).then_some(Index(b)), bytes_max, level }
        }
        FrameKind::Status if [b, c] == [0; 2] => {
            let most = u64::from(STATUS_PARTITIONS_MAX);
            let asked = if a == 0 { most } else { a.min(most) };
            let partitions_max = u32::try_from(asked).map_err(|_| WireError::Field("count of a status"))?;
            Request::Status { first: partition, partitions_max }
        }
        FrameKind::Snapshot if [a, b, c] == [0; 3] => Request::Snapshot { partition },
        FrameKind::OpenSession | FrameKind::Status | FrameKind::Snapshot => {
            return Err(WireError::Field("unused fields of a request"));
        }
        other => return Err(WireError::Unexpected(other)),
    };
    Ok(ClientCall { number, request })
}

/// The header of the frame that carries `request`, and its payload: for programs that frame by themselves.
///
/// # Panics
/// Encoding the header panics if the payload is over the limit.
pub fn encode_request(number: u64, request: &Request) -> (FrameHeader, Bytes) {
    let (kind, fields) = request_head(number, request);
    let payload = match request {
        Request::Append { payload, .. } => payload.clone(),
        _ => Bytes::new(),
    };
    let payload_len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    (FrameHeader { payload_len, ..FrameHeader::new(kind, fields) }, payload)
}
