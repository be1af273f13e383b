//! Sockets: a back-end connects to itself.

use super::{Bench, Check, pattern};
use crate::{IoErrorKind, Op, Output, Wait};
use bytes::Bytes;
use tidelog_types::limits::PAGE_BYTES;

pub(super) const CHECKS: &[Check] = &[
    ("sockets: echo", echo),
    ("sockets: a large gathered send to a slow reader", large_gathered_send),
    ("sockets: received bytes go behind those in use", receive_behind_filled),
    ("sockets: the peer's close reads as 0 bytes", peer_close),
    ("sockets: close ends a pending receive", close_ends_receive),
    ("sockets: close ends a pending accept", close_ends_accept),
    ("sockets: sending to a closed peer fails", send_to_closed_peer),
    ("sockets: nobody listens", refused),
    ("sockets: an address in use", address_in_use),
    ("sockets: misuse is an error", socket_misuse),
    ("sockets: several connections at once", several_connections),
];

fn echo(b: &mut Bench) {
    let (listener, address) = b.listen();
    demand!(b, address.port() != 0, "listening tells the port");
    let (near, far) = b.connect(listener, address);
    for round in 0..3u8 {
        let word = Bytes::from(vec![round; 11]);
        b.ok(Op::Send { conn: near, data: vec![word.clone()] });
        demand!(b, b.receive_exactly(far, 11) == word, "there");
        b.ok(Op::Send { conn: far, data: vec![word.slice(..5), word.slice(5..)] });
        demand!(b, b.receive_exactly(near, 11) == word, "and back");
    }
    b.ok(Op::Close { conn: near });
    b.ok(Op::Close { conn: far });
    b.ok(Op::CloseListener { listener });
}

fn large_gathered_send(b: &mut Bench) {
    const PIECES: usize = 2000;
    const PIECE: usize = 4100;
    let (listener, address) = b.listen();
    let (near, far) = b.connect(listener, address);
    let all: Bytes = (0..PIECES * PIECE).map(|at| pattern(77, at)).collect::<Vec<u8>>().into();
    let data = (0..PIECES).map(|i| all.slice(i * PIECE..(i + 1) * PIECE)).collect();
    let send = b.submit(Op::Send { conn: near, data });
    b.poll(Wait::No);
    let got = b.receive_exactly(far, PIECES * PIECE);
    demand!(b, got == all, "every byte, in order");
    b.wait_ok(send);
    b.ok(Op::Send { conn: near, data: vec![Bytes::from_static(b"behind")] });
    demand!(b, b.receive_exactly(far, 6) == b"behind", "nothing was left in between");
    b.ok(Op::Close { conn: near });
    b.ok(Op::Close { conn: far });
    b.ok(Op::CloseListener { listener });
}

fn receive_behind_filled(b: &mut Bench) {
    let (listener, address) = b.listen();
    let (near, far) = b.connect(listener, address);
    let mut buffer = b.setup.io.buffers().take_zeroed(PAGE_BYTES);
    buffer[..3].copy_from_slice(b"abc");
    let receive = b.submit(Op::Recv { conn: far, buffer, filled: 3 });
    b.poll(Wait::No);
    b.ok(Op::Send { conn: near, data: vec![Bytes::from_static(b"d")] });
    match b.wait_ok(receive) {
        Output::Received { buffer, bytes } => {
            demand!(b, bytes == 1 && &buffer[..5] == b"abcd\0", "behind what was there");
            demand!(b, buffer.len() == PAGE_BYTES, "the same buffer");
        }
        other => b.fail(format!("receive gave {other:?}")),
    }
    b.ok(Op::Close { conn: near });
    b.ok(Op::Close { conn: far });
    b.ok(Op::CloseListener { listener });
}

fn peer_close(b: &mut Bench) {
    let (listener, address) = b.listen();
    let (near, far) = b.connect(listener, address);
    b.ok(Op::Send { conn: near, data: vec![Bytes::from_static(b"last")] });
    b.ok(Op::Close { conn: near });
    demand!(b, b.receive_exactly(far, 4) == b"last", "what was sent before the close arrives");
    demand!(b, b.receive(far, 16).is_empty(), "then the end");
    b.ok(Op::Close { conn: far });
    b.ok(Op::CloseListener { listener });
}

fn close_ends_receive(b: &mut Bench) {
    let (listener, address) = b.listen();
    let (near, far) = b.connect(listener, address);
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    let receive = b.submit(Op::Recv { conn: far, buffer, filled: 0 });
    b.poll(Wait::No);
    let close = b.submit(Op::Close { conn: far });
    b.wait_ok(close);
    match b.wait(receive) {
        Err(e) if matches!(e.kind, IoErrorKind::Cancelled | IoErrorKind::Disconnected) => {}
        other => b.fail(format!("the receive gave {other:?}")),
    }
    b.error(Op::Send { conn: far, data: vec![Bytes::from_static(b"x")] });
    b.error(Op::Close { conn: far });
    demand!(b, b.receive(near, 16).is_empty(), "the other end sees the close");
    b.ok(Op::Close { conn: near });
    // both in one go, never polled in between
    let (near, far) = b.connect(listener, address);
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    let receive = b.submit(Op::Recv { conn: far, buffer, filled: 0 });
    let close = b.submit(Op::Close { conn: far });
    b.wait_ok(close);
    demand!(b, b.wait(receive).is_err(), "closed before it began");
    b.ok(Op::Close { conn: near });
    b.ok(Op::CloseListener { listener });
}

fn close_ends_accept(b: &mut Bench) {
    let (listener, _) = b.listen();
    let accept = b.submit(Op::Accept { listener });
    b.poll(Wait::No);
    let close = b.submit(Op::CloseListener { listener });
    b.wait_ok(close);
    match b.wait(accept) {
        Err(e) if matches!(e.kind, IoErrorKind::Cancelled | IoErrorKind::Disconnected) => {}
        other => b.fail(format!("the accept gave {other:?}")),
    }
    b.error(Op::Accept { listener });
    b.error(Op::CloseListener { listener });
}

fn send_to_closed_peer(b: &mut Bench) {
    let (listener, address) = b.listen();
    let (near, far) = b.connect(listener, address);
    b.ok(Op::Close { conn: far });
    demand!(b, b.receive(near, 16).is_empty(), "closed");
    // The first sends may still be taken; before long one fails.
    let mut failed = None;
    for _ in 0..1000 {
        let token = b.submit(Op::Send { conn: near, data: vec![Bytes::from_static(&[7; 4096])] });
        if let Err(error) = b.wait(token) {
            failed = Some(error.kind);
            break;
        }
    }
    demand!(b, failed == Some(IoErrorKind::Disconnected), "sending fails as disconnected");
    b.ok(Op::Close { conn: near });
    b.ok(Op::CloseListener { listener });
}

fn refused(b: &mut Bench) {
    let (listener, address) = b.listen();
    b.ok(Op::CloseListener { listener });
    b.error_of_kind(Op::Connect { address }, IoErrorKind::Disconnected);
}

fn address_in_use(b: &mut Bench) {
    let (listener, address) = b.listen();
    b.error_of_kind(Op::Listen { address }, IoErrorKind::AddressInUse);
    b.ok(Op::CloseListener { listener });
    // and at once free again
    match b.ok(Op::Listen { address }) {
        Output::Listening { listener, .. } => b.ok(Op::CloseListener { listener }),
        other => b.fail(format!("listen gave {other:?}")),
    };
}

fn socket_misuse(b: &mut Bench) {
    let (listener, address) = b.listen();
    let (near, far) = b.connect(listener, address);
    // no room to receive into
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    b.error_of_kind(Op::Recv { conn: far, buffer, filled: PAGE_BYTES }, IoErrorKind::Other);
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    b.error_of_kind(Op::Recv { conn: far, buffer, filled: PAGE_BYTES + 1 }, IoErrorKind::Other);
    // two receives on one connection
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    let first = b.submit(Op::Recv { conn: far, buffer, filled: 0 });
    let buffer = b.setup.io.buffers().take(PAGE_BYTES);
    b.error_of_kind(Op::Recv { conn: far, buffer, filled: 0 }, IoErrorKind::Other);
    b.ok(Op::Send { conn: near, data: vec![Bytes::from_static(b"still fine")] });
    match b.wait_ok(first) {
        Output::Received { bytes, .. } => demand!(b, bytes > 0, "the first receive is not disturbed"),
        other => b.fail(format!("receive gave {other:?}")),
    }
    b.ok(Op::Close { conn: near });
    b.ok(Op::Close { conn: far });
    b.ok(Op::CloseListener { listener });
}

fn several_connections(b: &mut Bench) {
    let (listener, address) = b.listen();
    let mut ends = Vec::new();
    for _ in 0..8 {
        ends.push(b.connect(listener, address));
    }
    let mut tokens = Vec::new();
    for (i, (near, far)) in ends.iter().enumerate() {
        let word = Bytes::from(vec![i as u8; 100]);
        tokens.push(b.submit(Op::Send { conn: *near, data: vec![word.clone()] }));
        tokens.push(b.submit(Op::Send { conn: *far, data: vec![word] }));
    }
    for (i, (near, far)) in ends.iter().enumerate() {
        demand!(b, b.receive_exactly(*far, 100) == vec![i as u8; 100], "no connection gets another's bytes");
        demand!(b, b.receive_exactly(*near, 100) == vec![i as u8; 100], "in either direction");
    }
    for token in tokens {
        b.wait_ok(token);
    }
    for (near, far) in ends {
        b.ok(Op::Close { conn: far });
        b.ok(Op::Close { conn: near });
    }
    b.ok(Op::CloseListener { listener });
}
