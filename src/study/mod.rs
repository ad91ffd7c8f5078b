//! The loop itself: propose, measure, judge, record.

mod builder;
mod certify;
mod doubt;
mod prefetch;
mod recall;
mod repair;
mod rerun;
#[cfg(feature = "trainer")]
mod training;

pub use builder::StudyBuilder;
pub(crate) use builder::tell;
pub use certify::{Ablation, Certificate};
pub use rerun::Rerun;
#[cfg(feature = "trainer")]
pub use training::cache_dir;

use crate::{
    Error, Event, Measurement, Outcome, Repetition, Result, Status, StopHandle, Trial,
    config::Config,
    foreign,
    hash::{number_of_parts, sha256},
    judge::{Candidate, Claim, Decision, Evidence, Judge},
    laboratory::{Attempt, CHECKPOINT, Halt, Laboratory, Source, library_name},
    ledger::Ledger,
    proposer::{Ahead, Proposal, Running, Turn, Usage},
    race::{self, Race},
    source::{self, LARGEST_SOURCE, identity, length},
    workspace::{Workspace, message},
};
use crossbeam_channel::Sender;
use repair::Ending;
use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

/// A search for a better trainer: a folder, a git branch, a ledger.
///
/// The primary type of this crate. [`Study::builder`] describes one and opens or resumes it,
/// [`optimize`](Self::optimize) runs it.
pub struct Study {
    pub(crate) dir: PathBuf,
    /// Held as long as the study is open.
    pub(crate) _lock: File,
    pub(crate) config: Config,
    pub(crate) program: String,
    pub(crate) references: Vec<(String, String)>,
    pub(crate) proposers: Ahead,
    /// Whether proposers may think about the next trial while one trains.
    pub(crate) thinks_ahead: bool,
    /// Whether there is to be a proposal after the trial that runs.
    pub(crate) goes_on: bool,
    /// The source of trial 0.
    pub(crate) baseline: String,
    pub(crate) laboratory: Box<dyn Laboratory>,
    pub(crate) ledger: Ledger,
    pub(crate) workspace: Workspace,
    pub(crate) observers: Vec<Sender<Event>>,
    pub(crate) stop: StopHandle,
    /// How often a proposal may be mended before it counts.
    pub(crate) repairs: usize,
    /// How long to wait for a quiet machine.
    pub(crate) patience: Duration,
    /// Control runs after the baseline.
    pub(crate) controls: usize,
    /// Trials from one control run of the incumbent to the next.
    pub(crate) control_every: Option<usize>,
    /// Which trial first tried a program, by its identity.
    pub(crate) tried: HashMap<String, usize>,
    pub(crate) judge: Judge,
}

/// Less than this is too little for a trial's files.
#[cfg(unix)]
const LEAST_FREE_BYTES: u64 = 256 << 20;

/// Where a trial's source comes from.
pub(crate) enum Origin {
    Baseline,
    /// The incumbent once more, under another seed.
    Control {
        of: usize,
    },
    Proposed(Box<Turn>),
}

/// What becomes a line of the ledger, beside the measurement.
#[derive(Debug)]
pub(crate) struct Entry {
    pub proposer: String,
    pub proposal: Proposal,
    pub repeats: Option<usize>,
    pub status: Status,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub evidence: Option<Evidence>,
    pub repetitions: Vec<Repetition>,
    pub repairs: usize,
}

impl Entry {
    /// Of a trial that came to nothing, as long as nothing else is known.
    pub(crate) fn new(proposer: impl Into<String>, proposal: Proposal) -> Self {
        Self {
            proposer: proposer.into(),
            proposal,
            repeats: None,
            status: Status::Crash,
            outcome: Outcome::Measured,
            reason: None,
            evidence: None,
            repetitions: Vec::new(),
            repairs: 0,
        }
    }

    pub(crate) fn decide(&mut self, status: Status, reason: String) {
        (self.status, self.reason) = (status, Some(reason));
    }
}

impl Study {
    /// Describes a study in the folder `dir`, to be created or resumed.
    pub fn builder(dir: impl Into<PathBuf>) -> StudyBuilder {
        StudyBuilder::new(dir.into())
    }

    /// Runs `trials` proposals beyond those that stand in the ledger, and the baseline and control
    /// runs that belong to them; `None` goes on until the study is stopped or no proposer has
    /// anything left.
    pub fn optimize(&mut self, trials: Option<usize>) -> Result<()> {
        let optimized = self.go_on(trials);
        self.goes_on = false;
        let recalled = self.proposers.recall();
        optimized.and(recalled)
    }

    fn go_on(&mut self, mut left: Option<usize>) -> Result<()> {
        loop {
            let number = self.ledger.trials().len();
            if left == Some(0) && number > self.controls {
                return Ok(());
            }
            let is_proposed = !self.is_control(number);
            let others = left.map(|left| left.saturating_sub(usize::from(is_proposed)));
            self.goes_on = others != Some(0);
            if self.step()?.is_none() {
                return Ok(());
            }
            left = others;
        }
    }

    /// Runs one trial to its end and records it. `None`: the study was stopped, or there is nothing
    /// left to try. Whether another step follows is not known here, so nobody thinks about one.
    ///
    /// # Errors
    /// Only what keeps the study from going on. Whatever becomes of a trial is no error, except for
    /// the baseline: without it there is nothing to improve.
    pub fn step(&mut self) -> Result<Option<Trial>> {
        if self.stop.is_stopped() {
            return Ok(None);
        }
        self.check_space()?;
        let number = self.ledger.trials().len();
        let folder = match self.proposers.is_about(number) {
            true => self.folder_of(number),
            false => self.trial_folder(number)?,
        };
        let mut attempt = Attempt::new(number, self.config.seed, folder);
        let Some(mut origin) = self.originate(number)? else {
            let _ = foreign::remove(&attempt.folder);
            return Ok(None);
        };
        match &mut origin {
            Origin::Baseline => {}
            Origin::Control { .. } => attempt.seed = self.seed_of_control(),
            Origin::Proposed(turn) => attempt.built = turn.built.take(),
        }
        let Some(ending) = self.carry_out(&mut attempt, &mut origin)? else {
            self.workspace.reset()?;
            return Ok(None);
        };
        let Ending { outcome, reason, repairs } = ending;
        let mut entry = Entry { outcome, reason, repairs, ..self.entry(&origin)? };
        if attempt.takes_any_conditions {
            let remark = "measured on a busy machine: trials are compared with it as it was";
            entry.proposal.remarks.push(remark.to_owned());
        }
        match (attempt.measurement.cost(), &mut origin) {
            (Some(cost), Origin::Control { .. }) => {
                self.judge.control(cost, attempt.seed);
                entry.decide(Status::Discard, "a control run".to_owned());
            }
            (Some(cost), _) => {
                let Some(decision) = self.decide(cost, &mut attempt, &mut entry)? else {
                    self.workspace.reset()?;
                    return Ok(None);
                };
                let status = if decision.keep { Status::Keep } else { Status::Discard };
                entry.decide(status, decision.reason);
                entry.evidence = decision.evidence;
            }
            (None, Origin::Baseline) => {
                let reason = entry.reason.unwrap_or_default();
                return Err(Error::Baseline { reason, folder: attempt.folder });
            }
            (None, _) if matches!(entry.outcome, Outcome::Pruned | Outcome::Disturbed) => {
                entry.status = Status::Discard;
            }
            (None, _) => {}
        }
        if let Origin::Proposed(turn) = &origin {
            let measurement = &mut attempt.measurement;
            measurement.propose_seconds = Some(turn.took.as_secs_f64());
            measurement.propose_usd = turn.usage.usd;
            measurement.propose_tokens = turn.usage.tokens;
        }
        let trial = self.conclude(attempt, entry)?;
        if self.ledger.trials().len().is_multiple_of(recall::EVERY) {
            recall::keep(&self.dir, self.config.judge, &self.judge, self.ledger.trials());
        }
        Ok(Some(trial))
    }

    /// Where the study lives.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the study froze when it began.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Every finished trial, oldest first.
    pub fn trials(&self) -> &[Trial] {
        self.ledger.trials()
    }

    /// The best trial kept so far.
    pub fn best_trial(&self) -> Option<&Trial> {
        self.ledger.incumbent()
    }

    /// By how much the best trial is truly better than the baseline, as far as all measurements tell;
    /// `None` before the baseline is measured.
    pub fn claim(&self) -> Option<Claim> {
        self.judge.claim()
    }

    /// Source, checkpoint and logs of a trial.
    pub fn folder_of(&self, trial: usize) -> PathBuf {
        self.dir.join("trials").join(format!("{trial:04}"))
    }

    /// The next source; `None` where there is nothing left to try.
    fn originate(&mut self, number: usize) -> Result<Option<Origin>> {
        let Some(incumbent) = self.ledger.incumbent() else { return Ok(Some(Origin::Baseline)) };
        if self.is_control(number) {
            return Ok(Some(Origin::Control { of: incumbent.trial }));
        }
        Ok(self.propose(number)?.map(|turn| Origin::Proposed(Box::new(turn))))
    }

    fn entry(&self, origin: &Origin) -> Result<Entry> {
        Ok(match origin {
            Origin::Baseline => {
                let mut proposal = Proposal::new(&self.baseline, "baseline");
                if self.config.objective.allows_unsafe() {
                    proposal.remarks.push("this study allows unsafe code".to_owned());
                }
                Entry::new("baseline", proposal)
            }
            Origin::Control { of } => {
                let proposal = Proposal::new(self.workspace.read()?, format!("trial {of} again"));
                Entry { repeats: Some(*of), ..Entry::new("control", proposal) }
            }
            Origin::Proposed(turn) => {
                let mut proposal = turn.proposal.clone();
                proposal.remarks.extend_from_slice(&turn.remarks);
                Entry::new(turn.name.clone(), proposal)
            }
        })
    }

    /// Asks the judge, and measures again where it wants to know more. `None`: the study was stopped.
    fn decide(
        &mut self,
        cost: f64,
        attempt: &mut Attempt,
        entry: &mut Entry,
    ) -> Result<Option<Decision>> {
        match self.laboratory.examine_start(attempt) {
            Ok(()) | Err(Halt::Ended { .. }) => {}
            Err(Halt::Interrupted) => return Ok(None),
            Err(Halt::Broken(error)) => return Err(error),
        }
        let (seed, start) = (attempt.seed, attempt.measurement.start_sha256.as_deref());
        let mut differences = Vec::new();
        let is_shorter = self.is_shorter(&entry.proposal.source);
        loop {
            let candidate = Candidate { cost, seed, start, is_shorter, differences: &differences };
            if !self.judge.wants_another(&candidate) {
                return Ok(Some(self.judge.decide(candidate)));
            }
            let seed = derived_seed("repetition", self.config.seed, differences.len());
            let Some(incumbent) = self.incumbent_under(seed)? else { return Ok(None) };
            let Some(again) = self.measure_again(&entry.proposal.source, seed)? else {
                return Ok(None);
            };
            // The commit, if there is one, is of what lies there.
            self.workspace.write(&entry.proposal.source)?;
            let difference = match (again.measurement.score(), again.measurement.cost(), incumbent)
            {
                (Some(score), Some(cost), (incumbent, incumbents)) => {
                    entry.repetitions.push(Repetition { seed, score, incumbent });
                    incumbents - cost
                }
                // It does not work under every seed: that is no improvement.
                _ => f64::NEG_INFINITY,
            };
            differences.push(difference);
        }
    }

    /// Score and cost of the incumbent under a seed: as they were measured before, or now. `None`:
    /// the study was stopped.
    fn incumbent_under(&mut self, seed: u64) -> Result<Option<(f64, f64)>> {
        let Some(incumbent) = self.ledger.incumbent().cloned() else { return Ok(None) };
        let sign = if incumbent.measurement.higher_is_better() { -1.0 } else { 1.0 };
        let of = |trial: &Trial, own: bool| {
            let known = trial.repetitions.iter().find(|known| known.seed == seed)?;
            Some(if own { known.score } else { known.incumbent })
        };
        let since = &self.ledger.trials()[incumbent.trial + 1..];
        let known = of(&incumbent, true).or_else(|| since.iter().find_map(|t| of(t, false)));
        if let Some(score) = known {
            return Ok(Some((score, sign * score)));
        }
        let source = self.source_of(incumbent.trial)?;
        let Some(again) = self.measure_again(&source, seed)? else { return Ok(None) };
        // An incumbent that does not work under this seed is no measure for anything.
        let score = again.measurement.score().unwrap_or(sign * f64::MAX);
        Ok(Some((score, sign * score)))
    }

    /// Commits or undoes, records, and tells everybody.
    pub(crate) fn conclude(&mut self, mut attempt: Attempt, mut entry: Entry) -> Result<Trial> {
        let number = attempt.number;
        let parent = self.ledger.incumbent().map(|trial| trial.trial);
        let commit = if entry.status == Status::Keep {
            match self.laboratory.examine_kept(&mut attempt) {
                Ok(remarks) => entry.proposal.remarks.extend(remarks),
                // It is decided, and may go without what would have been nice to know.
                Err(Halt::Ended { .. } | Halt::Interrupted) => {}
                Err(Halt::Broken(error)) => return Err(error),
            }
            let depends_on_seed = |measurement: &Measurement| measurement.depends_on_seed;
            let baseline = self.ledger.trials().first();
            if baseline.and_then(|trial| depends_on_seed(&trial.measurement)) == Some(true)
                && depends_on_seed(&attempt.measurement) == Some(false)
            {
                let remark = "it starts from the same weights under every seed";
                entry.proposal.remarks.push(remark.to_owned());
            }
            let Proposal { description, .. } = &entry.proposal;
            let message = message(number, description, &attempt.measurement, &entry.proposer);
            Some(self.workspace.commit(&message)?)
        } else {
            self.workspace.reset()?;
            // Weights and library are kept with the trials that are kept.
            let _ = fs::remove_file(attempt.folder.join(CHECKPOINT));
            let _ = fs::remove_file(attempt.folder.join(library_name()));
            None
        };
        let Attempt { seed, folder, mut measurement, forecast, begun, started, .. } = attempt;
        measurement.total_seconds = Some(begun.elapsed().as_secs_f64());
        let Proposal { source, description, remarks, .. } = entry.proposal;
        let trial = Trial {
            trial: number,
            parent,
            commit,
            proposer: entry.proposer,
            description,
            status: entry.status,
            outcome: entry.outcome,
            reason: entry.reason,
            measurement,
            seed,
            source_sha256: sha256(source.as_bytes()),
            program_sha256: Some(identity(self.workspace.edited(), &source)),
            started,
            repeats: entry.repeats,
            evidence: entry.evidence,
            forecast,
            repetitions: entry.repetitions,
            repairs: entry.repairs,
            remarks,
        };
        let json = serde_json::to_string_pretty(&trial).unwrap_or_default();
        write(&folder.join("outcome.json"), &json)?;
        let gain = self.gain(&trial);
        self.ledger.append(trial.clone())?;
        self.laboratory.remember(&trial);
        self.note(&trial, &source, gain);
        self.tell(Event::Finished(Box::new(trial.clone())));
        Ok(trial)
    }

    /// The stored source of a trial.
    pub(crate) fn source_of(&self, trial: usize) -> Result<String> {
        let path = self.folder_of(trial).join(self.name_of_source());
        fs::read_to_string(&path).map_err(Error::io("read", path))
    }

    /// Whether nothing is proposed for this trial: it is the baseline, or the incumbent once more.
    pub(crate) fn is_control(&self, number: usize) -> bool {
        let beyond = number.saturating_sub(self.controls);
        number <= self.controls
            || self.control_every.is_some_and(|every| beyond.is_multiple_of(every.max(2)))
    }

    /// The first control runs' seeds by turns: so later ones of the incumbent have something to be
    /// compared with.
    fn seed_of_control(&self) -> u64 {
        let runs = self.ledger.trials().iter().filter(|trial| trial.repeats.is_some()).count();
        derived_seed("control", self.config.seed, 1 + runs % self.controls.max(1))
    }

    /// Whether a source has less to read than the incumbent's.
    fn is_shorter(&self, source: &str) -> bool {
        let incumbent = self.ledger.incumbent().map(|trial| trial.trial);
        // A folder that somebody cleaned up says nothing about it.
        let Ok(before) = self.source_of(incumbent.unwrap_or_default()) else { return false };
        let name = self.workspace.edited();
        length(name, source) < length(name, &before)
    }

    /// The race that a candidate runs, if there is one.
    fn race(&self, number: usize, source: &str) -> Option<Race> {
        let bar = self
            .judge
            .bar(self.config.seed, self.is_shorter(source))
            .filter(|_| self.config.race)?;
        let mut race = Race::new(self.ledger.trials(), bar)?;
        race.is_spared = race::is_spared(self.config.seed, number);
        Some(race)
    }

    /// Measures a source; what is learned on the way goes into the attempt. As soon as it trains,
    /// others may think about the next proposal.
    pub(crate) fn measure(&mut self, attempt: &mut Attempt, origin: &Origin) -> Result<(), Halt> {
        let Entry { proposer, proposal, .. } = self.entry(origin)?;
        let (text, description) = (proposal.source, proposal.description);
        self.tell(Event::Building {
            trial: attempt.number,
            proposer: proposer.clone(),
            description: description.clone(),
        });
        if text.len() <= LARGEST_SOURCE {
            write(&attempt.folder.join(self.name_of_source()), &text)?;
        }
        let mut usage = Usage::default();
        if let Origin::Proposed(turn) = origin {
            let allows_unsafe = self.config.objective.allows_unsafe();
            source::check(self.workspace.edited(), &text, allows_unsafe)
                .map_err(|reason| Halt::Ended { outcome: Outcome::Refused, reason })?;
            if let Some(earlier) = self.tried.get(&identity(self.workspace.edited(), &text)) {
                return Err(Halt::Ended {
                    outcome: Outcome::Refused,
                    reason: format!("trial {earlier} was the same program"),
                });
            }
            (attempt.race, attempt.forecast) = (self.race(attempt.number, &text), None);
            usage = turn.usage;
        }
        self.workspace.write(&text)?;
        write(&attempt.folder.join("change.diff"), &self.workspace.diff()?)?;
        let running = Running { trial: attempt.number, proposer, description, usage };
        let next = self.next_dossier(running)?;
        let next = RefCell::new(next.map(|dossier| (dossier, self.laboratory.builder())));
        let proposers = RefCell::new(&mut self.proposers);
        let observers = &self.observers;
        let source = Source { text: &text, folder: self.workspace.folder() };
        self.laboratory.measure(attempt, &source, &|event| {
            tell(observers, &event);
            // Before that, a repair may need its author, and the compiler the machine.
            if let Event::Training { .. } | Event::Running { .. } = event
                && let Some((dossier, builder)) = next.take()
            {
                proposers.borrow_mut().think(dossier, builder, observers.clone());
            }
        })
    }

    /// By how much a trial that was kept is better than the one before.
    fn gain(&self, trial: &Trial) -> Option<f64> {
        let before = self.ledger.trials().get(trial.parent?)?.cost()?;
        trial.cost().filter(|_| trial.is_kept()).map(|cost| before - cost)
    }

    /// Replays the ledger to the proposers, and to the study's own memory.
    pub(crate) fn remember(&mut self) -> Result<()> {
        let trials = self.ledger.trials().to_vec();
        let (dir, rule) = (self.dir.clone(), self.config.judge);
        std::thread::scope(|scope| {
            // Neither needs anything of the other, and each takes its time.
            let judge = scope.spawn(|| recall::judge(&dir, rule, &trials));
            trials.iter().try_for_each(|trial| self.remember_one(trial))?;
            self.judge = judge.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok(())
        })
    }

    fn remember_one(&mut self, trial: &Trial) -> Result<()> {
        self.laboratory.remember(trial);
        let path = self.folder_of(trial.trial).join(self.name_of_source());
        match fs::read_to_string(&path) {
            Ok(source) => self.note(trial, &source, self.gain(trial)),
            // Old folders may be deleted to make room; what they held is then forgotten, but for its name.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if let Some(program) = trial.program_sha256.clone() {
                    self.note_program(trial, program);
                }
            }
            Err(error) => return Err(Error::io("read", path)(error)),
        }
        Ok(())
    }

    fn note(&mut self, trial: &Trial, source: &str, gain: Option<f64>) {
        let known = trial.program_sha256.clone();
        let program = known.unwrap_or_else(|| identity(self.workspace.edited(), source));
        self.note_program(trial, program);
        self.proposers.observe(trial, source, gain);
    }

    /// What was not measured may be tried again.
    fn note_program(&mut self, trial: &Trial, program: String) {
        if trial.outcome != Outcome::Disturbed {
            self.tried.entry(program).or_insert(trial.trial);
        }
    }

    /// A fresh folder for a trial. A trial that was cut off left its own behind.
    pub(crate) fn trial_folder(&self, number: usize) -> Result<PathBuf> {
        let folder = self.folder_of(number);
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(folder)
    }

    fn check_space(&self) -> Result<()> {
        #[cfg(unix)]
        if let Ok(space) = rustix::fs::statvfs(&self.dir) {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            if free < LEAST_FREE_BYTES {
                return Err(Error::DiskFull { folder: self.dir.clone(), free_mb: free >> 20 });
            }
        }
        Ok(())
    }

    /// What a trial's source is called in its folder.
    pub(crate) fn name_of_source(&self) -> String {
        name_of_source(self.workspace.edited(), "source")
    }

    pub(crate) fn tell(&self, event: Event) {
        tell(&self.observers, &event);
    }
}

/// A file name with the extension of the edited file.
pub(crate) fn name_of_source(edited: &str, stem: &str) -> String {
    match Path::new(edited).extension() {
        Some(extension) => format!("{stem}.{}", extension.to_string_lossy()),
        None => stem.to_owned(),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, text).map_err(Error::io("write", path))
}

/// A seed for one purpose in one trial: independent of what was drawn before in this process.
pub(crate) fn derived_seed(purpose: &str, seed: u64, trial: usize) -> u64 {
    let (seed, trial) = (seed.to_le_bytes(), (trial as u64).to_le_bytes());
    number_of_parts([purpose.as_bytes(), &seed, &trial])
}
