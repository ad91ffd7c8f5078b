//! What becomes of a trial that was carried out: judged, committed or not, recorded.

use super::{Asked, Study, ask::Origin, derived_seed, measure::optional, write};
use crate::{
    error::{Error, Result},
    event::Event,
    halt::Halt,
    hash::sha256,
    judge::{Candidate, Decision},
    laboratory::Attempt,
    proposer::Proposal,
    record::{
        CHECKPOINT, Evidence, Measurement, Metric, OUTCOME, Objective, Outcome, Repetition, Status,
        Trial, library_name,
    },
    source::{identity, length},
    study::recall,
    workspace::message,
};
use std::fs;

/// What carrying out a trial came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    pub(super) outcome: Outcome,
    pub(super) reason: Option<String>,
    pub(super) measurement: Measurement,
}

impl Measured {
    /// It was measured; `measurement` has a score.
    pub fn new(measurement: Measurement) -> Self {
        Self { outcome: Outcome::Measured, reason: None, measurement }
    }

    /// It came to nothing, for this reason. What was measured on the way may stand in the ledger all the same.
    ///
    /// [`Outcome::Measured`] is for those that have a score, and becomes [`Outcome::Failed`] here.
    pub fn failed(outcome: Outcome, reason: impl Into<String>) -> Self {
        let outcome = if outcome.is_measured() { Outcome::Failed } else { outcome };
        Self { outcome, reason: Some(reason.into()), measurement: Measurement::default() }
    }

    /// How it ended.
    pub fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    /// Why it came to nothing, if it did.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// What was measured.
    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }
}

/// The number that a command objective's trial came to, where the study does not run the command itself. Name and
/// direction are those of the objective.
impl From<Metric> for Measured {
    fn from(metric: Metric) -> Self {
        Self::new(Measurement { metric: Some(metric), ..Measurement::default() })
    }
}

/// Whether a measurement has a number of the kind that the study compares.
fn is_score_of(objective: &Objective, measurement: &Measurement) -> bool {
    let fits = match (objective, &measurement.metric) {
        (Objective::Trainer(_), None) => measurement.val_bpb.is_some(),
        (Objective::Command(objective), Some(metric)) => {
            measurement.val_bpb.is_none()
                && metric.name == objective.metric
                && metric.higher_is_better == objective.higher_is_better
        }
        _ => false,
    };
    fits && measurement.cost().is_some_and(f64::is_finite)
}

/// What becomes a line of the ledger, beside the measurement.
#[derive(Debug)]
pub(super) struct Entry {
    pub proposer: String,
    pub proposal: Proposal,
    pub parent: Option<usize>,
    pub repeats: Option<usize>,
    pub status: Status,
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub evidence: Option<Evidence>,
    pub repetitions: Vec<Repetition>,
    pub repairs: usize,
}

impl Entry {
    /// Of a trial that came to nothing, as long as nothing else is known.
    pub(super) fn new(proposer: impl Into<String>, proposal: Proposal) -> Self {
        Self {
            proposer: proposer.into(),
            proposal,
            parent: None,
            repeats: None,
            status: Status::Crash,
            outcome: Outcome::Measured,
            reason: None,
            evidence: None,
            repetitions: Vec::new(),
            repairs: 0,
        }
    }

    pub(super) fn decide(&mut self, status: Status, reason: String) {
        (self.status, self.reason) = (status, Some(reason));
    }
}

impl Study {
    /// Judges what a trial came to, commits it or not, records it, and tells the observers.
    ///
    /// `None`: the judge wanted both sides measured again, and the study was stopped meanwhile. The trial is taken up
    /// again when the study goes on.
    ///
    /// # Errors
    /// A score that is no number, the baseline came to nothing, or the study cannot go on.
    pub fn tell(&mut self, mut asked: Asked, measured: Measured) -> Result<Option<Trial>> {
        let Some(entry) = optional(self.settle(&mut asked, measured))? else {
            self.put_off(&asked);
            return Ok(None);
        };
        let trial = self.conclude(asked.attempt, entry)?;
        if self.ledger.trials().len().is_multiple_of(recall::EVERY) {
            recall::keep(&self.dir, self.config.judge, &self.judge, self.ledger.trials());
        }
        Ok(Some(trial))
    }

    /// What is to stand in the ledger.
    fn settle(&mut self, asked: &mut Asked, measured: Measured) -> Result<Entry, Halt> {
        let Measured { outcome, reason, measurement } = measured;
        asked.attempt.measurement = measurement;
        let is_score = || is_score_of(&self.config.objective, &asked.attempt.measurement);
        if outcome.is_measured() && !is_score() {
            return Err(Error::NoScore { trial: asked.trial() }.into());
        }
        let cost = asked.attempt.measurement.cost().filter(|_| outcome.is_measured());
        let mut entry = Entry::new(asked.proposer(), asked.proposal().clone());
        (entry.outcome, entry.reason, entry.repairs) = (outcome, reason, asked.repairs);
        (entry.parent, entry.repeats) = (asked.parent, asked.repeats());
        if asked.attempt.takes_any_conditions {
            let remark = "measured on a busy machine: trials are compared with it as it was";
            entry.proposal.remarks.push(remark.to_owned());
        }
        if let Origin::Proposed(turn) = &asked.origin {
            entry.proposal.remarks.extend_from_slice(&turn.remarks);
            let measurement = &mut asked.attempt.measurement;
            measurement.propose_seconds = Some(turn.took.as_secs_f64());
            measurement.propose_usd = turn.usage.usd;
            measurement.propose_tokens = turn.usage.tokens;
        }
        match (cost, &asked.origin) {
            (Some(cost), Origin::Control { .. }) => {
                self.judge.control(cost, asked.seed());
                entry.decide(Status::Discard, "a control run".to_owned());
            }
            (Some(cost), _) => {
                let decision = self.decide(cost, &mut asked.attempt, &mut entry)?;
                let status = if decision.keep { Status::Keep } else { Status::Discard };
                entry.decide(status, decision.reason);
                entry.evidence = decision.evidence;
            }
            (None, Origin::Baseline(_)) => {
                let reason = entry.reason.unwrap_or_default();
                let folder = asked.folder().to_owned();
                return Err(Error::Baseline { reason, folder }.into());
            }
            (None, _) if matches!(entry.outcome, Outcome::Pruned | Outcome::Disturbed) => {
                entry.status = Status::Discard;
            }
            (None, _) => {}
        }
        Ok(entry)
    }

    /// Asks the judge, and measures again where it wants to know more.
    fn decide(
        &mut self,
        cost: f64,
        attempt: &mut Attempt,
        entry: &mut Entry,
    ) -> Result<Decision, Halt> {
        match self.laboratory.examine_start(attempt) {
            Ok(()) | Err(Halt::Ended { .. }) => {}
            Err(halt) => return Err(halt),
        }
        let (seed, start) = (attempt.seed, attempt.measurement.start_sha256.as_deref());
        let mut differences = Vec::new();
        let is_shorter = self.is_shorter(&entry.proposal.source);
        loop {
            let candidate = Candidate { cost, seed, start, is_shorter, differences: &differences };
            if !self.judge.wants_another(&candidate) {
                return Ok(self.judge.decide(candidate));
            }
            let seed = derived_seed("repetition", self.config.seed, differences.len());
            let (incumbent, incumbents) = self.incumbent_under(seed)?;
            let again = self.measure_again(&entry.proposal.source, seed)?.measurement;
            let difference = match (again.score(), again.cost()) {
                (Some(score), Some(cost)) => {
                    entry.repetitions.push(Repetition { seed, score, incumbent });
                    incumbents - cost
                }
                // It does not work under every seed: that is no improvement.
                _ => f64::NEG_INFINITY,
            };
            differences.push(difference);
        }
    }

    /// Score and cost of the incumbent under a seed: as they were measured before, or now.
    fn incumbent_under(&mut self, seed: u64) -> Result<(f64, f64), Halt> {
        let Some(incumbent) = self.ledger.incumbent().cloned() else {
            return Ok((f64::INFINITY, f64::INFINITY));
        };
        let sign = if incumbent.measurement.higher_is_better() { -1.0 } else { 1.0 };
        let of = |trial: &Trial, own: bool| {
            let known = trial.repetitions.iter().find(|known| known.seed == seed)?;
            Some(if own { known.score } else { known.incumbent })
        };
        let mut since = self.ledger.trials().iter().rev();
        let since = since.by_ref().take_while(|trial| trial.trial != incumbent.trial);
        let known = of(&incumbent, true).or_else(|| since.into_iter().find_map(|t| of(t, false)));
        if let Some(score) = known {
            return Ok((score, sign * score));
        }
        let source = self.source_of(incumbent.trial)?;
        let again = self.measure_again(&source, seed)?;
        // An incumbent that does not work under this seed is no measure for anything.
        let score = again.measurement.score().unwrap_or(sign * f64::MAX);
        Ok((score, sign * score))
    }

    /// Commits or not, records, and tells everybody.
    pub(super) fn conclude(&mut self, mut attempt: Attempt, mut entry: Entry) -> Result<Trial> {
        let commit = match entry.status {
            Status::Keep => Some(self.commit(&mut attempt, &mut entry)?),
            Status::Discard | Status::Crash => {
                // Weights and library are kept with the trials that are kept.
                let _ = fs::remove_file(attempt.folder.join(CHECKPOINT));
                let _ = fs::remove_file(attempt.folder.join(library_name()));
                None
            }
        };
        let Attempt { number, seed, folder, mut measurement, forecast, begun, started, .. } =
            attempt;
        measurement.total_seconds = Some(begun.elapsed().as_secs_f64());
        let Proposal { source, description, remarks, .. } = entry.proposal;
        let trial = Trial {
            trial: number,
            parent: entry.parent,
            commit,
            proposer: entry.proposer,
            description,
            status: entry.status,
            outcome: entry.outcome,
            reason: entry.reason,
            measurement,
            seed,
            source_sha256: sha256(source.as_bytes()),
            program_sha256: Some(identity(self.workspace.edited(), &source)),
            started,
            repeats: entry.repeats,
            evidence: entry.evidence,
            forecast,
            repetitions: entry.repetitions,
            repairs: entry.repairs,
            remarks,
        };
        let json = serde_json::to_string_pretty(&trial).unwrap_or_default();
        write(&folder.join(OUTCOME), &json)?;
        let gain = self.gain(&trial);
        self.ledger.append(trial.clone())?;
        self.close(number, &folder);
        self.laboratory.remember(&trial);
        self.note(&trial, &source, gain);
        self.tell_observers(Event::Finished(Box::new(trial.clone())));
        Ok(trial)
    }

    /// Makes a source the incumbent: the branch's next commit.
    fn commit(&mut self, attempt: &mut Attempt, entry: &mut Entry) -> Result<String> {
        match self.laboratory.examine_kept(attempt) {
            Ok(remarks) => entry.proposal.remarks.extend(remarks),
            // It is decided, and may go without what would have been nice to know.
            Err(Halt::Ended { .. } | Halt::Interrupted) => {}
            Err(Halt::Broken(error)) => return Err(error),
        }
        let depends_on_seed = |measurement: &Measurement| measurement.depends_on_seed;
        let baseline = self.ledger.trials().first();
        if baseline.and_then(|trial| depends_on_seed(&trial.measurement)) == Some(true)
            && depends_on_seed(&attempt.measurement) == Some(false)
        {
            let remark = "it starts from the same weights under every seed";
            entry.proposal.remarks.push(remark.to_owned());
        }
        let Proposal { source, description, .. } = &entry.proposal;
        let message = message(attempt.number, description, &attempt.measurement, &entry.proposer);
        let placed = self.workspace.place(source)?;
        let commit = self.workspace.commit(&message)?;
        placed.stays();
        Ok(commit)
    }

    /// Whether a source has less to read than the incumbent's.
    pub(super) fn is_shorter(&self, source: &str) -> bool {
        let incumbent = self.ledger.incumbent().map(|trial| trial.trial);
        // A folder that somebody cleaned up says nothing about it.
        let Ok(before) = self.source_of(incumbent.unwrap_or_default()) else { return false };
        let name = self.workspace.edited();
        length(name, source) < length(name, &before)
    }
}
