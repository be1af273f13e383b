//! The worked example of a replica's state in `docs/formats/checkpoint.md`: saving gives exactly these bytes, and a small decoder,
//! written from the document and sharing no code with the crate, reads from them what the document says.

#[path = "../../wal/tests/worked/mod.rs"]
mod worked;

use core::time::Duration;
use tidelog_consensus::{Config, DamagedRange, Harm, Replica, Restored};
use tidelog_types::{
    Clock, EntryMeta, Generation, Index, Monotonic, NodeId, PartitionId, Position, RecordKind, ReplicatedMs,
    Sequence, SessionId, SessionKey, SessionRef, WallMs,
};
use worked::{example, number, pinned};

const CHECKPOINT: &str = include_str!("../../../docs/formats/checkpoint.md");

fn entry(kind: RecordKind, index: u64, (prev, generation): (u64, u64)) -> EntryMeta {
    EntryMeta {
        position: Position::new(Index(index), Generation(generation)),
        prev_generation: Generation(prev),
        kind,
        session: None,
        session_key: None,
        session_expiry_ms: 0,
        log_start: None,
        timestamp: ReplicatedMs(1000 + index),
        record_bytes: 128,
        payload_crc: 0x1000 + u32::try_from(index).unwrap(),
    }
}

/// A log with something in every part of its state.
fn restored() -> Restored {
    let request = |sequence| Some(SessionRef { session: SessionId(2), sequence: Sequence(sequence) });
    let mut restored = Restored::new();
    restored.promise(Generation(1), None);
    restored.entry(&entry(RecordKind::Noop, 1, (0, 1)));
    let key = Some(SessionKey(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10));
    let open = EntryMeta { session_expiry_ms: 3_600_000, ..entry(RecordKind::SessionOpen, 2, (1, 1)) };
    restored.entry(&EntryMeta { session_key: key, ..open });
    restored.entry(&EntryMeta { session: request(1), ..entry(RecordKind::Data, 3, (1, 1)) });
    restored.promise(Generation(3), Some(NodeId(2)));
    restored.entry(&EntryMeta { session: request(2), ..entry(RecordKind::Data, 4, (1, 3)) });
    restored.high_water(Index(4));
    restored.snapshot_mark(Position::new(Index(3), Generation(1)));
    restored.low_water(Index(2));
    restored.entry(&EntryMeta { log_start: Some(Index(4)), ..entry(RecordKind::LogStart, 5, (3, 3)) });
    let lost =
        |first, last| DamagedRange { first: Index(first), last: Index(last), generation: Generation(3) };
    restored.damaged(lost(4, 4), Harm::Damaged);
    restored.damaged(lost(6, 7), Harm::Suspect);
    restored
}

#[test]
fn replica_state() {
    let config = Config {
        node: NodeId(1),
        partition: PartitionId(3),
        voters: vec![NodeId(1), NodeId(2), NodeId(3)],
        election_timeout: Duration::from_millis(100),
        stall_timeout: Duration::from_millis(200),
        heartbeat: Duration::from_millis(10),
        in_flight_messages_max: 1,
        in_flight_bytes_max: 1,
        uncommitted_entries_max: 1,
        uncommitted_bytes_max: 1,
        session_expiry: Duration::from_secs(3600),
        seed: 1,
    };
    let clock = Clock { now: Monotonic(1), wall: WallMs(1) };
    let save = |restored: Restored| {
        let mut bytes = Vec::new();
        Replica::new(config.clone(), restored, clock).save(&mut bytes);
        bytes
    };
    let saved = restored();
    assert_eq!(saved.check(), Ok(()));
    pinned(CHECKPOINT, 2, &save(saved));

    let bytes = example(CHECKPOINT, 2);
    let mut at = 0;
    let mut next = || {
        at += 8;
        number(&bytes, at - 8, 8)
    };
    let mut take = |count: usize| (0..count).map(|_| next()).collect::<Vec<u64>>();
    assert_eq!(take(3), [2, 3, 2], "version, generation, vote");
    assert_eq!(take(2), [4, 1005], "high-water mark, time");
    assert_eq!(take(4), [3, 1, 1, 7], "snapshot, base, last");
    assert_eq!(take(5), [2, 1, 1, 4, 3], "generations");
    assert_eq!(take(4), [0, 1, 5, 4], "log starts: none committed; entry 5 says 4");
    let history = take(5);
    assert_eq!(history[..2], [5, 1005], "the history's last entry and newest time");
    assert_eq!(history[3], 4, "the client's last entry");
    for sample in take(3 * history[4] as usize).chunks(3) {
        assert!(sample[0] <= 5 && sample[1] == 1000 + sample[0] && sample[2] <= history[2], "{sample:?}");
    }
    assert_eq!(take(5), [2, 4, 4, 6, 7], "damaged");
    assert_eq!(take(3), [1, 6, 7], "of these suspect");
    assert_eq!(take(3), [1, 6, 7], "contents unknown");
    assert_eq!(take(1), [0], "sessions: none forgotten");
    assert_eq!(take(11), [5, 1, 1001, 2, 1002, 3, 1003, 4, 1004, 5, 1005], "the log's stamps");
    assert_eq!(take(1), [1], "one session");
    assert_eq!(take(4), [2, 1, 0x090a_0b0c_0d0e_0f10, 0x0102_0304_0506_0708], "id, keyed, key");
    assert_eq!(take(1), [3_600_000], "it expires after so long");
    assert_eq!(take(7), [3, 2, 1002, 3, 1003, 4, 1004], "when it was used");
    assert_eq!(take(2), [0, 1], "its runs: none forgotten, one");
    assert_eq!(take(3), [1, 3, 2], "sequence 1 at index 3, two of them");
    assert_eq!(take(3), [2, 1 << 32 | 0x1003, 1 << 32 | 0x1004], "checksums of their payloads");
    assert_eq!(at, bytes.len());

    // The crate reads the same, and would write it again.
    let loaded = Restored::load(&bytes).expect("it is a replica's state");
    assert_eq!((loaded.last(), loaded.check()), (Position::new(Index(7), Generation(3)), Ok(())));
    assert_eq!(save(loaded), bytes);
}
