//! Every fused operation against its composed twin in f64, values and gradients.
//!
//! Inputs are numbers that bf16 holds exactly, so what is left is the rounding of results. In f32
//! that is some roundings of 6e-8 for sums as long as these (up to a few hundred terms, of order
//! one). In bf16 every stored number is off by up to 2^-9 of itself, and between an input and a
//! gradient there are up to four such: the output, its gradient, what passes on, and the sum with
//! another branch.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use overnight_kernels::{
    Activations, Compute, Gradients, Heads, Loss, apply, attention, cross_entropy, first_channels,
    gated_add, gradients, infer, last_logits, linear, linear_add, mix, multiplies_bf16,
    relu_squared, rms_norm, rotary_norm, token_nats,
};

mod support;

use support::{Numbers, card, values, with};

const ROUNDING_F32: f64 = 2e-5;
const ROUNDING_BF16: f64 = 4.0 / 512.0;

/// The fused ways to compute, with the tolerance of each relative to the largest number of a result.
fn fused() -> Vec<(Compute, f64)> {
    let mut ways = vec![(Compute::F32, ROUNDING_F32)];
    if multiplies_bf16() {
        ways.push((Compute::Bf16, ROUNDING_BF16));
    }
    if card() {
        ways.push((Compute::Card, ROUNDING_BF16));
    }
    ways
}

/// An operation on activations and weights.
type Operation<'a> = &'a (dyn Fn(&[Activations], &[Tensor]) -> Result<Activations> + Sync);

struct Case<'a> {
    name: String,
    /// Activations, `[token, channel]`, all with the same number of tokens.
    inputs: Vec<Tensor>,
    weights: Vec<Tensor>,
    operation: Operation<'a>,
}

fn vars(tensors: &[Tensor], compute: Compute, device: &Device) -> Vec<Var> {
    let dtype = if compute == Compute::Composed { DType::F64 } else { DType::F32 };
    let var = |x: &Tensor| Var::from_tensor(&x.to_dtype(dtype)?.to_device(device)?);
    tensors.iter().map(|x| var(x).unwrap()).collect()
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}

fn gradient(gradients: &Gradients, var: &Var, name: &str) -> Vec<f64> {
    let gradient = gradients.get(var).unwrap_or_else(|| panic!("{name} got no gradient"));
    assert_eq!(gradient.shape(), var.shape(), "{name}");
    values(gradient)
}

impl Case<'_> {
    /// The result, and the gradients of `mean(slopes * result)` by every input and weight.
    fn run(&self, slopes: &Tensor, compute: Compute) -> Vec<Vec<f64>> {
        with(compute, |device| self.run_on(device, slopes, compute))
    }

    fn run_on(&self, device: &Device, slopes: &Tensor, compute: Compute) -> Vec<Vec<f64>> {
        let inputs = vars(&self.inputs, compute, device);
        let weights = vars(&self.weights, compute, device);
        let (tables, matrices) = (tensors(&inputs), tensors(&weights));
        let tokens = self.inputs[0].dim(0).unwrap();
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let result = std::sync::Mutex::new(Vec::new());
        let loss = |pass: &overnight_kernels::Pass, _| {
            // Activations begin with an embedding: here every token looks its own row up.
            let xs: Vec<_> = tables.iter().map(|x| pass.embedding(x, &ids).unwrap()).collect();
            let ys = (self.operation)(&xs, &matrices)?;
            *result.lock().unwrap() = values(&ys.values()?);
            let slopes = slopes.to_device(device)?;
            Loss::mean(&apply(&[&ys], |ys| &ys[0] * slopes.to_dtype(ys[0].dtype())?)?)
        };
        let (_, grads) = gradients::<candle_core::Error>(compute, (1, tokens), loss).unwrap();
        let named = |vars: &[Var], what: &str| -> Vec<Vec<f64>> {
            let vars = vars.iter().enumerate();
            vars.map(|(n, var)| gradient(&grads, var, &format!("{}: {what} {n}", self.name)))
                .collect()
        };
        let mut results = vec![result.into_inner().unwrap()];
        results.extend(named(&inputs, "input"));
        results.extend(named(&weights, "weight"));
        results
    }

    fn check(&self, numbers: &mut Numbers) {
        let shape = self.shape();
        let slopes = numbers.tensor(&[shape.0, shape.1], 1.0);
        let expected = self.run(&slopes, Compute::Composed);
        for (compute, tolerance) in fused() {
            let got = self.run(&slopes, compute);
            assert_eq!(got.len(), expected.len());
            // A gradient that vanishes beside the others need not vanish to their rounding.
            let steepest = expected[1..].iter().flatten().fold(0.0f64, |max, x| max.max(x.abs()));
            for (part, (got, expected)) in got.iter().zip(&expected).enumerate() {
                let scale = if part == 0 { largest(expected) } else { steepest };
                let name = format!("{}, {compute:?}, part {part}", self.name);
                assert_near(&name, got, expected, tolerance * scale);
            }
        }
    }

    /// Of the result.
    fn shape(&self) -> (usize, usize) {
        let ids: Vec<u32> = (0..self.inputs[0].dim(0).unwrap() as u32).collect();
        let dims = std::sync::Mutex::new((0, 0));
        let weights: Vec<_> = self.weights.iter().map(Tensor::detach).collect();
        infer::<candle_core::Error>(Compute::Composed, (1, ids.len()), |pass, _| {
            let xs: Vec<_> = self.inputs.iter().map(|x| pass.embedding(x, &ids).unwrap()).collect();
            *dims.lock().unwrap() = (self.operation)(&xs, &weights)?.dims()?;
            Ok(Vec::new())
        })
        .unwrap();
        dims.into_inner().unwrap()
    }
}

fn largest(xs: &[f64]) -> f64 {
    xs.iter().fold(0.0, |max, x| max.max(x.abs()))
}

fn assert_near(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{name}");
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (got - expected).abs() <= tolerance,
            "{name}, element {i}: {got} instead of {expected}, {tolerance:e} allowed",
        );
    }
}

#[test]
fn linear_agrees() {
    let mut numbers = Numbers(1);
    let mut shapes = vec![(1, 1, 1), (7, 5, 3), (8, 32, 32), (33, 34, 65), (150, 64, 130)];
    for _ in 0..8 {
        shapes.push((1 + numbers.below(200), 1 + numbers.below(100), 1 + numbers.below(100)));
    }
    for (tokens, inputs, outputs) in shapes {
        let weight = numbers.tensor(&[outputs, inputs], 1.0);
        let case = Case {
            name: format!("linear of {tokens} x {inputs} to {outputs}"),
            inputs: vec![numbers.tensor(&[tokens, inputs], 1.0)],
            weights: vec![weight.clone()],
            operation: &|x, w| linear(&x[0], &w[0]),
        };
        case.check(&mut numbers);
        let case = Case {
            name: format!("linear_add of {tokens} x {inputs} to {outputs}"),
            inputs: vec![
                numbers.tensor(&[tokens, inputs], 1.0),
                numbers.tensor(&[tokens, outputs], 1.0),
            ],
            weights: vec![weight],
            operation: &|x, w| linear_add(&x[0], &w[0], &x[1]),
        };
        case.check(&mut numbers);
    }
}

#[test]
fn an_input_that_several_layers_read_gets_the_sum_of_their_gradients() {
    let mut numbers = Numbers(2);
    let case = Case {
        name: "two layers".to_owned(),
        inputs: vec![numbers.tensor(&[40, 24], 1.0)],
        weights: vec![numbers.tensor(&[16, 24], 1.0), numbers.tensor(&[24, 24], 1.0)],
        operation: &|x, w| {
            let branch = linear(&first_channels(&x[0], 24)?, &w[0])?;
            let branch = apply(&[&branch, &x[0]], |t| Tensor::cat(&[&t[0], &t[1]], D::Minus1))?;
            first_channels(&linear_add(&x[0], &w[1], &x[0])?, 20)
                .and_then(|y| apply(&[&y, &branch], |t| Tensor::cat(&[&t[0], &t[1]], D::Minus1)))
        },
    };
    case.check(&mut numbers);
}

#[test]
fn elementwise_operations_agree() {
    let mut numbers = Numbers(3);
    for (tokens, channels) in [(1, 1), (3, 5), (70, 33), (600, 64)] {
        let xs = numbers.tensor(&[tokens, channels], 2.0);
        let case = Case {
            name: format!("relu_squared of {tokens} x {channels}"),
            inputs: vec![xs.clone()],
            weights: vec![],
            operation: &|x, _| relu_squared(&x[0]),
        };
        case.check(&mut numbers);
        let case = Case {
            name: format!("rms_norm of {tokens} x {channels}"),
            inputs: vec![xs.clone()],
            weights: vec![],
            operation: &|x, _| rms_norm(&x[0]),
        };
        // Of one channel only a sign is left, and its gradient is what rounding leaves of zero.
        if channels > 1 {
            case.check(&mut numbers);
        }
        let case = Case {
            name: format!("mix of {tokens} x {channels}"),
            inputs: vec![xs.clone(), numbers.tensor(&[tokens, channels], 2.0)],
            weights: vec![numbers.tensor(&[3], 1.0), numbers.tensor(&[3], 1.0)],
            operation: &|x, w| mix((&x[0], &x[1]), (&w[0], &w[1]), 1),
        };
        case.check(&mut numbers);
        let count = channels.div_ceil(2);
        let case = Case {
            name: format!("first {count} channels of {tokens} x {channels}"),
            inputs: vec![xs],
            weights: vec![],
            operation: &|x, _| first_channels(&x[0], count),
        };
        case.check(&mut numbers);
    }
}

#[test]
fn gated_add_agrees() {
    let mut numbers = Numbers(4);
    for (tokens, heads, width) in [(1, 1, 1), (5, 3, 7), (64, 2, 32)] {
        let case = Case {
            name: format!("gated_add of {tokens} x {heads} x {width}"),
            inputs: vec![
                numbers.tensor(&[tokens, heads * width], 1.0),
                numbers.tensor(&[tokens, heads * width], 1.0),
                numbers.tensor(&[tokens, heads], 3.0),
            ],
            weights: vec![],
            operation: &|x, _| gated_add(&x[0], &x[1], &x[2]),
        };
        case.check(&mut numbers);
    }
}

#[test]
fn rotary_norm_agrees() {
    let mut numbers = Numbers(5);
    for (sequences, time, heads, width) in
        [(1, 1, 1, 2), (2, 5, 3, 6), (3, 33, 2, 32), (1, 40, 1, 34)]
    {
        // Longer tables than the sequences are.
        let angles = numbers.tensor(&[time + 2, width / 2], 3.0);
        let case = Case {
            name: format!("rotary_norm of {sequences} x {time} x {heads} x {width}"),
            inputs: vec![numbers.tensor(&[sequences * time, heads * width], 2.0)],
            weights: vec![],
            operation: &|x, _| {
                let dtype =
                    if matches!(x[0], Activations::Composed(_)) { DType::F64 } else { DType::F32 };
                let device = x[0].values()?.device().clone();
                let table = |angles: Tensor| angles.to_dtype(dtype)?.to_device(&device);
                let tables = (table(angles.cos()?)?, table(angles.sin()?)?);
                rotary_norm(&x[0], (&tables.0, &tables.1), time)
            },
        };
        case.check(&mut numbers);
    }
}

#[test]
fn attention_agrees() {
    let mut numbers = Numbers(6);
    let mut cases = vec![
        ([1, 1, 1, 2], 0),
        ([2, 7, 2, 6], 100),
        ([2, 64, 1, 16], 64),
        ([1, 33, 3, 32], 0),
        ([3, 100, 2, 20], 17),
        ([1, 97, 1, 33], 48),
        ([2, 256, 2, 32], 128),
    ];
    for _ in 0..8 {
        let shape = [
            1 + numbers.below(3),
            1 + numbers.below(80),
            1 + numbers.below(3),
            1 + numbers.below(40),
        ];
        cases.push((shape, numbers.below(shape[1] + 2)));
    }
    for ([sequences, time, heads, channels], window) in cases {
        let mut input = || numbers.tensor(&[sequences * time, heads * channels], 2.0);
        let inputs = vec![input(), input(), input()];
        let case = Case {
            name: format!("attention of {sequences} x {time} x {heads} x {channels}, {window}"),
            inputs,
            weights: vec![],
            operation: &|x, _| attention(&x[0], &x[1], &x[2], Heads { time, channels, window }),
        };
        case.check(&mut numbers);
    }
}

#[test]
fn attention_with_large_scores_stays_finite() {
    let mut numbers = Numbers(7);
    let mut input = |scale| numbers.tensor(&[20, 8], scale);
    // Scores reach the hundreds, where rounding them already moves a weight.
    let case = Case {
        name: "attention".to_owned(),
        inputs: vec![input(12.0), input(12.0), input(1.0)],
        weights: vec![],
        operation: &|x, _| {
            attention(&x[0], &x[1], &x[2], Heads { time: 20, channels: 8, window: 9 })
        },
    };
    let slopes = case.inputs[2].clone();
    for (compute, _) in fused() {
        assert!(case.run(&slopes, compute).iter().flatten().all(|x| x.is_finite()));
    }
}

/// A loss at the end of a model: the value, its gradients by input and weight, and the costs alone.
fn head(
    (xs, weight): (&Tensor, &Tensor),
    targets: &[u32],
    soft_cap: f64,
    compute: Compute,
    device: &Device,
) -> [Vec<f64>; 5] {
    let inputs = vars(&[xs.clone(), weight.clone()], compute, device);
    let parts = tensors(&inputs);
    let ids: Vec<u32> = (0..targets.len() as u32).collect();
    let shape = (1, targets.len());
    let (loss, grads) = gradients::<candle_core::Error>(compute, shape, |pass, _| {
        cross_entropy(&pass.embedding(&parts[0], &ids)?, &parts[1], targets, soft_cap)
    })
    .unwrap();
    let nats = infer::<candle_core::Error>(compute, shape, |pass, _| {
        token_nats(&pass.embedding(&parts[0], &ids)?, &parts[1], targets, soft_cap)
    })
    .unwrap();
    let last = infer::<candle_core::Error>(compute, shape, |pass, _| {
        last_logits(&pass.embedding(&parts[0], &ids)?, &parts[1], soft_cap)
    })
    .unwrap();
    let wide = |xs: Vec<f32>| xs.into_iter().map(f64::from).collect::<Vec<_>>();
    let mean = nats.iter().map(|&x| f64::from(x)).sum::<f64>() / nats.len() as f64;
    assert!((mean - loss).abs() < 1e-5 * loss.abs().max(1.0), "{mean} and {loss}");
    [
        vec![loss],
        gradient(&grads, &inputs[0], "the input"),
        gradient(&grads, &inputs[1], "the weight"),
        wide(nats),
        wide(last),
    ]
}

#[test]
fn cross_entropy_agrees() {
    let mut numbers = Numbers(8);
    for (tokens, channels, vocab, scale, soft_cap) in [
        (1, 3, 2, 1.0, 15.0),
        (3, 6, 7, 2.0, 15.0),
        (150, 33, 65, 6.0, 15.0),
        (70, 16, 1000, 1.0, 2.5),
    ] {
        let xs = numbers.tensor(&[tokens, channels], scale);
        let weight = numbers.tensor(&[vocab, channels], 1.0);
        let targets = numbers.ids(tokens, vocab);
        let head = |compute| {
            with(compute, |device| head((&xs, &weight), &targets, soft_cap, compute, device))
        };
        let expected = head(Compute::Composed);
        for (compute, tolerance) in fused() {
            let got = head(compute);
            for (n, (got, expected)) in got.iter().zip(&expected).enumerate() {
                // Logits are never rounded to bf16: only gradients are.
                let tolerance = if matches!(n, 1 | 2) { tolerance } else { ROUNDING_F32 };
                let name = format!("cross_entropy of {tokens} x {vocab}, {compute:?}, part {n}");
                assert_near(&name, got, expected, tolerance * largest(expected));
            }
        }
    }
}

#[test]
fn nan_stays_nan() {
    for (compute, _) in fused() {
        let nats = with(compute, |device| {
            let table = Tensor::new(&[[0.0f32, f32::NAN, 1.0, 2.0]], device).unwrap();
            let weight = Tensor::ones((4, 4), DType::F32, device).unwrap();
            infer::<candle_core::Error>(compute, (1, 1), |pass, _| {
                let x = linear(&relu_squared(&pass.embedding(&table, &[0])?)?, &weight)?;
                token_nats(&rms_norm(&x)?, &weight, &[1], 15.0)
            })
        });
        assert!(nats.unwrap()[0].is_nan());
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for (compute, _) in fused() {
        with(compute, |device| refusals(compute, device));
    }
}

fn refusals(compute: Compute, device: &Device) {
    let weight = Tensor::zeros((3, 4), DType::F32, device).unwrap();
    let table = Tensor::zeros((5, 6), DType::F32, device).unwrap();
    let refusal = |f: &(dyn Fn(&Activations) -> Result<()> + Sync)| {
        let answer = infer::<candle_core::Error>(compute, (1, 2), |pass, _| {
            f(&pass.embedding(&table, &[0, 4])?)?;
            Ok(Vec::new())
        });
        answer.unwrap_err().to_string()
    };
    assert!(refusal(&|x| linear(x, &weight).map(drop)).contains("6 channels"));
    assert!(refusal(&|x| first_channels(x, 7).map(drop)).contains("7 of 6"));
    let targets = |x: &Activations| token_nats(x, &table, &[5, 0], 15.0).map(drop);
    assert!(refusal(&targets).contains("target 5 of a vocabulary of 5"));
    let heads = Heads { time: 2, channels: 4, window: 1 };
    assert!(refusal(&|x| attention(x, x, x, heads).map(drop)).contains("attention"));
    let tables = |x: &Activations| rotary_norm(x, (&weight, &weight), 2).map(drop);
    assert!(refusal(&tables).contains("rotary_norm"));
    let unknown = infer::<candle_core::Error>(compute, (1, 1), |pass, _| {
        pass.embedding(&table, &[5]).map(|_| Vec::new())
    });
    assert!(unknown.unwrap_err().to_string().contains("token 5 of a vocabulary of 5"));
}

/// A little model over 16 sequences, so that there are several shards and lanes.
fn model(compute: Compute) -> (f64, Vec<Vec<f64>>) {
    with(compute, |device| model_on(device, compute))
}

fn model_on(device: &Device, compute: Compute) -> (f64, Vec<Vec<f64>>) {
    let (rows, time, channels, vocab) = (18, 160, 32, 50);
    let mut numbers = Numbers(9);
    let parts = [
        numbers.tensor(&[vocab, channels], 1.0),
        numbers.tensor(&[channels, channels], 0.2),
        numbers.tensor(&[vocab, channels], 0.5),
    ];
    let (ids, targets) = (numbers.ids(rows * time, vocab), numbers.ids(rows * time, vocab));
    let vars = vars(&parts, compute, device);
    let parts = tensors(&vars);
    let (loss, grads) = gradients::<candle_core::Error>(compute, (rows, time), |pass, rows| {
        let part = rows.start * time..rows.end * time;
        let x = rms_norm(&pass.embedding(&parts[0], &ids[part.clone()])?)?;
        // A weight that candle computes first: its gradient goes on to the variable.
        let doubled = (&parts[1] * 2.0)?;
        let q = linear(&x, &doubled)?;
        let y = attention(&q, &x, &x, Heads { time, channels: 16, window: 20 })?;
        let x = linear_add(&y, &parts[1], &x)?;
        cross_entropy(&x, &parts[2], &targets[part], 15.0)
    })
    .unwrap();
    (loss, vars.iter().map(|var| gradient(&grads, var, "a variable")).collect())
}

#[test]
fn shards_add_up_to_the_whole_batch() {
    let (expected, expected_gradients) = model(Compute::Composed);
    for (compute, tolerance) in fused() {
        let (loss, gradients) = model(compute);
        assert!((loss - expected).abs() < tolerance, "{loss} instead of {expected}");
        for (n, (got, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
            let tolerance = 2.0 * tolerance * largest(expected);
            assert_near(&format!("{compute:?}, variable {n}"), got, expected, tolerance);
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let with = |compute, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| model(compute))
    };
    for (compute, _) in fused() {
        let alone = with(compute, 1);
        for threads in [2, 3, 8] {
            assert!(with(compute, threads) == alone, "{compute:?}, {threads} threads");
        }
    }
}

#[test]
fn a_prefix_is_answered_as_the_whole_sequence_is_to_the_bit() {
    let (time, channels, vocab) = (97, 32, 50);
    let mut numbers = Numbers(10);
    let table = numbers.tensor(&[vocab, channels], 1.0).to_dtype(DType::F32).unwrap();
    let ids = numbers.ids(time, vocab);
    for (compute, _) in fused() {
        with(compute, |device| prefixes(compute, &table.to_device(device).unwrap(), &ids));
    }
}

fn prefixes(compute: Compute, table: &Tensor, ids: &[u32]) {
    let (time, channels) = (ids.len(), table.dim(1).unwrap());
    let hidden = |pass: &overnight_kernels::Pass, ids: &[u32]| -> Result<Activations> {
        let x = rms_norm(&pass.embedding(table, ids)?)?;
        attention(&x, &x, &x, Heads { time: ids.len(), channels: 16, window: 20 })
    };
    let whole = infer::<candle_core::Error>(compute, (1, time), |pass, _| {
        hidden(pass, ids)?.values()?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    })
    .unwrap();
    for length in [1, 2, 31, 32, 33, 96] {
        let part = infer::<candle_core::Error>(compute, (1, length), |pass, _| {
            hidden(pass, &ids[..length])?.values()?.flatten_all()?.to_vec1()
        })
        .unwrap();
        assert_eq!(part, whole[..length * channels], "{compute:?}, {length}");
    }
}
