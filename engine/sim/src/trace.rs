//! The trace: every operation, completion, time, draw and payload checksum, rolled into one number.

use std::collections::VecDeque;

/// A rolling hash of a run, and the last lines of it in words if asked for.
#[derive(Debug)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    lines: VecDeque<String>,
    lines_max: usize,
}

fn mix(hash: u64, word: u64) -> u64 {
    let mut x = (hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Trace {
    pub(crate) const fn new(seed: u64) -> Trace {
        Trace { hash: seed, events: 0, lines: VecDeque::new(), lines_max: 0 }
    }

    /// Something happened at `now` on `node`.
    pub(crate) fn note(&mut self, now: u64, node: u64, what: &str, words: &[u64]) {
        self.events += 1;
        let mut hash = mix(mix(self.hash, now), node);
        hash = mix(hash, u64::from(crc32c::crc32c(what.as_bytes())));
        for word in words {
            hash = mix(hash, *word);
        }
        self.hash = hash;
        if self.lines_max > 0 {
            if self.lines.len() == self.lines_max {
                self.lines.pop_front();
            }
            self.lines.push_back(format!("{:>14.6} ms  node {node}  {what} {words:?}", now as f64 / 1e6));
        }
    }

    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }
    pub(crate) const fn events(&self) -> u64 {
        self.events
    }
    pub(crate) fn keep_lines(&mut self, lines_max: usize) {
        self.lines_max = lines_max;
        self.lines.truncate(lines_max);
    }
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}
