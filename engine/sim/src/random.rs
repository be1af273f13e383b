//! The world's random numbers: xoshiro256++, seeded by SplitMix64. Every draw of a run comes from here, in
//! one order, so a seed is a run.

use crate::fault::Rate;

/// A seeded stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u64; 4],
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Random {
        let mut x = seed;
        let mut next = || {
            x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = x;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^ (z >> 31)
        };
        Random { state: [next(), next(), next(), next()] }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias of a 64-bit multiply is far below what a simulation could notice.
        ((u128::from(self.bits()) * u128::from(bound)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// Heads or tails.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }

    /// True at `rate`. Draws nothing if the rate is zero, so a fault that is off leaves the run as it is.
    pub fn chance(&mut self, rate: Rate) -> bool {
        rate != Rate::NEVER && self.below(1_000_000) < u64::from(rate.0)
    }

    /// One of `items`.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(usize::try_from(self.below(items.len() as u64)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_stream() {
        let draw = |seed| {
            let mut r = Random::new(seed);
            (0..10).map(|_| r.bits()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn draws_stay_within_their_bounds_and_reach_them() {
        let mut r = Random::new(1);
        let mut seen = [false; 4];
        for _ in 0..200 {
            seen[usize::try_from(r.between((3, 6)) - 3).unwrap()] = true;
        }
        assert_eq!(seen, [true; 4]);
        assert_eq!(r.below(0), 0);
        assert_eq!(r.between((5, 5)), 5);
        assert_eq!(r.pick::<u8>(&[]), None);
    }

    #[test]
    fn a_rate_is_about_met() {
        let mut r = Random::new(2);
        let hits = (0..100_000).filter(|_| r.chance(Rate::percent(10))).count();
        assert!((9_000..11_000).contains(&hits), "{hits}");
        assert!(!(0..1000).any(|_| r.chance(Rate::NEVER)));
        assert!((0..1000).all(|_| r.chance(Rate::ALWAYS)));
    }
}
