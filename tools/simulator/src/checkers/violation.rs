//! What a checker reports.

/// A broken invariant of `docs/INVARIANTS.md`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invariant {invariant}: {message}")]
pub(crate) struct Violation {
    pub(crate) invariant: u8,
    pub(crate) message: String,
}

/// A checker's word.
pub(crate) type Verdict = Result<(), Violation>;

/// Fails with invariant `invariant` unless `holds`.
pub(crate) fn ensure(invariant: u8, holds: bool, message: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Violation { invariant, message: message() }) }
}

/// Fails.
pub(crate) fn broken<T>(invariant: u8, message: impl Into<String>) -> Result<T, Violation> {
    Err(Violation { invariant, message: message.into() })
}
