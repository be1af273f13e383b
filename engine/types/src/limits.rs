//! Sizes that formats and buffers agree on. Relations between them are checked by the compiler.

/// Direct I/O's unit here: buffers, offsets and lengths of WAL writes are multiples of it.
pub const PAGE_BYTES: usize = 4096;
/// Records start at multiples of this within a batch, and their headers are this long.
pub const RECORD_ALIGN: usize = 64;
/// Largest payload of one record. Larger values are for the caller to chunk.
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;
/// Largest batch, header and footer included: what one sync makes durable at most.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// Payloads of this size and more start on a page of their own.
pub const PAGED_PAYLOAD_BYTES: usize = 64 << 10;
/// Smallest segment.
pub const SEGMENT_BYTES_MIN: u64 = 16 << 20;
/// Largest segment.
pub const SEGMENT_BYTES_MAX: u64 = 4 << 30;
/// Most record bytes that one append message carries: the rest goes into the next message.
pub const APPEND_BYTES_MAX: usize = 3 << 20;
/// Most voters of a partition.
pub const VOTERS_MAX: usize = 9;
/// Most partitions of a cluster.
pub const PARTITIONS_MAX: u64 = 1 << 16;

const _: () = assert!(PAYLOAD_BYTES_MAX + 64 * 1024 <= APPEND_BYTES_MAX, "any record fits an append message");
const _: () =
    assert!(APPEND_BYTES_MAX + 256 * 1024 <= BATCH_BYTES_MAX, "any append message fits an empty batch");
const _: () = assert!(BATCH_BYTES_MAX as u64 * 4 <= SEGMENT_BYTES_MIN, "a segment holds several batches");
const _: () = assert!(PAGE_BYTES.is_multiple_of(RECORD_ALIGN));
const _: () = assert!(PAGED_PAYLOAD_BYTES.is_multiple_of(PAGE_BYTES));
