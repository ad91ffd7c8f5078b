//! What is done with workers: train in one, sit an exam in others, and hold the clock.

use crate::{
    card::Card,
    child::{Output, Worker, ended},
    conditions::Conditions,
    data::Loader,
    error::{Error, Result},
    foreign,
    halt::Halt,
    hash::sha256_of_file,
    record::{Budget, CHECKPOINT, Effort, Outcome},
    supply::{HandedOut, Supply},
    worker::{
        protocol::{Answer, Progress, Request, Setup},
        sandbox::Confinement,
    },
    workers::{Runner, Sandbox},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A finished training run.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    pub startup: Duration,
    /// Processor time, of `new`.
    pub building: Duration,
    pub training: Duration,
    pub saving: Duration,
    /// From handing out the last batch to the closed checkpoint.
    pub closing: Duration,
    pub progress: Progress,
}

impl Runner {
    /// Makes sure that the program becomes a worker when it is run as one. One that does not would
    /// run its own `main` for every trial. Returns what the system lacks for a sandbox.
    pub(crate) fn check(&self, folder: &Path) -> Result<Vec<String>> {
        let mut worker = Worker::spawn(self, folder, folder, Output::Run)?;
        let greeted = worker
            .ask(&Request::Greet)
            .and_then(|()| worker.done(self.limits.start, "greet"))
            .and_then(|()| worker.confine(self, Confinement::default()));
        match greeted {
            Ok(missing) if self.sandbox == Sandbox::Strict && !missing.is_empty() => {
                Err(Error::Sandbox { missing: missing.join("; ") })
            }
            Ok(missing) => Ok(missing),
            Err(Halt::Interrupted) => Ok(Vec::new()),
            Err(Halt::Broken(error)) => Err(error),
            Err(Halt::Ended { reason, .. }) => {
                Err(Error::NoWorker { program: self.program.clone(), problem: reason })
            }
        }
    }

    /// Trains `library` and leaves its weights in `checkpoint`; `watch` hears of progress and may end
    /// it.
    ///
    /// `seen` is told even of runs that came to nothing.
    pub(crate) fn train(
        &self,
        job: &TrainJob<'_>,
        seen: &mut Seen,
        mut watch: impl FnMut(Progress) -> Result<(), Halt>,
    ) -> Result<Trained, Halt> {
        let loader = Loader::open(job.tokens, job.bos, self.setup.seed)?;
        let card_before_mb = self.card.as_ref().and_then(Card::memory_in_use);
        let spawned = Instant::now();
        let scratch = Scratch::new(job.folder.join("scratch"))?;
        let mut worker = Worker::spawn(self, job.folder, &scratch.folder, Output::Run)?;
        worker.card_before_mb = card_before_mb;
        worker.scratch = Some((scratch.folder.clone(), Instant::now()));
        let session = || -> Result<Trained, Halt> {
            let confinement = Confinement {
                library: Some(job.library.to_owned()),
                writable: vec![scratch.folder.clone()],
                cuda: self.setup.cuda_device.is_some(),
                readable: self.card_libraries(),
                ..Confinement::default()
            };
            worker.confine(self, confinement)?;
            let building = worker.start(self, job.library)?;
            let startup = spawned.elapsed();

            worker.watch();
            let mut supply = Supply::begin(loader, self.setup.max_seq_len, job.budget);
            worker.ask(&Request::Train { budget: job.budget })?;
            let progress = self.teach(&mut worker, &mut supply, seen, &mut watch)?;
            let training = supply.elapsed();

            let saved = scratch.folder.join("checkpoint");
            worker.save(self, &saved)?;
            let times = supply.closed();
            // Before the weights are read, nobody is left who could change them.
            worker.read_peak_memory();
            seen.conditions = worker.conditions();
            let _ = worker.end();
            if let Some((late, due)) = self.bounds.lateness(job.budget, &times) {
                let (late, due) = (late.as_secs_f64(), due.as_secs_f64());
                let reason = format!(
                    "the weights were saved {late:.1} s too late: with the step in flight and what \
                     saving takes the baseline, they were due {due:.1} s after training began"
                );
                return Err(ended(Outcome::Overran, reason));
            }
            check_saved(&saved)?;
            fs::rename(&saved, job.checkpoint).map_err(Error::io("move", saved))?;
            let (saving, closing) = (times.closed - training, times.closed - times.last_batch);
            Ok(Trained { startup, building, training, saving, closing, progress })
        };
        let trained = session();
        seen.conditions = seen.conditions.or_else(|| worker.conditions());
        worker.read_peak_memory();
        seen.peak_memory_mb = worker.peak_memory_mb;
        seen.card_memory_mb = worker.card_memory_mb();
        trained
    }

    /// Where a card's libraries are.
    fn card_libraries(&self) -> Vec<PathBuf> {
        self.card.as_ref().map(Card::libraries).unwrap_or_default()
    }

    /// Hands out batches until the trainer returns; the last that it says of its progress.
    fn teach(
        &self,
        worker: &mut Worker,
        supply: &mut Supply,
        seen: &mut Seen,
        watch: &mut impl FnMut(Progress) -> Result<(), Halt>,
    ) -> Result<Progress, Halt> {
        let limit = match supply.budget() {
            Budget::WallClock(budget) => budget + self.limits.grace,
            Budget::Steps(_) => self.bounds.steps(self.limits.steps),
        };
        let mut without_a_number = 0;
        loop {
            let left = limit.saturating_sub(supply.elapsed());
            let answer = worker.answer(left, "train");
            seen.handed_out = supply.handed_out();
            match answer? {
                Answer::Wants { batch_size, seq_len } => {
                    if seen.handed_out.steps == STEPS_TO_THE_PEAK
                        && let Some(card) = &self.card
                    {
                        worker.ask_for_card_memory(card);
                    }
                    match supply.next(batch_size, seq_len)? {
                        Ok(frame) => worker.send(frame, self.limits.grace, "train")?,
                        Err(refusal) => {
                            let reason = format!("train: it asked for no batch: {refusal}");
                            return Err(ended(Outcome::Rejected, reason));
                        }
                    }
                }
                Answer::Progress(claimed) => {
                    let progress = supply.believed(claimed);
                    watch(progress)?;
                    let is_none = progress.loss.is_some_and(f64::is_nan);
                    without_a_number = if is_none { without_a_number + 1 } else { 0 };
                    if without_a_number == MOST_REPORTS_WITHOUT_A_NUMBER {
                        let step = progress.steps;
                        let reason = format!("train: the loss is NaN; stopped at step {step}");
                        return Err(ended(Outcome::Failed, reason));
                    }
                }
                Answer::Trained(claimed) => return Ok(supply.believed(claimed)),
                answer => return Err(worker.confused(&answer)),
            }
        }
    }

    /// A hash of what a trainer saves that was built under this seed and has not trained.
    pub(crate) fn first_weights(
        &self,
        library: &Path,
        folder: &Path,
        seed: u64,
    ) -> Result<String, Halt> {
        let setup = Setup { seed, ..self.setup };
        let runner = Self { setup, ..self.clone() };
        let scratch = Scratch::new(folder.join("scratch"))?;
        let copy = Scratch::new(folder.join("exam"))?;
        let library = copy.holding(library, "library", self.sandbox)?;
        let mut worker = Worker::spawn(&runner, folder, &scratch.folder, Output::Exam)?;
        worker.scratch = Some((scratch.folder.clone(), Instant::now()));
        let confinement = Confinement {
            library: Some(library.clone()),
            writable: vec![scratch.folder.clone()],
            cuda: self.setup.cuda_device.is_some(),
            readable: self.card_libraries(),
            ..Confinement::default()
        };
        worker.confine(&runner, confinement)?;
        worker.start(&runner, &library)?;
        let saved = scratch.folder.join("checkpoint");
        worker.save(&runner, &saved)?;
        let _ = worker.end();
        check_saved(&saved)?;
        sha256_of_file(&saved).map_err(|error| Error::io("read", saved)(error).into())
    }

    /// A fresh worker that has taken its weights from `checkpoint` and waits for questions, the last
    /// of which must be answered when `due`. `answers` is what they may need.
    pub(crate) fn examinee(
        &self,
        library: &Path,
        checkpoint: &Path,
        folder: &Path,
        (due, answers): (Instant, fn(&Effort) -> f64),
    ) -> Result<Examinee, Halt> {
        // An empty folder, which it may not write: what one room wrote, the other could read. And copies that no
        // other room has read: which pages of a file are in memory tells who read them.
        let room = Scratch::new(folder.join("room"))?;
        let copies = Scratch::new(folder.join("exam"))?;
        let library = copies.holding(library, "library", self.sandbox)?;
        let checkpoint = copies.holding(checkpoint, CHECKPOINT, self.sandbox)?;
        let mut worker = Worker::spawn(self, folder, &room.folder, Output::Exam)?;
        let confinement = Confinement {
            library: Some(library.clone()),
            readable: [self.card_libraries(), vec![checkpoint.clone()]].concat(),
            cuda: self.setup.cuda_device.is_some(),
            ..Confinement::default()
        };
        worker.confine(self, confinement)?;
        worker.start(self, &library)?;
        let before = worker.hold_to(self.bounds.of(|effort| effort.load_seconds));
        worker.ask(&Request::Load { checkpoint })?;
        worker.done(self.limits.checkpoint, "load")?;
        let loading = worker.spent().saturating_sub(before);
        worker.examine(self.bounds.room(answers));
        let before = worker.hold_to(self.bounds.of(answers));
        let vocab_size = self.setup.vocab_size;
        Ok(Examinee { worker, vocab_size, due, loading, before, _folders: [room, copies] })
    }
}

/// What was saved, when nobody is left who could put something else there: a link would lead whoever reads the
/// weights to where it points.
fn check_saved(saved: &Path) -> Result<(), Halt> {
    if fs::symlink_metadata(saved).is_ok_and(|saved| saved.is_file()) {
        Ok(())
    } else {
        Err(ended(Outcome::Failed, "save: it left no file".to_owned()))
    }
}

/// What was seen of a training run, whatever became of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub peak_memory_mb: Option<f64>,
    pub card_memory_mb: Option<f64>,
    pub handed_out: HandedOut,
    pub conditions: Option<Conditions>,
}

/// After as many, a trainer has all the memory that it needs for one.
const STEPS_TO_THE_PEAK: u64 = 8;

/// A loss that is no number for as many reports, a second at least, never is one again: the rest of
/// the budget is saved.
const MOST_REPORTS_WITHOUT_A_NUMBER: usize = 10;

/// One training run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrainJob<'a> {
    pub library: &'a Path,
    pub tokens: &'a Path,
    pub bos: u32,
    pub budget: Budget,
    /// The trial's folder: `run.log` is written here.
    pub folder: &'a Path,
    pub checkpoint: &'a Path,
}

/// A worker that answers questions.
pub(crate) struct Examinee {
    worker: Worker,
    vocab_size: usize,
    due: Instant,
    loading: Duration,
    /// What it had spent when its questions began.
    before: Duration,
    _folders: [Scratch; 2],
}

impl Examinee {
    /// What loading took, in processor time.
    pub(crate) fn loading(&self) -> Duration {
        self.loading
    }

    /// What its answers took so far, in processor time.
    pub(crate) fn answering(&self) -> Duration {
        self.worker.spent().saturating_sub(self.before)
    }

    /// The cost in nats of every target.
    pub(crate) fn score(&mut self, windows: &Question<'_>) -> Result<Vec<f32>, Halt> {
        let question = Request::Score {
            seq_len: windows.seq_len,
            inputs: windows.inputs.to_vec(),
            targets: windows.targets.to_vec(),
        };
        self.numbers(&question, "score", windows.targets.len())
    }

    /// The logits after `prefix`.
    pub(crate) fn logits(&mut self, prefix: &[u32]) -> Result<Vec<f32>, Halt> {
        let vocab_size = self.vocab_size;
        self.numbers(&Request::Logits { prefix: prefix.to_vec() }, "logits", vocab_size)
    }

    fn numbers(
        &mut self,
        question: &Request,
        task: &'static str,
        count: usize,
    ) -> Result<Vec<f32>, Halt> {
        self.worker.expect(count);
        self.worker.ask(question)?;
        let left = self.due.saturating_duration_since(Instant::now());
        match self.worker.answer(left, task)? {
            Answer::Numbers(numbers) => Ok(numbers),
            answer => Err(self.worker.confused(&answer)),
        }
    }
}

/// Windows to be scored: rows of `seq_len` inputs and as many targets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Question<'a> {
    pub seq_len: usize,
    pub inputs: &'a [u32],
    pub targets: &'a [u32],
}

/// A folder that a trainer may write, for as long as it trains. Dropping it removes it.
struct Scratch {
    folder: PathBuf,
}

impl Scratch {
    fn new(folder: PathBuf) -> Result<Self> {
        // What another worker left there, whose removal failed, is none of this one's business.
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(Self { folder })
    }

    /// A copy of a file in it; where nobody is confined, the file.
    fn holding(&self, file: &Path, name: &str, sandbox: Sandbox) -> Result<PathBuf> {
        if sandbox == Sandbox::Off {
            return Ok(file.to_owned());
        }
        let place = self.folder.join(name);
        fs::copy(file, &place).map_err(Error::io("copy", file))?;
        Ok(place)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = foreign::remove(&self.folder);
    }
}
