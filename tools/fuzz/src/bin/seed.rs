//! Writes the inputs of the corpus that no document has an example of: frames of each kind, and an identity file.

use bytes::Bytes;
use core::time::Duration;
use std::path::Path;
use tidelog::formation::{Formed, Member};
use tidelog::identity::Identity;
use tidelog::request::{Request, RequestError};
use tidelog_net::wire::{FrameHeader, FrameKind, HEADER_BYTES, encode_answer, encode_request};
use tidelog_types::{ClusterId, Incarnation, NodeId, PartitionId};

fn main() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |name: String, bytes: &[u8]| std::fs::write(corpus.join(name), bytes).expect("a file");
    for code in 0..=u8::MAX {
        if let Some(kind) = FrameKind::from_code(code) {
            let (meta_max, payload_max) = kind.limits();
            let (meta, payload) = (meta_max.min(128) as usize, payload_max.min(64));
            write(format!("frame/kind-{code}"), &frame(kind, &vec![1; meta], payload));
        }
    }
    let mut answers = Vec::new();
    for error in [
        RequestError::busy(Duration::from_millis(5)),
        RequestError::NotLeader { hint: Some(NodeId(2)), address: Some("127.0.0.1:7102".into()) },
        RequestError::Unavailable("it is being recovered".into()),
    ] {
        encode_answer(&mut answers, 7, &Err(error));
    }
    write("frame/answers".into(), &frame(FrameKind::Answers, &answers, 0));
    let request = Request::Append {
        partition: PartitionId(3),
        session: None,
        payload: Bytes::from_static(b"hello"),
        payload_crc: crc32c::crc32c(b"hello"),
    };
    let (header, payload) = encode_request(1, &request);
    let mut append = header.encode().to_vec();
    append.extend_from_slice(&payload);
    append.resize(header.frame_bytes(), 0);
    write("frame/append".into(), &append);
    let member = |node| Member { node: NodeId(node), incarnation: Incarnation(70 + node) };
    let identity = Identity {
        cluster_name: "demo".into(),
        node: NodeId(2),
        incarnation: Incarnation(72),
        shard_count: 1,
        partitions: 8,
        replication: 3,
        key_hash: tidelog::MAP_VERSION,
        formed: Some(Formed { cluster: ClusterId(5), members: (1..=3).map(member).collect() }),
        has_log: true,
    };
    write("identity/formed".into(), &identity.encode());
}

fn frame(kind: FrameKind, meta: &[u8], payload_len: u32) -> Vec<u8> {
    let mut padded = meta.to_vec();
    padded.resize(meta.len().next_multiple_of(HEADER_BYTES), 0);
    let header = FrameHeader {
        meta_len: u32::try_from(meta.len()).expect("short"),
        meta_crc: if meta.is_empty() { 0 } else { crc32c::crc32c(&padded) },
        payload_len,
        ..FrameHeader::new(kind, [1, 2, 3, 4, 5])
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend(padded);
    bytes.resize(bytes.len() + (payload_len as usize).next_multiple_of(HEADER_BYTES), 0);
    bytes
}
