//! A log on the simulated disk beside a model of what it was told and what it acknowledged.

#![allow(dead_code, unreachable_pub, unused_imports)] // each test file uses its part

mod judge;
mod model;
mod random;
mod reading;
pub mod scripts;
mod told;

pub use judge::judge;
pub use model::{Act, Part, State, brief, kept};
pub use reading::{batches, segments};
pub use told::Told;

use model::apply;
use std::collections::BTreeMap;
use std::time::Duration;
use tidelog_io::{Completion, Io, Wait};
use tidelog_sim::{SimIo, World};
use tidelog_types::{
    Generation, Incarnation, Index, NodeId, PartitionId, RecordHeader, RecordKind, ReplicatedMs, ShardId,
    Ticket,
};
use tidelog_wal::inspect::{self, Eyes};
use tidelog_wal::{Busy, OpenError, Options, RecoveryReport, Run, Wal, WalError, WalEvent};

pub const NODE: u64 = 1;
pub const DIR: &str = "/data/wal";
pub const STORE: u64 = 0x5eed;

/// Small segments and batches: rolls, full batches and missing spares are common.
pub fn tiny() -> Options {
    Options {
        segment_bytes: 192 << 10,
        batch_bytes_max: 64 << 10,
        spares: 1,
        cache_bytes_max: 48 << 10,
        cluster_tag: 77,
        checkpoint_every: 96 << 10,
        ..Options::new(DIR, NodeId(NODE), ShardId(0), Incarnation(STORE))
    }
}

/// The same without checkpoints: an opening reads everything.
pub fn whole() -> Options {
    Options { checkpoint_every: 1 << 50, ..tiny() }
}

/// Seeds from 1, as many as a test has time for; `TIDELOG_TEST_ROUNDS` times as many if that is set.
pub fn seeds(count: u64) -> std::ops::RangeInclusive<u64> {
    let rounds = std::env::var("TIDELOG_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    1..=count * rounds
}

/// Says of which seed a life was that failed.
pub struct Naming(pub u64);

impl Drop for Naming {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("seed {}", self.0);
        }
    }
}

/// Invariant 23: what the tools say about a directory agrees with what an opening does with it.
fn foretold(
    said: Result<inspect::Report, OpenError>,
    opened: &Result<(Wal, RecoveryReport, Vec<Completion>), OpenError>,
    told: &Told,
) {
    match (opened, said) {
        // It was the disk, or the power.
        (Err(OpenError::Io(_) | OpenError::NoSpace { .. }), _) => {}
        (Err(error), Ok(said)) => assert!(
            said.stopped.is_some() && said.is_damaged()
                || matches!(error, OpenError::Gone { .. } | OpenError::Foreign { .. }),
            "invariant 23: {error}; the tools say nothing of it: {said:?}"
        ),
        (Err(_), Err(_)) => {}
        (Ok((_, report, _)), Err(error)) => {
            assert!(
                report.fresh && matches!(error, OpenError::Io(_)),
                "invariant 23: it opens; the tools say {error}"
            );
        }
        (Ok((_, report, _)), Ok(said)) => {
            assert!(said.stopped.is_none(), "invariant 23: it opens; the tools say {:?}", said.stopped);
            assert_eq!(said.epoch + 1, report.epoch.min(said.epoch + 1), "invariant 23: epochs");
            let mut lost = BTreeMap::<u64, u64>::new();
            told.lost.keys().for_each(|at| *lost.entry(at.0).or_default() += 1);
            let ours = told.lost.iter().filter(|(at, _)| at.1 >= told.state[&at.0].low).count() as u64;
            assert!(
                said.lost + said.suspect >= ours,
                "invariant 23: {ours} entries are lost; the tools say {} and {}: {said:?}",
                said.lost,
                said.suspect
            );
            let older = said.lost + said.suspect - ours;
            assert!(
                older == 0 || said.checkpoint.is_some(),
                "invariant 23: {ours} entries are lost; the tools say {} and {}: {said:?}",
                said.lost,
                said.suspect
            );
            for (partition, end) in &said.partitions {
                let part = told.state.get(&partition.0).cloned().unwrap_or_default();
                assert_eq!(end.last, part.last(), "invariant 23: the end of partition {partition}");
                let promise = (end.generation.0, end.vote.map_or(0, |v| v.0));
                // A single voter's suspect promises are adopted behind the end.
                assert!(promise <= part.promise, "invariant 23: promise of partition {partition}");
                assert!(
                    promise == part.promise || said.suspect_tail(),
                    "invariant 23: promise of partition {partition}"
                );
            }
            let unsaid = told
                .state
                .iter()
                .find(|(id, p)| !said.partitions.contains_key(&PartitionId(**id)) && (p.last().index.0 > 0));
            assert!(unsaid.is_none(), "invariant 23: the tools do not know of partition {unsaid:?}");
        }
    }
}

/// The log and the model.
pub struct Rig {
    pub world: World,
    pub options: Options,
    pub io: Option<SimIo>,
    pub wal: Option<Wal>,
    /// State at the last completed opening, and what was told since.
    pub base: State,
    pub acts: Vec<Act>,
    /// Numbers of acts at the end of each submitted batch.
    pub batches: Vec<usize>,
    /// Acts that were reported durable.
    pub acked: usize,
    pub now: State,
    pub marks: BTreeMap<u64, u64>,
    /// The highest marks, also those that a crash has forgotten: nothing below them is cut.
    pub marked: BTreeMap<u64, u64>,
    tickets: BTreeMap<u64, Vec<(u64, usize)>>,
    next_ticket: u64,
    pub fenced: Option<WalError>,
    pub full: bool,
    pub reads: BTreeMap<u64, Result<Run, tidelog_wal::ReadError>>,
    next_read: u64,
    pub durable_events: u64,
    /// As told at the last opening.
    pub lost: BTreeMap<(u64, u64), bool>,
    /// Partitions that snapshots were asked of.
    pub wanted: Vec<u64>,
    /// Before each opening the tools say what it will come to (invariant 23). Not where the disk may answer two looks differently.
    pub foretold: bool,
}

impl Rig {
    pub fn new(seed: u64, options: Options) -> Rig {
        Rig {
            world: World::new(seed),
            options,
            io: None,
            wal: None,
            base: State::new(),
            acts: Vec::new(),
            batches: vec![0],
            acked: 0,
            now: State::new(),
            marks: BTreeMap::new(),
            marked: BTreeMap::new(),
            tickets: BTreeMap::new(),
            next_ticket: 0,
            fenced: None,
            full: false,
            reads: BTreeMap::new(),
            next_read: 0,
            durable_events: 0,
            lost: BTreeMap::new(),
            wanted: Vec::new(),
            foretold: true,
        }
    }

    /// Boots the node if it is down and opens the log; on success compares it with the model.
    pub fn open(&mut self) -> Result<RecoveryReport, OpenError> {
        self.wal = None;
        if self.io.as_ref().is_none_or(|io| !io.is_alive()) {
            self.io = None;
            self.io = Some(self.world.node(NODE));
        }
        let io = self.io.as_mut().unwrap();
        let mut told = Told::default();
        let Options { single_voter, must_exist, cluster_tag, .. } = self.options;
        let eyes = Eyes { single_voter, must_exist, cluster_tag: Some(cluster_tag) };
        let said = self.foretold.then(|| inspect::verify(io, &self.options.dir, eyes));
        let opened = Wal::open(io, self.options.clone(), &mut told);
        if let Some(said) = said {
            foretold(said, &opened, &told);
        }
        let (wal, report, others) = opened?;
        assert!(others.is_empty());
        self.wal = Some(wal);
        self.settle(told);
        Ok(report)
    }

    /// The recovered state is that after some batch, at or behind everything acknowledged; it is the base from now on.
    fn settle(&mut self, told: Told) {
        let mut state = self.base.clone();
        let (mut at, mut matched) = (0, false);
        for &end in &self.batches {
            for act in &self.acts[at..end] {
                apply(&mut state, act);
            }
            at = end;
            if at >= self.acked && self.matches(&state, at, &told) {
                matched = true;
                break;
            }
        }
        assert!(
            matched,
            "recovered {:?}\nis no state of the model at or behind act {} of {:?}; base {:?}",
            brief(&told.state),
            self.acked,
            self.acts,
            brief(&self.base)
        );
        for (partition, mark) in &told.marks {
            assert!(*mark <= self.marked[partition], "a mark nobody told");
        }
        for (partition, mark) in &mut self.marked {
            // Entries that were marked and not durable may be lost.
            *mark = (*mark).min(told.state.get(partition).map_or(0, |p| p.entries.len() as u64));
        }
        self.marks = told.marks;
        self.lost = told.lost;
        let mut found = told.state;
        for (partition, index) in self.lost.keys() {
            let at = *index as usize - 1;
            let entries = &mut found.get_mut(partition).unwrap().entries;
            entries[at] = state[partition].entries[at].clone();
        }
        self.now = found.clone();
        self.base = found;
        self.acts.clear();
        self.batches = vec![0];
        self.acked = 0;
        self.tickets.clear();
        self.fenced = None;
        self.full = false;
        self.reads.clear();
        let wal = self.wal.as_ref().unwrap();
        for (&partition, part) in &self.now {
            assert_eq!(wal.last(PartitionId(partition)), part.last());
            assert_eq!(wal.sequenced(PartitionId(partition)), part.last().index);
            for index in part.low.saturating_sub(1)..=part.entries.len() as u64 {
                assert_eq!(
                    wal.generation_at(PartitionId(partition), Index(index)),
                    Some(part.position(index).generation)
                );
            }
        }
    }

    /// Entries are the model's; promises are, or were raised by one that was written later.
    fn matches(&self, model: &State, at: usize, told: &Told) -> bool {
        let (told, lost) = (&told.state, &told.lost);
        let empty = Part::default();
        let partitions: std::collections::BTreeSet<_> = model.keys().chain(told.keys()).collect();
        partitions.into_iter().all(|p| {
            let (model, told) = (model.get(p).unwrap_or(&empty), told.get(p).unwrap_or(&empty));
            let later = || {
                self.acts[at..].iter().any(|a| {
                    matches!(a, Act::Promise { partition, generation, vote }
                        if partition == p && (*generation, *vote) == told.promise)
                })
            };
            let (kept, given) = (model.kept(), told.kept());
            let entries = kept.entries.len() == given.entries.len()
                && kept.entries.iter().zip(&given.entries).zip(1..).all(|((model, told), at)| {
                    model == told || (model.0 == told.0 && lost.contains_key(&(*p, at)))
                });
            entries && model.low == told.low && (model.promise == told.promise || later())
        })
    }

    fn ticket(&mut self, partition: u64) -> Ticket {
        self.next_ticket += 1;
        self.tickets.entry(partition).or_default().push((self.next_ticket, self.acts.len()));
        Ticket(self.next_ticket)
    }

    fn told(&mut self, act: Act, result: Result<(), Busy>) -> Result<(), Busy> {
        if result.is_ok() {
            apply(&mut self.now, &act);
            self.acts.push(act);
        }
        result
    }

    pub fn part(&mut self, partition: u64) -> &mut Part {
        self.now.entry(partition).or_default()
    }

    pub fn wal(&mut self) -> &mut Wal {
        self.wal.as_mut().expect("the log is open")
    }

    fn header(&mut self, partition: u64, generation: u64, payload: &[u8]) -> RecordHeader {
        let last = self.part(partition).last();
        RecordHeader {
            index: last.index.next(),
            generation: Generation(generation),
            prev_generation: last.generation,
            timestamp: ReplicatedMs(5),
            cluster: 77,
            payload_len: payload.len() as u32,
            payload_crc: crc32c::crc32c(payload),
            ..RecordHeader::new(RecordKind::Data, PartitionId(partition))
        }
    }

    pub fn promise(&mut self, partition: u64, generation: u64, vote: u64) -> Result<(), Busy> {
        let ticket = self.ticket(partition);
        let vote_of = (vote != 0).then_some(NodeId(vote));
        let result =
            self.wal().append_promise(ticket, PartitionId(partition), Generation(generation), vote_of);
        self.told(Act::Promise { partition, generation, vote }, result)
    }

    /// An entry as a leader, in the promised generation; promises one first if there is none.
    pub fn entry(&mut self, partition: u64, payload: &[u8]) -> Result<(), Busy> {
        if self.part(partition).promise.0 == 0 {
            self.promise(partition, 1, 0)?;
        }
        let generation = self.part(partition).promise.0;
        let header = self.header(partition, generation, payload);
        let ticket = self.ticket(partition);
        let result = self.wal().append_entry(ticket, header, payload);
        self.told(Act::Entry { partition, generation, payload: payload.to_vec() }, result)
    }

    /// Entries as a follower: (generation, payload) each.
    pub fn records(&mut self, partition: u64, entries: &[(u64, Vec<u8>)]) -> Result<(), Busy> {
        let (mut bytes, mut metas) = (Vec::new(), Vec::new());
        let mut prev = self.part(partition).last();
        for (generation, payload) in entries {
            let header = RecordHeader {
                index: prev.index.next(),
                prev_generation: prev.generation,
                ..self.header(partition, *generation, payload)
            };
            let start = bytes.len();
            bytes.resize(start + header.record_bytes(), 0);
            header.encode(&mut bytes[start..]);
            let at = start + header.head_bytes();
            bytes[at..at + payload.len()].copy_from_slice(payload);
            metas.push(header.meta());
            prev = header.position();
        }
        let ticket = self.ticket(partition);
        self.wal().append_records(ticket, PartitionId(partition), &bytes, &metas)?;
        for (generation, payload) in entries {
            self.told(Act::Entry { partition, generation: *generation, payload: payload.clone() }, Ok(()))?;
        }
        // The ticket is that of the whole message.
        if let Some(last) = self.tickets.get_mut(&partition).and_then(|t| t.last_mut()) {
            last.1 = self.acts.len() - 1;
        }
        Ok(())
    }

    pub fn cut(&mut self, partition: u64, keep: u64) -> Result<(), Busy> {
        let position = self.part(partition).position(keep);
        let ticket = self.ticket(partition);
        let result = self.wal().append_cut(ticket, PartitionId(partition), position);
        self.told(Act::Cut { partition, keep }, result)
    }

    /// Gives every lost entry its bytes back, one by one, as a peer would.
    pub fn heal(&mut self) {
        for (partition, index) in std::mem::take(&mut self.lost).into_keys() {
            let part = self.part(partition).clone();
            let (generation, payload) = part.entries[index as usize - 1].clone();
            let header = RecordHeader {
                index: Index(index),
                prev_generation: part.position(index - 1).generation,
                ..self.header(partition, generation, &payload)
            };
            let mut bytes = vec![0; header.record_bytes()];
            header.encode(&mut bytes);
            bytes[header.head_bytes()..][..payload.len()].copy_from_slice(&payload);
            let ticket = self.ticket(partition);
            let id = PartitionId(partition);
            while self.wal().append_repair(ticket, id, &bytes, &[header.meta()]).is_err() {
                self.flush();
                self.poll(Wait::Forever);
                self.tick();
            }
            self.told(Act::Moved, Ok(())).unwrap();
        }
        self.drain();
    }

    pub fn low_water(&mut self, partition: u64, first: u64) -> Result<(), Busy> {
        let ticket = self.ticket(partition);
        let result = self.wal().append_low_water(ticket, PartitionId(partition), Index(first));
        self.told(Act::LowWater { partition, first }, result)
    }

    pub fn mark(&mut self, partition: u64, mark: u64) {
        self.marks.insert(partition, mark);
        let highest = self.marked.entry(partition).or_default();
        *highest = mark.max(*highest);
        self.wal().note_high_water(PartitionId(partition), Index(mark));
    }

    pub fn flush(&mut self) {
        let (wal, io) = (self.wal.as_mut().unwrap(), self.io.as_mut().unwrap());
        let before = wal.stats().batches;
        if !self.lost.is_empty() {
            // What is lost is found again by reading the log, which a checkpoint would spare.
            wal.flush(io);
            if wal.stats().batches > before {
                self.batches.push(self.acts.len());
            }
            return;
        }
        let (now, marks) = (&self.now, &self.marks);
        wal.flush_saving(io, &mut |partition, out| {
            let part = now.get(&partition.0).cloned().unwrap_or_default();
            part.save(marks.get(&partition.0).copied().unwrap_or(0), out);
        });
        if wal.stats().batches > before {
            self.batches.push(self.acts.len());
        }
    }

    /// Polls and hands completions to the log.
    pub fn poll(&mut self, wait: Wait) {
        let mut got = Vec::new();
        self.io.as_mut().unwrap().poll(wait, &mut got);
        for completion in got {
            self.complete(completion);
        }
    }

    fn complete(&mut self, completion: Completion) {
        let mut events = Vec::new();
        self.wal.as_mut().unwrap().complete(self.io.as_mut().unwrap(), completion, &mut events);
        self.take(events);
    }

    pub fn tick(&mut self) {
        let mut events = Vec::new();
        self.wal.as_mut().unwrap().tick(self.io.as_mut().unwrap(), &mut events);
        self.take(events);
    }

    pub fn take(&mut self, events: Vec<WalEvent>) {
        for event in events {
            match event {
                WalEvent::Durable { partition, ticket } => {
                    assert!(self.fenced.is_none(), "nothing is durable after a failure");
                    self.durable_events += 1;
                    let list = &self.tickets[&partition.0];
                    let (_, act) =
                        list[list.binary_search_by_key(&ticket.0, |t| t.0).expect("a ticket given")];
                    self.acked = self.acked.max(act + 1);
                }
                WalEvent::Fenced { error } => {
                    assert!(self.fenced.is_none(), "fenced once");
                    self.fenced = Some(error);
                }
                WalEvent::Full => self.full = true,
                WalEvent::SpaceBack => self.full = false,
                WalEvent::SnapshotWanted { partition } => self.wanted.push(partition.0),
                WalEvent::Damaged { partition, first, last, generation, .. } => {
                    for index in first.0..=last.0 {
                        assert_eq!(self.now[&partition.0].position(index).generation, generation);
                        self.lost.insert((partition.0, index), false);
                    }
                }
                WalEvent::Read { read, result } => {
                    self.reads.insert(read.0, result);
                }
            }
        }
    }

    pub fn alive(&self) -> bool {
        self.io.as_ref().is_some_and(SimIo::is_alive)
    }

    /// Until all that was told is durable, the log is fenced, or the node is down.
    pub fn drain(&mut self) {
        while self.alive() && self.fenced.is_none() {
            self.flush();
            if self.acked == self.acts.len() && self.wal().stats().in_flight == 0 {
                return;
            }
            self.poll(Wait::Forever);
        }
    }

    /// Lets time pass, with ticks at deadlines.
    /// As a shard does now and then.
    pub fn tell_space(&mut self) {
        if let Some(space) = self.world.disk_space(NODE) {
            self.wal.as_mut().unwrap().note_space(space);
        }
    }

    pub fn rest(&mut self, duration: Duration) {
        self.tell_space();
        let end = self.io.as_ref().unwrap().clock().now.after(duration);
        while self.alive() && self.io.as_ref().unwrap().clock().now < end {
            let deadline = self.wal().deadline().map_or(end, |d| d.min(end));
            self.poll(Wait::Until(deadline));
            self.tick();
            self.flush();
        }
    }

    pub fn close(&mut self) {
        let closed = self.wal.as_mut().unwrap().close(self.io.as_mut().unwrap());
        let unsubmitted = self.batches.last() != Some(&self.acts.len());
        if unsubmitted {
            self.batches.push(self.acts.len());
        }
        self.take(closed.events);
        self.wal = None;
    }
}
