//! Whoever writes the next source: the trait, and the proposers that we ship.

mod knobs;
mod replay;
mod spec;
mod tuner;

pub use replay::Replay;
pub use spec::ProposerSpec;
pub use tuner::Tuner;

use crate::Trial;
use std::path::Path;

/// Writes the source of the next trial.
///
/// A study calls [`propose`](Self::propose) once a trial and [`observe`](Self::observe) once for
/// every finished one, in order; on reopening it first replays `observe` from the ledger. So a
/// proposer keeps no file of its own: what it knows follows from what it observed.
pub trait Proposer: Send {
    /// A short name for the ledger, such as `tuner`.
    fn name(&self) -> &str;

    /// The next source to try.
    ///
    /// # Errors
    /// [`ProposeError::Exhausted`] ends the study well; [`ProposeError::Failed`] ends it with an
    /// error.
    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError>;

    /// Hears what became of a trial, whoever proposed it. `source` is what was tried.
    fn observe(&mut self, trial: &Trial, source: &str) {
        let _ = (trial, source);
    }
}

/// A closure is a proposer.
impl<F> Proposer for F
where
    F: FnMut(&Brief<'_>) -> Result<Proposal, ProposeError> + Send,
{
    fn name(&self) -> &str {
        "closure"
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        self(brief)
    }
}

impl Proposer for Box<dyn Proposer> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        (**self).propose(brief)
    }

    fn observe(&mut self, trial: &Trial, source: &str) {
        (**self).observe(trial, source);
    }
}

/// What a proposer is told.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Brief<'a> {
    /// The number of the trial to propose, from 1.
    pub trial: usize,
    /// Randomness for this proposal, derived from the study's seed and the trial's number.
    pub seed: u64,
    /// The best trial kept so far.
    pub incumbent: &'a Trial,
    /// The incumbent's source.
    pub source: &'a str,
    /// The human's instructions, the text of `program.md`.
    pub program: &'a str,
    /// Every finished trial, oldest first.
    pub history: &'a [Trial],
    /// A folder that holds the incumbent's source as `src/train.rs`, to be edited in place by
    /// those who edit files; it is laid anew for every proposal. Only what
    /// [`Proposal::source`] says counts.
    pub folder: &'a Path,
}

/// A source to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The whole text of `src/train.rs`.
    pub source: String,
    /// One line: what is tried.
    pub description: String,
}

/// Why there is no proposal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// There is nothing left to try.
    #[error("nothing is left to propose")]
    Exhausted,
    /// The proposer could not do its work.
    #[error("the proposer failed: {0}")]
    Failed(String),
}
