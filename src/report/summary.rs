//! The block of figures at the end of a night, for a person and a script alike.

use crate::record::short;
use crate::{
    judge::Judge,
    record::{JudgeRule, Outcome, Status, Trial},
};
use std::fmt::Display;

/// autoresearch's `key: value` block: the best trial's figures, then the night's.
///
/// The baseline counts as a trial, and as kept. `val_bpb`, `baseline_bpb`, `best_bpb` and `gain`
/// are bits per byte, memory is in MiB, and what is not known has no line. Another objective's
/// figures bear the name of its metric. `gain` is the difference of two measurements, with the luck
/// in both; `pruned` are those of the discarded that the race stopped; `claimed_gain` is what all of them together say of the true one.
pub fn summary(trials: &[Trial]) -> String {
    let mut block = Block("---\n".to_owned());
    let best = trials.iter().rev().find(|trial| trial.is_kept());
    let best_score = best.and_then(Trial::score);
    if let Some(best) = best {
        let measured = &best.measurement;
        block.line(measured.name_of_score(), best_score.map(score));
        block.line("test_bpb", measured.test_bpb.map(score));
        block.line("training_seconds", measured.training_seconds.map(tenths));
        block.line("total_seconds", measured.total_seconds.map(tenths));
        block.line("peak_vram_mb", measured.peak_vram_mb.map(tenths));
        block.line("peak_memory_mb", measured.peak_memory_mb.map(tenths));
        block.line("total_tokens_M", measured.total_tokens.map(millions));
        block.line("num_steps", measured.num_steps);
        block.line("num_params_M", measured.num_params.map(millions));
    }
    let count = |status| Some(trials.iter().filter(|trial| trial.status == status).count());
    block.line("trials", Some(trials.len()));
    block.line("kept", count(Status::Keep));
    block.line("discarded", count(Status::Discard));
    let pruned = trials.iter().filter(|trial| trial.outcome == Outcome::Pruned).count();
    block.line("pruned", (pruned > 0).then_some(pruned));
    let disturbed = trials.iter().filter(|trial| trial.outcome == Outcome::Disturbed).count();
    block.line("disturbed", (disturbed > 0).then_some(disturbed));
    block.line("crashed", count(Status::Crash));
    let baseline = trials.first();
    let is_bpb = baseline.is_some_and(|trial| trial.measurement.metric.is_none());
    let unit = if is_bpb { "bpb" } else { "score" };
    block.line(&format!("baseline_{unit}"), baseline.and_then(Trial::score).map(score));
    block.line(&format!("best_{unit}"), best_score.map(score));
    let cost = |trial: Option<&Trial>| trial.and_then(Trial::cost);
    let gain = cost(baseline).zip(cost(best)).map(|(baseline, best)| score(baseline - best));
    block.line("gain", gain);
    block.line("claimed_gain", best.filter(|best| best.trial > 0).and(claim(trials)));
    let spent: Vec<_> = trials.iter().filter_map(|trial| trial.measurement.propose_usd).collect();
    let usd = (!spent.is_empty()).then(|| format!("{:.2}", spent.iter().sum::<f64>()));
    block.line("propose_usd", usd);
    let tokens = trials.iter().filter_map(|trial| trial.measurement.propose_tokens);
    block.line("propose_tokens_M", tokens.reduce(u64::saturating_add).map(millions));
    block.line("best_trial", best.map(|trial| trial.trial));
    block.line("best_commit", best.and_then(|trial| trial.commit.as_deref()).map(short));
    block.0
}

/// What the measurements together say about the true gain, with the range that holds it in 95 of
/// 100 nights.
fn claim(trials: &[Trial]) -> Option<String> {
    let mut judge = Judge::new(JudgeRule::default());
    trials.iter().for_each(|trial| judge.remember(trial));
    let claim = judge.claim()?;
    let (low, high) = claim.interval();
    Some(format!("{:.6} ({low:+.6} to {high:+.6})", claim.gain))
}

struct Block(String);

impl Block {
    /// As wide as autoresearch's, where `training_seconds` is the longest key.
    fn line(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.0 += &format!("{:<18}{value}\n", format!("{key}:"));
        }
    }
}

fn score(score: f64) -> String {
    format!("{score:.6}")
}

fn tenths(number: f64) -> String {
    format!("{number:.1}")
}

/// Small models would round to nothing with autoresearch's one decimal.
fn millions(count: u64) -> String {
    let millions = count as f64 / 1e6;
    if millions < 10.0 { format!("{millions:.3}") } else { format!("{millions:.1}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Measurement, made_up::trial};

    #[test]
    fn the_block_holds_the_best_trial_and_the_night() {
        let mut best = trial(2, Status::Keep, Some(0.9979), "LR 0.02 -> 0.04");
        best.measurement = Measurement {
            training_seconds: Some(300.06),
            total_seconds: Some(325.9),
            total_tokens: Some(499_600_000),
            num_steps: Some(953),
            num_params: Some(803_456),
            peak_memory_mb: Some(812.25),
            ..best.measurement
        };
        let trials = [
            trial(0, Status::Keep, Some(1.0021), "baseline"),
            trial(1, Status::Crash, None, "LR 0.02 -> 1"),
            best,
            trial(3, Status::Discard, Some(1.1), "DEPTH 4 -> 2"),
        ];
        assert_eq!(
            summary(&trials),
            "\
---
val_bpb:          0.997900
training_seconds: 300.1
total_seconds:    325.9
peak_memory_mb:   812.2
total_tokens_M:   499.6
num_steps:        953
num_params_M:     0.803
trials:           4
kept:             2
discarded:        1
crashed:          1
baseline_bpb:     1.002100
best_bpb:         0.997900
gain:             0.004200
claimed_gain:     -0.000312 (-0.013681 to +0.013057)
best_trial:       2
best_commit:      0000002
"
        );
    }

    #[test]
    fn a_night_without_trials_has_no_figures() {
        assert_eq!(
            summary(&[]),
            "---\ntrials:           0\nkept:             0\ndiscarded:        0\ncrashed:          0\n"
        );
    }
}
