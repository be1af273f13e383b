//! How fast the simulated world is, and how large its buffers are.

/// Times and sizes of a world without faults. Ranges are drawn evenly.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// A read takes, in nanoseconds.
    pub read_ns: (u64, u64),
    /// A write into the device's cache takes.
    pub write_ns: (u64, u64),
    /// Making it durable takes.
    pub sync_ns: (u64, u64),
    /// Opening, creating, renaming, removing, listing take.
    pub name_ns: (u64, u64),
    /// A disk moves so many bytes in a microsecond.
    pub disk_bytes_per_us: u64,
    /// A piece of a stream takes from node to node; now and then, ten times that.
    pub network_ns: (u64, u64),
    /// A piece of a stream takes on its way to the node that it came from.
    pub loopback_ns: (u64, u64),
    /// A link moves so many bytes in a microsecond.
    pub network_bytes_per_us: u64,
    /// Bytes that one direction of a connection holds between two processes.
    pub window_bytes: usize,
    /// Connections that wait to be accepted.
    pub backlog: usize,
    /// An attempt to connect that nobody answers fails after.
    pub connect_timeout_ns: u64,
    /// What one poll costs its node: time moves on even for a node that only polls.
    pub poll_ns: (u64, u64),
    /// Operations in flight of one node: more is a bug of the node.
    pub in_flight_max: usize,
    /// Idle bytes that each size class of a node's buffer pool keeps.
    pub pool_idle_bytes: usize,
}

impl Default for WorldConfig {
    fn default() -> WorldConfig {
        WorldConfig {
            read_ns: (40_000, 120_000),
            write_ns: (15_000, 60_000),
            sync_ns: (100_000, 600_000),
            name_ns: (5_000, 40_000),
            disk_bytes_per_us: 1_500,
            network_ns: (50_000, 400_000),
            loopback_ns: (8_000, 40_000),
            network_bytes_per_us: 1_200,
            window_bytes: 256 << 10,
            backlog: 64,
            connect_timeout_ns: 1_000_000_000,
            poll_ns: (500, 4_000),
            in_flight_max: 16 << 10,
            pool_idle_bytes: 8 << 20,
        }
    }
}
