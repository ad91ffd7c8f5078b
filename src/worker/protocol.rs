//! What parent and worker say to each other: frames of a length and a postcard message.
//!
//! They go through a socket pair. Unlike a pipe it cannot be opened again by way of `/proc`. A
//! trainer that finds the descriptor all the same can write what it likes: the parent reads only
//! while it waits for an answer, and no answer says what a trial is worth, how many batches it was
//! given or what time it is.

use super::sandbox::Confinement;
use crate::{plugin::Failure, record::Budget};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

/// What the parent asks. One request is answered before the next is sent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Answer, to show that this is a worker.
    Greet,
    /// Give up everything that the task does not need, for good.
    Confine(Confinement),
    /// Load the library and build the trainer.
    Start { library: PathBuf, setup: Setup },
    /// Train until there are no more batches; answered by any number of `Wants` and `Progress`, then
    /// by `Trained`. The budget is advice, for schedules: the parent holds the clock.
    Train { budget: Budget },
    /// Write the weights to this file.
    Save { checkpoint: PathBuf },
    /// Take the weights from this file.
    Load { checkpoint: PathBuf },
    /// Answer with the cost of every target.
    Score { seq_len: usize, inputs: Vec<u32>, targets: Vec<u32> },
    /// Answer with the logits after a prefix.
    Logits { prefix: Vec<u32> },
}

/// [`overnight_plugin_api::Setup`], as it goes through the pipe.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub vocab_size: usize,
    pub max_seq_len: usize,
    pub seed: u64,
    pub threads: usize,
    /// The CUDA ordinal; `None` is the CPU.
    pub cuda_device: Option<usize>,
}

/// What the worker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// Greeted, started, saved or loaded.
    Done,
    /// Confined, but for what the system cannot do.
    Confined {
        missing: Vec<String>,
    },
    /// A batch of this shape, please. What comes back is no message but the tokens, see
    /// [`write_tokens`].
    Wants {
        batch_size: usize,
        seq_len: usize,
    },
    Progress(Progress),
    Trained(Progress),
    /// Nats or logits.
    Numbers(Vec<f32>),
    /// The library cannot be used.
    LoadFailed(String),
    /// The trainer failed.
    Failed(Failure),
}

/// How far training has come, as the worker sees it. The parent believes no more of it than what it
/// has counted itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Batches handed out.
    pub steps: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Rows of the first one, and tokens in each.
    pub first_batch: Option<[u64; 2]>,
    /// The share of the budget that is spent.
    pub progress: f64,
    /// Since training began, by the worker's clock.
    pub seconds: f64,
    /// The latest loss that the trainer reported.
    pub loss: Option<f64>,
    /// Losses that were numbers since the last time that this was sent, all from one part of the
    /// budget, and their mean.
    pub reports: u64,
    pub mean_loss: Option<f64>,
}

impl From<Setup> for overnight_plugin_api::Setup {
    fn from(setup: Setup) -> Self {
        use overnight_plugin_api::Device;
        Self {
            vocab_size: setup.vocab_size,
            max_seq_len: setup.max_seq_len,
            seed: setup.seed,
            threads: setup.threads,
            device: setup.cuda_device.map_or(Device::Cpu, Device::Cuda),
        }
    }
}

/// No honest message is longer: logits over a million tokens take 4 MB.
pub(super) const LONGEST_FRAME: usize = 64 << 20;

/// The most tokens in a batch, with the one more that each row has: what a frame can hold.
pub(crate) const LARGEST_BATCH: usize = LONGEST_FRAME / 4;

/// Whether there can be a batch of this shape, or why not.
pub(crate) fn check_shape(
    batch_size: usize,
    seq_len: usize,
    max_seq_len: usize,
) -> Result<(), String> {
    if batch_size == 0 {
        Err("a batch needs at least one row".to_owned())
    } else if seq_len == 0 || seq_len > max_seq_len {
        Err(format!("a row has 1 to {max_seq_len} tokens in this study"))
    } else if batch_size.saturating_mul(seq_len + 1) > LARGEST_BATCH {
        Err(format!("a batch has at most {LARGEST_BATCH} tokens"))
    } else {
        Ok(())
    }
}

/// A message, as it goes through the socket.
pub(crate) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    frame = postcard::to_extend(message, frame).map_err(io::Error::other)?;
    let length = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The rows of a batch as a frame, little-endian, in `frame`; an empty one says that the budget is
/// spent.
pub(crate) fn write_tokens(rows: &[u32], frame: &mut Vec<u8>) {
    frame.resize(4 + 4 * rows.len(), 0);
    let (length, tokens) = frame.split_at_mut(4);
    // The shape was checked: it fits.
    length.copy_from_slice(&(4 * rows.len() as u32).to_le_bytes());
    for (to, token) in tokens.as_chunks_mut::<4>().0.iter_mut().zip(rows) {
        *to = token.to_le_bytes();
    }
}

/// Reads what [`write_tokens`] wrote into `rows`; `false` where the budget is spent.
pub(super) fn read_tokens(from: &mut impl Read, rows: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    rows.resize((u32::from_le_bytes(length) as usize).min(LONGEST_FRAME), 0);
    from.read_exact(rows)?;
    Ok(!rows.is_empty())
}

pub(crate) fn write_frame(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&frame(message)?)?;
    to.flush()
}

/// The next message, or `None` where the other side has closed the socket.
pub(crate) fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    read_short_frame(from, LONGEST_FRAME)
}

/// The same, of at most `most` bytes.
pub(crate) fn read_short_frame<T: DeserializeOwned>(
    from: &mut impl Read,
    most: usize,
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > most {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    // Grows with what really arrives: a length alone costs nothing.
    let mut frame = Vec::new();
    from.take(length as u64).read_to_end(&mut frame)?;
    if frame.len() < length {
        return Ok(None);
    }
    postcard::from_bytes(&frame).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_out_as_it_went_in() {
        let mut pipe = Vec::new();
        write_frame(&mut pipe, &Answer::Numbers(vec![1.5, f32::NAN])).unwrap();
        write_frame(&mut pipe, &Answer::Done).unwrap();
        let mut pipe = pipe.as_slice();
        let Some(Answer::Numbers(numbers)) = read_frame(&mut pipe).unwrap() else { panic!() };
        assert!(numbers[0] == 1.5 && numbers[1].is_nan());
        assert!(matches!(read_frame(&mut pipe).unwrap(), Some(Answer::Done)));
        assert!(read_frame::<Answer>(&mut pipe).unwrap().is_none());
    }

    #[test]
    fn tokens_come_out_as_they_went_in_and_an_empty_batch_is_the_end() {
        let (mut frame, mut rows) = (vec![9; 3], vec![7]);
        write_tokens(&[1, 70_000, u32::MAX], &mut frame);
        assert!(read_tokens(&mut frame.as_slice(), &mut rows).unwrap());
        let tokens = rows.as_chunks::<4>().0.iter().map(|&token| u32::from_le_bytes(token));
        assert!(tokens.eq([1, 70_000, u32::MAX]));
        write_tokens(&[], &mut frame);
        assert!(!read_tokens(&mut frame.as_slice(), &mut rows).unwrap());
        assert!(read_tokens(&mut [8, 0, 0, 0, 1].as_slice(), &mut rows).is_err());
    }

    #[test]
    fn a_frame_cut_short_is_the_end_and_a_giant_one_an_error() {
        let mut pipe = Vec::new();
        write_frame(&mut pipe, &Answer::Numbers(vec![0.0; 100])).unwrap();
        assert!(read_frame::<Answer>(&mut &pipe[..50]).unwrap().is_none());
        assert!(read_frame::<Answer>(&mut [255u8; 8].as_slice()).is_err());
    }
}
