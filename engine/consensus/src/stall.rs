//! A disk that stalls without an error: what a leader and a candidate do about it.
//!
//! A hung disk fails nothing, and a leader over one acknowledges nothing while it goes on to beat. So the age of the oldest write that is
//! not durable is watched, beside the log. A replica over a stalled disk grants no pre-vote and does not stand. If it leads, and the other voters whose disks
//! are steady are a quorum, it hands over: it asks the most up-to-date of them to stand, and leads on until that one's vote request is here.
//! Handing over writes nothing. Where the others are no quorum it leads on: nobody would do better.
//!
//! Promises nothing about safety that elections do not: whoever is handed over to needs its votes like any candidate. It does not measure:
//! the shard, whose log it is, tells what it sees ([`Replica::note_disk`]).

use crate::effects::{Effects, Outgoing};
use crate::message::Free;
use crate::progress::Progress;
use crate::quorum;
use crate::replica::{NUMBER_MAX, Replica, State};
use core::cmp::Reverse;
use core::time::Duration;
use tidelog_types::{Clock, Generation, Monotonic, NodeId};

/// Of the stall time-out, a peer's oldest write may have one part in so many for its disk to be steady: on a disk that all nodes share, or that is
/// equally slow everywhere, leadership would go round otherwise.
const STEADY_PART: u32 = 2;

/// What may be expected of a disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Health {
    /// It takes what it is given.
    #[default]
    Steady,
    /// It stalled not long ago: others, whose disks did not, come first.
    Behind,
    /// Its oldest write has been under way for the stall time-out or longer.
    Stalled,
}

/// A disk under a log, as its shard sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Disk {
    /// Age of the oldest write that is not durable, in milliseconds.
    pub oldest_ms: u64,
    /// What may be expected of it.
    pub health: Health,
}

/// A leader's attempt to hand over.
#[derive(Debug, Default)]
pub(crate) struct HandOver {
    /// Whom it asks to stand, and since when.
    to: Option<(NodeId, Monotonic)>,
    /// Who was asked before, and did not.
    in_vain: Vec<NodeId>,
}

impl Progress {
    /// Whether the peer answered something sent within `timeout`, and its disk takes writes.
    fn is_steady(&self, now: Monotonic, timeout: Duration, oldest_max: Duration) -> bool {
        self.lost.is_none()
            && self.round > 0
            && now.since(self.evidence) < timeout
            && self.disk.is_some_and(|disk| {
                disk.health != Health::Stalled && Duration::from_millis(disk.oldest_ms) < oldest_max
            })
    }
}

impl Replica {
    /// A leader's heartbeat is due: over a stalled disk it hands over, if that is of use. The request is repeated with each heartbeat; the
    /// one who is asked has an election time-out for its vote request, then it is another's turn.
    pub(crate) fn weigh_disk(&mut self, clock: Clock, effects: &mut Effects) {
        let State::Leader(leader) = &mut self.state else { return };
        let timeout = self.config.election_timeout;
        let oldest_max = self.config.stall_timeout / STEADY_PART;
        let stalled = self.disk.health == Health::Stalled;
        let peers = self.peers.iter().copied().zip(leader.progress());
        let steady = peers.filter(|(_, peer)| stalled && peer.is_steady(clock.now, timeout, oldest_max));
        // Those that stalled not long ago come last, then the most up-to-date comes first.
        let health = |peer: &Progress| peer.disk.map_or(Health::Behind, |disk| disk.health);
        let mut steady: Vec<_> =
            steady.map(|(node, peer)| (health(peer), Reverse(peer.matched()), node)).collect();
        steady.sort_unstable();
        if !quorum::won(steady.len(), self.config.voters.len()) {
            leader.hand_over = HandOver::default();
            return;
        }
        let HandOver { to, mut in_vain } = core::mem::take(&mut leader.hand_over);
        let is_steady = |node: NodeId| steady.iter().any(|(_, _, peer)| *peer == node);
        let waits =
            |(node, since): &(NodeId, Monotonic)| clock.now.since(*since) < timeout && is_steady(*node);
        let to = to.filter(waits).or_else(|| {
            in_vain.extend(to.map(|(node, _)| node));
            if steady.iter().all(|(_, _, node)| in_vain.contains(node)) {
                in_vain.clear();
            }
            let next = steady.iter().find(|(_, _, node)| !in_vain.contains(node));
            next.map(|(_, _, node)| (*node, clock.now))
        });
        if let Some((to, _)) = to {
            let message = Free::HandOver { generation: self.generation };
            effects.send_now.push(Outgoing { to, message });
        }
        leader.hand_over = HandOver { to, in_vain };
    }

    /// Whom a leader over a stalled disk asks to stand.
    pub fn handing_over_to(&self) -> Option<NodeId> {
        match &self.state {
            State::Leader(leader) => leader.hand_over.to.map(|(node, _)| node),
            _ => None,
        }
    }

    /// The leader asks this replica to stand. One that is late, or comes twice, is of a generation that is over.
    pub(crate) fn on_hand_over(
        &mut self,
        clock: Clock,
        from: NodeId,
        generation: Generation,
        effects: &mut Effects,
    ) {
        let follows = generation == self.generation
            && self.leader == Some(from)
            && matches!(self.state, State::Follower);
        let able = self.voting && self.damage.is_empty() && self.disk.health != Health::Stalled;
        if follows && able && self.may_stand() && generation.0 < NUMBER_MAX {
            self.stand(clock, true, effects);
        }
    }
}
