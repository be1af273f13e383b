//! What each target does with its bytes: decodes them as they are, and once more with the checksum put right, so that what lies
//! behind the checksum is reached, too. What decodes must encode to the same bytes again.
//!
//! A decoder fails its target by a panic, by overflow, or by taking what it would not have written.

use bytes::Bytes;
use tidelog::config::Config;
use tidelog::identity::{Found, Identity};
use tidelog_net::wire::{self, FrameHeader};
use tidelog_types::RecordHeader;
use tidelog_types::limits::PAGE_BYTES;
use tidelog_types::record::HEADER_BYTES;
use tidelog_wal::format::{BATCH_HEADER_BYTES, BatchHeader, Footer, SegmentHeader, footer_bytes};

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("record", record),
    ("batch_header", batch_header),
    ("footer", footer),
    ("segment_header", segment_header),
    ("identity", identity),
    ("config", config),
];

/// The bytes with the checksum of `covered` at `at`; none if they are too few.
fn mended(data: &[u8], at: usize, covered: std::ops::Range<usize>) -> Option<Vec<u8>> {
    let mut bytes = data.to_vec();
    let crc = crc32c::crc32c(bytes.get(covered)?);
    bytes.get_mut(at..at + 4)?.copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

fn both(data: &[u8], at: usize, covered: std::ops::Range<usize>, decode: impl Fn(&[u8])) {
    decode(data);
    if let Some(mended) = mended(data, at, covered) {
        decode(&mended);
    }
}

/// A frame of the wire: its header, and all decoders of what may follow it, whatever its kind says.
pub fn frame(data: &[u8]) {
    both(data, 0, 4..wire::HEADER_BYTES, |data| {
        let Ok(Some(header)) = FrameHeader::decode(data) else { return };
        assert_eq!(header.encode(), data[..wire::HEADER_BYTES]);
        let rest = &data[wire::HEADER_BYTES..];
        let meta_padded = rest.get(..header.meta_padded()).unwrap_or(rest);
        let _ = header.check_meta(meta_padded);
        let meta = meta_padded.get(..header.meta_len as usize).unwrap_or(meta_padded);
        let payload = Bytes::copy_from_slice(rest.get(header.meta_padded()..).unwrap_or_default());
        let _ = wire::decode_request(&header, payload.clone());
        let _ = wire::decode_records(&header, payload.clone());
        let _ = wire::decode_status(&header, meta);
        let _ = wire::decode_append(meta);
        let _ = wire::decode_client_hello(&header, meta);
        let _ = wire::PeerHello::decode(&header, meta);
        let _ = wire::ServerHello::decode(&header, meta);
        let _ = wire::Refusal::decode(&header, meta);
        wire::decode_messages(meta).for_each(drop);
        wire::answers(meta).for_each(drop);
        tidelog_types::record::records(&payload).for_each(drop);
    });
}

/// A record: header, extension, payload.
pub fn record(data: &[u8]) {
    let extended = data.get(14).is_some_and(|flags| flags & 1 != 0);
    let head = if extended { 2 * HEADER_BYTES } else { HEADER_BYTES };
    both(data, 0, 4..head, |data| {
        let _ = RecordHeader::decode_record(data);
        let Ok(header) = RecordHeader::decode(data) else { return };
        let mut again = vec![0; header.head_bytes()];
        header.encode(&mut again);
        assert_eq!(again, data[..again.len()]);
        let _ = (header.meta(), header.session(), header.session_key(), header.record_bytes());
    });
}

/// A batch's header.
pub fn batch_header(data: &[u8]) {
    both(data, 4, 8..BATCH_HEADER_BYTES, |data| {
        let Ok(header) = BatchHeader::decode(data) else { return };
        let mut again = [0; BATCH_HEADER_BYTES];
        assert_eq!(header.encode(&mut again), header.crc);
        assert_eq!(again, data[..again.len()]);
    });
}

/// A batch's footer.
pub fn footer(data: &[u8]) {
    let count = |at: usize| {
        data.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |b| u32::from_le_bytes(*b) as usize)
    };
    let spans = count(40).saturating_add(count(44)).min(data.len());
    both(data, 4, 8..footer_bytes(spans), |data| {
        let Ok(footer) = Footer::decode(data) else { return };
        let mut again = Vec::new();
        footer.encode(&footer.own, &footer.echo, &mut again);
        assert_eq!(again, data[..again.len()]);
        footer.own.iter().chain(&footer.echo).for_each(|span| {
            let _ = span.last();
        });
    });
}

/// A segment's header, and its two copies.
pub fn segment_header(data: &[u8]) {
    both(data, 4, 8..PAGE_BYTES, |data| {
        let _ = SegmentHeader::decode_either(data);
        let Ok(header) = SegmentHeader::decode(data) else { return };
        let mut again = Box::new([0; PAGE_BYTES]);
        header.encode(&mut again);
        assert_eq!(SegmentHeader::decode(&again[..]), Ok(header));
        assert!(header.start() < header.end());
    });
}

/// The identity file: its bytes as a page, and as a file of two.
pub fn identity(data: &[u8]) {
    both(data, 8, 12..data.len().max(12), |data| {
        let _ = Found::decode(data);
        let Ok(identity) = Identity::decode(data) else { return };
        assert_eq!(Identity::decode(&identity.encode()), Ok(identity.clone()));
        assert_eq!(Found::decode(&identity.encode_file()), Ok(Found { identity, flaw: None }));
    });
}

/// A configuration: what is taken is written as one that says the same.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, "fuzz.toml") {
        Ok(config) => {
            let written = config.to_toml();
            let again = Config::parse(&written, "again.toml").expect("what is written is a configuration");
            assert_eq!(values(&again.to_toml()), values(&written));
        }
        Err(error) => drop(error.to_string()),
    }
}

/// Without the remarks at the ends of lines, which say where each value comes from.
fn values(text: &str) -> Vec<&str> {
    text.lines().map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value)).collect()
}
