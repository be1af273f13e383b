//! Majorities: how many are enough, and what they agree on.
//!
//! Pure arithmetic over one value per voter. Values of voters that have said nothing are the type's smallest
//! one. It promises that two majorities of one voter set intersect, and that a joint configuration needs a
//! majority of both sets. It knows neither nodes nor logs.

use tidelog_types::limits::VOTERS_MAX;

/// The least number of `voters` such that any two groups of it have a voter in common.
pub const fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// Whether `granted` of `voters` are a majority.
pub const fn won(granted: usize, voters: usize) -> bool {
    voters > 0 && granted >= majority(voters)
}

/// Whether so many of `voters` have refused that no majority of them can be of another mind.
pub const fn blocked(refused: usize, voters: usize) -> bool {
    refused <= voters && !won(voters - refused, voters)
}

/// Whether a joint configuration has its majority in both halves: (granted, voters) of each.
pub const fn won_joint(old: (usize, usize), new: (usize, usize)) -> bool {
    won(old.0, old.1) && won(new.0, new.1)
}

/// The highest value that a majority of `values`, one a voter, is at or above; none without voters. Sorts them.
pub fn agreed<T: Ord + Copy>(values: &mut [T]) -> Option<T> {
    values.sort_unstable_by(|a, b| b.cmp(a));
    // Sorted downwards, the value at position `majority - 1` has exactly that many at or above it. The
    // middle element of an upward sort is one too high when the number of voters is even.
    values.get(majority(values.len()) - 1).copied()
}

/// The highest value that a majority of both halves is at or above.
pub fn agreed_joint<T: Ord + Copy>(old: &mut [T], new: &mut [T]) -> Option<T> {
    Some(agreed(old)?.min(agreed(new)?))
}

/// [`agreed`] over up to [`VOTERS_MAX`] values, without allocating.
///
/// # Panics
/// If there are none or more than that: configurations are checked when a replica is made.
pub(crate) fn agreed_of<T: Ord + Copy + Default>(values: impl Iterator<Item = T>) -> T {
    let mut held = [T::default(); VOTERS_MAX];
    let mut count = 0;
    for value in values {
        assert!(count < VOTERS_MAX, "more voters than a configuration may have");
        held[count] = value;
        count += 1;
    }
    agreed(&mut held[..count]).expect("a configuration has at least one voter")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every subset of `n` voters, as a mask.
    fn subsets(n: usize) -> impl Iterator<Item = u32> {
        0..1u32 << n
    }

    #[test]
    fn majorities_intersect_and_are_the_smallest_that_do() {
        for n in 1..=9 {
            let quorums: Vec<u32> = subsets(n).filter(|s| won(s.count_ones() as usize, n)).collect();
            for a in &quorums {
                for b in &quorums {
                    assert!(a & b != 0, "{a:b} and {b:b} of {n}");
                }
            }
            let fewer = majority(n) - 1;
            assert!(2 * fewer <= n, "two disjoint groups of {fewer} fit into {n}: one less is too few");
        }
        assert_eq!((1..=9).map(majority).collect::<Vec<_>>(), [1, 2, 2, 3, 3, 4, 4, 5, 5]);
        assert!(!won(0, 0) && agreed::<u64>(&mut []).is_none(), "nobody is no majority of nobody");
    }

    #[test]
    fn joint_majorities_meet_every_majority_of_either_half() {
        // Voters 0..n are old, k..k+m are new, for all overlaps.
        for (n, m, k) in [(1, 2, 0), (3, 3, 2), (3, 4, 1), (2, 4, 1), (4, 3, 4), (3, 3, 0)] {
            let (old, new) = ((1u32 << n) - 1, ((1u32 << m) - 1) << k);
            let all = subsets(n.max(m + k));
            let count = |s: u32, of: u32| (s & of).count_ones() as usize;
            for s in all.filter(|s| won_joint((count(*s, old), n), (count(*s, new), m))) {
                for (half, size) in [(old, n), (new, m)] {
                    for t in subsets(n.max(m + k)).filter(|t| won(count(*t, half), size)) {
                        assert!(s & t & half != 0);
                    }
                }
            }
        }
    }

    #[test]
    fn even_numbers_need_more_than_half() {
        assert_eq!(agreed(&mut [7, 7, 1, 1]), Some(1), "two of four are not a majority");
        assert_eq!(agreed(&mut [7, 7, 7, 1]), Some(7));
        assert_eq!(agreed(&mut [9, 4]), Some(4));
    }

    proptest! {
        #[test]
        fn agreed_is_the_highest_that_a_majority_reaches(values in proptest::collection::vec(0u64..20, 1..=9)) {
            let found = agreed(&mut values.clone()).unwrap();
            let at_or_above = |x: u64| values.iter().filter(|v| **v >= x).count();
            prop_assert!(won(at_or_above(found), values.len()));
            prop_assert!(!won(at_or_above(found + 1), values.len()));
            prop_assert_eq!(found, agreed_of(values.iter().copied()));
        }

        #[test]
        fn joint_agreement_needs_both(old in proptest::collection::vec(0u64..20, 1..=9), new in proptest::collection::vec(0u64..20, 1..=9)) {
            let found = agreed_joint(&mut old.clone(), &mut new.clone()).unwrap();
            let reaches = |x: u64| {
                let count = |of: &[u64]| (of.iter().filter(|v| **v >= x).count(), of.len());
                won_joint(count(&old), count(&new))
            };
            prop_assert!(reaches(found) && !reaches(found + 1));
        }
    }
}
