//! How fast built trainers train on a card, and what a step needs of its memory.
//!
//! ```text
//! cargo run --release --example card -- --vocab 8192 --seq-len 2048 libtrainer.so
//! ```
//!
//! Nothing is built, and no sandbox is entered: the libraries are loaded into this process one after
//! another, so that a machine with a card needs neither Rust nor a study. Batches are drawn with the
//! frequencies of words (Zipf's law), for tables of embeddings feel them. A step ends when its loss is
//! known, which waits for the card; the first few steps are left out.

use abi_stable::std_types::{RResult, RSliceMut, RString};
use clap::Parser;
use overnight::plugin::Plugin;
use overnight_plugin_api::{Device, Setup, raw::Host};
use serde::Serialize;
use std::{
    error::Error,
    path::PathBuf,
    time::{Duration, Instant},
};

/// Measures how fast built trainers train on a card.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Trainer libraries, built for cards
    #[arg(required = true)]
    library: Vec<PathBuf>,
    /// Ordinal of the card, or cpu
    #[arg(long, default_value = "0")]
    device: String,
    #[arg(long, default_value_t = 8192)]
    vocab: usize,
    #[arg(long, default_value_t = 2048)]
    seq_len: usize,
    /// How long each trains after its first steps
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
}

/// Steps that load kernels and find memory.
const WARM_UP: usize = 4;

#[derive(Serialize)]
struct Row {
    library: PathBuf,
    batch_tokens: usize,
    steps: usize,
    first_step_seconds: f64,
    median_step_seconds: f64,
    tokens_per_second: f64,
    first_loss: f64,
    last_loss: f64,
    card_memory_mib: Option<u64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    overnight::worker::run_if_worker();
    let options = Options::parse();
    let device = match options.device.as_str() {
        "cpu" => Device::Cpu,
        ordinal => Device::Cuda(ordinal.parse()?),
    };
    for library in options.library {
        let setup = Setup {
            vocab_size: options.vocab,
            max_seq_len: options.seq_len,
            seed: 1,
            threads: std::thread::available_parallelism()?.get(),
            device,
        };
        let mut trainer = Plugin::load(&library.canonicalize()?)?.trainer(&setup)?;
        let mut text = Text::new(options.vocab, Duration::from_secs_f64(options.seconds));
        trainer.train(&mut text)?;
        let row = text.row(library, card_memory_mib(device));
        println!("{}", serde_json::to_string(&row)?);
    }
    Ok(())
}

/// What this process has of the card's memory, by its driver.
fn card_memory_mib(device: Device) -> Option<u64> {
    if device == Device::Cpu {
        return None;
    }
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
    let output = std::process::Command::new("nvidia-smi").args(query).output().ok()?;
    String::from_utf8_lossy(&output.stdout).lines().next()?.trim().parse().ok()
}

/// Random tokens, for as long as the time lasts.
struct Text {
    cumulative: Vec<f64>,
    drawn: Vec<u32>,
    state: u64,
    seconds: Duration,
    begun: Option<Instant>,
    batch_tokens: usize,
    losses: Vec<f64>,
    ends: Vec<Instant>,
}

impl Text {
    fn new(vocab: usize, seconds: Duration) -> Self {
        let mut total = 0.0;
        let frequencies = (0..vocab).map(|rank| 1.0 / (rank as f64 + 2.7));
        let cumulative = frequencies.map(|frequency| {
            total += frequency;
            total
        });
        Self {
            cumulative: cumulative.collect(),
            drawn: Vec::new(),
            state: 1,
            seconds,
            begun: None,
            batch_tokens: 0,
            losses: Vec::new(),
            ends: Vec::new(),
        }
    }

    fn token(&mut self) -> u32 {
        // Knuth's MMIX generator.
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let total = self.cumulative.last().expect("a vocabulary has tokens");
        let place = (self.state >> 11) as f64 / (1u64 << 53) as f64 * total;
        self.cumulative.partition_point(|&up_to| up_to <= place) as u32
    }

    fn row(&self, library: PathBuf, card_memory_mib: Option<u64>) -> Row {
        let begun = self.begun.expect("training has begun");
        let starts = std::iter::once(&begun).chain(&self.ends);
        let mut steps: Vec<_> =
            starts.zip(&self.ends).map(|(from, to)| (*to - *from).as_secs_f64()).collect();
        let first_step_seconds = steps[0];
        steps.drain(..WARM_UP.min(steps.len() - 1));
        steps.sort_by(f64::total_cmp);
        let median_step_seconds = steps[steps.len() / 2];
        Row {
            library,
            batch_tokens: self.batch_tokens,
            steps: self.ends.len(),
            first_step_seconds,
            median_step_seconds,
            tokens_per_second: self.batch_tokens as f64 / median_step_seconds,
            first_loss: self.losses[0],
            last_loss: self.losses[self.losses.len() - 1],
            card_memory_mib,
        }
    }
}

impl Host for Text {
    fn check_shape(&self, _batch_size: usize, _seq_len: usize) -> RResult<(), RString> {
        RResult::ROk(())
    }

    fn next_batch(
        &mut self,
        batch_size: usize,
        seq_len: usize,
        mut inputs: RSliceMut<'_, u32>,
        mut targets: RSliceMut<'_, u32>,
    ) -> bool {
        let warm = self.ends.get(WARM_UP - 1);
        if warm.is_some_and(|warm| warm.elapsed() >= self.seconds) {
            return false;
        }
        // Drawn once: a study packs the next batch while the card is busy, and this does not.
        self.batch_tokens = batch_size * seq_len;
        while self.drawn.len() < 2 * self.batch_tokens {
            let token = self.token();
            self.drawn.push(token);
        }
        let from = self.ends.len() * 97 % (self.batch_tokens - 1);
        let drawn = &self.drawn[from..];
        inputs.as_mut_slice().copy_from_slice(&drawn[..self.batch_tokens]);
        targets.as_mut_slice().copy_from_slice(&drawn[1..=self.batch_tokens]);
        self.begun.get_or_insert_with(Instant::now);
        true
    }

    fn progress(&self) -> f64 {
        let warm = self.ends.get(WARM_UP - 1);
        warm.map_or(0.0, |warm| warm.elapsed().as_secs_f64() / self.seconds.as_secs_f64()).min(1.0)
    }

    fn report(&mut self, loss: f64) {
        self.losses.push(loss);
        self.ends.push(Instant::now());
    }
}
