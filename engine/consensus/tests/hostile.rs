//! Peers' messages are not trusted: whatever comes in, in whatever order, a replica answers, drops or counts it;
//! it does not panic, and its marks stay in order (invariant 17).
//!
//! What is at or below the high-water mark stays what it is, and no message takes the generation far.

use core::time::Duration;
use proptest::prelude::*;
use tidelog_consensus::{
    Append, Asserting, Config, Disk, Effects, Free, Health, Message, Proposal, Repair, Replica, Restored,
    Role,
};
use tidelog_types::{
    Clock, EntryMeta, Generation, Index, Monotonic, NodeId, PartitionId, Position, RecordKind, ReplicatedMs,
    Sequence, SessionId, SessionKey, SessionRef, Ticket, WallMs,
};

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![40 => 0u64..6, 1 => Just(1u64 << 62), 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn position() -> impl Strategy<Value = Position> {
    (number(), number()).prop_map(|(i, g)| Position::new(Index(i), Generation(g)))
}

fn entry() -> impl Strategy<Value = EntryMeta> {
    let kind = prop_oneof![
        4 => Just(RecordKind::Data),
        1 => Just(RecordKind::Noop),
        1 => Just(RecordKind::SessionOpen),
        1 => Just(RecordKind::Cut)
    ];
    let session = proptest::option::of((number(), number()));
    (position(), number(), kind, session, proptest::option::of(0u128..3), number()).prop_map(
        |(position, prev, kind, session, key, stamp)| EntryMeta {
            position,
            prev_generation: Generation(prev),
            kind,
            session: session.map(|(s, q)| SessionRef { session: SessionId(s), sequence: Sequence(q) }),
            session_key: key.map(SessionKey),
            session_expiry_ms: 0,
            log_start: None,
            timestamp: ReplicatedMs(stamp),
            record_bytes: 64,
            payload_crc: 0,
        },
    )
}

/// Entries that fit together, so that appends get past the first look.
fn fitting() -> impl Strategy<Value = (Append, Vec<EntryMeta>)> {
    (0u64..5, 0u64..4, 0u64..4, 0u64..4, number(), number()).prop_map(
        |(at, prev_generation, generation, count, round, mark)| {
            let prev_generation = if at == 0 { 0 } else { prev_generation.max(1).min(generation) };
            let entries: Vec<EntryMeta> = (1..=count)
                .map(|i| EntryMeta {
                    position: Position::new(Index(at + i), Generation(generation)),
                    prev_generation: Generation(if i == 1 { prev_generation } else { generation }),
                    kind: RecordKind::Data,
                    session: None,
                    session_key: None,
                    session_expiry_ms: 0,
                    log_start: None,
                    timestamp: ReplicatedMs(5),
                    record_bytes: 64,
                    payload_crc: 0,
                })
                .collect();
            let append = Append {
                generation: Generation(generation),
                prev: Position::new(Index(at), Generation(prev_generation)),
                count,
                high_water: Index(mark),
                round,
            };
            (append, entries)
        },
    )
}

fn disk() -> impl Strategy<Value = Disk> {
    let health = prop_oneof![Just(Health::Steady), Just(Health::Behind), Just(Health::Stalled)];
    (number(), health).prop_map(|(oldest_ms, health)| Disk { oldest_ms, health })
}

fn message() -> impl Strategy<Value = (Message, Vec<EntryMeta>)> {
    let g = || number().prop_map(Generation);
    let i = || number().prop_map(Index);
    let free = |m: Free| (Message::Free(m), Vec::new());
    let asserting = |m: Asserting| (Message::Asserting(m), Vec::new());
    prop_oneof![
        1 => (g(), position()).prop_map(move |(generation, last)| free(Free::PreVote { generation, last })),
        1 => (g(), any::<bool>()).prop_map(move |(generation, granted)| free(Free::PreVoteReply { generation, granted })),
        1 => (g(), number(), number()).prop_map(move |(generation, round, mark)| free(Free::Heartbeat { generation, high_water: Index(mark), round })),
        1 => g().prop_map(move |generation| free(Free::HandOver { generation })),
        1 => (g(), position(), any::<bool>()).prop_map(move |(generation, last, handed_over)| asserting(Asserting::Vote { generation, last, handed_over })),
        1 => (g(), any::<bool>(), number()).prop_map(move |(generation, granted, wall)| asserting(Asserting::VoteReply {
            generation, granted, wall: WallMs(wall)
        })),
        1 => (g(), i(), number()).prop_map(move |(generation, matched, round)| asserting(Asserting::AppendReply { generation, matched, round })),
        1 => (g(), i(), position(), number(), any::<bool>()).prop_map(move |(generation, prev, hint, round, damaged)| asserting(Asserting::AppendRefused {
            generation, prev, hint, round, damaged
        })),
        1 => (g(), position()).prop_map(move |(generation, confirmed)| free(Free::Lost { generation, confirmed })),
        1 => (g(), i(), i()).prop_map(|(generation, first, last)| (Message::Repair(Repair::Fetch { generation, first, last }), Vec::new())),
        1 => (g(), number(), i(), number(), disk()).prop_map(move |(generation, round, matched, wall, disk)| asserting(Asserting::HeartbeatReply {
            generation, round, matched, wall: WallMs(wall), disk
        })),
        4 => fitting().prop_map(|(append, entries)| (Message::Free(Free::Append(append)), entries)),
        2 => (g(), position(), number(), (number(), number()), proptest::collection::vec(entry(), 0..4)).prop_map(
            |(generation, prev, count, (round, mark), entries)| {
                let append = Append { generation, prev, count, high_water: Index(mark), round };
                (Message::Free(Free::Append(append)), entries)
            }
        ),
    ]
}

#[derive(Clone, Debug)]
enum Event {
    Message(u64, Message, Vec<EntryMeta>),
    Tick(u64),
    Durable,
    /// Node 2 really helps this one to lead.
    Elect,
    Propose,
    Read,
    Channel(u64, bool),
    /// What its shard says of its disk.
    Disk(Disk),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0u64..6, message()).prop_map(|(from, (m, e))| Event::Message(from, m, e)),
        2 => (0u64..250).prop_map(Event::Tick),
        3 => Just(Event::Durable),
        1 => Just(Event::Elect),
        2 => Just(Event::Propose),
        1 => Just(Event::Read),
        1 => (0u64..6, any::<bool>()).prop_map(|(node, up)| Event::Channel(node, up)),
        1 => disk().prop_map(Event::Disk),
    ]
}

fn replica() -> Replica {
    let config = Config {
        node: NodeId(1),
        partition: PartitionId(0),
        voters: vec![NodeId(1), NodeId(2), NodeId(3)],
        election_timeout: Duration::from_millis(100),
        stall_timeout: Duration::from_millis(200),
        heartbeat: Duration::from_millis(10),
        in_flight_messages_max: 4,
        in_flight_bytes_max: 1 << 20,
        uncommitted_entries_max: 16,
        uncommitted_bytes_max: 1 << 20,
        session_expiry: Duration::from_secs(3600),
        seed: 1,
    };
    Replica::new(config, Restored::new(), Clock::default())
}

fn play(events: Vec<Event>) -> Replica {
    let mut replica = replica();
    let mut clock = Clock::default();
    let mut issued = Ticket(0);
    // Generations of the entries at or below the mark.
    let mut committed: Vec<Generation> = Vec::new();
    for event in events {
        let mut effects = Effects::default();
        let generation = replica.generation();
        match event {
            Event::Message(from, message, entries) => {
                replica.step(clock, NodeId(from), message, &entries, &mut effects);
            }
            Event::Tick(ms) => {
                clock.now = Monotonic(clock.now.0 + ms * 1_000_000);
                replica.tick(clock, &mut effects);
            }
            Event::Durable => replica.durable(clock, issued, &mut effects),
            Event::Elect => {
                clock.now = Monotonic(clock.now.0 + 250_000_000);
                replica.tick(clock, &mut effects);
                let generation = replica.generation().next();
                let yes = Message::Free(Free::PreVoteReply { generation, granted: true });
                replica.step(clock, NodeId(2), yes, &[], &mut effects);
                issued = effects.append.last().map_or(issued, |op| op.ticket);
                replica.durable(clock, issued, &mut effects);
                let yes =
                    Message::Asserting(Asserting::VoteReply { generation, granted: true, wall: WallMs(7) });
                replica.step(clock, NodeId(2), yes, &[], &mut effects);
                effects.append.retain(|op| op.ticket > issued);
            }
            Event::Propose => {
                let proposal = Proposal {
                    kind: RecordKind::Data,
                    session: None,
                    session_key: None,
                    record_bytes: 128,
                    payload_crc: 0,
                };
                let _ = replica.propose(clock, proposal, &mut effects);
            }
            Event::Read => {
                let _ = replica.read_index(clock, 1, &mut effects);
            }
            Event::Disk(disk) => replica.note_disk(disk),
            Event::Channel(node, true) => replica.peer_up(clock, NodeId(node)),
            Event::Channel(node, false) => replica.peer_down(clock, NodeId(node)),
        }
        for op in &effects.append {
            assert!(op.ticket > issued, "tickets rise");
            issued = op.ticket;
        }
        for peer in replica.peers().to_vec() {
            let mut asked = 0;
            while replica.take_append(clock, peer, &mut |first, _, _| Some((first, 128))).is_some() {
                asked += 1;
                assert!(asked <= 5, "what is in flight is bounded");
            }
        }
        let marks = replica.marks();
        assert!(replica.generation() >= generation);
        assert!(marks.durable <= marks.last && marks.high_water <= marks.last, "{marks:?}");
        for index in 1..=marks.high_water.0 {
            let now = replica.generation_at(Index(index)).expect("nothing is let go");
            match committed.get(index as usize - 1) {
                Some(before) => assert_eq!(now, *before, "invariant 8: entry {index} was committed"),
                None => committed.push(now),
            }
        }
        assert!(
            replica.generation().0 <= generation.0 + (1 << 20) + 1,
            "no message takes the generations far"
        );
    }
    replica
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_a_peer_sends_stops_a_replica(events in proptest::collection::vec(event(), 1..60)) {
        play(events);
    }
}

/// That the events above get anywhere: from the same seeds, leaders, followers with entries, refused nonsense.
#[test]
fn the_events_reach_every_role() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut leaders, mut filled, mut malformed) = (0, 0, 0);
    for _ in 0..500 {
        let events = proptest::collection::vec(event(), 40..60).new_tree(&mut runner).unwrap().current();
        let replica = play(events);
        leaders += u32::from(replica.role() == Role::Leader);
        filled += u32::from(replica.marks().last > Index(0));
        malformed += u32::from(replica.malformed() > 0);
    }
    assert!(leaders > 50 && filled > 50 && malformed > 50, "{leaders} {filled} {malformed}");
}
