//! A worker process, as its parent has it: started, asked, looked after, killed.

use crate::{
    card::{self, Card},
    conditions::{Conditions, Watch, processor_time},
    conversation::{Conversation, Heard},
    error::{Error, Result},
    foreign::{self, Extent},
    halt::Halt,
    log::Log,
    plugin::{Failure, shortened},
    process::Group,
    record::Outcome,
    stop::StopHandle,
    text::acts,
    worker::{
        self,
        protocol::{Answer, Request, frame},
        sandbox::Confinement,
    },
    workers::{Runner, Sandbox},
};
use crossbeam_channel::Receiver;
use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// A worker process. Dropping it kills its whole process group.
pub(crate) struct Worker {
    group: Group,
    /// `None` when it has been told to end.
    conversation: Option<Conversation>,
    log_done: Receiver<()>,
    stop: StopHandle,
    pub(crate) peak_memory_mb: Option<f64>,
    /// What others had of the card before, in MiB.
    pub(crate) card_before_mb: Option<f64>,
    /// Who asks what it has of the card.
    card_memory: Option<JoinHandle<Option<f64>>>,
    /// When it was started, where its effort is told by the clock, and the most that it may come to.
    by_the_clock: Option<Instant>,
    most: Option<Duration>,
    /// When it was last looked after.
    looked: Instant,
    /// The folder that it may write, and when that was last looked at.
    pub(crate) scratch: Option<(PathBuf, Instant)>,
    scratch_bytes: u64,
    /// Whether what it says must reach nobody who proposes.
    is_examined: bool,
    log: PathBuf,
    most_in_all: Option<Duration>,
    /// What it has of the machine, from when somebody wants to know.
    watch: Option<Watch>,
}

/// Where a worker's output goes in the trial's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    /// `run.log`, which proposers read.
    Run,
    /// `exam.log`, which they do not: whoever answers the exam knows its questions.
    Exam,
}

/// How often a scratch folder is measured.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// How often a worker is looked after.
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

impl Worker {
    /// Logs to `folder`, and works in `place`.
    pub(crate) fn spawn(
        runner: &Runner,
        folder: &Path,
        place: &Path,
        output: Output,
    ) -> Result<Self> {
        let mut command = Command::new(&runner.program);
        command
            .env_clear()
            .envs(environment(runner.setup.threads))
            .envs(runner.card.iter().flat_map(Card::environment))
            .env(worker::VARIABLE, std::process::id().to_string())
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
        let log = folder.join(match output {
            Output::Run => "run.log",
            Output::Exam => "exam.log",
        });
        if let Some(stderr) = child.stderr.take() {
            let log = Log::append(&log)?;
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
            card_before_mb: None,
            card_memory: None,
            by_the_clock: runner.setup.cuda_device.map(|_| Instant::now()),
            most: None,
            looked: Instant::now(),
            scratch: None,
            scratch_bytes,
            is_examined: false,
            log,
            most_in_all: None,
            watch: None,
        })
    }

    /// What the system lacks for it.
    pub(crate) fn confine(
        &mut self,
        runner: &Runner,
        confinement: Confinement,
    ) -> Result<Vec<String>, Halt> {
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
    pub(crate) fn start(&mut self, runner: &Runner, library: &Path) -> Result<Duration, Halt> {
        let before = self.hold_to(runner.bounds.of(|effort| effort.new_seconds));
        let library = library.to_owned();
        self.ask(&Request::Start { library, setup: runner.setup })?;
        self.done(runner.limits.start, "new")?;
        let spent = self.spent().saturating_sub(before);
        self.hold_to(None);
        Ok(spent)
    }

    /// Bounds the effort of what comes next, and says what was spent so far.
    pub(crate) fn hold_to(&mut self, most: Option<Duration>) -> Duration {
        let before = self.spent();
        self.most = most.map(|most| before + most);
        before
    }

    /// Its effort so far: processor time of all its threads, or time where it computes on a card.
    pub(crate) fn spent(&self) -> Duration {
        match self.by_the_clock {
            Some(started) => started.elapsed(),
            None => processor_time(self.group.child.id()).unwrap_or_default(),
        }
    }

    pub(crate) fn save(&mut self, runner: &Runner, checkpoint: &Path) -> Result<(), Halt> {
        self.ask(&Request::Save { checkpoint: checkpoint.to_owned() })?;
        self.done(runner.limits.checkpoint, "save")
    }

    /// From here on it knows what nobody else may learn from it, and has to be through with all before it has
    /// spent `most`.
    pub(crate) fn examine(&mut self, most: Option<Duration>) {
        self.is_examined = true;
        self.most_in_all = most;
    }

    /// Puts what it said of a failure where the human finds it; what may be told of it.
    fn veil(&self, message: String) -> String {
        let veiled = veiled(&message);
        let file = fs::OpenOptions::new().append(true).open(&self.log);
        // For somebody's eyes, and nothing depends on it.
        let _ = file.and_then(|mut file| writeln!(file, "{}", readable(message)));
        veiled
    }

    /// In words, if it is the driver's of a card.
    fn explained(&self, message: String) -> String {
        match card::explained(&message).filter(|_| self.by_the_clock.is_some()) {
            Some(explanation) => {
                // Without candle's list of calls, which has no names in a stripped library.
                let said = message.split("\n   0: ").next().unwrap_or_default().trim();
                format!("{explanation} ({said})")
            }
            None => message,
        }
    }

    /// Expects so many numbers for the next answers.
    pub(crate) fn expect(&mut self, numbers: usize) {
        if let Some(conversation) = &mut self.conversation {
            conversation.expect(numbers);
        }
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Result<(), Halt> {
        let frame = frame(request).map_err(Error::io("send a request to", "a worker"))?;
        self.send(&frame, PATIENCE, "being asked")
    }

    /// Sends a whole frame, which waits for the worker to read it.
    pub(crate) fn send(
        &mut self,
        mut frame: &[u8],
        limit: Duration,
        task: &'static str,
    ) -> Result<(), Halt> {
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

    pub(crate) fn done(&mut self, limit: Duration, task: &'static str) -> Result<(), Halt> {
        match self.answer(limit, task)? {
            Answer::Done => Ok(()),
            answer => Err(self.confused(&answer)),
        }
    }

    /// The next answer within `limit`; whatever else happens is how the trial ended.
    pub(crate) fn answer(&mut self, limit: Duration, task: &'static str) -> Result<Answer, Halt> {
        let asked = Instant::now();
        let mut gone = false;
        loop {
            self.check_scratch()?;
            // Also of a worker that is never silent: one that asks for batch after batch.
            if self.looked.elapsed() >= TICK {
                self.look_after(asked, limit, task)?;
            }
            let patience = TICK.min(limit.saturating_sub(asked.elapsed()));
            let Some(conversation) = &mut self.conversation else {
                return Err(self.departed(task));
            };
            match conversation.hear(patience) {
                Ok(Heard::Answer(Answer::Failed(Failure { panicked, message }))) => {
                    let outcome = if panicked { Outcome::Panicked } else { Outcome::Failed };
                    let message = match self.is_examined {
                        true => self.veil(message),
                        false => self.explained(readable(message)),
                    };
                    return Err(ended(outcome, format!("{task}: {message}")));
                }
                Ok(Heard::Answer(Answer::LoadFailed(message))) => {
                    let message = self.explained(readable(message));
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

    /// What is looked after from time to time, whatever is heard.
    fn look_after(
        &mut self,
        begun: Instant,
        limit: Duration,
        task: &'static str,
    ) -> Result<(), Halt> {
        self.looked = Instant::now();
        if let Some(watch) = &mut self.watch {
            watch.glance();
        }
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
        let most = self.most.into_iter().chain(self.most_in_all).min();
        match most {
            Some(most) if self.spent() > most => {
                let reason = format!(
                    "{task}: it took more than two seconds and ten times what the baseline takes, \
                     killed"
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
        let without_name = foreign::without_name(self.group.child.id(), folder);
        let reason = match foreign::extent(folder) {
            Extent::Bytes(bytes) if bytes + without_name <= self.scratch_bytes => return Ok(()),
            Extent::Bytes(_) => {
                let mib = self.scratch_bytes >> 20;
                format!("the scratch folder held more than {mib} MiB, killed")
            }
            Extent::Endless => {
                "the scratch folder held more files, or deeper folders, than anybody looks at, killed"
                    .to_owned()
            }
        };
        Err(ended(Outcome::OutOfSpace, reason))
    }

    /// The worker has closed its socket or ended: says how.
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

    pub(crate) fn confused(&self, answer: &Answer) -> Halt {
        let kind = match answer {
            Answer::Done | Answer::Confined { .. } => "done",
            Answer::Progress(_) | Answer::Trained(_) | Answer::Wants { .. } => "progress",
            Answer::Numbers(_) => "numbers",
            Answer::LoadFailed(_) | Answer::Failed(_) => "failure",
        };
        ended(Outcome::Rejected, format!("the worker answered a question with {kind}"))
    }

    /// Begins to note what it has of the machine.
    pub(crate) fn watch(&mut self) {
        let process = self.group.child.id();
        self.watch = Watch::begin(move || vec![process]);
    }

    /// What it had since then. It must not have been killed.
    pub(crate) fn conditions(&mut self) -> Option<Conditions> {
        self.watch.take().map(Watch::end)
    }

    /// Kills what is left of the process and its group, and says how the process ended.
    pub(crate) fn end(&mut self) -> io::Result<ExitStatus> {
        self.conversation = None;
        self.group.kill()
    }

    /// Has somebody ask what the worker has of the card, who takes as long as a step or two.
    pub(crate) fn ask_for_card_memory(&mut self, card: &Card) {
        let (card, process, before) = (card.clone(), self.group.child.id(), self.card_before_mb);
        self.card_memory = Some(std::thread::spawn(move || card.memory_of(process, before)));
    }

    /// In MiB, if it was asked for and somebody knew.
    pub(crate) fn card_memory_mb(&mut self) -> Option<f64> {
        self.card_memory.take()?.join().ok()?
    }

    /// The kernel's own high-water mark, while the process is there to ask about.
    pub(crate) fn read_peak_memory(&mut self) {
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

/// What a trainer says, without what would act on the terminal of whoever reads it, and not without end.
fn readable(message: String) -> String {
    shortened(message).chars().filter(|&c| c == '\n' || c == '\t' || !acts(c)).collect()
}

/// What may be told of a failure by somebody who knows the exam's questions: in which line it was.
fn veiled(message: &str) -> String {
    let line = message.split(&[' ', '\n'][..]).next().and_then(|place| {
        let (file, rest) = place.split_once(".rs:")?;
        let line: u32 = rest.split(':').next()?.parse().ok()?;
        (line < 100_000 && file == "src/train").then(|| format!("src/train.rs:{line}: "))
    });
    let line = line.unwrap_or_default();
    format!("{line}it failed over the exam's questions; exam.log has what it said")
}

pub(crate) fn ended(outcome: Outcome, reason: String) -> Halt {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_trainer_says_acts_on_a_terminal() {
        let said = readable(
            "red \u{1b}[31m, a title \u{1b}]0;x\u{7}, turned \u{202e}\na\tline".to_owned(),
        );
        assert_eq!(said, "red [31m, a title ]0;x, turned \na\tline");
        assert!(readable("x".repeat(100_000)).len() < 2000);
    }

    #[test]
    fn of_a_failure_over_the_exam_the_line_alone_is_told() {
        let told =
            |message: &str| veiled(message).replace("it failed over the exam's questions; ", "");
        let rest = "exam.log has what it said";
        assert_eq!(told("src/train.rs:12:5: token 7"), format!("src/train.rs:12: {rest}"));
        for secret in ["token 7", "src/7.rs:12: x", "src/train.rs:700000000: x", "\n7", ""] {
            assert_eq!(told(secret), rest, "{secret}");
        }
    }
}
