//! What goes to stdout: lines for people, or one JSON object a line for programs.

use serde::Serialize;
use std::io::{BufWriter, StdoutLock, Write};

/// For whom the answer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one object a line, snake_case names, units in the names.
    Json,
}

/// The flag of the commands that answer either way.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct OutputArgs {
    /// Lines for people, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// Stdout, buffered; [`Printer::flush`] after what someone waits for.
pub(crate) struct Printer {
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Printer {
    pub(crate) fn new() -> Printer {
        Printer { stdout: BufWriter::new(std::io::stdout().lock()) }
    }

    /// A line for people.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> std::io::Result<()> {
        writeln!(self.stdout, "{line}")
    }

    /// An object for programs.
    pub(crate) fn object(&mut self, object: &impl Serialize) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.stdout, object)?;
        self.stdout.write_all(b"\n")
    }

    /// Stdout itself, for bytes.
    pub(crate) fn writer(&mut self) -> &mut impl Write {
        &mut self.stdout
    }

    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        self.stdout.flush()
    }
}
