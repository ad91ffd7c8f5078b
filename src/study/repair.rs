//! What comes to nothing goes back to its author, and is measured again.

use crate::{
    Error, Event, Measurement, Outcome, Result, Study,
    conditions::others_during,
    laboratory::{Attempt, Halt},
    proposer::Fault,
    source::identity,
    study::Origin,
    study::doubt::Doubt,
    study::tell,
};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// How often a trial is measured again because the machine did something else.
pub(crate) const MOST_DISTURBED: usize = 2;

/// The share of the processors that others may use on a quiet machine, and for how long on end, in seconds.
const QUIET: f64 = 0.1;
const QUIET_SECONDS: usize = 3;

/// Bytes of a failed trial's log that go back to its proposer.
const LOG_BYTES: usize = 16 << 10;

/// How a proposal ended, when nobody would or could mend it any more.
pub(crate) struct Ending {
    pub outcome: Outcome,
    pub reason: Option<String>,
    pub repairs: usize,
}

impl Study {
    /// Measures a source, and has it mended where it comes to nothing, up to the limit. `None`: the
    /// study was stopped.
    pub(crate) fn carry_out(
        &mut self,
        attempt: &mut Attempt,
        origin: &mut Origin,
    ) -> Result<Option<Ending>> {
        let mut repairs = 0;
        let (mut disturbed, mut is_doubted) = (0, false);
        loop {
            let (outcome, reason) = match self.measure(attempt, origin) {
                Ok(()) => {
                    let outcome = Outcome::Measured;
                    return Ok(Some(Ending { outcome, reason: None, repairs }));
                }
                Err(Halt::Ended { outcome, reason }) => (outcome, reason),
                Err(Halt::Interrupted) => return Ok(None),
                // No word of the source: what cargo keeps may be damaged.
                Err(Halt::Broken(error @ Error::Command { .. })) if !is_doubted => {
                    is_doubted = true;
                    match self.doubt()? {
                        Doubt::Mended => continue,
                        Doubt::Dispelled => return Err(error),
                        Doubt::Stopped => return Ok(None),
                    }
                }
                Err(Halt::Broken(error)) => return Err(error),
            };
            if outcome == Outcome::Disturbed && disturbed < MOST_DISTURBED {
                disturbed += 1;
                self.wait_for_quiet(attempt.number, &reason);
                // Without a baseline there is nothing to improve on; it stands for the machine as it is.
                attempt.takes_any_conditions =
                    disturbed == MOST_DISTURBED && matches!(origin, Origin::Baseline);
                attempt.measurement = Measurement::default();
                continue;
            }
            if !is_doubted
                && self.ledger.incumbent().is_some()
                && self.is_doubtful(&outcome, &reason)
            {
                is_doubted = true;
                match self.doubt()? {
                    Doubt::Dispelled => {}
                    Doubt::Mended => {
                        attempt.measurement = Measurement::default();
                        continue;
                    }
                    Doubt::Stopped => return Ok(None),
                }
            }
            if repairs < self.repairs && self.mend(attempt, origin, (&outcome, &reason))? {
                repairs += 1;
            } else if outcome == Outcome::Disturbed && !self.stop.is_stopped() {
                // It is no evidence of anything: not for the judge, nor the race, nor whoever proposes.
                attempt.forecast = None;
                attempt.measurement.loss_curve = Default::default();
                attempt.measurement.train_loss = None;
                return Ok(Some(Ending { outcome, reason: Some(reason), repairs }));
            } else if self.stop.is_stopped() {
                // It may have been stopped while it was being mended, and was never decided.
                return Ok(None);
            } else {
                return Ok(Some(Ending { outcome, reason: Some(reason), repairs }));
            }
        }
    }

    /// Waits until nobody else computes, for a while.
    pub(crate) fn wait_for_quiet(&self, trial: usize, reason: &str) {
        self.tell(Event::Disturbed { trial, reason: reason.to_owned() });
        let begun = Instant::now();
        let mut quiet = 0;
        while quiet < QUIET_SECONDS && begun.elapsed() < self.patience && !self.stop.is_stopped() {
            let others = others_during(Duration::from_secs(1).min(self.patience));
            quiet = if others.is_none_or(|share| share < QUIET) { quiet + 1 } else { 0 };
        }
    }

    /// Asks a proposal's author for another version of what came to nothing. The failed version's
    /// files move to a folder of their own in the trial's.
    fn mend(
        &mut self,
        attempt: &mut Attempt,
        origin: &mut Origin,
        (outcome, reason): (&Outcome, &str),
    ) -> Result<bool> {
        let Origin::Proposed(turn) = origin else { return Ok(false) };
        let fault = match outcome {
            Outcome::Refused => {
                let identity = identity(self.workspace.edited(), &turn.proposal.source);
                match self.tried.get(&identity) {
                    Some(&trial) => Fault::Repeats { trial },
                    None => Fault::Refused { reason: reason.to_owned() },
                }
            }
            Outcome::BuildFailed => {
                let log = fs::read_to_string(attempt.folder.join("build.log"));
                Fault::DoesNotCompile { diagnostics: log.unwrap_or_else(|_| reason.to_owned()) }
            }
            Outcome::LoadFailed
            | Outcome::Failed
            | Outcome::Panicked
            | Outcome::Exited { .. }
            | Outcome::Signalled { .. }
            | Outcome::OutOfSpace => {
                let log = fs::read(attempt.folder.join("run.log")).unwrap_or_default();
                let end = &log[log.len().saturating_sub(LOG_BYTES)..];
                let log = String::from_utf8_lossy(end).into_owned();
                Fault::Crashed { reason: reason.to_owned(), log }
            }
            // A trial that took all of its time, was too far behind or was caught in a lie has had
            // its chance.
            Outcome::Measured
            | Outcome::Pruned
            | Outcome::Disturbed
            | Outcome::TimedOut
            | Outcome::Overran
            | Outcome::Rejected => {
                return Ok(false);
            }
        };
        let dossier = self.dossier(attempt.number)?;
        self.tell(Event::Repairing {
            trial: attempt.number,
            proposer: turn.name.clone(),
            reason: reason.lines().next().unwrap_or_default().to_owned(),
        });
        // Its author may be thinking ahead.
        let roster = self.proposers.roster()?;
        let observers = &self.observers;
        let mended =
            roster.repair(&dossier.brief(), turn, &fault, &|event| tell(observers, &event));
        if !mended {
            return Ok(false);
        }
        set_aside(&attempt.folder, &self.name_of_source())?;
        attempt.measurement = Measurement::default();
        Ok(true)
    }
}

/// Moves what a failed version left in a trial's folder to `version-1`, `version-2`, ….
fn set_aside(folder: &Path, source: &str) -> Result<()> {
    let number = (1..).find(|n| !folder.join(format!("version-{n}")).exists()).unwrap_or(1);
    let aside = folder.join(format!("version-{number}"));
    fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
    for name in [source, "change.diff", "build.log", "run.log", "loss.jsonl"] {
        match fs::rename(folder.join(name), aside.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("move", folder.join(name))(error));
            }
            _ => {}
        }
    }
    Ok(())
}
