//! The race: a trial ends early when its loss so far makes a win improbable. Pure.
//!
//! Schedules run by the share of the budget that is spent, so a candidate's loss can be compared with
//! the incumbent's at the same share. How far a trial that was behind by so much then came in, the
//! night's own finished trials say; `docs/race.md` has the rule and what it brings. A reported loss
//! never speaks for a trial, so that a trainer which lies about it gains nothing but its own exam.

mod model;
pub mod replay;
pub mod simulation;

pub use crate::record::{Curve, Forecast, PARTS};

use crate::{hash::number_of_parts, record::Trial};
use model::Model;

/// A candidate is stopped that has less than this probability of being kept.
pub const HOPELESS: f64 = 0.05;

/// Nobody is stopped before so many parts of the budget are over: the first losses say little.
const FIRST_LOOK: usize = 2;

/// Nobody is stopped after so many: there is little left to save, and a trial that comes in teaches
/// the race and the judge.
const LAST_LOOK: usize = 16;

/// The loss of one batch is noisy; so many parts of the budget are taken together.
const PARTS_TOGETHER: usize = 2;

/// One in so many of those that would be stopped goes on to its end, so that what the race believes
/// of them is put to the test as long as it runs.
const SPARED: u64 = 20;

/// A kept trial.
#[derive(Debug, Clone)]
struct Rival {
    trial: usize,
    curve: Curve,
    cost: f64,
}

/// A candidate's race against what was kept.
#[derive(Debug, Clone)]
pub struct Race {
    /// Candidates that came in: their curve, their parent's, and how much more they cost.
    finished: Vec<(Curve, Curve, f64)>,
    /// What was kept: the baseline first, the incumbent last.
    kept: Vec<Rival>,
    /// The highest cost that would be kept.
    bar: f64,
    hopeless: f64,
    /// Whether the candidate goes on, whatever is foreseen.
    pub(crate) is_spared: bool,
    /// How much of the candidate's curve was looked at.
    seen: usize,
}

impl Race {
    /// A race of the next candidate after `trials`, which is kept at a cost of `bar` or less. `None`:
    /// there is nobody to race against.
    pub fn new(trials: &[Trial], bar: f64) -> Option<Self> {
        let curve = |trial: &Trial| trial.measurement.loss_curve.clone();
        // Only under one seed do two trials see the same text in the same order.
        let finished = trials.iter().filter(|trial| trial.repeats.is_none());
        let finished = finished.filter_map(|trial| {
            let parent = trials.get(trial.parent?)?;
            let change = trial.cost()? - parent.cost()?;
            (trial.seed == parent.seed).then(|| (curve(trial), curve(parent), change))
        });
        let finished = finished.filter(|(_, _, change)| change.is_finite()).collect();
        let kept = trials.iter().filter(|trial| trial.is_kept());
        let kept = kept
            .filter_map(|of| Some(Rival { trial: of.trial, curve: curve(of), cost: of.cost()? }));
        let kept: Vec<_> = kept.collect();
        (!kept.is_empty()).then_some(Self {
            finished,
            kept,
            bar,
            hopeless: HOPELESS,
            is_spared: false,
            seen: 0,
        })
    }

    /// Stops whoever has less than this probability of being kept. Default: [`HOPELESS`].
    #[must_use]
    pub fn hopeless_below(mut self, probability: f64) -> Self {
        self.hopeless = probability;
        self
    }

    /// Looks at what is new of a candidate's curve. `Some`: it may as well stop now.
    pub fn look(&mut self, curve: &Curve) -> Option<Forecast> {
        let new = self.seen..curve.len();
        self.seen = curve.len();
        new.filter_map(|part| self.forecast(curve, part))
            .find(|forecast| forecast.behind > 0.0 && forecast.win_probability < self.hopeless)
    }

    /// What can be foreseen once a part of the budget is over; `None` as long as too little is known.
    pub fn forecast(&self, curve: &Curve, part: usize) -> Option<Forecast> {
        if !(FIRST_LOOK..=LAST_LOOK).contains(&(part + 1)) {
            return None;
        }
        let came_in = self.finished.iter();
        let came_in: Vec<_> = came_in
            .filter_map(|(curve, parent, change)| Some((gap(curve, parent, part)?, *change)))
            .collect();
        let model = Model::fit(&came_in)?;
        // Where whoever was behind came in ahead, the loss is no guide at all.
        if model.slope() <= 0.0 {
            return None;
        }
        // An incumbent that reported less than it cost would make everybody look bad beside it. Beside
        // those before it, and the baseline in the end, they do not.
        let forecasts = self.kept.iter().filter_map(|rival| {
            let behind = gap(curve, &rival.curve, part)?;
            Some(Forecast {
                progress: (part + 1) as f64 / PARTS as f64,
                rival: rival.trial,
                behind,
                cost: rival.cost + model.mean(behind),
                win_probability: model.below(self.bar - rival.cost, behind),
            })
        });
        forecasts.max_by(|a, b| a.win_probability.total_cmp(&b.win_probability))
    }
}

/// Whether the race lets this trial go on, whatever it sees: drawn from the study's seed, so that a
/// night can be repeated.
pub(crate) fn is_spared(seed: u64, trial: usize) -> bool {
    let (seed, trial) = (seed.to_le_bytes(), (trial as u64).to_le_bytes());
    number_of_parts([b"spared".as_slice(), &seed, &trial]).is_multiple_of(SPARED)
}

/// By how much one curve was above another lately, where both are known.
fn gap(curve: &Curve, other: &Curve, part: usize) -> Option<f64> {
    let parts = (part + 1).saturating_sub(PARTS_TOGETHER)..=part;
    let differences: Vec<_> =
        parts.filter_map(|part| Some(curve.at(part)? - other.at(part)?)).collect();
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    // Of no differences, that is not a number.
    mean.is_finite().then_some(mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Status, made_up::trial};

    /// Nats of loss for a bit per byte of score.
    const NATS: f64 = 2.0;

    /// A curve that ends as a trial with this score does, give or take.
    fn curve(score: f64, off: f64) -> Curve {
        let loss = |part: usize| Some(NATS * score + 2.0 / (1.0 + part as f64) + off);
        Curve::new((0..PARTS).map(loss).collect::<Vec<_>>())
    }

    /// A baseline of 1.5, and so many candidates that came in behind it.
    fn night(candidates: usize) -> Vec<Trial> {
        let scores = (0..candidates).map(|n| 1.51 + 0.01 * (n % 5) as f64);
        let scores = std::iter::once(1.5).chain(scores);
        let recorded = |(number, score)| {
            let status = if number == 0 { Status::Keep } else { Status::Discard };
            let mut trial = trial(number, status, Some(score), "");
            trial.parent = (number > 0).then_some(0);
            trial.measurement.loss_curve = curve(score, 0.002 * (number % 3) as f64);
            trial
        };
        scores.enumerate().map(recorded).collect()
    }

    fn stops(trials: &[Trial], candidate: &Curve) -> Option<Forecast> {
        Race::new(trials, 1.5).unwrap().look(candidate)
    }

    #[test]
    fn a_race_begins_by_stopping_nothing() {
        let hopeless = curve(3.0, 0.0);
        assert_eq!(stops(&night(7), &hopeless), None);
        let forecast = stops(&night(20), &hopeless).unwrap();
        assert!(forecast.progress < 0.2 && forecast.cost > 2.0, "{forecast:?}");
        assert_eq!((forecast.rival, stops(&night(20), &curve(1.49, 0.0))), (0, None));
    }

    #[test]
    fn who_reports_nothing_or_no_number_is_not_raced() {
        for reported in [vec![None; PARTS], vec![Some(f64::NAN); PARTS], Vec::new()] {
            let nothing = Curve::new(reported);
            assert_eq!(stops(&night(20), &nothing), None);
            let mut trials = night(20);
            trials[0].measurement.loss_curve = nothing;
            assert_eq!(stops(&trials, &curve(3.0, 0.0)), None);
        }
    }

    #[test]
    fn whoever_reports_too_little_comes_in_and_stops_nobody_else() {
        let mut trials = night(20);
        assert_eq!(stops(&trials, &curve(3.0, -4.0)), None);
        // It was truly a little better, and its loss looks far better.
        let mut kept = trial(trials.len(), Status::Keep, Some(1.499), "");
        (kept.parent, kept.measurement.loss_curve) = (Some(0), curve(1.499, -2.5));
        trials.push(kept);
        assert_eq!(stops(&trials, &curve(1.49, 0.0)), None);
    }

    #[test]
    fn control_runs_and_stopped_trials_are_not_learned_from() {
        let mut trials = night(20);
        for trial in &mut trials[1..] {
            trial.repeats = Some(0);
        }
        assert_eq!(stops(&trials, &curve(3.0, 0.0)), None);
        let mut trials = night(20);
        for trial in &mut trials[1..] {
            trial.measurement.val_bpb = None;
        }
        assert_eq!(stops(&trials, &curve(3.0, 0.0)), None);
    }

    #[test]
    fn one_in_twenty_is_spared() {
        let spared = (0..10_000).filter(|&trial| is_spared(7, trial)).count();
        assert!((400..600).contains(&spared), "{spared}");
    }
}
