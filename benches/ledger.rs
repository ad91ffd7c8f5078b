//! What it costs to record a trial: one line, one fsync.

use criterion::{Criterion, criterion_group, criterion_main};
use overnight::{Ledger, Measurement, Outcome, Status, Trial};
use std::hint::black_box;

fn trial(number: usize) -> Trial {
    Trial {
        trial: number,
        parent: Some(0),
        commit: None,
        proposer: "bench".to_owned(),
        description: "MATRIX_LR 0.02 -> 0.03".to_owned(),
        status: Status::Discard,
        outcome: Outcome::Measured,
        reason: Some("+0.001234 bits per byte".to_owned()),
        measurement: Measurement { val_bpb: Some(1.5), ..Measurement::default() },
        seed: 0,
        source_sha256: "0".repeat(64),
        program_sha256: None,
        started: jiff::Timestamp::UNIX_EPOCH,
        repeats: None,
        evidence: None,
        forecast: None,
        repetitions: Vec::new(),
        repairs: 0,
        remarks: Vec::new(),
    }
}

fn append(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut ledger = Ledger::open(dir.path()).expect("an empty ledger");
    criterion.bench_function("ledger: append and fsync one trial", |bencher| {
        bencher.iter(|| {
            let number = ledger.trials().len();
            ledger.append(black_box(trial(number))).expect("a writable folder");
        });
    });
}

criterion_group!(benches, append);
criterion_main!(benches);
