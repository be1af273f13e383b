//! The shard's snapshots: which are wanted, the one under way, and how much of the disk it may take.
//!
//! One at a time, one operation at a time: a snapshot of one partition must not slow down the appends of all. Between two
//! pieces it waits at least ten times as long as the last one took, so that it has the disk for a small part of the time. A job that fails is tried again after a while; whoever asked for it is told why.

use super::format::Header;
use super::job::{Begun, Job, Wants};
use crate::partition::{Context, Origin};
use crate::request::{BusyReason, Reply, RequestError};
use crate::shard::Partitions;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tidelog_io::{Completion, Io, Token, TokenClass, Wait};
use tidelog_types::{Monotonic, PartitionId, Position};

/// Most requests that wait for a snapshot of one partition.
const ASKERS_MAX: usize = 64;
/// Shortest wait between two pieces.
const PAUSE_MIN: Duration = Duration::from_millis(5);
/// A piece's time, times this, is the wait behind it.
const PAUSE_FACTOR: u32 = 10;
/// Longest wait between two pieces, whatever a stalled disk did.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// When a snapshot could not be made: the wait before the next attempt.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// When it cannot begin right now: the same.
const LATER: Duration = Duration::from_millis(50);

/// What a partition says when it is asked to begin.
pub(crate) enum Beginning {
    /// From this.
    From(Begun),
    /// Nothing was applied since the snapshot that covers this.
    Same(Position),
    /// Not right now.
    Later,
    /// Never: it has no state machine.
    Never,
    /// The state machine says no.
    Failed(String),
}

pub(crate) struct Snapshots {
    data_dir: PathBuf,
    wanted: BTreeMap<PartitionId, Vec<Origin>>,
    not_before: BTreeMap<PartitionId, Monotonic>,
    job: Option<Job>,
    /// The operation under way and when it began.
    in_flight: Option<(u64, Monotonic)>,
    next_token: u64,
    resume: Monotonic,
}

impl Snapshots {
    pub(crate) fn new(data_dir: PathBuf) -> Snapshots {
        Snapshots {
            data_dir,
            wanted: BTreeMap::new(),
            not_before: BTreeMap::new(),
            job: None,
            in_flight: None,
            next_token: 0,
            resume: Monotonic(0),
        }
    }

    /// A snapshot is due.
    pub(crate) fn want(&mut self, partition: PartitionId) {
        self.wanted.entry(partition).or_default();
    }

    /// Whether one of this partition is under way or wanted.
    pub(crate) fn has(&self, partition: PartitionId) -> bool {
        self.wanted.contains_key(&partition) || self.job.as_ref().is_some_and(|j| j.partition == partition)
    }

    /// Somebody asks for one; it covers what is applied when it begins.
    pub(crate) fn ask(&mut self, cx: &mut Context<'_>, partition: PartitionId, origin: Origin) {
        let askers = self.wanted.entry(partition).or_default();
        if askers.len() >= ASKERS_MAX {
            return cx.respond(
                origin,
                Err(RequestError::Busy { retry_after: cx.retry_after, reason: BusyReason::Load }),
            );
        }
        askers.push(origin);
        self.not_before.remove(&partition);
    }

    /// An operation of ours is done.
    pub(crate) fn complete(&mut self, completion: Completion, now: Monotonic) {
        let Some((_, began)) = self.in_flight.take_if(|(token, _)| *token == completion.token.value) else {
            return;
        };
        if let Some(job) = &mut self.job {
            if job.is_bulk() {
                let pause = now.since(began).saturating_mul(PAUSE_FACTOR).clamp(PAUSE_MIN, PAUSE_MAX);
                self.resume = now.after(pause);
            }
            job.done(completion.result);
        }
    }

    /// When it wants to go on by itself.
    pub(crate) fn deadline(&self) -> Option<Monotonic> {
        if self.in_flight.is_some() {
            return None;
        }
        match &self.job {
            Some(job) if job.ordered => None,
            Some(_) => Some(self.resume),
            None => {
                let at = |p| self.not_before.get(p).copied().unwrap_or(Monotonic(0));
                self.wanted.keys().map(at).min()
            }
        }
    }

    /// Takes the next steps. Partitions whose state changed come back.
    pub(crate) fn run(
        &mut self,
        cx: &mut Context<'_>,
        partitions: &mut Partitions,
        touched: &mut impl FnMut(PartitionId),
    ) {
        let now = cx.clock.now;
        while self.in_flight.is_none() {
            let Some(job) = &mut self.job else {
                if !self.begin(cx, partitions) {
                    return;
                }
                continue;
            };
            let Some(partition) = partitions.get_mut(job.partition) else {
                self.job = None;
                continue;
            };
            if job.is_bulk() && now < self.resume {
                return;
            }
            match job.wants(&cx.io.buffers()) {
                Wants::Op(op) => {
                    self.next_token += 1;
                    self.in_flight = Some((self.next_token, now));
                    cx.io.submit(Token::engine(self.next_token), op);
                }
                Wants::Mark if !job.ordered => {
                    if partition.snapshot_taken(cx, job.covered) {
                        job.ordered = true;
                        touched(job.partition);
                        return;
                    }
                    job.give_up("the log has moved on past it".into());
                }
                Wants::Mark if partition.replica().snapshot() >= job.covered => {
                    job.ordered = false;
                    job.marked();
                    partition.shorten(cx);
                    touched(job.partition);
                }
                Wants::Mark => return,
                Wants::Nothing(outcome) => {
                    if let Some(job) = self.job.take() {
                        self.end(cx, job, outcome);
                    }
                }
            }
        }
    }

    /// Begins the next one. False if none can.
    fn begin(&mut self, cx: &mut Context<'_>, partitions: &mut Partitions) -> bool {
        let now = cx.clock.now;
        let due = |p: &PartitionId| self.not_before.get(p).is_none_or(|at| *at <= now);
        let Some(id) = self.wanted.keys().copied().find(|p| due(p)) else { return false };
        self.not_before.remove(&id);
        let askers = self.wanted.remove(&id).unwrap_or_default();
        let beginning = partitions.get_mut(id).map_or(Beginning::Never, |p| p.begin_snapshot(now));
        match beginning {
            Beginning::From(begun) => {
                tracing::info!(partition = %id, covered = ?begun.covered, "snapshot begins");
                let header = Header { partition: id, covered: begun.covered, cluster: cx.cluster };
                self.job = Some(Job::new(&self.data_dir, header, begun, askers, now));
                self.resume = now;
            }
            Beginning::Same(covered) => {
                for asker in askers {
                    cx.respond(asker, Ok(Reply::Snapshot { covered, bytes: 0 }));
                }
            }
            Beginning::Later => {
                self.wanted.insert(id, askers);
                self.not_before.insert(id, now.after(LATER));
            }
            Beginning::Never => {
                let why = format!(
                    "partition {id} is a plain log here: it has no state machine to take a snapshot of. Its start is moved by [retention] age and bytes"
                );
                for asker in askers {
                    cx.respond(asker, Err(RequestError::Invalid(why.clone())));
                }
            }
            Beginning::Failed(why) => self.failed(cx, id, askers, &why),
        }
        true
    }

    fn end(&mut self, cx: &mut Context<'_>, job: Job, outcome: Result<super::format::Totals, String>) {
        let Job { partition, covered, askers, began, .. } = job;
        match outcome {
            Ok(totals) => {
                let bytes = totals.base_bytes + totals.state_bytes;
                let ms = u64::try_from(cx.clock.now.since(began).as_millis()).unwrap_or(u64::MAX);
                tracing::info!(%partition, ?covered, bytes, ms, "snapshot taken");
                for asker in askers {
                    cx.respond(asker, Ok(Reply::Snapshot { covered, bytes }));
                }
            }
            Err(why) => self.failed(cx, partition, askers, &why),
        }
    }

    fn failed(&mut self, cx: &mut Context<'_>, partition: PartitionId, askers: Vec<Origin>, why: &str) {
        tracing::warn!(%partition, %why, "no snapshot was taken; it is tried again later");
        self.not_before.insert(partition, cx.clock.now.after(RETRY_AFTER));
        for asker in askers {
            let why = format!("no snapshot of partition {partition} was taken: {why}");
            cx.respond(asker, Err(RequestError::Unavailable(why)));
        }
        self.want(partition);
    }

    /// Whoever waits, for the end of this life of the log.
    pub(crate) fn abandon(&mut self) -> Vec<Origin> {
        let mut askers: Vec<Origin> = std::mem::take(&mut self.wanted).into_values().flatten().collect();
        askers.extend(self.job.iter_mut().flat_map(|job| std::mem::take(&mut job.askers)));
        askers
    }

    /// A completion that came while the log was closed.
    pub(crate) fn drained(&mut self, completion: &Completion) {
        self.in_flight.take_if(|(token, _)| *token == completion.token.value);
    }

    /// Waits for the operation under way: a next life must not find it still working. Others' completions come back.
    pub(crate) fn drain(&mut self, io: &mut dyn Io) -> Vec<Completion> {
        let (mut got, mut others) = (Vec::new(), Vec::new());
        while let Some((token, _)) = self.in_flight {
            io.poll(Wait::Forever, &mut got);
            for completion in got.drain(..) {
                if completion.token.class != TokenClass::Engine {
                    others.push(completion);
                } else if completion.token.value == token {
                    self.in_flight = None;
                }
            }
        }
        self.job = None;
        others
    }
}
