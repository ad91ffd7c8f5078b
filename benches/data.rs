//! How fast batches come: packing alone, and through the loader's thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use overnight::data::{DataSpec, Dataset, Loader, Packer, PrepareOptions, Split};
use std::hint::black_box;

const ROWS: usize = 16;
const SEQ_LEN: usize = 256;

fn batches(criterion: &mut Criterion) {
    let cache_dir = overnight::cache_dir().expect("a cache folder").join("data");
    let options = PrepareOptions { vocab_size: 2048, cache_dir };
    let dataset = Dataset::prepare(&DataSpec::Builtin, &options, |_| {}).expect("the corpus");

    let mut group = criterion.benchmark_group("data");
    group.throughput(Throughput::Elements((ROWS * SEQ_LEN) as u64));
    let tokens = dataset.open(Split::Train).expect("prepared tokens");
    let mut packer = Packer::endless(tokens, dataset.bos(), 0).expect("documents");
    let mut rows = vec![0; ROWS * (SEQ_LEN + 1)];
    group.bench_function("pack a batch of 16 x 256 tokens", |bencher| {
        bencher.iter(|| {
            for row in rows.chunks_exact_mut(SEQ_LEN + 1) {
                black_box(packer.fill(row));
            }
        });
    });

    let path = dataset.path(Split::Train);
    let mut loader = Loader::open(&path, dataset.bos(), 0).expect("documents");
    let mut inputs = vec![0; ROWS * SEQ_LEN];
    let mut targets = inputs.clone();
    group.bench_function("load a batch of 16 x 256 tokens, nothing else to do", |bencher| {
        bencher.iter(|| {
            loader.next(ROWS, SEQ_LEN, &mut inputs, &mut targets).expect("endless batches");
            black_box(&inputs);
        });
    });
    group.finish();
}

criterion_group!(benches, batches);
criterion_main!(benches);
