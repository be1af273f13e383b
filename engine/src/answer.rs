//! Answers on their way from the shard's thread to whoever asked.
//!
//! Storing an answer and waking who waits for it are two steps, unlike those of a channel: a shard stores all answers of a
//! turn and wakes afterwards. Otherwise the first of many who wait together wakes up to one answer, takes it, sleeps, and is
//! woken again for the next.
//!
//! Many answers to one asker may go into a queue instead, whose owner is woken once for all of them.
//!
//! What it promises: an asker that is dropped without having answered answers `Unknown`, so nobody waits for ever.

use crate::request::{RequestError, Response};
use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, Sender, TrySendError};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

/// The shard's side: who asked.
#[derive(Debug)]
pub(crate) struct Asker {
    /// None: answered.
    to: Option<To>,
}

#[derive(Debug)]
enum To {
    One(Arc<One>),
    Queue { tag: u64, queue: Arc<Queue> },
}

#[derive(Debug, Default)]
struct One {
    response: OnceLock<Response>,
    waiting: AtomicWaker,
}

#[derive(Debug)]
struct Queue {
    /// As large as there may be unanswered requests: there is always room.
    answers: Sender<(u64, Response)>,
    waiting: AtomicWaker,
}

impl Asker {
    /// Stores the answer. Who waits for it is to be woken, by the caller.
    #[must_use = "somebody waits"]
    pub(crate) fn answer(mut self, response: Response) -> Option<Waker> {
        self.to.take()?.put(response)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        // Whether the record is in the log is not known.
        if let Some(waker) = self.to.take().and_then(|to| to.put(Err(RequestError::Unknown))) {
            waker.wake();
        }
    }
}

impl To {
    fn put(self, response: Response) -> Option<Waker> {
        match self {
            To::One(one) => {
                let stored = one.response.set(response);
                assert!(stored.is_ok(), "an asker is answered once: answering consumes it");
                one.waiting.take()
            }
            To::Queue { tag, queue } => match queue.answers.try_send((tag, response)) {
                // Without its receiver: the owner is gone, and nobody waits.
                Ok(()) | Err(TrySendError::Disconnected(_)) => queue.waiting.take(),
                Err(TrySendError::Full(_)) => panic!("a queue has room for every unanswered request"),
            },
        }
    }
}

/// The side of who asked once.
#[derive(Debug)]
pub(crate) struct Answer {
    one: Arc<One>,
}

pub(crate) fn channel() -> (Asker, Answer) {
    let one = Arc::<One>::default();
    (Asker { to: Some(To::One(Arc::clone(&one))) }, Answer { one })
}

impl Answer {
    /// The answer, once it is there; until then `cx` is woken when it comes.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        if let Some(response) = self.take() {
            return Poll::Ready(response);
        }
        self.one.waiting.register(cx.waker());
        // It may have come between the two.
        self.take().map_or(Poll::Pending, Poll::Ready)
    }

    /// Blocks this thread until the answer is there.
    pub(crate) fn wait(mut self) -> Response {
        crate::life_cycle::assert_may_wait("Pending::wait");
        on_this_thread(|cx| {
            loop {
                match self.poll(cx) {
                    Poll::Ready(response) => return response,
                    Poll::Pending => std::thread::park(),
                }
            }
        })
    }

    fn take(&mut self) -> Option<Response> {
        match Arc::get_mut(&mut self.one) {
            // The asker is done with it.
            Some(one) => one.response.take(),
            None => self.one.response.get().cloned(),
        }
    }
}

/// The side of who asks many times.
#[derive(Debug)]
pub(crate) struct Answers {
    queue: Arc<Queue>,
    arrived: Receiver<(u64, Response)>,
}

/// A queue for the answers of at most `unanswered_max` requests at a time; the owner keeps to it.
pub(crate) fn queue(unanswered_max: usize) -> Answers {
    let (answers, arrived) = crossbeam_channel::bounded(unanswered_max);
    Answers { queue: Arc::new(Queue { answers, waiting: AtomicWaker::new() }), arrived }
}

impl Answers {
    /// Who asks with this tag.
    pub(crate) fn asker(&self, tag: u64) -> Asker {
        Asker { to: Some(To::Queue { tag, queue: Arc::clone(&self.queue) }) }
    }

    /// The next answer that is there.
    pub(crate) fn next(&self) -> Option<(u64, Response)> {
        self.arrived.try_recv().ok()
    }

    /// Has `cx` woken when an answer comes, and looks once more: it may have come meanwhile.
    pub(crate) fn next_or_wake(&self, cx: &mut Context<'_>) -> Option<(u64, Response)> {
        self.queue.waiting.register(cx.waker());
        self.next()
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        drop(self.queue.waiting.take());
    }
}

/// Calls `f` with a context whose waker ends a park of this thread.
pub fn on_this_thread<T>(f: impl FnOnce(&mut Context<'_>) -> T) -> T {
    UNPARK.with(|waker| f(&mut Context::from_waker(waker)))
}

thread_local! {
    /// Wakes this thread out of a park.
    static UNPARK: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Reply;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tidelog_types::{Generation, Index, Position};

    fn at(index: u64) -> Response {
        Ok(Reply::Appended { position: Position::new(Index(index), Generation(1)) })
    }

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn storing_does_not_wake() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let (asker, mut answer) = channel();
        assert_eq!(answer.poll(&mut cx), Poll::Pending);
        let woken = asker.answer(at(7));
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        assert!(woken.is_some_and(|waker| waker.will_wake(cx.waker())));
        assert_eq!(answer.poll(&mut cx), Poll::Ready(at(7)));
        // Nobody waited yet, or nobody does any more.
        let (asker, mut answer) = channel();
        assert!(asker.answer(at(8)).is_none());
        assert_eq!(answer.poll(&mut cx), Poll::Ready(at(8)));
        let (asker, answer) = channel();
        drop(answer);
        assert!(asker.answer(at(9)).is_none());
    }

    #[test]
    fn an_asker_that_goes_away_answers_that_nothing_is_known() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let (asker, mut answer) = channel();
        assert_eq!(answer.poll(&mut cx), Poll::Pending);
        drop(asker);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(answer.poll(&mut cx), Poll::Ready(Err(RequestError::Unknown)));
        let (asker, answer) = channel();
        drop(asker);
        assert_eq!(answer.wait(), Err(RequestError::Unknown));
    }

    #[test]
    fn the_owner_of_a_queue_is_woken_once_for_all_that_came() {
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let answers = queue(3);
        let mut askers = (0..3).map(|tag| answers.asker(tag)).collect::<Vec<_>>().into_iter();
        assert_eq!(answers.next_or_wake(&mut cx), None);
        let wakers: Vec<_> = askers.by_ref().take(2).map(|asker| asker.answer(at(1))).collect();
        assert!(wakers[0].is_some() && wakers[1].is_none());
        assert_eq!((answers.next(), answers.next()), (Some((0, at(1))), Some((1, at(1)))));
        assert_eq!(answers.next_or_wake(&mut cx), None);
        drop(askers);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(answers.next(), Some((2, Err(RequestError::Unknown))));
        // An owner that is gone is not answered.
        let asker = answers.asker(3);
        drop(answers);
        assert!(asker.answer(at(1)).is_none());
    }

    #[test]
    fn no_answer_is_missed_between_threads() {
        for round in 0..2000 {
            let (asker, answer) = channel();
            let other = std::thread::spawn(move || asker.answer(at(round)).map(Waker::wake));
            assert_eq!(answer.wait(), at(round));
            other.join().unwrap();
        }
    }
}
