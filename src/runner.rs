//! The parent's side of a worker: spawn it, hold the clock, kill it in time, collect what it says.

use crate::{
    Budget, Error, Outcome, Result,
    hash::sha256_of_file,
    laboratory::Halt,
    log::Log,
    plugin::Failure,
    process::Group,
    stop::StopHandle,
    worker::{
        self,
        protocol::{Answer, Progress, Request, Setup, TrainingData, read_frame, write_frame},
        sandbox::Confinement,
    },
};
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{ChildStdin, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    /// The program to run again.
    pub program: PathBuf,
    pub setup: Setup,
    pub limits: Limits,
    pub sandbox: Sandbox,
    pub stop: StopHandle,
}

/// Whether workers are confined to what their task needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sandbox {
    /// As far as the system can; the study says once what it cannot. The default.
    #[default]
    BestEffort,
    /// Entirely, or there is no study.
    Strict,
    /// Not at all: for trainers that start programs, or use the network.
    Off,
}

/// How long a worker may take over what is not training.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For loading the library and building the model.
    pub start: Duration,
    /// After the budget: for the step in flight and for returning from `train`.
    pub grace: Duration,
    /// For writing or reading the weights.
    pub checkpoint: Duration,
    /// For one answer in the exam.
    pub answer: Duration,
    /// For a training run whose budget is in steps, which no clock ends.
    pub steps: Duration,
    /// Bytes on disk in a trainer's scratch folder, its checkpoint among them.
    pub scratch_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(120),
            grace: Duration::from_secs(30),
            checkpoint: Duration::from_secs(120),
            answer: Duration::from_secs(120),
            steps: Duration::from_hours(24),
            scratch_bytes: 16 << 30,
        }
    }
}

/// A finished training run.
#[derive(Debug, Clone)]
pub(crate) struct Trained {
    pub startup: Duration,
    pub training: Duration,
    pub saving: Duration,
    pub progress: Progress,
}

impl Runner {
    /// Makes sure that the program becomes a worker when it is run as one. One that does not would
    /// run its own `main` for every trial. Returns what the system lacks for a sandbox.
    pub(crate) fn check(&self, folder: &Path) -> Result<Vec<String>> {
        let mut worker = Worker::spawn(self, folder, folder)?;
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

    /// Trains `library` and leaves its weights in `checkpoint`; `watch` hears of progress, with the
    /// time since training began, and may end it.
    ///
    /// `peak_memory_mb` is told even of runs that came to nothing.
    pub(crate) fn train(
        &self,
        job: &TrainJob<'_>,
        peak_memory_mb: &mut Option<f64>,
        mut watch: impl FnMut(Progress, Duration) -> Result<(), Halt>,
    ) -> Result<Trained, Halt> {
        let spawned = Instant::now();
        let scratch = Scratch::new(job.folder.join("scratch"))?;
        let mut worker = Worker::spawn(self, job.folder, &scratch.folder)?;
        worker.scratch = Some((scratch.folder.clone(), Instant::now()));
        let mut session = || -> Result<Trained, Halt> {
            let training = TrainingData { tokens: job.tokens.to_owned(), bos: job.bos };
            let confinement = Confinement {
                readable: vec![job.library.to_owned(), job.tokens.to_owned()],
                writable: vec![scratch.folder.clone()],
                cuda: self.setup.cuda_device.is_some(),
                ..Confinement::default()
            };
            worker.confine(self, confinement)?;
            worker.start(self, job.library, Some(training))?;
            let startup = spawned.elapsed();

            let limit = match job.budget {
                Budget::WallClock(budget) => budget + self.limits.grace,
                Budget::Steps(_) => self.limits.steps,
            };
            let begun = Instant::now();
            worker.ask(&Request::Train { budget: job.budget })?;
            let mut without_a_number = 0;
            let progress = loop {
                let left = limit.saturating_sub(begun.elapsed());
                match worker.answer(left, "train")? {
                    Answer::Progress(progress) => {
                        watch(progress, begun.elapsed())?;
                        let is_none = progress.loss.is_some_and(f64::is_nan);
                        without_a_number = if is_none { without_a_number + 1 } else { 0 };
                        if without_a_number == MOST_REPORTS_WITHOUT_A_NUMBER {
                            let step = progress.steps;
                            let reason = format!("train: the loss is NaN; stopped at step {step}");
                            return Err(ended(Outcome::Failed, reason));
                        }
                    }
                    Answer::Trained(progress) => break progress,
                    answer => return Err(worker.confused(&answer)),
                }
            };
            let training = begun.elapsed();

            let saving = Instant::now();
            let saved = scratch.folder.join("checkpoint");
            worker.save(self, &saved)?;
            fs::rename(&saved, job.checkpoint).map_err(Error::io("move", saved))?;
            Ok(Trained { startup, training, saving: saving.elapsed(), progress })
        };
        let trained = session();
        worker.read_peak_memory();
        *peak_memory_mb = worker.peak_memory_mb;
        trained
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
        let mut worker = Worker::spawn(&runner, folder, &scratch.folder)?;
        let confinement = Confinement {
            readable: vec![library.to_owned()],
            writable: vec![scratch.folder.clone()],
            cuda: self.setup.cuda_device.is_some(),
            ..Confinement::default()
        };
        worker.confine(&runner, confinement)?;
        worker.start(&runner, library, None)?;
        let saved = scratch.folder.join("checkpoint");
        worker.save(&runner, &saved)?;
        sha256_of_file(&saved).map_err(|error| Error::io("read", saved)(error).into())
    }

    /// A fresh worker that has taken its weights from `checkpoint` and waits for questions.
    pub(crate) fn examinee(
        &self,
        library: &Path,
        checkpoint: &Path,
        folder: &Path,
    ) -> Result<Examinee, Halt> {
        // It may write nowhere: what one room wrote, the other could read.
        let mut worker = Worker::spawn(self, folder, folder)?;
        let confinement = Confinement {
            readable: vec![library.to_owned(), checkpoint.to_owned()],
            cuda: self.setup.cuda_device.is_some(),
            ..Confinement::default()
        };
        worker.confine(self, confinement)?;
        worker.start(self, library, None)?;
        worker.ask(&Request::Load { checkpoint: checkpoint.to_owned() })?;
        worker.done(self.limits.checkpoint, "load")?;
        Ok(Examinee { worker, limit: self.limits.answer })
    }
}

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
    limit: Duration,
}

impl Examinee {
    /// The cost in nats of every target.
    pub(crate) fn score(&mut self, windows: &Question<'_>) -> Result<Vec<f32>, Halt> {
        self.worker.ask(&Request::Score {
            seq_len: windows.seq_len,
            inputs: windows.inputs.to_vec(),
            targets: windows.targets.to_vec(),
        })?;
        self.numbers("score")
    }

    /// The logits after `prefix`.
    pub(crate) fn logits(&mut self, prefix: &[u32]) -> Result<Vec<f32>, Halt> {
        self.worker.ask(&Request::Logits { prefix: prefix.to_vec() })?;
        self.numbers("logits")
    }

    fn numbers(&mut self, task: &'static str) -> Result<Vec<f32>, Halt> {
        match self.worker.answer(self.limit, task)? {
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
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        Ok(Self { folder })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A worker process. Dropping it kills its whole process group.
struct Worker {
    group: Group,
    requests: Option<ChildStdin>,
    answers: Receiver<io::Result<Answer>>,
    log_done: Receiver<()>,
    stop: StopHandle,
    peak_memory_mb: Option<f64>,
    /// The folder that it may write, and when that was last looked at.
    scratch: Option<(PathBuf, Instant)>,
    scratch_bytes: u64,
}

/// How often a scratch folder is measured.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What all files below a folder take of the disk; links are not followed.
fn bytes_in(folder: &Path) -> u64 {
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            // What vanishes meanwhile takes nothing.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            }
            #[cfg(unix)]
            let taken = 512 * std::os::unix::fs::MetadataExt::blocks(&metadata);
            #[cfg(not(unix))]
            let taken = metadata.len();
            bytes += taken;
        }
    }
    bytes
}

/// How often a silent worker is looked after.
const TICK: Duration = Duration::from_millis(100);

impl Worker {
    /// Logs to `folder`, and works in `place`.
    fn spawn(runner: &Runner, folder: &Path, place: &Path) -> Result<Self> {
        let mut command = Command::new(&runner.program);
        command
            .env_clear()
            .envs(environment(runner.setup.threads))
            .env(worker::VARIABLE, "1")
            .env("TMPDIR", place)
            .current_dir(place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own: Ctrl-C at the terminal reaches the study alone, and one kill reaches
        // whatever a trainer has started.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(Error::io("start", &runner.program))?;

        let requests = child.stdin.take();
        let (sender, answers) = crossbeam_channel::unbounded();
        if let Some(mut stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                loop {
                    let answer = match read_frame(&mut stdout) {
                        Ok(Some(answer)) => Ok(answer),
                        Ok(None) => return,
                        Err(error) => Err(error),
                    };
                    let last = answer.is_err();
                    if sender.send(answer).is_err() || last {
                        return;
                    }
                }
            });
        }
        let (log_sender, log_done) = crossbeam_channel::bounded(1);
        if let Some(stderr) = child.stderr.take() {
            let log = Log::append(&folder.join("run.log"))?;
            std::thread::spawn(move || {
                log.copy(stderr);
                let _ = log_sender.send(());
            });
        }
        let stop = runner.stop.clone();
        let group = Group::new(child);
        let scratch_bytes = runner.limits.scratch_bytes;
        Ok(Self {
            group,
            requests,
            answers,
            log_done,
            stop,
            peak_memory_mb: None,
            scratch: None,
            scratch_bytes,
        })
    }

    /// What the system lacks for it.
    fn confine(&mut self, runner: &Runner, confinement: Confinement) -> Result<Vec<String>, Halt> {
        if runner.sandbox == Sandbox::Off {
            return Ok(Vec::new());
        }
        self.ask(&Request::Confine(confinement))?;
        match self.answer(runner.limits.start, "confine")? {
            Answer::Confined { missing } => Ok(missing),
            answer => Err(self.confused(&answer)),
        }
    }

    fn start(
        &mut self,
        runner: &Runner,
        library: &Path,
        training: Option<TrainingData>,
    ) -> Result<(), Halt> {
        let library = library.to_owned();
        self.ask(&Request::Start { library, setup: runner.setup, training })?;
        self.done(runner.limits.start, "new")
    }

    fn save(&mut self, runner: &Runner, checkpoint: &Path) -> Result<(), Halt> {
        self.ask(&Request::Save { checkpoint: checkpoint.to_owned() })?;
        self.done(runner.limits.checkpoint, "save")?;
        // A link would lead whoever reads the weights to where it points.
        if fs::symlink_metadata(checkpoint).is_ok_and(|saved| saved.is_file()) {
            Ok(())
        } else {
            Err(ended(Outcome::Failed, "save: it left no file".to_owned()))
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(), Halt> {
        let sent = match &mut self.requests {
            Some(pipe) => write_frame(pipe, request),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        // A closed pipe means that the worker is gone; how it went is the better answer.
        sent.map_err(|_| self.departed("being asked"))
    }

    fn done(&mut self, limit: Duration, task: &'static str) -> Result<(), Halt> {
        match self.answer(limit, task)? {
            Answer::Done => Ok(()),
            answer => Err(self.confused(&answer)),
        }
    }

    /// The next answer within `limit`; whatever else happens is how the trial ended.
    fn answer(&mut self, limit: Duration, task: &'static str) -> Result<Answer, Halt> {
        let asked = Instant::now();
        let mut gone = false;
        loop {
            self.check_scratch()?;
            match self.answers.recv_timeout(TICK.min(limit.saturating_sub(asked.elapsed()))) {
                Ok(Ok(Answer::Failed(Failure { panicked, message }))) => {
                    let outcome = if panicked { Outcome::Panicked } else { Outcome::Failed };
                    return Err(ended(outcome, format!("{task}: {message}")));
                }
                Ok(Ok(Answer::LoadFailed(message))) => {
                    return Err(ended(Outcome::LoadFailed, message));
                }
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => {
                    let reason = format!("{task}: not an answer: {error}");
                    return Err(ended(Outcome::Rejected, reason));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(self.departed(task)),
                Err(RecvTimeoutError::Timeout) if gone => return Err(self.departed(task)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.read_peak_memory();
            if self.stop.is_stopped() {
                return Err(Halt::Interrupted);
            }
            // A process that the trainer left behind may hold the pipe open for ever. One more turn
            // after the worker's end, for an answer that is still in the pipe.
            gone = self.group.has_ended();
            if asked.elapsed() >= limit && !gone {
                let seconds = limit.as_secs_f64();
                let reason = format!("{task}: no answer within {seconds:.0} s, killed");
                return Err(ended(Outcome::TimedOut, reason));
            }
        }
    }

    /// No system has a limit of how much there may be in a folder.
    fn check_scratch(&mut self) -> Result<(), Halt> {
        let Some((folder, looked)) = &mut self.scratch else { return Ok(()) };
        if looked.elapsed() < BETWEEN_LOOKS {
            return Ok(());
        }
        *looked = Instant::now();
        if bytes_in(folder) <= self.scratch_bytes {
            return Ok(());
        }
        let mib = self.scratch_bytes >> 20;
        let reason = format!("the scratch folder held more than {mib} MiB, killed");
        Err(ended(Outcome::OutOfSpace, reason))
    }

    /// The worker has closed its pipe or ended: says how.
    fn departed(&mut self, task: &str) -> Halt {
        let patience = Instant::now();
        while !self.group.has_ended() && patience.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = if self.group.has_ended() { self.end().ok() } else { None };
        // A keyboard interrupt that reached the worker is no fact about the trainer.
        if self.stop.is_stopped() {
            return Halt::Interrupted;
        }
        match status {
            Some(status) => departure(status, task),
            None => ended(
                Outcome::Rejected,
                format!("{task}: the worker closed its pipe, but did not end"),
            ),
        }
    }

    fn confused(&self, answer: &Answer) -> Halt {
        let kind = match answer {
            Answer::Done | Answer::Confined { .. } => "done",
            Answer::Progress(_) | Answer::Trained(_) => "progress",
            Answer::Numbers(_) => "numbers",
            Answer::LoadFailed(_) | Answer::Failed(_) => "failure",
        };
        ended(Outcome::Rejected, format!("the worker answered a question with {kind}"))
    }

    /// Kills what is left of the process and its group, and says how the process ended.
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.requests = None;
        self.group.kill()
    }

    /// The kernel's own high-water mark, while the process is there to ask about.
    fn read_peak_memory(&mut self) {
        let Ok(status) = fs::read_to_string(format!("/proc/{}/status", self.group.child.id()))
        else {
            return;
        };
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
        if let Some(kib) = kib {
            self.peak_memory_mb = Some(kib / 1024.0);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.end();
        // The log is complete when the pipe is; something that escaped the group may hold it open.
        let _ = self.log_done.recv_timeout(Duration::from_secs(1));
    }
}

fn ended(outcome: Outcome, reason: String) -> Halt {
    Halt::Ended { outcome, reason }
}

fn departure(status: ExitStatus, task: &str) -> Halt {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            4 => " (illegal instruction)",
            6 => " (aborted)",
            7 => " (bus error)",
            9 => " (killed, perhaps for want of memory)",
            11 => " (segmentation fault or stack overflow)",
            _ => "",
        };
        let reason = format!("{task}: the worker was ended by signal {signal}{name}");
        return ended(Outcome::Signalled { signal }, reason);
    }
    let exit_code = status.code().unwrap_or(-1);
    let reason = format!("{task}: the worker exited with status {exit_code}");
    ended(Outcome::Exited { exit_code }, reason)
}

/// The whole environment of a worker: the little that a trainer needs, and settings measured to be
/// worth it.
fn environment(threads: usize) -> Vec<(&'static str, std::ffi::OsString)> {
    const PASSED_ON: &[&str] =
        &["PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES"];
    let mut environment: Vec<_> =
        PASSED_ON.iter().filter_map(|&name| Some((name, std::env::var_os(name)?))).collect();
    environment.extend([
        ("RUST_BACKTRACE", "1".into()),
        ("RAYON_NUM_THREADS", threads.to_string().into()),
        // candle's pool spins without bound while it waits: with one busy neighbour on two cores a
        // step took fifteen times as long.
        ("CANDLE_BARRIER_POOL_SPIN_LIMIT", "0".into()),
        // Tensors come and go by the megabyte. Keeping their pages, rather than returning each to
        // the system and faulting it in again, made training 1.4 times as fast.
        (
            "GLIBC_TUNABLES",
            "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:\
             glibc.malloc.top_pad=268435456"
                .into(),
        ),
    ]);
    environment
}
