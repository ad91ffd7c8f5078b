//! A program that is run to its end or to its time limit, with all that it has started.

use crate::{
    conditions::{Conditions, Watch, processor_time_of},
    error::{Error, Result},
    foreign::{self, Mark},
    lifeline::Lifeline,
    log::Log,
    stop::StopHandle,
};
use crossbeam_channel::bounded;
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A program to run.
pub(crate) struct Process<'a> {
    pub command: Command,
    /// What it may read from its standard input.
    pub input: &'a str,
    /// Where its standard output goes, of bounded size.
    pub stdout: &'a Path,
    /// Where its standard error goes; may be the same file.
    pub stderr: &'a Path,
    pub limit: Duration,
    /// How long it may do nothing, where anybody can tell: neither print, nor compute, nor change a file in this
    /// folder.
    pub idle: Option<(Duration, &'a Path)>,
    pub stop: &'a StopHandle,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Success,
    Status(i32),
    #[cfg_attr(not(unix), expect(dead_code, reason = "nothing ends by a signal there"))]
    Signal(i32),
    /// It was killed at its limit.
    TimedOut,
    /// It was killed because it did nothing.
    Idle,
    /// It was killed because the study is to stop.
    Interrupted,
}

/// How often a running program is looked after.
const TICK: Duration = Duration::from_millis(20);

/// How often it is asked whether one does anything.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// The kernel counts in hundredths of a second, and a watch looks twice a second.
const TELLING: Duration = Duration::from_secs(2);

/// A program that waits for ever still wakes up now and then; one that reads an answer as it comes needs more.
const COMPUTES: Duration = Duration::from_millis(100);

/// What a program has to put its things in order between SIGTERM and SIGKILL.
const NOTICE: Duration = Duration::from_secs(3);

impl Process<'_> {
    /// Runs it as a process group of its own; whatever is left of the group is killed in the end, which
    /// may be that of the study.
    ///
    /// # Errors
    /// It cannot be started, or its output cannot be written.
    pub(crate) fn run(self) -> Result<Exit> {
        self.carry_out(&mut None)
    }

    /// The same, and what it had of the machine, if it took long enough for that to be told.
    pub(crate) fn run_watched(self) -> Result<(Exit, Option<Conditions>)> {
        let mut conditions = Some(None);
        let exit = self.carry_out(&mut conditions)?;
        Ok((exit, conditions.flatten()))
    }

    fn carry_out(mut self, conditions: &mut Option<Option<Conditions>>) -> Result<Exit> {
        let program = self.command.get_program().to_owned();
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (out, err) = (Log::append(self.stdout)?, Log::append(self.stderr)?);
        let begun = Instant::now();
        let group = Group::spawn(&mut self.command);
        let mut group = group.map_err(Error::io("run", program))?;

        let input = self.input.to_owned();
        if let Some(mut stdin) = group.child.stdin.take() {
            // On a thread: a program that never reads would hold us up for ever.
            std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        }
        let (sender, copied) = bounded(2);
        let printed = Arc::new(AtomicU64::new(0));
        if let Some(stdout) = group.child.stdout.take() {
            let (sender, stdout) = (sender.clone(), Counted(stdout, printed.clone()));
            std::thread::spawn(move || {
                out.copy(stdout);
                let _ = sender.send(());
            });
        }
        if let Some(stderr) = group.child.stderr.take() {
            let stderr = Counted(stderr, printed.clone());
            std::thread::spawn(move || {
                err.copy(stderr);
                let _ = sender.send(());
            });
        }
        let mut watch = conditions.as_ref().and_then(|_| Watch::begin(group.processes()));
        let mut idleness = self.idle.map(|(limit, folder)| Idleness::new(limit, folder));

        let exit = loop {
            if group.has_ended() {
                break None;
            }
            if self.stop.is_stopped() {
                break Some(Exit::Interrupted);
            }
            if begun.elapsed() >= self.limit {
                break Some(Exit::TimedOut);
            }
            if let Some(idleness) = &mut idleness
                && idleness.is_over(&group, printed.load(Ordering::Relaxed))
            {
                break Some(Exit::Idle);
            }
            if let Some(watch) = &mut watch {
                watch.glance();
            }
            std::thread::sleep(TICK);
        };
        if let Some(conditions) = conditions {
            *conditions = watch.filter(|_| begun.elapsed() >= TELLING).map(Watch::end);
        }
        if exit.is_some() {
            group.give_notice();
        }
        let status = group.kill();
        // Something that escaped the group may hold a pipe open for ever.
        for _ in 0..2 {
            let _ = copied.recv_timeout(Duration::from_secs(1));
        }
        let status =
            status.map_err(|error| Error::io("wait for", self.command.get_program())(error))?;
        Ok(exit.unwrap_or_else(|| Exit::of(status)))
    }
}

/// What is read here is counted.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let length = self.0.read(into)?;
        self.1.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }
}

/// Since when a program has done nothing.
struct Idleness {
    limit: Duration,
    folder: PathBuf,
    looked: Instant,
    since: Instant,
    printed: u64,
    computed: Duration,
    files: Option<BTreeMap<PathBuf, Mark>>,
}

impl Idleness {
    fn new(limit: Duration, folder: &Path) -> Self {
        Self {
            limit,
            folder: folder.to_owned(),
            looked: Instant::now(),
            since: Instant::now(),
            printed: 0,
            computed: Duration::ZERO,
            files: foreign::marks(folder),
        }
    }

    /// Whether it has done nothing for too long.
    fn is_over(&mut self, group: &Group, printed: u64) -> bool {
        if self.looked.elapsed() < BETWEEN_LOOKS.min(self.limit / 4) {
            return false;
        }
        self.looked = Instant::now();
        // One that nobody can watch may be at work.
        let Some(computed) = processor_time_of(&group.processes()()) else { return false };
        let files = foreign::marks(&self.folder);
        // Less than before: one of its processes has ended.
        let computes = computed < self.computed || computed > self.computed + COMPUTES;
        if printed != self.printed || computes || files.is_none() || files != self.files {
            self.since = Instant::now();
            (self.printed, self.computed, self.files) = (printed, computed, files);
        }
        self.since.elapsed() >= self.limit
    }
}

impl Exit {
    fn of(status: ExitStatus) -> Self {
        #[cfg(unix)]
        if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
            return Self::Signal(signal);
        }
        match status.code() {
            Some(0) => Self::Success,
            code => Self::Status(code.unwrap_or(-1)),
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Success => f.write_str("it ended well"),
            Self::Status(status) => write!(f, "it exited with status {status}"),
            Self::Signal(signal) => write!(f, "it was ended by signal {signal}"),
            Self::TimedOut => f.write_str("it was not done in time and was killed"),
            Self::Idle => f.write_str("it did nothing and was killed"),
            Self::Interrupted => f.write_str("it was interrupted"),
        }
    }
}

/// A child and its process group. Dropping it kills both.
pub(crate) struct Group {
    pub child: Child,
    reaped: bool,
    /// `None`: the child leads its group, and sees to it that it ends with its study.
    line: Option<Lifeline>,
}

impl Group {
    /// A child that was spawned with a process group of its own.
    pub(crate) fn new(child: Child) -> Self {
        Self { child, reaped: false, line: None }
    }

    /// Starts `command` in a group that ends with this process, however that ends.
    pub(crate) fn spawn(command: &mut Command) -> std::io::Result<Self> {
        let line = Lifeline::new()?;
        line.hold(command);
        Ok(Self { child: command.spawn()?, reaped: false, line: Some(line) })
    }

    /// Whether the process has ended; it stays a zombie, and its id ours.
    pub(crate) fn has_ended(&mut self) -> bool {
        #[cfg(unix)]
        {
            use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let id = Pid::from_raw(self.child.id().cast_signed());
            // An error means that it has been waited for already.
            id.is_none_or(|id| !matches!(waitid(WaitId::Pid(id), options), Ok(None)))
        }
        #[cfg(not(unix))]
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// What it consists of, and the child as long as it was not waited for.
    fn processes(&self) -> impl Fn() -> Vec<u32> + 'static {
        let child = self.child.id();
        let others = self.line.as_ref().map(Lifeline::processes);
        move || {
            let mut processes = others.as_ref().map(|others| others()).unwrap_or_default();
            // A zombie has no environment left to be known by.
            if !processes.contains(&child) {
                processes.push(child);
            }
            processes
        }
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> std::io::Result<ExitStatus> {
        let status = self.child.wait();
        self.reaped = true;
        status
    }

    /// Kills what is left of the process and its group, and says how the process ended.
    pub(crate) fn kill(&mut self) -> std::io::Result<ExitStatus> {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::KILL);
        let _ = self.child.kill();
        self.wait()
    }

    /// Asks the group to end, and waits a moment.
    fn give_notice(&mut self) {
        #[cfg(unix)]
        self.signal(rustix::process::Signal::TERM);
        let begun = Instant::now();
        while cfg!(unix) && !self.has_ended() && begun.elapsed() < NOTICE {
            std::thread::sleep(TICK);
        }
    }

    /// Where the child leads, only before it is waited for: until then no other group can have its id.
    #[cfg(unix)]
    fn signal(&self, signal: rustix::process::Signal) {
        if let Some(line) = &self.line {
            return line.signal(signal);
        }
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed())
            && !self.reaped
        {
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.kill();
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration, stop: &StopHandle) -> (Exit, String) {
        run_while_busy(script, (limit, None), stop)
    }

    fn run_while_busy(
        script: &str,
        (limit, idle): (Duration, Option<Duration>),
        stop: &StopHandle,
    ) -> (Exit, String) {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(folder.path());
        let idle = idle.map(|idle| (idle, folder.path()));
        let process =
            Process { command, input: "words\n", stdout: &log, stderr: &log, limit, idle, stop };
        let exit = process.run().unwrap();
        (exit, std::fs::read_to_string(log).unwrap())
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_program_reads_writes_and_ends() {
        let (exit, log) =
            run("read word; echo got $word; echo oh >&2; exit 3", LONG, &StopHandle::new());
        assert_eq!(exit, Exit::Status(3));
        assert!(log.contains("got words") && log.contains("oh"), "{log}");
        assert_eq!(run("kill -9 $$", LONG, &StopHandle::new()).0, Exit::Signal(9));
        assert_eq!(run("true", LONG, &StopHandle::new()).0, Exit::Success);
    }

    #[test]
    fn a_program_that_goes_on_is_killed_with_its_children() {
        let (exit, log) = run(
            "trap '' TERM; sleep 1000 & echo $!; wait; wait",
            Duration::from_millis(200),
            &StopHandle::new(),
        );
        assert_eq!(exit, Exit::TimedOut);
        let child = log.trim();
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z"), "the child goes on: {state}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_program_that_does_nothing_is_told_from_one_that_is_at_work() {
        let run = |script: &str| {
            let limits = (Duration::from_secs(6), Some(Duration::from_secs(2)));
            run_while_busy(script, limits, &StopHandle::new()).0
        };
        std::thread::scope(|scope| {
            let idle = scope.spawn(|| run("echo thinking; sleep 1000"));
            for at_work in [
                "while :; do echo more; sleep 0.5; done",
                "while :; do touch file; sleep 0.5; done",
                // Another process of it.
                "(while :; do :; done) & wait",
            ] {
                scope.spawn(move || assert_eq!(run(at_work), Exit::TimedOut, "{at_work}"));
            }
            assert_eq!(idle.join().unwrap(), Exit::Idle);
        });
    }

    #[test]
    fn a_stop_does_not_wait_for_the_limit() {
        let stop = StopHandle::new();
        stop.stop();
        assert_eq!(run("sleep 1000", LONG, &stop).0, Exit::Interrupted);
    }
}
