//! The trainer that comes with the library.

use crate::tiny::{Sources, replaced};
use overnight::{
    Budget, Cargo, Objective, Outcome, StopHandle, Study, TrainerCrate, proposer::Tuner,
};
use std::{env, path::Path, process::Command};

/// They live in a workspace of their own, whose dependencies are compiled where a study's are.
pub fn the_shipped_trainers_own_tests_pass() {
    let cache = overnight::cache_dir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("trainer-template");
    let trainer = TrainerCrate::open(&folder).unwrap();
    let cargo = Cargo::open(&trainer, &cache, StopHandle::new()).unwrap();
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--locked", "--workspace", "--target-dir"]);
    command.arg(cargo.target_dir()).current_dir(&folder);
    let stdout = succeeds(command.env_remove("RUSTFLAGS"));
    assert!(stdout.contains("gradients_agree_with_finite_differences ... ok"), "{stdout}");
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{stdout}\n{stderr}");
    stdout
}

/// Where the variable `OVERNIGHT_TORCH` names a Python that has torch.
pub fn its_twin_in_pytorch_computes_the_same_losses() {
    let Some(python) = env::var_os("OVERNIGHT_TORCH") else {
        println!("skipped: OVERNIGHT_TORCH names no Python that has torch");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    let exported = dir.path().join("exported");
    let mut export = Command::new("cargo");
    export.args(["run", "--release", "--quiet", "--example", "twin", "--", "export"]);
    succeeds(export.arg(&exported).args(["--batches", "20"]).current_dir(root));
    let script = root.join("benches/pytorch/same_loss.py");
    succeeds(Command::new(python).arg(script).arg(&exported));
}

pub fn the_shipped_trainer_learns_from_the_built_in_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let study = Study::builder(dir.path()).exam_windows(32).exam_comparisons(32).threads(1);
    let mut study = study.budget(Budget::Steps(12)).proposer(Tuner::new(0)).open().unwrap();
    study.optimize(Some(1)).unwrap();
    let Objective::Trainer(config) = &study.config().objective else {
        panic!("the template is a trainer");
    };
    let uniform = (config.vocab_size as f64).ln();
    for trial in study.trials() {
        assert_eq!(trial.outcome, Outcome::Measured, "{trial:?}");
        assert!(trial.measurement.train_loss.unwrap() < 0.9 * uniform, "{trial:?}");
        assert!(trial.measurement.num_params.unwrap() > 100_000);
        // Text of 256 equally likely bytes costs 8 bits a byte.
        assert!(trial.measurement.val_bpb.unwrap() < 6.0, "{trial:?}");
    }
    assert_eq!(study.trials()[0].measurement.depends_on_seed, Some(true));

    // On one thread a recorded trial comes out the same, to the bit.
    let (seed, val_bpb) = (study.trials()[0].seed, study.trials()[0].score().unwrap());
    let again = study.rerun(0, seed).unwrap().unwrap().measurement.score().unwrap();
    assert_eq!(again.to_bits(), val_bpb.to_bits(), "{again} after {val_bpb}");
}

/// Under the same seeds, and where the processor multiplies bf16; elsewhere the two are one program.
pub fn bf16_learns_as_much_as_f32() {
    // How much runs of 60 steps differ from seed to seed: the standard deviation of 23, in bits per
    // byte. That of the difference under one seed was 0.012 in twelve, of which 0.007 is left in the
    // mean of three: equals do not fail here, whichever way another processor rounds.
    const BETWEEN_SEEDS: f64 = 0.03;
    let cache = overnight::cache_dir().unwrap();
    let source = TrainerCrate::template(&cache).unwrap().source().to_owned();
    let in_f32 = replaced(&source, "const BF16: bool = true;", "const BF16: bool = false;");
    let dir = tempfile::tempdir().unwrap();
    let study = Study::builder(dir.path()).budget(Budget::Steps(60)).exam_comparisons(16);
    let study = study.controls(0).without_race().proposer(Sources(vec![("in f32", in_f32)]));
    let mut study = study.open().unwrap();
    study.optimize(Some(1)).unwrap();
    let mut differences =
        vec![study.trials()[0].score().unwrap() - study.trials()[1].score().unwrap()];
    for seed in [1, 2] {
        let [bf16, f32] = [0, 1].map(|trial| {
            let again = study.rerun(trial, seed).unwrap().unwrap();
            again.measurement.score().unwrap()
        });
        differences.push(bf16 - f32);
    }
    println!("bf16 against f32, in bits per byte: {differences:+.4?}");
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    assert!(mean.abs() < BETWEEN_SEEDS, "{differences:?}");
}
