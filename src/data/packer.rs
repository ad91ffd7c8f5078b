//! Rows of tokens, packed from documents without padding.

use super::TokenFile;
use crate::error::{Error, Result};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// Packs documents into rows, as the data loader of autoresearch's `prepare.py` does.
///
/// Every row starts with BOS, and every document within it too. A row is filled by best fit: of a
/// buffer of documents, the longest that fits goes in; where none fits, the shortest is cropped to
/// what is left, and its rest is dropped. So no token is padding, and none is predicted from a
/// document that it is no part of.
pub struct Packer {
    tokens: TokenFile,
    bos: u32,
    random: ChaCha8Rng,
    /// Documents in the order of this pass, the next one last.
    order: Vec<u32>,
    /// Documents to choose from.
    buffer: Vec<u32>,
    /// Whether another pass follows when the documents are used up.
    endless: bool,
}

/// Documents to choose from: as many as in `prepare.py`.
const BUFFER: usize = 1000;

impl Packer {
    /// Rows without end: pass after pass over all documents, each in another order.
    ///
    /// # Errors
    /// There is no document.
    pub fn endless(tokens: TokenFile, bos: u32, seed: u64) -> Result<Self> {
        Self::new(tokens, bos, seed, true)
    }

    /// The rows of one pass, always the same.
    ///
    /// # Errors
    /// There is no document.
    pub fn once(tokens: TokenFile, bos: u32) -> Result<Self> {
        Self::new(tokens, bos, 0, false)
    }

    fn new(tokens: TokenFile, bos: u32, seed: u64, endless: bool) -> Result<Self> {
        if tokens.documents() == 0 {
            return Err(Error::Data {
                what: "a split of the corpus".to_owned(),
                problem: "there is no document in it".to_owned(),
            });
        }
        let random = ChaCha8Rng::seed_from_u64(seed);
        let mut packer =
            Self { tokens, bos, random, order: Vec::new(), buffer: Vec::new(), endless };
        packer.begin_pass();
        Ok(packer)
    }

    /// Fills `row` with the next tokens; `false` where the documents end before the row does.
    pub fn fill(&mut self, row: &mut [u32]) -> bool {
        let mut rest = row;
        while !rest.is_empty() {
            self.refill();
            let Some(document) = self.take_best(rest.len()) else { return false };
            let length = (self.tokens.len_of(document) + 1).min(rest.len());
            let (place, remainder) = rest.split_at_mut(length);
            place[0] = self.bos;
            for (to, from) in place[1..].iter_mut().zip(self.tokens.document(document)) {
                *to = from;
            }
            rest = remainder;
        }
        true
    }

    fn refill(&mut self) {
        while self.buffer.len() < BUFFER {
            if self.order.is_empty() {
                if !self.endless {
                    return;
                }
                self.begin_pass();
            }
            self.buffer.extend(self.order.pop());
        }
    }

    fn begin_pass(&mut self) {
        self.order = (0..self.tokens.documents() as u32).collect();
        self.order.shuffle(&mut self.random);
    }

    /// Takes the longest document that fits into `room` behind its BOS, or else the shortest.
    fn take_best(&mut self, room: usize) -> Option<usize> {
        let mut best: Option<(usize, usize)> = None;
        let mut shortest: Option<(usize, usize)> = None;
        for (place, &document) in self.buffer.iter().enumerate() {
            let length = self.tokens.len_of(document as usize) + 1;
            if length <= room && best.is_none_or(|(_, longest)| length > longest) {
                best = Some((place, length));
            }
            if shortest.is_none_or(|(_, least)| length < least) {
                shortest = Some((place, length));
            }
        }
        let (place, _) = best.or(shortest)?;
        Some(self.buffer.swap_remove(place) as usize)
    }
}

/// A fixed set of windows: rows of `seq_len` inputs, each with the token that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Shape `[rows, seq_len]`, row major.
    pub inputs: Vec<u32>,
    /// Same shape: the token after each input.
    pub targets: Vec<u32>,
    /// Tokens a window.
    pub seq_len: usize,
}

impl Windows {
    /// The first `count` windows of one pass over `tokens`, or as many as there are.
    ///
    /// # Errors
    /// There is not text enough for one window.
    pub fn pack(tokens: TokenFile, bos: u32, count: usize, seq_len: usize) -> Result<Self> {
        let mut packer = Packer::once(tokens, bos)?;
        let mut windows = Self { inputs: Vec::new(), targets: Vec::new(), seq_len };
        let mut row = vec![0; seq_len + 1];
        for _ in 0..count {
            if !packer.fill(&mut row) {
                break;
            }
            windows.inputs.extend(&row[..seq_len]);
            windows.targets.extend(&row[1..]);
        }
        if windows.inputs.is_empty() {
            return Err(Error::Data {
                what: "the validation or test split".to_owned(),
                problem: format!("it has not text enough for one window of {seq_len} tokens"),
            });
        }
        Ok(windows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOS: u32 = 500;

    /// Documents of these lengths; each holds its own number.
    fn documents(lengths: &[usize]) -> (tempfile::TempDir, TokenFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.bin");
        let documents: Vec<Vec<u16>> =
            lengths.iter().enumerate().map(|(i, &length)| vec![i as u16; length]).collect();
        TokenFile::write(&path, &documents).unwrap();
        let tokens = TokenFile::open(&path).unwrap();
        (folder, tokens)
    }

    #[test]
    fn the_longest_that_fits_goes_in_and_the_shortest_is_cropped() {
        // With their BOS: 6, 4, 3. A row of 8 takes the 6; neither 4 nor 3 fits into 2, so the
        // shorter is cropped; the next row takes the 4 and ends for want of documents.
        let (_folder, tokens) = documents(&[5, 3, 2]);
        let mut packer = Packer::once(tokens, BOS).unwrap();
        let mut row = [0; 8];
        assert!(packer.fill(&mut row));
        assert_eq!(row, [BOS, 0, 0, 0, 0, 0, BOS, 2]);
        assert!(!packer.fill(&mut row));
    }

    #[test]
    fn every_row_starts_with_bos_and_every_pass_is_another() {
        let lengths: Vec<usize> = (0..3000).map(|i| 1 + i % 70).collect();
        let (_folder, tokens) = documents(&lengths);
        let rows = |seed| {
            let mut packer = Packer::endless(tokens.clone(), BOS, seed).unwrap();
            let mut rows = vec![vec![0; 65]; 4000];
            assert!(rows.iter_mut().all(|row| packer.fill(row)));
            rows
        };
        let first = rows(1);
        assert!(first.iter().all(|row| row[0] == BOS));
        assert!(first.iter().flatten().all(|&token| token == BOS || token < 3000));
        assert_eq!(first, rows(1));
        assert_ne!(first, rows(2));
    }

    #[test]
    fn windows_are_shifted_by_one_and_always_the_same() {
        let (_folder, tokens) = documents(&[30; 50]);
        let windows = Windows::pack(tokens.clone(), BOS, 10, 16).unwrap();
        assert_eq!(windows.inputs.len(), 160);
        for row in 0..10 {
            let (inputs, targets) =
                (&windows.inputs[row * 16..][..16], &windows.targets[row * 16..][..16]);
            assert_eq!(inputs[0], BOS);
            assert_eq!(inputs[1..], targets[..15]);
        }
        assert_eq!(windows, Windows::pack(tokens.clone(), BOS, 10, 16).unwrap());
        assert!(Windows::pack(tokens, BOS, 10, 5000).is_err());
    }
}
