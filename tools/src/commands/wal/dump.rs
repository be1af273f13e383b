//! `tidelog wal dump`: every batch and record of a log, or those asked for.
//!
//! What is shown is what was written: entries that a later cut removed, records that were moved, all of them, in the
//! order of the log. What it does not do: judge. It fails where the walk over the log cannot go on.

use super::selection::Selection;
use super::verify::Found;
use super::{DumpArgs, kind_name, logs, open_io};
use crate::failure::{Exit, Failure};
use crate::output::{Output, Printer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::path::Path;
use tidelog::config::unit::size_text;
use tidelog_types::{RecordHeader, RecordKind};
use tidelog_wal::format::{FLAG_DONE, FLAG_OPEN, FLAG_SEAL};
use tidelog_wal::inspect::{Eyes, Item, walk};

/// Bytes of a payload that are shown to people.
const PREVIEW_BYTES: usize = 48;

/// How payloads are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Encoding {
    /// Whole, in base64
    Base64,
    /// Whole, in hexadecimal
    Hex,
    /// Not at all
    None,
}

pub(super) fn run(args: &DumpArgs) -> Result<Exit, Failure> {
    let mut io = open_io()?;
    let mut dump = Dump {
        printer: Printer::new(),
        output: args.output.output,
        selection: args.selection.clone(),
        payload: args.payload,
        pending: Vec::new(),
    };
    for dir in logs(io.as_mut(), &args.dirs)? {
        let mut written = Ok(());
        let report = walk(io.as_mut(), &dir, Eyes::default(), &mut |item| {
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
    selection: Selection,
    /// None: the beginning for people, base64 for programs.
    payload: Option<Encoding>,
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
        /// What a control record says.
        #[serde(flatten)]
        control: Option<Control>,
        session: Option<u64>,
        sequence: Option<u64>,
        payload_crc: u32,
        payload_bytes: u32,
        /// Of entries that have one; base64 unless asked for otherwise.
        payload: Option<String>,
        #[serde(skip)]
        preview: String,
    },
    Bad(Found),
}

/// What a control record says, in fields that say it by their names.
#[derive(Serialize)]
#[serde(untagged)]
enum Control {
    Promise { promised_generation: u64, vote_for: Option<u64> },
    Cut { keeps_index: u64, keeps_generation: u64 },
    HighWater { high_water: u64 },
    LowWater { first_kept: u64 },
    SnapshotMark { covers_index: u64, covers_generation: u64 },
    Moved { moved_records: u64 },
}

impl Control {
    fn of(header: &RecordHeader) -> Option<Control> {
        let (index, generation) = (header.index.get(), header.generation.get());
        Some(match header.kind {
            RecordKind::Promise => {
                Control::Promise { promised_generation: generation, vote_for: (index != 0).then_some(index) }
            }
            RecordKind::Cut => Control::Cut { keeps_index: index, keeps_generation: generation },
            RecordKind::HighWater => Control::HighWater { high_water: index },
            RecordKind::LowWater => Control::LowWater { first_kept: index },
            RecordKind::SnapshotMark => {
                Control::SnapshotMark { covers_index: index, covers_generation: generation }
            }
            RecordKind::Moved => Control::Moved { moved_records: index },
            _ => return None,
        })
    }
}

impl std::fmt::Display for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Control::Promise { promised_generation, vote_for: None } => {
                write!(f, "generation {promised_generation}, no vote")
            }
            Control::Promise { promised_generation, vote_for: Some(node) } => {
                write!(f, "generation {promised_generation}, vote for node {node}")
            }
            Control::Cut { keeps_index, keeps_generation } => {
                write!(f, "keeps up to index {keeps_index} of generation {keeps_generation}")
            }
            Control::HighWater { high_water } => write!(f, "committed up to index {high_water} at least"),
            Control::LowWater { first_kept } => write!(f, "index {first_kept} is the first that is kept"),
            Control::SnapshotMark { covers_index, covers_generation } => {
                write!(f, "a snapshot covers up to index {covers_index} of generation {covers_generation}")
            }
            Control::Moved { moved_records } => {
                write!(f, "the next {moved_records} records were moved here from older segments")
            }
        }
    }
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
            Item::Record { header, .. } if !self.selection.has(header) => Ok(()),
            Item::Record { file, offset, lsn, header, payload } => {
                for (_, line) in std::mem::take(&mut self.pending) {
                    self.print(&line)?;
                }
                let line = self.record(file, *offset, lsn.get(), header, payload);
                self.print(&line)
            }
            Item::Bad(finding) => self.print(&Line::Bad(Found::from(*finding))),
        }
    }

    /// Shows it now, or with the first record that was asked for.
    fn later(&mut self, level: Level, line: Line) -> std::io::Result<()> {
        if self.selection.is_all() {
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

    fn record(&self, file: &Path, offset: u64, lsn: u64, header: &RecordHeader, payload: &[u8]) -> Line {
        let session = header.session();
        let whole = match (self.payload, self.output) {
            (Some(Encoding::Base64), _) | (None, Output::Json) => Some(STANDARD.encode(payload)),
            (Some(Encoding::Hex), _) => Some(hex(payload)),
            (Some(Encoding::None), _) | (None, Output::Text) => None,
        };
        let preview = match (self.output, self.payload, &whole) {
            (Output::Json, ..) | (Output::Text, Some(Encoding::None), _) => String::new(),
            (Output::Text, _, Some(whole)) => whole.clone(),
            (Output::Text, _, None) => preview(payload),
        };
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
            control: Control::of(header),
            session: session.map(|s| s.session.get()),
            sequence: session.map(|s| s.sequence.get()),
            payload_crc: header.payload_crc,
            payload_bytes: header.payload_len,
            payload: whole.filter(|_| header.kind == RecordKind::Data),
            preview,
        }
    }
}

/// The beginning of a payload, readable on any terminal.
fn preview(payload: &[u8]) -> String {
    let shown = payload.get(..PREVIEW_BYTES).unwrap_or(payload);
    let more = if shown.len() < payload.len() { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('?');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
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
                control,
                session,
                sequence,
                payload_bytes,
                preview,
                ..
            } => {
                write!(f, "    {kind} at {offset}: partition {partition}, ")?;
                match control {
                    Some(control) => control.fmt(f)?,
                    None => write!(f, "index {index}, generation {generation}")?,
                }
                if let (Some(session), Some(sequence)) = (session, sequence) {
                    write!(f, ", session {session} sequence {sequence}")?;
                }
                match (*payload_bytes, preview.as_str()) {
                    (0, _) => Ok(()),
                    (bytes, "") => write!(f, ", {bytes} bytes"),
                    (bytes, preview) => write!(f, ", {bytes} bytes {preview}"),
                }
            }
            Line::Bad(found) => write!(f, "  {found}"),
        }
    }
}
