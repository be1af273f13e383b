//! Admitting clients' proposals against the end of the leader's log.
//!
//! What is admitted gets the log's next index at once. A refusal that says something of the log (a gap, an expiry, a
//! sequence that is used already) rests on an end that a later leader may cut: it is definite only once
//! [`Replica::confirm`] has answered. It does not know the bytes of a payload, only its checksum.

use crate::effects::{Effects, LogOpKind};
use crate::leader::Entry;
use crate::replica::{Replica, State};
use crate::session::{Full, SESSIONS_MAX, Standing};
use tidelog_types::{
    Clock, EntryMeta, Generation, Index, NodeId, Position, RecordKind, ReplicatedMs, Sequence, SessionId,
    SessionKey, SessionRef,
};

/// What a client wants appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Proposal {
    /// `Data` or `SessionOpen`.
    pub kind: RecordKind,
    /// For `Data` of a session.
    pub session: Option<SessionRef>,
    /// For `SessionOpen`.
    pub session_key: Option<SessionKey>,
    /// Bytes of the whole record, padding included.
    pub record_bytes: u32,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

/// What became of a proposal that was admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admitted {
    /// It is the log's new last entry; its log step is among the effects.
    New(EntryMeta),
    /// It was appended before, here: whoever asks waits for that entry.
    Known(Position),
}

/// Why a request was not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// Ask the leader.
    #[error("not the leader{}", hint.map(|node| format!("; node {node} is")).unwrap_or_default())]
    NotLeader {
        /// Who that is, as far as known here.
        hint: Option<NodeId>,
    },
    /// Too much waits already; try again later.
    #[error("busy: too many requests wait")]
    Busy,
    /// The session is not known to this log, or has expired: open another. Definite once [`Replica::confirm`] says so.
    #[error("the session is not known, or expired")]
    SessionExpired,
    /// As many sessions are open as may be.
    #[error(
        "the partition has {SESSIONS_MAX} sessions, as many as it may have: none expires within {} ms",
        until_ms
    )]
    SessionsFull {
        /// The first one can expire after so many ms.
        until_ms: u64,
    },
    /// The sequence is in the log with another payload. Definite once [`Replica::confirm`] says so.
    #[error("the sequence is in the log at {index}, with another payload")]
    SequenceReused {
        /// Where.
        index: Index,
    },
    /// A request of the session is missing: send that first. Definite once [`Replica::confirm`] says so.
    #[error("the session is at sequence {expected}")]
    SequenceGap {
        /// The next sequence.
        expected: Sequence,
    },
    /// It was appended, so long ago that it is not known where.
    #[error("the request was appended too long ago to know where")]
    SequenceTooOld,
}

impl Replica {
    /// A client's proposal. [`Admitted::New`] comes with its [`crate::effects::LogOp`].
    ///
    /// # Errors
    /// Says what the client may do instead.
    pub fn propose(
        &mut self,
        clock: Clock,
        proposal: Proposal,
        effects: &mut Effects,
    ) -> Result<Admitted, Refused> {
        if !self.is_leader() {
            return Err(Refused::NotLeader { hint: self.leader });
        }
        let Proposal { kind, session, session_key, record_bytes, payload_crc } = proposal;
        assert!(
            match kind {
                RecordKind::Data => session_key.is_none(),
                RecordKind::SessionOpen => session.is_none() && session_key.is_some(),
                _ => false,
            },
            "clients append data or open sessions, and name what that takes"
        );
        if let Some(request) = session {
            let at = self.next_stamp(clock);
            match self.sessions.standing(request, at, payload_crc) {
                Standing::Next => {}
                Standing::At(index) => return Ok(Admitted::Known(self.position(index))),
                Standing::Reused(index) => return Err(Refused::SequenceReused { index }),
                Standing::TooOld => return Err(Refused::SequenceTooOld),
                Standing::Gap { expected } => return Err(Refused::SequenceGap { expected }),
                Standing::Expired => return Err(self.expired(clock, request.session, at, effects)),
            }
        }
        if let Some(key) = session_key {
            let at = self.next_stamp(clock);
            if let Some(id) = self.sessions.by_key(key, at) {
                return Ok(Admitted::Known(self.position(Index(id.0))));
            }
            self.room_for_session(at)?;
        }
        if self.is_full(record_bytes) {
            return Err(Refused::Busy);
        }
        let entry = Entry { kind, session, session_key, log_start: None, record_bytes, payload_crc };
        let entry = self.extend(clock, entry);
        let at = entry.position.index;
        self.order(LogOpKind::Append { first: at, last: at }, effects);
        Ok(Admitted::New(entry))
    }

    /// The stamp that an entry made now gets.
    fn next_stamp(&mut self, clock: Clock) -> ReplicatedMs {
        let State::Leader(leader) = &mut self.state else { panic!("only a leader stamps entries") };
        leader.stamp(clock, self.stamp)
    }

    /// The session has expired at this time. What tells so must be in the log, or the next leader, whose clock may be behind, could
    /// take what was refused here: if no entry is as late, a no-op is made.
    fn expired(
        &mut self,
        clock: Clock,
        session: SessionId,
        at: ReplicatedMs,
        effects: &mut Effects,
    ) -> Refused {
        if self.sessions.expires_unproven(session, at) {
            let proof = Entry::of(RecordKind::Noop);
            if self.is_full(proof.record_bytes) {
                return Refused::Busy;
            }
            let proof = self.extend(clock, proof);
            self.order(LogOpKind::Make(proof), effects);
        }
        Refused::SessionExpired
    }

    fn room_for_session(&mut self, at: ReplicatedMs) -> Result<(), Refused> {
        let State::Leader(leader) = &mut self.state else { return Ok(()) };
        // Looking through the whole table for each of many requests would keep others waiting.
        if at >= leader.sessions_full_until {
            match self.sessions.room(at) {
                Ok(()) => return Ok(()),
                Err(Full::ForNow) => return Err(Refused::Busy),
                Err(Full::Until(until)) => leader.sessions_full_until = until,
            }
        }
        Err(Refused::SessionsFull { until_ms: leader.sessions_full_until.0.saturating_sub(at.0) })
    }

    /// A refusal that was told from the end of this log as it is now. That end may still be cut, and this may not be the leader any
    /// more: the answer comes among [`Effects::reads`] under the caller's number, when all of the log up to here is committed
    /// and a round begun after the request has confirmed the leadership. What was refused is not in the log then, and what lacks
    /// in it will not come by what was sent before.
    ///
    /// # Errors
    /// If this is not the leader, or too many wait.
    pub fn confirm(&mut self, clock: Clock, request: u64, effects: &mut Effects) -> Result<(), Refused> {
        let index = self.log.last().index;
        let State::Leader(leader) = &mut self.state else {
            return Err(Refused::NotLeader { hint: self.leader });
        };
        if leader.refusals.is_full() {
            return Err(Refused::Busy);
        }
        let round = leader.next_round(clock);
        leader.refusals.push(request, round, index.max(leader.first));
        self.serve_reads(clock, effects);
        Ok(())
    }

    /// Whether another entry of so many bytes would be too much uncommitted. One is always admitted when nothing waits,
    /// or a large record could never be.
    pub(crate) fn is_full(&self, record_bytes: u32) -> bool {
        let State::Leader(leader) = &self.state else { return false };
        let entries = u64::try_from(leader.uncommitted.len()).unwrap_or(u64::MAX);
        let full = entries >= self.config.uncommitted_entries_max
            || leader.uncommitted_bytes.saturating_add(u64::from(record_bytes))
                > self.config.uncommitted_bytes_max;
        full && entries > 0
    }

    /// Where a session's entry is. Its generation is 0 if it lies so many leaderships below the log's base that it is
    /// not remembered.
    fn position(&self, index: Index) -> Position {
        Position::new(index, self.log.remembered_generation(index).unwrap_or(Generation::ZERO))
    }
}
