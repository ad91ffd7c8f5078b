//! The loop itself: propose, build, train, examine, judge, record.

use crate::{
    Error, Event, Measurement, Outcome, Result, Status, StudyBuilder, Trial,
    cargo::{Build, Cargo},
    config::Config,
    exam::{Candidate, Exam, Grade},
    hash::{number_of_parts, sha256},
    judge,
    ledger::Ledger,
    proposer::{Brief, Proposal, ProposeError, Proposer},
    runner::{Halt, Runner, TrainJob},
    trainer_crate::EDITED,
    workspace::Workspace,
};
use crossbeam_channel::Sender;
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Write},
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
    pub(crate) program: String,
    pub(crate) proposer: Box<dyn Proposer>,
    /// The source of trial 0.
    pub(crate) baseline: String,
    /// The training split's token file.
    pub(crate) tokens: PathBuf,
    pub(crate) bos: u32,
    pub(crate) exam: Exam,
    pub(crate) cargo: Cargo,
    pub(crate) runner: Runner,
    pub(crate) ledger: Ledger,
    pub(crate) workspace: Workspace,
    pub(crate) observers: Vec<Sender<Event>>,
    /// Which trial first tried a source, by its hash.
    pub(crate) tried: HashMap<String, usize>,
    pub(crate) refused_in_a_row: usize,
}

/// A proposer that repeats itself this often without a pause would go on for ever.
const MOST_REFUSALS: usize = 20;

/// Less than this is too little for a trial's files.
const LEAST_FREE_BYTES: u64 = 256 << 20;

impl Study {
    /// Describes a study in the folder `dir`, to be created or resumed.
    pub fn builder(dir: impl Into<PathBuf>) -> StudyBuilder {
        StudyBuilder::new(dir.into())
    }

    /// Runs `trials` trials beyond those that stand in the ledger, and the baseline if it is
    /// missing; `None` goes on until the study is stopped or the proposer has nothing left.
    pub fn optimize(&mut self, trials: Option<usize>) -> Result<()> {
        if self.ledger.trials().is_empty() && self.step()?.is_none() {
            return Ok(());
        }
        let mut left = trials;
        while left != Some(0) {
            if self.step()?.is_none() {
                break;
            }
            left = left.map(|left| left - 1);
        }
        Ok(())
    }

    /// Runs one trial to its end and records it. `None`: the study was stopped, or there is nothing
    /// left to try.
    ///
    /// # Errors
    /// Only what keeps the study from going on. Whatever becomes of a trial is no error, except for
    /// the baseline: without it there is nothing to improve.
    pub fn step(&mut self) -> Result<Option<Trial>> {
        if self.runner.stop.is_stopped() {
            return Ok(None);
        }
        self.check_space()?;
        let number = self.ledger.trials().len();
        let begun = (Instant::now(), jiff::Timestamp::now());
        let folder = self.trial_folder(number)?;

        let (proposer, proposal) = match self.propose(number) {
            Ok(Some(proposal)) => proposal,
            Ok(None) => {
                let _ = fs::remove_dir(&folder);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut attempt = Attempt {
            number,
            folder,
            source_sha256: sha256(proposal.source.as_bytes()),
            measurement: Measurement {
                propose_seconds: Some(begun.0.elapsed().as_secs_f64()),
                ..Measurement::default()
            },
        };
        self.tell(Event::Building {
            trial: number,
            proposer: proposer.clone(),
            description: proposal.description.clone(),
        });

        let (outcome, reason) = match self.measure(&mut attempt, &proposal) {
            Ok(grade) => {
                attempt.measurement.val_bpb = Some(grade.val_bpb);
                (Outcome::Measured, None)
            }
            Err(Halt::Ended { outcome, reason }) => (outcome, Some(reason)),
            Err(Halt::Interrupted) => {
                self.workspace.reset()?;
                return Ok(None);
            }
            Err(Halt::Broken(error)) => return Err(error),
        };

        let incumbent = self.ledger.incumbent();
        let parent = incumbent.map(|trial| trial.trial);
        let (status, reason) = match attempt.measurement.val_bpb {
            Some(val_bpb) => {
                let decision = judge::greedy(val_bpb, incumbent);
                let status = if decision.keep { Status::Keep } else { Status::Discard };
                (status, Some(decision.reason))
            }
            None => (Status::Crash, reason),
        };
        if number == 0 && status == Status::Crash {
            let reason = reason.unwrap_or_default();
            return Err(Error::Baseline { reason, folder: attempt.folder });
        }
        let commit = match status {
            Status::Keep => {
                let val_bpb = attempt.measurement.val_bpb.unwrap_or_default();
                let message = format!(
                    "trial {number}: {}\n\nval_bpb: {val_bpb:.6}\nproposer: {proposer}",
                    proposal.description
                );
                Some(self.workspace.commit(&message)?)
            }
            Status::Discard | Status::Crash => {
                self.workspace.reset()?;
                None
            }
        };
        attempt.tidy(status);
        attempt.measurement.total_seconds = Some(begun.0.elapsed().as_secs_f64());
        let trial = Trial {
            trial: number,
            parent,
            commit,
            proposer,
            description: proposal.description,
            status,
            outcome,
            reason,
            measurement: attempt.measurement,
            seed: self.config.seed,
            source_sha256: attempt.source_sha256,
            started: begun.1,
        };
        attempt_file(&attempt.folder, "outcome.json", &to_json(&trial))?;
        self.ledger.append(trial.clone())?;
        self.note(&trial, &proposal.source)?;
        self.tell(Event::Finished(Box::new(trial.clone())));
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

    /// Source, checkpoint and logs of a trial.
    pub fn folder_of(&self, trial: usize) -> PathBuf {
        self.dir.join("trials").join(format!("{trial:04}"))
    }

    /// The next source and who wrote it; `None` where there is nothing left to try.
    fn propose(&mut self, number: usize) -> Result<Option<(String, Proposal)>> {
        let Some(incumbent) = self.ledger.incumbent() else {
            let proposal =
                Proposal { source: self.baseline.clone(), description: "baseline".to_owned() };
            return Ok(Some(("baseline".to_owned(), proposal)));
        };
        self.tell(Event::Proposing { trial: number });
        let path = self.workspace.folder().join(EDITED);
        let source = fs::read_to_string(&path).map_err(Error::io("read", path))?;
        let folder = self.dir.join("brief");
        attempt_file(&folder, EDITED, &source)?;
        let brief = Brief {
            trial: number,
            seed: derived_seed(self.config.seed, number),
            incumbent,
            source: &source,
            program: &self.program,
            history: self.ledger.trials(),
            folder: &folder,
        };
        match self.proposer.propose(&brief) {
            Ok(mut proposal) => {
                // A description is a line, in the ledger as in a commit.
                let words: Vec<_> = proposal.description.split_whitespace().collect();
                proposal.description = words.join(" ");
                Ok(Some((self.proposer.name().to_owned(), proposal)))
            }
            Err(ProposeError::Exhausted) => Ok(None),
            Err(error) => {
                Err(Error::Proposer { proposer: self.proposer.name().to_owned(), source: error })
            }
        }
    }

    /// Builds, trains and examines a source; what is learned on the way goes into the attempt.
    fn measure(&self, attempt: &mut Attempt, proposal: &Proposal) -> Result<Grade, Halt> {
        attempt_file(&attempt.folder, "source.rs", &proposal.source)?;
        if let Some(earlier) = self.tried.get(&attempt.source_sha256) {
            return Err(Halt::Ended {
                outcome: Outcome::Refused,
                reason: format!("trial {earlier} was the same source"),
            });
        }
        self.workspace.write(&proposal.source)?;
        attempt_file(&attempt.folder, "change.diff", &self.workspace.diff()?)?;

        let library = attempt.folder.join(format!("trainer{}", std::env::consts::DLL_SUFFIX));
        let begun = Instant::now();
        let build = self.cargo.build(&proposal.source, &library, |done, total| {
            if attempt.number == 0 {
                self.tell(Event::Compiling { done, total });
            }
        })?;
        attempt.measurement.build_seconds = Some(begun.elapsed().as_secs_f64());
        match build {
            Build::Built => {}
            Build::Interrupted => return Err(Halt::Interrupted),
            Build::Refused { reason, rendered } => {
                attempt_file(&attempt.folder, "build.log", &rendered)?;
                return Err(Halt::Ended { outcome: Outcome::BuildFailed, reason });
            }
        }

        let checkpoint = attempt.folder.join("model.safetensors");
        let saving = self.train(attempt, &library, &checkpoint)?;
        attempt.measurement.num_params = count_parameters(&checkpoint);

        let begun = Instant::now();
        let candidate =
            Candidate { library: &library, checkpoint: &checkpoint, folder: &attempt.folder };
        let number = attempt.number;
        let grade = self.exam.sit(&self.runner, &candidate, |done, total| {
            self.tell(Event::Exam { trial: number, done: done as u64, total: total as u64 });
        });
        attempt.measurement.eval_seconds = Some((saving + begun.elapsed()).as_secs_f64());
        grade
    }

    /// Trains the library; how long saving took.
    fn train(
        &self,
        attempt: &mut Attempt,
        library: &Path,
        checkpoint: &Path,
    ) -> Result<Duration, Halt> {
        let path = attempt.folder.join("loss.jsonl");
        let mut losses = BufWriter::new(File::create(&path).map_err(Error::io("create", &path))?);
        let job = TrainJob {
            library,
            tokens: &self.tokens,
            bos: self.bos,
            budget: self.config.budget,
            folder: &attempt.folder,
            checkpoint,
        };
        let number = attempt.number;
        let measurement = &mut attempt.measurement;
        let mut last_loss = None;
        let trained = self.runner.train(&job, &mut measurement.peak_memory_mb, |now| {
            last_loss = now.loss;
            // The curve is for reading later; a disk that is full is noticed by the ledger.
            let _ = writeln!(losses, "{}", to_line(&now));
            self.tell(Event::Training {
                trial: number,
                progress: now.progress,
                elapsed_seconds: now.seconds,
                steps: now.steps,
                tokens: now.tokens,
                loss: now.loss,
            });
        });
        let _ = losses.flush();
        measurement.train_loss = last_loss;
        let trained = trained?;
        measurement.startup_seconds = Some(trained.startup.as_secs_f64());
        measurement.training_seconds = Some(trained.training.as_secs_f64());
        measurement.num_steps = Some(trained.progress.steps);
        measurement.total_tokens = Some(trained.progress.tokens);
        measurement.train_loss = trained.progress.loss;
        Ok(trained.saving)
    }

    /// Replays the ledger to the proposer, and to the study's own memory.
    pub(crate) fn remember(&mut self) -> Result<()> {
        for number in 0..self.ledger.trials().len() {
            let trial = self.ledger.trials()[number].clone();
            let path = self.folder_of(number).join("source.rs");
            match fs::read_to_string(&path) {
                Ok(source) => self.note(&trial, &source)?,
                // Old folders may be deleted to make room; what they held is then forgotten.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io("read", path)(error)),
            }
        }
        self.refused_in_a_row = 0;
        Ok(())
    }

    fn note(&mut self, trial: &Trial, source: &str) -> Result<()> {
        self.tried.entry(trial.source_sha256.clone()).or_insert(trial.trial);
        self.proposer.observe(trial, source);
        self.refused_in_a_row =
            if trial.outcome == Outcome::Refused { self.refused_in_a_row + 1 } else { 0 };
        if self.refused_in_a_row >= MOST_REFUSALS {
            let source = ProposeError::Failed(format!(
                "its last {MOST_REFUSALS} proposals were sources that had been tried"
            ));
            return Err(Error::Proposer { proposer: trial.proposer.clone(), source });
        }
        Ok(())
    }

    /// A fresh folder for a trial. A trial that was cut off left its own behind.
    fn trial_folder(&self, number: usize) -> Result<PathBuf> {
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

    fn tell(&self, event: Event) {
        for observer in &self.observers {
            // An observer that went away does not end the night.
            let _ = observer.send(event.clone());
        }
    }
}

/// A trial that is under way.
struct Attempt {
    number: usize,
    folder: PathBuf,
    source_sha256: String,
    measurement: Measurement,
}

impl Attempt {
    /// Weights and library are kept with the trials that are kept.
    fn tidy(&self, status: Status) {
        if status != Status::Keep {
            let _ = fs::remove_file(self.folder.join("model.safetensors"));
            let library = format!("trainer{}", std::env::consts::DLL_SUFFIX);
            let _ = fs::remove_file(self.folder.join(library));
        }
    }
}

fn attempt_file(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    }
    fs::write(&path, text).map_err(Error::io("write", path))
}

fn to_json(trial: &Trial) -> String {
    serde_json::to_string_pretty(trial).unwrap_or_default()
}

fn to_line(progress: &crate::worker::protocol::Progress) -> String {
    serde_json::to_string(progress).unwrap_or_default()
}

/// The seed of one proposal: independent of how many were made before in this process.
fn derived_seed(seed: u64, trial: usize) -> u64 {
    let (seed, trial) = (seed.to_le_bytes(), (trial as u64).to_le_bytes());
    number_of_parts([b"proposal".as_slice(), &seed, &trial])
}

/// Elements of all tensors that a safetensors file's header lists: 8 bytes of length, then JSON
/// (the format's specification, "Format"). `None` for any other file.
fn count_parameters(checkpoint: &Path) -> Option<u64> {
    use std::io::Read;
    #[derive(serde::Deserialize)]
    struct Tensor {
        shape: Vec<u64>,
    }
    let mut file = File::open(checkpoint).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    // The format's own limit.
    if length > 100_000_000 {
        return None;
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).ok()?;
    let header: HashMap<String, serde_json::Value> = serde_json::from_slice(&header).ok()?;
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(_, tensor)| {
            let tensor: Tensor = serde_json::from_value(tensor).ok()?;
            tensor.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
        })
        .try_fold(0u64, |sum, elements| sum.checked_add(elements?))
}
