//! A request on its way: a future on any executor, or a wait without one.

use crate::answer::Answer;
use crate::request::{RequestError, Response};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll};

type Map<T> = fn(Response) -> Result<T, RequestError>;

/// The answer to come: a future that any executor can run or spawn. `.await` it, or [`Pending::wait`] for it without an executor.
/// Dropping it does not take the request back.
#[must_use = "nothing is known of the request's outcome before this is awaited"]
#[derive(Debug)]
pub struct Pending<T> {
    answer: Answer,
    map: Map<T>,
}

impl<T> Pending<T> {
    pub(crate) fn new(answer: Answer, map: Map<T>) -> Pending<T> {
        Pending { answer, map }
    }

    /// Blocks this thread until the answer is there.
    ///
    /// # Errors
    /// The request's own; [`RequestError::Unknown`] if the engine went away without an answer.
    ///
    /// # Panics
    /// On a shard's own thread (in a state machine, in a waker), where it would wait for itself.
    pub fn wait(self) -> Result<T, RequestError> {
        (self.map)(self.answer.wait())
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T, RequestError>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let map = self.map;
        self.answer.poll(cx).map(map)
    }
}
