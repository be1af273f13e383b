//! Run-to-completion use of the seam: opening, recovery, tools.

use crate::{Completion, Io, IoError, IoErrorKind, Op, Output, Token, TokenClass, Wait};
use tidelog_types::Monotonic;

/// Runs one operation after the other, waiting for each. Completions of others that arrive meanwhile are kept
/// and handed back by [`Foreground::finish`].
pub struct Foreground<'a> {
    io: &'a mut dyn Io,
    next: u64,
    stash: Vec<Completion>,
}

impl<'a> Foreground<'a> {
    /// Over `io`.
    pub fn new(io: &'a mut dyn Io) -> Foreground<'a> {
        Foreground { io, next: 0, stash: Vec::new() }
    }

    /// Runs `op` and waits for it.
    ///
    /// # Errors
    /// The operation's own.
    pub fn run(&mut self, op: Op) -> Result<Output, IoError> {
        self.run_all(vec![op]).pop().unwrap_or_else(|| {
            Err(IoError {
                kind: IoErrorKind::Other,
                operation: "poll",
                subject: String::new(),
                message: "no completion".into(),
            })
        })
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
                    self.stash.push(completion);
                }
            }
        }
        results.into_iter().flatten().collect()
    }

    /// Waits until then. What completes meanwhile is others'.
    pub fn wait(&mut self, until: Monotonic) {
        while self.io.clock().now < until {
            self.io.poll(Wait::Until(until), &mut self.stash);
        }
    }

    /// The seam itself.
    pub fn io(&mut self) -> &mut dyn Io {
        self.io
    }

    /// The completions that belong to others.
    pub fn finish(self) -> Vec<Completion> {
        self.stash
    }
}
