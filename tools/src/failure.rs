//! How a command ends.

use crate::logging;
use std::fmt;
use std::process::ExitCode;

/// How a command ended, for scripts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// It did what it was asked.
    Done,
    /// It ran, and what it was asked failed or was found wrong.
    Failed,
    /// It was asked the wrong thing: flags or configuration are to be changed.
    Usage,
}

impl Exit {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
        })
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What happened; none if nobody is there to be told.
    message: Option<String>,
    /// What to do next.
    advice: Option<String>,
}

impl Failure {
    /// It failed while doing it: exit code 1.
    pub(crate) fn failed(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Failed, message: Some(message.to_string()), advice: None }
    }

    /// Flags or configuration are wrong: exit code 2.
    pub(crate) fn usage(message: impl fmt::Display) -> Failure {
        Failure { exit: Exit::Usage, message: Some(message.to_string()), advice: None }
    }

    /// Says what to do next.
    #[must_use]
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Failure {
        self.advice = Some(advice.into());
        self
    }

    /// Tells the person on stderr, behind what was logged before; if that is gone too, nobody is left to tell.
    pub(crate) fn report(&self) {
        if let Some(message) = &self.message {
            logging::say(&format!("error: {message}"));
        }
        if let Some(advice) = &self.advice {
            logging::say(&format!("  next: {advice}"));
        }
    }
}

impl From<tidelog::config::ConfigError> for Failure {
    fn from(error: tidelog::config::ConfigError) -> Failure {
        let advice = match &error {
            tidelog::config::ConfigError::Read { .. } => "give the path of a node's configuration file",
            tidelog::config::ConfigError::Invalid { .. } => {
                "change what is named above; `tidelog config reference` lists every key"
            }
        };
        Failure::usage(error).advise(advice)
    }
}

/// Of stdout: a reader that has gone away (`| head`) is told nothing.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure { exit: Exit::Failed, message: None, advice: None };
        }
        Failure::failed(format!("cannot write to stdout: {error}"))
    }
}
