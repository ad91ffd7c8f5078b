//! The trait that an author implements, and what its methods are handed.

use crate::{Result, Session};
use std::path::Path;

/// A language model that can be trained, questioned, saved and loaded.
///
/// One process calls `new`, `train` and `save`, in that order, and exits. Two others, which share
/// nothing with the first but the checkpoint, call `new` and `load` and then only `score`, or only
/// `logits`: their answers must be those of the same model.
///
/// Tokens are ids below [`Setup::vocab_size`]. Costs are in nats (natural logarithms); the host
/// turns them into bits per byte.
pub trait Trainer: Sized {
    /// Builds the model, without data. Not part of the training budget; limited to a multiple of the
    /// processor time that the study's baseline takes, as are `load`, `score` and `logits`.
    fn new(setup: &Setup) -> Result<Self>;

    /// Trains until [`Session::next_batch`] returns `None`, then returns promptly. The budget goes on
    /// until `save` has closed the checkpoint: whoever takes longer after the last batch than a step
    /// and what saving takes the baseline, with some to spare, loses the trial.
    fn train(&mut self, session: &mut Session<'_>) -> Result<()>;

    /// Writes the cost of every target to `nats`, in nats: with `B` windows of `T` tokens,
    /// `nats[b * T + i] = -ln p(targets[b, i] | inputs[b, 0..=i])`.
    ///
    /// `nats` has `B * T` elements. What is answered for one window must not depend on any other.
    fn score(&mut self, windows: Windows<'_>, nats: &mut [f32]) -> Result<()>;

    /// Writes the logarithm of the probability of every possible next token after `prefix`, up to
    /// an additive constant: the host normalises.
    ///
    /// `prefix` holds 1 to [`Setup::max_seq_len`] tokens; `logits` has [`Setup::vocab_size`]
    /// elements.
    fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<()>;

    /// Writes to `checkpoint` all that [`load`](Self::load) needs. The safetensors format is
    /// expected (the host counts the parameters in its header), but not required.
    fn save(&mut self, checkpoint: &Path) -> Result<()>;

    /// Takes the model from a file that [`save`](Self::save) wrote, in a fresh process.
    fn load(&mut self, checkpoint: &Path) -> Result<()>;
}

/// What a trainer knows when it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// Number of distinct token ids, special tokens included.
    pub vocab_size: usize,
    /// The longest window, in tokens, that a session hands out or an exam asks about.
    pub max_seq_len: usize,
    /// The one source of randomness that a trainer may use: the study chooses it.
    pub seed: u64,
    /// How many threads the trainer may compute on, at least 1.
    pub threads: usize,
    /// Where to compute.
    pub device: Device,
}

/// Where a trainer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// The CUDA device with this ordinal.
    Cuda(usize),
}

/// Windows of the exam: `batch_size` rows of `seq_len` inputs, each with its target.
#[derive(Debug, Clone, Copy)]
pub struct Windows<'a> {
    /// Shape `[batch_size, seq_len]`, row major. Every row starts with the BOS token.
    pub inputs: &'a [u32],
    /// The token that follows each input, same shape.
    pub targets: &'a [u32],
    pub batch_size: usize,
    /// Tokens a window, at most [`Setup::max_seq_len`].
    pub seq_len: usize,
}

impl<'a> Windows<'a> {
    /// The windows one by one: inputs and targets of `seq_len` tokens each.
    pub fn rows(&self) -> impl Iterator<Item = (&'a [u32], &'a [u32])> {
        self.inputs.chunks_exact(self.seq_len).zip(self.targets.chunks_exact(self.seq_len))
    }
}
