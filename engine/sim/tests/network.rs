//! Connections between nodes, driven turn by turn.

use bytes::Bytes;
use core::time::Duration;
use std::collections::BTreeMap;
use tidelog_io::{Completion, ConnId, Io, IoErrorKind, ListenerId, Op, Output, Token, Wait};
use tidelog_sim::{NetFaults, Rate, SimIo, Step, World, WorldConfig};
use tidelog_types::limits::PAGE_BYTES;

const SECOND: u64 = 1_000_000_000;
const LISTEN: Token = Token::net(1);
const ACCEPT: Token = Token::net(2);
const CONNECT: Token = Token::net(3);
const SEND: Token = Token::net(4);
const RECV: Token = Token::net(5);

/// A process that keeps what it gets, and sends it back if it is to echo.
struct Peer {
    io: SimIo,
    conn: Option<ConnId>,
    got: Vec<u8>,
    reads: bool,
    sent: usize,
    listener: Option<ListenerId>,
    errors: Vec<(Token, IoErrorKind)>,
    ended: bool,
    echo: bool,
}

impl Peer {
    fn new(io: SimIo) -> Peer {
        Peer {
            io,
            conn: None,
            got: Vec::new(),
            reads: true,
            sent: 0,
            listener: None,
            errors: Vec::new(),
            ended: false,
            echo: false,
        }
    }

    fn receive(&mut self) {
        if let (Some(conn), true) = (self.conn, self.reads) {
            let buffer = self.io.buffers().take(PAGE_BYTES);
            self.io.submit(RECV, Op::Recv { conn, buffer, filled: 0 });
        }
    }

    fn send(&mut self, data: Vec<Bytes>) {
        let conn = self.conn.expect("connected");
        self.io.submit(SEND, Op::Send { conn, data });
    }

    fn turn(&mut self) {
        let mut out: Vec<Completion> = Vec::new();
        self.io.poll(Wait::No, &mut out);
        for completion in out {
            match completion.result {
                Ok(Output::Listening { listener, .. }) => {
                    self.listener = Some(listener);
                    self.io.submit(ACCEPT, Op::Accept { listener });
                }
                Ok(Output::Connected { conn, .. }) => {
                    self.conn = Some(conn);
                    self.receive();
                }
                Ok(Output::Received { bytes: 0, .. }) => self.ended = true,
                Ok(Output::Received { buffer, bytes }) => {
                    self.got.extend_from_slice(&buffer[..bytes]);
                    if self.echo {
                        self.send(vec![Bytes::copy_from_slice(&buffer[..bytes])]);
                    } else {
                        self.receive();
                    }
                }
                Ok(_) if completion.token == SEND => {
                    self.sent += 1;
                    if self.echo {
                        self.receive();
                    }
                }
                Ok(_) => {}
                Err(error) => self.errors.push((completion.token, error.kind)),
            }
        }
    }
}

struct Net {
    world: World,
    peers: BTreeMap<u64, Peer>,
}

impl Net {
    /// Node 2 listens, node 1 connects to it.
    fn connected(world: World) -> Net {
        let mut net = Net::listening(world);
        let address = net.world.address(2, 7000);
        net.peer(1).io.submit(CONNECT, Op::Connect { address });
        net.run_for(SECOND / 2);
        assert!(net.peer(1).conn.is_some() && net.peer(2).conn.is_some());
        net
    }

    fn listening(world: World) -> Net {
        let peers = [1, 2].into_iter().map(|id| (id, Peer::new(world.node(id)))).collect();
        let mut net = Net { world, peers };
        let address = net.world.address(2, 7000);
        net.peer(2).io.submit(LISTEN, Op::Listen { address });
        net.run_for(SECOND / 100);
        net
    }

    fn peer(&mut self, id: u64) -> &mut Peer {
        self.peers.get_mut(&id).unwrap()
    }

    fn run_for(&mut self, ns: u64) {
        let until = self.world.now() + ns;
        while let Some(step) = self.world.step_until(until) {
            if let Step::Node(id) = step {
                self.peer(id).turn();
            }
        }
        assert_eq!(self.world.now(), until);
    }
}

fn stream(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 31 % 251) as u8).collect()
}

#[test]
fn two_nodes_echo() {
    for seed in 0..20 {
        let mut net = Net::connected(World::new(seed));
        net.peer(2).echo = true;
        net.peer(1).send(vec![Bytes::from_static(b"hello "), Bytes::from_static(b"world")]);
        net.run_for(SECOND / 10);
        assert_eq!(net.peer(2).got, b"hello world");
        assert_eq!(net.peer(1).got, b"hello world");
    }
}

#[test]
fn a_stream_is_cut_anywhere_and_comes_whole() {
    let mut net = Net::connected(World::new(1));
    let all = stream(3 << 20);
    net.peer(1).send(vec![Bytes::from(all.clone())]);
    net.run_for(5 * SECOND);
    assert_eq!(net.peer(2).got, all);
    assert_eq!(net.peer(1).sent, 1);
}

#[test]
fn a_receiver_that_does_not_read_stalls_its_sender() {
    let config = WorldConfig { window_bytes: 64 << 10, ..WorldConfig::default() };
    let world = World::with(2, config);
    let mut net = Net::listening(world);
    net.peer(2).reads = false;
    let address = net.world.address(2, 7000);
    net.peer(1).io.submit(CONNECT, Op::Connect { address });
    net.run_for(SECOND);
    net.peer(1).send(vec![Bytes::from(stream(1 << 20))]);
    net.run_for(10 * SECOND);
    assert_eq!(net.peer(1).sent, 0, "no more than the window is under way");
    net.peer(2).reads = true;
    net.peer(2).receive();
    net.run_for(10 * SECOND);
    assert_eq!(net.peer(1).sent, 1);
    assert_eq!(net.peer(2).got, stream(1 << 20));
}

#[test]
fn nobody_listens_or_nobody_is_there() {
    let world = World::new(1);
    let mut net = Net::listening(world);
    let (wrong_port, nobody) = (net.world.address(2, 7001), net.world.address(9, 7000));
    net.peer(1).io.submit(Token::net(10), Op::Connect { address: wrong_port });
    net.peer(1).io.submit(Token::net(11), Op::Connect { address: nobody });
    net.run_for(SECOND / 2);
    assert_eq!(net.peer(1).errors, [(Token::net(10), IoErrorKind::Disconnected)]);
    net.run_for(SECOND);
    assert_eq!(net.peer(1).errors[1], (Token::net(11), IoErrorKind::Disconnected));
}

#[test]
fn a_crash_breaks_connections_at_once_or_when_the_machine_is_back() {
    let (mut at_once, mut later) = (0, 0);
    for seed in 0..20 {
        let mut net = Net::connected(World::new(seed));
        net.world.crash(2);
        net.run_for(SECOND);
        if net.peer(1).errors == [(RECV, IoErrorKind::Disconnected)] {
            at_once += 1;
            continue;
        }
        later += 1;
        assert!(net.peer(1).errors.is_empty());
        let io = net.world.node(2);
        net.peers.insert(2, Peer::new(io));
        net.peer(1).send(vec![Bytes::from_static(b"are you there")]);
        net.run_for(SECOND);
        assert_eq!(net.peer(1).errors, [(RECV, IoErrorKind::Disconnected)]);
    }
    assert!(at_once > 0 && later > 0);
}

#[test]
fn a_killed_process_resets_its_connections_and_frees_its_port() {
    let mut net = Net::connected(World::new(4));
    net.world.kill(2);
    net.run_for(SECOND);
    assert_eq!(net.peer(1).errors, [(RECV, IoErrorKind::Disconnected)]);
    let address = net.world.address(2, 7000);
    net.peer(1).io.submit(CONNECT, Op::Connect { address });
    net.run_for(SECOND / 2);
    assert_eq!(net.peer(1).errors[1], (CONNECT, IoErrorKind::Disconnected), "refused, the machine is there");
    let io = net.world.node(2);
    net.peers.insert(2, Peer::new(io));
    net.peer(2).io.submit(LISTEN, Op::Listen { address });
    net.run_for(SECOND / 10);
    assert!(net.peer(2).listener.is_some());
}

#[test]
fn a_partition_stalls_and_its_heal_delivers_or_breaks() {
    let (mut delivered, mut broken) = (0, 0);
    for seed in 0..30 {
        let mut net = Net::connected(World::new(seed));
        net.world.partition(1, 2);
        net.peer(1).send(vec![Bytes::from_static(b"through the wall")]);
        net.run_for(3 * SECOND);
        assert!(net.peer(2).got.is_empty());
        assert_eq!(net.peer(1).sent, 1, "it is with the kernel");
        assert!(net.peer(1).errors.is_empty());
        net.world.heal(1, 2);
        net.run_for(SECOND);
        if net.peer(2).errors.is_empty() {
            assert_eq!(net.peer(2).got, b"through the wall");
            delivered += 1;
        } else {
            assert_eq!(net.peer(1).errors, [(RECV, IoErrorKind::Disconnected)]);
            broken += 1;
        }
    }
    assert!(delivered > 0 && broken > 0);
}

#[test]
fn a_one_way_partition_carries_the_other_way() {
    let mut net = Net::connected(World::new(6));
    net.world.partition_one_way(1, 2);
    net.peer(1).send(vec![Bytes::from_static(b"lost for now")]);
    net.peer(2).send(vec![Bytes::from_static(b"arrives")]);
    net.run_for(SECOND);
    assert_eq!(net.peer(1).got, b"arrives");
    assert!(net.peer(2).got.is_empty());
}

#[test]
fn connecting_through_a_partition_times_out() {
    let mut net = Net::listening(World::new(6));
    net.world.isolate(2);
    let address = net.world.address(2, 7000);
    net.peer(1).io.submit(CONNECT, Op::Connect { address });
    net.run_for(SECOND / 2);
    assert!(net.peer(1).errors.is_empty());
    net.run_for(SECOND);
    assert_eq!(net.peer(1).errors, [(CONNECT, IoErrorKind::Disconnected)]);
    net.world.heal_all();
    net.peer(1).io.submit(CONNECT, Op::Connect { address });
    net.run_for(SECOND);
    assert!(net.peer(1).conn.is_some());
}

#[test]
fn a_close_ends_the_other_sides_stream_behind_its_bytes() {
    let mut net = Net::connected(World::new(8));
    net.peer(1).send(vec![Bytes::from_static(b"goodbye")]);
    net.run_for(SECOND / 10);
    let conn = net.peer(1).conn.unwrap();
    net.peer(1).io.submit(Token::net(9), Op::Close { conn });
    net.run_for(SECOND / 10);
    assert_eq!(net.peer(2).got, b"goodbye");
    assert!(net.peer(2).ended);
    assert_eq!(net.peer(1).errors, [(RECV, IoErrorKind::Cancelled)]);
}

/// A length byte, then so many bytes.
fn frame_length(stream: &[u8]) -> Option<usize> {
    stream.first().map(|n| usize::from(*n) + 1)
}

#[test]
fn whole_frames_are_dropped_and_doubled_and_never_torn() {
    let world = World::new(9);
    world.frames(&[1, 2], frame_length);
    let mut net = Net::connected(world);
    let tenth = Rate::percent(10);
    net.world.set_net_faults(NetFaults {
        drop: tenth,
        duplicate: tenth,
        delay: tenth,
        delay_ns: (1_000_000, 20_000_000),
        ..NetFaults::NONE
    });
    let frames: Vec<Vec<u8>> = (0..200u8).map(|n| vec![3, n, n, n]).collect();
    // Sends that end within frames are put together again.
    let all = frames.concat();
    for part in all.chunks(7) {
        net.peer(1).send(vec![Bytes::copy_from_slice(part)]);
        net.run_for(SECOND / 10);
    }
    let got = net.peer(2).got.clone();
    let seen: Vec<u8> = got
        .chunks(4)
        .map(|frame| {
            assert!(frame.len() == 4 && frame[0] == 3 && frame[1] == frame[3], "{frame:?}");
            frame[1]
        })
        .collect();
    assert!(seen.is_sorted(), "in order");
    let counts = net.world.fault_counts();
    let (dropped, doubled) = (counts["frame dropped"], counts["frame duplicated"]);
    assert!(dropped > 5 && doubled > 5 && counts["network delay"] > 5, "{counts:?}");
    assert_eq!(seen.len() as u64, 200 - dropped + doubled);
}

#[test]
fn connections_break_by_draw() {
    let mut net = Net::connected(World::new(10));
    net.world.set_net_faults(NetFaults { break_connection: Rate::ALWAYS, ..NetFaults::NONE });
    net.peer(1).send(vec![Bytes::from_static(b"x")]);
    net.run_for(SECOND);
    assert!(net.peer(1).errors.contains(&(SEND, IoErrorKind::Disconnected)));
    assert_eq!(net.peer(2).errors, [(RECV, IoErrorKind::Disconnected)]);
    assert!(net.peer(2).got.is_empty());
}

#[test]
fn a_paused_process_gets_its_mail_later() {
    let mut net = Net::connected(World::new(11));
    net.world.pause(2, Duration::from_secs(2));
    net.peer(1).send(vec![Bytes::from_static(b"wake up")]);
    net.run_for(SECOND);
    assert!(net.peer(2).got.is_empty());
    net.run_for(2 * SECOND);
    assert_eq!(net.peer(2).got, b"wake up");
}
