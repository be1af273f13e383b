//! Frames and what is in them: `docs/formats/wire.md`.
//!
//! Encoders append to a `Vec<u8>`; decoders take any bytes and return a typed error, they never panic and never
//! allocate more than the bytes at hand justify. Nothing here knows of connections or of time.

mod answer;
mod header;
mod hello;
mod message;
mod reader;
mod request;

pub(crate) use answer::{ANSWER_BYTES_MAX, status_json};
pub use answer::{Answer, answers, decode_records, decode_status, encode_answer};
pub use header::{FrameHeader, FrameKind, HEADER_BYTES, STATUS_PARTITIONS_MAX, VERSION, frame_length};
pub(crate) use header::{META_BYTES_MAX, padded, put_frame, put_frame_head};
pub use hello::{PeerHello, Refusal, RefusalCode, ServerHello, decode_client_hello};
pub(crate) use hello::{put_client_hello, put_refusal};
pub use message::{SLOT_BYTES, decode_append, decode_fetched, decode_messages, encode_message};
pub(crate) use request::request_head;
pub use request::{ClientCall, decode_request, encode_request};

/// Why bytes are not a frame, or a frame not what its kind says.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WireError {
    /// Something else speaks.
    #[error("not a Tidelog frame")]
    Magic,
    /// Another version.
    #[error("frame version {0} is not known to this version ({VERSION})")]
    Version(u8),
    /// A kind that this version does not know.
    #[error("frame kind {0} is not known to this version")]
    Kind(u8),
    /// A kind that does not belong here.
    #[error("{0:?} frame where it does not belong")]
    Unexpected(FrameKind),
    /// Changed on the way.
    #[error("{what} checksum is {found:#010x}, computed {computed:#010x}")]
    Checksum {
        /// Which part.
        what: &'static str,
        /// As received.
        found: u32,
        /// Over the bytes.
        computed: u32,
    },
    /// A length over its limit.
    #[error("{kind:?} frame with {len} bytes of {what}: over the limit of {max}")]
    TooLong {
        /// Which kind.
        kind: FrameKind,
        /// Which part.
        what: &'static str,
        /// As received.
        len: u32,
        /// At most.
        max: u32,
    },
    /// A field out of its bounds.
    #[error("{0} out of bounds")]
    Field(&'static str),
    /// The metadata ends before what it should hold.
    #[error("metadata is cut short")]
    Short,
}
