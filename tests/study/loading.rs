//! Loading libraries into one process: for benches and tests, as documented.

use crate::tiny;
use overnight::{Build, Cargo, StopHandle, TrainerCrate, plugin::Plugin};
use overnight_plugin_api::{Device, Setup};
use std::fs;

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

pub fn a_library_that_is_no_trainer_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.so");
    fs::write(&path, "not a library").unwrap();
    let error = Plugin::load(&path).map(drop).unwrap_err().to_string();
    assert!(error.contains("text.so"), "{error}");
}
