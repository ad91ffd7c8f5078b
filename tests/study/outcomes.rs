//! What becomes of trainers that fail, each in its own way.

use crate::tiny;
use overnight::{Budget, Outcome, Sandbox, Status, Study, Trial};
use std::{fs, path::Path, time::Duration};

/// Runs the baseline and then `source`; the second trial.
fn try_out(dir: &Path, source: String) -> (Study, Trial) {
    try_out_within(Sandbox::default(), dir, source)
}

fn try_out_within(sandbox: Sandbox, dir: &Path, source: String) -> (Study, Trial) {
    let corpus = tiny::corpus();
    let mut study = tiny::study(dir, corpus.path())
        .sandbox(sandbox)
        .grace(Duration::from_secs(2))
        .budget(Budget::WallClock(Duration::from_millis(500)))
        .proposer(tiny::Sources(vec![("the subject", source)]))
        .open()
        .unwrap();
    study.optimize(Some(1)).unwrap();
    let trial = study.trials()[1].clone();
    (study, trial)
}

pub fn every_misdeed_has_its_outcome() {
    // Of each: what it comes to, and what the reason must say for a person to understand.
    let deeds = [
        ("PanicInNew", Outcome::Panicked, "src/train.rs"),
        ("PanicInTraining", Outcome::Panicked, "a shape does not fit"),
        ("ErrorInTraining", Outcome::Failed, "the loss is not a number"),
        ("ExitInTraining", Outcome::Exited { exit_code: 3 }, "status 3"),
        ("AbortInTraining", Outcome::Signalled { signal: 6 }, "aborted"),
        ("AskForTooMuch", Outcome::Panicked, "1 to 64 tokens"),
        ("ForgetWeights", Outcome::Failed, "what weights?"),
        ("AnswerNan", Outcome::Rejected, "NaN nats"),
        ("HalveTheNats", Outcome::Rejected, "the rooms disagree"),
        ("LookAhead", Outcome::Rejected, "the rooms disagree"),
    ];
    let corpus = tiny::corpus();
    let dir = tempfile::tempdir().unwrap();
    let sources = deeds.iter().map(|(deed, ..)| (*deed, tiny::doing(deed))).collect();
    let mut study =
        tiny::study(dir.path(), corpus.path()).proposer(tiny::Sources(sources)).open().unwrap();
    study.optimize(None).unwrap();
    assert_eq!(study.trials().len(), 1 + deeds.len());
    for (trial, (deed, outcome, reason)) in study.trials()[1..].iter().zip(&deeds) {
        assert_eq!(trial.outcome, *outcome, "{deed}: {:?}", trial.reason);
        assert_eq!(trial.status, Status::Crash, "{deed}");
        assert_eq!(trial.measurement.val_bpb, None, "{deed}");
        let said = trial.reason.as_deref().unwrap_or_default();
        assert!(said.contains(reason), "{deed}: {said}");
    }
    let overflow = tempfile::tempdir().unwrap();
    let (_, trial) = try_out(overflow.path(), tiny::doing("Overflow"));
    assert!(matches!(trial.outcome, Outcome::Signalled { .. }), "{trial:?}");
}

pub fn a_trainer_that_hangs_is_killed_with_its_children() {
    let dir = tempfile::tempdir().unwrap();
    let (_, trial) = try_out(dir.path(), tiny::doing("Hang"));
    assert_eq!(trial.outcome, Outcome::TimedOut, "{:?}", trial.reason);

    // Where there is a sandbox, no trainer has children.
    let dir = tempfile::tempdir().unwrap();
    let source = tiny::doing("LeaveAChildBehind");
    let (study, trial) = try_out_within(Sandbox::Off, dir.path(), source);
    assert_eq!(trial.outcome, Outcome::Exited { exit_code: 0 }, "{:?}", trial.reason);
    let log = fs::read_to_string(study.folder_of(1).join("run.log")).unwrap();
    let child = log.lines().find_map(|line| line.strip_prefix("child ")).unwrap().to_owned();
    // Dead, or dead and not yet collected by whoever inherited it.
    let state = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z"), "the child goes on: {state}");
}

pub fn output_without_end_leaves_a_log_of_bounded_size() {
    let dir = tempfile::tempdir().unwrap();
    let (study, _) = try_out(dir.path(), tiny::doing("PrintWithoutEnd"));
    let log = fs::read_to_string(study.folder_of(1).join("run.log")).unwrap();
    assert!(log.len() < 2 << 20, "{} bytes", log.len());
    assert!(log.contains("line 0:") && log.contains("the very last line"));
    assert!(log.contains("bytes of output left out"));
}

pub fn what_a_trainer_starts_or_leaves_out_is_its_own_loss() {
    // Threads end with their process, and who returns early has trained less.
    for deed in ["StartAThousandThreads", "StopEarly"] {
        let dir = tempfile::tempdir().unwrap();
        let (study, trial) = try_out(dir.path(), tiny::doing(deed));
        assert_eq!(trial.outcome, Outcome::Measured, "{deed}: {:?}", trial.reason);
        assert_eq!(trial.status, Status::Discard, "{deed}: {:?}", trial.reason);
        assert_eq!(trial.measurement.num_steps, Some(1), "{deed}");
        let log = fs::read_to_string(study.folder_of(1).join("run.log")).unwrap();
        assert!(deed == "StopEarly" || log.contains("1000 threads"), "{log}");
    }
}

pub fn a_step_that_outlasts_the_grace_is_killed() {
    // The second is never silent: it goes on asking.
    for deed in ["StepPastTheGrace", "AskForEver"] {
        let dir = tempfile::tempdir().unwrap();
        let (_, trial) = try_out(dir.path(), tiny::doing(deed));
        assert_eq!(trial.outcome, Outcome::TimedOut, "{deed}: {:?}", trial.reason);
        assert!(trial.measurement.val_bpb.is_none() && trial.reason.unwrap().contains("killed"));
    }
}

pub fn a_scratch_folder_has_a_limit() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let deeds = ["FillTheScratchFolder", "FillItWithoutNames", "FillItDeeply"];
    let sources = tiny::Sources(deeds.map(|deed| (deed, tiny::doing(deed))).into());
    let study = tiny::study(dir.path(), corpus.path()).scratch_bytes(32 << 20);
    let mut study = study.proposer(sources).open().unwrap();
    study.optimize(None).unwrap();
    for (trial, deed) in study.trials()[1..].iter().zip(deeds) {
        assert_eq!(trial.outcome, Outcome::OutOfSpace, "{deed}: {:?}", trial.reason);
        let reason = trial.reason.as_deref().unwrap();
        assert!(reason.contains("more than 32 MiB") || deed == "FillItDeeply", "{deed}: {reason}");
        // What it left is gone.
        assert!(!study.folder_of(trial.trial).join("scratch").exists(), "{deed}");
    }
}

/// Made of the trainer that returns an error, with these lines in place of it.
fn unsafely(lines: &str) -> String {
    let source = tiny::doing("ErrorInTraining");
    let error = "return Err(Error::msg(\"the loss is not a number\")),";
    assert_eq!(source.matches(error).count(), 1);
    source.replace(error, &format!("{{ {lines} }}"))
}

pub fn a_study_that_allows_unsafe_code_survives_it() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let segfault = unsafely("unsafe { std::hint::black_box(8 as *mut u8).write(1) }");
    let deaf = unsafely(
        "unsafe extern \"C\" { fn signal(number: i32, handler: usize) -> usize; }\n\
         const SIGTERM: i32 = 15; const SIG_IGN: usize = 1;\n\
         unsafe { signal(SIGTERM, SIG_IGN); }\n\
         loop { std::thread::sleep(std::time::Duration::from_secs(1)) }",
    );
    let sources = tiny::Sources(vec![("segfault", segfault), ("deaf", deaf)]);
    let mut study = tiny::study(dir.path(), corpus.path())
        .allow_unsafe()
        .grace(Duration::from_secs(2))
        .budget(Budget::WallClock(Duration::from_millis(500)))
        .proposer(sources)
        .open()
        .unwrap();
    study.optimize(None).unwrap();
    let trials = study.trials();
    assert_eq!(trials[0].remarks, ["this study allows unsafe code"]);
    assert_eq!(trials[1].outcome, Outcome::Signalled { signal: 11 }, "{:?}", trials[1].reason);
    assert!(trials[1].reason.as_deref().unwrap().contains("segmentation fault"));
    assert_eq!(trials[2].outcome, Outcome::TimedOut, "{:?}", trials[2].reason);
    // It is another study than one that forbids it.
    drop(study);
    let error = tiny::study(dir.path(), corpus.path()).open().map(drop).unwrap_err();
    assert!(error.to_string().contains("allows_unsafe"), "{error}");
}

pub fn code_that_does_not_compile_comes_back_with_the_compilers_words() {
    let dir = tempfile::tempdir().unwrap();
    let source = tiny::source().replace("let seq_len =", "let seq_len: String =");
    let (study, trial) = try_out(dir.path(), source);
    assert_eq!(trial.outcome, Outcome::BuildFailed);
    let reason = trial.reason.unwrap();
    assert!(reason.starts_with("src/train.rs:") && reason.contains("mismatched types"), "{reason}");
    let log = fs::read_to_string(study.folder_of(1).join("build.log")).unwrap();
    assert!(log.contains("expected `String`"), "{log}");
}

pub fn unsafe_code_does_not_compile() {
    let dir = tempfile::tempdir().unwrap();
    // Neither in a block, nor by switching the lint off.
    let source = tiny::source() + "\n#[allow(unsafe_code)] pub fn f() { unsafe {} }\n";
    let (_, trial) = try_out(dir.path(), source);
    assert_eq!(trial.outcome, Outcome::BuildFailed, "{:?}", trial.reason);
}

pub fn a_baseline_that_fails_ends_the_study() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let trainer = tempfile::tempdir().unwrap();
    tiny::copy(trainer.path(), &tiny::doing("ErrorInTraining"));
    let study = tiny::study(dir.path(), corpus.path()).trainer(trainer.path()).open();
    let error = study.unwrap().step().unwrap_err().to_string();
    assert!(error.contains("the loss is not a number"), "{error}");
    assert!(error.contains("trials/0000"), "{error}");
}

pub fn a_trainer_of_another_layout_is_refused() {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("another-layout");
    let (api, own) = (place.join("api"), Path::new(env!("CARGO_MANIFEST_DIR")).join("plugin-api"));
    fs::create_dir_all(api.join("src")).unwrap();
    fs::copy(own.join("Cargo.toml"), api.join("Cargo.toml")).unwrap();
    for module in fs::read_dir(own.join("src")).unwrap() {
        let module = module.unwrap();
        let text = fs::read_to_string(module.path()).unwrap().replace("cuda_device", "card");
        fs::write(api.join("src").join(module.file_name()), text).unwrap();
    }
    let trainer = place.join("trainer");
    tiny::copy_with(&trainer, &tiny::source(), &api);
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let study = tiny::study(dir.path(), corpus.path()).trainer(&trainer).open();
    let error = study.unwrap().step().unwrap_err().to_string();
    assert!(error.contains("cannot load the trainer library"), "{error}");
    // abi_stable itself would say it in 20 000 bytes.
    assert!(error.len() < 2000, "{} bytes", error.len());
}

pub fn memory_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let (_, trial) = try_out(dir.path(), tiny::doing("AllocateNearlyAll"));
    assert!(matches!(trial.outcome, Outcome::Signalled { .. }), "{:?}", trial.reason);
    let dir = tempfile::tempdir().unwrap();
    let (_, trial) = try_out_within(Sandbox::Off, dir.path(), tiny::doing("AllocateNearlyAll"));
    assert_eq!(trial.outcome, Outcome::Measured, "{:?}", trial.reason);
}

pub fn a_loss_that_is_no_number_ends_the_trial_before_its_budget() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let sources = tiny::Sources(vec![("the subject", tiny::doing("Diverge"))]);
    // Quick steps for the honest baseline; the subject would take minutes.
    let study = tiny::study(dir.path(), corpus.path()).budget(Budget::Steps(20_000));
    let mut study = study.proposer(sources).open().unwrap();
    study.optimize(None).unwrap();
    let trial = &study.trials()[1];
    assert_eq!(trial.outcome, Outcome::Failed, "{:?}", trial.reason);
    assert!(trial.reason.as_deref().unwrap().contains("the loss is NaN"), "{trial:?}");
}

pub fn a_source_that_includes_what_is_not_its_own_does_not_compile() {
    let place = tempfile::tempdir().unwrap();
    let is_confined = tiny::can_confine();
    let read = "include_str!(\"/etc/passwd\")";
    for (sandbox, stolen, reasons) in [
        (Sandbox::Off, read, ["the source includes /etc/passwd", ""]),
        // Where the compiler is confined, it says so itself, with the line.
        (Sandbox::BestEffort, read, ["/etc/passwd", "src/train.rs:"]),
        (Sandbox::BestEffort, "env!(\"PATH\")", ["variable PATH", ""]),
    ] {
        let source = format!("{}\npub const STOLEN: &str = {stolen};\n", tiny::source());
        let dir = place.path().join(format!("{sandbox:?}-{}", stolen.len()));
        let (_, trial) = try_out_within(sandbox, &dir, source);
        assert_eq!(trial.outcome, Outcome::BuildFailed, "{:?}", trial.reason);
        let reason = trial.reason.unwrap();
        assert!(reason.contains(reasons[0]), "{reason}");
        assert!(!is_confined || reason.contains(reasons[1]), "{reason}");
    }
}

pub fn what_breaks_the_compiler_is_a_trial_that_failed() {
    // More than the compiler may have, and more depth than it can bear.
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let kib: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    let much = format!("pub static MUCH: [u8; {0}] = [1; {0}];", kib * 1024 / 20 * 19);
    let deep = format!("pub const DEEP: bool = {}true;", "!".repeat(200_000));
    for (name, text, said) in [("much", much, "more memory"), ("deep", deep, "SIGSEGV")] {
        let dir = tempfile::tempdir().unwrap();
        let (study, trial) = try_out(dir.path(), format!("{}\n{text}\n", tiny::source()));
        assert_eq!(trial.outcome, Outcome::BuildFailed, "{name}: {:?}", trial.reason);
        let log = fs::read_to_string(study.folder_of(1).join("build.log")).unwrap();
        // By itself, at its limit; not when the machine had no more.
        assert!(!log.contains("SIGKILL"), "{log}");
        assert!(log.contains(said), "{name}: {log}");
    }
}

/// The tiny trainer, and a constant that takes for ever.
pub fn endless() -> String {
    let endless = "#[allow(long_running_const_eval)]\npub const ENDLESS: usize = {\n    let mut n = \
                   0usize;\n    while n < usize::MAX {\n        n += 1;\n    }\n    n\n};\n";
    format!("{}\n{endless}", tiny::source())
}

pub fn a_compiler_without_end_is_killed() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let sources = tiny::Sources(vec![("the subject", endless())]);
    let study = tiny::study(dir.path(), corpus.path()).build_limit(Duration::from_secs(30));
    let mut study = study.proposer(sources).open().unwrap();
    study.optimize(None).unwrap();
    let trial = &study.trials()[1];
    assert_eq!(trial.outcome, Outcome::BuildFailed, "{:?}", trial.reason);
    assert!(trial.reason.as_deref().unwrap().contains("not done after 30 s"), "{trial:?}");
}
