//! Lulls: now and then clients append nothing to a partition for longer than a session lives, and then one of its sessions is used
//! before anything else. No entry of the traffic proves that session's expiry then.

use tidelog_sim::Random;

/// Longer lives would leave too little of a run.
const EXPIRY_MAX_NS: u64 = 3_000_000_000;
/// How long the first use may take to come, and to be answered, before others append.
const FIRST_NS: u64 = 500_000_000;
/// One client's request in so many begins a lull, if one may begin.
const ONE_IN: u64 = 50;

#[derive(Debug)]
struct Lull {
    partition: u64,
    until_ns: u64,
    used: bool,
}

/// What clients leave alone for a while.
#[derive(Debug)]
pub(crate) struct Lulls {
    expiry_ns: u64,
    lull: Option<Lull>,
    /// None before that.
    next_ns: u64,
    /// Sessions used first after a lull.
    used: u64,
}

impl Lulls {
    /// For sessions that live so long.
    pub(crate) fn new(expiry_ns: u64) -> Lulls {
        let next_ns = if expiry_ns <= EXPIRY_MAX_NS { 0 } else { u64::MAX };
        Lulls { expiry_ns, lull: None, next_ns, used: 0 }
    }

    /// No more of them.
    pub(crate) fn end(&mut self) {
        (self.lull, self.next_ns) = (None, u64::MAX);
    }

    /// Sessions that were used first after a lull.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The partition to which nothing is to be appended now.
    pub(crate) fn quiet(&mut self, now_ns: u64) -> Option<u64> {
        self.lull = self.lull.take().filter(|lull| now_ns < lull.until_ns + FIRST_NS);
        self.lull.as_ref().map(|lull| lull.partition)
    }

    /// The partition whose lull has lasted long enough, until a session of it was used.
    pub(crate) fn awaits(&self, now_ns: u64) -> Option<u64> {
        self.lull.as_ref().filter(|lull| !lull.used && now_ns >= lull.until_ns).map(|lull| lull.partition)
    }

    /// A session of that partition is used. Others wait for what becomes of it.
    pub(crate) fn use_first(&mut self, now_ns: u64) {
        if let Some(lull) = &mut self.lull {
            (lull.used, lull.until_ns) = (true, now_ns);
            self.used += 1;
        }
    }

    /// A client with sessions in `partitions` is about to ask for something: a lull may begin.
    pub(crate) fn draw(&mut self, now_ns: u64, partitions: &[u64], random: &mut Random) {
        if self.lull.is_some() || now_ns < self.next_ns || random.below(ONE_IN) != 0 {
            return;
        }
        let Some(partition) = random.pick(partitions).copied() else { return };
        let lasts_ns = self.expiry_ns + random.between((0, self.expiry_ns / 4));
        self.lull = Some(Lull { partition, until_ns: now_ns + lasts_ns, used: false });
        self.next_ns = now_ns + 3 * lasts_ns;
    }
}
