//! The loop itself: propose, measure, mend, judge, record.

use crate::{
    Error, Event, Measurement, Outcome, Repetition, Result, Status, StopHandle, StudyBuilder,
    Trial,
    builder::tell,
    config::Config,
    hash::{number_of_parts, sha256},
    judge::{Candidate, Claim, Decision, Evidence, Judge},
    laboratory::{Attempt, CHECKPOINT, Halt, Laboratory, Source, library_name},
    ledger::Ledger,
    proposer::{Brief, Fault, Proposal, Roster, Turn},
    race::{self, Race},
    source::{identity, length},
    workspace::Workspace,
};
use crossbeam_channel::Sender;
use std::{
    collections::HashMap,
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
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
    /// Where proposers work.
    pub(crate) brief_folder: PathBuf,
    pub(crate) program: String,
    pub(crate) references: Vec<(String, String)>,
    pub(crate) roster: Roster,
    /// The source of trial 0.
    pub(crate) baseline: String,
    pub(crate) laboratory: Box<dyn Laboratory>,
    pub(crate) ledger: Ledger,
    pub(crate) workspace: Workspace,
    pub(crate) observers: Vec<Sender<Event>>,
    pub(crate) stop: StopHandle,
    /// How often a proposal may be mended before it counts.
    pub(crate) repairs: usize,
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

/// Bytes of a failed trial's log that go back to its proposer.
const LOG_BYTES: usize = 16 << 10;

/// Where a trial's source comes from.
enum Origin {
    Baseline,
    /// The incumbent once more, under another seed.
    Control {
        of: usize,
    },
    Proposed(Turn),
}

/// How a proposal ended, when nobody would or could mend it any more.
struct Ending {
    outcome: Outcome,
    reason: Option<String>,
    repairs: usize,
    mending: Duration,
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
        let mut left = trials;
        while left != Some(0) || self.is_beginning() {
            let Some(trial) = self.step()? else { break };
            if trial.trial > 0 && trial.repeats.is_none() {
                left = left.map(|left| left.saturating_sub(1));
            }
        }
        Ok(())
    }

    /// Whether the next trial is the baseline or one of its control runs.
    fn is_beginning(&self) -> bool {
        self.ledger.trials().len() <= self.controls
    }

    /// Runs one trial to its end and records it. `None`: the study was stopped, or there is nothing
    /// left to try.
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
        let mut attempt = Attempt::new(number, self.config.seed, self.trial_folder(number)?);
        let Some(mut origin) = self.originate(number)? else {
            let _ = fs::remove_dir_all(&attempt.folder);
            return Ok(None);
        };
        if let Origin::Control { .. } = origin {
            attempt.seed = self.seed_of_control();
        }
        let proposing = attempt.begun.elapsed();
        let Some(ending) = self.carry_out(&mut attempt, &mut origin)? else {
            self.workspace.reset()?;
            return Ok(None);
        };
        let Ending { outcome, reason, repairs, mending } = ending;
        attempt.measurement.propose_seconds = Some((proposing + mending).as_secs_f64());

        let mut entry = Entry { outcome, reason, repairs, ..self.entry(&origin)? };
        match (attempt.measurement.cost(), &mut origin) {
            (Some(cost), Origin::Control { .. }) => {
                self.judge.control(cost, attempt.seed);
                entry.decide(Status::Discard, "a control run".to_owned());
            }
            (Some(cost), _) => {
                let Some(decision) = self.decide(cost, attempt.seed, &mut entry)? else {
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
            (None, _) if entry.outcome == Outcome::Pruned => entry.status = Status::Discard,
            (None, _) => {}
        }
        if let Origin::Proposed(turn) = &origin {
            let usage = self.roster.take_usage(turn);
            let measurement = &mut attempt.measurement;
            (measurement.propose_usd, measurement.propose_tokens) = (usage.usd, usage.tokens);
        }
        self.conclude(attempt, entry).map(Some)
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
        let folder = self.brief_folder.clone();
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        }
        let source = self.workspace.read()?;
        write(&folder.join(self.workspace.edited()), &source)?;
        let mut roster = std::mem::take(&mut self.roster);
        let turn = roster.propose(&self.brief(number, &source), &|event| self.tell(event));
        self.roster = roster;
        Ok(turn?.map(|mut turn| {
            turn.proposal.description = one_line(&turn.proposal.description);
            Origin::Proposed(turn)
        }))
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
            Origin::Proposed(turn) => Entry::new(turn.name.clone(), turn.proposal.clone()),
        })
    }

    /// Asks the judge, and measures again where it wants to know more. `None`: the study was stopped.
    fn decide(&mut self, cost: f64, seed: u64, entry: &mut Entry) -> Result<Option<Decision>> {
        let mut differences = Vec::new();
        let is_shorter = self.is_shorter(&entry.proposal.source);
        loop {
            let candidate = Candidate { cost, seed, is_shorter, differences: &differences };
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
            let score = attempt.measurement.score().unwrap_or_default();
            let message = format!(
                "trial {number}: {}\n\n{}: {score:.6}\nproposer: {}",
                entry.proposal.description,
                attempt.measurement.name_of_score(),
                entry.proposer,
            );
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
        self.note(&trial, &source, gain);
        self.tell(Event::Finished(Box::new(trial.clone())));
        Ok(trial)
    }

    /// The stored source of a trial.
    pub(crate) fn source_of(&self, trial: usize) -> Result<String> {
        let path = self.folder_of(trial).join(self.name_of_source());
        fs::read_to_string(&path).map_err(Error::io("read", path))
    }

    /// Whether the incumbent is measured again in this trial.
    fn is_control(&self, number: usize) -> bool {
        let beyond = number.saturating_sub(self.controls);
        self.is_beginning()
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

    /// What a proposer is told. There is an incumbent once trial 0 stands.
    fn brief<'a>(&'a self, number: usize, source: &'a str) -> Brief<'a> {
        Brief {
            trial: number,
            seed: derived_seed("proposal", self.config.seed, number),
            incumbent: self.ledger.incumbent().unwrap_or(&self.ledger.trials()[0]),
            source,
            edited: self.workspace.edited(),
            program: &self.program,
            references: &self.references,
            history: self.ledger.trials(),
            noise: self.judge.noise(),
            study: &self.dir,
            folder: &self.brief_folder,
            stop: &self.stop,
        }
    }

    /// Measures a source, and has it mended where it comes to nothing, up to the limit. `None`: the
    /// study was stopped.
    fn carry_out(&mut self, attempt: &mut Attempt, origin: &mut Origin) -> Result<Option<Ending>> {
        let (mut repairs, mut mending) = (0, Duration::ZERO);
        loop {
            let (outcome, reason) = match self.measure(attempt, origin) {
                Ok(()) => {
                    let outcome = Outcome::Measured;
                    return Ok(Some(Ending { outcome, reason: None, repairs, mending }));
                }
                Err(Halt::Ended { outcome, reason }) => (outcome, reason),
                Err(Halt::Interrupted) => return Ok(None),
                Err(Halt::Broken(error)) => return Err(error),
            };
            let begun = Instant::now();
            let mended =
                repairs < self.repairs && self.mend(attempt, origin, (&outcome, &reason))?;
            mending += begun.elapsed();
            if mended {
                repairs += 1;
            } else if self.stop.is_stopped() {
                // It may have been stopped while it was being mended, and was never decided.
                return Ok(None);
            } else {
                return Ok(Some(Ending { outcome, reason: Some(reason), repairs, mending }));
            }
        }
    }

    /// Measures a source; what is learned on the way goes into the attempt.
    fn measure(&mut self, attempt: &mut Attempt, origin: &Origin) -> Result<(), Halt> {
        let (proposer, description, text) = match origin {
            Origin::Baseline => ("baseline", "baseline".to_owned(), self.baseline.clone()),
            Origin::Control { of } => {
                ("control", format!("trial {of} again"), self.workspace.read()?)
            }
            Origin::Proposed(turn) => {
                let proposal = &turn.proposal;
                (turn.name.as_str(), proposal.description.clone(), proposal.source.clone())
            }
        };
        self.tell(Event::Building {
            trial: attempt.number,
            proposer: proposer.to_owned(),
            description,
        });
        write(&attempt.folder.join(self.name_of_source()), &text)?;
        if matches!(origin, Origin::Proposed(_))
            && let Some(earlier) = self.tried.get(&identity(self.workspace.edited(), &text))
        {
            return Err(Halt::Ended {
                outcome: Outcome::Refused,
                reason: format!("trial {earlier} was the same program"),
            });
        }
        self.workspace.write(&text)?;
        write(&attempt.folder.join("change.diff"), &self.workspace.diff()?)?;
        if matches!(origin, Origin::Proposed(_)) {
            (attempt.race, attempt.forecast) = (self.race(attempt.number, &text), None);
        }
        let observers = &self.observers;
        let source = Source { text: &text, folder: self.workspace.folder() };
        self.laboratory.measure(attempt, &source, &|event| tell(observers, &event))
    }

    /// Asks a proposal's author for another version of what came to nothing. The failed version's
    /// files move to a folder of their own in the trial's.
    fn mend(
        &mut self,
        attempt: &mut Attempt,
        origin: &mut Origin,
        (outcome, reason): (&Outcome, &str),
    ) -> Result<bool> {
        let Origin::Proposed(turn) = origin else { return Ok(false) };
        let fault = match outcome {
            Outcome::Refused => {
                let identity = identity(self.workspace.edited(), &turn.proposal.source);
                match self.tried.get(&identity) {
                    Some(&trial) => Fault::Repeats { trial },
                    None => return Ok(false),
                }
            }
            Outcome::BuildFailed => {
                let log = fs::read_to_string(attempt.folder.join("build.log"));
                Fault::DoesNotCompile { diagnostics: log.unwrap_or_else(|_| reason.to_owned()) }
            }
            Outcome::LoadFailed
            | Outcome::Failed
            | Outcome::Panicked
            | Outcome::Exited { .. }
            | Outcome::Signalled { .. }
            | Outcome::OutOfSpace => {
                let log = fs::read(attempt.folder.join("run.log")).unwrap_or_default();
                let end = &log[log.len().saturating_sub(LOG_BYTES)..];
                let log = String::from_utf8_lossy(end).into_owned();
                Fault::Crashed { reason: reason.to_owned(), log }
            }
            // A trial that took all of its time, was too far behind or was caught in a lie has had
            // its chance.
            Outcome::Measured | Outcome::Pruned | Outcome::TimedOut | Outcome::Rejected => {
                return Ok(false);
            }
        };
        self.tell(Event::Repairing {
            trial: attempt.number,
            proposer: turn.name.clone(),
            reason: reason.lines().next().unwrap_or_default().to_owned(),
        });
        let source = fs::read_to_string(self.brief_folder.join(self.workspace.edited()));
        let source = source.unwrap_or_default();
        let mut roster = std::mem::take(&mut self.roster);
        let brief = self.brief(attempt.number, &source);
        let mended = roster.repair(&brief, turn, &fault, &|event| self.tell(event));
        self.roster = roster;
        let Some(mut proposal) = mended else { return Ok(false) };
        proposal.description = one_line(&proposal.description);
        turn.proposal = proposal;
        set_aside(&attempt.folder, &self.name_of_source())?;
        attempt.measurement = Measurement::default();
        Ok(true)
    }

    /// By how much a trial that was kept is better than the one before.
    fn gain(&self, trial: &Trial) -> Option<f64> {
        let before = self.ledger.trials().get(trial.parent?)?.cost()?;
        trial.cost().filter(|_| trial.is_kept()).map(|cost| before - cost)
    }

    /// Replays the ledger to the proposers, and to the study's own memory.
    pub(crate) fn remember(&mut self) -> Result<()> {
        for number in 0..self.ledger.trials().len() {
            let trial = self.ledger.trials()[number].clone();
            let gain = self.gain(&trial);
            self.judge.remember(&trial);
            let path = self.folder_of(number).join(self.name_of_source());
            match fs::read_to_string(&path) {
                Ok(source) => self.note(&trial, &source, gain),
                // Old folders may be deleted to make room; what they held is then forgotten.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", path)(error)),
            }
        }
        Ok(())
    }

    fn note(&mut self, trial: &Trial, source: &str, gain: Option<f64>) {
        let identity = identity(self.workspace.edited(), source);
        self.tried.entry(identity).or_insert(trial.trial);
        self.roster.observe(trial, source, gain);
    }

    /// A fresh folder for a trial. A trial that was cut off left its own behind.
    pub(crate) fn trial_folder(&self, number: usize) -> Result<PathBuf> {
        let folder = self.folder_of(number);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        }
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

/// Moves what a failed version left in a trial's folder to `version-1`, `version-2`, ….
fn set_aside(folder: &Path, source: &str) -> Result<()> {
    let number = (1..).find(|n| !folder.join(format!("version-{n}")).exists()).unwrap_or(1);
    let aside = folder.join(format!("version-{number}"));
    fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
    for name in [source, "change.diff", "build.log", "run.log", "loss.jsonl"] {
        match fs::rename(folder.join(name), aside.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("move", folder.join(name))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(path, text).map_err(Error::io("write", path))
}

/// A description is a line, in the ledger as in a commit.
fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ")
}

/// A seed for one purpose in one trial: independent of what was drawn before in this process.
fn derived_seed(purpose: &str, seed: u64, trial: usize) -> u64 {
    let (seed, trial) = (seed.to_le_bytes(), (trial as u64).to_le_bytes());
    number_of_parts([purpose.as_bytes(), &seed, &trial])
}
