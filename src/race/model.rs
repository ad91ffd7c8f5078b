//! A line through the night's finished trials, and how far a new one may be off it.
//!
//! Weighted least squares with Student's predictive distribution (Gelman et al., *Bayesian Data
//! Analysis*, 3rd edition, sections 14.2 and 14.7, with the prior uniform in the logarithm of the
//! variance). Whoever is far behind is off the line by more than whoever is close: from where on, is not
//! known, so that several answers are believed as far as the points speak for each.

use crate::statistics::students_below;

/// How `y` goes with `x`: lines, each with its share of belief.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Model(Vec<(f64, Line)>);

/// A line, with an error that grows with the distance from `x = 0`.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    intercept: f64,
    slope: f64,
    /// Inverse of the normal matrix: [1,1], [1,x] and [x,x].
    inverse: [f64; 3],
    /// Of the error at `x = 0`.
    variance: f64,
    freedom: usize,
    /// The |x| at which the error's variance has doubled.
    scale: f64,
    /// The logarithm of the points' marginal likelihood, up to a constant.
    evidence: f64,
}

/// Fewer finished trials say nothing, however well they lie on a line.
const FEWEST: usize = 8;

/// The error's variance doubles at the median |x| or at so many times it: powers of two.
const SCALES: i32 = 8;

impl Model {
    /// Of these points; `None` where they do not determine a line.
    pub(super) fn fit(points: &[(f64, f64)]) -> Option<Self> {
        if points.len() < FEWEST {
            return None;
        }
        // A change without effect is no measure of how far apart the others are.
        let distances = points.iter().map(|(x, _)| x.abs()).filter(|&distance| distance > 0.0);
        let median = median(distances)?;
        let lines = (0..SCALES).filter_map(|power| Line::fit(points, median * 2f64.powi(power)));
        let mut lines: Vec<_> = lines.map(|line| (line.evidence, line)).collect();
        let most = lines.iter().map(|(evidence, _)| *evidence).reduce(f64::max)?;
        lines.iter_mut().for_each(|(share, _)| *share = (*share - most).exp());
        let total: f64 = lines.iter().map(|(share, _)| share).sum();
        lines.iter_mut().for_each(|(share, _)| *share /= total);
        Some(Self(lines))
    }

    /// By how much `y` rises with `x`.
    pub(super) fn slope(&self) -> f64 {
        self.0.iter().map(|(share, line)| share * line.slope).sum()
    }

    /// What to expect at `x`.
    pub(super) fn mean(&self, x: f64) -> f64 {
        self.0.iter().map(|(share, line)| share * line.mean(x)).sum()
    }

    /// The probability that `y` is below `bar` at `x`.
    pub(super) fn below(&self, bar: f64, x: f64) -> f64 {
        self.0.iter().map(|(share, line)| share * line.below(bar, x)).sum()
    }
}

impl Line {
    fn fit(points: &[(f64, f64)], scale: f64) -> Option<Self> {
        let weight = |x: f64| 1.0 / (1.0 + x.abs() / scale);
        let sum = |of: fn(f64, f64) -> f64| -> f64 {
            points.iter().map(|&(x, y)| weight(x) * of(x, y)).sum()
        };
        let (w, wx, wxx) = (sum(|_, _| 1.0), sum(|x, _| x), sum(|x, _| x * x));
        let (wy, wxy) = (sum(|_, y| y), sum(|x, y| x * y));
        let determinant = w * wxx - wx * wx;
        // Points all at one place, but for rounding.
        if determinant < 1e-9 * w * wxx {
            return None;
        }
        let inverse = [wxx / determinant, -wx / determinant, w / determinant];
        let intercept = inverse[0] * wy + inverse[1] * wxy;
        let slope = inverse[1] * wy + inverse[2] * wxy;
        let square = |&(x, y): &(f64, f64)| weight(x) * (y - intercept - slope * x).powi(2);
        let freedom = points.len() - 2;
        let variance = points.iter().map(square).sum::<f64>() / freedom as f64;
        let weights: f64 = points.iter().map(|&(x, _)| weight(x).ln()).sum();
        let evidence = (weights - determinant.ln() - freedom as f64 * variance.ln()) / 2.0;
        let line = Self { intercept, slope, inverse, variance, freedom, scale, evidence };
        // Points all on one line, or beyond all measure.
        (slope.is_finite() && evidence.is_finite()).then_some(line)
    }

    fn mean(&self, x: f64) -> f64 {
        self.intercept + self.slope * x
    }

    fn below(&self, bar: f64, x: f64) -> f64 {
        let own = 1.0 + x.abs() / self.scale;
        let [a, b, c] = self.inverse;
        let deviation = (self.variance * (own + a + 2.0 * b * x + c * x * x)).sqrt();
        students_below((bar - self.mean(x)) / deviation, self.freedom)
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<_> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Points on `y = 0.1 + x/2`, with errors of ±`error`.
    fn points(count: usize, error: f64) -> Vec<(f64, f64)> {
        (0..count)
            .map(|n| {
                let x = (n as f64 - 2.0) / 10.0;
                (x, 0.1 + x / 2.0 + if n % 2 == 0 { error } else { -error })
            })
            .collect()
    }

    #[test]
    fn a_line_is_found_among_errors() {
        let line = Model::fit(&points(40, 0.01)).unwrap();
        assert!(
            (line.slope() - 0.5).abs() < 0.02 && (line.mean(0.4) - 0.3).abs() < 0.01,
            "{line:?}"
        );
        assert!((line.below(line.mean(0.4), 0.4) - 0.5).abs() < 0.05);
        assert!(line.below(0.0, 0.4) < 1e-6 && line.below(0.6, 0.4) > 1.0 - 1e-6);
    }

    #[test]
    fn few_points_say_nothing_and_then_little() {
        assert_eq!(Model::fit(&points(FEWEST - 1, 0.01)), None);
        let chance = |count| Model::fit(&points(count, 0.03)).unwrap().below(0.0, 0.1);
        assert!(chance(8) > 2.0 * chance(80), "{} and {}", chance(8), chance(80));
    }

    #[test]
    fn points_at_one_place_determine_no_line() {
        assert_eq!(Model::fit(&[(0.2, 0.1); 20]), None);
        assert_eq!(Model::fit(&[(0.0, 0.1); 20]), None);
        assert_eq!(Model::fit(&[(f64::MAX, 0.1); 20]), None);
    }

    #[test]
    fn far_from_everything_seen_the_error_is_larger() {
        let line = Model::fit(&points(20, 0.02)).unwrap();
        let deviations = |x: f64| (0.1 + x / 2.0 - 0.05, x);
        let (near, far) = (deviations(0.2), deviations(3.0));
        assert!(line.below(near.0, near.1) < line.below(far.0, far.1));
    }
}
