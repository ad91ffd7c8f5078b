//! AdamW, in place.

use crate::{card, composed, element::vectorized, storage};
use candle_core::{DType, Device, Result, Tensor, Var};
use rayon::prelude::*;

/// AdamW without decay, of one variable (Kingma and Ba 2015, arXiv 1412.6980, algorithm 1).
pub struct AdamW {
    var: Var,
    averages: Averages,
    steps: i32,
}

/// One step's settings.
#[derive(Debug, Clone, Copy)]
pub struct AdamWStep {
    /// Learning rate.
    pub lr: f64,
    /// Memory of the mean gradient, and of its mean square.
    pub betas: (f64, f64),
    /// Keeps the update from dividing by zero.
    pub eps: f64,
}

/// Of the gradient, and of its square.
enum Averages {
    /// In `f32` on the CPU.
    Fused([Vec<f32>; 2]),
    /// In `f32` on a card.
    Card(card::Averages),
    Composed([Tensor; 2]),
}

impl AdamW {
    /// With both averages zero.
    pub fn new(var: &Var) -> Result<Self> {
        let averages = if card::takes(var.device()) && var.dtype() == DType::F32 {
            Averages::Card(card::Averages::new(var)?)
        } else if is_fused(var) {
            Averages::Fused([vec![0.0; var.elem_count()], vec![0.0; var.elem_count()]])
        } else {
            Averages::Composed([var.zeros_like()?, var.zeros_like()?])
        };
        Ok(Self { var: var.clone(), averages, steps: 0 })
    }

    /// The variable that the steps move.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Moves the variable against `grad`, of the same shape.
    pub fn step(&mut self, grad: &Tensor, step: AdamWStep) -> Result<()> {
        self.steps += 1;
        // Both averages started at zero; what they lack is made up for.
        let bias = |beta: f64| 1.0 - beta.powi(self.steps);
        let bias = (bias(step.betas.0), bias(step.betas.1));
        match &mut self.averages {
            Averages::Composed(averages) => {
                let moved = composed::adamw(&self.var, grad, averages, step, bias)?;
                self.var.set(&moved)
            }
            Averages::Card(averages) => averages.step(&self.var, grad, step, bias),
            Averages::Fused([mean, mean_square]) => {
                let factors = Factors {
                    new: (1.0 - step.betas.0) as f32,
                    new_square: (1.0 - step.betas.1) as f32,
                    square: (1.0 / bias.1) as f32,
                    lr: (step.lr / bias.0) as f32,
                    eps: step.eps as f32,
                };
                storage::read([grad], |[grad]: [&[f32]; 1]| {
                    storage::write(&self.var, |param| {
                        let averages =
                            mean.par_chunks_mut(CHUNK).zip(mean_square.par_chunks_mut(CHUNK));
                        let gradients = grad.par_chunks(CHUNK);
                        param.par_chunks_mut(CHUNK).zip(averages).zip(gradients).for_each(
                            |((param, (mean, mean_square)), grad)| {
                                update(param, grad, mean, mean_square, factors);
                            },
                        );
                    })
                })?
            }
        }
    }
}

pub(crate) fn is_fused(var: &Var) -> bool {
    matches!(var.device(), Device::Cpu) && var.dtype() == DType::F32 && var.is_contiguous()
}

/// Elements that one task takes at a time.
const CHUNK: usize = 16 * 1024;

#[derive(Clone, Copy)]
struct Factors {
    new: f32,
    new_square: f32,
    square: f32,
    lr: f32,
    eps: f32,
}

vectorized! {
    fn update(
        param: &mut [f32],
        grad: &[f32],
        mean: &mut [f32],
        mean_square: &mut [f32],
        factors: Factors,
    ) {
        let Factors { new, new_square, square, lr, eps } = factors;
        let averages = mean.iter_mut().zip(mean_square);
        for ((param, &grad), (mean, mean_square)) in param.iter_mut().zip(grad).zip(averages) {
            *mean += new * (grad - *mean);
            *mean_square += new_square * (grad * grad - *mean_square);
            *param -= lr * *mean / ((*mean_square * square).sqrt() + eps);
        }
    }
}
