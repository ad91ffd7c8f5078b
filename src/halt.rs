//! Why something goes no further: a trial that has ended, a study that is to stop or cannot go on.

use crate::{error::Error, record::Outcome};

/// Why a trial went no further.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It has come to its end: a fact for the ledger.
    Ended { outcome: Outcome, reason: String },
    /// The study was asked to stop; the trial never happened.
    Interrupted,
    /// The study cannot go on.
    Broken(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}
