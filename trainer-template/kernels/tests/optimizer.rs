//! Muon and AdamW against the same formulas in plain loops over `f64`.

use candle_core::{DType, Device, Tensor, Var};
use overnight_kernels::{AdamW, AdamWStep, Compute, Muon, MuonStep, multiplies_bf16};

mod support;

use support::{Numbers, card, values, with};

const ADAM_EPS: f64 = 1e-10;
const MUON_BETA2: f64 = 0.95;

type Rows = Vec<Vec<f64>>;

fn tensor(rows: &Rows) -> Tensor {
    let shape = (rows.len(), rows[0].len());
    Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap()
}

fn random(numbers: &mut Numbers, rows: usize, columns: usize) -> Rows {
    (0..rows).map(|_| (0..columns).map(|_| numbers.next()).collect()).collect()
}

fn product(a: &Rows, b: &Rows) -> Rows {
    let entry = |i: usize, j: usize| (0..b.len()).map(|p| a[i][p] * b[p][j]).sum();
    (0..a.len()).map(|i| (0..b[0].len()).map(|j| entry(i, j)).collect()).collect()
}

fn transposed(a: &Rows) -> Rows {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

fn combined(a: &Rows, b: &Rows, f: impl Fn(f64, f64) -> f64) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect()).collect()
}

fn squares(a: &Rows) -> f64 {
    a.iter().flatten().map(|x| x * x).sum()
}

/// As written in train.py, always with `X Xᵀ` on the left: the small side or not.
fn polar_express(g: &Rows) -> Rows {
    let coefficients = [
        (8.156554524902461, -22.48329292557795, 15.878769915207462),
        (4.042929935166739, -2.808917465908714, 0.5000178451051316),
        (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
        (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
        (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
    ];
    let norm = squares(g).sqrt() * 1.02 + 1e-6;
    let mut x: Rows = g.iter().map(|row| row.iter().map(|x| x / norm).collect()).collect();
    for (a, b, c) in coefficients {
        let gram = product(&x, &transposed(&x));
        let cubic = product(&gram, &x);
        let quintic = product(&gram, &cubic);
        x = combined(&x, &combined(&cubic, &quintic, |u, v| b * u + c * v), |u, v| a * u + v);
    }
    x
}

/// One matrix and all that Muon remembers of it.
struct Reference {
    param: Rows,
    momentum: Rows,
    /// Of each row of a tall or square matrix, of each column of a wide one.
    variance: Vec<f64>,
}

impl Reference {
    fn new(param: Rows) -> Self {
        let (rows, columns) = (param.len(), param[0].len());
        let momentum = vec![vec![0.0; columns]; rows];
        Self { param, momentum, variance: vec![0.0; rows.max(columns)] }
    }

    fn step(&mut self, grad: &Rows, lr: f64, beta: f64, decay: f64) {
        let (rows, columns) = (grad.len(), grad[0].len());
        self.momentum = combined(&self.momentum, grad, |m, g| m + (1.0 - beta) * (g - m));
        let update = combined(grad, &self.momentum, |g, m| g + beta * (m - g));
        let update = polar_express(&update);

        let neurons = if rows >= columns { update.clone() } else { transposed(&update) };
        let width = neurons[0].len() as f64;
        let mut scales = Vec::new();
        for (neuron, variance) in neurons.iter().zip(&mut self.variance) {
            let mean_square = neuron.iter().map(|x| x * x).sum::<f64>() / width;
            *variance += (1.0 - MUON_BETA2) * (mean_square - *variance);
            scales.push(1.0 / variance.max(1e-10).sqrt());
        }
        let scaled: Rows = neurons
            .iter()
            .zip(&scales)
            .map(|(neuron, scale)| neuron.iter().map(|x| x * scale).collect())
            .collect();
        let restore = squares(&neurons).sqrt() / squares(&scaled).sqrt().max(1e-10);
        let scaled = if rows >= columns { scaled } else { transposed(&scaled) };

        let lr = lr * (rows as f64 / columns as f64).max(1.0).sqrt();
        self.param = combined(&self.param, &scaled, |p, u| {
            let u = u * restore;
            let decayed = if u * p >= 0.0 { decay * p } else { 0.0 };
            p - lr * (u + decayed)
        });
    }
}

/// The types of parameter and the ways to compute, with how far off steps may end, as a share of the
/// way that they went. The rounding of bf16 changes where between about 0.7 and 1.2 the polynomials
/// leave a singular value, so that is how far off a step may be.
fn ways() -> Vec<(DType, Compute, f64)> {
    let mut ways = vec![
        (DType::F64, Compute::Composed, 1e-10),
        (DType::F32, Compute::Composed, 1e-3),
        (DType::F32, Compute::F32, 1e-3),
    ];
    if multiplies_bf16() {
        ways.push((DType::F32, Compute::Bf16, 0.3));
    }
    if card() {
        ways.push((DType::F32, Compute::Card, 0.3));
    }
    ways
}

fn distance(xs: &[f64], ys: &[f64]) -> f64 {
    assert_eq!(xs.len(), ys.len());
    xs.iter().zip(ys).map(|(x, y)| (x - y).powi(2)).sum::<f64>().sqrt()
}

fn assert_close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() <= tolerance, "{name}[{i}]: {got} instead of {expected}");
    }
}

#[test]
fn muon_agrees_with_plain_loops_for_tall_wide_and_square_matrices() {
    for shape in [(7, 3), (3, 7), (5, 5), (1, 4), (4, 1), (16, 4), (40, 33), (33, 70)] {
        for (dtype, compute, tolerance) in ways() {
            with(compute, |device| muon_agrees(shape, (dtype, device), compute, tolerance));
        }
    }
}

fn muon_agrees(
    (rows, columns): (usize, usize),
    (dtype, device): (DType, &Device),
    compute: Compute,
    tolerance: f64,
) {
    let mut numbers = Numbers(rows as u64 * 100 + columns as u64);
    // Two of a shape, to see that they are kept apart.
    let params = [random(&mut numbers, rows, columns), random(&mut numbers, rows, columns)];
    let place = |xs: &Rows| tensor(xs).to_dtype(dtype).unwrap().to_device(device).unwrap();
    let vars = params.each_ref().map(|param| Var::from_tensor(&place(param)).unwrap());
    let starts = params.clone();
    let mut references = params.map(Reference::new);
    let mut muon = Muon::new(&vars, compute).unwrap();
    for number in 0..5 {
        let (lr, momentum) = (0.05 - 0.005 * number as f64, 0.85 + 0.02 * number as f64);
        let step = MuonStep { lr, momentum, beta2: MUON_BETA2, weight_decay: 0.3 };
        let grads = [random(&mut numbers, rows, columns), random(&mut numbers, rows, columns)];
        let tensors = grads.each_ref().map(place);
        muon.step(&tensors.each_ref(), step).unwrap();
        for (i, (reference, grad)) in references.iter_mut().zip(&grads).enumerate() {
            reference.step(grad, lr, momentum, step.weight_decay);
            let name = format!("{rows} x {columns}, {compute:?}, matrix {i}, step {number}");
            let expected = reference.param.concat();
            let off = distance(&values(&vars[i]), &expected);
            let moved = distance(&starts[i].concat(), &expected);
            assert!(off <= tolerance * moved, "{name}: {off} off after moving {moved}");
        }
    }
}

#[test]
fn muon_gives_well_conditioned_gradients_singular_values_near_one() {
    let mut numbers = Numbers(9);
    let noise = random(&mut numbers, 6, 6);
    let start: Rows = (0..6).map(|i| (0..6).map(|j| f64::from(i == j)).collect()).collect();
    let x = polar_express(&combined(&start, &noise, |a, b| a + 0.2 * b));
    for (i, row) in product(&x, &transposed(&x)).iter().enumerate() {
        for (j, &entry) in row.iter().enumerate() {
            // The polynomials leave singular values between about 0.7 and 1.2.
            assert!((entry - f64::from(i == j)).abs() < 0.45, "({i}, {j}): {entry}");
        }
    }
}

#[test]
fn muon_leaves_a_matrix_without_a_gradient_where_it_is() {
    for (dtype, compute, _) in ways() {
        with(compute, |device| {
            let start = tensor(&vec![vec![1.0, -2.0], vec![0.5, 3.0]]).to_dtype(dtype).unwrap();
            let var = Var::from_tensor(&start.to_device(device).unwrap()).unwrap();
            let mut muon = Muon::new(std::slice::from_ref(&var), compute).unwrap();
            let step = MuonStep { lr: 0.1, momentum: 0.9, beta2: MUON_BETA2, weight_decay: 0.0 };
            muon.step(&[&var.zeros_like().unwrap()], step).unwrap();
            assert_eq!(values(&var), [1.0, -2.0, 0.5, 3.0], "{compute:?}");
        });
    }
}

#[test]
fn matrices_of_different_shapes_are_refused() {
    let var = |shape| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap();
    assert!(Muon::new(&[var((2, 3)), var((3, 2))], Compute::F32).is_err());
    assert!(Muon::new(&[], Compute::F32).is_err());
}

#[test]
fn adamw_agrees_with_plain_loops() {
    let mut ways = vec![(DType::F64, Compute::Composed, 1e-13), (DType::F32, Compute::F32, 1e-5)];
    if card() {
        ways.push((DType::F32, Compute::Card, 1e-5));
    }
    for (dtype, compute, tolerance) in ways {
        with(compute, |device| adamw_agrees((dtype, device), tolerance));
    }
}

fn adamw_agrees((dtype, device): (DType, &Device), tolerance: f64) {
    let mut numbers = Numbers(4);
    // Longer than what one task takes, and not a multiple of it.
    let (rows, columns) = (3, 16_001);
    let place = |xs: &Rows| tensor(xs).to_dtype(dtype).unwrap().to_device(device).unwrap();
    for betas in [(0.8, 0.95), (0.96, 0.95)] {
        let start = random(&mut numbers, rows, columns);
        let var = Var::from_tensor(&place(&start)).unwrap();
        let mut param = start.concat();
        let (mut mean, mut mean_square) = (vec![0.0; param.len()], vec![0.0; param.len()]);
        let mut adamw = AdamW::new(&var).unwrap();
        for number in 1..=6 {
            let lr = 0.03 / f64::from(number);
            let grad = random(&mut numbers, rows, columns);
            let step = AdamWStep { lr, betas, eps: ADAM_EPS };
            adamw.step(&place(&grad), step).unwrap();
            for (i, grad) in grad.into_iter().flatten().enumerate() {
                mean[i] = betas.0 * mean[i] + (1.0 - betas.0) * grad;
                mean_square[i] = betas.1 * mean_square[i] + (1.0 - betas.1) * grad * grad;
                let corrected = mean[i] / (1.0 - betas.0.powi(number));
                let spread = (mean_square[i] / (1.0 - betas.1.powi(number))).sqrt();
                param[i] -= lr * corrected / (spread + ADAM_EPS);
            }
            assert_close(&format!("{dtype:?}, step {number}"), &values(&var), &param, tolerance);
        }
    }
}
