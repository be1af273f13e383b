//! Connections that send garbage, too much, too slowly or nothing are closed, within bounds, and nobody else notices.

mod common;

use bytes::Bytes;
use common::*;
use proptest::prelude::*;
use std::time::Duration;
use tidelog::request::Request;
use tidelog_net::client::{ClientOptions, ClientRequest};
use tidelog_net::wire::{self, FrameHeader, FrameKind, PeerHello, Refusal, RefusalCode};
use tidelog_types::limits::PAYLOAD_BYTES_MAX;
use tidelog_types::{Index, PartitionId};

const STRANGER: u64 = 9;
const CLIENT: u64 = 8;

/// Three nodes, the first leads, a client that has been answered, and a stranger with connections.
fn cluster_with(stranger_connections: u64, limits: tidelog_net::Limits) -> Cluster {
    let mut cluster = Cluster::new(1);
    cluster.limits = limits;
    for node in 1..=3 {
        cluster.start(hello(node));
    }
    cluster.node(1).mood = Mood::Leads;
    cluster.plain_client(CLIENT);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    works(&mut cluster);
    cluster.stranger(STRANGER, stranger_connections);
    cluster
}

/// The client is answered and the channels stand.
fn works(cluster: &mut Cluster) {
    let before = cluster.done(CLIENT).len();
    cluster.ask(CLIENT, 1, ClientRequest::append(PartitionId(0), Bytes::from_static(b"fine")));
    assert!(cluster.run_until(SECOND, |c| c.done(CLIENT).len() == before + 1));
    assert!(cluster.done(CLIENT).last().unwrap().result.is_ok());
    assert!(cluster.all_up() && cluster.nodes.values().all(|n| n.downs == n.ups - 2));
}

/// Ends within `within`, having been told `code`, or nothing.
fn is_ended(cluster: &mut Cluster, n: u64, within: Duration, code: Option<RefusalCode>) {
    let ns = within.as_nanos() as u64;
    assert!(cluster.run_until(ns, |c| c.ended(STRANGER, n)), "closed within {within:?}");
    let said = &cluster.strangers[&STRANGER].conns[&n].1;
    let mut last = None;
    let mut rest = &said[..];
    while let Some(header) = FrameHeader::decode(rest).unwrap() {
        let meta = &rest[64..64 + header.meta_len as usize];
        last = (header.kind == FrameKind::Refused).then(|| Refusal::decode(&header, meta).unwrap());
        rest = &rest[header.frame_bytes()..];
    }
    assert_eq!(last.and_then(|r| r.code), code, "connection {n}");
    works(cluster);
    cluster.run(50 * MS);
    let node = &cluster.nodes[&1];
    assert!(node.net.connections() <= 3 + cluster.strangers[&STRANGER].conns.len(), "nothing is left of it");
}

fn client_hello() -> Vec<u8> {
    FrameHeader::new(FrameKind::ClientHello, [0; 5]).encode().to_vec()
}

/// A header with any lengths and a right checksum.
fn forged(kind: FrameKind, meta_len: u32, payload_len: u32) -> Vec<u8> {
    let mut header = FrameHeader::new(kind, [0; 5]).encode();
    header[12..16].copy_from_slice(&meta_len.to_le_bytes());
    header[20..24].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32c::crc32c(&header[4..]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    header.to_vec()
}

#[test]
fn silence_is_closed_after_its_time() {
    let limits = tidelog_net::Limits::default();
    let mut cluster = cluster_with(1, limits.clone());
    cluster.run((limits.first_frame_timeout - Duration::from_millis(300)).as_nanos() as u64);
    assert!(!cluster.ended(STRANGER, 1));
    is_ended(&mut cluster, 1, Duration::from_secs(1), None);
}

#[test]
fn garbage_is_told_so_and_closed() {
    let mut cluster = cluster_with(3, tidelog_net::Limits::default());
    cluster
        .stranger_mut(STRANGER)
        .say(1, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nUser-Agent: x\r\n\r\n");
    is_ended(&mut cluster, 1, Duration::from_secs(1), Some(RefusalCode::Protocol));
    let mut later = client_hello();
    later[8] = 2;
    cluster.stranger_mut(STRANGER).say(2, &later);
    is_ended(&mut cluster, 2, Duration::from_secs(1), Some(RefusalCode::Protocol));
    // Once a client, still held to the format.
    cluster.stranger_mut(STRANGER).say(3, &client_hello());
    cluster.run(100 * MS);
    cluster.stranger_mut(STRANGER).say(3, &[0x5a; 64]);
    is_ended(&mut cluster, 3, Duration::from_secs(1), Some(RefusalCode::Protocol));
    assert_eq!(cluster.nodes[&1].gone, 1, "the shard was told that the client is gone");
}

#[test]
fn lengths_over_the_limit_are_closed_without_waiting_for_them() {
    let mut cluster = cluster_with(4, tidelog_net::Limits::default());
    for (n, first) in [
        forged(FrameKind::ClientHello, u32::MAX, 0),
        forged(FrameKind::AppendRequest, 0, u32::MAX),
        forged(FrameKind::Append, 64, u32::MAX),
        forged(FrameKind::Fetched, 64, u32::MAX),
    ]
    .into_iter()
    .enumerate()
    {
        cluster.stranger_mut(STRANGER).say(n as u64 + 1, &first);
        is_ended(&mut cluster, n as u64 + 1, Duration::from_secs(1), Some(RefusalCode::Protocol));
    }
    let over = forged(FrameKind::AppendRequest, 0, PAYLOAD_BYTES_MAX as u32 + 1);
    cluster.stranger_mut(STRANGER).say(4, &[client_hello(), over].concat());
    is_ended(&mut cluster, 4, Duration::from_secs(1), Some(RefusalCode::Protocol));
}

#[test]
fn half_a_frame_and_one_byte_a_second_are_closed_after_their_time() {
    let mut cluster = cluster_with(3, tidelog_net::Limits::default());
    // Half a header; half a payload; a header a byte at a time.
    cluster.stranger_mut(STRANGER).say(1, &client_hello()[..30]);
    let half = [client_hello(), forged(FrameKind::AppendRequest, 0, 1 << 20), vec![1; 1000]].concat();
    cluster.stranger_mut(STRANGER).say(2, &half);
    cluster.stranger_mut(STRANGER).say(3, &client_hello());
    cluster.run(100 * MS);
    let slow = forged(FrameKind::AppendRequest, 0, 3);
    for byte in &slow[..20] {
        if cluster.ended(STRANGER, 3) {
            break;
        }
        cluster.stranger_mut(STRANGER).say(3, &[*byte]);
        cluster.run(SECOND);
    }
    for n in 1..=3 {
        assert!(cluster.ended(STRANGER, n), "connection {n}");
    }
    works(&mut cluster);
    assert_eq!(cluster.nodes[&1].net.connections(), 3);
    assert_eq!(cluster.nodes[&1].net.client_bytes(), 0);
}

#[test]
fn frames_that_do_not_belong_are_closed() {
    let mut cluster = cluster_with(5, tidelog_net::Limits::default());
    let keepalive = FrameHeader::new(FrameKind::Keepalive, [0; 5]).encode().to_vec();
    let answers = FrameHeader::new(FrameKind::Answers, [0; 5]).encode().to_vec();
    let mut messages = forged(FrameKind::Messages, 64, 0);
    messages.extend_from_slice(&[0; 64]);
    let crc = crc32c::crc32c(&messages[64..]);
    messages[16..20].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&messages[4..64]);
    messages[..4].copy_from_slice(&crc.to_le_bytes());
    let firsts = [
        keepalive,
        answers.clone(),
        messages,
        [client_hello(), answers].concat(),
        [client_hello(), client_hello()].concat(),
    ];
    for (n, first) in firsts.into_iter().enumerate() {
        cluster.stranger_mut(STRANGER).say(n as u64 + 1, &first);
        is_ended(&mut cluster, n as u64 + 1, Duration::from_secs(1), Some(RefusalCode::Protocol));
    }
}

#[test]
fn messages_before_the_channel_is_up_reach_nobody() {
    let mut cluster = cluster_with(1, tidelog_net::Limits::default());
    // A stranger that knows how to say hello, as a node that is not formed.
    let mut bytes = Vec::new();
    let unformed = tidelog::formation::Hello { formed: None, process: 5, ..hello(3) };
    cluster.kill(3);
    assert!(cluster.run_until(2 * SECOND, |c| c.nodes[&1].up == [2]));
    PeerHello { hello: unformed, attempt: 1, to_shard: 0, to_process: 0 }.put(&mut bytes);
    cluster.stranger_mut(STRANGER).say(1, &bytes);
    cluster.run(100 * MS);
    let slot = wire::encode_message(PartitionId(0), &heartbeat(1).message);
    let mut frame = forged(FrameKind::Messages, 64, 0);
    frame.extend_from_slice(&slot);
    let crc = crc32c::crc32c(&slot);
    frame[16..20].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32c::crc32c(&frame[4..64]);
    frame[..4].copy_from_slice(&crc.to_le_bytes());
    cluster.stranger_mut(STRANGER).say(1, &frame);
    assert!(cluster.run_until(SECOND, |c| c.ended(STRANGER, 1)));
    assert!(cluster.nodes[&1].heard.is_empty() && cluster.nodes[&1].up == [2]);
}

/// What was recorded of an earlier life of a peer, said again after this node was restarted, used to be a channel.
#[test]
fn a_handshake_of_an_earlier_life_makes_no_channel() {
    let mut cluster = cluster_with(2, tidelog_net::Limits::default());
    cluster.kill(3);
    assert!(cluster.run_until(2 * SECOND, |c| c.nodes[&1].up == [2]));
    let said = |to_process: u64| {
        let mut bytes = Vec::new();
        let hello = tidelog::formation::Hello { process: 5, ..hello(3) };
        PeerHello { hello, attempt: 1, to_shard: 0, to_process }.put(&mut bytes);
        bytes
    };
    let refused = |cluster: &mut Cluster, n: u64| {
        assert!(cluster.run_until(SECOND, |c| c.ended(STRANGER, n)));
        let said = &cluster.strangers[&STRANGER].conns[&n].1;
        assert!(said.windows(12).any(|bytes| bytes == b"earlier proc"), "connection {n}: {said:?}");
    };
    // The first hello of a dialler, and then the one that named node 1's process of then.
    cluster.stranger_mut(STRANGER).say(1, &said(0));
    cluster.run(100 * MS);
    assert!(!cluster.ended(STRANGER, 1));
    assert_eq!(cluster.nodes[&1].up, [2], "nothing is up before it names this process");
    assert!(cluster.nodes[&1].hellos.iter().all(|hello| hello.process != 5), "and nobody is told of it");
    cluster.stranger_mut(STRANGER).say(1, &said(77));
    refused(&mut cluster, 1);
    cluster.stranger_mut(STRANGER).say(2, &said(77));
    refused(&mut cluster, 2);
    assert_eq!(cluster.nodes[&1].up, [2]);
    // The peer itself is let in.
    cluster.start(hello(3));
    assert!(cluster.run_until(6 * SECOND, Cluster::all_up));
}

/// Neither a refusal nor the greeting of a client says the cluster's id or a directory's name.
#[test]
fn a_stranger_is_told_nothing_that_would_let_it_pass_for_a_node() {
    let mut cluster = cluster_with(3, tidelog_net::Limits::default());
    let other = |incarnation: u64, cluster: u64| {
        let mut hello = hello(3);
        hello.incarnation = tidelog_types::Incarnation(incarnation);
        hello.formed.as_mut().unwrap().cluster = tidelog_types::ClusterId(cluster);
        let mut bytes = Vec::new();
        PeerHello { hello, attempt: 1, to_shard: 0, to_process: 0 }.put(&mut bytes);
        bytes
    };
    cluster.stranger_mut(STRANGER).say(1, &other(999, 77));
    cluster.stranger_mut(STRANGER).say(2, &other(103, 78));
    cluster.stranger_mut(STRANGER).say(3, &client_hello());
    cluster.run(SECOND);
    for n in 1..=3 {
        let (_, heard, _) = &cluster.strangers[&STRANGER].conns[&n];
        assert!(!heard.is_empty());
        for secret in [77u64, 101, 102, 103] {
            assert!(!heard.windows(8).any(|bytes| bytes == secret.to_le_bytes()), "connection {n}");
        }
        let text = String::from_utf8_lossy(heard);
        assert!(!text.contains("4d") && !text.contains("0065"), "connection {n}: {text}");
    }
}

#[test]
fn a_flood_of_silent_connections_does_not_keep_others_out() {
    let limits = tidelog_net::Limits { fresh_connections_max: 20, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(0, limits);
    for round in 1..=5u64 {
        let address = cluster.address(1);
        for _ in 0..30 {
            cluster.stranger_mut(STRANGER).dial(address);
        }
        assert!(cluster.run_until(SECOND, |c| c.strangers[&STRANGER].conns.len() as u64 == 30 * round));
        // Those that were refused are kept for a moment, so that they learn it.
        cluster.run(600 * MS);
        assert!(cluster.nodes[&1].net.connections() <= 3 + 20, "{}", cluster.nodes[&1].net.connections());
        let id = 20 + round;
        cluster.plain_client(id);
        cluster.ask(id, 1, ClientRequest::append(PartitionId(0), Bytes::from_static(b"x")));
        assert!(cluster.run_until(SECOND, |c| c.done(id).len() == 1));
        assert!(cluster.done(id)[0].result.is_ok());
        cluster.world.kill(id);
        cluster.clients.remove(&id);
    }
    works(&mut cluster);
}

/// What a connection was told last, if that was a refusal.
fn refusal(cluster: &Cluster, n: u64) -> Option<Refusal> {
    let mut rest = &cluster.strangers[&STRANGER].conns[&n].1[..];
    let mut last = None;
    while let Some(header) = FrameHeader::decode(rest).unwrap() {
        let meta = &rest[64..64 + header.meta_len as usize];
        last = (header.kind == FrameKind::Refused).then(|| Refusal::decode(&header, meta).unwrap());
        rest = &rest[header.frame_bytes()..];
    }
    last
}

#[test]
fn of_many_that_connect_at_once_each_is_answered_or_refused() {
    let limits = tidelog_net::Limits { fresh_connections_max: 40, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(0, limits);
    let address = cluster.address(1);
    for _ in 0..100 {
        cluster.stranger_mut(STRANGER).dial(address);
    }
    assert!(cluster.run_until(SECOND, |c| c.strangers[&STRANGER].conns.len() == 100));
    cluster.run(100 * MS);
    for n in 1..=100 {
        if !cluster.ended(STRANGER, n) {
            cluster.stranger_mut(STRANGER).say(n, &client_hello());
        }
    }
    cluster.run(SECOND);
    let (mut greeted, mut refused) = (0, 0);
    for n in 1..=100 {
        match refusal(&cluster, n) {
            Some(why) => {
                assert_eq!(why.code, Some(RefusalCode::TooMany));
                assert!(why.reason.contains("limits.unspoken_connections"), "{}", why.reason);
                refused += 1;
            }
            None => {
                assert!(!cluster.strangers[&STRANGER].conns[&n].1.is_empty(), "{n} heard nothing");
                greeted += 1;
            }
        }
    }
    assert_eq!((greeted, refused), (40, 60));
    works(&mut cluster);
}

#[test]
fn the_client_that_is_idle_longest_makes_place_for_a_newcomer() {
    let limits = tidelog_net::Limits { client_connections_max: 4, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(6, limits);
    for n in 1..=3 {
        cluster.stranger_mut(STRANGER).say(n, &client_hello());
        cluster.run(100 * MS);
    }
    // All places are taken, and all clients were busy within the last second.
    cluster.stranger_mut(STRANGER).say(4, &client_hello());
    cluster.run(100 * MS);
    let reason = refusal(&cluster, 4).expect("no place is free").reason;
    assert!(reason.contains("none of them is idle"), "{reason}");
    cluster.run(1500 * MS);
    let keepalive = FrameHeader::new(FrameKind::Keepalive, [0; 5]).encode();
    let status =
        wire::encode_request(1, &Request::Status { first: tidelog_types::PartitionId(0), partitions_max: 1 })
            .0
            .encode();
    cluster.stranger_mut(STRANGER).say(1, &status);
    cluster.stranger_mut(STRANGER).say(2, &keepalive);
    works(&mut cluster);
    cluster.stranger_mut(STRANGER).say(5, &client_hello());
    cluster.run(SECOND);
    let reason = refusal(&cluster, 2).expect("it only says that it is there").reason;
    assert!(reason.contains("its place is needed"), "{reason}");
    let stays = |n: u64| refusal(&cluster, n).is_none() && !cluster.ended(STRANGER, n);
    assert!(stays(1) && stays(3) && stays(5));
    works(&mut cluster);
}

#[test]
fn uploads_that_do_not_come_keep_nobody_else_waiting() {
    let limits = tidelog_net::Limits { client_bytes_max: 4 << 20, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(60, limits.clone());
    // Sixty clients announce 2 MB each; some send nothing of it, some the half, none the rest.
    let announced = forged(FrameKind::AppendRequest, 0, PAYLOAD_BYTES_MAX as u32);
    for n in 1..=60u64 {
        let some = vec![1; [0, 70 << 10, 1 << 20][n as usize % 3]];
        cluster.stranger_mut(STRANGER).say(n, &[client_hello(), announced.clone(), some].concat());
    }
    for _ in 0..8 {
        cluster.run(500 * MS);
        let held = cluster.nodes[&1].net.client_bytes();
        assert!(held <= limits.client_bytes_max + PAYLOAD_BYTES_MAX + 256, "{held} bytes are held");
        works(&mut cluster);
    }
    // One that is not there any more is noticed though it is held.
    cluster.run(limits.frame_timeout.as_nanos() as u64);
    assert!((1..=60).all(|n| cluster.ended(STRANGER, n)), "half frames are closed, held or not");
    assert_eq!((cluster.nodes[&1].net.client_bytes(), cluster.nodes[&1].net.connections()), (0, 3));
    works(&mut cluster);
}

#[test]
fn slow_uploads_over_the_bound_all_arrive_the_oldest_first() {
    let limits = tidelog_net::Limits { client_bytes_max: 4 << 20, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(0, limits);
    let payload = Bytes::from(vec![7u8; PAYLOAD_BYTES_MAX]);
    for id in 20..30 {
        let address = cluster.address(1);
        let timeout = Duration::from_secs(60);
        cluster.client(id, ClientOptions { timeout, ..ClientOptions::new(vec![address]) });
        cluster.ask(id, 1, ClientRequest::append(PartitionId(0), payload.clone()));
    }
    let all = |c: &Cluster| (20..30).all(|id| c.done(id).len() == 1);
    assert!(cluster.run_until(30 * SECOND, all));
    assert!((20..30).all(|id| cluster.done(id)[0].result.is_ok()));
    assert_eq!(cluster.nodes[&1].net.client_bytes(), 0);
}

#[test]
fn clients_that_do_not_read_hold_up_the_others_for_seconds_at_most() {
    let limits = tidelog_net::Limits { client_bytes_max: 8 << 20, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(12, limits.clone());
    cluster.stranger_mut(STRANGER).reads = false;
    let (partition, from) = (PartitionId(0), Index(1));
    let read = Request::Read { partition, from, to: None, bytes_max: 1 << 20, level: Default::default() };
    let reads: Vec<u8> = (0..100).flat_map(|number| wire::encode_request(number, &read).0.encode()).collect();
    for n in 1..=12 {
        cluster.stranger_mut(STRANGER).say(n, &[client_hello(), reads.clone()].concat());
    }
    cluster.run(SECOND);
    works(&mut cluster);
    assert!(cluster.nodes[&1].net.client_bytes() <= limits.client_bytes_max);
    // One that reads gets its turn.
    let patience = Duration::from_secs(30);
    let wanted = ClientRequest::read(partition, from, None, Default::default()).within(patience);
    let before = cluster.done(CLIENT).len();
    cluster.ask(CLIENT, 7, wanted);
    let rounds = 5 * limits.pressed_send_timeout.as_nanos() as u64;
    assert!(cluster.run_until(rounds, |c| c.done(CLIENT).len() > before), "the read is answered");
    assert!(cluster.done(CLIENT).last().unwrap().result.is_ok());
    works(&mut cluster);
}

/// Reads that wait for memory, which others' reads on a disk that hangs have taken, or their own connection's: what is asked behind them on
/// the same connection is nevertheless done, and each of them is answered in the end.
#[test]
fn reads_that_wait_hold_up_nothing_behind_them() {
    let limits = tidelog_net::Limits { client_bytes_max: 8 << 20, ..tidelog_net::Limits::default() };
    for others in [0, 8] {
        let mut cluster = cluster_with(others, limits.clone());
        cluster.node(1).reads_hang = true;
        for n in 1..=others {
            let read = wire::encode_request(n, &READ).0.encode();
            cluster.stranger_mut(STRANGER).say(n, &[client_hello(), read.to_vec()].concat());
        }
        cluster.run(SECOND);
        let room = if others == 0 { 1 } else { 4 };
        let before = cluster.done(CLIENT).len();
        let read = ClientRequest::new(READ).within(Duration::from_secs(60));
        for n in 0..40 {
            cluster.ask(CLIENT, 100 + n, read.clone());
        }
        for _ in 0..20 {
            works(&mut cluster);
        }
        assert!(cluster.nodes[&1].unanswered.len() <= room, "reads keep to their bounds");
        assert!(cluster.nodes[&1].net.client_bytes() <= limits.client_bytes_max);
        cluster.node(1).answer_reads();
        assert!(cluster.run_until(30 * SECOND, |c| c.done(CLIENT).len() == before + 20 + 40), "{others}");
        assert!(cluster.done(CLIENT).iter().all(|done| done.result.is_ok()));
        cluster.run(SECOND);
        assert_eq!(cluster.nodes[&1].net.client_bytes(), 0);
    }
}

#[test]
fn a_connection_that_opens_session_after_session_is_told_its_bound() {
    let limits = tidelog_net::Limits { sessions_per_connection_max: 5, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(0, limits);
    for key in 0..8u128 {
        let open = ClientRequest::open_session(PartitionId(0), tidelog_types::SessionKey(key));
        cluster.ask(CLIENT, 100 + key as u64, open);
    }
    let before = cluster.done(CLIENT).len();
    assert!(cluster.run_until(SECOND, |c| c.done(CLIENT).len() == before + 8));
    let refused: Vec<_> = cluster.done(CLIENT).iter().filter_map(|d| d.result.as_ref().err()).collect();
    assert_eq!(refused.len(), 3);
    for error in refused {
        let said = error.to_string();
        assert!(said.contains("this connection has 5"), "{said}");
    }
}

#[test]
fn one_client_too_many_is_told_so() {
    let limits = tidelog_net::Limits { client_connections_max: 4, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(6, limits);
    for n in 1..=6 {
        cluster.stranger_mut(STRANGER).say(n, &client_hello());
        cluster.run(20 * MS);
    }
    cluster.run(2 * SECOND);
    let ended: Vec<u64> = (1..=6).filter(|n| cluster.ended(STRANGER, *n)).collect();
    assert_eq!(ended, [4, 5, 6], "one client was there before");
    is_ended(&mut cluster, 6, Duration::from_secs(1), Some(RefusalCode::TooMany));
}

#[test]
fn a_client_that_asks_and_does_not_read_costs_flat_memory() {
    let mut cluster = cluster_with(1, tidelog_net::Limits::default());
    cluster.stranger_mut(STRANGER).reads = false;
    let mut requests = client_hello();
    for number in 0..20_000 {
        let (partition, from) = (PartitionId(0), Index(1));
        let request =
            Request::Read { partition, from, to: None, bytes_max: 1 << 20, level: Default::default() };
        requests.extend_from_slice(&wire::encode_request(number, &request).0.encode());
    }
    cluster.stranger_mut(STRANGER).say(1, &requests);
    for _ in 0..20 {
        cluster.run(500 * MS);
        let limit = cluster.limits.request_bytes_in_flight_max + (2 << 20);
        assert!(cluster.nodes[&1].net.client_bytes() <= limit);
    }
    assert!(cluster.nodes[&1].asked < 50, "{} requests were read", cluster.nodes[&1].asked);
    works(&mut cluster);
    // In the end it is given up.
    cluster.run(70 * SECOND);
    assert_eq!(cluster.nodes[&1].net.client_bytes(), 0);
    assert_eq!(cluster.nodes[&1].net.connections(), 3);
    works(&mut cluster);
}

#[test]
fn all_clients_together_stay_within_the_total() {
    let limits = tidelog_net::Limits { client_bytes_max: 4 << 20, ..tidelog_net::Limits::default() };
    let mut cluster = cluster_with(0, limits);
    cluster.node(1).mood = Mood::Silent;
    for id in 20..30 {
        let address = cluster.address(1);
        cluster.client(
            id,
            ClientOptions { timeout: Duration::from_secs(60), ..ClientOptions::new(vec![address]) },
        );
        for tag in 0..100 {
            let payload = Bytes::from(vec![0u8; 60 << 10]);
            cluster.ask(id, tag, ClientRequest::append(PartitionId(0), payload));
        }
    }
    cluster.run(SECOND);
    let held = cluster.nodes[&1].net.client_bytes();
    assert!((3 << 20..=5 << 20).contains(&held), "{held}");
    // As answers leave, the others have their turn, and all are answered.
    for _ in 0..2000 {
        cluster.node(1).answer_all();
        cluster.run(20 * MS);
        if (20..30).all(|id| cluster.done(id).len() == 100) {
            break;
        }
    }
    assert!(
        (20..30).all(|id| cluster.done(id).len() == 100 && cluster.done(id).iter().all(|d| d.result.is_ok()))
    );
    assert_eq!(cluster.nodes[&1].net.client_bytes(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_bytes_do_harm(
        says in prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..500)), 1..8),
    ) {
        let mut cluster = cluster_with(1, tidelog_net::Limits::default());
        for (prefix, bytes) in says {
            let mut said = match prefix {
                0 => client_hello(),
                1 => forged(FrameKind::AppendRequest, 0, bytes.len() as u32),
                2 => forged(FrameKind::Read, 0, 0),
                3 => [client_hello(), forged(FrameKind::OpenSession, 0, 0)].concat(),
                4 => forged(FrameKind::Hello, bytes.len() as u32, 0),
                _ => vec![],
            };
            said.extend_from_slice(&bytes);
            if !cluster.ended(STRANGER, 1) && !said.is_empty() {
                cluster.stranger_mut(STRANGER).say(1, &said);
            }
            cluster.run(50 * MS);
        }
        cluster.run(12 * SECOND);
        works(&mut cluster);
        prop_assert!(cluster.nodes[&1].net.connections() <= 4);
    }
}
