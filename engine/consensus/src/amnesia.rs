//! A replica that lacks what it once confirmed: rolled back to an older state of its directory, doubled, or on a disk that lost
//! writes which it had called durable.
//!
//! A confirmation is of durable entries, and within one generation a leader's log only grows. So a follower that refuses an append
//! whose beginning it had confirmed to this very leader, and does not say that its bytes are damaged, has lost them, and with them
//! perhaps promises and votes: what it says now may contradict what it said. The same holds in a later leadership of the same process for
//! what was committed when it was confirmed. The leader counts it no more, and tells it; a follower
//! that finds itself without the entry takes no part any more. Promises that what may lawfully be missing (damage, a cut by a later
//! leader, a base) never counts as this. It does not know what was confirmed to other leaders, or to an earlier process.

use crate::effects::{Effects, Outgoing, Trouble};
use crate::leader::Leader;
use crate::message::Free;
use crate::replica::{Replica, State};
use tidelog_types::{Generation, Index, NodeId, Position};

impl Replica {
    /// `from` refuses an append of this leader's round `round`, and the logs agree up to `agree` at most. Whether it has thereby shown
    /// that it lost what it confirmed.
    pub(crate) fn is_amnesia(&self, from: NodeId, round: u64, agree: Index) -> bool {
        let State::Leader(leader) = &self.state else { return false };
        let at = self.peers.iter().position(|peer| *peer == from);
        let Some(progress) = at.and_then(|at| leader.progress().get(at)) else { return false };
        // What was sent in a round begun after the confirmation came in was answered after the confirmation was given. And what was
        // committed when it was confirmed to an earlier leadership is in every log for ever.
        agree < progress.floor || agree < progress.matched() && round > progress.confirmed_in
    }

    /// This leadership ends: what its followers confirmed and is committed they will have for ever.
    pub(crate) fn remember_confirmed(&mut self, leader: &Leader) {
        for (confirmed, progress) in self.confirmed.iter_mut().zip(leader.progress()) {
            if progress.lost.is_none() {
                *confirmed = progress.matched().min(self.high_water).max(*confirmed);
            }
        }
    }

    /// The leader counts `node` no more.
    pub(crate) fn lose_peer(&mut self, node: NodeId, end: Index, effects: &mut Effects) {
        let Some(at) = self.peers.iter().position(|peer| *peer == node) else { return };
        let State::Leader(leader) = &mut self.state else { return };
        let Some(progress) = leader.progress_mut(at) else { return };
        let index = progress.matched().max(progress.floor);
        let Some(generation) = self.log.remembered_generation(index) else { return };
        let confirmed = Position::new(index, generation);
        progress.lost = Some(confirmed);
        effects.trouble.push(Trouble::PeerLost { node, confirmed, end });
    }

    /// Tells those that lost what they confirmed, in the place of a heartbeat.
    pub(crate) fn beat_or_tell(
        generation: Generation,
        leader: &Leader,
        peers: &[NodeId],
        beat: &Free,
        effects: &mut Effects,
    ) {
        for (to, progress) in peers.iter().zip(leader.progress()) {
            let message = match progress.lost {
                Some(confirmed) => Free::Lost { generation, confirmed },
                None => beat.clone(),
            };
            effects.send_now.push(Outgoing { to: *to, message });
        }
    }

    /// The leader says that this replica confirmed an entry which it lacks now.
    pub(crate) fn on_lost(
        &mut self,
        from: NodeId,
        generation: Generation,
        confirmed: Position,
        effects: &mut Effects,
    ) {
        // Only the leader that it follows, and only of what it finds to be so: whoever has the entry has lost nothing.
        let leads = generation == self.generation && self.leader == Some(from);
        if !leads || self.barred || confirmed.generation > generation || !self.denies(confirmed) {
            return;
        }
        self.bar();
        effects.trouble.push(Trouble::Barred { confirmed });
    }

    /// This node takes no part any more: it neither votes, nor stands, nor confirms.
    pub fn bar(&mut self) {
        self.barred = true;
    }

    /// Whether it takes no part any more.
    pub fn is_barred(&self) -> bool {
        self.barred
    }

    /// What a leader knows of its peers: for people.
    #[doc(hidden)]
    pub fn describe_peers(&self) -> String {
        match &self.state {
            State::Leader(leader) => {
                let known: Vec<_> = self.peers.iter().zip(leader.progress()).collect();
                format!("{known:?}")
            }
            _ => String::new(),
        }
    }

    /// Peers that this leader counts no more, and what each had confirmed.
    pub fn lost_peers(&self) -> impl Iterator<Item = (NodeId, Position)> {
        let progress = match &self.state {
            State::Leader(leader) => leader.progress(),
            _ => &[],
        };
        self.peers.iter().zip(progress).filter_map(|(node, progress)| Some((*node, progress.lost?)))
    }
}
