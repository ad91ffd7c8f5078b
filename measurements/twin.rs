//! The template beside its twin in PyTorch, `benches/pytorch`: same weights, same batches, same exam.
//!
//! ```text
//! cargo run --release --example twin -- export runs/twin
//! python benches/pytorch/same_loss.py runs/twin
//!
//! cargo run --release --example twin -- train runs/twin
//! python benches/pytorch/five_minutes.py runs/twin
//! cargo run --release --example twin -- score runs/twin runs/twin/pytorch.safetensors
//! ```
//!
//! `export` writes what a session under a seed starts from and hands out: the first weights, and the
//! batches in their order. It also has the template take a few steps in f32, and writes the loss of
//! each, and the weights that these steps led to: `same_loss.py` has to arrive at the same. `train` is
//! the template's share of the comparison, the baseline of a study; `score` examines what the twin
//! has learned.

#[path = "twin/export.rs"]
mod export;
#[path = "honesty/school.rs"]
mod school;

use clap::{Parser, Subcommand};
use overnight::{
    Budget, Study, TrainerCrate,
    exam::{bits_per_byte, compare},
};
use rand::RngExt;
use school::{COMPARISONS, SEQ_LEN, School};
use serde_json::json;
use std::{
    error::Error,
    path::{Path, PathBuf},
};

/// Compares the template with its twin in PyTorch.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Writes first weights, batches, and a few steps in f32
    Export(export::Options),
    /// Trains the template as a study's baseline, and prints what came of it
    Train {
        /// Where `export` wrote
        dir: PathBuf,
        #[arg(long, default_value_t)]
        budget: Budget,
    },
    /// Holds the exam over weights, in the template's precision and in f32
    Score {
        /// Where `export` wrote
        dir: PathBuf,
        /// The weights, under the template's names
        weights: PathBuf,
    },
}

fn main() -> Result<(), Box<dyn Error>> {
    // First of all: a study runs this program again for every trial.
    overnight::worker::run_if_worker();

    match Options::parse().task {
        Task::Export(options) => export::export(&options),
        Task::Train { dir, budget } => train(&dir, budget),
        Task::Score { dir, weights } => score(&dir, &weights),
    }
}

fn train(dir: &Path, budget: Budget) -> Result<(), Box<dyn Error>> {
    let seed = export::Facts::read(dir)?.seed;
    let mut study = Study::builder(dir.join("study"))
        .trainer(dir.join(export::TRAINER))
        .max_seq_len(SEQ_LEN)
        .budget(budget)
        .seed(seed)
        .open()?;
    // A study has one baseline: called again, this says what was measured.
    if study.trials().is_empty() {
        study.step()?.ok_or("the study was stopped")?;
    }
    let trial = &study.trials()[0];
    let measured = &trial.measurement;
    if !trial.outcome.is_measured() {
        return Err(trial.reason.clone().unwrap_or_default().into());
    }
    let result = json!({
        "steps": measured.num_steps,
        "tokens": measured.total_tokens,
        "seconds": measured.training_seconds,
        "loss": measured.train_loss,
        "val_bpb": measured.val_bpb,
    });
    println!("{result}");
    Ok(())
}

/// The exam of a study, held in this process.
fn score(dir: &Path, weights: &Path) -> Result<(), Box<dyn Error>> {
    let trainer = TrainerCrate::open(&dir.join(export::TRAINER))?;
    let school = School::open(&trainer)?;
    let score = |name: &str, source: &str| -> Result<f64, Box<dyn Error>> {
        let plugin = school.build(name, source)?;
        let nats = school.fast_room(&mut school.examinee(&plugin, weights)?)?;
        let targets = &school.windows.targets;
        let mut random = rand::rng();
        let places = (0..COMPARISONS).map(|_| random.random_range(0..targets.len()));
        let mut honest = school.examinee(&plugin, weights)?;
        compare(&school.honest_room(&mut honest, &nats, places)?)?;
        Ok(bits_per_byte(&nats, targets, school.dataset.token_bytes()))
    };
    let as_it_is = score("as it is", trainer.source())?;
    let in_f32 = score("in f32", &school::set(trainer.source(), "BF16=false")?)?;
    println!("{}", json!({ "val_bpb": as_it_is, "val_bpb_in_f32": in_f32 }));
    Ok(())
}
