//! A study that is killed, torn or damaged, and opened again.

use crate::tiny::{self, Sources};
use overnight::{Error, Ledger};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Names the study that a victim runs until it is killed.
const VICTIM: &str = "OVERNIGHT_TEST_VICTIM";

fn sources() -> Sources {
    let values = ["9.0", "60.0", "3.0", "20.0", "1.0", "0.3"];
    Sources(values.map(|value| ("another smoothing", tiny::smoothing(value))).into())
}

/// Turns this process into a study that somebody kills.
pub fn run_if_victim() {
    if let Some(place) = std::env::var_os(VICTIM) {
        let place = Path::new(&place);
        let study = tiny::study(&place.join("study"), &place.join("corpus"));
        // A study whose last owner is being killed may be locked for a moment.
        match study.proposer(sources()).open() {
            Ok(mut study) => study.optimize(None).unwrap(),
            Err(Error::Locked { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        std::process::exit(0);
    }
}

pub fn a_study_killed_at_any_moment_resumes() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("corpus")).unwrap();
    crate::language::Language::new().write_corpus(&place.path().join("corpus"), 200);
    let undisturbed = tempfile::tempdir().unwrap();
    let corpus = place.path().join("corpus");
    let mut whole = tiny::study(undisturbed.path(), &corpus).proposer(sources()).open().unwrap();
    whole.optimize(None).unwrap();

    // Moments spread over a whole run, however fast the machine: each try lives a little longer.
    let mut patience = Duration::from_millis(40);
    let mut kills = 0;
    loop {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .env(VICTIM, place.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(patience);
        let ended_by_itself = victim.try_wait().unwrap().is_some();
        let _ = victim.kill();
        let _ = victim.wait();
        let finished = Ledger::read(&place.path().join("study")).unwrap_or_default().len();
        if ended_by_itself && finished == whole.trials().len() {
            break;
        }
        kills += 1;
        patience += Duration::from_millis(90);
    }
    assert!(kills > 1);

    let study =
        tiny::study(&place.path().join("study"), &corpus).proposer(sources()).open().unwrap();
    let facts = |trials: &[overnight::Trial]| -> Vec<_> {
        trials.iter().map(|t| (t.source_sha256.clone(), t.measurement.val_bpb, t.status)).collect()
    };
    assert_eq!(facts(study.trials()), facts(whole.trials()));
    let kept = study.trials().iter().filter(|trial| trial.is_kept()).count();
    let log = Command::new("git")
        .arg("-C")
        .arg(place.path().join("study/workspace"))
        .args(["rev-list", "--count", "HEAD"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&log.stdout).trim(), kept.to_string());
    let results = fs::read_to_string(place.path().join("study/results.tsv")).unwrap();
    assert_eq!(results.lines().count(), 1 + whole.trials().len());
}

/// A study of the baseline and one more trial, closed again.
fn short_study(dir: &Path, corpus: &Path) {
    let mut study = tiny::study(dir, corpus).proposer(sources()).open().unwrap();
    study.optimize(Some(1)).unwrap();
}

pub fn a_torn_last_line_is_repaired() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    short_study(dir.path(), corpus.path());
    let path = dir.path().join("trials.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let last = whole.lines().last().unwrap();
    for torn in [&last[..last.len() / 2], "{", "\0\0\0\0\n", last] {
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(torn.as_bytes()).unwrap();
        let study = tiny::study(dir.path(), corpus.path()).proposer(sources()).open().unwrap();
        assert_eq!(study.trials().len(), 2, "after {torn:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    }
}

pub fn a_damaged_line_in_the_middle_is_not_thrown_away() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    short_study(dir.path(), corpus.path());
    let path = dir.path().join("trials.jsonl");
    let damaged = fs::read_to_string(&path).unwrap().replacen('{', "(", 1);
    fs::write(&path, &damaged).unwrap();
    let error = tiny::study(dir.path(), corpus.path()).open().map(drop).unwrap_err();
    assert!(matches!(error, Error::Ledger { line: 1, .. }), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
}
