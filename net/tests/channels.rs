//! Channels between nodes: identities, replacement, liveness, bounds.

mod common;

use bytes::Bytes;
use common::*;
use std::time::Duration;
use tidelog::transport::Transport;
use tidelog_consensus::{Free, Message};
use tidelog_net::wire;
use tidelog_sim::{NetFaults, Rate};
use tidelog_types::{Incarnation, NodeId};

#[test]
fn both_dial_and_one_connection_a_pair_stays() {
    for seed in 0..20 {
        let mut cluster = Cluster::of_three(seed);
        assert!(cluster.run_until(2 * SECOND, Cluster::all_up), "seed {seed}");
        cluster.run(3 * SECOND);
        assert!(cluster.all_up(), "seed {seed}: it stays up");
        for node in cluster.nodes.values() {
            assert_eq!(node.net.connections(), 2, "seed {seed}");
            assert_eq!(node.ups - node.downs, 2);
        }
    }
}

#[test]
fn messages_arrive_whole_and_in_their_lane_s_order() {
    let mut cluster = Cluster::of_three(3);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    for round in 0..100 {
        assert!(cluster.send(1, 2, append(round, 64 * (1 + round as usize * 37))));
        assert!(cluster.send(1, 2, heartbeat(1000 + round)));
        assert!(cluster.send(2, 1, heartbeat(round)));
    }
    assert!(
        cluster.run_until(5 * SECOND, |c| c.nodes[&2].heard.len() == 200 && c.nodes[&1].heard.len() == 100)
    );
    let appends: Vec<_> =
        cluster.nodes[&2].heard.iter().filter(|(_, m)| !m.records.is_empty()).map(|(_, m)| m).collect();
    assert_eq!(appends.len(), 100);
    for (round, message) in appends.iter().enumerate() {
        assert_eq!(message.records.len(), 1, "received in one piece");
        assert_eq!(message.records[0], append(round as u64, 64 * (1 + round * 37)).records[0]);
        assert_eq!(message.records[0].as_ptr() as usize % 64, 0, "aligned");
    }
    assert_eq!(cluster.nodes[&1].rounds(), (0..100).collect::<Vec<_>>());
}

#[test]
fn unformed_nodes_say_hello_and_nothing_else_until_both_are_formed() {
    let mut cluster = Cluster::new(5);
    for node in 1..=3 {
        cluster.start(tidelog::formation::Hello { formed: None, ..hello(node) });
    }
    assert!(cluster.run_until(2 * SECOND, |c| c.nodes.values().all(|n| {
        let mut from: Vec<u64> = n.hellos.iter().map(|h| h.node.0).collect();
        from.sort_unstable();
        from.dedup();
        from.len() == 2
    })));
    cluster.run(3 * SECOND);
    assert!(cluster.nodes.values().all(|n| n.ups == 0));
    assert!(!cluster.send(1, 2, heartbeat(1)), "nothing flows");
    let formed = formed(&[1, 2, 3]);
    cluster.form(1, &formed);
    cluster.run(SECOND);
    assert!(cluster.nodes.values().all(|n| n.ups == 0));
    let told = |c: &Cluster, n: u64| c.nodes[&n].hellos.iter().any(|h| h.formed.is_some());
    assert!(told(&cluster, 2) && told(&cluster, 3));
    cluster.form(2, &formed);
    assert!(cluster.run_until(SECOND, |c| c.nodes[&1].up == [2] && c.nodes[&2].up == [1]));
    assert!(cluster.send(1, 2, heartbeat(1)) && cluster.send(2, 1, heartbeat(2)));
    assert!(!cluster.send(1, 3, heartbeat(1)));
    cluster.form(3, &formed);
    assert!(cluster.run_until(SECOND, Cluster::all_up));
    assert!(cluster.run_until(SECOND, |c| c.nodes[&1].rounds() == [2] && c.nodes[&2].rounds() == [1]));
    assert!(cluster.nodes.values().all(|n| n.downs == 0), "the connections stayed");
}

#[test]
fn a_node_with_a_wrong_identity_is_refused_and_the_others_do_not_mind() {
    let wrong: [fn(&mut tidelog::formation::Hello); 5] = [
        |h| h.cluster_name = "other".into(),
        |h| h.incarnation = Incarnation(999),
        |h| h.partitions = 9,
        |h| h.formed.as_mut().unwrap().cluster = tidelog_types::ClusterId(78),
        |h| h.shard = 1,
    ];
    for (i, spoil) in wrong.into_iter().enumerate() {
        let mut cluster = Cluster::new(i as u64);
        for node in 1..=3 {
            let mut hello = hello(node);
            if node == 3 {
                spoil(&mut hello);
            }
            cluster.start(hello);
        }
        assert!(
            cluster.run_until(2 * SECOND, |c| c.nodes[&1].up == [2] && c.nodes[&2].up == [1]),
            "case {i}"
        );
        cluster.run(10 * SECOND);
        assert_eq!(
            (cluster.nodes[&3].ups, cluster.nodes[&1].ups, cluster.nodes[&2].ups),
            (0, 1, 1),
            "case {i}"
        );
        assert!(cluster.nodes.values().all(|n| n.net.connections() <= 4), "case {i}: nothing piles up");
    }
}

#[test]
fn two_nodes_under_one_id_are_told_apart() {
    let mut cluster = Cluster::of_three(8);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    // A fourth process claims to be node 2, with another directory.
    let nodes: Vec<_> = (1..=3).map(|n| (NodeId(n), cluster.address(n))).collect();
    let mut options = tidelog_net::NetOptions::new(NodeId(2), nodes, HEARTBEAT);
    options.listen = cluster.world.address(4, PORT);
    let impostor = tidelog::formation::Hello { incarnation: Incarnation(55), ..hello(2) };
    let mut io = cluster.world.node(4);
    let mut net = tidelog_net::NetTransport::new(options);
    net.start(&mut io, impostor).unwrap();
    for _ in 0..2000 {
        let (mut completions, mut events) = (Vec::new(), Vec::new());
        tidelog_io::Io::poll(&mut io, tidelog_io::Wait::No, &mut completions);
        for completion in completions {
            net.complete(&mut io, completion, &mut events);
        }
        net.tick(&mut io, &mut events);
        net.flush(&mut io);
        events.retain(|event| !matches!(event, tidelog::transport::Event::Refused { .. }));
        assert!(events.is_empty(), "{events:?}");
        cluster.run(MS);
    }
    assert!(cluster.all_up());
    assert!(cluster.nodes.values().all(|n| n.downs == n.ups - 2 && n.downs <= 2));
}

/// Two processes on one directory, or on copies of it, used to take the channel from each other in turn, and both counted.
#[test]
fn a_second_process_on_one_directory_is_not_heard_while_the_first_one_is_alive() {
    let mut cluster = Cluster::of_three(9);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    let nodes: Vec<_> = (1..=3).map(|n| (NodeId(n), cluster.address(n))).collect();
    let mut options = tidelog_net::NetOptions::new(NodeId(2), nodes, HEARTBEAT);
    options.listen = cluster.world.address(4, PORT);
    let mut io = cluster.world.node(4);
    let mut net = tidelog_net::NetTransport::new(options);
    net.start(&mut io, tidelog::formation::Hello { process: 4242, ..hello(2) }).unwrap();
    let (ups, mut heard) = (cluster.nodes[&1].ups, 0);
    for _ in 0..3000 {
        let (mut completions, mut events) = (Vec::new(), Vec::new());
        tidelog_io::Io::poll(&mut io, tidelog_io::Wait::No, &mut completions);
        for completion in completions {
            net.complete(&mut io, completion, &mut events);
        }
        net.tick(&mut io, &mut events);
        net.flush(&mut io);
        events.retain(|event| !matches!(event, tidelog::transport::Event::Refused { .. }));
        heard += events.len();
        cluster.run(MS);
    }
    assert!(heard == 0 && cluster.all_up(), "the second one never has a channel");
    assert_eq!(cluster.nodes[&1].ups, ups, "the first one's does not flap");
    // The first one ends: the second is heard now.
    cluster.kill(2);
    for _ in 0..5000 {
        let (mut completions, mut events) = (Vec::new(), Vec::new());
        tidelog_io::Io::poll(&mut io, tidelog_io::Wait::No, &mut completions);
        for completion in completions {
            net.complete(&mut io, completion, &mut events);
        }
        net.tick(&mut io, &mut events);
        net.flush(&mut io);
        events.retain(|event| !matches!(event, tidelog::transport::Event::Refused { .. }));
        heard += events.len();
        cluster.run(MS);
    }
    assert!(heard > 0 && cluster.nodes[&1].up.contains(&2) && cluster.nodes[&3].up.contains(&2));
}

/// A machine that lost power cannot close its connections: its next process is heard when the old channel was silent for an election
/// time-out, and not later than a moment after.
#[test]
fn a_machine_that_lost_power_is_let_in_again_soon() {
    for seed in 0..10 {
        let mut cluster = Cluster::of_three(seed);
        assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
        cluster.world.crash(2);
        cluster.nodes.remove(&2);
        cluster.start(hello(2));
        assert!(cluster.run_until(3 * SECOND, Cluster::all_up), "seed {seed}");
    }
}

#[test]
fn a_restarted_process_replaces_the_channel_of_the_old_one() {
    for seed in 0..10 {
        let mut cluster = Cluster::of_three(seed);
        assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
        cluster.kill(2);
        assert!(
            cluster.run_until(2 * SECOND, |c| c.nodes.values().all(|n| !n.up.contains(&2))),
            "seed {seed}"
        );
        cluster.start(hello(2));
        assert!(cluster.run_until(5 * SECOND, Cluster::all_up), "seed {seed}");
        cluster.run(2 * SECOND);
        assert!(cluster.all_up() && cluster.nodes.values().all(|n| n.net.connections() == 2), "seed {seed}");
    }
}

#[test]
fn a_silent_peer_is_down_after_ten_intervals_and_up_again_after_healing() {
    for seed in 0..10 {
        let mut cluster = Cluster::of_three(seed);
        assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
        cluster.run(2 * SECOND);
        if seed % 2 == 0 {
            cluster.world.partition(1, 3);
        } else {
            cluster.world.partition_one_way(1, 3);
        }
        let before = cluster.world.now();
        assert!(cluster.run_until(3 * SECOND, |c| !c.nodes[&3].up.contains(&1)), "seed {seed}");
        let took = cluster.world.now() - before;
        assert!((400 * MS..700 * MS).contains(&took), "seed {seed}: {took}");
        assert!(cluster.nodes[&2].up.len() == 2 && cluster.nodes[&3].up.contains(&2));
        cluster.run(5 * SECOND);
        cluster.world.heal_all();
        assert!(cluster.run_until(8 * SECOND, Cluster::all_up), "seed {seed}");
        cluster.run(3 * SECOND);
        assert!(cluster.all_up(), "seed {seed}");
    }
}

#[test]
fn a_node_that_slept_does_not_blame_its_peers() {
    let mut cluster = Cluster::of_three(4);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    cluster.run(2 * SECOND);
    let before: Vec<usize> = cluster.nodes.values().map(|n| n.downs).collect();
    for node in 1..=3 {
        cluster.world.pause(node, Duration::from_secs(7));
    }
    cluster.run(12 * SECOND);
    let after: Vec<usize> = cluster.nodes.values().map(|n| n.downs).collect();
    assert_eq!(before, after);
    assert!(cluster.all_up());
}

#[test]
fn a_stalled_peer_costs_flat_memory_and_its_heartbeats_do_not_wait_for_bulk() {
    let mut cluster = Cluster::new(6);
    cluster.channel_timeout = Duration::from_secs(3600);
    for node in 1..=3 {
        cluster.start(hello(node));
    }
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    cluster.world.pause(2, Duration::from_secs(20));
    let (mut taken, mut bytes) = (0u64, 0);
    let budget = cluster.limits.peer_bytes_max;
    for round in 0..10_000u64 {
        if cluster.send(1, 2, append(round, 256 << 10)) {
            taken += 1;
            bytes += 256 << 10;
        }
        if round % 100 == 0 {
            cluster.run(10 * MS);
        }
    }
    assert!(bytes <= budget + (2 << 20), "{bytes} bytes taken: the budget, and what the connection holds");
    assert!(cluster.node(1).net.room(NodeId(2)) < 256 << 10);
    assert!(cluster.node(1).net.room(NodeId(3)) == budget, "the other peer is not affected");
    assert!(cluster.send(1, 2, heartbeat(77_777)), "the urgent lane has its own room");
    assert!(cluster.run_until(60 * SECOND, |c| c.nodes[&2].heard.len() as u64 == taken + 1));
    let rounds = cluster.nodes[&2].rounds();
    let heard_at = rounds.iter().position(|r| *r == 77_777).unwrap();
    assert!(
        heard_at <= 4,
        "behind one bounded send and what the connection held, not behind all: {heard_at}"
    );
    let bulk: Vec<u64> = rounds.into_iter().filter(|r| *r != 77_777).collect();
    assert!(bulk.is_sorted(), "bulk in order");
    assert_eq!(cluster.node(1).net.room(NodeId(2)), budget, "all given back");
}

#[test]
fn the_largest_append_passes() {
    let mut cluster = Cluster::of_three(9);
    assert!(cluster.run_until(2 * SECOND, Cluster::all_up));
    let mut message = append(1, 0);
    message.records = (0..48).map(|i| Bytes::from(vec![i as u8; 64 << 10])).collect();
    let want = message.records.concat();
    assert_eq!(want.len(), tidelog_types::limits::APPEND_BYTES_MAX);
    assert!(cluster.send(1, 2, message));
    assert!(cluster.run_until(5 * SECOND, |c| c.nodes[&2].heard.len() == 1));
    let heard = &cluster.nodes[&2].heard[0].1;
    assert!(matches!(heard.message, Message::Free(Free::Append(_))));
    assert_eq!(heard.records.len(), 1);
    assert!(heard.records[0] == want);
}

#[test]
fn channels_come_back_whatever_the_network_did() {
    for seed in 0..20 {
        let mut cluster = Cluster::of_three(seed);
        cluster.world.frames(&[1, 2, 3], wire::frame_length);
        cluster.world.set_net_faults(NetFaults {
            drop: Rate::per_million(20_000),
            duplicate: Rate::per_million(20_000),
            break_connection: Rate::per_million(2_000),
            ..NetFaults::NONE
        });
        for round in 0..400 {
            for (from, to) in [(1, 2), (2, 3), (3, 1), (2, 1)] {
                cluster.send(from, to, heartbeat(round));
                cluster.send(from, to, append(round, 5000));
            }
            cluster.run(10 * MS);
        }
        cluster.world.calm();
        assert!(cluster.run_until(8 * SECOND, Cluster::all_up), "seed {seed}");
        cluster.run(2 * SECOND);
        assert!(cluster.all_up(), "seed {seed}");
        for node in cluster.nodes.values() {
            assert_eq!(node.net.connections(), 2, "seed {seed}");
        }
    }
}

#[test]
fn a_hello_that_went_astray_is_said_again() {
    let mut cluster = Cluster::new(12);
    cluster.world.frames(&[1, 2, 3], wire::frame_length);
    for node in 1..=3 {
        cluster.start(tidelog::formation::Hello { formed: None, ..hello(node) });
    }
    cluster.run(2 * SECOND);
    let before: Vec<usize> = cluster.nodes.values().map(|n| n.net.connections()).collect();
    let formed = formed(&[1, 2, 3]);
    for node in 1..=3 {
        cluster.world.set_net_faults(NetFaults { drop: Rate::ALWAYS, ..NetFaults::NONE });
        cluster.form(node, &formed);
        cluster.run(100 * MS);
        cluster.world.set_net_faults(NetFaults::NONE);
        cluster.run(2 * SECOND);
    }
    assert!(cluster.all_up());
    let after: Vec<usize> = cluster.nodes.values().map(|n| n.net.connections()).collect();
    assert_eq!((before, after), (vec![2; 3], vec![2; 3]));
}
