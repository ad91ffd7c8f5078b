//! What changes do to a source's true cost: a prior over effects, and how it is learned.
//!
//! A change helps, does nothing, or harms. How often each happens, and how much it does, is not
//! known: every combination on a grid is taken for possible, and believed as far as it foresaw the
//! trials so far.

use std::f64::consts::{LN_2, PI, SQRT_2};

/// The belief about what changes do, in units of the noise's standard deviation: so one prior suits
/// every objective.
#[derive(Debug, Clone)]
pub(super) struct Effects {
    worlds: Vec<World>,
}

/// One way in which changes may be distributed.
#[derive(Debug, Clone, Copy)]
struct World {
    /// The logarithms of how many changes help, do nothing, and harm.
    log_shares: [f64; 3],
    /// Indices into [`GAINS`] and [`HARMS`].
    gain: usize,
    harm: usize,
    /// The logarithm of the belief in it, up to a constant.
    log_belief: f64,
}

/// What is believed of a single change.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Effect {
    /// Of the change of the true cost; below zero is better.
    pub mean: f64,
    pub variance: f64,
    /// The probability that it helps.
    pub helps: f64,
}

/// Shares of changes that help.
const HELPS: [f64; 5] = [0.003, 0.03, 0.07, 0.15, 0.35];
/// Shares of the others that do nothing.
const NOTHINGS: [f64; 3] = [0.02, 0.3, 0.95];
/// Mean gains of those that help; gains are exponentially distributed.
const GAINS: [f64; 5] = [0.4, 0.8, 1.6, 3.2, 8.0];
/// Scales of those that harm, by the magnitude of a normal deviate.
const HARMS: [f64; 3] = [3.0, 9.0, 30.0];

impl Default for Effects {
    fn default() -> Self {
        let mut worlds = Vec::new();
        for helps in HELPS {
            for nothing in NOTHINGS {
                for gain in 0..GAINS.len() {
                    for harm in 0..HARMS.len() {
                        let rest = 1.0 - helps;
                        let shares = [helps, rest * nothing, rest * (1.0 - nothing)];
                        let log_shares = shares.map(f64::ln);
                        worlds.push(World { log_shares, gain, harm, log_belief: 0.0 });
                    }
                }
            }
        }
        Self { worlds }
    }
}

impl Effects {
    /// What to believe of a change that measured `y` above what the incumbent is believed to cost,
    /// where that difference is uncertain by `variance`. Learns from it, and says how well all
    /// worlds together foresaw it: the logarithm of its density.
    pub(super) fn learn(&mut self, y: f64, variance: f64) -> (Effect, f64) {
        self.normalise();
        let nothing = Kind::nothing(y, variance);
        let helps = GAINS.map(|gain| Kind::helps(y, variance, gain));
        let harms = HARMS.map(|scale| Kind::harms(y, variance, scale));
        let mut moments = Vec::with_capacity(self.worlds.len());
        for world in &mut self.worlds {
            let kinds = [helps[world.gain], nothing, harms[world.harm]];
            let logs: [f64; 3] =
                std::array::from_fn(|kind| world.log_shares[kind] + kinds[kind].log_density);
            let density = log_sum(logs);
            world.log_belief += density;
            let shares = logs.map(|log| (log - density).exp());
            let mean = |of: fn(&Kind) -> f64| -> f64 {
                shares.iter().zip(&kinds).map(|(share, kind)| share * of(kind)).sum()
            };
            moments.push([mean(|kind| kind.mean), mean(|kind| kind.square), shares[0]]);
        }
        let after = log_sum(self.worlds.iter().map(|world| world.log_belief));
        let mut sums = [0.0; 3];
        for (world, moments) in self.worlds.iter().zip(&moments) {
            let belief = (world.log_belief - after).exp();
            for (sum, moment) in sums.iter_mut().zip(moments) {
                *sum += belief * moment;
            }
        }
        let [mean, square, helps] = sums;
        // Rounding may lead a little beyond what is possible.
        let variance = (square - mean * mean).max(0.0);
        let effect = Effect { mean, variance, helps: helps.min(1.0) };
        (effect, after)
    }

    /// Makes the beliefs sum to one.
    fn normalise(&mut self) {
        let total = log_sum(self.worlds.iter().map(|world| world.log_belief));
        for world in &mut self.worlds {
            world.log_belief -= total;
        }
    }
}

/// One of the three kinds of change: how probable it makes a measurement, and the moments of the
/// change if it is of this kind.
#[derive(Debug, Clone, Copy)]
struct Kind {
    log_density: f64,
    mean: f64,
    square: f64,
}

impl Kind {
    fn nothing(y: f64, variance: f64) -> Self {
        Self { log_density: log_normal(y, variance), mean: 0.0, square: 0.0 }
    }

    /// `y = -e + noise` with exponential `e`: the exponentially modified normal distribution. Given
    /// `y`, the gain `e` is a normal deviate cut off below zero.
    fn helps(y: f64, variance: f64, gain: f64) -> Self {
        let rate = 1.0 / gain;
        let (sd, centre) = (variance.sqrt(), -y - rate * variance);
        let log_density = rate.ln() + rate * (y + rate * variance / 2.0) + log_cdf(centre / sd);
        let (mean, square) = cut_off_moments(centre, sd);
        Self { log_density, mean: -mean, square }
    }

    /// `y = d + noise` with half-normal `d`. Given `y`, so is `d`, around another centre.
    fn harms(y: f64, variance: f64, scale: f64) -> Self {
        let total = variance + scale * scale;
        let (sd, centre) = (scale * (variance / total).sqrt(), y * scale * scale / total);
        let log_density = LN_2 + log_normal(y, total) + log_cdf(centre / sd);
        let (mean, square) = cut_off_moments(centre, sd);
        Self { log_density, mean, square }
    }
}

/// First and second moment of a normal distribution that is cut off below zero (Johnson, Kotz &
/// Balakrishnan 1994, section 13.10.1).
fn cut_off_moments(centre: f64, sd: f64) -> (f64, f64) {
    let at = centre / sd;
    let ratio = (log_normal(at, 1.0) - log_cdf(at)).exp();
    let mean = (centre + sd * ratio).max(0.0);
    (mean, (sd * sd + centre * mean).max(0.0))
}

pub(super) fn log_normal(x: f64, variance: f64) -> f64 {
    -0.5 * (x * x / variance + (2.0 * PI * variance).ln())
}

/// `ln Φ(x)`, by its asymptotic series where Φ itself would vanish (Abramowitz & Stegun 26.2.12).
fn log_cdf(x: f64) -> f64 {
    if x > -20.0 {
        return (0.5 * libm::erfc(-x / SQRT_2)).ln();
    }
    let square = x.powi(-2);
    log_normal(x, 1.0) - (-x).ln() + (-square + 3.0 * square * square).ln_1p()
}

pub(super) fn log_sum(logs: impl IntoIterator<Item = f64, IntoIter: Clone>) -> f64 {
    let logs = logs.into_iter();
    let greatest = logs.clone().fold(f64::NEG_INFINITY, f64::max);
    greatest + logs.map(|log| (log - greatest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums a function of the change over its distribution, by brute force.
    fn integral(density: impl Fn(f64) -> f64, from: f64, to: f64) -> f64 {
        let steps = 200_000;
        let width = (to - from) / f64::from(steps);
        (0..steps).map(|step| density(from + (f64::from(step) + 0.5) * width) * width).sum()
    }

    #[test]
    fn the_kinds_agree_with_integrals_by_brute_force() {
        for (y, variance) in [(-3.0, 1.0), (0.3, 1.4), (2.0, 1.1), (-12.0, 1.0), (9.0, 2.0)] {
            let (gain, scale) = (1.6, 6.0);
            let noise = |d: f64| log_normal(y - d, variance).exp();
            let exponential = |d: f64| (d / gain).exp() / gain * noise(d);
            let half_normal = |d: f64| 2.0 * log_normal(d, scale * scale).exp() * noise(d);
            let check = |kind: Kind, density: &dyn Fn(f64) -> f64, from, to| {
                let total = integral(density, from, to);
                let mean = integral(|d| d * density(d), from, to) / total;
                let square = integral(|d| d * d * density(d), from, to) / total;
                for (found, expected) in
                    [(kind.log_density, total.ln()), (kind.mean, mean), (kind.square, square)]
                {
                    let error = (found - expected).abs() / expected.abs().max(1.0);
                    assert!(error < 1e-5, "{found} for {expected} at {y}, {variance}");
                }
            };
            check(Kind::helps(y, variance, gain), &exponential, -60.0, 0.0);
            check(Kind::harms(y, variance, scale), &half_normal, 0.0, 60.0);
        }
    }

    #[test]
    fn the_tail_of_the_normal_distribution_is_continuous() {
        assert!((log_cdf(-19.999_999) - log_cdf(-20.000_001)).abs() < 1e-4);
        assert!((log_cdf(0.0) - 0.5f64.ln()).abs() < 1e-12);
        assert!(log_cdf(-1e8).is_finite());
    }

    #[test]
    fn what_helps_often_is_believed_sooner() {
        // The same measurement, after nights in which much or nothing helped.
        let after = |measured: &[f64]| {
            let mut effects = Effects::default();
            for &y in measured {
                effects.learn(y, 1.0);
            }
            effects.learn(-1.0, 1.0).0.helps
        };
        let nothing: Vec<_> = (0..40).map(|n| f64::from(n % 9) / 4.0 - 1.0).collect();
        let much: Vec<_> = (0..40).map(|n| if n % 2 == 0 { -4.0 } else { 3.0 }).collect();
        assert!(after(&nothing) < after(&[]) && after(&[]) < after(&much));
    }

    #[test]
    fn no_measurement_breaks_the_belief() {
        let mut effects = Effects::default();
        for y in [0.0, 1e6, -1e6, 1e-9, -40.0, 700.0] {
            let (effect, log_density) = effects.learn(y, 1.0);
            assert!(effect.mean.is_finite() && effect.variance >= 0.0, "{effect:?} for {y}");
            assert!((0.0..=1.0).contains(&effect.helps) && log_density.is_finite(), "{y}");
        }
    }
}
