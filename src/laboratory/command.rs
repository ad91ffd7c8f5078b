//! A command's trial: run it, and read the number that it prints.

use super::{Attempt, Laboratory, Source};
use crate::halt::Halt;
use crate::{
    conditions::Conditions,
    error::{Error, Result},
    event::Event,
    git,
    process::{Exit, Process},
    record::{Metric, Outcome, Trial},
    stop::StopHandle,
    text,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// An objective that is not a trainer's bits per byte: a command that prints a number.
///
/// Each trial runs the command in the study's work tree, with the proposed source in place. It may
/// print its number in either of two forms, anywhere in its output; the last one counts:
///
/// ```text
/// METRIC accuracy=0.93
/// val_bpb:          0.997900
/// ```
///
/// One that takes two seconds or more is watched: where other programs had the processors meanwhile, it is measured
/// again, as a trainer would be. If its number has nothing to do with time,
/// [`shared_machine`](crate::StudyBuilder::shared_machine) takes it as it is.
///
/// Here the command keeps its own clock and its own score, and so does whoever edits it: nothing
/// checks either. Where that matters, write a trainer.
#[derive(Debug, Clone)]
pub struct CommandObjective {
    pub(crate) folder: PathBuf,
    pub(crate) edited: String,
    pub(crate) words: Vec<String>,
    pub(crate) metric: String,
    pub(crate) higher_is_better: bool,
    pub(crate) limit: Duration,
}

impl CommandObjective {
    /// `command`, a program and its arguments, is run for every version of the file `edited` in
    /// `folder`. By default it has ten minutes, and `val_bpb` is to be low, as in autoresearch.
    pub fn new<W: Into<String>>(
        folder: impl Into<PathBuf>,
        edited: impl Into<String>,
        command: impl IntoIterator<Item = W>,
    ) -> Self {
        Self {
            folder: folder.into(),
            edited: edited.into(),
            words: command.into_iter().map(Into::into).collect(),
            metric: "val_bpb".to_owned(),
            higher_is_better: false,
            limit: Duration::from_mins(10),
        }
    }

    /// The same, with the command in one text that is split as a shell would.
    ///
    /// # Errors
    /// A quotation mark is missing, or there is no command.
    pub fn parse(
        folder: impl Into<PathBuf>,
        edited: impl Into<String>,
        command: &str,
    ) -> Result<Self> {
        let words = shlex::split(command).filter(|words| !words.is_empty());
        let folder = folder.into();
        match words {
            Some(words) => Ok(Self::new(folder, edited, words)),
            None => Err(Error::Project { folder, problem: format!("{command:?} is no command") }),
        }
    }

    /// Less of this metric is better.
    #[must_use]
    pub fn minimize(mut self, metric: impl Into<String>) -> Self {
        self.metric = metric.into();
        self.higher_is_better = false;
        self
    }

    /// More of this metric is better.
    #[must_use]
    pub fn maximize(mut self, metric: impl Into<String>) -> Self {
        self.metric = metric.into();
        self.higher_is_better = true;
        self
    }

    /// Wall-clock time after which the command, with all that it has started, is killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// All that the trials of one command have in common.
pub(crate) struct CommandLaboratory {
    pub objective: CommandObjective,
    /// Whether measurements count however busy the machine is.
    pub is_shared: bool,
    /// What the baseline had of the machine.
    pub baseline: Option<Conditions>,
    pub stop: StopHandle,
}

/// A program that prints without end keeps this much of its output's end.
const OUTPUT_BYTES: usize = 512 << 10;

impl Laboratory for CommandLaboratory {
    fn measure(
        &mut self,
        attempt: &mut Attempt,
        source: &Source<'_>,
        tell: &dyn Fn(Event),
    ) -> Result<(), Halt> {
        let objective = &self.objective;
        let log = attempt.folder.join("run.log");
        let mut command = Command::new(&objective.words[0]);
        git::forget_repository(&mut command);
        command
            .args(&objective.words[1..])
            .current_dir(source.folder)
            .env("OVERNIGHT_SEED", attempt.seed.to_string());
        let process = Process {
            command,
            input: "",
            stdout: &log,
            stderr: &log,
            limit: objective.limit,
            idle: None,
            stop: &self.stop,
        };
        tell(Event::Running { trial: attempt.number });
        let begun = Instant::now();
        let (exit, conditions) = process.run_watched()?;
        let elapsed = begun.elapsed();
        let ended = |outcome, reason| Err(Halt::Ended { outcome, reason });
        attempt.measurement.conditions = conditions;
        let matters = !self.is_shared && !attempt.takes_any_conditions;
        let conditions = conditions.filter(|_| matters);
        if let (Some(conditions), Exit::Success | Exit::TimedOut) = (conditions, exit)
            && let Some(reason) = conditions.disturbance(self.baseline.as_ref())
        {
            return ended(Outcome::Disturbed, reason);
        }
        match exit {
            Exit::Success => {}
            Exit::Interrupted => return Err(Halt::Interrupted),
            Exit::Status(exit_code) => {
                return ended(Outcome::Exited { exit_code }, exit.to_string());
            }
            Exit::Signal(signal) => return ended(Outcome::Signalled { signal }, exit.to_string()),
            Exit::TimedOut | Exit::Idle => return ended(Outcome::TimedOut, exit.to_string()),
        }
        let output = read_end(&log);
        let name = &objective.metric;
        let value = match value(&output, name) {
            Ok(Some(value)) => value,
            Ok(None) => {
                let reason = format!("it printed neither `METRIC {name}=…` nor `{name}: …`");
                return ended(Outcome::Failed, reason);
            }
            Err(line) => {
                let line = text::line(&line, 200);
                return ended(Outcome::Failed, format!("it printed `{line}`, which is no number"));
            }
        };
        if !value.is_finite() {
            return ended(Outcome::Rejected, format!("{name} is {value}"));
        }
        let measured = &mut attempt.measurement;
        measured.metric = Some(Metric {
            name: name.clone(),
            value,
            higher_is_better: objective.higher_is_better,
        });
        // What autoresearch's block tells beside the score. It is the command's word.
        let count = |name: &str| self::value(&output, name).ok()?.filter(|n| *n >= 0.0);
        measured.training_seconds = count("training_seconds").or(Some(elapsed.as_secs_f64()));
        measured.peak_vram_mb = count("peak_vram_mb");
        measured.num_steps = count("num_steps").map(|steps| steps as u64);
        measured.total_tokens = count("total_tokens_M").map(|millions| (millions * 1e6) as u64);
        measured.num_params = count("num_params_M").map(|millions| (millions * 1e6) as u64);
        Ok(())
    }

    fn remember(&mut self, trial: &Trial) {
        let is_baseline = trial.trial == 0 || trial.repeats == Some(0);
        if is_baseline && trial.outcome.is_measured() {
            self.baseline = self.baseline.or(trial.measurement.conditions);
        }
    }
}

fn read_end(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(OUTPUT_BYTES)..]).into_owned()
}

/// The last number of this name in an output. `Err`: the last line of this name, which has none; an earlier one is
/// out of date.
fn value(output: &str, name: &str) -> Result<Option<f64>, String> {
    let last = output.lines().rev().find_map(|line| {
        let line = without_colours(line);
        let plain = line.trim();
        let number = match plain.strip_prefix("METRIC ") {
            Some(metric) => metric.trim_start().strip_prefix(name)?.trim_start().strip_prefix('='),
            None => plain.strip_prefix(name)?.trim_start().strip_prefix(':'),
        };
        Some(number?.trim().parse().map_err(|_| plain.to_owned()))
    });
    last.transpose()
}

/// Without what a terminal would take for a colour: ECMA-48's control sequences.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let end = behind.find(|c: char| ('@'..='~').contains(&c)).map_or(behind.len(), |at| at + 1);
        rest = &behind[end..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_the_last_one_counts() {
        let output = "METRIC loss=3\nstep 1 | METRIC\n  METRIC loss = 2.5e0 \nnext\n";
        assert_eq!(value(output, "loss"), Ok(Some(2.5)));
        let block = "---\nval_bpb:          0.997900\ntraining_seconds: 300.1\n";
        assert_eq!(value(block, "val_bpb"), Ok(Some(0.9979)));
        assert_eq!(value(block, "training_seconds"), Ok(Some(300.1)));
        assert_eq!(value("\x1b[32mMETRIC loss=\x1b[1m0.5\x1b[0m\n", "loss"), Ok(Some(0.5)));
    }

    #[test]
    fn other_lines_are_not_taken_for_the_metric() {
        for output in ["METRIC losses=3", "loss 3", "the loss: 3", "METRIC loss 3"] {
            assert_eq!(value(output, "loss"), Ok(None), "{output}");
        }
    }

    #[test]
    fn an_earlier_number_does_not_stand_for_the_last_one() {
        for last in ["0.91 ± 0.01", "0.91s", "1,520", "many", ""] {
            for form in ["METRIC loss=", "loss: "] {
                let output = format!("METRIC loss=2.9\n{form}{last}\nbye\n");
                let line = format!("{form}{last}");
                assert_eq!(value(&output, "loss"), Err(line.trim().to_owned()));
            }
        }
    }
}
