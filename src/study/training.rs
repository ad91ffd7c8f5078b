//! What a study needs to know where it measures trainers: their crate and its data, the exam, the machine.

use super::builder::{StudyBuilder, Subject};
use crate::{
    card::{Card, compiles_for_cards},
    cargo::{BUILD_LIMIT, Cargo},
    data::{DataSpec, Dataset, PrepareOptions, Split},
    effort::Bounds,
    error::{Error, Result},
    event::Event,
    exam::{Exam, Rules},
    laboratory::TrainerLaboratory,
    record::{Objective, TrainerConfig},
    trainer_crate::TrainerCrate,
    worker::protocol::Setup,
    workers::{Limits, Runner, Sandbox},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// As a [`StudyBuilder`] is told.
pub(super) struct Training {
    data: DataSpec,
    vocab_size: usize,
    trainer: Option<PathBuf>,
    allow_unsafe: bool,
    sandbox: Sandbox,
    is_bounded: bool,
    build_limit: Duration,
    rules: Rules,
    threads: Option<usize>,
    cuda_device: Option<usize>,
    limits: Limits,
    cache_dir: Option<PathBuf>,
    worker_program: Option<PathBuf>,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            data: DataSpec::Builtin,
            vocab_size: 2048,
            trainer: None,
            allow_unsafe: false,
            sandbox: Sandbox::default(),
            is_bounded: true,
            build_limit: BUILD_LIMIT,
            rules: Rules { windows: 256, seq_len: 256, comparisons: 256 },
            threads: None,
            cuda_device: None,
            limits: Limits::default(),
            cache_dir: None,
            worker_program: None,
        }
    }
}

/// Of trainers alone. These have no effect on a study with another objective.
impl StudyBuilder {
    /// What to learn from. Default: [`DataSpec::Builtin`].
    pub fn data(mut self, data: DataSpec) -> Self {
        self.training.data = data;
        self
    }

    /// Distinct tokens, the special one included. Default: 2048.
    pub fn vocab_size(mut self, vocab_size: usize) -> Self {
        self.training.vocab_size = vocab_size;
        self
    }

    /// Tokens in the longest window, and in each of the exam's. Default: 256.
    pub fn max_seq_len(mut self, tokens: usize) -> Self {
        self.training.rules.seq_len = tokens;
        self
    }

    /// Validation windows in the exam. Default: 256.
    pub fn exam_windows(mut self, windows: usize) -> Self {
        self.training.rules.windows = windows;
        self
    }

    /// Answers compared between the exam's two rooms. Default: 256.
    pub fn exam_comparisons(mut self, comparisons: usize) -> Self {
        self.training.rules.comparisons = comparisons;
        self
    }

    /// The folder of a trainer crate. Default: the GPT that comes with the library.
    pub fn trainer(mut self, folder: impl Into<PathBuf>) -> Self {
        self.training.trainer = Some(folder.into());
        self
    }

    /// Lets proposals contain `unsafe`. A trainer can then reach all of its process, and only the
    /// sandbox is between it and the rest; the study's record says so. Default: it does not compile.
    pub fn allow_unsafe(mut self) -> Self {
        self.training.allow_unsafe = true;
        self
    }

    /// Whether workers are confined to what their task needs. Default: as far as the system can.
    pub fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.training.sandbox = sandbox;
        self
    }

    /// Threads that a trainer computes on. Default: one a core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.training.threads = Some(threads);
        self
    }

    /// Train on the CUDA device with this ordinal, among those that `CUDA_VISIBLE_DEVICES` leaves. The
    /// trainer is built with its crate's feature `cuda`, if it has one. Default: on the CPU.
    pub fn cuda_device(mut self, ordinal: usize) -> Self {
        self.training.cuda_device = Some(ordinal);
        self
    }

    /// How long after its budget a trainer may take to return before it is killed. Default: 30 s. Long
    /// before that it is too late to count, except for the baseline.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.training.limits.grace = grace;
        self
    }

    /// Lets trials take what they like outside of their budget, in `new`, `save`, `load` and the exam,
    /// up to limits that only end what hangs. Default: each is held to multiples of what the baseline
    /// needed, lest it train there; see [`Effort`](crate::Effort).
    pub fn unbounded(mut self) -> Self {
        self.training.is_bounded = false;
        self
    }

    /// How many bytes a trainer may have on disk at a time, in the folder that it works in. Default:
    /// 16 GiB.
    pub fn scratch_bytes(mut self, bytes: u64) -> Self {
        self.training.limits.scratch_bytes = bytes;
        self
    }

    /// How long the compiler may take over a crate before the source counts as one that does not
    /// compile. Default: ten minutes.
    pub fn build_limit(mut self, limit: Duration) -> Self {
        self.training.build_limit = limit;
        self
    }

    /// Where corpora and build products are kept for all studies. Default: [`cache_dir`].
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.training.cache_dir = Some(folder.into());
        self
    }

    /// The program to run as worker. Default: this one, again. Its `main` must begin with
    /// [`overnight::worker::run_if_worker()`](crate::worker::run_if_worker).
    pub fn worker_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.training.worker_program = Some(program.into());
        self
    }

    /// A trainer crate, on data, in bits per byte.
    pub(super) fn trainer_on_data(&self, dir: &Path) -> Result<Subject> {
        let training = &self.training;
        let cache = match &training.cache_dir {
            Some(cache) => cache.clone(),
            None => cache_dir()?,
        };
        fs::create_dir_all(&cache).map_err(Error::io("create", &cache))?;
        let cache = cache.canonicalize().map_err(Error::io("open", &cache))?;
        let threads = match training.threads {
            Some(threads) => threads.max(1),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let trainer = match &training.trainer {
            Some(folder) => TrainerCrate::open(folder)?,
            None => TrainerCrate::template(&cache)?,
        };
        let trainer = if training.allow_unsafe { trainer.allow_unsafe()? } else { trainer };
        // Before anything takes its time.
        let compiles = compiles_for_cards(trainer.folder());
        let card = training.cuda_device.map(|ordinal| Card::open(ordinal, compiles)).transpose()?;
        let options =
            PrepareOptions { vocab_size: training.vocab_size, cache_dir: cache.join("data") };
        let observers = &self.observers;
        let dataset = Dataset::prepare(&training.data, &options, |preparing| {
            let stage = preparing.stage.to_string();
            let (done, total) = (preparing.done, preparing.total);
            observers.tell(Event::Preparing { stage, done, total });
        })?;
        let exam = Exam::prepare(&dataset, Split::Validation, &training.rules)?;
        let test = Exam::prepare(&dataset, Split::Test, &training.rules).ok();
        let cargo = Cargo::open_for(card.clone(), &trainer, &cache, self.stop.clone())?;
        if let Some(damaged) = cargo.heal()? {
            let damaged = damaged.file_name().unwrap_or_default().to_string_lossy();
            let remark = format!("{damaged} is not what the compiler left: all is compiled anew");
            self.observers.tell(Event::Noted { remark });
        }
        let mut cargo = cargo.limited_to(training.build_limit);
        let program = match &training.worker_program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(Error::io("find", "the running program"))?,
        };
        let setup = Setup {
            vocab_size: dataset.vocab_size(),
            max_seq_len: training.rules.seq_len,
            seed: self.seed,
            threads,
            cuda_device: card.as_ref().map(Card::ordinal_in_worker),
        };
        let (limits, sandbox, stop) = (training.limits, training.sandbox, self.stop.clone());
        let bounds = Bounds::default();
        let known = card.as_ref().and_then(|card| card.identity.clone());
        let runner = Runner { program, setup, card, limits, bounds, sandbox, stop };
        let mut missing = runner.check(dir)?;
        // A compiler needs less of the system than a worker does.
        if sandbox != Sandbox::Off && cfg!(target_os = "linux") {
            let problem = cargo.confine(&runner.program)?;
            missing.extend(problem.map(|problem| format!("sandbox for the compiler: {problem}")));
            if sandbox == Sandbox::Strict && !missing.is_empty() {
                return Err(Error::Sandbox { missing: missing.join("; ") });
            }
        }
        if !missing.is_empty() {
            self.observers.tell(Event::Unconfined { missing });
        }
        let config = TrainerConfig {
            budget: self.budget,
            data: training.data.to_string(),
            data_fingerprint: dataset.fingerprint().to_owned(),
            vocab_size: dataset.vocab_size(),
            max_seq_len: training.rules.seq_len,
            exam_windows: training.rules.windows,
            exam_comparisons: training.rules.comparisons,
            trainer_fingerprint: trainer.fingerprint().to_owned(),
            allows_unsafe: training.allow_unsafe,
            toolchain: cargo.toolchain().to_owned(),
            threads,
            cuda_device: training.cuda_device,
            card: known.as_ref().map(|card| card.name.clone()),
            card_uuid: known.map(|card| card.uuid),
        };
        Ok(Subject {
            objective: Objective::Trainer(config),
            description: dataset.describe(),
            references: trainer.references(),
            project: trainer.project().clone(),
            laboratory: Box::new(TrainerLaboratory {
                tokens: dataset.path(Split::Train),
                bos: dataset.bos(),
                budget: self.budget,
                exam,
                test,
                cargo,
                runner,
                is_bounded: training.is_bounded,
                baseline: None,
                is_shared: self.is_shared,
            }),
        })
    }
}

/// Where corpora and build products are kept unless a study says otherwise: `overnight` in the
/// user's cache folder, or what the variable `OVERNIGHT_CACHE` says.
pub fn cache_dir() -> Result<PathBuf> {
    match std::env::var_os("OVERNIGHT_CACHE") {
        Some(folder) => Ok(folder.into()),
        None => dirs::cache_dir().map(|cache| cache.join("overnight")).ok_or(Error::NoCacheFolder),
    }
}
