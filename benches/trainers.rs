//! Variants of the trainer against each other, and what an exam costs, in this process.
//!
//! A variant is the template's source with some constants changed, compiled as a trial would be. Add
//! your own to `VARIANTS`, or put a file's text in the place of a variant's source.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use overnight::{
    Budget, Build, Cargo, StopHandle, TrainerCrate,
    data::{DataSpec, Dataset, Loader, PrepareOptions, Split, Windows},
    plugin::{LoadedTrainer, Plugin},
    worker::train_in_process,
};
use overnight_plugin_api::{Device, Setup};
use std::{hint::black_box, path::Path, time::Duration};

/// A name, and what to replace in the template's source.
const VARIANTS: &[(&str, &[(&str, &str)])] = &[
    ("as it is", &[]),
    ("two layers", &[("const DEPTH: usize = 4;", "const DEPTH: usize = 2;")]),
    ("full attention", &[(r#""SSSL""#, r#""L""#)]),
];

const STEPS: u64 = 4;
const SEQ_LEN: usize = 256;

struct Bench {
    cargo: Cargo,
    source: String,
    dataset: Dataset,
    setup: Setup,
    folder: tempfile::TempDir,
}

impl Bench {
    fn open() -> Self {
        let cache = overnight::cache_dir().expect("a cache folder");
        let template = TrainerCrate::template(&cache).expect("the template");
        let options = PrepareOptions { vocab_size: 2048, cache_dir: cache.join("data") };
        let dataset = Dataset::prepare(&DataSpec::Builtin, &options, |_| {}).expect("the corpus");
        let setup = Setup {
            vocab_size: dataset.vocab_size(),
            max_seq_len: SEQ_LEN,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            device: Device::Cpu,
        };
        Self {
            cargo: Cargo::open(&template, &cache, StopHandle::new()).expect("dependencies"),
            source: template.source().to_owned(),
            dataset,
            setup,
            folder: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    /// Compiles and loads the template's source with these replacements.
    fn trainer(&self, name: &str, changes: &[(&str, &str)]) -> LoadedTrainer {
        let mut source = self.source.clone();
        for (from, to) in changes {
            assert!(source.contains(from), "{name}: the template has no {from:?}");
            source = source.replace(from, to);
        }
        // A name of its own: the system's loader knows libraries by their path.
        let library = self.folder.path().join(name).with_extension("so");
        match self.cargo.build(&source, &library, |_, _| {}).expect("cargo runs") {
            Build::Built => {}
            Build::Refused { rendered, .. } => panic!("{name}: {rendered}"),
            Build::Interrupted => unreachable!("nobody stops a bench"),
        }
        load(&library, &self.setup)
    }

    fn loader(&self) -> Loader {
        let path = self.dataset.path(Split::Train);
        Loader::open(&path, self.dataset.bos(), 0).expect("prepared tokens")
    }
}

fn load(library: &Path, setup: &Setup) -> LoadedTrainer {
    Plugin::load(library).expect("a trainer").trainer(setup).expect("a model")
}

fn training(criterion: &mut Criterion) {
    let bench = Bench::open();
    let mut group = criterion.benchmark_group("training, tokens/s");
    group.sample_size(10).measurement_time(Duration::from_secs(10));
    for (name, changes) in VARIANTS {
        let mut trainer = bench.trainer(name, changes);
        let mut train = || {
            let budget = Budget::Steps(STEPS);
            train_in_process(&mut trainer, bench.loader(), SEQ_LEN, budget).expect("training")
        };
        group.throughput(Throughput::Elements(train()));
        group.bench_function(*name, |bencher| bencher.iter(&mut train));
    }
    group.finish();
}

fn exam(criterion: &mut Criterion) {
    let bench = Bench::open();
    let mut trainer = bench.trainer("exam", &[]);
    let tokens = bench.dataset.open(Split::Validation).expect("prepared tokens");
    let windows = Windows::pack(tokens, bench.dataset.bos(), 16, SEQ_LEN).expect("windows");
    let mut group = criterion.benchmark_group("exam");
    group.sample_size(10).measurement_time(Duration::from_secs(10));

    let mut nats = vec![0.0; windows.targets.len()];
    group.throughput(Throughput::Elements(nats.len() as u64));
    group.bench_function("the fast room: 16 of 256 windows", |bencher| {
        bencher.iter(|| {
            let question = overnight_plugin_api::Windows {
                inputs: &windows.inputs,
                targets: &windows.targets,
                batch_size: 16,
                seq_len: SEQ_LEN,
            };
            trainer.score(question, black_box(&mut nats)).expect("a score");
        });
    });

    let mut logits = vec![0.0; bench.setup.vocab_size];
    let prefixes: Vec<&[u32]> =
        (0..16).map(|row| &windows.inputs[row * SEQ_LEN..][..(row + 1) * 16]).collect();
    group.throughput(Throughput::Elements(prefixes.len() as u64));
    group.bench_function("the honest room: 16 of 256 prefixes", |bencher| {
        bencher.iter(|| {
            for prefix in &prefixes {
                trainer.logits(prefix, black_box(&mut logits)).expect("logits");
            }
        });
    });
    group.finish();
}

criterion_group!(benches, training, exam);
criterion_main!(benches);
