//! Clients against nodes: redirects, retries, what is unknown and what is refused, order, bounds (R4, R8).

mod common;

use bytes::Bytes;
use common::*;
use std::time::Duration;
use tidelog::request::{BusyReason, Level, Reply, Request, RequestError};
use tidelog_net::client::{ClientError, ClientOptions, ClientRequest, Target};
use tidelog_types::{Index, NodeId, PartitionId, Sequence, SessionId, SessionKey, SessionRef};

const CLIENT: u64 = 8;
const P: PartitionId = PartitionId(0);

fn payload(n: u64) -> Bytes {
    Bytes::from(format!("record {n}"))
}

fn once(sequence: u64) -> ClientRequest {
    let session = SessionRef { session: SessionId(4), sequence: Sequence(sequence) };
    ClientRequest::append_once(P, session, payload(sequence))
}

fn cluster(seed: u64, leader: u64) -> Cluster {
    let mut cluster = Cluster::of_three(seed);
    for node in 1..=3 {
        cluster.node(node).mood = if node == leader { Mood::Leads } else { Mood::Follows(Some(leader)) };
    }
    cluster.plain_client(CLIENT);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    cluster
}

fn all_done(cluster: &mut Cluster, count: usize, within: u64) {
    assert!(
        cluster.run_until(within, |c| c.done(CLIENT).len() >= count),
        "{} of {count} done",
        cluster.done(CLIENT).len()
    );
}

#[test]
fn the_leader_is_found_by_redirect_and_remembered() {
    let mut cluster = cluster(1, 3);
    for n in 0..100 {
        cluster.ask(CLIENT, n, ClientRequest::append(P, payload(n)));
        all_done(&mut cluster, n as usize + 1, SECOND);
    }
    assert!(cluster.done(CLIENT).iter().all(|d| matches!(d.result, Ok(Reply::Appended { .. }))));
    assert_eq!(cluster.nodes[&1].asked, 1, "one redirect");
    assert_eq!(cluster.nodes[&3].log.len(), 100);
    let core = &cluster.clients[&CLIENT].core;
    assert_eq!((core.nodes().len(), core.in_flight()), (3, 0));
}

#[test]
fn pipelined_requests_keep_their_order_and_share_sends() {
    let mut cluster = cluster(2, 1);
    for n in 0..5000 {
        cluster.ask(CLIENT, n, ClientRequest::append(P, payload(n)));
    }
    all_done(&mut cluster, 5000, 5 * SECOND);
    let log: Vec<Bytes> = cluster.nodes[&1].log.iter().map(|(_, p)| p.clone()).collect();
    assert!(log.into_iter().eq((0..5000).map(payload)));
    assert_eq!(cluster.nodes[&1].net.client_bytes(), 0);
}

#[test]
fn no_leader_is_waited_for_and_its_election_noticed() {
    for seed in 0..10 {
        let mut cluster = cluster(seed, 1);
        for node in 1..=3 {
            cluster.node(node).mood = Mood::Follows(None);
        }
        for n in 0..10 {
            cluster.ask(CLIENT, n, ClientRequest::append(P, payload(n)));
        }
        cluster.run(2 * SECOND);
        assert!(cluster.done(CLIENT).is_empty());
        let asked: u64 = cluster.nodes.values().map(|n| n.asked).sum();
        assert!((30..1000).contains(&asked), "backed off, and still trying: {asked}");
        cluster.node(2).mood = Mood::Leads;
        all_done(&mut cluster, 10, SECOND);
        assert!(cluster.done(CLIENT).iter().all(|d| d.result.is_ok()));
    }
}

#[test]
fn followers_that_name_each_other_do_not_make_a_storm() {
    let mut cluster = cluster(3, 1);
    for (node, other) in [(1, 2), (2, 3), (3, 1)] {
        cluster.node(node).mood = Mood::Follows(Some(other));
    }
    let options = ClientRequest::append(P, payload(1)).within(Duration::from_secs(3));
    cluster.ask(CLIENT, 1, options);
    all_done(&mut cluster, 1, 4 * SECOND);
    assert!(matches!(cluster.done(CLIENT)[0].result, Err(ClientError::Unavailable { .. })));
    let asked: u64 = cluster.nodes.values().map(|n| n.asked).sum();
    assert!(asked < 200, "{asked}");
}

#[test]
fn busy_is_retried_and_a_session_keeps_its_order_by_it() {
    for seed in 0..10 {
        let mut cluster = cluster(seed, 1);
        cluster.node(1).mood = Mood::BusyEvery(7);
        for n in 1..=500 {
            cluster.ask(CLIENT, n, once(n));
        }
        all_done(&mut cluster, 500, 5 * SECOND);
        for done in cluster.done(CLIENT) {
            let Ok(Reply::Appended { position }) = &done.result else { panic!("{done:?}") };
            assert_eq!(position.index, Index(done.tag));
        }
        assert_eq!(cluster.nodes[&1].log.len(), 500);
    }
}

/// A node that is busy to the end says why, and the client says it as a type.
#[test]
fn busy_to_the_end_is_told_with_its_reason() {
    let mut cluster = cluster(4, 1);
    cluster.node(1).mood = Mood::BusyEvery(1);
    cluster.ask(CLIENT, 1, ClientRequest::append(P, payload(1)).within(Duration::from_secs(1)));
    all_done(&mut cluster, 1, 2 * SECOND);
    let Err(error) = &cluster.done(CLIENT)[0].result else { panic!("it was refused") };
    assert!(matches!(error, ClientError::Busy { reason: BusyReason::DiskFull, .. }), "{error:?}");
    assert!(error.to_string().contains("busy: the disk is full"), "{error}");
    assert!(cluster.nodes[&1].log.is_empty());
}

#[test]
fn a_gap_that_nothing_of_this_client_fills_is_said() {
    let mut cluster = cluster(4, 1);
    cluster.ask(CLIENT, 1, once(5));
    all_done(&mut cluster, 1, SECOND);
    let gap = ClientError::Refused(RequestError::SequenceGap { expected: Sequence(1) });
    assert_eq!(cluster.done(CLIENT)[0].result, Err(gap));
}

#[test]
fn a_broken_connection_makes_plain_appends_unknown_and_sessions_are_retried() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 1);
        // The connection is there, the node takes requests and dies before it answers.
        cluster.ask(CLIENT, 900, ClientRequest::append(P, payload(900)));
        all_done(&mut cluster, 1, SECOND);
        cluster.node(1).mood = Mood::Silent;
        cluster.ask(CLIENT, 1000, ClientRequest::append(P, payload(1000)));
        for n in 1..=20 {
            cluster.ask(CLIENT, n, once(n));
        }
        cluster.run(200 * MS);
        assert_eq!(cluster.nodes[&1].unanswered.len(), 21);
        cluster.kill(1);
        cluster.node(2).mood = Mood::Leads;
        cluster.node(3).mood = Mood::Follows(Some(2));
        all_done(&mut cluster, 22, 4 * SECOND);
        for done in &cluster.done(CLIENT)[1..] {
            if done.tag == 1000 {
                assert!(matches!(done.result, Err(ClientError::Unknown { .. })), "{done:?}");
            } else {
                let Ok(Reply::Appended { position }) = &done.result else { panic!("{done:?}") };
                assert_eq!(position.index, Index(done.tag), "in order, once");
            }
        }
        assert_eq!(cluster.nodes[&2].log.len(), 20, "the plain append was not sent again");
    }
}

#[test]
fn a_leader_that_steps_down_says_unknown() {
    let mut cluster = cluster(5, 1);
    cluster.node(1).mood = Mood::Unknown;
    cluster.ask(CLIENT, 1, ClientRequest::append(P, payload(1)));
    cluster.ask(CLIENT, 2, once(1));
    all_done(&mut cluster, 1, SECOND);
    assert!(matches!(cluster.done(CLIENT)[0].result, Err(ClientError::Unknown { .. })));
    cluster.node(1).mood = Mood::Follows(Some(2));
    cluster.node(2).mood = Mood::Leads;
    all_done(&mut cluster, 2, 2 * SECOND);
    assert!(cluster.done(CLIENT)[1].result.is_ok(), "the session's retry tells");
    assert_eq!(cluster.nodes[&2].log.len(), 1);
}

/// The first try got no answer and may be in the log of a leader that comes back; what a later try is told is not about it.
#[test]
fn an_append_with_an_unanswered_try_stays_unknown_whatever_a_later_try_is_told() {
    let mut cluster = cluster(5, 1);
    cluster.node(1).mood = Mood::Unknown;
    cluster.ask(CLIENT, 1, once(3));
    cluster.run(200 * MS);
    assert!(cluster.done(CLIENT).is_empty(), "it asks again");
    cluster.node(1).mood = Mood::Follows(Some(2));
    cluster.node(2).mood = Mood::Leads;
    all_done(&mut cluster, 1, 2 * SECOND);
    let Err(ClientError::Unknown { why }) = &cluster.done(CLIENT)[0].result else {
        panic!("{:?}", cluster.done(CLIENT));
    };
    assert!(why.contains("sequence gap"), "it says what it was told: {why}");
}

/// Whatever a later try is refused with: the first one may be in the log. Only that its sequence has another payload there is about the first try too.
#[test]
fn a_refusal_says_nothing_of_an_earlier_try_without_an_answer() {
    let refusals = [
        RequestError::SessionExpired,
        RequestError::SequenceTooOld,
        RequestError::Fenced,
        RequestError::NoSuchPartition(P),
        RequestError::Invalid("a reason".into()),
        RequestError::SequenceReused { index: Index(7) },
    ];
    for (seed, error) in (20..).zip(refusals) {
        for ambiguous in [false, true] {
            let mut cluster = cluster(seed, 1);
            if ambiguous {
                cluster.node(1).mood = Mood::Unknown;
                cluster.ask(CLIENT, 1, once(1));
                assert!(
                    cluster.run_until(SECOND, |c| c.nodes[&1].asked > 0) && cluster.done(CLIENT).is_empty()
                );
                cluster.node(1).mood = Mood::Follows(Some(2));
                cluster.node(2).mood = Mood::Refuses(error.clone());
            } else {
                cluster.node(1).mood = Mood::Refuses(error.clone());
                cluster.ask(CLIENT, 1, once(1));
            }
            all_done(&mut cluster, 1, 3 * SECOND);
            let known = !ambiguous || matches!(error, RequestError::SequenceReused { .. });
            match &cluster.done(CLIENT)[0].result {
                Err(ClientError::Refused(told)) if known => assert_eq!(*told, error),
                Err(ClientError::Unknown { .. }) if !known => {}
                other => panic!("{error:?}, asked before: {ambiguous}: {other:?}"),
            }
        }
    }
}

#[test]
fn what_was_sent_and_never_answered_is_unknown_and_what_was_not_sent_is_not() {
    let mut cluster = cluster(6, 1);
    cluster.node(1).mood = Mood::Silent;
    let short = Duration::from_millis(700);
    cluster.ask(CLIENT, 1, ClientRequest::append(P, payload(1)).within(short));
    cluster.ask(CLIENT, 2, once(1).within(short));
    all_done(&mut cluster, 2, SECOND);
    for done in cluster.done(CLIENT) {
        assert!(matches!(done.result, Err(ClientError::Unknown { .. })), "{done:?}");
    }
    // Late answers change nothing.
    cluster.node(1).answer_all();
    cluster.run(500 * MS);
    assert_eq!(cluster.done(CLIENT).len(), 2);

    // Nobody is there to send to.
    for node in 1..=3 {
        cluster.kill(node);
    }
    cluster.run(SECOND);
    cluster.ask(CLIENT, 3, ClientRequest::append(P, payload(3)).within(short));
    cluster.ask(CLIENT, 4, once(2).within(short));
    cluster.ask(CLIENT, 5, ClientRequest::read(P, Index(1), None, Level::Linearizable).within(short));
    all_done(&mut cluster, 5, 2 * SECOND);
    for done in &cluster.done(CLIENT)[2..] {
        assert!(matches!(done.result, Err(ClientError::Unavailable { .. })), "{done:?}");
    }
    assert_eq!(cluster.clients[&CLIENT].core.in_flight(), 0);
}

#[test]
fn a_node_that_falls_silent_is_left_before_the_request_s_time_is_up() {
    let mut cluster = cluster(7, 1);
    cluster.ask(CLIENT, 0, once(1));
    all_done(&mut cluster, 1, SECOND);
    cluster.world.pause(1, Duration::from_secs(60));
    cluster.node(2).mood = Mood::Leads;
    cluster.node(3).mood = Mood::Follows(Some(2));
    cluster.ask(CLIENT, 1, once(1).within(Duration::from_secs(10)));
    cluster.ask(CLIENT, 2, ClientRequest::append(P, payload(1)).within(Duration::from_secs(10)));
    all_done(&mut cluster, 3, 5 * SECOND);
    let of = |tag| cluster.done(CLIENT).iter().find(|d| d.tag == tag).unwrap().result.clone();
    assert!(of(1).is_ok());
    assert!(matches!(of(2), Err(ClientError::Unknown { .. })));
}

#[test]
fn a_slow_quorum_is_not_a_dead_node() {
    let mut cluster = cluster(8, 1);
    cluster.node(1).mood = Mood::Silent;
    cluster.ask(CLIENT, 1, ClientRequest::append(P, payload(1)).within(Duration::from_secs(30)));
    cluster.run(20 * SECOND);
    assert!(cluster.done(CLIENT).is_empty(), "the node says that it is there");
    cluster.node(1).answer_all();
    all_done(&mut cluster, 1, SECOND);
    assert!(cluster.done(CLIENT)[0].result.is_ok());
}

#[test]
fn named_nodes_answer_for_themselves() {
    let mut cluster = cluster(9, 1);
    let read = |level, target| ClientRequest::read(P, Index(3), None, level).at(target);
    cluster.ask(CLIENT, 1, read(Level::Local, Target::Node(NodeId(3))));
    cluster.ask(CLIENT, 2, ClientRequest::status(Target::Node(NodeId(2))));
    let address = cluster.address(3);
    cluster.ask(CLIENT, 3, ClientRequest::status(Target::Address(address)));
    // Long before its time is up, and the same once the nodes are known.
    let nobody = || ClientRequest::status(Target::Node(NodeId(17))).within(Duration::from_secs(60));
    cluster.ask(CLIENT, 4, nobody());
    cluster.ask(CLIENT, 5, ClientRequest::status(Target::Leader));
    all_done(&mut cluster, 5, 3 * SECOND);
    let of = |tag| cluster.done(CLIENT).iter().find(|d| d.tag == tag).unwrap().result.clone();
    let Ok(Reply::Records(records)) = of(1) else { panic!("{:?}", of(1)) };
    assert_eq!((records.next, records.records.len(), records.records[0].len()), (Index(4), 1, 1 << 20));
    let node = |reply| match reply {
        Ok(Reply::Status(status)) => status.node,
        other => panic!("{other:?}"),
    };
    assert_eq!((node(of(2)), node(of(3))), (2, 3));
    let Err(ClientError::Refused(RequestError::Invalid(why))) = of(4) else { panic!("{:?}", of(4)) };
    assert!(why.contains("there is no node 17 in this cluster, its nodes are 1, 2, 3"), "{why}");
    assert!(matches!(of(5), Err(ClientError::Refused(RequestError::Invalid(_)))));
    assert_eq!(cluster.nodes[&3].asked, 2);
    cluster.ask(CLIENT, 6, nobody());
    let of = |tag| cluster.done(CLIENT).iter().find(|d| d.tag == tag).map(|d| d.result.clone());
    assert_eq!(of(6), of(4));
}

/// The search for a node goes on past addresses that refuse, however soon those may be tried again.
#[test]
fn a_named_node_is_found_behind_dead_ones() {
    let mut cluster = cluster(6, 3);
    cluster.kill(1);
    cluster.kill(2);
    let options = ClientOptions::new((1..=3).map(|n| cluster.world.address(n, PORT)).collect());
    cluster.client(CLIENT + 1, ClientOptions { cluster: "test".into(), ..options });
    let read = ClientRequest::read(P, Index(1), None, Level::Local).at(Target::Node(NodeId(3)));
    cluster.ask(CLIENT + 1, 1, read.within(Duration::from_millis(1500)));
    assert!(cluster.run_until(2 * SECOND, |c| !c.done(CLIENT + 1).is_empty()));
    assert!(cluster.done(CLIENT + 1)[0].result.is_ok(), "{:?}", cluster.done(CLIENT + 1));
}

#[test]
fn sessions_are_opened_and_too_large_payloads_never_sent() {
    let mut cluster = cluster(10, 2);
    cluster.ask(CLIENT, 1, ClientRequest::open_session(P, SessionKey(7)));
    let limit = tidelog_types::limits::PAYLOAD_BYTES_MAX;
    cluster.ask(CLIENT, 2, ClientRequest::append(P, Bytes::from(vec![0u8; limit + 1])));
    cluster.ask(CLIENT, 3, ClientRequest::append(P, Bytes::from(vec![9u8; limit])));
    all_done(&mut cluster, 3, 2 * SECOND);
    let of = |tag| cluster.done(CLIENT).iter().find(|d| d.tag == tag).unwrap().result.clone();
    assert!(matches!(of(1), Ok(Reply::SessionOpened { session: SessionId(9), .. })));
    let too_large = RequestError::TooLarge { bytes: limit as u64 + 1, limit: limit as u64 };
    assert_eq!(of(2), Err(ClientError::Refused(too_large)));
    assert!(of(3).is_ok());
    assert!(cluster.nodes[&2].log[0].1 == vec![9u8; limit]);
}

#[test]
fn another_cluster_s_node_is_refused() {
    let mut cluster = cluster(11, 1);
    let address = cluster.address(1);
    cluster.client(20, ClientOptions { cluster: "other".into(), ..ClientOptions::new(vec![address]) });
    cluster.ask(20, 1, ClientRequest::append(P, payload(1)).within(Duration::from_secs(1)));
    assert!(cluster.run_until(2 * SECOND, |c| c.done(20).len() == 1));
    let Err(ClientError::Unavailable { why }) = &cluster.done(20)[0].result else { panic!() };
    assert!(why.contains("this is cluster \"test\", not \"other\""), "{why}");
    assert_eq!(cluster.nodes[&1].asked, 0);
}

#[test]
fn lanes_have_connections_of_their_own_and_the_client_its_bounds() {
    let mut cluster = cluster(12, 1);
    let address = cluster.address(1);
    let options =
        ClientOptions { connections_per_node: 100, in_flight_max: 100, ..ClientOptions::new(vec![address]) };
    cluster.client(20, options);
    for lane in 0..100 {
        cluster.ask(20, lane, ClientRequest::append(P, payload(lane)).on_lane(lane as u32));
    }
    let asker = cluster.clients.get_mut(&20).unwrap();
    assert!(asker.core.submit(&mut asker.io, ClientRequest::append(P, payload(1)), 1).is_err(), "full");
    assert!(cluster.run_until(2 * SECOND, |c| c.done(20).len() == 100));
    assert!(cluster.done(20).iter().all(|d| d.result.is_ok()));
    assert_eq!(cluster.nodes[&1].net.connections(), 2 + 100);
}

#[test]
fn every_request_ends_exactly_once_whatever_breaks() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 1);
        let mut next = 0;
        for round in 0..200u64 {
            for _ in 0..10 {
                next += 1;
                let request = match next % 3 {
                    0 => ClientRequest::new(Request::Read {
                        partition: P,
                        from: Index(1),
                        to: None,
                        bytes_max: 3000,
                        level: Level::Linearizable,
                    }),
                    _ => ClientRequest::append(P, payload(next)),
                };
                cluster.ask(CLIENT, next, request.within(Duration::from_secs(2)));
            }
            cluster.run(10 * MS);
            match (round + seed) % 40 {
                7 => cluster.world.break_connections(CLIENT, 1),
                17 => {
                    let leader = 1 + round % 3;
                    for node in 1..=3 {
                        cluster.node(node).mood =
                            if node == leader { Mood::Leads } else { Mood::Follows(Some(leader)) };
                    }
                }
                27 => cluster.world.partition(CLIENT, 1 + round % 3),
                37 => cluster.world.heal_all(),
                _ => {}
            }
        }
        cluster.world.heal_all();
        assert!(cluster.run_until(5 * SECOND, |c| c.clients[&CLIENT].core.in_flight() == 0));
        let mut tags: Vec<u64> = cluster.done(CLIENT).iter().map(|d| d.tag).collect();
        tags.sort_unstable();
        assert!(tags.into_iter().eq(1..=next), "seed {seed}");
        // What was acknowledged was appended once; what was refused or not sent, never.
        let mut log: Vec<Bytes> =
            cluster.nodes.values().flat_map(|n| n.log.iter().map(|(_, p)| p.clone())).collect();
        let total = log.len();
        log.sort_unstable();
        log.dedup();
        assert_eq!(log.len(), total, "seed {seed}: no plain append twice");
        for done in cluster.done(CLIENT).iter().filter(|d| d.tag % 3 != 0) {
            let there = log.binary_search(&payload(done.tag)).is_ok();
            match &done.result {
                Ok(_) => assert!(there),
                Err(ClientError::Unavailable { .. } | ClientError::Refused(_)) => assert!(!there, "{done:?}"),
                Err(_) => {}
            }
        }
    }
}
