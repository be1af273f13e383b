//! Run-to-completion use of the seam: opening, recovery, tools.

use crate::{Completion, Io, IoError, IoErrorKind, Op, Output, Token, TokenClass, Wait};
use std::collections::BTreeMap;
use tidelog_types::Monotonic;

/// Runs one operation after the other, waiting for each; or begins some, and asks for their results later. Completions of
/// others that arrive meanwhile are kept and handed back by [`Foreground::finish`].
pub struct Foreground<'a> {
    io: &'a mut dyn Io,
    next: u64,
    stash: Vec<Completion>,
    /// What was begun and not asked for yet; none: it is under way.
    begun: BTreeMap<u64, Option<Result<Output, IoError>>>,
}

/// An operation that was begun.
#[derive(PartialEq, Eq, Debug)]
pub struct Begun(u64);

impl<'a> Foreground<'a> {
    /// Over `io`.
    pub fn new(io: &'a mut dyn Io) -> Foreground<'a> {
        Foreground { io, next: 0, stash: Vec::new(), begun: BTreeMap::new() }
    }

    /// Runs `op` and waits for it.
    ///
    /// # Errors
    /// The operation's own.
    pub fn run(&mut self, op: Op) -> Result<Output, IoError> {
        self.run_all(vec![op]).pop().unwrap_or_else(|| Err(none()))
    }

    /// Begins an operation: [`Self::result_of`] waits for it. It reaches the device at the next wait, or with
    /// [`Self::hand_over`].
    pub fn begin(&mut self, op: Op) -> Begun {
        let value = self.next;
        self.next += 1;
        self.begun.insert(value, None);
        self.io.submit(Token { class: TokenClass::Foreground, value }, op);
        Begun(value)
    }

    /// Lets the device have what was begun, and takes in what has completed, without waiting.
    pub fn hand_over(&mut self) {
        self.poll(Wait::No);
    }

    /// Waits for an operation that was begun.
    ///
    /// # Errors
    /// The operation's own.
    pub fn result_of(&mut self, Begun(value): Begun) -> Result<Output, IoError> {
        while self.begun.get(&value).is_some_and(Option::is_none) {
            self.poll(Wait::Forever);
        }
        self.begun.remove(&value).flatten().unwrap_or_else(|| Err(none()))
    }

    /// Whether an operation that was begun has ended well, as far as is known without a look at what has completed since the
    /// last one.
    pub fn has_succeeded(&self, Begun(value): &Begun) -> bool {
        matches!(self.begun.get(value), Some(Some(Ok(_))))
    }

    /// Waits for everything that was begun; nobody asks for the results.
    pub fn settle(&mut self) {
        while self.begun.values().any(Option::is_none) {
            self.poll(Wait::Forever);
        }
        self.begun.clear();
    }

    fn poll(&mut self, wait: Wait) {
        let mut got = Vec::new();
        self.io.poll(wait, &mut got);
        got.into_iter().for_each(|completion| self.keep(completion));
    }

    /// Keeps a completion for whoever it is of.
    fn keep(&mut self, completion: Completion) {
        match self.begun.get_mut(&completion.token.value) {
            Some(result) if completion.token.class == TokenClass::Foreground => {
                *result = Some(completion.result);
            }
            _ => self.stash.push(completion),
        }
    }

    /// Runs several operations at once and waits for all; results in the order given.
    pub fn run_all(&mut self, ops: Vec<Op>) -> Vec<Result<Output, IoError>> {
        let first = self.next;
        let count = ops.len();
        for op in ops {
            self.io.submit(Token { class: TokenClass::Foreground, value: self.next }, op);
            self.next += 1;
        }
        let mut results: Vec<Option<Result<Output, IoError>>> = (0..count).map(|_| None).collect();
        let mut left = count;
        let mut got = Vec::new();
        while left > 0 {
            self.io.poll(Wait::Forever, &mut got);
            for completion in got.drain(..) {
                let slot = completion.token.value.wrapping_sub(first) as usize;
                if completion.token.class == TokenClass::Foreground && slot < count {
                    results[slot] = Some(completion.result);
                    left -= 1;
                } else {
                    self.keep(completion);
                }
            }
        }
        results.into_iter().flatten().collect()
    }

    /// Waits until then. What completes meanwhile is others'.
    pub fn wait(&mut self, until: Monotonic) {
        while self.io.clock().now < until {
            self.poll(Wait::Until(until));
        }
    }

    /// The seam itself.
    pub fn io(&mut self) -> &mut dyn Io {
        self.io
    }

    /// Waits for what was begun; returns the completions that belong to others.
    pub fn finish(mut self) -> Vec<Completion> {
        self.settle();
        self.stash
    }
}

fn none() -> IoError {
    IoError {
        kind: IoErrorKind::Other,
        operation: "poll",
        subject: String::new(),
        message: "no completion".into(),
    }
}
