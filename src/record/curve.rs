//! A trial's reported loss by the share of its budget that was spent.

use serde::{Deserialize, Serialize};

/// A budget is looked at in this many equal parts.
pub const PARTS: usize = 20;

/// The mean of the losses that a trainer reported in each twentieth of its budget, in nats a token;
/// `None` where it reported nothing. As long as the part of the budget that was spent.
///
/// Under a budget in steps it follows from the reports alone, not from when anybody looked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curve(Vec<Option<f64>>);

/// A curve in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder {
    curve: Curve,
    sum: f64,
    count: u64,
}

/// In which part of the budget this share of it lies. A part has its end, and not its beginning.
pub(crate) fn part(progress: f64) -> usize {
    let end = (progress * PARTS as f64).ceil();
    (end as usize).clamp(1, PARTS) - 1
}

impl Curve {
    /// A curve of these means.
    pub fn new(means: impl Into<Vec<Option<f64>>>) -> Self {
        Self(means.into())
    }

    /// Whether there is nothing to see.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many parts of the budget it covers.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The mean loss in this part of the budget, counted from zero.
    pub fn at(&self, part: usize) -> Option<f64> {
        self.0.get(part).copied().flatten()
    }
}

impl Recorder {
    /// Takes `reports` losses of this mean, all from the part of the budget that `progress` is in.
    pub(crate) fn add(&mut self, progress: f64, reports: u64, mean: Option<f64>) {
        while self.curve.len() < part(progress) {
            self.close();
        }
        // A clock does not run backwards, and what came late belongs to the part that is open.
        if let Some(mean) = mean.filter(|mean| mean.is_finite()) {
            self.sum += mean * reports as f64;
            self.count += reports;
        }
    }

    /// The parts that are over.
    pub(crate) fn curve(&self) -> &Curve {
        &self.curve
    }

    /// All of it, the last part as far as it went.
    pub(crate) fn finish(mut self) -> Curve {
        if self.count > 0 {
            self.close();
        }
        self.curve
    }

    fn close(&mut self) {
        let mean = self.sum / self.count as f64;
        // As many digits as matter: the ledger is read by people, too.
        let mean = (mean * 1e6).round() / 1e6;
        self.curve.0.push(Some(mean).filter(|mean| self.count > 0 && mean.is_finite()));
        (self.sum, self.count) = (0.0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_its_end_and_not_its_beginning() {
        let parts = [0.0, 0.01, 0.05, 0.051, 0.1, 0.95, 0.96, 1.0, 1.5, f64::NAN].map(part);
        assert_eq!(parts, [0, 0, 0, 1, 1, 18, 19, 19, 19, 0]);
    }

    #[test]
    fn losses_are_averaged_by_part_and_gaps_stay_gaps() {
        let mut recorder = Recorder::default();
        recorder.add(0.01, 1, Some(4.0));
        recorder.add(0.05, 3, Some(2.0));
        assert!(recorder.curve().is_empty(), "the first part is not over yet");
        recorder.add(0.12, 1, Some(f64::NAN));
        recorder.add(0.16, 2, Some(1.0));
        assert_eq!(recorder.curve(), &Curve::new([Some(2.5), None, None]));
        assert_eq!(recorder.finish(), Curve::new([Some(2.5), None, None, Some(1.0)]));
    }

    #[test]
    fn a_trainer_that_reports_nothing_has_no_curve() {
        let mut recorder = Recorder::default();
        recorder.add(1.0, 0, None);
        assert!((0..PARTS).all(|part| recorder.curve().at(part).is_none()));
    }
}
