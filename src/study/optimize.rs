//! The loop: ask, measure, tell, until it is enough.

use super::Study;
use crate::{
    error::Result,
    proposer::{Allowance, Proposal, Usage},
    record::Trial,
};
use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

/// What ends [`Study::optimize`]; whichever comes first. Without any of it, only the study itself does: stopped, or with
/// nothing left to try.
///
/// ```
/// # use overnight::Until;
/// # use std::time::Duration;
/// let until = Until::default().trials(100).elapsed(Duration::from_hours(8)).score(1.05);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Until {
    trials: Option<usize>,
    elapsed: Option<Duration>,
    time: Option<SystemTime>,
    score: Option<f64>,
    without_improvement: Option<usize>,
    spent: Option<Allowance>,
}

impl Until {
    /// So many proposals beyond those in the ledger; the baseline and control runs come on top.
    pub fn trials(mut self, trials: usize) -> Self {
        self.trials = Some(trials);
        self
    }

    /// So much time from the call on. The trial that is under way then comes to its end.
    pub fn elapsed(mut self, time: Duration) -> Self {
        self.elapsed = Some(time);
        self
    }

    /// This time of day, as at seven in the morning. The trial that is under way then comes to its end.
    pub fn time(mut self, time: SystemTime) -> Self {
        self.time = Some(time);
        self
    }

    /// A best trial with this score, or a better one.
    pub fn score(mut self, score: f64) -> Self {
        self.score = Some(score);
        self
    }

    /// So many proposals in a row of which none was kept.
    pub fn without_improvement(mut self, trials: usize) -> Self {
        self.without_improvement = Some(trials);
        self
    }

    /// So much spent on proposing, by all trials of this call together. The one that goes beyond it is carried out.
    pub fn spent(mut self, most: Allowance) -> Self {
        self.spent = Some(most);
        self
    }
}

/// So many proposals.
impl From<usize> for Until {
    fn from(trials: usize) -> Self {
        Self::default().trials(trials)
    }
}

/// So many proposals, or whatever else ends it.
impl From<Option<usize>> for Until {
    fn from(trials: Option<usize>) -> Self {
        Self { trials, ..Self::default() }
    }
}

/// How [`Study::optimize`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// As many trials as it was to make.
    Trials,
    /// The time is over.
    Time,
    /// The score is reached.
    Score,
    /// Nothing was kept for as long as that was to last.
    WithoutImprovement,
    /// The money or the tokens are spent.
    Spent,
    /// The study was stopped.
    Stopped,
    /// No proposer has anything left to try.
    Exhausted,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trials => "all trials were made",
            Self::Time => "the time is over",
            Self::Score => "the score is reached",
            Self::WithoutImprovement => "nothing was kept for too long",
            Self::Spent => "the allowance is spent",
            Self::Stopped => "stopped",
            Self::Exhausted => "nothing is left to try",
        })
    }
}

/// A loop that is under way.
struct Progress {
    until: Until,
    begun: Instant,
    trials: usize,
    since_improvement: usize,
    usage: Usage,
}

impl Progress {
    fn new(until: Until) -> Self {
        let usage = Usage::default();
        Self { until, begun: Instant::now(), trials: 0, since_improvement: 0, usage }
    }

    fn count(&mut self, trial: &Trial) {
        if trial.trial == 0 || trial.repeats.is_some() {
            return;
        }
        self.trials += 1;
        self.since_improvement = if trial.is_kept() { 0 } else { self.since_improvement + 1 };
        let measurement = &trial.measurement;
        self.usage += Usage { usd: measurement.propose_usd, tokens: measurement.propose_tokens };
    }

    /// What ends it now, if anything does.
    fn end(&self, best: Option<&Trial>) -> Option<Ended> {
        let Until { trials, elapsed, time, score, without_improvement, spent } = &self.until;
        let reached = |best: &Trial| {
            let (own, wanted) = (best.score()?, (*score)?);
            let is_higher_better = best.measurement.higher_is_better();
            Some(if is_higher_better { own >= wanted } else { own <= wanted })
        };
        if best.and_then(reached) == Some(true) {
            Some(Ended::Score)
        } else if trials.is_some_and(|most| self.trials >= most) {
            Some(Ended::Trials)
        } else if without_improvement.is_some_and(|most| self.since_improvement >= most) {
            Some(Ended::WithoutImprovement)
        } else if spent.is_some_and(|most| most.is_spent(self.usage)) {
            Some(Ended::Spent)
        } else if elapsed.is_some_and(|most| self.begun.elapsed() >= most)
            || time.is_some_and(|end| SystemTime::now() >= end)
        {
            Some(Ended::Time)
        } else {
            None
        }
    }
}

impl Study {
    /// Runs trial after trial until it is enough, and says why it was. `optimize(20)` tries twenty proposals beyond those
    /// that stand in the ledger, `optimize(None)` goes on until the study is stopped or no proposer has anything left.
    /// The baseline and the control runs that belong to it come before either.
    ///
    /// # Errors
    /// Only what keeps the study from going on. Whatever becomes of a trial is no error, except for
    /// the baseline: without it there is nothing to improve.
    pub fn optimize(&mut self, until: impl Into<Until>) -> Result<Ended> {
        let optimized = self.go_on(&mut Progress::new(until.into()));
        self.goes_on = false;
        let recalled = self.proposers.recall();
        let ended = optimized?;
        recalled.map(|()| ended)
    }

    fn go_on(&mut self, progress: &mut Progress) -> Result<Ended> {
        loop {
            let is_proposed = !self.is_control(self.next_number());
            if self.ledger.trials().len() > self.controls
                && let Some(ended) = progress.end(self.best_trial())
            {
                return Ok(ended);
            }
            let last = progress.until.trials.is_some_and(|most| progress.trials + 1 >= most);
            self.goes_on = !(last && is_proposed) && progress.until.trials != Some(0);
            match self.step()? {
                Some(trial) => progress.count(&trial),
                None if self.stop.is_stopped() => return Ok(Ended::Stopped),
                None => return Ok(Ended::Exhausted),
            }
        }
    }

    /// One trial from the proposal to the ledger: [`ask`](Self::ask), [`measure`](Self::measure),
    /// [`tell`](Self::tell). `None`: the study was stopped, or there is nothing left to try. Whether another step
    /// follows is not known here, so nobody thinks about one.
    ///
    /// # Errors
    /// As [`optimize`](Self::optimize).
    pub fn step(&mut self) -> Result<Option<Trial>> {
        let Some(mut asked) = self.ask()? else { return Ok(None) };
        match self.measure(&mut asked)? {
            Some(measured) => self.tell(asked, measured),
            None => Ok(None),
        }
    }

    /// Tries a proposal now, and says what became of it: for whoever brings proposals along. The baseline and the control
    /// runs come first, if they have not been made yet, and what was enqueued or begun before.
    ///
    /// `None`: the study was stopped.
    ///
    /// # Errors
    /// As [`optimize`](Self::optimize).
    pub fn evaluate(&mut self, proposal: Proposal) -> Result<Option<Trial>> {
        self.enqueue(proposal);
        loop {
            let is_last = self.queue.len() == 1;
            let number = self.next_number();
            let is_its_turn = is_last && self.begun.is_empty() && !self.is_control(number);
            let trial = self.step()?;
            if trial.is_none() {
                // It may still stand in line, at the end.
                self.queue.pop_back();
            }
            if trial.is_none() || is_its_turn {
                return Ok(trial);
            }
        }
    }
}
