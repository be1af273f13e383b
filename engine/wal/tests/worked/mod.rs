//! The worked examples of `docs/formats`: their bytes, and the means to read them without the code that they are to judge.

#![allow(dead_code, unreachable_pub)] // each test file uses its part

/// The bytes of a document's `nth` example, from 0: lines of offset and bytes, zeros left out, the length last.
pub fn example(document: &str, nth: usize) -> Vec<u8> {
    let block = document.split("```hex\n").nth(nth + 1).expect("an example").split("```").next().unwrap();
    let mut bytes = Vec::new();
    for line in block.lines() {
        let mut words = line.split_whitespace();
        let offset = usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        bytes.resize(offset, 0);
        bytes.extend(words.map(|w| u8::from_str_radix(w, 16).unwrap()));
    }
    bytes
}

/// The same, for a person to paste into the document.
fn dump(bytes: &[u8]) -> String {
    let mut out = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate() {
        if chunk.iter().any(|b| *b != 0) {
            let hex: Vec<_> = chunk.iter().map(|b| format!("{b:02x}")).collect();
            out += &format!("{:04x}  {}\n", line * 16, hex.join(" "));
        }
    }
    out + &format!("{:04x}\n", bytes.len())
}

pub fn pinned(document: &str, nth: usize, encoded: &[u8]) {
    assert!(example(document, nth) == encoded, "the encoder now gives:\n{}", dump(encoded));
}

/// CRC32C, bit by bit.
pub fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

/// A little-endian number.
pub fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes[at..at + len].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}
