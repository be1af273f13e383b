//! Clients that do not play by the rules: the node ends their connection, and goes on serving everyone else.

use crate::clock::wait_for;
use crate::cluster::{Cluster, Shape};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use tidelog_net::wire::{FrameHeader, FrameKind};
use tidelog_types::limits::PAYLOAD_BYTES_MAX;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the node accepts");
    stream.set_read_timeout(Some(crate::clock::PATIENCE)).expect("a time-out");
    stream.set_write_timeout(Some(crate::clock::PATIENCE)).expect("a time-out");
    stream
}

/// Waits until the other end has closed; returns what it said before.
fn closed(mut stream: TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        // What was sent and not read makes the close a reset.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("the connection is not closed: {e}"),
    }
    said
}

fn client_hello() -> Vec<u8> {
    FrameHeader::new(FrameKind::ClientHello, [0; 5]).encode().to_vec()
}

/// A frame header with any payload length and a right checksum.
fn forged(payload_len: u32) -> Vec<u8> {
    let mut header = FrameHeader::new(FrameKind::AppendRequest, [0; 5]).encode();
    header[20..24].copy_from_slice(&payload_len.to_le_bytes());
    let crc = crc32c::crc32c(&header[4..]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    header.to_vec()
}

#[test]
fn garbage_half_frames_and_lengths_that_lie() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let address = cluster.address(1);
    let works = |cluster: &Cluster| assert_eq!(cluster.append_all("fine\n", &[]).len(), 1);

    for garbage in [&b"GET / HTTP/1.1\r\nHost: tidelog\r\n\r\n"[..], &[0; 4096], &[0xff; 100_000]] {
        let mut stream = connect(address);
        // The node may have closed before all of it is written.
        let _ = stream.write_all(garbage);
        let said = closed(stream);
        assert!(garbage.len() > 4096 || !said.is_empty(), "it is told why");
    }
    works(&cluster);

    for length in [u32::MAX, u32::try_from(PAYLOAD_BYTES_MAX).expect("a small number") + 1] {
        let mut stream = connect(address);
        stream.write_all(&client_hello()).expect("a hello");
        stream.write_all(&forged(length)).expect("a header");
        closed(stream);
    }
    works(&cluster);

    // Half a header, half a frame, and then nothing: closed after their times. Others are served meanwhile.
    let mut half_header = connect(address);
    half_header.write_all(&client_hello()[..20]).expect("a part");
    let mut half_frame = connect(address);
    half_frame.write_all(&client_hello()).expect("a hello");
    half_frame.write_all(&forged(1000)).expect("a header");
    half_frame.write_all(&[1; 10]).expect("a part");
    works(&cluster);
    closed(half_header);
    closed(half_frame);
    // One that goes away in the middle is no trouble either.
    let mut gone = connect(address);
    gone.write_all(&client_hello()[..20]).expect("a part");
    drop(gone);
    works(&cluster);
    assert!(!cluster.node(1).log().contains("panicked"));
    cluster.stop();
}

/// More silent connections than the node keeps: it serves those that speak, and lets the silent ones go.
#[test]
fn a_flood_of_silent_connections() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let address = cluster.address(1);
    let flood: Vec<TcpStream> = (0..400).map(|_| connect(address)).collect();
    assert_eq!(cluster.append_all("during the flood\n", &[]).len(), 1);
    for mut stream in flood {
        let mut byte = [0];
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a time-out");
        wait_for("a silent connection's end", || match stream.read(&mut byte) {
            Ok(n) => Some(n),
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => Some(0),
            Err(_) => None,
        });
    }
    assert_eq!(cluster.append_all("after the flood\n", &[]).len(), 1);
    cluster.stop();
}

/// More clients than the node takes: the surplus is told so.
#[test]
fn more_clients_than_the_limit() {
    let mut cluster =
        Cluster::start(&Shape { nodes: 1, extra: "[limits]\nclient_connections = 8\n", ..Shape::default() });
    let address = cluster.address(1);
    let greet = || {
        let mut stream = connect(address);
        stream.write_all(&client_hello()).expect("a hello");
        let mut answer = [0; 64];
        stream.read_exact(&mut answer).expect("an answer");
        let header = FrameHeader::decode(&answer).expect("a frame").expect("a whole header");
        (stream, header.kind)
    };
    let mut taken = Vec::new();
    for _ in 0..8 {
        let (stream, kind) = greet();
        assert_eq!(kind, FrameKind::ServerHello);
        taken.push(stream);
    }
    let (stream, kind) = greet();
    assert_eq!(kind, FrameKind::Refused);
    let said = closed(stream);
    assert!(String::from_utf8_lossy(&said).contains("8 client connections, its limit"), "{said:?}");
    drop(taken);
    wait_for("room for a client", || cluster.status(1));
    assert_eq!(cluster.append_all("room again\n", &[]).len(), 1);
    cluster.stop();
}

/// A record over the limit is refused by itself; those before and behind it are appended.
#[test]
fn a_record_over_the_limit() {
    let mut cluster = Cluster::start(&Shape { nodes: 1, ..Shape::default() });
    let over = "x".repeat(PAYLOAD_BYTES_MAX + 1);
    let most = "y".repeat(PAYLOAD_BYTES_MAX);
    let said = cluster.append(&format!("before\n{over}\n{most}\nbehind\n"), &[]);
    assert_eq!(said.code, 1, "{:.300}", said.stderr);
    let lines = said.json();
    let outcomes: Vec<&str> = lines.iter().filter_map(|line| line["outcome"].as_str()).collect();
    assert_eq!(outcomes, ["acked", "refused", "acked", "acked"]);
    let error = lines[1]["error"].as_str().expect("a reason");
    assert!(error.contains("2097153 bytes") && error.contains("limit of 2097152"), "{error}");
    let log = crate::history::read_local(&cluster, 1);
    let sizes: Vec<usize> = log.iter().map(|record| record.payload.len()).collect();
    assert_eq!(sizes, [6, PAYLOAD_BYTES_MAX, 6]);
    cluster.stop();
}
