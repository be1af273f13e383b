//! What is wrong with a configuration, all of it at once.

use std::fmt;
use std::path::PathBuf;

/// A place in a configuration's text, counted from 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct At {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// One thing that is wrong, or that deserves a second look.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Complaint {
    /// Where; nowhere for a key that is missing with its section.
    pub at: Option<At>,
    /// The key, such as `wal.segment_size`; empty for the document as a whole.
    pub key: String,
    /// The value as written; empty if there is none.
    pub value: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// Why there is no configuration. All of these are for a person to change: exit code 2.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {why}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// It says something wrong.
    #[error("{} in the configuration{}", counted(.complaints.len()), listed(.origin, .complaints))]
    Invalid {
        /// What the text is called: its file's name.
        origin: String,
        /// All that is wrong, in the order of the text.
        complaints: Vec<Complaint>,
    },
}

impl ConfigError {
    /// What is wrong, one by one; empty if the file could not be read.
    pub fn complaints(&self) -> &[Complaint] {
        match self {
            ConfigError::Read { .. } => &[],
            ConfigError::Invalid { complaints, .. } => complaints,
        }
    }
}

fn counted(complaints: usize) -> String {
    if complaints == 1 { "1 error".into() } else { format!("{complaints} errors") }
}

fn listed(origin: &str, complaints: &[Complaint]) -> String {
    complaints.iter().map(|c| format!("\n  {origin}:{c}")).collect()
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(At { line, column }) = self.at {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}", self.key)?;
            if !self.value.is_empty() {
                write!(f, " = {}", self.value)?;
            }
            f.write_str(":")?;
        }
        write!(f, " {}", self.problem)
    }
}
