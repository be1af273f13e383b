//! Elections: who may lead the next generation.
//!
//! A replica that heard no leader for its wait first asks whether it would be elected (pre-vote): nothing is
//! promised, so a node that was cut off cannot disturb the others by its return. Only then does it promise a
//! new generation with its own vote in it, and asks for the others' once that is durable. A vote goes to a log
//! at least as long as one's own, once a generation, and not while a leader was heard within the election
//! time-out, nor within one time-out after a start, unless that leader has handed over to whoever asks. It does not know how logs are brought in
//! line afterwards.

use crate::effects::{Effects, Outgoing};
use crate::message::{Asserting, Free};
use crate::quorum;
use crate::replica::{NUMBER_MAX, Replica, State};
use crate::stall::Health;
use crate::stamp::Witness;
use tidelog_types::{Clock, Generation, NodeId, Position, Ticket, WallMs};

/// Who granted, with their wall clocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Votes {
    granted: Vec<(NodeId, Option<Witness>)>,
}

impl Votes {
    /// Counts a vote once.
    fn grant(&mut self, node: NodeId, witness: Option<Witness>) {
        if self.granted.iter().all(|(voter, _)| *voter != node) {
            self.granted.push((node, witness));
        }
    }

    /// The wall clock of `node`, as it came with its vote.
    pub(crate) fn witness(&self, node: NodeId) -> Option<Witness> {
        self.granted.iter().find(|(voter, _)| *voter == node).and_then(|(_, witness)| *witness)
    }
}

impl Replica {
    /// No leader was heard for the whole wait.
    pub(crate) fn campaign(&mut self, clock: Clock, effects: &mut Effects) {
        if self.generation.0 >= NUMBER_MAX {
            return self.await_leader(clock);
        }
        if !self.may_stand() || self.barred {
            return self.await_leader(clock);
        }
        if self.disk.health == Health::Stalled && !self.is_alone() {
            return self.await_leader(clock); // it could not even promise
        }
        // Whoever is whole stands first: it leads at once. And whose disk has been steady, before one that is likely to stall again.
        let timeout = self.config.election_timeout;
        let late = !self.damage.is_empty() || self.disk.health == Health::Behind;
        if late && self.election_wait < timeout * 2 {
            self.election_wait += timeout;
            self.election_deadline = clock.now.after(timeout);
            return;
        }
        if !self.is_alone() {
            self.await_leader(clock);
        }
        match &self.state {
            // The own disk has not even taken the promise: another one would only queue behind it.
            State::Candidate { ticket, .. } if !self.tickets.is_durable(*ticket) => return,
            _ if self.is_alone() => return self.stand(clock, false, effects),
            _ => {}
        }
        let mut votes = Votes::default();
        votes.grant(self.config.node, None);
        self.state = State::PreCandidate(votes);
        self.leader = None;
        effects.role_changed = true;
        let message = Free::PreVote { generation: self.generation.next(), last: self.log.last() };
        let all = self.peers.iter().map(|to| Outgoing { to: *to, message: message.clone() });
        effects.send_now.extend(all);
    }

    /// A quorum would vote for it, or the leader hands over to it: promises the next generation and asks for the votes.
    pub(crate) fn stand(&mut self, clock: Clock, handed_over: bool, effects: &mut Effects) {
        self.promise(clock, self.generation.next(), Some(self.config.node), effects);
        let ticket = self.promised;
        self.state = State::Candidate { votes: Votes::default(), ticket, deciding: None };
        effects.role_changed = true;
        if self.is_alone() {
            self.election_deadline = clock.now.after(self.config.election_timeout);
        } else {
            self.await_leader(clock);
        }
        let message = Asserting::Vote { generation: self.generation, last: self.log.last(), handed_over };
        for to in self.peers.clone() {
            self.assert_to(to, ticket, message.clone(), effects);
        }
    }

    /// Whether it must not help another to lead: a leader may live, here or as this node's last life knew it.
    fn abstains(&self, clock: Clock) -> bool {
        let timeout = self.config.election_timeout;
        !self.voting
            || self.barred
            || self.is_leader()
            || clock.now < self.silent_until
            || self.heard.is_some_and(|heard| clock.now.since(heard) < timeout)
    }

    pub(crate) fn on_pre_vote(
        &mut self,
        clock: Clock,
        from: NodeId,
        generation: Generation,
        last: Position,
        effects: &mut Effects,
    ) {
        let granted = generation > self.generation
            && last >= self.log.last()
            && !self.abstains(clock)
            && self.disk.health != Health::Stalled;
        // A refusal tells only what is durable, so that it may leave at once.
        let generation = if granted { generation } else { self.tickets.generation() };
        let message = Free::PreVoteReply { generation, granted };
        effects.send_now.push(Outgoing { to: from, message });
    }

    pub(crate) fn on_pre_vote_reply(
        &mut self,
        clock: Clock,
        from: NodeId,
        generation: Generation,
        granted: bool,
        effects: &mut Effects,
    ) {
        let State::PreCandidate(votes) = &mut self.state else { return };
        if granted && generation == self.generation.next() {
            votes.grant(from, None);
            if quorum::won(votes.granted.len(), self.config.voters.len()) {
                self.stand(clock, false, effects);
            }
        } else if !granted && generation > self.generation {
            // Behind the others: the next campaign must ask for a generation that is new to them.
            self.promise(clock, generation, None, effects);
        }
    }

    pub(crate) fn on_vote(
        &mut self,
        clock: Clock,
        from: NodeId,
        generation: Generation,
        last: Position,
        handed_over: bool,
        effects: &mut Effects,
    ) {
        // Any leader that this node has heard, in this life or the last, led the generation before the one asked for, or an earlier one: the
        // former has handed over.
        let handed_over = handed_over && generation > self.generation && self.voting;
        let granted = if generation < self.generation {
            false
        } else if self.abstains(clock) && !handed_over {
            return; // not even the generation is adopted: the leader that lives is not disturbed
        } else {
            let free = generation > self.generation || self.vote.is_none() || self.vote == Some(from);
            let granted = free && last >= self.log.last();
            if generation > self.generation || (granted && self.vote.is_none()) {
                self.promise(clock, generation, granted.then_some(from), effects);
            }
            if handed_over {
                self.heard = None;
            }
            if granted {
                self.step_down(clock, effects);
                self.await_leader(clock);
            }
            granted
        };
        let message = Asserting::VoteReply { generation: self.generation, granted, wall: clock.wall };
        self.assert_to(from, Ticket(0), message, effects);
    }

    pub(crate) fn on_vote_reply(
        &mut self,
        clock: Clock,
        from: NodeId,
        generation: Generation,
        granted: bool,
        wall: WallMs,
        effects: &mut Effects,
    ) {
        if !matches!(self.state, State::Candidate { .. }) {
            return;
        }
        if generation > self.generation {
            self.promise(clock, generation, None, effects);
        } else if generation == self.generation && granted {
            self.count_vote(clock, from, Some(Witness::new(wall, clock.now)), effects);
        }
    }

    /// Counts a vote that is durable where it was given. With a quorum it is elected.
    pub(crate) fn count_vote(
        &mut self,
        clock: Clock,
        node: NodeId,
        witness: Option<Witness>,
        effects: &mut Effects,
    ) {
        let State::Candidate { votes, ticket, .. } = &mut self.state else { return };
        votes.grant(node, witness);
        // Its own promise must be among what is durable: a leader speaks for its generation at once.
        if self.tickets.is_durable(*ticket) && quorum::won(votes.granted.len(), self.config.voters.len()) {
            self.elected(clock, effects);
        }
    }
}
