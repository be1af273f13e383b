//! Identities. All are plain numbers with a type of their own.

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($raw:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $raw);
        impl $name {
            /// The bare number, for encoding and for people.
            pub const fn get(self) -> $raw {
                self.0
            }
        }
        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}
pub(crate) use id;

id!(
    /// A process of the cluster. Given by configuration, never 0.
    NodeId(u64)
);
id!(
    /// One core of a node: a thread, a ring, a WAL. Dense from 0.
    ShardId(u32)
);
id!(
    /// The unit of placement and replication. Dense from 0; the count is fixed when a cluster is created.
    PartitionId(u64)
);
id!(
    /// Random name of a data directory's life on a disk, minted when the directory is created. A wiped
    /// directory gets another one, which is how a wiped node is told from the node it was.
    Incarnation(u64)
);
id!(
    /// Random name of a cluster, drawn once at its formation.
    ClusterId(u64)
);
id!(
    /// A client's identity in one partition for exactly-once appends: the index of the committed entry that
    /// opened it, hence unique and a function of the log.
    SessionId(u64)
);
id!(
    /// Position of a request within its session: dense, from 1.
    Sequence(u64)
);
id!(
    /// What a client calls its session before it has an id: 128 bits, random or a hash of a name. Opening a
    /// session again under the same key returns the session that the first opening made.
    SessionKey(u128)
);
id!(
    /// One durable step of one replica (an append, a cut, a promise), strictly increasing within a process
    /// life. Durability is told by tickets because an index can be cut and used again while its first write
    /// is still in flight.
    Ticket(u64)
);

impl ClusterId {
    /// The 32 bits of the cluster's id that every record carries.
    pub const fn tag(self) -> u32 {
        (self.0 ^ (self.0 >> 32)) as u32
    }
}
