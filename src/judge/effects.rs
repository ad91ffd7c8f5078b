//! What changes do to a source's true cost: a prior over effects, and how it is learned.
//!
//! A change helps, does nothing, or harms. How often each happens, and how much it does, is not
//! known: every combination on a grid is taken for possible, and believed as far as it foresaw the
//! trials so far.

use serde::{Deserialize, Serialize};
use std::{
    f64::consts::{LN_2, PI, SQRT_2},
    ops::Range,
};

/// The belief about what changes do, in units of the noise's standard deviation: so one prior suits
/// every objective.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Effects {
    /// The belief in each combination of [`REDRAWN`], [`HELPS`], [`NOTHINGS`], [`HARMS`] and
    /// [`GAINS`], the last one fastest; all of them sum to one.
    beliefs: Vec<f64>,
}

/// What a measurement says in one of the two cases: that the change left the incumbent's luck as it
/// was, and that it did not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    /// How much more was measured than the incumbent can be expected to cost.
    pub y: f64,
    /// How uncertain that is, the noise included.
    pub variance: f64,
}

/// What is believed of a single change.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Effect {
    /// The probability of the case that it belongs to, after the measurement.
    pub share: f64,
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
const GAINS: [f64; 6] = [0.4, 0.8, 1.6, 3.2, 8.0, 30.0];
/// How far those that harm do, by the magnitude of a normal deviate: shares, and their scales. In the
/// last way, little and very much: where the noise is small, that much says nothing about it.
const HARMS: [&[(f64, f64)]; 4] =
    [&[(1.0, 3.0)], &[(1.0, 9.0)], &[(1.0, 30.0)], &[(0.6, 4.0), (0.2, 30.0), (0.2, 300.0)]];
/// Shares of changes that draw their luck anew, of those that are not seen to start elsewhere; and how
/// far each is believed at first.
const REDRAWN: [(f64, f64); 2] = [(0.01, 0.75), (0.35, 0.25)];
/// The same of those that start elsewhere than the incumbent: with other weights, or batches of
/// another shape. Weights that are only scaled differently may be as lucky as before.
const REDRAWN_ELSEWHERE: f64 = 0.9;

/// A world is believed in this much at least: what a night did not show, the next may.
const LEAST_BELIEF: f64 = 1e-100;

impl Default for Effects {
    fn default() -> Self {
        let worlds = HELPS.len() * NOTHINGS.len() * HARMS.len() * GAINS.len();
        let beliefs = REDRAWN.iter().flat_map(|(_, belief)| vec![belief / worlds as f64; worlds]);
        Self { beliefs: beliefs.collect() }
    }
}

impl Effects {
    /// What to believe of a change that was measured: an effect for each case. Learns from it, and
    /// says how well all worlds together foresaw it: the logarithm of its density. Of a change that
    /// `starts_elsewhere`, it is known how probable the second case is.
    pub(super) fn learn(&mut self, cases: [Case; 2], starts_elsewhere: bool) -> ([Effect; 2], f64) {
        let [shared, redrawn] = cases;
        let kinds = Kind::all(shared.y, shared.variance);
        // Where there is no luck, it cannot be drawn anew.
        let is_same = (shared.y, shared.variance) == (redrawn.y, redrawn.variance);
        let others = if is_same { kinds } else { Kind::all(redrawn.y, redrawn.variance) };
        let kinds = [kinds, others];
        // Relative to the greatest, so that none that matters vanishes.
        let logs = kinds.iter().flatten().map(|kind| kind.log_density);
        let greatest = logs.fold(f64::NEG_INFINITY, f64::max);
        let densities = kinds.map(|kinds| kinds.map(|kind| (kind.log_density - greatest).exp()));

        // For each case: the density, with it the moments, and the part of those that help.
        let mut sums = [[0.0; 4]; 2];
        let worlds_a_share = self.beliefs.len() / REDRAWN.len();
        let worlds = self.beliefs.chunks_exact_mut(worlds_a_share);
        for ((share, _), beliefs) in REDRAWN.into_iter().zip(worlds) {
            let redrawn = if starts_elsewhere { REDRAWN_ELSEWHERE } else { share };
            let cases = [1.0 - redrawn, redrawn];
            let either = std::array::from_fn(|kind| {
                cases[0] * densities[0][kind] + cases[1] * densities[1][kind]
            });
            let shares = weigh(beliefs, &either);
            for (case, sums) in sums.iter_mut().enumerate() {
                for (at, kind) in kinds[case].iter().enumerate() {
                    let part = cases[case] * shares[at] * densities[case][at];
                    let helps = if Kind::is_gain(at) { part } else { 0.0 };
                    let moments = [part, part * kind.mean, part * kind.square, helps];
                    sums.iter_mut().zip(moments).for_each(|(sum, moment)| *sum += moment);
                }
            }
        }
        let total: f64 = sums.iter().map(|sums| sums[0]).sum();
        let scale = 1.0 / total;
        for belief in &mut self.beliefs {
            *belief = (*belief * scale).max(LEAST_BELIEF);
        }
        let effects = sums.map(|[density, mean, square, helps]| {
            if density <= 0.0 {
                return Effect::default();
            }
            let (mean, square, helps) = (mean / density, square / density, helps / density);
            // Rounding may lead a little beyond what is possible.
            let variance = (square - mean * mean).max(0.0);
            Effect { share: density / total, mean, variance, helps: helps.min(1.0) }
        });
        (effects, total.ln() + greatest)
    }
}

/// Multiplies the belief in each world by the density that it gives a measurement, of which the
/// densities by kind are given. Returns how often each kind was expected before, over all worlds.
fn weigh(beliefs: &mut [f64], densities: &[f64; KINDS]) -> [f64; KINDS] {
    let mut expected = [0.0; KINDS];
    let (nothing, gains, harms) = (densities[0], &densities[GAINS_AT], &densities[HARMS_AT]);
    // Arrays of a known length, which the compiler computes side by side.
    let (worlds, _) = beliefs.as_chunks_mut::<{ GAINS.len() }>();
    let mut worlds = worlds.iter_mut();
    for helps in HELPS {
        let gains: [f64; GAINS.len()] = std::array::from_fn(|gain| helps * gains[gain]);
        let mut believed_by_gain = [0.0; GAINS.len()];
        for share_of_nothing in NOTHINGS {
            let share_of_nothing = (1.0 - helps) * share_of_nothing;
            let share_of_harm = 1.0 - helps - share_of_nothing;
            for (harm, density) in harms.iter().enumerate() {
                let Some(world) = worlds.next() else { break };
                let other = share_of_nothing * nothing + share_of_harm * density;
                let before = *world;
                for gain in 0..GAINS.len() {
                    believed_by_gain[gain] += before[gain];
                    world[gain] = before[gain] * (other + gains[gain]);
                }
                let believed: f64 = before.iter().sum();
                expected[0] += share_of_nothing * believed;
                expected[HARMS_AT.start + harm] += share_of_harm * believed;
            }
        }
        for (expected, believed) in expected[GAINS_AT].iter_mut().zip(believed_by_gain) {
            *expected += helps * believed;
        }
    }
    expected
}

/// One of the three kinds of change: how probable it makes a measurement, and the moments of the
/// change if it is of this kind.
#[derive(Debug, Clone, Copy)]
struct Kind {
    log_density: f64,
    mean: f64,
    square: f64,
}

/// Kinds of change that worlds are made of.
const KINDS: usize = 1 + GAINS.len() + HARMS.len();
/// Where gains and harms are among them.
const GAINS_AT: Range<usize> = 1..1 + GAINS.len();
const HARMS_AT: Range<usize> = GAINS_AT.end..KINDS;

impl Kind {
    /// Nothing, then all sizes of gain, then all of harm.
    fn all(y: f64, variance: f64) -> [Self; KINDS] {
        std::array::from_fn(|at| match at.checked_sub(1) {
            None => Self::nothing(y, variance),
            Some(gain) if gain < GAINS.len() => Self::helps(y, variance, GAINS[gain]),
            Some(harm) => Self::harms(y, variance, HARMS[harm - GAINS.len()]),
        })
    }

    /// Whether the kind at this place in [`Kind::all`] is a gain.
    fn is_gain(at: usize) -> bool {
        GAINS_AT.contains(&at)
    }

    fn nothing(y: f64, variance: f64) -> Self {
        Self { log_density: log_normal(y, variance), mean: 0.0, square: 0.0 }
    }

    /// `y = -e + noise` with exponential `e`: the exponentially modified normal distribution. Given
    /// `y`, the gain `e` is a normal deviate cut off below zero.
    fn helps(y: f64, variance: f64, gain: f64) -> Self {
        let rate = 1.0 / gain;
        let (sd, centre) = (variance.sqrt(), -y - rate * variance);
        let log_kept = log_cdf(centre / sd);
        let log_density = rate * (y + rate * variance / 2.0) - gain.ln() + log_kept;
        let (mean, square) = cut_off_moments(centre, sd, log_kept);
        Self { log_density, mean: -mean, square }
    }

    /// `y = d + noise` with `d` from a mixture of half-normal distributions.
    fn harms(y: f64, variance: f64, scales: &[(f64, f64)]) -> Self {
        if let [(_, scale)] = *scales {
            return Self::half_normal(y, variance, scale);
        }
        let parts = scales.iter().map(|&(share, scale)| {
            let part = Self::half_normal(y, variance, scale);
            Self { log_density: share.ln() + part.log_density, ..part }
        });
        let parts: Vec<_> = parts.collect();
        let log_density = log_sum(parts.iter().map(|part| part.log_density));
        let mean = |of: fn(&Self) -> f64| {
            parts.iter().map(|part| (part.log_density - log_density).exp() * of(part)).sum()
        };
        Self { log_density, mean: mean(|part| part.mean), square: mean(|part| part.square) }
    }

    /// `y = d + noise` with half-normal `d`. Given `y`, so is `d`, around another centre.
    fn half_normal(y: f64, variance: f64, scale: f64) -> Self {
        let total = variance + scale * scale;
        let (sd, centre) = (scale * (variance / total).sqrt(), y * scale * scale / total);
        let log_kept = log_cdf(centre / sd);
        let log_density = LN_2 + log_normal(y, total) + log_kept;
        let (mean, square) = cut_off_moments(centre, sd, log_kept);
        Self { log_density, mean, square }
    }
}

/// First and second moment of a normal distribution that is cut off below zero (Johnson, Kotz &
/// Balakrishnan 1994, section 13.10.1), of which a part with this logarithm is left.
fn cut_off_moments(centre: f64, sd: f64, log_kept: f64) -> (f64, f64) {
    let ratio = (log_normal(centre / sd, 1.0) - log_kept).exp();
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

    /// Both cases, where there is no luck.
    fn both(y: f64) -> [Case; 2] {
        [Case { y, variance: 1.0 }; 2]
    }

    /// Sums a function of the change over its distribution, by brute force.
    fn integral(density: impl Fn(f64) -> f64, from: f64, to: f64) -> f64 {
        let steps = 200_000;
        let width = (to - from) / f64::from(steps);
        (0..steps).map(|step| density(from + (f64::from(step) + 0.5) * width) * width).sum()
    }

    #[test]
    fn the_kinds_agree_with_integrals_by_brute_force() {
        for (y, variance) in [(-3.0, 1.0), (0.3, 1.4), (2.0, 1.1), (-12.0, 1.0), (9.0, 2.0)] {
            let (gain, scales) = (1.6, [(0.7, 6.0), (0.2, 2.0), (0.1, 9.0)]);
            let noise = |d: f64| log_normal(y - d, variance).exp();
            let exponential = |d: f64| (d / gain).exp() / gain * noise(d);
            let half_normal = |d: f64| {
                let parts =
                    scales.map(|(share, scale)| 2.0 * share * log_normal(d, scale * scale).exp());
                parts.iter().sum::<f64>() * noise(d)
            };
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
            check(Kind::harms(y, variance, &scales), &half_normal, 0.0, 60.0);
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
                effects.learn(both(y), false);
            }
            effects.learn(both(-1.0), false).0[0].helps
        };
        let nothing: Vec<_> = (0..40).map(|n| f64::from(n % 9) / 4.0 - 1.0).collect();
        let much: Vec<_> = (0..40).map(|n| if n % 2 == 0 { -4.0 } else { 3.0 }).collect();
        assert!(after(&nothing) < after(&[]) && after(&[]) < after(&much));
    }

    #[test]
    fn no_measurement_breaks_the_belief() {
        let mut effects = Effects::default();
        for y in [0.0, 1e6, -1e6, 1e-9, -40.0, 700.0] {
            let ([effect, _], log_density) = effects.learn(both(y), false);
            assert!(effect.mean.is_finite() && effect.variance >= 0.0, "{effect:?} for {y}");
            assert!((0.0..=1.0).contains(&effect.helps) && log_density.is_finite(), "{y}");
        }
    }

    #[test]
    fn the_case_that_foresaw_a_measurement_is_believed_and_how_often_is_learned() {
        let cases = |y: f64| [Case { y, variance: 1.0 }, Case { y, variance: 400.0 }];
        let redrawn = |effects: &Effects, y: f64| {
            let ([shared, redrawn], _) = effects.clone().learn(cases(y), false);
            assert!((shared.share + redrawn.share - 1.0).abs() < 1e-12);
            redrawn.share
        };
        let (mut seldom, mut often) = (Effects::default(), Effects::default());
        for n in 0..30 {
            seldom.learn(cases(0.3), false);
            often.learn(cases([25.0, -25.0, 0.3, 0.3][n % 4]), false);
        }
        assert!(redrawn(&seldom, 0.1) < 0.1 && redrawn(&often, 0.1) < 0.1);
        assert!(redrawn(&seldom, -25.0) < redrawn(&often, -25.0));
        assert!(redrawn(&often, -25.0) > 0.8);
    }
}
