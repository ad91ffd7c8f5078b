//! How a study is described and opened.

use super::{Study, ask};
use crate::{
    Budget, Error, Event, Result,
    card::{Card, compiles_for_cards},
    cargo::{BUILD_LIMIT, Cargo},
    config::{CommandConfig, Config, Objective, TrainerConfig},
    data::{DataSpec, Dataset, PrepareOptions, Split},
    effort::Bounds,
    exam::{Exam, Rules},
    judge::{Judge, JudgeRule},
    laboratory::{CommandLaboratory, CommandObjective, Laboratory, TrainerLaboratory},
    ledger::Ledger,
    observers::Observers,
    project::Project,
    proposer::{Ahead, Allowance, Proposer, Roster, Tuner},
    runner::{Limits, Runner, Sandbox},
    stop::StopHandle,
    trainer_crate::TrainerCrate,
    worker::{self, protocol::Setup},
    workspace,
};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Describes a study; [`open`](Self::open) begins or resumes it.
///
/// Everything has a default: five-minute trials of the built-in trainer on the built-in corpus,
/// proposed by the built-in tuner.
#[must_use]
pub struct StudyBuilder {
    dir: PathBuf,
    budget: Budget,
    seed: u64,
    data: DataSpec,
    vocab_size: usize,
    trainer: Option<PathBuf>,
    allow_unsafe: bool,
    program: String,
    proposers: Vec<Box<dyn Proposer>>,
    allowance: Option<Allowance>,
    first_pause: Duration,
    thinks_ahead: bool,
    repairs: usize,
    controls: usize,
    control_every: Option<usize>,
    judge: JudgeRule,
    race: bool,
    sandbox: Sandbox,
    is_bounded: bool,
    patience: Option<Duration>,
    is_shared: bool,
    build_limit: Duration,
    objective: Option<CommandObjective>,
    rules: Rules,
    threads: Option<usize>,
    cuda_device: Option<usize>,
    limits: Limits,
    cache_dir: Option<PathBuf>,
    worker_program: Option<PathBuf>,
    observers: Observers,
    stop: StopHandle,
}

impl StudyBuilder {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            budget: Budget::default(),
            seed: 0,
            data: DataSpec::Builtin,
            vocab_size: 2048,
            trainer: None,
            allow_unsafe: false,
            program: include_str!("../../program.md").to_owned(),
            proposers: Vec::new(),
            allowance: None,
            first_pause: Duration::from_mins(1),
            thinks_ahead: true,
            repairs: 2,
            controls: 2,
            control_every: Some(50),
            judge: JudgeRule::default(),
            race: true,
            sandbox: Sandbox::default(),
            is_bounded: true,
            patience: None,
            is_shared: false,
            build_limit: BUILD_LIMIT,
            objective: None,
            rules: Rules { windows: 256, seq_len: 256, comparisons: 256 },
            threads: None,
            cuda_device: None,
            limits: Limits::default(),
            cache_dir: None,
            worker_program: None,
            observers: Observers::default(),
            stop: StopHandle::new(),
        }
    }

    /// What each trial may spend on training. Default: five minutes.
    pub fn budget(mut self, budget: Budget) -> Self {
        self.budget = budget;
        self
    }

    /// Every seed of the study derives from this one. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What to learn from. Default: [`DataSpec::Builtin`].
    pub fn data(mut self, data: DataSpec) -> Self {
        self.data = data;
        self
    }

    /// Distinct tokens, the special one included. Default: 2048.
    pub fn vocab_size(mut self, vocab_size: usize) -> Self {
        self.vocab_size = vocab_size;
        self
    }

    /// Tokens in the longest window, and in each of the exam's. Default: 256.
    pub fn max_seq_len(mut self, tokens: usize) -> Self {
        self.rules.seq_len = tokens;
        self
    }

    /// Validation windows in the exam. Default: 256.
    pub fn exam_windows(mut self, windows: usize) -> Self {
        self.rules.windows = windows;
        self
    }

    /// Answers compared between the exam's two rooms. Default: 256.
    pub fn exam_comparisons(mut self, comparisons: usize) -> Self {
        self.rules.comparisons = comparisons;
        self
    }

    /// The folder of a trainer crate. Default: the GPT that comes with the library.
    pub fn trainer(mut self, folder: impl Into<PathBuf>) -> Self {
        self.trainer = Some(folder.into());
        self
    }

    /// Lets proposals contain `unsafe`. A trainer can then reach all of its process, and only the
    /// sandbox is between it and the rest; the study's record says so. Default: it does not compile.
    pub fn allow_unsafe(mut self) -> Self {
        self.allow_unsafe = true;
        self
    }

    /// The research instructions, as text. Default: the `program.md` that comes with the library.
    pub fn program(mut self, text: impl Into<String>) -> Self {
        self.program = text.into();
        self
    }

    /// The research instructions, from a file.
    pub fn program_file(self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text = fs::read_to_string(path).map_err(Error::io("read", path))?;
        Ok(self.program(text))
    }

    /// Who writes the sources. Default: the [`Tuner`].
    ///
    /// May be called again for another one. Then each trial goes to whoever has gained the most a
    /// minute so far, and now and then to the others, in case that has changed.
    pub fn proposer(mut self, proposer: impl Proposer + 'static) -> Self {
        self.proposers.push(Box::new(proposer));
        self
    }

    /// What proposers may use up in all, counted over the ledger. Once it is spent, those go on that
    /// cost nothing; without one, the study ends. Default: without limit.
    pub fn allowance(mut self, allowance: Allowance) -> Self {
        self.allowance = Some(allowance);
        self
    }

    /// How long a proposer rests that failed three times in a row; each time twice as long, up to
    /// 32 times. Default: a minute.
    pub fn first_pause(mut self, pause: Duration) -> Self {
        self.first_pause = pause;
        self
    }

    /// Asks every proposer when the trial before has come to its end. Default: one that
    /// [`thinks`](Proposer::thinks), such as an agent or a chat model, is asked for the next proposal
    /// while a trial trains, and takes from a trainer on the CPU what it needs of the CPU itself.
    pub fn without_thinking_ahead(mut self) -> Self {
        self.thinks_ahead = false;
        self
    }

    /// How often a proposal that does not compile, crashes or repeats an earlier trial goes back to
    /// its author before it counts. Default: 2.
    pub fn repairs(mut self, repairs: usize) -> Self {
        self.repairs = repairs;
        self
    }

    /// How often the baseline is measured again, under other seeds, before anything is proposed: to
    /// know how much two measurements of one source differ. Default: twice.
    pub fn controls(mut self, controls: usize) -> Self {
        self.controls = controls;
        self
    }

    /// After how many trials the incumbent is measured again, under another seed: to know the noise
    /// better, and to notice a machine that became slower or faster. `None` is never. Default: 50.
    pub fn control_every(mut self, trials: Option<usize>) -> Self {
        self.control_every = trials;
        self
    }

    /// By which rule a candidate is kept. Default: [`JudgeRule::Posterior`].
    pub fn judge(mut self, rule: JudgeRule) -> Self {
        self.judge = rule;
        self
    }

    /// Lets every trial spend its whole budget. Default: a trial is stopped when its reported loss,
    /// beside the incumbent's, makes it improbable that it would be kept; see
    /// [`race`](crate::race).
    pub fn without_race(mut self) -> Self {
        self.race = false;
        self
    }

    /// Whether workers are confined to what their task needs. Default: as far as the system can.
    pub fn sandbox(mut self, sandbox: Sandbox) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// Measures what a command prints, instead of a trainer's bits per byte. What is said of
    /// trainer, data, budget and exam has no effect then.
    pub fn objective(mut self, objective: CommandObjective) -> Self {
        self.objective = Some(objective);
        self
    }

    /// Threads that a trainer computes on. Default: one a core.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Train on the CUDA device with this ordinal, among those that `CUDA_VISIBLE_DEVICES` leaves. The
    /// trainer is built with its crate's feature `cuda`, if it has one. Default: on the CPU.
    pub fn cuda_device(mut self, ordinal: usize) -> Self {
        self.cuda_device = Some(ordinal);
        self
    }

    /// How long after its budget a trainer may take to return before it is killed. Default: 30 s. Long
    /// before that it is too late to count, except for the baseline.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.limits.grace = grace;
        self
    }

    /// Lets trials take what they like outside of their budget, in `new`, `save`, `load` and the exam,
    /// up to limits that only end what hangs. Default: each is held to multiples of what the baseline
    /// needed, lest it train there; see [`Effort`](crate::Effort).
    pub fn unbounded(mut self) -> Self {
        self.is_bounded = false;
        self
    }

    /// How many bytes a trainer may have on disk at a time, in the folder that it works in. Default:
    /// 16 GiB.
    pub fn scratch_bytes(mut self, bytes: u64) -> Self {
        self.limits.scratch_bytes = bytes;
        self
    }

    /// How long the compiler may take over a crate before the source counts as one that does not
    /// compile. Default: ten minutes.
    pub fn build_limit(mut self, limit: Duration) -> Self {
        self.build_limit = limit;
        self
    }

    /// Where corpora and build products are kept for all studies. Default: [`cache_dir`].
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// The program to run as worker. Default: this one, again. Its `main` must begin with
    /// [`overnight::worker::run_if_worker()`](crate::worker::run_if_worker).
    pub fn worker_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.worker_program = Some(program.into());
        self
    }

    /// Lets a closure hear of every [`Event`], on a thread of its own. May be called again for another one.
    /// [`events`](crate::events) makes one that puts them into a channel.
    ///
    /// One that is slow does not hold the study up, and one that panics hears no more. What was told before the study is
    /// dropped is heard before that returns, unless it takes longer than ten seconds.
    pub fn observer(mut self, observer: impl FnMut(&Event) + Send + 'static) -> Self {
        self.observers = self.observers.with(observer);
        self
    }

    /// What ends the study.
    pub(crate) fn stop(&self) -> StopHandle {
        self.stop.clone()
    }

    /// How long to wait for a machine that does something else, before a trial that was disturbed by that is
    /// measured again. Default: as long as a trial's budget.
    ///
    /// One that is disturbed three times is recorded as such, and nobody learns from it.
    pub fn wait_for_quiet(mut self, patience: Duration) -> Self {
        self.patience = Some(patience);
        self
    }

    /// Takes every measurement as it is, whatever else the machine does meanwhile: for one that is never quiet.
    /// What each trial had of the machine stands in the ledger all the same.
    pub fn shared_machine(mut self) -> Self {
        self.is_shared = true;
        self
    }

    /// Lets `stop` end the study from another thread.
    pub fn stop_handle(mut self, stop: StopHandle) -> Self {
        self.stop = stop;
        self
    }

    /// Prepares the data and begins the study, or resumes it where its folder has one.
    ///
    /// # Errors
    /// Whatever would make the night useless, said before it begins: a missing program, unusable
    /// data, a folder that belongs to another configuration or to another running study.
    pub fn open(mut self) -> Result<Study> {
        if worker::is_worker() {
            return Err(Error::InsideWorker);
        }
        self.budget.check()?;
        workspace::check_git()?;
        fs::create_dir_all(&self.dir).map_err(Error::io("create", &self.dir))?;
        let dir = self.dir.canonicalize().map_err(Error::io("open", &self.dir))?;
        let lock = lock(&dir)?;
        let subject = match self.objective.take() {
            Some(objective) => self.command(objective)?,
            None => self.trainer_on_data(&dir)?,
        };
        let config = Config {
            version: Config::VERSION,
            seed: self.seed,
            judge: self.judge,
            race: self.race,
            objective: subject.objective,
        };
        // Before anything is written: another folder, or another source, may be the answer.
        let is_given = !self.proposers.is_empty();
        if !is_given {
            self.proposers.push(Box::new(Tuner::new(self.seed)));
        }
        let roster = Roster::new(self.proposers, self.allowance, self.first_pause);
        if is_given {
            for remark in roster.check(&subject.project.edited, &subject.project.source)? {
                self.observers.tell(Event::Noted { remark });
            }
        }
        config.freeze(&dir)?;
        let ledger = Ledger::open(&dir)?;
        let (workspace, remarks) = workspace::resume(&dir, &subject.project, &ledger)?;
        for remark in remarks {
            self.observers.tell(Event::Noted { remark });
        }
        let opened = Event::Opened {
            dir: dir.clone(),
            branch: workspace.branch().to_owned(),
            data: subject.description,
            finished: ledger.trials().len(),
        };
        self.observers.tell(opened);
        let mut study = Study {
            _lock: lock,
            config,
            program: self.program,
            references: subject.references,
            proposers: Ahead::new(roster),
            thinks_ahead: self.thinks_ahead,
            goes_on: false,
            baseline: subject.project.source,
            laboratory: subject.laboratory,
            workspace,
            observers: self.observers,
            stop: self.stop,
            repairs: self.repairs,
            patience: self.patience.or(self.budget.duration()).unwrap_or_default(),
            controls: self.controls,
            control_every: self.control_every,
            queue: Default::default(),
            begun: ask::begun(&dir, |number| ledger.trial(number).is_some()),
            open: Default::default(),
            tried: Default::default(),
            judge: Judge::new(self.judge),
            ledger,
            dir,
        };
        study.remember()?;
        Ok(study)
    }

    /// A trainer crate, on data, in bits per byte.
    fn trainer_on_data(&self, dir: &Path) -> Result<Subject> {
        let cache = match &self.cache_dir {
            Some(cache) => cache.clone(),
            None => cache_dir()?,
        };
        fs::create_dir_all(&cache).map_err(Error::io("create", &cache))?;
        let cache = cache.canonicalize().map_err(Error::io("open", &cache))?;
        let threads = match self.threads {
            Some(threads) => threads.max(1),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let trainer = match &self.trainer {
            Some(folder) => TrainerCrate::open(folder)?,
            None => TrainerCrate::template(&cache)?,
        };
        let trainer = if self.allow_unsafe { trainer.allow_unsafe()? } else { trainer };
        // Before anything takes its time.
        let compiles = compiles_for_cards(trainer.folder());
        let card = self.cuda_device.map(|ordinal| Card::open(ordinal, compiles)).transpose()?;
        let options = PrepareOptions { vocab_size: self.vocab_size, cache_dir: cache.join("data") };
        let observers = &self.observers;
        let dataset = Dataset::prepare(&self.data, &options, |preparing| {
            let stage = preparing.stage.to_string();
            let (done, total) = (preparing.done, preparing.total);
            observers.tell(Event::Preparing { stage, done, total });
        })?;
        let exam = Exam::prepare(&dataset, Split::Validation, &self.rules)?;
        let test = Exam::prepare(&dataset, Split::Test, &self.rules).ok();
        let cargo = Cargo::open_for(card.clone(), &trainer, &cache, self.stop.clone())?;
        if let Some(damaged) = cargo.heal()? {
            let damaged = damaged.file_name().unwrap_or_default().to_string_lossy();
            let remark = format!("{damaged} is not what the compiler left: all is compiled anew");
            self.observers.tell(Event::Noted { remark });
        }
        let mut cargo = cargo.limited_to(self.build_limit);
        let program = match &self.worker_program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(Error::io("find", "the running program"))?,
        };
        let setup = Setup {
            vocab_size: dataset.vocab_size(),
            max_seq_len: self.rules.seq_len,
            seed: self.seed,
            threads,
            cuda_device: card.as_ref().map(Card::ordinal_in_worker),
        };
        let (limits, sandbox, stop) = (self.limits, self.sandbox, self.stop.clone());
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
            data: self.data.to_string(),
            data_fingerprint: dataset.fingerprint().to_owned(),
            vocab_size: dataset.vocab_size(),
            max_seq_len: self.rules.seq_len,
            exam_windows: self.rules.windows,
            exam_comparisons: self.rules.comparisons,
            trainer_fingerprint: trainer.fingerprint().to_owned(),
            allows_unsafe: self.allow_unsafe,
            toolchain: cargo.toolchain().to_owned(),
            threads,
            cuda_device: self.cuda_device,
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
                is_bounded: self.is_bounded,
                baseline: None,
                is_shared: self.is_shared,
            }),
        })
    }

    /// A command that prints a number.
    fn command(&self, objective: CommandObjective) -> Result<Subject> {
        let project = Project::open(&objective.folder, &objective.edited)?;
        if objective.words.is_empty() {
            let problem = "there is no command to run".to_owned();
            return Err(Error::Project { folder: project.folder, problem });
        }
        let config = CommandConfig {
            command: objective.words.clone(),
            edited: objective.edited.clone(),
            project_fingerprint: project.fingerprint(),
            metric: objective.metric.clone(),
            higher_is_better: objective.higher_is_better,
            limit_seconds: objective.limit.as_secs_f64(),
        };
        Ok(Subject {
            objective: Objective::Command(config),
            description: format!("{} of `{}`", objective.metric, objective.words.join(" ")),
            references: Vec::new(),
            project,
            laboratory: Box::new(CommandLaboratory {
                objective,
                is_shared: self.is_shared,
                baseline: None,
                stop: self.stop.clone(),
            }),
        })
    }
}

/// What a study edits and measures.
struct Subject {
    objective: Objective,
    /// One line for the log.
    description: String,
    references: Vec<(String, String)>,
    project: Project,
    laboratory: Box<dyn Laboratory>,
}

/// One process a study: two would take turns at overwriting each other's trial.
fn lock(dir: &Path) -> Result<File> {
    let path = dir.join(".lock");
    let file = File::create(&path).map_err(Error::io("create", &path))?;
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if begun.elapsed() < LOCKED => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked { folder: dir.to_owned() });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
    }
}

/// How long a lock may last of which nobody knows: an owner that is being killed still has it, and so has a program
/// that another thread is just starting, until it has become that program.
const LOCKED: Duration = Duration::from_secs(1);

/// Where corpora and build products are kept unless a study says otherwise: `overnight` in the
/// user's cache folder, or what the variable `OVERNIGHT_CACHE` says.
pub fn cache_dir() -> Result<PathBuf> {
    match std::env::var_os("OVERNIGHT_CACHE") {
        Some(folder) => Ok(folder.into()),
        None => dirs::cache_dir().map(|cache| cache.join("overnight")).ok_or(Error::NoCacheFolder),
    }
}
