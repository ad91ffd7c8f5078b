//! Loading libraries into one process: for benches and tests, as documented.

use crate::tiny;
use overnight::{Build, Cargo, StopHandle, TrainerCrate, plugin::Plugin};
use overnight_plugin_api::{Device, Setup};
use std::{fs, process::Command};

pub fn two_artifacts_load_two_trainers() {
    let folder = tempfile::tempdir().unwrap();
    let cache = overnight::cache_dir().unwrap();
    let trainer = TrainerCrate::open(&tiny::folder()).unwrap();
    let cargo = Cargo::open(&trainer, &cache, StopHandle::new()).unwrap();
    let setup =
        Setup { vocab_size: 257, max_seq_len: 64, seed: 0, threads: 1, device: Device::Cpu };
    let first_logits = |name: &str, source: &str| {
        let library = folder.path().join(name);
        assert!(matches!(cargo.build(source, &library, |_, _| {}).unwrap(), Build::Built));
        let mut trainer = Plugin::load(&library).unwrap().trainer(&setup).unwrap();
        let checkpoint = folder.path().join("counts");
        let counts: Vec<u8> = (0..257 * 257).flat_map(|i| ((i % 7) as f32).to_le_bytes()).collect();
        fs::write(&checkpoint, counts).unwrap();
        trainer.load(&checkpoint).unwrap();
        let mut logits = vec![0.0; 257];
        trainer.logits(&[1, 2], &mut logits).unwrap();
        logits
    };
    let honest = first_logits("first.so", &tiny::source());
    let uniform = first_logits("second.so", &tiny::doing("Uniform"));
    assert!(uniform.iter().all(|&logit| logit == uniform[0]));
    assert!(honest.iter().any(|&logit| logit != honest[0]));
}

/// Crates in one target folder, each with a part of its own in the same place.
pub fn a_crate_is_built_with_its_own_parts() {
    let folder = tempfile::tempdir().unwrap();
    let cache = overnight::cache_dir().unwrap();
    let source = tiny::replaced(&tiny::source(), "f64 = 30.0;", "f64 = part::SMOOTHING;");
    let crates = ["1.0", "1000.0"].map(|smoothing| {
        let place = folder.path().join(smoothing);
        tiny::copy(&place, &source);
        let manifest = fs::read_to_string(place.join("Cargo.toml")).unwrap();
        let manifest =
            manifest.replace("[dependencies]\n", "[dependencies]\npart = { path = \"part\" }\n");
        fs::write(place.join("Cargo.toml"), manifest).unwrap();
        fs::create_dir_all(place.join("part/src")).unwrap();
        let part = "[package]\nname = \"part\"\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        fs::write(place.join("part/Cargo.toml"), part).unwrap();
        let constant = format!("pub const SMOOTHING: f64 = {smoothing};\n");
        fs::write(place.join("part/src/lib.rs"), constant).unwrap();
        let mut update = Command::new("cargo");
        update.args(["metadata", "--offline", "--format-version", "1"]).current_dir(&place);
        assert!(update.output().unwrap().status.success());
        let trainer = TrainerCrate::open(&place).unwrap();
        Cargo::open(&trainer, &cache, StopHandle::new()).unwrap()
    });
    let libraries = [0, 1, 0, 1].map(|which| {
        let library = folder.path().join("library.so");
        assert!(matches!(crates[which].build(&source, &library, |_, _| {}).unwrap(), Build::Built));
        fs::read(library).unwrap()
    });
    assert!(libraries[0] != libraries[1], "the second has the first one's part");
    assert!(libraries[1] != libraries[2], "the first has the second one's part");
    assert!(libraries[2] != libraries[3], "the second has the first one's part");
}

pub fn a_library_that_is_no_trainer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.so");
    fs::write(&path, "not a library").unwrap();
    let error = Plugin::load(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("text.so"), "{error}");
}
