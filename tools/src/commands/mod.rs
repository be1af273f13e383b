//! The commands, one file each: its flags, and what it does.

pub(crate) mod append;
pub(crate) mod bench;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod node;
pub(crate) mod read;
pub(crate) mod serve;
pub(crate) mod sim;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod wal;

use crate::flag;
use std::net::SocketAddr;

/// The cluster that a client command talks to.
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    /// Addresses of nodes, with commas between; one that answers is enough
    #[arg(long, value_name = "A,B,C", value_delimiter = ',', required = true, value_parser = flag::address)]
    pub(crate) cluster: Vec<SocketAddr>,
}

/// The log that records go to or come from, and how they lie in a stream of bytes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct RecordArgs {
    /// The partition
    #[arg(long, value_name = "P", default_value_t = 0)]
    pub(crate) partition: u64,
    /// How records lie in the input, or on stdout without --output json
    #[arg(long, value_enum, default_value_t = Framing::Lines)]
    pub(crate) framing: Framing,
}

/// How records lie in a stream of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Framing {
    /// A record a line, without its line end
    #[default]
    Lines,
    /// A length as 32 bits, little-endian, then as many bytes
    Length,
}
