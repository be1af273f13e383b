//! Reproducible randomness for arrivals and payloads: SplitMix64 (Steele, Lea, Flood 2014).

/// A seeded stream of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

/// The finaliser of SplitMix64: a bijection that spreads every bit over all others.
pub(crate) const fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    pub(crate) const fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Uniform in (0, 1]: its logarithm is finite.
    pub(crate) fn unit(&mut self) -> f64 {
        (((self.next() >> 11) + 1) as f64) / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_sequence() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_unit_interval_is_open_at_zero() {
        let mut random = Random::new(7);
        assert!((0..10_000).map(|_| random.unit()).all(|u| u > 0.0 && u <= 1.0));
    }
}
