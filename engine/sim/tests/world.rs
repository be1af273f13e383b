//! Turns, time, whole runs: the same seed is the same run.

use bytes::Bytes;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};
use tidelog_io::{Completion, ConnId, FileId, Foreground, Io, Op, OpenMode, Output, Token, Wait};
use tidelog_sim::{FAULT_NAMES, FaultPlan, SimIo, Step, World};
use tidelog_types::Monotonic;
use tidelog_types::limits::PAGE_BYTES;

const SECOND: u64 = 1_000_000_000;
const NODES: [u64; 3] = [1, 2, 3];

/// A process that writes, talks to the next node, and does not mind any error.
struct Worker {
    io: SimIo,
    file: Option<FileId>,
    conn: Option<ConnId>,
    next: Monotonic,
    turns: u64,
    recovered: u64,
}

impl Worker {
    fn boot(world: &World, id: u64) -> Worker {
        let mut io = world.node(id);
        let mut foreground = Foreground::new(&mut io);
        let mode = OpenMode::ReadWrite;
        let mut opened = foreground.run(Op::Open { path: "/data/log".into(), mode });
        if opened.is_err() {
            opened = foreground.run(Op::Open { path: "/data/log".into(), mode: OpenMode::Create });
            let _ = foreground.run(Op::SyncDir { path: "/data".into() });
        }
        let (file, recovered) = match opened {
            Ok(Output::Opened { file, bytes }) => (Some(file), bytes),
            _ => (None, 0),
        };
        if let Some(file) = file {
            let buffer = foreground.io().buffers().take(PAGE_BYTES);
            let _ = foreground.run(Op::Read { file, offset: 0, buffer });
        }
        io.submit(Token::net(1), Op::Listen { address: world.address(id, 7000) });
        Worker { io, file, conn: None, next: Monotonic(0), turns: 0, recovered }
    }

    fn turn(&mut self) -> Monotonic {
        let mut out: Vec<Completion> = Vec::new();
        self.io.poll(Wait::No, &mut out);
        for completion in out {
            match (completion.token.value, completion.result) {
                (1, Ok(Output::Listening { listener, .. })) => {
                    self.io.submit(Token::net(2), Op::Accept { listener });
                }
                (2, Ok(Output::Connected { conn, .. })) => self.receive(conn),
                (3, Ok(Output::Connected { conn, .. })) => self.conn = Some(conn),
                (4, Err(_)) => self.conn = None,
                (5, Ok(Output::Received { bytes: 1.., buffer })) => drop(buffer),
                _ => {}
            }
        }
        if self.io.clock().now < self.next {
            return self.next;
        }
        self.next = self.io.clock().now.after(Duration::from_millis(10));
        self.turns += 1;
        if self.turns.is_multiple_of(3) {
            match self.conn {
                Some(conn) => {
                    let frame = Bytes::from(vec![9, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
                    self.io.submit(Token::net(4), Op::Send { conn, data: vec![frame] });
                }
                None => {
                    let next = self.io.node() % 3 + 1;
                    let address = self.io.world().address(next, 7000);
                    self.io.submit(Token::net(3), Op::Connect { address });
                }
            }
        }
        if let Some(file) = self.file.filter(|_| self.turns.is_multiple_of(2)) {
            let mut buffer = self.io.buffers().take(PAGE_BYTES);
            buffer.fill(self.turns as u8);
            let offset = self.turns % 4096 * PAGE_BYTES as u64;
            let data = vec![buffer.freeze()];
            let op = match self.turns % 8 {
                0 => Op::Write { file, offset, data },
                2 => Op::Sync { file },
                4 => Op::Read { file, offset: 0, buffer: self.io.buffers().take(PAGE_BYTES) },
                _ => Op::WriteDurable { file, offset, data },
            };
            self.io.submit(Token::wal(7), op);
        }
        match self.turns % 32 {
            4 => {
                let (from, to) = ("/data/new".into(), "/data/spare".into());
                self.io.submit(Token::wal(8), Op::Rename { from, to });
            }
            12 => self.io.submit(Token::wal(8), Op::SyncDir { path: "/data".into() }),
            20 => self.io.submit(Token::wal(8), Op::Remove { path: "/data/spare".into() }),
            28 => {
                let path = "/data/new".into();
                self.io.submit(Token::wal(8), Op::Open { path, mode: OpenMode::Create });
            }
            _ => {}
        }
        self.next
    }

    fn receive(&mut self, conn: ConnId) {
        let buffer = self.io.buffers().take(PAGE_BYTES);
        self.io.submit(Token::net(5), Op::Recv { conn, buffer, filled: 0 });
    }
}

struct Run {
    hash: u64,
    events: u64,
    faults: BTreeMap<&'static str, u64>,
    recovered: u64,
}

fn frame_length(stream: &[u8]) -> Option<usize> {
    stream.first().map(|n| usize::from(*n) + 1)
}

fn run(seed: u64, seconds: u64) -> Run {
    let world = World::new(seed);
    world.frames(&NODES, frame_length);
    world.set_plan(FaultPlan::draw(seed, &NODES));
    let mut workers: BTreeMap<u64, Worker> =
        NODES.into_iter().map(|id| (id, Worker::boot(&world, id))).collect();
    let mut recovered = 0;
    while let Some(step) = world.step_until(seconds * SECOND) {
        match step {
            Step::Node(id) => {
                if let Some(worker) = workers.get_mut(&id) {
                    let next = worker.turn();
                    world.sleep_until(id, Some(next));
                }
            }
            Step::Down(id) => {
                workers.remove(&id);
                world.alarm(world.now() + SECOND / 2, id);
            }
            Step::Alarm(id) => {
                let worker = Worker::boot(&world, id);
                recovered += u64::from(worker.recovered > 0);
                workers.insert(id, worker);
            }
        }
    }
    Run { hash: world.trace_hash(), events: world.events(), faults: world.fault_counts(), recovered }
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_not() {
    let mut hashes = BTreeSet::new();
    for seed in 0..12 {
        let (one, two) = (run(seed, 20), run(seed, 20));
        assert_eq!((one.hash, one.events), (two.hash, two.events), "seed {seed}");
        assert!(one.events > 1_000);
        hashes.insert(one.hash);
    }
    assert_eq!(hashes.len(), 12);
}

#[test]
fn a_campaign_fires_every_fault_that_is_drawn() {
    // Damage comes only when ordered, and a disk hangs only then.
    let ordered = ["misdirected write", "damage", "disk hang"];
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    let mut recovered = 0;
    for seed in 0..100 {
        let run = run(seed, 40);
        recovered += run.recovered;
        for (name, count) in run.faults {
            *total.entry(name).or_default() += count;
        }
    }
    assert!(recovered > 60);
    assert_eq!(total.len(), FAULT_NAMES.len());
    for (name, count) in total {
        assert_eq!(count == 0, ordered.contains(&name), "{name} fired {count} times");
    }
}

#[test]
fn a_node_that_blocks_runs_ahead_and_the_others_do_not_stand_still() {
    let world = World::new(3);
    let mut busy = world.node(1);
    let mut other = world.node(2);
    let mut out = Vec::new();
    let mut turns = 0;
    // Node 1 recovers for a second of its own time.
    let start = world.clock(1).now;
    busy.poll(Wait::Until(start.after(Duration::from_secs(1))), &mut out);
    assert!(world.now() < SECOND / 10, "the world has not moved");
    while let Some(step) = world.step_until(SECOND * 9 / 10) {
        assert_eq!(step, Step::Node(2), "node 1 is still at it");
        other.poll(Wait::No, &mut out);
        turns += 1;
        world.sleep_until(2, Some(other.clock().now.after(Duration::from_millis(10))));
    }
    assert!((50..=100).contains(&turns), "{turns}");
    world.sleep_until(1, Some(busy.clock().now));
    world.sleep_until(2, None);
    assert_eq!(world.step_until(2 * SECOND), Some(Step::Node(1)));
    assert!(world.now() >= SECOND);
}

#[test]
fn deadlines_alarms_and_wakes_give_turns() {
    let world = World::new(4);
    let mut io = world.node(1);
    let mut out = Vec::new();
    assert_eq!(world.step(), Some(Step::Node(1)), "a new process has a turn");
    io.poll(Wait::No, &mut out);
    let deadline = io.clock().now.after(Duration::from_millis(5));
    world.sleep_until(1, Some(deadline));
    world.alarm(1_000_000, 77);
    assert_eq!(world.step(), Some(Step::Alarm(77)));
    assert_eq!(world.now(), 1_000_000);
    assert_eq!(world.step(), Some(Step::Node(1)));
    io.poll(Wait::No, &mut out);
    assert!(io.clock().now >= deadline);
    assert_eq!(world.step(), None, "nothing will ever happen");
    world.wake(1);
    assert_eq!(world.step(), Some(Step::Node(1)));
}

#[test]
#[should_panic(expected = "waits for ever")]
fn waiting_for_ever_for_nothing_is_a_bug() {
    World::new(1).node(1).poll(Wait::Forever, &mut Vec::new());
}

#[test]
#[should_panic(expected = "still runs")]
fn a_node_has_one_process() {
    let world = World::new(1);
    let _first = world.node(1);
    world.node(1);
}

#[test]
fn clocks_drift_jump_and_survive_what_they_should() {
    let world = World::new(5);
    let mut io = world.node(1);
    let mut out = Vec::new();
    let start = world.clock(1);
    world.set_drift(1, 500);
    io.poll(Wait::Until(start.now.after(Duration::from_secs(1000))), &mut out);
    let wall_ms = io.clock().wall.0 - start.wall.0;
    assert!((999_000..1_001_000).contains(&wall_ms), "{wall_ms}");
    world.jump_wall(1, -3_600_000);
    io.poll(Wait::No, &mut out);
    assert!(io.clock().wall < start.wall);
    let before = io.clock().now;
    drop(io);
    let io = world.node(1);
    assert!(io.clock().now >= before, "the boot clock outlives a process");
    world.crash(1);
    drop(io);
    let io = world.node(1);
    assert!(io.clock().now < before, "and starts anew with the machine");
}

#[test]
fn the_log_tells_what_happened() {
    let world = World::new(6);
    world.keep_log(2);
    let mut io = world.node(1);
    Foreground::new(&mut io).run(Op::List { path: "/data".into() }).unwrap();
    let log = world.log();
    assert_eq!(log.len(), 2);
    assert!(log[0].contains("list") && log[1].contains("completed"), "{log:?}");
}
