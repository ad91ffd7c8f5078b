//! Counts which token follows which, and takes that for how probable it is.

use overnight_plugin_api::{Result, Session, Setup, Trainer, Windows};
use std::{fs, path::Path};

const SMOOTHING: f64 = 10.0; // added to every count  search: log 1e-2..1e3

pub struct Bigram {
    vocab_size: usize,
    /// How often `next` followed `token`: `counts[token * vocab_size + next]`.
    counts: Vec<f32>,
}

impl Bigram {
    /// Of each token that may follow, the probability.
    fn following(&self, token: u32) -> impl Iterator<Item = f64> {
        let row = &self.counts[token as usize * self.vocab_size..][..self.vocab_size];
        let total: f64 = row.iter().map(|&count| f64::from(count) + SMOOTHING).sum();
        row.iter().map(move |&count| (f64::from(count) + SMOOTHING) / total)
    }
}

impl Trainer for Bigram {
    fn new(setup: &Setup) -> Result<Self> {
        let vocab_size = setup.vocab_size;
        Ok(Self { vocab_size, counts: vec![0.0; vocab_size * vocab_size] })
    }

    fn train(&mut self, session: &mut Session<'_>) -> Result<()> {
        while let Some(batch) = session.next_batch(4, 64) {
            for (&token, &next) in batch.inputs.iter().zip(&batch.targets) {
                self.counts[token as usize * self.vocab_size + next as usize] += 1.0;
            }
        }
        Ok(())
    }

    fn score(&mut self, windows: Windows<'_>, nats: &mut [f32]) -> Result<()> {
        let pairs = windows.inputs.iter().zip(windows.targets);
        for (cost, (&token, &next)) in nats.iter_mut().zip(pairs) {
            let probability = self.following(token).nth(next as usize).unwrap_or_default();
            *cost = -probability.ln() as f32;
        }
        Ok(())
    }

    fn logits(&mut self, prefix: &[u32], logits: &mut [f32]) -> Result<()> {
        let following = self.following(prefix[prefix.len() - 1]);
        logits.iter_mut().zip(following).for_each(|(logit, p)| *logit = p.ln() as f32);
        Ok(())
    }

    fn save(&mut self, checkpoint: &Path) -> Result<()> {
        let bytes: Vec<u8> = self.counts.iter().flat_map(|count| count.to_le_bytes()).collect();
        Ok(fs::write(checkpoint, bytes)?)
    }

    fn load(&mut self, checkpoint: &Path) -> Result<()> {
        let bytes = fs::read(checkpoint)?;
        let counts = bytes.as_chunks::<4>().0.iter().map(|&count| f32::from_le_bytes(count));
        self.counts = counts.collect();
        Ok(())
    }
}
