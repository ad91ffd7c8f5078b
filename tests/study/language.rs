//! A generated language of known entropy: nothing honest scores below it.

use std::{fs, path::Path};

/// A Markov chain over 16 letters. Each letter is followed by one of four, chosen by a fixed rule,
/// with probabilities 1/2, 1/4, 1/8 and 1/8; a document begins as if a letter stood before it. So
/// every letter costs 1.75 bits, whatever came before.
pub struct Language {
    state: u64,
}

pub const LETTERS: &[u8; 16] = b"abcdefghijklmnop";

/// Bits a letter.
pub const ENTROPY: f64 = 1.75;

impl Language {
    pub fn new() -> Self {
        Self { state: 1 }
    }

    /// The letters that may follow letter `index`, the likeliest first. For each rank the map is a
    /// permutation, so in the long run all letters are equally frequent.
    pub fn successors(index: usize) -> [usize; 4] {
        [3, 7, 11, 14].map(|shift| (5 * index + shift) % 16)
    }

    /// What a document may begin with.
    pub fn beginnings() -> [usize; 4] {
        Self::successors(0)
    }

    /// Writes `documents` files of a thousand letters.
    pub fn write_corpus(&mut self, folder: &Path, documents: usize) {
        for document in 0..documents {
            let mut successors = Self::beginnings();
            let text: Vec<u8> = (0..1000)
                .map(|_| {
                    let letter = successors[self.rank()];
                    successors = Self::successors(letter);
                    LETTERS[letter]
                })
                .collect();
            fs::write(folder.join(format!("{document:04}.txt")), text).unwrap();
        }
    }

    /// 0 to 3 with probabilities 1/2, 1/4, 1/8 and 1/8.
    fn rank(&mut self) -> usize {
        // Knuth's MMIX generator; its high bits are good enough for dice.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        [0, 0, 0, 0, 1, 1, 2, 3][(self.state >> 61) as usize]
    }
}
