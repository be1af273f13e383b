//! Driving a target: closed or open loop, on one thread.
//!
//! What it promises: in an open loop no slow answer delays a later arrival, and latency counts from when a record was due, not from
//! when there was room to send it (no coordinated omission, B7). Records that are refused, or whose outcome stays unknown, are
//! counted and never taken for acknowledged. What is in flight is bounded.
//!
//! What it does not know: what is behind the target, and whether it keeps what it acknowledges: the payloads are made so that a
//! reader can check that.

use crate::arrival::{Arrivals, Spacing};
use crate::clock::{self, Moment};
use crate::error::BenchError;
use crate::latency::Latencies;
use crate::payload::{Payloads, Stamp};
use crate::report::Errors;
use crate::usage::{Meter, Usage};
use bytes::Bytes;
use core::time::Duration;

/// Most records in flight.
pub const IN_FLIGHT_LIMIT: u32 = 1 << 20;
/// Highest rate of an open loop.
const RATE_MAX: f64 = 1e7;
/// After being turned away, a closed loop waits so long: it is to measure the target, not to storm it.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// What is in flight when a span ends is waited for so long.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Durable as the target promises.
    Acked,
    /// Turned away for now.
    Busy,
    /// Turned away for good.
    Refused,
    /// Not learned.
    Unknown,
}

/// One record's end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Done {
    /// As submitted.
    pub tag: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// Where records go.
pub trait Target {
    /// Hands a record over. It may stay with the target until the next [`Target::poll`].
    fn submit(&mut self, tag: u64, payload: Bytes);

    /// Starts everything handed over, waits until something is done or until the moment, and adds all that is done.
    ///
    /// # Errors
    /// If the target is gone: nothing more will be done.
    fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError>;

    /// Durable batches so far, if it counts them.
    fn batches(&mut self) -> Option<u64> {
        None
    }

    /// Ends it, once nothing is in flight.
    ///
    /// # Errors
    /// If it did not end well.
    fn close(self: Box<Self>) -> Result<(), BenchError>;
}

/// When records are sent.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// So many logical writers, each with one record in flight.
    Closed {
        /// Their number.
        writers: u32,
    },
    /// By a schedule, whatever the target does.
    Open {
        /// Average rate.
        per_second: f64,
        /// How arrivals are spaced.
        spacing: Spacing,
        /// Most records in flight. Further arrivals wait, and their wait counts.
        in_flight_max: u32,
    },
}

impl Pace {
    /// Most records in flight.
    pub fn in_flight_max(&self) -> u32 {
        match self {
            Pace::Closed { writers } => *writers,
            Pace::Open { in_flight_max, .. } => *in_flight_max,
        }
    }
}

/// What was measured, over all spans.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Records acknowledged within the measured time.
    pub acked: u64,
    /// Open loop: records that were due in it. Each was acknowledged in time, or is late, or an error.
    pub due: u64,
    /// Of these, acknowledged only after it.
    pub late: u64,
    /// Records that were not acknowledged.
    pub errors: Errors,
    /// Latencies.
    pub latencies: Latencies,
    /// What it cost.
    pub usage: Usage,
    /// Durable batches, if the target counts them.
    pub batches: Option<u64>,
}

impl Measured {
    /// Nothing yet, of a run of about `run`.
    pub fn new(run: Duration) -> Measured {
        Measured {
            acked: 0,
            due: 0,
            late: 0,
            errors: Errors::default(),
            latencies: Latencies::new(run),
            usage: Usage::default(),
            batches: None,
        }
    }
}

/// A record in flight, or room for one.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// When it was due.
    due: Moment,
    sequence: u64,
    in_flight: bool,
}

/// Drives one target through spans of load.
#[derive(Debug)]
pub struct Driver {
    pace: Pace,
    payloads: Payloads,
    slots: Vec<Slot>,
    free: Vec<u32>,
    round: u32,
    done: Vec<Done>,
    drain_max: Duration,
}

/// Where a span stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Warm,
    Measure { start: Moment, end: Moment },
    Drain { start: Moment, end: Moment, until: Moment },
}

impl Driver {
    /// With records of `payload_bytes`.
    ///
    /// # Errors
    /// If the pace or the payload is out of its bounds.
    pub fn new(pace: Pace, payload_bytes: usize) -> Result<Driver, BenchError> {
        let wrong = |what: String| Err(BenchError::Options(what));
        let in_flight = pace.in_flight_max();
        if !(1..=IN_FLIGHT_LIMIT).contains(&in_flight) {
            return wrong(format!("{in_flight} records in flight: 1 to {IN_FLIGHT_LIMIT} are possible"));
        }
        if let Pace::Open { per_second, .. } = pace
            && !(per_second.is_finite() && (0.001..=RATE_MAX).contains(&per_second))
        {
            return wrong(format!("a rate of {per_second} records/s: 0.001 to {RATE_MAX} are possible"));
        }
        let Some(payloads) = Payloads::new(payload_bytes) else {
            return wrong(format!(
                "a payload of {payload_bytes} bytes: {} (the stamp that a reader checks) to {} are possible",
                crate::payload::STAMP_BYTES,
                tidelog_types::limits::PAYLOAD_BYTES_MAX
            ));
        };
        Ok(Driver {
            pace,
            payloads,
            slots: vec![Slot::default(); in_flight as usize],
            free: (0..in_flight).rev().collect(),
            round: 0,
            done: Vec::new(),
            drain_max: DRAIN_MAX,
        })
    }

    /// One span: load for `warm` unmeasured, then for `measure`, then waits for what is in flight. Adds to `measured`.
    ///
    /// # Errors
    /// If the target is gone, or acknowledged nothing at all and answers no more.
    pub fn span(
        &mut self,
        target: &mut dyn Target,
        meter: &Meter,
        warm: Duration,
        measure: Duration,
        measured: &mut Measured,
    ) -> Result<(), BenchError> {
        self.round = self.round.wrapping_add(1);
        let began = clock::now();
        let mut arrivals = match self.pace {
            Pace::Closed { .. } => None,
            Pace::Open { per_second, spacing, .. } => {
                Some(Arrivals::new(began, per_second, spacing, u64::from(self.round)))
            }
        };
        let warm_end = began.after(warm);
        let mut phase = Phase::Warm;
        let mut before = meter.read();
        let mut batches_before = None;
        let mut pause_until = began;
        loop {
            let mut now = clock::now();
            phase = match phase {
                Phase::Warm if now >= warm_end => {
                    before = meter.read();
                    batches_before = target.batches();
                    now = clock::now();
                    measured.latencies.begin(now, clock::wall());
                    Phase::Measure { start: now, end: now.after(measure) }
                }
                Phase::Measure { start, end } if now >= end => {
                    measured.usage.add(&meter.read().since(&before));
                    measured.latencies.end(now);
                    if let (Some(before), Some(after)) = (batches_before, target.batches()) {
                        *measured.batches.get_or_insert(0) += after.saturating_sub(before);
                    }
                    Phase::Drain { start, end, until: now.after(self.drain_max) }
                }
                same => same,
            };
            if let Phase::Drain { start, end, until } = phase {
                // What was due is still sent as room comes, and its wait counts.
                if let Some(arrivals) = &mut arrivals {
                    self.feed(target, Some(arrivals), now, end);
                }
                if self.in_flight() == 0 {
                    return Ok(());
                }
                if now >= until {
                    self.give_up_unsent(arrivals.as_mut(), start, end, now, measured);
                    return self.give_up_unanswered(start, end, now, measured);
                }
            } else if now >= pause_until {
                self.feed(target, arrivals.as_mut(), now, now.after_nanos(1));
            }
            let until = self.wake_at(phase, warm_end, arrivals.as_ref(), pause_until, now);
            target.poll(until, &mut self.done)?;
            let now = clock::now();
            let mut busy = false;
            let mut answers = core::mem::take(&mut self.done);
            for done in answers.drain(..) {
                busy |= self.finish(phase, done, now, measured);
            }
            self.done = answers;
            if busy && arrivals.is_none() {
                pause_until = now.after(BUSY_PAUSE);
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Sends what is due before `limit` and has room.
    fn feed(
        &mut self,
        target: &mut dyn Target,
        mut arrivals: Option<&mut Arrivals>,
        now: Moment,
        limit: Moment,
    ) {
        while !self.free.is_empty() {
            let due = match arrivals.as_mut() {
                None => now,
                Some(arrivals) => match arrivals.take_before(limit) {
                    Some(due) => due,
                    None => return,
                },
            };
            let Some(writer) = self.free.pop() else { return };
            let slot = &mut self.slots[writer as usize];
            *slot = Slot { due, sequence: slot.sequence + 1, in_flight: true };
            let payload = self.payloads.make(Stamp { writer, sequence: slot.sequence });
            target.submit(u64::from(self.round) << 32 | u64::from(writer), payload);
        }
    }

    fn wake_at(
        &self,
        phase: Phase,
        warm_end: Moment,
        arrivals: Option<&Arrivals>,
        pause_until: Moment,
        now: Moment,
    ) -> Moment {
        let phase_end = match phase {
            Phase::Warm => warm_end,
            Phase::Measure { end, .. } => end,
            Phase::Drain { until, .. } => return until,
        };
        if self.free.is_empty() {
            return phase_end;
        }
        let next =
            if pause_until > now { pause_until } else { arrivals.map_or(phase_end, Arrivals::next_due) };
        next.min(phase_end)
    }

    /// Takes an answer in. True: the target is busy.
    fn finish(&mut self, phase: Phase, done: Done, now: Moment, measured: &mut Measured) -> bool {
        let writer = done.tag as u32;
        let slot = match self.slots.get_mut(writer as usize) {
            // Of this span, and not answered yet.
            Some(slot) if done.tag >> 32 == u64::from(self.round) && slot.in_flight => slot,
            _ => return false,
        };
        slot.in_flight = false;
        let due = slot.due;
        self.free.push(writer);
        let (start, end) = match phase {
            Phase::Warm => return done.outcome != Outcome::Acked,
            Phase::Measure { start, end } | Phase::Drain { start, end, .. } => (start, end),
        };
        // A closed loop's latencies are those of the records that end in the span, an open one's of those due in it.
        let ended_within = now < end;
        let counts = match self.pace {
            Pace::Closed { .. } => ended_within,
            Pace::Open { .. } => {
                let counts = due >= start && due < end;
                measured.due += u64::from(counts);
                counts
            }
        };
        match done.outcome {
            Outcome::Acked => {
                measured.acked += u64::from(ended_within);
                measured.late += u64::from(counts && !ended_within);
                if counts {
                    measured.latencies.record(now, now.nanos_since(due), 1);
                }
                return false;
            }
            Outcome::Busy => measured.errors.busy += u64::from(counts),
            Outcome::Refused => measured.errors.refused += u64::from(counts),
            Outcome::Unknown => measured.errors.unknown += u64::from(counts),
        }
        true
    }

    /// Arrivals of the span that found no room to the end: counted, and their wait so far as well.
    fn give_up_unsent(
        &mut self,
        arrivals: Option<&mut Arrivals>,
        start: Moment,
        end: Moment,
        now: Moment,
        measured: &mut Measured,
    ) {
        let Some(arrivals) = arrivals else { return };
        while let Some(due) = arrivals.take_before(end) {
            if due >= start {
                measured.due += 1;
                measured.errors.unsent += 1;
                measured.latencies.record(now, now.nanos_since(due), 1);
            }
        }
    }

    fn give_up_unanswered(
        &mut self,
        start: Moment,
        end: Moment,
        now: Moment,
        measured: &mut Measured,
    ) -> Result<(), BenchError> {
        let in_flight = self.in_flight();
        for (writer, slot) in (0u32..).zip(&mut self.slots) {
            if core::mem::take(&mut slot.in_flight) {
                self.free.push(writer);
                if slot.due >= start && slot.due < end {
                    measured.due += u64::from(matches!(self.pace, Pace::Open { .. }));
                    measured.errors.unanswered += 1;
                    measured.latencies.record(now, now.nanos_since(slot.due), 1);
                }
            }
        }
        if measured.acked == 0 {
            return Err(BenchError::Stuck { in_flight, seconds: self.drain_max.as_secs() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;
    use std::path::Path;

    /// Answers in order after so many polls, and checks what it gets.
    #[derive(Default)]
    struct Fake {
        queue: VecDeque<u64>,
        seen: Vec<Stamp>,
        most: usize,
        /// Answers this outcome to every n-th record.
        every: Option<(usize, Outcome)>,
        answers_per_poll: usize,
        silent: bool,
        /// How long a poll takes at least.
        slow: Duration,
    }

    impl Target for Fake {
        fn submit(&mut self, tag: u64, payload: Bytes) {
            let writer = u32::from_le_bytes(payload[4..8].try_into().unwrap());
            let sequence = u64::from_le_bytes(payload[8..16].try_into().unwrap());
            self.seen.push(Stamp { writer, sequence });
            self.queue.push_back(tag);
            self.most = self.most.max(self.queue.len());
        }
        fn poll(&mut self, until: Moment, done: &mut Vec<Done>) -> Result<(), BenchError> {
            if self.silent || self.queue.is_empty() {
                std::thread::park_timeout(until.since(clock::now()).min(Duration::from_millis(5)));
                return Ok(());
            }
            let ready = clock::now().after(self.slow);
            while clock::now() < ready {
                std::thread::yield_now();
            }
            for tag in self.queue.drain(..self.answers_per_poll.clamp(1, self.queue.len())) {
                let outcome = match self.every {
                    Some((n, outcome)) if (done.len() + self.seen.len()).is_multiple_of(n) => outcome,
                    _ => Outcome::Acked,
                };
                done.push(Done { tag, outcome });
            }
            Ok(())
        }
        fn close(self: Box<Self>) -> Result<(), BenchError> {
            Ok(())
        }
    }

    fn run(pace: Pace, fake: &mut Fake, spans: usize) -> Measured {
        let meter = Meter::new(Some(Path::new("/")), Vec::new());
        let mut driver = Driver::new(pace, 64).unwrap();
        let mut measured = Measured::new(Duration::from_secs(1));
        for _ in 0..spans {
            let (warm, measure) = (Duration::from_millis(5), Duration::from_millis(40));
            driver.span(fake, &meter, warm, measure, &mut measured).unwrap();
        }
        measured
    }

    #[test]
    fn a_closed_loop_keeps_one_record_of_each_writer_in_flight() {
        let mut fake = Fake { answers_per_poll: 2, ..Fake::default() };
        let measured = run(Pace::Closed { writers: 5 }, &mut fake, 2);
        assert_eq!(fake.most, 5);
        assert!(measured.acked > 0 && measured.errors == Errors::default());
        assert_eq!(measured.latencies.count(), measured.acked);
        for writer in 0..5 {
            let sequences: Vec<u64> =
                fake.seen.iter().filter(|s| s.writer == writer).map(|s| s.sequence).collect();
            assert!(sequences.iter().copied().eq(1..=sequences.len() as u64), "dense across spans");
        }
    }

    #[test]
    fn refusals_are_never_acknowledgements() {
        for outcome in [Outcome::Busy, Outcome::Refused, Outcome::Unknown] {
            let mut fake = Fake { every: Some((1, outcome)), answers_per_poll: 8, ..Fake::default() };
            let measured = run(Pace::Closed { writers: 3 }, &mut fake, 1);
            assert_eq!((measured.acked, measured.latencies.count()), (0, 0));
            assert!(measured.errors.total() > 0);
        }
    }

    #[test]
    fn an_open_loop_keeps_its_rate_and_counts_every_arrival() {
        let pace = Pace::Open { per_second: 20_000.0, spacing: Spacing::Uniform, in_flight_max: 4096 };
        let mut fake = Fake { answers_per_poll: 4096, ..Fake::default() };
        let measured = run(pace, &mut fake, 1);
        // 40 ms at 20,000/s, whatever the machine does meanwhile: every arrival of the span has a latency.
        assert!((799..=801).contains(&measured.latencies.count()), "{}", measured.latencies.count());
        assert_eq!((measured.errors.unsent, measured.due), (0, measured.latencies.count()));
    }

    /// Records that were acknowledged when the measured time was over were in no counter.
    #[test]
    fn a_rate_that_cannot_be_reached_leaves_no_record_uncounted() {
        let pace = Pace::Open { per_second: 100_000.0, spacing: Spacing::Uniform, in_flight_max: 1 << 16 };
        let meter = Meter::new(Some(Path::new("/")), Vec::new());
        let mut driver = Driver::new(pace, 64).unwrap();
        let mut measured = Measured::new(Duration::from_secs(1));
        // At most a record a poll, and polls take their time: far less than what is due.
        let mut fake = Fake { answers_per_poll: 1, slow: Duration::from_micros(100), ..Fake::default() };
        driver.span(&mut fake, &meter, Duration::ZERO, Duration::from_millis(20), &mut measured).unwrap();
        assert_eq!(measured.due, measured.latencies.count());
        assert!(measured.late > 1000, "{measured:?}");
        // Acknowledged in time: those, and some that were due before the measured time.
        assert_eq!(measured.errors, Errors::default());
        assert!(measured.acked >= measured.due - measured.late, "{measured:?}");
        assert!(measured.acked < measured.due / 2, "{measured:?}");
    }

    #[test]
    fn a_silent_target_leaves_arrivals_unsent_and_is_an_error() {
        let pace = Pace::Open { per_second: 10_000.0, spacing: Spacing::Uniform, in_flight_max: 10 };
        let meter = Meter::new(Some(Path::new("/")), Vec::new());
        let mut driver = Driver::new(pace, 64).unwrap();
        driver.drain_max = Duration::from_millis(20);
        let mut measured = Measured::new(Duration::from_secs(1));
        let mut fake = Fake { silent: true, ..Fake::default() };
        let span = driver.span(&mut fake, &meter, Duration::ZERO, Duration::from_millis(20), &mut measured);
        assert!(matches!(span, Err(BenchError::Stuck { in_flight: 10, .. })), "{span:?}");
        assert_eq!((driver.in_flight(), fake.most), (0, 10));
        assert!((195..=200).contains(&measured.errors.total()), "20 ms at 10,000/s: {:?}", measured.errors);
        assert!(measured.errors.unsent >= 185 && measured.errors.unanswered <= 10, "{:?}", measured.errors);
        assert_eq!(measured.latencies.count(), measured.errors.total());
    }

    #[test]
    fn bounds_are_checked() {
        let closed = |writers| Pace::Closed { writers };
        assert!(Driver::new(closed(0), 64).is_err() && Driver::new(closed(IN_FLIGHT_LIMIT + 1), 64).is_err());
        assert!(Driver::new(closed(1), 15).is_err() && Driver::new(closed(1), 3 << 20).is_err());
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let pace = Pace::Open { per_second, spacing: Spacing::Poisson, in_flight_max: 1 };
            assert!(Driver::new(pace, 64).is_err());
        }
    }
}
