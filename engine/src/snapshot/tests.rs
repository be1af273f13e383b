//! Snapshots of a single node over the simulated disk: taken, restored, lost at every boundary, damaged; and log starts.

mod faults;

use super::files;
use crate::config::Config;
use crate::error::Error;
use crate::inbox::{Inbox, inbox};
use crate::keep::Keep;
use crate::options::Options;
use crate::pins::PinFor;
use crate::request::{Level, Reply, Request, RequestError, Response};
use crate::shard::{Shard, Turn};
use crate::state_machine::{Applied, SnapshotView, StateMachine};
use crate::transport::NoTransport;
use bytes::Bytes;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tidelog_consensus::Retention;
use tidelog_io::Wait;
use tidelog_sim::{Moment, SimIo, World};
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::{Index, PartitionId, Sequence, SessionId, SessionKey, SessionRef};

const P: PartitionId = PartitionId(0);
const DIR: &str = "/data/node";

/// Everything applied, and how much of it in this life.
#[derive(Clone, Default)]
struct Kept {
    entries: Vec<(u64, Vec<u8>)>,
    applied_now: u64,
}

#[derive(Clone, Default)]
struct Machine(Arc<Mutex<Kept>>);

impl StateMachine for Machine {
    fn apply(&mut self, entry: Applied<'_>) {
        let mut kept = self.0.lock().unwrap();
        assert!(kept.entries.last().is_none_or(|(last, _)| *last < entry.index.0), "applied twice");
        kept.entries.push((entry.index.0, entry.payload.to_vec()));
        kept.applied_now += 1;
    }
    fn snapshot(&mut self) -> std::io::Result<SnapshotView> {
        let mut out = Vec::new();
        for (index, payload) in &self.0.lock().unwrap().entries {
            out.extend_from_slice(&index.to_le_bytes());
            out.extend_from_slice(&(payload.len() as u64).to_le_bytes());
            out.extend_from_slice(payload);
        }
        Ok(Box::new(Cursor::new(out)))
    }
    fn restore(&mut self, covered: Index, snapshot: &mut dyn Read) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        snapshot.read_to_end(&mut bytes)?;
        let (mut rest, mut entries) = (&bytes[..], Vec::new());
        while let Some((index, after)) = rest.split_first_chunk::<8>() {
            let (len, after) = after.split_first_chunk::<8>().ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let (payload, after) = after.split_at(u64::from_le_bytes(*len) as usize);
            entries.push((u64::from_le_bytes(*index), payload.to_vec()));
            rest = after;
        }
        assert!(entries.last().is_none_or(|(last, _)| *last <= covered.0));
        *self.0.lock().unwrap() = Kept { entries, applied_now: 0 };
        Ok(())
    }
}

fn options(keep: Keep) -> Options {
    // Without scrubbing: tests count the log's operations, and a fault at one of them is to be a write's.
    Options { segment_bytes: 8192 + (10 << 20), scrub_rate: 0, keep, ..Options::from(&Config::single(DIR)) }
}

fn keep() -> Keep {
    Keep {
        snapshot_every: u64::MAX,
        snapshot_interval: None,
        retention: Retention::default(),
        follower_bytes: 0,
        follower_age: Duration::ZERO,
        pin_bytes: u64::MAX,
        pin_age: Duration::from_secs(60),
    }
}

/// One process of the node.
struct Life {
    io: SimIo,
    shard: Shard,
    inbox: Inbox,
    machine: Machine,
    wait: Wait,
}

impl Life {
    /// Opens, and waits until everything is applied. None if the machine lost power meanwhile.
    fn open(world: &World, keep: Keep, machines: bool) -> Option<Result<Life, Error>> {
        let mut io = world.node(1);
        let (inbox, commands) = inbox(64, tidelog_io::Io::waker(&io), Arc::default());
        let machine = Machine::default();
        let own = machine.clone();
        let factory = Box::new(move |_| machines.then(|| Box::new(own.clone()) as Box<dyn StateMachine>));
        let shard = Shard::open(&mut io, options(keep), Box::new(NoTransport), commands, factory);
        if !io.is_alive() {
            return None;
        }
        let mut life = match shard {
            Ok(shard) => Life { io, shard, inbox, machine, wait: Wait::No },
            Err(error) => return Some(Err(error)),
        };
        while !life.shard.is_settled() {
            life.turn()?;
        }
        Some(Ok(life))
    }

    /// None if the machine lost power.
    fn turn(&mut self) -> Option<()> {
        match self.shard.turn(&mut self.io, self.wait) {
            _ if !self.io.is_alive() => return None,
            Ok(Turn::Until(at)) => self.wait = Wait::Until(at),
            Ok(Turn::Stopped) => panic!("nobody stopped it"),
            Err(error) => panic!("{error}"),
        }
        self.check();
        Some(())
    }

    /// Invariant 10, and what readers are shown.
    fn check(&self) {
        let Some(replica) = self.shard.replica(P) else { return };
        let covered = replica.snapshot().index.next().max(replica.log_start());
        assert!(replica.marks().low_water <= covered, "invariant 10: {:?}, {covered}", replica.marks());
    }

    fn ask(&mut self, request: Request) -> Option<Response> {
        let mut answer = self.inbox.request(request);
        loop {
            match answer.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(response) => return Some(response),
                Poll::Pending => self.turn()?,
            }
        }
    }

    fn append_in(&mut self, session: Option<SessionRef>, payload: &[u8]) -> Option<Index> {
        let payload = Bytes::copy_from_slice(payload);
        let payload_crc = crc32c::crc32c(&payload);
        match self.ask(Request::Append { partition: P, session, payload, payload_crc })? {
            Ok(Reply::Appended { position }) => Some(position.index),
            other => panic!("{other:?}"),
        }
    }

    fn append(&mut self, payload: &[u8]) -> Option<Index> {
        self.append_in(None, payload)
    }

    /// Begins a snapshot, appends meanwhile, and waits for it.
    fn snapshot(&mut self, acked: &mut Vec<u64>) -> Option<Index> {
        let mut answer = self.inbox.request(Request::Snapshot { partition: P });
        loop {
            match answer.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(Reply::Snapshot { covered, .. })) => return Some(covered.index),
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => {
                    let at = self.append(&payload(acked.len()))?;
                    acked.push(at.0);
                }
            }
        }
    }

    fn low_water(&self) -> u64 {
        self.shard.replica(P).map_or(0, |r| r.marks().low_water.0)
    }

    fn covered(&self) -> u64 {
        self.shard.replica(P).map_or(0, |r| r.snapshot().index.0)
    }

    fn read(&mut self, from: u64) -> Option<Response> {
        let from = Index(from);
        self.ask(Request::Read { partition: P, from, to: None, bytes_max: 1 << 20, level: Level::Local })
    }

    fn run_for(&mut self, time: Duration) -> Option<()> {
        let end = tidelog_io::Io::clock(&self.io).now.after(time);
        while tidelog_io::Io::clock(&self.io).now < end {
            self.turn()?;
        }
        Some(())
    }
}

fn payload(number: usize) -> Vec<u8> {
    let mut bytes = vec![number as u8; 3000];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes
}

fn append_all(life: &mut Life, acked: &mut Vec<u64>, count: usize) -> Option<()> {
    for _ in 0..count {
        let at = life.append(&payload(acked.len()))?;
        acked.push(at.0);
    }
    Some(())
}

fn snapshots(world: &World) -> Vec<String> {
    let dir = files::dir(Path::new(DIR), P).display().to_string();
    let of = |(path, _): (String, u64)| path.strip_prefix(&format!("{dir}/")).map(String::from);
    world.files(1).into_iter().filter_map(of).collect()
}

fn opened(world: &World, keep: Keep) -> Life {
    Life::open(world, keep, true).expect("it has power").expect("it opens")
}

fn refused(world: &World) -> String {
    match Life::open(world, keep(), true).expect("it has power") {
        Ok(_) => panic!("it opens"),
        Err(error) => error.to_string(),
    }
}

/// What must hold after any end of a life: all that was acknowledged is there, once, in order.
fn whole(life: &Life, acked: &[u64]) {
    let kept = life.machine.0.lock().unwrap();
    for (number, (at, entry)) in acked.iter().zip(&kept.entries).enumerate() {
        assert_eq!((*at, &payload(number)), (entry.0, &entry.1), "record {number}");
    }
    assert!(kept.entries.len() >= acked.len(), "{} of {} acknowledged", kept.entries.len(), acked.len());
    assert!(kept.entries.len() <= acked.len() + 1, "one append at a time");
}

#[test]
fn a_restart_begins_from_the_snapshot() {
    let world = World::new(1);
    let mut life = opened(&world, keep());
    let mut acked = Vec::new();
    append_all(&mut life, &mut acked, 60).unwrap();
    let session = match life.ask(Request::OpenSession { partition: P, key: SessionKey(7) }).unwrap() {
        Ok(Reply::SessionOpened { session, .. }) => session,
        other => panic!("{other:?}"),
    };
    let once = |session: SessionId, sequence| Some(SessionRef { session, sequence: Sequence(sequence) });
    let said = payload(acked.len());
    let first = life.append_in(once(session, 1), &said).unwrap();
    acked.push(first.0);
    let covered = life.snapshot(&mut acked).unwrap();
    assert!(covered >= first);
    assert_eq!((life.covered(), life.low_water()), (covered.0, covered.0 + 1));
    let behind = acked.iter().filter(|at| **at > covered.0).count() as u64;
    assert!(behind > 0, "appends went on meanwhile");
    let gone = life.read(covered.0).unwrap();
    assert_eq!(gone.unwrap_err(), RequestError::Truncated { first: covered.next() });
    assert!(life.read(covered.0 + 1).unwrap().is_ok());
    assert_eq!(snapshots(&world).len(), 1);

    world.crash(1);
    drop(life);
    let mut life = opened(&world, keep());
    whole(&life, &acked);
    assert_eq!((life.covered(), life.low_water()), (covered.0, covered.0 + 1));
    assert_eq!(
        life.machine.0.lock().unwrap().applied_now,
        behind,
        "what the snapshot holds is not applied again"
    );
    assert_eq!(life.append_in(once(session, 1), &said).unwrap(), first, "a retry below the log's start");
    let other = Bytes::from_static(b"another payload under the same sequence");
    let (of, payload_crc) = (once(session, 1), crc32c::crc32c(&other));
    let refused = life.ask(Request::Append { partition: P, session: of, payload: other, payload_crc });
    assert_eq!(refused.unwrap(), Err(RequestError::SequenceReused { index: first }));

    // Another one takes the place of the first.
    let next = life.snapshot(&mut acked).unwrap();
    assert!(next > covered);
    life.run_for(Duration::from_millis(50)).unwrap();
    assert_eq!(snapshots(&world), [files::name(life.shard.replica(P).unwrap().snapshot())]);
    life.run_for(Duration::from_millis(50)).unwrap();
    let same = life.ask(Request::Snapshot { partition: P }).unwrap();
    assert!(matches!(same, Ok(Reply::Snapshot { .. })), "{same:?}");
}

/// The script of the crash test. What it learned is kept also if the power goes.
#[derive(Default)]
struct Script {
    acked: Vec<u64>,
    covered: u64,
    low_water: u64,
    boundaries: (u64, u64),
}

impl Script {
    fn run(&mut self, world: &World, life: &mut Life) -> Option<()> {
        append_all(life, &mut self.acked, 40)?;
        self.covered = life.snapshot(&mut self.acked)?.0;
        append_all(life, &mut self.acked, 20)?;
        self.low_water = life.low_water();
        self.boundaries.0 = world.disk_ops(1);
        self.covered = life.snapshot(&mut self.acked)?.0;
        for _ in 0..20 {
            self.low_water = life.low_water();
            let at = life.append(&payload(self.acked.len()))?;
            self.acked.push(at.0);
        }
        self.low_water = life.low_water();
        self.boundaries.1 = world.disk_ops(1);
        Some(())
    }
}

#[test]
fn power_lost_at_any_boundary_leaves_the_old_snapshot_or_the_new_one() {
    let world = World::new(5);
    let mut life = opened(&world, keep());
    let mut script = Script::default();
    script.run(&world, &mut life).expect("it has power");
    let (from, to) = script.boundaries;
    assert!(to - from > 20, "{from}..{to}");
    let (mut old, mut new) = (0, 0);
    for boundary in from..=to {
        for moment in [Moment::Before, Moment::Inside, Moment::After] {
            let world = World::new(5);
            world.crash_at(1, boundary, moment);
            let mut life = opened(&world, keep());
            let mut script = Script::default();
            let ended = script.run(&world, &mut life);
            assert!(ended.is_none() || boundary == to, "{boundary} {moment:?}");
            if ended.is_some() {
                continue;
            }
            drop(life);
            // Once more in the middle of the recovery, then for good.
            world.crash_at(1, boundary % 7, moment);
            let again = Life::open(&world, keep(), true);
            if let Some(life) = again {
                let mut life = life.expect("it opens");
                while life.append(b"until the power goes").is_some() {}
                continue; // what was appended besides is not this test's
            }
            let mut life = opened(&world, keep());
            whole(&life, &script.acked);
            let what = format!("boundary {boundary} {moment:?}");
            assert!(life.covered() >= script.covered, "{what}: an answered snapshot counts");
            assert!(life.low_water() >= script.low_water, "{what}: low-water went back (invariant 2)");
            let marked = files::name(life.shard.replica(P).unwrap().snapshot());
            assert_eq!(snapshots(&world), [marked], "{what}: what is not marked is removed");
            if life.covered() > script.covered {
                new += 1
            } else {
                old += 1
            }
            // And it goes on from there.
            let mut acked: Vec<u64> =
                life.machine.0.lock().unwrap().entries.iter().map(|(at, _)| *at).collect();
            let covered = life.snapshot(&mut acked).expect("it has power");
            assert!(covered.0 > script.covered);
        }
    }
    assert!(old > 10 && new > 3, "both sides of the commit point were met: {old} {new}");
}

#[test]
fn damage_to_the_marked_file_is_named_and_never_served() {
    let world = World::new(3);
    let mut life = opened(&world, keep());
    append_all(&mut life, &mut Vec::new(), 60).unwrap();
    let covered = match life.ask(Request::Snapshot { partition: P }).unwrap() {
        Ok(Reply::Snapshot { covered, .. }) => covered,
        other => panic!("{other:?}"),
    };
    life.run_for(Duration::from_millis(20)).unwrap();
    world.crash(1);
    drop(life);
    let path = files::dir(Path::new(DIR), P).join(files::name(covered));
    let bytes = world.read_raw(1, &path).expect("the file").len();
    assert!(bytes > 40 * PAGE_BYTES);
    for page in 0..bytes / PAGE_BYTES {
        // The first byte of each page is said by something: a magic, a payload, a trailer.
        let at = (page * PAGE_BYTES) as u64;
        assert!(world.flip(1, &path, at));
        let why = refused(&world);
        assert!(why.contains("partition 0 is damaged") && why.contains(&files::name(covered)), "{why}");
        world.crash(1);
        assert!(world.flip(1, &path, at));
    }
    drop(opened(&world, keep()));
    world.crash(1);
    assert!(world.make_unreadable(1, &path, 8192, 512));
    assert!(refused(&world).contains("partition 0 is damaged"));
}

#[test]
fn a_plain_log_has_no_snapshot_and_is_shortened_by_size() {
    let world = World::new(4);
    let keep = Keep { retention: Retention { age: None, bytes: Some(50_000) }, ..keep() };
    let mut life = Life::open(&world, keep, false).unwrap().unwrap();
    match life.ask(Request::Snapshot { partition: P }).unwrap() {
        Err(RequestError::Invalid(why)) => assert!(why.contains("plain log"), "{why}"),
        other => panic!("{other:?}"),
    }
    append_all(&mut life, &mut Vec::new(), 100).unwrap();
    life.run_for(Duration::from_secs(3)).unwrap();
    let low = life.low_water();
    assert!((80..=90).contains(&low), "50 kB of 100 records of 3 kB: {low}");
    assert_eq!(life.read(1).unwrap().unwrap_err(), RequestError::Truncated { first: Index(low) });
    assert!(life.read(low).unwrap().is_ok());
    let last = life.append(b"x").unwrap();
    life.run_for(Duration::from_secs(20)).unwrap();
    let end = life.shard.replica(P).unwrap().marks().last;
    assert!(end.0 <= last.0 + 2, "an idle log makes no entries of its own: {last} {end}");
    let low = life.low_water();
    world.crash(1);
    drop(life);
    let mut life = Life::open(&world, keep, false).unwrap().unwrap();
    assert_eq!(life.low_water(), low);
    assert_eq!(life.read(1).unwrap().unwrap_err(), RequestError::Truncated { first: Index(low) });
    assert!(life.read(low).unwrap().is_ok());
}

#[test]
fn an_idle_log_expires_by_age() {
    let world = World::new(6);
    let age = Some(Duration::from_secs(60));
    let keep = Keep { retention: Retention { age, bytes: None }, ..keep() };
    let mut life = Life::open(&world, keep, false).unwrap().unwrap();
    append_all(&mut life, &mut Vec::new(), 10).unwrap();
    life.run_for(Duration::from_secs(50)).unwrap();
    assert_eq!(life.low_water(), 1, "not yet");
    life.run_for(Duration::from_secs(15)).unwrap();
    let low = life.low_water();
    assert!(low >= 11, "all of it, though nothing was appended since: {low}");
    let end = life.shard.replica(P).unwrap().marks().last;
    life.run_for(Duration::from_secs(300)).unwrap();
    let later = life.shard.replica(P).unwrap().marks().last;
    assert_eq!(later, end, "a log start is not let go by another");
}

#[test]
fn a_state_machine_keeps_what_no_snapshot_covers() {
    let world = World::new(7);
    let retention = Retention { age: None, bytes: Some(10_000) };
    let keep = Keep { retention, snapshot_every: 100_000, ..keep() };
    let mut life = opened(&world, keep);
    let mut acked = Vec::new();
    append_all(&mut life, &mut acked, 20).unwrap();
    life.run_for(Duration::from_secs(3)).unwrap();
    assert!(life.shard.replica(P).unwrap().log_start().0 > 10);
    assert_eq!(life.low_water(), 1, "without a snapshot a restart needs all of it");
    let gone = life.read(1).unwrap().unwrap_err();
    assert!(matches!(gone, RequestError::Truncated { .. }), "readers see the log start all the same: {gone}");
    // By its bytes it is asked for one, without anybody's command.
    append_all(&mut life, &mut acked, 60).unwrap();
    life.run_for(Duration::from_secs(3)).unwrap();
    assert!(life.covered() > 20 && life.low_water() == life.covered() + 1, "{}", life.covered());
    world.crash(1);
    drop(life);
    whole(&opened(&world, keep), &acked);
}

#[test]
fn a_pin_holds_the_log_that_a_snapshot_lets_go() {
    let world = World::new(8);
    let mut life = opened(&world, keep());
    let mut acked = Vec::new();
    append_all(&mut life, &mut acked, 20).unwrap();
    let marks = life.shard.shared_marks();
    let pins = &marks[&P].pins;
    let pin = pins.take(Index(5), PinFor::Backup).unwrap();
    life.snapshot(&mut acked).unwrap();
    life.run_for(Duration::from_secs(3)).unwrap();
    assert_eq!(life.low_water(), 5, "the snapshot lets more go");
    assert_eq!(life.shard.status().partitions[0].low_water_held_by, "backup");
    assert!(life.read(5).unwrap().is_ok());
    assert!(pin.advance(Index(9)));
    life.run_for(Duration::from_secs(3)).unwrap();
    assert_eq!((life.low_water(), pin.first()), (9, Some(Index(9))));
    assert!(matches!(pins.take(Index(8), PinFor::Reader), Err(RequestError::Truncated { first: Index(9) })));
    life.run_for(Duration::from_secs(70)).unwrap();
    assert_eq!(pin.first(), None, "it stood still for longer than it may");
    assert_eq!(life.low_water(), life.covered() + 1);
    assert_eq!(life.shard.status().partitions[0].low_water_held_by, "snapshot");
}
