//! How a node ends inside a program, in each order in which its handles may be used and dropped.

use std::io::{Cursor, Read, Result};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tempfile::TempDir;
use tidelog::config::Config;
use tidelog::engine::no_machines;
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog::{Engine, Error, Event, Index, Level, RequestError, Role};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(dir: &Path) -> Config {
    let mut config = Config::single(dir);
    config.wal.segment_size = 16 << 20;
    config.wal.spare_segments = 1;
    config
}

fn open(dir: &TempDir) -> Engine {
    Engine::open(config(dir.path())).unwrap()
}

/// Calls this for each entry.
struct Calling<F>(F);

impl<F: FnMut(&[u8]) + Send> StateMachine for Calling<F> {
    fn apply(&mut self, entry: Applied<'_>) {
        (self.0)(entry.payload);
    }
    fn snapshot(&mut self) -> Result<SnapshotView> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }
    fn restore(&mut self, _: Index, _: &mut dyn Read) -> Result<()> {
        Ok(())
    }
}

fn open_with(dir: &TempDir, mut apply: impl FnMut(&[u8]) + Send + 'static) -> Engine {
    let mut machine = Some(Box::new(Calling(move |payload: &[u8]| apply(payload))) as Box<dyn StateMachine>);
    Engine::open_with(config(dir.path()), Box::new(move |_| machine.take())).unwrap()
}

#[test]
fn close_waits_though_another_thread_is_in_join() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let (joining, joined) = (engine.clone(), mpsc::channel());
    let told = joined.0;
    std::thread::spawn(move || {
        let outcome = joining.join();
        told.send(outcome.is_ok()).unwrap();
    });
    engine.partition(b"k").append("a").wait().unwrap();
    engine.close().unwrap();
    // The directory is free as soon as close() is back, whoever else waited.
    let again = open(&dir);
    assert!(joined.1.recv_timeout(PATIENCE).unwrap());
    // As often as one likes.
    engine.close().unwrap();
    engine.join().unwrap();
    again.close().unwrap();
}

/// Requests that are in the queue when the node ends, or that get there while it does: each is answered, whichever way it ends.
#[test]
fn what_is_queued_when_the_node_ends_is_answered() {
    let ends: [fn(Engine); 3] = [
        |engine| engine.close().unwrap(),
        |engine| {
            engine.stop();
            engine.join().unwrap();
        },
        drop,
    ];
    let dir = TempDir::new().unwrap();
    for round in 0..30 {
        let engine = open(&dir);
        let (ended, all_ended) = mpsc::channel();
        for thread in 0..6 {
            let (partition, ended) = (engine.partition(b"k"), ended.clone());
            let mut queue = engine.append_queue(16);
            std::thread::spawn(move || {
                let mut done = Vec::new();
                loop {
                    let ends = match thread % 3 {
                        0 => partition.append("a").wait().is_err(),
                        1 => partition.read(Index(1).., Level::Local).wait().is_err(),
                        _ => {
                            while queue.append(&partition, 0, "b").is_ok() {}
                            done.clear();
                            queue.wait(None, &mut done);
                            done.iter().any(|d| matches!(d.result, Err(RequestError::Unavailable(_))))
                        }
                    };
                    if ends {
                        break;
                    }
                }
                while queue.in_flight() > 0 {
                    queue.wait(None, &mut done);
                }
                ended.send(()).unwrap();
            });
        }
        std::thread::park_timeout(Duration::from_micros(500 * round));
        ends[round as usize % 3](engine);
        for thread in 0..6 {
            all_ended
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("round {round}: {thread} of 6 have ended"));
        }
    }
}

/// A panic on the node's thread with a full queue behind it.
#[test]
fn what_is_queued_behind_a_panic_is_answered() {
    for round in 0..5 {
        let dir = TempDir::new().unwrap();
        let engine = open_with(&dir, move |payload| assert!(payload != b"bad", "as ordered"));
        let (partition, mut queue) = (engine.partition(b"k"), engine.append_queue(10_000));
        for n in 0..10_000 {
            let payload = if n == 100 * round { "bad" } else { "good" };
            queue.append(&partition, n, payload).unwrap();
        }
        let mut done = Vec::new();
        // So many waits in a row that bring nothing: nothing comes any more.
        let mut idle = 0;
        while queue.in_flight() > 0 && idle < 600 {
            let before = done.len();
            queue.wait(Some(PATIENCE / 600), &mut done);
            idle = if done.len() == before { idle + 1 } else { 0 };
        }
        assert_eq!(done.len(), 10_000);
        assert!(matches!(engine.join(), Err(Error::Panicked { .. })));
    }
}

#[test]
fn handles_do_not_keep_the_engine_open() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let log = engine.partition(b"k");
    let mut queue = engine.append_queue(8);
    let events = engine.events(8);
    let at = log.append("a").wait().unwrap();
    let pin = log.pin(at.index, tidelog::PinFor::Reader).unwrap();
    drop(engine);
    let again = open(&dir);
    let closed = |error: RequestError| match error {
        RequestError::Unavailable(why) => assert!(why.contains("closed"), "{why}"),
        other => panic!("{other}"),
    };
    closed(log.append("b").wait().unwrap_err());
    closed(log.wait_for_leader().wait(PATIENCE).unwrap_err());
    queue.append(&log, 1, "c").unwrap();
    let mut done = Vec::new();
    while queue.in_flight() > 0 {
        queue.wait(Some(PATIENCE), &mut done);
    }
    closed(done.remove(0).result.unwrap_err());
    assert!(matches!(events.last(), Some(Event::Stopped { why: None })));
    assert_eq!(pin.first(), Some(at.index));
    again.close().unwrap();
}

#[test]
fn a_panic_in_apply_is_the_outcome_for_everybody_and_the_log_is_whole() {
    let dir = TempDir::new().unwrap();
    let engine = open_with(&dir, |payload| assert!(payload != b"bad", "a bad entry"));
    let log = engine.partition(b"k");
    log.append("good").wait().unwrap();
    // The entry is durable before it is applied: whoever appended it is told so, or nothing.
    let bad = log.append("bad").wait();
    assert!(matches!(bad, Ok(_) | Err(RequestError::Unknown)), "{bad:?}");
    for _ in 0..3 {
        let outcome = engine.close();
        assert!(
            matches!(&outcome, Err(Error::Panicked { what }) if what.contains("a bad entry")),
            "{outcome:?}"
        );
    }
    let told = log.append("more").wait().unwrap_err().to_string();
    assert!(told.contains("a bad entry"), "{told}");
    let again = open(&dir);
    let (log, mut payloads, mut from) = (again.partition(b"k"), Vec::new(), Index(1));
    while from <= log.marks().high_water {
        let read = log.read(from.., Level::Local).wait().unwrap();
        from = read.next;
        payloads.extend(read.into_iter().map(|record| record.payload));
    }
    assert_eq!(payloads, ["good", "bad"]);
    again.close().unwrap();
}

/// Runs this when it is woken, on whatever thread wakes it: the shard's.
struct OnWake(Mutex<Option<Box<dyn FnOnce() + Send>>>, AtomicBool);

impl Wake for OnWake {
    fn wake(self: Arc<Self>) {
        if let Some(call) = self.0.lock().unwrap().take() {
            call();
        }
        self.1.store(true, Ordering::Release);
    }
}

/// Appends with a waker that makes this call, and waits until it was made.
fn on_wake(engine: Engine, call: impl FnOnce(Engine) + Send + 'static) {
    let log = engine.partition(b"k");
    let mut pending = Box::pin(log.append("a"));
    let woken = Arc::new(OnWake(Mutex::new(Some(Box::new(move || call(engine)))), AtomicBool::new(false)));
    let waker = Waker::from(Arc::clone(&woken));
    // An answer that is there already wakes nobody: then there is nothing to test here, and another append is made.
    while pending.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
        pending = Box::pin(log.append("a"));
    }
    while !woken.1.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
}

/// Opens as soon as the directory is free: the engine before ends by itself.
fn open_when_free(dir: &TempDir) -> Engine {
    loop {
        match Engine::open(config(dir.path())) {
            Ok(engine) => return engine,
            Err(error) => assert!(error.to_string().contains("use"), "{error}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn the_last_drop_inside_a_waker_ends_the_engine() {
    let dir = TempDir::new().unwrap();
    on_wake(open(&dir), drop);
    open_when_free(&dir).close().unwrap();
}

#[test]
fn close_inside_a_waker_is_refused_and_the_engine_stops() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let outside = engine.clone();
    let (tell, told) = mpsc::channel();
    on_wake(engine, move |engine| tell.send(engine.close()).unwrap());
    assert!(matches!(told.recv_timeout(PATIENCE).unwrap(), Err(Error::OwnThread)));
    outside.join().unwrap();
}

#[test]
fn a_wait_inside_apply_says_that_it_would_never_end() {
    let dir = TempDir::new().unwrap();
    let handle = Arc::<Mutex<Option<tidelog::Partition>>>::default();
    let own = Arc::clone(&handle);
    let engine = open_with(&dir, move |_| {
        if let Some(log) = own.lock().unwrap().take() {
            drop(log.append("from apply").wait());
        }
    });
    *handle.lock().unwrap() = Some(engine.partition(b"k"));
    drop(engine.partition(b"k").append("a").wait());
    let outcome = engine.join();
    assert!(matches!(&outcome, Err(Error::Panicked { what }) if what.contains("own thread")), "{outcome:?}");
}

#[test]
fn a_pending_answer_is_a_future_that_can_be_spawned() {
    fn spawnable<T: Future + Send + 'static>(future: T) -> T {
        future
    }
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let log = engine.partition(b"k");
    drop(spawnable(log.wait_for_leader()));
    let mut pending = Box::pin(spawnable(log.append("a")));
    let mut cx = Context::from_waker(Waker::noop());
    let answer = loop {
        if let Poll::Ready(answer) = pending.as_mut().poll(&mut cx) {
            break answer;
        }
        std::thread::yield_now();
    };
    assert!(answer.is_ok(), "{answer:?}");
    engine.close().unwrap();
}

#[test]
fn an_opening_that_fails_says_why_and_leaves_the_directory_free() {
    let dir = TempDir::new().unwrap();
    let engine = open(&dir);
    let error = Engine::open(config(dir.path())).unwrap_err();
    assert!(matches!(&error, Error::Directory { why, .. } if why.contains("use")), "{error}");
    engine.close().unwrap();
    let panics = Box::new(|_| -> Option<Box<dyn StateMachine>> { panic!("no machine today") });
    let error = Engine::open_with(config(dir.path()), panics).unwrap_err();
    assert!(matches!(&error, Error::Panicked { what } if what.contains("no machine today")), "{error}");
    open(&dir).close().unwrap();
}

#[test]
fn a_single_node_is_told_that_it_leads() {
    let dir = TempDir::new().unwrap();
    let engine = Engine::open_with(config(dir.path()), no_machines()).unwrap();
    let log = engine.partition(b"k");
    let leader = log.wait_for_leader().wait(PATIENCE).unwrap();
    let leadership = log.leadership().unwrap();
    assert_eq!((leadership.leader, leadership.role), (Some(leader), Role::Leader));
    assert_eq!(leader.get(), 1);
    engine.close().unwrap();
}
