//! What models need to be trained and examined outside a study: data, windows, a compiler.

use overnight::{
    Build, Cargo, StopHandle, TrainerCrate,
    data::{DataSpec, Dataset, Loader, PrepareOptions, Split, Windows},
    exam::{self, Pair},
    plugin::{LoadedTrainer, Plugin},
};
use overnight_plugin_api as api;
use std::{error::Error, path::Path};

/// As in a study that says nothing else.
const VOCABULARY: usize = 2048;
pub const SEQ_LEN: usize = 256;
const WINDOWS: usize = 256;
pub const COMPARISONS: usize = 256;
/// Windows that a room is asked about at a time.
const ROWS: usize = 16;

pub struct School {
    cargo: Cargo,
    pub dataset: Dataset,
    pub windows: Windows,
    pub folder: tempfile::TempDir,
}

impl School {
    pub fn open(trainer: &TrainerCrate) -> Result<Self, Box<dyn Error>> {
        let cache = overnight::cache_dir()?;
        let cargo = Cargo::open(trainer, &cache, StopHandle::new())?;
        let options = PrepareOptions { vocab_size: VOCABULARY, cache_dir: cache.join("data") };
        let dataset = Dataset::prepare(&DataSpec::Builtin, &options, |_| {})?;
        let tokens = dataset.open(Split::Validation)?;
        let windows = Windows::pack(tokens, dataset.bos(), WINDOWS, SEQ_LEN)?;
        Ok(Self { cargo, dataset, windows, folder: tempfile::tempdir()? })
    }

    /// Compiles and loads a source; its library gets the name.
    pub fn build(&self, name: &str, source: &str) -> Result<Plugin, Box<dyn Error>> {
        let plain: String =
            name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect();
        let library = self.folder.path().join(plain).with_extension("so");
        match self.cargo.build(source, &library, |_, _| {})? {
            Build::Built => Ok(Plugin::load(&library)?),
            Build::Refused { rendered, .. } => Err(format!("{name}: {rendered}").into()),
            Build::Interrupted => Err("stopped".into()),
        }
    }

    pub fn setup(&self, seed: u64) -> Result<api::Setup, Box<dyn Error>> {
        let threads = std::thread::available_parallelism()?.get();
        let (vocab_size, max_seq_len) = (self.dataset.vocab_size(), SEQ_LEN);
        Ok(api::Setup { vocab_size, max_seq_len, seed, threads, device: api::Device::Cpu })
    }

    /// What a session under this seed hands out.
    pub fn loader(&self, seed: u64) -> Result<Loader, Box<dyn Error>> {
        Ok(Loader::open(&self.dataset.path(Split::Train), self.dataset.bos(), seed)?)
    }

    /// A fresh trainer with the weights of a checkpoint.
    pub fn examinee(
        &self,
        plugin: &Plugin,
        checkpoint: &Path,
    ) -> Result<LoadedTrainer, Box<dyn Error>> {
        // What it draws under this seed is written over.
        let mut trainer = plugin.trainer(&self.setup(0)?)?;
        trainer.load(checkpoint)?;
        Ok(trainer)
    }

    /// The cost of every target of the exam's windows, in nats.
    pub fn fast_room(&self, trainer: &mut LoadedTrainer) -> Result<Vec<f32>, Box<dyn Error>> {
        let mut nats = vec![0.0; self.windows.targets.len()];
        let size = ROWS * SEQ_LEN;
        let questions = self.windows.inputs.chunks(size).zip(self.windows.targets.chunks(size));
        for ((inputs, targets), nats) in questions.zip(nats.chunks_mut(size)) {
            let batch_size = inputs.len() / SEQ_LEN;
            let windows = api::Windows { inputs, targets, batch_size, seq_len: SEQ_LEN };
            trainer.score(windows, nats)?;
        }
        Ok(nats)
    }

    /// Both rooms' answers at these places; `nats` are the fast room's.
    pub fn honest_room(
        &self,
        trainer: &mut LoadedTrainer,
        nats: &[f32],
        places: impl IntoIterator<Item = usize>,
    ) -> Result<Vec<Pair>, Box<dyn Error>> {
        let mut logits = vec![0.0; self.dataset.vocab_size()];
        let mut pairs = Vec::new();
        for place in places {
            let row = place - place % SEQ_LEN;
            trainer.logits(&self.windows.inputs[row..=place], &mut logits)?;
            let honest = exam::cross_entropy(&logits, self.windows.targets[place] as usize);
            pairs.push(Pair { place, fast: f64::from(nats[place]), honest });
        }
        Ok(pairs)
    }
}

/// The source with another value for one of its constants, as in `WIDTH=128`.
pub fn set(source: &str, setting: &str) -> Result<String, String> {
    let changed = || {
        let (name, value) = setting.split_once('=')?;
        let at = source.find(&format!("const {name}:"))?;
        let from = at + source[at..].find('=')? + 1;
        let to = from + source[from..].find(';')?;
        Some(format!("{} {value}{}", &source[..from], &source[to..]))
    };
    changed().ok_or_else(|| format!("--set {setting}: no such constant"))
}
