//! The footer: what a batch holds, and what the batch before it held. `docs/formats/batch.md`.

use super::{Fields, FormatError, check};
use tidelog_types::limits::BATCH_BYTES_MAX;
use tidelog_types::{Generation, Incarnation, Index, Lsn, PartitionId, RecordKind};

/// First four bytes of a footer.
pub const FOOTER_MAGIC: [u8; 4] = *b"TLfo";
/// Length of a footer without its spans.
pub const FOOTER_BYTES: usize = 64;
/// Length of a span.
pub const SPAN_BYTES: usize = 40;

/// Length of a footer with `spans` spans.
pub const fn footer_bytes(spans: usize) -> usize {
    FOOTER_BYTES + spans * SPAN_BYTES
}

/// What a batch holds of one partition: a run of entries of one generation and consecutive indexes, or one
/// control record, which it repeats in full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// The partition.
    pub partition: PartitionId,
    /// The generation of the entries; otherwise the record's.
    pub generation: Generation,
    /// First index of the run; otherwise the record's `index` field (a promise: the vote; a cut: the last kept).
    pub a: Index,
    /// Number of entries; 1 for a control record.
    pub count: u32,
    /// Offset of the first record of it in the batch.
    pub offset: u32,
    /// [`RecordKind::Data`] for a run of entries, whatever their kinds; otherwise the record's kind.
    pub kind: RecordKind,
}

impl Span {
    /// Last index of a run of entries.
    pub const fn last(&self) -> Index {
        Index(self.a.0.saturating_add(self.count.saturating_sub(1) as u64))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.partition.0.to_le_bytes());
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        out.extend_from_slice(&self.a.0.to_le_bytes());
        out.extend_from_slice(&self.count.to_le_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.push(self.kind.code());
        out.extend_from_slice(&[0; 7]);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Span, FormatError> {
        let (partition, generation, a) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (count, offset) = (fields.u32()?, fields.u32()?);
        let [code] = fields.take::<1>()?;
        fields.zero::<7>()?;
        if count == 0 || a.checked_add(u64::from(count)).is_none() {
            return Err(FormatError::Field("count"));
        }
        Ok(Span {
            partition: PartitionId(partition),
            generation: Generation(generation),
            a: Index(a),
            count,
            offset,
            kind: RecordKind::from_code(code).ok_or(FormatError::Field("kind"))?,
        })
    }
}

/// A decoded footer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Footer {
    /// The data directory's life.
    pub store: Incarnation,
    /// The segment that it lies in.
    pub segment_seq: u64,
    /// Its batch's position.
    pub lsn: Lsn,
    /// Its batch's number.
    pub batch_seq: u64,
    /// Number of the batch that `echo` describes; 0: none.
    pub echo_batch_seq: u64,
    /// Checksum of its batch's header.
    pub header_crc: u32,
    /// What its batch holds.
    pub own: Vec<Span>,
    /// What the batch before it held.
    pub echo: Vec<Span>,
}

impl Footer {
    /// Appends the encoded footer to `out`.
    ///
    /// The spans come as slices of their own so that a writer need not build a [`Footer`].
    pub fn encode(&self, own: &[Span], echo: &[Span], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&FOOTER_MAGIC);
        out.extend_from_slice(&[0; 4]);
        for field in [self.store.0, self.segment_seq, self.lsn.0, self.batch_seq] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&(own.len() as u32).to_le_bytes());
        out.extend_from_slice(&(echo.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.echo_batch_seq.to_le_bytes());
        out.extend_from_slice(&self.header_crc.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for span in own.iter().chain(echo) {
            span.encode(out);
        }
        let crc = crc32c::crc32c(&out[start + 8..]);
        out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads and verifies a footer from the start of `bytes`. Whether it belongs there is the caller's question.
    ///
    /// # Errors
    /// Says in which way the bytes are not a footer.
    pub fn decode(bytes: &[u8]) -> Result<Footer, FormatError> {
        if !bytes.starts_with(&FOOTER_MAGIC) {
            return Err(if bytes.len() < 4 { FormatError::Short } else { FormatError::Magic });
        }
        let mut fields = Fields::new(bytes);
        fields.take::<8>()?;
        let (store, segment_seq, lsn, batch_seq) =
            (fields.u64()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let (own, echo) = (fields.u32()? as usize, fields.u32()? as usize);
        if own > BATCH_BYTES_MAX / SPAN_BYTES || echo > BATCH_BYTES_MAX / SPAN_BYTES {
            return Err(FormatError::Field("spans"));
        }
        check(bytes, FOOTER_MAGIC, bytes.get(8..footer_bytes(own + echo)).ok_or(FormatError::Short)?)?;
        let (echo_batch_seq, header_crc) = (fields.u64()?, fields.u32()?);
        fields.zero::<4>()?;
        let mut spans = |count| (0..count).map(|_| Span::decode(&mut fields)).collect::<Result<Vec<_>, _>>();
        Ok(Footer {
            store: Incarnation(store),
            segment_seq,
            lsn: Lsn(lsn),
            batch_seq,
            echo_batch_seq,
            header_crc,
            own: spans(own)?,
            echo: spans(echo)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span(partition: u64, a: u64, count: u32) -> Span {
        Span {
            partition: PartitionId(partition),
            generation: Generation(9),
            a: Index(a),
            count,
            offset: 128,
            kind: RecordKind::Data,
        }
    }

    fn sample() -> Footer {
        Footer {
            store: Incarnation(1),
            segment_seq: 2,
            lsn: Lsn(8192),
            batch_seq: 3,
            echo_batch_seq: 2,
            header_crc: 77,
            own: vec![span(1, 10, 4), span(2, 1, 1)],
            echo: vec![span(1, 9, 1)],
        }
    }

    #[test]
    fn round_trip_and_every_flipped_bit_is_noticed() {
        let mut good = Vec::new();
        sample().encode(&sample().own, &sample().echo, &mut good);
        assert_eq!(good.len(), footer_bytes(3));
        assert_eq!(Footer::decode(&good), Ok(sample()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Footer::decode(&good[..len]).is_err(), "length {len}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), valid: bool) {
            if valid && bytes.len() >= 104 {
                bytes[..4].copy_from_slice(&FOOTER_MAGIC);
                bytes[40..48].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
                let crc = crc32c::crc32c(&bytes[8..104]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            let _ = Footer::decode(&bytes);
        }
    }
}
