//! A blow in steps: the end of a log that few nodes have, on a disk that loses it, so that its replica must decide what becomes of it.
//!
//! A leader goes on appending while it is cut off, alone or with just enough followers that its entries are committed. Then it loses
//! power, in the middle of a write, or with a last batch that goes bad; the followers that were with it follow, when their disks are
//! quiet. It comes back first and meets only the others: they elect it, since its log is the longest, and cannot commit without it.
//! Of what it lost they may have nothing, though it was committed: those that have it come back later.

use std::time::Duration;
use tidelog_sim::Random;

const MILLI: u64 = 1_000_000;
/// Nodes that lost each other try again within about this time.
const CONNECT_NS: u64 = 2_000 * MILLI;
/// How often it is looked whether the leader's log ends as it should.
pub(crate) const LOOK_NS: u64 = MILLI / 2;

/// A step of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// The leader loses power.
    Lead,
    /// Those that were with it do.
    Follow,
    /// The leader meets the others.
    Meet,
    /// Everyone meets everyone.
    End,
}

impl Step {
    pub(crate) const ALL: [Step; 4] = [Step::Lead, Step::Follow, Step::Meet, Step::End];
}

/// Such a blow under way.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) leader: u64,
    /// Who gets what the leader appends.
    pub(crate) with_it: Vec<u64>,
    /// All other voters.
    pub(crate) others: Vec<u64>,
    /// It loses power inside one of its next so many operations; none: at once, and its last batch goes bad.
    pub(crate) torn_within: Option<u64>,
    /// When each step comes.
    at_ns: [u64; 4],
    lead_until_ns: u64,
    leader_back_ns: u64,
    others_back_ns: u64,
}

impl Tail {
    /// Draws one that begins now.
    pub(crate) fn draw(
        random: &mut Random,
        now_ns: u64,
        voters: &[u64],
        leader: u64,
        election_timeout: Duration,
    ) -> Tail {
        let timeout = u64::try_from(election_timeout.as_nanos()).unwrap_or(1000 * MILLI);
        let mut others: Vec<u64> = voters.iter().copied().filter(|id| *id != leader).collect();
        // Enough to commit, in every other case.
        let committed = random.coin();
        let count = if committed { voters.len() / 2 } else { 0 };
        let first = usize::try_from(random.below(others.len().max(1) as u64)).unwrap_or(0);
        others.rotate_left(first);
        let with_it = others.split_off(others.len().saturating_sub(count));
        // What is torn and was committed lies in two unfinished writes, and may not be to be decided at all.
        let torn_within = (!committed && random.coin()).then(|| 1 + random.below(4));
        // Nobody gives the leader up, nor it its lead.
        let lead = now_ns + random.between((timeout / 8, timeout / 2));
        let follow = lead + timeout / 4 + 20 * MILLI;
        let leader_back_ns = follow + random.between((10 * MILLI, 200 * MILLI));
        let meet = leader_back_ns;
        // A damaged candidate waits up to three time-outs before it stands.
        let others_back_ns = meet + CONNECT_NS + random.between((4 * timeout, 8 * timeout));
        let rest = random.between((timeout, 4 * timeout));
        let end = if committed { others_back_ns + CONNECT_NS / 2 + rest } else { others_back_ns };
        Tail {
            leader,
            with_it,
            others,
            torn_within,
            at_ns: [lead, follow, meet, end],
            lead_until_ns: lead + timeout / 4,
            leader_back_ns,
            others_back_ns,
        }
    }

    /// When the leader loses power at the latest.
    pub(crate) fn lead_until(&self) -> u64 {
        self.lead_until_ns
    }

    /// The steps and when they come.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (Step, u64)> {
        Step::ALL.into_iter().zip(self.at_ns)
    }

    /// The pairs of voters that do not reach each other from its beginning on.
    pub(crate) fn cuts(&self) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        for (n, other) in self.others.iter().enumerate() {
            let together = self.with_it.iter().chain([&self.leader]).chain(self.others.iter().skip(n + 1));
            out.extend(together.map(|one| (*one, *other)));
        }
        out
    }

    /// When a node comes back that is down because of it.
    pub(crate) fn back_at(&self, id: u64) -> Option<u64> {
        match id {
            id if id == self.leader => Some(self.leader_back_ns),
            id if self.with_it.contains(&id) => Some(self.others_back_ns),
            _ => None,
        }
    }
}
