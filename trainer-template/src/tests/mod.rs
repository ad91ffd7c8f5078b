//! Tests of the shipped `train.rs`. A study's edits are judged by the exam, not by these.

mod card;
mod layers;
mod model;
mod trainer;

use crate::train::{Config, Gpt};
use abi_stable::std_types::{
    RResult::{self, ROk},
    RSliceMut, RString,
};
use candle_core::{DType, Device, Tensor};
use overnight_plugin_api::{Session, raw::Host};

/// Numbers that look random, uniform over -1..1, the same at every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        // Knuth's MMIX generator; its high bits are good enough here.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn list(&mut self, count: usize) -> Vec<f64> {
        (0..count).map(|_| self.next()).collect()
    }

    fn tokens(&mut self, count: usize, vocab_size: usize) -> Vec<u32> {
        let token = |x: f64| ((x + 1.0) / 2.0 * vocab_size as f64) as u32 % vocab_size as u32;
        (0..count).map(|_| token(self.next())).collect()
    }
}

/// Both kinds of windows, layers with and without value embeddings, several heads.
fn small() -> Config {
    Config {
        vocab_size: 11,
        sequence_len: 12,
        n_layer: 3,
        n_embd: 16,
        head_dim: 4,
        window_pattern: "SSL".to_owned(),
    }
}

fn build(config: &Config, seed: u64, dtype: DType) -> Gpt {
    Gpt::build(config.clone(), seed, dtype, &Device::Cpu).unwrap()
}

/// Moves every parameter off its first value: a projection of zeros hides all that is before it.
fn scramble(gpt: &Gpt, seed: u64) {
    let mut numbers = Numbers(seed);
    for var in gpt.parameters.vars.values() {
        let noise = numbers.list(var.elem_count());
        let noise = Tensor::from_vec(noise, var.shape(), &Device::Cpu).unwrap();
        let noise = (noise * 0.4).unwrap().to_dtype(var.dtype()).unwrap();
        var.set(&(var.as_tensor() + noise).unwrap()).unwrap();
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Every weight, by name.
fn weights(gpt: &Gpt) -> Vec<(String, Vec<f64>)> {
    gpt.parameters.vars.iter().map(|(name, var)| (name.clone(), values(var))).collect()
}

/// A session over a text that is read round and round, for a number of steps.
struct Text {
    tokens: Vec<u32>,
    position: usize,
    steps: usize,
    taken: usize,
    losses: Vec<f64>,
}

impl Text {
    fn new(tokens: Vec<u32>, steps: usize) -> Self {
        Self { tokens, position: 0, steps, taken: 0, losses: Vec::new() }
    }

    fn session(&mut self) -> Session<'_> {
        Session::new(self)
    }
}

impl Host for Text {
    fn check_shape(&self, _batch_size: usize, _seq_len: usize) -> RResult<(), RString> {
        ROk(())
    }

    fn next_batch(
        &mut self,
        _batch_size: usize,
        seq_len: usize,
        mut inputs: RSliceMut<'_, u32>,
        mut targets: RSliceMut<'_, u32>,
    ) -> bool {
        if self.taken == self.steps {
            return false;
        }
        self.taken += 1;
        let rows = inputs.as_mut_slice().chunks_mut(seq_len);
        for (inputs, targets) in rows.zip(targets.as_mut_slice().chunks_mut(seq_len)) {
            for i in 0..seq_len {
                inputs[i] = self.tokens[(self.position + i) % self.tokens.len()];
                targets[i] = self.tokens[(self.position + i + 1) % self.tokens.len()];
            }
            self.position = (self.position + seq_len) % self.tokens.len();
        }
        true
    }

    fn progress(&self) -> f64 {
        self.taken as f64 / self.steps as f64
    }

    fn report(&mut self, loss: f64) {
        self.losses.push(loss);
    }
}
