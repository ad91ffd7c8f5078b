//! RMS norm without gains, alone and together with rotary embeddings.

use crate::{
    composed,
    float::{Float, dot},
    storage::{Fused, fused, gradient, output, read, slice},
};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;
use std::marker::PhantomData;

/// Added to the mean square before its root: the spacing of `f32` at one, as in PyTorch.
pub const NORM_EPS: f64 = f32::EPSILON as f64;

/// `x / sqrt(mean(x²) + NORM_EPS)` over the last dimension (Zhang and Sennrich 2019, *Root mean
/// square layer normalization*, arXiv 1910.07467).
pub fn rms_norm(xs: &Tensor) -> Result<Tensor> {
    match fused(xs) {
        Some(Fused::F32) => xs.contiguous()?.apply_op1(RmsNorm::<f32>(PhantomData)),
        Some(Fused::F64) => xs.contiguous()?.apply_op1(RmsNorm::<f64>(PhantomData)),
        None => composed::rms_norm(xs),
    }
}

/// Rotary position embeddings, then [`rms_norm`] of every head.
///
/// `xs` is `[batch, time, head, channel]`; `cos` and `sin` are `[time, channel / 2]`, one angle for
/// channel `i` and channel `i + channel / 2` (Su et al. 2021, *RoFormer*, arXiv 2104.09864; paired
/// by halves as in GPT-NeoX). No gradient goes to `cos` and `sin`.
pub fn rotary_norm(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (_, time, _, channels) = xs.dims4()?;
    if channels % 2 != 0 {
        bail!("rotary_norm: heads of {channels} channels have no two halves");
    }
    for (name, table) in [("cos", cos), ("sin", sin)] {
        if table.dims() != [time, channels / 2] {
            bail!("rotary_norm: {name} is {:?}, for inputs {:?}", table.shape(), xs.shape());
        }
    }
    let (contiguous, cos, sin) = (xs.contiguous()?, cos.contiguous()?, sin.contiguous()?);
    match fused(xs) {
        Some(Fused::F32) => contiguous.apply_op3(&cos, &sin, RotaryNorm::<f32>(PhantomData)),
        Some(Fused::F64) => contiguous.apply_op3(&cos, &sin, RotaryNorm::<f64>(PhantomData)),
        None => composed::rotary_norm(xs, &cos, &sin),
    }
}

/// Vectors that one task takes at a time.
const ROWS: usize = 256;

struct RmsNorm<F>(PhantomData<F>);

impl<F: Float> CustomOp1 for RmsNorm<F> {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, xs: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = last_dim(layout.shape())?;
        let xs: &[F] = slice(xs, layout)?;
        let mut ys = vec![F::zero(); xs.len()];
        let chunk = ROWS * width;
        ys.par_chunks_mut(chunk).zip(xs.par_chunks(chunk)).for_each(|(ys, xs)| {
            Arch::new().dispatch(|| {
                for (y, x) in ys.chunks_exact_mut(width).zip(xs.chunks_exact(width)) {
                    let scale = inverse_rms(x);
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x * scale;
                    }
                }
            });
        });
        Ok(output(ys, layout.shape().clone()))
    }

    fn bwd(&self, xs: &Tensor, _ys: &Tensor, d_ys: &Tensor) -> Result<Option<Tensor>> {
        let width = last_dim(xs.shape())?;
        let chunk = ROWS * width;
        let d_xs = read([xs, d_ys], |[xs, d_ys]: [&[F]; 2]| {
            let mut d_xs = vec![F::zero(); xs.len()];
            let inputs = xs.par_chunks(chunk).zip(d_ys.par_chunks(chunk));
            d_xs.par_chunks_mut(chunk).zip(inputs).for_each(|(d_xs, (xs, d_ys))| {
                Arch::new().dispatch(|| {
                    let inputs = xs.chunks_exact(width).zip(d_ys.chunks_exact(width));
                    for (d_x, (x, d_y)) in d_xs.chunks_exact_mut(width).zip(inputs) {
                        norm_backward(d_x, x, d_y);
                    }
                });
            });
            d_xs
        })?;
        gradient(d_xs, xs)
    }
}

struct RotaryNorm<F>(PhantomData<F>);

impl<F: Float> CustomOp3 for RotaryNorm<F> {
    fn name(&self) -> &'static str {
        "rotary_norm"
    }

    fn cpu_fwd(
        &self,
        xs: &CpuStorage,
        layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, time, heads, width) = layout.shape().dims4()?;
        let half = width / 2;
        let xs: &[F] = slice(xs, layout)?;
        let cos: &[F] = slice(cos, cos_layout)?;
        let sin: &[F] = slice(sin, sin_layout)?;
        let mut ys = vec![F::zero(); xs.len()];
        let step = heads * width;
        ys.par_chunks_mut(step).zip(xs.par_chunks(step)).with_min_len(16).enumerate().for_each(
            |(row, (ys, xs))| {
                let angle = (row % time) * half..(row % time + 1) * half;
                let (cos, sin) = (&cos[angle.clone()], &sin[angle]);
                Arch::new().dispatch(|| {
                    for (y, x) in ys.chunks_exact_mut(width).zip(xs.chunks_exact(width)) {
                        // A rotation leaves the length as it is.
                        let scale = inverse_rms(x);
                        let (x1, x2) = x.split_at(half);
                        let (y1, y2) = y.split_at_mut(half);
                        for i in 0..half {
                            y1[i] = (x1[i] * cos[i] + x2[i] * sin[i]) * scale;
                            y2[i] = (x2[i] * cos[i] - x1[i] * sin[i]) * scale;
                        }
                    }
                });
            },
        );
        Ok(output(ys, layout.shape().clone()))
    }

    fn bwd(
        &self,
        xs: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _ys: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let shape = xs.dims4()?;
        let d_xs = read([xs, cos, sin, d_ys], |[xs, cos, sin, d_ys]: [&[F]; 4]| {
            rotary_norm_backward(shape, xs, [cos, sin], d_ys)
        })?;
        Ok((gradient(d_xs, xs)?, None, None))
    }
}

fn rotary_norm_backward<F: Float>(
    (_, time, heads, width): (usize, usize, usize, usize),
    xs: &[F],
    [cos, sin]: [&[F]; 2],
    d_ys: &[F],
) -> Vec<F> {
    let (half, step) = (width / 2, heads * width);
    let mut d_xs = vec![F::zero(); xs.len()];
    let inputs = xs.par_chunks(step).zip(d_ys.par_chunks(step));
    d_xs.par_chunks_mut(step).zip(inputs).with_min_len(16).enumerate().for_each_init(
        || vec![F::zero(); width],
        |turned_back, (row, (d_xs, (xs, d_ys)))| {
            let angle = (row % time) * half..(row % time + 1) * half;
            let (cos, sin) = (&cos[angle.clone()], &sin[angle]);
            Arch::new().dispatch(|| {
                let inputs = xs.chunks_exact(width).zip(d_ys.chunks_exact(width));
                for (d_x, (x, d_y)) in d_xs.chunks_exact_mut(width).zip(inputs) {
                    // Norm and rotation commute, so the gradient is turned back first.
                    let (g1, g2) = d_y.split_at(half);
                    let (b1, b2) = turned_back.split_at_mut(half);
                    for i in 0..half {
                        b1[i] = g1[i] * cos[i] - g2[i] * sin[i];
                        b2[i] = g1[i] * sin[i] + g2[i] * cos[i];
                    }
                    norm_backward(d_x, x, turned_back);
                }
            });
        },
    );
    d_xs
}

#[inline(always)]
fn inverse_rms<F: Float>(x: &[F]) -> F {
    let mean_square = dot(x, x) / F::from_f64(x.len() as f64);
    F::one() / (mean_square + F::from_f64(NORM_EPS)).sqrt()
}

/// With `s` the inverse RMS and `n` the width: `dx = s dy - s³ x (x·dy) / n`.
#[inline(always)]
fn norm_backward<F: Float>(d_x: &mut [F], x: &[F], d_y: &[F]) {
    let scale = inverse_rms(x);
    let pull = scale * scale * scale * dot(x, d_y) / F::from_f64(x.len() as f64);
    for ((d_x, &x), &d_y) in d_x.iter_mut().zip(x).zip(d_y) {
        *d_x = scale * d_y - pull * x;
    }
}

fn last_dim(shape: &Shape) -> Result<usize> {
    match shape.dims().last() {
        Some(&width) if width > 0 => Ok(width),
        _ => bail!("rms_norm: {shape:?} has no last dimension to normalise over"),
    }
}
