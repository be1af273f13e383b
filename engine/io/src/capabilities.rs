//! What a back-end found on this host, and what it had to do without.

use crate::{BackEnd, SyncMode, TaskWork};

/// How a ring was set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingFeatures {
    /// When completions are worked off. Deferred ones take a ring that only one thread submits to.
    pub task_work: TaskWork,
    /// Files and sockets are named by their place in a registered table.
    pub registered_files: bool,
    /// Bytes of registered buffer memory.
    pub registered_bytes: usize,
}

/// Something that was wanted and is not there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwitchedOff {
    /// What.
    pub what: &'static str,
    /// The reason, in the system's words.
    pub why: String,
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Which back-end.
    pub back_end: BackEnd,
    /// Its ring, if it has one.
    pub ring: Option<RingFeatures>,
    /// How durable writes are made durable; never `Auto`.
    pub sync: SyncMode,
    /// What it does without. Nothing of it changes what is promised, only how fast it is.
    pub switched_off: Vec<SwitchedOff>,
}
