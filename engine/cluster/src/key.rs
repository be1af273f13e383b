//! Key to partition.
//!
//! The hash is XXH64 with seed 0, written out here so that no dependency's change of mind can move a key: a client, a node
//! and a tool of any version must agree. Its output is pinned by the algorithm's published vectors. It does not defend against
//! keys chosen to collide: partitions are a unit of placement, not of isolation.

use tidelog_types::PartitionId;

/// Version of the map from keys to partitions. Nodes with another version refuse each other.
pub const KEY_HASH_VERSION: u32 = 1;

const PRIME_1: u64 = 0x9E37_79B1_85EB_CA87;
const PRIME_2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const PRIME_3: u64 = 0x1656_67B1_9E37_79F9;
const PRIME_4: u64 = 0x85EB_CA77_C2B2_AE63;
const PRIME_5: u64 = 0x27D4_EB2F_1656_67C5;

/// The pinned hash of a key: XXH64, seed 0.
///
/// ```
/// assert_eq!(tidelog_cluster::key_hash(b""), 0xEF46_DB37_51D8_E999);
/// ```
pub fn key_hash(key: &[u8]) -> u64 {
    let (stripes, tail) = key.as_chunks::<32>();
    let mut hash = if stripes.is_empty() {
        PRIME_5
    } else {
        let mut lanes = [PRIME_1.wrapping_add(PRIME_2), PRIME_2, 0, 0u64.wrapping_sub(PRIME_1)];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<8>().0) {
                *lane = round(*lane, u64::from_le_bytes(*word));
            }
        }
        let [a, b, c, d] = lanes;
        let sum = a
            .rotate_left(1)
            .wrapping_add(b.rotate_left(7))
            .wrapping_add(c.rotate_left(12))
            .wrapping_add(d.rotate_left(18));
        lanes
            .iter()
            .fold(sum, |hash, lane| (hash ^ round(0, *lane)).wrapping_mul(PRIME_1).wrapping_add(PRIME_4))
    };
    hash = hash.wrapping_add(key.len() as u64);

    let (words, tail) = tail.as_chunks::<8>();
    for word in words {
        hash ^= round(0, u64::from_le_bytes(*word));
        hash = hash.rotate_left(27).wrapping_mul(PRIME_1).wrapping_add(PRIME_4);
    }
    let (halves, tail) = tail.as_chunks::<4>();
    for half in halves {
        hash ^= u64::from(u32::from_le_bytes(*half)).wrapping_mul(PRIME_1);
        hash = hash.rotate_left(23).wrapping_mul(PRIME_2).wrapping_add(PRIME_3);
    }
    for byte in tail {
        hash ^= u64::from(*byte).wrapping_mul(PRIME_5);
        hash = hash.rotate_left(11).wrapping_mul(PRIME_1);
    }

    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME_2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME_3);
    hash ^ (hash >> 32)
}

fn round(lane: u64, word: u64) -> u64 {
    lane.wrapping_add(word.wrapping_mul(PRIME_2)).rotate_left(31).wrapping_mul(PRIME_1)
}

/// The partition that a key belongs to: the hash's share of the whole range, `floor(hash × partitions / 2^64)`.
///
/// ```
/// let orders = tidelog_cluster::partition_of(b"orders", 8);
/// assert!(orders.get() < 8);
/// ```
///
/// # Panics
/// If `partitions` is 0: a cluster has at least one.
pub fn partition_of(key: &[u8], partitions: u64) -> PartitionId {
    assert!(partitions > 0, "a cluster has at least one partition");
    let share = (u128::from(key_hash(key)) * u128::from(partitions)) >> 64;
    PartitionId(u64::try_from(share).expect("a share of the partitions is below their count"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published vectors of XXH64 with seed 0; lengths below, at and above each of its steps.
    #[test]
    fn published_vectors() {
        for (key, hash) in [
            ("", 0xEF46_DB37_51D8_E999),
            ("a", 0xD24E_C4F1_A98C_6E5B),
            ("as", 0x1C33_0FB2_D66B_E179),
            ("asd", 0x631C_37CE_72A9_7393),
            ("asdf", 0x4158_72F5_99CE_A71E),
            ("abc", 0x44BC_2CF5_AD77_0999),
            ("Nobody inspects the spammish repetition", 0xFBCE_A83C_8A37_8BF1),
            ("Call me Ishmael. Some years ago--never mind how long precisely-", 0x02A2_E854_70D6_FD96),
        ] {
            assert_eq!(key_hash(key.as_bytes()), hash, "{key:?}");
        }
    }

    /// Keys never change their partition: these were written down when version 1 was made.
    #[test]
    fn pinned_partitions() {
        for (key, partitions, partition) in [
            ("orders", 1, 0),
            ("", 8, 7),
            ("a", 8, 6),
            ("asdf", 8, 2),
            ("abc", 1 << 16, 0x44BC),
            ("asd", 3, 1),
        ] {
            assert_eq!(partition_of(key.as_bytes(), partitions), PartitionId(partition), "{key:?}");
        }
    }

    /// 100,000 keys over 64 partitions: each gets its share within five standard deviations.
    #[test]
    fn keys_spread_evenly() {
        let mut loads = [0u32; 64];
        for key in 0..100_000u32 {
            let partition = partition_of(format!("customer/{key}").as_bytes(), 64);
            loads[usize::try_from(partition.get()).unwrap()] += 1;
        }
        let (mean, deviation) = (100_000.0 / 64.0, (100_000.0f64 / 64.0).sqrt());
        for load in loads {
            assert!((f64::from(load) - mean).abs() < 5.0 * deviation, "{loads:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn always_within_range(key: Vec<u8>, partitions in 1u64..) {
            proptest::prop_assert!(partition_of(&key, partitions).get() < partitions);
        }
    }
}
