//! What several tests have a log go through.

use super::Rig;
use std::time::Duration;
use tidelog_wal::Options;

/// Writes `count` entries to each of `partitions`, and lets go of all but the last `keep`.
pub fn stream(rig: &mut Rig, partitions: u64, count: u64, keep: u64) {
    for i in 0..count {
        for partition in 0..partitions {
            if !rig.alive() || rig.fenced.is_some() {
                return;
            }
            if rig.entry(partition, &vec![i as u8; 3000]).is_err() {
                rig.drain();
                rig.rest(Duration::from_millis(5));
                continue;
            }
            let last = rig.part(partition).entries.len() as u64;
            rig.drain();
            if i % 4 == 3 && last > keep && rig.alive() && rig.fenced.is_none() {
                rig.mark(partition, last);
                let first = (last - keep).max(rig.part(partition).low);
                let _ = rig.low_water(partition, first);
            }
        }
    }
    rig.drain();
}

/// Enough for a summary, checkpoints, moves, and segments that are used again; without what the random lives draw.
pub fn busy(rig: &mut Rig) {
    for partition in 10..14 {
        let _ = rig.entry(partition, &[7; 300]);
    }
    rig.drain();
    stream(rig, 1, 330, 2);
    if rig.alive() && rig.fenced.is_none() {
        rig.rest(Duration::from_millis(20));
    }
}

/// A log in which all of it happens to [`busy`].
pub fn busy_options() -> Options {
    Options { log_bytes_target: 600 << 10, checkpoint_every: 150 << 10, ..super::tiny() }
}
