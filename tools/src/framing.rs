//! Records in a stream of bytes: a line each, or a length each.

use crate::commands::Framing;
use std::io::{BufRead, Read, Write};
use tidelog_types::limits::PAYLOAD_BYTES_MAX;

/// Why the input has no next record.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("cannot read the input: {0}")]
    Io(#[from] std::io::Error),
    #[error(
        "record {record} has {bytes} bytes, over the limit of {PAYLOAD_BYTES_MAX}; chunk it before appending"
    )]
    // It is passed over: the next record can be read.
    TooLarge { record: u64, bytes: u64 },
    #[error("the input ends within record {record}: {have} of {need} bytes")]
    Cut { record: u64, have: u64, need: u64 },
}

/// Reads records one by one; memory is bounded by one record.
pub(crate) struct Records<R> {
    input: R,
    framing: Framing,
    count: u64,
}

impl<R: BufRead> Records<R> {
    pub(crate) fn new(input: R, framing: Framing) -> Records<R> {
        Records { input, framing, count: 0 }
    }

    /// The next record; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, InputError> {
        let record = match self.framing {
            Framing::Lines => self.line(),
            Framing::Length => self.length(),
        };
        self.count += u64::from(matches!(record, Ok(Some(_)) | Err(InputError::TooLarge { .. })));
        record
    }

    fn line(&mut self) -> Result<Option<Vec<u8>>, InputError> {
        let mut line = Vec::new();
        let limit = PAYLOAD_BYTES_MAX as u64 + 1;
        if (&mut self.input).take(limit).read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() as u64 == limit {
            let bytes = limit + self.rest_of_line()?;
            return Err(InputError::TooLarge { record: self.count + 1, bytes });
        }
        Ok(Some(line))
    }

    /// Passes over the rest of a line; returns its length without its end.
    fn rest_of_line(&mut self) -> Result<u64, InputError> {
        let mut bytes = 0;
        loop {
            let piece = self.input.fill_buf()?;
            let newline = piece.iter().position(|byte| *byte == b'\n');
            let (ended, used) = (newline.is_some() || piece.is_empty(), newline.unwrap_or(piece.len()));
            self.input.consume(used + usize::from(newline.is_some()));
            bytes += used as u64;
            if ended {
                return Ok(bytes);
            }
        }
    }

    fn length(&mut self) -> Result<Option<Vec<u8>>, InputError> {
        let record = self.count + 1;
        let mut length = Vec::new();
        (&mut self.input).take(4).read_to_end(&mut length)?;
        if length.is_empty() {
            return Ok(None);
        }
        let Some(length) = length.first_chunk().filter(|_| length.len() == 4) else {
            return Err(InputError::Cut { record, have: length.len() as u64, need: 4 });
        };
        let need = u64::from(u32::from_le_bytes(*length));
        if need > PAYLOAD_BYTES_MAX as u64 {
            let have = std::io::copy(&mut (&mut self.input).take(need), &mut std::io::sink())?;
            return Err(if have == need {
                InputError::TooLarge { record, bytes: need }
            } else {
                InputError::Cut { record, have, need }
            });
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(need).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != need {
            return Err(InputError::Cut { record, have: bytes.len() as u64, need });
        }
        Ok(Some(bytes))
    }
}

/// Writes one record.
pub(crate) fn write(out: &mut impl Write, framing: Framing, record: &[u8]) -> std::io::Result<()> {
    match framing {
        Framing::Lines => {
            out.write_all(record)?;
            out.write_all(b"\n")
        }
        Framing::Length => {
            let length = u32::try_from(record.len()).map_err(std::io::Error::other)?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(record)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], framing: Framing) -> Result<Vec<Vec<u8>>, InputError> {
        let mut records = Records::new(input, framing);
        std::iter::from_fn(|| records.next().transpose()).collect()
    }

    #[test]
    fn lines() {
        assert_eq!(all(b"a\n\nbc", Framing::Lines).unwrap(), [&b"a"[..], b"", b"bc"]);
        assert_eq!(all(b"a\r\n", Framing::Lines).unwrap(), [b"a\r"]);
        let long = vec![b'x'; PAYLOAD_BYTES_MAX + 1];
        assert!(matches!(all(&long, Framing::Lines), Err(InputError::TooLarge { record: 1, .. })));
        // It is passed over, whole.
        let stream = [b"a\n", long.as_slice(), b"yy\nb\n"].concat();
        let mut records = Records::new(&stream[..], Framing::Lines);
        assert_eq!(records.next().unwrap().unwrap(), b"a");
        let length = PAYLOAD_BYTES_MAX as u64 + 3;
        assert!(matches!(records.next(), Err(InputError::TooLarge { record: 2, bytes }) if bytes == length));
        assert_eq!(records.next().unwrap().unwrap(), b"b");
        assert!(records.next().unwrap().is_none());
        let mut fits = vec![b'x'; PAYLOAD_BYTES_MAX];
        fits.push(b'\n');
        assert_eq!(all(&fits, Framing::Lines).unwrap()[0].len(), PAYLOAD_BYTES_MAX);
    }

    #[test]
    fn lengths() {
        let mut stream = Vec::new();
        for record in [&b"a\nb"[..], b"", b"cd"] {
            write(&mut stream, Framing::Length, record).unwrap();
        }
        assert_eq!(all(&stream, Framing::Length).unwrap(), [&b"a\nb"[..], b"", b"cd"]);
        assert!(matches!(
            all(&stream[..stream.len() - 1], Framing::Length),
            Err(InputError::Cut { record: 3, have: 1, need: 2 })
        ));
        assert!(matches!(
            all(&[0xff; 8], Framing::Length),
            Err(InputError::Cut { record: 1, have: 4, need: 0xffff_ffff })
        ));
        let large = vec![0; PAYLOAD_BYTES_MAX + 1];
        let mut stream = Vec::new();
        write(&mut stream, Framing::Length, &large).unwrap();
        write(&mut stream, Framing::Length, b"b").unwrap();
        let mut records = Records::new(&stream[..], Framing::Length);
        assert!(matches!(records.next(), Err(InputError::TooLarge { record: 1, .. })));
        assert_eq!(records.next().unwrap().unwrap(), b"b");
        assert!(matches!(
            all(&[1, 0], Framing::Length),
            Err(InputError::Cut { record: 1, have: 2, need: 4 })
        ));
    }
}
