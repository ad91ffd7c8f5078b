//! A trainer's trial: build, train, examine.

use super::{Attempt, Builder, Built, Laboratory, Source};
use crate::{
    cargo::{Build, Cargo},
    conditions::Conditions,
    error::Error,
    event::Event,
    exam::{Candidate, Exam},
    halt::Halt,
    hash::sha256,
    record::{Budget, CHECKPOINT, Effort, Outcome, Recorder, Trial, library_name},
    runner::{Seen, TrainJob},
    workers::Runner,
};
use std::{
    collections::HashMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// All that the trials of one trainer crate have in common.
pub(crate) struct TrainerLaboratory {
    /// The training split's token file.
    pub tokens: PathBuf,
    pub bos: u32,
    pub budget: Budget,
    pub exam: Exam,
    /// On the test split; `None` where that is too small.
    pub test: Option<Exam>,
    pub cargo: Cargo,
    pub runner: Runner,
    /// Whether candidates are held to what the baseline needed beside the budget.
    pub is_bounded: bool,
    /// Whether measurements count however busy the machine is.
    pub is_shared: bool,
    /// What the baseline had of the machine.
    pub baseline: Option<Conditions>,
}

impl Laboratory for TrainerLaboratory {
    fn measure(
        &mut self,
        attempt: &mut Attempt,
        source: &Source<'_>,
        tell: &dyn Fn(Event),
    ) -> Result<(), Halt> {
        self.runner.setup.seed = attempt.seed;
        let library = attempt.folder.join(library_name());
        self.build(attempt, source.text, &library, tell)?;
        let checkpoint = attempt.folder.join(CHECKPOINT);
        let trained = self.train(attempt, &library, &checkpoint, tell);
        let (saving, effort) = match (self.disturbance(attempt), trained) {
            // Who took longer than allowed, or was behind, may have been robbed of the time.
            (Some(reason), Ok(_))
            | (
                Some(reason),
                Err(Halt::Ended {
                    outcome: Outcome::Pruned | Outcome::TimedOut | Outcome::Overran,
                    ..
                }),
            ) => return Err(Halt::Ended { outcome: Outcome::Disturbed, reason }),
            (_, trained) => trained?,
        };
        attempt.measurement.num_params = count_parameters(&checkpoint);

        let begun = Instant::now();
        let candidate =
            Candidate { library: &library, checkpoint: &checkpoint, folder: &attempt.folder };
        let number = attempt.number;
        let grade = self.exam.sit(&self.runner, &candidate, |done, total| {
            tell(Event::Exam { trial: number, done: done as u64, total: total as u64 });
        });
        attempt.measurement.eval_seconds = Some((saving + begun.elapsed()).as_secs_f64());
        let grade = grade?;
        attempt.measurement.val_bpb = Some(grade.bits_per_byte);
        let Effort { closing_seconds, new_seconds, .. } = effort;
        attempt.measurement.effort = Some(Effort { closing_seconds, new_seconds, ..grade.effort });
        Ok(())
    }

    fn probe(&mut self, source: &Source<'_>, folder: &Path) -> Result<(), Halt> {
        let library = folder.join(library_name());
        match self.cargo.build(source.text, &library, |_, _| {})? {
            Build::Built => {}
            Build::Interrupted => return Err(Halt::Interrupted),
            Build::Refused { reason, .. } => {
                return Err(Halt::Ended { outcome: Outcome::BuildFailed, reason });
            }
        }
        let job = TrainJob {
            library: &library,
            tokens: &self.tokens,
            bos: self.bos,
            budget: Budget::Steps(STEPS_OF_A_PROBE),
            folder,
            checkpoint: &folder.join(CHECKPOINT),
        };
        self.runner.train(&job, &mut Seen::default(), |_| Ok(())).map(drop)
    }

    fn start_afresh(&mut self) -> Result<(), Error> {
        self.cargo.start_afresh()
    }

    fn remember(&mut self, trial: &Trial) {
        let is_baseline = trial.trial == 0 || trial.repeats == Some(0);
        if is_baseline && trial.outcome.is_measured() {
            if self.is_bounded {
                self.runner.bounds.learn(&trial.measurement);
            }
            self.baseline = self.baseline.or(trial.measurement.conditions);
        }
    }

    fn examine_start(&mut self, attempt: &mut Attempt) -> Result<(), Halt> {
        let Some([rows, tokens]) = attempt.first_batch else { return Ok(()) };
        attempt.first_weights = self.first_weights(attempt, attempt.seed)?;
        if let Some(weights) = &attempt.first_weights {
            let start = format!("{weights} {rows}x{tokens}");
            attempt.measurement.start_sha256 = Some(sha256(start.as_bytes()));
        }
        Ok(())
    }

    fn examine_kept(&mut self, attempt: &mut Attempt) -> Result<Vec<String>, Halt> {
        let own = match attempt.first_weights.take() {
            None => self.first_weights(attempt, attempt.seed)?,
            known => known,
        };
        if let Some(own) = own {
            let other = self.first_weights(attempt, !attempt.seed)?;
            attempt.measurement.depends_on_seed = other.map(|other| own != other);
        }

        let Some(test) = &self.test else { return Ok(Vec::new()) };
        let library = attempt.folder.join(library_name());
        let checkpoint = attempt.folder.join(CHECKPOINT);
        let candidate =
            Candidate { library: &library, checkpoint: &checkpoint, folder: &attempt.folder };
        match test.sit(&self.runner, &candidate, |_, _| {}) {
            Ok(grade) => attempt.measurement.test_bpb = Some(grade.bits_per_byte),
            Err(Halt::Ended { reason, .. }) => {
                return Ok(vec![format!("the test split: {reason}")]);
            }
            Err(halt) => return Err(halt),
        }
        Ok(Vec::new())
    }

    fn builder(&self) -> Option<Builder> {
        // Without a card, the compiler would take the trainer's cores.
        self.runner.setup.cuda_device?;
        let cargo = self.cargo.clone();
        Some(Box::new(move |source, folder| {
            let begun = Instant::now();
            let build = cargo.build(source, &folder.join(library_name()), |_, _| {});
            let built = Built { source: source.to_owned(), took: begun.elapsed() };
            matches!(build, Ok(Build::Built)).then_some(built)
        }))
    }
}

/// Steps that show whether a trainer runs at all.
const STEPS_OF_A_PROBE: u64 = 2;

impl TrainerLaboratory {
    /// Why what was measured says nothing of the source, if it does not. A budget in steps is as long as it
    /// is, whoever else computes.
    fn disturbance(&self, attempt: &Attempt) -> Option<String> {
        let matters =
            self.budget.duration().is_some() && !self.is_shared && !attempt.takes_any_conditions;
        let conditions = attempt.measurement.conditions.filter(|_| matters)?;
        conditions.disturbance(self.baseline.as_ref())
    }

    /// A hash of the weights that an attempt's library builds under a seed; `None` where it fails.
    fn first_weights(&self, attempt: &Attempt, seed: u64) -> Result<Option<String>, Halt> {
        let library = attempt.folder.join(library_name());
        match self.runner.first_weights(&library, &attempt.folder, seed) {
            Ok(weights) => Ok(Some(weights)),
            Err(Halt::Ended { .. }) => Ok(None),
            Err(halt) => Err(halt),
        }
    }

    fn build(
        &self,
        attempt: &mut Attempt,
        source: &str,
        library: &Path,
        tell: &dyn Fn(Event),
    ) -> Result<(), Halt> {
        if let Some(built) = attempt.built.take().filter(|built| built.source == source) {
            attempt.measurement.build_seconds = Some(built.took.as_secs_f64());
            return Ok(());
        }
        let begun = Instant::now();
        let build = self.cargo.build(source, library, |done, total| {
            if attempt.number == 0 {
                tell(Event::Compiling { done, total });
            }
        })?;
        attempt.measurement.build_seconds = Some(begun.elapsed().as_secs_f64());
        match build {
            Build::Built => Ok(()),
            Build::Interrupted => Err(Halt::Interrupted),
            Build::Refused { reason, rendered } => {
                let path = attempt.folder.join("build.log");
                fs::write(&path, rendered).map_err(Error::io("write", path))?;
                Err(Halt::Ended { outcome: Outcome::BuildFailed, reason })
            }
        }
    }

    /// Trains the library; how long saving took, and what is known so far of the effort.
    fn train(
        &self,
        attempt: &mut Attempt,
        library: &Path,
        checkpoint: &Path,
        tell: &dyn Fn(Event),
    ) -> Result<(Duration, Effort), Halt> {
        let path = attempt.folder.join("loss.jsonl");
        let mut losses = BufWriter::new(File::create(&path).map_err(Error::io("create", &path))?);
        let job = TrainJob {
            library,
            tokens: &self.tokens,
            bos: self.bos,
            budget: self.budget,
            folder: &attempt.folder,
            checkpoint,
        };
        let number = attempt.number;
        let Attempt { measurement, first_batch, race, forecast, .. } = attempt;
        let mut recorder = Recorder::default();
        let mut seen = Seen::default();
        let mut loss = None;
        let trained = self.runner.train(&job, &mut seen, |now| {
            loss = now.loss;
            recorder.add(now.progress, now.reports, now.mean_loss);
            // The curve is for reading later; a disk that is full is noticed by the ledger.
            let _ = writeln!(losses, "{}", serde_json::to_string(&now).unwrap_or_default());
            tell(Event::Training {
                trial: number,
                progress: now.progress,
                elapsed_seconds: now.seconds,
                steps: now.steps,
                tokens: now.tokens,
                loss: now.loss,
            });
            if forecast.is_none()
                && let Some(race) = race
                && let Some(foreseen) = race.look(recorder.curve())
            {
                *forecast = Some(foreseen);
                if !race.is_spared {
                    let reason = foreseen.to_string();
                    return Err(Halt::Ended { outcome: Outcome::Pruned, reason });
                }
            }
            Ok(())
        });
        let _ = losses.flush();
        measurement.loss_curve = recorder.finish();
        measurement.peak_memory_mb = seen.peak_memory_mb;
        measurement.peak_vram_mb = seen.card_memory_mb;
        measurement.conditions = seen.conditions;
        let handed_out = seen.handed_out;
        if handed_out.steps > 0 {
            *first_batch = handed_out.first_batch;
            measurement.training_seconds = Some(handed_out.elapsed.as_secs_f64());
            measurement.num_steps = Some(handed_out.steps);
            measurement.total_tokens = Some(handed_out.tokens);
            measurement.train_loss = loss;
        }
        let trained = trained?;
        measurement.startup_seconds = Some(trained.startup.as_secs_f64());
        measurement.training_seconds = Some(trained.training.as_secs_f64());
        measurement.train_loss = trained.progress.loss;
        let effort = Effort {
            closing_seconds: trained.closing.as_secs_f64(),
            new_seconds: trained.building.as_secs_f64(),
            ..Effort::default()
        };
        Ok((trained.saving, effort))
    }
}

/// The longest header of a checkpoint that is read.
const LONGEST_HEADER: u64 = 4 << 20;

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
    // The format allows 100 MB, which would be gigabytes when read; ten thousand tensors take one.
    if length > LONGEST_HEADER {
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
