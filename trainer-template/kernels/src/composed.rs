//! The same operations from candle's and candle-nn's own: the definition that the fused kernels are tested
//! against, and what runs on other devices.

use crate::{AdamWStep, Heads, MuonStep, muon::POLAR_EXPRESS, norm::NORM_EPS};
use candle_core::{D, DType, Module, Result, Tensor};
use candle_nn::{Embedding, ops::log_softmax};

/// See [`linear`](crate::linear).
pub fn linear(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    // A part of the channels is a view, which candle multiplies on a CPU and refuses on a card.
    xs.contiguous()?.matmul(&weight.t()?)
}

/// See [`Pass::embedding`](crate::Pass::embedding).
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
    Embedding::new(table.clone(), table.dim(1)?).forward(&ids)
}

/// See [`relu_squared`](crate::relu_squared).
pub fn relu_squared(xs: &Tensor) -> Result<Tensor> {
    xs.relu()?.sqr()
}

/// See [`mix`](crate::mix).
pub fn mix(
    (xs, x0): (&Tensor, &Tensor),
    (lambdas, x0_lambdas): (&Tensor, &Tensor),
    layer: usize,
) -> Result<Tensor> {
    let (a, b) = (lambdas.narrow(0, layer, 1)?, x0_lambdas.narrow(0, layer, 1)?);
    xs.broadcast_mul(&a)? + x0.broadcast_mul(&b)?
}

/// See [`gated_add`](crate::gated_add).
pub fn gated_add(v: &Tensor, values: &Tensor, gates: &Tensor) -> Result<Tensor> {
    let ((tokens, channels), heads) = (v.dims2()?, gates.dim(1)?);
    let gates = ((gates * 0.5)?.tanh()? + 1.0)?.unsqueeze(2)?;
    let values = values.reshape((tokens, heads, channels / heads))?.broadcast_mul(&gates)?;
    v + values.reshape((tokens, channels))?
}

/// See [`rms_norm`](crate::rms_norm).
pub fn rms_norm(xs: &Tensor) -> Result<Tensor> {
    let mean_square = xs.sqr()?.mean_keepdim(D::Minus1)?;
    xs.broadcast_div(&(mean_square + NORM_EPS)?.sqrt()?)
}

/// See [`rotary_norm`](crate::rotary_norm). The tables are as long as a sequence.
pub fn rotary_norm(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let (time, half) = cos.dims2()?;
    let (tokens, channels) = xs.dims2()?;
    let heads = xs.reshape((tokens / time, time, channels / (2 * half), 2 * half))?;
    let (x1, x2) = (heads.narrow(3, 0, half)?, heads.narrow(3, half, half)?);
    let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
    let y1 = (x1.broadcast_mul(&cos)? + x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? - x1.broadcast_mul(&sin)?)?;
    rms_norm(&Tensor::cat(&[y1, y2], 3)?)?.reshape((tokens, channels))
}

/// See [`attention`](crate::attention).
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads) -> Result<Tensor> {
    let (tokens, channels) = q.dims2()?;
    let Heads { time, channels: width, window } = heads;
    let head_first = |xs: &Tensor| {
        xs.reshape((tokens / time, time, channels / width, width))?.transpose(1, 2)?.contiguous()
    };
    let (q, k, v) = (head_first(q)?, head_first(k)?, head_first(v)?);
    let scores = (q.matmul(&k.t()?)? * (width as f64).powf(-0.5))?;
    let visible = |i: usize, j: usize| j <= i && i - j <= window;
    let mask: Vec<f32> = (0..time * time)
        .map(|n| if visible(n / time, n % time) { 0.0 } else { f32::NEG_INFINITY })
        .collect();
    let mask = Tensor::from_vec(mask, (time, time), q.device())?.to_dtype(q.dtype())?;
    let scores = scores.broadcast_add(&mask)?;
    let highest = scores.max_keepdim(D::Minus1)?.detach();
    let weights = scores.broadcast_sub(&highest)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&v)?.transpose(1, 2)?.contiguous()?.reshape((tokens, channels))
}

/// The soft cap of [`cross_entropy`](crate::cross_entropy).
pub fn soft_cap(logits: &Tensor, cap: f64) -> Result<Tensor> {
    (logits / cap)?.tanh()? * cap
}

/// See [`cross_entropy`](crate::cross_entropy).
pub fn cross_entropy(xs: &Tensor, weight: &Tensor, targets: &[u32], cap: f64) -> Result<Tensor> {
    token_nats(xs, weight, targets, cap)?.mean_all()
}

/// See [`token_nats`](crate::token_nats); this one has a gradient.
pub fn token_nats(xs: &Tensor, weight: &Tensor, targets: &[u32], cap: f64) -> Result<Tensor> {
    // Sums over a vocabulary need more than half precision.
    let dtype = if xs.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    let logits = soft_cap(&linear(xs, weight)?.to_dtype(dtype)?, cap)?;
    let log_probabilities = log_softmax(&logits, D::Minus1)?;
    let targets = Tensor::from_slice(targets, (targets.len(), 1), xs.device())?;
    log_probabilities.gather(&targets, D::Minus1)?.neg()?.squeeze(1)
}

/// `a + weight * (b - a)`
fn lerp(a: &Tensor, b: &Tensor, weight: f64) -> Result<Tensor> {
    (a * (1.0 - weight))? + (b * weight)?
}

/// See [`AdamW`](crate::AdamW): the parameter after a step. `averages` are of the gradient and of
/// its square, and `bias` is what they lack of one, having started at zero.
pub fn adamw(
    param: &Tensor,
    grad: &Tensor,
    averages: &mut [Tensor; 2],
    step: AdamWStep,
    bias: (f64, f64),
) -> Result<Tensor> {
    averages[0] = lerp(&averages[0], grad, 1.0 - step.betas.0)?;
    averages[1] = lerp(&averages[1], &grad.sqr()?, 1.0 - step.betas.1)?;
    let denominator = ((&averages[1] / bias.1)?.sqrt()? + step.eps)?;
    let update = ((&averages[0] / denominator)? * (step.lr / bias.0))?;
    param.detach() - update
}

/// See [`Muon`](crate::Muon): a stack of matrices, `[matrix, row, column]`, after a step. `memory` is
/// the mean gradient and the neurons' mean squares, `[matrix, row, 1]` or, of wide matrices,
/// `[matrix, 1, column]`.
pub fn muon(
    params: &Tensor,
    grads: &Tensor,
    memory: &mut [Tensor; 2],
    step: MuonStep,
) -> Result<Tensor> {
    let [mean, neurons] = memory;
    // Nesterov momentum
    *mean = lerp(mean, grads, 1.0 - step.momentum)?;
    let update = polar_express(&lerp(grads, mean, step.momentum)?)?;
    let update = even_out(&update, neurons, step.beta2)?;
    // Cautious decay: only where it pulls the same way as the update.
    let agree = (&update * params)?.ge(0.0)?.to_dtype(params.dtype())?;
    let decay = ((params * agree)? * step.weight_decay)?;
    params - ((update + decay)? * step.lr)?
}

/// Gives every neuron an update of about the same size, and leaves the size of the whole as it
/// was (NorMuon, arXiv 2510.05491, algorithm 1).
fn even_out(update: &Tensor, neurons: &mut Tensor, beta2: f64) -> Result<Tensor> {
    let (_, rows, columns) = update.dims3()?;
    let (across, width) = if rows >= columns { (2, columns) } else { (1, rows) };
    let mean_square = update.sqr()?.mean_keepdim(across)?;
    *neurons = lerp(neurons, &mean_square, 1.0 - beta2)?;
    let step_size = neurons.maximum(1e-10)?.sqrt()?.recip()?;
    let total = |squares: &Tensor| (squares.sum_keepdim((1, 2))? * width as f64)?.sqrt();
    let before = total(&mean_square)?;
    let after = total(&(mean_square * step_size.sqr()?)?)?.maximum(1e-10)?;
    update.broadcast_mul(&step_size.broadcast_mul(&(before / after)?)?)
}

/// The nearest matrix with all singular values one, roughly, of each of a stack.
fn polar_express(xs: &Tensor) -> Result<Tensor> {
    let (_, rows, columns) = xs.dims3()?;
    let norms = xs.sqr()?.sum_keepdim((1, 2))?.sqrt()?;
    let xs = xs.broadcast_div(&((norms * 1.02)? + 1e-6)?)?;
    // Lying down, so that the products of rows are the smaller square.
    let mut xs = if rows > columns { xs.t()?.contiguous()? } else { xs };
    for (a, b, c) in POLAR_EXPRESS {
        let gram = xs.matmul(&xs.t()?)?;
        let polynomial = ((&gram * b)? + (gram.matmul(&gram)? * c)?)?;
        xs = ((&xs * a)? + polynomial.matmul(&xs)?)?;
    }
    if rows > columns { xs.t()?.contiguous() } else { Ok(xs) }
}
