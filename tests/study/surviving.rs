//! A study that is killed, torn or damaged, and opened again.

use crate::tiny::{self, Sources};
use overnight::{Budget, Error, Event, Ledger, Status, StopHandle, Study, Trial, proposer::Agent};
use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

/// Names the study that a victim runs until something happens to it.
const VICTIM: &str = "OVERNIGHT_TEST_VICTIM";

/// The file with the one source that a victim proposes, if not those that are here.
pub const SOURCE: &str = "OVERNIGHT_TEST_SOURCE";

/// The command line of an agent that proposes for a victim in the place of sources.
pub const AGENT: &str = "OVERNIGHT_TEST_AGENT";

/// How many trials a victim carries out.
pub const TRIALS: &str = "OVERNIGHT_TEST_TRIALS";

/// The ordinal of the card that a victim's trainers are told to compute on.
pub const CARD: &str = "OVERNIGHT_TEST_CARD";

/// The trainer crate of a victim, if not the tiny one.
pub const TRAINER: &str = "OVERNIGHT_TEST_TRAINER";

/// Has a victim look after Ctrl-C and the signals like it, as a user's program does.
pub const ENDS_WELL: &str = "OVERNIGHT_TEST_ENDS_WELL";

/// Has a victim started with SIGHUP ignored, as under `nohup`.
pub const NO_HANGUP: &str = "OVERNIGHT_TEST_NO_HANGUP";

/// The most that a victim may write to a file, in bytes.
pub const FILE_BYTES: &str = "OVERNIGHT_TEST_FILE_BYTES";

/// How often the study is killed, if not so often that a test run stays short.
const KILLS: &str = "OVERNIGHT_TEST_KILLS";

fn sources() -> Sources {
    if let Some(path) = std::env::var_os(SOURCE) {
        return Sources(vec![("the subject", fs::read_to_string(path).unwrap())]);
    }
    let values = ["9.0", "60.0", "3.0", "20.0", "1.0", "0.3"];
    Sources(values.map(|value| ("another smoothing", tiny::smoothing(value))).into())
}

/// Turns this process into a study that somebody kills or starves.
pub fn run_if_victim() {
    if let Some(place) = std::env::var_os(VICTIM) {
        let is_set = |name: &str| std::env::var_os(name).is_some();
        // Whoever runs the tests may have this ignored, and what is ignored is inherited.
        let hangup = if is_set(NO_HANGUP) { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: neither action runs code of ours.
        unsafe { libc::signal(libc::SIGHUP, hangup) };
        if let Ok(bytes) = std::env::var(FILE_BYTES) {
            limit_files(bytes.parse().unwrap());
        }
        let place = Path::new(&place);
        let mut study = tiny::study(&place.join("study"), &place.join("corpus"));
        if let Ok(ordinal) = std::env::var(CARD) {
            study = study.cuda_device(ordinal.parse().unwrap());
        }
        if let Some(folder) = std::env::var_os(TRAINER) {
            study = study.trainer(folder);
        }
        if is_set(ENDS_WELL) {
            study = study.stop_handle(StopHandle::on_interrupt().unwrap());
        }
        let study = match std::env::var(AGENT) {
            Ok(command) => study.proposer(Agent::new(command.parse().unwrap())),
            Err(_) => study.proposer(sources()),
        };
        // A study whose last owner is being killed may be locked for a moment.
        let ended = match study.open() {
            Ok(mut study) => {
                let trials = std::env::var(TRIALS).ok().map(|trials| trials.parse().unwrap());
                study.optimize(trials).map(drop)
            }
            Err(Error::Locked { .. }) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = &ended {
            eprintln!("{error}");
        }
        std::process::exit(i32::from(ended.is_err()));
    }
}

/// As if the disk were full for whatever file is longer.
fn limit_files(bytes: u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // SAFETY: the default action would end the process; to ignore a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let Rlimit { maximum, .. } = getrlimit(Resource::Fsize);
    setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), maximum }).unwrap();
}

pub fn victim(place: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(VICTIM, place).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A folder with the test language in `corpus`, for a victim's study.
pub fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("corpus")).unwrap();
    crate::language::Language::new().write_corpus(&place.path().join("corpus"), 200);
    place
}

/// What has to be the same however a study came about.
fn facts(study: &Study) -> Vec<(String, Option<f64>, Status, Vec<String>)> {
    let files = |trial: &Trial| {
        let entries = fs::read_dir(study.folder_of(trial.trial)).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let fact = |trial: &Trial| {
        let val_bpb = trial.measurement.val_bpb;
        (trial.source_sha256.clone(), val_bpb, trial.status, files(trial))
    };
    study.trials().iter().map(fact).collect()
}

/// The subjects of the branch's commits, and the tree of its last.
fn branch(study: &Study) -> String {
    let git = |arguments: &[&str]| {
        let workspace = study.dir().join("workspace");
        let output = Command::new("git").arg("-C").arg(workspace).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(git(&["status", "--porcelain"]), "");
    git(&["log", "--format=%s"]) + &git(&["rev-parse", "HEAD^{tree}"])
}

/// `OVERNIGHT_TEST_KILLS=100` is the long form.
pub fn a_study_killed_at_any_moment_resumes() {
    let place = place();
    let corpus = place.path().join("corpus");
    let undisturbed = tempfile::tempdir().unwrap();
    let mut whole = tiny::study(undisturbed.path(), &corpus).proposer(sources()).open().unwrap();
    whole.optimize(None).unwrap();

    // As long as there are kills to come, a study that is through begins anew. The moments are
    // random; how far they lie apart follows the machine, which finishes about a trial in between.
    let kills = std::env::var(KILLS).map_or(12, |kills| kills.parse().unwrap());
    let study = place.path().join("study");
    let (mut done, mut finished, mut studies, mut longest) = (0, 0, 1, 0.4);
    let mut random = numbers(7);
    while done < kills {
        let mut victim = victim(place.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs_f64(longest * random()));
        let ended_by_itself = victim.try_wait().unwrap().is_some();
        let _ = victim.kill();
        let _ = victim.wait();
        let now = Ledger::read(&study).unwrap_or_default().len();
        assert!(now >= finished, "{now} trials after {finished}");
        longest *= if now == finished { 1.1 } else { 0.9 };
        finished = now;
        if finished == whole.trials().len() {
            check(&study, &corpus, &whole);
            fs::remove_dir_all(&study).unwrap();
            (finished, studies) = (0, studies + 1);
        } else if !ended_by_itself {
            done += 1;
        }
    }
    println!("killed {done} times, in {studies} studies");
    assert!(victim(place.path()).status().unwrap().success());
    check(&study, &corpus, &whole);
}

/// Numbers from 0 to 1, by Knuth's MMIX generator.
fn numbers(mut state: u64) -> impl FnMut() -> f64 {
    move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn check(study: &Path, corpus: &Path, whole: &Study) {
    let study = tiny::study(study, corpus).proposer(sources()).open().unwrap();
    assert_eq!(facts(&study), facts(whole));
    assert_eq!(branch(&study), branch(whole));
    let results = |study: &Study| {
        let text = fs::read_to_string(study.dir().join("results.tsv")).unwrap();
        // Without commits and memory, which differ from run to run.
        let row = |line: &str| {
            let columns: Vec<_> = line.split('\t').collect();
            [columns[1], columns[3], columns[4]].join("\t")
        };
        text.lines().map(row).collect::<Vec<_>>()
    };
    assert_eq!(results(&study), results(whole));
}

pub fn a_disk_that_is_full_for_the_ledger_ends_the_study_and_tears_nothing() {
    let place = place();
    let (study, corpus) = (place.path().join("study"), place.path().join("corpus"));
    short_study(&study, &corpus);
    // By far the longest file, so that nothing else is too long.
    let ledger = study.join("trials.jsonl");
    let text = fs::read_to_string(&ledger).unwrap();
    let padded =
        text.replacen("\"reason\":\"", &format!("\"reason\":\"{}", "-".repeat(48 << 20)), 1);
    assert_ne!(padded, text);
    fs::write(&ledger, &padded).unwrap();

    let mut victim = victim(place.path());
    victim.env(FILE_BYTES, (padded.len() + 100).to_string()).stderr(Stdio::piped());
    let output = victim.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot append to") && said.contains("trials.jsonl"), "{said}");
    assert!(fs::read_to_string(&ledger).unwrap() == padded, "the ledger has changed");

    // With room again it goes on.
    let mut study = tiny::study(&study, &corpus).proposer(sources()).open().unwrap();
    assert_eq!(study.trials().len(), 2);
    study.optimize(Some(1)).unwrap();
    assert_eq!(study.trials().len(), 3);
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

pub fn a_last_line_that_lacks_only_its_end_is_kept() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    short_study(dir.path(), corpus.path());
    let path = dir.path().join("trials.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, whole.trim_end()).unwrap();
    assert_eq!(Ledger::read(dir.path()).unwrap().len(), 2);
    let mut study = tiny::study(dir.path(), corpus.path()).proposer(sources()).open().unwrap();
    assert_eq!(study.trials().len(), 2);
    assert_eq!(fs::read_to_string(&path).unwrap(), whole);
    study.optimize(Some(1)).unwrap();
    assert_eq!(Ledger::read(dir.path()).unwrap().len(), 3);
}

pub fn trials_without_their_configuration_are_not_gone_on_with() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    short_study(dir.path(), corpus.path());
    let path = dir.path().join("study.json");
    fs::remove_file(&path).unwrap();
    let study = tiny::study(dir.path(), corpus.path()).budget("40steps".parse().unwrap());
    let error = study.open().map(drop).unwrap_err();
    assert!(matches!(error, Error::NoConfiguration { .. }), "{error}");
    assert!(!path.exists());
}

pub fn what_cannot_be_a_study_is_refused_and_leaves_nothing() {
    let corpus = tiny::corpus();
    let dir = tempfile::tempdir().unwrap();
    let study = || tiny::study(dir.path(), corpus.path());
    for study in [
        study().budget(Budget::WallClock(Duration::from_micros(300))),
        study().budget(Budget::WallClock(Duration::from_hours(8 * 24))),
        study().budget(Budget::Steps(0)),
        study().exam_comparisons(0),
        study().exam_windows(0),
    ] {
        assert!(study.open().is_err());
        assert!(!dir.path().join("study.json").exists());
    }
    study().open().unwrap();
}

/// A damage to a study's repository.
type Damage = (&'static str, fn(&Path));

pub fn a_repository_that_a_crash_left_in_disorder_is_put_in_order() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    {
        let study = tiny::study(dir.path(), corpus.path()).proposer(sources());
        study.open().unwrap().optimize(Some(4)).unwrap();
    }
    let source = |study: &Study| {
        let path = study.dir().join("workspace/src/train.rs");
        fs::read_to_string(path).unwrap()
    };
    let damages: [Damage; 6] = [
        ("HEAD.lock is gone", |git| {
            for name in ["HEAD.lock", "index.lock", "config.lock", "refs/heads/overnight.lock"] {
                fs::write(git.join(name), "").unwrap();
            }
        }),
        ("index was torn", |git| fs::write(git.join("index"), "DIRC\0\0").unwrap()),
        ("laid anew", |git| fs::write(git.join("HEAD"), "").unwrap()),
        ("laid anew", |git| {
            for folder in fs::read_dir(git.join("objects")).unwrap().flatten() {
                for object in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                    fs::remove_file(object.path()).unwrap();
                    fs::write(object.path(), "").unwrap();
                }
            }
        }),
        ("laid anew", |git| fs::remove_dir_all(git).unwrap()),
        ("laid anew", |git| fs::remove_dir_all(git.parent().unwrap()).unwrap()),
    ];
    let before = {
        let study = tiny::study(dir.path(), corpus.path()).open().unwrap();
        (facts(&study), branch(&study), source(&study))
    };
    for (said, damage) in damages {
        damage(&dir.path().join("workspace/.git"));
        let (observer, events) = overnight::events();
        let study = tiny::study(dir.path(), corpus.path()).observer(observer).open().unwrap();
        assert_eq!((facts(&study), branch(&study), source(&study)), before, "{said}");
        drop(study);
        let remarks: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Noted { remark } => Some(remark),
                _ => None,
            })
            .collect();
        assert!(remarks.iter().any(|remark| remark.contains(said)), "{said}: {remarks:?}");
        // And it is so for good.
        let study = tiny::study(dir.path(), corpus.path()).open().unwrap();
        assert_eq!((facts(&study), branch(&study), source(&study)), before, "{said}");
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
