//! Every fused operation against its composed twin, forward and backward, on the default model's
//! shapes: 512 tokens, one shard, on one thread.
//!
//! ```text
//! cargo bench --manifest-path benches/kernels/Cargo.toml
//! ```

use candle_core::{DType, Device, Result, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use overnight_kernels::{
    Activations, AdamW, AdamWStep, Compute, Heads, Loss, Muon, MuonStep, attention, cross_entropy,
    gated_add, gradients, linear, mix, multiplies_bf16, relu_squared, rms_norm, rotary_norm,
};
use std::hint::black_box;

const TOKENS: usize = 512;
const TIME: usize = 256;
const WIDTH: usize = 64;
const HEAD: usize = 32;
const VOCAB: usize = 2048;

fn ways() -> Vec<Compute> {
    let mut ways = vec![Compute::Composed, Compute::F32];
    if multiplies_bf16() {
        ways.push(Compute::Bf16);
    }
    ways
}

fn var(shape: (usize, usize)) -> Var {
    Var::randn(0f32, 1.0, shape, &Device::Cpu).expect("a tensor")
}

/// Forward and backward of an operation on inputs of so many channels, with weights of these shapes.
fn bench(
    criterion: &mut Criterion,
    name: &str,
    inputs: &[usize],
    weights: &[(usize, usize)],
    operation: impl Fn(&[Activations], &[Tensor]) -> Result<Loss> + Sync,
) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(TOKENS as u64));
    let ids: Vec<u32> = (0..TOKENS as u32).collect();
    let tables: Vec<_> = inputs.iter().map(|&channels| var((TOKENS, channels))).collect();
    let weights: Vec<_> = weights.iter().map(|&shape| var(shape).as_tensor().clone()).collect();
    for compute in ways() {
        group.bench_function(BenchmarkId::from_parameter(format!("{compute:?}")), |bencher| {
            bencher.iter(|| {
                let answer = gradients::<candle_core::Error>(compute, (1, TOKENS), |pass, _| {
                    let embedded = tables.iter().map(|table| pass.embedding(table, &ids));
                    operation(&embedded.collect::<Result<Vec<_>>>()?, &weights)
                });
                black_box(answer.expect("gradients"))
            });
        });
    }
    group.finish();
}

/// The mean of a result: as cheap a loss as there is.
fn mean(ys: Result<Activations>) -> Result<Loss> {
    Loss::mean(&ys?)
}

fn operations(c: &mut Criterion) {
    let angles = Tensor::randn(0f32, 1.0, (TIME, HEAD / 2), &Device::Cpu).expect("a tensor");
    let (cos, sin) = (angles.cos().expect("cos"), angles.sin().expect("sin"));
    let heads = Heads { time: TIME, channels: HEAD, window: TIME / 2 };
    let targets: Vec<u32> = (0..TOKENS as u32).map(|i| i * 7 % VOCAB as u32).collect();
    // What every measurement below contains: an embedding and a mean.
    bench(c, "nothing", &[WIDTH], &[], |x, _| mean(Ok(x[0].clone())));
    bench(c, "rms_norm", &[WIDTH], &[], |x, _| mean(rms_norm(&x[0])));
    bench(c, "rotary_norm", &[WIDTH], &[], |x, _| mean(rotary_norm(&x[0], (&cos, &sin), TIME)));
    bench(c, "relu_squared", &[4 * WIDTH], &[], |x, _| mean(relu_squared(&x[0])));
    bench(c, "linear", &[WIDTH], &[(4 * WIDTH, WIDTH)], |x, w| mean(linear(&x[0], &w[0])));
    bench(c, "gated_add", &[WIDTH, WIDTH, WIDTH / HEAD], &[], |x, _| {
        mean(gated_add(&x[0], &x[1], &x[2]))
    });
    bench(c, "mix", &[WIDTH, WIDTH], &[(1, 4), (1, 4)], |x, w| {
        let (lambdas, x0_lambdas) = (w[0].flatten_all()?, w[1].flatten_all()?);
        mean(mix((&x[0], &x[1]), (&lambdas, &x0_lambdas), 1))
    });
    bench(c, "attention", &[WIDTH; 3], &[], |x, _| mean(attention(&x[0], &x[1], &x[2], heads)));
    bench(c, "cross_entropy", &[WIDTH], &[(VOCAB, WIDTH)], |x, w| {
        cross_entropy(&x[0], &w[0], &targets, 15.0)
    });
}

fn optimizers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("adamw");
    let step = AdamWStep { lr: 1e-9, betas: (0.8, 0.95), eps: 1e-10 };
    for (name, dtype) in [("Composed, f64", DType::F64), ("F32", DType::F32)] {
        let table = var((VOCAB, WIDTH)).to_dtype(dtype).expect("a type");
        let mut adamw = AdamW::new(&Var::from_tensor(&table).expect("a variable")).expect("AdamW");
        let grad = table.ones_like().expect("a gradient");
        group.bench_function(name, |bencher| bencher.iter(|| adamw.step(&grad, step)));
    }
    group.finish();
    let mut group = criterion.benchmark_group("muon");
    let step = MuonStep { lr: 1e-9, momentum: 0.9, beta2: 0.95, weight_decay: 0.1 };
    for compute in ways() {
        let vars = [var((WIDTH, WIDTH)), var((WIDTH, WIDTH))];
        let mut muon = Muon::new(&vars, compute).expect("Muon");
        let grads = [var((WIDTH, WIDTH)), var((WIDTH, WIDTH))];
        let grads = grads.each_ref().map(|grad| grad.as_tensor());
        group.bench_function(format!("{compute:?}"), |b| b.iter(|| muon.step(&grads, step)));
    }
    group.finish();
}

fn on_one_thread(criterion: &mut Criterion) {
    // The process's pool: the first to ask for one settles it.
    overnight_kernels::use_threads(1);
    operations(criterion);
    optimizers(criterion);
}

criterion_group!(benches, on_one_thread);
criterion_main!(benches);
