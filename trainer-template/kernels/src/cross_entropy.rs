//! Softmax cross-entropy with soft-capped logits.

use crate::{
    composed,
    float::{Float, max, sum},
    storage::{Fused, fused, gradient, output, slice},
};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use pulp::Arch;
use rayon::prelude::*;
use std::{marker::PhantomData, sync::Mutex};

/// The mean over all tokens of `-ln softmax(cap(logits))[target]`, in nats, with
/// `cap(z) = soft_cap · tanh(z / soft_cap)` (Gemma 2, arXiv 2408.00118, section 2).
///
/// `logits` is `[token, vocabulary]`, `targets` holds the token ids as `u32`. The gradient is
/// computed on the way forward, while a row is in the cache.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, soft_cap: f64) -> Result<Tensor> {
    let (contiguous, targets) = (logits.contiguous()?, targets.contiguous()?);
    match fused(logits) {
        Some(Fused::F32) => contiguous.apply_op2(&targets, CrossEntropy::<f32>::new(soft_cap)),
        Some(Fused::F64) => contiguous.apply_op2(&targets, CrossEntropy::<f64>::new(soft_cap)),
        None => composed::cross_entropy(logits, &targets, soft_cap),
    }
}

/// The cost of every token by itself, `[token]`; no gradient.
pub fn token_nats(logits: &Tensor, targets: &Tensor, soft_cap: f64) -> Result<Tensor> {
    let (contiguous, targets) = (logits.contiguous()?, targets.contiguous()?);
    match fused(logits) {
        Some(Fused::F32) => {
            contiguous.apply_op2_no_bwd(&targets, &TokenNats::<f32>(soft_cap, PhantomData))
        }
        Some(Fused::F64) => {
            contiguous.apply_op2_no_bwd(&targets, &TokenNats::<f64>(soft_cap, PhantomData))
        }
        None => composed::token_nats(&logits.detach(), &targets, soft_cap),
    }
}

/// Tokens that one task takes at a time.
const ROWS: usize = 64;

struct CrossEntropy<F> {
    soft_cap: f64,
    /// The gradient of the mean with respect to the logits, from forward to backward.
    d_logits: Mutex<Option<Vec<F>>>,
}

impl<F: Float> CrossEntropy<F> {
    fn new(soft_cap: f64) -> Self {
        Self { soft_cap, d_logits: Mutex::new(None) }
    }
}

impl<F: Float> CustomOp2 for CrossEntropy<F> {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, vocab) = layout.shape().dims2()?;
        let logits: &[F] = slice(logits, layout)?;
        let targets: &[u32] = slice(targets, targets_layout)?;
        check_targets(targets, tokens, vocab)?;
        let cap = F::from_f64(self.soft_cap);
        let share = F::from_f64(1.0 / tokens as f64);
        let mut d_logits = vec![F::zero(); logits.len()];
        let mut nats = vec![F::zero(); tokens];
        nats.par_chunks_mut(ROWS)
            .zip(d_logits.par_chunks_mut(ROWS * vocab))
            .zip(logits.par_chunks(ROWS * vocab).zip(targets.par_chunks(ROWS)))
            .for_each_init(
                || vec![F::zero(); vocab],
                |exps, ((nats, d_logits), (logits, targets))| {
                    Arch::new().dispatch(|| {
                        let inputs = logits.chunks_exact(vocab).zip(targets);
                        let outputs = nats.iter_mut().zip(d_logits.chunks_exact_mut(vocab));
                        for ((nats, d_z), (z, &target)) in outputs.zip(inputs) {
                            let target = target as usize;
                            // The gradient's row holds tanh until it holds the gradient.
                            let (cost, total) = row_nats(z, target, cap, d_z, exps);
                            *nats = cost;
                            let scale = F::one() / total;
                            exps[target] -= total;
                            for (d_z, &e) in d_z.iter_mut().zip(exps.iter()) {
                                let tanh = *d_z;
                                *d_z = e * scale * (F::one() - tanh * tanh) * share;
                            }
                        }
                    });
                },
            );
        *self.d_logits.lock().expect("no task panicked") = Some(d_logits);
        let mean = nats.iter().map(|nats| nats.to_f64()).sum::<f64>() / tokens as f64;
        Ok(output(vec![F::from_f64(mean)], ()))
    }

    fn bwd(
        &self,
        logits: &Tensor,
        _targets: &Tensor,
        _mean: &Tensor,
        d_mean: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let Some(mut d_logits) = self.d_logits.lock().expect("no task panicked").take() else {
            bail!("cross_entropy: its gradient can be taken once");
        };
        let factor = F::from_f64(d_mean.to_dtype(candle_core::DType::F64)?.to_scalar()?);
        if factor != F::one() {
            d_logits.par_iter_mut().with_min_len(32 * 1024).for_each(|d| *d *= factor);
        }
        Ok((gradient(d_logits, logits)?, None))
    }
}

struct TokenNats<F>(f64, PhantomData<F>);

impl<F: Float> CustomOp2 for TokenNats<F> {
    fn name(&self) -> &'static str {
        "token_nats"
    }

    fn cpu_fwd(
        &self,
        logits: &CpuStorage,
        layout: &Layout,
        targets: &CpuStorage,
        targets_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, vocab) = layout.shape().dims2()?;
        let logits: &[F] = slice(logits, layout)?;
        let targets: &[u32] = slice(targets, targets_layout)?;
        check_targets(targets, tokens, vocab)?;
        let cap = F::from_f64(self.0);
        let mut nats = vec![F::zero(); tokens];
        nats.par_chunks_mut(ROWS)
            .zip(logits.par_chunks(ROWS * vocab).zip(targets.par_chunks(ROWS)))
            .for_each_init(
                || (vec![F::zero(); vocab], vec![F::zero(); vocab]),
                |(tanhs, exps), (nats, (logits, targets))| {
                    Arch::new().dispatch(|| {
                        let inputs = logits.chunks_exact(vocab).zip(targets);
                        for (nats, (z, &target)) in nats.iter_mut().zip(inputs) {
                            (*nats, _) = row_nats(z, target as usize, cap, tanhs, exps);
                        }
                    });
                },
            );
        Ok(output(nats, tokens))
    }
}

/// The cost of one token. Leaves `tanh(z / cap)` in `tanhs` and the unnormalised probabilities in
/// `exps`, whose total is returned as well.
#[inline(always)]
fn row_nats<F: Float>(z: &[F], target: usize, cap: F, tanhs: &mut [F], exps: &mut [F]) -> (F, F) {
    let inverse = F::one() / cap;
    let highest = cap * (max(z) * inverse).tanh();
    for ((&z, tanh), exp) in z.iter().zip(tanhs.iter_mut()).zip(exps.iter_mut()) {
        *tanh = (z * inverse).tanh();
        *exp = (cap * *tanh - highest).exp();
    }
    let total = sum(exps);
    (total.ln() + highest - cap * tanhs[target], total)
}

fn check_targets(targets: &[u32], tokens: usize, vocab: usize) -> Result<()> {
    if targets.len() != tokens {
        bail!("cross_entropy: {} targets for {tokens} rows of logits", targets.len());
    }
    match targets.iter().find(|&&target| target as usize >= vocab) {
        Some(target) => bail!("cross_entropy: target {target} of a vocabulary of {vocab}"),
        None => Ok(()),
    }
}
