//! Dialling a port that nobody listens on, on this very host, within the range that outgoing connections take their own ports from.
//!
//! The kernel gives a dialling socket the ports of that range in turn, every second one, and once it is the dialled port itself: the socket meets itself,
//! and looks connected. A node that dials its neighbour's port so would then hold it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use tidelog_io::{BackEnd, Foreground, Io, IoErrorKind, IoOptions, Op, open_back_end};

/// The ports of outgoing connections.
fn range() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").expect("the kernel tells");
    let mut ports = text.split_whitespace().map(|port| port.parse().expect("a port"));
    (ports.next().expect("the first"), ports.next().expect("the last"))
}

/// A port of the range that nobody listens on, of those that the kernel tries first.
fn quiet_address() -> SocketAddr {
    let (first, last) = range();
    let tried_first = (first..last).step_by(2).skip(1000);
    let addresses = tried_first.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let mut free = addresses.filter(|address| TcpListener::bind(address).is_ok());
    free.next().expect("a port that is free")
}

fn never_meets_itself(kind: BackEnd) {
    let address = quiet_address();
    let mut io = open_back_end(kind, &IoOptions::small()).expect("it opens");
    let (first, last) = range();
    let mut met = 0;
    for _ in 0..4 * u32::from(last - first) {
        let io: &mut dyn Io = io.as_mut();
        let error = Foreground::new(io).run(Op::Connect { address }).expect_err("nobody listens");
        assert_eq!(error.kind, IoErrorKind::Disconnected, "{error}");
        if error.message.contains("itself") {
            met += 1;
            // Its port is free at once for whoever is to listen there.
            TcpListener::bind(address).expect("the port is not held");
            break;
        }
    }
    assert_eq!(met, 1, "no socket met itself: this proves nothing on this kernel");
}

/// One behind the other: each would find the other's listener.
#[test]
fn a_dialling_socket_never_meets_itself() {
    never_meets_itself(BackEnd::Uring);
    never_meets_itself(BackEnd::Blocking);
}
