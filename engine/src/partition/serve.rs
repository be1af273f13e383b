//! Reading a replica's log: for clients, and for its state machine. Nothing above the high-water mark is read (R18).

use super::applying::Pace;
use super::{Context, Partition, Round};
use crate::partition::Wanted;
use crate::reads::ReadFor;
use crate::request::{Records, Reply, RequestError};
use crate::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog_consensus::Refused;
use tidelog_types::limits::APPEND_BYTES_MAX;
use tidelog_types::{Index, RecordKind, record};
use tidelog_wal::Run;

/// Most linearizable reads waiting for their round in one partition.
const READS_WAITING_MAX: usize = 4096;

/// A state machine and how far it is: it may be further than a mark that restarted at its last durable hint.
pub(crate) struct Machine {
    machine: Box<dyn StateMachine>,
    pub(super) applied: Index,
    /// Record bytes applied since the last snapshot began.
    pub(super) bytes: u64,
    pace: Pace,
}

impl Machine {
    /// A state machine that this process has given nothing yet.
    pub(crate) fn new(machine: Box<dyn StateMachine>) -> Machine {
        Machine { applied: machine.applied(), machine, bytes: 0, pace: Pace::default() }
    }

    /// Everything up to here it has, from a snapshot.
    pub(crate) fn restored(&mut self, covered: Index) {
        self.applied = covered;
    }

    /// Everything up to here was given to it.
    pub(crate) fn applied(&self) -> Index {
        self.applied
    }

    /// What it has made durable itself.
    pub(super) fn durable(&self) -> Index {
        self.machine.applied()
    }

    pub(super) fn view(&mut self) -> std::io::Result<SnapshotView> {
        self.machine.snapshot()
    }

    pub(crate) fn inner(&mut self) -> &mut dyn StateMachine {
        &mut *self.machine
    }
}

impl Partition {
    pub(super) fn read_round(&mut self, cx: &mut Context<'_>, wanted: Wanted) {
        if self.rounds.len() >= READS_WAITING_MAX {
            return cx.respond(wanted.origin, Err(RequestError::busy(cx.retry_after)));
        }
        self.round_next += 1;
        let round = self.round_next;
        match self.replica.read_index(cx.clock, round, &mut cx.shared.effects) {
            Ok(()) => {
                self.rounds.insert(round, Round::Read(wanted));
                self.settle(cx, super::writes::Source::None);
            }
            // The only voter, kept from leading by damage: what is committed is what its log holds.
            Err(Refused::NotLeader { .. }) if self.refused_for_damage().is_some() => self.serve(cx, wanted),
            Err(Refused::NotLeader { hint }) => {
                let error = cx.not_leader(hint);
                cx.respond(wanted.origin, Err(error));
            }
            Err(_) => cx.respond(wanted.origin, Err(RequestError::busy(cx.retry_after))),
        }
    }

    /// A read that may be answered from here on: it gets in line for its share of a turn.
    pub(super) fn serve(&mut self, cx: &mut Context<'_>, wanted: Wanted) {
        if let Err(wanted) = cx.reads.wait(self.id, wanted) {
            cx.respond(wanted.origin, Err(RequestError::busy(cx.retry_after)));
        }
    }

    /// Answers a read in its turn, or begins to read for it. The bytes that this took; the read, if it has to wait for others to
    /// come from the disk.
    pub(crate) fn serve_now(&mut self, cx: &mut Context<'_>, wanted: Wanted) -> Result<usize, Wanted> {
        let marks = self.marks();
        let (from, high_water) = (wanted.from.max(Index(1)), marks.high_water);
        let last = wanted.to.map_or(high_water, |to| to.min(high_water));
        let first = self.first_readable();
        let answer = if from < first {
            Err(RequestError::Truncated { first })
        } else if from > high_water.next() {
            Err(RequestError::Ahead { asked: from, high_water })
        } else if from > last {
            Ok(Reply::Records(Records { next: from, high_water, first_readable: first, records: vec![] }))
        } else if let Some(last) = self.readable(from, last) {
            let bytes_max = wanted.bytes_max.clamp(1, APPEND_BYTES_MAX);
            if let Some(run) = cx.wal.cached(self.id, from, last, bytes_max) {
                let bytes = run.pieces.iter().map(bytes::Bytes::len).sum();
                self.answer_read(cx, wanted, run);
                return Ok(bytes);
            }
            return match cx.reads.start(ReadFor::Client { partition: self.id, wanted }) {
                Some(read) => {
                    cx.wal.read(cx.io, read, self.id, from, last, bytes_max);
                    Ok(bytes_max)
                }
                None => cx.reads.refused().map_or(Ok(0), Err),
            };
        } else {
            Err(self.damage_error(from))
        };
        cx.respond(wanted.origin, answer);
        Ok(0)
    }

    pub(crate) fn answer_read(&self, cx: &mut Context<'_>, wanted: Wanted, run: Run) {
        let marks = self.marks();
        assert!(run.last <= marks.high_water, "nothing above the high-water mark reaches a reader");
        let records = Records {
            next: run.last.next(),
            high_water: marks.high_water,
            first_readable: marks.first_readable,
            records: run.pieces,
        };
        cx.respond(wanted.origin, Ok(Reply::Records(records)));
    }

    /// A client's read from the disk failed: if what it asked for has gone meanwhile, that is the answer.
    pub(crate) fn refuse_read(&self, cx: &mut Context<'_>, wanted: Wanted, error: RequestError) {
        let first = self.first_readable();
        let gone = wanted.from.max(Index(1)) < first;
        let error = if gone { RequestError::Truncated { first } } else { error };
        cx.respond(wanted.origin, Err(error));
    }

    pub(crate) fn apply(&mut self, cx: &mut Context<'_>) {
        let applied = self.machine.as_ref().map_or(self.applied, |machine| machine.applied);
        let limit = self.replica.applicable_behind(applied);
        if self.machine.is_none() {
            self.applied = self.applied.max(limit);
            return;
        }
        while let Some((first, pace)) = self.machine.as_ref().map(|m| (m.applied.next(), m.pace))
            && first <= limit
            && !self.apply_reading
            && cx.shared.applying.may(self.id, cx.io.moment())
        {
            match cx.wal.cached(self.id, first, limit, pace.bytes()) {
                Some(run) => self.apply_run(cx, &run),
                None => match cx.reads.start(ReadFor::Apply { partition: self.id }) {
                    Some(read) => {
                        self.apply_reading = true;
                        cx.wal.read(cx.io, read, self.id, first, limit, pace.bytes());
                    }
                    None => break,
                },
            }
        }
    }

    /// Records read for the state machine have arrived (or could not be read; then a later turn asks again).
    pub(crate) fn apply_read(&mut self, cx: &mut Context<'_>, run: Option<Run>) {
        self.apply_reading = false;
        if let Some(run) = run {
            if self.machine.as_ref().is_some_and(|m| run.first == m.applied.next()) {
                self.apply_run(cx, &run);
            }
            self.apply(cx);
        }
    }

    fn apply_run(&mut self, cx: &mut Context<'_>, run: &Run) {
        let Machine { machine, applied, bytes, pace } =
            self.machine.as_mut().expect("only called with a state machine");
        let begun = cx.io.moment();
        for piece in &run.pieces {
            for record in record::records(piece) {
                let (_, header, payload) = record.expect("runs hold verified records");
                assert!(header.index == applied.next(), "applied without a gap (invariant 5)");
                if header.kind == RecordKind::Data {
                    machine.apply(Applied {
                        index: header.index,
                        generation: header.generation,
                        timestamp: header.timestamp,
                        payload,
                    });
                }
                *applied = header.index;
                *bytes += header.record_bytes() as u64;
            }
        }
        pace.note(cx.io.moment().since(begun));
        cx.shared.applying.took(run.bytes);
    }
}
