//! Clients against nodes that hang: they take their share of a request's time and no more, and nothing is appended twice for it.

mod common;

use bytes::Bytes;
use common::*;
use std::time::Duration;
use tidelog::request::{Level, Reply};
use tidelog_net::client::{ClientError, ClientOptions, ClientRequest};
use tidelog_types::{Index, PartitionId, Sequence, SessionId, SessionRef};

const CLIENT: u64 = 8;
const P: PartitionId = PartitionId(0);

fn payload(n: u64) -> Bytes {
    Bytes::from(format!("record {n}"))
}

fn plain(n: u64) -> ClientRequest {
    ClientRequest::append(P, payload(n))
}

fn once(sequence: u64) -> ClientRequest {
    let session = SessionRef { session: SessionId(4), sequence: Sequence(sequence) };
    ClientRequest::append_once(P, session, payload(sequence))
}

fn leads(cluster: &mut Cluster, leader: u64) {
    for node in 1..=3 {
        cluster.node(node).mood = if node == leader { Mood::Leads } else { Mood::Follows(Some(leader)) };
    }
}

/// A client that knows all three nodes, in this order.
fn cluster(seed: u64, leader: u64, order: [u64; 3]) -> Cluster {
    let mut cluster = Cluster::of_three(seed);
    leads(&mut cluster, leader);
    let addresses = order.map(|node| cluster.address(node)).to_vec();
    cluster.client(CLIENT, ClientOptions::new(addresses));
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    cluster
}

fn of(cluster: &Cluster, tag: u64) -> Option<Result<Reply, ClientError>> {
    cluster.done(CLIENT).iter().find(|d| d.tag == tag).map(|d| d.result.clone())
}

/// Which requests ended how, without records.
fn ends(cluster: &Cluster) -> Vec<(u64, String)> {
    let end = |result: &Result<Reply, ClientError>| match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    cluster.done(CLIENT).iter().map(|d| (d.tag, end(&d.result))).collect()
}

fn hang(cluster: &mut Cluster, node: u64, black_hole: bool) {
    if black_hole {
        cluster.world.partition(CLIENT, node);
    } else {
        cluster.world.pause(node, Duration::from_secs(600));
    }
}

/// Misunderstood: the first address had three seconds to greet, whatever time the request had.
#[test]
fn a_first_address_that_hangs_takes_a_share_of_a_short_time() {
    for (seed, black_hole) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        for millis in [300, 500, 1000, 5000] {
            let mut cluster = cluster(seed, 2, [1, 2, 3]);
            hang(&mut cluster, 1, black_hole);
            cluster.ask(CLIENT, 1, plain(1).within(Duration::from_millis(millis)));
            let done = cluster.run_until(millis * MS, |c| !c.done(CLIENT).is_empty());
            assert!(done && of(&cluster, 1).unwrap().is_ok(), "{millis} ms: {:?}", ends(&cluster));
            assert_eq!(cluster.nodes[&2].log.len(), 1);
        }
    }
}

/// The same with two of three: the last one still has its share.
#[test]
fn two_addresses_that_hang_leave_a_share_for_the_third() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 3, [1, 2, 3]);
        hang(&mut cluster, 1, true);
        hang(&mut cluster, 2, false);
        cluster.ask(CLIENT, 1, plain(1).within(Duration::from_millis(500)));
        assert!(cluster.run_until(500 * MS, |c| !c.done(CLIENT).is_empty()));
        assert!(of(&cluster, 1).unwrap().is_ok(), "{:?}", ends(&cluster));
    }
}

/// Misunderstood: the old leader's silence held up all that came behind for the three seconds after which a connection is given up.
#[test]
fn the_next_leader_is_learned_long_before_the_silent_one_is_given_up() {
    for (seed, black_hole) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut cluster = cluster(seed, 1, [1, 2, 3]);
        cluster.ask(CLIENT, 0, once(1));
        assert!(cluster.run_until(SECOND, |c| of(c, 0).is_some_and(|r| r.is_ok())));
        hang(&mut cluster, 1, black_hole);
        cluster.ask(CLIENT, 1, plain(100));
        cluster.ask(CLIENT, 2, once(2));
        cluster.ask(CLIENT, 3, ClientRequest::read(P, Index(1), None, Level::Linearizable));
        cluster.run(400 * MS);
        // What the others copied from it.
        let copied = cluster.nodes[&1].log.clone();
        cluster.node(2).log = copied;
        cluster.node(2).mood = Mood::Leads;
        cluster.node(3).mood = Mood::Follows(Some(2));
        cluster.run(500 * MS);
        cluster.ask(CLIENT, 4, plain(101));
        let all = |c: &Cluster| (2..=4).all(|tag| of(c, tag).is_some_and(|r| r.is_ok()));
        assert!(cluster.run_until(600 * MS, all), "seed {seed}: {:?}", ends(&cluster));
        // It may be in the log, so no other node was asked for it; and there is no point in waiting any longer.
        assert!(matches!(of(&cluster, 1), Some(Err(ClientError::Unknown { .. }))), "{:?}", ends(&cluster));
        let log = &cluster.nodes[&2].log;
        assert!(!log.iter().any(|(_, p)| *p == payload(100)), "a plain append was sent again");
        assert_eq!(log.len(), 3);
    }
}

/// Misunderstood: with every record on its way, there was nothing left to ask another node with. The client asks by itself who leads.
#[test]
fn plain_appends_that_a_deposed_leader_took_are_unknown_when_the_next_one_leads() {
    for (seed, black_hole) in (0..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut cluster = cluster(seed, 1, [1, 2, 3]);
        cluster.ask(CLIENT, 0, plain(0));
        assert!(cluster.run_until(SECOND, |c| of(c, 0).is_some_and(|r| r.is_ok())));
        hang(&mut cluster, 1, black_hole);
        for n in 1..=50 {
            cluster.ask(CLIENT, n, plain(n));
        }
        cluster.run(1000 * MS);
        assert_eq!(cluster.done(CLIENT).len(), 1, "nobody else leads yet: they wait");
        cluster.node(2).mood = Mood::Leads;
        cluster.node(3).mood = Mood::Follows(Some(2));
        assert!(cluster.run_until(500 * MS, |c| c.done(CLIENT).len() == 51), "{:?}", ends(&cluster));
        for n in 1..=50 {
            let Some(Err(error @ ClientError::Unknown { .. })) = of(&cluster, n) else {
                panic!("{n}: {:?}", ends(&cluster))
            };
            let (text, old, new) = (error.to_string(), cluster.address(1), cluster.address(2));
            assert!(text.contains(&old.to_string()) && text.contains(&format!("{new} leads")), "{text}");
        }
        assert_eq!(cluster.nodes[&2].log, [], "nothing was sent again");
        assert_eq!(cluster.clients[&CLIENT].core.in_flight(), 0);
        cluster.ask(CLIENT, 51, plain(51));
        assert!(
            cluster.run_until(100 * MS, |c| of(c, 51).is_some_and(|r| r.is_ok())),
            "{:?}",
            ends(&cluster)
        );
    }
}

/// It was asked elsewhere meanwhile, and led all the time: what it says is the answer, and nothing is there twice.
#[test]
fn a_leader_that_was_only_slow_is_believed() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 1, [1, 2, 3]);
        cluster.ask(CLIENT, 0, once(1));
        assert!(cluster.run_until(SECOND, |c| of(c, 0).is_some()));
        cluster.world.pause(1, Duration::from_millis(1500));
        for n in 2..=20 {
            cluster.ask(CLIENT, n, once(n));
        }
        cluster.ask(CLIENT, 100, plain(100));
        assert!(cluster.run_until(2 * SECOND, |c| c.done(CLIENT).len() == 21), "{:?}", ends(&cluster));
        for done in &cluster.done(CLIENT)[1..] {
            let Ok(Reply::Appended { position }) = &done.result else { panic!("{done:?}") };
            assert!(done.tag == 100 || position.index == Index(done.tag), "{done:?}");
        }
        assert_eq!(cluster.nodes[&1].log.len(), 21);
        let elsewhere = cluster.nodes[&2].asked + cluster.nodes[&3].asked;
        assert!((1..2000).contains(&elsewhere), "others were asked, with pauses between: {elsewhere}");
    }
}

/// Misunderstood: the silence before a request was counted as silence about it. A node that paused for a moment was given up when a
/// request came after a long time without one.
#[test]
fn an_idle_connection_is_not_a_silent_node() {
    for pause in [260, 400, 700, 2000] {
        let mut cluster = cluster(3, 1, [1, 2, 3]);
        cluster.ask(CLIENT, 0, plain(0));
        assert!(cluster.run_until(SECOND, |c| of(c, 0).is_some()));
        cluster.run(20 * SECOND);
        cluster.world.pause(1, Duration::from_millis(pause));
        cluster.ask(CLIENT, 1, plain(1));
        assert!(cluster.run_until(3 * SECOND, |c| of(c, 1).is_some()));
        assert!(of(&cluster, 1).unwrap().is_ok(), "{pause} ms: {:?}", ends(&cluster));
    }
}

/// A node named by its number is found through whichever address answers.
#[test]
fn a_named_node_is_found_though_the_first_address_hangs() {
    for seed in 0..20 {
        let mut cluster = cluster(seed, 2, [1, 2, 3]);
        hang(&mut cluster, 1, seed % 2 == 0);
        let target = tidelog_net::client::Target::Node(tidelog_types::NodeId(3));
        cluster.ask(CLIENT, 1, ClientRequest::status(target).within(Duration::from_millis(500)));
        assert!(cluster.run_until(500 * MS, |c| of(c, 1).is_some()));
        assert!(of(&cluster, 1).unwrap().is_ok(), "{:?}", of(&cluster, 1));
    }
}

/// Addresses that swallow every connect do not use up what others are dialled with.
#[test]
fn connects_that_never_end_are_bounded_and_leave_room_for_others() {
    let mut cluster = cluster(5, 2, [1, 2, 3]);
    cluster.world.partition(CLIENT, 1);
    cluster.world.partition(CLIENT, 2);
    cluster.world.partition(CLIENT, 3);
    for n in 0..100 {
        cluster.ask(CLIENT, n, plain(n).within(Duration::from_secs(2)));
        cluster.run(3 * SECOND);
    }
    assert!(cluster.done(CLIENT).iter().all(|d| d.result.is_err()));
    cluster.world.heal_all();
    cluster.ask(CLIENT, 200, plain(200));
    assert!(
        cluster.run_until(5 * SECOND, |c| of(c, 200).is_some_and(|r| r.is_ok())),
        "{:?}",
        of(&cluster, 200)
    );
}

/// The outcome says what each node did, in words for people.
#[test]
fn a_request_that_failed_says_what_each_node_did() {
    let mut cluster = cluster(6, 1, [1, 2, 3]);
    for node in 1..=3 {
        cluster.node(node).mood = Mood::Follows(None);
    }
    hang(&mut cluster, 1, false);
    cluster.ask(CLIENT, 1, plain(1).within(Duration::from_secs(1)));
    assert!(cluster.run_until(2 * SECOND, |c| of(c, 1).is_some()));
    let Some(Err(error @ ClientError::Unavailable { .. })) = of(&cluster, 1) else {
        panic!("{:?}", of(&cluster, 1))
    };
    let text = error.to_string();
    for node in 1..=3 {
        assert!(text.contains(&cluster.address(node).to_string()), "{text}");
    }
    assert!(
        text.contains("1000 ms") && text.contains("knows of no leader") && text.contains("did not greet"),
        "{text}"
    );
    assert!(!text.contains("None") && !text.contains("Some("), "{text}");
}
