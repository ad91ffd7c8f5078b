//! What a trial is given, and when: the budget is all of the training.

use crate::tiny::{self, Sources};
use overnight::{
    Budget, Outcome, Sandbox, Status, Trial,
    data::{DataSpec, Dataset, PrepareOptions, Split},
};
use std::{path::Path, time::Duration};

/// Whether a study holds trials to what its baseline needed beside the budget.
#[derive(Clone, Copy, PartialEq)]
enum Bounds {
    On,
    Off,
}

/// The trials of these deeds, each for `budget`.
fn trials(deeds: &[&'static str], budget: Budget, bounds: Bounds) -> Vec<Trial> {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let sources = deeds.iter().map(|deed| (*deed, tiny::doing(deed))).collect();
    let study = tiny::study(dir.path(), corpus.path()).budget(budget).proposer(Sources(sources));
    let study = if bounds == Bounds::Off { study.unbounded() } else { study };
    let mut study = study.without_race().exam_comparisons(2).open().unwrap();
    study.optimize(None).unwrap();
    study.trials()[1..].to_vec()
}

const STEPS: Budget = Budget::Steps(30);
const CLOCK: Budget = Budget::WallClock(Duration::from_millis(400));

pub fn training_outside_of_the_budget_does_not_count() {
    // Of each: where it is done, as the reason says it.
    let deeds = [
        ("TrainInNew", "new: "),
        ("TrainAfterTheBudget", "too late"),
        ("TrainWhileSaving", "too late"),
        ("TrainWhileLoading", "load: "),
        ("TrainInTheExam", "score: "),
        ("AnswerLate", "logits: "),
    ];
    let names = deeds.map(|(deed, _)| deed);
    for budget in [STEPS, CLOCK] {
        for (trial, (deed, place)) in trials(&names, budget, Bounds::On).iter().zip(&deeds) {
            assert_eq!(trial.outcome, Outcome::Overran, "{deed}: {:?}", trial.reason);
            assert_eq!(trial.status, Status::Crash, "{deed}");
            assert_eq!(trial.measurement.val_bpb, None, "{deed}");
            let reason = trial.reason.as_deref().unwrap_or_default();
            assert!(reason.contains(place), "{deed}: {reason}");
        }
    }
}

pub fn without_bounds_it_does() {
    let deeds = ["TrainInNew", "TrainAfterTheBudget", "TrainWhileLoading", "TrainInTheExam"];
    for trial in trials(&deeds, STEPS, Bounds::Off) {
        assert_eq!(trial.outcome, Outcome::Measured, "{:?}", trial.reason);
    }
}

pub fn a_study_that_is_reopened_knows_what_the_baseline_needed() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).proposer(Sources(vec![]));
    study.open().unwrap().optimize(None).unwrap();
    let sources = Sources(vec![("late", tiny::doing("TrainAfterTheBudget"))]);
    let mut study = tiny::study(dir.path(), corpus.path()).proposer(sources).open().unwrap();
    study.optimize(None).unwrap();
    assert!(study.trials()[0].measurement.effort.is_some());
    assert_eq!(study.trials()[1].outcome, Outcome::Overran, "{:?}", study.trials()[1].reason);
}

/// The file that batches are packed from.
fn training_text(corpus: &Path) -> String {
    let cache_dir = overnight::cache_dir().unwrap().join("data");
    let options = PrepareOptions { vocab_size: tiny::VOCAB_SIZE, cache_dir };
    let spec = DataSpec::Text(corpus.to_owned());
    let path = Dataset::prepare(&spec, &options, |_| {}).unwrap().path(Split::Train);
    path.to_str().unwrap().to_owned()
}

pub fn a_trainer_sees_no_more_than_it_was_handed() {
    let gain = |sandbox: Sandbox| {
        let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
        let secret = format!("SECRET: &str = {:?};", training_text(corpus.path()));
        let source = tiny::replaced(&tiny::doing("ReadAllTokens"), "SECRET: &str = \"\";", &secret);
        let study = tiny::study(dir.path(), corpus.path()).sandbox(sandbox).without_race();
        let mut study = study.proposer(Sources(vec![("all tokens", source)])).open().unwrap();
        study.optimize(None).unwrap();
        let [baseline, greedy] = study.trials() else { panic!("{:?}", study.trials()) };
        // Thirty batches of four rows, whatever it says itself.
        assert_eq!(greedy.measurement.num_steps, Some(30));
        assert_eq!(greedy.measurement.total_tokens, Some(30 * 4 * 32));
        baseline.score().unwrap() - greedy.score().unwrap()
    };
    // Without a sandbox the cheat works, so that the test can fail.
    assert!(gain(Sandbox::Off) > 0.3);
    if tiny::can_confine() {
        assert_eq!(gain(Sandbox::BestEffort), 0.0);
    }
}
