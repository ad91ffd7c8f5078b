//! How fast batches reach a trainer that does nothing else: the most that the way from the parent to
//! the worker allows.
//!
//! ```sh
//! cargo run --release --example supply
//! ```

use overnight::{Budget, Study};
use std::{error::Error, fs, path::Path, time::Duration};

/// Takes what it gets.
const TRAINER: &str = "
use overnight_plugin_api::{Result, Session, Setup, Trainer, Windows};
use std::path::Path;

pub struct Bigram {
    vocab_size: usize,
}

impl Trainer for Bigram {
    fn new(setup: &Setup) -> Result<Self> {
        Ok(Self { vocab_size: setup.vocab_size })
    }
    fn train(&mut self, session: &mut Session<'_>) -> Result<()> {
        while session.next_batch(ROWS, TOKENS).is_some() {}
        Ok(())
    }
    fn score(&mut self, _windows: Windows<'_>, nats: &mut [f32]) -> Result<()> {
        nats.fill((self.vocab_size as f32).ln());
        Ok(())
    }
    fn logits(&mut self, _prefix: &[u32], logits: &mut [f32]) -> Result<()> {
        logits.fill(0.0);
        Ok(())
    }
    fn save(&mut self, checkpoint: &Path) -> Result<()> {
        Ok(std::fs::write(checkpoint, [])?)
    }
    fn load(&mut self, _checkpoint: &Path) -> Result<()> {
        Ok(())
    }
}
";

fn main() -> Result<(), Box<dyn Error>> {
    overnight::worker::run_if_worker();
    println!("{:>14} {:>12} {:>14}", "rows x tokens", "batches/s", "tokens/s");
    for (rows, tokens) in [(1, 64), (8, 256), (32, 512), (128, 2048)] {
        let place = tempfile::tempdir()?;
        let trainer = place.path().join("trainer");
        lay_out(&trainer, &TRAINER.replace("ROWS", &rows.to_string()), tokens)?;
        let mut study = Study::builder(place.path().join("study"))
            .trainer(&trainer)
            .budget(Budget::WallClock(Duration::from_secs(5)))
            .max_seq_len(2048)
            .exam_windows(1)
            .exam_comparisons(1)
            .controls(0)
            .open()?;
        study.optimize(Some(0))?;
        let measured = &study.trials()[0].measurement;
        let seconds = measured.training_seconds.unwrap_or(f64::NAN);
        let each = |count: Option<u64>| count.unwrap_or_default() as f64 / seconds;
        let shape = format!("{rows} x {tokens}");
        println!(
            "{shape:>14} {:>12.0} {:>14.0}",
            each(measured.num_steps),
            each(measured.total_tokens)
        );
    }
    Ok(())
}

/// The crate of the tests' trainer, with another source.
fn lay_out(folder: &Path, source: &str, tokens: usize) -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tiny = root.join("tests/trainers/tiny");
    fs::create_dir_all(folder.join("src"))?;
    for name in ["Cargo.lock", "src/lib.rs"] {
        fs::copy(tiny.join(name), folder.join(name))?;
    }
    let api = root.join("plugin-api");
    let manifest = fs::read_to_string(tiny.join("Cargo.toml"))?;
    let manifest = manifest.replace("../../../plugin-api", &api.to_string_lossy());
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/train.rs"), source.replace("TOKENS", &tokens.to_string()))?;
    Ok(())
}
