//! The invariants, checked from disks and packets; a replica is only asked for its role and its marks.

use super::disk::{Disk, Stored};
use super::{Packet, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use tidelog_consensus::{Asserting, Free, Message, Refused, Repair, Replica};
use tidelog_types::{Generation, Index, NodeId, Position, Sequence, SessionId, SessionRef};

#[derive(Debug, Default)]
struct Seen {
    high_water: Index,
    generation: Generation,
    durable_promise: (Generation, Option<NodeId>),
    /// Entries of its durable log already counted.
    counted: Vec<Position>,
    led: Generation,
}

/// What the whole world has seen so far.
#[derive(Debug)]
pub struct Checker {
    quorum: usize,
    leaders: BTreeMap<Generation, u64>,
    leader_logs: BTreeMap<Generation, Vec<Position>>,
    votes: BTreeMap<(u64, Generation), NodeId>,
    entries: BTreeMap<(Index, Generation), Stored>,
    durable_on: BTreeMap<(Index, Generation), BTreeSet<u64>>,
    /// Committed entries and the lowest generation in which a replica knew that they are.
    committed: BTreeMap<Index, (Stored, Generation)>,
    sessions: BTreeMap<SessionRef, Index>,
    /// Sessions of which a client was told that they have expired, and the last entry committed by then.
    expired: BTreeMap<SessionId, Index>,
    acked: BTreeMap<Index, Stored>,
    seen: BTreeMap<u64, Seen>,
    pub elections: u64,
    pub cuts: u64,
    /// A disk was replaced by an older one: before that nobody can have lost what it confirmed.
    rolled_back: bool,
}

impl Checker {
    pub fn new(voters: u64) -> Checker {
        Checker {
            quorum: usize::try_from(voters / 2 + 1).unwrap(),
            leaders: BTreeMap::new(),
            leader_logs: BTreeMap::new(),
            votes: BTreeMap::new(),
            entries: BTreeMap::new(),
            durable_on: BTreeMap::new(),
            committed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            expired: BTreeMap::new(),
            acked: BTreeMap::new(),
            seen: (1..=voters).map(|id| (id, Seen::default())).collect(),
            elections: 0,
            cuts: 0,
            rolled_back: false,
        }
    }

    pub fn committed_index(&self) -> Index {
        self.committed.keys().next_back().copied().unwrap_or(Index::ZERO)
    }

    pub fn acked_index(&self) -> Index {
        self.acked.keys().next_back().copied().unwrap_or(Index::ZERO)
    }

    /// A node's disk made something durable.
    pub fn disk_moved(&mut self, id: u64, disk: &Disk) {
        let seen = self.seen.get_mut(&id).unwrap();
        let (was, is) = (seen.durable_promise, disk.promise);
        assert!(is.0 >= was.0, "invariant 2: node {id} promised {is:?} after {was:?}");
        if is.0 == was.0 {
            assert!(was.1.is_none() || was.1 == is.1, "invariant 1: node {id} voted {is:?} after {was:?}");
        }
        seen.durable_promise = is;
        if let (generation, Some(to)) = is {
            let vote = *self.votes.entry((id, generation)).or_insert(to);
            assert!(vote == to, "invariant 1: node {id} voted for {vote} and {to} in {generation}");
        }
        // Invariant 10: what is let go is covered by the durable snapshot or a committed log start.
        let starts = self.committed.values().filter_map(|(entry, _)| entry.meta.log_start);
        let covered = starts.fold(disk.snapshot.index.next(), Index::max);
        let low = disk.low_water;
        assert!(low <= covered, "invariant 10: node {id} keeps entries from {low} on, covered are {covered}");
        let same = seen.counted.iter().zip(&disk.durable).take_while(|(a, b)| **a == b.meta.position).count();
        seen.counted.truncate(same);
        for entry in &disk.durable[same..] {
            let p = entry.meta.position;
            assert!(p.generation <= is.0, "R10: node {id} holds {p:?} under promise {is:?}");
            seen.counted.push(p);
            if !disk.is_damaged(p.index) {
                self.durable_on.entry((p.index, p.generation)).or_default().insert(id);
            }
        }
        for p in &disk.healed {
            self.durable_on.entry((p.index, p.generation)).or_default().insert(id);
        }
    }

    /// A node ordered something for its log.
    pub fn appended(&mut self, id: u64, disk: &Disk, event: &str) {
        let Some(entry) = disk.log().last() else { return };
        let p = entry.meta.position;
        for entry in disk.log().iter().rev() {
            let p = entry.meta.position;
            match self.entries.get(&(p.index, p.generation)) {
                Some(known) => {
                    assert!(known == entry, "invariant 3, {event}: node {id} has {entry:?}, not {known:?}");
                    break; // its prefix was compared when it was first seen, by the chain of generations
                }
                None => {
                    let before = disk.entry(p.index.prev()).map_or(Position::ZERO, |e| e.meta.position);
                    let chained = entry.meta.prev_generation == before.generation;
                    assert!(chained, "invariant 3, {event}: {entry:?} on node {id} follows {before:?}");
                    self.entries.insert((p.index, p.generation), entry.clone());
                }
            }
        }
        if self.leaders.get(&p.generation) == Some(&id) {
            let log = self.leader_logs.get_mut(&p.generation).unwrap();
            let known = log.len().min(disk.log().len());
            log.extend(disk.log()[known..].iter().map(|e| e.meta.position));
        }
    }

    /// A node is about to cut its log.
    pub fn cut(&mut self, id: u64, keep: Position, disk: &Disk, event: &str) {
        self.cuts += 1;
        let mark = self.seen[&id].high_water;
        assert!(keep.index >= mark, "invariant 8, {event}: node {id} cuts to {keep:?}, its mark is {mark}");
        for entry in &disk.log()[usize::try_from(keep.index.0).unwrap()..] {
            let committed = self.committed.get(&entry.meta.position.index).map(|(e, _)| e);
            assert!(committed != Some(entry), "invariant 8, {event}: node {id} cuts committed {entry:?}");
        }
    }

    /// A node's disk is an older one: what it believes begins anew. What others were told stays told.
    pub fn rolled_back(&mut self, id: u64, disk: &Disk) {
        self.rolled_back = true;
        self.seen.insert(id, Seen { durable_promise: disk.promise, ..Seen::default() });
    }

    pub fn life_ended(&mut self, id: u64) {
        let seen = self.seen.get_mut(&id).unwrap();
        seen.high_water = Index::ZERO;
    }

    /// After every event of a node.
    pub fn look(&mut self, id: u64, replica: &Replica, disk: &Disk, event: &str) {
        let (marks, generation) = (replica.marks(), replica.generation());
        let lost = replica.lost_peers().next();
        assert!(
            self.rolled_back || lost.is_none() && !replica.is_barred() && !replica.is_contradicted(),
            "invariant 20, {event}: node {id} takes {lost:?} for one that lost what it confirmed, or itself"
        );
        let seen = self.seen.get_mut(&id).unwrap();
        assert!(generation >= seen.durable_promise.0, "invariant 2, {event}: node {id} is at {generation}");
        seen.generation = generation;
        assert!(marks.high_water >= seen.high_water, "invariant 2, {event}: node {id} mark went back");
        let news = seen.high_water.0 + 1..=marks.high_water.0;
        seen.high_water = marks.high_water;
        let low = marks.low_water;
        // A replica restored from a snapshot's base alone has nothing below it.
        assert!(
            low <= disk.low_water.max(disk.snapshot.index.next()),
            "invariant 10, {event}: node {id} low-water {low}"
        );
        assert!(low.prev() <= marks.applicable(), "invariant 10, {event}: node {id} low-water {low}");
        assert_eq!(marks.last.0, disk.log().len() as u64, "{event}: node {id} knows its log");
        let agree = disk.log().iter().zip(&disk.durable).take_while(|(a, b)| a == b).count() as u64;
        assert!(marks.durable.0 <= agree, "RULES 1, {event}: node {id} believes {} durable", marks.durable);
        for i in news {
            let index = Index(i);
            let entry = disk.entry(index).unwrap_or_else(|| panic!("{event}: node {id} lacks {i}"));
            let p = entry.meta.position;
            let on = self.durable_on.get(&(p.index, p.generation)).map_or(0, BTreeSet::len);
            assert!(on >= self.quorum, "invariant 6, {event}: node {id} commits {p:?}, durable on {on}");
            let (known, known_in) =
                self.committed.entry(index).or_insert_with(|| (entry.clone(), generation));
            assert!(known == entry, "invariant 5, {event}: node {id} commits {entry:?}, not {known:?}");
            *known_in = generation.min(*known_in);
            if let Some(request) = entry.meta.session {
                let at = *self.sessions.entry(request).or_insert(index);
                assert!(at == index, "invariant 12, {event}: {request:?} at {at} and {index}");
                let told = self.expired.get(&request.session).is_some_and(|end| *end < index);
                assert!(!told, "invariant 21, {event}: {request:?} at {index}, its session had expired");
            }
            for (later, log) in self.leader_logs.range(generation.next()..) {
                let holds = log.get(usize::try_from(i - 1).unwrap()) == Some(&p);
                assert!(holds, "invariant 4, {event}: the leader of {later} lacks {p:?}");
            }
        }
        assert!(
            replica.damaged_entries() >= disk.damaged().filter(|i| *i >= low).count() as u64,
            "{event}: node {id} knows its damage"
        );
        let lost = disk.damaged().find(|i| *i >= low);
        assert!(
            lost.is_none_or(|i| marks.applicable() < i),
            "{event}: node {id} may apply {lost:?}, which is lost"
        );
        if replica.is_leader() && seen.led < generation {
            seen.led = generation;
            self.elections += 1;
            self.leads(id, generation, disk, event);
            for (index, (entry, known_in)) in &self.committed {
                let holds = disk.entry(*index) == Some(entry) || *known_in >= generation;
                assert!(holds, "invariant 4, {event}: node {id} leads {generation} without {entry:?}");
            }
            for (index, entry) in &self.acked {
                let (_, known_in) = &self.committed[index];
                let holds = disk.entry(*index) == Some(entry) || *known_in >= generation;
                assert!(holds, "invariant 7, {event}: node {id} leads {generation} without {entry:?}");
            }
        }
    }

    fn leads(&mut self, id: u64, generation: Generation, disk: &Disk, event: &str) {
        let leader = *self.leaders.entry(generation).or_insert(id);
        assert!(leader == id, "invariant 1, {event}: nodes {leader} and {id} lead {generation}");
        let log = disk.log().iter().map(|e| e.meta.position).collect();
        self.leader_logs.entry(generation).or_insert(log);
    }

    /// A client was told that its entry is committed.
    pub fn acked(&mut self, at: Index, entry: &Stored) {
        let (committed, _) = self.committed.get(&at).expect("R12: acknowledged before it is committed");
        assert!(committed == entry, "invariant 7: {entry:?} acknowledged, {committed:?} committed");
        self.acked.insert(at, entry.clone());
    }

    /// A client was told, for good, why its request was not admitted (invariant 21).
    pub fn refused(&mut self, refusal: &Refusal, event: &str) {
        let Some(request) = refusal.session else { return };
        let at = |sequence: Sequence| self.sessions.get(&SessionRef { sequence, ..request }).copied();
        match refusal.refused {
            Refused::SessionExpired => {
                let end = self.committed_index();
                self.expired.entry(request.session).or_insert(end);
            }
            Refused::SequenceGap { expected } => {
                let before = expected.0 == 1 || at(Sequence(expected.0 - 1)).is_some();
                let there = at(expected).or(at(request.sequence)).is_some_and(|at| at <= refusal.end);
                assert!(before && !there, "invariant 21, {event}: {refusal:?} is not so");
            }
            Refused::SequenceReused { index } => {
                let entry = &self.committed[&index].0;
                let so = entry.meta.session == Some(request) && entry.payload != refusal.payload;
                assert!(so, "invariant 21, {event}: {refusal:?}, and there is {entry:?}");
            }
            _ => {}
        }
    }

    /// A packet leaves: what it asserts must be on the sender's disk (invariant 9).
    pub fn sent(&mut self, packet: &Packet, disk: &Disk, event: &str) {
        let (from, to) = (packet.from, packet.to);
        let (promised, vote) = disk.promise;
        let claim = |holds: bool, what: &str| {
            assert!(holds, "invariant 9, {event}: {from} -> {to}: {what}: {:?}", packet.message);
        };
        let speaks_as_leader = |generation: Generation| {
            claim(promised == generation && vote == Some(NodeId(from)), "its own vote is durable");
        };
        let mark = self.seen[&from].high_water;
        let matches = |generation: Generation, matched: Index| {
            let lost = disk.damaged().find(|i| mark < *i && *i <= matched);
            claim(lost.is_none(), "nothing of it is damaged");
            claim(disk.durable.len() as u64 >= matched.0, "the entries are durable");
            let own = disk.durable.get(usize::try_from(matched.0).unwrap().wrapping_sub(1));
            let log = &self.leader_logs[&generation];
            let leaders = log.get(usize::try_from(matched.0).unwrap().wrapping_sub(1));
            claim(own.map(|e| &e.meta.position) == leaders, "they are the leader's");
        };
        match &packet.message {
            Message::Free(Free::PreVote { .. }) => {}
            Message::Free(Free::PreVoteReply { generation, granted }) => {
                claim(*granted || promised >= *generation, "a refusal's generation is durable");
            }
            Message::Free(Free::Append(append)) => {
                speaks_as_leader(append.generation);
                let leader = *self.leaders.get(&append.generation).unwrap_or(&from);
                assert!(leader == from, "invariant 1, {event}: {from} and {leader} lead");
                assert_eq!(packet.entries.len() as u64, append.count);
            }
            Message::Free(
                Free::Heartbeat { generation, .. }
                | Free::HandOver { generation }
                | Free::Lost { generation, .. },
            ) => {
                speaks_as_leader(*generation);
            }
            Message::Repair(Repair::Fetched { .. }) => {
                let rotten = packet.entries.iter().any(|e| disk.is_damaged(e.meta.position.index));
                claim(!rotten, "nothing damaged is given away");
            }
            Message::Repair(_) => {}
            Message::Asserting(m) => {
                claim(promised == m.generation(), "its generation is durable");
                match m {
                    Asserting::Vote { last, .. } => {
                        claim(vote == Some(NodeId(from)), "the candidate's vote is durable");
                        let end = disk.durable.last().map_or(Position::ZERO, |e| e.meta.position);
                        claim(end == *last, "the log that it is asked for is durable");
                    }
                    Asserting::VoteReply { granted, .. } => {
                        claim(!granted || vote == Some(NodeId(to)), "the vote is durable");
                    }
                    Asserting::AppendReply { generation, matched, .. } => matches(*generation, *matched),
                    Asserting::HeartbeatReply { generation, matched, .. } if *matched > Index::ZERO => {
                        matches(*generation, *matched);
                    }
                    Asserting::AppendRefused { .. } | Asserting::HeartbeatReply { .. } => {}
                }
            }
        }
    }
}
