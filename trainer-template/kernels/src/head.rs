//! The end of the model: unembedding, soft cap and cross-entropy, a few rows at a time, so that
//! there is never a matrix of all logits.

use crate::{
    card, composed,
    element::vectorized,
    gradients::Loss,
    math::{exp, max, sum, tanh},
    pass::{Activations, Fused, dispatch},
    product::Mode,
    tape::{Node, Weight},
};
use candle_core::{DType, Result, Tensor, bail};

/// The mean over all tokens of `-ln softmax(cap(x wᵀ))[target]`, in nats, with
/// `cap(z) = soft_cap · tanh(z / soft_cap)` (Gemma 2, arXiv 2408.00118, section 2).
///
/// `weight` is `[vocabulary, channel]`. The gradient of the logits is computed on the way forward,
/// while a row is in the cache.
pub fn cross_entropy(
    xs: &Activations,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: f64,
) -> Result<Loss> {
    check_targets(xs, weight, targets)?;
    dispatch!(
        [xs],
        fused_loss(xs, weight, targets, soft_cap),
        card::cross_entropy(xs, weight, targets, soft_cap),
        composed::cross_entropy(xs, weight, targets, soft_cap).map(Loss::composed)
    )
}

/// The cost of every token by itself, in nats; no gradient.
pub fn token_nats(
    xs: &Activations,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: f64,
) -> Result<Vec<f32>> {
    check_targets(xs, weight, targets)?;
    dispatch!(
        [xs],
        fused_nats(xs, weight, targets, soft_cap),
        { card::token_nats(xs, weight, targets, soft_cap) },
        {
            let nats = composed::token_nats(xs, weight, targets, soft_cap)?;
            nats.to_dtype(DType::F32)?.to_vec1()
        }
    )
}

/// The logits after the last token, soft-capped; no gradient.
pub fn last_logits(xs: &Activations, weight: &Tensor, soft_cap: f64) -> Result<Vec<f32>> {
    let (tokens, _) = xs.dims()?;
    if tokens == 0 {
        bail!("last_logits: there is no token");
    }
    dispatch!(
        [xs],
        fused_last_logits(xs, weight, soft_cap),
        { card::last_logits(xs, weight, soft_cap) },
        {
            let last = composed::linear(&xs.narrow(0, tokens - 1, 1)?, weight)?;
            let logits = composed::soft_cap(&last, soft_cap)?;
            logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        }
    )
}

fn check_targets(xs: &Activations, weight: &Tensor, targets: &[u32]) -> Result<()> {
    let (tokens, _) = xs.dims()?;
    let vocab = weight.dim(0)?;
    if targets.len() != tokens || tokens == 0 {
        bail!("cross_entropy: {} targets for {tokens} tokens", targets.len());
    }
    match targets.iter().find(|&&target| target as usize >= vocab) {
        Some(target) => bail!("cross_entropy: target {target} of a vocabulary of {vocab}"),
        None => Ok(()),
    }
}

/// Tokens whose logits are held at a time.
const ROWS: usize = 64;

fn prepared<E: Fused>(xs: &Node<E>, weight: &Tensor) -> Result<std::sync::Arc<Weight<E>>> {
    let prepared = xs.tape.weight(weight)?;
    if xs.channels != prepared.inputs {
        bail!("cross_entropy: a weight of {:?} for {} channels", weight.shape(), xs.channels);
    }
    Ok(prepared)
}

fn fused_loss<E: Fused>(
    xs: &Node<E>,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: f64,
) -> Result<Loss> {
    let prepared = prepared(xs, weight)?;
    let (vocab, channels, tokens) = (prepared.outputs, xs.channels, xs.tokens());
    let Some(share) = xs.tape.share() else {
        let nats = fused_nats(xs, weight, targets, soft_cap)?;
        return Ok(xs.tape.loss(mean(&nats), xs, |_| Vec::new()));
    };
    let mut nats = vec![0.0; tokens];
    let mut d_logits = vec![E::default(); tokens * vocab];
    let mut logits = vec![0.0; ROWS.min(tokens) * vocab];
    let chunks = xs.values().chunks(ROWS * channels).zip(targets.chunks(ROWS));
    let outputs = nats.chunks_mut(ROWS).zip(d_logits.chunks_mut(ROWS * vocab));
    let slope = (share / tokens as f64) as f32;
    for ((x, targets), (nats, d_logits)) in chunks.zip(outputs) {
        let logits = &mut logits[..d_logits.len()];
        E::logits(x, &prepared.packed, logits);
        rows_loss(logits, targets, nats, d_logits, soft_cap as f32, slope);
    }
    let (x, weight) = (xs.clone(), weight.clone());
    Ok(xs.tape.loss(mean(&nats), xs, move |sink| {
        let mut d_xs = vec![E::default(); x.values().len()];
        E::d_inputs(&d_logits, &prepared.packed, &mut d_xs, Mode::Overwrite);
        if prepared.trained {
            E::d_weight(&d_logits, x.values(), x.input(), sink.dense(&weight), vocab);
        }
        d_xs
    }))
}

fn mean(nats: &[f32]) -> f64 {
    nats.iter().map(|&nats| f64::from(nats)).sum::<f64>() / nats.len() as f64
}

fn fused_nats<E: Fused>(
    xs: &Node<E>,
    weight: &Tensor,
    targets: &[u32],
    soft_cap: f64,
) -> Result<Vec<f32>> {
    let prepared = prepared(xs, weight)?;
    let (vocab, channels, tokens) = (prepared.outputs, xs.channels, xs.tokens());
    let mut nats = vec![0.0; tokens];
    let mut logits = vec![0.0; ROWS.min(tokens) * vocab];
    let chunks = xs.values().chunks(ROWS * channels).zip(targets.chunks(ROWS));
    for ((x, targets), nats) in chunks.zip(nats.chunks_mut(ROWS)) {
        let logits = &mut logits[..targets.len() * vocab];
        E::logits(x, &prepared.packed, logits);
        rows_nats(logits, targets, nats, soft_cap as f32);
    }
    Ok(nats)
}

fn fused_last_logits<E: Fused>(xs: &Node<E>, weight: &Tensor, cap: f64) -> Result<Vec<f32>> {
    let prepared = prepared(xs, weight)?;
    let mut logits = vec![0.0; prepared.outputs];
    let last = &xs.values()[xs.values().len() - xs.channels..];
    E::logits(last, &prepared.packed, &mut logits);
    let cap = cap as f32;
    logits.iter_mut().for_each(|z| *z = cap * tanh(*z / cap));
    Ok(logits)
}

vectorized! {
    /// The cost of every row of logits, and the gradient of `slope` times their sum. `logits` is
    /// written over.
    fn rows_loss<E>(
        logits: &mut [f32],
        targets: &[u32],
        nats: &mut [f32],
        d_logits: &mut [E],
        cap: f32,
        slope: f32,
    ) {
        let vocab = logits.len() / targets.len();
        let mut exps = vec![0.0; vocab];
        let rows = logits.chunks_exact_mut(vocab).zip(targets);
        let outputs = nats.iter_mut().zip(d_logits.chunks_exact_mut(vocab));
        for ((z, &target), (nats, d_z)) in rows.zip(outputs) {
            let target = target as usize;
            let total;
            (*nats, total) = row_nats(z, target, cap, &mut exps);
            let scale = slope / total;
            exps[target] -= total;
            for ((d_z, e), tanh) in d_z.iter_mut().zip(&exps).zip(z.iter()) {
                *d_z = E::store(e * scale * (1.0 - tanh * tanh));
            }
        }
    }
}

vectorized! {
    fn rows_nats(logits: &mut [f32], targets: &[u32], nats: &mut [f32], cap: f32) {
        let vocab = logits.len() / targets.len();
        let mut exps = vec![0.0; vocab];
        let rows = logits.chunks_exact_mut(vocab).zip(targets);
        for ((z, &target), nats) in rows.zip(nats) {
            (*nats, _) = row_nats(z, target as usize, cap, &mut exps);
        }
    }
}

/// The cost of one token. Leaves `tanh(z / cap)` in `z` and the unnormalised probabilities in
/// `exps`, whose total is returned as well.
#[inline(always)]
fn row_nats(z: &mut [f32], target: usize, cap: f32, exps: &mut [f32]) -> (f32, f32) {
    let inverse = 1.0 / cap;
    let highest = cap * tanh(max(z) * inverse);
    for (z, e) in z.iter_mut().zip(exps.iter_mut()) {
        *z = tanh(*z * inverse);
        *e = exp(cap * *z - highest);
    }
    let total = sum(exps);
    (total.ln() + highest - cap * z[target], total)
}
