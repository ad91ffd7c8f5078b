//! The proposer whose proposals somebody else hands in.

use crate::{
    error::ProposeError,
    proposer::{Brief, Proposal, Proposer},
    record::Trial,
    source::in_the_form_of,
    stop::StopHandle,
};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use std::{path::PathBuf, time::Duration};

/// How soon a waiting study notices that it was stopped.
const GLANCE: Duration = Duration::from_millis(100);

/// Waits for a submission whenever the study asks, and notes what the study tells.
pub(super) struct Submissions {
    submissions: Receiver<Proposal>,
    notes: Sender<Note>,
}

/// What the study told its proposer.
pub(super) enum Note {
    /// It waits for a source.
    Asked(Told),
    /// It has one, for this trial.
    Taken(usize),
    /// A trial is over.
    Finished(Box<Trial>),
}

/// What stays of a brief when the trial has begun.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// The number of the trial to propose.
    pub trial: usize,
    /// The study's folder.
    pub study: PathBuf,
    /// What a trial's source is called in its folder.
    pub source: String,
    /// Every finished trial.
    pub trials: Vec<Trial>,
    /// The same as Markdown.
    pub history: String,
    /// The human's instructions, and what a source may call.
    pub rules: String,
}

impl Told {
    fn new(brief: &Brief<'_>) -> Self {
        let mut rules = brief.program.to_owned();
        for (name, text) in brief.references {
            rules.push_str(&format!("\n\n---\n\nWhat the source may call, {name}:\n\n{text}"));
        }
        Self {
            trial: brief.trial,
            study: brief.study.to_owned(),
            source: brief.name_of_source("source"),
            trials: brief.history.to_vec(),
            history: brief.history_text(),
            rules,
        }
    }

    pub(super) fn folder_of(&self, trial: usize) -> PathBuf {
        crate::record::folder_of(&self.study, trial)
    }
}

/// A proposer, where to hand in what it proposes, and where its notes come out.
pub(super) fn channel() -> (Submissions, Sender<Proposal>, Receiver<Note>) {
    let (handing_in, submissions) = unbounded();
    let (notes, noted) = unbounded();
    (Submissions { submissions, notes }, handing_in, noted)
}

impl Submissions {
    /// The next submission, for the trial that `told` tells of.
    pub(super) fn wait(&self, told: Told, stop: &StopHandle) -> Result<Proposal, ProposeError> {
        let trial = told.trial;
        self.note(Note::Asked(told));
        loop {
            if stop.is_stopped() {
                return Err(ProposeError::Interrupted);
            }
            match self.submissions.recv_timeout(GLANCE) {
                Ok(proposal) => {
                    self.note(Note::Taken(trial));
                    return Ok(proposal);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(ProposeError::Exhausted),
            }
        }
    }

    fn note(&self, note: Note) {
        // A server that went away is noticed where submissions come from.
        let _ = self.notes.send(note);
    }
}

impl Proposer for Submissions {
    fn name(&self) -> &str {
        "mcp"
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        let mut proposal = self.wait(Told::new(brief), brief.stop)?;
        proposal.source = in_the_form_of(brief.source, &proposal.source);
        Ok(proposal)
    }

    fn observe(&mut self, trial: &Trial, _source: &str) {
        self.note(Note::Finished(Box::new(trial.clone())));
    }
}
