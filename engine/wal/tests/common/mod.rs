//! A log on the simulated disk beside a model of what it was told and what it acknowledged.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

pub mod scripts;

use std::collections::BTreeMap;
use std::time::Duration;
use tidelog_io::{Completion, Io, Wait};
use tidelog_sim::{Random, SimIo, World};
use tidelog_types::{
    EntryMeta, Generation, Incarnation, Index, NodeId, PartitionId, Position, RecordHeader, RecordKind,
    ReplicatedMs, ShardId, Ticket, record,
};
use tidelog_wal::{
    Busy, Lost, OpenError, Options, ReadError, ReadId, RecoveryReport, Replay, Run, Wal, WalError, WalEvent,
};

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

/// One partition as the model has it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Part {
    pub entries: Vec<(u64, Vec<u8>)>,
    pub promise: (u64, u64),
    /// First index kept; 0: all.
    pub low: u64,
}

impl Part {
    /// What a shard would save of it.
    fn save(&self, mark: u64, out: &mut Vec<u8>) {
        for number in [self.promise.0, self.promise.1, self.low, mark, self.entries.len() as u64] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        for (at, (generation, payload)) in self.entries.iter().enumerate() {
            let payload = if (at as u64) + 1 < self.low { &[] } else { payload.as_slice() };
            out.extend_from_slice(&generation.to_le_bytes());
            out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
            out.extend_from_slice(payload);
        }
    }
    /// Without the payloads of what is not kept any more.
    pub fn kept(&self) -> Part {
        let mut kept = self.clone();
        for entry in kept.entries.iter_mut().take(self.low.saturating_sub(1) as usize) {
            entry.1.clear();
        }
        kept
    }
    fn load(mut bytes: &[u8]) -> (Part, u64) {
        let number = |bytes: &mut &[u8]| {
            let (head, rest) = bytes.split_first_chunk().expect("saved whole");
            *bytes = rest;
            u64::from_le_bytes(*head)
        };
        let promise = (number(&mut bytes), number(&mut bytes));
        let (low, mark, count) = (number(&mut bytes), number(&mut bytes), number(&mut bytes));
        let mut part = Part { promise, low, entries: Vec::new() };
        for _ in 0..count {
            let (generation, len) = (number(&mut bytes), number(&mut bytes));
            let (payload, rest) = bytes.split_at(len as usize);
            part.entries.push((generation, payload.to_vec()));
            bytes = rest;
        }
        assert!(bytes.is_empty());
        (part, mark)
    }
    pub fn last(&self) -> Position {
        let index = self.entries.len() as u64;
        Position::new(Index(index), Generation(self.entries.last().map_or(0, |e| e.0)))
    }
    pub fn position(&self, index: u64) -> Position {
        let at = (index as usize).checked_sub(1);
        Position::new(Index(index), Generation(at.map_or(0, |at| self.entries[at].0)))
    }
}

pub type State = BTreeMap<u64, Part>;

/// What the log was told.
#[derive(Clone, Debug)]
pub enum Act {
    Entry {
        partition: u64,
        generation: u64,
        payload: Vec<u8>,
    },
    Promise {
        partition: u64,
        generation: u64,
        vote: u64,
    },
    Cut {
        partition: u64,
        keep: u64,
    },
    LowWater {
        partition: u64,
        first: u64,
    },
    /// Lost entries were written again.
    Moved,
}

fn apply(state: &mut State, act: &Act) {
    match act {
        Act::Entry { partition, generation, payload } => {
            state.entry(*partition).or_default().entries.push((*generation, payload.clone()));
        }
        Act::Promise { partition, generation, vote } => {
            state.entry(*partition).or_default().promise = (*generation, *vote);
        }
        Act::Cut { partition, keep } => {
            state.entry(*partition).or_default().entries.truncate(*keep as usize);
        }
        Act::Moved => {}
        Act::LowWater { partition, first } => state.entry(*partition).or_default().low = *first,
    }
}

/// What a replay told.
#[derive(Default)]
pub struct Told {
    pub state: State,
    /// Entries whose bytes are lost: (partition, index), and whether that is only suspected.
    pub lost: BTreeMap<(u64, u64), bool>,
    pub marks: BTreeMap<u64, u64>,
    pub entries: u64,
    pub checkpoints: u64,
}

impl Replay for Told {
    fn entry(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]) {
        self.entries += 1;
        let part = self.state.entry(partition.0).or_default();
        assert_eq!(meta.position.index, part.last().index.next(), "replay is dense");
        assert_eq!(meta.prev_generation, part.last().generation);
        part.entries.push((meta.position.generation.0, payload.to_vec()));
    }
    fn cut(&mut self, partition: PartitionId, keep: Position) {
        let part = self.state.entry(partition.0).or_default();
        assert_eq!(part.position(keep.index.0), keep, "a cut keeps an entry");
        part.entries.truncate(keep.index.0 as usize);
        self.lost.retain(|at, _| at.0 != partition.0 || at.1 <= keep.index.0);
    }
    fn damaged(&mut self, partition: PartitionId, lost: Lost) {
        let part = self.state.entry(partition.0).or_default();
        for index in lost.first.0..=lost.last.0 {
            if index > part.last().index.0 {
                assert_eq!(index, part.last().index.0 + 1, "replay is dense");
                part.entries.push((lost.generation.0, Vec::new()));
            }
            assert_eq!(part.position(index).generation, lost.generation);
            self.lost.insert((partition.0, index), lost.suspect);
        }
    }
    fn moved(&mut self, partition: PartitionId, meta: &EntryMeta, payload: &[u8]) {
        let part = self.state.entry(partition.0).or_default();
        assert_eq!(part.position(meta.position.index.0), meta.position, "a copy is of an entry of the log");
        let at = (partition.0, meta.position.index.0);
        let entry = &mut part.entries[meta.position.index.0 as usize - 1];
        if self.lost.remove(&at).is_some() {
            entry.1 = payload.to_vec();
        }
        assert_eq!(entry.1, payload, "a copy has the same bytes");
    }
    fn promise(&mut self, partition: PartitionId, generation: Generation, vote: Option<NodeId>) {
        self.state.entry(partition.0).or_default().promise = (generation.0, vote.map_or(0, |v| v.0));
    }
    fn low_water(&mut self, partition: PartitionId, first: Index) {
        let part = self.state.entry(partition.0).or_default();
        assert!(first.0 >= part.low, "a low-water mark never goes back");
        part.low = first.0;
    }
    fn checkpoint(&mut self, partition: PartitionId, state: &[u8]) {
        self.checkpoints += 1;
        let (part, mark) = Part::load(state);
        assert!(self.state.insert(partition.0, part).is_none(), "a checkpoint comes first");
        if mark > 0 {
            self.marks.insert(partition.0, mark);
        }
    }
    fn high_water(&mut self, partition: PartitionId, mark: Index) {
        self.marks.insert(partition.0, mark.0);
        assert!(mark <= self.state[&partition.0].last().index, "a mark follows its entries");
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
        let (wal, report, others) = Wal::open(io, self.options.clone(), &mut told)?;
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
    pub fn rest(&mut self, duration: Duration) {
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

    /// Starts a read; the result is in `reads` under the number returned.
    pub fn start_read(&mut self, partition: u64, first: u64, last: u64, bytes_max: usize) -> u64 {
        self.next_read += 1;
        let (wal, io) = (self.wal.as_mut().unwrap(), self.io.as_mut().unwrap());
        wal.read(io, ReadId(self.next_read), PartitionId(partition), Index(first), Index(last), bytes_max);
        self.next_read
    }

    /// Reads and waits.
    pub fn read(
        &mut self,
        partition: u64,
        first: u64,
        last: u64,
        bytes_max: usize,
    ) -> Result<Run, tidelog_wal::ReadError> {
        let read = self.start_read(partition, first, last, bytes_max);
        loop {
            self.tick();
            if let Some(result) = self.reads.remove(&read) {
                return result;
            }
            self.poll(Wait::Forever);
        }
    }

    /// Compares a run with the model.
    pub fn check_run(&mut self, partition: u64, run: &Run) {
        let part = self.now[&partition].clone();
        assert_eq!(run.prev_generation, part.position(run.first.0 - 1).generation);
        let mut index = run.first.0;
        for piece in &run.pieces {
            for item in record::records(piece) {
                let (_, header, payload) = item.expect("pieces hold whole records");
                let (generation, expected) = &part.entries[index as usize - 1];
                assert_eq!(
                    (header.partition.0, header.index.0, header.generation.0),
                    (partition, index, *generation)
                );
                assert!(payload == expected, "partition {partition} index {index}: payload");
                index += 1;
            }
        }
        assert_eq!(index, run.last.0 + 1);
        assert_eq!(run.bytes, run.pieces.iter().map(bytes::Bytes::len).sum::<usize>());
    }

    /// Reads every entry back. False: the node went down meanwhile.
    pub fn check_all(&mut self) -> bool {
        for (partition, part) in self.now.clone() {
            let sequenced = self.wal().sequenced(PartitionId(partition)).0;
            assert!(sequenced <= part.entries.len() as u64);
            let mut next = part.low.max(1);
            while next <= sequenced {
                if self.lost.contains_key(&(partition, next)) {
                    match self.read(partition, next, sequenced, 20 << 10) {
                        Err(ReadError::Damaged { index, .. }) => assert_eq!(index, Index(next)),
                        other => panic!("partition {partition} index {next} is lost, and read: {other:?}"),
                    }
                    next += 1;
                    continue;
                }
                let run = match self.read(partition, next, sequenced, 20 << 10) {
                    Ok(run) => run,
                    Err(_) if !self.alive() => return false,
                    Err(e) => panic!("partition {partition} index {next}: {e}"),
                };
                assert_eq!(run.first.0, next);
                assert!(run.last.0 <= sequenced);
                self.check_run(partition, &run);
                next = run.last.0 + 1;
            }
        }
        true
    }

    /// One random act or wait.
    pub fn random_step(&mut self, random: &mut Random, partitions: u64, payload_max: u64) {
        let partition = random.below(partitions);
        let (last, promise) = {
            let part = self.part(partition);
            (part.last(), part.promise)
        };
        let mark = self.marks.get(&partition).copied().unwrap_or(0);
        let payload = |random: &mut Random| {
            let len = random.below(payload_max + 1);
            let fill = random.bits() as u8;
            (0..len).map(|i| fill.wrapping_add(i as u8)).collect::<Vec<u8>>()
        };
        let low = self.part(partition).low;
        let kept = self.marked.get(&partition).copied().unwrap_or(0);
        let result = match random.below(21) {
            0..=7 => self.entry(partition, &payload(random)),
            8..=9 if promise.0 > 0 => {
                let mut generation = last.generation.0.max(1);
                let mut entries = Vec::new();
                for _ in 0..=random.below(5) {
                    generation += random.below(promise.0 - generation + 1);
                    entries.push((generation, payload(random)));
                }
                self.records(partition, &entries)
            }
            10 => self.promise(partition, promise.0 + 1 + random.below(2), random.below(4)),
            11 if promise.0 > 0 && promise.1 == 0 => self.promise(partition, promise.0, 1 + random.below(3)),
            12 => self.cut(partition, random.between((kept.min(last.index.0), last.index.0))),
            13 => {
                self.mark(partition, random.between((mark, last.index.0)));
                Ok(())
            }
            14..=16 => {
                self.flush();
                Ok(())
            }
            19 if mark > low => self.low_water(partition, random.between((low, mark))),
            17 => {
                self.rest(Duration::from_millis(random.below(12)));
                Ok(())
            }
            18 if last.index.0 > 0 => {
                let sequenced = self.wal().sequenced(PartitionId(partition)).0;
                if sequenced > 0 {
                    let first = random.between((low.max(1).min(sequenced), sequenced));
                    self.start_read(
                        partition,
                        first,
                        first + random.below(20),
                        random.below(30_000) as usize,
                    );
                }
                Ok(())
            }
            _ => {
                self.poll(Wait::No);
                Ok(())
            }
        };
        if result.is_err() && self.fenced.is_none() && self.alive() {
            self.flush();
            if self.wal().stats().in_flight > 0 {
                self.poll(Wait::Forever);
            }
        }
    }
}

/// A state without the payloads of what is not kept any more.
pub fn kept(state: &State) -> State {
    state.iter().map(|(id, part)| (*id, part.kept())).collect()
}

/// A state in few words.
pub fn brief(state: &State) -> BTreeMap<u64, String> {
    state
        .iter()
        .map(|(p, part)| {
            let runs: Vec<_> = part.entries.iter().map(|e| format!("{}:{}", e.0, e.1.len())).collect();
            (*p, format!("promise {:?} entries {}", part.promise, runs.join(" ")))
        })
        .collect()
}
