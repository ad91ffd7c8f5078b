//! How far one contender came in one night, trial by trial.

use crate::record::{Status, Trial};

/// A night's progress: what was gained on the baseline, after each trial.
///
/// It goes by the trials that were kept. A lucky measurement that its study did not believe is no
/// progress. One that it did believe is counted as it was measured, so every contender gains a
/// little from noise alone, and those that are alike gain alike.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progress {
    /// Trials beyond the baseline, and which of them were kept and crashed.
    pub trials: usize,
    pub kept: usize,
    pub crashed: usize,
    /// The score of the best trial.
    pub best: f64,
    /// After the first trial, the second, and so on; never empty.
    pub gains: Vec<f64>,
    /// Wall clock of the trials beyond the baseline, proposing included.
    pub hours: f64,
}

impl Progress {
    /// The progress in the first `rounds` trials beyond a baseline that costs `baseline`. A
    /// contender with fewer trials had nothing left to propose, and stands still.
    ///
    /// `None` without a baseline or a round.
    pub fn of(trials: &[Trial], rounds: usize, baseline: f64) -> Option<Self> {
        let (first, rest) = trials.split_first()?;
        let rest = &rest[..rest.len().min(rounds)];
        let mut best = first;
        let mut gain = 0.0;
        let mut gains = Vec::with_capacity(rounds);
        for trial in rest {
            if let Some(cost) = trial.cost()
                && trial.is_kept()
            {
                (best, gain) = (trial, baseline - cost);
            }
            gains.push(gain);
        }
        gains.resize(rounds, gain);
        let count = |status| rest.iter().filter(|trial| trial.status == status).count();
        let seconds: f64 = rest.iter().filter_map(|trial| trial.measurement.total_seconds).sum();
        (rounds > 0).then_some(Self {
            trials: rest.len(),
            kept: count(Status::Keep),
            crashed: count(Status::Crash),
            best: best.score()?,
            gains,
            hours: seconds / 3600.0,
        })
    }

    /// What the night came to.
    pub fn gain(&self) -> f64 {
        self.gains.last().copied().unwrap_or_default()
    }

    /// The gain that there was on average while the night went on: the area under the curve. Of two
    /// nights with the same end, the one that was there sooner has more of it.
    pub fn mean_gain(&self) -> f64 {
        self.gains.iter().sum::<f64>() / self.gains.len() as f64
    }

    pub fn gain_per_trial(&self) -> f64 {
        self.gain() / self.gains.len() as f64
    }

    /// `None` where nobody looked at the clock.
    pub fn gain_per_hour(&self) -> Option<f64> {
        (self.hours > 0.0).then(|| self.gain() / self.hours)
    }

    /// What each trial added.
    pub fn steps(&self) -> impl Iterator<Item = f64> {
        let before = std::iter::once(&0.0).chain(&self.gains);
        self.gains.iter().zip(before).map(|(after, before)| after - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Metric, made_up::trial};

    fn night() -> Vec<Trial> {
        let mut trials = vec![
            trial(0, Status::Keep, Some(1.0), "baseline"),
            trial(1, Status::Discard, Some(1.5), "worse"),
            trial(2, Status::Keep, Some(0.75), "better"),
            trial(3, Status::Crash, None, "broken"),
            // Lower, but a judge did not believe it.
            trial(4, Status::Discard, Some(0.5), "lucky"),
            trial(5, Status::Keep, Some(0.25), "best"),
        ];
        for trial in &mut trials {
            trial.measurement.total_seconds = Some(360.0);
        }
        trials
    }

    #[test]
    fn the_curve_follows_what_was_kept() {
        let progress = Progress::of(&night(), 5, 1.0).unwrap();
        assert_eq!(progress.gains, [0.0, 0.25, 0.25, 0.25, 0.75]);
        assert_eq!(progress.steps().collect::<Vec<_>>(), [0.0, 0.25, 0.0, 0.0, 0.5]);
        assert_eq!((progress.trials, progress.kept, progress.crashed), (5, 2, 1));
        assert_eq!((progress.best, progress.gain()), (0.25, 0.75));
        assert_eq!((progress.mean_gain(), progress.gain_per_trial()), (0.3, 0.15));
        assert_eq!(progress.gain_per_hour(), Some(1.5));
    }

    #[test]
    fn only_complete_rounds_count() {
        let progress = Progress::of(&night(), 2, 1.0).unwrap();
        assert_eq!(progress.gains, [0.0, 0.25]);
        assert_eq!(progress.best, 0.75);
        assert_eq!(Progress::of(&night(), 0, 1.0), None);
        assert_eq!(Progress::of(&[], 2, 1.0), None);
    }

    #[test]
    fn a_contender_with_nothing_left_stands_still() {
        let progress = Progress::of(&night()[..3], 4, 1.0).unwrap();
        assert_eq!(progress.gains, [0.0, 0.25, 0.25, 0.25]);
        assert_eq!(progress.trials, 2);
        let progress = Progress::of(&night()[..1], 2, 1.0).unwrap();
        assert_eq!(progress.gains, [0.0, 0.0]);
        assert_eq!(progress.gain_per_hour(), None);
    }

    #[test]
    fn the_baseline_gains_nothing_even_if_it_was_measured_below_its_mean() {
        let progress = Progress::of(&night(), 2, 1.125).unwrap();
        assert_eq!(progress.gains, [0.0, 0.375]);
    }

    #[test]
    fn more_of_a_metric_may_be_better() {
        let mut trials = night();
        for trial in &mut trials {
            let value = trial.measurement.val_bpb.take().map(|bpb| 10.0 - bpb);
            let metric = |value| Metric { name: "wins".into(), value, higher_is_better: true };
            trial.measurement.metric = value.map(metric);
        }
        let progress = Progress::of(&trials, 5, -9.0).unwrap();
        assert_eq!((progress.best, progress.gain()), (9.75, 0.75));
    }
}
