//! How a study is described and opened.

#[cfg(feature = "trainer")]
use super::training::Training;
use super::{Study, ask};
use crate::{
    error::{Error, Result},
    event::Event,
    judge::Judge,
    laboratory::{CommandLaboratory, CommandObjective, Laboratory},
    observers::Observers,
    project::Project,
    proposer::{Ahead, Allowance, Proposer, Roster, Tuner},
    record::{Budget, CommandConfig, Config, JudgeRule, Ledger, Objective},
    stop::StopHandle,
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
    pub(super) budget: Budget,
    pub(super) seed: u64,
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
    patience: Option<Duration>,
    pub(super) is_shared: bool,
    objective: Option<CommandObjective>,
    #[cfg(feature = "trainer")]
    pub(super) training: Training,
    pub(super) observers: Observers,
    pub(super) stop: StopHandle,
}

impl StudyBuilder {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            budget: Budget::default(),
            seed: 0,
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
            patience: None,
            is_shared: false,
            objective: None,
            #[cfg(feature = "trainer")]
            training: Training::default(),
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

    /// Measures what a command prints, instead of a trainer's bits per byte. What is said of
    /// trainer, data, budget and exam has no effect then.
    pub fn objective(mut self, objective: CommandObjective) -> Self {
        self.objective = Some(objective);
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
        #[cfg(feature = "trainer")]
        if crate::worker::is_worker() {
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

    #[cfg(not(feature = "trainer"))]
    fn trainer_on_data(&self, _dir: &Path) -> Result<Subject> {
        Err(Error::NoObjective)
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
pub(super) struct Subject {
    pub objective: Objective,
    /// One line for the log.
    pub description: String,
    pub references: Vec<(String, String)>,
    pub project: Project,
    pub laboratory: Box<dyn Laboratory>,
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
