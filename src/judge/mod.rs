//! From measurements to a decision: pure.
//!
//! A measurement is noisy, and a hundred of them a night hold some that look good by luck alone.
//! Keeping whatever measured better, as autoresearch does, keeps those too, and then believes in a
//! best that is not as good as it looked. The [`Judge`] here asks instead what a measurement says
//! about the true cost, given how much measurements differ and what changes have done so far. Its
//! rule, and how it fares against the greedy one, are in `docs/judge.md`; [`simulation`] is where
//! those figures come from.

mod belief;
mod effects;
mod normal;
mod significant;
pub mod simulation;

use crate::record::Trial;
pub use crate::record::{Evidence, JudgeRule};
use belief::Belief;
use serde::{Deserialize, Serialize};
use significant::{Verdict, verdict};

/// What the judge says of a measured candidate.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Whether the candidate becomes the incumbent.
    pub keep: bool,
    /// For the ledger.
    pub reason: String,
    /// `None` for the baseline.
    pub evidence: Option<Evidence>,
}

/// By how much a study's best is truly better than its baseline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Claim {
    /// What can be expected, in the unit of the cost.
    pub gain: f64,
    /// The standard deviation of what is believed of it.
    pub deviation: f64,
}

impl Claim {
    /// The range that holds the true gain with a probability of 95 %.
    pub fn interval(&self) -> (f64, f64) {
        (self.gain - 1.96 * self.deviation, self.gain + 1.96 * self.deviation)
    }
}

/// Decides, and remembers what it saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judge {
    rule: JudgeRule,
    /// `None` before the baseline is measured.
    belief: Option<Belief>,
    /// The incumbent's cost as it was measured.
    incumbent: f64,
    /// What the incumbent's training starts from.
    start: Option<String>,
    /// Whether any program was measured twice.
    has_controls: bool,
}

/// A change has to be expected to gain this share of the noise: less is not worth a line of code.
const WORTHWHILE: f64 = 0.1;

/// A shorter source may be expected to lose this share of the noise.
const PRICE_OF_LENGTH: f64 = 0.05;

/// The gain that a candidate must be expected to bring, as a share of the noise.
fn worthwhile(is_shorter: bool) -> f64 {
    if is_shorter { -PRICE_OF_LENGTH } else { WORTHWHILE }
}

/// Where [`Judge::bar`] looks for the cost that just suffices: so many times the noise on either side
/// of the incumbent's, in so many steps: to a fiftieth of the noise.
const BAR_WITHIN: f64 = 10.0;
const BAR_BITS: usize = 10;

/// A candidate as it was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate<'a> {
    /// Lower is better.
    pub cost: f64,
    /// The seed that it was measured under.
    pub seed: u64,
    /// What its training starts from, [`Measurement::start_sha256`]: who starts elsewhere than the
    /// incumbent has most likely another luck under the seed.
    ///
    /// [`Measurement::start_sha256`]: crate::Measurement::start_sha256
    pub start: Option<&'a str>,
    /// Whether its source is shorter than the incumbent's.
    pub is_shorter: bool,
    /// How much less it cost than the incumbent in each further measurement of both.
    pub differences: &'a [f64],
}

impl Judge {
    /// A judge that has seen nothing yet.
    pub fn new(rule: JudgeRule) -> Self {
        Self { rule, belief: None, incumbent: f64::INFINITY, start: None, has_controls: false }
    }

    /// Whether a candidate, and the incumbent with it, should be measured once more before it is
    /// decided about.
    pub fn wants_another(&self, candidate: &Candidate<'_>) -> bool {
        let verdict = self.belief.as_ref().map(|belief| self.test(candidate, belief.noise()));
        self.rule == JudgeRule::Significant && verdict == Some(Verdict::Again)
    }

    fn test(&self, candidate: &Candidate<'_>, noise: f64) -> Verdict {
        let mut gains = vec![self.incumbent - candidate.cost];
        gains.extend(candidate.differences);
        verdict(&gains, noise)
    }

    /// Decides about a candidate, and learns from it. The first one is the baseline.
    pub fn decide(&mut self, candidate: Candidate<'_>) -> Decision {
        self.weigh(candidate, None)
    }

    /// Learns from a trial that was decided before.
    pub fn remember(&mut self, trial: &Trial) {
        match (trial.cost(), trial.repeats) {
            (Some(cost), Some(_)) => self.control(cost, trial.seed),
            (Some(cost), None) => {
                let start = trial.measurement.start_sha256.as_deref();
                let (seed, is_shorter) = (trial.seed, false);
                let candidate = Candidate { cost, seed, start, is_shorter, differences: &[] };
                self.weigh(candidate, Some(trial.is_kept()));
            }
            (None, _) => {}
        }
    }

    /// The incumbent was measured again, under this seed.
    pub fn control(&mut self, cost: f64, seed: u64) {
        if let Some(belief) = &mut self.belief {
            belief.control(cost, seed);
            self.has_controls = true;
        }
    }

    /// The highest cost at which the next candidate, under this seed, would be kept, or measured again,
    /// if it is not known to start elsewhere; `None` before the baseline is measured.
    pub fn bar(&self, seed: u64, is_shorter: bool) -> Option<f64> {
        let belief = self.belief.as_ref()?;
        if self.rule != JudgeRule::Posterior {
            return Some(self.incumbent);
        }
        let share = worthwhile(is_shorter);
        let is_kept = |cost: f64| {
            let assessment = belief.clone().assess(cost, seed, false);
            assessment.gain > share * assessment.noise
        };
        let reach = BAR_WITHIN * belief.noise();
        let (mut kept, mut discarded) = (self.incumbent - reach, self.incumbent + reach);
        for _ in 0..BAR_BITS {
            let middle = f64::midpoint(kept, discarded);
            *(if is_kept(middle) { &mut kept } else { &mut discarded }) = middle;
        }
        Some(discarded)
    }

    /// The standard deviation of a measurement under one seed; `None` as long as nothing was measured
    /// twice, and it would be a guess.
    pub fn noise(&self) -> Option<f64> {
        self.belief.as_ref().filter(|_| self.has_controls).map(Belief::noise)
    }

    /// By how much the incumbent is truly better than the baseline.
    pub fn claim(&self) -> Option<Claim> {
        let (gain, deviation) = self.belief.as_ref()?.gain();
        Some(Claim { gain, deviation })
    }

    fn weigh(&mut self, candidate: Candidate<'_>, decided: Option<bool>) -> Decision {
        let Candidate { cost, seed, start, is_shorter, differences } = candidate;
        let tested = self.belief.as_ref().map(|belief| self.test(&candidate, belief.noise()));
        let Some(belief) = &mut self.belief else {
            self.belief = Some(Belief::new(cost, seed));
            (self.incumbent, self.start) = (cost, start.map(str::to_owned));
            return Decision { keep: true, reason: "the baseline".to_owned(), evidence: None };
        };
        let starts = start.zip(self.start.as_deref());
        let starts_elsewhere = starts.is_some_and(|(own, incumbents)| own != incumbents);
        let assessment = belief.assess(cost, seed, starts_elsewhere);
        let share = worthwhile(is_shorter);
        let keep = decided.unwrap_or(match self.rule {
            JudgeRule::Greedy => cost < self.incumbent,
            JudgeRule::Significant => tested == Some(Verdict::Keep),
            JudgeRule::Posterior => assessment.gain > share * assessment.noise,
        });
        belief.settle(&assessment, keep);
        let change = cost - self.incumbent;
        let better = if change < 0.0 { "better" } else { "worse" };
        let mut reason = format!("measured {:.6} {better}", change.abs());
        if self.rule == JudgeRule::Significant && !differences.is_empty() {
            let times = differences.len();
            let gains = differences.iter().map(|gain| format!("{gain:+.6}"));
            let gains = gains.collect::<Vec<_>>().join(" and ");
            reason += &format!("; measured again {times} times, better by {gains}");
        }
        if self.rule == JudgeRule::Posterior {
            reason += &format!(
                "; truly better with probability {:.2}, by {:.6} as far as one can expect",
                assessment.improves, assessment.gain
            );
            if is_shorter && keep && assessment.gain <= WORTHWHILE * assessment.noise {
                reason += "; kept because it is shorter";
            }
            if starts_elsewhere {
                reason += "; it starts from other weights or batches, so that its luck is its own";
            }
        }
        if keep {
            (self.incumbent, self.start) = (cost, start.map(str::to_owned));
        }
        let evidence = Evidence {
            improves: assessment.improves,
            expected_gain: assessment.gain,
            noise: assessment.noise,
        };
        Decision { keep, reason, evidence: Some(evidence) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Candidate<'static> =
        Candidate { cost: 0.0, seed: 0, start: None, is_shorter: false, differences: &[] };

    #[test]
    fn what_is_below_the_bar_is_kept_and_what_is_above_is_not() {
        for rule in [JudgeRule::Posterior, JudgeRule::Greedy] {
            let candidate = |cost| Candidate { cost, ..PLAIN };
            let judge = |more: f64| {
                let mut judge = Judge::new(rule);
                judge.decide(candidate(1.7));
                for (seed, cost) in [(1, 1.705), (2, 1.698)] {
                    judge.control(cost, seed);
                }
                for cost in [1.75, 1.703, 1.72, 1.69, 1.8] {
                    judge.decide(candidate(cost));
                }
                let bar = judge.bar(0, false).unwrap();
                judge.decide(candidate(bar + more)).keep
            };
            assert_eq!((judge(-1e-3), judge(1e-3)), (true, false), "{rule}");
        }
    }

    #[test]
    fn a_shorter_source_has_a_lower_bar_to_clear() {
        let mut judge = Judge::new(JudgeRule::Posterior);
        assert_eq!(judge.bar(0, false), None);
        judge.decide(Candidate { cost: 1.7, ..PLAIN });
        judge.control(1.705, 1);
        assert!(judge.bar(0, true) > judge.bar(0, false));
    }
}
