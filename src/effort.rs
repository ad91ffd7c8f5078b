//! What a trainer needs beside its budget, and how much of that a candidate may need. Pure.
//!
//! Whatever a worker does outside the budget could be training. So it is held to multiples of what
//! the unchanged baseline needed for the same on this machine: generous enough for a larger model,
//! far too little to learn anything in.

use crate::record::{Budget, Effort, Measurement};
use std::time::Duration;

/// A candidate may need so many times the baseline's effort: room for a larger model.
const TIMES: f64 = 10.0;

/// And so much more: a tiny baseline needs next to nothing.
const ABOVE: Duration = Duration::from_secs(2);

/// After its last batch a candidate may take so many times what the baseline took.
const CLOSING_TIMES: f64 = 3.0;

/// And so much more, for a machine that was busy with something else.
const CLOSING_ABOVE: Duration = Duration::from_millis(500);

/// Of a wall-clock budget, what a single step counts for at most: who trains for minutes between two
/// batches does not get as much again.
const LONGEST_STEP: u32 = 50;

/// What the whole exam may take on the wall clock, beyond [`TIMES`] the baseline's.
const EXAM_ABOVE: Duration = Duration::from_secs(60);

/// The same for all of a training run whose budget is a number of steps.
const STEPS_ABOVE: Duration = Duration::from_secs(60);

/// What candidates may need. Empty as long as no baseline was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Bounds {
    effort: Option<Effort>,
    training_seconds: f64,
    eval_seconds: f64,
}

/// When things happened in a training run, since its budget began.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Times {
    /// The last batch was handed out.
    pub last_batch: Duration,
    /// The longest time between two batches.
    pub longest_step: Duration,
    /// The checkpoint was closed.
    pub closed: Duration,
}

impl Bounds {
    /// Takes a run of the baseline for a measure; of several, whatever was needed at most.
    pub(crate) fn learn(&mut self, baseline: &Measurement) {
        let Some(new) = baseline.effort else { return };
        let old = self.effort.unwrap_or_default();
        self.effort = Some(Effort {
            closing_seconds: old.closing_seconds.max(new.closing_seconds),
            new_seconds: old.new_seconds.max(new.new_seconds),
            load_seconds: old.load_seconds.max(new.load_seconds),
            score_seconds: old.score_seconds.max(new.score_seconds),
            logits_seconds: old.logits_seconds.max(new.logits_seconds),
        });
        let most = |old: f64, new: Option<f64>| old.max(new.unwrap_or_default());
        self.training_seconds = most(self.training_seconds, baseline.training_seconds);
        self.eval_seconds = most(self.eval_seconds, baseline.eval_seconds);
    }

    /// How much of one kind of effort a candidate may need; `None` is for the baseline.
    pub(crate) fn of(&self, kind: impl Fn(&Effort) -> f64) -> Option<Duration> {
        Some(times(TIMES, kind(self.effort.as_ref()?)) + ABOVE)
    }

    /// How much a room of the exam may need in all, from its start to its last answer of this kind.
    pub(crate) fn room(&self, answers: impl Fn(&Effort) -> f64) -> Option<Duration> {
        self.of(|effort| effort.new_seconds + effort.load_seconds + answers(effort))
    }

    /// How long the exam may take in all, if that is less than `most`.
    pub(crate) fn exam(&self, most: Duration) -> Duration {
        let bound = times(TIMES, self.eval_seconds) + EXAM_ABOVE;
        if self.effort.is_some() { bound.min(most) } else { most }
    }

    /// How long training for a number of steps may take, if that is less than `most`.
    pub(crate) fn steps(&self, most: Duration) -> Duration {
        let bound = times(TIMES, self.training_seconds) + STEPS_ABOVE;
        if self.effort.is_some() { bound.min(most) } else { most }
    }

    /// By how much a run came too late, and after which moment, both since it began; `None` is in time.
    pub(crate) fn lateness(
        &self,
        budget: Budget,
        times_of: &Times,
    ) -> Option<(Duration, Duration)> {
        let effort = self.effort.as_ref()?;
        let Times { last_batch, longest_step, closed } = *times_of;
        let stepped = match budget {
            Budget::WallClock(budget) => {
                budget.max(last_batch + longest_step.min(budget / LONGEST_STEP))
            }
            Budget::Steps(_) => last_batch + longest_step,
        };
        let due = stepped + times(CLOSING_TIMES, effort.closing_seconds) + CLOSING_ABOVE;
        closed.checked_sub(due).filter(|late| !late.is_zero()).map(|late| (late, due))
    }
}

fn times(factor: f64, seconds: f64) -> Duration {
    // What a ledger says may have been written by hand.
    Duration::try_from_secs_f64(factor * seconds).unwrap_or(Duration::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(closing_seconds: f64) -> Bounds {
        let effort = Effort { closing_seconds, new_seconds: 0.5, ..Effort::default() };
        let baseline = Measurement {
            effort: Some(effort),
            training_seconds: Some(3.0),
            eval_seconds: Some(2.0),
            ..Measurement::default()
        };
        let mut bounds = Bounds::default();
        bounds.learn(&baseline);
        bounds
    }

    #[test]
    fn a_room_may_need_once_in_all_what_its_parts_may_need_each() {
        let effort =
            Effort { new_seconds: 0.5, load_seconds: 0.2, score_seconds: 1.0, ..Effort::default() };
        let mut bounds = Bounds::default();
        assert_eq!(bounds.room(|effort| effort.score_seconds), None);
        bounds.learn(&Measurement { effort: Some(effort), ..Measurement::default() });
        let room = bounds.room(|effort| effort.score_seconds).unwrap();
        assert!((room.as_secs_f64() - 19.0).abs() < 1e-9, "{room:?}");
    }

    const BUDGET: Budget = Budget::WallClock(Duration::from_secs(300));

    fn run(last_batch: u64, longest_step: u64, closed: f64) -> Times {
        Times {
            last_batch: Duration::from_secs(last_batch),
            longest_step: Duration::from_secs(longest_step),
            closed: Duration::from_secs_f64(closed),
        }
    }

    #[test]
    fn the_baseline_is_the_measure_and_has_none_itself() {
        let none = Bounds::default();
        assert_eq!(none.of(|effort| effort.new_seconds), None);
        assert_eq!(none.exam(Duration::from_secs(600)), Duration::from_secs(600));
        assert_eq!(none.lateness(BUDGET, &run(299, 1, 900.0)), None);
        let some = bounds(0.1);
        assert_eq!(some.of(|effort| effort.new_seconds), Some(Duration::from_secs(7)));
        assert_eq!(some.of(|effort| effort.load_seconds), Some(Duration::from_secs(2)));
        assert_eq!(some.exam(Duration::from_secs(600)), Duration::from_secs(80));
        assert_eq!(some.exam(Duration::from_secs(10)), Duration::from_secs(10));
        assert_eq!(some.steps(Duration::from_secs(600)), Duration::from_secs(90));
    }

    #[test]
    fn what_comes_after_the_budget_is_the_step_in_flight_and_saving() {
        let bounds = bounds(0.1);
        // 0.8 s after the budget, or after the step in flight.
        for (times, is_late) in [
            (run(299, 1, 300.7), false),
            (run(299, 1, 300.9), true),
            // An idle trainer has its whole budget all the same.
            (run(10, 1, 300.7), false),
            (run(299, 4, 303.7), false),
            (run(299, 4, 303.9), true),
            // One long step does not pay twice.
            (run(299, 200, 305.7), false),
            (run(299, 200, 305.9), true),
        ] {
            assert_eq!(bounds.lateness(BUDGET, &times).is_some(), is_late, "{times:?}");
        }
        let steps = Budget::Steps(30);
        assert_eq!(bounds.lateness(steps, &run(10, 2, 12.7)), None);
        let (late, due) = bounds.lateness(steps, &run(10, 2, 13.8)).unwrap();
        assert_eq!((late.as_secs(), due.as_millis()), (1, 12_800));
    }
}
