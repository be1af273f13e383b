//! One client's connection: what it asked and has not been told yet.
//!
//! Requests may be pipelined up to bounds by count and bytes, which answers keep occupied until they have left: a client
//! that asks and does not read is not read from. Small answers that are queued together leave in one frame.

use crate::budget::{ANSWER_BYTES, Held, STATUS_CHARGE};
use crate::gather::Gather;
use crate::pipe::{SEND_BYTES_MAX, SEND_PIECES_MAX};
use crate::slab::{Key, Slab};
use crate::wire::{
    ANSWER_BYTES_MAX, Answer, ClientCall, FrameKind, HEADER_BYTES, META_BYTES_MAX, WireError, encode_answer,
    status_json,
};
use bytes::Bytes;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use tidelog::request::{Reply, Request, RequestError, Response};
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::{Monotonic, PartitionId, SessionKey};

#[derive(Debug)]
struct Asked {
    number: u64,
    charge: usize,
    reads: bool,
}

#[derive(Debug)]
enum Large {
    Records { fields: [u64; 5], records: Vec<Bytes>, bytes: usize },
    Status { number: u64, json: Vec<u8> },
}

impl Large {
    fn bytes(&self) -> usize {
        match self {
            Large::Records { bytes, .. } => HEADER_BYTES + bytes,
            Large::Status { json, .. } => HEADER_BYTES + json.len(),
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub(crate) struct Session {
    asked: Slab<Asked>,
    /// Reads that wait for room, in their order: what was asked behind them does not wait for them. Each is in `asked` with what its
    /// answer takes at least.
    aside: VecDeque<(Key, Request)>,
    /// Small answers: encoded, back to back, and where one ends.
    small: Vec<u8>,
    ends: VecDeque<usize>,
    large: VecDeque<Large>,
    /// Answers queued or being sent, and their bytes.
    answers: usize,
    answer_bytes: usize,
    sending: usize,
    sending_bytes: usize,
    asked_bytes: usize,
    /// Of the bytes in flight, those of reads and their answers.
    read_bytes: usize,
    sending_read_bytes: usize,
    /// Sessions opened, or found, and when that was asked.
    opened: BTreeMap<(PartitionId, SessionKey), Monotonic>,
    /// When anything was asked last.
    asked_at: Monotonic,
}

impl Session {
    pub(crate) fn new(now: Monotonic) -> Session {
        Session {
            asked: Slab::new(),
            aside: VecDeque::new(),
            small: Vec::new(),
            ends: VecDeque::new(),
            large: VecDeque::new(),
            answers: 0,
            answer_bytes: 0,
            sending: 0,
            sending_bytes: 0,
            asked_bytes: 0,
            read_bytes: 0,
            sending_read_bytes: 0,
            opened: BTreeMap::new(),
            asked_at: now,
        }
    }

    /// Requests asked and not answered.
    pub(crate) fn unanswered(&self) -> usize {
        self.asked.len()
    }

    /// Requests and answers in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.asked.len() + self.answers
    }

    /// Bytes of the same.
    pub(crate) fn in_flight_bytes(&self) -> usize {
        self.asked_bytes + self.answer_bytes
    }

    /// The same by shares.
    pub(crate) fn held(&self) -> Held {
        let reads = self.read_bytes;
        Held { upload: 0, reads, others: self.in_flight_bytes() - reads }
    }

    /// Since when nothing was asked; none while anything is in flight.
    pub(crate) fn idle_since(&self) -> Option<Monotonic> {
        (self.in_flight() == 0).then_some(self.asked_at)
    }

    /// Whether another session may be opened. `within`: for how long an opening counts, which is how long a session lives
    /// that is not used. If not, when the first one of those opened no longer counts.
    pub(crate) fn may_open(
        &mut self,
        partition: PartitionId,
        key: SessionKey,
        now: Monotonic,
        max: usize,
        within: Duration,
    ) -> Result<(), Duration> {
        if self.opened.len() >= max && !self.opened.contains_key(&(partition, key)) {
            self.opened.retain(|_, at| now.since(*at) < within);
            let first = self.opened.values().min().copied();
            if let Some(first) = first.filter(|_| self.opened.len() >= max) {
                return Err(within.saturating_sub(now.since(first)));
            }
        }
        self.opened.entry((partition, key)).or_insert(now);
        Ok(())
    }

    /// Bytes that a request takes until its answer is known.
    fn charge(request: &Request) -> usize {
        ANSWER_BYTES
            + match request {
                Request::Append { payload, .. } => payload.len(),
                Request::OpenSession { .. } | Request::Snapshot { .. } => 0,
                Request::Read { bytes_max, .. } => (*bytes_max as usize).clamp(1, APPEND_BYTES_MAX),
                Request::Status { .. } => STATUS_CHARGE,
            }
    }

    /// A request came in: its number here.
    pub(crate) fn ask(&mut self, call: &ClientCall, now: Monotonic) -> u64 {
        let charge = Session::charge(&call.request);
        let reads = matches!(call.request, Request::Read { .. } | Request::Status { .. });
        self.asked_bytes += charge;
        self.read_bytes += if reads { charge } else { 0 };
        self.asked_at = now;
        self.asked.insert(Asked { number: call.number, charge, reads }).0
    }

    /// A read came in and waits for room.
    pub(crate) fn put_aside(&mut self, call: ClientCall, now: Monotonic) {
        self.asked_bytes += ANSWER_BYTES;
        self.asked_at = now;
        let key = self.asked.insert(Asked { number: call.number, charge: ANSWER_BYTES, reads: false });
        self.aside.push_back((key, call.request));
    }

    /// Bytes that the first read that waits takes from when it goes on.
    pub(crate) fn first_aside(&self) -> Option<usize> {
        self.aside.front().map(|(_, request)| Session::charge(request))
    }

    /// The first read that waits goes on: its number here.
    pub(crate) fn take_aside(&mut self) -> Option<(u64, Request)> {
        let (key, request) = self.aside.pop_front()?;
        let charge = Session::charge(&request);
        if let Some(asked) = self.asked.get_mut(key) {
            self.asked_bytes = self.asked_bytes - asked.charge + charge;
            self.read_bytes += charge;
            (asked.charge, asked.reads) = (charge, true);
        }
        Some((key.0, request))
    }

    /// The request is answered.
    ///
    /// # Panics
    /// If it is not in flight: each request is answered exactly once (R20).
    pub(crate) fn answer(&mut self, request: u64, response: Response) {
        let asked = self.asked.remove(Key(request)).expect("each request is answered exactly once");
        self.asked_bytes -= asked.charge;
        self.read_bytes -= if asked.reads { asked.charge } else { 0 };
        let number = asked.number;
        let bytes = match response {
            Ok(Reply::Records(r)) => {
                let bytes = r.records.iter().map(Bytes::len).sum();
                if bytes > APPEND_BYTES_MAX {
                    let why = format!("an answer of {bytes} bytes is over the limit of {APPEND_BYTES_MAX}");
                    self.small(number, &Err(RequestError::Unavailable(why)))
                } else {
                    let fields = [number, r.next.0, r.high_water.0, r.first_readable.0, 0];
                    self.large.push_back(Large::Records { fields, records: r.records, bytes });
                    self.read_bytes += HEADER_BYTES + bytes;
                    HEADER_BYTES + bytes
                }
            }
            Ok(Reply::Status(status)) => match status_json(&status) {
                Some(json) => {
                    let bytes = HEADER_BYTES + json.len();
                    self.large.push_back(Large::Status { number, json });
                    self.read_bytes += bytes;
                    bytes
                }
                None => {
                    let why = format!("the status of {} partitions is too large", status.partitions.len());
                    self.small(number, &Err(RequestError::Unavailable(why)))
                }
            },
            small => self.small(number, &small),
        };
        self.answers += 1;
        self.answer_bytes += bytes;
    }

    fn small(&mut self, number: u64, response: &Response) -> usize {
        let before = self.small.len();
        encode_answer(&mut self.small, number, response);
        self.ends.push_back(self.small.len());
        self.small.len() - before
    }

    pub(crate) fn has_answers(&self) -> bool {
        !self.ends.is_empty() || !self.large.is_empty()
    }

    /// The next send; [`Self::sent`] follows.
    pub(crate) fn take(&mut self) -> Vec<Bytes> {
        let mut gather = Gather::new();
        let mut from = 0;
        while !self.ends.is_empty() && gather.bytes() < SEND_BYTES_MAX {
            let mut to = from;
            while let Some(end) = self.ends.front().copied().filter(|e| e - from <= META_BYTES_MAX as usize) {
                to = end;
                self.sending += 1;
                self.ends.pop_front();
            }
            gather.frame(FrameKind::Answers, [0; 5], &self.small[from..to]);
            from = to;
        }
        self.sending_bytes += from;
        if self.ends.is_empty() {
            self.small.clear();
        } else {
            self.small.drain(..from);
            self.ends.iter_mut().for_each(|end| *end -= from);
        }
        while let Some(large) = self.large.pop_front() {
            let pieces = if let Large::Records { records, .. } = &large { 2 * records.len() } else { 0 };
            let fits = gather.bytes() + large.bytes() <= SEND_BYTES_MAX
                && gather.pieces() + pieces <= SEND_PIECES_MAX;
            if !fits && !gather.is_empty() {
                self.large.push_front(large);
                break;
            }
            self.sending += 1;
            self.sending_bytes += large.bytes();
            self.sending_read_bytes += large.bytes();
            match large {
                Large::Records { fields, records, .. } => {
                    gather.frame_with(FrameKind::Records, fields, &[], &records);
                }
                Large::Status { number, json } => {
                    gather.frame(FrameKind::StatusAnswer, [number, 0, 0, 0, 0], &json);
                }
            }
        }
        gather.finish()
    }

    /// What was taken is with the kernel.
    pub(crate) fn sent(&mut self) {
        self.answers -= std::mem::take(&mut self.sending);
        self.answer_bytes -= std::mem::take(&mut self.sending_bytes);
        self.read_bytes -= std::mem::take(&mut self.sending_read_bytes);
    }
}

/// The answers of a frame, on the client's side.
pub(crate) fn answers_of(
    kind: FrameKind,
    inbound: &mut crate::inbound::Inbound,
    header: &crate::wire::FrameHeader,
    out: &mut Vec<Answer>,
) -> Result<(), WireError> {
    match kind {
        FrameKind::Answers => {
            for answer in crate::wire::answers(inbound.meta()) {
                out.push(answer?);
            }
        }
        FrameKind::Records => out.push(crate::wire::decode_records(header, inbound.payload())?),
        FrameKind::StatusAnswer => out.push(crate::wire::decode_status(header, inbound.meta())?),
        other => return Err(WireError::Unexpected(other)),
    }
    Ok(())
}

const _: () = assert!(ANSWER_BYTES_MAX <= META_BYTES_MAX as usize, "any small answer fits an Answers frame");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbound::Inbound;
    use tidelog::request::{Level, Records};
    use tidelog_io::BufferPool;
    use tidelog_types::{Generation, Index, Position};

    fn append(number: u64) -> ClientCall {
        let payload = Bytes::from_static(b"abc");
        let request = Request::Append { partition: PartitionId(0), session: None, payload, payload_crc: 0 };
        ClientCall { number, request }
    }

    fn receive(send: Vec<Bytes>) -> (Vec<FrameKind>, Vec<Answer>) {
        let (all, pool) = (send.concat(), BufferPool::new(0));
        let mut inbound = Inbound::new(all.len().max(1), all.len().max(1));
        let (mut buffer, _) = inbound.lend(&pool);
        buffer[..all.len()].copy_from_slice(&all);
        inbound.give_back(buffer, all.len());
        let (mut kinds, mut out) = (Vec::new(), Vec::new());
        while let Some(header) = inbound.frame().unwrap() {
            kinds.push(header.kind);
            answers_of(header.kind, &mut inbound, &header, &mut out).unwrap();
            inbound.advance();
        }
        (kinds, out)
    }

    #[test]
    fn answers_of_a_turn_share_a_frame_and_count_until_they_have_left() {
        let mut session = Session::new(Monotonic(0));
        let asked: Vec<u64> = (0..5000).map(|n| session.ask(&append(n), Monotonic(0))).collect();
        for (i, request) in asked.iter().enumerate().rev() {
            let position = Position::new(Index(i as u64), Generation(1));
            session.answer(*request, Ok(Reply::Appended { position }));
        }
        assert_eq!((session.unanswered(), session.in_flight()), (0, 5000));
        let (kinds, answers) = receive(session.take());
        assert_eq!(kinds.len(), 5000 * 32 / (64 << 10) + 1);
        assert_eq!(session.in_flight(), 5000);
        session.sent();
        assert_eq!((session.in_flight(), session.in_flight_bytes()), (0, 0));
        assert_eq!(answers.len(), 5000);
        for answer in answers {
            let position = Position::new(Index(answer.number), Generation(1));
            assert_eq!(answer.response, Ok(Reply::Appended { position }));
        }
    }

    #[test]
    fn a_connection_opens_so_many_sessions_within_their_life() {
        let mut session = Session::new(Monotonic(0));
        let hour = Duration::from_secs(3600);
        let at = |minutes: u64| Monotonic(0).after(Duration::from_secs(60 * minutes));
        let mut open =
            |key: u128, minutes| session.may_open(PartitionId(0), SessionKey(key), at(minutes), 3, hour);
        assert!((0..3).all(|key| open(key, key as u64).is_ok()));
        assert_eq!(open(3, 10), Err(Duration::from_secs(50 * 60)));
        assert_eq!(open(1, 10), Ok(()), "it is open, as far as this connection knows");
        assert_eq!(open(3, 60), Ok(()), "the first one has expired, or is in use");
        assert_eq!(open(4, 60), Err(Duration::from_secs(60)));
    }

    #[test]
    fn sends_are_bounded_and_reads_charged_by_what_they_may_bring() {
        let mut session = Session::new(Monotonic(0));
        let bytes_max = 1 << 20;
        let mut asked = Vec::new();
        for number in 0..4 {
            let request = Request::Read {
                partition: PartitionId(0),
                from: Index(1),
                to: None,
                bytes_max,
                level: Level::Local,
            };
            asked.push(session.ask(&ClientCall { number, request }, Monotonic(0)));
        }
        assert!(session.in_flight_bytes() >= 4 << 20);
        assert_eq!(session.held(), Held { reads: session.in_flight_bytes(), ..Held::default() });
        for request in asked {
            let records = vec![Bytes::from(vec![7u8; 300 << 10])];
            session.answer(
                request,
                Ok(Reply::Records(Records {
                    next: Index(2),
                    high_water: Index(3),
                    first_readable: Index(1),
                    records,
                })),
            );
        }
        assert!(session.in_flight_bytes() < 2 << 20);
        for left in (0..4).rev() {
            let (kinds, answers) = receive(session.take());
            session.sent();
            assert_eq!((kinds, answers.len(), session.in_flight()), (vec![FrameKind::Records], 1, left));
        }
        assert_eq!(session.in_flight_bytes(), 0);
        assert!(!session.has_answers());
    }
}
