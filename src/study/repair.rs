//! A trial that comes to nothing: sent back to its proposer, or measured again.

use super::{Asked, Study, ask::Origin, doubt::Doubt};
use crate::{
    conditions::others_during,
    error::{Error, Result},
    event::Event,
    halt::Halt,
    proposer::Fault,
    record::Outcome,
    source::identity,
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

/// What has been tried already to get a trial through.
#[derive(Default)]
struct Efforts {
    disturbed: usize,
    is_doubted: bool,
}

impl Study {
    /// Measures a trial, again where the machine disturbed it, and has its source repaired where it comes to nothing, up
    /// to the limit.
    pub(super) fn carry_out(&mut self, asked: &mut Asked) -> Result<(), Halt> {
        let mut efforts = Efforts::default();
        loop {
            match self.try_once(asked) {
                Err(Halt::Ended { outcome, reason }) => {
                    if !self.is_worth_another(asked, &mut efforts, (&outcome, &reason))? {
                        return Err(Halt::Ended { outcome, reason });
                    }
                }
                // No word of the source: what cargo keeps may be damaged.
                Err(Halt::Broken(error @ Error::Command { .. })) if !efforts.is_doubted => {
                    efforts.is_doubted = true;
                    if self.doubt()? == Doubt::Dispelled {
                        return Err(error.into());
                    }
                }
                measured => return measured,
            }
        }
    }

    /// Does what can be done about a trial that came to nothing; whether to measure it again.
    fn is_worth_another(
        &mut self,
        asked: &mut Asked,
        efforts: &mut Efforts,
        (outcome, reason): (&Outcome, &str),
    ) -> Result<bool, Halt> {
        let is_disturbed = *outcome == Outcome::Disturbed;
        if is_disturbed && efforts.disturbed < MOST_DISTURBED {
            efforts.disturbed += 1;
            self.wait_for_quiet(asked.trial(), reason);
            // Without a baseline there is nothing to improve on; it stands for the machine as it is.
            asked.attempt.takes_any_conditions =
                efforts.disturbed == MOST_DISTURBED && matches!(asked.origin, Origin::Baseline(_));
            return Ok(true);
        }
        if !efforts.is_doubted
            && self.ledger.incumbent().is_some()
            && self.is_doubtful(outcome, reason)
        {
            efforts.is_doubted = true;
            if self.doubt()? == Doubt::Mended {
                return Ok(true);
            }
        }
        if asked.repairs < self.repairs && self.repair(asked, (outcome, reason))? {
            asked.repairs += 1;
            return Ok(true);
        }
        if self.stop.is_stopped() {
            // It may have been stopped while it was being repaired, and was never decided.
            return Err(Halt::Interrupted);
        }
        if is_disturbed {
            // It is no evidence of anything: not for the judge, nor the race, nor whoever proposes.
            asked.attempt.forecast = None;
            asked.attempt.measurement.loss_curve = Default::default();
            asked.attempt.measurement.train_loss = None;
        }
        Ok(false)
    }

    /// Waits until nobody else computes, for a while.
    pub(crate) fn wait_for_quiet(&self, trial: usize, reason: &str) {
        self.tell_observers(Event::Disturbed { trial, reason: reason.to_owned() });
        let begun = Instant::now();
        let mut quiet = 0;
        while quiet < QUIET_SECONDS && begun.elapsed() < self.patience && !self.stop.is_stopped() {
            let others = others_during(Duration::from_secs(1).min(self.patience));
            quiet = if others.is_none_or(|share| share < QUIET) { quiet + 1 } else { 0 };
        }
    }

    /// Asks a proposal's author for another version of what came to nothing; whether there is one. The failed version's
    /// files move to a folder of their own in the trial's.
    fn repair(&mut self, asked: &mut Asked, (outcome, reason): (&Outcome, &str)) -> Result<bool> {
        let Asked { attempt, origin: Origin::Proposed(turn), .. } = asked else { return Ok(false) };
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
        self.tell_observers(Event::Repairing {
            trial: attempt.number,
            proposer: turn.name.clone(),
            reason: reason.lines().next().unwrap_or_default().to_owned(),
        });
        // Its author may be thinking ahead.
        let roster = self.proposers.roster()?;
        let observers = &self.observers;
        let repaired =
            roster.repair(&dossier.brief(), turn, &fault, &|event| observers.tell(event));
        if !repaired {
            return Ok(false);
        }
        set_aside(&attempt.folder, &self.name_of_source())?;
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
