//! What clients hold of a node's memory, and what they may still take.
//!
//! Three shares of one bound, so that none of them can take what the others need: what has arrived of large requests may be a
//! quarter of it, reads and their answers half, and all together the whole. Whatever is asked for, one request of each share is
//! always let through when nothing else of that share is in flight: so a bound that is too small slows clients down, and
//! never stops them. It does not know who waits; [`crate::transport`] lets those who wait longest go first.

use crate::wire::{FrameHeader, FrameKind, STATUS_PARTITIONS_MAX};
use tidelog_types::limits::APPEND_BYTES_MAX;

/// What a status may take while it is in flight: a KiB for each partition.
pub(crate) const STATUS_CHARGE: usize = (STATUS_PARTITIONS_MAX as usize) << 10;
/// What an answer takes at least.
pub(crate) const ANSWER_BYTES: usize = 64;

/// So many connections at least divide the share of reads.
const READERS_MIN: usize = 16;

/// Bytes that a connection holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Held {
    /// The buffer of a large request that is arriving.
    pub(crate) upload: usize,
    /// Reads asked for, and what answers them.
    pub(crate) reads: usize,
    /// All other requests and answers.
    pub(crate) others: usize,
}

impl Held {
    pub(crate) fn all(self) -> usize {
        self.upload + self.reads + self.others
    }
}

/// Which share a request is counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Share {
    Reads,
    Others,
}

/// The share of a request, and the bytes that it takes until its answer has left.
pub(crate) fn cost(header: &FrameHeader) -> (Share, usize) {
    match header.kind {
        FrameKind::Read => {
            let wanted = usize::try_from(header.fields[4] & 0xffff_ffff).unwrap_or(usize::MAX);
            (Share::Reads, ANSWER_BYTES + wanted.clamp(1, APPEND_BYTES_MAX))
        }
        FrameKind::Status => (Share::Reads, ANSWER_BYTES + STATUS_CHARGE),
        _ => (Share::Others, ANSWER_BYTES + header.payload_len as usize),
    }
}

/// All clients of a shard together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: usize,
    held: Held,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Budget {
        Budget { bytes_max, held: Held::default() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.held.all()
    }

    /// A connection holds `now`, where it held `before`.
    pub(crate) fn change(&mut self, before: Held, now: Held) {
        let Held { upload, reads, others } = &mut self.held;
        *upload = *upload - before.upload + now.upload;
        *reads = *reads - before.reads + now.reads;
        *others = *others - before.others + now.others;
    }

    /// Whether a request may be taken.
    pub(crate) fn takes(&self, share: Share, bytes: usize) -> bool {
        let fits = self.held.all() + bytes <= self.bytes_max;
        match share {
            Share::Reads => self.held.reads == 0 || fits && self.held.reads + bytes <= self.bytes_max / 2,
            Share::Others => self.held.others == 0 || fits,
        }
    }

    /// Whether a connection that holds so many bytes of reads may hold so many more: one alone does not take the share.
    pub(crate) fn one_takes(&self, reads: usize, bytes: usize) -> bool {
        reads == 0 || reads + bytes <= self.bytes_max / 2 / READERS_MIN
    }

    /// Whether the buffer of a large request may grow from `before` to `now` bytes.
    pub(crate) fn takes_upload(&self, before: usize, now: usize) -> bool {
        self.held.upload - before + now <= self.bytes_max / 4
            && self.held.all() - before + now <= self.bytes_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_share_takes_what_another_needs() {
        let mut budget = Budget::new(1000);
        let mut held = Held::default();
        let mut hold = |budget: &mut Budget, now: Held| budget.change(std::mem::replace(&mut held, now), now);
        assert!(
            budget.takes(Share::Reads, 5000) && budget.takes(Share::Others, 5000),
            "nothing else is in flight"
        );
        hold(&mut budget, Held { reads: 400, ..Held::default() });
        assert!(budget.takes(Share::Reads, 100) && !budget.takes(Share::Reads, 101));
        assert!(budget.takes_upload(0, 250) && !budget.takes_upload(0, 251));
        hold(&mut budget, Held { reads: 500, upload: 250, others: 0 });
        assert!(budget.takes(Share::Others, 250), "there is always room for what is small");
        hold(&mut budget, Held { reads: 500, upload: 250, others: 200 });
        assert!(budget.takes(Share::Others, 50) && !budget.takes(Share::Others, 51));
        assert!(budget.takes_upload(250, 250) && !budget.takes_upload(250, 251));
        hold(&mut budget, Held::default());
        assert_eq!(budget.bytes(), 0);
    }
}
