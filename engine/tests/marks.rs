//! Marks through the public interface: what an embedder may conclude from them when an answer is there.
#![allow(clippy::disallowed_methods)] // real time, on a real disk: nothing here is replayed

use std::future::{Future, IntoFuture};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use tidelog::config::Config;
use tidelog::{Engine, Partition, SessionKey};

/// Looks at the marks at the moment at which its owner is woken, on the thread that wakes it: in the middle of the turn that answered.
struct Look {
    log: Partition,
    owner: Thread,
    /// One more than the high-water mark that it saw; 0: not woken yet.
    seen: AtomicU64,
}

impl Wake for Look {
    fn wake(self: Arc<Self>) {
        self.seen.store(self.log.marks().high_water.0 + 1, Ordering::SeqCst);
        self.owner.unpark();
    }
}

/// The answer, and the high-water mark when it was told; none if it was there before anybody waited.
fn answer<T>(log: &Partition, asked: impl IntoFuture<Output = T>) -> (T, Option<u64>) {
    let look = Arc::new(Look { log: log.clone(), owner: std::thread::current(), seen: AtomicU64::new(0) });
    let waker = Waker::from(Arc::clone(&look));
    let mut future = pin!(asked.into_future());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return (output, look.seen.load(Ordering::SeqCst).checked_sub(1));
        }
        std::thread::park();
    }
}

#[test]
fn what_was_acknowledged_is_below_the_high_water_mark() {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("marks");
    let _ = std::fs::remove_dir_all(&dir);
    let mut config = Config::single(&dir);
    config.wal.segment_size = 16 << 20;
    config.wal.spare_segments = 1;
    let engine = Engine::open(config).unwrap();
    let log = engine.partition(b"key");
    let (session, _) = answer(&log, log.open_session(SessionKey(7)));
    assert!(log.marks().high_water.0 >= session.unwrap().0);
    let mut told = 0;
    for n in 0..100u64 {
        let (position, seen) = answer(&log, log.append(n.to_le_bytes().to_vec()));
        let index = position.unwrap().index;
        assert!(log.marks().high_water >= index, "append {n} is at {index}, {:?}", log.marks());
        if let Some(seen) = seen {
            assert!(seen >= index.0, "append {n} is at {index}, and the mark was {seen} when that was told");
            told += 1;
        }
    }
    assert!(told > 0, "nobody ever waited: that proves nothing");
    engine.close().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}
