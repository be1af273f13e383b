//! The format: the documented example read by a decoder written from the document alone, round trips, and
//! decoders on arbitrary bytes.

use bytes::Bytes;
use proptest::prelude::*;
use std::time::Duration;
use tidelog::formation::{Formed, Hello, Member};
use tidelog::request::{BusyReason, Level, Reply, Request, RequestError, Response, SessionScope};
use tidelog_consensus::{Append, Asserting, Disk, Free, Health, Message, Repair};
use tidelog_net::wire::{
    self, FrameHeader, FrameKind, PeerHello, Refusal, RefusalCode, ServerHello, WireError,
};
use tidelog_types::{
    ClusterId, Generation, Incarnation, Index, NodeId, PartitionId, Position, Sequence, SessionId,
    SessionKey, SessionRef, WallMs,
};

/// CRC32C bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
        }
        crc
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The bytes of the hex dumps under `heading` in the document.
fn documented(heading: &str) -> Vec<u8> {
    let doc = include_str!("../../docs/formats/wire.md");
    let section = doc.split(heading).nth(1).expect("the heading is there");
    let dump = section.split("```").nth(1).expect("a dump follows it");
    dump.lines()
        .filter(|l| !l.is_empty())
        .flat_map(|l| l.split_once(' ').expect("an offset, then bytes").1.split_whitespace())
        .map(|b| u8::from_str_radix(b, 16).expect("a byte in hex"))
        .collect()
}

#[test]
fn the_documented_append_request() {
    let bytes = documented("A plain append of the three bytes");
    assert_eq!(bytes.len(), 128);
    assert_eq!(u32_at(&bytes, 0), crc(&bytes[4..64]));
    assert_eq!(&bytes[4..8], b"TIDW");
    assert_eq!((bytes[8], bytes[9], &bytes[10..12]), (1, 32, &[0u8, 0][..]));
    assert_eq!((u32_at(&bytes, 12), u32_at(&bytes, 16), u32_at(&bytes, 20)), (0, 0, 3));
    let fields: Vec<u64> = (0..5).map(|i| u64_at(&bytes, 24 + 8 * i)).collect();
    assert_eq!(fields, [7, 5, 0, 0, u64::from(crc(b"abc"))]);
    assert_eq!(crc(b"abc"), 0x364b_3fb7);
    assert_eq!(&bytes[64..67], b"abc");
    assert!(bytes[67..].iter().all(|b| *b == 0));

    // The same by the product's decoder.
    let header = FrameHeader::decode(&bytes).unwrap().unwrap();
    assert_eq!((header.kind, header.frame_bytes()), (FrameKind::AppendRequest, 128));
    let call = wire::decode_request(&header, Bytes::from_static(b"abc")).unwrap();
    assert_eq!(call.number, 7);
    let Request::Append { partition: PartitionId(5), session: None, payload, payload_crc } = call.request
    else {
        panic!("{call:?}")
    };
    assert_eq!((&payload[..], payload_crc), (&b"abc"[..], 0x364b_3fb7));
    assert_eq!(wire::frame_length(&bytes), Some(128));
    assert_eq!(header.encode(), bytes[..64]);
}

#[test]
fn the_documented_vote() {
    let bytes = documented("The vote request");
    assert_eq!(bytes.len(), 128);
    assert_eq!(u32_at(&bytes, 0), crc(&bytes[4..64]));
    assert_eq!((bytes[8], bytes[9]), (1, 4));
    assert_eq!((u32_at(&bytes, 12), u32_at(&bytes, 16), u32_at(&bytes, 20)), (64, crc(&bytes[64..]), 0));
    assert_eq!((bytes[64], bytes[65]), (5, 0));
    let words: Vec<u64> = (0..7).map(|i| u64_at(&bytes, 72 + 8 * i)).collect();
    assert_eq!(words, [2, 9, 40, 8, 0, 0, 0], "partition, generation, last index and generation");

    let header = FrameHeader::decode(&bytes).unwrap().unwrap();
    header.check_meta(&bytes[64..]).unwrap();
    let last = Position::new(Index(40), Generation(8));
    let vote = Asserting::Vote { generation: Generation(9), last, handed_over: false };
    let decoded: Vec<_> = wire::decode_messages(&bytes[64..]).collect::<Result<_, _>>().unwrap();
    assert_eq!(wire::encode_message(PartitionId(2), &Message::Asserting(vote.clone())), bytes[64..]);
    assert_eq!(header.encode(), bytes[..64]);
    assert_eq!(decoded, [(PartitionId(2), Message::Asserting(vote))]);
}

#[test]
fn the_documented_fetch() {
    let bytes = documented("A node asks for the entries 12 to 15");
    assert_eq!(bytes.len(), 128);
    assert_eq!((bytes[9], bytes[64], bytes[65]), (4, 10, 0));
    let words: Vec<u64> = (0..7).map(|i| u64_at(&bytes, 72 + 8 * i)).collect();
    assert_eq!(words, [3, 6, 12, 15, 0, 0, 0], "partition, generation, first and last index");
    let fetch = Repair::Fetch { generation: Generation(6), first: Index(12), last: Index(15) };
    let decoded: Vec<_> = wire::decode_messages(&bytes[64..]).collect::<Result<_, _>>().unwrap();
    assert_eq!(decoded, [(PartitionId(3), Message::Repair(fetch))]);
    let header = FrameHeader::decode(&bytes).unwrap().unwrap();
    header.check_meta(&bytes[64..]).unwrap();
}

#[test]
fn every_flipped_bit_of_a_header_is_noticed() {
    let good = documented("A plain append of the three bytes");
    for bit in 0..64 * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(FrameHeader::decode(&bad).is_err(), "bit {bit}");
    }
    for len in 0..64 {
        assert_eq!(FrameHeader::decode(&good[..len]), Ok(None));
    }
}

/// A header as an attacker would make it: anything, with a right checksum.
fn forged(kind: u8, meta_len: u32, payload_len: u32) -> [u8; 64] {
    let mut header = [0u8; 64];
    header[4..8].copy_from_slice(b"TIDW");
    (header[8], header[9]) = (1, kind);
    header[12..16].copy_from_slice(&meta_len.to_le_bytes());
    header[20..24].copy_from_slice(&payload_len.to_le_bytes());
    let sum = crc(&header[4..]);
    header[..4].copy_from_slice(&sum.to_le_bytes());
    header
}

#[test]
fn lengths_over_the_limit_are_refused_by_the_header_alone() {
    for kind in (0..=255).filter(|k| FrameKind::from_code(*k).is_some()) {
        let (meta_max, payload_max) = FrameKind::from_code(kind).unwrap().limits();
        assert!(matches!(FrameHeader::decode(&forged(kind, meta_max, payload_max)), Ok(Some(_))));
        for (meta, payload) in
            [(meta_max + 1, 0), (0, payload_max + 1), (u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX)]
        {
            let refused = FrameHeader::decode(&forged(kind, meta, payload));
            assert!(matches!(refused, Err(WireError::TooLong { .. })), "{kind} {meta} {payload}");
        }
    }
    assert_eq!(FrameHeader::decode(&forged(99, 0, 0)), Err(WireError::Kind(99)));
}

prop_compose! {
    fn position()(index in any::<u64>(), generation in any::<u64>()) -> Position {
        Position::new(Index(index), Generation(generation))
    }
}

fn message() -> impl Strategy<Value = Message> {
    let generation = any::<u64>().prop_map(Generation);
    (0..13, generation, position(), any::<[u64; 4]>(), any::<bool>()).prop_map(
        |(kind, generation, last, [a, b, c, round], granted)| match kind {
            0 => Message::Free(Free::PreVote { generation, last }),
            1 => Message::Free(Free::PreVoteReply { generation, granted }),
            2 => Message::Free(Free::Append(Append {
                generation,
                prev: last,
                count: a,
                high_water: Index(b),
                round,
            })),
            3 => Message::Free(Free::Heartbeat { generation, high_water: Index(a), round }),
            4 => Message::Asserting(Asserting::Vote { generation, last, handed_over: granted }),
            5 => Message::Asserting(Asserting::VoteReply { generation, granted, wall: WallMs(c) }),
            6 => Message::Asserting(Asserting::AppendReply { generation, matched: Index(a), round }),
            7 => Message::Asserting(Asserting::AppendRefused {
                generation,
                prev: Index(a),
                hint: last,
                round,
                damaged: granted,
            }),
            8 => Message::Repair(Repair::Fetch { generation, first: Index(a), last: Index(b) }),
            9 => Message::Repair(Repair::Fetched { generation, first: Index(a), count: b }),
            11 => Message::Free(Free::HandOver { generation }),
            10 => Message::Repair(Repair::Missing {
                generation,
                first: Index(a),
                damaged: granted,
                promised: last.generation,
            }),
            _ => Message::Asserting(Asserting::HeartbeatReply {
                generation,
                round,
                matched: Index(b),
                wall: WallMs(c),
                disk: Disk { oldest_ms: a, health: if granted { Health::Stalled } else { Health::Behind } },
            }),
        },
    )
}

fn error() -> impl Strategy<Value = RequestError> {
    use RequestError as E;
    let text = "\\PC{0,40}";
    prop_oneof![
        (prop::option::of(1u64..), prop::option::of("[a-z0-9.:]{1,40}"))
            .prop_map(|(hint, address)| E::NotLeader { hint: hint.map(NodeId), address }),
        (any::<u32>(), prop_oneof![Just(BusyReason::Load), Just(BusyReason::DiskFull)])
            .prop_map(|(us, reason)| E::Busy { retry_after: Duration::from_micros(us.into()), reason }),
        Just(E::Fenced),
        any::<u64>().prop_map(|i| E::Truncated { first: Index(i) }),
        Just(E::Unknown),
        Just(E::SessionExpired),
        any::<u64>().prop_map(|s| E::SequenceGap { expected: Sequence(s) }),
        Just(E::SequenceTooOld),
        any::<u64>().prop_map(|i| E::SequenceReused { index: Index(i) }),
        any::<(bool, u64, u32)>().prop_map(|(connection, limit, ms)| E::SessionsFull {
            scope: if connection { SessionScope::Connection } else { SessionScope::Partition },
            limit,
            retry_after: Duration::from_millis(u64::from(ms)),
        }),
        any::<(u64, u64)>().prop_map(|(bytes, limit)| E::TooLarge { bytes, limit }),
        Just(E::Checksum),
        any::<u64>().prop_map(|p| E::NoSuchPartition(PartitionId(p))),
        any::<(u64, u64)>().prop_map(|(a, h)| E::Ahead { asked: Index(a), high_water: Index(h) }),
        text.prop_map(E::Unavailable),
        text.prop_map(E::Invalid),
    ]
}

fn small_response() -> impl Strategy<Value = Response> {
    prop_oneof![
        position().prop_map(|position| Ok(Reply::Appended { position })),
        (any::<u64>(), position())
            .prop_map(|(s, position)| Ok(Reply::SessionOpened { session: SessionId(s), position })),
        error().prop_map(Err),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let partition = any::<u64>().prop_map(PartitionId);
    let session = prop::option::of((1u64.., 1u64..));
    prop_oneof![
        (partition.clone(), session, prop::collection::vec(any::<u8>(), 0..200), any::<u32>()).prop_map(
            |(partition, session, payload, payload_crc)| Request::Append {
                partition,
                session: session.map(|(s, q)| SessionRef { session: SessionId(s), sequence: Sequence(q) }),
                payload: payload.into(),
                payload_crc,
            }
        ),
        (partition.clone(), any::<u128>())
            .prop_map(|(partition, key)| Request::OpenSession { partition, key: SessionKey(key) }),
        (partition.clone(), any::<u64>(), prop::option::of(1u64..), any::<u32>(), any::<bool>()).prop_map(
            |(partition, from, to, bytes_max, local)| Request::Read {
                partition,
                from: Index(from),
                to: to.map(Index),
                bytes_max,
                level: if local { Level::Local } else { Level::Linearizable },
            }
        ),
        (partition, 1u32..=256).prop_map(|(first, partitions_max)| Request::Status { first, partitions_max }),
        any::<u64>().prop_map(|p| Request::Snapshot { partition: PartitionId(p) }),
    ]
}

fn peer_hello() -> impl Strategy<Value = PeerHello> {
    let members = prop::option::of((1u64.., prop::collection::vec((1u64.., 1u64..), 1..9)));
    ("\\PC{0,40}", any::<[u64; 4]>(), any::<[u32; 8]>(), members).prop_map(|(name, w, h, formed)| PeerHello {
        hello: Hello {
            cluster_name: name,
            node: NodeId(w[0].max(1)),
            incarnation: Incarnation(w[1].max(1)),
            process: w[2].max(1),
            shard: h[0],
            shard_count: h[1],
            partitions: w[3],
            replication: h[2],
            key_hash: h[3],
            payload_bytes_max: h[4],
            feature_level: h[5],
            heartbeat_ms: h[6],
            barred: h[6] % 2 == 1,
            formed: formed.map(|(cluster, members)| Formed {
                cluster: ClusterId(cluster),
                members: members
                    .into_iter()
                    .map(|(n, i)| Member { node: NodeId(n), incarnation: Incarnation(i) })
                    .collect(),
            }),
        },
        attempt: w[3] ^ 5,
        to_shard: h[7],
        to_process: w[3] ^ 9,
    })
}

/// Header and metadata of the only frame in `bytes`.
fn frame(bytes: &[u8]) -> (FrameHeader, &[u8]) {
    let header = FrameHeader::decode(bytes).unwrap().unwrap();
    assert_eq!(header.frame_bytes(), bytes.len());
    header.check_meta(&bytes[64..64 + header.meta_padded()]).unwrap();
    (header, &bytes[64..64 + header.meta_len as usize])
}

proptest! {
    #[test]
    fn messages_round_trip(messages in prop::collection::vec((any::<u64>().prop_map(PartitionId), message()), 0..20)) {
        let meta: Vec<u8> = messages.iter().flat_map(|(p, m)| wire::encode_message(*p, m)).collect();
        let decoded: Vec<_> = wire::decode_messages(&meta).collect::<Result<_, _>>().unwrap();
        for (p, m) in &messages {
            let alone = wire::decode_append(&wire::encode_message(*p, m));
            prop_assert_eq!(alone.is_ok(), matches!(m, Message::Free(Free::Append(_))));
            let alone = wire::decode_fetched(&wire::encode_message(*p, m));
            prop_assert_eq!(alone.is_ok(), matches!(m, Message::Repair(Repair::Fetched { .. })));
        }
        prop_assert_eq!(decoded, messages);
    }

    #[test]
    fn messages_with_anything_else_set_are_refused(m in message(), at in 0usize..64, bits in 1u8..) {
        let slot = wire::encode_message(PartitionId(1), &m);
        let mut other = slot;
        other[at] ^= bits;
        // Either it is another message, which encodes to these bytes, or it is refused.
        for decoded in wire::decode_messages(&other).flatten() {
            prop_assert_eq!(wire::encode_message(decoded.0, &decoded.1), other);
        }
    }

    #[test]
    fn hellos_round_trip(hello in peer_hello(), more in prop::collection::vec(any::<u8>(), 0..9)) {
        let mut out = Vec::new();
        hello.put(&mut out);
        let (header, meta) = frame(&out);
        prop_assert_eq!(PeerHello::decode(&header, meta), Ok(hello.clone()));
        prop_assert_eq!(PeerHello::decode(&header, &[meta, &more].concat()), Ok(hello), "of a later version");
        for len in 0..meta.len() {
            prop_assert!(PeerHello::decode(&header, &meta[..len]).is_err());
        }
    }

    #[test]
    fn server_hellos_round_trip(
        words in any::<[u64; 3]>(), halves in any::<[u32; 3]>(), name in "\\PC{0,30}",
        nodes in prop::collection::vec((any::<u64>(), "[a-z0-9.:]{0,40}"), 0..9),
    ) {
        let hello = ServerHello {
            node: NodeId(words[0]),
            cluster: (words[1] != 0).then_some(words[1] as u32),
            partitions: words[2],
            shard: halves[0],
            shard_count: halves[1],
            in_flight_max: halves[2],
            cluster_name: name,
            nodes: nodes.into_iter().map(|(n, a)| (NodeId(n), a)).collect(),
        };
        let mut out = Vec::new();
        hello.put(&mut out);
        let (header, meta) = frame(&out);
        prop_assert_eq!(ServerHello::decode(&header, meta), Ok(hello));
        for len in 0..meta.len() {
            prop_assert!(ServerHello::decode(&header, &meta[..len]).is_err());
        }
    }

    #[test]
    fn requests_round_trip(number in any::<u64>(), request in request()) {
        let (header, payload) = wire::encode_request(number, &request);
        let encoded = header.encode();
        let header = FrameHeader::decode(&encoded).unwrap().unwrap();
        let call = wire::decode_request(&header, payload).unwrap();
        prop_assert_eq!(call.number, number);
        prop_assert_eq!(format!("{:?}", call.request), format!("{request:?}"));
    }

    #[test]
    fn answers_round_trip(list in prop::collection::vec((any::<u64>(), small_response()), 0..20)) {
        let mut meta = Vec::new();
        for (number, response) in &list {
            wire::encode_answer(&mut meta, *number, response);
        }
        let decoded: Vec<_> =
            wire::answers(&meta).map(|a| a.map(|a| (a.number, a.response))).collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(&decoded, &list);
        for len in 0..meta.len() {
            let cut = wire::answers(&meta[..len]).take_while(Result::is_ok).count();
            prop_assert!(cut <= list.len());
        }
    }

    #[test]
    fn decoders_take_any_bytes(
        code in any::<u8>(), fields in any::<[u64; 5]>(), small in any::<[u8; 5]>(),
        bytes in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        // Half of the time small numbers, which get further.
        let fields = if code & 1 == 0 { fields } else { small.map(u64::from) };
        let _ = FrameHeader::decode(&bytes);
        let _ = wire::frame_length(&bytes);
        let _ = wire::decode_messages(&bytes).count();
        let _ = wire::decode_append(&bytes);
        let _ = wire::decode_fetched(&bytes);
        let _ = wire::answers(&bytes).count();
        for kind in (0..=255).filter_map(FrameKind::from_code) {
            let header = FrameHeader::new(kind, fields);
            let _ = PeerHello::decode(&header, &bytes);
            let _ = ServerHello::decode(&header, &bytes);
            let _ = Refusal::decode(&header, &bytes);
            let _ = wire::decode_client_hello(&header, &bytes);
            let _ = wire::decode_status(&header, &bytes);
            let _ = wire::decode_request(&header, Bytes::from(bytes.clone()));
            let _ = wire::decode_records(&header, Bytes::from(bytes.clone()));
        }
    }
}

#[test]
fn refusals_are_read_back_and_unknown_codes_too() {
    for (code, shard, reason) in
        [(RefusalCode::WrongShard, 3, "this is shard 3"), (RefusalCode::TooMany, 0, "")]
    {
        let header = FrameHeader::new(FrameKind::Refused, [code as u64, shard, 0, 0, 0]);
        let refusal = Refusal { code: Some(code), shard, reason: reason.into() };
        assert_eq!(Refusal::decode(&header, reason.as_bytes()), Ok(refusal));
    }
    let later = FrameHeader::new(FrameKind::Refused, [77, 0, 0, 0, 0]);
    assert_eq!(Refusal::decode(&later, b"x").unwrap().code, None);
}

/// The request of before, without a count, gets as much as one answer holds; so does one that asks for more.
#[test]
fn a_status_without_a_count_or_with_a_large_one_is_bounded() {
    for (count, most) in [(0, 256), (1, 1), (256, 256), (257, 256), (u64::MAX, 256)] {
        let header = FrameHeader::new(FrameKind::Status, [7, 1000, count, 0, 0]);
        let call = wire::decode_request(&header, Bytes::new()).unwrap();
        let Request::Status { first, partitions_max } = call.request else { panic!("{call:?}") };
        assert_eq!((call.number, first, partitions_max), (7, PartitionId(1000), most));
    }
    let header = FrameHeader::new(FrameKind::Status, [7, 0, 0, 1, 0]);
    assert!(wire::decode_request(&header, Bytes::new()).is_err());
}
