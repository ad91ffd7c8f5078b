//! A night that was run in full, raced afterwards over its recorded curves.

use super::{Forecast, PARTS, Race, is_spared};
use crate::{
    judge::Judge,
    record::{JudgeRule, Outcome, Status, Trial},
};

/// What the race would have made of a recorded night.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replay {
    /// Candidates that came in.
    pub candidates: usize,
    /// Those of them that would have been stopped, and why.
    pub stopped: Vec<(usize, Forecast)>,
    /// Those of them that were kept.
    pub kept: usize,
    /// Those that were kept and would have been stopped: what the race costs.
    pub lost: Vec<usize>,
    /// The night with its whole budgets, and with what would have been spent of them.
    pub full: Spent,
    /// With the race.
    pub raced: Spent,
}

/// What the trials of a night took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Budgets of training: whole ones, and parts.
    pub budgets: f64,
    /// Seconds in which nobody trained.
    pub other_seconds: f64,
}

impl Spent {
    /// What it would take in all, were a budget so long.
    pub fn seconds(&self, budget_seconds: f64) -> f64 {
        self.budgets * budget_seconds + self.other_seconds
    }
}

impl Replay {
    /// Races the candidates of a night that a judge of this rule decided, with this in place of
    /// [`HOPELESS`](super::HOPELESS).
    ///
    /// A candidate that was kept and would have been stopped counts as lost, and is kept all the same:
    /// the night that is on record went on from it.
    pub fn of(trials: &[Trial], rule: JudgeRule, hopeless: f64) -> Self {
        let mut replay = Self::default();
        let mut judge = Judge::new(rule);
        let mut ledger: Vec<Trial> = Vec::new();
        for trial in trials {
            let is_candidate = trial.trial > 0 && trial.repeats.is_none();
            let came_in = is_candidate && trial.outcome.is_measured();
            let foreseen = judge.bar(trial.seed, false).filter(|_| came_in).and_then(|bar| {
                let mut race = Race::new(&ledger, bar)?.hopeless_below(hopeless);
                race.look(&trial.measurement.loss_curve)
            });
            let foreseen = foreseen.filter(|_| !is_spared(trial.seed, trial.trial));
            replay.count(trial, came_in, foreseen);
            let mut trial = trial.clone();
            if foreseen.is_some() && !trial.is_kept() {
                trial.outcome = Outcome::Pruned;
                (trial.measurement.val_bpb, trial.measurement.metric) = (None, None);
            }
            judge.remember(&trial);
            ledger.push(trial);
        }
        replay
    }

    fn count(&mut self, trial: &Trial, came_in: bool, foreseen: Option<Forecast>) {
        let measured = &trial.measurement;
        let training = measured.training_seconds.unwrap_or_default();
        let exam = measured.eval_seconds.unwrap_or_default();
        let other = (measured.total_seconds.unwrap_or_default() - training).max(0.0);
        let share = measured.loss_curve.len() as f64 / PARTS as f64;
        self.full += Spent { budgets: share, other_seconds: other };
        self.raced += match foreseen {
            Some(foreseen) => {
                Spent { budgets: foreseen.progress, other_seconds: (other - exam).max(0.0) }
            }
            None => Spent { budgets: share, other_seconds: other },
        };
        if !came_in {
            return;
        }
        self.candidates += 1;
        self.stopped.extend(foreseen.map(|foreseen| (trial.trial, foreseen)));
        if trial.status == Status::Keep {
            self.kept += 1;
            self.lost.extend(foreseen.map(|_| trial.trial));
        }
    }
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.budgets += other.budgets;
        self.other_seconds += other.other_seconds;
    }
}
