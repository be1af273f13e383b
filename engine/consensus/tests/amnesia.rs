//! Leaders that contradict what is committed here, bars, and generations that no election explains.

use core::time::Duration;
use tidelog_consensus::{
    Append, Asserting, Config, Disk, Effects, Free, Message, Replica, Restored, Role, Trouble,
};
use tidelog_types::{
    Clock, EntryMeta, Generation, Index, Monotonic, NodeId, PartitionId, Position, RecordKind, ReplicatedMs,
    WallMs,
};

const TIMEOUT_MS: u64 = 100;

fn replica() -> Replica {
    let config = Config {
        node: NodeId(1),
        partition: PartitionId(0),
        voters: vec![NodeId(1), NodeId(2), NodeId(3)],
        election_timeout: Duration::from_millis(TIMEOUT_MS),
        heartbeat: Duration::from_millis(10),
        stall_timeout: Duration::from_millis(200),
        session_expiry: Duration::from_secs(3600),
        in_flight_messages_max: 4,
        in_flight_bytes_max: 1 << 20,
        uncommitted_entries_max: 16,
        uncommitted_bytes_max: 1 << 20,
        seed: 1,
    };
    Replica::new(config, Restored::new(), Clock::default())
}

fn at(ms: u64) -> Clock {
    Clock { now: Monotonic(ms * 1_000_000), wall: WallMs(ms) }
}

fn position(index: u64, generation: u64) -> Position {
    Position::new(Index(index), Generation(generation))
}

fn entries(prev: Position, generation: u64, count: u64) -> Vec<EntryMeta> {
    let entry = |n: u64| EntryMeta {
        position: position(prev.index.0 + n, generation),
        prev_generation: if n == 1 { prev.generation } else { Generation(generation) },
        kind: RecordKind::Data,
        session: None,
        session_key: None,
        session_expiry_ms: 0,
        log_start: None,
        timestamp: ReplicatedMs(5),
        record_bytes: 64,
        payload_crc: 0,
    };
    (1..=count).map(entry).collect()
}

/// An append of node `from`.
fn append(
    replica: &mut Replica,
    from: u64,
    generation: u64,
    prev: Position,
    count: u64,
    mark: u64,
) -> Effects {
    let mut effects = Effects::default();
    let entries = entries(prev, generation, count);
    let high_water = Index(mark);
    let append = Append { generation: Generation(generation), prev, count, high_water, round: 1 };
    replica.step(at(1), NodeId(from), Message::Free(Free::Append(append)), &entries, &mut effects);
    effects
}

/// A voter's directory was put back from an older copy, and with it and the one that was away another leader was elected, which lacks what
/// was acknowledged. The old leader comes back: it used to end by a panic, and with it the last copy.
#[test]
fn a_leader_that_lacks_what_is_committed_here_is_not_followed_and_cuts_nothing() {
    let mut replica = replica();
    append(&mut replica, 2, 1, Position::ZERO, 5, 5);
    assert_eq!(replica.marks().high_water, Index(5));
    for prev in [position(2, 1), Position::ZERO, position(4, 1)] {
        let effects = append(&mut replica, 3, 2, prev, 3, 9);
        assert!(effects.append.is_empty() && effects.send_when_durable.is_empty(), "{effects:?}");
        assert_eq!((replica.marks().last, replica.generation_at(Index(5))), (Index(5), Some(Generation(1))));
        assert!(replica.is_contradicted());
    }
    // Once for each generation, not for each message; and the entry before an append says it as well.
    assert!(append(&mut replica, 3, 2, position(3, 1), 1, 0).trouble.is_empty());
    let effects = append(&mut replica, 3, 3, position(3, 2), 0, 0);
    let (leader, generation) = (NodeId(3), Generation(3));
    let contradicted = Trouble::Contradicted { leader, generation, index: Index(3), high_water: Index(5) };
    assert_eq!(effects.trouble, [contradicted]);
    // A leader that has it all is followed.
    let effects = append(&mut replica, 2, 4, position(5, 1), 1, 5);
    assert!(!replica.is_contradicted() && replica.marks().last == Index(6));
    let confirms = |(_, out): &(_, tidelog_consensus::Outgoing<Asserting>)| {
        matches!(out.message, Asserting::AppendReply { .. })
    };
    assert!(effects.send_when_durable.iter().any(confirms));
}

/// One reply of generation 2^62 used to leave a partition without a leader for good, on disk.
#[test]
fn one_message_does_not_use_up_the_generations() {
    let wall = WallMs(0);
    let huge = Generation(1 << 62);
    let messages = [
        Message::Asserting(Asserting::HeartbeatReply {
            generation: huge,
            round: 1,
            matched: Index(0),
            wall,
            disk: Disk::default(),
        }),
        Message::Asserting(Asserting::AppendReply { generation: huge, matched: Index(0), round: 1 }),
        Message::Asserting(Asserting::VoteReply { generation: huge, granted: false, wall }),
        Message::Asserting(Asserting::Vote { generation: huge, last: position(9, 9), handed_over: false }),
        Message::Free(Free::PreVoteReply { generation: huge, granted: false }),
        Message::Free(Free::Heartbeat { generation: huge, high_water: Index(0), round: 1 }),
    ];
    let mut replica = replica();
    for message in messages.iter().cycle().take(600) {
        let mut effects = Effects::default();
        replica.step(at(5), NodeId(2), message.clone(), &[], &mut effects);
        assert!(matches!(effects.trouble[..], [Trouble::Jump { .. }]));
        assert_eq!(replica.leader(), None, "what it says is not looked at");
    }
    assert_eq!(
        (replica.jumps(), replica.generation()),
        (600, Generation(1 << 20)),
        "one step in one time-out"
    );
}

/// Replicas that are further apart than a step meet all the same: the lower one takes a step in each election time-out.
#[test]
fn a_replica_that_was_away_for_millions_of_elections_catches_up() {
    let mut replica = replica();
    let far = 5 * (1u64 << 20) + 7;
    for round in 0..10 {
        let mut effects = Effects::default();
        let beat = Free::Heartbeat { generation: Generation(far), high_water: Index(0), round: 1 };
        replica.step(at(round * TIMEOUT_MS), NodeId(2), Message::Free(beat), &[], &mut effects);
        if let Some(op) = effects.append.last() {
            let issued = op.ticket;
            replica.durable(at(round * TIMEOUT_MS), issued, &mut effects);
        }
    }
    assert_eq!((replica.generation(), replica.leader()), (Generation(far), Some(NodeId(2))));
    assert_eq!(replica.role(), Role::Follower);
    assert_eq!(replica.jumps(), 5);
}

/// Only of what it lacks, and only by the leader that it follows, is a replica told that it lost something.
#[test]
fn a_bar_is_believed_only_where_it_is_so() {
    let lost = |replica: &mut Replica, from: u64, generation: u64, confirmed: Position| {
        let mut effects = Effects::default();
        let message = Free::Lost { generation: Generation(generation), confirmed };
        replica.step(at(2), NodeId(from), Message::Free(message), &[], &mut effects);
        effects.trouble
    };
    let mut replica = replica();
    append(&mut replica, 2, 3, Position::ZERO, 4, 2);
    for (from, generation, confirmed) in [
        (2, 3, position(4, 3)), // it has it
        (2, 3, position(1, 3)),
        (3, 3, position(7, 3)), // not its leader
        (2, 2, position(7, 2)), // not any more
        (2, 4, position(7, 4)), // not yet
        (2, 3, position(7, 9)), // no leader has entries of a later generation
    ] {
        assert_eq!(lost(&mut replica, from, generation, confirmed), [], "{confirmed:?}");
        assert!(!replica.is_barred());
    }
    let confirmed = position(7, 3);
    assert_eq!(lost(&mut replica, 2, 3, confirmed), [Trouble::Barred { confirmed }]);
    assert!(replica.is_barred());
    let effects = append(&mut replica, 2, 3, position(4, 3), 1, 0);
    assert!(effects.is_empty(), "it takes nothing and says nothing");
}
