//! The same operations from candle's own: the definition that the fused kernels are tested
//! against, and what runs on other devices.

use crate::norm::NORM_EPS;
use candle_core::{D, DType, Result, Tensor};

/// See [`relu_squared`](crate::relu_squared).
pub fn relu_squared(xs: &Tensor) -> Result<Tensor> {
    xs.relu()?.sqr()
}

/// See [`rms_norm`](crate::rms_norm).
pub fn rms_norm(xs: &Tensor) -> Result<Tensor> {
    let mean_square = xs.sqr()?.mean_keepdim(D::Minus1)?;
    xs.broadcast_div(&(mean_square + NORM_EPS)?.sqrt()?)
}

/// See [`rotary_norm`](crate::rotary_norm).
pub fn rotary_norm(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = xs.dim(D::Minus1)? / 2;
    let (x1, x2) = (xs.narrow(D::Minus1, 0, half)?, xs.narrow(D::Minus1, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let y1 = (x1.broadcast_mul(&cos)? + x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
    rms_norm(&Tensor::cat(&[y1, y2], D::Minus1)?)
}

/// See [`attention`](crate::attention).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: usize) -> Result<Tensor> {
    let (_, time, _, channels) = q.dims4()?;
    let head_first = |xs: &Tensor| xs.transpose(1, 2)?.contiguous();
    let (q, k, v) = (head_first(q)?, head_first(k)?, head_first(v)?);
    let scores = (q.matmul(&k.t()?)? * (channels as f64).powf(-0.5))?;
    let visible = |i: usize, j: usize| j <= i && i - j <= window;
    let mask: Vec<f32> = (0..time * time)
        .map(|n| if visible(n / time, n % time) { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let mask = Tensor::from_vec(mask, (time, time), q.device())?.to_dtype(q.dtype())?;
    let scores = scores.broadcast_add(&mask)?;
    let highest = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&highest)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.contiguous()
}

/// See [`cross_entropy`](crate::cross_entropy).
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, soft_cap: f64) -> Result<Tensor> {
    token_nats(logits, targets, soft_cap)?.mean_all()
}

/// See [`token_nats`](crate::token_nats); this one has a gradient.
pub fn token_nats(logits: &Tensor, targets: &Tensor, soft_cap: f64) -> Result<Tensor> {
    // Sums over a vocabulary need more than half precision.
    let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logits = ((logits.to_dtype(dtype)? / soft_cap)?.tanh()? * soft_cap)?;
    let highest = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&highest)?;
    let log_total = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let chosen = shifted.gather(&targets.unsqueeze(1)?, D::Minus1)?;
    (log_total - chosen)?.squeeze(1)
}
