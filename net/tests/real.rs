//! The same code over the real back-ends, on loopback: a node with a stand-in for a shard, and clients on threads.

use bytes::Bytes;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake};
use std::time::Duration;
use tidelog::formation::Hello;
use tidelog::request::{NodeStatus, Reply, Request, RequestError};
use tidelog::transport::{Event, Transport};
use tidelog_io::{BackEnd, IoOptions, Wait, Waker, open_back_end};
use tidelog_net::client::{Client, ClientError, ClientOptions, ClientRequest, Target};
use tidelog_net::{NetOptions, NetTransport};
use tidelog_types::{Generation, Incarnation, Index, NodeId, PartitionId, Position};

const P: PartitionId = PartitionId(0);

struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    waker: Waker,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Server {
    /// A node of one that appends to nowhere. None: this back-end is not to be had here.
    fn start(back_end: BackEnd) -> Option<Server> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let options = IoOptions { connections_max: 200, registered_bytes: 0, ..IoOptions::default() };
            let Ok(mut io) = open_back_end(back_end, &options) else {
                drop(ready);
                return 0;
            };
            let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let net_options =
                NetOptions::new(NodeId(1), vec![(NodeId(1), listen)], Duration::from_millis(50));
            let mut net = NetTransport::new(net_options);
            let hello = Hello {
                cluster_name: "real".into(),
                node: NodeId(1),
                incarnation: Incarnation(1),
                process: io.random(),
                shard: 0,
                shard_count: 1,
                partitions: 1,
                replication: 1,
                key_hash: 1,
                payload_bytes_max: 2 << 20,
                feature_level: 1,
                heartbeat_ms: 50,
                barred: false,
                formed: None,
            };
            let address = net.start(io.as_mut(), hello).unwrap().unwrap();
            ready.send((address, io.waker())).unwrap();
            let (mut completions, mut events, mut index) = (Vec::new(), Vec::new(), 0);
            while !stopped.load(Ordering::Acquire) {
                net.flush(io.as_mut());
                let wait = net.deadline().map_or(Wait::Forever, Wait::Until);
                io.poll(wait, &mut completions);
                for completion in completions.drain(..) {
                    net.complete(io.as_mut(), completion, &mut events);
                }
                net.tick(io.as_mut(), &mut events);
                for event in events.drain(..) {
                    if let Event::Request { client, request } = event {
                        let response = match request {
                            Request::Append { payload, payload_crc, .. } => {
                                if crc32c::crc32c(&payload) == payload_crc {
                                    index += 1;
                                    let position = Position::new(Index(index), Generation(1));
                                    Ok(Reply::Appended { position })
                                } else {
                                    Err(RequestError::Checksum)
                                }
                            }
                            Request::Snapshot { .. } => Err(RequestError::Invalid("a plain log".into())),
                            Request::Status { .. } => {
                                Ok(Reply::Status(Box::new(NodeStatus { node: 1, ..NodeStatus::default() })))
                            }
                            _ => Err(RequestError::Invalid("not here".into())),
                        };
                        net.respond(client, response);
                    }
                }
            }
            index
        });
        let (address, waker) = started.recv().ok()?;
        Some(Server { address, stop, waker, thread: Some(thread) })
    }

    fn stop(mut self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        self.thread.take().unwrap().join().unwrap()
    }
}

fn each(check: fn(BackEnd, Server)) {
    for back_end in [BackEnd::Blocking, BackEnd::Uring] {
        match Server::start(back_end) {
            Some(server) => check(back_end, server),
            None => assert_eq!(back_end, BackEnd::Uring, "blocking calls are always there"),
        }
    }
}

#[test]
fn one_at_a_time() {
    each(|back_end, server| {
        let client = Client::connect_over(back_end, ClientOptions::new(vec![server.address])).unwrap();
        for n in 1..=200 {
            let position = client.append(P, Bytes::from(vec![n as u8; n * 97])).wait().unwrap();
            assert_eq!(position.index, Index(n as u64));
        }
        assert_eq!(client.status(Target::Address(server.address)).wait().unwrap().node, 1);
        assert_eq!(client.status(Target::Node(NodeId(1))).wait().unwrap().node, 1);
        let large = client.append(P, Bytes::from(vec![1; 2 << 20])).wait().unwrap();
        assert_eq!(large.index, Index(201));
        drop(client);
        assert_eq!(server.stop(), 201);
    });
}

#[test]
fn in_bulk_over_several_connections() {
    each(|back_end, server| {
        let options = ClientOptions {
            connections_per_node: 4,
            in_flight_max: 2000,
            ..ClientOptions::new(vec![server.address])
        };
        let client = Client::connect_over(back_end, options).unwrap();
        let mut bulk = client.bulk();
        let (mut next, mut done, mut indexes) = (0, 0, BTreeSet::new());
        while done < 50_000u64 {
            while next < 50_000 {
                let request = ClientRequest::append(P, Bytes::from(vec![7; 100])).on_lane(next as u32);
                if bulk.submit(next, request).is_err() {
                    break;
                }
                next += 1;
            }
            for result in bulk.results(true) {
                let Ok(Reply::Appended { position }) = result.result else { panic!("{result:?}") };
                assert!(result.at.0 > 0);
                assert!(indexes.insert(position.index));
                done += 1;
            }
        }
        assert_eq!(bulk.in_flight(), 0);
        drop(bulk);
        drop(client);
        assert_eq!(server.stop(), 50_000);
    });
}

#[test]
fn one_in_flight_on_each_of_many_connections() {
    each(|back_end, server| {
        let options = ClientOptions { connections_per_node: 100, ..ClientOptions::new(vec![server.address]) };
        let client = Client::connect_over(back_end, options).unwrap();
        let mut bulk = client.bulk();
        let ask = |lane: u64| ClientRequest::append(P, Bytes::from(vec![3; 1024])).on_lane(lane as u32);
        for lane in 0..100 {
            bulk.submit(lane, ask(lane)).unwrap();
        }
        let mut done = 0;
        while done < 10_000 {
            for result in bulk.results(true) {
                assert!(result.result.is_ok(), "{result:?}");
                done += 1;
                if done + (bulk.in_flight() as u64) < 10_000 {
                    bulk.submit(result.tag, ask(result.tag)).unwrap();
                }
            }
        }
        drop(bulk);
        drop(client);
        assert!(server.stop() >= 10_000);
    });
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[test]
fn answers_are_futures_on_any_executor() {
    let server = Server::start(BackEnd::Blocking).unwrap();
    let client = Client::connect(ClientOptions::new(vec![server.address])).unwrap();
    let mut future = std::pin::pin!(client.append(P, Bytes::from_static(b"x")));
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let position = loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => break result.unwrap(),
            Poll::Pending => std::thread::park(),
        }
    };
    assert_eq!(position.index, Index(1));
    server.stop();
}

#[test]
fn nobody_there_is_unavailable_and_a_killed_server_makes_unknown_or_unavailable() {
    let server = Server::start(BackEnd::Blocking).unwrap();
    let address = server.address;
    let options = ClientOptions { timeout: Duration::from_millis(500), ..ClientOptions::new(vec![address]) };
    let client = Client::connect(options).unwrap();
    client.append(P, Bytes::from_static(b"x")).wait().unwrap();
    server.stop();
    let error = client.append(P, Bytes::from_static(b"x")).wait().unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { .. } | ClientError::Unknown { .. }), "{error}");
    let error = client.append(P, Bytes::from_static(b"x")).wait().unwrap_err();
    assert!(matches!(error, ClientError::Unavailable { .. }), "{error}");
}

#[test]
fn an_address_in_use_is_said() {
    let server = Server::start(BackEnd::Blocking).unwrap();
    let mut io = open_back_end(BackEnd::Blocking, &IoOptions::small()).unwrap();
    let options = NetOptions::new(NodeId(1), vec![(NodeId(1), server.address)], Duration::from_millis(50));
    let hello = Hello {
        cluster_name: "real".into(),
        node: NodeId(1),
        incarnation: Incarnation(1),
        process: 1,
        shard: 0,
        shard_count: 1,
        partitions: 1,
        replication: 1,
        key_hash: 1,
        payload_bytes_max: 2 << 20,
        feature_level: 1,
        heartbeat_ms: 50,
        barred: false,
        formed: None,
    };
    let error = NetTransport::new(options).start(io.as_mut(), hello).unwrap_err().to_string();
    assert!(error.contains(&server.address.to_string()) && error.contains("in use"), "{error}");
    server.stop();
}
