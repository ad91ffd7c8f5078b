//! RMS norm without gains, alone and together with rotary embeddings.

use crate::{
    card, composed,
    element::{Element, vectorized},
    math::dot,
    pass::{Activations, Fused, dispatch},
    storage,
    tape::Node,
};
use candle_core::{Result, Tensor, bail};

/// Added to the mean square before its root: the spacing of `f32` at one, as in PyTorch.
pub const NORM_EPS: f64 = f32::EPSILON as f64;

/// `x / sqrt(mean(x²) + NORM_EPS)` over the channels of a token (Zhang and Sennrich 2019, *Root mean
/// square layer normalization*, arXiv 1910.07467).
pub fn rms_norm(xs: &Activations) -> Result<Activations> {
    dispatch!([xs], fused_norm(xs), card::rms_norm(xs), {
        composed::rms_norm(xs).map(Activations::Composed)
    })
}

/// Rotary position embeddings, then [`rms_norm`] of every head.
///
/// `xs` is `[token, head * channel]`, the tokens those of sequences of `time`; `cos` and `sin` are
/// `[position, channel / 2]`, `time` positions at least, one angle for channel `i` and channel
/// `i + channel / 2` of a head (Su et al. 2021, *RoFormer*, arXiv 2104.09864; paired by halves as in
/// GPT-NeoX). No gradient goes to `cos` and `sin`.
pub fn rotary_norm(
    xs: &Activations,
    (cos, sin): (&Tensor, &Tensor),
    time: usize,
) -> Result<Activations> {
    let (tokens, channels) = xs.dims()?;
    let (positions, half) = cos.dims2()?;
    let fits = time > 0 && time <= positions && sin.dims() == cos.dims() && half > 0;
    if !fits || tokens % time != 0 || channels % (2 * half) != 0 {
        bail!(
            "rotary_norm: tables of {:?} and {:?} for {tokens} tokens of {channels} channels, in \
             sequences of {time}",
            cos.shape(),
            sin.shape()
        );
    }
    let (cos, sin) = (cos.narrow(0, 0, time)?, sin.narrow(0, 0, time)?);
    dispatch!([xs], fused_rotary(xs, [cos, sin]), card::rotary_norm(xs, &cos, &sin), {
        composed::rotary_norm(xs, &cos, &sin).map(Activations::Composed)
    })
}

fn fused_norm<E: Fused>(xs: &Node<E>) -> Result<Activations> {
    let width = xs.channels;
    let mut ys = vec![E::default(); xs.values().len()];
    norm(xs.values(), &mut ys, width);
    let x = xs.clone();
    let node = xs.tape.record(ys, width, move |flow, mut d_ys: Vec<E>| {
        d_norm(x.values(), &mut d_ys, width);
        flow.give(x.at, d_ys);
        Ok(())
    });
    Ok(E::activations(node))
}

vectorized! {
    fn norm<E>(xs: &[E], ys: &mut [E], width: usize) {
        for (y, x) in ys.chunks_exact_mut(width).zip(xs.chunks_exact(width)) {
            let scale = inverse_rms(x);
            for (y, x) in y.iter_mut().zip(x) {
                *y = E::store(x.load() * scale);
            }
        }
    }
}

vectorized! {
    /// Turns the gradient of the result into that of the argument.
    fn d_norm<E>(xs: &[E], d: &mut [E], width: usize) {
        for (d, x) in d.chunks_exact_mut(width).zip(xs.chunks_exact(width)) {
            let (scale, pull) = slopes(x, dot(x, d));
            for (d, x) in d.iter_mut().zip(x) {
                *d = E::store(scale * d.load() - pull * x.load());
            }
        }
    }
}

fn fused_rotary<E: Fused>(xs: &Node<E>, tables: [Tensor; 2]) -> Result<Activations> {
    let channels = xs.channels;
    let mut ys = vec![E::default(); xs.values().len()];
    let width = 2 * tables[0].dim(1)?;
    storage::read([&tables[0], &tables[1]], |[cos, sin]: [&[f32]; 2]| {
        rotate(xs.values(), cos, sin, &mut ys, channels, width);
    })?;
    let x = xs.clone();
    let node = xs.tape.record(ys, channels, move |flow, mut d_ys: Vec<E>| {
        storage::read([&tables[0], &tables[1]], |[cos, sin]: [&[f32]; 2]| {
            d_rotate(x.values(), cos, sin, &mut d_ys, channels, width);
        })?;
        flow.give(x.at, d_ys);
        Ok(())
    });
    Ok(E::activations(node))
}

vectorized! {
    fn rotate<E>(
        xs: &[E],
        cos: &[f32],
        sin: &[f32],
        ys: &mut [E],
        channels: usize,
        width: usize,
    ) {
        let half = width / 2;
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half)).cycle();
        let tokens = ys.chunks_exact_mut(channels).zip(xs.chunks_exact(channels));
        for ((y, x), (cos, sin)) in tokens.zip(angles) {
            for (y, x) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                // A rotation leaves the length as it is.
                let scale = inverse_rms(x);
                let (x1, x2) = x.split_at(half);
                let (y1, y2) = y.split_at_mut(half);
                for ((((y1, y2), x1), x2), (cos, sin)) in
                    y1.iter_mut().zip(y2).zip(x1).zip(x2).zip(cos.iter().zip(sin))
                {
                    let (x1, x2) = (x1.load() * scale, x2.load() * scale);
                    *y1 = E::store(x1 * cos + x2 * sin);
                    *y2 = E::store(x2 * cos - x1 * sin);
                }
            }
        }
    }
}

vectorized! {
    /// Turns the gradient of the result into that of the argument.
    fn d_rotate<E>(
        xs: &[E],
        cos: &[f32],
        sin: &[f32],
        d: &mut [E],
        channels: usize,
        width: usize,
    ) {
        let half = width / 2;
        let mut turned_back = vec![0.0; width];
        let mut plain = vec![0.0; width];
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half)).cycle();
        let tokens = d.chunks_exact_mut(channels).zip(xs.chunks_exact(channels));
        for ((d, x), (cos, sin)) in tokens.zip(angles) {
            for (d, x) in d.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
                // Norm and rotation commute, so the gradient is turned back first.
                let (d1, d2) = d.split_at(half);
                let (b1, b2) = turned_back.split_at_mut(half);
                for ((((b1, b2), d1), d2), (cos, sin)) in
                    b1.iter_mut().zip(b2).zip(d1).zip(d2).zip(cos.iter().zip(sin))
                {
                    let (d1, d2) = (d1.load(), d2.load());
                    *b1 = d1 * cos - d2 * sin;
                    *b2 = d1 * sin + d2 * cos;
                }
                for (plain, x) in plain.iter_mut().zip(x) {
                    *plain = x.load();
                }
                let (scale, pull) = slopes(x, dot(&plain, &turned_back));
                for ((d, b), x) in d.iter_mut().zip(&turned_back).zip(&plain) {
                    *d = E::store(scale * b - pull * x);
                }
            }
        }
    }
}

#[inline(always)]
fn inverse_rms<E: Element>(x: &[E]) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + NORM_EPS as f32).sqrt()
}

/// With `s` the inverse RMS and `n` the width, `dx = s dy - s³ x (x·dy) / n`: `s`, and what `x` is
/// multiplied by.
#[inline(always)]
fn slopes<E: Element>(x: &[E], product: f32) -> (f32, f32) {
    let scale = inverse_rms(x);
    (scale, scale * scale * scale * product / x.len() as f32)
}
