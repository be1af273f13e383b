//! How much disk space a configuration needs, and how it stands beside what there is.
//!
//! Arithmetic over settings: it looks at no disk.

use crate::config::unit::size_text;
use crate::options::Options;
use tidelog_cluster::{Placement, Ring};
use tidelog_io::Space;
use tidelog_types::NodeId;

/// What a node needs of its data directory's file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Need {
    /// Without so much it takes records for its first segment at most: the one that is written, the next, and those that are kept for votes
    /// on a full disk.
    pub least_bytes: u64,
    /// Bytes that `retention.bytes` keeps of its partitions; none: nothing is let go for its size, and the logs grow until something
    /// else lets go of them.
    pub kept_bytes: Option<u64>,
}

impl Need {
    /// What a node of these settings needs.
    pub fn of(options: &Options) -> Need {
        let least_bytes = tidelog_wal::Options::least_bytes(options.segment_bytes);
        let kept_bytes = options.keep.retention.bytes.map(|bytes| bytes.saturating_mul(held(options)));
        Need { least_bytes, kept_bytes }
    }

    /// Bytes with which it works: what is kept and a quarter more, and the prepared segments.
    pub fn bytes(&self) -> u64 {
        let kept = self.kept_bytes.unwrap_or(0);
        self.least_bytes.saturating_add(kept).saturating_add(kept / 4)
    }

    /// What is wrong with a file system that has so much free space beside what the log has taken already; none: nothing.
    pub fn lacks(&self, space: Space, taken_bytes: u64) -> Option<String> {
        let there = space.free_bytes.saturating_add(taken_bytes);
        if there < self.least_bytes {
            return Some(format!(
                "too small: a log needs {} to go on from one segment to the next, and there are {}. Use a larger disk, or a smaller wal.segment_size",
                size_text(self.least_bytes),
                about(there)
            ));
        }
        (there < self.bytes()).then(|| {
            format!(
                "too small for what is to be kept: that takes {}, and there are {}. Use a larger disk, or less retention.bytes",
                about(self.bytes()),
                about(there)
            )
        })
    }

    /// Need and space, in one line.
    pub fn beside(&self, space: Space) -> String {
        let kept = match self.kept_bytes {
            Some(kept) => {
                format!("{} with what retention.bytes keeps ({})", about(self.bytes()), about(kept))
            }
            None => format!("{} and what is kept", size_text(self.least_bytes)),
        };
        format!("{} of {} free, needed: {kept}", about(space.free_bytes), about(space.total_bytes))
    }
}

/// Replicas on this node.
fn held(options: &Options) -> u64 {
    let ring = Ring::new(options.nodes.iter().map(|(node, _)| *node));
    let on = |placement: Placement, node: NodeId| placement.held_by(node).count() as u64;
    Placement::initial(&ring, options.partitions, options.replication)
        .map_or(options.partitions, |placement| on(placement, options.node))
}

/// A number of bytes for people, in whole MiB where there are some.
pub fn about(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        0..MIB => size_text(bytes / 1024 * 1024),
        _ if bytes < 10_240 * MIB => format!("{} MiB", bytes / MIB),
        _ => format!("{} GiB", bytes / (1024 * MIB)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn need(retention: u64) -> Need {
        let mut config = Config::single("/nowhere");
        config.wal.segment_size = 16 << 20;
        config.retention.bytes = retention;
        config.cluster.partitions = 4;
        Need::of(&Options::from(&config))
    }

    #[test]
    fn a_disk_is_too_small_for_segments_or_for_what_is_kept() {
        let free = |mib: u64| Space { free_bytes: mib << 20, total_bytes: 4 << 30 };
        let unbounded = need(0);
        assert_eq!((unbounded.least_bytes, unbounded.kept_bytes), (64 << 20, None));
        let text = unbounded.lacks(free(58), 0).expect("four segments do not fit");
        assert!(
            text.contains("64MiB") && text.contains("58 MiB") && text.contains("wal.segment_size"),
            "{text}"
        );
        assert_eq!(unbounded.lacks(free(20), 48 << 20), None, "what the log has taken counts");
        let bounded = need(100 << 20);
        assert_eq!(bounded.kept_bytes, Some(400 << 20), "four partitions");
        assert_eq!(bounded.bytes(), (64 + 500) << 20);
        assert!(bounded.lacks(free(563), 0).is_some_and(|text| text.contains("retention.bytes")));
        assert_eq!(bounded.lacks(free(564), 0), None);
        assert_eq!(
            bounded.beside(free(600)),
            "600 MiB of 4096 MiB free, needed: 564 MiB with what retention.bytes keeps (400 MiB)"
        );
    }
}
