//! A model's shape: the source that trains it, its parameters, its operations a token.

use std::{fmt, str::FromStr};

/// Layers and channels, as `4x256`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub depth: usize,
    pub width: usize,
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('x').and_then(|(depth, width)| {
            Some(Self { depth: depth.parse().ok()?, width: width.parse().ok()? })
        });
        match numbers {
            Some(Self { depth: 1.., width }) if width > 0 && width.is_multiple_of(32) => {
                Ok(numbers.expect("there are two"))
            }
            _ => Err("DEPTHxWIDTH, such as 4x256; the width a multiple of 32".to_owned()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.depth, self.width)
    }
}

impl Shape {
    /// Heads of 64 channels where that leaves four of them.
    fn head_dim(self) -> usize {
        if self.width.is_multiple_of(64) && self.width >= 256 { 64 } else { 32 }
    }

    /// As many rows as `benches/pytorch` has for the shape.
    pub fn rows(self) -> usize {
        if self.width >= 256 { 16 } else { 8 }
    }

    /// The template's source with this shape's constants.
    pub fn source(self, template: &str, rows: usize) -> String {
        let constants = [
            ("DEPTH", self.depth),
            ("WIDTH", self.width),
            ("HEAD_DIM", self.head_dim()),
            ("BATCH_ROWS", rows),
        ];
        let mut source = template.to_owned();
        for (name, value) in constants {
            let start = format!("const {name}: usize = ");
            let at = source.find(&start).map(|at| at + start.len());
            let end = at.and_then(|at| Some(at + source[at..].find(';')?));
            let (at, end) = at.zip(end).expect("the template has these constants");
            source.replace_range(at..end, &value.to_string());
        }
        source
    }

    /// Operations to train on one token: six for each parameter in a matrix product, a multiplication
    /// and an addition forward and twice that backward, and the same for scores and values of
    /// attention, of which only what a query sees is counted (Chowdhery et al. 2022, *PaLM*,
    /// appendix B). Neither look-ups, nor elementwise work, nor the optimizer count.
    pub fn operations_per_token(self, vocab_size: usize, seq_len: usize) -> f64 {
        const MLP_RATIO: usize = 4;
        const GATE_CHANNELS: usize = 32;
        let Self { depth, width, .. } = self;
        let gates = depth.div_ceil(2) * GATE_CHANNELS.min(width) * (width / self.head_dim());
        let matrices = depth * (4 + 2 * MLP_RATIO) * width * width + gates + vocab_size * width;
        // S sees half the context, every fourth layer and the last all of it.
        let keys: f64 = (0..depth)
            .map(|layer| layer % 4 == 3 || layer + 1 == depth)
            .map(|is_long| if is_long { seq_len } else { seq_len / 2 })
            .map(|window| mean_keys(window, seq_len))
            .sum();
        6.0 * matrices as f64 + 12.0 * width as f64 * keys
    }
}

/// How many keys a query sees on the mean: itself, and up to `window` before it.
fn mean_keys(window: usize, seq_len: usize) -> f64 {
    let keys: usize = (0..seq_len).map(|query| query.min(window) + 1).sum();
    keys as f64 / seq_len as f64
}
