//! What users of such loops have reported: faults of agents, sources, settings and the machine that must not end a
//! night, and not change what it finds.

use crate::{
    surviving,
    tiny::{self, Sources},
};
use overnight::{
    CommandObjective, Event, Ledger, Outcome, Status, Study, Trial,
    proposer::{Agent, Brief, Proposal, ProposeError, Proposer, Replay, Tuner},
};
use std::sync::mpsc::Receiver;
use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command};

/// A night of the tiny trainer with these proposers.
fn night(dir: &Path, trials: usize, proposers: Vec<Box<dyn Proposer>>) -> Vec<Trial> {
    night_over(tiny::corpus().path(), dir, trials, proposers)
}

fn night_over(
    corpus: &Path,
    dir: &Path,
    trials: usize,
    proposers: Vec<Box<dyn Proposer>>,
) -> Vec<Trial> {
    let study = tiny::study(dir, corpus).without_thinking_ahead();
    let mut study =
        proposers.into_iter().fold(study, |study, it| study.proposer(it)).open().unwrap();
    study.optimize(Some(trials)).unwrap();
    study.trials().to_vec()
}

/// An agent that is this shell script.
fn agent(folder: &Path, script: &str) -> Box<dyn Proposer> {
    let path = folder.join("agent.sh");
    fs::write(&path, script).unwrap();
    Box::new(Agent::new(format!("sh '{}'", path.display()).parse().unwrap()))
}

const EDIT: &str = "sed -i \"s/^const SMOOTHING: f64 = .*;/const SMOOTHING: \
                    f64 = 5.$(od -An -N2 -tu2 /dev/urandom | tr -d ' ');/\" src/train.rs";

pub fn a_source_that_nests_without_end_ends_no_study() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let forms =
        [("(", "1", ")"), ("{", "1", "}"), ("!", "true", ""), ("[", "1", "]"), ("a = ", "1", "")];
    let deep = |(open, middle, close): (&str, &str, &str)| {
        let (open, close) = (open.repeat(20_000), close.repeat(20_000));
        format!("{}\nfn deep() {{ let _ = {open}{middle}{close}; }}\n", tiny::source())
    };
    let mut sources: Vec<_> = forms.map(|form| ("deep", deep(form))).into();
    sources.push(("long", "x".repeat(2 << 20)));
    sources.push(("less smoothing", tiny::smoothing("3.0")));
    let count = sources.len();
    let open = |sources: Vec<(&'static str, String)>| {
        let study = tiny::study(dir.path(), corpus.path()).proposer(Sources(sources));
        study.proposer(Tuner::new(0)).open().unwrap()
    };
    let mut study = open(sources);
    // Whoever's turn it is: the tuner observes all of it.
    study.optimize(Some(count + 2)).unwrap();
    let of = |name: &str| {
        let of: Vec<_> = study.trials().iter().filter(|trial| trial.description == name).collect();
        of.iter().map(|trial| (trial.outcome.clone(), trial.status)).collect::<Vec<_>>()
    };
    assert!(!of("deep").is_empty());
    assert!(
        of("deep").iter().all(|(outcome, _)| *outcome == Outcome::BuildFailed),
        "{:?}",
        of("deep")
    );
    let finished = study.trials().len();
    drop(study);
    let mut study = open(Vec::new());
    assert_eq!(study.trials().len(), finished);
    study.optimize(Some(1)).unwrap();
}

pub fn who_panics_ends_no_night() {
    struct Panics;
    impl Proposer for Panics {
        fn name(&self) -> &str {
            "panics"
        }
        fn propose(&mut self, _: &Brief<'_>) -> Result<Proposal, ProposeError> {
            panic!("out of ideas")
        }
        fn observe(&mut self, _: &Trial, _: &str) {
            panic!("seen enough")
        }
        fn thinks(&self) -> bool {
            true
        }
    }
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let (observer, events) = overnight::events();
    let study = tiny::study(dir.path(), corpus.path()).observer(observer).proposer(Panics);
    let mut study = study.proposer(Tuner::new(0)).open().unwrap();
    study.optimize(Some(4)).unwrap();
    assert_eq!(study.trials().len(), 5);
    drop(study);
    let said = |event: Event| matches!(event, Event::ProposerFailed { reason, .. } if reason.contains("out of ideas"));
    assert!(events.iter().any(said));
}

pub fn two_replays_each_know_their_own_trials() {
    let (dir, a, b) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut expected = Vec::new();
    for (folder, name, values) in [(&a, "a", ["9.0", "8.0"]), (&b, "b", ["7.0", "6.0"])] {
        for (n, value) in values.iter().enumerate() {
            let path = folder.path().join(format!("{n}0-{name}-{n}.rs"));
            fs::write(path, tiny::smoothing(value)).unwrap();
            expected.push(format!("{name} {n}"));
        }
    }
    let replay = |folder: &tempfile::TempDir| -> Box<dyn Proposer> {
        Box::new(Replay::open(folder.path()).unwrap())
    };
    let corpus = tiny::corpus();
    night_over(corpus.path(), dir.path(), 2, vec![replay(&a), replay(&b)]);
    let trials = night_over(corpus.path(), dir.path(), 9, vec![replay(&a), replay(&b)]);
    let mut names: Vec<_> = trials[1..].iter().map(|trial| trial.description.clone()).collect();
    names.sort();
    assert_eq!(names, expected);
    assert!(trials.iter().all(|trial| trial.outcome == Outcome::Measured));
}

pub fn nobody_who_proposes_learns_the_test_score() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let propose = |brief: &Brief<'_>| {
        assert!(brief.history.iter().all(|trial| trial.measurement.test_bpb.is_none()));
        assert_eq!(brief.incumbent.measurement.test_bpb, None);
        assert!(!brief.history_text().contains("test_bpb"));
        Ok(Proposal::new(tiny::smoothing(["9.0", "3.0"][brief.trial - 1]), "less smoothing"))
    };
    let mut study = tiny::study(dir.path(), corpus.path()).proposer(propose).open().unwrap();
    study.optimize(Some(2)).unwrap();
    assert_eq!(study.trials().len(), 3);
    assert!(study.trials()[0].measurement.test_bpb.is_some());
}

pub fn an_agent_that_breaks_its_folder_finds_a_whole_one_next_time() {
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mark = place.path().join("mark");
    let script = format!(
        "if [ ! -e '{mark}' ]; then touch '{mark}'; rm -rf src; exit 0; fi; {EDIT}\n\
         mkdir -p mod/x; chmod 555 mod/x mod; truncate -s 600M core.dump",
        mark = mark.display()
    );
    let trials = night(dir.path(), 2, vec![agent(place.path(), &script)]);
    assert_eq!(trials.len(), 3);
    assert!(trials.iter().all(|trial| trial.outcome == Outcome::Measured), "{trials:#?}");
    assert_eq!(fs::read_dir(dir.path().join("brief")).unwrap().count(), 0);
}

pub fn an_agent_that_links_out_of_its_folder_reaches_nothing() {
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let notes = place.path().join("notes.md");
    fs::write(&notes, "private notes").unwrap();
    let link = |name: &str| format!("rm -f {name}; ln -s '{}' {name}\n", notes.display());
    let script = format!("{EDIT}\n{}{}", link("program.md"), link("HISTORY.md"));
    let trials = night(dir.path(), 2, vec![agent(place.path(), &script)]);
    assert_eq!(trials.len(), 3);
    assert_eq!(fs::read_to_string(&notes).unwrap(), "private notes");
}

pub fn an_editors_line_ends_are_no_change() {
    let (dir, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = format!("{EDIT}\nsed -i 's/$/\\r/' src/train.rs");
    night(dir.path(), 1, vec![agent(place.path(), &script)]);
    let diff = fs::read_to_string(dir.path().join("trials/0001/change.diff")).unwrap();
    let is_change = |line: &&str| {
        line.starts_with(['-', '+']) && !line.starts_with("---") && !line.starts_with("+++")
    };
    assert_eq!(diff.lines().filter(is_change).count(), 2, "{diff}");
}

pub fn the_callers_repository_is_nobodys_business() {
    let place = surviving::place();
    let user = place.path().join("user");
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=a", "-c", "user.email=a@b"]).arg("-C").arg(&user);
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    fs::create_dir(&user).unwrap();
    git(&["init", "-q"]);
    git(&["commit", "-q", "--allow-empty", "-m", "first"]);
    let script = format!(
        "{EDIT}\ngit add -A && git -c user.name=agent -c user.email=a@b commit -q -m 'try smoothing'\n\
         git log --format=%s > '{}'",
        place.path().join("log").display()
    );
    let path = place.path().join("agent.sh");
    fs::write(&path, script).unwrap();
    let mut victim = surviving::victim(place.path());
    victim.env(surviving::AGENT, format!("sh '{}'", path.display()));
    victim.env(surviving::TRIALS, "1").env("GIT_DIR", user.join(".git"));
    assert!(victim.status().unwrap().success());
    assert_eq!(git(&["log", "--format=%s"]), "first\n");
    assert_eq!(fs::read_to_string(place.path().join("log")).unwrap(), "try smoothing\n");
}

pub fn the_users_cargo_settings_change_nothing() {
    let place = surviving::place();
    let home = place.path().join("cargo-home");
    fs::create_dir(&home).unwrap();
    let theirs = std::env::var_os("CARGO_HOME").map(std::path::PathBuf::from);
    let theirs =
        theirs.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cargo"));
    for name in ["registry", "bin"] {
        std::os::unix::fs::symlink(theirs.join(name), home.join(name)).unwrap();
    }
    let version = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let settings = format!(
        "[build]\ntarget = \"{host}\"\nrustflags = [\"--cfg\", \"spoiled\"]\n\
         rustc-wrapper = \"/no/such/wrapper\"\n[profile.release]\nopt-level = 0\ndebug-assertions = true\n"
    );
    fs::write(home.join("config.toml"), settings).unwrap();
    let source = place.path().join("source.rs");
    let spoiled = "#[cfg(any(spoiled, debug_assertions))]\ncompile_error!(\"spoiled\");\n";
    fs::write(&source, tiny::smoothing("3.0") + spoiled).unwrap();
    let mut victim = surviving::victim(place.path());
    victim.env(surviving::SOURCE, &source).env("CARGO_HOME", &home);
    // The dependencies of another home are others.
    victim.env("OVERNIGHT_CACHE", place.path().join("cache")).stderr(std::process::Stdio::piped());
    let output = victim.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trials = Ledger::read(&place.path().join("study")).unwrap();
    assert_eq!(trials[1].outcome, Outcome::Measured, "{:?}", trials[1].reason);
}

pub fn a_toolchain_file_above_the_trainer_changes_nothing() {
    let (corpus, dir, place) =
        (tiny::corpus(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let trainer = place.path().join("deep/down/trainer");
    tiny::copy(&trainer, &tiny::source());
    fs::write(
        place.path().join("rust-toolchain.toml"),
        "[toolchain]\nchannel = \"nightly-2020-01-01\"\n",
    )
    .unwrap();
    let mut study = tiny::study(dir.path(), corpus.path()).trainer(trainer).open().unwrap();
    study.optimize(Some(0)).unwrap();
    let built_by = Command::new("rustc").arg("-vV").current_dir("/").output().unwrap().stdout;
    let text = fs::read_to_string(dir.path().join("study.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["toolchain"], String::from_utf8(built_by).unwrap().trim());
}

pub fn a_script_of_the_project_runs_and_the_tuner_reads_its_language() {
    let (dir, job) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(job.path().join("opt.py"), "LR = 0.1  # search: log 1e-3..1\n").unwrap();
    let script = "#!/bin/sh\nsed -n 's/LR = \\([^ ]*\\).*/METRIC loss=\\1/p' opt.py\n";
    fs::write(job.path().join("job.sh"), script).unwrap();
    fs::set_permissions(job.path().join("job.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    let objective = CommandObjective::new(job.path(), "opt.py", ["./job.sh"]).minimize("loss");
    let study = Study::builder(dir.path()).controls(0).objective(objective);
    let mut study = study.proposer(Tuner::new(0)).open().unwrap();
    study.optimize(Some(4)).unwrap();
    let trials = study.trials();
    assert!(trials.iter().all(|trial| trial.outcome == Outcome::Measured), "{trials:#?}");
    assert!(trials[1..].iter().any(|trial| trial.status == Status::Keep), "{trials:#?}");
}

pub fn a_damaged_dependency_is_compiled_anew_and_no_sources_fault() {
    let (corpus, dir, cache) =
        (tiny::corpus(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (observer, events) = overnight::events();
    let study = tiny::study(dir.path(), corpus.path()).cache_dir(cache.path()).observer(observer);
    let sources = ["9.0", "8.0"].map(|value| ("another smoothing", tiny::smoothing(value)));
    let mut study = study.proposer(Sources(sources.into())).open().unwrap();
    study.optimize(Some(1)).unwrap();
    damage_dependencies(cache.path());
    study.optimize(Some(1)).unwrap();
    assert_eq!(study.trials()[2].outcome, Outcome::Measured, "{:?}", study.trials()[2].reason);
    drop(study);
    let said =
        |event: Event| matches!(event, Event::Noted { remark } if remark.contains("compiled anew"));
    assert!(events.iter().any(said));
}

/// Leaves the compiled dependencies in a cache as a power cut does.
fn damage_dependencies(cache: &Path) {
    let mut damaged = 0;
    for target in fs::read_dir(cache).unwrap().flatten() {
        let deps = fs::read_dir(target.path().join("release/deps"));
        for file in deps.into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "rlib") {
                fs::File::options().write(true).open(file.path()).unwrap().set_len(0).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 3, "{damaged}");
}

pub fn a_damaged_dependency_is_found_before_a_night() {
    let (corpus, dir, cache) =
        (tiny::corpus(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = || {
        let (observer, events) = overnight::events();
        let sources = ["9.0", "8.0"].map(|value| ("another smoothing", tiny::smoothing(value)));
        let sources = sources.to_vec();
        let study = tiny::study(dir.path(), corpus.path()).cache_dir(cache.path());
        let study = study.observer(observer).proposer(Sources(sources)).open().unwrap();
        (study, events)
    };
    let noted = |events: Receiver<Event>| -> Vec<String> {
        let remark = |event| match event {
            Event::Noted { remark } => Some(remark),
            _ => None,
        };
        events.iter().filter_map(remark).collect()
    };
    let (mut study, events) = open();
    study.optimize(Some(1)).unwrap();
    drop(study);
    assert_eq!(noted(events), [""; 0]);
    damage_dependencies(cache.path());
    let (mut study, events) = open();
    study.optimize(Some(1)).unwrap();
    assert_eq!(study.trials()[2].outcome, Outcome::Measured);
    drop(study);
    let noted = noted(events);
    // Nobody had to doubt a trial for it.
    assert!(matches!(&*noted, [one] if one.contains("not what the compiler left")), "{noted:?}");
}

pub fn a_limit_of_the_shell_is_no_sources_fault() {
    let place = surviving::place();
    let victim = |trials: &str| {
        let mut victim = surviving::victim(place.path());
        victim.env(surviving::TRIALS, trials).stderr(std::process::Stdio::piped());
        victim
    };
    assert!(victim("0").status().unwrap().success());
    let output = victim("3").env(surviving::FILE_BYTES, "100000").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("File too large") || said.contains("machine"), "{said}");
    assert_eq!(Ledger::read(&place.path().join("study")).unwrap().len(), 1);
    // Without the limit it goes on.
    assert!(victim("1").status().unwrap().success());
    assert_eq!(Ledger::read(&place.path().join("study")).unwrap().len(), 2);
}
