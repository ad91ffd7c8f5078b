//! What the twin needs: weights, batches, and steps to take after the template.

use crate::school::{self, SEQ_LEN, School};
use abi_stable::std_types::{
    RResult::{self, ROk},
    RSliceMut, RString,
};
use clap::Args;
use overnight::{TrainerCrate, data::Loader};
use overnight_plugin_api::raw::Host;
use serde::{Deserialize, Serialize};
use std::{
    error::Error,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// The crate that was exported.
pub const TRAINER: &str = "crates/trainer-template";

#[derive(Args)]
pub struct Options {
    /// Where to write; must not be there yet
    dir: PathBuf,
    /// Of the first weights and of the batches
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Another value for one of the template's constants; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Batches to write: five minutes of the template on two cores take less
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    batches: usize,
    /// Steps to take in f32
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
}

/// `twin.json`: what the other files do not say themselves.
#[derive(Serialize, Deserialize)]
pub struct Facts {
    pub seed: u64,
    /// Of a batch.
    rows: usize,
    seq_len: usize,
    max_seq_len: usize,
    /// Of each step in f32, before it was taken.
    losses: Vec<f64>,
}

impl Facts {
    pub fn read(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let path = dir.join("twin.json");
        let text = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

pub fn export(options: &Options) -> Result<(), Box<dyn Error>> {
    let Options { dir, seed, .. } = options;
    if dir.exists() {
        // What was trained and written there belongs to another export.
        return Err(format!("{}: is there already", dir.display()).into());
    }
    let trainer = lay_out(dir, &options.set)?;
    let school = School::open(&trainer)?;
    let plugin = school.build("in f32", &school::set(trainer.source(), "BF16=false")?)?;
    let mut gpt = plugin.trainer(&school.setup(*seed)?)?;
    gpt.save(&dir.join("first.safetensors"))?;
    // Where training starts, gradients of some weights are nothing but rounding (the lambdas scale a
    // stream that has one direction only), and AdamW takes whole steps after their signs. So what is
    // compared begins a little later, with another optimizer: each session has its own.
    gpt.train(&mut Lesson::new(school.loader(*seed)?, options.steps))?;
    gpt.save(&dir.join("before.safetensors"))?;
    let mut lesson = Lesson::new(school.loader(*seed)?, options.steps);
    gpt.train(&mut lesson)?;
    gpt.save(&dir.join("after.safetensors"))?;

    let (rows, seq_len) = lesson.shape;
    write_batches(school.loader(*seed)?, lesson.shape, options.batches, &dir.join("batches.u16"))?;
    let facts = Facts { seed: *seed, rows, seq_len, max_seq_len: SEQ_LEN, losses: lesson.losses };
    fs::write(dir.join("twin.json"), serde_json::to_string_pretty(&facts)?)?;
    Ok(())
}

/// A copy of the template, with other values for some constants.
fn lay_out(dir: &Path, settings: &[String]) -> Result<TrainerCrate, Box<dyn Error>> {
    let template = TrainerCrate::template(&overnight::cache_dir()?)?;
    let both = template.folder().parent().ok_or("the template lies beside plugin-api")?;
    copy(both, &dir.join("crates"))?;
    let mut source = template.source().to_owned();
    for setting in settings {
        source = school::set(&source, setting)?;
    }
    fs::write(dir.join(TRAINER).join("src/train.rs"), source)?;
    Ok(TrainerCrate::open(&dir.join(TRAINER))?)
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to)?;
        } else {
            fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Row by row, the inputs and the last target: little-endian.
fn write_batches(
    mut loader: Loader,
    (rows, seq_len): (usize, usize),
    count: usize,
    path: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut inputs = vec![0; rows * seq_len];
    let mut targets = inputs.clone();
    for _ in 0..count {
        loader.next(rows, seq_len, &mut inputs, &mut targets)?;
        for (inputs, targets) in inputs.chunks(seq_len).zip(targets.chunks(seq_len)) {
            for &token in inputs.iter().chain(targets.last()) {
                file.write_all(&u16::try_from(token)?.to_le_bytes())?;
            }
        }
    }
    Ok(file.flush()?)
}

/// A session of a few steps that keeps what is reported.
struct Lesson {
    loader: Loader,
    steps: u64,
    taken: u64,
    /// Of the last batch: rows, and tokens of each.
    shape: (usize, usize),
    losses: Vec<f64>,
}

impl Lesson {
    fn new(loader: Loader, steps: u64) -> Self {
        Self { loader, steps, taken: 0, shape: (0, 0), losses: Vec::new() }
    }
}

impl Host for Lesson {
    fn check_shape(&self, _batch_size: usize, _seq_len: usize) -> RResult<(), RString> {
        ROk(())
    }

    fn next_batch(
        &mut self,
        batch_size: usize,
        seq_len: usize,
        mut inputs: RSliceMut<'_, u32>,
        mut targets: RSliceMut<'_, u32>,
    ) -> bool {
        if self.taken == self.steps {
            return false;
        }
        let (inputs, targets) = (inputs.as_mut_slice(), targets.as_mut_slice());
        self.loader.next(batch_size, seq_len, inputs, targets).expect("prepared tokens");
        self.taken += 1;
        self.shape = (batch_size, seq_len);
        true
    }

    fn progress(&self) -> f64 {
        self.taken as f64 / self.steps as f64
    }

    fn report(&mut self, loss: f64) {
        self.losses.push(loss);
    }
}
