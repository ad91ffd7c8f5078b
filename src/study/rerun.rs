//! A recorded trial, measured again: to reproduce its figures, or to know more about it.

use super::{Study, measure::optional, repair::MOST_DISTURBED};
use crate::{
    error::{Error, Result},
    event::Event,
    foreign,
    halt::Halt,
    laboratory::Attempt,
    record::{Measurement, Outcome},
};
use std::fs;

/// What a recorded trial came to when it was measured again. It is not in the ledger.
#[derive(Debug, Clone, PartialEq)]
pub struct Rerun {
    /// How it ended.
    pub outcome: Outcome,
    /// Why it came to nothing, if it did.
    pub reason: Option<String>,
    /// What was measured.
    pub measurement: Measurement,
}

impl Study {
    /// Measures the stored source of a trial again, under this seed. With the trial's own seed and a
    /// budget in steps, on one thread of a CPU, every bit of the score is the same.
    ///
    /// `None`: the study was stopped.
    ///
    /// # Errors
    /// There is no such trial or its source is not there any more, or the study cannot go on.
    pub fn rerun(&mut self, trial: usize, seed: u64) -> Result<Option<Rerun>> {
        if trial >= self.trials().len() {
            return Err(Error::NoTrial { trial, trials: self.trials().len() });
        }
        let source = self.source_of(trial)?;
        self.tell_observers(Event::Building {
            trial,
            proposer: "rerun".to_owned(),
            description: format!("trial {trial} again"),
        });
        optional(self.measure_again(&source, seed))
    }

    /// Measures a source in a folder of its own, and leaves no trace of it in the record.
    pub(super) fn measure_again(&mut self, text: &str, seed: u64) -> Result<Rerun, Halt> {
        let folder = self.dir.join("rerun");
        foreign::remove(&folder).map_err(Error::io("remove", &folder))?;
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let mut attempt = Attempt::new(self.ledger.trials().len(), seed, folder);
        let mut disturbed = 0;
        let (outcome, reason) = loop {
            match self.run(&mut attempt, text, None) {
                Ok(()) => break (Outcome::Measured, None),
                Err(Halt::Ended { outcome: Outcome::Disturbed, reason }) => {
                    disturbed += 1;
                    self.wait_for_quiet(attempt.number, &reason);
                    // In the end it counts as it is: whoever asked has both sides of it measured here.
                    attempt.takes_any_conditions = disturbed == MOST_DISTURBED;
                    attempt.measurement = Measurement::default();
                }
                Err(Halt::Ended { outcome, reason }) => break (outcome, Some(reason)),
                Err(halt) => return Err(halt),
            }
        };
        // What it left, the log of a failure say, stays until the next one.
        Ok(Rerun { outcome, reason, measurement: attempt.measurement })
    }
}
