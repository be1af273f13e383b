//! `tidelog append`: records in, one outcome a record out.

use super::{ClusterArgs, Framing, RecordArgs};
use crate::failure::{Exit, Failure};
use crate::flag;
use crate::framing::{InputError, Records};
use crate::output::{Output, OutputArgs, Printer};
use crossbeam_channel::{Receiver, bounded};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::{BufReader, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;
use tidelog::request::Reply;
use tidelog_bench::clock;
use tidelog_net::{Client, ClientError, ClientOptions, ClientRequest, Either};
use tidelog_types::{PartitionId, Sequence, SessionId, SessionKey, SessionRef};

pub(crate) const EXAMPLES: &str = "Examples:
  tidelog append --cluster 127.0.0.1:7101,127.0.0.1:7102 --input events.log --output json
  echo hello | tidelog append --cluster 127.0.0.1:7101
  tidelog append --cluster 127.0.0.1:7101 --input events.log --session import-7 --first-sequence 1

Exit code 0 if every record was acknowledged. An outcome can be unknown: with a session, the same sequence can be
sent again and is in the log once.";

/// Largest sequence that records may begin with: no input is so long that those behind it reach the end.
const SEQUENCE_MAX: u64 = 1 << 63;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    #[command(flatten)]
    pub(crate) records: RecordArgs,
    /// Where records come from; stdin without it
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Records on their way at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(crate) in_flight: u32,
    /// Append within this session: each sequence is in the log at most once, as long as the session is not unused for
    /// limits.session_expiry. Then the name stands for another session, whose sequences begin at 1
    #[arg(long, value_name = "NAME", requires = "first_sequence")]
    pub(crate) session: Option<String>,
    /// The first record's sequence in the session
    #[arg(long, value_name = "N", requires = "session", value_parser = clap::value_parser!(u64).range(1..=SEQUENCE_MAX))]
    pub(crate) first_sequence: Option<u64>,
    /// How long one record may take before its outcome is unknown
    #[arg(long, value_name = "D", default_value = "5s", value_parser = flag::duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Most records read ahead of those on their way.
const AHEAD: usize = 16;

/// The line of one record.
#[derive(Serialize)]
struct Line {
    sequence: u64,
    outcome: &'static str,
    partition: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Line {
    fn refused(sequence: u64, partition: u64, error: String) -> Line {
        let error = Some(error);
        Line { sequence, outcome: "refused", partition, generation: None, index: None, error }
    }

    fn new(sequence: u64, partition: u64, result: &Result<Reply, ClientError>) -> Line {
        let line =
            Line { sequence, outcome: "refused", partition, generation: None, index: None, error: None };
        match result {
            Ok(Reply::Appended { position }) => Line {
                outcome: "acked",
                generation: Some(position.generation.get()),
                index: Some(position.index.get()),
                ..line
            },
            Ok(_) => {
                Line { outcome: "unknown", error: Some("the node's answer is not that of an append: is it of this version? The record may or may not be in the log".into()), ..line }
            }
            Err(e @ ClientError::Unknown { .. }) => {
                Line { outcome: "unknown", error: Some(e.to_string()), ..line }
            }
            Err(e) => Line { error: Some(e.to_string()), ..line },
        }
    }
}

/// A session's key from its name: 128 bits, so that two names do not meet.
pub(crate) fn session_key(name: &str) -> SessionKey {
    let half = |tag: u8| u128::from(tidelog_cluster::key_hash(&[&[tag], name.as_bytes()].concat()));
    SessionKey(half(1) << 64 | half(2))
}

/// Opens the session named `name`; a cluster that has just started may need a moment to elect.
pub(crate) fn open_session(
    client: &Client,
    partition: PartitionId,
    name: &str,
) -> Result<SessionId, Failure> {
    let request = ClientRequest::open_session(partition, session_key(name)).within(Duration::from_secs(30));
    match client.request(request).wait() {
        Ok(Reply::SessionOpened { session, .. }) => Ok(session),
        Ok(_) => {
            Err(Failure::failed("the node's answer is not that of an opened session: is it of this version?"))
        }
        Err(e) => Err(Failure::failed(format!("cannot open the session {name:?}: {e}"))),
    }
}

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    let input: Box<dyn Read + Send> = match &args.input {
        Some(path) => Box::new(
            std::fs::File::open(path)
                .map_err(|e| Failure::usage(format!("cannot open {}: {e}", path.display())))?,
        ),
        None => Box::new(std::io::stdin()),
    };
    let partition = PartitionId(args.records.partition);
    let options = ClientOptions {
        timeout: args.timeout,
        in_flight_max: args.in_flight as usize,
        ..ClientOptions::new(args.cluster.cluster.clone())
    };
    let client = Client::connect(options).map_err(Failure::failed)?;
    let session = match &args.session {
        Some(name) => Some(open_session(&client, partition, name)?),
        None => None,
    };
    let first = args.first_sequence.unwrap_or(1);
    let mut report = Report::new(args.output.output, args.records.partition, first);
    let mut bulk = client.bulk();
    let mut next = first;
    let mut failure = None;
    // Read on a thread of its own: an input that comes slowly holds up neither what was read before nor its outcomes.
    let mut records = Some(read_ahead(input, args.records.framing));
    while records.is_some() || bulk.in_flight() > 0 {
        let found = match &records {
            Some(records) if bulk.in_flight() < args.in_flight as usize => match records.try_recv() {
                Ok(record) => Either::Other(record),
                Err(_) => bulk.results_or(records),
            },
            _ => Either::Results(bulk.results(true)),
        };
        match found {
            Either::Other(Ok(record)) => {
                let request = match session {
                    Some(session) => {
                        let at = SessionRef { session, sequence: Sequence(next) };
                        ClientRequest::append_once(partition, at, record.into())
                    }
                    None => ClientRequest::append(partition, record.into()),
                };
                if bulk.submit(next, request).is_err() {
                    return Err(Failure::failed(
                        "the client turned a request away below its own --in-flight: an error in this program",
                    ));
                }
                next += 1;
            }
            // It is refused by itself: those behind it go on.
            Either::Other(Err(error @ InputError::TooLarge { .. })) => {
                report.done(next, Line::refused(next, args.records.partition, error.to_string()))?;
                next += 1;
            }
            Either::Other(Err(error)) => failure = Some(Failure::failed(error)),
            Either::Ended => records = None,
            Either::Results(results) => {
                for done in results {
                    report.done(done.tag, Line::new(done.tag, args.records.partition, &done.result))?;
                }
            }
        }
        report.progress();
    }
    let exit = report.end()?;
    match failure {
        Some(failure) => Err(failure),
        None => Ok(exit),
    }
}

/// Reads records on a thread of its own, at most [`AHEAD`] ahead. The channel ends behind the last record, or behind an error that no record
/// can be read after.
fn read_ahead(input: Box<dyn Read + Send>, framing: Framing) -> Receiver<Result<Vec<u8>, InputError>> {
    let (sender, records) = bounded(AHEAD);
    std::thread::spawn(move || {
        let mut input = Records::new(BufReader::with_capacity(1 << 20, input), framing);
        loop {
            let record = match input.next() {
                Ok(Some(record)) => Ok(record),
                Ok(None) => return,
                Err(error) => Err(error),
            };
            let last = matches!(record, Err(InputError::Io(_) | InputError::Cut { .. }));
            if sender.send(record).is_err() || last {
                return;
            }
        }
    });
    records
}

/// Prints outcomes in the order of the records, each as soon as it and all before it are known.
struct Report {
    out: Printer,
    output: Output,
    partition: u64,
    first: u64,
    next: u64,
    waiting: VecDeque<Option<Line>>,
    acked: u64,
    unknown: u64,
    refused: u64,
    shown: clock::Moment,
    terminal: bool,
}

impl Report {
    fn new(output: Output, partition: u64, first: u64) -> Report {
        Report {
            out: Printer::new(),
            output,
            partition,
            first,
            next: first,
            waiting: VecDeque::new(),
            acked: 0,
            unknown: 0,
            refused: 0,
            shown: clock::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn done(&mut self, sequence: u64, line: Line) -> std::io::Result<()> {
        let at = (sequence - self.next) as usize;
        while self.waiting.len() <= at {
            self.waiting.push_back(None);
        }
        self.waiting[at] = Some(line);
        let mut printed = false;
        while let Some(Some(_)) = self.waiting.front() {
            let Some(line) = self.waiting.pop_front().flatten() else { break };
            self.next += 1;
            match line.outcome {
                "acked" => self.acked += 1,
                "unknown" => self.unknown += 1,
                _ => self.refused += 1,
            }
            match (self.output, &line.error) {
                (Output::Json, _) => self.out.object(&line)?,
                (Output::Text, Some(error)) => {
                    self.out.line(format!("record {}: {}: {error}", line.sequence, line.outcome))?;
                }
                (Output::Text, None) => {}
            }
            printed = true;
        }
        // Whoever follows the lines sees an outcome when it is known; a bulk load is not slowed by it.
        if printed && self.waiting.is_empty() { self.out.flush() } else { Ok(()) }
    }

    fn progress(&mut self) {
        if self.terminal && clock::now().since(self.shown) >= Duration::from_secs(1) {
            self.shown = clock::now();
            // A terminal that is gone is no reason to stop.
            let _ = write!(
                std::io::stderr(),
                "\r{} acknowledged, {} unknown, {} refused",
                self.acked,
                self.unknown,
                self.refused
            );
        }
    }

    fn end(mut self) -> Result<Exit, Failure> {
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
        if self.output == Output::Text {
            let (count, partition) = (self.next - self.first, self.partition);
            self.out.line(format!(
                "{count} records to partition {partition}: {} acknowledged, {} unknown, {} refused",
                self.acked, self.unknown, self.refused
            ))?;
        }
        self.out.flush()?;
        Ok(if self.unknown + self.refused == 0 { Exit::Done } else { Exit::Failed })
    }
}
