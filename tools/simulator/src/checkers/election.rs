//! Leaders, votes and what replicas say of themselves to each other (invariants 1, 2, 4, 9).

use super::commit::Commits;
use super::disk::Disk;
use super::violation::{Verdict, broken, ensure};
use std::collections::BTreeMap;
use tidelog::transport::PeerMessage;
use tidelog_consensus::{Asserting, Free, Message, Replica};
use tidelog_types::{Generation, Index};

/// A leader, and the log that it was elected with.
#[derive(Clone, Debug)]
struct Leader {
    node: u64,
    /// Its last entry when it was first seen.
    last: u64,
    /// Runs of that log: (first index, generation).
    runs: Vec<(u64, u64)>,
}

impl Leader {
    fn generation_at(&self, generation: u64, index: u64) -> u64 {
        if index > self.last {
            return generation;
        }
        let behind = self.runs.partition_point(|(first, _)| *first <= index);
        behind.checked_sub(1).and_then(|at| self.runs.get(at)).map_or(0, |(_, generation)| *generation)
    }
}

/// What a replica was when it was seen last, in one life of its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    life: (u64, u64),
    generation: u64,
    high_water: u64,
    led: Option<u64>,
}

/// Elections of all partitions.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    leaders: BTreeMap<(u64, u64), Leader>,
    /// Who sent what only a leader sends: (partition, generation).
    claims: BTreeMap<(u64, u64), u64>,
    /// The highest index confirmed to each leader: (partition, generation, who led and was told, who told it).
    confirmed: BTreeMap<(u64, u64, u64, u64), u64>,
    seen: BTreeMap<(u64, u64), Seen>,
    /// Each replica's generation before the turn under judgement.
    spoke: BTreeMap<(u64, u64), u64>,
    /// The first entry above each replica's mark that it knows to be damaged, before that turn and after it.
    damaged: BTreeMap<(u64, u64), (Option<Index>, Option<Index>)>,
    pub(crate) elected: u64,
    /// A member lies: what takes two nodes is not judged.
    alone: bool,
}

/// The runs of a replica's log, by bisection; of what it does not keep any more, as its disk had it.
fn runs(replica: &Replica, durable: &super::durable_log::DurableLog) -> Vec<(u64, u64)> {
    let last = replica.marks().last.0;
    let at = |index: u64| {
        let kept = replica.generation_at(Index(index)).map(|g| g.0);
        kept.or_else(|| durable.generation_at(index)).unwrap_or(0)
    };
    let mut out = Vec::new();
    let mut first = 1;
    while first <= last {
        let generation = at(first);
        let (mut low, mut high) = (first, last);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if at(middle) == generation { low = middle } else { high = middle - 1 }
        }
        out.push((first, generation));
        first = low + 1;
    }
    out
}

impl Elections {
    /// Those that judge each node by itself.
    pub(crate) fn alone() -> Elections {
        Elections { alone: true, ..Elections::default() }
    }

    /// The leader of the highest generation seen in a partition.
    pub(crate) fn newest(&self, partition: u64) -> Option<(u64, u64)> {
        let mut of = self.leaders.range((partition, 0)..=(partition, u64::MAX));
        of.next_back().map(|((_, generation), leader)| (*generation, leader.node))
    }

    fn claim(&mut self, partition: u64, generation: u64, node: u64) -> Verdict {
        if self.alone {
            return Ok(());
        }
        let holder = *self.claims.entry((partition, generation)).or_insert(node);
        ensure(1, holder == node, || {
            format!(
                "partition {partition} generation {generation} has two leaders: nodes {holder} and {node}"
            )
        })
    }

    /// What a replica says of itself after a turn. `life`: process and opening of its log.
    pub(crate) fn observe(
        &mut self,
        node: u64,
        life: (u64, u64),
        partition: u64,
        replica: &Replica,
        disk: &Disk,
        commits: &mut Commits,
    ) -> Verdict {
        let (generation, marks) = (replica.generation().0, replica.marks());
        let before = self.seen.get(&(node, partition)).copied().filter(|s| s.life == life);
        let now = Seen {
            life,
            generation,
            high_water: marks.high_water.0,
            led: replica.is_leader().then_some(generation),
        };
        let damaged = replica.damaged_from(marks.high_water.next());
        let known = self.damaged.get(&(node, partition)).and_then(|(_, now)| *now);
        self.damaged.insert((node, partition), (known, damaged));
        self.spoke.insert((node, partition), before.map_or(0, |before| before.generation));
        if before == Some(now) && !replica.is_leader() {
            return Ok(());
        }
        self.seen.insert((node, partition), now);
        let here = || format!("node {node} partition {partition}");
        let durable = disk.log(partition);
        ensure(2, generation >= durable.promise.0, || {
            format!("{} is in generation {generation}, its disk promised {}", here(), durable.promise.0)
        })?;
        let vote = replica.vote().map_or(0, |n| n.0);
        ensure(
            1,
            generation > durable.promise.0 || durable.promise.1 == 0 || vote == durable.promise.1,
            || {
                format!(
                    "{} forgot its vote for {} in generation {generation}: it believes {vote}",
                    here(),
                    durable.promise.1
                )
            },
        )?;
        if let Some(before) = before {
            ensure(2, generation >= before.generation, || {
                format!("{}: generation went from {} to {generation}", here(), before.generation)
            })?;
            ensure(2, marks.high_water.0 >= before.high_water, || {
                format!("{}: high-water mark went from {} to {}", here(), before.high_water, marks.high_water)
            })?;
        }
        ensure(9, marks.durable.0 <= durable.whole(marks.high_water.0), || {
            format!(
                "{} believes {} entries durable, its disk has {}",
                here(),
                marks.durable,
                durable.whole(marks.high_water.0)
            )
        })?;
        let (believed, stored) =
            (replica.generation_at(marks.durable).map(|g| g.0), durable.generation_at(marks.durable.0));
        ensure(9, believed == stored, || {
            format!(
                "{} believes entry {} of generation {believed:?} durable, its disk has there one of {stored:?}",
                here(),
                marks.durable
            )
        })?;
        if !self.alone && before.is_none_or(|b| b.high_water != marks.high_water.0) && marks.high_water.0 > 0
        {
            // What is not kept was committed when it was let go.
            let from = before.map_or(marks.low_water.0.saturating_sub(1), |b| b.high_water);
            let led = before.and_then(|b| b.led).filter(|led| replica.is_leader() && *led == generation);
            commits.raised(node, partition, from, replica, led.is_some())?;
        }
        for peer in replica.followers().filter(|_| !self.alone) {
            let told = (partition, generation, node, peer.node.0);
            let told = self.confirmed.get(&told).copied().unwrap_or(0);
            ensure(6, peer.matched.0 <= told, || {
                format!(
                    "{}: the leader of generation {generation} counts node {} up to {}; in that generation it was told {told}",
                    here(),
                    peer.node,
                    peer.matched
                )
            })?;
        }
        if replica.is_leader() && before.is_none_or(|b| b.led != Some(generation)) {
            self.elect(node, partition, replica, disk, commits)?;
        }
        Ok(())
    }

    fn elect(
        &mut self,
        node: u64,
        partition: u64,
        replica: &Replica,
        disk: &Disk,
        commits: &Commits,
    ) -> Verdict {
        let generation = replica.generation().0;
        self.elected += 1;
        self.claim(partition, generation, node)?;
        ensure(9, disk.vote(partition, generation) == Some(node), || {
            format!(
                "node {node} leads partition {partition} in generation {generation} without a durable vote for itself"
            )
        })?;
        if self.alone {
            return Ok(());
        }
        let runs = runs(replica, disk.log(partition));
        let leader = Leader { node, last: replica.marks().last.0, runs };
        commits
            .held_by(partition, generation, leader.last, |index| leader.generation_at(generation, index))
            .map_err(|mut v| {
                v.message = format!("leader {node} of generation {generation}: {}", v.message);
                v
            })?;
        self.leaders.entry((partition, generation)).or_insert(leader);
        Ok(())
    }

    /// A message left `node` for `to`; `disk` is what is durable at the node now; what is `committed`
    /// may be lost there.
    pub(crate) fn sent(
        &mut self,
        node: u64,
        to: u64,
        message: &PeerMessage,
        disk: &Disk,
        committed: u64,
    ) -> Verdict {
        let partition = message.partition.0;
        let promised = |generation: Generation, what: &str| {
            ensure(9, disk.log(partition).promise.0 >= generation.0, || {
                format!(
                    "node {node} sent {what} of partition {partition} generation {generation} to node {to}, its disk promised {}",
                    disk.log(partition).promise.0
                )
            })
        };
        if let Message::Asserting(said) = &message.message {
            // What waited for the disk is asked again whether it still holds: it does not once another generation was adopted.
            let was = self.spoke.get(&(node, partition)).copied().unwrap_or(0);
            ensure(2, said.generation().0 >= was, || {
                format!(
                    "node {node} was in generation {was} of partition {partition}, and then said {said:?} to node {to}"
                )
            })?;
        }
        let vote = |generation: Generation| disk.vote(partition, generation.0).unwrap_or(0);
        match &message.message {
            Message::Free(Free::PreVote { .. } | Free::PreVoteReply { granted: true, .. }) => Ok(()),
            Message::Free(Free::PreVoteReply { generation, granted: false }) => {
                promised(*generation, "a pre-vote's refusal")
            }
            Message::Free(
                Free::Append(tidelog_consensus::Append { generation, .. })
                | Free::Lost { generation, .. }
                | Free::Heartbeat { generation, .. }
                | Free::HandOver { generation },
            ) => {
                promised(*generation, "a leader's message")?;
                self.claim(partition, generation.0, node)
            }
            Message::Asserting(Asserting::Vote { generation, .. }) => {
                promised(*generation, "a vote request")?;
                ensure(9, vote(*generation) == node, || {
                    format!(
                        "node {node} asks for votes in partition {partition} generation {generation}; its disk's vote is {}",
                        vote(*generation)
                    )
                })
            }
            Message::Asserting(Asserting::VoteReply { generation, granted, .. }) => {
                promised(*generation, "a vote")?;
                ensure(9, !granted || vote(*generation) == to, || {
                    format!(
                        "node {node} gave node {to} its vote in partition {partition} generation {generation}; its disk's vote is {}",
                        vote(*generation)
                    )
                })
            }
            Message::Asserting(Asserting::AppendReply { generation, matched, .. }) => {
                promised(*generation, "an acknowledgement")?;
                self.confirm((partition, generation.0, to, node), *matched);
                self.matched(node, partition, *generation, *matched, disk, committed)
            }
            Message::Asserting(Asserting::HeartbeatReply { generation, matched, .. }) => {
                promised(*generation, "a heartbeat's answer")?;
                self.confirm((partition, generation.0, to, node), *matched);
                self.matched(node, partition, *generation, *matched, disk, committed)
            }
            Message::Asserting(Asserting::AppendRefused { generation, .. }) => {
                promised(*generation, "a refusal")
            }
            Message::Repair(tidelog_consensus::Repair::Missing { promised: by, .. }) => {
                promised(*by, "a denial")
            }
            Message::Repair(_) => Ok(()),
        }
    }

    fn confirm(&mut self, told: (u64, u64, u64, u64), matched: Index) {
        let most = self.confirmed.entry(told).or_default();
        *most = matched.0.max(*most);
    }

    /// The node says that its log is durable and the leader's up to `matched`.
    fn matched(
        &self,
        node: u64,
        partition: u64,
        generation: Generation,
        matched: Index,
        disk: &Disk,
        committed: u64,
    ) -> Verdict {
        if let Some((before, Some(lost))) = self.damaged.get(&(node, partition)) {
            ensure(9, *before != Some(*lost) || matched < *lost, || {
                format!(
                    "node {node} acknowledged partition {partition} up to {matched}, and knows that entry {lost} is damaged"
                )
            })?;
        }
        let log = disk.log(partition);
        let there = log.generation_at(matched.0).filter(|_| matched.0 <= log.whole(committed));
        let Some(own) = there else {
            return broken(
                9,
                format!(
                    "node {node} acknowledged partition {partition} up to {matched}, its disk has {}",
                    log.whole(committed)
                ),
            );
        };
        let Some(leader) = self.leaders.get(&(partition, generation.0)) else { return Ok(()) };
        let theirs = leader.generation_at(generation.0, matched.0);
        ensure(9, own == theirs, || {
            format!(
                "node {node} acknowledged partition {partition} index {matched} to the leader of generation {generation}: on its disk that is an entry of generation {own}, at the leader one of {theirs}"
            )
        })
    }
}
