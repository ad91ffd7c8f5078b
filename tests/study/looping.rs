//! The loop: keeping, discarding, resuming, proposing, listening.

use crate::tiny::{self, Sources};
use overnight::{
    Budget, Event, JudgeRule, Ledger, Outcome, Status, StopHandle, Study, Trial,
    proposer::{Brief, Proposal, Tuner},
};
use std::{fs, path::Path, process::Command, time::Duration};

fn improving_sources() -> Sources {
    Sources(vec![
        ("less smoothing", tiny::smoothing("3.0")),
        ("more smoothing", tiny::smoothing("90.0")),
        ("much less smoothing", tiny::smoothing("0.3")),
    ])
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

pub fn better_trials_are_kept_and_others_leave_no_trace() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let dir = dir.path().join("nov24");
    let mut study = tiny::study(&dir, corpus.path()).proposer(improving_sources()).open().unwrap();
    study.optimize(None).unwrap();

    let statuses: Vec<_> = study.trials().iter().map(|trial| trial.status).collect();
    assert_eq!(statuses, [Status::Keep, Status::Keep, Status::Discard, Status::Keep]);
    assert_eq!(study.best_trial().unwrap().trial, 3);
    let parents: Vec<_> = study.trials().iter().map(|trial| trial.parent).collect();
    assert_eq!(parents, [None, Some(0), Some(1), Some(1)]);

    let workspace = dir.join("workspace");
    assert_eq!(git(&workspace, &["branch", "--show-current"]).trim(), "overnight/nov24");
    let subjects = git(&workspace, &["log", "--format=%s"]);
    assert_eq!(
        subjects.lines().collect::<Vec<_>>(),
        ["trial 3: much less smoothing", "trial 1: less smoothing", "trial 0: baseline"]
    );
    assert_eq!(git(&workspace, &["status", "--porcelain"]), "");
    let source = fs::read_to_string(workspace.join("src/train.rs")).unwrap();
    assert_eq!(source, tiny::smoothing("0.3"));

    let results = fs::read_to_string(dir.join("results.tsv")).unwrap();
    let rows: Vec<Vec<_>> = results.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(rows[0], ["commit", "val_bpb", "memory_gb", "status", "description"]);
    assert_eq!(rows[3][3..], ["discard", "more smoothing"]);
    assert_eq!(rows.len(), 5);

    // Weights and library stay with what was kept.
    for (trial, kept) in [(0, true), (1, true), (2, false), (3, true)] {
        let folder = study.folder_of(trial);
        assert_eq!(folder.join("model.safetensors").exists(), kept, "trial {trial}");
        assert!(folder.join("source.rs").exists() && folder.join("outcome.json").exists());
    }
    let diff = fs::read_to_string(study.folder_of(2).join("change.diff")).unwrap();
    assert!(diff.contains("-const SMOOTHING: f64 = 3.0;"), "{diff}");

    let measured = &study.trials()[3].measurement;
    assert_eq!(measured.num_steps, Some(30));
    assert_eq!(measured.total_tokens, Some(30 * 4 * 32));
    assert!(measured.peak_memory_mb.unwrap() > 1.0);
    assert_eq!(Ledger::read(&dir).unwrap(), study.trials());
}

pub fn a_study_that_is_reopened_goes_on_where_it_stopped() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let open =
        || tiny::study(dir.path(), corpus.path()).proposer(improving_sources()).open().unwrap();
    open().optimize(Some(2)).unwrap();
    let mut study = open();
    assert_eq!(study.trials().len(), 3);
    study.optimize(None).unwrap();
    assert_eq!(study.trials().len(), 4);
    assert_eq!(study.best_trial().unwrap().trial, 3);
}

pub fn a_study_under_step_budgets_is_repeatable() {
    let corpus = tiny::corpus();
    let run = |interrupt: bool| -> Vec<_> {
        let dir = tempfile::tempdir().unwrap();
        let open =
            || tiny::study(dir.path(), corpus.path()).proposer(Tuner::new(7)).open().unwrap();
        let mut study = open();
        study.optimize(Some(3)).unwrap();
        if interrupt {
            drop(study);
            study = open();
        }
        study.optimize(Some(3)).unwrap();
        let facts = study.trials().iter();
        facts.map(|t| (t.source_sha256.clone(), t.measurement.val_bpb, t.status)).collect()
    };
    let straight = run(false);
    assert_eq!(straight.len(), 7);
    assert_eq!(straight, run(true));
}

pub fn the_tuner_improves_the_tiny_trainer() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut study = tiny::study(dir.path(), corpus.path()).proposer(Tuner::new(0)).open().unwrap();
    study.optimize(Some(8)).unwrap();
    let best = study.best_trial().unwrap();
    assert!(best.trial > 0, "{:#?}", study.trials());
    assert!(best.measurement.val_bpb < study.trials()[0].measurement.val_bpb);
}

pub fn a_closure_proposes_and_an_observer_hears_everything() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let (sender, events) = overnight::events();
    let propose = |brief: &Brief<'_>| {
        assert_eq!(fs::read_to_string(brief.folder.join("src/train.rs")).unwrap(), brief.source);
        let source = brief.source.replace("= 30.0;", "= 3.0;");
        Ok(Proposal::new(source, "less\nsmoothing"))
    };
    let mut study =
        tiny::study(dir.path(), corpus.path()).proposer(propose).observer(sender).open().unwrap();
    study.optimize(Some(1)).unwrap();
    drop(study);
    let finished: Vec<_> = events
        .iter()
        .filter_map(|event| if let Event::Finished(trial) = event { Some(trial) } else { None })
        .collect();
    assert_eq!(finished.len(), 2);
    assert_eq!(finished[1].description, "less smoothing");
    assert_eq!(finished[1].status, Status::Keep);
}

pub fn the_same_source_is_not_tried_twice() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let sources = Sources(vec![("the baseline again", tiny::source())]);
    let mut study = tiny::study(dir.path(), corpus.path()).proposer(sources).open().unwrap();
    study.optimize(None).unwrap();
    let trial = &study.trials()[1];
    assert_eq!(trial.outcome, Outcome::Refused);
    assert!(trial.reason.as_deref().unwrap().contains("trial 0"));
    assert_eq!(trial.measurement.training_seconds, None);
}

pub fn a_wall_clock_budget_is_spent_to_its_end() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let budget = Duration::from_secs(1);
    let mut study =
        tiny::study(dir.path(), corpus.path()).budget(Budget::WallClock(budget)).open().unwrap();
    study.optimize(Some(0)).unwrap();
    let measured = &study.trials()[0].measurement;
    assert!(measured.training_seconds.unwrap() >= budget.as_secs_f64(), "{measured:?}");
    assert!(measured.num_steps.unwrap() > 1);
}

pub fn a_stopped_study_records_nothing_of_the_trial_in_flight() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let (sender, events) = overnight::events();
    let stop = StopHandle::new();
    let mut study: Study = tiny::study(dir.path(), corpus.path())
        .budget(Budget::WallClock(Duration::from_mins(10)))
        .stop_handle(stop.clone())
        .observer(sender)
        .open()
        .unwrap();
    let stopper = std::thread::spawn(move || {
        for event in events {
            if matches!(event, Event::Training { .. }) {
                stop.stop();
                return;
            }
        }
    });
    study.optimize(None).unwrap();
    stopper.join().unwrap();
    assert!(study.trials().is_empty());
}

pub fn a_recorded_trial_is_measured_again_to_the_bit() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).proposer(improving_sources());
    let mut study = study.open().unwrap();
    study.optimize(None).unwrap();
    for trial in study.trials().to_vec() {
        let again = study.rerun(trial.trial, trial.seed).unwrap().unwrap();
        let bits = |score: Option<f64>| score.unwrap().to_bits();
        assert_eq!(bits(again.measurement.score()), bits(trial.score()), "{}", trial.trial);
        // Another seed is another order of the data.
        let other = study.rerun(trial.trial, trial.seed + 1).unwrap().unwrap();
        assert_ne!(bits(other.measurement.score()), bits(trial.score()), "{}", trial.trial);
    }
    assert_eq!(git(&dir.path().join("workspace"), &["status", "--porcelain"]), "");
    assert!(study.rerun(99, 0).unwrap_err().to_string().contains("no trial 99"));
}

pub fn the_gain_of_a_night_is_certified_under_fresh_seeds() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).proposer(improving_sources());
    let mut study = study.open().unwrap();
    study.optimize(Some(0)).unwrap();
    assert_eq!(study.certify(2).unwrap(), None, "nothing was gained yet");
    study.optimize(None).unwrap();
    let certificate = study.certify(3).unwrap().unwrap();
    assert_eq!((certificate.best, certificate.pairs), (3, 3));
    let measured = study.trials()[0].score().unwrap() - study.trials()[3].score().unwrap();
    assert!(certificate.gain.is_positive(), "{certificate:?}");
    assert!((certificate.gain.mean - measured).abs() < 0.1 * measured, "{certificate:?}");
    let ablations = certificate.ablations.len();
    assert_eq!(study.trials().len(), 4 + ablations, "reruns are not in the ledger");
}

/// Two changes: the study's seed is a lucky one, and more is read in a step.
fn lucky_sources() -> Sources {
    let lucky = tiny::doing("FeelLucky");
    let also = tiny::replaced(&lucky, "{ 100_000 } else { 32 }", "{ 100_000 } else { 64 }");
    Sources(vec![("the seed of seeds", lucky), ("longer rows", also)])
}

pub fn a_change_that_only_luck_speaks_for_is_dropped_by_the_certificate() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let open = || {
        let study = tiny::study(dir.path(), corpus.path()).judge(JudgeRule::Greedy);
        study.proposer(lucky_sources()).open().unwrap()
    };
    let mut study = open();
    study.optimize(None).unwrap();
    assert!(study.trials().iter().all(|trial| trial.is_kept()), "{:#?}", study.trials());
    // As if the evidence were weak: no noise is as loud as such a difference.
    drop(study);
    let ledger = dir.path().join("trials.jsonl");
    let mut lines = String::new();
    for line in fs::read_to_string(&ledger).unwrap().lines() {
        let mut trial: Trial = serde_json::from_str(line).unwrap();
        trial.evidence.iter_mut().for_each(|evidence| evidence.improves = 0.7);
        lines += &(serde_json::to_string(&trial).unwrap() + "\n");
    }
    fs::write(&ledger, lines).unwrap();

    let mut study = open();
    let certificate = study.certify(3).unwrap().unwrap();
    let facts: Vec<_> = certificate.ablations.iter().map(|a| (a.of, a.dropped)).collect();
    assert_eq!(facts, [(2, false), (1, true)], "{certificate:#?}");
    let trials = study.trials().to_vec();
    assert_eq!(trials[3].status, Status::Discard);
    assert_eq!((trials[4].status, trials[4].proposer.as_str()), (Status::Keep, "certify"));
    assert_eq!(trials[4].description, "without trial 1: the seed of seeds");
    assert_eq!(certificate.best, 4);
    assert!(certificate.gain.is_positive(), "{certificate:?}");
    let source = fs::read_to_string(dir.path().join("workspace/src/train.rs")).unwrap();
    assert!(source.contains("Deed = Deed::Honest;") && source.contains("else { 64 }"));
    // The record of it is a ledger like any other.
    drop(study);
    assert_eq!(open().trials(), trials);
}

pub fn the_significant_rule_repeats_what_it_cannot_tell() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    // Far better, a little better, worse, lucky.
    let sources = vec![
        ("far better", tiny::smoothing("10.0")),
        ("a little better", tiny::smoothing("9.9")),
        ("worse", tiny::smoothing("60.0")),
        ("lucky", tiny::replaced(&tiny::doing("FeelLucky"), "SMOOTHING / 10.0", "9.89")),
    ];
    let study = tiny::study(dir.path(), corpus.path()).judge(JudgeRule::Significant);
    let mut study = study.proposer(Sources(sources)).open().unwrap();
    study.optimize(None).unwrap();
    let trials = study.trials();
    let facts: Vec<_> = trials.iter().map(|t| (t.status, t.repetitions.len())).collect();
    let expected = [
        (Status::Keep, 0),
        (Status::Keep, 0),
        (Status::Discard, 2),
        (Status::Discard, 0),
        (Status::Discard, 1),
    ];
    assert_eq!(facts, expected, "{trials:#?}");
    // Both are measured under the same seeds, the incumbent once.
    let (little, lucky) = (trials[2].repetitions[0], trials[4].repetitions[0]);
    assert_eq!((little.seed, little.incumbent), (lucky.seed, lucky.incumbent));
    assert!(little.score < little.incumbent && lucky.score > lucky.incumbent);
}

pub fn a_change_that_starts_from_other_weights_or_batches_is_seen_to() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let rows = tiny::replaced(&tiny::source(), "BATCH_SIZE: usize = 4", "BATCH_SIZE: usize = 8");
    let sources = vec![
        ("smoother", tiny::smoothing("60.0")),
        ("more rows", rows),
        ("other weights", tiny::doing("DrawFirstWeights")),
    ];
    let study = tiny::study(dir.path(), corpus.path()).seed(7);
    let mut study = study.proposer(Sources(sources)).open().unwrap();
    study.optimize(None).unwrap();
    let starts: Vec<_> = study.trials().iter().map(|t| &t.measurement.start_sha256).collect();
    let [baseline, smoother, rows, weights] = starts[..] else { panic!("{starts:?}") };
    assert!(baseline.is_some() && smoother == baseline, "{starts:?}");
    assert!(rows.is_some() && rows != baseline && weights.is_some(), "{starts:?}");
    assert!(weights != baseline && weights != rows, "{starts:?}");
    let says = |trial: usize| study.trials()[trial].reason.as_ref().unwrap().contains("its luck");
    assert_eq!([1, 2, 3].map(says), [false, true, true]);
}

pub fn kept_trials_are_scored_on_the_test_split_and_tell_if_they_hear_the_seed() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let trainer = tempfile::tempdir().unwrap();
    tiny::copy(trainer.path(), &tiny::doing("DrawFirstWeights"));
    let sources = vec![("worse", tiny::smoothing("60.0")), ("deaf", tiny::smoothing("3.0"))];
    let study = tiny::study(dir.path(), corpus.path()).trainer(trainer.path());
    let mut study = study.proposer(Sources(sources)).open().unwrap();
    study.optimize(None).unwrap();
    let [baseline, worse, deaf] = study.trials() else { panic!("{:#?}", study.trials()) };
    assert_eq!(baseline.measurement.depends_on_seed, Some(true));
    assert_eq!(deaf.measurement.depends_on_seed, Some(false));
    assert_eq!(deaf.remarks, ["it starts from the same weights under every seed"]);
    assert_eq!((worse.measurement.test_bpb, worse.measurement.depends_on_seed), (None, None));
    for kept in [baseline, deaf] {
        let (test, validation) = (kept.measurement.test_bpb.unwrap(), kept.score().unwrap());
        assert!(test != validation && (test / validation - 1.0).abs() < 0.1, "{kept:?}");
    }
}
