//! Simulated nights: what a rule truly gains, and what it claims.
//!
//! Nobody knows what a change to a real trainer truly does. Here it is known, so that a rule's
//! progress can be told from its luck.

use super::{Candidate, Judge, JudgeRule};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// How changes turn out. The noise of one measurement is 1 at first, which is the unit of all gains.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// For a table.
    pub name: &'static str,
    /// Share of changes without any effect.
    pub nothing: f64,
    /// Share of the others that help; the rest harms, by the magnitude of a normal deviate of
    /// scale 3.
    pub helps: f64,
    /// Mean gain of those that help; gains are exponentially distributed.
    pub gain: f64,
    /// How much louder the noise is at the end of the night than at its beginning.
    pub drift: f64,
    /// The standard deviation of a source's luck under a seed.
    pub luck: f64,
    /// Share of changes that draw their luck anew.
    pub redrawn: f64,
    /// Whether these are seen to start elsewhere than the incumbent.
    pub is_seen: bool,
    /// What another program on the machine adds to the cost of whatever is measured meanwhile.
    pub robbery: f64,
    /// Whether that is noticed: measured again then, twice at most, with a measurement's time to wait before each.
    pub is_noticed: bool,
}

/// What the worlds have that say nothing else.
const QUIET: World = World {
    name: "",
    nothing: 0.3,
    helps: 0.1,
    gain: 2.0,
    drift: 0.0,
    luck: 0.0,
    redrawn: 0.0,
    is_seen: true,
    robbery: 0.0,
    is_noticed: false,
};

/// Where a third of changes draw their luck anew, and luck is ten times the noise.
const LUCKY: World = World { luck: 10.0, redrawn: 0.33, ..QUIET };

/// The worlds in which rules are compared: many small gains, few large ones, none at all; without
/// luck, and with it.
pub const WORLDS: [World; 13] = [
    World { name: "one in ten helps by 2", ..QUIET },
    World { name: "one in ten by 0.7", gain: 0.7, ..QUIET },
    World { name: "one in five by 0.5", helps: 0.2, gain: 0.5, ..QUIET },
    World { name: "one in twenty by 4", helps: 0.05, gain: 4.0, ..QUIET },
    World { name: "15 % by 1.5, all else harms", nothing: 0.0, helps: 0.15, gain: 1.5, ..QUIET },
    World { name: "nothing has any effect", nothing: 1.0, ..QUIET },
    World { name: "one in ten by 2, noise doubles", drift: 1.0, ..QUIET },
    World { name: "one in ten by 2, a third start elsewhere", redrawn: 0.33, ..QUIET },
    World { name: "one in ten by 2, luck of 10", luck: 10.0, ..QUIET },
    World { name: "the same, a third redraw it", ..LUCKY },
    World { name: "the same, unseen", is_seen: false, ..LUCKY },
    World { name: "nothing has any effect, a third redraw a luck of 10", nothing: 1.0, ..LUCKY },
    World {
        name: "the same, unseen, and nothing has any effect",
        nothing: 1.0,
        is_seen: false,
        ..LUCKY
    },
];

/// Worlds in which another program has the machine for a third of the night, in stretches of ten measurements.
pub const BUSY: [World; 3] = [
    World { name: "one in ten helps by 2, nobody else", ..QUIET },
    World { name: "the same, robbed for a third of the night", robbery: 20.0, ..QUIET },
    World { name: "the same, and it is noticed", robbery: 20.0, is_noticed: true, ..QUIET },
];

/// Of each thirty measurements' time, when the other program is there.
const BUSY_TIME: std::ops::Range<usize> = 10..20;

/// How often a measurement that was robbed is made again.
const MOST_DISTURBED: usize = 2;

/// Measurements a night, control runs included.
const MEASUREMENTS: usize = 100;

/// Control runs of the baseline at first, and after how many measurements one of the incumbent: as
/// a study has them by default.
const CONTROLS: usize = 2;
const CONTROL_EVERY: usize = 50;

/// The baseline's cost. Against the noise of 1 it is nowhere near what the judge guesses the noise
/// from: that has to be learned.
const BASELINE: f64 = 1500.0;

/// The study's seed; those of its control runs follow, and far behind them those of repetitions.
const SEED: u64 = 0;
const SEED_OF_REPETITIONS: u64 = 100;

/// What many nights in one world came to, on the mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// By how much the incumbent is truly better than the baseline in the morning.
    pub true_gain: f64,
    /// By how much it is said to be.
    pub claimed_gain: f64,
    /// The share of nights whose true gain lies in the claim's interval of 95 %. `None` for a rule
    /// that gives none.
    pub covered: Option<f64>,
}

/// Plays `nights` nights of 100 measurements under a rule.
///
/// The greedy rule needs no control runs and has none; what it claims is the difference between
/// the measurements that it kept. What the significant rule measures again counts as well.
pub fn play(world: &World, rule: JudgeRule, nights: u64) -> Figures {
    let (mut truth, mut claimed, mut covered) = (0.0, 0.0, 0usize);
    for seed in 0..nights {
        let night = Night::play(world, rule, seed);
        truth += night.true_gain;
        claimed += night.claimed_gain;
        covered += usize::from(night.is_covered);
    }
    let count = nights.max(1) as f64;
    Figures {
        true_gain: truth / count,
        claimed_gain: claimed / count,
        covered: (rule != JudgeRule::Greedy).then_some(covered as f64 / count),
    }
}

struct Night {
    true_gain: f64,
    claimed_gain: f64,
    is_covered: bool,
}

impl Night {
    fn play(world: &World, rule: JudgeRule, night: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(night);
        let mut judge = Judge::new(rule);
        let (mut true_gain, mut first, mut best) = (0.0, 0.0, 0.0);
        // Which luck the incumbent has: sources with the same number have the same under every seed.
        let mut luck = 0;
        // What incumbent and candidate cost under the seeds of repetitions, as far as is known.
        let (mut incumbent, mut repeated) = (Vec::<f64>::new(), Vec::new());
        let with_controls = rule != JudgeRule::Greedy;
        let (mut measured, mut next_control) = (0, CONTROLS + CONTROL_EVERY);
        let mut controls = 0;
        while measured <= MEASUREMENTS {
            let is_control =
                with_controls && ((1..=CONTROLS).contains(&measured) || measured >= next_control);
            if is_control && measured > CONTROLS {
                next_control += CONTROL_EVERY;
            }
            let is_proposal = measured > 0 && !is_control;
            let change = if is_proposal { world.change(&mut rng) } else { 0.0 };
            let is_redrawn = is_proposal && rng.random::<f64>() < world.redrawn;
            let candidates = if is_redrawn { measured as u64 } else { luck };
            let truth = BASELINE - true_gain;
            let mut measure = |of: f64, luck: u64, seed: u64| {
                let loudness = 1.0 + world.drift * measured as f64 / MEASUREMENTS as f64;
                let noise: f64 = StandardNormal.sample(&mut rng);
                let mut is_busy = || {
                    let is_busy = world.robbery > 0.0 && BUSY_TIME.contains(&(measured % 30));
                    measured += 1;
                    is_busy
                };
                let mut is_robbed = is_busy();
                let mut tries = 0;
                while world.is_noticed && is_robbed && tries < MOST_DISTURBED {
                    // The wait, and the measurement.
                    is_busy();
                    is_robbed = is_busy();
                    tries += 1;
                }
                let robbery = if is_robbed { world.robbery } else { 0.0 };
                let cost = of + loudness * noise + world.luck(night, luck, seed) + robbery;
                (!is_robbed || !world.is_noticed).then_some(cost)
            };
            if is_control {
                // The first control runs' seeds by turns, so that later ones compare with them.
                let seed = SEED + 1 + controls % CONTROLS as u64;
                controls += 1;
                if let Some(cost) = measure(truth, luck, seed) {
                    judge.control(cost, seed);
                }
                continue;
            }
            // What was robbed for good is nothing that anybody learns from.
            let Some(cost) = measure(truth + change, candidates, SEED) else { continue };
            let mut differences = Vec::new();
            let start = (if world.is_seen { candidates } else { 0 }).to_string();
            let candidate = loop {
                let (start, is_shorter) = (Some(start.as_str()), false);
                let candidate =
                    Candidate { cost, seed: SEED, start, is_shorter, differences: &differences };
                if !judge.wants_another(&candidate) {
                    break candidate;
                }
                // The incumbent is measured under each further seed only once.
                let place = differences.len();
                let seed = SEED_OF_REPETITIONS + place as u64;
                if incumbent.len() == place {
                    incumbent.push(measure(truth, luck, seed).unwrap_or(f64::INFINITY));
                }
                let again = measure(truth + change, candidates, seed).unwrap_or(f64::INFINITY);
                repeated.push(again);
                differences.push(incumbent[place] - again);
            };
            if judge.decide(candidate).keep {
                true_gain -= change;
                (best, luck) = (cost, candidates);
                incumbent = std::mem::take(&mut repeated);
                if is_proposal {
                    continue;
                }
                first = cost;
            }
            repeated.clear();
        }
        let claim = judge.claim().filter(|_| with_controls);
        let claimed_gain = claim.map_or(first - best, |claim| claim.gain);
        let is_covered = claim.is_some_and(|claim| {
            let (low, high) = claim.interval();
            (low..=high).contains(&true_gain)
        });
        Self { true_gain, claimed_gain, is_covered }
    }
}

impl World {
    /// What a change does to the cost.
    fn change(&self, rng: &mut ChaCha8Rng) -> f64 {
        if rng.random::<f64>() < self.nothing {
            return 0.0;
        }
        if rng.random::<f64>() < self.helps {
            return self.gain * (1.0 - rng.random::<f64>()).ln();
        }
        let deviate: f64 = StandardNormal.sample(rng);
        3.0 * deviate.abs()
    }

    /// A source's luck under a seed.
    fn luck(&self, night: u64, luck: u64, seed: u64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(night);
        rng.set_stream(1 + luck * (SEED_OF_REPETITIONS * 2) + seed);
        let deviate: f64 = StandardNormal.sample(&mut rng);
        self.luck * deviate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_a_nights_progress_survives_a_busy_machine_where_that_is_noticed() {
        const NIGHTS: u64 = 100;
        let [quiet, robbed, noticed] =
            BUSY.map(|world| play(&world, JudgeRule::Posterior, NIGHTS).true_gain);
        // A third of the time is lost either way, and more where waits and measurements made again are paid for.
        assert!(noticed > robbed, "{quiet}, {robbed}, {noticed}");
        assert!(noticed > 0.55 * quiet, "{quiet}, {robbed}, {noticed}");
    }

    /// A few nights a world here; `measurements/judge.rs` plays as many as one likes.
    #[test]
    fn the_judge_gains_what_the_greedy_rule_does_and_claims_what_is_true() {
        const NIGHTS: u64 = 60;
        let check = |world: &World| {
            let greedy = play(world, JudgeRule::Greedy, NIGHTS);
            let posterior = play(world, JudgeRule::Posterior, NIGHTS);
            let (claimed, truth) = (posterior.claimed_gain, posterior.true_gain);
            // So few nights tell the mean gain to about 6 %, and a share to about 3 %.
            assert!(posterior.covered >= Some(0.85), "{world:?}: {posterior:?}");
            // What it is there for: the greedy rule's claims are luck in good part.
            assert!(greedy.claimed_gain - greedy.true_gain > 0.8, "{world:?}: {greedy:?}");
            if world.is_seen {
                assert!(truth >= 0.85 * greedy.true_gain, "{world:?}: {posterior:?}, {greedy:?}");
                let blur = 0.1 * truth + 0.5 + 0.1 * world.luck;
                assert!((claimed - truth).abs() < blur, "{world:?}: {posterior:?}");
            } else {
                // Two seeds more tell luck from gain only so far.
                let (own, greedys) = (claimed - truth, greedy.claimed_gain - greedy.true_gain);
                assert!(own.abs() < greedys / 4.0, "{world:?}: {posterior:?}, {greedy:?}");
            }
        };
        std::thread::scope(|scope| {
            for world in &WORLDS {
                scope.spawn(|| check(world));
            }
        });
    }
}
