//! Muon and AdamW against the same formulas in plain loops over `f64`.

use super::*;
use crate::train::{ADAM_EPS, AdamW, MUON_BETA2, Muon};
use candle_core::Var;

type Rows = Vec<Vec<f64>>;

fn tensor(rows: &Rows) -> Tensor {
    let shape = (rows.len(), rows[0].len());
    Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap()
}

fn random(numbers: &mut Numbers, rows: usize, columns: usize) -> Rows {
    (0..rows).map(|_| numbers.list(columns)).collect()
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

fn assert_close(name: &str, got: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((got - expected).abs() < tolerance, "{name}[{i}]: {got} instead of {expected}");
    }
}

#[test]
fn muon_agrees_with_plain_loops_for_tall_wide_and_square_matrices() {
    for (rows, columns) in [(7, 3), (3, 7), (5, 5), (1, 4), (4, 1), (16, 4)] {
        let mut numbers = Numbers(rows as u64 * 100 + columns as u64);
        // Two of a shape, to see that a stack keeps them apart.
        let params = [random(&mut numbers, rows, columns), random(&mut numbers, rows, columns)];
        let vars = params.each_ref().map(|param| Var::from_tensor(&tensor(param)).unwrap());
        let mut references = params.map(Reference::new);
        let mut muon = Muon::new(&vars, 0.05).unwrap();
        for step in 0..5 {
            let (multiplier, momentum, decay) =
                (1.0 - 0.1 * step as f64, 0.85 + 0.02 * step as f64, 0.3);
            let grads = [random(&mut numbers, rows, columns), random(&mut numbers, rows, columns)];
            let tensors = grads.each_ref().map(tensor);
            muon.step(&tensors.each_ref(), multiplier, momentum, decay).unwrap();
            for (i, (reference, grad)) in references.iter_mut().zip(&grads).enumerate() {
                reference.step(grad, 0.05 * multiplier, momentum, decay);
                let name = format!("{rows} x {columns}, matrix {i}, step {step}");
                // Five quintic polynomials multiply rounding by some thousands.
                assert_close(&name, &values(&vars[i]), &reference.param.concat(), 1e-10);
            }
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
    let var = Var::from_tensor(&tensor(&vec![vec![1.0, -2.0], vec![0.5, 3.0]])).unwrap();
    let mut muon = Muon::new(std::slice::from_ref(&var), 0.1).unwrap();
    muon.step(&[&var.zeros_like().unwrap()], 1.0, 0.9, 0.0).unwrap();
    assert_eq!(values(&var), [1.0, -2.0, 0.5, 3.0]);
}

#[test]
fn adamw_agrees_with_plain_loops() {
    let mut numbers = Numbers(4);
    for betas in [(0.8, 0.95), (0.96, 0.95)] {
        let mut param = numbers.list(6);
        let (mut mean, mut mean_square) = ([0.0; 6], [0.0; 6]);
        let start = Tensor::from_vec(param.clone(), (2, 3), &Device::Cpu).unwrap();
        let mut adamw = AdamW::new(&Var::from_tensor(&start).unwrap(), 0.03, betas).unwrap();
        for step in 1..=6 {
            let multiplier = 1.0 / f64::from(step);
            let grad = numbers.list(6);
            let tensor = Tensor::from_vec(grad.clone(), (2, 3), &Device::Cpu).unwrap();
            adamw.step(&tensor, multiplier).unwrap();
            for i in 0..6 {
                mean[i] = betas.0 * mean[i] + (1.0 - betas.0) * grad[i];
                mean_square[i] = betas.1 * mean_square[i] + (1.0 - betas.1) * grad[i] * grad[i];
                let corrected = mean[i] / (1.0 - betas.0.powi(step));
                let spread = (mean_square[i] / (1.0 - betas.1.powi(step))).sqrt();
                param[i] -= 0.03 * multiplier * corrected / (spread + ADAM_EPS);
            }
            assert_close(&format!("step {step}"), &values(&adamw.var), &param, 1e-13);
        }
    }
}
