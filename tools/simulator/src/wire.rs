//! As much of `docs/formats/wire.md` as the world needs to drop and repeat whole frames.

/// Length of the frame at the start of a stream, once its header is there.
pub(crate) fn frame_length(stream: &[u8]) -> Option<usize> {
    let at = |offset: usize| {
        let bytes = stream.get(offset..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok().map(|len| len.next_multiple_of(64))
    };
    (stream.len() >= 64).then_some(())?;
    Some(64 + at(12)? + at(20)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_metadata_and_payload_are_counted_with_their_padding() {
        let mut frame = vec![0u8; 64];
        assert_eq!(frame_length(&frame[..63]), None);
        assert_eq!(frame_length(&frame), Some(64));
        frame[12] = 3;
        frame[20] = 65;
        assert_eq!(frame_length(&frame), Some(64 + 64 + 128));
    }
}
