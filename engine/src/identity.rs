//! Who a data directory is, and the page that says so: `docs/formats/identity.md`.
//!
//! Any flipped bit of a page is noticed. That the file holds two of them is its own business ([`Found`]); what a page says is
//! never guessed.

mod file;

pub use file::{Copy, FileError, Flaw, Found, Loaded};

use crate::formation::{Formed, Member};
use tidelog_io::Place;
use tidelog_types::limits::{PAGE_BYTES, PAYLOAD_BYTES_MAX};
use tidelog_types::{ClusterId, Generation, Incarnation, Index, NodeId, PartitionId, Position};

const MAGIC: &[u8; 8] = b"TIDELOGI";
const VERSION: u32 = 2;
/// The version before: without a place, and nothing barred.
const VERSION_WITHOUT_PLACE: u32 = 1;
const MEMBERS_AT: usize = 512;
const MEMBER_BYTES: usize = 16;
const MEMBERS_MAX: usize = (PAGE_BYTES - MEMBERS_AT) / MEMBER_BYTES;
const NAME_AT: usize = 128;
const PLACE_WITH_BIRTH: u32 = 1;
const PLACE_BY_INODE: u32 = 2;
/// Longest cluster name in bytes.
pub const NAME_BYTES_MAX: usize = MEMBERS_AT - NAME_AT;

/// What a data directory is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster_name: String,
    /// The node that it belongs to.
    pub node: NodeId,
    /// Its random name, minted when it was created.
    pub incarnation: Incarnation,
    /// Number of WALs in it: fixed at creation.
    pub shard_count: u32,
    /// Partitions of the cluster: fixed at creation.
    pub partitions: u64,
    /// Replicas of each partition.
    pub replication: u32,
    /// Version of key hash and placement ([`crate::MAP_VERSION`]).
    pub key_hash: u32,
    /// Set once the cluster is formed.
    pub formed: Option<Formed>,
    /// Set once the log has been opened: from then on a directory without one has lost it.
    pub has_log: bool,
    /// Where the file was written: a copy of it lies elsewhere. None in files of the version before.
    pub place: Option<Place>,
    /// Set when this directory turned out to lack what it once confirmed: it takes no part any more.
    pub barred: Option<Barred>,
}

/// What a directory confirmed once and lacks now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Barred {
    /// The partition.
    pub partition: PartitionId,
    /// An entry that it had confirmed.
    pub confirmed: Position,
}

impl std::fmt::Display for Barred {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Barred { partition, confirmed: Position { index, generation } } = self;
        write!(
            f,
            "this data directory lacks entry {index} of generation {generation} of partition {partition}, which it had confirmed: it is an older state of itself, or its disk lost writes that it had called durable"
        )
    }
}

/// Why a page is not an identity.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IdentityError {
    /// Not a page.
    #[error("it has {0} bytes instead of {PAGE_BYTES}")]
    Size(usize),
    /// Something else.
    #[error("it does not begin with the identity file's magic")]
    Magic,
    /// Damaged.
    #[error("its checksum is {found:#010x}, computed {computed:#010x}: the file is damaged")]
    Checksum {
        /// As stored.
        found: u32,
        /// Over the bytes.
        computed: u32,
    },
    /// The disk did not give it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// From another version.
    #[error("it has version {0}, which this program does not know")]
    Version(u32),
    /// A field out of its bounds.
    #[error("its {0} is out of bounds")]
    Field(&'static str),
}

impl IdentityError {
    /// Whether the page is not what was written. Any other is whole, and this program does not know what it says.
    fn is_damage(&self) -> bool {
        match self {
            IdentityError::Size(_)
            | IdentityError::Magic
            | IdentityError::Checksum { .. }
            | IdentityError::Unreadable(_) => true,
            IdentityError::Version(_) | IdentityError::Field(_) => false,
        }
    }
}

fn u32_at(page: &[u8; PAGE_BYTES], at: usize) -> u32 {
    page.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(page: &[u8; PAGE_BYTES], at: usize) -> u64 {
    page.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u64::from_le_bytes(*b))
}

impl Identity {
    /// The page to write.
    ///
    /// # Panics
    /// If the name or the member list is over its limit: the configuration's check comes first.
    pub fn encode(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0u8; PAGE_BYTES];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        let members = self.formed.as_ref().map_or(&[][..], |f| &f.members);
        assert!(self.cluster_name.len() <= NAME_BYTES_MAX, "the configuration bounds the cluster's name");
        assert!(members.len() <= MEMBERS_MAX, "the configuration bounds the number of nodes");
        put(0, MAGIC);
        put(12, &VERSION.to_le_bytes());
        put(16, &self.node.get().to_le_bytes());
        put(24, &self.incarnation.get().to_le_bytes());
        put(32, &self.formed.as_ref().map_or(0, |f| f.cluster.get()).to_le_bytes());
        put(40, &self.partitions.to_le_bytes());
        put(48, &self.replication.to_le_bytes());
        put(52, &self.shard_count.to_le_bytes());
        put(56, &self.key_hash.to_le_bytes());
        put(60, &(PAYLOAD_BYTES_MAX as u32).to_le_bytes());
        put(64, &(self.cluster_name.len() as u32).to_le_bytes());
        put(68, &(members.len() as u32).to_le_bytes());
        put(72, &u32::from(self.has_log).to_le_bytes());
        if let Some(Place { inode, born_ns }) = self.place {
            put(76, &(if born_ns.is_some() { PLACE_WITH_BIRTH } else { PLACE_BY_INODE }).to_le_bytes());
            put(80, &inode.to_le_bytes());
            put(88, &born_ns.unwrap_or(0).to_le_bytes());
        }
        if let Some(Barred { partition, confirmed }) = self.barred {
            put(96, &1u32.to_le_bytes());
            put(104, &partition.get().to_le_bytes());
            put(112, &confirmed.index.get().to_le_bytes());
            put(120, &confirmed.generation.get().to_le_bytes());
        }
        put(NAME_AT, self.cluster_name.as_bytes());
        for (i, m) in members.iter().enumerate() {
            put(MEMBERS_AT + i * MEMBER_BYTES, &m.node.get().to_le_bytes());
            put(MEMBERS_AT + i * MEMBER_BYTES + 8, &m.incarnation.get().to_le_bytes());
        }
        let crc = crc32c::crc32c(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads a page, whatever is in it.
    ///
    /// # Errors
    /// Says in which way it is not an identity.
    pub fn decode(bytes: &[u8]) -> Result<Identity, IdentityError> {
        let page: &[u8; PAGE_BYTES] = bytes.try_into().map_err(|_| IdentityError::Size(bytes.len()))?;
        if !page.starts_with(MAGIC) {
            return Err(IdentityError::Magic);
        }
        let (found, computed) = (u32_at(page, 8), crc32c::crc32c(&page[12..]));
        if found != computed {
            return Err(IdentityError::Checksum { found, computed });
        }
        let version = u32_at(page, 12);
        if ![VERSION, VERSION_WITHOUT_PLACE].contains(&version) {
            return Err(IdentityError::Version(version));
        }
        if u32_at(page, 60) as usize != PAYLOAD_BYTES_MAX {
            return Err(IdentityError::Field("payload limit"));
        }
        let name_len = u32_at(page, 64) as usize;
        let name = page
            .get(NAME_AT..MEMBERS_AT)
            .and_then(|area| area.get(..name_len))
            .and_then(|name| core::str::from_utf8(name).ok())
            .ok_or(IdentityError::Field("cluster name"))?;
        let member_count = u32_at(page, 68) as usize;
        if member_count > MEMBERS_MAX {
            return Err(IdentityError::Field("member count"));
        }
        let members: Vec<Member> = (0..member_count)
            .map(|i| MEMBERS_AT + i * MEMBER_BYTES)
            .map(|at| Member {
                node: NodeId(u64_at(page, at)),
                incarnation: Incarnation(u64_at(page, at + 8)),
            })
            .collect();
        let cluster = ClusterId(u64_at(page, 32));
        let formed = match (cluster.get(), members.is_empty()) {
            (0, true) => None,
            (1.., false) => Some(Formed { cluster, members }),
            _ => return Err(IdentityError::Field("cluster id")),
        };
        let has_log = match (u32_at(page, 72), formed.is_some()) {
            (0, _) => false,
            (1, true) => true,
            _ => return Err(IdentityError::Field("log flag")),
        };
        let (place, barred) = if version == VERSION { (place(page)?, barred(page)?) } else { (None, None) };
        let identity = Identity {
            cluster_name: name.to_owned(),
            node: NodeId(u64_at(page, 16)),
            incarnation: Incarnation(u64_at(page, 24)),
            shard_count: u32_at(page, 52),
            partitions: u64_at(page, 40),
            replication: u32_at(page, 48),
            key_hash: u32_at(page, 56),
            formed,
            has_log,
            place,
            barred,
        };
        if identity.node.get() == 0 || identity.incarnation.get() == 0 {
            return Err(IdentityError::Field("node id or incarnation"));
        }
        Ok(identity)
    }
}

fn place(page: &[u8; PAGE_BYTES]) -> Result<Option<Place>, IdentityError> {
    let (inode, born) = (u64_at(page, 80), u64_at(page, 88));
    match u32_at(page, 76) {
        0 => Ok(None),
        PLACE_WITH_BIRTH => Ok(Some(Place { inode, born_ns: Some(born) })),
        PLACE_BY_INODE => Ok(Some(Place { inode, born_ns: None })),
        _ => Err(IdentityError::Field("kind of place")),
    }
}

fn barred(page: &[u8; PAGE_BYTES]) -> Result<Option<Barred>, IdentityError> {
    match u32_at(page, 96) {
        0 => Ok(None),
        1 => Ok(Some(Barred {
            partition: PartitionId(u64_at(page, 104)),
            confirmed: Position::new(Index(u64_at(page, 112)), Generation(u64_at(page, 120))),
        })),
        _ => Err(IdentityError::Field("bar")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) fn sample() -> Identity {
        Identity {
            cluster_name: "demo".into(),
            node: NodeId(2),
            incarnation: Incarnation(77),
            shard_count: 1,
            partitions: 8,
            replication: 3,
            key_hash: 1,
            formed: Some(Formed {
                cluster: ClusterId(5),
                members: (1..=3)
                    .map(|n| Member { node: NodeId(n), incarnation: Incarnation(n + 75) })
                    .collect(),
            }),
            has_log: true,
            place: Some(Place { inode: 9, born_ns: Some(10) }),
            barred: None,
        }
    }

    #[test]
    fn round_trip() {
        let unformed = Identity { formed: None, has_log: false, ..sample() };
        assert_eq!(Identity::decode(&sample().encode()), Ok(sample()));
        assert_eq!(Identity::decode(&unformed.encode()), Ok(unformed));
        let by_inode = Identity { place: Some(Place { inode: 9, born_ns: None }), ..sample() };
        assert_eq!(Identity::decode(&by_inode.encode()), Ok(by_inode));
        let confirmed = Position::new(Index(7), Generation(3));
        let barred = Identity { barred: Some(Barred { partition: PartitionId(4), confirmed }), ..sample() };
        assert_eq!(Identity::decode(&barred.encode()), Ok(barred));
    }

    #[test]
    fn a_page_of_the_version_before_has_no_place() {
        let mut page = Identity { place: None, ..sample() }.encode();
        page[12] = 1;
        let crc = crc32c::crc32c(&page[12..]);
        page[8..12].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Identity::decode(&page), Ok(Identity { place: None, ..sample() }));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Identity::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn sizes_other_than_a_page_are_refused() {
        assert_eq!(Identity::decode(&[]), Err(IdentityError::Size(0)));
        assert_eq!(Identity::decode(&[0; 4095]), Err(IdentityError::Size(4095)));
        assert_eq!(Identity::decode(&[0; PAGE_BYTES]), Err(IdentityError::Magic));
    }
}
