//! ReLU², the activation of the MLP.

use crate::{
    composed,
    float::Float,
    storage::{Fused, fused, gradient, output, read, slice},
};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use pulp::Arch;
use rayon::prelude::*;
use std::marker::PhantomData;

/// `max(x, 0)²`, element by element (So et al. 2021, *Primer*, arXiv 2109.08668).
pub fn relu_squared(xs: &Tensor) -> Result<Tensor> {
    match fused(xs) {
        Some(Fused::F32) => xs.contiguous()?.apply_op1(ReluSquared::<f32>(PhantomData)),
        Some(Fused::F64) => xs.contiguous()?.apply_op1(ReluSquared::<f64>(PhantomData)),
        None => composed::relu_squared(xs),
    }
}

/// Elements that one task takes at a time: a few tens of microseconds' worth.
const CHUNK: usize = 32 * 1024;

struct ReluSquared<F>(PhantomData<F>);

impl<F: Float> CustomOp1 for ReluSquared<F> {
    fn name(&self) -> &'static str {
        "relu_squared"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let xs: &[F] = slice(xs, layout)?;
        let mut ys = vec![F::zero(); xs.len()];
        ys.par_chunks_mut(CHUNK).zip(xs.par_chunks(CHUNK)).for_each(|(ys, xs)| {
            Arch::new().dispatch(|| {
                for (y, &x) in ys.iter_mut().zip(xs) {
                    // As a product, so that NaN stays NaN.
                    *y = x * positive(x);
                }
            });
        });
        Ok(output(ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        let d_xs = read([xs, d_ys], |[xs, d_ys]: [&[F]; 2]| {
            let mut d_xs = vec![F::zero(); xs.len()];
            let inputs = xs.par_chunks(CHUNK).zip(d_ys.par_chunks(CHUNK));
            d_xs.par_chunks_mut(CHUNK).zip(inputs).for_each(|(d_xs, (xs, d_ys))| {
                Arch::new().dispatch(|| {
                    for ((d_x, &x), &d_y) in d_xs.iter_mut().zip(xs).zip(d_ys) {
                        let slope = positive(x);
                        *d_x = (slope + slope) * d_y;
                    }
                });
            });
            d_xs
        })?;
        gradient(d_xs, xs)
    }
}

#[inline(always)]
fn positive<F: Float>(x: F) -> F {
    if x > F::zero() { x } else { F::zero() }
}
