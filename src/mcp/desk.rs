//! The desk between agent and study: takes submissions in, knows what became of them.

use super::{
    submissions::{Note, Told},
    tools::{Answer, Reply, Submit},
};
use crate::{
    error::Error,
    event::Event,
    proposer::Proposal,
    record::{Outcome, Status, Trial},
    text::{fenced, head, tail},
};
use crossbeam_channel::Sender;
use serde_json::{Value, json};
use std::{fmt::Write, fs, io, path::Path};

/// More than any trainer, and little enough to read at once.
const MOST_SOURCE_BYTES: u64 = 1 << 20;
/// Of a compiler's complaints, the first ones.
const DIAGNOSTICS_BYTES: usize = 8 << 10;
/// Of a trainer's output, the last ones.
const LOG_LINES: usize = 30;
const LOG_BYTES: usize = 4 << 10;

/// What is known of the study.
pub(super) struct Desk {
    submissions: Sender<Proposal>,
    /// The latest brief. There is none before the baseline is measured.
    told: Option<Told>,
    /// The trial for which the study waits.
    asked: Option<usize>,
    submission: Submission,
    trials: Vec<Trial>,
    /// The latest event, as an observer would print it.
    now: Value,
    /// Why there will be no more trials.
    ended: Option<String>,
}

/// Where the latest submission is.
#[derive(Clone, Copy, PartialEq)]
enum Submission {
    None,
    /// Handed in, and not fetched yet.
    Queued,
    /// Fetched for this trial.
    Taken(usize),
}

impl Desk {
    pub(super) fn new(submissions: Sender<Proposal>) -> Self {
        Self {
            submissions,
            told: None,
            asked: None,
            submission: Submission::None,
            trials: Vec::new(),
            now: json!({"event": "opening"}),
            ended: None,
        }
    }

    /// What the study told its proposer.
    pub(super) fn note(&mut self, note: Note) {
        match note {
            Note::Asked(told) => {
                // Asked for the same trial again: the submission came to nothing on its way.
                if self.submission == Submission::Taken(told.trial) {
                    self.submission = Submission::None;
                }
                self.asked = Some(told.trial);
                self.trials.clone_from(&told.trials);
                self.told = Some(told);
            }
            Note::Taken(trial) => {
                self.asked = None;
                self.submission = Submission::Taken(trial);
            }
            Note::Finished(trial) => self.finish(&trial),
        }
    }

    /// A trial is over. Observers hear of it first where proposers are still thinking.
    fn finish(&mut self, trial: &Trial) {
        if self.finished(trial.trial).is_none() {
            self.trials.push(trial.for_proposers());
        }
    }

    /// What the study told its observers.
    pub(super) fn event(&mut self, event: &Event) {
        self.now = match event {
            Event::Finished(trial) => {
                self.finish(trial);
                json!({"event": "between trials"})
            }
            // Another proposer thinks ahead; what is waited for is the trial that runs.
            Event::Proposing { trial, .. }
                if self.now["trial"].as_u64().is_some_and(|now| now < *trial as u64) =>
            {
                return;
            }
            event => serde_json::to_value(event).unwrap_or_default(),
        };
    }

    /// There will be no more trials.
    pub(super) fn end(&mut self, error: Option<&Error>) {
        let why = error.map_or(String::new(), |error| format!(": {error}"));
        self.ended = Some(format!("the study has ended{why}; start the server again to go on"));
    }

    pub(super) fn submit(&mut self, submit: Submit) -> Answer {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        if self.told.is_none() {
            let Reply { text, facts } = self.progress(None);
            return Ok(Reply { text: format!("Nothing was submitted. {text}"), facts });
        }
        match self.submission {
            Submission::Queued => {
                return Err("a submission is under way: call await_result first".to_owned());
            }
            Submission::Taken(trial) if self.finished(trial).is_none() => {
                return Err(format!("trial {trial} is under way: call await_result first"));
            }
            Submission::None | Submission::Taken(_) => {}
        }
        if submit.description.trim().is_empty() {
            return Err("`description` is empty: say in one line what is tried".to_owned());
        }
        let source = match (submit.source, submit.path) {
            (Some(source), None) => source,
            (None, Some(path)) => read_source(&path)
                .map_err(|problem| format!("cannot read {}: {problem}", path.display()))?,
            _ => return Err("give either `source` or `path`".to_owned()),
        };
        if self.submissions.send(Proposal::new(source, submit.description)).is_err() {
            return Err("the study is ending: nothing was submitted".to_owned());
        }
        self.submission = Submission::Queued;
        // Where the study is still busy with a trial of its own, the number is not known yet.
        let text = match self.asked {
            Some(trial) => format!("Submitted as trial {trial}. Call await_result."),
            None => "Submitted; the study will come to it. Call await_result.".to_owned(),
        };
        Ok(Reply::new(text, &json!({"state": "queued", "trial": self.asked})))
    }

    /// What became of a trial, the latest submission if none is named; `None` as long as it is open.
    pub(super) fn result(&self, trial: Option<usize>) -> Option<Answer> {
        // Whoever waits for nothing in particular may submit something when the wait is over.
        if trial.is_none() && self.told.is_none() && self.ended.is_none() {
            return None;
        }
        let number = trial.or(match self.submission {
            Submission::None => Some(self.trials.last().map_or(0, |trial| trial.trial)),
            Submission::Queued | Submission::Taken(_) => self.under_way(),
        });
        if let Some(trial) = number.and_then(|number| self.finished(number)) {
            return Some(Ok(self.report(trial)));
        }
        if let Some(ended) = &self.ended {
            return Some(Err(ended.clone()));
        }
        let is_open = self.told.is_none() || number.is_none() || number == self.under_way();
        (!is_open).then(|| {
            let number = number.unwrap_or_default();
            Err(format!("there is no trial {number} yet: call submit_trainer for it"))
        })
    }

    /// How far a trial is that is open.
    pub(super) fn progress(&self, trial: Option<usize>) -> Reply {
        let doing = self.doing();
        let queued = self.submission == Submission::Queued && self.asked.is_none();
        let (state, text) = match &self.told {
            None => (
                "preparing",
                format!(
                    "The study is still being prepared ({doing}); the first time, that takes \
                     minutes. Call await_result until the baseline is measured."
                ),
            ),
            Some(_) if queued => (
                "queued",
                format!("The study has not come to it yet ({doing}). Call await_result again."),
            ),
            Some(_) => ("running", format!("Not finished yet ({doing}). Call await_result again.")),
        };
        let trial = trial.or(self.under_way());
        Reply::new(text, &json!({"state": state, "trial": trial, "now": self.now}))
    }

    pub(super) fn history(&self, with_rules: bool) -> Answer {
        self.when_told(|told| {
            let mut text = String::new();
            if with_rules {
                let _ = write!(text, "{}\n\n---\n\n", told.rules);
            }
            text.push_str(&told.history);
            let mut since = self.trials.iter().filter(|trial| trial.trial >= told.trial).peekable();
            if since.peek().is_some() {
                text.push_str("\n## Since then\n\n");
            }
            for trial in since {
                let _ = writeln!(text, "- {}: {}", trial.description, verdict(trial));
            }
            Ok(Reply::words(text))
        })
    }

    pub(super) fn best(&self) -> Answer {
        self.when_told(|told| {
            let best = self.incumbent().ok_or("no trial has been kept")?;
            let path = told.folder_of(best.trial).join(&told.source);
            let text = format!("{} Its source is {}.", verdict(best), path.display());
            let mut facts = json!(best);
            facts["path"] = json!(path.to_string_lossy());
            Ok(Reply::new(text, &facts))
        })
    }

    /// The source of a trial, the incumbent's if none is named.
    pub(super) fn source(&self, trial: Option<usize>) -> Answer {
        self.when_told(|told| {
            let incumbent = self.incumbent().map(|trial| trial.trial);
            let number = trial.or(incumbent).unwrap_or_default();
            let path = told.folder_of(number).join(&told.source);
            fs::read_to_string(&path).map(Reply::words).map_err(|problem| {
                format!("cannot read {}: {problem}; history names the trials", path.display())
            })
        })
    }

    /// What to say once the study is open; something else to those who come too early.
    fn when_told(&self, answer: impl FnOnce(&Told) -> Answer) -> Answer {
        match (&self.told, &self.ended) {
            (Some(told), _) => answer(told),
            (None, Some(ended)) => Err(ended.clone()),
            (None, None) => Ok(self.progress(None)),
        }
    }

    /// The trial that the latest submission is, or will be as far as one knows.
    fn under_way(&self) -> Option<usize> {
        match self.submission {
            Submission::None => None,
            Submission::Queued => self.asked,
            Submission::Taken(trial) => Some(trial),
        }
    }

    fn finished(&self, number: usize) -> Option<&Trial> {
        self.trials.iter().find(|trial| trial.trial == number)
    }

    fn incumbent(&self) -> Option<&Trial> {
        self.trials.iter().rev().find(|trial| trial.is_kept())
    }

    /// All about a finished trial.
    fn report(&self, trial: &Trial) -> Reply {
        let mut text = verdict(trial);
        if let Some(told) = self.told.as_ref().filter(|_| trial.status == Status::Crash) {
            let log = what_was_said(trial, &told.folder_of(trial.trial));
            if !log.trim().is_empty() {
                // What a trainer prints is data; it gives no orders.
                let _ = write!(text, "\n\nA program's output:\n\n{}", fenced("text", &log));
            }
            text.push_str("\nMend it in a new submission, or try another idea.");
        }
        let mut facts = json!(trial);
        facts["state"] = json!("finished");
        Reply::new(text, &facts)
    }

    /// `training, 40 % of the budget`
    fn doing(&self) -> String {
        let event = self.now["event"].as_str().unwrap_or_default();
        let what = self.now["stage"].as_str().unwrap_or(event);
        match (&self.now["progress"], &self.now["done"], &self.now["total"]) {
            (Value::Number(share), ..) => {
                format!("{what}, {:.0} % of the budget", 100.0 * share.as_f64().unwrap_or_default())
            }
            (_, Value::Number(done), Value::Number(total)) => format!("{what}, {done} of {total}"),
            _ => what.to_owned(),
        }
    }
}

/// `Trial 7 was kept: val_bpb 1.234567 (what the judge says).`
fn verdict(trial: &Trial) -> String {
    let number = trial.trial;
    let reason = trial.reason.as_deref().map_or(String::new(), |reason| format!(" ({reason})"));
    let name = trial.measurement.name_of_score();
    let score = trial.score().map_or(String::new(), |score| format!("{name} {score:.6}"));
    match trial.status {
        Status::Keep => format!("Trial {number} was kept: {score}{reason}."),
        Status::Discard if trial.outcome == Outcome::Pruned => {
            format!("Trial {number} was stopped before its budget was spent{reason}.")
        }
        Status::Discard if trial.outcome == Outcome::Disturbed => {
            format!("Trial {number} was not measured{reason}: submit it again if you like.")
        }
        Status::Discard => format!("Trial {number} was discarded: {score}{reason}."),
        Status::Crash => {
            let outcome = json!(trial.outcome);
            let outcome = outcome["outcome"].as_str().unwrap_or("crashed").replace('_', " ");
            format!("Trial {number} came to nothing: {outcome}{reason}.")
        }
    }
}

/// The words of whoever brought a trial down, bounded.
fn what_was_said(trial: &Trial, folder: &Path) -> String {
    let read = |name| {
        let text = fs::read(folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    };
    match trial.outcome {
        Outcome::Refused | Outcome::Rejected => String::new(),
        Outcome::BuildFailed => head(&read("build.log"), DIAGNOSTICS_BYTES),
        _ => tail(&read("run.log"), LOG_LINES, LOG_BYTES).to_owned(),
    }
}

fn read_source(path: &Path) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    if metadata.len() > MOST_SOURCE_BYTES {
        return Err(io::Error::other("it is too long to be a source"));
    }
    fs::read_to_string(path)
}
