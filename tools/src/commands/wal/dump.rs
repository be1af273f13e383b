//! `tidelog wal dump`.

use super::verify::Found;
use super::{DumpArgs, kind_name, logs, open_io};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Printer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::path::Path;
use tidelog::config::unit::size_text;
use tidelog_types::{PartitionId, RecordHeader, RecordKind};
use tidelog_wal::format::{FLAG_DONE, FLAG_OPEN, FLAG_SEAL};
use tidelog_wal::inspect::{Item, walk};

/// Bytes of a payload that are shown to people.
const PREVIEW_BYTES: usize = 48;

pub(super) fn run(args: &DumpArgs) -> Result<Exit, Failure> {
    let mut io = open_io()?;
    let mut dump = Dump {
        printer: Printer::new(),
        output: args.output.output,
        partition: args.partition.map(PartitionId),
        pending: Vec::new(),
    };
    for dir in logs(io.as_mut(), &args.dirs)? {
        let mut written = Ok(());
        let report = walk(io.as_mut(), &dir, &mut |item| {
            if written.is_ok() {
                written = dump.show(&item);
            }
            if written.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                // Nobody reads on (`| head`), a walk has no way to stop, and nothing here needs closing.
                std::process::exit(1);
            }
        });
        written?;
        dump.printer.flush()?;
        let report = report.map_err(Failure::failed)?;
        if let Some(why) = report.stopped {
            return Err(Failure::failed(why).advise("`tidelog wal verify` says what is damaged"));
        }
    }
    Ok(Exit::Done)
}

struct Dump {
    printer: Printer,
    output: Output,
    /// Only this partition's records.
    partition: Option<PartitionId>,
    /// Lines of the segment and the batch, to be shown with their first record that is.
    pending: Vec<(Level, Line)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Level {
    Segment,
    Batch,
}

/// What is shown of an item.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Segment {
        file: String,
        shard: u32,
        node: u64,
        store: String,
        segment_seq: u64,
        base_lsn: u64,
        bytes: u64,
        epoch: u64,
    },
    Batch {
        file: String,
        offset: u64,
        lsn: u64,
        batch_seq: u64,
        epoch: u64,
        flags: Vec<&'static str>,
        bytes: u32,
        records: u32,
        wall_ms: u64,
        footer: bool,
    },
    Record {
        file: String,
        offset: u64,
        lsn: u64,
        kind: &'static str,
        partition: u64,
        index: u64,
        generation: u64,
        prev_generation: u64,
        timestamp_ms: u64,
        session: Option<u64>,
        sequence: Option<u64>,
        payload_crc: u32,
        payload_bytes: u32,
        /// Base64; of entries that have one.
        payload: Option<String>,
        #[serde(skip)]
        preview: String,
    },
    Bad(Found),
}

impl Dump {
    fn show(&mut self, item: &Item<'_>) -> std::io::Result<()> {
        match item {
            Item::Segment { file, header } => {
                self.pending.clear();
                let line = Line::Segment {
                    file: name(file),
                    shard: header.shard.get(),
                    node: header.node.get(),
                    store: format!("{:016x}", header.store.get()),
                    segment_seq: header.segment_seq,
                    base_lsn: header.base.get(),
                    bytes: header.bytes,
                    epoch: header.epoch,
                };
                self.later(Level::Segment, line)
            }
            Item::Batch { file, offset, header, footer } => {
                self.pending.retain(|(level, _)| *level < Level::Batch);
                let flags = [(FLAG_OPEN, "open"), (FLAG_DONE, "done"), (FLAG_SEAL, "seal")];
                let line = Line::Batch {
                    file: name(file),
                    offset: *offset,
                    lsn: header.lsn.get(),
                    batch_seq: header.batch_seq,
                    epoch: header.epoch,
                    flags: flags
                        .iter()
                        .filter(|(flag, _)| header.flags & flag != 0)
                        .map(|(_, name)| *name)
                        .collect(),
                    bytes: header.total_len,
                    records: header.record_count,
                    wall_ms: header.wall.get(),
                    footer: footer.is_some(),
                };
                self.later(Level::Batch, line)
            }
            Item::Record { header, .. } if header.kind == RecordKind::Pad => Ok(()),
            Item::Record { header, .. } if self.partition.is_some_and(|p| p != header.partition) => Ok(()),
            Item::Record { file, offset, lsn, header, payload } => {
                for (_, line) in std::mem::take(&mut self.pending) {
                    self.print(&line)?;
                }
                self.print(&record(file, *offset, lsn.get(), header, payload, self.output))
            }
            Item::Bad(finding) => self.print(&Line::Bad(Found::from(*finding))),
        }
    }

    /// Shows it now, or with the first record of the partition asked for.
    fn later(&mut self, level: Level, line: Line) -> std::io::Result<()> {
        if self.partition.is_none() {
            return self.print(&line);
        }
        self.pending.push((level, line));
        Ok(())
    }

    fn print(&mut self, line: &Line) -> std::io::Result<()> {
        match self.output {
            Output::Json => self.printer.object(line),
            Output::Text => self.printer.line(line),
        }
    }
}

fn record(file: &Path, offset: u64, lsn: u64, header: &RecordHeader, payload: &[u8], output: Output) -> Line {
    let has_payload = header.kind == RecordKind::Data;
    let session = header.session();
    Line::Record {
        file: name(file),
        offset,
        lsn,
        kind: kind_name(header.kind),
        partition: header.partition.get(),
        index: header.index.get(),
        generation: header.generation.get(),
        prev_generation: header.prev_generation.get(),
        timestamp_ms: header.timestamp.get(),
        session: session.map(|s| s.session.get()),
        sequence: session.map(|s| s.sequence.get()),
        payload_crc: header.payload_crc,
        payload_bytes: header.payload_len,
        payload: (has_payload && output == Output::Json).then(|| STANDARD.encode(payload)),
        preview: if output == Output::Text { preview(payload) } else { String::new() },
    }
}

/// The beginning of a payload, readable on any terminal.
fn preview(payload: &[u8]) -> String {
    let shown = payload.get(..PREVIEW_BYTES).unwrap_or(payload);
    let more = if shown.len() < payload.len() { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Line::Segment { file, shard, node, store, segment_seq, base_lsn, bytes, epoch } => write!(
                f,
                "segment {segment_seq} {file}: node {node}, shard {shard}, store {store}, epoch {epoch}, lsn {base_lsn}, {}",
                size_text(*bytes)
            ),
            Line::Batch { offset, lsn, batch_seq, flags, bytes, records, footer, .. } => {
                let flags: String = flags.iter().map(|flag| format!(", {flag}")).collect();
                let footer = if *footer { "" } else { ", footer not valid" };
                let size = size_text(u64::from(*bytes));
                write!(
                    f,
                    "  batch {batch_seq} at {offset}: lsn {lsn}, {size}, records {records}{flags}{footer}"
                )
            }
            Line::Record {
                offset,
                kind,
                partition,
                index,
                generation,
                session,
                sequence,
                payload_bytes,
                preview,
                ..
            } => {
                write!(f, "    {kind} at {offset}: partition {partition}, ")?;
                match *kind {
                    "promise" if *index == 0 => write!(f, "generation {generation}, no vote")?,
                    "promise" => write!(f, "generation {generation}, vote for node {index}")?,
                    "cut" => write!(f, "keeps up to index {index} of generation {generation}")?,
                    _ => write!(f, "index {index}, generation {generation}")?,
                }
                if let (Some(session), Some(sequence)) = (session, sequence) {
                    write!(f, ", session {session} sequence {sequence}")?;
                }
                if *payload_bytes > 0 { write!(f, ", {payload_bytes} bytes {preview}") } else { Ok(()) }
            }
            Line::Bad(found) => write!(f, "  {found}"),
        }
    }
}
