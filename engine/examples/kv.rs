//! A key-value store with a million keys on one partition: snapshots while it is written to, and a restart from one.
//!
//! `cargo run --release -p tidelog --example kv -- /tmp/kv [KEYS] [SECONDS]`
//!
//! The map is a persistent one: its clone is a stable view that costs nothing, however large the state is, and is then
//! written out piece by piece while the next entries are applied to the original. Appends are made at a fixed rate, for
//! so many seconds without a snapshot and as long with one under way after another, and their times compared. At the end
//! the store is opened again: it is restored from the snapshot and the log behind it, and must be the same by its hash.

#![allow(clippy::disallowed_methods)] // a program of its own that takes times: nothing here is replayed

use imbl::OrdMap;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tidelog::config::Config;
use tidelog::state_machine::{Applied, SnapshotView, StateMachine};
use tidelog::{Engine, Index, Partition, Position};

/// A value, of 100 bytes.
type Value = Arc<[u8]>;
const VALUE_BYTES: usize = 100;
/// Appends in flight while the store is filled.
const FILLING: usize = 4096;
/// Appends a second while times are taken.
const RATE: u64 = 2000;

#[derive(Default)]
struct Store {
    map: OrdMap<u64, Value>,
    restored: u64,
    applied: u64,
}

#[derive(Clone, Default)]
struct Kv(Arc<Mutex<Store>>);

impl StateMachine for Kv {
    fn apply(&mut self, entry: Applied<'_>) {
        let mut store = self.0.lock().unwrap();
        if let Some((key, value)) = entry.payload.split_first_chunk::<8>() {
            store.map.insert(u64::from_le_bytes(*key), value.into());
        }
        store.applied += 1;
    }

    fn snapshot(&mut self) -> Result<SnapshotView> {
        // The clone shares everything with the original until either is changed.
        Ok(Box::new(View { map: self.0.lock().unwrap().map.clone(), next: Some(0), line: Vec::new(), at: 0 }))
    }

    fn restore(&mut self, _: Index, snapshot: &mut dyn Read) -> Result<()> {
        let mut store = Store::default();
        let mut key = [0; 8];
        // The end is where no key begins.
        while snapshot.read(&mut key[..1])? > 0 {
            snapshot.read_exact(&mut key[1..])?;
            let mut len = [0; 4];
            snapshot.read_exact(&mut len)?;
            let mut value = vec![0; u32::from_le_bytes(len) as usize];
            snapshot.read_exact(&mut value)?;
            store.map.insert(u64::from_le_bytes(key), value.into());
        }
        store.restored = store.map.len() as u64;
        *self.0.lock().unwrap() = store;
        Ok(())
    }
}

/// The map as it was, read from key to key.
struct View {
    map: OrdMap<u64, Value>,
    next: Option<u64>,
    line: Vec<u8>,
    at: usize,
}

impl Read for View {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        if self.at == self.line.len() {
            self.line.clear();
            self.at = 0;
            let Some(from) = self.next else { return Ok(0) };
            let mut keys = self.map.range(from..);
            while self.line.len() < out.len() {
                let Some((key, value)) = keys.next() else { break };
                self.line.extend_from_slice(&key.to_le_bytes());
                let len = u32::try_from(value.len()).map_err(|_| ErrorKind::InvalidData)?;
                self.line.extend_from_slice(&len.to_le_bytes());
                self.line.extend_from_slice(value);
                self.next = key.checked_add(1);
            }
        }
        let bytes = out.len().min(self.line.len() - self.at);
        out[..bytes].copy_from_slice(&self.line[self.at..self.at + bytes]);
        self.at += bytes;
        Ok(bytes)
    }
}

impl Kv {
    /// (keys, hash of everything, keys restored, entries applied)
    fn state(&self) -> (usize, u32, u64, u64) {
        let store = self.0.lock().unwrap();
        let hash = store.map.iter().fold(0, |hash, (key, value)| {
            crc32c::crc32c_append(crc32c::crc32c_append(hash, &key.to_le_bytes()), value)
        });
        (store.map.len(), hash, store.restored, store.applied)
    }
}

fn set(key: u64, round: u64) -> Vec<u8> {
    let mut bytes = key.to_le_bytes().to_vec();
    bytes.resize(8 + VALUE_BYTES, round as u8);
    bytes[8..16].copy_from_slice(&round.to_le_bytes());
    bytes
}

/// Appends at a fixed rate. Each time is from when it was due, so that a stall counts for all who waited in it.
fn measured(log: &Partition, keys: u64, time: Duration) -> Result<Vec<Duration>> {
    let began = Instant::now();
    let mut due = VecDeque::new();
    let (mut times, mut sent) = (Vec::new(), 0u64);
    while began.elapsed() < time || !due.is_empty() {
        let elapsed = began.elapsed();
        let until = elapsed.as_micros() as u64 * RATE / 1_000_000;
        while sent < until && elapsed < time {
            sent += 1;
            let at = began + Duration::from_micros(sent * 1_000_000 / RATE);
            due.push_back((at, log.append(set(sent.wrapping_mul(7919) % keys, sent))));
        }
        match due.pop_front() {
            Some((at, append)) => {
                append.wait().map_err(Error::other)?;
                times.push(at.elapsed());
            }
            None => std::thread::sleep(Duration::from_micros(100)),
        }
    }
    times.sort_unstable();
    Ok(times)
}

fn show(what: &str, times: &[Duration]) -> f64 {
    let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000].as_micros();
    println!(
        "{what}: {} appends, p50 {} us, p99 {} us, p99.9 {} us, max {} us",
        times.len(),
        at(500),
        at(990),
        at(999),
        at(1000)
    );
    at(990) as f64
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: kv DIR [KEYS] [SECONDS]")?;
    let keys: u64 = args.next().map_or(Ok(1_000_000), |n| n.parse())?;
    let time = Duration::from_secs(args.next().map_or(Ok(10), |n| n.parse())?);
    let mut config = Config::single(dir);
    config.snapshot.every = 1 << 40; // when this program says so, not by itself

    let kv = Kv::default();
    let own = kv.clone();
    let engine = Engine::open_with(config.clone(), Box::new(move |_| Some(Box::new(own.clone()))))?;
    let log = engine.partition(b"kv");

    let began = Instant::now();
    let mut pending: VecDeque<tidelog::Pending<Position>> = VecDeque::new();
    for key in 0..keys {
        if pending.len() >= FILLING
            && let Some(oldest) = pending.pop_front()
        {
            oldest.wait()?;
        }
        pending.push_back(log.append(set(key, 0)));
    }
    for append in pending {
        append.wait()?;
    }
    println!("filled with {keys} keys in {:.1} s", began.elapsed().as_secs_f64());

    let without = show("without a snapshot", &measured(&log, keys, time)?);
    let stop = Arc::new(AtomicBool::new(false));
    let taking = {
        let (log, stop) = (log.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut taken = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                taken.push((log.snapshot().wait(), began.elapsed()));
            }
            taken
        })
    };
    let with = show("with snapshots under way", &measured(&log, keys, time)?);
    stop.store(true, Ordering::Relaxed);
    let taken = taking.join().map_err(|_| "the thread that takes snapshots panicked")?;
    println!("p99 with against without: {:.2}", with / without);
    for (covered, time) in taken {
        println!("a snapshot up to entry {} in {:.2} s", covered?.index, time.as_secs_f64());
    }
    let marks = log.marks();
    println!("the log begins at {}, its last entry is {}", marks.low_water, marks.high_water);
    engine.close()?;
    let (count, hash, ..) = kv.state();

    let began = Instant::now();
    let kv = Kv::default();
    let own = kv.clone();
    let engine = Engine::open_with(config, Box::new(move |_| Some(Box::new(own.clone()))))?;
    let (count_now, hash_now, restored, applied) = kv.state();
    println!(
        "opened again in {:.2} s: {restored} keys restored, {applied} entries applied behind them",
        began.elapsed().as_secs_f64()
    );
    assert_eq!((count, hash), (count_now, hash_now), "the same by its hash");
    println!("{count_now} keys, hash {hash_now:08x}: the same as before");
    engine.close()?;
    Ok(())
}
