//! A night on the terminal: bars on one, plain lines elsewhere, JSON on request.

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use overnight::{Budget, Event, Outcome, Status, Trial};
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// Shows events as they come.
pub enum View {
    Json,
    Bars(Bars),
    Lines(Lines),
}

impl View {
    pub fn new(json: bool, budget: Budget, planned: Planned) -> Self {
        let log = Log { best: None, planned, first: 0 };
        if json {
            Self::Json
        } else if std::io::stderr().is_terminal() {
            Self::Bars(Bars::new(budget, log))
        } else {
            Self::Lines(Lines { stage: String::new(), last: Instant::now(), log })
        }
    }

    /// # Errors
    /// Nobody reads any more.
    pub fn show(&mut self, event: &Event) -> std::io::Result<()> {
        match self {
            Self::Json => say(&serde_json::to_string(event).unwrap_or_default()),
            Self::Bars(bars) => bars.show(event),
            Self::Lines(lines) => lines.show(event),
        }
    }
}

/// Prints a line.
///
/// # Errors
/// The reader has gone, as behind `| head -1`. A terminal that was closed is no such end.
fn say(line: &str) -> std::io::Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// What the night is to hold.
pub struct Planned {
    /// Beyond the baseline and its control runs; `None` is as many as it takes until Ctrl-C.
    pub trials: Option<usize>,
    pub controls: usize,
}

/// What stays on the screen: a line for the study and one for each trial.
struct Log {
    best: Option<f64>,
    planned: Planned,
    /// Trials that were there already.
    first: usize,
}

impl Log {
    fn line(&mut self, event: &Event) -> Option<String> {
        match event {
            Event::Opened { dir, branch, data, finished } => {
                self.first = *finished;
                let past = match finished {
                    0 => String::new(),
                    n => format!(", resumed after trial {}", n - 1),
                };
                Some(format!("study   {} ({branch}){past}\ndata    {data}", dir.display()))
            }
            Event::Finished(trial) => Some(self.trial(trial)),
            Event::Unconfined { missing } => {
                let missing = missing.join("; no ");
                Some(format!("sandbox there is no {missing}; trainers are confined by the rest"))
            }
            Event::ProposerFailed { proposer, reason, pause_seconds } => {
                let pause = match *pause_seconds {
                    0.0 => String::new(),
                    seconds => format!("; asked again after {seconds:.0} s"),
                };
                Some(format!("        {proposer} failed: {reason}{pause}"))
            }
            Event::Disturbed { trial, reason } => Some(format!(
                "        trial {trial} was disturbed: {reason}; measured again when the machine is quiet"
            )),
            Event::Noted { remark } => Some(format!("note    {remark}")),
            Event::ProposerRetired { proposer, reason } => {
                Some(format!("        {proposer} is asked no more: {reason}"))
            }
            _ => None,
        }
    }

    fn trial(&mut self, trial: &Trial) -> String {
        let status = match trial.status {
            Status::Keep => "keep",
            Status::Discard if trial.outcome == Outcome::Disturbed => "not measured",
            Status::Discard => "discard",
            Status::Crash => "crash",
        };
        let score = match (trial.score(), self.best) {
            (Some(score), Some(best)) => format!("{score:.6} ({:+.6})", score - best),
            (Some(score), None) => format!("{score:.6}"),
            (None, _) => String::new(),
        };
        if trial.status == Status::Keep {
            self.best = trial.score();
        }
        let mut line =
            format!("trial {:<4} {status:<8} {score:<21} {}", trial.trial, trial.description);
        if trial.outcome != Outcome::Measured
            && let Some(reason) = &trial.reason
        {
            line.push_str(&format!(" — {}", reason.lines().next().unwrap_or_default()));
        }
        line
    }

    fn name(&self, trial: usize) -> String {
        match self.planned.trials {
            Some(trials) => {
                let before = self.first.max(1 + self.planned.controls) - 1;
                format!("trial {trial}/{}", (before + trials).max(trial))
            }
            None => format!("trial {trial}"),
        }
    }
}

/// For a terminal.
pub struct Bars {
    bar: ProgressBar,
    stage: String,
    /// Whether a trial has a source and no end yet.
    is_running: bool,
    /// Who thinks about a trial that is still to come.
    thinking: Option<String>,
    budget: Budget,
    log: Log,
}

impl Bars {
    fn new(budget: Budget, log: Log) -> Self {
        let (bar, stage) = (ProgressBar::hidden(), String::new());
        Self { bar, stage, is_running: false, thinking: None, budget, log }
    }

    fn show(&mut self, event: &Event) -> std::io::Result<()> {
        let mut said = Ok(());
        match event {
            Event::Preparing { stage, done, total } => self.count(stage, *done, *total),
            Event::Compiling { done, total } => {
                self.count("compiling the trainer's dependencies", *done, *total);
            }
            Event::Proposing { trial, proposer } => {
                let stage = format!("{}  {proposer} proposes", self.log.name(*trial));
                // What it has begun beside a running trial may go on after it.
                if self.is_running {
                    self.thinking = Some(stage);
                } else {
                    self.spin(&stage);
                }
            }
            Event::Repairing { trial, proposer, reason } => {
                let name = self.log.name(*trial);
                self.spin(&format!("{name}  {proposer} mends: {reason}"));
            }
            Event::Running { trial } => {
                let name = self.log.name(*trial);
                self.spin(&format!("{name}  running"));
            }
            Event::Building { trial, description, .. } => {
                self.is_running = true;
                let name = self.log.name(*trial);
                self.spin(&format!("{name}  building  {description}"));
            }
            Event::Training { trial, progress, elapsed_seconds, steps, tokens, loss } => {
                let name = self.log.name(*trial);
                self.begin(&format!("{name}  training"), 1000);
                self.bar.set_position((progress * 1000.0) as u64);
                let mut facts = format!("step {steps}");
                if let Some(loss) = loss {
                    facts += &format!("  loss {loss:.4}");
                }
                if *elapsed_seconds > 0.0 {
                    let rate = *tokens as f64 / elapsed_seconds;
                    facts += &format!("  {} tokens/s", HumanCount(rate as u64));
                }
                let left = match self.budget {
                    Budget::WallClock(limit) => {
                        limit.saturating_sub(Duration::from_secs_f64(*elapsed_seconds))
                    }
                    Budget::Steps(_) => Duration::from_secs_f64(
                        elapsed_seconds * (1.0 - progress) / progress.max(1e-3),
                    ),
                };
                self.bar.set_message(format!("{facts}  {} left", HumanDuration(left)));
            }
            Event::Exam { trial, done, total } => {
                let name = self.log.name(*trial);
                self.count(&format!("{name}  exam"), *done, *total);
            }
            event => {
                if let Some(line) = self.log.line(event) {
                    self.clear();
                    said = say(&line);
                }
                match event {
                    Event::ProposerFailed { .. } | Event::ProposerRetired { .. } => {
                        self.thinking = None;
                    }
                    Event::Finished(_) => {
                        self.is_running = false;
                        if let Some(stage) = self.thinking.take() {
                            self.spin(&stage);
                        }
                    }
                    _ => {}
                }
            }
        }
        said
    }

    fn count(&mut self, stage: &str, done: u64, total: u64) {
        self.begin(stage, total);
        self.bar.set_position(done);
    }

    fn begin(&mut self, stage: &str, total: u64) {
        if self.stage != stage {
            self.clear();
            self.stage = stage.to_owned();
            self.bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix}  [{bar:30}] {percent:>3}%  {msg}");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_prefix(stage.to_owned());
        }
    }

    fn spin(&mut self, stage: &str) {
        self.clear();
        self.stage = stage.to_owned();
        self.bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        self.bar.set_style(
            ProgressStyle::with_template("{msg}  {spinner}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        self.bar.set_message(stage.to_owned());
        self.bar.enable_steady_tick(Duration::from_millis(100));
    }

    fn clear(&mut self) {
        self.bar.finish_and_clear();
        self.stage.clear();
    }
}

/// For a file or a pipe.
pub struct Lines {
    stage: String,
    last: Instant,
    log: Log,
}

/// Between two lines of one stage: a night leaves a log that can be read.
const BETWEEN_LINES: Duration = Duration::from_secs(15);

impl Lines {
    fn show(&mut self, event: &Event) -> std::io::Result<()> {
        let line = match event {
            Event::Preparing { stage, done, total } => {
                self.due(stage).then(|| format!("{stage}: {done} of {total}"))
            }
            Event::Compiling { done, total } => {
                let stage = "compiling the trainer's dependencies";
                self.due(stage).then(|| format!("{stage}: {done} of {total} crates"))
            }
            Event::Building { trial, description, .. } => {
                self.stage.clear();
                Some(format!("{}: {description}", self.log.name(*trial)))
            }
            Event::Repairing { proposer, reason, .. } => {
                Some(format!("  {proposer} mends: {reason}"))
            }
            Event::Training { trial, progress, elapsed_seconds, steps, tokens, loss } => {
                self.due(&format!("{trial} training")).then(|| {
                    let rate = *tokens as f64 / elapsed_seconds.max(1e-3);
                    let loss = loss.map(|loss| format!("  loss {loss:.4}")).unwrap_or_default();
                    let percent = progress * 100.0;
                    format!("  training {percent:3.0}%  step {steps}{loss}  {rate:.0} tokens/s")
                })
            }
            event => self.log.line(event),
        };
        if let Some(line) = line {
            return say(&line);
        }
        Ok(())
    }

    /// Whether a stage is new, or was last mentioned a while ago.
    fn due(&mut self, stage: &str) -> bool {
        let due = self.stage != stage || self.last.elapsed() >= BETWEEN_LINES;
        if due {
            self.stage = stage.to_owned();
            self.last = Instant::now();
        }
        due
    }
}
