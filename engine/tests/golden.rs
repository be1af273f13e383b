//! The worked example of `docs/formats/identity.md`: the encoder gives exactly these bytes, and a small decoder, written from
//! the document and sharing no code with the crate, reads from them what the document says.

#[path = "../wal/tests/worked/mod.rs"]
mod worked;

use tidelog::identity::{Found, Identity};
use tidelog_types::{Incarnation, NodeId};
use worked::{crc, example, number, pinned};

const IDENTITY: &str = include_str!("../../docs/formats/identity.md");

#[test]
fn identity() {
    let identity = Identity {
        cluster_name: "demo".into(),
        node: NodeId(2),
        incarnation: Incarnation(0x4d),
        shard_count: 1,
        partitions: 8,
        replication: 3,
        key_hash: 0x1_0001,
        formed: None,
        has_log: false,
        place: Some(tidelog_io::Place { inode: 0x2a, born_ns: Some(0x1234) }),
        barred: None,
    };
    pinned(IDENTITY, 0, &identity.encode_file());

    let file = example(IDENTITY, 0);
    assert_eq!(file.len(), 8192);
    for page in [&file[..4096], &file[4096..]] {
        assert_eq!(&page[..8], b"TIDELOGI");
        assert_eq!(number(page, 8, 4), u64::from(crc(&page[12..])));
        let long: Vec<_> = [16, 24, 32, 40].iter().map(|at| number(page, *at, 8)).collect();
        assert_eq!(long, [2, 0x4d, 0, 8], "node, incarnation, cluster, partitions");
        let short: Vec<_> = [12, 48, 52, 56, 60, 64, 68, 72].iter().map(|at| number(page, *at, 4)).collect();
        assert_eq!(
            short,
            [2, 3, 1, 0x1_0001, 2 << 20, 4, 0, 0],
            "version, replication, shards, hash, limit, name, members, log"
        );
        assert_eq!(&page[128..132], b"demo");
        assert_eq!(
            (number(page, 76, 4), number(page, 80, 8), number(page, 88, 8)),
            (1, 0x2a, 0x1234),
            "place"
        );
        assert!(page[96..128].iter().chain(&page[132..]).all(|b| *b == 0));
    }
    assert_eq!(Found::decode(&file), Ok(Found { identity, flaw: None }));
}
