//! How the machine was while a trial trained: whether it had the processors to itself.
//!
//! A budget of wall-clock time buys less where somebody else computes, and a good idea looks like a bad one. What
//! the kernel counts tells: how long threads ran, how long they stood in line for a core, what
//! everybody else used meanwhile, what the host of a virtual machine took. Facts here; the verdict is
//! [`Conditions::disturbance`].

use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// What a trial had of the machine: a trainer from its first batch to its closed checkpoint, a command from its start
/// to its end. Seconds; of processors, over all cores. Only Linux tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Wall clock.
    pub elapsed_seconds: f64,
    /// Processors of the machine.
    pub cores: u32,
    /// Processor time of the trainer's threads, or of all that a command started.
    pub ran_seconds: f64,
    /// Time that they could have run and stood in line for a core.
    pub waited_seconds: f64,
    /// Processor time of everybody else on the machine, but the study.
    pub others_seconds: f64,
    /// Processor time that the host of this virtual machine gave to somebody else.
    pub stolen_seconds: f64,
    /// How long the machine slept, or the trainer was stopped.
    pub suspended_seconds: f64,
    /// Processor time of a fixed piece of arithmetic after training, in milliseconds: more where the clock is
    /// slower.
    pub reference_ms: f64,
}

/// A share of processor time by which a trial may be worse off than the baseline was.
const TOLERATED: f64 = 0.05;

/// By how much slower the clock may be than at the baseline.
const SLOWER: f64 = 1.15;

/// So much sleep is more than a hiccup, in seconds.
const ASLEEP: f64 = 1.0;

impl Conditions {
    /// What keeps a measurement under these conditions from being compared with one under those of the
    /// baseline; for the baseline itself with those of a machine that does nothing else. `None`: nothing.
    pub fn disturbance(&self, baseline: Option<&Self>) -> Option<String> {
        let idle = Self { cores: self.cores, ..Self::default() };
        let before = baseline.unwrap_or(&idle);
        if self.suspended_seconds > ASLEEP {
            let seconds = self.suspended_seconds;
            return Some(format!(
                "the machine slept, or the trainer was stopped, for {seconds:.0} s"
            ));
        }
        let percent = |share: f64| 100.0 * share;
        // Threads may stand in line for each other: that is the trainer's own doing. So somebody else must
        // have had the time that they waited. Nor is it a loss where others have the cores that a trainer has
        // no use for.
        let waited = self.waited() - before.waited();
        let others = self.others() - before.others();
        let wanted = baseline.map_or(self.ran() + self.share(self.waited_seconds), Self::ran);
        let is_short = waited > TOLERATED || self.others() + wanted > 1.0 + TOLERATED;
        if others > TOLERATED && is_short {
            return Some(format!(
                "other programs used {:.0} % of the processors, and the trainer ran for {:.0} % of its time",
                percent(self.others()),
                percent(1.0 - self.waited())
            ));
        }
        if self.stolen() - before.stolen() > TOLERATED {
            let stolen = percent(self.stolen());
            return Some(format!(
                "the virtual machine's host took {stolen:.0} % of the processors"
            ));
        }
        let slower = self.reference_ms / before.reference_ms;
        if before.reference_ms > 0.0 && slower > SLOWER {
            return Some(format!("the processors' clock was {slower:.2} times slower"));
        }
        None
    }

    /// The share of its time that a thread stood in line.
    fn waited(&self) -> f64 {
        share(self.waited_seconds, self.ran_seconds + self.waited_seconds)
    }

    fn others(&self) -> f64 {
        self.share(self.others_seconds)
    }

    fn stolen(&self) -> f64 {
        self.share(self.stolen_seconds)
    }

    fn ran(&self) -> f64 {
        self.share(self.ran_seconds)
    }

    /// Of all that the machine's processors had to give.
    fn share(&self, seconds: f64) -> f64 {
        share(seconds, self.elapsed_seconds * f64::from(self.cores))
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// How often threads are looked at: what one has done since is lost when it ends.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// A look that comes so late was kept from coming: this process was stopped.
const LATE: Duration = Duration::from_secs(3);

/// Watches processes from now on.
pub(crate) struct Watch {
    /// Those that live.
    processes: Box<dyn Fn() -> Vec<u32>>,
    begun: Instant,
    looked: Instant,
    /// What they had run before, and the most that they were ever seen to have run.
    ran: [Duration; 2],
    /// How long each thread waited, in nanoseconds, when it was looked at first and last.
    threads: HashMap<u32, [u64; 2]>,
    machine: Machine,
    own: Duration,
    asleep: Duration,
    stopped: Duration,
}

impl Watch {
    /// `None`: this system does not tell.
    pub(crate) fn begin(processes: impl Fn() -> Vec<u32> + 'static) -> Option<Self> {
        let living = processes();
        let ran = processor_time_of(&living).unwrap_or_default();
        let threads = living.iter().flat_map(|&process| threads(process));
        Some(Self {
            begun: Instant::now(),
            looked: Instant::now(),
            ran: [ran; 2],
            threads: threads.map(|(thread, waited)| (thread, [waited; 2])).collect(),
            machine: Machine::now()?,
            own: own_time(),
            asleep: time_asleep(),
            stopped: Duration::ZERO,
            processes: Box::new(processes),
        })
    }

    /// Looks from time to time, however often it is called.
    pub(crate) fn glance(&mut self) {
        if self.looked.elapsed() >= BETWEEN_LOOKS {
            self.look();
        }
    }

    fn look(&mut self) {
        let since = self.looked.elapsed();
        self.looked = Instant::now();
        let living = (self.processes)();
        if since > LATE || living.iter().any(|&process| is_stopped(process)) {
            self.stopped += since;
        }
        // One that ended, and whose parent did not ask for it, takes its time along.
        self.ran[1] = self.ran[1].max(processor_time_of(&living).unwrap_or_default());
        for (thread, waited) in living.iter().flat_map(|&process| threads(process)) {
            // What one that is new has waited was waited meanwhile.
            self.threads.entry(thread).or_insert([0, waited])[1] = waited;
        }
    }

    /// What it came to. The processes must still be there, or not have been waited for.
    pub(crate) fn end(mut self) -> Conditions {
        self.look();
        let elapsed = self.begun.elapsed();
        let ran = self.ran[1].saturating_sub(self.ran[0]).as_secs_f64();
        let waited: u64 = self.threads.values().map(|[a, b]| b.saturating_sub(*a)).sum();
        let waited = waited as f64 / 1e9;
        let now = Machine::now().unwrap_or_default();
        let ticks = |now: u64, before: u64| now.saturating_sub(before) as f64 / TICKS_PER_SECOND;
        let busy = ticks(now.busy, self.machine.busy);
        let own = own_time().saturating_sub(self.own).as_secs_f64();
        let asleep = time_asleep().saturating_sub(self.asleep) + self.stopped;
        Conditions {
            elapsed_seconds: elapsed.as_secs_f64(),
            cores: self.machine.cores,
            ran_seconds: ran,
            waited_seconds: waited,
            others_seconds: (busy - ran - own).max(0.0),
            stolen_seconds: ticks(now.stolen, self.machine.stolen),
            suspended_seconds: asleep.as_secs_f64(),
            reference_ms: reference().as_secs_f64() * 1e3,
        }
    }
}

/// The share of all processors that somebody else uses during `time`; what this process uses is not counted.
/// `None`: this system does not tell.
pub(crate) fn others_during(time: Duration) -> Option<f64> {
    let (before, own, begun) = (Machine::now()?, own_time(), Instant::now());
    std::thread::sleep(time);
    let now = Machine::now()?;
    let taken =
        (now.busy - before.busy.min(now.busy)) + (now.stolen - before.stolen.min(now.stolen));
    let taken = taken as f64 / TICKS_PER_SECOND - own_time().saturating_sub(own).as_secs_f64();
    Some(share(taken.max(0.0), begun.elapsed().as_secs_f64() * f64::from(now.cores)))
}

/// The kernel's unit for processor time, which is the same on every architecture of Linux (time(7), USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Of `/proc/stat`: since the machine was started, over all processors.
#[derive(Debug, Clone, Copy, Default)]
struct Machine {
    cores: u32,
    busy: u64,
    stolen: u64,
}

impl Machine {
    #[cfg(target_os = "linux")]
    fn now() -> Option<Self> {
        Self::read(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    #[cfg(not(target_os = "linux"))]
    fn now() -> Option<Self> {
        None
    }

    /// proc_stat(5): user nice system idle iowait irq softirq steal; guests are counted as users.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "there is no such file"))]
    fn read(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let fields: Vec<u64> =
            line.split_whitespace().map_while(|field| field.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq, stolen] = *fields.first_chunk()?;
        let is_core = |line: &&str| {
            line.strip_prefix("cpu")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let cores = u32::try_from(text.lines().filter(is_core).count()).ok()?.max(1);
        Some(Self { cores, busy: user + nice + system + irq + softirq, stolen })
    }
}

/// How long each thread of a process waited for a core, in nanoseconds: the kernel's
/// Documentation/scheduler/sched-stats.rst, `/proc/<pid>/schedstat`.
fn threads(process: u32) -> impl Iterator<Item = (u32, u64)> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let waited = text.split_whitespace().nth(1)?.parse().ok()?;
        Some((task.file_name().to_str()?.parse().ok()?, waited))
    })
}

/// What a process has used of all processors, user and system, in all its threads.
pub(crate) fn processor_time(process: u32) -> Option<Duration> {
    ticks(process, 2)
}

/// The same of several, with those that they have started and waited for. `None`: nobody tells.
pub(crate) fn processor_time_of(processes: &[u32]) -> Option<Duration> {
    let times: Vec<_> = processes.iter().filter_map(|&process| ticks(process, 4)).collect();
    (!times.is_empty()).then(|| times.into_iter().sum())
}

/// The kernel tells it in hundredths of a second: `proc_pid_stat(5)`, fields 14 to 17, user and system, its own and its
/// children's.
fn ticks(process: u32, fields: usize) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything.
    let known = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(fields);
    let ticks: u64 = known.map(|field| field.parse::<u64>().ok()).sum::<Option<_>>()?;
    Some(Duration::from_millis(10 * ticks))
}

/// Whether a process is stopped, as by SIGSTOP: proc_pid_stat(5), the field behind the name.
fn is_stopped(process: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = text.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

/// Processor time of this process, without its children: what a proposer uses is taken from the trainer, too.
#[cfg(target_os = "linux")]
fn own_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// How long the machine has slept since it was started: one clock goes on meanwhile, and one does not.
#[cfg(target_os = "linux")]
fn time_asleep() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    };
    let awake = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(awake)
}

/// Processor time of about 10 ms of multiplications that cannot be left out or done in another order.
#[cfg(target_os = "linux")]
fn reference() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
    };
    // The least of three: an interrupt is no slower clock.
    let once = || {
        let begun = read();
        let mut x = 1.000_000_1_f64;
        for _ in 0..3_000_000 {
            x = std::hint::black_box(x * 0.999_999_9 + 1e-7);
        }
        std::hint::black_box(x);
        read().saturating_sub(begun)
    };
    [once(), once(), once()].into_iter().min().unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
fn own_time() -> Duration {
    Duration::ZERO
}

#[cfg(not(target_os = "linux"))]
fn time_asleep() -> Duration {
    Duration::ZERO
}

#[cfg(not(target_os = "linux"))]
fn reference() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quiet() -> Conditions {
        Conditions {
            elapsed_seconds: 300.0,
            cores: 4,
            ran_seconds: 590.0,
            waited_seconds: 3.0,
            others_seconds: 12.0,
            reference_ms: 12.0,
            ..Conditions::default()
        }
    }

    #[test]
    fn who_was_robbed_is_told_from_who_was_not() {
        let base = quiet();
        assert_eq!(base.disturbance(None), None);
        assert_eq!(base.disturbance(Some(&base)), None);
        for (conditions, word) in [
            (Conditions { waited_seconds: 200.0, others_seconds: 400.0, ..base }, "other programs"),
            // It asks for each batch somebody who has to wait, and sleeps meanwhile.
            (Conditions { ran_seconds: 5.0, others_seconds: 1100.0, ..base }, "other programs"),
            (Conditions { stolen_seconds: 100.0, ..base }, "host"),
            (Conditions { suspended_seconds: 20.0, ..base }, "slept"),
            (Conditions { reference_ms: 16.0, ..base }, "clock"),
        ] {
            let said = conditions.disturbance(Some(&base)).unwrap_or_default();
            assert!(said.contains(word), "{word}: {said}");
        }
        for fair in [
            // More threads than cores: they wait for each other.
            Conditions { waited_seconds: 600.0, ..base },
            // Others had cores that the trainer did not need.
            Conditions { others_seconds: 500.0, ..base },
            Conditions { reference_ms: 13.0, suspended_seconds: 0.2, ..base },
        ] {
            assert_eq!(fair.disturbance(Some(&base)), None, "{fair:?}");
        }
        // A machine that always does something else is a machine like another.
        let busy = Conditions { waited_seconds: 100.0, others_seconds: 300.0, ..base };
        assert!(busy.disturbance(None).is_some());
        assert_eq!(busy.disturbance(Some(&busy)), None);
    }

    #[test]
    fn the_kernels_lines_are_read() {
        let text = "cpu  100 20 30 1000 50 1 2 40 0 0\ncpu0 50 10 15 500 25 1 1 20 0 0\n\
                    cpu1 50 10 15 500 25 0 1 20 0 0\nintr 5\n";
        let Machine { cores, busy, stolen } = Machine::read(text).unwrap();
        assert_eq!((cores, busy, stolen), (2, 153, 40));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_that_computes_is_seen_to_run() {
        let mut child =
            std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let process = child.id();
        let mut watch = Watch::begin(move || vec![process]).unwrap();
        for _ in 0..15 {
            std::thread::sleep(Duration::from_millis(100));
            watch.glance();
        }
        let found = watch.end();
        let _ = child.kill();
        let _ = child.wait();
        // Whatever else the machine does: it either ran or waited.
        let there = found.ran_seconds + found.waited_seconds;
        assert!((1.2..=1.8).contains(&there), "{found:?}");
        assert!(found.ran_seconds > 0.1 && found.reference_ms > 0.5, "{found:?}");
    }
}
