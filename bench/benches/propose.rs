//! What a proposal costs the consensus core, from admission to commitment.
//!
//! `cargo bench -p tidelog-bench --bench propose`

#![allow(missing_docs)] // criterion's macros make a public function without one

use core::time::Duration;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidelog_consensus::{Config, Effects, Proposal, Replica, Restored};
use tidelog_types::{Clock, NodeId, PartitionId, RecordKind, Ticket, WallMs};

/// A replica that is its partition's only voter, and leads it.
fn leader() -> (Replica, Effects, Clock) {
    let config = Config {
        node: NodeId(1),
        partition: PartitionId(0),
        voters: vec![NodeId(1)],
        election_timeout: Duration::from_millis(500),
        stall_timeout: Duration::from_millis(1000),
        heartbeat: Duration::from_millis(50),
        in_flight_messages_max: 64,
        in_flight_bytes_max: 64 << 20,
        uncommitted_entries_max: 1 << 20,
        uncommitted_bytes_max: 1 << 40,
        session_expiry: core::time::Duration::from_secs(3600),
        seed: 1,
    };
    let mut clock = Clock { wall: WallMs(1_700_000_000_000), ..Clock::default() };
    let mut replica = Replica::new(config, Restored::new(), clock);
    let mut effects = Effects::default();
    while !(replica.is_leader() && replica.marks().high_water == replica.last().index) {
        clock.now = replica.deadline().max(clock.now.after(Duration::from_millis(1)));
        replica.tick(clock, &mut effects);
        settle(&mut replica, &mut effects, clock);
    }
    (replica, effects, clock)
}

/// Makes everything durable that was asked to be, and takes the effects.
fn settle(replica: &mut Replica, effects: &mut Effects, clock: Clock) {
    while let Some(ticket) = last_ticket(effects) {
        effects.append.clear();
        replica.durable(clock, ticket, effects);
    }
    effects.send_when_durable.clear();
    effects.send_now.clear();
    effects.committed = None;
}

fn last_ticket(effects: &Effects) -> Option<Ticket> {
    effects.append.last().map(|op| op.ticket)
}

fn propose(c: &mut Criterion) {
    const BATCH: u64 = 256;
    let (mut replica, mut effects, clock) = leader();
    let proposal = Proposal {
        kind: RecordKind::Data,
        session: None,
        session_key: None,
        record_bytes: 1088,
        payload_crc: 0,
    };
    let mut group = c.benchmark_group("propose");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("a batch of 256, then durable", |b| {
        b.iter(|| {
            for _ in 0..BATCH {
                replica
                    .propose(clock, proposal, &mut effects)
                    .expect("a leader with nothing uncommitted admits");
            }
            settle(&mut replica, &mut effects, clock);
        });
    });
    group.finish();
}

criterion_group!(benches, propose);
criterion_main!(benches);
