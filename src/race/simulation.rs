//! Simulated nights with curves: how often the race stops what would have been kept.
//!
//! A real night has a few kept trials, which is too few to count how many in a hundred are lost.

use super::{Curve, PARTS};
use crate::{
    judge::{Candidate, Judge},
    record::{JudgeRule, Measurement, Outcome, Status, Trial},
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};

/// How changes turn out, and what the loss says of it on the way.
#[derive(Debug, Clone, Copy)]
pub struct World {
    /// For a table.
    pub name: &'static str,
    /// Share of changes without any effect.
    pub nothing: f64,
    /// Share of the others that help, by an exponentially distributed gain of twice the noise on the
    /// mean; the rest harms, by half to a hundred times the noise.
    pub helps: f64,
    /// By which share of its effect the loss misleads about a change, at the beginning of the budget;
    /// at the end it is a tenth of that.
    pub misleads: f64,
    /// Share of the changes that move the reported loss for good, up or down, whatever they do to the
    /// score: shorter sequences, another penalty.
    pub moves: f64,
}

/// The worlds of docs/race.md.
pub const WORLDS: [World; 4] = [
    World {
        name: "the loss is a good guide",
        nothing: 0.2,
        helps: 0.15,
        misleads: 0.3,
        moves: 0.0,
    },
    World { name: "it misleads at first", nothing: 0.2, helps: 0.15, misleads: 1.0, moves: 0.0 },
    World {
        name: "one change in ten moves it",
        nothing: 0.2,
        helps: 0.15,
        misleads: 0.3,
        moves: 0.1,
    },
    World { name: "few changes harm", nothing: 0.5, helps: 0.5, misleads: 0.3, moves: 0.0 },
];

/// The noise of a measurement, in bits per byte, and how many of them a nat of loss is.
const NOISE: f64 = 0.004;
const BITS_PER_NAT: f64 = 0.45;

/// What two trials' losses differ by without a reason, in nats, over a part of the budget.
const LOSS_NOISE: f64 = 0.005;

/// How far a loss moves, in nats: the standard deviation.
const MOVE: f64 = 0.1;

/// Measurements a night.
const TRIALS: usize = 100;

/// A night in which everybody came in, judged by the default rule.
pub fn night(world: &World, seed: u64) -> Vec<Trial> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut judge = Judge::new(JudgeRule::default());
    let mut trials: Vec<Trial> = Vec::new();
    // Of the incumbent: who it is, what it truly costs, and its loss without noise.
    let (mut parent, mut cost, mut losses) = (None, 1.7, [3.0; PARTS]);
    for number in 0..TRIALS {
        let is_control = (1..=2).contains(&number);
        let is_proposal = number > 0 && !is_control;
        let change = if is_proposal { world.change(&mut rng) } else { Change::default() };
        let own = change.losses(&losses);
        let noisy = own.map(|loss| Some(loss + LOSS_NOISE * normal(&mut rng)));
        let measured = cost + change.effect + NOISE * normal(&mut rng);
        let is_kept = if is_control {
            judge.control(measured, number as u64);
            false
        } else {
            let candidate = Candidate {
                cost: measured,
                seed: 0,
                start: None,
                is_shorter: false,
                differences: &[],
            };
            judge.decide(candidate).keep
        };
        let trial = Finished { number, parent, is_kept, is_control };
        trials.push(trial.recorded(measured, Curve::new(noisy)));
        if is_kept {
            (parent, cost, losses) = (Some(number), cost + change.effect, own);
        }
    }
    trials
}

/// What a change does.
#[derive(Default)]
struct Change {
    /// To the score.
    effect: f64,
    /// To the loss, for good.
    moved: f64,
    /// By which share of the effect the loss misleads at first.
    misleads: f64,
}

impl World {
    fn change(&self, rng: &mut ChaCha8Rng) -> Change {
        let effect = if rng.random_bool(self.nothing) {
            0.0
        } else if rng.random_bool(self.helps) {
            let gain: f64 = Exp1.sample(rng);
            -2.0 * NOISE * gain
        } else {
            NOISE * rng.random_range(0.5f64.ln()..100f64.ln()).exp()
        };
        let moved = if rng.random_bool(self.moves) { MOVE * normal(rng) } else { 0.0 };
        Change { effect, moved, misleads: self.misleads * normal(rng) }
    }
}

impl Change {
    fn losses(&self, before: &[f64; PARTS]) -> [f64; PARTS] {
        std::array::from_fn(|part| {
            let progress = (part + 1) as f64 / PARTS as f64;
            let off = self.misleads * (1.0 - 0.9 * progress);
            before[part] + self.moved + self.effect / BITS_PER_NAT * (1.0 + off)
        })
    }
}

struct Finished {
    number: usize,
    parent: Option<usize>,
    is_kept: bool,
    is_control: bool,
}

impl Finished {
    fn recorded(self, val_bpb: f64, loss_curve: Curve) -> Trial {
        let measurement = Measurement {
            val_bpb: Some(val_bpb),
            training_seconds: Some(300.0),
            eval_seconds: Some(2.0),
            total_seconds: Some(304.0),
            loss_curve,
            ..Measurement::default()
        };
        Trial {
            trial: self.number,
            parent: self.parent,
            commit: None,
            proposer: "simulation".to_owned(),
            description: String::new(),
            status: if self.is_kept { Status::Keep } else { Status::Discard },
            outcome: Outcome::Measured,
            reason: None,
            measurement,
            // Only control runs have others than the study's.
            seed: if self.is_control { self.number as u64 } else { 0 },
            source_sha256: String::new(),
            program_sha256: None,
            started: jiff::Timestamp::UNIX_EPOCH,
            repeats: self.parent.filter(|_| self.is_control),
            evidence: None,
            forecast: None,
            repetitions: Vec::new(),
            repairs: 0,
            remarks: Vec::new(),
        }
    }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(rng)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::race::{HOPELESS, replay::Replay};

    #[test]
    fn the_race_saves_budgets_and_hardly_loses_a_trial_that_would_be_kept() {
        let check = |world: &World| {
            let (mut kept, mut lost, mut full, mut raced) = (0, 0, 0.0, 0.0);
            for seed in 0..20 {
                let night = night(world, seed);
                let replay = Replay::of(&night, JudgeRule::default(), HOPELESS);
                kept += replay.kept;
                lost += replay.lost.len();
                full += replay.full.budgets;
                raced += replay.raced.budgets;
            }
            let said = format!("{}: {lost} of {kept} lost, {raced:.0} of {full:.0}", world.name);
            // One in a hundred more or less is three trials.
            assert!((lost as f64) < 0.025 * kept as f64, "{said}");
            assert!(raced < full, "{said}");
            println!("{said}");
        };
        std::thread::scope(|scope| {
            for world in &WORLDS {
                scope.spawn(|| check(world));
            }
        });
    }
}
