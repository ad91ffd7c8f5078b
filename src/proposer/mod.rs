//! Whoever writes the next source: the trait, and the proposers that we ship.

#[cfg(feature = "agents")]
mod agent;
mod ahead;
mod brief;
#[cfg(feature = "chat")]
mod chat;
mod constants;
mod folder;
mod history;
mod knobs;
mod replay;
mod roster;
mod spec;
mod tuner;

#[cfg(feature = "agents")]
pub use agent::{Agent, AgentSpec};
pub(crate) use ahead::{Ahead, Thought};
pub(crate) use brief::Dossier;
pub use brief::{Advice, Brief, Running};
#[cfg(feature = "chat")]
pub use chat::{Chat, ChatOptions, Price, Protocol};
pub use replay::Replay;
pub(crate) use roster::{Roster, Turn};
pub use spec::{Allowance, ProposerSpec};
pub use tuner::Tuner;

use crate::record::Trial;

/// Writes the source of the next trial.
///
/// A study calls [`propose`](Self::propose) for a trial, [`repair`](Self::repair) where that came to
/// nothing, and [`observe`](Self::observe) once for every finished trial, in order; on reopening it
/// first replays `observe` from the ledger. So a proposer keeps no file of its own: what it knows
/// follows from what it observed.
pub trait Proposer: Send {
    /// A short name for the ledger, such as `tuner`.
    fn name(&self) -> &str;

    /// Whether it will be able to propose, asked once when a study opens: what is missing is better known before
    /// the baseline is measured than after. `baseline` is the text of the file `edited`.
    ///
    /// # Errors
    /// What would keep it from proposing at all.
    fn check(&self, edited: &str, baseline: &str) -> Result<(), ProposeError> {
        let _ = (edited, baseline);
        Ok(())
    }

    /// The next source to try.
    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError>;

    /// Another version of `proposal`, which came to nothing by `fault`: the same idea, repaired.
    /// `None` lets the trial stand as it is.
    fn repair(
        &mut self,
        brief: &Brief<'_>,
        proposal: &Proposal,
        fault: &Fault,
    ) -> Result<Option<Proposal>, ProposeError> {
        let _ = (brief, proposal, fault);
        Ok(None)
    }

    /// Hears what became of a trial, whoever proposed it. `source` is what was tried.
    fn observe(&mut self, trial: &Trial, source: &str) {
        let _ = (trial, source);
    }

    /// What was used up since this was last asked, whether or not it led to a proposal.
    fn take_usage(&mut self) -> Usage {
        Usage::default()
    }

    /// Whether a proposal takes so long that it is better begun while the trial before it trains, on
    /// a thread of its own: see [`Brief::running`]. That trial is observed afterwards. Where it is
    /// kept, what the proposal changes is carried over to its source; where that cannot be done,
    /// `propose` is called again. By default, `propose` is called when everything is known.
    fn thinks(&self) -> bool {
        false
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

    fn check(&self, edited: &str, baseline: &str) -> Result<(), ProposeError> {
        (**self).check(edited, baseline)
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        (**self).propose(brief)
    }

    fn repair(
        &mut self,
        brief: &Brief<'_>,
        proposal: &Proposal,
        fault: &Fault,
    ) -> Result<Option<Proposal>, ProposeError> {
        (**self).repair(brief, proposal, fault)
    }

    fn observe(&mut self, trial: &Trial, source: &str) {
        (**self).observe(trial, source);
    }

    fn take_usage(&mut self) -> Usage {
        (**self).take_usage()
    }

    fn thinks(&self) -> bool {
        (**self).thinks()
    }
}

/// A source to try.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Proposal {
    /// The whole text of the edited file.
    pub source: String,
    /// One line: what is tried.
    pub description: String,
    /// What the human should know of how it came about, a line each; they stand in the ledger.
    pub remarks: Vec<String>,
}

impl Proposal {
    /// A source and what it tries.
    pub fn new(source: impl Into<String>, description: impl Into<String>) -> Self {
        Self { source: source.into(), description: description.into(), remarks: Vec::new() }
    }
}

/// Why a proposal came to nothing, as its proposer hears of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each variant says what its fields are")]
pub enum Fault {
    /// But for formatting and comments, it is what this trial tried.
    Repeats { trial: usize },
    /// It was refused before it was built: it is too long, say.
    Refused { reason: String },
    /// The compiler refused it. `diagnostics` is what a terminal would have shown.
    DoesNotCompile { diagnostics: String },
    /// It failed while it ran: how, and the last lines of `run.log`.
    Crashed { reason: String, log: String },
}

/// What proposing has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// In US dollars; `None` where no price is known.
    pub usd: Option<f64>,
    /// Tokens read and written by a model, cached ones included; `None` where nobody counted.
    pub tokens: Option<u64>,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.usd = self.usd.map_or(more.usd, |usd| Some(usd + more.usd.unwrap_or(0.0)));
        self.tokens = match (self.tokens, more.tokens) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
    }
}

pub use crate::error::ProposeError;
