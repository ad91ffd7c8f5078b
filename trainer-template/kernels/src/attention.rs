//! Causal attention over a sliding window, without the matrix of all scores.
//!
//! FlashAttention's idea at a CPU's sizes (Dao et al. 2022, arXiv 2205.14135): the scores of a
//! block of queries live in the cache, only those inside the band are computed, and the backward
//! pass computes them again from the logarithm of each row's total.

use crate::{
    composed,
    float::{Float, dot, max, sum},
    storage::{Fused, fused, gradient, output, read, slice},
    tile::{Accumulator, COLUMNS, Matrix, product},
};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::sync::Mutex;

/// `softmax(q·k / sqrt(channels))·v` for every head, where the query at `i` sees the keys from
/// `i - window` to `i`.
///
/// All three are `[batch, time, head, channel]`, as a projection leaves them, and so is the result.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, window: usize) -> Result<Tensor> {
    q.dims4()?;
    for other in [k, v] {
        if other.shape() != q.shape() {
            bail!("attention: {:?} does not fit queries of {:?}", other.shape(), q.shape());
        }
    }
    let (contiguous, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    match fused(q) {
        Some(Fused::F32) => contiguous.apply_op3(&k, &v, Attention::<f32>::new(window)),
        Some(Fused::F64) => contiguous.apply_op3(&k, &v, Attention::<f64>::new(window)),
        None => composed::attention(q, &k, &v, window),
    }
}

/// Queries whose scores are held at a time.
const QUERIES: usize = 32;

struct Attention<F> {
    window: usize,
    /// `ln Σ exp(score)` of every query, `[batch, head, time]`, from forward to backward.
    log_totals: Mutex<Vec<F>>,
}

impl<F> Attention<F> {
    fn new(window: usize) -> Self {
        Self { window, log_totals: Mutex::new(Vec::new()) }
    }
}

impl<F: Float> CustomOp3 for Attention<F> {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = Sizes::new(q_layout.shape(), self.window)?;
        let q: &[F] = slice(q, q_layout)?;
        let k: &[F] = slice(k, k_layout)?;
        let v: &[F] = slice(v, v_layout)?;
        let mut ys = vec![F::zero(); q.len()];
        let mut log_totals = vec![F::zero(); q.len() / sizes.channels];
        let row = sizes.time * sizes.stride();
        ys.par_chunks_mut(row)
            .zip(log_totals.par_chunks_mut(sizes.time * sizes.heads))
            .zip(q.par_chunks(row).zip(k.par_chunks(row).zip(v.par_chunks(row))))
            .for_each_init(Scratch::default, |scratch, ((ys, log_totals), (q, (k, v)))| {
                vectorized(Forward { sizes, q, k, v, ys, log_totals, scratch });
            });
        *self.log_totals.lock().expect("no task panicked") = log_totals;
        Ok(output(ys, q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        ys: &Tensor,
        d_ys: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let sizes = Sizes::new(q.shape(), self.window)?;
        let row = sizes.time * sizes.stride();
        let log_totals = self.log_totals.lock().expect("no task panicked");
        let [d_q, d_k, d_v] = read([q, k, v, ys, d_ys], |[q, k, v, ys, d_ys]: [&[F]; 5]| {
            let mut d_q = vec![F::zero(); q.len()];
            let mut d_k = vec![F::zero(); q.len()];
            let mut d_v = vec![F::zero(); q.len()];
            let gradients = d_q
                .par_chunks_mut(row)
                .zip(d_k.par_chunks_mut(row).zip(d_v.par_chunks_mut(row)))
                .zip(log_totals.par_chunks(sizes.time * sizes.heads));
            gradients.enumerate().for_each_init(
                Scratch::default,
                |scratch, (n, ((d_q, (d_k, d_v)), log_totals))| {
                    let [q, k, v, ys, d_ys] = [q, k, v, ys, d_ys].map(|xs| &xs[n * row..][..row]);
                    let inputs = Inputs { q, k, v, ys, d_ys, log_totals };
                    vectorized(Backward { sizes, inputs, d_q, d_k, d_v, scratch });
                },
            );
            [d_q, d_k, d_v]
        })?;
        Ok((gradient(d_q, q)?, gradient(d_k, k)?, gradient(d_v, v)?))
    }
}

#[derive(Clone, Copy)]
struct Sizes {
    time: usize,
    heads: usize,
    channels: usize,
    window: usize,
}

impl Sizes {
    fn new(shape: &Shape, window: usize) -> Result<Self> {
        let (_, time, heads, channels) = shape.dims4()?;
        Ok(Self { time, heads, channels, window })
    }

    /// From one token to the next.
    fn stride(&self) -> usize {
        self.heads * self.channels
    }

    /// From one row of transposed keys to the next: any window of keys, rounded up to whole
    /// registers, stays inside.
    fn padded_time(&self) -> usize {
        self.time.next_multiple_of(COLUMNS) + COLUMNS
    }

    /// The first and, exclusively, the last key that the queries of a block see.
    fn keys(&self, block: &Block) -> (usize, usize) {
        (block.start.saturating_sub(self.window), block.end)
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let time = self.time;
        (0..time).step_by(QUERIES).map(move |i| Block { start: i, end: time.min(i + QUERIES) })
    }

    fn scale<F: Float>(&self) -> F {
        F::from_f64((self.channels as f64).powf(-0.5))
    }
}

/// Consecutive queries.
struct Block {
    start: usize,
    end: usize,
}

impl Block {
    fn len(&self) -> usize {
        self.end - self.start
    }
}

/// Buffers that a task uses again and again.
struct Scratch<F> {
    keys: Vec<F>,
    values: Vec<F>,
    scores: Vec<F>,
    d_scores: Vec<F>,
    packed: Vec<F>,
}

impl<F> Default for Scratch<F> {
    fn default() -> Self {
        let new = Vec::new;
        Self { keys: new(), values: new(), scores: new(), d_scores: new(), packed: new() }
    }
}

/// Work to be compiled for the widest vectors, with fused multiply-add where there is one.
trait Work {
    fn run<const FMA: bool>(self);
}

fn vectorized(work: impl Work) {
    match Arch::new() {
        Arch::Scalar => work.run::<false>(),
        arch => arch.dispatch(WithFma(work)),
    }
}

/// Not a closure: those are inlined only where the compiler finds it worth it, and work that is not
/// inlined is compiled for the oldest processor.
struct WithFma<W>(W);

impl<W: Work> WithSimd for WithFma<W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.run::<true>();
    }
}

/// All heads of one row of the batch.
struct Forward<'a, F> {
    sizes: Sizes,
    q: &'a [F],
    k: &'a [F],
    v: &'a [F],
    ys: &'a mut [F],
    log_totals: &'a mut [F],
    scratch: &'a mut Scratch<F>,
}

impl<F: Float> Work for Forward<'_, F> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { sizes, q, k, v, ys, log_totals, scratch } = self;
        let Scratch { keys, scores, packed, .. } = scratch;
        let (stride, channels) = (sizes.stride(), sizes.channels);
        for head in 0..sizes.heads {
            let offset = head * channels;
            transpose(&k[offset..], sizes, keys);
            for block in sizes.blocks() {
                let (first, last) = sizes.keys(&block);
                let queries = Matrix::rows(&q[block.start * stride + offset..], stride);
                let width = raw_scores::<F, FMA>(sizes, &block, queries, keys, scores, packed);
                for (i, scores) in (block.start..).zip(scores.chunks_exact_mut(width)) {
                    let total = softmax(visible(sizes, i, first, scores), sizes.scale());
                    log_totals[head * sizes.time + i] = total;
                }
                let mut c =
                    Accumulator { elements: &mut ys[block.start * stride + offset..], stride };
                let shape = (block.len(), last - first, channels);
                let values = Matrix::rows(&v[first * stride + offset..], stride);
                product::<F, FMA>(shape, Matrix::rows(scores, width), values, &mut c, packed);
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Inputs<'a, F> {
    q: &'a [F],
    k: &'a [F],
    v: &'a [F],
    ys: &'a [F],
    d_ys: &'a [F],
    log_totals: &'a [F],
}

struct Backward<'a, F> {
    sizes: Sizes,
    inputs: Inputs<'a, F>,
    d_q: &'a mut [F],
    d_k: &'a mut [F],
    d_v: &'a mut [F],
    scratch: &'a mut Scratch<F>,
}

impl<F: Float> Work for Backward<'_, F> {
    /// With `P` the weights: `dV = Pᵀ dY`, `dP = dY Vᵀ`, `dS = P ∘ (dP - rowsum(dY ∘ Y))`,
    /// `dQ = dS K` and `dK = dSᵀ Q`, the last two scaled (FlashAttention, appendix B.2).
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { sizes, inputs, d_q, d_k, d_v, scratch } = self;
        let Inputs { q, k, v, ys, d_ys, log_totals } = inputs;
        let Scratch { keys, values, scores, d_scores, packed } = scratch;
        let (stride, channels) = (sizes.stride(), sizes.channels);
        let scale: F = sizes.scale();
        for head in 0..sizes.heads {
            let offset = head * channels;
            transpose(&k[offset..], sizes, keys);
            transpose(&v[offset..], sizes, values);
            for block in sizes.blocks() {
                let (first, last) = sizes.keys(&block);
                let here = block.start * stride + offset;
                let there = first * stride + offset;
                let queries = Matrix::rows(&q[here..], stride);
                let d_out = Matrix::rows(&d_ys[here..], stride);
                let width = raw_scores::<F, FMA>(sizes, &block, queries, keys, scores, packed);
                raw_scores::<F, FMA>(sizes, &block, d_out, values, d_scores, packed);
                let rows = scores.chunks_exact_mut(width).zip(d_scores.chunks_exact_mut(width));
                for (i, (scores, d_scores)) in (block.start..).zip(rows) {
                    let at = i * stride + offset;
                    let mean = dot(&d_ys[at..at + channels], &ys[at..at + channels]);
                    let log_total = log_totals[head * sizes.time + i];
                    let scores = visible(sizes, i, first, scores);
                    let d_scores = visible(sizes, i, first, d_scores);
                    for (weight, d_score) in scores.iter_mut().zip(d_scores) {
                        *weight = (*weight * scale - log_total).exp();
                        *d_score = *weight * (*d_score - mean) * scale;
                    }
                }
                let seen = last - first;
                let (weights, d_scores) =
                    (Matrix::rows(scores, width), Matrix::rows(d_scores, width));
                let to_keys = (seen, block.len(), channels);
                let mut c = Accumulator { elements: &mut d_v[there..], stride };
                product::<F, FMA>(to_keys, weights.transposed(), d_out, &mut c, packed);
                let mut c = Accumulator { elements: &mut d_k[there..], stride };
                product::<F, FMA>(to_keys, d_scores.transposed(), queries, &mut c, packed);
                let mut c = Accumulator { elements: &mut d_q[here..], stride };
                let keys_in_rows = Matrix::rows(&k[there..], stride);
                let to_queries = (block.len(), seen, channels);
                product::<F, FMA>(to_queries, d_scores, keys_in_rows, &mut c, packed);
            }
        }
    }
}

/// `queries · keys` for one block, rows of the returned width. `keys` is transposed.
#[inline(always)]
fn raw_scores<F: Float, const FMA: bool>(
    sizes: Sizes,
    block: &Block,
    queries: Matrix<'_, F>,
    keys: &[F],
    scores: &mut Vec<F>,
    packed: &mut Vec<F>,
) -> usize {
    let (first, last) = sizes.keys(block);
    let width = (last - first).next_multiple_of(COLUMNS);
    scores.clear();
    scores.resize(block.len() * width, F::zero());
    let mut c = Accumulator { elements: scores, stride: width };
    let keys = Matrix::rows(&keys[first..], sizes.padded_time());
    let shape = (block.len(), sizes.channels, width);
    product::<F, FMA>(shape, queries, keys, &mut c, packed);
    width
}

/// The scores that query `i` may see, of a row that starts at key `first`; the others become zero.
#[inline(always)]
fn visible<F: Float>(sizes: Sizes, i: usize, first: usize, scores: &mut [F]) -> &mut [F] {
    let from = i.saturating_sub(sizes.window) - first;
    let to = i + 1 - first;
    scores[..from].fill(F::zero());
    scores[to..].fill(F::zero());
    &mut scores[from..to]
}

/// Turns scores into weights and returns the logarithm of their total.
#[inline(always)]
fn softmax<F: Float>(scores: &mut [F], scale: F) -> F {
    let highest = max(scores) * scale;
    for score in scores.iter_mut() {
        *score = (*score * scale - highest).exp();
    }
    let total = sum(scores);
    let share = F::one() / total;
    for score in scores.iter_mut() {
        *score *= share;
    }
    highest + total.ln()
}

/// One head's `[time, channel]`, of rows a token apart, to `[channel, padded time]`.
#[inline(always)]
fn transpose<F: Float>(xs: &[F], sizes: Sizes, transposed: &mut Vec<F>) {
    let padded = sizes.padded_time();
    transposed.clear();
    transposed.resize(sizes.channels * padded, F::zero());
    for i in 0..sizes.time {
        let x = &xs[i * sizes.stride()..][..sizes.channels];
        for (channel, &x) in x.iter().enumerate() {
            transposed[channel * padded + i] = x;
        }
    }
}
