//! Runs every target over its corpus and over simple changes of it, on any compiler: `replay [ROUNDS]`.
//!
//! No coverage guides it; it is the floor below cargo-fuzz, and the way to run a corpus that cargo-fuzz has grown. The changes come
//! from a generator with a fixed seed, so that a failure happens again; the input that was tried last lies in `replay-input.bin`.

use std::path::Path;
use tidelog_fuzz::TARGETS;

struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn change(input: &mut Vec<u8>, numbers: &mut Numbers) {
    for _ in 0..=numbers.below(3) {
        let at = numbers.below(input.len());
        match (numbers.below(5), input.get_mut(at)) {
            (0, Some(byte)) => *byte ^= 1 << numbers.below(8),
            (1, Some(byte)) => *byte = [0, 1, 0x7F, 0x80, 0xFF][numbers.below(5)],
            (2, _) => input.truncate(at),
            (3, _) => input.insert(at.min(input.len()), numbers.next() as u8),
            (_, _) => {
                let word = [0, 1, u64::MAX, 1 << 32, numbers.next()][numbers.below(5)].to_le_bytes();
                let end = (at + 8).min(input.len());
                input[at.min(end)..end].copy_from_slice(&word[..end - at.min(end)]);
            }
        }
    }
}

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(20_000);
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let mut files: Vec<_> = std::fs::read_dir(corpus.join(name))
            .expect("a corpus of that name")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "the corpus of {name} is empty");
        let inputs: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("a file")).collect();
        inputs.iter().for_each(|input| target(input));
        let mut numbers = Numbers(1);
        for round in 0..rounds {
            let mut input = inputs[round % inputs.len()].clone();
            change(&mut input, &mut numbers);
            let tried = input.clone();
            if std::panic::catch_unwind(|| target(&tried)).is_err() {
                std::fs::write("replay-input.bin", &input).expect("a file");
                eprintln!("{name}: failed in round {round}; the input is in replay-input.bin");
                std::process::exit(1);
            }
        }
        println!("{name}: {} inputs, {rounds} changed ones", inputs.len());
    }
}
