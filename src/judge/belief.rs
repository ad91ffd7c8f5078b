//! What is believed of the incumbent: its true cost, its gain on the baseline, and the noise.
//!
//! A candidate that measures `x` tells about three unknowns at once: the incumbent's true cost θ,
//! what the change did to it, d, and the noise, with `x = θ + d + noise`. For a given noise, θ and
//! the baseline's true cost are jointly normal; the change's distribution is [`Effects`]. Whether
//! the candidate is kept or not, both are updated, by matching moments. The noise itself is unknown
//! too, so that all of this is kept for several levels of it, each believed as far as it foresaw
//! the measurements so far.

use super::effects::{Effect, Effects, log_normal, log_sum};

/// Everything that the measurements so far say about a study.
#[derive(Debug, Clone)]
pub(super) struct Belief {
    levels: Vec<Level>,
}

/// What there is to believe if the noise has this standard deviation.
#[derive(Debug, Clone)]
struct Level {
    noise: f64,
    log_belief: f64,
    effects: Effects,
    state: State,
}

/// The true costs of incumbent and baseline, jointly normal.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    incumbent: f64,
    incumbent_variance: f64,
    baseline: f64,
    baseline_variance: f64,
    covariance: f64,
}

/// What a candidate's measurement says.
#[derive(Debug, Clone)]
pub(super) struct Assessment {
    cost: f64,
    effects: Vec<Effect>,
    /// By how much the candidate is truly better, as far as one can expect.
    pub gain: f64,
    /// The probability that it is better at all.
    pub improves: f64,
    /// The standard deviation of a measurement.
    pub noise: f64,
}

/// Before anything is measured twice, the noise is taken to be this share of the baseline's cost,
/// give or take a factor of three: so it was for five minutes of the template on a shared machine.
const NOISE_GUESS: f64 = 0.005;
const LOG_NOISE_DEVIATION: f64 = 1.1;

/// Levels of noise lie this factor apart, so many on either side of the guess.
const LEVEL_RATIO: f64 = 1.5;
const LEVELS_ASIDE: i32 = 6;

/// The noise moves to a neighbouring level this often, from one measurement to the next.
const NOISE_DRIFT: f64 = 0.02;

/// A control run finds the machine changed this often, by so many times the noise.
const SHIFT_PROBABILITY: f64 = 0.02;
const SHIFT: f64 = 10.0;

impl Belief {
    /// After a single measurement of the baseline.
    pub(super) fn new(cost: f64) -> Self {
        let guess = (NOISE_GUESS * cost.abs()).max(f64::MIN_POSITIVE.sqrt());
        let levels = (-LEVELS_ASIDE..=LEVELS_ASIDE).map(|step| {
            let noise = guess * LEVEL_RATIO.powi(step);
            let variance = noise * noise;
            Level {
                noise,
                log_belief: log_normal((noise / guess).ln(), LOG_NOISE_DEVIATION.powi(2)),
                effects: Effects::default(),
                state: State {
                    incumbent: cost,
                    incumbent_variance: variance,
                    baseline: cost,
                    baseline_variance: variance,
                    covariance: variance,
                },
            }
        });
        let mut belief = Self { levels: levels.collect() };
        belief.normalise();
        belief
    }

    /// The incumbent was measured again.
    pub(super) fn control(&mut self, cost: f64) {
        for level in &mut self.levels {
            let noise = level.noise * level.noise;
            // Either the machine is what it was, or everything on it costs more or less now.
            let shift = SHIFT * SHIFT * noise;
            let cases = [(1.0 - SHIFT_PROBABILITY, 0.0), (SHIFT_PROBABILITY, shift)].map(
                |(share, shift): (f64, f64)| {
                    let state = level.state.shifted(shift);
                    let total = state.incumbent_variance + noise;
                    let log_density = share.ln() + log_normal(cost - state.incumbent, total);
                    (log_density, state.given(cost, noise))
                },
            );
            let density = log_sum(cases.map(|(log, _)| log));
            level.log_belief += density;
            level.state = State::mixed(cases.map(|(log, state)| ((log - density).exp(), state)));
        }
        self.normalise();
    }

    /// What a candidate's cost says about it, and by that about the noise and about all changes.
    pub(super) fn assess(&mut self, cost: f64) -> Assessment {
        let effects: Vec<Effect> = self
            .levels
            .iter_mut()
            .map(|level| {
                let (noise, state) = (level.noise, &level.state);
                let y = (cost - state.incumbent) / noise;
                let uncertainty = state.incumbent_variance / (noise * noise) + 1.0;
                let (effect, log_density) = level.effects.learn(y, uncertainty);
                level.log_belief += log_density - noise.ln();
                effect
            })
            .collect();
        self.normalise();
        let mut assessment = Assessment { cost, effects, gain: 0.0, improves: 0.0, noise: 0.0 };
        for (level, effect) in self.levels.iter().zip(&assessment.effects) {
            let belief = level.log_belief.exp();
            assessment.gain -= belief * level.noise * effect.mean;
            assessment.improves += belief * effect.helps;
            assessment.noise += belief * level.noise;
        }
        assessment
    }

    /// The assessed candidate becomes the incumbent, or does not.
    pub(super) fn settle(&mut self, assessment: &Assessment, kept: bool) {
        for (level, effect) in self.levels.iter_mut().zip(&assessment.effects) {
            let noise = level.noise * level.noise;
            let (change, variance) = (effect.mean * level.noise, effect.variance * noise);
            let state = level.state;
            // As if the change were known to be its mean,
            let given = state.given(assessment.cost - change, noise);
            // and then what its uncertainty adds: whatever the change did not do, the costs did.
            let total = state.incumbent_variance + noise;
            let of_incumbent = -state.incumbent_variance / total;
            let of_baseline = -state.covariance / total;
            let (own, change) =
                if kept { (1.0 + of_incumbent, change) } else { (of_incumbent, 0.0) };
            level.state = State {
                incumbent: given.incumbent + change,
                incumbent_variance: given.incumbent_variance + own * own * variance,
                baseline: given.baseline,
                baseline_variance: given.baseline_variance + of_baseline * of_baseline * variance,
                covariance: given.covariance + own * of_baseline * variance,
            };
        }
    }

    /// By how much the incumbent is truly better than the baseline: mean and standard deviation.
    pub(super) fn gain(&self) -> (f64, f64) {
        let (mut mean, mut square) = (0.0, 0.0);
        for level in &self.levels {
            let (belief, state) = (level.log_belief.exp(), &level.state);
            let gain = state.baseline - state.incumbent;
            let variance =
                state.baseline_variance + state.incumbent_variance - 2.0 * state.covariance;
            mean += belief * gain;
            square += belief * (gain * gain + variance);
        }
        (mean, (square - mean * mean).max(0.0).sqrt())
    }

    /// The standard deviation of a measurement, as far as is known.
    pub(super) fn noise(&self) -> f64 {
        self.levels.iter().map(|level| level.log_belief.exp() * level.noise).sum()
    }

    /// Makes the beliefs in the levels sum to one, and lets a little of each drift to its
    /// neighbours.
    fn normalise(&mut self) {
        let total = log_sum(self.levels.iter().map(|level| level.log_belief));
        let beliefs: Vec<f64> =
            self.levels.iter().map(|level| (level.log_belief - total).exp()).collect();
        for (at, level) in self.levels.iter_mut().enumerate() {
            let neighbours = [at.checked_sub(1), Some(at + 1)];
            let around: f64 =
                neighbours.into_iter().flatten().filter_map(|at| beliefs.get(at)).sum();
            level.log_belief =
                ((1.0 - NOISE_DRIFT) * beliefs[at] + NOISE_DRIFT / 2.0 * around).ln();
        }
    }
}

impl State {
    /// Everything costs more or less than before by an unknown amount of this variance.
    fn shifted(self, variance: f64) -> Self {
        Self {
            incumbent_variance: self.incumbent_variance + variance,
            baseline_variance: self.baseline_variance + variance,
            covariance: self.covariance + variance,
            ..self
        }
    }

    /// After the incumbent was measured at `cost` under noise of this variance: conditional
    /// normal distributions.
    fn given(self, cost: f64, noise: f64) -> Self {
        let total = self.incumbent_variance + noise;
        let surprise = (cost - self.incumbent) / total;
        Self {
            incumbent: self.incumbent + self.incumbent_variance * surprise,
            incumbent_variance: self.incumbent_variance * noise / total,
            baseline: self.baseline + self.covariance * surprise,
            baseline_variance: self.baseline_variance - self.covariance.powi(2) / total,
            covariance: self.covariance * noise / total,
        }
    }

    /// The normal distribution with the moments of a mixture.
    fn mixed(cases: [(f64, Self); 2]) -> Self {
        let mean = |of: fn(&Self) -> f64| -> f64 {
            cases.iter().map(|(share, state)| share * of(state)).sum()
        };
        let (incumbent, baseline) = (mean(|state| state.incumbent), mean(|state| state.baseline));
        let mut mixed = Self { incumbent, baseline, ..Self::default() };
        for (share, state) in cases {
            let (i, b) = (state.incumbent - incumbent, state.baseline - baseline);
            mixed.incumbent_variance += share * (state.incumbent_variance + i * i);
            mixed.baseline_variance += share * (state.baseline_variance + b * b);
            mixed.covariance += share * (state.covariance + i * b);
        }
        mixed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_again_tells_the_noise() {
        let noise = |costs: &[f64]| {
            let mut belief = Belief::new(1.0);
            costs.iter().for_each(|&cost| belief.control(cost));
            belief.noise()
        };
        let quiet = noise(&[1.0, 1.0001, 0.9999, 1.0, 1.0001]);
        let loud = noise(&[1.02, 0.98, 1.03, 0.99, 1.01]);
        assert!(quiet < 0.001 && (0.01..0.04).contains(&loud), "{quiet}, {loud}");
    }

    #[test]
    fn a_large_gain_is_believed_and_a_small_one_is_not() {
        let mut belief = Belief::new(1.0);
        belief.control(1.005);
        belief.control(0.995);
        let small = belief.clone().assess(0.997);
        let large = belief.assess(0.9);
        assert!(small.improves < 0.5 && small.gain < 0.003, "{small:?}");
        assert!(large.improves > 0.95 && (0.08..0.105).contains(&large.gain), "{large:?}");
        belief.settle(&large, true);
        let (gain, deviation) = belief.gain();
        assert!((0.08..0.105).contains(&gain) && deviation < 0.03, "{gain}, {deviation}");
    }

    #[test]
    fn without_a_kept_change_nothing_is_claimed() {
        let mut belief = Belief::new(1.0);
        for cost in [1.01, 0.999, 1.2, 1.005] {
            let assessment = belief.assess(cost);
            belief.settle(&assessment, false);
        }
        belief.control(0.997);
        assert!(belief.gain().0.abs() < 1e-12);
    }

    #[test]
    fn a_machine_that_became_slower_is_noticed_and_is_no_loss() {
        let mut belief = Belief::new(1.0);
        (0..3).for_each(|n| belief.control(1.0 + 0.001 * f64::from(n)));
        let kept = belief.assess(0.9);
        belief.settle(&kept, true);
        let before = belief.gain().0;
        // From now on everything costs a tenth more.
        belief.control(1.0);
        belief.control(1.001);
        assert!((belief.gain().0 - before).abs() < 0.02, "{} from {before}", belief.gain().0);
        assert!(belief.assess(1.0).gain < 0.01);
        assert!(belief.assess(0.9).gain > 0.08);
    }
}
