//! What is believed of the incumbent: its true cost, its gain on the baseline, and the noise.
//!
//! A measurement of a source under a seed is its true cost θ, plus its *luck* under that seed (first
//! weights and order of the data suit it well or badly), plus noise. Candidates are measured under the
//! incumbent's seed, so that most changes share its luck, and only the noise blurs the difference. But
//! some draw their luck anew: another width needs other first weights, another batch another order of
//! the data; so does a source that tampers with its seed. Who starts from other weights or batches is
//! known to be most likely of that kind; of all others, how often they are is learned.
//!
//! So a candidate that measures `x` came about in one of two ways, `x = θ + luck + d + noise` or
//! `x = θ + fresh luck + d + noise`, and tells about all of it at once. For a given noise, the true
//! costs of incumbent and baseline and the lucks are jointly normal; what the change did, d, is
//! distributed as [`Effects`] says. Whether the candidate is kept or not, all beliefs are updated, by
//! matching moments. How large noise and luck are is unknown too, so that all of this is kept for
//! several sizes of them, each believed as far as it foresaw the measurements so far.

use super::{
    effects::{Case, Effect, Effects, log_normal, log_sum},
    normal::Normal,
};
use serde::{Deserialize, Serialize};

/// Everything that the measurements so far say about a study.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Belief {
    levels: Vec<Level>,
    /// The seeds that were measured under, in the order of their lucks in [`Level::state`].
    seeds: Vec<u64>,
}

/// What there is to believe if noise and luck have these standard deviations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Level {
    noise: f64,
    luck: f64,
    log_belief: f64,
    effects: Effects,
    /// Of the true costs of incumbent and baseline, and the incumbent's luck under each seed.
    state: Normal,
}

/// Places in [`Level::state`].
const INCUMBENT: usize = 0;
const BASELINE: usize = 1;
const LUCKS: usize = 2;

/// What a candidate's measurement says.
#[derive(Debug, Clone)]
pub(super) struct Assessment {
    cost: f64,
    /// The place of its seed's luck.
    luck: usize,
    /// By level: if it shares the incumbent's luck, and if it does not.
    effects: Vec<[Effect; 2]>,
    /// By how much the candidate is truly better, as far as one can expect.
    pub gain: f64,
    /// The probability that it is better at all.
    pub improves: f64,
    /// The standard deviation of the noise.
    pub noise: f64,
}

/// Before anything is measured, the noise is taken to be this share of the baseline's cost, give or
/// take a factor of four. For small changes to the template it was less than a thousandth
/// (`docs/judge.md`), and a budget of time adds what the machine does.
const NOISE_GUESS: f64 = 0.002;
const LOG_NOISE_DEVIATION: f64 = 1.4;

/// Levels of noise lie this factor apart, so many on either side of the guess.
const LEVEL_RATIO: f64 = 1.5;
const LEVELS_ASIDE: i32 = 7;

/// How many times greater luck may be than noise. Where there is no seed, there is none.
const LUCKS_TO_NOISE: [f64; 4] = [0.0, 1.5, 5.0, 16.0];

/// The noise moves to a neighbouring level this often, from one measurement to the next.
const NOISE_DRIFT: f64 = 0.02;

/// A control run finds the machine changed this often, by so many times the noise.
const SHIFT_PROBABILITY: f64 = 0.02;
const SHIFT: f64 = 10.0;

impl Belief {
    /// After a single measurement of the baseline under this seed.
    pub(super) fn new(cost: f64, seed: u64) -> Self {
        let guess = (NOISE_GUESS * cost.abs()).max(f64::MIN_POSITIVE.sqrt());
        let steps = -LEVELS_ASIDE..=LEVELS_ASIDE;
        let levels = steps.flat_map(|step| LUCKS_TO_NOISE.map(|ratio| (step, ratio)));
        let levels = levels.map(|(step, ratio)| {
            let noise = guess * LEVEL_RATIO.powi(step);
            let luck = ratio * noise;
            // Of its true cost no more is known than what luck and noise leave of the measurement.
            let (lucks, all) = (luck * luck, luck * luck + noise * noise);
            let covariance = [[all, all, -lucks], [all, all, -lucks], [-lucks, -lucks, lucks]];
            let state = Normal::new([cost, cost, 0.0], covariance);
            Level {
                noise,
                luck,
                log_belief: log_normal((noise / guess).ln(), LOG_NOISE_DEVIATION.powi(2)),
                effects: Effects::default(),
                state,
            }
        });
        let mut belief = Self { levels: levels.collect(), seeds: vec![seed] };
        belief.normalise();
        belief
    }

    /// The place of a seed's luck.
    fn place(&mut self, seed: u64) -> usize {
        let known = self.seeds.iter().position(|&known| known == seed);
        LUCKS
            + known.unwrap_or_else(|| {
                self.seeds.push(seed);
                for level in &mut self.levels {
                    level.state.push(level.luck * level.luck);
                }
                self.seeds.len() - 1
            })
    }

    /// The incumbent was measured again.
    pub(super) fn control(&mut self, cost: f64, seed: u64) {
        let luck = self.place(seed);
        for level in &mut self.levels {
            let noise = level.noise * level.noise;
            // Either the machine is what it was, or everything on it costs more or less now.
            let mut shifted = level.state.clone();
            let mut everything = vec![0.0; shifted.len()];
            everything[..LUCKS].fill(1.0);
            shifted.widen(&everything, SHIFT * SHIFT * noise);
            let cases =
                [(1.0 - SHIFT_PROBABILITY, level.state.clone()), (SHIFT_PROBABILITY, shifted)];
            let cases = cases.map(|(share, mut state): (f64, _)| {
                let (_, density) = state.learn(&[(INCUMBENT, 1.0), (luck, 1.0)], cost, noise);
                (share.ln() + density, state)
            });
            let density = log_sum(cases.each_ref().map(|(log, _)| *log));
            level.log_belief += density;
            level.state = Normal::mixed(cases.map(|(log, state)| ((log - density).exp(), state)));
        }
        self.normalise();
    }

    /// What a candidate's cost says about it, and by that about noise and luck and about all changes.
    pub(super) fn assess(&mut self, cost: f64, seed: u64, starts_elsewhere: bool) -> Assessment {
        let luck = self.place(seed);
        let (mut gain, mut improves) = (Vec::new(), Vec::new());
        let mut effects = Vec::with_capacity(self.levels.len());
        for level in &mut self.levels {
            let noise = level.noise;
            let case = |(mean, variance): (f64, f64), blur: f64| Case {
                y: (cost - mean) / noise,
                variance: (variance + blur) / (noise * noise),
            };
            let shared = level.state.sum(&[(INCUMBENT, 1.0), (luck, 1.0)]);
            let redrawn = level.state.sum(&[(INCUMBENT, 1.0)]);
            let cases =
                [case(shared, noise.powi(2)), case(redrawn, noise.powi(2) + level.luck.powi(2))];
            let (of_level, log_density) = level.effects.learn(cases, starts_elsewhere);
            level.log_belief += log_density - noise.ln();
            gain.push(of_level.iter().map(|e| -noise * e.share * e.mean).sum::<f64>());
            improves.push(of_level.iter().map(|effect| effect.share * effect.helps).sum::<f64>());
            effects.push(of_level);
        }
        self.normalise();
        let mean = |values: &[f64]| {
            let levels = self.levels.iter().zip(values);
            levels.map(|(level, value)| level.log_belief.exp() * value).sum()
        };
        let (gain, improves, noise) = (mean(&gain), mean(&improves), self.noise());
        Assessment { cost, luck, effects, gain, improves, noise }
    }

    /// The assessed candidate becomes the incumbent, or does not.
    pub(super) fn settle(&mut self, assessment: &Assessment, kept: bool) {
        for (level, effects) in self.levels.iter_mut().zip(&assessment.effects) {
            let [shared, redrawn] = effects;
            let cases = [(shared, false), (redrawn, true)];
            let cases = cases.map(|(effect, is_redrawn)| {
                (effect.share, level.after(assessment, effect, is_redrawn, kept))
            });
            level.state = Normal::mixed(cases);
        }
    }

    /// By how much the incumbent is truly better than the baseline: mean and standard deviation.
    pub(super) fn gain(&self) -> (f64, f64) {
        let (mut mean, mut square) = (0.0, 0.0);
        for level in &self.levels {
            let belief = level.log_belief.exp();
            let (gain, variance) = level.state.sum(&[(BASELINE, 1.0), (INCUMBENT, -1.0)]);
            mean += belief * gain;
            square += belief * (gain * gain + variance);
        }
        (mean, (square - mean * mean).max(0.0).sqrt())
    }

    /// The standard deviation of the noise, as far as is known.
    pub(super) fn noise(&self) -> f64 {
        self.levels.iter().map(|level| level.log_belief.exp() * level.noise).sum()
    }

    /// Makes the beliefs in the levels sum to one, and lets a little of each drift to its
    /// neighbours, of as much luck for their noise.
    fn normalise(&mut self) {
        let total = log_sum(self.levels.iter().map(|level| level.log_belief));
        let beliefs: Vec<f64> =
            self.levels.iter().map(|level| (level.log_belief - total).exp()).collect();
        for (at, level) in self.levels.iter_mut().enumerate() {
            let neighbours =
                [at.checked_sub(LUCKS_TO_NOISE.len()), Some(at + LUCKS_TO_NOISE.len())];
            let around: f64 =
                neighbours.into_iter().flatten().filter_map(|at| beliefs.get(at)).sum();
            level.log_belief =
                ((1.0 - NOISE_DRIFT) * beliefs[at] + NOISE_DRIFT / 2.0 * around).ln();
        }
    }
}

impl Level {
    /// What is believed of the costs after a candidate with this effect.
    fn after(
        &self,
        assessment: &Assessment,
        effect: &Effect,
        is_redrawn: bool,
        kept: bool,
    ) -> Normal {
        let (change, variance) = (effect.mean * self.noise, effect.variance * self.noise.powi(2));
        let lucks = self.luck * self.luck;
        let mut state = self.state.clone();
        let (mut terms, mut blur) = (vec![(INCUMBENT, 1.0)], self.noise * self.noise);
        if is_redrawn && !kept {
            // Its luck goes with it.
            blur += lucks;
        } else {
            terms.push((assessment.luck, 1.0));
        }
        if is_redrawn && kept {
            (LUCKS..state.len()).for_each(|luck| state.forget(luck, lucks));
        }
        // As if the change were known to be its mean,
        let (gain, _) = state.learn(&terms, assessment.cost - change, blur);
        // and then what its uncertainty adds: whatever the change did not do, all the rest did.
        let mut direction: Vec<f64> = gain.iter().map(|gain| -gain).collect();
        if kept {
            state.shift(INCUMBENT, change);
            direction[INCUMBENT] += 1.0;
        }
        state.widen(&direction, variance);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_again_tells_the_noise() {
        let noise = |costs: &[f64]| {
            let mut belief = Belief::new(1.0, 0);
            costs.iter().for_each(|&cost| belief.control(cost, 0));
            belief.noise()
        };
        let quiet = noise(&[1.0, 1.0001, 0.9999, 1.0, 1.0001]);
        let loud = noise(&[1.02, 0.98, 1.03, 0.99, 1.01]);
        assert!(quiet < 0.001 && (0.01..0.04).contains(&loud), "{quiet}, {loud}");
    }

    #[test]
    fn a_large_gain_is_believed_and_a_small_one_is_not() {
        let mut belief = Belief::new(1.0, 0);
        belief.control(1.005, 1);
        belief.control(0.995, 2);
        let small = belief.clone().assess(0.997, 0, false);
        let large = belief.assess(0.9, 0, false);
        assert!(small.improves < 0.5 && small.gain < 0.003, "{small:?}");
        assert!(large.improves > 0.95 && (0.08..0.105).contains(&large.gain), "{large:?}");
        belief.settle(&large, true);
        let (gain, deviation) = belief.gain();
        assert!((0.08..0.105).contains(&gain) && deviation < 0.03, "{gain}, {deviation}");
    }

    #[test]
    fn without_a_kept_change_nothing_is_claimed() {
        let mut belief = Belief::new(1.0, 0);
        for cost in [1.01, 0.999, 1.2, 1.005] {
            let assessment = belief.assess(cost, 0, false);
            belief.settle(&assessment, false);
        }
        belief.control(0.997, 0);
        assert!(belief.gain().0.abs() < 1e-12);
    }

    #[test]
    fn a_machine_that_became_slower_is_noticed_and_is_no_loss() {
        let mut belief = Belief::new(1.0, 0);
        (0..3).for_each(|n: u32| belief.control(1.0 + 0.001 * f64::from(n), n.into()));
        let kept = belief.assess(0.9, 0, false);
        belief.settle(&kept, true);
        let before = belief.gain().0;
        // From now on everything costs a tenth more.
        belief.control(1.0, 0);
        belief.control(1.001, 1);
        assert!((belief.gain().0 - before).abs() < 0.02, "{} from {before}", belief.gain().0);
        assert!(belief.assess(1.0, 0, false).gain < 0.01);
        assert!(belief.assess(0.9, 0, false).gain > 0.08);
    }

    /// What is believed after ten trials of a trainer whose luck is twenty times the noise.
    fn lucky() -> Belief {
        let mut belief = Belief::new(2.0, 0);
        belief.control(2.007, 1);
        belief.control(1.994, 2);
        for cost in [2.0004, 2.02, 1.9998, 2.0003, 2.08, 1.9997, 2.003, 2.0001, 2.0002, 2.4] {
            let assessment = belief.assess(cost, 0, false);
            belief.settle(&assessment, false);
        }
        belief
    }

    #[test]
    fn the_luck_of_a_seed_is_not_taken_for_noise() {
        let mut belief = lucky();
        assert!(belief.noise() < 0.001, "{}", belief.noise());
        // Five times the noise, and a quarter of the luck.
        let better = belief.clone().assess(1.9985, 0, false);
        assert!(better.gain > 0.0001, "{}", better.gain);
        // Another start may be luckier by as much.
        let elsewhere = belief.clone().assess(1.9985, 0, true);
        assert!(elsewhere.gain < better.gain / 2.0, "{} of {}", elsewhere.gain, better.gain);
        let worse = belief.assess(2.001, 0, false);
        assert!(worse.gain < 0.0, "{}", worse.gain);
    }

    #[test]
    fn a_gain_that_another_seed_does_not_confirm_was_luck() {
        let mut belief = lucky();
        let gained = belief.assess(1.99, 0, true);
        belief.settle(&gained, true);
        let claim = belief.gain();
        let after = |cost: f64| {
            let mut belief = belief.clone();
            belief.control(cost, 1);
            belief.gain()
        };
        // Under this seed the baseline cost 2.007.
        let (confirmed, refuted) = (after(1.997), after(2.007));
        assert!(refuted.0 < 0.6 * claim.0, "{refuted:?} after {claim:?}");
        assert!(confirmed.0 > claim.0 && confirmed.1 < claim.1, "{confirmed:?} after {claim:?}");
    }
}
