//! Every fused operation against its composed twin, values and gradients.
//!
//! In f64 the two differ by rounding alone, a few units of 1e-16 for every term of a sum. In f32
//! the fused kernel is compared with the twin in f64, with a tolerance of some roundings of 6e-8
//! for sums as long as these (up to a few hundred terms, of order one).

use candle_core::{DType, Device, Result, Tensor, Var};
use overnight_kernels as fused;
use overnight_kernels::composed;

const ROUNDING_F64: f64 = 1e-12;
const ROUNDING_F32: f64 = 2e-5;

/// Numbers that look random, spread over -1..1, the same at every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        // Knuth's MMIX generator; its high bits are good enough here.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    fn tensor(&mut self, shape: &[usize], scale: f64) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|_| self.next() * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn below(&mut self, limit: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * limit as f64) as usize % limit
    }
}

/// The result of `f`, and the gradients of `sum(weights * f(inputs))`.
fn run(
    f: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    weights: &Tensor,
    dtype: DType,
) -> Vec<Vec<f64>> {
    let vars: Vec<_> =
        inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect();
    let tensors: Vec<_> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let ys = f(&tensors).unwrap();
    let weights = weights.to_dtype(dtype).unwrap().reshape(ys.shape()).unwrap();
    let grads = (&ys * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let values = |xs: &Tensor| {
        let xs = xs.to_dtype(DType::F64).unwrap().flatten_all().unwrap();
        xs.to_vec1::<f64>().unwrap()
    };
    let mut results = vec![values(&ys)];
    for (n, var) in vars.iter().enumerate() {
        let gradient = grads.get(var).unwrap_or_else(|| panic!("input {n} got no gradient"));
        assert_eq!(gradient.shape(), var.shape());
        results.push(values(gradient));
    }
    results
}

fn assert_agreement(
    name: &str,
    fused: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    composed: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    numbers: &mut Numbers,
) {
    let shape = composed(inputs).unwrap().shape().clone();
    let weights = numbers.tensor(shape.dims(), 1.0);
    let expected = run(composed, inputs, &weights, DType::F64);
    for (dtype, tolerance) in [(DType::F64, ROUNDING_F64), (DType::F32, ROUNDING_F32)] {
        let got = run(fused, inputs, &weights, dtype);
        for (part, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let largest = expected.iter().fold(1.0f64, |max, x| max.max(x.abs()));
            for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                assert!(
                    (got - expected).abs() <= tolerance * largest,
                    "{name}, {dtype:?}, {}, element {i}: {got} instead of {expected}",
                    if part == 0 { "value".into() } else { format!("gradient {part}") },
                );
            }
        }
    }
}

#[test]
fn relu_squared_agrees() {
    let mut numbers = Numbers(1);
    for shape in [vec![1], vec![3, 5], vec![2, 3, 40_000]] {
        let xs = numbers.tensor(&shape, 2.0);
        let name = format!("relu_squared of {shape:?}");
        assert_agreement(
            &name,
            &|x| fused::relu_squared(&x[0]),
            &|x| composed::relu_squared(&x[0]),
            &[xs],
            &mut numbers,
        );
    }
}

#[test]
fn rms_norm_agrees() {
    let mut numbers = Numbers(2);
    for shape in [vec![1, 1], vec![7], vec![3, 5, 17], vec![600, 33], vec![2, 128]] {
        let xs = numbers.tensor(&shape, 2.0);
        let name = format!("rms_norm of {shape:?}");
        assert_agreement(
            &name,
            &|x| fused::rms_norm(&x[0]),
            &|x| composed::rms_norm(&x[0]),
            &[xs],
            &mut numbers,
        );
    }
}

#[test]
fn rms_norm_of_a_transposed_tensor_agrees() {
    let mut numbers = Numbers(3);
    let xs = numbers.tensor(&[5, 3, 7], 1.0);
    assert_agreement(
        "rms_norm of a transposed tensor",
        &|x| fused::rms_norm(&x[0].transpose(0, 2)?),
        &|x| composed::rms_norm(&x[0].transpose(0, 2)?),
        &[xs],
        &mut numbers,
    );
}

#[test]
fn rms_norm_of_zeros_is_zero_and_not_nan() {
    let zeros = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let ys = fused::rms_norm(&zeros).unwrap().flatten_all().unwrap();
    assert_eq!(ys.to_vec1::<f32>().unwrap(), [0.0; 6]);
}

#[test]
fn rotary_norm_agrees() {
    let mut numbers = Numbers(4);
    for shape in [[1, 1, 1, 2], [2, 5, 3, 6], [3, 33, 2, 32], [1, 40, 1, 34]] {
        let xs = numbers.tensor(&shape, 2.0);
        let angles = numbers.tensor(&[shape[1], shape[3] / 2], 3.0);
        let tables = |x: &Tensor| -> Result<(Tensor, Tensor)> {
            let angles = angles.to_dtype(x.dtype())?;
            Ok((angles.cos()?, angles.sin()?))
        };
        assert_agreement(
            &format!("rotary_norm of {shape:?}"),
            &|x| tables(&x[0]).and_then(|(cos, sin)| fused::rotary_norm(&x[0], &cos, &sin)),
            &|x| tables(&x[0]).and_then(|(cos, sin)| composed::rotary_norm(&x[0], &cos, &sin)),
            &[xs],
            &mut numbers,
        );
    }
}

#[test]
fn rotary_tables_of_another_length_are_refused() {
    let xs = Tensor::zeros((1, 4, 1, 6), DType::F32, &Device::Cpu).unwrap();
    let table = Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap();
    assert!(fused::rotary_norm(&xs, &table, &table).is_err());
}

#[test]
fn attention_agrees() {
    let mut numbers = Numbers(5);
    let mut cases = vec![
        ([1, 1, 1, 2], 0),
        ([2, 7, 2, 6], 100),
        ([2, 64, 1, 16], 64),
        ([1, 33, 3, 32], 0),
        ([3, 100, 2, 20], 17),
        ([1, 97, 1, 33], 48),
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
    for (shape, window) in cases {
        let qkv: [Tensor; 3] = std::array::from_fn(|_| numbers.tensor(&shape, 2.0));
        assert_agreement(
            &format!("attention of {shape:?}, window {window}"),
            &|x| fused::attention(&x[0], &x[1], &x[2], window),
            &|x| composed::attention(&x[0], &x[1], &x[2], window),
            &qkv,
            &mut numbers,
        );
    }
}

#[test]
fn attention_with_large_scores_agrees() {
    let mut numbers = Numbers(6);
    let [q, k] = std::array::from_fn(|_| numbers.tensor(&[1, 20, 1, 8], 12.0));
    let v = numbers.tensor(&[1, 20, 1, 8], 1.0);
    // Scores reach the hundreds, where rounding them in f32 already moves a weight by 1e-5.
    let inputs = [q, k, v];
    let weights = numbers.tensor(&[1, 20, 1, 8], 1.0);
    let got = run(&|x| fused::attention(&x[0], &x[1], &x[2], 9), &inputs, &weights, DType::F64);
    let twin = run(&|x| composed::attention(&x[0], &x[1], &x[2], 9), &inputs, &weights, DType::F64);
    for (got, expected) in got.iter().flatten().zip(twin.iter().flatten()) {
        assert!((got - expected).abs() < 1e-11, "{got} instead of {expected}");
    }
    let single = run(&|x| fused::attention(&x[0], &x[1], &x[2], 9), &inputs, &weights, DType::F32);
    assert!(single.iter().flatten().all(|x| x.is_finite()));
}

#[test]
fn cross_entropy_agrees() {
    let mut numbers = Numbers(7);
    for (tokens, vocab, scale, soft_cap) in
        [(1, 1, 1.0, 15.0), (3, 7, 5.0, 15.0), (150, 65, 40.0, 15.0), (70, 1000, 3.0, 2.5)]
    {
        let logits = numbers.tensor(&[tokens, vocab], scale);
        let targets: Vec<u32> = (0..tokens).map(|_| numbers.below(vocab) as u32).collect();
        let targets = Tensor::from_vec(targets, tokens, &Device::Cpu).unwrap();
        assert_agreement(
            &format!("cross_entropy of {tokens} x {vocab}"),
            &|x| fused::cross_entropy(&x[0], &targets, soft_cap),
            &|x| composed::cross_entropy(&x[0], &targets, soft_cap),
            std::slice::from_ref(&logits),
            &mut numbers,
        );
        let nats = fused::token_nats(&logits, &targets, soft_cap).unwrap();
        let twin = composed::token_nats(&logits, &targets, soft_cap).unwrap();
        for (got, expected) in
            nats.to_vec1::<f64>().unwrap().iter().zip(twin.to_vec1::<f64>().unwrap())
        {
            assert!((got - expected).abs() < ROUNDING_F64, "{got} instead of {expected}");
        }
    }
}

#[test]
fn cross_entropy_of_nan_is_nan() {
    let logits = Tensor::new(&[[0.0f32, f32::NAN, 1.0]], &Device::Cpu).unwrap();
    let targets = Tensor::new(&[0u32], &Device::Cpu).unwrap();
    let loss = fused::cross_entropy(&logits, &targets, 15.0).unwrap();
    assert!(loss.to_scalar::<f32>().unwrap().is_nan());
}

#[test]
fn a_target_outside_the_vocabulary_is_refused() {
    let logits = Tensor::zeros((1, 3), DType::F32, &Device::Cpu).unwrap();
    let targets = Tensor::new(&[3u32], &Device::Cpu).unwrap();
    let refusal = fused::cross_entropy(&logits, &targets, 15.0).unwrap_err().to_string();
    assert!(refusal.contains("target 3 of a vocabulary of 3"), "{refusal}");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut numbers = Numbers(8);
    let qkv: [Tensor; 3] = std::array::from_fn(|_| numbers.tensor(&[5, 50, 2, 16], 2.0));
    let targets: Vec<u32> = (0..500).map(|_| numbers.below(16) as u32).collect();
    let targets = Tensor::from_vec(targets, 500, &Device::Cpu).unwrap();
    let weights = numbers.tensor(&[1], 1.0);
    let all = |x: &[Tensor]| {
        let ys = fused::attention(&x[0], &x[1], &x[2], 20)?;
        let ys = fused::relu_squared(&fused::rms_norm(&ys)?)?;
        fused::cross_entropy(&ys.reshape((500, 16))?, &targets, 15.0)
    };
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&all, &qkv, &weights, DType::F32))
    };
    let alone = with(1);
    for threads in [2, 3, 8] {
        assert_eq!(with(threads), alone, "{threads} threads");
    }
}
