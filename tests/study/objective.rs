//! Objectives that are no trainer: commands that print a number.

use overnight::{
    CommandObjective, Outcome, Status, Study, Trial,
    proposer::{Brief, Proposal, Tuner},
};
use std::{fs, path::Path, process::Command, time::Duration};

fn project(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.sh"), script).unwrap();
    fs::write(folder.path().join("value.rs"), "const VALUE: f64 = 3.0; // search: uniform 0..10\n")
        .unwrap();
    folder
}

/// One trial after the baseline, in which `VALUE` is 4.
fn try_out(
    dir: &Path,
    script: &str,
    with: impl FnOnce(CommandObjective) -> CommandObjective,
) -> Vec<Trial> {
    let project = project(script);
    let objective = with(CommandObjective::new(project.path(), "value.rs", ["sh", "run.sh"]));
    let propose = |brief: &Brief<'_>| {
        assert_eq!(fs::read_to_string(brief.folder.join("value.rs")).unwrap(), brief.source);
        Ok(Proposal::new(brief.source.replace("3.0", "4.0"), "a four"))
    };
    let mut study =
        Study::builder(dir).controls(0).objective(objective).proposer(propose).open().unwrap();
    study.optimize(Some(1)).unwrap();
    study.trials().to_vec()
}

const PRINT: &str = "sed -n 's/.*= \\(.*\\);.*/METRIC it=\\1/p' value.rs";

pub fn a_command_is_minimized_or_maximized() {
    for (maximize, expected) in [(false, Status::Discard), (true, Status::Keep)] {
        let dir = tempfile::tempdir().unwrap();
        let trials = try_out(dir.path(), PRINT, |objective| {
            if maximize { objective.maximize("it") } else { objective.minimize("it") }
        });
        assert_eq!(trials[1].status, expected, "{trials:#?}");
        let metric = trials[1].measurement.metric.as_ref().unwrap();
        assert_eq!((metric.name.as_str(), metric.value), ("it", 4.0));
        assert_eq!(trials[1].measurement.val_bpb, None);
        let results = fs::read_to_string(dir.path().join("results.tsv")).unwrap();
        assert!(results.contains("4.000000"), "{results}");
        assert!(overnight::report::summary(&trials).contains("best_score:"));
    }
}

pub fn a_command_fails_in_its_own_ways() {
    // The baseline is well; what the trial does is in the second half.
    let unless_three =
        |misdeed: &str| format!("grep -q 3.0 value.rs && {PRINT} || {{ {misdeed}; }}");
    for (misdeed, outcome, said) in [
        ("echo oh; exit 3", Outcome::Exited { exit_code: 3 }, "status 3"),
        ("kill -9 $$", Outcome::Signalled { signal: 9 }, "signal 9"),
        ("sleep 1000", Outcome::TimedOut, "not done in time"),
        ("echo the metric is 5", Outcome::Failed, "METRIC it="),
        ("echo METRIC it=NaN", Outcome::Rejected, "NaN"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let trials = try_out(dir.path(), &unless_three(misdeed), |objective| {
            objective.minimize("it").limit(Duration::from_secs(2))
        });
        assert_eq!((trials[1].outcome.clone(), trials[1].status), (outcome, Status::Crash));
        assert!(trials[1].reason.as_ref().unwrap().contains(said), "{:?}", trials[1].reason);
    }
}

pub fn what_a_command_changes_beside_the_edited_file_is_put_back() {
    let dir = tempfile::tempdir().unwrap();
    let script = format!("{PRINT}; echo exit 1 > run.sh");
    let trials = try_out(dir.path(), &script, |objective| objective.maximize("it"));
    // A second trial could not have been measured with the script that the first one left.
    assert_eq!(trials[1].status, Status::Keep, "{trials:#?}");
}

pub fn the_tuner_turns_the_constants_of_any_rust_file() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(PRINT);
    let objective =
        CommandObjective::new(project.path(), "value.rs", ["sh", "run.sh"]).minimize("it");
    let mut study = Study::builder(dir.path())
        .controls(0)
        .objective(objective)
        .proposer(Tuner::new(0))
        .open()
        .unwrap();
    study.optimize(Some(12)).unwrap();
    let best = study.best_trial().unwrap();
    assert!(best.trial > 0 && best.score().unwrap() < 3.0, "{best:#?}");
    // Another metric is another study.
    drop(study);
    let other = CommandObjective::new(project.path(), "value.rs", ["sh", "run.sh"]).maximize("it");
    let error = Study::builder(dir.path()).objective(other).open().err().unwrap().to_string();
    assert!(error.contains("higher_is_better was false and is true"), "{error}");
}

pub fn a_python_trainer_runs_as_it_is() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trainers/python");
    let objective = CommandObjective::new(folder, "train.py", ["python3", "train.py"])
        .limit(Duration::from_secs(120));
    let propose = |brief: &Brief<'_>| {
        let source = brief.source.replace("SMOOTHING = 5.0", "SMOOTHING = 0.1");
        Ok(Proposal::new(source, "less smoothing"))
    };
    let mut study = Study::builder(dir.path())
        .controls(0)
        .objective(objective)
        .proposer(propose)
        .open()
        .unwrap();
    study.optimize(Some(1)).unwrap();
    let trials = study.trials();
    assert_eq!(trials[1].status, Status::Keep, "{trials:#?}");
    assert_eq!(trials[1].measurement.name_of_score(), "val_bpb");
    assert!(trials[1].measurement.num_steps.unwrap() > 0);
    assert!(study.folder_of(1).join("source.py").exists());
}
