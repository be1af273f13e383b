//! Invariant 23: what the tools say about a directory agrees with what an opening does with it.

use std::collections::BTreeMap;
use tidelog::shard::Shard;
use tidelog::{Error, Options};
use tidelog_io::Io;
use tidelog_types::{PartitionId, ShardId};
use tidelog_wal::OpenError;
use tidelog_wal::inspect::{self, Eyes, PartitionEnd};

/// What the tools say of a node's log before it is opened.
pub(crate) enum Foretold {
    /// It is opened with these logs.
    Opens(BTreeMap<PartitionId, PartitionEnd>),
    /// It is refused, for this reason.
    Refused(String),
    /// There is none yet, or it could not be read.
    Nothing,
}

impl Foretold {
    pub(crate) fn of(io: &mut dyn Io, options: &Options) -> Foretold {
        let dir = tidelog::wal_dir(&options.data_dir, ShardId(0));
        let eyes = Eyes { single_voter: options.nodes.len() == 1, ..Eyes::default() };
        match inspect::verify(io, &dir, eyes) {
            Ok(report) => match report.stopped {
                None => Foretold::Opens(report.partitions),
                Some(why) => Foretold::Refused(why.to_string()),
            },
            Err(OpenError::Io(_)) => Foretold::Nothing,
            Err(why) => Foretold::Refused(why.to_string()),
        }
    }

    /// In which way the opening came to something else; none if it did not, or if it never came to the log.
    pub(crate) fn disagrees(&self, opened: &Result<Shard, Error>) -> Option<String> {
        match (self, opened) {
            (Foretold::Refused(why), Ok(shard)) if shard.wal().is_some() => {
                Some(format!("invariant 23: the log was opened, and the tools say: {why}"))
            }
            (Foretold::Opens(_), Err(Error::Recovery(why))) if !why.contains("snapshot") => {
                Some(format!("invariant 23: the tools find nothing, and the log was refused: {why}"))
            }
            (Foretold::Opens(ends), Ok(shard)) => {
                let wal = shard.wal()?;
                let differs = |(id, end): &(&PartitionId, &PartitionEnd)| wal.last(**id) != end.last;
                let (id, end) = ends.iter().find(differs)?;
                Some(format!(
                    "invariant 23: partition {id} ends at {:?}, and the tools say {:?}",
                    wal.last(*id),
                    end.last
                ))
            }
            _ => None,
        }
    }
}
