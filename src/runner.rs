//! The parent's side of a worker: spawn it, hold the clock, kill it in time, collect what it says.

use crate::{
    Budget, Error, Outcome, Result,
    conversation::{Conversation, Heard},
    data::Loader,
    effort::Bounds,
    hash::sha256_of_file,
    laboratory::Halt,
    log::Log,
    plugin::Failure,
    process::Group,
    stop::StopHandle,
    supply::{HandedOut, Supply},
    worker::{
        self,
        protocol::{Answer, Progress, Request, Setup, frame},
        sandbox::Confinement,
    },
};
use crossbeam_channel::Receiver;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// How workers are started.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    /// The program to run again.
    pub program: PathBuf,
    pub setup: Setup,
    pub limits: Limits,
    /// What the baseline's needs allow beyond that.
    pub bounds: Bounds,
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

/// How long a worker may take over what is not training, whatever the baseline needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For loading the library and building the model.
    pub start: Duration,
    /// After the budget: for the step in flight and for returning from `train`.
    pub grace: Duration,
    /// For writing or reading the weights.
    pub checkpoint: Duration,
    /// For the exam: both rooms, from the first worker's start to the last answer.
    pub exam: Duration,
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
            exam: Duration::from_mins(10),
            steps: Duration::from_hours(24),
            scratch_bytes: 16 << 30,
        }
    }
}

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
        let spawned = Instant::now();
        let scratch = Scratch::new(job.folder.join("scratch"))?;
        let mut worker = Worker::spawn(self, job.folder, &scratch.folder)?;
        worker.scratch = Some((scratch.folder.clone(), Instant::now()));
        let session = || -> Result<Trained, Halt> {
            let confinement = Confinement {
                readable: vec![job.library.to_owned()],
                writable: vec![scratch.folder.clone()],
                cuda: self.setup.cuda_device.is_some(),
                ..Confinement::default()
            };
            worker.confine(self, confinement)?;
            let building = worker.start(self, job.library)?;
            let startup = spawned.elapsed();

            worker.ask(&Request::Train { budget: job.budget })?;
            let mut supply = Supply::begin(loader, self.setup.max_seq_len, job.budget);
            let progress = self.teach(&mut worker, &mut supply, seen, &mut watch)?;
            let training = supply.elapsed();

            let saved = scratch.folder.join("checkpoint");
            worker.save(self, &saved)?;
            let times = supply.closed();
            // Before the weights are read, nobody is left who could change them.
            worker.read_peak_memory();
            let _ = worker.end();
            if let Some((late, due)) = self.bounds.lateness(job.budget, &times) {
                let (late, due) = (late.as_secs_f64(), due.as_secs_f64());
                let reason = format!(
                    "the weights were saved {late:.1} s too late: with the step in flight and what \
                     saving takes the baseline, they were due {due:.1} s after training began"
                );
                return Err(ended(Outcome::Overran, reason));
            }
            fs::rename(&saved, job.checkpoint).map_err(Error::io("move", saved))?;
            let (saving, closing) = (times.closed - training, times.closed - times.last_batch);
            Ok(Trained { startup, building, training, saving, closing, progress })
        };
        let trained = session();
        worker.read_peak_memory();
        seen.peak_memory_mb = worker.peak_memory_mb;
        trained
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
                Answer::Wants { batch_size, seq_len } => match supply.next(batch_size, seq_len)? {
                    Ok(frame) => worker.send(frame, self.limits.grace, "train")?,
                    Err(refusal) => {
                        let reason = format!("train: it asked for no batch: {refusal}");
                        return Err(ended(Outcome::Rejected, reason));
                    }
                },
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
        let mut worker = Worker::spawn(&runner, folder, &scratch.folder)?;
        let confinement = Confinement {
            readable: vec![library.to_owned()],
            writable: vec![scratch.folder.clone()],
            cuda: self.setup.cuda_device.is_some(),
            ..Confinement::default()
        };
        worker.confine(&runner, confinement)?;
        worker.start(&runner, library)?;
        let saved = scratch.folder.join("checkpoint");
        worker.save(&runner, &saved)?;
        sha256_of_file(&saved).map_err(|error| Error::io("read", saved)(error).into())
    }

    /// A fresh worker that has taken its weights from `checkpoint` and waits for questions, the last
    /// of which must be answered when `due`.
    pub(crate) fn examinee(
        &self,
        library: &Path,
        checkpoint: &Path,
        folder: &Path,
        due: Instant,
    ) -> Result<Examinee, Halt> {
        // An empty folder, which it may not write: what one room wrote, the other could read.
        let room = Scratch::new(folder.join("room"))?;
        let mut worker = Worker::spawn(self, folder, &room.folder)?;
        let confinement = Confinement {
            readable: vec![library.to_owned(), checkpoint.to_owned()],
            cuda: self.setup.cuda_device.is_some(),
            ..Confinement::default()
        };
        worker.confine(self, confinement)?;
        worker.start(self, library)?;
        let before = worker.hold_to(self.bounds.of(|effort| effort.load_seconds));
        worker.ask(&Request::Load { checkpoint: checkpoint.to_owned() })?;
        worker.done(self.limits.checkpoint, "load")?;
        let loading = worker.spent().saturating_sub(before);
        Ok(Examinee { worker, due, loading, before: Duration::ZERO, _room: room })
    }
}

/// What was seen of a training run, whatever became of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seen {
    pub peak_memory_mb: Option<f64>,
    pub handed_out: HandedOut,
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
    due: Instant,
    loading: Duration,
    /// What it had spent when its questions began.
    before: Duration,
    _room: Scratch,
}

impl Examinee {
    /// What all answers from here on may take together, if there is a bound.
    pub(crate) fn begin(&mut self, most: Option<Duration>) {
        self.before = self.worker.hold_to(most);
    }

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
        self.numbers(&question, "score")
    }

    /// The logits after `prefix`.
    pub(crate) fn logits(&mut self, prefix: &[u32]) -> Result<Vec<f32>, Halt> {
        self.numbers(&Request::Logits { prefix: prefix.to_vec() }, "logits")
    }

    fn numbers(&mut self, question: &Request, task: &'static str) -> Result<Vec<f32>, Halt> {
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
    /// `None` when it has been told to end.
    conversation: Option<Conversation>,
    log_done: Receiver<()>,
    stop: StopHandle,
    peak_memory_mb: Option<f64>,
    /// When it was started, where its effort is told by the clock, and the most that it may come to.
    by_the_clock: Option<Instant>,
    most: Option<Duration>,
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

/// How long a worker may take to read what it is asked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Gives a program to be started a socket for its standard input; the other end of it.
#[cfg(unix)]
fn connect(command: &mut Command) -> io::Result<Conversation> {
    let (ours, theirs) = crate::conversation::Socket::pair()?;
    command.stdin(std::os::fd::OwnedFd::from(theirs));
    Conversation::new(ours, TICK)
}

#[cfg(not(unix))]
fn connect(_command: &mut Command) -> io::Result<Conversation> {
    Err(io::Error::other("workers run on Unix only so far"))
}

/// What a process has used of all processors, user and system, in all its threads. The kernel tells
/// it in hundredths of a second; `proc_pid_stat(5)`, fields 14 and 15.
fn processor_time(process: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks()? + ticks()?)))
}

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
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let conversation = connect(&mut command).map_err(Error::io("reach", &runner.program))?;
        // A group of its own: Ctrl-C at the terminal reaches the study alone, and one kill reaches
        // whatever a trainer has started.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(Error::io("start", &runner.program))?;
        // With it goes our copy of the worker's end.
        drop(command);

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
            conversation: Some(conversation),
            log_done,
            stop,
            peak_memory_mb: None,
            by_the_clock: runner.setup.cuda_device.map(|_| Instant::now()),
            most: None,
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

    /// The processor time that building the model took.
    fn start(&mut self, runner: &Runner, library: &Path) -> Result<Duration, Halt> {
        let before = self.hold_to(runner.bounds.of(|effort| effort.new_seconds));
        let library = library.to_owned();
        self.ask(&Request::Start { library, setup: runner.setup })?;
        self.done(runner.limits.start, "new")?;
        let spent = self.spent().saturating_sub(before);
        self.hold_to(None);
        Ok(spent)
    }

    /// Bounds the effort of what comes next, and says what was spent so far.
    fn hold_to(&mut self, most: Option<Duration>) -> Duration {
        let before = self.spent();
        self.most = most.map(|most| before + most);
        before
    }

    /// Its effort so far: processor time of all its threads, or time where it computes on a card.
    fn spent(&self) -> Duration {
        match self.by_the_clock {
            Some(started) => started.elapsed(),
            None => processor_time(self.group.child.id()).unwrap_or_default(),
        }
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
        let frame = frame(request).map_err(Error::io("send a request to", "a worker"))?;
        self.send(&frame, PATIENCE, "being asked")
    }

    /// Sends a whole frame, which waits for the worker to read it.
    fn send(&mut self, mut frame: &[u8], limit: Duration, task: &'static str) -> Result<(), Halt> {
        let begun = Instant::now();
        while !frame.is_empty() {
            let Some(conversation) = &mut self.conversation else {
                return Err(self.departed(task));
            };
            match conversation.say(frame) {
                Ok(0) => self.look_after(begun, limit, task)?,
                Ok(length) => frame = &frame[length..],
                // A closed socket means that the worker is gone; how it went is the better answer.
                Err(_) => return Err(self.departed(task)),
            }
        }
        Ok(())
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
            let patience = TICK.min(limit.saturating_sub(asked.elapsed()));
            let Some(conversation) = &mut self.conversation else {
                return Err(self.departed(task));
            };
            match conversation.hear(patience) {
                Ok(Heard::Answer(Answer::Failed(Failure { panicked, message }))) => {
                    let outcome = if panicked { Outcome::Panicked } else { Outcome::Failed };
                    return Err(ended(outcome, format!("{task}: {message}")));
                }
                Ok(Heard::Answer(Answer::LoadFailed(message))) => {
                    return Err(ended(Outcome::LoadFailed, message));
                }
                Ok(Heard::Answer(answer)) => {
                    self.check_effort(task)?;
                    return Ok(answer);
                }
                Err(error) => {
                    let reason = format!("{task}: not an answer: {error}");
                    return Err(ended(Outcome::Rejected, reason));
                }
                Ok(Heard::End) => return Err(self.departed(task)),
                Ok(Heard::Silence) if gone => return Err(self.departed(task)),
                Ok(Heard::Silence) => {}
            }
            // A process that the trainer left behind may hold the socket open for ever. One more turn
            // after the worker's end, for an answer that is still on its way.
            gone = self.group.has_ended();
            if !gone {
                self.look_after(asked, limit, task)?;
            }
        }
    }

    /// What is looked after while nothing is heard.
    fn look_after(
        &mut self,
        begun: Instant,
        limit: Duration,
        task: &'static str,
    ) -> Result<(), Halt> {
        self.read_peak_memory();
        if self.stop.is_stopped() {
            return Err(Halt::Interrupted);
        }
        self.check_effort(task)?;
        if begun.elapsed() < limit {
            return Ok(());
        }
        let seconds = limit.as_secs_f64();
        let reason = format!("{task}: no answer within {seconds:.0} s, killed");
        Err(ended(Outcome::TimedOut, reason))
    }

    /// What may be done outside the budget is bounded, lest it be training.
    fn check_effort(&self, task: &'static str) -> Result<(), Halt> {
        match self.most {
            Some(most) if self.spent() > most => {
                let reason = format!(
                    "{task}: it took more processor time than ten times the baseline's and two \
                     seconds, killed"
                );
                Err(ended(Outcome::Overran, reason))
            }
            _ => Ok(()),
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
                format!("{task}: the worker closed its socket, but did not end"),
            ),
        }
    }

    fn confused(&self, answer: &Answer) -> Halt {
        let kind = match answer {
            Answer::Done | Answer::Confined { .. } => "done",
            Answer::Progress(_) | Answer::Trained(_) | Answer::Wants { .. } => "progress",
            Answer::Numbers(_) => "numbers",
            Answer::LoadFailed(_) | Answer::Failed(_) => "failure",
        };
        ended(Outcome::Rejected, format!("the worker answered a question with {kind}"))
    }

    /// Kills what is left of the process and its group, and says how the process ended.
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.conversation = None;
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
