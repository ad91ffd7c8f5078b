//! Muon and AdamW against their formulas in plain 64-bit loops.

use super::Numbers;
use crate::train::{AdamW, Muon};
use candle_core::{Device, Tensor, Var};

type Matrix = Vec<Vec<f64>>;

fn zip(a: &Matrix, b: &Matrix, f: impl Fn(f64, f64) -> f64) -> Matrix {
    let row = |(a, b): (&Vec<f64>, &Vec<f64>)| a.iter().zip(b).map(|(&a, &b)| f(a, b)).collect();
    a.iter().zip(b).map(row).collect()
}

fn transposed(a: &Matrix) -> Matrix {
    (0..a[0].len()).map(|j| a.iter().map(|row| row[j]).collect()).collect()
}

fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let b = transposed(b);
    let dot = |x: &Vec<f64>, y: &Vec<f64>| x.iter().zip(y).map(|(x, y)| x * y).sum();
    a.iter().map(|row| b.iter().map(|column| dot(row, column)).collect()).collect()
}

fn length(a: &Matrix) -> f64 {
    a.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()
}

/// Five quintic polynomials of the singular values, by their definition `p(X) = aX + bXXᵀX + cX(XᵀX)²`.
fn polar_express(x: &Matrix) -> Matrix {
    const COEFFICIENTS: [[f64; 3]; 5] = [
        [8.156554524902461, -22.48329292557795, 15.878769915207462],
        [4.042929935166739, -2.808917465908714, 0.5000178451051316],
        [3.8916678022926607, -2.772484153217685, 0.5060648178503393],
        [3.285753657755655, -2.3681294933425376, 0.46449024233003106],
        [2.3465413258596377, -1.7097828382687081, 0.42323551169305323],
    ];
    let scale = length(x) * 1.02 + 1e-6;
    let mut x: Matrix = x.iter().map(|row| row.iter().map(|x| x / scale).collect()).collect();
    for [a, b, c] in COEFFICIENTS {
        let cubic = product(&product(&x, &transposed(&x)), &x);
        let quintic = product(&product(&x, &transposed(&x)), &cubic);
        x = zip(&zip(&x, &cubic, |x, y| a * x + b * y), &quintic, |x, y| x + c * y);
    }
    x
}

struct Reference {
    param: Matrix,
    momentum: Matrix,
    /// One number a row of a tall or square matrix, or a column of a wide one.
    variance: Vec<f64>,
}

impl Reference {
    fn step(&mut self, grad: &Matrix, lr: f64, momentum: f64, decay: f64) {
        self.momentum = zip(&self.momentum, grad, |m, g| m + (1.0 - momentum) * (g - m));
        let update = zip(grad, &self.momentum, |g, m| g + momentum * (m - g));
        let mut update = polar_express(&update);
        let (rows, columns) = (update.len(), update[0].len());
        let by_row = rows >= columns;
        let neuron = |i: usize, j: usize| if by_row { i } else { j };
        let mut mean_square = vec![0.0; self.variance.len()];
        for i in 0..rows {
            for j in 0..columns {
                mean_square[neuron(i, j)] += update[i][j].powi(2) / rows.min(columns) as f64;
            }
        }
        for (variance, square) in self.variance.iter_mut().zip(&mean_square) {
            *variance += 0.05 * (square - *variance);
        }
        let before = length(&update);
        for i in 0..rows {
            for j in 0..columns {
                update[i][j] /= self.variance[neuron(i, j)].max(1e-10).sqrt();
            }
        }
        let after = length(&update);
        let lr = lr * (rows as f64 / columns as f64).max(1.0).sqrt();
        self.param = zip(&self.param, &update, |p, u| {
            let u = u * before / after;
            p - lr * (u + if u * p >= 0.0 { decay * p } else { 0.0 })
        });
    }
}

#[test]
fn a_muon_step_is_its_formula() {
    for (rows, columns) in [(6, 6), (12, 5), (5, 12)] {
        let mut numbers = Numbers(3);
        let mut matrix = || -> Matrix { (0..rows).map(|_| numbers.vec(columns)).collect() };
        let tensor = |matrix: &Matrix| Tensor::new(matrix.clone(), &Device::Cpu).unwrap();
        let mut references: Vec<_> = (0..2)
            .map(|_| Reference {
                param: matrix(),
                momentum: vec![vec![0.0; columns]; rows],
                variance: vec![0.0; rows.max(columns)],
            })
            .collect();
        let vars: Vec<_> =
            references.iter().map(|r| Var::from_tensor(&tensor(&r.param)).unwrap()).collect();
        let mut muon = Muon::new(&vars, 0.02).unwrap();
        for step in 0..4 {
            let grads = [matrix(), matrix()];
            let (multiplier, momentum) = (1.0 - 0.2 * f64::from(step), 0.85 + 0.02 * f64::from(step));
            let tensors = grads.each_ref().map(&tensor);
            muon.step(&tensors.each_ref(), multiplier, momentum, 0.3).unwrap();
            for ((reference, grad), var) in references.iter_mut().zip(&grads).zip(&vars) {
                reference.step(grad, 0.02 * multiplier, momentum, 0.3);
                let error = length(&zip(&reference.param, &var.to_vec2().unwrap(), |a, b| a - b));
                assert!(error < 1e-11, "{rows} x {columns}, step {step}: off by {error:e}");
            }
        }
    }
}

#[test]
fn an_orthogonalised_update_moves_in_all_directions_alike() {
    // A gradient with singular values 1 and 0.01, in a rotated basis.
    let (sin, cos) = 0.6f64.sin_cos();
    let grad = vec![vec![cos, -0.01 * sin], vec![sin, 0.01 * cos]];
    let polar = polar_express(&grad);
    let gram = product(&polar, &transposed(&polar));
    for (i, row) in gram.iter().enumerate() {
        for (j, &x) in row.iter().enumerate() {
            let expected = if i == j { 1.0 } else { 0.0 };
            assert!((x - expected).abs() < 0.2, "{gram:?}");
        }
    }
}

#[test]
fn an_adamw_step_is_its_formula() {
    let mut numbers = Numbers(5);
    let mut params = numbers.vec(10);
    let (mut mean, mut square) = (vec![0.0; 10], vec![0.0; 10]);
    let var = Var::new(params.as_slice(), &Device::Cpu).unwrap();
    let mut adamw = AdamW::new(&var, 0.1, (0.8, 0.95)).unwrap();
    for step in 1..=5 {
        let grad = numbers.vec(10);
        adamw.step(&Tensor::new(grad.as_slice(), &Device::Cpu).unwrap(), 0.5).unwrap();
        for i in 0..10 {
            mean[i] = 0.8 * mean[i] + 0.2 * grad[i];
            square[i] = 0.95 * square[i] + 0.05 * grad[i] * grad[i];
            let unbiased = (mean[i] / (1.0 - 0.8f64.powi(step)), square[i] / (1.0 - 0.95f64.powi(step)));
            params[i] -= 0.05 * unbiased.0 / (unbiased.1.sqrt() + 1e-10);
        }
        for (expected, found) in params.iter().zip(var.to_vec1::<f64>().unwrap()) {
            assert!((expected - found).abs() < 1e-12, "step {step}: {found}, not {expected}");
        }
    }
}
