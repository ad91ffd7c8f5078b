//! A mean and how far it can be trusted: over repetitions, or within a single night.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::{
    f64::consts::{FRAC_2_PI, FRAC_PI_2},
    fmt,
};

/// A mean, with the interval that covers its true value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The mean over the repetitions.
    pub mean: f64,
    /// From and to. `None` where there is too little to tell.
    pub interval: Option<(f64, f64)>,
}

impl Estimate {
    /// Student's interval, for independent samples: repetitions under other seeds.
    pub(crate) fn over_repetitions(samples: &[f64], confidence: f64) -> Self {
        let mean = mean(samples);
        let freedom = samples.len().saturating_sub(1);
        let interval = (freedom > 0).then(|| {
            let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
            let error = (squares / freedom as f64 / samples.len() as f64).sqrt();
            let half = students_t(confidence, freedom) * error;
            (mean - half, mean + half)
        });
        Self { mean, interval }
    }

    /// A bootstrap's interval, for what the trials of one night added. It takes the trials for a
    /// sequence without a trend, neighbours alike, of which other stretches might as well have
    /// come. Gains are rare and come early, so that is true at best roughly.
    ///
    /// Percentiles over circular blocks (Politis & Romano 1992) of length n^(1/3) (Hall, Horowitz &
    /// Jing 1995).
    pub(super) fn within_a_night(steps: &[f64], confidence: f64) -> Self {
        let interval = (steps.len() > 1).then(|| {
            // Always the same draws: a report that is printed again says the same.
            let mut rng = ChaCha8Rng::seed_from_u64(0);
            let mut means: Vec<_> = (0..RESAMPLES).map(|_| resampled(steps, &mut rng)).collect();
            means.sort_by(f64::total_cmp);
            let tail = (RESAMPLES as f64 * (1.0 - confidence) / 2.0) as usize;
            (means[tail], means[RESAMPLES - 1 - tail])
        });
        Self { mean: mean(steps), interval }
    }

    /// Whether the interval leaves no doubt that the true value is above zero.
    pub fn is_positive(&self) -> bool {
        self.interval.is_some_and(|(low, _)| low > 0.0)
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:+.6}", self.mean)?;
        match self.interval {
            Some((low, high)) => write!(f, " ({low:+.6} to {high:+.6})"),
            None => Ok(()),
        }
    }
}

/// Enough for a tail of 2.5%, and for a few pairs' share of it.
const RESAMPLES: usize = 4000;

/// The mean of a night as long as `steps`, put together from blocks of it.
fn resampled(steps: &[f64], rng: &mut ChaCha8Rng) -> f64 {
    let block = (steps.len() as f64).cbrt().ceil() as usize;
    let mut sum = 0.0;
    let mut start = 0;
    for place in 0..steps.len() {
        if place % block == 0 {
            start = rng.random_range(0..steps.len());
        }
        sum += steps[(start + place % block) % steps.len()];
    }
    sum / steps.len() as f64
}

pub(super) fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// The t within which Student's distribution has this share of its mass, on either side of zero.
fn students_t(share: f64, freedom: usize) -> f64 {
    // Bisects the angle whose tangent is t / √freedom: it is bounded, where t is not.
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if mass_within(middle, freedom) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    (freedom as f64).sqrt() * low.tan()
}

/// The probability that Student's distribution is below `t`.
pub(crate) fn students_below(t: f64, freedom: usize) -> f64 {
    let mass = mass_within((t.abs() / (freedom as f64).sqrt()).atan(), freedom);
    (1.0 + mass.copysign(t)) / 2.0
}

/// The mass of Student's distribution within ±√freedom · tan(angle): finite sums (Abramowitz &
/// Stegun 1964, 26.7.3 for odd and 26.7.4 for even degrees of freedom).
fn mass_within(angle: f64, freedom: usize) -> f64 {
    let (sin, cos) = angle.sin_cos();
    let is_odd = freedom % 2 == 1;
    let mut term = if is_odd { cos } else { 1.0 };
    let mut sum = 0.0;
    for power in (freedom % 2..freedom - 1).step_by(2) {
        sum += term;
        term *= cos * cos * (power + 1) as f64 / (power + 2) as f64;
    }
    if is_odd { FRAC_2_PI * (angle + sin * sum) } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn students_t_is_as_in_the_tables() {
        // Abramowitz & Stegun, table 26.10.
        for (share, freedom, expected) in [
            (0.95, 1, 12.706),
            (0.95, 2, 4.303),
            (0.95, 3, 3.182),
            (0.95, 4, 2.776),
            (0.95, 5, 2.571),
            (0.95, 10, 2.228),
            (0.95, 30, 2.042),
            (0.95, 120, 1.980),
            (0.99, 1, 63.657),
            (0.99, 4, 4.604),
            (0.99, 9, 3.250),
            (0.9, 2, 2.920),
            (0.5, 7, 0.711),
        ] {
            let t = students_t(share, freedom);
            assert!((t - expected).abs() < 6e-4, "{share} {freedom}: {t} is not {expected}");
        }
    }

    #[test]
    fn the_interval_of_a_mean_is_students() {
        let estimate = Estimate::over_repetitions(&[1.0, 2.0, 3.0], 0.95);
        // 4.303 · 1 / √3
        let (low, high) = estimate.interval.unwrap();
        assert!((low + 0.4841).abs() < 1e-3 && (high - 4.4841).abs() < 1e-3, "{estimate}");
        assert_eq!(estimate.mean, 2.0);
        assert!(!estimate.is_positive());
        assert!(Estimate::over_repetitions(&[2.0, 2.125, 2.25], 0.95).is_positive());
    }

    #[test]
    fn one_sample_has_no_interval() {
        for estimate in
            [Estimate::over_repetitions(&[0.5], 0.95), Estimate::within_a_night(&[0.5], 0.95)]
        {
            assert_eq!(estimate, Estimate { mean: 0.5, interval: None });
            assert!(!estimate.is_positive());
            assert_eq!(estimate.to_string(), "+0.500000");
        }
    }

    #[test]
    fn samples_that_agree_leave_no_doubt() {
        let estimate = Estimate::over_repetitions(&[0.25; 3], 0.95);
        assert_eq!(estimate.interval, Some((0.25, 0.25)));
        assert!(estimate.is_positive());
        assert!(!Estimate::over_repetitions(&[0.0; 3], 0.95).is_positive());
    }

    #[test]
    fn the_bootstrap_covers_what_it_assumes() {
        // A long night without a trend: the truth is 0.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let covered = (0..200).filter(|_| {
            let steps: Vec<_> = (0..60).map(|_| rng.random_range(-1.0..1.0)).collect();
            let (low, high) = Estimate::within_a_night(&steps, 0.95).interval.unwrap();
            low <= 0.0 && 0.0 <= high
        });
        // Blocks of finite length make it a little short.
        let covered = covered.count();
        assert!((180..=196).contains(&covered), "{covered} of 200");
    }

    #[test]
    fn the_bootstrap_says_the_same_twice() {
        let steps = [0.0, 0.3, 0.0, -0.1, 0.0, 0.0, 0.2];
        let estimate = Estimate::within_a_night(&steps, 0.95);
        assert_eq!(estimate, Estimate::within_a_night(&steps, 0.95));
        let (low, high) = estimate.interval.unwrap();
        assert!(low < estimate.mean && estimate.mean < high, "{estimate}");
    }
}
