//! The race: trials that are stopped before their budget is spent.

use crate::tiny::{self, Sources};
use overnight::{Ledger, Outcome, Status, Trial};
use std::fs;

/// As many trials as the race needs to know, all of them worse than the baseline, and then `last`.
fn after_a_while(last: Vec<(&'static str, String)>) -> Sources {
    let others = ["31.0", "35.0", "40.0", "33.0", "60.0", "38.0", "31.5", "50.0"];
    let others = others.map(|value| ("a little", tiny::smoothing(value)));
    Sources(others.into_iter().chain(last).collect())
}

fn far_behind() -> String {
    tiny::smoothing("20000.0")
}

/// Studies these sources, and says what became of the last ones.
fn study(last: Vec<(&'static str, String)>, is_raced: bool) -> (Vec<Trial>, tempfile::TempDir) {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let count = last.len();
    let builder = tiny::study(dir.path(), corpus.path()).proposer(after_a_while(last));
    let builder = if is_raced { builder } else { builder.without_race() };
    let mut study = builder.open().unwrap();
    study.optimize(None).unwrap();
    let trials = study.trials().to_vec();
    assert_eq!(Ledger::read(dir.path()).unwrap(), trials);
    let first = trials.len() - count;
    assert!(trials[..first].iter().all(|trial| trial.outcome == Outcome::Measured));
    (trials[first..].to_vec(), dir)
}

pub fn a_trial_that_is_far_behind_is_stopped_and_one_ahead_is_kept() {
    let last = vec![("far behind", far_behind()), ("ahead", tiny::smoothing("3.0"))];
    let (trials, dir) = study(last, true);
    let [stopped, kept] = trials.as_slice() else { panic!("{trials:?}") };
    assert_eq!((&stopped.outcome, stopped.status), (&Outcome::Pruned, Status::Discard));
    let forecast = stopped.forecast.unwrap();
    assert!(forecast.progress < 1.0 && forecast.win_probability < 0.02, "{forecast:?}");
    let reason = stopped.reason.as_deref().unwrap();
    assert!(reason.contains("above trial 0's; a win had a probability of "), "{reason}");
    assert_eq!((stopped.score(), kept.status), (None, Status::Keep));
    let measured = &stopped.measurement;
    assert!(measured.training_seconds.is_some() && measured.num_steps < Some(30));
    assert!(measured.loss_curve.len() < 20);
    let results = fs::read_to_string(dir.path().join("results.tsv")).unwrap();
    let row = results.lines().nth(1 + stopped.trial).unwrap();
    assert!(
        row.starts_with("-------\t0.000000\t") && row.ends_with("\tdiscard\tfar behind"),
        "{row}"
    );
    // Its weights never were, and its library is gone with it.
    let folder = dir.path().join(format!("trials/{:04}", stopped.trial));
    assert!(!folder.join("scratch").exists() && !folder.join("model.safetensors").exists());
}

pub fn without_a_race_everybody_comes_in() {
    let (trials, _dir) = study(vec![("far behind", far_behind())], false);
    assert_eq!((&trials[0].outcome, trials[0].status), (&Outcome::Measured, Status::Discard));
    assert_eq!(trials[0].measurement.num_steps, Some(30));
}

pub fn a_trainer_that_lies_about_its_loss_gains_nothing_and_harms_nobody() {
    let flatters = |source: &str| {
        tiny::replaced(source, "Deed = Deed::Honest;", "Deed = Deed::ReportTooLittle;")
    };
    let last = vec![
        ("a lie that is far behind", flatters(&far_behind())),
        ("a lie that is ahead", flatters(&tiny::smoothing("3.0"))),
        ("ahead and honest", tiny::smoothing("0.3")),
    ];
    let (trials, _dir) = study(last, true);
    // It comes in, and its exam is what counts.
    assert_eq!((&trials[0].outcome, trials[0].status), (&Outcome::Measured, Status::Discard));
    assert_eq!(trials[1].status, Status::Keep, "{:?}", trials[1]);
    // The incumbent's curve lies tenfold below this one's, and yet:
    assert_eq!(trials[2].status, Status::Keep, "{:?}", trials[2]);
}

pub fn a_study_from_before_the_race_is_opened_either_way() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let open = || tiny::study(dir.path(), corpus.path());
    drop(open().without_race().open().unwrap());
    let problem = open().open().err().unwrap().to_string();
    assert!(problem.contains("race was false and is true"), "{problem}");
    let path = dir.path().join("study.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, tiny::replaced(&config, "  \"race\": false,\n", "")).unwrap();
    assert!(open().open().unwrap().config().race);
    assert!(!open().without_race().open().unwrap().config().race);
}
