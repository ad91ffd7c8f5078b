//! Muon, in place, one matrix a task.

use crate::{
    Compute,
    adamw::is_fused,
    card, composed,
    element::vectorized,
    product::{Mode, Number},
    storage,
};
use candle_core::{Result, Tensor, Var, bail};
use half::bf16;
use rayon::prelude::*;

/// Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices of one shape, with the
/// variance reduction of NorMuon and cautious decay.
///
/// With [`Compute::Bf16`] the polar iteration is in `bf16`, as in nanochat; the parameters and all
/// that is remembered stay `f32`.
pub struct Muon {
    vars: Vec<Var>,
    memory: Memory,
    compute: Compute,
}

/// One step's settings.
#[derive(Debug, Clone, Copy)]
pub struct MuonStep {
    /// Learning rate, before the factor for the matrices' shape.
    pub lr: f64,
    /// Memory of the mean gradient.
    pub momentum: f64,
    /// Memory of the variance of each neuron's update.
    pub beta2: f64,
    /// Pull of the parameters towards zero, where it agrees with the update.
    pub weight_decay: f64,
}

/// Coefficients of the five polynomials of Polar Express (Amsel et al. 2025, arXiv 2505.16932),
/// computed for singular values from 1e-3 to 1 with the paper's safety factor, as in nanochat.
pub(crate) const POLAR_EXPRESS: [(f64, f64, f64); 5] = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
];

enum Memory {
    /// Of each matrix.
    Fused(Vec<Moments>),
    /// Of the stack, on a card.
    Card(card::Moments),
    /// Of the stack: the mean gradients, and the neurons' mean squares.
    Composed([Tensor; 2]),
}

struct Moments {
    mean: Vec<f32>,
    /// One number a neuron: a row of a tall or square matrix, a column of a wide one.
    neurons: Vec<f32>,
}

impl Muon {
    /// For matrices of the same shape.
    pub fn new(vars: &[Var], compute: Compute) -> Result<Self> {
        let Some(first) = vars.first() else { bail!("muon: there is no matrix") };
        let (rows, columns) = first.dims2()?;
        if let Some(other) = vars.iter().find(|var| var.dims() != first.dims()) {
            bail!("muon: matrices of {:?} and {:?}", first.shape(), other.shape());
        }
        let memory = if compute == Compute::Card {
            Memory::Card(card::Moments::new(vars)?)
        } else if compute != Compute::Composed && vars.iter().all(is_fused) {
            let zeros = |_| Moments {
                mean: vec![0.0; rows * columns],
                neurons: vec![0.0; rows.max(columns)],
            };
            Memory::Fused(vars.iter().map(zeros).collect())
        } else {
            let zeros = |rows, columns| {
                Tensor::zeros((vars.len(), rows, columns), first.dtype(), first.device())
            };
            let neurons = if rows >= columns { zeros(rows, 1)? } else { zeros(1, columns)? };
            Memory::Composed([zeros(rows, columns)?, neurons])
        };
        Ok(Self { vars: vars.to_vec(), memory, compute })
    }

    /// The matrices that the steps move.
    pub fn vars(&self) -> &[Var] {
        &self.vars
    }

    /// Moves each matrix against its gradient.
    pub fn step(&mut self, grads: &[&Tensor], mut step: MuonStep) -> Result<()> {
        if grads.len() != self.vars.len() {
            bail!("muon: {} gradients for {} matrices", grads.len(), self.vars.len());
        }
        let (rows, columns) = self.vars[0].dims2()?;
        // A tall matrix needs a longer step to change its output as much.
        step.lr *= (rows as f64 / columns as f64).max(1.0).sqrt();
        match &mut self.memory {
            Memory::Composed(memory) => {
                let params: Vec<&Tensor> = self.vars.iter().map(|var| var.as_tensor()).collect();
                let params = Tensor::stack(&params, 0)?.detach();
                let moved = composed::muon(&params, &Tensor::stack(grads, 0)?, memory, step)?;
                for (i, var) in self.vars.iter().enumerate() {
                    var.set(&moved.get(i)?)?;
                }
                Ok(())
            }
            Memory::Card(moments) => moments.step(&self.vars, grads, step),
            Memory::Fused(memory) => {
                let bf16 = self.compute == Compute::Bf16 && crate::multiplies_bf16();
                let matrices = self.vars.par_iter().zip(grads).zip(memory);
                matrices.try_for_each(|((var, grad), moments)| {
                    storage::read([*grad], |[grad]: [&[f32]; 1]| {
                        storage::write(var, |param| {
                            let shape = (rows, columns);
                            if bf16 {
                                move_matrix::<bf16>(param, grad, moments, shape, step);
                            } else {
                                move_matrix::<f32>(param, grad, moments, shape, step);
                            }
                        })
                    })?
                })
            }
        }
    }
}

fn move_matrix<E: Number>(
    param: &mut [f32],
    grad: &[f32],
    moments: &mut Moments,
    (rows, columns): (usize, usize),
    step: MuonStep,
) {
    let mut update = vec![0.0; grad.len()];
    nesterov(grad, &mut moments.mean, &mut update, step.momentum as f32);
    // Lying down, so that the products of rows are the smaller square.
    let (height, width) = (rows.min(columns), rows.max(columns));
    if rows > columns {
        update = transposed(&update, columns);
    }
    let mut update = polar_express::<E>(&update, (height, width));
    // A neuron is a row of what was given, and a column of it lying down.
    even_out(&mut update, &mut moments.neurons, (height, width), step.beta2 as f32);
    if rows > columns {
        update = transposed(&update, rows);
    }
    descend(param, &update, step.lr as f32, step.weight_decay as f32);
}

vectorized! {
    fn nesterov(grad: &[f32], mean: &mut [f32], update: &mut [f32], momentum: f32) {
        for ((update, mean), &grad) in update.iter_mut().zip(mean).zip(grad) {
            *mean += (1.0 - momentum) * (grad - *mean);
            *update = grad + momentum * (*mean - grad);
        }
    }
}

vectorized! {
    /// Cautious decay: only where it pulls the same way as the update.
    fn descend(param: &mut [f32], update: &[f32], lr: f32, decay: f32) {
        for (param, &update) in param.iter_mut().zip(update) {
            let pull = if update * *param >= 0.0 { decay * *param } else { 0.0 };
            *param -= lr * (update + pull);
        }
    }
}

fn transposed(xs: &[f32], columns: usize) -> Vec<f32> {
    // A block's rows and columns fit the cache together.
    const BLOCK: usize = 32;
    let rows = xs.len() / columns;
    let mut ys = vec![0.0; xs.len()];
    for first_row in (0..rows).step_by(BLOCK) {
        for first_column in (0..columns).step_by(BLOCK) {
            for column in first_column..columns.min(first_column + BLOCK) {
                for row in first_row..rows.min(first_row + BLOCK) {
                    ys[column * rows + row] = xs[row * columns + column];
                }
            }
        }
    }
    ys
}

/// The nearest matrix with all singular values one, roughly, of one with no more rows than columns.
fn polar_express<E: Number>(xs: &[f32], (height, width): (usize, usize)) -> Vec<f32> {
    let norm = xs.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() * 1.02 + 1e-6;
    let mut xs: Vec<E> = xs.iter().map(|x| E::store(x / norm as f32)).collect();
    let mut plain = vec![0.0; xs.len()];
    let mut gram = vec![E::default(); height * height];
    let mut square = gram.clone();
    for (a, b, c) in POLAR_EXPRESS {
        widen(&xs, &mut plain);
        let weight = E::weight(&plain, width, true);
        E::symmetric(&xs, &weight, &mut gram);
        let mut plain_gram = vec![0.0; gram.len()];
        widen(&gram, &mut plain_gram);
        E::symmetric(&gram, &E::weight(&plain_gram, height, false), &mut square);
        // (b G + c G²) X + a X
        combine(&gram, &mut square, b as f32, c as f32);
        scale(&mut xs, a as f32);
        E::d_inputs(&square, &weight, &mut xs, Mode::Add);
    }
    widen(&xs, &mut plain);
    plain
}

vectorized! {
    fn widen<E>(xs: &[E], ys: &mut [f32]) {
        for (y, x) in ys.iter_mut().zip(xs) {
            *y = x.load();
        }
    }
}

vectorized! {
    fn combine<E>(xs: &[E], ys: &mut [E], b: f32, c: f32) {
        for (y, x) in ys.iter_mut().zip(xs) {
            *y = E::store(b * x.load() + c * y.load());
        }
    }
}

vectorized! {
    fn scale<E>(xs: &mut [E], factor: f32) {
        for x in xs.iter_mut() {
            *x = E::store(factor * x.load());
        }
    }
}

/// Gives every neuron an update of about the same size, and leaves the size of the whole as it was
/// (NorMuon, arXiv 2510.05491, algorithm 1). Neurons are the columns of `update`, or the rows of a
/// square one.
fn even_out(update: &mut [f32], neurons: &mut [f32], (height, width): (usize, usize), beta2: f32) {
    let by_rows = height == width;
    let per_neuron = height as f32;
    let mut squares = vec![0.0; neurons.len()];
    for (i, row) in update.chunks_exact(width).enumerate() {
        if by_rows {
            squares[i] = crate::math::dot(row, row);
        } else {
            squares.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
        }
    }
    let (mut before, mut after) = (0.0, 0.0);
    let mut scales = vec![0.0; neurons.len()];
    for ((square, neuron), scale) in squares.iter().zip(neurons).zip(&mut scales) {
        *neuron += (1.0 - beta2) * (square / per_neuron - *neuron);
        *scale = 1.0 / neuron.max(1e-10).sqrt();
        before += f64::from(*square);
        after += f64::from(square * *scale * *scale);
    }
    let restore = (before.sqrt() / after.sqrt().max(1e-10)) as f32;
    scales.iter_mut().for_each(|scale| *scale *= restore);
    for (i, row) in update.chunks_exact_mut(width).enumerate() {
        if by_rows {
            row.iter_mut().for_each(|x| *x *= scales[i]);
        } else {
            row.iter_mut().zip(&scales).for_each(|(x, scale)| *x *= scale);
        }
    }
}
