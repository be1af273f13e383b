//! One replica of one partition: what it is at any moment, and the way in for every input.
//!
//! Inputs are messages, completions of the log, proposals, read requests and time; effects come out as data.
//! It promises what the protocol promises (`docs/protocol.md`), whatever order inputs come in, as long as the
//! shard keeps its side: log steps are made durable in order and reported by ticket, asserting messages wait
//! for theirs, and after a restart [`Restored`] holds everything that was reported durable. It does not know
//! the entries' bytes, files, sockets or clocks. Peers' messages are not trusted: one that no correct peer
//! sends is dropped and counted. A broken promise of our own stops the process by an assertion.

use crate::config::Config;
use crate::damage::Damage;
use crate::decide::Deciding;
use crate::effects::{Effects, LogOp, LogOpKind, Outgoing, Trouble};
use crate::election::Votes;
use crate::history::History;
use crate::leader::Leader;
use crate::log::Log;
use crate::message::{Asserting, Free, Message};
use crate::restore::Restored;
use crate::retain::{Ordered, Starts};
use crate::session::Sessions;
use crate::stall::Disk;
use crate::ticket::Tickets;
use core::time::Duration;
use tidelog_types::limits::VOTERS_MAX;
use tidelog_types::{Clock, EntryMeta, Generation, Index, Monotonic, NodeId, Position, ReplicatedMs, Ticket};

/// Generations and indexes of peers above this are not believed: no log gets there, and arithmetic below it
/// cannot overflow.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Most promises that wait for the disk at once. On a disk that hangs, each generation that the others come to would add one.
pub(crate) const PROMISES_MAX: usize = 8;

/// What a replica is at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks for votes, or whether it would get them.
    Candidate,
    /// Leads its generation.
    Leader,
}

impl core::fmt::Display for Role {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        })
    }
}

/// The marks of a partition on this replica. `low_water - 1 <= applicable <= min(high_water, durable)` and
/// `durable <= last`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marks {
    /// First index kept.
    pub low_water: Index,
    /// Last index durable here, up to damage above the high-water mark.
    pub durable: Index,
    /// Last index appended here.
    pub last: Index,
    /// Highest index known to be durable on a quorum, inclusive.
    pub high_water: Index,
    /// Nothing up to here is damaged; `last` if nothing is.
    pub whole: Index,
}

impl Marks {
    /// The last index that may be applied here: committed, durable on this node too, and nothing before it damaged.
    pub fn applicable(&self) -> Index {
        self.high_water.min(self.durable).min(self.whole)
    }
}

#[derive(Debug)]
pub(crate) enum State {
    Follower,
    /// Asking whether a campaign would succeed; nothing is promised yet.
    PreCandidate(Votes),
    /// Campaigning in its own generation; its own vote counts once the ticket is durable. Deciding: elected already.
    Candidate {
        votes: Votes,
        ticket: Ticket,
        deciding: Option<Deciding>,
    },
    Leader(Box<Leader>),
}

/// One replica of one partition.
#[derive(Debug)]
pub struct Replica {
    pub(crate) config: Config,
    /// The voters but this node.
    pub(crate) peers: Vec<NodeId>,
    /// Whether this node is a voter.
    pub(crate) voting: bool,

    /// Never falls; above [`Tickets::generation`] while its promise is on the way to the disk.
    pub(crate) generation: Generation,
    /// Given in `generation`; once given it stays.
    pub(crate) vote: Option<NodeId>,
    /// Ticket of the newest promise: what asserts `generation` waits at least for it.
    pub(crate) promised: Ticket,
    pub(crate) log: Log,
    pub(crate) sessions: Sessions,
    /// Entries of `log` whose bytes are lost here.
    pub(crate) damage: Damage,
    pub(crate) tickets: Tickets,
    /// Log starts said in the log.
    pub(crate) starts: Starts,
    /// How old and how large the log is.
    pub(crate) history: History,
    /// The last entry that a durable snapshot of this node covers.
    pub(crate) snapshot: Position,
    /// Marks on their way to the disk.
    pub(crate) ordered: Ordered,
    /// At or above the stamp of every entry that was ever in this log.
    pub(crate) stamp: ReplicatedMs,
    /// `high_water <= log.last()`; never falls within a process life.
    pub(crate) high_water: Index,
    /// Last index known to be the same at the leader of `generation`; 0 until it said so.
    pub(crate) verified: Index,

    /// The leader of `generation`, if known.
    pub(crate) leader: Option<NodeId>,
    /// When a leader was heard last. While that is recent, no other gets this node's vote.
    pub(crate) heard: Option<Monotonic>,
    /// No votes before this: the previous life may have heard a leader just before its end.
    pub(crate) silent_until: Monotonic,
    pub(crate) election_deadline: Monotonic,
    /// This wait's length, drawn from [1, 2) election time-outs.
    pub(crate) election_wait: Duration,
    random: u64,
    /// The disk under its log, as its shard saw it last.
    pub(crate) disk: Disk,
    /// The last pause for which a new wait was begun ended here.
    excused: Option<Monotonic>,
    pub(crate) state: State,
    malformed: u64,
    /// Why the last message was none that a correct peer sends, until somebody asks.
    accusation: Option<&'static str>,
    /// Generations rise by no more than [`GENERATION_STEP_MAX`] above this in an election time-out.
    step: Step,
    /// Messages of generations that no election explains.
    jumps: u64,
    /// The generation of the leader that contradicted what is committed here, if one did.
    pub(crate) contradicted: Option<Generation>,
    /// Beside `peers`: what each had confirmed, all of it committed, to earlier leaderships of this process.
    pub(crate) confirmed: Vec<Index>,
    /// This node lost what it had confirmed: see [`crate::amnesia`].
    pub(crate) barred: bool,
}

/// Where generations stood when an election time-out began.
#[derive(Clone, Copy, Debug)]
struct Step {
    from: Generation,
    since: Monotonic,
}

/// How far a generation may rise in one election time-out by what peers say. An election raises it by one, so that a replica which was
/// away for a million elections meets the others in one step, and one that was away for more, or whose peer was led astray, in several. And
/// no message can use the generations up: at this pace they last for longer than 2^42 election time-outs.
pub(crate) const GENERATION_STEP_MAX: u64 = 1 << 20;

impl Replica {
    /// A replica with the state found in its log. It starts as a follower whatever it was before.
    ///
    /// # Panics
    /// If the configuration is not valid or the log was not: both are checked by whoever read them
    /// ([`Restored::check`]).
    pub fn new(config: Config, restored: Restored, clock: Clock) -> Replica {
        assert!(restored.check().is_ok(), "a replica is not made from a log that contradicts itself");
        let voters = &config.voters;
        assert!((1..=VOTERS_MAX).contains(&voters.len()), "1..={VOTERS_MAX} voters, not {}", voters.len());
        assert!(voters.windows(2).all(|pair| pair[0] < pair[1]), "voters are sorted and distinct");
        assert!(!config.heartbeat.is_zero(), "a leader must beat");
        assert!(config.heartbeat < config.election_timeout, "a follower must hear beats before it gives up");
        assert!(config.in_flight_messages_max > 0 && config.in_flight_bytes_max > 0, "something must go out");

        let peers: Vec<NodeId> = voters.iter().copied().filter(|node| *node != config.node).collect();
        let voting = voters.contains(&config.node);
        let seed = config.seed ^ config.node.0.rotate_left(32) ^ config.partition.0;
        let Restored {
            log,
            sessions,
            damage,
            stamp,
            generation,
            vote,
            high_water,
            mut starts,
            history,
            snapshot,
            ..
        } = restored;
        starts.commit(high_water);
        let silence = if generation > Generation::ZERO { config.election_timeout } else { Duration::ZERO };
        let mut replica = Replica {
            confirmed: vec![Index::ZERO; peers.len()],
            peers,
            voting,
            tickets: Tickets::new(log.last().index, generation),
            generation,
            vote,
            promised: Ticket(0),
            log,
            sessions,
            starts,
            history,
            snapshot,
            ordered: Ordered::default(),
            damage,
            stamp,
            high_water,
            verified: Index::ZERO,
            leader: None,
            heard: None,
            silent_until: clock.now.after(silence),
            election_deadline: clock.now,
            election_wait: Duration::ZERO,
            random: seed,
            disk: Disk::default(),
            excused: None,
            state: State::Follower,
            malformed: 0,
            accusation: None,
            step: Step { from: generation, since: clock.now },
            jumps: 0,
            contradicted: None,
            barred: false,
            config,
        };
        if !replica.is_alone() || !replica.damage.is_empty() {
            replica.await_leader(clock); // otherwise it has nobody to wait for
        }
        if replica.is_alone() && !replica.damage.is_empty() {
            // What a single voter has made durable is committed; one that may not lead has nobody else to learn it from.
            replica.high_water = replica.log.last().index;
        }
        replica
    }

    /// Reads a word of each part that a proposal and its durability touch, so that they are in the processor's caches soon: with
    /// thousands of replicas they seldom are, and one miss after the other costs more than the step itself. The sum means nothing.
    pub fn warm(&self) -> u64 {
        let leader = match &self.state {
            State::Leader(leader) => leader.warm(),
            _ => 0,
        };
        [
            self.config.uncommitted_bytes_max,
            self.peers.len() as u64,
            self.promised.0,
            self.log.last().generation.0,
            self.log.base().index.0,
            self.sessions.len() as u64,
            u64::from(self.damage.is_empty()),
            self.tickets.index().0,
            self.tickets.next_reported().0,
            self.starts.committed().0,
            self.history.bytes(),
            self.snapshot.index.0,
            u64::from(self.ordered.marks().0.is_some()),
            self.stamp.0,
            self.high_water.0,
            self.election_deadline.0,
            leader,
        ]
        .into_iter()
        .fold(0, u64::wrapping_add)
    }

    /// A message of a peer; `entries` are the verified headers of the records that came with an append.
    pub fn step(
        &mut self,
        clock: Clock,
        from: NodeId,
        message: Message,
        entries: &[EntryMeta],
        effects: &mut Effects,
    ) {
        if !self.peers.contains(&from) {
            return self.note_malformed("it comes from a node that is no voter of the partition");
        }
        if message.generation().0 > NUMBER_MAX {
            return self.note_malformed("its generation is one that no partition reaches");
        }
        self.end_turn_of_round();
        if self.adopts(&message) && self.tickets.promises() >= PROMISES_MAX {
            return; // its disk is far behind: nothing is lost by not hearing of yet another generation
        }
        if self.is_jump(clock, message.generation()) {
            return self.refuse_jump(clock, from, &message, effects);
        }
        match message {
            Message::Free(Free::PreVote { generation, last }) => {
                self.on_pre_vote(clock, from, generation, last, effects);
            }
            Message::Free(Free::PreVoteReply { generation, granted }) => {
                self.on_pre_vote_reply(clock, from, generation, granted, effects);
            }
            Message::Asserting(Asserting::Vote { generation, last, handed_over }) => {
                self.on_vote(clock, from, generation, last, handed_over, effects);
            }
            Message::Asserting(Asserting::VoteReply { generation, granted, wall }) => {
                self.on_vote_reply(clock, from, generation, granted, wall, effects);
            }
            Message::Free(Free::Append(append)) => self.on_append(clock, from, &append, entries, effects),
            Message::Free(Free::Heartbeat { generation, high_water, round }) => {
                self.on_heartbeat(clock, from, generation, high_water, round, effects);
            }
            Message::Free(Free::HandOver { generation }) => {
                self.on_hand_over(clock, from, generation, effects);
            }
            Message::Free(Free::Lost { generation, confirmed }) => {
                self.on_lost(from, generation, confirmed, effects);
            }
            Message::Asserting(reply) => self.on_reply(clock, from, reply, effects),
            // Whoever has the bytes answers these; one that gets here was not looked at.
            Message::Repair(_) => self.note_malformed("a repair's message where a replica's is due"),
        }
    }

    /// Whether so high a generation is more than elections can have made since the last step.
    fn is_jump(&mut self, clock: Clock, generation: Generation) -> bool {
        if clock.now.since(self.step.since) >= self.config.election_timeout {
            self.step = Step { from: self.generation, since: clock.now };
        }
        generation.0 > self.step.from.0.saturating_add(GENERATION_STEP_MAX)
    }

    /// A message of such a generation is not looked at. The generation rises as far as it may, so that replicas which are that far apart
    /// still meet.
    fn refuse_jump(&mut self, clock: Clock, from: NodeId, message: &Message, effects: &mut Effects) {
        self.jumps += 1;
        effects.trouble.push(Trouble::Jump { from, generation: message.generation() });
        // Those two change nothing, whatever they ask or answer.
        if matches!(message, Message::Free(Free::PreVote { .. } | Free::PreVoteReply { granted: true, .. })) {
            return;
        }
        let most = Generation(self.step.from.0.saturating_add(GENERATION_STEP_MAX).min(NUMBER_MAX));
        if most > self.generation {
            self.promise(clock, most, None, effects);
        }
    }

    /// The log reports that `ticket`, and every ticket before it, is durable.
    pub fn durable(&mut self, clock: Clock, ticket: Ticket, effects: &mut Effects) {
        self.tickets.report(ticket);
        self.settle_marks();
        self.repairs_durable(ticket);
        self.end_turn_of_round();
        match &self.state {
            State::Candidate { ticket, .. } if self.tickets.is_durable(*ticket) => {
                self.count_vote(clock, self.config.node, None, effects);
            }
            State::Leader(_) => self.advance(effects),
            _ => {}
        }
    }

    /// Time passed. Wanted at [`Self::deadline`]; harmless at other times.
    pub fn tick(&mut self, clock: Clock, effects: &mut Effects) {
        if matches!(self.state, State::Leader(_)) {
            self.lead_on(clock, effects);
        } else if self.voting && clock.now >= self.election_deadline {
            self.campaign(clock, effects);
        }
    }

    /// When [`Self::tick`] is wanted next.
    pub fn deadline(&self) -> Monotonic {
        match &self.state {
            // A single voter has nobody to beat for; of its damage it learns otherwise.
            State::Leader(_) if self.peers.is_empty() => Monotonic(u64::MAX),
            State::Leader(leader) => leader.heartbeat_deadline,
            _ if self.voting => self.election_deadline,
            _ => Monotonic(u64::MAX),
        }
    }

    /// The process did not run for a while: what was not heard meanwhile is not held against the peers. Not twice in a row, if
    /// nothing was heard of them in between: a process that is paused all the time would never notice that they are gone.
    pub fn paused(&mut self, clock: Clock) {
        if let State::Leader(leader) = &mut self.state {
            leader.paused = Some(clock.now);
        } else if !self.is_alone()
            && self.excused.is_none_or(|before| self.heard.is_some_and(|heard| heard >= before))
        {
            self.excused = Some(clock.now);
            self.await_leader(clock);
        }
    }

    /// How the disk under its log is doing. To be told before a message or a tick, as far as it has changed.
    pub fn note_disk(&mut self, disk: Disk) {
        self.disk = disk;
    }

    /// Whether the message would make this replica promise another generation.
    fn adopts(&self, message: &Message) -> bool {
        message.generation() > self.generation
            && !matches!(
                message,
                Message::Free(
                    Free::PreVote { .. } | Free::PreVoteReply { granted: true, .. } | Free::HandOver { .. }
                ) | Message::Repair(_)
            )
    }

    /// Whether a message may still leave, now that its ticket is durable: it must assert what is still so.
    pub fn release(&self, message: &Asserting) -> bool {
        message.generation() == self.generation
            && !self.barred
            && match message {
                Asserting::Vote { .. } => matches!(self.state, State::Candidate { .. }),
                // Not if what it confirms was damaged while it waited.
                Asserting::AppendReply { matched, .. } | Asserting::HeartbeatReply { matched, .. } => {
                    self.damage.first_from(self.high_water.next()).is_none_or(|lost| *matched < lost)
                }
                _ => true,
            }
    }

    /// The voters but this node.
    pub fn peers(&self) -> &[NodeId] {
        &self.peers
    }

    /// All voters.
    pub fn voters(&self) -> &[NodeId] {
        &self.config.voters
    }

    /// What it is now.
    pub fn role(&self) -> Role {
        match self.state {
            State::Follower => Role::Follower,
            State::PreCandidate(_) | State::Candidate { .. } => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// Whether it leads.
    pub fn is_leader(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// Since when it leads.
    pub fn leading_since(&self) -> Option<Monotonic> {
        match &self.state {
            State::Leader(leader) => Some(leader.since),
            _ => None,
        }
    }

    /// The leader of the current generation, as far as known; this node if it leads.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// The newest generation adopted.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The newest generation whose promise is durable here.
    pub fn generation_promised(&self) -> Generation {
        self.tickets.generation()
    }

    /// The vote given in that generation.
    pub fn vote(&self) -> Option<NodeId> {
        self.vote
    }

    /// The marks. An entry may be applied once it is at or below [`Marks::applicable`].
    pub fn marks(&self) -> Marks {
        Marks {
            low_water: self.log.base().index.next(),
            durable: self.counted(),
            last: self.log.last().index,
            high_water: self.high_water,
            whole: self.damage.first_from(Index(1)).map_or(self.log.last().index, Index::prev),
        }
    }

    /// The log's last entry.
    pub fn last(&self) -> Position {
        self.log.last()
    }

    /// The generation of the entry at `index`, or of the one before the first that is kept; none elsewhere.
    pub fn generation_at(&self, index: Index) -> Option<Generation> {
        self.log.generation_at(index)
    }

    /// How many sessions the log has opened.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many messages came in that no correct peer sends.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// How many messages came in of generations that no election explains.
    pub fn jumps(&self) -> u64 {
        self.jumps
    }

    /// Counts a message that no correct peer sends.
    pub(crate) fn note_malformed(&mut self, why: &'static str) {
        self.malformed += 1;
        self.accusation = Some(why);
    }

    /// Why the message just stepped is none that a correct peer sends; none if it may be.
    pub fn take_accusation(&mut self) -> Option<&'static str> {
        self.accusation.take()
    }

    /// Whether it is the only voter.
    pub(crate) fn is_alone(&self) -> bool {
        self.voting && self.peers.is_empty()
    }

    /// Gives a leader a whole wait to be heard.
    pub(crate) fn await_leader(&mut self, clock: Clock) {
        let timeout = u64::try_from(self.config.election_timeout.as_nanos()).unwrap_or(u64::MAX / 2);
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15); // SplitMix64
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let jitter = (x ^ (x >> 31)) % timeout.max(1);
        self.election_wait = Duration::from_nanos(timeout.saturating_add(jitter));
        self.election_deadline = clock.now.after(self.election_wait);
    }

    /// Asks the log for a durable step that leaves it as it is now.
    pub(crate) fn order(&mut self, kind: LogOpKind, effects: &mut Effects) -> Ticket {
        let ticket = self.tickets.issue(self.log.last().index, self.generation);
        effects.append.push(LogOp { ticket, kind });
        ticket
    }

    /// Adopts `generation` with `vote`, durably before anything that asserts it (invariants 1, 2, 9).
    pub(crate) fn promise(
        &mut self,
        clock: Clock,
        generation: Generation,
        vote: Option<NodeId>,
        effects: &mut Effects,
    ) {
        if generation > self.generation {
            self.step_down(clock, effects);
            self.verified = Index::ZERO;
            self.leader = None;
            effects.role_changed = true;
        } else {
            assert!(generation == self.generation, "a generation never goes back");
            assert!(self.vote.is_none() && vote.is_some(), "a vote once given is not given again");
        }
        self.generation = generation;
        self.vote = vote;
        self.promised = self.order(LogOpKind::Promise { generation, vote }, effects);
    }

    /// Becomes a follower without a leader, in the same generation. Whoever waited here learns of it.
    pub(crate) fn step_down(&mut self, clock: Clock, effects: &mut Effects) {
        match core::mem::replace(&mut self.state, State::Follower) {
            State::Follower => return,
            State::Leader(mut leader) => {
                leader.reads.refuse_all(effects);
                leader.refusals.refuse_all(effects);
                self.remember_confirmed(&leader);
                effects.deposed = Some(self.generation);
                self.leader = None;
                self.await_leader(clock);
            }
            State::PreCandidate(_) | State::Candidate { .. } => {}
        }
        effects.role_changed = true;
    }

    /// Queues a message that asserts the current generation and whatever else `ticket` makes durable.
    pub(crate) fn assert_to(
        &mut self,
        to: NodeId,
        ticket: Ticket,
        message: Asserting,
        effects: &mut Effects,
    ) {
        let ticket = ticket.max(self.promised);
        let ticket = if self.tickets.is_durable(ticket) { Ticket(0) } else { ticket };
        effects.send_when_durable.push((ticket, Outgoing { to, message }));
    }

    /// Raises the high-water mark.
    pub(crate) fn commit(&mut self, mark: Index, effects: &mut Effects) {
        if mark > self.high_water {
            assert!(mark <= self.log.last().index, "only what is in the log can be committed here");
            self.high_water = mark;
            self.starts.commit(mark);
            effects.committed = Some(mark);
        }
    }
}
