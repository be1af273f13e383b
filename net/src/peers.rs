//! The peers of a node: whether to dial them, and which of two connections stays.

use crate::lanes::Lanes;
use crate::slab::Key;
use core::time::Duration;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use tidelog::formation::Hello;
use tidelog_types::{Monotonic, NodeId};

/// Most connects to one peer in flight: one that a network swallows must not keep the next one waiting.
const DIALS_MAX: u32 = 4;
/// Longest time between two attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(3);
/// Doublings of the back-off at most.
const DOUBLINGS_MAX: u32 = 6;

/// A configured peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// This process's number for the peer.
    pub(crate) process: u64,
    /// The connection that has said hello and stays.
    pub(crate) channel: Option<Key>,
    /// The connection dialled that has not been answered yet.
    pub(crate) greeting: Option<Key>,
    /// Connects in flight.
    pub(crate) dials: u32,
    dial_at: Monotonic,
    failures: u32,
    /// What this node waits more than the other one, so that mostly one of the two dials.
    handicap: Duration,
    heartbeat: Duration,
}

impl Peer {
    pub(crate) fn new(
        own: NodeId,
        node: NodeId,
        address: SocketAddr,
        heartbeat: Duration,
        now: Monotonic,
        process: u64,
    ) -> Peer {
        let handicap = if own > node { 2 * heartbeat } else { Duration::ZERO };
        Peer {
            address,
            // 0 stands for one that is not known yet.
            process: process.max(1),
            channel: None,
            greeting: None,
            dials: 0,
            dial_at: now.after(handicap),
            failures: 0,
            handicap,
            heartbeat,
        }
    }

    /// Whether to dial now.
    pub(crate) fn wants_dial(&self, now: Monotonic) -> bool {
        self.channel.is_none() && self.greeting.is_none() && self.dials < DIALS_MAX && now >= self.dial_at
    }

    /// A connect was started: the next one follows when this one takes longer than `patience`.
    pub(crate) fn dialled(&mut self, now: Monotonic, patience: Duration) {
        self.dials += 1;
        self.dial_at = now.after(patience);
    }

    /// The channel was up and is gone: dial soon.
    pub(crate) fn broke(&mut self, now: Monotonic, random: u64) {
        self.failures = 0;
        self.dial_at = now.after(self.delay(random));
    }

    /// An attempt failed: dial later.
    pub(crate) fn failed(&mut self, now: Monotonic, random: u64) {
        self.failures = (self.failures + 1).min(DOUBLINGS_MAX);
        self.dial_at = now.after(self.delay(random));
    }

    /// It will not do soon: dial much later.
    pub(crate) fn refused(&mut self, now: Monotonic, random: u64) {
        self.failures = DOUBLINGS_MAX;
        self.dial_at = now.after(self.delay(random));
    }

    /// In [half, whole] of the heartbeat, doubled with every failure.
    fn delay(&self, random: u64) -> Duration {
        let whole = (self.heartbeat * (1 << self.failures)).min(BACK_OFF_MAX);
        jittered(whole, random) + self.handicap
    }
}

/// A time in [half, whole] of `whole`.
pub(crate) fn jittered(whole: Duration, random: u64) -> Duration {
    let half = whole / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
    half + Duration::from_nanos(random % nanos.max(1))
}

/// A connection to a peer.
#[derive(Debug)]
pub(crate) struct Channel {
    /// Who is expected to answer, if this node dialled.
    pub(crate) expected: Option<NodeId>,
    /// The dialler's number for it.
    pub(crate) attempt: u64,
    /// What the peer said last.
    pub(crate) hello: Option<Hello>,
    /// This process's number for the peer; 0 while it is not known who that is.
    pub(crate) process: u64,
    /// This node's last hello named the peer's process.
    pub(crate) greeted: bool,
    /// The peer's hello named this process: it is no repetition of what was said to an earlier one.
    pub(crate) present: bool,
    /// When this node last said its own.
    pub(crate) hello_at: Monotonic,
    /// Both formed, identities agreed: messages may flow.
    pub(crate) established: bool,
    pub(crate) lanes: Lanes,
}

impl Channel {
    /// The node at the other end.
    pub(crate) fn node(&self) -> Option<NodeId> {
        self.hello.as_ref().map(|h| h.node)
    }

    /// Whether this connection replaces `old`, which is to the same peer of `own` and was heard `silent` ago; see
    /// `docs/formats/wire.md`. Another process's does not while the older one's is alive.
    pub(crate) fn replaces(&self, old: &Channel, own: NodeId, silent: Duration, patience: Duration) -> bool {
        let (Some(new_hello), Some(old_hello)) = (&self.hello, &old.hello) else { return true };
        if silent >= patience {
            return true;
        }
        if new_hello.process != old_hello.process {
            return !old.present;
        }
        match (self.expected.is_some(), old.expected.is_some()) {
            (mine, theirs) if mine == theirs => self.attempt > old.attempt,
            (mine, _) => mine == (own < new_hello.node),
        }
    }
}

/// Complaints that were logged, so that each is logged once.
#[derive(Debug, Default)]
pub(crate) struct Told(BTreeSet<(String, String)>);

/// Most complaints remembered.
const TOLD_MAX: usize = 256;

impl Told {
    /// Whether this is the first time.
    pub(crate) fn first(&mut self, about: String, reason: &str) -> bool {
        if self.0.len() >= TOLD_MAX {
            self.0.clear();
        }
        self.0.insert((about, reason.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidelog_types::Incarnation;

    const ET: Duration = Duration::from_millis(500);
    const NOW: Duration = Duration::ZERO;

    fn channel(dialled: bool, attempt: u64, process: u64, peer: u64) -> Channel {
        let hello = Hello {
            cluster_name: "c".into(),
            node: NodeId(peer),
            incarnation: Incarnation(1),
            process,
            shard: 0,
            shard_count: 1,
            partitions: 1,
            replication: 3,
            key_hash: 1,
            payload_bytes_max: 1,
            feature_level: 1,
            heartbeat_ms: 50,
            barred: false,
            formed: None,
        };
        Channel {
            expected: dialled.then_some(NodeId(peer)),
            attempt,
            hello: Some(hello),
            process: 1,
            greeted: true,
            present: true,
            hello_at: Monotonic(0),
            established: true,
            lanes: Lanes::new(1, 1),
        }
    }

    #[test]
    fn of_two_connections_both_ends_keep_the_same() {
        // Node 1 and node 2 dialled each other. On node 1 `expected` is set for what it dialled, on node 2 for the other.
        let (by_1_on_1, by_2_on_1) = (channel(true, 7, 20, 2), channel(false, 3, 20, 2));
        let (by_1_on_2, by_2_on_2) = (channel(false, 7, 10, 1), channel(true, 3, 10, 1));
        let (one, two) = (NodeId(1), NodeId(2));
        assert!(
            by_1_on_1.replaces(&by_2_on_1, one, NOW, ET) && !by_2_on_1.replaces(&by_1_on_1, one, NOW, ET)
        );
        assert!(
            by_1_on_2.replaces(&by_2_on_2, two, NOW, ET) && !by_2_on_2.replaces(&by_1_on_2, two, NOW, ET)
        );
    }

    #[test]
    fn newer_replaces_older() {
        let own = NodeId(1);
        assert!(channel(true, 8, 20, 2).replaces(&channel(true, 7, 20, 2), own, NOW, ET));
        assert!(
            !channel(false, 7, 20, 2).replaces(&channel(false, 8, 20, 2), own, NOW, ET),
            "delayed on the way"
        );
        let again = channel(false, 1, 21, 2);
        assert!(!again.replaces(&channel(true, 9, 20, 2), own, NOW, ET), "two processes on one directory");
        assert!(again.replaces(&channel(true, 9, 20, 2), own, ET, ET), "the peer was restarted");
        let unproven = Channel { present: false, ..channel(false, 9, 20, 2) };
        assert!(
            again.replaces(&unproven, own, NOW, ET),
            "the first one may be a repetition of an earlier life's"
        );
    }

    #[test]
    fn back_off_is_bounded_and_jittered() {
        let now = Monotonic(0);
        let mut peer = Peer::new(
            NodeId(1),
            NodeId(2),
            SocketAddr::from(([127, 0, 0, 1], 1)),
            Duration::from_millis(50),
            now,
            9,
        );
        assert!(peer.wants_dial(now));
        for i in 0..20 {
            peer.dialled(now, Duration::from_secs(1));
            peer.dials -= 1;
            peer.failed(now, u64::wrapping_mul(i, 0x9E37_79B9_7F4A_7C15));
            assert!(!peer.wants_dial(now.after(Duration::from_millis(20))));
            assert!(peer.wants_dial(now.after(BACK_OFF_MAX)));
        }
        peer.broke(now, u64::MAX);
        assert!(peer.wants_dial(now.after(Duration::from_millis(50))));
    }
}
