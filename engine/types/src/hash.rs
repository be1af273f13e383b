//! Hash maps whose order does not depend on the process: the default hasher's random keys would make a
//! simulated run unrepeatable.

use core::hash::{BuildHasher, Hasher};

/// A hash map with a fixed hasher. Keys from outside the process go into a `BTreeMap` instead: this hasher
/// does not defend against chosen keys.
#[allow(clippy::disallowed_types)]
pub type FixedMap<K, V> = std::collections::HashMap<K, V, FixedState>;
/// The set of the same kind.
#[allow(clippy::disallowed_types)]
pub type FixedSet<K> = std::collections::HashSet<K, FixedState>;

/// Builds [`FixedHasher`]s, all with the same start.
#[derive(Clone, Copy, Default, Debug)]
pub struct FixedState;

/// A multiplicative mixer (the finaliser of SplitMix64) over words.
#[derive(Clone, Copy, Default, Debug)]
pub struct FixedHasher(u64);

impl BuildHasher for FixedState {
    type Hasher = FixedHasher;
    fn build_hasher(&self) -> FixedHasher {
        FixedHasher(0x9E37_79B9_7F4A_7C15)
    }
}

impl Hasher for FixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0u8; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u64(&mut self, word: u64) {
        let mut x = (self.0 ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        self.0 = x ^ (x >> 31);
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}
