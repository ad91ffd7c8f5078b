//! A recorded trial, measured again: to reproduce its figures, or to certify the night's gain.

use crate::{
    Error, Event, Measurement, Outcome, Result, Study,
    comparison::Estimate,
    hash::number_of_parts,
    laboratory::{Attempt, Halt, Source},
};
use std::fs;

/// What a recorded trial came to when it was measured again. It is not in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Rerun {
    pub outcome: Outcome,
    /// Why it came to nothing, if it did.
    pub reason: Option<String>,
    pub measurement: Measurement,
}

/// The night's gain, measured anew and without the luck that trials were kept by.
#[derive(Debug, Clone, PartialEq)]
pub struct Certificate {
    /// The trial that was compared with the baseline.
    pub best: usize,
    /// Seeds under which both were measured.
    pub pairs: usize,
    /// By how much the best is better than the baseline, with Student's interval of 95 % over the
    /// pairs.
    pub gain: Estimate,
}

impl Study {
    /// Measures the stored source of a trial again, under this seed. With the trial's own seed and a
    /// budget in steps, on one thread of a CPU, every bit of the score is the same.
    ///
    /// `None`: the study was stopped.
    ///
    /// # Errors
    /// The source is not there any more, or the study cannot go on.
    pub fn rerun(&mut self, trial: usize, seed: u64) -> Result<Option<Rerun>> {
        let path = self.folder_of(trial).join(self.name_of_source());
        let text = fs::read_to_string(&path).map_err(Error::io("read", path))?;
        let folder = self.dir.join("rerun");
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        self.workspace.write(&text)?;
        self.tell(Event::Building {
            trial,
            proposer: "rerun".to_owned(),
            description: format!("trial {trial} again"),
        });
        let mut attempt =
            Attempt { number: trial, seed, folder, measurement: Measurement::default() };
        let source = Source { text: &text, folder: self.workspace.folder() };
        let observers = &self.observers;
        let measured = self.laboratory.measure(&mut attempt, &source, &|event| {
            crate::builder::tell(observers, &event);
        });
        self.workspace.reset()?;
        let (outcome, reason) = match measured {
            Ok(()) => (Outcome::Measured, None),
            Err(Halt::Ended { outcome, reason }) => (outcome, Some(reason)),
            Err(Halt::Interrupted) => return Ok(None),
            Err(Halt::Broken(error)) => return Err(error),
        };
        // What it left, the log of a failure say, stays until the next one.
        Ok(Some(Rerun { outcome, reason, measurement: attempt.measurement }))
    }

    /// Measures baseline and best trial again, under `pairs` fresh seeds that both have in common.
    /// What the night claims is what its own measurements say; this is new evidence.
    ///
    /// `None`: nothing better than the baseline was kept, a rerun came to nothing, or the study was
    /// stopped.
    pub fn certify(&mut self, pairs: usize) -> Result<Option<Certificate>> {
        let best = self.best_trial().map_or(0, |trial| trial.trial);
        if best == 0 {
            return Ok(None);
        }
        let mut gains = Vec::with_capacity(pairs);
        for pair in 0..pairs {
            let (seed, number) = (self.config.seed.to_le_bytes(), pair.to_le_bytes());
            let seed = number_of_parts([b"certify".as_slice(), &seed, &number]);
            // In turn, so that a machine that grows slower favours nobody.
            let order = if pair.is_multiple_of(2) { [0, best] } else { [best, 0] };
            let mut costs = [None, None];
            for trial in order {
                let Some(rerun) = self.rerun(trial, seed)? else { return Ok(None) };
                costs[usize::from(trial != 0)] = rerun.measurement.cost();
            }
            let [Some(baseline), Some(best)] = costs else { return Ok(None) };
            gains.push(baseline - best);
        }
        let gain = Estimate::over_repetitions(&gains, 0.95);
        Ok(Some(Certificate { best, pairs, gain }))
    }
}
