//! `tidelog read`: committed records.

use super::{ClusterArgs, RecordArgs};
use crate::failure::{Exit, Failure};
use crate::flag;
use crate::framing;
use crate::output::{Output, OutputArgs, Printer};
use base64::Engine as _;
use serde::Serialize;
use std::io::Write;
use std::time::Duration;
use tidelog::request::{Level as EngineLevel, Record, Reply, RequestError};
use tidelog_net::{Client, ClientError, ClientOptions, ClientRequest, Target};
use tidelog_types::{Index, NodeId, PartitionId};

pub(crate) const READ_EXAMPLES: &str = "Examples:
  tidelog read --cluster 127.0.0.1:7101 --partition 0 --from 1 --output json
  tidelog read --cluster 127.0.0.1:7101,127.0.0.1:7102 --node 2 --framing length > copy";

/// Most bytes asked for at a time.
const PIECE_BYTES: u32 = 2 << 20;

/// How fresh a read must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Level {
    /// Reflects everything that was acknowledged before it began
    Linearizable,
    /// What one node has, up to its own high-water mark
    Local,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) records: RecordArgs,
    /// First index; the first that is kept without it
    #[arg(long, value_name = "I", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) from: Option<u64>,
    /// Last index, inclusive; the high-water mark without it
    #[arg(long, value_name = "I", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) to: Option<u64>,
    /// How fresh; linearizable without it, or local with --node
    #[arg(long, value_enum)]
    pub(crate) level: Option<Level>,
    /// Read from this node
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: Option<u64>,
    /// How long one piece of the records, up to 2 MiB of them, may take, retries included
    #[arg(long, value_name = "D", default_value = "10s", value_parser = flag::duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Serialize)]
struct Line {
    index: u64,
    generation: u64,
    timestamp_ms: u64,
    payload: String,
}

#[derive(Serialize)]
struct End {
    event: &'static str,
    high_water: u64,
    /// Only a linearizable read can say.
    staleness_ms: Option<u64>,
}

/// What to read, and from whom.
pub(crate) struct Reading {
    pub(crate) partition: PartitionId,
    /// The first that is kept without it.
    pub(crate) from: Option<Index>,
    pub(crate) to: Option<Index>,
    pub(crate) level: EngineLevel,
    pub(crate) target: Target,
    /// Time for one piece, retries included.
    pub(crate) timeout: Duration,
}

/// Reads piece by piece up to `to`, or to the high-water mark of the first answer, and gives each data record to
/// `each`. Returns that mark.
pub(crate) fn read_all(
    client: &Client,
    reading: &Reading,
    mut each: impl FnMut(Record) -> Result<(), Failure>,
) -> Result<Index, Failure> {
    let mut from = reading.from.unwrap_or(Index(1));
    let mut mark = None;
    loop {
        let request = ClientRequest::new(tidelog::request::Request::Read {
            partition: reading.partition,
            from,
            to: reading.to.or(mark),
            bytes_max: PIECE_BYTES,
            level: reading.level,
        });
        let answer = client.request(request.at(reading.target).within(reading.timeout)).wait();
        let records = match answer {
            Ok(Reply::Records(records)) => records,
            Err(ClientError::Refused(RequestError::Truncated { first }))
                if reading.from.is_none() && mark.is_none() && first > from =>
            {
                from = first;
                continue;
            }
            Ok(_) => {
                return Err(Failure::failed(
                    "the node's answer is not that of a read: is it of this version?",
                ));
            }
            Err(e) => {
                return Err(Failure::failed(format!(
                    "partition {} from index {from}: {e}",
                    reading.partition
                )));
            }
        };
        let mark = *mark.get_or_insert(records.high_water);
        let last = reading.to.map_or(mark, |to| to.min(mark));
        let piece = tidelog::engine::decode(&records).map_err(Failure::failed)?;
        let stuck = piece.next <= from;
        from = piece.next;
        for record in piece {
            each(record)?;
        }
        if from > last {
            return Ok(mark);
        }
        if stuck {
            return Err(Failure::failed(format!(
                "the node gave no record from index {from} on, though its high-water mark is {mark}: read again, or from another node (--node)"
            )));
        }
    }
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let level = match (args.level, args.node) {
        (None, None) | (Some(Level::Linearizable), _) => EngineLevel::Linearizable,
        (None, Some(_)) | (Some(Level::Local), _) => EngineLevel::Local,
    };
    if let (Some(from), Some(to)) = (args.from, args.to)
        && from > to
    {
        return Err(Failure::usage(format!("--from {from} is behind --to {to}")));
    }
    let client =
        Client::connect(ClientOptions::new(args.cluster.cluster.clone())).map_err(Failure::failed)?;
    let reading = Reading {
        partition: PartitionId(args.records.partition),
        from: args.from.map(Index),
        to: args.to.map(Index),
        level,
        target: args.node.map_or(Target::Leader, |n| Target::Node(NodeId(n))),
        timeout: args.timeout,
    };
    let mut out = Printer::new();
    let json = args.output.output == Output::Json;
    let high_water = read_all(&client, &reading, |record| {
        if json {
            let payload = base64::engine::general_purpose::STANDARD.encode(&record.payload);
            out.object(&Line {
                index: record.index.get(),
                generation: record.generation.get(),
                timestamp_ms: record.timestamp.get(),
                payload,
            })?;
        } else {
            framing::write(out.writer(), args.records.framing, &record.payload)?;
        }
        Ok(())
    })?;
    if json {
        let staleness_ms = (level == EngineLevel::Linearizable).then_some(0);
        out.object(&End { event: "end", high_water: high_water.get(), staleness_ms })?;
    }
    out.flush()?;
    std::io::stdout().flush()?;
    Ok(Exit::Done)
}
